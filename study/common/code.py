"""Which of our own files a piece of code rests on: what a result must be computed anew for, and what a stage depends on."""

from collections.abc import Iterable
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@cache
def sources(script: Path) -> frozenset[Path]:
    """``script`` and all files of ``srs`` and ``study`` that it imports, by way of whatever it imports."""
    finder = ModuleFinder([str(ROOT)])  # the libraries' own files are not looked for
    finder.run_script(str(script))
    found = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    return frozenset(found | {Path(script)})


def of_modules(*modules: str) -> Iterable[Path]:
    """The :func:`sources` of modules by name, in order."""
    return sorted(frozenset().union(*(sources(ROOT / f"{name.replace('.', '/')}.py") for name in modules)))

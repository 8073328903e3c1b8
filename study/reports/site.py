"""The site of a profile: its executed notebooks as pages, each item of the paper with what made it and its data as CSV.

    python -m study.reports.site NAME

Sphinx with MyST-NB builds runs/NAME/site from sources that are written here. A trial said that its pages open from disk
without a network (search included), that two builds give equal bytes; one takes less than a minute of a core. It fails
when an item is missing from its report, empty, or without its caption (:mod:`study.reports.index`).
"""

import argparse
import ast
import base64
import csv
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import yaml

from study.common import params_file
from study.reports import index
from study.reports.items import as_table, read
from study.reports.profile import Profile

CODE = ("srs", "study")  # whose docstrings are the reference
PAGES = Path(__file__).parent / "pages"  # of Sphinx: its settings, style and template
_HIDDEN_TAGS = {"parameters", "injected-parameters", "hide"}
_SHOWN_TAG = "code"  # of cells whose code is what the page is about
_SHOW = ("comparison", "more_samples", "of_run", "over_trainings", "side_by_side", "twin", "with_more_draws")  # of Results
_FRAMES = {"show_figure", "show_drawing", "set_style", "styled", "label", "Results", "RawVotes"}  # around what is shown


def build(profile: Profile, reports: list[Path], stages: list[Path], items: dict, target: Path) -> None:
    """Replace ``target`` by the site of executed notebooks. Raises RuntimeError where Sphinx fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, extra = Path(folder, "source"), Path(folder, "extra")
        write_sources(profile, reports, stages, items, source, extra)
        command = [sys.executable, "-m", "sphinx", "-Q", "-j", "auto", "-b", "html", "-c", PAGES]
        command += ["-d", Path(folder, "doctrees"), "-D", f"html_extra_path={extra}", source, Path(folder, "built", "site")]
        here = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        ended = subprocess.run(command, env=here, capture_output=True, encoding="utf-8")
        if ended.returncode:
            raise RuntimeError(f"Sphinx ended with {ended.returncode}: {ended.stderr}")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(Path(folder, "built", "site"), target)  # beside it lies what MyST-NB keeps for itself
    (target / ".buildinfo").unlink(missing_ok=True)
    shutil.rmtree(target / "_sources", ignore_errors=True)  # MyST-NB's, whatever the settings say


def write_sources(profile: Profile, reports: list[Path], stages: list[Path], items: dict, source: Path, extra: Path) -> None:
    """What Sphinx reads, in ``source``, and what it only copies, in ``extra``."""
    (source / "api").mkdir(parents=True)
    for folder in ("data", "figures"):
        (extra / folder).mkdir(parents=True)
    graph, commit = _graph(), _commit()
    for path in [*reports, *stages]:
        notebook = nbformat.read(path, as_version=4)
        if path in reports:
            stage = index.stage(path.stem, profile)
            about = [f"stage <code>{stage}</code>", f'notebook <a href="../reports/{path.name}">{path.stem}</a>']
            rests = [f"params.yaml: {', '.join(_sections(stage.partition('@')[0], graph))}", commit]
            for item in (item for item, entry in items.items() if entry["report"] == path.stem):
                if table := _mark(notebook, item, about, rests):
                    (extra / "data" / f"{item}.csv").write_text(table, encoding="utf-8")
        nbformat.write(_as_page(notebook, path.stem, extra / "figures"), source / path.name)
    shutil.copy(PAGES / "calculator.html", extra)
    packages = _write_api(source / "api")
    (source / "items.md").write_text(index.table(profile, items, [path.stem for path in reports]), encoding="utf-8")
    lists = {
        "Reports": [path.stem for path in reports if path.stem != index.HOME],
        "Lists": ["items"],
        "Stages": [f"{path.stem} <{path.stem}>" for path in stages],
        "Code": [f"api/{package}" for package in packages],
    }
    trees = "".join(_TREE.format(caption=caption, names="\n".join(names)) for caption, names in lists.items() if names)
    home = nbformat.read(source / f"{index.HOME}.ipynb", as_version=4)
    home.cells.append(nbformat.v4.new_markdown_cell(f"## All pages\n\n{trees}", id="pages"))
    nbformat.write(home, source / "index.ipynb")
    (source / f"{index.HOME}.ipynb").unlink()


_TREE = "```{{toctree}}\n:maxdepth: 1\n:caption: {caption}\n{names}\n```\n\n"


def _write_api(folder: Path) -> list[str]:
    """A page for each package of srs and study, from their docstrings."""
    modules: dict[str, list[str]] = {}
    for path in sorted(path for root in CODE for path in Path(root).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if path.stem != "__main__" and path.with_name("__init__.py").is_file():
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            modules.setdefault(package, []).append(name)
    for package, names in modules.items():
        parts = [f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in sorted(names)]
        (folder / f"{package}.md").write_text("\n".join([f"# {package}\n", *parts]), encoding="utf-8")
    return sorted(modules)


def _graph() -> dict[str, dict]:
    """The stages of dvc.yaml."""
    stages = yaml.safe_load(params_file.text("dvc.yaml"))["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def _sections(stage: str, graph: dict[str, dict]) -> list[str]:
    """The sections of params.yaml on which a stage rests: its own, and those of all before it."""
    outs = {
        name: [path for out in s.get("outs", []) for path in ([out] if isinstance(out, str) else out)]
        for name, s in graph.items()
    }
    makers = {path: name for name, paths in outs.items() for path in paths}
    found, waiting, seen = {}, [stage], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        found |= {section.partition(".")[0]: None for section in graph[name].get("params", [])}
        for dep in graph[name]["deps"]:
            if dep.endswith("/shown.json"):
                found["report"] = None
            before = {m for out, m in makers.items() if out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/")}
            waiting += sorted(before - seen)
    return sorted(found)


def _commit() -> str:
    """The commit that is checked out, and whether what makes the pages has changed since."""
    asked = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty= with uncommitted changes"]
    ended = subprocess.run(asked, capture_output=True, encoding="utf-8")
    return f"commit {ended.stdout.strip()}" if ended.returncode == 0 else "no commit"


def _mark(notebook: nbformat.NotebookNode, item: str, about: list[str], rests: list[str]) -> str:
    """Put an anchor above an item, and below it what made it; its data as CSV (a drawing has none)."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for place, output in enumerate(cell.outputs):
            page = output.get("data", {}).get("text/html", "")
            if f'id="{item}"' in page:
                output["data"]["text/html"] = re.sub(f'<span [^>]*id="{item}"[^>]*></span>', "", page)
                made = ", ".join(f'<a href="{_in_api(name)}">{name}</a>' for name in makers(notebook, cell))
                table = output["data"].pop("text/csv", "") or as_csv(page)
                links = [*about, f"made by {made}"] if made else about
                data = [f'<a href="data/{item}.csv">data as CSV</a>'] if table else []
                told = " · ".join([*links, *rests, *data])
                cell.outputs.insert(place + 1, _html(f'<p class="about">{told}</p>'))
                cell.outputs.insert(place - item.startswith("figure"), _html(f'<div class="item" id="{item}"></div>'))
                return table
    raise ValueError(f"{item} is not in its report")


def _html(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": text})


def makers(notebook: nbformat.NotebookNode, cell: nbformat.NotebookNode) -> list[str]:
    """Full names of the functions of study that a cell calls, itself or by the notebook's own functions, but for those that
    frame what others make."""
    names: dict[str, str] = {}  # imported ones, and instances of imported classes
    own: dict[str, ast.AST] = {}
    for earlier in (c for c in notebook.cells if c.cell_type == "code"):
        for node in ast.walk(ast.parse(earlier.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("study"):
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = ast.unparse(node.value.func)
                if made in names and made[0].isupper():
                    names[ast.unparse(node.targets[0])] = names[made]
            elif isinstance(node, ast.FunctionDef):
                own[node.name] = node
    found, waiting = {}, [ast.parse(cell.source)]
    while waiting:
        for node in (node for node in ast.walk(waiting.pop(0)) if isinstance(node, ast.Call)):
            first, dot, rest = ast.unparse(node.func).partition(".")
            if first in own and not rest:
                waiting.append(own.pop(first))
            elif first in names and (rest or first).isidentifier() and not {rest, first} & _FRAMES:
                found[names[first] + dot + rest] = None
    return [name for name in found if ".results.Results." not in name or name.endswith(_SHOW)]


def _in_api(name: str) -> str:
    """The place of a function, or of a class's method, in the reference."""
    module = name
    while not Path(*module.split(".")).with_suffix(".py").is_file():
        module = module.rpartition(".")[0]
    return f"api/{module.rpartition('.')[0]}.html#{name}"


def as_csv(page: str) -> str:
    """The cells of a page's tables; empty where there is none."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(as_table(page))
    return text.getvalue()


def _as_page(notebook: nbformat.NotebookNode, name: str, figures: Path) -> nbformat.NotebookNode:
    """The cells of a page: without code, but where the page is about it; tables scroll inside boxes of their own, pictures
    are files in ``figures`` with their words for who cannot see them, which MyST-NB would lose."""
    shown, pictures = [], 0
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code":
            if _HIDDEN_TAGS & tags or not (cell.outputs or _SHOWN_TAG in tags):
                continue
            cell.metadata["tags"] = [] if _SHOWN_TAG in tags else ["remove-input"]
            for output in cell.outputs:
                if words := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    pictures += 1
                    file = figures / f"{name}-{pictures}.png"
                    file.write_bytes(base64.b64decode(output["data"]["image/png"]))
                    output["data"] = {"text/html": f'<img src="figures/{file.name}" alt="{html.escape(words)}">'}
                page = output.get("data", {}).get("text/html", "")
                if "<table" in page and 'class="scroll"' not in page:
                    boxed = re.sub("(<table.*?</table>)", r'<div class="scroll">\1</div>', page, flags=re.DOTALL)
                    output["data"]["text/html"] = boxed
        shown.append(cell)
    notebook.cells = shown
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.reports.site", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="the profile")
    name = parser.parse_args().name
    try:
        profile, (names, items) = Profile(name), read()
    except params_file.ParameterError as error:
        sys.exit(str(error))
    runs = profile.layout.runs
    items = index.promised(items, profile)
    if wrong := index.faults(runs / "reports", items):
        sys.exit("the reports lack:\n" + "\n".join(wrong))
    found = [runs / "reports" / f"{name}.ipynb" for name in index.reports(names, profile)]
    stages = [path for path in sorted((runs / "notebooks").glob("*.ipynb")) if not path.stem.endswith(".failed")]
    build(profile, found, stages, items, runs / "site")


if __name__ == "__main__":
    main()

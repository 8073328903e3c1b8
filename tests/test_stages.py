"""The graph of stages: what each depends on is what it uses, and no more."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import product, zip_longest
from pathlib import Path

import nbformat
import pytest
import yaml

from srs.data.datasets import Dataset
from study import params
from study.common import code

ROOT = Path(__file__).parent.parent
DVC = Path(sys.executable).with_name("dvc")
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in GRAPH.items()}
RUN = {name: stage for name, stage in STAGES.items() if "study.run" in stage["cmd"]}
PROFILES = {path.stem: path for path in (ROOT / "profiles").glob("*.yaml")}
BASE = {"srs/common", "study/common", "study/run.py"}  # of all that runs a notebook


def _sources(notebook: Path, folder: Path) -> set[str]:
    """The files of srs and study that a notebook's code imports, but for packages' own, which hold nothing."""
    cells = nbformat.read(notebook, as_version=4).cells
    script = folder / f"{notebook.stem}.py"
    script.write_text("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    found = {path for path in code.sources(script) if path.is_relative_to(ROOT)}
    return {str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py" or path.parent.name == "models"}


def _notebooks(name: str) -> list[Path]:
    """The notebooks of a stage."""
    items = [""]
    if "pages" in GRAPH[name].get("foreach", ""):
        kind = GRAPH[name]["foreach"].removesuffix("}").rpartition(".")[2]
        items = [
            item for path in PROFILES.values() for item in yaml.safe_load(path.read_text())["report"]["pages"].get(kind, [])
        ]
    sources = [dep.removeprefix("runs/") for dep in RUN[name]["deps"] if dep.startswith("runs/notebooks/")]
    return sorted({ROOT / source.replace("${item}", item) for source, item in product(sources, items)})


def _faults(imported: set[str], listed: set[str]) -> list[str]:
    """What is imported and not listed, and what is listed and not imported."""

    def within(file, place):
        return file == place or file.startswith(f"{place}/")

    missing = [f"{file} is missing" for file in imported if not any(within(file, place) for place in listed)]
    idle = [place for place in listed - BASE if not any(within(file, place) for file in imported)]
    return sorted(missing + [f"{place} is superfluous" for place in idle])


@pytest.mark.parametrize("name", RUN)
def test_a_stage_depends_on_the_code_that_it_imports_and_no_other(name, tmp_path):
    listed = {dep for dep in RUN[name]["deps"] if dep.startswith(("srs", "study"))}
    assert listed >= BASE and "requirements.lock" in RUN[name]["deps"]
    imported = set().union(*(_sources(notebook, tmp_path) for notebook in _notebooks(name)))
    assert _faults(imported, listed) == []


def test_the_test_above_can_fail(tmp_path):
    imported = _sources(ROOT / "notebooks" / "03_vote.ipynb", tmp_path)
    listed = {dep for dep in RUN["vote"]["deps"] if dep.startswith(("srs", "study"))}
    assert "srs/votes/noise.py is missing" in _faults(imported, listed - {"srs/votes"})
    assert _faults(imported, listed | {"srs/training"}) == ["srs/training is superfluous"]


def test_packages_hold_nothing_of_their_own():
    for path in [*(ROOT / "srs").rglob("__init__.py"), *(ROOT / "study").rglob("__init__.py")]:
        if path.parent.name not in ("models", "checkpoints", "srs"):
            assert len(path.read_text().splitlines()) == 1, path


@pytest.mark.parametrize("name", RUN)
def test_a_stage_tracks_exactly_the_sections_that_it_is_given(name):
    words = RUN[name]["cmd"].split()[4:]
    options = {i + 1 for i, word in enumerate(words) if word.startswith("--")}
    given = {word.rpartition("=")[2] for i, word in enumerate(words) if not word.startswith("--") and i not in options}
    assert given == set(RUN[name].get("params", []))
    assert "machine" not in given


@pytest.mark.parametrize("name", RUN)
def test_a_stage_gives_its_notebook_what_that_declares(name):
    import papermill

    words = RUN[name]["cmd"].split()[4:]
    options = {i: word for i, word in enumerate(words) if word.startswith("--")}
    given = {"name"} | {word.partition("=")[0] for i, word in enumerate(words) if i not in options and i - 1 not in options}
    given |= {words[i + 1].partition("=")[0] for i, word in options.items() if word == "--set"}
    for notebook in _notebooks(name):
        assert set(papermill.inspect_notebook(str(notebook))) == given, notebook


def test_pages_read_what_the_checked_file_shows_them():
    assert set(params.SHOWN) <= set(params.Study.model_fields)
    for name, stage in RUN.items():
        if "--into reports" in stage["cmd"]:
            assert "runs/${name}/shown.json" in stage["deps"], name


def test_no_page_waits_for_more_than_it_reads():
    late = {f"runs/${{name}}/{stage}" for stage in ("attacks", "coverage", "arithmetic", "speed")}
    waits = {name: {dep.rpartition("/")[2] for dep in late & set(stage["deps"])} for name, stage in RUN.items()}
    waits = {name: found for name, found in waits.items() if found}
    whole = {
        "whole-page": {"attacks", "coverage", "arithmetic"},
        "claims": {"attacks", "coverage", "speed"},
        "overview": {"attacks", "coverage", "speed"},
    }
    assert waits == whole | {"past": {"speed"}}


def test_nothing_depends_on_seconds_but_what_shows_them():
    for name, stage in STAGES.items():
        timed = [dep for dep in stage["deps"] if "/timings/" in dep]
        assert not timed or name in ("certify", "comparison") or "--into reports" in stage["cmd"], name


# what a DVC user does


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project as a repository of its own, on the smallest profile, without its results."""
    root = tmp_path_factory.mktemp("project")
    for name in ("srs", "study", "notebooks", "profiles"):
        shutil.copytree(ROOT / name, root / name)  # with what is compiled
    (root / ".dvc").mkdir()
    (root / "data/snapshots").mkdir(parents=True)
    names = ("dvc.yaml", "data/items.yaml", "data/published.yaml", "data/snapshots/README.md")
    for name in (*names, "requirements.lock", "pyproject.toml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, root / name)
    shutil.copy(PROFILES["smoke"], root / "params.yaml")
    (root / "runs").mkdir()
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm begin"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


_DVC = """
import json, shutil, sys
from dvc.cli import main
for number, (params, words) in enumerate(json.loads(sys.argv[1])):
    if params:
        shutil.copy(params, "params.yaml")
    print(end="\\0" if number else "", flush=True)
    if main(words):
        sys.exit(f"dvc {' '.join(words)} failed")
"""


def _dvc(root: Path, *commands: str, params: Sequence[Path | None] = ()) -> list[str]:
    """What commands of DVC print, one after the other in one process: that DVC is imported takes longer than most of them.
    ``params``: files that become params.yaml before one."""
    path = os.pathsep.join([str(DVC.parent), os.environ["PATH"]])
    names = {name: f"{kind}" for kind in ("AUTHOR", "COMMITTER") for name in (f"GIT_{kind}_NAME", f"GIT_{kind}_EMAIL")}
    here = os.environ | {"PYTHONPATH": str(root), "PATH": path} | names
    steps = [(file and str(file), command.split()) for command, file in zip_longest(commands, params)]
    asked = [sys.executable, "-c", _DVC, json.dumps(steps)]
    ended = subprocess.run(asked, cwd=root, env=here, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.split("\0")


@pytest.fixture(scope="module")
def resolved(project):
    """The names of the stages of each profile, and what a dry run of all of them says."""
    commands = ["stage list --name-only", "repro --dry --force"] * len(PROFILES)
    told = _dvc(project, *commands, params=[file for path in PROFILES.values() for file in (path, None)])
    shutil.copy(PROFILES["smoke"], project / "params.yaml")
    return {name: (set(listed.split()), dry) for name, listed, dry in zip(PROFILES, told[::2], told[1::2])}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profiles_stages_resolve(resolved, name):
    stages, dry = resolved[name]
    pages = params.load(PROFILES[name]).report.pages.names()
    wanted = set(RUN) - {stage for stage in GRAPH if "foreach" in GRAPH[stage]}
    assert wanted | {"check", "source", "site"} <= stages
    assert {stage.rpartition("@")[2] for stage in stages if "page@" in stage} == set(pages)
    assert dry.count("Running stage") == len(stages) and f"study.reports.site {name}" in dry


def test_an_experiment_changes_a_parameter_and_reruns_what_depends_on_it(project, tmp_path):
    """`dvc exp run -S` rewrites params.yaml: the file must survive that, and the diff be one line."""
    edited = tmp_path / "edited.yaml"
    edited.write_text(PROFILES["smoke"].read_text().replace("validation: 100", "validation: 98", 1))
    _, diff, shown, again, dry = _dvc(
        project,
        "exp run -S data.digits.validation=99 prepare@digits",
        "params diff",
        "exp show --csv",
        "repro --dry prepare@digits",
        "repro --dry prepare@digits",
        params=[None, None, None, None, edited],
    )
    diff = [line for line in diff.splitlines() if "params.yaml" in line]
    assert len(diff) == 1 and diff[0].split() == ["params.yaml", "data.digits.validation", "100", "99"]
    assert "data.digits.validation" in shown.splitlines()[0]
    assert len(Dataset.load(project / "data/smoke/digits.npz").validation) == 99
    assert "Running stage" not in again
    again = [line for line in dry.splitlines() if "Running stage" in line]
    assert again == ["Running stage 'check':", "Running stage 'prepare@digits':"]

import os
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from conftest import wait_until

from srs import notebooks, params, sections

ROOT = Path(__file__).parent.parent
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
HERE = os.environ | {"PYTHONPATH": str(ROOT)}
SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("n = 1\nname = 'x'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import sys, time\nprint(n + 1, name)\nprint('progress', file=sys.stderr)\n"
            "import matplotlib.pyplot as plt\nplt.plot([1, n]); plt.show()"
        ),
        nbformat.v4.new_code_cell("import pandas as pd\npd.DataFrame({'a': [n]}).style.set_uuid('u')"),
        nbformat.v4.new_markdown_cell("text"),
    ]
    path = tmp_path / "source.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), path)
    return path


def test_equal_runs_give_equal_bytes_and_a_page_without_code_or_network(notebook, tmp_path):
    outputs = [tmp_path / name / "out.ipynb" for name in ("a", "b")]
    for output in outputs:
        notebooks.run(notebook, output, {"n": 21, "name": "y"})
    for suffix in (".ipynb", ".html"):
        assert outputs[0].with_suffix(suffix).read_bytes() == outputs[1].with_suffix(suffix).read_bytes()
    executed = nbformat.read(outputs[0], as_version=4)
    assert executed.cells[2].outputs[0].text == "22 y\n"
    assert [output.output_type for output in executed.cells[2].outputs] == ["stream", "display_data"]  # no progress bar
    page = outputs[0].with_suffix(".html").read_text()
    assert (
        "22 y" in page and "image/png;base64" in page and "import sys" not in page and "21" not in page.split("<body")[1][:5000]
    )
    assert 'src="http' not in page and 'href="http' not in page
    assert not list(tmp_path.glob("*/*.failed.ipynb"))


def test_parameter_names_are_checked_before_anything_runs(notebook, tmp_path):
    with pytest.raises(sections.ParameterError, match="declares no parameter 'm': choose from n, name"):
        notebooks.run(notebook, tmp_path / "out.ipynb", {"n": 1, "name": "x", "m": 2})
    with pytest.raises(sections.ParameterError, match="needs the parameter 'name'"):
        notebooks.run(notebook, tmp_path / "out.ipynb", {"n": 1})
    assert not list(tmp_path.glob("out*"))


def test_a_failure_is_told_and_left_to_read(notebook, tmp_path):
    command = [
        sys.executable,
        "-m",
        "srs.notebooks",
        str(notebook),
        str(tmp_path / "out.ipynb"),
        "--set",
        "n=text",
        "--set",
        "name=x",
    ]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode != 0 and "failed" in failed.stderr and "out.failed.ipynb" in failed.stderr
    assert (tmp_path / "out.failed.ipynb").is_file() and not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("edited, told", [("n: 2", "active.n was edited"), ("n: 1\nother: 2", None), ("", "is empty")])
def test_parameters_that_are_edited_while_in_use_fail_the_stage(tmp_path, edited, told):
    """DVC reads params.yaml when a stage ends: it would record the new value with the old one's result."""
    cells = [
        nbformat.v4.new_code_cell("n = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"open('params.yaml', 'w').write({edited!r}.replace('n:', 'active:\\n  n:'))"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "source.ipynb")
    (tmp_path / "params.yaml").write_text("active:\n  n: 1\n")
    command = [sys.executable, "-m", "srs.notebooks", "source.ipynb", "out.ipynb", "--section", "n=active.n"]
    ended = subprocess.run(command, cwd=tmp_path, env=HERE, capture_output=True, text=True)
    assert (ended.returncode == 0) == (told is None) == (tmp_path / "out.ipynb").exists(), ended.stderr
    assert told is None or told in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["notebooks a.ipynb b.ipynb", "params", "index runs", "publish"])
def test_modules_of_the_pipeline_say_where_they_must_be_started(tmp_path, module):
    command = [sys.executable, "-m", *f"srs.{module}".split()]
    ended = subprocess.run(command, cwd=tmp_path, env=HERE, capture_output=True, text=True)
    told = f"params.yaml cannot be read in {tmp_path}: No such file or directory; start in the project's own\n"
    assert (ended.returncode, ended.stderr) == (1, told)


def test_parameters_are_read_in_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "params.yaml").write_text("name: \u03c3", encoding="utf-8")
    command = [sys.executable, "-m", "srs.notebooks", "a.ipynb", "b.ipynb"]
    ended = subprocess.run(command, cwd=tmp_path, env=HERE | {"LC_ALL": "C", "PYTHONUTF8": "0"}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"there is no notebook a.ipynb in {tmp_path}\n")


def test_a_killed_dvc_leaves_nobody_at_work(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("path = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import time\nwhile True:\n    open(path, 'a').write('x')\n    time.sleep(0.1)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "source.ipynb")
    beats = tmp_path / "beats"
    runner = [sys.executable, "-m", "srs.notebooks", str(tmp_path / "source.ipynb"), str(tmp_path / "out.ipynb")]
    runner += ["--set", f"path={beats}"]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({runner!r})"], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_until(beats.is_file)
    parent.kill()
    parent.wait()

    def silent():
        size = beats.stat().st_size
        time.sleep(1.5)
        return beats.stat().st_size == size

    wait_until(silent)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    check = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", "-t", str(path)], capture_output=True, text=True)
    assert check.returncode == 0, f"make strip: {check.stdout}"


def _stages():
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages = {name: stage.get("do", stage) for name, stage in graph.items()}
    return {name: {**stage, "cmd": " ".join(np.atleast_1d(stage["cmd"]))} for name, stage in stages.items()}


def test_a_stage_tracks_exactly_the_sections_that_it_is_given():
    found = 0
    for name, stage in _stages().items():
        words = stage["cmd"].split()
        given = {words[i + 1].split("=", 1)[1] for i, word in enumerate(words) if word == "--section"}
        shown = (
            {f"active.{section}" for section in params.SHOWN} if any("shown.json" in dep for dep in stage["deps"]) else set()
        )
        tracked = set(stage.get("params", []))
        assert tracked <= given <= tracked | shown and not tracked & shown, name
        found += len(given)
    assert found > 5


def test_a_stage_tracks_the_code_that_its_notebook_uses():
    """All of srs that a stage's notebook imports, at any depth, is a dependency of the stage.

    But for what only runs, checks, shows or stores, unless the stage's product is what it shows.
    """
    pages = yaml.safe_load((ROOT / "params.yaml").read_text())["pages"]
    for name, stage in _stages().items():
        sources = [dep for dep in stage["deps"] if dep.startswith("runs/notebooks/")]
        if "srs.notebooks" not in stage["cmd"]:
            continue
        shown = name in ("report", "table2", "past")
        neutral = {"params", "machine", "journal"} | (set() if shown else {"figures", "results"})
        tracked = {Path(dep).stem for dep in stage["deps"] if dep.startswith("srs/")}
        items = [*pages, params.ALONE] if name == "report" else [""]
        for item, source in product(items, sources):
            notebook = ROOT / source.replace("runs/", "").replace("${item}", item)
            code = "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
            assert _used(code, neutral) <= tracked, (name, source, item)


def _used(code: str, neutral: set[str]) -> set[str]:
    """Modules of srs that ``code`` imports, and those that they import; ``neutral`` ones are not followed."""
    found, todo = set(), [code]
    while todo:
        text = todo.pop()
        names = set(re.findall(r"^\s*from srs\.(\w+)", text, re.M))
        for line in re.findall(r"^\s*from srs import (.+)", text, re.M):
            names |= {name.split(" as ")[0].strip() for name in line.split(",")}
        for name in names - found - neutral:
            found.add(name)
            place = ROOT / "srs" / name
            todo += (
                [path.read_text() for path in place.glob("*.py")] if place.is_dir() else [place.with_suffix(".py").read_text()]
            )
    return found

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import command_of, wait_until

from study import run as notebooks
from study.common import params_file

ROOT = Path(__file__).parent.parent
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
HERE = os.environ | {"PYTHONPATH": str(ROOT)}


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


def test_equal_runs_give_equal_bytes(notebook, tmp_path):
    outputs = [tmp_path / name / "out.ipynb" for name in ("a", "b")]
    for output in outputs:
        notebooks.run(notebook, output, {"n": 21, "name": "y"})
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    executed = nbformat.read(outputs[0], as_version=4)
    assert executed.cells[2].outputs[0].text == "22 y\n"
    assert [output.output_type for output in executed.cells[2].outputs] == ["stream", "display_data"]  # no progress bar
    assert not list(tmp_path.glob("*/*.failed.ipynb"))


def test_parameter_names_are_checked_before_anything_runs(notebook, tmp_path):
    with pytest.raises(params_file.ParameterError, match="declares no parameter 'm': choose from n, name"):
        notebooks.run(notebook, tmp_path / "out.ipynb", {"n": 1, "name": "x", "m": 2})
    with pytest.raises(params_file.ParameterError, match="needs the parameter 'name'"):
        notebooks.run(notebook, tmp_path / "out.ipynb", {"n": 1})
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which notebooks can be run by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/notebooks").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("name: p\nn: 1\ndeep: {m: 2}\n")
    return tmp_path


def _study_run(*words, **given):
    command = [sys.executable, "-m", "study.run", *words]
    return subprocess.run(command, env=HERE | given, capture_output=True, text=True)


def test_a_failure_is_told_and_left_to_read(notebook, project):
    shutil.copy(notebook, "runs/notebooks/bad.ipynb")
    text = (project / "runs/notebooks/bad.ipynb").read_text()
    (project / "runs/notebooks/bad.ipynb").write_text(text.replace("n + 1", "n + nothing"))
    failed = _study_run("bad", "n")
    assert failed.returncode != 0 and "failed: NameError" in failed.stderr and "bad.failed.ipynb" in failed.stderr
    assert Path("runs/p/notebooks/bad.failed.ipynb").is_file() and not Path("runs/p/notebooks/bad.ipynb").exists()


def test_sections_and_texts_become_parameters(project):
    cells = [
        nbformat.v4.new_code_cell("name = n = m = told = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(name, n, m, repr(told))"),
    ]
    source = nbformat.v4.new_notebook(cells=[*cells], metadata=KERNEL)
    source.cells[0].source = "name = ''\nn = 0\nm = 0\ntold = ''"
    nbformat.write(source, "runs/notebooks/a.ipynb")
    ended = _study_run("a", "n", "m=deep.m", "--set", "told=3", "--as", "b", "--into", "pages")
    assert ended.returncode == 0, ended.stderr
    executed = nbformat.read("runs/p/pages/b.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "p 1 2 '3'\n"


@pytest.mark.parametrize("edited, told", [("n: 2", "n was edited"), ("n: 1\nother: 2", None), ("", "is empty")])
def test_parameters_that_are_edited_while_in_use_fail_the_stage(project, edited, told):
    """DVC reads params.yaml when a stage ends: it would record the new value with the old one's result."""
    edited = edited and f"name: p\n{edited}"
    cells = [
        nbformat.v4.new_code_cell("name = ''\nn = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"open('params.yaml', 'w').write({edited!r})"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), "runs/notebooks/a.ipynb")
    ended = _study_run("a", "n")
    assert (ended.returncode == 0) == (told is None) == Path("runs/p/notebooks/a.ipynb").exists(), ended.stderr
    assert told is None or told in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["params", "reports.publish", "switch smoke"])
def test_modules_of_the_pipeline_say_where_they_must_be_started(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    module, *given = command.split()
    monkeypatch.setattr(sys, "argv", [module, *given])
    monkeypatch.delitem(sys.modules, f"study.{module}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"study.{module}", run_name="__main__")
    told = f"params.yaml cannot be read in {tmp_path}: No such file or directory; start in the project's own"
    if module == "switch":
        told = "PROFILE = 'smoke' is unknown: there are no profiles here; start in the project's own folder"
    assert ended.value.code == told


def test_a_run_says_where_it_must_be_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = _study_run("a")
    told = f"params.yaml cannot be read in {tmp_path}: No such file or directory; start in the project's own\n"
    assert (ended.returncode, ended.stderr) == (1, told)


def test_parameters_are_read_in_utf8_whatever_the_locale(project):
    (project / "params.yaml").write_text("name: \u03c3", encoding="utf-8")
    ended = _study_run("a", LC_ALL="C", PYTHONUTF8="0")
    assert (ended.returncode, ended.stderr) == (1, f"there is no notebook runs/notebooks/a.ipynb in {project}\n")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux who is at work")
def test_a_killed_dvc_leaves_nobody_at_work(project):
    cells = [
        nbformat.v4.new_code_cell("path = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import os, time\n"
            "open(path + '.new', 'w').write(str(os.getpid()))\n"
            "os.replace(path + '.new', path)\n"
            "time.sleep(999)"
        ),
    ]
    cells[0].source = "name = ''\npath = ''"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), "runs/notebooks/source.ipynb")
    at_work = project / "pid"
    runner = [sys.executable, "-m", "study.run", "source", "--set", f"path={at_work}"]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({runner!r})"], env=HERE, stderr=subprocess.DEVNULL
    )
    wait_until(at_work.is_file)
    kernel = int(at_work.read_text())
    assert command_of(kernel)
    parent.kill()
    parent.wait()
    wait_until(lambda: not command_of(kernel))


def test_notebooks_are_committed_without_outputs():
    paths = map(str, (ROOT / "notebooks").glob("*.ipynb"))
    check = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", "-t", *paths], capture_output=True, text=True)
    assert check.returncode == 0, f"make strip: {check.stdout}"

"""The project's own promises: one source of dependencies, and a README whose page of code runs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]


def test_the_lock_pins_every_dependency_and_names_no_host():
    pins = {name: Version(version) for name, version in (line.split("==") for line in LOCK)}
    extras = [text for some in PROJECT["optional-dependencies"].values() for text in some]
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + extras]
    for requirement in wanted:
        assert pins[requirement.name] in requirement.specifier, requirement
    assert not re.search(r"://|--|@", "\n".join(LOCK))
    assert all(version.local is None for version in pins.values())


def test_environment_yml_delegates_to_pyproject_and_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == ["-c requirements.lock", "-e .[study,dev]"]
    (python,) = [item.split("=")[1] for item in plain if item.startswith("python=")]
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert {item.split("=")[0] for item in plain} == {"python", "pip", "make"}


def test_ci_runs_the_readmes_test_command_and_the_smallest_profile():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "make test" in (ROOT / "README.md").read_text()
    assert "make repro PROFILE=smoke" in script


def test_the_method_names_no_device():
    for path in (ROOT / "srs").rglob("*.py"):
        if path.name != "machine.py":
            assert not re.search(r"[\"']cuda|\.cuda\(", path.read_text()), path


def _readme_code(heading):
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


CODE = [("Certify a picture", 1, 1), ("Certify a data set", 1, 1), ("Certify your own model", 3, 6)]


@pytest.mark.parametrize("heading, blocks, answers", CODE)
def test_the_readmes_code_runs(capsys, tmp_path, monkeypatch, heading, blocks, answers):
    monkeypatch.chdir(tmp_path)
    found = _readme_code(heading)
    assert len(found) == blocks
    namespace = {}
    for block in found:
        exec(block, namespace)
    assert len(re.findall("evaluations of f|certain within", capsys.readouterr().out)) == answers


def test_the_readme_has_no_blanks_left():
    assert not re.search(r"@[A-Z]+@|TODO", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()))
def test_the_readmes_links_exist(path):
    assert (ROOT / path).exists()


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert any("Serialized Random Smoothing" in reference["title"] for reference in citation["references"])


def test_dvc_reads_its_own_lock_file():
    """An ignored dvc.lock is never read: every stage would look new at every run."""
    dvc = Path(sys.executable).with_name("dvc")
    ignored = subprocess.run(
        [dvc, "check-ignore", "dvc.lock", "runs/work/.run.pt.lock"], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored.stdout.split() == ["runs/work/.run.pt.lock"]


def test_the_wheel_is_the_method_alone_and_certifies_a_picture(tmp_path):
    """Built, installed into an empty folder and used outside of the repository: the shipped model is in it, not the study."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    shutil.copytree(ROOT / "srs", source / "srs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("srs-*.whl")
    with zipfile.ZipFile(wheel) as content:
        folders = {name.split("/")[0] for name in content.namelist()}
        assert folders == {"srs", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    place = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", place, wheel], check=True)
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    script = "import sys, srs; assert srs.__file__.startswith(sys.argv[1]); from srs.__main__ import main; main(sys.argv[2:])"
    words = [str(place), "certify", "grey.png", "--n", "30"]
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(place)}
    ended = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert ended.returncode == 0 and "30 votes" in ended.stdout, ended.stderr

"""The project's own promises: one source of dependencies, and a README whose page of code runs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text().split()


def test_the_lock_pins_every_dependency_and_names_no_host():
    pins = {name: Version(version) for name, version in (line.split("==") for line in LOCK)}
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    for requirement in wanted:
        assert pins[requirement.name] in requirement.specifier, requirement
    assert not re.search(r"://|--|@", "\n".join(LOCK))
    assert all(version.local is None for version in pins.values())


def test_environment_yml_delegates_to_pyproject_and_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == ["-c requirements.lock", "-e .[dev]"]
    (python,) = [item.split("=")[1] for item in plain if item.startswith("python=")]
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert {item.split("=")[0] for item in plain} == {"python", "pip", "make"}


def test_ci_runs_the_readmes_test_command_and_the_smallest_profile():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "make test" in (ROOT / "README.md").read_text()
    assert "make repro" in script and "*smoke" in script


def test_the_method_names_no_device():
    for path in (ROOT / "srs").rglob("*.py"):
        if path.name != "machine.py":
            assert not re.search(r"[\"']cuda|\.cuda\(", path.read_text()), path


def _readme_code(heading):
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


CODE = [("Certify a picture", 1, 1), ("Certify a data set", 1, 1), ("Certify your own model", 3, 5)]


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

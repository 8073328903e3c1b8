"""The long stages without DVC: the same results, in the same places."""

import sys
from pathlib import Path

import pytest
import yaml

from study import work
from study.common.engine import Machine
from study.common.layout import Layout

LAYOUT, MACHINE = Layout("smoke"), Machine(workers=1)


@pytest.fixture
def sections(tmp_path, monkeypatch, few_digits):
    values = yaml.safe_load(Path("profiles/smoke.yaml").read_text(encoding="utf-8"))
    values["training"]["tiny"] |= {"epochs": 1, "unrolled_steps": 2}
    values["starts"] |= {"points": 40, "copies": 1}
    values["votes"]["groups"]["small-050"] = ["steps"]
    values["draws"]["steps"] |= {"images": 1, "n": 100}
    values["runs"]["small-050"]["repeats"] = 0
    values["machine"] = MACHINE.model_dump()
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(work.params, "main", lambda: None)  # which finds faults of this short profile, for pages
    Path("data/smoke").mkdir(parents=True)
    for name in values["data"]:
        few_digits.save(LAYOUT.dataset(name))
    return values


def _work(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["work", *arguments])
    work.main()


def test_what_is_worked_off_is_what_the_stages_find_done(sections, monkeypatch):
    for stage in ("train", "start", "vote"):
        _work(monkeypatch, stage, "small-050")
    alone = work.of_runs(sections, ["small-050"])
    tasks = [task for stage in ("train", "start", "vote") for job in work.STAGES[stage](alone, LAYOUT, MACHINE) for task in job]
    assert len(tasks) > 3 and all(task.done for task in tasks)
    assert [path.name for path in (LAYOUT.runs / "models").iterdir()] == ["small-050"]
    every = {task.out.name: task.done for job in work.STAGES["train"](sections, LAYOUT, MACHINE) for task in job}
    assert every["small-050"] and sum(every.values()) == 1


def test_nothing_is_cast_on_a_network_of_settings_that_were_edited_since(sections, monkeypatch):
    sections["votes"]["groups"]["small-050"] = ["past"]
    Path("params.yaml").write_text(yaml.safe_dump(sections))
    for stage in ("train", "start"):
        _work(monkeypatch, stage, "small-050")
    sections["training"]["tiny"] |= {"learning_rate": 0.123}
    Path("params.yaml").write_text(yaml.safe_dump(sections))
    for stage in ("start", "vote"):
        with pytest.raises(
            SystemExit, match=r"models/small-050 is of other settings, .*: `python -m study\.work train small-050`"
        ):
            _work(monkeypatch, stage, "small-050")
    _work(monkeypatch, "train", "small-050")
    with pytest.raises(SystemExit, match=r"starts/small-050 is of other settings, .*: `python -m study\.work start small-050`"):
        _work(monkeypatch, "speed", "small-050")


def test_runs_are_taken_with_what_they_go_on_from(sections):
    tuned = next(key for key, run in sections["runs"].items() if run.get("base"))
    base = sections["runs"][tuned]["base"]
    alone = work.of_runs(sections, [tuned])
    assert set(alone["runs"]) == {tuned, base} and set(alone["votes"]["groups"]) == {tuned}
    with pytest.raises(ValueError, match="RUN = 'small-051': params.yaml has small-050, "):
        work.of_runs(sections, ["small-051"])


def test_what_is_timed_is_alone(sections, monkeypatch):
    asked = {}
    Path("params.yaml").write_text(yaml.safe_dump(sections | {"machine": {"workers": 7}}))
    monkeypatch.setattr(work, "compute", lambda jobs, unit, machine: asked.update({unit: machine.workers}))
    monkeypatch.setattr(work, "STAGES", dict.fromkeys(work.STAGES, lambda *given: []))
    for stage in work.STAGES:
        _work(monkeypatch, stage)
    assert asked.pop("speed") == 1 and {*asked.values()} == {7} and len(asked) == 5


def test_data_that_are_not_prepared_are_named(sections, monkeypatch):
    LAYOUT.dataset("digits").unlink()
    with pytest.raises(SystemExit, match=r"data/smoke/digits\.npz is missing: `dvc repro prepare` makes it"):
        _work(monkeypatch, "vote")


def test_a_stage_says_which_is_to_come_before(sections, monkeypatch):
    sections["votes"]["groups"]["small-050"] = ["past"]
    Path("params.yaml").write_text(yaml.safe_dump(sections))
    for stage in ("start", "vote"):
        with pytest.raises(SystemExit, match=r"models/small-050/model\.pt is missing: `python -m study\.work train small-050`"):
            _work(monkeypatch, stage, "small-050")
    _work(monkeypatch, "train", "small-050")
    for stage in ("vote", "speed"):
        with pytest.raises(SystemExit, match=r"run 'small-050' has no starts: `python -m study\.work start small-050`"):
            _work(monkeypatch, stage, "small-050")


def test_a_network_of_other_settings_is_not_taken(sections, monkeypatch):
    tuned = next(key for key, run in sections["runs"].items() if run.get("base"))
    for place in ("models", "tuned"):
        (LAYOUT.runs / place / tuned).mkdir(parents=True)
        (LAYOUT.runs / place / tuned / "model.pt").touch()
    alone = work.of_runs(sections, [tuned])
    (LAYOUT.runs / "models" / sections["runs"][tuned]["base"]).mkdir()
    (LAYOUT.runs / "models" / sections["runs"][tuned]["base"] / "model.pt").touch()
    with pytest.raises(FileNotFoundError, match=f"models/{tuned}/model.pt is of other settings, .* for .*/tuned/"):
        work._require_made([tuned], alone, LAYOUT, MACHINE)

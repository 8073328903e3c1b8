"""What makes trainings alike: changes are trained under the same seeds, and told with their spread."""

from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import yaml

from srs import models
from srs.training import train
from study import trainings
from study.common.engine import Machine, compute
from study.common.layout import Layout
from study.common.runs import Run
from study.params import Study
from study.training import training_jobs


@pytest.fixture
def study(tmp_path, monkeypatch, few_digits):
    values = yaml.safe_load(Path("profiles/smoke.yaml").read_text(encoding="utf-8"))
    values["training"]["tiny"] |= {"epochs": 1, "unrolled_steps": 10}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/smoke").mkdir(parents=True)
    few_digits.save(tmp_path / "data/smoke/digits.npz")
    return Study.model_validate(values)


def test_changes_are_trained_under_the_same_seeds_and_told_with_their_spread(study):
    settings = Machine(workers=1)
    little = [{"learning_rate": 1e-9}]
    jobs = trainings.jobs_of(study, "small-050", little, 2, settings)
    compute(jobs, "training", settings)
    found = pd.concat([pd.read_csv(job[0].out).assign(change=change) for change, job in zip(("as it is", "less") * 2, jobs)])
    assert found.groupby(["change", "seed"])["steps"].apply(list).map(tuple).unique().tolist() == [trainings.STEPS]
    assert len(found) == 2 * 2 * len(trainings.STEPS)
    shown = trainings.table(jobs, little)
    assert list(shown.index) == ["as it is", "learning_rate = 1e-09"]
    some = found[(found["change"] == "as it is") & (found["steps"] == 30)]["accuracy"] * 100
    assert shown.loc["as it is", "30 steps"] == f"{some.mean():.1f} ± {some.std():.1f}"
    written = [job[0].out.stat().st_mtime_ns for job in jobs]
    compute(trainings.jobs_of(study, "small-050", [{"learning_rate": 1e-9}], 2, settings), "training", settings)
    assert written == [job[0].out.stat().st_mtime_ns for job in jobs]  # nothing is trained twice
    study.runs["small-050"].training["learning_rate"] = 1e-9  # what was a change is as it is now
    (now, *_) = back = trainings.jobs_of(study, "small-050", [], 2, settings)
    again = trainings.table(back, [])
    assert now[0].done and again.loc["as it is", "30 steps"] == shown.loc["learning_rate = 1e-09", "30 steps"]
    with pytest.raises(ValueError, match="--change learning_rate: .*greater than 0"):
        trainings.jobs_of(study, "small-050", [{"learning_rate": 0}], 2, settings)
    with pytest.raises(ValueError, match="--change seed = 3 must go"):
        trainings.jobs_of(study, "small-050", [{"seed": 3}], 2, settings)
    with pytest.raises(ValueError, match="--change start = 'learned' must go"):
        trainings.jobs_of(study, "small-050", [{"start": "learned"}], 2, settings)


@pytest.mark.parametrize(
    "run, message",
    [
        ("small-051", "'small-051' is unknown"),
        ("small-050-tuned", "'small-050-tuned' goes on from small-050: a DEQ trained from scratch"),
        ("resnet-050", "'resnet-050' is a ResNet: a DEQ"),
    ],
)
def test_other_runs_are_refused(study, run, message):
    with pytest.raises(ValueError, match=f"RUN = {message}"):
        trainings.jobs_of(study, run, [], 2, Machine(workers=1))


def test_a_change_that_is_no_yaml_is_refused(study, capsys):
    with pytest.raises(SystemExit):
        trainings.main(["--change", "{epochs: 3"])
    assert "argument --change: is not YAML: " in capsys.readouterr().err


def test_a_killed_training_goes_on(study, monkeypatch):
    """Killed while its table is written, after the last step: what is trained is not trained again."""
    ((job,),) = trainings.jobs_of(study, "small-050", [], 1, Machine(workers=1, checkpoint_seconds=1e-9))
    with monkeypatch.context() as patched:
        patched.setattr(trainings, "held_out", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.perform()
    assert job.arguments["resumed"].is_file() and not job.out.exists()
    monkeypatch.setattr(train._Run, "_one_step", Mock(side_effect=AssertionError("trained again")))
    job.perform()
    assert job.done and not job.arguments["resumed"].exists()


def test_a_pretrained_network_goes_on_from_the_one_before(study):
    layout, settings = Layout("smoke"), Machine(workers=1)
    runs = {"on": Run(model="tiny", sigma=0.25, pretrained="first", training={"learning_rate": 1e-12, "seed": 5})}
    runs |= {"first": Run(model="tiny", sigma=0.5)}
    sections = study.model_dump(include={"models", "training", "data"})

    def jobs(**changes):
        training = sections["training"] | changes
        return training_jobs(runs, runs, sections["models"], training, sections["data"], layout, settings)

    (job,) = jobs()  # one after the other, in one worker
    assert [task.out.name for task in job] == ["first", "on"]
    compute([job], "training", settings)
    first, on = (models.read(layout.model(key)).state_dict() for key in ("first", "on"))
    trained = {name for name, value in models.build("mdeq-tiny", **{}).named_parameters()} & first.keys()
    assert trained and all((first[name] - on[name]).abs().max() < 1e-6 for name in trained)
    assert [len(job) for job in jobs()] == [1, 1] and all(task.done for job in jobs() for task in job)
    changed = jobs(tiny=sections["training"]["tiny"] | {"learning_rate": 0.002})
    assert not any(task.done for job in changed for task in job)  # another first network, another that goes on from it

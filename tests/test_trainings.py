"""What makes trainings alike: changes are trained under the same seeds, and told with their spread."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from study import trainings
from study.common.engine import Machine, compute
from study.params import Study


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
    jobs = trainings.jobs_of(study, "small-050", [{"learning_rate": 1e-9}], 2, settings)
    compute(jobs, "training", settings)
    found = pd.concat([pd.read_csv(job[0].out) for job in jobs])
    assert found.groupby(["change", "seed"])["steps"].apply(list).map(tuple).unique().tolist() == [trainings.STEPS]
    assert len(found) == 2 * 2 * len(trainings.STEPS)
    shown = trainings.table(jobs)
    assert list(shown.index) == ["as it is", "learning_rate = 1e-09"]
    some = found[(found["change"] == "as it is") & (found["steps"] == 30)]["accuracy"] * 100
    assert shown.loc["as it is", "30 steps"] == f"{some.mean():.1f} ± {some.std():.1f}"
    written = [job[0].out.stat().st_mtime_ns for job in jobs]
    compute(trainings.jobs_of(study, "small-050", [{"learning_rate": 1e-9}], 2, settings), "training", settings)
    assert written == [job[0].out.stat().st_mtime_ns for job in jobs]  # nothing is trained twice
    with pytest.raises(ValueError, match="--change learning_rate: .*greater than 0"):
        trainings.jobs_of(study, "small-050", [{"learning_rate": 0}], 2, settings)
    with pytest.raises(ValueError, match="RUN = 'small-051' is unknown"):
        trainings.jobs_of(study, "small-051", [], 2, settings)

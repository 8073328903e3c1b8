import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from srs.common.resume import Journal, fingerprint, remove_older
from study.reports import statistics as results
from study.reports.results import other_class
from study.reports.statistics import average_certified_radius, certified_accuracy

ROWS = pd.DataFrame({"prediction": [1, 1, -1, 2, 0], "label": [1, 1, 1, 1, 0], "radius": [0.25, 0.2499999999, 0.0, 0.9, 0.0]})


def test_certified_accuracy_counts_correct_certificates_of_at_least_r():
    table = certified_accuracy(ROWS, [0, 0.2, 0.25, 0.3])
    assert table["accuracy"].tolist() == [0.6, 0.4, 0.2, 0.0]  # 0.2499999999 does not round up to 0.25
    interval = stats.binomtest(3, 5).proportion_ci(0.95, method="exact")
    assert table.loc[0, "lower"] == pytest.approx(interval.low) and table.loc[0, "upper"] == pytest.approx(interval.high)


def test_both_definitions_of_acr():
    assert average_certified_radius(ROWS) == pytest.approx((0.25 + 0.2499999999) / 5)
    assert average_certified_radius(ROWS, released=True) == pytest.approx((0.25 + 0.2499999999 + 0.9) / 5)


def test_journal_keeps_whole_records_and_drops_a_torn_one(tmp_path):
    path = tmp_path / "deep" / "journal"
    journal = Journal(path)
    journal.append({"a": 1, "x": 0.1 + 0.2})
    journal.append({"a": 2})
    journal.close()
    with open(path, "ab") as file:
        file.write(b'{"a": 3, "x"')
    again = Journal(path)
    assert again.records == [{"a": 1, "x": 0.1 + 0.2}, {"a": 2}]
    again.append({"a": 4})
    again.close()
    assert path.read_bytes().count(b"\n") == 3
    last = Journal(path)
    last.close(remove=True)
    assert not path.exists()


def test_a_second_process_waits_for_the_journal(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    script = f"from srs.common.resume import Journal; j = Journal({str(path)!r}); print(j.records)"
    second = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "waiting: another process is writing" in second.stderr.readline()
    journal.append({"late": True})
    journal.close()
    assert second.communicate(timeout=60)[0].strip() == "[{'late': True}]"


def test_older_working_files_of_the_same_run_are_removed(tmp_path):
    """Those of former settings and former code would pile up; those of other runs are theirs."""
    kept, older, locked, done = (tmp_path / f"small.{c * 16}.jsonl" for c in "bacd")
    others = [tmp_path / name for name in (f"small-1.{'a' * 16}.jsonl", f"small.{'a' * 16}.pt")]
    for path in (kept, older, *others):
        Journal(path).close()
    Journal(done).close(remove=True)
    at_work = Journal(locked)
    remove_older(kept)
    assert {path.name for path in tmp_path.glob("[!.]*")} == {path.name for path in (kept, locked, *others)}
    at_work.close()
    remove_older(kept)
    assert not locked.exists() and kept.exists()
    assert not {f".{path.name}.lock" for path in (older, locked, done)} & {path.name for path in tmp_path.iterdir()}


def test_fingerprint_sees_every_input(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    base = fingerprint([tmp_path / "a"], {"n": 1})
    assert base == fingerprint([tmp_path / "a"], {"n": 1})
    assert len({base, fingerprint([tmp_path / "b"], {"n": 1}), fingerprint([tmp_path / "a"], {"n": 2})}) == 3


def test_mean_interval():
    for values in ([], [0.5], [0.5, 0.5]):  # nothing is known of their spread
        assert np.isnan(results.mean_interval(values)).all()
    half = 3.1824 * np.std([1, 2, 3, 4], ddof=1) / 2  # Student's t of three degrees of freedom
    assert results.mean_interval([1, 2, 3, 4]) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-4)

    assert results.mean_interval([0, 0, 0, 1], least=0.0)[0] == 0 > results.mean_interval([0, 0, 0, 1])[0]


def test_the_interval_of_a_mean_holds_for_few_images():
    """The percentiles of a bootstrap leave the mean of 12 normal values out on 8 of 100 sets."""
    sets, out = np.random.default_rng(0).normal(-0.1, 0.1, (2_000, 12)), 0
    for change in sets:
        low, high = results.mean_interval(change)
        out += not low <= -0.1 <= high
    assert 0.04 < out / len(sets) < 0.06


def test_ratio_interval():
    below = np.random.default_rng(0).uniform(1, 2, 200)
    ratio, low, high = results.ratio_interval(3 * below + np.random.default_rng(1).normal(0, 0.1, 200), below)
    assert low < 3.0 < high and low < ratio < high and high - low < 0.1
    assert np.isnan(results.ratio_interval([2.0], [1.0])[1:]).all()
    spread = np.array([0.28, 0.3, 0.4, 1.3, 3.4])  # of which a mean may be next to nothing: so may a ratio be of any size
    assert np.isnan(results.ratio_interval(np.full(5, 400.0), spread)[1:]).all()
    assert np.isfinite(results.ratio_interval([4.0, 4.4], [2.0, 2.0])).all()


@pytest.mark.parametrize(
    "trainings, images, of_trainings, of_images", [(3, 30, 1.0, 0.2), (3, 30, 0.2, 1.0), (8, 20, 0.5, 1.0)]
)
def test_joint_intervals_cover_the_truth_over_trainings_and_images(trainings, images, of_trainings, of_images):
    rng, covered, alone, runs = np.random.default_rng(0), 0, 0, 1_000
    for _ in range(runs):
        values = of_trainings * rng.normal(size=(trainings, 1)) + of_images * rng.normal(size=images)
        values = values + 0.3 * rng.normal(size=(trainings, images))
        low, high = results.joint_interval(values)
        covered += low <= 0 <= high
        ratio, below, above = results.joint_ratio(40 + values, np.full_like(values, 20.0))
        assert (below <= 2 <= above) == (low <= 0 <= high) and below < ratio < above
        alone += np.ptp(stats.t.interval(0.95, images - 1, values[0].mean(), values[0].std(ddof=1) / images**0.5)) < high - low
    assert covered / runs >= 0.94
    assert of_trainings < of_images or alone / runs > 0.95  # one training's images would have told a smaller uncertainty
    with pytest.raises(ValueError, match="one training"):
        results.joint_interval(values[:1])


def test_radii_of_other_classes_are_counted():
    same = {"index": range(4), "radius": [0.4, 0.3, 0.2, 0.0]}
    reference = pd.DataFrame(same | {"method": "MDEQ-30A", "prediction": [1, 2, 3, -1]})
    other = pd.DataFrame(same | {"method": "MDEQ-1A", "prediction": [1, 5, 3, 4]})
    assert other_class(pd.concat([reference, other]), "MDEQ-1A", "MDEQ-30A") == (1, 3)

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from srs import reports
from srs.casting import cast_votes
from srs.certification import Assurance, certificates
from srs.journal import Journal
from srs.params import Experiment

ROOT = Path(__file__).parent.parent
SMOKE = yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"]["smoke"]


@pytest.fixture(scope="module")
def results(started, digits, tmp_path_factory):
    """One experiment of the smoke profile, with votes of a small trained model, where a report would find them."""
    root = tmp_path_factory.mktemp("study")
    data, runs = root / "data" / "smoke", root / "runs" / "smoke"
    (runs / "votes" / "small-050").mkdir(parents=True)
    data.mkdir(parents=True)
    digits.save(data / "digits.npz")
    for name in ("items.yaml", "published.yaml"):
        shutil.copy(ROOT / "data" / name, data.parent)
    (runs / "votes" / "small-050" / "machine.json").write_text(json.dumps({"hardware": "2 cores of X", "torch": "9.9"}))
    journal = Journal(root / "journal")
    (runs / "models" / "small-050").mkdir(parents=True)
    files = {"model": runs / "models" / "small-050" / "model.pt", "data": data / "digits.npz"}
    files["model"].write_bytes(b"weights")
    casting = _experiment().votes
    cast_votes(started, digits.test, casting, journal).save(runs / "votes" / "small-050", casting, files)
    journal.close()
    one = {"small-050": SMOKE["experiments"]["small-050"]}
    return reports.Results(one, SMOKE["report"], str(data), str(runs), SMOKE["certificates"], SMOKE["attacks"])


def _experiment():
    return Experiment(**SMOKE["experiments"]["small-050"])


def test_rows_are_the_certificates_of_the_votes(results, digits):
    votes = results.votes("small-050")
    expected = certificates(votes, digits.test.labels, _experiment().votes, Assurance(**SMOKE["certificates"]), ["steps"])
    pd.testing.assert_frame_equal(results.rows("small-050", "steps"), expected.drop(columns="group"))
    assert results.reference("small-050", "steps") == "MDEQ-30A"


@pytest.mark.parametrize("what", ["model", "data"])
def test_votes_of_another_model_or_other_data_are_refused(results, tmp_path, what):
    data, runs = shutil.copytree(results.data.parent, tmp_path / "data"), shutil.copytree(results.runs, tmp_path / "runs")
    other = {"model": runs / "models" / "small-050" / "model.pt", "data": data / "smoke" / "digits.npz"}[what]
    other.write_bytes(b"others")
    one = {"small-050": SMOKE["experiments"]["small-050"]}
    again = reports.Results(one, SMOKE["report"], str(data / "smoke"), str(runs), SMOKE["certificates"])
    with pytest.raises(ValueError, match=f"holds other votes: sha256 of {what} is"):
        again.votes("small-050")


def test_the_votes_of_a_row_are_those_of_its_images(results):
    table, casting = results.votes("small-050"), _experiment().votes
    whole, few = results.cast("small-050", "steps", "SRS-MDEQ-3A"), results.cast("small-050", "steps", "SRS-MDEQ-3A", 30)
    members = casting.members("steps")
    assert len(whole) == len(few) == len(members)
    for position, every, first in zip(members, whole, few):
        expected = table.of(casting.sampler("steps", "SRS-MDEQ-3A"), int(position), slice(0, casting.n0 + 100))
        assert np.array_equal(every.classes, expected.classes)
        assert np.array_equal(first.classes, expected.classes[: casting.n0 + 30])


def test_the_published_twin_has_the_papers_rows_alone(results, monkeypatch):
    asked, captions = [], []
    monkeypatch.setattr(results, "twin", lambda item, rows, radii: asked.extend(rows))
    monkeypatch.setattr("srs.tables.cost_table", lambda table, caption: captions.append(caption))
    results.comparison("table_2", "small-050")
    assert "MDEQ-30A as released: what the paper's released code does" in captions[0]
    assert "not a guarantee. Published speed-ups are over this." in captions[0]
    assert asked == ["MDEQ-1A", "MDEQ-5A", "MDEQ-30A", "SRS-MDEQ-1N", "SRS-MDEQ-1A", "SRS-MDEQ-3A"]


def test_captions_say_what_they_rest_on(results):
    text = results.caption("table_2", "Accuracy.", [("small-050", "main")])
    for part in (
        'id="table_2"',
        "Table 2, ours",
        "Accuracy.",
        "sigma = 0.5",
        "2 evenly spaced",
        "N = 200",
        "K = 40",
        "2 cores of X",
    ):
        assert part in text
    assert "Stand-in data: digits takes the place of CIFAR-10." in text
    with pytest.raises(KeyError, match="table_99"):
        results.caption("table_99", "")


def test_captions_say_once_what_models_have_in_common(results, monkeypatch):
    twin = "small-twin"
    monkeypatch.setitem(results.experiments, twin, _experiment())
    monkeypatch.setitem(results._votes, twin, results.votes("small-050"))
    shutil.copytree(results.runs / "votes" / "small-050", results.runs / "votes" / twin)
    text = results.basis([("small-050", "main"), (twin, "main"), ("small-050", "steps")])
    assert "small-twin (network as small-050, sigma = 0.5): 2 evenly spaced" in text
    assert [text.count(part) for part in ("N = 200", "N = 100", "2 cores of X")] == [1, 1, 1]


def test_combined_rows_keep_their_own_names_and_groups(results):
    rows = results.combined({"a": ("small-050", "consistency", "MDEQ-30A"), "b": ("small-050", "steps", "SRS-MDEQ-5A")})
    assert rows.groupby("method")["n"].first().to_dict() == {"a": 200, "b": 100}
    assert rows.groupby("method").size().to_dict() == {"a": 4, "b": 2}


def test_relative_radius_difference():
    rows = pd.DataFrame({"index": [0, 1, 2] * 2, "method": ["R"] * 3 + ["A"] * 3, "radius": [1.0, 0.5, 0.0, 0.8, 0.6, 0.3]})
    assert reports.differences(rows, "A", "R") == pytest.approx([0.2, 0.2])  # the third reference radius is 0


def test_mismatch_gap_is_bound_minus_true_rate(results):
    rows = results.rows("small-050", "consistency")
    part = rows[(rows["method"] == "SRS-MDEQ-1A") & (rows["n_a"] > 0)]
    bound, gap = reports.mismatch(rows, "SRS-MDEQ-1A")
    assert np.array_equal(bound, part["p_m_upper"]) and gap == pytest.approx(bound - part["mismatched"] / part["n_a"])
    assert part["mismatched"].sum() > 0

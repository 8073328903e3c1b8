"""Your run and ours: cells side by side, their joint intervals, and a page that fails at nothing."""

import json
import lzma
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from srs.common.resume import sha256
from study import params
from study.common.engine import _write_record
from study.common.snapshot import SNAPSHOTS
from study.reports import cells, comparison, printed, publish, tables

ROOT = Path(__file__).parent.parent
SMOKE = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
RADII = {run: [0, 0.5, 1.0] for run in ("a", "b", "c", "one")}


def _line(run, radii, method="MDEQ-30A", **columns):
    """A line's certificates on as many images; a negative radius: the wrong class."""
    radii = np.asarray(radii, float)
    settings = {"run": run, "group": "main", "design": "", "method": method, "n": 1_000, "alpha": 0.001, "sigma": 0.5}
    audit = {"estimator": "", "split": 0.0, "k": 0, "census": 0, "audit_draw": "", "classifier": "smoothed"}
    answers = {"index": np.arange(len(radii)), "label": 1, "prediction": np.where(radii < 0, 0, 1), "radius": np.abs(radii)}
    return pd.DataFrame(settings | audit | answers | {"votes": "v0", "evaluations": 300, "seconds": 2.0} | columns)


def _compare(published, ours, kinds=None, same=frozenset()):
    kinds = kinds or {run: run for run in RADII}
    return cells.compare(published, ours, RADII, kinds, set(same)).set_index("cell")


def test_equal_runs_have_equal_cells():
    rows = _line("one", [0.1, 0.7, -1.0, 1.2])
    table = _compare(rows, rows, same={"one"})
    assert table["within"].dropna().all() and (table["published"] == table["yours"]).all()
    assert list(table.index) == [
        "certified at 0",
        "certified at 0.5",
        "certified at 1",
        "ACR",
        "evaluations an image",
        "seconds an image",
    ]
    assert table["published"].tolist() == [0.75, 0.5, 0.25, 0.5, 300, 2.0]
    assert cells.changed_votes(rows, rows, {"one"})[0].empty


def test_trainings_are_compared_on_draws_that_all_of_them_have():
    """Else the first network's would be those of more draws, and networks that are alike would differ."""
    alike = [_line(run, [0.2, 0.6, 0.7], group="repeats") for run in ("a", "b", "c")]
    rows = pd.concat([_line("a", [0.3, 0.8, 1.1], n=10_000), *alike])
    kinds = dict.fromkeys("abc", "a")
    assert set(cells.training_spread(rows, RADII, kinds).values()) == {0.0}
    apart = pd.concat([rows[rows["run"] != "c"], _line("c", [0.2, 0.6, 0.7], group="others")])
    assert cells.training_spread(apart, RADII, kinds) == {}


def test_no_spread_over_trainings_is_known_beyond_the_reach_of_their_draws():
    trainings = pd.concat([_line(run, [0.2, 0.3, 0.3], group="repeats", n=100) for run in ("a", "b", "c")])
    rows = pd.concat([_line("a", [0.3, 1.1, 1.2], n=10_000), trainings])
    kinds = dict.fromkeys("abc", "a")
    assert {cell for *_, cell in cells.training_spread(rows, RADII, kinds)} == {"certified at 0", "certified at 0.5", "ACR"}
    table = _compare(rows, _line("a", [0.3, 1.1, 1.2], n=10_000), kinds)
    assert table["over"].to_dict() | {"ACR": ""} == {
        "certified at 0": "images and trainings",
        "certified at 0.5": "images and trainings",
        "certified at 1": "images",
        "ACR": "",
        "evaluations an image": "",
        "seconds an image": "",
    }


def test_what_no_certificate_can_reach_is_no_cell():
    assert "certified at 1" not in _compare(_line("one", [0.1] * 4, n=100), _line("one", [0.1] * 4, n=100)).index


def test_a_difference_counts_image_by_image():
    published, ours = np.full(50, 0.3), np.full(50, 0.3)
    ours[:15] = -1  # 15 images lost, none gained
    cell = _compare(_line("one", published), _line("one", ours)).loc["certified at 0"]
    assert not cell["within"] and cell["difference"] == pytest.approx(-0.3) and cell["lower"] < -0.3 < cell["upper"] < 0
    published[15:30] = -1  # 15 lost, 15 gained
    assert _compare(_line("one", published), _line("one", ours)).loc["certified at 0", "within"]


def test_of_one_image_no_radius_is_judged():
    assert pd.isna(_compare(_line("one", [0.50]), _line("one", [0.49])).loc["ACR", "within"])
    assert not _compare(_line("one", [0.50] * 2), _line("one", [0.49] * 2)).loc["ACR", "within"]


def test_costs_are_ratios_without_a_verdict():
    table = _compare(_line("one", [0.3] * 9), _line("one", [0.3] * 9, seconds=3.0))
    assert table.loc["seconds an image", "difference"] == 1.5 and pd.isna(table.loc["seconds an image", "within"])


def test_trainings_of_one_kind_widen_the_interval_where_the_network_is_another():
    rng = np.random.default_rng(0)
    shares = {"a": 0.2, "b": 0.5, "c": 0.8}
    published = pd.concat([_line(run, np.where(rng.permutation(50) < 50 * share, 0.3, -1)) for run, share in shares.items()])
    ours = _line("a", np.full(50, 0.3))
    alone = _compare(published, ours).loc["certified at 0"]
    assert not alone["within"] and alone["over"] == "images"
    kinds = dict.fromkeys("abc", "small")
    table = _compare(published, ours, kinds).loc["certified at 0"]
    half = 4.3027 * np.sqrt(2) * 0.3  # Student's t, two degrees of freedom; the standard deviation of the three is 0.3
    assert table["upper"] - table["difference"] == pytest.approx(np.hypot(alone["upper"] - alone["difference"], half), rel=1e-4)
    assert table["within"] and table["over"] == "images and trainings"
    again = _compare(published, ours, kinds, same={"a"}).loc["certified at 0"]
    assert not again["within"], "the same network has no other training"


def test_two_runs_of_one_truth_lie_within():
    """Images that each run certifies with the same probability: the interval is at 95 %, and conservative."""
    rng, within = np.random.default_rng(0), []
    for _ in range(40):
        p = rng.uniform(0.2, 0.9, 50)
        sides = [_line("one", np.where(rng.random(50) < p, 0.6, -1)) for _ in range(2)]
        within.append(_compare(*sides).loc[["certified at 0", "ACR"], "within"].tolist())
    assert np.mean(within, axis=0).min() > 0.9 and np.mean(within, axis=0)[0] > 0.95


def test_printed_cells_are_found_and_judged_by_both_intervals():
    def page(*texts):
        shown = pd.DataFrame({"r = 0": texts, "seconds": ["2.0 [1.9, 2.1]"] * len(texts)}, index=["MDEQ", "MDEQ", "SRS"])
        found = pd.DataFrame(printed._cells(tables.styled(shown, '<span id="table_2"></span><b>Table 2.</b>').to_html()))
        return found.assign(report="10_table2", row=found["row"] + ["", "", " #2", " #2", "", ""])

    published = page("26 [15, 40]", "–", "1,000 (99 % sure)")
    assert published.loc[0].tolist() == ["table_2", "MDEQ", "r = 0", "26 [15, 40]", "10_table2"]
    found = printed.compare(published, page("56 [41, 70]", "–", "1,001 (99 % sure)"))
    shares = found[found["column"] == "r = 0"]
    assert shares["within"].tolist() == [False, pd.NA, pd.NA] and shares["same"].tolist() == [False, True, False]
    assert found.loc[found["column"] == "seconds", "within"].isna().all()
    assert printed.compare(published, page("30 [18, 45]", "–", ""))["within"].iloc[0]


def test_votes_that_differ_are_listed():
    published = _line("one", [0.1, 0.2, 0.3])
    ours = published.assign(votes=["v0", "v1", "v0"], radius=[0.1, 0.2, 0.31])
    found, count = cells.changed_votes(published, ours, {"one"})
    assert count == 3 and found["index"].tolist() == [1, 2]
    assert cells.changed_votes(published, ours, set())[1] == 0


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """The smoke profile with made-up certificates of its first run, where the page looks for them."""
    monkeypatch.chdir(tmp_path)
    groups = {"small-050": SMOKE["votes"]["groups"]["small-050"]}
    alone = {key: {name: value for name, value in run.items() if name != "repeats"} for key, run in SMOKE["runs"].items()}
    Path("params.yaml").write_text(yaml.safe_dump(SMOKE | {"runs": alone}))
    params.main()
    runs = Path("runs/smoke")
    shown = json.loads((runs / "shown.json").read_text())
    shown["votes"]["groups"] = groups
    (runs / "shown.json").write_text(json.dumps(shown))
    for folder in ("results", "timings/certificates", "models/small-050", "models/resnet-050"):
        (runs / folder).mkdir(parents=True)
    (runs / "models/small-050/model.pt").write_text("weights")
    (runs / "models/resnet-050/model.pt").write_bytes(b"x" * (publish.LARGEST + 1))
    for key in ("small-050", "resnet-050"):
        _write_record(runs / "timings/models" / f"{key}.npz", {"train": 7.5, "origin": "code"})
    (runs / "timings/certificates/machines.json").write_text('{"small-050": ["an abacus, torch 9.9"]}')
    rows = _line("small-050", [0.1000004, -0.2, 0.3000003, 0.4000002])
    rows.drop(columns="seconds").to_csv(runs / "results/certificates.csv", index=False)
    rows[["seconds"]].to_csv(runs / "timings/certificates/seconds.csv", index=False)
    Path("data").mkdir()
    shutil.copy(ROOT / "data" / "items.yaml", "data")
    _report(runs / "reports/21_claims.ipynb", ["confirmed", "not decided"])
    return runs


def _report(path, verdicts, claims=("A claim.", "Another.")):
    shown = pd.DataFrame({"claim": claims, "verdict": verdicts}, index=["1", "2"])
    table = tables.styled(shown, "<b>Claims.</b> Of a test.")
    output = nbformat.v4.new_output("display_data", {"text/html": table.to_html()})
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])]), path)


def _told(runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["comparison", "smoke"])
    comparison.main()
    lines = (runs / "comparison.txt").read_text().splitlines()
    assert len(lines) == 2 and all((runs / f"comparison.{kind}").stat().st_size for kind in ("html", "csv"))
    return lines[0], (runs / "comparison.html").read_text()


def _publish(runs, **changes):
    found, folder = comparison.Profile("smoke"), SNAPSHOTS / "smoke"
    origin = {"published": "2026-01-01", "commit": "c0ffee", "changed": False}
    publish.publish_data(found, {"models/small-050": {"epochs": 2}, "models/resnet-050": {"epochs": 1}}, origin, folder)
    told = json.loads((folder / "run.json").read_text())
    told["runs"]["small-050"] |= changes
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def test_what_is_published_is_what_was_made_but_for_large_files(profile):
    folder = _publish(profile)
    networks = json.loads((folder / "networks.json").read_text())
    entry = {"made_by": {"epochs": 2}, "sha256": {"model.pt": sha256(folder / "models/small-050/model.pt")}}
    assert networks == {"models/small-050": entry | {"record": {"train": 7.5}}}
    assert not (folder / "models/resnet-050").exists()
    pd.testing.assert_frame_equal(comparison.read_snapshot("smoke")[1], cells.read(profile))
    cells.take(folder, Path("taken"))
    for path in ("results/certificates.csv", "timings/certificates/seconds.csv"):
        assert (Path("taken") / path).read_bytes() == (profile / path).read_bytes()
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    _publish(profile)
    assert first == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_says_what_is_the_same_and_what_is_not(profile, monkeypatch):
    _publish(profile)
    told, page = _told(profile, monkeypatch)
    assert "; 0 of 2 claims have another verdict" in told
    judged = pd.read_csv(profile / "comparison.csv")["within"].dropna()
    assert f"{len(judged)} of {len(judged)} cells lie within" in told and "0 of 1 networks were trained anew" in told
    assert "4 of 4 certificates have the published radius" in page and "an abacus" in page and "c0ffee" in page


def test_a_cell_beyond_its_interval_is_bold(profile):
    _publish(profile)
    found = comparison.Comparison(comparison.Profile("smoke"), comparison.read_snapshot("smoke"))
    assert "<b>" not in "".join(found._every())
    found.cells.loc[found.cells.index[0], "within"] = False
    assert "".join(found._every()).count("<b>") == 1


def test_other_weights_and_other_settings_are_told_apart(profile, monkeypatch):
    _publish(profile, files={"model": "another"})
    _report(profile / "reports/21_claims.ipynb", ["contradicted", "not decided"])
    told, page = _told(profile, monkeypatch)
    assert "; 1 of 2 claims have another verdict" in told and "<td>confirmed</td><td>contradicted</td>" in page
    assert "1 of 1 networks were trained anew" in told and "votes are not to be compared" in page
    _report(profile / "reports/21_claims.ipynb", ["contradicted", "not decided"], ["A claim of other words.", "Another."])
    assert "; 0 of 1 claims have another verdict" in _told(profile, monkeypatch)[0]  # as far as it is the same claim
    _publish(profile, settings="another")
    told, page = _told(profile, monkeypatch)
    assert "0 of 0 cells" in told and "of other settings: not compared" in page
    assert "0 of 1 networks were trained anew, 1 by other settings" in told


def test_radii_of_the_same_counts_do_not_differ_by_rounding(profile):
    _publish(profile)
    rows = pd.read_csv(profile / "results/certificates.csv")
    rows["radius"] += 1e-7 * (rows["radius"] > 0)
    rows.to_csv(profile / "results/certificates.csv", index=False)
    found = comparison.Comparison(comparison.Profile("smoke"), comparison.read_snapshot("smoke"))
    assert found.changed.empty and found.cells["within"].dropna().all()


def test_a_snapshot_of_older_code_is_told_and_no_fault_of_ours_is_taken_for_one(profile, monkeypatch):
    folder = _publish(profile)
    older = pd.read_csv(folder / cells.CERTIFICATES).drop(columns=["split", "k"])
    older.to_csv(folder / cells.CERTIFICATES, index=False)
    told, page = _told(profile, monkeypatch)
    assert "lacks k, split: it is of older code" in told and "<h1>" in page
    _publish(profile)
    monkeypatch.setattr(cells, "compare", lambda *_: {}["a fault of the program"])
    with pytest.raises(KeyError, match="a fault of the program"):
        _told(profile, monkeypatch)


def test_starts_that_were_fitted_anew_are_no_other_network(profile, monkeypatch):
    files = comparison.facts(comparison.Profile("smoke"))["runs"]["small-050"]["files"]
    _publish(profile, files=files | {"starts": "another"})
    told, page = _told(profile, monkeypatch)
    assert "0 of 1 networks were trained anew" in told and "the same, its starts fitted anew" in page
    found = pd.read_csv(profile / "comparison.csv")
    assert set(found["over"].dropna()) == {"images"}


@pytest.mark.parametrize("field", ["base", "pretrained"])
def test_what_a_network_was_trained_on_from_is_of_its_settings(profile, field):
    one = comparison.Profile("smoke")
    before = comparison._trained(one, "small-050")
    given = {field: "resnet-050"}
    one.runs["small-050"] = one.runs["small-050"].model_copy(update=given)
    after = comparison._trained(one, "small-050")
    one.runs["resnet-050"] = one.runs["resnet-050"].model_copy(update={"training": {"epochs": 99}})
    assert before != after != comparison._trained(one, "small-050")


def test_names_of_digits_are_names(tmp_path):
    rows = _line("012", [0.1, 0.2], group="1", method="7")
    (tmp_path / "results").mkdir()
    (tmp_path / "timings/certificates").mkdir(parents=True)
    rows.drop(columns="seconds").to_csv(tmp_path / "results/certificates.csv", index=False)
    rows[["seconds"]].to_csv(tmp_path / "timings/certificates/seconds.csv", index=False)
    assert cells.read(tmp_path)[["run", "group", "method", "design"]].drop_duplicates().values.tolist() == [
        ["012", "1", "7", ""]
    ]


def test_nothing_published_and_torn_files_are_told_and_fail_nothing(profile, monkeypatch):
    assert "no results of the profile smoke were published" in _told(profile, monkeypatch)[0]
    folder = _publish(profile)
    whole = (folder / cells.CERTIFICATES).read_bytes()
    for torn in (whole[: len(whole) // 2], b"", lzma.compress(b"a,b\n1,2\n"), b"no archive"):
        (folder / cells.CERTIFICATES).write_bytes(torn)
        assert "cannot be read" in _told(profile, monkeypatch)[0]
    (folder / cells.CERTIFICATES).write_bytes(whole)
    (folder / "run.json").write_text("{")
    assert "cannot be read" in _told(profile, monkeypatch)[0]

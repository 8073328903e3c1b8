import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from srs import models
from srs.certificates.certify import Confidence
from study import params
from study.common.engine import Machine, compute, replacing
from study.common.layout import Layout
from study.reports import cells, index, overview, printed, publish, recompute
from study.reports import results as reports
from study.reports.profile import Profile
from study.reports.raw import RawVotes
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans
from study.votes.table import all_certificates, certificate_table

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(started, trained_state, tmp_path_factory, digits):
    """The smoke profile's first run, with votes of a small trained model, where a report would find them."""
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        text = (ROOT / "profiles" / "smoke.yaml").read_text()
        Path("params.yaml").write_text(text)
        params.main()
        layout = Layout("smoke")
        shown = json.loads((layout.runs / "shown.json").read_text())
        shown["votes"]["groups"] = {"small-050": shown["votes"]["groups"]["small-050"]}
        shown["runs"]["small-050"]["repeats"] = 0  # no other network is trained here
        shown["report"] |= {"consistency": None, "plain": None, "votes": True}
        shown["report"] |= {"small": {"main": "small-050", "levels": ["small-050"]}, "pages": {"votes": ["24_cifar10"]}}
        (layout.runs / "shown.json").write_text(json.dumps(shown))
        layout.data.mkdir(parents=True)
        digits.save(layout.dataset("digits"))
        for name in ("items.yaml", "published.yaml"):
            shutil.copy(ROOT / "data" / name, "data")
        for name in ("models", "starts"):
            (layout.runs / name / "small-050").mkdir(parents=True)
        models.write_checkpoint({"model": trained_state}, layout.runs / "models/small-050/model.pt")
        models.write_checkpoint(models.starts.state(started.starts), layout.runs / "starts/small-050/starts.pt")
        (layout.runs / "starts/small-050/held_out.csv").write_text("row,chosen\nAS-MDEQ-1N mean,False\nAS-MDEQ-1N,True\n")
        names = ("runs", "models", "votes", "rows", "draws", "samplers")
        plans, machine = VotePlans(**{name: shown[name] for name in names}), Machine(workers=1)
        compute(vote_jobs(plans, layout, machine), settings=machine)
        table = all_certificates(plans, shown["certificates"], layout)
        for folder in ("results", "timings/certificates"):
            (layout.runs / folder).mkdir(parents=True)
        table.drop(columns="seconds").to_csv(layout.runs / "results/certificates.csv", index=False)
        table[["seconds"]].to_csv(layout.runs / "timings/certificates/seconds.csv", index=False)
        machines = {"small-050": ["2 cores of X, torch 9.9"]}
        (layout.runs / "timings/certificates/machines.json").write_text(json.dumps(machines))
    return root


@pytest.fixture
def results(place, monkeypatch):
    monkeypatch.chdir(place)
    return reports.Results("smoke")


def test_an_unknown_design_is_told_of(results):
    with pytest.raises(ValueError, match="design = 'Theorem 3.1' is not known: expected one of '', 'exact', 'Theorem 3.1 as"):
        results.rows("small-050", "main", "Theorem 3.1")


@pytest.mark.parametrize("design", ["", "exact", reports.THEOREM])
def test_rows_are_the_certificates_of_the_votes(results, digits, design):
    choices = {reports.THEOREM: {"estimator": "theorem_3_1"}}.get(design, {})
    confidence, store = Confidence(**results.confidence.model_dump() | choices), RawVotes(results)["small-050"]
    expected = certificate_table(store, digits.test.labels, confidence, ["steps"]).drop(columns="group")
    pd.testing.assert_frame_equal(results.rows("small-050", "steps", design), expected)
    pd.testing.assert_frame_equal(RawVotes(results).rows("small-050", "steps", **choices), expected)
    assert results.reference("small-050", "steps") == "MDEQ-30A"


def test_the_papers_estimators_stand_after_ours(results):
    rows = results.with_estimators("small-050")
    ours = results.rows("small-050")
    assert rows["method"].unique()[: ours["method"].nunique()].tolist() == ours["method"].unique().tolist()
    theirs = rows[rows["method"].str.contains("not a guarantee")]
    assert set(theirs["estimator"]) == {"theorem_3_1", "released_code"} and not theirs["guarantee"].any()


def test_the_votes_of_a_row_are_those_of_its_images(results):
    raw, plan = RawVotes(results), results.plans["small-050"]
    whole, few = raw.cast("small-050", "steps", "SRS-MDEQ-3A"), raw.cast("small-050", "steps", "SRS-MDEQ-3A", 30)
    members = plan.members("steps")
    assert len(whole) == len(few) == len(members)
    for position, every, first in zip(members, whole, few):
        expected = raw["small-050"].of(plan.sampler("steps", "SRS-MDEQ-3A"), int(position), np.arange(plan.n0 + 100))
        assert np.array_equal(every.classes, expected.classes)
        assert np.array_equal(first.classes, expected.classes[: plan.n0 + 30])


def test_the_published_twin_has_the_papers_rows_alone(results, monkeypatch):
    asked, captions = [], []
    monkeypatch.setattr(results, "twin", lambda item, rows, radii: asked.extend(rows))
    monkeypatch.setattr("study.reports.tables.cost_table", lambda rows, reference, caption, more: captions.append(caption))
    results.comparison("table_2", "small-050")
    assert "MDEQ-30A as released: what the paper's released code does" in captions[0]
    assert "(not a guarantee). Whether the published baseline stopped so is not known" in captions[0]
    assert asked == ["MDEQ-1A", "MDEQ-5A", "MDEQ-30A", "SRS-MDEQ-1N", "SRS-MDEQ-1A", "SRS-MDEQ-3A"]


def test_a_published_row_that_the_main_list_lacks_stands_beside_the_same_stopped(results, monkeypatch):
    known = {"table2": {"MDEQ-30A": {"accuracy": [10, 0]}, "MDEQ-9A": {"accuracy": [1, 1]}}, "cifar10_radii": [0, 0.25]}
    monkeypatch.setattr(type(results), "published", known)
    found, amount = results.beside("small-050")
    assert found["row"].tolist() == ["MDEQ-30A"] * 2 and amount.startswith("2 images, N = 200")
    name = {"MDEQ-30A": "MDEQ-30A stopped"}
    rows = results._certificates["small-050", "main", ""]
    rows = rows[rows["method"] != name["MDEQ-30A"]]
    results._certificates["small-050", "main", ""] = rows.assign(method=rows["method"].replace(name))
    stopped, _ = results.beside("small-050")
    assert stopped["row"].tolist() == ["MDEQ-30A stopped"] * 2
    assert stopped.drop(columns="row").equals(found.drop(columns="row"))


@pytest.fixture
def boxes(results, monkeypatch):
    """What is shown as HTML."""
    shown = []
    monkeypatch.setattr(reports, "display", lambda thing: shown.append(thing.data))
    return shown


def test_captions_are_short_and_the_box_says_once_what_they_rest_on(results, boxes):
    captions = [results.caption("table_2", "Accuracy.", [("small-050", None)]) for _ in range(3)]
    assert all(text in captions[0] for text in ('id="table_2"', "Table 2, ours", "Accuracy.", "2 images, N = 200, K = 40"))
    results.basis([("small-050", "steps")], reports.THEOREM)
    assert not any(word in "".join(captions) for word in ("alpha", "2 cores of X", "Stand-in", "exact bound"))
    results.rests_on()
    (box,) = boxes
    for part in (
        "small-050 (mdeq-tiny",
        f"2 images, N = 200, K = 40, {results.plans.votes.chains} chains an image, n0 = 100, alpha = 0.001; exact bound, with",
        "Theorem 3.1 as printed, with a random audit, not a guarantee",
        "2 cores of X",
        "Stand-in data: digits takes the place of CIFAR-10.",
    ):
        assert box.count(part) == 1, part
    with pytest.raises(KeyError, match="table_99"):
        results.caption("table_99", "")


def test_seconds_of_different_machines_do_not_stand_side_by_side(results):
    twin, rows = "small-025", results.rows("small-050")
    for (_, group, design), found in list(results._certificates.items()):
        results._certificates[twin, group, design] = found
    results.plans.plans[twin] = results.plans["small-050"]
    results.machines[twin] = ["2 cores of X, torch 9.9", "an abacus"]
    parts = {"one": ("small-050", None, rows["method"].iloc[0]), "other": (twin, None, rows["method"].iloc[0])}
    assert results.combined(parts)["seconds"].notna().all()
    results.report = results.report.model_copy(update={"plain": twin, "resnet": None, "past": {}})
    assert overview.cost_sources(results) == ({("small-050", None): "", (twin, None): "ResNet-20"}, [])
    results.machines[twin].reverse()
    both = results.combined(parts)
    assert both["seconds"].isna().all() and both["evaluations"].notna().all() and both["method"].nunique() == 2
    assert overview.cost_sources(results) == ({("small-050", None): ""}, [twin])


def test_what_models_have_in_common_is_said_once(results, boxes):
    twin = "small-025"
    results.plans.plans[twin] = results.plans["small-050"]
    for (_, group, design), rows in list(results._certificates.items()):
        results._certificates[twin, group, design] = rows
    results.machines[twin] = [*results.machines["small-050"], "an abacus"]
    text = results.basis([("small-050", None), (twin, None), ("small-050", "steps")])
    assert "small-050 (sigma = 0.5), small-025 (sigma = 0.25): 2 images, N = 200" in text
    assert reports.in_short(dict(zip("abcde", (0.5, 0.25, 1.0, 0.5, 0.5)))) == "5 networks, sigma = 0.25 to 1"
    results.rests_on()
    assert "small-025 (network as small-050, sigma = 0.25, " in boxes[0] and ", small-025 (main): 2 images" in boxes[0]
    assert "Seconds of votes of small-050 and small-025 were measured on 2 cores of X, torch 9.9.<" in boxes[0]
    assert "Votes of small-025 were cast on an abacus, too. Seconds measured there are left out" in boxes[0]
    assert "do not compare" not in boxes[0]
    results.machines[twin].reverse()
    results.rests_on()
    assert "Seconds of votes of small-025 were measured on an abacus." in boxes[1] and "do not compare" in boxes[1]
    results.rests_on(seconds=False)
    assert (
        "Votes of small-025 were cast on an abacus and 2 cores of X, torch 9.9." in boxes[2] and "measured on" not in boxes[2]
    )


def test_what_a_profile_remarks_of_its_data_stands_on_its_pages(results, boxes):
    results.report = results.report.model_copy(update={"remarks": {"digits": "Eight pixels wide."}})
    results.basis([("small-050", None)])
    results.rests_on()
    assert boxes[0].count("Eight pixels wide.") == 1 and index.whose_task(results).count("Eight pixels wide.") == 1


def test_where_data_stand_in_models_are_slots(results):
    assert results.slot("small") == "SMALL's slot"
    results.data["digits"]["name"] = "cifar10"
    assert results.slot("small") == "MDEQ-SMALL"


def test_combined_rows_keep_their_own_names_and_groups(results):
    rows = results.combined({"a": ("small-050", "consistency", "MDEQ-30A"), "b": ("small-050", "steps", "SRS-MDEQ-5A")})
    assert rows.groupby("method")["n"].first().to_dict() == {"a": 200, "b": 100}
    assert rows.groupby("method").size().to_dict() == {"a": 4, "b": 2}


def test_relative_radius_difference():
    rows = pd.DataFrame({"index": [0, 1, 2] * 2, "method": ["R"] * 3 + ["A"] * 3, "radius": [1.0, 0.5, 0.0, 0.8, 0.6, 0.3]})
    assert reports.relative_radius_differences(rows, "A", "R") == pytest.approx([0.2, 0.2])  # the third reference radius is 0


def test_mismatch_gap_is_bound_minus_true_rate(results):
    rows = results.rows("small-050", "consistency")
    part = rows[(rows["method"] == "SRS-MDEQ-1A") & (rows["n_a"] > 0)]
    bound, gap = reports.mismatch(rows, "SRS-MDEQ-1A")
    assert np.array_equal(bound, part["p_m_upper"]) and gap == pytest.approx(bound - part["mismatched"] / part["n_a"])
    assert part["mismatched"].sum() > 0


BY_HAND = """
import os, sys, nbformat
before = list(sys.path)
for path in sys.argv[1:]:
    os.chdir(os.path.dirname(path))
    sys.path[:] = before
    for module in [name for name in sys.modules if name.partition(".")[0] in ("srs", "study")]:
        del sys.modules[module]
    names = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path}, cell {cell.id}", "exec"), names)
"""


def test_reports_run_by_hand_where_they_lie(place, trained_state):
    """As "Run all" would: in the notebook's folder, the study on no path."""
    for name in ("srs", "study"):
        if not (place / name).exists():
            (place / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "dvc.yaml", place)
    epoch = {"loss": 1.0, "accuracy": 0.5, "residual": 0.1, "unrolled": True, "validation_accuracy": 0.5}
    history = pd.DataFrame([epoch | {"epoch": e, "step": 9 * e, "validation_residual": 0.1} for e in (1, 2, 3)])
    history.to_csv(place / "runs/smoke/models/small-050/history.csv", index=False)
    copies = []
    for folder, name in product(("notebooks", "reports/smoke", "runs/smoke/reports"), ("00_method", "10_table2", "24_cifar10")):
        given = {} if folder == "notebooks" else {"name": "smoke"}  # as its stage gives it
        copies.append(place / folder / f"{name}.ipynb")
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", copies[-1], given, prepare_only=True, kernel_name="python3"
        )
        cells = nbformat.read(copies[-1], as_version=4).cells
        injected = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
        assert len(injected) == len(given) and all(len(source.splitlines()) < 20 for source in injected)
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"MPLBACKEND": "agg"}
    command = [sys.executable, "-P", "-c", BY_HAND, *map(str, copies)]
    ended = subprocess.run(command, cwd=place, env=here, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


class Absent:
    """Images whose files are elsewhere."""

    def images(self, indices):
        raise FileNotFoundError("no such picture")


def test_published_votes_give_the_published_certificates_and_tables(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name in ("srs", "study", "notebooks", "dvc.yaml", "data/claims.yaml"):
        if not Path(name).exists():
            Path(name).symlink_to(ROOT / name)
    monkeypatch.setattr(recompute.index, "reports", lambda names, profile: ["00_method", "10_table2"])
    history = {"validation_accuracy": [0.5], "validation_residual": [0.1], "accuracy": [0.5], "unrolled": [True], "epoch": [1]}
    pd.DataFrame(history).to_csv("runs/smoke/models/small-050/history.csv", index=False)
    snapshot, profile = Path("data/snapshots/smoke"), Profile("smoke")
    for name in ("models", "starts"):
        shutil.copytree(f"runs/smoke/{name}", snapshot / name)
    recompute.pack_votes(profile, Path("reports/smoke/votes"))
    recompute.pack_results(profile, snapshot / recompute.RESULTS)
    clean = RawVotes(reports.Results("smoke")).clean("small-050", "sequential", "AS-MDEQ-1N")
    recompute.report(profile)
    tables = printed.read([Path("runs/smoke/reports/10_table2.ipynb")])
    rows = cells.read(Path("runs/smoke"))
    (snapshot / "run.json").write_text("{}")
    cells.publish(Path("runs/smoke"), snapshot)
    tables.to_csv(snapshot / "tables.csv.xz", index=False)

    told = _recomputed(tmp_path / "root", monkeypatch, capsys)
    assert f"{len(rows):,} published certificates, 0 of them not as computed here." in told and len(rows) > 50
    assert f"{len(tables):,} published cells of tables, 0 of them not as computed here." in told and len(tables) > 50
    with pytest.raises(SystemExit, match="FOLDER = .* exists"):
        recompute.main()
    with pytest.raises(ValueError, match=r"NAME = 'other': there is no data/snapshots/other/results\.zip"):
        recompute.unpack("other", tmp_path / "other")
    monkeypatch.setattr(recompute, "published_votes", lambda name: [])
    (snapshot / "models/small-050/history.csv").unlink()  # left out with a network that is too large
    told = _recomputed(tmp_path / "without", monkeypatch, capsys)
    assert f"{len(rows):,} published certificates, taken as they are: their votes are not published." in told
    assert f"{len(tables):,} published cells of tables, 0 of them not as computed here." in told
    assert not list((tmp_path / "without/runs/smoke").glob("votes*"))
    assert (tmp_path / "without/runs/smoke/models/small-050/history.csv").is_file()

    spoilt = tables.assign(text=["spoilt", *tables["text"][1:]])
    spoilt.to_csv(snapshot / "tables.csv.xz", index=False)
    told = _recomputed(tmp_path / "spoilt", monkeypatch, capsys, code=1)
    assert f"{len(tables):,} published cells of tables, 1 of them not as computed here." in told
    tables.to_csv(snapshot / "tables.csv.xz", index=False)

    whole = (snapshot / "tables.csv.xz").read_bytes()
    (snapshot / "tables.csv.xz").write_bytes(whole[:-9])
    monkeypatch.setattr(sys, "argv", ["recompute", "smoke", str(tmp_path / "torn")])
    with pytest.raises(SystemExit, match="end-of-stream"):
        recompute.main()

    monkeypatch.chdir(tmp_path / "root")
    ours = cells.read(Path("runs/smoke"))
    assert len(recompute.differing(rows, ours)) == 0
    for column, other in (("radius", 9.0), ("votes", "v0"), ("seconds", 9.0), ("prediction", 7)):
        assert len(recompute.differing(rows.assign(**{column: [other, *rows[column][1:]]}), ours)) == 1
    assert len(recompute.differing(rows, ours.iloc[1:])) == 1
    untimed = rows.assign(seconds=np.nan)
    assert recompute.differing(untimed, ours.assign(seconds=np.nan)).empty and len(recompute.differing(untimed, ours)) == len(
        ours
    )
    cast = RawVotes(reports.Results("smoke"))
    shown, other = (cast.cast("small-050", kind, "SRS-MDEQ-3A")[0] for kind in ("consistency", None))
    assert np.isfinite(shown.residuals).all() and np.isnan(other.margins).all()

    results = reports.Results("smoke")
    assert results.at_hand("small-050")
    results.dataset("small-050")
    monkeypatch.setitem(results._datasets, "digits", SimpleNamespace(test=Absent()))  # as those of a folder are
    assert not results.at_hand("small-050")
    assert RawVotes(results).clean("small-050", "sequential", "AS-MDEQ-1N") == clean and len(clean) == 2


def _recomputed(root, monkeypatch, capsys, code=0):
    """What the command says, which ends with ``code``: 0 where all cells are as published."""
    monkeypatch.setattr(sys, "argv", ["recompute", "smoke", str(root)])
    with pytest.raises(SystemExit) as ended:
        recompute.main()
    assert ended.value.code == code
    return capsys.readouterr().out.splitlines()


def test_images_in_an_absolute_place_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/snapshots/p").mkdir(parents=True)
    recompute._archive(Path("data/snapshots/p/results.zip"), {Path("runs/p/x"): b""})
    profile = SimpleNamespace(data={"d": {"name": "folder", "root": "/images"}})
    monkeypatch.setattr(recompute, "Profile", lambda name: profile)
    with pytest.raises(ValueError, match="data.root = '/images' must lie below the study's root"):
        recompute.unpack("p", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_published_leaves_what_was(tmp_path):
    target = tmp_path / "reports"
    for content in ("old", "new"):
        with replacing(target) as place:
            place.mkdir()
            (place / f"{content}.txt").write_text(content)
    with pytest.raises(ValueError, match="too large"), replacing(target) as place:
        place.mkdir()
        (place / "newest.txt").touch()
        raise ValueError("too large")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["reports", "reports/new.txt"]


def test_stale_reports_are_not_published(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(publish.subprocess, "run", lambda *given, **more: SimpleNamespace(returncode=1))
    monkeypatch.setattr(publish, "publish", Mock(side_effect=AssertionError("published")))
    with pytest.raises(SystemExit, match="not those of the present parameters and code: run `make repro` first"):
        publish.main()


def test_reports_that_look_at_single_votes_are_known():
    looks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if "study.reports.raw" in path.read_text()}
    assert looks == {"10_table2", *recompute._LOOKS}  # table 2's looks where there are votes


def test_margins_are_published_where_audits_by_margin_are_compared(results, tmp_path):
    results.report.pages.everything.append(recompute._AUDITS)
    with zipfile.ZipFile(recompute.pack_votes(results, tmp_path / "votes")[0]) as archive:
        cast = [np.load(io.BytesIO(archive.read(name))) for name in archive.namelist() if "timings" not in name]
    assert len(cast) > 3 and all(np.isfinite(one["margins"]).all() for one in cast)


@pytest.mark.parametrize("doubt", ["margin", "residual"])
def test_what_a_census_reads_is_published(results, tmp_path, doubt):
    results.confidence = Confidence(census=0.1, doubt=doubt)
    with zipfile.ZipFile(recompute.pack_votes(results, tmp_path / "votes")[0]) as archive:
        cast = [np.load(io.BytesIO(archive.read(name))) for name in archive.namelist() if "timings" not in name]
    assert all(np.isfinite(one["margins"]).all() == (doubt == "margin") for one in cast)
    assert doubt == "margin" or all(np.isfinite(one["residuals"]).any() for one in cast)


def test_a_file_of_votes_that_is_too_large_is_not_published(results, monkeypatch, tmp_path):
    monkeypatch.setattr(recompute, "LARGEST", 1_000)
    with pytest.raises(ValueError, match="at most 1,000 may be published"):
        recompute.pack_votes(results, tmp_path / "votes")

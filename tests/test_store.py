"""Votes of a profile: cast in tasks, stored, read again, certified; and refused where they are others."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import srs
from srs.certificates.certify import CertifySettings, Confidence
from srs.data.datasets import Dataset, evenly_spaced
from srs.deq.interface import LOOKED_AT
from srs.deq.solvers import Solver
from srs.models import write_checkpoint
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, SerializedSampler, StandardSampler, Votes
from study import arithmetic, coverage, kernels, scaling
from study.common.engine import Machine, compute, write_arrays
from study.common.layout import Layout
from study.robustness import attack_jobs
from study.votes import table
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans
from study.votes.store import VoteStore, open_store
from study.votes.table import all_certificates, certificate_table, settings

ALONE = Machine(workers=1)
CONFIDENCE = Confidence(audit=50)
SPELLED = {
    "STD-5A": {"kind": "standard", "solver": {"steps": 5}},
    "STD-1A": {"kind": "standard", "solver": {"steps": 1}},
    "SRS-2A": {"kind": "serialized", "solver": {"steps": 2}},
    "released": {"kind": "released"},
}


def _plans(votes=(), runs=(), **draws):
    draws = {"main": {"images": 4, "n": 150}, "long": {"images": 2, "n": 300, "audit": 40}} | draws
    votes = {"n0": 20, "chains": 20, "images": {"digits": 4}, "references": {"tiny": "STD-5A"}} | dict(votes)
    votes = {"groups": {"one": ["main", "long"]}} | votes
    rows = {"main": ["STD-5A", "STD-1A", "SRS-2A"], "long": ["SRS-2A"]}
    runs = {"one": {"model": "tiny", "sigma": 0.25} | dict(runs)}
    return VotePlans(runs, {"tiny": {"data": "digits", "preset": "mdeq-tiny"}}, votes, rows, draws, SPELLED)


@pytest.fixture(scope="module")
def place(trained_state, digits, tmp_path_factory):
    """A profile with a trained network, in a folder of its own."""
    root = tmp_path_factory.mktemp("profile")
    (root / "data/tiny").mkdir(parents=True)
    digits.save(root / "data/tiny/digits.npz")
    (root / "runs/tiny/models/one").mkdir(parents=True)
    write_checkpoint({"model": trained_state}, root / "runs/tiny/models/one/model.pt")
    return root


@pytest.fixture
def layout(place, monkeypatch):
    monkeypatch.chdir(place)
    return Layout("tiny")


@pytest.fixture(scope="module")
def whole(place):
    """All votes, cast in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        layout, plans = Layout("tiny"), _plans()
        compute(vote_jobs(plans, layout, ALONE), settings=ALONE)
        yield open_store(plans, layout, "one")


def test_attacks_are_made_once_and_again_where_alpha_is_another(layout):
    solvers = {"forward": {"steps": 2}, "backward": {"method": "broyden", "steps": 2}}
    chosen = {"runs": {"one": "SRS-2A"}, "images": 2, "n": 40, "radii": [0, 0.5], "samples": [0], "pgd": {"steps": 1} | solvers}

    def tasks(alpha=0.05):
        return attack_jobs(_plans(), chosen, alpha, layout, ALONE)["one"]

    compute([tasks()], settings=ALONE)
    assert all(task.done for task in tasks()) and not any(task.done for task in tasks(alpha=0.01))
    found = pd.concat(pd.read_csv(task.out) for task in tasks())
    voted_on = evenly_spaced(len(Dataset.load(layout.dataset("digits")).test), 4)
    assert found.loc[found["attack"] == "none", "index"].tolist() == voted_on[evenly_spaced(4, 2)].tolist()


def test_arithmetic_is_compared_once_an_image(layout):
    asked = {"run": "one", "images": 2, "n": 20, "n_alone": 5, "chains": 5}

    def jobs(**other):
        runs, models = {"one": {"model": "tiny", "sigma": 0.25}}, {"tiny": {"data": "digits", "preset": "mdeq-tiny"}}
        return arithmetic.arithmetic_jobs(runs, models, asked | other, layout, ALONE)

    compute(jobs(), settings=ALONE)
    assert all(task.done for job in jobs() for task in job) and not any(task.done for job in jobs(n=30) for task in job)
    found = arithmetic.gathered(jobs()[0][0].out.parent)
    one = pd.read_csv(jobs()[0][0].out)
    assert (found["images"] == 2).all() and found["votes"].tolist() == (2 * one["votes"]).tolist()


def test_coverage_is_computed_once_and_gathered_case_by_case(layout):
    asked = {"runs": 2, "n": 30, "n0": 5, "chains": 5, "audit": 10}

    def jobs(**other):
        return coverage.coverage_jobs(asked | other, layout)

    compute(jobs(), settings=ALONE)
    assert all(task.done for job in jobs() for task in job) and not any(task.done for job in jobs(runs=3) for task in job)
    found = coverage.gathered(jobs()[0][0].out.parent)
    assert found["case"].unique().tolist() == list(coverage.known_answers(1, 1)) and (found["runs"] == 2).all()


def test_images_off_the_noises_grid_are_not_voted_on(layout, tmp_path):
    task = vote_jobs(_plans(runs={"sigma": 5.0}), layout, ALONE)[0][0]
    with pytest.raises(ValueError, match="sigma = 5.0 is too large for these images"):
        task.compute(tmp_path / "votes.npz", **task.arguments)


def test_no_class_has_no_mismatched_votes():
    chain, reference = SerializedSampler(chains=20), StandardSampler()

    def votes(sampler, position, draws):
        cast = Votes.blank(len(draws))
        cast.classes[:] = UNDECIDED if sampler is chain else 0
        return cast

    store = SimpleNamespace(
        plan=SimpleNamespace(reference=reference), index=[0], of=votes, complete=lambda *_: True, pace=lambda _: 0.0
    )
    found = table._certificate(store, 0, chain, CertifySettings(sigma=0.5, n0=20, n=50, alpha=0.05, audit=40))
    assert (found["prediction"], found["n_a"], found["mismatched"]) == (srs.ABSTAIN, 0, 0)


def _classes(store):
    """All classes, by sampler and image."""
    return {
        (repr(sampler), position): store.of(sampler, position, numbers).classes.tolist()
        for sampler, draws in store.draws.items()
        for position, numbers in enumerate(draws)
        if len(numbers)
    }


def test_votes_are_those_of_the_samplers(whole, layout, trained, digits):
    assert whole.index.tolist() == [0, 125, 250, 375]
    for sampler, draws in whole.draws.items():
        votes = whole.of(sampler, 2, draws[2])
        copies = NoisyCopies(digits.test.images(np.array([250]))[0], 250, 0.25, 0)
        alone = sampler.sample(trained, copies, draws[2], 100)
        assert np.array_equal(votes.classes, alone.classes) and np.array_equal(votes.evaluations, alone.evaluations)
        assert (votes.seconds > 0).all()
    with pytest.raises(ValueError, match="some of these draws are none of those"):
        whole.of(whole.plan.reference, 0, np.arange(320))


def test_votes_that_need_no_starts_are_the_same_once_there_are_some(whole, place, layout):
    starts = {"model": place / "runs/tiny/models/one/model.pt", "data": layout.dataset("digits"), "starts": Path(__file__)}
    store = VoteStore(whole.folder, whole.timings, whole.plan, 500, starts)
    assert all(store.origin(sampler, 0) == whole.origin(sampler, 0) for sampler in whole.draws)
    amortized = StandardSampler(solver=Solver(steps=1), start="mean")
    store.draws[amortized] = whole.draws[whole.plan.reference]
    assert store.origin(amortized, 0)["sha256 of starts"]


def test_certificates_are_those_of_certify(whole, layout, trained, digits):
    rows = certificate_table(whole, digits.test.labels, CONFIDENCE)
    assert len(rows) == 4 * 3 + 2
    names = {"STD-5A": StandardSampler(solver=Solver(steps=5)), "STD-1A": StandardSampler(solver=Solver(steps=1))}
    names["SRS-2A"] = SerializedSampler(solver=Solver(steps=2), chains=20)
    for row in rows[rows["index"].isin([0, 125])].to_dict("records"):
        alone = srs.certify(
            trained,
            digits.test.images(np.array([row["index"]]))[0],
            sampler=names[row["method"]].canonical(),
            reference=names["STD-5A"],
            index=row["index"],
            **settings(whole.plan, row["group"], CONFIDENCE).model_dump(),
        )
        looked_at = (2 * LOOKED_AT + 1) * (10 if row["method"] == "SRS-2A" else names[row["method"]].solver.steps)
        alone = dataclasses.asdict(alone) | {"evaluations": alone.evaluations - looked_at}
        assert alone.pop("moved") == 0
        assert alone == {name: row[name] for name in alone}
        assert row["label"] == digits.test.labels[row["index"]] and row["seconds"] > 0
    serialized = rows[(rows["method"] == "SRS-2A") & (rows["group"] == "main")]
    assert (serialized["mismatched"] >= serialized["n2"] - serialized["n1"]).all()
    assert rows.loc[rows["group"] == "long", "mismatched"].isna().all()


def test_seconds_are_those_of_the_usual_pace(whole, digits, tmp_path):
    """Where one block was interrupted (a laptop that slept), its seconds do not count."""
    store = copy.copy(whole)
    store.__dict__.pop("machines", None)
    store.folder, store.timings, store.blocks = tmp_path / "votes", tmp_path / "timings", [[0], [1], [2], [3]]
    store.name = lambda sampler, block: str(block)
    for block, seconds in enumerate((0.2, 900.0, 0.1)):  # the fourth is still to be cast
        write_arrays(store.folder / f"{block}.npz", {"evaluations": np.full(10, 5)})
        write_arrays(store.timings / f"{block}.npz", {"seconds": np.full(10, seconds), "values": np.array("{}")})
    assert store._pace(None) == pytest.approx(0.04)
    _cast_elsewhere(store, 3, {"seconds": np.full(10, 1e-6)})
    assert store._pace(None) == pytest.approx(0.04), "another machine's seconds are mixed in"
    _cast_elsewhere(store, 0, {})  # which tells no seconds
    del store.machines
    assert store.machines == ["a machine that is not known", "an abacus, bead kernels, torch 9.9"]
    assert store._pace(None) == pytest.approx((180 + 0.02) / 2)
    store.timings = tmp_path / "none"
    assert np.isnan(store._pace(None))
    rows = certificate_table(whole, digits.test.labels, CONFIDENCE, ["main"]).set_index("method")
    spent, pace = rows.loc["STD-5A"].iloc[0], whole.pace(whole.plan.reference)
    assert spent["seconds"] == pytest.approx(pace * spent["evaluations"]) and pace > 0


def _cast_elsewhere(store, block, seconds):
    machine = {"hardware": "an abacus", "kernels": "bead", "torch": "9.9"}
    write_arrays(store.folder / f"{block}.npz", {"evaluations": np.full(10, 5)})
    write_arrays(store.timings / f"{block}.npz", {**seconds, "values": np.array(json.dumps({"machine": machine}))})


def test_another_estimator_or_audit_needs_no_new_votes(whole, layout, digits):
    table = all_certificates(_plans(), {"audit": 50}, layout)
    assert list(table["design"].unique()) == ["", "exact", "Theorem 3.1 as printed", "released code"]
    assert (table.loc[table["estimator"] == "", "guarantee"]).all()
    shown = {design: part[part["method"] == "SRS-2A"] for design, part in table.groupby("design")}
    assert shown["exact"]["guarantee"].all() and not shown["released code"]["guarantee"].any()
    assert (shown["exact"]["radius"].to_numpy() == shown[""]["radius"].to_numpy()).all()
    assert (shown["Theorem 3.1 as printed"]["radius"].to_numpy() <= shown["exact"]["radius"].to_numpy()).all()
    assert (shown["Theorem 3.1 as printed"]["n1"].to_numpy() == shown["exact"]["n1"].to_numpy()).all()
    census = certificate_table(whole, digits.test.labels, Confidence(audit=50, census=0.2), ["main"])
    assert (census.loc[census["estimator"] != "", "census"] == 30).all()
    with pytest.raises(ValueError, match="none of those of"):
        certificate_table(whole, digits.test.labels, Confidence(census=0.9), ["long"])


def test_mismatches_are_counted_on_all_draws(whole, layout, digits):
    rows = certificate_table(whole, digits.test.labels, CONFIDENCE)
    row = rows[(rows["method"] == "SRS-2A") & (rows["group"] == "main")].iloc[1]
    every = np.arange(170)
    reference, serialized = (whole.of(whole.plan.sampler("main", name), 1, every).classes for name in ("STD-5A", "SRS-2A"))
    top = np.bincount(serialized[:20]).argmax()
    assert row["mismatched"] == sum(a == top != b for a, b in zip(serialized[20:170], reference[20:170]))


def test_votes_do_not_depend_on_batch_or_neighbours(whole, place, tmp_path, monkeypatch):
    before = _classes(whole)
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "runs/tiny/models"):
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).symlink_to(place / folder)
    layout, plans = (
        Layout("tiny"),
        _plans(votes={"images": {"digits": 1}}, main={"images": 1, "n": 150}, long={"images": 1, "n": 300, "audit": 40}),
    )
    machine = Machine(workers=1, batch_size=7)
    compute(vote_jobs(plans, layout, machine), settings=machine)
    for (sampler, position), classes in _classes(open_store(plans, layout, "one")).items():
        assert classes == before[sampler, position]


@pytest.mark.parametrize("row", ["SRS-2A", "released"])
def test_an_audit_needs_a_reference_of_independent_votes(row):
    plans = _plans(votes={"references": {"tiny": row}})
    with pytest.raises(ValueError, match=f"votes.references.tiny = '{row}' audits nothing: expected a standard row"):
        _ = plans.plans


OTHERS = {
    "sigma": (_plans(runs={"sigma": 1.0}), "sigma is 0.25 there, asked for is 1.0"),
    "seed": (_plans(votes={"seed": 1}), "seed is 0 there, asked for is 1"),
    "n": (_plans(main={"images": 4, "n": 160}, long={"images": 2, "n": 300, "audit": 40}), "draws is"),
    "images": (_plans(votes={"images": {"digits": 5}}), "images is|has no votes of"),
    "chains": (_plans(votes={"chains": 10}), "has no votes of SerializedSampler"),
    "reference": (
        _plans(votes={"references": {"tiny": "MDEQ-30A"}}, main={"images": 4, "n": 150, "audit": 50}),
        "has no votes of StandardSampler",
    ),
}


@pytest.mark.parametrize("change", OTHERS)
def test_votes_of_other_settings_are_not_taken(whole, layout, change):
    """At another sigma they would certify other radii."""
    plans, told = OTHERS[change]
    store = open_store(plans, layout, "one")
    with pytest.raises(ValueError, match=told):
        for sampler, draws in store.draws.items():
            for position, numbers in enumerate(draws):
                store.of(sampler, position, numbers)


def test_votes_of_a_sampler_that_is_not_planned_are_not_there(whole):
    other = StandardSampler(solver=Solver(steps=7))
    with pytest.raises(ValueError, match="some of these draws are none of those of StandardSampler"):
        whole.of(other, 0, np.arange(3))
    assert not whole.complete(other, 0, np.arange(3))


@pytest.mark.parametrize("what", ["model", "data"])
def test_votes_of_other_files_are_not_taken(whole, layout, tmp_path, what):
    other = tmp_path / "other"
    other.write_bytes(b"others")
    files = {"model": layout.model("one"), "data": layout.dataset("digits")} | {what: other}
    store = VoteStore(whole.folder, whole.timings, whole.plan, 500, files)
    with pytest.raises(
        ValueError, match=f"holds other votes: sha256 of {what} is [0-9a-f]{{64}} there, asked for is [0-9a-f]{{64}}"
    ):
        store.of(store.plan.reference, 0, np.arange(10))


def test_files_are_the_same_from_run_to_run_and_hold_no_seconds(whole, layout, tmp_path):
    kept = {path.name: path.read_bytes() for path in whole.folder.glob("*.npz")}
    for path in whole.folder.glob("*.npz"):
        path.unlink()
    compute(vote_jobs(_plans(), layout, ALONE), settings=ALONE)
    assert {path.name: path.read_bytes() for path in whole.folder.glob("*.npz")} == kept


def test_scaling_is_measured_on_votes_and_on_jobs_that_sleep(place, monkeypatch):
    monkeypatch.chdir(place)
    plans = _plans()
    values = {"name": "tiny", "votes": plans.votes.model_dump(), "rows": plans.rows, "samplers": SPELLED}
    for section in ("runs", "models", "draws"):
        values[section] = {name: entry.model_dump() for name, entry in getattr(plans, section).items()}
    table = scaling.strong_scaling(values, seconds=0.5, pairs=1)
    assert (table["ratio"] == table["2 workers"] / table["1 worker"]).all() and (table > 0).all(axis=None)
    lengths = scaling.job_lengths(plans)
    assert lengths.tolist() == [5 * (191 + 186) + 2 * 170 + 2 * 2 * 320, 5 * 2 * 170 + 2 * 170 + 2 * 2 * 170]
    found = scaling.simulated(lengths, 2, 0.4)
    assert found["ideal"] >= 0.2 and found["makespan"] >= found["ideal"] * 0.99


def test_votes_that_were_cast_again_are_compared(whole, layout, tmp_path):
    plans = _plans()
    shutil.copytree(layout.data, "data/other")
    shutil.copytree(layout.runs, "runs/other", ignore=lambda folder, names: {"votes"})
    with pytest.raises(FileNotFoundError, match=r"votes/one/.* is missing"):
        kernels.jobs_again(plans, Layout("other"), ALONE, tmp_path)
    (moved,) = {task.out.parent for job in kernels.jobs_again(plans, layout, ALONE, tmp_path) for task in job}
    assert moved == tmp_path / "votes" / "one"
    shutil.copytree(whole.folder, moved)
    assert kernels.report(plans, layout, tmp_path, CONFIDENCE).startswith(
        f"{_count(whole):,} votes: 0 for another class (0.0e+00)"
    )
    sampler = whole.plan.sampler("main", "STD-5A")
    path = moved / f"{whole.name(sampler, 0)}.npz"
    with np.load(path) as arrays:
        cast = dict(arrays)
    decided = np.flatnonzero(cast["classes"] >= 0)
    cast["classes"][decided[:90]] = (cast["classes"][decided[:90]] + 1) % 10  # most votes of the first image
    cast["classes"][decided[100]] = UNDECIDED
    np.savez_compressed(path, **cast)
    again = open_store(plans, layout, "one", tmp_path)
    found = kernels.changes(whole, again).set_index("row")
    assert found.loc["STD-5A", ["different", "only_before", "only_after"]].tolist() == [90, 1, 0]
    assert found.drop(index="STD-5A")[["different", "only_before", "only_after"]].to_numpy().sum() == 0
    labels = np.zeros(500, int)
    changed, count = kernels.changed_certificates(whole, again, labels, CONFIDENCE)
    assert count == 3 * 4 + 2 and ("main", "STD-5A", 0) in set(
        changed[["group", "method", "index"]].itertuples(index=False, name=None)
    )


def _count(store):
    return sum(len(numbers) for draws in store.draws.values() for numbers in draws)

import dataclasses
import os
import sys

import numpy as np
import pytest
import torch
from conftest import kill_when
from pydantic import ValidationError

import srs
from srs.casting import NOT_CAST, Casting, VoteTable, cast_votes
from srs.certification import Assurance, certificates
from srs.interface import LOOKED_AT
from srs.journal import Journal
from srs.votes import SerializedSampler, StandardSampler

STANDARD = {"STD-5A": {"kind": "standard", "solver": {"steps": 5}}, "STD-1A": {"kind": "standard", "solver": {"steps": 1}}}
TWO_STEPS = {"SRS-2A": {"kind": "serialized", "solver": {"steps": 2}}}
CASTING = Casting(
    sigma=0.25,
    images=4,
    n0=20,
    chains=20,
    reference=STANDARD["STD-5A"],
    groups={
        "main": {"images": 4, "n": 150, "samplers": STANDARD | TWO_STEPS},
        "long": {"images": 2, "n": 300, "audit": 40, "samplers": TWO_STEPS},
    },
)
ASSURANCE = Assurance(audit=50)


def _cast(model, part, path, casting=CASTING):
    journal = Journal(path)
    table = cast_votes(model, part, casting, journal)
    journal.close()
    return table


def _same(a: VoteTable, b: VoteTable) -> bool:
    pairs = [(a.votes[s], b.votes[s]) for s in a.votes]
    return list(a.votes) == list(b.votes) and all(
        np.array_equal(x.classes, y.classes) and np.array_equal(x.evaluations, y.evaluations) for x, y in pairs
    )


@pytest.fixture(scope="module")
def whole(trained, digits, tmp_path_factory):
    return _cast(trained, digits.test, tmp_path_factory.mktemp("votes") / "journal")


def test_each_sampler_votes_once_on_what_its_groups_need(whole):
    assert whole.index.tolist() == [0, 125, 250, 375]
    reference, one_step, serialized = whole.votes
    assert reference == CASTING.reference and serialized.chains == 20
    assert one_step.solver.method == "naive"  # one fixed step of any solver is f of its start
    cast = {sampler: (votes.classes != NOT_CAST).sum(axis=1) for sampler, votes in whole.votes.items()}
    assert cast[one_step].tolist() == [170] * 4
    assert cast[serialized].tolist() == [320, 170, 320, 170]
    extra = cast[reference] - 170
    assert extra[[1, 3]].tolist() == [0, 0] and (extra[[0, 2]] > 0).all() and (extra <= 40).all()  # a random audit's
    for votes in whole.votes.values():
        assert ((votes.seconds > 0) == (votes.classes != NOT_CAST)).all()


def test_certificates_are_those_of_certify(whole, trained, digits):
    rows = certificates(whole, digits.test.labels, CASTING, ASSURANCE)
    assert len(rows) == 4 * 3 + 2
    names = {"STD-5A": StandardSampler(solver=srs.Solver(steps=5)), "STD-1A": StandardSampler(solver=srs.Solver(steps=1))}
    names["SRS-2A"] = SerializedSampler(solver=srs.Solver(steps=2), chains=20)
    for row in rows[rows["index"].isin([0, 125])].to_dict("records"):
        alone = srs.certify(
            trained,
            digits.test.images(np.array([row["index"]]))[0],
            sampler=names[row["method"]].canonical(),
            reference=names["STD-5A"],
            index=row["index"],
            **ASSURANCE.settings(CASTING, row["group"]).model_dump(),
        )
        looked_at = (2 * LOOKED_AT + 1) * (10 if row["method"] == "SRS-2A" else names[row["method"]].solver.steps)
        alone = dataclasses.asdict(alone) | {"evaluations": alone.evaluations - looked_at}
        assert alone == {name: row[name] for name in alone}
        assert row["label"] == digits.test.labels[row["index"]] and row["seconds"] > 0
    serialized = rows[(rows["method"] == "SRS-2A") & (rows["group"] == "main")]
    assert (serialized["mismatched"] >= serialized["n2"] - serialized["n1"]).all()
    assert rows.loc[rows["group"] == "long", "mismatched"].isna().all()


def test_another_estimator_or_audit_needs_no_new_votes(whole, digits):
    shown = {}
    for estimator, draw in [("finite_population", "random"), ("theorem_3_1", "random"), ("released_code", "first_batch")]:
        assurance = Assurance(audit=50, estimator=estimator, audit_draw=draw)
        rows = certificates(whole, digits.test.labels, CASTING, assurance)
        shown[estimator] = rows[rows["method"] == "SRS-2A"]
        assert (rows.loc[rows["estimator"] == "", "guarantee"]).all()
        assert (shown[estimator]["guarantee"] == (estimator == "finite_population")).all()
    assert (shown["theorem_3_1"]["radius"] <= shown["finite_population"]["radius"]).all()
    assert (shown["theorem_3_1"]["n1"].to_numpy() == shown["finite_population"]["n1"].to_numpy()).all()
    census = certificates(whole, digits.test.labels, CASTING, Assurance(audit=50, census=0.2), ["main"])
    assert (census.loc[census["estimator"] != "", "census"] == 30).all()
    with pytest.raises(ValueError, match="not cast"):
        certificates(whole, digits.test.labels, CASTING, Assurance(census=0.9), ["long"])


def test_mismatches_are_counted_on_all_draws(whole, digits):
    rows = certificates(whole, digits.test.labels, CASTING, ASSURANCE)
    row = rows[(rows["method"] == "SRS-2A") & (rows["group"] == "main")].iloc[1]
    reference, serialized = (whole.votes[CASTING.sampler("main", name)].classes[1] for name in ("STD-5A", "SRS-2A"))
    top = np.bincount(serialized[:20]).argmax()
    assert row["mismatched"] == sum(a == top != b for a, b in zip(serialized[20:170], reference[20:170]))


def test_votes_do_not_depend_on_batch_or_neighbours(whole, trained, digits, tmp_path):
    for size in (7, 100):
        assert _same(_cast(trained, digits.test, tmp_path / str(size), CASTING.model_copy(update={"batch_size": size})), whole)
    alone = {"long": CASTING.groups["long"].model_copy(update={"images": 1})}
    few = _cast(trained, digits.test, tmp_path / "alone", CASTING.model_copy(update={"images": 1, "groups": alone}))
    serialized = CASTING.sampler("long", "SRS-2A")
    assert np.array_equal(few.votes[serialized].classes[0], whole.votes[serialized].classes[0])


@pytest.mark.parametrize("stop", ["fixed", "relative"])
def test_killed_or_in_batches_of_one_or_in_another_order_votes_are_the_same(trained, digits, tmp_path, stop):
    """Done twice: by fixed steps, and by solvers that stop at their tolerance."""
    solver = {"steps": 12, "stop": stop, "tolerance": 1e-2}
    rows = {"A": {"kind": "standard", "solver": solver}, "B": {"kind": "serialized", "solver": solver | {"steps": 3}}}
    groups = {"main": {"images": 2, "n": 60, "samplers": rows}}
    casting = Casting(sigma=0.25, images=2, n0=10, chains=10, reference=rows["A"], groups=groups, batch_size=400)
    whole = _cast(trained, digits.test, tmp_path / "whole", casting)
    for size in (1, 7):
        part = _cast(trained, digits.test, tmp_path / f"{size}", casting.model_copy(update={"batch_size": size}))
        assert all(np.array_equal(part.votes[s].classes, whole.votes[s].classes) for s in whole.votes)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn").write_bytes(b"".join(lines[2:0:-1]) + lines[3][:50])  # other images first, then a kill
    again = _cast(trained, digits.test, tmp_path / "torn", casting)
    assert all(np.array_equal(again.votes[s].classes, whole.votes[s].classes) for s in whole.votes)


def test_saved_votes_come_back_and_are_not_taken_for_others(whole, tmp_path):
    _save(whole, tmp_path)
    assert _same(VoteTable.load(tmp_path, CASTING, _files(tmp_path)), whole)
    with pytest.raises(ValueError, match="not cast"):
        whole.of(CASTING.reference, 0, slice(0, 320))


def _files(folder, *names):
    return {name: folder / f"{name}.pt" for name in names or ("model", "starts", "data")}


def _save(table, folder, content=b""):
    for path in _files(folder).values():
        path.write_bytes(path.name.encode() + content)
    table.save(folder, CASTING, _files(folder))


LONG = CASTING.groups["long"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"sigma": 1.0}, "sigma is 0.25 there, asked for is 1.0"),
        ({"seed": 1}, "seed is 0 there, asked for is 1"),
        ({"n0": 21}, "n0 is 20 there, asked for is 21"),
        ({"images": 3}, "images is 4 there, asked for is 3"),
        ({"chains": 10}, 'a sampler is .*"chains":20} there, asked for is .*"chains":10}'),
        ({"groups": {"long": LONG}}, "a sampler is .* there, asked for is "),
        (
            {"groups": CASTING.groups | {"long": LONG.model_copy(update={"n": 400})}},
            "draw .* of image 0 by .* is (not )?cast there, asked for is (not )?cast",
        ),
        ({"groups": CASTING.groups | {"long": LONG.model_copy(update={"audit": 39})}}, "draw .* of image 0 by .*standard"),
        ({"reference": StandardSampler()}, 'a sampler is .*"steps":5,.* there, asked for is .*"steps":30,'),
    ],
)
def test_votes_of_other_settings_are_not_taken(whole, tmp_path, change, told):
    """At another sigma they would certify other radii."""
    _save(whole, tmp_path)
    with pytest.raises(ValueError, match=f"holds other votes: .*{told}"):
        VoteTable.load(tmp_path, CASTING.model_copy(update=change), {})


def test_votes_of_other_files_are_not_taken(whole, tmp_path):
    _save(whole, tmp_path)
    kept = (tmp_path / "votes.npz").read_bytes()
    for name in _files(tmp_path):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(b"another")
        others = {other: place for other, place in _files(tmp_path).items() if other != name}
        assert _same(VoteTable.load(tmp_path, CASTING, others), whole)
        with pytest.raises(ValueError, match=f"sha256 of {name} is [0-9a-f]{{64}} there, asked for is [0-9a-f]{{64}}"):
            VoteTable.load(tmp_path, CASTING, _files(tmp_path, name))
        _save(whole, tmp_path)
    assert (tmp_path / "votes.npz").read_bytes() == kept
    with pytest.raises(ValueError, match="sha256 of card is not told there"):
        VoteTable.load(tmp_path, CASTING, {"card": tmp_path / "model.pt"})


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
import torch
import test_casting as t
from conftest import prepare, DataConfig, models
from pathlib import Path
model = models.restore(torch.load({model!r}, weights_only=True)).eval().fold()
t._cast(model, prepare(DataConfig()).test, Path({journal!r}), t.CASTING.model_copy(update={{"batch_size": 20}}))
"""


def test_killed_casting_resumes_to_the_same_votes(whole, trained, trained_state, digits, tmp_path):
    model, journal = tmp_path / "model.pt", tmp_path / "killed"
    torch.save(trained_state, model)
    script = _KILLED.format(tests=os.path.dirname(__file__), model=str(model), journal=str(journal))
    kill_when(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 3, [sys.executable, "-c", script])
    kept = journal.read_bytes().count(b"\n")
    assert 3 <= kept < 12
    again = CASTING.model_copy(update={"batch_size": 20})
    assert _same(_cast(trained, digits.test, journal, again), whole)
    assert journal.read_bytes().count(b"\n") == 12


def test_a_torn_journal_resumes_to_the_same_votes(whole, trained, digits, tmp_path):
    _cast(trained, digits.test, tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 7):
        torn = tmp_path / f"torn{kept}"
        torn.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        assert _same(_cast(trained, digits.test, torn), whole)
        assert len(torn.read_bytes().splitlines()) == len(lines)


@pytest.mark.parametrize(
    "group, message",
    [
        ({"images": 5, "n": 100, "samplers": STANDARD}, "images = 5 is out of range: 1 to images = 4"),
        ({"images": 4, "n": 100, "samplers": TWO_STEPS}, "list the reference.*or give audit"),
        ({"images": 4, "n": 100, "audit": 101, "samplers": TWO_STEPS}, "audit = 101 must be at most n = 100"),
    ],
)
def test_impossible_groups_are_refused(group, message):
    with pytest.raises(ValidationError, match=message):
        Casting(sigma=0.5, images=4, reference=STANDARD["STD-5A"], groups={"main": group})

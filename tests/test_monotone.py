"""Monotone DEQs in the study: settled rows need no audit from the plan to the table, and pages count what they show."""

import copy
import dataclasses
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import srs
from srs import models
from srs.certificates.certify import Confidence
from srs.certificates.lipschitz import certify_lipschitz
from srs.deq.definition import classify
from srs.deq.solvers import Solver
from srs.models.mondeq import MonDEQ, MonDEQConfig
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, SerializedSampler, StandardSampler, Votes
from study.common.engine import Machine, compute
from study.common.layout import Layout
from study.reports import figures, monotone
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans
from study.votes.store import open_store
from study.votes.table import all_certificates, settings

SETTLED = {"method": "naive", "steps": 60, "stop": "settled"}
ROWS = {"settled": {"kind": "standard", "solver": SETTLED}, "SRS": {"kind": "serialized", "solver": SETTLED, "warmup": SETTLED}}
SAMPLERS = {"settled": StandardSampler(solver=SETTLED), "SRS": SerializedSampler(solver=SETTLED, warmup=SETTLED, chains=20)}


@pytest.fixture(scope="module")
def place(digits, tmp_path_factory):
    """A profile with an untrained monotone DEQ."""
    root = tmp_path_factory.mktemp("profile")
    (root / "data/tiny").mkdir(parents=True)
    digits.save(root / "data/tiny/digits.npz")
    (root / "runs/tiny/models/one").mkdir(parents=True)
    torch.manual_seed(0)
    saved = models.state(MonDEQ(MonDEQConfig(size=16)))
    models.write_checkpoint({"model": saved}, root / "runs/tiny/models/one/model.pt")
    return root


@pytest.fixture
def layout(place, monkeypatch):
    monkeypatch.chdir(place)
    return Layout("tiny")


@pytest.fixture
def model(layout):
    return models.load(layout.model("one"))


def test_settled_serialized_rows_are_certified_without_a_reference_or_an_audit(layout, model, digits):
    votes = {"n0": 20, "chains": 20, "images": {"digits": 2}, "references": {"m": "settled"}, "groups": {"one": ["main"]}}
    draws, spec = {"main": {"images": 2, "n": 200}}, {"m": {"data": "digits", "preset": "mondeq"}}
    plans = VotePlans({"one": {"model": "m", "sigma": 0.25}}, spec, votes, {"main": ["SRS"]}, draws, ROWS)
    compute(vote_jobs(plans, layout, Machine(workers=1)), settings=Machine(workers=1))
    assert list(open_store(plans, layout, "one").draws) == [SAMPLERS["SRS"]]  # nobody else votes
    table = all_certificates(plans, {"audit": 150}, layout)
    assert len(table) == 2 and table["guarantee"].all() and (table["design"] == "").all()  # by no other estimator
    for row in table.to_dict("records"):
        image = digits.test.images(np.array([row["index"]]))[0]
        config = settings(plans["one"], "main", Confidence(audit=150)).model_dump()
        alone = dataclasses.asdict(srs.certify(model, image, sampler=SAMPLERS["SRS"], index=row["index"], **config))
        told = ("prediction", "radius", "n_a", "undecided", "k", "estimator", "classifier")
        assert {name: row[name] for name in told} == {name: alone[name] for name in told}
        assert row["k"] == 0 and row["estimator"] == "" and row["classifier"].startswith("exact fixed point of the DEQ")
    assert table["n_a"].max() > 150


def _cast(model, images, draws):
    copies = [NoisyCopies(image, i, 0.25, 0) for i, image in enumerate(images)]
    return copies, {row: sampler.sample_many(model, copies, [draws] * 2, 100) for row, sampler in SAMPLERS.items()}


def test_every_settled_vote_that_is_not_the_exact_one_is_counted(model, digits):
    copies, cast = _cast(model, digits.test.images(np.arange(2)), np.arange(300))
    decided = sum(int((one.classes != UNDECIDED).sum()) for votes in cast.values() for one in votes)
    assert monotone.disagreements(model, copies, cast.values()) == (decided, 0) and decided > 1_000
    first = np.flatnonzero(cast["SRS"][1].classes != UNDECIDED)[:5]
    cast["SRS"][1].classes[first[:3]] = (cast["SRS"][1].classes[first[:3]] + 1) % 10
    cast["SRS"][1].classes[first[3:]] = UNDECIDED
    assert monotone.disagreements(model, copies, cast.values()) == (decided - 2, 3)


def test_exact_classes_are_the_fixed_points_or_none(model, monkeypatch):
    x = torch.rand(50, 1, 8, 8)
    with torch.no_grad():
        logits = classify(copy.deepcopy(model).double(), x.double(), Solver(method="anderson", steps=60))[0]
    assert np.array_equal(monotone.exact_classes(model, x), logits.argmax(dim=1))
    monkeypatch.setattr(monotone, "_MOST", 2)
    with pytest.raises(FloatingPointError, match="50 fixed points are not solved to 1e-12 after 2 steps"):
        monotone.exact_classes(model, x)


def test_a_page_shows_what_votes_cost_and_when_they_were_settled():
    votes = Votes.blank(5, fill=1)
    votes.evaluations[:] = [3, 3, 4, 6, 60]
    votes.classes[4] = UNDECIDED
    rows = pd.DataFrame({"method": ["a", "a", "b"], "evaluations": [76, 124, 9], "k": [0, 40, 0]})
    found = monotone.costs(rows, {"a": [votes, votes]}).loc["a"]
    assert found.to_dict() == {"mean": 20.0, "median": 4.0, "most": 60.0, "undecided": 0.2, "audit": 40.0}
    (line,) = figures.plot_settled({"a": [votes, votes]}).axes[0].lines
    shares = dict(zip(*line.get_data()))
    assert [shares[k] for k in (2, 3, 4, 5, 6, 60)] == pytest.approx([0, 40, 60, 60, 80, 80])
    plt.close("all")


def test_deterministic_rows_are_those_of_the_test_images(layout, digits, model):
    results = SimpleNamespace(layout=layout, dataset=lambda key: digits)
    rows = monotone.lipschitz_rows(results, "one")
    assert rows["label"].tolist() == digits.test.labels.tolist() and rows["index"].tolist() == list(range(500))
    for index in (0, 123, 499):
        (alone,) = certify_lipschitz(model.double(), digits.test.images(np.array([index])).double())
        row = rows.loc[index]
        assert row["prediction"] == alone.prediction and row["radius"] == pytest.approx(alone.radius, rel=1e-9)
        assert row["lipschitz"] == alone.lipschitz > 0

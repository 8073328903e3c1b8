"""Monotone DEQs, for the pages that show them: what settled votes cost, whether they are the exact fixed point's, and
certificates without noise."""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from srs import models
from srs.certificates.lipschitz import certify_lipschitz
from srs.models.mondeq import MonDEQ
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, Votes
from study.reports.results import Results

TOLERANCE = 1e-12  # of fixed points that settled votes are compared with, in double precision
_MOST = 10_000  # steps to that


def lipschitz_rows(results: Results, key: str) -> pd.DataFrame:
    """The certificates of all test images by a run's Lipschitz bound, computed in double precision: one line an image, with the
    columns index, label, prediction, radius and lipschitz, the bound."""
    test, model = results.dataset(key).test, models.load(results.layout.model(key))
    found = certify_lipschitz(model, test.images(np.arange(len(test))).double())
    columns = {name: [getattr(one, name) for one in found] for name in ("prediction", "radius", "lipschitz")}
    return pd.DataFrame({"index": np.arange(len(test)), "label": test.labels, **columns})


def costs(rows: pd.DataFrame, cast: dict[str, list[Votes]]) -> pd.DataFrame:
    """What a vote costs, a line for each row that ``cast`` votes: ``mean`` evaluations of f, audit included, and their
    ``median`` and ``most`` without; the share that is ``undecided``; ``audit``, K or 0. ``rows``: the certificates."""
    lines = {}
    for row, votes in cast.items():
        part = rows[rows["method"] == row]
        evaluations, classes = (np.concatenate([getattr(one, name) for one in votes]) for name in ("evaluations", "classes"))
        lines[row] = {
            "mean": part["evaluations"].sum() / len(classes),
            "median": np.median(evaluations),
            "most": evaluations.max(),
            "undecided": (classes == UNDECIDED).mean(),
            "audit": part["k"].max(),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


@torch.no_grad()
def exact_classes(model: MonDEQ, x: Tensor) -> np.ndarray:
    """The classes (B,) of a folded model's fixed points at images ``x`` (B, C, H, W): z = relu(W z + U x + b) to TOLERANCE in
    double precision, whatever iteration found it. Raises FloatingPointError where one is not found."""
    model, x = copy.deepcopy(model).double(), x.double()
    injection = model.inject(x)
    v, w, u = model.initial_state(injection), model.weights()[0], injection[:, :-1]
    for _ in range(_MOST):
        z = v.relu()
        if (z - (z @ w.T + u).relu()).norm(dim=1).max() <= TOLERANCE:
            return model.head(v).argmax(dim=1).numpy()
        v = model.f(v, injection)
    raise FloatingPointError(f"{len(x)} fixed points are not solved to {TOLERANCE:g} after {_MOST:,} steps")


def disagreements(model: MonDEQ, copies: Sequence[NoisyCopies], cast: Iterable[Sequence[Votes]]) -> tuple[int, int]:
    """Of settled votes on the draws 0, 1, 2, ... of some images, ``cast`` by several rows: how many there are, and how many of
    them are not :func:`exact_classes`'."""
    cast = [list(votes) for votes in cast]
    settled = wrong = 0
    for image, one in enumerate(copies):
        exact = exact_classes(model, one(np.arange(max(len(votes[image].classes) for votes in cast))))
        for classes in (votes[image].classes for votes in cast):
            decided = classes != UNDECIDED
            settled += int(decided.sum())
            wrong += int((decided & (classes != exact[: len(classes)])).sum())
    return settled, wrong

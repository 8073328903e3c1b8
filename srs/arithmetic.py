"""What the arithmetic does to votes: precision, compute batch, order, and being drawn again."""

import copy

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from srs.data import Images, evenly_spaced
from srs.noise import NoisyCopies
from srs.sections import Section
from srs.solvers import Solver
from srs.votes import UNDECIDED, Sampler, SerializedSampler, StandardSampler


class Arithmetic(Section):
    """Settings: the votes of an ``experiment`` on ``n`` draws of ``images`` test images, ``n_alone`` also in tiny batches.
    ``threads``: as in :class:`srs.casting.Casting`."""

    experiment: str
    images: int = Field(3, ge=1)
    n: int = Field(1_000, ge=1)
    n_alone: int = Field(100, ge=1)
    chains: int = Field(50, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    threads: int | None = Field(None, ge=1)


def samplers(chains: int) -> dict[str, Sampler]:
    """The kinds of solves that are compared."""
    stopped = Solver(method="anderson", steps=30, stop="relative")
    return {
        "standard, 30 steps": StandardSampler(),
        "standard, stopped at 1e-3": StandardSampler(solver=stopped),
        "serialized, 3 steps": SerializedSampler(chains=chains),
        "serialized, stopped at 1e-3": SerializedSampler(chains=chains, solver=stopped),
    }


def compare(model: torch.nn.Module, images: Images, sigma: float, config: Arithmetic) -> pd.DataFrame:
    """One line a sampler and change. Of ``votes``, against those of batches of 400 in float32: how many are ``different``
    classes, how many are decided in only one of the two (``only_before``, ``only_after``)."""
    rows, in_float64 = [], copy.deepcopy(model).double()
    device = next(model.parameters()).device
    for index in evenly_spaced(len(images), config.images):
        copies = NoisyCopies(images.images(np.array([index]))[0].to(device), int(index), sigma, config.seed)
        exact = NoisyCopies(copies.image.double(), int(index), sigma, config.seed)
        for name, sampler in samplers(config.chains).items():
            plain = sampler.sample(model, copies, np.arange(config.n), 400)
            in_double = sampler.sample(in_float64, exact, np.arange(config.n), 400)
            rows.append(_row(name, "float64", plain.classes, in_double.classes))
            few = np.arange(config.n_alone)
            for size in (1, 7):
                again = sampler.sample(model, copies, few, size)
                rows.append(_row(name, f"batches of {size}", plain.classes[few], again.classes))
            if sampler.independent:
                mixed = np.random.default_rng(config.seed).permutation(config.n)
                rows.append(
                    _row(name, "another order", plain.classes[mixed], sampler.sample(model, copies, mixed, 400).classes)
                )
    return pd.DataFrame(rows).groupby(["sampler", "change"], sort=False).sum().reset_index()


def _row(sampler: str, change: str, plain: np.ndarray, changed: np.ndarray) -> dict:
    before, after = plain != UNDECIDED, changed != UNDECIDED
    counts = {"votes": len(plain), "different": int((before & after & (plain != changed)).sum())}
    counts |= {"only_before": int((before & ~after).sum()), "only_after": int((after & ~before).sum())}
    return {"sampler": sampler, "change": change} | counts

"""What the arithmetic does to votes: precision, compute batch, order, and being drawn again."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator

from srs import models
from srs.common import machine
from srs.common.resume import fingerprint
from srs.common.settings import Section
from srs.data.datasets import Dataset, Images, evenly_spaced
from srs.deq.interface import device_of
from srs.deq.solvers import Solver
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import MOST_ROWS, UNDECIDED, Sampler, SerializedSampler, StandardSampler
from study.common import code, engine
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.common.runs import Model, Run


class Arithmetic(Section):
    """Settings: the votes of a ``run`` on ``n`` draws of ``images`` test images, ``n_alone`` also in tiny batches."""

    run: str
    images: int = Field(3, ge=1)
    n: int = Field(1_000, ge=1)
    n_alone: int = Field(100, ge=1)
    chains: int = Field(50, ge=1, le=MOST_ROWS)
    seed: int = Field(0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _some_of_all(self) -> "Arithmetic":
        if self.n_alone > self.n:
            raise ValueError(f"n_alone = {self.n_alone} is out of range: 1 to n = {self.n}")
        return self


def samplers(chains: int) -> dict[str, Sampler]:
    """The kinds of solves that are compared."""
    stopped = Solver(method="anderson", steps=30, stop="relative")
    return {
        "standard, 30 steps": StandardSampler(),
        "standard, stopped at 1e-3": StandardSampler(solver=stopped),
        "serialized, 3 steps": SerializedSampler(chains=chains),
        "serialized, stopped at 1e-3": SerializedSampler(chains=chains, solver=stopped),
    }


def arithmetic_jobs(runs: dict, models: dict, arithmetic: dict, layout: Layout, settings: Machine) -> list[list[Task]]:
    """A job for each image; ``runs`` and ``models`` are sections of params.yaml."""
    config, rests_on = Arithmetic(**arithmetic), list(code.of_modules("study.arithmetic", "srs.models.__init__"))
    run, model = Run(**runs[config.run]), layout.model(config.run)
    data, sigma = layout.dataset(Model(**models[run.model]).data), run.sigma
    jobs = []
    for index in evenly_spaced(len(Dataset.load(data).test), config.images).tolist():
        origin = fingerprint([model, data], [config.model_dump(exclude={"images"}), sigma, index], rests_on)
        arguments = {"model": model, "data": data, "index": index, "sigma": sigma, "config": config, "settings": settings}
        out, record = layout.runs / "arithmetic" / f"{index:05d}.csv", layout.record("arithmetic", f"{index:05d}")
        jobs.append([Task(out, record, origin, compare_image, arguments)])
    return jobs


def compare_image(
    out: Path, *, model: Path, data: Path, index: int, sigma: float, config: Arithmetic, settings: Machine
) -> dict:
    """:func:`compare` on one test image, as CSV."""
    device = engine.device(settings)
    compare(models.load(model, device), Dataset.load(data).test, index, sigma, config).to_csv(out, index=False)
    return {"machine": machine.describe(device)}


def compare(model: torch.nn.Module, images: Images, index: int, sigma: float, config: Arithmetic) -> pd.DataFrame:
    """One line a sampler and change. Of ``votes`` on image ``index``, against those of batches of 400 in float32: how many are
    ``different`` classes, how many are decided in only one of the two (``only_before``, ``only_after``)."""
    rows, in_float64, image = [], copy.deepcopy(model).double(), images.images(np.array([index]))[0]
    copies = NoisyCopies(image.to(device_of(model, image)), index, sigma, config.seed)
    exact = NoisyCopies(copies.image.double(), index, sigma, config.seed)
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
            again = sampler.sample(model, copies, mixed, 400)
            rows.append(_row(name, "another order", plain.classes[mixed], again.classes))
    return pd.DataFrame(rows)


def gathered(folder: Path) -> pd.DataFrame:
    """What :func:`compare` found on all images, summed, and how many ``images`` they are."""
    paths = sorted(folder.glob("*.csv"))
    parts = pd.concat(map(pd.read_csv, paths))
    return parts.groupby(["sampler", "change"], sort=False).sum().reset_index().assign(images=len(paths))


def _row(sampler: str, change: str, plain: np.ndarray, changed: np.ndarray) -> dict:
    return {"sampler": sampler, "change": change} | count_changes(plain, changed)


def count_changes(plain: np.ndarray, changed: np.ndarray) -> dict[str, int]:
    """Of the classes of ``votes`` (n,), cast twice: how many are ``different``, and how many are decided in only one of the two
    (``only_before``, ``only_after``)."""
    before, after = plain != UNDECIDED, changed != UNDECIDED
    counts = {"votes": len(plain), "different": int((before & after & (plain != changed)).sum())}
    return counts | {"only_before": int((before & ~after).sum()), "only_after": int((after & ~before).sum())}

"""Casting the votes of a whole profile: the tasks, and what a worker does for one."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from srs import models
from srs.common import machine
from srs.common.resume import fingerprint
from srs.data.datasets import Dataset
from srs.deq.definition import classify, is_deq
from srs.deq.solvers import Solver
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import Sampler
from study.common import code, engine
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.votes.plan import VotePlans, is_amortized
from study.votes.store import VoteStore, open_store, write_votes


def vote_jobs(plans: VotePlans, layout: Layout, settings: Machine) -> list[list[Task]]:
    """A job for each block of images of each run, which has a task for each sampler that votes on them; the longest first."""
    jobs, rests_on = [], [*code.of_modules("srs.votes.samplers", "srs.models.__init__", "srs.data.datasets"), Path(__file__)]
    for key in plans.plans:
        store = open_store(plans, layout, key)
        model = {"model": layout.model(key), "starts": layout.starts(key), "data": layout.dataset(plans.data(key))}
        for block in range(len(store.blocks)):
            samplers = sorted(store.draws, key=is_amortized)  # with starts and without, the network is loaded once each
            tasks = [_task(store, sampler, block, model, settings, rests_on) for sampler in samplers]
            jobs.append([task for task in tasks if task.weight])
    return sorted(jobs, key=lambda job: -sum(task.weight for task in job))


def _task(store: VoteStore, sampler: Sampler, block: int, model: dict, settings: Machine, rests_on: list[Path]) -> Task:
    name, origin, positions = store.name(sampler, block), store.origin(sampler, block), store.blocks[block]
    draws = [store.draws[sampler][p] for p in positions]
    model = model | {"starts": model["starts"] if is_amortized(sampler) else None}
    noise = {"indices": store.index[positions], "sigma": store.plan.sigma, "seed": store.plan.seed}
    return Task(
        out=store.folder / f"{name}.npz",
        record=store.timings / f"{name}.npz",
        origin=fingerprint([], origin, rests_on),
        compute=cast_block,
        arguments=model | noise | {"sampler": sampler, "draws": draws, "origin": origin, "settings": settings},
        weight=sum(map(len, draws)),
    )


def cast_block(
    out: Path,
    *,
    model: Path,
    starts: Path | None,
    data: Path,
    indices: np.ndarray,
    sigma: float,
    seed: int,
    sampler: Sampler,
    draws: list[np.ndarray],
    origin: dict,
    settings: Machine,
) -> dict:
    """Cast the votes of one sampler on the ``draws`` of test images number ``indices``, and write them; seconds and the machine
    go to the record."""
    where = engine.device(settings)
    images = dataset(data, origin["sha256 of data"]).test
    hashes = origin["sha256 of model"], origin.get("sha256 of starts")
    classifier = _classifier(model, starts, where, (min(settings.batch_size, 400), *images.shape), *hashes)
    copies = [NoisyCopies(images.images(np.array([i]))[0].to(where), int(i), sigma, seed) for i in indices]
    if any(one.moved for one in copies):
        raise ValueError(f"sigma = {sigma} is too large for these images: they lie off the noise's grid (srs.votes.noise)")
    votes = sampler.sample_many(classifier, copies, draws, settings.batch_size)
    write_votes(out, origin, votes)
    return {"seconds": np.concatenate([one.seconds for one in votes]), "machine": machine.describe(where)}


@lru_cache(1)
def _classifier(model: Path, starts: Path | None, where: str, shape: tuple[int, ...], *hashes: str | None) -> nn.Module:
    """A network to be used, after a first pass on zeros of a ``shape``, which spends set-up costs (threads, kernels) before
    anything is timed; the hashes of its files tell it from another that lay there before."""
    found = models.load(model, where, fitted=starts)
    with torch.no_grad():
        x = torch.zeros(shape, device=where)
        _ = classify(found, x, Solver(steps=2)) if is_deq(found) else found(x)
    return found


@lru_cache(2)
def dataset(path: Path, digest: str) -> Dataset:
    """A data set, read once in a worker."""
    return Dataset.load(path)

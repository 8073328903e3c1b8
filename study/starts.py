"""Amortized starts of a profile's networks, fitted and chosen among on training images, before any test image is seen: the
tasks, and what a worker does for one."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from srs import models
from srs.common import machine
from srs.common.resume import fingerprint
from srs.data.datasets import Dataset, Images
from srs.deq.definition import DEQ
from srs.deq.interface import device_of
from srs.models import starts as networks
from srs.starts import StartSettings, fit_starts
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import StandardSampler
from study.common import code, engine, snapshot
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.votes.plan import VotePlans
from study.votes.rows import sampler_of

_AT_ONCE = 800  # rows of a compute batch
_HELD_OUT = (1 << 63) + (1 << 62)  # a seed apart from those of certification and of training's evaluation


class Starts(StartSettings):
    """:class:`srs.starts.StartSettings`, and among which rows the one to deploy is chosen: the ``candidates``, on ``copies``
    noisy copies of each held-out image; by :func:`choose`, it may have a noisy accuracy lower than the reference's by
    ``loss``."""

    candidates: list[str] = Field(min_length=1)
    copies: int = Field(20, ge=1)
    loss: float = Field(0.02, ge=0, lt=1)


def start_jobs(plans: VotePlans, starts: dict, layout: Layout, settings: Machine) -> list[list[Task]]:
    """A job for each run whose starts are asked for, by a row of its own or by a run that goes on from it; published ones that
    are asked for (:mod:`study.common.snapshot`) are taken as they are."""
    config, rests_on, jobs = Starts(**starts), list(code.of_modules("srs.starts", "study.starts")), []
    asked = snapshot.asked_for(layout)
    candidates = {row: sampler_of(row, plans.spelled, plans.votes.chains) for row in config.candidates}
    for key in plans.with_starts():
        run, data = plans.runs[key], layout.dataset(plans.data(key))
        settled = [config.model_dump(), run.sigma, {row: sampler.model_dump() for row, sampler in candidates.items()}]
        origin = fingerprint([layout.model(key), data], settled, rests_on)
        arguments = {"model": layout.model(key), "data": data, "sigma": run.sigma, "config": config}
        arguments |= {"candidates": candidates, "settings": settings}
        task = Task(layout.runs / "starts" / key, layout.record("starts", key), origin, fit_run, arguments)
        jobs.append([snapshot.or_published(task, layout.name, asked)])
    return jobs


def fit_run(
    out: Path,
    *,
    model: Path,
    data: Path,
    sigma: float,
    config: Starts,
    candidates: dict[str, StandardSampler],
    settings: Machine,
) -> dict:
    """Fit the starts of one network; writes the folder ``out``: starts.pt and held_out.csv."""
    device = engine.device(settings)
    dataset, classifier = Dataset.load(data), models.load(model, device)
    began = time.perf_counter()
    classifier.starts = fit_starts(classifier, dataset.train, sigma, config)
    seconds = time.perf_counter() - began
    found = held_out(classifier, dataset.validation, sigma, candidates, StandardSampler(solver=config.solver), config.copies)
    found["chosen"] = found["row"] == choose(found, config.loss)
    out.mkdir(parents=True)
    models.write_checkpoint(networks.state(classifier.starts), out / "starts.pt")
    found.to_csv(out / "held_out.csv", index=False)
    return {"fit": seconds, "machine": machine.describe(device)}


def choose(found: pd.DataFrame, loss: float) -> str:
    """Of the rows of :func:`held_out`: the one with fewest evaluations of f, and of those the most accurate, whose noisy
    accuracy is lower than the reference's by at most ``loss`` (0.02: two points); the most accurate one where all lose more."""
    good = found[found["difference"] >= -loss]
    if good.empty:
        good = found.nlargest(1, "accuracy")
    return good.sort_values(["evaluations", "accuracy"], ascending=[True, False])["row"].iloc[0]


def held_out(
    model: DEQ,
    images: Images,
    sigma: float,
    samplers: dict[str, StandardSampler],
    reference: StandardSampler,
    copies: int,
) -> pd.DataFrame:
    """What each of ``samplers`` is worth on ``copies`` noisy copies of each held-out image, one line each.

    Noisy ``accuracy``, ``agreement`` with the reference's class, mean ``evaluations`` of f; ``difference`` of its accuracy and
    the reference's, with its paired 95 % interval over the images (``lower``, ``upper``; normal approximation). Steps and
    starts are chosen by this, before any test image is seen.
    """
    device = device_of(model, images.images(np.array([0])))
    truth, found = np.repeat(images.labels, copies), {}
    draws = [np.arange(copies)] * len(images)
    noisy = [NoisyCopies(images.images(np.array([i]))[0].to(device), i, sigma, _HELD_OUT) for i in range(len(images))]
    for name, sampler in {"": reference, **samplers}.items():
        cast = sampler.sample_many(model, noisy, draws, _AT_ONCE)
        found[name] = np.concatenate([v.classes for v in cast]), np.concatenate([v.evaluations for v in cast])
    known, rows = found.pop("")[0], []
    for name, (classes, evaluations) in found.items():
        gain = (classes == truth).astype(float) - (known == truth)
        gain = gain.reshape(len(images), copies).mean(axis=1)  # copies of one image are no independent evidence
        half = 1.96 * gain.std() / np.sqrt(len(gain))
        row = {"accuracy": (classes == truth).mean(), "agreement": (classes == known).mean(), "evaluations": evaluations.mean()}
        rows.append({"row": name, **row, "difference": gain.mean(), "lower": gain.mean() - half, "upper": gain.mean() + half})
    return pd.DataFrame(rows)

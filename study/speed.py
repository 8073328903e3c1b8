"""The stage `speed`: seconds of whole certificates. Whatever is compared runs in turns, repeat after repeat, so that a machine
that slows down slows all alike."""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from srs import models
from srs.certificates.certify import CertifySettings, certify
from srs.common import machine
from srs.common.resume import fingerprint
from srs.common.settings import Section
from srs.data.datasets import Dataset, Images, evenly_spaced
from srs.deq.definition import DEQ
from srs.deq.interface import device_of
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, ReleasedSampler, Sampler
from study.common import code, engine
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.votes.plan import VotePlans
from study.votes.rows import released, stopped

Count = Annotated[int, Field(ge=1)]
Work = Callable[[], int]  # does something, and returns how many evaluations of f that took


class Speed(Section):
    """How whole certificates are timed: of ``images`` test images from ``n`` draws, at most ``batch_size`` at once, ``audit``
    of them audited where they are serialized; ``repeats`` times."""

    n: int = Field(10_000, ge=11)  # fewer serialized votes certify nothing
    images: Count = 1
    repeats: Count = 3
    audit: Count = 400
    batch_size: Count = 400

    @model_validator(mode="after")
    def _serialized_votes_can_be_certified(self) -> Self:
        CertifySettings(n=self.n, audit=self.audit).require_audit()
        return self


def race(keys: Sequence[str], runners: dict[tuple, Work], repeats: int) -> pd.DataFrame:
    """Everyone's seconds, in turns, ``repeats`` times: one line a run, the names of ``runners`` in the columns ``keys``."""
    rows = []
    turns = list(itertools.product(range(repeats), runners.items()))
    for repeat, (name, work) in tqdm(turns, desc=" x ".join(keys), unit="run", mininterval=2):
        began = perf_counter()
        evaluations = work()
        seconds = perf_counter() - began
        rows.append({**dict(zip(keys, name)), "repeat": repeat, "evaluations": evaluations, "seconds": seconds})
    return pd.DataFrame(rows)


def speed_jobs(plans: VotePlans, keys: Iterable[str], speed: dict, layout: Layout, settings: Machine) -> list[list[Task]]:
    """A job for each of the runs ``keys``: the rows of their group ``past``, and what published speed-ups are over."""
    config, rests_on, jobs = Speed(**speed), list(code.of_modules("study.speed", "srs.models.__init__")), []
    for key in keys:
        plan, data, starts = plans[key], layout.dataset(plans.data(key)), layout.starts(key)
        rows = {row: plan.sampler(plan.group("past"), row) for row in plan.groups[plan.group("past")].samplers}
        reference = plan.reference_row(plan.group("past"))
        rows[released(reference)] = ReleasedSampler()
        parameters = [config.model_dump(), plan.sigma, {row: sampler.model_dump() for row, sampler in rows.items()}, reference]
        origin = fingerprint([layout.model(key), starts, data], parameters, rests_on)
        arguments = {"model": layout.model(key), "starts": starts, "data": data, "sigma": plan.sigma, "rows": rows}
        arguments |= {"reference": reference, "config": config, "settings": settings}
        jobs.append([Task(layout.runs / "speed" / key, layout.record("speed", key), origin, time_run, arguments)])
    return jobs


def time_run(
    out: Path,
    *,
    model: Path,
    starts: Path,
    data: Path,
    sigma: float,
    rows: dict[str, Sampler],
    reference: str,
    config: Speed,
    settings: Machine,
) -> dict:
    """Time the rows of one network; writes the folder ``out``: runs.csv, each run's seconds, methods.csv and machine.json."""
    device = engine.device(settings)
    deqs = {sigma: models.load(model, device, fitted=starts)}
    timed = time_methods(deqs, Dataset.load(data).test, rows, reference, config)
    out.mkdir(parents=True)
    timed.to_csv(out / "runs.csv", index=False)
    table = methods_table(timed, reference).assign(n=config.n, images=config.images, repeats=config.repeats)
    table.to_csv(out / "methods.csv", index=False)
    (out / "machine.json").write_text(json.dumps(machine.describe(device)), encoding="utf-8")
    return {}


def time_methods(
    deqs: dict[float, DEQ], images: Images, rows: dict[str, Sampler], reference: str, config: Speed
) -> pd.DataFrame:
    """Whole certificates by every one of ``rows``, serialized ones audited by the row ``reference``: columns sigma, method,
    index, repeat, evaluations, seconds."""
    runners = {}
    for sigma, model in deqs.items():
        for name, sampler in rows.items():
            sampler = sampler.canonical()  # as votes are cast
            for noisy in noisy_images(model, images, sigma, config.images):
                runners[sigma, name, noisy.index] = partial(_certify, model, noisy, sampler, rows[reference], config)
            cast(model, [noisy], sampler, config.batch_size, config.batch_size)  # the first batch is slower
    return race(["sigma", "method", "index"], runners, config.repeats)


def cast(model: DEQ, noisy: Sequence[NoisyCopies], sampler: Sampler, draws: int, batch_size: int) -> int:
    """Noise, votes and counts of ``draws`` draws of each image; returns the evaluations of f."""
    found = sampler.sample_many(model, noisy, [np.arange(draws)] * len(noisy), batch_size)
    for votes in found:
        np.bincount(votes.classes[votes.classes != UNDECIDED])
    return sum(int(votes.evaluations.sum()) for votes in found)


def _certify(model: DEQ, noisy: NoisyCopies, sampler: Sampler, reference: Sampler, config: Speed) -> int:
    settings = config.model_dump(include={"n", "audit", "batch_size"}) | {"sigma": noisy.sigma, "index": noisy.index}
    return certify(model, noisy.image, sampler=sampler, reference=reference, **settings).evaluations


def noisy_images(model: torch.nn.Module, images: Images, sigma: float, count: int) -> list[NoisyCopies]:
    """Noisy copies of ``count`` evenly spaced images, where the model computes."""
    chosen = evenly_spaced(len(images), count)
    drawn = zip(chosen, images.images(chosen))
    return [NoisyCopies(image.to(device_of(model, image)), int(i), sigma, 0) for i, image in drawn]


def summary(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean evaluations, and the median, least and most seconds of each runner, indexed by ``keys``."""
    seconds = {"seconds": ("seconds", "median"), "least": ("seconds", "min"), "most": ("seconds", "max")}
    return runs.groupby(keys, sort=False).agg(evaluations=("evaluations", "mean"), **seconds)


def methods_table(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """:func:`summary`, and how many times as fast as the ``reference``, as that :func:`stopped` and as :func:`released`, a
    method is."""
    table = summary(runs, ["sigma", "method"]).reset_index()
    for row in (reference, stopped(reference), released(reference)):
        if row not in set(table["method"]):
            continue
        theirs = table[table["method"] == row].set_index("sigma")["seconds"]
        table[f"speed over {row}"] = table["sigma"].map(theirs) / table["seconds"]
    return table.astype({"evaluations": int})

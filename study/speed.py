"""The stage `speed`: seconds of whole certificates. Whatever is compared runs in turns, repeat after repeat, so that a machine
that slows down slows all alike."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from tqdm import tqdm

from srs import models
from srs.certificates.at_radius import certify_at
from srs.certificates.certify import CertifySettings, certify
from srs.common import machine
from srs.common.resume import fingerprint
from srs.common.settings import Section
from srs.data.datasets import Dataset, Images, evenly_spaced
from srs.deq.definition import DEQ
from srs.deq.interface import device_of
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, DirectSampler, ReleasedSampler, Sampler
from study.common import code, engine
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.votes.plan import VotePlan, VotePlans, is_amortized
from study.votes.rows import plain, released, stopped

Count = Annotated[int, Field(ge=1)]
Work = Callable[[], int]  # does something, and returns how many evaluations of f that took


class Timing(Section):
    """How whole certificates are timed, at the usual alpha whatever the study's is: of ``images`` test images from ``n`` draws,
    at most ``batch_size`` at once, ``audit`` of them audited where they are serialized; ``repeats`` times."""

    n: int = Field(10_000, ge=11)  # fewer serialized votes certify nothing
    images: Count = 1
    repeats: Count = 3
    audit: Count = 400
    batch_size: Count = 400

    @model_validator(mode="after")
    def _serialized_votes_can_be_certified(self) -> Self:
        CertifySettings(n=self.n, audit=self.audit).require_audit()
        return self


class Speed(Timing):
    """What the stage times: the rows of the list ``rows``, which a group of the run must show, and the amortized ones of
    `past`; where a ``radius`` is given, the test at it by the rows of `sequential`; plain networks (He et al.'s ResNets) of so
    many layers as ``plain`` has, whose random weights cost what trained ones do."""

    rows: str = "past"
    radius: float | None = Field(None, ge=0)
    plain: tuple[int, ...] = ()

    @field_validator("plain")
    @classmethod
    def _layers_make_blocks(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        for depth in depths:
            try:
                models.configure("resnet-110", depth=depth)
            except ValidationError:
                raise ValueError(f"the depth of a ResNet is 6n + 2, at least 8: not {depth}") from None
        return depths


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
    """A job for each of the runs ``keys``, with a task for each turn: everything, once, on one image."""
    config, rests_on, jobs = Speed(**speed), list(code.of_modules("study.speed", "srs.models.__init__")), []
    for key in keys:
        plan, data, starts = plans[key], layout.dataset(plans.data(key)), layout.starts(key)
        rows, at_radius, reference = timed_rows(plan, config)
        told = [{row: sampler.model_dump() for row, sampler in some.items()} for some in (rows, at_radius)]
        parameters = [config.model_dump(exclude={"images", "repeats"}), plan.sigma, *told, reference]
        arguments = {"model": layout.model(key), "starts": starts, "data": data, "sigma": plan.sigma, "rows": rows}
        arguments |= {"at_radius": at_radius, "reference": reference, "config": config, "settings": settings}
        turns = []
        for repeat, image in itertools.product(range(config.repeats), range(config.images)):
            name = f"{repeat:02}-{image:02}"
            origin = fingerprint([layout.model(key), starts, data], [*parameters, config.images, image, repeat], rests_on)
            out, record = layout.runs / "speed" / key / f"{name}.csv", layout.record("speed", f"{key}/{name}")
            turns.append(Task(out, record, origin, time_turn, arguments | {"repeat": repeat, "image": image}))
        jobs.append(turns)
    return jobs


def timed_rows(plan: VotePlan, config: Speed) -> tuple[dict[str, Sampler], dict[str, Sampler], str]:
    """The rows that certify all radii, and those that test one; and the name of the audits' reference."""
    group, past = plan.group(config.rows), plan.group("past")
    rows = {row: plan.sampler(group, row) for row in plan.groups[group].samplers}
    rows |= {row: plan.sampler(past, row) for row, sampler in plan.groups[past].samplers.items() if is_amortized(sampler)}
    reference = plan.reference_row(group)
    rows.setdefault(released(reference), ReleasedSampler())
    tested = plan.groups[plan.group("sequential")].samplers if config.radius is not None else ()
    return rows, {row: plan.sampler(plan.group("sequential"), row) for row in tested}, reference


def time_turn(
    out: Path,
    *,
    model: Path,
    starts: Path,
    data: Path,
    sigma: float,
    rows: dict[str, Sampler],
    at_radius: dict[str, Sampler],
    reference: str,
    config: Speed,
    settings: Machine,
    repeat: int,
    image: int,
) -> dict:
    """Time everything that is timed of a run on one of its images, one after the other: a table as :func:`race` has it, with
    the number ``repeat``, the draws ``n``, and the machine's ``hardware`` and ``torch``."""
    device = engine.device(settings)
    deq, dataset = models.load(model, device, fitted=starts), Dataset.load(data)
    noisy = noisy_images(deq, dataset.test, sigma, config.images)[image]
    warm_up(deq, noisy, rows, config)
    runners = certificates(deq, noisy, rows, rows[reference], config)
    for row, sampler in at_radius.items():
        runners[within(row, config.radius)] = partial(_test, deq, noisy, sampler, config)
    for depth in config.plain:
        network = models.build("resnet-110", depth=depth, **dataset.model_fields()).eval().fold().to(device)
        row = {f"ResNet-{depth}": DirectSampler()}
        warm_up(network, noisy, row, config)
        runners |= certificates(network, noisy, row, None, config)
    found = race(["sigma", "method", "index"], {(sigma, name, noisy.index): work for name, work in runners.items()}, 1)
    told = machine.describe(device)
    found = found.assign(repeat=repeat, n=config.n, hardware=told["hardware"], torch=told["torch"])
    found.to_csv(out, index=False)
    return {}


def within(row: str, radius: float) -> str:
    """The name of a row that tests one radius."""
    return f"{row} within r = {radius:g}"


def timed(layout: Layout, key: str) -> pd.DataFrame:
    """What was timed of a run, a line a certificate: the columns of :func:`time_turn`."""
    return pd.concat(map(pd.read_csv, sorted((layout.runs / "speed" / key).glob("*.csv"))), ignore_index=True)


def certificates(
    model: torch.nn.Module, noisy: NoisyCopies, rows: Mapping[str, Sampler], reference: Sampler | None, config: Timing
) -> dict[str, Work]:
    """Whole certificates of one image by each of ``rows``, serialized ones audited by the ``reference``, to be timed."""
    canonical = {name: sampler.canonical() for name, sampler in rows.items()}  # as votes are cast
    return {name: partial(_certify, model, noisy, sampler, reference, config) for name, sampler in canonical.items()}


def warm_up(model: torch.nn.Module, noisy: NoisyCopies, rows: Mapping[str, Sampler], config: Timing) -> None:
    """The first batch of each of ``rows``, which is slower, and not to be timed."""
    for sampler in rows.values():
        cast(model, [noisy], sampler.canonical(), config.batch_size, config.batch_size)


def time_methods(
    deqs: dict[float, DEQ], images: Images, rows: dict[str, Sampler], reference: str, config: Timing
) -> pd.DataFrame:
    """Whole certificates by every one of ``rows``, serialized ones audited by the row ``reference``: columns sigma, method,
    index, repeat, evaluations, seconds."""
    runners = {}
    for sigma, model in deqs.items():
        copies = noisy_images(model, images, sigma, config.images)
        warm_up(model, copies[-1], rows, config)
        for noisy in copies:
            found = certificates(model, noisy, rows, rows[reference], config)
            runners |= {(sigma, name, noisy.index): work for name, work in found.items()}
    return race(["sigma", "method", "index"], runners, config.repeats)


def cast(model: DEQ, noisy: Sequence[NoisyCopies], sampler: Sampler, draws: int, batch_size: int) -> int:
    """Noise, votes and counts of ``draws`` draws of each image; returns the evaluations of f."""
    found = sampler.sample_many(model, noisy, [np.arange(draws)] * len(noisy), batch_size)
    for votes in found:
        np.bincount(votes.classes[votes.classes != UNDECIDED])
    return sum(int(votes.evaluations.sum()) for votes in found)


def _certify(model: torch.nn.Module, noisy: NoisyCopies, sampler: Sampler, reference: Sampler | None, config: Timing) -> int:
    settings = config.model_dump(include={"n", "audit", "batch_size"}) | {"sigma": noisy.sigma, "index": noisy.index}
    return certify(model, noisy.image, sampler=sampler, reference=reference, **settings).evaluations


def _test(model: DEQ, noisy: NoisyCopies, sampler: Sampler, config: Speed) -> int:
    settings = {"n": config.n, "sigma": noisy.sigma, "indices": [noisy.index], "batch_size": config.batch_size}
    (found,) = certify_at(model, [noisy.image], config.radius, sampler=sampler, **settings)
    return found.evaluations


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
    """:func:`summary`, and how many times as fast as the ``reference`` with fixed steps, :func:`stopped`, and as
    :func:`released` a method is."""
    table = summary(runs, ["sigma", "method"]).reset_index()
    for row in (plain(reference), stopped(reference), released(reference)):
        if row not in set(table["method"]):
            continue
        theirs = table[table["method"] == row].set_index("sigma")["seconds"]
        table[f"speed over {row}"] = table["sigma"].map(theirs) / table["seconds"]
    return table.assign(evaluations=table["evaluations"].round().astype(int))

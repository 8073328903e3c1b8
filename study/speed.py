"""What the claims about speed and memory rest on: one run that times methods, engine and scaling, and asks for memory.

python -m study.speed [--profile embedded] [--n 1000 ...]

Prints Markdown tables; these and every single timing, as CSV, go to --out. Whatever is compared runs in turns, repeat after
repeat, so that a machine that slows down slows all alike.
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from time import perf_counter
from typing import Annotated, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor
from tqdm import tqdm

from srs import models
from srs.certificates.certify import CertifySettings, certify
from srs.common import machine
from srs.common.resume import fingerprint
from srs.common.settings import Section, faults
from srs.data.datasets import Dataset, Images, evenly_spaced
from srs.deq.definition import DEQ
from srs.deq.interface import device_of
from srs.deq.solvers import Solver
from srs.models.starts import WIDTH, ConvolutionalStart
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, ReleasedSampler, Sampler, SerializedSampler, StandardSampler, rows_at_once
from study.common import code, engine, params_file
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.common.memory import restart_with_kept_memory
from study.votes.plan import VotePlans
from study.votes.rows import released, stopped

STANDARD, ONE_STEP = "MDEQ-30A", "AS-MDEQ-1N"
STOPPED = stopped(STANDARD)
LAYER, KEPT = "f plain / f as loaded", "f plain, same allocator / f as loaded"
TARGETS = {STANDARD: "at most 1.15", ONE_STEP: "at most 1.25", LAYER: "at least 1.6", KEPT: ""}

Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
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


class Bench(Speed):
    """What is measured besides. ``levels``: sigma of the runs small-025 (0.25), small-050, ...; serialized votes in
    ``chains``. Engine: ``draws`` votes in batches of ``batch_size``, ``engine_repeats`` times. Scaling: besides, ``sizes``
    draws, batches of ``batches``, or ``together`` images at once. ``threads``: None is torch's choice.
    """

    threads: Count | None = None

    levels: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.25, 0.5, 1.0), min_length=1)
    engine_repeats: Count = 5
    chains: Count = 100
    draws: Count = 4_000
    sizes: Counts = (1_000, 4_000, 10_000)
    batches: Counts = (50, 100, 200, 400, 800)
    together: Counts = (1, 2, 4)


def methods(chains: int) -> dict[str, Sampler]:
    """The rows of the table of methods."""
    naive = Solver(method="naive", steps=1)
    return {
        STANDARD: StandardSampler(solver=Solver(steps=30)),
        STOPPED: StandardSampler(solver=Solver(steps=30, stop="relative", tolerance=1e-3)),
        released(STANDARD): ReleasedSampler(),
        "SRS-MDEQ-1A": SerializedSampler(solver=Solver(steps=1), chains=chains),
        "SRS-MDEQ-3A": SerializedSampler(solver=Solver(steps=3), chains=chains),
        "AS-MDEQ-1N mean": StandardSampler(solver=naive, start="mean"),
        ONE_STEP: StandardSampler(solver=naive, start="learned"),
        "AS-MDEQ-2A": StandardSampler(solver=Solver(steps=2), start="learned"),
    }


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
            for noisy in _noisy(model, images, sigma, config.images):
                runners[sigma, name, noisy.index] = partial(_certify, model, noisy, sampler, rows[reference], config)
            cast(model, [noisy], sampler, config.batch_size, config.batch_size)  # the first batch is slower
    return race(["sigma", "method", "index"], runners, config.repeats)


def time_engine(model: DEQ, images: Images, sigma: float, config: Bench) -> pd.DataFrame:
    """Pairs: casting votes, and the bare passes it cannot do without, with ``model`` and with MDEQ-SMALL at 32x32 (random
    weights and starts); f of the latter as it is trained, with a memory allocator untuned and tuned, and as it is loaded.

    Columns measured, side ("whole" or "bare"), repeat, evaluations, seconds.
    """
    (noisy,) = _noisy(model, images, sigma, 1)
    device = noisy.image.device
    folded = _small().fold(models.CACHE if device.type == "cpu" else None)
    folded.starts = torch.nn.ModuleDict({"learned": ConvolutionalStart(8, folded.state_shapes, WIDTH)}).eval()
    folded.to(device)
    large = NoisyCopies(torch.rand(3, 32, 32).to(device), 0, sigma, 0)
    rows, runners = methods(config.chains), {}
    for deq, copies, draws in [(model, noisy, config.draws), (folded, large, config.batch_size)]:
        x = copies(np.arange(draws))
        for name in (STANDARD, ONE_STEP):
            measured = f"{name}, {x.shape[-2]}x{x.shape[-1]}"
            runners[measured, "whole"] = partial(cast, deq, [copies], rows[name], draws, config.batch_size)
            runners[measured, "bare"] = partial(pass_through, deq, x, rows[name].solver.steps, config.batch_size)
    with _plain_process(config, tuned=False) as untuned, _plain_process(config, tuned=True) as tuned:
        for measured, plain in {LAYER: untuned, KEPT: tuned}.items():
            runners[f"{measured}, 32x32", "whole"] = partial(plain.apply, _apply_plain)
            runners[f"{measured}, 32x32", "bare"] = _one_pass(folded, config.batch_size)
        for work in runners.values():
            work()  # once beforehand: the first time is slower
        return race(["measured", "side"], runners, config.engine_repeats)


def time_scaling(model: DEQ, images: Images, sigma: float, config: Bench) -> pd.DataFrame:
    """Casting at many sizes, one of them varied: columns varied, value, method, draws, repeat, evaluations, seconds."""
    usual = {"draws": config.draws, "batch size": config.batch_size, "images at once": 1}
    tried = {"draws": config.sizes, "batch size": config.batches, "images at once": config.together}
    rows = {ONE_STEP: methods(config.chains)[ONE_STEP], "MDEQ-5A": StandardSampler(solver=Solver(steps=5))}
    noisy, runners = _noisy(model, images, sigma, max(config.together)), {}
    for (varied, values), (name, sampler) in itertools.product(tried.items(), rows.items()):
        for value in values:
            draws, batch_size, together = (usual | {varied: value}).values()
            work = partial(cast, model, noisy[:together], sampler, draws, batch_size)
            runners[varied, value, name, draws * together] = work
    return race(["varied", "value", "method", "draws"], runners, config.repeats)


def measure_memory(checkpoint: Path, config: Bench) -> pd.DataFrame:
    """:func:`peak_memory` of two models, each in a process of its own: columns model, before, peak (MiB)."""
    rows = []
    for name, path in {"MDEQ-SMALL of digits, 8x8": checkpoint, "MDEQ-SMALL of the paper, 32x32": None}.items():
        with get_context("spawn").Pool(1) as child:
            rows.append({"model": name, **child.apply(peak_memory, (path, config.batch_size, config.threads))})
    return pd.DataFrame(rows)


def peak_memory(checkpoint: Path | None, batch_size: int, threads: int | None) -> dict[str, float]:
    """The most MiB that this process ever held, before and after one batch of 30-step votes on the processor."""
    machine.prepare_device(threads)
    model = models.load(checkpoint) if checkpoint else _small().fold(models.CACHE)
    image = torch.rand(len(model.config.mean), model.config.image_size, model.config.image_size)
    before = _most_held()
    cast(model, [NoisyCopies(image, 0, 0.5, 0)], methods(1)[STANDARD], batch_size, batch_size)
    return {"before": before, "peak": _most_held()}


def _most_held() -> float:
    status = Path("/proc/self/status")  # Linux's; getrusage's ru_maxrss will not do: a child inherits its parent's
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024 if status.is_file() else np.nan


@torch.no_grad()
def pass_through(model: DEQ, x: Tensor, steps: int, batch_size: int) -> int:
    """The least that ``steps`` evaluations of f for each row of ``x`` can cost: inject, f, f, ..., head, and nothing else;
    for as many rows at once as votes are computed."""
    for part in x.split(rows_at_once(model, batch_size)):
        injection = model.inject(part)
        z = model.initial_state(injection)
        for _ in range(steps):
            z = model.f(z, injection)
        model.head(z).cpu()
    return steps * len(x)


def cast(model: DEQ, noisy: Sequence[NoisyCopies], sampler: Sampler, draws: int, batch_size: int) -> int:
    """Noise, votes and counts of ``draws`` draws of each image; returns the evaluations of f."""
    found = sampler.sample_many(model, noisy, [np.arange(draws)] * len(noisy), batch_size)
    for votes in found:
        np.bincount(votes.classes[votes.classes != UNDECIDED])
    return sum(int(votes.evaluations.sum()) for votes in found)


def _certify(model: DEQ, noisy: NoisyCopies, sampler: Sampler, reference: Sampler, config: Speed) -> int:
    settings = config.model_dump(include={"n", "audit", "batch_size"}) | {"sigma": noisy.sigma, "index": noisy.index}
    return certify(model, noisy.image, sampler=sampler, reference=reference, **settings).evaluations


@contextmanager
def _plain_process(config: Bench, tuned: bool) -> Iterator[Pool]:
    """A process that has MDEQ-SMALL at 32x32 as it is trained, and a memory allocator ``tuned`` as this process's, or not."""
    held = {} if tuned else {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MALLOC_")}  # glibc's
    try:
        pool = get_context("spawn").Pool(1, _start_plain, (config.batch_size, config.threads))
    finally:
        os.environ.update(held)
    with pool:
        yield pool


def _start_plain(batch_size: int, threads: int | None) -> None:
    global _apply_plain_pass
    _apply_plain_pass = _one_pass(_small().to(machine.prepare_device(threads)), batch_size)


def _apply_plain() -> int:
    return _apply_plain_pass()


def _one_pass(model: DEQ, batch_size: int) -> Work:
    """One evaluation of f on a batch of 32x32 images."""
    x = torch.rand(batch_size, 3, 32, 32)
    with torch.no_grad():
        injection = model.inject(x.to(device_of(model, x)))
        z = model.initial_state(injection)
    return partial(_apply, model, z, injection)


@torch.no_grad()
def _apply(model: DEQ, z: Tensor, injection: Tensor) -> int:
    model.f(z, injection)[0, 0].item()  # which waits for the device
    return len(z)


def _small() -> models.MDEQ:
    torch.manual_seed(0)
    return models.build("mdeq-small").eval()


def _noisy(model: torch.nn.Module, images: Images, sigma: float, count: int) -> list[NoisyCopies]:
    chosen = evenly_spaced(len(images), count)
    drawn = zip(chosen, images.images(chosen))
    return [NoisyCopies(image.to(device_of(model, image)), int(i), sigma, 0) for i, image in drawn]


def summary(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean evaluations, and the median, least and most seconds of each runner, indexed by ``keys``."""
    seconds = {"seconds": ("seconds", "median"), "least": ("seconds", "min"), "most": ("seconds", "max")}
    return runs.groupby(keys, sort=False).agg(evaluations=("evaluations", "mean"), **seconds)


def methods_table(runs: pd.DataFrame, reference: str = STANDARD) -> pd.DataFrame:
    """:func:`summary`, and how many times as fast as the ``reference``, as that :func:`stopped` and as :func:`released`, a
    method is."""
    table = summary(runs, ["sigma", "method"]).reset_index()
    for row in (reference, stopped(reference), released(reference)):
        if row not in set(table["method"]):
            continue
        theirs = table[table["method"] == row].set_index("sigma")["seconds"]
        table[f"speed over {row}"] = table["sigma"].map(theirs) / table["seconds"]
    return table.astype({"evaluations": int})


def engine_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns measured, ``whole`` and ``bare`` (median seconds), the median ``ratio`` of two that ran one after
    the other, the ``least`` and ``most``, and the ``target``."""
    pairs = runs.pivot(index=["measured", "repeat"], columns="side", values="seconds")
    pairs["ratio"] = pairs["whole"] / pairs["bare"]
    found = pairs.groupby("measured")
    table = found[["whole", "bare", "ratio"]].median()
    table = table.assign(least=found["ratio"].min(), most=found["ratio"].max()).loc[runs["measured"].unique()].reset_index()
    return table.assign(target=[TARGETS[name.rpartition(", ")[0]] for name in table["measured"]])


def scaling_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Median seconds for 1,000 draws: a line a size, a column a method."""
    runs = runs.assign(seconds=runs["seconds"] / runs["draws"] * 1_000)
    return summary(runs, ["varied", "value", "method"])["seconds"].unstack("method", sort=False).reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; numbers to three digits, or whole."""

    def show(value) -> str:
        return str(value) if isinstance(value, str) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"

    return table.map(show).to_markdown(index=False, disable_numparse=True, stralign=None)  # as shown, no blanks added


def report(found: dict[str, pd.DataFrame], config: Bench, device: str) -> str:
    """All tables, each under a line that says what it shows, and the machine."""
    usual = f"{config.draws:,} draws of one image, {config.batch_size} at a time"
    kinds = "default memory allocator, then this process's"
    captions = [
        f"A certificate from N = {config.n:,} draws, audit included; seconds of {config.repeats} x {config.images} runs.",
        f"Median seconds for votes on {usual} (32x32: {config.batch_size} draws), noise and starts included, against bare "
        f"passes; f of MDEQ-SMALL as trained ({kinds}) against f as loaded, one batch.",
        f"Median seconds for 1,000 draws; where not varied, {usual}.",
        f"Most MiB that a process held, torch included, before and after a batch of {config.batch_size} votes of {STANDARD}.",
    ]
    tables = [methods_table(found["methods"]), engine_table(found["engine"]), scaling_table(found["scaling"]), found["memory"]]
    where = "{hardware}; Python {python}, torch {torch}.".format(**machine.describe(device))
    return "\n\n".join([*(f"{caption}\n\n{markdown(table)}" for caption, table in zip(captions, tables)), where])


def number(given: str) -> int | float:
    """What stands on the command line. Raises ValueError."""
    try:
        return int(given)
    except ValueError:
        return float(given)


def _options(arguments: list[str] | None) -> tuple[Bench, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m study.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default=params_file.read().get("name"), help="whose networks (default: params.yaml's)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    for name, field in Bench.model_fields.items():
        many = "+" if isinstance(field.default, tuple) else None
        default = {"default": field.default, "help": "default: %(default)s"}
        parser.add_argument(f"--{name.replace('_', '-')}", nargs=many, type=number, **default)
    given = parser.parse_args(arguments)
    try:
        return Bench(**{name: getattr(given, name) for name in Bench.model_fields}), given
    except ValidationError as error:
        parser.error("; ".join(faults(error, whole="settings")))


def main(arguments: list[str] | None = None) -> None:
    config, given = _options(arguments)
    device, deqs = machine.prepare_device(config.threads), {}
    try:
        layout = Layout(given.profile)
        images = Dataset.load(layout.dataset("digits")).test
        for sigma in config.levels:
            run = f"small-{round(100 * sigma):03}"
            checkpoint = layout.model(run)
            deqs[sigma] = models.load(checkpoint, device, fitted=layout.starts(run))
    except FileNotFoundError as error:
        sys.exit(str(error))
    last = deqs[sigma], images, sigma, config
    found = {
        "memory": measure_memory(checkpoint, config),
        "methods": time_methods(deqs, images, methods(config.chains), STANDARD, config),
        "engine": time_engine(*last),
        "scaling": time_scaling(*last),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for name, table in found.items():
        table.to_csv(given.out / f"{name}.csv", index=False)
    text = report(found, config, device)
    (given.out / "tables.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    restart_with_kept_memory("study.speed")
    main()

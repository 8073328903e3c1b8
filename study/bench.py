"""`make bench`: what each method, the engine of votes and plain networks cost, in seconds and memory.

    python -m study.bench [--profile embedded] [--n 1000 ...]

Prints Markdown tables; these and every single timing, as CSV, go to --out. Whatever is compared runs in turns, repeat after
repeat, so that a machine that slows down slows all alike.
"""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from srs import models
from srs.checkpoints import DEFAULT, load
from srs.common import machine
from srs.common.settings import faults
from srs.data.datasets import Dataset, Images
from srs.deq.definition import DEQ
from srs.deq.interface import device_of
from srs.deq.solvers import Solver
from srs.models.starts import WIDTH, ConvolutionalStart
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import DirectSampler, ReleasedSampler, Sampler, StandardSampler, rows_at_once
from study.common import params_file
from study.common.layout import Layout
from study.common.memory import restart_with_kept_memory
from study.known_answers import FloatCopies
from study.speed import Count, Timing, Work, cast, methods_table, noisy_images, race, summary, time_methods
from study.votes.rows import released, sampler_of, stopped

STANDARD, ONE_STEP = "MDEQ-30A", "AS-MDEQ-1N"
STOPPED = stopped(STANDARD)
PLAIN = (20, 110)  # depths of plain networks
LAYER, KEPT = "f plain / f as loaded", "f plain, same allocator / f as loaded"
GRID = f"{ONE_STEP}, noise on the grid / plain"
TARGETS = {STANDARD: "at most 1.15", ONE_STEP: "at most 1.25", GRID: "at most 1.05", LAYER: "at least 1.6", KEPT: ""}

Counts = Annotated[tuple[Count, ...], Field(min_length=1)]


class Bench(Timing):
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
    spelled = {
        STOPPED: StandardSampler(solver=Solver(steps=30, stop="relative", tolerance=1e-3)),
        released(STANDARD): ReleasedSampler(),
        "AS-MDEQ-1N mean": StandardSampler(solver=Solver(method="naive", steps=1), start="mean"),
    }
    rows = (STANDARD, STOPPED, released(STANDARD), "SRS-MDEQ-1A", "SRS-MDEQ-3A", "AS-MDEQ-1N mean", ONE_STEP, "AS-MDEQ-2A")
    return {row: spelled.get(row) or sampler_of(row, {}, chains) for row in rows}


def time_engine(model: DEQ, images: Images, sigma: float, config: Bench) -> pd.DataFrame:
    """Pairs: casting votes, and the bare passes it cannot do without, with ``model`` and with MDEQ-SMALL at 32x32 (random
    weights and starts); the same one-step votes on noise on the grid and on plain single precision's; f of the latter model as
    it is trained, with a memory allocator untuned and tuned, and as it is loaded.

    Columns measured, side ("whole" or "bare"), repeat, evaluations, seconds.
    """
    (noisy,) = noisy_images(model, images, sigma, 1)
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
        added = FloatCopies(copies.image, copies.index, sigma, copies.seed)
        for side, one in (("whole", copies), ("bare", added)):
            work = partial(cast, deq, [one], rows[ONE_STEP], draws, config.batch_size)
            runners[f"{GRID}, {x.shape[-2]}x{x.shape[-1]}", side] = work
    with _plain_process(config, tuned=False) as untuned, _plain_process(config, tuned=True) as tuned:
        for measured, plain in {LAYER: untuned, KEPT: tuned}.items() if device.type == "cpu" else ():  # the CPU's memory
            runners[f"{measured}, 32x32", "whole"] = partial(plain.apply, _apply_plain)
            runners[f"{measured}, 32x32", "bare"] = _one_pass(folded, config.batch_size)
        for work in runners.values():
            work()  # once beforehand: the first time is slower
        return race(["measured", "side"], runners, config.engine_repeats)


def time_networks(config: Bench, device: str) -> pd.DataFrame:
    """Votes of the shipped DEQ and of plain networks (He et al. 2016, as Cohen et al. 2019 have them; random weights, which
    cost what trained ones do) on ``batch_size`` draws of one 32x32 picture, in turns: columns measured, macs (multiply-adds of
    a vote), repeat, evaluations, seconds."""
    deq = load(DEFAULT).to(device)
    amortized, noisy = deq.card.sampler, NoisyCopies(torch.rand(3, 32, 32).to(device), 0, deq.card.sigma, 0)
    rows = {name: (deq, sampler) for name, sampler in methods(1).items() if name in (STANDARD, STOPPED)}
    rows[f"{ONE_STEP}, shipped"] = deq, amortized
    for depth in PLAIN:
        rows[f"ResNet-{depth}"] = models.build("resnet-110", depth=depth).eval().fold().to(device), DirectSampler()
    runners = {}
    for name, (model, sampler) in rows.items():
        with FlopCounterMode(display=False) as counted:
            cast(model, [noisy], sampler, config.batch_size, config.batch_size)
        macs = counted.get_total_flops() / 2 / config.batch_size
        runners[name, macs] = partial(cast, model, [noisy], sampler, config.batch_size, config.batch_size)
    return race(["measured", "macs"], runners, config.engine_repeats)


def time_scaling(model: DEQ, images: Images, sigma: float, config: Bench) -> pd.DataFrame:
    """Casting at many sizes, one of them varied: columns varied, value, method, draws, repeat, evaluations, seconds."""
    usual = {"draws": config.draws, "batch size": config.batch_size, "images at once": 1}
    tried = {"draws": config.sizes, "batch size": config.batches, "images at once": config.together}
    rows = {ONE_STEP: methods(config.chains)[ONE_STEP], "MDEQ-5A": StandardSampler(solver=Solver(steps=5))}
    noisy, runners = noisy_images(model, images, sigma, max(config.together)), {}
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


def engine_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns measured, ``whole`` and ``bare`` (median seconds), the median ``ratio`` of two that ran one after
    the other, the ``least`` and ``most``, and the ``target``."""
    pairs = runs.pivot(index=["measured", "repeat"], columns="side", values="seconds")
    pairs["ratio"] = pairs["whole"] / pairs["bare"]
    found = pairs.groupby("measured")
    table = found[["whole", "bare", "ratio"]].median()
    table = table.assign(least=found["ratio"].min(), most=found["ratio"].max()).loc[runs["measured"].unique()].reset_index()
    return table.assign(target=[TARGETS[name.rpartition(", ")[0]] for name in table["measured"]])


def networks_table(runs: pd.DataFrame, votes: int) -> pd.DataFrame:
    """A line a network: million multiply-adds a vote, median votes a second, and seconds as a multiple of the amortized DEQ's
    (the median over the turns)."""
    seconds = runs.pivot(index="repeat", columns="measured", values="seconds")
    amortized = next(name for name in seconds if name.startswith(ONE_STEP))
    found = {"million multiply-adds": runs.groupby("measured", sort=False)["macs"].first() / 1e6}
    found |= {
        "votes a second": votes / seconds.median(),
        "seconds, amortized = 1": seconds.div(seconds[amortized], axis=0).median(),
    }
    return pd.DataFrame(found).loc[runs["measured"].unique()].reset_index()


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
        f"passes; noise on the grid against plain noise in single precision; f of MDEQ-SMALL as trained ({kinds}) against f "
        "as loaded, one batch (on a CPU).",
        f"Votes on {config.batch_size} draws of one 32x32 picture, noise included: the shipped DEQ of CIFAR-10, and plain "
        f"networks with random weights; {config.engine_repeats} turns.",
        f"Median seconds for 1,000 draws; where not varied, {usual}.",
        f"Most MiB that a process held, torch included, before and after a batch of {config.batch_size} votes of {STANDARD}.",
    ]
    tables = [methods_table(found["methods"], STANDARD), engine_table(found["engine"])]
    tables += [networks_table(found["networks"], config.batch_size), scaling_table(found["scaling"]), found["memory"]]
    where = "{hardware}; Python {python}, torch {torch}.".format(**machine.describe(device))
    return "\n\n".join([*(f"{caption}\n\n{markdown(table)}" for caption, table in zip(captions, tables)), where])


def number(given: str) -> int | float:
    """What stands on the command line. Raises ValueError."""
    try:
        return int(given)
    except ValueError:
        return float(given)


def _options(arguments: list[str] | None) -> tuple[Bench, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m study.bench", description=__doc__.splitlines()[0])
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
    try:
        config, given = _options(arguments)
    except params_file.ParameterError as error:
        sys.exit(str(error))
    device, deqs = machine.prepare_device(config.threads), {}
    try:
        layout = Layout(given.profile)
        images = Dataset.load(layout.dataset("digits")).test
        for sigma in config.levels:
            run = f"small-{round(100 * sigma):03}"
            checkpoint = layout.model(run)
            deqs[sigma] = models.load(checkpoint, device, fitted=layout.starts(run))
        given.out.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before all is measured
    except OSError as error:
        sys.exit(str(error))
    last = deqs[sigma], images, sigma, config
    found = {
        "memory": measure_memory(checkpoint, config),
        "methods": time_methods(deqs, images, methods(config.chains), STANDARD, config),
        "engine": time_engine(*last),
        "networks": time_networks(config, device),
        "scaling": time_scaling(*last),
    }
    for name, table in found.items():
        table.to_csv(given.out / f"{name}.csv", index=False)
    text = report(found, config, device)
    (given.out / "tables.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    restart_with_kept_memory("study.bench")
    main()

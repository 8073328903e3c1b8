"""The engine under the stages: tasks that each make one result, on this machine's processors or a cluster's.

A task is a function of its arguments alone, and its result is written at once or not at all: recovery means to compute what is
missing. Without an address tasks run in worker processes of this machine, one a core, or one a GPU; with Dask's own variable
``DASK_SCHEDULER_ADDRESS`` on the workers of that cluster, which must share this folder.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from srs.common import machine
from srs.common.resume import fingerprint
from srs.common.settings import Section
from study.common import code, params_file
from study.common.layout import Layout
from study.common.memory import keep_memory

#: The code that this process runs, as it was when it started: a cluster's workers may be older.
CODE = fingerprint([], [], sorted([*(code.ROOT / "srs").rglob("*.py"), *(code.ROOT / "study").rglob("*.py")]))

#: Of Dask's LocalCluster. Without a dashboard, and its port for HTTP any: others have clusters on this machine, too.
LOCAL = {
    "threads_per_worker": 1,
    "memory_limit": 0,
    "dashboard_address": None,
    "scheduler_kwargs": {"dashboard_address": ":0"},
}
#: A worker that does not answer is stopped, or starved by others: its task is not started anew while it lives.
PATIENT = {"distributed.scheduler.worker-ttl": None}
LOOK = 5.0  # seconds between two looks at what workers have finished


class Machine(Section):
    """How the work is spread, which changes no result: ``workers`` (None: one a core, or one a GPU), each with so many
    ``threads`` of the CPU (None: torch's choice); at most ``batch_size`` rows are computed at once; trainings are saved every
    ``checkpoint_seconds``."""

    workers: int | None = Field(None, ge=1)
    threads: int | None = Field(1, ge=1)
    batch_size: int = Field(800, ge=1, le=1_000_000)
    checkpoint_seconds: float = Field(20.0, gt=0)

    @classmethod
    def of_params(cls) -> "Machine":
        """The section ``machine`` of params.yaml, which no stage tracks."""
        return cls(**params_file.read().get("machine", {}))


@dataclass(frozen=True)
class Task:
    """``compute(out, **arguments)`` makes the result ``out``, a file or a folder, and returns arrays or JSON-able values to be
    kept apart from it in ``record`` (.npz), such as seconds. ``origin``: the fingerprint of all that the result depends on; it
    goes to the record, too, and a task whose record has it is done. ``weight``: its share of the progress. ``alone``: it starts
    processes itself, for which workers would leave no room: it is done by who asks, before all that are spread. ``spent``:
    files by which a killed task goes on, of no use once its record is written."""

    out: Path
    record: Path
    origin: str
    compute: Callable[..., dict]
    arguments: dict = field(repr=False)
    weight: int = 1
    alone: bool = False
    spent: Sequence[Path] = ()

    @property
    def done(self) -> bool:
        return self.out.exists() and read_record(self.record).get("origin") == self.origin

    def perform(self) -> int:
        """Compute the result, unless it is there; returns the weight."""
        if not self.done:
            self.record.unlink(missing_ok=True)
            with replacing(self.out) as partial:
                found = self.compute(partial, **self.arguments)
            _write_record(self.record, found | {"origin": self.origin})
        self.tidy()
        return self.weight

    def tidy(self) -> None:
        """Remove what is ``spent``."""
        for path in self.spent:
            path.unlink(missing_ok=True)


def compute(jobs: Sequence[Sequence[Task]], unit: str = "task", settings: Machine | None = None) -> None:
    """Compute whatever is missing of ``jobs``, each of which is some tasks for one worker, one after the other. Raises what a
    task raises."""
    settings = settings or Machine.of_params()
    left = [[task for task in job if not task.done] for job in jobs]
    for task in (task for job in jobs for task in job if task.spent and task.done):  # killed right after its record
        task.tidy()
    total, rest = (sum(task.weight for job in some for task in job) for some in (jobs, left))
    with tqdm(total=total, initial=total - rest, unit=unit, mininterval=2, smoothing=0) as bar:
        for weight in _performed([job for job in left if job], settings):
            bar.update(weight)


def _performed(jobs: list[list[Task]], settings: Machine) -> Iterator[int]:
    """The weight of each task that is done: in this process where it must be alone, or one worker is enough, or asked for."""
    yield from (task.perform() for job in jobs if _alone(job) for task in job)
    jobs = [job for job in jobs if not _alone(job)]
    if not jobs:  # nor is a cluster asked
        return
    address = None if settings.workers == 1 else os.environ.get("DASK_SCHEDULER_ADDRESS")
    count = min(len(jobs), settings.workers or _processors())
    if count <= 1 and not address:
        yield from (task.perform() for job in jobs for task in job)
        return
    with workers(count, address) as pool:
        left = {pool.submit(_perform, job, CODE): list(job) for job in jobs}
        while left:
            for future in wait(left, LOOK, FIRST_COMPLETED).done:
                future.result()
                yield from (task.weight for task in left.pop(future))
            for job in left.values():  # which a worker does in its order, and may take an hour to end
                while job and job[0].done:
                    yield job.pop(0).weight


def _alone(job: list[Task]) -> bool:
    return any(task.alone for task in job)


def _perform(job: Sequence[Task], expected: str) -> None:
    """A job in a worker. Raises RuntimeError in one that was started with other code."""
    if expected != CODE:
        raise RuntimeError("a worker runs other code of srs and study than the one who asks: start the workers anew")
    for task in job:
        task.perform()


@contextmanager
def workers(count: int, address: str | None = None) -> Iterator[Executor]:
    """``count`` worker processes of this machine or, where the ``address`` of a scheduler is given, its workers. What is left
    undone at the end is cancelled."""
    import dask
    from distributed import Client, LocalCluster  # a second to import, which little work need not wait for

    keep_memory()  # else Dask has local workers give it back
    local = LOCAL | {"n_workers": count}
    with dask.config.set(PATIENT), nullcontext(address) if address else LocalCluster(**local) as place, Client(place) as client:
        pool = client.get_executor()
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)


def device(settings: Machine) -> str:
    """Where a task computes, prepared: its worker's GPU, where there are GPUs, else the CPU."""
    found = machine.prepare_device(settings.threads)
    if found == "cpu" or "distributed" not in sys.modules:
        return found
    from distributed import get_worker

    try:
        number = get_worker().name  # 0, 1, ... of local workers; a cluster's have a GPU each, and other names
    except ValueError:
        return found
    return f"{found}:{number % torch.cuda.device_count()}" if isinstance(number, int) else found


def tidy(layout: Layout, stage: str, jobs: Sequence[Sequence[Task]]) -> None:
    """Remove what lies in a stage's folders and is no result, nor record, of ``jobs``: of settings that are no more."""
    kept = {path for job in jobs for task in job for path in (task.out, task.record)}
    for folder in (layout.runs / stage, layout.runs / "timings" / stage):
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.is_file() and kept.isdisjoint({path, *path.parents}):
                path.unlink()


def read_record(path: Path) -> dict:
    """What a task wrote apart from its result; nothing where there is no record, or a torn one."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files if name != "values"} | json.loads(str(arrays["values"]))
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        return {}


def _write_record(path: Path, found: dict) -> None:
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    values = json.dumps({name: value for name, value in found.items() if name not in arrays})
    write_arrays(path, arrays | {"values": np.array(values)})


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays as one .npz, written at once or not at all; equal arrays give equal bytes."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to make a file or a folder that takes the place of ``path`` once it is whole."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")  # another may be at it, elsewhere
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if partial.is_dir():  # which takes the place of nothing that is there
            _remove(path)
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _processors() -> int:
    return torch.cuda.device_count() or machine.usable_cores()

"""The engine: what is missing is computed, once; whatever dies meanwhile, the next run ends with the same bytes."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import command_of, kill_when, wait_until
from squares import fail, square, square_once_asked, squares

from study.common import engine
from study.common.engine import Machine, Task, compute, read_record, tidy
from study.common.layout import Layout
from study.common.memory import KEEP_MEMORY

pytestmark = pytest.mark.usefixtures("quick_workers")
HERE = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])}


def _results(root: Path) -> dict:
    return {path.name: path.read_bytes() for path in sorted((root / "runs/p/squares").glob("*"))}


def _computed(root: Path) -> list[int]:
    return [int(line) for line in (root / "log").read_text().split()]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_missing_is_computed_once(tmp_path, workers):
    jobs, machine = squares(tmp_path), Machine(workers=workers)
    jobs[0] = [replace(jobs[0][0], alone=True)]
    compute(jobs[1:3], settings=machine)
    compute(jobs, settings=machine)
    assert sorted(_computed(tmp_path)) == list(range(6))
    assert read_record(jobs[0][0].record)["worker"] == os.getpid()
    assert [int(np.load(job[0].out)["square"]) for job in jobs] == [n * n for n in range(6)]
    assert all(job[0].done for job in jobs)
    if workers == 2:
        assert read_record(jobs[5][0].record)["worker"] != os.getpid()
    jobs[3] = [Task(*(getattr(jobs[3][0], name) for name in ("out", "record")), "changed", square, jobs[3][0].arguments)]
    jobs[4][0].record.write_bytes(b"torn")
    compute(jobs, settings=machine)
    assert sorted(_computed(tmp_path)) == [0, 1, 2, 3, 3, 4, 4, 5]


def test_progress_is_told_while_a_job_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LOOK", 0.05)
    first, *rest = (task for job in squares(tmp_path) for task in job)
    held = [replace(task, compute=square_once_asked, arguments=task.arguments | {"asked": tmp_path / "asked"}) for task in rest]
    told = []
    for weight in engine._performed([[first, *held[:2]], held[2:]], Machine(workers=2)):
        (tmp_path / "asked").touch()  # before that no job can end
        told.append(weight)
    assert sum(told) == sum(task.weight for task in (first, *rest)) and len(told) == 6


def test_what_a_killed_task_went_on_by_goes_once_its_record_is_written(tmp_path, monkeypatch):
    (tmp_path / "resumed").touch()
    task = replace(squares(tmp_path, 1)[0][0], spent=[tmp_path / "resumed"])
    with monkeypatch.context() as patched:
        patched.setattr(engine.Task, "tidy", Mock(side_effect=KeyboardInterrupt))  # killed right after its record
        with pytest.raises(KeyboardInterrupt):
            task.perform()
    assert task.done and (tmp_path / "resumed").exists()
    compute([[task]], settings=Machine(workers=1))
    assert not (tmp_path / "resumed").exists()


def test_two_may_write_one_record_at_once(tmp_path, monkeypatch):
    path, replaced = tmp_path / "x.npz", os.replace

    def beside_another(partial, target):
        monkeypatch.setattr(os, "replace", replaced)
        engine.write_arrays(path, {"a": np.arange(3)})
        replaced(partial, target)

    monkeypatch.setattr(os, "replace", beside_another)
    engine.write_arrays(path, {"a": np.arange(3)})
    assert [path] == list(tmp_path.iterdir())
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        engine.write_arrays(path, {"a": np.arange(4)})
    assert [path] == list(tmp_path.iterdir())


def test_a_failing_task_is_told_and_leaves_no_result(tmp_path):
    bad = Task(tmp_path / "bad", tmp_path / "record.npz", "x", fail, {})
    for workers in (1, 2):
        with pytest.raises(ValueError, match="a task that fails"):
            compute([*squares(tmp_path, 1), [bad]], settings=Machine(workers=workers))
        assert not bad.out.exists() and not bad.done


def test_equal_results_have_equal_bytes_whoever_computes_them(tmp_path):
    for workers in (1, 2):
        compute(squares(tmp_path / str(workers)), settings=Machine(workers=workers))
    assert _results(tmp_path / "1") == _results(tmp_path / "2")


def test_what_is_no_result_any_more_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = squares(Path())
    compute(jobs, settings=Machine(workers=1))
    Path("runs/p/squares/old/deep").mkdir(parents=True)
    Path("runs/p/squares/old/deep/a.npz").touch()
    tidy(Layout("p"), "squares", jobs[:2])
    assert sorted(path.name for path in Path("runs/p").rglob("*.npz")) == ["0.npz", "0.npz", "1.npz", "1.npz"]
    assert not Path("runs/p/squares/old").exists()


_RUN = """
from squares import Path, squares
from study.common.engine import Machine, compute
compute(squares(Path({root!r}), 8, 0.5), settings=Machine(workers=2))
"""


def _workers(root: Path) -> list[int]:
    """The worker processes of a run into ``root`` that have made something and are alive."""
    found = {read_record(job[0].record).get("worker", 0) for job in squares(root, 8)}
    return [pid for pid in found if re.search(rb"dask worker|spawn_main", command_of(pid))]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux who is at work")
@pytest.mark.parametrize("who", ["client", "worker"])
def test_killed_at_work_the_next_run_ends_alike(tmp_path, who):
    undisturbed, root = tmp_path / "a", tmp_path / "b"
    compute(squares(undisturbed, 8), settings=Machine(workers=1))
    command = [sys.executable, "-c", _RUN.format(root=str(root))]
    some_are_done = lambda: len(_workers(root)) == 2  # noqa: E731
    if who == "client":
        kill_when(some_are_done, command, env=HERE)
        wait_until(lambda: not _workers(root))  # whoever is left ends by himself
        assert len(set(_computed(root))) < 8
    else:
        process = subprocess.Popen(command, env=HERE, stderr=subprocess.DEVNULL)
        wait_until(some_are_done)
        os.kill(max(_workers(root)), signal.SIGKILL)
        assert process.wait(600) == 0 and set(_computed(root)) == set(range(8))  # the run itself went on
    compute(squares(root, 8), settings=Machine(workers=2))
    assert _results(root) == _results(undisturbed)
    computed = _computed(root)
    assert set(computed) == set(range(8)) and len(computed) <= 8 + 2  # twice at most what was under way


def test_a_cluster_works_from_its_address(tmp_path, monkeypatch):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, **engine.LOCAL) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        compute(squares(tmp_path, 3), settings=Machine())
        monkeypatch.setattr(engine, "CODE", "of an edit after the workers were started")
        with pytest.raises(RuntimeError, match="a worker runs other code"):
            compute(squares(tmp_path / "other", 3), settings=Machine())
    compute(squares(tmp_path, 3), settings=Machine())  # nothing is left: the cluster, which is gone, is not asked
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS")
    jobs = squares(tmp_path, 3)
    assert all(job[0].done for job in jobs) and read_record(jobs[0][0].record)["worker"] != os.getpid()


def test_the_machine_is_a_section_of_params_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("machine: {workers: 3, batch_size: 5}\n")
    assert Machine.of_params() == Machine(workers=3, batch_size=5)
    Path("params.yaml").write_text("name: x\n")
    assert Machine.of_params() == Machine() and engine.device(Machine()) == "cpu"


def test_each_local_worker_has_a_gpu_of_its_own(monkeypatch):
    import distributed

    monkeypatch.setattr(engine.machine, "prepare_device", lambda threads: "cuda")
    monkeypatch.setattr(engine.torch.cuda, "device_count", lambda: 2)
    assert engine._processors() == 2
    for name, where in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0"), ("tcp://one", "cuda")):
        monkeypatch.setattr(distributed, "get_worker", lambda name=name: SimpleNamespace(name=name))
        assert engine.device(Machine()) == where


def test_two_engines_work_side_by_side_on_one_machine():
    """Warnings are errors here: of a port that the other has."""
    with engine.workers(1) as one, engine.workers(1) as other:
        assert [pool.submit(abs, -1).result() for pool in (one, other)] == [1, 1]


def test_local_workers_keep_memory(monkeypatch):
    """Dask would have them hand it back, which triples the time of votes."""
    import dask

    for name in KEEP_MEMORY:
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}), engine.workers(1) as pool:
        found = {name: pool.submit(os.getenv, name).result() for name in KEEP_MEMORY}
    assert found == KEEP_MEMORY
    told = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    assert all(f"{name}={value}" in told for name, value in KEEP_MEMORY.items())  # for workers of a cluster


def test_a_worker_that_is_stopped_for_long_goes_on():
    """As on a machine that others starve: Dask would start it anew, and with it its task."""
    import dask

    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}), engine.workers(1) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGSTOP)
        time.sleep(9)  # Dask waits for ten heartbeats, whatever it is told
        os.kill(worker, signal.SIGCONT)
        assert pool.submit(os.getpid).result() == worker

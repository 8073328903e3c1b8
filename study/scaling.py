"""What the engine costs and how it scales: one worker against two, a task's overhead, simulated clusters.

    python -m study.scaling [--seconds S] [--pairs P]

The first needs the networks of params.yaml (`dvc repro start`) and a quiet machine. Prints Markdown tables; keeps nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from study.bench import markdown
from study.common import params_file
from study.common.engine import LOCAL, Machine, Task, compute, workers, write_arrays
from study.common.layout import Layout
from study.common.memory import restart_with_kept_memory
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans

SECTIONS = ("runs", "models", "votes", "rows", "draws", "samplers")
WORKERS = (4, 16, 64)  # of simulated clusters
EACH = 12  # jobs of theirs
JOBS = 8  # that votes are split into


def strong_scaling(values: dict, seconds: float, pairs: int) -> pd.DataFrame:
    """Votes that take one worker about ``seconds``, cast by one and by two in turns: a line a pair, the seconds of each and
    their ratio. They are the reference's of the first run in params.yaml (``values``), whose network must be there (else
    FileNotFoundError)."""
    first, *_ = values["votes"]["groups"]
    groups = {first: values["votes"]["groups"][first][:1]}
    plans = plans_of(values | {"votes": values["votes"] | {"groups": groups}})
    task = vote_jobs(plans, Layout(values["name"]), Machine())[0][0]  # a plan's reference comes first
    size = len(task.arguments["draws"][0])
    with tempfile.TemporaryDirectory() as folder:
        timed = _seconds(Path(folder), [[_votes(task, Path(folder), 0, size)]], 1)
        count = max(size, round(size * seconds / JOBS / timed))
        found = []
        for _ in range(pairs):
            line = {}
            for number in (1, 2):
                jobs = [[_votes(task, Path(folder), job, count)] for job in range(JOBS)]
                line[f"{number} worker{'s' * (number > 1)}"] = _seconds(Path(folder), jobs, number)
            found.append(line)
    table = pd.DataFrame(found)
    return table.assign(ratio=table["2 workers"] / table["1 worker"])


def _votes(task: Task, folder: Path, job: int, count: int) -> Task:
    """The votes of a task on the first ``count`` draws of one of its images."""
    indices, draws = task.arguments["indices"][:1] + job, [np.arange(count)]
    arguments = task.arguments | {"indices": indices, "draws": draws}
    return replace(task, out=folder / f"{job}.npz", record=folder / f"{job}.record.npz", arguments=arguments)


def _seconds(folder: Path, jobs: list[list[Task]], number: int) -> float:
    for path in folder.glob("*.npz"):
        path.unlink()
    began = time.perf_counter()
    compute(jobs, settings=Machine(workers=number))
    return time.perf_counter() - began


def _nothing(out: Path) -> dict:
    write_arrays(out, {})
    return {}


def overhead(count: int = 300) -> float:
    """Seconds that a job of one task costs, beside its work, in two workers, start-up left out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def tasks(some: range) -> list[Task]:
            return [Task(folder / f"{n}.npz", folder / f"{n}.record.npz", "", _nothing, {}) for n in some]

        with workers(2) as pool:
            list(pool.map(_perform, tasks(range(10))))
            began = time.perf_counter()
            list(pool.map(_perform, tasks(range(10, 10 + count))))
            return 2 * (time.perf_counter() - began) / count


def _perform(task: Task) -> int:
    return task.perform()


def job_lengths(plans: VotePlans) -> np.ndarray:
    """Evaluations of f of each vote job of a profile, the longest first; solvers that stop are taken at their most steps."""
    lengths = []
    for plan in plans.plans.values():
        draws = plan.draws(np.arange(plan.images))
        cost = {sampler: getattr(getattr(sampler, "solver", None), "steps", 1) for sampler in draws}
        lengths += [sum(cost[s] * len(draws[s][p]) for s in draws for p in block) for block in plan.blocks()]
    return np.sort(np.array(lengths, float))[::-1]


def _asleep(seconds: float, job: int) -> int:
    time.sleep(seconds)
    return job  # jobs of one length would be taken for one


def simulated(lengths: np.ndarray, number: int, seconds: float) -> dict:
    """A scheduler and ``number`` workers in this process, whose jobs sleep: EACH a worker, evenly spaced among ``lengths``,
    scaled so that ideal workers take ``seconds``. Makespan, and ideal over makespan."""
    from distributed import Client, LocalCluster

    lengths = lengths[np.linspace(0, len(lengths) - 1, min(len(lengths), EACH * number)).astype(int)]
    lengths = lengths * (seconds * number / lengths.sum())
    ideal = max(lengths.sum() / number, lengths.max())
    with LocalCluster(n_workers=number, processes=False, **LOCAL) as cluster, Client(cluster) as client:
        pool = client.get_executor()
        began = time.perf_counter()
        list(pool.map(_asleep, lengths.tolist(), range(len(lengths))))
        makespan = time.perf_counter() - began
    return {"workers": number, "jobs": len(lengths), "ideal": ideal, "makespan": makespan, "ideal / makespan": ideal / makespan}


def plans_of(values: dict) -> VotePlans:
    return VotePlans(**{name: values.get(name) or {} for name in SECTIONS})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m study.scaling", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=24.0, help="of the votes, and of each simulation (default: %(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=3, help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    os.environ.pop("DASK_SCHEDULER_ADDRESS", None)  # it is this machine that is measured
    try:
        votes = strong_scaling(params_file.read(), given.seconds, given.pairs)
    except (FileNotFoundError, params_file.ParameterError) as error:
        sys.exit(str(error))
    paper = job_lengths(plans_of(params_file.read("profiles/paper.yaml")))
    spent = overhead()
    print(f"Votes of about {given.seconds:g} s, in turns; median ratio {votes['ratio'].median():.2f}.\n\n{markdown(votes)}\n")
    print(f"A task costs {1000 * spent:.1f} ms beside its work: {spent / 2:.1%} of one of 2 s.\n")
    clusters = pd.DataFrame([simulated(paper, number, given.seconds) for number in WORKERS])
    print(f"The vote jobs of the profile `paper`, asleep, in {given.seconds:g} s.\n\n{markdown(clusters)}")


if __name__ == "__main__":
    restart_with_kept_memory("study.scaling")
    main()

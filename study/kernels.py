"""Cast a profile's votes again with other kernels of the processor, and say what changes:

    python -m study.kernels [RUN ...] [--isa SSE41] [--capability default] [--threads 2]

--isa is ONEDNN_MAX_CPU_ISA, of convolutions and products; --capability is ATEN_CPU_CAPABILITY, of everything else in torch:
other instructions, other order of sums, as on another processor. The votes to compare with are those of `dvc repro`; those cast
again lie in runs/kernels/, so that a killed call goes on. Prints Markdown.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from srs.certificates.certify import Confidence
from srs.common import machine
from srs.data.datasets import Dataset
from srs.votes.samplers import UNDECIDED
from study import params
from study.arithmetic import count_changes
from study.common import params_file
from study.common.engine import Machine, Task, compute
from study.common.layout import Layout
from study.common.memory import KEEP_MEMORY
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans
from study.votes.store import VoteStore, open_store
from study.votes.table import certificate_table


def jobs_again(plans: VotePlans, layout: Layout, settings: Machine, folder: Path) -> list[list[Task]]:
    """All votes of a profile, to be cast into ``folder``. Raises FileNotFoundError where the profile has not cast them all."""

    def moved(task: Task) -> Task:
        if not task.out.is_file():
            raise FileNotFoundError(f"{task.out} is missing")
        out, record = (folder / path.relative_to(layout.runs) for path in (task.out, task.record))
        return replace(task, out=out, record=record)

    return [[moved(task) for task in job] for job in vote_jobs(plans, layout, settings)]


def changes(before: VoteStore, after: VoteStore) -> pd.DataFrame:
    """One line a sampler, by the first row that it casts: ``votes``; for another class in the two (``different``), the largest
    ``margin`` among those in the first; decided in only one (``only_before``, ``only_after``)."""
    plan, found = before.plan, []
    rows = {plan.sampler(name, row): row for name, group in reversed(plan.groups.items()) for row in reversed(group.samplers)}
    for sampler, draws in before.draws.items():
        old, new = (
            [store.of(sampler, position, numbers) for position, numbers in enumerate(draws) if len(numbers)]
            for store in (before, after)
        )
        classes = [np.concatenate([votes.classes for votes in cast]) for cast in (old, new)]
        different = (classes[0] != classes[1]) & (np.array(classes) != UNDECIDED).all(axis=0)
        margins = np.concatenate([votes.margins for votes in old])[different]
        row = {"row": rows.get(sampler, "reference"), "margin": float(margins.max(initial=0))}
        found.append(row | count_changes(*classes))
    return pd.DataFrame(found, columns=["row", "votes", "different", "margin", "only_before", "only_after"])


def changed_certificates(
    before: VoteStore, after: VoteStore, labels: np.ndarray, confidence: Confidence
) -> tuple[pd.DataFrame, int]:
    """One line a certificate of another class or radius, with both; and how many there are."""
    place = ["group", "method", "index"]
    tables = [certificate_table(store, labels, confidence)[[*place, "prediction", "radius"]] for store in (before, after)]
    both = tables[0].merge(tables[1], on=place, suffixes=(" before", " after"))
    moved = (both["prediction before"] != both["prediction after"]) | (both["radius before"] != both["radius after"])
    return both[moved].reset_index(drop=True), len(both)


def report(plans: VotePlans, layout: Layout, folder: Path, confidence: Confidence) -> str:
    """What changed of every run, as Markdown."""
    votes, certificates, total = [], [], 0
    for key in plans.plans:
        stores = [open_store(plans, layout, key, within) for within in (layout.runs, folder)]
        labels = Dataset.load(layout.dataset(plans.data(key))).test.labels
        votes.append(changes(*stores).assign(run=key))
        changed, count = changed_certificates(*stores, labels, confidence)
        certificates.append(changed.assign(run=key))
        total += count
    table, changed = pd.concat(votes, ignore_index=True), pd.concat(certificates, ignore_index=True)
    sums = table[["votes", "different", "only_before", "only_after"]].sum()
    told = [
        f"{sums['votes']:,} votes: {sums['different']:,} for another class ({sums['different'] / sums['votes']:.1e}); "
        f"{sums['only_before']:,} decided only before, {sums['only_after']:,} only after. "
        f"{len(changed):,} of {total:,} certificates differ.",
        _markdown(table[["run", *table.columns.drop("run")]]),
    ]
    return "\n\n".join([*told, _markdown(changed[["run", *changed.columns.drop("run")]])] if len(changed) else told)


def _markdown(table: pd.DataFrame) -> str:
    return table.astype(str).to_markdown(index=False, disable_numparse=True, stralign=None)  # as they are, no blanks added


def restart_with(environment: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Start anew in that ``environment``, which torch reads when it is imported, unless this process is in it already."""
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, "-m", "study.kernels", *arguments], {**os.environ, **environment})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="networks; all, unless given")
    parser.add_argument("--isa", default="SSE41", help="the most that oneDNN may use: SSE41, AVX, AVX2, AVX512_CORE, ...")
    parser.add_argument("--capability", default="default", help="what torch's own kernels use: default, avx2, avx512")
    parser.add_argument("--threads", type=int, default=2, help="of each worker")
    given = parser.parse_args()
    environment = {"ONEDNN_MAX_CPU_ISA": given.isa, "ATEN_CPU_CAPABILITY": given.capability}
    os.environ.pop("DASK_SCHEDULER_ADDRESS", None)  # a cluster's workers would have kernels of their own
    restart_with(KEEP_MEMORY | environment | {"CUDA_VISIBLE_DEVICES": ""}, sys.argv[1:])
    try:
        study = params.load()
    except params_file.ParameterError as error:
        sys.exit(str(error))
    layout, groups = Layout(study.name), study.votes.groups
    for key in given.runs:
        if key not in groups:
            sys.exit(f"RUN = {key!r} is unknown: choose from {', '.join(groups)}")
    chosen = {key: groups[key] for key in given.runs or groups}
    plans = study.model_copy(update={"votes": study.votes.model_copy(update={"groups": chosen})}).plans
    settings = study.machine.model_copy(update={"threads": given.threads})
    folder = Path("runs/kernels") / study.name / f"{given.isa}-{given.capability}-{given.threads}"
    try:
        compute(jobs_again(plans, layout, settings, folder), "vote", settings)
        told = report(plans, layout, folder, study.certificates)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"cast the profile's votes first (dvc repro vote): {error}")
    machine.prepare_device(given.threads)
    print("Again: {hardware}, {kernels} kernels, torch {torch}.\n".format(**machine.describe()))
    print(told)


if __name__ == "__main__":
    main()

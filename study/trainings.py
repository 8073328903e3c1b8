"""What makes trainings alike: a network trained under several seeds, as it is and with changes, looked at on held-out images.

    python -m study.trainings [RUN] [--seeds 8] [--change '{jacobian_frequency: 0.2}' ...]

RUN is a run of params.yaml, trained from scratch, whose data are prepared (`dvc repro prepare`); a change replaces fields of
its schedule. Prints a Markdown table: noisy accuracy after 1, 3, 5 and 30 steps of Anderson's method, mean and deviation over
the seeds. Single trainings go to runs/scratch/trainings, so that what is trained already is not trained again.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import yaml
from pydantic import ValidationError

from srs import models
from srs.common.resume import fingerprint
from srs.common.settings import faults
from srs.data.datasets import DataConfig, Dataset
from srs.deq.solvers import Solver
from srs.training.train import Training, train
from srs.votes.samplers import StandardSampler
from study.common import code, engine
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.common.runs import Model
from study.params import PLAIN, ParameterError, Study, family, load
from study.starts import held_out
from study.votes.plan import known

STEPS = (1, 3, 5, 30)
COPIES = 20  # noisy ones of each held-out image
AS_IT_IS = "as it is"


def jobs_of(study: Study, run: str, changes: list[dict], seeds: int, settings: Machine) -> list[list[Task]]:
    """A job for each change (none is one) and seed from 0 on. Raises ValueError for a run or change that cannot be."""
    chosen = study.runs[known("RUN", run, study.runs)]
    first = chosen.base or chosen.pretrained
    if first is not None or family(study.plans, run) in PLAIN:
        raise ValueError(
            f"RUN = {run!r} {'is a ResNet' if first is None else f'goes on from {first}'}: a DEQ trained from scratch is wanted"
        )
    for change in changes:
        if "seed" in change:
            raise ValueError(f"--change seed = {change['seed']!r} must go: each change is trained under all of --seeds")
    layout, scratch, jobs = Layout(study.name), Layout("scratch"), []
    spec = study.models[chosen.model]
    augmentation, rests_on = study.data[spec.data], list(code.of_modules("srs.training.train", "study.trainings"))
    for seed in range(seeds):
        for change in ({}, *changes):
            try:
                config = Training(**chosen.schedule(study.training) | change | {"seed": seed})
            except ValidationError as error:
                raise ValueError("; ".join(f"--change {fault}" for fault in faults(error, "as a whole"))) from None
            if config.start != "initial":
                raise ValueError(f"--change start = {config.start!r} must go: there are no starts to train with")
            parameters = [spec.model_dump(), config.model_dump(), augmentation.model_dump()]
            origin = fingerprint([layout.dataset(spec.data)], parameters, rests_on)
            arguments = {"spec": spec, "config": config, "augmentation": augmentation, "settings": settings}
            resumed = scratch.work / f"trainings.{origin}.pt"
            arguments |= {"data": layout.dataset(spec.data), "resumed": resumed}
            out, record = scratch.runs / "trainings" / f"{origin}.csv", scratch.record("trainings", origin)
            jobs.append([Task(out, record, origin, measure, arguments, alone=config.processes > 1, spent=[resumed])])
    return jobs


def told(change: dict) -> str:
    """A change in words."""
    return ", ".join(f"{name} = {value}" for name, value in change.items()) or AS_IT_IS


def measure(
    out: Path, *, spec: Model, config: Training, augmentation: DataConfig, data: Path, resumed: Path, settings: Machine
) -> dict:
    """Train one network, or go on from a killed call's ``resumed`` state; writes its noisy accuracy on held-out images by steps
    of the solver, as CSV."""
    dataset, device = Dataset.load(data), engine.device(settings)
    trained = train(
        *(spec.preset, spec.overrides, dataset, augmentation, config, resumed, device),
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    model = models.restore(trained["model"]).eval()
    samplers = {f"{steps}": StandardSampler(solver=Solver(steps=steps)) for steps in STEPS}
    reference = samplers[f"{STEPS[-1]}"]
    found = held_out(model, dataset.validation, config.sigma, samplers, reference, COPIES).rename(columns={"row": "steps"})
    found.assign(seed=config.seed).to_csv(out, index=False)
    return {"seconds": trained["seconds"]}


def table(jobs: list[list[Task]], changes: list[dict]) -> pd.DataFrame:
    """Of :func:`jobs_of` these changes: mean ± standard deviation over seeds in percent, a line a change, a column a number of
    steps; mean seconds."""
    names = [told(change) for change in ({}, *changes)] * (len(jobs) // (1 + len(changes)))
    found = pd.concat([pd.read_csv(job[0].out).assign(change=name) for name, job in zip(names, jobs)])
    accuracy = found.groupby(["change", "steps"], sort=False)["accuracy"].agg(["mean", "std"]) * 100
    shown = accuracy.apply(lambda cell: f"{cell['mean']:.1f} ± {cell['std']:.1f}", axis=1).unstack()[list(STEPS)]
    shown.columns = [f"{steps} step{'s' * (steps > 1)}" for steps in STEPS]
    seconds = pd.Series([engine.read_record(job[0].record)["seconds"] for job in jobs], names)
    return shown.assign(seconds=seconds.groupby(level=0).mean().map("{:.0f}".format))


def _change(text: str) -> object:
    """One that is given on the command line."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"is not YAML: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m study.trainings", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="a run of params.yaml; the size small's main one, unless told")
    parser.add_argument("--seeds", type=int, default=8, help="2 or more")
    parser.add_argument("--change", action="append", default=[], type=_change, metavar="{FIELD: VALUE}")
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: a spread needs 2 or more")
    if wrong := [change for change in given.change if not isinstance(change, dict)]:
        parser.error(f"--change {json.dumps(wrong[0])}: fields of a schedule are wanted, such as '{{epochs: 30}}'")
    try:
        study = load()
        settings = Machine.of_params()
        jobs = jobs_of(study, given.run or study.report.small.main, given.change, given.seeds, settings)
        engine.compute(jobs, "training", settings)
    except (ParameterError, ValueError) as error:
        sys.exit(str(error))
    print(table(jobs, given.change).to_markdown())


if __name__ == "__main__":
    main()

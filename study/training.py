"""Training the networks of a profile: the tasks, and what a worker does for one."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from srs import models
from srs.common import machine
from srs.common.resume import fingerprint, remove_older
from srs.common.settings import Section
from srs.data.datasets import DataConfig, Dataset
from srs.training.train import Training, train
from study.common import code, engine, snapshot
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.common.runs import Model, Run


def training_jobs(
    keys: Iterable[str], runs: dict[str, Run], networks: dict, training: dict, data: dict, layout: Layout, settings: Machine
) -> list[list[Task]]:
    """A job for each of the runs ``keys``, the longest first; ``networks`` (models), ``training`` and ``data`` are sections of
    params.yaml. A run with a base waits in the folder ``tuned`` for its base's network and starts; one that is pretrained, by
    one of ``keys``, is the same worker's, after that one, unless that is done. A published network that is asked for
    (:mod:`study.common.snapshot`) is taken as it is."""
    rests_on, asked = [*code.of_modules("srs.training.train"), Path(__file__)], snapshot.asked_for(layout)
    tasks, jobs, epochs = {}, {}, {}
    for key in sorted(keys, key=lambda key: runs[key].pretrained is not None):
        run = runs[key]
        made_by = parameters(run, networks, training, data)
        spec, config, augmentation = made_by.values()
        base = [] if run.base is None else [layout.model(run.base), layout.starts(run.base)]
        settled = [section.model_dump() for section in made_by.values()]
        if run.pretrained is not None:
            base, settled = [tasks[run.pretrained].out / "model.pt"], [*settled, tasks[run.pretrained].origin]
        inputs = [layout.dataset(spec.data), *(base if run.pretrained is None else ())]  # that may be to be trained yet
        origin = fingerprint(inputs, settled, rests_on)
        arguments = {"spec": spec, "config": config, "augmentation": augmentation, "base": base, "settings": settings}
        arguments |= {"data": layout.dataset(spec.data), "resumed": layout.work / f"{key}.{origin}.pt"}
        place, alone = (layout.runs / run.folder / key, layout.record(run.folder, key)), config.processes > 1
        task = Task(*place, origin, train_run, arguments, alone=alone, spent=[arguments["resumed"]])
        tasks[key] = snapshot.or_published(task, layout.name, asked)
        after = run.pretrained is not None and not tasks[run.pretrained].done
        jobs.setdefault(run.pretrained if after else key, []).append(tasks[key])
        epochs[key] = config.epochs
    return [jobs[key] for key in sorted(jobs, key=lambda key: -epochs[key])]


def parameters(run: Run, networks: dict, training: dict, data: dict) -> dict[str, Section]:
    """What a run's network is made by, from sections of params.yaml: its model, its schedule, how its images are augmented."""
    spec = Model(**networks[run.model])
    return {"model": spec, "training": Training(**run.schedule(training)), "data": DataConfig(**data[spec.data])}


def train_run(
    out: Path,
    *,
    spec: Model,
    config: Training,
    augmentation: DataConfig,
    data: Path,
    base: list[Path],
    resumed: Path,
    settings: Machine,
) -> dict:
    """Train one network, or go on from a killed run's ``resumed`` state; writes the folder ``out``: model.pt, history.csv, and
    starts.pt of a run that goes on from the network and starts ``base``."""
    device = engine.device(settings)
    result = train(
        *(spec.preset, spec.overrides, Dataset.load(data), augmentation, config, resumed, device),
        base=models.read(*base) if base else None,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    out.mkdir(parents=True)
    models.write_checkpoint({"model": result["model"]}, out / "model.pt")
    if "starts" in result:
        models.write_checkpoint(result["starts"], out / "starts.pt")
    pd.DataFrame(result["history"]).to_csv(out / "history.csv", index=False)
    remove_older(resumed)
    return {"train": result["seconds"], "machine": machine.describe(device)}

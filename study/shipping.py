"""Ship what the study has trained, to ``srs/checkpoints/<name>/``, by the code of a commit:

python -m study.shipping small-050 mdeq-small-cifar10-0.50 --commit 60f7454
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from srs import checkpoints, models
from srs.checkpoints import FOLDER, Card
from srs.common.resume import sha256
from srs.data.datasets import Dataset
from srs.deq.solvers import Solver
from srs.training.train import Training
from study import params
from study.common.engine import read_record
from study.common.layout import Layout
from study.reports.recompute import LARGEST, require_small
from study.starts import choose
from study.votes.rows import sampler_of


def ship(run: str, name: str, commit: str) -> Path:
    """Copy what the profile has trained to ``srs/checkpoints/<name>/``, with a card; ``commit``: of the training.

    Raises ValueError for an unknown run or a file over 25 MB, FileNotFoundError where something has not been made yet.
    """
    study = params.load()
    plans, layout = study.plans, Layout(study.name)
    if run not in plans.with_starts():
        raise ValueError(f"run = {run!r} is unknown or has no starts: choose one of {', '.join(plans.with_starts())}")
    files = [layout.model(run), layout.runs / "starts" / run / "starts.pt"]
    require_small(files, LARGEST)
    held_out = pd.read_csv(files[1].with_name("held_out.csv"))
    row = held_out.set_index("row").loc[choose(held_out, study.starts.loss)]
    spec, dataset = plans.models[plans.runs[run].model], Dataset.load(layout.dataset(plans.data(run)))
    channels, size, _ = dataset.train.shape
    record = read_record(layout.record("models", run))
    schedule, before = Training(**plans.runs[run].schedule(study.training)), plans.runs[run].pretrained
    card = Card(
        name=name,
        sigma=plans.runs[run].sigma,
        classes=dataset.classes,
        image_size=size,
        channels=channels,
        parameters=sum(p.numel() for p in models.read(files[0]).parameters()),
        sampler=sampler_of(row.name, plans.spelled, plans.votes.chains),
        reference=study.starts.solver,
        noisy_copies=study.starts.copies * len(dataset.validation),
        noisy_accuracy=round(float(row["accuracy"]), 4),
        reference_accuracy=round(float(row["accuracy"] - row["difference"]), 4),
        residual=float(f"{pd.read_csv(files[0].with_name('history.csv'))['validation_residual'].iloc[-1]:.2g}"),
        pretrained="" if before is None else _shipped_as(layout.model(before)) or before,
        commit=commit,
        hardware=record["machine"]["hardware"],
        seconds=round(record["train"]),
        images=dataset.described(),
        data=study.data[spec.data].model_dump(mode="json", exclude_none=True),
        model=spec.model_dump(mode="json", exclude_none=True),
        training=schedule.model_dump(mode="json", exclude_none=True),
        starts=study.starts.model_dump(mode="json", exclude_none=True, exclude={"candidates"}),
        sha256={file.name: sha256(file) for file in files},
    )
    page, target = _page(card, row.name), FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, target / file.name)
    (target / "card.md").write_text(page, encoding="utf-8")
    return target


def _shipped_as(model: Path) -> str | None:
    """The name under which a network has been shipped."""
    own = sha256(model)
    return next((name for name in checkpoints.names() if checkpoints.read_card(name).sha256["model.pt"] == own), None)


def _page(card: Card, row: str) -> str:
    block = yaml.safe_dump(card.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120)
    size, schedule, evaluation = f"{card.image_size}x{card.image_size}", card.training, Solver(**card.training["evaluation"])
    goes_on = f"goes on from `{card.pretrained}` (fine-tuning); " if card.pretrained else ""
    return f"""---
{block}---

# {card.name}

An MDEQ ({card.model["preset"]}, {card.parameters:,} parameters) for {len(card.classes)} classes of {size} images, trained on
images with Gaussian noise of sigma = {card.sigma:g} (pixels in [0, 1]), and the amortized starts that were fitted to it.

- **Use**: `srs.load("{card.name}")`, or `python -m srs certify PICTURE --model {card.name}`.
- **Noisy accuracy** on {card.noisy_copies:,} noisy copies of held-out training images: {card.noisy_accuracy:.1%} as deployed
  ({row}), {card.reference_accuracy:.1%} with {card.reference.steps} {card.reference.method} steps. Mean relative residual after
  {evaluation.steps} {evaluation.method} steps: {card.residual:.1e}.
- **Images**: {card.images}
- **Training**: {goes_on}{schedule["epochs"]} epochs in batches of {schedule["batch_size"]}, {card.seconds / 60:.0f} minutes on
  {card.hardware}, at commit `{card.commit[:12]}`; data, model, schedule and starts stand above, as in `params.yaml`.
- **Limits**: it knows {len(card.classes)} classes and calls everything one of them: {", ".join(card.classes)}.
  A certificate says that small changes of the pixels do not change the answer, not that the answer is right.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.shipping", description="Ship what the profile has trained.")
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("--commit", required=True, help="whose code trained the model")
    given = parser.parse_args()
    try:
        resolved = subprocess.run(
            ["git", "rev-parse", "--verify", f"{given.commit}^{{commit}}"], capture_output=True, text=True
        )
        if resolved.returncode:
            raise ValueError(f"--commit = {given.commit!r}: git knows no such commit here")
        print(ship(given.run, given.name, resolved.stdout.strip()))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"nothing shipped: {error}")


if __name__ == "__main__":
    main()

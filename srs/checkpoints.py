"""Trained models that come with the repository: ``checkpoints/<name>/`` holds weights, amortized starts and a card.

A card is a page to read, ``card.md``, that opens with a block of YAML, :class:`Card`. To ship what the active profile has
trained, by the code of a commit:

    python -m srs.checkpoints small-050 mdeq-small-cifar10-0.50 --commit 60f7454
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import yaml
from pydantic import Field, ValidationError
from torch import nn

from srs import models, params
from srs.data import Dataset
from srs.journal import sha256
from srs.sections import Section, faults
from srs.solvers import Solver
from srs.starts import choose
from srs.votes import StandardSampler

FOLDER = Path(__file__).resolve().parent.parent / "checkpoints"
LARGEST = 25_000_000  # bytes of one file


class Card(Section):
    """What is known of a shipped model.

    ``sampler``: the amortized row that was chosen on held-out training images, ``noisy_accuracy`` what it has there at noise
    ``sigma`` on so many ``noisy_copies``, and ``reference_accuracy`` what ``reference`` has. ``residual``: the mean relative
    residual after ``training``'s evaluation solver. ``commit``, ``hardware``, ``seconds``: of the training. ``images``: the
    parts of the data set. ``data``, ``model``, ``training``, ``starts``: as in params.yaml. ``sha256``: of the files.
    """

    name: str
    sigma: float = Field(gt=0)
    classes: list[str] = Field(min_length=2)
    image_size: int = Field(ge=1)
    channels: int = Field(ge=1)
    parameters: int = Field(ge=1)
    sampler: StandardSampler
    reference: Solver
    noisy_copies: int = Field(ge=1)
    noisy_accuracy: float = Field(ge=0, le=1)
    reference_accuracy: float = Field(ge=0, le=1)
    residual: float
    commit: str
    hardware: str
    seconds: int
    images: str
    data: dict
    model: dict
    training: dict
    starts: dict
    sha256: dict[Literal["model.pt", "starts.pt"], str] = Field(min_length=2)


def names() -> list[str]:
    """The models that can be loaded."""
    return sorted(path.parent.name for path in FOLDER.glob("*/card.md"))


def read_card(name: str) -> Card:
    """The card of a shipped model. Raises ValueError for an unknown name and for a card that is not one."""
    if name not in names():
        known = f"choose one of {', '.join(names())}" if names() else f"there is none in {FOLDER}, which the git repository has"
        raise ValueError(f"model = {name!r} is unknown: {known}")
    path = FOLDER / name / "card.md"
    try:
        _, block, _ = path.read_text(encoding="utf-8").split("---\n", 2)
        return Card(**yaml.safe_load(block))
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(faults(error))}") from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} does not open with a card's block of YAML: {error}") from None


def load(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """A shipped model in evaluation mode, with its amortized ``starts`` and its ``card``.

    Raises ValueError for an unknown name, and for files that are not those of the card.
    """
    card = read_card(name)
    for file, expected in card.sha256.items():
        found = sha256(FOLDER / name / file)
        if found != expected:
            raise ValueError(f"checkpoints/{name}/{file} has the hash {found}, its card says {expected}: get the file again")
    model = models.load(FOLDER / name / "model.pt", device, fitted=FOLDER / name / "starts.pt")
    model.card = card
    return model


def ship(experiment: str, name: str, commit: str) -> Path:
    """Copy what the active profile has trained to ``checkpoints/<name>/``, with a card; ``commit``: of the training.

    Raises ValueError for an unknown experiment or a file over 25 MB, FileNotFoundError where something has not been made yet.
    """
    profile = params.load().active
    if experiment not in profile.experiments:
        raise ValueError(f"experiment = {experiment!r} is unknown: choose one of {', '.join(profile.experiments)}")
    settings, runs = profile.experiments[experiment], Path("runs") / profile.name
    model, starts = runs / "models" / experiment, runs / "starts" / experiment
    files = [model / "model.pt", starts / "starts.pt"]
    for file in files:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes: at most {LARGEST:,} are shipped")
    held_out = pd.read_csv(starts / "held_out.csv")
    row = held_out.set_index("row").loc[choose(held_out, profile.starts.loss)]
    data = Dataset.load(Path("data") / profile.name / f"{settings.model.data}.npz")
    channels, size, _ = data.train.shape
    timing = json.loads((model / "seconds.json").read_text(encoding="utf-8"))
    card = Card(
        name=name,
        sigma=settings.votes.sigma,
        classes=data.classes,
        image_size=size,
        channels=channels,
        parameters=sum(p.numel() for p in models.read(files[0]).parameters()),
        sampler=profile.starts.candidates[row.name],
        reference=profile.starts.solver,
        noisy_copies=profile.starts.copies * len(data.validation),
        noisy_accuracy=round(float(row["accuracy"]), 4),
        reference_accuracy=round(float(row["accuracy"] - row["difference"]), 4),
        residual=float(f"{pd.read_csv(model / 'history.csv')['validation_residual'].iloc[-1]:.2g}"),
        commit=commit,
        hardware=timing["hardware"],
        seconds=round(timing["train"]),
        images=data.described(),
        data=profile.datasets[settings.model.data].model_dump(mode="json", exclude_none=True),
        model=settings.model.model_dump(mode="json", exclude_none=True),
        training=settings.training.model_dump(mode="json", exclude_none=True),
        starts=profile.starts.model_dump(mode="json", exclude_none=True, exclude={"candidates"}),
        sha256={file.name: sha256(file) for file in files},
    )
    page, target = _page(card, row.name), FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, target / file.name)
    (target / "card.md").write_text(page, encoding="utf-8")
    return target


def _page(card: Card, row: str) -> str:
    block = yaml.safe_dump(card.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120)
    size, schedule, evaluation = f"{card.image_size}x{card.image_size}", card.training, Solver(**card.training["evaluation"])
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
- **Training**: {schedule["epochs"]} epochs in batches of {schedule["batch_size"]}, {card.seconds / 60:.0f} minutes on
  {card.hardware}, at commit `{card.commit[:12]}`; data, model, schedule and starts stand above, as in `params.yaml`.
- **Limits**: it knows {len(card.classes)} classes and calls everything one of them: {", ".join(card.classes)}.
  A certificate says that small changes of the pixels do not change the answer, not that the answer is right.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srs.checkpoints", description="Ship what the active profile has trained.")
    parser.add_argument("experiment")
    parser.add_argument("name")
    parser.add_argument("--commit", required=True, help="whose code trained the model")
    given = parser.parse_args()
    try:
        resolved = subprocess.run(
            ["git", "rev-parse", "--verify", f"{given.commit}^{{commit}}"], capture_output=True, text=True
        )
        if resolved.returncode:
            raise ValueError(f"--commit = {given.commit!r}: git knows no such commit here")
        print(ship(given.experiment, given.name, resolved.stdout.strip()))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"nothing shipped: {error}")


if __name__ == "__main__":
    main()

"""Trained models that come with the repository: ``checkpoints/<name>/`` holds weights, amortized starts and a card.

A card is a page to read, ``card.md``, that opens with a block of YAML, :class:`Card`. To ship what a profile has trained:

    python -m srs.checkpoints small-050 mdeq-small-cifar10-0.50
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
import yaml
from pydantic import Field
from torch import nn

from srs import models, params
from srs.data import Dataset
from srs.sections import Section
from srs.starts import choose
from srs.votes import StandardSampler

FOLDER = Path(__file__).resolve().parent.parent / "checkpoints"
LARGEST = 25_000_000  # bytes of one file


class Card(Section):
    """What is known of a shipped model.

    ``sampler``: the amortized row that was chosen on held-out training images, ``noisy_accuracy`` what it has there at noise
    ``sigma``, and ``reference_accuracy`` what the reference has, whose mean relative residual is ``residual``. ``commit``,
    ``hardware``: of the training. ``sha256``: of the files.
    """

    name: str
    sigma: float = Field(gt=0)
    classes: list[str] = Field(min_length=2)
    image_size: int = Field(ge=1)
    channels: int = Field(ge=1)
    parameters: int = Field(ge=1)
    sampler: StandardSampler
    noisy_accuracy: float
    reference_accuracy: float
    residual: float
    commit: str
    hardware: str
    data: dict
    model: dict
    training: dict
    sha256: dict[str, str]


def names() -> list[str]:
    """The models that can be loaded."""
    return sorted(path.parent.name for path in FOLDER.glob("*/card.md"))


def read_card(name: str) -> Card:
    """The card of a shipped model. Raises ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"model = {name!r} is unknown: choose one of {', '.join(names())}")
    _, block, _ = (FOLDER / name / "card.md").read_text(encoding="utf-8").split("---\n", 2)
    return Card(**yaml.safe_load(block))


def load(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """A shipped model in evaluation mode, with its amortized ``starts`` and its ``card``.

    Raises ValueError for an unknown name, and for files that are not those of the card.
    """
    card = read_card(name)
    for file, expected in card.sha256.items():
        found = _sha256(FOLDER / name / file)
        if found != expected:
            raise ValueError(f"checkpoints/{name}/{file} has the hash {found}, its card says {expected}: get the file again")
    model = models.load(FOLDER / name / "model.pt", device, fitted=FOLDER / name / "starts.pt")
    model.card = card
    return model


def ship(experiment: str, name: str, commit: str) -> Path:
    """Copy what the active profile has trained to ``checkpoints/<name>/``, with a card.

    Raises ValueError for a file over 25 MB, FileNotFoundError where something has not been made yet.
    """
    profile = params.load().active
    settings, runs = profile.experiments[experiment], Path("runs") / profile.name
    sources = {"model.pt": runs / "models" / experiment, "starts.pt": runs / "starts" / experiment}
    held_out = pd.read_csv(sources["starts.pt"] / "held_out.csv")
    row = held_out.set_index("row").loc[choose(held_out, profile.starts.loss)]
    data = Dataset.load(Path("data") / profile.name / f"{settings.model.data}.npz")
    target = FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for file, source in sources.items():
        if (source / file).stat().st_size > LARGEST:
            raise ValueError(f"{source / file} has {(source / file).stat().st_size:,} bytes: at most {LARGEST:,} are shipped")
        shutil.copy(source / file, target / file)
    channels, size, _ = data.train.shape
    card = Card(
        name=name,
        sigma=settings.votes.sigma,
        classes=data.classes,
        image_size=size,
        channels=channels,
        parameters=sum(p.numel() for p in models.load(target / "model.pt").parameters()),
        sampler=profile.starts.candidates[row.name],
        noisy_accuracy=round(float(row["accuracy"]), 4),
        reference_accuracy=round(float(row["accuracy"] - row["difference"]), 4),
        residual=float(f"{pd.read_csv(sources['model.pt'] / 'history.csv')['validation_residual'].iloc[-1]:.2g}"),
        commit=commit,
        hardware=json.loads((sources["starts.pt"] / "seconds.json").read_text())["hardware"],
        data=profile.datasets[settings.model.data].model_dump(mode="json", exclude_none=True),
        model=settings.model.model_dump(mode="json", exclude_none=True),
        training=settings.training.model_dump(mode="json", exclude_none=True),
        sha256={file: _sha256(target / file) for file in sources},
    )
    (target / "card.md").write_text(_page(card, row.name), encoding="utf-8")
    return target


def _page(card: Card, row: str) -> str:
    block = yaml.safe_dump(card.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120)
    size, schedule = f"{card.image_size}x{card.image_size}", card.training
    return f"""---
{block}---

# {card.name}

An MDEQ ({card.model["preset"]}, {card.parameters:,} parameters) for {len(card.classes)} classes of {size} images, trained on
images with Gaussian noise of sigma = {card.sigma:g} (pixels in [0, 1]), and the amortized starts that were fitted to it.

- **Use**: `srs.load("{card.name}")`, or `python -m srs certify PICTURE --model {card.name}`.
- **Noisy accuracy** on held-out training images: {card.noisy_accuracy:.1%} as deployed ({row}), {card.reference_accuracy:.1%}
  with 30 Anderson steps, whose mean relative residual is {card.residual:.1e}.
- **Training**: {schedule["epochs"]} epochs in batches of {schedule["batch_size"]}, at commit `{card.commit[:12]}`,
  on {card.hardware}; data, model and schedule stand above, as in `params.yaml`.
- **Limits**: it knows {len(card.classes)} classes and calls everything one of them: {", ".join(card.classes)}.
  A certificate says that small changes of the pixels do not change the answer, not that the answer is right.
"""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srs.checkpoints", description="Ship what the active profile has trained.")
    parser.add_argument("experiment")
    parser.add_argument("name")
    parser.add_argument("--commit", help="of the training; default: the one that is checked out")
    given = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        print(ship(given.experiment, given.name, given.commit or head))
    except (FileNotFoundError, ValueError, KeyError) as error:
        sys.exit(f"nothing shipped: {error}")


if __name__ == "__main__":
    main()

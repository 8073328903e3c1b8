"""Trained models that come with the library: the folder ``<name>`` beside this file holds weights, amortized starts and a card.

A card is a page to read, ``card.md``, that opens with a block of YAML, :class:`Card`. The study ships what it has trained
(:mod:`study.shipping`).
"""

from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field, ValidationError
from torch import nn

from srs import models
from srs.common.resume import sha256
from srs.common.settings import Section, faults
from srs.deq.solvers import Solver
from srs.votes.samplers import StandardSampler

DEFAULT = "mdeq-small-cifar10-0.50"  # of the command
FOLDER = Path(__file__).resolve().parent


class Card(Section):
    """What is known of a shipped model.

    ``sampler``: the amortized row that was chosen on held-out training images, ``noisy_accuracy`` what it has there at noise
    ``sigma`` on so many ``noisy_copies``, and ``reference_accuracy`` what ``reference`` has. ``residual``: the mean relative
    residual after ``training``'s evaluation solver. ``pretrained``: the shipped model or run whose network was trained on
    ("": none). ``commit``, ``hardware``, ``seconds``: of the training. ``images``: the parts of the data set. ``data``,
    ``model``, ``training``, ``starts``: as in params.yaml. ``sha256``: of the files.
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
    pretrained: str = ""
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
            raise ValueError(
                f"srs/checkpoints/{name}/{file} has the hash {found}, its card says {expected}: get the file again"
            )
    model = models.load(FOLDER / name / "model.pt", device, fitted=FOLDER / name / "starts.pt")
    model.card = card
    return model

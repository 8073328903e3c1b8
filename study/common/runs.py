"""The sections of params.yaml that say which networks there are, and how each is trained."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from srs.common.settings import Section


def _plain(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"the name {name!r} must have letters, digits, - and _ alone, and begin with a letter or digit")
    return name


#: What becomes the name of a DVC stage, a part of a path and a word of a shell.
Name = Annotated[str, AfterValidator(_plain)]


class Model(Section):
    """Which network on which data set; ``overrides`` replace fields of the preset."""

    data: str
    preset: str
    overrides: dict[str, Any] = {}


class Run(Section):
    """One trained network: a ``model`` at noise level ``sigma``, trained by its model's schedule but for what ``training``
    replaces. A run with a ``base`` goes on from that run's network and amortized starts."""

    model: str
    sigma: float = Field(gt=0)
    seed: int = Field(0, ge=0, lt=1 << 63)
    base: str | None = None
    training: dict[str, Any] = {}

    def schedule(self, training: dict[str, dict]) -> dict:
        """The fields of :class:`srs.training.train.Training`, from the section ``training``."""
        return {**training.get(self.model, {}), **self.training, "sigma": self.sigma, "seed": self.seed}

"""The sections of params.yaml that say which networks there are, and how each is trained."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

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
    replaces. A run with a ``base`` goes on from that run's network and amortized starts; one that is ``pretrained`` from that
    run's network alone, and has starts of its own. One without a base may be trained again under the next seeds, as many
    ``repeats`` as are told (:func:`with_repeats`)."""

    model: str
    sigma: float = Field(gt=0)
    seed: int = Field(0, ge=0, lt=1 << 63)
    base: str | None = None
    pretrained: str | None = None
    training: dict[str, Any] = {}
    repeats: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _repeats_are_from_scratch(self) -> "Run":
        if self.repeats and self.base is not None:
            raise ValueError(f"repeats = {self.repeats} must be 0 of a run with a base")
        if self.base is not None and self.pretrained is not None:
            raise ValueError(f"base = {self.base!r} and pretrained = {self.pretrained!r} exclude one another")
        return self

    @property
    def folder(self) -> str:
        """Where its network lies, in the folder of the profile."""
        return "models" if self.base is None else "tuned"

    def schedule(self, training: dict[str, dict]) -> dict:
        """The fields of :class:`srs.training.train.Training`, from the section ``training``."""
        return {**training.get(self.model, {}), **self.training, "sigma": self.sigma, "seed": self.seed}


def repeats_of(key: str, run: Run) -> dict[str, Run]:
    """The repeats of a run: KEY-seed1 and on, whose seeds follow its own."""
    seeds = range(run.seed + 1, run.seed + 1 + run.repeats)
    return {f"{key}-seed{seed}": run.model_copy(update={"seed": seed, "repeats": 0}) for seed in seeds}


def with_repeats(runs: dict[str, dict]) -> dict[str, Run]:
    """All runs of the section ``runs``, and after each its repeats. Raises ValueError for a repeat with a run's name."""
    every: dict[str, Run] = {}
    for key, value in runs.items():
        repeats = repeats_of(key, run := Run(**value))
        for name in repeats.keys() & runs.keys():
            raise ValueError(f"runs.{name} has the name of a repeat of {key}: choose another, or fewer repeats")
        every |= {key: run} | repeats
    return every

"""Which rows vote on which draws of which images, each vote cast once.

Rows come in groups (one a table or figure), each with its own number of draws and images. Draws of a smaller group are the
first ones of a larger, so that a row in several groups votes once; so do rows that are one computation by definition (a single
fixed step of any solver). The reference, which audits compare with, votes on every draw where it is itself a row, elsewhere on
the audited draws alone.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Discriminator, Field, Tag

from srs.common.settings import Section
from srs.data.datasets import evenly_spaced
from srs.votes.noise import audit_order
from srs.votes.samplers import MOST_ROWS, Sampler, StandardSampler
from study.common.runs import Model, repeats_of, with_repeats
from study.votes.rows import sampler_of

REFERENCE = "MDEQ-30A"
BLOCK = 4  # images that are voted on together: the least that a killed run repeats is a row's votes on them


def is_amortized(sampler: Sampler) -> bool:
    """Whether a row starts at a fitted start."""
    return isinstance(sampler, StandardSampler) and sampler.start != "initial"


class Draws(Section):
    """Rows that are shown together: ``n`` counted draws of ``images`` evenly spaced ones among the data set's chosen images.

    ``rows`` names a list of the section ``rows`` (None: that of the group's own name). ``audit`` overrides how many draws are
    audited; a group of serialized rows without the reference must give it, and has the reference vote on the draws that a
    random audit or one of the first batch takes.
    """

    rows: str | None = None
    images: int = Field(ge=1)
    n: int = Field(ge=1)
    audit: int | None = Field(None, ge=1)


class Voting(Section):
    """What all votes share: ``n0`` selection draws, ``seed``, ``chains`` of serialized rows; ``images`` of each data set,
    evenly spaced ones of its test part; the row that ``references`` name for a model (MDEQ-30A, where none is named); the
    ``groups`` of each run, of which the first is its main one; and which of them are ``repeated``, by its repeats, too."""

    n0: int = Field(100, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    chains: int = Field(400, ge=1, le=MOST_ROWS)
    images: dict[str, int]
    references: dict[str, str] = {}
    groups: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    repeated: list[str] = []

    def of_repeats(self, key: str) -> list[str]:
        """The groups of a run's repeats."""
        return [name for name in self.groups.get(key, []) if name in self.repeated]


@dataclass(frozen=True)
class Group:
    """The rows of a group and how many draws of how many images they vote on."""

    kind: str  # the list of rows that it shows
    samplers: dict[str, Sampler]
    images: int
    n: int
    audit: int | None = None

    @property
    def serialized(self) -> bool:
        """Whether a row needs an audit."""
        return any(sampler.audited for sampler in self.samplers.values())


@dataclass(frozen=True)
class VotePlan:
    """The votes of one run: its noise level ``sigma``, and ``groups`` of rows on ``images`` evenly spaced test images."""

    sigma: float
    images: int
    groups: dict[str, Group]
    reference: StandardSampler
    n0: int = 100
    seed: int = 0

    def __post_init__(self):
        for name, group in self.groups.items():
            if group.images > self.images:
                raise ValueError(f"draws.{name}.images = {group.images} is out of range: 1 to {self.images}")
            if group.audit is not None and group.audit > group.n:
                raise ValueError(f"draws.{name}.audit = {group.audit} must be at most n = {group.n}")
            if group.serialized and group.audit is None and self.reference not in group.samplers.values():
                raise ValueError(f"draws.{name} has serialized rows: list the reference among its rows, or give audit")

    @property
    def main(self) -> str:
        """The first group."""
        return next(iter(self.groups))

    def group(self, kind: str | None) -> str:
        """The group with the list of rows ``kind``; the main one for None. Raises ValueError where there is none."""
        if kind is None:
            return self.main
        known("list of rows", kind, list(dict.fromkeys([*self.groups, *(group.kind for group in self.groups.values())])))
        return next(name for name, group in self.groups.items() if kind in (name, group.kind))

    def sampler(self, group: str, row: str) -> Sampler:
        """What casts the votes of a row, reduced to what defines its computation."""
        return self.groups[group].samplers[row].canonical()

    @property
    def amortized(self) -> bool:
        """Whether a row starts at a fitted start."""
        return any(is_amortized(sampler) for group in self.groups.values() for sampler in group.samplers.values())

    def reference_row(self, group: str) -> str:
        """The row of a group that is the audits' reference. Raises ValueError where there is none."""
        found = [row for row, sampler in self.groups[group].samplers.items() if sampler == self.reference]
        if not found:
            raise ValueError(
                f"the list {group} lacks the audits' reference, {self.reference!r}: {', '.join(self.groups[group].samplers)}"
            )
        return found[0]

    def members(self, group: str) -> np.ndarray:
        """Which of the run's images (by position) are the group's."""
        return evenly_spaced(self.images, self.groups[group].images)

    def blocks(self) -> list[np.ndarray]:
        """All positions, BLOCK at most at a time: images of the same groups, which have equally many draws of every row."""
        member = np.stack([np.isin(np.arange(self.images), self.members(name)) for name in self.groups], axis=1)
        alike = [np.flatnonzero((member == kind).all(axis=1)) for kind in np.unique(member, axis=0)[::-1]]
        return [part[first : first + BLOCK] for part in alike for first in range(0, len(part), BLOCK)]

    def draws(self, indices: np.ndarray) -> dict[Sampler, list[np.ndarray]]:
        """For each distinct sampler the draws of each image (``indices`` number them) that it votes on; the reference first."""
        reference = self.reference.canonical()
        first: dict[Sampler, np.ndarray] = {reference: np.zeros(len(indices), np.int64)}  # how many draws from the first on
        audited: list[list[np.ndarray]] = [[] for _ in indices]  # by the reference, beyond those
        for name, group in self.groups.items():
            members = self.members(name)
            for row in group.samplers:
                wanted = first.setdefault(self.sampler(name, row), np.zeros(len(indices), np.int64))
                wanted[members] = np.maximum(wanted[members], self.n0 + group.n)
            if group.audit is not None and group.serialized:
                for position in members:
                    counted = self.seed, int(indices[position]), self.n0, group.n
                    audited[position] += [
                        audit_order(draw, *counted, warm_draws)[: group.audit].copy()  # and not the whole order with them
                        for draw, warm_draws in self._audits(name)
                    ]
        ranges = {n: np.arange(n) for wanted in first.values() for n in wanted.tolist()}
        plan = {sampler: [ranges[n] for n in wanted.tolist()] for sampler, wanted in first.items()}
        plan[reference] = [
            np.unique(np.concatenate([draws, *extra])) if extra else draws for draws, extra in zip(plan[reference], audited)
        ]
        return {sampler: draws for sampler, draws in plan.items() if any(len(d) for d in draws)}

    def _audits(self, group: str) -> set[tuple[str, int]]:
        """How the serialized rows of a group may be audited: the draw, and the draws of the warm-up that it passes over."""
        rows = [self.sampler(group, row) for row in self.groups[group].samplers]
        return {("random", 0)} | {("first_batch", row.warm_draws) for row in rows if row.audited}


#: What a row is, spelled out; or the name of another row, which it is.
Spelling = Annotated[
    Annotated[str, Tag("row")] | Annotated[Sampler, Tag("sampler")],
    Discriminator(lambda given: "row" if isinstance(given, str) else "sampler"),
]


class Spelled(Section):
    """The section ``samplers``: rows whose name does not say what they are."""

    samplers: dict[str, Spelling] = {}


class VotePlans:
    """The :class:`VotePlan` of each run that votes, from sections of params.yaml. Raises ValueError that names the fault."""

    def __init__(self, runs: dict, models: dict, votes: dict, rows: dict, draws: dict, samplers: dict):
        self.runs = with_repeats(runs)
        self.models = {key: Model(**value) for key, value in models.items()}
        self.votes, self.rows = Voting(**votes), rows
        self.draws = {name: Draws(**value) for name, value in draws.items()}
        self.spelled = Spelled(samplers=samplers).samplers

    def __getitem__(self, key: str) -> VotePlan:
        return self.plans[key]

    def data(self, key: str) -> str:
        """The data set of a run."""
        return self.models[self.runs[key].model].data

    def with_starts(self) -> list[str]:
        """The runs to which amortized starts are fitted: those of a row of their own, or of a run that goes on from them."""
        amortized = [key for key, plan in self.plans.items() if self.runs[key].base is None and plan.amortized]
        bases = [run.base for run in self.runs.values() if run.base is not None]
        return [key for key in self.runs if key in {*amortized, *bases}]

    @cached_property
    def plans(self) -> dict[str, VotePlan]:
        votes, datasets = self.votes, {model.data for model in self.models.values()}
        for name, given, choices in (
            ("references", votes.references, self.models),
            ("images", votes.images, sorted(datasets)),
            ("repeated", votes.repeated, self.draws),
        ):
            for one in given:
                known(f"votes.{name}", one, choices)
        groups = dict(self.votes.groups)
        for key, run in self.runs.items():
            if repeated := self.votes.of_repeats(key):
                groups |= dict.fromkeys(repeats_of(key, run), repeated)
        return {key: self._plan(key, names) for key, names in groups.items()}

    def _plan(self, key: str, groups: list[str]) -> VotePlan:
        votes, run = self.votes, self.runs[known(f"votes.groups.{key}", key, self.runs)]
        model = known(f"runs.{key}.model", run.model, self.models)
        data = known(f"votes.images: the data set of {key}", self.models[model].data, votes.images)
        groups = {name: self._group(f"votes.groups.{key}", name) for name in groups}
        row = votes.references.get(model, REFERENCE)
        reference = self._sampler(f"votes.references.{model}", row)
        if not (isinstance(reference, StandardSampler) and reference.independent):
            raise ValueError(
                f"votes.references.{model} = {row!r} audits nothing: expected a standard row, whose votes are independent"
            )
        if is_amortized(reference):
            raise ValueError(
                f"votes.references.{model} = {row!r} begins at a fitted start, which is none of the network's own: expected a "
                "standard row from the initial start"
            )
        return VotePlan(run.sigma, votes.images[data], groups, reference, votes.n0, votes.seed)

    def _group(self, place: str, name: str) -> Group:
        draws = self.draws[known(place, name, self.draws)]
        kind = known(f"draws.{name}.rows", draws.rows or name, self.rows)
        samplers = {row: self._sampler(f"rows.{kind}", row) for row in self.rows[kind]}
        return Group(kind, samplers, draws.images, draws.n, draws.audit)

    def _sampler(self, place: str, row: str) -> Sampler:
        try:
            return sampler_of(row, self.spelled, self.votes.chains)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def known(path: str, name: str, choices) -> str:
    """``name``. Raises ValueError where it is none of ``choices``."""
    if name not in choices:
        raise ValueError(f"{path} = {name!r} is unknown: choose one of {', '.join(choices)}")
    return name

"""Votes of a whole experiment: which methods vote on which draws of which images, each vote cast once.

Methods come in groups (one a table or figure), each with its own number of draws and images. Draws of a smaller group
are the first ones of a larger, so that a method in several groups votes once; so do methods that are one computation by
definition (a single fixed step of any solver). The reference, which audits compare with, votes on every draw where it is
itself a row, elsewhere on the audited draws alone.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from srs.data import Images, evenly_spaced
from srs.journal import Journal, pack, sha256, unpack
from srs.noise import NoisyCopies, audit_order
from srs.sections import Section
from srs.votes import Sampler, SerializedSampler, StandardSampler, Votes

NOT_CAST = -2  # beside votes.UNDECIDED


class Group(Section):
    """Rows that are shown together: ``n`` counted draws of ``images`` evenly spaced ones among the experiment's images.

    ``audit`` overrides how many draws are audited; a group of serialized rows without the reference must give it, and has
    the reference vote on the draws that a random audit or one of the first batch takes.
    """

    images: int = Field(ge=1)
    n: int = Field(ge=1)
    audit: int | None = Field(None, ge=1)
    samplers: dict[str, Sampler] = Field(min_length=1)

    @property
    def serialized(self) -> bool:
        """Whether a row needs an audit."""
        return any(sampler.audited for sampler in self.samplers.values())


class Casting(Section):
    """Settings of an experiment's votes: noise level ``sigma`` and ``seed``, ``n0`` selection draws, ``images`` evenly spaced
    test images. ``chains`` is for serialized rows that give none. At most ``batch_size`` copies are computed at once, on
    ``threads`` of the CPU (None: torch's choice): neither changes a vote."""

    sigma: float = Field(gt=0)
    images: int = Field(ge=1)
    groups: dict[str, Group] = Field(min_length=1)
    reference: StandardSampler = StandardSampler()
    n0: int = Field(100, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    chains: int = Field(400, ge=1)
    batch_size: int = Field(800, ge=1)
    threads: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _groups_fit(self) -> "Casting":
        for name, group in self.groups.items():
            if group.images > self.images:
                raise ValueError(f"groups.{name}.images = {group.images} is out of range: 1 to images = {self.images}")
            if group.audit is not None and group.audit > group.n:
                raise ValueError(f"groups.{name}.audit = {group.audit} must be at most n = {group.n}")
            if group.serialized and group.audit is None and self.reference not in group.samplers.values():
                raise ValueError(f"groups.{name} has serialized rows: list the reference among its samplers, or give audit")
        return self

    def sampler(self, group: str, row: str) -> Sampler:
        """What casts the votes of a row, reduced to what defines its computation."""
        sampler = self.groups[group].samplers[row]
        if isinstance(sampler, SerializedSampler) and "chains" not in sampler.model_fields_set:
            sampler = sampler.model_copy(update={"chains": self.chains})
        return sampler.canonical()

    def reference_row(self, group: str) -> str:
        """The row of a group that is the audits' reference. Raises StopIteration where there is none."""
        return next(row for row, sampler in self.groups[group].samplers.items() if sampler == self.reference)

    def _audits(self, group: str) -> set[tuple[str, int]]:
        """How the serialized rows of a group may be audited: the draw, and the draws of the warm-up that it passes over."""
        rows = [self.sampler(group, row) for row in self.groups[group].samplers]
        return {("random", 0)} | {("first_batch", row.warm_draws) for row in rows if row.audited}

    def members(self, group: str) -> np.ndarray:
        """Which of the experiment's images (by position) are the group's."""
        return evenly_spaced(self.images, self.groups[group].images)

    def plan(self, indices: np.ndarray) -> dict[Sampler, list[np.ndarray]]:
        """For each distinct sampler the draws of each image that it votes on; the reference first."""
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
                        audit_order(draw, *counted, warm_draws)[: group.audit] for draw, warm_draws in self._audits(name)
                    ]
        ranges = {n: np.arange(n) for wanted in first.values() for n in wanted.tolist()}
        plan = {sampler: [ranges[n] for n in wanted.tolist()] for sampler, wanted in first.items()}
        plan[reference] = [
            np.unique(np.concatenate([draws, *extra])) if extra else draws for draws, extra in zip(plan[reference], audited)
        ]
        return {sampler: draws for sampler, draws in plan.items() if any(len(d) for d in draws)}


@dataclass(frozen=True)
class VoteTable:
    """All votes of an experiment: for each distinct sampler an array (images, draws) of classes, evaluations, seconds.

    ``index`` (images,) are the images' numbers in the test part. Draws that were not cast hold class NOT_CAST; all arrays
    have room for every draw of the experiment.
    """

    index: np.ndarray
    votes: dict[Sampler, Votes]

    def of(self, sampler: Sampler, position: int, draws: np.ndarray | slice) -> Votes:
        """Votes of one image. Raises ValueError where one of them was not cast."""
        found = self.votes[sampler.canonical()].take((position, draws))
        if (found.classes == NOT_CAST).any():
            raise ValueError(f"image {self.index[position]}: some of these draws were not cast by {sampler!r}")
        return found

    def complete(self, sampler: Sampler, position: int, draws: slice) -> bool:
        """Whether the sampler has voted on all of ``draws``."""
        cast = self.votes.get(sampler.canonical())
        return cast is not None and bool((cast.classes[position, draws] != NOT_CAST).all())

    def save(self, folder: Path, casting: Casting, files: Mapping[str, str | Path]) -> None:
        """votes.npz and, apart from it, timings.npz, which differs from run to run. With the votes goes what defines them:
        settings of ``casting``, and hashes of the ``files`` that they were cast with, by a name for each."""
        arrays, seconds = {"index": self.index, "origin": np.array(json.dumps(_origin(casting, files), sort_keys=True))}, {}
        for number, (sampler, votes) in enumerate(self.votes.items()):
            arrays |= {f"{number}_{name}": getattr(votes, name) for name in Votes.TYPES if name != "seconds"}
            arrays[f"{number}_sampler"] = np.array(sampler.model_dump_json())
            seconds[f"{number}_seconds"] = votes.seconds
        np.savez_compressed(folder / "votes.npz", **arrays)
        np.savez_compressed(folder / "timings.npz", **seconds)

    @classmethod
    def load(cls, folder: Path, casting: Casting, files: Mapping[str, str | Path]) -> "VoteTable":
        """Read what :meth:`save` wrote. Raises ValueError when it was written for other settings than ``casting``, and when
        ``files``, as many as the reader has of those that it was written with, were others."""
        with np.load(folder / "votes.npz") as cast, np.load(folder / "timings.npz") as timings:
            origin = json.loads(str(cast["origin"])) if "origin" in cast else {}
            for name, asked in _origin(casting, files).items():
                if origin.get(name) != asked:
                    raise _other_votes(folder, name, origin.get(name, "not told"), asked)
            plan = casting.plan(cast["index"])
            found = [str(cast[name]) for name in cast.files if name.endswith("_sampler")]
            asked = [sampler.model_dump_json() for sampler in plan]
            for there, here in zip_longest(found, asked, fillvalue="none"):
                if there != here:
                    raise _other_votes(folder, "a sampler", there, here)
            votes = {
                sampler: Votes(**{n: (timings if n == "seconds" else cast)[f"{i}_{n}"] for n in Votes.TYPES})
                for i, sampler in enumerate(plan)
            }
            for sampler, draws in plan.items():
                for index, row, wanted in zip(cast["index"], votes[sampler].classes, draws):
                    drawn = np.flatnonzero(row != NOT_CAST)
                    if not np.array_equal(drawn, wanted):
                        draw = np.setxor1d(drawn, wanted)[0]
                        states = ("cast", "not cast") if draw in drawn else ("not cast", "cast")
                        raise _other_votes(folder, f"draw {draw} of image {index} by {sampler.model_dump_json()}", *states)
            return cls(cast["index"].copy(), votes)


def _origin(casting: Casting, files: Mapping[str, str | Path]) -> dict:
    """What defines votes, but for their samplers and draws."""
    settings = casting.model_dump(include={"sigma", "seed", "n0", "images"})
    return settings | {f"sha256 of {name}": sha256(path) for name, path in files.items()}


def _other_votes(folder: Path, name: str, there: object, asked: object) -> ValueError:
    return ValueError(f"{folder} holds other votes: {name} is {there} there, asked for is {asked}; cast them again (dvc repro)")


def cast_votes(model, images: Images, casting: Casting, journal: Journal, device: torch.device | str = "cpu") -> VoteTable:
    """Cast the votes of an experiment; what is already in the journal is not cast again.

    Several images are computed side by side, as many as fill a batch with the row that has fewest chains.
    """
    indices = evenly_spaced(len(images), casting.images)
    plan = casting.plan(indices)
    done = {(record["index"], record["sampler"], record["drawn"]): record for record in journal.records}
    keys = {sampler: [_key(int(i), sampler, d) for i, d in zip(indices, draws)] for sampler, draws in plan.items()}
    block = max(1, casting.batch_size // min((s.chains for s in plan if isinstance(s, SerializedSampler)), default=400))
    copies = [NoisyCopies(images.images(np.array([i]))[0].to(device), int(i), casting.sigma, casting.seed) for i in indices]
    todo = {s: [p for p, d in enumerate(draws) if len(d) and keys[s][p] not in done] for s, draws in plan.items()}
    if any(todo.values()):
        _warm_up(model, copies[0], plan, casting)
    total = sum(len(d) for draws in plan.values() for d in draws)
    left = sum(len(plan[sampler][p]) for sampler, positions in todo.items() for p in positions)
    with tqdm(total=total, initial=total - left, desc="votes", unit="vote", mininterval=2) as bar:
        for sampler, positions in todo.items():
            for alike in _side_by_side(positions, plan[sampler], block):
                draws = [plan[sampler][p] for p in alike]
                cast = sampler.sample_many(model, [copies[p] for p in alike], draws, casting.batch_size)
                for position, votes in zip(alike, cast):
                    record = _record(keys[sampler][position], votes)
                    journal.append(record)
                    done[keys[sampler][position]] = record
                    bar.update(len(votes.classes))
    return _table(indices, plan, {sampler: [done.get(key) for key in keys[sampler]] for sampler in plan})


def _key(index: int, sampler: Sampler, draws: np.ndarray) -> tuple[int, str, str]:
    """What a record in the journal is of: an image, a sampler, and which draws."""
    drawn = f"{len(draws)}:{zlib.crc32(draws.tobytes()):08x}"
    return index, sampler.model_dump_json(), drawn


def _side_by_side(positions: list[int], draws: list[np.ndarray], block: int) -> list[list[int]]:
    """Images to compute at once, ``block`` at most: chains run in step, so theirs must have equally many draws."""
    counts = sorted({len(draws[p]) for p in positions})
    alike = [[p for p in positions if len(draws[p]) == count] for count in counts]
    return [part[first : first + block] for part in alike for first in range(0, len(part), block)]


def _record(key: tuple[int, str, str], votes: Votes) -> dict:
    return dict(zip(("index", "sampler", "drawn"), key)) | {name: pack(getattr(votes, name)) for name in Votes.TYPES}


def _table(indices: np.ndarray, plan: dict[Sampler, list[np.ndarray]], records: dict[Sampler, list[dict | None]]) -> VoteTable:
    table = {}
    width = max(int(numbers[-1]) + 1 for draws in plan.values() for numbers in draws if len(numbers))
    for sampler, draws in plan.items():
        votes = Votes.blank((len(indices), width), NOT_CAST)
        for position, (numbers, record) in enumerate(zip(draws, records[sampler])):
            if len(numbers):
                votes.put((position, numbers), Votes(**{name: unpack(record[name]) for name in Votes.TYPES}))
        table[sampler] = votes
    return VoteTable(indices, table)


def _warm_up(model, copies: NoisyCopies, plan: dict[Sampler, list[np.ndarray]], casting: Casting) -> None:
    """Spend the first calls' set-up cost (thread pools, kernels) before anything is timed."""
    first = next(iter(plan))
    first.sample(model, copies, np.arange(min(casting.batch_size, 400)), casting.batch_size)

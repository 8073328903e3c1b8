"""Votes of a whole experiment: which methods vote on which draws of which images, each vote cast once.

Methods come in groups (one a table or figure), each with its own number of draws and images. Draws of a smaller group
are the first ones of a larger, so that a method in several groups votes once; so do methods that are one computation by
definition (a single fixed step of any solver). The reference, which audits compare with, votes on every draw where it is
itself a row, elsewhere on the audited draws alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tqdm import tqdm

from srs.data import Part, evenly_spaced
from srs.journal import Journal, pack, unpack
from srs.noise import NoisyCopies, audited_draws
from srs.votes import Sampler, SerializedSampler, StandardSampler, Votes

NOT_CAST = -2  # beside votes.UNDECIDED


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Group(_Section):
    """Rows that are shown together: ``n`` counted draws of ``images`` evenly spaced ones among the experiment's images.

    ``audit`` overrides how many draws are audited; a group of serialized rows without the reference must give it.
    """

    images: int = Field(ge=1)
    n: int = Field(ge=1)
    audit: int | None = Field(None, ge=1)
    samplers: dict[str, Sampler] = Field(min_length=1)


class Casting(_Section):
    """Settings of an experiment's votes: noise level ``sigma`` and ``seed``, ``n0`` selection draws, ``images`` evenly spaced
    test images. ``chains`` is for serialized rows that give none. ``batch_size`` copies are computed at once: it
    changes no vote."""

    sigma: float = Field(gt=0)
    images: int = Field(ge=1)
    groups: dict[str, Group] = Field(min_length=1)
    reference: StandardSampler = StandardSampler()
    n0: int = Field(100, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    chains: int = Field(400, ge=1)
    batch_size: int = Field(400, ge=1)

    @model_validator(mode="after")
    def _groups_fit(self) -> "Casting":
        for name, group in self.groups.items():
            if group.images > self.images:
                raise ValueError(f"groups.{name}.images = {group.images} is out of range: 1 to images = {self.images}")
            if group.audit is not None and group.audit > group.n:
                raise ValueError(f"groups.{name}.audit = {group.audit} must be at most n = {group.n}")
            serialized = any(not sampler.independent for sampler in group.samplers.values())
            if serialized and group.audit is None and self.reference not in group.samplers.values():
                raise ValueError(f"groups.{name} has serialized rows: list the reference among its samplers, or give audit")
        return self

    def sampler(self, group: str, row: str) -> Sampler:
        """What casts the votes of a row, reduced to what defines its computation."""
        sampler = self.groups[group].samplers[row]
        if isinstance(sampler, SerializedSampler) and "chains" not in sampler.model_fields_set:
            sampler = sampler.model_copy(update={"chains": self.chains})
        return sampler.canonical()

    def members(self, group: str) -> np.ndarray:
        """Which of the experiment's images (by position) are the group's."""
        return evenly_spaced(self.images, self.groups[group].images)

    def plan(self, indices: np.ndarray) -> dict[Sampler, list[np.ndarray]]:
        """For each distinct sampler the draws of each image that it votes on; the reference first."""
        reference = self.reference.canonical()
        needed: dict[Sampler, list[set]] = {reference: [set() for _ in indices]}
        for name, group in self.groups.items():
            every = set(range(self.n0 + group.n))
            for row in group.samplers:
                wanted = needed.setdefault(self.sampler(name, row), [set() for _ in indices])
                for position in self.members(name):
                    wanted[position] |= every
            if group.audit is not None:
                for position in self.members(name):
                    index = int(indices[position])
                    needed[reference][position] |= set(audited_draws(self.seed, index, self.n0, group.n, group.audit).tolist())
        return {sampler: [np.array(sorted(d), np.int64) for d in draws] for sampler, draws in needed.items() if any(draws)}


@dataclass(frozen=True)
class VoteTable:
    """All votes of an experiment: for each distinct sampler an array (images, draws) of classes, evaluations, seconds.

    ``index`` (images,) are the images' numbers in the test part. Draws that were not cast hold class NOT_CAST.
    """

    index: np.ndarray
    votes: dict[Sampler, Votes]

    def of(self, sampler: Sampler, position: int, draws: np.ndarray | slice) -> Votes:
        """Votes of one image. Raises ValueError where one of them was not cast."""
        cast = self.votes[sampler.canonical()]
        found = Votes(cast.classes[position, draws], cast.evaluations[position, draws], cast.seconds[position, draws])
        if (found.classes == NOT_CAST).any():
            raise ValueError(f"image {self.index[position]}: some of these draws were not cast by {sampler!r}")
        return found

    def complete(self, sampler: Sampler, position: int, draws: slice) -> bool:
        """Whether the sampler has voted on all of ``draws``."""
        cast = self.votes.get(sampler.canonical())
        return cast is not None and bool((cast.classes[position, draws] != NOT_CAST).all())

    def save(self, folder: Path) -> None:
        """votes.npz and, apart from it, timings.npz, which differs from run to run."""
        arrays, seconds = {"index": self.index}, {}
        for number, (sampler, votes) in enumerate(self.votes.items()):
            arrays |= {f"{number}_classes": votes.classes, f"{number}_evaluations": votes.evaluations}
            arrays[f"{number}_sampler"] = np.array(sampler.model_dump_json())
            seconds[f"{number}_seconds"] = votes.seconds
        np.savez_compressed(folder / "votes.npz", **arrays)
        np.savez_compressed(folder / "timings.npz", **seconds)

    @classmethod
    def load(cls, folder: Path, casting: Casting) -> "VoteTable":
        """Read what :meth:`save` wrote. Raises ValueError when it was written for other settings than ``casting``."""
        with np.load(folder / "votes.npz") as cast, np.load(folder / "timings.npz") as timings:
            samplers = list(casting.plan(cast["index"]))
            for number, sampler in enumerate(samplers):
                if str(cast[f"{number}_sampler"]) != sampler.model_dump_json():
                    raise ValueError(f"{folder} holds other votes than params.yaml asks for: cast them again (dvc repro)")
            votes = {
                sampler: Votes(cast[f"{i}_classes"], cast[f"{i}_evaluations"], timings[f"{i}_seconds"])
                for i, sampler in enumerate(samplers)
            }
            return cls(cast["index"].copy(), votes)


def cast_votes(model, images: Part, casting: Casting, journal: Journal, device: torch.device | str = "cpu") -> VoteTable:
    """Cast the votes of an experiment; what is already in the journal is not cast again.

    Several images are computed side by side, as many as fill a batch with one chain each of the row with fewest chains.
    """
    indices = evenly_spaced(len(images), casting.images)
    plan = casting.plan(indices)
    done = {(record["index"], record["sampler"]): record for record in journal.records}
    block = max(1, casting.batch_size // min((s.chains for s in plan if isinstance(s, SerializedSampler)), default=400))
    total = sum(len(draws) for every in plan.values() for draws in every)
    spent = sum(record["draws"] for record in done.values())
    copies = [NoisyCopies(images.images(np.array([i]))[0].to(device), int(i), casting.sigma, casting.seed) for i in indices]
    if len(done) == 0:
        _warm_up(model, copies[0], plan, casting)
    with tqdm(total=total, initial=spent, desc="votes", unit="vote", mininterval=2) as bar:
        for first in range(0, len(indices), block):
            for number, (sampler, draws) in enumerate(plan.items()):
                todo = [p for p in range(first, min(first + block, len(indices))) if (int(indices[p]), number) not in done]
                for alike in _equal_counts([p for p in todo if len(draws[p])], draws, sampler.independent):
                    cast = sampler.sample_many(model, [copies[p] for p in alike], [draws[p] for p in alike], casting.batch_size)
                    for position, votes in zip(alike, cast):
                        record = _record(int(indices[position]), number, votes)
                        journal.append(record)
                        done[record["index"], number] = record
                        bar.update(record["draws"])
    return _table(indices, plan, done)


def _equal_counts(positions: list[int], draws: list[np.ndarray], together: bool) -> list[list[int]]:
    """Images to compute side by side: chains run in step, so theirs must have equally many draws."""
    if together:
        return [positions] if positions else []
    counts = sorted({len(draws[p]) for p in positions})
    return [[p for p in positions if len(draws[p]) == count] for count in counts]


def _record(index: int, number: int, votes: Votes) -> dict:
    packed = {"classes": pack(votes.classes), "evaluations": pack(votes.evaluations)}
    packed["seconds"] = pack(votes.seconds.view(np.int32))
    return {"index": index, "sampler": number, "draws": len(votes.classes)} | packed


def _table(indices: np.ndarray, plan: dict[Sampler, list[np.ndarray]], done: dict) -> VoteTable:
    table = {}
    for number, (sampler, draws) in enumerate(plan.items()):
        width = max(int(d[-1]) + 1 for d in draws if len(d))
        votes = Votes(
            np.full((len(indices), width), NOT_CAST, np.int16),
            np.zeros((len(indices), width), np.int32),
            np.zeros((len(indices), width), np.float32),
        )
        for position, numbers in enumerate(draws):
            if len(numbers):
                record = done[int(indices[position]), number]
                votes.classes[position, numbers] = unpack(record["classes"])
                votes.evaluations[position, numbers] = unpack(record["evaluations"])
                votes.seconds[position, numbers] = unpack(record["seconds"]).view(np.float32)
        table[sampler] = votes
    return VoteTable(indices, table)


def _warm_up(model, copies: NoisyCopies, plan: dict[Sampler, list[np.ndarray]], casting: Casting) -> None:
    """Spend the first calls' set-up cost (thread pools, kernels) before anything is timed."""
    first = next(iter(plan))
    first.sample(model, copies, np.arange(min(casting.batch_size, 400)), casting.batch_size)

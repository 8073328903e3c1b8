"""Where votes lie: one file for each sampler and block of images, read as it is asked for.

A file holds the votes and what defines them: whoever asks for votes of other settings, another model or other data is refused.
Seconds, which differ from run to run, lie apart.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np

from srs.common.resume import sha256
from srs.data.datasets import Dataset, evenly_spaced
from srs.votes.samplers import Sampler, Votes
from study.common.engine import read_record, write_arrays
from study.common.layout import Layout
from study.votes.plan import VotePlan, VotePlans, is_amortized

_SHARED = [name for name in Votes.TYPES if name != "seconds"]
_FILES_HELD = 64


class VoteStore:
    """The votes of one run, in ``folder``, their seconds in ``timings``. ``total`` is the size of the test part of whose images
    ``plan`` takes some, ``index`` (images,) their numbers; ``files`` are what the votes are cast with, by a name for each."""

    def __init__(self, folder: Path, timings: Path, plan: VotePlan, total: int, files: Mapping[str, Path]):
        self.folder, self.timings, self.plan = Path(folder), Path(timings), plan
        self.index = evenly_spaced(total, plan.images)
        self.draws = plan.draws(self.index)
        self.blocks = plan.blocks()
        self._cast_with = {f"sha256 of {name}": sha256(path) for name, path in files.items()}
        self._block_of = {int(p): number for number, block in enumerate(self.blocks) for p in block}
        self._read, self._paced = lru_cache(_FILES_HELD)(self._read_file), cache(self._pace)

    def name(self, sampler: Sampler, block: int) -> str:
        """The name of a file, without its suffix."""
        return f"{self.blocks[block][0]:05d}-{hashlib.sha256(sampler.model_dump_json().encode()).hexdigest()[:12]}"

    def origin(self, sampler: Sampler, block: int) -> dict:
        """What defines the votes of a file."""
        positions = self.blocks[block]
        drawn = [hashlib.sha256(self.draws[sampler][p].tobytes()).hexdigest()[:16] for p in positions]
        images = {"images": self.index[positions].tolist(), "draws": drawn}
        settings = {"sigma": self.plan.sigma, "seed": self.plan.seed, "sampler": sampler.model_dump(mode="json")}
        return settings | images | {name: digest for name, digest in self._cast_with.items() if _rests_on(name, sampler)}

    def of(self, sampler: Sampler, position: int, draws: np.ndarray) -> Votes:
        """Votes of one image. Raises ValueError where one of them is not to be cast, or was cast otherwise."""
        sampler = sampler.canonical()
        cast = self._planned(sampler, position)
        places = np.searchsorted(cast, draws)
        if not len(cast) or (places >= len(cast)).any() or (cast[places] != draws).any():
            raise ValueError(f"image {self.index[position]}: some of these draws are none of those of {sampler!r}")
        return self._read(sampler, self._block_of[position])[position].take(places)

    def pace(self, sampler: Sampler) -> float:
        """Seconds that an evaluation of f takes a sampler on the first of the :attr:`machines`: the median over its files, so
        that an interruption, or other work beside, does not count; NaN where no seconds are told."""
        return self._paced(sampler.canonical())

    @cached_property
    def machines(self) -> list[str]:
        """What the votes were cast on; first that which told the seconds of most samplers (and then of most files), with
        which no other's are mixed."""
        files: dict[str, list[str]] = {}  # by machine, the sampler of each file whose seconds are told
        for path in sorted(self.timings.glob("*.npz")):
            record = read_record(path)
            files.setdefault(_machine(record), []).extend([path.stem.rpartition("-")[2]] * ("seconds" in record))
        return sorted(files, key=lambda machine: (-len({*files[machine]}), -len(files[machine])))

    def _pace(self, sampler: Sampler) -> float:
        paces = []
        for name in (self.name(sampler, block) for block in range(len(self.blocks))):
            record = read_record(self.timings / f"{name}.npz")
            if len(record.get("seconds", ())) and _machine(record) == self.machines[0]:
                with np.load(self.folder / f"{name}.npz") as cast:
                    paces.append(record["seconds"].sum() / cast["evaluations"].sum())
        return float(np.median(paces)) if paces else np.nan

    def complete(self, sampler: Sampler, position: int, draws: np.ndarray) -> bool:
        """Whether the sampler votes on all of ``draws``."""
        return bool(np.isin(draws, self._planned(sampler.canonical(), position)).all())

    def _planned(self, sampler: Sampler, position: int) -> np.ndarray:
        """The draws of an image on which a sampler votes; none where it is not in the plan."""
        return self.draws[sampler][position] if sampler in self.draws else np.empty(0, np.int64)

    def _read_file(self, sampler: Sampler, block: int) -> dict[int, Votes]:
        name, asked = self.name(sampler, block), self.origin(sampler, block)
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            raise ValueError(f"{self.folder} has no votes of {sampler!r} on images {asked['images']}: cast them (dvc repro)")
        with np.load(path) as cast:
            there = json.loads(str(cast["origin"]))
            for what, value in asked.items():
                if there.get(what) != value:
                    raise ValueError(
                        f"{path} holds other votes: {what} is {there.get(what, 'not told')} there, asked for is {value}; "
                        "cast them again (dvc repro)"
                    )
            arrays = {kind: cast[kind] for kind in _SHARED}
        seconds = read_record(self.timings / f"{name}.npz").get("seconds")
        arrays["seconds"] = np.full(len(arrays["classes"]), np.nan, np.float32) if seconds is None else seconds
        ends = np.cumsum([len(self.draws[sampler][p]) for p in self.blocks[block]])
        found = {}
        for position, end in zip(self.blocks[block], ends):
            own = slice(end - len(self.draws[sampler][position]), end)
            found[int(position)] = Votes(**{kind: values[own] for kind, values in arrays.items()})
        return found


def _rests_on(file: str, sampler: Sampler) -> bool:
    """Whether a sampler's votes rest on what they are cast with: all but an amortized one's do without starts."""
    return file != "sha256 of starts" or is_amortized(sampler)


def _machine(record: dict) -> str:
    """What a file of votes was cast on, in words."""
    told = record.get("machine")
    return "a machine that is not known" if told is None else "{hardware}, {kernels} kernels, torch {torch}".format(**told)


def open_store(plans: VotePlans, layout: Layout, key: str, within: Path | None = None) -> VoteStore:
    """The votes of a run, of its model, starts and data as they are now; ``within``: the folder where votes and timings lie,
    if not the profile's."""
    files = {"model": layout.model(key), "data": layout.dataset(plans.data(key))}
    if (starts := layout.starts(key)) is not None:
        files["starts"] = starts
    total = len(Dataset.load(files["data"]).test)
    within = layout.runs if within is None else within
    return VoteStore(within / "votes" / key, within / "timings" / "votes" / key, plans[key], total, files)


def write_votes(out: Path, origin: dict, votes: Sequence[Votes]) -> None:
    """The votes of a block's images as one file."""
    arrays = {name: np.concatenate([getattr(one, name) for one in votes]) for name in _SHARED}
    write_arrays(out, arrays | {"origin": np.array(json.dumps(origin, sort_keys=True))})

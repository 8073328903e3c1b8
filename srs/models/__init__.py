"""Models by name. A checkpoint holds a model's configuration, so that it loads without guessing."""

import io
import os
from pathlib import Path

import torch
from torch import nn

from srs.models import starts
from srs.models.mdeq import MDEQ, MDEQConfig
from srs.models.mondeq import MonDEQ, MonDEQConfig
from srs.models.resnet import ResNet, ResNetConfig

_MODELS: dict[str, tuple[type, type]] = {
    "mdeq": (MDEQConfig, MDEQ),
    "mondeq": (MonDEQConfig, MonDEQ),
    "resnet": (ResNetConfig, ResNet),
}

_MDEQ = dict(family="mdeq", bottleneck_affine=False)
_CIFAR_SMALL = dict(channels=(8, 16, 32), head_channels=(7, 14, 28), final_channels=200, dropout=0.20)
_CIFAR_LARGE = dict(channels=(32, 64, 128, 256), head_channels=(14, 28, 56, 112), final_channels=1680, dropout=0.22)

CACHE = 16 << 20  # bytes: what a process can hope for of the caches of today's processors

#: The sizes of the paper (Tables 6 and 8) as released, and those for the embedded data; any field can be overridden.
PRESETS: dict[str, dict] = {
    "mdeq-small": dict(**_MDEQ, **_CIFAR_SMALL),
    "mdeq-large": dict(**_MDEQ, **_CIFAR_LARGE),
    "mdeq-small-imagenet": dict(
        **_MDEQ,
        channels=(32, 64, 128, 256),
        head_channels=(28, 56, 112, 224),
        final_channels=2048,
        dropout=0.02,
        stem_strides=(2, 2),
    ),
    "mdeq-tiny": dict(**_MDEQ, channels=(8, 16), head_channels=(4, 8), final_channels=32, dropout=0.0),
    "mondeq": dict(family="mondeq", size=64),
    "resnet-110": dict(family="resnet", depth=110),
}


def configure(preset: str, **overrides) -> MDEQConfig | MonDEQConfig | ResNetConfig:
    """The configuration of a named preset with some fields overridden.

    Raises ValueError for an unknown preset and pydantic's ValidationError for an unknown or ill-typed field.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r} is unknown: choose one of {', '.join(PRESETS)}")
    fields = {**PRESETS[preset], **overrides}
    return _MODELS[fields.pop("family")][0](**fields)


def build(preset: str, **overrides) -> nn.Module:
    """A freshly initialized model of :func:`configure`'s configuration; raises as that does."""
    config = configure(preset, **overrides)
    return _MODELS[PRESETS[preset]["family"]][1](config)


def state(model: nn.Module) -> dict:
    """Everything that :func:`restore` needs, as plain data and tensors; amortized starts have a state of their own. Raises
    ValueError for a model that was folded, as :func:`load` does: its weights are no longer those that were trained."""
    if model.folded:
        raise ValueError(
            "a folded model, as srs.load gives it, has no state to keep: srs.models.read gives it as it was trained"
        )
    family = next(name for name, (_, model_class) in _MODELS.items() if isinstance(model, model_class))
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("starts.")}
    tensors = {name: value.detach().cpu().clone() for name, value in own.items()}
    return {"family": family, "config": model.config.model_dump(), "state_dict": tensors}


def restore(saved: dict) -> nn.Module:
    """The model of a :func:`state`, in training mode as after construction."""
    config_class, model_class = _MODELS[saved["family"]]
    model = model_class(config_class(**saved["config"]))
    model.load_state_dict(saved["state_dict"])
    return model


def read(path: str | Path, fitted: str | Path | None = None) -> nn.Module:
    """The model of a checkpoint as it was trained, in training mode; with the amortized starts (:mod:`srs.starts`) that were
    ``fitted`` to it, where their file is given. Raises FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train it first (dvc repro)")
    model = restore(torch.load(path, map_location="cpu", weights_only=True)["model"])
    if fitted is not None and (saved := torch.load(fitted, map_location="cpu", weights_only=True)):
        model.starts = starts.restore(saved, model)
    return model


def load(path: str | Path, device: torch.device | str = "cpu", fitted: str | Path | None = None) -> nn.Module:
    """As :func:`read`, but to be used: on ``device``, in evaluation mode, its normalizing layers folded; a monotone DEQ, which
    is small, in double precision, where rounding leaves next to no vote unproved."""
    model = read(path, fitted).eval()
    if isinstance(model, MonDEQ):
        return model.fold().double().to(device)
    # on a processor with caches, pieces of a batch are faster than a batch whose activations do not fit
    return (model.fold(CACHE) if isinstance(model, MDEQ) and torch.device(device).type == "cpu" else model.fold()).to(device)


def write_checkpoint(content: dict, path: Path) -> None:
    """Save with torch so that ``path`` is either the old file or the whole new one; equal content, equal bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())  # or a machine that fails may leave the new name with nothing in it
    os.replace(partial, path)

"""Networks that say where a solver starts: functions of one noisy input's injection (fitted by :mod:`srs.starts`)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8  # channels of a convolutional start


class MeanStart(nn.Module):
    """One constant state of ``shape`` for each injection (B, ...)."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))

    def forward(self, injection: Tensor) -> Tensor:
        return self.mean.expand(len(injection), *self.mean.shape)


class RidgeStart(nn.Module):
    """A linear map of low rank from injections (B, ...) of ``inputs`` numbers to states (B, *shape)."""

    def __init__(self, inputs: int, rank: int, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, int(np.prod(shape)))

    def forward(self, injection: Tensor) -> Tensor:
        return self.up(self.down(injection.flatten(1))).view(-1, *self.shape)


class ConvolutionalStart(nn.Module):
    """Convolutions on the injection (C, H, W), down to each branch's resolution and up again.

    ``shapes``: (C_i, H / 2^i, W / 2^i) of the branches; ``state``: that of a whole state, if it is not flat, as an MDEQ's is.
    """

    def __init__(self, inputs: int, shapes: list[tuple[int, int, int]], width: int, state: tuple[int, ...] = (-1,)):
        super().__init__()
        self.state = tuple(state)
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in shapes[1:])
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in shapes[1:])
        self.heads = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1) for channels, _, _ in shapes)

    def forward(self, injection: Tensor) -> Tensor:
        features = [F.relu(self.first(injection))]
        for down in self.downs:
            features.append(F.relu(down(features[-1])))
        for i in range(len(self.ups) - 1, -1, -1):
            features[i] = features[i] + F.interpolate(self.ups[i](features[i + 1]), scale_factor=2)
        flat = torch.cat([head(x).flatten(1) for head, x in zip(self.heads, features)], dim=1)
        return flat.view(len(flat), *self.state)


def state(starts: nn.ModuleDict) -> dict:
    """Everything that :func:`restore` needs, as plain data and tensors."""
    learned = starts["learned"]
    saved = {"mean": starts["mean"].mean.detach().cpu().clone(), "kind": type(learned).__name__}
    saved["state_dict"] = {name: value.detach().cpu().clone() for name, value in learned.state_dict().items()}
    return saved


def restore(saved: dict, model: nn.Module) -> nn.ModuleDict:
    """The starts of a :func:`state`, for the model that they were fitted to."""
    mean = MeanStart(saved["mean"].shape)
    mean.mean.copy_(saved["mean"])
    tensors = saved["state_dict"]
    if saved["kind"] == "RidgeStart":
        rank, inputs = tensors["down.weight"].shape
        learned = RidgeStart(inputs, rank, saved["mean"].shape)
    else:
        width, inputs = tensors["first.weight"].shape[:2]
        shape = tuple(saved["mean"].shape)
        learned = ConvolutionalStart(inputs, getattr(model, "state_shapes", [shape]), width, shape)
    learned.load_state_dict(tensors)
    return nn.ModuleDict({"mean": mean, "learned": learned}).eval()

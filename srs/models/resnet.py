"""The residual network for small images (He et al. 2016, Section 4.2), which Cohen et al. (2019) smooth on CIFAR-10.

Depth 6n + 2: a 3x3 convolution, three stages of n basic blocks at widths 16, 32, 64 and resolutions 1, 1/2, 1/4, average
pooling, a linear layer.
"""

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from srs.models.images import ImageConfig, ImageNetwork


class ResNetConfig(ImageConfig):
    """Every size of a ResNet. Channel statistics ``mean`` and ``std`` make the model's first layer, in pixel units.

    ``shortcut`` where resolution and width change: "pad" (He et al., option A: every second pixel, zero channels; no
    parameters) or "projection" (option B: 1x1 convolution and BatchNorm, as in Cohen et al.'s released code).
    """

    depth: int = Field(110, ge=8)
    widths: tuple[int, int, int] = (16, 32, 64)
    shortcut: Literal["pad", "projection"] = "pad"

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ResNetConfig":
        if self.depth % 6 != 2:
            raise ValueError(f"depth = {self.depth} must be 6n + 2 for three stages of n two-layer blocks: 8, 14, 20, ..., 110")
        if self.widths[0] < 1 or any(a > b for a, b in pairwise(self.widths)):
            raise ValueError(f"widths {self.widths} must be positive and must not shrink: shortcuts cannot drop channels")
        return self


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ConvNorm(nn.Module):
    """Convolution and BatchNorm, which :meth:`fold` makes one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = _conv(inputs, outputs, kernel, stride)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Make the normalization part of the convolution, for evaluation."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity().eval()


class Padding(nn.Module):
    """The shortcut without parameters: every ``stride``-th pixel, and zeros for the channels that are new."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first convolution takes the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3)
        if inputs == outputs and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = Padding(outputs - inputs, stride)
        else:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(ImageNetwork):
    """ResNet image classifier. Input normalization is the first layer: noise and radii live in pixel units of [0, 1]."""

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        self.stem = ConvNorm(len(config.mean), config.widths[0], 3)
        blocks, inputs = [], config.widths[0]
        for stage, width in enumerate(config.widths):
            for position in range((config.depth - 2) // 6):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(inputs, width, stride, config.shortcut))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in pixel units -> logits (B, classes)."""
        out = self.blocks(F.relu(self.stem(self.normalize(x))))
        return self.linear(out.mean(dim=(2, 3)))

    def fold(self) -> "ResNet":
        """Merge every BatchNorm into its convolution, in place; for evaluation. Returns itself.

        Raises ValueError in training mode, where BatchNorm is not a fixed linear map.
        """
        self.require_foldable()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self.folded = True
        return self

"""What networks for images have in common: the images' size, their classes and channel statistics."""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from srs.common.settings import Section


class ImageConfig(Section):
    """``num_classes``, and square images of ``image_size`` pixels a side, with a channel for each entry of ``mean`` and
    ``std``, in pixel units."""

    num_classes: int = Field(10, ge=2)
    image_size: int = Field(32, ge=1)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    @model_validator(mode="after")
    def _statistics_fit(self) -> "ImageConfig":
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} need equal length and positive deviations")
        return self


class ImageNetwork(nn.Module):
    """A classifier whose first layer is :meth:`normalize`: noise and radii live in pixel units of [0, 1]. ``folded``: whether
    its layers were merged for evaluation."""

    folded = False

    def __init__(self, config: ImageConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in units of their channels' statistics. Raises ValueError for images of another shape."""
        shape = len(self.config.mean), self.config.image_size, self.config.image_size
        if x.shape[1:] != shape:
            raise ValueError(f"images have the shape {tuple(x.shape[1:])}: this network takes (C, H, W) = {shape}")
        return (x - self.mean) / self.std

    def require_foldable(self) -> None:
        """Raises ValueError in training mode, where layers are not what they are in evaluation."""
        if self.training:
            raise ValueError("a model in training mode cannot be folded: call model.eval() first")

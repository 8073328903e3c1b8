"""The multiscale deep equilibrium image classifier, MDEQ (Bai, Koltun and Kolter 2020).

n branches; branch i holds C_i channels at 1/2^i of the working resolution. Between layers the state of a sample is one
flat vector (all branches end to end), so that solvers need not know about branches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, parametrize
from torch.nn.utils.parametrizations import weight_norm

from srs.models.images import ImageConfig, ImageNetwork


class MDEQConfig(ImageConfig):
    """Every size of an MDEQ. Channel statistics ``mean`` and ``std`` make the model's first layer, in pixel units.

    ``bottleneck_affine``: whether BatchNorm has an affine part within the head's bottlenecks. Its default is for checkpoints
    from before there was a choice; the presets have none, as the paper's code.
    """

    channels: tuple[int, ...] = Field(min_length=1)
    head_channels: tuple[int, ...]
    final_channels: int = Field(ge=1)
    stem_strides: tuple[int, int] = (1, 1)
    expansion: int = Field(5, ge=1)
    groups: int = Field(8, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    bottleneck_affine: bool = True

    @property
    def resolution(self) -> int:
        """Side of the highest-resolution branch."""
        return self.image_size // (self.stem_strides[0] * self.stem_strides[1])

    @model_validator(mode="after")
    def _sizes_fit(self) -> "MDEQConfig":
        if len(self.head_channels) != len(self.channels):
            raise ValueError(f"head_channels {self.head_channels} needs one entry for each of channels {self.channels}")
        if any(c % self.groups for c in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of groups {self.groups}")
        unit = self.stem_strides[0] * self.stem_strides[1] * 2 ** (len(self.channels) - 1)
        if self.image_size % unit:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {unit} for {len(self.channels)} branches")
        return self


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution whose weights and biases start as in the MDEQ of Bai et al.: with a standard deviation of 0.01."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    for parameter in conv.parameters():
        nn.init.normal_(parameter, 0, 0.01)
    return conv


def _normed_conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A weight-normalized convolution. It starts as PyTorch's do: what Bai et al. draw for it, their code does not use."""
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))


def merge_batch_norm(layers: nn.Sequential) -> None:
    """Merge every BatchNorm that follows a convolution into it, in place."""
    for name, (conv, norm) in zip(list(layers._modules), pairwise(list(layers))):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[int(name)], layers[int(name) + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity().eval()


class VariationalDropout(nn.Module):
    """Dropout of whole channels, whose mask stays the same through all evaluations of f in one solve (Gal and Ghahramani 2016).

    Raises ValueError for rows other than those that the mask was drawn for.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if self.mask is None:
            self.mask = x.new_empty(*x.shape[:2], 1, 1).bernoulli_(1 - self.rate) / (1 - self.rate)
        if self.mask.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"the dropout mask is of {len(self.mask)} rows, the batch has {len(x)}: draw_dropout() before another batch, "
                "and solve with compact=False"
            )
        return x * self.mask


class ResidualBlock(nn.Module):
    """One branch's block: conv, GN, ReLU, conv, dropout, + injection, GN, + residual, ReLU, GN."""

    def __init__(self, channels: int, config: MDEQConfig):
        super().__init__()
        wide = channels * config.expansion
        self.conv1 = _normed_conv(channels, wide, 3)
        self.norm1 = nn.GroupNorm(config.groups, wide)
        self.conv2 = _normed_conv(wide, channels, 3)
        self.dropout = VariationalDropout(config.dropout)
        self.norm2 = nn.GroupNorm(config.groups, channels)
        self.norm3 = nn.GroupNorm(config.groups, channels)

    def forward(self, z: Tensor, injection: Tensor | None) -> Tensor:
        """A branch's state (B, C, H, W) and what is injected into it, None for all but the first, to one like it."""
        # in place where autograd allows it: most of the time beside the convolutions goes into moving memory
        out = self.dropout(self.conv2(F.relu_(self.norm1(self.conv1(z)))).contiguous())
        if injection is not None:
            out = out + injection
        return self.norm3(self.norm2(out).add_(z).relu_())


_SMALL_SIDE = 4  # pixels: where a product with all of them is cheaper than one with columns
_LARGE_SIDE = 32  # pixels: from here on channels that do not fill a register are better kept side by side
_REGISTER = 16  # numbers


class FusionPath(nn.Module):
    """The path from branch ``source`` to branch ``target``: strided convolutions down, 1x1 and nearest upsampling up."""

    def __init__(self, source: int, target: int, config: MDEQConfig):
        super().__init__()
        c = config.channels
        self.upsampling = 2 ** (source - target) if source > target else 1
        self.register_buffer("spread", None, persistent=False)
        if source > target:
            self.layers = nn.Sequential(_conv(c[source], c[target], 1), nn.GroupNorm(config.groups, c[target]))
            return
        layers: list[nn.Module] = []
        for k in range(source, target):
            outputs = c[target] if k == target - 1 else c[source]
            layers += [_conv(c[source], outputs, 3, stride=2), nn.GroupNorm(config.groups, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def add_to(self, total: Tensor, z: Tensor) -> None:
        """Adds what branch ``source`` sends to the sum of branch ``target``, in place."""
        out = self.layers(z)
        if self.upsampling == 1:
            total += out
        elif self.spread is None:
            total += F.interpolate(out, scale_factor=self.upsampling, mode="nearest")
        elif self.spread.shape[1] == total.shape[-1]:  # copies columns; rows by broadcasting
            wide = out.reshape(-1, len(self.spread)) @ self.spread
            rows = wide.view(*out.shape[:3], 1, total.shape[-1])
            total.view(*out.shape[:3], self.upsampling, total.shape[-1]).add_(rows)
        else:  # copies pixels
            total.view(-1, self.spread.shape[1]).addmm_(out.view(-1, len(self.spread)), self.spread)

    def upsample_by_product(self, side: int) -> None:
        """From now on upsample from ``side`` x ``side`` by a product with zeros and ones: exact, and fast on processors."""
        columns = torch.eye(side).repeat_interleave(self.upsampling, dim=1)
        self.spread = torch.kron(columns, columns) if side <= _SMALL_SIDE else columns


class MDEQLayer(nn.Module):
    """The layer f on a list of branches: residual blocks, then all-to-all fusion."""

    def __init__(self, config: MDEQConfig):
        super().__init__()
        branches = range(len(config.channels))
        self.blocks = nn.ModuleList(ResidualBlock(c, config) for c in config.channels)
        self.paths = nn.ModuleDict({f"{j}_to_{i}": FusionPath(j, i, config) for i in branches for j in branches if i != j})
        self.post = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(inplace=True), _normed_conv(c, c, 1), nn.GroupNorm(max(1, config.groups // 2), c, affine=False)
            )
            for c in config.channels
        )

    def forward(self, zs: list[Tensor], injection: Tensor) -> list[Tensor]:
        """The branches' states (B, C_i, H / 2^i, W / 2^i), and the injection (B, C_0, H, W), to the next states."""
        outs = [block(z, injection if i == 0 else None) for i, (block, z) in enumerate(zip(self.blocks, zs))]
        fused = []
        for i, post in enumerate(self.post):
            total = outs[i].clone()
            for j, out in enumerate(outs):
                if j != i:
                    self.paths[f"{j}_to_{i}"].add_to(total, out)
            fused.append(post(total))
        return fused


class Bottleneck(nn.Module):
    """ResNet bottleneck with expansion 4 and a projection shortcut (head only); ``affine``: of the body's BatchNorms."""

    def __init__(self, inputs: int, width: int, affine: bool):
        super().__init__()
        self.body = nn.Sequential(
            *(_conv(inputs, width, 1), nn.BatchNorm2d(width, affine=affine), nn.ReLU(inplace=True)),
            *(_conv(width, width, 3), nn.BatchNorm2d(width, affine=affine), nn.ReLU(inplace=True)),
            *(_conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width, affine=affine)),
        )
        self.shortcut = nn.Sequential(_conv(inputs, 4 * width, 1), nn.BatchNorm2d(4 * width))

    def forward(self, z: Tensor) -> Tensor:
        """A branch (B, C, H, W) to (B, 4 width, H, W)."""
        return self.body(z).add_(self.shortcut(z)).relu_()


class MDEQHead(nn.Module):
    """Bottlenecks per branch, summed downwards to the lowest resolution, 1x1 convolution, average pool, linear."""

    def __init__(self, config: MDEQConfig):
        super().__init__()
        widths = [4 * h for h in config.head_channels]
        self.bottlenecks = nn.ModuleList(
            Bottleneck(c, h, config.bottleneck_affine) for c, h in zip(config.channels, config.head_channels)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(_conv(a, b, 3, stride=2, bias=True), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in pairwise(widths)
        )
        self.final = nn.Sequential(
            *(_conv(widths[-1], config.final_channels, 1, bias=True), nn.BatchNorm2d(config.final_channels)),
            nn.ReLU(inplace=True),
        )
        self.linear = nn.Linear(config.final_channels, config.num_classes)

    def forward(self, zs: list[Tensor]) -> Tensor:
        """The branches' states (B, C_i, H / 2^i, W / 2^i) to logits (B, classes)."""
        out = self.bottlenecks[0](zs[0])
        for down, bottleneck, z in zip(self.downs, self.bottlenecks[1:], zs[1:]):
            out = bottleneck(z) + down(out)
        return self.linear(self.final(out).mean(dim=(2, 3)))


class MDEQ(ImageNetwork):
    """MDEQ image classifier; implements :class:`srs.deq.definition.DEQ` on flat states (B, D).

    Input normalization is the first layer: noise and radii live in pixel units of [0, 1].
    """

    def __init__(self, config: MDEQConfig):
        super().__init__(config)
        width, inputs = config.channels[0], len(config.mean)
        first, second = config.stem_strides
        stem = [_conv(inputs, width, 3, stride=first), nn.BatchNorm2d(width), nn.ReLU()]
        stem += [_conv(width, width, 3, stride=second), nn.BatchNorm2d(width), nn.ReLU()]
        if len(config.channels) > 2 or config.stem_strides != (1, 1):
            stem += [_conv(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        self.layer = MDEQLayer(config)
        self.classifier = MDEQHead(config)
        self.state_shapes = [(c, config.resolution >> i, config.resolution >> i) for i, c in enumerate(config.channels)]
        self._sizes = [c * h * w for c, h, w in self.state_shapes]
        self.rows_at_once: int | None = None

    def inject(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in pixel units -> injection (B, C_0, h, w), added at the highest resolution."""
        return self._in_pieces(lambda x: self.stem(self.normalize(x)).contiguous(), x)

    def initial_state(self, injection: Tensor) -> Tensor:
        """Zeros (B, D)."""
        return injection.new_zeros(len(injection), sum(self._sizes))

    def f(self, z: Tensor, injection: Tensor) -> Tensor:
        """One application of the layer to flat states (B, D)."""
        return self._in_pieces(
            lambda z, injection: torch.cat([b.flatten(1) for b in self.layer(self.unpack(z), injection)], dim=1), z, injection
        )

    def head(self, z: Tensor) -> Tensor:
        """Flat states (B, D) -> logits (B, classes)."""
        return self._in_pieces(lambda z: self.classifier(self.unpack(z)), z)

    def _in_pieces(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        rows = self.rows_at_once
        if rows is None or len(inputs[0]) <= rows:
            return function(*inputs)
        return torch.cat([function(*piece) for piece in zip(*(x.split(rows) for x in inputs))])

    def unpack(self, z: Tensor) -> list[Tensor]:
        """Flat states (B, D) -> one (B, C_i, H_i, W_i) a branch."""
        return [part.reshape(-1, *shape) for part, shape in zip(z.split(self._sizes, dim=1), self.state_shapes)]

    def draw_dropout(self) -> None:
        """Forget the dropout masks: the next evaluation of f in training mode draws new ones."""
        for module in self.modules():
            if isinstance(module, VariationalDropout):
                module.mask = None

    @contextmanager
    def weights_once(self) -> Iterator[None]:
        """Within, each normalized weight is computed once, with its gradient, however often f is evaluated."""
        with parametrize.cached():
            for module in self._normalized():
                module.weight  # noqa: B018, now: a solver without gradients must not be the first to ask
            yield

    def fold(self, cache: int | None = None) -> "MDEQ":
        """Replace every weight-normalized weight by its value and merge every BatchNorm into its convolution, in place; for
        evaluation. ``cache``: bytes of memory near the processor; the model is arranged for one with so many, and computes so
        many rows at once as have their widest activation there (None: all rows of a batch). Returns itself.

        Raises ValueError in training mode, where BatchNorm is not a fixed linear map.
        """
        self.require_foldable()
        self._remove_weight_norm()
        self._merge_batch_norm()
        self.folded = True
        if cache is not None:
            self._upsample_by_products()
            self._keep_channels_side_by_side()
            self.rows_at_once = self._rows_within(cache)
        return self

    def _normalized(self) -> list[nn.Module]:
        return [module for module in self.modules() if parametrize.is_parametrized(module, "weight")]

    def _remove_weight_norm(self) -> None:
        """Every weight-normalized weight becomes a plain parameter of the same value."""
        for module in self._normalized():
            parametrize.remove_parametrizations(module, "weight")

    def _merge_batch_norm(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Sequential):
                merge_batch_norm(module)

    def _upsample_by_products(self) -> None:
        """Every path to a higher resolution (a branch of a lower number) upsamples by a product of matrices."""
        for target, source in combinations(range(len(self.state_shapes)), 2):
            self.layer.paths[f"{source}_to_{target}"].upsample_by_product(self.state_shapes[source][1])

    def _keep_channels_side_by_side(self) -> None:
        """Channels last in memory, where processors' convolutions are faster so: few channels of many pixels (with the highest
        resolution also the stem's and the starts'), and the head, whose 1x1 convolutions are wide."""
        for block, (channels, side, _) in zip(self.layer.blocks, self.state_shapes):
            if channels < _REGISTER and side >= _LARGE_SIDE:
                around = (self.stem, *getattr(self, "starts", {}).values()) if side == self.config.resolution else ()
                for part in (block.conv1, *around):
                    part.to(memory_format=torch.channels_last)
        self.classifier.to(memory_format=torch.channels_last)

    def _rows_within(self, cache: int) -> int:
        """How many rows have their widest activation, that within a residual block, in ``cache`` bytes; at least one."""
        widest = max(c * self.config.expansion * h * w for c, h, w in self.state_shapes)
        return max(1, cache // (4 * widest))  # of float32

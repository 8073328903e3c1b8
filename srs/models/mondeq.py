"""A small fully connected monotone DEQ, monDEQ (Winston and Kolter 2020), whose votes can be proved.

Its fixed point is that of z = relu(W z + U x + b), where W = (1 - m) I - A^T A + B - B^T; logits are V z + h. I - W is
m-strongly monotone whatever A and B are, so that there is exactly one. With a ``lipschitz`` bound L (Revay et al. 2020, with
Lambda = I) W has - (V^T V + U U^T) / (2 L) besides, and no two images' logits differ by more than L times their distance.

The iteration z <- relu(W z + u) need not converge. The layer f here is a step of Peaceman-Rachford splitting, which always
does: its state v stands for z = relu(v), and f contracts in the l2 norm. :func:`MonDEQ.proved_margin` bounds what is left to
the fixed point; Theorem 5 of docs/certificates.md has the proofs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import optimize
from torch import Tensor, nn

from srs.models.images import ImageConfig, ImageNetwork
from srs.models.spectrum import frobenius_norm, least_eigenvalue, rounding, spectral_norm

_SAFETY = 1 + 1e-9  # double precision's rounding in a norm of a row and what is made of it is below


class MonDEQConfig(ImageConfig):
    """Every size of a monDEQ. Channel statistics ``mean`` and ``std`` make the model's first layer, in pixel units.

    ``size`` units; ``monotonicity`` m; ``lipschitz``: a bound on the map from pixels to logits, l2 to l2, or None.
    """

    size: int = Field(ge=1)
    monotonicity: float = Field(1.0, gt=0)
    lipschitz: float | None = Field(None, gt=0)
    image_size: int = Field(8, ge=1)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)


@dataclass(frozen=True)
class Bounds:
    """Of a folded model's weights, each bounded to the safe side: ``m`` from below, all else from above.

    ``w`` = ||W||, ``s`` = ||2 I - W||, ``r`` = ||R||_F, ``inverse`` = ||(2 I - W) R - I||, ``u`` = ||U||_F, ``bias`` = ||b||,
    ``v`` the longest row of V, ``h`` the largest bias of a logit; ``apart`` (C, C) the rows' distances. ``terms``: the longest
    sum, and some roundings more.
    """

    m: float
    w: float
    s: float
    r: float
    inverse: float
    u: float
    bias: float
    v: float
    h: float
    apart: Tensor
    terms: int


class MonDEQ(ImageNetwork):
    """Monotone DEQ image classifier; implements :class:`srs.deq.definition.DEQ` on states v (B, size).

    Input normalization is the first layer: noise and radii live in pixel units of [0, 1]. What is proved, is proved of the
    model that :meth:`fold` leaves.
    """

    def __init__(self, config: MonDEQConfig):
        super().__init__(config)
        size, pixels = config.size, config.image_size**2
        self.input, self.output = nn.Linear(len(config.mean) * pixels, size), nn.Linear(size, config.num_classes)
        self.a, self.b = (nn.Parameter(torch.randn(size, size) / (2 * size**0.5)) for _ in range(2))
        self._weights: tuple[Tensor, Tensor] | None = None
        self._bounds: Bounds | None = None
        self._bounded: list[tuple[Tensor, int]] = []  # of which tensors, at which version

    def inject(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in pixel units -> injection (B, size + 1): U x + b and, to bound its rounding, ||x||, of the
        normalized x."""
        x = self.normalize(x).flatten(1)
        return torch.cat([self.input(x), x.norm(dim=1, keepdim=True)], dim=1)

    def initial_state(self, injection: Tensor) -> Tensor:
        """Zeros (B, size)."""
        return injection.new_zeros(len(injection), self.config.size)

    def f(self, v: Tensor, injection: Tensor) -> Tensor:
        """One step of Peaceman-Rachford splitting: v -> 2 R (|v| + u) - |v|, where R = (2 I - W)^-1."""
        return 2 * F.linear(v.abs() + injection[:, :-1], self.weights()[1]) - v.abs()

    def head(self, v: Tensor) -> Tensor:
        """States (B, size) -> logits (B, classes) of z = relu(v)."""
        return self.output(v.relu())

    def weights(self) -> tuple[Tensor, Tensor]:
        """W and R = (2 I - W)^-1, (size, size)."""
        if self.folded:
            return self.weight, self.resolvent
        return self._weights or self._make_weights()

    def _make_weights(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.config.size, device=self.a.device, dtype=self.a.dtype)
        w = (1 - self.config.monotonicity) * eye - self.a.T @ self.a + self.b - self.b.T
        if self.config.lipschitz is not None:
            v, u = self.output.weight, self._input_of_pixels(self.input.weight)
            w = w - (v.T @ v + u @ u.T) / (2 * self.config.lipschitz)
        return w, torch.linalg.inv(2 * eye - w)

    def _input_of_pixels(self, u: Tensor) -> Tensor:
        """U as it acts on pixels, before they are normalized."""
        return u / self.std.flatten().repeat_interleave(self.config.image_size**2)

    @contextmanager
    def weights_once(self) -> Iterator[None]:
        """Within, W and R are computed once, with their gradient, however often f is evaluated."""
        self._weights = self._make_weights()
        try:
            yield
        finally:
            self._weights = None

    def draw_dropout(self) -> None:
        """Nothing: there is no dropout."""

    def fold(self) -> "MonDEQ":
        """Replace A and B by W and its R, in place; for evaluation. What is proved is proved of this W, whatever A and B were.
        Returns itself. Raises ValueError in training mode, as other models do."""
        self.require_foldable()
        if not self.folded:
            self.register_buffer("weight", self._make_weights()[0].detach())
            self.register_buffer("resolvent", self._inverse())
            del self.a, self.b
        return self

    @property
    def folded(self) -> bool:
        """Whether the layer's weight has been computed once and for all."""
        return "weight" in self._buffers

    def _inverse(self) -> Tensor:
        """R, to the precision of the weights' type."""
        w = self.weight.double()
        return torch.linalg.inv(2 * torch.eye(len(w), dtype=w.dtype, device=w.device) - w).to(self.weight.dtype)

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        self._bounds = None
        if self.folded:  # in another type W may be rounded, and R have more digits
            self.resolvent = self._inverse()
        return self

    def proved_margin(self, v: Tensor, fv: Tensor, injection: Tensor, eps: float) -> Tensor:
        """By how much, at least, the logit of one class is above all others at the exact fixed point, (B,) in double
        precision: the class whose logit is largest at ``fv`` = f(v, injection). Not positive where it may be another.

        ``eps``: the relative spacing of the numbers in which inject, f and head are computed. Raises ValueError where they are
        too coarse for any bound, the model is not folded, or its weights are not monotone any more.
        """
        bounds = self.bounds()
        unit = bounds.terms * eps / 2
        if unit > 0.5:
            raise ValueError(f"numbers of relative spacing {eps:g} are too coarse to prove a vote: use float32 or float64")
        off = unit / (1 - unit)  # a sum's relative error, in whatever order it is summed
        logits = self.head(fv).double()
        v, fv, u, x = v.double(), fv.double(), injection[:, :-1].double(), injection[:, -1].double()
        size = fv.norm(dim=1)
        solved = (bounds.inverse + off * (1 + bounds.s * bounds.r)) * (v.norm(dim=1) + u.norm(dim=1)) + off * bounds.s * size
        wrong = solved + off * (bounds.u * x + bounds.bias)
        distance = _SAFETY * (bounds.w * (v.abs() - fv.abs()).norm(dim=1) / 2 + wrong) / bounds.m
        read = _SAFETY * 5 * off * (bounds.v * size + bounds.h)  # of two logits, here and when the vote is cast; a difference
        top = logits.argmax(dim=1, keepdim=True)
        margins = logits.gather(1, top) - logits - bounds.apart[top[:, 0]] * distance[:, None] - read[:, None]
        return margins.scatter(1, top, torch.inf).amin(dim=1)

    def bounds(self) -> Bounds:
        """What is known of the weights. Raises ValueError where they are not those of a folded, monotone model."""
        if not self.folded:
            raise ValueError("votes are proved of a model whose weights are fixed: call model.eval().fold() first")
        tensors = self.weight, self.resolvent, *self.input.parameters(), *self.output.parameters()
        now = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        alike = [one is other and version == later for (one, version), (other, later) in zip(self._bounded, now)]
        if self._bounds is None or not all(alike):  # weights were loaded or edited (but for a write into .data) meanwhile
            self._bounds, self._bounded = self._bound(), now
        return self._bounds

    @torch.no_grad()
    def _bound(self) -> Bounds:
        w, r = self.weight.double(), self.resolvent.double()
        eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
        v = self.output.weight.double()
        m = least_eigenvalue(self._symmetric()) - rounding(1, frobenius_norm(w) + frobenius_norm(eye))
        if not m > 0:
            raise ValueError(f"the weights are not monotone: I - W has the modulus {m:.3g}, where more than 0 is needed")
        factors = frobenius_norm(2 * eye - w) * frobenius_norm(r)
        return Bounds(
            m=m,
            w=spectral_norm(w),
            s=spectral_norm(2 * eye - w) * _SAFETY,
            r=frobenius_norm(r),
            inverse=frobenius_norm((2 * eye - w) @ r - eye) + rounding(len(w), factors + len(w)),
            u=frobenius_norm(self.input.weight),
            bias=frobenius_norm(self.input.bias),
            v=max(frobenius_norm(row) for row in v),
            h=float(self.output.bias.abs().max()),
            apart=_SAFETY * (v[:, None] - v).norm(dim=2),
            terms=max(self.input.in_features, len(w)) + 10,
        )

    def _symmetric(self) -> Tensor:
        w = self.weight.double()
        return torch.eye(len(w), dtype=w.dtype, device=w.device) - (w + w.T) / 2

    @torch.no_grad()
    def lipschitz(self) -> float:
        """An upper bound L on ||logits(x) - logits(y)|| / ||x - y||, l2, pixel units (Theorem 7 of docs/certificates.md).

        The least gamma with 2 gamma S - t V^T V - U U^T / t >= 0, S the symmetric part of I - W, at the best t > 0. Raises as
        :meth:`bounds` does.
        """
        bounds, s = self.bounds(), self._symmetric()
        v, u = self.output.weight.double(), self._input_of_pixels(self.input.weight.double())
        heads, inputs = v.T @ v, u @ u.T
        values, vectors = torch.linalg.eigh(s)
        root = vectors / values.sqrt()

        def gamma(log_t: float) -> float:
            scaled = heads * 2.0**log_t + inputs / 2.0**log_t
            return float(torch.linalg.eigvalsh(root.T @ scaled @ root)[-1]) / 2

        log_t = float(optimize.minimize_scalar(gamma, bounds=(-20, 20), method="bounded").x)
        t, found = 2.0**log_t, gamma(log_t)
        sizes = 2 * found * frobenius_norm(s) + t * frobenius_norm(v) ** 2 + frobenius_norm(u) ** 2 / t
        least = least_eigenvalue(2 * found * s - t * heads - inputs / t) - rounding(max(u.shape), sizes)
        if not least > -math.inf:
            raise ValueError(f"the weights are too large for a Lipschitz bound: its check gave {least}")
        return _SAFETY * (found + max(0.0, -least) / (2 * bounds.m))  # S >= m makes good what rounding left below zero

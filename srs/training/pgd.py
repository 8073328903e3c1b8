"""The ascent that attacks and adversarial training share: PGD in the l2 ball (Salman et al. 2019, Section 2.2).

It walks within the ball of radius epsilon around an image, by steps of one length along the gradient of
-log mean_i softmax(logits(x + noise_i))_label; plain PGD has one copy and no noise. The ball of a certificate is not clipped
to [0, 1], so attacked images are not either.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from srs.deq.solvers import per_row

Logits = Callable[[Tensor], Tensor]


def ascend(
    logits: Logits, x: Tensor, labels: Tensor, noise: Tensor | None, epsilon: Tensor, steps: int, step_size: float
) -> Tensor:
    """Where ``steps`` steps up :func:`smoothed_loss` lead from ``x`` (B, ...), each projected onto the row's ball.

    A row without a usable gradient (zero, or not finite) takes no step.
    """
    shift = torch.zeros_like(x)
    for _ in range(steps):
        shift.requires_grad_()
        with torch.enable_grad():
            loss = smoothed_loss(logits, x + shift, labels, noise).sum()  # a sum: no row's gradient sees another row
        step = _unit(torch.autograd.grad(loss, shift)[0])
        shift = project(shift.detach() + step_size * step, epsilon)
    return x + shift


def smoothed_loss(logits: Logits, x: Tensor, labels: Tensor, noise: Tensor | None = None) -> Tensor:
    """-log mean_i softmax(logits(x + noise_i))_label (B,), noise (B or 1, m, ...); without noise the cross-entropy."""
    copies = x[:, None] if noise is None else x[:, None] + noise
    rows, count = copies.shape[:2]
    losses = F.cross_entropy(logits(copies.flatten(0, 1)), labels.repeat_interleave(count), reduction="none")
    return math.log(count) - (-losses.view(rows, count)).logsumexp(dim=1)


def project(shift: Tensor, epsilon: Tensor) -> Tensor:
    """Rows (B, ...) scaled down to an l2 norm of at most ``epsilon`` (B,)."""
    norm = shift.flatten(1).norm(dim=1).clamp_min(torch.finfo(shift.dtype).tiny)
    return shift * per_row((epsilon / norm).clamp_max(1.0), shift)


def _unit(gradient: Tensor) -> Tensor:
    """Rows of l2 norm 1, or 0 where there is no direction. Float64: a confident classifier's gradient is tiny."""
    exact = gradient.double()
    norm = per_row(exact.flatten(1).norm(dim=1), exact)
    return torch.where(norm.isfinite() & (norm > 0), exact / norm, 0.0).to(gradient.dtype)

"""The deterministic certificate of a DEQ whose logits are Lipschitz: no noise, no draws, no alpha (Tsuzuku et al. 2018;
Theorem 7 of docs/certificates.md)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from srs.certificates import bounds
from srs.certificates.certify import ABSTAIN
from srs.common.machine import full_precision
from srs.deq.interface import checked, device_of, require_image
from srs.deq.solvers import Solver, solve


@dataclass(frozen=True)
class LipschitzCertificate:
    """The exact fixed point's class is ``prediction`` at the image and at every point closer than ``radius`` (l2, pixel units):
    its logit is at least ``margin`` above all others there, and logits are ``lipschitz``. ABSTAIN (-1), with radius 0, where
    no margin is proved."""

    prediction: int
    radius: float
    margin: float
    lipschitz: float


@torch.no_grad()
@full_precision()
def certify_lipschitz(model, images: Tensor, solver: Solver | None = None) -> list[LipschitzCertificate]:
    """A certificate for each of ``images`` (n, C, H, W), of a DEQ with the methods ``proved_margin`` and ``lipschitz``
    (:class:`srs.models.mondeq.MonDEQ`, folded); ``solver`` takes 100 Anderson steps, where none is given.

    Margins are proved in the type of images and model: float32 costs some 1e-4 of them. Raises ValueError for unusable
    images, a model that lacks a method, or one whose ``proved_margin`` or ``lipschitz`` does.
    """
    require_image(images, "images")
    deq = checked(model, deq=True)
    if deq.proved_margin is None or not callable(getattr(model, "lipschitz", None)):
        raise ValueError(f"model = {type(model).__name__} has no Lipschitz bound: it needs proved_margin and lipschitz")
    x = images.detach().to(device_of(model, images))
    with torch.autocast(x.device.type, enabled=False):
        injection, lipschitz = deq.inject(x.clone()), float(model.lipschitz())
        solution = solve(deq.f, deq.initial_state(injection), injection, solver or Solver(steps=100), margin=deq.proved_margin)
        fz = deq.f(solution.z, injection)
        classes = deq.head(fz).argmax(dim=1).tolist()
        margins = deq.proved_margin(solution.z, fz, injection, torch.finfo(x.dtype).eps).tolist()
    return [_certificate(top, margin, lipschitz) for top, margin in zip(classes, margins)]


def _certificate(top: int, margin: float, lipschitz: float) -> LipschitzCertificate:
    prediction = top if margin > 0 else ABSTAIN  # NaN is not
    return LipschitzCertificate(prediction, bounds.lipschitz_radius(margin, lipschitz), margin, lipschitz)

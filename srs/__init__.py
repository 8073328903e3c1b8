"""Deep equilibrium models, certified by (serialized) randomized smoothing."""

import importlib

_HOMES = {
    "ABSTAIN": "certificates.certify",
    "Certificate": "certificates.certify",
    "certify": "certificates.certify",
    "certify_at": "certificates.at_radius",
    "certify_many": "many",
    "certify_until": "certificates.at_radius",
    "predict": "certificates.certify",
    "DEQ": "deq.definition",
    "fit_starts": "starts",
    "load": "checkpoints",
    "Solver": "deq.solvers",
    "solve": "deq.solvers",
    "DirectSampler": "votes.samplers",
    "ReleasedSampler": "votes.samplers",
    "SerializedSampler": "votes.samplers",
    "StandardSampler": "votes.samplers",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """The names above, imported when first asked for: a notebook's runner needs none of them, nor torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'srs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"srs.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

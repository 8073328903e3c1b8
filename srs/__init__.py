"""Deep equilibrium models, certified by (serialized) randomized smoothing."""

import importlib

_HOMES = {
    "ABSTAIN": "certification",
    "Certificate": "certification",
    "certify": "certification",
    "certify_at": "sequential",
    "certify_many": "many",
    "predict": "certification",
    "DEQ": "deq",
    "fit_starts": "starts",
    "load": "checkpoints",
    "Solver": "solvers",
    "solve": "solvers",
    "DirectSampler": "votes",
    "ReleasedSampler": "votes",
    "SerializedSampler": "votes",
    "StandardSampler": "votes",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """The names above, imported when first asked for: a notebook's runner needs none of them, nor torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'srs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"srs.{_HOMES[name]}"), name)

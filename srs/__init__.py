"""Deep equilibrium models, certified by (serialized) randomized smoothing."""

from srs.certification import ABSTAIN, Certificate, certify, predict
from srs.deq import DEQ
from srs.solvers import Solver, solve
from srs.votes import DirectSampler, SerializedSampler, StandardSampler

__all__ = [
    "ABSTAIN",
    "DEQ",
    "Certificate",
    "DirectSampler",
    "SerializedSampler",
    "Solver",
    "StandardSampler",
    "certify",
    "predict",
    "solve",
]

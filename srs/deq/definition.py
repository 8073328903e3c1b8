"""What a deep equilibrium model (DEQ) is to this library.

A DEQ classifies x in three moves: ``injection = inject(x)``; solve ``z = f(z, injection)``; ``logits = head(z)``.
Source: Bai et al. (2019).
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from srs.deq.solvers import Margin, Solution, Solver, solve

METHODS = ("inject", "initial_state", "f", "head")


class DEQ(Protocol):
    """Any object with these four methods can be certified here; it need not be a subclass of anything (:func:`is_deq`).

    Every method must treat the rows of a batch independently (evaluation mode: no batch statistics, no dropout). Injection and
    state may each be a tensor or, where a DEQ is certified (:mod:`srs.deq.interface`), tuples, lists and dicts of tensors. An
    attribute ``rows_at_once``, if there is one and it is not None, bounds how many rows of a batch are solved at once, a
    released sampler's apart. A method ``proved_margin``, if there is one, makes votes those of the exact fixed point (``stop =
    "settled"``): :meth:`srs.models.mondeq.MonDEQ.proved_margin` says what it returns. It must not write into what it is given.
    """

    def inject(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), pixels in [0, 1] before noise -> injection (B, ...)."""

    def initial_state(self, injection: Tensor) -> Tensor:
        """Injection (B, ...) -> the standard start z0 (B, ...), zeros as a rule."""

    def f(self, z: Tensor, injection: Tensor) -> Tensor:
        """One application of the layer: state (B, ...) -> state of the same shape."""

    def head(self, z: Tensor) -> Tensor:
        """State (B, ...) -> logits (B, classes)."""


def is_deq(model) -> bool:
    """Whether ``model`` has the four methods, as methods, layers or other callables; an instance of Protocol would be looked at
    otherwise by each version of Python."""
    return all(callable(getattr(model, name, None)) for name in METHODS)


def classify(deq: DEQ, x: Tensor, solver: Solver, start: str = "initial") -> tuple[Tensor, Solution]:
    """Logits (B, classes) of images ``x`` (B, C, H, W), as :func:`read` has them, and the solution that they were read from.

    ``start``: as :func:`starting_state` has it; raises as that does.
    """
    injection = deq.inject(x)
    solution = solve(deq.f, starting_state(deq, injection, start), injection, solver, margin=margin_of(deq))
    return read(deq, solution, solver), solution


def margin_of(deq: DEQ) -> Margin | None:
    """By what rows are settled, where the DEQ has it."""
    return getattr(deq, "proved_margin", None)


def read(deq: DEQ, solution: Solution, solver: Solver) -> Tensor:
    """Logits (B, classes) of a solution; NaN where a row had to be settled and is not."""
    logits = deq.head(solution.z)
    return torch.where(solution.converged[:, None], logits, torch.nan) if solver.stop == "settled" else logits


def starting_state(deq: DEQ, injection: Tensor, start: str) -> Tensor:
    """Where a solver starts: the DEQ's "initial" state, or what one of its ``starts`` makes of the injection.

    Raises ValueError for a start that the model does not have.
    """
    if start == "initial":
        return deq.initial_state(injection)
    starts = getattr(deq, "starts", {})
    if start not in starts:
        raise ValueError(f"start = {start!r} is unknown to the model: choose one of {', '.join(['initial', *starts])}")
    return starts[start](injection)


def require_evaluation_mode(model) -> None:
    """Raises ValueError for a module of which any part is in training mode.

    What an exported graph (torch.export) says of its mode means nothing: what it was exported in counts.
    """
    if not isinstance(model, nn.Module) or (isinstance(model, torch.fx.GraphModule) and "eval" in vars(model)):
        return
    if any(getattr(part, "training", False) for part in model.modules()):  # frozen TorchScript has no mode
        raise ValueError(
            "the model, or a part of it, is in training mode, where votes depend on one another: call model.eval()"
        )

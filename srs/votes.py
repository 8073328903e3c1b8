"""Samplers: how a base classifier casts one vote for each noisy copy of an image.

A vote is a class, or UNDECIDED where the state is not finite or the two largest logits differ by less than MARGIN. An
undecided vote counts for nobody, so the certificate holds for the classifier in exact arithmetic too: that one can only
have more votes for class A than we count. Logits may change in their last digits with the size of a compute batch.
Rows whose margin is below 2 MARGIN are therefore computed again alone, and the vote is that of the lone row: as long as such
changes stay under MARGIN / 2, votes do not depend on the batch. A row that stops at a tolerance may, where its residual
comes close to the tolerance, stop a step earlier or later in another batch: such a row is computed again alone if its margin
is below WIDE, which one step near convergence does not cross; in a chain always, for the sake of the next start.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from srs.deq import DEQ, classify
from srs.noise import NoisyCopies, gather
from srs.sections import Section
from srs.solvers import Solution, Solver, per_row, solve

UNDECIDED = -1
MARGIN = 1e-4  # in logits
WIDE = 0.5  # in logits


@dataclass(frozen=True)
class Votes:
    """Votes, their price and how doubtful they are, draw by draw: ``classes`` (n,) int16; ``evaluations`` of f (n,) int32;
    ``seconds`` (n,) float32, each draw's share of the time of the batch that it was computed in, without that of making the
    noise; ``margins`` (n,) float16 between the two largest logits; ``residuals`` (n,) float16 of the solve, NaN without one."""

    classes: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray
    margins: np.ndarray
    residuals: np.ndarray

    TYPES: ClassVar = {
        "classes": np.int16,
        "evaluations": np.int32,
        "seconds": np.float32,
        "margins": np.float16,
        "residuals": np.float16,
    }

    @classmethod
    def blank(cls, shape: int | tuple[int, ...], fill: int = UNDECIDED) -> "Votes":
        return cls(**{name: np.full(shape, fill if name == "classes" else 0, kind) for name, kind in cls.TYPES.items()})

    def take(self, places) -> "Votes":
        return Votes(**{name: getattr(self, name)[places] for name in self.TYPES})

    def put(self, places, other: "Votes") -> None:
        """Enter ``other`` at ``places``."""
        for name in self.TYPES:
            getattr(self, name)[places] = getattr(other, name)


def decide(logits: Tensor) -> Tensor:
    """Logits (B, classes) -> votes (B,), UNDECIDED where a logit is not finite or the top-two margin is below MARGIN."""
    top = logits.topk(2, dim=1)
    decided = (top.values[:, 0] - top.values[:, 1] >= MARGIN) & logits.isfinite().all(dim=1)
    return torch.where(decided, top.indices[:, 0], UNDECIDED)


class _Sampler(Section):
    def canonical(self) -> Self:
        """The same computation under the plainest settings; equal ones cast the same votes."""
        solvers = {name: value.canonical() for name, value in self if isinstance(value, Solver)}
        return self.model_copy(update=solvers)

    def sample(self, model, copies: NoisyCopies, draws: np.ndarray, batch_size: int) -> Votes:
        """:meth:`sample_many` for one image."""
        return self.sample_many(model, [copies], [draws], batch_size)[0]


class _IndependentSampler(_Sampler):
    """Every vote is a function of its own noisy copy: the votes of an image are independent and identically distributed."""

    independent: ClassVar[bool] = True

    @torch.no_grad()
    def sample_many(self, model, copies: Sequence[NoisyCopies], draws: Sequence[np.ndarray], batch_size: int) -> list[Votes]:
        """Votes of each image's copies numbered ``draws``, in that order, computed ``batch_size`` at a time."""
        cast = [Votes.blank(len(numbers)) for numbers in draws]
        which = np.repeat(np.arange(len(copies)), [len(numbers) for numbers in draws])
        places = np.concatenate([np.arange(len(numbers)) for numbers in draws])
        numbers = np.concatenate(draws)
        for rows in _batches(np.arange(len(which)), batch_size):
            x = gather(copies, which[rows], numbers[rows])
            began = time.perf_counter()
            logits, solution = self._logits(model, x)
            unsure = solution.close if solution else None
            logits = _settle(logits, lambda row, x=x: self._logits(model, x[row])[0], unsure)
            _share(cast, which[rows], places[rows], logits, solution, began)
        return cast

    def _logits(self, model, x: Tensor) -> tuple[Tensor, Solution | None]:
        raise NotImplementedError


class DirectSampler(_IndependentSampler):
    """Any classifier: ``model(x)`` maps images (B, C, H, W) to logits (B, classes); one forward pass a vote."""

    kind: Literal["direct"] = "direct"

    def _logits(self, model, x: Tensor) -> tuple[Tensor, None]:
        return model(x), None


class StandardSampler(_IndependentSampler):
    """Standard randomized smoothing of a DEQ: every solve starts from the DEQ's initial state."""

    kind: Literal["standard"] = "standard"
    solver: Solver = Solver(method="anderson", steps=30)

    def _logits(self, model: DEQ, x: Tensor) -> tuple[Tensor, Solution]:
        return classify(model, x, self.solver)


class SerializedSampler(_Sampler):
    """Serialized randomized smoothing (Gao et al. 2024, Algorithm 1): each solve starts where an earlier one ended.

    Draw j belongs to chain j mod ``chains`` (the paper's batch of 400). A chain's first solve, and after every
    ``restart`` draws the next one, takes the ``warmup`` solver; all others take ``solver``. With start "previous" a solve
    starts at the chain's last state (the first one at the DEQ's initial state); with "clean" every solve starts at
    the warm-up's fixed point of the clean image. A chain whose state is lost (not finite) starts afresh. Votes
    depend on one another: certificates need an audit.
    """

    kind: Literal["serialized"] = "serialized"
    solver: Solver = Solver(method="anderson", steps=3)
    warmup: Solver = Solver(method="anderson", steps=10)
    restart: int | None = Field(None, ge=1)
    start: Literal["previous", "clean"] = "previous"
    chains: int = Field(400, ge=1)
    independent: ClassVar[bool] = False

    @model_validator(mode="after")
    def _restart_has_a_meaning(self) -> "SerializedSampler":
        if self.restart is not None and self.start == "clean":
            raise ValueError(f"restart = {self.restart} needs start = 'previous': with 'clean' there is nothing to restart")
        return self

    @torch.no_grad()
    def sample_many(
        self, model: DEQ, copies: Sequence[NoisyCopies], draws: Sequence[np.ndarray], batch_size: int
    ) -> list[Votes]:
        """Votes of each image's copies 0 ... n - 1, in the chains' order; ``batch_size`` chains, of several images, at a time.

        Raises ValueError when ``draws`` are anything else: a chain has no vote without those before it.
        """
        n = len(draws[0])
        if not all(np.array_equal(numbers, np.arange(n)) for numbers in draws):
            raise ValueError("a serialized sampler needs the draws 0, 1, 2, ... in order, equally many of each image")
        cast = [Votes.blank(n) for _ in copies]
        clean = self._clean_states(model, copies, cast) if self.start == "clean" else None
        for rows in _batches(np.arange(len(copies) * self.chains), batch_size):
            self._run(model, copies, *np.divmod(rows, self.chains), n, clean, cast)
        return cast

    def _run(self, model: DEQ, copies, which: np.ndarray, chain: np.ndarray, n: int, clean: Tensor | None, cast) -> None:
        """Chains number ``chain`` of the images ``which``, side by side from their first draw to their last below ``n``."""
        state: Tensor | None = None
        for turn in range(-(-n // self.chains)):
            alive = turn * self.chains + chain < n
            if not alive.any():
                return
            which, chain = which[alive], chain[alive]
            numbers = turn * self.chains + chain
            x = gather(copies, which, numbers)
            began = time.perf_counter()
            injection = model.inject(x)
            initial = model.initial_state(injection)
            if clean is not None:
                z0 = clean[torch.from_numpy(which).to(clean.device)]
            else:
                z0 = initial if state is None else state[torch.from_numpy(alive).to(state.device)]
            warm = self.start == "previous" and turn % (self.restart or n) == 0
            solver = self.warmup if warm else self.solver

            def alone(row: slice, z0=z0, injection=injection, solver=solver) -> Solution:
                return solve(model.f, z0[row], injection[row], solver)

            solution = solve(model.f, z0, injection, solver)
            for row in solution.close.nonzero().flatten().tolist() if solver.stop != "fixed" else ():
                solution.z[row] = alone(slice(row, row + 1)).z[0]
            logits = _settle(model.head(solution.z), lambda row, alone=alone: model.head(alone(row).z))
            state = torch.where(per_row(solution.finite, initial), solution.z, initial)
            _share(cast, which, numbers, logits, solution, began)

    @property
    def warm_draws(self) -> int:
        """How many draws the first warm-up takes."""
        return self.chains if self.start == "previous" else 0

    def warm_share(self, total: int) -> float:
        """Which share of ``total`` votes comes from the warm-up solver."""
        if self.start == "clean":
            return 0.0
        batches = [min(self.chains, total - first) for first in range(0, total, self.chains)]
        return sum(batches[:: self.restart or len(batches)]) / total

    def _clean_states(self, model: DEQ, copies: Sequence[NoisyCopies], cast: list[Votes]) -> Tensor:
        """Each clean image's fixed point, solved alone, its price on the image's first draw."""
        states = []
        for one, votes in zip(copies, cast):
            began = time.perf_counter()
            injection = model.inject(one.image[None])
            solution = solve(model.f, model.initial_state(injection), injection, self.warmup)
            states.append(solution.z)
            votes.evaluations[0] += int(solution.evaluations)
            votes.seconds[0] += time.perf_counter() - began
        return torch.cat(states)


Sampler = Annotated[DirectSampler | StandardSampler | SerializedSampler, Field(discriminator="kind")]


def _share(
    cast: list[Votes], which: np.ndarray, places: np.ndarray, logits: Tensor, solution: Solution | None, began: float
) -> None:
    """Enter a batch's votes at ``places`` of the images ``which``; each row bears an equal share of the batch's time."""
    found = {"classes": decide(logits), "margins": _margins(logits)}
    if solution:
        found |= {"evaluations": solution.evaluations, "residuals": solution.residual}
    found = {name: values.cpu().numpy() for name, values in found.items()}
    votes = Votes.blank(len(which))
    votes.evaluations[:], votes.residuals[:] = 1, np.nan  # a forward pass
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        for name, values in found.items():
            getattr(votes, name)[:] = values
    votes.seconds[:] = (time.perf_counter() - began) / len(which)
    for i in np.unique(which):
        mine, here = votes.take(which == i), places[which == i]
        mine.evaluations[:] += cast[i].evaluations[here]
        mine.seconds[:] += cast[i].seconds[here]
        cast[i].put(here, mine)


def _batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _margins(logits: Tensor) -> Tensor:
    """The largest logit minus the second, row by row."""
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def _settle(logits: Tensor, alone: Callable[[slice], Tensor], unsure: Tensor | None = None) -> Tensor:
    """Logits of a batch; ``alone`` gives those of one of its rows, computed by itself, where the batch could decide."""
    margins = _margins(logits)
    again = margins < 2 * MARGIN
    if unsure is not None:
        again |= unsure & (margins < WIDE)
    logits = logits.clone()
    for row in again.nonzero().flatten().tolist():
        logits[row] = alone(slice(row, row + 1))[0]
    return logits

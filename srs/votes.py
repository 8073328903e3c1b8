"""Samplers: how a base classifier casts one vote for each noisy copy of an image.

A vote is a class, or UNDECIDED where the state is not finite or the two largest logits differ by less than MARGIN. An
undecided vote counts for nobody, so the certificate holds for the classifier in exact arithmetic too: that one can only
have more votes for class A than we count. Logits may change in their last digits with the size of a compute batch.
Rows whose margin is below 2 MARGIN are therefore computed again alone, and the vote is that of the lone row: as long as such
changes stay under MARGIN / 2, votes do not depend on the batch. (A row that stops at a tolerance may, when its residual
meets the tolerance to the last digit, take one step more in another batch; fixed runs have no such edge.)
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
from srs.solvers import Solver, per_row, solve

UNDECIDED = -1
MARGIN = 1e-4  # in logits


@dataclass(frozen=True)
class Votes:
    """Votes and their price, draw by draw: ``classes`` (n,) int16, ``evaluations`` of f (n,) int32, ``seconds`` (n,)
    float32: each draw's share of the time of the batch that it was computed in, without that of making the noise."""

    classes: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray

    @classmethod
    def blank(cls, shape: int | tuple[int, ...], fill: int = UNDECIDED) -> "Votes":
        return cls(np.full(shape, fill, np.int16), np.zeros(shape, np.int32), np.zeros(shape, np.float32))

    def take(self, places) -> "Votes":
        return Votes(self.classes[places], self.evaluations[places], self.seconds[places])


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
            logits, evaluations = self._logits(model, x)
            classes = _settle(logits, lambda row, x=x: self._logits(model, x[row])[0])
            _share(cast, which[rows], places[rows], classes, evaluations, began)
        return cast

    def _logits(self, model, x: Tensor) -> tuple[Tensor, np.ndarray]:
        raise NotImplementedError


class DirectSampler(_IndependentSampler):
    """Any classifier: ``model(x)`` maps images (B, C, H, W) to logits (B, classes); one forward pass a vote."""

    kind: Literal["direct"] = "direct"

    def _logits(self, model, x: Tensor) -> tuple[Tensor, np.ndarray]:
        return model(x), np.ones(len(x), np.int32)


class StandardSampler(_IndependentSampler):
    """Standard randomized smoothing of a DEQ: every solve starts from the DEQ's initial state."""

    kind: Literal["standard"] = "standard"
    solver: Solver = Solver(method="anderson", steps=30)

    def _logits(self, model: DEQ, x: Tensor) -> tuple[Tensor, np.ndarray]:
        logits, solution = classify(model, x, self.solver)
        return logits, solution.evaluations.cpu().numpy()


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

            def alone(row: slice, z0=z0, injection=injection, solver=solver) -> Tensor:
                return model.head(solve(model.f, z0[row], injection[row], solver).z)

            solution = solve(model.f, z0, injection, solver)
            classes = _settle(model.head(solution.z), alone)
            state = torch.where(per_row(solution.finite, initial), solution.z, initial)
            _share(cast, which, numbers, classes, solution.evaluations.cpu().numpy(), began)

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


def _share(cast: list[Votes], which: np.ndarray, places: np.ndarray, classes, evaluations, began: float) -> None:
    """Enter a batch's votes at ``places`` of the images ``which``; each row bears an equal share of the batch's time."""
    seconds = (time.perf_counter() - began) / len(which)
    for i in np.unique(which):
        mine, here = which == i, cast[i]
        here.classes[places[mine]] = classes[mine]
        here.evaluations[places[mine]] += evaluations[mine]
        here.seconds[places[mine]] += seconds


def _batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _settle(logits: Tensor, alone: Callable[[slice], Tensor]) -> np.ndarray:
    """Votes of a batch; ``alone`` gives the logits of one of its rows, computed by itself, where the margin is narrow."""
    votes = decide(logits)
    top = logits.topk(2, dim=1).values
    for row in (top[:, 0] - top[:, 1] < 2 * MARGIN).nonzero().flatten().tolist():
        votes[row] = decide(alone(slice(row, row + 1)))[0]
    return votes.cpu().numpy().astype(np.int16)

"""Samplers: how a base classifier casts one vote for each noisy copy of an image.

A vote is a class, or UNDECIDED where the state is not finite or the two largest logits differ by less than MARGIN. An
undecided vote counts for nobody, so the certificate holds for the classifier in exact arithmetic too: that one can only
have more votes for class A than we count. Logits may change in their last digits with the size of a compute batch.
Rows whose margin is below 2 MARGIN are therefore computed again alone, and the vote is that of the lone row: as long as such
changes stay under MARGIN / 2, votes do not depend on the batch. (A row that stops at a tolerance may, when its residual
meets the tolerance to the last digit, take one step more in another batch; fixed runs have no such edge.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from srs.deq import DEQ, classify
from srs.noise import NoisyCopies
from srs.solvers import Solution, Solver, per_row, solve

UNDECIDED = -1
MARGIN = 1e-4  # in logits


@dataclass(frozen=True)
class Votes:
    """Votes and their price, draw by draw: ``classes`` (n,) int16, ``evaluations`` of f (n,) int32."""

    classes: np.ndarray
    evaluations: np.ndarray

    def take(self, positions: np.ndarray) -> "Votes":
        return Votes(self.classes[positions], self.evaluations[positions])


def decide(logits: Tensor) -> Tensor:
    """Logits (B, classes) -> votes (B,), UNDECIDED where a logit is not finite or the top-two margin is below MARGIN."""
    top = logits.topk(2, dim=1)
    decided = (top.values[:, 0] - top.values[:, 1] >= MARGIN) & logits.isfinite().all(dim=1)
    return torch.where(decided, top.indices[:, 0], UNDECIDED)


class _Sampler(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DirectSampler(_Sampler):
    """Any classifier: ``model(x)`` maps images (B, C, H, W) to logits (B, classes); one forward pass a vote."""

    kind: Literal["direct"] = "direct"
    independent: ClassVar[bool] = True

    @torch.no_grad()
    def sample(self, model, copies: NoisyCopies, draws: np.ndarray, batch_size: int) -> Votes:
        """Votes of the copies numbered ``draws``, computed ``batch_size`` at a time."""
        classes = []
        for batch in _batches(draws, batch_size):
            x = copies(batch)
            classes.append(_settle(model(x), lambda row, x=x: model(x[row])))
        return Votes(np.concatenate(classes), np.ones(len(draws), np.int32))


class StandardSampler(_Sampler):
    """Standard randomized smoothing of a DEQ: every solve starts from the DEQ's initial state."""

    kind: Literal["standard"] = "standard"
    solver: Solver = Solver(method="anderson", steps=30)
    independent: ClassVar[bool] = True

    @torch.no_grad()
    def sample(self, model: DEQ, copies: NoisyCopies, draws: np.ndarray, batch_size: int) -> Votes:
        """Votes of the copies numbered ``draws``, computed ``batch_size`` at a time."""
        classes, evaluations = [], []
        for batch in _batches(draws, batch_size):
            x = copies(batch)
            logits, solution = classify(model, x, self.solver)
            classes.append(_settle(logits, lambda row, x=x: classify(model, x[row], self.solver)[0]))
            evaluations.append(solution.evaluations.cpu().numpy())
        return Votes(np.concatenate(classes), np.concatenate(evaluations).astype(np.int32))


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
    def sample(self, model: DEQ, copies: NoisyCopies, draws: np.ndarray, batch_size: int) -> Votes:
        """Votes of all copies 0 ... len(draws) - 1, in the chains' order, computed ``batch_size`` chains at a time.

        Raises ValueError when ``draws`` is anything else: a chain has no vote without those before it.
        """
        if not np.array_equal(draws, np.arange(len(draws))):
            raise ValueError("a serialized sampler needs the draws 0, 1, 2, ... in order: later votes rest on earlier ones")
        classes = np.empty(len(draws), np.int16)
        evaluations = np.empty(len(draws), np.int32)
        states: list[Tensor] = []  # where the next solves start, one tensor for each piece of the chains
        if self.start == "clean":
            clean = self._clean_solution(model, copies)
        for turn, batch in enumerate(_batches(draws, self.chains)):
            warm = self.start == "previous" and turn % (self.restart or len(draws)) == 0
            for piece, rows in enumerate(_batches(batch, batch_size)):
                injection = model.inject(copies(rows))
                initial = model.initial_state(injection)
                if self.start == "clean":
                    z0 = clean.z.expand_as(initial)
                else:
                    z0 = initial if turn == 0 else states[piece][: len(rows)]
                solver = self.warmup if warm else self.solver

                def alone(row: slice, z0=z0, injection=injection, solver=solver) -> Tensor:
                    return model.head(solve(model.f, z0[row], injection[row], solver).z)

                solution = solve(model.f, z0, injection, solver)
                classes[rows] = _settle(model.head(solution.z), alone)
                evaluations[rows] = solution.evaluations.cpu().numpy()
                states[piece : piece + 1] = [torch.where(per_row(solution.finite, initial), solution.z, initial)]
        if self.start == "clean":
            evaluations[0] += int(clean.evaluations)
        return Votes(classes, evaluations)

    def warm_share(self, total: int) -> float:
        """Which share of ``total`` votes comes from the warm-up solver."""
        if self.start == "clean":
            return 0.0
        batches = [min(self.chains, total - first) for first in range(0, total, self.chains)]
        return sum(batches[:: self.restart or len(batches)]) / total

    def _clean_solution(self, model: DEQ, copies: NoisyCopies) -> Solution:
        injection = model.inject(copies.image[None])
        return solve(model.f, model.initial_state(injection), injection, self.warmup)


Sampler = Annotated[DirectSampler | StandardSampler | SerializedSampler, Field(discriminator="kind")]


def _batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _settle(logits: Tensor, alone: Callable[[slice], Tensor]) -> np.ndarray:
    """Votes of a batch; ``alone`` gives the logits of one of its rows, computed by itself, where the margin is narrow."""
    votes = decide(logits)
    top = logits.topk(2, dim=1).values
    for row in (top[:, 0] - top[:, 1] < 2 * MARGIN).nonzero().flatten().tolist():
        votes[row] = decide(alone(slice(row, row + 1)))[0]
    return votes.cpu().numpy().astype(np.int16)

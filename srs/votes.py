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
from srs.solvers import Inverse, Solution, Solver, per_row, solve

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


def decide(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) -> votes (B,), UNDECIDED where a logit is not finite or the margin is below MARGIN; and margins (B,)
    between the two largest logits."""
    top = logits.topk(2, dim=1)
    margins = top.values[:, 0] - top.values[:, 1]
    decided = (margins >= MARGIN) & logits.isfinite().all(dim=1)
    return torch.where(decided, top.indices[:, 0], UNDECIDED), margins


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
        """Votes of each image's copies numbered ``draws``, in that order, at most ``batch_size`` computed at a time."""
        cast = [Votes.blank(len(numbers)) for numbers in draws]
        which = np.repeat(np.arange(len(copies)), [len(numbers) for numbers in draws])
        places = np.concatenate([np.arange(len(numbers)) for numbers in draws])
        numbers = np.concatenate(draws)
        split, at_once = batches(np.arange(len(which)), batch_size), rows_at_once(model, batch_size)
        for batch, copied in zip(split, gather(copies, [(which[rows], numbers[rows]) for rows in split])):
            for rows, x in zip(batches(batch, at_once), copied.split(at_once)):
                began = time.perf_counter()
                logits, solution = self._logits(model, x)
                unsure = solution.close if solution else None
                decided = _settle(logits, lambda row, x=x: self._logits(model, x[row])[0], unsure)
                _share(cast, which[rows], places[rows], decided, solution, began)
        return cast

    def _logits(self, model, x: Tensor) -> tuple[Tensor, Solution | None]:
        raise NotImplementedError


class DirectSampler(_IndependentSampler):
    """Any classifier: ``model(x)`` maps images (B, C, H, W) to logits (B, classes); one forward pass a vote."""

    kind: Literal["direct"] = "direct"

    def _logits(self, model, x: Tensor) -> tuple[Tensor, None]:
        return model(x), None


class StandardSampler(_IndependentSampler):
    """Standard randomized smoothing of a DEQ: every solve starts from the DEQ's initial state or, amortized, from one of
    its fitted starts, "mean" or "learned" (:mod:`srs.starts`): a function of the noisy input alone, too."""

    kind: Literal["standard"] = "standard"
    solver: Solver = Solver(method="anderson", steps=30)
    start: Literal["initial", "mean", "learned"] = "initial"

    def _logits(self, model: DEQ, x: Tensor) -> tuple[Tensor, Solution]:
        return classify(model, x, self.solver, self.start)


class SerializedSampler(_Sampler):
    """Serialized randomized smoothing (Gao et al. 2024, Algorithm 1): each solve starts where earlier ones ended.

    Draw j belongs to chain j mod ``chains`` (the paper's batch of 400); one draw of every chain makes a turn. The first turn
    and after every ``restart`` turns the next one take the ``warmup`` solver, all others take ``solver``. Where a solve starts:

    - "previous": at the chain's last state (a first one at the DEQ's initial state);
    - "clean": at the warm-up's fixed point of the clean image, always;
    - "batch_mean", "running_mean": at the mean of the image's states of the last turn, or of all turns so far.

    ``carry``: what Broyden's method starts from, besides: "chain" hands its inverse Jacobian on from draw to draw, "clean"
    shares that of the clean image; both solvers must be Broyden's, with fixed steps. A state that is lost (not finite) is
    replaced by the initial one. Votes depend on one another: certificates need an audit.
    """

    kind: Literal["serialized"] = "serialized"
    solver: Solver = Solver(method="anderson", steps=3)
    warmup: Solver = Solver(method="anderson", steps=10)
    restart: int | None = Field(None, ge=1)
    start: Literal["previous", "clean", "batch_mean", "running_mean"] = "previous"
    carry: Literal["none", "chain", "clean"] = "none"
    chains: int = Field(400, ge=1)
    independent: ClassVar[bool] = False

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> "SerializedSampler":
        if self.restart is not None and self.start == "clean":
            raise ValueError(f"restart = {self.restart} needs start = 'previous': with 'clean' there is nothing to restart")
        if self.carry != "none" and not self.solver.method == self.warmup.method == "broyden":
            raise ValueError(
                f"carry = {self.carry!r} needs Broyden's method twice: solver has {self.solver.method!r}, warmup "
                f"{self.warmup.method!r}"
            )
        if self.carry != "none" and not self.solver.stop == self.warmup.stop == "fixed":
            raise ValueError(
                f"carry = {self.carry!r} needs stop = 'fixed' twice: solver has {self.solver.stop!r}, warmup "
                f"{self.warmup.stop!r}"
            )
        return self

    def canonical(self) -> "SerializedSampler":
        return self if self.carry != "none" else super().canonical()  # a carried inverse makes one step more than f

    @torch.no_grad()
    def sample_many(
        self, model: DEQ, copies: Sequence[NoisyCopies], draws: Sequence[np.ndarray], batch_size: int
    ) -> list[Votes]:
        """Votes of each image's copies 0 ... n - 1, turn by turn; ``batch_size`` chains, of several images, at a time.

        Raises ValueError when ``draws`` are anything else: a chain has no vote without those before it.
        """
        n = len(draws[0])
        if not all(np.array_equal(numbers, np.arange(n)) for numbers in draws):
            raise ValueError("a serialized sampler needs the draws 0, 1, 2, ... in order, equally many of each image")
        cast = [Votes.blank(n) for _ in copies]
        together = max(1, batch_size // self.chains)
        for first in range(0, len(copies), together):
            block = slice(first, first + together)
            _Chains(self, model, copies[block], cast[block], n, batch_size).run()
        return cast

    @property
    def warm_draws(self) -> int:
        """How many draws the first warm-up takes."""
        return 0 if self.start == "clean" else self.chains

    def warm_share(self, total: int) -> float:
        """Which share of ``total`` votes comes from the warm-up solver."""
        if self.start == "clean":
            return 0.0
        batches = [min(self.chains, total - first) for first in range(0, total, self.chains)]
        return sum(batches[:: self.restart or len(batches)]) / total


class _Chains:
    """The chains of some images, side by side from their first draw to their last below ``n``."""

    def __init__(self, sampler: SerializedSampler, model: DEQ, copies, cast: list[Votes], n: int, batch_size: int):
        self.sampler, self.model, self.copies, self.cast, self.n = sampler, model, copies, cast, n
        self.rows = rows_at_once(model, batch_size)
        self.which, self.chain = np.divmod(np.arange(len(copies) * sampler.chains), sampler.chains)
        self.turn = 0
        self.states: Tensor | None = None  # where each chain starts next
        self.inverse: Inverse | None = None
        self.mean: Tensor | None = None  # of each image's states
        self.counted = 0  # states in the running mean

    def run(self) -> None:
        if self.sampler.start == "clean" or self.sampler.carry == "clean":
            self._solve_clean_images()
        chains = self.sampler.chains
        turns = [turn * chains + self.chain for turn in range(-(-self.n // chains))]  # the draws of each
        split = [batches(np.flatnonzero(numbers < self.n), self.rows) for numbers in turns]
        noisy = gather(
            self.copies, [(self.which[rows], numbers[rows]) for numbers, parts in zip(turns, split) for rows in parts]
        )
        for self.turn, (numbers, parts) in enumerate(zip(turns, split)):
            solved = [self._solve(rows, numbers[rows], x) for rows, x in zip(parts, noisy)]
            self._hand_on(numbers < self.n, *zip(*solved))

    def _solve(self, rows: np.ndarray, numbers: np.ndarray, x: Tensor) -> tuple[Tensor, Tensor, Inverse | None]:
        """One draw of the chains ``rows``, noisy copies ``x``: their votes entered; states, which of them are finite, inverse
        Jacobians."""
        sampler, model, which = self.sampler, self.model, self.which[rows]
        began = time.perf_counter()
        injection = model.inject(x)
        initial = model.initial_state(injection)
        z0 = initial if self.states is None else self.states[torch.from_numpy(rows).to(initial.device)]
        inverse = None if self.inverse is None else self.inverse.take(torch.from_numpy(rows).to(initial.device))
        warm = sampler.start != "clean" and self.turn % (sampler.restart or self.n) == 0
        solver = sampler.warmup if warm else sampler.solver

        def alone(row: slice) -> Solution:
            return solve(model.f, z0[row], injection[row], solver, None if inverse is None else inverse.take(row))

        solution = solve(model.f, z0, injection, solver, inverse)
        for row in solution.close.nonzero().flatten().tolist() if solver.stop != "fixed" else ():
            solution.z[row] = alone(slice(row, row + 1)).z[0]
        decided = _settle(model.head(solution.z), lambda row: model.head(alone(row).z))
        z = torch.where(per_row(solution.finite, initial), solution.z, initial)
        _share(self.cast, which, numbers, decided, solution, began)
        return z, solution.finite, solution.inverse

    def _hand_on(self, alive: np.ndarray, states, finite, inverses) -> None:
        """Where the chains start in the next turn. Only a last turn leaves chains out."""
        sampler = self.sampler
        if not alive.all():
            return
        if sampler.carry == "chain":
            self.inverse = Inverse.joined(inverses).only(torch.cat(finite))
        if sampler.start == "clean":
            return
        self.states = torch.cat(states)
        if sampler.start == "previous":
            return
        # each image's own states alone: nothing here depends on which images share a batch
        by_image = self.states.unflatten(0, (len(self.copies), sampler.chains))
        mean = torch.stack([image.mean(dim=0) for image in by_image])
        if sampler.start == "running_mean" and self.mean is not None:
            mean = (self.counted * self.mean + mean) / (self.counted + 1)
        self.mean, self.counted = mean, self.counted + 1
        self.states = mean.repeat_interleave(sampler.chains, dim=0)

    def _solve_clean_images(self) -> None:
        """Each clean image's fixed point, solved alone, its price on the image's first draw."""
        states, inverses = [], []
        for one, votes in zip(self.copies, self.cast):
            began = time.perf_counter()
            injection = self.model.inject(one.image[None])
            solution = solve(self.model.f, self.model.initial_state(injection), injection, self.sampler.warmup)
            states.append(solution.z)
            inverses.append(solution.inverse)
            votes.evaluations[0] += int(solution.evaluations)
            votes.seconds[0] += time.perf_counter() - began
        if self.sampler.start == "clean":
            self.states = torch.cat(states)[torch.from_numpy(self.which)]
        if self.sampler.carry == "clean":
            self.inverse = Inverse.joined(inverses).take(torch.from_numpy(self.which))


Sampler = Annotated[DirectSampler | StandardSampler | SerializedSampler, Field(discriminator="kind")]


def _share(
    cast: list[Votes],
    which: np.ndarray,
    places: np.ndarray,
    decided: tuple[Tensor, Tensor],
    solution: Solution | None,
    began: float,
) -> None:
    """Enter a batch's votes and margins at ``places`` of the images ``which``; each row bears an equal share of its time."""
    found = dict(zip(("classes", "margins"), decided))
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


def rows_at_once(model, batch_size: int) -> int:
    """How many rows of a batch to solve at once: no more than the model computes at once, whose solver's memory then stays
    as small as its activations."""
    return min(batch_size, getattr(model, "rows_at_once", None) or batch_size)


def batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    """``items`` in order, ``size`` at a time."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _settle(logits: Tensor, alone: Callable[[slice], Tensor], unsure: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What :func:`decide` says of a batch's logits; where the batch could decide, of those that ``alone`` gives for a row,
    computed by itself."""
    classes, margins = decide(logits)
    again = margins < 2 * MARGIN
    if unsure is not None:
        again |= unsure & (margins < WIDE)
    for row in again.nonzero().flatten().tolist():
        here = slice(row, row + 1)
        classes[here], margins[here] = decide(alone(here))
    return classes, margins

"""Samplers: how a base classifier casts one vote for each noisy copy of an image.

A vote is a class, or UNDECIDED where the state is not finite or the two largest logits differ by less than a least margin
(:func:`least_margins`: MARGIN, or more where the type of the logits is coarse). An
undecided vote counts for nobody, so the certificate holds for the classifier in exact arithmetic too: that one can only
have more votes for class A than we count. Logits may change in their last digits with the size of a compute batch.
Rows whose margin is below twice the least are therefore computed again alone, and the vote is that of the lone
row: as long as such changes stay under half of the least margin, votes do not depend on the batch. A row that stops at a
tolerance may, where its residual comes close to the tolerance, stop a step earlier or later in another batch: such a row is
computed again alone if its margin is below WIDE, which one step near convergence does not cross; in a chain always, for the
sake of the next start.

Models may overwrite what they are given; nothing that they were given is used again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from srs.common.machine import full_precision
from srs.common.settings import Section
from srs.deq.definition import classify, margin_of, read
from srs.deq.interface import LOOKED_AT, Checked, CheckedClassifier, CheckedDEQ, checked, require_independent_rows
from srs.deq.solvers import Inverse, Solution, Solver, per_row, solve
from srs.votes.noise import NoisyCopies, gather

UNDECIDED = -1
MOST_ROWS = 1_000_000  # of a batch
MARGIN = 1e-4  # in logits
ULPS = 8  # of the larger logit, in its type: float32 logits up to 100 have the margin above
WIDE = 0.5  # in logits


@dataclass(frozen=True)
class Votes:
    """Votes, their price and how doubtful they are, draw by draw: ``classes`` (n,) int32; ``evaluations`` of f (n,) int32;
    ``seconds`` (n,) float32, each draw's share of the time of the batch that it was computed in, without that of making the
    noise; ``margins`` (n,) float16 between the two largest logits; ``residuals`` (n,) float16 of the solve, NaN without one."""

    classes: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray
    margins: np.ndarray
    residuals: np.ndarray

    TYPES: ClassVar = {
        "classes": np.int32,
        "evaluations": np.int32,
        "seconds": np.float32,
        "margins": np.float16,
        "residuals": np.float16,
    }

    @classmethod
    def blank(cls, shape: int | tuple[int, ...], fill: int = UNDECIDED) -> "Votes":
        """Votes of this shape, undecided or for the class ``fill``, that cost nothing yet."""
        return cls(**{name: np.full(shape, fill if name == "classes" else 0, kind) for name, kind in cls.TYPES.items()})

    def take(self, places) -> "Votes":
        """The votes at ``places``."""
        return Votes(**{name: getattr(self, name)[places] for name in self.TYPES})

    def put(self, places, other: "Votes") -> None:
        """Enter ``other`` at ``places``."""
        for name in self.TYPES:
            getattr(self, name)[places] = getattr(other, name)


@dataclass(frozen=True)
class CleanVote:
    """The vote on an image without noise: one of ``classes`` classes, or UNDECIDED, and the ``evaluations`` of f it took."""

    vote: int
    classes: int
    evaluations: int


def decide(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) -> votes (B,), UNDECIDED where the largest is not finite or the margin is below the least; and
    margins (B,) between the two largest logits. A logit of -inf is a class that is masked."""
    return _decided(logits)[:2]


def _decided(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`decide` says, and the least margins (B,) of the rows."""
    top = (logits.float() if logits.element_size() < 4 else logits).topk(2, dim=1)
    margins, least = top.values[:, 0] - top.values[:, 1], least_margins(top.values, logits.dtype)
    decided = (margins >= least) & top.values[:, 0].isfinite()  # NaN and inf are largest
    return torch.where(decided, top.indices[:, 0], UNDECIDED), margins, least


def least_margins(top: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart the two largest logits ``top`` (B, 2) must be for a vote: MARGIN, or ULPS roundings of ``dtype``, (B,)."""
    size = top.nan_to_num(0.0, 0.0, 0.0).abs().amax(dim=1)
    return (ULPS * torch.finfo(dtype).eps * size).clamp_min(MARGIN)


class _Sampler(Section):
    """``independent``: votes of an image are independent and identically distributed. ``audited``: certificates need an audit.
    ``deq``: whether it solves a DEQ, or asks a classifier."""

    independent: ClassVar[bool]
    audited: ClassVar[bool] = False
    deq: ClassVar[bool] = True

    @property
    def exact(self) -> bool:
        """Whether votes are those of the exact fixed point, by proof, whatever start they come from."""
        return False

    def canonical(self) -> Self:
        """The same computation under the plainest settings; equal ones cast the same votes."""
        solvers = {name: value.canonical() for name, value in self if isinstance(value, Solver)}
        return self.model_copy(update=solvers)

    def look_at(self, model, output_key=None, rows_checked: bool = True) -> Checked:
        """The model as this sampler sees it. Raises ValueError as :func:`srs.deq.interface.checked` does."""
        return checked(model, output_key, rows_checked, self.deq)

    def sample(self, model, copies: NoisyCopies, draws: np.ndarray, batch_size: int) -> Votes:
        """:meth:`sample_many` for one image."""
        return self.sample_many(model, [copies], [draws], batch_size)[0]


class _IndependentSampler(_Sampler):
    """Every vote is a function of its own noisy copy."""

    independent: ClassVar[bool] = True

    @torch.no_grad()
    @full_precision()
    def sample_many(self, model, copies: Sequence[NoisyCopies], draws: Sequence[np.ndarray], batch_size: int) -> list[Votes]:
        """Votes of each image's copies numbered ``draws``, in that order, at most ``batch_size`` computed at a time (but four
        where rows are checked).

        Raises ValueError for a model that this sampler has no use for, and for what it should not return
        (:mod:`srs.deq.interface`).
        """
        model = self.look_at(model)
        cast = [Votes.blank(len(numbers)) for numbers in draws]
        which = np.repeat(np.arange(len(copies)), [len(numbers) for numbers in draws])
        places = np.concatenate([np.arange(len(numbers)) for numbers in draws])
        numbers = np.concatenate(draws)
        split, at_once = batches(np.arange(len(which)), batch_size), rows_at_once(model, batch_size)

        def again(x: Tensor, first: int, rows: np.ndarray) -> tuple[Tensor, Solution | None]:
            """Logits of some rows of the batch ``x``, which starts with row ``first`` of all, or of rows after it."""
            later = first + rows
            drawn = [x[r : r + 1] if r < len(x) else copies[which[j]](numbers[j : j + 1]) for r, j in zip(rows, later)]
            return self._logits(model, torch.cat(drawn))

        for batch, copied in zip(split, gather(copies, [(which[rows], numbers[rows]) for rows in split])):
            for rows, x in zip(batches(batch, at_once), copied.split(at_once)):
                began = time.perf_counter()
                logits, solution = self._logits(model, x.clone())  # which the model may overwrite
                unsure, more = None if solution is None else solution.close, len(which) - rows[0]
                votes = _BatchVotes(logits, solution, model, partial(again, x, rows[0]), unsure, others=more)
                _enter(votes, cast, which[rows], places[rows], began)
        _require_checked(model, len(which))
        return cast

    @torch.no_grad()
    @full_precision()
    def clean(self, model, image: Tensor) -> CleanVote:
        """The vote on ``image`` (C, H, W) as it is. Raises as :meth:`sample_many` does."""
        logits, solution = self._logits(self.look_at(model), image[None].clone())
        spent = 1 if solution is None else int(solution.evaluations[0])
        return CleanVote(int(decide(logits)[0]), logits.shape[1], spent)

    def _logits(self, model, x: Tensor) -> tuple[Tensor, Solution | None]:
        raise NotImplementedError


class DirectSampler(_IndependentSampler):
    """Any classifier: ``model(x)`` maps images (B, C, H, W) to logits (B, classes); one forward pass a vote."""

    kind: Literal["direct"] = "direct"
    deq: ClassVar[bool] = False

    def described(self) -> str:
        """What is certified, in words."""
        return "classifier, a forward pass a vote"

    def _logits(self, model: CheckedClassifier, x: Tensor) -> tuple[Tensor, None]:
        return model.logits(x), None


class StandardSampler(_IndependentSampler):
    """Standard randomized smoothing of a DEQ: every solve starts from the DEQ's initial state or, amortized, from one of
    its fitted starts, "mean" or "learned" (:mod:`srs.starts`): a function of the noisy input alone, too. A solver that stops
    once rows are "settled" leaves the others undecided: certificates are about the exact fixed point."""

    kind: Literal["standard"] = "standard"
    solver: Solver = Solver(method="anderson", steps=30)
    start: Literal["initial", "mean", "learned"] = "initial"

    @model_validator(mode="after")
    def _rows_stop_by_themselves(self) -> "StandardSampler":
        return _without_batch_stops(self)

    def described(self) -> str:
        """What is certified, in words."""
        return f"{_solved(self)}, {self.solver.described()}, from its {self.start} start"

    @property
    def exact(self) -> bool:
        return self.solver.stop == "settled"

    def _logits(self, model: CheckedDEQ, x: Tensor) -> tuple[Tensor, Solution]:
        return classify(model, x, self.solver, self.start)


class ReleasedSampler(_Sampler):
    """What the paper's released baseline really does: ``batch`` draws at a time are solved together, until the worst of them is
    within the tolerance. A vote depends on its neighbours, so that certificates from such votes are no guarantee."""

    kind: Literal["released"] = "released"
    solver: Solver = Solver(method="anderson", steps=30, stop="batch", ridge_scale="absolute")
    batch: int = Field(400, ge=1, le=MOST_ROWS)
    independent: ClassVar[bool] = False

    def described(self) -> str:
        """What is certified, in words."""
        return f"DEQ, {self.solver.described()}, {self.batch} draws together"

    @torch.no_grad()
    @full_precision()
    def sample_many(self, model, copies: Sequence[NoisyCopies], draws: Sequence[np.ndarray], batch_size: int) -> list[Votes]:
        """Votes of each image's copies 0 ... n - 1, ``batch`` at a time whatever ``batch_size`` is; narrow margins stay as they
        are. Raises ValueError when ``draws`` are anything else, or for a model that is no DEQ."""
        model = self.look_at(model)
        _require_all_draws(draws, "a batch")
        cast = [Votes.blank(len(numbers)) for numbers in draws]
        parts = [(image, rows) for image, numbers in enumerate(draws) for rows in batches(numbers, self.batch)]
        for (image, rows), x in zip(parts, gather(copies, [(np.full(len(rows), image), rows) for image, rows in parts])):
            began = time.perf_counter()
            logits, solution = classify(model, x, self.solver)
            _enter(_BatchVotes(logits, solution), cast, np.full(len(rows), image), rows, began)
        return cast


class SerializedSampler(_Sampler):
    """Serialized randomized smoothing (Gao et al. 2024, Algorithm 1): each solve starts where earlier ones ended.

    Draw j belongs to chain j mod ``chains`` (the paper's batch of 400); one draw of every chain makes a turn. The first turn
    and after every ``restart`` turns the next one take the ``warmup`` solver, all others take ``solver``. Where a solve starts:

    - "previous": at the chain's last state (a first one at the DEQ's initial state);
    - "clean": at the warm-up's fixed point of the clean image, always; no turn is a warm-up then;
    - "batch_mean", "running_mean": at the mean of the image's states of the last turn, or of all turns so far.

    ``carry``: what Broyden's method starts from, besides: "chain" hands its inverse Jacobian on from draw to draw, "clean"
    shares that of the clean image; both solvers must be Broyden's, with fixed steps. A state that is lost (not finite) is
    replaced by the initial one. Votes depend on one another: certificates need an audit. Where both solvers stop once rows are
    "settled", they need none: such votes are those of the exact fixed point (Theorem 6 of docs/certificates.md).
    """

    kind: Literal["serialized"] = "serialized"
    solver: Solver = Solver(method="anderson", steps=3)
    warmup: Solver = Solver(method="anderson", steps=10)
    restart: int | None = Field(None, ge=1)
    start: Literal["previous", "clean", "batch_mean", "running_mean"] = "previous"
    carry: Literal["none", "chain", "clean"] = "none"
    chains: int = Field(400, ge=1, le=MOST_ROWS)
    independent: ClassVar[bool] = False

    @property
    def exact(self) -> bool:
        return self.solver.stop == "settled"

    @property
    def audited(self) -> bool:
        return not self.exact

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> "SerializedSampler":
        _without_batch_stops(self)
        if self.restart is not None and self.start == "clean":
            raise ValueError(f"restart = {self.restart} has no meaning with start = 'clean': there is nothing to restart")
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
        if (self.solver.stop == "settled") != (self.warmup.stop == "settled"):
            raise ValueError(
                f"solver.stop = {self.solver.stop!r} and warmup.stop = {self.warmup.stop!r}: votes are settled by both solvers "
                "or by none"
            )
        return self

    def described(self) -> str:
        """What is computed, in words; what is certified is the audit's reference, where there is an audit."""
        return f"{_solved(self)}, {self.solver.described()}, from the {self.start} start of a chain"

    def canonical(self) -> "SerializedSampler":
        return self if self.carry != "none" else super().canonical()  # a carried inverse makes one step more than f

    @torch.no_grad()
    @full_precision()
    def sample_many(self, model, copies: Sequence[NoisyCopies], draws: Sequence[np.ndarray], batch_size: int) -> list[Votes]:
        """Votes of each image's copies 0 ... n - 1, turn by turn; ``batch_size`` chains, of several images, at a time.

        Raises ValueError when ``draws`` are anything else: a chain has no vote without those before it. Raises as
        independent samplers do, besides.
        """
        model, n = self.look_at(model), len(draws[0])
        _require_all_draws(draws, "a chain")
        cast = [Votes.blank(n) for _ in copies]
        together = max(1, batch_size // self.chains)
        for first in range(0, len(copies), together):
            block = slice(first, first + together)
            _Chains(self, model, copies[block], cast[block], n, batch_size).run()
        return cast

    def solver_of(self, turn: int) -> Solver:
        """What solves the draws of a turn, 0, 1, 2, ...: ``warmup`` or ``solver``."""
        if self.start == "clean":
            return self.solver
        warm = turn == 0 if self.restart is None else turn % self.restart == 0
        return self.warmup if warm else self.solver

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

    def __init__(self, sampler: SerializedSampler, model: CheckedDEQ, copies, cast: list[Votes], n: int, batch_size: int):
        self.sampler, self.model, self.copies, self.cast, self.n = sampler, model, copies, cast, n
        self.rows = rows_at_once(model, batch_size)
        self.which, self.chain = np.divmod(np.arange(len(copies) * sampler.chains), sampler.chains)
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
        for turn, (numbers, parts) in enumerate(zip(turns, split)):
            solver = self.sampler.solver_of(turn)
            solved = [self._solve(solver, rows, numbers[rows], next(noisy)) for rows in parts]
            if (numbers < self.n).all():  # only the last turn leaves chains out
                self._hand_on(*zip(*solved))

    def _solve(self, solver: Solver, rows: np.ndarray, numbers: np.ndarray, x: Tensor) -> tuple[Tensor, Tensor, Inverse | None]:
        """One draw of the chains ``rows``, noisy copies ``x``: their votes entered; states, which of them are finite, inverse
        Jacobians."""
        model, which = self.model, self.which[rows]
        began = time.perf_counter()
        mine = _as_index(rows, x.device)
        z0 = None if self.states is None else self.states[mine]
        inverse = None if self.inverse is None else self.inverse.take(mine)

        def solved(x: Tensor, places) -> tuple[Tensor, Solution]:
            injection = model.inject(x)
            initial = model.initial_state(injection)
            start = initial if z0 is None else z0[places]
            carried = None if inverse is None else inverse.take(places)
            found = solve(model.f, start, injection, solver, carried, margin=margin_of(model))
            return initial, found

        def again(places: np.ndarray) -> tuple[Tensor, Solution]:
            chosen = torch.from_numpy(places).to(x.device)
            found = solved(x[chosen], chosen)[1]
            return read(model, found, solver), found

        initial, solution = solved(x.clone(), slice(None))  # which the model may overwrite
        extra = np.zeros(len(rows), np.int64)
        for row in np.flatnonzero(solution.close.cpu()) if solver.stop in ("relative", "absolute") else ():
            lone = again(np.array([row]))[1]
            solution.z[row], extra[row] = lone.z[0], int(lone.evaluations)
        votes = _BatchVotes(read(model, solution, solver), solution, model, again, extra=extra)
        z = torch.where(per_row(solution.finite, initial), solution.z, initial)
        _enter(votes, self.cast, which, numbers, began)
        return z, solution.finite, solution.inverse

    def _hand_on(self, states, finite, inverses) -> None:
        """Where the chains start in the next turn, from what the parts of this one gave."""
        sampler = self.sampler
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
            injection = self.model.inject(one.image[None].clone())
            initial, margin = self.model.initial_state(injection), margin_of(self.model)
            solution = solve(self.model.f, initial, injection, self.sampler.warmup, margin=margin)
            states.append(torch.where(per_row(solution.finite, initial), solution.z, initial))
            inverses.append(solution.inverse and solution.inverse.only(solution.finite))
            votes.evaluations[0] += int(solution.evaluations)
            votes.seconds[0] += time.perf_counter() - began
        own = torch.from_numpy(self.which).to(states[0].device)
        if self.sampler.start == "clean":
            self.states = torch.cat(states)[own]
        if self.sampler.carry == "clean":
            self.inverse = Inverse.joined(inverses).take(own)


Sampler = Annotated[DirectSampler | StandardSampler | SerializedSampler | ReleasedSampler, Field(discriminator="kind")]


class _BatchVotes:
    """The votes of a batch, on the host: ``classes`` and ``margins`` (B,), what :func:`decide` says of its ``logits``;
    ``residuals`` (B,) of the solve, NaN without one; ``evaluations`` (B,), ``extra`` and those of rows that are computed again
    included. One transfer fetches them.

    A row whose margin is so narrow that its vote could depend on the batch is computed by itself, ``again``, and votes by
    that; so is one that is ``unsure`` (B,) where its margin is below WIDE. Where nothing computes ``again``, votes stay.
    The rows of a ``model`` that have not been checked yet are, in company of more rows, up to ``others``, where the batch has
    too few; the first row bears the price.
    """

    def __init__(
        self,
        logits: Tensor,
        solution: Solution | None,
        model: Checked | None = None,
        again: Callable[[np.ndarray], tuple[Tensor, Solution | None]] | None = None,
        unsure: Tensor | None = None,
        extra: np.ndarray | int = 0,
        others: int = 0,
    ):
        classes, margins, least = _decided(logits)
        narrow = margins < 2 * least
        if unsure is not None:
            narrow |= unsure & (margins < WIDE)
        self.classes, self.margins, narrow, self.residuals, self.evaluations = _fetched(solution, classes, margins, narrow)
        self.evaluations += extra
        if again is None:
            return
        if not model.rows_checked:
            self._check_rows(model, logits, least, solution, again, others)
        for row in np.flatnonzero(narrow):
            lone, found = again(np.array([row]))
            (self.classes[row],), (self.margins[row],), _, (spent,) = _fetched(found, *decide(lone))
            self.evaluations[row] += spent

    def _check_rows(self, model: Checked, logits: Tensor, least: Tensor, solution: Solution | None, again, others: int):
        def logits_again(rows: np.ndarray) -> tuple[Tensor, int]:
            found, solved = again(rows)
            return found, len(rows) if solved is None else int(solved.evaluations.sum())

        usable = np.arange(len(logits)) if solution is None else (~solution.close).nonzero().flatten().cpu().numpy()
        company = np.arange(len(logits), min(others, len(logits) + 1 + LOOKED_AT - len(usable)))
        if len(usable) and len(usable) + len(company) > 1:
            self.evaluations[0] += require_independent_rows(logits, least, usable, company, logits_again)
            model.rows_checked = True


def _fetched(solution: Solution | None, *columns: Tensor) -> list[np.ndarray]:
    """Columns (B,), and a solution's residuals and evaluations of f, on the host, in one transfer; a forward pass without a
    solve has NaN and 1. Whole numbers come as floats, which hold them up to 2^24."""
    columns += () if solution is None else (solution.residual, solution.evaluations)
    found = torch.stack(columns).cpu().numpy()
    return [*found] if solution is not None else [*found, np.full(found.shape[1], np.nan), np.ones(found.shape[1])]


def _require_checked(model: Checked, rows: int) -> None:
    """Raises ValueError where no row of several could be checked."""
    if not model.rows_checked and rows > 1:
        raise ValueError(
            "tolerance (of settled votes: 0) is too near the rounding of the model's states, which decides when each row "
            "stops: raise it, use stop = 'fixed', or a finer type"
        )


def require_sampler(name: str, sampler: object) -> None:
    """Raises ValueError for what is no sampler; a ``name`` "reference" has no use for serialized and released ones."""
    if not isinstance(sampler, _Sampler):
        kinds = ["srs.DirectSampler()", "srs.StandardSampler(...)"]
        if name != "reference":
            kinds += ["srs.SerializedSampler(...)", "srs.ReleasedSampler(...)"]
        raise ValueError(f"{name} = {sampler!r} is no sampler: give {', '.join(kinds[:-1])} or {kinds[-1]}")


def _solved(sampler) -> str:
    """Of what the votes are."""
    return "exact fixed point of the DEQ" if sampler.exact else "DEQ"


def _without_batch_stops(sampler):
    for name, value in sampler:
        if isinstance(value, Solver) and value.stop == "batch":
            raise ValueError(f"{name}.stop = 'batch' makes a vote depend on its neighbours: use 'relative', or kind 'released'")
    return sampler


def _require_all_draws(draws: Sequence[np.ndarray], what: str) -> None:
    if not all(np.array_equal(numbers, np.arange(len(draws[0]))) for numbers in draws):
        raise ValueError(f"{what} needs the draws 0, 1, 2, ... in order, equally many of each image")


def _enter(found: _BatchVotes, cast: list[Votes], which: np.ndarray, places: np.ndarray, began: float) -> None:
    """Enter a batch's votes into ``cast``, at ``places`` of the images ``which``; each row bears an equal share of the time
    since ``began``, and adds to the price that is there already."""
    votes = Votes.blank(len(which))
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        votes.classes[:], votes.margins[:], votes.residuals[:] = found.classes, found.margins, found.residuals
    votes.evaluations[:] = found.evaluations
    votes.seconds[:] = (time.perf_counter() - began) / len(which)
    for i in np.unique(which):
        mine, here = votes.take(which == i), places[which == i]
        mine.evaluations[:] += cast[i].evaluations[here]
        mine.seconds[:] += cast[i].seconds[here]
        cast[i].put(here, mine)


def _as_index(rows: np.ndarray, device: torch.device) -> slice | Tensor:
    """What takes some ascending rows of a tensor on ``device``: a slice, which need not be brought there, where they are."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.from_numpy(rows).to(device)


def rows_at_once(model, batch_size: int) -> int:
    """How many rows of a batch to solve at once: no more than the model computes at once, whose solver's memory then stays
    as small as its activations."""
    return min(batch_size, getattr(model, "rows_at_once", None) or batch_size)


def batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    """``items`` in order, ``size`` at a time."""
    return [items[i : i + size] for i in range(0, len(items), size)]

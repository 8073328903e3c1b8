"""Fixed-point solvers in which every row of a batch is a problem of its own.

All methods share one loop, :func:`solve`; a method is a small object that proposes the next state from the last
state and its image under ``f``. Cost is counted in evaluations of ``f``: the k-th iterate of each method here rests
on exactly k of them, so that from one start a single step of any unmixed method is ``f(z0)`` (of Broyden's up to
rounding, and unless an inverse is handed on).

Sources: Anderson (1965) as used by Bai et al. (2021); good Broyden (Broyden 1965) as used by Bai et al. (2019).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from srs.common.settings import Section

Method = Literal["naive", "anderson", "broyden"]
Margin = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (z, f(z, x), x, relative spacing of numbers) -> (B,)
CROWD = 0.75  # at this share of unsolved rows the others leave the batch: copying what is known of them costs time, too
CLOSE = 3e-6  # how near a relative residual may come to the tolerance before float32's rounding could decide (measured)
CLOSE_MARGIN = 1e-4  # the same of a proved margin, in logits
_LEAST = 1e-200  # of a Gram's scale, so that a row without any gap has weights


class Solver(Section):
    """Settings of a fixed-point solver.

    With ``stop="fixed"`` every row takes exactly ``steps`` evaluations of f. With ``"relative"`` or ``"absolute"``
    each row stops by itself, and is then frozen, once its residual is at most ``tolerance``. With ``"batch"`` all rows stop
    together, once the worst row's relative residual is at most that, as in the paper's released code: a row's result then
    depends on its neighbours, and independent votes refuse it. With "settled" each row stops once f's value there is proved to
    have the exact fixed point's class, by the DEQ's own bound (:class:`srs.deq.definition.DEQ`).

    ``memory``, ``ridge`` and ``mixing`` belong to Anderson acceleration. ``ridge_scale``: the ridge is a share of the mean
    diagonal of the row's Gram matrix ("relative": converges to rounding), or is added as it is ("absolute", as in Bai et al.
    and the paper's code: below residuals of about its square root it slows the solver down). Broyden keeps the
    ``broyden_memory`` latest rank-one updates, ``steps`` - 1 at most; with an inverse that is handed on, as many as that had.
    """

    method: Method = "anderson"
    steps: int = Field(30, ge=1)
    stop: Literal["fixed", "relative", "absolute", "batch", "settled"] = "fixed"
    tolerance: float = Field(1e-3, gt=0)
    memory: int = Field(6, ge=1)
    ridge: float = Field(1e-4, gt=0)
    ridge_scale: Literal["relative", "absolute"] = "relative"
    mixing: float = Field(1.0, gt=0, le=1)
    broyden_memory: int = Field(30, ge=1)

    def canonical(self) -> "Solver":
        """The plainest settings of the same computation: one fixed step of any unmixed method is f of its start.
        Not where an inverse is handed on."""
        plain = self.method != "anderson" or self.mixing == 1
        return Solver(method="naive", steps=1) if self.stop == "fixed" and self.steps == 1 and plain else self

    def described(self) -> str:
        """In words: the method, when it stops, and what else is not as usual."""
        plain = {"method", "steps", "stop", "tolerance"}
        unusual = {name: value for name, value in self if name not in plain and value != type(self).model_fields[name].default}
        more = "".join(f", {name} = {value}" for name, value in unusual.items())
        name = self.method if self.method == "naive" else self.method.capitalize()
        if self.stop == "fixed":
            return f"{self.steps} {name} step{'s' if self.steps > 1 else ''}{more}"
        if self.stop == "settled":
            return f"at most {self.steps} {name} steps, until the class is proved{more}"
        of = {"relative": "a relative", "absolute": "an absolute", "batch": "the batch's worst relative"}[self.stop]
        return f"at most {self.steps} {name} steps, stopped at {of} residual of {self.tolerance:g}{more}"


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found, row by row (B rows).

    ``z`` is built from ``evaluations`` evaluations of f; ``residual`` belongs to the last state at which f was
    evaluated: ||f(z) - z|| (``stop="absolute"``) or ||f(z) - z|| / ||f(z)|| (otherwise), l2 norms over the row; with
    ``stop="settled"`` the proved margin, its sign changed. A row that stopped by itself holds f of that state, a batch that
    stopped together that state; a fixed run holds the method's next iterate.
    ``converged``: residual <= tolerance, or settled. A row whose norm is not ``finite`` holds NaN throughout, no answer.
    ``close``: a residual that could stop the row came so near to the tolerance that in another batch the row might stop a step
    earlier or later; never so for a fixed run or one that stops batch by batch.
    """

    z: Tensor  #: (B, ...)
    residual: Tensor  #: (B,)
    evaluations: Tensor  #: (B,) int64
    converged: Tensor  #: (B,) bool
    finite: Tensor  #: (B,) bool
    close: Tensor  #: (B,) bool
    inverse: "Inverse | None" = None  #: of a fixed run of Broyden's method, to start another solve with


@dataclass(frozen=True)
class Inverse:
    """Broyden's approximation -I + U^T V of the inverse Jacobian of f(z) - z, row by row; ``used`` counts its updates."""

    u: Tensor  #: (B, rank, D)
    v: Tensor  #: (B, rank, D)
    used: int

    @classmethod
    def joined(cls, parts: "Sequence[Inverse]") -> "Inverse":
        """Those of several batches as one, after equally many updates."""
        return cls(torch.cat([part.u for part in parts]), torch.cat([part.v for part in parts]), parts[0].used)

    def take(self, rows) -> "Inverse":
        """That of some rows. Rows may repeat."""
        return Inverse(self.u[rows], self.v[rows], self.used)

    def only(self, rows: Tensor) -> "Inverse":
        """That of the rows that are flagged (B,) bool; for all others -I."""
        kept = rows[:, None, None]
        return Inverse(torch.where(kept, self.u, 0.0), torch.where(kept, self.v, 0.0), self.used)


class Unspoiled:
    """A function of tensors that may write into them: it gets copies. Once its first calls have shown that it does not write,
    it gets the tensors themselves, and is watched.

    Whether it wrote is told by autograd's version counters and, at the first two calls, by comparing values (a start of zeros
    may hide it at the first). Raises ValueError, with its ``name``, for a function that begins to write later.
    """

    def __init__(self, function: Callable[..., Tensor], name: str = "f"):
        self.function, self.name = function, name
        self.writes, self.compared = False, 2  # calls that are left to compare
        self.changed: list[Tensor] = []  # what those have shown; not looked at before it is needed: a GPU would be waited for

    def __call__(self, *tensors: Tensor) -> Tensor:
        if self.changed and not self.compared:
            self.writes |= bool(torch.stack(self.changed).any())
            self.changed.clear()
        own = self.writes or self.compared > 0 or any(x.is_inference() for x in tensors)  # which have no versions
        given = [x.clone() for x in tensors] if own else tensors
        before = [x._version for x in given if not x.is_inference()]
        out = self.function(*given)
        wrote = before != [x._version for x in given if not x.is_inference()]
        if self.compared:
            self.compared -= 1
            self.writes |= wrote or any(x.shape != y.shape for x, y in zip(given, tensors))
            if not self.writes:  # .data and NumPy move no version
                self.changed += [(x != y).any() for x, y in zip(given, tensors)]
        elif wrote and not own:
            raise ValueError(f"{self.name} overwrote what it was given, though not at first: do it always or never")
        return out


def solve(
    f: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    x: Tensor,
    solver: Solver,
    inverse: Inverse | None = None,
    compact: bool = True,
    margin: Margin | None = None,
) -> Solution:
    """Solve z = f(z, x) for each row of ``x`` (B, ...) from the start ``z0`` (B, ...).

    ``inverse``: where Broyden's method starts; the other methods have no use for it. ``compact``: rows that have stopped may
    leave the batch, so that f is asked for some of the rows alone. ``margin``: the DEQ's ``proved_margin``, by which rows are
    settled. A row's result depends on its own ``z0``, ``x`` and ``inverse`` only, provided that f treats rows independently
    (and ``solver.stop`` is not "batch").

    f may write into its arguments (:class:`Unspoiled`). States of half precision are combined in float32; an autocast that is
    on is f's alone.

    Raises ValueError when ``z0`` is not of floats, ``z0`` and ``x`` differ in rows, f changes the shape of the state, or
    ``inverse`` is given to another method than Broyden's, or rows are to be settled without a ``margin``.
    """
    if solver.stop == "settled" and margin is None:
        raise ValueError(
            "stop = 'settled' needs a DEQ that bounds its distance from the fixed point, with a method proved_margin, such as "
            "srs.models.mondeq.MonDEQ"
        )
    if inverse is not None and solver.method != "broyden":
        raise ValueError(f"solver.method = {solver.method!r}: an ``inverse`` Jacobian is of use to 'broyden' alone")
    if not z0.is_floating_point():
        raise ValueError(f"z0 is of {z0.dtype}: a state of floats is wanted")
    if len(z0) != len(x):
        raise ValueError(f"z0 has {len(z0)} rows and x has {len(x)}: they must have equally many")
    careful = f if isinstance(f, Unspoiled) else Unspoiled(f)
    kind = z0.device.type
    ambient = {"enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}
    rounding = torch.finfo(ambient["dtype"] if ambient["enabled"] else z0.dtype).eps

    def flat(z: Tensor, x: Tensor) -> Tensor:
        state = z.view(-1, *z0.shape[1:]).to(z0.dtype)
        if ambient["enabled"]:
            with torch.autocast(kind, **ambient):
                fz = careful(state, x)
        else:
            fz = careful(state, x)
        if not isinstance(fz, Tensor) or fz.shape != state.shape:
            got = tuple(fz.shape) if isinstance(fz, Tensor) else type(fz).__name__
            raise ValueError(f"f maps a state of shape {tuple(state.shape)} to {got}: it must keep the shape")
        return fz.reshape(z.shape).to(z.dtype)

    def measure(z: Tensor, fz: Tensor, x: Tensor) -> Tensor:
        if solver.stop != "settled":
            return _residual(z, fz, solver.stop)
        states = (state.view(-1, *z0.shape[1:]).to(z0.dtype) for state in (z, fz))  # as f saw them
        return -margin(*states, x, rounding).to(z.dtype)

    with torch.autocast(kind, enabled=False) if ambient["enabled"] else nullcontext():
        solution = _solve(flat, measure, z0.reshape(len(z0), -1), x, solver, inverse, compact, rounding)
    return replace(solution, z=solution.z.view_as(z0).to(z0.dtype))


def _solve(
    f, measure, z: Tensor, x: Tensor, solver: Solver, inverse: Inverse | None, compact: bool, rounding: float
) -> Solution:
    """:func:`solve` on flat states (B, D), which f computes to a relative ``rounding``; ``measure(z, fz, x)``: the residual."""
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    settles = solver.stop == "settled"
    tolerance = -torch.finfo(z.dtype).tiny if settles else solver.tolerance  # a margin that is positive, however it is rounded
    method = _METHODS[solver.method](z, solver) if inverse is None else _Broyden(z, solver, inverse)
    if solver.stop == "fixed":
        z, residual, evaluations, close, inverse = _fixed(f, z, x, solver, method)
    elif solver.stop == "batch":
        z, residual, evaluations, close, inverse = _together(f, z, x, solver, method)
    else:
        near = (CLOSE_MARGIN if settles else CLOSE) * rounding / torch.finfo(torch.float32).eps
        crowd = CROWD if compact else 0
        z, residual, evaluations, close, inverse = _stopping(f, measure, z, x, solver, method, crowd, near, tolerance)
    finite = z.norm(dim=1).isfinite() & residual.isfinite()
    z = torch.where(finite[:, None], z, torch.nan)
    return Solution(z, residual, evaluations, (residual <= tolerance) & finite, finite, close, inverse)


def _fixed(f, z: Tensor, x: Tensor, solver: Solver, method: "_Method") -> tuple:
    """Equally many evaluations for every row; the host waits for nothing."""
    for k in range(solver.steps):
        fz = f(z, x)
        if k == solver.steps - 1:
            residual = _residual(z, fz, solver.stop)
        z = method.next(k, z, fz)
    evaluations = torch.full((len(z),), solver.steps, device=z.device)
    return z, residual, evaluations, torch.zeros_like(evaluations, dtype=torch.bool), method.inverse()


def _together(f, z: Tensor, x: Tensor, solver: Solver, method: "_Method") -> tuple:
    """All rows until the worst of them is within the tolerance; a row that is lost keeps the batch going."""
    for k in range(solver.steps):
        fz = f(z, x)
        residual = _residual(z, fz, solver.stop)
        if bool((residual <= solver.tolerance).all()):
            break
        z = method.next(k, z, fz)
    evaluations = torch.full((len(z),), k + 1, device=z.device)
    return z, residual, evaluations, torch.zeros_like(evaluations, dtype=torch.bool), None


def _stopping(
    f, measure, z: Tensor, x: Tensor, solver: Solver, method: "_Method", crowd: float, near: float, tolerance: float
) -> tuple:
    """Each row until its residual, by ``measure``, is at most the tolerance. Rows that have stopped leave the batch where at
    most the share ``crowd`` of its rows goes on. A residual within ``near`` of the tolerance is close to it. The host waits
    once a step, for the number of rows that go on."""
    found, residual = z.clone(), z.new_full((len(z),), torch.inf)
    evaluations = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    close = torch.zeros_like(evaluations, dtype=torch.bool)
    place, active = torch.arange(len(z), device=z.device), ~close  # of the rows that are in the batch
    for k in range(solver.steps):
        fz = f(z, x)
        following = method.next(k, z, fz)
        evaluations[place] += active
        gap = residual[place] = torch.where(active, measure(z, fz, x), residual[place])
        scale = fz.norm(dim=1) if solver.stop == "absolute" else 1.0
        close[place] |= active & ((gap - tolerance).abs() <= near * scale)
        # a row that converges takes f's value, not an extrapolation that nobody has checked
        z = torch.where(active[:, None], torch.where((gap <= tolerance)[:, None], fz, following), z)
        active = active & (gap > tolerance)  # False for NaN: a lost row stops too
        left = int(active.sum())
        if not left:
            break
        if left <= crowd * len(place):
            found[place] = z
            rows = active.byte().argsort(descending=True, stable=True)[:left]  # in order, and their number is known
            z, x, place, active = z[rows], x[rows], place[rows], active[rows]
            method.keep(rows)
    found[place] = z
    return found, residual, evaluations, close, None  # a row's inverse would depend on how long others kept it in the batch


def residuals(f: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> Tensor:
    """Relative residual ||f(z, x) - z|| / ||f(z, x)|| of each row, at the price of one evaluation of f."""
    return _residual(z.flatten(1), f(z, x).flatten(1), "relative")


def per_row(flags: Tensor, like: Tensor) -> Tensor:
    """Flags (B,) shaped to choose between whole rows of ``like`` (B, ...)."""
    return flags.view(-1, *[1] * (like.ndim - 1))


def _residual(z: Tensor, fz: Tensor, stop: str) -> Tensor:
    gap, size = (fz - z).norm(dim=1), fz.norm(dim=1)
    residual = gap if stop == "absolute" else gap / size.clamp_min(1e-12)
    return torch.where(gap.isfinite() & size.isfinite(), residual, torch.nan)  # finite / inf would read as converged


class _Method:
    """What a method has unless it says otherwise: no memory of a row, nothing to hand on."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone."""

    def inverse(self) -> Inverse | None:
        return None


class _Naive(_Method):
    """Picard iteration: z <- f(z)."""

    def __init__(self, z: Tensor, solver: Solver):
        self.steps = solver.steps

    def next(self, k: int, z: Tensor, fz: Tensor) -> Tensor:
        return fz if k == self.steps - 1 else fz.clone()  # which may be a buffer that f uses again


class _Anderson(_Method):
    """Anderson acceleration: the affine combination of the last values of f with the least combined residual."""

    def __init__(self, z: Tensor, solver: Solver):
        self.memory, self.mixing = min(solver.memory, solver.steps), solver.mixing
        self.values = z.new_empty(len(z), self.memory, z.shape[1])
        self.gaps = torch.empty_like(self.values)
        self.gram = torch.zeros(len(z), self.memory, self.memory, dtype=torch.float64, device=z.device)
        self.ridge = solver.ridge * torch.eye(self.memory, dtype=torch.float64, device=z.device)
        self.relative = solver.ridge_scale == "relative"

    def next(self, k: int, z: Tensor, fz: Tensor) -> Tensor:
        slot, kept = k % self.memory, min(k + 1, self.memory)
        self.values[:, slot] = fz
        gap = self.gaps[:, slot]
        if fz.requires_grad or z.requires_grad:
            gap.copy_(fz).sub_(z)  # with a gradient, which out= has not
        else:
            torch.sub(fz, z, out=gap)  # in one pass: larger than caches
        gaps = self.gaps[:, :kept]
        products = torch.bmm(gap[:, None], gaps.mT)[:, 0].double()
        self.gram[:, slot, :kept] = products
        self.gram[:, :kept, slot] = products
        gram, ridge = self.gram[:, :kept, :kept], self.ridge[:kept, :kept]
        if self.relative:
            ridge = ridge * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(_LEAST)[:, None, None]
        system = gram + ridge
        weights, _ = torch.linalg.solve_ex(system, system.new_ones(len(z), kept))  # _ex: no host synchronization
        # contiguous: the solver's layout would send bmm down a path that multiplies matrix by matrix
        weights = (weights / weights.sum(dim=1, keepdim=True)).to(z.dtype).contiguous()[:, None]
        mixed = torch.bmm(weights, self.values[:, :kept])[:, 0]
        return mixed if self.mixing == 1 else mixed - (1 - self.mixing) * torch.bmm(weights, gaps)[:, 0]

    def keep(self, rows: Tensor) -> None:
        self.values, self.gaps, self.gram = self.values[rows], self.gaps[rows], self.gram[rows]


class _Broyden(_Method):
    """Good Broyden on g(z) = f(z) - z; the inverse Jacobian is -I + U^T V, of bounded rank."""

    def __init__(self, z: Tensor, solver: Solver, inverse: Inverse | None = None):
        rows, size = z.shape
        if inverse is not None:
            self.used, self.u, self.v = inverse.used, inverse.u.clone(), inverse.v.clone()
        else:
            rank = max(1, min(solver.broyden_memory, solver.steps - 1))
            self.used, self.u, self.v = 0, z.new_zeros(rows, rank, size), z.new_zeros(rows, rank, size)
        self.rank = self.u.shape[1]

    def inverse(self) -> Inverse:
        return Inverse(self.u, self.v, self.used)

    def keep(self, rows: Tensor) -> None:
        self.u, self.v, self.z, self.gap = self.u[rows], self.v[rows], self.z[rows], self.gap[rows]

    def next(self, k: int, z: Tensor, fz: Tensor) -> Tensor:
        gap = fz - z
        if k > 0:
            self._update(self.used % self.rank, z - self.z, gap - self.gap)
            self.used += 1
        self.z, self.gap = z, gap
        return z - self._inverse_times(gap)

    def _update(self, slot: int, dz: Tensor, dgap: Tensor) -> None:
        self.u[:, slot] = 0.0  # where the memory is full, the oldest update goes before the new one is computed
        u, v = self._updates()
        row = torch.bmm(torch.bmm(dz[:, None], u.mT), v)[:, 0] - dz
        scale = (row * dgap).sum(dim=1, keepdim=True)
        column = (dz - self._inverse_times(dgap)) / scale
        usable = (scale.abs() > 1e-12) | scale.isnan()  # no update where the secant says nothing
        self.u[:, slot] = torch.where(usable, column, 0.0)
        self.v[:, slot] = row

    def _inverse_times(self, y: Tensor) -> Tensor:
        u, v = self._updates()
        return torch.bmm(torch.bmm(y[:, None], v.mT), u)[:, 0] - y

    def _updates(self) -> tuple[Tensor, Tensor]:
        used = min(self.used, self.rank)
        return self.u[:, :used], self.v[:, :used]


_METHODS = {"naive": _Naive, "anderson": _Anderson, "broyden": _Broyden}

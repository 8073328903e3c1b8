"""Bounds and radii: pure functions of counts. Rounding can only shrink a radius.

Sources: Clopper and Pearson (1934) for the statistics; Cohen et al. (2019), Theorem 1, for the radius; Gao et al. (2024),
Theorem 3.1, and its released code for two of the estimators; docs/certificates.md for the third, with its proof; Ville (1939)
and Robbins (1970) for the sequential certificates.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy import optimize, special

Estimator = Literal["finite_population", "theorem_3_1", "released_code"]
AuditDraw = Literal["random", "first_batch"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
AUDIT_DRAWS: tuple[str, ...] = get_args(AuditDraw)
SPLITS = np.arange(1, 20) / 20  # of alpha, to choose from
PREFERRED_SHARE = 0.9  # of alpha, for the class that is likely

LEAST_ALPHA = 1e-100  # of a certificate
_LEAST_LEVEL = 1e-150  # of one test: SciPy's quantiles are wrong, or NaN, from about 1e-166 on
_SAFETY = 1e-11  # relative; SciPy's quantiles are off by less


def clopper_pearson_lower(successes: float, trials: float, alpha: float) -> float:
    """One-sided exact lower bound on p: P(bound > p) <= alpha for Binomial(trials, p) successes.

    Raises ValueError for counts outside 0 <= successes <= trials, trials < 1, or alpha outside [1e-150, 1).
    """
    _check(successes, trials, alpha)
    return 0.0 if successes == 0 else (1 - _SAFETY) * float(special.betaincinv(successes, trials - successes + 1, alpha))


def clopper_pearson_interval(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Two-sided exact interval at level 1 - alpha. Raises as :func:`clopper_pearson_lower` does."""
    lower = clopper_pearson_lower(successes, trials, alpha / 2)
    return lower, 1 - clopper_pearson_lower(trials - successes, trials, alpha / 2)


def hypergeometric_upper(marked: int, sample: int, population: int, alpha: float) -> int:
    """One-sided exact upper bound M_up on the marked members M of a finite population, from a sample without replacement.

    The largest M with P(X <= marked) >= alpha, X hypergeometric: P(M_up < M) < alpha whatever M is. An empty sample bounds
    nothing (M_up = population), a complete one knows M.

    Raises ValueError unless 0 <= marked <= sample <= population and 1e-150 <= alpha < 1.
    """
    if not 0 <= marked <= sample <= population:
        raise ValueError(
            f"marked = {marked}, sample = {sample}, population = {population}: expected 0 <= marked <= sample <= population"
        )
    _check_level(alpha)
    enough = alpha * (1 - 1e-10 - 2e-14 * population)  # log-gamma functions make a tail less exact than that, relatively
    more = range(marked + 1, population - (sample - marked) + 1)  # than were seen marked; the tail falls as M grows
    return marked + bisect_left(more, True, key=lambda m: _hypergeometric_tail(marked, sample, m, population) < enough)


def _hypergeometric_tail(marked: int, sample: int, marked_in_all: int, population: int) -> float:
    """P(X <= marked), X the number of marked ones in the sample."""
    x = np.arange(marked + 1)
    ways = _log_choose(marked_in_all, x) + _log_choose(population - marked_in_all, sample - x)
    return float(np.exp(ways - _log_choose(population, sample)).sum())


def _log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)  # -inf where k > n


def radius(p_a_lower: float, sigma: float) -> float:
    """Certified l2 radius sigma * Phi^-1(p_a_lower) in the unit of sigma; 0 where p_a_lower <= 1/2."""
    return (1 - _SAFETY) * float(sigma * special.ndtri(p_a_lower)) if p_a_lower > 0.5 else 0.0


def lipschitz_radius(margin: float, lipschitz: float) -> float:
    """Certified l2 radius of a class whose logit is ``margin`` above all others, where logits have that Lipschitz constant: the
    difference of two changes by at most sqrt(2) times what the logits do, l2. 0 without a positive margin.

    Raises ValueError for a constant that is not positive.
    """
    if not lipschitz > 0:
        raise ValueError(f"lipschitz = {lipschitz} is out of range: expected more than 0")
    return (1 - _SAFETY) * margin / (math.sqrt(2) * lipschitz) if margin > 0 else 0.0


@dataclass(frozen=True)
class SerializedBound:
    """Lower bound on p_A from serialized votes, and the upper bound on the mismatch rate that it rests on."""

    p_a_lower: float
    p_m_upper: float


def finite_population(n_a: int, n: int, n1: int, n2: int, alpha: float, split: float = 0.5, known: int = 0) -> SerializedBound:
    """Lower bound on p_A that holds with probability 1 - alpha however the serialized votes depend on one another.

    Of ``n`` draws ``n_a`` have a serialized vote for A. ``n2`` of those, drawn uniformly without replacement from a stream
    apart from the noise's, were solved by the standard DEQ, which confirmed ``n1``. ``known``: votes for A that the standard
    DEQ itself cast on a census of other draws, among the n but not the n_a. The audit's test has level ``split`` * alpha,
    the votes' test the rest; the split must be fixed before anything is drawn. Theorems 1 and 2 of docs/certificates.md.

    Raises ValueError for counts out of order or ``split`` outside (0, 1).
    """
    _check_audit(n_a, n, n1, n2)
    if not 0 <= known <= n - n_a:
        raise ValueError(f"known = {known} is out of range: 0 to n - n_a = {n - n_a}")
    if not 0 < split < 1:
        raise ValueError(f"split = {split} is out of range: expected 0 < split < 1")
    marked = hypergeometric_upper(n2 - n1, n2, n_a, split * alpha)
    p_a_lower = clopper_pearson_lower(known + n_a - marked, n, (1 - split) * alpha)
    return SerializedBound(p_a_lower, marked / n_a if n_a else 1.0)


def theorem_3_1(n_a: int, n: int, n1: int, n2: int, alpha: float) -> SerializedBound:
    """The paper's correlation-eliminated bound (Theorem 3.1), as printed: N stays the denominator.

    ``n_a`` of ``n`` serialized votes went to class A. Of the audited votes ``n2`` went to A, and the standard DEQ
    confirmed ``n1`` of those. p_m_upper = 1 - CPlow(n1, n2, alpha / 2); p_a_lower = CPlow(floor((1 - p_m_upper) n_a), n,
    alpha / 2): the effective count is rounded down. Nothing audited for A (n2 = 0) bounds nothing: p_m_upper = 1.
    Not a guarantee: its proof takes the comparisons for independent ones.

    Raises ValueError for counts out of order.
    """
    p_m_upper = _binomial_mismatch(n_a, n, n1, n2, alpha)
    effective = math.floor((1 - p_m_upper) * n_a)
    return SerializedBound(clopper_pearson_lower(effective, n, alpha / 2), p_m_upper)


def released_code(n_a: int, n: int, n1: int, n2: int, alpha: float) -> SerializedBound:
    """What the paper's released code computes: count and total are both scaled by 1 - p_m_upper.

    The votes shrink in number, but their ratio n_a / n stays: mismatched votes are never subtracted. Not a guarantee; kept to
    reproduce published rows. Raises ValueError for counts out of order.
    """
    p_m_upper = _binomial_mismatch(n_a, n, n1, n2, alpha)
    scale = 1 - p_m_upper
    p_a_lower = clopper_pearson_lower(scale * n_a, scale * n, alpha / 2) if scale * n >= 1 else 0.0
    return SerializedBound(p_a_lower, p_m_upper)


def serialized_bound(
    estimator: Estimator, n_a: int, n: int, n1: int, n2: int, alpha: float, split: float = 0.5, known: int = 0
) -> SerializedBound:
    """The bound by name; ``split`` and ``known`` are :func:`finite_population`'s alone.

    Raises ValueError for an unknown name, and where another estimator is given votes of a census.
    """
    if estimator == "finite_population":
        return finite_population(n_a, n, n1, n2, alpha, split, known)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator = {estimator!r} is unknown: choose one of {', '.join(ESTIMATORS)}")
    if known:
        raise ValueError(f"known = {known}: a census is defined for the estimator 'finite_population' alone")
    return {"theorem_3_1": theorem_3_1, "released_code": released_code}[estimator](n_a, n, n1, n2, alpha)


def guaranteed(estimator: Estimator, audit_draw: AuditDraw) -> bool:
    """Whether a certificate by these two choices holds with probability 1 - alpha, by proof."""
    return estimator == "finite_population" and audit_draw == "random"


def log_evidence(successes: int | np.ndarray, trials: int | np.ndarray, p_0: float) -> float | np.ndarray:
    """Logarithm of a test martingale against "p <= p_0": at any time, with any stopping rule, it exceeds log(1 / alpha) with
    probability at most alpha if that is true (Ville 1939).

    The martingale mixes the likelihood ratios of all p in (p_0, 1], uniformly, against p_0 (Robbins 1970). Counts may be
    arrays. Raises ValueError for counts outside 0 <= successes <= trials or p_0 outside (0, 1).
    """
    if not (np.all((successes >= 0) & (successes <= trials)) and 0 < p_0 < 1):
        raise ValueError(f"{successes} successes in {trials} trials against p_0 = {p_0}: expected counts in order, 0 < p_0 < 1")
    found = _log_evidence(successes, trials, p_0)
    return found if np.ndim(found) else float(found)


def _log_evidence(successes, trials, p_0):
    """:func:`log_evidence` of counts that are known to be in order."""
    failures = trials - successes
    with np.errstate(divide="ignore"):  # nothing left of the integral is evidence of nothing
        tail = np.log(special.betaincc(successes + 1, failures + 1, p_0))
    mixed = special.betaln(successes + 1, failures + 1) + tail
    return mixed - math.log1p(-p_0) - successes * math.log(p_0) - failures * math.log1p(-p_0)


@lru_cache(1 << 16)
def lower_by_evidence(successes: int, trials: int, alpha: float) -> float:
    """The largest p_0 that the evidence (:func:`log_evidence`) rejects at level ``alpha``, 0 where it rejects none: over all
    trials at once, with any stopping rule, it exceeds p with probability at most alpha. Theorem 4 of docs/certificates.md.

    Raises as :func:`clopper_pearson_lower` does.
    """
    _check(successes, trials, alpha)
    if successes == 0:
        return 0.0
    enough = math.log(1 / alpha) + 1e-9 + 1e-13 * trials  # log_evidence is less exact than that

    def surplus(p: float) -> float:
        return float(_log_evidence(successes, trials, p)) - enough

    low, high = 1e-300, min(successes / trials, 1 - 1e-12)  # it falls in between
    p = high if surplus(high) >= 0 else optimize.brentq(surplus, low, high, xtol=1e-18, maxiter=1_000)
    return max(0.0, (1 - _SAFETY) * p - 1e-15)


def shares_of_alpha(classes: int, preferred: int) -> np.ndarray:
    """The share of alpha at which each class is tested, (classes,): PREFERRED_SHARE for the class ``preferred``, and the rest
    equally for the others; equal shares where none is (-1)."""
    if preferred < 0:
        return np.full(classes, 1 / classes)
    shares = np.full(classes, (1 - PREFERRED_SHARE) / (classes - 1))
    shares[preferred] = PREFERRED_SHARE
    return shares


def largest_radius(
    n: int,
    alpha: float,
    sigma: float,
    audit: int | None = None,
    estimator: Estimator = "finite_population",
    split: float = 0.5,
    census: int = 0,
) -> float:
    """The radius of a perfect run: every vote for A and, for serialized votes, all of ``audit`` and ``census`` confirmed."""
    if audit is None:
        return radius(clopper_pearson_lower(n, n, alpha), sigma)
    rest = n - census
    audit = min(audit, rest)
    return radius(serialized_bound(estimator, rest, n, audit, audit, alpha, split, census).p_a_lower, sigma)


def largest_radius_by_evidence(n: int, alpha: float, sigma: float) -> float:
    """The largest radius at which ``n`` votes, all of them for the class that is preferred, are evidence enough
    (:func:`lower_by_evidence`); negative where they show not even p_A > 1/2."""
    return sigma * float(special.ndtri(lower_by_evidence(n, n, PREFERRED_SHARE * alpha)))


def smallest_n(alpha: float) -> int:
    """The least number of draws with which a unanimous vote can be certified at all: alpha^(1/n) > 1/2."""
    return math.floor(math.log(alpha) / math.log(0.5)) + 1


def shown(r: float, digits: int = 3) -> str:
    """A radius in print: rounded down, so that what is printed is certified, too."""
    return f"{math.floor(r * 10**digits) / 10**digits:.{digits}f}"


def smallest_audit(
    n: int, alpha: float, split: float = 0.5, estimator: Estimator = "finite_population", census: int = 0
) -> int | None:
    """The least K with which a perfect serialized run of ``n`` draws can be certified; None where not even K = n is enough."""

    def certifies(audit: int) -> bool:
        return largest_radius(n, alpha, 1.0, audit, estimator, split, census) > 0

    return 1 + bisect_left(range(1, n + 1), True, key=certifies) if certifies(n) else None


def planned_radius(n: int, audit: int, alpha: float, split: float = 0.5, votes: float = 0.9, mismatch: float = 0.01) -> float:
    """The radius, in units of sigma, of a run by :func:`finite_population` that goes as planned: a share ``votes`` of the n
    draws votes for A, and the reference does not confirm a share ``mismatch`` of the audited ones among them."""
    n_a, n2 = round(votes * n), round(votes * audit)
    return radius(finite_population(n_a, n, n2 - math.ceil(mismatch * n2), n2, alpha, split).p_a_lower, 1.0)


def best_split(n: int, audit: int, alpha: float, votes: float = 0.9, mismatch: float = 0.01) -> float:
    """The share of alpha for the audit's test (in steps of .05) with the largest :func:`planned_radius`. Choose before
    anything is drawn."""
    return float(max(SPLITS, key=lambda split: planned_radius(n, audit, alpha, split, votes, mismatch)))


@dataclass(frozen=True)
class AuditPlan:
    """How to spend a budget: ``n`` serialized votes, ``audit`` of them audited, ``split`` of alpha, ``radius`` / sigma."""

    n: int
    audit: int
    split: float
    radius: float


def best_audit(
    budget: int, step: float, audit_step: float, alpha: float, votes: float = 0.9, mismatch: float = 0.01
) -> AuditPlan:
    """The n, K and split with the largest planned radius for ``budget`` evaluations of f, on a grid of shares of the budget: a
    serialized vote costs ``step``, an audited vote for A ``audit_step`` more. Choose before anything is drawn.

    Raises ValueError where the budget allows no certificate, and for costs or shares that are none.
    """
    for name, cost in {"budget": budget, "step": step, "audit_step": audit_step}.items():
        if not 0 < cost < math.inf:
            raise ValueError(f"{name} = {cost} is out of range: evaluations of f, above 0")
    for name, share, least in (("votes", votes, 0.5), ("mismatch", mismatch, 0.0)):
        if not least <= share <= 1:
            raise ValueError(f"{name} = {share} is out of range: a share, {least:g} to 1")
    plans = []
    for share in np.arange(1, 100) / 100:  # of the budget, for the audit
        audit, n = int(share * budget / (votes * audit_step)), int((1 - share) * budget / step)
        if n >= 1:
            audit = min(audit, n)
            split = best_split(n, audit, alpha, votes, mismatch)
            plans.append(AuditPlan(n, audit, split, planned_radius(n, audit, alpha, split, votes, mismatch)))
    best = max(plans, key=lambda plan: plan.radius, default=None)
    if best is None or best.radius == 0:
        raise ValueError(f"budget = {budget} evaluations of f allow no certificate at alpha = {alpha}")
    return best


def _binomial_mismatch(n_a: int, n: int, n1: int, n2: int, alpha: float) -> float:
    _check_audit(n_a, n, n1, n2)
    return 1.0 if n2 == 0 else 1 - clopper_pearson_lower(n1, n2, alpha / 2)


def _check_audit(n_a: int, n: int, n1: int, n2: int) -> None:
    if not 0 <= n1 <= n2 <= n_a <= n:
        raise ValueError(f"n1 = {n1}, n2 = {n2}, n_a = {n_a}, n = {n} must satisfy 0 <= n1 <= n2 <= n_a <= n")


def _check(successes: float, trials: float, alpha: float) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: expected 0 <= successes <= trials and trials >= 1")
    _check_level(alpha)


def _check_level(alpha: float) -> None:
    if not _LEAST_LEVEL <= alpha < 1:
        raise ValueError(f"alpha = {alpha} is out of range: expected {_LEAST_LEVEL} <= alpha < 1")

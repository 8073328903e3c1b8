"""Bounds and radii: pure functions of counts.

Source of the statistics: Clopper and Pearson (1934). Of the radius: Cohen et al. (2019), Theorem 1. Of the correlation-
eliminated bound: Gao et al. (2024), Theorem 3.1. Of the sequential test: Ville (1939), Robbins (1970).
"""

import math
from dataclasses import dataclass

from scipy import special, stats


def clopper_pearson_lower(successes: float, trials: int, alpha: float) -> float:
    """One-sided exact lower bound on p: P(bound > p) <= alpha for Binomial(trials, p) successes.

    Raises ValueError for counts outside 0 <= successes <= trials, trials < 1, or alpha outside (0, 1).
    """
    _check(successes, trials, alpha)
    return 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, trials - successes + 1))


def clopper_pearson_interval(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Two-sided exact interval at level 1 - alpha. Raises as :func:`clopper_pearson_lower` does."""
    lower = clopper_pearson_lower(successes, trials, alpha / 2)
    return lower, 1 - clopper_pearson_lower(trials - successes, trials, alpha / 2)


def radius(p_a_lower: float, sigma: float) -> float:
    """Certified l2 radius sigma * Phi^-1(p_a_lower) in the unit of sigma; 0 where p_a_lower <= 1/2."""
    return float(sigma * stats.norm.ppf(p_a_lower)) if p_a_lower > 0.5 else 0.0


@dataclass(frozen=True)
class SerializedBound:
    """Lower bound on p_A from serialized votes, and the upper bound on the mismatch rate that it rests on."""

    p_a_lower: float
    p_m_upper: float


def theorem_3_1(n_a: int, n: int, n1: int, n2: int, alpha: float) -> SerializedBound:
    """The paper's correlation-eliminated bound (Theorem 3.1), as printed: N stays the denominator.

    ``n_a`` of ``n`` serialized votes went to class A. Of the audited votes ``n2`` went to A, and the standard DEQ
    confirmed ``n1`` of those. p_m_upper = 1 - CPlow(n1, n2, alpha / 2); p_a_lower = CPlow(floor((1 - p_m_upper) n_a), n,
    alpha / 2): the effective count is rounded down, so that rounding can only shrink a radius. Nothing audited for A
    (n2 = 0) bounds nothing: p_m_upper = 1.
    """
    if not 0 <= n1 <= n2 <= n_a:
        raise ValueError(f"n1 = {n1}, n2 = {n2}, n_a = {n_a} must satisfy 0 <= n1 <= n2 <= n_a")
    p_m_upper = 1.0 if n2 == 0 else 1 - clopper_pearson_lower(n1, n2, alpha / 2)
    effective = math.floor((1 - p_m_upper) * n_a)
    return SerializedBound(clopper_pearson_lower(effective, n, alpha / 2), p_m_upper)


def log_evidence(successes: int, trials: int, p_0: float) -> float:
    """Logarithm of a test martingale against "p <= p_0": at any time, with any stopping rule, it exceeds log(1 / alpha) with
    probability at most alpha if that is true (Ville 1939).

    The martingale mixes the likelihood ratios of all p in (p_0, 1], uniformly, against p_0 (Robbins 1970). Raises ValueError
    for counts outside 0 <= successes <= trials or p_0 outside (0, 1).
    """
    if not 0 <= successes <= trials or not 0 < p_0 < 1:
        raise ValueError(f"{successes} successes in {trials} trials against p_0 = {p_0}: expected counts in order, 0 < p_0 < 1")
    failures = trials - successes
    mixed = special.betaln(successes + 1, failures + 1) + stats.beta.logsf(p_0, successes + 1, failures + 1)
    return float(mixed - math.log1p(-p_0) - successes * math.log(p_0) - failures * math.log1p(-p_0))


def largest_radius(n: int, alpha: float, sigma: float, audit: int | None = None) -> float:
    """The radius of a perfect run: every vote for A and, for serialized votes, every one of ``audit`` confirmed."""
    if audit is None:
        return radius(clopper_pearson_lower(n, n, alpha), sigma)
    return radius(theorem_3_1(n, n, audit, audit, alpha).p_a_lower, sigma)


def smallest_n(alpha: float) -> int:
    """The least number of draws with which a unanimous vote can be certified at all: alpha^(1/n) > 1/2."""
    return math.floor(math.log(alpha) / math.log(0.5)) + 1


def _check(successes: float, trials: int, alpha: float) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: expected 0 <= successes <= trials and trials >= 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha} is out of range: expected 0 < alpha < 1")

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from srs.certificates import bounds

ESTIMATORS = ("finite_population", "theorem_3_1", "released_code")


def _independent_lower(k, n, alpha):
    """Clopper-Pearson by definition: the p at which k or more successes have probability alpha (50 digits, bisection)."""
    if k == 0:
        return 0.0
    with mpmath.workdps(50):
        low, high = mpmath.mpf(0), mpmath.mpf(1)
        for _ in range(80):
            p = (low + high) / 2
            tail = mpmath.fsum(mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
            low, high = (p, high) if tail < alpha else (low, p)
        return float(low)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("k, n", [(0, 5), (1, 5), (5, 5), (17, 40), (99, 100), (100, 100), (190, 200)])
def test_clopper_pearson_equals_its_definition(k, n, alpha):
    assert bounds.clopper_pearson_lower(k, n, alpha) == pytest.approx(_independent_lower(k, n, alpha), abs=1e-10)


@pytest.mark.parametrize("k, n", [(0, 10), (3, 10), (10, 10), (9_900, 10_000)])
def test_clopper_pearson_equals_scipy(k, n):
    theirs = stats.binomtest(k, n, alternative="greater").proportion_ci(0.999, method="exact").low
    assert bounds.clopper_pearson_lower(k, n, 0.001) == pytest.approx(theirs, abs=1e-9)
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert bounds.clopper_pearson_interval(k, n, 0.05) == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize("sigma, largest", [(0.25, 0.953), (0.5, 1.906), (1.0, 3.812)])
def test_largest_radii_of_cohen_et_al(sigma, largest):
    """N = 100,000 and alpha = 0.001: where the certified-accuracy curves of Cohen et al. (2019) end."""
    assert bounds.largest_radius(100_000, 0.001, sigma) == pytest.approx(largest, abs=1e-3)


def test_largest_radii_under_theorem_3_1():
    """Known from an independent check of the paper's arithmetic: sigma 0.5, N = 10,000, alpha = 0.001."""
    assert bounds.largest_radius(10_000, 0.001, 0.5) == pytest.approx(1.599, abs=1e-3)
    assert bounds.largest_radius(10_000, 0.001, 0.5, audit=400, estimator="theorem_3_1") == pytest.approx(0.991, abs=1e-3)
    assert bounds.largest_radius(10_000, 0.001, 0.5, audit=1_000, estimator="theorem_3_1") == pytest.approx(1.147, abs=1e-3)


def test_radius_needs_a_majority():
    assert bounds.radius(0.5, 1.0) == 0 and bounds.radius(0.3, 1.0) == 0
    assert bounds.radius(stats.norm.cdf(1.5), 0.25) == pytest.approx(0.375)


def test_smallest_n_is_the_smallest():
    for alpha in (0.001, 0.05, 0.5, 0.125):
        n = bounds.smallest_n(alpha)
        assert bounds.clopper_pearson_lower(n, n, alpha) > 0.5
        assert n == 1 or bounds.clopper_pearson_lower(n - 1, n - 1, alpha) <= 0.5 + 1e-12


def test_what_the_released_code_reaches():
    """Known from an independent check of the paper's arithmetic: more than its theorem, with any audit."""
    for audit in (400, 1_000):
        assert bounds.largest_radius(10_000, 0.001, 0.5, audit, "released_code") == pytest.approx(1.5835, abs=1e-3)


def test_nothing_audited_bounds_nothing_and_a_complete_audit_knows_all():
    nothing = bounds.SerializedBound(0.0, 1.0)
    for estimator in ESTIMATORS:
        assert bounds.serialized_bound(estimator, 900, 1000, 0, 0, 0.001) == nothing
        assert bounds.serialized_bound(estimator, 0, 1000, 0, 0, 0.001).p_a_lower == 0
    complete = bounds.finite_population(900, 1000, 880, 900, 0.001)
    assert complete == bounds.SerializedBound(bounds.clopper_pearson_lower(880, 1000, 0.0005), 20 / 900)


@pytest.mark.parametrize("alpha", [Fraction(1, 1000), Fraction(1, 20), Fraction(1, 2)])
def test_the_hypergeometric_bound_equals_enumeration(alpha):
    """All populations up to 40, all samples, all outcomes, in whole numbers."""
    for population in range(41):
        for sample in range(population + 1):
            chances = [
                np.cumsum([math.comb(m, x) * math.comb(population - m, sample - x) for x in range(sample + 1)])
                for m in range(population + 1)
            ]
            enough = math.comb(population, sample) * alpha
            for marked in range(sample + 1):
                possible = range(marked, population - (sample - marked) + 1)
                expected = max(m for m in possible if chances[m][marked] >= enough)
                assert bounds.hypergeometric_upper(marked, sample, population, float(alpha)) == expected


@pytest.mark.parametrize("population, sample, marked", [(30, 11, 2), (900, 360, 9), (20_000, 400, 3), (60_000, 200, 1)])
def test_rounding_never_takes_a_marked_one_away(population, sample, marked):
    """At the very level that a number of marked ones has, that number is still possible."""
    for m in np.linspace(marked, population - (sample - marked), 9).astype(int).tolist():
        ways = sum(math.comb(m, x) * math.comb(population - m, sample - x) for x in range(marked + 1))
        exact = Fraction(ways, math.comb(population, sample))
        level = float(exact)
        level = level if level <= exact else math.nextafter(level, 0)
        if 1e-150 <= level < 1:
            assert bounds.hypergeometric_upper(marked, sample, population, level) >= m


def test_the_split_gives_the_audit_its_share():
    found = bounds.finite_population(900, 1_000, 190, 200, 0.001, split=0.8)
    marked = bounds.hypergeometric_upper(10, 200, 900, 0.0008)
    assert found.p_a_lower == pytest.approx(bounds.clopper_pearson_lower(900 - marked, 1_000, 0.0002), rel=1e-12)
    assert found.p_m_upper == marked / 900
    census = bounds.finite_population(900, 1_000, 190, 200, 0.001, known=50)
    marked = bounds.hypergeometric_upper(10, 200, 900, 0.0005)
    assert census.p_a_lower == bounds.clopper_pearson_lower(950 - marked, 1_000, 0.0005)
    assert bounds.largest_radius(1_000, 0.001, 1.0, 200, census=100) > bounds.largest_radius(1_000, 0.001, 1.0, 200)
    assert bounds.largest_radius(100, 0.001, 1.0, 100, census=100) == bounds.largest_radius(100, 0.0005, 1.0)


def test_radii_are_printed_rounded_down():
    assert [bounds.shown(r) for r in (1.5999, 0.3, 0.0)] == ["1.599", "0.300", "0.000"] and bounds.shown(1.599, 2) == "1.59"


def test_the_hypergeometric_bound_seldom_fails():
    """By exact sums: the chance that the bound lies below the truth, for every truth."""
    population, sample, alpha = 300, 60, 0.01
    upper = [bounds.hypergeometric_upper(x, sample, population, alpha) for x in range(sample + 1)]
    for truth in range(population + 1):
        law = stats.hypergeom(population, truth, sample)
        assert sum(law.pmf(x) for x in range(sample + 1) if upper[x] < truth) <= alpha


@pytest.mark.parametrize("n", [1, 20, 1000, 2000])
@pytest.mark.parametrize("share", [0.55, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("alpha", [0.05, 0.0005])
def test_rounding_only_shrinks(share, n, alpha):
    """At the bound itself, k or more successes are no likelier than alpha; the radius is no larger than the exact one."""
    with mpmath.workdps(50):
        k = max(1, round(share * n))
        p = mpmath.mpf(bounds.clopper_pearson_lower(k, n, alpha))
        assert mpmath.fsum(mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)) <= alpha
        exact = mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1) / 2
        assert p <= 0.5 or bounds.radius(float(p), 0.5) <= exact


@given(st.data())
def test_more_mismatches_fewer_votes_or_a_smaller_audit_never_enlarge_a_bound(data):
    estimator = data.draw(st.sampled_from(["finite_population", "theorem_3_1"]))
    n = data.draw(st.integers(2, 300))
    n_a = data.draw(st.integers(1, n))
    n2 = data.draw(st.integers(1, n_a))
    n1 = data.draw(st.integers(1, n2))

    def lower(*counts):
        return bounds.serialized_bound(estimator, *counts, 0.001).p_a_lower

    bound = lower(n_a, n, n1, n2)
    assert lower(n_a, n, n1 - 1, n2) <= bound
    assert lower(n_a, n, n1 - 1, n2 - 1) <= bound  # one confirmed vote less in the audit
    if n_a > n2:
        assert lower(n_a - 1, n, n1, n2) <= bound
    assert bound <= bounds.clopper_pearson_lower(n_a, n, 0.001)


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
def test_votes_that_are_known_count_as_confirmed(n_a, known, others):
    """A census is never worse than not counting what it found."""
    n = n_a + known + others
    audit = max(1, n_a // 2)
    with_census = bounds.finite_population(n_a, n, audit, audit, 0.001, known=known).p_a_lower
    assert with_census >= bounds.finite_population(n_a, n, audit, audit, 0.001).p_a_lower


def test_the_released_code_is_not_monotone_in_what_matters():
    """Mismatches hardly lower its bound: the ratio of votes stays. This is what is wrong with it."""
    clean, spoilt = (bounds.released_code(9_000, 10_000, n1, 360, 0.001).p_a_lower for n1 in (360, 324))
    assert clean - spoilt < 0.01 < bounds.theorem_3_1(9_000, 10_000, 360, 360, 0.001).p_a_lower - 0.8
    assert spoilt > 0.9 * (1 - 36 / 360)  # more than the votes that the audit confirms


def test_smallest_audit_is_the_smallest():
    for n, split in ((100, 0.5), (1_000, 0.2)):
        least = bounds.smallest_audit(n, 0.001, split)
        assert bounds.largest_radius(n, 0.001, 1.0, least, split=split) > 0
        assert bounds.largest_radius(n, 0.001, 1.0, least - 1, split=split) == 0
    assert bounds.smallest_audit(10, 0.001) is None
    assert bounds.smallest_audit(11, 0.001) and bounds.smallest_audit(11, 0.001, split=0.9) is None
    assert bounds.smallest_audit(100, 0.9, split=0.9) == 1


def test_plans_are_the_best_of_their_kind():
    split = bounds.best_split(1_000, 200, 0.001)
    assert bounds.planned_radius(1_000, 200, 0.001, split) >= bounds.planned_radius(1_000, 200, 0.001, 0.5)
    plan = bounds.best_audit(60_000, 3, 30, 0.001)
    assert 3 * plan.n + 30 * 0.9 * plan.audit <= 60_000
    assert plan.radius >= bounds.planned_radius(10_000, 400, 0.001)  # costs 40,800 or more
    with pytest.raises(ValueError, match="budget = 40"):
        bounds.best_audit(40, 3, 30, 0.001)


@pytest.mark.parametrize(
    "name, value", [("step", 0), ("audit_step", -1), ("budget", math.nan), ("votes", 0), ("votes", 1.5), ("mismatch", 2)]
)
def test_an_audit_is_planned_for_costs_and_shares_alone(name, value):
    with pytest.raises(ValueError, match=f"^{name} = {value} is out of range"):
        bounds.best_audit(**{"budget": 60_000, "step": 3, "audit_step": 30, "alpha": 0.001} | {name: value})


@pytest.mark.parametrize("alpha, votes, mismatch", [(0.001, 0.8, 0.05), (0.05, 0.95, 0.002)])
def test_a_plan_is_what_trying_all_finds(alpha, votes, mismatch):
    """By :func:`finite_population` of the counts that are planned, in units of sigma."""

    def radius(n, audit, split):
        n2 = round(votes * audit)
        bound = bounds.finite_population(round(votes * n), n, n2 - math.ceil(mismatch * n2), n2, alpha, split)
        return max(0.0, float(stats.norm.ppf(bound.p_a_lower)))

    tried, splits = {}, [k / 20 for k in range(1, 20)]
    for percent in range(1, 100):
        n = int((1 - percent / 100) * 20_000 / 2)
        audit = min(n, int(percent / 100 * 20_000 / (votes * 20)))
        tried |= {(n, audit, split): radius(n, audit, split) for split in splits}
    plan = bounds.best_audit(20_000, 2, 20, alpha, votes, mismatch)
    assert plan.radius == pytest.approx(max(tried.values()), abs=1e-9)
    assert tried[plan.n, plan.audit, plan.split] == pytest.approx(plan.radius, abs=1e-9)
    split = bounds.best_split(1_000, 200, alpha, votes, mismatch)
    assert radius(1_000, 200, split) == max(radius(1_000, 200, other) for other in splits) > 0
    assert bounds.planned_radius(1_000, 200, alpha, split, votes, mismatch) == pytest.approx(
        radius(1_000, 200, split), abs=1e-9
    )


def test_clear_errors():
    with pytest.raises(ValueError, match="6 successes in 5 trials"):
        bounds.clopper_pearson_lower(6, 5, 0.05)
    with pytest.raises(ValueError, match="alpha = 1.5"):
        bounds.clopper_pearson_lower(3, 5, 1.5)
    with pytest.raises(ValueError, match="alpha = 1e-160"):
        bounds.clopper_pearson_lower(3, 5, 1e-160)
    for estimator in ESTIMATORS:
        with pytest.raises(ValueError, match="n1 = 5, n2 = 4"):
            bounds.serialized_bound(estimator, 10, 20, 5, 4, 0.01)
    with pytest.raises(ValueError, match="known = 11 is out of range"):
        bounds.finite_population(10, 20, 4, 5, 0.01, known=11)
    with pytest.raises(ValueError, match="split = 1.0 is out of range"):
        bounds.finite_population(10, 20, 4, 5, 0.01, split=1.0)
    with pytest.raises(ValueError, match="known = 1: a census"):
        bounds.serialized_bound("released_code", 10, 20, 4, 5, 0.01, known=1)
    with pytest.raises(ValueError, match="estimator = 'exact' is unknown: choose one of finite_population, theorem_3_1"):
        bounds.serialized_bound("exact", 10, 20, 4, 5, 0.01)
    with pytest.raises(ValueError, match="marked = 3, sample = 2"):
        bounds.hypergeometric_upper(3, 2, 10, 0.05)


@pytest.mark.parametrize("k, n, level", [(1, 1, 0.05), (3, 7, 0.3), (30, 30, 9e-4), (750, 1_000, 5e-5), (9_900, 10_000, 9e-4)])
def test_the_lower_bound_by_evidence_is_what_evidence_rejects(k, n, level):
    """In 60 digits: it is rejected, all below it are, and what is hardly above it is not."""
    with mpmath.workdps(60):
        lower, enough = mpmath.mpf(bounds.lower_by_evidence(k, n, level)), 1 / mpmath.mpf(level)
        below = [reference.evidence(k, n, lower * s / 8) for s in range(4, 9)]
        assert below == sorted(below, reverse=True) and below[-1] >= enough
        assert reference.evidence(k, n, lower * (1 + 1e-7)) < enough


@given(st.integers(1, 300), st.integers(0, 300), st.floats(1e-9, 0.9))
def test_rejected_hypotheses_are_an_interval(k, against, level):
    """Evidence falls up to k / n, and is none beyond (Theorem 4)."""
    n = k + against
    below = (
        bounds.log_evidence(k, n, 0.5 * k / n),
        bounds.log_evidence(k, n, 0.75 * k / n),
        bounds.log_evidence(k, n, 0.99 * k / n),
    )
    assert list(below) == sorted(below, reverse=True)
    assert all(bounds.log_evidence(k, n, k / n + (1 - k / n) * s) <= 1e-9 for s in (0.0, 0.3, 0.9) if against)
    lower = bounds.lower_by_evidence(k, n, level)
    assert lower < bounds.lower_by_evidence(2 * k, 2 * n, level) and lower <= bounds.lower_by_evidence(k, n, 0.95)
    assert bounds.lower_by_evidence(0, n, level) == 0


def test_shares_of_alpha_are_all_of_it():
    for classes, preferred in [(2, 0), (10, 3), (1_000, 999), (10, -1)]:
        shares = bounds.shares_of_alpha(classes, preferred)
        assert shares.sum() == pytest.approx(1, abs=1e-12) and (shares > 0).all()
        assert shares.argmax() == max(preferred, 0) and (shares[preferred] == 0.9 or preferred < 0)


def _ratio(p, k, n, p_0):
    return (p / p_0) ** k * ((1 - p) / (1 - p_0)) ** (n - k)


@pytest.mark.parametrize("p_0", [0.5, 0.69])
def test_evidence_is_the_integral_that_it_says(p_0):
    for k, n in [(0, 0), (0, 7), (5, 7), (30, 30), (300, 400)]:
        mixed, _ = integrate.quad(_ratio, p_0, 1, args=(k, n, p_0), epsabs=0, epsrel=1e-10)
        assert bounds.log_evidence(k, n, p_0) == pytest.approx(np.log(mixed / (1 - p_0)), rel=1e-6, abs=1e-9)
    with pytest.raises(ValueError, match="6 successes in 5 trials"):
        bounds.log_evidence(6, 5, p_0)


def test_evidence_is_a_martingale_at_the_edge_of_its_hypothesis():
    for k, n in [(3, 5), (40, 60)]:
        up, down = np.exp(bounds.log_evidence(k + 1, n + 1, 0.6)), np.exp(bounds.log_evidence(k, n + 1, 0.6))
        assert 0.6 * up + 0.4 * down == pytest.approx(np.exp(bounds.log_evidence(k, n, 0.6)), rel=1e-9)
        assert 0.5 * up + 0.5 * down < np.exp(bounds.log_evidence(k, n, 0.6))

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from srs import bounds


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
    assert bounds.clopper_pearson_lower(k, n, alpha) == pytest.approx(_independent_lower(k, n, alpha), abs=1e-12)


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
    assert bounds.largest_radius(10_000, 0.001, 0.5, audit=400) == pytest.approx(0.991, abs=1e-3)
    assert bounds.largest_radius(10_000, 0.001, 0.5, audit=1_000) == pytest.approx(1.147, abs=1e-3)


def test_radius_needs_a_majority():
    assert bounds.radius(0.5, 1.0) == 0 and bounds.radius(0.3, 1.0) == 0
    assert bounds.radius(stats.norm.cdf(1.5), 0.25) == pytest.approx(0.375)


def test_smallest_n_is_the_smallest():
    for alpha in (0.001, 0.05, 0.5, 0.125):
        n = bounds.smallest_n(alpha)
        assert bounds.clopper_pearson_lower(n, n, alpha) > 0.5
        assert n == 1 or bounds.clopper_pearson_lower(n - 1, n - 1, alpha) <= 0.5 + 1e-12


def test_nothing_audited_bounds_nothing():
    assert bounds.theorem_3_1(900, 1000, 0, 0, 0.001) == bounds.SerializedBound(0.0, 1.0)


@given(st.data())
def test_more_mismatches_or_fewer_votes_never_enlarge_the_bound(data):
    n = data.draw(st.integers(1, 300))
    n_a = data.draw(st.integers(1, n))
    n2 = data.draw(st.integers(1, n_a))
    n1 = data.draw(st.integers(1, n2))
    bound = bounds.theorem_3_1(n_a, n, n1, n2, 0.001).p_a_lower
    assert bounds.theorem_3_1(n_a, n, n1 - 1, n2, 0.001).p_a_lower <= bound
    if n_a > n2:
        assert bounds.theorem_3_1(n_a - 1, n, n1, n2, 0.001).p_a_lower <= bound
    assert bound <= bounds.clopper_pearson_lower(n_a, n, 0.001)


def test_clear_errors():
    with pytest.raises(ValueError, match="6 successes in 5 trials"):
        bounds.clopper_pearson_lower(6, 5, 0.05)
    with pytest.raises(ValueError, match="alpha = 1.5"):
        bounds.clopper_pearson_lower(3, 5, 1.5)
    with pytest.raises(ValueError, match="n1 = 5, n2 = 4"):
        bounds.theorem_3_1(10, 20, 5, 4, 0.01)


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

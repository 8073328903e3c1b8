"""The numbers that tables are made of."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from srs.certificates.bounds import clopper_pearson_interval


def certified(rows: pd.DataFrame, r: float) -> pd.Series:
    """Which rows count at radius ``r``: correct, not abstained, and with a certified radius of at least r."""
    return (rows["prediction"] == rows["label"]) & (rows["radius"] >= r)


def certified_accuracy(rows: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Certified accuracy at each radius with its exact 95 % interval: columns accuracy, lower, upper, images."""
    table = []
    for r in radii:
        count, images = int(certified(rows, r).sum()), len(rows)
        table.append((count / images, *clopper_pearson_interval(count, images, 0.05), images))
    return pd.DataFrame(table, columns=["accuracy", "lower", "upper", "images"], index=pd.Index(radii, name="r"))


def counted_radii(rows: pd.DataFrame) -> pd.Series:
    """The radii that an ACR averages: 0 where the prediction is wrong or abstained."""
    return rows["radius"].where(rows["prediction"] == rows["label"], 0.0)


def average_certified_radius(rows: pd.DataFrame, released: bool = False) -> float:
    """ACR: mean over all images of the radius, 0 where the prediction is wrong or abstained.

    ``released``: the paper's released code averages every radius, those of wrong predictions included.
    """
    return float((rows["radius"] if released else counted_radii(rows)).mean())


def mean_interval(values: Sequence[float], alpha: float = 0.05, least: float = -np.inf) -> tuple[float, float]:
    """Student's t interval of a mean at level 1 - alpha, cut where a mean cannot be (below ``least``); NaN where the values say
    nothing of their spread. The percentiles of a bootstrap are shorter: over differences of radii between the published rows of
    `embedded`, 15 images at a time, they left out the mean on 8.8 % of sets, this on 4.6 %. Where hardly an image differs,
    neither holds."""
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    found = stats.ttest_1samp(values, 0.0).confidence_interval(1 - alpha)
    return float(np.maximum(found.low, least)), float(found.high)


def difference_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    """A :func:`mean_interval` of differences, or the one that two images or more all have."""
    values = np.asarray(values, float)
    return (float(values.mean()),) * 2 if len(values) > 1 and np.ptp(values) == 0 else mean_interval(values, alpha)


def paired_interval(gained: int, lost: int, images: int, alpha: float = 0.05) -> tuple[float, float]:
    """The interval of (gained - lost) / images of Fay and Lumbard (2021), at level 1 - alpha: Clopper and Pearson's for the
    share of images that differ and for that of these which are gained, melded. 0 lies outside exactly where the sign test of
    gained against lost (McNemar's, exact) rejects at alpha. That it holds at least as often as it says is their conjecture:
    by enumeration it does (tests/test_tables.py)."""
    return _melded_end(gained, lost, images, alpha / 2), -_melded_end(lost, gained, images, alpha / 2)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_FARTHEST = 9.0  # normal scores, beyond which nothing counts


@cache  # of few distinct counts a comparison of whole runs asks for thousands
def _melded_end(gained: int, lost: int, images: int, tail: float) -> float:
    """The lower end: the least ``tail`` quantile of T (2 B - 1), where B, of the share gained, has the distribution of
    Clopper and Pearson's lower ends, and T, of that of images that differ, that of their lower or of their upper ends: which of
    the two makes it least is known from its sign, P(B < 1/2) against ``tail``."""
    differ = gained + lost
    if gained == 0:  # B is 0
        return -1.0 if differ == images else -float(special.betainccinv(differ + 1, images - differ, tail))
    if special.betainc(gained, lost + 1, 0.5) < tail:
        share = differ, images - differ + 1
    elif differ < images:
        share = differ + 1, images - differ
    else:  # T is 1
        return 2 * float(special.betaincinv(gained, lost + 1, tail)) - 1
    return optimize.brentq(lambda end: _chance_below(end, (gained, lost + 1), share) - tail, -1, 1)


def _chance_below(end: float, b: tuple[float, float], t: tuple[float, float]) -> float:
    """P(T (2 B - 1) < end) for independent B and T, beta distributed with the parameters ``b`` and ``t``: by quadrature over
    the normal scores of T, in which its tails are wide, from where T is |end|: below that the chance is 0 or 1."""
    inside = special.betainc(*t, abs(end))
    first = np.clip(special.ndtri(inside), -_FARTHEST, _FARTHEST)
    half = (_FARTHEST - first) / 2
    scores = first + half * (1 + _NODES)
    nearer = special.betaincinv(*t, special.ndtr(scores)), special.betainccinv(*t, special.ndtr(-scores))
    share = np.where(scores < 0, *nearer)
    chances = special.betainc(*b, np.clip((1 + end / share) / 2, 0, 1))
    return float(inside * (end > 0) + half * (_WEIGHTS * stats.norm.pdf(scores)) @ chances)


def rejected(p_values: Sequence[float], level: float = 0.05) -> np.ndarray:
    """Which of several hypotheses their p-values reject, at ``level`` for all together (Holm 1979): bool, in their order."""
    p_values = np.asarray(p_values, float)
    order = p_values.argsort()
    small = p_values[order] <= level / np.arange(len(order), 0, -1)
    found = np.zeros(len(order), bool)
    found[order] = np.logical_and.accumulate(small)
    return found


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of two paired sums of positive numbers, with its 95 % interval over the pairs (Student's t, linearized), which is
    the ratio alone where all pairs have it; NaN for fewer than two, and where ``below`` spreads so much that a ratio can have
    any size (Fieller 1954)."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    ratio = float(above.sum() / below.sum())
    if len(above) < 2:
        return ratio, np.nan, np.nan
    if np.ptp(above / below) == 0:
        return ratio, ratio, ratio
    if mean_interval(below)[0] <= 0:
        return ratio, np.nan, np.nan
    low, high = mean_interval((above - ratio * below) / below.mean(), least=-ratio)
    return ratio, ratio + low, ratio + high


def joint_interval(values: np.ndarray, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of the mean of ``values`` (trainings, images) over other trainings and other images: Student's t, the variance
    that of the trainings' means and that of the images' means together, degrees of freedom after Satterthwaite (1946). What
    is of one training and image alone is counted in both: conservative. Raises ValueError for one training."""
    if len(values) < 2:
        raise ValueError("one training tells nothing of a spread over trainings: 2 or more are wanted")
    means = values.mean(axis=1), values.mean(axis=0)
    parts = np.array([part.var(ddof=1) / len(part) for part in means])
    if not parts.any():
        return float(values.mean()), float(values.mean())
    freedom = parts.sum() ** 2 / sum(part**2 / (len(mean) - 1) for part, mean in zip(parts, means))
    half = stats.t.ppf(1 - alpha / 2, freedom) * np.sqrt(parts.sum())
    return float(values.mean() - half), float(values.mean() + half)


def joint_ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Ratio of two sums over (trainings, images), with its interval as in :func:`joint_interval` (linearized)."""
    ratio = float(above.sum() / below.sum())
    low, high = joint_interval((above - ratio * below) / below.mean())
    return ratio, ratio + low, ratio + high

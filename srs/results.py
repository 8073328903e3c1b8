"""The numbers that tables are made of."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from srs.bounds import clopper_pearson_interval


def stopped(reference: str) -> str:
    """The name of the row that is ``reference``, stopped at its tolerance: the honest baseline of speed-ups."""
    return f"{reference} stopped"


def released(reference: str) -> str:
    """The name of the row that does what the paper's released baseline does: ``reference``, stopped batch by batch."""
    return f"{reference} as released"


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


def average_certified_radius(rows: pd.DataFrame, released: bool = False) -> float:
    """ACR: mean over all images of the radius, 0 where the prediction is wrong or abstained.

    ``released``: the paper's released code averages every radius, those of wrong predictions included.
    """
    correct = rows["prediction"] == rows["label"]
    return float(rows["radius"].mean() if released else rows["radius"].where(correct, 0.0).mean())


def mean_interval(values: Sequence[float], alpha: float = 0.05, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval (percentile) of a mean at level 1 - alpha; NaN where the values say nothing of their spread."""
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    settings = {"confidence_level": 1 - alpha, "method": "percentile", "n_resamples": 2_000}
    found = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(seed), **settings)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def ratio_interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of two paired sums, with its 95 % bootstrap interval (percentile) over the pairs; NaN for fewer than two."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    if len(above) < 2:
        return float(above.sum() / below.sum()), np.nan, np.nan
    chosen = np.random.default_rng(seed).integers(0, len(above), (2_000, len(above)))
    low, high = np.quantile(above[chosen].sum(axis=1) / below[chosen].sum(axis=1), [0.025, 0.975])
    return float(above.sum() / below.sum()), float(low), float(high)

"""The numbers that tables are made of."""

from collections.abc import Sequence

import pandas as pd

from srs.bounds import clopper_pearson_interval


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

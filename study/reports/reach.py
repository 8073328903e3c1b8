"""How far certificates can reach under the settings of the paper's CIFAR-10 tables, and what radii those claim."""

import numpy as np

from srs.certificates import bounds

N, ALPHA, SIGMA = 10_000, 0.001, 0.5  # of the paper's CIFAR-10 tables
_TABLES = ("table1", "table2", "table4", "table5", "table7", "table24")  # with serialized rows at that sigma


def reach(estimator: str, k: int) -> float:
    """The largest radius that an estimator can certify with the paper's N and alpha and ``k`` audited draws: a perfect run's,
    at the best split of alpha where there is a choice."""
    splits = bounds.SPLITS if estimator == "finite_population" else [0.5]
    return max(bounds.largest_radius(N, ALPHA, SIGMA, int(k), estimator, split) for split in splits)


def curves() -> tuple[np.ndarray, dict[str, list[float]]]:
    """Numbers of audited draws up to N, and :func:`reach` at each, by estimator."""
    audits = np.unique(np.geomspace(20, N, 25).astype(int))
    return audits, {name: [reach(name, k) for k in audits] for name in bounds.ESTIMATORS}


def published_radii(published: dict) -> dict[tuple[str, str], list[float]]:
    """The radii at which each published serialized row certifies images, by table and row; a row that stands in several tables
    counts once."""
    found = {}
    for table in _TABLES:
        for row, entry in published[table].items():
            if row.startswith("SRS"):
                found.setdefault(tuple(entry["accuracy"]), (table, row))
    at = published["cifar10_radii"]
    return {place: [r for r, accuracy in zip(at, row) if accuracy > 0] for row, place in found.items()}


def claimed_radii(published: dict) -> list[float]:
    """All :func:`published_radii`, each once."""
    return sorted({r for radii in published_radii(published).values() for r in radii})

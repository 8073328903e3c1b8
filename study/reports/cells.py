"""The cells of the tables of certificates, of two runs of a profile side by side, and whether they differ by more than chance
and training explain.

A *line* is a row of a table: a run, a group, how serialized votes are certified (``design``), a method, and N, alpha and sigma.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from study.reports.statistics import average_certified_radius, certified, counted_radii, difference_interval, paired_interval
from study.reports.tables import reachable

LINE = ["run", "group", "design", "method", "n", "alpha", "sigma"]

CERTIFICATES = "certificates.csv.xz"  # of a snapshot
_RESULT, _SECONDS = "results/certificates.csv", "timings/certificates/seconds.csv"  # of a folder of runs
_TEXTS = ["run", "group", "design", "method", "estimator", "audit_draw", "classifier"]
_VERBATIM = {"dtype": str, "keep_default_na": False}
_COMPARED = {*LINE, "index", "label", "prediction", "radius", "votes", "evaluations", "estimator", "split", "k", "census"}
_ROUNDING = 1e-5  # by which radii of the same counts may differ: another SciPy's

Spread = Mapping[tuple[str, str, str, str], float]  # of (kind of run, design, method, cell): a half-width


def read(runs: Path) -> pd.DataFrame:
    """Every certificate of the profile in the folder ``runs``, with its seconds."""
    return _numbers(runs / _RESULT).assign(seconds=pd.read_csv(runs / _SECONDS)["seconds"])


def read_published(snapshot: Path) -> pd.DataFrame:
    """Every certificate in a snapshot's folder, with its seconds. Raises ValueError for one without what :func:`compare`
    looks at: of older code."""
    table = _numbers(snapshot / CERTIFICATES)
    if missing := sorted({*_COMPARED, "seconds"} - {*table}):
        raise ValueError(f"{CERTIFICATES} lacks {', '.join(missing)}: it is of older code")
    return table


def _numbers(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str))
    return table.fillna({name: "" for name in _TEXTS if name in table})


def publish(runs: Path, snapshot: Path) -> None:
    """Every certificate of the profile in the folder ``runs``, with its seconds, as one file of a ``snapshot``."""
    table, seconds = (pd.read_csv(runs / path, **_VERBATIM) for path in (_RESULT, _SECONDS))
    table.assign(**seconds).to_csv(snapshot / CERTIFICATES, index=False)


def take(snapshot: Path, runs: Path) -> None:
    """What :func:`publish` has written, where :func:`read` finds it: the same numbers, digit by digit."""
    table = pd.read_csv(snapshot / CERTIFICATES, **_VERBATIM)
    for path, part in {_RESULT: table.drop(columns="seconds"), _SECONDS: table[["seconds"]]}.items():
        (runs / path).parent.mkdir(parents=True, exist_ok=True)
        part.to_csv(runs / path, index=False)


def compare(
    published: pd.DataFrame,
    ours: pd.DataFrame,
    radii: Mapping[str, Sequence[float]],
    kinds: Mapping[str, str],
    same: set[str],
) -> pd.DataFrame:
    """One line a cell that both have: certified accuracy at each of its run's ``radii`` within reach, ACR, evaluations of f and
    seconds an image, ``published`` and ``ours``, on the images that both have.

    ``difference``: ours minus published; of costs their ratio. ``lower``, ``upper``: its joint 95 % interval, and whether 0 is
    ``within``: of a share :func:`study.reports.statistics.paired_interval`, of the ACR Student's t over
    the images; where the network is another one (its run not among the ``same``), widened by :func:`training_spread` of its
    kind (``kinds``: by run), where that is known. ``over``: what the interval is over. Costs have none: they are compared, not
    judged.
    """
    spread, found = training_spread(published, radii, kinds), []
    theirs = dict(list(published.groupby(LINE, sort=False)))
    for line, part in ours.groupby(LINE, sort=False):
        if line not in theirs:
            continue
        limit = reachable(part).iloc[0]
        both = part.merge(theirs[line], on="index", suffixes=("", " published"))
        if both.empty:
            continue
        names = {name: both[f"{name} published"] for name in ("label", "prediction", "radius", "evaluations", "seconds")}
        sides = pd.DataFrame(names), both[[*names]]
        run, _, design, method = line[:4]
        for cell, values, interval in _cells(*sides, [r for r in radii[run] if r <= limit]):
            row = dict(zip(LINE, line)) | {"cell": cell, "images": len(both), "published": values[0], "yours": values[1]}
            if interval is None:
                ratio = values[1] / values[0] if values[0] else np.nan
                found.append(row | {"difference": ratio, "lower": np.nan, "upper": np.nan, "within": pd.NA, "over": ""})
                continue
            half = None if run in same else spread.get((kinds[run], design, method, cell))
            difference = values[1] - values[0]
            lower, upper = joint(difference, *interval, half or 0.0)
            within = pd.NA if np.isnan(lower) else bool(lower <= 0 <= upper)  # NaN: of one image
            row |= {"difference": difference, "lower": lower, "upper": upper, "within": within}
            found.append(row | {"over": "images" if half is None else "images and trainings"})
    columns = [*LINE, "cell", "images", "published", "yours", "difference", "lower", "upper", "within", "over"]
    return pd.DataFrame(found, columns=columns).astype({"within": "boolean"})


def _cells(published: pd.DataFrame, ours: pd.DataFrame, radii: Sequence[float]) -> Iterator[tuple]:
    """Name, values of both and, but for costs, an interval of their difference over the images."""
    for r in radii:
        before, after = certified(published, r).to_numpy(), certified(ours, r).to_numpy()
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        yield f"certified at {r:g}", (before.mean(), after.mean()), paired_interval(gained, lost, len(before))
    acr = [average_certified_radius(side) for side in (published, ours)]
    change = counted_radii(ours).to_numpy() - counted_radii(published).to_numpy()
    change[np.abs(change) <= _ROUNDING] = 0
    yield "ACR", tuple(acr), difference_interval(change)
    for cost in ("evaluations", "seconds"):
        yield f"{cost} an image", (published[cost].mean(), ours[cost].mean()), None


def joint(difference: float, lower: float, upper: float, half: float) -> tuple[float, float]:
    """The interval of a ``difference`` between two trainings: that over images, from ``lower`` to ``upper``, and the half-width
    of that over trainings, combined as independent (square root of the sum of squares: Zou and Donner's MOVER, 2008)."""
    return difference - np.hypot(difference - lower, half), difference + np.hypot(upper - difference, half)


def training_spread(rows: pd.DataFrame, radii: Mapping[str, Sequence[float]], kinds: Mapping[str, str]) -> Spread:
    """How far two trainings of one kind lie apart: t * sqrt(2) * s, where s is the standard deviation of a cell over the runs
    that differ by their seed alone (``kinds``: by run), on the images that all of them have, and t the 97.5 % quantile of
    Student's t for their number. Of kinds with one run nothing is known, nor of radii beyond the reach of the draws that they
    share. On few images s holds what these add by chance, too: the interval is then wider than it need be."""
    found: dict[tuple, float] = {}
    rows = rows.assign(kind=rows["run"].map(kinds))
    for (kind, design, method), part in rows.groupby(["kind", "design", "method"], sort=False):
        groups = [one["group"].unique() for _, one in part.groupby("run", sort=False)]
        shared = [group for group in groups[0] if all(group in others for others in groups)]  # of equally many draws
        if len(groups) < 2 or not shared:
            continue
        runs = dict(list(part[part["group"] == shared[0]].groupby("run", sort=False)))
        images = set.intersection(*(set(one["index"]) for one in runs.values()))
        alike = [one[one["index"].isin(images)] for one in runs.values()]
        limit = min(reachable(one).iloc[0] for one in alike)  # beyond it all certify nothing, which says nothing of trainings
        known = [r for r in radii[next(iter(runs))] if r <= limit]
        values = {f"certified at {r:g}": [certified(one, r).mean() for one in alike] for r in known}
        values["ACR"] = [average_certified_radius(one) for one in alike]
        factor = stats.t.ppf(0.975, len(runs) - 1) * np.sqrt(2)
        found |= {(kind, design, method, cell): factor * np.std(v, ddof=1) for cell, v in values.items()}
    return found


def changed_votes(published: pd.DataFrame, ours: pd.DataFrame, same: set[str]) -> tuple[pd.DataFrame, int]:
    """Of runs whose network and starts are the ``same`` files: one line a certificate whose votes or radius differ, with both
    answers; and how many certificates were compared."""
    sides = [t[(t["design"] == "") & t["run"].isin(same)] for t in (published, ours)]
    both = sides[0].merge(sides[1], on=[*LINE, "index"], suffixes=(" published", " yours"))
    moved = (both["radius published"] - both["radius yours"]).abs() > _ROUNDING
    differ = both[(both["votes published"] != both["votes yours"]) | moved]
    told = [f"{name} {side}" for name in ("prediction", "radius") for side in ("published", "yours")]
    return differ[["run", "group", "method", "index", *told]].reset_index(drop=True), len(both)

"""Tables of the reports, and sentences that are computed from them.

``rows`` is a table of certificates: one line an image and method, the columns of :func:`study.votes.table.certificate_table`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy import stats

from srs.certificates import bounds
from srs.votes.samplers import Sampler
from study.common.plots import GREY
from study.reports import numbers
from study.reports.numbers import BEYOND, finer, fixed, lie, percent, plural, portion
from study.reports.statistics import (
    average_certified_radius,
    certified,
    certified_accuracy,
    counted_radii,
    joint_interval,
    mean_interval,
    paired_interval,
    ratio_interval,
    rejected,
)
from study.votes.rows import plain, released, stopped

NOT_KNOWN = "not known"
NO_GUARANTEE = "not a guarantee"
PAPERS_IMAGES = 500  # of CIFAR-10
NEVER_STOPS = "no row here has a solver that stops"
ESTIMATOR_NAMES = {
    "finite_population": "exact bound",
    "theorem_3_1": "Theorem 3.1 as printed",
    "released_code": "released code",
}
Difference = tuple[float, float, float]  # and the ends of its interval
_AUDITS = {"random": "random audit", "first_batch": "audit of the first batch"}
_GREY = f"color: {GREY}; font-style: italic"
_PAGE = "var(--pst-color-background, var(--jp-layout-color0, Canvas))"  # behind a first column that stays in sight
_WRAPPED = "white-space: normal !important; min-width: 14em;"  # a rule for all cells of a table outranks that for one
_TABLE_STYLES = [
    {"selector": "", "props": "border-collapse: collapse; font-size: 10pt; margin: 0.3em 0"},
    {"selector": "th, td", "props": "padding: 0.25em 0.5em; text-align: right; white-space: nowrap"},
    {"selector": "thead th", "props": "border-bottom: 1.5px solid #888; vertical-align: bottom; white-space: normal"},
    {"selector": "tbody th", "props": "text-align: left; white-space: normal; min-width: 7em; max-width: 15em"},
    {"selector": "th.row_heading.level0, th.blank", "props": f"position: sticky; left: 0; background: {_PAGE}"},
]
_LEFT = [
    {"selector": "td", "props": "white-space: normal; text-align: left; max-width: 26em; vertical-align: top"},
    {"selector": "thead th", "props": "text-align: left"},
    {"selector": "tbody th", "props": "min-width: 2em; vertical-align: top"},
]


class Table:
    """A table as HTML: its caption above, outside the box in which it scrolls, and rows that are folded below it."""

    def __init__(self, caption: str, table: Styler, folded: Styler | None = None, summary: str = ""):
        self.caption, self.table, self.folded, self.summary = caption, table, folded, summary

    def to_html(self) -> str:
        below = f"<details><summary>{self.summary}</summary>{_scrolling(self.folded)}</details>" if self.folded else ""
        return f'<div class="table"><p class="caption">{self.caption}</p>{_scrolling(self.table)}{below}</div>'

    _repr_html_ = to_html


def _scrolling(styler: Styler) -> str:
    return f'<div class="scroll" style="overflow-x: auto">{styler.to_html()}</div>'


def design_name(design: str) -> str:
    """A design of the coverage study in words: finite_population, random -> exact bound, random audit."""
    first, *more = design.split(", ")
    words = [ESTIMATOR_NAMES.get(first, first), *(_AUDITS.get(word, word) for word in more)]
    words = [f"{percent(float(w[6:]))} of alpha for it" if w.startswith("split ") else w for w in words]
    return ", ".join(f"doubtful {percent(float(w[7:]))} all solved" if w.startswith("census ") else w for w in words)


def by(estimator: str) -> str:
    """What a certificate is made by, in a sentence: the exact bound, Theorem 3.1 as printed."""
    name = ESTIMATOR_NAMES[estimator]
    return name if name[0].isupper() else f"the {name}"


def marked(name: str, guarantee: bool) -> str:
    """A name, marked where what it stands for is no guarantee."""
    return name if guarantee else f"{name} ({NO_GUARANTEE})"


def reachable(rows: pd.DataFrame) -> pd.Series:
    """The largest radius that each method's n, alpha, sigma and audit allow, by method, in table order."""
    settings = rows.groupby("method", sort=False).agg(
        {"n": "first", "alpha": "first", "sigma": "first", "estimator": "first", "split": "first", "k": "max", "census": "max"}
    )  # an image without a selected class has no audit; where none has, all draws could have been audited
    return pd.Series({method: _largest(row) for method, row in settings.iterrows()})


def _largest(row: pd.Series) -> float:
    if not row["estimator"]:
        return bounds.largest_radius(int(row["n"]), row["alpha"], row["sigma"])
    audit = int(row["k"]) or int(row["n"]), row["estimator"], row["split"], int(row["census"])
    return bounds.largest_radius(int(row["n"]), row["alpha"], row["sigma"], *audit)


def summary(rows: pd.DataFrame, radii: Sequence[float], reference: str) -> pd.DataFrame:
    """One line a method: (r, accuracy | lower | upper) for each radius (NaN beyond reach), largest radius, whether it is a
    guarantee, on how many images, ACR by both definitions, evaluations and seconds an image, and the speed-up in both against
    ``reference``."""
    limits = reachable(rows)
    table = {}
    for method, part in rows.groupby("method", sort=False):
        accuracy = certified_accuracy(part, radii).drop(columns="images")
        accuracy[accuracy.index > limits[method]] = np.nan
        line = {(f"r = {r:.3g}", name): value for r, cells in accuracy.iterrows() for name, value in cells.items()}
        line["", "largest r"], line["", "guarantee"] = limits[method], bool(part["guarantee"].all())
        line["", "images"] = len(part)
        line["ACR", "ours"] = average_certified_radius(part)
        line["ACR", "as released"] = average_certified_radius(part, released=True)
        line["per image", "evaluations"] = part["evaluations"].mean()
        line["per image", "seconds"] = part["seconds"].mean()
        table[method] = line
    table = pd.DataFrame.from_dict(table, orient="index")
    for unit in ("evaluations", "seconds"):
        table["speed-up", unit] = table.loc[reference, ("per image", unit)] / table["per image", unit]
    return table


def certified_table(table: pd.DataFrame, caption: str, folded: Sequence[str] = ()) -> Table:
    """The accuracies of a :func:`summary` in percent with their 95 % intervals, the largest radius, rounded down, and both
    ACRs. Rows without a guarantee are grey, and said to be none; those named ``folded`` stand folded below. None is marked as
    best: among so many rows that would be chance."""
    shown, images = pd.DataFrame(index=table.index), int(table["", "images"].min())
    digits = int(images < 100 and 100 % images > 0)  # an image is more than a point, and no whole number of them
    for column in [c for c in dict.fromkeys(table.columns.get_level_values(0)) if c.startswith("r = ")]:
        cells = table[column]
        shown[column] = [
            BEYOND if np.isnan(c.accuracy) else with_interval(c.accuracy, c.lower, c.upper, digits) for c in cells.itertuples()
        ]
    shown["largest r"] = table["", "largest r"].map(bounds.shown)
    shown["ACR"] = table["ACR", "ours"].map("{:.3f}".format)
    shown["ACR as released"] = table["ACR", "as released"].map("{:.3f}".format)
    grey = ["" if sound else _GREY for sound in table["", "guarantee"]]
    css = pd.DataFrame({column: grey for column in shown}, index=shown.index)
    above = [row for row in shown.index if row not in folded]
    if not table.loc[above, ("", "guarantee")].all():
        caption += f" Grey: {NO_GUARANTEE}."
    below = _styler(shown.loc[list(folded)], caption + "folded", css.loc[list(folded)]) if len(folded) else None
    return Table(
        caption,
        _styler(shown.loc[above], caption, css.loc[above]),
        below,
        f"The paper's own estimators ({NO_GUARANTEE}). All audits here compare with our reference "
        "(the released code compares with 10 steps): Theorem 3.1's rows at random, the released code's on the first batch",
    )


def cost_table(rows: pd.DataFrame, reference: str, caption: str, more: pd.DataFrame | None = None) -> Table:
    """Evaluations of f and seconds an image, and the speed-ups in both: against ``reference``, and against the same solver
    stopped and as released where there are such rows; of evaluations with 95 % intervals over the images. ``more``: columns
    that follow, texts by method."""
    spent = rows.groupby("method", sort=False)[["evaluations", "seconds"]].mean()
    shown = pd.DataFrame(
        {
            "evaluations of f": spent["evaluations"].map("{:,.0f}".format),
            "seconds": [NOT_KNOWN if np.isnan(value) else f"{value:.2f}" for value in spent["seconds"]],
        }
    )
    for other in baselines(reference, spent.index):
        for unit in ("evaluations", "seconds"):
            against_other = "" if other == reference else f", against {other}"
            if not against_other or not np.isnan(spent.loc[other, unit]):
                shown[f"speed-up in {unit}{against_other}"] = [saved(rows, row, other, unit) for row in spent.index]
    told = f"{caption} Speed-ups are against {reference}"
    if (rows["k"] > 0).any():
        told += " (which makes the audits of serialized rows, too: the more draws at the same K, the less an audit weighs)"
    told += " where the column names no other" if len(baselines(reference, spent.index)) > 1 else ""
    told += f"; {NEVER_STOPS}." if never_stops(reference, spent.index) else "."
    return styled(shown if more is None else shown.join(more), told)


def audit_columns(rows: pd.DataFrame, reference: str, samplers: Mapping[str, Sampler]) -> pd.DataFrame | None:
    """What audited rows pay and what their audits found, over all images, for :func:`cost_table`: texts by method, a dash where
    there is no audit; None where no row has one."""
    if not (rows["estimator"] != "").any():
        return None
    shown, spent = {}, rows.groupby("method", sort=False)["evaluations"].mean()
    for method, part in rows.groupby("method", sort=False):
        audited, total = int(part["n2"].sum()), int(part[["n0", "n"]].iloc[0].sum())
        cells = [BEYOND] * 3
        if part["estimator"].iloc[0]:
            audit = (part["n2"] + part["census"]).mean() / total * spent[reference]
            cells[:2] = fixed(100 * audit / spent[method]), fixed(100 * samplers[method].warm_share(total))
            cells[2] = fixed(100 * (1 - part["n1"].sum() / audited), 1) if audited else BEYOND
        shown[method] = cells
    titles = ["audit (% of evaluations)", "warm-up (% of draws)", "not confirmed (% of audited votes)"]
    return pd.DataFrame.from_dict(shown, orient="index", columns=titles)


def baselines(reference: str, among: Sequence[str]) -> list[str]:
    """What speed-ups are held against: the reference, and the same solver stopped at its tolerance, row by row or batch by
    batch as the released code has it, where such rows are ``among`` those at hand."""
    others = [row for row in (stopped(reference), released(reference)) if row in among]
    return list(dict.fromkeys([reference, *others]))


def never_stops(reference: str, among: Sequence[str]) -> bool:
    """Whether speed-ups are held against fixed steps alone, for no row that stops is ``among`` those at hand."""
    return reference == plain(reference) and baselines(reference, among) == [reference]


def speed_up(rows: pd.DataFrame, row: str, other: str, unit: str) -> tuple[float, float, float]:
    """How many times as many ``unit`` (seconds or evaluations) ``other`` takes on the same images, with its 95 % interval
    over these. Raises ValueError where the rows are on different images."""
    spent = _by_image(rows, row, other, unit)
    return ratio_interval(spent[other], spent[row])


def timed_speed_up(runs: pd.DataFrame, row: str, other: str) -> tuple[float, float, float]:
    """A :func:`speed_up` in the seconds of timed certificates (:func:`study.speed.timed`), repeats of an image together."""
    return speed_up(runs.groupby(["method", "index"], as_index=False)["seconds"].sum(), row, other, "seconds")


def saved(rows: pd.DataFrame, row: str, other: str, unit: str = "evaluations") -> str:
    """A :func:`speed_up`, for a cell or a sentence. In seconds without an interval: they are evaluations at a row's usual pace,
    whose own error one over images would hide."""
    ratio, low, high = speed_up(rows, row, other, unit)
    return times(ratio, *((np.nan, np.nan) if unit == "seconds" else (low, high)))


def saved_beside_all(rows: pd.DataFrame, row: str, reference: str) -> dict[str, str]:
    """How many times as many evaluations of f as ``row`` each of its :func:`baselines` takes."""
    return {other: saved(rows, row, other) for other in baselines(reference, rows["method"].unique())}


def times(ratio: float, low: float, high: float) -> str:
    """A ratio and its interval, for a table's cell; without where the interval is the ratio in print, or NaN. Whether it holds
    1 shows."""
    if np.isnan(ratio):
        return NOT_KNOWN
    digits = 2 if ratio < 2 else 1
    if np.isnan(low) or len({f"{number:.{digits}f}" for number in (low, ratio, high)}) == 1:
        return f"{ratio:.{digits}f}×"
    digits = numbers.decimals(low, high, digits, marks=[1.0])
    low, high = numbers.outward(low, high, digits)
    return f"{ratio:.{digits}f}× [{low:.{digits}f}, {high:.{digits}f}]"


def acr_difference(rows: pd.DataFrame, method: str, other: str, alpha: float = 0.05) -> Difference:
    """Average certified radius of ``method`` minus ``other``'s, paired by image, with its 1 - alpha interval. Raises ValueError
    where the rows are on different images."""
    radii = _by_image(rows.assign(counted=counted_radii(rows)), method, other, "counted")
    change = radii[method] - radii[other]
    return float(change.mean()), *mean_interval(change, alpha)


def over_trainings(trainings: Sequence[pd.DataFrame], radii: Sequence[float]) -> pd.DataFrame:
    """Certified accuracy of each method (of the first training, in its order) over ``trainings``, on the same images: one line
    a method and radius within reach, with ``mean``, standard ``deviation`` of a training, ``least``, ``most``, that of the
    ``first``, and the 95 % interval ``lower``, ``upper`` of the mean over trainings and images."""
    lines, limits = [], reachable(trainings[0])
    for method in trainings[0]["method"].unique():
        parts = [rows[rows["method"] == method].set_index("index").sort_index() for rows in trainings]
        for r in (r for r in radii if r <= limits[method]):
            held = np.stack([certified(part, r).to_numpy(float) for part in parts])
            each = held.mean(axis=1)
            line = {"method": method, "r": r, "mean": each.mean(), "deviation": each.std(ddof=1)}
            line |= {"least": each.min(), "most": each.max(), "first": each[0], "images": held.shape[1]}
            lines.append(line | dict(zip(("lower", "upper"), _share_interval(held))))
    return pd.DataFrame(lines)


def _share_interval(held: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a share over (trainings, images): never narrower than the exact one over images alone."""
    count, images = held.sum(axis=1).mean(), held.shape[1]
    exact = [
        bounds.clopper_pearson_interval(whole(count), images, 0.05)[end] for end, whole in enumerate((math.floor, math.ceil))
    ]
    both = joint_interval(held)
    return max(0.0, min(exact[0], both[0])), min(1.0, max(exact[1], both[1]))


def spread_table(spread: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Texts of :func:`over_trainings`, a line a method."""
    told = {
        (line.method, f"r = {line.r:.3g}"): (
            f"{fixed(100 * line.mean)} ± {with_interval(line.deviation, line.lower, line.upper)}"
        )
        for line in spread.itertuples()
    }
    table = pd.Series(told).unstack(fill_value=BEYOND)
    return table.reindex(index=spread["method"].unique(), columns=[f"r = {r:.3g}" for r in radii], fill_value=BEYOND)


def read_trainings(spread: pd.DataFrame, first: str) -> str:
    """The rows on which trainings differ most, three (at a tie more), in sentences (Markdown); ``first``: the name of the
    first training."""
    widest = spread.loc[spread.groupby("method", sort=False)["deviation"].idxmax()]
    alike = ["r", "least", "most", "first", "deviation"]
    widest = widest.groupby(alike, sort=False)["method"].agg(list).reset_index()  # rows that are one computation stand together
    lines = [
        f"- {numbers.listed([f'**{row}**' for row in line.method])} at r = {line.r:g}: {percent(line.least)} to "
        f"{percent(line.most)} from training to training (standard deviation {fixed(100 * line.deviation)} points); "
        f"{percent(line.first)} by {first}."
        for line in widest[widest["deviation"] > 0].nlargest(3, "deviation", keep="all").itertuples()
    ]
    images = plural(int(spread["images"].max()), "image")
    told = f"Rows on which trainings differ most, each at the first radius where it does, on the same {images}:\n"
    return "\n".join([told, *lines]) if lines else "All trainings agree in every cell."


def published_table(entries: dict, at: Sequence[float], rows: Sequence[str], radii: Sequence[float], caption: str) -> Table:
    """Published accuracies (percent, at the radii ``at``) of ``rows``, and seconds where the paper's table has them; what is
    not known to us is said to be so."""
    table, timed = {}, any("seconds" in entry for entry in entries.values())
    for row in rows:
        entry = entries.get(row, {})
        cells = dict(zip(at, entry.get("accuracy", [])))
        table[row] = {f"r = {r:.3g}": f"{cells[r]:g}" if r in cells else NOT_KNOWN for r in radii}
        if timed:
            table[row]["seconds"] = f"{entry['seconds']:.2f}" if "seconds" in entry else NOT_KNOWN
    return styled_known(pd.DataFrame.from_dict(table, orient="index"), caption)


def styled(shown: pd.DataFrame, caption: str, css: pd.DataFrame | None = None, left: bool = False) -> Table:
    """A table with its caption; ``css`` has a style for each cell of some columns. Long texts are wrapped; ``left``: cells
    of words, aligned left. Numbers are shown by :func:`study.reports.numbers.text`."""
    return Table(caption, _styler(shown, caption, css, left))


def _styler(shown: pd.DataFrame, name: str, css: pd.DataFrame | None = None, left: bool = False) -> Styler:
    shown = shown.map(numbers.text)
    if css is not None:
        css = css.set_axis(_index(css.index), axis=0)
    shown = shown.set_axis(_index(shown.index), axis=0)
    wrapped = shown.map(lambda text: _WRAPPED if len(text) > 40 else "")
    css = wrapped if css is None else wrapped + css.reindex(columns=shown.columns, fill_value="")
    css, shown = css.rename(columns=_unbroken), shown.rename(columns=_unbroken)
    styler = shown.style.set_table_styles(_TABLE_STYLES + (_LEFT if left else []))
    styler = styler.set_uuid(hashlib.sha1(name.encode()).hexdigest()[:8])
    return styler.apply(lambda _: css, axis=None) if css.any(axis=None) else styler


def _index(index: pd.Index) -> pd.Index:
    """The same names, as cells are shown."""
    if isinstance(index, pd.MultiIndex):
        return pd.MultiIndex.from_frame(index.to_frame(allow_duplicates=True).map(numbers.text), names=index.names)
    return index.map(numbers.text)


def _unbroken(head: str) -> str:
    """A column's head in which 'r = 0.25' stays on one line."""
    return head.replace(" = ", "\u00a0=\u00a0").replace("largest r", "largest\u00a0r") if isinstance(head, str) else head


def styled_known(shown: pd.DataFrame, caption: str) -> Table:
    """:func:`styled`, with what is not known in grey."""
    return styled(shown, caption, shown.map(lambda text: _GREY if text == NOT_KNOWN else ""))


def audited_by(row: pd.Series) -> str:
    """How the serialized certificates of a row are made, and whether that is a guarantee."""
    draw = f"{'a' if row['audit_draw'] == 'random' else 'an'} {_AUDITS[row['audit_draw']]}"
    told = f"{ESTIMATOR_NAMES[row['estimator']]}, with {draw}"
    if row["census"]:
        told += f", and the {row['census']} most doubtful draws all solved"
    return told if row["guarantee"] else f"{told}, {NO_GUARANTEE}"


def with_interval(share: float, lower: float, upper: float, digits: int = 0) -> str:
    """A share and its interval in percent."""
    return numbers.measured(100 * share, 100 * lower, 100 * upper, digits)


def mean(values: np.ndarray) -> str:
    """A mean of what is never negative with its interval, for a cell; a dash where there is nothing."""
    return numbers.measured(values.mean(), *mean_interval(values, least=0.0)) if len(values) else BEYOND


def share(count: int, total: int, digits: int = 0) -> str:
    """``count`` of ``total`` in percent with its exact 95 % interval; a dash where ``total`` is 0."""
    return with_interval(count / total, *bounds.clopper_pearson_interval(count, total, 0.05), digits) if total else BEYOND


def accuracy_line(rows: pd.DataFrame, at: Mapping[str, float], limit: float = math.inf) -> dict[str, str]:
    """Certified accuracy of one row at each radius, ``at`` by its title, up to ``limit``, in percent with its interval, for a
    line of a table."""
    return {title: share(int(certified(rows, r).sum()), len(rows)) if r <= limit else BEYOND for title, r in at.items()}


def beside(rows: pd.DataFrame, published: dict, at: Sequence[float]) -> pd.DataFrame:
    """Our certified accuracies beside published ones at the radii ``at``, in percent: columns row, r, ours, lower, upper (our
    95 % interval; NaN beyond our reach), published, whether that "published is" below or above our interval, within or,
    rounded as it is, may be within; and the p-value of their difference (Fisher's exact test, the rounding in its favour). A
    published row that ours lack stands beside the same stopped, where they have that."""
    reach, found = reachable(rows), []
    for row in (row if row in reach.index else stopped(row) for row in published):
        if row not in reach.index:
            continue
        ours = 100 * certified_accuracy(rows[rows["method"] == row], at)
        ours[ours.index > reach[row]] = np.nan
        found.append(ours.rename(columns={"accuracy": "ours"}).reset_index().assign(row=row))
    ours = pd.concat(found)
    known = {(row, r): value for row, entry in published.items() for r, value in zip(at, entry["accuracy"])}
    value = pd.Series([known[plain(row), r] for row, r in zip(ours["row"], ours["r"])], index=ours.index)
    low, high = value - 0.5, value + 0.5  # published accuracies are whole percents
    cases = {"below": high < ours["lower"], "above": low > ours["upper"], "within": value.between(ours["lower"], ours["upper"])}
    where = np.select(list(cases.values()), list(cases), "may be within")
    nearest = ours["ours"].clip(low, high)
    differ = [_differ(*line) for line in zip(ours["ours"] / 100, ours.pop("images") / 100, nearest / 100)]
    return ours.assign(published=value, p_value=differ, **{"published is": where}).reset_index(drop=True)


def _differ(ours: float, images: float, theirs: float) -> float:
    """The p-value of the difference of two shares, on our ``images`` and on as many others as the paper has; NaN for NaN."""
    if np.isnan(ours):
        return np.nan
    counts = [[count := round(share * total), total - count] for share, total in ((ours, images), (theirs, PAPERS_IMAGES))]
    return float(stats.fisher_exact(counts).pvalue)


def read_beside(found: pd.DataFrame, on: str) -> str:
    """What :func:`beside` says in a sentence; ``on`` what ours rests."""
    ours = found.dropna(subset="ours")
    outside, beyond = ours[ours["published is"].isin(["below", "above"])], len(found) - len(ours)
    inside, rounded = ((ours["published is"] == where).sum() for where in ("within", "may be within"))
    sides = outside.groupby(["row", "published is"], sort=False)["r"]
    named = ", ".join(
        f"{plain(row)}{'' if row == plain(row) else f' (ours: {row})'} at r = {numbers.listed([f'{r:g}' for r in at])} "
        f"(published {side} ours)"
        for (row, side), at in sides
    )
    told = f"**{inside} of {len(ours)} published accuracies {lie(inside)} within our 95 % intervals** ({on})"
    told += f", {rounded} more may, before rounding" if rounded else ""
    told += f"; outside {lie(len(outside))} {named}" if named else ""
    told += f". Our intervals are {fixed((ours['upper'] - ours['lower']).mean())} points wide on average, and the published "
    told += (
        f"ones are of {PAPERS_IMAGES} images, too: {rejected(ours['p_value']).sum()} of the {len(ours)} differ by more than "
    )
    told += "chance (Fisher's exact test, Holm 1979)."
    if outside["row"].str.startswith("SRS").any():
        told += " Serialized rows: ours by the exact bound; the estimator of the published ones is not known to us."
    return told + (f" {beyond} more {lie(beyond)} beyond the radii that this N, K and alpha allow." if beyond else "")


def paired_difference(rows: pd.DataFrame, method: str, other: str, r: float = 0.0, alpha: float = 0.05) -> Difference:
    """Certified accuracy at ``r`` of ``method`` minus that of ``other``, on the same images, with its 1 - alpha interval.

    The interval: :func:`study.reports.statistics.paired_interval`. Raises ValueError where the rows are on different images.
    """
    both = _paired(rows, method, other, r)
    gained, lost = int((both[method] & ~both[other]).sum()), int((both[other] & ~both[method]).sum())
    return (gained - lost) / len(both), *paired_interval(gained, lost, len(both), alpha)


def simultaneous(
    difference: Callable[..., Difference], rows: pd.DataFrame, pairs: Sequence[tuple[str, str]], alpha: float = 0.05
) -> dict[tuple[str, str], Difference]:
    """``difference`` of each of ``pairs``, with simultaneous 1 - alpha intervals (Bonferroni)."""
    return {pair: difference(rows, *pair, alpha=alpha / len(pairs)) for pair in pairs}


def furthest(found: Mapping[tuple[str, str], Difference], among: Sequence[tuple[str, str]] = ()) -> tuple[tuple[str, str], int]:
    """The pair of rows (``among`` these, unless there are none) whose difference in ``found`` is largest, and how many other
    pairs differ as much."""
    first = max(among or found, key=lambda pair: abs(found[pair][0]))
    return first, sum(abs(value) == abs(found[first][0]) for value, *_ in found.values()) - 1


def differences_at(rows: pd.DataFrame, method: str, other: str, radii: Sequence[float]) -> dict[float, Difference]:
    """The :func:`paired_difference` at each of ``radii`` that both rows reach, with simultaneous 95 % intervals."""
    reached = [r for r in radii if r <= reachable(rows)[[method, other]].min()]
    return {r: paired_difference(rows, method, other, r, alpha=0.05 / len(reached)) for r in reached}


def read_differences(method: str, other: str, found: Mapping[float, Difference]) -> str:
    """:func:`differences_at` as a line of a list."""
    digits = max(finer(100 * value) for value, *_ in found.values())
    cells = ", ".join(f"{numbers.difference(*cell, 100, digits)} at r = {r:g}" for r, cell in found.items())
    return f"- **{method}** against **{other}**, points with 95 % intervals, simultaneous over radii (Bonferroni): {cells}."


def joint_difference(trainings: Sequence[pd.DataFrame], method: str, other: str, r: float = 0.0) -> Difference:
    """:func:`paired_difference` as a mean over ``trainings``, tables of the same images, with an interval that holds both.

    That is the hull of two: that over images, of the mean numbers of images gained and lost; and that over trainings
    and images (:func:`study.reports.statistics.joint_interval`), which is empty for rows that are alike everywhere.
    """
    if len(trainings) == 1:
        return paired_difference(trainings[0], method, other, r)
    counts = [_paired(rows, method, other, r) for rows in trainings]
    change = pd.DataFrame([both[method].astype(int) - both[other].astype(int) for both in counts])
    if change.isna().any(axis=None):
        raise ValueError(f"trainings are compared on the same images, these have {[len(both) for both in counts]}")
    images = change.shape[1]
    gained, lost = (float((change == sign).sum(axis=1).mean()) for sign in (1, -1))
    low = paired_interval(math.floor(gained), math.ceil(lost), images)[0]
    high = paired_interval(math.ceil(gained), math.floor(lost), images)[1]
    both = joint_interval(change.to_numpy())
    return (gained - lost) / images, max(-1.0, min(low, both[0])), min(1.0, max(high, both[1]))


def _paired(rows: pd.DataFrame, method: str, other: str, r: float) -> pd.DataFrame:
    """Which images (index) each of two methods (columns) certifies at ``r``. Raises ValueError for rows on different images."""
    return _by_image(rows.assign(held=certified(rows, r)), method, other, "held").astype(bool)


def _by_image(rows: pd.DataFrame, method: str, other: str, value: str) -> pd.DataFrame:
    """The column ``value`` by image (index) and method (columns). Raises ValueError for rows on different images."""
    images = {name: {*rows.loc[rows["method"] == name, "index"]} for name in (method, other)}
    if images[method] != images[other]:
        told = " and ".join(f"{name}'s are {sorted(found)}" for name, found in images.items())
        raise ValueError(f"rows are compared image by image: {told}")
    return rows[rows["method"].isin(images)].groupby(["index", "method"])[value].first().unstack()


def read_comparison(
    table: pd.DataFrame, rows: pd.DataFrame, reference: str, samplers: dict[str, Sampler], published: Mapping | None = None
) -> str:
    """What the :func:`summary` says, in sentences (Markdown) that hold for whatever came out; ``published``: the entries of its
    published twin, by row."""
    at_zero, images = table["r = 0"], rows["index"].nunique()
    ours = at_zero.loc[reference]
    lines = [
        f"**{reference}** certifies {portion(ours['accuracy'])} of {images} images at r = 0 "
        f"(95 % interval {_ends(ours['lower'], ours['upper'])}), with an ACR of "
        f"{table.loc[reference, ('ACR', 'ours')]:.3f}. An interval here holds by itself, unless it is called simultaneous."
    ]
    computed, first = {method: samplers[method].canonical() for method in rows["method"].unique()}, {}
    for method, sampler in computed.items():
        if first.setdefault(sampler, method) == method != reference:  # rows that are one computation are told once
            lines.append(_read_row(table, rows, method, reference))
    known = {row: entry.get("accuracy") for row, entry in (published or {}).items()}
    for a, b in combinations(computed, 2):
        if computed[a] == computed[b]:
            differ = None not in (known.get(a), known.get(b)) and known[a] != known[b]
            lines.append(
                f"**{a}** and **{b}** are one computation under two names: one step of any solver from one start is f of "
                f"that start.{' Why the published rows of this pair differ is not explained.' if differ else ''}"
            )
    if (theirs := released(reference)) in table.index:
        told = [f"{method} {saved(rows, method, theirs)}" for method in rows.loc[rows["estimator"] != "", "method"].unique()]
        if told:
            lines.append(
                f"Evaluations of f of **{theirs}**, the baseline of the released code, divided by those of each serialized "
                f"row, its audit by {reference} included: {'; '.join(told)}."
            )
    return "\n".join(f"- {line}" for line in lines)


def _ends(lower: float, upper: float) -> str:
    """The interval of a share in words, with decimals where it would else reach 0 or 100 percent."""
    low, high = 100 * lower, 100 * upper
    return numbers.interval(low, high, numbers.decimals(low, high, marks=(0, 100)), " %")


def against(difference: Difference, reference: str) -> str:
    """A :func:`paired_difference` in words."""
    value, low, high = (100 * number for number in difference)
    digits = finer(value) if np.isnan(low) else numbers.decimals(low, high, finer(value))
    told = numbers.counted(value, digits, " points")
    return f"{told} against {reference}, paired 95 % interval {numbers.signed_interval(low, high, digits)}"


def _read_row(table: pd.DataFrame, rows: pd.DataFrame, method: str, reference: str) -> str:
    fast = table["speed-up"].loc[method]
    in_time = "" if np.isnan(fast["seconds"]) else f" and {percent(1 / fast['seconds'])} of its time"
    name = marked(f"**{method}**", table.loc[method, ("", "guarantee")])
    return (
        f"{name} certifies {portion(table.loc[method, ('r = 0', 'accuracy')])} at r = 0 "
        f"({against(paired_difference(rows, method, reference), reference)}), with an ACR of "
        f"{table.loc[method, ('ACR', 'ours')]:.3f}, for {percent(1 / fast['evaluations'])} of {reference}'s "
        f"evaluations of f{in_time}."
    )

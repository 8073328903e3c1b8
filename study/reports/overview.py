"""The study in five figures, each with a sentence that is computed: what the page that leads to all others shows."""

import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srs.certificates import bounds
from study.common.plots import looks
from study.reports import claims, index, tables
from study.reports.items import as_table, stands_in
from study.reports.numbers import percent
from study.reports.reach import ALPHA, SIGMA, N, reach
from study.reports.results import Results
from study.reports.statistics import certified_accuracy, rejected

CIFAR10 = Path("reports/cifar10/10_table2.ipynb")  # Table 2 on CIFAR-10 itself, as published with the project


def saved(rows: pd.DataFrame, reference: str, row: str) -> str:
    """What serialization saves, in evaluations of f."""
    spent = rows.groupby("method")["evaluations"].mean()
    return (
        f"**{row} needs {spent[row]:,.0f} evaluations of f an image, {reference} {spent[reference]:,.0f}: "
        f"{spent[reference] / spent[row]:.1f} times fewer, warm-up and audit included.**"
    )


def curves(results: Results) -> tuple[dict[str, pd.DataFrame], str]:
    """Certified accuracies of the main run beside which Table 2 is published, in percent: by row a table r, ours, lower,
    upper, published. On CIFAR-10 where the run or a published report has it; and a text that says on what."""
    key = results.report.small.main
    published, at = results.published["table2"], results.published["cifar10_radii"]
    if not stands_in(results.dataset(key).name):
        ours, on = _own(results, key, published, at), "CIFAR-10, this run"
    elif CIFAR10.is_file():
        ours, on = _from_report(CIFAR10, published, at), f"CIFAR-10, the report {CIFAR10}"
    else:
        ours, on = _own(results, key, published, at), f"{results.plans.data(key)}, which stands in for CIFAR-10"
    return {row: part.assign(published=published[row]["accuracy"]) for row, part in ours.items()}, on


def _own(results: Results, key: str, published: Mapping, at: list[float]) -> dict[str, pd.DataFrame]:
    rows, found = results.rows(key), {}
    reach = tables.reachable(rows)
    for row in (row for row in published if row in reach.index):
        accuracy = 100 * certified_accuracy(rows[rows["method"] == row], at)
        accuracy[accuracy.index > reach[row]] = np.nan
        found[row] = accuracy.rename(columns={"accuracy": "ours"})[["ours", "lower", "upper"]].rename_axis("r").reset_index()
    return found


def _from_report(path: Path, published: Mapping, at: list[float]) -> dict[str, pd.DataFrame]:
    """The same, read from the cells of a published Table 2: 62 [47, 75], or a dash beyond reach."""
    page = next(data["text/html"] for data in index.outputs(path) if 'id="table_2"' in data.get("text/html", ""))
    head, *lines = as_table(page)
    found = {}
    for line in (line for line in lines if line[0] in published):
        cells = dict(zip(head, line))
        known = [[float(x) for x in re.findall(r"\d+", cells.get(f"r = {r:.3g}", ""))] or [np.nan] * 3 for r in at]
        found[line[0]] = pd.DataFrame(known, columns=["ours", "lower", "upper"]).assign(r=at)
    return found


def plot_beside(found: dict[str, pd.DataFrame]) -> Figure:
    """Ours (filled, with 95 % intervals) and published (hollow) certified accuracy at the paper's radii."""
    figure, axes = plt.subplots(figsize=(7.5, 4.3), layout="constrained")
    for number, (row, look) in enumerate(looks(found).items()):
        part = found[row].dropna(subset="ours")
        error = [part["ours"] - part["lower"], part["upper"] - part["ours"]]
        at = part["r"] + 0.012 * (2 * number - len(found) + 1)  # error bars side by side
        style = {"color": look.color, "marker": look.marker}
        axes.errorbar(at, part["ours"], error, linestyle=look.line, capsize=2, label=f"{row}, ours", **style)
        axes.plot(found[row]["r"], found[row]["published"], linestyle="", mfc="none", ms=10, label=f"{row}, published", **style)
    axes.set(xlabel="l2 radius r (pixel units)", ylabel="certified accuracy (%)", ylim=(0, 100))
    axes.legend(fontsize=9)
    return figure


def read_beside(found: dict[str, pd.DataFrame], on: str) -> str:
    both = pd.concat(found).dropna(subset="ours")
    within = ((both["published"] >= both["lower"]) & (both["published"] <= both["upper"])).sum()
    beyond = sum(int(part["ours"].isna().sum()) for part in found.values())
    return (
        f"**{within} of {len(both)} published accuracies lie within our 95 % intervals** ({on}); "
        f"{beyond} more lie beyond the radii that our N, K and alpha allow."
    )


def read_reach(k: int, claimed: list[float]) -> str:
    found = {name: reach(name, k) for name in bounds.ESTIMATORS}
    limit = bounds.largest_radius(N, ALPHA, SIGMA)
    beyond = [r for r in claimed if r > found["theorem_3_1"]]
    return (
        f"**With K = {k:,} audited draws Theorem 3.1 cannot certify past r = {bounds.shown(found['theorem_3_1'])}**, the exact "
        f"bound not past {bounds.shown(found['finite_population'])}, independent votes not past {bounds.shown(limit)}; the "
        f"paper shows serialized certificates at {len(beyond)} larger radii, up to {max(claimed):g}."
    )


def read_coverage(table: pd.DataFrame) -> str:
    """The worst case of what is a guarantee, and of what is none."""
    held, other = (table[table["guarantee"] == kind] for kind in (True, False))
    above = int(rejected(held["p_value"]).sum())
    worst = other.loc[other["rate"].idxmax()]
    return (
        f"**{above} of {len(held)} cases with a guarantee are significantly above alpha** (at 5 % for all together); without "
        f"one up to {percent(worst['rate'])} of certificates are false at alpha = {worst['alpha']:g}."
    )


def costs(results: Results, r: float) -> pd.DataFrame:
    """Certified accuracy at ``r`` (share, with its 95 % interval) and evaluations an image of the main run's rows, of the
    networks trained for one evaluation, and of the plain network; rows that cannot reach r are left out."""
    key = results.report.small.main
    past = results.report.past.get(key)
    sources = [(key, None), *((other, None) for other in (past.models() if past else []))]
    sources += [(results.report.resnet, None)] if results.report.resnet else []
    lines = {}
    for run, kind in sources:
        rows = results.rows(run, kind, "exact")
        limits = tables.reachable(rows)
        for row, part in rows.groupby("method", sort=False):
            if row not in lines and limits[row] >= r:
                found = certified_accuracy(part, [r]).iloc[0]
                lines[row] = {**found.to_dict(), "evaluations": part["evaluations"].mean()}
    return pd.DataFrame.from_dict(lines, orient="index")


def plot_costs(table: pd.DataFrame, r: float) -> Figure:
    """Certified accuracy at ``r`` against evaluations of f; ``table`` is that of :func:`costs`."""
    figure, axes = plt.subplots(figsize=(7.5, 4.3), layout="constrained")
    for row, look in looks(table.index).items():
        share = 100 * table.loc[row, ["accuracy", "lower", "upper"]]
        error = [[share["accuracy"] - share["lower"]], [share["upper"] - share["accuracy"]]]
        at = table.loc[row, "evaluations"], share["accuracy"]
        axes.errorbar(*at, error, label=row, color=look.color, marker=look.marker, ms=8, capsize=2, linestyle="")
    axes.set(xscale="log", xlabel="evaluations of f, or passes of a network, an image (logarithmic)", ylim=(0, 100))
    axes.set_ylabel(f"certified accuracy at r = {r:g} (%)")
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def read_costs(table: pd.DataFrame, reference: str, r: float) -> str:
    """The cheapest row whose interval reaches the reference's accuracy."""
    near = table[table["upper"] >= table.loc[reference, "accuracy"]]
    cheap = near["evaluations"].idxmin()
    fewer = table.loc[reference, "evaluations"] / table.loc[cheap, "evaluations"]
    return (
        f"**{cheap} certifies {percent(table.loc[cheap, 'accuracy'])} at r = {r:g} for {table.loc[cheap, 'evaluations']:,.0f} "
        f"evaluations an image, {reference} {percent(table.loc[reference, 'accuracy'])} for {fewer:.1f} times as many**: the "
        f"cheapest row whose 95 % interval reaches {reference}'s accuracy."
    )


def read_claims(lines: pd.DataFrame) -> str:
    """What :func:`study.reports.claims.table` decides of the paper's claims, and what not (Markdown)."""
    paper = lines[lines["whose"] == "the paper"]
    told = [f"{count} {verdict}" for verdict, count in claims.decided(lines).items() if count]
    found = [f"Of the paper's {len(paper)} claims in words: {', '.join(told)}."]
    for verdict in (claims.CONFIRMED, claims.CONTRADICTED):
        part = paper[paper["verdict"] == verdict]
        found += [f"- *{verdict}*{f' (on {line.data})' if line.data else ''}: {line.claim}" for line in part.itertuples()]
    return "\n".join([f"{found[0]}\n", *found[1:]])

"""Plots of the reports.

``rows`` is a table of certificates: one line an image and method, the columns of :func:`srs.certificates.certify.certificates`.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from srs.data.datasets import Images
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, Votes
from study.common.plots import side_by_side
from study.reports.statistics import certified_accuracy
from study.reports.tables import reachable


def plot_curves(rows: pd.DataFrame, reference: str, axes: Axes | None = None) -> Figure:
    """Certified accuracy against radius for every method, each up to its largest radius; 95 % band for ``reference``."""
    limits = reachable(rows)
    if axes is None:
        _, axes = plt.subplots(figsize=(7.5, 4.5))
    for number, (method, part) in enumerate(rows.groupby("method", sort=False)):
        grid = np.linspace(0, limits[method], 400)
        curve = certified_accuracy(part, grid) * 100
        serialized = part["estimator"].iloc[0] != ""
        color = sns.color_palette("colorblind")[number % 10]
        axes.plot(grid, curve["accuracy"], color=color, linestyle="--" if serialized else "-", label=method, linewidth=1.8)
        axes.plot(limits[method], curve["accuracy"].iloc[-1], marker="|", markersize=12, color=color)
        if method == reference:
            axes.fill_between(grid, curve["lower"], curve["upper"], color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="l2 radius r (pixel units)", ylabel="certified accuracy (%)", xlim=(0, None), ylim=(0, 100))
    axes.legend(fontsize=9)
    return axes.figure


def plot_curve_panels(panels: dict[str, pd.DataFrame], reference: str) -> Figure:
    """:func:`plot_curves` side by side, one panel for each title, on one scale."""
    figure, row = side_by_side(len(panels), 6.2, 4.3)
    for axes, (title, rows) in zip(row, panels.items()):
        plot_curves(rows, reference, axes)
        axes.set_title(title)
    largest = max(axes.get_xlim()[1] for axes in row)
    for axes in row:
        axes.set_xlim(0, largest)
    return figure


def plot_histograms(panels: dict[str, dict[str, np.ndarray]], xlabel: str, bins: int, most: float = np.inf) -> Figure:
    """Histograms of images, one panel for each title, the samples of a panel side by side over common bins. The last bin has
    all that is larger than ``most``, too; means are of the values as they are."""
    figure, row = side_by_side(len(panels), 6.2, 3.9)
    values = np.concatenate([v for samples in panels.values() for v in samples.values()])
    largest = max(values.max(initial=0.0), 1e-3)
    edges = np.linspace(min(0.0, values.min(initial=0.0)), min(largest, most), bins + 1)
    xlabel = f"{xlabel} (last bar: all from {edges[-2]:g} on)" if largest > most else xlabel
    for axes, (title, samples) in zip(row, panels.items()):
        labels = [
            f"{name} (mean {v.mean():.3f}, {len(v)} images)" if len(v) else f"{name} (no image)" for name, v in samples.items()
        ]
        axes.hist(
            [v.clip(max=most) for v in samples.values()],
            bins=edges,
            label=labels,
            color=sns.color_palette("colorblind")[: len(samples)],
        )
        if edges[0] < 0:
            axes.axvline(0, color="0.3", linewidth=1)
        axes.set(title=title, xlabel=xlabel, ylabel="images")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=9, loc="upper right")
    return figure


def plot_levels(table: pd.DataFrame, sizes: Sequence[str]) -> Figure:
    """ACR against the noise level, a panel a size; ``table`` has columns size, sigma, method, acr, lower, upper."""
    figure, row = side_by_side(len(sizes), 5, 3.9)
    for axes, size in zip(row, sizes):
        part = table[table["size"] == size]
        for number, (method, line) in enumerate(part.groupby("method", sort=False)):
            style = "--" if method.startswith("SRS") else "-"
            error = [line["acr"] - line["lower"], line["upper"] - line["acr"]]
            color = sns.color_palette("colorblind")[number % 10]
            offset = 1 + 0.012 * (number - 3)  # error bars side by side
            axes.errorbar(
                line["sigma"] * offset,
                line["acr"],
                error,
                label=method,
                linestyle=style,
                marker="o",
                ms=4,
                capsize=2,
                color=color,
            )
        axes.set(title=size, xlabel="noise level sigma (pixel units)", ylabel="ACR", ylim=(0, None))
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))  # no corner is always free
    return figure


def plot_votes(
    part: Images, index: int, votes: dict[str, np.ndarray], n0: int, sigma: float, seed: int, shown: int = 10
) -> Figure:
    """One image, its first counted noisy copies, and each method's vote on every one of them."""
    image = part.images(np.array([index]))[0]
    copies = NoisyCopies(image, index, sigma, seed)(np.arange(n0, n0 + shown))
    figure, axes = plt.subplots(1, shown + 1, figsize=(1.15 * (shown + 1), 1.6 + 0.2 * len(votes)))
    for panel, pixels in zip(axes, [image, *copies]):
        pixels = pixels.clamp(0, 1).permute(1, 2, 0).numpy()
        panel.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])
        panel.grid(False)
    names = "\n".join(votes)
    axes[0].set_title("clean", fontsize=9)
    axes[0].set_xlabel(f"label {part.labels[index]}\n{names}", fontsize=8)
    for j in range(shown):
        cast = [int(v[n0 + j]) for v in votes.values()]
        axes[j + 1].set_title(f"draw {j + 1}", fontsize=9)
        axes[j + 1].set_xlabel("\n".join([" ", *("?" if c == UNDECIDED else str(c) for c in cast)]), fontsize=8)
    figure.subplots_adjust(wspace=0.15)
    return figure


def plot_images(part: Images, indices: Sequence[int]) -> Figure:
    """Images side by side, with their labels."""
    figure, row = plt.subplots(1, len(indices), figsize=(1.6 * len(indices), 1.8), squeeze=False)
    for panel, index in zip(row, indices):
        panel.imshow(part.images(np.array([index]))[0].permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(f"image {index}, label {part.labels[index]}", fontsize=9)
        panel.set_axis_off()
    return figure


def plot_reach(
    audits: np.ndarray, curves: dict[str, Sequence[float]], standard: float, claimed: Sequence[float], at: Sequence[int]
) -> Figure:
    """Largest radius against K for each estimator; crosses at the radii ``claimed``, drawn at each K of ``at``."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for name, radii in curves.items():
        axes.plot(audits, radii, label=name, linewidth=1.8)
    axes.axhline(standard, color="0.3", linestyle=":", label="standard smoothing")
    for k in at:
        axes.plot([k] * len(claimed), claimed, "x", color="0.2", ms=6, label="published radii" if k == at[0] else None)
    axes.set(xscale="log", xlabel="K, audited draws", ylabel="largest radius (pixel units)", ylim=(0, None))
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plot_coverage(table: pd.DataFrame) -> Figure:
    """Share of false certificates by case and design, a panel for each alpha; ``table`` is :func:`study.coverage.tally`'s."""
    alphas, designs, cases = (list(table[name].unique()) for name in ("alpha", "design", "case"))
    figure, row = side_by_side(len(alphas), 6, 6.4, sharey=True)
    for axes, alpha in zip(row, alphas):
        for number, case in enumerate(cases):
            part = table[(table["case"] == case) & (table["alpha"] == alpha)].set_index("design").loc[designs]
            error = 100 * np.array([part["rate"] - part["lower"], part["upper"] - part["rate"]])
            place = np.arange(len(designs)) + 0.13 * (number - (len(cases) - 1) / 2)
            axes.errorbar(
                *(100 * part["rate"], place),
                xerr=error,
                fmt="o",
                ms=4,
                capsize=2,
                linewidth=1,
                label=case,
                color=sns.color_palette("colorblind")[number],
            )
        axes.axvline(100 * alpha, color="0.3", linestyle="--", linewidth=1)
        axes.set(xlim=(-0.02, 130), title=f"alpha = {alpha:g}", xlabel="false certificates (%)")
        axes.set_xscale("symlog", linthresh=0.5)
        axes.set_xticks([0, 0.5, 5, 50, 100], ["0", "0.5", "5", "50", "100"])
        axes.set_yticks(range(len(designs)), designs)
    row[0].invert_yaxis()
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(cases), fontsize=9)
    return figure


def plot_mismatch(table: pd.DataFrame) -> Figure:
    """Share of false certificates against the mismatch rate; ``table`` is :func:`study.coverage.simulate_mismatch`'s."""
    shares = list(table["votes_for_a"].unique())
    figure, row = side_by_side(len(shares), 4.4, 3.7, sharey=True)
    for axes, share in zip(row, shares):
        for (design, line), marker in zip(table[table["votes_for_a"] == share].groupby("design", sort=False), "osD"):
            error = 100 * np.array([line["rate"] - line["lower"], line["upper"] - line["rate"]])
            axes.errorbar(100 * line["mismatch"], 100 * line["rate"], error, label=design, marker=marker, ms=5, capsize=2)
        axes.set(title=f"{share:.0%} of votes for A", xlabel="mismatched votes (%)", ylim=(-3, 103))
    row[0].set_ylabel("false certificates (%)")
    row[0].legend(fontsize=9)
    return figure


def plot_frontier(table: pd.DataFrame, evaluations: float, acr: float, reference: str) -> Figure:
    """ACR against evaluations of f, a line a design (columns design, evaluations, acr), and the reference as a star."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for (design, line), marker in zip(table.groupby("design", sort=False), "osD^vP"):
        axes.plot(line["evaluations"], line["acr"], marker=marker, ms=5, label=design)
    axes.plot(evaluations, acr, "*", color="0.2", ms=13, label=reference)
    axes.set(
        xlabel="evaluations of f an image", ylabel="average certified radius (pixel units)", ylim=(0, None), xlim=(0, None)
    )
    axes.legend(fontsize=9, loc="lower right")
    return figure


def plot_costs(panels: dict[str, pd.DataFrame]) -> Figure:
    """Certified accuracy against both costs, a column for each title; tables with a line a method: accuracy, lower, upper
    (shares), evaluations and seconds an image."""
    size = {"figsize": (min(4.6 * len(panels), 13), 7.6), "layout": "constrained", "sharey": "col", "squeeze": False}
    figure, grid = plt.subplots(2, len(panels), **size)
    units = {"evaluations": "evaluations of f an image", "seconds": "seconds an image"}
    methods = dict.fromkeys(method for table in panels.values() for method in table.index)
    numbers = {method: number for number, method in enumerate(methods)}
    handles = {}
    for axes, (title, table), (cost, unit) in zip(
        grid.flat, [*panels.items()] * 2, np.repeat([*units.items()], len(panels), 0)
    ):
        for method, line in table.iterrows():
            number = numbers[method]
            error = 100 * np.array([[line["accuracy"] - line["lower"]], [line["upper"] - line["accuracy"]]])
            color, marker = sns.color_palette("colorblind")[number % 10], "osD^vP*X<>"[number % 10 - number // 10]
            at = line[cost], 100 * line["accuracy"]
            handles[method] = axes.errorbar(
                *at, error, label=method, color=color, marker=marker, ms=8, capsize=2, linewidth=0.8
            )
        axes.set(xscale="log", xlabel=unit, title=title)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    for axes in grid[:, 0]:
        axes.set_ylabel("certified accuracy (%)")
    figure.legend([handles[method] for method in methods], list(methods), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def plot_probabilities(panels: dict[str, pd.DataFrame]) -> Figure:
    """Share of images that are certified rightly with a lower bound on p_A of at least p, a panel for each title."""
    figure, row = side_by_side(len(panels), 6.2, 5.2, sharey=True)
    grid = np.linspace(0.5, 1, 501)
    for axes, (title, rows) in zip(row, panels.items()):
        for method, part in rows.groupby("method", sort=False):
            right = part["p_a_lower"].where(part["prediction"] == part["label"], -1.0).to_numpy()
            style = "-" if part["estimator"].iloc[0] == "" else "--" if part["guarantee"].iloc[0] else ":"
            axes.plot(grid, 100 * (right[:, None] >= grid).mean(axis=0), style, label=method, linewidth=1.8)
        axes.set(title=title, xlabel="p, lower bound on p_A", xlim=(0.5, 1), ylim=(0, 100))
    row[0].set_ylabel("images (%)")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def plot_settled(cast: dict[str, list[Votes]]) -> Figure:
    """Share of votes that are settled after so many evaluations of f, a line a row; the right end is all that ever were."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    last = max(votes.evaluations.max() for row in cast.values() for votes in row)
    for number, (row, votes) in enumerate(cast.items()):
        spent = np.concatenate([one.evaluations[one.classes != UNDECIDED] for one in votes])
        share = np.bincount(spent, minlength=last + 1).cumsum() / sum(len(one.classes) for one in votes)
        color, style = sns.color_palette("colorblind")[number % 10], ["-", "--", "-."][number % 3]
        axes.step(np.arange(last + 1), 100 * share, style, where="post", color=color, label=row, linewidth=1.8)
    axes.set(xlabel="evaluations of f", ylabel="votes settled (%)", xlim=(0, last), ylim=(0, 101))
    axes.legend(fontsize=9, loc="lower right")
    return figure

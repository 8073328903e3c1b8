"""Plots of the reports.

``rows`` is a table of certificates: one line an image and method, the columns of :func:`srs.certification.certificates`.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srs.data import Images
from srs.noise import NoisyCopies
from srs.results import certified_accuracy
from srs.tables import reachable
from srs.votes import UNDECIDED


def set_style() -> None:
    """Plot settings of all reports: readable in print."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight", "legend.frameon": False, "svg.hashsalt": "srs"})


def plot_curves(rows: pd.DataFrame, reference: str, axes: Axes | None = None) -> Figure:
    """Certified accuracy against radius for every method, each up to its largest radius; 95 % band for ``reference``."""
    limits = reachable(rows)
    if axes is None:
        _, axes = plt.subplots(figsize=(7.5, 4.5))
    for number, (method, part) in enumerate(rows.groupby("method", sort=False)):
        grid = np.linspace(0, limits[method], 400)
        curve = certified_accuracy(part, grid) * 100
        serialized = part["k"].iloc[0] > 0
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
    figure, row = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.3), layout="constrained", squeeze=False)
    for axes, (title, rows) in zip(row[0], panels.items()):
        plot_curves(rows, reference, axes)
        axes.set_title(title)
    largest = max(axes.get_xlim()[1] for axes in row[0])
    for axes in row[0]:
        axes.set_xlim(0, largest)
    return figure


def plot_histograms(panels: dict[str, dict[str, np.ndarray]], xlabel: str, bins: int) -> Figure:
    """Histograms of images, one panel for each title, the samples of a panel side by side over common bins."""
    figure, row = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 3.9), layout="constrained", squeeze=False)
    values = np.concatenate([v for samples in panels.values() for v in samples.values()])
    edges = np.linspace(min(0.0, values.min(initial=0.0)), max(values.max(initial=0.0), 1e-3), bins + 1)
    for axes, (title, samples) in zip(row[0], panels.items()):
        labels = [
            f"{name} (mean {v.mean():.3f}, {len(v)} images)" if len(v) else f"{name} (no image)" for name, v in samples.items()
        ]
        axes.hist(list(samples.values()), bins=edges, label=labels, color=sns.color_palette("colorblind")[: len(samples)])
        if edges[0] < 0:
            axes.axvline(0, color="0.3", linewidth=1)
        axes.set(title=title, xlabel=xlabel, ylabel="images")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=9, loc="upper right")
    return figure


def plot_levels(table: pd.DataFrame, sizes: Sequence[str]) -> Figure:
    """ACR against the noise level, a panel a size; ``table`` has columns size, sigma, method, acr, lower, upper."""
    figure, row = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.9), layout="constrained", squeeze=False)
    for axes, size in zip(row[0], sizes):
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
        axes.legend(fontsize=8)
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
    for panel, index in zip(row[0], indices):
        panel.imshow(part.images(np.array([index]))[0].permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(f"image {index}, label {part.labels[index]}", fontsize=9)
        panel.set_axis_off()
    return figure


def plot_history(history: pd.DataFrame) -> Figure:
    """Loss, noisy accuracy and solver residual of a training run, epoch by epoch."""
    figure, (loss, accuracy, residual) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    loss.plot(history["epoch"], history["loss"])
    loss.set(ylabel="training loss (cross-entropy)")
    accuracy.plot(history["epoch"], 100 * history["accuracy"], label="training")
    held = history.dropna(subset="validation_accuracy")
    accuracy.plot(held["epoch"], 100 * held["validation_accuracy"], marker="o", label="held out")
    accuracy.set(ylabel="noisy accuracy (%)", ylim=(0, 100))
    residual.semilogy(history["epoch"], history["residual"].clip(lower=1e-7), label="training solver")
    residual.semilogy(held["epoch"], held["validation_residual"].clip(lower=1e-7), marker="o", label="evaluation solver")
    residual.set(ylabel="mean relative residual")
    unrolled = history.loc[history["unrolled"], "epoch"]
    for axes in (loss, accuracy, residual):
        if len(unrolled):
            axes.axvspan(0, unrolled.max(), color="0.9", zorder=0, label="f unrolled")
        axes.set(xlabel="epoch", xlim=(0, history["epoch"].max()))
    accuracy.legend(fontsize=9)
    residual.legend(fontsize=9)
    return figure

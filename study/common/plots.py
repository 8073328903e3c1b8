"""What all notebooks plot with, and the histories of trainings."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


def set_style() -> None:
    """Plot settings of all reports: readable in print."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight", "legend.frameon": False, "svg.hashsalt": "srs"})


def side_by_side(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure of panels side by side, each ``width`` x ``height`` inches."""
    figure, grid = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", sharey=sharey, squeeze=False)
    return figure, grid[0]


def plot_histories(histories: dict[str, pd.DataFrame]) -> Figure:
    """Loss, noisy accuracy and solver residual of trainings, epoch by epoch; markers: held-out images, evaluation solver."""
    figure, (loss, accuracy, residual) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for color, (name, history) in zip(sns.color_palette("husl", len(histories)), histories.items()):
        held = history.dropna(subset="validation_accuracy")
        loss.plot(history["epoch"], history["loss"], color=color, label=name)
        accuracy.plot(history["epoch"], 100 * history["accuracy"], color=color)
        accuracy.plot(held["epoch"], 100 * held["validation_accuracy"], "o", color=color)
        residual.semilogy(history["epoch"], history["residual"].clip(lower=1e-7), color=color)
        residual.semilogy(held["epoch"], held["validation_residual"].clip(lower=1e-7), "o", color=color)
    loss.set(ylabel="training loss (cross-entropy)")
    accuracy.set(ylabel="noisy accuracy (%)", ylim=(0, 100))
    residual.set(ylabel="mean relative residual")
    unrolled = max((history.loc[history["unrolled"], "epoch"].max() for history in histories.values()), default=np.nan)
    for axes in (loss, accuracy, residual):
        if unrolled > 0:
            axes.axvspan(0, unrolled, color="0.93", zorder=0)
        axes.set(xlabel="epoch", xlim=(0, max(history["epoch"].max() for history in histories.values())))
    figure.legend(*loss.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure

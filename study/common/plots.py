"""What all notebooks plot with: how each method looks, and the histories of trainings."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


class Look(NamedTuple):
    """How a method is drawn in every figure."""

    color: str
    marker: str
    line: str | tuple


#: Kinds of methods, by how their rows' names begin: name; hue (after Okabe and Ito, for colour-blind readers, too), darker with
#: more steps; marker for naive iteration, Anderson's method and Broyden's; line.
_KINDS = {
    "SRS-": ("serialized", {1: "#E69F00", 2: "#E07F00", 3: "#C94F00", 5: "#7A2E00"}, {"N": "v", "A": "^", "B": ">"}, "--"),
    "AS-": ("amortized", {1: "#009E73", 2: "#004D38"}, {"N": "p", "A": "h", "B": "8"}, "-."),
    "": (
        "standard",
        {1: "#7CC4EE", 2: "#3B9BD6", 3: "#1B7FC0", 5: "#0060A0", 14: "#222222", 30: "#222222"},
        {"N": "s", "A": "o", "B": "D"},
        "-",
    ),
}
NO_DEQ, _VARIANTS_OF_ONE = "no DEQ", "variants"
#: Rows whose name does not say it, and what a second word of a name changes.
_SPELLED = {
    "Unrolled-1N": Look("#CC79A7", "<", (0, (1, 1))),
    "ResNet": Look("#8B4A73", "H", (0, (3, 1, 1, 1))),
    "ResNet-110": Look("#8B4A73", "H", (0, (3, 1, 1, 1))),
    "ResNet-20": Look("#AA4499", "X", (0, (2, 2))),
}
_VARIANTS = {
    "stopped": Look("#666666", "d", (0, (5, 1))),
    "as released": Look("#999999", "x", (0, (1, 1.5))),
    "mean": Look("#7FCDB5", "P", (0, (2, 1))),
    "tuned": Look("#33B08C", "*", (0, (4, 1, 1, 1, 1, 1))),
    "clean start": Look("", "d", ":"),  # its colour is its method's
}
#: Words in tables: verdicts, and what is none or not known.
CONFIRMED_COLOR, CONTRADICTED_COLOR, GREY = "#0a8a4d", "#c33", "#888"
#: The three estimators of serialized certificates.
ESTIMATORS = {
    "finite_population": Look("#C94F00", "^", "--"),
    "theorem_3_1": Look("#0072B2", "s", ":"),
    "released_code": Look("#8B4A73", "D", "-."),
}
_NAME = re.compile(r"(?P<kind>SRS-|AS-|)MDEQ-(?P<steps>\d+)(?P<solver>[NAB])(?: (?P<variant>[^(]+?)(?= \(|$))?")
_MARKERS = "osD^vP*X"


def kind_of(row: str) -> str | None:
    """Standard, serialized, amortized or no DEQ; None for a row whose name does not say it."""
    parts = _NAME.match(row)
    return _KINDS[parts["kind"]][0] if parts else NO_DEQ if row in _SPELLED else None


def look(row: str) -> Look | None:
    """How a row is drawn, by its name alone; None where that does not say it."""
    if row in _SPELLED:
        return _SPELLED[row]
    parts = _NAME.match(row)
    if parts is None:
        return None
    _, colors, markers, line = _KINDS[parts["kind"]]
    steps = max((s for s in colors if s <= int(parts["steps"])), default=1)
    own = Look(colors[steps], markers[parts["solver"]], line)
    variant = _VARIANTS.get(parts["variant"], own)
    return variant._replace(color=variant.color or own.color)


def looks(rows: Iterable[str]) -> dict[str, Look]:
    """How each of ``rows`` is drawn. Those that :func:`look` does not know, the variants of one method (numbers of samples,
    say), get a scale from dark to light in their order."""
    rows = list(dict.fromkeys(rows))
    unknown = [row for row in rows if look(row) is None]
    scale = sns.color_palette("cividis", max(len(unknown), 2)).as_hex()
    spare = {row: Look(scale[i], _MARKERS[i % len(_MARKERS)], "-") for i, row in enumerate(unknown)}
    return {row: look(row) or spare[row] for row in rows}


def by_kind(rows: Iterable[str]) -> dict[str, list[str]]:
    """``rows`` by kind, in the order of the kinds, for small multiples."""
    rows, order = list(rows), ("standard", "serialized", "amortized", NO_DEQ, _VARIANTS_OF_ONE)
    found = {name: [row for row in rows if (kind_of(row) or _VARIANTS_OF_ONE) == name] for name in order}
    return {name: members for name, members in found.items() if members}


def set_style() -> None:
    """Plot settings of all reports: readable in print."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight", "legend.frameon": False, "svg.hashsalt": "srs"})


def side_by_side(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure of panels side by side, each ``width`` x ``height`` inches."""
    figure, grid = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", sharey=sharey, squeeze=False)
    return figure, grid[0]


def plot_histories(histories: dict[str, pd.DataFrame]) -> Figure:
    """Loss, noisy accuracy and solver residual of trainings, epoch by epoch, dotted while f is unrolled; markers: held-out
    images, evaluation solver."""
    figure, (loss, accuracy, residual) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for color, (name, history) in zip(sns.color_palette("husl", len(histories)), histories.items()):
        held = history.dropna(subset="validation_accuracy")
        first = int(history["unrolled"].sum())  # epochs, before all others
        for part, line, told in ((history[:first], ":", None), (history[max(first - 1, 0) :], "-", name)):
            loss.plot(part["epoch"], part["loss"], line, color=color, label=told)
            accuracy.plot(part["epoch"], 100 * part["accuracy"], line, color=color)
            residual.semilogy(part["epoch"], part["residual"].clip(lower=1e-7), line, color=color)
        accuracy.plot(held["epoch"], 100 * held["validation_accuracy"], "o", color=color)
        residual.semilogy(held["epoch"], held["validation_residual"].clip(lower=1e-7), "o", color=color)
    loss.set(ylabel="training loss (cross-entropy)")
    accuracy.set(ylabel="noisy accuracy (%)", ylim=(0, 100))
    residual.set(ylabel="mean relative residual (logarithmic)")
    for axes in (loss, accuracy, residual):
        axes.set(xlabel="epoch", xlim=(0, 1.03 * max(history["epoch"].max() for history in histories.values())))
    figure.legend(*loss.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure

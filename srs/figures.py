"""Tables, plots and sentences of the reports. Everything said about a result is computed from it.

``rows`` is a table of certificates (one line an image and method: the fields of :class:`srs.certification.Certificate`,
with index, label and method); ``seconds`` has index, method and seconds.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from srs.bounds import largest_radius
from srs.data import Part
from srs.noise import NoisyCopies
from srs.results import average_certified_radius, certified_accuracy
from srs.votes import UNDECIDED, Sampler

BEYOND = "–"
NOT_KNOWN = "not known"
_TABLE_STYLES = [
    {"selector": "", "props": "border-collapse: collapse; font-size: 10pt; margin: 0.5em 0"},
    {
        "selector": "caption",
        "props": "caption-side: bottom; text-align: left; font-size: 9pt; padding-top: 0.6em",
    },
    {"selector": "th, td", "props": "padding: 0.25em 0.7em; text-align: right; white-space: nowrap"},
    {"selector": "thead th", "props": "border-bottom: 1.5px solid #444; vertical-align: bottom"},
    {"selector": "tbody th", "props": "text-align: left"},
]


def set_style() -> None:
    """Plot settings of all reports: readable in print."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight", "legend.frameon": False, "svg.hashsalt": "srs"})


def reachable(rows: pd.DataFrame) -> pd.Series:
    """The largest radius that each method's n, alpha, sigma and audit allow, by method, in table order."""
    first = rows.drop_duplicates("method").set_index("method")
    return pd.Series({m: largest_radius(int(r["n"]), r["alpha"], r["sigma"], int(r["k"]) or None) for m, r in first.iterrows()})


def summary(rows: pd.DataFrame, seconds: pd.DataFrame, radii: Sequence[float], reference: str) -> pd.DataFrame:
    """One line a method: (r, accuracy | lower | upper) for each radius (NaN beyond reach), largest radius, ACR by both
    definitions, evaluations and seconds an image, and the speed-up in both against ``reference``."""
    limits = reachable(rows)
    mean_seconds = seconds.groupby("method")["seconds"].mean()
    table = {}
    for method, part in rows.groupby("method", sort=False):
        accuracy = certified_accuracy(part, radii).drop(columns="images")
        accuracy[accuracy.index > limits[method]] = np.nan
        line = {(f"r = {r:g}", name): value for r, cells in accuracy.iterrows() for name, value in cells.items()}
        line["", "largest r"] = limits[method]
        line["ACR", "ours"] = average_certified_radius(part)
        line["ACR", "as released"] = average_certified_radius(part, released=True)
        line["per image", "evaluations"] = part["evaluations"].mean()
        line["per image", "seconds"] = mean_seconds[method]
        table[method] = line
    table = pd.DataFrame.from_dict(table, orient="index")
    for unit in ("evaluations", "seconds"):
        table["speed-up", unit] = table.loc[reference, ("per image", unit)] / table["per image", unit]
    return table


def certified_table(table: pd.DataFrame, caption: str) -> Styler:
    """The accuracies of a :func:`summary` in percent with their 95 % intervals, the largest radius and both ACRs."""
    shown, best = pd.DataFrame(index=table.index), pd.DataFrame(index=table.index)
    for column in [c for c in dict.fromkeys(table.columns.get_level_values(0)) if c.startswith("r = ")]:
        cells = table[column] * 100
        shown[column] = [
            BEYOND if np.isnan(c.accuracy) else f"{c.accuracy:.0f} [{c.lower:.0f}, {c.upper:.0f}]" for c in cells.itertuples()
        ]
        best[column] = _bold(cells["accuracy"])
    shown["largest r"] = table["", "largest r"].map("{:.2f}".format)
    shown["ACR"] = table["ACR", "ours"].map("{:.3f}".format)
    shown["ACR as released"] = table["ACR", "as released"].map("{:.3f}".format)
    best["ACR"] = _bold(table["ACR", "ours"])
    return _styled(shown, caption, best)


def cost_table(table: pd.DataFrame, caption: str) -> Styler:
    """The cost columns of a :func:`summary`: evaluations of f and seconds an image, and both speed-ups."""
    shown = pd.DataFrame(
        {
            "evaluations of f": table["per image", "evaluations"].map("{:,.0f}".format),
            "speed-up in evaluations": table["speed-up", "evaluations"].map("{:.1f}×".format),
            "seconds": table["per image", "seconds"].map("{:.2f}".format),
            "speed-up in seconds": table["speed-up", "seconds"].map("{:.1f}×".format),
        }
    )
    return _styled(shown, caption)


def published(path: str | Path, item: str, rows: Sequence[str], radii: Sequence[float], caption: str) -> Styler:
    """The published twin of a table, for the same rows; what is not known to us is said to be so."""
    known = yaml.safe_load(Path(path).read_text())
    values = known.get(item, {})
    at = known["cifar10_radii"]
    table = {}
    for row in rows:
        entry = values.get(row, {})
        cells = dict(zip(at, entry.get("accuracy", [])))
        table[row] = {f"r = {r:g}": f"{cells[r]:g}" if r in cells else NOT_KNOWN for r in radii}
        table[row]["seconds"] = f"{entry['seconds']:.2f}" if "seconds" in entry else NOT_KNOWN
    frame = pd.DataFrame.from_dict(table, orient="index")
    return _styled(frame, caption, frame.map(lambda text: "color: #999; font-style: italic" if text == NOT_KNOWN else ""))


def plot_curves(rows: pd.DataFrame, reference: str) -> Figure:
    """Certified accuracy against radius for every method, each up to its largest radius; 95 % band for ``reference``."""
    limits = reachable(rows)
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
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
    axes.legend(title="base classifier", fontsize=9)
    return figure


def plot_votes(
    part: Part, index: int, votes: dict[str, np.ndarray], n0: int, sigma: float, seed: int, shown: int = 10
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


def basis(rows: pd.DataFrame, data: str, model: str, machine: dict) -> str:
    """The sentence that every caption ends with: what its numbers rest on."""
    first = rows.iloc[0]
    audit = int(rows["k"].max())
    return (
        f"{model} on {data}, sigma = {first['sigma']:g}; {rows['index'].nunique()} evenly spaced test images, "
        f"N = {first['n']:,}, n0 = {first['n0']}, alpha = {first['alpha']:g}"
        + (f", K = {audit} audited draws" if audit else "")
        + f". Measured on {machine['hardware']}, torch {machine['torch']}."
    )


def read_comparison(table: pd.DataFrame, rows: pd.DataFrame, reference: str, samplers: dict[str, Sampler]) -> str:
    """What the :func:`summary` says, in sentences (Markdown) that hold for whatever came out."""
    at_zero, images = table["r = 0"], rows["index"].nunique()
    ours = at_zero.loc[reference]
    lines = [
        f"**{reference}** certifies {ours['accuracy']:.0%} of {images} images at r = 0 "
        f"(95 % interval {ours['lower']:.0%} to {ours['upper']:.0%}), with an ACR of "
        f"{table.loc[reference, ('ACR', 'ours')]:.3f}."
    ]
    for method, part in rows.groupby("method", sort=False):
        if method == reference:
            continue
        gained, lost = _paired(rows, method, reference)
        fast = table["speed-up"].loc[method]
        line = (
            f"**{method}** certifies {at_zero.loc[method, 'accuracy']:.0%} at r = 0 (against {reference}: {gained} images "
            f"gained, {lost} lost), with an ACR of {table.loc[method, ('ACR', 'ours')]:.3f}, for "
            f"{1 / fast['evaluations']:.0%} of {reference}'s evaluations of f and {1 / fast['seconds']:.0%} of its time."
        )
        if part["k"].iloc[0]:
            wrong = 1 - part["n1"].sum() / max(1, part["n2"].sum())
            total = int((part["n0"] + part["n"]).iloc[0])
            audit = part["k"].iloc[0] / total * table.loc[reference, ("per image", "evaluations")]
            line += (
                f" The audit is {audit / table.loc[method, ('per image', 'evaluations')]:.0%} of its evaluations, and "
                f"{samplers[method].warm_share(total):.0%} of its votes are warm-up votes: both shares shrink as N grows. "
                f"{reference} did not confirm {wrong:.1%} of its audited votes for the selected class. Its certificates "
                f"cannot pass r = {table.loc[method, ('', 'largest r')]:.2f}, whatever the votes; those from independent votes "
                f"end at r = {table.loc[reference, ('', 'largest r')]:.2f}."
            )
        lines.append(line)
    lines += [
        f"**{a}** and **{b}** gave the same certificates on every image. One step of any solver from one start is f of that "
        "start; in the released code the solver's flag changes warm-up and audit too, which is where published rows differ."
        for a, b in combinations(rows["method"].unique(), 2)
        if samplers[a].solver.steps == samplers[b].solver.steps == 1 and _same_certificates(rows, a, b)
    ]
    return "\n".join(f"- {line}" for line in lines)


def _same_certificates(rows: pd.DataFrame, a: str, b: str) -> bool:
    columns = ["index", "prediction", "radius"]
    return np.array_equal(rows.loc[rows["method"] == a, columns], rows.loc[rows["method"] == b, columns])


def _paired(rows: pd.DataFrame, method: str, reference: str) -> tuple[int, int]:
    """Images certified at r = 0 by ``method`` but not by ``reference``, and the other way round."""
    correct = (rows["prediction"] == rows["label"]).groupby([rows["index"], rows["method"]]).first().unstack()
    return int((correct[method] & ~correct[reference]).sum()), int((correct[reference] & ~correct[method]).sum())


def _styled(shown: pd.DataFrame, caption: str, css: pd.DataFrame | None = None) -> Styler:
    styler = (
        shown.style.set_caption(caption)
        .set_table_styles(_TABLE_STYLES)
        .set_uuid(hashlib.sha1(caption.encode()).hexdigest()[:8])
    )
    if css is not None:
        styler = styler.apply(lambda _: css.reindex(columns=shown.columns, fill_value=""), axis=None)
    return styler


def _bold(values: pd.Series) -> list[str]:
    return ["font-weight: bold" if v == values.max() > 0 else "" for v in values]

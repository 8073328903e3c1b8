"""Plots of the reports. Every method looks the same in all of them: :func:`study.common.plots.looks`.

``rows`` is a table of certificates: one line an image and method, the columns of :func:`study.votes.table.certificate_table`.
"""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from srs.data.datasets import Images
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, Votes
from study.common.plots import ESTIMATORS, by_kind, looks, side_by_side
from study.reports.numbers import percent
from study.reports.statistics import certified_accuracy
from study.reports.tables import ESTIMATOR_NAMES, design_name, reachable

ONE_CURVE, ONE_MARK = "(one curve)", "(one mark)"  # in a legend, after the names of methods that are alike
_MOST = 6  # methods in one panel: where there are more, each kind has a panel of its own


def plot_curves(rows: pd.DataFrame, reference: str, axes: Axes | None = None) -> Figure:
    """Certified accuracy against radius for every method, each up to its largest radius; 95 % band for ``reference``. Methods
    with the same certificates are one curve, which the legend names by all of them."""
    limits, drawn = reachable(rows), looks(rows["method"])
    if axes is None:
        _, axes = plt.subplots(figsize=(7.5, 4.5))
    order = sorted(drawn, key=lambda method: method != reference)  # the reference first: its curve keeps its colour
    right = _right(rows, "radius")
    curves: dict[tuple, list[str]] = {}
    for method in order:
        curves.setdefault((limits[method], *np.sort(right[rows["method"] == method])), []).append(method)
    for number, ((limit, *radii), methods) in enumerate(curves.items()):
        part, one = rows[rows["method"] == methods[0]], drawn[methods[0]]
        grid = np.linspace(0, limit, 400)
        accuracy = _reaching(radii, grid)
        line = "--" if part["estimator"].iloc[0] and one.line == "-" else one.line
        label = "\n".join([*methods, ONE_CURVE]) if len(methods) > 1 else methods[0]
        style = {"color": one.color, "linestyle": line, "linewidth": 3.0 - 1.5 * number / len(curves)}  # thick under thin
        axes.plot(grid, accuracy, label=label, marker=one.marker, ms=5, markevery=(17 * number % 70, 70), **style)
        axes.plot(limit, accuracy[-1], marker="|", markersize=12, color=one.color)
        if reference in methods:
            band = 100 * certified_accuracy(part, grid)
            axes.fill_between(grid, band["lower"], band["upper"], color=one.color, alpha=0.15, linewidth=0)
    axes.set(xlabel="l2 radius r (pixel units)", ylabel="certified accuracy (%)", xlim=(0, None), ylim=(-2, 102))
    axes.legend(fontsize=9)
    return axes.figure


def _right(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column of certificates, -1 where the prediction is wrong or abstained."""
    return rows[column].where(rows["prediction"] == rows["label"], -1.0)


def _reaching(values: Sequence[float], grid: np.ndarray) -> np.ndarray:
    """The share of ``values``, in percent, that reach each of ``grid``."""
    return 100 * (np.asarray(values)[:, None] >= grid).mean(axis=0)


def plot_curve_panels(panels: dict[str, pd.DataFrame], reference: str) -> Figure:
    """:func:`plot_curves`, a panel for each title on one scale; where that has many methods a row of panels, one a kind, each
    with the reference."""
    methods = {title: list(rows["method"].unique()) for title, rows in panels.items()}
    if max(map(len, methods.values())) <= _MOST:
        lines = [[(title, title, names) for title, names in methods.items()]]
    else:
        lines = [[(t, _joined(t, kind), [reference, *part]) for kind, part in by_kind(m).items()] for t, m in methods.items()]
    columns = max(map(len, lines))
    size = (min(6.2, 15 / columns) * columns, 4.3 * len(lines))
    figure, grid = plt.subplots(len(lines), columns, figsize=size, layout="constrained", squeeze=False)
    for places, cells in zip(grid, lines):
        for axes, (title, heading, names) in zip(places, cells):
            plot_curves(panels[title][panels[title]["method"].isin(names)], reference, axes)
            axes.set_title(heading)
        for axes in places[len(cells) :]:
            axes.set_axis_off()
    shown = [axes for axes in grid.flat if axes.axison]
    largest = max(axes.get_xlim()[1] for axes in shown)
    for axes in shown:
        axes.set_xlim(0, largest)
    return figure


def plot_trainings(trainings: Sequence[pd.DataFrame]) -> Figure:
    """Certified accuracy against radius, a panel a method and a line for each of ``trainings``, the first one's thick."""
    methods, limits = trainings[0]["method"].unique(), reachable(trainings[0])
    figure, panels = plt.subplots(
        -(-len(methods) // 3), 3, figsize=(9.5, 2.1 * -(-len(methods) // 3)), sharex=True, sharey=True
    )
    for axes, method in zip(panels.flat, methods):
        grid = np.linspace(0, limits[method], 200)
        for number, rows in enumerate(trainings):
            curve = _reaching(_right(rows[rows["method"] == method], "radius"), grid)
            style = {"color": "0.15", "linewidth": 2, "zorder": 3} if number == 0 else {"color": "0.6", "linewidth": 0.9}
            axes.plot(grid, curve, **style)
        axes.set_title(method, fontsize=10)
    for axes in panels.flat[max(0, len(methods) - 3) : len(methods)]:  # below it stands no other
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(methods) :]:
        axes.set_axis_off()
    figure.supxlabel("l2 radius r (pixel units)", fontsize=10)
    figure.supylabel("certified accuracy (%)", fontsize=10)
    panels.flat[0].set(xlim=(0, None), ylim=(-2, 102))
    figure.tight_layout()
    return figure


def _joined(title: str, kind: str) -> str:
    return f"{title}: {kind}" if title else kind


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
        colors = [one.color for one in looks(samples).values()]
        axes.hist([v.clip(max=most) for v in samples.values()], bins=edges, label=labels, color=colors)
        if edges[0] < 0:
            axes.axvline(0, color="0.3", linewidth=1)
        axes.set(title=title, xlabel=xlabel, ylabel="images")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=9, loc="upper right")
    return figure


def plot_levels(table: pd.DataFrame, sizes: Sequence[str], references: Iterable[str] = ()) -> Figure:
    """ACR against the noise level, a row of panels a size and a panel a kind of method, each with the size's reference;
    ``table`` has columns size, sigma, method, acr, lower, upper."""
    kinds = {size: by_kind(table.loc[table["size"] == size, "method"].unique()) for size in sizes}
    columns = max(map(len, kinds.values()))
    size = {"figsize": (4.6 * columns, 3.6 * len(sizes)), "sharey": "row"}
    figure, grid = plt.subplots(len(sizes), columns, layout="constrained", squeeze=False, **size)
    for line, (name, groups) in zip(grid, kinds.items()):
        part = table[table["size"] == name]
        ours = [row for row in references if row in set(part["method"])]
        for axes, (kind, members) in zip(line, groups.items()):
            _plot_level(axes, part, list(dict.fromkeys([*ours, *members])))
            axes.set(title=f"{name}: {kind}", xlabel="noise level sigma (pixel units)", ylim=(0, None))
        line[0].set_ylabel("ACR (pixel units)")
        for axes in line[len(groups) :]:
            axes.set_axis_off()
    return figure


def _plot_level(axes: Axes, part: pd.DataFrame, methods: Sequence[str]) -> None:
    for number, (method, one) in enumerate(looks(methods).items()):
        line = part[part["method"] == method]
        error = [line["acr"] - line["lower"], line["upper"] - line["acr"]]
        offset = 1 + 0.015 * (number - (len(methods) - 1) / 2)  # error bars side by side
        style = {"color": one.color, "marker": one.marker, "linestyle": one.line, "ms": 5, "capsize": 2}
        axes.errorbar(line["sigma"] * offset, line["acr"], error, label=method, **style)
    axes.set_xticks(sorted(part["sigma"].unique()))
    axes.legend(fontsize=8)


def plot_votes(part: Images, index: int, votes: dict[str, np.ndarray], n0: int, sigma: float, seed: int, shown: int) -> Figure:
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
        axes[j + 1].set_title(f"draw {n0 + j}", fontsize=9)
        axes[j + 1].set_xlabel("\n".join([" ", *("?" if c == UNDECIDED else str(c) for c in cast)]), fontsize=8)
    figure.subplots_adjust(wspace=0.15)
    return figure


def plot_images(part: Images, indices: Sequence[int]) -> Figure:
    """Images side by side, with their labels."""
    figure, row = plt.subplots(1, len(indices), figsize=(1.6 * len(indices), 1.8), squeeze=False)
    for panel, index in zip(row.flat, indices):
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
        one = ESTIMATORS[name]
        axes.plot(audits, radii, color=one.color, linestyle=one.line, label=ESTIMATOR_NAMES[name], linewidth=1.8)
    axes.axhline(standard, color="0.3", linestyle=":", label="standard smoothing")
    for k in at:
        axes.plot([k] * len(claimed), claimed, "x", color="0.2", ms=6, label="published radii" if k == at[0] else None)
    axes.set(xscale="log", xlabel="K, audited draws (logarithmic)", ylabel="largest radius (pixel units)", ylim=(-0.05, None))
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plot_coverage(table: pd.DataFrame) -> Figure:
    """Share of false certificates by design (with a star: not a guarantee), a panel for each case, all alphas; ``table`` is
    :func:`study.coverage.tally`'s."""
    alphas, designs, cases = (list(table[name].unique()) for name in ("alpha", "design", "case"))
    sound = table.groupby("design")["guarantee"].all()
    names = [design_name(design) + ("" if sound[design] else " *") for design in designs]
    columns = min(4, len(cases))
    lines = -(-len(cases) // columns)
    size = (3.0 + 2.6 * columns, lines * (0.27 * len(designs) + 1.1))
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False)
    for axes, case in zip(grid.flat, cases):
        for number, (alpha, color) in enumerate(zip(alphas, sns.color_palette("colorblind", len(alphas)).as_hex())):
            part = table[(table["case"] == case) & (table["alpha"] == alpha)].set_index("design").loc[designs]
            error = 100 * np.array([part["rate"] - part["lower"], part["upper"] - part["rate"]])
            place = np.arange(len(designs)) + 0.24 * (number - (len(alphas) - 1) / 2)
            style = {"fmt": "os^D"[number % 4], "ms": 4, "capsize": 2, "linewidth": 1, "color": color}
            axes.errorbar(100 * part["rate"], place, xerr=error, label=f"alpha = {alpha:g}", **style)
            axes.axvline(100 * alpha, color=color, linestyle="--", linewidth=1)
        axes.set(xlim=(-0.02, 130), title=case)
        axes.set_xscale("symlog", linthresh=0.5)
        axes.set_xticks([0, 0.5, 5, 50], ["0", "0.5", "5", "50"])
        axes.set_yticks(range(len(designs)), names, fontsize=9)
    for axes in grid.flat[len(cases) :]:
        axes.set_axis_off()
    grid[0, 0].invert_yaxis()
    figure.supxlabel("false certificates (%): linear up to 0.5, logarithmic beyond", fontsize=11)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(alphas), fontsize=9)
    return figure


def plot_mismatch(table: pd.DataFrame) -> Figure:
    """Share of false certificates against the mismatch rate; ``table`` is :func:`study.coverage.simulate_mismatch`'s."""
    shares = list(table["votes_for_a"].unique())
    figure, row = side_by_side(len(shares), 4.4, 3.7, sharey=True)
    for axes, share in zip(row, shares):
        for design, line in table[table["votes_for_a"] == share].groupby("design", sort=False):
            one = ESTIMATORS[design]
            error = 100 * np.array([line["rate"] - line["lower"], line["upper"] - line["rate"]])
            style = {"color": one.color, "marker": one.marker, "linestyle": one.line, "ms": 5, "capsize": 2}
            axes.errorbar(100 * line["mismatch"], 100 * line["rate"], error, label=ESTIMATOR_NAMES[design], **style)
        axes.set(title=f"{percent(share)} of votes for A", xlabel="mismatched votes (%)", ylim=(-3, 103))
    row[0].set_ylabel("false certificates (%)")
    row[0].legend(fontsize=9)
    return figure


def plot_frontier(table: pd.DataFrame, evaluations: float, acr: float, reference: str) -> Figure:
    """ACR against evaluations of f, a line a design (columns design, evaluations, acr), and the reference as a star."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for design, one in looks(table["design"]).items():
        line = table[table["design"] == design]
        axes.plot(line["evaluations"], line["acr"], color=one.color, marker=one.marker, linestyle=one.line, ms=5, label=design)
    axes.plot(evaluations, acr, "*", color=looks([reference])[reference].color, ms=13, label=reference)
    labels = {"xlabel": "evaluations of f an image", "ylabel": "average certified radius (pixel units)"}
    axes.set(ylim=(0, None), xlim=(0, None), **labels)
    axes.legend(fontsize=9, loc="lower right")
    return figure


def plot_costs(panels: dict[str, pd.DataFrame], cost: str, reference: str) -> Figure:
    """Certified accuracy against a ``cost``, "evaluations" or "seconds": a column for each title, a row for each kind of
    method; the others of a column in grey, and a line at the accuracy of the ``reference``. Tables have a line a method:
    accuracy, lower, upper (shares), evaluations and seconds an image."""
    kinds = by_kind(dict.fromkeys(method for table in panels.values() for method in table.index))
    size = {"figsize": (3.2 * len(panels) + 1.8, 2.3 * len(kinds) + 0.4), "sharex": "col", "sharey": "col"}
    figure, grid = plt.subplots(len(kinds), len(panels), layout="constrained", squeeze=False, **size)
    for line, (kind, members) in zip(grid, kinds.items()):
        handles = {}
        for axes, table in zip(line, panels.values()):
            handles |= _marks(axes, table, members, cost, reference)
        line[0].set_ylabel(kind)
        line[-1].legend(list(handles.values()), list(handles), fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.05))
    for axes, title in zip(grid[0], panels):
        axes.set_title(title)
    figure.supxlabel(_COSTS[cost], fontsize=11)
    figure.supylabel("certified accuracy (%)", fontsize=11)
    return figure


def plot_costs_by_kind(table: pd.DataFrame, cost: str, reference: str) -> Figure:
    """A table of :func:`plot_costs`, with a panel for each kind of method, side by side."""
    kinds = by_kind(table.index)
    figure, row = side_by_side(len(kinds), 2.6, 4.2, sharey=True)
    for axes, (kind, members) in zip(row, kinds.items()):
        handles = _marks(axes, table, members, cost, reference)
        axes.set_title(kind, fontsize=11)
        axes.legend(list(handles.values()), list(handles), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    row[0].set_ylim(-3, 103)
    figure.supxlabel(_COSTS[cost], fontsize=11)
    figure.supylabel("certified accuracy (%)", fontsize=11)
    return figure


_COSTS = {"evaluations": "evaluations of f an image (logarithmic)", "seconds": "seconds an image (logarithmic)"}


def _marks(axes: Axes, table: pd.DataFrame, members: Iterable[str], cost: str, reference: str) -> dict[str, Container]:
    """Mark accuracy against cost for the ``members`` that ``table`` has, its others in grey, with a line at the reference's
    accuracy. Returns what a legend is to show; where marks lie on one another it names all of them."""
    axes.plot(table[cost], 100 * table["accuracy"], "o", color="0.85", ms=5, zorder=0)
    if reference in table.index:
        axes.axhline(100 * table.loc[reference, "accuracy"], color="0.6", linewidth=1, zorder=0)
    alike: list[list[str]] = []
    for method, line in table.loc[table.index.isin(members)].sort_values(["accuracy", cost]).iterrows():
        last = table.loc[alike[-1][0]] if alike else None
        if last is not None and last["accuracy"] == line["accuracy"] and line[cost] < 1.03 * last[cost]:
            alike[-1].append(method)
        else:
            alike.append([method])
    drawn, handles = looks(members), {}
    for methods in sorted(alike, key=lambda methods: table.index.get_loc(methods[0])):
        one, found = drawn[methods[0]], 100 * table.loc[methods[0], ["accuracy", "lower", "upper"]]
        error = [[found["accuracy"] - found["lower"]], [found["upper"] - found["accuracy"]]]
        style = {"color": one.color, "marker": one.marker, "ms": 7, "capsize": 2, "linewidth": 0.8, "linestyle": ""}
        name = "\n".join([*methods, ONE_MARK]) if len(methods) > 1 else methods[0]
        handles[name] = axes.errorbar(table.loc[methods[0], cost], found["accuracy"], error, label=name, **style)
    axes.set(xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    return handles


def plot_probabilities(panels: dict[str, pd.DataFrame]) -> Figure:
    """Share of images that are certified rightly with a lower bound on p_A of at least p, a panel for each title."""
    figure, row = side_by_side(len(panels), 6.2, 5.2, sharey=True)
    grid = np.linspace(0.5, 1, 501)
    for axes, (title, rows) in zip(row, panels.items()):
        drawn = looks(rows["method"])
        for method, part in rows.groupby("method", sort=False):
            one = drawn[method] if part["guarantee"].iloc[0] else ESTIMATORS[part["estimator"].iloc[0]]
            shares = _reaching(_right(part, "p_a_lower"), grid)
            axes.plot(grid, shares, color=one.color, linestyle=one.line, label=method, linewidth=1.8)
        axes.set(title=title, xlabel="p, lower bound on p_A", xlim=(0.5, 1), ylim=(-2, 102))
    row[0].set_ylabel("images (%)")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def plot_settled(cast: dict[str, list[Votes]]) -> Figure:
    """Share of votes that are settled after so many evaluations of f, a line a row; the right end is all that ever were."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    last = max(votes.evaluations.max() for row in cast.values() for votes in row)
    shown = looks(cast)
    for row, votes in cast.items():
        spent = np.concatenate([one.evaluations[one.classes != UNDECIDED] for one in votes])
        share = np.bincount(spent, minlength=last + 1).cumsum() / sum(len(one.classes) for one in votes)
        style = {"color": shown[row].color, "linestyle": shown[row].line}
        axes.step(np.arange(last + 1), 100 * share, where="post", label=row, linewidth=1.8, **style)
    axes.set(xlabel="evaluations of f", ylabel="votes settled (%)", xlim=(0, last), ylim=(0, 101))
    axes.legend(fontsize=9, loc="lower right")
    return figure

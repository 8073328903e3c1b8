"""The numbers of a figure, for the site's CSV files."""

import csv
import io
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

HEAD = ("panel", "series", "x", "y", "low", "high")  # low, high: the ends of an error bar


def as_csv(figure: Figure) -> str:
    """What is drawn, six digits of each number; of a run of equal heights the first and the last. Empty for pictures alone."""
    lines = [line for axes in figure.axes for line in _of(axes)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *lines] if lines else [])
    return text.getvalue()


def _of(axes: Axes) -> Iterator[tuple]:
    panel, bars = axes.get_title(), {}
    for container in axes.containers:
        name = container.get_label()
        if isinstance(container, ErrorbarContainer):
            segments = container.lines[2][0].get_segments() if container.lines[2] else []
            whole = [segment for segment in segments if len(segment) == 2]  # a bar whose ends are not known has none
            moving = int(bool(whole) and all(one[0] == other[0] for one, other in whole))  # 1: bars stand, 0: they lie
            ends = [tuple(segment[:, moving]) if len(segment) == 2 else ("", "") for segment in segments]
            bars[container.lines[0]] = name, ends
        elif isinstance(container, BarContainer):
            own = container.patches[0].get_label()  # of a histogram's
            for bar in container.patches:
                yield (
                    panel,
                    own if name.startswith("_") else name,
                    *map(_short, (bar.get_x() + bar.get_width() / 2, bar.get_height())),
                    "",
                    "",
                )
    for line in axes.lines:
        name, ends = bars.get(line, (line.get_label(), []))
        x, y = line.get_xdata(), line.get_ydata()
        if line.get_transform() != axes.transData:  # from edge to edge: its other coordinate is none of the data's
            x = [""] * len(x) if line.get_transform() == axes.get_yaxis_transform(which="grid") else x
            y = [""] * len(y) if line.get_transform() == axes.get_xaxis_transform(which="grid") else y
        if name.startswith("_") or len(x) != len(y):
            continue
        ends = ends if len(ends) == len(y) else [("", "")] * len(y)
        for i in range(len(y)):
            if not 0 < i < len(y) - 1 or not y[i - 1] == y[i] == y[i + 1] or ends[i] != ("", ""):
                yield panel, name.replace("\n", ", "), _short(x[i]), _short(y[i]), *map(_short, ends[i])


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float, np.number)) else str(value)

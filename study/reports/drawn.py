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
            collections = container.lines[2]
            ends = np.array([segment.T for segment in collections[0].get_segments()]) if collections else np.empty((0, 2, 2))
            moving = int(len(ends) > 0 and bool((ends[:, 0, 0] == ends[:, 0, 1]).all()))  # 1: bars stand, 0: they lie
            bars[container.lines[0]] = name, [tuple(end[moving]) for end in ends]
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
        if name.startswith("_") or len(x) != len(y):
            continue
        ends = ends if len(ends) == len(y) else [("", "")] * len(y)
        for i in range(len(y)):
            if not 0 < i < len(y) - 1 or not y[i - 1] == y[i] == y[i + 1] or ends[i] != ("", ""):
                yield panel, name, _short(x[i]), _short(y[i]), *map(_short, ends[i])


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float, np.number)) else str(value)

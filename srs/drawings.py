"""Drawings that explain the method; nothing in them is a result. Coordinates are inches from the lower left corner."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

_BLUE, _, _GREEN, _VERMILION = sns.color_palette("colorblind").as_hex()[:4]
_INK, _GREY, _PALE = "#262626", "#5f5f5f", "#c4c4c4"
_WIDTH = 7.4
_LEFT, _RIGHT = 0.1, _WIDTH - 0.1


def draw_serialization() -> Figure:
    """Standard randomized smoothing, every solve from z = 0, against serialized, each from the fixed point before."""
    figure, axes = _canvas(7.3)
    _smoothing(axes, 3.9, serialized=False)
    axes.plot([_LEFT, _RIGHT], [3.83, 3.83], color=_PALE, linewidth=0.8)
    _smoothing(axes, 0.35, serialized=True)
    _legend(axes, 0.13)
    return figure


def draw_audit() -> Figure:
    """Correlation-eliminated certification: from N serialized votes and an audit of K of them to a radius."""
    figure, axes = _canvas(6.6)
    _text(axes, _LEFT, 6.4, "Correlation-eliminated certification", 11.5, _VERMILION, ha="left", fontweight="bold")
    axes.plot([0.24, 0.24], [0.95, 5.65], color=_PALE, linewidth=1.2, zorder=0)
    _votes(axes, 5.65, 4.75)
    _mismatch(axes, 3.6)
    _counts(axes, 2.2)
    _certificate(axes, 0.95)
    note = (
        r"$\mathrm{CP}(k, n; a)$: one-sided Clopper–Pearson lower bound, level $a$, for $k$ of $n$; levels add up to $\alpha$"
    )
    _text(axes, _LEFT, 0.15, note, 9, _GREY, ha="left")
    return figure


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = plt.figure(figsize=(_WIDTH, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _text(axes: Axes, x: float, y: float, text: str, size: float = 9.5, color: str = _INK, **rest) -> None:
    style = {"ha": "center", "va": "center", "fontfamily": "DejaVu Sans"} | rest  # a font that ships with matplotlib
    axes.text(x, y, text, fontsize=size, color=color, **style)


def _arrow(axes: Axes, start: Sequence[float], end: Sequence[float], color: str, gaps: tuple[float, float] = (4, 4)) -> None:
    """An arrow that ends ``gaps`` points off its two ends."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.3, "zorder": 1}
    axes.add_patch(FancyArrowPatch(start, end, color=color, shrinkA=gaps[0], shrinkB=gaps[1], **style))


def _box(axes: Axes, x: float, y: float, width: float, height: float, color: str, text: str, size: float = 9.5) -> None:
    """A rounded box around the centre (x, y) with its text."""
    round_ = 0.06
    corner = x - width / 2 + round_, y - height / 2 + round_
    shape = FancyBboxPatch(corner, width - 2 * round_, height - 2 * round_, boxstyle=f"round,pad={round_}")
    shape.set(edgecolor=color, facecolor="white", linewidth=1.2)
    axes.add_patch(shape)
    _text(axes, x, y, text, size)


# Standard against serialized

_COPIES = {"1": 1.65, "2": 3.02, "3": 4.39, "N": 6.37}  # name: x
_DOTS = 5.47
_STEPS, _FEW = 9, 3
_RISE = 0.15  # from one step to the next
_TALL, _SHORT = _STEPS * _RISE, _FEW * _RISE


def _smoothing(axes: Axes, bottom: float, serialized: bool) -> None:
    """One half of the drawing: noisy copies above, then the steps of their solves, fixed points and votes."""
    if serialized:
        color, title, claim = _VERMILION, "Serialized randomized smoothing", "each solve starts at the fixed point before it"
        consequence = "few steps per copy; votes that depend on one another: they must be audited"
    else:
        color, title, claim = _BLUE, "Standard randomized smoothing", "every solve starts at zero, on its own"
        consequence = "many steps per copy; independent votes: a binomial bound holds as it stands"
    copies, fixed, votes = bottom + 2.75, bottom + 0.95, bottom + 0.5
    _text(axes, _LEFT, bottom + 3.25, title, 11.5, color, ha="left", fontweight="bold")
    _text(axes, _RIGHT, bottom + 3.25, claim, 9.5, _GREY, ha="right", style="italic")
    for y, row in ((copies, "noisy copies"), (fixed + _TALL / 2, "solver"), (fixed, "fixed points"), (votes, "votes")):
        _text(axes, _LEFT, y, row, 9.5, _GREY, ha="left")
    for y in (copies, fixed, votes):
        _text(axes, _DOTS, y, "· · ·", 12, _GREY)
    noise = np.random.default_rng(0)
    for name, x in _COPIES.items():
        _noisy_copy(axes, x, copies, noise)
        _text(axes, x + 0.33, copies, rf"$x + \varepsilon_{{{name}}}$", ha="left")
        _solve(axes, x, copies - 0.26, fixed, serialized, first=name == "1", color=color)
        _text(axes, x - 0.11, fixed, rf"$z^*_{{{name}}}$", 10.5, ha="right")
        _arrow(axes, (x, fixed), (x, votes + 0.13), color, (6, 1))
        _box(axes, x, votes, 0.62, 0.26, color, "vote")
    if serialized:
        _hand_over(axes, fixed, color)
    _text(axes, _COPIES["1"] - 0.31, bottom + 0.15, consequence, ha="left")


def _solve(axes: Axes, x: float, copy: float, fixed: float, serialized: bool, first: bool, color: str) -> None:
    """From the noisy copy to its fixed point, by many steps or by few."""
    if serialized and not first:
        _arrow(axes, (x, copy), (x, fixed + _SHORT), _PALE, (1, 5))
        _ladder(axes, x, fixed, _FEW, color)
        _text(axes, x + 0.14, fixed + _SHORT + 0.02, "few steps", 9, color, ha="left")
    else:
        _arrow(axes, (x, copy), (x, fixed + _TALL), _GREY, (1, 5))
        _ladder(axes, x, fixed, _STEPS, color)
        _text(axes, x + 0.14, fixed + _TALL, r"$z = 0$", ha="left")
        _text(axes, x + 0.14, fixed + _TALL / 2, "warm-up:\nmany steps" if serialized else "many steps", 9, color, ha="left")


def _hand_over(axes: Axes, fixed: float, color: str) -> None:
    """Arrows from each fixed point to the next start."""
    one, two, three, last = _COPIES.values()
    _arrow(axes, (one, fixed), (two, fixed + _SHORT), color, (7, 6))
    _arrow(axes, (two, fixed), (three, fixed + _SHORT), color, (7, 6))
    _arrow(axes, (three, fixed), (_DOTS - 0.2, fixed + 0.28), color, (7, 0))
    _arrow(axes, (_DOTS + 0.25, fixed + 0.17), (last, fixed + _SHORT), color, (0, 6))


def _ladder(axes: Axes, x: float, fixed: float, steps: int, color: str) -> None:
    """Solver steps from the start down to the fixed point; those that were saved stay hollow."""
    saved = fixed + _RISE * np.arange(steps + 1, _STEPS + 1)
    axes.plot(np.full(len(saved), x), saved, "o", markersize=4, markerfacecolor="white", markeredgecolor=_PALE)
    taken = fixed + _RISE * np.arange(steps + 1)
    axes.plot(np.full(len(taken), x), taken, "-o", markersize=4.5, linewidth=1.2, color=color)
    axes.plot(x, taken[-1], "o", markersize=7, markerfacecolor="white", markeredgecolor=color, markeredgewidth=1.5)
    axes.plot(x, fixed, "D", markersize=7.5, color=color)


def _noisy_copy(axes: Axes, x: float, y: float, noise: np.random.Generator) -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().images[0] / 16 + noise.normal(0, 0.15, (8, 8))
    edge = 0.26
    inset = axes.inset_axes((x - edge, y - edge, 2 * edge, 2 * edge), transform=axes.transData)
    inset.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    inset.set(xticks=[], yticks=[])
    inset.grid(False)


def _legend(axes: Axes, y: float) -> None:
    hollow = {"marker": "o", "markerfacecolor": "white"}
    entries = (
        (1.52, "start", hollow | {"markersize": 7, "markeredgecolor": _GREY, "markeredgewidth": 1.5}),
        (2.60, "solver step", {"marker": "o", "markersize": 4.5, "color": _GREY}),
        (4.07, "step saved", hollow | {"markersize": 4, "markeredgecolor": _PALE}),
        (5.50, "fixed point", {"marker": "D", "markersize": 7, "color": _GREY}),
    )
    for x, name, marker in entries:
        axes.plot(x, y, linestyle="", **marker)
        _text(axes, x + 0.14, y, name, 9, _GREY, ha="left")


# The audit

_START = 2.45  # texts of the steps stand left of it
_CAST = 26  # votes that are drawn
_FOR_OTHERS = {4, 11, 17, 22}
_AUDITED = (1, 4, 7, 10, 14, 18, 20, 24)
_NOT_CONFIRMED = {14}
_SIDE = 0.145
_MISMATCH = r"p_m^{\mathrm{up}}"
_LOWER = r"p_A^{\mathrm{low}}"


def _step(axes: Axes, y: float, number: int, text: str) -> None:
    axes.plot(0.24, y, "o", markersize=15, color=_INK)
    _text(axes, 0.24, y - 0.005, str(number), 9.5, "white", fontweight="bold")
    _text(axes, 0.45, y, text, ha="left", linespacing=1.25)


def _square(axes: Axes, x: float, y: float, color: str, filled: bool) -> None:
    shape = Rectangle((x - _SIDE / 2, y - _SIDE / 2), _SIDE, _SIDE, linewidth=1.2, zorder=2)
    shape.set(edgecolor=color if filled else _GREY, facecolor=color if filled else "white")
    axes.add_patch(shape)


def _key(axes: Axes, x: float, y: float, text: str, **marker) -> None:
    axes.plot(x + _SIDE / 2, y, linestyle="", **marker)
    _text(axes, x + 0.24, y, text, 9, _GREY, ha="left")


_CONFIRMED = {"marker": "$✓$", "markersize": 8, "markeredgewidth": 0.4, "color": _BLUE}
_REFUTED = {"marker": "X", "markersize": 7, "markeredgewidth": 0.4, "color": _VERMILION}


def _votes(axes: Axes, cast: float, audited: float) -> None:
    """All votes in a row; below it those of the standard DEQ on the audited draws, and whether they confirm."""
    _step(axes, cast, 1, "serialized smoothing\ncasts $N$ votes")
    _step(axes, audited, 2, "the standard DEQ votes\nagain on $K$ of the draws,\nchosen at random")
    square = {"marker": "s", "markersize": 9, "markeredgewidth": 1.2}
    _key(axes, _START, cast + 0.32, "for class A", **square, color=_VERMILION)
    _key(axes, _START + 1.3, cast + 0.32, "for another class", **square, markerfacecolor="white", markeredgecolor=_GREY)
    for number, x in enumerate(np.linspace(_START + _SIDE / 2, _RIGHT - _SIDE / 2, _CAST)):
        for_a = number not in _FOR_OTHERS
        _square(axes, x, cast, _VERMILION, for_a)
        if number in _AUDITED:
            confirmed = for_a and number not in _NOT_CONFIRMED
            _arrow(axes, (x, cast - _SIDE / 2), (x, audited + _SIDE / 2), _INK, (2, 2))
            _square(axes, x, audited, _BLUE, confirmed)
            if for_a:
                axes.plot(x, audited - 0.22, **(_CONFIRMED if confirmed else _REFUTED))
    _key(axes, _START, audited - 0.52, "confirmed: $N_1$ of the $N_2$ for class A", **_CONFIRMED)
    _key(axes, _START + 2.75, audited - 0.52, "not confirmed: $N_2 - N_1$", **_REFUTED)


def _mismatch(axes: Axes, y: float) -> None:
    _step(axes, y, 3, "an upper bound on the\nshare of such votes\namong all for class A")
    text = rf"${_MISMATCH} = 1 - \mathrm{{CP}}(N_1, N_2;\ \alpha / 2)$"
    _box(axes, _START + 1.475, y, 2.95, 0.46, _INK, text, 11.5)


def _counts(axes: Axes, y: float) -> None:
    """The N votes as one bar: what remains of those for A, what is taken off, those for other classes."""
    _step(axes, y, 4, "that share is taken off\nthe votes for class A")
    ends = [_START, _START + 2.95, _START + 3.75, _RIGHT]
    styles = (
        {"facecolor": _VERMILION, "edgecolor": _VERMILION},
        {"facecolor": "white", "edgecolor": _VERMILION, "hatch": "////"},
        {"facecolor": "white", "edgecolor": _GREY},
    )
    texts = (rf"$N_A^E = \lfloor (1 - {_MISMATCH})\, N_A \rfloor$ remain", "taken off", "other classes")
    for left, right, style, text in zip(ends, ends[1:], styles, texts):
        axes.add_patch(Rectangle((left, y - 0.12), right - left, 0.24, linewidth=1.2, **style))
        _text(axes, (left + right) / 2, y - 0.32, text)
    _span(axes, ends[0], ends[2], y + 0.31, "$N_A$ votes for class A")
    _span(axes, ends[0], ends[3], y + 0.61, "$N$ votes")


def _span(axes: Axes, left: float, right: float, y: float, text: str) -> None:
    """A dimension line with its text in the middle."""
    style = {"arrowstyle": "|-|, widthA=0.25, widthB=0.25", "color": _GREY, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (left, y), (right, y), arrowprops=style)
    _text(axes, (left + right) / 2, y, text, bbox={"facecolor": "white", "edgecolor": "none", "pad": 2})


def _certificate(axes: Axes, y: float) -> None:
    _step(axes, y, 5, "what remains\ngives the certificate")
    lower, radius = rf"${_LOWER} = \mathrm{{CP}}(N_A^E, N;\ \alpha / 2)$", rf"$R = \sigma\, \Phi^{{-1}}({_LOWER})$"
    _box(axes, _START + 1.2, y, 2.4, 0.46, _INK, lower, 11.5)
    _arrow(axes, (_START + 2.4, y), (_RIGHT - 1.85, y), _INK, (1, 1))
    _box(axes, _RIGHT - 0.925, y, 1.85, 0.46, _INK, radius, 11.5)
    _text(axes, _RIGHT - 0.925, y - 0.38, rf"if ${_LOWER} > 1/2$, else abstain", 9, _GREY)

"""Numbers in print: one way to write each kind, on every page."""

import math
from collections.abc import Iterable

import numpy as np

BEYOND = "–"  # beyond reach, or nothing there


def text(value: object) -> str:
    """A cell of a table. Numbers without idle zeros, a dash for NaN, words for what Python calls None, True and False."""
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return BEYOND if math.isnan(value) else f"{value:,.6g}" if value else "0"
    return str(value)


def fixed(value: float, digits: int = 0) -> str:
    """A number to so many decimals; what rounds to zero has no sign."""
    shown = f"{round(value, 9):,.{digits}f}"  # 100 * 0.575 is 57.5, not a little less
    return shown.lstrip("-") if float(shown.replace(",", "")) == 0 else shown


def outward(low: float, high: float, digits: int = 0) -> tuple[float, float]:
    """The ends of an interval, to so many decimals: never a shorter one than it is."""
    scale = 10**digits
    return math.floor(round(low * scale, 6)) / scale, math.ceil(round(high * scale, 6)) / scale


def decimals(low: float, high: float, digits: int = 0, marks: Iterable[float] = (0.0,)) -> int:
    """To how many decimals, ``digits`` at least, an interval is to be shown, so that its :func:`outward` ends do not reach one
    of ``marks`` that it does not hold; at most three more."""
    beside = [mark for mark in marks if not low <= mark <= high]
    for more in range(digits, digits + 3):
        least, most = outward(low, high, more)
        if not any(least <= mark <= most for mark in beside):
            return more
    return digits + 3


def interval(low: float, high: float, digits: int = 0, unit: str = "") -> str:
    """The :func:`outward` ends of an interval, each with its unit."""
    return " to ".join(f"{fixed(end, digits)}{unit}" for end in outward(low, high, digits))


def signed(value: float, digits: int = 0) -> str:
    """A difference: with its sign, unless it rounds to zero."""
    shown = fixed(value, digits)
    return shown if shown.startswith("-") or float(shown.replace(",", "")) == 0 else f"+{shown}"


def signed_interval(low: float, high: float, digits: int = 0) -> str:
    """The interval of a difference; said to be none where it is NaN."""
    return _signed_ends(low, high, digits if np.isnan(low) else decimals(low, high, digits))


def _signed_ends(low: float, high: float, digits: int) -> str:
    if np.isnan(low):
        return "no interval: the same difference on every image"
    low, high = outward(low, high, digits)
    return f"{signed(low, digits)} to {signed(high, digits)}"


def change(value: float, low: float, high: float, digits: int = 3, unit: str = "", marks: Iterable[float] = (0.0,)) -> str:
    """A difference and its interval, in a sentence; ``marks``: on which side of these it lies shows (:func:`decimals`)."""
    if not np.isnan(low):
        digits = decimals(low, high, digits, marks)
    return f"{counted(value, digits, unit)} ({_signed_ends(low, high, digits)})"


def counted(value: float, digits: int, unit: str) -> str:
    """A difference with its unit, which is one where it is 1 in print."""
    shown = signed(value, digits)
    return shown + (unit.removesuffix("s") if shown in ("+1", "-1") else unit)


def points(difference: float, low: float, high: float, marks: Iterable[float] = (0.0,)) -> str:
    """A difference of shares in percentage points, with its interval: a :func:`change`."""
    digits, marks = finer(100 * difference), [100 * mark for mark in marks]
    return change(100 * difference, 100 * low, 100 * high, digits, " points", marks)


def difference(value: float, low: float, high: float, scale: float = 1, digits: int = 0) -> str:
    """A difference and its interval, for a table's cell; without where it is NaN: of one image."""
    if np.isnan(low):
        return signed(scale * value, digits)
    low, high = scale * low, scale * high
    digits = decimals(low, high, digits)
    low, high = outward(low, high, digits)
    return f"{signed(scale * value, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def measured(value: float, low: float, high: float, digits: int = 3) -> str:
    """A value and its interval, for a table's cell; without where it is NaN."""
    if np.isnan(low):
        return fixed(value, digits)
    low, high = outward(low, high, digits)
    return f"{fixed(value, digits)} [{fixed(low, digits)}, {fixed(high, digits)}]"


def percent(share: float, digits: int = 0) -> str:
    """A share, as in 40 %."""
    return f"{fixed(100 * share, digits)} %"


def finer(value: float) -> int:
    """To how many decimals a share or a difference of shares stands in a sentence, in percent: none where it is whole, else
    one, so that differences are those of the shares beside them."""
    return int(abs(value - round(value)) > 1e-6)


def portion(share: float) -> str:
    """A share in a sentence, as in 40 % or 53.2 % (:func:`finer`)."""
    return percent(share, finer(100 * share))


def plural(count: int, noun: str) -> str:
    """A count and what is counted: 1 step, 3 steps."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def lie(count: int) -> str:
    """The verb of so many things: one lies, two lie."""
    return "lies" if count == 1 else "lie"


def often(count: int) -> str:
    """How many times something is done: once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def listed(names: list[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last

"""The tables of executed reports as they are printed, and those of two runs side by side."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from study.reports import index

PLACE = ["report", "table", "row", "column"]

_TABLE = '<div class="table"><p class="caption">'
_CELL = re.compile(r'<t[dh][^>]*class="(?P<kinds>[^"]*)"[^>]*>(?P<text>.*?)</t[dh]>', re.DOTALL)
_NUMBER = r"([-+]?[\d,.]+)\s?%?"
_INTERVAL = re.compile(rf"{_NUMBER} \[{_NUMBER}, {_NUMBER}\]")


def read(reports: Iterable[Path]) -> pd.DataFrame:
    """One line a cell: its report, its table (the item, or how the caption begins), row and column by their heads, and its
    ``text``. Heads that occur again are numbered."""
    found = [
        {"report": path.stem, **cell}
        for path in reports
        for data in index.outputs(path)
        if _TABLE in data.get("text/html", "")
        for cell in _cells(data["text/html"])
    ]
    table = pd.DataFrame(found, columns=[*PLACE, "text"])
    again = table.groupby(PLACE).cumcount()
    return table.assign(row=table["row"].where(again == 0, table["row"] + " #" + (again + 1).astype(str)))


def _cells(page: str) -> Iterable[dict]:
    """The cells of a :class:`study.reports.tables.Table`, styled by pandas, whose classes say where each stands."""
    caption = page.partition(_TABLE)[2].partition("</p>")[0]
    item, bold = re.search(r'id="(\w+)"', caption), re.search(r"<b>(.*?)</b>", caption)
    title = item[1] if item else _plain(bold[1] if bold else caption)[:80]
    columns, row, levels = {}, "", {}
    for match in _CELL.finditer(page):
        kinds, text = match["kinds"].split(), _plain(match["text"])
        if "col_heading" in kinds and (numbers := [kind for kind in kinds if re.fullmatch(r"col\d+", kind)]):
            columns[numbers[0]] = text
        elif "row_heading" in kinds:
            levels[kinds[1]] = text  # a head that spans rows stands in the first of them alone
            row = ", ".join(levels.values())
        elif "data" in kinds:
            column = next(kind for kind in kinds if re.fullmatch(r"col\d+", kind))
            yield {"table": title, "row": row, "column": columns.get(column, column), "text": text}


def _plain(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


def compare(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """The cells that both have: ``published``, ``yours``, whether they are the ``same``; of those with an interval,
    whether 0 is ``within`` that of their difference, from both intervals as of independent samples (MOVER), which is
    conservative for the same images; not of seconds."""
    both = published.rename(columns={"text": "published"}).merge(ours.rename(columns={"text": "yours"}), on=PLACE)
    texts = both[["published", "yours"]].fillna("")
    both[texts.columns] = texts
    both["same"] = texts["published"] == texts["yours"]
    both["within"] = [_within(*pair) for pair in texts.itertuples(index=False)]
    both.loc[(both["table"] + both["column"]).str.contains("second", case=False), "within"] = None  # of the machine
    return both.astype({"within": "boolean"})


def _within(published: str, ours: str) -> bool | None:
    sides = [_INTERVAL.match(text) for text in (published, ours)]
    if not all(sides):
        return None
    (a, a_low, a_high), (b, b_low, b_high) = ([float(number.replace(",", "")) for number in side.groups()] for side in sides)
    return bool(b - a - np.hypot(b - b_low, a_high - a) <= 0 <= b - a + np.hypot(b_high - b, a - a_low))

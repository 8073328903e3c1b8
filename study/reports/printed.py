"""The tables of executed reports as they are printed, and those of two runs side by side."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from study.reports import index
from study.reports.items import as_table

PLACE = ["report", "table", "row", "column"]

_TABLE = '<div class="table"><p class="caption">'
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
    """The cells of a :class:`study.reports.tables.Table`; heads above or before each other are joined by commas."""
    from bs4 import BeautifulSoup

    caption = page.partition(_TABLE)[2].partition("</p>")[0]
    item, bold = re.search(r'id="(\w+)"', caption), re.search(r"<b>(.*?)</b>", caption)
    title = item[1] if item else _plain(bold[1] if bold else caption)[:80]
    for table in BeautifulSoup(page, "html.parser").find_all("table"):
        lines, above, before = as_table(str(table)), len(table.thead.find_all("tr")), len(table.tbody.tr.find_all("th"))
        columns = [", ".join(dict.fromkeys(filter(None, heads))) for heads in zip(*lines[:above])]
        for line in lines[above:]:
            for column, text in zip(columns[before:], line[before:]):
                yield {"table": title, "row": ", ".join(line[:before]), "column": column, "text": text}


def _plain(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


def compare(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """The cells that both have: ``published``, ``yours``, whether they are the ``same``; of those with an interval,
    whether 0 is ``within`` that of their difference, from both intervals as of independent samples (MOVER); not of
    seconds."""
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

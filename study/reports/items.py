"""The items of the paper, and what they are called."""

from pathlib import Path

import yaml

from study.common import params_file

ITEMS = Path("data/items.yaml")


def stands_in(source: str) -> bool:
    """Whether a data source only takes the place of the paper's data."""
    return source in ("digits", "mnist")


def label(item: str) -> str:
    """The paper's name of an item: table_2 -> Table 2."""
    kind, _, number = item.partition("_")
    return f"{kind.capitalize()} {number}" if number else item.upper()


def read() -> tuple[list[str], dict]:
    """The names of all reports, in order, and the items of the paper. Raises ParameterError where there is no such file."""
    content = yaml.safe_load(params_file.text(ITEMS))
    return content["reports"], content["items"]


def as_table(page: str) -> list[list[str]]:
    """The cells of a page's tables, row by row; those that span several rows or columns are repeated."""
    from bs4 import BeautifulSoup  # which reports that want a label need not wait for

    lines, spanning = [], {}
    for row in BeautifulSoup(page, "html.parser").find_all("tr"):
        line: list[str] = []
        cells = iter(row.find_all(["th", "td"]))
        while True:
            left, value = spanning.get(len(line), (0, ""))
            if left:  # a cell of a row above
                spanning[len(line)] = left - 1, value
                line.append(value)
            elif (cell := next(cells, None)) is not None:
                value = " ".join(cell.get_text().split())
                for _ in range(int(cell.get("colspan", 1))):
                    spanning[len(line)] = int(cell.get("rowspan", 1)) - 1, value
                    line.append(value)
            else:
                break
        lines.append(line)
    return lines

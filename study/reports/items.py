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

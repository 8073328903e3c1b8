"""params.yaml as plain values; :mod:`study.params` checks the whole."""

from pathlib import Path

import yaml


class ParameterError(ValueError):
    """params.yaml is wrong; the message has a line for each fault: path, value, what is accepted."""


def read(path: str | Path = "params.yaml") -> dict:
    """params.yaml as plain values. Raises ParameterError where there is none, and where it is no mapping in YAML, in UTF-8."""
    content = text(path)
    try:
        values = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C five times as fast
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2020-13-45 is no day
        raise ParameterError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ParameterError(f"{path} {found}: names and their values are wanted")
    return values


def text(path: str | Path) -> str:
    """A text file in UTF-8, whatever the locale. Raises ParameterError where it is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path} is not in UTF-8: {error}") from None
    except OSError as error:
        raise ParameterError(f"{path} cannot be read in {Path.cwd()}: {error.strerror}; start in the project's own") from None


def section(params: dict, dotted: str) -> object:
    """The value at a dotted path. Raises ParameterError that names the first missing key."""
    value = params
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ParameterError(f"params.yaml has no {dotted!r}: {key!r} is missing")
        value = value[key]
    return value

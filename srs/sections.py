"""params.yaml as plain values, and what its checked sections have in common; :mod:`srs.params` checks the whole."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Section(BaseModel):
    """A checked section of params.yaml: unknown names, NaN and infinity are refused, values stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ParameterError(ValueError):
    """params.yaml is wrong; the message has a line for each fault: path, value, what is accepted."""


def faults(error: ValidationError, whole: str = "") -> list[str]:
    """What was given wrongly, a text for each: name (``whole`` where it is no single field), reason, value."""
    return [f"{'.'.join(map(str, fault['loc'])) or whole}: {reason(fault)}" for fault in error.errors()]


def reason(fault: dict, what: str = "") -> str:
    """``what`` is wrong with a value (pydantic's words, if not given), and the value, unless that is a whole section."""
    what = what or fault["msg"].removeprefix("Value error, ")
    return what if isinstance(fault["input"], dict) else f"{what} (got {fault['input']!r})"


def read(path: str | Path = "params.yaml") -> dict:
    """params.yaml as plain values. Raises ParameterError where it is not YAML."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is not valid YAML: {error}") from None


def section(params: dict, dotted: str) -> object:
    """The value at a dotted path. Raises ParameterError that names the first missing key."""
    value = params
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ParameterError(f"params.yaml has no {dotted!r}: {key!r} is missing")
        value = value[key]
    return value

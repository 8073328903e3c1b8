"""What all checked settings have in common, the library's own and the sections of params.yaml."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

_WANTED = {float: "a number", int: "a whole number", bool: "true or false"}


class Section(BaseModel):
    """Checked settings: unknown names, NaN and infinity are refused, and what pydantic would make a number or
    a truth value though it is none; values stay as they are. Those of numpy and torch count as Python's own, and whole floats
    below 2^53 as whole numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_coerced(cls, values: Any) -> Any:
        # pydantic's strict mode would also refuse a list for a tuple and 1e4 for 10000, and does not say what to write instead
        if not isinstance(values, dict):
            return values
        wrong: list[InitErrorDetails] = []
        wanted = {name: field.annotation for name, field in cls.model_fields.items()}
        values = {name: _exact(value, wanted.get(name), (name,), wrong) for name, value in values.items()}
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return values


def _exact(value: Any, wanted: Any, place: tuple, wrong: list[InitErrorDetails]) -> Any:
    """What is to be checked in place of the ``value`` of a field with the annotation ``wanted``; enters what is ``wrong``."""
    if hasattr(value, "tolist"):  # a scalar or an array of numpy or torch
        with suppress(RuntimeError):  # a tensor without data stays what it is, and is refused
            value = value.tolist()
    kinds = list(_kinds(wanted))
    for kind in kinds:
        container, parts = get_origin(kind), [part for part in get_args(kind) if part is not ...]
        if container in (list, tuple) and isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
            return [_exact(v, parts[min(i, len(parts) - 1)], (*place, i), wrong) for i, v in enumerate(value)]
        if container is dict and isinstance(value, dict):
            return {name: _exact(v, parts[1], (*place, name), wrong) for name, v in value.items()}
    named = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    same = [choice for choice in named if type(choice) in _WANTED and choice == value]
    wants = [kind for kind in _WANTED if kind in kinds or kind in map(type, same)]
    if not wants or _fits(value, kinds, named):
        return value
    if int in kinds and isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    fault = PydanticCustomError("coerced", "{what}", {"what": f"{_WANTED[wants[0]]} is wanted{_instead_of(value, wants)}"})
    wrong.append(InitErrorDetails(type=fault, loc=place, input=value))
    return value


def _kinds(wanted: Any) -> Iterator[Any]:
    """The annotation without Annotated, or those that it is a union of."""
    if get_origin(wanted) is Annotated:
        yield from _kinds(get_args(wanted)[0])
    elif get_origin(wanted) in (Union, UnionType):
        for part in get_args(wanted):
            yield from _kinds(part)
    else:
        yield wanted


def _fits(value: Any, kinds: list, named: list) -> bool:
    """Whether pydantic changes nothing of a value, or refuses it: a truth value is no number, but an int does for a float."""
    if value is None or isinstance(value, list | tuple | dict | BaseModel):
        return True
    if type(value) is int and float in kinds:
        return True
    return type(value) in kinds or any(type(value) is type(choice) and value == choice for choice in named)


def _instead_of(value: Any, wants: list) -> str:
    if isinstance(value, bool):
        return ", not a truth value"
    if not isinstance(value, str):
        return ""
    try:
        number = Decimal(value)
    except InvalidOperation:
        return ", not text"
    if wants == [bool] or not number.is_finite() or abs(number.adjusted()) > 20:
        return ", not text"
    return f", not text: write {number:f}" + (f" (YAML 1.1 takes {value} for text)" if "e" in value.lower() else "")


def faults(error: ValidationError, whole: str = "") -> list[str]:
    """What was given wrongly, a text for each: name (``whole`` where it is no single field), reason, value."""
    return [f"{'.'.join(map(str, fault['loc'])) or whole}: {reason(fault)}" for fault in error.errors()]


def reason(fault: dict, what: str = "") -> str:
    """``what`` is wrong with a value (pydantic's words, if not given), and the value, unless that is a whole section."""
    what = what or fault["msg"].removeprefix("Value error, ")
    return what if isinstance(fault["input"], dict) else f"{what} (got {fault['input']!r})"

"""Arguments of the Python interface: checked and converted, with errors that name them and what they must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import index
from typing import Any, NoReturn, TypeVar

from ..samplers.text import printable

__all__ = ["check_type", "number", "several", "whole_number"]

_Value = TypeVar("_Value")


def check_type(name: str, value: object, kinds: Any, expected: str) -> None:
    """Refuses a value that is of none of the `kinds`, which `isinstance` accepts."""
    if not isinstance(value, kinds):
        _refuse(name, expected, value)


def whole_number(name: str, value: Any) -> int:
    """The integer in a value of Python's, numpy's or torch's type."""
    try:
        return index(value)
    except TypeError:
        _refuse(name, "a whole number", value)


def number(name: str, value: Any) -> float:
    """The float in a number of Python's, numpy's or torch's type."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        pass
    _refuse(name, "a number", value)


def several(name: str, values: Any, convert: Callable[[str, Any], _Value]) -> tuple[_Value, ...]:
    """The converted elements of a sequence, an array or a tensor of one dimension; a single value is one of them."""
    is_single = isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0
    return tuple(convert(name, value) for value in ([values] if is_single else values))


def _refuse(name: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"{name} must be {expected}, got {printable(repr(value), 80)} ({type(value).__name__})")

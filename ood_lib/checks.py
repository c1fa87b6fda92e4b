"""Arguments are checked in one way: what was expected of them is written down, and said when it does not hold."""

import operator
import re
import sys
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["check"]

INTERVAL = re.compile(r"(integer )?([\[(])(.+), (.+)([\])])( or None)?")


def check(expected: str | Collection[Any] | Callable[[Any], Any], meaning: str = "", /, **given: Any) -> None:
    """Raise ValueError when an argument is not what is expected of it; the message names it, its value and that.

    Args:
        expected: an interval such as ``"(0, 1]"``, ``"integer [1, inf)"`` or ``"[0, inf) or None"``; the values to
            choose from; or a function that is true of a good value.
        meaning: what the argument stands for, in words; for a function all that the message says.
        given: the arguments, by their names.

    Raises:
        ValueError: one of them is something else (NaN lies in no interval).

    Example:
        >>> check("(0, 1]", "a share of each class", fraction=0.5)
        >>> check("(0, 1]", "a share of each class", fraction=2)
        Traceback (most recent call last):
        ValueError: fraction=2 was given; expected a share of each class, 0 < fraction <= 1
    """
    if "torch" in sys.modules and sys.modules["torch"].compiler.is_exporting():
        return  # a program of tensors looks at no number
    for name, value in given.items():
        if isinstance(expected, str):
            good, words = _interval(expected, name, value)
        elif callable(expected):
            good, words = expected(value), ""
        else:
            good, words = value in expected, " or ".join(map(repr, expected))
        if not good:
            wanted = ", ".join(filter(None, [meaning, words]))
            raise ValueError(f"{name}={value!r} was given; expected {wanted}")


def _interval(text: str, name: str, value: Any) -> tuple[bool, str]:
    """Whether the value lies in an interval, and the interval in words."""
    found = INTERVAL.fullmatch(text)
    assert found, f"{text!r} is no interval"
    integer, left, low, high, right, none = found.groups()
    try:
        number = operator.index(value) if integer else value
        above = number >= float(low) if left == "[" else number > float(low)
        good = bool(above and (number <= float(high) if right == "]" else number < float(high)))
    except TypeError:
        good = bool(none) and value is None
    bounds = {"[": "<=", "(": "<", "]": "<=", ")": "<"}
    upper = f"{name} {bounds[right]} {high}"
    words = f"{low} {bounds[left]} {upper}" if high != "inf" else f"{name} {'>=' if left == '[' else '>'} {low}"
    return good, (f"an {integer.strip()}, " if integer else "") + words + (none or "")

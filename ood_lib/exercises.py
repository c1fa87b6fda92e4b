"""The check of an exercise: says whether an answer is right, and what is wrong with one that is not.

It needs no network and no further package, and it never breaks a notebook: whatever the answer is, the verdict is a
sentence.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Check", "Verdict", "seal"]

Law = tuple[Callable[[Any], Any], str]


class Verdict(NamedTuple):
    """What a check says; true only of a right answer."""

    right: bool
    says: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.says


class Check:
    """The laws that a right answer obeys, each with what to say to an answer that breaks it.

    Args:
        laws: pairs (predicate, what is wrong where it does not hold), tried in order: typical mistakes first, the full
            answer last.

    Example:
        >>> check_angle = Check(
        ...     (lambda a: a > 2, "radians; the question asks for degrees"),
        ...     (lambda a: abs(a - 45) < 1, "which angle has tangent 1?"),
        ... )
        >>> check_angle(0.785)
        not yet: radians; the question asks for degrees
        >>> check_angle(45.0)
        correct
    """

    def __init__(self, *laws: Law) -> None:
        self.laws = laws

    def __call__(self, answer: Any) -> Verdict:
        """The verdict on an answer; ``...`` stands for none."""
        if answer is ...:
            return Verdict(False, "not answered yet: put your answer in place of ...")
        if _is_nan(answer):
            return Verdict(False, "not yet: your answer is not a number (NaN)")
        wrong = next(filter(None, (_complaint(holds, says, answer) for holds, says in self.laws)), "")
        return Verdict(not wrong, f"not yet: {wrong}" if wrong else "correct")


def seal(answer: Any, question: str) -> str:
    """A hash of an answer, for a check that compares it and does not show what it compares it with.

    It keeps an answer from being read in passing, and from nobody who computes the hashes of many numbers.

    Args:
        answer: a number or several; they count to three significant digits.
        question: its name, so that one number has another hash in another question.

    Example:
        >>> seal(45.0, "angle")
        '8d905a28'
        >>> Check((lambda a: seal(a, "angle") == "8d905a28", "which angle has tangent 1?"))(30)
        not yet: which angle has tangent 1?
    """
    numbers = " ".join(f"{x + 0.0:.2e}" for x in np.ravel(answer))  # text has no sum with 0.0, and is no answer
    return hashlib.sha256(f"{question}: {numbers}".encode()).hexdigest()[:8]


def _is_nan(answer: Any) -> bool:
    try:
        return bool(answer != answer)
    except Exception:  # several numbers: the laws will tell
        return False


def _complaint(holds: Callable[[Any], Any], says: str, answer: Any) -> str:
    try:
        return "" if bool(holds(answer)) else says
    except Exception as error:  # a wrong kind of answer fails in any way
        return f"your answer is {_kind(answer)}, which this question cannot be answered with ({error}). {says}"


def _kind(answer: Any) -> str:
    shape = getattr(answer, "shape", None)
    kind = "None" if answer is None else type(answer).__name__
    return f"{kind} of shape {tuple(shape)}" if isinstance(shape, tuple) else kind

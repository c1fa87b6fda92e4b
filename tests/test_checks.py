"""Laws of the checks of arguments: what holds passes in silence, what does not is named with what was expected."""

import math

import numpy as np
import pytest

from ood_lib.checks import check

HALF_OPEN = [("[0, 1)", 0, 1), ("(0, 1]", 1, 0)]


@pytest.mark.parametrize(("interval", "inside", "outside"), HALF_OPEN)
def test_a_bracket_takes_its_end_and_a_parenthesis_does_not(interval: str, inside: float, outside: float):
    check(interval, x=inside)
    with pytest.raises(ValueError, match=f"x={outside} was given; expected 0 <=? x <=? 1"):
        check(interval, x=outside)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "1", None, [1]])
def test_what_lies_in_no_interval_is_refused(value: object):
    with pytest.raises(ValueError, match=r"x=.* was given; expected a length, x >= 0$"):
        check("[0, inf)", "a length", x=value)


def test_none_and_integers_are_asked_for():
    check("integer [1, inf) or None", k=None, more=np.int64(3))
    for value in (2.0, 0, "many"):
        with pytest.raises(ValueError, match=r"k=.*expected an integer, k >= 1 or None"):
            check("integer [1, inf) or None", k=value)


def test_every_argument_is_checked_and_the_wrong_one_named():
    with pytest.raises(ValueError, match="second=0"):
        check("(0, inf)", first=1, second=0)


def test_choices_and_functions_say_what_was_expected():
    check(("a", "b"), mode="a")
    check(callable, "a function", score=len)
    with pytest.raises(ValueError, match="mode='c' was given; expected 'a' or 'b'"):
        check(("a", "b"), mode="c")
    with pytest.raises(ValueError, match=r"score=3 was given; expected a function$"):
        check(callable, "a function", score=3)


def test_a_rule_that_is_no_interval_is_the_programmers_mistake():
    with pytest.raises(AssertionError, match="no interval"):
        check("positive", x=1)

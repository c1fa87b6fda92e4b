"""Laws of a check: no answer breaks it, only a right one is right, and a wrong one is told why."""

import numpy as np
import pytest
import torch

from ood_lib import Check, seal

check = Check(
    (lambda a: a > 2, "radians; the question asks for degrees"),
    (lambda a: abs(a - 45) < 1, "which angle has tangent 1?"),
)


@pytest.mark.parametrize("answer", [45, 45.5, np.float64(44.5), torch.tensor(45.0)])
def test_a_right_answer_of_any_number_type_is_right(answer):
    assert check(answer) and str(check(answer)) == repr(check(answer)) == "correct"


def test_no_answer_is_no_mistake():
    assert not check(...) and "not answered yet" in str(check(...))


@pytest.mark.parametrize(("answer", "why"), [(0.785, "radians"), (30, "tangent 1"), (1e9, "tangent 1")])
def test_the_first_law_that_an_answer_breaks_is_told(answer, why):
    verdict = check(answer)
    assert not verdict and str(verdict).startswith("not yet: ") and why in str(verdict)


@pytest.mark.parametrize(
    ("answer", "given"),
    [("45", "str"), (None, "None"), ([45], "list"), (torch.zeros(2, 3), "Tensor of shape (2, 3)"), (1j, "complex")],
)
def test_an_answer_of_another_kind_is_told_what_it_is(answer, given):
    verdict = check(answer)
    assert not verdict and given in str(verdict) and "degrees" in str(verdict)


@pytest.mark.parametrize("answer", [float("nan"), np.nan, torch.tensor(float("nan"))])
def test_not_a_number_is_never_right(answer):
    assert not check(answer)
    for law in (lambda a: abs(a - 1) < 5, lambda a: a != 3, lambda a: not abs(a - 1) > 5):
        assert "not a number" in str(Check((law, "a number"))(answer))


@pytest.mark.parametrize("answer", [20, 20.0, np.float64(20.004), torch.tensor(19.999), [20]])
def test_a_seal_knows_an_answer_of_any_number_type_to_three_digits(answer):
    assert seal(answer, "nats") == seal(20, "nats")


@pytest.mark.parametrize(
    ("answer", "question"), [(20.1, "nats"), (-20, "nats"), (200, "nats"), (20, "bits"), ((20, 20), "nats")]
)
def test_a_seal_tells_other_answers_and_other_questions_apart(answer, question):
    assert seal(answer, question) != seal(20, "nats")


def test_zero_has_no_sign_and_text_is_no_number():
    assert seal(-0.0, "a") == seal(0, "a")
    with pytest.raises(TypeError):
        seal("20", "nats")

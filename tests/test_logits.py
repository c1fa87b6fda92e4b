"""Laws of the scores that read logits: MSP, MaxLogit, Energy."""

import math

import numpy as np
import pytest
import torch
from conftest import normal
from torch.autograd import gradcheck

from ood_lib import MSP, Energy, Features, MaxLogit, energy, max_logit, msp

LOGITS = 3 * normal(200, 7)
SCORES = {"msp": msp, "max_logit": max_logit, "energy": energy}
every = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())


def test_the_scores_agree_with_numpy():
    x = LOGITS.numpy()
    exponentials = np.exp(x)
    assert np.allclose(msp(LOGITS), -(exponentials / exponentials.sum(1, keepdims=True)).max(1), rtol=1e-12)
    assert np.allclose(max_logit(LOGITS), -x.max(1), rtol=0)
    assert np.allclose(energy(LOGITS), -np.log(exponentials.sum(1)), rtol=1e-12)
    assert np.allclose(energy(LOGITS, 2.5), -2.5 * np.log(np.exp(x / 2.5).sum(1)), rtol=1e-12)


def test_adding_a_constant_leaves_msp_and_lowers_the_others_by_it():
    assert torch.allclose(msp(LOGITS + 5), msp(LOGITS), rtol=0, atol=1e-14)
    assert torch.allclose(max_logit(LOGITS + 5), max_logit(LOGITS) - 5)
    for temperature in (0.3, 1.0, 4.0):
        assert torch.allclose(energy(LOGITS + 5, temperature), energy(LOGITS, temperature) - 5)


@every
def test_the_order_of_the_classes_does_not_matter(score):
    assert torch.allclose(score(LOGITS[:, torch.tensor([3, 1, 6, 0, 2, 5, 4])]), score(LOGITS), rtol=1e-14)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_the_energy_lies_between_max_logit_and_max_logit_minus_t_log_c(temperature: float):
    value = energy(LOGITS, temperature)
    assert (value <= max_logit(LOGITS) + 1e-12).all()
    assert (value >= max_logit(LOGITS) - temperature * math.log(7) - 1e-12).all()


def test_both_bounds_of_the_energy_are_reached():
    flat, sharp = torch.zeros(1, 7).double(), torch.tensor([[900.0, 0, 0, 0, 0, 0, 0]]).double()
    assert energy(flat).item() == pytest.approx(max_logit(flat).item() - math.log(7))
    assert energy(sharp).item() == max_logit(sharp).item()


def test_msp_lies_between_minus_one_and_minus_one_over_c():
    assert ((msp(LOGITS) >= -1) & (msp(LOGITS) <= -1 / 7)).all()
    assert msp(torch.zeros(1, 7).double()).item() == pytest.approx(-1 / 7)


def test_msp_is_what_remains_of_the_maximum_once_the_energy_is_taken_out():
    assert torch.allclose((-msp(LOGITS)).log(), energy(LOGITS) - max_logit(LOGITS), atol=1e-12)


def test_a_cold_energy_is_max_logit_and_a_hot_one_ranks_by_the_mean():
    assert torch.allclose(energy(LOGITS, 1e-3), max_logit(LOGITS), atol=1e-3 * math.log(7))
    hot = energy(LOGITS, 1e7) + 1e7 * math.log(7)  # the part that is the same for all
    assert torch.allclose(hot, -LOGITS.mean(1), atol=1e-5)


@every
def test_large_logits_do_not_overflow(score):
    for sign in (-1, 1):
        assert score(sign * torch.tensor([[1e4, 2e4, 3e4]])).isfinite().all()


@every
def test_gradients_are_those_of_the_formula(score):
    assert gradcheck(score, LOGITS[:5].clone().requires_grad_())


def test_the_gradient_of_the_energy_is_minus_the_softmax():
    logits = LOGITS.clone().requires_grad_()
    energy(logits).sum().backward()
    assert torch.allclose(logits.grad, -LOGITS.softmax(1))


@every
def test_leading_dimensions_are_kept(score):
    assert torch.equal(score(LOGITS.view(10, 20, 7)), score(LOGITS).view(10, 20))


def test_the_detectors_are_the_functions():
    features = Features(logits=LOGITS)
    assert torch.equal(MSP().score(features), msp(LOGITS))
    assert torch.equal(MaxLogit().score(features), max_logit(LOGITS))
    assert torch.equal(Energy().score(features), energy(LOGITS))
    assert torch.equal(Energy(temperature=3.0).score(features), energy(LOGITS, 3.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(ValueError, match="temperature="):
        Energy(temperature)

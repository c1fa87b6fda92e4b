"""Laws of the scores that read logits: MSP, MaxLogit, Energy, GEN, KL-Matching; and of their temperature."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import entropy
from torch.autograd import gradcheck

from ood_lib import (
    GEN,
    MSP,
    Energy,
    Features,
    KLMatching,
    MaxLogit,
    energy,
    fit_temperature,
    gen,
    max_logit,
    msp,
)
from ood_lib.detectors.classical.kl_matching import kl_matching
from tests.conftest import normal, seeded

LOGITS = 3 * normal(200, 7)
TEMPLATES = normal(7, 7, seed=1).softmax(1)
SCORES = {"msp": msp, "max_logit": max_logit, "energy": energy, "gen": gen}
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
    assert torch.allclose(gen(LOGITS + 5), gen(LOGITS), rtol=1e-12)
    assert torch.allclose(kl_matching(LOGITS + 5, TEMPLATES), kl_matching(LOGITS, TEMPLATES), rtol=0, atol=1e-12)
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
    assert torch.equal(MSP(temperature=3.0).score(features), msp(LOGITS / 3))
    assert torch.equal(GEN(gamma=0.3, top=2).score(features), gen(LOGITS, 0.3, 2))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float):
    for detector in (Energy, MSP):
        with pytest.raises(ValueError, match="temperature="):
            detector(temperature)


# -- GEN --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "top"), [(0.1, 3), (0.1, 100), (0.5, 7), (0.01, 1)])
def test_gen_agrees_with_numpy(gamma: float, top: int):
    p = np.sort(LOGITS.softmax(1).numpy(), axis=1)[:, ::-1][:, :top]
    assert np.allclose(gen(LOGITS, gamma, top), (p**gamma * (1 - p) ** gamma).sum(1), rtol=1e-9)


def test_gen_is_largest_for_equal_probabilities():
    even = gen(torch.zeros(1, 7).double()).item()
    assert even == pytest.approx(7 * (6 / 49) ** 0.1)
    assert (gen(LOGITS) < even).all()


def test_gen_keeps_the_digits_of_a_confident_network():
    sharp = torch.tensor([[25.0, 0.0, -1.0]])  # 1 - p = 2e-11, which is 0 in single precision
    assert gen(sharp, top=1).item() == pytest.approx(gen(sharp.double(), top=1).item(), rel=1e-5)


def test_gen_refuses_what_is_no_exponent_and_no_number_of_classes():
    with pytest.raises(ValueError, match="gamma=0"):
        GEN(gamma=0)
    with pytest.raises(ValueError, match="top=0"):
        GEN(top=0)


# -- KL-Matching ------------------------------------------------------------------------------------------------


def test_kl_matching_agrees_with_scipy():
    p = LOGITS.softmax(1).numpy()
    predicted = p.argmax(1)
    d = np.stack([p[predicted == k].mean(0) for k in range(7)])
    expected = [min(entropy(row, template) for template in d) for row in p]
    assert np.allclose(KLMatching().fit(Features(logits=LOGITS)).score(Features(logits=LOGITS)), expected, rtol=1e-9)


def test_a_template_is_at_no_distance_from_itself():
    assert torch.allclose(kl_matching(TEMPLATES.log(), TEMPLATES), torch.zeros(7).double(), atol=1e-14)
    assert (kl_matching(LOGITS, TEMPLATES) > 0).all()


def test_a_class_that_is_never_predicted_gets_a_one_hot_template_that_matches_certainty_only():
    logits = LOGITS.clone()
    logits[:, 2] = -50
    detector = KLMatching().fit(Features(logits=logits))
    assert torch.equal(detector.templates[2], torch.eye(7)[2].double())
    assert torch.allclose(detector.templates.sum(1), torch.ones(7).double())
    assert detector.score(Features(logits=LOGITS)).isfinite().all()
    certain = torch.tensor([[0.0, 0.0, 1e4, 0.0, 0.0, 0.0, 0.0]]).double()
    assert detector.score(Features(logits=certain)).item() == 0


def test_kl_matching_stays_finite_where_probabilities_underflow():
    for dtype in (torch.float32, torch.float64):
        logits = (300 * LOGITS).to(dtype)
        scores = KLMatching().fit(Features(logits=logits)).score(Features(logits=logits))
        assert scores.isfinite().all() and (scores > -1e-3).all()


# -- temperature ------------------------------------------------------------------------------------------------


def drawn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Labels that follow the softmax of logits / temperature."""
    return (logits / temperature).softmax(1).multinomial(1, generator=seeded(9))[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_minimises_the_cross_entropy(temperature: float):
    labels = drawn(LOGITS, temperature)

    def loss(t: float) -> float:
        return torch.nn.functional.cross_entropy(LOGITS / t, labels).item()

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(LOGITS, labels) == pytest.approx(best, rel=1e-5)
    assert fit_temperature(10 * LOGITS.float(), labels) == pytest.approx(10 * best, rel=1e-4)


def test_the_true_temperature_comes_back_from_many_samples():
    logits = 3 * normal(20000, 5)
    assert fit_temperature(logits, drawn(logits, 2.0)) == pytest.approx(2, rel=0.05)


def test_at_the_best_temperature_the_mean_logit_of_the_label_is_the_expected_one():
    labels = drawn(LOGITS, 2.0)
    p = (LOGITS / fit_temperature(LOGITS, labels)).softmax(1)
    assert (p * LOGITS).sum(1).mean().item() == pytest.approx(LOGITS[torch.arange(200), labels].mean().item(), rel=1e-7)


def test_a_temperature_changes_the_ranking_of_msp_but_leaves_the_decision():
    assert not torch.equal(msp(LOGITS, 5.0).argsort(), msp(LOGITS).argsort())
    assert torch.equal((LOGITS / 5).argmax(1), LOGITS.argmax(1))


def test_without_a_minimum_there_is_no_temperature():
    with pytest.raises(ValueError, match="all samples are classified correctly"):
        fit_temperature(LOGITS, LOGITS.argmax(1))
    with pytest.raises(ValueError, match="same samples"):
        fit_temperature(LOGITS, LOGITS.argmin(1))
    with pytest.raises(ValueError, match=r"\(200, 7\) and labels \(3,\)"):
        fit_temperature(LOGITS, torch.zeros(3).long())


def test_labels_that_are_no_indices_and_logits_that_are_not_finite_have_no_temperature():
    labels, holed = drawn(LOGITS, 2.0), LOGITS.clone()
    with pytest.raises(ValueError, match="expected 200 class indices"):
        fit_temperature(LOGITS, labels + 0.9)
    holed[3, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 200 rows of logits"):
        fit_temperature(holed, labels)


def test_a_temperature_can_be_fitted_where_gradients_are_off():
    with torch.no_grad():
        assert fit_temperature(LOGITS, drawn(LOGITS, 2.0)) > 0

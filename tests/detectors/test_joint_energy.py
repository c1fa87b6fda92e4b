"""Laws of the joint energy: it is three things at once, and what bounds it."""

import itertools
import math

import pytest
import torch

from ood_lib import Features, JointEnergy, MaxLogit, SumLogit, SumProb, joint_energy, label_energies, max_logit
from ood_lib.detectors.joint_energy import sum_logit, sum_prob
from tests.conftest import normal

LOGITS = 4 * normal(50, 8)


def test_it_is_the_log_probability_that_no_label_is_present():
    assert torch.allclose(joint_energy(LOGITS), (1 - LOGITS.sigmoid()).log().sum(1), rtol=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 5, 10])
def test_it_is_minus_the_log_partition_over_all_label_sets(classes: int):
    logits = 3 * normal(20, classes)
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=classes))).double()  # (2^C, C)
    assert torch.allclose(joint_energy(logits), -(logits @ sets.T).logsumexp(1), rtol=1e-12)


def test_every_logit_that_rises_lowers_it():
    logits = LOGITS.clone().requires_grad_()
    joint_energy(logits).sum().backward()
    assert torch.allclose(logits.grad, -LOGITS.sigmoid()) and (logits.grad < 0).all()


def test_the_order_of_labels_does_not_matter():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(joint_energy(LOGITS[:, order]), joint_energy(LOGITS), rtol=1e-14)


def test_the_largest_logit_bounds_it_from_both_sides():
    s, largest = -joint_energy(LOGITS), LOGITS.amax(1)
    assert (s >= largest.clamp(min=0)).all()
    assert (s <= 8 * torch.nn.functional.softplus(largest) + 1e-12).all()


def test_the_labels_add_up():
    assert torch.equal(label_energies(LOGITS).sum(1), joint_energy(LOGITS))
    assert (label_energies(LOGITS) <= 0).all()


@pytest.mark.parametrize("top", [1, 3, 7])
def test_top_sums_over_the_largest_labels(top: int):
    expected = -LOGITS.sort(1, descending=True).values[:, :top].exp().log1p().sum(1)
    assert torch.allclose(joint_energy(LOGITS, top), expected, rtol=1e-12)


def test_top_one_ranks_as_max_logit_and_top_all_is_all():
    assert torch.equal(joint_energy(LOGITS, 1).argsort(), max_logit(LOGITS).argsort())
    for top in (8, 100, None):
        assert torch.equal(joint_energy(LOGITS, top), joint_energy(LOGITS))


def test_large_logits_do_not_overflow_and_small_ones_do_not_vanish():
    logits = torch.tensor([[500.0, -500.0], [-20.0, -20.0]])  # float32: exp(89) is infinite, 1 + exp(-20) is 1
    assert torch.allclose(joint_energy(logits), torch.tensor([-500.0, -2 * math.exp(-20)]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("detector", "score"), [(JointEnergy(), joint_energy), (SumProb(), sum_prob), (SumLogit(), sum_logit)]
)
def test_the_detectors_are_their_functions(detector, score):
    assert torch.equal(detector.score(Features(logits=LOGITS)), score(LOGITS))


def test_the_sums_are_sums():
    assert torch.allclose(sum_logit(LOGITS), -LOGITS.sum(1))
    assert torch.allclose(sum_prob(LOGITS), -LOGITS.sigmoid().sum(1))


def test_for_a_single_label_all_scores_rank_alike():
    one = Features(logits=normal(30, 1))
    orders = [d.score(one).argsort() for d in (JointEnergy(), SumProb(), SumLogit(), MaxLogit())]
    assert all(torch.equal(order, orders[0]) for order in orders)


@pytest.mark.parametrize("top", [0, -1])
def test_a_sum_over_no_label_is_refused(top: int):
    for make in (lambda: JointEnergy(top), lambda: joint_energy(LOGITS, top)):
        with pytest.raises(ValueError, match=f"top={top} was given"):
            make()


def test_between_the_present_labels_and_the_sum_of_all_stands_the_temperature():
    cold, hot = (joint_energy(LOGITS, temperature=T) for T in (1e-6, 1e6))
    assert torch.allclose(cold, -LOGITS.relu().sum(1), atol=1e-4)
    assert torch.equal(hot.argsort(), sum_logit(LOGITS).argsort())
    assert not torch.equal(hot.argsort(), cold.argsort()) and torch.equal(
        joint_energy(LOGITS, 1, 3.0).argsort(), max_logit(LOGITS).argsort()
    )


def test_dividing_logits_by_the_temperature_ranks_alike():
    for T in (0.5, 4.0):
        scaled = JointEnergy(temperature=T).score(Features(logits=LOGITS))
        assert torch.allclose(scaled, T * joint_energy(LOGITS / T), rtol=1e-12)
    with pytest.raises(ValueError, match="temperature=0 was given"):
        JointEnergy(temperature=0)

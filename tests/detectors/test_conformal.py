"""The promise of a threshold: split conformal prediction on toy scores, and what `calibrate` makes of it."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, betabinom, chisquare, kstest

from ood_lib import MSP, Detector, Features, MaxLogit, conformal_p_values, conformal_rank
from tests.conftest import CLASSES, Toy, normal, seeded


def lone(scores: torch.Tensor) -> Features:
    """Features to which MaxLogit gives these scores."""
    return Features(logits=-scores[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_that_ties_with_the_threshold_is_accepted(dtype: torch.dtype):
    scores = torch.arange(39, dtype=dtype).div(4).floor() / 3  # groups of four equal ones
    detector = MaxLogit().calibrate(lone(scores.double()), tpr=0.9)  # k = 36, the last of the ninth group
    asked = torch.tensor([8 / 3, 9 / 3], dtype=dtype)
    assert detector.is_ood(lone(asked)).tolist() == [False, True]
    assert detector.p_values(lone(asked)).tolist() == pytest.approx([8 / 40, 4 / 40], rel=1e-6)
    assert torch.equal(detector.is_ood(lone(scores)), detector.p_values(lone(scores)) <= 1 - 0.9 + 1e-7)


@pytest.mark.parametrize(("n", "tpr"), [(19, 0.95), (50, 0.9), (30, 0.29)])
def test_what_a_threshold_accepts_has_the_beta_distribution_of_the_theory(n: int, tpr: float):
    draws = torch.rand(1500, n, generator=seeded(), dtype=torch.float64)  # a uniform score: accepted share = threshold
    k = conformal_rank(n, tpr)
    accepted = draws.sort(1).values[:, k - 1].tolist()
    assert MaxLogit().calibrate(lone(draws[0]), tpr).threshold == accepted[0]
    assert kstest(accepted, beta(k, n + 1 - k).cdf).pvalue > 0.01
    assert np.mean(accepted) >= tpr - 3 * np.std(accepted) / 1500**0.5


def test_over_repeated_splits_of_images_as_many_are_rejected_as_the_theory_says(toy: Toy):
    pool = Features(logits=normal(120, CLASSES))
    detector, rejected = MSP(), []
    for seed in range(1500):
        order = torch.randperm(len(pool), generator=seeded(seed))
        rejected.append(int(detector.calibrate(pool[order[:80]], 0.9).is_ood(pool[order[80:]]).sum()))
    law = betabinom(40, 81 - 73, 73)  # k = ceil(81 * 0.9)
    observed, expected = np.bincount(rejected, minlength=41), 1500 * law.pmf(np.arange(41))
    tail = expected[:12], expected[12:].sum()
    assert chisquare([*observed[:12], observed[12:].sum()], [*tail[0], tail[1]]).pvalue > 0.01


def test_conformal_p_values_of_id_images_are_super_uniform_also_with_ties():
    for levels in (5, 10**9):
        drawn = torch.randint(levels, (2000, 30), generator=seeded(levels)).double()
        p = torch.cat([conformal_p_values(row[:1], row[1:].sort().values) for row in drawn])
        assert MaxLogit().calibrate(lone(drawn[0, 1:]), 0.5).p_values(lone(drawn[0, :1])) == p[0]
        for alpha in (1 / 30, 0.1, 0.3, 0.7):
            assert (p <= alpha + 1e-9).double().mean() <= alpha + 3 * (alpha * (1 - alpha) / 2000) ** 0.5


@pytest.mark.parametrize(("tpr", "needed"), [(0.95, 19), (0.99, 99), (0.5, 1), (0.9, 9)])
def test_too_few_images_for_a_share_are_refused_and_enough_are_taken(tpr: float, needed: int):
    MaxLogit().calibrate(lone(torch.rand(needed)), tpr)
    if needed > 1:
        with pytest.raises(ValueError, match=f"{needed - 1} held-out ID samples .* at least {needed} of them"):
            MaxLogit().calibrate(lone(torch.rand(needed - 1)), tpr)


def test_scores_that_are_all_equal_or_infinite_make_no_threshold():
    with pytest.raises(ValueError, match="all 30 held-out ID samples have the same score, 1:"):
        MaxLogit().calibrate(lone(torch.ones(30)))

    class Far(Detector):
        reads, needs_fit = ("logits",), False

        def _score(self, features: Features) -> torch.Tensor:
            return features.logits[:, 0].square()

    known = torch.arange(30.0)[:, None]
    known[3] = 1e30  # its square is beyond float32
    with pytest.raises(ValueError, match="1 of 30 held-out ID samples score infinity"):
        Far().calibrate(Features(logits=known))
    assert Far().calibrate(Features(logits=known.double())).threshold.isfinite()


def test_p_values_are_those_of_floating_point_scores(toy: Toy):
    detector = MSP().calibrate(toy.val)
    with pytest.raises(ValueError, match=r"scores is torch\.int64 of shape \(2,\)"):
        detector.p_values_of(torch.tensor([1, 2]))


@pytest.mark.parametrize("tpr", [0.05, 0.29, 0.55, 0.9, 0.95])
def test_the_rank_is_the_smallest_that_keeps_the_promise(tpr: float):
    for n in range(math.ceil(tpr / (1 - tpr)), 400):
        k = conformal_rank(n, tpr)
        assert k / (n + 1) >= tpr - 1e-12 > (k - 1) / (n + 1) - 1e-9  # a new score has each rank with the same chance


@pytest.mark.parametrize("tpr", [0.0, 1.0, -0.1, math.nan, "0.9"])
def test_a_share_outside_of_0_and_1_is_refused(tpr: float):
    with pytest.raises(ValueError, match="tpr"):
        conformal_rank(100, tpr)


def test_p_values_of_unordered_scores_are_refused():
    with pytest.raises(ValueError, match=r"ascending order: pass held_out\.sort"):
        conformal_p_values(torch.rand(3), torch.tensor([1.0, 3.0, 2.0]))


def test_a_score_that_is_nan_is_as_suspicious_as_an_infinite_one_and_a_held_out_one_is_refused():
    held_out = torch.arange(9.0)
    p = conformal_p_values(torch.tensor([math.nan, math.inf, 0.0]), held_out)
    assert torch.equal(p, torch.tensor([0.1, 0.1, 1.0]))
    with pytest.raises(ValueError, match="1 of 10 held-out scores are NaN"):
        conformal_p_values(torch.rand(2), torch.cat([held_out, torch.tensor([math.nan])]))

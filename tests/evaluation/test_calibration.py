"""The calibration error: known of networks whose confidence is known, and told apart from what chance makes."""

import math

import numpy as np
import pytest
import torch

from ood_lib import reliability
from ood_lib.evaluation import calibration


def drawn(n, truth, seed=0):
    """Two logits with confidences between 0.5 and 1, right with the probability ``truth(confidence)``."""
    generator = torch.Generator().manual_seed(seed)
    confidence = 0.5 + 0.49 * torch.rand(n, generator=generator, dtype=torch.float64)
    right = torch.rand(n, generator=generator, dtype=torch.float64) < truth(confidence)
    logits = torch.stack([(confidence / (1 - confidence)).log(), torch.zeros(n, dtype=torch.float64)], 1)
    return logits, (~right).long()


def test_a_calibrated_network_passes_as_often_as_is_promised():
    words = [reliability(*drawn(200, lambda c: c, seed), draws=40).word for seed in range(40)]
    assert 0.85 <= words.count("calibrated") / len(words) <= 1  # 95 % are promised


@pytest.mark.parametrize(("shift", "word"), [(-0.1, "over-confident"), (0.1, "under-confident")])
def test_a_constant_gap_is_found_with_its_sign_and_lies_in_the_interval(shift, word):
    found = reliability(*drawn(4000, lambda c: (c + shift).clamp(max=1)), draws=200)
    expected = 0.1 if shift < 0 else float((drawn(4000, lambda c: c)[0].softmax(1).max(1).values.add(0.1).clamp(max=1)
                                            - drawn(4000, lambda c: c)[0].softmax(1).max(1).values).mean())  # fmt: skip
    assert found.word == word and math.isclose(abs(found.gap), found.ece, abs_tol=0.01)
    assert found.low - 0.005 <= expected <= found.high + 0.005


def test_of_one_bin_the_error_is_mean_confidence_against_accuracy():
    logits, labels = drawn(300, lambda c: c**2)
    confidence, answer = logits.softmax(1).max(1)
    found = reliability(logits, labels, bins=1, draws=10)
    gap = confidence.mean() - (answer == labels).double().mean()
    assert found.ece == pytest.approx(abs(gap.item())) and found.gap == pytest.approx(gap.item())


def test_bins_hold_equally_many_images_and_their_order_does_not_count():
    logits, labels = drawn(205, lambda c: c)
    order = torch.randperm(205, generator=torch.Generator().manual_seed(1))
    found, again = reliability(logits, labels, draws=5), reliability(logits[order], labels[order], draws=5)
    assert found.images.sum() == 205 and found.images.max() - found.images.min() <= 1
    assert found.ece == pytest.approx(again.ece) and (found.confidence.diff() >= 0).all()


@pytest.mark.parametrize("at_once", [1, 1000, 2**20])
def test_draws_are_those_of_one_at_a_time_however_many_are_held_at_once(monkeypatch, at_once):
    monkeypatch.setattr(calibration, "AT_ONCE", at_once)
    (logits, labels), draws, n = drawn(203, lambda c: c), 30, 203
    confidence, answer = logits.softmax(1).max(1)
    order = confidence.argsort(stable=True)
    said, right = confidence[order].numpy(), (answer == labels)[order].double().numpy()
    generator = torch.Generator().manual_seed(5)
    rows = [np.sort(torch.randint(n, (n,), generator=generator).numpy()) for _ in range(draws)]
    luck = [torch.rand(n, generator=generator, dtype=torch.float64).numpy() < said for _ in range(draws)]

    def ece(said: np.ndarray, right: np.ndarray) -> float:
        return sum(abs(gap.sum()) for gap in np.array_split(said - right, 10)) / n

    again, own = [ece(said[r], right[r]) for r in rows], ece(said, right)
    found = reliability(logits, labels, draws=draws, seed=5)
    assert found.chance == pytest.approx(np.quantile([ece(said, x) for x in luck], 0.95), rel=1e-12)
    low, high = (2 * own - np.quantile(again, q) for q in (0.975, 0.025))
    assert found[:3] == pytest.approx((own, min(max(low, 0), own), max(high, own)), rel=1e-12)


def test_what_is_no_classification_is_refused():
    with pytest.raises(ValueError, match="expected \\(N, C\\)"):
        reliability(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="bins=0"):
        reliability(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), bins=0)

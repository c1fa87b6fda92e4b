"""Laws of uniformity and tolerance: known answers, all pairs, and intervals that cover."""

import math

import pytest
import torch
from torch.nn import functional as F

from ood_lib.features.geometry import tolerance, uniformity
from tests.conftest import normal

Z = normal(120, 5) + 1
LABELS = torch.arange(120) % 3


def pairs(z: torch.Tensor) -> torch.Tensor:
    u = F.normalize(z, dim=1)
    i, j = torch.triu_indices(len(z), len(z), 1)
    return (u[i] * u[j]).sum(1)


def test_both_are_means_over_all_pairs():
    assert uniformity(Z)[0] == pytest.approx(-((4 * pairs(Z) - 4).exp().mean().log()).item())
    assert tolerance(Z, LABELS)[0] == pytest.approx(sum(pairs(Z[LABELS == c]).mean() for c in range(3)).item() / 3)


def test_known_answers():
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(500, 1)
    assert uniformity(poles)[0] == pytest.approx(-math.log((499 + 500 * math.exp(-8)) / 999), abs=1e-9)
    assert uniformity(normal(2000, 1000))[0] == pytest.approx(4, abs=0.02)  # directions at random are at right angles
    assert tolerance(poles, torch.arange(1000) % 2)[0] == pytest.approx(1)


def test_length_does_not_matter_and_neither_does_a_rotation():
    turn = torch.linalg.qr(normal(5, 5, seed=2)).Q
    longer = Z * torch.rand(120, 1).double().add(0.5)
    for other in (longer, Z @ turn):
        assert uniformity(other)[0] == pytest.approx(uniformity(Z)[0])
        assert tolerance(other, LABELS)[0] == pytest.approx(tolerance(Z, LABELS)[0])


@pytest.mark.parametrize("measure", [uniformity, lambda z: tolerance(z, torch.arange(len(z)) % 3)], ids=["U", "T"])
def test_the_interval_covers_what_other_images_would_give(measure):
    truth = measure(normal(20_000, 5) + 1)[0]
    found = [measure(normal(100, 5, seed=seed) + 1)[1] for seed in range(200)]
    covered = sum(low <= truth <= high for low, high in found) / 200
    assert 0.9 <= covered <= 0.99


def test_a_sample_is_within_the_interval_of_the_whole_and_repeatable():
    many = normal(6000, 5) + 1
    value, (low, high) = uniformity(many, rows=500)
    assert low < uniformity(many, rows=6000)[0] < high and uniformity(many, rows=500)[0] == value


def test_too_few_are_named():
    with pytest.raises(ValueError, match="2 features were given"):
        uniformity(Z[:2])
    with pytest.raises(ValueError, match=r"\[4, 1\] features; expected three or more each"):
        tolerance(Z[:5], torch.tensor([0, 0, 0, 0, 1]))
    with pytest.raises(ValueError, match="expected 120 class indices"):
        tolerance(Z, LABELS.float())

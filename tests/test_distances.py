"""Laws of the distances to the training features: nearest neighbours."""

import numpy as np
import pytest
import torch
from conftest import normal

from ood_lib import KNN, Features
from ood_lib.distances import knn_distance

BANK, QUERIES = normal(120, 9), 1.5 * normal(40, 9, seed=1)


# -- nearest neighbours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 120])
def test_knn_agrees_with_brute_force(k: int):
    pairs = np.linalg.norm(QUERIES.numpy()[:, None] - BANK.numpy()[None], axis=2)
    assert np.allclose(knn_distance(QUERIES, BANK, k), np.sort(pairs, axis=1)[:, k - 1], rtol=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 119, 120, 1000])
@pytest.mark.parametrize("k", [1, 30])
def test_knn_does_not_depend_on_the_chunks_of_the_bank(chunk: int, k: int):
    assert torch.allclose(knn_distance(QUERIES, BANK, k, chunk), knn_distance(QUERIES, BANK, k), rtol=1e-10)


def test_a_farther_neighbour_is_not_nearer():
    distances = torch.stack([knn_distance(QUERIES, BANK, k) for k in range(1, 121)])
    assert (distances.diff(dim=0) >= 0).all()


def test_a_training_point_is_its_own_neighbour_up_to_the_precision_of_a_matrix_product():
    # |x|^2 - 2xy + |y|^2 loses half of the digits where x = y: 1e-8 in float64, 1e-3 in float32
    assert knn_distance(BANK, BANK, 1).max() < 1e-6
    assert knn_distance(BANK.float(), BANK.float(), 1).max() < 5e-3


def test_normalized_knn_reads_directions_only():
    train = Features(penultimate=BANK)
    scores = KNN(k=4).fit(train).score(Features(penultimate=QUERIES))
    lengths = torch.linspace(0.1, 50, len(QUERIES)).double()[:, None]
    assert torch.allclose(KNN(k=4).fit(train).score(Features(penultimate=lengths * QUERIES)), scores, rtol=1e-9)
    assert torch.allclose(
        KNN(k=4).fit(Features(penultimate=7 * BANK)).score(Features(penultimate=QUERIES)), scores, rtol=1e-9
    )
    assert (scores <= 2).all()


def test_raw_knn_scales_with_the_features_and_ignores_shifts_and_rotations():
    def score(transform) -> torch.Tensor:
        return (
            KNN(k=4, normalize=False)
            .fit(Features(penultimate=transform(BANK)))
            .score(Features(penultimate=transform(QUERIES)))
        )

    plain = score(lambda z: z)
    rotation = torch.linalg.qr(normal(9, 9, seed=2)).Q
    assert torch.allclose(score(lambda z: 3 * z), 3 * plain, rtol=1e-9)
    assert torch.allclose(score(lambda z: z @ rotation + 5), plain, rtol=1e-9)


def test_knn_needs_a_neighbour_and_enough_of_them():
    with pytest.raises(ValueError, match="k=0"):
        KNN(k=0)
    with pytest.raises(ValueError, match=r"KNN\(k=50\) was given 49"):
        KNN(k=50).fit(Features(penultimate=BANK[:49]))
    assert KNN(k=50).fit(Features(penultimate=BANK[:50])).score(Features(penultimate=QUERIES)).isfinite().all()

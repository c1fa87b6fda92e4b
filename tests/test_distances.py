"""Laws of the distances to the training features: k nearest neighbours, Mahalanobis."""

import numpy as np
import pytest
import torch
from conftest import normal
from sklearn.covariance import EmpiricalCovariance

from ood_lib import KNN, Features, Mahalanobis
from ood_lib.distances import class_means, knn_distance, mahalanobis, tied_covariance

BANK, QUERIES = normal(120, 9), 1.5 * normal(40, 9, seed=1)
LABELS = torch.arange(120) % 3
TRAIN = Features(penultimate=BANK + LABELS[:, None].double(), labels=LABELS)


def learned(z: torch.Tensor, labels: torch.Tensor = LABELS) -> Mahalanobis:
    return Mahalanobis().fit(Features(penultimate=z, labels=labels))


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


# -- Mahalanobis ------------------------------------------------------------------------------------------------


def test_mahalanobis_agrees_with_scikit_learn():
    z, labels = TRAIN.penultimate.numpy(), LABELS.numpy()
    means = np.stack([z[labels == c].mean(0) for c in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(z - means[labels])
    away = QUERIES.numpy()[:, None] - means[None]
    expected = np.stack([covariance.mahalanobis(away[:, c]) for c in range(3)], axis=1).min(1)
    assert np.allclose(Mahalanobis().fit(TRAIN).score(Features(penultimate=QUERIES)), expected, rtol=1e-10)


def test_dead_and_doubled_units_are_left_out_as_a_pseudo_inverse_does():
    z = torch.cat([TRAIN.penultimate, TRAIN.penultimate[:, :2] * 2, torch.ones(120, 1).double()], 1)
    queries = normal(40, 12, seed=3)
    means = torch.stack([z[LABELS == c].mean(0) for c in range(3)]).numpy()
    away = z.numpy() - means[LABELS.numpy()]
    inverse = np.linalg.pinv(away.T @ away / 120, rcond=1e-10, hermitian=True)
    offsets = queries.numpy()[:, None] - means[None]
    expected = np.einsum("nck,kl,ncl->nc", offsets, inverse, offsets).min(1)
    detector = learned(z)
    assert len(detector.whitening) == 9
    assert np.allclose(detector.score(Features(penultimate=queries)), expected, rtol=1e-8)


def test_a_dead_unit_changes_no_score():
    dead = torch.cat([TRAIN.penultimate, torch.full((120, 1), 4.0).double()], 1)
    queries = torch.cat([QUERIES, 100 * normal(40, 1, seed=4)], 1)
    plain = Mahalanobis().fit(TRAIN).score(Features(penultimate=QUERIES))
    assert torch.allclose(learned(dead).score(Features(penultimate=queries)), plain, rtol=1e-9)


def test_an_invertible_affine_map_of_the_features_changes_no_score():
    map_ = normal(9, 9, seed=5)
    assert torch.linalg.cond(map_) < 100
    plain = Mahalanobis().fit(TRAIN).score(Features(penultimate=QUERIES))
    mapped = learned(TRAIN.penultimate @ map_ + 3).score(Features(penultimate=QUERIES @ map_ + 3))
    assert torch.allclose(mapped, plain, rtol=1e-9)


def test_class_names_do_not_matter():
    renamed = learned(TRAIN.penultimate, (LABELS + 1) % 3).score(Features(penultimate=QUERIES))
    assert torch.allclose(renamed, Mahalanobis().fit(TRAIN).score(Features(penultimate=QUERIES)), rtol=1e-10)


def test_the_score_is_zero_at_a_class_mean_and_grows_with_the_square_of_the_distance():
    detector = Mahalanobis().fit(TRAIN)
    direction = normal(1, 9, seed=6)
    # beyond the class at the end, so that the nearest mean stays the same
    steps = torch.tensor([0.0, 1.0, 2.0, 4.0]).double()[:, None]
    outward = direction * torch.sign((direction @ detector.whitening.T @ detector.whitening).sum())
    scores = detector.score(Features(penultimate=detector.means[2] + steps * outward))
    assert scores[0].item() == pytest.approx(0, abs=1e-12)
    assert torch.allclose(scores / scores[1], torch.tensor([0.0, 1.0, 4.0, 16.0]).double(), rtol=1e-9)


def test_the_mean_training_score_to_the_own_class_is_the_rank():
    means = class_means(TRAIN.penultimate, LABELS)
    detector = Mahalanobis().fit(TRAIN)
    own = torch.stack(
        [mahalanobis(TRAIN.penultimate[i : i + 1], means[LABELS[i]][None], detector.whitening)[0] for i in range(120)]
    )
    assert own.mean().item() == pytest.approx(9)


def test_the_covariance_is_independent_of_its_chunks():
    means = class_means(TRAIN.penultimate, LABELS)
    whole = tied_covariance(TRAIN.penultimate, LABELS, means)
    assert torch.allclose(tied_covariance(TRAIN.penultimate, LABELS, means, chunk=11), whole, rtol=1e-12, atol=1e-14)
    assert torch.equal(whole, whole.T) or torch.allclose(whole, whole.T, rtol=1e-14)


def test_a_fit_in_single_precision_is_as_good_as_its_input():
    low = learned(TRAIN.penultimate.float()).score(Features(penultimate=QUERIES.float()))
    assert torch.allclose(low.double(), Mahalanobis().fit(TRAIN).score(Features(penultimate=QUERIES)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_keeps_every_direction(dtype: torch.dtype):
    z = normal(600, 200).to(dtype)
    assert learned(z, torch.arange(600) % 2).whitening.shape == (200, 200)


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match="smallest one given is -1"):
        learned(BANK, LABELS - 1)
    with pytest.raises(ValueError, match=r"none of class \[1, 3\]"):
        learned(BANK, torch.tensor([0, 2, 4])[LABELS])
    with pytest.raises(ValueError, match="needs the labels"):
        Mahalanobis().fit(Features(penultimate=BANK))


def test_features_without_any_spread_are_refused_and_nothing_is_learned():
    detector = Mahalanobis().fit(TRAIN)
    scores = detector.score(Features(penultimate=QUERIES))
    with pytest.raises(ValueError, match="covariance is zero"):
        detector.fit(Features(penultimate=LABELS[:, None].double().expand(120, 9), labels=LABELS))
    assert torch.equal(detector.score(Features(penultimate=QUERIES)), scores)

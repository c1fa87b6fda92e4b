"""Laws of the scores that compare with training features: KNN, NNGuide, SHE, FDBD."""

import numpy as np
import pytest
import torch
from torch import nn

from ood_lib import FDBD, KNN, SHE, Features, NNGuide
from ood_lib.detectors.classical.knn import knn_distance
from ood_lib.detectors.classical.nnguide import balanced_subset
from tests.conftest import Largest, normal

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


def test_a_training_point_is_its_own_neighbour():
    assert knn_distance(BANK, BANK, 1).max() == 0
    assert knn_distance(BANK.float(), BANK.float(), 1).max() == 0


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize(("rows", "block"), [(700, 512), (1003, 7), (1003, 1)])  # more than 16 k of them: in groups
def test_neighbours_found_in_groups_are_those_of_a_full_sort(k: int, rows: int, block: int):
    bank, queries = normal(rows, 5).round(decimals=1), normal(30, 5, seed=1).round(decimals=1)  # with ties
    pairs = np.linalg.norm(queries.numpy()[:, None] - bank.numpy()[None], axis=2)
    expected = np.sort(pairs, axis=1)[:, k - 1]
    assert np.allclose(knn_distance(queries, bank, k, block=block), expected, rtol=1e-12)
    assert np.allclose(knn_distance(queries, bank, k, chunk=900, block=block), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_distance_keeps_its_digits(dtype: torch.dtype):
    bank = normal(300, 9).to(dtype)
    step = torch.finfo(dtype).eps ** 0.5 * torch.eye(9, dtype=dtype)[0]
    assert torch.allclose(knn_distance(bank + step, bank, 1), ((bank + step) - bank).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_no_copy_of_the_bank_is_made_whatever_its_scale_or_that_of_the_query(size: float, dtype: torch.dtype):
    bank, queries = size * normal(20000, 32).float(), size * normal(3, 32, seed=1).float()
    with Largest() as seen:
        found = knn_distance(queries.to(dtype), bank, 5, chunk=500)
    assert 0 < seen.made < bank.nbytes / 10
    pairs = np.linalg.norm(queries.double().numpy()[:, None] - bank.double().numpy()[None], axis=2)
    assert np.allclose(found, np.sort(pairs, axis=1)[:, 4], rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=0)


def test_a_feature_of_zeros_has_no_direction_and_is_no_trap():
    zero = Features(penultimate=torch.zeros(1, 9).double())
    assert KNN(k=3).fit(Features(penultimate=BANK)).score(zero).item() == pytest.approx(1)


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
    for k in (0, 121):
        with pytest.raises(ValueError, match=f"k={k} was given; expected a neighbour .* 1 <= k <= 120"):
            knn_distance(QUERIES, BANK, k)
    with pytest.raises(ValueError, match="k=0"):
        KNN(k=0)
    with pytest.raises(ValueError, match=r"KNN\(k=50\) was given 49"):
        KNN(k=50).fit(Features(penultimate=BANK[:49]))
    assert KNN(k=50).fit(Features(penultimate=BANK[:50])).score(Features(penultimate=QUERIES)).isfinite().all()


# -- a head for the others --------------------------------------------------------------------------------------

HEAD = nn.Linear(9, 3).double()
with torch.no_grad():
    HEAD.weight.copy_(normal(3, 9, seed=7))
    HEAD.bias.copy_(normal(3, seed=8))


def through(z: torch.Tensor, labels: torch.Tensor | None = None) -> Features:
    return Features(penultimate=z, logits=HEAD(z).detach(), labels=labels)


TRAIN, TEST = through(BANK, HEAD(BANK).argmax(1)), through(QUERIES)  # a network that is always right
Z, L = TEST.penultimate.numpy(), TEST.logits.numpy()


# -- NNGuide ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 120])
def test_nnguide_agrees_with_numpy(k: int):
    z, logits = BANK.numpy(), TRAIN.logits.numpy()
    bank = z / np.linalg.norm(z, axis=1)[:, None] * np.log(np.exp(logits).sum(1))[:, None]
    likeness = np.sort(Z / np.linalg.norm(Z, axis=1)[:, None] @ bank.T, axis=1)[:, ::-1]
    expected = -likeness[:, :k].mean(1) * np.log(np.exp(L).sum(1))
    assert np.allclose(NNGuide(k, fraction=1.0).fit(TRAIN).score(TEST), expected, rtol=1e-9)


def test_the_guidance_reads_directions_only():
    detector = NNGuide(k=4, fraction=1.0).fit(TRAIN)
    longer = Features(penultimate=7 * QUERIES, logits=TEST.logits)
    assert torch.allclose(detector.score(longer), detector.score(TEST), rtol=1e-9)


@pytest.mark.parametrize("fraction", [0.01, 0.29, 0.5, 1.0])
def test_the_bank_holds_the_same_share_of_every_class_even_of_sorted_data(fraction: float):
    labels = torch.arange(5).repeat_interleave(torch.tensor([100, 100, 100, 10, 1]))
    rows = balanced_subset(labels, fraction, torch.Generator().manual_seed(0))
    expected = [np.ceil(round(fraction * n, 9)) for n in (100, 100, 100, 10, 1)]
    assert labels[rows].bincount().tolist() == expected
    assert len(rows.unique()) == len(rows)


def test_the_seed_decides_which_bank():
    banks = [NNGuide(k=2, fraction=0.2, seed=seed).fit(TRAIN).bank for seed in (0, 0, 1)]
    assert torch.equal(banks[0], banks[1]) and not torch.equal(banks[0], banks[2])


def test_nnguide_names_what_it_cannot_do():
    with pytest.raises(ValueError, match="bank of 3 features, less than k=10"):
        NNGuide().fit(TRAIN)
    with pytest.raises(ValueError, match="needs the labels"):
        NNGuide().fit(TEST)
    with pytest.raises(ValueError, match="k=0"):
        NNGuide(k=0)
    for fraction in (0.0, 1.01):
        with pytest.raises(ValueError, match="fraction="):
            NNGuide(fraction=fraction)


# -- SHE --------------------------------------------------------------------------------------------------------


def test_she_agrees_with_numpy_and_stores_only_what_is_classified_correctly():
    labels = TRAIN.labels.clone()
    labels[::4] = (labels[::4] + 1) % 3  # the network is wrong there
    right = (labels == TRAIN.labels).numpy()
    z, predicted = BANK.numpy(), TRAIN.labels.numpy()
    patterns = np.stack([z[right & (predicted == c)].mean(0) for c in range(3)])[L.argmax(1)]
    train = through(BANK, labels)
    assert np.allclose(SHE().fit(train).score(TEST), -(Z * patterns).sum(1), rtol=1e-9)
    assert np.allclose(SHE("euclidean").fit(train).score(TEST), np.linalg.norm(Z - patterns, axis=1), rtol=1e-9)
    cosine = (Z * patterns).sum(1) / np.linalg.norm(Z, axis=1) / np.linalg.norm(patterns, axis=1)
    assert np.allclose(SHE("cosine").fit(train).score(TEST), -cosine, rtol=1e-9)


def test_the_cosine_reads_directions_and_the_inner_product_scales():
    longer = Features(penultimate=7 * QUERIES, logits=TEST.logits)
    assert torch.allclose(SHE("cosine").fit(TRAIN).score(longer), SHE("cosine").fit(TRAIN).score(TEST), rtol=1e-9)
    assert torch.allclose(SHE().fit(TRAIN).score(longer), 7 * SHE().fit(TRAIN).score(TEST), rtol=1e-9)


def test_a_class_that_is_never_right_has_no_pattern():
    wrong = through(BANK, torch.where(TRAIN.labels == 2, 0, TRAIN.labels))
    with pytest.raises(ValueError, match=r"classified correctly; none of class \[2\]"):
        SHE().fit(wrong)
    with pytest.raises(ValueError, match="needs the labels"):
        SHE().fit(TEST)
    with pytest.raises(ValueError, match=r"shape \(120, 3\); expected 120 class indices"):
        SHE().fit(through(BANK, torch.zeros(120, 3).long()))
    with pytest.raises(ValueError, match="metric='dot'"):
        SHE("dot")  # type: ignore[arg-type]


def test_logits_of_another_width_are_named():
    with pytest.raises(ValueError, match="the logits are 5 wide, but those it was fitted on were 3"):
        SHE().fit(TRAIN).score(Features(penultimate=QUERIES, logits=normal(40, 5)))


# -- FDBD -------------------------------------------------------------------------------------------------------


def test_fdbd_agrees_with_numpy():
    w, mean = HEAD.weight.detach().numpy(), BANK.numpy().mean(0)
    expected = []
    for z, logits in zip(Z, L):
        y = logits.argmax()
        to_boundary = [(logits[y] - logits[c]) / np.linalg.norm(w[y] - w[c]) for c in range(3) if c != y]
        expected.append(-sum(to_boundary) / np.linalg.norm(z - mean))
    assert np.allclose(FDBD(HEAD).fit(TRAIN).score(TEST), expected, rtol=1e-9)


def test_each_term_of_fdbd_is_the_distance_to_a_boundary():
    w, b = HEAD.weight.detach(), HEAD.bias.detach()
    two = nn.Linear(9, 2).double()
    with torch.no_grad():
        two.weight.copy_(w[:2])
        two.bias.copy_(b[:2])
    normal_ = w[0] - w[1]
    signed = (QUERIES @ normal_ + b[0] - b[1]) / normal_.norm()
    on_boundary = QUERIES - signed[:, None] * normal_ / normal_.norm()
    assert torch.allclose(two(on_boundary)[:, 0], two(on_boundary)[:, 1])
    expected = -(QUERIES - on_boundary).norm(dim=1) / (QUERIES - BANK.mean(0)).norm(dim=1)
    assert torch.allclose(FDBD(two).fit(TRAIN).score(TEST), expected, rtol=1e-9)


def test_scaling_the_head_changes_no_fdbd():
    scaled = nn.Linear(9, 3).double()
    with torch.no_grad():
        scaled.weight.copy_(5 * HEAD.weight)
        scaled.bias.copy_(5 * HEAD.bias)
    assert torch.allclose(FDBD(scaled).fit(TRAIN).score(TEST), FDBD(HEAD).fit(TRAIN).score(TEST), rtol=1e-9)


def test_fdbd_needs_classes_that_differ_and_features_that_fit():
    twins = nn.Linear(9, 3).double()
    with torch.no_grad():
        twins.weight[2] = twins.weight[0]
    with pytest.raises(ValueError, match=r"classes \[0, 2\] have the same weights"):
        FDBD(twins).fit(TRAIN)
    with pytest.raises(ValueError, match="8 wide, but the head reads 9"):
        FDBD(HEAD).fit(Features(penultimate=BANK[:, :8]))

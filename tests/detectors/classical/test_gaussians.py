"""Laws of the Gaussians and subspaces of training features: Mahalanobis, RMDS, ViM."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import nn

from ood_lib import GMM, RMDS, Features, Mahalanobis, ViM
from ood_lib.detectors.classical.mahalanobis import mahalanobis
from tests.conftest import Largest, normal

BANK, QUERIES = normal(120, 9), 1.5 * normal(40, 9, seed=1)
LABELS = torch.arange(120) % 3
TRAIN = Features(penultimate=BANK + LABELS[:, None].double(), labels=LABELS)


def learned(z: torch.Tensor, labels: torch.Tensor = LABELS) -> Mahalanobis:
    return Mahalanobis().fit(Features(penultimate=z, labels=labels))


# -- all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Mahalanobis, RMDS, GMM])
def test_one_row_costs_nothing_of_the_size_of_all_means(make):
    labels = torch.arange(600) % 300
    detector = make().fit(Features(penultimate=normal(600, 16) + labels[:, None], labels=labels))
    row = Features(penultimate=normal(1, 16, seed=1))
    first = detector.score(row)
    with Largest() as seen:
        again = detector.score(row)
    assert 0 < seen.made < detector.means.nbytes and torch.equal(again, first)


@pytest.mark.parametrize("make", [Mahalanobis, RMDS, GMM, lambda: GMM(components=2)])
def test_what_is_kept_between_scores_is_of_the_last_fit(make):
    def fresh(features: Features) -> torch.Tensor:
        return make().fit(features).score(query)

    query, other = Features(penultimate=QUERIES), Features(penultimate=2 * BANK.flip(1), labels=LABELS)
    detector = make().fit(TRAIN)
    assert torch.equal(detector.score(query), fresh(TRAIN))
    assert torch.equal(detector.fit(other).score(query), fresh(other))
    detector.load_state_dict(make().fit(TRAIN).state_dict())
    assert torch.equal(detector.score(query), fresh(TRAIN))
    if getattr(detector, "components", None) is None:
        whole = Features(penultimate=torch.cat([BANK + LABELS[:, None], other.penultimate]), labels=LABELS.repeat(2))
        assert torch.allclose(detector.partial_fit(other).score(query), fresh(whole), rtol=1e-9)


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
    detector = Mahalanobis().fit(TRAIN)
    own = [
        mahalanobis(TRAIN.penultimate[i : i + 1], detector.means[LABELS[i]][None], detector.whitening)
        for i in range(120)
    ]
    assert torch.cat(own).mean().item() == pytest.approx(9)


def test_a_fit_in_single_precision_is_as_good_as_its_input():
    low = learned(TRAIN.penultimate.float()).score(Features(penultimate=QUERIES.float()))
    assert torch.allclose(low.double(), Mahalanobis().fit(TRAIN).score(Features(penultimate=QUERIES)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_keeps_every_direction(dtype: torch.dtype):
    z = normal(600, 200).to(dtype)
    assert learned(z, torch.arange(600) % 2).whitening.shape == (200, 200)


def test_single_precision_is_enough_far_from_the_origin_in_any_number_of_rows():
    z, means = 300 + normal(60, 64), 300 + normal(3, 64, seed=1)
    exact, low = mahalanobis(z, means, torch.eye(64).double()), z.float()
    for rows in (5, 60):
        found = mahalanobis(low[:rows], means.float(), torch.eye(64))
        assert torch.allclose(found.double(), exact[:rows], rtol=1e-3)


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match="40 of 120 labels are below 0"):
        learned(BANK, LABELS - 1)
    with pytest.raises(ValueError, match=r"none of class \[1, 3\]"):
        learned(BANK, torch.tensor([0, 2, 4])[LABELS])
    with pytest.raises(ValueError, match="needs the labels"):
        Mahalanobis().fit(Features(penultimate=BANK))


@pytest.mark.parametrize("value", [1.0, 0.1, 1e3 / 7])
def test_features_without_any_spread_are_refused_and_nothing_is_learned(value: float):
    detector = Mahalanobis().fit(TRAIN)
    scores = detector.score(Features(penultimate=QUERIES))
    detector.chunk = 50  # means of chunks differ by rounding
    with pytest.raises(ValueError, match="covariance is zero"):
        detector.fit(Features(penultimate=value * LABELS[:, None].double().expand(120, 9), labels=LABELS))
    assert torch.equal(detector.score(Features(penultimate=QUERIES)), scores)


# -- RMDS -------------------------------------------------------------------------------------------------------


def rmds(z: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor = LABELS) -> torch.Tensor:
    return RMDS().fit(Features(penultimate=z, labels=labels)).score(Features(penultimate=queries))


def test_rmds_agrees_with_scikit_learn():
    z, labels = TRAIN.penultimate.numpy(), LABELS.numpy()
    means = np.stack([z[labels == c].mean(0) for c in range(3)])
    inside = EmpiricalCovariance(assume_centered=True).fit(z - means[labels])
    own = np.stack([inside.mahalanobis(QUERIES.numpy() - mean) for mean in means], axis=1).min(1)
    background = EmpiricalCovariance().fit(z).mahalanobis(QUERIES.numpy())
    assert np.allclose(rmds(TRAIN.penultimate, QUERIES), own - background, rtol=1e-9)


def test_an_invertible_affine_map_of_the_features_changes_no_relative_score():
    map_ = normal(9, 9, seed=5)
    plain = rmds(TRAIN.penultimate, QUERIES)
    assert torch.allclose(rmds(TRAIN.penultimate @ map_ + 3, QUERIES @ map_ + 3), plain, rtol=1e-8)


def test_a_direction_that_tells_no_classes_apart_cancels():
    # all moments between the new unit and the old ones vanish: it is +1 and -1 in pairs of equal features
    z = torch.cat([TRAIN.penultimate, TRAIN.penultimate])
    unit = torch.cat([torch.ones(120, 1), -torch.ones(120, 1)]).double()
    labels = LABELS.repeat(2)
    away = torch.cat([QUERIES, 100 * normal(40, 1, seed=7)], 1)
    assert torch.allclose(rmds(torch.cat([z, unit], 1), away, labels), rmds(z, QUERIES, labels), rtol=0, atol=1e-7)
    assert (learned(torch.cat([z, unit], 1), labels).score(Features(penultimate=away)) > 1).all()


def test_a_narrow_direction_that_tells_no_classes_apart_cancels_however_far_apart_the_classes_are():
    far_apart = TRAIN.penultimate + 1000 * torch.eye(3, 9).double()[LABELS]
    z, labels = torch.cat([far_apart, far_apart]).float(), LABELS.repeat(2)
    unit = 1e-3 * torch.cat([torch.ones(120, 1), -torch.ones(120, 1)])  # as above; and narrow
    away = torch.cat([QUERIES.float(), 0.1 * normal(40, 1, seed=7).float()], 1)
    assert len(learned(torch.cat([z, unit], 1), labels).whitening) == 10
    assert torch.allclose(rmds(torch.cat([z, unit], 1), away, labels), rmds(z, QUERIES.float(), labels), rtol=1e-4)


def test_with_a_single_class_nothing_is_left_of_the_relative_score_so_it_is_refused():
    with pytest.raises(ValueError, match="two classes at least, or take Mahalanobis"):
        rmds(TRAIN.penultimate, QUERIES, torch.zeros(120).long())


# -- ViM --------------------------------------------------------------------------------------------------------

HEAD = nn.Linear(9, 3).double()
with torch.no_grad():
    HEAD.weight.copy_(normal(3, 9, seed=8))
    HEAD.bias.copy_(1 + normal(3, seed=9))


@pytest.mark.parametrize("dim", [1, 4, 8, None])
def test_vim_agrees_with_the_paper_in_numpy(dim: int | None):
    z, q, w, b = (x.detach().numpy() for x in (BANK, QUERIES, HEAD.weight, HEAD.bias))
    u = -np.linalg.pinv(w) @ b
    covariance = EmpiricalCovariance(assume_centered=True).fit(z - u).covariance_
    order = np.argsort(-np.linalg.eigvalsh(covariance))
    rest = np.linalg.eigh(covariance)[1][:, order][:, dim or 4 :]
    alpha = (z @ w.T + b).max(1).mean() / np.linalg.norm((z - u) @ rest, axis=1).mean()
    expected = alpha * np.linalg.norm((q - u) @ rest, axis=1) - np.log(np.exp(q @ w.T + b).sum(1))
    detector = ViM(HEAD, dim).fit(Features(penultimate=BANK))
    assert np.allclose(detector.score(Features(penultimate=QUERIES)), expected, rtol=1e-9)


def test_vim_does_not_depend_on_the_chunks_of_its_fit():
    small = ViM(HEAD)
    small.chunk = 7
    whole = ViM(HEAD).fit(Features(penultimate=BANK))
    assert torch.allclose(small.fit(Features(penultimate=BANK)).alpha, whole.alpha, rtol=1e-12)
    assert torch.allclose(small.score(Features(penultimate=QUERIES)), whole.score(Features(penultimate=QUERIES)))


def test_without_a_bias_the_origin_of_vim_is_zero():
    head = nn.Linear(9, 3, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(HEAD.weight)
    assert ViM(head).fit(Features(penultimate=BANK)).origin.abs().max() == 0


def test_the_origin_of_vim_has_equal_logits_of_zero():
    origin = ViM(HEAD).fit(Features(penultimate=BANK)).origin
    assert torch.allclose(HEAD(origin), torch.zeros(3).double(), atol=1e-12)


def test_the_virtual_logit_is_on_average_as_large_as_the_largest_logit():
    detector = ViM(HEAD).fit(Features(penultimate=BANK))
    virtual = detector.alpha * ((BANK - detector.origin) @ detector.residual).norm(dim=1)
    assert torch.isclose(virtual.mean(), HEAD(BANK).amax(1).mean())


def test_a_fit_of_vim_in_single_precision_tells_directions_apart_that_hardly_vary():
    lengths = torch.logspace(0, -4, 32).double()  # a network whose classes have collapsed, far from the origin
    z = (normal(6000, 32) * lengths @ torch.linalg.qr(normal(32, 32, seed=1)).Q + 1).float()
    head = nn.Linear(32, 3)
    with torch.no_grad():
        head.bias.fill_(9)
    single, double = (ViM(head).fit(Features(penultimate=x)) for x in (z, z.double()))
    residuals = [((z.double() - d.origin) @ d.residual).norm(dim=1) for d in (single, double)]
    assert torch.allclose(*residuals, rtol=1e-3)


@pytest.mark.parametrize(("width", "dim"), [(9, 4), (512, 256), (768, 512), (1024, 512), (2048, 1000)])
def test_the_number_of_main_dimensions_follows_the_paper(width: int, dim: int):
    assert ViM(nn.Linear(width, 2)).main_dimensions() == dim


@pytest.mark.parametrize("dim", [0, 9, 256])
def test_main_dimensions_must_leave_a_residual(dim: int):
    with pytest.raises(ValueError, match=f"dim={dim} was given; expected fewer .* 1 <= dim < 9"):
        ViM(HEAD, dim)


def test_vim_refuses_what_has_no_scale():
    flat = BANK.clone()
    flat[:, 3:] = 0
    head = nn.Linear(9, 3, bias=False).double()  # its origin lies in the plane of the features
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(ValueError, match=r"lie in 4 directions.*smaller dim"):
            ViM(head).fit(Features(penultimate=flat.to(dtype)))
    low = nn.Linear(9, 3).double()
    with torch.no_grad():
        low.bias.fill_(-100)
    with pytest.raises(ValueError, match="mean largest logit is -"):
        ViM(low).fit(Features(penultimate=BANK))
    with pytest.raises(ValueError, match="8 wide, but the head reads 9"):
        ViM(HEAD).fit(Features(penultimate=BANK[:, :8]))

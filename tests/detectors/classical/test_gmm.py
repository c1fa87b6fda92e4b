"""Laws of the densities: Gaussian mixtures."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from torch.autograd import gradcheck

from ood_lib import GMM, Features, Mahalanobis, NotFittedError
from ood_lib.detectors.classical.gmm import expectation_maximization, mixture, mixture_log_prob
from ood_lib.detectors.moments import class_moments
from tests.conftest import normal, seeded

KINDS = ["tied", "diagonal", "full"]
every_kind = pytest.mark.parametrize("kind", KINDS)

LABELS = torch.arange(240) % 3
STRETCH = torch.linalg.qr(normal(4, 4, seed=1)).R
Z = normal(240, 4) @ STRETCH + 6 * normal(3, 4, seed=2)[LABELS]
TRAIN = Features(penultimate=Z, labels=LABELS)
QUERIES = 5 * normal(30, 4, seed=3)


def by_hand(kind: str, ridge: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Means and covariances of the classes in numpy."""
    own = [Z[LABELS == c].numpy() for c in range(3)]
    each = [np.cov(z.T, bias=True) for z in own]
    lift = ridge * np.mean([np.diag(c) for c in each])  # the classes are of one size
    if kind == "tied":
        each = [np.mean(each, axis=0)] * 3
    if kind == "diagonal":
        each = [np.diag(np.diag(c)) for c in each]
    return np.stack([z.mean(0) for z in own]), [c + lift * np.eye(4) for c in each]


# -- the density ------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.3])
def test_the_density_is_scipys(kind: str, ridge: float):
    means, covariances = by_hand(kind, ridge)
    parts = [multivariate_normal(m, c).pdf(QUERIES.numpy()) for m, c in zip(means, covariances)]
    gmm = GMM(covariance=kind, ridge=ridge).fit(TRAIN)
    assert np.allclose(gmm.log_prob(QUERIES), np.log(np.mean(parts, axis=0)), rtol=1e-9)
    assert torch.equal(gmm.score(Features(penultimate=QUERIES)), -gmm.log_prob(QUERIES))


@every_kind
def test_the_density_integrates_to_one(kind: str):
    plane = Features(penultimate=Z[:, :2], labels=LABELS)
    gmm = GMM(covariance=kind).fit(plane)
    side = torch.linspace(-40, 40, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    assert gmm.log_prob(grid).exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-6)


def test_classes_weigh_as_much_as_they_have_samples():
    uneven = TRAIN[(LABELS != 0) | (torch.arange(240) < 60)]
    counts = uneven.labels.bincount().double()
    assert torch.allclose(GMM().fit(uneven).weights, counts / counts.sum())


def test_with_one_component_the_energy_is_half_a_mahalanobis_distance():
    one = Features(penultimate=Z, labels=torch.zeros(240).long())
    energy = GMM(ridge=0).fit(one).score(Features(penultimate=QUERIES))
    distance = Mahalanobis().fit(one).score(Features(penultimate=QUERIES))
    assert torch.allclose(energy.diff(), distance.diff() / 2, rtol=1e-9)


def test_a_tied_mixture_is_never_above_its_nearest_component_by_more_than_log_c():
    found = mixture(class_moments(Z, LABELS))
    parts = mixture_log_prob(QUERIES, found)
    total = GMM().fit(TRAIN).log_prob(QUERIES)
    assert (total >= parts.amax(1)).all() and (total <= parts.amax(1) + np.log(3)).all()


@every_kind
def test_far_away_the_energy_is_finite_and_grows(kind: str):
    away = Features(penultimate=torch.tensor([[1.0], [1e3], [1e6]]).double() * torch.ones(4).double())
    scores = GMM(covariance=kind).fit(TRAIN).score(away)
    assert scores.isfinite().all() and (scores.diff() > 0).all()


@every_kind
def test_the_gradient_of_the_density_is_that_of_the_formula(kind: str):
    assert gradcheck(GMM(covariance=kind).fit(TRAIN).log_prob, QUERIES[:4].clone().requires_grad_())


def test_the_density_that_is_written_out_for_chains_is_the_same_function_with_the_same_gradient():
    gmm, z = GMM().fit(TRAIN), QUERIES.clone().requires_grad_()
    value, slope = gmm.with_gradient(QUERIES)(QUERIES)
    assert torch.allclose(value, gmm.log_prob(QUERIES), rtol=1e-9)
    assert torch.allclose(slope, torch.autograd.grad(gmm.log_prob(z).sum(), z)[0], rtol=1e-7)
    single, _ = gmm.with_gradient(QUERIES.float())(QUERIES.float())
    assert torch.allclose(single, gmm.log_prob(QUERIES).float(), rtol=1e-4)


def test_a_linear_map_moves_all_energies_by_the_logarithm_of_its_volume():
    map_ = normal(4, 4, seed=5)
    plain = GMM(ridge=0).fit(TRAIN).log_prob(QUERIES)
    mapped = GMM(ridge=0).fit(Features(penultimate=Z @ map_, labels=LABELS)).log_prob(QUERIES @ map_)
    assert torch.allclose(mapped, plain - torch.linalg.slogdet(map_).logabsdet, rtol=1e-9)


# -- ridge ------------------------------------------------------------------------------------------------------


@every_kind
def test_a_dead_unit_needs_the_ridge_and_costs_what_is_said(kind: str):
    dead = torch.cat([Z, torch.full((240, 1), 4.0).double()], 1)
    with pytest.raises(ValueError, match=r"covariance is singular.*ridge=0 was given, a larger one helps"):
        GMM(covariance=kind, ridge=0).fit(Features(penultimate=dead, labels=LABELS))
    gmm = GMM(covariance=kind, ridge=0.01).fit(Features(penultimate=dead, labels=LABELS))
    inside = class_moments(dead, LABELS, "diagonal").scatter.sum() / (240 * 5)  # the mean variance
    step = torch.zeros(5).double()
    step[4] = inside.sqrt()
    assert torch.allclose(gmm.log_prob(dead) - gmm.log_prob(dead + step), torch.tensor(50.0).double())


def test_a_class_with_fewer_samples_than_features_is_singular_in_full_and_fine_when_tied():
    few = TRAIN[:9]
    with pytest.raises(ValueError, match="full covariance is singular"):
        GMM(covariance="full", ridge=0).fit(few)
    for kind in ("full", "tied"):
        assert GMM(covariance=kind).fit(few).score(TRAIN).isfinite().all()


@every_kind
@pytest.mark.parametrize("value", [1.0, 0.1])
def test_features_without_any_spread_are_refused_and_nothing_is_learned(kind: str, value: float):
    gmm = GMM(covariance=kind).fit(TRAIN)
    scores = gmm.score(TRAIN)
    with pytest.raises(ValueError, match="covariance is zero"):
        gmm.fit(Features(penultimate=value * LABELS[:, None].double().expand(240, 4), labels=LABELS))
    assert torch.equal(gmm.score(TRAIN), scores)


# -- EM ---------------------------------------------------------------------------------------------------------


@every_kind
def test_without_labels_the_density_is_scikit_learns(kind: str):
    mixed = normal(240, 4) + 1.5 * normal(3, 4, seed=2)[LABELS]  # classes that overlap
    gmm = GMM(components=3, covariance=kind, ridge=0).fit(Features(penultimate=mixed))
    name = "diag" if kind == "diagonal" else kind
    theirs = GaussianMixture(3, covariance_type=name, reg_covar=0, tol=1e-7, max_iter=500, random_state=0)
    found = theirs.fit(mixed.numpy()).score_samples(QUERIES.numpy())
    assert np.allclose(gmm.log_prob(QUERIES), found, rtol=1e-5)
    assert gmm.counts.sum().item() == pytest.approx(240) and gmm.weights.sum().item() == pytest.approx(1)


@every_kind
@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_without_labels_the_ridge_is_a_share_of_the_variance_inside_the_components(kind: str, ridge: float):
    clear = Features(penultimate=Z, labels=LABELS)  # clear clusters have the moments of the classes
    blind = GMM(components=3, covariance=kind, ridge=ridge).fit(clear)
    labelled = GMM(covariance=kind, ridge=ridge).fit(clear)
    own = ((blind.means[:, None] - labelled.means).norm(dim=2)).argmin(1)
    loose = 0.05 if ridge == 0.1 else 1e-4  # on its way a wide ridge of all features leaves members less sure
    assert own.sort().values.tolist() == [0, 1, 2]
    assert torch.allclose(blind.log_prob(QUERIES), labelled.log_prob(QUERIES), rtol=loose)


@every_kind
def test_a_large_common_offset_costs_the_search_no_digits(kind: str):
    near, far = (GMM(components=3, covariance=kind).fit(Features(penultimate=Z + c)) for c in (0.0, 1e6))
    assert torch.allclose(far.means - 1e6, near.means, atol=1e-6)
    assert torch.allclose(far.scatter, near.scatter, rtol=1e-6, atol=1e-4)


@every_kind
def test_clear_clusters_are_found_without_their_labels(kind: str):
    blind = GMM(components=3, covariance=kind).fit(Features(penultimate=Z)).log_prob(QUERIES)
    assert torch.allclose(blind, GMM(covariance=kind).fit(TRAIN).log_prob(QUERIES), rtol=0.02)


def test_one_component_needs_no_search():
    one = Features(penultimate=Z, labels=torch.zeros(240).long())
    assert torch.allclose(GMM(components=1).fit(TRAIN).log_prob(QUERIES), GMM().fit(one).log_prob(QUERIES), rtol=1e-12)


def test_the_seed_decides_the_search():
    flat = Features(penultimate=torch.rand(200, 3, generator=seeded()).double())
    a, b, c = (GMM(components=8, seed=seed).fit(flat).score(flat) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_too_few_steps_of_em_are_told():
    with pytest.warns(UserWarning, match="still improved after 2 steps"):
        flat = torch.rand(200, 3, generator=seeded()).double()
        expectation_maximization(flat, 8, "full", 1e-6, seed=0, steps=2)


def test_em_names_what_it_cannot_do():
    with pytest.raises(ValueError, match="5 components were asked for, and 3 samples given"):
        GMM(components=5).fit(TRAIN[:3])
    for rows, different in (([0, 0, 0, 1, 1], 2), ([0, 0, 1, 2, 2], 3)):
        with pytest.raises(ValueError, match=f"3 components need more different samples .* only {different}"):
            GMM(components=3).fit(Features(penultimate=Z[rows]))
    dead = Features(penultimate=Z * torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    for kind in KINDS:
        with pytest.raises(ValueError, match=f"{kind} covariance is singular.*ridge=0 was given, a larger one helps"):
            GMM(components=2, covariance=kind, ridge=0).fit(dead)
    gmm = GMM(components=2).fit(TRAIN)
    for call, given in ((gmm.partial_fit, TRAIN), (gmm.merge, gmm)):
        with pytest.raises(ValueError, match="needs all features at once: call fit"):
            call(given)


# -- arguments and samples --------------------------------------------------------------------------------------


def test_wrong_arguments_and_labels_are_named():
    wrong = {"components": 0, "covariance": "spherical", "ridge": -1.0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name}="):
            GMM(**{name: value})
    with pytest.raises(ValueError, match="needs the labels"):
        GMM().fit(Features(penultimate=Z))
    with pytest.raises(ValueError, match=r"none of class \[1\]"):
        GMM().fit(TRAIN[LABELS != 1])
    for call in (lambda g: g.log_prob(Z), lambda g: g.sample(3)):
        with pytest.raises(NotFittedError):
            call(GMM())


@every_kind
def test_samples_have_the_moments_of_the_mixture(kind: str):
    gmm = GMM(covariance=kind).fit(TRAIN)
    drawn = gmm.sample(100_000, seeded())
    means, covariances = by_hand(kind, 1e-6)
    total = np.mean(covariances, axis=0) + np.cov(means.T, bias=True)
    assert np.allclose(drawn.mean(0), means.mean(0), atol=0.1)
    assert np.allclose(np.cov(drawn.numpy().T), total, atol=0.03 * np.abs(total).max())
    # and the energy of what it draws is the energy of what it learned from
    assert gmm.log_prob(drawn).mean().item() == pytest.approx(gmm.log_prob(Z).mean().item(), abs=0.15)


@every_kind
def test_each_component_is_drawn_with_its_own_shape(kind: str):
    gmm = GMM(covariance=kind).fit(TRAIN)
    drawn = gmm.sample(100_000, seeded())
    own = mixture_log_prob(drawn, mixture(class_moments(Z, LABELS, kind), kind)).argmax(1)  # the clusters are apart
    for c, covariance in enumerate(by_hand(kind, 1e-6)[1]):
        assert np.allclose(np.cov(drawn[own == c].numpy().T), covariance, atol=0.05 * np.abs(covariance).max())


def test_a_generator_makes_samples_repeatable():
    gmm = GMM().fit(TRAIN)
    assert torch.equal(gmm.sample(5, seeded()), gmm.sample(5, seeded()))
    assert gmm.sample(5).shape == (5, 4)

"""Laws of the priors: energies of features that a residual can correct."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ood_lib import GMM, Energy, Features, GMMPrior, LogitPrior, NotFittedError, evaluate
from tests.conftest import Toy, normal, seeded


def with_style(toy: Toy) -> Features:
    return Features(penultimate=toy.train.penultimate, style=toy.train.penultimate[:, :20], labels=toy.train.labels)


def test_the_energy_is_that_of_torchs_mixture(toy: Toy):
    prior = GMMPrior(ridge=1e-3).fit(toy.train)
    z = torch.nn.functional.normalize(toy.test.penultimate, dim=1)
    covariance = torch.linalg.inv(prior.whitening[0].T @ prior.whitening[0])
    shapes = MultivariateNormal(prior.means, covariance.expand(4, -1, -1))
    theirs = MixtureSameFamily(Categorical(prior.weights), shapes).log_prob(z)
    assert torch.allclose(prior.score(toy.test), -theirs, rtol=1e-6)
    units = torch.nn.functional.normalize(toy.train.penultimate, dim=1)
    plain = GMM(ridge=1e-3).fit(Features(penultimate=units, labels=toy.train.labels))
    assert torch.equal(prior.log_prob(z), plain.log_prob(z))


def test_the_gradients_are_those_of_the_formulas(toy: Toy):
    z = toy.test.penultimate[:3].clone().requires_grad_()
    for prior in (GMMPrior(ridge=0.1).fit(toy.train), LogitPrior(toy.head)):
        assert gradcheck(prior.log_prob, z)


def test_samples_lie_on_the_sphere_and_look_like_the_training_features(toy: Toy):
    prior = GMMPrior().fit(toy.train)
    drawn = prior.sample(2000, seeded())
    assert torch.allclose(drawn.norm(dim=1), torch.ones(2000).double())
    units = torch.nn.functional.normalize(toy.train.penultimate, dim=1)
    assert torch.allclose(drawn.mean(0), units.mean(0), atol=0.02)
    assert torch.equal(prior.sample(3, seeded()), prior.sample(3, seeded()))


def test_style_is_read_where_it_is_asked_for(toy: Toy):
    train = with_style(toy)
    style = GMMPrior("style").fit(train)
    same = GMMPrior().fit(Features(penultimate=train.style, labels=train.labels))
    assert torch.equal(style.score(train), same.score(Features(penultimate=train.style)))
    with pytest.raises(ValueError, match=r"a transformer has none, leave this prior out"):
        GMMPrior("style").fit(toy.train)
    with pytest.raises(ValueError, match="field='logits'"):
        GMMPrior("logits")


def test_clusters_are_found_without_labels(toy: Toy):
    blind = GMMPrior(components=4).fit(Features(penultimate=toy.train.penultimate))
    assert evaluate(blind.score(toy.test), blind.score(toy.ood)).auroc > 0.99


def test_half_precision_costs_the_search_for_clusters_no_more_than_the_features_do(toy: Toy):
    half = toy.train.penultimate.half()
    low, exact = (GMMPrior(components=4).fit(Features(penultimate=z)) for z in (half, half.float()))
    assert torch.equal(low.means, exact.means)


def test_a_fit_in_pieces_is_a_fit(toy: Toy):
    whole, pieces = GMMPrior().fit(toy.train), GMMPrior()
    for part in toy.train.split(70):
        pieces.partial_fit(part)
    assert torch.allclose(pieces.score(toy.test), whole.score(toy.test))


def test_the_logit_prior_is_the_energy_of_the_logits_and_has_no_floor(toy: Toy):
    prior = LogitPrior(toy.head)
    assert torch.allclose(prior.score(toy.test), Energy().score(toy.test))
    along = toy.head.weight[0] * torch.tensor([[1.0], [10.0], [100.0]])
    assert (prior.log_prob(along).diff() > 0).all()
    assert not hasattr(prior, "sample")


def test_an_unfitted_prior_says_so():
    for call in (lambda p: p.log_prob(normal(2, 3)), lambda p: p.sample(2)):
        with pytest.raises(NotFittedError, match=r"GMMPrior is not fitted yet"):
            call(GMMPrior())

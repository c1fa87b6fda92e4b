"""Laws of composition: the limits of beta, one scale for all, any detectors."""

import math
import warnings

import pytest
import torch
from torch import nn

from ood_lib import (
    GMM,
    HEAT,
    KNN,
    MSP,
    BenchmarkFeatures,
    Energy,
    Features,
    KLMatching,
    Mahalanobis,
    NotFittedError,
    ResidualEBM,
    compose,
    run_benchmark,
)
from ood_lib.detectors.compose import soft_extreme
from ood_lib.evaluation.verdict import SetScores
from tests.conftest import Toy, normal

U = 3 * normal(4, 50)


def test_the_limits_are_minimum_mean_and_maximum():
    assert torch.equal(soft_extreme(U, math.inf), U.amax(0)) and torch.equal(soft_extreme(U, -math.inf), U.amin(0))
    assert torch.equal(soft_extreme(U, 0.0), U.mean(0))
    for beta, limit in ((50.0, U.amax(0)), (-50.0, U.amin(0))):
        assert (soft_extreme(U, beta) - limit).abs().max() <= math.log(4) / 50 + 1e-9
    for beta in (1e-5, -1e-5, 1e-7):  # no jump at zero
        assert torch.allclose(soft_extreme(U, beta), U.mean(0), atol=1e-3)


def test_single_precision_is_enough_near_zero():
    for beta in (1e-5, -2e-6):
        assert torch.allclose(soft_extreme(U.float(), beta).double(), soft_extreme(U, beta), atol=1e-5)


def test_it_is_the_papers_formula_up_to_a_constant():
    for beta in (-2.0, 0.3, 7.0):
        paper = (beta * U).exp().sum(0).log() / beta
        assert torch.allclose(soft_extreme(U, beta), paper - math.log(4) / beta)


def test_it_grows_with_beta_and_with_each_member():
    values = torch.stack([soft_extreme(U, b) for b in (-math.inf, -3.0, -0.1, 0.0, 0.1, 3.0, math.inf)])
    assert (values.diff(dim=0) >= -1e-12).all()
    u = U.clone().requires_grad_()
    soft_extreme(u, 2.0).sum().backward()
    assert torch.allclose(u.grad, (2 * U).softmax(0))  # the weights


def test_members_are_brought_to_one_scale_on_the_whole_fit_set(toy: Toy):
    both = compose([KNN(k=5), Energy()]).fit(toy.train)
    u = both.standardized(toy.train)
    assert torch.allclose(u.mean(1), torch.zeros(2).double(), atol=1e-9)
    assert torch.allclose(u.std(1, correction=0), torch.ones(2).double())


@pytest.mark.parametrize("beta", [-math.inf, -1.0, 0.0, 2.0, math.inf])
def test_one_member_alone_and_a_member_twice_rank_as_the_member(toy: Toy, beta: float):
    order = Mahalanobis().fit(toy.train).score(toy.test).argsort()
    for members in ([Mahalanobis()], [Mahalanobis(), Mahalanobis()]):
        assert torch.equal(compose(members, beta).fit(toy.train).score(toy.test).argsort(), order)


def test_compositions_compose(toy: Toy):
    inner = compose([MSP(), Energy()], beta=1.0)
    outer = compose([inner, KNN(k=5)], beta=-1.0).fit(toy.train)
    u = outer.standardized(toy.test)
    assert torch.allclose(outer.score(toy.test), soft_extreme(u, -1.0))
    assert set(outer.reads) == {"logits", "penultimate"}


def test_detectors_that_are_ready_are_composed_as_they_are(toy: Toy):
    ready, other = KNN(k=5).fit(toy.train), KNN(k=5)
    half = toy.train[torch.arange(len(toy.train)) % 2 == 0]
    kept = compose([ready, other], refit=False).fit(half)
    assert torch.equal(kept.detectors[0].score(toy.test), KNN(k=5).fit(toy.train).score(toy.test))
    assert torch.equal(kept.detectors[1].score(toy.test), KNN(k=5).fit(half).score(toy.test))
    assert torch.allclose(kept.means[0], ready.score(half).double().mean())
    anew = compose([ready, other]).fit(half)
    assert torch.equal(*(member.score(toy.test) for member in anew.detectors))


def test_members_learn_from_what_their_recipe_says(toy: Toy):
    x = BenchmarkFeatures(toy.train, toy.val, toy.test, {}, {"far": toy.ood})
    held, own = KLMatching().fit(toy.val).score(toy.test), KNN(k=5).fit(toy.train).score(toy.test)
    both = compose([compose([KLMatching()]), KLMatching(), KNN(k=5)])

    def as_the_recipe_says() -> bool:
        (inner,), *others = both.detectors[0].detectors, *both.detectors[1:]
        return all(torch.equal(d.score(toy.test), s) for d, s in zip([inner, *others], [held, held, own]))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both.fit(toy.train, toy.val)
        assert as_the_recipe_says()
        run_benchmark({"both": both.fit(toy.val, toy.train)}, x)
        assert as_the_recipe_says()
        SetScores.of(both := compose([compose([KLMatching()]), KLMatching(), KNN(k=5)]), x)
        assert as_the_recipe_says()
        compose([KNN(k=5)]).fit(toy.train)
        compose([KLMatching().fit(toy.val)], refit=False).fit(toy.train)
    with pytest.warns(UserWarning, match="KLMatching learn from validation features"):
        compose([KNN(k=5), compose([KLMatching()])]).fit(toy.train)


def test_a_refit_that_fails_leaves_neither_scores_nor_the_old_threshold(toy: Toy):
    both = compose([KNN(k=5), MSP()]).fit(toy.train).calibrate(toy.val)
    with pytest.raises(ValueError, match=r"scores of \['MSP'\] are equal"):
        both.fit(Features(penultimate=normal(20, 32), logits=torch.zeros(20, 4)))
    for call in (both.score, both.is_ood):
        with pytest.raises(NotFittedError):
            call(toy.test)


def test_members_are_copies(toy: Toy):
    knn = KNN(k=5).fit(toy.val).calibrate(toy.test)
    before = knn.score(toy.test)
    first = compose([knn, Energy()]).fit(toy.train)
    scores = first.score(toy.test)
    compose([knn, knn]).fit(toy.ood)
    assert torch.equal(first.score(toy.test), scores)
    assert torch.equal(knn.score(toy.test), before) and not knn.threshold.isnan()
    knn.fit(toy.ood)
    assert torch.equal(first.score(toy.test), scores)


def test_the_prior_of_a_hybrid_is_a_copy(toy: Toy):
    prior, options = GMM(), {"updates": 2, "steps": 1, "hidden": (4,)}
    first = ResidualEBM(prior, **options).fit(toy.train)
    scores = first.score(toy.test)
    HEAT([prior, prior], **options).fit(toy.val)
    assert torch.equal(first.score(toy.test), scores) and not prior.fitted
    HEAT([first]).fit(toy.val)
    assert torch.equal(first.score(toy.test), scores)


def test_what_cannot_be_composed_is_named(toy: Toy):
    for members in ([], ["MSP"], [MSP(), nn.Linear(2, 2)]):
        with pytest.raises(ValueError, match="were given to compose"):
            compose(members)
    with pytest.raises(ValueError, match=r"detectors=KNN.* was given; expected a list of detectors"):
        compose(KNN())
    with pytest.raises(ValueError, match=r"priors=GMM.* was given; expected a list of priors"):
        HEAT(GMM())
    with pytest.raises(ValueError, match="beta=nan"):
        compose([MSP()], beta=math.nan)
    with pytest.raises(ValueError, match=r"scores of \['MSP'\] are equal"):
        compose([KNN(k=5), MSP()]).fit(Features(penultimate=normal(20, 3), logits=torch.zeros(20, 3)))
    with pytest.raises(NotFittedError):
        compose([MSP()]).standardized(toy.test)

"""Laws of HEAT: hybrids keep what the prior knows, mend what it gets wrong, and compose."""

import io
import itertools
import math
import warnings

import pytest
import torch

from ood_lib import (
    GMM,
    HEAT,
    KNN,
    DivergedError,
    FeatureFlow,
    Features,
    GMMPrior,
    LogitPrior,
    NotFittedError,
    ResidualEBM,
    compose,
)
from ood_lib.evaluation.metrics import auroc
from tests.conftest import Toy, normal, seeded

pytestmark = pytest.mark.filterwarnings("ignore:.*ranks almost as its prior")  # most trainings here are short

QUICK = {"updates": 20, "steps": 2, "hidden": (16, 16), "batch_size": 64}


def ring_and_arcs(seed: int, n: int = 700) -> Features:
    """Three classes in the plane: a ring with a hole, and two half-circles that open into each other."""
    draw = seeded(seed)
    turn = math.pi * torch.rand(3, n, generator=draw) * torch.tensor([[2.0], [1.0], [1.0]])
    turn[2] += math.pi
    centre = torch.tensor([[-3.5, 0.0], [3.0, 0.8], [3.0, -0.8]])
    z = centre[:, None] + 2 * torch.stack([turn.cos(), turn.sin()], 2) + 0.15 * torch.randn(3, n, 2, generator=draw)
    return Features(penultimate=z.flatten(0, 1), labels=torch.arange(3).repeat_interleave(n))


def away(points: torch.Tensor, train: Features, distance: float) -> torch.Tensor:
    """Those points that are farther than a distance from every training point."""
    return points[torch.cdist(points, train.penultimate).amin(1) > distance]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_hybrid_is_right_where_the_prior_is_blind_and_where_the_residual_never_was(seed: int):
    train, test = ring_and_arcs(seed), ring_and_arcs(100 + seed).penultimate
    net = {"hidden": (64, 64), "standardize": False}  # the network sees the plane as it is, as the paper's does
    hybrid = ResidualEBM(GMM(), lam=0.1, steps=0, updates=1000, seed=seed, **net).fit(train)
    blind = away(hybrid.prior.sample(4000, seeded(1)).float(), train, 0.5)
    far = away((torch.rand(8000, 2, generator=seeded(2)) - 0.5) * torch.tensor([24.0, 16.0]), train, 1.5)

    def on(energy, ood: torch.Tensor) -> float:
        with torch.no_grad():
            return auroc(energy(test), energy(ood))[0]

    assert on(lambda z: -hybrid.prior.log_prob(z), blind) < 0.60
    assert on(hybrid.energy, blind) >= 0.95
    assert on(hybrid.residual, far) < 0.85
    assert on(hybrid.energy, far) >= 0.99


# -- limits -----------------------------------------------------------------------------------------------------


def test_an_enormous_lambda_leaves_the_ranking_of_the_prior(toy: Toy):
    for t_p in (None, 3.0):
        hybrid = ResidualEBM(GMMPrior(), lam=1e6, prior_temperature=t_p, **QUICK).fit(toy.train)
        prior = hybrid.prior.score(toy.test)
        assert torch.equal(hybrid.score(toy.test).argsort(), prior.argsort())
        assert torch.allclose(hybrid.score(toy.test) * hybrid.t_p, prior, atol=1e-3)


def test_without_updates_the_hybrid_is_the_prior(toy: Toy):
    hybrid = ResidualEBM(GMMPrior(), prior_temperature=1.0, updates=0).fit(toy.train)
    assert torch.equal(hybrid.score(toy.test), GMMPrior().fit(toy.train).score(toy.test))


def test_without_steps_the_negatives_are_the_priors_samples(toy: Toy):
    plane = ring_and_arcs(0, 50)
    hybrid = ResidualEBM(GMM(), **QUICK | {"steps": 0}).fit(plane)
    assert torch.equal(hybrid.sample(30, seeded()), hybrid.prior.sample(30, seeded()).float())
    hybrid = ResidualEBM(GMMPrior(), **QUICK | {"steps": 0}).fit(toy.train)  # rectified features: so are negatives
    drawn = hybrid.prior.sample(30, seeded()).float().relu()
    assert torch.allclose(hybrid.sample(30, seeded()), drawn / drawn.norm(dim=1, keepdim=True))


def test_a_zero_residual_leaves_the_prior_as_it_is():
    hybrid = ResidualEBM(GMM(components=1), updates=0, steps=40).fit(ring_and_arcs(0))
    before, after = hybrid.prior.sample(4000, seeded(1)).float(), hybrid.sample(4000, seeded(2))
    assert torch.allclose(after.T.cov(), before.T.cov() / 0.95, rtol=0.1, atol=0.4)  # Euler's excess, step 0.1
    assert torch.allclose(after.mean(0), before.mean(0), atol=0.3)


@pytest.mark.parametrize("start", ["prior", "noise", "data", "persistent"])
def test_negatives_stay_where_features_lie(toy: Toy, start: str):
    hybrid = ResidualEBM(GMMPrior(), start=start, keep_starts=start == "noise", **QUICK).fit(toy.train)
    assert hybrid.positive and hybrid.score(toy.test).isfinite().all()
    if start == "data":
        with pytest.raises(ValueError, match="begin at training features"):
            hybrid.sample(5)
    else:
        drawn = hybrid.sample(50, seeded())
        assert (drawn >= 0).all() and torch.allclose(drawn.norm(dim=1), torch.ones(50))


def test_the_starts_differ(toy: Toy):
    starts = [{"start": s} for s in ("prior", "noise", "data", "persistent")] + [{"keep_starts": True}]
    scores = [ResidualEBM(GMMPrior(), **QUICK, **s).fit(toy.train).score(toy.test) for s in starts]
    assert all(not torch.equal(a, b) for i, a in enumerate(scores) for b in scores[:i])


def test_the_temperature_of_the_prior_is_the_spread_of_its_energy(toy: Toy):
    hybrid = ResidualEBM(GMMPrior(), **QUICK).fit(toy.train)
    assert hybrid.t_p.item() == pytest.approx(hybrid.prior.score(toy.train).std(correction=0).item(), rel=1e-4)
    assert ResidualEBM(GMMPrior(), prior_temperature=7.0, **QUICK).fit(toy.train).t_p == 7


def test_an_energy_that_is_no_density_counts_in_its_own_spread_however_narrow(toy: Toy):
    faint, flat = (torch.nn.Linear(toy.train.penultimate.shape[1], 3) for _ in range(2))
    for head, size in ((faint, 1e-2), (flat, 0.0)):
        torch.nn.init.normal_(head.weight, std=size)
    hybrid = ResidualEBM(LogitPrior(faint), **QUICK).fit(toy.train)
    assert hybrid.t_p.item() == pytest.approx(hybrid.prior.score(toy.train).std(correction=0).item(), rel=1e-4)
    assert hybrid.t_p < 1  # far below the spread of any Gaussian
    assert ResidualEBM(LogitPrior(flat), **QUICK).fit(toy.train).score(toy.test).isfinite().all()


def test_the_residual_respects_its_bound_and_the_diagnostics_tell(toy: Toy):
    hybrid = ResidualEBM(GMMPrior(), lam=2.0, **QUICK | {"updates": 150}).fit(toy.train)
    history = hybrid.history
    assert hybrid.residual(hybrid.points(toy.train)).mean().abs() <= 1 / (2 * 2.0) * 1.2
    assert {len(v) for v in vars(history).values() if isinstance(v, list)} == {150}
    assert history.gap_share[-1] == pytest.approx(2.0 * history.gap[-1]) and 0.1 < history.gap_share[-1] <= 1.2
    assert history.gap[0] == 0 and history.gap[-1] > 0.01 and history.loss[-1] < history.loss[0] == 0
    assert all(norm > 0 for norm in history.gradient_norm)


def test_a_training_that_hardly_moved_says_so_and_one_that_moved_does_not(toy: Toy):
    for updates, lam, told in ((2, 0.25, True), (100, 0.25, False), (0, 0.25, False), (2, 0.0, False)):
        changed = {"updates": updates, "lam": lam, "learning_rate": 0.01}
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ResidualEBM(GMMPrior(), **QUICK | changed).fit(toy.train)
        assert any("ranks almost as its prior" in str(w.message) for w in seen) == told


def test_the_factor_leads_from_the_prior_to_the_hybrid_as_it_was_trained(toy: Toy):
    trained = ResidualEBM(GMMPrior(), **QUICK).fit(toy.train)
    whole, drawn = trained.score(toy.test), trained.sample(5, seeded())
    scores = {}
    for factor in (0.0, 0.5, 1.0):
        fitted = ResidualEBM(GMMPrior(), factor=factor, **QUICK).fit(toy.train)  # training takes no notice of it
        trained.factor = factor  # neither do the weights, when it is set afterwards
        scores[factor] = fitted.score(toy.test)
        assert torch.equal(trained.score(toy.test), scores[factor])
        assert torch.equal(trained.sample(5, seeded()), drawn)
    assert torch.equal(scores[1.0], whole)
    assert torch.allclose(scores[0.0] * trained.t_p, GMMPrior().fit(toy.train).score(toy.test), rtol=1e-5)
    assert torch.allclose(scores[0.5], (scores[0.0] + whole) / 2, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_another_factor_forgets_the_threshold_and_nothing_else(toy: Toy, mode):
    with mode():
        hybrid = ResidualEBM(GMMPrior(), **QUICK).fit(toy.train).calibrate(toy.test)
    refused = hybrid.is_ood(toy.test)
    hybrid.factor = 1.0  # what it is
    assert torch.equal(hybrid.is_ood(toy.test), refused)
    with pytest.raises(ValueError, match="factor=-1"):
        hybrid.factor = -1.0
    assert torch.equal(hybrid.is_ood(toy.test), refused)
    hybrid.factor = 5.0
    with pytest.raises(NotFittedError, match="calibrate"):
        hybrid.is_ood(toy.test)
    with pytest.raises(ValueError, match="wide"):
        hybrid.score(Features(penultimate=toy.test.penultimate[:, :-1]))
    assert hybrid.calibrate(toy.test).is_ood(toy.test).double().mean() <= 0.05
    assert hybrid.arguments()["factor"] == 5.0 and "factor=5.0" in repr(hybrid)


def test_chains_start_from_a_detector_that_draws(toy: Toy):
    head = torch.nn.Linear(toy.train.penultimate.shape[1], 3)
    hybrid = ResidualEBM(LogitPrior(head), start=GMM(), **QUICK | {"steps": 0}).fit(toy.train)
    assert torch.equal(hybrid.sample(30, seeded()), GMM().fit(toy.train).sample(30, seeded()).float().relu())
    again = ResidualEBM(LogitPrior(head), start=GMM(), **QUICK | {"steps": 0})
    again.load_state_dict(hybrid.state_dict())
    assert torch.equal(again.sample(9, seeded()), hybrid.sample(9, seeded()))
    noise = ResidualEBM(LogitPrior(head), **QUICK | {"steps": 0}).fit(toy.train)
    assert hybrid.t_p == noise.t_p  # where chains start changes no unit
    same = ResidualEBM(GMMPrior(), start=GMMPrior(), **QUICK).fit(toy.train).score(toy.test)
    assert torch.equal(same, ResidualEBM(GMMPrior(), **QUICK).fit(toy.train).score(toy.test))
    for start in (KNN(), GMMPrior("style")):
        with pytest.raises(ValueError, match="expected a detector with sample"):
            ResidualEBM(LogitPrior(head), start=start)


def test_the_average_of_the_weights_is_kept(toy: Toy):
    last = ResidualEBM(GMMPrior(), average=0.0, **QUICK).fit(toy.train)
    kept = ResidualEBM(GMMPrior(), average=0.9, **QUICK).fit(toy.train)
    assert kept.history == last.history  # the same run
    assert kept.residual(kept.points(toy.test)).abs().mean() < last.residual(last.points(toy.test)).abs().mean()


def test_the_seed_decides(toy: Toy):
    a, b, c = (ResidualEBM(GMMPrior(), seed=s, **QUICK).fit(toy.train).score(toy.test) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_any_kind_of_mixture_gives_a_metric():
    plane = ring_and_arcs(0, 60)
    mixtures = (GMM(covariance="full"), GMM(covariance="diagonal"), GMM(components=2))
    for prior in (*mixtures, LogitPrior(torch.nn.Linear(2, 3))):
        hybrid = ResidualEBM(prior, **QUICK).fit(plane)
        assert hybrid.metric.shape == (2, 2) and hybrid.score(plane).isfinite().all()
    assert ResidualEBM(GMM(), precondition=False, **QUICK).fit(plane).metric.numel() == 0


def test_as_many_classes_as_features_leave_the_metric_of_a_diagonal_mixture_diagonal():
    z, labels = normal(2, 300, 2) * torch.tensor([[[3.0, 1.0]], [[0.3, 3.0]]]), torch.arange(2).repeat_interleave(300)
    train = Features(penultimate=z.flatten(0, 1), labels=labels)
    hybrid = ResidualEBM(GMM(covariance="diagonal"), updates=0).fit(train)
    assert torch.allclose(hybrid.metric, z.var(1, correction=0).mean(0).sqrt().diag(), rtol=1e-5)


@pytest.mark.parametrize("place", [0.0, 30.0])
def test_plain_steps_leave_the_prior_as_it_is_wherever_it_lies_and_however_narrow(place: float):
    train = Features(penultimate=place + normal(600, 4) * torch.tensor([1.0, 1.0, 0.01, 0.01]))
    hybrid = ResidualEBM(GMM(components=1), precondition=False, updates=2).fit(train)
    widths = hybrid.sample(2000, seeded()).std(0) / train.penultimate.std(0)
    assert torch.allclose(widths, torch.ones(4).double(), atol=0.1)


def test_the_density_of_a_hybrid_is_the_one_that_it_draws_from():
    plane = ring_and_arcs(0, 200)
    hybrid, hot = (ResidualEBM(GMM(), temperature=t, updates=0).fit(plane) for t in (None, 0.5))
    twice, z = ResidualEBM(ResidualEBM(GMM(), updates=0), updates=0).fit(plane), plane.penultimate
    for without_residual in (hybrid, twice):
        assert torch.allclose(without_residual.log_prob(z), hybrid.prior.log_prob(z), atol=1e-4)
    assert torch.allclose(hot.log_prob(z), -hot.energy(z) / 0.5)


def test_a_flow_that_normalizes_keeps_its_hybrid_on_the_sphere(toy: Toy):
    hybrid = ResidualEBM(FeatureFlow(updates=0), updates=0).fit(toy.train)
    for z in (hybrid.points(toy.train), hybrid.sample(50, seeded())):
        assert torch.allclose(z.norm(dim=1), torch.ones(len(z)).to(z))
    raw = ResidualEBM(FeatureFlow(normalize=False, updates=0), updates=0).fit(toy.train)
    assert torch.equal(raw.points(toy.train), toy.train.penultimate)


def test_the_default_device_changes_no_draw(toy: Toy):
    hybrid = ResidualEBM(LogitPrior(toy.head), start="persistent", **QUICK).fit(toy.train)
    batch, pool = toy.train.penultimate[:9].float(), hybrid.sample(50, seeded())
    with torch.device("meta"):
        there = hybrid._negatives(batch, pool.clone(), seeded(), hybrid._target())
    assert torch.equal(there, hybrid._negatives(batch, pool.clone(), seeded(), hybrid._target()))


# -- HEAT -------------------------------------------------------------------------------------------------------


def test_heat_is_the_composition_of_its_hybrids(toy: Toy):
    priors = lambda: [GMMPrior(), LogitPrior(toy.head)]  # noqa: E731
    heat = HEAT(priors(), beta=1.0, **QUICK).fit(toy.train)
    other = compose([ResidualEBM(p, **QUICK) for p in priors()], beta=1.0).fit(toy.train)
    assert torch.equal(heat.score(toy.test), other.score(toy.test))
    assert [h.start for h in heat.hybrids] == ["prior", "noise"]
    own = HEAT([ResidualEBM(GMMPrior(), lam=3.0, **QUICK), LogitPrior(toy.head)])
    assert [h.lam for h in own.hybrids] == [3.0, 0.25]


def test_a_hybrid_can_be_the_prior_of_another(toy: Toy):
    twice = ResidualEBM(ResidualEBM(GMMPrior(), **QUICK), **QUICK).fit(toy.train)
    assert twice.score(toy.test).isfinite().all()
    assert torch.allclose(twice.sample(5, seeded()).norm(dim=1), torch.ones(5))


def test_what_was_learnt_survives_a_file(toy: Toy):
    heat = HEAT([GMMPrior(), LogitPrior(toy.head)], **QUICK).fit(toy.train).calibrate(toy.val)
    file = io.BytesIO()
    torch.save(heat.state_dict(), file)
    file.seek(0)
    fresh = HEAT([GMMPrior(), LogitPrior(torch.nn.Linear(32, 4).double())], **QUICK)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.is_ood(toy.ood), heat.is_ood(toy.ood))
    hybrid, again = heat.hybrids[0], fresh.hybrids[0]
    assert torch.equal(again.residual(again.points(toy.test)), hybrid.residual(hybrid.points(toy.test)))
    assert torch.equal(again.sample(9, seeded()), hybrid.sample(9, seeded()))


# -- what cannot work -------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named(toy: Toy):
    with pytest.raises(ValueError, match=r"a KNN was given as prior; expected .* log_prob"):
        ResidualEBM(KNN())
    with pytest.raises(ValueError, match="a LogitPrior cannot be sampled"):
        ResidualEBM(LogitPrior(toy.head), start="prior")
    for wrong in ({"start": "nowhere"}, {"lam": -1.0}, {"steps": -1}, {"average": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            ResidualEBM(GMM(), **wrong)
    positive = ["prior_temperature", "step_size", "batch_size"]
    numbers = [*positive, "lam", "steps", "temperature", "noise", "decay", "updates", "learning_rate", "average"]
    for name, value in [*itertools.product(numbers, (-1, math.nan, math.inf)), *((name, 0) for name in positive)]:
        with pytest.raises(ValueError, match=f"^{name}={value} was given; expected a"):
            ResidualEBM(GMM(), **{name: value})
    with pytest.raises(ValueError, match=r"options \['lam'\]"):
        HEAT([ResidualEBM(GMM())], lam=1.0)
    with pytest.raises(ValueError, match="were given to compose"):
        HEAT([])


def test_before_the_fit_there_is_nothing_to_ask(toy: Toy):
    hybrid, z = ResidualEBM(GMMPrior()), toy.test.penultimate
    for call in (hybrid.energy, hybrid.residual, hybrid.log_prob, lambda z: hybrid.sample(3)):
        with pytest.raises(NotFittedError):
            call(z)


def test_a_refit_that_is_broken_off_leaves_neither_scores_nor_the_old_threshold(toy: Toy, monkeypatch):
    hybrid = ResidualEBM(GMMPrior(), **QUICK).fit(toy.train).calibrate(toy.val)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(hybrid, "_update", stop)
    with pytest.raises(KeyboardInterrupt):
        hybrid.fit(toy.val)
    for call in (hybrid.score, hybrid.is_ood):
        with pytest.raises(NotFittedError):
            call(toy.test)


def test_divergence_stops_the_training_and_keeps_the_last_good_weights(toy: Toy):
    hybrid = ResidualEBM(GMMPrior(), **QUICK | {"learning_rate": 300.0, "updates": 50})
    with pytest.raises(DivergedError, match=r"stopped at update \d+ of 50.*The weights before that are kept"):
        hybrid.fit(toy.train)
    assert 0 < len(hybrid.history.loss) < 50
    assert hybrid.score(toy.test).isfinite().all()
    chains = ResidualEBM(GMM(), step_size=1e3, precondition=False, **QUICK | {"steps": 60})
    with pytest.raises(DivergedError, match=r"update 0 of 20: the energy became .* at Langevin step \d+: .*step_size"):
        chains.fit(ring_and_arcs(0, 50))


def test_features_of_another_scale_are_noticed(toy: Toy):
    hybrid = ResidualEBM(LogitPrior(toy.head), **QUICK).fit(toy.train)
    with pytest.warns(UserWarning, match=r"3e\+02 times as long"):
        hybrid.score(Features(penultimate=255 * toy.test.penultimate))
    with warnings.catch_warnings(action="error"):
        hybrid.score(toy.test)

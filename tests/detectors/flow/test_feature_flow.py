"""Laws of the feature flow: where it starts, what it reads, what it keeps.  Those of every detector are elsewhere."""

import io

import pytest
import torch
import zuko
from torch import nn
from torch.nn import functional as F

import ood_lib
from ood_lib import GMM, FeatureFlow, Features, Mahalanobis, NotFittedError
from ood_lib.detectors.flow.bijections import Coupling
from ood_lib.detectors.flow.feature_flow import DEFAULTS
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.training.checkpoint import Checkpoint
from tests.conftest import normal

K = 6
LABELS = torch.arange(300) % 3
Z = normal(300, K) @ normal(K, K, seed=1) + 4 * normal(3, K, seed=2)[LABELS]
TRAIN = Features(penultimate=Z, labels=LABELS)
QUERIES = Features(penultimate=8 * normal(60, K, seed=3))
EXACT = {"noise": 0.0, "normalize": False, "updates": 0}
SHORT = {"updates": 30, "check_every": 10, "batch_size": 50}


def ranks(scores: torch.Tensor) -> list[int]:
    return scores.argsort().tolist()


# -- where it starts ----------------------------------------------------------------------------------------------


def test_untrained_it_ranks_exactly_like_mahalanobis():
    one = Features(penultimate=Z, labels=torch.zeros(300).long())
    distance = Mahalanobis().fit(one).score(QUERIES)
    energy = FeatureFlow(**EXACT).fit(TRAIN).score(QUERIES)
    assert ranks(energy) == ranks(distance)
    assert torch.allclose(energy.diff(), distance.diff() / 2, rtol=1e-9)


def test_untrained_on_the_sphere_it_ranks_like_mahalanobis_of_unit_features():
    def unit(features: Features) -> Features:
        z = F.normalize(features.penultimate, dim=1)
        return Features(penultimate=z, labels=torch.zeros(len(z)).long())

    energy = FeatureFlow(**EXACT | {"normalize": True}).fit(TRAIN).score(QUERIES)
    assert ranks(energy) == ranks(Mahalanobis().fit(unit(TRAIN)).score(unit(QUERIES)))


def test_untrained_with_classes_it_is_the_tied_mixture():
    energy = FeatureFlow(**EXACT, class_base=True).fit(TRAIN).score(QUERIES)
    assert torch.allclose(energy, GMM(ridge=0).fit(TRAIN).score(QUERIES), rtol=1e-9)


def test_noise_is_a_share_of_the_mean_deviation():
    energy = FeatureFlow(**EXACT | {"noise": 0.5}).fit(TRAIN).score(QUERIES)
    cov = torch.cov(Z.T, correction=0)
    blurred = cov + 0.25 * cov.diagonal().mean() * torch.eye(K).double()
    gauss = torch.distributions.MultivariateNormal(Z.mean(0), blurred)
    assert torch.allclose(energy, -gauss.log_prob(QUERIES.penultimate), rtol=1e-9)


# -- what it reads --------------------------------------------------------------------------------------------------


def test_length_is_not_read_unless_asked_for():
    longer = Features(penultimate=3 * QUERIES.penultimate)
    on, off = (FeatureFlow(normalize=n, **SHORT).fit(TRAIN) for n in (True, False))
    assert torch.allclose(on.score(longer), on.score(QUERIES))
    assert not torch.allclose(off.score(longer), off.score(QUERIES))


def test_labels_are_read_by_a_base_with_classes_only():
    bare = Features(penultimate=Z)
    assert torch.equal(FeatureFlow(**SHORT).fit(bare).score(QUERIES), FeatureFlow(**SHORT).fit(TRAIN).score(QUERIES))
    with pytest.raises(ValueError, match="needs the labels"):
        FeatureFlow(class_base=True).fit(bare)


def test_held_out_rows_are_not_trained_on(monkeypatch):
    made = []
    init = FlowTraining.__init__
    monkeypatch.setattr(FlowTraining, "__init__", lambda self, *a, **k: (init(self, *a, **k), made.append(self))[0])
    FeatureFlow(holdout=0.2, **SHORT).fit(TRAIN)
    rows, held = made[0].rows, made[0].held
    assert len(held) == 60 and torch.equal(torch.cat([rows, held]).sort().values, torch.arange(300))


def test_features_may_lie_in_a_file(tmp_path):
    TRAIN.save(tmp_path / "train.safetensors")
    mapped = torch.from_file(str(tmp_path / "z"), shared=True, size=Z.numel(), dtype=Z.dtype).view(Z.shape).copy_(Z)
    expected = FeatureFlow(**SHORT).fit(TRAIN).score(QUERIES)
    for train in (Features.load(tmp_path / "train.safetensors"), Features(penultimate=mapped)):
        assert torch.equal(FeatureFlow(**SHORT).fit(train).score(QUERIES), expected)


# -- scores -----------------------------------------------------------------------------------------------------


def test_the_two_sided_score_is_the_distance_to_the_usual_likelihood():
    one, two = (FeatureFlow(two_sided=t, **SHORT).fit(TRAIN) for t in (False, True))
    assert torch.allclose(two.score(QUERIES), (one.score(QUERIES) + one.usual).abs())
    everything = FeatureFlow(holdout=0, **SHORT).fit(TRAIN)
    assert everything.usual == pytest.approx(everything.log_prob(Z).mean().item())
    assert one.usual != everything.usual


def test_log_prob_has_a_gradient_and_weights_have_none():
    flow = FeatureFlow(**SHORT).fit(TRAIN)
    z = QUERIES.penultimate.clone().requires_grad_()
    flow.log_prob(z).sum().backward()
    assert z.grad.abs().sum() > 0 and not any(p.requires_grad for p in flow.parameters())


def test_samples_are_likely():
    flow = FeatureFlow(normalize=False, **SHORT).fit(TRAIN)
    drawn = flow.sample(500, torch.Generator().manual_seed(0))
    assert drawn.shape == (500, K)
    gap = flow.log_prob(drawn).mean() - flow.log_prob(Z).mean()
    assert abs(gap.item()) < 1
    with pytest.raises(NotFittedError):
        FeatureFlow().sample(3)


@pytest.mark.parametrize("options", [{}, {"flow": "paper"}, {"class_base": True}, {"whiten": False}], ids=str)
def test_any_kind_is_saved_and_loaded(options):
    flow = FeatureFlow(**SHORT, **options).fit(TRAIN)
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    fresh = FeatureFlow(**SHORT, **options)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.score(QUERIES), flow.score(QUERIES))


# -- recipes and engines ----------------------------------------------------------------------------------------


def test_one_argument_selects_the_recipe_of_the_paper_and_what_is_given_wins():
    paper = FeatureFlow("paper", noise=0.02)
    assert (paper.updates, paper.learning_rate, paper.batch_size) == (5125, 1e-5, 250)
    assert (paper.noise, paper.whiten, paper.holdout) == (0.02, False, 0.0) and DEFAULTS["paper"].noise == 0
    fitted = FeatureFlow("paper", updates=3, batch_size=50).fit(TRAIN)
    kinds = [type(layer).__name__ for layer in fitted.density.layers]
    assert kinds == ["Coupling", "InvertibleLinear", "ActNorm"] * 10


class Diagonal(nn.Module):
    """A density that is no flow of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(K))

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.mean, 1).log_prob(x).sum(1)


ENGINES = {"plain": Diagonal(), "zuko": zuko.flows.NSF(K, transforms=1, hidden_features=(8,))}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_any_density_can_take_the_place_of_the_flow(engine):
    before = [p.clone() for p in engine.parameters()]
    flow = FeatureFlow(engine, **SHORT).fit(TRAIN)
    if engine is ENGINES["zuko"]:  # the other one starts at its best
        assert max(flow.history.val) > flow.history.val[0]
    assert all(torch.equal(a, b) for a, b in zip(before, engine.parameters()))  # a copy was trained
    fresh = FeatureFlow(engine, **SHORT)
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(fresh.score(QUERIES), flow.score(QUERIES))
    assert not any(name.startswith("flow") for name in flow.state_dict())


# -- stopping and going on ----------------------------------------------------------------------------------------


def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "flow.pt"
    whole = FeatureFlow(**SHORT).fit(TRAIN)
    save = Checkpoint.save

    def stop(self, training):
        save(self, training)
        if training.update == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        FeatureFlow(checkpoint=str(path), **SHORT).fit(TRAIN)
    monkeypatch.setattr(Checkpoint, "save", save)
    with pytest.raises(ValueError, match="belongs to other data or options"):
        FeatureFlow(checkpoint=str(path), **SHORT | {"batch_size": 40}).fit(TRAIN)
    with pytest.raises(ValueError, match="belongs to other data or options"):
        FeatureFlow(checkpoint=str(path), **SHORT).fit(Features(penultimate=Z + 1e-3))
    again = FeatureFlow(checkpoint=str(path), **SHORT).fit(TRAIN)
    assert torch.equal(again.score(QUERIES), whole.score(QUERIES)) and not path.exists()


def test_a_lost_likelihood_leaves_a_detector_that_scores():
    flow = FeatureFlow("paper", learning_rate=3.0, updates=500, check_every=2, batch_size=50)
    with pytest.raises(ValueError, match=r"no longer finite .* lost in layer"):
        flow.fit(TRAIN)
    assert flow.score(TRAIN).isfinite().all()


def test_a_refit_that_loses_the_likelihood_forgets_the_threshold():
    flow = FeatureFlow("paper", learning_rate=3.0, updates=0, check_every=2, batch_size=50).fit(TRAIN).calibrate(TRAIN)
    flow.updates = 500
    with pytest.raises(ValueError, match="no longer finite"):
        flow.fit(TRAIN)
    with pytest.raises(NotFittedError, match="no threshold yet"):
        flow.is_ood(QUERIES)


def test_a_refit_that_never_begins_changes_nothing(tmp_path):
    flow = FeatureFlow(checkpoint=str(tmp_path / "flow.pt"), **SHORT).fit(TRAIN).calibrate(TRAIN)
    before = flow.is_ood(QUERIES)
    (tmp_path / "flow.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        flow.fit(TRAIN[:100])
    assert torch.equal(flow.is_ood(QUERIES), before)


def test_each_look_sees_the_flow_as_it_stands_and_changes_nothing():
    plain = FeatureFlow(holdout=0, **SHORT).fit(TRAIN)
    seen, start = [], FeatureFlow(holdout=0, **SHORT | {"updates": 0}).fit(TRAIN)

    def look(flow):
        flow.usual.zero_()
        seen.append((flow.history.update[-1], flow.score(QUERIES)))

    watched = FeatureFlow(holdout=0, each_look=look, **SHORT).fit(TRAIN)
    assert [update for update, _ in seen] == plain.history.update == [0, 10, 20, 30]
    assert torch.equal(seen[0][1], start.score(QUERIES)) and torch.equal(seen[-1][1], plain.score(QUERIES))
    assert torch.equal(watched.score(QUERIES), plain.score(QUERIES)) and watched.usual == plain.usual


def test_what_is_kept_is_one_of_the_looks_that_were_seen():
    seen = []
    options = SHORT | {"updates": 400, "learning_rate": 3e-2, "patience": 5}
    flow = FeatureFlow(each_look=lambda f: seen.append(f.score(QUERIES)), noise=0.0, **options).fit(TRAIN[:30])
    best = max(range(len(seen)), key=flow.history.val.__getitem__)
    assert best < len(seen) - 1  # it did overfit
    assert torch.equal(flow.score(QUERIES), seen[best]) and not torch.equal(seen[-1], seen[best])


def test_layers_and_widths_are_those_that_were_asked_for():
    flow = FeatureFlow(layers=3, hidden=[5], **SHORT | {"updates": 0}).fit(TRAIN)
    couplings = [layer for layer in flow.density.layers if isinstance(layer, Coupling)]
    assert [[x.out_features for x in c.nets[0] if isinstance(x, nn.Linear)] for c in couplings] == [[5, K]] * 3
    assert len([x for x in FeatureFlow(updates=0).fit(TRAIN).density.layers if isinstance(x, Coupling)]) == 8
    with pytest.raises(ValueError, match=r'layers=3, hidden=None was given .* expected flow="coupling"'):
        FeatureFlow("paper", layers=3)


# -- bad input --------------------------------------------------------------------------------------------------


def test_features_without_direction_or_variation_stay_finite_and_are_told():
    odd = Z.clone()
    odd[:3], odd[:, 5] = 0, 0
    with pytest.warns(UserWarning) as told:
        flow = FeatureFlow(**SHORT).fit(Features(penultimate=odd))
    told = "\n".join(str(w.message) for w in told)
    assert "3 features have length 0" in told and "1 of 6 features never vary" in told
    assert flow.score(Features(penultimate=odd)).isfinite().all()
    with pytest.warns(UserWarning, match="a thousandth as wide"):
        still = FeatureFlow(**EXACT).fit(Features(penultimate=odd))
    assert still.score(QUERIES).min() > still.score(Features(penultimate=odd)).max()


def test_features_that_are_all_equal_are_refused_and_nothing_is_learned():
    flow = FeatureFlow(**SHORT).fit(TRAIN)
    scores = flow.score(QUERIES)
    with pytest.raises(ValueError, match="all equal: they have no density"):
        flow.fit(Features(penultimate=torch.ones(50, K).double()))
    assert torch.equal(flow.score(QUERIES), scores)


def test_fewer_rows_than_a_batch_are_enough():
    assert FeatureFlow(updates=5).fit(TRAIN[:20]).score(QUERIES).isfinite().all()


def test_wrong_arguments_are_named():
    wrong = {
        "noise": -1, "updates": -1, "batch_size": 0, "learning_rate": -1.0, "check_every": 0, "patience": 0,
        "holdout": 1.0, "flow": "planar", "layers": 0,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name}="):
            FeatureFlow(**{name: value})
    with pytest.raises(ValueError, match="class_base=True needs a flow of this library"):
        FeatureFlow(Diagonal(), class_base=True)
    with pytest.raises(ValueError, match=r'whiten=True was given with flow="paper"'):
        FeatureFlow("paper", whiten=True)


class Brittle(nn.Module):
    """A density that overflows beyond length 10, as an unclamped flow does."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def log_prob(self, x):
        far = x.norm(dim=1) > 10
        return torch.where(far, torch.full_like(x[:, 0], float("nan")), -(self.scale * x).square().sum(1))


def test_where_the_density_overflows_a_feature_is_as_strange_as_can_be():
    z = normal(200, 4, dtype=torch.float32)
    detector = FeatureFlow(Brittle(), normalize=False, updates=0).fit(Features(penultimate=z))
    scores = detector.score(Features(penultimate=torch.cat([z[:5], 100 * z[5:10]])))
    assert scores.isfinite().all() and (scores[5:] == torch.finfo(torch.float32).max).all()
    assert scores[:5].max() < 100


def test_a_flow_that_was_looked_at_is_saved_and_loaded_like_any_other(tmp_path):
    watched = FeatureFlow(each_look=lambda flow: None, **SHORT).fit(TRAIN)
    watched.save(tmp_path / "flow.safetensors")
    plain = FeatureFlow(**SHORT)
    plain.load_state_dict(watched.state_dict())
    for again in (plain, ood_lib.load(tmp_path / "flow.safetensors")):
        assert torch.equal(again.score(TRAIN), watched.score(TRAIN))


def test_what_is_no_flow_is_refused():
    with pytest.raises(ValueError, match="flow=3 was given; expected a name, or a module"):
        FeatureFlow(flow=3)

"""Laws of the flow: every layer is invertible and knows its Jacobian, and the density is one."""

import math

import pytest
import torch
import zuko
from torch import nn
from torch.autograd.functional import jacobian
from torch.distributions import AffineTransform, MultivariateNormal
from zuko.flows.coupling import GeneralCouplingTransform

from ood_lib import GMM, Features
from ood_lib.detectors.flow.bijections import ActNorm, Coupling, InvertibleLinear, Rotation, Whitening
from ood_lib.detectors.flow.flow import Flow, StandardNormal, coupling_flow, glow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.detectors.moments import class_moments
from tests.conftest import normal, seeded

K = 6
X = normal(200, K) @ normal(K, K, seed=1) + 3
LABELS = torch.arange(200) % 3
QUERIES = 5 * normal(30, K, seed=3)


def shaken(module: nn.Module, seed: int = 7) -> nn.Module:
    """In float64, with every parameter moved from its special start."""
    module.double()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=seeded(seed), dtype=torch.float64)
    return module


def white(dim: int) -> Whitening:
    layer = Whitening(dim).double()
    layer.initialize(class_moments(X[:, :dim], torch.zeros(200).long()))
    return layer


MAPS = {
    "ActNorm": lambda: shaken(ActNorm(K)),
    "Whitening": lambda: white(K),
    "Rotation": lambda: Rotation(K).double(),
    "InvertibleLinear": lambda: shaken(InvertibleLinear(K)),
    "Coupling": lambda: shaken(Coupling(K, [8])),
    "Coupling flipped": lambda: shaken(Coupling(K, [8, 8], flip=True)),
    "Coupling of odd width": lambda: shaken(Coupling(5, [8])),
    "Coupling unbound": lambda: shaken(Coupling(K, [8], clamp=None, separate=True)),
    "coupling_flow": lambda: shaken(coupling_flow(K, 4, [8])),
    "coupling_flow whitened": lambda: shaken(coupling_flow(K, 4, [8], whiten=True)),
    "coupling_flow unrotated": lambda: shaken(coupling_flow(K, 4, [8], rotate=False)),
    "glow": lambda: shaken(glow(K, 3)),
}
every = pytest.mark.parametrize("make", MAPS.values(), ids=MAPS.keys())


def rows(make, n=20):
    return normal(n, 5 if make is MAPS["Coupling of odd width"] else K, seed=4)


# -- maps -------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_inverse_undoes_forward(make, dtype, tolerance):
    layer, x = make().to(dtype), rows(make).to(dtype)
    with torch.no_grad():
        there, back = layer(x)[0], layer.inverse(x)
        assert (layer.inverse(there) - x).abs().max() <= tolerance * x.abs().max()
        assert (layer(back)[0] - x).abs().max() <= tolerance * max(1, back.abs().max().item())


@every
def test_log_det_is_that_of_the_jacobian(make):
    layer, x = make(), rows(make, 5)
    exact = torch.stack([torch.linalg.slogdet(jacobian(lambda r: layer(r[None])[0][0], row)).logabsdet for row in x])
    assert torch.allclose(layer(x)[1].expand(5), exact, atol=1e-9)


@every
def test_rows_do_not_know_of_each_other(make):
    layer, x = make(), rows(make)
    y, log_det = layer(x)
    alone, its = layer(x[3:4])
    assert torch.allclose(alone[0], y[3], atol=1e-12)
    assert torch.allclose(its.expand(1), log_det.expand(20)[3], atol=1e-12)


def test_a_coupling_leaves_one_half_alone_and_its_jacobian_is_triangular():
    for flip, stays in ((False, slice(0, 3)), (True, slice(3, 6))):
        layer, x = shaken(Coupling(K, [8], flip=flip)), rows(None)
        assert torch.equal(layer(x)[0][:, stays], x[:, stays])
        full = jacobian(lambda r: layer(r[None])[0][0], x[0])  # noqa: B023
        assert torch.equal(full[stays, stays], torch.eye(3).double())
        assert (full[stays].abs().sum(1) == 1).all()  # what stays depends on nothing else


def test_couplings_start_as_the_identity():
    x = normal(20, K)
    for layer in (Coupling(K, [8]).double(), Coupling(K, [8], flip=True, clamp=None, separate=True).double()):
        y, log_det = layer(x)
        assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(20).double())


def test_the_clamp_bounds_every_stretch():
    layer = shaken(Coupling(K, [8], clamp=2.0))
    s, _ = layer.scale_shift(1e6 * normal(50, 3))
    assert 1.9 < s.abs().max() <= 2
    unbound, _ = shaken(glow(K, 1)).layers[0].scale_shift(1e3 * normal(9, 3))
    assert unbound.abs().max() > 2


def test_actnorm_standardises_its_batch_and_keeps_what_never_varies_finite():
    layer = ActNorm(K).double()
    layer.initialize(X)
    y, _ = layer(X)
    assert torch.allclose(y.mean(0), torch.zeros(K).double(), atol=1e-12)
    assert torch.allclose(y.std(0, correction=0), torch.ones(K).double(), atol=1e-12)
    flat = X.clone()
    flat[:, 2] = 5
    layer.initialize(flat)
    y, log_det = layer(flat)
    assert y.isfinite().all() and log_det.isfinite() and (y[:, 2] == 0).all()


def test_whitening_makes_the_covariance_one_and_inside_classes_when_there_are_classes():
    y, _ = white(K)(X)
    assert torch.allclose(y.T @ y / 200, torch.eye(K).double(), atol=1e-10) and y.mean(0).abs().max() < 1e-10
    layer = Whitening(K).double()
    layer.initialize(class_moments(X, LABELS))
    y, _ = layer(X)
    assert torch.allclose(class_moments(y, LABELS).scatter / 200, torch.eye(K).double(), atol=1e-10)


def test_rotations_and_learnt_matrices_start_orthogonal():
    q = Rotation(K).double().matrix
    assert torch.allclose(q @ q.T, torch.eye(K).double(), atol=1e-6)
    w = InvertibleLinear(K).double()(torch.eye(K).double())[0]
    assert torch.allclose(w @ w.T, torch.eye(K).double(), atol=1e-6)


# -- the density ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_mass_of_a_trained_flow_in_the_plane_is_one(rotate, classes):
    angle = 2 * math.pi * torch.rand(600, generator=seeded()).double()
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    flow = coupling_flow(2, 6, [32, 32], rotate=rotate, classes=classes).double()
    labels = (angle / (2 * math.pi) * 3).long() if classes else None
    flow.initialize(ring, class_moments(ring, torch.zeros(600).long() if labels is None else labels, "diagonal"))
    FlowTraining(flow, ring, labels, noise=0.2, learning_rate=5e-3).run(80)
    side = torch.linspace(-8, 8, 161, dtype=torch.float64)
    with torch.no_grad():
        log_prob = flow.log_prob(torch.cartesian_prod(side, side))
        assert flow.log_prob(ring).mean() - flow.log_prob(0 * ring).mean() > 0.5  # it has found the hole
    assert log_prob.exp().sum().item() * 0.1**2 == pytest.approx(1, abs=0.01)


def test_the_same_weights_in_zuko_give_the_same_density():
    ours = shaken(Flow([Coupling(K, [16, 16], flip) for flip in (False, True)], StandardNormal(K)))

    def affine(s, t):  # our coupling, in the parts that zuko offers
        s = 2 * torch.tanh(s / 2)
        return AffineTransform(-t * torch.exp(-s), torch.exp(-s))

    masks = [torch.arange(K) < K // 2, torch.arange(K) >= K // 2]  # True: it stays
    couplings = [GeneralCouplingTransform(K, mask=m, univariate=affine, hidden_features=(16, 16)) for m in masks]
    normal_base = zuko.distributions.DiagNormal, torch.zeros(K), torch.ones(K)
    theirs = zuko.lazy.Flow(couplings, zuko.lazy.UnconditionalDistribution(*normal_base, buffer=True)).double()
    for layer, coupling in zip(ours.layers, couplings):
        mine, his = ([m for m in net if hasattr(m, "weight")] for net in (layer.nets[0], coupling.hyper))
        for a, b in zip(mine, his):
            b.load_state_dict(a.state_dict())
        for values in his[-1].parameters():  # zuko's net alternates between s and t
            values.data = torch.stack(values.data.chunk(2), 1).flatten(0, 1)
    assert torch.allclose(ours.log_prob(X), theirs().log_prob(X), rtol=1e-12)
    assert ours.log_prob(X).std() > 1


def test_a_whitened_start_is_the_gaussian_fit():
    flow = coupling_flow(K, whiten=True).double()
    flow.initialize(X, class_moments(X, torch.zeros(200).long()))
    gauss = GMM(components=1, ridge=0).fit(Features(penultimate=X))
    assert torch.allclose(flow.log_prob(QUERIES), gauss.log_prob(QUERIES), rtol=1e-9)


def test_with_classes_it_is_the_mixture_of_gaussians():
    flow = coupling_flow(K, whiten=True, classes=3).double()
    uneven, labels = X[:150], LABELS[:150].clamp(max=1)
    labels[:20] = 2
    flow.initialize(uneven, class_moments(uneven, labels))
    gauss = GMM(ridge=0).fit(Features(penultimate=uneven, labels=labels))
    assert torch.allclose(flow.log_prob(QUERIES), gauss.log_prob(QUERIES), rtol=1e-9)
    joint = torch.stack([flow.log_prob(QUERIES, torch.full((30,), c)) for c in range(3)], 1)
    assert torch.allclose(joint.logsumexp(1), flow.log_prob(QUERIES))


def test_blur_widens_the_start_by_the_noise_that_is_to_come():
    flow = coupling_flow(K, whiten=True).double()
    flow.initialize(X, class_moments(X, torch.zeros(200).long()), blur=0.7)
    cov = torch.cov(X.T, correction=0) + 0.49 * torch.eye(K).double()
    assert torch.allclose(flow.log_prob(QUERIES), MultivariateNormal(X.mean(0), cov).log_prob(QUERIES), rtol=1e-9)


def test_directions_that_never_vary_stay_finite():
    flat = torch.cat([X, torch.full((200, 1), 4.0).double(), X[:, :1]], 1)
    for whiten in (True, False):
        flow = coupling_flow(K + 2, whiten=whiten).double()
        flow.initialize(flat, class_moments(flat, torch.zeros(200).long()))
        found = flow.log_prob(flat)
        assert found.isfinite().all() and flow.log_prob(flat + 1).max() < found.min()


@pytest.mark.parametrize("make", [lambda: coupling_flow(K, 4, classes=2), lambda: glow(K, 3)], ids=["coupling", "glow"])
def test_gradients_reach_every_parameter(make):
    flow = shaken(make())
    flow.log_prob(X).mean().backward()
    dead = [name for name, p in flow.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert dead == []


def test_samples_come_from_the_base_and_are_repeatable():
    flow = shaken(coupling_flow(K, 4, classes=2)).float()
    x = flow.sample(5, seeded())
    assert torch.equal(x, flow.sample(5, seeded())) and x.shape == (5, K)
    u, _ = flow.double()(flow.sample(20_000, seeded()))
    assert (u[:, 0].mean() - flow.base.means.mean(0)[0]).abs() < 0.05  # equal shares
    plain = shaken(coupling_flow(K, 4))
    u, _ = plain(plain.sample(20_000, seeded()))
    assert u.square().sum(1).mean().item() == pytest.approx(K, rel=0.03)


def test_a_seed_decides_the_start_and_the_global_random_numbers_stay():
    before = torch.random.get_rng_state()
    a, b, c = (glow(K, 2, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a[n], b[n]) for n in a) and not torch.equal(a["layers.1.upper"], c["layers.1.upper"])


def test_the_paper_s_flow_has_half_the_numbers_in_its_nets_and_the_same_draw():
    flow = glow(64, 2)
    nets = sum(p.numel() for layer in flow.layers[::3] for p in layer.parameters())
    assert nets == 2 * 2 * (64 * 64 + 64 + 32)  # per block two nets 32 -> 64 -> 32
    assert flow.layers[0].nets[0][0].weight.abs().max() <= 1 / 8 < 1.01 * flow.layers[0].nets[0][0].weight.abs().max()


def test_the_layer_that_overflows_is_named():
    flow = coupling_flow(K, 3).double()
    flow.layers[4].matrix[0, 0] = math.inf
    assert flow.first_overflow(X) == "layer 4 of 9, Rotation"
    assert coupling_flow(K, 3).double().first_overflow(X) == "the base"


def test_volumes_are_exact_under_autocast():
    flow, x = shaken(coupling_flow(K, 4)).float(), X.float()
    with torch.autocast("cpu", torch.bfloat16):
        cast = flow.log_prob(x)
    exact = flow.log_prob(x)
    assert cast.dtype == torch.float32 and 0 < (cast - exact).abs().mean() < 0.05 * exact.std()
    untrained = coupling_flow(K, 4)  # nothing but rotations: the length stays
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(untrained(x)[0].norm(dim=1), x.norm(dim=1), rtol=1e-5)


def test_one_feature_cannot_be_split():
    with pytest.raises(ValueError, match=r"dim=1 was given; expected two halves"):
        coupling_flow(1)


@pytest.mark.parametrize("make", [coupling_flow, glow])
def test_weights_are_drawn_on_the_cpu_and_brought_to_the_default_device(make, monkeypatch):
    with torch.device("meta"):
        assert all(value.is_meta for value in make(K).state_dict().values())
        monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cpu"))
        drawn = make(K).state_dict()
    assert all(torch.equal(drawn[name], value) for name, value in make(K).state_dict().items())

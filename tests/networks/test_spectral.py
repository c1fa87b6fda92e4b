"""Laws of spectral normalisation: what is bounded, what is not, and that the report says which."""

import copy
import math
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import TensorDataset

from ood_lib import ResNet, accuracy, lipschitz_report, spectral_normalize, train_classifier
from ood_lib.data.benchmark import Normalize
from ood_lib.networks.lipschitz import batchnorm_gain, exact_norm, linear_map, reshaped_norm
from ood_lib.networks.spectral import power_iteration
from tests.conftest import normal, seeded


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, seed: int = 0, **options) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, bias=False, **options).double()
    layer.weight.data = normal(*layer.weight.shape, seed=seed)
    return layer


def dense(layer: nn.Conv2d, side: int = 6) -> torch.Tensor:
    """The matrix of a convolution: its effect on each pixel of an input of that size."""
    pixels = torch.eye(layer.in_channels * side * side).double().reshape(-1, layer.in_channels, side, side)
    return layer(pixels).flatten(1).detach().T


def run(layer: nn.Module, times: int, x: torch.Tensor) -> None:
    layer.train()
    for _ in range(times):
        layer(x)


# -- norms ------------------------------------------------------------------------------------------------------


CONVOLUTIONS = [
    {}, {"stride": 2, "padding": 1}, {"padding": 1}, {"dilation": 2}, {"padding": "same"}, {"padding": "valid"},
    {"kernel": 1, "stride": 2}, {"kernel": 1, "padding": 1}, {"kernel": 2, "stride": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_exact_norm_is_that_of_the_dense_matrix(options: dict):
    layer = conv(**options)
    expected = torch.linalg.matrix_norm(dense(layer), 2).item()
    assert exact_norm(layer, (3, 6, 6)) == pytest.approx(expected, rel=1e-6)


def test_grouped_convolutions_and_linear_layers_have_an_exact_norm_too():
    grouped, linear = conv(4, 8, groups=2), nn.Linear(5, 7).double()
    expected = torch.linalg.matrix_norm(dense(grouped), 2).item()
    assert exact_norm(grouped, (4, 6, 6)) == pytest.approx(expected, rel=1e-3)
    assert exact_norm(linear, (5,)) == pytest.approx(reshaped_norm(linear.weight).item(), rel=1e-3)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_the_reshaped_norm_is_below_the_exact_one_and_not_too_far(kernel: int, stride: int):
    layer = conv(kernel=kernel, stride=stride, padding=kernel // 2)
    exact, reshaped = exact_norm(layer, (3, 16, 16)), reshaped_norm(layer.weight).item()
    assert reshaped * (1 - 1e-6) <= exact <= math.ceil(kernel / stride) * reshaped * (1 + 1e-9)


def test_power_iteration_never_exceeds_the_norm_and_reaches_it():
    a = normal(6, 9)
    sigma = torch.linalg.svdvals(a)
    values = []
    v = normal(9, seed=1)
    for _ in range(60):
        u, v = power_iteration(lambda x: a @ x, v, 1)
        values.append((u @ a @ v).item())
        assert u.norm().item() == pytest.approx(1) and v.norm().item() == pytest.approx(1)
    assert all(x <= y + 1e-12 for x, y in pairwise(values)) and values[-1] <= sigma[0] + 1e-12
    rate = (sigma[1] / sigma[0]) ** 4
    gaps = sigma[0] - torch.tensor(values[10:14]).double()
    assert torch.allclose(gaps[1:] / gaps[:-1], rate.expand(3), rtol=0.1)  # as fast as the second value allows
    assert values[-1] == pytest.approx(sigma[0].item(), rel=1e-3)


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_transpose_is_that_of_the_map(options: dict):
    layer, v = conv(**options), normal(2, 3, 6, 6, seed=1)
    linear, out = linear_map(layer), layer(v)
    u = normal(*out.shape, seed=2)
    assert torch.equal(linear.apply(layer.weight, v), out)
    assert torch.allclose((u * out).sum(), (linear.adjoint(layer.weight, u, v.shape) * v).sum(), rtol=1e-12)


# -- normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hard", "bounded"])
@pytest.mark.parametrize("norm", ["reshaped", "exact"])
@pytest.mark.parametrize("size", [0.1, 10.0])
def test_after_some_updates_the_norm_is_what_was_asked_for(mode: str, norm: str, size: float):
    layer = conv(padding=1)
    layer.weight.data *= size
    before = exact_norm(layer, (3, 6, 6)) if norm == "exact" else reshaped_norm(layer.weight).item()
    spectral_normalize(layer, mode, 2.0, norm)
    run(layer, 200, normal(1, 3, 6, 6))
    after = exact_norm(layer, (3, 6, 6)) if norm == "exact" else reshaped_norm(layer.weight).item()
    expected = 2.0 if mode == "hard" or before > 2 else before
    assert after == pytest.approx(expected, rel=1e-3)


def test_hard_and_reshaped_is_the_spectral_norm_of_pytorch():
    ours, theirs = conv(seed=3), conv(seed=3)
    spectral_normalize(ours)
    spectral_norm(theirs, n_power_iterations=1)
    for layer in (ours, theirs):
        run(layer, 200, normal(1, 3, 6, 6))
        layer.eval()
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-4)
    for layer in (ours, theirs):  # the weight moves on in eval mode, while u and v rest
        layer.parametrizations.weight.original.data += normal(*layer.weight.shape, seed=5)
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-4)


def test_in_eval_mode_the_normaliser_is_frozen_and_normalises_no_longer():
    layer = spectral_normalize(conv())
    run(layer, 100, normal(1, 3, 6, 6))
    assert reshaped_norm(layer.weight).item() == pytest.approx(1, rel=1e-3)
    layer.eval()
    layer.parametrizations.weight.original.data = normal(4, 3, 3, 3, seed=7)
    layer(normal(1, 3, 6, 6))
    assert reshaped_norm(layer.weight).item() > 1.5
    run(layer, 100, normal(1, 3, 6, 6))
    assert reshaped_norm(layer.weight).item() == pytest.approx(1, rel=1e-3)


def test_the_gradient_loses_its_part_along_the_weight():
    layer = spectral_normalize(nn.Linear(5, 4).double(), layers=nn.Linear)
    run(layer, 200, normal(1, 5))
    layer.eval()
    held = layer.parametrizations.weight
    g = normal(4, 5, seed=2)
    (layer.weight * g).sum().backward()
    sigma = torch.linalg.svdvals(held.original)[0]
    uv = held[0].u.T @ held[0].v
    expected = (g - (g * layer.weight).sum() * uv) / sigma
    assert torch.allclose(held.original.grad, expected, rtol=1e-4, atol=1e-8)


def test_a_bound_that_is_not_reached_changes_nothing():
    layer = conv()
    before = layer.weight.detach().clone()
    spectral_normalize(layer, "bounded", 1e3)
    run(layer, 3, normal(1, 3, 6, 6))
    assert torch.equal(layer.weight, before)


def test_batchnorm_cancels_the_scale_of_the_convolution_before_it():
    x = normal(16, 3, 8, 8, dtype=torch.float32)
    plain = nn.Sequential(conv(padding=1).float(), nn.BatchNorm2d(4))
    hard = copy.deepcopy(plain)
    spectral_normalize(hard)
    run(hard, 100, x)
    plain.train(), hard.train()
    assert reshaped_norm(plain[0].weight) > 2 > reshaped_norm(hard[0].weight)
    assert torch.allclose(plain(x), hard(x), atol=1e-4)


def trained(eps: float, after: type = nn.BatchNorm2d, forget: bool = False, **options) -> tuple[torch.Tensor, ...]:
    """Losses (10,) and free weights of a small network, in double precision; normalised if there are options."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), after(4, eps), nn.ReLU(), nn.Conv2d(4, 4, 3), after(4, eps), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 4 * 4, 3)).double().train()
    free = [net[0].weight, net[3].weight, net[7].weight]  # a parametrization keeps them as `original`
    if options:
        spectral_normalize(net, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for step in range(10):
        net.train(not (forget and step > 2))
        losses.append(F.cross_entropy(net(normal(12, 3, 8, 8, seed=step)), torch.arange(12) % 3))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach(), *(w.detach() for w in free)


NORMALISED = [{"mode": "hard"}, {"mode": "bounded", "coefficient": 0.3}, {"mode": "hard", "norm": "exact"}]


@pytest.mark.parametrize("options", NORMALISED)
def test_before_a_batchnorm_training_is_the_same_with_and_without_normalisation(options: dict):
    for plain, normalised in zip(trained(1e-14), trained(1e-14, **options)):
        assert torch.allclose(plain, normalised, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("about", "how"),
    [
        ({"eps": 1e-5}, {}),  # the same up to epsilon only
        ({"after": nn.Identity}, {}),  # nothing takes the scale back
        ({"forget": True}, {}),  # nor do statistics that are frozen
        ({}, {"layers": (nn.Conv2d, nn.Linear)}),  # the last layer has no BatchNorm behind it
        ({}, {"batchnorm": 0.5}),  # its gain may not take back all of it
    ],
    ids=["epsilon", "no batchnorm", "eval mode", "last layer", "bounded gain"],
)
def test_where_no_batchnorm_takes_the_scale_back_normalisation_changes_the_training(about: dict, how: dict):
    plain, normalised = (trained(**{"eps": 1e-14} | about, **options)[0] for options in ({}, {"mode": "hard"} | how))
    assert (plain - normalised).abs().max() > 1e-6


def network(**options) -> ResNet:
    torch.manual_seed(0)
    net = ResNet(3, 4, (4, 8))
    return spectral_normalize(net, **options) if options else net


IMAGES = torch.rand(8, 3, 12, 12, generator=seeded())


def test_with_bounded_gains_a_layer_is_bounded_whatever_the_batchnorm_does():
    net = network(mode="bounded", coefficient=1.0, norm="exact", batchnorm=2.0)
    for p in net.parameters():
        p.data *= 10
    run(net, 100, IMAGES)
    report = lipschitz_report(net, IMAGES).query("layer != 'head'")
    assert (report["exact"] <= 1.001).all() and (report["gain"] <= 2.0001).all() and (report["product"] <= 2.01).all()
    assert (report["gain"] > 1.9).any()  # and the bound is met


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "hard"},
        {"mode": "bounded", "norm": "exact", "batchnorm": 1.5},
        {"mode": "hard", "norm": "exact", "layers": (nn.Conv2d, nn.Linear)},
    ],
)
def test_a_saved_state_and_a_copy_are_the_same_network(options: dict):
    net = network(**options)
    run(net, 5, IMAGES)
    net.eval()
    other = network(**options)
    other.load_state_dict(net.state_dict())
    other.eval()
    own = copy.deepcopy(net)
    assert torch.equal(other(IMAGES), net(IMAGES)) and torch.equal(own(IMAGES), net(IMAGES))
    run(own, 5, IMAGES)
    net.zero_grad()
    assert torch.equal(other(IMAGES), net(IMAGES))  # the copy has a life of its own


def test_a_normalised_network_learns():
    net = network(mode="bounded", coefficient=1.0, norm="exact", batchnorm=2.0)
    net.train()
    F.cross_entropy(net(IMAGES), torch.arange(8) % 4).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("norm", ["reshaped", "exact"])
def test_half_precision_around_it_leaves_the_norm_precise(norm: str):
    layer = spectral_normalize(conv(padding=1).float(), norm=norm)
    layer.eval()(normal(1, 3, 6, 6).float())
    expected = copy.deepcopy(layer).train()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer.train().weight
    assert got.dtype == torch.float32
    assert torch.equal(got, expected.weight)


@pytest.mark.parametrize("norm", ["reshaped", "exact"])
def test_a_first_image_in_half_precision_leaves_the_norm_precise(norm: str):
    layers = [spectral_normalize(conv(padding=1).float(), norm=norm) for _ in range(2)]
    for layer, half in zip(layers, (True, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(normal(1, 3, 6, 6).float())
    assert torch.equal(*(layer.weight for layer in layers))


def test_a_normalised_network_can_be_sent_to_another_process():
    layer = spectral_normalize(conv(padding=1), norm="exact")
    again = pickle.loads(pickle.dumps(layer.parametrizations.weight[0]))
    assert again.linear.apply(layer.weight, normal(1, 3, 6, 6)).shape == (1, 4, 6, 6)


def test_another_image_size_in_training_is_measured_anew_and_in_evaluation_is_not():
    layer = spectral_normalize(conv(padding=1), norm="exact")
    run(layer, 100, normal(1, 3, 6, 6))
    layer.eval()
    weight = layer.weight.clone()
    layer(normal(1, 3, 9, 9))
    assert torch.equal(layer.weight, weight)
    run(layer, 200, normal(1, 3, 9, 9))
    assert exact_norm(layer, (3, 9, 9)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("norm", ["reshaped", "exact"])
def test_a_fresh_network_can_be_measured_and_trained_with_averaged_weights(norm: str):
    data = TensorDataset(IMAGES, torch.arange(8) % 4)
    measured, averaged = network(norm=norm), network(norm=norm)
    assert 0 <= accuracy(measured, data, device="cpu") <= 1
    run(measured, 1, IMAGES)  # and it can be trained afterwards
    train_classifier(averaged, data, epochs=2, average=0.9, device="cpu", progress=False)
    assert exact_norm(averaged.stem[0], (3, 12, 12)) < 2 and averaged(IMAGES).isfinite().all()


def test_only_the_chosen_layers_are_touched():
    net = network(mode="hard")
    assert not hasattr(net.head, "parametrizations") and not hasattr(net.stem[1], "parametrizations")
    assert all(hasattr(m, "parametrizations") for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: spectral_normalize(conv(), "soft"), "mode='soft'"),
        (lambda: spectral_normalize(conv(), norm="dense"), "norm='dense'"),
        (lambda: spectral_normalize(conv(), coefficient=0), "coefficient=0"),
        (lambda: spectral_normalize(conv(), batchnorm=-1.0), "batchnorm=-1.0"),
        (lambda: spectral_normalize(nn.ReLU()), "ReLU has no layer"),
        (lambda: spectral_normalize(spectral_normalize(conv())), "normalised already"),
        (lambda: spectral_normalize(conv(padding_mode="reflect", padding=1), norm="exact"), "padding_mode='zeros'"),
        (lambda: exact_norm(conv(kernel=2, padding="same"), (3, 6, 6)), "pads one side more"),
        (lambda: batchnorm_gain(nn.BatchNorm1d(2, track_running_stats=False)), "no running variance"),
    ],
)
def test_bad_arguments_are_named(make, said: str):
    with pytest.raises(ValueError, match=said):
        make()


# -- the report -------------------------------------------------------------------------------------------------


def test_the_report_agrees_with_a_look_at_each_layer():
    net = network()
    run(net, 20, IMAGES)
    net.stages[0][0].norm1.weight.data[2] = -7
    modes = [m.training for m in net.modules()]
    report = lipschitz_report(net, IMAGES).set_index("layer")
    assert [m.training for m in net.modules()] == modes
    block = net.stages[0][0]
    row = report.loc["stages.0.0.conv1"]
    assert row["reshaped"] == pytest.approx(reshaped_norm(block.conv1.weight).item())
    assert row["exact"] == pytest.approx(exact_norm(block.conv1, (4, 12, 12)))
    expected = (block.norm1.weight.abs() / (block.norm1.running_var + block.norm1.eps).sqrt()).max().item()
    assert row["gain"] == pytest.approx(expected) and row["product"] == pytest.approx(row["exact"] * expected)
    convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    assert set(report.index) == {*convs, "head"} and report.loc["head", "gain"] == 1
    assert report.index[0] == "stem.0" and report.index[-1] == "head"


def test_no_step_stretches_more_than_the_report_says():
    chain = nn.Sequential(conv(padding=1).float(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2, 3, stride=2).float())
    x = normal(32, 3, 8, 8, dtype=torch.float32)
    run(chain, 10, x)
    chain.eval()
    bound = math.prod(lipschitz_report(chain, x)["product"])
    a, b = x, x + 1e-2 * normal(32, 3, 8, 8, seed=9, dtype=torch.float32)
    stretch = (chain(a) - chain(b)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
    assert 0 < stretch.max() <= bound


def test_a_batchnorm_that_reads_no_layer_has_a_row_of_its_own_and_what_is_not_known_is_named():
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4)).eval()
    pooled[2].running_var.fill_(0.01)
    report = lipschitz_report(pooled, IMAGES).set_index("layer")
    assert list(report.index) == ["0", "2"]
    assert report.loc["2", ["exact", "gain"]].tolist() == pytest.approx([1, batchnorm_gain(pooled[2]).item()])
    with pytest.warns(UserWarning, match=r"leaves out 3 \(PReLU\): multiply") as seen:
        lipschitz_report(nn.Sequential(*pooled, nn.PReLU()).eval(), IMAGES)
    assert seen[0].filename == __file__
    known = spectral_normalize(ResNet(3, 4, (4,), normalize=Normalize([0.5], [0.2])), batchnorm=2.0)
    with warnings.catch_warnings(action="error"):
        assert lipschitz_report(known, IMAGES)["layer"].iloc[0] == "stem.0"


def test_the_scale_of_a_convolution_changes_no_product():
    net, other = network(), network()
    other.stages[0][0].conv1.weight.data *= 8
    for n in (net, other):
        run(n, 200, IMAGES)
    a, b = (lipschitz_report(n, IMAGES).set_index("layer").loc["stages.0.0.conv1"] for n in (net, other))
    assert b["exact"] == pytest.approx(8 * a["exact"], rel=1e-3)
    assert b["product"] == pytest.approx(a["product"], rel=0.01)

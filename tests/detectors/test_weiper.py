"""Laws of WeiPer: the perturbed head, the histograms, their divergence, the limit of infinitely many repeats."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import ood_lib.detectors.weiper
from ood_lib import MSP, Detector, Energy, Features, WeiPer, energy, msp, weiper_kld
from ood_lib.detectors.weiper import gaussian_histogram, histogram, logit_noise, noise, perturb, smooth, symmetric_kl
from tests.conftest import CLASSES, UNITS, Toy, cast, normal, seeded

SCORES = ["kld", "msp", "react", energy]
NAMES = ["kld", "msp", "react", "callable"]
every_score = pytest.mark.parametrize("score", SCORES, ids=NAMES)
drawn_and_limit = pytest.mark.parametrize("repeats", [20, None], ids=["drawn", "limit"])
both_overflows = pytest.mark.parametrize("overflow", ["clamp", "drop"])


def linear(classes: int, width: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    head = nn.Linear(width, classes, bias=bias).double()
    with torch.no_grad():
        head.weight.copy_(normal(classes, width, seed=seed) / math.sqrt(width))
        if bias:
            head.bias.copy_(normal(classes, seed=seed + 1))
    return head


def state_of(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def unchanged(detector: Detector, before: dict[str, torch.Tensor]) -> bool:
    now = detector.state_dict()
    return all(torch.equal(now[name].nan_to_num(7e7), value.nan_to_num(7e7)) for name, value in before.items())


def all_views(detector: WeiPer, z: torch.Tensor) -> torch.Tensor:
    """All perturbed logits (N, r, C)."""
    return torch.cat(list(detector.views(z)), 1)


def everything(toy: Toy) -> Features:
    return Features(penultimate=torch.cat([toy.test.penultimate, toy.ood.penultimate]))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


# -- the perturbed head -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.5, 1.8, 2.4])
def test_the_noise_is_exactly_delta_times_as_long_as_its_row(delta: float):
    weight = normal(5, 30) * torch.tensor([0.1, 1, 2, 5, 100]).double()[:, None]
    lengths = noise(weight, delta, 7, seeded()).norm(dim=-1)
    assert lengths.shape == (7, 5)
    assert torch.allclose(lengths, delta * weight.norm(dim=1).expand(7, 5), rtol=1e-12)


@pytest.mark.parametrize("delta", [1.8, 2.0, 2.4])
def test_the_perturbed_rows_form_the_shell_of_a_cone(delta: float):
    weight = normal(10, 512)
    heads = perturb(weight, delta, 100, seeded())
    cosine = torch.cosine_similarity(heads, weight.expand_as(heads), dim=-1)
    assert cosine.acos().rad2deg().mean().item() == pytest.approx(math.degrees(math.atan(delta)), abs=1)
    ratio = heads.norm(dim=-1) / weight.norm(dim=1)
    assert ratio.mean().item() == pytest.approx(math.sqrt(1 + delta**2), rel=0.01)
    assert ratio.std() < 0.1


def test_noise_points_in_every_direction_alike():
    directions = noise(torch.ones(1, 6).double(), 1.0, 40_000, seeded())[:, 0] / math.sqrt(6)
    assert directions.mean(0).abs().max() < 0.01
    assert torch.allclose(directions.T @ directions / 40_000, torch.eye(6).double() / 6, atol=0.005)


@pytest.mark.parametrize("shape", [(3, 7), (1, 5), (4, 16)])
def test_a_head_drawn_in_blocks_is_the_head_drawn_at_once(shape: tuple[int, int]):
    weight, generator = normal(*shape), seeded()
    blocks = torch.cat([noise(weight, 1.0, n, generator) for n in (4, 1, 5)])
    assert torch.equal(blocks, noise(weight, 1.0, 10, seeded()))


def test_a_perturbed_logit_is_the_logit_plus_noise_of_the_predicted_width():
    head, z = linear(3, 64), normal(4, 64, seed=5) * torch.tensor([0.1, 1, 3, 10]).double()[:, None]
    logits = all_views(WeiPer(head, score="msp", repeats=20_000, delta=1.8), z)
    predicted = logit_noise(z, head.weight, 1.8)
    assert torch.allclose(logits.std(1) / predicted, torch.ones(4, 3).double(), atol=0.02)
    assert ((logits.mean(1) - head(z)) / predicted).abs().max() < 4 / math.sqrt(20_000)
    standard = (logits - head(z)[:, None]) / predicted[:, None]
    expected = 3 * 64 / (64 + 2)  # fourth moment of a coordinate on the sphere: close to the normal's 3
    assert standard.pow(4).mean().item() == pytest.approx(expected, rel=0.02)


def test_views_are_the_logits_of_the_perturbed_heads():
    head, z = linear(3, 7), normal(5, 7)
    heads = perturb(head.weight.detach(), 1.3, 11, seeded(4))
    expected = torch.einsum("nk,rck->nrc", z, heads) + head.bias
    assert torch.allclose(all_views(WeiPer(head, score="msp", repeats=11, delta=1.3, seed=4), z), expected, atol=1e-12)
    only_noise = all_views(WeiPer(head, repeats=11, delta=1.3, seed=4, random_projections=True), z)
    assert torch.allclose(only_noise, torch.einsum("nk,rck->nrc", z, heads - head.weight), atol=1e-12)


# -- histograms -------------------------------------------------------------------------------------------------


def by_numpy(values: np.ndarray, low: float, high: float, bins: int, overflow: str) -> np.ndarray:
    inside = np.clip(values, low, high) if overflow == "clamp" else values
    return np.stack([np.histogram(row, bins, (low, high))[0] for row in inside]) / values.shape[1]


@both_overflows
@pytest.mark.parametrize(("width", "bins"), [(2048, 100), (1234, 80), (5, 3), (1, 1)])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.5), (-9.0, 9.0), (0.1, 0.2)])
def test_the_histogram_agrees_with_numpy_inside_and_outside_its_range(overflow, width, bins, low, high):
    values = normal(6, width)
    expected = by_numpy(values.numpy(), low, high, bins, overflow)
    assert np.allclose(histogram(values, low, high, bins, overflow), expected)


@both_overflows
def test_bins_are_half_open_and_the_last_one_is_closed(overflow: str):
    values = torch.tensor([[0.0, 1.0, 2.0, 4.0]]).double()
    assert histogram(values, 0.0, 4.0, 4, overflow).tolist() == [[0.25, 0.25, 0.25, 0.25]]
    outside = torch.tensor([[-1e30, -0.1, 4.1, 1e30]]).double()
    expected = [[0.5, 0, 0, 0.5]] if overflow == "clamp" else [[0, 0, 0, 0]]
    assert histogram(outside, 0.0, 4.0, 4, overflow).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_value_inside_the_range_is_dropped_by_rounding(dtype: torch.dtype):
    for low, high in torch.rand(500, 2, generator=seeded(), dtype=dtype).sort(dim=1).values:
        values = torch.stack([low, torch.nextafter(low, high), torch.nextafter(high, low), high])[None]
        assert histogram(values, low.item(), high.item(), 100, "drop").sum().item() == pytest.approx(1)
        beyond = torch.stack([torch.nextafter(low, low - 1), torch.nextafter(high, high + 1)])[None]
        assert histogram(beyond, low.item(), high.item(), 100, "drop").sum() == 0


def test_a_histogram_ignores_the_order_of_values_and_treats_rows_apart():
    values = normal(5, 40)
    whole = histogram(values, -2.0, 2.0, 10)
    assert torch.equal(histogram(values[:, torch.randperm(40, generator=seeded())], -2.0, 2.0, 10), whole)
    assert torch.equal(torch.cat([histogram(row[None], -2.0, 2.0, 10) for row in values]), whole)


@both_overflows
def test_the_gaussian_histogram_is_that_of_many_draws(overflow: str):
    mean, std = normal(2, 3), normal(2, 3, seed=1).abs() + 0.1
    draws = mean[:, None] + std[:, None] * normal(2, 100_000, 3, seed=2)
    expected = gaussian_histogram(mean, std, -1.0, 2.0, 20, overflow)
    found = histogram(draws.flatten(1), -1.0, 2.0, 20, overflow)
    assert ((found - expected).abs() <= 5 * (expected / 300_000).sqrt() + 1e-9).all()


def test_the_gaussian_histogram_sums_to_one_or_to_the_mass_inside():
    mean, std = 3 * normal(6, 4), normal(6, 4, seed=1).abs()
    assert torch.allclose(gaussian_histogram(mean, std, -1.0, 1.0, 30).sum(1), torch.ones(6).double())
    inside = (torch.special.ndtr((1 - mean) / std) - torch.special.ndtr((-1 - mean) / std)).mean(1)
    dropped = gaussian_histogram(mean, std, -1.0, 1.0, 30, "drop")
    assert torch.allclose(dropped.sum(1), inside)
    assert (dropped >= 0).all()


@both_overflows
def test_a_gaussian_without_width_is_a_count(overflow: str):
    mean = 2 * normal(6, 9)
    found = gaussian_histogram(mean, torch.zeros_like(mean), -1.0, 1.0, 30, overflow)
    assert torch.allclose(found, histogram(mean, -1.0, 1.0, 30, overflow))


# -- smoothing --------------------------------------------------------------------------------------------------


def smooth_by_hand(density: np.ndarray, width: int) -> np.ndarray:
    last = density.shape[1] - 1
    windows = [np.clip(np.arange(t - (width - 1) // 2, t + width // 2 + 1), 0, last) for t in range(last + 1)]
    return np.stack([density[:, window].mean(1) for window in windows], 1)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 15, 40, 100])
def test_smoothing_is_a_moving_average_with_repeated_edges(width: int):
    density = normal(3, 30).abs()
    assert np.allclose(smooth(density, width), smooth_by_hand(density.numpy(), width))


def test_smoothing_over_one_bin_is_the_identity():
    assert torch.equal(smooth(normal(3, 30), 1), normal(3, 30))


def test_an_even_width_reaches_one_bin_further_right():
    spike = torch.zeros(1, 9).double()
    spike[0, 4] = 1
    assert smooth(spike, 4)[0].tolist() == [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0]  # bin t averages t-1 ... t+2


def test_a_spike_in_the_first_bin_keeps_three_quarters_and_one_in_the_last_gains():
    first, last = torch.eye(10).double()[[0]], torch.eye(10).double()[[9]]
    assert smooth(first, 4).sum().item() == 0.75
    assert smooth(last, 4).sum().item() == 1.5
    assert smooth(first, 5).sum().item() == smooth(last, 5).sum().item() == 1.2
    assert torch.allclose(smooth(torch.full((1, 10), 0.1).double(), 4), torch.full((1, 10), 0.1).double())


# -- divergence -------------------------------------------------------------------------------------------------


def test_the_divergence_is_symmetric_never_negative_and_zero_only_for_equal_densities():
    p, q = torch.rand(2, 50, 20, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(symmetric_kl(p, q, 0.01), symmetric_kl(q, p, 0.01))
    assert (symmetric_kl(p, q, 0.01) > 1e-3).all()
    assert (symmetric_kl(p, p, 0.01) == 0).all()
    nearly = p.clone()
    nearly[:, 0] += 1e-3
    assert (symmetric_kl(p, nearly, 0.01) > 0).all()


def test_the_divergence_is_the_sum_of_both_relative_entropies():
    p, q = torch.rand(2, 20, generator=seeded(), dtype=torch.float64).numpy()
    a, b = (p + 0.02) / (p + 0.02).sum(), (q + 0.02) / (q + 0.02).sum()
    expected = (a * np.log(a / b)).sum() + (b * np.log(b / a)).sum()
    assert symmetric_kl(torch.from_numpy(p), torch.from_numpy(q), 0.02).item() == pytest.approx(expected)


def test_a_higher_floor_brings_densities_together():
    p, q = torch.rand(2, 20, generator=seeded(), dtype=torch.float64)
    values = [symmetric_kl(p, q, eps).item() for eps in (1e-6, 1e-3, 0.1, 10.0)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.01


def test_densities_are_compared_by_shape_not_by_mass_when_the_floor_is_small():
    p = torch.rand(5, 20, generator=seeded(), dtype=torch.float64)
    assert symmetric_kl(p, 0.5 * p, 1e-9).max() < 1e-8


def test_weiper_kld_is_its_three_parts():
    h, hw = torch.rand(2, 6, 30, generator=seeded(), dtype=torch.float64)
    p, pw = torch.rand(2, 30, generator=seeded(1), dtype=torch.float64)
    confidence = torch.rand(6, generator=seeded(2), dtype=torch.float64)
    found = weiper_kld(
        h, hw, confidence, p, pw, lambda1=0.7, lambda2=0.3, smooth_penultimate=3, smooth_weiper=8,
        eps_penultimate=0.1, eps_weiper=0.2,
    )  # fmt: skip
    d1, d2 = symmetric_kl(p, smooth(h, 3), 0.1), symmetric_kl(pw, smooth(hw, 8), 0.2)
    assert torch.allclose(found, d1 + 0.7 * d2 - 0.3 * confidence)


def test_an_image_that_looks_like_the_training_mean_is_at_no_distance_once_both_are_smoothed():
    p, pw = torch.rand(2, 30, generator=seeded(), dtype=torch.float64)
    (same,) = weiper_kld(p[None], pw[None], torch.zeros(1), p, pw, smooth_reference=True)
    (apart,) = weiper_kld(p[None], pw[None], torch.zeros(1), p, pw)
    assert abs(same) < 1e-12 < 0.01 < apart


def test_a_somewhat_higher_spike_looks_nearer_to_the_mean_than_the_mean_itself_unless_both_are_smoothed():
    spike, tail = torch.eye(30).double()[0], (-0.3 * torch.arange(30).double()).softmax(0)
    mean, higher = (share * spike + (1 - share) * tail for share in (0.6, 0.65))
    images, options = torch.stack([mean, higher]), {"lambda1": 0.0, "lambda2": 0.0}
    for both, nearest in ((False, 1), (True, 0)):
        distance = weiper_kld(images, images, torch.zeros(2), mean, mean, smooth_reference=both, **options)
        assert distance.argmin() == nearest, distance


def test_smoothing_the_reference_is_to_compare_with_a_smoothed_mean():
    h, hw = torch.rand(2, 6, 30, generator=seeded(), dtype=torch.float64)
    p, pw = torch.rand(2, 30, generator=seeded(1), dtype=torch.float64)
    widths = {"smooth_penultimate": 3, "smooth_weiper": 8}
    confidence = torch.rand(6, generator=seeded(2), dtype=torch.float64)
    by_hand = [torch.from_numpy(smooth_by_hand(mean[None].numpy(), w)[0]) for mean, w in zip((p, pw), widths.values())]
    found = weiper_kld(h, hw, confidence, p, pw, smooth_reference=True, **widths)
    assert torch.allclose(found, weiper_kld(h, hw, confidence, *by_hand, **widths))


@drawn_and_limit
def test_without_smoothing_it_does_not_matter_whether_the_reference_is_smoothed(toy: Toy, repeats: int | None):
    def score(reference: bool, width: int) -> torch.Tensor:
        options = {"smooth_reference": reference, "smooth_penultimate": width, "smooth_weiper": width}
        return WeiPer(toy.head, repeats=repeats, **options).fit(toy.train).score(toy.test)

    assert torch.equal(score(True, 1), score(False, 1))
    assert not torch.allclose(score(True, 4), score(False, 4))


# -- the whole, against numpy -----------------------------------------------------------------------------------


def kld_by_numpy(train, test, heads, bias, bins, lambda1, lambda2, s1, s2, eps1, eps2, overflow) -> np.ndarray:
    """WeiPer+KLD written from the definition: heads (r, C, K), one histogram per image, plain means."""

    def project(z: np.ndarray) -> np.ndarray:
        return np.einsum("nk,rck->nrc", z, heads) + bias

    def divergence(p: np.ndarray, q: np.ndarray, eps: float) -> np.ndarray:
        p, q = (p + eps) / (p + eps).sum(), (q + eps) / (q + eps).sum(1, keepdims=True)
        return (p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)

    projected, scored = project(train).reshape(len(train), -1), project(test)
    flat = scored.reshape(len(test), -1)
    total = 0
    for weight, seen, new, width, eps in ((1, train, test, s1, eps1), (lambda1, projected, flat, s2, eps2)):
        ends = seen.min(), seen.max()
        mean = by_numpy(seen, *ends, bins, overflow).mean(0)
        total = total + weight * divergence(mean, smooth_by_hand(by_numpy(new, *ends, bins, overflow), width), eps)
    softmax = np.exp(scored) / np.exp(scored).sum(2, keepdims=True)
    return total - lambda2 * softmax.max(2).mean(1)


@both_overflows
@pytest.mark.parametrize("signed", [False, True], ids=["rectified", "signed"])
@pytest.mark.parametrize("random_projections", [False, True], ids=["weiper", "rp"])
@pytest.mark.parametrize("options", [{}, {"bins": 37, "lambda1": 0.1, "lambda2": 1.0, "smooth_weiper": 40}])
def test_the_score_agrees_with_an_independent_numpy_implementation(overflow, signed, random_projections, options):
    head, repeats, delta = linear(5, 33), 23, 2.1
    train, test = normal(60, 33, seed=2) + 0.5, 1.5 * normal(25, 33, seed=3)
    train, test = (train, test) if signed else (train.relu(), test.relu())
    detector = WeiPer(
        head, repeats=repeats, delta=delta, seed=6, overflow=overflow, random_projections=random_projections, **options
    )
    draw = noise if random_projections else perturb
    heads = draw(head.weight.detach(), delta, repeats, seeded(6)).numpy()
    bias = 0 if random_projections else head.bias.detach().numpy()
    full = {"bins": 100, "lambda1": 2.5, "lambda2": 0.1, "smooth_weiper": 15} | options
    expected = kld_by_numpy(
        train.numpy(), test.numpy(), heads, bias, full["bins"], full["lambda1"], full["lambda2"],
        4, full["smooth_weiper"], 0.01, 0.025, overflow,
    )  # fmt: skip
    scores = detector.fit(Features(penultimate=train)).score(Features(penultimate=test))
    assert np.allclose(scores, expected, rtol=1e-9, atol=1e-9)


@drawn_and_limit
@pytest.mark.parametrize("bias", [True, False])
def test_every_logit_score_is_averaged_over_the_perturbed_heads(toy: Toy, repeats: int | None, bias: bool):
    head, z = linear(4, UNITS, bias), toy.test.penultimate
    views = all_views(WeiPer(head, score="msp", repeats=repeats), z)
    assert views.shape[1] == (repeats or ood_lib.detectors.weiper.NODES)
    for score, function in (("msp", msp), (energy, energy), (lambda x: -x.std(-1), lambda x: -x.std(-1))):
        found = WeiPer(head, score=score, repeats=repeats).score(toy.test)
        assert torch.allclose(found, function(views).mean(1), rtol=1e-12)
    react = WeiPer(head, score="react", repeats=repeats).fit(toy.train)
    clipped = all_views(react, z.clamp(max=react.clip.item()))
    assert torch.allclose(react.score(toy.test), energy(clipped).mean(1), rtol=1e-12)


# -- invariances ------------------------------------------------------------------------------------------------


@every_score
@drawn_and_limit
@pytest.mark.parametrize("columns", [1, 10, 10**6])
def test_scores_do_not_depend_on_the_blocks_they_are_computed_in(monkeypatch, score, repeats, columns: int):
    head, train = linear(3, 7), Features(penultimate=normal(30, 7))  # C K no multiple of a vector register
    usual = WeiPer(head, score=score, repeats=repeats).fit(train)
    expected = usual.score(train)
    monkeypatch.setattr(ood_lib.detectors.weiper, "COLUMNS", columns)
    other = WeiPer(head, score=score, repeats=repeats)
    other.chunk = 7
    assert torch.allclose(other.fit(train).score(train), expected, rtol=1e-10, atol=1e-10)


@drawn_and_limit
@both_overflows
def test_fitting_in_chunks_is_fitting_in_one_piece(toy: Toy, repeats: int | None, overflow: str):
    whole = WeiPer(toy.head, repeats=repeats, overflow=overflow).fit(toy.train)
    pieces = WeiPer(toy.head, repeats=repeats, overflow=overflow)
    pieces.chunk = 33  # the last one is short, and weighs less
    pieces.fit(toy.train)
    for name, value in pieces.state_dict().items():
        assert torch.allclose(value, whole.state_dict()[name], rtol=1e-12, atol=1e-12, equal_nan=True), name
    own, shared, _ = whole.densities(toy.train.penultimate)
    assert torch.allclose(own.mean(0), whole.reference) and torch.allclose(shared.mean(0), whole.reference_weiper)


@every_score
def test_the_seed_decides_and_nothing_else_does(toy: Toy, score):
    def run(seed: int) -> torch.Tensor:
        return WeiPer(toy.head, score=score, repeats=5, seed=seed).fit(toy.train).score(toy.test)

    torch.manual_seed(1)
    first = run(3)
    torch.manual_seed(2)
    assert torch.equal(run(3), first)
    assert not torch.allclose(run(4), first, rtol=1e-3)


@every_score
def test_the_limit_is_deterministic(toy: Toy, score):
    a, b = (WeiPer(toy.head, score, repeats=None, seed=seed).fit(toy.train).score(toy.test) for seed in (0, 1))
    assert torch.equal(a, b)


def test_without_noise_msp_w_is_msp_and_the_energy_the_energy(toy: Toy):
    for repeats in (1, 7, None):
        assert torch.allclose(WeiPer(toy.head, "msp", repeats, delta=0).score(toy.test), MSP().score(toy.test))
        assert torch.allclose(WeiPer(toy.head, energy, repeats, delta=0).score(toy.test), Energy().score(toy.test))


def test_without_noise_the_second_divergence_is_that_of_the_logits(toy: Toy):
    train, logits = toy.head(toy.train.penultimate).detach(), toy.head(toy.test.penultimate).detach()
    ends = train.min().item(), train.max().item()
    mean = histogram(train, *ends, 100).mean(0)
    d2 = symmetric_kl(mean, smooth(histogram(logits, *ends, 100), 15), 0.025)
    for repeats in (1, 7, None):
        both, first = (
            WeiPer(toy.head, repeats=repeats, delta=0, lambda1=lambda1, lambda2=0).fit(toy.train).score(toy.test)
            for lambda1 in (1, 0)
        )
        assert torch.allclose(both - first, d2, rtol=1e-9, atol=1e-9)


def test_the_first_divergence_does_not_see_which_unit_fires(toy: Toy):
    detector = WeiPer(toy.head, repeats=2, lambda1=0, lambda2=0).fit(toy.train)
    order = torch.randperm(UNITS, generator=seeded())
    permuted = Features(penultimate=toy.test.penultimate[:, order])
    assert torch.equal(detector.score(permuted), detector.score(toy.test))
    with_second = WeiPer(toy.head, repeats=None, lambda2=0).fit(toy.train)
    assert not torch.allclose(with_second.score(permuted), with_second.score(toy.test), rtol=1e-3)


def test_the_second_divergence_does_not_see_which_class_speaks(toy: Toy):
    order = torch.tensor([2, 0, 3, 1])
    renamed = nn.Linear(UNITS, CLASSES).double()
    with torch.no_grad():
        renamed.weight.copy_(toy.head.weight[order])
        renamed.bias.copy_(toy.head.bias[order])
    a, b = (WeiPer(h, repeats=None, lambda2=0).fit(toy.train).score(toy.test) for h in (toy.head, renamed))
    assert torch.allclose(a, b, rtol=1e-10)


@every_score
@drawn_and_limit
def test_a_head_without_bias_is_one_whose_bias_is_zero(toy: Toy, score, repeats: int | None):
    bare, zero = linear(4, UNITS, bias=False), linear(4, UNITS)
    with torch.no_grad():
        zero.bias.zero_()
    a, b = (WeiPer(h, score=score, repeats=repeats).fit(toy.train).score(toy.test) for h in (bare, zero))
    assert torch.equal(a, b)


@every_score
@drawn_and_limit
def test_signed_features_are_as_good_as_rectified_ones(score, repeats: int | None):
    train, far = Features(penultimate=normal(100, 33)), Features(penultimate=6 + normal(40, 33, seed=1))
    detector = WeiPer(linear(4, 33), score=score, repeats=repeats).fit(train)
    assert detector.score(train).isfinite().all() and detector.score(far).isfinite().all()
    if score == "kld":
        assert detector.range_penultimate[0] < 0
        assert detector.score(far).min() > detector.score(train).max()


@drawn_and_limit
def test_random_projections_forget_the_class_rows_and_the_bias(toy: Toy, repeats: int | None):
    lengths = toy.head.weight.detach().norm(dim=1, keepdim=True)
    other = linear(CLASSES, UNITS, seed=9)
    with torch.no_grad():
        other.weight.mul_(lengths / other.weight.norm(dim=1, keepdim=True))
    options = {"repeats": repeats, "random_projections": True}
    a, b = (WeiPer(h, **options).fit(toy.train).score(toy.test) for h in (toy.head, other))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_in_the_limit_random_projections_see_nothing_but_the_length_of_a_feature(toy: Toy):
    z = toy.test.penultimate
    rotation = torch.linalg.qr(normal(UNITS, UNITS)).Q
    for score in ("msp", energy):
        detector = WeiPer(toy.head, score=score, repeats=None, random_projections=True)
        turned = detector.score(Features(penultimate=z @ rotation))
        assert torch.allclose(turned, detector.score(toy.test), rtol=1e-12)
        longer = detector.score(Features(penultimate=1.5 * z))
        assert not torch.allclose(longer, turned, rtol=1e-2)
    kld = WeiPer(toy.head, repeats=None, random_projections=True).fit(toy.train)
    own, shared, confidence = kld.densities(z)
    own_turned, shared_turned, confidence_turned = kld.densities(z @ rotation)
    assert torch.allclose(shared, shared_turned) and torch.allclose(confidence, confidence_turned)
    assert not torch.allclose(own, own_turned)


# -- the limit of infinitely many repeats -----------------------------------------------------------------------


@every_score
@pytest.mark.parametrize("seed", [0, 1])
def test_the_limit_is_what_two_thousand_repeats_approach(toy: Toy, score, seed: int):
    # In units of the spread of the scores, the mean difference is below 3 %: what two seeds differ by at r = 2000.
    both = everything(toy)
    limit = WeiPer(toy.head, score=score, repeats=None).fit(toy.train).score(both)
    drawn = WeiPer(toy.head, score=score, repeats=2000, seed=seed).fit(toy.train).score(both)
    assert correlation(limit, drawn) > 0.999
    assert (limit - drawn).abs().mean() < 0.03 * limit.std()


def test_more_repeats_come_closer_to_the_limit(toy: Toy):
    both = everything(toy)
    limit = WeiPer(toy.head, repeats=None).fit(toy.train).score(both)

    def distance(repeats: int) -> float:
        runs = [WeiPer(toy.head, repeats=repeats, seed=s).fit(toy.train).score(both) for s in range(3)]
        return sum((run - limit).abs().mean().item() for run in runs)

    few, some, many = distance(2), distance(30), distance(450)
    assert few > 2 * some > 4 * many


def test_a_drawn_density_differs_from_the_limit_by_counting_noise_alone(toy: Toy):
    z, limit = everything(toy).penultimate, WeiPer(toy.head, repeats=None).fit(toy.train)
    expected = limit.densities(z)[1]
    values = all_views(WeiPer(toy.head, repeats=100), z).flatten(1)
    found = histogram(values, *limit.range_weiper.tolist(), 100)
    half_normal = (2 / math.pi * expected * (1 - expected) / values.shape[1]).sqrt()  # mean |count noise| per bin
    ratio = (found - expected).abs().sum(1).mean() / half_normal.sum(1).mean()
    assert ratio.item() == pytest.approx(1, abs=0.05)


def test_the_nodes_of_the_limit_integrate_msp_and_energy(toy: Toy, monkeypatch):
    both = everything(toy)
    usual = [WeiPer(toy.head, score=score, repeats=None).score(both) for score in ("msp", energy)]
    monkeypatch.setattr(ood_lib.detectors.weiper, "NODES", 2**13)
    for few, score in zip(usual, ("msp", energy)):
        many = WeiPer(toy.head, score=score, repeats=None).score(both)
        assert (few - many).abs().max() < 0.05 * many.std()


def test_a_little_noise_lowers_the_energy_by_half_its_ambiguous_variance(toy: Toy, monkeypatch):
    monkeypatch.setattr(ood_lib.detectors.weiper, "NODES", 2**15)
    z, delta = toy.ood.penultimate, 0.3
    p, sigma = toy.head(z).softmax(1).detach(), logit_noise(z, toy.head.weight.detach(), delta)
    change = WeiPer(toy.head, score=energy, repeats=None, delta=delta).score(toy.ood) - Energy().score(toy.ood)
    assert torch.allclose(change, -0.5 * (p * (1 - p) * sigma**2).sum(1), rtol=0.02)


# -- the clip of ReAct ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_clip_is_the_percentile_of_all_activations_to_a_65536th_of_their_range(share: float, dtype: torch.dtype):
    z = normal(999, 257, dtype=dtype).relu().pow(2)
    detector = WeiPer(linear(3, 257), score="react", react_percentile=share, repeats=1)
    detector.chunk = 100
    detector.fit(Features(penultimate=z))
    exact = np.quantile(z.double().numpy(), share, method="inverted_cdf")
    step = (z.max() - z.min()).item() / 65536
    assert -1e-6 * step <= detector.clip.item() - exact <= 1.01 * step


@drawn_and_limit
def test_a_clip_above_everything_clips_nothing(toy: Toy, repeats: int | None):
    react = WeiPer(toy.head, score="react", react_percentile=1.0, repeats=repeats).fit(toy.train)
    assert torch.allclose(react.score(toy.train), WeiPer(toy.head, score=energy, repeats=repeats).score(toy.train))


def test_what_exceeds_the_clip_is_not_seen(toy: Toy):
    react = WeiPer(toy.head, score="react", repeats=9).fit(toy.train)
    z = toy.test.penultimate
    louder = torch.where(z > react.clip, 10 * z, z)
    assert (louder != z).any()
    assert torch.equal(react.score(Features(penultimate=louder)), react.score(toy.test))


# -- what is kept, and refusals ---------------------------------------------------------------------------------


def test_neither_the_perturbed_heads_nor_the_training_set_are_kept(toy: Toy):
    sizes = [sum(v.numel() for v in WeiPer(toy.head, repeats=r).fit(toy.train).buffers()) for r in (1, 500)]
    # beside them clip, fitted, threshold, and the widths of four fields
    assert sizes[0] == sizes[1] == CLASSES * UNITS + CLASSES + 2 * 100 + 2 * 2 + 3 + 4


def test_training_the_head_further_does_not_reach_the_detector(toy: Toy):
    head = linear(CLASSES, UNITS)
    detector = WeiPer(head, repeats=3).fit(toy.train)
    before = detector.score(toy.test)
    with torch.no_grad():
        head.weight.mul_(2)
    assert torch.equal(detector.score(toy.test), before)
    assert not any(value.requires_grad for value in detector.buffers()) and not list(detector.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": "entropy"}, {"score": None}, {"repeats": 0}, {"repeats": -3}, {"delta": -0.1}, {"delta": math.nan},
        {"bins": 0}, {"overflow": "wrap"}, {"react_percentile": 0.0}, {"react_percentile": 1.5},
        {"smooth_penultimate": 0}, {"smooth_weiper": 0}, {"eps_penultimate": 0.0}, {"eps_weiper": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_out_of_range_are_named_with_what_was_given(wrong: dict):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r} was given; expected"):
        WeiPer(linear(3, 7), **wrong)


WHOLE = ["repeats", "bins", "smooth_penultimate", "smooth_weiper", "seed"]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [2.0, 2.5, "3", math.nan], ids=str)
def test_what_counts_is_an_integer(name: str, value: object):
    with pytest.raises(ValueError, match=f"^{name}={value!r} was given; expected .*an integer"):
        WeiPer(linear(3, 8), **{name: value})


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_integers_of_every_kind_do(toy: Toy, name: str, kind):
    given, plain = (WeiPer(toy.head, **{"repeats": 5, name: value}).fit(toy.train) for value in (kind(3), 3))
    assert torch.equal(given.score(toy.test), plain.score(toy.test))
    assert repr(given) == repr(plain)


def test_the_limit_has_points_for_so_many_classes_and_says_so():
    most = torch.quasirandom.SobolEngine.MAXDIM
    z = Features(penultimate=normal(2, 1, dtype=torch.float32))
    assert WeiPer(nn.Linear(1, most), score="msp", repeats=None).score(z).isfinite().all()
    with pytest.raises(ValueError, match=rf"repeats=None and a head of {most + 1} classes; expected at most {most}"):
        WeiPer(nn.Linear(1, most + 1), repeats=None)
    WeiPer(nn.Linear(1, most + 1), repeats=1)


def bad(kind: str) -> Features:
    z = normal(20, UNITS)
    if kind == "infinite":
        z[3, 3] = math.inf
    return Features(penultimate={"narrow": z[:, :7], "constant": torch.ones_like(z), "infinite": z}[kind])


@pytest.mark.parametrize("score", ["kld", "react"])
@drawn_and_limit
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("narrow", "7 wide, but the head reads 32"),
        ("constant", "every value is 1: constant features"),
        ("infinite", "1 of 20 rows of penultimate"),
    ],
)
def test_a_failed_fit_says_why_and_changes_nothing(toy: Toy, score: str, repeats: int | None, kind: str, said: str):
    fresh = WeiPer(toy.head, score=score, repeats=repeats)
    fitted = WeiPer(toy.head, score=score, repeats=repeats).fit(toy.train).calibrate(toy.val)
    for detector in (fresh, fitted):
        before = state_of(detector)
        with pytest.raises(ValueError, match=said):
            detector.fit(bad(kind))
        assert unchanged(detector, before)


@drawn_and_limit
def test_a_head_that_says_always_the_same_is_refused_and_nothing_is_written(toy: Toy, repeats: int | None):
    head = nn.Linear(UNITS, CLASSES).double()
    nn.init.zeros_(head.weight)
    nn.init.ones_(head.bias)
    detector = WeiPer(head, repeats=repeats)
    before = state_of(detector)
    with pytest.raises(ValueError, match="every value is 1"):
        detector.fit(toy.train)
    assert unchanged(detector, before)


@every_score
@drawn_and_limit
def test_features_of_another_width_are_refused_when_scored(toy: Toy, score, repeats: int | None):
    detector = WeiPer(toy.head, score=score, repeats=repeats).fit(toy.train)
    with pytest.raises(ValueError, match="7 wide, but the head reads 32"):
        detector.score(bad("narrow"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_features_rank_as_high_precision_ones_do(toy: Toy, dtype: torch.dtype):
    exact = WeiPer(toy.head).fit(toy.train).score(everything(toy))
    low = WeiPer(toy.to(torch.float32).head).fit(cast(toy.train, dtype)).score(cast(everything(toy), dtype))
    least = {torch.float32: 0.99999, torch.float16: 0.999, torch.bfloat16: 0.99}
    assert correlation(exact, low.double()) > least[dtype]

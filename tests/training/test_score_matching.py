"""Laws of denoising score matching: known optima, the identity of Vincent, and a training that gets there."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ood_lib import ScoreNetwork, denoising_error, dsm_loss, noise_scales, shift, train_score_network
from ood_lib.data.images import ImageArray
from ood_lib.training.loop import ema
from ood_lib.training.score_matching import draw_scales
from tests.conftest import normal, seeded

TAU = 0.1  # standard deviation of Gaussian data around mid-grey
SCALES = noise_scales(0.3, 0.03, 5)


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact score of data N(1/2, TAU^2)."""
    return (0.5 - x) / (TAU**2 + sigma**2)


def grey(n: int, seed: int, side: int = 4) -> torch.Tensor:
    return (0.5 + TAU * normal(n, 1, side, side, seed=seed, dtype=torch.float32)).clamp(0, 1)


# -- the loss ----------------------------------------------------------------------------------------------------


def test_the_loss_is_what_its_formula_says():
    x, noise, sigma = normal(5, 2, 3), normal(5, 2, 3, seed=1), torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0]).double()
    by_hand = []
    for n in range(5):
        s = float(sigma[n])
        score = (0.5 - (x[n].numpy() + s * noise[n].numpy())) / (TAU**2 + s**2)
        by_hand.append(0.5 * np.sum((s * score + noise[n].numpy()) ** 2))
    assert np.allclose(dsm_loss(gaussian, x, sigma[:, None, None], noise), by_hand)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_denoising_and_explicit_score_matching_differ_by_a_constant(sigma: float):
    x, noise, scale = 0.5 + TAU * normal(200_000, 1), normal(200_000, 1, seed=1), torch.tensor([sigma]).double()
    noised = x + sigma * noise
    gaps = []
    for network in (gaussian, lambda x, s: -x, lambda x, s: torch.sin(3 * x) / s):
        explicit = (sigma * (network(noised, scale) - gaussian(noised, scale))).square().sum(1) / 2
        gaps.append((dsm_loss(network, x, scale, noise) - explicit).mean().item())
    optimum = TAU**2 / (TAU**2 + sigma**2) / 2
    assert gaps == pytest.approx([optimum] * 3, abs=0.01)


def test_the_error_of_the_exact_score_is_the_closed_form_and_everything_else_is_worse():
    x = 0.5 + TAU * normal(4000, 1, 4, 4, seed=9)  # not the seed of the noise
    exact = denoising_error(gaussian, x, SCALES)
    assert torch.allclose(exact, TAU**2 / (TAU**2 + SCALES**2), rtol=0.02)
    assert (denoising_error(lambda x, s: 1.2 * gaussian(x, s), x, SCALES) > exact).all()
    assert (denoising_error(lambda x, s: gaussian(x, s) + 0.1 / s, x, SCALES) > exact).all()
    assert denoising_error(lambda x, s: 0 * x, x, SCALES).tolist() == pytest.approx([1] * 5, rel=0.02)


def test_the_error_does_not_depend_on_the_batch():
    x = grey(50, 0)
    assert torch.allclose(denoising_error(gaussian, x, SCALES, batch_size=7), denoising_error(gaussian, x, SCALES))


# -- the draw, and the average -------------------------------------------------------------------------------------


def test_scales_are_drawn_evenly_in_their_logarithm():
    sigma = draw_scales(ScoreNetwork(1, sigma_range=(0.01, 1.0)), 1000, seeded()).double()
    assert 0.01 <= sigma.min() and sigma.max() <= 1.0
    u = (sigma.log() / math.log(0.01)).sort().values  # uniform in [0, 1], one in each part
    assert (u - torch.arange(1000) / 1000).abs().max() < 1.1e-3


def test_levels_are_drawn_in_equal_shares():
    levels = noise_scales(count=10).tolist()
    drawn = draw_scales(ScoreNetwork(1, levels=levels), 500, seeded())
    assert sorted(drawn.unique().tolist()) == pytest.approx(sorted(levels))
    assert (drawn.unique(return_counts=True)[1] == 50).all()


def test_the_largest_draw_there_is_has_a_level(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, generator, **own: torch.full((n,), 1 - 2**-24))
    assert draw_scales(ScoreNetwork(1, levels=[0.3, 0.1]), 128, seeded())[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_of_weights_is_the_recursion(decay: float):
    layer = nn.Linear(1, 1, bias=False)
    mean, expected = ema(layer, decay), 0.0
    for t in range(20):
        nn.init.constant_(layer.weight, float(t**2))
        mean.update_parameters(layer)
        memory = min(decay, (1 + t) / (10 + t)) if t else 0.0
        expected = memory * expected + (1 - memory) * t**2
    assert mean.module.weight.item() == pytest.approx(expected, rel=1e-5)


# -- training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> ScoreNetwork:
    torch.manual_seed(0)
    network = ScoreNetwork(1, widths=(8,), sigma_range=(0.03, 0.3))
    history = train_score_network(network, ImageArray(grey(4000, 1)), steps=350, learning_rate=0.01, progress=False)
    assert len(history.loss) == len(history.learning_rate) == 350 and not network.training
    assert np.mean(history.loss[-50:]) < 0.7 * np.mean(history.loss[:50])
    return network


def test_training_reaches_the_optimal_loss_of_gaussian_data(trained: ScoreNetwork):
    best = TAU**2 / (TAU**2 + SCALES**2)
    assert torch.allclose(denoising_error(trained, grey(2000, 2), SCALES), best, rtol=0.1, atol=0.01)
    fresh = denoising_error(ScoreNetwork(1), grey(2000, 2), SCALES)
    assert not torch.allclose(fresh, best, rtol=0.1, atol=0.01)  # so it did learn


def test_training_reaches_the_optimal_score_of_gaussian_data(trained: ScoreNetwork):
    x = grey(500, 3)
    for sigma in SCALES.float():
        noised = x + sigma * normal(*x.shape, seed=4, dtype=torch.float32)
        exact, found = gaussian(noised, sigma), trained(noised, sigma).detach()
        assert (found - exact).norm() < 0.2 * exact.norm()


def test_norm_and_loss_of_a_trained_network_add_up(trained: ScoreNetwork):
    """On noised held-out images mean (sigma |s|)^2 = D (1 - error): the guess is orthogonal to its mistake."""
    x, noise = grey(2000, 5), normal(2000, 1, 4, 4, seed=6, dtype=torch.float32)

    def gap(network: nn.Module) -> torch.Tensor:
        squares = [(s * network(x + s * noise, s)).square().mean().item() for s in SCALES.float()]
        return (torch.tensor(squares) + denoising_error(network, x, SCALES) - 1).abs()

    with torch.no_grad():
        assert gap(trained).max() < 0.08
        assert gap(ScoreNetwork(1)).max() > 0.2


def small(seed: int = 0) -> ScoreNetwork:
    torch.manual_seed(seed)
    return ScoreNetwork(1, widths=(8,))


def test_the_same_seed_trains_the_same_network_and_leaves_the_global_random_numbers_alone():
    data, states = ImageArray(grey(40, 0)), []
    for seed in (0, 0, 1):
        network, before = small(), torch.random.get_rng_state()
        train_score_network(network, data, steps=5, seed=seed, progress=False)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(network(grey(3, 1), 0.1))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("options", [{"autocast": torch.bfloat16}, {"channels_last": True}])
def test_precision_and_memory_format_change_the_speed_and_hardly_the_network(options: dict):
    data, networks = ImageArray(grey(400, 0)), [small(), small()]
    plain, other = (
        train_score_network(network, data, steps=25, learning_rate=0.01, progress=False, **given)
        for network, given in zip(networks, ({}, options))
    )
    weight = networks[1].body.middle.conv1.weight
    assert plain.loss != other.loss or weight.is_contiguous(memory_format=torch.channels_last)  # it was done
    assert other.loss == pytest.approx(plain.loss, rel=0.03)
    assert {p.dtype for p in networks[1].parameters()} == {torch.float32}
    scores = [network(grey(50, 1), 0.1).detach() for network in networks]
    assert (scores[0] - scores[1]).norm() < 0.05 * scores[0].norm()


def test_more_images_than_the_set_has_are_drawn_in_rounds_and_augmented():
    seen = []

    def look(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images)
        return shift(images, 1, generator)

    data = grey(20, 0)
    train_score_network(small(), ImageArray(data), steps=4, batch_size=10, augment=look, progress=False)
    rounds = torch.cat(seen).reshape(2, 20, -1)
    for part in rounds:
        assert torch.equal(part.sort(0).values, data.flatten(1).sort(0).values)


def test_what_cannot_be_trained_is_refused():
    class Nothing(ImageArray):
        def __init__(self) -> None:
            pass

        def __len__(self) -> int:
            return 0

    good = ImageArray(grey(8, 0))
    with pytest.raises(ValueError, match="data set is empty"):
        train_score_network(small(), Nothing())
    with pytest.raises(ValueError, match="steps=0"):
        train_score_network(small(), good, steps=0)
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        train_score_network(small(), good, steps=1, augment=lambda x, _: 255 * x, progress=False)
    with pytest.raises(ValueError, match="learning_rate below"):
        train_score_network(small(), good, steps=60, learning_rate=1e9, progress=False)

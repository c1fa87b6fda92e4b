"""Laws of the score network: what it is before it learns, which images it takes, and how foreign bodies fit in."""

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ood_lib import DiffusersBody, GaussianScore, ScoreNetwork, UNet, noise_scales, score_norms
from ood_lib.networks.score_network import InstanceNormPlus, checked_images, checked_scales
from tests.conftest import seeded


def awake(network: ScoreNetwork, seed: int = 0) -> ScoreNetwork:
    """In double precision, with a last layer that is not zero: every part has a say."""
    torch.manual_seed(seed)
    network = network.double().eval()
    for parameter in network.body.out.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


X = torch.rand(6, 1, 8, 8, generator=seeded(), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("sigma_data", [0.2, 0.5])
def test_before_it_learns_it_is_the_score_of_a_gaussian(sigma: float, sigma_data: float):
    x = X.clone().requires_grad_()
    gaussian = torch.distributions.Normal(0.5, (sigma**2 + sigma_data**2) ** 0.5)
    (exact,) = torch.autograd.grad(gaussian.log_prob(x).sum(), x)
    assert torch.allclose(ScoreNetwork(1, sigma_data=sigma_data).double()(X, sigma), exact, atol=1e-12)
    assert not ScoreNetwork(1, precondition=False).double()(X, sigma).any()


@pytest.mark.parametrize("precondition", [True, False])
def test_the_body_sees_centred_images_and_corrects_in_units_of_the_noise(precondition: bool):
    network = awake(ScoreNetwork(1, sigma_data=0.3, precondition=precondition))
    sigma = torch.tensor(0.4, dtype=torch.float64)
    size = (0.4**2 + 0.3**2) ** 0.5 if precondition else 1.0
    correction = network.body((X - 0.5) / size, sigma.log()[None])
    gain, gaussian = (0.3 / size, -0.4 * (X - 0.5) / size**2) if precondition else (1, 0)
    assert torch.allclose(0.4 * network(X, sigma), gaussian + gain * correction, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "side", "options"),
    [
        (1, 8, {}),
        (3, 8, {"widths": (8,)}),
        (1, 28, {"widths": (8, 12), "patch": 2}),
        (3, 32, {"widths": (8, 16, 24)}),
        (3, 64, {"widths": (8, 16), "patch": 4}),
        (1, 8, {"levels": (1.0, 0.1)}),
        (3, 8, {"norm": "instance++"}),
    ],
)
def test_the_score_has_the_shape_of_the_image_and_every_weight_learns(channels: int, side: int, options: dict):
    network = awake(ScoreNetwork(channels, **options))
    x = torch.rand(2, channels, side, side, dtype=torch.float64)
    scores = network(x, torch.tensor([1.0, 0.1]))
    assert scores.shape == x.shape
    scores.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("options", [{}, {"levels": noise_scales(count=6).tolist()}, {"norm": "instance++"}])
def test_each_image_has_its_own_scale_and_no_say_in_the_others(options: dict):
    network, scales = awake(ScoreNetwork(1, **options)), noise_scales(count=6)
    together = network(X, scales)
    alone = torch.cat([network(X[i : i + 1], scales[i]) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-9)
    assert torch.allclose(network(X, scales[2:3]), network(X, scales[2].expand(6)), atol=1e-9)
    assert torch.equal(network(X, 0.5), network(X, torch.tensor(0.5)))


def test_levels_share_nothing_of_the_embedding():
    network = awake(ScoreNetwork(1, levels=(1.0, 0.1, 0.01)))
    before = [network(X, sigma) for sigma in network.levels]
    with torch.no_grad():
        network.body.own.weight[1] += 1
    changed = [not torch.equal(network(X, sigma), old) for sigma, old in zip(network.levels, before)]
    assert changed == [False, True, False]
    assert network.sigma_range == (0.01, 1.0)


def test_a_saved_network_answers_alike():
    network, file = awake(ScoreNetwork(1)), io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = awake(ScoreNetwork(1), seed=1)
    assert not torch.equal(other(X, 0.1), network(X, 0.1))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(X, 0.1), network(X, 0.1))


def test_a_unet_of_diffusers_is_asked_as_diffusers_asks():
    asked = {}

    class Stand(nn.Module):  # the interface of UNet2DModel
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
            asked.update(sample=sample, timestep=timestep)
            return SimpleNamespace(sample=self.conv(sample))

    stand = Stand()
    network = ScoreNetwork(1, body=DiffusersBody(stand), sigma_data=0.3)
    size = 0.5  # of 0.3 and 0.4
    by_hand = 0.3 / size * stand.conv((X - 0.5) / size) - 0.4 * (X - 0.5) / size**2
    assert torch.allclose(0.4 * network(X, 0.4), by_hand, atol=1e-12)
    assert torch.allclose(asked["sample"], (X - 0.5) / size)
    network(X, torch.full((6,), 0.01))
    assert asked["timestep"].shape == (6,) and 0 < asked["timestep"].min() < asked["timestep"].max() + 1 < 1000
    assert len(list(network.parameters())) == 2  # it trains what it was given, and nothing beside it


def test_scales_are_geometric_and_the_defaults_the_papers():
    scales = noise_scales()
    paper = [1.0, 0.599, 0.359, 0.215, 0.129, 0.0774, 0.0464, 0.0278, 0.0167, 0.01]
    assert scales.tolist() == pytest.approx(paper, rel=3e-3)
    assert torch.allclose(scales[1:] / scales[:-1], scales[1] / scales[0])
    assert noise_scales(0.5, 0.5, 1).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("options", [{"smallest": 0}, {"smallest": 2}, {"count": 1}, {"largest": float("nan")}])
def test_impossible_scales_are_refused(options: dict):
    with pytest.raises(ValueError, match="expected 0 < smallest <= largest"):
        noise_scales(**options)


@pytest.mark.parametrize("sigmas", [[], [0.1, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [float("nan")], [[1.0, 0.1]]])
def test_scales_out_of_order_or_not_positive_are_refused(sigmas: list):
    with pytest.raises(ValueError, match="from the largest to the smallest"):
        checked_scales(sigmas)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, float("nan")])
def test_pixels_outside_0_to_1_are_refused(value: float):
    assert checked_images(X) is X
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        checked_images(torch.cat([X, torch.full_like(X, value)]))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 9, 8), (2, 1, 8, 7)])
def test_images_that_do_not_fit_are_named(shape: tuple):
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\) with sides that 2 divides"):
        ScoreNetwork(1)(torch.zeros(shape), 0.1)


@pytest.mark.parametrize("options", [{"sigma_range": (1.0, 0.01)}, {"sigma_range": (0.0, 1.0)}, {"levels": (0.1, 1.0)}])
def test_a_network_for_impossible_scales_is_refused(options: dict):
    with pytest.raises(ValueError, match="from the largest to the smallest"):
        ScoreNetwork(1, **options)
    with pytest.raises(ValueError, match="sigma_data=0"):
        ScoreNetwork(1, sigma_data=0)


def test_log_sigma_is_told_apart_over_the_whole_range():
    e = UNet(1).embedding(noise_scales(count=50).log().float())
    distances = torch.cdist(e, e) + torch.eye(50) * 9
    assert distances.min() > 1e-3


# -- the norm layer ------------------------------------------------------------------------------------------------

MAPS = torch.rand(3, 5, 8, 8, generator=seeded(), dtype=torch.float64)


def test_instance_norm_plus_standardises_a_map_and_gives_its_level_back():
    layer = InstanceNormPlus(5).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5, 5) + i)
    found, levels = layer(100 * MAPS), MAPS.mean((2, 3))  # so large that epsilon is nothing beside their variance
    standard = (levels - levels.mean(1, keepdim=True)) / levels.std(1, correction=0, keepdim=True)
    assert torch.allclose(found.mean((2, 3)), layer.bias + layer.alpha * standard, rtol=1e-3)
    assert torch.allclose(found.std((2, 3), correction=0), layer.weight.expand(3, 5), rtol=1e-3)


def test_instance_norm_plus_is_blind_to_what_all_maps_share_and_not_to_what_one_has():
    layer, one = InstanceNormPlus(5).double(), torch.eye(5, dtype=torch.float64)[0][:, None, None]
    assert torch.allclose(layer(MAPS + 7), layer(MAPS), atol=1e-9)
    assert torch.allclose(layer(9 * MAPS), layer(MAPS), atol=0.1)  # up to epsilon
    assert (layer(MAPS + one) - layer(MAPS)).abs().max() > 0.5  # which a plain instance norm would not see
    with torch.no_grad():
        layer.alpha.zero_()
    assert torch.allclose(layer(MAPS + one), layer(MAPS), atol=1e-9)


def test_instance_norm_plus_computes_levels_of_half_precision_in_single():
    layer = InstanceNormPlus(5)
    found = layer((MAPS + 1).bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), layer((MAPS + 1).bfloat16().float()), atol=0.05)


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match=r"norm='batch' was given; expected 'group' or 'instance\+\+'"):
        ScoreNetwork(1, norm="batch")  # type: ignore[arg-type]


# -- the Gaussian --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0])
def test_the_score_of_a_gaussian_is_the_gradient_of_its_log_density(sigma: float):
    images = torch.rand(50, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    flat, x = images.flatten(1), X[:, :, :3, :3].clone().requires_grad_()
    covariance = torch.cov(flat.T, correction=0) + sigma**2 * torch.eye(9)
    density = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    (exact,) = torch.autograd.grad(density.log_prob(x.flatten(1)).sum(), x)
    score = GaussianScore(images)
    assert torch.allclose(score(x, sigma), exact)
    assert torch.allclose(score(x, torch.tensor([sigma, *[9.0] * 5]))[0], exact[0])


def test_all_scales_of_an_isotropic_gaussian_rank_alike_and_those_of_another_do_not():
    corners = torch.cat([torch.eye(4), -torch.eye(4)]).double()  # covariance I / 4
    x = torch.rand(20, 4, generator=seeded(), dtype=torch.float64)
    norms = score_norms(GaussianScore(corners), x, noise_scales(count=5))
    assert torch.allclose(norms / norms[0], (norms / norms[0])[:, :1].expand(20, 5))
    stretched = torch.tensor([1.0, 1.0, 0.1, 0.01])
    ranks = score_norms(GaussianScore(corners * stretched), x, noise_scales(count=5)).argsort(0)
    assert not torch.equal(ranks[:, 0], ranks[:, -1])


def test_a_gaussian_of_one_image_is_refused():
    with pytest.raises(ValueError, match="images=1 was given"):
        GaussianScore(X[:1])

"""Laws of the scores that ask for gradients: ODIN, GradNorm."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ood_lib import MSP, ODIN, Features, GradNorm, ODINNetwork, ResNet, extract, gradnorm, msp, odin
from ood_lib.detectors.classical.odin import odin_images
from tests.conftest import normal

IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet(channels=3, classes=4, widths=(4, 8)).eval()


# -- ODIN -------------------------------------------------------------------------------------------------------


def test_odin_agrees_with_the_paper_step_by_step(network: ResNet):
    x = IMAGES.clone().requires_grad_()
    logits = network(x)
    p = (logits / 1000).softmax(1)
    (-p.amax(1).log()).sum().backward()
    moved = IMAGES - 0.0014 * x.grad.sign()
    network.zero_grad()
    expected = -(network(moved) / 1000).softmax(1).amax(1).detach()
    assert torch.allclose(odin(network, IMAGES), expected, rtol=0, atol=1e-7)


def test_without_step_and_temperature_odin_is_msp(network: ResNet):
    assert torch.allclose(odin(network, IMAGES, temperature=1, epsilon=0), msp(network(IMAGES).detach()), rtol=1e-6)


def test_a_step_makes_the_network_more_confident(network: ResNet):
    for temperature in (1.0, 1000.0):
        plain, moved = (odin(network, IMAGES, temperature, epsilon) for epsilon in (0, 0.001))
        assert (moved < plain).all()


def test_the_multilabel_step_raises_the_largest_logit_where_it_is_positive_and_lowers_it_where_not(network: ResNet):
    for shift in (-5.0, 5.0):
        moved = odin_images(lambda x, s=shift: network(x) + s, IMAGES, epsilon=1e-4, multilabel=True)
        gained = (network(moved) - network(IMAGES)).gather(1, network(IMAGES).argmax(1, keepdim=True))
        assert (gained * shift > 0).all()


def test_the_multilabel_step_is_that_of_the_binary_cross_entropy_of_the_largest_logit(network: ResNet):
    x = IMAGES.clone().requires_grad_()
    largest = network(x).amax(1)
    F.binary_cross_entropy_with_logits(largest, (largest >= 0).float(), reduction="sum").backward()
    moved = IMAGES - 0.01 * x.grad.sign()
    network.zero_grad()
    assert torch.allclose(odin_images(network, IMAGES, epsilon=0.01, multilabel=True), moved, atol=1e-7)
    features = extract(ODINNetwork(network, 1, 0.01, multilabel=True), [(x, 0) for x in IMAGES], progress=False)
    assert torch.allclose(features.logits, network(moved).detach(), atol=1e-6)


def test_the_step_of_a_linear_network_is_known():
    weight = normal(2, 3 * 8 * 8, seed=1).float()
    images = torch.rand(1, 3, 8, 8)
    best = (images.flatten(1) @ weight.T).argmax(1).item()
    towards = (weight[best] - weight[1 - best]).sign().view(1, 3, 8, 8)
    moved = odin_images(lambda x: x.flatten(1) @ weight.T, images, epsilon=0.01)
    assert torch.allclose(moved - images, 0.01 * towards, atol=1e-6)


def test_the_step_is_measured_in_pixels_before_they_were_standardised(network: ResNet):
    std = (0.1, 0.5, 2.0)
    step = (odin_images(network, IMAGES, epsilon=0.01, std=std) - IMAGES).abs()
    expected = (0.01 / torch.tensor(std))[:, None, None].expand(IMAGES.shape)
    assert torch.allclose(step, expected, rtol=1e-3)


def test_where_the_gradient_is_zero_the_step_goes_down():
    moved = odin_images(lambda x: torch.zeros(len(x), 2) * x.sum(), IMAGES, epsilon=0.25)
    assert torch.allclose(moved, IMAGES - 0.25)  # and nothing is clipped
    assert moved.min() < 0


def test_odin_leaves_no_gradient_and_no_trace(network: ResNet):
    images = IMAGES.clone()
    with torch.no_grad():  # the gradient is asked for even where gradients are off
        scores = odin(network, images)
    assert torch.equal(images, IMAGES) and not images.requires_grad and not scores.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_images_do_not_influence_each_other(network: ResNet):
    alone = torch.cat([odin(network, image[None]) for image in IMAGES])
    assert torch.allclose(alone, odin(network, IMAGES), rtol=0, atol=1e-6)


def test_extraction_through_a_perturbed_network_gives_what_odin_reads(network: ResNet):
    data = [(image, 0) for image in IMAGES]
    features = extract(ODINNetwork(network, epsilon=0.01), data, batch_size=5, device="cpu", progress=False)
    assert torch.allclose(ODIN().score(features), odin(network, IMAGES, epsilon=0.01), rtol=0, atol=1e-6)
    assert not network.training  # although the wrapper, like every fresh module, is in training mode
    plain = extract(network, data, device="cpu", progress=False)
    assert torch.allclose(ODIN().score(plain), odin(network, IMAGES, epsilon=0), rtol=0, atol=1e-6)


def test_a_perturbed_network_is_a_network(network: ResNet):
    perturbed = ODINNetwork(network)
    assert perturbed.head is network.head
    assert torch.equal(perturbed(IMAGES), perturbed.represent(IMAGES).logits)
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 2))
    assert ODINNetwork(foreign).represent(IMAGES).penultimate.shape == (12, 6)


def test_caches_of_different_steps_are_different(network: ResNet, tmp_path):
    data = [(image, 0) for image in IMAGES]
    for made in (
        network,
        ODINNetwork(network),
        ODINNetwork(network, epsilon=0.01),
        ODINNetwork(network, temperature=1.0),
    ):
        extract(made, data, device="cpu", cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4


def test_odin_is_msp_at_its_temperature():
    features = Features(logits=3 * normal(20, 5))
    assert torch.equal(ODIN(10.0).score(features), MSP(10.0).score(features))
    assert ODIN().temperature == 1000


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"epsilon": -0.1}, {"temperature": float("nan")}])
def test_a_step_backwards_and_no_temperature_are_refused(network: ResNet, wrong: dict[str, float]):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.*; expected .*(temperature > 0|epsilon >= 0)"):
        ODINNetwork(network, **wrong)


# -- GradNorm ---------------------------------------------------------------------------------------------------


def test_gradnorm_is_the_norm_of_the_gradient():
    head, z = nn.Linear(9, 5).double(), normal(20, 9)
    expected = []
    for row in z:
        head.zero_grad()
        loss = -head(row[None]).log_softmax(1).sum()  # cross-entropy with all-ones targets
        loss.backward()
        expected.append(-head.weight.grad.abs().sum())
    assert torch.allclose(gradnorm(z, head(z).detach()), torch.stack(expected), rtol=1e-10)


def test_uniform_targets_divide_gradnorm_by_the_number_of_classes():
    head, z = nn.Linear(9, 5).double(), normal(1, 9)
    F.cross_entropy(head(z), torch.full((1, 5), 0.2, dtype=torch.float64)).backward()
    assert torch.allclose(5 * head.weight.grad.abs().sum(), -gradnorm(z, head(z).detach())[0], rtol=1e-10)


def test_an_undecided_network_has_no_gradient_and_a_certain_one_the_largest():
    z = normal(20, 9)
    assert torch.allclose(gradnorm(z, torch.zeros(20, 5).double()), torch.zeros(20).double(), atol=1e-12)
    logits = 3 * normal(20, 5, seed=1)
    certain = gradnorm(z, 1e4 * torch.eye(5).double()[torch.arange(20) % 5])
    assert torch.allclose(certain, -2 * 4 * z.abs().sum(1)) and (gradnorm(z, logits) >= certain).all()


def test_gradnorm_scales_with_the_feature_and_ignores_a_shift_of_the_logits():
    z, logits = normal(20, 9), normal(20, 5, seed=1)
    assert torch.allclose(gradnorm(-7 * z, logits + 3), 7 * gradnorm(z, logits), rtol=1e-12)
    assert torch.equal(GradNorm().score(Features(penultimate=z, logits=logits)), gradnorm(z, logits))

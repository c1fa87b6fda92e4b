"""Laws of the fast network: whitened patches have no correlation, a block halves, and it answers as a `ResNet`."""

import pytest
import torch
from conftest import seeded
from torch.nn import functional as F

from ood_lib import FastResNet
from ood_lib.fast_resnet import PooledBlock, Whiten


def images(count: int = 3, channels: int = 3, side: int = 20) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=seeded())


def smooth(count: int) -> torch.Tensor:
    """Images whose neighbouring pixels tell nearly the same, with mean zero."""
    x = F.avg_pool2d(images(count), 3, 1)
    return x - x.mean((0, 2, 3), keepdim=True)


# -- the first layer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 3])
def test_whitened_patches_have_no_correlation_and_unit_size(side: int):
    white = Whiten(3, side, eps=0.0).fit(smooth(200))
    seen = white(smooth(200))
    assert seen.shape == (200, white.outputs, 19 - side, 19 - side) and white.outputs == 6 * side**2
    direct, negative = seen.movedim(1, 0).flatten(1).chunk(2)
    assert torch.allclose(direct @ direct.T / direct.shape[1], torch.eye(3 * side**2), atol=1e-3)
    assert torch.equal(negative, -direct)


def test_a_direction_that_hardly_varies_is_not_blown_up():
    flat = torch.rand(50, 1, 1, 1, generator=seeded()).expand(-1, 1, 6, 6) - 0.5  # every pixel of an image alike
    noisy = flat + 1e-3 * images(50, 1, 6)
    assert Whiten(1, eps=1e-2).fit(flat)(noisy).abs().amax() < 3 < Whiten(1, eps=1e-9).fit(flat)(noisy).abs().amax()


def test_whitening_keeps_single_precision_is_not_learned_and_is_saved_with_the_network():
    white = Whiten(3).fit(smooth(50))
    with torch.autocast("cpu", torch.bfloat16):
        assert white(smooth(5)).dtype == torch.float32
    again = Whiten(3)
    again.load_state_dict(white.state_dict())
    assert torch.equal(again(smooth(5)), white(smooth(5)))
    assert not list(white.parameters())


# -- a block --------------------------------------------------------------------------------------------------------


def test_a_block_halves_the_resolution_and_its_shortcut_passes_what_the_second_convolution_leaves_out():
    block = PooledBlock(3, 5).eval()
    assert block(images(2)).shape == (2, 5, 10, 10)
    torch.nn.init.zeros_(block.conv2.weight)
    alone = F.max_pool2d(F.conv2d(images(2), block.conv1.weight, padding=1), 2).relu()  # a fresh norm changes nothing
    assert torch.allclose(block(images(2)), alone, atol=1e-4)


def test_a_shift_of_one_pixel_changes_a_block_less_than_a_stride_would():
    x = smooth(8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    block = PooledBlock(3, 4).eval()
    pooled = [F.max_pool2d(block.conv1(v), 2) for v in (x, x.roll(1, 3))]
    strided = [block.conv1(v)[..., ::2, ::2] for v in (x, x.roll(1, 3))]
    change = [(a - b)[..., 2:-2].square().mean() / a.square().mean() for a, b in (pooled, strided)]
    assert change[0] < change[1]


# -- the network ----------------------------------------------------------------------------------------------------


def test_the_head_makes_the_logits_from_a_feature_that_is_not_negative():
    network = FastResNet(3, 4, (4, 8)).fit_stem(images(20)).eval()
    seen = network.represent(images(5))
    assert seen.penultimate.shape == seen.style.shape == (5, 8) and seen.logits.shape == (5, 4)
    assert torch.equal(network.head(seen.penultimate), seen.logits)
    assert (seen.penultimate >= 0).all()


def test_before_its_stem_is_fitted_it_refuses_and_afterwards_it_sees_what_normalize_leaves():
    class Shifted(torch.nn.Module):
        def forward(self, x):
            return x - 0.5

    network = FastResNet(3, 4, (4,), normalize=Shifted()).eval()
    with pytest.raises(ValueError, match=r"not measured yet .* call fit_stem\(images\)"):
        network.represent(images(5))
    state = network.fit_stem(images(20)).state_dict()
    assert torch.equal(network.stem[0].weight, Whiten(3).fit(images(20) - 0.5).weight)
    other = FastResNet(3, 4, (4,), normalize=Shifted()).eval()
    other.load_state_dict(state)
    assert torch.equal(other(images(5)), network(images(5)))


def test_every_weight_learns():
    network = FastResNet(3, 4, (4, 8)).fit_stem(images(20))
    network(images(5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

"""Laws of what tells networks apart: whatever changes an output changes it, and nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ood_lib import ResNet, ScoreNorms, adapt, extract
from ood_lib.features.identity import network_hash
from ood_lib.networks.network import Representation
from tests.conftest import seeded

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """A network with plain attributes."""

    def __init__(self, **told: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.looks, self._last = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), 0, None
        self.act, self.scale, self.scales, self.fixed = torch.relu, 1.0, [1.0, 0.1], torch.ones(1)
        vars(self).update(told)

    def represent(self, x: torch.Tensor) -> Representation:
        self.looks += len(x)
        self._last = x.shape
        z = self.act(self.conv(x)).mean((2, 3)) * self.scale * self.fixed.to(x) + sum(self.scales)
        return Representation(z, self.head(z), None)


def shifted(by: float):
    return lambda x: x + by


class Later(Net):
    def represent(self, x: torch.Tensor) -> Representation:
        return super().represent(x.flip(3))


Later.__name__ = Later.__qualname__ = "Net"

OTHERS = {
    "an attribute": lambda: Net(scale=3.0),
    "the fifth digit": lambda: Net(scale=1.00001),
    "a scale": lambda: Net(scales=[1.0, 0.10000001]),
    "a constant tensor": lambda: Net(fixed=torch.full((1,), 2.0)),
    "a function": lambda: Net(act=torch.tanh),
    "a function of Python": lambda: Net(act=F.gelu),
    "what a function holds": lambda: Net(act=shifted(1e-9)),
    "what another holds": lambda: Net(act=shifted(2e-9)),
    "forward": Later,
}


def test_whatever_changes_the_output_makes_another_network():
    found = {name: network_hash(make(), SHAPE) for name, make in OTHERS.items()} | {"plain": network_hash(Net(), SHAPE)}
    assert str(Net()) == str(Later())
    assert len(set(found.values())) == len(found)


def test_an_equal_network_is_the_same_one_in_any_mode_and_after_use():
    network = Net()
    first = network_hash(network, SHAPE)
    network.represent(torch.zeros(5, *SHAPE))
    assert network.looks == 5  # nothing was counted for the hash
    again = [network_hash(x, SHAPE) for x in (network, network.train(), copy.deepcopy(network), Net())]
    assert set(again) == {first} and network.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_does_not_matter(dtype: torch.dtype):
    torch.manual_seed(0)
    network = ResNet(1, 3, (4, 8)).to(dtype).eval()
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found += [
            network_hash(network, SHAPE),
            network_hash(copy.deepcopy(network).to(memory_format=torch.channels_last), SHAPE),
        ]
    torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_another_head_of_one_model_is_another_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 3), nn.Softmax(1)).eval()
    first, second = (adapt(model, head=False), adapt(model[:3], head="2"))
    assert network_hash(first, SHAPE) != network_hash(second, SHAPE)


def test_a_network_that_computes_in_single_precision_alone_and_one_that_draws_are_known_again():
    class Single(Net):
        def represent(self, x: torch.Tensor) -> Representation:
            return super().represent(x.float() + torch.rand(1))

    class Locked(Net):
        def __deepcopy__(self, memo: dict) -> None:
            raise TypeError("cannot be copied")

    for kind in (Single, Locked):
        assert network_hash(kind(), SHAPE) == network_hash(kind(), SHAPE) != network_hash(kind(scale=3.0), SHAPE)


def test_scales_of_noise_count_in_full():
    def score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return -x / (1 + sigma**2)

    body = nn.Module()
    body.forward = score
    hashes = {network_hash(ScoreNorms(body, [1.0, s]), SHAPE) for s in (0.1, 0.10001, 0.100001)}
    assert len(hashes) == 3


def test_a_network_that_is_printed_with_an_address_is_refused_where_a_file_is_made(tmp_path):
    class Printed(Net):
        def extra_repr(self) -> str:
            return f"act={self.act}, f={shifted(1)}"

    data = [(torch.rand(SHAPE, generator=seeded()), 0)] * 4
    with pytest.raises(ValueError, match=r"printed with <.* at 0x.*>, an address: .*leave out cache= and out="):
        extract(Printed(), data, cache=tmp_path, device="cpu", progress=False)
    assert len(extract(Printed(), data, device="cpu", progress=False)) == 4

"""Laws of the memory layout: the channel comes last where that was asked for, unless a kernel would destroy memory."""

import pytest
import torch
from torch import nn

import ood_lib as ood
from ood_lib.networks.layout import memory_format
from tests.training.test_classifier import stripes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAST, USUAL = torch.channels_last, torch.contiguous_format


def conv(channels=4, size=1, stride=2, groups=1):
    return nn.Sequential(nn.Conv2d(channels, 8, size, stride, groups=groups))


@pytest.mark.parametrize("capability, register", [("AVX2", 8), ("AVX512", 16), ("DEFAULT", 16)])
def test_a_strided_convolution_of_size_one_needs_a_register_of_channels(monkeypatch, capability, register):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for channels in (1, 4, 7, 8, 12, 16, 64):
        assert memory_format(conv(channels), True, CPU) == (USUAL if channels < register else LAST)
    assert memory_format(conv(64, groups=8), True, CPU) == (LAST if register == 8 else USUAL)


def test_other_layers_other_devices_and_other_wishes_decide_for_themselves():
    for network in (conv(size=3), conv(stride=1), nn.Linear(4, 2), nn.Sequential()):
        assert memory_format(network, True, CPU) == LAST
    assert memory_format(conv(), True, CUDA) == LAST
    for network in (conv(), conv(64)):
        assert memory_format(network, False, CPU) == USUAL


@pytest.mark.parametrize("widths", [[4, 8], [8, 16]])
def test_training_is_the_same_in_both_layouts_and_survives_narrow_shortcuts(widths):
    def trained(train, network, images, **options):
        train(network, images, batch_size=16, device="cpu", progress=False, **options)
        return torch.cat([p.detach().reshape(-1) for p in network.parameters()])

    def classifier():
        torch.manual_seed(0)
        return ood.ResNet(1, 2, widths)

    first, second = (
        trained(ood.train_classifier, classifier(), stripes(48, 32), channels_last=last, epochs=1, learning_rate=1e-3)
        for last in (False, True)
    )
    assert torch.allclose(first, second, rtol=1e-3, atol=1e-5)

"""Laws of the networks of others: the architecture is the published one, and only its own checkpoint fits."""

import pytest
import torch
from safetensors.torch import save_file

from ood_lib.training.published import PUBLISHED, CIFARResNet, densenet_bc, published

# The papers round them to .8 and .85 million.
WEIGHTS = {"cifar10-densenet": 769_162, "cifar100-densenet": 800_032, "cifar10-resnet56": 853_018}


def former(key):
    """The name that DICE's checkpoint gives to a parameter of torchvision's DenseNet."""
    parts = key.split(".")
    if "denselayer" in key:
        block, layer = (int("".join(filter(str.isdigit, part))) for part in parts[1:3])
        kind = parts[3].replace("norm", "bn")
        return f"block{block}.layer.{layer - 1}.{kind}.{parts[4]}"
    if "transition" in key:
        return f"trans{parts[1][-1]}.{'bn1' if parts[2] == 'norm' else 'conv1'}.{parts[3]}"
    first = {"conv0": "conv1", "norm5": "bn1"}.get(parts[1], "fc")
    return f"{first}.{parts[-1]}"


def checkpoint(name):
    torch.manual_seed(0)
    network = PUBLISHED[name].network().eval()
    state = {k: x for k, x in network.state_dict().items() if "num_batches" not in k}
    return network, {former(k) if PUBLISHED[name].names else k: x for k, x in state.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_under_its_own_names_makes_the_same_network(name, tmp_path):
    network, state = checkpoint(name)
    save_file(state, tmp_path / "w.safetensors")
    found = published(name, tmp_path / "w.safetensors")
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (PUBLISHED[name].mean, PUBLISHED[name].std))
    assert torch.allclose(found(images), network((images - mean) / std), rtol=1e-4)
    seen = found.represent(images)
    assert seen.penultimate.shape == seen.style.shape == (2, 64 if "resnet" in name else 342)
    assert not found.training and not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_weights_as_its_paper_says(name):
    assert sum(p.numel() for p in PUBLISHED[name].network().parameters()) == WEIGHTS[name]


def test_maps_have_the_sizes_of_the_papers():
    maps = densenet_bc(10).eval().features(torch.rand(1, 3, 32, 32))
    assert maps.shape == (1, 342, 8, 8)
    network = CIFARResNet(1, 10).eval()
    assert network.layer3(network.layer2(network.layer1(torch.rand(1, 16, 32, 32)))).shape == (1, 64, 8, 8)


def test_another_checkpoint_is_refused(tmp_path):
    _, state = checkpoint("cifar10-resnet56")
    save_file({k: x for k, x in state.items() if k != "linear.bias"}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"no checkpoint of cifar10-resnet56: 1 names differ, \['linear.bias'\]"):
        published("cifar10-resnet56", tmp_path / "w.safetensors")

"""Laws of the networks of others: the architecture is the published one, and only its own checkpoint fits."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ood_lib.training.named import load_network
from ood_lib.training.published import PUBLISHED, CIFARResNet, densenet_bc, mobilenet_same

# The papers round them to .8 and .85 million.
WEIGHTS = {"cifar10-densenet": 769_162, "cifar100-densenet": 800_032, "cifar10-resnet56": 853_018}
WEIGHTS["voc-mobilenetv2"] = 3_506_153  # torchvision's, and a row of 1,281 for the class *background*


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
    if name == "voc-mobilenetv2":
        return network, folded(network)
    state = {k: x for k, x in network.state_dict().items() if "num_batches" not in k}
    return network, {former(k) if "densenet" in name else k: x for k, x in state.items()}


def folded(network):
    """The weights of a network, rounded to a byte each: what a quantized file holds; the network is rounded too."""
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    adding = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)] + [layers[-1]]
    state = {}
    for i, (layer, last) in enumerate(zip(layers, adding, strict=True)):
        last.bias.data.normal_()
        scale = layer.weight.detach().flatten(1).abs().amax(1) / 127
        bytes_ = (layer.weight.detach().flatten(1) / scale[:, None]).round().to(torch.int8)
        layer.weight.data = (bytes_ * scale[:, None]).view_as(layer.weight)
        shape = (*layer.weight.shape, *(1,) * (4 - layer.weight.ndim))
        state |= {f"{i:02}.weight_q": bytes_.view(shape), f"{i:02}.scale": scale, f"{i:02}.bias": last.bias.detach()}
        if last is not layer:  # a BatchNorm that divides by 1
            last.running_var.fill_(1 - last.eps)
    return state


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_under_its_own_names_makes_the_same_network(name, tmp_path):
    network, state = checkpoint(name)
    save_file(state, tmp_path / "w.safetensors")
    found = load_network(name, weights=tmp_path / "w.safetensors")
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (PUBLISHED[name].mean, PUBLISHED[name].std))
    assert torch.allclose(found(images), network((images - mean) / std), rtol=1e-4)
    seen = found.represent(images)
    width = {"resnet56": 64, "densenet": 342, "mobilenetv2": 1280}[name.partition("-")[2]]
    assert seen.penultimate.shape == seen.style.shape == (2, width)
    assert not found.training and not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_weights_as_its_paper_says(name):
    assert sum(p.numel() for p in PUBLISHED[name].network().parameters()) == WEIGHTS[name]


def test_maps_have_the_sizes_of_the_papers():
    maps = densenet_bc(10).eval().features(torch.rand(1, 3, 32, 32))
    assert maps.shape == (1, 342, 8, 8)
    network = CIFARResNet(1, 10).eval()
    assert network.layer3(network.layer2(network.layer1(torch.rand(1, 16, 32, 32)))).shape == (1, 64, 8, 8)


@pytest.mark.parametrize("side", [6, 7])
def test_mobilenet_pads_its_strides_at_the_end(side):
    first = mobilenet_same().features[0][0]
    image = torch.rand(1, 3, side, side)
    known = image.numpy()
    total = 3 - (2 if side % 2 == 0 else 1)  # SAME: as many windows as ceil(side / 2), what is odd at the end
    before = total // 2
    padded = np.pad(known, ((0, 0), (0, 0), (before, total - before), (before, total - before)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    expected = np.einsum("ncijkl,ockl->noij", windows, first.weight.detach().numpy())
    assert expected.shape[-1] == (side + 1) // 2
    assert np.allclose(first(image).detach().numpy(), expected, atol=1e-5)


def test_another_checkpoint_is_refused(tmp_path):
    _, state = checkpoint("cifar10-resnet56")
    save_file({k: x for k, x in state.items() if k != "linear.bias"}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"not hold the weights of cifar10-resnet56: it lacks linear\.bias$"):
        load_network("cifar10-resnet56", weights=tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"no checkpoint of voc-mobilenetv2: it holds no '00\.weight_q'"):
        load_network("voc-mobilenetv2", weights=tmp_path / "w.safetensors")

"""Networks that others trained: their architecture, to read a checkpoint that its authors published.

Their weights do not come with the library.  Whoever has them, as a safetensors file with the parameters named as in the
checkpoint, makes the bank again with ``python -m ood_lib NAME --weights FILE``.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet, MobileNetV2, mobilenet_v2
from torchvision.models.resnet import BasicBlock

__all__ = ["PUBLISHED", "CIFARResNet", "Published", "densenet_bc", "mobilenet_same"]


class CIFARResNet(nn.Module):
    """The residual network for 32 x 32 images (He et al., CVPR 2016, section 4.2), of 6 n + 2 layers.

    Shortcuts have no weights (their option A): they skip every second pixel and fill the new channels with zeros.

    Args:
        n: blocks in each of the three stages; 9 for ResNet-56.
        classes: C.
    """

    def __init__(self, n: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_block(before, width), *(BasicBlock(width, width) for _ in range(n - 1)))
            for before, width in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Standardised images (N, 3, 32, 32) to logits (N, C)."""
        maps = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        return self.linear(maps.mean((2, 3)))


def _block(before: int, width: int) -> BasicBlock:
    return BasicBlock(before, width) if before == width else BasicBlock(before, width, 2, _Padded(width - before))


class _Padded(nn.Module):
    """Every second pixel, with so many channels of zeros more, half of them on each side."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


def densenet_bc(classes: int) -> DenseNet:
    """DenseNet-BC of 100 layers and growth 12 for 32 x 32 images (Huang et al., CVPR 2017, section 4)."""
    network = DenseNet(12, (16, 16, 16), 24, bn_size=4, num_classes=classes)
    network.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):  # the stem for ImageNet's large images
        delattr(network.features, name)
    return network


_DENSENET_NAMES: list[Any] = [  # (name in the checkpoint, name in torchvision's network)
    (r"^conv1\.", "features.conv0."),
    (r"^bn1\.", "features.norm5."),
    (r"^fc\.", "classifier."),
    (r"^trans(\d)\.bn1", r"features.transition\1.norm"),
    (r"^trans(\d)\.conv1", r"features.transition\1.conv"),
    (r"^block(\d)\.layer\.(\d+)\.(bn|conv)", lambda m: _dense_layer(*m.groups())),
]


def _dense_layer(block: str, layer: str, kind: str) -> str:
    return f"features.denseblock{block}.denselayer{int(layer) + 1}.{'norm' if kind == 'bn' else kind}"


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of DICE's checkpoint under torchvision's names."""

    def rename(key: str) -> str:
        for pattern, name in _DENSENET_NAMES:
            key, found = re.subn(pattern, name, key)
            if found:
                break
        return key

    return {rename(key): value for key, value in state.items()}


def mobilenet_same() -> MobileNetV2:
    """MobileNetV2 as TensorFlow pads it: convolutions of stride 2 see a zero at the right and at the bottom only.

    Where the side is odd, one on each side.  It has 1,001 classes; number 0 is *background*.
    """
    network = mobilenet_v2(num_classes=1001)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(_pad_same)
    return network


def _pad_same(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    height, width = inputs[0].shape[-2:]
    return (F.pad(inputs[0], (width % 2, 1, height % 2, 1)),)


def _unfolded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a quantized MobileNetV2 without BatchNorm, as those of torchvision's.

    Layer i has NN.weight_q (int8), NN.scale for each channel, and NN.bias; a BatchNorm that only adds the bias follows.
    """
    network = mobilenet_v2(num_classes=1001)
    pairs = [m for m in network.named_modules() if isinstance(m[1], nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    unread, layer = dict(state), -1
    found: dict[str, Tensor] = {}
    for name, module in pairs:
        if isinstance(module, nn.BatchNorm2d):
            one = torch.ones(module.num_features)
            found |= {f"{name}.weight": one, f"{name}.running_mean": 0 * one, f"{name}.running_var": one - module.eps}
            found[f"{name}.bias"] = unread.pop(f"{layer:02}.bias")
            continue
        layer += 1
        weight = unread.pop(f"{layer:02}.weight_q") * unread.pop(f"{layer:02}.scale").view(-1, 1, 1, 1)
        found[f"{name}.weight"] = weight.flatten(1) if isinstance(module, nn.Linear) else weight
        if isinstance(module, nn.Linear):
            found[f"{name}.bias"] = unread.pop(f"{layer:02}.bias")
    return found | unread  # names that are left over are those of another checkpoint


class Published(NamedTuple):
    """A network of others: where it comes from, and all that its weights do not say."""

    benchmark: str  # "folder:" = that in the folder of images
    network: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    licence: str
    read: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict  # parameters of the file to the network's

    def state(self, found: Mapping[str, Tensor], name: str, weights: object) -> dict[str, Tensor]:
        """The parameters of the network; raises ValueError when those found in a file are of another checkpoint."""
        try:
            return self.read(found)
        except KeyError as error:
            raise ValueError(f"{weights} is no checkpoint of {name}: it holds no {error}") from error


_CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_DICE = "github.com/deeplearning-wisc/dice, checkpoints/{}/densenet/checkpoint_100.pth.tar"

PUBLISHED = {
    "cifar10-densenet": Published(
        "cifar10", partial(densenet_bc, 10), *_CIFAR, _DICE.format("CIFAR-10"), "MIT", _renamed
    ),
    "cifar100-densenet": Published(
        "cifar100", partial(densenet_bc, 100), *_CIFAR, _DICE.format("CIFAR-100"), "MIT", _renamed
    ),
    "cifar10-resnet56": Published(
        "cifar10", partial(CIFARResNet, 9, 10), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
        "github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/resnet56-4bfd9763.th", "BSD-2-Clause",
    ),
    "voc-mobilenetv2": Published(
        "folder:", mobilenet_same, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
        "github.com/google-coral/test_data, tf2_mobilenet_v2_1.0_224_ptq.tflite", "Apache-2.0", _unfolded,
    ),
}  # fmt: skip

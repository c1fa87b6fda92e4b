"""Networks that others trained on CIFAR: their architecture, to read a checkpoint that its authors published.

Their weights do not come with the library.  Whoever has them, as a safetensors file with the parameters named as in the
checkpoint, makes the bank again with ``python -m ood_lib NAME --weights FILE``.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet
from torchvision.models.resnet import BasicBlock

from ood_lib.data.benchmark import Normalize
from ood_lib.networks.adapt import Adapted, adapt

__all__ = ["PUBLISHED", "CIFARResNet", "Published", "densenet_bc", "published"]


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


_DENSENET_NAMES = [  # (name in the checkpoint, name in torchvision's network)
    (r"^conv1\.", "features.conv0."),
    (r"^bn1\.", "features.norm5."),
    (r"^fc\.", "classifier."),
    (r"^trans(\d)\.bn1", r"features.transition\1.norm"),
    (r"^trans(\d)\.conv1", r"features.transition\1.conv"),
    (r"^block(\d)\.layer\.(\d+)\.(bn|conv)", lambda m: _dense_layer(*m.groups())),
]


def _dense_layer(block: str, layer: str, kind: str) -> str:
    return f"features.denseblock{block}.denselayer{int(layer) + 1}.{'norm' if kind == 'bn' else kind}"


def _renamed(key: str, names: Sequence[Any]) -> str:
    for pattern, name in names:
        key, found = re.subn(pattern, name, key)
        if found:
            break
    return key


class Published(NamedTuple):
    """A network of others: where it comes from, and all that its weights do not say."""

    benchmark: str
    network: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    licence: str
    names: Sequence[Any] = ()  # regular expressions that lead from the checkpoint's names to the network's


_CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_DICE = "github.com/deeplearning-wisc/dice, checkpoints/{}/densenet/checkpoint_100.pth.tar"

PUBLISHED = {
    "cifar10-densenet": Published(
        "cifar10", partial(densenet_bc, 10), *_CIFAR, _DICE.format("CIFAR-10"), "MIT", _DENSENET_NAMES
    ),
    "cifar100-densenet": Published(
        "cifar100", partial(densenet_bc, 100), *_CIFAR, _DICE.format("CIFAR-100"), "MIT", _DENSENET_NAMES
    ),
    "cifar10-resnet56": Published(
        "cifar10", partial(CIFARResNet, 9, 10), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
        "github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/resnet56-4bfd9763.th", "BSD-2-Clause",
    ),
}  # fmt: skip


def published(name: str, weights: str | os.PathLike[str]) -> Adapted:
    """A network of others, in eval mode.

    Args:
        name: one of `PUBLISHED`.
        weights: safetensors file with the parameters of the checkpoint, under the names that they have there.

    Raises:
        ValueError: the file holds other parameters than the architecture.
    """
    about = PUBLISHED[name]
    network = about.network()
    state = {_renamed(key, about.names): value for key, value in load_file(weights).items()}
    expected = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    if differing := sorted(expected ^ state.keys()):
        raise ValueError(f"{weights} is no checkpoint of {name}: {len(differing)} names differ, {differing[:3]} ...")
    network.load_state_dict(state, strict=False)
    return adapt(network.requires_grad_(False), normalize=Normalize(about.mean, about.std)).eval()

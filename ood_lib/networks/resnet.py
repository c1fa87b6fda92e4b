"""A residual classifier small enough to read, and one that learns more in an hour."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.networks.network import Representation, check_images, style_of

__all__ = ["Block", "PooledResNet", "ResNet"]


def _are_counts(values: object) -> bool:
    return isinstance(values, Sequence) and len(values) > 0 and all(type(x) is int and x > 0 for x in values)


class Block(nn.Module):
    """Two 3x3 convolutions added to a shortcut (He et al., CVPR 2016, Fig. 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)
        """Residual sum, rectified."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """A small residual classifier; the representation it learns is what every chapter looks at.

    Args:
        channels: image channels (1 grey, 3 colour).
        classes: C, number of known classes.
        widths: feature maps per stage; each stage after the first halves the resolution, the last one is K.
        blocks: residual blocks per stage, or those of each stage.
        normalize: first layer, standardises images that arrive in [0, 1] (``Benchmark.normalize``).

    The penultimate feature is the spatial mean of the last rectified map, so it is non-negative.

    Raises:
        ValueError: ``widths`` that are no whole numbers, or not as many ``blocks`` as ``widths``.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check(_are_counts, "a list of whole numbers, such as [32, 64]", widths=widths)
        blocks = [blocks] * len(widths) if isinstance(blocks, int) else blocks
        if len(blocks) != len(widths):
            raise ValueError(f"blocks {blocks} for the stages {widths}: give one number for all, or one per stage")
        self.normalize = normalize or nn.Identity()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        ins = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential(
            *(self._stage(i, o, b, 1 + (n > 0)) for n, (i, o, b) in enumerate(zip(ins, widths, blocks)))
        )
        self.head = nn.Linear(widths[-1], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def represent(self, images: Tensor) -> Representation:
        """Images (N, channels, H, W) in [0, 1] to penultimate (N, K), logits (N, C) and style (N, K)."""
        conv: Any = self.stem[0]
        check_images(images, conv.in_channels, conv.weight)
        maps = self.stages(self.stem(self.normalize(images)))  # (N, K, h, w)
        penultimate = maps.mean((2, 3))
        return Representation(penultimate, self.head(penultimate), style_of(maps))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.represent(images).logits


class PooledResNet(ResNet):
    """A residual classifier that learns more in an hour: one convolution and a pooling, then the residual blocks.

    With widths (64, 128, 256, 512) and blocks (0, 1, 0, 1) it is the ResNet-9 of Page, How to train your ResNet, 2018.
    Only the last pooling differs: here it is the spatial mean, as in `ResNet`.
    """

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        halved = [conv, nn.MaxPool2d(stride), nn.BatchNorm2d(outputs), nn.ReLU()] if stride > 1 else []
        return nn.Sequential(*halved, *(Block(outputs, outputs, 1) for _ in range(blocks)))

"""A small residual network for photographs that needs few epochs: patches are whitened first, and stages pool.

Its recipe is the CPU's way to the accuracy for which `ood_lib.ResNet` needs a GPU; ``cifar10-resnet8`` of
`ood_lib.pretrained` is one.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.networks import ResNet

__all__ = ["FastResNet", "PooledBlock", "Whiten"]


class Whiten(nn.Module):
    """A first layer that is measured, not learned: small patches of the image in coordinates without correlation.

    Neighbouring pixels tell nearly the same; gradient descent is slow along the directions that hold the rest.  The
    eigenvectors v of the patches' second moments, each divided by the root of its eigenvalue, make all directions of
    unit size: (N, channels, H, W) -> (N, 2D, H - side + 1, W - side + 1) with D = channels side^2, the projections
    and, because rectifiers follow, their negatives.

    Args:
        channels: of the images.
        side: of a patch, in pixels.
        eps: added to each eigenvalue, so that what hardly varies is not blown up.

    References:
        Page, How to train your ResNet, 2019; Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, Section 3.
    """

    weight: Tensor

    def __init__(self, channels: int, side: int = 2, eps: float = 5e-4) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.zeros(2 * channels * side**2, channels, side, side))

    @property
    def outputs(self) -> int:
        """2D, the channels of the next layer."""
        return len(self.weight)

    def fit(self, images: Tensor) -> Self:
        """Measure the patches of images (N, channels, H, W) with mean zero, as `ood_lib.data.Normalize` leaves them."""
        patches = F.unfold(images, self.weight.shape[-1]).movedim(1, 2).flatten(0, 1).double()  # (N L, D)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        rows = (vectors / (values + self.eps).sqrt()).T
        self.weight.copy_(torch.cat([rows, -rows]).view_as(self.weight))
        return self

    def forward(self, images: Tensor) -> Tensor:
        """In single precision always: directions that are blown up would show the rounding of a shorter one.

        Raises:
            ValueError: nothing was measured yet.
        """
        if not self.weight.any():
            raise ValueError(
                "the whitening layer is not measured yet and would answer 0 to every image: call fit_stem(images) of "
                "the network (fit of the layer) with training images, or load the state of a trained network"
            )
        with torch.autocast(images.device.type, enabled=False):
            return F.conv2d(images.to(self.weight.dtype), self.weight)


class PooledBlock(nn.Module):
    """Half the resolution, by the largest of each 2 x 2; then one convolution around which a shortcut runs.

    A stride drops three of four positions of a convolution unseen, a maximum looks at all: more is learned per image.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, outputs, H/2, W/2)
        """Both terms of the sum are rectified."""
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return x + F.relu(self.norm2(self.conv2(x)))


class FastResNet(ResNet):
    """A `ResNet` whose stem whitens patches of 2 x 2 pixels and whose stages are one `PooledBlock` each.

    Args:
        channels, classes, normalize: as of `ResNet`.
        widths: feature maps per stage; each stage halves the resolution, the last one is K.

    `fit_stem` comes before the first forward pass, or the state of a trained network.
    """

    def __init__(
        self, channels: int, classes: int, widths: Sequence[int] = (64, 256, 512), normalize: nn.Module | None = None
    ) -> None:
        super().__init__(channels, classes, widths, normalize=normalize)
        white = Whiten(channels)
        self.stem = nn.Sequential(white)
        ins = [white.outputs, *widths[:-1]]
        self.stages = nn.Sequential(*(PooledBlock(i, o) for i, o in zip(ins, widths)))

    def fit_stem(self, images: Tensor) -> Self:
        """Measure the patches of some thousand training images (N, channels, H, W) in [0, 1]."""
        self.stem[0].fit(self.normalize(images))  # type: ignore[operator]
        return self

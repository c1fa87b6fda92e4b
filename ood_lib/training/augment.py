"""Batches of images, changed at random in ways that leave their class alone.

Each function takes images (N, C, H, W) and a seeded generator, and draws from that alone; so the same seed brings the
same images on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.tensors import PRECISIONS, why_not_dense

__all__ = ["Augment", "Augmented", "augmented", "cutout", "flip", "shift"]

Augment = Callable[[Tensor, torch.Generator], Tensor]


def _check(images: Tensor) -> None:
    what = why_not_dense(images)
    if what or images.ndim != 4 or (images.is_floating_point() and images.dtype not in PRECISIONS):
        given = what or f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images are {given}; expected a dense tensor (N, C, H, W) in a usual precision")


def shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``pad`` pixels in both directions, zeros flow in; (N, C, H, W) to the same shape."""
    check("integer [0, inf)", "a number of pixels", pad=pad)
    _check(images)
    n, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4)
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device="cpu").to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=images.device)  # (N, W)
    own = torch.arange(n, device=images.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[own, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image, left for right; (N, C, H, W) to the same shape."""
    _check(images)
    mirrored = torch.rand(len(images), generator=generator, dtype=torch.float32, device="cpu").to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Fill a square of each image with zeros, whole and anywhere inside; (N, C, H, W) to the same shape.

    References:
        DeVries & Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017; there the square
        may reach over the edge.
    """
    _check(images)
    n, _, height, width = images.shape
    check(f"integer [0, {min(height, width)}]", "the side of a square inside the images", side=side)
    top = torch.randint(0, height - side + 1, (n, 1), generator=generator, device="cpu").to(images.device)
    left = torch.randint(0, width - side + 1, (n, 1), generator=generator, device="cpu").to(images.device)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (top <= y) & (y < top + side), (left <= x) & (x < left + side)  # (N, H), (N, W)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


@dataclass(frozen=True)
class Augmented:
    """What `augmented` makes: a function of images and generator that can say what it does."""

    pad: int
    mirror: bool
    hole: int

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (N, C, H, W), changed."""
        images = shift(images, self.pad, generator)
        images = flip(images, generator) if self.mirror else images
        return cutout(images, self.hole, generator) if self.hole else images


def augmented(pad: int = 4, mirror: bool = True, hole: int = 0) -> Augmented:
    """The usual training augmentation of small photographs: a shift, a flip, a hole.

    Args:
        pad: pixels of `shift`.
        mirror: `flip`; leave it out where left and right matter, as for digits.
        hole: side of `cutout`; 0 = none.
    """
    check("integer [0, inf)", "a number of pixels", pad=pad, hole=hole)
    return Augmented(pad, mirror, hole)

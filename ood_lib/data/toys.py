"""Toys in the plane, where the eye sees what a density does."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RingAndArcs", "ring_and_arcs"]


class RingAndArcs(NamedTuple):
    """Three classes that no Gaussian fits, and points that are none of theirs."""

    points: Tensor  # (N, 2), one third a class
    labels: Tensor  # (N,): 0 the ring, 1 and 2 the arcs
    far: Tensor  # (M, 2), uniform over the picture, more than 1.5 from every point


def ring_and_arcs(per_class: int = 700, jitter: float = 0.15, far: int = 2000, seed: int = 0) -> RingAndArcs:
    """A ring of radius 2 around (-3.5, 0), an upper half circle around (3, 0.8) and a lower one around (3, -0.8).

    A mixture with one Gaussian per class fills the hole of the ring and the inside of the arcs.  Its samples more than
    0.5 away from every point show its blind spots.

    Args:
        per_class: points of each class.
        jitter: standard deviation around the curves.
        far: how many far points.
        seed: of all of it.

    Example:
        >>> ring_and_arcs(per_class=5).points.shape
        torch.Size([15, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-3.5, 0.0], [3.0, 0.8], [3.0, -0.8]])
    labels = torch.arange(3).repeat_interleave(per_class)
    turn = torch.rand(3 * per_class, generator=generator)
    angle = math.pi * torch.where(labels == 0, 2 * turn, torch.where(labels == 1, turn, -turn))
    curve = centres[labels] + 2 * torch.stack([angle.cos(), angle.sin()], 1)
    points = curve + jitter * torch.randn(curve.shape, generator=generator)
    box = torch.tensor([10.0, 8.0])
    spread = box * (2 * torch.rand(10 * far, 2, generator=generator) - 1)
    away = torch.cdist(spread, points).amin(1) > 1.5
    return RingAndArcs(points, labels, spread[away][:far])

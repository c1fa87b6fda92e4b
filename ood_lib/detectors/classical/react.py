"""ReAct: clipped activations.  Larger score = more OOD."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.classical.rectifier import Rectifier
from ood_lib.features.features import Features
from ood_lib.tensors import largest

__all__ = ["ReAct", "percentile_of", "react"]


def percentile_of(values: Tensor, percentile: float) -> Tensor:
    """Smallest entry that at least a share ``percentile`` of all entries does not exceed, () from any shape.

    An entry itself, where numpy's default lies between two of them: for the millions of activations of a fit the same.

    Example:
        >>> percentile_of(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), 0.5)
        tensor(2.)
    """
    check("[0, 1]", "a share of the entries", percentile=percentile)
    rank = math.ceil(round(percentile * values.numel(), 6))  # round: 0.29 * 100 is a little more than 29
    return largest(values.reshape(-1), values.numel() - max(rank, 1) + 1)[0]


def react(z: Tensor, clip: float) -> Tensor:
    r"""Clipped features :math:`\min(z, c)`, (N, K); c = infinity changes nothing.

    References:
        Sun, Guo & Li, ReAct: Out-of-distribution Detection With Rectified Activations, NeurIPS 2021.
    """
    check("[-inf, inf]", "a number", clip=clip)
    return z.clamp(max=clip)


class ReAct(Rectifier):
    """Score of the logits of clipped features, see `react`.

    The clip is a percentile over all entries of the features given to ``fit``; the paper takes held-out ID images, not
    the training set (which serves as well where nothing is held out).

    Args:
        head, score: see `Rectifier`.
        percentile: share of the ID activations below the clip.

    Raises:
        ValueError: ``percentile`` is not in (0, 1]; features of another width than the head.
    """

    fits = "val"
    clip: Tensor

    def __init__(self, head: nn.Linear, percentile: float = 0.9, score: Callable[[Tensor], Tensor] = energy) -> None:
        super().__init__(head, score)
        check("(0, 1]", "a share of activations", percentile=percentile)
        self.percentile = percentile
        self.register_buffer("clip", torch.tensor(math.inf, dtype=torch.float64))

    def _fit(self, features: Features) -> None:
        self.head.check_width(features.penultimate)
        z = self._prepare(Features(penultimate=features.penultimate)).penultimate
        self.clip.copy_(percentile_of(z, self.percentile))

    def rectify(self, z: Tensor) -> Tensor:
        """See `react`."""
        return react(z, self.clip.item())

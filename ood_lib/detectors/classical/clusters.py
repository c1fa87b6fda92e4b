"""Clusters of features without labels: k-means, from which a mixture begins."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["kmeans"]


def kmeans(z: Tensor, k: int, generator: torch.Generator, starts: int = 4, steps: int = 100) -> Tensor:
    """Labels (N,) of a k-means clustering: the best of some starts, each after two steps, is followed to its end.

    Args:
        z: (N, K).
        k: number of clusters.
        generator: CPU generator of the first centres.
        starts: by greedy k-means++; the one with the smallest squared distances after two steps goes on.
        steps: of Lloyd's algorithm at most.

    Raises:
        ValueError: fewer than k different samples.

    References:
        Arthur & Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007 (greedy: section 6).
    """
    begun = [_lloyd(z, _plus_plus(z, k, generator), steps=2) for _ in range(starts)]
    _, centres, _ = min(begun, key=lambda start: start[0])
    return _lloyd(z, centres, steps)[2]


def _lloyd(z: Tensor, centres: Tensor, steps: int) -> tuple[float, Tensor, Tensor]:
    """Sum of the squared distances to the centres, new centres and labels, after so many steps or when they stay."""
    old = z.new_full((len(z),), -1, dtype=torch.long)
    for _ in range(steps):
        distances, labels = torch.cdist(z, centres).min(1)
        members = F.one_hot(labels, len(centres)).to(z.dtype)
        counts = members.sum(0)
        centres = members.T @ z / counts.clamp(min=1)[:, None]
        lost = counts == 0  # a centre without samples goes to the sample that is worst off
        centres[lost] = z[distances.topk(int(lost.sum())).indices]
        if torch.equal(old, labels) and not lost.any():
            break
        old = labels
    return distances.square().sum().item(), centres, labels


def _plus_plus(z: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """First centres (k, K): each the best of a few, drawn with the squared distance to the former ones as weight."""
    weights, chosen = z.new_ones(len(z)), z.new_empty(0, z.shape[1])
    tries = 2 + int(math.log(k))
    for _ in range(k):
        if not (weights > 0).any():
            raise ValueError(f"{k} components need {k} different samples; only {len(chosen)} were given")
        drawn = weights.cpu().multinomial(tries, replacement=True, generator=generator).to(z.device)
        squares = torch.stack([(z - z[row]).square().sum(1) for row in drawn])  # exactly 0 for copies
        left = squares.minimum(weights) if len(chosen) else squares
        best = left.sum(1).argmin()
        weights, chosen = left[best], torch.cat([chosen, z[drawn[best]][None]])
    return chosen

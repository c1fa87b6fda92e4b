"""Clusters of features without labels: k-means, from which a mixture begins."""

import math

import torch
from torch import Tensor

from ood_lib.moments import class_moments

__all__ = ["kmeans"]


def kmeans(z: Tensor, k: int, generator: torch.Generator, restarts: int = 4, steps: int = 100) -> Tensor:
    """Labels (N,) of the best of some k-means clusterings, each begun with k-means++.

    Args:
        z: (N, K).
        k: number of clusters.
        generator: CPU generator of the first centres.
        restarts: clusterings; the one with the smallest squared distances is kept.
        steps: of Lloyd's algorithm at most.

    Raises:
        ValueError: fewer than k different samples.

    References:
        Arthur & Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007.
    """
    none = z.new_full((len(z),), -1, dtype=torch.long)
    best, least = none, math.inf
    for _ in range(restarts):
        centres = _plus_plus(z, k, generator)
        labels = none
        for _ in range(steps):
            distances, new = torch.cdist(z, centres).min(1)
            counts, means, _ = class_moments(z, new, "none", classes=k)
            lost = counts == 0  # a centre without samples goes to the sample that is worst off
            means[lost] = z[distances.topk(int(lost.sum())).indices]
            centres, labels, old = means, new, labels
            if torch.equal(old, new) and not lost.any():
                break
        if distances.square().sum().item() < least:
            best, least = labels, distances.square().sum().item()
    return best


def _plus_plus(z: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """First centres (k, K): each drawn with the squared distance to the former ones as weight."""
    weights = z.new_ones(len(z))
    chosen: list[int] = []
    for _ in range(k):
        if not (weights > 0).any():
            raise ValueError(f"{k} components need {k} different samples; only {len(chosen)} were given")
        chosen.append(int(weights.cpu().multinomial(1, generator=generator)))
        squares = (z - z[chosen[-1]]).square().sum(1)
        weights = squares if len(chosen) == 1 else weights.minimum(squares)
    return z[chosen]

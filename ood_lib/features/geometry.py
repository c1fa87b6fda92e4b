"""How features lie on the unit sphere: spread over all of it (uniformity), and close within their class (tolerance).

Neither is a score.  They describe a *network*, and are meant to be set beside how well detectors do on it.
"""

from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.data.labels import class_indices

__all__ = ["tolerance", "uniformity"]

Estimate = tuple[float, tuple[float, float]]


def uniformity(z: Tensor, rows: int = 5000, seed: int = 0, confidence: float = 0.95) -> Estimate:
    r"""Minus the logarithm of the mean Gaussian potential between pairs; larger = more evenly spread.

    .. math:: U = -\log \frac{1}{N(N-1)} \sum_{i \ne j} e^{-2 \lVert u_i - u_j \rVert^2}, \quad u = z / \lVert z \rVert

    0 = all features point the same way; the larger K, the nearer to 4 are directions drawn at random.

    Args:
        z: features (N, K).
        rows: how many of them to take, drawn at random; the cost is the square of this number.
        seed: of the draw.
        confidence: of the interval.

    Returns:
        Value, and the interval of a mean over pairs (Hoeffding 1948), which tells how far the features of other images
        of the same kind would move it.

    Raises:
        ValueError: fewer than three features.

    References:
        Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere, ICML 2020; used for flows by Cook, Lavoie & Waslander, CRV 2024.

    Example:
        >>> uniformity(torch.ones(10, 3))[0]
        0.0
    """
    if len(z) < 3:
        raise ValueError(f"{len(z)} features were given; expected three or more, to have pairs")
    picked = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed), device="cpu")[:rows]
    u = F.normalize(z[picked].double(), dim=1)
    n = len(u)
    potentials = torch.cat([(4 * (block @ u.T) - 4).clamp(max=0).exp().sum(1) - 1 for block in u.split(1024)]) / (n - 1)
    mean = potentials.mean()
    return _interval(-mean.log(), 2 * potentials.std() / mean / n**0.5, confidence)


def tolerance(z: Tensor, labels: Tensor, confidence: float = 0.95) -> Estimate:
    """Mean over the classes of the mean cosine between two features of the class; larger = tighter classes.

    All pairs count, at the cost of one pass.

    Args:
        z: features (N, K).
        labels: (N,) class indices; each class that occurs needs three features.
        confidence: of the interval.

    Returns:
        Value and interval, as for `uniformity`.

    Raises:
        ValueError: labels that are no class indices; a class with fewer than three features.

    References:
        Wang & Liu, Understanding the Behaviour of Contrastive Loss, CVPR 2021.

    Example:
        >>> tolerance(torch.ones(6, 3), torch.tensor([0, 0, 0, 1, 1, 1]))[0]
        1.0
    """
    labels = class_indices(labels, len(z)).to(z.device)
    known, counts = labels.unique(return_counts=True)
    if len(known) == 0 or counts.min() < 3:
        raise ValueError(f"the classes have {counts.tolist()} features; expected three or more each, to have pairs")
    u = F.normalize(z.double(), dim=1)
    own = [u[labels == c] for c in known]
    cosines = [(x @ x.sum(0) - 1) / (len(x) - 1) for x in own]  # of each feature, to the others of its class
    means = torch.stack([c.mean() for c in cosines])
    errors = torch.stack([2 * c.std() / len(c) ** 0.5 for c in cosines])
    return _interval(means.mean(), errors.norm() / len(means), confidence)


def _interval(value: Tensor, error: Tensor, confidence: float) -> Estimate:
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error.item()
    middle = round(value.item(), 12) + 0.0
    return middle, (middle - half, middle + half)

"""NNGuide: the energy, guided by similar training features.  Larger score = more OOD."""

import math

import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.data.labels import class_indices
from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits, check_pairs, check_width
from ood_lib.features.features import Features
from ood_lib.tensors import directions

__all__ = ["NNGuide", "balanced_subset", "nnguide"]


def balanced_subset(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Rows of a random subset that holds the same share of every class, rounded up: (N,) to (M,), sorted.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0, 1, 1, 2])
        >>> labels[balanced_subset(labels, 0.5, torch.Generator().manual_seed(0))].bincount()
        tensor([1, 2, 1])
    """
    check("(0, 1]", "a share of each class", fraction=fraction)
    labels = class_indices(labels, labels.numel()).cpu()
    kept = []
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        count = math.ceil(round(fraction * len(rows), 9))
        kept.append(rows[torch.randperm(len(rows), generator=generator, device="cpu")[:count]])
    return torch.cat(kept).sort().values


def nnguide(z: Tensor, logits: Tensor, bank: Tensor, k: int) -> Tensor:
    r"""Energy guided by similar training features, :math:`-G(z)\,\log\sum_j e^{\ell_j}`, (N,); larger = more OOD.

    The guidance G is the mean of the k largest inner products :math:`\langle v_n, \hat z \rangle` with
    :math:`\hat z = z / \lVert z \rVert`; bank vectors :math:`v_n = \hat z_n \log\sum_j e^{\ell_{nj}}` are directions of
    training features, as long as their network is confident.

    Args:
        z: (N, K).
        logits: (N, C).
        bank: v, (M, K), M >= k.
        k: number of neighbours.

    Raises:
        ValueError: ``k`` < 1, or more than the bank has rows; features, logits and bank that do not belong together.

    References:
        Park, Jung & Teoh, Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023.
    """
    check_logits(logits)
    check_pairs(z=z, logits=logits)
    check_width(bank, z.shape[1], "the features are", "rows of the bank")
    check(f"integer [1, {len(bank)}]", "a number of neighbours in the bank", k=k)
    guidance = (directions(z) @ bank.T).topk(k, dim=1).values.mean(1)
    return guidance * energy(logits)


class NNGuide(Detector):
    """Energy guided by the nearest training features, see `nnguide`.

    The bank is a random subset, the same share of every class (a plain slice of data sorted by class would hold one
    class only).  The subset depends on ``seed`` and on the order of the training features.

    Args:
        k: number of neighbours.
        fraction: share of each class kept in the bank, rounded up.
        seed: of the subset.

    Raises:
        ValueError: ``k`` < 1, or more than the bank holds; ``fraction`` not in (0, 1]; labels are missing.
    """

    reads = ("penultimate", "logits")
    chunk = 512
    grows = ("bank",)
    bank: Tensor

    def __init__(self, k: int = 10, fraction: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        check("integer [1, inf)", "a number of neighbours", k=k)
        check("(0, 1]", "a share of each class", fraction=fraction)
        self.k, self.fraction, self.seed = k, fraction, seed

    def _fit(self, features: Features) -> None:
        labels = self._labels(features, features.logits.shape[1])
        rows = balanced_subset(labels, self.fraction, torch.Generator().manual_seed(self.seed))
        if len(rows) < self.k:
            raise ValueError(
                f"a share of {self.fraction} of each class makes a bank of {len(rows)} features, less than k={self.k}: "
                f"take a larger fraction of the {len(features)} training features, or a smaller k"
            )
        kept = self._prepare(features[rows.to(features.penultimate.device)])
        self.bank = -energy(kept.logits)[:, None] * directions(kept.penultimate)

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        return nnguide(z, features.logits.to(z.dtype), self.bank.to(z.dtype), self.k)

"""KNN: distance to the k-th nearest training feature.  Larger score = more OOD."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_width
from ood_lib.features.features import Features
from ood_lib.tensors import directions, largest, lengths

__all__ = ["KNN", "knn_distance"]


def knn_distance(queries: Tensor, bank: Tensor, k: int, chunk: int = 4096, block: int = 1024) -> Tensor:
    r"""Euclidean distance to the k-th nearest row of the bank, (N,); larger = more OOD.

    Neighbours are found by :math:`\langle q, x \rangle - \lVert x \rVert^2 / 2`, one matrix product per tile of
    ``block`` queries and ``chunk`` bank rows, and the k best are kept. So the memory beside input and result is
    O(chunk x block + N k), whatever the size of the bank. The distance itself is computed from the rows, so it is
    precise also near zero.

    Args:
        queries: (N, K).
        bank: (M, K), M >= k.
        k: which neighbour, 1 = the nearest.
        chunk: bank rows compared at once.
        block: queries compared at once.

    Raises:
        ValueError: ``k`` < 1, or more than the bank has rows.

    References:
        Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022.

    Example:
        >>> knn_distance(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]]), k=2)
        tensor([3.])
    """
    check(f"integer [1, {len(bank)}]", "a neighbour among the rows of the bank", k=k)
    check_width(bank, queries.shape[1], "the features are", "rows of the bank")
    with torch.no_grad():
        rows = _nearest(queries, bank, k, chunk, block, _power(bank, queries.dtype))
    pairs = zip(queries.split(block), rows.split(block))
    return torch.cat([lengths(q - bank[found].to(q.dtype)) for q, found in pairs])


def _power(bank: Tensor, dtype: torch.dtype) -> float:
    """A power of two by which the squares of most rows become numbers; 1 where they are, whatever a wild row does."""
    safe = torch.finfo(dtype).max ** 0.4
    low, high = bank.aminmax()  # unlike abs, makes no copy of the bank
    if 1 / safe < max(-low.item(), high.item()) < safe:
        return 1.0
    low, high = bank.aminmax(dim=1)
    usual = torch.maximum(-low, high).median().item()
    return 1.0 if 1 / safe < usual < safe or usual == 0 else 2.0 ** round(math.log2(usual))


def _over(rows: Tensor, power: float) -> Tensor:
    return rows if power == 1 else rows / power


def _nearest(queries: Tensor, bank: Tensor, k: int, chunk: int, block: int, power: float, group: int = 8) -> Tensor:
    """Bank row (N,) of the k-th nearest neighbour; all rows are compared over a power of two, a few at a time."""
    best = queries.new_full((len(queries), k), torch.finfo(queries.dtype).min)
    where = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    tile = queries.new_empty(0)
    for start, rows in zip(range(0, len(bank), chunk), bank.split(chunk)):
        rows = _over(rows.to(queries.dtype), power)
        halves, step = rows.square().sum(1) / -2, math.ceil(len(rows) / group)
        for q, values, places in zip(queries.split(block), best.split(block), where.split(block)):
            tile.resize_(len(q), step * group)[:, len(rows) :] = -math.inf  # fills the last groups
            torch.addmm(halves, _over(q, power), rows.T, out=tile[:, : len(rows)])
            _improve(values, places, tile.view(len(q), group, step), start)
    return where.gather(1, best.argmin(1, keepdim=True)).squeeze(1)


def _improve(best: Tensor, where: Tensor, groups: Tensor, start: int) -> None:
    """Put what a tile (n, group, step) holds in its columns start, start + 1, ... among the k best (n, k) of each row.

    Few groups have a maximum that reaches the k-th best so far; the others are not looked into.
    """
    k, maxima = best.shape[1], groups.amax(1)
    bar = best.amin(1)
    if start == 0 and maxima.shape[1] > k:  # nothing is known yet, but k groups have a maximum as large as this
        bar = maxima.topk(k, dim=1, sorted=False).values.amin(1)
    row, column = (maxima >= bar[:, None]).nonzero(as_tuple=True)
    values = groups[row, :, column]
    hit, member = (values >= bar[row, None]).nonzero(as_tuple=True)
    row, column, values = row[hit], start + member * maxima.shape[1] + column[hit], values[hit, member]

    counts = row.bincount(minlength=len(best))
    slot = k + torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]  # in a table of equal rows
    more = int(counts.amax())
    found = F.pad(best, (0, more), value=-math.inf).index_put_((row, slot), values)
    columns = F.pad(where, (0, more)).index_put_((row, slot), column)
    best[:], order = found.topk(k, dim=1, sorted=False)
    where[:] = columns.gather(1, order)


class KNN(Detector):
    """Distance to the k-th nearest training feature on the unit sphere, see `knn_distance`.

    The released code returns the squared distance, which ranks alike, and adds 1e-10 to each length; here a feature of
    zeros, which has no direction, stays zero and lies at distance 1 from the sphere.

    Args:
        k: which neighbour (the paper's CIFAR script: 50).
        normalize: divide features by their length first, as the paper does.

    Raises:
        ValueError: ``k`` < 1, or more than there are training features.
    """

    chunk = 16384
    grows = ("bank", "centre")
    bank: Tensor
    centre: Tensor

    def __init__(self, k: int = 50, normalize: bool = True) -> None:
        super().__init__()
        check("integer [1, inf)", "a neighbour to look at", k=k)
        self.k, self.normalize = k, normalize

    def _place(self, z: Tensor) -> Tensor:
        # distances do not see a shift, rounding does: |a|^2 + |b|^2 - 2ab loses what a and b share
        return self._turned(z) - self.centre.to(z.dtype)

    def _turned(self, z: Tensor) -> Tensor:
        return directions(z) if self.normalize else z

    def _fit(self, features: Features) -> None:
        if len(features) < self.k:
            raise ValueError(f"KNN(k={self.k}) was given {len(features)} training features; it needs at least k")
        z = self._prepare(Features(penultimate=features.penultimate)).penultimate
        turned = self._turned(z)
        if self.normalize:
            self.centre = turned.mean(0)
        else:  # unlike the mean, the median stays among the rows when one of them lies far away
            self.centre = largest(turned.T, len(z) // 2 + 1)[:, 0].clone()
        self.bank = self._place(z)

    def _score(self, features: Features) -> Tensor:
        found = knn_distance(self._place(features.penultimate), self.bank, self.k)
        rounded = 4 * torch.finfo(found.dtype).eps  # of two directions that are one, rounding makes two
        return found.masked_fill(found < rounded, 0) if self.normalize else found

"""Is a network as often right as it says?  The expected calibration error, its interval, and what chance makes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.data.labels import class_indices
from ood_lib.tensors import ascending, check_floats

__all__ = ["Reliability", "reliability"]

AT_ONCE = 2**20  # images of some draws held at once, 8 bytes each


class Reliability(NamedTuple):
    """What `reliability` finds; all numbers are shares.

    ``ece`` is the expected calibration error, with the ends of its interval; ``chance`` is what a network that is
    calibrated, and just as confident, stays below in 95 of 100 samples of this size.  ``confidence``, ``accuracy`` and
    ``images`` have one entry for each bin.
    """

    ece: float
    low: float
    high: float
    chance: float
    confidence: Tensor
    accuracy: Tensor
    images: Tensor

    @property
    def gap(self) -> float:
        """Mean confidence minus accuracy: above 0 the network is over-confident."""
        return float(((self.confidence - self.accuracy) * self.images).sum() / self.images.sum())

    @property
    def word(self) -> str:
        """``calibrated`` where chance explains the error, else ``over-confident`` or ``under-confident``."""
        if self.ece <= self.chance:
            return "calibrated"
        return "over-confident" if self.gap > 0 else "under-confident"


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 10, draws: int = 1000, seed: int = 0) -> Reliability:
    r"""Confidence, the largest softmax probability, against accuracy, in bins of equally many images.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    An absolute value is above zero for a calibrated network too.  Labels are therefore drawn by the confidences
    themselves, and the error that these have is ``chance``.  The interval is the basic bootstrap's, which takes off as
    much as resampling adds.

    Args:
        logits: (N, C).
        labels: (N,) class indices.
        bins: at most; fewer where there are fewer than ten images for each.
        draws: of the bootstrap, and of the labels.
        seed: of both.

    Raises:
        ValueError: no image, or labels that are no class indices.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017; Bröcker & Smith, Increasing the Reliability of
        Reliability Diagrams, Weather and Forecasting 2007.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).repeat(50, 1)  # 88 % sure, and always right
        >>> found = reliability(logits, torch.tensor([0, 1]).repeat(50))
        >>> round(found.ece, 2), found.word
        (0.12, 'under-confident')
    """
    check("integer [1, inf)", "a number of bins", bins=bins)
    check("integer [2, inf)", "a number of draws", draws=draws)
    check_floats("(N, C)", logits=logits)
    if len(logits) == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} were given; expected (N, C) of one image at least")
    labels = class_indices(labels, len(logits), logits.shape[1])
    confidence, answer = logits.double().softmax(1).max(1)
    order = confidence.argsort(stable=True)
    confidence, right = confidence[order].cpu(), (answer == labels.to(answer.device))[order].double().cpu()
    generator = torch.Generator().manual_seed(seed)
    exact: Any = {"dtype": torch.float64, "device": "cpu"}
    n, gap = len(right), confidence - right
    blocks = [range(draws)[i : i + max(1, AT_ONCE // n)] for i in range(0, draws, max(1, AT_ONCE // n))]

    def resampled() -> Tensor:
        return torch.randint(n, (n,), generator=generator, device="cpu")

    def by_chance() -> Tensor:
        return torch.rand(n, generator=generator, **exact)

    rows = (ascending(torch.stack([resampled() for _ in block])) for block in blocks)
    again = torch.cat([_ece(gap[r], bins) for r in rows])
    drawn = (torch.stack([by_chance() for _ in block]) < confidence for block in blocks)
    chance = torch.cat([_ece(confidence - x.double(), bins) for x in drawn]).quantile(0.95).item()
    ece = _ece(gap[None], bins).item()
    low, high = (max(0.0, 2 * ece - again.quantile(q).item()) for q in (0.975, 0.025))
    parts = _bins(len(right), bins)
    said, kept = (torch.stack([part.mean() for part in x.split(parts)]) for x in (confidence, right))
    return Reliability(ece, min(low, ece), max(high, ece), chance, said, kept, torch.tensor(parts, device="cpu"))


def _bins(n: int, bins: int) -> list[int]:
    """How many images each bin holds."""
    return [len(part) for part in torch.arange(n, device="cpu").tensor_split(max(1, min(bins, n // 10)))]


def _ece(gaps: Tensor, bins: int) -> Tensor:
    """The error (B,) of each row of confidences minus right answers (B, N), in rising order of the confidence."""
    n = gaps.shape[1]
    return torch.stack([part.sum(1).abs() for part in gaps.split(_bins(n, bins), 1)]).sum(0) / n

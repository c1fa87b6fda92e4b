"""Base of the detectors that reshape the penultimate feature before the head reads it: ReAct, ASH, SCALE.

OOD images tend to excite a few units strongly (ReAct clips them). The rest of their activation is spread over many
units (ASH and SCALE compare the sum of the largest entries with the sum of all). The resulting logits are scored by
any score of logits, by default the energy. Larger score = more OOD.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.head import FrozenHead
from ood_lib.features.features import Features
from ood_lib.tensors import largest

__all__ = ["Rectifier", "kept", "kept_mask", "scale_factor"]


def kept(width: int, percentile: float) -> int:
    r"""How many of K entries stay when a share is pruned: :math:`k = K - \mathrm{round}(K p)`.

    Raises:
        ValueError: none stays, or ``percentile`` is not in [0, 1).
    """
    count = width - round(width * percentile) if 0 <= percentile < 1 else 0
    if count < 1:
        raise ValueError(
            f"percentile={percentile} was given; expected 0 <= percentile < 1, so that one of {width} entries is kept"
        )
    return count


def kept_mask(z: Tensor, percentile: float) -> Tensor:
    """Which k entries of each row are the largest, (N, K) of booleans; of equal ones those that come first."""
    z, count = z.detach(), kept(z.shape[1], percentile)
    if is_exporting():  # which cannot ask whether there are equal ones
        return torch.zeros_like(z, dtype=torch.bool).scatter(1, z.topk(count, dim=1).indices, True)
    mask = z >= largest(z, count)[:, :1]
    if (tied := mask.sum(1) > count).any():  # topk would choose by the machine and by the size of the batch
        places = z[tied].sort(dim=1, descending=True, stable=True).indices[:, :count]
        mask[tied] = torch.zeros_like(mask[tied]).scatter_(1, places, True)
    return mask


def scale_factor(z: Tensor, percentile: float) -> Tensor:
    """exp(S_1 / S_2), (N, 1)."""
    some = largest(z, kept(z.shape[1], percentile)).sum(1, keepdim=True)
    dead = (z == 0).all(1, keepdim=True)  # any factor leaves them zero
    factor = (z.sum(1, keepdim=True) / some.masked_fill(dead, 1)).exp()
    bad = 0 if is_exporting() else int((((some <= 0) | ~factor.isfinite()) & ~dead).sum())
    if bad:
        raise ValueError(
            f"in {bad} of {len(z)} rows the kept entries sum to zero or less, or their share is so small that its "
            "exponential overflows; expected non-negative features (after a ReLU) and a moderate percentile: "
            "ReAct, or ASH with variant 'p' or 'b', also reads signed features"
        )
    return factor


class Rectifier(Detector):
    """Base: a score of the logits that the head gives to reshaped features.  A subclass writes ``rectify``.

    Args:
        head: the network's last linear layer.
        score: function of logits (N, C) -> (N,) with larger = more OOD, for instance `energy`, `msp` or `gen`.

    Raises:
        ValueError: ``score`` is no function; features of another width than the head.
    """

    def __init__(self, head: nn.Linear, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        check(callable, "a function of logits, for instance ood_lib.energy", score=score)
        self.kind = score
        self.head = FrozenHead(head)

    def rectify(self, z: Tensor) -> Tensor:
        """The reshaped features, (N, K) to (N, K)."""
        raise NotImplementedError(f"{type(self).__name__} must define rectify")

    def _score(self, features: Features) -> Tensor:
        return self.kind(self.head(self.rectify(features.penultimate)))

    def arguments(self) -> dict[str, Any]:
        """As of every detector; the score is kept under another name."""
        return super().arguments() | {"score": self.kind}

    def extra_repr(self) -> str:
        """The hyperparameters, as they were given."""
        return f"{super().extra_repr()}, score={getattr(self.kind, '__name__', repr(self.kind))}"

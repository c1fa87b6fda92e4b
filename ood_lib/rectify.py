"""Detectors that reshape the penultimate feature before the head reads it: ReAct, ASH, SCALE.  Larger = more OOD.

OOD images tend to excite a few units wildly (ReAct clips them) and to spread the rest of their activation over many
units (ASH and SCALE compare the sum of the largest entries with the sum of all).  What comes out of the head is judged
by any score of logits, the energy unless you say otherwise.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ood_lib.detector import Detector, FrozenHead
from ood_lib.features import Features
from ood_lib.logits import energy

__all__ = ["ASH", "SCALE", "ReAct", "Rectifier", "ash_b", "ash_p", "ash_s", "kept", "percentile_of", "react", "scale"]


def percentile_of(values: Tensor, percentile: float) -> Tensor:
    """Smallest entry that at least a share ``percentile`` of all entries does not exceed, () from any shape.

    An entry itself, where numpy's default lies between two of them: for the millions of activations of a fit the same.

    Example:
        >>> percentile_of(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), 0.5)
        tensor(2.)
    """
    rank = math.ceil(round(percentile * values.numel(), 6))  # round: 0.29 * 100 is a little more than 29
    return values.reshape(-1).kthvalue(max(rank, 1)).values


def react(z: Tensor, clip: float) -> Tensor:
    r"""Clipped features :math:`\min(z, c)`, (N, K); c = infinity changes nothing.

    References:
        Sun, Guo & Li, ReAct: Out-of-distribution Detection With Rectified Activations, NeurIPS 2021.
    """
    return z.clamp(max=clip)


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


def ash_p(z: Tensor, percentile: float = 0.9) -> Tensor:
    """Pruned features: the largest entries of each row stay, the others become zero; p = 0 changes nothing.

    Args:
        z: (N, K).
        percentile: p, share of the entries that is pruned, see `kept`.

    Returns:
        (N, K)

    References:
        Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023.

    Example:
        >>> ash_p(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 0.5)
        tensor([[0., 4., 3., 0.]])
    """
    values, places = z.topk(kept(z.shape[1], percentile), dim=1)
    return torch.zeros_like(z).scatter(1, places, values)


def ash_b(z: Tensor, percentile: float = 0.9) -> Tensor:
    """Binarised features: each of the k largest entries becomes 1/k of the sum of the whole row, the others zero.

    Args:
        z: (N, K).
        percentile: p, share of the entries that is pruned, see `kept`.

    Returns:
        (N, K), with the row sums of z.

    References:
        Djurisic et al., ICLR 2023.

    Example:
        >>> ash_b(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 0.5)
        tensor([[0., 5., 5., 0.]])
    """
    places = z.topk(kept(z.shape[1], percentile), dim=1).indices
    share = z.sum(1, keepdim=True) / places.shape[1]
    return torch.zeros_like(z).scatter(1, places, share.expand(places.shape))


def ash_s(z: Tensor, percentile: float = 0.9) -> Tensor:
    r"""Pruned and sharpened features: the k largest entries times :math:`e^{S_1/S_2}`, the others zero.

    S_1 is the sum of the row, S_2 the sum of what is kept.

    Args:
        z: (N, K); a row of zeros stays one.
        percentile: p, share of the entries that is pruned, see `kept`.

    Returns:
        (N, K)

    Raises:
        ValueError: S_2 <= 0 in a row (features that can be negative), or the factor overflows.

    References:
        Djurisic et al., ICLR 2023.
    """
    return ash_p(z, percentile) * _factor(z, percentile)


def scale(z: Tensor, percentile: float = 0.85) -> Tensor:
    r"""Scaled features :math:`z\,e^{S_1/S_2}`: as `ash_s`, but nothing is pruned.

    A change of temperature, one per sample: with p = 0 it is the same factor e for all.

    Args:
        z: (N, K); a row of zeros stays one.
        percentile: p, share of the entries that is left out of S_2, see `kept`.

    Returns:
        (N, K)

    Raises:
        ValueError: S_2 <= 0 in a row (features that can be negative), or the factor overflows.

    References:
        Xu et al., Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement, ICLR 2024.
    """
    return z * _factor(z, percentile)


def _factor(z: Tensor, percentile: float) -> Tensor:
    """exp(S_1 / S_2), (N, 1)."""
    some = z.topk(kept(z.shape[1], percentile), dim=1).values.sum(1, keepdim=True)
    dead = (z == 0).all(1, keepdim=True)  # any factor leaves them zero
    factor = (z.sum(1, keepdim=True) / some.masked_fill(dead, 1)).exp()
    bad = int((((some <= 0) | ~factor.isfinite()) & ~dead).sum())
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
        if not callable(score):
            raise ValueError(f"score={score!r} was given; expected a function of logits, for instance ood_lib.energy")
        self.kind = score
        self.head = FrozenHead(head)

    def rectify(self, z: Tensor) -> Tensor:
        """The reshaped features, (N, K) to (N, K)."""
        raise NotImplementedError(f"{type(self).__name__} must define rectify")

    def _score(self, features: Features) -> Tensor:
        self.head.check_width(features.penultimate)
        return self.kind(self.head(self.rectify(features.penultimate)))

    def extra_repr(self) -> str:
        """The hyperparameters, as they were given."""
        return f"{super().extra_repr()}, score={getattr(self.kind, '__name__', repr(self.kind))}"


class ReAct(Rectifier):
    """Score of the logits of clipped features, see `react`.

    The clip is a percentile over all entries of the features given to ``fit``; the paper takes held-out ID images, not
    the training set (which serves as well where nothing is held out).

    Args:
        head: the network's last linear layer.
        percentile: share of the ID activations below the clip.
        score: see `Rectifier`.

    Raises:
        ValueError: ``percentile`` is not in (0, 1]; features of another width than the head.
    """

    fits = "val"
    clip: Tensor

    def __init__(self, head: nn.Linear, percentile: float = 0.9, score: Callable[[Tensor], Tensor] = energy) -> None:
        super().__init__(head, score)
        if not 0 < percentile <= 1:
            raise ValueError(f"percentile={percentile} was given; expected a share of activations in (0, 1]")
        self.percentile = percentile
        self.register_buffer("clip", torch.tensor(math.inf, dtype=torch.float64))

    def _fit(self, features: Features) -> None:
        self.head.check_width(features.penultimate)
        z = self._prepare(Features(penultimate=features.penultimate)).penultimate
        self.clip.copy_(percentile_of(z, self.percentile))

    def rectify(self, z: Tensor) -> Tensor:
        """See `react`."""
        return react(z, self.clip.item())


class ASH(Rectifier):
    """Score of the logits of pruned features, see `ash_b`, `ash_s` and `ash_p`.

    Args:
        head: the network's last linear layer.
        percentile: share of each feature's entries that is pruned.
        variant: ``"b"`` (binarise), ``"s"`` (sharpen; the authors' choice for most networks) or ``"p"`` (prune only).
        score: see `Rectifier`.

    Raises:
        ValueError: another variant; ``percentile`` leaves nothing; features of another width than the head; with
            ``"s"``, features that can be negative, see `ash_s`.
    """

    needs_fit = False

    def __init__(
        self,
        head: nn.Linear,
        percentile: float = 0.9,
        variant: Literal["b", "s", "p"] = "b",
        score: Callable[[Tensor], Tensor] = energy,
    ) -> None:
        super().__init__(head, score)
        if variant not in ("b", "s", "p"):
            raise ValueError(f"variant={variant!r} was given; expected 'b', 's' or 'p'")
        kept(head.in_features, percentile)
        self.percentile, self.variant = percentile, variant

    def rectify(self, z: Tensor) -> Tensor:
        """The variant chosen."""
        return {"b": ash_b, "s": ash_s, "p": ash_p}[self.variant](z, self.percentile)


class SCALE(Rectifier):
    """Score of the logits of scaled features, see `scale`.

    Args:
        head: the network's last linear layer.
        percentile: share of each feature's entries that is left out of the smaller sum.
        score: see `Rectifier`.

    Raises:
        ValueError: ``percentile`` leaves nothing; features of another width than the head; features that can be
            negative, see `scale`.
    """

    needs_fit = False

    def __init__(self, head: nn.Linear, percentile: float = 0.85, score: Callable[[Tensor], Tensor] = energy) -> None:
        super().__init__(head, score)
        kept(head.in_features, percentile)
        self.percentile = percentile

    def rectify(self, z: Tensor) -> Tensor:
        """See `scale`."""
        return scale(z, self.percentile)

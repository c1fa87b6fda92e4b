r"""The residual: a small network that learns what a simple density gets wrong, and the loss it learns by.

.. math:: E_h(z) = E_{\text{prior}}(z) / T_p + E_\theta(z), \qquad p_h(z) \propto e^{-E_h(z) / T}

Larger energy = more OOD.  T is the temperature at which the hybrid draws, by default :math:`1/T_p`: without a residual
its density is that of the prior.  The network is pushed down on training features and up on *negatives*: features that
the hybrid itself draws.  `ood_lib.detectors.heat.hybrid` draws them and turns the wheel.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.checks import check

__all__ = ["Diagnostics", "ResidualNet", "residual_loss"]


def residual_loss(data: Tensor, negatives: Tensor, lam: float) -> Tensor:
    r"""What a residual is trained on: energies of data down, of negatives up, and all of them small.

    .. math:: \overline{E_\theta(z)} - \overline{E_\theta(\tilde z)}
        + \lambda \bigl( \overline{E_\theta(z)^2} + \overline{E_\theta(\tilde z)^2} \bigr)

    For fixed negatives with density q its minimum is :math:`-\tanh(\frac12 \log p/q) / 2\lambda`.

    Args:
        data: residual energies of training features, (n,).
        negatives: residual energies of negatives, (m,).
        lam: lambda; :math:`1/2\lambda` bounds the best residual.

    Raises:
        ValueError: ``lam`` is negative, or no finite number.

    References:
        Lafon et al., HEAT, ICML 2023, eq. 6.
    """
    check("[0, inf)", "a finite number", lam=lam)
    return data.mean() - negatives.mean() + lam * (data.square().mean() + negatives.square().mean())


class ResidualNet(nn.Module):
    """Features (N, D) to residual energies (N,): a leaky multilayer perceptron that begins as zero.

    It computes in the precision of its input, and standardises it by ``shift`` and ``scale``.

    Args:
        width: D.
        hidden: widths of the hidden layers.
        shared: all layers between hidden ones are one layer, as in HEAT's released code.
        bound: factor of the output.
        seed: of the first weights.

    Raises:
        ValueError: no hidden layer, or one without units; ``shared`` with hidden layers of different widths.

    Example:
        >>> net = ResidualNet(512, [1024] * 5)
        >>> sum(p.numel() for p in net.parameters())
        4724737
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, width: int, hidden: Sequence[int], shared: bool = False, bound: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1 or (shared and len(set(hidden)) > 1):
            raise ValueError(f"hidden={hidden}, shared={shared} given; expected widths >= 1, all the same if shared")
        draw, self.bound = torch.Generator().manual_seed(seed), bound
        inner = [_linear(a, b, draw) for a, b in itertools.pairwise(hidden)]
        self.hidden = nn.ModuleList([_linear(width, hidden[0], draw), *(inner[:1] * len(inner) if shared else inner)])
        self.out = _linear(hidden[-1], 1, draw)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        """Residual energies (N,)."""
        h = (z - self.shift.to(z.dtype)) / self.scale.to(z.dtype)
        for layer in self.hidden:
            h = F.leaky_relu(_apply(layer, h), 0.2)
        return self.bound * _apply(self.out, h)[:, 0]

    def with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Residual energies (N,) and their gradients with respect to z (N, D), written out: half the work of autograd.

        For the steps of chains, which leave the weights as they are.
        """
        h, before = (z - self.shift) / self.scale, []
        for layer in self.hidden:
            before.append(_apply(layer, h))
            h = F.leaky_relu(before[-1], 0.2)
        slope = self.bound * self.out.weight.to(z).expand(len(z), -1)
        for layer, inner in zip(reversed(self.hidden), reversed(before)):
            slope = torch.ops.aten.leaky_relu_backward(slope, inner, 0.2, False) @ layer.weight.to(z)
        return self.bound * _apply(self.out, h)[:, 0], slope / self.scale


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with the usual first weights, drawn without touching the global random numbers."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    for value in layer.parameters():
        nn.init.uniform_(value, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def _apply(layer: Any, h: Tensor) -> Tensor:
    weight, bias = (p.to(h.dtype) for p in (layer.weight, layer.bias))
    return F.linear(h, weight, bias)


@dataclass
class Diagnostics:
    """What the training of a residual leaves to look at, one entry per update.

    Example:
        >>> Diagnostics(data=[0.0, -0.5], negatives=[0.0, 0.5], lam=0.25).gap_share
        [0.0, 0.25]
    """

    data: list[float] = field(default_factory=list)  # mean residual energy of the batch
    negatives: list[float] = field(default_factory=list)  # and of the negatives
    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    lam: float = math.nan  # of the penalty

    @property
    def gap(self) -> list[float]:
        """How much higher the negatives lie; 0 when the network no longer tells them from data."""
        return [n - d for d, n in zip(self.data, self.negatives)]

    @property
    def gap_share(self) -> list[float]:
        r"""The gap as a share of the largest, :math:`1/\lambda`, between residuals at both ends of the bound.

        Near 1 the negatives are told apart for certain, and further updates teach little; near 0 the residual changes
        no ranking, for lack of training or of a difference to find.  At lambda 0 nothing bounds it, and it is 0.
        """
        return [self.lam * gap for gap in self.gap]

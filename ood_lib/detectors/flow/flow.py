r"""Normalizing flows: an invertible map f bends the data into a Gaussian, and its Jacobian keeps the books.

A small box around x of volume dx goes to one of volume :math:`|\det J_f(x)|\,dx` and keeps its mass, so

.. math:: \log p(x) = \log p_0(f(x)) + \log |\det J_f(x)| .

A flow adds up the log-determinants of its layers, which stand in `ood_lib.detectors.flow.bijections`; the detector on
top is in `ood_lib.detectors.flow.feature_flow`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ood_lib.detectors.flow.bijections import ActNorm, Coupling, InvertibleLinear, Rotation, Whitening
from ood_lib.detectors.moments import Moments

__all__ = ["ClassNormals", "Flow", "StandardNormal", "coupling_flow", "glow"]


class StandardNormal(nn.Module):
    """The usual base: N(0, I) in K dimensions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def log_prob(self, u: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density of latents (N, K), (N,); labels change nothing."""
        return -(u.square().sum(1) + self.dim * math.log(2 * math.pi)) / 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, K) on the CPU."""
        return torch.randn(n, self.dim, generator=generator, dtype=torch.float32, device="cpu")


class ClassNormals(StandardNormal):
    """A base with islands: one N(mean_c, I) per class, weighted by its share.  Against bridges between classes.

    With labels, ``log_prob`` is that of latent *and* class; without, it sums over the classes.
    """

    log_shares: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim)
        self.means = nn.Parameter(torch.zeros(classes, dim))
        self.register_buffer("log_shares", torch.zeros(classes))

    def log_prob(self, u: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density of latents (N, K), with their classes (N,) when these are given."""
        if labels is not None:
            return super().log_prob(u - self.means[labels]) + self.log_shares[labels]
        squares = (u.square().sum(1, keepdim=True) - 2 * u @ self.means.T) + self.means.square().sum(1)
        return (self.log_shares - squares / 2).logsumexp(1) - self.dim * math.log(2 * math.pi) / 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, K) on the CPU."""
        which = self.log_shares.exp().cpu().multinomial(n, replacement=True, generator=generator)
        return super().sample(n, generator) + self.means.detach().cpu()[which]


class Flow(nn.Module):
    """Layers that turn data into a latent, and the density of the latent.

    Args:
        layers: each answers ``forward(x) -> (y, log_det)`` and ``inverse(y) -> x``; x is (N, K).
        base: answers ``log_prob(u, labels)`` and ``sample(n, generator)``.

    Example:
        >>> flow = coupling_flow(2, layers=4)
        >>> u, log_det = flow(torch.zeros(3, 2))
        >>> flow.log_prob(torch.zeros(1, 2)).exp()  # 1 / (2 pi): untrained, it is the base
        tensor([0.1592], grad_fn=<ExpBackward0>)
    """

    def __init__(self, layers: Sequence[nn.Module], base: nn.Module) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.base: Any = base

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data (N, K) to latents u (N, K) and the logarithm of the stretch, log_det (N,)."""
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, u: Tensor) -> Tensor:
        """Latents (N, K) to data (N, K)."""
        for layer in reversed(self.layers):
            u = layer.inverse(u)
        return u

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density of data (N, K) in nats, (N,); with labels, that of data and class."""
        u, log_det = self(x)
        return self.base.log_prob(u, labels) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, K) from the density; the generator is one of the CPU, None = the global one."""
        like = next(self.parameters())
        return self.inverse(self.base.sample(n, generator).to(like))

    @torch.no_grad()
    def initialize(self, x: Tensor, moments: Moments, blur: float = 0.0) -> None:
        """Start as a Gaussian fit: a first `Whitening` takes the moments, otherwise each `ActNorm` standardises x.

        Args:
            x: a batch (N, K).
            moments: of all data, see `Whitening.initialize`; of the classes when the base has classes.
            blur: standard deviation of the noise that x has and the moments have not.
        """
        if isinstance(self.layers[0], Whitening):
            self.layers[0].initialize(moments, blur)
        else:
            for layer in self.layers:
                if isinstance(layer, ActNorm):
                    layer.initialize(x)
                x, _ = layer(x)
        if isinstance(self.base, ClassNormals):  # all layers are still linear: they carry means to means
            self.base.means.copy_(self(moments.means.to(x))[0])
            self.base.log_shares.copy_((moments.counts / moments.counts.sum()).log())

    def first_overflow(self, x: Tensor) -> str:
        """Name of the first layer that makes of x (N, K) what has no finite square; "the base" when none does."""
        for index, layer in enumerate(self.layers):
            x, log_det = layer(x)
            if not (x.square().sum().isfinite() and log_det.isfinite().all()):
                return f"layer {index} of {len(self.layers)}, {type(layer).__name__}"
        return "the base"


def coupling_flow(
    dim: int,
    layers: int = 8,
    hidden: Sequence[int] | None = None,
    *,
    clamp: float | None = 2.0,
    rotate: bool = True,
    whiten: bool = False,
    classes: int = 0,
    seed: int = 0,
) -> Flow:
    """The flow of this book: in each block `ActNorm`, `Rotation`, `Coupling`; halves take turns; nets are clamped.

    Args:
        dim: K.
        layers: couplings.
        hidden: widths of each net; None = two layers of min(K, 512).
        clamp: see `Coupling`.
        rotate: without rotations the halves are always the same two; good enough, and smoother to look at, in 2-D.
        whiten: begin with `Whitening`.
        classes: 0 = `StandardNormal`, otherwise the number of `ClassNormals`.
        seed: of weights and rotations.
    """
    widths = [min(dim, 512)] * 2 if hidden is None else hidden
    with _seeded(seed):
        parts: list[nn.Module] = [Whitening(dim)] if whiten else []
        for index in range(layers):
            parts += [ActNorm(dim), *([Rotation(dim)] if rotate else []), Coupling(dim, widths, index % 2 == 1, clamp)]
    return _flow(parts, dim, classes)


def glow(dim: int, blocks: int = 10, *, classes: int = 0, seed: int = 0) -> Flow:
    """The flow of the paper: in each block an unclamped `Coupling` of the same halves, `InvertibleLinear`, `ActNorm`.

    One net for s and one for t, each with one hidden layer of K units. The released code masks every second
    coordinate, and its nets read and write K numbers, half of them zeros. The order of features has no meaning, so
    here the first half stays unchanged, and the factors of zero are left out (the nets have half as many weights, from
    the same initial distribution).

    References:
        Cook, Lavoie & Waslander, Feature Density Estimation for Out-of-Distribution Detection via Normalizing Flows,
        CRV 2024; code at github.com/TRAILab/FeatureDensityEstimation.
    """
    with _seeded(seed):
        parts: list[nn.Module] = []
        for _ in range(blocks):
            coupling = Coupling(dim, [dim], clamp=None, separate=True)
            for net in coupling.nets:  # as wide a draw as that of a layer which also reads the other half
                for weight in next(net.children()).parameters():
                    weight.data *= 0.5**0.5
            parts += [coupling, InvertibleLinear(dim), ActNorm(dim)]
    return _flow(parts, dim, classes)


def _flow(parts: list[nn.Module], dim: int, classes: int) -> Flow:
    """Layers over the base that was asked for, on the default device."""
    base = ClassNormals(dim, classes) if classes else StandardNormal(dim)
    return Flow(parts, base).to(torch.get_default_device())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU from a seed, whatever the default device; outside, nothing has changed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield

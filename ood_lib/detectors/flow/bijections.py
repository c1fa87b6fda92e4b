r"""Invertible layers: each maps x to y and says by which factor it stretches volume, as a logarithm, ``log_det``.

Every layer answers ``forward(x) -> (y, log_det)`` for x (N, K), with log_det (N,) or one number for all rows, and
``inverse(y) -> x``.  Where they start, a stack of them is linear: `ood_lib.detectors.flow.flow` begins with a Gaussian
fit and learns what is not Gaussian.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.detectors.moments import Moments, pooled

__all__ = ["ActNorm", "Coupling", "InvertibleLinear", "Rotation", "Whitening"]


class ActNorm(nn.Module):
    r"""Standardise every coordinate: :math:`y = (x-m)/\sigma`, log-det :math:`-\sum_j \log\sigma_j`.

    ``initialize`` sets m and sigma to mean and standard deviation of a batch (a coordinate that does not vary there
    gets a thousandth of the mean deviation); then they are trained.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_std = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Standardise this batch (N, K)."""
        std = x.std(0, correction=0)
        self.mean.copy_(x.mean(0))
        self.log_std.copy_(std.clamp(min=1e-3 * std.square().mean().sqrt().clamp(min=1e-12)).log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, K) to y, log_det."""
        return (x - self.mean) * torch.exp(-self.log_std), -self.log_std.sum()

    def inverse(self, y: Tensor) -> Tensor:
        """y to x."""
        return y * self.log_std.exp() + self.mean


class Whitening(nn.Module):
    r"""Fixed: :math:`y = A (x-\mu)` with :math:`A^\top A = \Sigma^{-1}`, log-det :math:`-\frac12\log\det\Sigma`.

    What follows then starts on data of mean 0 and covariance I, so the flow starts as the exact Gaussian fit, whose
    energy ranks like the squared Mahalanobis distance.
    """

    mean: Tensor
    matrix: Tensor
    log_det: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("log_det", torch.tensor(0.0))

    @torch.no_grad()
    def initialize(self, moments: Moments, blur: float = 0.0) -> None:
        r"""Whiten data with tied moments; of several classes, the covariance is the one inside them.

        Args:
            moments: of `ood_lib.detectors.moments.class_moments`, kind ``"tied"``.
            blur: standard deviation of noise that the data will get, which adds blur² to each variance.  Below a
                millionth of the mean variance, a variance is lifted to that: directions that never vary stay finite.
        """
        values, vectors = torch.linalg.eigh(moments.scatter / moments.counts.sum())
        values = values.clamp(min=0) + blur**2
        values = values.clamp(min=1e-6 * values.mean().item())
        self.mean.copy_(pooled(moments).means[0])
        self.matrix.copy_(vectors.T / values.sqrt()[:, None])
        self.log_det.copy_(-values.log().sum() / 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, K) to y, log_det."""
        return _times(x - self.mean, self.matrix), self.log_det

    def inverse(self, y: Tensor) -> Tensor:
        """y to x."""
        return torch.linalg.solve(self.matrix, y.T).T + self.mean


class Rotation(nn.Module):
    """Fixed random orthogonal matrix, y = Q x: it mixes the halves of a coupling at log-det 0."""

    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", _orthogonal(dim))

    def _apply(self, *args: Any, **options: Any) -> Self:
        before = self.matrix.dtype
        super()._apply(*args, **options)
        if before != self.matrix.dtype == torch.float64:  # what was rounded to fewer digits is no rotation any more
            q, r = torch.linalg.qr(self.matrix)
            self.matrix = q * r.diagonal().sign()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, K) to y, log_det."""
        return _times(x, self.matrix), x.new_zeros(())

    def inverse(self, y: Tensor) -> Tensor:
        """y to x."""
        return _times(y, self.matrix.T)


class InvertibleLinear(nn.Module):
    r"""Learnt matrix y = P L U x, log-det :math:`\sum_k \log|u_{kk}|`: K numbers instead of a determinant.

    P is a fixed permutation, L unit lower, U upper triangular with fixed signs on its diagonal; their product starts as
    a random rotation (Kingma & Dhariwal, Glow, NeurIPS 2018, section 3.2).
    """

    order: Tensor
    sign: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        p, lower, upper = torch.linalg.lu(_orthogonal(dim))
        diagonal = upper.diagonal()
        self.register_buffer("order", p.argmax(1))  # (P x)_k = x_order[k]
        self.register_buffer("sign", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U, (K, K) each."""
        unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + unit, self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, K) to y, log_det."""
        lower, upper = self.factors()
        return _times(_times(x, upper), lower)[:, self.order], self.log_diagonal.sum()

    def inverse(self, y: Tensor) -> Tensor:
        """y to x."""
        lower, upper = self.factors()
        half = torch.linalg.solve_triangular(lower, y[:, self.order.argsort()].T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True).T


class Coupling(nn.Module):
    r"""Half of x stays and decides how the other half moves: :math:`y_a = a`, :math:`y_b = (b-t(a))\,e^{-s(a)}`.

    The Jacobian is block triangular, so its log-det is :math:`-\sum_j s_j(a)`, whatever s and t are; no net is ever
    inverted.  Their last layer starts at zero: each coupling starts as the identity.

    Args:
        dim: K, at least 2.
        hidden: widths of the hidden layers.
        flip: the last half stays instead of the first.
        clamp: c in :math:`s = c\tanh(\tilde s/c)`, which bounds every stretch by :math:`e^{\pm c}`; None = no bound.
        separate: one net for s and one for t, instead of one for both.

    Raises:
        ValueError: fewer than two features, which leave nothing to decide by.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int], flip: bool = False, clamp: float | None = 2.0, separate: bool = False
    ) -> None:
        super().__init__()
        check("integer [2, inf)", "two halves to couple", dim=dim)
        self.sizes, self.flip, self.clamp = [dim // 2, dim - dim // 2], flip, clamp
        stays, moves = self.sizes[::-1] if flip else self.sizes
        widths = [stays, *hidden, moves if separate else 2 * moves]
        self.nets = nn.ModuleList(_mlp(widths) for _ in range(1 + separate))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What stays, a, and what moves, b."""
        first, last = x.split(self.sizes, 1)
        return (last, first) if self.flip else (first, last)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """The halves back in their places."""
        return torch.cat((b, a) if self.flip else (a, b), 1)

    def scale_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """s and t, one number each per coordinate that moves."""
        found = [net(a).to(a.dtype) for net in self.nets]
        s, t = found if len(found) == 2 else found[0].chunk(2, 1)
        return (s if self.clamp is None else self.clamp * torch.tanh(s / self.clamp)), t

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, K) to y, log_det."""
        a, b = self.parts(x)
        s, t = self.scale_shift(a)
        return self.join(a, (b - t) * torch.exp(-s)), -s.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """y to x."""
        a, b = self.parts(y)
        s, t = self.scale_shift(a)
        return self.join(a, b * s.exp() + t)


def _orthogonal(dim: int) -> Tensor:
    """A rotation or reflection (K, K), drawn uniformly."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, device="cpu"))
    return (q * r.diagonal().sign()).to(torch.get_default_dtype())


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them; the last one is zero."""
    parts: list[Any] = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    nn.init.zeros_(parts[-2].weight)
    nn.init.zeros_(parts[-2].bias)
    return nn.Sequential(*parts[:-1])


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """x (N, K) times the transpose, in the precision of x under autocast too: the volume must be exact."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, matrix)

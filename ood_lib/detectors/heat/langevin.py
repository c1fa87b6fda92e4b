r"""Langevin dynamics: noisy steps downhill that draw from the density of an energy.

.. math:: z \leftarrow z - s\, \nabla E(z) + \sqrt{2 s T}\, \xi, \qquad \xi \sim N(0, I)

For small steps the points settle where :math:`p(z) \propto e^{-E(z)/T}` is large.  Step size and noise belong together:
a noise of standard deviation e at step s means the temperature :math:`T = e^2 / 2s`, whether one says so or not.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.tensors import check_floats

__all__ = ["DivergedError", "schedule", "sgld"]


class DivergedError(RuntimeError):
    """An energy left the finite numbers, or its bound; the message says at which step."""


def schedule(first: float, decay: float, steps: int) -> list[float]:
    r"""Values that fall quadratically from ``first`` towards ``decay * first``.

    .. math:: s_t = (s_0 - s_1)\, (1 - t/K)^2 + s_1, \qquad s_1 = \text{decay} \cdot s_0, \quad t = 0, \dots, K-1

    Example:
        >>> schedule(1.0, 0.0, 2)
        [1.0, 0.25]
    """
    check("[0, inf)", "a finite number", decay=decay)
    check("integer [0, inf)", steps=steps)
    last = decay * first
    return [(first - last) * (1 - t / steps) ** 2 + last for t in range(steps)]


@torch.inference_mode(False)
def sgld(
    energy: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    step_size: float,
    *,
    temperature: float = 1.0,
    noise: float | None = None,
    decay: float = 1.0,
    metric: Tensor | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    r"""Move points by stochastic gradient Langevin dynamics towards :math:`p \propto e^{-E/T}`.

    With a metric M the step is :math:`z - s M M^\top \nabla E + \sqrt{2 s T}\, M \xi`.  It draws from the same
    density; narrow and wide directions are now walked in equally many steps.

    Args:
        energy: points (n, D) to energies (n,), differentiable.
        start: (n, D); not changed.
        steps: K; 0 gives the (projected) start.
        step_size: s, in the units of the points squared, or of the metric.
        temperature: T; 0 = gradient descent.
        noise: e, standard deviation of the noise if it is to be free of s and T, as in HEAT's released code.
        decay: step, and a free noise, fall to this share of the first one, see `schedule`.
        metric: M, (D, D), for instance a Cholesky factor of a covariance.
        project: brings points (n, D) back to where they may be, before the chain and after each step.
        generator: of the noise, which is drawn on its device, in single precision; None = the global one of the CPU.
        callback: is shown (t, points) before step t, and (K, points) at the end.

    Returns:
        (n, D), without gradient.

    Raises:
        ValueError: an argument out of its range.
        DivergedError: an energy or a point is not finite.

    References:
        Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML 2011.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> z = sgld(lambda z: z.square().sum(1) / 2, torch.full((4000, 1), 9.0), 100, 0.1, generator=draw)
        >>> round(z.std().item(), 1)  # as of N(0, 1); the variance is 1/(1 - s/2)
        1.0
    """
    check("integer [0, inf)", steps=steps)
    check("[0, inf)", "a finite number", step_size=step_size, temperature=temperature, decay=decay)
    check("[0, inf) or None", "a finite number", noise=noise)
    check_floats("(n, D)", start=start)
    z = start.detach().clone()
    z = z if project is None else project(z)
    place = torch.device("cpu") if generator is None else generator.device
    drawn = torch.empty(z.shape, dtype=torch.float32, device=place)  # these three are reused by every step
    push, drift = torch.empty_like(z), torch.empty_like(z)
    root = None if metric is None else metric.mT.to(z)
    square = None if root is None else root.mT @ root
    sizes = schedule(step_size, decay, steps)
    stds = [math.sqrt(2 * s * temperature) for s in sizes] if noise is None else schedule(noise, decay, steps)
    for t, (size, std) in enumerate(zip(sizes, stds)):
        if callback is not None:
            callback(t, z)
        push.copy_(drawn.normal_(generator=generator))
        z.add_(_turned(_gradient(energy, z, t), square, drift), alpha=-size)
        z.add_(_turned(push, root, drift), alpha=std)
        z = z if project is None else project(z)
    if callback is not None:
        callback(steps, z)
    if not z.isfinite().all():
        raise DivergedError(f"a point left the finite numbers within {steps} Langevin steps: take a smaller step_size")
    return z


@torch.enable_grad()
def _gradient(energy: Callable[[Tensor], Tensor], z: Tensor, t: int) -> Tensor:
    leaf = z.detach().requires_grad_()  # the same memory
    total = energy(leaf).sum()
    if not total.isfinite():
        raise DivergedError(f"the energy became {total.item()} at Langevin step {t}: take a smaller step_size")
    return torch.autograd.grad(total, leaf)[0]


def _turned(rows: Tensor, matrix: Tensor | None, out: Tensor) -> Tensor:
    return rows if matrix is None else torch.mm(rows, matrix, out=out)

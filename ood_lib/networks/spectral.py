r"""Spectral normalisation: hard or bounded, reshaped or exact, with or without the BatchNorm.

The spectral norm :math:`\sigma_{\max}` of a linear map is the most by which it can stretch a vector. The idea is to
divide the weight of every layer by it, so that the network changes slowly. Whether this works depends on three
choices. The weight can always be divided (*hard*) or only where its norm is too large (*bounded*). The norm can be
that of the weight *reshaped* to a matrix or the *exact* one of the convolution. And the gain of a BatchNorm that
follows undoes any scale of the weight before it. In training mode the loss is then the same function of the free
weight as without normalisation, up to BatchNorm's epsilon, and every step of the optimiser is the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ood_lib.checks import check
from ood_lib.networks.lipschitz import BATCHNORMS, MATRIX, gain, linear_map

__all__ = ["BoundedGain", "SpectralNorm", "power_iteration", "spectral_normalize"]

Linear = Callable[[Tensor], Tensor]
WARM_UP = 15  # steps before the first use, as in PyTorch


@torch.no_grad()
def power_iteration(apply: Linear, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    r"""Singular vectors u, v of the largest singular value: :math:`\sigma_{\max} = \langle u, A v\rangle` in the limit.

    .. math:: u \leftarrow A v / \lVert A v\rVert, \qquad v \leftarrow A^\top u / \lVert A^\top u\rVert

    The error of the value shrinks by :math:`(\sigma_2/\sigma_1)^4` per step or slower, and never makes it too large.

    Args:
        apply: the linear map A.
        v: where to start, in the shape that A takes.
        steps: at least 1.

    Returns:
        u and v, each of length 1.

    Example:
        >>> a = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> u, v = power_iteration(lambda x: x @ a.T, torch.ones(2), steps=8)
        >>> torch.dot(u, v @ a.T)
        tensor(3.)
    """
    for _ in range(steps):
        with torch.enable_grad():  # A is linear, so its gradient is A^T, wherever it is taken
            image = apply(v := v.detach().requires_grad_())
        u = _unit(image.detach())
        (back,) = torch.autograd.grad(image, v, u)
        v = _unit(back)
    return u, v


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp_min(1e-12)


class SpectralNorm(nn.Module):
    r"""Parametrization of a weight by its spectral norm; made by `spectral_normalize`.

    Each time the weight is used in training mode, `power_iteration` makes one step. In eval mode u and v do not
    change, and :math:`\hat\sigma = \langle u, A v\rangle` is the norm only as long as the weight does not change
    either.
    """

    u: Tensor
    v: Tensor

    def __init__(self, layer: nn.Module, mode: str, coefficient: float, norm: str) -> None:
        super().__init__()
        self.mode, self.coefficient, self.norm = mode, coefficient, norm
        self.linear = linear_map(layer) if norm == "exact" else MATRIX
        self.register_buffer("u", torch.empty(0))
        self.register_buffer("v", torch.empty(0))
        if norm == "reshaped" or isinstance(layer, nn.Linear):
            weight = cast(Tensor, layer.weight)
            self.begin(weight, weight[0].numel())

    @torch.inference_mode(False)  # `power_iteration` takes gradients, also when it is an accuracy that is measured
    def begin(self, weight: Tensor, *shape: int) -> None:
        """Find singular vectors from scratch, for inputs of a given shape."""
        weight = weight.detach().clone()
        with torch.autocast(weight.device.type, enabled=False):  # as in `forward`
            drawn = torch.randn(
                1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
            )
            start = _unit(drawn.to(weight.device, weight.dtype))
            self.u, self.v = power_iteration(partial(self.linear.apply, weight), start, WARM_UP)

    def see(self, weight: Tensor, shape: Sequence[int]) -> None:
        """Learn the size of the input, on which the exact norm of a convolution depends; in eval mode only once."""
        if len(self.v) == 0 or (self.training and self.v.shape[1:] != shape):
            self.begin(weight, *shape)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight."""
        if not self.v.numel():  # a convolution that has not seen an input yet
            return weight
        with torch.autocast(weight.device.type, enabled=False):  # half precision would lose the bound's third digit
            scale = self.sigma(weight) / self.coefficient
        return weight / (scale if self.mode == "hard" else scale.clamp_min(1))

    def sigma(self, weight: Tensor) -> Tensor:
        """The norm (); in training mode after a step of `power_iteration`."""
        if not self.training:
            return torch.dot(self.u.flatten(), self.linear.apply(weight, self.v).flatten())
        self.v = v = _unit(self.linear.adjoint(weight.detach(), self.u, self.v.shape))
        image = self.linear.apply(weight, v)
        norm = torch.linalg.vector_norm(image)  # = <u, A v> for the u that comes, and so is its gradient
        self.u = image.detach() / norm.detach().clamp_min(1e-12)
        return norm

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("u", "v"):  # their shape is learnt
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """How the weight is normalised."""
        return f"mode={self.mode!r}, coefficient={self.coefficient:g}, norm={self.norm!r}"


class BoundedGain(nn.Module):
    r"""Parametrization of a BatchNorm's :math:`\gamma` that keeps `batchnorm_gain` at a bound c or below it."""

    def __init__(self, layer: nn.Module, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient
        object.__setattr__(self, "layer", layer)  # to read its running variance; not a part of this module

    def forward(self, gamma: Tensor) -> Tensor:
        """The bounded gamma (channels,)."""
        return gamma / (gain(self.layer, gamma) / self.coefficient).clamp_min(1)

    def extra_repr(self) -> str:
        """The bound."""
        return f"coefficient={self.coefficient:g}"


def spectral_normalize(
    module: nn.Module,
    mode: Literal["hard", "bounded"] = "hard",
    coefficient: float = 1.0,
    norm: Literal["reshaped", "exact"] = "reshaped",
    *,
    layers: type | tuple[type, ...] = nn.Conv2d,
    batchnorm: float | None = None,
) -> nn.Module:
    r"""Divide the weights of a network by their spectral norm, from now on and while it is trained.

    Hard: :math:`W \to c\,W / \hat\sigma`, larger or smaller, so that the norm is c.  Bounded:
    :math:`W \to W / \max(1, \hat\sigma / c)`, so that it is at most c.  The defaults are what the released code of
    SNoJoE does: hard, c = 1, reshaped, all convolutions, BatchNorm left alone (and then nothing is bounded).

    Args:
        module: a layer or a whole network; changed in place (parametrizations on ``weight``; they are in the
            ``state_dict``, so normalise a fresh network the same way before you load one).
        mode: always divide, or only what is too large.
        coefficient: c > 0.
        norm: of the weight as a matrix, or of the convolution on the inputs that it meets (measured from the first
            image that passes; until then the weight is left alone).
        layers: types to normalise, among nn.Conv2d and nn.Linear.
        batchnorm: also bound the gain of each BatchNorm by this; None = leave them alone.

    Returns:
        The module.

    Raises:
        ValueError: an argument out of its range, no such layer in the module, or one that is normalised already.

    References:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018 (hard); Gouk et al.,
        Regularisation of Neural Networks by Enforcing Lipschitz Continuity, Machine Learning 2021 (bounded); van
        Amersfoort et al., On Feature Collapse and Deep Kernel Learning, 2021 (BatchNorm).

    Example:
        >>> from ood_lib.networks.lipschitz import reshaped_norm
        >>> layer = spectral_normalize(nn.Linear(4, 3), layers=nn.Linear)
        >>> for _ in range(50):  # each use in training mode is a step
        ...     _ = layer.weight
        >>> reshaped_norm(layer.weight).round(decimals=2)
        tensor(1., grad_fn=<RoundBackward1>)
    """
    check(("hard", "bounded"), mode=mode)
    check(("reshaped", "exact"), norm=norm)
    check("(0, inf)", "a bound", coefficient=coefficient)
    check("(0, inf) or None", "a bound", batchnorm=batchnorm)
    chosen: list[nn.Module] = [m for m in module.modules() if isinstance(m, layers)]
    if not chosen:
        raise ValueError(f"{type(module).__name__} has no layer of {layers} to normalise")
    if done := [name for name, m in module.named_modules() if m in chosen and hasattr(m, "parametrizations")]:
        raise ValueError(f"{done} are normalised already; build the network afresh to normalise it otherwise")
    for layer in chosen:
        register_parametrization(layer, "weight", SpectralNorm(layer, mode, coefficient, norm))
        if norm == "exact" and not isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_show_input)
    if batchnorm is not None:
        for layer in [m for m in module.modules() if isinstance(m, BATCHNORMS) and m.affine]:
            register_parametrization(layer, "weight", BoundedGain(layer, batchnorm))
    return module


def _show_input(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    held = layer.parametrizations.weight
    held[0].see(held.original, inputs[0].shape[1:])

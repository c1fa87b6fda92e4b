r"""How much a layer stretches: norms of its weight, the gain of its BatchNorm, and a report over a network.

The norm of a convolution is not that of its weight reshaped to a matrix, and where a BatchNorm follows, the norm alone
does not bound the pair. The report lists all of these numbers side by side.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from ood_lib.data.benchmark import Normalize
from ood_lib.extras import need
from ood_lib.networks.modes import in_eval
from ood_lib.networks.network import pick_device
from ood_lib.tensors import check_floats
from ood_lib.warn import warn

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = [
    "BATCHNORMS", "MATRIX", "LinearMap", "batchnorm_gain", "exact_norm", "gain", "linear_map", "lipschitz_report",
    "reshaped_norm",
]  # fmt: skip

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
KINDS = (nn.Conv2d, nn.Linear, *BATCHNORMS)  # what a report knows
COARSE = 1e-4  # from this tolerance on single precision will do, in which convolutions are several times faster
DENSE = 64  # up to so many inputs or outputs the whole matrix is decomposed


class LinearMap(NamedTuple):
    """The map A that a layer applies to a batch of inputs, without its bias, and its transpose."""

    apply: Callable[[Tensor, Tensor], Tensor]  # weight, v -> A v
    adjoint: Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # weight, u, shape of v -> A^T u


def _times(weight: Tensor, v: Tensor) -> Tensor:
    return F.linear(v, weight.flatten(1))


def _times_transposed(weight: Tensor, u: Tensor, shape: Sequence[int]) -> Tensor:
    return (u @ weight.flatten(1)).reshape(shape)


MATRIX = LinearMap(_times, _times_transposed)  # of the weight as a matrix (outputs, everything else)


def linear_map(layer: nn.Module) -> LinearMap:
    """What a layer does to a batch of inputs v, (N, features) or (N, channels, H, W), as a function of its weight.

    Of an nn.Conv2d with zero padding the map keeps stride, padding, dilation and groups.

    Raises:
        ValueError: another layer, or another kind of padding.

    Example:
        >>> layer = nn.Conv2d(1, 1, 3, bias=False)
        >>> x = torch.rand(1, 1, 5, 5)
        >>> torch.equal(linear_map(layer).apply(layer.weight, x), layer(x))
        True
    """
    if isinstance(layer, nn.Linear):
        return MATRIX
    options = _zero_padded(layer)

    return LinearMap(partial(_convolve, options), partial(_convolve_transposed, options))


def _convolve(options: tuple[Any, ...], weight: Tensor, v: Tensor) -> Tensor:
    return F.conv2d(v, weight, None, *options)


def _convolve_transposed(options: tuple[Any, ...], weight: Tensor, u: Tensor, shape: Sequence[int]) -> Tensor:
    return conv2d_input(shape, weight, u, *options)


def _zero_padded(layer: nn.Module) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of a convolution."""
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros":
        raise ValueError(f"{layer} has no exact norm here; expected nn.Linear, or nn.Conv2d with padding_mode='zeros'")
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size)]
    named = {"same": [r // 2 for r in reach], "valid": [0, 0]}
    padding = named[layer.padding] if isinstance(layer.padding, str) else layer.padding
    if layer.padding == "same" and any(r % 2 for r in reach):
        raise ValueError(f"{layer} pads one side more than the other; pad the image, and give the layer padding=0")
    return layer.stride, padding, layer.dilation, layer.groups


def reshaped_norm(weight: Tensor) -> Tensor:
    r"""Largest singular value :math:`\sigma_{\max}` of a weight as a matrix (outputs, everything else), ().

    For a convolution this is not its norm :math:`\lVert A\rVert`: a pixel enters several patches, at most
    :math:`n = \lceil k_h/s\rceil\lceil k_w/s\rceil` (kernel size over stride), so
    :math:`\sigma_{\max} \le \lVert A\rVert \le \sqrt{n}\,\sigma_{\max}` (the first where one whole patch fits in).

    References:
        Tsuzuku, Sato & Sugiyama, Lipschitz-Margin Training, NeurIPS 2018 (the upper bound).

    Example:
        >>> reshaped_norm(torch.ones(1, 1, 3, 3)).round()  # root of nine
        tensor(3.)
    """
    return torch.linalg.matrix_norm(weight.flatten(1), 2)


@torch.inference_mode(False)
def exact_norm(layer: nn.Module, shape: Sequence[int], tolerance: float = 1e-6) -> float:
    """Spectral norm of a linear layer or convolution as it acts on an input of a given size.

    Computed on the CPU, in float64 unless the tolerance is coarse (1e-4 or more), by the Lanczos method of ARPACK,
    which needs far fewer steps than `power_iteration`.  A linear layer is its weight, and so, at each
    pixel that it reads, is a 1x1 convolution without padding and groups: there the norm is the reshaped one.

    Args:
        layer: nn.Linear, or nn.Conv2d with zero padding.
        shape: of one input, (channels, H, W), or (features,).
        tolerance: relative, of the value.

    Returns:
        The norm, >= 0.

    Raises:
        ValueError: another layer.

    Example:
        >>> blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(blur.weight)
        >>> round(exact_norm(blur, (1, 32, 32)), 1)  # it sums up nine pixels, and its reshaped norm is 3
        8.9
    """
    precision = torch.float64 if tolerance < COARSE else torch.float32
    weight = cast(Tensor, layer.weight).detach().cpu().to(precision)
    linear = linear_map(layer)
    if isinstance(layer, nn.Linear) or (layer.kernel_size, layer.padding, layer.groups) == ((1, 1), (0, 0), 1):
        return reshaped_norm(weight).item()
    width = math.prod(shape)
    image = linear.apply(weight, weight.new_zeros(1, *shape))
    height = image.numel()
    if min(width, height) <= DENSE:
        pixels = torch.eye(width, dtype=precision).reshape(width, *shape)
        return torch.linalg.matrix_norm(linear.apply(weight, pixels).flatten(1), 2).item()

    def forward(x: "np.ndarray") -> "np.ndarray":
        return linear.apply(weight, torch.from_numpy(x).reshape(1, *shape)).flatten().numpy()

    def adjoint(y: "np.ndarray") -> "np.ndarray":
        along = torch.from_numpy(y).reshape(image.shape)
        return linear.adjoint(weight, along, (1, *shape)).flatten().numpy()

    sparse = need("scipy.sparse.linalg")
    operator = sparse.LinearOperator((height, width), matvec=forward, rmatvec=adjoint, dtype=str(precision)[6:])
    start = torch.randn(min(width, height), generator=torch.Generator().manual_seed(0), dtype=precision, device="cpu")
    found = sparse.svds(operator, k=1, tol=tolerance, v0=start.numpy(), return_singular_vectors=False)
    return float(found[0])


def batchnorm_gain(layer: nn.Module) -> Tensor:
    r"""The most by which a BatchNorm stretches in eval mode, :math:`\max_c |\gamma_c| / \sqrt{v_c + \epsilon}`, ().

    Raises:
        ValueError: the layer keeps no running variance v.

    References:
        Gouk et al., Regularisation of Neural Networks by Enforcing Lipschitz Continuity, Machine Learning 2021.

    Example:
        >>> batchnorm_gain(nn.BatchNorm2d(3)).round()  # fresh: gamma and running variance are 1
        tensor(1., grad_fn=<RoundBackward0>)
    """
    return gain(layer, cast("Tensor | None", layer.weight))


def gain(layer: Any, gamma: Tensor | None) -> Tensor:
    """The gain that a BatchNorm would have with a given gamma (channels,), None = 1 for each; see `batchnorm_gain`.

    Raises:
        ValueError: the layer keeps no running variance.

    Example:
        >>> gain(nn.BatchNorm2d(2), torch.tensor([1.0, -3.0])).round()
        tensor(3.)
    """
    if layer.running_var is None:
        raise ValueError(f"{layer} keeps no running variance, so its gain follows the batch and has no bound")
    inverse = (layer.running_var + layer.eps).rsqrt()
    return torch.linalg.vector_norm(inverse if gamma is None else gamma * inverse, torch.inf)


def _warn_of_unknown(network: nn.Module) -> None:
    """Say which modules with numbers of their own a report leaves out."""
    known = (*KINDS, Normalize)
    others = {n: m for n, m in network.named_modules() if not isinstance(m, known) and "parametrizations" not in n}
    own = {n: [*m.parameters(recurse=False), *m.buffers(recurse=False)] for n, m in others.items()}
    if left := [f"{n} ({type(others[n]).__name__})" for n in own if own[n]]:
        warn(
            f"the report knows Conv2d, Linear and BatchNorm, and leaves out {', '.join(left)}: multiply by their "
            "Lipschitz constants, or the product bounds only the rest"
        )


@torch.no_grad()
def lipschitz_report(network: nn.Module, images: Tensor, tolerance: float = 1e-6) -> "pd.DataFrame":
    """Layer by layer, in the order they run: how much each stretches at most, and the BatchNorm that follows it.

    Args:
        network: convolutions with zero padding, linear layers, BatchNorms; looked at in eval mode.
        images: (N, channels, H, W), a few, to see the sizes that the layers work on.
        tolerance: of `exact_norm`, relative; with 1e-3 large layers and images take a fraction of the time.

    Returns:
        One row per convolution or linear layer: layer (its name), reshaped (`reshaped_norm`), exact (`exact_norm`),
        gain (`batchnorm_gain` of a BatchNorm that reads its output directly, else 1) and product (exact x gain).  A
        BatchNorm that reads something else has a row of its own, with norm 1.  The product over a chain of layers
        bounds its Lipschitz constant; branches add.  Distances are those of standardised images: `Normalize` has no
        row.  Other modules with parameters or buffers have none either, and a warning names them.

    Raises:
        ValueError: a layer that `exact_norm` does not know, or a BatchNorm without a running variance.

    Example:
        >>> layer = nn.Conv2d(3, 4, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> lipschitz_report(nn.Sequential(layer), torch.rand(1, 3, 8, 8)).round(2)
          layer  reshaped  exact  gain  product
        0     0      3.46   3.46   1.0     3.46
    """
    import pandas as pd

    check_floats("(N, channels, H, W)", images=images)
    pick_device()  # refuses the meta device
    rows: list[dict[str, Any]] = []
    made: dict[int, tuple[Tensor, dict[str, Any]]] = {}  # the output is held, so that its id stays its own

    def add(name: str, reshaped: float, exact: float) -> dict[str, Any]:
        rows.append({"layer": name, "reshaped": reshaped, "exact": exact, "gain": 1.0})
        return rows[-1]

    def look(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(layer, BATCHNORMS):
            row = made[id(inputs[0])][1] if id(inputs[0]) in made else add(name, 1.0, 1.0)
            row["gain"] = batchnorm_gain(layer).item()
            return
        sigma = reshaped_norm(cast(Tensor, layer.weight)).item()
        exact = exact_norm(layer, inputs[0].shape[1:], tolerance)
        made[id(output)] = output, add(name, sigma, exact)

    _warn_of_unknown(network)
    seen = {name: m for name, m in network.named_modules() if isinstance(m, KINDS)}
    handles = [m.register_forward_hook(partial(look, name)) for name, m in seen.items()]
    try:
        with in_eval(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    table = pd.DataFrame(rows, columns=["layer", "reshaped", "exact", "gain"])
    return table.assign(product=table["exact"] * table["gain"])

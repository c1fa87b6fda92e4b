r"""Denoising score matching: a score network learns to undo Gaussian noise, and that is to learn the score.

By Tweedie's formula :math:`\sigma^2 \nabla \log q_\sigma(\tilde x) = E[x \mid \tilde x] - \tilde x`, so the best
network says how to get from a noised image to the mean of the clean ones that may be behind it.  With the weight
:math:`\sigma^2` every noise scale has a loss between 0 and D/2, where D is the number of pixels and channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

from ood_lib.checks import check
from ood_lib.data.fingerprint import collate_items
from ood_lib.data.length import length
from ood_lib.networks.layout import memory_format
from ood_lib.networks.network import check_eval, pick_device
from ood_lib.networks.precision import autocast_dtype
from ood_lib.networks.score_network import checked_images, checked_scales
from ood_lib.tensors import check_floats
from ood_lib.training.loop import Descent, History, split_batch

__all__ = ["denoising_error", "draw_scales", "dsm_loss", "train_score_network"]

Score = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> score in the shape of x


def dsm_loss(network: Score, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    r"""Denoising score matching at each row's noise scale, weighted by sigma squared.

    .. math:: \tfrac12 \lVert \sigma\, s_\theta(x + \sigma \varepsilon, \sigma) + \varepsilon \rVert^2

    Args:
        network: score network.
        x: clean images or points, (N, ...).
        sigma: (N,), or (1,) for all rows.
        noise: epsilon, standard normal, in the shape of x.

    Returns:
        (N,), at the optimum between 0 and D/2.

    Raises:
        ValueError: shapes that do not belong together.

    References:
        Vincent, A Connection Between Score Matching and Denoising Autoencoders, Neural Computation 2011; the weight is
        that of Song & Ermon, NeurIPS 2019.

    Example:
        >>> x, noise = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])  # all data at 0: the score is -x / sigma^2
        >>> dsm_loss(lambda x, sigma: -x / sigma**2, x, torch.tensor([0.1]), noise).abs() < 1e-9
        tensor([True])
    """
    check_floats("(N, D, ...)", x=x, noise=noise)
    if noise.shape != x.shape or sigma.numel() not in (1, len(x)):
        raise ValueError(
            f"x {tuple(x.shape)}, sigma {tuple(sigma.shape)} and noise {tuple(noise.shape)} were given; expected noise "
            "in the shape of x, and one sigma, or one for each row"
        )
    scale = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (scale * network(x + scale * noise, sigma) + noise).flatten(1).square().sum(1) / 2


@torch.no_grad()
def denoising_error(
    network: Score, x: Tensor, sigmas: Tensor | Sequence[float], *, seed: int = 0, batch_size: int = 1024
) -> Tensor:
    r"""Share of the noise that stays unexplained at each scale, the mean of 2/D times `dsm_loss`; 1 = nothing learned.

    The network's guess of the noise is :math:`-\sigma s_\theta`.  Measured on held-out images this is the number to
    watch: where it is lower on the training images, the network remembers them.

    Args:
        network: score network, in eval mode, on the device of x.
        x: (N, ...).
        sigmas: (L,), decreasing.
        seed: of the noise.
        batch_size: rows in flight; the result, (L,) in float64, does not depend on it.

    Raises:
        ValueError: a network in training mode; scales that are not positive and decreasing.
    """
    check("integer [1, inf)", batch_size=batch_size)
    check_eval(network)
    check_floats("(N, D, ...)", x=x)
    if not x.numel():
        raise ValueError(f"x of shape {tuple(x.shape)} was given; expected one image, or point, at least")
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=draw, dtype=torch.float32, device="cpu").to(x)  # the same in any precision
    chunks = [*zip(x.split(batch_size), noise.split(batch_size))]

    def error(sigma: Tensor) -> float:
        return sum(dsm_loss(network, a, sigma, b).cpu().double().sum().item() for a, b in chunks) * 2 / x.numel()

    found = [error(sigma) for sigma in checked_scales(sigmas).to(x)[:, None]]
    if not all(map(math.isfinite, found)):
        raise ValueError(
            f"the errors {found} are no finite numbers: the network or {x.dtype} overflowed on these images"
        )
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def draw_scales(network: Any, n: int, generator: torch.Generator) -> Tensor:
    """Noise scales (n,) for a batch: log-uniform over the network's range, or uniform over its levels.

    The batch shares the range out evenly (one draw in each n-th part), which is unbiased and less noisy.
    """
    own: Any = {"dtype": torch.float32, "device": "cpu"}  # not those that happen to be the default
    u = (torch.arange(n, **own) + torch.rand(n, generator=generator, **own)) / n
    if levels := getattr(network, "levels", None):
        return torch.tensor(levels, **own)[(u * len(levels)).long().clamp_max(len(levels) - 1)]  # u may round up to 1
    low, high = network.sigma_range
    return low * (high / low) ** u


@torch.inference_mode(False)
@torch.enable_grad()
def train_score_network(
    network: nn.Module,
    train: Dataset,
    *,
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    decay: float = 0.999,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    autocast: torch.dtype | Literal["auto"] | None = None,
    channels_last: bool = False,
    progress: bool = True,
) -> History:
    """Train a score network by denoising score matching: Adam, one learning-rate cycle, averaged weights.

    Args:
        network: a `ScoreNetwork`, or any module ``(x, sigma)`` with a ``sigma_range``; changed in place, left in eval
            mode with the average of its weights.
        train: items (image, label); labels are not used.
        steps, batch_size, learning_rate: the recipe; the rate peaks at ``learning_rate``.
        decay: of the average over the last weights, about 1 / (1 - decay) steps long; 0 = the last weights alone.
        augment: changes a batch of images, given a seeded generator.
        seed: of images, scales and noise, the same on every device.
        device: where to train.
        autocast: run the network in this precision where that is safe: bfloat16, whose range needs no scaling of the
            loss.  Several times faster on a GPU, and on a CPU with matrix units (AMX) for images of 28 pixels and more;
            slower on a CPU that emulates it.  ``"auto"`` takes it where the device is faster in it, see
            `half_precision`.  The loss itself and the weights keep theirs.
        channels_last: give images to the network with the channel as the last index in memory, where that is safe, see
            `memory_format`; it goes with autocast.
        progress: show a bar.

    Returns:
        The loss of each step, as a share of D/2 (see `denoising_error`), and its learning rate.

    Raises:
        ValueError: an argument out of its range; an empty data set, images outside [0, 1], or a loss that is no longer
            finite.
    """
    check("integer [1, inf)", batch_size=batch_size, steps=steps)
    check("(0, inf)", "the peak of the cycle", learning_rate=learning_rate)
    check("[0, 1)", "the decay of a moving average (0: none)", decay=decay)
    images_at_hand = range(length(train, "to train on"))
    where = pick_device(device)
    precision = autocast_dtype(autocast, where)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(images_at_hand, num_samples=steps * batch_size, generator=generator)
    form: Any = {"memory_format": memory_format(network, channels_last, where)}
    network.to(where, **form).train()
    optimizer = torch.optim.Adam(network.parameters(), learning_rate, fused=where.type in ("cpu", "cuda"))
    descent = Descent(network, optimizer, steps, decay)
    loader = DataLoader(train, batch_size, sampler=sampler, generator=generator, collate_fn=collate_items)
    weights = next(network.parameters()).dtype
    for batch in tqdm(loader, "training", leave=False, disable=not progress):
        images = split_batch(batch)[0].to(weights)
        images = images if augment is None else augment(images, generator)
        checked_images(images)
        sigma = draw_scales(network, len(images), generator).to(images)
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float32, device="cpu").to(weights)
        with torch.autocast(where.type, precision, enabled=precision is not None):
            loss = dsm_loss(network, images.to(where, **form), sigma.to(where), noise.to(where, **form)).mean()
        descent.step(loss, unit=images[0].numel() / 2)
    return descent.finish()

r"""Score networks: an image and a noise scale to the gradient of the log-density of the data, blurred at that scale.

A score network is any callable ``network(x, sigma)`` that returns a vector as large as x, an estimate of
:math:`\nabla_x \log q_\sigma(x)` with :math:`q_\sigma = p_{data} * N(0, \sigma^2 I)`; sigma is a number, or one per
image.  `ScoreNetwork` is one that is small enough to read: a U-Net that corrects the score of a Gaussian.  Any other
module may do the correction; `DiffusersBody` fits one of the package diffusers in.  `GaussianScore` needs no training:
it is what a covariance of the pixels already knows.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.networks.network import check_images
from ood_lib.tensors import check_floats

__all__ = [
    "DiffusersBody", "GaussianScore", "InstanceNormPlus", "Norm", "Residual", "ScoreNetwork", "UNet", "checked_images",
    "checked_scales", "noise_scales",
]  # fmt: skip

Norm = Literal["group", "instance++"]


def noise_scales(largest: float = 1.0, smallest: float = 0.01, count: int = 10) -> Tensor:
    r"""Geometric noise scales :math:`\sigma_1 > \dots > \sigma_L`, (L,) in float64; the defaults are the paper's.

    Raises:
        ValueError: not 0 < smallest <= largest, or a count below 1 (below 2 where they differ).

    Example:
        >>> noise_scales(count=3)
        tensor([1.0000, 0.1000, 0.0100], dtype=torch.float64)
    """
    if not 0 < smallest <= largest or count < 1 + (smallest < largest):
        raise ValueError(
            f"largest={largest}, smallest={smallest}, count={count} were given; expected 0 < smallest <= largest and "
            "at least 2 scales, or one scale twice"
        )
    return torch.logspace(math.log10(largest), math.log10(smallest), count, dtype=torch.float64, device="cpu")


def checked_scales(sigmas: Tensor | Sequence[float]) -> Tensor:
    """Noise scales (L,) in float64.

    Raises:
        ValueError: they are not finite, positive and strictly decreasing.
    """
    scales = torch.as_tensor(sigmas, dtype=torch.float64, device=None if isinstance(sigmas, Tensor) else "cpu")
    ordered = scales.ndim == 1 and len(scales) > 0 and bool((scales.diff() < 0).all())
    if not ordered or not 0 < scales[-1] <= scales[0] < math.inf:
        raise ValueError(
            f"sigmas={scales.tolist()} were given; expected positive noise scales from the largest to the smallest, "
            "such as noise_scales(1.0, 0.01, 10)"
        )
    return scales


def _scales(sigma: Tensor | float, images: Tensor) -> Tensor:
    """One noise scale, or one for each image, as numbers like those of the images, (1,) or (N,)."""
    return torch.as_tensor(sigma, device=sigma.device if isinstance(sigma, Tensor) else "cpu").to(images).reshape(-1)


def checked_images(images: Tensor) -> Tensor:
    """The images (N, C, H, W), as they are.

    Raises:
        ValueError: a pixel lies outside [0, 1], or is NaN.
    """
    check_floats("(N, C, H, W)", images=images)
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.amin().item(), images.amax().item()
        raise ValueError(
            f"images reach from {low:.3g} to {high:.3g}; expected pixels in [0, 1], not standardised, because noise "
            "scales are counted in these units"
        )
    return images


class InstanceNormPlus(nn.Module):
    r"""InstanceNorm++: each map is standardised by itself, and what that forgets, the level of the map, is added again.

    .. math:: \gamma_c\,\frac{h_c - \mu_c}{\sqrt{v_c + \epsilon}} + \beta_c
        + \alpha_c\,\frac{\mu_c - m}{\sqrt{w + \epsilon}}

    Here mu and v are mean and variance of a map, m and w those of the mu over the maps of an image.  Only how the maps
    stand to each other comes back: the output is blind to the contrast and brightness of all of them together.

    References:
        Song & Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, NeurIPS 2019.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.alpha = (nn.Parameter(torch.ones(channels)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Maps (N, channels, H, W), in their shape."""
        means = h.mean((2, 3), dtype=torch.promote_types(h.dtype, torch.float32))  # (N, channels)
        variance, middle = torch.var_mean(means, 1, correction=0, keepdim=True)
        levels = self.alpha * (means - middle) / (variance + 1e-5).sqrt()
        return F.instance_norm(h, weight=self.weight, bias=self.bias) + levels[..., None, None].to(h)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(4, channels), channels) if kind == "group" else InstanceNormPlus(channels)


class Residual(nn.Module):
    """Two 3x3 convolutions added to a shortcut; the noise scale shifts and stretches the maps between them."""

    def __init__(self, inputs: int, outputs: int, embedded: int, norm: Norm = "group") -> None:
        super().__init__()
        self.norm1, self.norm2 = (_norm(norm, c) for c in (inputs, outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedded, 2 * outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) and embedded noise scale (N or 1, embedded) to (N, outputs, H, W)."""
        stretch, shift = self.film(e)[..., None, None].chunk(2, 1)  # FiLM (Perez et al., AAAI 2018)
        inner = self.norm2(self.conv1(F.silu(self.norm1(h)))) * (1 + stretch) + shift
        return self.shortcut(h) + self.conv2(F.silu(inner))


class UNet(nn.Module):
    """Image and log sigma to an image: the trainable part of a `ScoreNetwork`.

    Args:
        channels: image channels (1 grey, 3 colour).
        widths: feature maps per resolution; each after the first halves it.
        patch: side of the pixel blocks that become channels first; 2 quarters the work (for 28 pixels and more).
        levels: None embeds log sigma by sines and cosines; noise scales give each a vector of its own, as the paper
            does, and no scale between them has a meaning.
        norm: before each convolution but the first: "group" standardises groups of maps together, "instance++" (the
            paper's) each by itself, see `InstanceNormPlus`.  It decides which scales see a smooth image as long.

    Raises:
        ValueError: another norm; on call, other channels, or a side that the halvings do not divide.
    """

    log_levels: Tensor
    frequencies: Tensor

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (16, 32),
        patch: int = 1,
        levels: Sequence[float] | None = None,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        check(get_args(Norm), norm=norm)
        self.channels, self.patch, self.multiple = channels, patch, patch * 2 ** (len(widths) - 1)
        self.widths, self.kind = tuple(widths), norm
        embedded, inside = 4 * widths[0], channels * patch**2
        self.register_buffer("log_levels", torch.tensor(levels or [], dtype=torch.float64).log().float())
        self.register_buffer("frequencies", torch.logspace(-1, 1, widths[0] // 2))  # radians per unit of log sigma
        self.own = nn.Embedding(len(levels), widths[0]) if levels else None
        self.embed = nn.Sequential(nn.Linear(widths[0] // 2 * 2, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.stem = nn.Conv2d(inside, widths[0], 3, padding=1)
        ins = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(Residual(i, o, embedded, norm) for i, o in zip(ins, widths))
        self.middle = Residual(widths[-1], widths[-1], embedded, norm)
        self.up = nn.ModuleList(Residual(2 * o, i, embedded, norm) for i, o in reversed([*zip(ins, widths)]))
        self.norm = _norm(norm, ins[0])
        self.out = nn.Conv2d(ins[0], inside, 3, padding=1)
        for parameter in self.out.parameters():  # begin with no correction at all
            nn.init.zeros_(parameter)

    def embedding(self, log_sigma: Tensor) -> Tensor:
        """Noise scales (N,) or (1,) to (N or 1, embedded)."""
        if self.own is not None:
            return self.embed(self.own((log_sigma[:, None] - self.log_levels).abs().argmin(1)))
        angles = log_sigma[:, None] * self.frequencies
        return self.embed(torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """Images (N, channels, H, W), scales (N,) or (1,) to (N, channels, H, W)."""
        check_floats("(N, channels, H, W)", images=x)
        if x.ndim != 4 or x.shape[1] != self.channels or any(side % self.multiple for side in x.shape[2:]):
            raise ValueError(
                f"images of shape {tuple(x.shape)} were given; expected (N, {self.channels}, H, W) with sides that "
                f"{self.multiple} divides: pad them, or build it with other channels, widths or patch"
            )
        check_images(x, self.channels, self.stem.weight)
        e = self.embedding(log_sigma)
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = []
        for level, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if level else h, e)
            skips.append(h)
        h = self.middle(h, e)
        for level, block in enumerate(self.up):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0) if level else h, skips.pop()], 1), e)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch)


class DiffusersBody(nn.Module):
    """A UNet of the package diffusers in the place of `UNet`.

    Args:
        unet: ``UNet2DModel`` or what is called alike: ``unet(sample, timestep).sample``.  Its timestep becomes
            1000 + 200 log sigma, so that scales from 0.01 to 1 fill the range its embedding was made for.

    Example:
        >>> class Stand(nn.Module):  # the interface, without the package
        ...     def forward(self, sample, timestep):
        ...         return type("Output", (), {"sample": 0 * sample})
        >>> network = ScoreNetwork(3, body=DiffusersBody(Stand()))
        >>> network(torch.zeros(2, 3, 8, 8), 0.5).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """Images (N, channels, H, W), scales (N,) or (1,) to (N, channels, H, W)."""
        return self.unet(x, 1000 + 200 * log_sigma).sample


class ScoreNetwork(nn.Module):
    r"""Noise-conditional score of images in [0, 1]: that of a Gaussian around mid-grey, and a learned correction.

    .. math:: \sigma\, s_\theta(x, \sigma) = -\frac{\sigma\,(x - \frac12)}{\sigma^2 + \sigma_d^2}
        + \frac{\sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}\,
        F_\theta\Bigl(\frac{x - \frac12}{\sqrt{\sigma^2 + \sigma_d^2}}, \log\sigma\Bigr)

    An untrained network is that Gaussian exactly (F = 0), input and target of F have unit size at every scale, and
    :math:`x + \sigma^2 s` is the denoiser of the reference, there preconditioned in the same way.

    Args:
        channels, widths, patch, norm: of the `UNet` F.
        sigma_range: smallest and largest noise scale, those that it is trained for, in units of the pixels.
        sigma_data: sigma_d, standard deviation of a pixel around mid-grey, roughly.
        precondition: False gives sigma s = F(x - 1/2, log sigma), as in NCSNv2 (Song & Ermon, NeurIPS 2020).
        levels: decreasing noise scales, each with an embedding of its own (Mahmood et al., ICLR 2021); only these can
            be asked for, and ``sigma_range`` follows from them.
        body: any module F(x, log sigma) in the place of the U-Net, for instance a `DiffusersBody`.

    Raises:
        ValueError: scales that are not positive or not in order; on call, images that the U-Net does not take.

    References:
        Karras, Aittala, Aila & Laine, Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022.

    Example:
        >>> network = ScoreNetwork(channels=1)
        >>> network(torch.rand(5, 1, 8, 8), torch.tensor(0.1)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (16, 32),
        patch: int = 1,
        sigma_range: tuple[float, float] = (0.01, 1.0),
        sigma_data: float = 0.5,
        precondition: bool = True,
        levels: Sequence[float] | None = None,
        body: nn.Module | None = None,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        check("(0, inf]", "the spread of the pixels", sigma_data=sigma_data)
        self.levels = None if levels is None else tuple(checked_scales(levels).tolist())
        high, low = checked_scales(self.levels or sigma_range[::-1])[[0, -1]].tolist()
        self.sigma_range, self.sigma_data, self.precondition = (low, high), sigma_data, precondition
        self.body = body or UNet(channels, widths, patch, self.levels, norm)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Scores of images (N, channels, H, W) at one noise scale, or one each (N,), in the shape of the images."""
        check_floats("(N, channels, H, W)", images=x)
        sigma = _scales(sigma, x)
        log_sigma, sigma = sigma.log(), sigma[:, None, None, None]
        if not self.precondition:
            return self.body(x - 0.5, log_sigma) / sigma
        total = (sigma**2 + self.sigma_data**2).sqrt()
        x = (x - 0.5) / total
        return self.sigma_data / total / sigma * self.body(x, log_sigma) - x / total

    def arguments(self) -> dict[str, Any]:
        """What it was made with, by the names of the constructor."""
        own = {name: getattr(self, name) for name in ("sigma_range", "sigma_data", "precondition", "levels")}
        if type(self.body) is not UNet:
            return own | {"channels": 0, "body": self.body}
        body = self.body
        return own | {"channels": body.channels, "widths": body.widths, "patch": body.patch, "norm": body.kind}

    def extra_repr(self) -> str:
        """What the weights do not tell."""
        scales = f"sigma_range={self.sigma_range}" if self.levels is None else f"levels={self.levels}"
        return f"{scales}, sigma_data={self.sigma_data}, precondition={self.precondition}"


class GaussianScore(nn.Module):
    r"""Exact score of the Gaussian that has the mean and the covariance of some images: a control without a network.

    .. math:: s(x, \sigma) = -(S + \sigma^2 I)^{-1} (x - \mu)

    Its weighted norms :math:`\sigma^2 (x - \mu)^\top (S + \sigma^2 I)^{-2} (x - \mu)` are those of a ridge family: the
    smaller sigma, the more they speak of directions in which images hardly vary, as fine texture.

    Args:
        images: (N, ...), of which mean and covariance are taken, in double precision.

    Raises:
        ValueError: fewer than two images.

    Example:
        >>> score = GaussianScore(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # variance 1 along x, 0 along y
        >>> score(torch.tensor([[3.0, 4.0]]), 1.0)
        tensor([[-1.5000, -4.0000]])
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        check_floats("(N, D, ...)", images=images)
        check("integer [2, inf)", "how many images there are", images=len(images))
        if not images.isfinite().all():
            raise ValueError("the images hold NaN or infinity; expected finite numbers, of which there is a covariance")
        blocks = images.flatten(1).split(4096)
        mean = sum(block.double().sum(0) for block in blocks) / len(images)
        scatter = sum((y := block.double() - mean).T @ y for block in blocks)
        variances, axes = torch.linalg.eigh(scatter / len(images))
        for name, value in (("mean", mean), ("variances", variances.clamp_min(0)), ("axes", axes)):
            self.register_buffer(name, value.to(images))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Scores of images (N, ...) at one noise scale, or one each (N,), in the shape of the images."""
        check_floats("(N, D, ...)", images=x)
        sigma = _scales(sigma, x)[:, None]
        y = (x.flatten(1) - self.mean.to(x)) @ self.axes.to(x)
        if y.numel() and 100 * torch.finfo(y.dtype).eps * (far := y.abs().amax().item()) > sigma.min():
            raise ValueError(
                f"points up to {far:.3g} from the mean were given with sigma={sigma.min().item():.3g}, "
                f"which {y.dtype} rounds away: expected images in [0, 1], or larger noise scales"
            )
        return -((y / (self.variances.to(x) + sigma**2)) @ self.axes.to(x).T).reshape(x.shape)

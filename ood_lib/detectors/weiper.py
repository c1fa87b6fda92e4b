r"""WeiPer: look at the penultimate feature through many perturbed copies of the head.

Each class row of the head is disturbed by noise of relative length delta, r times over.  A feature then has r x C
logits instead of C; any logit score can be averaged over them, and their histogram can be compared with the one that
training features have.  Larger score = more OOD.

For r to infinity nothing random is left: each perturbed logit is the logit plus Gaussian noise of known width
(`logit_noise`), so histograms become differences of normal distribution functions (``repeats=None``).

References:
    Granz, Heurich & Landgraf, WeiPer: OOD Detection using Weight Perturbations of Class Projections, NeurIPS 2024.
    The limit of infinitely many repeats is ours; the chapter derives it.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.classical.msp import msp
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.head import FrozenHead
from ood_lib.detectors.shapes import check_pairs, check_width
from ood_lib.features.features import Features
from ood_lib.tensors import check_floats, lengths

__all__ = [
    "NODES", "WeiPer", "gaussian_histogram", "histogram", "logit_noise", "noise", "normal_nodes", "perturb", "smooth",
    "symmetric_kl", "weiper_kld",
]  # fmt: skip

COLUMNS = 1024  # perturbed logits per sample held at once; small blocks are as fast, and leave less memory behind
CELLS = 2**18  # classes x edges of some samples held at once by the histogram of the limit
NODES = 128  # quasi-random points that stand for the Gaussian in the limit of infinitely many repeats
REACH = 3.0  # standard deviations that the histogram's range keeps around the training logits in that limit


def noise(weight: Tensor, delta: float, repeats: int, generator: torch.Generator) -> Tensor:
    r"""Random directions as long as delta times the class rows: :math:`\delta\,\lVert w_j\rVert\, e_{ij}`, (r, C, K).

    :math:`e_{ij} = g_{ij} / \lVert g_{ij}\rVert` with :math:`g_{ij} \sim N(0, I_K)` is uniform on the unit sphere.

    Args:
        weight: W, (C, K).
        delta: length of the noise relative to the row it disturbs.
        repeats: r.
        generator: CPU generator; the same seed gives the same noise on every device.

    References:
        Granz et al. 2024, definition of the weight perturbation; released code, both switches on.
    """
    check("[0, inf)", "a relative length of the noise", delta=delta)
    check("integer [1, inf)", "a number of heads", repeats=repeats)
    # one draw per repeat: torch.randn of a whole block would depend on the size of the block; and named types, so that
    # neither torch.set_default_dtype nor torch.set_default_device changes the draw
    draw = partial(torch.randn, weight.shape, generator=generator, dtype=torch.float32, device="cpu")
    g = torch.stack([draw() for _ in range(repeats)]).to(weight)
    return F.normalize(g, dim=-1) * (delta * weight.norm(dim=1, keepdim=True))


def perturb(weight: Tensor, delta: float, repeats: int, generator: torch.Generator) -> Tensor:
    r"""Perturbed heads :math:`\tilde w_{ij} = w_j + \delta \lVert w_j \rVert e_{ij}`, (r, C, K); see `noise`.

    Example:
        >>> w = torch.tensor([[3.0, 4.0]])
        >>> (perturb(w, 2.0, 5, torch.Generator().manual_seed(0)) - w).norm(dim=-1).flatten()
        tensor([10.0000, 10.0000, 10.0000, 10.0000, 10.0000])
    """
    return weight + noise(weight, delta, repeats, generator)


def logit_noise(z: Tensor, weight: Tensor, delta: float) -> Tensor:
    r"""Standard deviation of a perturbed logit, :math:`\sigma_j(z) = \delta \lVert w_j\rVert \lVert z\rVert/\sqrt K`.

    Over the draw of the head, :math:`\langle e, z\rangle` has mean 0 and variance :math:`\lVert z\rVert^2 / K`, and is
    close to normal already for moderate K.  Features z (N, K) and a head's weight (C, K) give (N, C).
    """
    check("[0, inf)", "a relative length of the noise", delta=delta)
    check_width(z, weight.shape[1], "the head reads")
    return delta / math.sqrt(z.shape[1]) * lengths(z)[:, None] * weight.norm(dim=1)


def histogram(
    values: Tensor, low: float, high: float, bins: int, overflow: Literal["clamp", "drop"] = "clamp"
) -> Tensor:
    r"""Histogram of each row: share of its values per bin.

    Bins are half open, :math:`[t_b, t_{b+1})`, the last one closed.  The bin is computed, not searched: one
    subtraction, one product and one count per value, whatever the number of bins.

    Args:
        values: (N, M).
        low, high: range of the bins.
        bins: B.
        overflow: values outside the range count in the edge bins (``"clamp"``) or nowhere (``"drop"``, as released).

    Returns:
        (N, B); rows sum to 1, or to the share inside the range with ``"drop"``.

    Example:
        >>> histogram(torch.tensor([[0.0, 0.1, 0.9, 5.0]]), 0.0, 1.0, 2)
        tensor([[0.5000, 0.5000]])
    """
    _check_bins(low, high, bins, overflow)
    index = ((values - low) * (bins / (high - low))).floor_().clamp_(-1, bins)
    if overflow == "clamp":
        index.clamp_(0, bins - 1)
    else:  # high itself is inside, and so is what lies so close below it that its index was rounded up
        index.masked_fill_((index == bins) & (values <= high), bins - 1)
    rows = torch.arange(values.shape[0], device=values.device)[:, None] * (bins + 2)
    flat = index.long().add_(1).add_(rows).flatten()  # bins 0 and B+1 of each row collect what is dropped
    cells = values.shape[0] * (bins + 2)
    if is_exporting():  # which cannot know how long the result of `bincount` is
        counts = values.new_zeros(cells).index_add_(0, flat, torch.ones_like(flat, dtype=values.dtype))
    else:
        counts = torch.bincount(flat, minlength=cells)
    counts = counts.view(values.shape[0], bins + 2)
    return counts[:, 1:-1].to(values.dtype) / values.shape[1]


def _check_bins(low: float, high: float, bins: int, overflow: str) -> None:
    check("integer [1, inf)", bins=bins)
    check("(-inf, inf)", "an end of the range of the bins", low=low, high=high)
    check(("clamp", "drop"), overflow=overflow)
    if not low < high or not math.isfinite(bins / (high - low)):
        raise ValueError(
            f"low={low}, high={high} were given; expected a range for the bins, low < high, not of denormal width"
        )


def gaussian_histogram(
    mean: Tensor, std: Tensor, low: float, high: float, bins: int, overflow: Literal["clamp", "drop"] = "clamp"
) -> Tensor:
    r"""Histogram of infinitely many draws from each row's equal-weight Gaussian mixture, (N, B).

    .. math:: h_b = \tfrac1C \sum_j \Phi\!\Big(\frac{t_{b+1}-\mu_j}{\sigma_j}\Big)
        - \Phi\!\Big(\frac{t_b-\mu_j}{\sigma_j}\Big)

    Args:
        mean, std: (N, C).
        low, high, bins, overflow: as in `histogram`.
    """
    _check_bins(low, high, bins, overflow)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64).to(mean)
    std = std.clamp_min(torch.finfo(std.dtype).tiny)[..., None]
    # filled in place: small results between large ones fragment the heap
    below = mean.new_empty(mean.shape[0], bins + 1)
    block = max(1, CELLS // (mean.shape[1] * len(edges)))
    for rows, m, s in zip(below.split(block), mean[..., None].split(block), std.split(block)):
        torch.mean(torch.special.ndtr((edges - m).div_(s)), 1, out=rows)
    if overflow == "clamp":
        below[:, 0], below[:, -1] = 0, 1
    return below.diff(dim=1)


def smooth(density: Tensor, width: int) -> Tensor:
    """Moving average over ``width`` bins of (N, B), edges repeated; an even width reaches one bin further right."""
    check("integer [1, inf)", "a number of bins", width=width)
    padded = F.pad(density[:, None], ((width - 1) // 2, width // 2), mode="replicate")
    return F.avg_pool1d(padded, width, 1)[:, 0]


def symmetric_kl(p: Tensor, q: Tensor, eps: float) -> Tensor:
    r"""Sum of both Kullback-Leibler divergences after lifting each bin by eps and normalising.

    .. math:: D = \sum_b (p'_b - q'_b)(\ln p'_b - \ln q'_b),
        \qquad p'_b = (p_b + \varepsilon) / \sum_a (p_a + \varepsilon)

    Args:
        p, q: (..., B), broadcast against each other.
        eps: floor; with B bins the total mass added is B eps.

    Returns:
        (...,), >= 0, and 0 only where p' = q'.

    Example:
        >>> symmetric_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), eps=1.0)
        tensor(0.4621)
    """
    check("(0, inf]", "a floor", eps=eps)
    p, q = ((d + eps) / (d + eps).sum(-1, keepdim=True) for d in (p, q))
    return ((p - q) * (p.log() - q.log())).sum(-1)


def weiper_kld(
    density: Tensor,
    density_weiper: Tensor,
    confidence: Tensor,
    reference: Tensor,
    reference_weiper: Tensor,
    *,
    lambda1: float = 2.5,
    lambda2: float = 0.1,
    smooth_penultimate: int = 4,
    smooth_weiper: int = 15,
    eps_penultimate: float = 0.01,
    eps_weiper: float = 0.025,
    smooth_reference: bool = False,
) -> Tensor:
    r"""WeiPer+KLD, :math:`D(\bar p, q) + \lambda_1 D(\bar p^W, q^W) - \lambda_2\,\mathrm{MSP}_W`; larger = more OOD.

    One score for each image, (N,).  q and q^W are the sample's histograms, smoothed here; the training means stay
    unsmoothed, as in the paper's Fig. 2.  Where most values fall into one bin, the moving average alone then makes a
    distance that every image has, ID or not; ``smooth_reference`` takes it away again.

    Args:
        density: (N, B), histogram of the K activations of each sample.
        density_weiper: (N, B), histogram of its perturbed logits.
        confidence: (N,), MSP_W, the mean maximum softmax probability over the perturbed heads.
        reference, reference_weiper: (B,), means of these histograms over the training set.
        lambda1: weight of the divergence in WeiPer space.
        lambda2: weight of MSP_W.
        smooth_penultimate, smooth_weiper: widths of the moving averages, in bins.
        eps_penultimate, eps_weiper: floors in `symmetric_kl` (constants of the released code).
        smooth_reference: smooth the training means as well (not in the released code).

    References:
        Granz et al. 2024, section on the KL divergence score; released code ``weiper_kldiv``.
    """
    check("(-inf, inf)", "a finite weight", lambda1=lambda1, lambda2=lambda2)
    check_floats("(N, B)", density=density, density_weiper=density_weiper)
    check_floats("(N,)", confidence=confidence)
    check("integer [1, inf)", "bins", reference=reference.shape[-1], reference_weiper=reference_weiper.shape[-1])
    check_pairs(density=density, density_weiper=density_weiper, confidence=confidence)
    check_width(density, reference.shape[-1], "the reference is", "histograms")
    check_width(density_weiper, reference_weiper.shape[-1], "the reference is", "histograms")
    if smooth_reference:
        reference = smooth(reference[None], smooth_penultimate)[0]
        reference_weiper = smooth(reference_weiper[None], smooth_weiper)[0]
    d1 = symmetric_kl(reference, smooth(density, smooth_penultimate), eps_penultimate)
    d2 = symmetric_kl(reference_weiper, smooth(density_weiper, smooth_weiper), eps_weiper)
    return d1 + lambda1 * d2 - lambda2 * confidence


@cache
@torch.inference_mode(False)
def normal_nodes(dimensions: int, count: int) -> Tensor:
    """Points (count, dimensions) that fill the standard normal distribution evenly, the same ones each time."""
    with torch.device("cpu"):
        sobol = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0)
        return torch.special.ndtri(sobol.draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))


class WeiPer(Detector):
    """WeiPer space with one of its scores: the mean of a logit score over perturbed heads, or the KL divergence.

    One head is drawn from ``seed`` and used for fitting and for every sample.  It is drawn again block by block
    whenever it is needed, so neither it nor the N x r x C perturbed logits are ever held as a whole.

    Args:
        head: the network's last linear layer, with or without bias.
        score: ``"kld"`` (see `weiper_kld`), ``"msp"``, ``"react"`` (energy of clipped features), or any function of
            logits (..., C) -> (...,) with larger = more OOD.
        repeats: r, number of perturbed heads; None = the limit of infinitely many, deterministic.  Each call draws
            r x C x K numbers, which one image pays for as a thousand do: score many at once, or take None.
        delta: length of the noise relative to each class row.
        bins: B, bins of both histograms.
        lambda1, lambda2, smooth_penultimate, smooth_weiper, eps_penultimate, eps_weiper, smooth_reference: see
            `weiper_kld`.
        overflow: where values outside the training range count, see `histogram`.
        react_percentile: share of training activations below the clip of ``"react"``.
        random_projections: the paper's ablation "RP": keep the noise, drop the class rows and the bias.
        seed: of the perturbed head.

    Raises:
        ValueError: an argument out of its range; more classes than the limit of infinitely many repeats has points for;
            features of another width than the head; constant features.

    Example:
        >>> head, train = nn.Linear(8, 3), Features(penultimate=torch.rand(50, 8))
        >>> WeiPer(head, repeats=None).fit(train).score(train).shape
        torch.Size([50])
    """

    range_penultimate: Tensor
    range_weiper: Tensor
    reference: Tensor
    reference_weiper: Tensor
    clip: Tensor

    def __init__(
        self,
        head: nn.Linear,
        score: Literal["kld", "msp", "react"] | Callable[[Tensor], Tensor] = "kld",
        repeats: int | None = 100,
        delta: float = 1.8,
        bins: int = 100,
        lambda1: float = 2.5,
        lambda2: float = 0.1,
        smooth_penultimate: int = 4,
        smooth_weiper: int = 15,
        eps_penultimate: float = 0.01,
        eps_weiper: float = 0.025,
        smooth_reference: bool = False,
        overflow: Literal["clamp", "drop"] = "clamp",
        react_percentile: float = 0.9,
        random_projections: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check(lambda s: callable(s) or s in ("kld", "msp", "react"), "kld, msp, react or a function", score=score)
        check("integer [1, inf) or None", "a number of heads (None: the limit)", repeats=repeats)
        check("integer [1, inf)", bins=bins, smooth_penultimate=smooth_penultimate, smooth_weiper=smooth_weiper)
        check("integer (-inf, inf)", seed=seed)
        check("[0, inf)", "a relative length of the noise", delta=delta)
        check("(0, inf]", "a floor", eps_penultimate=eps_penultimate, eps_weiper=eps_weiper)
        check("(-inf, inf)", "a finite weight", lambda1=lambda1, lambda2=lambda2)
        check(("clamp", "drop"), overflow=overflow)
        check("(0, 1]", "a share", react_percentile=react_percentile)
        self.kind, self.repeats, self.delta = score, None if repeats is None else int(repeats), delta
        self.bins, self.seed = int(bins), int(seed)
        self.kld_options: dict[str, Any] = {
            "lambda1": lambda1, "lambda2": lambda2, "smooth_penultimate": int(smooth_penultimate),
            "smooth_weiper": int(smooth_weiper), "eps_penultimate": eps_penultimate, "eps_weiper": eps_weiper,
            "smooth_reference": smooth_reference,
        }  # fmt: skip
        self.overflow, self.react_percentile = overflow, react_percentile
        self.random_projections = random_projections
        self.head = FrozenHead(head)
        if repeats is None and len(head.weight) > torch.quasirandom.SobolEngine.MAXDIM:
            raise ValueError(
                f"WeiPer was given repeats=None and a head of {len(head.weight)} classes; expected at most "
                f"{torch.quasirandom.SobolEngine.MAXDIM} for the limit: give a number of repeats"
            )
        for name in ("range_penultimate", "range_weiper"):
            self.register_buffer(name, torch.zeros(2, dtype=torch.float64))
        for name in ("reference", "reference_weiper"):
            self.register_buffer(name, torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("clip", torch.tensor(math.inf, dtype=torch.float64))
        self.fitted.fill_(score not in ("kld", "react"))  # the other scores have nothing to learn

    # -- the perturbed logits, block by block -----------------------------------------------------------------

    def views(self, z: Tensor) -> Iterator[Tensor]:
        """Perturbed logits of features (N, K) in blocks (N, b, C); the blocks add up to all r heads."""
        self.head.check_width(z)
        return self._limit(z) if self.repeats is None else self._drawn(z, self.repeats)

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, both (N, C), of the perturbed logits of features (N, K)."""
        mean = self.head(z)
        std = logit_noise(z, self.head.weight.to(z.dtype), self.delta)
        return mean.zero_() if self.random_projections else mean, std

    def _drawn(self, z: Tensor, repeats: int) -> Iterator[Tensor]:
        weight, bias = self.head.weight.to(z.dtype), self.head.bias.to(z.dtype)
        generator = torch.Generator().manual_seed(self.seed)
        block = max(1, COLUMNS // len(weight))
        for start in range(0, repeats, block):
            heads = noise(weight, self.delta, min(block, repeats - start), generator)  # (b, C, K)
            if not self.random_projections:
                heads += weight
            logits = (z @ heads.flatten(0, 1).T).unflatten(1, heads.shape[:2])
            yield logits if self.random_projections else logits.add_(bias)

    def _limit(self, z: Tensor) -> Iterator[Tensor]:
        mean, std = self.moments(z)
        nodes = normal_nodes(mean.shape[1], NODES).to(z)
        for block in nodes.split(max(1, COLUMNS // mean.shape[1])):
            yield torch.addcmul(mean[:, None], std[:, None], block)

    # -- fitting: ranges first, then mean histograms -------------------------------------------------------------

    def _fit(self, features: Features) -> None:
        # what can fail comes first: a failed fit changes nothing
        self.head.check_width(features.penultimate)
        if self.kind not in ("kld", "react"):
            return
        own = self._range(self._chunks(features))
        if self.kind == "react":
            self.range_penultimate.copy_(own)
            self.clip.fill_(self._percentile(features))
        else:
            shared = self._range(s for z in self._chunks(features) for s in self._spread(z))
            self.range_penultimate.copy_(own)
            self.range_weiper.copy_(shared)
            self.reference, self.reference_weiper = (mean.clone() for mean in self._mean_densities(features))

    @staticmethod
    def _range(chunks: Iterator[Tensor]) -> Tensor:
        low, high = math.inf, -math.inf
        for chunk in chunks:
            smallest, largest = torch.stack(torch.aminmax(chunk)).tolist()
            low, high = min(low, smallest), max(high, largest)
        if low == high:
            raise ValueError(f"every value is {low:g}: constant features have no histogram; look at the network")
        return torch.tensor([low, high], dtype=torch.float64)

    def _spread(self, z: Tensor) -> Iterator[Tensor]:
        """Tensors whose extremes bound the histogram of the perturbed logits."""
        if self.repeats is not None:
            return self.views(z)
        mean, std = self.moments(z)
        return iter((mean - REACH * std, mean + REACH * std))

    def _mean_densities(self, features: Features) -> Tensor:
        """Sample-weighted means (2, B) of both histograms, summed in float64."""
        total = torch.zeros(2, self.bins, dtype=torch.float64, device=self.clip.device)
        for z in self._chunks(features):
            for row, density in zip(total, self.densities(z, confidence=False)):
                row += density.double().sum(0)
        return total / len(features)

    def _percentile(self, features: Features, bins: int = 2**16) -> float:
        """Percentile of all activations to 1/65536 of their range, without sorting them in one piece."""
        low, high = self.range_penultimate.tolist()
        counts = torch.zeros(bins, dtype=torch.float64, device=self.clip.device)
        for z in self._chunks(features):
            counts += (histogram(z.reshape(1, -1), low, high, bins)[0].double() * z.numel()).round()
        rank = math.ceil(round(self.react_percentile * counts.sum().item(), 6))
        reached = (counts.cumsum(0) >= rank).nonzero()[0]
        return low + (reached.item() + 1) * (high - low) / bins

    # -- scoring -----------------------------------------------------------------------------------------------

    def ends(self) -> tuple[float, float, float, float]:
        """Of both histograms: the smallest and largest activation, then perturbed logit, of the training set."""
        return *self.range_penultimate.tolist(), *self.range_weiper.tolist()

    def densities(self, z: Tensor, confidence: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Histograms of the activations and of the perturbed logits, both (N, B), and MSP_W (N,), of a fitted detector.

        Without ``confidence`` MSP_W stays zero, which spares the closed form its only numerical average.
        """
        lowest, highest, low, high = self.ends()
        own = histogram(z, lowest, highest, self.bins, self.overflow)
        if self.repeats is None:
            shared = gaussian_histogram(*self.moments(z), low, high, self.bins, self.overflow)
            return own, shared, -self._mean(msp, z) if confidence else z.new_zeros(z.shape[0])
        shared, msp_w = torch.zeros_like(own), z.new_zeros(z.shape[0])
        for view in self.views(z):  # one pass serves both
            shared += histogram(view.flatten(1), low, high, self.bins, self.overflow) * view.shape[1]
            if confidence:
                msp_w -= msp(view).sum(1)
        return own, shared / self.repeats, msp_w / self.repeats

    def _mean(self, score: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """S_W, the mean of a logit score over the perturbed heads, (n,)."""
        total = sum((score(view).sum(1) for view in self.views(z)), z.new_zeros(z.shape[0]))
        return total / (self.repeats or NODES)

    def arguments(self) -> dict[str, Any]:
        """As of every detector; the score and the options of the divergence are kept under other names."""
        return super().arguments() | {"score": self.kind} | self.kld_options

    def extra_repr(self) -> str:
        """The hyperparameters, as they were given."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.kld_options.items())
        return f"score={getattr(self.kind, '__name__', repr(self.kind))}, {super().extra_repr()}, {options}"

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        if self.kind == "react":
            return self._mean(energy, z.clamp(max=self.clip.item()))
        if self.kind != "kld":
            return self._mean(msp if self.kind == "msp" else self.kind, z)
        self.head.check_width(z)
        references = (r.to(z.dtype) for r in (self.reference, self.reference_weiper))
        return weiper_kld(*self.densities(z), *references, **self.kld_options)

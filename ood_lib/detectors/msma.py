r"""MSMA: how long are the scores of an image, scale by scale, and how usual is that?  Larger = more OOD.

At each noise scale the length of the score, :math:`\eta_l(x) = \sigma_l \lVert s_\theta(x, \sigma_l) \rVert`, counts
how many noise deviations lie between an image and its denoised version.  No scale and no threshold tells all outliers:
some have shorter scores than the data.  So the vector over L scales is a representation like any other, and a density
of it is the energy.  `ScoreNorms` takes the place of the network in `extract`; `MSMA` scores what comes out.

Mahmood, Oliva & Styner, Multiscale Score Matching for Out-of-Distribution Detection, ICLR 2021.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.detectors.classical.gmm import GMM
from ood_lib.detectors.description import from_bytes, rebuild
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.moments import check_size
from ood_lib.detectors.shapes import check_width
from ood_lib.features.features import Features
from ood_lib.networks.network import Representation, check_eval
from ood_lib.networks.score_network import checked_images, checked_scales, noise_scales
from ood_lib.tensors import check_floats, lengths
from ood_lib.warn import warn

__all__ = ["MSMA", "ScoreNorms", "score_norms", "select_gmm"]


@torch.no_grad()
def score_norms(
    network: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    batch_size: int = 1024,
    extrapolate: bool = False,
) -> Tensor:
    r"""Lengths of the scores of clean images, in units of the noise: one column per scale, the largest scale first.

    .. math:: \eta_l(x) = \sigma_l \lVert s_\theta(x, \sigma_l) \rVert_2

    The norm runs over all channels and pixels, and no noise is added.  L passes through the network, nothing else.

    Args:
        network: score network, in eval mode and on the device of the images: any callable ``(x, sigma)``; it is given
            sigma as a tensor (1,), which broadcasts as one scale per row would.
        images: (N, C, H, W) in [0, 1]; or points of any other shape (N, ...), with values as they are.
        sigmas: (L,), from the largest to the smallest.
        batch_size: rows in flight; the result does not depend on it.
        extrapolate: also ask a network for scales outside its ``sigma_range`` (or between its ``levels``).

    Returns:
        (N, L), in single precision at least.

    Raises:
        ValueError: scales that are not positive and decreasing, or that the network was not trained for; a network in
            training mode; images outside [0, 1].

    Example:
        >>> score_norms(lambda x, sigma: -x / (1 + sigma**2), torch.tensor([[3.0, 4.0]]), [2.0, 1.0])
        tensor([[2.0000, 2.5000]])
    """
    scales = checked_scales(sigmas)
    check("integer [1, inf)", batch_size=batch_size)
    check_eval(network)
    check_floats("(N, D, ...)", images=images)
    if not extrapolate:
        _check_trained(network, scales)
    if images.ndim == 4:
        checked_images(images)

    given = [*zip(scales.tolist(), scales.to(images)[:, None])]  # as a number, and as the network takes it

    def norms(x: Tensor) -> Tensor:
        return torch.stack([scale * lengths(network(x, sigma).flatten(1)) for scale, sigma in given], 1)

    return torch.cat([norms(x) for x in images.split(batch_size)])


def _check_trained(network: Any, scales: Tensor) -> None:
    """Refuse scales about which the network says that it does not know them."""
    if levels := getattr(network, "levels", None):
        known = scales.new_tensor(levels)
        strange = scales[(scales[:, None] / known - 1).abs().amin(1) > 1e-5].tolist()
    else:
        low, high = getattr(network, "sigma_range", (0, torch.inf))
        levels, strange = (low, high), scales[(scales < low * (1 - 1e-5)) | (scales > high * (1 + 1e-5))].tolist()
    if strange:
        raise ValueError(
            f"the noise scales {strange} are none that the network was trained for, {levels}: take those, or say "
            "extrapolate=True"
        )


class ScoreNorms(nn.Module):
    """A network whose penultimate feature is `score_norms`: what `MSMA` is extracted with.

    Args:
        network: score network; a module becomes part of this one.
        sigmas: noise scales, decreasing; None = the network's ``levels``, or ten from end to end of its
            ``sigma_range`` (1 to 0.01 where it has none).
        extrapolate: see `score_norms`.

    Raises:
        ValueError: as `score_norms`.

    Example:
        >>> images = torch.rand(5, 1, 8, 8)
        >>> norms = ScoreNorms(lambda x, sigma: (0.5 - x) / (0.1 + sigma**2))
        >>> norms.represent(images).penultimate.shape  # extract(norms, dataset) does this in batches
        torch.Size([5, 10])
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        sigmas: Tensor | Sequence[float] | None = None,
        extrapolate: bool = False,
    ) -> None:
        super().__init__()
        if sigmas is None:
            low, high = getattr(network, "sigma_range", (0.01, 1.0))
            sigmas = getattr(network, "levels", None) or noise_scales(high, low)
        self.network, self.extrapolate = network, extrapolate
        self.sigmas: list[float] = checked_scales(sigmas).tolist()
        if not extrapolate:
            _check_trained(network, checked_scales(sigmas))

    def represent(self, images: Tensor) -> Representation:
        """Images (N, C, H, W) in [0, 1] to their score norms (N, L), as penultimate feature."""
        norms = score_norms(self.network, images, self.sigmas, extrapolate=self.extrapolate)
        return Representation(norms, None, None)

    def forward(self, images: Tensor) -> Tensor:
        """Score norms (N, L)."""
        return self.represent(images).penultimate

    def extra_repr(self) -> str:
        """The scales, which `extract` also reads to tell caches apart."""
        network = "" if isinstance(self.network, nn.Module) else f"network={self.network!r}, "
        return f"{network}sigmas={[float(f'{s:.4g}') for s in self.sigmas]}"


def select_gmm(
    features: Features, components: Sequence[int] = (1, 2, 4), folds: int = 3, quantile: float | None = None
) -> GMM:
    """The Gaussian mixture, not yet fitted, that gives held-out rows the largest log-density; full covariances.

    Args:
        features: ID rows, penultimate (N, K).
        components: numbers to try; those that a fold has no 10 rows each for are left out.
        folds: every fold is held out once.
        quantile: None judges by the mean over held-out rows (the paper); 0.1 by their 10 % quantile, which asks for
            fairness to unusual ID rows (the author's later rule).

    Raises:
        ValueError: fewer than 20 rows, or no number of components.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(200, 2, generator=g) + 9 * torch.randint(2, (200, 1), generator=g)
        >>> select_gmm(Features(penultimate=z), [1, 2]).components
        2
    """
    check("integer [2, inf)", "a number of parts", folds=folds)
    check("[0, 1] or None", "a share of the held-out rows", quantile=quantile)
    rows = len(features)
    possible = [k for k in components if 10 * k <= rows - rows // folds]
    if rows < 20 or not possible:
        raise ValueError(f"{rows} rows, components={tuple(components)} were given; expected 20 rows, 10 per component")
    part = torch.randperm(rows, generator=torch.Generator().manual_seed(0), device="cpu") % folds

    def judge(k: int) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mixture that does not settle is only one to compare with
            gmms = [GMM(k, "full").fit(features[part != fold]) for fold in range(folds)]
        found = torch.cat([-gmm.score(features[part == fold]) for fold, gmm in enumerate(gmms)])
        return (found.mean() if quantile is None else found.quantile(quantile)).item()

    return GMM(max(possible, key=judge), "full")


def _no_network(x: Tensor, sigma: Tensor) -> Tensor:
    raise ValueError("MSMA(None, ...) has no score network, and judges norms that are at hand; give it a network")


class MSMA(Detector):
    """Energy of the score norms under a density that is fitted to those of ID images; larger = more OOD.

    Extract with ``extract(detector.norms, dataset)``.  Where there are enough, fit on ID images that the score network
    has *not* been trained on: on its own training images scores may be shorter than they will ever be again.  Each
    column is standardised first.  What follows may be any detector of the library that reads penultimate features.

    Args:
        network: score network, see `score_norms`; None where the norms are at hand, as those of `load_score_norms`.
        density: energy of the standardised norms; None = a Gaussian mixture with as many components as `select_gmm`
            finds.  With few rows take ``GMM(1, "full")`` or ``KNN(k=5, normalize=False)``; the paper's third is a
            flow, here ``FeatureFlow(normalize=False)``.  (On the sphere, their default, lengths would be lost.)
        sigmas, extrapolate: see `ScoreNorms`.
        log: judge the logarithms of the norms: a choice of tail, to be made before an OOD image is seen.  On logarithms
            half the usual norm is as unusual as twice the usual one, on plain norms half as unusual.

    Raises:
        ValueError: as `score_norms`; features that are no score norms of this network; norms of zero with ``log``; what
            the density refuses.

    Example:
        >>> from ood_lib import extract, load_benchmark
        >>> bench, sharp = load_benchmark("digits"), lambda x, sigma: (0.5 - x) / (0.1 + sigma**2)
        >>> detector = MSMA(sharp, density=GMM(1, "full"), sigmas=[1.0, 0.1])
        >>> held_out, blurred = (extract(detector.norms, data) for data in (bench.val, bench.far["blurred"]))
        >>> bool(detector.fit(held_out).score(blurred).mean() > detector.score(held_out).mean())
        True
    """

    grows = ("mean", "std")
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor] | None,
        density: Detector | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        extrapolate: bool = False,
        log: bool = False,
    ) -> None:
        super().__init__()
        self.norms, self.log = ScoreNorms(network or _no_network, sigmas, extrapolate), log
        self.select = density is None
        self.density: Detector = copy.deepcopy(density) or GMM(1, "full")

    def _fit(self, features: Features) -> None:
        features = self._tail(self._prepare(features))
        z, scales = features.penultimate, len(self.norms.sigmas)
        check_width(z, scales, "the score norms of this network are")
        if len(z) < 5 * scales:
            warn(f"{len(z)} rows for a density of {scales} score norms: its tails are guesses")
        check_size(z)
        std, mean = torch.std_mean(z.double(), dim=0)
        if not (std > 0).all():
            raise ValueError(f"the score norms of scales {(~(std > 0)).nonzero().flatten().tolist()} never vary")
        standard = self._standardise(features, mean, std)
        if self.select:
            self.density = select_gmm(standard).to(self.mean.device)
        self.density.fit(standard)
        self.mean, self.std = mean, std

    def _score(self, features: Features) -> Tensor:
        return self.density.score(self._standardise(self._tail(features), self.mean, self.std))

    def _tail(self, features: Features) -> Features:
        """The norms as they are judged."""
        if not self.log:
            return features
        z = features.penultimate
        if not (z > 0).all():
            raise ValueError(f"norms down to {z.min().item():.3g} were given; log=True expects norms above zero")
        return Features(**features.tensors() | {"penultimate": z.log()})

    def arguments(self) -> dict[str, Any]:
        """What it was made with; a density that the fit has chosen is part of what was learnt."""
        density = None if self.select else self.density
        return {"network": self.norms.network, "density": density, "log": self.log} | {
            name: getattr(self.norms, name) for name in ("sigmas", "extrapolate")
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.select and (saved := state_dict.get(f"{prefix}density._extra_state")) is not None:
            self.density = rebuild(from_bytes(saved)).to(self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _standardise(features: Features, mean: Tensor, std: Tensor) -> Features:
        z = features.penultimate
        z = (z - mean.to(z)) / std.to(z)
        return Features(**features.tensors() | {"penultimate": z})

    def extra_repr(self) -> str:
        """The choices, as they were given."""
        density = "select_gmm" if self.select else type(self.density).__name__
        norms, network = self.norms, type(self.norms.network).__name__
        sigmas, extrapolate = len(norms.sigmas), norms.extrapolate
        return f"network={network}, density={density}, sigmas={sigmas}, extrapolate={extrapolate}, log={self.log}"

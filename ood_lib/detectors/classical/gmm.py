r"""Densities of the penultimate feature: Gaussian mixtures.  Energy = minus log-density; larger = more OOD.

The energy of a mixture adds up what all components say,
:math:`E(z) = -\log \sum_c \pi_c\, N(z; \mu_c, \Sigma_c)`; the nearest component alone would be a Mahalanobis distance.
With labels there is one component per class and nothing to search for; without, scikit-learn's k-means and EM find the
components.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.compiler import is_exporting

from ood_lib.checks import check
from ood_lib.detectors.moments import Moments, class_moments, rounding
from ood_lib.detectors.shapes import check_width
from ood_lib.detectors.streaming import MomentDetector
from ood_lib.extras import need
from ood_lib.features.features import Features
from ood_lib.warn import warn

__all__ = ["GMM", "Mixture", "expectation_maximization", "mixture", "mixture_log_prob"]

Covariance = Literal["tied", "diagonal", "full"]


class Mixture(NamedTuple):
    """C Gaussians with K features each, in float64."""

    weights: Tensor  # pi, (C,)
    means: Tensor  # (C, K)
    whitening: Tensor  # A with A^T A = Sigma^-1: tied (1, K, K), full (C, K, K); diagonal (C, K), its entries


def mixture(moments: Moments, covariance: Covariance = "tied", ridge: float = 1e-6) -> Mixture:
    r"""The Gaussians that have given moments, each covariance lifted to :math:`\Sigma_c + \lambda I`.

    Lambda is ``ridge`` times the mean variance of a feature inside the components.  It gives units that never vary a
    small width instead of an infinite density: one that moves by a mean standard deviation costs 1/(2 ridge).

    Args:
        moments: counts, means and scatter of the same kind as ``covariance``.
        covariance: ``"tied"`` one matrix for all, ``"full"`` one each, ``"diagonal"`` one each without correlations.
        ridge: relative to the mean variance, >= 0.

    Raises:
        ValueError: no feature varies, or a covariance is singular and the ridge does not help.
    """
    check(("tied", "full", "diagonal"), covariance=covariance)
    check("[0, inf)", "a share of the mean variance", ridge=ridge)
    counts, means, scatter = moments
    width = means.shape[1]
    squares = scatter.diagonal(dim1=-2, dim2=-1) if covariance != "diagonal" else scatter
    variance = squares.sum() / (counts.sum() * width)
    if variance <= rounding(means):
        raise ValueError(
            "the features of each component are all equal: their covariance is zero; look at the network, or the labels"
        )
    if covariance == "diagonal":
        values = scatter / counts[:, None] + ridge * variance
        whitening = values.rsqrt()
    else:
        each = scatter[None] / counts.sum() if covariance == "tied" else scatter / counts[:, None, None]
        values, vectors = torch.linalg.eigh(each)
        values = values + ridge * variance
        whitening = vectors.mT * values.rsqrt()[..., None]
    if values.amin() <= values.amax() * width * torch.finfo(values.dtype).eps:
        raise _singular(covariance, width, ridge)
    return Mixture(counts / counts.sum(), means, whitening)


def _singular(covariance: Covariance, width: int, ridge: float) -> ValueError:
    return ValueError(
        f"a {covariance} covariance is singular: features that never vary or copy each other, or a component with "
        f"fewer samples than the {width} features; ridge={ridge} was given, a larger one helps"
    )


def mixture_log_prob(z: Tensor, gaussians: Mixture, white: Tensor | None = None) -> Tensor:
    r"""What each component contributes, :math:`\log \pi_c + \log N(z; \mu_c, \Sigma_c)`, (N, K) to (N, C).

    The logsumexp over c is the log-density; the softmax says to which component a feature belongs.

    Args:
        z: (N, K).
        gaussians: of any covariance.
        white: their means around their weighted mean, whitened, (C, K), of a tied covariance where they are known.
    """
    weights, means, a = gaussians
    centre = weights @ means  # of small numbers little is lost when a square is multiplied out, as cdist does too
    z = z - centre
    if white is None:
        means = means - centre
    if a.ndim == 2:
        log_det = a.log().sum(1)
        squares = z.square() @ a.square().T - 2 * z @ (means * a.square()).T + (means * a).square().sum(1)
    else:
        log_det = a.square().sum(2).log().sum(1) / 2  # the rows of A are orthogonal, as long as 1 / standard deviation
        if len(a) == 1:
            squares = torch.cdist(z @ a[0].T, means @ a[0].T if white is None else white).square()
        else:
            squares = torch.stack([((z - mean) @ rows.T).square().sum(1) for mean, rows in zip(means, a)], 1)
    return weights.log() + log_det - squares / 2 - z.shape[1] / 2 * math.log(2 * math.pi)


def expectation_maximization(
    z: Tensor, components: int, covariance: Covariance, ridge: float, seed: int, steps: int = 500
) -> Moments:
    """Moments of the components that scikit-learn's EM finds in samples without labels, starting from k-means.

    Args:
        z: (N, K), float64.
        components: C.
        covariance: see `mixture`.
        ridge: share of the mean variance of all features, which keeps a component from collapsing on its way.
        seed: of k-means.
        steps: at most; a warning tells when they were too few.

    Raises:
        ValueError: no more than C different samples; a component collapsed and the ridge does not help.

    References:
        Dempster, Laird & Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977.
    """
    check("integer [1, inf)", "a number of Gaussians", components=components)
    if components == 1:  # nothing to search for
        return class_moments(z, torch.zeros(len(z), dtype=torch.long, device=z.device), covariance)
    centre = z.mean(0)
    rows = (z - centre).cpu().numpy()  # around the mean scikit-learn's sums of squares lose no digits
    if (different := len({row.tobytes() for row in rows})) <= components:  # points without any spread
        raise ValueError(f"{components} components need more different samples than that; only {different} were given")
    lift = ridge * z.var(0, correction=0).mean().item()
    gmm = need("sklearn.mixture").GaussianMixture(
        components, covariance_type={"diagonal": "diag"}.get(covariance, covariance), reg_covar=lift, tol=1e-7,
        max_iter=steps, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # what it says of too few steps is said below
        try:
            gmm.fit(rows)
        except ValueError as error:
            raise _singular(covariance, z.shape[1], ridge) from error
    if not gmm.converged_:
        warn(f"the mixture still improved after {steps} steps of EM; take fewer components")
    weights, means, inside = (torch.from_numpy(x).to(z) for x in (gmm.weights_, gmm.means_, gmm.covariances_))
    inside = inside - lift * (1 if covariance == "diagonal" else torch.eye(z.shape[1]).to(z))
    counts = weights * len(z)
    scatter = inside * len(z) if covariance == "tied" else torch.einsum("c,c...->c...", counts, inside)
    return Moments(counts, means + centre, scatter)


class GMM(MomentDetector):
    """Minus the log-density of a Gaussian mixture of the training features; larger = more OOD.

    All components count, by a logsumexp.  The fit and the densities are computed in float64.

    Args:
        components: None = one per class, from the labels; a number = found without labels by k-means and EM (which
            needs all features at once, so neither ``partial_fit`` nor ``merge``).
        covariance: ``"tied"`` (one for all components), ``"full"`` or ``"diagonal"`` (one each).
        ridge: added to the covariances, relative to the mean variance inside the components, see `mixture`.
        seed: of k-means.

    Raises:
        ValueError: an argument out of its range; labels are missing, or a class has no sample; features without spread,
            or with singular covariance and ``ridge=0``; no more different samples than components.

    Example:
        >>> z = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> gmm = GMM(components=1).fit(Features(penultimate=z))
        >>> gmm.log_prob(torch.zeros(1, 2)).exp()  # nearly 1 / (2 pi)
        tensor([0.1558])
    """

    grows = (*MomentDetector.grows, "weights", "whitening")
    weights: Tensor
    whitening: Tensor
    white: Tensor  # see `mixture_log_prob`; it follows from what was learnt, so no state holds it: empty before a score

    def __init__(
        self, components: int | None = None, covariance: Covariance = "tied", ridge: float = 1e-6, seed: int = 0
    ) -> None:
        super().__init__()
        check("integer [1, inf) or None", "a number of Gaussians (None: one per class)", components=components)
        check(("tied", "full", "diagonal"), covariance=covariance)
        check("[0, inf)", "a share of the mean variance", ridge=ridge)
        self.components, self.covariance, self.ridge, self.seed = components, covariance, ridge, seed
        self.kind = covariance
        self.register_buffer("white", torch.empty(0), persistent=False)

    # -- fitting ------------------------------------------------------------------------------------------------

    def _finish(self, moments: Moments) -> None:
        self._need_every_class(moments)
        self._become(mixture(moments, self.covariance, self.ridge))

    def _become(self, gaussians: Mixture) -> None:
        self.weights, _, self.whitening = gaussians
        self.white = self.white.new_empty(0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _complete(self) -> None:
        super()._complete()
        if self.covariance == "tied" and not is_exporting() and not len(self.white) and self.fitted:
            means = self.means.double()
            self.white = (means - self.weights.double() @ means) @ self.whitening[0].double().T

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.white = self.white.new_empty(0)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _fit(self, features: Features) -> None:
        if self.components is None:
            super()._fit(features)
            return
        if len(features) < self.components:
            raise ValueError(f"{self.components} components were asked for, and {len(features)} samples given")
        z = features.penultimate.to(self.counts.device).double()
        moments = expectation_maximization(z, self.components, self.covariance, self.ridge, self.seed)
        self._become(mixture(moments, self.covariance, self.ridge))
        self.counts, self.means, self.scatter = moments

    def partial_fit(self, features: Features) -> Self:
        """As every `MomentDetector`, with ``components=None`` only."""
        self._need_labelled("partial_fit")
        return super().partial_fit(features)

    def merge(self, other: Self) -> Self:
        """As every `MomentDetector`, with ``components=None`` only."""
        self._need_labelled("merge")
        return super().merge(other)

    def _need_labelled(self, what: str) -> None:
        if self.components is not None:
            raise ValueError(
                f"GMM(components={self.components}) is found by EM, which needs all features at once: call fit; "
                f"with components=None and labels, {what} works"
            )

    # -- what a density can do ------------------------------------------------------------------------------------

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of features (N, K), (N,), differentiable in z.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        self._require_fit()
        check_width(z, self.means.shape[1])
        found = Mixture(self.weights.double(), self.means.double(), self.whitening.double())
        white = self.white if len(self.white) else None
        return mixture_log_prob(z.double(), found, white).logsumexp(1).to(z.dtype)

    def with_gradient(self, like: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`log_prob` and its gradient, written out, of a tied mixture as it is now, in the precision of ``like``.

        For the many steps of Langevin chains: no graph is made, and what is the same for each point is computed once.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        self._require_fit()
        (a,), weights = self.whitening.double(), self.weights.double()
        centre = weights @ self.means.double()
        white_means = (self.means.double() - centre) @ a.T
        log_det = a.square().sum(1).log().sum() / 2 - len(a) / 2 * math.log(2 * math.pi)
        offset = weights.log() + log_det - white_means.square().sum(1) / 2
        centre, a, white_means, offset = (x.to(like) for x in (centre, a, white_means, offset))

        def log_prob(z: Tensor) -> tuple[Tensor, Tensor]:
            white = (z - centre) @ a.T
            each = torch.addmm(offset, white, white_means.T)  # of each component, up to what all of them share
            slope = torch.addmm(white, each.softmax(1), white_means, beta=-1) @ a
            return each.logsumexp(1) - white.square().sum(1) / 2, slope

        return log_prob

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n features from the mixture, (n, K) in float64.

        Args:
            n: how many.
            generator: CPU generator; None = the global one.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        self._require_fit()
        which = self.weights.cpu().multinomial(n, replacement=True, generator=generator).to(self.means.device)
        white = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(
            self.means
        )
        if self.covariance == "diagonal":
            return self.means[which] + white / self.whitening[which]
        colour = self.whitening / self.whitening.square().sum(2, keepdim=True)  # rows: standard deviation x direction
        if len(colour) == 1:
            return self.means[which] + white @ colour[0]
        drawn = self.means[which]
        for component, rows in enumerate(colour):
            drawn[which == component] += white[which == component] @ rows
        return drawn

    def _score(self, features: Features) -> Tensor:
        return -self.log_prob(features.penultimate)

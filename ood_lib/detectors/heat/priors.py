"""Priors: simple energies of a feature that are densities up to a constant, and can be corrected by a residual.

Larger energy = more OOD.  A prior is a detector of one field with ``log_prob(z)``, differentiable.  It may have
``sample(n, generator)``, so that chains can start from it, and ``project(z)``, which keeps points where features lie.
Any `GMM` is one, on the features as they are.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.classical.gmm import GMM
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.head import FrozenHead
from ood_lib.detectors.moments import Moments
from ood_lib.features.features import Features
from ood_lib.tensors import directions

__all__ = ["GMMPrior", "LogitPrior"]


class GMMPrior(GMM):
    """Mixture of Gaussians with one covariance, on features brought to length one: GMM and GMM-std of HEAT's paper.

    ``score`` brings them there; ``log_prob`` takes points that lie there, as `project` gives them, and does not check.

    Args:
        field: ``"penultimate"`` (the mean of the last map) or ``"style"`` (its spread).
        components: None = one per class; a number = found without labels, see `GMM`.
        ridge, seed: see `GMM`.

    Raises:
        ValueError: another field, and whatever `GMM` raises.

    Example:
        >>> style = torch.rand(90, 4, generator=torch.Generator().manual_seed(0))
        >>> prior = GMMPrior("style").fit(Features(style=style, labels=torch.arange(90) % 3))
        >>> scores = prior.score(Features(style=style))
        >>> torch.allclose(prior.score(Features(style=7 * style)), scores, atol=1e-4)  # length does not matter
        True
    """

    def __init__(
        self,
        field: Literal["penultimate", "style"] = "penultimate",
        components: int | None = None,
        ridge: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__(components, "tied", ridge, seed)
        check(("penultimate", "style"), field=field)
        self.field, self.reads = field, (field,)

    def project(self, z: Tensor) -> Tensor:
        """Points (N, D) brought to length one."""
        return directions(z)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n features from the mixture, brought to length one, (n, D) in float64; see `GMM.sample`."""
        return self.project(super().sample(n, generator))

    def _seen(self, features: Features) -> Features:
        return Features(penultimate=self.project(getattr(features, self.field).double()), labels=features.labels)

    def _fit(self, features: Features) -> None:
        super()._fit(features if self.components is None else self._seen(self._prepare(features)))

    def _measure(self, chunk: Features) -> Moments:
        return super()._measure(self._seen(chunk))

    def _score(self, features: Features) -> Tensor:
        return super()._score(self._seen(features)).to(getattr(features, self.field).dtype)

    def _check(self, features: Features) -> None:
        if self.field == "style" and isinstance(features, Features) and features.style is None:
            raise ValueError(
                f"GMMPrior('style') reads style, which {features} does not hold: style is the spread of a network's "
                "last feature map; a transformer has none, leave this prior out"
            )
        super()._check(features)


class LogitPrior(Detector):
    r"""Energy of the logits as a function of the feature, :math:`-\log\sum_c e^{w_c^\top z + b_c}`; larger = more OOD.

    Nothing is fitted: w and b are those of the ``head``, the network's last linear layer.  As a density it is improper,
    as the energy falls for ever along any row of the head.  So it cannot be sampled, and chains start from noise.

    References:
        Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.
    """

    needs_fit = False

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = FrozenHead(head)

    def log_prob(self, z: Tensor) -> Tensor:
        """Minus the energy of features (N, K), (N,), differentiable in z."""
        return -energy(self.head(z))

    def _score(self, features: Features) -> Tensor:
        return -self.log_prob(features.penultimate)

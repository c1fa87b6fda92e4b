r"""HEAT: simple densities of a feature, each corrected by a learned residual, composed.  Larger = more OOD.

.. math:: E_h(z) = E_{\text{prior}}(z) / T_p + E_\theta(z)

.. math:: E^\beta = \frac1\beta \log \frac1n \sum_{k=1}^n \exp(\beta u_k), \quad u_k = \text{standardised } E_{h,k}

Lafon, Ramzi, Rambour & Thome, Hybrid Energy Based Model in the Feature Space for Out-of-Distribution Detection, ICML
2023.  Each :math:`E_{h,k}` is a `ResidualEBM`; `ood_lib.compose` puts any detectors together.
"""

from collections.abc import Sequence
from typing import Any

from ood_lib.checks import check
from ood_lib.detectors.compose import Composed
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.heat.hybrid import ResidualEBM

__all__ = ["HEAT"]


class HEAT(Composed):
    r"""Several hybrids as one detector, composed by :math:`\frac1\beta\log\frac1n\sum_k e^{\beta u_k}`.

    Larger = more OOD.  Each prior gets a residual of its own, each hybrid is standardised over the training features.

    Args:
        priors: `GMMPrior`, `LogitPrior`, any detector with ``log_prob``; or hybrids, to give each its own options.
        beta: 0 = mean, infinity = the most alarmed hybrid decides, minus infinity = the least; see `soft_extreme`.
        options: go to the `ResidualEBM` of each prior.

    Raises:
        ValueError: no priors, or one that has no ``log_prob``; options for hybrids that are ready.

    Example:
        >>> import torch
        >>> from ood_lib import Features, GMMPrior, LogitPrior
        >>> draw = torch.Generator().manual_seed(0)
        >>> head, labels = torch.nn.Linear(4, 3), torch.arange(300) % 3
        >>> z = torch.rand(300, 4, generator=draw) + torch.eye(4)[labels]
        >>> heat = HEAT([GMMPrior(), LogitPrior(head)], updates=20).fit(Features(penultimate=z, labels=labels))
        >>> heat.score(Features(penultimate=z)).shape
        torch.Size([300])
    """

    def __init__(self, priors: Sequence[Detector], beta: float = 0.0, **options: Any) -> None:
        check(lambda given: not isinstance(given, Detector), "a list of priors", priors=priors)
        ready = [prior for prior in priors if isinstance(prior, ResidualEBM)]
        if ready and options:
            raise ValueError(f"options {sorted(options)} were given beside hybrids that are ready: give those theirs")
        super().__init__([p if isinstance(p, ResidualEBM) else ResidualEBM(p, **options) for p in priors], beta)
        self.options = options

    @property
    def hybrids(self) -> list[ResidualEBM]:
        """One per prior, in their order."""
        return list(self.detectors)

    def arguments(self) -> dict[str, Any]:
        """Hybrids, which hold the options, and beta."""
        return {"priors": self.hybrids, "beta": self.beta}

    def extra_repr(self) -> str:
        """Priors with their residuals, and how they are composed."""
        return f"priors={self.hybrids}, beta={self.beta}, options={self.options}"

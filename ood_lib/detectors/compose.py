r"""Several detectors as one: their energies, brought to one scale, under a soft minimum, mean or maximum.

.. math:: u_k = \frac{S_k - m_k}{s_k}, \qquad S^\beta = \frac1\beta \log \frac1n \sum_{k=1}^n e^{\beta u_k}

Larger = more OOD.  A large beta raises the alarm when one member does; a very negative one only when all do.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.features.features import Features
from ood_lib.warn import warn

__all__ = ["Composed", "compose", "soft_extreme"]


def soft_extreme(u: Tensor, beta: float) -> Tensor:
    r"""Between minimum and maximum, :math:`\frac1\beta \log \frac1n \sum_k e^{\beta u_k}`, (N,); grows with every u_k.

    Its derivatives are the weights :math:`\mathrm{softmax}(\beta u)`.  Beta = 0 is the mean, plus and minus infinity
    are maximum and minimum.  The paper leaves 1/n out, which shifts all scores by :math:`\log(n) / \beta`.

    Args:
        u: energies of n members on one scale, (n, N).
        beta: any number, or infinity.

    Raises:
        ValueError: ``beta`` is NaN.

    References:
        Lafon et al., Hybrid Energy Based Model in the Feature Space for OOD Detection, ICML 2023, eq. 7.

    Example:
        >>> u = torch.tensor([[0.0], [1.0]])
        >>> [round(soft_extreme(u, beta).item(), 2) for beta in (-math.inf, -5.0, 0.0, 5.0, math.inf)]
        [0.0, 0.14, 0.5, 0.86, 1.0]
    """
    check("[-inf, inf]", "a number", beta=beta)
    if math.isinf(beta):
        return u.amax(0) if beta > 0 else u.amin(0)
    if abs(beta) < 1e-6:  # below this the next term, beta/2 times the variance, is lost in rounding
        return u.mean(0)
    return ((torch.logsumexp(beta * u.double(), 0) - math.log(len(u))) / beta).to(u.dtype)


class Composed(Detector):
    """Detectors under one soft minimum, mean or maximum, see `soft_extreme`; larger = more OOD.  Made by `compose`."""

    means: Tensor
    stds: Tensor

    def __init__(self, detectors: Sequence[Detector], beta: float = 0.0, refit: bool = True) -> None:
        super().__init__()
        check(lambda given: not isinstance(given, Detector), "a list of detectors", detectors=detectors)
        wrong = [type(d).__name__ for d in detectors if not isinstance(d, Detector)]
        if wrong or not len(detectors) or math.isnan(beta):
            given = wrong or f"{len(detectors)} detectors and beta={beta}"
            raise ValueError(f"{given} were given to compose; expected a list of detectors and a number beta")
        # copies, as a member that a second composition fits anew would change the scores of this one
        self.detectors: Any = nn.ModuleList(copy.deepcopy(d) for d in detectors)
        self.beta, self.refit = beta, refit
        self.reads = tuple(dict.fromkeys(field for d in detectors for field in d.reads))
        for name in ("means", "stds"):
            self.register_buffer(name, torch.full((len(detectors),), math.nan, dtype=torch.float64))

    def _fit_with(self, features: Features, val: Features | None) -> None:
        due = [d for d in self.detectors if self.refit or not d.ready]
        if val is None and (names := dict.fromkeys(type(d).__name__ for d in due if d.fits == "val")):
            warn(
                f"{' and '.join(names)} learn from validation features, and were given training features, which the "
                "network knows too well: call .fit(train, val)"
            )
        self._forget()  # once a member is fitted anew, neither the old scale nor the old threshold is its own
        self.fitted.fill_(False)
        for detector in due:
            detector.fit(features, val)
        found = torch.stack([d.score(features).double() for d in self.detectors])  # (n, N)
        wild = [type(d).__name__ for d, s in zip(self.detectors, found) if not s.isfinite().all()]
        if wild:
            raise ValueError(
                f"training scores of {wild} are infinite: they overflowed, and have no scale; give it float64"
            )
        flat = [type(d).__name__ for d, s in zip(self.detectors, found.std(1, correction=0)) if not s > 0]
        if flat:
            raise ValueError(f"all training scores of {flat} are equal: no scale to bring them to; leave it out")
        self.means.copy_(found.mean(1))
        self.stds.copy_(found.std(1, correction=0))

    def standardized(self, features: Features) -> Tensor:
        """Scores of the members in units of their spread over the training set, u, (n, N) in float64."""
        self._require_fit()
        found = torch.stack([d.score(features).double() for d in self.detectors])
        return (found - self.means.to(found)[:, None]) / self.stds.to(found)[:, None]

    def _score(self, features: Features) -> Tensor:
        return soft_extreme(self.standardized(features), self.beta).to(getattr(features, self.reads[0]).dtype)

    def arguments(self) -> dict[str, Any]:
        """Members, beta, and whether members are fitted anew."""
        return {"detectors": list(self.detectors), "beta": self.beta, "refit": self.refit}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """What was composed, and how."""
        return f"detectors={list(self.detectors)}, beta={self.beta}, refit={self.refit}"


def compose(detectors: Sequence[Detector], beta: float = 0.0, *, refit: bool = True) -> Composed:
    """A detector that fits all given ones and composes their scores; larger = more OOD.

    Each score is first standardised by its mean and spread over the ID training features.  Members whose recipe learns
    from validation features (`Detector.fits`) get them by ``fit(train, val)``, which `run_benchmark` calls.

    Args:
        detectors: any detectors of the library, hybrids or not; copied, and fitted with it, so that those given here
            stay as they are.
        beta: see `soft_extreme`; 0 = the mean.
        refit: False takes detectors that are fitted already as they are, and fits only the others.

    Raises:
        ValueError: no detectors, or something else among them; on fitting, a detector that gives all training features
            one score.

    Example:
        >>> from ood_lib import KNN, Energy
        >>> draw = torch.Generator().manual_seed(0)
        >>> z = torch.randn(100, 4, generator=draw)
        >>> both = compose([KNN(k=5), Energy()], beta=1.0).fit(Features(penultimate=z, logits=z[:, :3]))
        >>> both.score(Features(penultimate=z + 9, logits=z[:, :3] - 9)).min() > 0
        tensor(True)
    """
    return Composed(detectors, beta, refit)

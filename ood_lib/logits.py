"""Detectors that read the logits alone: MSP, MaxLogit, Energy, GEN, KL-Matching.  Larger = more OOD.

Facts that tie them together: ``max_logit - log C <= energy <= max_logit`` (both negated scores, so energy is the lower
one) and ``log MSP = max_j l_j - logsumexp_j l_j``: MSP is what remains of the maximum once the energy is taken out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.detector import Detector, class_indices
from ood_lib.features import Features
from ood_lib.moments import MomentDetector, Moments, class_moments

__all__ = [
    "GEN", "MSP", "Energy", "KLMatching", "MaxLogit", "energy", "fit_temperature", "gen", "kl_matching", "max_logit",
    "msp",
]  # fmt: skip


def msp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Minus the maximum softmax probability, :math:`-\max_j p_j`; larger = more OOD, in [-1, -1/C].

    Args:
        logits: (..., C).
        temperature: T > 0, p is the softmax of the logits / T; `fit_temperature` finds a calibrated one.

    Returns:
        (...,)

    References:
        Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017.

    Example:
        >>> msp(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
        tensor([-0.5000, -1.0000])
    """
    scaled = logits / temperature
    return -1 / (scaled - scaled.amax(-1, keepdim=True)).exp().sum(-1)  # the largest probability, without the others


def max_logit(logits: Tensor) -> Tensor:
    r"""Minus the largest logit, :math:`-\max_j \ell_j`; larger = more OOD.

    Args:
        logits: (..., C).

    Returns:
        (...,)

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.

    Example:
        >>> max_logit(torch.tensor([[1.0, 3.0]]))
        tensor([-3.])
    """
    return -logits.amax(-1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Free energy :math:`-T \log \sum_j e^{\ell_j / T}`; larger = more OOD.

    Args:
        logits: (..., C).
        temperature: T > 0; for T to 0 the energy becomes `max_logit`.

    Returns:
        (...,)

    References:
        Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.

    Example:
        >>> energy(torch.zeros(1, 2))
        tensor([-0.6931])
    """
    return -temperature * torch.logsumexp(logits / temperature, -1)


def gen(logits: Tensor, gamma: float = 0.1, top: int = 100) -> Tensor:
    r"""Generalised entropy :math:`\sum_{j \in \text{top}} p_j^\gamma (1-p_j)^\gamma`; larger = more OOD.

    A small gamma lets the many small probabilities speak.  For the largest one, 1 - p is summed from the others, which
    keeps the digits that the subtraction would round away (:math:`10^{-9}` to the power 0.1 is 0.13).

    Args:
        logits: (..., C).
        gamma: exponent in (0, 1).
        top: how many of the largest probabilities count; all of them when it exceeds C.

    Returns:
        (...,)

    References:
        Liu, Lochman & Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023.

    Example:
        >>> gen(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), gamma=0.5)
        tensor([1.0000, 0.0222])
    """
    p = logits.softmax(-1).sort(-1, descending=True).values
    rest = torch.cat([p[..., 1:].sum(-1, keepdim=True), 1 - p[..., 1:]], -1)
    return (p * rest)[..., :top].pow(gamma).sum(-1)


def kl_matching(logits: Tensor, templates: Tensor) -> Tensor:
    r"""Divergence from the nearest class template, :math:`\min_k \mathrm{KL}(p \,\|\, d_k)`; larger = more OOD.

    Zeros of a template count as the smallest positive number of its precision, so the score stays finite.

    Args:
        logits: (..., C).
        templates: d, (M, C), each row a distribution over the classes.

    Returns:
        (...,)

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.
    """
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    log_d = templates.clamp(min=torch.finfo(templates.dtype).tiny).log().to(p.dtype)
    return (p * log_p).sum(-1) - (p @ log_d.T).amax(-1)


@torch.enable_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""Temperature T that calibrates held-out ID logits: it minimises the mean cross-entropy of :math:`\ell / T`.

    The loss is convex in 1/T, so there is one minimum; L-BFGS finds it over log T in float64.

    Args:
        logits: (N, C) of held-out ID samples (on training samples a network looks better than it is).
        labels: (N,) their classes.

    Raises:
        ValueError: the loss has no minimum: all samples are classified correctly (it falls until T = 0), or the labels
            get no larger logits than the other classes (it falls until T is infinite); or shapes that do not fit,
            logits that are not finite, labels that are no class indices.

    References:
        Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks, ICML 2017.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> p = (logits / fit_temperature(logits, torch.tensor([0, 0, 1, 1]))).softmax(1)
        >>> p.amax(1)  # three of four are right
        tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(logits) == 0:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} were given; expected (N, C) and (N,)"
        )
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise ValueError(f"{bad} of {len(logits)} rows of logits hold NaN or infinity; expected numbers: drop them")
    logits, labels = logits.detach().double(), class_indices(labels, len(logits))
    own = logits.gather(1, labels[:, None])[:, 0]
    if (logits.amax(1) - own).mean() <= 0:
        raise ValueError(
            "all samples are classified correctly: the cross-entropy falls until T = 0; "
            "calibrate with held-out samples of which the network gets some wrong"
        )
    if (logits.mean(1) - own).mean() >= 0:
        raise ValueError(
            "the labels get no larger logits than the other classes: the cross-entropy falls until T is infinite; "
            "do logits and labels belong to the same samples?"
        )
    log_t = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_t], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_t.exp().item()


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} was given; expected a positive number")
    return temperature


class MSP(Detector):
    """Maximum softmax probability, see `msp`.

    Args:
        temperature: T > 0; `fit_temperature` finds a calibrated one.

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _positive(temperature)

    def _score(self, features: Features) -> Tensor:
        return msp(features.logits, self.temperature)


class MaxLogit(Detector):
    """Largest logit, see `max_logit`."""

    reads = ("logits",)
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return max_logit(features.logits)


class Energy(Detector):
    """Free energy of the logits, see `energy`.

    Args:
        temperature: T > 0.

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _positive(temperature)

    def _score(self, features: Features) -> Tensor:
        return energy(features.logits, self.temperature)


class GEN(Detector):
    """Generalised entropy of the largest probabilities, see `gen`.

    Args:
        gamma: exponent, > 0.
        top: how many of the largest probabilities count, >= 1.

    Raises:
        ValueError: an argument out of its range.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        super().__init__()
        if not gamma > 0:
            raise ValueError(f"gamma={gamma} was given; expected a positive exponent")
        if top < 1:
            raise ValueError(f"top={top} was given; expected a number of probabilities, top >= 1")
        self.gamma, self.top = gamma, top

    def _score(self, features: Features) -> Tensor:
        return gen(features.logits, self.gamma, self.top)


class KLMatching(MomentDetector):
    """Divergence from the mean softmax of the nearest class, see `kl_matching`.

    The template of a class is the mean softmax of the samples *predicted* as it, and one-hot where there is none.  The
    paper fits it on held-out ID samples: give ``fit`` the validation features, on which the network is not
    overconfident.  Labels are not used.
    """

    reads = ("logits",)
    fits = "val"
    grows = (*MomentDetector.grows, "templates")
    templates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("templates", torch.empty(0, 0))

    def _measure(self, chunk: Features) -> Moments:
        p = chunk.logits.double().softmax(1)
        return class_moments(p, p.argmax(1), self.kind, classes=p.shape[1])

    def _finish(self, moments: Moments) -> None:
        unseen = moments.counts == 0
        self.templates = moments.means + torch.diag(unseen.to(moments.means.dtype))

    def _score(self, features: Features) -> Tensor:
        self._check_width(features.logits, self.templates.shape[1])
        return kl_matching(features.logits, self.templates)

"""Temperature scaling: calibrates the probabilities of held-out ID logits."""

import math

import torch
from torch import Tensor

from ood_lib.data.labels import class_indices
from ood_lib.extras import need
from ood_lib.tensors import check_floats, why_not_dense

__all__ = ["fit_temperature"]


@torch.no_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""Temperature T that calibrates held-out ID logits: it minimises the mean cross-entropy of :math:`\ell / T`.

    The loss is convex in 1/T, so there is one minimum: where its slope is zero, which Brent's method finds in float64.

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
    check_floats("(N, C)", logits=logits)
    what = why_not_dense(labels)
    if what or labels.shape != logits.shape[:1] or len(logits) == 0:
        given = f"logits {tuple(logits.shape)} and labels {what or tuple(labels.shape)}"
        raise ValueError(f"{given} were given; expected (N, C) and (N,)")
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise ValueError(f"{bad} of {len(logits)} rows of logits hold NaN or infinity; expected numbers: drop them")
    labels = class_indices(labels, *logits.shape)
    logits = logits.detach().double()
    power = 2.0 ** math.frexp(logits.abs().amax().item())[1]  # of logits of any size the products are numbers then
    logits = logits / power
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

    def slope(log_beta: float) -> float:
        """Of the mean cross-entropy in beta = 1/T; it rises with beta."""
        return ((logits * math.exp(log_beta)).softmax(1).mul(logits).sum(1) - own).mean().item()

    low = high = 0.0
    while slope(low) >= 0:
        low -= 2
    while slope(high) <= 0:
        high += 2
    return power * math.exp(-need("scipy.optimize").brentq(slope, low, high, xtol=1e-12))

"""Temperature scaling: calibrates the probabilities of held-out ID logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.data.labels import class_indices
from ood_lib.tensors import check_floats, strange

__all__ = ["fit_temperature"]


@torch.inference_mode(False)
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
    check_floats("(N, C)", logits=logits)
    if strange(labels) or labels.shape != logits.shape[:1] or len(logits) == 0:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {strange(labels) or tuple(labels.shape)} were given; expected "
            "(N, C) and (N,)"
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

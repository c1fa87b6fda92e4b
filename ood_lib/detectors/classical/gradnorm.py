"""GradNorm: size of the head's gradient under a uniform target.  Larger score = more OOD."""

from torch import Tensor

from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits, check_pairs
from ood_lib.features.features import Features
from ood_lib.tensors import check_floats

__all__ = ["GradNorm", "gradnorm"]


def gradnorm(z: Tensor, logits: Tensor) -> Tensor:
    r"""Minus the size of the gradient that a uniform target sends into the head, (N,); larger = more OOD.

    .. math:: -\Bigl\lVert \frac{\partial}{\partial W} \sum_j -\log p_j \Bigr\rVert_1
        = -\lVert z \rVert_1 \sum_j \lvert C p_j - 1 \rvert

    The loss is the cross-entropy with all-ones targets, as in the released code; the bias is left out.  A confident
    network is pulled hard, and large features pull hard.

    Args:
        z: (N, K).
        logits: (N, C).

    Raises:
        ValueError: a single logit; integers; features and logits of different numbers of images.

    References:
        Huang, Geng & Li, On the Importance of Gradients for Detecting Distributional Shifts in the Wild, NeurIPS 2021.

    Example:
        >>> import torch
        >>> gradnorm(torch.tensor([[1.0, -2.0]]), torch.tensor([[100.0, 0.0]]))
        tensor([-6.])
    """
    check_logits(logits, 2)
    check_floats("(N, K)", z=z, logits=logits)
    check_pairs(z=z, logits=logits)
    return -z.abs().sum(1) * (logits.shape[1] * logits.softmax(1) - 1).abs().sum(1)


class GradNorm(Detector):
    """Size of the head's gradient under a uniform target, see `gradnorm`."""

    reads = ("penultimate", "logits")
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return gradnorm(features.penultimate, features.logits)

"""KL-Matching: divergence from the nearest class template.  Larger score = more OOD."""

import torch
from torch import Tensor

from ood_lib.detectors.moments import Moments, class_moments
from ood_lib.detectors.shapes import check_logits, check_width
from ood_lib.detectors.streaming import MomentDetector
from ood_lib.features.features import Features

__all__ = ["KLMatching", "kl_matching"]


def kl_matching(logits: Tensor, templates: Tensor) -> Tensor:
    r"""Divergence from the nearest class template, :math:`\min_k \mathrm{KL}(p \,\|\, d_k)`, (...,); larger = more OOD.

    Zeros of a template count as the smallest positive number of its precision, so the score stays finite.

    Args:
        logits: (..., C).
        templates: d, (M, C), each row a distribution over the classes.

    Raises:
        ValueError: a single logit; integers; templates of another width.

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.
    """
    check_logits(logits, 2)
    check_width(templates, logits.shape[-1], "the logits are", "templates")
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    log_d = templates.clamp(min=torch.finfo(templates.dtype).tiny).log().to(p.dtype)
    return (p * log_p).sum(-1) - (p @ log_d.T).amax(-1)


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

    def _measure(self, chunk: Features) -> Moments:
        check_logits(chunk.logits, 2)
        p = chunk.logits.double().softmax(1)
        return class_moments(p, p.argmax(1), self.kind, classes=p.shape[1])

    def _finish(self, moments: Moments) -> None:
        unseen = moments.counts == 0
        self.templates = moments.means + torch.diag(unseen.to(moments.means.dtype))

    def _score(self, features: Features) -> Tensor:
        check_width(features.logits, self.templates.shape[1])
        return kl_matching(features.logits, self.templates)

"""ODIN: a step on the image towards confidence, then a softmax at a high temperature.  Larger score = more OOD.

It changes the image before the network sees it, so half of it is a network: `ODINNetwork` takes the place of the
network in `extract`, and the detector `ODIN` scores the logits that come out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.detectors.classical.msp import MSP, msp
from ood_lib.detectors.shapes import check_logits
from ood_lib.networks.adapt import as_network
from ood_lib.networks.network import Representation, check_eval
from ood_lib.tensors import check_floats

__all__ = ["ODIN", "ODINNetwork", "odin", "odin_images"]


@torch.inference_mode(False)
@torch.enable_grad()
def odin_images(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    temperature: float = 1000.0,
    epsilon: float = 0.0014,
    std: Sequence[float] | None = None,
    multilabel: bool = False,
) -> Tensor:
    r"""Images moved a small step towards the class they are taken for, (N, channels, H, W).

    .. math:: x' = x - \frac{\varepsilon}{\sigma}\,\mathrm{sign}\,
        \nabla_x\bigl(-\log p_{\hat y}(x; T)\bigr), \qquad \mathrm{sign}(0) = 1

    Known images gain more confidence by the step than unknown ones.  The result is not clipped, and no gradient is
    left in the network.

    Args:
        network: images to logits (N, C), in eval mode.
        images: (N, channels, H, W).
        temperature: T of the softmax.
        epsilon: size of the step, in units of the pixels in [0, 1]; the papers chose theirs with OOD images.
        std: sigma, by which each channel was divided when the images arrive standardised; None when they are in [0, 1]
            (the networks of this library standardise inside).
        multilabel: independent labels: the loss is the binary cross-entropy of the largest logit against its own
            decision, :math:`\log(1 + e^{-|\ell_{\max}|})`, and T plays no part (as in the code of JointEnergy).

    Raises:
        ValueError: an argument out of its range; a network in training mode, or with a single logit.

    References:
        Liang, Li & Srikant, Enhancing the Reliability of Out-of-distribution Image Detection in Neural Networks,
        ICLR 2018.
    """
    check("(0, inf)", temperature=temperature)
    check("[0, inf)", "the size of a step", epsilon=epsilon)
    check_eval(network)
    check_floats("(N, channels, H, W)", images=images)
    images = images.detach().clone().requires_grad_()
    logits = network(images)
    check_logits(logits, 1 if multilabel else 2)
    if multilabel:
        loss = F.softplus(-logits.amax(1).abs()).sum()
    else:
        loss = F.cross_entropy(logits / temperature, logits.detach().argmax(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    step = epsilon if std is None else epsilon / images.new_tensor(std)[:, None, None]
    return images.detach() - step * (2 * (gradient >= 0).to(images.dtype) - 1)


def odin(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    temperature: float = 1000.0,
    epsilon: float = 0.0014,
    std: Sequence[float] | None = None,
) -> Tensor:
    r"""Minus the largest softmax probability at temperature T of images moved by `odin_images`; larger = more OOD.

    One score for each image, (N,); with epsilon = 0 and T = 1 this is `msp`.
    """
    moved = odin_images(network, images, temperature, epsilon, std)
    with torch.no_grad():
        return msp(network(moved), temperature)


class ODINNetwork(nn.Module):
    """A network that sees every image moved by `odin_images`: what `ODIN` is extracted with.

    Args:
        network: answers ``represent`` (see `ood_lib.networks.resnet`); any other classifier goes through `adapt`.
        temperature, epsilon, std, multilabel: see `odin_images`.

    With ``multilabel=True`` score the features by `MaxLogit`: the largest label probability ranks as the largest logit
    does, at any temperature.

    Raises:
        ValueError: ``temperature`` is not positive, or ``epsilon`` is negative.

    Example:
        >>> from ood_lib import ResNet
        >>> network, images = ResNet(channels=1, classes=3).eval(), torch.rand(5, 1, 8, 8)
        >>> features = ODINNetwork(network).represent(images)  # `extract` does this in batches
        >>> torch.allclose(msp(features.logits, 1000), odin(network, images))
        True
    """

    def __init__(
        self,
        network: nn.Module,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        std: Sequence[float] | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        check("(0, inf)", temperature=temperature)
        check("[0, inf)", "the size of a step", epsilon=epsilon)
        self.network = as_network(network)
        self.temperature, self.epsilon, self.std, self.multilabel = temperature, epsilon, std, multilabel

    @property
    def head(self) -> nn.Linear:
        """The head of the network inside."""
        return self.network.head

    def represent(self, images: Tensor) -> Representation:
        """What the network computes for the moved images."""
        options = (self.temperature, self.epsilon, self.std, self.multilabel)
        return self.network.represent(odin_images(self.network, images, *options))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of the moved images."""
        return self.represent(images).logits

    def extra_repr(self) -> str:
        """The step, which `extract` also reads to tell caches apart."""
        step = f"temperature={self.temperature}, epsilon={self.epsilon}, std={self.std}"
        return step + (", multilabel=True" if self.multilabel else "")


class ODIN(MSP):
    """Largest softmax probability at a high temperature of images moved towards confidence, see `odin`.

    The step is taken on images, so it is part of the extraction: give ``score`` the features of
    ``extract(ODINNetwork(network), dataset)``.  On features of the plain network this is ODIN with epsilon = 0.

    The ``temperature`` is that of `ODINNetwork`.
    """

    def __init__(self, temperature: float = 1000.0) -> None:
        super().__init__(temperature)

"""What every network of the library answers, and the device it runs on."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ood_lib.tensors import check_floats

__all__ = ["Network", "Representation", "check_eval", "check_images", "pick_device", "style_of"]


class Representation(NamedTuple):
    """What a network computes for a batch of N images."""

    penultimate: Tensor  # (N, K), the input of the head
    logits: Any  # Tensor (N, C), or None of a network without a head
    style: Tensor | None  # (N, K') standard deviation of the last feature map over space, None without a map


class Network(Protocol):
    """A classifier whose penultimate feature and linear head can be read."""

    @property
    def head(self) -> nn.Linear:
        """The layer that makes the logits of the penultimate feature."""
        ...

    def represent(self, images: Tensor) -> Representation:
        """Images (N, channels, H, W) in [0, 1] to their representation."""
        ...


def check_images(images: Tensor, channels: int, weight: Tensor) -> None:
    """Raise ValueError when images are not what a network with so many channels and such weights takes."""
    check_floats("(N, channels, H, W)", images=images)
    cast = torch.is_autocast_enabled(images.device.type)
    if images.shape[1] != channels or 0 in images.shape[2:] or (images.dtype != weight.dtype and not cast):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected (N, {channels}, H, W) in the "
            f"precision of the network, {weight.dtype}: convert them with images.to(...)"
        )


def check_eval(network: Any) -> None:
    """Raise ValueError when a layer of a module works otherwise in training: drops units, or reads the batch.

    A module without such layers computes the same in either mode, and is taken as it is.
    """
    parts = network.modules() if isinstance(network, nn.Module) else ()
    changing = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    named = ("DropPath", "StochasticDepth", "_SpectralNorm")
    for part in parts:
        if part.training and (isinstance(part, changing) or type(part).__name__ in named):
            raise ValueError(
                f"the network is in training mode, in which its {type(part).__name__} changes what it computes; "
                "expected it in eval mode: call network.eval() first"
            )


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device asked for; ``"auto"`` takes CUDA, then Apple's MPS, then the CPU."""
    if torch.get_default_device().type == "meta":
        raise ValueError("the default device is meta, where nothing is computed: expected to run outside of it")
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def style_of(maps: Tensor) -> Tensor | None:
    """Standard deviation over space, (N, K, h, w) -> (N, K); None where there is no space left."""
    return maps.std((2, 3), correction=0) if maps.shape[2] * maps.shape[3] > 1 else None

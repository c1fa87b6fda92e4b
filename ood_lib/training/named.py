"""A trained network by its name: torchvision's, timm's, Hugging Face's, one that ships here, or the reader's own.

Beside its weights a network needs the pictures to be prepared as in its training: size, crop, mean and standard
deviation.  Its `NetworkCard` says how.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.data.images import ImageFormat
from ood_lib.networks.adapt import adapt
from ood_lib.training.sources import SOURCES, NetworkCard, Wanted, from_function
from ood_lib.training.weights import read_weights

__all__ = ["load_network"]


def load_network(
    spec: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | Literal[False] | None = None,
    output: str | int | None = None,
) -> nn.Module:
    """A network by its name, in eval mode, answering `represent`; its attribute ``card`` says how to prepare pictures.

    It takes pixels in [0, 1]: its standardisation is its first layer.  Pictures are resized as `ImageFormat` does,
    bilinearly, also for a network that was trained on bicubic ones.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` (an image classifier of Hugging Face, or the folder of
            one), ``package.module:function`` (of your own, seen from the current folder; it is called without
            arguments, or with the number of classes where it takes ``classes`` or ``num_classes``), or a network known
            here, such as ``cifar10-resnet9``.
        weights: file of a state dict (safetensors, or of `torch.save` and then read without running code), also one
            that wraps it, as checkpoints do; ``"default"`` = those that torchvision or timm publish, which may be
            downloaded; None = what the source brings: nothing for torchvision and timm, and then a warning.
        classes: number of outputs; None = as many as the weights have.
        image_size, resize, mean, std: instead of those on the card, as for `load_benchmark` and `Normalize`; mean and
            standard deviation come together, and a size without ``resize`` resizes to that size.
        head, output: as for `adapt`.

    Raises:
        ValueError: there is no such network; a file that is no state dict, or that of another network (the message
            names what differs).
        FileNotFoundError: there is no such file.
        MissingExtraError: torchvision, timm or transformers is not installed.

    Example:
        >>> network = load_network("cifar10-resnet9")
        >>> network.card.frame.size, network.card.classes[:2], network.head.out_features
        (32, ('airplane', 'automobile'), 10)
    """
    check("integer [1, inf) or None", "a number of outputs", classes=classes)
    kind, _, name = spec.partition(":") if ":" in spec else ("", "", spec)
    source = SOURCES.get(kind, from_function)
    state = None if weights is None or str(weights) == "default" else read_weights(weights)
    with torch.random.fork_rng(devices=[]):  # the numbers that are drawn here are replaced
        model, about = source(spec if source is from_function else name, Wanted(spec, weights, state, classes))
    about = _changed(about, state, image_size, resize, mean, std)
    if hasattr(model, "represent"):
        if mean is not None or head is not None or output is not None:
            raise ValueError(f"{spec} answers represent by itself; mean, std, head and output are its own affair")
        network: Any = model
    else:
        network = adapt(model, head=head, normalize=about.normalize, output=output)
    network.card = about
    return network.eval().requires_grad_(False)


def _changed(
    about: NetworkCard, state: Mapping[str, Tensor] | None, size: int | None, resize: int | None,
    mean: Sequence[float] | None, std: Sequence[float] | None,
) -> NetworkCard:  # fmt: skip
    """The card with what was given instead."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean} and std={std} were given; expected both of them, or neither")
    if resize is not None and size is None:
        raise ValueError(f"resize={resize} needs an image_size, to which the centre is cropped")
    saved = [(state or {}).get(f"normalize.{name}") for name in ("mean", "std")]
    if mean is not None and std is not None:
        about = replace(about, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    elif saved[0] is not None and saved[1] is not None:  # the file is of a network that `adapt` made
        about = replace(about, mean=tuple(saved[0].flatten().tolist()), std=tuple(saved[1].flatten().tolist()))
    if size is not None:
        channels = about.frame.channels if about.frame else len(about.mean) or 3
        about = replace(about, frame=ImageFormat(channels, size, resize or 0))
    return about

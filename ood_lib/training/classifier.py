"""Training a network: for one label per image by cross-entropy, for several by binary cross-entropies."""

import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ood_lib.checks import check
from ood_lib.data.fingerprint import collate_items
from ood_lib.data.labels import average_precision, class_indices, count_labels, label_matrix
from ood_lib.data.length import length
from ood_lib.networks.network import pick_device
from ood_lib.networks.precision import autocast_dtype
from ood_lib.tensors import single
from ood_lib.training.augment import Augment
from ood_lib.training.loop import History, Task, logits_of, split_batch
from ood_lib.training.loop import train as run
from ood_lib.warn import warn

__all__ = ["accuracy", "mean_average_precision", "train_classifier", "train_multilabel"]


@torch.inference_mode(False)
@torch.enable_grad()
def train_classifier(
    network: nn.Module,
    train: Dataset,
    *,
    val: Dataset | None = None,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    average: float = 0.0,
    augment: Augment | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    autocast: torch.dtype | Literal["auto"] | None = None,
    channels_last: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train by cross-entropy: SGD with Nesterov momentum and one learning-rate cycle.

    The same seed on the same kind of device trains the same network, whether it was interrupted or not.

    Args:
        network: images (N, channels, H, W) -> logits (N, C); changed in place, left in eval mode.
        train: items (image, class index).
        val: measured after each epoch.
        epochs, batch_size, learning_rate, weight_decay: the recipe; the rate peaks at ``learning_rate``.
        average: decay of an exponential moving average of the weights, with which the network is left; 0 = the last.
        augment: changes a batch of images, given a seeded generator, see `ood_lib.training.augment`.
        seed: of the order of the images and the augmentation.
        device: where to train.
        autocast: compute in this precision where that is safe, such as bfloat16; ``"auto"`` takes that where the
            device is faster in it, see `half_precision`.
        channels_last: the channel as the last index in memory, which convolutions in half precision like; where that
            is unsafe the usual layout, see `memory_format`.
        checkpoint: a file written after each epoch, from which the next call goes on; deleted at the end.  It knows
            its training by recipe, network and a few of the items, so let ``augment`` change images, not the data set.
        progress: show a bar.

    Raises:
        ValueError: an argument out of its range; an empty data set; labels that are no class indices (N,), or outside
            the network's classes; a network of a single logit; a loss that is no longer finite; a checkpoint of another
            training.
    """
    _check_recipe(epochs, batch_size, learning_rate, weight_decay, average, seed)
    where = pick_device(device)
    network.to(where)
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    precision = autocast_dtype(autocast, where)
    task = Task(
        _cross_entropy, accuracy, optimizer, epochs, batch_size, average, augment, seed, precision,
        channels_last,
    )  # fmt: skip
    return run(network, train, val, task, checkpoint, progress)


def _check_recipe(
    epochs: int, batch_size: int, learning_rate: float, weight_decay: float, average: float, seed: int
) -> None:
    check("integer [1, inf)", epochs=epochs, batch_size=batch_size)
    check("(0, inf)", "the peak of the cycle", learning_rate=learning_rate)
    check("[0, inf)", weight_decay=weight_decay)
    check("[0, 1)", "the decay of a moving average (0: none)", average=average)
    check("integer (-inf, inf)", seed=seed)


@torch.inference_mode(False)
@torch.enable_grad()
def train_multilabel(
    network: nn.Module,
    train: Dataset,
    *,
    val: Dataset | None = None,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    backbone_rate: float | None = None,
    weight_decay: float = 0.0,
    average: float = 0.0,
    augment: Augment | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    autocast: torch.dtype | Literal["auto"] | None = None,
    channels_last: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train by the mean of one binary cross-entropy per label: Adam and one learning-rate cycle.

    Warns of a class that no training image carries.

    Args:
        network: images (N, channels, H, W) -> logits (N, C), with its last layer under ``head``; changed in place, left
            in eval mode.  It is put back into training mode at the start of every epoch.
        train: items (image, labels (C,) of 0/1); images without any label are welcome.
        val: its mAP is measured after each epoch.
        learning_rate: peak of the cycle, of the head.
        backbone_rate: that of all other layers; None = the same.  (JointEnergy and SNoJoE: a tenth, on a pretrained
            backbone.)
        epochs, batch_size, weight_decay, average, augment, seed, device, autocast, channels_last, checkpoint, progress:
            as in `train_classifier`.

    Raises:
        ValueError: an argument out of its range; an empty data set; labels that are not 0/1 for each logit; a loss that
            is no longer finite.
    """
    _check_recipe(epochs, batch_size, learning_rate, weight_decay, average, seed)
    check("[0, inf) or None", "the learning rate of all layers but the head", backbone_rate=backbone_rate)
    labels = getattr(train, "labels", None)
    if isinstance(labels, Tensor) and labels.ndim == 2 and (absent := count_labels(labels).absent):
        warn(f"no training image carries the classes {absent}: their logits can learn nothing but absence")
    where = pick_device(device)
    network.to(where)
    rates = _two_rates(network, learning_rate, backbone_rate)
    optimizer = torch.optim.Adam(rates, weight_decay=weight_decay, fused=where.type in ("cpu", "cuda"))
    precision = autocast_dtype(autocast, where)
    task = Task(
        _binary_cross_entropy, mean_average_precision, optimizer, epochs, batch_size, average, augment, seed, precision,
        channels_last,
    )  # fmt: skip
    return run(network, train, val, task, checkpoint, progress)


def _two_rates(network: nn.Module, head: float, backbone: float | None) -> list[dict[str, Any]]:
    if backbone is None:
        return [{"params": list(network.parameters()), "lr": head}]
    own = list(network.get_submodule("head").parameters())
    rest = [p for p in network.parameters() if all(p is not q for q in own)]
    return [{"params": own, "lr": head}, {"params": rest, "lr": backbone}]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, _class_labels(labels, logits).to(logits.device))


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    labels = label_matrix(labels, *logits.shape)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))


def _class_labels(labels: Any, logits: Tensor) -> Tensor:
    """Class indices (N,) for logits (N, C) of two classes at least."""
    if logits.shape[1] < 2:
        raise ValueError(
            "the network has a single logit, whose softmax is always 1; expected one for each class, or labels (N, 1) "
            "of 0/1 and train_multilabel"
        )
    return class_indices(labels, *logits.shape)


def _evaluated(
    network: nn.Module, dataset: Dataset, batch_size: int, where: torch.device
) -> Iterator[tuple[Tensor, Any]]:
    """Finite logits (n, C) on the CPU, in single precision at least, and labels as they come, batch by batch."""
    network.to(where).eval()
    for batch in DataLoader(dataset, batch_size, collate_fn=collate_items):
        images, labels = split_batch(batch)
        logits = single(logits_of(network, images, where)).cpu()
        if bad := int((~logits.isfinite()).any(1).sum()):
            raise ValueError(
                f"the network gives logits that are NaN or infinite for {bad} of {len(logits)} images: it diverged, "
                "or overflows in its precision"
            )
        yield logits, labels


@torch.inference_mode()
def accuracy(
    network: nn.Module, dataset: Dataset, *, batch_size: int = 512, device: str | torch.device = "auto"
) -> float:
    """Share of images whose largest logit is the true class, in [0, 1]; the network is put into eval mode.

    Raises:
        ValueError: the data set is empty; labels that are no class indices of the network; logits that are NaN or
            infinite, or a single one.
    """
    rows = length(dataset, "to measure the accuracy on")
    pairs = _evaluated(network, dataset, batch_size, pick_device(device))
    hits = sum(int((logits.argmax(1) == _class_labels(labels, logits)).sum()) for logits, labels in pairs)
    return hits / rows


@torch.inference_mode()
def mean_average_precision(
    network: nn.Module, dataset: Dataset, *, batch_size: int = 512, device: str | torch.device = "auto"
) -> float:
    """mAP in [0, 1], see `ood_lib.data.labels.average_precision`; the network is put into eval mode.

    Args:
        network: images -> logits (N, C).
        dataset: items (image, labels (C,) of 0/1).
        batch_size: images at once.
        device: where to compute.

    Raises:
        ValueError: the data set is empty; its labels are not 0/1 for each logit; logits that are NaN or infinite.
    """
    length(dataset, "to measure the mAP on")
    pairs = [
        (logits, label_matrix(labels, *logits.shape))
        for logits, labels in _evaluated(network, dataset, batch_size, pick_device(device))
    ]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs))
    return float(average_precision(logits, labels).nanmean())

"""The training loop there is: for one label per image by cross-entropy, for several by binary cross-entropies."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ood_lib.labels import average_precision, count_labels, label_matrix
from ood_lib.networks import pick_device

__all__ = [
    "History", "accuracy", "check_loss", "mean_average_precision", "shift", "train_classifier", "train_multilabel",
]  # fmt: skip


@dataclass
class History:
    """What a training run leaves to look at."""

    loss: list[float] = field(default_factory=list)  # per update
    learning_rate: list[float] = field(default_factory=list)  # per update
    accuracy: list[float] = field(default_factory=list)  # per epoch, on the validation set; of many labels the mAP


def shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``pad`` pixels in both directions, zeros flow in; (N, C, H, W) to the same shape."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4)
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=images.device)  # (N, W)
    picked = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


def train_classifier(
    network: nn.Module,
    train: Dataset,
    *,
    val: Dataset | None = None,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> History:
    """Train by cross-entropy: SGD with Nesterov momentum and one learning-rate cycle.

    Args:
        network: images (N, channels, H, W) -> logits (N, C); changed in place, left in eval mode.
        train: items (image, class index).
        val: measured after each epoch.
        epochs, batch_size, learning_rate, weight_decay: the recipe; the rate peaks at ``learning_rate``.
        augment: changes a batch of images, given a seeded generator.
        seed: of the order of the images and the augmentation.
        device: where to train.
        progress: show a bar.

    Raises:
        ValueError: an empty data set, labels outside the network's classes, or a loss that is no longer finite.
    """
    where = pick_device(device)
    network.to(where)
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    task = _Task(_cross_entropy, accuracy, optimizer, augment)
    return _train(network, train, val, task, epochs, batch_size, seed, progress)


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
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
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
        epochs, batch_size, weight_decay, augment, seed, device, progress: as in `train_classifier`.

    Raises:
        ValueError: an empty data set, labels that are not 0/1 for each logit, or a loss that is no longer finite.
    """
    _warn_of_absent_classes(train)
    where = pick_device(device)
    network.to(where)
    optimizer = torch.optim.Adam(_two_rates(network, learning_rate, backbone_rate), weight_decay=weight_decay)
    task = _Task(_binary_cross_entropy, mean_average_precision, optimizer, augment)
    return _train(network, train, val, task, epochs, batch_size, seed, progress)


def _two_rates(network: nn.Module, head: float, backbone: float | None) -> list[dict[str, Any]]:
    if backbone is None:
        return [{"params": list(network.parameters()), "lr": head}]
    own = list(network.head.parameters())  # type: ignore[union-attr]
    rest = [p for p in network.parameters() if all(p is not q for q in own)]
    return [{"params": own, "lr": head}, {"params": rest, "lr": backbone}]


def _warn_of_absent_classes(train: Dataset) -> None:
    labels = getattr(train, "labels", None)
    if isinstance(labels, Tensor) and labels.ndim == 2 and (absent := count_labels(labels).absent):
        warnings.warn(
            f"no training image carries the classes {absent}: their logits can learn nothing but absence", stacklevel=3
        )


class _Task(NamedTuple):
    """What tells one training from another."""

    loss: Callable[[Tensor, Tensor], Tensor]  # logits (N, C) and labels, as the data set gives them
    measure: Callable[..., float]  # network, validation set -> [0, 1]
    optimizer: torch.optim.Optimizer
    augment: Callable[[Tensor, torch.Generator], Tensor] | None


def _train(
    network: nn.Module, train: Dataset, val: Dataset | None, task: _Task, epochs: int, batch_size: int, seed: int,
    progress: bool,
) -> History:  # fmt: skip
    if len(train) == 0:  # type: ignore[arg-type]
        raise ValueError("the training set is empty: expected at least one (image, label) item")
    history, where = History(), next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(train, batch_size, shuffle=True, generator=generator)
    peaks = [group["lr"] for group in task.optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(task.optimizer, peaks, epochs * len(loader))
    with tqdm(total=epochs, unit="epoch", desc="training", disable=not progress, leave=False) as bar:
        for _ in range(epochs):
            network.train()
            for images, labels in loader:
                images = images if task.augment is None else task.augment(images, generator)
                loss = task.loss(network(images.to(where)), labels)
                check_loss(loss, peaks[0])
                task.optimizer.zero_grad()
                loss.backward()
                task.optimizer.step()
                history.loss.append(loss.item())
                history.learning_rate.append(float(schedule.get_last_lr()[0]))
                schedule.step()
            network.eval()
            if val is not None:
                history.accuracy.append(task.measure(network, val, device=where))
            bar.update()
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
    return history


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    _check_labels(labels, logits.shape[1])
    return F.cross_entropy(logits, labels.to(logits.device))


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    labels = label_matrix(labels, *logits.shape)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the network knows the classes 0 to {classes - 1}: "
            "number the classes from 0, or give the network more outputs"
        )


def check_loss(loss: Tensor, learning_rate: float) -> None:
    """Raise ValueError when training has diverged: the loss is NaN or infinite."""
    if not loss.isfinite():
        raise ValueError(f"the loss became {loss.item()}: try a learning_rate below {learning_rate}")


@torch.inference_mode()
def accuracy(
    network: nn.Module, dataset: Dataset, *, batch_size: int = 512, device: str | torch.device = "auto"
) -> float:
    """Share of images whose largest logit is the true class, in [0, 1]; the network is put into eval mode.

    Raises:
        ValueError: the data set is empty.
    """
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("the data set is empty: expected at least one (image, label) item to measure the accuracy on")
    where = pick_device(device)
    network.to(where).eval()
    hits = [(network(x.to(where)).argmax(1).cpu() == y).sum() for x, y in DataLoader(dataset, batch_size)]
    return float(sum(hits)) / len(dataset)  # type: ignore[arg-type]


@torch.inference_mode()
def mean_average_precision(
    network: nn.Module, dataset: Dataset, *, batch_size: int = 512, device: str | torch.device = "auto"
) -> float:
    """mAP in [0, 1], see `ood_lib.labels.average_precision`; the network is put into eval mode.

    Args:
        network: images -> logits (N, C).
        dataset: items (image, labels (C,) of 0/1).
        batch_size: images at once.
        device: where to compute.

    Raises:
        ValueError: the data set is empty, or its labels are not 0/1 for each logit.
    """
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("the data set is empty: expected at least one (image, labels) item to measure the mAP on")
    where = pick_device(device)
    network.to(where).eval()
    pairs = [(network(x.to(where)).cpu(), y) for x, y in DataLoader(dataset, batch_size)]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs))
    return float(average_precision(logits, labels).nanmean())

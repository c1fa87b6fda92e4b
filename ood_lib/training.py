"""The training loops there are: a classifier by cross-entropy."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ood_lib.networks import pick_device

__all__ = ["History", "accuracy", "check_loss", "shift", "train_classifier"]


@dataclass
class History:
    """What a training run leaves to look at."""

    loss: list[float] = field(default_factory=list)  # per update
    learning_rate: list[float] = field(default_factory=list)  # per update
    accuracy: list[float] = field(default_factory=list)  # per epoch, on the validation set


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
    if len(train) == 0:  # type: ignore[arg-type]
        raise ValueError("the training set is empty: expected at least one (image, label) item")
    where, history = pick_device(device), History()
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(train, batch_size, shuffle=True, generator=generator)
    network.to(where)
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(loader))
    with tqdm(total=epochs, unit="epoch", desc="training", disable=not progress, leave=False) as bar:
        for _ in range(epochs):
            network.train()
            for images, labels in loader:
                images = images if augment is None else augment(images, generator)
                logits = network(images.to(where))
                _check_labels(labels, logits.shape[1])
                loss = F.cross_entropy(logits, labels.to(where))
                check_loss(loss, learning_rate)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history.loss.append(loss.item())
                history.learning_rate.append(float(schedule.get_last_lr()[0]))
                schedule.step()
            network.eval()
            if val is not None:
                history.accuracy.append(accuracy(network, val, device=where))
            bar.update()
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
    return history


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

"""The training loop there is: epochs of updates with one learning-rate cycle, averaged weights, and a way to go on."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ood_lib.data.fingerprint import dataset_hash
from ood_lib.training.augment import Augment, Augmented
from ood_lib.training.checkpoint import Checkpoint

__all__ = ["History", "Task", "check_loss", "ema", "train"]

SAMPLE = 64  # items by which a checkpoint knows its data set again


@dataclass
class History:
    """What a training run leaves to look at."""

    loss: list[float] = field(default_factory=list)  # per update
    learning_rate: list[float] = field(default_factory=list)  # per update
    accuracy: list[float] = field(default_factory=list)  # per epoch, on the validation set; of many labels the mAP


class _Average(AveragedModel):
    """Keeps up with buffers whose shape a layer learns from its first input, as spectral normalisation does."""

    def update_parameters(self, model: nn.Module) -> None:
        for mean, value in zip(self.module.buffers(), model.buffers()):
            if mean.shape != value.shape:
                mean.resize_(value.shape).copy_(value)
        super().update_parameters(model)


def ema(network: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of all weights, begun with a short memory: (1 + t) / (10 + t) up to ``decay``."""

    def average(means: Any, values: Any, t: Tensor | int) -> None:
        share = 1 - min(decay, (1 + float(t)) / (10 + float(t)))
        for mean, value in zip(means, values):
            mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)  # BatchNorm counts its batches

    return _Average(network, multi_avg_fn=average, use_buffers=True)


def check_loss(loss: Tensor, learning_rate: float) -> None:
    """Raise ValueError when training has diverged: the loss is NaN or infinite."""
    if not loss.isfinite():
        raise ValueError(f"the loss became {loss.item()}: try a learning_rate below {learning_rate}")


class Task(NamedTuple):
    """What tells one training from another."""

    loss: Callable[[Tensor, Tensor], Tensor]  # logits (N, C) and labels, as the data set gives them
    measure: Callable[..., float]  # network, validation set -> [0, 1]
    optimizer: torch.optim.Optimizer
    augment: Augment | None
    average: float
    autocast: torch.dtype | None
    channels_last: bool

    def options(self) -> dict[str, Any]:
        """What must not change between an interruption and the rest."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        change = self.augment if isinstance(self.augment, Augmented) else ""  # what a function does nobody can tell
        own = {"loss": self.loss.__name__, "groups": groups, "average": self.average, "autocast": str(self.autocast)}
        return own | {"augment": str(change)}


def _layout(task: Task) -> torch.memory_format:
    """How images and weights lie in memory, however the augmentation left them."""
    return torch.channels_last if task.channels_last else torch.contiguous_format


def _key(network: nn.Module, data: Dataset, task: Task, *numbers: int) -> str:
    """Tells this training from others: what it does, to which parameters, on what data."""
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    return f"{task.options()}{numbers}{shapes}{_sample_hash(data)}"


def _sample_hash(data: Dataset) -> str:
    """Of a few items, evenly spread, so that it costs the same for any data set."""
    unnamed = Subset(data, range(len(data)))  # type: ignore[arg-type]  # without a `fingerprint`, which may read all
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for items that are changed at random
        return dataset_hash(unnamed, SAMPLE)


class _Run:
    """A training under way, which an interruption may end after any epoch."""

    def __init__(self, network: nn.Module, task: Task, loader: DataLoader, epochs: int) -> None:
        self.network, self.task, self.loader, self.history = network, task, loader, History()
        self.peaks = [group["lr"] for group in task.optimizer.param_groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(task.optimizer, self.peaks, epochs * len(loader))
        self.mean = ema(network, task.average) if task.average else None
        self.generator: torch.Generator = loader.generator  # of the order, and of the augmentation
        self.where = next(network.parameters()).device
        self.layout = _layout(task)

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.history.loss) // len(self.loader)

    @property
    def result(self) -> nn.Module:
        """The network as it would be left now."""
        return self.network if self.mean is None else self.mean.module

    def epoch(self) -> None:
        """See each image once."""
        self.network.train()
        for images, labels in self.loader:
            images = self.task.augment(images, self.generator) if self.task.augment else images
            self.update(images.to(self.where, memory_format=self.layout), labels)

    def update(self, images: Tensor, labels: Tensor) -> None:
        """One step downhill."""
        with torch.autocast(self.where.type, self.task.autocast, enabled=self.task.autocast is not None):
            logits = self.network(images)
        loss = self.task.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
        check_loss(loss, self.peaks[0])
        self.task.optimizer.zero_grad()
        loss.backward()
        self.task.optimizer.step()
        self.history.loss.append(loss.item())
        self.history.learning_rate.append(float(self.schedule.get_last_lr()[0]))
        self.schedule.step()
        if self.mean is not None:
            self.mean.update_parameters(self.network)

    def parts(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.task.optimizer, "schedule": self.schedule}
        return parts if self.mean is None else parts | {"mean": self.mean}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        own = {"generator": self.generator.get_state(), "history": asdict(self.history)}
        return own | {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.generator.set_state(state["generator"].cpu())
        self.history = History(**state["history"])
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def train(
    network: nn.Module, data: Dataset, val: Dataset | None, task: Task, epochs: int, batch_size: int, seed: int,
    checkpoint: str | os.PathLike[str] | None, progress: bool,
) -> History:  # fmt: skip
    """Change a network in place, see `ood_lib.train_classifier`.

    Raises:
        ValueError: an empty data set, a loss that is no longer finite, or a checkpoint of another training.
    """
    if len(data) == 0:  # type: ignore[arg-type]
        raise ValueError("the training set is empty: expected at least one (image, label) item")
    saved = None
    if checkpoint is not None:
        saved = Checkpoint(checkpoint, _key(network, data, task, epochs, batch_size, seed, len(data)))  # type: ignore[arg-type]
    network.to(memory_format=_layout(task))
    loader = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    run = _Run(network, task, loader, epochs)
    if saved:
        saved.load(run, run.where)
    left = {"initial": run.epochs, "leave": False, "disable": not progress}
    with tqdm(total=epochs, unit="epoch", desc="training", **left) as bar:
        while run.epochs < epochs:
            run.epoch()
            network.eval()
            if val is not None:
                run.history.accuracy.append(task.measure(run.result, val, device=run.where))
            if saved:
                saved.save(run)
            bar.update()
            bar.set_postfix(loss=f"{run.history.loss[-1]:.3f}")
    network.load_state_dict(run.result.state_dict())
    network.eval()
    if saved:
        saved.remove()
    return run.history

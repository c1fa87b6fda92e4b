"""The training loop: updates with one learning-rate cycle and averaged weights, epochs of them, and a way to go on."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ood_lib.data.fingerprint import collate_items, dataset_hash
from ood_lib.data.length import length
from ood_lib.networks.layout import memory_format
from ood_lib.training.augment import Augment, Augmented
from ood_lib.training.checkpoint import Checkpoint

__all__ = ["Descent", "History", "Task", "ema", "logits_of", "split_batch", "train"]

SAMPLE = 64  # items by which a checkpoint knows a data set again all of which it would have to read


def split_batch(batch: Any) -> tuple[Tensor, Any]:
    """Images and labels of what a ``DataLoader`` gives.

    Raises:
        ValueError: the items of the data set are no pairs, or their images no floating-point tensors.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        raise ValueError(
            f"the data set gives items that become a {type(batch).__name__}{size}; expected pairs (image, label)"
        )
    images, labels = batch
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the data set gives images of type {kind}; expected floating-point tensors, pixels in [0, 1]")
    return images.detach(), labels


def logits_of(network: nn.Module, images: Tensor, where: torch.device, **form: Any) -> Tensor:
    """Logits (N, C) of images, which are given to the network in the precision of its weights.

    Raises:
        ValueError: the network returns something else.
    """
    precision = next((p.dtype for p in network.parameters() if p.is_floating_point()), images.dtype)
    logits = network(images.to(where, precision, **form))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"of {len(images)} images the network makes {found}; expected logits ({len(images)}, C) alone")
    return logits


@dataclass
class History:
    """What a training run leaves to look at."""

    loss: list[float] = field(default_factory=list)  # per update
    learning_rate: list[float] = field(default_factory=list)  # per update
    accuracy: list[float] = field(default_factory=list)  # per epoch, on the validation set; of many labels the mAP
    recalled: bool = field(default=False, compare=False)  # from an earlier training of the same, see `trained`


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


class Descent:
    """Updates of a network: an optimizer, one cycle of its learning rates, and the average of the weights.

    Args:
        network: changed in place.
        optimizer: of its parameters; its learning rates are the peaks of the cycle.
        updates: how many there will be.
        average: decay of the average over the weights, see `ema`; 0 = the last weights alone.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, updates: int, average: float) -> None:
        self.network, self.optimizer, self.history = network, optimizer, History()
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.peaks, updates)
        self.mean = ema(network, average) if average else None

    @property
    def result(self) -> nn.Module:
        """The network as it would be left now."""
        return self.network if self.mean is None else self.mean.module

    def step(self, loss: Tensor, unit: float = 1.0) -> None:
        """One update downhill; the history notes the loss in this unit.

        Raises:
            ValueError: the loss is NaN or infinite: training has diverged.
        """
        if not loss.isfinite():
            raise ValueError(f"the loss became {loss.item()}: try a learning_rate below {self.peaks[0]}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.history.loss.append(loss.item() / unit)
        self.history.learning_rate.append(float(self.schedule.get_last_lr()[0]))
        self.schedule.step()
        if self.mean is not None:
            self.mean.update_parameters(self.network)

    def finish(self) -> History:
        """Leave the network in eval mode, with the average of its weights if there is one."""
        self.network.load_state_dict(self.result.state_dict())
        self.network.eval()
        return self.history

    def _parts(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts if self.mean is None else parts | {"mean": self.mean}

    def state_dict(self) -> dict[str, Any]:
        """All that the updates to come depend on."""
        return {"history": asdict(self.history)} | {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.history = History(**state["history"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


class Task(NamedTuple):
    """What is to be trained, and how: all that tells one training from another but the network and the data."""

    loss: Callable[[Tensor, Tensor], Tensor]  # logits (N, C) and labels, as the data set gives them
    measure: Callable[..., float]  # network, validation set -> [0, 1]
    optimizer: torch.optim.Optimizer
    epochs: int
    batch_size: int
    average: float
    augment: Augment | None
    seed: int
    autocast: torch.dtype | None
    channels_last: bool

    def options(self) -> dict[str, Any]:
        """What must not change between an interruption and the rest."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        change = self.augment if isinstance(self.augment, Augmented) else ""  # what a function does nobody can tell
        own = {"loss": self.loss.__name__, "groups": groups, "average": self.average, "autocast": str(self.autocast)}
        return own | {"augment": str(change), "epochs": self.epochs, "batch_size": self.batch_size, "seed": self.seed}


def _key(network: nn.Module, data: Dataset, task: Task) -> str:
    """Tells this training from others: what it does, to which parameters, on what data."""
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    return f"{task.options()}{length(data, 'to train on')}{shapes}{_data_hash(data)}"


def _data_hash(data: Dataset) -> str:
    """Of all items where that is cheap, else of a few, evenly spread, so that it costs the same for any data set."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for items that are changed at random
        return dataset_hash(data, SAMPLE)


class _Run(Descent):
    """A training under way, which an interruption may end after any epoch."""

    def __init__(self, network: nn.Module, task: Task, data: Dataset) -> None:
        self.task, self.generator = task, torch.Generator().manual_seed(task.seed)  # of the order and the augmentation
        self.loader = DataLoader(
            data, task.batch_size, shuffle=True, generator=self.generator, collate_fn=collate_items
        )
        self.where = next(network.parameters()).device
        self.layout = memory_format(network, task.channels_last, self.where)  # however the augmentation leaves images
        network.to(memory_format=self.layout)
        super().__init__(network, task.optimizer, task.epochs * len(self.loader), task.average)

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.history.loss) // len(self.loader)

    def epoch(self) -> None:
        """See each image once."""
        self.network.train()
        for batch in self.loader:
            images, labels = split_batch(batch)
            images = self.task.augment(images, self.generator) if self.task.augment else images
            with torch.autocast(self.where.type, self.task.autocast, enabled=self.task.autocast is not None):
                logits = logits_of(self.network, images, self.where, memory_format=self.layout)
            self.step(self.task.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels))

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.generator.set_state(state["generator"].cpu())


def train(
    network: nn.Module, data: Dataset, val: Dataset | None, task: Task,
    checkpoint: str | os.PathLike[str] | None, progress: bool,
) -> History:  # fmt: skip
    """Change a network in place, see `ood_lib.train_classifier`.

    Raises:
        ValueError: an empty data set, one of other items than (image, label), a loss that is no longer finite, or a
            checkpoint of another training.
    """
    length(data, "to train on")
    saved = Checkpoint(checkpoint, _key(network, data, task)) if checkpoint is not None else None
    run = _Run(network, task, data)
    if saved:
        saved.load(run, run.where)
    left = {"initial": run.epochs, "leave": False, "disable": not progress}
    with tqdm(total=task.epochs, unit="epoch", desc="training", **left) as bar:
        while run.epochs < task.epochs:
            run.epoch()
            network.eval()
            if val is not None:
                run.history.accuracy.append(task.measure(run.result, val, device=run.where))
            if saved:
                saved.save(run)
            bar.update()
            bar.set_postfix(loss=f"{run.history.loss[-1]:.3f}")
    run.finish()
    if saved:
        saved.remove()
    return run.history

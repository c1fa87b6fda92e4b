"""Maximum likelihood for a normalizing flow: an Adam that reads features from where they lie, and can stop anywhere.

The batch of update n depends on the seed and n alone. So an interrupted training resumes exactly where it stopped, and
the same seed gives the same batches on every device. The update that is kept is chosen by the likelihood of held-out
rows, without OOD data.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ood_lib.detectors.flow.flow import Flow
from ood_lib.networks.precision import autocast_dtype
from ood_lib.tensors import directions
from ood_lib.training.checkpoint import Checkpoint

__all__ = ["FlowHistory", "FlowTraining"]


@dataclass
class FlowHistory:
    """What a training leaves to look at: one entry per look at the held-out rows, in nats per feature vector."""

    update: list[int] = field(default_factory=list)  # how many updates had been made
    train: list[float] = field(default_factory=list)  # mean log-density of the batches since the last look
    val: list[float] = field(default_factory=list)  # mean log-density of the held-out rows; without any, as `train`


class FlowTraining:
    """Fit a density to features by Adam, in batches; keep the update at which held-out rows are likeliest.

    Args:
        flow: answers ``log_prob(x, labels)``; trained in place, on its device and in its precision.
        z: features (N, K), perhaps memory-mapped: only the rows of one batch are read at a time.
        labels: (N,), for a base with classes.
        rows: indices of the rows to train on; None = all.
        held: indices of the rows to look at; None = none, and the last update is kept.
        batch_size: at most as many as there are rows.
        learning_rate: of Adam.
        noise: standard deviation of the Gaussian noise that each batch gets anew.
        normalize: divide each feature by its length first.
        autocast: nets in bfloat16, volumes in full precision; ``"auto"``: where that is faster, see `half_precision`.
        seed: of order and noise.

    Raises:
        ValueError: no rows.

    Example:
        >>> from ood_lib.detectors.flow.flow import coupling_flow
        >>> ring = torch.nn.functional.normalize(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
        >>> training = FlowTraining(coupling_flow(2, rotate=False), ring, noise=0.1)
        >>> training.run(100) < training.run(100)  # it learns
        True
    """

    def __init__(
        self, flow: nn.Module, z: Tensor, labels: Tensor | None = None, *, rows: Tensor | None = None,
        held: Tensor | None = None, batch_size: int = 250, learning_rate: float = 1e-3, noise: float = 0.0,
        normalize: bool = False, autocast: bool | Literal["auto"] = False, seed: int = 0,
    ) -> None:  # fmt: skip
        self.flow: Any = flow
        self.z, self.labels = z, labels
        self.rows = torch.arange(len(z), device="cpu") if rows is None else rows
        self.held = self.rows[:0] if held is None else held
        if len(self.rows) == 0:
            raise ValueError("no rows are left to train on: give more features, or hold out fewer")
        self.batch_size, self.noise, self.normalize = min(batch_size, len(self.rows)), noise, normalize
        self.seed, self.update, self.history = seed, 0, FlowHistory()
        self.like = next(flow.parameters()).detach()
        self.autocast = autocast_dtype(autocast, self.like.device)
        fused = self.like.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(flow.parameters(), learning_rate, fused=fused)
        self.best: dict[str, Tensor] = {}  # state of the flow at the best look
        self._order = (-1, self.rows)

    # -- data -------------------------------------------------------------------------------------------------

    def batch(self, update: int) -> tuple[Tensor, Tensor | None]:
        """The batch of an update: each epoch in an order of its own, an incomplete batch at its end left out."""
        epoch, at = divmod(update, len(self.rows) // self.batch_size)
        if self._order[0] != epoch:
            order = torch.randperm(len(self.rows), generator=self._generator("order", epoch), device="cpu")
            self._order = (epoch, self.rows[order])
        return self.read(self._order[1][at * self.batch_size :][: self.batch_size], "batch", update)

    def read(self, rows: Tensor, use: str, index: int) -> tuple[Tensor, Tensor | None]:
        """Some rows as the flow sees them, and their labels; the same use and index bring the same noise."""
        z = self.z[rows].to(self.like)
        z = directions(z) if self.normalize else z
        if self.noise:
            z = z + self.noise * torch.randn(
                z.shape, generator=self._generator(use, index), dtype=torch.float32, device="cpu"
            ).to(z)
        return z, None if self.labels is None else self.labels[rows].to(z.device)

    def _generator(self, use: str, index: int) -> torch.Generator:
        key = (self.seed, ("order", "batch", "look").index(use), index)
        mixed = np.random.SeedSequence(key).generate_state(1)[0]  # torch reads 32 bits of a seed
        return torch.Generator().manual_seed(int(mixed))

    # -- learning ---------------------------------------------------------------------------------------------

    def run(self, updates: int) -> float:
        """Make some updates; the mean log-density of their batches, in nats.

        Raises:
            ValueError: it is no longer finite; the message names the layer.
        """
        self.flow.train().requires_grad_(True)
        seen = 0.0
        for _ in range(updates):
            z, labels = self.batch(self.update)
            with torch.enable_grad(), torch.autocast(z.device.type, self.autocast, enabled=bool(self.autocast)):
                loss = -self.flow.log_prob(z, labels).mean()
            if not math.isfinite(loss.item()):
                raise self._lost(z)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.update += 1
            seen -= loss.item() / updates
        return seen

    @torch.no_grad()
    def _lost(self, z: Tensor) -> ValueError:
        where = self.flow.first_overflow(z) if isinstance(self.flow, Flow) else type(self.flow).__name__
        rate = self.optimizer.param_groups[0]["lr"]
        return ValueError(
            f"the likelihood is no longer finite after {self.update} updates: it is lost in {where}; "
            f"learning_rate={rate:g} was given, a tenth of it, noise, or a clamp on the couplings helps"
        )

    @torch.no_grad()
    def log_prob(self, rows: Tensor) -> float:
        """Mean log-density of some rows, in nats, under the noise of training (the same each time)."""
        self.flow.eval()
        parts = (self.read(part, "look", i) for i, part in enumerate(rows.split(2048)))
        return sum(self.flow.log_prob(z, y).sum().item() for z, y in parts) / len(rows)

    def look(self, train: float | None = None) -> None:
        """Note the likelihoods, and the flow when it is the best so far; without ``train``, that of the first rows.

        Raises:
            ValueError: the first look finds no finite likelihood: there is nothing to improve on.
        """
        train = self.log_prob(self.rows[: self.batch_size]) if train is None else train
        value = self.log_prob(self.held) if len(self.held) else train
        if not self.best and not math.isfinite(train + value):
            raise ValueError(
                f"the likelihood is not finite at the start: the mean log-density is {train:g} of rows to train on and "
                f"{value:g} of those to look at; expected a flow that reaches all of them: widen it, or scale the rows"
            )
        if not len(self.held) or value > max(self.history.val, default=-math.inf):
            self.best = {name: tensor.clone() for name, tensor in self.flow.state_dict().items()}
        self.history.update.append(self.update)
        self.history.train.append(train)
        self.history.val.append(value)

    def stale(self) -> int:
        """Looks since the best one."""
        val = self.history.val
        return len(val) - 1 - max(range(len(val)), key=val.__getitem__) if len(self.held) else 0

    def fit(
        self, updates: int, check_every: int = 50, patience: int = 10, checkpoint: Checkpoint | None = None,
        each_look: Callable[[], object] = lambda: None,
    ) -> FlowHistory:  # fmt: skip
        """Train up to a number of updates in all, or until ``patience`` looks found nothing better; keep the best.

        With a checkpoint, go on from what it holds and save after every look.  When a run fails, the best flow so far
        is kept all the same.  ``each_look`` is called after each look of this run, with the flow as it stands then.

        Raises:
            ValueError: a likelihood that is not finite, at the start or later; a checkpoint of another training.
        """
        if checkpoint is not None:
            checkpoint.load(self, self.like.device)
        if not self.history.update:
            self.look()
        try:
            each_look()
            while self.update < updates and self.stale() < patience:
                self.look(self.run(min(check_every, updates - self.update)))
                each_look()
                if checkpoint is not None:
                    checkpoint.save(self)
        finally:
            self.flow.load_state_dict(self.best)
        if checkpoint is not None:
            checkpoint.remove()
        return self.history

    # -- stopping and going on --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        parts = {"flow": self.flow.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
        return parts | {"update": self.update, "history": asdict(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.flow.load_state_dict(state["flow"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.update, self.history = state["best"], state["update"], FlowHistory(**state["history"])

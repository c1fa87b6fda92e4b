"""A file from which an interrupted training resumes: written whole or not at all, read without pickle."""

import os
from pathlib import Path
from typing import Any, Protocol

import torch

from ood_lib.files import atomic

__all__ = ["Checkpoint", "Resumable"]


class Resumable(Protocol):
    """A training that can say where it stands, and go on from there."""

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on: tensors, numbers, strings, lists and dicts of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


class Checkpoint:
    """The file of one training.

    Args:
        path: where it lies; folders are made.
        key: tells this training from others.

    Example:
        >>> import tempfile
        >>> net = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint = Checkpoint(Path(folder, "net.pt"), key="seed 0")
        ...     checkpoint.save(net)
        ...     checkpoint.load(net)
        True
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path, self.key = Path(path), key

    def save(self, training: Resumable) -> None:
        """Write the state of a training."""
        with atomic(self.path) as fresh, fresh.open("wb") as file:  # a path of its own, and torch hides a full disk
            torch.save({"state": training.state_dict(), "key": self.key}, file)

    def load(self, training: Resumable, device: torch.device | str = "cpu") -> bool:
        """Bring a training to the saved state, its tensors on `device`; False when there is none.

        Raises:
            ValueError: the file is of another training, or no checkpoint at all.
        """
        if not self.path.exists():
            return False
        try:
            saved = torch.load(self.path, map_location=device, weights_only=True)
            key, state = saved["key"], saved["state"]
        except Exception as error:
            raise ValueError(f"{self.path} is no checkpoint ({error}); delete it, or name another") from error
        if key != self.key:
            raise ValueError(f"{self.path} belongs to other data or options; delete it, or name another checkpoint")
        training.load_state_dict(state)
        return True

    def remove(self) -> None:
        """Delete the file: the training is over."""
        self.path.unlink(missing_ok=True)

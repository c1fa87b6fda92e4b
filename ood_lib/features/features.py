"""Features: what a frozen network knows of each image, computed once and kept.

Detectors never see images or networks, only this record.  It is made by one pass over the data, in batches, and can
rest on disk as a safetensors file (no pickle; read back memory-mapped).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ood_lib.features.sealed import map_tensors, seal, unsealed
from ood_lib.files import atomic
from ood_lib.tensors import save_tensors, single, why_not_dense

__all__ = ["Features"]


ABSENT: Any = None
"""A field that is not there.  All are typed as tensors: what a detector `reads` is checked there, once."""


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The representation of N images, row by row in the order of their data set.

    Args:
        penultimate: (N, K) input of the network's head, or None.
        logits: (N, C), or None.
        labels: (N,) class indices, -1 for unknown classes; (N, C) of 0/1 for multi-label; or None.
        style: (N, K') standard deviation of the last feature map over space, or None.

    Raises:
        ValueError: the fields differ in length, or all of them are None.
    """

    penultimate: Tensor = ABSENT
    logits: Tensor = ABSENT
    labels: Tensor = ABSENT
    style: Tensor = ABSENT

    def __post_init__(self) -> None:
        for name, value in self.tensors().items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor with one row per image")
            if what := why_not_dense(value):
                raise ValueError(f"{name} is {what}; expected a dense tensor with one row per image")
            if name != "labels" and (value.ndim != 2 or not value.is_floating_point() or value.shape[1] == 0):
                raise ValueError(
                    f"{name} is {value.dtype} of shape {tuple(value.shape)}; expected floating-point numbers (N, width)"
                )
            if value.is_neg():  # a minus that torch has put off, and that some of its functions forget
                object.__setattr__(self, name, value.resolve_neg())
        lengths = {name: len(value) for name, value in self.tensors().items()}
        if not lengths:
            raise ValueError("Features needs at least one of penultimate, logits, labels, style")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the fields of Features must have one row per image, but their lengths are {lengths}")

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in pairs if value is not None}

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def __getitem__(self, rows: slice | Tensor) -> "Features":
        """Some of the rows: a slice, a boolean mask or a tensor of indices."""
        return Features(**{name: value[rows] for name, value in self.tensors().items()})

    def split(self, size: int) -> Iterator["Features"]:
        """Consecutive chunks of at most ``size`` rows (views, no copy)."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: str | torch.device) -> "Features":
        """The same features on another device."""
        tensors = self.tensors()
        if all(value.device == torch.device(device) for value in tensors.values()):
            return self
        return Features(**{name: value.to(device) for name, value in tensors.items()})

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={tuple(value.shape)}" for name, value in self.tensors().items())
        return f"Features({inner})"

    def single(self) -> "Features":
        """Half precision as single, other precisions as they are."""
        tensors = self.tensors()
        found = {name: single(x) for name, x in tensors.items()}
        return self if all(found[name] is x for name, x in tensors.items()) else Features(**found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        with atomic(path) as fresh:
            save_tensors(self.tensors(), fresh, unsealed(len(self), len(self)))
            seal(fresh)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Features":
        """What `save` or `extract` wrote, memory-mapped: rows are read when they are looked at.

        The file may be larger than the memory; a small one is read at once.  It does not change with the tensors.
        All bytes are verified by the sha256 that were written with them (files of earlier versions have none).

        Raises:
            FileNotFoundError: there is no such file, or it is still being made.
            ValueError: the file is truncated or damaged, or is no features file.
        """
        try:
            return cls(**map_tensors(Path(path)))
        except FileNotFoundError as error:
            if not (work := Path(f"{path}.partial")).is_dir():
                raise
            raise FileNotFoundError(f"{path} is not finished: call extract again, it goes on from {work}") from error
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is not a complete features file ({error}); delete it and extract again"
            ) from error

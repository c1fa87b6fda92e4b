"""Features: what a frozen network knows of each image, computed once and kept.

Detectors never see images or networks, only this record.  It is made by one pass over the data, in batches, and can
rest on disk as a safetensors file (no pickle; read back memory-mapped).
"""

import math
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ood_lib.bank import Bank, map_tensors
from ood_lib.distributed import Team, team
from ood_lib.forward import data_hash, forward, network_hash
from ood_lib.networks import Network, autocast_dtype, pick_device

__all__ = ["Features", "extract", "save_tensors"]

_BLOCKS = 1024  # of a bank at most: what a kill costs, and how evenly processes share
_SAMPLE = 64  # items by which a data set without a fingerprint is known again at a path of the reader's choice


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

    penultimate: Tensor = None  # type: ignore[assignment]
    logits: Tensor = None  # type: ignore[assignment]
    labels: Tensor = None  # type: ignore[assignment]
    style: Tensor = None  # type: ignore[assignment]

    # Typed as tensors although they may be None: a detector names what it `reads`, and is checked once, there.

    def __post_init__(self) -> None:
        for name, value in self.tensors().items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor with one row per image")
            if name != "labels" and (value.ndim != 2 or not value.is_floating_point()):
                raise ValueError(
                    f"{name} is {value.dtype} of shape {tuple(value.shape)}; expected floating-point numbers (N, width)"
                )
        lengths = {name: len(value) for name, value in self.tensors().items()}
        if not lengths:
            raise ValueError("Features needs at least one of penultimate, logits, labels, style")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the fields of Features must have one row per image, but their lengths are {lengths}")

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
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
        return Features(**{name: value.to(device) for name, value in self.tensors().items()})

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={tuple(value.shape)}" for name, value in self.tensors().items())
        return f"Features({inner})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        save_tensors(self.tensors(), Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Features":
        """What `save` or `extract` wrote, memory-mapped: rows are read when they are looked at.

        The file may be larger than the memory; a small one is read at once.  It does not change with the tensors.

        Raises:
            FileNotFoundError: there is no such file, or it is still being made.
            ValueError: the file is truncated or is no features file.
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


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, as `Features.save` does; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    fresh.touch(exist_ok=False)
    mode = fresh.stat().st_mode  # as the umask wants it: safetensors makes files that only the owner can read
    try:
        save_file(_apart(tensors), fresh)
        fresh.chmod(mode)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and each in memory of its own, as safetensors asks."""
    seen: set[int] = set()
    out = {}
    for name, value in tensors.items():
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        out[name] = value.clone() if place in seen else value
        seen.add(place)
    return out


def extract(
    network: Network | nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    num_workers: int = 0,
    progress: bool = True,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | Literal["auto"] | None = None,
    channels_last: bool = False,
    compile: bool = False,
) -> Features:
    """Run a frozen network once over a data set and keep what it computes.

    With ``out`` or ``cache`` the result is a file.  It is made block by block, so that a run that was killed is taken
    up again, and by all processes that ``torchrun`` starts (or an initialised process group holds) together: each calls
    this, runs the network over its share, and gets the whole.

    Args:
        network: answers ``represent`` (see `ood_lib.networks`); any other classifier goes through `adapt`.
        dataset: items (image (channels, H, W), label).
        batch_size: images in flight; the result does not depend on it.
        device: where the network runs; ``"auto"`` takes a GPU when there is one, each process of a machine its own.
        cache: folder that keeps the result under a name made from the network's weights and the data.
        out: path of the result, where you want to name it yourself.
        num_workers: processes that load images.
        progress: show a bar.
        dtype: store features in this precision, float16 for instance; None = as computed.
        autocast: run the network in this precision where that is safe, bfloat16 or float16; ``"auto"`` takes bfloat16
            where the device is faster in it, see `half_precision` (processes that share a file: where all of them are).
        channels_last: give images to the network with the channel as the last index in memory.
        compile: put the network through ``torch.compile``.

    Returns:
        Features on the CPU, row i belonging to ``dataset[i]``; memory-mapped when they are in a file.

    Raises:
        ValueError: the data set is empty, or has no labels; ``out`` holds features of another network or data set.
        OSError: the disk is full; what was made so far stays, and counts.
    """
    ranks, where = team(), pick_device(device)
    precision = _agreed(autocast, where, Team() if out is None and cache is None else ranks)
    _check(dataset, batch_size, (dtype, precision), out, cache)
    rows = len(dataset)  # type: ignore[arg-type]
    run = partial(
        forward,
        network,
        dataset,
        batch_size=batch_size,
        device=ranks.device(where),
        num_workers=num_workers,
        progress=progress and ranks.rank == 0,
        dtype=dtype,
        autocast=precision,
        channels_last=channels_last,
        compile=compile,
    )
    if out is None and cache is None:
        if ranks.size > 1:
            advice = "name a file with out= or a folder with cache=, and they share the work"
            warnings.warn(f"each of {ranks.size} processes looks at all {rows} images: {advice}", stacklevel=2)
        (found,) = run([range(rows)])
        return Features(**found)
    identity = {
        "network": network_hash(network),
        "data": data_hash(dataset, _SAMPLE if cache is None else None, num_workers),
        "precision": _precision(dtype, precision),
    }
    path = Path(cache) / _cached_name(**identity) if cache is not None else Path(str(out))
    block = batch_size * math.ceil(rows / batch_size / _BLOCKS)  # whole batches: the same ones for any number of ranks
    Bank(path, identity, rows, anonymous=out is None).fill(run, block, ranks)
    return Features.load(path)


def _check(dataset: Any, batch_size: int, precisions: Iterable[torch.dtype | None], *places: object) -> None:
    if isinstance(dataset, DataLoader | IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"a {type(dataset).__name__} was given; expected a data set with a length: of a DataLoader pass "
            "loader.dataset, and batch_size and num_workers to extract; put a stream into a list first"
        )
    if len(dataset) == 0:
        raise ValueError("the data set is empty: expected at least one (image, label) item to extract from")
    for given in precisions:
        if given is not None and not given.is_floating_point:
            raise ValueError(f"{given} was given as a precision; expected a floating-point one, such as torch.float16")
    if None not in places:
        raise ValueError("both out and cache were given; expected one place for the result")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} was given; expected a number of images, >= 1")


def _agreed(autocast: torch.dtype | Literal["auto"] | None, device: torch.device, ranks: Team) -> torch.dtype | None:
    """What to compute in; ``"auto"`` comes to the same in all processes, however their machines differ."""
    own = autocast_dtype(autocast, device)
    return own if autocast != "auto" or all(ranks.gather(own)) else None


def _precision(dtype: torch.dtype | None, autocast: torch.dtype | None) -> str:
    given = {"computed": autocast, "stored": dtype}
    return "-".join(f"{how}-{str(kind).removeprefix('torch.')}" for how, kind in given.items() if kind)


def _cached_name(network: str, data: str, precision: str) -> str:
    return "-".join(filter(None, (network[:16], data[:16], precision))) + ".safetensors"

"""Features: what a frozen network knows of each image, computed once and kept.

Detectors never see images or networks, only this record.  It is made by one pass over the data, in batches, and can
rest on disk as a safetensors file (no pickle; read back memory-mapped).
"""

import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from ood_lib.networks import Network, adapt, pick_device

__all__ = ["Features", "extract"]


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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode  # as the umask wants it: safetensors makes files that only the owner can read
        try:
            save_file(_apart(self.tensors()), partial)
            partial.chmod(mode)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Features":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is truncated or is no features file.
        """
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError) as error:
            raise ValueError(
                f"{path} is not a complete features file ({error}); delete it and extract again"
            ) from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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
    num_workers: int = 0,
    progress: bool = True,
) -> Features:
    """Run a frozen network once over a data set and keep what it computes.

    Args:
        network: answers ``represent`` (see `ood_lib.networks`); any other classifier goes through `adapt`.
        dataset: items (image (channels, H, W), label).
        batch_size: images in flight; the result does not depend on it.
        device: where the network runs; ``"auto"`` takes a GPU when there is one.
        cache: folder that keeps the result under a name made from the network's weights and the data.
        num_workers: processes that load images.
        progress: show a bar.

    Returns:
        Features on the CPU, row i belonging to ``dataset[i]``.

    Raises:
        ValueError: the data set is empty, or has no labels.
    """
    if isinstance(dataset, DataLoader) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"a {type(dataset).__name__} was given; expected a data set with a length: of a DataLoader pass "
            "loader.dataset, and batch_size and num_workers to extract"
        )
    if len(dataset) == 0:
        raise ValueError("the data set is empty: expected at least one (image, label) item to extract from")
    if cache is None:
        return _run(network, dataset, batch_size, device, num_workers, progress)
    path = Path(cache) / f"{_network_hash(network)[:16]}-{_data_hash(dataset)[:16]}.safetensors"
    if (kept := _load_or_warn(path)) is not None:
        return kept
    features = _run(network, dataset, batch_size, device, num_workers, progress)
    features.save(path)
    return features


def _load_or_warn(path: Path) -> Features | None:
    if not path.exists():
        return None
    try:
        return Features.load(path)
    except ValueError as error:
        warnings.warn(f"cached features are damaged and are made again: {error}", stacklevel=3)
        return None


@torch.no_grad()  # not inference_mode: its tensors could not be trained on
def _run(
    network: Any,
    dataset: Dataset,
    batch_size: int,
    device: str | torch.device,
    num_workers: int,
    progress: bool,
) -> Features:
    network = network if hasattr(network, "represent") else adapt(network)
    where = pick_device(device)
    modes = [(module, module.training) for module in network.modules()]  # each its own: a part may be frozen
    network.to(where).eval()
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_labelled)
    total = len(dataset)  # type: ignore[arg-type]
    rows: dict[str, Tensor] = {}  # filled in place: nothing is held twice
    start = 0
    try:
        with tqdm(total=total, unit="image", desc="features", disable=not progress, leave=False) as bar:
            for images, labels in loader:
                seen = network.represent(_floating(images).to(where, dtype))._asdict() | {"labels": labels}
                for name, value in seen.items():
                    if value is not None:
                        rows.setdefault(name, torch.empty(total, *value.shape[1:], dtype=value.dtype, device="cpu"))
                        rows[name][start : start + len(images)] = value
                start += len(images)
                bar.update(len(images))
    finally:
        for module, mode in modes:
            module.training = mode
    return Features(**rows)


def _labelled(items: list[Any]) -> Any:
    """The items of a batch together; without this check the images of a batch of two would pass for images, labels."""
    for item in items:
        parts = [type(part).__name__ for part in item] if isinstance(item, tuple | list) else []
        if len(parts) != 2 or item[1] is None:
            given = f"({', '.join(parts)})" if parts else type(item).__name__
            raise ValueError(
                f"the data set has no labels: an item is {given}; expected (image, label), with the label -1 where no "
                "class is known"
            )
    return default_collate(items)


def _floating(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"the data set yields images of {kind}; expected floating-point tensors (C, H, W) in [0, 1]")
    return images


def _network_hash(network: Any) -> str:
    digest = hashlib.sha256(str(network).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _data_hash(dataset: Dataset) -> str:
    """The data set's own fingerprint when it has one, otherwise a hash over all its items."""
    if fingerprint := getattr(dataset, "fingerprint", None):
        return fingerprint()
    digest = hashlib.sha256()
    for images, labels in DataLoader(dataset, 256, collate_fn=_labelled):
        for part in (images, torch.as_tensor(labels)):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

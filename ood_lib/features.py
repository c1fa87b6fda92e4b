"""Features: what a frozen network knows of each image, computed once and kept.

Detectors never see images or networks, only this record.  It is made by one pass over the data, in batches, and can
rest on disk as a safetensors file (no pickle; read back memory-mapped).
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
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
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as partial:
            pass
        try:
            save_file({name: value.contiguous() for name, value in self.tensors().items()}, partial.name)
            os.replace(partial.name, path)
        finally:
            Path(partial.name).unlink(missing_ok=True)

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
        ValueError: the data set is empty.
    """
    if len(dataset) == 0:  # type: ignore[arg-type]
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
    modes = [(module, module.training) for module in network.modules()]  # a wrapper's mode need not be its inside's
    network.to(where).eval()
    loader = DataLoader(dataset, batch_size, num_workers=num_workers)
    total = len(dataset)  # type: ignore[arg-type]
    rows: dict[str, Tensor] = {}  # filled in place: nothing is held twice
    start = 0
    try:
        with tqdm(total=total, unit="image", desc="features", disable=not progress, leave=False) as bar:
            for images, labels in loader:
                seen = network.represent(images.to(where))._asdict() | {"labels": labels}
                for name, value in seen.items():
                    if value is not None:
                        rows.setdefault(name, torch.empty(total, *value.shape[1:], dtype=value.dtype))
                        rows[name][start : start + len(images)] = value
                start += len(images)
                bar.update(len(images))
    finally:
        for module, mode in modes:
            module.training = mode
    return Features(**rows)


def _network_hash(network: Any) -> str:
    digest = hashlib.sha256(str(network).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _data_hash(dataset: Dataset) -> str:
    """The data set's own fingerprint when it has one, otherwise a hash over all its items."""
    if fingerprint := getattr(dataset, "fingerprint", None):
        return fingerprint()
    digest = hashlib.sha256()
    for images, labels in DataLoader(dataset, 256):
        digest.update(images.contiguous().numpy().tobytes() + torch.as_tensor(labels).numpy().tobytes())
    return digest.hexdigest()

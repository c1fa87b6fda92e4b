"""The forward pass: a frozen network sees every image of a data set once, in order, on whatever device there is."""

import hashlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from tqdm import tqdm

from ood_lib.networks import Representation, adapt

__all__ = ["data_hash", "forward", "network_hash"]

Seen = dict[str, Tensor]
T = TypeVar("T")


@torch.no_grad()  # not inference_mode: its tensors could not be trained on
def forward(
    network: Any,
    dataset: Dataset,
    blocks: Sequence[range],
    *,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    compile: bool = False,
) -> Generator[Seen, None, None]:
    """What a network computes for blocks of a data set, one block after the other: fields by name, on the CPU.

    Args:
        network: answers ``represent``, or goes through `adapt`; its modules are given back in the mode they were in.
        dataset: items (image (channels, H, W), label).
        blocks: rows to look at; no batch reaches over the end of a block.
        batch_size, device, num_workers, progress, dtype, autocast, channels_last, compile: see `extract`.

    Raises:
        ValueError: the data set has no labels, or its images are no floating-point tensors.
    """
    network = network if hasattr(network, "represent") else adapt(network)
    modes = [(module, module.training) for module in network.modules()]  # each its own: a part may be frozen
    network.to(device).eval()
    parameters = (p.dtype for p in network.parameters() if p.is_floating_point())
    how: dict[str, Any] = {
        "device": device,
        "dtype": next(parameters, torch.float32),
        "memory_format": torch.channels_last if channels_last else torch.preserve_format,
        "non_blocking": device.type == "cuda",
    }
    represent = _compiled(network.represent) if compile else network.represent
    loader = DataLoader(
        dataset,
        batch_sampler=_batches(blocks, batch_size),
        num_workers=num_workers,
        collate_fn=_labelled,
        pin_memory=device.type == "cuda",
    )

    def look(images: Tensor, labels: Tensor) -> Seen:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            seen = represent(_floating(images).to(**how))._asdict()
        kept = {name: value.to(dtype or value.dtype) for name, value in seen.items() if value is not None}
        return {**kept, "labels": labels}

    try:
        with tqdm(total=sum(map(len, blocks)), unit="image", desc="features", disable=not progress, leave=False) as bar:
            batches = _fetched((look(images, labels) for images, labels in loader), device)
            for block in blocks:
                yield _gathered(batches, len(block), bar)
    finally:
        for module, mode in modes:
            module.training = mode


def _batches(blocks: Iterable[range], size: int) -> Iterator[list[int]]:
    return (list(block[start : start + size]) for block in blocks for start in range(0, len(block), size))


def _gathered(batches: Iterator[Seen], total: int, bar: tqdm) -> Seen:
    """The batches of one block together, filled in place: nothing is held twice."""
    rows: Seen = {}
    start = 0
    while start < total:
        seen = next(batches)
        count = len(seen["labels"])
        for name, value in seen.items():
            rows.setdefault(name, torch.empty(total, *value.shape[1:], dtype=value.dtype, device="cpu"))
            rows[name][start : start + count] = value
        start += count
        bar.update(count)
    return rows


def _fetched(batches: Iterable[Seen], device: torch.device) -> Iterator[Seen]:
    """Batches on the CPU."""
    if device.type != "cuda":
        yield from ({name: value.to("cpu") for name, value in seen.items()} for seen in batches)
        return
    for sent, event in _late(_sent(seen, device) for seen in batches):
        event.synchronize()
        yield sent


def _sent(seen: Seen, device: torch.device) -> tuple[Seen, torch.cuda.Event]:
    """On its way to pinned memory, and what tells when it has arrived."""
    sent = {name: value.to("cpu", non_blocking=True) for name, value in seen.items()}
    return sent, torch.cuda.current_stream(device).record_event()


def _late(items: Iterable[T]) -> Iterator[T]:
    """Each item when the next one has been begun: a GPU computes while results travel."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def _compiled(represent: Callable[[Tensor], Representation]) -> Callable[[Tensor], Representation]:
    """Compiled where that works; where it does not, a warning says why, and the function runs as it is."""
    fast: Callable[[Tensor], Representation] = torch.compile(represent)

    def attempt(images: Tensor) -> Representation:
        nonlocal fast
        try:
            return fast(images)
        except Exception as error:  # each backend fails its own way
            if fast is represent:
                raise
            warnings.warn(f"torch.compile failed, the network runs uncompiled: {error}", stacklevel=2)
            fast = represent
            return represent(images)

    return attempt


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


def network_hash(network: Any) -> str:
    """sha256 of the architecture, as it is printed, and of all parameters and buffers."""
    digest = hashlib.sha256(str(network).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_hash(dataset: Dataset, items: int | None = None, num_workers: int = 0) -> str:
    """The data set's own ``fingerprint()`` when it has one, otherwise a sha256 over its items.

    Args:
        dataset: items (image, label).
        items: how many to look at, evenly spread; None = all.
        num_workers: processes that load images.
    """
    if fingerprint := getattr(dataset, "fingerprint", None):
        return fingerprint()
    digest = hashlib.sha256()
    if items is not None:
        rows = torch.linspace(0, len(dataset) - 1, items, dtype=torch.float64).long()  # type: ignore[arg-type]
        dataset = Subset(dataset, rows.unique().tolist())
    for images, labels in DataLoader(dataset, 256, num_workers=num_workers, collate_fn=_labelled):
        for part in (images, torch.as_tensor(labels)):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Features of a data set: a frozen network sees every image once, in order, on whatever device there is."""

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ood_lib.checks import check
from ood_lib.data.fingerprint import collate_labelled, data_identity
from ood_lib.data.length import length
from ood_lib.features.blocks import BlockFile
from ood_lib.features.distributed import Team, team
from ood_lib.features.features import Features
from ood_lib.features.identity import network_hash
from ood_lib.features.sealed import map_tensors
from ood_lib.files import UNWRITABLE
from ood_lib.networks.adapt import as_network
from ood_lib.networks.modes import in_eval
from ood_lib.networks.network import Network, Representation, pick_device
from ood_lib.networks.precision import autocast_dtype
from ood_lib.warn import warn

__all__ = ["Pass", "extract", "forward"]

_BLOCKS = 1024  # of a file at most: what a kill costs, and how evenly processes share


class Pass(NamedTuple):
    """How images go through a network: the options of `extract`, settled for one process."""

    batch_size: int
    device: torch.device
    num_workers: int
    progress: bool
    dtype: torch.dtype | None
    autocast: torch.dtype | None
    channels_last: bool
    compile: bool


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

    With ``out`` or ``cache`` the result is a file. It is computed block by block, so that a killed run can be resumed.
    All processes that ``torchrun`` starts (or an initialised process group contains) share the work: each calls this
    function, runs the network over its share, and gets the whole result.

    Args:
        network: answers ``represent`` (see `ood_lib.networks.resnet`); any other classifier goes through `adapt`.
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
        OSError: the folder of ``out`` cannot be written (with ``cache`` a warning says so, and nothing is kept); or the
            disk is full: what was made so far stays, and counts.
    """
    ranks, where = team(), pick_device(device)
    precision = _agreed(autocast, where, Team() if out is None and cache is None else ranks)
    rows = length(dataset, "to extract from")
    _check(batch_size, (dtype, precision), out, cache)
    bar = progress and ranks.rank == 0
    how = Pass(batch_size, ranks.device(where), num_workers, bar, dtype, precision, channels_last, compile)
    run = partial(forward, network, dataset, how)

    def at_once() -> Features:
        (found,) = run([range(rows)])
        return Features(**found)

    if out is None and cache is None:
        if ranks.size > 1:
            advice = "name a file with out= or a folder with cache=, and they share the work"
            warn(f"each of {ranks.size} processes looks at all {rows} images: {advice}")
        return at_once()
    data = data_identity(dataset, num_workers)
    image = _floating(collate_labelled([dataset[0]])[0])
    identity = {
        "network": network_hash(network, image.shape[1:]),
        "data": data.digest,
        "precision": _precision(dtype, precision),
    }
    path = Path(cache) / _cached_name(**identity) if cache is not None else Path(str(out))
    block = batch_size * math.ceil(rows / batch_size / _BLOCKS)  # whole batches: the same ones for any number of ranks
    kin = "" if cache is None else _cached_name(**{**identity, "data": "*"})
    file = BlockFile(path, identity, rows, anonymous=out is None, marks=data.marks, kin=kin)
    try:
        file.fill(run, block, ranks)
    except OSError as error:
        if cache is None or error.errno not in UNWRITABLE or not hasattr(error, "explained"):
            raise
        warn(f"the features are not kept, and are computed anew each time: {error}")
        return at_once()
    return Features(**map_tensors(path, verify=False))  # `fill` has just seen all of it


def _check(batch_size: int, precisions: Iterable[torch.dtype | None], *places: object) -> None:
    for given in precisions:
        if given is not None and not given.is_floating_point:
            raise ValueError(f"{given} was given as a precision; expected a floating-point one, such as torch.float16")
    if None not in places:
        raise ValueError("both out and cache were given; expected one place for the result")
    check("integer [1, inf)", "a number of images", batch_size=batch_size)


def _agreed(autocast: torch.dtype | Literal["auto"] | None, device: torch.device, ranks: Team) -> torch.dtype | None:
    """What to compute in; ``"auto"`` comes to the same in all processes, however their machines differ."""
    own = autocast_dtype(autocast, device)
    return own if autocast != "auto" or all(ranks.gather(own)) else None


def _precision(dtype: torch.dtype | None, autocast: torch.dtype | None) -> str:
    given = {"computed": autocast, "stored": dtype}
    return "-".join(f"{how}-{str(kind).removeprefix('torch.')}" for how, kind in given.items() if kind)


def _cached_name(network: str, data: str, precision: str) -> str:
    return "-".join(filter(None, (network[:16], data[:16], precision))) + ".safetensors"


Seen = dict[str, Tensor]
T = TypeVar("T")


@torch.no_grad()  # not inference_mode: its tensors could not be trained on
def forward(network: Any, dataset: Dataset, how: Pass, blocks: Sequence[range]) -> Generator[Seen, None, None]:
    """What a network computes for blocks of a data set, one block after the other: fields by name, on the CPU.

    Args:
        network: answers ``represent``, or goes through `adapt`; its modules are given back in the mode they were in.
        dataset: items (image (channels, H, W), label).
        how: the options of `extract`.
        blocks: rows to look at; no batch reaches over the end of a block.

    Raises:
        ValueError: the data set has no labels, or its images are no floating-point tensors.
    """
    network = as_network(network)
    network.to(how.device)
    parameters = (p.dtype for p in network.parameters() if p.is_floating_point())
    on_gpu = how.device.type == "cuda"
    form: dict[str, Any] = {
        "device": how.device,
        "dtype": next(parameters, torch.float32),
        "memory_format": torch.channels_last if how.channels_last else torch.preserve_format,
        "non_blocking": on_gpu,
    }
    represent = _compiled(network.represent) if how.compile else network.represent
    loader = DataLoader(
        dataset,
        batch_sampler=_batches(blocks, how.batch_size),
        num_workers=how.num_workers,
        collate_fn=collate_labelled,
        pin_memory=on_gpu,
    )

    def look(images: Tensor, labels: Tensor) -> Seen:
        with torch.autocast(how.device.type, how.autocast, enabled=how.autocast is not None):  # not that of the caller
            seen = represent(_floating(images).to(**form))._asdict()
        kept = {name: value.to(how.dtype or value.dtype) for name, value in seen.items() if value is not None}
        return {**kept, "labels": labels}

    left = {"unit": "image", "desc": "features", "disable": not how.progress, "leave": False}
    with in_eval(network), tqdm(total=sum(map(len, blocks)), **left) as bar:
        batches = _fetched((look(images, labels) for images, labels in loader), how.device)
        for block in blocks:
            yield _gathered(batches, len(block), bar)


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
            warn(f"torch.compile failed, the network runs uncompiled: {error}")
            fast = represent
            return represent(images)

    return attempt


def _floating(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"the data set yields images of {kind}; expected floating-point tensors (C, H, W) in [0, 1]")
    return images

"""Tensors on disk, one row per image, in one safetensors file that many processes fill block by block.

What lies at PATH is complete.  While it is being made it lies in the folder PATH.partial, together with

* ``manifest.json``: what is being made, and how many rows make a block;
* ``0``, ``1``, ``2`` ...: a record of each block that is done, the sha256 of its bytes.

A block is recorded once its bytes are on the disk.  So it does not matter when a process is killed: the next one takes
up the blocks without a record, and those whose bytes are not the recorded ones.
"""

import hashlib
import json
import mmap
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ood_lib.features.distributed import Team
from ood_lib.warn import warn

__all__ = ["BlockFile", "map_tensors"]

T = TypeVar("T")

FORMAT = "1"

SMALL = 2**24  # bytes

Make = Callable[[Sequence[range]], Generator[Mapping[str, Tensor], None, None]]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip

# A write into the tensors stays in memory.  Linux wants to hear that no memory need be set aside for that (0x4000 is
# MAP_NORESERVE): otherwise it refuses files larger than the memory.
COPY_ON_WRITE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | 0x4000, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    if sys.platform == "linux"
    else {"access": mmap.ACCESS_COPY}
)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, read when they are looked at: it may be larger than the memory.

    A file of up to 16 MiB is read at once, and does not mind what becomes of it.

    Raises:
        SafetensorError: the file is truncated, or no safetensors file.
    """
    with safe_open(path, "numpy"):  # checks header and size
        pass
    with open(path, "rb") as file:
        header, start = _read_header(file)
        small = path.stat().st_size <= SMALL
        memory = bytearray(path.read_bytes()) if small else mmap.mmap(file.fileno(), 0, **COPY_ON_WRITE)

    def tensor(entry: Mapping[str, Any]) -> Tensor:
        dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start + begin).reshape(entry["shape"])

    return {name: tensor(entry) for name, entry in _fields(header).items()}


class BlockFile:
    """One file, complete or being made.

    Args:
        path: where it is to lie.
        identity: what it holds: a file of another identity is refused.
        rows: N.
        anonymous: accept a file at the path that does not say what it holds.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], rows: int, anonymous: bool = False) -> None:
        self.path, self.rows, self.anonymous = path, rows, anonymous
        self.identity = {"format": FORMAT, "rows": str(rows), **identity}
        self.work = path.with_name(f"{path.name}.partial")
        self._data = self.work / "features.safetensors"

    def fill(self, make: Make, block: int, ranks: Team) -> None:
        """Make what is missing, each process its share, and move the file to its place.

        Args:
            make: from blocks to their tensors, one after the other.
            block: rows of a block, where nobody has begun yet.
            ranks: who takes part; all of them call this.

        Raises:
            ValueError: at the path, or beside it in the making, is a file of another identity; processes differ in it.
            OSError: no room on the disk, or blocks are read back otherwise than they were written.
        """
        if any(other != self.identity for other in self._meet(ranks, self.identity)):
            raise ValueError("the processes hold different networks or data: give each the same weights and data set")
        if all(self._meet(ranks, self._is_complete())):
            if ranks.rank == 0:
                shutil.rmtree(self.work, ignore_errors=True)  # left by one that was killed after all was done
            return
        with self._lock() if ranks.rank == 0 else nullcontext():
            self._meet(ranks)
            if not all(self._meet(ranks, self._is_complete())):  # nobody else was at it
                self._fill(make, self._meet(ranks, self._begin(block) if ranks.rank == 0 else 0)[0], ranks)

    def _fill(self, make: Make, block: int, ranks: Team) -> None:
        if ranks.rank == 0 and self.path.exists():
            warn(f"the features in {self.path} are damaged and are made again")
        blocks = [range(start, min(start + block, self.rows)) for start in range(0, self.rows, block)]
        todo = self._missing(blocks, ranks)
        mine = ranks.share(todo)
        with closing(make(mine)) as made:
            for rows, tensors in zip(mine, made):
                self._write(rows, tensors, shared=ranks.size > 1)
        if wrong := self._missing(todo, ranks):
            raise OSError(f"{len(wrong)} blocks in {self.work} are not there as they were written: run again, or look")
        if ranks.rank == 0:
            os.replace(self._data, self.path)
            shutil.rmtree(self.work, ignore_errors=True)
        self._meet(ranks)

    def _missing(self, blocks: Sequence[range], ranks: Team) -> list[range]:
        """Those without a record, or read back otherwise than recorded; all processes look, and learn of all."""
        mine = [block for block in ranks.share(blocks) if not self._is_done(block)]
        return [block for part in self._meet(ranks, mine) for block in part]

    def _meet(self, ranks: Team, value: T | None = None) -> list[T]:
        found = ranks.gather(value)
        if ranks.size > 1:  # NFS remembers for a while that a file is not there: this makes it look again
            os.listdir(next(folder for folder in self.path.parents if folder.exists()))
        return cast(list[T], found)

    # -- what is there ------------------------------------------------------------------------------------------

    def _is_complete(self) -> bool:
        """Whether the file is there, whole; refuse what is of another identity."""
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; expected the path of a file, such as {self.path}/train")
        try:
            with safe_open(self.path, "numpy") as file:
                found = file.metadata() or {}
        except FileNotFoundError:
            self._refuse_others(self._manifest(), self.work)
            return False
        except SafetensorError:
            return False
        if found or not self.anonymous:
            self._refuse_others(found, self.path)
        return True

    def _manifest(self) -> dict[str, Any]:
        """What is being made: the identity as long as there is none."""
        with suppress(FileNotFoundError, json.JSONDecodeError):  # a power cut may leave an empty one
            return json.loads((self.work / "manifest.json").read_text())
        return self.identity

    def _refuse_others(self, found: Mapping[str, str], where: Path) -> None:
        other = [name for name, value in self.identity.items() if found.get(name) != value]
        if other:
            raise ValueError(
                f"{where} was made with another {', '.join(other)} than asked for now: take another path, or delete it"
            )

    def _is_done(self, block: range) -> bool:
        try:
            return self._record(block).read_text() == self._read_digest(block)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no record, no file, no header
            return False

    def _read_digest(self, block: range) -> str:
        with open(self._data, "rb") as file:
            header, start = _read_header(file)
            if header["__metadata__"] != self.identity:
                return ""
            digest = _digest(header)
            for _, place, width in _places(header, start, self.rows):
                file.seek(place + block.start * width)
                digest.update(file.read(len(block) * width))
        return digest.hexdigest()

    def _record(self, block: range) -> Path:
        return self.work / str(block.start)

    # -- making it ----------------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Wait until no other run is at work on this file; what is killed holds no lock."""
        self.work.mkdir(parents=True, exist_ok=True)
        with open(self.work / "lock", "w") as file:
            with suppress(ImportError, OSError):  # Windows, or a file system without locks
                _wait_for(file, self.path)
            yield

    def _begin(self, block: int) -> int:
        """Write the manifest, unless there is one; the rows of its blocks."""
        found = self._manifest()
        if "block" not in found:
            found = {**self.identity, "block": block}
            _write_whole(self.work / "manifest.json", json.dumps(found, indent=1))
        return found["block"]

    def _write(self, block: range, tensors: Mapping[str, Tensor], shared: bool) -> None:
        """Put the rows of a block, (n, ...) under each name, in their place; record them when they are on the disk."""
        header = _header(tensors, self.rows, self.identity)
        start, digest = len(_packed(header)), _digest(header)
        with open(self._data, "wb", opener=partial(_in_place, shared)) as file:
            file.write(_packed(header))  # every process writes the same
            for name, place, width in _places(header, start, self.rows):
                rows = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(rows)
                file.seek(place + block.start * width)
                file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        _write_whole(self._record(block), digest.hexdigest())


def _wait_for(file: IO[str], path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        warn(f"another run is making {path}; this one waits for it")
        fcntl.flock(file, fcntl.LOCK_EX)


def _in_place(shared: bool, path: str, flags: int) -> int:
    """Open to write a part of a file.  With O_DSYNC, NFS sends the bytes written and not the page around them."""
    return os.open(path, flags & ~os.O_TRUNC | (getattr(os, "O_DSYNC", 0) if shared else 0), 0o666)


def _write_whole(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    fresh.write_text(text)
    os.replace(fresh, path)


def _header(tensors: Mapping[str, Tensor], rows: int, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The head that safetensors would write for one row, stretched to all of them."""
    one = save({name: value[:1].clone() for name, value in tensors.items()})
    header = json.loads(one[8 : 8 + int.from_bytes(one[:8], "little")])
    for entry in header.values():
        entry["shape"][0] = rows
        entry["data_offsets"] = [offset * rows for offset in entry["data_offsets"]]
    return {"__metadata__": dict(metadata), **header}


def _packed(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers of 8 bytes are aligned
    return len(text).to_bytes(8, "little") + text


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The head, and where the data begin."""
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(min(size, 10**8))), 8 + size


def _fields(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _places(header: Mapping[str, Any], start: int, rows: int) -> list[tuple[str, int, int]]:
    """Name, first byte and bytes per row of each tensor."""
    offsets = {name: entry["data_offsets"] for name, entry in _fields(header).items()}
    return [(name, start + begin, (end - begin) // rows) for name, (begin, end) in offsets.items()]


def _digest(header: Mapping[str, Any]) -> Any:
    return hashlib.sha256(json.dumps(header).encode())

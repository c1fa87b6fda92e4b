"""A safetensors file that is read as it is looked at, and whose header holds the sha256 of its blocks of rows.

So it may be larger than the memory, and a bit that changes later is noticed.  `ood_lib.features.blocks` writes such a
file block by block.
"""

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = [
    "DIGESTS", "digest_begun", "digest_of", "fields_of", "header_of", "map_tensors", "packed", "places_of",
    "read_header", "seal", "stretched", "unsealed",
]  # fmt: skip

DIGESTS = "digests"  # in the metadata of the header: rows of a block, and the sha256 of each
AT_ONCE = 2**20  # bytes that are read to be hashed
SMALL = 2**24  # bytes

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


def unsealed(rows: int, block: int) -> dict[str, str]:
    """Metadata with room for the digests of a file's blocks."""
    return {DIGESTS: " ".join([str(block), *["0" * 64] * (-(-rows // block) if block else 0)])}


def seal(path: Path) -> None:
    """Put the digests of its blocks into the header of a file that has room for them."""
    with open(path, "r+b") as file:
        header, start = read_header(file)
        room = header["__metadata__"][DIGESTS]
        found = _found_digests(file)
        file.seek(0)
        head = file.read(start)
        file.seek(head.index(room.encode()))
        file.write(found.encode())  # as long as the room
        file.flush()
        os.fsync(file.fileno())


def _found_digests(file: BinaryIO) -> str:
    """What `seal` writes of a file as it is."""
    file.seek(0)
    header, start = read_header(file)
    block = int(header["__metadata__"][DIGESTS].split(" ", 1)[0])
    rows = next((entry["shape"][0] for entry in fields_of(header).values()), 0)
    digests = (digest_of(file, header, start, range(i, min(i + block, rows))) for i in range(0, rows, block or 1))
    return " ".join([str(block), *digests])


def _verify(path: Path) -> None:
    with open(path, "rb") as file:
        header, _ = read_header(file)
        sealed = header.get("__metadata__", {}).get(DIGESTS)
        if sealed is not None and sealed != _found_digests(file):
            raise SafetensorError("its bytes are not those that were written")


def map_tensors(path: Path, verify: bool = True) -> dict[str, Tensor]:
    """The tensors of a safetensors file, read when they are looked at: it may be larger than the memory.

    A file of up to 16 MiB is read at once, and does not mind what becomes of it.

    Args:
        path: of the file.
        verify: read all of it once, to see whether the bytes are still those that were written.

    Raises:
        SafetensorError: the file is truncated or damaged, or no safetensors file.
    """
    with safe_open(path, "numpy"):  # checks header and size
        pass
    if verify:
        try:
            _verify(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SafetensorError(f"its header is damaged: {error}") from error
    with open(path, "rb") as file:
        header, start = read_header(file)
        small = path.stat().st_size <= SMALL
        memory = bytearray(path.read_bytes()) if small else mmap.mmap(file.fileno(), 0, **COPY_ON_WRITE)

    def tensor(entry: Mapping[str, Any]) -> Tensor:
        dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start + begin).reshape(entry["shape"])

    return {name: tensor(entry) for name, entry in fields_of(header).items()}


def header_of(tensors: Mapping[str, Tensor], rows: int, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The head that safetensors would write for one row, stretched to all of them."""
    one = save({name: value[:1].clone() for name, value in tensors.items()})
    header = json.loads(one[8 : 8 + int.from_bytes(one[:8], "little")])
    return {"__metadata__": dict(metadata), **stretched(header, 1, rows)}


def stretched(fields: Mapping[str, Any], rows: int, wanted: int) -> dict[str, Any]:
    """The entries of a header for another number of rows."""
    return {
        name: entry
        | {
            "shape": [wanted, *entry["shape"][1:]],
            "data_offsets": [offset // rows * wanted for offset in entry["data_offsets"]],
        }
        for name, entry in fields.items()
    }


def packed(header: Mapping[str, Any]) -> bytes:
    """A header as it stands at the beginning of a file."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers of 8 bytes are aligned
    return len(text).to_bytes(8, "little") + text


def read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The head, and where the data begin."""
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(min(size, 10**8))), 8 + size


def fields_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a header says of each tensor."""
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def places_of(header: Mapping[str, Any], start: int, rows: int) -> list[tuple[str, int, int]]:
    """Name, first byte and bytes per row of each tensor."""
    offsets = {name: entry["data_offsets"] for name, entry in fields_of(header).items()}
    return [(name, start + begin, (end - begin) // max(rows, 1)) for name, (begin, end) in offsets.items()]


def digest_begun(header: Mapping[str, Any]) -> Any:
    """A digest begun with what the header says, but for the digests in it."""
    metadata = {name: value for name, value in header["__metadata__"].items() if name != DIGESTS}
    return hashlib.sha256(json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode())


def digest_of(file: BinaryIO, header: Mapping[str, Any], start: int, block: range) -> str:
    """The sha256 of the rows of a block, field after field."""
    digest = digest_begun(header)
    rows = next(entry["shape"][0] for entry in fields_of(header).values())
    for _, place, width in places_of(header, start, rows):
        file.seek(place + block.start * width)
        left = len(block) * width
        while left and (data := file.read(min(left, AT_ONCE))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()

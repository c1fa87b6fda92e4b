"""Files that appear whole or not at all, and what they are verified by."""

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["half", "save_tensors", "sha256_of", "single"]


def sha256_of(path: Path) -> str:
    """What a file is verified by, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def half(x: Tensor) -> Tensor:
    """A floating-point tensor in half precision, as it ships; any other as it is."""
    return x.half().contiguous() if x.is_floating_point() else x


def single(x: Tensor) -> Tensor:
    """A tensor of half precision in single precision, to compute with; any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

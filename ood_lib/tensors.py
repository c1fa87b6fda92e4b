"""Tensors on their way to a file and back: precision, and memory of their own."""

import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from ood_lib.files import atomic

__all__ = ["half", "save_tensors", "single"]


def half(x: Tensor) -> Tensor:
    """A floating-point tensor in half precision, as it ships; any other as it is."""
    return x.half().contiguous() if x.is_floating_point() else x


def single(x: Tensor) -> Tensor:
    """A tensor of half precision in single precision, to compute with; any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a safetensors file, whole or not at all; folders are made."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():  # contiguous, and each in memory of its own, as safetensors asks
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    with atomic(path) as fresh:
        save_file(apart, fresh)

"""Tensors on their way to a file and back: precision, and memory of their own."""

import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from ood_lib.files import atomic

__all__ = ["dequantized", "half", "quantized", "save_tensors", "single"]


def half(x: Tensor) -> Tensor:
    """A floating-point tensor in half precision, as it ships; any other as it is."""
    return x.half().contiguous() if x.is_floating_point() else x


def single(x: Tensor) -> Tensor:
    """A tensor of half precision in single precision, to compute with; any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all; folders are made."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():  # contiguous, and each in memory of its own, as safetensors asks
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    with atomic(path) as fresh:
        save_file(apart, fresh, metadata)


def quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors (N, K) as one byte a number: 256 equal steps between the ends of each column.

    A column whose smallest value is 0, such as a rectified feature, keeps its zeros to the bit.  The error of a number
    is at most half a step.

    Returns:
        For each NAME the bytes, (N, K) uint8, and under NAME.low and NAME.step what they mean, (K,) float32; other
        tensors as they are.
    """
    found = {}
    for name, x in tensors.items():
        if not x.is_floating_point():
            found[name] = x
            continue
        low, high = x.float().aminmax(dim=0)
        step = (high - low) / 255
        found |= {name: ((x - low) / step.clamp_min(1e-30)).round().to(torch.uint8)}
        found |= {f"{name}.low": low, f"{name}.step": step}
    return found


def dequantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `quantized` made, in single precision."""
    values = {name: x for name, x in tensors.items() if not name.endswith((".low", ".step"))}
    return {
        name: torch.addcmul(tensors[f"{name}.low"], x.float(), tensors[f"{name}.step"]) if x.dtype == torch.uint8 else x
        for name, x in values.items()
    }

"""Tensors on their way to a file and back: precision, memory of their own; and entries in order."""

import math
import os
from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ood_lib.files import atomic

__all__ = [
    "ascending", "dequantized", "directions", "half", "largest", "lengths", "quantized", "save_tensors", "single",
]  # fmt: skip


def half(x: Tensor) -> Tensor:
    """A floating-point tensor in half precision, as it ships; any other as it is."""
    return x.half().contiguous() if x.is_floating_point() else x


def single(x: Tensor) -> Tensor:
    """A tensor of half precision in single precision, to compute with; any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over a power of two near their largest entry, which rounds nothing, and that power, (N, 1)."""
    with torch.no_grad():
        most = int(math.log2(torch.finfo(x.dtype).max)) - 2
        largest = x.abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
        exponent = torch.frexp(largest.nan_to_num()).exponent.clamp(-most, most)
        power = torch.ldexp(torch.ones_like(largest), exponent)
    return x / power, power


def _ordinary(found: Tensor) -> bool:
    """Whether lengths are such that no square on the way to them was too large or too small for a number."""
    limits = torch.finfo(found.dtype)
    return bool(((found > limits.tiny**0.25) & (found < limits.max**0.25)).all())


def lengths(x: Tensor) -> Tensor:
    """Euclidean length of each row, (N, K) to (N,), also of rows whose squares are too large or small for a number."""
    x = single(x)
    if _ordinary(found := x.norm(dim=1)):
        return found
    x, power = _scaled(x)
    return x.norm(dim=1) * power[:, 0]


def directions(x: Tensor) -> Tensor:
    """Rows (N, K) brought to length one, however long or short they are; a row of zeros stays one."""
    x = single(x)
    if _ordinary(found := x.norm(dim=1, keepdim=True)):
        return x / found
    return F.normalize(_scaled(x)[0], dim=1)


def _plain(x: Tensor) -> bool:
    """Whether numpy may order it: its sort uses the vector units of a CPU, and keeps neither places nor gradients."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.requires_grad


def ascending(x: Tensor) -> Tensor:
    """Entries along the last dimension in ascending order; on a CPU ten times as fast as torch's sort."""
    return torch.from_numpy(np.sort(x.numpy())) if _plain(x) else x.sort(-1).values


def largest(x: Tensor, k: int) -> Tensor:
    """The k largest entries along the last dimension, (..., n) to (..., k), in no order, the smallest of them first.

    Example:
        >>> largest(torch.tensor([[3.0, 1.0, 2.0]]), 2)[:, 0]
        tensor([2.])
    """
    if _plain(x):
        return torch.from_numpy(np.partition(x.numpy(), x.shape[-1] - k)[..., x.shape[-1] - k :])
    return x.topk(k).values.flip(-1)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], about: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with a header that says what it is; folders are made."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():  # contiguous, and each in memory of its own, as safetensors asks
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    with atomic(path) as fresh:
        save_file(apart, fresh, about)


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

"""Tensors as they come in and go to a file: what may be computed with, precision, memory of their own, and order."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.compiler import is_exporting
from torch.nn import functional as F

from ood_lib.files import atomic

__all__ = [
    "PRECISIONS", "as_tensor", "ascending", "check_floats", "dequantized", "directions", "half", "largest", "lengths",
    "quantized", "raw_bytes", "save_tensors", "single", "why_not_dense",
]  # fmt: skip

PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # in which torch computes everything


def why_not_dense(x: Any) -> str:
    """Why something is no tensor whose numbers lie in memory one by one, in words; "" where it is one."""
    if not isinstance(x, Tensor):
        of = f" of {x.dtype}" if hasattr(x, "dtype") else ""
        return f"a {type(x).__name__}{of}"
    if x.is_nested:
        return "a nested tensor"
    if x.layout != torch.strided:
        return f"a tensor of the layout {str(x.layout).removeprefix('torch.')}"
    if x.is_complex() or x.is_quantized:
        return f"a tensor of {x.dtype}"
    return "a tensor on the meta device, which holds no numbers" if x.is_meta else ""


def check_floats(shape: str, /, **given: Any) -> None:
    """Raise ValueError where something is no tensor of numbers in half, single or double precision.

    Args:
        shape: of the tensors, in words; with one axis for each comma in it, and any further ones for "...".
        given: the arguments, by their names.

    Example:
        >>> check_floats("(N, K)", z=torch.tensor([[1, 2]]))
        Traceback (most recent call last):
        ValueError: z is torch.int64 of shape (1, 2); expected floating-point numbers (N, K), for instance z.float()
    """
    for name, x in given.items():
        mend = "a dense torch tensor" if (what := why_not_dense(x)) else f"for instance {name}.float()"
        least = shape.count(",") + (not shape.endswith(",)")) - ("..." in shape)
        axes = 0 if what else x.ndim
        if not what and (x.dtype not in PRECISIONS or axes < least or (axes > least and "..." not in shape)):
            what = f"{x.dtype} of shape {tuple(x.shape)}"
        if what:
            raise ValueError(f"{name} is {what}; expected floating-point numbers {shape}, {mend}")


def as_tensor(values: Any, name: str) -> Tensor:
    """Numbers of any array, series or list as a tensor, without loss; memory is shared where torch can.

    Raises:
        ValueError: they are no real numbers one by one: text, gaps, complex numbers, masked entries; the message calls
            them ``name``.
    """
    if isinstance(values, Tensor):
        if what := why_not_dense(values):
            raise ValueError(f"{name} is {what}; expected real numbers in a dense tensor or an array")
        return values.detach().resolve_neg()
    what = why_not_dense(values)
    try:
        rows = values if isinstance(values, np.ndarray) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is {what} ({error}); expected real numbers in a tensor or an array") from error
    hidden = int(np.ma.getmaskarray(rows).sum()) if isinstance(rows, np.ma.MaskedArray) else 0
    if hidden or rows.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} is {what} with {f'{hidden} masked entries' if hidden else f'entries of {rows.dtype}'}; expected "
            "real numbers, all of them there: drop or convert the others first"
        )
    kept = rows.dtype.newbyteorder("=") if rows.dtype.itemsize <= 8 else np.dtype(float)
    return torch.from_numpy(np.require(np.asarray(rows), kept, ["C", "W"]))


def half(x: Tensor) -> Tensor:
    """A floating-point tensor in half precision, as it ships; any other as it is."""
    return x.half().contiguous() if x.is_floating_point() else x


def single(x: Tensor) -> Tensor:
    """A tensor of half precision or less in single precision, to compute with; any other as it is."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def raw_bytes(x: Tensor) -> Any:
    """The memory of a tensor in the order of its entries, wherever it lies and in whatever layout, to be hashed."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


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
    return not is_exporting() and bool(((found > limits.tiny**0.25) & (found < limits.max**0.25)).all())


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
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64, torch.int64)
    return plain and not (x.requires_grad or is_exporting())


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

"""In which precision a device computes faster."""

import logging
import time
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional as F

from ood_lib.networks.network import pick_device
from ood_lib.warn import warn

__all__ = ["autocast_dtype", "half_precision"]

CLEARLY = 1.2  # times as fast as float32 that a CPU must be in half precision, so that chance does not decide


def half_precision(device: str | torch.device = "auto") -> torch.dtype | None:
    """The half precision in which a device computes faster than in float32: bfloat16, or None where there is none.

    A CUDA device counts when it has bfloat16 in hardware.  A CPU without it emulates it, several times as slowly as
    float32, so a CPU is timed: one layer in both, once per process.  The times go to the logger ``ood_lib`` (INFO).
    """
    return _half_precision(pick_device(device))


@lru_cache
def _half_precision(device: torch.device) -> torch.dtype | None:
    faster, why = False, "only CUDA devices and CPUs are looked at"
    if device.type == "cuda":
        with torch.cuda.device(device):
            faster = torch.cuda.is_bf16_supported(including_emulation=False)
        why = f"the device has {'it' if faster else 'none'} in hardware"
    elif device.type == "cpu":
        single, half = _times(torch.bfloat16)
        faster, why = single > CLEARLY * half, f"a layer takes {1e3 * half:.2f} ms in it, {1e3 * single:.2f} in float32"
    logging.getLogger("ood_lib").info("bfloat16 is %s on %s: %s", "used" if faster else "not used", device, why)
    return torch.bfloat16 if faster else None


@lru_cache
def _times(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a linear layer on the CPU in float32 and in another precision: the shortest of several, in turns."""
    single, half = zip(*((_seconds(torch.float32), _seconds(dtype)) for _ in range(8)))
    return min(single), min(half)


def _seconds(dtype: torch.dtype) -> float:
    x, weight = (torch.ones(n, 512, device="cpu", dtype=torch.float32) for n in (256, 512))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        start = time.perf_counter()
        F.linear(x, weight)
        return time.perf_counter() - start


def autocast_dtype(
    autocast: bool | torch.dtype | Literal["auto"] | None, device: str | torch.device
) -> torch.dtype | None:
    """The precision that an argument ``autocast`` stands for on a device; None = as the weights are.

    Warns of a half precision in which the CPU is slower than in float32, because it emulates it.

    Args:
        autocast: ``"auto"`` for `half_precision`; a precision; True for bfloat16; False or None for none.
        device: where to compute.

    Raises:
        ValueError: it is none of these.
    """
    if autocast == "auto":
        return half_precision(device)
    chosen = torch.bfloat16 if autocast is True else autocast or None
    if chosen is not None and not isinstance(chosen, torch.dtype):
        raise ValueError(f'autocast={autocast!r} was given; expected "auto", None, or a precision, as torch.bfloat16')
    if pick_device(device).type == "cpu" and chosen in (torch.bfloat16, torch.float16):
        single, half = _times(chosen)
        if half > single:
            warn(
                f"this processor is slow in {chosen}: a layer takes {half / single:.1f} times as long as in float32; "
                'autocast="auto" takes half precision only where it is faster'
            )
    return chosen

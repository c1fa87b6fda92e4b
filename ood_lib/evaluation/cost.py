"""What a computation costs: seconds, and the memory it takes beyond what was there before."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Cost", "measure_cost"]

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Filled when the block of `measure_cost` ends."""

    seconds: float = math.nan  # of wall time
    memory_mb: float = math.nan  # highest memory within the block minus memory at its start, in units of 10^6 bytes


@contextmanager
def measure_cost(device: str | torch.device = "cpu") -> Iterator[Cost]:
    """Measure the time and the memory of a block.

    On CUDA the memory is what torch has allocated. On the CPU it is resident memory, which only Linux reports for a
    single block (elsewhere: NaN). Memory that an earlier block has freed and the process has kept is not counted
    twice, so a small block may show 0.

    Example:
        >>> with measure_cost() as cost:
        ...     _ = torch.ones(10)
        >>> cost.seconds > 0
        True
    """
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else _resident_from_now()
    cost, start = Cost(), time.perf_counter()
    try:
        yield cost
    finally:
        if cuda:
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")
        cost.memory_mb = (peak - before) / 1e6


def _resident_from_now() -> float:
    """Resident bytes now; the high-water mark starts again from here."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:  # not Linux, or not allowed
        return math.nan
    return _status("VmRSS")


def _status(field: str) -> float:
    if not STATUS.is_file():
        return math.nan
    line = next((x for x in STATUS.read_text().splitlines() if x.startswith(field)), None)
    return 1024.0 * int(line.split()[1]) if line else math.nan  # some kernels of containers leave lines out

"""How ways of computing the same thing are measured: in turns, on one thread, in a process of their own.

What counts is processor time, which a busy machine stretches less than the clock; the least of several runs is
compared, and all are kept.  Every way must first give the same numbers as the library: `Apart` says which did not.
"""

import gc
import json
import math
import os
import pickle
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ood_lib.evaluation.cost import measure_cost
from ood_lib.files import write_text

Way = Callable[[], Tensor]
OURS = "ood_lib"
PEERS = ("pytorch-ood", "faiss-cpu", "scikit-learn", "torchmetrics", "zuko", "normflows", "torch", "numpy")


class Apart(AssertionError):
    """Two ways of a row do not compute the same numbers."""


@dataclass(frozen=True)
class Work:
    """What no implementation can do without: operations in matrix products, by precision, and bytes read or written."""

    single: float = 0.0
    double: float = 0.0
    moved: float = 0.0


@dataclass(frozen=True)
class Case:
    """One row: the ways, the library's first; what they must do at least; how far their numbers may lie apart.

    Args:
        ways: by name; each does all of the work and gives the numbers that are compared.
        work: None where the time is not one of matrix products and memory.
        apart: largest difference, in standard deviations of the library's numbers.
        note: what the row measures.
    """

    ways: dict[str, Way]
    work: Work | None = None
    apart: float = 1e-3
    note: str = ""


def in_child(action: Callable[[], Any]) -> Any:
    """What an action gives in a fork of this process: its memory is its own, and what it leaves behind is gone."""
    gc.collect()
    gc.freeze()  # the child does not touch, and so does not copy, what is there already
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            found: Any = (True, action())
        except BaseException as error:  # whatever it is, the parent hears of it
            found = (False, error)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(found, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    if not content:
        raise MemoryError("a measurement was killed, perhaps for lack of memory")
    fine, found = pickle.loads(content)
    if not fine:
        raise found
    return found


def processor_seconds(way: Way, loops: int = 1) -> tuple[float, Tensor]:
    """Processor time of one call, averaged over some, and what it gave."""
    start = time.process_time()
    for _ in range(loops):
        found = way()
    return (time.process_time() - start) / loops, found


def compare(case: Case) -> dict[str, float]:
    """First run of each way, in seconds; raises `Apart` where the numbers are not those of the library."""
    first, reference = {}, torch.empty(0)
    for name, way in case.ways.items():
        first[name], found = processor_seconds(way)
        found = found.detach().double()
        if name == OURS:
            reference = found
            scale = reference.std().item() if reference.numel() > 1 else 1.0
        gap = (found - reference).abs().max().item() / max(scale, 1e-12)
        if found.shape != reference.shape or not gap <= case.apart:
            raise Apart(f"{name} lies {gap:.2g} standard deviations from {OURS}; at most {case.apart:.2g} was expected")
    return first


def measure(case: Case, rounds: int = 5) -> dict[str, list[float]]:
    """Processor seconds of each way, run in turns; a peer that takes twice as long as the fastest runs only once."""
    first = compare(case)
    best = min(first.values())
    once = {name for name, seconds in first.items() if name != OURS and seconds > max(2 * best, 0.5)}
    loops = {name: max(1, math.ceil(0.05 / max(seconds, 1e-6))) for name, seconds in first.items()}
    runs = {name: [s] if s > 2.0 or name in once else [] for name, s in first.items()}  # the others warmed up
    names = list(case.ways)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if len(runs[name]) < rounds and name not in once:
                runs[name].append(processor_seconds(case.ways[name], loops[name])[0])
    return runs


def memory(way: Way) -> float:
    """Highest memory of one run beyond what was there before it, in MB."""
    with measure_cost() as cost:
        way()
    return cost.memory_mb


def measured(build: Callable[[], Case], rounds: int = 5) -> dict[str, Any]:
    """A row of the table: runs and memory of each way, what the work needs at least."""
    case = build()
    runs = in_child(lambda: measure(case, rounds))
    leading = sorted(runs, key=lambda name: (name != OURS, min(runs[name])))[:2]  # ours, and the fastest peer
    peak = {name: in_child(lambda way=way: memory(way)) for name, way in case.ways.items() if name in leading}
    return {
        "note": case.note,
        "work": None if case.work is None else vars(case.work),
        "ways": {
            name: {"seconds": [round(s, 7) for s in found]}
            | ({"memory_mb": round(peak[name], 1)} if name in peak else {})
            for name, found in runs.items()
        },
    }


def rates(rounds: int = 8) -> dict[str, float]:
    """Operations per second of one thread in matrix products of both precisions, bytes per second of a copy."""
    found = {}
    for name, dtype in (("single", torch.float32), ("double", torch.float64)):
        a = torch.randn(2048, 2048, dtype=dtype)
        found[name] = 2 * 2048**3 / min(processor_seconds(lambda a=a: a @ a)[0] for _ in range(rounds))
    source = torch.ones(50_000_000)
    target = torch.empty_like(source)
    copied = min(processor_seconds(lambda: target.copy_(source))[0] for _ in range(rounds))
    return found | {"memory": 2 * source.nbytes / copied}


def machine() -> dict[str, Any]:
    """What the measurements were made on and with."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions,
        "python": platform.python_version(), "system": platform.system(), "rates": in_child(rates),
    }  # fmt: skip


class Store:
    """A JSON file that grows row by row: a measured row is kept when a run is cut off, and not measured again.

    Rows stand beside what all of them share, such as the machine. A file whose rows were measured otherwise is refused,
    and left as it is.

    Args:
        path: the file; None keeps nothing.
        order: names of all rows that there may be, in the order of the file.
        shared: what holds for every row.

    Raises:
        SystemExit: the file holds rows of other shared values.
    """

    def __init__(self, path: Path | None, order: Sequence[str], **shared: Any) -> None:
        self.path, self.order = path, [*order]
        self.content: dict[str, Any] = {"rows": {}}
        if path is not None and path.is_file():
            self.content |= json.loads(path.read_text(encoding="utf-8"))
        plain = json.loads(json.dumps(shared))
        if self.rows and (other := [k for k, v in plain.items() if _own(self.content.get(k)) != _own(v)]):
            raise SystemExit(
                f"{path} holds rows that were measured with another {' and '.join(other)}: "
                f"{[_own(self.content.get(k)) for k in other]}, and not {[_own(plain[k]) for k in other]}. "
                "Name another file with --out, or remove this one to measure all rows again"
            )
        self.content = (plain | self.content) if self.rows else (self.content | plain)

    @property
    def rows(self) -> dict[str, Any]:
        """What the file holds, by name."""
        return self.content["rows"]

    def put(self, name: str, row: Any, **values: Any) -> None:
        """Add or replace a row; the file appears whole or not at all."""
        rows = self.rows | {name: row}
        known = [n for n in self.order if n in rows]
        self.content |= values | {"rows": {n: rows[n] for n in (*known, *(n for n in rows if n not in known))}}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.content, indent=1) + "\n")

    def fill(self, names: Sequence[str], row: Callable[[str], Any], again: bool = False, **values: Any) -> list[str]:
        """Measure the rows that are missing, or all of these ``again``; what went wrong, in words.

        The old row stays until the new one is there. ``values`` are kept with each row that is measured.
        """
        failed = []
        for name in names:
            if name in self.rows and not again:
                continue
            start = time.time()
            try:
                found = row(name)
            except Apart as error:
                failed.append(f"{name}: {error}")
                print(failed[-1], flush=True)
                continue
            self.put(name, found, **values)
            print(f"{name}: {time.time() - start:.0f} s", flush=True)
        return failed


def _own(value: Any) -> Any:
    """A shared value as it is compared: without the measured rates of a machine."""
    return {k: v for k, v in value.items() if k != "rates"} if isinstance(value, dict) else value

"""Runs tasks side by side, each in a process of its own, and keeps only what is complete.

A run is written into a hidden draft folder and moved to its place at the end, with a record of how it was made:
whatever is interrupted leaves the last complete run as it was.
"""

import logging
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ood_lib.book.notebooks import load
from ood_lib.book.plan import Task
from ood_lib.extras import need

__all__ = ["run_side_by_side"]

THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")


def run_side_by_side(tasks: Sequence[Task], jobs: int | None = None) -> dict[str, str]:
    """Run every task, `jobs` at a time (default: one per core); what failed, by name."""
    need("papermill", "book")
    jobs = min(len(tasks), jobs or _cores())
    waiting, failures = list(enumerate(tasks)), {}
    running: dict[Any, tuple[Any, Task, float]] = {}
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, task = waiting.pop(0)
                connection, process = _start(task, index, max(1, _cores() // jobs))
                running[connection] = process, task, time.perf_counter()
            for connection in wait(list(running)):
                process, task, started = running.pop(connection)
                if message := _receive(connection, process):
                    failures[task.name] = message
                _say(f"{task.name}: {'FAILED' if message else 'done'} after {time.perf_counter() - started:.0f} s")
    finally:
        _stop(running.values())
        signal.signal(signal.SIGTERM, before)
    print("\n" * len(tasks) if _bars() else "", end="")  # below the bars
    return failures


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bars() -> bool:
    return sys.stderr.isatty()


def _say(line: str) -> None:
    if not _bars():
        print(line, flush=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _start(task: Task, index: int, threads: int) -> tuple[Any, Any]:
    _say(f"{task.name}: runs")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, index, threads, sender), daemon=True)
    # The terminal sends Ctrl-C to every process. Only this one listens, and stops the others once.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, before)
    sender.close()  # so that the death of the process ends the wait
    return receiver, process


def _receive(connection: Any, process: Any) -> str:
    try:
        message = connection.recv()
    except EOFError:
        message = "its process, which died (out of memory?)"
    process.join()
    return message


def _stop(running: Iterable[tuple[Any, Task, float]]) -> None:
    for process, _, _ in running:
        process.terminate()
    for process, task, _ in running:
        process.join(20)
        process.kill()
        shutil.rmtree(task.draft, ignore_errors=True)


def _work(task: Task, index: int, threads: int, connection: Any) -> None:
    """Runs in the process of one notebook; sends "" or what failed."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel before the user's
    for library in THREADS:
        os.environ.setdefault(f"{library}_NUM_THREADS", str(threads))
    try:
        connection.send(_execute(task, index))
    except KeyboardInterrupt:
        for child in need("psutil", "book").Process().children(recursive=True):
            child.kill()  # a kernel that was just starting is not papermill's to clean up yet
    finally:
        shutil.rmtree(task.draft, ignore_errors=True)


def _execute(task: Task, index: int) -> str:
    logging.getLogger("papermill").setLevel("ERROR")
    shutil.rmtree(task.draft, ignore_errors=True)
    results, draft = task.draft / task.name, task.draft / task.target.name
    results.mkdir(parents=True)
    failed = task.target.with_suffix(".failed.ipynb")
    peaks: list[int] = []
    try:
        notebook = need("papermill", "book").execute_notebook(
            load(task.source),
            draft,
            task.given | ({"results": str(results)} if task.fills_results else {}),
            progress_bar={"desc": task.name, "position": index} if _bars() else False,
            cwd=task.source.parent,
            on_cell_executed=lambda **_: peaks.extend(_kernel_peaks()),
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own chatter cuts the bars
        )
    except Exception as error:
        if draft.is_file():
            os.replace(draft, failed)
        return f"{_explain(error)}\n  kept: {failed}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # complete: only the moving is left
    notebook.metadata["ood_book"] = _record(task, notebook.metadata.papermill["duration"], peaks)
    need("nbformat", "book").write(notebook, draft)
    if task.fills_results:
        shutil.rmtree(task.results, ignore_errors=True)
        os.replace(results, task.results)
    os.replace(draft, task.target)  # last: it says "complete"
    failed.unlink(missing_ok=True)
    return ""


def _explain(error: Any) -> str:
    if not hasattr(error, "exec_count"):  # not a cell's own error: a dead kernel, for instance
        return f"its run\n  {type(error).__name__}: {error}"
    line = next((x for x in error.source.splitlines() if x.strip()), "")
    return f"cell [{error.exec_count}]: {line}\n  {error.ename}: {error.evalue}"


def _record(task: Task, seconds: float, peaks: list[int]) -> dict[str, Any]:
    """What makes the run up to date (`key`) and what its page says about it."""
    return {
        "key": task.key,
        "parameters": task.parameters,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(max(peaks) / 2**20) if peaks else _peak_memory_mb(),
        "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores",
        "versions": {"python": platform.python_version()} | {x: version(x) for x in ("torch", "numpy", "ood_lib")},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _kernel_peaks() -> list[int]:
    """Peak bytes of this process's children while they live; Linux only, else empty."""
    # On Linux `getrusage` is no use: the peak of the process that starts a kernel sticks to it.
    status = [Path(f"/proc/{child.pid}/status") for child in need("psutil", "book").Process().children()]
    text = "".join(path.read_text() for path in status if path.is_file())
    return [int(kib) * 2**10 for kib in re.findall(r"VmHWM:\s+(\d+)", text)]


def _peak_memory_mb() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)

"""The process of one notebook: runs it with papermill and keeps only what is complete.

A run is written into a hidden draft folder of its own and moved to its place at the end, with a record of how it was
made. So an interruption leaves the last complete run as it was, and two runs of one notebook never write to the same
folder.
"""

import logging
import os
import pickle
import platform
import re
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import papermill
import psutil
from papermill.engines import NBClientEngine, papermill_engines
from papermill.iorw import write_ipynb

from ood_book.percent import parse
from ood_book.run.plan import Task
from ood_book.run.progress import Progress
from ood_lib import files

__all__ = ["DONE", "TABLES", "bars", "cores", "interrupt", "work"]

THREADS = ("OMP", "MKL", "NUMEXPR", "NUMBA")
# A thread without work sleeps: one that spins, as is usual, takes the core from whoever else uses the machine, and made
# Langevin steps beside other processes nine times as dear. NumPy and SciPy only see small matrices here.
POLITE = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
DONE = "done"
TABLES = (".csv", ".json")  # what a record keeps of the results folder


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bars() -> bool:
    """Whether there is a terminal to draw progress bars on."""
    return sys.stderr.isatty()


def interrupt(*_: Any) -> None:
    """A signal as Ctrl-C."""
    raise KeyboardInterrupt


def work() -> None:
    """The process of one notebook: reads its task from the input, writes "done" or how it failed to the output."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed
    signal.signal(signal.SIGTERM, interrupt)
    task, index, threads = pickle.load(sys.stdin.buffer)
    there = isinstance(task.target, Path)
    draft = files.draft(task.target) if there else Path(tempfile.mkdtemp(prefix=task.name))
    Thread(target=_end_with_input, args=(draft,), daemon=True).start()
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel before the user's
    os.environ["OOD_COMMAND"] = task.command  # for `ood_lib.provenance`
    os.environ.setdefault("OOD_FOLDER", os.getcwd())  # where a module of the reader's own may lie
    os.environ.setdefault("OOD_CACHE", str(task.source.parent.parent / "_build/networks"))  # for `benchmark_features`
    for variable, value in (POLITE | {f"{library}_NUM_THREADS": str(threads) for library in THREADS}).items():
        os.environ.setdefault(variable, value)
    try:
        if there:
            files.sweep(draft.parent)
        message = _execute(task, index, draft)
        output.write(message or DONE)
        output.close()
    except KeyboardInterrupt:
        _kill_kernels()  # one that was just starting is not papermill's to clean up yet
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _end_with_input(draft: Path) -> None:
    with suppress(OSError):
        os.read(0, 1)  # waits until nobody can write any more
    _kill_kernels()
    shutil.rmtree(draft, ignore_errors=True)
    os._exit(1)


def _kill_kernels() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


class SavedOnce(NBClientEngine):
    """Saves the notebook when it ends, however it ends: papermill does before and after each cell.

    Each time it is checked and written whole, pictures and all: a sixth of the processor time of a long notebook.
    Nothing reads the draft before its end.
    """

    @classmethod
    def execute_managed_notebook(cls, manager: Any, kernel_name: str, **options: Any) -> Any:
        place, manager.output_path = manager.output_path, None
        try:
            return super().execute_managed_notebook(manager, kernel_name, **options)
        finally:
            manager.output_path = place  # where `notebook_complete` saves, also after a kernel that died


papermill_engines.register("saved-once", SavedOnce)


def _execute(task: Task, index: int, draft: Path) -> str:
    logging.getLogger("papermill").setLevel("ERROR")
    results, file = draft / task.name, draft / f"{task.name}.ipynb"
    shutil.rmtree(draft, ignore_errors=True)
    results.mkdir(parents=True)
    usage: list[tuple[int, float]] = []
    notebook, given = parse(task.text), task.given | ({"results": str(results)} if task.fills_results else {})
    cells = len(notebook.cells) + bool(given)  # what is given stands in a cell of its own
    progress = Progress(task, cells, index if bars() else None, _kernel_seconds, _kill_kernels)
    try:
        with progress:
            notebook = papermill.execute_notebook(
                notebook,
                file,
                given,
                engine_name="saved-once",
                progress_bar=False,
                cwd=task.source.parent if task.source.parent.is_dir() else draft,
                on_cell_start=progress.starts,
                on_cell_executed=lambda **_: usage.extend(_kernel_usage()),
                extra_arguments=["--log-level=CRITICAL"],  # the kernel's own chatter cuts the bars
            )
    except Exception as error:
        return _keep(task, file, progress.stopped or _explain(error, progress.section))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # complete: only the moving is left
    try:
        notebook.metadata["ood_book"] = _record(task, notebook.metadata.papermill["duration"], usage, results)
        _publish(task, notebook, draft)
    except Exception as error:
        return _keep(task, file, f"failed in writing {task.target}\n  {type(error).__name__}: {error}")
    return ""


def _keep(task: Task, file: Path, message: str) -> str:
    """Keep the notebook of a failed run, with the message, beside where the finished one would be; the message."""
    if not task.failed:
        return message
    kept = file.with_suffix(".kept")
    notebook = nbformat.read(file, as_version=4) if file.is_file() else parse(task.text)
    notebook.metadata["ood_book_failed"] = {"key": task.key, "message": message}
    try:
        nbformat.write(notebook, kept)
    except OSError:  # a full disk, for instance: as it is, then
        kept = file
    if not kept.is_file():
        return message
    os.replace(kept, task.failed)
    return f"{message}\n  kept: {task.failed}"


def _publish(task: Task, notebook: Any, draft: Path) -> None:
    if not isinstance(task.target, Path):
        return write_ipynb(notebook, task.target)  # one object: there or not
    file = draft / task.target.name
    nbformat.write(notebook, file)
    if task.results:
        task.target.unlink(missing_ok=True)  # never this notebook beside results of another run
        _replace(draft / task.name, task.results, draft)
    os.replace(file, task.target)  # last: it says "complete"
    if task.failed:
        task.failed.unlink(missing_ok=True)
    return None


def _replace(folder: Path, place: Path, aside: Path, attempts: int = 20) -> None:
    """Put a folder in the place of another one, also while another run does the same."""
    for attempt in range(attempts):
        with suppress(FileNotFoundError):
            os.replace(place, aside / f"old-{attempt}")
        try:
            return os.replace(folder, place)
        except OSError:  # another run was faster
            if attempt == attempts - 1:
                raise
    return None


def _explain(error: Any, section: str) -> str:
    if not hasattr(error, "exec_count"):  # not a cell's own error: a dead kernel, for instance
        return f"failed in its run\n  {type(error).__name__}: {error}"
    line = next((x for x in error.source.splitlines() if x.strip()), "")
    return f"failed in cell [{error.exec_count}]{section}: {line}\n  {error.ename}: {error.evalue}"


def _record(task: Task, seconds: float, usage: list[tuple[int, float]], results: Path) -> dict[str, Any]:
    """What makes the run up to date (`key`), what its page says about it, and the tables it wrote."""
    tables = (path for path in sorted(results.iterdir()) if path.suffix in TABLES)
    peaks, cpu = zip(*usage) if usage else ((), ())
    return {
        "key": task.key,
        "parameters": task.parameters,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(max(cpu), 1) if cpu else None,
        "peak_memory_mb": round(max(peaks) / 2**20) if any(peaks) else _peak_memory_mb(),
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "versions": {"python": platform.python_version()} | {x: version(x) for x in ("torch", "numpy", "ood_lib")},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "tables": {path.name: path.read_text(encoding="utf-8") for path in tables},
    }


def _kernel_usage() -> list[tuple[int, float]]:
    """Peak bytes (Linux only, else 0) and processor seconds of each child of this process while it lives."""
    with suppress(psutil.NoSuchProcess):
        return [(_peak(child.pid), sum(child.cpu_times()[:4])) for child in psutil.Process().children()]
    return []


def _kernel_seconds() -> float:
    return max((seconds for _, seconds in _kernel_usage()), default=0.0)


def _peak(process: int) -> int:
    # On Linux `getrusage` is no use: the peak of the process that starts a kernel sticks to it.
    status = Path(f"/proc/{process}/status")
    kib = re.findall(r"VmHWM:\s+(\d+)", status.read_text()) if status.is_file() else []
    return int(kib[0]) * 2**10 if kib else 0


def _peak_memory_mb() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)

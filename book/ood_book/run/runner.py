"""Runs tasks side by side, each in a process of its own."""

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from ood_book.run.plan import Task
from ood_book.run.work import DONE, bars, cores, interrupt
from ood_lib.files import sweep

__all__ = ["run_in_process", "run_side_by_side", "say"]

WORK = [sys.executable, "-c", "from ood_book.run.work import work; work()"]
DIED = "failed in its process, which died (out of memory?)"


def run_side_by_side(tasks: Sequence[Task], jobs: int | None = None) -> dict[str, str]:
    """Run every task, `jobs` at a time (default: one per core), the longest first; what failed, by label."""
    jobs = max(1, min(len(tasks), jobs or cores()))
    processes: list[subprocess.Popen] = []
    failures = {}

    def run(index: int, task: Task) -> tuple[str, float]:
        started = time.perf_counter()
        say(f"{task.label}: runs")
        return run_in_process(task, index, max(1, cores() // jobs), processes), time.perf_counter() - started

    pool = ThreadPoolExecutor(jobs)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        longest_first = sorted(
            enumerate(tasks), key=lambda task: -(task[1].budget or 0)
        )  # a long one at the end runs alone
        futures = {pool.submit(run, index, task): task for index, task in longest_first}
        for future in as_completed(futures):
            task, (message, seconds) = futures[future], future.result()
            if message:
                failures[task.label] = message
            say(f"{task.label}: {'FAILED' if message else 'done'} after {seconds:.0f} s")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _stop(processes)
        for folder in {task.target.parent for task in tasks if isinstance(task.target, Path)}:
            sweep(folder)
        signal.signal(signal.SIGTERM, before)
    print("\n" * len(tasks) if bars() else "", end="")  # below the bars
    return failures


def say(line: str) -> None:
    """Print a line where no bars are drawn."""
    if not bars():
        print(line + "\n", end="", flush=True)  # in one piece: others may be printing


def run_in_process(
    task: Task, index: int = 0, threads: int = 1, processes: list[subprocess.Popen] | None = None
) -> str:  # fmt: skip
    """Run one task in a process of its own; "" or how it failed.

    The process ends when its input does, that is, when this process ends, in whatever way.

    Args:
        task: what to run.
        index: line of its progress bar.
        threads: for linear algebra, where the environment does not say it.
        processes: gets the process, for whoever wants to stop it.
    """
    # The terminal sends Ctrl-C to every process of its session. Only this one listens, and stops the others once.
    process = subprocess.Popen(WORK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin and process.stdout
    if processes is not None:
        processes.append(process)
    with suppress(BrokenPipeError):
        process.stdin.write(pickle.dumps((task, index, threads)))
        process.stdin.flush()
    message = process.stdout.read().decode()
    process.wait()
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    return "" if message == DONE else message or DIED


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()

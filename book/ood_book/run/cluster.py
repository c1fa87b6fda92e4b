"""Runs tasks on the workers of a Dask cluster: Dask chooses the worker, and gives what a dead one had to another."""

import platform
from collections.abc import Sequence

from distributed import Client, as_completed, get_worker

from ood_book.notebooks import Refused
from ood_book.run.plan import Task, library_hash
from ood_book.run.runner import run_in_process, say
from ood_book.run.work import cores

__all__ = ["run_on_cluster", "run_on_worker"]


def run_on_cluster(tasks: Sequence[Task], address: str) -> dict[str, str]:
    """Run every task on the cluster with this scheduler address, or scheduler file (`.json`); what failed, by label."""
    failures = {}
    with _client(address) as client:
        say(f"{len(client.scheduler_info()['workers'])} workers at {client.scheduler.address}")
        # Not pure: what a run gives is on the disk, so that a result Dask remembers is of no use.
        futures = {client.submit(run_on_worker, task, pure=False): task for task in tasks}
        for future in as_completed(futures):
            task = futures[future]
            try:
                message = future.result()
            except Exception as error:  # its worker died time and again, or cannot even read the task
                message = f"failed on the cluster\n  {type(error).__name__}: {error}"
            if message:
                failures[task.label] = message
            say(f"{task.label}: {'FAILED' if message else 'done'}")
    return failures


def _client(address: str) -> Client:
    place = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        return Client(**place)
    except (OSError, ValueError) as error:
        raise Refused(
            f"no Dask scheduler answers at {address!r} ({type(error).__name__}: {error}); start one with "
            "`dask scheduler`, which prints its address, and workers with `dask worker ADDRESS`"
        ) from error


def run_on_worker(task: Task) -> str:
    """What a worker does: the run in a process of its own, with its share of the cores; "" or how it failed."""
    if library_hash() != task.library:
        other = f"the ood_lib of {platform.node()} is not the one that planned"
        return f"failed in a check: {other}; install the same everywhere"
    if task.is_done:  # its first worker died after it had finished
        return ""
    slots = get_worker().state.nthreads
    return run_in_process(task, threads=max(1, cores() // slots))

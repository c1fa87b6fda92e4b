"""Processes of their own for tests, forked from one that has imported what is heavy: they start in no time."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["START", "apart", "finish", "start"]

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
START = multiprocessing.get_context(METHOD)
HEAVY = ["pytest", "matplotlib", "torch", "torch.distributed", "ood_lib.features.blocks", "ood_lib.networks.resnet"]
if METHOD == "forkserver":
    START.set_forkserver_preload(HEAVY)


def start(target: Callable[..., object], *args: Any) -> multiprocessing.Process:
    """A process at work; `target` is a function of a module."""
    process = START.Process(target=target, args=args)
    process.start()
    return process


def finish(*processes: multiprocessing.Process) -> list[int]:
    """How processes have ended."""
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _answer(answers: Connection, task: Callable[..., Any], args: tuple) -> None:
    answers.send(task(*args))


def apart(task: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module returns in a process of its own; an `EOFError` where it fails there."""
    receive, send = START.Pipe(duplex=False)
    process = start(_answer, send, task, args)
    send.close()  # so that an end without an answer is noticed
    try:
        return receive.recv()
    finally:
        finish(process)

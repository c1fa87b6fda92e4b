"""Several processes, one piece of work: how those that ``torchrun`` starts find each other and divide it."""

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

__all__ = ["Team", "team"]

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long the first waits for the last; a process that dies is noticed at once


class Team(NamedTuple):
    """The processes that share the work, and which of them this one is.

    Example:
        >>> [Team(rank, 2).share("abcde") for rank in range(2)]
        ['ab', 'cde']
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: the parts of all ranks, one after the other, are the whole; a part may be empty."""
        first, last = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[first:last]

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, on every process; each waits here until all have arrived."""
        found = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, value, group=self.group)
        return found

    def device(self, where: torch.device) -> torch.device:
        """A GPU of its own for each process of a machine; any other device as it is."""
        if self.size == 1 or where != torch.device("cuda"):
            return where
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())


def team() -> Team:
    """The existing process group, or the one that ``torchrun`` announces (gloo); else this process alone.

    Whatever the backend of the group, members talk over a gloo group beside it: they exchange a few words, not tensors.
    """
    if not distributed.is_available():
        return Team()
    announced = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if announced and os.environ["WORLD_SIZE"] != "1" and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return Team()
    return Team(distributed.get_rank(), distributed.get_world_size(), _beside(distributed.group.WORLD))


@lru_cache(maxsize=1)
def _beside(_: Any) -> Any:
    """One group for the words of a world's members, made when they first talk."""
    atexit.register(_leave)
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _leave() -> None:
    """End the groups while Python is whole: a thread of gloo that lets go of a tensor later aborts the process."""
    _beside.cache_clear()  # it holds both groups, which end, and join their threads, when nobody does
    if distributed.is_initialized():
        distributed.destroy_process_group()

"""How far the run of a notebook is: its section, and its time against its budget; ends a run beyond its ceiling.

On a terminal a bar says so, elsewhere a line now and then. Against the budget counts the smaller of wall-clock and
processor time, so that a busy machine stops nothing. A run that only waits uses no processor; wall-clock time counts at
least by half, so that it comes to its ceiling as well.
"""

import re
import sys
import textwrap
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, Self

from tqdm import tqdm

from ood_book.notebooks import HEADING
from ood_book.run.budget import WARN, counted
from ood_book.run.plan import Task

__all__ = ["Progress"]

EVERY = 60  # seconds between two lines, at least
BAR = "{desc}: {bar:10}| {n_fmt}/{total_fmt} cells{postfix}"


class Progress:
    """Watches the run of one notebook while it is entered.

    Args:
        task: the run.
        cells: how many the notebook has.
        line: of the terminal, for the bar; None for lines of text in place of a bar.
        used: gives the processor seconds that the run has taken so far.
        end: stops the run.
    """

    def __init__(
        self, task: Task, cells: int, line: int | None, used: Callable[[], float], end: Callable[[], None]
    ) -> None:
        self.stopped = ""  # what became of the run, when it was stopped here
        self._task, self._used, self._end = task, used, end
        self._heading, self._cell = "", 0
        self._warned, self._next, self._cpu = False, float(EVERY), 0.0
        self._over = Event()
        drawn = {"total": cells, "desc": task.label, "position": line, "bar_format": BAR}
        self._bar = None if line is None else tqdm(**drawn)

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._watch, args=(time.monotonic(),), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.update(0 if kind else self._bar.total - self._bar.n)  # no cell after the last one says so
            self._bar.close()

    def starts(self, cell: Any, cell_index: int) -> None:
        """A cell is the next one; also those that only hold text come by."""
        if cell.cell_type == "markdown":
            heading = [self._heading, *HEADING.findall(cell.source)][-1]
            self._heading = textwrap.shorten(re.sub('[*`"]', "", heading), 50, placeholder=" ...")
        elif cell.source.strip():
            self._cell += 1
        if self._bar is not None:
            self._bar.update(cell_index - self._bar.n)

    @property
    def section(self) -> str:
        """The last heading, as it stands behind a cell in a message; empty before the first one."""
        return self._heading and f' of "{self._heading}"'

    @property
    def _place(self) -> str:
        return f"in cell [{self._cell}]{self.section}"

    def look(self, wall: float, cpu: float) -> None:
        """Say how far the run is when it is time to, and end it when its time is over; both times are in seconds."""
        budget, patience = self._task.budget, self._task.patience
        times = counted(wall, cpu) / (60 * budget) if budget else 0.0
        spent = self._spent(wall, cpu, times > WARN)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(filter(None, [spent, self._heading])))
        elif wall >= self._next or (times > WARN and not self._warned):
            self._next = wall + max(EVERY, wall / 10)  # of a run of hours not a line a minute
            line = f"{self._task.label}: {spent}, {self._place}{self._ends(times)}\n"
            print(line, end="", file=sys.stderr, flush=True)  # in one piece: others may be printing
        self._warned |= times > WARN
        if patience and times > patience:
            self.stopped = f"was stopped after {_over(wall, cpu, patience, budget)}, {self._place}{MORE}"
            self._end()  # at every look: the first may meet a kernel that is about to start

    def _watch(self, start: float) -> None:
        while not self._over.wait(1):
            self._cpu = max(self._cpu, self._used())  # a dead process counts nothing
            self.look(time.monotonic() - start, self._cpu)

    def _spent(self, wall: float, cpu: float, over: bool) -> str:
        budget = self._task.budget
        if over:
            return _over(wall, cpu, WARN, budget)
        return f"{wall / 60:.1f} min" + (f" of {budget:g} min" if budget else "")

    def _ends(self, times: float) -> str:
        patience = self._task.patience
        return f"; it is stopped at {patience:g} times (--patience)" if patience and times > WARN else ""


MORE = "\n  To give it more time, add `--patience TIMES` to `ood-book run`; with 0 it takes as long as it takes."


def _over(wall: float, cpu: float, times: float, budget: float | None) -> str:
    took = f"{wall / 60:.1f} min ({cpu / 60:.1f} min of processor time)"
    return f"{took}, more than {times:g} times its budget of {budget:g} min"

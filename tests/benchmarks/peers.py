"""How fast the library is beside its peers and beside the arithmetic: one table, on one thread.

    python -m tests.benchmarks.peers [--rows KNN ViM] [--quick] [--again] [--out FILE]

Every row first checks that all ways compute the same numbers.  Peers that are not installed are left out; for the
whole table: pip install pytorch-ood==0.4.0 faiss-cpu torchmetrics normflows zuko scikit-learn.  A row is written to the
file as soon as it is measured, and a second run measures only what is missing (``--again``: also what is there).
About 15 minutes.

The columns: the library's processor seconds, least of five runs, and by how much the median run exceeds it; the best
peer and the ratio of ours to it (below 1: the library is faster); the ratio to the least time of the matrix products
and the memory traffic at the rates of this machine; the highest memory beyond the input, ours and the best peer's.
"""

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ood_book.site.scale import compared, speed_table

from tests.benchmarks.measure import Apart, Store, machine, measured
from tests.benchmarks.rows import QUICK, ROWS, Size, optional

OUT = Path(__file__).parents[2] / "book/results/speed/peers.json"


def run(names: list[str], size: Size, out: Path | None, again: bool = False, rounds: int = 5) -> dict[str, Any]:
    """Measure the rows that are missing from the file, or all of these again; all that it then holds."""
    store = Store(out, list(ROWS), command="python -m tests.benchmarks.peers", machine=machine(), size=size._asdict())
    for name in ("faiss", "sklearn.neighbors", "pytorch_ood.detector", "zuko", "normflows"):
        optional(name)  # imported once, here: the forks inherit it
    failed = store.fill(names, lambda name: measured(partial(ROWS[name], size), rounds), again)
    if failed:
        raise Apart("\n".join(failed))
    return store.content


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="some of the rows")
    parser.add_argument("--quick", action="store_true", help="small shapes: shows that all ways agree; writes no file")
    parser.add_argument("--again", action="store_true", help="measure what the file holds already, too")
    parser.add_argument("--out", type=Path, default=OUT, help="the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of peers, about devices
    warnings.simplefilter("ignore")
    size, out = (QUICK, None) if options.quick else (Size(), options.out)
    content = run(options.rows, size, out, options.again, 2 if options.quick else 5)
    print(f"{speed_table(content)}\n{compared(content)}")


if __name__ == "__main__":
    main()

"""What a page costs on a machine that others use: its run beside 0, 2 and 6 busy processes.

    python -m tests.benchmarks.company [--notebook protocol] [--profile quick] [--rounds 3] [--out FILE]

Each run is `ood-book run`, whole, in a process of its own.  On two cores the clock must stretch; processor time need
not, unless threads wait by spinning.  A second call adds rounds that are missing.  About ten minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.measure import Store, machine

OUT = Path(__file__).parents[2] / "book/results/speed/company.json"
COMPANY = (0, 2, 6)  # busy processes beside the run


@contextmanager
def busy(count: int) -> Iterator[None]:
    """That many processes which never wait, each in a session of its own: Linux divides processors by session."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(count)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(notebook: str, profile: str) -> dict[str, float]:
    """Seconds of the clock and of processors, and the peak memory in MB of the largest process, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "ood_book.cli", "run", notebook, "--profile", profile, "--force", "--out", folder],
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"ood-book run {notebook} --profile {profile} failed; run it by hand to see why")
    return {
        "wall": round(wall, 2), "processor": round(usage.ru_utime + usage.ru_stime, 2),
        "memory_mb": round(usage.ru_maxrss / 1024, 1),
    }  # fmt: skip


def main() -> None:
    """Measure the rounds that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebook", default="protocol", help="the page")
    parser.add_argument("--profile", default="quick", help="its profile")
    parser.add_argument("--rounds", type=int, default=3, help="runs beside each number of busy processes")
    parser.add_argument("--out", type=Path, default=OUT, help="the file")
    options = parser.parse_args()
    command = f"python -m tests.benchmarks.company --notebook {options.notebook} --profile {options.profile}"
    page = {"notebook": options.notebook, "profile": options.profile}
    store = Store(options.out, [*map(str, COMPANY)], command=command, machine=machine(), **page)
    run(options.notebook, options.profile)  # compiles and caches what is kept between runs
    for turn in range(options.rounds):
        for count in COMPANY:
            if len(done := store.rows.get(str(count), [])) > turn:
                continue
            with busy(count):
                store.put(str(count), [*done, run(options.notebook, options.profile)])
            print(count, store.rows[str(count)][-1], flush=True)


if __name__ == "__main__":
    main()

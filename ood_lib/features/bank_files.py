"""The folder of a bank: whole at every moment, also while its files take the place of former ones.

`BenchmarkFeatures.save` makes the files, `BenchmarkFeatures.load` reads them.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ood_lib.files import read_json, sha256_of

__all__ = ["BANK", "NEXT", "exchange", "header", "on_the_way", "verified"]

BANK = "benchmark.json"  # the sha256 of each file of a bank; written last: a folder without it is not complete
NEXT = ".next"  # in the folder of a bank: one that is whole, while its files take the place of the former ones


def exchange(made: Path, folder: Path) -> None:
    """Put a bank that is whole in the place of the one in a folder.

    Moved to `NEXT` in one step, it counts, and the rest is done by whoever comes next if this process is killed.
    """
    for attempt in range(100):
        _settle(folder)
        try:
            os.replace(made, folder / NEXT)
            break
        except OSError:  # another process was faster
            if attempt == 99 or not (folder / NEXT).exists():
                raise
    _settle(folder)


def _settle(folder: Path) -> None:
    """Move the files of a bank that is whole to their places; several may do so at once, and be killed at it."""
    there = folder / NEXT
    for path in sorted(on_the_way(folder), key=lambda path: path.name == BANK):  # the header last
        place = folder / path.relative_to(there)
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # moved by another
            os.replace(path, place)
    for emptied, _, _ in os.walk(there, topdown=False):
        with suppress(OSError):  # the next bank is in it
            os.rmdir(emptied)


def on_the_way(folder: Path) -> list[Path]:
    """The files of `NEXT`, which may vanish meanwhile."""
    return [Path(place, name) for place, _, names in os.walk(folder / NEXT) for name in names]


def header(folder: Path) -> dict[str, Any]:
    """What is written of the bank that counts."""
    for file in (folder / NEXT / BANK, folder / BANK):
        with suppress(FileNotFoundError, NotADirectoryError):
            written = read_json(file, "copy the bank again, or make it again")
            if not all(isinstance(written.get(key), dict) for key in ("sets", "about")):
                raise ValueError(f"{file} is no header of a bank; expected an object of sets and about")
            if lacking := {"train", "val", "test"} - {*written["sets"]}:
                raise ValueError(f"{file} names no {', '.join(sorted(lacking))}: copy the bank again, or make it again")
            return written
    raise FileNotFoundError(
        f"{folder} holds no {BANK}: it is no bank, or writing it was interrupted; "
        "make one with extract_benchmark(network, bench).save(folder)"
    )


def verified(folder: Path, name: str, sha: str) -> Path:
    """The file of a set, in its place or still on the way there."""
    for path in (folder / NEXT / name, folder / name):
        if path.is_file() and sha256_of(path) == sha:
            return path
    raise ValueError(
        f"{folder / name} is missing or not the file that was saved (sha256 {str(sha)[:12]}...): copy it again"
    )

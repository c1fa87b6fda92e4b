"""Pictures in files: which there are below a folder, and their pixels."""

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from ood_lib.extras import need
from ood_lib.files import is_hidden
from ood_lib.warn import warn

__all__ = ["decode", "find_pictures", "picture_shape"]

NO_PICTURES = (".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf")  # for Pillow

BESIDE = (
    ".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".mat", ".npz", ".npy", ".html", ".log", ".py",
    ".ipynb", ".pdf", ".zip", ".gz", ".tar",
)  # fmt: skip
"""Endings of what is meant to stand beside pictures: nobody misses it among them."""


@lru_cache(maxsize=1)
def _endings() -> tuple[str, ...]:
    """Of the files that Pillow, with whatever plugins there are, opens as pictures."""
    pillow = need("PIL.Image")
    readable = {ending for ending, kind in pillow.registered_extensions().items() if kind in pillow.OPEN}
    return tuple(sorted(readable - {*NO_PICTURES}))


def find_pictures(folder: Path, within: Path | None = None, tell: bool = False) -> list[str]:
    """Sorted relative names of all pictures below `folder`, hidden ones left out.

    Links to folders are followed, but for those that lead back into `within`: there each picture is found already.

    Args:
        folder: where to look.
        within: the whole that the folder is a part of; None = the folder.
        tell: warn of files and links that are left out, by name and number.
    """
    home = os.path.realpath(within or folder)
    seen: set[str] = set()
    found: list[str] = []
    others: list[str] = []
    back: list[str] = []
    for where, folders, files in os.walk(folder, followlinks=True):
        inner = sorted(name for name in folders if not is_hidden(name))
        again = [name for name in inner if _leads_back(os.path.join(where, name), home, seen)]  # fills `seen`
        folders[:] = [name for name in inner if name not in again]  # where os.walk goes on
        names = {os.path.relpath(os.path.join(where, file), folder) for file in files if not is_hidden(file)}
        pictures = {name for name in names if name.lower().endswith(_endings())}
        found += pictures
        others += [name for name in names - pictures if not name.lower().endswith(BESIDE)]
        back += [os.path.relpath(os.path.join(where, name), folder) for name in again]
    if tell and others:
        ends = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in others)
        kinds = ", ".join(f"{count} {end}" for end, count in ends.most_common(5))
        warn(
            f"{len(others)} files in {folder} are left out, which Pillow does not open: {kinds}, such as {min(others)}"
        )
    if tell and back:
        warn(f"{len(back)} links in {folder} lead to what is found already, and are left out: the first is {min(back)}")
    return sorted(found)


def _leads_back(path: str, home: str, seen: set[str]) -> bool:
    """Whether a folder is a link to something that is looked at anyway, or that holds where one stands."""
    real = os.path.realpath(path)
    back = os.path.islink(path) and (real in seen or os.path.commonpath([real, home]) in (real, home))
    seen.add(real)
    return back


def decode(path: str | os.PathLike[str] | IO[bytes]) -> np.ndarray:
    """The pixels of a picture file, turned as its EXIF says: uint8 (H, W) when it is grey, else (H, W, 3)."""
    pillow = need("PIL.Image")
    where = path if isinstance(path, str | os.PathLike) else "the picture"
    try:
        with pillow.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # Pillow clips 16 bits to 8, silently
                raise ValueError(f"pixels of mode {picture.mode}; save it with 8 bits a channel")
            upright = need("PIL.ImageOps").exif_transpose(picture)
            return np.asarray(upright.convert("L" if _is_grey(picture.mode) else "RGB"))
    except FileNotFoundError:
        raise
    except pillow.DecompressionBombError as error:
        raise ValueError(
            f"{where} has more pixels than Pillow opens: {error}; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except MemoryError as error:
        raise MemoryError(f"{where} does not fit into the memory: make it smaller") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{where} cannot be read as a picture: {error}") from error


def _is_grey(mode: str) -> bool:
    """Whether pictures of this mode of Pillow have one channel."""
    return mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F"))


def picture_shape(path: Path) -> tuple[int, int, int] | None:
    """Channels, height and width of a picture by its header; None where it cannot be read."""
    try:
        with need("PIL.Image").open(path) as picture:
            return 1 if _is_grey(picture.mode) else 3, picture.height, picture.width
    except Exception:  # it is named when it is looked at
        return None

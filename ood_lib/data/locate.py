"""Where a set lies on disk: OpenOOD's lists, arrays, pictures in folders, what torchvision unpacks.  Else, a fetch."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ood_lib.data.annotations import read_openood, read_table
from ood_lib.data.download import ORIGINS, PUBLISHED, fetch_published, fetch_tiny_imagenet, open_published
from ood_lib.data.images import ImageArray, ImageFiles, ImageFormat, ImageSet
from ood_lib.data.pictures import find_pictures
from ood_lib.files import is_hidden
from ood_lib.warn import warn

__all__ = ["MissingDataError", "Shelf", "read_classes", "subfolders"]

OOD_SPLITS = ("test", "val", "train")  # an OOD set is only ever tested: any split will do


class MissingDataError(FileNotFoundError):
    """A set is not on this machine; the message says where it was looked for and what to do."""


class _Wanted(NamedTuple):
    """A set that is looked for: `known` sets are ID and need labels, the others get -1."""

    name: str
    splits: tuple[str, ...]
    frame: ImageFormat | None
    known: bool
    listed: str = ""  # OpenOOD's list of its images


_Search = tuple[ImageSet | None, list[str]]  # what was found, and where it was looked for


_DIRECTORIES = {
    "tiny_imagenet": ("tiny_imagenet", "tiny_imagenet_val", "tiny-imagenet-200/val"),
    "voc": ("voc", "voc2012"),
}

_WHOLE = ("mnist",)  # tested with all its splits, where they are


@dataclass(frozen=True)
class Shelf:
    """A folder of sets, and what may be done about a set that is not in it."""

    root: Path
    download: bool = False
    skip: bool = False

    def known(self, name: str, split: str, frame: ImageFormat | None) -> ImageSet:
        """One split of an ID set, with labels."""
        return self._find(_Wanted(name, (split,), frame, known=True))

    def undivided(self, name: str, frame: ImageFormat | None) -> ImageFiles | None:
        """A multi-label ID set that lies there in one piece, its labels.csv beside no split, if there is one."""
        places = (self.root / folder for folder in _DIRECTORIES.get(name, (name,)))
        return next((read_table(place, frame) for place in places if (place / "labels.csv").is_file()), None)

    def listed(self, path: str, frame: ImageFormat | None) -> ImageFiles | None:
        """The images of an OpenOOD list, `path` being one below benchmark_imglist/, where both are there."""
        file = self.root / "benchmark_imglist" / path
        if not (path and file.is_file()):
            return None
        found = (read_openood(file, self.root / kind, frame) for kind in ("images_classic", "images_largescale"))
        return next((data for data in found if (data.base / data.names[0]).is_file()), None)

    def unknown(self, names: Sequence[str], frame: ImageFormat, lists: Mapping[str, str] = {}) -> dict[str, ImageSet]:
        """OOD sets by name, by OpenOOD's `lists` if these exist; with `skip`, absent sets are left out with one
        warning."""
        found, absent = {}, []
        for name in names:
            try:
                found[name] = self._unknown(_Wanted(name, OOD_SPLITS, frame, False, lists.get(name, "")))
            except MissingDataError:
                if not self.skip:
                    raise
                absent.append(name)
        if absent:
            where = f'under {self.root}; missing="raise" tells where each was looked for'
            warn(f"left out, not found: {', '.join(absent)} ({where})")
        return found

    def _unknown(self, wanted: _Wanted) -> ImageSet:
        if found := self.listed(wanted.listed, wanted.frame):
            return found.unlabelled()
        data = self._find(wanted).unlabelled()
        return self._joined(wanted) or data if wanted.name in _WHOLE else data

    def _joined(self, wanted: _Wanted) -> ImageSet | None:
        """Training and test images together, where both are there in one form."""
        parts, shelf = [], replace(self, download=False)
        for split in ("train", "test"):
            with suppress(MissingDataError):
                parts.append(shelf._find(wanted._replace(splits=(split,))))
        arrays = [part for part in parts if isinstance(part, ImageArray)]
        files = [part for part in parts if isinstance(part, ImageFiles)]
        if len(arrays) == 2:
            return ImageArray.joined(arrays)
        return ImageFiles.joined(files) if len(files) == 2 else None

    def _find(self, wanted: _Wanted) -> ImageSet:
        name, tried = wanted.name, []
        places = (self.root / folder for folder in _DIRECTORIES.get(name, (name,)))
        ways: list[Callable[[_Wanted], _Search]] = [partial(_read_local, place) for place in places]
        ways += [self._published] if name in PUBLISHED else []
        ways += [self._tiny_imagenet] if name == "tiny_imagenet" and self.download else []
        for way in ways:
            found, looked = way(wanted)
            if found:
                return found
            tried += looked
        raise MissingDataError(self._advice(wanted, tried))

    def _published(self, wanted: _Wanted) -> _Search:
        name, tried = wanted.name, []
        split = "val" if PUBLISHED[name].read and not wanted.known else wanted.splits[0]  # test has no labels there
        own = self.root / "torchvision" / name
        for home in (self.root, self.root / name, own):
            path = home / PUBLISHED[name].there
            tried.append(str(path))
            try:
                if path.exists():
                    return open_published(home, name, split, wanted.frame), tried
            except Exception as error:  # torchvision, tarfile, pickle: each fails its own way
                tried[-1] += f" (there, but incomplete or damaged: {error})"
        try:
            if self.download and PUBLISHED[name].fetched:
                return fetch_published(own, name, split, wanted.frame), tried
        except Exception as error:
            kept = "" if hasattr(error, "explained") else "; nothing partial was kept: running again starts afresh"
            tried.append(f"a download ({type(error).__name__}: {error}{kept})")
        return None, tried

    def _tiny_imagenet(self, wanted: _Wanted) -> _Search:
        home = self.root / "tiny_imagenet"
        try:
            fetch_tiny_imagenet(home)
        except (OSError, RuntimeError) as error:
            return None, [f"a download ({type(error).__name__}: {error})"]
        return _read_local(home, wanted)

    def _advice(self, wanted: _Wanted, tried: Sequence[str]) -> str:
        name, place, split, known = wanted.name, self.root / wanted.name, wanted.splits[0], wanted.known
        ways = [
            f"arrays: {place / split}.npz with images uint8 (N, H, W[, 3]) and labels (N,)",
            f"pictures: {place / split}/<class>/<picture>" if known else f"pictures: {place}/**/<picture>",
        ]
        ways += [f"pictures of several classes: {place / split}/labels.csv, header image,<class>,..."] if known else []
        if name in PUBLISHED:
            ways.append(f"what torchvision.datasets.{PUBLISHED[name].kind} reads: {self.root / PUBLISHED[name].there}")
        ways += [f"where to get it: {ORIGINS[name]}"] if name in ORIGINS else []
        ways.append("another folder of sets: root=... or the environment variable OOD_DATA")
        if not self.download and (name == "tiny_imagenet" or (name in PUBLISHED and PUBLISHED[name].fetched)):
            ways.append("download=True: it is fetched")
        ways += [] if known else ['missing="skip": leaves absent OOD sets out']
        looked, helps = "\n  ".join(tried), "\n  ".join(ways)
        return f"no {name or 'images'} ({split}). Looked for\n  {looked}\nAny one of these helps:\n  {helps}"


def _read_local(place: Path, wanted: _Wanted) -> _Search:
    """Arrays, then folders; only an OOD set of which any split will do may lie in its folder without one."""
    splits = wanted.splits[0] if len(wanted.splits) == 1 else f"{{{','.join(wanted.splits)}}}"
    tried = [f"{place / splits}.npz"]
    for split in wanted.splits:
        if (path := place / f"{split}.npz").is_file():
            return _read_arrays(path, wanted), tried
    read, below = (_read_labelled, "<class>/<picture>, or labels.csv") if wanted.known else (_read_flat, "**/<picture>")
    anywhere = not wanted.known and len(wanted.splits) > 1
    tried.append(f"{place if anywhere else place / splits}/{below}")
    for folder in [place / split for split in wanted.splits] + ([place] if anywhere else []):
        if found := read(folder, wanted.frame):
            return found, tried
    tried[-1] += " (there, but without a picture)" if (place if anywhere else place / splits).is_dir() else ""
    return None, tried


def _read_arrays(path: Path, wanted: _Wanted) -> ImageArray:
    try:
        asked, free = _bytes_of(path), _free_memory()
        if asked > free:
            raise MemoryError
        with np.load(path) as file:
            arrays = {key: file[key] for key in ("images", "labels") if key in file.files}
    except MemoryError as error:
        raise MemoryError(
            f"{path} holds arrays of {asked / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: save fewer "
            "images in it, or save them as pictures in folders, which are read one by one"
        ) from error
    except Exception as error:  # zipfile, zlib, pickle, EOF: each fails its own way
        raise ValueError(
            f"{path} is no complete .npz file, perhaps a truncated copy; copy it again ({error})"
        ) from error
    for key in ("images", "labels") if wanted.known else ("images",):
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}, only {sorted(arrays)}")
    try:
        return ImageArray(arrays["images"], arrays.get("labels"), wanted.frame)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _bytes_of(path: Path) -> int:
    """What the arrays of a file take in memory, by their headers."""
    total, readers = 0, {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for name in {"images.npy", "labels.npy"} & {*archive.namelist()}:
            with archive.open(name) as member:
                shape, _, dtype = readers[np.lib.format.read_magic(member)](member)
            total += math.prod(shape) * dtype.itemsize
    return total


def _free_memory() -> float:
    """Bytes that a process may still take; infinite where the system does not say."""
    free = math.inf
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * float(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):  # of a container; "max" is none
        group = Path("/sys/fs/cgroup")
        limit, used = (float((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def _read_flat(folder: Path, frame: ImageFormat | None) -> ImageFiles | None:
    names = find_pictures(folder, tell=True)
    return ImageFiles(folder, names, None, frame) if names else None


def _read_labelled(folder: Path, frame: ImageFormat | None) -> ImageFiles | None:
    if (folder / "labels.csv").is_file():
        return read_table(folder, frame)
    return read_classes(folder, subfolders(folder), frame)


def read_classes(folder: Path, classes: Sequence[str], frame: ImageFormat | None = None) -> ImageFiles | None:
    """The pictures in the folders `classes` below `folder`, labelled by them; None where there is no picture.

    Raises:
        MissingDataError: one of the folders holds no picture, others do.
    """
    found = (find_pictures(folder / name, folder, tell=True) for name in classes)
    files = [[f"{name}/{file}" for file in members] for name, members in zip(classes, found)]
    if any(files) and [] in files:
        raise MissingDataError(f"{folder / classes[files.index([])]} holds no picture")
    names = [name for members in files for name in members]
    labels = [label for label, members in enumerate(files) for _ in members]
    return ImageFiles(folder, names, labels, frame, classes) if names else None


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the visible folders in `folder`, which need not exist."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p.name for p in entries if p.is_dir() and not is_hidden(p.name))

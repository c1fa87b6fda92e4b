"""Where a set lies on disk, or is fetched from: arrays, pictures in folders, what torchvision unpacks or downloads."""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ood_lib.extras import need
from ood_lib.images import Frame, ImageArray, ImageFiles, ImageSet
from ood_lib.listings import read_coco, read_table, read_voc

__all__ = ["MissingDataError", "Shelf", "subfolders"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
OOD_SPLITS = ("test", "val", "train")  # an OOD set is only ever tested: any split will do


class MissingDataError(FileNotFoundError):
    """A set is not on this machine; the message says where it was looked for and what to do."""


class _Wanted(NamedTuple):
    """A set that is looked for: `known` sets are ID and need labels, the others get -1."""

    name: str
    splits: tuple[str, ...]
    frame: Frame | None
    known: bool


class _Published(NamedTuple):
    """A set as torchvision unpacks it, or fetches it and verifies the archive by md5."""

    kind: str  # the class in torchvision.datasets
    there: str  # what it reads under its root
    fetched: bool = True
    options: Mapping[str, Any] | None = None  # None: the class takes train=True or False
    pictures: int = 0  # of a set that is a folder: shows whether unpacking was interrupted
    read: Callable[[Path, str, Frame | None], ImageFiles] | None = None  # of multi-label pictures


_PUBLISHED = {
    "cifar10": _Published("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _Published("CIFAR100", "cifar-100-python"),
    "mnist": _Published("MNIST", "MNIST/raw"),
    "fashion_mnist": _Published("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": _Published("KMNIST", "KMNIST/raw"),
    "svhn": _Published("SVHN", "test_32x32.mat", options={"split": "test"}),
    "textures": _Published("DTD", "dtd/dtd/images", options={"split": "test"}, pictures=5640),
    "places365": _Published("Places365", "val_256", options={"split": "val", "small": True}, pictures=36500),
    "voc": _Published("VOCDetection", "VOCdevkit/VOC2012", options={"year": "2012"}, read=read_voc),
    "coco": _Published("CocoDetection", "annotations", fetched=False, read=read_coco),
}
_DIRECTORIES = {
    "tiny_imagenet": ("tiny_imagenet", "tiny_imagenet_val", "tiny-imagenet-200/val"),
    "voc": ("voc", "voc2012"),
}


@dataclass(frozen=True)
class Shelf:
    """A folder of sets, and what may be done about a set that is not in it."""

    root: Path
    download: bool = False
    skip: bool = False

    def known(self, name: str, split: str, frame: Frame | None) -> ImageSet:
        """One split of an ID set, with labels."""
        return self._find(_Wanted(name, (split,), frame, known=True))

    def undivided(self, name: str, frame: Frame | None) -> ImageFiles | None:
        """A multi-label ID set that lies there in one piece, its labels.csv beside no split, if there is one."""
        places = (self.root / folder for folder in _DIRECTORIES.get(name, (name,)))
        return next((read_table(place, frame) for place in places if (place / "labels.csv").is_file()), None)

    def unknown(self, names: Sequence[str], frame: Frame) -> dict[str, ImageSet]:
        """OOD sets by name; with `skip`, absent ones are left out with one warning."""
        found, absent = {}, []
        for name in names:
            try:
                found[name] = self._find(_Wanted(name, OOD_SPLITS, frame, known=False))
            except MissingDataError:
                if not self.skip:
                    raise
                absent.append(name)
        if absent:
            where = f'under {self.root}; missing="raise" tells where each was looked for'
            # The reader's line: the caller of load_benchmark, which calls a recipe, which calls this.
            warnings.warn(f"left out, not found: {', '.join(absent)} ({where})", stacklevel=4)
        return found

    def _find(self, wanted: _Wanted) -> ImageSet:
        tried: list[str] = []
        for folder in _DIRECTORIES.get(wanted.name, (wanted.name,)):
            if found := _read_local(self.root / folder, wanted, tried):
                return found
        if wanted.name in _PUBLISHED and (found := self._published(wanted, tried)):
            return found
        raise MissingDataError(self._advice(wanted, tried))

    def _published(self, wanted: _Wanted, tried: list[str]) -> ImageSet | None:
        own = self.root / "torchvision" / wanted.name
        for home in (self.root, self.root / wanted.name, own):
            path = home / _PUBLISHED[wanted.name].there
            tried.append(str(path))
            try:
                if path.exists():
                    return _open_published(home, wanted)
            except Exception as error:  # torchvision, tarfile, pickle: each fails its own way
                tried[-1] += f" (there, but incomplete or damaged: {error})"
        try:
            return _fetch_published(own, wanted) if self.download and _PUBLISHED[wanted.name].fetched else None
        except Exception as error:
            kept = "nothing partial was kept: running again starts afresh"
            tried.append(f"a download ({type(error).__name__}: {error}; {kept})")
            return None

    def _advice(self, wanted: _Wanted, tried: Sequence[str]) -> str:
        place, split, known = self.root / wanted.name, wanted.splits[0], wanted.known
        ways = [
            f"arrays: {place / split}.npz with images uint8 (N, H, W[, 3]) and labels (N,)",
            f"pictures: {place / split}/<class>/<picture>" if known else f"pictures: {place}/**/<picture>",
            *([f"pictures of several classes: {place / split}/labels.csv, header image,<class>,..."] if known else []),
            "another folder of sets: root=... or the environment variable OOD_DATA",
        ]
        if wanted.name in _PUBLISHED:
            kind, there, fetched = _PUBLISHED[wanted.name][:3]
            ways.insert(-1, f"what torchvision.datasets.{kind} reads: {self.root / there}")
            ways += [] if self.download or not fetched else ["download=True: torchvision fetches it"]
        ways += [] if known else ['missing="skip": leaves absent OOD sets out']
        looked, helps = "\n  ".join(tried), "\n  ".join(ways)
        return f"no {wanted.name or 'images'} ({split}). Looked for\n  {looked}\nAny one of these helps:\n  {helps}"


def _read_local(place: Path, wanted: _Wanted, tried: list[str]) -> ImageSet | None:
    """Arrays, then folders; only an OOD set may lie in its folder without a split."""
    for split in wanted.splits:
        path = place / f"{split}.npz"
        tried.append(str(path))
        if path.is_file():
            return _read_arrays(path, wanted)
    read, below = (_read_labelled, "<class>/<picture>, or labels.csv") if wanted.known else (_read_flat, "**/<picture>")
    for folder in [place / split for split in wanted.splits] + ([] if wanted.known else [place]):
        tried.append(f"{folder}/{below}")
        if found := read(folder, wanted.frame):
            return found
        tried[-1] += " (there, but without a picture)" if folder.is_dir() else ""
    return None


def _read_arrays(path: Path, wanted: _Wanted) -> ImageArray:
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in ("images", "labels") if key in file.files}
    except Exception as error:  # zipfile, zlib, pickle, EOF: each fails its own way
        raise ValueError(
            f"{path} is no complete .npz file, perhaps a truncated copy; copy it again ({error})"
        ) from error
    for key in ("images", "labels") if wanted.known else ("images",):
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}, only {sorted(arrays)}")
    try:
        data = ImageArray(arrays["images"], arrays.get("labels"), wanted.frame)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return data if wanted.known else ImageArray(arrays["images"], None, wanted.frame)


def _read_flat(folder: Path, frame: Frame | None) -> ImageFiles | None:
    names = _pictures(folder)
    return ImageFiles(folder, names, None, frame) if names else None


def _read_labelled(folder: Path, frame: Frame | None) -> ImageFiles | None:
    if (folder / "labels.csv").is_file():
        return read_table(folder, frame)
    return _read_classes(folder, frame)


def _read_classes(folder: Path, frame: Frame | None) -> ImageFiles | None:
    classes = subfolders(folder)
    files = [[f"{name}/{file}" for file in _pictures(folder / name)] for name in classes]
    if any(files) and [] in files:
        raise MissingDataError(f"{folder / classes[files.index([])]} holds no picture")
    names = [name for members in files for name in members]
    labels = [label for label, members in enumerate(files) for _ in members]
    return ImageFiles(folder, names, labels, frame, classes) if names else None


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the visible folders in `folder`, which need not exist."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p.name for p in entries if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[str]:
    """Sorted relative names of all pictures below `folder`; links to folders are followed."""
    return sorted(
        os.path.relpath(os.path.join(where, file), folder)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(PICTURES) and not file.startswith(".")
    )


def _open_published(home: Path, wanted: _Wanted, download: bool = False) -> ImageSet:
    kind, there, _, options, pictures, read = _PUBLISHED[wanted.name]
    make = getattr(need("torchvision.datasets"), kind)
    if download or not (pictures or read):
        data = make(home, download=download, **(options or {"train": wanted.splits[0] == "train"}))
    if read:
        return read(home / there, wanted.splits[0], wanted.frame)
    if pictures:  # all of them, whatever split torchvision would make: an OOD set is only ever tested
        names = _pictures(home / there)
        if len(names) != pictures:
            raise RuntimeError(f"{len(names)} pictures instead of {pictures}")
        return ImageFiles(home / there, names, None, wanted.frame)
    images = np.moveaxis(data.data, 1, 3) if kind == "SVHN" else np.asarray(data.data)  # SVHN: channels first
    known = (data.targets, wanted.frame, data.classes) if wanted.known else (None, wanted.frame)
    return ImageArray(images, *known)


def _fetch_published(home: Path, wanted: _Wanted) -> ImageSet:
    """Download beside `home` and rename when complete: half a set is never taken for a whole.

    torchvision checks archives by md5, but trusts any folder that an interrupted run unpacked.  A killed run leaves a
    folder NAME-xxxx beside `home`, which nothing reads.
    """
    made = [folder for folder in home.parents if not folder.exists()]
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{wanted.name}-", dir=home.parent) as stage:
            fresh = Path(stage, "fresh")
            fresh.mkdir()
            _open_published(fresh, wanted, download=True)
            if home.exists():
                os.replace(home, Path(stage, "damaged"))
            os.replace(fresh, home)
    finally:
        for folder in made:  # the innermost first; one that now holds a set stays
            with suppress(OSError):
                folder.rmdir()
    return _open_published(home, wanted)

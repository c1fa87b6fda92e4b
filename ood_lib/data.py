"""Which set is in-distribution (ID), near-OOD, far-OOD; every image in [0, 1].

A benchmark is a promise about roles: the network is trained on `train`, thresholds are set on
`val`, and `test` is compared with each set in `near` (similar pictures, unseen classes) and `far`
(other pictures). All sets come in the ID set's shape, with pixels in [0, 1]; standardisation
belongs to the network (`Benchmark.normalize` is its first layer), so that the same tensors serve
for drawing and for gradients in pixel units. An OOD image has no class here: its label is -1.

Sources: digits, Alpaydin and Kaynak 1998, through scikit-learn. The roles of CIFAR and ImageNet
are those of OpenOOD v1.5, Zhang et al. 2023, arXiv:2306.09301.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Frame",
    "ImageArray",
    "ImageFiles",
    "MissingDataError",
    "Normalize",
    "load_benchmark",
    "load_ood_set",
]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
OOD_SPLITS = ("test", "val", "train")  # an OOD set is only ever tested: any split will do


class MissingDataError(FileNotFoundError):
    """A set is not on this machine; the message says where it was looked for and what to do."""


# --------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Frame:
    """The picture format of a benchmark: shorter side resized to `resize`, then a centre crop.

    The rule of OpenOOD (bilinear with antialiasing); `resize=0` means `resize=size`, in pixels.
    """

    channels: int
    size: int
    resize: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """images: (N, 1 or 3, H, W) in [0, 1] -> (N, channels, size, size)."""
        images = _resize(_recolour(images, self.channels), self.resize or self.size)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def _recolour(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = images.new_tensor([0.299, 0.587, 0.114])  # luma of ITU-R 601, as in Pillow
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


def _resize(images: Tensor, short: int) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) == short:
        return images
    size = [short * height // min(height, width), short * width // min(height, width)]
    return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)


class _Images(Dataset[tuple[Tensor, int]]):
    """What both kinds of set share: labels, a frame, fetching by batch."""

    labels: Tensor  # (N,) int64, -1 for OOD
    frame: Frame | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The items of one batch, converted together; a DataLoader calls this by itself."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return list(zip(self._fetch(chosen), self.labels[chosen].tolist(), strict=True))

    @property
    def images(self) -> Tensor:
        """All images at once: float32 (N, C, H, W), four bytes a value."""
        return self._fetch(torch.arange(len(self)))

    def _fetch(self, indices: Tensor) -> Tensor:
        raise NotImplementedError

    def _conform(self, images: Tensor) -> Tensor:
        return images if self.frame is None else self.frame(images)


class ImageArray(_Images):
    """Images held in memory, converted and brought into the benchmark's frame on access.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 1 or 3), or float (N, 1 or 3, H, W) in [0, 1].
        labels: integers (N,), or None for OOD images, which get -1.
        frame: the shape to conform to; None leaves the images as they are.
        classes: what the labels count, where the source says so.

    Raises:
        ValueError: a wrong type, shape, range or number of labels.
    """

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        frame: Frame | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self._raw = _checked_images(_tensor(images))
        self.labels = _checked_labels(labels, len(self._raw))
        self.frame, self.classes = frame, tuple(classes)

    def subset(self, indices: Tensor) -> ImageArray:
        """The images at `indices` (n,), in that order."""
        return ImageArray(self._raw[indices], self.labels[indices], self.frame, self.classes)

    def fingerprint(self) -> str:
        """sha256 of pixels, labels and frame: equal content, equal fingerprint."""
        digest = hashlib.sha256(f"{self._raw.dtype}{tuple(self._raw.shape)}{self.frame}".encode())
        for part in (self._raw, self.labels):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def _fetch(self, indices: Tensor) -> Tensor:
        images = self._raw[indices]
        if images.dtype == torch.uint8:
            images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2).float() / 255
        return self._conform(images)


class ImageFiles(_Images):
    """Pictures in files, decoded on access.

    Args:
        base: the folder the names are relative to.
        names: relative paths (N,), as text.
        labels, frame: as for `ImageArray`; a frame is needed to batch pictures of several sizes.
        classes: the folder names that the labels count, if there are any.

    Raises:
        ValueError: on access, a file that is no complete 8-bit picture (the message names it).
    """

    def __init__(
        self,
        base: Path,
        names: Sequence[str],
        labels: Any = None,
        frame: Frame | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.base, self.names, self.classes, self.frame = base, list(names), classes, frame
        self.labels = _checked_labels(labels, len(self.names))

    def subset(self, indices: Tensor) -> ImageFiles:
        """The pictures at `indices` (n,), in that order."""
        names = [self.names[i] for i in indices.tolist()]
        return ImageFiles(self.base, names, self.labels[indices], self.frame, self.classes)

    def fingerprint(self) -> str:
        """sha256 of names, sizes, modification times, labels and frame; reads no picture."""
        digest = hashlib.sha256(f"{self.frame}".encode())
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            stat = (self.base / name).stat()
            digest.update(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}\t{label}\n".encode())
        return digest.hexdigest()

    def _fetch(self, indices: Tensor) -> Tensor:
        chosen = indices.tolist()
        return torch.cat([self._conform(_decode(self.base / self.names[i])) for i in chosen])


def _tensor(values: Any) -> Tensor:
    """Shares memory where torch allows it: not with read-only arrays or negative strides."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.require(values, None, ["C", "W"]))


def _checked_images(images: Tensor) -> Tensor:
    shape = tuple(images.shape)
    if images.dtype == torch.uint8:
        good = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    else:
        good = images.is_floating_point() and len(shape) == 4 and shape[1] in (1, 3)
    if not good or 0 in shape:
        raise ValueError(
            f"images are {images.dtype} of shape {shape}; expected uint8 (N, H, W) or "
            "(N, H, W, 3), or float (N, 1 or 3, H, W)"
        )
    if images.dtype == torch.uint8:
        return images
    if not (images.min() >= 0 and images.max() <= 1):  # written so that NaN fails too
        raise ValueError("float images must lie in [0, 1]; divide 0..255 pixels by 255")
    return images.float()


def _checked_labels(labels: Any, count: int) -> Tensor:
    if labels is None:
        return torch.full((count,), -1)
    labels = _tensor(labels)
    if labels.is_floating_point() or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected integers of "
            f"shape ({count},), one for each image"
        )
    return labels.long()


def _decode(path: Path) -> Tensor:
    """A picture file as (1, 1 or 3, H, W) in [0, 1]."""
    pillow = _need("PIL.Image")
    try:
        with pillow.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # Pillow clips 16 bits to 8, silently
                raise ValueError(f"pixels of mode {picture.mode}; save it with 8 bits a channel")
            grey = picture.mode in ("1", "L", "LA")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return torch.tensor(pixels).reshape(1, *pixels.shape[:2], -1).permute(0, 3, 1, 2) / 255


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is needed here: pip install "ood_lib[plots]"') from error


ImageSet = ImageArray | ImageFiles


# --------------------------------------------------------------------------- readers


class _Wanted(NamedTuple):
    """A set that is looked for: `known` sets are ID and need labels, the others get -1."""

    name: str
    splits: tuple[str, ...]
    frame: Frame | None
    known: bool


class _Published(NamedTuple):
    """A set that torchvision fetches and verifies by md5."""

    kind: str  # the class in torchvision.datasets
    there: str  # what it leaves under its root
    options: Mapping[str, Any] = MappingProxyType({})
    pictures: int = 0  # of a set that is a folder: shows whether unpacking was interrupted


_PUBLISHED = {
    "cifar10": _Published("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _Published("CIFAR100", "cifar-100-python"),
    "mnist": _Published("MNIST", "MNIST/raw"),
    "fashion_mnist": _Published("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": _Published("KMNIST", "KMNIST/raw"),
    "svhn": _Published("SVHN", "test_32x32.mat", {"split": "test"}),
    "textures": _Published("DTD", "dtd/dtd/images", {"split": "test"}, 5640),
    "places365": _Published("Places365", "val_256", {"split": "val", "small": True}, 36500),
}
_DIRECTORIES = {"tiny_imagenet": ("tiny_imagenet", "tiny_imagenet_val", "tiny-imagenet-200/val")}


@dataclass(frozen=True)
class _Shelf:
    """A folder of sets, and what may be done about a set that is not in it."""

    root: Path
    download: bool = False
    skip: bool = False

    def known(self, name: str, split: str, frame: Frame | None) -> ImageSet:
        return self._find(_Wanted(name, (split,), frame, known=True))

    def unknown(self, names: Sequence[str], frame: Frame) -> dict[str, ImageSet]:
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
            warnings.warn(f"left out, not found: {', '.join(absent)} ({where})", stacklevel=4)
        return found

    def _find(self, wanted: _Wanted) -> ImageSet:
        tried: list[str] = []
        for folder in _DIRECTORIES.get(wanted.name, (wanted.name,)):
            if found := _read_local(self.root / folder, wanted, tried):
                return found
        if wanted.name in _PUBLISHED and (found := self._published(wanted, tried)):
            return found
        raise MissingDataError(_advice(self, wanted, tried))

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
            return _fetch_published(own, wanted) if self.download else None
        except Exception as error:
            kept = "nothing partial was kept: running again starts afresh"
            tried.append(f"a download ({type(error).__name__}: {error}; {kept})")
            return None


def _advice(shelf: _Shelf, wanted: _Wanted, tried: Sequence[str]) -> str:
    place, split, known = shelf.root / wanted.name, wanted.splits[0], wanted.known
    pictures = f"{place / split}/<class>/<picture>" if known else f"{place}/**/<picture>"
    ways = [
        f"arrays: {place / split}.npz with images uint8 (N, H, W[, 3]) and labels (N,)",
        f"pictures: {pictures}",
        "another folder of sets: root=... or the environment variable OOD_DATA",
    ]
    if wanted.name in _PUBLISHED:
        kind, there = _PUBLISHED[wanted.name][:2]
        ways.insert(2, f"what torchvision.datasets.{kind} unpacks: {shelf.root / there}")
        ways += [] if shelf.download else ["download=True: torchvision fetches it"]
    ways += [] if known else ['missing="skip": leaves absent OOD sets out']
    looked, helps = "\n  ".join(tried), "\n  ".join(ways)
    title = f"no {wanted.name or 'images'} ({split}). Looked for"
    return f"{title}\n  {looked}\nAny one of these helps:\n  {helps}"


def _read_local(place: Path, wanted: _Wanted, tried: list[str]) -> ImageSet | None:
    """Arrays, then folders; only an OOD set may lie in its folder without a split."""
    parts = [place / split for split in wanted.splits]
    for path in [part.with_name(f"{part.name}.npz") for part in parts]:
        tried.append(str(path))
        if path.is_file():
            return _read_arrays(path, wanted)
    for folder in parts if wanted.known else [*parts, place]:
        tried.append(f"{folder}/" + ("<class>/<picture>" if wanted.known else "**/<picture>"))
        if found := (_read_classes if wanted.known else _read_flat)(folder, wanted.frame):
            return found
        tried[-1] += " (there, but without a picture)" if folder.is_dir() else ""
    return None


def _read_arrays(path: Path, wanted: _Wanted) -> ImageArray:
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files if key in ("images", "labels")}
    except Exception as error:  # zipfile, zlib, pickle, EOF: each fails its own way
        message = f"{path} is no complete .npz file, perhaps a truncated copy; copy it again"
        raise ValueError(f"{message} ({error})") from error
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


def _read_classes(folder: Path, frame: Frame | None) -> ImageFiles | None:
    classes = _subfolders(folder)
    files = [[f"{name}/{file}" for file in _pictures(folder / name)] for name in classes]
    if any(files) and [] in files:
        raise MissingDataError(f"{folder / classes[files.index([])]} holds no picture")
    names = [name for members in files for name in members]
    labels = [label for label, members in enumerate(files) for _ in members]
    return ImageFiles(folder, names, labels, frame, tuple(classes)) if names else None


def _subfolders(folder: Path) -> list[str]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p.name for p in entries if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[str]:
    """Sorted relative names of all pictures below `folder`; links to folders are followed."""
    found = (
        os.path.relpath(os.path.join(where, file), folder)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(PICTURES) and not file.startswith(".")
    )
    return sorted(found)


def _open_published(home: Path, wanted: _Wanted, download: bool = False) -> ImageSet:
    kind, there, options, pictures = _PUBLISHED[wanted.name]
    make = getattr(_need("torchvision.datasets"), kind)
    if pictures:
        if download:
            make(home, download=True, **options)
        names = _pictures(home / there)
        if len(names) != pictures:
            raise RuntimeError(f"{len(names)} pictures instead of {pictures}")
        return ImageFiles(home / there, names, None, wanted.frame)
    data = make(home, download=download, **(options or {"train": wanted.splits[0] == "train"}))
    images = np.asarray(data.data)
    images = np.moveaxis(images, 1, 3) if kind == "SVHN" else images  # the one with channels first
    if not wanted.known:
        return ImageArray(images, None, wanted.frame)
    return ImageArray(images, data.targets, wanted.frame, data.classes)


def _fetch_published(home: Path, wanted: _Wanted) -> ImageSet:
    """Download beside `home` and rename when complete: half a set is never taken for a whole.

    torchvision checks archives by md5, but trusts any folder that an interrupted run unpacked.
    A killed run leaves a folder NAME-xxxx beside `home`, which nothing reads.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{wanted.name}-", dir=home.parent) as stage:
        fresh = Path(stage, "fresh")
        fresh.mkdir()
        _open_published(fresh, wanted, download=True)
        if home.exists():
            os.replace(home, Path(stage, "damaged"))
        os.replace(fresh, home)
    return _open_published(home, wanted)


# --------------------------------------------------------------------------- benchmarks


class Normalize(nn.Module):
    """(x - mean) / std for each channel, with fixed statistics: the first layer of a network."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, C, H, W) in [0, 1]."""
        return (images - self.mean) / self.std

    @classmethod
    def measured(cls, images: Tensor) -> Normalize:
        """The statistics of `images` (N, C, H, W); nearly constant channels keep their scale."""
        std, mean = torch.std_mean(images, dim=(0, 2, 3))
        return cls(mean.tolist(), std.clamp_min(1 / 255).tolist())


@dataclass(frozen=True, eq=False, repr=False)
class Benchmark:
    """Which set plays which role; every item is (image float32 (C, H, W) in [0, 1], label)."""

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    near: dict[str, ImageSet]
    far: dict[str, ImageSet]
    classes: tuple[str, ...]
    normalize: nn.Module
    image_shape: tuple[int, int, int]

    def __repr__(self) -> str:
        roles = [(role, self.name, getattr(self, role)) for role in ("train", "val", "test")]
        roles += [("near", *item) for item in self.near.items()]
        roles += [("far", *item) for item in self.far.items()]
        width = max(len(name) for _, name, _ in roles)
        lines = [f"{role:<6} {name:<{width}} {len(data):>9,}" for role, name, data in roles]
        head = f"{self.name}: {len(self.classes)} classes, images {self.image_shape}"
        return "\n".join([head, f"{'role':<6} {'set':<{width}} {'images':>9}", *lines])


def _stratify(labels: Tensor, shares: Sequence[float], seed: int = 0) -> list[Tensor]:
    """Indices of len(shares) disjoint parts, each class divided by `shares` (summing to 1)."""
    random = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    indices = [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]
    if not all(map(len, indices)):
        raise ValueError(f"{len(labels)} images are too few to be divided into shares {shares}")
    return indices


def _digits(shelf: _Shelf) -> Benchmark:
    """Real 8x8 digits, complete inside scikit-learn: ID 0-6, near 7-9, far what is no digit.

    far: "photos", random squares of two photographs in grey, area-averaged to 8x8; "inverted",
    "rotated" (by 90 degrees, without 0, which stays a 0) and "blurred" ID test digits; "noise".
    """
    images, labels = _sklearn_digits()
    known = labels < 7
    near = ImageArray(images[~known])
    images, labels = images[known], labels[known]
    parts = _stratify(labels, (0.55, 0.15, 0.30))
    sets = [ImageArray(images[part], labels[part]) for part in parts]
    return _benchmark("digits", sets, {"digits7-9": near}, _no_digits(sets[2]))


def _sklearn_digits() -> tuple[Tensor, Tensor]:
    digits = _need("sklearn.datasets").load_digits()
    return torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)


def _no_digits(test: ImageArray) -> dict[str, ImageSet]:
    images, random = test.images, np.random.default_rng(0)
    return {
        "photos": ImageArray(_photo_patches(500, random)),
        "inverted": ImageArray(1 - images),
        "rotated": ImageArray(images[test.labels != 0].rot90(dims=(2, 3))),
        "blurred": ImageArray(_blur(images, sigma=2.0)),
        "noise": ImageArray(random.random((500, 1, 8, 8), dtype=np.float32)),
    }


def _photo_patches(count: int, random: np.random.Generator) -> Tensor:
    """(count, 1, 8, 8) squares of 16 to 256 pixels a side.

    Squares of even sky or shadow (deviation under 0.05 after averaging, one in five) are drawn
    again: a blank tile says nothing about photographs.
    """
    photos = _need("sklearn.datasets").load_sample_images().images
    grey = [_recolour(torch.tensor(p).permute(2, 0, 1)[None] / 255, 1) for p in photos]
    patches: list[Tensor] = []
    while len(patches) < count:
        photo, side = grey[random.integers(len(grey))], int(random.integers(16, 257))
        top, left = (int(random.integers(length - side + 1)) for length in photo.shape[-2:])
        patch = F.adaptive_avg_pool2d(photo[..., top : top + side, left : left + side], 8)
        patches += [patch] if patch.std() > 0.05 else []
    return torch.cat(patches)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels; weights sum to 1 at the border too, so nothing darkens."""
    place = torch.arange(images.shape[-1], dtype=torch.float32)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    weights /= weights.sum(1, keepdim=True)
    return (weights @ images @ weights.T).clamp(0, 1)


class _Recipe(NamedTuple):
    held_out: str  # the split that is cut into ID val and ID test
    near: tuple[str, ...]
    far: tuple[str, ...]
    frame: Frame
    mean: Sequence[float]
    std: Sequence[float]
    classes: tuple[str, ...] = ()  # of arrays; folders and torchvision bring their own


_CIFAR_FAR = ("mnist", "svhn", "textures", "places365")
_RECIPES = {
    "cifar10": _Recipe(
        "test",
        ("cifar100", "tiny_imagenet"),
        _CIFAR_FAR,
        Frame(3, 32),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    ),
    "cifar100": _Recipe(
        "test",
        ("cifar10", "tiny_imagenet"),
        _CIFAR_FAR,
        Frame(3, 32),
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
    "imagenet": _Recipe(  # local only: imagenet/train|val/<wnid>/, ssb_hard/, ninco/, ...
        "val",
        ("ssb_hard", "ninco"),
        ("inaturalist", "textures", "openimage_o"),
        Frame(3, 224, 256),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
}


def _openood(name: str, shelf: _Shelf) -> Benchmark:
    """OpenOOD v1.5 roles.

    Its image lists are not shipped, so the sets differ a little: ID val is a seeded class-balanced
    tenth of the held-out split (as many images, not the same); CIFAR-100 as OOD keeps its 10,000
    test images (9,000 there); MNIST is the test split (10,000; all 70,000 there); classes that
    overlap with the ID set stay in Tiny-ImageNet (10,000; 7,793 there for CIFAR-10, 6,526 for
    CIFAR-100) and in Places365 (36,500; 35,195 and 33,773).
    """
    held_out, near, far, frame, mean, std, classes = _RECIPES[name]
    train, rest = (shelf.known(name, split, frame) for split in ("train", held_out))
    parts = [rest.subset(part) for part in _stratify(rest.labels, (0.1, 0.9))]
    sets = shelf.unknown([*near, *far], frame)
    near_sets, far_sets = ({k: sets[k] for k in keys if k in sets} for keys in (near, far))
    return _benchmark(name, [train, *parts], near_sets, far_sets, Normalize(mean, std), classes)


def _benchmark(
    name: str,
    known: Sequence[ImageSet],
    near: dict[str, ImageSet],
    far: dict[str, ImageSet],
    normalize: Normalize | None = None,
    classes: tuple[str, ...] = (),
) -> Benchmark:
    """Put it together; what is not given is taken from the training images."""
    classes = _align(name, known, classes)
    if normalize is None:
        sample = torch.linspace(0, len(known[0]) - 1, min(len(known[0]), 1000)).round().long()
        normalize = Normalize.measured(known[0].subset(sample).images)
    train, val, test = known
    channels, height, width = train[0][0].shape
    shape = (channels, height, width)
    return Benchmark(name, train, val, test, near, far, classes, normalize, shape)


def _align(name: str, sets: Sequence[ImageSet], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Let the labels of all ID sets count the same classes: the training folders, or `classes`."""
    classes = sets[0].classes or classes
    classes = classes or tuple(str(i) for i in range(int(sets[0].labels.max()) + 1))
    for data in sets:
        strange = sorted(set(data.classes) - set(classes))
        if strange:
            raise ValueError(f"{name}: class folders {strange} are not among those of training")
        if data.classes:
            data.labels = torch.tensor([classes.index(c) for c in data.classes])[data.labels]
            data.classes = classes
        if data.labels.min() < 0 or data.labels.max() >= len(classes):
            raise ValueError(f"{name}: labels must count the {len(classes)} classes from 0")
    return classes


def _folder(name: str, place: Path, image_size: int | None, skip: bool) -> Benchmark:
    """A reader's own pictures; the shape follows the first training picture."""
    shelf = _Shelf(place, skip=skip)
    known = [shelf.known("", split, None) for split in ("train", "val", "test")]
    channels, height, width = known[0][0][0].shape
    frame = Frame(channels, image_size or min(height, width, 224))
    for data in known:
        data.frame = frame
    names = [f"{role}/{entry}" for role in ("near", "far") for entry in _subfolders(place / role)]
    if not names:
        raise MissingDataError(f"no OOD set: put pictures into {place}/near/NAME/ or far/NAME/")
    sets = shelf.unknown(names, frame)
    near, far = (
        {key.removeprefix(role): data for key, data in sets.items() if key.startswith(role)}
        for role in ("near/", "far/")
    )
    return _benchmark(name, known, near, far)


BENCHMARKS: Mapping[str, Callable[[_Shelf], Benchmark]] = {
    "digits": _digits,
    **{name: partial(_openood, name) for name in _RECIPES},
}


def load_benchmark(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = True,
    missing: Literal["raise", "skip"] = "raise",
    image_size: int | None = None,
) -> Benchmark:
    """All sets of a benchmark, in their roles.

    A set NAME is looked for under `root` as arrays `NAME/SPLIT.npz` (`images` uint8 (N, H, W) or
    (N, H, W, 3), `labels`), as pictures `NAME/SPLIT/<class>/` (OOD sets also `NAME/`, with or
    without classes), then as what torchvision unpacks; at last torchvision may fetch it.

    Args:
        name: one of `BENCHMARKS`, or `folder:PATH` for pictures of your own in
            `PATH/train|val|test/<class>/`, `PATH/near/<name>/` and `PATH/far/<name>/`.
        root: the folder of sets; by default the variable OOD_DATA, else ~/.cache/ood_lib.
        download: whether torchvision may use the network for what is not under `root`.
        missing: "skip" leaves absent OOD sets out, with a warning; ID sets are always needed.
        image_size: of `folder:PATH` alone, in pixels; by default the shorter side of the first
            training picture, at most 224.

    Raises:
        MissingDataError: a set is not there; the message says what to put where.
        ValueError: an unknown name or argument, or a file that does not hold what it should.

    Example:
        >>> load_benchmark("digits").image_shape
        (1, 8, 8)
    """
    if missing not in ("raise", "skip"):
        raise ValueError(f'missing is {missing!r}; expected "raise" or "skip"')
    own = name.startswith("folder:") and name != "folder:"
    if image_size is not None and (not own or image_size < 1):
        raise ValueError(f"image_size={image_size} needs a folder:PATH and at least 1 pixel")
    if own:
        place = Path(name.removeprefix("folder:")).expanduser()
        return _folder(name, place, image_size, missing == "skip")
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}{_nearest(name)}")
    return BENCHMARKS[name](_Shelf(_root(root), download, missing == "skip"))


def load_ood_set(name: str, bench: Benchmark, root: str | Path | None = None, *, download: bool = True) -> ImageSet:
    """One more OOD set in the shape of `bench`, found as `load_benchmark` finds its own.

    Args: name, such as "fashion_mnist", "kmnist", or any folder of yours under `root`.
    """
    frame = bench.test.frame or Frame(bench.image_shape[0], bench.image_shape[1])
    return _Shelf(_root(root), download).unknown([name], frame)[name]


def _root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("OOD_DATA") or "~/.cache/ood_lib").expanduser()


def _nearest(name: str) -> str:
    names = [*BENCHMARKS, "folder:PATH"]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} There are {', '.join(names)}"

"""Which set is in-distribution (ID), near-OOD, far-OOD: every set of a benchmark as images in [0, 1].

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
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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

    Raises:
        ValueError: a wrong type, shape, range or number of labels.
    """

    def __init__(self, images: Any, labels: Any = None, frame: Frame | None = None) -> None:
        self._raw = _checked_images(torch.as_tensor(images))
        self.labels = _checked_labels(labels, len(self._raw))
        self.frame = frame

    @property
    def images(self) -> Tensor:
        """All images at once: float32 (N, C, H, W), four bytes a value."""
        return self._fetch(torch.arange(len(self)))

    def subset(self, indices: Tensor) -> ImageArray:
        """The images at `indices` (n,), in that order."""
        return ImageArray(self._raw[indices], self.labels[indices], self.frame)

    def fingerprint(self) -> str:
        """sha256 of pixels, labels and frame: equal content, equal fingerprint."""
        digest = hashlib.sha256(f"{self._raw.dtype}{tuple(self._raw.shape)}{self.frame}".encode())
        for part in (self._raw, self.labels):
            digest.update(np.ascontiguousarray(part.numpy()))
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
    labels = torch.as_tensor(labels)
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
            if picture.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to 8, in silence
                raise ValueError(f"pixels of mode {picture.mode}; save it with 8 bits a channel")
            pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
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
    train: Any
    val: Any
    test: Any
    near: dict[str, Any]
    far: dict[str, Any]
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
    return [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]


def _digits() -> Benchmark:
    """Real 8x8 digits, complete inside scikit-learn: ID 0-6, near 7-9, far what is no digit.

    far: "photos", random squares of two photographs in grey, area-averaged to 8x8; "inverted",
    "rotated" (by 90 degrees, without 0, which stays a 0) and "blurred" ID test digits; "noise".
    """
    images, labels = _sklearn_digits()
    known = labels < 7
    near = ImageArray(images[~known])
    images, labels = images[known], labels[known]
    parts = _stratify(labels, (0.55, 0.15, 0.30))
    train, val, test = (ImageArray(images[part], labels[part]) for part in parts)
    return Benchmark(
        name="digits",
        train=train,
        val=val,
        test=test,
        near={"digits7-9": near},
        far=_no_digits(test),
        classes=tuple("0123456"),
        normalize=Normalize.measured(train.images),
        image_shape=(1, 8, 8),
    )


def _sklearn_digits() -> tuple[Tensor, Tensor]:
    digits = _need("sklearn.datasets").load_digits()
    return torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)


def _no_digits(test: ImageArray) -> dict[str, ImageArray]:
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

    Squares of nearly even sky (deviation under 0.03 after averaging) are drawn again: a blank
    tile says nothing about photographs, and every second patch would be one otherwise.
    """
    photos = [torch.tensor(photo) for photo in _need("sklearn.datasets").load_sample_images().images]
    grey = [_recolour(photo.permute(2, 0, 1)[None] / 255, 1) for photo in photos]
    patches: list[Tensor] = []
    while len(patches) < count:
        photo, side = grey[random.integers(len(grey))], int(random.integers(16, 257))
        top, left = (int(random.integers(length - side + 1)) for length in photo.shape[-2:])
        patch = F.adaptive_avg_pool2d(photo[..., top : top + side, left : left + side], 8)
        patches += [patch] if patch.std() > 0.03 else []
    return torch.cat(patches)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels; weights are renormalised at the border, so nothing darkens."""
    place = torch.arange(images.shape[-1], dtype=torch.float32)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    weights /= weights.sum(1, keepdim=True)
    return (weights @ images @ weights.T).clamp(0, 1)


BENCHMARKS: Mapping[str, Callable[[], Benchmark]] = {"digits": _digits}


def load_benchmark(
    name: str, root: Any = None, *, download: bool = True, missing: str = "raise"
) -> Benchmark:
    """The benchmark of that name."""
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]()

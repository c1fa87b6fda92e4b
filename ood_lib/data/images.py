"""A set of pictures as tensors: each item is (image, label), the image float32 (C, H, W) in [0, 1].

Pixels stay in [0, 1]; standardisation belongs to the network, so that the same tensors serve for drawing and for
gradients in pixel units.  A label is a class index, or a row of 0/1, one for each class that may be seen.  An OOD image
has no class here: its label is -1.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ood_lib.data.pictures import decode
from ood_lib.files import sha256_of
from ood_lib.tensors import PRECISIONS, as_tensor, check_floats

__all__ = ["ImageArray", "ImageFiles", "ImageFormat", "ImageSet", "divide", "read_picture", "recolour"]


@dataclass(frozen=True)
class ImageFormat:
    """The picture format of a benchmark: shorter side resized to `resize`, then a centre crop.

    The rule of OpenOOD (bilinear with antialiasing); `resize=0` means `resize=size`, in pixels.  With `stretch` both
    sides are resized to `size` instead, whatever the proportions: nothing is cut off that a label may name.

    Raises:
        ValueError: a `resize` smaller than the crop, or one beside `stretch`.
    """

    channels: int
    size: int
    resize: int = 0
    stretch: bool = False

    def __post_init__(self) -> None:
        if self.resize and (self.stretch or self.resize < self.size):
            why = "such pictures are stretched, not cropped" if self.stretch else "the crop would be larger"
            raise ValueError(f"resize={self.resize} does not go with a size of {self.size}: {why}")

    def __call__(self, images: Tensor) -> Tensor:
        """images: (N, 1 or 3, H, W) in [0, 1] -> (N, channels, size, size)."""
        check_floats("(N, C, H, W)", images=images)
        if images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
            raise ValueError(f"images are {tuple(images.shape)}; expected (N, 1 or 3, H, W) with pixels in it")
        images, sides = recolour(images, self.channels), tuple(images.shape[-2:])
        short = self.resize or self.size
        wanted = (self.size, self.size) if self.stretch else tuple(short * side // min(sides) for side in sides)
        if wanted != sides:
            images = F.interpolate(images, wanted, mode="bilinear", antialias=True).clamp(0, 1)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def recolour(images: Tensor, channels: int) -> Tensor:
    """images: (N, 1 or 3, H, W) -> (N, channels, H, W), grey repeated or colour weighted."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue  # luma of ITU-R 601, as in Pillow


class _Images(Dataset[tuple[Tensor, int | Tensor]]):
    """What both kinds of set share: labels (N,) or (N, C), a frame, fetching by batch."""

    def __init__(self, count: int, labels: Any, frame: ImageFormat | None, classes: Sequence[str]) -> None:
        self.labels = _checked_labels(
            torch.full((count,), -1, device="cpu") if labels is None else _tensor(labels), count
        )
        self.frame, self.classes = frame, tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int | Tensor]]:
        """The items of one batch, converted together; a DataLoader calls this by itself."""
        chosen = torch.as_tensor(indices, dtype=torch.long, device="cpu")
        labels = self.labels[chosen]
        return list(zip(self._fetch(chosen), labels.tolist() if labels.ndim == 1 else labels, strict=True))

    @property
    def images(self) -> Tensor:
        """All images at once: float32 (N, C, H, W), four bytes a value."""
        return self._fetch(torch.arange(len(self), device="cpu"))

    def _fetch(self, indices: Tensor) -> Tensor:
        raise NotImplementedError


class ImageArray(_Images):
    """Images held in memory, converted and brought into the benchmark's frame on access.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 1 or 3), or float (N, 1 or 3, H, W) in [0, 1].
        labels: integers (N,), or 0/1 (N, C) when an image may show several classes, or None for OOD images: -1.
        frame: the shape to conform to; None leaves the images as they are.
        classes: what the labels count, where the source says so.

    Raises:
        ValueError: a wrong type, shape, range or number of labels.
    """

    def __init__(
        self, images: Any, labels: Any = None, frame: ImageFormat | None = None, classes: Sequence[str] = ()
    ) -> None:
        self._raw = self._check(_tensor(images))
        if labels is not None and np.ndim(labels) == 2 and np.shape(labels)[1] == 1 and len(classes) != 1:
            raise ValueError(
                f"labels are a column, of shape {tuple(np.shape(labels))}; expected class indices of shape (N,), that "
                "is labels[:, 0], or 0/1 of shape (N, classes)"
            )
        super().__init__(len(self._raw), labels, frame, classes)

    def subset(self, indices: Tensor) -> Self:
        """The images at `indices` (n,), in that order."""
        return type(self)(self._raw[indices], self.labels[indices], self.frame, self.classes)

    def unlabelled(self) -> Self:
        """The same images as an OOD set."""
        return type(self)(self._raw, None, self.frame)

    def contents(self) -> list[str]:
        """A key for each image, equal where the pixels are."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self._raw]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All images of several sets of one size and frame, unlabelled."""
        return cls(torch.cat([part._raw for part in parts]), None, parts[0].frame)

    def fingerprint(self) -> str:
        """sha256 of pixels, labels and frame: equal content, equal fingerprint."""
        digest = hashlib.sha256(f"{self._raw.dtype}{tuple(self._raw.shape)}{self.frame}".encode())
        for part in (self._raw, self.labels):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def marks(self) -> list[bytes]:
        """A mark of each image, of its pixels, label and frame."""
        form = f"{self._raw.dtype}{tuple(self._raw.shape[1:])}{self.frame}".encode()
        pairs = zip(self._raw.contiguous().numpy(), self.labels.contiguous().numpy(), strict=True)
        return [_mark(form, image.data, label.tobytes()) for image, label in pairs]

    @staticmethod
    def _check(images: Tensor) -> Tensor:
        shape, as_bytes = tuple(images.shape), images.dtype == torch.uint8
        if as_bytes:
            good = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
        else:
            good = images.dtype in PRECISIONS and len(shape) == 4 and shape[1] in (1, 3)
        if not good or 0 in shape:
            raise ValueError(
                f"images are {images.dtype} of shape {shape}; expected uint8 (N, H, W) or (N, H, W, 3), "
                "or float (N, 1 or 3, H, W)"
            )
        if not as_bytes and not (images.min() >= 0 and images.max() <= 1):  # written so that NaN fails too
            raise ValueError("float images must lie in [0, 1]; divide 0..255 pixels by 255")
        return images if as_bytes else images.float()

    def _fetch(self, indices: Tensor) -> Tensor:
        images = self._raw[indices]
        if images.dtype == torch.uint8:
            images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2).float() / 255
        return images if self.frame is None else self.frame(images)


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
        base: str | Path,
        names: list[str],
        labels: Any = None,
        frame: ImageFormat | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.base, self.names = Path(base), names
        super().__init__(len(names), labels, frame, classes)

    def subset(self, indices: Tensor) -> Self:
        """The pictures at `indices` (n,), in that order."""
        names = [self.names[i] for i in indices.tolist()]
        return type(self)(self.base, names, self.labels[indices], self.frame, self.classes)

    def unlabelled(self) -> Self:
        """The same pictures as an OOD set."""
        return type(self)(self.base, self.names, None, self.frame)

    def contents(self) -> list[str]:
        """A key for each picture, equal where two files are so byte by byte; reads only files of equal size."""
        paths = [self.base / name for name in self.names]
        sizes = [path.stat().st_size for path in paths]
        often = Counter(sizes)
        return [sha256_of(path) if often[size] > 1 else f"{size}" for path, size in zip(paths, sizes)]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All pictures of several sets of one frame, unlabelled."""
        names = [os.path.relpath(part.base / name, parts[0].base) for part in parts for name in part.names]
        return cls(parts[0].base, names, None, parts[0].frame)

    def fingerprint(self) -> str:
        """sha256 of names, which may be no UTF-8, sizes, modification times, labels and frame; reads no picture."""
        digest = hashlib.sha256(f"{self.frame}".encode())
        for about in self._facts():
            digest.update(about + b"\n")
        return digest.hexdigest()

    def marks(self) -> list[bytes]:
        """A mark of each picture, of its name, size, modification time, label and frame; reads no picture."""
        return [_mark(f"{self.frame}".encode(), about) for about in self._facts()]

    def _facts(self) -> Iterator[bytes]:
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            stat = (self.base / name).stat()
            yield f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}\t{label}".encode(errors="surrogateescape")

    def _fetch(self, indices: Tensor) -> Tensor:
        return torch.stack([read_picture(self.base / self.names[i], self.frame) for i in indices.tolist()])


ImageSet = ImageArray | ImageFiles


def _tensor(values: Any) -> Tensor:
    """Shares memory where torch allows it: not with read-only arrays or negative strides."""
    return as_tensor(values, "what was given as images or labels")


def _checked_labels(labels: Tensor, count: int) -> Tensor:
    if labels.is_floating_point() or labels.ndim not in (1, 2) or len(labels) != count:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected integers of shape ({count},), one for "
            f"each image, or 0/1 of shape ({count}, classes)"
        )
    if labels.ndim == 2 and not ((labels == 0) | (labels == 1)).all():
        wrong = labels[(labels != 0) & (labels != 1)][0].item()
        raise ValueError(f"labels of shape {tuple(labels.shape)} hold {wrong}; expected 0 (absent) or 1 (present)")
    return labels.long()


def divide(
    labels: Tensor, shares: Sequence[float], seed: int = 0, contents: Sequence[str] | None = None
) -> list[Tensor]:
    """Indices of len(shares) disjoint parts, the same ones for the same seed.

    Args:
        labels: class indices (N,), each class being divided by `shares`; or 0/1 (N, C), divided as a whole.
        shares: what each part gets; they sum to 1.
        seed: of the draw.
        contents: a key for each image (N,); images of one key come into one part and count as one, of the first one's
            class.

    Raises:
        ValueError: a part would be empty.

    Example:
        >>> divide(torch.tensor([0, 0, 1, 1]), (0.5, 0.5))[0].shape  # one of each class
        torch.Size([2])
    """
    random, cuts = np.random.default_rng(seed), np.cumsum(shares)[:-1]
    keys = np.arange(len(labels)) if contents is None else np.asarray(contents)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    strata = labels.numpy()[first] if labels.ndim == 1 else np.zeros(len(first))
    pieces = []
    for stratum in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == stratum))
        pieces.append(np.split(members, np.rint(cuts * len(members)).astype(int)))
    groups = [np.concatenate(part) for part in zip(*pieces, strict=True)]
    parts = [torch.from_numpy(np.flatnonzero(np.isin(group, chosen))) for chosen in groups]
    if not all(map(len, parts)):
        raise ValueError(f"{len(labels)} images are too few to be divided into shares {tuple(shares)}")
    return parts


def _mark(*parts: Any) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()[:16]


def read_picture(source: str | os.PathLike[str] | IO[bytes], frame: ImageFormat | None = None) -> Tensor:
    """One picture as `ImageFiles` gives it: float32 (C, H, W) in [0, 1].

    Args:
        source: its path, or its bytes as a file: ``io.BytesIO(data)``.
        frame: size and crop.

    Raises:
        ValueError: no complete 8-bit picture.
    """
    return ImageArray(decode(source)[None], frame=frame).images[0]

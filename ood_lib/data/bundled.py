"""Benchmarks made of the images inside scikit-learn: 1,797 handwritten digits and two photographs, no download.

`digits` are the digits themselves, one class each.  `scenes` are canvases that show one to three digits before a
photograph; their label says which of the known classes are there (multi-label).  Both are the same on every machine.

Source: digits, Alpaydin and Kaynak 1998.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ood_lib.data.images import ImageArray, divide, recolour
from ood_lib.extras import need

__all__ = ["BUNDLED", "Bundle", "bundled_digits", "bundled_scenes"]

KNOWN = 7  # digits 0-6 are known, 7-9 are not
BANDS = {"train": (0, 2, 4), "val": (3,), "test": (1,)}  # fifths of a photograph's width, 128 pixels each


class Bundle(NamedTuple):
    """The sets of a benchmark: ID train, val and test; near-OOD and far-OOD by name."""

    known: tuple[ImageArray, ImageArray, ImageArray]
    near: dict[str, ImageArray]
    far: dict[str, ImageArray]


def bundled_digits() -> Bundle:
    """Real 8x8 digits: ID 0-6, near 7-9, far what is no digit.

    far: "photos", random squares of two photographs in grey, area-averaged to 8x8; "inverted", "rotated" (by 90
    degrees, without 0, which stays a 0) and "blurred" ID test digits; "noise".
    """
    images, labels = _digits()
    near, images, labels = images[labels >= KNOWN], images[labels < KNOWN], labels[labels < KNOWN]
    train, val, test = (ImageArray(images[part], labels[part]) for part in divide(labels, (0.55, 0.15, 0.30)))
    random = np.random.default_rng(0)
    far = {
        "photos": _squares([recolour(photo, 1) for photo in _photographs()], 500, (16, 256), 8, random),
        "inverted": 1 - test.images,
        "rotated": test.images[test.labels != 0].rot90(dims=(2, 3)),
        "blurred": _blur(test.images),
        "noise": random.random((500, 1, 8, 8), dtype=np.float32),
    }
    return Bundle((train, val, test), {"digits7-9": ImageArray(near)}, {k: ImageArray(x) for k, x in far.items()})


def _digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1] and their digits, in the order of the file, which goes from hand to hand."""
    digits = need("sklearn.datasets").load_digits()
    return torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)


def _photographs() -> list[Tensor]:
    """Two of (1, 3, 427, 640) in [0, 1]."""
    photos = need("sklearn.datasets").load_sample_images().images
    return [torch.tensor(photo).permute(2, 0, 1)[None] / 255 for photo in photos]


def _squares(
    photos: Sequence[Tensor], count: int, sides: tuple[int, int], size: int, random: np.random.Generator
) -> Tensor:
    """(count, C, size, size) squares of `sides` pixels (both included), area-averaged.

    Squares of even sky or shadow (deviation under 0.05 after averaging, one in five) are drawn again: a blank tile says
    nothing about photographs.
    """
    squares: list[Tensor] = []
    while len(squares) < count:
        photo, side = photos[int(random.integers(len(photos)))], int(random.integers(sides[0], sides[1] + 1))
        top, left = (int(random.integers(length - side + 1)) for length in photo.shape[-2:])
        square = F.adaptive_avg_pool2d(photo[..., top : top + side, left : left + side], size)
        squares += [square] if square.std((2, 3)).mean() > 0.05 else []
    return torch.cat(squares)


def _blur(images: Tensor) -> Tensor:
    """Gaussian blur, sigma 2 pixels; weights sum to 1 at the border too, so nothing darkens."""
    place = torch.arange(images.shape[-1])
    weights = torch.exp(-((place[:, None] - place) ** 2) / 8)
    weights /= weights.sum(1, keepdim=True)
    return (weights @ images @ weights.T).clamp(0, 1)


SIZE, CELL = 32, 16  # pixels of a canvas, and of the four cells in which digits are put down


def bundled_scenes() -> Bundle:
    """Canvases (3, 32, 32) with one to three digits before a dimmed photograph; labels (N, 7), which of 0-6 are there.

    near: "digits7-9", the same with unseen digits only.  far: "backgrounds", the same without a digit; "photos",
    photographs at full contrast; "inverted" ID test canvases; "gratings", coloured waves at full contrast.

    Nothing is shared between train, val and test. Digits are divided in the order of the file, so that most writers
    occur in one split only, and each split has its own strips of the photographs. OOD sets use those of test.
    """
    digits, classes = _digits()
    ink = F.interpolate(digits.double(), CELL - 2, mode="bilinear")  # float64: the bytes are the same on any machine
    pens = dict(zip(BANDS, torch.arange(len(digits)).tensor_split([988, 1258])))  # 55, 15 and 30 %
    known, unseen = classes < KNOWN, torch.arange(len(digits))[classes >= KNOWN]

    def scenes(count: int, split: str, pool: Tensor, seed: int) -> ImageArray:
        random = np.random.default_rng([seed, count])
        canvases = 0.6 * _squares(_strips(split), count, (32, 96), SIZE, random)
        labels = torch.zeros(count, KNOWN + 3, dtype=torch.long)
        for canvas, label in zip(canvases, labels):
            chosen = pool[random.choice(len(pool), random.integers(1, 4), replace=False)]
            _write(canvas, ink[chosen, 0], random)
            label[classes[chosen]] = 1
        return _seen(canvases, labels[:, :KNOWN])

    train, val, test = (
        scenes(count, split, pens[split][known[pens[split]]], seed)
        for seed, (split, count) in enumerate({"train": 2400, "val": 400, "test": 800}.items())
    )
    near = _unlabelled(scenes(800, "test", unseen, 3).images)
    random = np.random.default_rng(4)
    far = {
        "backgrounds": 0.6 * _squares(_strips("test"), 500, (32, 96), SIZE, random),
        "photos": _squares(_strips("test"), 500, (32, 128), SIZE, random),
        "inverted": 1 - test.images,
        "gratings": _gratings(500, random),
    }
    return Bundle((train, val, test), {"digits7-9": near}, {name: _unlabelled(x) for name, x in far.items()})


def _strips(split: str) -> list[Tensor]:
    """The parts of both photographs that belong to a split, each 128 pixels wide."""
    return [photo.double().split(128, dim=3)[band] for photo in _photographs() for band in BANDS[split]]


def _write(canvas: Tensor, digits: Tensor, random: np.random.Generator) -> None:
    """Digits (n, h, w), n <= 4, into cells of their own on a canvas (3, 32, 32), in light colours, in place."""
    side = digits.shape[-1]
    for digit, cell in zip(digits, random.permutation(4)):
        top, left = (CELL * corner + int(random.integers(CELL - side + 1)) for corner in divmod(int(cell), 2))
        colour = torch.tensor(random.uniform(0.6, 1, (3, 1, 1)))
        place = canvas[:, top : top + side, left : left + side]
        place.lerp_(colour.expand_as(place), digit.expand_as(place))


def _gratings(count: int, random: np.random.Generator) -> Tensor:
    """(count, 3, 32, 32) plane waves of 3 to 12 pixels' length, each colour from 0 to 1 with a phase of its own."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    angle, length = torch.tensor(random.uniform((0, 3), (np.pi, 12), (count, 2))).T[..., None, None, None]
    phase = torch.tensor(random.uniform(0, 2 * np.pi, (count, 3, 1, 1)))
    along = x * angle.cos() + y * angle.sin()  # (count, 1, 32, 32) pixels
    return 0.5 + 0.5 * torch.sin(2 * np.pi * along / length + phase)


def _seen(images: Tensor, labels: Tensor | None = None) -> ImageArray:
    """As a camera keeps them: bytes, (N, H, W, 3)."""
    return ImageArray((images * 255).round().byte().permute(0, 2, 3, 1).contiguous(), labels)


_unlabelled: Callable[[Tensor], ImageArray] = _seen
BUNDLED: dict[str, Callable[[], Bundle]] = {"digits": bundled_digits, "scenes": bundled_scenes}

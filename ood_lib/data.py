"""Which set is in-distribution (ID), near-OOD, far-OOD; every image in [0, 1].

A benchmark is a promise about roles: the network is trained on `train`, thresholds are set on `val`, and `test` is
compared with each set in `near` (similar pictures, unseen classes) and `far` (other pictures).  All sets come in the ID
set's shape, with pixels in [0, 1]; standardisation is the network's first layer (`Benchmark.normalize`).  An OOD image
has no class here: its label is -1.

Sources: digits, Alpaydin and Kaynak 1998, through scikit-learn.  The roles of CIFAR and ImageNet are those of OpenOOD
v1.5, Zhang et al. 2023, arXiv:2306.09301.
"""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from ood_lib.bundled import BUNDLED
from ood_lib.images import Frame, ImageSet, divide
from ood_lib.sources import MissingDataError, Shelf, subfolders

__all__ = ["BENCHMARKS", "Benchmark", "Normalize", "load_benchmark", "load_ood_set"]


_Sets = dict[str, ImageSet]


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
    def measured(cls, images: Tensor) -> Self:
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
    near: _Sets
    far: _Sets
    classes: tuple[str, ...]
    normalize: nn.Module
    image_shape: tuple[int, int, int]

    def __repr__(self) -> str:
        roles = [(role, self.name, getattr(self, role)) for role in ("train", "val", "test")]
        roles += [(role, *item) for role in ("near", "far") for item in getattr(self, role).items()]
        width = max(len(name) for _, name, _ in roles)
        lines = [f"{role:<6} {name:<{width}} {len(data):>9,}" for role, name, data in roles]
        head = f"{self.name}: {len(self.classes)} classes, images {self.image_shape}"
        return "\n".join([head, f"{'role':<6} {'set':<{width}} {'images':>9}", *lines])


def _bundled(name: str, shelf: Shelf) -> Benchmark:
    """See `ood_lib.bundled`; nothing is looked for on the shelf."""
    known, near, far = BUNDLED[name]()
    return _benchmark(name, known, {**near}, {**far})


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
        "test", ("cifar100", "tiny_imagenet"), _CIFAR_FAR, Frame(3, 32), (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616), tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    ),
    "cifar100": _Recipe(
        "test", ("cifar10", "tiny_imagenet"), _CIFAR_FAR, Frame(3, 32), (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
    "imagenet": _Recipe(  # local only: imagenet/train|val/<wnid>/, ssb_hard/, ninco/, ...
        "val", ("ssb_hard", "ninco"), ("inaturalist", "textures", "openimage_o"), Frame(3, 224, 256),
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
    ),
    "voc": _Recipe(
        "val", (), ("imagenet22k", "textures"), Frame(3, 256, stretch=True),
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
    ),
    "coco": _Recipe(
        "val", (), ("imagenet22k", "textures"), Frame(3, 256, stretch=True),
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
    ),
}  # fmt: skip


def _openood(name: str, shelf: Shelf) -> Benchmark:
    """OpenOOD v1.5 roles.

    Its image lists are not shipped, so the sets differ a little: ID val is a seeded class-balanced tenth of the
    held-out split (as many images, not the same); CIFAR-100 as OOD keeps its 10,000 test images (9,000 there); MNIST
    is the test split (10,000; all 70,000 there); classes that overlap with the ID set stay in Tiny-ImageNet (10,000;
    7,793 there for CIFAR-10, 6,526 for CIFAR-100) and in Places365 (36,500; 35,195 and 33,773).
    """
    recipe = _RECIPES[name]
    if whole := shelf.undivided(name, recipe.frame):
        known: list[ImageSet] = [whole.subset(part) for part in divide(whole.labels, (0.6, 0.1, 0.3))]
    else:
        train, rest = (shelf.known(name, split, recipe.frame) for split in ("train", recipe.held_out))
        known = [train, *(rest.subset(part) for part in divide(rest.labels, (0.1, 0.9)))]
    sets = shelf.unknown([*recipe.near, *recipe.far], recipe.frame)
    near, far = ({k: sets[k] for k in names if k in sets} for names in (recipe.near, recipe.far))
    return _benchmark(name, known, near, far, recipe)


def _folder(name: str, place: Path, image_size: int | None, skip: bool) -> Benchmark:
    """A reader's own pictures; the shape follows the first training picture."""
    shelf = Shelf(place, skip=skip)
    known = [shelf.known("", split, None) for split in ("train", "val", "test")]
    channels, height, width = known[0][0][0].shape
    frame = Frame(channels, image_size or min(height, width, 224))
    for data in known:
        data.frame = frame
    names = [f"{role}/{entry}" for role in ("near", "far") for entry in subfolders(place / role)]
    if not names:
        raise MissingDataError(f"no OOD set: put pictures into {place}/near/NAME/ or far/NAME/")
    sets = shelf.unknown(names, frame)
    near, far = ({k.removeprefix(role): sets[k] for k in sets if k.startswith(role)} for role in ("near/", "far/"))
    return _benchmark(name, known, near, far)


def _benchmark(
    name: str, known: Sequence[ImageSet], near: _Sets, far: _Sets, recipe: _Recipe | None = None
) -> Benchmark:
    """Put it together; what no recipe gives is taken from the training images."""
    train, val, test = known
    classes = _align(name, known, recipe.classes if recipe else ())
    if recipe:
        normalize = Normalize(recipe.mean, recipe.std)
    else:
        sample = torch.linspace(0, len(train) - 1, min(len(train), 1000)).round().long()
        normalize = Normalize.measured(train.subset(sample).images)
    channels, height, width = train[0][0].shape
    return Benchmark(name, train, val, test, near, far, classes, normalize, (channels, height, width))


def _align(name: str, sets: Sequence[ImageSet], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Let the labels of all ID sets count the same classes: those of training, or `classes`."""
    labels = sets[0].labels
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    classes = sets[0].classes or classes or tuple(map(str, range(count)))
    for data in sets:
        if strange := sorted(set(data.classes) - set(classes)):
            raise ValueError(f"{name}: classes {strange} are not among those of training")
        align = _align_columns if labels.ndim == 2 else _align_indices
        align(name, data, classes)
        data.classes = classes if data.classes else ()
    return classes


def _align_indices(name: str, data: ImageSet, classes: tuple[str, ...]) -> None:
    if data.classes and data.labels.ndim == 1:
        data.labels = torch.tensor([classes.index(c) for c in data.classes])[data.labels]
    if data.labels.ndim != 1 or data.labels.min() < 0 or data.labels.max() >= len(classes):
        raise ValueError(f"{name}: labels must count the {len(classes)} classes from 0, one for each image")


def _align_columns(name: str, data: ImageSet, classes: tuple[str, ...]) -> None:
    if data.labels.shape != (len(data), len(classes)):
        raise ValueError(
            f"{name}: labels of shape {tuple(data.labels.shape)}; expected a column of 0/1 for each of the "
            f"{len(classes)} classes of training"
        )
    if data.classes:
        data.labels = data.labels[:, [data.classes.index(c) for c in classes]]


_OPENOOD = {name: partial(_openood, name) for name in _RECIPES}
BENCHMARKS: Mapping[str, Callable[[Shelf], Benchmark]] = {
    **{name: partial(_bundled, name) for name in BUNDLED},
    **_OPENOOD,
}


def load_benchmark(
    name: str | os.PathLike[str],
    root: str | Path | None = None,
    *,
    download: bool = True,
    missing: Literal["raise", "skip"] = "raise",
    image_size: int | None = None,
) -> Benchmark:
    """All sets of a benchmark, in their roles.

    A set NAME is looked for under `root` as arrays `NAME/SPLIT.npz` (`images` uint8 (N, H, W) or (N, H, W, 3),
    `labels`), as pictures `NAME/SPLIT/<class>/` (OOD sets also `NAME/`, with or without classes), then as what
    torchvision unpacks; at last torchvision may fetch it.

    Args:
        name: one of `BENCHMARKS`, or `folder:PATH` for pictures of your own in `PATH/train|val|test/<class>/`,
            `PATH/near/<name>/` and `PATH/far/<name>/`.
        root: the folder of sets; by default the variable OOD_DATA, else ~/.cache/ood_lib.
        download: whether torchvision may use the network for what is not under `root`.
        missing: "skip" leaves absent OOD sets out, with a warning; ID sets are always needed.
        image_size: of `folder:PATH` alone, in pixels; by default the shorter side of the first training picture, at
            most 224.

    Raises:
        MissingDataError: a set is not there; the message says what to put where.
        ValueError: an unknown name or argument, or a file that does not hold what it should.

    Example:
        >>> load_benchmark("digits").image_shape
        (1, 8, 8)
    """
    if missing not in ("raise", "skip"):
        raise ValueError(f'missing is {missing!r}; expected "raise" or "skip"')
    name = os.fspath(name)
    own = name.startswith("folder:") and name != "folder:"
    if image_size is not None and (not own or image_size < 1):
        raise ValueError(f"image_size={image_size} needs a folder:PATH and at least 1 pixel")
    if own:
        return _folder(name, Path(name.removeprefix("folder:")).expanduser(), image_size, missing == "skip")
    if name not in BENCHMARKS:
        names = [*BENCHMARKS, "folder:PATH"]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"unknown benchmark {name!r}{hint} There are {', '.join(names)}")
    return BENCHMARKS[name](Shelf(_root(root), download, missing == "skip"))


def load_ood_set(name: str, bench: Benchmark, root: str | Path | None = None, *, download: bool = True) -> ImageSet:
    """One more OOD set in the shape of `bench`, found as `load_benchmark` finds its own.

    Args:
        name: what torchvision offers, such as "fashion_mnist", or the name of a folder of yours under `root`.
        bench: whose image shape the set is brought to.
        root, download: as in `load_benchmark`.

    Raises:
        MissingDataError: the set is not there; the message says what to put where.
    """
    frame = bench.test.frame or Frame(bench.image_shape[0], bench.image_shape[1])
    return Shelf(_root(root), download).unknown([name], frame)[name]


def _root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("OOD_DATA") or "~/.cache/ood_lib").expanduser()

"""Which set is in-distribution (ID), near-OOD, far-OOD; every image in [0, 1].

A benchmark is a promise about roles: the network is trained on `train`, thresholds are set on `val`, and `test` is
compared with each set in `near` (similar pictures, unseen classes) and `far` (other pictures).  All sets come in the ID
set's shape, with pixels in [0, 1]; standardisation is the network's first layer (`Benchmark.normalize`).  An OOD image
has no class here: its label is -1.
"""

import difflib
import hashlib
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.data.bundled import BUNDLED
from ood_lib.data.folders import named_sets, read_splits
from ood_lib.data.images import ImageArray, ImageFormat, ImageSet, divide
from ood_lib.data.locate import Shelf
from ood_lib.data.pictures import picture_shape
from ood_lib.data.protocols import PROTOCOLS, Protocol, departures
from ood_lib.shipped import is_bank
from ood_lib.tensors import check_floats
from ood_lib.warn import warn

__all__ = ["BENCHMARKS", "Benchmark", "Normalize", "load_benchmark", "load_ood_set", "benchmark_hash"]

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
        check_floats("(..., C, H, W)", images=images)
        return (images - self.mean) / self.std

    @classmethod
    def measured(cls, images: Tensor) -> Self:
        """The statistics of `images` (N, C, H, W); nearly constant channels keep their scale."""
        std, mean = torch.std_mean(images, dim=(0, 2, 3))
        return cls(mean.tolist(), std.clamp_min(1 / 255).tolist())


@dataclass(frozen=True, eq=False, repr=False)
class Benchmark:
    """Which set plays which role; every item is (image float32 (C, H, W) in [0, 1], label).

    `notes` names, one by one, what departs on this machine from the published benchmark of that name, or from the
    layout of a folder of your own, which may also have no OOD set.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    near: _Sets
    far: _Sets
    classes: tuple[str, ...]
    normalize: nn.Module
    image_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        roles = [(role, self.name, getattr(self, role)) for role in ("train", "val", "test")]
        roles += [(role, *item) for role in ("near", "far") for item in getattr(self, role).items()]
        width = max(len(name) for _, name, _ in roles)
        lines = [f"{role:<6} {name:<{width}} {len(data):>9,}" for role, name, data in roles]
        head = f"{self.name}: {len(self.classes)} classes, images {self.image_shape}"
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([head, f"{'role':<6} {'set':<{width}} {'images':>9}", *lines, *notes])


def _bundled(name: str, shelf: Shelf) -> Benchmark:
    """See `ood_lib.data.bundled`; nothing is looked for on the shelf."""
    known, near, far = BUNDLED[name]()
    return _benchmark(name, known, {**near}, {**far})


def _published(name: str, shelf: Shelf) -> Benchmark:
    """By the rules of `ood_lib.data.protocols`; what departs from them is in the notes."""
    rules = PROTOCOLS[name]
    known, notes = _known(name, rules, shelf)
    sets = shelf.unknown([*rules.near, *rules.far], rules.frame, rules.lists)
    near, far = ({k: sets[k] for k in names if k in sets} for names in (rules.near, rules.far))
    counts = {role: len(data) for role, data in {**dict(zip(("train", "val", "test"), known)), **sets}.items()}
    return _benchmark(name, known, near, far, rules, (*notes, *departures(rules, counts)))


def _known(name: str, rules: Protocol, shelf: Shelf) -> tuple[list[ImageSet], tuple[str, ...]]:
    """ID train, val and test: by OpenOOD's lists, else cut by us; and what is to be said about it."""
    listed = [shelf.listed(rules.lists.get(role, ""), rules.frame) for role in ("train", "val", "test")]
    if all(listed):
        return [data for data in listed if data], ()
    if whole := shelf.undivided(name, rules.frame):
        parts = divide(whole.labels, (0.6, 0.1, 0.3))
        return [whole.subset(part) for part in parts], ("train, val and test are cut at random from one set, seed 0",)
    train, rest = (shelf.known(name, split, rules.frame) for split in ("train", rules.held_out))
    cut = f"val and test are cut from the {rules.held_out} split by us, one to nine, each class alike, seed 0"
    instead = (f"{cut}: not the images of {rules.source}",) if rules.lists else rules.remarks
    return [train, *(rest.subset(part) for part in divide(rest.labels, (0.1, 0.9)))], instead


def _folder(
    name: str, place: Path, image_size: int | None, resize: int | None, channels: int | None, skip: bool
) -> Benchmark:
    """A reader's own pictures; the shape follows the training pictures.

    Pictures of several classes are stretched, so that nothing is cut off that a label names.
    """
    known, cut = read_splits(place)
    colours, side = _usual_shape(known[0])
    stretch = known[0].labels.ndim == 2
    frame = ImageFormat(channels or colours, image_size or min(side, 224), resize or 0, stretch=stretch)
    for data in known:
        data.frame = frame
    sets = Shelf(place, skip=skip).unknown(named_sets(place), frame)
    near, far = ({n.removeprefix(g): x for n, x in sets.items() if n.startswith(g)} for g in ("near/", "far/"))
    notes = [cut, "" if sets else f"no OOD set in {place}: put pictures of one into near/NAME/ or far/NAME/"]
    if cut:
        warn(cut)
    return _benchmark(name, known, near, far, notes=tuple(filter(None, notes)))


def _usual_shape(data: ImageSet) -> tuple[int, int]:
    """Channels and shorter side of a set: colour where one picture has it, and the median, over 200 pictures."""
    if isinstance(data, ImageArray):
        channels, height, width = data[0][0].shape
        return channels, min(height, width)
    rows = torch.linspace(0, len(data) - 1, 200, dtype=torch.float64).long().unique().tolist()
    found = [shape for row in rows if (shape := picture_shape(data.base / data.names[row]))]
    if not found:
        found = [(int(c), int(h), int(w)) for c, h, w in [data[0][0].shape]]  # which names what cannot be read
    side = statistics.median_low([min(height, width) for _, height, width in found])
    return max(channels for channels, *_ in found), side


def _benchmark(
    name: str,
    known: Sequence[ImageSet],
    near: _Sets,
    far: _Sets,
    rules: Protocol | None = None,
    notes: tuple[str, ...] = (),
) -> Benchmark:
    """Put it together; what no rules give is taken from the training images."""
    train, val, test = known
    classes = _align(name, known, rules.classes if rules else ())
    if rules:
        normalize = Normalize(rules.mean, rules.std)
    else:
        sample = torch.linspace(0, len(train) - 1, min(len(train), 1000)).round().long()
        normalize = Normalize.measured(train.subset(sample).images)
    channels, height, width = train[0][0].shape
    return Benchmark(name, train, val, test, near, far, classes, normalize, (channels, height, width), notes)


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


#: Every benchmark that is made of images, by name.
#:
#: :meta hide-value:
BENCHMARKS: Mapping[str, Callable[[Shelf], Benchmark]] = {
    **{name: partial(_bundled, name) for name in BUNDLED},
    **{name: partial(_published, name) for name in PROTOCOLS},
}


def load_benchmark(
    name: str | os.PathLike[str],
    root: str | Path | None = None,
    *,
    download: bool = True,
    missing: Literal["raise", "skip"] = "raise",
    image_size: int | None = None,
    resize: int | None = None,
    channels: Literal[1, 3] | None = None,
) -> Benchmark:
    """All sets of a benchmark, in their roles.

    A set NAME is searched under `root` in this order. First by OpenOOD's lists (`benchmark_imglist/`,
    `images_classic/` and `images_largescale/`). Then as arrays `NAME/SPLIT.npz` (`images` uint8 (N, H, W) or (N, H, W,
    3), `labels`). Then as pictures `NAME/SPLIT/<class>/`, or with several labels per picture in
    `NAME/SPLIT/labels.csv` (OOD sets also in `NAME/`, with or without classes). Then in the folders that torchvision
    unpacks. Otherwise it may be downloaded.

    Args:
        name: one of `BENCHMARKS`; or `folder:PATH` for pictures of your own in `PATH/train|val|test/<class>/` or
            `PATH/train|val|test/labels.csv`, `PATH/near/<name>/` and `PATH/far/<name>/`.  Of a folder only `train` is
            needed: a held-out split that is not there is cut from the other one, or both from `train`, with a warning;
            see also `split_folder`.
        root: the folder of sets; by default the variable OOD_DATA, else ~/.cache/ood_lib.
        download: whether the network may be used for what is not under `root`.
        missing: "skip" leaves absent OOD sets out, with a warning; ID sets are always needed.
        image_size: of `folder:PATH` alone, in pixels; by default the median shorter side of the training pictures
            (of 200 of them), at most 224.
        resize: of `folder:PATH` alone, the shorter side before the centre crop to `image_size`, such as 256 before
            224 for most ImageNet networks; by default `image_size`, so that the crop takes the longer side only.
        channels: of `folder:PATH` alone, 1 (grey) or 3 (colour); by default 3 where one of the 200 has colours.

    Raises:
        MissingDataError: a set is not there; the message says what to put where.
        ValueError: an unknown name or argument, the name of a bank, or a file that does not hold what it should.

    Example:
        >>> load_benchmark("digits").image_shape
        (1, 8, 8)
    """
    check(("raise", "skip"), missing=missing)
    name = os.fspath(name)
    own = name.startswith("folder:") and name != "folder:"
    if image_size is not None and (not own or image_size < 1):
        raise ValueError(f"image_size={image_size} needs a folder:PATH and at least 1 pixel")
    if resize is not None and (image_size is None or resize < 1):
        raise ValueError(f"resize={resize} needs an image_size, to which the centre is cropped, and at least 1 pixel")
    if channels is not None and (not own or channels not in (1, 3)):
        raise ValueError(f"channels={channels} was given; expected 1 or 3, with a folder:PATH")
    if own:
        place = Path(name.removeprefix("folder:")).expanduser()
        return _folder(name, place, image_size, resize, channels, missing == "skip")
    if is_bank(name):
        raise ValueError(
            f"{name!r} is a bank: it holds features and no images; benchmark_features({name!r}) or load_bank reads it"
        )
    if name not in BENCHMARKS:
        names = [*BENCHMARKS, "folder:PATH"]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"unknown benchmark {name!r}{hint} There are {', '.join(names)}")
    return BENCHMARKS[name](Shelf(_root(root), download, missing == "skip"))


def load_ood_set(name: str, bench: Benchmark, root: str | Path | None = None, *, download: bool = True) -> ImageSet:
    """One more OOD set in the shape of `bench`, found as `load_benchmark` finds its own.

    Args:
        name: what torchvision offers, such as "fashion_mnist", or the name of a folder under `root`, such as "lsun".
        bench: whose image shape the set is brought to.
        root, download: as in `load_benchmark`.

    Raises:
        MissingDataError: the set is not there; the message says what to put where.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"name={name!r} was given; expected the name of a folder below root={str(_root(root))!r}")
    frame = bench.test.frame or ImageFormat(bench.image_shape[0], bench.image_shape[1])
    return Shelf(_root(root), download).unknown([name], frame)[name]


def _root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("OOD_DATA") or "~/.cache/ood_lib").expanduser()


def benchmark_hash(benchmark: Benchmark) -> str:
    """One hash of all sets of a benchmark, in their roles: equal images, equal hash (12 characters)."""
    roles: dict[str, Any] = {role: getattr(benchmark, role) for role in ("train", "val", "test")}
    roles |= {f"{g}/{name}": x for g in ("near", "far") for name, x in getattr(benchmark, g).items()}
    prints = "".join(f"{role} {data.fingerprint()}\n" for role, data in roles.items())
    return hashlib.sha256(prints.encode(errors="surrogateescape")).hexdigest()[:12]

"""A reader's own folder of pictures: its train, val and test, as they lie there or divided here.

What a network is trained on must not be what it is judged by, so a picture comes into one split only, together with
every file that is the same byte by byte.
"""

import csv
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ood_lib.data.annotations import read_table
from ood_lib.data.images import ImageFiles, ImageSet, divide
from ood_lib.data.locate import MissingDataError, Shelf, read_classes, subfolders
from ood_lib.data.pictures import find_pictures
from ood_lib.files import draft_folder
from ood_lib.warn import warn

__all__ = ["named_sets", "read_splits", "split_folder"]

SPLITS, GROUPS = ("train", "val", "test"), ("near", "far")
SHARES = (0.7, 0.1, 0.2)

LAYOUT = (
    "expected PATH/train/<class>/<picture> (or PATH/train/labels.csv where a picture has several classes), likewise "
    "PATH/val/ and PATH/test/, and OOD sets in PATH/near/<name>/ and PATH/far/<name>/"
)


def read_splits(place: Path) -> tuple[list[ImageSet], str]:
    """Train, val and test of a folder, and what is to be said about them where not all three are there.

    A split that is not there is cut from the other held-out one, half each; where there is none, val and test are cut
    from train.

    Raises:
        MissingDataError: no train/, or a split without a picture.
        ValueError: too few pictures to be divided.
    """
    there = [split for split in SPLITS if (place / split).is_dir() or (place / f"{split}.npz").is_file()]
    if "train" not in there:
        raise MissingDataError(f"{_advice(place, there)}; {LAYOUT}")
    shelf = Shelf(place)
    sets = {split: shelf.known("", split, None) for split in there}
    if len(there) == len(SPLITS):
        return [sets[split] for split in SPLITS], ""
    source, shares = ("train", SHARES) if len(there) == 1 else (there[1], (0.5, 0.5))
    made, whole = SPLITS[-len(shares) :], sets[source]
    parts, torn = _divide(whole, shares, 0, place / source)
    sets |= {split: whole.subset(part) for split, part in zip(made, parts)}
    lacking = " or ".join(f"{split}/" for split in SPLITS if split not in there)
    others = ", ".join(f"{name}/" for name in subfolders(place) if name not in SPLITS + GROUPS)
    into = ", ".join(f"{name} ({share:.0%})" for name, share in zip(made, shares))
    note = f"no {lacking} in {place}{f', which also holds {others}' if others else ''}: "
    note += f"{source}/ is divided at random, seed 0, into {into}"
    if source == "train":
        note += "; train your network on bench.train, for one that was trained on all of train/ has seen val and test"
    return [sets[split] for split in SPLITS], f"{note}; {torn}" if torn else note


def _advice(place: Path, there: Sequence[str]) -> str:
    """Why there is no train/ in `place`, and what the reader may have meant."""
    if not place.is_dir():
        return f"there is no folder {place.absolute()}"
    names = subfolders(place)
    around = [place.parent] if place.name in SPLITS else []
    if meant := [other for other in (*around, *(place / name for name in names)) if (other / "train").is_dir()]:
        return f"no train/ in {place}; did you mean folder:{meant[0]}"
    classes = [name for name in names if name not in GROUPS and find_pictures(place / name)]
    if not there and (classes or (place / "labels.csv").is_file()):
        one, other = os.fspath(place), f"{place}-split"
        what = f"pictures in {', '.join(classes[:5])}{', ...' if classes[5:] else ''}" if classes else "a labels.csv"
        return f"{place} holds {what}, but no train/: ood.split_folder({one!r}, {other!r}) makes train, val and test"
    return f"no train/ in {place}, which holds {', '.join(f'{name}/' for name in names) or 'no folder'}"


def named_sets(place: Path) -> list[str]:
    """The OOD sets of a folder, as near/NAME and far/NAME.

    Raises:
        MissingDataError: pictures lie in near/ or far/ itself, in a set without a name.
    """
    for group in GROUPS:
        if loose := [name for name in find_pictures(place / group) if os.sep not in name]:
            raise MissingDataError(
                f"{place / group / loose[0]} belongs to no named set: put the pictures of a set into {group}/NAME/"
            )
    return [f"{group}/{name}" for group in GROUPS for name in subfolders(place / group)]


def split_folder(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, shares: Sequence[float] = SHARES, seed: int = 0
) -> Path:
    """Divide `source/<class>/<picture>` into train, val and test below a new folder, for `load_benchmark`.

    Each class is divided alike, at random. Files that are the same byte by byte come into one split and count as one
    picture. With a `source/labels.csv` (several classes to a picture) the pictures are divided as a whole. OOD sets in
    `source/near/` and `source/far/` are taken over. The original folder is not changed. The new folder holds hard
    links, which take no disk space, or copies where links are not possible. So do not edit a picture in place in one
    of the two.

    Args:
        source: the folder as it is.
        target: the folder to make; it appears whole or not at all.
        shares: of train, val and test; they sum to 1.
        seed: of the draw.

    Returns:
        The new folder.

    Raises:
        FileExistsError: the target is there and not empty.
        MissingDataError: no pictures, or a class without one.
        ValueError: wrong shares, a target inside the source, a source that has splits, or too few pictures.

    Example:
        >>> split_folder("pictures", "pictures-split", shares=(0.8, 0.1, 0.1))  # doctest: +SKIP
        PosixPath('pictures-split')
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    _check(source, target, shares)
    data = _whole(source)
    parts, torn = _divide(data, shares, seed, source)
    if torn:
        warn(torn)
    if data.labels.ndim == 1 and (lost := set(range(len(data.classes))) - set(data.labels[parts[0]].tolist())):
        names = [data.classes[label] for label in sorted(lost)]
        raise ValueError(f"{source}: too few different pictures of {names} for train to get one by {tuple(shares)}")
    with draft_folder(target) as stage:
        made = stage / target.name
        for split, part in zip(SPLITS, parts):
            _write(data.subset(part), made / split)
        for group in GROUPS:
            _link(source / group, find_pictures(source / group), made / group)
        if target.is_dir():
            target.rmdir()  # it is empty; Windows replaces no folder
        os.replace(made, target)
    return target


def _check(source: Path, target: Path, shares: Sequence[float]) -> None:
    if len(shares) != len(SPLITS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares={tuple(shares)}; expected three positive numbers that sum to 1, for {SPLITS}")
    if not source.is_dir():
        raise MissingDataError(f"there is no folder {source.absolute()}; expected one with <class>/<picture>")
    if there := [split for split in SPLITS if (source / split).is_dir()]:
        raise ValueError(
            f"{source} has {', '.join(there)} already: load_benchmark('folder:{source}') reads it, and divides what "
            "is lacking; to divide a split anew, give its folder as the source"
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} lies in {source}, where it would be taken for a class; name a folder beside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there and not empty; name a new folder, or remove this one")


def _whole(source: Path) -> ImageFiles:
    """All ID pictures of a folder that is not divided."""
    if (source / "labels.csv").is_file():
        return read_table(source)
    if found := read_classes(source, [name for name in subfolders(source) if name not in GROUPS]):
        return found
    raise MissingDataError(f"no picture of a class in {source}; expected {source}/<class>/<picture>")


def _divide(data: ImageSet, shares: Sequence[float], seed: int, place: Path) -> tuple[list[Tensor], str]:
    """Parts of a set, equal pictures in one of them; and what is to be said of equal pictures with unequal labels."""
    contents, labels = data.contents(), data.labels.tolist()
    first = dict(zip(reversed(contents), reversed(labels)))  # the label of each picture where it first comes
    torn = [key for key, label in zip(contents, labels) if first[key] != label]
    files = [name for name, key in zip(getattr(data, "names", ()), contents) if key in torn[:1]]
    said = f"{len(set(torn))} pictures in {place} have more than one label, such as {files}" if torn else ""
    try:
        return divide(data.labels, shares, seed, contents), said
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _write(data: ImageFiles, place: Path) -> None:
    _link(data.base, data.names, place)
    if data.labels.ndim == 2:
        rows = ((name, *row) for name, row in zip(data.names, data.labels.tolist()))
        with (place / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", *data.classes), *rows])


def _link(base: Path, names: Sequence[str], place: Path) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(base / name), place / name)
        except OSError:  # another disk, or one without hard links
            shutil.copy2(base / name, place / name)

"""Sets that a file describes: which picture shows what is said in text, not by folders.

Our own ``labels.csv`` (multi-label), PASCAL VOC's ``ImageSets``, COCO's ``instances`` annotations, and OpenOOD's
image lists.  Each reader gives the pictures in the order of its file; a file that contradicts itself or the disk is an
error that names the line.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ood_lib.data.images import ImageFiles, ImageFormat

__all__ = ["read_coco", "read_openood", "read_table", "read_voc"]


def read_table(folder: Path, frame: ImageFormat | None = None) -> ImageFiles:
    """The pictures that `folder/labels.csv` lists, with labels (N, C).

    Its header is `image,<class>,<class>,...`; each row names a picture, relative to the folder or to `images/` in it,
    and has a 0 (absent) or 1 (present) for each class.

    Raises:
        ValueError: no header, no class, no row, a value other than 0 or 1, a picture listed twice or not there; the
            message names the line.
    """
    path = folder / "labels.csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [(line, [cell.strip() for cell in row]) for line, row in enumerate(csv.reader(file), 1)]
        header, *rows = [(line, row) for line, row in table if any(row)]
    except (ValueError, csv.Error) as error:  # nothing to unpack, or no text
        raise ValueError(f"{path} is no table with a header image,<class>,...: {error}") from error
    classes = _checked_header(path, header[1])
    if not rows:
        raise ValueError(f"{path} lists no picture: expected a line <picture>,0,1,... for each")
    labels = [_checked_row(path, line, row, classes) for line, row in rows]
    names = [_place(folder, row[0], f"{path}, line {line}") for line, row in rows]
    if twice := _first_repeated(names):
        raise ValueError(f"{path} lists {twice} twice; expected each picture once")
    return ImageFiles(folder, names, torch.tensor(labels), frame, classes)


def _checked_header(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    classes = tuple(header[1:])
    if header[0].lower() != "image":
        raise ValueError(f"{path} begins with {header[0]!r}; expected the header image,<class>,<class>,...")
    if unnamed := [column for column, name in enumerate(classes or [""], 2) if not name]:
        raise ValueError(f"{path} names no class in column {unnamed[0]}; expected one column for each class")
    if twice := _first_repeated(classes):
        raise ValueError(f"{path} has two columns {twice!r}; expected one for each class")
    return classes


def _checked_row(path: Path, line: int, row: Sequence[str], classes: Sequence[str]) -> list[int]:
    if len(row) != 1 + len(classes):
        raise ValueError(f"{path}, line {line}: {len(row)} fields; expected {1 + len(classes)}, as in the header")
    for name, value in zip(classes, row[1:]):
        if value not in ("0", "1"):
            raise ValueError(f"{path}, line {line}, column {name}: {value!r}; expected 0 (absent) or 1 (present)")
    return [int(value) for value in row[1:]]


def _inside(name: str, where: str) -> str:
    """A name that stays in its folder; what lies elsewhere would be read, or linked, without anybody noticing."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where} names {name}, which lies outside the folder; move it there")
    return name


def _place(folder: Path, name: str, where: str) -> str:
    """`name` relative to the folder."""
    _inside(name, where)
    for candidate in (name, f"images/{name}"):
        if (folder / candidate).is_file():
            return candidate
    raise ValueError(f"{where}: there is no picture {name!r} in {folder} or in its images/")


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


def read_voc(home: Path, split: str, frame: ImageFormat | None = None) -> ImageFiles:
    """A split of PASCAL VOC, `home` being its folder with ImageSets/Main and JPEGImages; labels (N, 20).

    A class is present when an object of it is, also one marked as difficult.
    """
    lists = home / "ImageSets" / "Main"
    classes = sorted(path.name.removesuffix(f"_{split}.txt") for path in lists.glob(f"*_{split}.txt"))
    columns = [dict(line.split() for line in _lines(lists / f"{name}_{split}.txt")) for name in classes]
    ids = _lines(lists / f"{split}.txt")
    labels = torch.tensor([[column[picture] != "-1" for column in columns] for picture in ids]).long()
    names = [_place(home, f"JPEGImages/{picture}.jpg", str(lists / f"{split}.txt")) for picture in ids]
    return ImageFiles(home, names, labels, frame, classes)


def read_coco(annotations: Path, split: str, frame: ImageFormat | None = None) -> ImageFiles:
    """A split of MS-COCO 2014 from instances_{split}2014.json, {split}2014/ lying beside its folder; labels (N, 80).

    Pictures without an object have a row of zeros.
    """
    path, home = annotations / f"instances_{split}2014.json", annotations.parent
    notes = json.loads(path.read_text(encoding="utf-8"))
    pictures = sorted((entry["id"], f"{split}2014/{entry['file_name']}") for entry in notes["images"])
    categories = sorted((entry["id"], entry["name"]) for entry in notes["categories"])
    row = {key: i for i, (key, _) in enumerate(pictures)}
    column = {key: i for i, (key, _) in enumerate(categories)}
    labels = torch.zeros(len(row), len(column), dtype=torch.long)
    for thing in notes["annotations"]:
        labels[row[thing["image_id"]], column[thing["category_id"]]] = 1
    names = [_place(home, name, str(path)) for _, name in pictures]
    return ImageFiles(home, names, labels, frame, [name for _, name in categories])


def read_openood(path: Path, base: Path, frame: ImageFormat | None = None) -> ImageFiles:
    """The pictures of one of OpenOOD's lists, whose lines are `<picture below base> <label>`.

    Raises:
        ValueError: the list is empty, or a line is not of this form.
    """
    try:
        names, labels = zip(*(line.rsplit(maxsplit=1) for line in _lines(path)))
        return ImageFiles(
            base, [_inside(name, "it") for name in names], torch.tensor([int(label) for label in labels]), frame
        )
    except ValueError as error:
        raise ValueError(f"{path} is no list with lines <picture> <label>: {error}") from error


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

"""Laws of sets that a file describes: what a line says is what a label holds, and a wrong line is named."""

import csv
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ood_lib.data.annotations import read_coco, read_openood, read_table, read_voc
from ood_lib.data.images import ImageFormat
from tests.data.test_images import draw, save_picture

ROWS = (("a.png", 1, 0), ("b.png", 0, 1), ("c.png", 1, 1), ("d.png", 0, 0))


def table(folder, rows=ROWS, header=("image", "cat", "dog"), pictures=None, below="images"):
    for i, name in enumerate([row[0] for row in rows] if pictures is None else pictures):
        save_picture(folder / below / name, draw(8, 9, 3, seed=i))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return folder


def test_a_row_is_a_label(tmp_path):
    found = read_table(table(tmp_path), ImageFormat(3, 8))
    assert found.classes == ("cat", "dog") and found.names == [f"images/{name}" for name, *_ in ROWS]
    assert found.labels.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    images, labels = next(iter(DataLoader(found, batch_size=4)))
    assert images.shape == (4, 3, 8, 8) and torch.equal(labels, found.labels) and labels.dtype == torch.int64
    assert torch.equal(found[2][1], torch.tensor([1, 1]))
    assert found.subset(torch.tensor([3, 2])).labels.tolist() == [[0, 0], [1, 1]]


def test_names_may_be_relative_to_the_file_or_to_images(tmp_path):
    inner = read_table(table(tmp_path / "inner"))
    outer = read_table(table(tmp_path / "outer", [(f"images/{name}", *y) for name, *y in ROWS], below=""))
    assert inner.names == outer.names and torch.equal(inner.images, outer.images)


def test_a_table_as_spreadsheets_save_it(tmp_path):
    text = "﻿Image, cat ,dog\r\na.png,1, 0\r\n\r\n,,\r\nb.png,0,1\r\n"
    table(tmp_path)
    (tmp_path / "labels.csv").write_bytes(text.encode())
    found = read_table(tmp_path)
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"rows": (*ROWS, ("a.png", 0, 0))}, r"images/a\.png twice"),
        ({"rows": (*ROWS, ("images/a.png", 0, 0)), "pictures": [row[0] for row in ROWS]}, r"images/a\.png twice"),
        ({"rows": (*ROWS, ("gone.png", 0, 0)), "pictures": [row[0] for row in ROWS]}, r"line 6: .*'gone\.png'"),
        ({"rows": (*ROWS, ("e.png", 0, 2))}, "line 6, column dog: '2'; expected 0"),
        ({"rows": (("a.png", "", 1),)}, "line 2, column cat: ''; expected 0"),
        ({"rows": (("a.png", "0.5", 1),)}, "'0.5'; expected 0"),
        ({"rows": (("a.png", 1),)}, "line 2: 2 fields; expected 3"),
        ({"rows": (("a.png", 1, 0, 1),)}, "line 2: 4 fields; expected 3"),
        ({"rows": ()}, "lists no picture"),
        ({"header": ("image",), "rows": (("a.png",),)}, "names no class in column 2"),
        ({"header": ("image", "cat", "")}, "names no class in column 3"),
        ({"header": ("image", "cat", "cat")}, "two columns 'cat'"),
        ({"header": None}, r"begins with 'a\.png'; expected the header image,<class>"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, change, says):
    with pytest.raises(ValueError, match=rf"labels\.csv.*{says}"):
        read_table(table(tmp_path, **change))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_no_table_at_all(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.csv is no table with a header"):
        read_table(tmp_path)


def voc(home, split="train", copies=1):
    """Three pictures, or copies of them; the dog of the second is hard to see."""
    lists = home / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    ids = [f"{split}_{copy:06}_{i}" for copy in range(copies) for i in (3, 1, 2)]
    (lists / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
    for name, flags in {"dog": (-1, 0, 1), "cat": (1, -1, 1)}.items():
        (lists / f"{name}_{split}.txt").write_text("".join(f"{i} {f:2d}\n" for i, f in zip(ids, flags * copies)))
    for i in ids:
        save_picture(home / "JPEGImages" / f"{i}.jpg", draw(8, 9, 3))
    return home


def test_voc_counts_difficult_objects_as_there(tmp_path):
    found = read_voc(voc(tmp_path), "train")
    assert found.classes == ("cat", "dog") and found.names[0] == "JPEGImages/train_000000_3.jpg"
    assert found.labels.tolist() == [[1, 0], [0, 1], [1, 1]]
    (tmp_path / "JPEGImages" / "train_000000_1.jpg").unlink()
    with pytest.raises(ValueError, match=r"train\.txt.*train_000000_1"):
        read_voc(tmp_path, "train")


def coco(home, split="train", copies=1):
    """Three pictures, or copies of them: a dog and two cats, nothing, a dog."""
    ids = [100 * copy + i for copy in range(copies) for i in (30, 10, 20)]
    things = [(i, c) for i in ids for c in {30: (18, 17, 17), 10: (18,), 20: ()}[i % 100]]
    notes = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
        "categories": [{"id": 17, "name": "cat"}, {"id": 90, "name": "brush"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": i, "category_id": c} for i, c in things],
    }
    (home / "annotations").mkdir(parents=True, exist_ok=True)
    (home / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(notes))
    for entry in notes["images"]:
        save_picture(home / f"{split}2014" / entry["file_name"], draw(8, 9, 3))
    return home


def test_coco_counts_categories_and_pictures_by_id(tmp_path):
    found = read_coco(coco(tmp_path) / "annotations", "train")
    assert found.classes == ("cat", "dog", "brush")
    assert found.names == [f"train2014/{i}.jpg" for i in (10, 20, 30)]
    assert found.labels.tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 0]]


def test_openood_lists(tmp_path):
    for i, name in enumerate(("x/a b.png", "x/c.png")):
        save_picture(tmp_path / name, draw(8, 8, 3, seed=i))
    (tmp_path / "list.txt").write_text("x/c.png 4\nx/a b.png -1\n")
    found = read_openood(tmp_path / "list.txt", tmp_path)
    assert found.names == ["x/c.png", "x/a b.png"] and found.labels.tolist() == [4, -1]
    for text in ("", "x/c.png\n", "x/c.png four\n"):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValueError, match=r"list\.txt is no list with lines"):
            read_openood(tmp_path / "list.txt", tmp_path)
    assert np.allclose(found.images[0].permute(1, 2, 0) * 255, draw(8, 8, 3, seed=1), atol=1e-4)


@pytest.mark.parametrize("name", ["../outside.png", "a/../../outside.png", "{root}/outside.png"])
def test_a_picture_outside_of_the_folder_is_refused(tmp_path, name):
    save_picture(tmp_path / "outside.png", draw(8, 8))
    save_picture(tmp_path / "set" / "a" / "in.png", draw(8, 8))
    name = name.format(root=tmp_path)
    (tmp_path / "set" / "labels.csv").write_text(f"image,cat\na/in.png,1\n{name},0\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3 names .*outside\.png, which lies outside the folder"):
        read_table(tmp_path / "set")
    (tmp_path / "list.txt").write_text(f"a/in.png 0\n{name} 1\n")
    with pytest.raises(ValueError, match="which lies outside the folder"):
        read_openood(tmp_path / "list.txt", tmp_path / "set")

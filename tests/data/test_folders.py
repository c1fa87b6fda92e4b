"""Laws of a reader's own folder: what is there is taken, what is lacking is cut without a leak, and that is said."""

import csv
import errno
import os
import shutil
from collections import Counter

import pytest
import torch

from ood_lib.data import folders
from ood_lib.data.benchmark import load_benchmark
from ood_lib.data.folders import split_folder
from ood_lib.data.locate import MissingDataError
from ood_lib.data.pictures import find_pictures
from tests.data.test_annotations import table
from tests.data.test_images import draw, save_picture

SPLITS = ("train", "val", "test")


def classes(place, count=20, names=("cat", "dog"), first=0):
    for k, name in enumerate(names):
        for i in range(count):
            save_picture(place / name / f"{i:03}.png", draw(12, 14, 3, seed=first + 1000 * k + i))
    return place


def pixels(place):
    """How often each content occurs among the pictures below a folder."""
    return Counter((place / name).read_bytes() for name in find_pictures(place))


def sizes(bench):
    return [len(data) for data in (bench.train, bench.val, bench.test)]


def identity(data):
    return {(data.base / name).resolve() for name in data.names}


# --------------------------------------------------------------------------- splits that are not there


@pytest.mark.parametrize(
    "there, shares", [("train", (14, 2, 4)), ("train val", (20, 10, 10)), ("train test", (20, 10, 10))]
)
def test_a_lacking_split_is_cut_from_what_is_held_out_else_from_training(tmp_path, there, shares):
    for k, split in enumerate(there.split()):
        classes(tmp_path / split, first=100 * k)
    save_picture(tmp_path / "far" / "car" / "1.png", draw(9, 9))
    with pytest.warns(UserWarning, match="divided at random, seed 0") as caught:
        bench = load_benchmark(f"folder:{tmp_path}")
    sets = [bench.train, bench.val, bench.test]
    for data, share in zip(sets, shares, strict=True):
        assert torch.bincount(data.labels).tolist() == [share, share] and data.classes == ("cat", "dog")
    everything = [path for data in sets for path in identity(data)]
    assert len(everything) == len(set(everything)) == 40 * len(there.split())
    assert len(caught) == 1 and caught[0].filename == __file__
    assert [*bench.notes] == [str(caught[0].message)] and bench.notes[0] in repr(bench)
    lacking = [split for split in SPLITS if split not in there]
    assert all(f"{split}/" in bench.notes[0] for split in lacking)
    assert ("trained on all of train/" in bench.notes[0]) == (there == "train")
    with pytest.warns(UserWarning, match="seed 0"):
        again = load_benchmark(f"folder:{tmp_path}")
    assert again.test.names == bench.test.names  # of the same folder the same parts


def test_nothing_is_said_where_all_is_there(tmp_path, recwarn):
    for split in SPLITS:
        classes(tmp_path / split, 2)
    save_picture(tmp_path / "near" / "fox" / "1.png", draw(9, 9))
    assert load_benchmark(f"folder:{tmp_path}").notes == () and not recwarn.list


def test_a_split_of_another_name_is_pointed_to(tmp_path):
    for split in ("train", "valid"):
        classes(tmp_path / split)
    with pytest.warns(UserWarning, match="which also holds valid/"):
        load_benchmark(f"folder:{tmp_path}")


@pytest.mark.parametrize("of_files", [True, False])
def test_equal_pictures_come_into_one_split(tmp_path, of_files):
    """Whatever their names; three of each, so that a draw of pictures would tear some apart."""
    place = tmp_path / ("mine" if of_files else "mine/train")
    for k, name in enumerate(("cat", "dog")):
        for i in range(60):
            save_picture(place / name / f"{i}.png", draw(12, 14, 3, seed=100 * k + i // 3))
    if of_files:
        made = split_folder(place, tmp_path / "made")
        found = [pixels(made / split) for split in SPLITS]
    else:
        with pytest.warns(UserWarning, match="seed 0"):
            bench = load_benchmark(f"folder:{tmp_path / 'mine'}")
        found = [Counter((d.base / n).read_bytes() for n in d.names) for d in (bench.train, bench.val, bench.test)]
    assert [sorted(set(part.values())) for part in found] == [[3]] * 3
    assert [len(part) for part in found] == [28, 4, 8]


def test_too_few_pictures_to_cut_are_named_with_their_folder(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "val", 1)
    with pytest.raises(ValueError, match=r"/val: 2 images are too few.*\(0.5, 0.5\)"):
        load_benchmark(f"folder:{tmp_path}")


def test_an_empty_split_is_an_error_and_not_a_lacking_one(tmp_path):
    classes(tmp_path / "train")
    (tmp_path / "val").mkdir()
    with pytest.raises(MissingDataError, match=r"no images \(val\).*(?s:.*)without a picture"):
        load_benchmark(f"folder:{tmp_path}")


# --------------------------------------------------------------------------- no train


def advice(place):
    with pytest.raises(MissingDataError) as caught:
        load_benchmark(f"folder:{place}")
    assert "PATH/train/<class>/<picture>" in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_named_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"there is no folder {tmp_path / 'pictures'}" in advice("pictures")


def test_an_undivided_folder_is_shown_what_divides_it_and_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes(tmp_path / "pictures")
    said = advice("pictures")
    assert "pictures in cat, dog, but no train/" in said
    call = said[said.index("ood.split_folder") : said.index(")") + 1]
    made = eval(call.removeprefix("ood."), {"split_folder": split_folder})
    assert sizes(load_benchmark(f"folder:{made}")) == [28, 4, 8]


def test_one_folder_too_high_or_too_low_is_noticed(tmp_path):
    for split in SPLITS:
        classes(tmp_path / "zip" / "pictures" / split, 2)
    assert f"did you mean folder:{tmp_path / 'zip' / 'pictures'};" in advice(tmp_path / "zip")
    assert f"did you mean folder:{tmp_path / 'zip' / 'pictures'};" in advice(tmp_path / "zip" / "pictures" / "train")
    shutil.rmtree(tmp_path / "zip" / "pictures" / "train")
    assert "which holds test/, val/" in advice(tmp_path / "zip" / "pictures")


# --------------------------------------------------------------------------- OOD sets


def test_without_an_ood_set_all_but_the_judging_works(tmp_path):
    for split in SPLITS:
        classes(tmp_path / split, 2)
    bench = load_benchmark(f"folder:{tmp_path}")
    assert bench.near == bench.far == {} and len(bench.train) == 4
    assert [note for note in bench.notes if "near/NAME/ or far/NAME/" in note] == [*bench.notes]
    (tmp_path / "far").mkdir()  # the frame of a folder, not filled yet
    assert load_benchmark(f"folder:{tmp_path}").notes == bench.notes


def test_ood_pictures_without_a_set_are_named(tmp_path):
    for split in SPLITS:
        classes(tmp_path / split, 2)
    save_picture(tmp_path / "near" / "fox" / "1.png", draw(9, 9))
    save_picture(tmp_path / "far" / "2.png", draw(9, 9))
    with pytest.raises(MissingDataError, match=r"far/2\.png belongs to no named set.*far/NAME/"):
        load_benchmark(f"folder:{tmp_path}")


# --------------------------------------------------------------------------- split_folder


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.5, 0.25, 0.25)])
def test_a_folder_is_divided_class_by_class_and_nothing_is_lost(tmp_path, shares):
    source = classes(tmp_path / "mine", 40, ("cat", "dog", "eel"))
    save_picture(source / "far" / "car" / "deep" / "1.png", draw(9, 9))
    before = {name: (source / name).stat().st_mtime_ns for name in find_pictures(source)}
    made = split_folder(source, tmp_path / "made", shares=shares)
    assert pixels(made) == pixels(source)
    assert before == {name: (source / name).stat().st_mtime_ns for name in find_pictures(source)}
    bench = load_benchmark(f"folder:{made}")
    for data, share in zip((bench.train, bench.val, bench.test), shares, strict=True):
        assert torch.bincount(data.labels).tolist() == [round(40 * share)] * 3
    assert list(bench.far) == ["car"] and bench.notes == ()
    assert {n for split in SPLITS for n in find_pictures(made / split)} == set(before) - {"far/car/deep/1.png"}


def test_the_seed_decides(tmp_path):
    source = classes(tmp_path / "mine")
    one, same, other = (
        find_pictures(split_folder(source, tmp_path / f"{k}", seed=seed) / "test") for k, seed in enumerate((0, 0, 1))
    )
    assert one == same != other


def test_pictures_of_several_classes_take_their_table_along(tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    rows = [(f"{i}.png", i % 2, int(i % 3 == 0)) for i in range(20)]
    table(source, rows)
    (source / "images" / "0.png").rename(source / "0.png")  # beside the table, or in images/
    for i in range(20):
        save_picture(source / ("0.png" if i == 0 else f"images/{i}.png"), draw(8, 8, 3, seed=i))
    made = split_folder(source, tmp_path / "made")
    found = load_benchmark(f"folder:{made}")
    assert sizes(found) == [14, 2, 4]
    labels = {n.removeprefix("images/"): [*y] for n, *y in rows}
    for data in (found.train, found.val, found.test):
        assert [labels[n.removeprefix("images/")] for n in data.names] == data.labels.tolist()
    with (source / "labels.csv").open("a", newline="") as file:
        save_picture(tmp_path / "elsewhere.png", draw(8, 8, 3))
        csv.writer(file).writerow(["../elsewhere.png", 0, 1])
    with pytest.raises(ValueError, match=r"\.\./elsewhere\.png, which lies outside"):
        split_folder(source, tmp_path / "more")


def test_files_are_shared_where_the_disk_can_and_copied_where_not(tmp_path, monkeypatch):
    source = classes(tmp_path / "mine")
    save_picture(tmp_path / "elsewhere.png", draw(8, 8, 3))
    (source / "cat" / "linked.png").symlink_to("../../elsewhere.png")
    linked = split_folder(source, tmp_path / "linked")
    assert {(linked / name).stat().st_nlink for name in find_pictures(linked)} == {2}

    def refuse(*names):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    copied = split_folder(source, tmp_path / "copied")
    assert {(copied / name).stat().st_nlink for name in find_pictures(copied)} == {1}
    assert find_pictures(copied) == find_pictures(linked) and pixels(copied) == pixels(linked) == pixels(source)
    assert not any((place / name).is_symlink() for place in (copied, linked) for name in find_pictures(place))
    prints = [load_benchmark(f"folder:{place}").train.fingerprint() for place in (linked, copied)]
    assert prints[0] == prints[1]  # features that are cached stay valid


def test_the_new_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    source, link = classes(tmp_path / "mine"), folders._link

    def until_the_disk_is_full(base, names, place):
        if place.name == "test":
            raise OSError(errno.ENOSPC, "no space left")
        link(base, names, place)

    monkeypatch.setattr(folders, "_link", until_the_disk_is_full)
    with pytest.raises(OSError, match="the disk is full"):
        split_folder(source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    monkeypatch.undo()
    (tmp_path / "made").mkdir()  # there, but empty
    assert sorted(p.name for p in split_folder(source, tmp_path / "made").iterdir()) == sorted(SPLITS)


def test_an_original_and_a_full_target_are_never_touched(tmp_path):
    source = classes(tmp_path / "mine")
    made = split_folder(source, tmp_path / "made")
    before = pixels(tmp_path)
    with pytest.raises(FileExistsError, match="made is there and not empty"):
        split_folder(source, made)
    with pytest.raises(ValueError, match="would be taken for a class"):
        split_folder(source, source / "split")
    with pytest.raises(ValueError, match="would be taken for a class"):
        split_folder(source, source)
    with pytest.raises(ValueError, match=r"has train, val, test already: load_benchmark\('folder:"):
        split_folder(made, tmp_path / "more")
    assert pixels(tmp_path) == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (70, 10, 20)])
def test_wrong_shares_are_refused(tmp_path, shares):
    with pytest.raises(ValueError, match="three positive numbers that sum to 1"):
        split_folder(classes(tmp_path / "mine"), tmp_path / "made", shares=shares)


def test_what_cannot_be_divided_is_named(tmp_path):
    with pytest.raises(MissingDataError, match="there is no folder"):
        split_folder(tmp_path / "nowhere", tmp_path / "made")
    (tmp_path / "mine").mkdir()
    with pytest.raises(MissingDataError, match="no picture of a class in"):
        split_folder(tmp_path / "mine", tmp_path / "made")
    source = classes(tmp_path / "mine")
    save_picture(source / "eel" / "1.png", draw(9, 9))
    with pytest.raises(ValueError, match=r"too few different pictures of \['eel'\] for train"):
        split_folder(source, tmp_path / "made", shares=(0.4, 0.3, 0.3))
    (source / "fox").mkdir()
    with pytest.raises(MissingDataError, match="fox holds no picture"):
        split_folder(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_picture_in_two_classes_comes_into_one_split_and_is_named(tmp_path):
    source = classes(tmp_path / "mine")
    for i in range(8):
        shutil.copy(source / "cat" / f"{i:03}.png", source / "dog" / f"twin{i}.png")
    says = r"8 pictures.*more than one label.*cat/\d+\.png', 'dog/twin\d\.png'"
    with pytest.warns(UserWarning, match=says) as caught:
        made = split_folder(source, tmp_path / "made")
    assert len(caught) == 1 and caught[0].filename == __file__
    parts = [set(pixels(made / split)) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40


@pytest.mark.parametrize("litter", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"])
def test_what_systems_leave_behind_is_neither_class_nor_picture_nor_set(tmp_path, litter):
    source = classes(tmp_path / "mine")
    for place in (source, source / "cat", source / "far", source / "far" / "car", tmp_path):
        save_picture(place / litter / "1.png", draw(9, 9))
    save_picture(source / "far" / "car" / "1.png", draw(9, 9))
    bench = load_benchmark(f"folder:{split_folder(source, tmp_path / 'made')}")
    assert bench.classes == ("cat", "dog") and list(bench.far) == ["car"] and len(bench.far["car"]) == 1
    assert sum(sizes(bench)) == 40
    for place in ("train", "far", "far/car", "train/cat"):
        save_picture(tmp_path / "made" / place / litter / "1.png", draw(9, 9))
    assert repr(load_benchmark(f"folder:{tmp_path / 'made'}")) == repr(bench)

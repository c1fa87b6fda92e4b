"""Laws of the benchmarks: roles, splits and shapes, on files made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ood_lib.data.benchmark import Normalize, load_benchmark, load_ood_set
from ood_lib.data.download import ORIGINS, PUBLISHED
from ood_lib.data.images import ImageFormat
from ood_lib.data.locate import MissingDataError
from ood_lib.data.protocols import PROTOCOLS
from tests.data.test_annotations import coco, table, voc
from tests.data.test_images import draw, save_picture
from tests.data.test_locate import CIFAR10, save_arrays

OOD_OF_CIFAR10 = ("cifar100", "tiny_imagenet", "mnist", "svhn", "textures", "places365")


@pytest.fixture(scope="module")
def digits():
    return load_benchmark("digits")


def _cifar10(root, per_class=10):
    labels = np.arange(10 * per_class) % 10
    for seed, split in enumerate(("train", "test")):
        save_arrays(root / "cifar10" / f"{split}.npz", draw(len(labels), 32, 32, 3, seed=seed), labels)


def _whole_cifar10(root):
    _cifar10(root)
    for name in OOD_OF_CIFAR10:
        save_arrays(root / name / "test.npz", draw(5, 32, 32, 3), np.arange(5))


def _offline(root, name="cifar10", **options):
    return load_benchmark(name, root, download=False, **options)


def test_normalize_standardises_and_lives_in_the_network(digits):
    out = digits.normalize(digits.train.images)
    assert out.mean().abs() < 1e-5 and (out.std() - 1).abs() < 1e-3
    assert set(digits.normalize.state_dict()) == {"mean", "std"}
    assert digits.normalize.double()(digits.train.images.double()).dtype == torch.float64
    constant = Normalize.measured(torch.zeros(4, 3, 2, 2))(torch.zeros(1, 3, 2, 2))
    assert torch.equal(constant, torch.zeros(1, 3, 2, 2))


def test_repr_is_a_table(digits):
    lines = repr(digits).splitlines()
    assert len(lines) == 2 + 3 + 1 + 5 and lines[2].split() == ["train", "digits", "696"]


# --------------------------------------------------------------------------- roles of CIFAR and ImageNet


def test_arrays_make_a_benchmark(tmp_path):
    _whole_cifar10(tmp_path)
    bench = _offline(tmp_path)
    assert [len(s) for s in (bench.train, bench.val, bench.test)] == [100, 10, 90]
    assert bench.val.labels.tolist() == list(range(10)) or torch.bincount(bench.val.labels).eq(1).all()
    assert list(bench.near) == ["cifar100", "tiny_imagenet"]
    assert list(bench.far) == ["mnist", "svhn", "textures", "places365"]
    assert all(set(s.labels.tolist()) == {-1} for s in (*bench.near.values(), *bench.far.values()))
    assert bench.classes == tuple(CIFAR10) and bench.image_shape == (3, 32, 32)
    raw = {image.numpy().tobytes() for image in bench.val.images}
    assert not raw & {image.numpy().tobytes() for image in bench.test.images}


def test_environment_names_the_root(tmp_path, monkeypatch):
    _whole_cifar10(tmp_path)
    monkeypatch.setenv("OOD_DATA", str(tmp_path))
    assert len(load_benchmark("cifar10", download=False).train) == 100


def test_folders_and_arrays_give_the_same_tensors(tmp_path):
    _whole_cifar10(tmp_path / "arrays")
    for name in OOD_OF_CIFAR10:
        save_arrays(tmp_path / "folders" / name / "test.npz", draw(5, 32, 32, 3))
    for split in ("train", "test"):
        with np.load(tmp_path / "arrays" / "cifar10" / f"{split}.npz") as file:
            for i, (image, label) in enumerate(zip(file["images"], file["labels"], strict=True)):
                save_picture(tmp_path / "folders" / "cifar10" / split / CIFAR10[label] / f"{i:03}.png", image)
    arrays, folders = _offline(tmp_path / "arrays"), _offline(tmp_path / "folders")
    order = torch.from_numpy(np.argsort(arrays.train.labels.numpy(), kind="stable"))
    assert torch.equal(arrays.train.images[order], folders.train.images)
    assert torch.equal(arrays.train.labels[order], folders.train.labels)
    assert arrays.classes == folders.classes


def test_imagenet_from_folders(tmp_path):
    for split, count in (("train", 1), ("val", 10)):
        for wnid in ("n01", "n02"):
            for i in range(count):
                save_picture(tmp_path / "imagenet" / split / wnid / f"{i}.png", draw(30, 40, 3, seed=i))
    for name in ("ssb_hard", "ninco", "inaturalist", "textures", "openimage_o"):
        save_picture(tmp_path / name / "1.png", draw(30, 40, 3))
    bench = _offline(tmp_path, "imagenet")
    assert bench.image_shape == (3, 224, 224) and bench.classes == ("n01", "n02")
    assert bench.val.labels.tolist() == [0, 1] and len(bench.test) == 18
    assert list(bench.near) == ["ssb_hard", "ninco"] and len(bench.far) == 3


def test_one_more_set(tmp_path, digits):
    save_arrays(tmp_path / "kmnist" / "train.npz", draw(3, 28, 28), np.arange(3))
    found = load_ood_set("kmnist", digits, tmp_path, download=False)
    assert found.images.shape == (3, 1, 8, 8) and found.labels.tolist() == [-1] * 3
    with pytest.raises(MissingDataError, match="fashion_mnist"):
        load_ood_set("fashion_mnist", digits, tmp_path, download=False)


@pytest.mark.parametrize("name", ["cifar10-bank", "cifar10-resnet9", "bank:here/mine"])
def test_a_bank_is_no_benchmark_of_images_and_its_reader_is_named(name):
    with pytest.raises(ValueError, match=rf"'{name}' is a bank: .* benchmark_features\('{name}'\)"):
        load_benchmark(name)


def test_absent_ood_sets_are_skipped_with_a_warning_where_the_reader_asked(tmp_path):
    _cifar10(tmp_path)
    save_arrays(tmp_path / "mnist" / "test.npz", draw(5, 28, 28))
    with pytest.warns(UserWarning, match="cifar100, tiny_imagenet, svhn, textures, places365") as caught:
        bench = load_benchmark("cifar10", tmp_path, download=False, missing="skip")
    assert list(bench.near) == [] and list(bench.far) == ["mnist"]
    assert [w.filename for w in caught] == [__file__]


def test_notes_name_each_departure(tmp_path):
    _whole_cifar10(tmp_path)
    (tmp_path / "svhn" / "test.npz").unlink()
    with pytest.warns(UserWarning, match="svhn"):
        bench = _offline(tmp_path, missing="skip")
    notes = "\n".join(bench.notes)
    for part in ("cut from the test split by us", "train has 100 images, 50,000 in OpenOOD v1.5", "svhn is left out"):
        assert part in notes
    assert "mnist has 5 images, 70,000 in" in notes and len(bench.notes) == 1 + 3 + 6
    assert all(note in repr(bench) for note in bench.notes)


def _openood_home(root, name, sets):
    """OpenOOD's own folder: its lists, and pictures that they name; `sets` is list -> (folder, labels)."""
    for stem, (folder, labels) in sets.items():
        path = root / "benchmark_imglist" / name / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [f"{folder}/{label}/{i:04}.png" for i, label in enumerate(labels)]
        path.write_text("".join(f"{file} {label}\n" for file, label in zip(names, labels)))
        for i, file in enumerate(names):
            save_picture(root / "images_classic" / file, draw(32, 32, 3, seed=i))


def test_openood_lists_give_its_images_and_no_note(tmp_path, monkeypatch):
    from ood_lib.data import protocols

    known = {f"{role}_cifar10": (f"cifar10/{role}", [9, 0, 3, 3]) for role in ("train", "val", "test")}
    others = {f"test_{stem}": (stem, [-1] * 2) for stem in "cifar100 tin mnist svhn texture places365".split()}
    _openood_home(tmp_path, "cifar10", known | others)
    bench = _offline(tmp_path)
    assert [s.labels.tolist() for s in (bench.train, bench.val, bench.test)] == [[9, 0, 3, 3]] * 3
    assert bench.test.names[0] == "cifar10/test/9/0000.png" and bench.classes == tuple(CIFAR10)
    assert bench.near["tiny_imagenet"].names == ["tin/-1/0000.png", "tin/-1/0001.png"]
    assert len(bench.notes) == 9 and not any("cut" in note for note in bench.notes)  # only that it is small
    small = protocols.PROTOCOLS["cifar10"]._replace(
        known=(4, 4, 4), near=dict.fromkeys(bench.near, 2), far=dict.fromkeys(bench.far, 2)
    )
    monkeypatch.setitem(protocols.PROTOCOLS, "cifar10", small)
    assert _offline(tmp_path).notes == ()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_complete(name):
    rules = PROTOCOLS[name]
    sets = [*rules.near, *rules.far]
    assert all(data in PUBLISHED or data in ORIGINS for data in (name, *sets))  # a reader is told where to get it
    assert not rules.lists or list(rules.lists) == ["train", "val", "test", *sets]
    if rules.source.startswith("OpenOOD"):
        val, test = rules.known[1:]
        assert (val + test) % 10_000 == 0 and test == 9 * val


def test_labels_count_the_classes(tmp_path):
    _whole_cifar10(tmp_path)
    save_arrays(tmp_path / "cifar10" / "train.npz", draw(20, 32, 32, 3), np.full(20, 10))
    with pytest.raises(ValueError, match="10 classes from 0"):
        _offline(tmp_path)


# --------------------------------------------------------------------------- folder:PATH


def _own(root, size=(20, 24), mode_shape=(3,)):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for label in ("cat", "dog"):
            for i in range(count):
                save_picture(root / split / label / f"{i}.png", draw(*size, *mode_shape, seed=i))
    save_picture(root / "near" / "fox" / "1.png", draw(50, 20, 3))
    save_picture(root / "far" / "car" / "deep" / "1.png", draw(20, 50, 3))
    save_picture(root / "far" / "car" / "2.png", draw(20, 50))
    return root


def test_own_folder_end_to_end(tmp_path):
    bench = load_benchmark(f"folder:{_own(tmp_path)}")
    assert [len(s) for s in (bench.train, bench.val, bench.test)] == [8, 4, 6]
    assert bench.classes == ("cat", "dog") and bench.image_shape == (3, 20, 20)
    assert list(bench.near) == ["fox"] and list(bench.far) == ["car"] and len(bench.far["car"]) == 2
    assert next(iter(DataLoader(bench.far["car"], batch_size=2)))[0].shape == (2, 3, 20, 20)
    out = bench.normalize(bench.train.images)
    assert out.mean((0, 2, 3)).abs().max() < 1e-5 and (out.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_own_folder_in_grey_and_in_another_size(tmp_path):
    own = _own(tmp_path, mode_shape=())
    assert load_benchmark(f"folder:{own}").image_shape == (1, 20, 20)
    assert load_benchmark(f"folder:{own}", image_size=12).image_shape == (1, 12, 12)
    large = _own(tmp_path / "large", size=(300, 260))
    assert load_benchmark(f"folder:{large}").image_shape == (3, 224, 224)


def test_a_class_may_be_absent_from_a_test_split_but_not_from_training(tmp_path):
    own = _own(tmp_path)
    for i in range(3):
        (own / "test" / "cat" / f"{i}.png").unlink()
    (own / "test" / "cat").rmdir()
    assert load_benchmark(f"folder:{own}").test.labels.tolist() == [1, 1, 1]
    (own / "test" / "dog").rename(own / "test" / "dig")
    with pytest.raises(ValueError, match="'dig'"):
        load_benchmark(f"folder:{own}")


def test_own_folder_errors(tmp_path):
    with pytest.raises(MissingDataError, match="train/<class>/<picture>"):
        load_benchmark(f"folder:{tmp_path / 'nowhere'}")
    own = _own(tmp_path / "own")
    (own / "far" / "void").mkdir()
    with pytest.raises(MissingDataError, match="without a picture"):
        load_benchmark(f"folder:{own}")
    with pytest.warns(UserWarning, match="far/void"):
        assert list(load_benchmark(f"folder:{own}", missing="skip").far) == ["car"]


@pytest.mark.parametrize("height, width", [(256, 256), (300, 400), (641, 257), (150, 120), (375, 500), (224, 300)])
def test_own_folder_is_resized_and_cropped_as_torchvision_does(tmp_path, height, width):
    """The transform that most ImageNet networks name, on Pillow's pictures; Pillow rounds twice."""
    from torchvision import transforms

    rule = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    own = _own(tmp_path)
    photo = Image.fromarray(draw(9, 12, 3)).resize((width, height), Image.Resampling.BICUBIC)
    photo.save(own / "test" / "cat" / "0.png")
    bench = load_benchmark(f"folder:{own}", image_size=224, resize=256)
    assert bench.image_shape == (3, 224, 224) and bench.far["car"].frame == bench.test.frame == ImageFormat(3, 224, 256)
    away = (bench.test[0][0] * 255 - rule(photo).float()).abs()
    assert away.max() < 1.5 and away.mean() < 0.5
    plain = load_benchmark(f"folder:{own}", image_size=224).test[0][0]
    assert (plain - bench.test[0][0]).abs().mean() > 0.005  # another part of the picture


@pytest.mark.parametrize(
    "options, says",
    [
        ({"resize": 256}, "resize=256 needs an image_size"),
        ({"resize": 200, "image_size": 224}, "the crop would be larger"),
        ({"resize": 0, "image_size": 224}, "at least 1 pixel"),
    ],
)
def test_a_crop_needs_both_sizes(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        load_benchmark(f"folder:{_own(tmp_path)}", **options)
    with pytest.raises(ValueError, match=r"resize=256 needs|image_size=224 needs a folder"):
        load_benchmark("digits", image_size=224, resize=256)
    with pytest.raises(ValueError, match="stretched, not cropped"):
        load_benchmark(f"folder:{_labelled(tmp_path / 'labelled')}", image_size=8, resize=9)


# --------------------------------------------------------------------------- several labels


def _labelled(root):
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        (root / split).mkdir(parents=True)
        table(root / split, [(f"{i}.png", int(i % 3 == 1), int(i % 3 == 2)) for i in range(count)])
    save_picture(root / "far" / "car" / "2.png", draw(20, 50))
    return root


def test_own_folder_of_several_labels(tmp_path):
    own = _labelled(tmp_path)
    bench = load_benchmark(f"folder:{own}")
    assert bench.classes == ("cat", "dog") and bench.train.labels.tolist()[:3] == [[0, 0], [1, 0], [0, 1]]
    assert bench.far["car"].labels.tolist() == [-1] and bench.image_shape == (3, 8, 8)
    assert bench.train.frame.stretch and bench.far["car"].frame.stretch  # a crop might cut off what a label names
    table(own / "test", [("0.png", 1, 0)], ("image", "dog", "cat"))  # another order of columns
    assert load_benchmark(f"folder:{own}").test.labels.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "header, says", [(("image", "cat", "dig"), "'dig'"), (("image", "cat"), "each of the 2 classes of training")]
)
def test_labels_of_all_splits_name_the_same_classes(tmp_path, header, says):
    own = _labelled(tmp_path)
    table(own / "val", [("0.png", *(0 for _ in header[1:]))], header)
    with pytest.raises(ValueError, match=says):
        load_benchmark(f"folder:{own}")


def test_single_and_several_labels_do_not_mix(tmp_path):
    own, other = _labelled(tmp_path / "own"), _own(tmp_path / "other")
    (own / "val" / "labels.csv").unlink()
    (own / "val" / "images").rename(own / "val" / "cat")
    with pytest.raises(ValueError, match="column of 0/1"):
        load_benchmark(f"folder:{own}")
    table(other / "val", [("0.png", 1, 0)])
    with pytest.raises(ValueError, match="one for each image"):
        load_benchmark(f"folder:{other}")


def _far_of_voc(root):
    for name in ("imagenet22k", "textures"):
        save_picture(root / name / "a" / "1.jpg", draw(30, 40, 3))


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_voc_and_coco_as_published(tmp_path, name):
    _far_of_voc(tmp_path)
    for split, copies in (("train", 2), ("val", 10)):
        voc(tmp_path / "VOCdevkit" / "VOC2012", split, copies)
        coco(tmp_path / "coco", split, copies)
    bench = _offline(tmp_path, name)
    assert bench.classes == {"voc": ("cat", "dog"), "coco": ("cat", "dog", "brush")}[name]
    assert [len(s) for s in (bench.train, bench.val, bench.test)] == [6, 3, 27]
    assert bench.train.labels.shape == (6, len(bench.classes)) and bench.image_shape == (3, 256, 256)
    assert not set(bench.val.names) & set(bench.test.names)
    assert bench.near == {} and list(bench.far) == ["imagenet22k", "textures"]


def test_voc_in_one_piece_or_in_splits(tmp_path):
    _far_of_voc(tmp_path)
    rows = [(f"{i}.png", i % 2, 1 - i % 2) for i in range(20)]
    (tmp_path / "voc2012").mkdir()
    table(tmp_path / "voc2012", rows)
    bench = _offline(tmp_path, "voc")
    assert [len(s) for s in (bench.train, bench.val, bench.test)] == [12, 2, 6]
    for split in ("train", "val"):
        (tmp_path / "coco" / split).mkdir(parents=True)
        table(tmp_path / "coco" / split, rows)
    bench = _offline(tmp_path, "coco")
    assert [len(s) for s in (bench.train, bench.val, bench.test)] == [20, 2, 18]


def test_a_damaged_annotation_is_told(tmp_path):
    coco(tmp_path / "coco")
    (tmp_path / "coco" / "train2014" / "10.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"coco/annotations \(there, but incomplete.*10\.jpg"):
        _offline(tmp_path, "coco")


# --------------------------------------------------------------------------- errors


def test_unknown_names():
    with pytest.raises(ValueError, match=r"did you mean 'cifar10'.*digits.*imagenet.*folder:PATH"):
        load_benchmark("cifar-10")
    with pytest.raises(ValueError, match="folder:PATH"):
        load_benchmark("folder:")
    with pytest.raises(ValueError, match="missing"):
        load_benchmark("digits", missing="ignore")
    with pytest.raises(ValueError, match="image_size"):
        load_benchmark("digits", image_size=32)


def test_a_name_may_be_a_path(tmp_path, digits):
    assert load_benchmark(Path("digits")).train.fingerprint() == digits.train.fingerprint()
    own = _own(tmp_path)
    assert repr(load_benchmark(Path(f"folder:{own}"))) == repr(load_benchmark(f"folder:{own}"))
    with pytest.raises(ValueError, match="unknown benchmark 'cifar-10'"):
        load_benchmark(Path("cifar-10"))


# -- the format of a folder ----------------------------------------------------------------------------------------


def _folder_of(root, shapes):
    for split in ("train", "val", "test"):
        for i, shape in enumerate(shapes if split == "train" else shapes[-1:]):
            save_picture(root / split / "ant" / f"{i:02}.png", draw(*shape, seed=i))
    return f"folder:{root}"


@pytest.mark.parametrize("odd", [(64, 64), (5, 90, 3), (5, 5)], ids=["grey", "narrow", "tiny and grey"])
def test_one_odd_picture_does_not_decide_for_all(tmp_path, odd):
    bench = load_benchmark(_folder_of(tmp_path, [odd] + 9 * [(32, 40, 3)]))
    assert bench.image_shape == (3, 32, 32) and bench.train.images.shape == (10, 3, 32, 32)


def test_a_first_picture_that_cannot_be_read_does_not_decide_either(tmp_path):
    name = _folder_of(tmp_path, 4 * [(32, 40)])
    (tmp_path / "train/ant/00.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"00\.png cannot be read as a picture"):
        load_benchmark(name)


@pytest.mark.parametrize("shape", [(32, 40), (32, 40, 3)])
def test_the_channels_can_be_told(tmp_path, shape):
    name = _folder_of(tmp_path, 4 * [shape])
    assert load_benchmark(name).image_shape[0] == (3 if len(shape) == 3 else 1)
    for channels in (1, 3):
        bench = load_benchmark(name, channels=channels, image_size=24)
        assert bench.image_shape == (channels, 24, 24) and bench.test.images.shape[1] == channels
    with pytest.raises(ValueError, match="channels=4 was given; expected 1 or 3"):
        load_benchmark(name, channels=4)
    with pytest.raises(ValueError, match="channels=3 was given; expected 1 or 3, with a folder:PATH"):
        load_benchmark("digits", channels=3)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a/../../b"])
def test_the_name_of_a_set_stays_below_its_root(digits, tmp_path, name):
    with pytest.raises(ValueError, match="expected the name of a folder below root"):
        load_ood_set(name, digits, tmp_path)

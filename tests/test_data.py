"""Laws of the data room, on files made here; nothing leaves this machine."""

import contextlib
import functools
import hashlib
import http.server
import os
import pickle
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ood_lib import data
from ood_lib.data import Frame, ImageArray, MissingDataError, Normalize, load_benchmark, load_ood_set

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
OOD_OF_CIFAR10 = ("cifar100", "tiny_imagenet", "mnist", "svhn", "textures", "places365")


@pytest.fixture(scope="module")
def digits():
    return load_benchmark("digits")


def _pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _arrays(path, images, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))


def _picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _cifar10(root, per_class=10):
    labels = np.arange(10 * per_class) % 10
    for seed, split in enumerate(("train", "test")):
        _arrays(root / "cifar10" / f"{split}.npz", _pixels(len(labels), 32, 32, 3, seed=seed), labels)


def _whole_cifar10(root):
    _cifar10(root)
    for name in OOD_OF_CIFAR10:
        _arrays(root / name / "test.npz", _pixels(5, 32, 32, 3), np.arange(5))


def _offline(root, name="cifar10", **options):
    return load_benchmark(name, root, download=False, **options)


# --------------------------------------------------------------------------- digits


def test_digits_roles_and_counts(digits):
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [696, 189, 379]
    assert list(digits.near) == ["digits7-9"] and len(digits.near["digits7-9"]) == 533
    assert list(digits.far) == ["photos", "inverted", "rotated", "blurred", "noise"]
    assert digits.classes == tuple("0123456") and digits.image_shape == (1, 8, 8)


def test_digits_items(digits):
    known = (digits.train, digits.val, digits.test)
    for dataset in (*known, *digits.near.values(), *digits.far.values()):
        image, label = dataset[0]
        assert image.dtype == torch.float32 and image.shape == (1, 8, 8) and isinstance(label, int)
        assert 0 <= dataset.images.min() and dataset.images.max() <= 1
        assert set(dataset.labels.tolist()) == (set(range(7)) if dataset in known else {-1})


def test_digits_are_the_same_every_time(digits):
    again = load_benchmark("digits")
    for name in ("train", "val", "test"):
        assert getattr(digits, name).fingerprint() == getattr(again, name).fingerprint()
    for mine, other in ((digits.near, again.near), (digits.far, again.far)):
        assert [d.fingerprint() for d in mine.values()] == [d.fingerprint() for d in other.values()]


def test_digits_splits_are_those_of_yesterday(digits):
    """Pinned, so that a change of numpy or scikit-learn that moves an image does not go unseen."""
    pixels = (digits.test.images * 16).round().byte().numpy()
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "da8b6f4a1a185c52"


def test_digits_splits_are_disjoint_and_stratified(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    where = {image.tobytes(): i for i, image in enumerate(raw.images.astype(np.float32) / 16)}
    indices = [{where[i.numpy().tobytes()] for i in s.images[:, 0]} for s in (digits.train, digits.val, digits.test)]
    assert len(set.union(*indices)) == sum(map(len, indices)) == (raw.target < 7).sum()
    for dataset, share in ((digits.train, 0.55), (digits.val, 0.15), (digits.test, 0.30)):
        counts = torch.bincount(dataset.labels) / torch.from_numpy(np.bincount(raw.target)[:7])
        assert (counts - share).abs().max() < 0.01
    near = {where[i.numpy().tobytes()] for i in digits.near["digits7-9"].images[:, 0]}
    assert set(raw.target[list(near)]) == {7, 8, 9} and len(near) == 533


@pytest.mark.parametrize("name", ["photos", "inverted", "rotated", "blurred", "noise"])
def test_far_digits_are_not_degenerate(digits, name):
    images = digits.far[name].images
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) >= 300
    assert images.flatten(1).std(1).min() > 0.02  # no blank image
    assert images.std(0).mean() > 0.05  # nor the same image over and over


def test_far_digits_are_what_their_names_say(digits):
    test, far = digits.test, {name: s.images for name, s in digits.far.items()}
    assert torch.equal(far["inverted"], 1 - test.images)
    upright = far["rotated"].flip(2).transpose(2, 3)  # a quarter turn back, written differently
    assert torch.equal(upright, test.images[test.labels > 0])
    assert (far["noise"].mean() - 0.5).abs() < 0.01 and (far["noise"].var() - 1 / 12).abs() < 0.002
    neighbours = [torch.stack([x[..., 1:].flatten(), x[..., :-1].flatten()]).corrcoef()[0, 1] for x in far.values()]
    assert neighbours[0] > 0.5 and neighbours[3] > 0.8 and abs(neighbours[4]) < 0.02  # photographs are smooth


def test_blur_takes_the_class_away(digits):
    def accuracy(images):
        nearest = torch.cdist(images.flatten(1), digits.train.images.flatten(1)).argmin(1)
        return (digits.train.labels[nearest] == digits.test.labels).float().mean()

    assert accuracy(digits.test.images) > 0.97 and accuracy(digits.far["blurred"].images) < 0.5


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


def test_digits_are_quick():
    start = time.process_time()
    load_benchmark("digits")
    assert time.process_time() - start < 1


# --------------------------------------------------------------------------- images


def test_batches_equal_single_items():
    dataset = ImageArray(_pixels(7, 12, 9, 3), np.arange(7), Frame(1, 8))
    batches = list(DataLoader(dataset, batch_size=3))
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.stack([x for x, _ in dataset]))
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(7))
    assert torch.equal(dataset.images, torch.cat([x for x, _ in batches]))
    assert torch.equal(dataset[-1][0], dataset[6][0])
    with pytest.raises(IndexError):
        dataset[7]


def test_values_are_bytes_over_255():
    pixels = _pixels(2, 4, 4, 3)
    expected = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    assert torch.equal(ImageArray(pixels).images, expected)
    assert torch.equal(ImageArray(expected).images, expected)
    assert torch.equal(ImageArray(pixels[..., 0]).images, expected[:, :1])
    pixels.setflags(write=False)
    assert torch.equal(ImageArray(pixels[::-1], np.arange(2)[::-1]).images, expected.flip(0))


def test_grey_is_repeated_and_colour_is_weighted():
    grey = ImageArray(_pixels(2, 8, 8), frame=Frame(3, 8)).images
    assert grey.shape == (2, 3, 8, 8) and torch.equal(grey[:, 0], grey[:, 2])
    pixels = _pixels(1, 8, 8, 3)
    luma = np.asarray(Image.fromarray(pixels[0]).convert("L"))
    assert np.abs(ImageArray(pixels, frame=Frame(1, 8)).images[0, 0].numpy() * 255 - luma).max() < 1


@pytest.mark.parametrize("height, width", [(64, 64), (50, 91), (91, 50), (20, 33), (32, 40)])
def test_frame_is_the_rule_of_torchvision_on_pillow(height, width):
    from torchvision.transforms import v2

    pixels = np.asarray(Image.fromarray(_pixels(9, 9, 3)).resize((width, height), Image.Resampling.BICUBIC))
    rule = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.PILToTensor()])
    expected = rule(Image.fromarray(pixels)).float()
    mine = ImageArray(pixels[None], frame=Frame(3, 32, 40)).images[0] * 255
    assert mine.shape == (3, 32, 32) and (mine - expected).abs().max() < 1.5  # Pillow rounds twice


@pytest.mark.parametrize(
    "images, labels, says",
    [
        (_pixels(2, 4, 4, 2), None, "expected uint8"),
        (_pixels(2, 4), None, "expected uint8"),
        (np.zeros((2, 4, 4), np.int64), None, "int64"),
        (np.zeros((0, 4, 4), np.uint8), None, "shape"),
        (np.full((2, 1, 4, 4), 255.0), None, "divide"),
        (np.full((2, 1, 4, 4), np.nan), None, "lie in"),
        (_pixels(2, 4, 4), np.arange(3), r"\(2,\)"),
        (_pixels(2, 4, 4), np.zeros((2, 5), int), r"\(2,\)"),
        (_pixels(2, 4, 4), np.array([0.5, 1.0]), "integers"),
    ],
)
def test_wrong_arrays_are_refused(images, labels, says):
    with pytest.raises(ValueError, match=says):
        ImageArray(images, labels)


def test_fingerprint_of_arrays_follows_content():
    pixels, labels = _pixels(4, 8, 8), np.arange(4)
    one = ImageArray(pixels, labels).fingerprint()
    assert one == ImageArray(pixels.copy(), labels).fingerprint()
    changed = pixels.copy()
    changed[3, 7, 7] ^= 1
    others = [
        ImageArray(changed, labels),
        ImageArray(pixels, labels[::-1].copy()),
        ImageArray(pixels, labels, Frame(3, 8)),
        ImageArray(pixels, labels).subset(torch.arange(3)),
        ImageArray(pixels.reshape(4, 4, 16), labels),
    ]
    assert len({one, *(other.fingerprint() for other in others)}) == 6


def test_fingerprint_of_files_follows_the_folder(tmp_path):
    for i in range(3):
        _picture(tmp_path / "mine" / f"{i}.png", _pixels(8, 8, 3, seed=i))
    bench = load_benchmark("digits")
    read = functools.partial(load_ood_set, "mine", bench, tmp_path)
    first = read().fingerprint()
    assert first == read().fingerprint()
    _picture(tmp_path / "mine" / "1.png", _pixels(9, 8, 3))
    second = read().fingerprint()
    (tmp_path / "mine" / "2.png").rename(tmp_path / "mine" / "3.png")
    third = read().fingerprint()
    os.utime(tmp_path / "mine" / "3.png", (1, 1))  # rewritten with the same size
    assert len({first, second, third, read().fingerprint()}) == 4


def test_links_to_folders_are_followed(tmp_path, digits):
    _picture(tmp_path / "elsewhere" / "1.png", _pixels(8, 8))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(load_ood_set("mine", digits, tmp_path)) == 1


# --------------------------------------------------------------------------- layouts


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
        _arrays(tmp_path / "folders" / name / "test.npz", _pixels(5, 32, 32, 3))
    for split in ("train", "test"):
        with np.load(tmp_path / "arrays" / "cifar10" / f"{split}.npz") as file:
            for i, (image, label) in enumerate(zip(file["images"], file["labels"], strict=True)):
                _picture(tmp_path / "folders" / "cifar10" / split / CIFAR10[label] / f"{i:03}.png", image)
    arrays, folders = _offline(tmp_path / "arrays"), _offline(tmp_path / "folders")
    order = torch.from_numpy(np.argsort(arrays.train.labels.numpy(), kind="stable"))
    assert torch.equal(arrays.train.images[order], folders.train.images)
    assert torch.equal(arrays.train.labels[order], folders.train.labels)
    assert arrays.classes == folders.classes


def test_ood_pictures_of_any_size_kind_and_depth(tmp_path):
    _whole_cifar10(tmp_path)
    (tmp_path / "textures" / "test.npz").unlink()
    textures = tmp_path / "textures"
    _picture(textures / "a" / "b" / "1.png", _pixels(50, 70, 3))
    _picture(textures / "grey.JPG", _pixels(20, 30))
    _picture(textures / "transparent.png", _pixels(64, 33, 4))
    Image.fromarray(_pixels(40, 40, 3)).convert("P").save(textures / "palette.png")
    Image.fromarray(_pixels(40, 40)).convert("1").save(textures / "bits.png")
    _picture(textures / ".hidden.png", _pixels(4, 4))
    (textures / "list.txt").write_text("no picture")
    found = _offline(tmp_path).far["textures"]
    (images, labels) = next(iter(DataLoader(found, batch_size=8)))
    assert images.shape == (5, 3, 32, 32) and labels.eq(-1).all()
    assert 0 <= images.min() and images.max() <= 1


@pytest.mark.parametrize("place", ["tiny_imagenet/val", "tiny_imagenet_val", "tiny-imagenet-200/val/images"])
def test_tiny_imagenet_as_people_unpack_it(tmp_path, place):
    _whole_cifar10(tmp_path)
    (tmp_path / "tiny_imagenet" / "test.npz").unlink()
    _picture(tmp_path / place / "n01" / "1.png", _pixels(64, 64, 3))
    _picture(tmp_path / "tiny-imagenet-200" / "test" / "1.png", _pixels(64, 64, 3))
    assert len(_offline(tmp_path).near["tiny_imagenet"]) == 1


def test_imagenet_from_folders(tmp_path):
    for split, count in (("train", 1), ("val", 10)):
        for wnid in ("n01", "n02"):
            for i in range(count):
                _picture(tmp_path / "imagenet" / split / wnid / f"{i}.png", _pixels(30, 40, 3, seed=i))
    for name in ("ssb_hard", "ninco", "inaturalist", "textures", "openimage_o"):
        _picture(tmp_path / name / "1.png", _pixels(30, 40, 3))
    bench = _offline(tmp_path, "imagenet")
    assert bench.image_shape == (3, 224, 224) and bench.classes == ("n01", "n02")
    assert bench.val.labels.tolist() == [0, 1] and len(bench.test) == 18
    assert list(bench.near) == ["ssb_hard", "ninco"] and len(bench.far) == 3


def test_one_more_set(tmp_path, digits):
    _arrays(tmp_path / "kmnist" / "train.npz", _pixels(3, 28, 28), np.arange(3))
    found = load_ood_set("kmnist", digits, tmp_path, download=False)
    assert found.images.shape == (3, 1, 8, 8) and found.labels.tolist() == [-1] * 3
    with pytest.raises(MissingDataError, match="fashion_mnist"):
        load_ood_set("fashion_mnist", digits, tmp_path, download=False)


# --------------------------------------------------------------------------- folder:PATH


def _own(root, size=(20, 24), mode_shape=(3,)):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for label in ("cat", "dog"):
            for i in range(count):
                _picture(root / split / label / f"{i}.png", _pixels(*size, *mode_shape, seed=i))
    _picture(root / "near" / "fox" / "1.png", _pixels(50, 20, 3))
    _picture(root / "far" / "car" / "deep" / "1.png", _pixels(20, 50, 3))
    _picture(root / "far" / "car" / "2.png", _pixels(20, 50))
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
    (own / "train" / "eel").mkdir()
    with pytest.raises(MissingDataError, match="eel holds no picture"):
        load_benchmark(f"folder:{own}")


def test_own_folder_needs_an_ood_set(tmp_path):
    own = _own(tmp_path)
    (own / "near").rename(own / "nearby")
    (own / "far").rename(own / "farther")
    with pytest.raises(MissingDataError, match="near/NAME"):
        load_benchmark(f"folder:{own}")


def test_sixteen_bits_and_damaged_pictures_are_named(tmp_path):
    own = _own(tmp_path)
    _picture(own / "far" / "car" / "3.png", np.full((20, 20), 5000, np.uint16))
    cut = own / "near" / "fox" / "1.png"
    cut.write_bytes(cut.read_bytes()[:300])
    bench = load_benchmark(f"folder:{own}")
    with pytest.raises(ValueError, match=r"3\.png.*8 bits"):
        bench.far["car"][1]
    with pytest.raises(ValueError, match=r"fox/1\.png cannot be read"):
        bench.near["fox"][0]


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


def test_an_absent_set_is_told_with_every_path_and_every_remedy(tmp_path):
    _whole_cifar10(tmp_path)
    (tmp_path / "svhn" / "test.npz").unlink()
    with pytest.raises(MissingDataError) as caught:
        _offline(tmp_path)
    said = str(caught.value)
    for part in ("no svhn", "svhn/test.npz", "svhn/**/<picture>", "test_32x32.mat", "datasets.SVHN"):
        assert part in said
    for part in ("download=True", "OOD_DATA", 'missing="skip"', "without a picture", str(tmp_path)):
        assert part in said
    assert isinstance(caught.value, FileNotFoundError)


def test_skip_warns_once_and_never_skips_id_sets(tmp_path):
    _cifar10(tmp_path)
    _arrays(tmp_path / "mnist" / "test.npz", _pixels(5, 28, 28))
    with pytest.warns(UserWarning) as caught:
        bench = _offline(tmp_path, missing="skip")
    assert list(bench.near) == [] and list(bench.far) == ["mnist"]
    assert len(caught) == 1 and "cifar100, tiny_imagenet, svhn, textures, places365" in str(caught[0].message)
    (tmp_path / "cifar10" / "train.npz").unlink()
    with pytest.raises(MissingDataError, match=r"cifar10 \(train\)") as error:
        _offline(tmp_path, missing="skip")
    assert 'missing="skip"' not in str(error.value)


@pytest.mark.parametrize(
    "content, says",
    [
        ({"pictures": _pixels(5, 32, 32)}, "no array 'images'"),
        ({"images": _pixels(5, 32, 32, 4)}, "expected uint8"),
        ({"images": _pixels(5, 32, 32).astype(int)}, "int64"),
        ({"images": _pixels(5, 32, 32), "labels": np.arange(4)}, r"\(5,\)"),
        ({"images": np.array([None, "x"], dtype=object)}, "complete"),
    ],
)
def test_wrong_npz_files_are_named(tmp_path, content, says):
    _whole_cifar10(tmp_path)
    np.savez(tmp_path / "svhn" / "test.npz", **content)
    with pytest.raises(ValueError, match=rf"(?s)svhn/test\.npz.*{says}"):
        _offline(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_truncated_npz(tmp_path, keep):
    _whole_cifar10(tmp_path)
    path = tmp_path / "svhn" / "test.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"svhn/test\.npz is no complete"):
        _offline(tmp_path, missing="skip")


def test_id_sets_need_good_labels(tmp_path):
    _whole_cifar10(tmp_path)
    _arrays(tmp_path / "cifar10" / "train.npz", _pixels(20, 32, 32, 3))
    with pytest.raises(ValueError, match=r"train\.npz has no array 'labels'"):
        _offline(tmp_path)
    _arrays(tmp_path / "cifar10" / "train.npz", _pixels(20, 32, 32, 3), np.full(20, 10))
    with pytest.raises(ValueError, match="10 classes from 0"):
        _offline(tmp_path)


def test_without_torchvision_arrays_still_load(tmp_path, monkeypatch):
    _whole_cifar10(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert len(_offline(tmp_path).train) == 100
    (tmp_path / "mnist" / "test.npz").unlink()
    with pytest.raises(MissingDataError, match=r'pip install "ood_lib\[plots\]"'):
        load_benchmark("cifar10", tmp_path)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"ood_lib\[plots\]"):
        load_benchmark("digits")


# --------------------------------------------------------------------------- torchvision


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """An archive in CIFAR-10's own format with 20 images a split; its md5 sums replace the official ones."""
    from torchvision.datasets import CIFAR10 as published

    source = tmp_path / "source" / "cifar-10-batches-py"
    source.mkdir(parents=True)
    for seed, name in enumerate(("data_batch_1", "test_batch")):
        batch = {"data": _pixels(100, 3072, seed=seed), "labels": (np.arange(100) % 10).tolist()}
        (source / name).write_bytes(pickle.dumps(batch))
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10}))
    archive = source.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, source.name)
    monkeypatch.setattr(published, "train_list", [["data_batch_1", _md5(source / "data_batch_1")]])
    monkeypatch.setattr(published, "test_list", [["test_batch", _md5(source / "test_batch")]])
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": _md5(source / "batches.meta")})
    monkeypatch.setattr(published, "tgz_md5", _md5(archive))
    return archive


@contextlib.contextmanager
def _served(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _ood_only(root):
    for name in OOD_OF_CIFAR10:
        _arrays(root / name / "test.npz", _pixels(5, 32, 32, 3))
    return root


def _check_small_cifar(bench):
    assert len(bench.train) == 100 and len(bench.test) == 90 and bench.classes == tuple(CIFAR10)
    expected = _pixels(100, 3072, seed=0).reshape(100, 3, 32, 32) / np.float32(255)
    assert np.abs(bench.train.images.numpy() - expected).max() < 1e-7
    assert bench.train.labels.tolist() == [i % 10 for i in range(100)]


@pytest.mark.parametrize("home", ["", "cifar10", "torchvision/cifar10"])
def test_torchvision_files_are_read_without_network(tmp_path, small_cifar, home):
    root = _ood_only(tmp_path / "root")
    (root / home).mkdir(parents=True, exist_ok=True)
    (small_cifar.parent / "cifar-10-batches-py").rename(root / home / "cifar-10-batches-py")
    _check_small_cifar(_offline(root))


def test_mnist_and_svhn_files_of_torchvision(tmp_path, monkeypatch, digits):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    raw, images = tmp_path / "MNIST" / "raw", _pixels(6, 28, 28)
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        header = np.array([0x803, 6, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([0x801, 6], ">i4").tobytes() + bytes(6))
    found = load_ood_set("mnist", digits, tmp_path, download=False)
    assert torch.equal(found.images, ImageArray(images, frame=Frame(1, 8)).images)

    colour = _pixels(6, 32, 32, 3)
    savemat(tmp_path / "test_32x32.mat", {"X": colour.transpose(1, 2, 3, 0), "y": np.full((6, 1), 10)})
    md5 = _md5(tmp_path / "test_32x32.mat")
    monkeypatch.setitem(SVHN.split_list, "test", ["http://127.0.0.1:1/x", "test_32x32.mat", md5])
    found = load_ood_set("svhn", digits, tmp_path, download=False)
    assert torch.equal(found.images, ImageArray(colour, frame=Frame(1, 8)).images)

    (raw / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03cut short")
    with pytest.raises(MissingDataError, match=r"MNIST/raw \(there, but incomplete or damaged"):
        load_ood_set("mnist", digits, tmp_path, download=False)


def test_textures_half_unpacked_are_not_taken_for_the_set(tmp_path, monkeypatch, digits):
    _picture(tmp_path / "dtd" / "dtd" / "images" / "banded" / "1.jpg", _pixels(40, 40, 3))
    with pytest.raises(MissingDataError, match="1 pictures instead of 5640"):
        load_ood_set("textures", digits, tmp_path, download=False)
    whole = data._PUBLISHED["textures"]._replace(pictures=1)
    monkeypatch.setitem(data._PUBLISHED, "textures", whole)
    assert len(load_ood_set("textures", digits, tmp_path, download=False)) == 1


def test_a_download_that_breaks_off_recovers(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published

    root, whole = _ood_only(tmp_path / "root"), small_cifar.read_bytes()
    with _served(small_cifar.parent) as address:
        monkeypatch.setattr(published, "url", f"{address}/{small_cifar.name}")
        small_cifar.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MissingDataError, match=r"corrupted.*running again starts afresh"):
            load_benchmark("cifar10", root)
        assert not any((root / "torchvision").iterdir())
        small_cifar.write_bytes(whole)
        _check_small_cifar(load_benchmark("cifar10", root))
    _check_small_cifar(_offline(root))  # the server is gone: what was fetched stays


def test_a_damaged_earlier_download_is_replaced(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published

    root = _ood_only(tmp_path / "root")
    with _served(small_cifar.parent) as address:
        monkeypatch.setattr(published, "url", f"{address}/{small_cifar.name}")
        load_benchmark("cifar10", root)
        batch = root / "torchvision" / "cifar10" / "cifar-10-batches-py" / "test_batch"
        batch.write_bytes(batch.read_bytes()[:100])
        with pytest.raises(MissingDataError, match="there, but incomplete or damaged"):
            _offline(root)
        _check_small_cifar(load_benchmark("cifar10", root))


def test_without_network_the_files_are_named(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published

    monkeypatch.setattr(published, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(MissingDataError, match=r"(?s)URLError.*cifar-10-batches-py") as caught:
        load_benchmark("cifar10", tmp_path / "root")
    assert "cifar10/train.npz" in str(caught.value)


def test_download_false_never_asks_the_network(tmp_path, monkeypatch):
    import torchvision.datasets.utils as utils

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    _cifar10(tmp_path)
    with pytest.warns(UserWarning):
        assert not _offline(tmp_path, missing="skip").far

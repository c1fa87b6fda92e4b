"""Laws of the shelf, on files made here; nothing leaves this machine."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import pickle
import shutil
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ood_lib.data import download as published
from ood_lib.data import locate
from ood_lib.data.images import ImageArray, ImageFiles, ImageFormat
from ood_lib.data.locate import MissingDataError, Shelf
from tests.data.test_annotations import voc
from tests.data.test_images import draw, save_picture

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
GREY, COLOUR = ImageFormat(1, 8), ImageFormat(3, 32)


def save_arrays(path, images, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))


def _ood(root, name, frame=COLOUR, **options):
    return Shelf(root, **options).unknown([name], frame)[name]


def _cifar(root, split="train", **options):
    return Shelf(root, **options).known("cifar10", split, COLOUR)


def test_arrays_hold_labels_of_known_sets_only(tmp_path):
    save_arrays(tmp_path / "cifar10" / "train.npz", draw(5, 32, 32, 3), np.arange(5))
    assert _cifar(tmp_path).labels.tolist() == list(range(5))
    assert _ood(tmp_path, "cifar10").labels.tolist() == [-1] * 5
    assert torch.equal(_cifar(tmp_path).images, _ood(tmp_path, "cifar10").images)


def test_arrays_come_before_pictures_and_test_before_train(tmp_path):
    for count, split in ((1, "train"), (2, "val"), (3, "test")):
        save_picture(tmp_path / "mine" / split / "a" / "1.png", draw(8, 8))
        save_arrays(tmp_path / "mine" / f"{split}.npz", draw(count, 8, 8))
    for count, split in ((3, "test"), (2, "val"), (1, "train")):
        assert len(_ood(tmp_path, "mine").images) == count
        (tmp_path / "mine" / f"{split}.npz").unlink()
    assert type(_ood(tmp_path, "mine")) is ImageFiles


def test_class_folders_are_counted_in_order(tmp_path):
    for i, name in enumerate(("dog/b.png", "cat/deep/a.png", "dog/a.png", ".git/x.png")):
        save_picture(tmp_path / "mine" / "val" / name, draw(8, 8, seed=i))
    found = Shelf(tmp_path).known("mine", "val", GREY)
    assert found.classes == ("cat", "dog") and found.names == ["cat/deep/a.png", "dog/a.png", "dog/b.png"]
    assert found.labels.tolist() == [0, 1, 1]
    (tmp_path / "mine" / "val" / "eel").mkdir()
    with pytest.raises(MissingDataError, match="eel holds no picture"):
        Shelf(tmp_path).known("mine", "val", GREY)


def test_ood_pictures_of_any_size_kind_and_depth(tmp_path):
    textures = tmp_path / "textures"
    save_picture(textures / "a" / "b" / "1.png", draw(50, 70, 3))
    save_picture(textures / "grey.JPG", draw(20, 30))
    save_picture(textures / "transparent.png", draw(64, 33, 4))
    Image.fromarray(draw(40, 40, 3)).convert("P").save(textures / "palette.png")
    Image.fromarray(draw(40, 40)).convert("1").save(textures / "bits.png")
    save_picture(textures / ".hidden.png", draw(4, 4))
    (textures / "list.txt").write_text("no picture")
    images, labels = next(iter(DataLoader(_ood(tmp_path, "textures"), batch_size=8)))
    assert images.shape == (5, 3, 32, 32) and labels.eq(-1).all()
    assert 0 <= images.min() and images.max() <= 1


def test_mnist_is_tested_whole_where_it_is_whole(tmp_path):
    save_arrays(tmp_path / "mnist" / "test.npz", draw(3, 28, 28), np.arange(3))
    assert len(_ood(tmp_path, "mnist", GREY)) == 3
    save_arrays(tmp_path / "mnist" / "train.npz", draw(4, 28, 28, seed=1), np.arange(4))
    found = _ood(tmp_path, "mnist", GREY)
    assert len(found) == 7 and found.labels.eq(-1).all() and len(torch.unique(found.images, dim=0)) == 7
    for name in ("kmnist/train.npz", "kmnist/test.npz"):
        save_arrays(tmp_path / name, draw(3, 28, 28))
    assert len(_ood(tmp_path, "kmnist", GREY)) == 3  # by name, not by habit
    for name in ("pictures/mnist/a.png", "splits/mnist/train/b.png", "splits/mnist/test/c.png"):
        save_picture(tmp_path / name, draw(28, 28))
    assert len(_ood(tmp_path / "pictures", "mnist", GREY)) == 1
    assert len(_ood(tmp_path / "splits", "mnist", GREY).images) == 2


def test_openood_lists_outrank_what_else_is_there(tmp_path):
    save_arrays(tmp_path / "svhn" / "test.npz", draw(5, 32, 32, 3))
    lists = tmp_path / "benchmark_imglist" / "cifar10"
    lists.mkdir(parents=True)
    (lists / "test_svhn.txt").write_text("svhn/test/b.png -1\nsvhn/test/a.png -1\n")
    shelf, names = Shelf(tmp_path), {"svhn": "cifar10/test_svhn.txt"}
    assert len(shelf.unknown(["svhn"], COLOUR, names)["svhn"]) == 5  # the list alone is of no use
    for place in ("images_classic", "images_largescale"):
        for name in "ab":
            save_picture(tmp_path / place / "svhn" / "test" / f"{name}.png", draw(32, 32, 3))
        found = shelf.unknown(["svhn"], COLOUR, names)["svhn"]
        assert found.names == ["svhn/test/b.png", "svhn/test/a.png"] and found.base == tmp_path / place
        (tmp_path / place).rename(tmp_path / "gone" if place == "images_classic" else tmp_path / "gone2")
    assert len(_ood(tmp_path, "svhn")) == 5


@pytest.mark.parametrize("name, says", [("ninco", "zenodo"), ("lsun", "odin"), ("imagenet22k", "multi-label-ood")])
def test_what_cannot_be_fetched_is_told_where_to_get(tmp_path, name, says):
    with pytest.raises(MissingDataError, match=says) as caught:
        _ood(tmp_path, name, download=True)
    assert "download=True" not in str(caught.value)


def test_links_to_folders_are_followed(tmp_path):
    save_picture(tmp_path / "elsewhere" / "1.png", draw(8, 8))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(_ood(tmp_path, "mine")) == 1


@pytest.mark.parametrize("place", ["tiny_imagenet/val", "tiny_imagenet_val", "tiny-imagenet-200/val/images"])
def test_tiny_imagenet_as_people_unpack_it(tmp_path, place):
    save_picture(tmp_path / place / "n01" / "1.png", draw(64, 64, 3))
    save_picture(tmp_path / "tiny-imagenet-200" / "test" / "1.png", draw(64, 64, 3))
    assert len(_ood(tmp_path, "tiny_imagenet")) == 1


def test_an_absent_set_is_told_with_every_path_and_every_remedy(tmp_path):
    (tmp_path / "svhn").mkdir()
    with pytest.raises(MissingDataError) as caught:
        _ood(tmp_path, "svhn")
    said = str(caught.value)
    for part in ("no svhn", "svhn/{test,val,train}.npz", "svhn/**/<picture>", "test_32x32.mat", "datasets.SVHN"):
        assert part in said
    for part in ("download=True", "OOD_DATA", 'missing="skip"', "without a picture", str(tmp_path)):
        assert part in said
    assert "http://ufldl.stanford.edu/housenumbers/test_32x32.mat" in said
    assert isinstance(caught.value, FileNotFoundError)


def test_skip_warns_once_and_never_skips_id_sets(tmp_path):
    save_arrays(tmp_path / "mnist" / "test.npz", draw(5, 28, 28))
    shelf = Shelf(tmp_path, skip=True)
    with pytest.warns(UserWarning) as caught:
        assert list(shelf.unknown(["cifar100", "mnist", "svhn"], COLOUR)) == ["mnist"]
    assert len(caught) == 1 and "cifar100, svhn" in str(caught[0].message)
    with pytest.raises(MissingDataError, match=r"cifar10 \(train\)") as error:
        shelf.known("cifar10", "train", COLOUR)
    assert 'missing="skip"' not in str(error.value)


@pytest.mark.parametrize(
    "content, says",
    [
        ({"pictures": draw(5, 32, 32)}, "no array 'images'"),
        ({"images": draw(5, 32, 32, 4)}, "expected uint8"),
        ({"images": draw(5, 32, 32).astype(int)}, "int64"),
        ({"images": draw(5, 32, 32), "labels": np.arange(4)}, r"\(5,\)"),
        ({"images": np.array([None, "x"], dtype=object)}, "complete"),
    ],
)
def test_wrong_npz_files_are_named(tmp_path, content, says):
    (tmp_path / "svhn").mkdir()
    np.savez(tmp_path / "svhn" / "test.npz", **content)
    with pytest.raises(ValueError, match=rf"(?s)svhn/test\.npz.*{says}"):
        _ood(tmp_path, "svhn")


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_truncated_npz(tmp_path, keep):
    path = tmp_path / "svhn" / "test.npz"
    save_arrays(path, draw(5, 32, 32, 3))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"svhn/test\.npz is no complete"):
        _ood(tmp_path, "svhn", skip=True)


def test_id_sets_need_labels(tmp_path):
    save_arrays(tmp_path / "cifar10" / "train.npz", draw(20, 32, 32, 3))
    with pytest.raises(ValueError, match=r"train\.npz has no array 'labels'"):
        _cifar(tmp_path)


def test_without_torchvision_arrays_still_load(tmp_path, monkeypatch):
    save_arrays(tmp_path / "cifar10" / "train.npz", draw(5, 32, 32, 3), np.arange(5))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert len(_cifar(tmp_path, download=True)) == 5
    with pytest.raises(MissingDataError, match=r'pip install "ood_lib\[plots\]"'):
        _ood(tmp_path, "mnist", download=True)


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
        batch = {"data": draw(100, 3072, seed=seed), "labels": (np.arange(100) % 10).tolist()}
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


def _check_small_cifar(root, **options):
    train, test = (_cifar(root, split, **options) for split in ("train", "test"))
    expected = draw(100, 3072, seed=0).reshape(100, 3, 32, 32) / np.float32(255)
    assert np.abs(train.images.numpy() - expected).max() < 1e-7
    assert train.labels.tolist() == [i % 10 for i in range(100)]
    assert len(test) == 100 and train.classes == test.classes == tuple(CIFAR10)
    assert not torch.equal(train.images, test.images)


@pytest.mark.parametrize("home", ["", "cifar10", "torchvision/cifar10"])
def test_torchvision_files_are_read_without_network(tmp_path, small_cifar, home):
    root = tmp_path / "root"
    (root / home).mkdir(parents=True, exist_ok=True)
    (small_cifar.parent / "cifar-10-batches-py").rename(root / home / "cifar-10-batches-py")
    _check_small_cifar(root)


def test_mnist_and_svhn_files_of_torchvision(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    raw, images = tmp_path / "MNIST" / "raw", draw(6, 28, 28)
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        header = np.array([0x803, 6, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([0x801, 6], ">i4").tobytes() + bytes(6))
    found = _ood(tmp_path, "mnist", GREY)  # both splits: OpenOOD tests on all 70,000
    assert torch.equal(found.images, ImageArray(images, frame=GREY).images.repeat(2, 1, 1, 1))
    assert found.labels.eq(-1).all()

    colour = draw(6, 32, 32, 3)
    savemat(tmp_path / "test_32x32.mat", {"X": colour.transpose(1, 2, 3, 0), "y": np.full((6, 1), 10)})
    md5 = _md5(tmp_path / "test_32x32.mat")
    monkeypatch.setitem(SVHN.split_list, "test", ["http://127.0.0.1:1/x", "test_32x32.mat", md5])
    found = _ood(tmp_path, "svhn", GREY)
    assert torch.equal(found.images, ImageArray(colour, frame=GREY).images)

    (raw / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03cut short")
    (raw / "train-images-idx3-ubyte").unlink()
    with pytest.raises(MissingDataError, match=r"MNIST/raw \(there, but incomplete or damaged"):
        _ood(tmp_path, "mnist", GREY)


def test_voc_may_be_ood(tmp_path):
    voc(tmp_path / "VOCdevkit" / "VOC2012", "val")
    found = _ood(tmp_path, "voc")
    assert len(found) == 3 and found.labels.tolist() == [-1] * 3


def test_textures_half_unpacked_are_not_taken_for_the_set(tmp_path, monkeypatch):
    save_picture(tmp_path / "dtd" / "dtd" / "images" / "banded" / "1.jpg", draw(40, 40, 3))
    with pytest.raises(MissingDataError, match="1 pictures instead of 5640"):
        _ood(tmp_path, "textures")
    whole = published.PUBLISHED["textures"]._replace(pictures=1)
    monkeypatch.setitem(published.PUBLISHED, "textures", whole)
    assert len(_ood(tmp_path, "textures")) == 1


def test_a_download_that_breaks_off_recovers(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published

    root, whole = tmp_path / "root", small_cifar.read_bytes()
    with _served(small_cifar.parent) as address:
        monkeypatch.setattr(published, "url", f"{address}/{small_cifar.name}")
        small_cifar.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MissingDataError, match=r"corrupted.*running again starts afresh"):
            _cifar(root, download=True)
        assert not root.exists()
        small_cifar.write_bytes(whole)
        _check_small_cifar(root, download=True)
    _check_small_cifar(root)  # the server is gone: what was fetched stays


def test_a_damaged_earlier_download_is_replaced(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published

    root = tmp_path / "root"
    with _served(small_cifar.parent) as address:
        monkeypatch.setattr(published, "url", f"{address}/{small_cifar.name}")
        _cifar(root, download=True)
        batch = root / "torchvision" / "cifar10" / "cifar-10-batches-py" / "test_batch"
        batch.write_bytes(batch.read_bytes()[:100])
        with pytest.raises(MissingDataError, match="there, but incomplete or damaged"):
            _cifar(root)
        _check_small_cifar(root, download=True)


def test_without_network_the_files_are_named(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published

    monkeypatch.setattr(published, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(MissingDataError, match=r"(?s)URLError.*cifar-10-batches-py") as caught:
        _cifar(tmp_path / "root", download=True)
    assert "cifar10/train.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_a_folder_that_cannot_be_written_is_named_and_not_blamed_on_the_network(tmp_path, read_only, name):
    read_only(tmp_path)
    find = Shelf(tmp_path / "sets", download=True)
    with pytest.raises(MissingDataError, match=r"a download \(.*Read-only.*cannot be written.*sets") as caught:
        find.known(name, "test", COLOUR) if name == "cifar10" else find.unknown([name], COLOUR)
    assert "starts afresh" not in str(caught.value)


def test_a_set_that_another_process_fetched_meanwhile_stays(tmp_path, small_cifar, monkeypatch):
    from torchvision.datasets import CIFAR10 as published_class

    root, opened = tmp_path / "root", published.open_published
    home = root / "torchvision" / "cifar10"

    def late(place, *args, download=False):
        found = opened(place, *args, download=download)
        if download and not home.exists():
            shutil.copytree(place, home)  # the other one
            (home / "theirs").touch()
        return found

    monkeypatch.setattr(published, "open_published", late)
    with _served(small_cifar.parent) as address:
        monkeypatch.setattr(published_class, "url", f"{address}/{small_cifar.name}")
        _check_small_cifar(root, download=True)
    assert (home / "theirs").exists() and os.listdir(home.parent) == ["cifar10"]


def _tiny_zip(folder, count=3):
    folder.mkdir(parents=True)
    pixels = io.BytesIO()
    Image.fromarray(draw(64, 64, 3)).save(pixels, "jpeg")
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as packed:
        packed.writestr("tiny-imagenet-200/val/val_annotations.txt", "val_0.JPEG\tn01")
        packed.writestr("tiny-imagenet-200/train/n01/images/n01_0.JPEG", pixels.getvalue())
        for i in range(count):
            packed.writestr(f"tiny-imagenet-200/val/images/val_{i}.JPEG", pixels.getvalue())
    return folder / "tiny-imagenet-200.zip"


def test_tiny_imagenet_is_fetched_verified_and_unpacked(tmp_path, monkeypatch):
    archive, root = _tiny_zip(tmp_path / "source"), tmp_path / "root"
    with _served(archive.parent) as address:

        def expect(digest, files):
            monkeypatch.setattr(published, "TINY_IMAGENET", (f"{address}/{archive.name}", digest, files))

        expect("0" * 32, 4)
        with pytest.raises(MissingDataError, match="corrupted"):
            _ood(root, "tiny_imagenet", download=True)
        expect(_md5(archive), 10001)
        with pytest.raises(MissingDataError, match=r"holds 4 files.*expected 10001"):
            _ood(root, "tiny_imagenet", download=True)
        expect(_md5(archive), 4)
        assert len(_ood(root, "tiny_imagenet", download=True)) == 3
    found = _ood(root, "tiny_imagenet")  # the server is gone
    assert found.names == [f"images/val_{i}.JPEG" for i in range(3)] and found.images.shape == (3, 3, 32, 32)
    assert [path.name for path in root.iterdir()] == ["tiny_imagenet"]


def test_tiny_imagenet_that_another_process_unpacked_meanwhile_is_taken(tmp_path, monkeypatch):
    archive, replace = _tiny_zip(tmp_path / "source"), os.replace

    def late(fresh, home):
        shutil.copytree(fresh, home)  # the other one
        replace(fresh, home)

    monkeypatch.setattr(published.os, "replace", late)
    with _served(archive.parent) as address:
        monkeypatch.setattr(published, "TINY_IMAGENET", (f"{address}/{archive.name}", _md5(archive), 4))
        assert len(_ood(tmp_path / "root", "tiny_imagenet", download=True)) == 3
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["tiny_imagenet"]


def test_a_folder_of_pictures_is_read_without_torchvision(tmp_path, monkeypatch):
    voc(tmp_path / "VOCdevkit" / "VOC2012", "val")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert len(_ood(tmp_path, "voc")) == 3


def test_download_false_never_asks_the_network(tmp_path, monkeypatch):
    import torchvision.datasets.utils as utils

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.warns(UserWarning):
        assert not Shelf(tmp_path, skip=True).unknown([*published.PUBLISHED, *published.ORIGINS], COLOUR)


def test_arrays_that_do_not_fit_into_the_memory_are_named_before_they_are_read(tmp_path, monkeypatch):
    save_arrays(tmp_path / "mine" / "test.npz", draw(100, 30, 30, 3), np.arange(100))
    path = tmp_path / "mine" / "test.npz"
    assert locate._bytes_of(path) == 100 * 30 * 30 * 3 + 100 * 8
    monkeypatch.setattr(locate, "_free_memory", lambda: 1e5)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(MemoryError, match=r"mine.test\.npz holds arrays of 0\.0 GB, and 0\.0 GB of memory are free"):
        Shelf(tmp_path).known("mine", "test", None)


def test_there_is_some_memory_left():
    assert 2**20 < locate._free_memory()

"""Laws of what tells data sets apart: whatever a later run would see of one is in it, and reading it costs little."""

import os
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from ood_lib.data.fingerprint import data_identity, dataset_hash
from ood_lib.data.images import ImageArray, ImageFiles, ImageFormat
from tests.conftest import seeded

ROWS = 400


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(ROWS, 1, 4, 4, generator=seeded()), torch.arange(ROWS) % 3


class Items(Dataset):
    """A class that nobody knows."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels, self.read = images, labels, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += 1
        return self.images[i], self.labels[i]


KINDS = {
    "tensors": TensorDataset,
    "an array": ImageArray,
    "a list": lambda images, labels: list(zip(images, labels.tolist(), strict=True)),
    "a class": Items,
    "a part": lambda images, labels: Subset(TensorDataset(images, labels), range(1, ROWS)),
    "a part of a class": lambda images, labels: Subset(Items(images, labels), range(1, ROWS)),
    "two together": lambda images, labels: ConcatDataset([TensorDataset(images, labels), Items(images, labels)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [5, 217, ROWS - 1])
def test_one_other_label_or_pixel_is_another_data_set(kind: str, row: int):
    def identity(change=lambda images, labels: None):
        images, labels = tensors()
        change(images, labels)
        return data_identity(KINDS[kind](images, labels))

    def pixel(images, labels):
        images[row, 0, 1, 2] += 0.001 if images[row, 0, 1, 2] < 0.5 else -0.001

    def label(images, labels):
        labels[row] = (labels[row] + 1) % 3

    found = [identity(), identity(), identity(pixel), identity(label)]
    assert found[0] == found[1] and len({x.digest for x in found}) == 3
    for other in found[2:]:  # and only the mark of that item is another
        assert sum(a != b for a, b in zip(found[0].marks, other.marks, strict=True)) == (2 if "two" in kind else 1)


def test_the_order_and_the_length_count():
    images, labels = tensors()
    sets = [TensorDataset(images, labels), TensorDataset(images.flip(0), labels.flip(0)),
            TensorDataset(images[1:], labels[1:]), TensorDataset(images, labels.int())]  # fmt: skip
    assert len({dataset_hash(x) for x in sets}) == 4


class Inverted(Dataset):
    """Other images under the fingerprint of the data set inside."""

    def __init__(self, inner: Dataset, handed: bool) -> None:
        self.inner, self.handed = inner, handed

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int):
        image, label = self.inner[i]
        return 1 - image, label

    def __getattr__(self, name: str):
        if name == "inner" or not self.handed:
            raise AttributeError(name)
        return getattr(self.inner, name)


class Claiming(Inverted):
    def fingerprint(self) -> str:
        return self.inner.fingerprint()


@pytest.mark.parametrize(
    "kind", [lambda x: Inverted(x, True), lambda x: Inverted(x, False), lambda x: Claiming(x, False)]
)
def test_a_wrapper_is_not_the_data_set_inside(kind):
    inner = ImageArray(*tensors())
    assert dataset_hash(kind(inner)) not in (dataset_hash(inner), inner.fingerprint())
    twice = kind(kind(inner))
    assert dataset_hash(twice) != dataset_hash(kind(inner))


def test_a_class_that_inherits_is_not_believed_to_give_the_same_items():
    class Louder(TensorDataset):
        def __getitem__(self, i: int):
            image, label = super().__getitem__(i)
            return image / 2, label

    assert dataset_hash(Louder(*tensors())) != dataset_hash(TensorDataset(*tensors()))


@pytest.mark.parametrize("change", [torchvision.transforms.RandomHorizontalFlip(), lambda x: x + torch.rand(1)])
def test_random_transforms_are_refused(change):
    class Changed(Items):
        def __getitem__(self, i: int):
            image, label = super().__getitem__(i)
            return change(image), label

    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"item \d+ of the data set differs each time it is read.*random transforms"):
        data_identity(Changed(*tensors()))
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_of_torchvision_are_known_by_their_files_labels_and_transform(tmp_path):
    for i in range(40):
        place = tmp_path / "ab"[i % 2] / f"{i:02}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), 6 * i, np.uint8)).save(place)
        os.utime(place, ns=(10**18, 10**18))
    read, plain = [], torchvision.transforms.ToTensor()

    def loader(path: str):
        read.append(path)
        return Image.open(path).convert("RGB")

    def identity(transform=plain, **options):
        read.clear()
        return data_identity(torchvision.datasets.ImageFolder(tmp_path, transform, loader=loader, **options)).digest

    first = identity()
    assert len(read) == 32 and identity() == first  # a few are looked at, twice
    found = {first, identity(lambda x: 1 - plain(x)), identity(target_transform=lambda y: 1 - y)}
    os.utime(tmp_path / "b" / "07.png", ns=(10**18, 10**18 + 1))
    assert len({*found, identity()}) == 4


def test_own_sets_are_known_without_reading_an_item(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(9)]
    for name in names:
        Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / name)
    data, frame = ImageFiles(tmp_path, names, range(9), ImageFormat(3, 6)), ImageFormat(3, 5)
    monkeypatch.setattr(Image, "open", None)
    first = data_identity(data)
    others = [ImageFiles(tmp_path, names, [*range(8), 7], data.frame), ImageFiles(tmp_path, names, range(9), frame),
              ImageFiles(tmp_path, names[::-1], range(9), data.frame)]  # fmt: skip
    assert len({first.digest, *(dataset_hash(x) for x in others)}) == 4
    os.utime(tmp_path / "3.png", ns=(1, 1))
    again = data_identity(data)
    assert [a == b for a, b in zip(first.marks, again.marks, strict=True)] == [i != 3 for i in range(9)]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are texts elsewhere")
def test_pictures_whose_names_are_no_utf8_have_an_identity(tmp_path):
    for name in (b"a\xe9.png", b"a\xe8.png"):
        Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    names = sorted(os.listdir(tmp_path))
    first, both = (ImageFiles(tmp_path, names[:n], None, None) for n in (1, 2))
    assert dataset_hash(first) != dataset_hash(both) and len({*data_identity(both).marks}) == 2

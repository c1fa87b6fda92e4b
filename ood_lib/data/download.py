"""Sets as their authors publish them: what torchvision reads or fetches, one archive more, where to ask for the rest.

An archive is verified by its md5 before it is unpacked, beside its place, and renamed when it is complete: half a set
is never taken for a whole.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ood_lib.data.annotations import read_coco, read_voc
from ood_lib.data.images import ImageArray, ImageFiles, ImageFormat, ImageSet
from ood_lib.data.pictures import find_pictures
from ood_lib.extras import need
from ood_lib.files import draft_folder

__all__ = ["ORIGINS", "PUBLISHED", "Published", "fetch_published", "fetch_tiny_imagenet", "open_published"]


class Published(NamedTuple):
    """A set as torchvision unpacks it, or fetches it and verifies the archive by md5."""

    kind: str  # the class in torchvision.datasets
    there: str  # what it reads under its root
    fetched: bool = True
    options: Mapping[str, Any] | None = None  # None: the class takes train=True or False
    pictures: int = 0  # of a set that is a folder: shows whether unpacking was interrupted
    read: Callable[[Path, str, ImageFormat | None], ImageFiles] | None = None  # of multi-label pictures


PUBLISHED = {
    "cifar10": Published("CIFAR10", "cifar-10-batches-py"),
    "cifar100": Published("CIFAR100", "cifar-100-python"),
    "mnist": Published("MNIST", "MNIST/raw"),
    "fashion_mnist": Published("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": Published("KMNIST", "KMNIST/raw"),
    "svhn": Published("SVHN", "test_32x32.mat", options={"split": "test"}),
    "textures": Published("DTD", "dtd/dtd/images", options={"split": "test"}, pictures=5640),
    "places365": Published("Places365", "val_256", options={"split": "val", "small": True}, pictures=36500),
    "voc": Published("VOCDetection", "VOCdevkit/VOC2012", options={"year": "2012"}, read=read_voc),
    "coco": Published("CocoDetection", "annotations", fetched=False, read=read_coco),
}

TINY_IMAGENET = (
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", 10001,
)  # fmt: skip

_OPENOOD = "scripts/download/download.py of github.com/Jingkang50/OpenOOD"

ORIGINS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/, four .gz files, unpacked into MNIST/raw/",
    "svhn": "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
    "textures": "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz, unpacked into dtd/",
    "places365": "http://data.csail.mit.edu/places/places365/val_256.tar",
    "voc": "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "tiny_imagenet": f"{TINY_IMAGENET[0]} (md5:{TINY_IMAGENET[1]})",
    "imagenet": "image-net.org, after registration: ILSVRC 2012, training and validation images in folders by wnid",
    "ssb_hard": _OPENOOD,
    "ninco": f"zenodo.org/record/8013288, or {_OPENOOD}",
    "inaturalist": _OPENOOD,
    "openimage_o": _OPENOOD,
    "sun": "the README of github.com/deeplearning-wisc/large_scale_ood",
    "places": "the README of github.com/deeplearning-wisc/large_scale_ood",
    "lsun": "the README of github.com/facebookresearch/odin",
    "isun": "the README of github.com/facebookresearch/odin",
    "imagenet22k": "the README of github.com/deeplearning-wisc/multi-label-ood; 20 classes of ImageNet-22K",
    "coco": "cocodataset.org: train2014.zip, val2014.zip and annotations_trainval2014.zip, unpacked into one folder",
}


def open_published(home: Path, name: str, split: str, frame: ImageFormat | None, download: bool = False) -> ImageSet:
    """A split of a published set that lies in `home`; raises whatever its reader raises when it is not complete."""
    kind, there, _, options, pictures, read = PUBLISHED[name]
    if download or not (pictures or read):
        make = getattr(need("torchvision.datasets"), kind)
        data = make(home, download=download, **(options or {"train": split == "train"}))
    if read:
        return read(home / there, split, frame)
    if pictures:  # all of them, whatever split torchvision would make: an OOD set is only ever tested
        names = find_pictures(home / there)
        if len(names) != pictures:
            raise RuntimeError(f"{len(names)} pictures instead of {pictures}")
        return ImageFiles(home / there, names, None, frame)
    if kind == "SVHN":  # channels first, no class names
        return ImageArray(np.moveaxis(data.data, 1, 3), data.labels, frame)
    return ImageArray(np.asarray(data.data), np.asarray(data.targets), frame, data.classes)


def fetch_published(home: Path, name: str, split: str, frame: ImageFormat | None) -> ImageSet:
    """Download beside `home` and rename when complete.

    torchvision checks archives by md5, but trusts any folder that an interrupted run unpacked.

    Raises:
        OSError: the folder cannot be written, or is full; the message names it.
    """
    made = [folder for folder in home.parents if not folder.exists()]
    try:
        with draft_folder(home) as stage:
            fresh = stage / "fresh"
            fresh.mkdir()
            open_published(fresh, name, split, frame, download=True)
            if home.exists():
                with suppress(Exception):  # another process was faster, and may be reading it
                    return open_published(home, name, split, frame)
                os.replace(home, stage / "damaged")
            os.replace(fresh, home)
    finally:
        for folder in made:  # the innermost first; one that now holds a set stays
            with suppress(OSError):
                folder.rmdir()
    return open_published(home, name, split, frame)


def fetch_tiny_imagenet(home: Path) -> None:
    """The validation pictures of Tiny-ImageNet as the folder `home`, which appears when they are complete.

    Raises:
        OSError, RuntimeError: the connection failed, or the archive is not the one that was published.
    """
    url, md5, files = TINY_IMAGENET
    with draft_folder(home) as stage:
        need("torchvision.datasets.utils").download_and_extract_archive(url, str(stage), md5=md5, remove_finished=True)
        fresh = stage / "tiny-imagenet-200/val"
        if (found := sum(path.is_file() for path in fresh.rglob("*"))) != files:
            raise RuntimeError(f"{url} holds {found} files in {fresh.name}; expected {files}")
        try:
            os.replace(fresh, home)
        except OSError:
            if not home.exists():  # no other process was faster
                raise

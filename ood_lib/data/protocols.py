"""The rules of published benchmarks: which set plays which role, in which format, and how many images it has there.

Sources: OpenOOD v1.5, Zhang et al. 2023, arXiv:2306.09301, and its image lists; JointEnergy, Wang et al. 2021.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ood_lib.data.images import ImageFormat

__all__ = ["OPENOOD", "PROTOCOLS", "Protocol", "departures"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DTD, _MNIST, _SVHN = 5640, 70_000, 26_032


class Protocol(NamedTuple):
    """A benchmark as it was published; counts are of images, None where none is given."""

    source: str
    held_out: str  # the split that is cut into ID val and ID test where no list does it
    known: tuple[int, int, int]  # ID train, val, test
    near: Mapping[str, int | None]
    far: Mapping[str, int | None]
    frame: ImageFormat
    mean: Sequence[float]
    std: Sequence[float]
    classes: tuple[str, ...] = ()  # of arrays and lists; folders and torchvision bring their own
    lists: Mapping[str, str] = {}  # role or set -> OpenOOD's list of its images
    remarks: tuple[str, ...] = ()  # departures that no count shows


def _openood(name: str, **others: str) -> dict[str, str]:
    """The lists of a benchmark; `others` gives those whose name is not that of the set."""
    known = {role: f"{name}/{role}_{name}.txt" for role in ("train", "val", "test")}
    return known | {data: f"{name}/test_{stem}.txt" for data, stem in others.items()}


def _cifar(far: int) -> dict[str, int | None]:
    return {"mnist": _MNIST, "svhn": _SVHN, "textures": _DTD, "places365": far}


_CIFAR_LISTS = {
    "tiny_imagenet": "tin", "mnist": "mnist", "svhn": "svhn", "textures": "texture", "places365": "places365",
}  # fmt: skip

_JOINT_ENERGY = "JointEnergy"
_UNLABELLED = ("val and test are a tenth and nine tenths of the official val split: test labels are not public",)

PROTOCOLS = {
    "cifar10": Protocol(
        "OpenOOD v1.5", "test", (50_000, 1_000, 9_000), {"cifar100": 9_000, "tiny_imagenet": 7_793}, _cifar(35_195),
        ImageFormat(3, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        _openood("cifar10", cifar100="cifar100", **_CIFAR_LISTS),
    ),
    "cifar100": Protocol(
        "OpenOOD v1.5", "test", (50_000, 1_000, 9_000), {"cifar10": 10_000, "tiny_imagenet": 6_526}, _cifar(33_773),
        ImageFormat(3, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761),
        lists=_openood("cifar100", cifar10="cifar10", **_CIFAR_LISTS),
    ),
    "imagenet": Protocol(
        "OpenOOD v1.5", "val", (1_281_167, 5_000, 45_000), {"ssb_hard": 49_000, "ninco": 5_879},
        {"inaturalist": 10_000, "textures": 5_160, "openimage_o": 15_869}, ImageFormat(3, 224, 256), *_IMAGENET,
        lists=_openood(
            "imagenet", ssb_hard="ssb_hard", ninco="ninco", inaturalist="inaturalist", textures="textures",
            openimage_o="openimage_o",
        ),
    ),
    "voc": Protocol(
        _JOINT_ENERGY, "val", (5_717, 5_823, 10_991), {}, {"imagenet22k": None, "textures": _DTD},
        ImageFormat(3, 256, stretch=True), *_IMAGENET, remarks=_UNLABELLED,
    ),
    "coco": Protocol(
        _JOINT_ENERGY, "val", (82_783, 40_504, 40_775), {}, {"imagenet22k": None, "textures": _DTD},
        ImageFormat(3, 256, stretch=True), *_IMAGENET, remarks=_UNLABELLED,
    ),
}  # fmt: skip

#: What OpenOOD's leaderboard of July 2025 says, by ID set: detector -> AUROC in % on near and on far OOD.  Means over
#: three ResNet-18 of 95.1 and 77.3 % accuracy; what a detector can be tuned in was tuned on OOD validation images.
OPENOOD = {
    "cifar10": {
        "MSP": (88.03, 90.73), "TempScale": (88.09, 90.97), "MaxLogit": (87.52, 91.10), "Energy": (87.58, 91.21),
        "GEN": (88.20, 91.35), "KLMatching": (79.19, 82.68), "Mahalanobis": (84.20, 89.72), "RMDS": (89.80, 92.20),
        "ViM": (88.68, 93.48), "KNN": (90.64, 92.96), "FDBD": (90.42, 93.16), "SHE": (81.54, 85.32),
        "ReAct": (87.11, 90.42), "ASH": (75.27, 78.49), "SCALE": (82.55, 86.39), "ODIN": (82.87, 87.96),
        "GradNorm": (54.90, 57.55), "WeiPer+KLD": (90.54, 93.12),
    },
    "cifar100": {
        "MSP": (80.27, 77.76), "TempScale": (80.90, 78.74), "MaxLogit": (81.05, 79.67), "Energy": (80.91, 79.77),
        "GEN": (81.31, 79.68), "KLMatching": (76.56, 76.24), "Mahalanobis": (58.69, 69.39), "RMDS": (80.15, 82.92),
        "ViM": (74.98, 81.70), "KNN": (80.18, 82.40), "FDBD": (81.26, 79.85), "SHE": (78.95, 76.92),
        "ReAct": (80.77, 80.39), "ASH": (78.20, 80.58), "SCALE": (80.99, 81.42), "ODIN": (79.90, 79.28),
        "GradNorm": (70.13, 69.14), "WeiPer+KLD": (81.37, 79.01),
    },
}  # fmt: skip


def departures(protocol: Protocol, found: Mapping[str, int]) -> list[str]:
    """What differs from the protocol in number: `found` gives the number of images of each role and set that was
    found."""
    asked = dict(zip(("train", "val", "test"), protocol.known)) | {**protocol.near, **protocol.far}
    notes = []
    for name, count in asked.items():
        if name not in found:
            notes.append(f"{name} is left out")
        elif count is not None and found[name] != count:
            notes.append(f"{name} has {found[name]:,} images, {count:,} in {protocol.source}")
    return notes

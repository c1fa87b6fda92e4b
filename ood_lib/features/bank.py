"""A benchmark seen through one network: extracted, saved, loaded, and made small enough to ship."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ood_lib.data.benchmark import Benchmark
from ood_lib.data.labels import class_indices
from ood_lib.features.extract import extract
from ood_lib.features.features import Features
from ood_lib.files import draft_folder, read_json, sha256_of, write_text
from ood_lib.networks.adapt import as_network
from ood_lib.networks.network import Network
from ood_lib.shipped import FORMER_NAMES, SHIPPED
from ood_lib.tensors import dequantized, quantized, save_tensors, single
from ood_lib.training.loop import History

__all__ = [
    "BenchmarkFeatures", "balanced_rows", "bank_folder", "extract_benchmark", "fewer_images", "load_bank", "make_bank",
]  # fmt: skip

T = TypeVar("T", Benchmark, "BenchmarkFeatures")
BANK = "benchmark.json"  # the sha256 of each file of a bank; written last: a folder without it is not complete
NEXT = ".next"  # in the folder of a bank: one that is whole, while its files take the place of the former ones


@dataclass(frozen=True, eq=False)
class BenchmarkFeatures:
    """A benchmark seen through one network: the features of each of its sets, and the head that read them.

    Args:
        train, val, test: features of the ID images.
        near, far: features of the OOD sets, by name.
        head: the last layer of the network; None where it has none.
        name: of the benchmark, or of the bank.
        classes: names of the ID classes, in the order of the logits.
        notes: what departs from the published benchmark of that name.
        about: where a bank comes from.
        images: the benchmark itself; None for a bank, which holds no images.
        network: what saw the images; None for a bank.
        history: of the network's training, where `benchmark_features` trained it.
    """

    train: Features
    val: Features
    test: Features
    near: dict[str, Features]
    far: dict[str, Features]
    head: nn.Linear | None = None
    name: str = ""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    images: Benchmark | None = None
    network: Network | None = None
    history: History | None = None

    def groups(self) -> dict[str, dict[str, Features]]:
        """The OOD sets by group name."""
        return {"near": self.near, "far": self.far}

    @property
    def accuracy(self) -> float:
        """Share of the ID test images whose class has the largest logit.

        Raises:
            ValueError: the test features have no logits, or not one class index for each image.
        """
        logits, labels = self.test.logits, self.test.labels
        if logits is None or labels is None or labels.shape != (len(logits),):
            raise ValueError(f"accuracy needs logits (N, C) and one class index per image, given {self.test}")
        if bad := int((~single(logits).isfinite()).any(1).sum()):
            raise ValueError(f"{bad} of {len(logits)} rows of logits hold NaN or infinity; expected numbers")
        return (single(logits).argmax(1) == class_indices(labels, len(logits))).double().mean().item()

    def __repr__(self) -> str:
        roles = {"train": self.train, "val": self.val, "test": self.test} | self.near | self.far
        lines = [f"{name:<20} {features}" for name, features in roles.items()]
        return "\n".join([f"{self.name or 'features'}: {len(self.classes) or 'unnamed'} classes", *lines])

    def save(
        self, folder: str | os.PathLike[str], *, precision: Literal["full", "uint8"] = "full", **about: Any
    ) -> None:
        """Write one safetensors file per set and `benchmark.json` with their sha256.

        A bank that is in the folder is replaced as a whole, when the new one is complete: a full disk, or a kill at any
        moment, leaves the old one or the new one.

        Args:
            folder: made where it is missing; sets that are in it already are replaced.
            precision: "full" as computed; or "uint8", 256 equal steps between the smallest and the largest
                value of each feature in a set, with logits left out, which `load` makes again with the head.
            about: what a reader should know (network, licence, ...); plain values, kept under ``about``.

        Raises:
            ValueError: "uint8" of features with logits, without a head.
            OSError: the folder cannot be written, or the disk is full; what was there is there still.
        """
        if precision == "uint8" and self.head is None and self.train.logits is not None:
            raise ValueError('precision="uint8" leaves out the logits, and needs the head that makes them again')
        folder = Path(folder)
        sets = {role: getattr(self, role) for role in ("train", "val", "test")}
        sets |= {f"{group}/{name}": x for group, named in self.groups().items() for name, x in named.items()}
        with draft_folder(folder / BANK) as made:
            for name, features in sets.items():
                file = made / f"{name}.safetensors"
                if precision == "uint8":
                    kept = {field: x for field, x in features.tensors().items() if field != "logits"}
                    save_tensors(quantized(kept), file)
                else:
                    features.save(file)
            if self.head is not None:
                save_tensors(self.head.state_dict(), made / "head.safetensors")
            names = [*sets, *(["head"] if self.head else [])]
            hashes = {name: sha256_of(made / f"{name}.safetensors") for name in names}
            own = {"classes": list(self.classes), "notes": list(self.notes)}
            about = {**self.about, **{name: x for name, x in own.items() if x}, **about}
            write_text(made / BANK, json.dumps({"sets": hashes, "about": about}, indent=1) + "\n")
            _exchange(made, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, in single precision at least.

        Raises:
            FileNotFoundError: no complete bank is there.
            ValueError: a file is not the one that was saved.
        """
        folder = Path(folder)
        while True:  # another process may replace the bank just now
            written, moving = _header(folder), _on_the_way(folder)
            try:
                found = cls._read(folder, written)
            except (ValueError, OSError, RuntimeError):  # torch's own of a file that has just been moved
                if (_header(folder), _on_the_way(folder)) == (written, moving):
                    raise
            else:
                if _header(folder) == written:
                    return found

    @classmethod
    def _read(cls, folder: Path, written: Mapping[str, Any]) -> Self:
        files = {name: _verified(folder, f"{name}.safetensors", sha) for name, sha in written["sets"].items()}
        head = _linear(load_file(files.pop("head"))) if "head" in files else None
        sets = {name: _unpacked(file, head) for name, file in files.items()}
        near, far = (
            {name.removeprefix(group): x for name, x in sets.items() if name.startswith(group)}
            for group in ("near/", "far/")
        )
        about = {**written["about"]}
        classes, notes = (tuple(about.pop(key, ())) for key in ("classes", "notes"))
        return cls(
            sets["train"], sets["val"], sets["test"], near, far, head,
            name=folder.resolve().name, classes=classes, notes=notes, about=about,
        )  # fmt: skip


def _exchange(made: Path, folder: Path) -> None:
    """Put a bank that is whole in the place of the one in a folder.

    Moved to `NEXT` in one step, it counts, and the rest is done by whoever comes next if this process is killed.
    """
    for attempt in range(100):
        _settle(folder)
        try:
            os.replace(made, folder / NEXT)
            break
        except OSError:  # another process was faster
            if attempt == 99 or not (folder / NEXT).exists():
                raise
    _settle(folder)


def _settle(folder: Path) -> None:
    """Move the files of a bank that is whole to their places; several may do so at once, and be killed at it."""
    there = folder / NEXT
    for path in sorted(_on_the_way(folder), key=lambda path: path.name == BANK):  # the header last
        place = folder / path.relative_to(there)
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # moved by another
            os.replace(path, place)
    for emptied, _, _ in os.walk(there, topdown=False):
        with suppress(OSError):  # the next bank is in it
            os.rmdir(emptied)


def _on_the_way(folder: Path) -> list[Path]:
    """The files of `NEXT`, which may vanish meanwhile."""
    return [Path(place, name) for place, _, names in os.walk(folder / NEXT) for name in names]


def _header(folder: Path) -> dict[str, Any]:
    """What is written of the bank that counts."""
    for file in (folder / NEXT / BANK, folder / BANK):
        with suppress(FileNotFoundError, NotADirectoryError):
            written = read_json(file, "copy the bank again, or make it again")
            if not all(isinstance(written.get(key), dict) for key in ("sets", "about")):
                raise ValueError(f"{file} is no header of a bank; expected an object of sets and about")
            if lacking := {"train", "val", "test"} - {*written["sets"]}:
                raise ValueError(f"{file} names no {', '.join(sorted(lacking))}: copy the bank again, or make it again")
            return written
    raise FileNotFoundError(
        f"{folder} holds no {BANK}: it is no bank, or writing it was interrupted; "
        "make one with extract_benchmark(network, bench).save(folder)"
    )


def _unpacked(file: Path, head: nn.Linear | None) -> Features:
    tensors = load_file(file)
    if any(x.dtype == torch.uint8 for x in tensors.values()):
        tensors = dequantized(tensors)
        if head is not None:
            tensors["logits"] = head(tensors["penultimate"])
    return Features(**tensors).single()


def _verified(folder: Path, name: str, sha: str) -> Path:
    """The file of a set, in its place or still on the way there."""
    for path in (folder / NEXT / name, folder / name):
        if path.is_file() and sha256_of(path) == sha:
            return path
    raise ValueError(
        f"{folder / name} is missing or not the file that was saved (sha256 {str(sha)[:12]}...): copy it again"
    )


def _linear(state: Mapping[str, Tensor]) -> nn.Linear:
    """The frozen linear layer with these weights."""
    classes, width = state["weight"].shape
    head = nn.Linear(width, classes, bias="bias" in state, dtype=state["weight"].dtype)
    head.load_state_dict(state)
    return head.requires_grad_(False)


def extract_benchmark(network: Network | nn.Module, benchmark: Benchmark, **options: Any) -> BenchmarkFeatures:
    """Run the network over every set of a benchmark; ``options`` go to `extract`."""
    seeing = as_network(network)

    def run(data: Dataset) -> Features:
        return extract(seeing, data, **options)

    near, far = ({name: run(data) for name, data in sets.items()} for sets in (benchmark.near, benchmark.far))
    return BenchmarkFeatures(
        run(benchmark.train), run(benchmark.val), run(benchmark.test), near, far,
        getattr(seeing, "head", None),  # score norms, say, have none
        benchmark.name, benchmark.classes, benchmark.notes, images=benchmark, network=seeing,
    )  # fmt: skip


ROWS = {"train": 5000, "val": 800, "test": 2000}  # of a bank that ships
OOD_ROWS = 750  # of each of its OOD sets


def load_bank(name: str, folder: str | os.PathLike[str] | None = None) -> BenchmarkFeatures:
    """What a trained network knows of a benchmark, without the images and without the network.

    Args:
        name: of the bank, such as "cifar10-resnet9".
        folder: of banks; None = those that come with the library.

    Raises:
        ValueError: there is no bank of that name, or a file of it is not the one that was saved.
    """
    return BenchmarkFeatures.load(bank_folder(name, folder))


def bank_folder(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Where a bank lies; arguments and errors as `load_bank`."""
    home = Path(folder or SHIPPED)
    place = home / FORMER_NAMES.get(name, name)
    if not any((folder / BANK).is_file() for folder in (place, place / NEXT)):
        there = sorted(p.parent.name for p in home.glob(f"*/{BANK}"))
        raise ValueError(f"no bank {name!r} in {home}, where there are {there}")
    return place


def make_bank(x: BenchmarkFeatures, folder: str | os.PathLike[str], *, seed: int = 0, **about: Any) -> None:
    """Write a bank small enough to ship: `ROWS` of each set, drawn evenly over the classes, one byte a number.

    Args:
        x: the whole benchmark, from `extract_benchmark`; of one that went through `fewer_images` before, all rows.
        folder: of the bank.
        seed: of the draw.
        about: see `BenchmarkFeatures.save`.
    """

    def few(features: Features, rows: int) -> Features:
        return features[_rows(features.labels, len(features), rows, seed)]

    _fewer(x, few).save(folder, precision="uint8", benchmark=x.name, **about)


def fewer_images(bench: Benchmark, seed: int = 0) -> Benchmark:
    """The benchmark with only those images that `make_bank` would keep."""
    return _fewer(bench, lambda data, rows: data.subset(_rows(data.labels, len(data), rows, seed)))


def _fewer(x: T, few: Callable[[Any, int], Any]) -> T:
    """A benchmark, of images or features, with every set cut to its number of rows."""
    sets: Any = x
    known = {role: few(getattr(sets, role), rows) for role, rows in ROWS.items()}
    near, far = ({n: few(data, OOD_ROWS) for n, data in group.items()} for group in (sets.near, sets.far))
    return replace(sets, **known, near=near, far=far)


def _rows(labels: Tensor | None, count: int, rows: int, seed: int) -> Tensor:
    """`balanced_rows`, or any rows where an image has several labels, or none."""
    return balanced_rows(torch.zeros(count) if labels is None or labels.ndim != 1 else labels, rows, seed)


def balanced_rows(labels: Tensor, rows: int, seed: int = 0) -> Tensor:
    """So many rows at most, as many of each label as there are, in their order.

    Labels (N,) to increasing indices: of all rows where there are fewer.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    rank = torch.empty(len(labels), dtype=torch.long)  # of each row among those of its label
    for label in labels.unique():
        mine = order[labels[order] == label]
        rank[mine] = torch.arange(len(mine))
    return torch.argsort(rank, stable=True)[:rows].sort().values

"""A benchmark seen through one network: extracted, saved, loaded, and made small enough to ship."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from ood_lib.data.benchmark import Benchmark
from ood_lib.data.records import BANK, by_group, linear, verified_files
from ood_lib.features.extract import extract
from ood_lib.features.features import Features
from ood_lib.files import sha256_of, write_text
from ood_lib.networks.adapt import adapt
from ood_lib.networks.network import Network
from ood_lib.tensors import half, save_tensors

if TYPE_CHECKING:
    pass
from ood_lib.data.records import SHIPPED

__all__ = ["BenchmarkFeatures", "extract_benchmark", "load_bank", "make_bank", "shrink"]


@dataclass(frozen=True)
class BenchmarkFeatures:
    """A benchmark seen through one network: the features of each of its sets, and the head that read them."""

    train: Features
    val: Features
    test: Features
    near: dict[str, Features]
    far: dict[str, Features]
    head: nn.Linear | None = None

    def groups(self) -> dict[str, dict[str, Features]]:
        """The OOD sets by group name."""
        return {"near": self.near, "far": self.far}

    def save(self, folder: str | os.PathLike[str], **about: Any) -> None:
        """Write one safetensors file per set and, when all are complete, `benchmark.json` with their sha256.

        Args:
            folder: made where it is missing; sets that are in it already are replaced.
            about: what a reader should know (network, licence, ...); plain values, kept under ``about``.
        """
        folder = Path(folder)
        (folder / BANK).unlink(missing_ok=True)
        sets = {role: getattr(self, role) for role in ("train", "val", "test")}
        sets |= {f"{group}/{name}": x for group, named in self.groups().items() for name, x in named.items()}
        for name, features in sets.items():
            features.save(folder / f"{name}.safetensors")
        if self.head is not None:
            save_tensors(self.head.state_dict(), folder / "head.safetensors")
        hashes = {name: sha256_of(folder / f"{name}.safetensors") for name in [*sets, *(["head"] if self.head else [])]}
        write_text(folder / BANK, json.dumps({"sets": hashes, "about": about}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, in single precision at least.

        Raises:
            FileNotFoundError: no complete bank is there.
            ValueError: a file is not the one that was saved.
        """
        files = verified_files(Path(folder))
        head = linear(load_file(files.pop("head"))) if "head" in files else None
        sets = {name: Features.load(file).single() for name, file in files.items()}
        return cls(sets["train"], sets["val"], sets["test"], *by_group(sets), head)


def extract_benchmark(network: Network | nn.Module, benchmark: Benchmark, **options: Any) -> BenchmarkFeatures:
    """Run the network over every set of a benchmark; ``options`` go to `extract`."""
    seeing: Any = network if hasattr(network, "represent") else adapt(network)  # type: ignore[arg-type]

    def run(data: Dataset) -> Features:
        return extract(seeing, data, **options)

    near, far = ({name: run(data) for name, data in sets.items()} for sets in (benchmark.near, benchmark.far))
    head = getattr(seeing, "head", None)  # score norms, say, have none
    return BenchmarkFeatures(run(benchmark.train), run(benchmark.val), run(benchmark.test), near, far, head)


ROWS = {"train": 5000, "val": 1000, "test": 2500}  # of a bank; of every OOD set as many as `val`


def load_bank(name: str, folder: str | os.PathLike[str] | None = None) -> BenchmarkFeatures:
    """What a trained network knows of a benchmark, without the images and without the network.

    Args:
        name: of the bank, such as "cifar10-bank".
        folder: of banks; None = those that come with the library.

    Raises:
        ValueError: there is no bank of that name, or a file of it is not the one that was saved.
    """
    home = Path(folder or SHIPPED)
    if not (home / name / "benchmark.json").is_file():
        there = sorted(p.parent.name for p in home.glob("*/benchmark.json"))
        raise ValueError(f"no bank {name!r} in {home}, where there are {there}")
    return BenchmarkFeatures.load(home / name)


def make_bank(x: BenchmarkFeatures, folder: str | os.PathLike[str], *, seed: int = 0, **about: Any) -> None:
    """Write a bank small enough to ship: `ROWS` of each set, drawn evenly over the classes, in half precision.

    Args:
        x: the whole benchmark, from `extract_benchmark`.
        folder: of the bank.
        seed: of the draw.
        about: see `BenchmarkFeatures.save`.
    """
    near, far = ({n: shrink(f, ROWS["val"], seed) for n, f in sets.items()} for sets in (x.near, x.far))
    train, val, test = (shrink(getattr(x, role), rows, seed) for role, rows in ROWS.items())
    BenchmarkFeatures(train, val, test, near, far, x.head).save(folder, **about)


def shrink(features: Features, rows: int, seed: int = 0) -> Features:
    """So many rows at most, as many of each label as there are, in half precision and in their order."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    known = features.labels is not None and features.labels.ndim == 1
    labels = features.labels if known else torch.zeros(len(features))
    rank = torch.empty(len(features), dtype=torch.long)  # of each row among those of its label
    for label in labels.unique():
        mine = order[labels[order] == label]
        rank[mine] = torch.arange(len(mine))
    kept = torch.argsort(rank, stable=True)[:rows].sort().values
    return Features(**{name: half(x) for name, x in features[kept].tensors().items()})

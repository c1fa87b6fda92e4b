"""A benchmark with fewer images, small enough to ship."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ood_lib.data.benchmark import Benchmark
from ood_lib.features.bank import BenchmarkFeatures
from ood_lib.features.features import Features

__all__ = ["balanced_rows", "fewer_images", "make_bank", "thinned"]

T = TypeVar("T", Benchmark, BenchmarkFeatures)
ROWS = {"train": 5000, "val": 800, "test": 2000}  # of a bank that ships
OOD_ROWS = 750  # of each of its OOD sets


def make_bank(x: BenchmarkFeatures, folder: str | os.PathLike[str], *, seed: int = 0, **about: Any) -> None:
    """Write a bank small enough to ship: `ROWS` of each set, drawn evenly over the classes, one byte a number.

    Args:
        x: the whole benchmark, from `extract_benchmark`; of one that went through `fewer_images` before, all rows.
        folder: of the bank.
        seed: of the draw.
        about: see `BenchmarkFeatures.save`.
    """
    _fewer(x, _some_features(seed), ROWS, OOD_ROWS).save(folder, precision="uint8", benchmark=x.name, **about)


def thinned(x: BenchmarkFeatures, rows: int, seed: int = 0) -> BenchmarkFeatures:
    """The same with so many rows of each set at most, drawn evenly over the classes."""
    return _fewer(x, _some_features(seed), dict.fromkeys(ROWS, rows), rows)


def fewer_images(bench: Benchmark, seed: int = 0) -> Benchmark:
    """The benchmark with only those images that `make_bank` would keep."""
    return _fewer(bench, lambda data, n: data.subset(_rows(data.labels, len(data), n, seed)), ROWS, OOD_ROWS)


def _some_features(seed: int) -> Callable[[Features, int], Features]:
    return lambda features, n: features[_rows(features.labels, len(features), n, seed)]


def _fewer(x: T, few: Callable[[Any, int], Any], rows: Mapping[str, int], ood_rows: int) -> T:
    """A benchmark, of images or features, with every set cut to its number of rows."""
    sets: Any = x
    known = {role: few(getattr(sets, role), n) for role, n in rows.items()}
    near, far = ({n: few(data, ood_rows) for n, data in group.items()} for group in (sets.near, sets.far))
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

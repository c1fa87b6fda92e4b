"""The toy that the tests share: four classes, each with its own six units; OOD fires the eight units nobody uses."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ood_lib.features.features import Features

matplotlib.use("Agg")

UNITS, CLASSES = 32, 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a CUDA device, for `tests/gpu/run.sh` to choose; what is odd runs when `-m` names it."""
    for item in items:
        if any("no CUDA device" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
            item.add_marker("cuda")
    if "odd" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("odd")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@dataclass(frozen=True)
class Toy:
    head: nn.Linear
    train: Features
    val: Features
    test: Features
    ood: Features  # far from every class, and no class speaks up

    def to(self, dtype: torch.dtype) -> "Toy":
        """The same toy in another precision."""
        head = nn.Linear(UNITS, CLASSES).to(dtype)
        head.load_state_dict(self.head.state_dict())
        return Toy(head, *(cast(f, dtype) for f in (self.train, self.val, self.test, self.ood)))


def cast(features: Features, dtype: torch.dtype) -> Features:
    """Features in another floating-point precision."""
    values = features.tensors().items()
    return Features(**{name: v.to(dtype) if v.is_floating_point() else v for name, v in values})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def make_toy() -> Toy:
    head = nn.Linear(UNITS, CLASSES).double()
    weight = 0.02 * normal(CLASSES, UNITS, seed=1)
    for c in range(CLASSES):
        weight[c, 6 * c : 6 * c + 6] += 0.3
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(0.1 * normal(CLASSES, seed=2))

    def seen(count: int, seed: int, ood: bool = False) -> Features:
        labels = torch.arange(count) % CLASSES
        z = 0.3 * normal(count, UNITS, seed=seed)
        for row, label in enumerate(labels.tolist()):
            z[row, slice(24, 32) if ood else slice(6 * label, 6 * label + 6)] += 1.5 if ood else 3
        z = z.relu()
        return Features(penultimate=z, logits=head(z).detach(), labels=torch.full((count,), -1) if ood else labels)

    return Toy(head, seen(200, 3), seen(100, 4), seen(60, 5), seen(50, 6, ood=True))


@pytest.fixture(scope="session")
def toy() -> Toy:
    return make_toy()


@pytest.fixture
def read_only(monkeypatch) -> Callable[[Path], None]:
    """Makes a folder one that cannot be written, for root too: each call of the system that would change it fails."""
    folders: list[str] = []

    def refuse(path: object) -> None:
        if isinstance(path, str | os.PathLike) and any(f"{os.path.abspath(path)}/".startswith(f) for f in folders):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    def guard(module: object, name: str, writes: Callable[..., bool] = lambda *_, **__: True) -> None:
        real = getattr(module, name)

        def guarded(path: object, *args: object, **options: object) -> object:
            if writes(*args, **options):
                refuse(path)
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, guarded)

    for name in ("mkdir", "unlink", "remove", "rmdir", "rename", "replace", "utime", "chmod"):
        guard(os, name)
    guard(os, "open", lambda flags, *_, **__: bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    for module in (builtins, io):
        guard(module, "open", lambda mode="r", *_, **__: bool({*mode} & {*"wax+"}))
    return lambda folder: folders.append(f"{folder.absolute()}/")


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that is made while it is on."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        new = [x.untyped_storage() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.made = max([self.made, *(x.nbytes() for x in new if x.data_ptr() not in known)])
        return out

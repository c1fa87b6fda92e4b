"""What a trained network left of the images of a benchmark, as sets that stand in their place.

A bank (`BenchmarkFeatures.save`) holds features and no images.  Laid out as grey pictures, its features go through
everything that takes a benchmark, with `ood_lib.networks.Recorded` for the network that saw the images: training is
over, extraction gives back what was recorded, and from there on nothing differs.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ood_lib.data.images import ImageArray
from ood_lib.files import sha256_of

__all__ = ["BANK", "SHIPPED", "Bank", "Records", "by_group", "linear", "read_bank", "verified_files"]

T = TypeVar("T")

BANK = "benchmark.json"  # the sha256 of each file of a bank; written last: a folder without it is not complete

SHIPPED = Path(__file__).parents[1] / "shipped"


class Records(ImageArray):
    """Features laid out as grey pictures, float (N, 1, rows, columns) of any range: a pixel is a unit."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Records":
        """penultimate (N, K), and style (N, K) behind it where there is one; the sides of a picture as equal as can be.

        Example:
            >>> Records.of({"penultimate": torch.rand(5, 512), "style": torch.rand(5, 512)}).images.shape
            torch.Size([5, 1, 32, 32])
        """
        rows = torch.cat([tensors[name] for name in ("penultimate", "style") if name in tensors], 1)
        height = next(h for h in range(math.isqrt(rows.shape[1]), 0, -1) if rows.shape[1] % h == 0)
        return cls(rows.reshape(len(rows), 1, height, -1), tensors.get("labels"))

    @staticmethod
    def _check(images: Tensor) -> Tensor:
        return images.float()


class Bank(NamedTuple):
    """A bank as it lies on the disk: `sets` by name (``train``, ``near/cifar100``, ...), the head that read them."""

    sets: dict[str, Records]
    head: nn.Linear
    about: dict[str, Any]


def read_bank(folder: Path) -> Bank:
    """The sets of a bank as pictures.

    Raises:
        FileNotFoundError: no complete bank is there.
        ValueError: a file is not the one that was saved, or the bank has no head.
    """
    files = verified_files(folder)
    if "head" not in files:
        raise ValueError(f"the bank in {folder} has no head: save it with BenchmarkFeatures(..., head=network.head)")
    head = linear(load_file(files.pop("head")))
    about = json.loads((folder / BANK).read_text(encoding="utf-8"))["about"]
    return Bank({name: Records.of(load_file(file)) for name, file in files.items()}, head, about)


def by_group(sets: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """The near and the far sets of a bank, without the name of their group."""
    near, far = ({n.removeprefix(g): x for n, x in sets.items() if n.startswith(g)} for g in ("near/", "far/"))
    return near, far


def verified_files(folder: Path) -> dict[str, Path]:
    """The files of a bank by set, each the one that was saved; errors as `read_bank`."""
    if not (folder / BANK).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {BANK}: it is no bank, or writing it was interrupted; "
            "make one with extract_benchmark(network, bench).save(folder)"
        )
    hashes = json.loads((folder / BANK).read_text(encoding="utf-8"))["sets"]
    return {name: _verified(folder / f"{name}.safetensors", sha) for name, sha in hashes.items()}


def _verified(path: Path, sha: str) -> Path:
    if not path.is_file() or sha256_of(path) != sha:
        raise ValueError(f"{path} is missing or not the file that was saved (sha256 {sha[:12]}...): copy it again")
    return path


def linear(state: Mapping[str, Tensor]) -> nn.Linear:
    """The frozen linear layer with these weights."""
    classes, width = state["weight"].shape
    head = nn.Linear(width, classes, bias="bias" in state, dtype=state["weight"].dtype)
    head.load_state_dict(state)
    return head.requires_grad_(False)

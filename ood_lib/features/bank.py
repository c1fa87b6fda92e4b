"""A benchmark seen through one network: extracted, saved and loaded."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ood_lib.checks import check
from ood_lib.data.benchmark import Benchmark
from ood_lib.data.labels import class_indices
from ood_lib.features.bank_files import BANK, NEXT, exchange, header, on_the_way, verified
from ood_lib.features.extract import extract
from ood_lib.features.features import Features
from ood_lib.files import draft_folder, sha256_of, write_text
from ood_lib.networks.adapt import as_network
from ood_lib.networks.network import Network
from ood_lib.shipped import FORMER_NAMES, SHIPPED
from ood_lib.tensors import dequantized, quantized, save_tensors, single
from ood_lib.training.loop import History

__all__ = ["BenchmarkFeatures", "bank_folder", "extract_benchmark", "load_bank"]


@dataclass(frozen=True, eq=False)
class BenchmarkFeatures:
    """A benchmark seen through one network: the features of each of its sets, and the head that read them.

    Args:
        train, val, test: features of the ID images.
        near, far: features of the OOD sets, by name.
        head: the last layer of the network, a frozen copy on the CPU; None where it has none.
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

    def ood_sets(self) -> dict[str, Features]:
        """All OOD sets by name; two of one name by group and name, as ``near/textures`` and ``far/textures``."""
        twice = {*self.near} & {*self.far}
        return {
            f"{group}/{name}" if name in twice else name: features
            for group, sets in self.groups().items()
            for name, features in sets.items()
        }

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
        roles = {"train": self.train, "val": self.val, "test": self.test} | self.ood_sets()
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
            ValueError: another precision; "uint8" of features with logits, without a head.
            OSError: the folder cannot be written, or the disk is full; what was there is there still.
        """
        check(("full", "uint8"), precision=precision)
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
            exchange(made, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, in single precision at least.

        Raises:
            FileNotFoundError: no complete bank is there.
            ValueError: a file is not the one that was saved.
        """
        folder = Path(folder)
        while True:  # another process may replace the bank just now
            written, moving = header(folder), on_the_way(folder)
            try:
                found = cls._read(folder, written)
            except FileNotFoundError:  # it was there when it was verified: another process has just moved it
                continue
            except (ValueError, OSError, RuntimeError):  # torch's own of a file that has just been moved
                if (header(folder), on_the_way(folder)) == (written, moving):
                    raise
            else:
                if header(folder) == written:
                    return found

    @classmethod
    def _read(cls, folder: Path, written: Mapping[str, Any]) -> Self:
        files = {name: verified(folder, f"{name}.safetensors", sha) for name, sha in written["sets"].items()}
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


def _unpacked(file: Path, head: nn.Linear | None) -> Features:
    tensors = load_file(file)
    if any(x.dtype == torch.uint8 for x in tensors.values()):
        tensors = dequantized(tensors)
        if head is not None:
            tensors["logits"] = head(tensors["penultimate"])
    return Features(**tensors).single()


def _linear(state: Mapping[str, Tensor]) -> nn.Linear:
    """The frozen linear layer with these weights."""
    classes, width = state["weight"].shape
    head = nn.Linear(width, classes, bias="bias" in state, dtype=state["weight"].dtype)
    head.load_state_dict(state)
    return head.requires_grad_(False)


def _frozen(head: Any) -> Any:
    """A copy of a linear layer that neither moves nor learns with its network; anything else as it is."""
    if not isinstance(head, nn.Linear):
        return head
    state = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the weights that are drawn here are replaced
        return _linear({name: x.detach().cpu() for name, x in state.items()})


def extract_benchmark(network: Network | nn.Module, benchmark: Benchmark, **options: Any) -> BenchmarkFeatures:
    """Run the network over every set of a benchmark; ``options`` go to `extract`."""
    seeing = as_network(network)

    def run(data: Dataset) -> Features:
        return extract(seeing, data, **options)

    near, far = ({name: run(data) for name, data in sets.items()} for sets in (benchmark.near, benchmark.far))
    return BenchmarkFeatures(
        run(benchmark.train), run(benchmark.val), run(benchmark.test), near, far,
        _frozen(getattr(seeing, "head", None)),  # score norms, say, have none
        benchmark.name, benchmark.classes, benchmark.notes, images=benchmark, network=seeing,
    )  # fmt: skip


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

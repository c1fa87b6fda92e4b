"""Networks trained by us on real images, and banks of what they know of a benchmark: shipped, and verified by hash.

A network is two files: NAME.safetensors, its weights in half precision, and NAME.json, its card (recipe, seed,
accuracy, hash, origin).  A bank is a folder, see `BenchmarkFeatures.save`.  ``python -m ood_lib NAME`` makes both
again.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from ood_lib.data.benchmark import Benchmark, Normalize
from ood_lib.files import read_json, sha256_of, write_text
from ood_lib.networks.resnet import PooledResNet, ResNet
from ood_lib.shipped import SHIPPED
from ood_lib.tensors import half, save_tensors, single
from ood_lib.training.augment import augmented
from ood_lib.training.classifier import accuracy, train_classifier
from ood_lib.training.loop import History

__all__ = ["RECIPES", "Recipe", "card", "pretrained", "seeded", "train_recipe"]


class Recipe(NamedTuple):
    """All that it takes to train a network again, but the images and the seed."""

    benchmark: str
    widths: tuple[int, ...]
    blocks: int | tuple[int, ...]
    options: dict[str, Any]  # of `train_classifier`
    kind: type[ResNet] = ResNet
    hole: int = 0  # side of the hole in each training image, see `ood_lib.training.augment`
    start: str = ""  # the recipe whose network it goes on from, for another cycle of the learning rate

    def network(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> ResNet:
        """The network before training, for images with these statistics per channel."""
        return self.kind(len(mean), classes, self.widths, self.blocks, Normalize(mean, std))


_SGD = {"batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4}

_RESNET9 = Recipe(
    "cifar10",
    (48, 96, 256, 512),
    (0, 1, 0, 1),
    _SGD | {"epochs": 22, "batch_size": 512, "learning_rate": 0.4, "average": 0.99},
    PooledResNet,
    hole=8,
)

RECIPES = {
    # 6.3 million parameters, 512 features; two cycles, 30 epochs, two hours on two CPU cores that multiply in bfloat16
    # (others train in float32, which takes longer)
    "cifar10-resnet9-start": _RESNET9,
    "cifar10-resnet9": _RESNET9._replace(
        options=_RESNET9.options | {"epochs": 8, "learning_rate": 0.2, "weight_decay": 1e-3},
        start="cifar10-resnet9-start",
    ),
    # as OpenOOD v1.5 trains its ResNet-18 (100 epochs, crop and flip): 11 million parameters, for a GPU
    "cifar10-resnet18": Recipe("cifar10", (64, 128, 256, 512), 2, _SGD | {"epochs": 100}),
}


def pretrained(name: str, folder: str | os.PathLike[str] | None = None) -> ResNet:
    """A trained network, in eval mode and single precision; its card is `card`.

    Args:
        name: one of those that `RECIPES` names and the folder holds, such as "cifar10-resnet9".
        folder: where its two files lie; None = those that come with the library.

    Raises:
        ValueError: there is no network of that name, or its weights are not those of the card.

    Example:
        >>> network = pretrained("cifar10-resnet9")
        >>> network.represent(torch.rand(2, 3, 32, 32)).penultimate.shape
        torch.Size([2, 512])
    """
    about, file = card(name, folder), Path(folder or SHIPPED, f"{name}.safetensors")
    if not file.is_file() or (found := sha256_of(file)) != about["sha256"]:
        said = f"has sha256 {found[:12]}..." if file.is_file() else "is missing"
        raise ValueError(f"{file} {said}; its card says {about['sha256'][:12]}...: copy it again, or train it again")
    recipe = RECIPES[about["recipe"]]
    network = recipe.network(len(about["classes"]), *about["normalize"])
    network.load_state_dict({key: single(x) for key, x in load_file(file).items()})
    return network.eval().requires_grad_(False)


def card(name: str, folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What is said of a network: recipe, seed, classes, accuracy, sha256 of the weights, origin.

    Raises:
        ValueError: there is no network of that name.
    """
    file = Path(folder or SHIPPED, f"{name}.json")
    if not file.is_file():
        there = sorted(p.stem for p in file.parent.glob("*.safetensors"))
        advice = f"; train it with `python -m ood_lib {name}`" if name in RECIPES else ""
        raise ValueError(f"no network {name!r} in {file.parent}, where there are {there}{advice}")
    about = read_json(file, "copy it again, or train the network again")
    wanted = {"recipe": str, "classes": list, "normalize": list, "sha256": str}
    if lacking := [key for key, kind in wanted.items() if not isinstance(about.get(key), kind)]:
        raise ValueError(f"{file} is no card of a network, it does not say {', '.join(lacking)}: copy it again")
    return about


def train_recipe(
    name: str, bench: Benchmark, folder: str | os.PathLike[str], *, seed: int = 0,
    origin: Mapping[str, str] | None = None, **options: Any,
) -> tuple[ResNet, History]:  # fmt: skip
    """Train a network by its recipe and write its two files; an interrupted training resumes where it stopped.

    Epochs and seconds on the card include those of the recipe that it starts from.  Of a training that was interrupted
    the seconds are those of its rest.

    Args:
        name: of the recipe.
        bench: its benchmark.
        folder: where the files go; with a seed other than 0 they are called NAME-seedN.
        seed: of the first weights, the order and the augmentation.
        origin: put on the card, see `ood_lib.evaluation.results.provenance`.
        options: of `train_classifier`, such as device or epochs, instead of the recipe's.
    """
    recipe, folder = RECIPES[name], Path(folder)
    file = folder / f"{seeded(name, seed)}.safetensors"
    chosen = recipe.options | {"autocast": "auto", "channels_last": True} | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = recipe.network(len(bench.classes), *_statistics(bench))
    spent = {"epochs": 0, "seconds": 0}
    if recipe.start:
        spent = _begin(network, recipe.start, bench, folder, seed=seed, origin=origin, **options)
    start = time.monotonic()
    history = train_classifier(
        network, bench.train, val=bench.val, seed=seed, augment=augmented(hole=recipe.hole),
        checkpoint=file.with_suffix(".checkpoint"), **chosen,
    )  # fmt: skip
    seconds = spent["seconds"] + round(time.monotonic() - start)
    about = {"recipe": name, "epochs": spent["epochs"] + chosen["epochs"], "seed": seed, "seconds": seconds}
    _write(file, network, bench, about | {"origin": dict(origin or {})})
    return pretrained(file.stem, folder), history


def _begin(network: ResNet, name: str, bench: Benchmark, folder: Path, *, seed: int, **options: Any) -> dict[str, Any]:
    """Give a network the weights of another recipe's, which is trained if it is not there; the card of that one."""
    file = folder / f"{seeded(name, seed)}.safetensors"
    if not file.with_suffix(".json").is_file():  # the card, which is written last
        train_recipe(name, bench, folder, seed=seed, **options)
    network.load_state_dict(pretrained(file.stem, folder).state_dict())
    return card(file.stem, folder)


def seeded(name: str, seed: int) -> str:
    """What the network of this seed and its bank are called: NAME, NAME-seed1, NAME-seed2, ..."""
    return f"{name}-seed{seed}" if seed else name


def _write(file: Path, network: ResNet, bench: Benchmark, about: Mapping[str, Any]) -> None:
    """Round the weights to half precision, measure what is left of the accuracy, write the file and its card."""
    rounded = {key: half(x.detach().cpu()) for key, x in network.state_dict().items()}
    network.load_state_dict({key: single(x) for key, x in rounded.items()})
    facts = {
        "benchmark": bench.name,
        "classes": list(bench.classes),
        "normalize": _statistics(bench),
        "accuracy": accuracy(network, bench.test, device=next(network.parameters()).device),
    }
    save_tensors(rounded, file)
    facts["sha256"] = sha256_of(file)
    write_text(file.with_suffix(".json"), json.dumps(dict(about) | facts, indent=1) + "\n")


def _statistics(bench: Benchmark) -> list[list[float]]:
    return [bench.normalize.get_buffer(name).flatten().tolist() for name in ("mean", "std")]

"""Score norms of CIFAR-10 and of its OOD sets under several score networks: made once, and shipped without the images.

One file holds the norms of one score network, ten numbers per image. There are small U-Nets after different numbers of
updates, with GroupNorm or InstanceNorm++, and the Gaussian of the pixels, which is no network.
``python -m ood_lib cifar10-score-norms`` computes them again.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from ood_lib.data.benchmark import Benchmark
from ood_lib.detectors.msma import ScoreNorms
from ood_lib.features.bank import BenchmarkFeatures
from ood_lib.features.extract import extract
from ood_lib.features.features import Features
from ood_lib.features.fewer import balanced_rows
from ood_lib.files import read_json, sha256_of, write_text
from ood_lib.networks.score_network import GaussianScore, Norm, ScoreNetwork
from ood_lib.shipped import SHIPPED
from ood_lib.tensors import half, save_tensors
from ood_lib.training.score_matching import train_score_network

__all__ = ["NORM_BANK", "SCORERS", "Scorer", "load_score_norms", "make_score_norms"]

NORM_BANK = "cifar10-score-norms"
CARD = "card.json"
HELD_OUT, VAL, TEST = 800, 200, 500  # rows: of the train split, which no network learns from; of val; of each test set


class Scorer(NamedTuple):
    """A score network of the bank: what tells it from the others."""

    norm: Norm | None  # None: `GaussianScore`, without a network
    updates: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.norm.replace('++', '-plus')}-{self.updates}-seed{self.seed}" if self.norm else "gaussian"

    def score(self, train: Dataset, images: Tensor, device: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The score network, trained."""
        if self.norm is None:
            return GaussianScore(images)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = ScoreNetwork(3, widths=(32, 64), patch=2, norm=self.norm)
        train_score_network(
            network, train, steps=self.updates, seed=self.seed, device=device, channels_last=True, autocast="auto"
        )
        return network


#: In the order in which they are made: what costs little first, and the first seed of all first.
SCORERS: tuple[Scorer, ...] = (
    Scorer(None),
    *(Scorer("group", updates) for updates in (76, 250)),
    Scorer("instance++", 250),
    Scorer("group", 1000),
    *(Scorer("group", updates, seed) for seed in (1, 2) for updates in (76, 250)),
    *(Scorer("instance++", 250, seed) for seed in (1, 2)),
    *(Scorer("group", 1000, seed) for seed in (1, 2)),
    *(Scorer("instance++", 1000, seed) for seed in (0, 1)),
)


def make_score_norms(
    bench: Benchmark,
    folder: str | os.PathLike[str],
    *,
    scorers: Sequence[Scorer] = SCORERS,
    origin: Mapping[str, str] | None = None,
    device: str = "auto",
) -> None:
    """Train the score networks one after the other and write the norms under each; those that are there are kept.

    Networks learn from the train split without `HELD_OUT` images of it, which become the bank's ``train`` rows: what a
    density of the norms is fitted on.

    Args:
        bench: CIFAR-10.
        folder: gets NAME.safetensors for each network, its weights in the subfolder ``weights``, and the card.
        scorers: which.
        origin: put on the card, see `ood_lib.evaluation.results.provenance`.
        device: where networks are trained and run.
    """
    folder = Path(folder)
    apart = balanced_rows(bench.train.labels, HELD_OUT)
    learn = torch.ones(len(bench.train), dtype=torch.bool)
    learn[apart] = False
    train = bench.train.subset(learn.nonzero().flatten())
    sets = {"train": bench.train.subset(apart), "val": _few(bench.val, VAL), "test": _few(bench.test, TEST)}
    sets |= {f"{g}/{k}": _few(x, TEST) for g in ("near", "far") for k, x in getattr(bench, g).items()}
    for scorer in scorers:
        if (file := folder / f"{scorer.name}.safetensors").is_file():
            if not (card := folder / CARD).is_file() or f'"{scorer.name}"' not in card.read_text(encoding="utf-8"):
                _write_card(folder, bench, dict(origin or {}))  # killed before it could say so
            continue
        start = time.process_time()
        network = scorer.score(train, train.subset(torch.arange(0, len(train), 3)).images, device)
        trained = time.process_time() - start
        run = partial(extract, ScoreNorms(network), device=device, channels_last=True, batch_size=64)
        rows = {k: run(x).penultimate.float() for k, x in sets.items()}
        if isinstance(network, ScoreNetwork):
            save_tensors({k: half(x) for k, x in network.state_dict().items()}, folder / "weights" / file.name)
        save_tensors(rows | {"seconds": torch.tensor([trained])}, file)
        _write_card(folder, bench, dict(origin or {}))


def _few(data: Any, rows: int) -> Dataset:
    """So many of its images, as many of each class as there are."""
    return data.subset(balanced_rows(data.labels, rows))


def _write_card(folder: Path, bench: Benchmark, origin: dict[str, str]) -> None:
    files = sorted(folder.glob("*.safetensors"))
    about = {"benchmark": bench.name, "sets": {f.stem: sha256_of(f) for f in files}, "notes": list(bench.notes)}
    write_text(folder / CARD, json.dumps(about | {"provenance": origin}, indent=1) + "\n")


def load_score_norms(folder: str | os.PathLike[str] | None = None) -> dict[Scorer, BenchmarkFeatures]:
    """The norms under each network of the bank; `train` are rows held out from the network, for the density.

    Args:
        folder: of the bank; None = the one that comes with the library.

    Raises:
        ValueError: no bank is there, or a file of it is not the one that was saved.

    Example:
        >>> norms = load_score_norms()
        >>> norms[Scorer("group", 250)].far["svhn"].penultimate.shape
        torch.Size([500, 10])
    """
    folder = Path(folder or SHIPPED / NORM_BANK)
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} holds no {CARD}; make the bank with `python -m ood_lib {NORM_BANK} --root PATH`")
    card = read_json(folder / CARD, "copy it again, or make the bank again")
    if lacking := {"sets", "notes", "provenance"} - {*card}:
        raise ValueError(f"{folder / CARD} is no card of this bank, it says no {', '.join(lacking)}: copy it again")
    found = {}
    for scorer in SCORERS:
        file = folder / f"{scorer.name}.safetensors"
        if (sha := card["sets"].get(scorer.name)) is None:
            continue
        if not file.is_file() or sha256_of(file) != sha:
            raise ValueError(f"{file} is missing or not the file that was saved (sha256 {sha[:12]}...): copy it again")
        tensors = load_file(file)
        seconds = tensors.pop("seconds").item()
        x = {k: Features(penultimate=v) for k, v in tensors.items()}
        near, far = ({k.removeprefix(g): v for k, v in x.items() if k.startswith(g)} for g in ("near/", "far/"))
        about = card["provenance"] | {"seconds": seconds}
        notes = tuple(card["notes"])
        found[scorer] = BenchmarkFeatures(
            x["train"], x["val"], x["test"], near, far, name=scorer.name, notes=notes, about=about
        )
    return found

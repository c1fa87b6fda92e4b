"""Make a bank: train one of the networks that ship, or read one that others published: ``python -m ood_lib NAME``.

``python -m ood_lib score`` is another command, which scores pictures by a saved detector.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ood_lib.data.benchmark import Benchmark, benchmark_hash, load_benchmark
from ood_lib.detectors.classical.knn import KNN
from ood_lib.detectors.classical.mahalanobis import Mahalanobis
from ood_lib.detectors.classical.recipes import classical_detectors
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.norm_bank import NORM_BANK, make_score_norms
from ood_lib.evaluation.benchmark import run_benchmark
from ood_lib.evaluation.results import provenance
from ood_lib.evaluation.score_command import main as score_pictures
from ood_lib.features.bank import BenchmarkFeatures, extract_benchmark, load_bank
from ood_lib.features.features import Features
from ood_lib.features.fewer import fewer_images, make_bank
from ood_lib.files import check_writable
from ood_lib.networks.network import Network, pick_device
from ood_lib.terminal import terminal
from ood_lib.training.named import load_network
from ood_lib.training.published import PUBLISHED
from ood_lib.training.recipes import RECIPES, seeded, train_recipe

__all__ = ["main"]


def main() -> None:
    """Write NAME.safetensors and NAME.json where the network is trained here, and the bank, a folder NAME."""
    if sys.argv[1:2] == ["score"]:
        sys.exit(score_pictures(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m ood_lib", description=main.__doc__,
        epilog="To score pictures by a saved detector: python -m ood_lib score --help",
    )  # fmt: skip
    parser.add_argument("name", choices=[*RECIPES, *PUBLISHED, NORM_BANK])
    parser.add_argument("--root", help="folder of the images; see the page on data")
    parser.add_argument("--missing", choices=["raise", "skip"], default="raise", help="what to do without an OOD set")
    parser.add_argument("--out", type=Path, default=Path("pretrained"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", help="of a network of others: its checkpoint as a safetensors file")
    parser.add_argument("--all", action="store_true", help="keep the features of all images too, in NAME-features")
    given = parser.parse_args()
    if (given.name in PUBLISHED) != bool(given.weights):
        parser.error(f"--weights FILE goes with {', '.join(PUBLISHED)}, and with no other name")
    check_writable(given.out)
    if given.name == NORM_BANK:
        return _score_norms(given)
    ours = RECIPES.get(given.name)
    bench = _images((ours or PUBLISHED[given.name]).benchmark, given.name, given.root, given.missing)
    name = seeded(given.name, given.seed)
    command = f"python -m ood_lib {given.name} --seed {given.seed} --missing {given.missing}"
    origin: dict[str, Any] = provenance(command, pick_device(given.device), data=benchmark_hash(bench))
    network: Any
    if ours:
        network, _ = train_recipe(
            given.name, bench, given.out, seed=given.seed, origin=origin | {"sets": "; ".join(bench.notes)},
            device=given.device,
        )  # fmt: skip
    else:
        network = load_network(given.name, weights=given.weights)
        origin |= {"weights": PUBLISHED[given.name].source, "licence": PUBLISHED[given.name].licence}
    if given.all:
        _see(network, bench, given.device).save(given.out / f"{name}-features", **origin)
    seen = _see(network, fewer_images(bench), given.device)
    make_bank(seen, given.out / name, **origin)  # and again, when it is known what rounding costs
    make_bank(seen, given.out / name, **origin, rounding=_rounding(seen, load_bank(name, given.out)))


def _images(benchmark: str, name: str, root: str | None, missing: Literal["raise", "skip"]) -> Benchmark:
    if benchmark != "folder:":
        return load_benchmark(benchmark, root=root, missing=missing)
    bench = load_benchmark(f"folder:{root or '.'}", missing=missing)  # whose path is nobody else's business
    notes = (note.replace(f" in {root}", "") for note in bench.notes)
    return replace(bench, name=name.partition("-")[0], notes=tuple(notes))


def _score_norms(given: argparse.Namespace) -> None:
    """The norms of CIFAR-10 under each score network; started again, it goes on with the next network."""
    bench = load_benchmark("cifar10", root=given.root, missing=given.missing)
    command = f"python -m ood_lib {NORM_BANK} --missing {given.missing}"
    origin = provenance(command, pick_device(given.device), data=benchmark_hash(bench))
    make_score_norms(bench, given.out / NORM_BANK, origin=origin, device=given.device)


def _see(network: Network, bench: Benchmark, device: str) -> BenchmarkFeatures:
    seen = extract_benchmark(network, bench, device=device, channels_last=True)
    assert seen.head is not None
    return seen if seen.head.out_features == len(bench.classes) else _without_head(seen)


def _without_head(x: BenchmarkFeatures) -> BenchmarkFeatures:
    """Features and labels alone: the head knows other classes than the benchmark."""

    def bare(features: Features) -> Features:
        return Features(penultimate=features.penultimate, labels=features.labels)

    near, far = ({name: bare(features) for name, features in sets.items()} for sets in (x.near, x.far))
    return replace(x, train=bare(x.train), val=bare(x.val), test=bare(x.test), near=near, far=far, head=None)


def _rounding(exact: BenchmarkFeatures, rounded: BenchmarkFeatures) -> str:
    """What one byte a number costs: how far the AUROC of each classical detector on each set moves."""
    aurocs = []
    for x in (exact, rounded):
        torch.manual_seed(0)
        without_head: dict[str, Detector] = {"Mahalanobis": Mahalanobis(), "KNN": KNN()}
        table = run_benchmark(classical_detectors(exact.head, x.train) if exact.head else without_head, x)
        aurocs.append(table[table["metric"] == "auroc"]["value"].to_numpy())
    moved = 100 * abs(aurocs[0] - aurocs[1])
    return (
        f"one byte a number; over {len(moved)} pairs of a classical detector and an OOD set, AUROC moves by "
        f"{moved.mean():.3f} points in the mean and {moved.max():.2f} at most"
    )


if __name__ == "__main__":
    with terminal():
        main()

"""Train one of the networks that ship, and make its bank: ``python -m ood_lib NAME``."""

import argparse
from pathlib import Path

from ood_lib.data.benchmark import benchmark_hash, load_benchmark
from ood_lib.evaluation.results import provenance
from ood_lib.features.bank import extract_benchmark, make_bank
from ood_lib.networks.network import pick_device
from ood_lib.training.recipes import RECIPES, train_recipe

__all__ = ["main"]


def main() -> None:
    """Write NAME.safetensors and NAME.json, the features of all images, and a bank of some of them."""
    parser = argparse.ArgumentParser(prog="python -m ood_lib", description=main.__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--root", help="folder of the images; see the page on data")
    parser.add_argument("--missing", choices=["raise", "skip"], default="raise", help="what to do without an OOD set")
    parser.add_argument("--out", type=Path, default=Path("pretrained"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    bench = load_benchmark(RECIPES[given.name].benchmark, root=given.root, missing=given.missing)
    command = f"python -m ood_lib {given.name} --seed {given.seed} --missing {given.missing}"
    origin = provenance(command, pick_device(given.device), data=benchmark_hash(bench), sets="; ".join(bench.notes))
    network, _ = train_recipe(given.name, bench, given.out, seed=given.seed, origin=origin, device=given.device)
    seen = extract_benchmark(network, bench, device=given.device, channels_last=True, autocast="auto")
    seen.save(given.out / f"{bench.name}-features", **origin)
    make_bank(seen, given.out / f"{bench.name}-bank", seed=0, **origin)


if __name__ == "__main__":
    main()

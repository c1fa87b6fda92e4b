"""From the name of a benchmark to features: networks are trained and shown the images, or what they saw is loaded."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ood_lib.checks import check
from ood_lib.data.benchmark import load_benchmark
from ood_lib.features.bank import BenchmarkFeatures, bank_folder, extract_benchmark
from ood_lib.features.fewer import thinned
from ood_lib.networks.adapt import network_for
from ood_lib.networks.network import pick_device
from ood_lib.shipped import is_bank
from ood_lib.training.augment import augmented
from ood_lib.training.classifier import train_classifier
from ood_lib.training.kept import trained
from ood_lib.training.recipes import seeded

__all__ = ["benchmark_features"]


def benchmark_features(
    benchmark: str | os.PathLike[str],
    networks: int = 1,
    *,
    rows: int | None = None,
    seed: int = 0,
    widths: Sequence[int] = (32, 64),
    blocks: int = 1,
    root: str | Path | None = None,
    missing: Literal["raise", "skip"] = "raise",
    device: str | torch.device = "auto",
    cache: str | os.PathLike[str] | None = None,
    **training: Any,
) -> list[BenchmarkFeatures]:
    """A benchmark as several networks see it: trained here from seeds of their own, or loaded from a bank.

    Images are those of `load_benchmark`; on them small `ResNet` networks are trained, each shown images that are
    moved by up to an eighth of their height.  A bank holds what networks computed that were trained before: one in its
    folder, a further one in each of FOLDER-seed1, FOLDER-seed2, ...

    Args:
        benchmark: a name or ``folder:PATH`` as in `load_benchmark`; or a bank that ships (`ood_lib.shipped.BANKS`), or
            ``bank:PATH`` for one of your own, from `BenchmarkFeatures.save`.
        networks: how many; of a bank at most as many as there are.
        rows: of each set of a bank take so many at most, as many of each class as there are; None = all.
        seed: of the first network; the others take the seeds after it.  A bank takes no notice.
        widths, blocks: of the `ResNet`.
        root, missing: see `load_benchmark`.
        device: where networks are trained and run.
        cache: folder that keeps trained networks, see `trained`; None = the variable OOD_CACHE, else none is kept.
        training: options of `train_classifier`, such as epochs.

    Returns:
        One `BenchmarkFeatures` for each network.  Those trained here also hold `images`, `network` and `history`.

    Raises:
        ValueError: no such benchmark or bank; a bank without a head; fewer than one network.

    Example:
        >>> x, *others = benchmark_features("cifar10-resnet9")
        >>> x.test.penultimate.shape[1], x.images is None
        (512, True)
    """
    check("integer [1, inf)", "how many networks", networks=networks)
    check("integer [1, inf) or None", "how many of each set, or None for all", rows=rows)
    name = os.fspath(benchmark)
    if is_bank(name):
        return [x if rows is None else thinned(x, rows) for x in _loaded(name, networks)]
    bench, where = load_benchmark(name, root, missing=missing), pick_device(device)
    options: dict[str, Any] = {
        "augment": augmented(bench.image_shape[1] // 8, mirror=False),
        "learning_rate": 0.05,
    } | training
    found = []
    for s in range(seed, seed + networks):
        with torch.random.fork_rng():
            torch.manual_seed(s)
            network = network_for(bench, widths, blocks).to(where)
        history = trained(
            train_classifier, network, bench.train, val=bench.val,
            name=bench.name, seed=s, cache=cache, device=where, **options,
        )  # fmt: skip
        found.append(replace(extract_benchmark(network, bench, device=where), history=history))
    return found


def _loaded(name: str, networks: int) -> list[BenchmarkFeatures]:
    first = Path(name.removeprefix("bank:")).expanduser() if name.startswith("bank:") else bank_folder(name)
    others = (first.with_name(seeded(first.name, s)) for s in range(1, networks))
    found = [BenchmarkFeatures.load(folder) for folder in [first, *(f for f in others if f.is_dir())]]
    for x in found:
        if x.head is None:
            raise ValueError(f"the bank {x.name} has no head: save it with BenchmarkFeatures(..., head=network.head)")
    return found

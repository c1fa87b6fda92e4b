"""From the name of a benchmark to features: networks are trained and shown the images, or what they saw is loaded."""

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from ood_lib.data.benchmark import Benchmark, benchmark_hash, load_benchmark
from ood_lib.features.bank import BenchmarkFeatures, bank_folder, extract_benchmark
from ood_lib.networks.adapt import network_for
from ood_lib.networks.network import pick_device
from ood_lib.networks.resnet import ResNet
from ood_lib.shipped import BANKS, FORMER_NAMES
from ood_lib.tensors import save_tensors
from ood_lib.training.augment import augmented
from ood_lib.training.classifier import train_classifier
from ood_lib.training.loop import History

__all__ = ["benchmark_features"]


def benchmark_features(
    benchmark: str | os.PathLike[str],
    networks: int = 1,
    *,
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
        seed: of the first network; the others take the seeds after it.  A bank takes no notice.
        widths, blocks: of the `ResNet`.
        root, missing: see `load_benchmark`.
        device: where networks are trained and run.
        cache: folder that keeps trained networks; the same data, recipe, seed, device and library give the same
            network, so that it need not be trained twice.  None = the variable OOD_CACHE, else none is kept.
        training: options of `train_classifier`, such as epochs.

    Returns:
        One `BenchmarkFeatures` for each network.  Those trained here also hold `images`, `network` and `history`.

    Raises:
        ValueError: no such benchmark or bank; fewer than one network.

    Example:
        >>> x, *others = benchmark_features("cifar10-resnet9")
        >>> x.test.penultimate.shape[1], x.images is None
        (512, True)
    """
    if networks < 1:
        raise ValueError(f"networks={networks} was given; expected at least one")
    name = os.fspath(benchmark)
    if name.startswith("bank:") or name in (*BANKS, *FORMER_NAMES):
        return _loaded(name, networks)
    bench = load_benchmark(name, root, missing=missing)
    options = {"augment": augmented(bench.image_shape[1] // 8, mirror=False), "learning_rate": 0.05} | training
    kept = cache or os.environ.get("OOD_CACHE") or None
    return [
        _trained(bench, s, (tuple(widths), blocks), pick_device(device), Path(kept) if kept else None, options)
        for s in range(seed, seed + networks)
    ]


def _loaded(name: str, networks: int) -> list[BenchmarkFeatures]:
    first = Path(name.removeprefix("bank:")).expanduser() if name.startswith("bank:") else bank_folder(name)
    others = (first.with_name(f"{first.name}-seed{s}") for s in range(1, networks))
    return [BenchmarkFeatures.load(folder) for folder in [first, *(f for f in others if f.is_dir())]]


def _trained(
    bench: Benchmark, seed: int, shape: tuple[Sequence[int], int], device: torch.device, cache: Path | None,
    options: Mapping[str, Any],
) -> BenchmarkFeatures:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network_for(bench, *shape)
    if " at 0x" in repr(options):  # an own function, which its name does not identify
        cache = None
    file = cache / f"{_identity(bench, seed, shape, device, options)}.safetensors" if cache else None
    if file and file.is_file():
        history = _recall(network.to(device), file)
    else:
        history = train_classifier(network, bench.train, val=bench.val, seed=seed, device=device, **options)
        if file:
            curves = {f"history.{k}": torch.tensor(x, dtype=torch.float64) for k, x in asdict(history).items()}
            save_tensors(network.state_dict() | curves, file)
    return replace(extract_benchmark(network, bench, device=device), history=history)


def _recall(network: ResNet, file: Path) -> History:
    state = load_file(file)
    history = History(**{field.name: state.pop(f"history.{field.name}").tolist() for field in fields(History)})
    network.load_state_dict(state)
    network.eval()
    return history


def _identity(bench: Benchmark, *recipe: Any) -> str:
    """All that a trained network depends on: data, recipe, seed, device, and the code that builds and trains it."""
    code = (Path(inspect.getfile(x)).read_bytes() for x in (ResNet, augmented, train_classifier, History))
    facts = (benchmark_hash(bench), *recipe, torch.__version__, torch.get_num_threads(), *code)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]

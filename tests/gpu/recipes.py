"""Recipes of paper size for a few steps each: images per second, share of the chip's rate, memory.

    python -m tests.gpu.recipes [--out FILE] [--minutes 5] [--device cuda] [--only HEAT flow]

Each recipe runs as it is by default (float32) and in the ways that might pay: bfloat16, channels last, torch.compile,
CUDA graphs.  None is taken for granted: a way that fails says so in its record, and the ratio to float32 says whether
it pays.  The file is written whole after each measurement, so the run may be stopped at any time.  Operations are those
of matrix products and convolutions; the chip's rate is that of a large matrix product, measured first.
On the CPU the sizes are tiny: that only shows that the script works.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import ood_lib as ood
from ood_lib.detectors.flow.flow import coupling_flow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.detectors.heat.langevin import sgld
from ood_lib.detectors.heat.residual import ResidualNet
from ood_lib.features.features import Features
from ood_lib.files import write_text
from ood_lib.networks.score_network import noise_scales
from ood_lib.training.score_matching import draw_scales, dsm_loss

OUT = Path(__file__).parents[2] / "book/results/speed/gpu.json"

Step = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """How a recipe is run."""

    name: str
    half: bool = False
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False

    def autocast(self, device: torch.device) -> Any:
        """The precision of the network."""
        return torch.autocast(device.type, torch.bfloat16) if self.half else nullcontext()


PLAIN, HALF = Way("float32"), Way("bfloat16", half=True)
LAST = Way("bfloat16, channels last", half=True, channels_last=True)
COMPILED = Way("bfloat16, channels last, compiled", half=True, channels_last=True, compiled=True)
GRAPH = Way("bfloat16, channels last, CUDA graph", half=True, channels_last=True, graph=True)


@dataclass(frozen=True)
class Recipe:
    """A training step, or another unit of work, of a size that a paper used.

    Args:
        make: device, way and whether the sizes are tiny -> a step, and the number of rows or images in it.
        ways: the first is the default.
    """

    make: Callable[[torch.device, Way, bool], tuple[Step, int]]
    ways: tuple[Way, ...]


def updates(network: nn.Module, loss_of: Callable[[nn.Module], Tensor], device: torch.device, way: Way) -> Step:
    """Updates by Adam of a loss whose data are at hand."""
    if way.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = device.type in ("cpu", "cuda")
    adam = torch.optim.Adam(network.parameters(), 1e-4, fused=fused, capturable=way.graph)
    called: Any = torch.compile(network) if way.compiled else network

    def step() -> Tensor:
        with way.autocast(device):
            loss = loss_of(called)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return loss

    return captured(step) if way.graph else step


def captured(step: Step) -> Step:
    """The step as one CUDA graph, played again and again on the same data."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def pictures(n: int, side: int, device: torch.device, way: Way) -> Tensor:
    """Images in [0, 1], laid out as the way says."""
    images = torch.rand(n, 3, side, side, device=device)
    return images.contiguous(memory_format=torch.channels_last) if way.channels_last else images


def classifier(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """ResNet-18 on CIFAR-10, batches of 128."""
    n, widths = (4, (4, 8)) if tiny else (128, (64, 128, 256, 512))
    network = ood.ResNet(3, 10, widths, blocks=2).to(device).train()
    images, labels = pictures(n, 32, device, way), torch.arange(n, device=device) % 10
    return updates(network, lambda net: F.cross_entropy(net(images).float(), labels), device, way), n


def extraction(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """`extract` with the same network: loading, copying and computing."""
    n, widths = (8, (4, 8)) if tiny else (10_000, (64, 128, 256, 512))
    network = ood.ResNet(3, 10, widths, blocks=2)
    data = torch.utils.data.TensorDataset(torch.rand(n, 3, 32, 32), torch.arange(n) % 10)
    options: dict[str, Any] = {"autocast": torch.bfloat16 if way.half else None, "channels_last": way.channels_last}
    options |= {"compile": way.compiled, "device": device, "progress": False}
    return lambda: ood.extract(network, data, batch_size=min(n, 1000), **options), n


def multilabel(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """SNoJoE: ResNet-50 with spectral normalisation on pictures of 256 pixels, batches of 32."""
    n, side = (2, 32) if tiny else (32, 256)
    if tiny:
        network: nn.Module = ood.ResNet(3, 20, (4, 8))
    else:
        from torchvision.models import resnet50

        network = resnet50(num_classes=20)
    ood.spectral_normalize(network)
    images, labels = pictures(n, side, device, way), (torch.rand(n, 20, device=device) < 0.1).float()
    network.to(device).train()

    def loss(net: nn.Module) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(images).float(), labels)

    return updates(network, loss, device, way), n


def score_network(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """MSMA: the U-Net of the profile msma_paper, batches of 128 images of 32 pixels."""
    n, widths = (2, (4, 8)) if tiny else (128, (128, 256, 256))
    levels = noise_scales().tolist()
    network = ood.ScoreNetwork(3, widths, levels=levels, precondition=False, norm="instance++").to(device).train()
    images = pictures(n, 32, device, way)
    sigma = draw_scales(network, n, torch.Generator().manual_seed(0)).to(images)
    noise = torch.randn_like(images)
    return updates(network, lambda net: dsm_loss(net, images, sigma, noise).mean(), device, way), n


def norms(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """MSMA: score norms at ten scales of 1,000 images."""
    n, widths = (2, (4, 8)) if tiny else (1000, (128, 256, 256))
    network = ood.ScoreNetwork(3, widths, levels=noise_scales().tolist(), norm="instance++").to(device).eval()
    if way.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, called = pictures(n, 32, device, way), ood.ScoreNorms(network)

    def step() -> Tensor:
        with way.autocast(device):
            return called(images)

    return step, n


def heat(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """HEAT on CIFAR-10: 40 Langevin steps of 1,024 chains in 512 dimensions, five hidden layers, and the update."""
    n, width, wide, steps = (8, 16, 32, 3) if tiny else (1024, 512, 1024, 40)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2 * width * 2, width, generator=generator)
    labels = torch.arange(len(z)) % 10
    prior = ood.GMM(ridge=1e-3).fit(Features(penultimate=z, labels=labels)).to(device)
    net = ResidualNet(width, (wide,) * 5, shared=True).to(device)
    nn.init.normal_(net.out.weight, std=1e-3)
    batch = z[:n].to(device)
    adam = torch.optim.Adam(net.parameters(), 1e-5, betas=(0.0, 0.999), fused=device.type in ("cpu", "cuda"))

    def residual(points: Tensor) -> Tensor:
        with way.autocast(device):
            return net(points).float()

    def step() -> Tensor:
        negatives = sgld(
            lambda points: residual(points) - prior.log_prob(points) / 1000, batch, steps, 1e-4, noise=5e-3, decay=0.1,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        with torch.enable_grad():
            data, other = residual(batch), residual(negatives)
            loss = (data.mean() - other.mean()) + 10 * (data.square().mean() + other.square().mean())
            adam.zero_grad()
            loss.backward()
        adam.step()
        return loss

    return step, n


def flow(device: torch.device, way: Way, tiny: bool) -> tuple[Step, int]:
    """The flow at 2048 dimensions (ResNet-50 on ImageNet): ten updates of 250 rows."""
    width, batch, each = (16, 8, 2) if tiny else (2048, 250, 10)
    z = torch.randn(10 * batch, width)
    training = FlowTraining(coupling_flow(width, whiten=True).to(device), z, batch_size=batch, noise=0.01,
                            autocast=way.half and device.type == "cuda")  # fmt: skip
    return lambda: training.run(each), each * batch


RECIPES = {
    "ResNet-18, CIFAR-10, training": Recipe(classifier, (PLAIN, HALF, LAST, COMPILED, GRAPH)),
    "ResNet-18, extract": Recipe(extraction, (PLAIN, LAST, COMPILED)),
    "HEAT, 512 dimensions, 40 steps": Recipe(heat, (PLAIN, HALF)),
    "flow, 2048 dimensions, training": Recipe(flow, (PLAIN, HALF)),
    "MSMA, U-Net, training": Recipe(score_network, (PLAIN, HALF, LAST, COMPILED, GRAPH)),
    "MSMA, U-Net, score norms": Recipe(norms, (PLAIN, LAST)),
    "SNoJoE, ResNet-50, training": Recipe(multilabel, (PLAIN, HALF, LAST, GRAPH)),
}


class Operations(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, forwards and backwards."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


def synchronize(device: torch.device) -> None:
    """Wait for the work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Step, device: torch.device, seconds: float, most: int = 200) -> list[float]:
    """Wall time of each of some steps, as many as fit."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < most and (len(found) < 2 or time.perf_counter() < end):
        start = time.perf_counter()
        step()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return found


def rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations per second of a matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, device, 1.0, 20)[1:])


def measure(recipe: Recipe, way: Way, device: torch.device, tiny: bool, seconds: float) -> dict[str, Any]:
    """Rows per second, operations per second and memory of one way; what went wrong where it did not work."""
    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        step, rows = recipe.make(device, way, tiny)
        operations = 0
        if not (way.graph or way.compiled):
            with Operations() as counter:
                step()
            operations = counter.total
        start = time.perf_counter()
        for _ in range(3):
            step()
        synchronize(device)
        warm_up = time.perf_counter() - start
        runs = timed(step, device, seconds)
    except Exception as error:  # a way that does not work here is a result, and the others are still to be measured
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {
        "rows_per_second": round(rows / statistics.median(runs), 2), "steps": len(runs),
        "seconds": [round(s, 6) for s in runs[:10]], "warm_up_seconds": round(warm_up, 2), "operations": operations,
        "memory_mb": None if peak is None else round(peak, 1),
    }  # fmt: skip


def about(device: torch.device, side: int) -> dict[str, Any]:
    """The machine, and the rates of its matrix products."""
    cuda = device.type == "cuda"
    found = {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(), "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None, "cores": os.cpu_count(), "tiny": not cuda,
    }  # fmt: skip
    rates = {"float32": rate(device, torch.float32, side), "bfloat16": rate(device, torch.bfloat16, side)}
    return found | {"rates": rates}


def run(out: Path, device: torch.device, minutes: float, laws: str, only: list[str]) -> dict[str, Any]:
    """Measure, and write the file after each measurement."""
    tiny = device.type != "cuda"
    end = time.monotonic() + 60 * minutes
    content: dict[str, Any] = {"command": "tests/gpu/run.sh", "laws": laws, "recipes": {}}
    content["machine"] = about(device, 128 if tiny else 8192)
    pairs = [(name, way) for name in only for way in RECIPES[name].ways]
    pairs.sort(key=lambda pair: RECIPES[pair[0]].ways.index(pair[1]) > 0)  # every recipe by default first
    for name, way in pairs:
        if tiny and (way.compiled or way.graph):
            continue
        ways = content["recipes"].setdefault(name, {})
        if time.monotonic() > end:
            ways[way.name] = {"error": "no time left"}
        else:
            torch.manual_seed(0)
            ways[way.name] = found = measure(RECIPES[name], way, device, tiny, 0.02 if tiny else 4.0)
            judge(ways, way, content["machine"]["rates"])
            print(f"{name}, {way.name}: {found.get('error') or found['rows_per_second']}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(content, indent=1) + "\n")
    return content


def judge(ways: dict[str, dict[str, Any]], way: Way, rates: dict[str, float]) -> None:
    """Add to a way its share of the chip's rate in its precision, and its speed relative to float32."""
    found, first = ways[way.name], ways.get(PLAIN.name, {})
    if "error" in found or "error" in first:
        return
    found["operations"] = found["operations"] or first["operations"]  # those of a graph cannot be counted
    speed = found["operations"] / statistics.median(found["seconds"])
    found["share_of_rate"] = round(speed / rates["bfloat16" if way.half else "float32"], 4)
    found["times_float32"] = round(found["rows_per_second"] / first["rows_per_second"], 3)


def main() -> None:
    """All recipes, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the file")
    parser.add_argument("--minutes", type=float, default=5.0, help="no measurement is begun after that")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--laws", default="not run", help="what became of the tests, for the record")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    options = parser.parse_args()
    run(options.out, torch.device(options.device), options.minutes, options.laws, options.only)


if __name__ == "__main__":
    main()

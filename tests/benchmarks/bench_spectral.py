"""What spectral normalisation adds to a training step.

    python tests/benchmarks/bench_spectral.py [--quick] [--threads 1] [--device cpu]

One table: the median time of a whole update (forward, binary cross-entropy, backward, Adam) of networks of the chapter
SNoJoE, plain and normalised in each way, PyTorch's own among them.  The ways take turns in random order, batch by
batch, so that a busy machine slows all alike; "adds" is the median of the differences within a turn, over the median of
the plain step.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import ood_lib as ood

CASES = {  # widths, channels, side of the images, batch
    "scenes": ((8, 16, 32, 64), 1, 32, 32),
    "wide": ((32, 64, 128), 1, 32, 64),
    "photographs": ((16, 32, 64, 128), 3, 128, 16),
}


def pytorch(network: nn.Module) -> nn.Module:
    """PyTorch's own normalisation, which is hard and reshaped."""
    for layer in [m for m in network.modules() if isinstance(m, nn.Conv2d)]:
        parametrizations.spectral_norm(layer)
    return network


normalize = ood.spectral_normalize
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda network: network,
    "hard, reshaped": normalize,
    "hard, reshaped, PyTorch's": pytorch,
    "hard, exact": partial(normalize, norm="exact"),
    "bounded, exact, batchnorm": partial(normalize, mode="bounded", norm="exact", batchnorm=4.0),
}


def stepper(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One update of the network."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=images.device.type in ("cpu", "cuda"))

    def step() -> None:
        loss = F.binary_cross_entropy_with_logits(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Of one call, with the work on a GPU waited for."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: str, turns: int, device: torch.device) -> None:
    """The rows of one network."""
    widths, channels, side, batch = CASES[case]
    images, labels = torch.rand(batch, channels, side, side), torch.randint(0, 2, (batch, 10)).float()
    images, labels = images.to(device), labels.to(device)
    steps = {}
    for way, changed in WAYS.items():
        torch.manual_seed(0)
        steps[way] = stepper(changed(ood.ResNet(channels, 10, widths).to(device).train()), images, labels)
    order = random.Random(0)
    taken = [{way: seconds(steps[way]) for way in order.sample(list(steps), len(steps))} for _ in range(turns + 5)][5:]
    plain = statistics.median(turn["plain"] for turn in taken)
    for way in WAYS:
        mine = statistics.median(turn[way] for turn in taken)
        adds = statistics.median(turn[way] - turn["plain"] for turn in taken) / plain
        print(f"{case:14}  {way:26}  {1000 * mine:8.2f}  {100 * adds:7.1f} %")


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch may use")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'network':14}  {'weights':26}  {'ms/step':>8}  {'adds':>9}")
    for case in CASES:
        measure(case, 10 if options.quick else 60, torch.device(options.device))


if __name__ == "__main__":
    main()

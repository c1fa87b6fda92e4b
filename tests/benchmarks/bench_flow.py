"""How fast flows are: one pass of training, and log_prob beside zuko and normflows with the same shape.

    python tests/benchmarks/bench_flow.py [--dim 512] [--rows 50000] [--threads 2]

The first line fits the default flow once over all rows, in batches of 250.  The other lines evaluate log_prob of
2,000 rows: eight couplings with two hidden layers beside those of zuko, and the ten blocks of the paper beside those of
normflows, which the paper used.  normflows is no dependency: without it its line is left out.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import zuko
from torch import nn

from ood_lib.flow import coupling_flow, glow
from ood_lib.flow_training import FlowTraining


def best(action: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest time of a few, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def as_in_the_paper(dim: int, blocks: int = 10) -> nn.Module | None:
    """The flow of the released code, from normflows."""
    try:
        import normflows as nf
    except ImportError:
        return None
    flows: list[nn.Module] = []  # InvertibleAffine is its 1x1 convolution without the two empty axes
    mask = torch.arange(dim) % 2 == 0
    for _ in range(blocks):
        s, t = (nf.nets.MLP([dim, dim, dim], init_zeros=True) for _ in range(2))
        flows += [nf.flows.MaskedAffineFlow(mask.float(), t, s), nf.flows.InvertibleAffine(dim, use_lu=True)]
        flows += [nf.flows.ActNorm(dim)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), flows)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dim, z = args.dim, torch.randn(args.rows, args.dim)

    training = FlowTraining(coupling_flow(dim, whiten=True), z, normalize=True, noise=0.01)
    updates, wall, cpu = args.rows // 250, time.perf_counter(), time.process_time()
    training.run(updates)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"one pass over {args.rows} rows of {dim}, {updates} updates: {wall:.1f} s ({cpu:.1f} s of CPU)", flush=True)

    wide, x = [min(dim, 512)] * 2, z[:2000]
    theirs = zuko.flows.NICE(dim, transforms=8, hidden_features=wide)  # affine couplings, in spite of its name
    contestants: dict[str, Callable[[], Any]] = {}
    ours, rotated, paper = coupling_flow(dim, rotate=False), coupling_flow(dim), glow(dim)
    contestants["ood_lib, 8 couplings"] = lambda: ours.log_prob(x)
    contestants["zuko, 8 couplings"] = lambda: theirs().log_prob(x)
    contestants["ood_lib, 8 couplings and rotations"] = lambda: rotated.log_prob(x)
    contestants["ood_lib, paper's 10 blocks"] = lambda: paper.log_prob(x)
    if (released := as_in_the_paper(dim)) is not None:
        contestants["normflows, paper's 10 blocks"] = lambda: released.log_prob(x)  # type: ignore[operator]
    with torch.no_grad():
        for name, action in contestants.items():
            action()
            print(f"{name:36s} {len(x) / best(action):10.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()

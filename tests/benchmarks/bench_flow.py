"""How fast flows are: one pass of training, and log_prob beside zuko and normflows with the same shape.

    python tests/benchmarks/bench_flow.py [--dim 512] [--rows 50000] [--threads 2]

The first two lines fit the default flow once over all rows, in batches of 250, with its nets in float32 and in
bfloat16 (left out on a processor that is not faster in it).  The others evaluate log_prob of 2,000 rows, in turns:
eight couplings with two hidden layers beside those of zuko, and the ten blocks of the paper beside those of normflows,
which the paper used.  A last column is our speed over theirs.  normflows is no dependency: without it its lines are
left out.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from ood_lib.detectors.flow.flow import coupling_flow, glow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.networks.precision import half_precision

Way = Callable[[], Any]


def one_pass(z: Tensor, autocast: bool) -> None:
    """Print how long the default flow takes for every row once, and where it gets."""
    training = FlowTraining(coupling_flow(z.shape[1], whiten=True), z, normalize=True, noise=0.01, autocast=autocast)
    updates, wall, cpu = len(z) // 250, time.perf_counter(), time.process_time()
    training.run(updates)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    nats, nets = training.log_prob(training.rows[:2000]), "bfloat16" if autocast else "float32"
    print(f"one pass, {updates} updates, {nets}: {wall:.1f} s ({cpu:.1f} s of CPU), log p {nats:.0f} nats", flush=True)


def in_turns(ways: dict[str, Way], rounds: int = 5) -> dict[str, float]:
    """Shortest time of each, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first round warms up
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: min(found[1:]) for name, found in times.items()}


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

    print(f"{args.rows} rows of {dim}, {args.threads} threads")
    for autocast in (False, True) if half_precision("cpu") else (False,):
        one_pass(z, autocast)

    wide, x = [min(dim, 512)] * 2, z[:2000]
    theirs = zuko.flows.NICE(dim, transforms=8, hidden_features=wide)  # affine couplings, in spite of its name
    ours, rotated, paper = coupling_flow(dim, rotate=False), coupling_flow(dim), glow(dim)
    groups: list[dict[str, Way]] = [
        {"ood_lib, 8 couplings": lambda: ours.log_prob(x), "zuko": lambda: theirs().log_prob(x)},
        {"ood_lib, with rotations": lambda: rotated.log_prob(x)},
        {"ood_lib, paper's 10 blocks": lambda: paper.log_prob(x)},
    ]
    if (released := as_in_the_paper(dim)) is not None:
        groups[2]["normflows"] = lambda: released.log_prob(x)  # type: ignore[operator]
    with torch.no_grad():
        for ways in groups:
            times = in_turns(ways)
            first = next(iter(times.values()))
            for name, seconds in times.items():
                print(f"{name:28s} {len(x) / seconds:8.0f} rows/s   {seconds / first:5.2f}", flush=True)


if __name__ == "__main__":
    main()

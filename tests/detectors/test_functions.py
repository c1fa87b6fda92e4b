"""The functions behind the detectors refuse what their classes refuse: values out of range, shapes that broadcast."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ood_lib import energy, gen, gradnorm, joint_energy, label_energies, max_logit, msp, odin, score_norms, sgld
from ood_lib.detectors.classical.fdbd import class_gaps, fdbd
from ood_lib.detectors.classical.kl_matching import kl_matching
from ood_lib.detectors.classical.knn import knn_distance
from ood_lib.detectors.classical.mahalanobis import mahalanobis
from ood_lib.detectors.classical.nnguide import balanced_subset, nnguide
from ood_lib.detectors.classical.odin import odin_images
from ood_lib.detectors.classical.react import percentile_of, react
from ood_lib.detectors.classical.she import she
from ood_lib.detectors.classical.vim import vim
from ood_lib.detectors.compose import soft_extreme
from ood_lib.detectors.heat.langevin import schedule
from ood_lib.detectors.heat.residual import residual_loss
from ood_lib.detectors.joint_energy import sum_logit, sum_prob
from ood_lib.detectors.weiper import gaussian_histogram, histogram, logit_noise, perturb, smooth, symmetric_kl
from ood_lib.training.augment import augmented, cutout, shift
from ood_lib.training.score_matching import denoising_error, dsm_loss
from tests.conftest import normal, seeded

Z, L, BANK = normal(5, 6), normal(5, 4, seed=1), normal(20, 6, seed=2)
IMAGES = torch.rand(5, 1, 4, 4, generator=seeded())
OUT = math.nan, -1.0, 0.0


def network(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :3]


def half(z: torch.Tensor) -> torch.Tensor:
    return z.square().sum(1) / 2


REFUSED: dict[str, Callable[[], object]] = {
    **{f"msp at {t}": lambda t=t: msp(L, t) for t in OUT},
    **{f"energy at {t}": lambda t=t: energy(L, t) for t in OUT},
    **{f"gen to the power {t}": lambda t=t: gen(L, t) for t in OUT},
    **{f"odin at {t}": lambda t=t: odin(network, IMAGES, t) for t in OUT},
    **{f"gen of the largest {t}": lambda t=t: gen(L, top=t) for t in (0, -3, 1.5)},
    **{f"joint energy of {t}": lambda t=t: joint_energy(L, t) for t in (0, -3, 1.5)},
    **{f"a step of {t}": lambda t=t: odin_images(network, IMAGES, epsilon=t) for t in (math.nan, -0.1)},
    **{f"neighbour {k}": lambda k=k: nnguide(Z, L, BANK, k) for k in (0, -1, 21)},
    **{f"nearest {k}": lambda k=k: knn_distance(Z, BANK, k) for k in (0, 21)},
    **{f"a share of {s}": lambda s=s: balanced_subset(torch.arange(5), s, seeded()) for s in (0.0, 1.5)},
    **{f"percentile {p}": lambda p=p: percentile_of(Z, p) for p in (-0.1, 1.1)},
    **{f"integers to {f.__name__}": lambda f=f: f(torch.tensor([[1, 2]])) for f in (
        msp, energy, gen, max_logit, joint_energy, label_energies, sum_prob, sum_logit,
    )},
    **{f"one logit to {f.__name__}": lambda f=f: f(L[:, :1]) for f in (msp, gen)},
    "one logit to odin": lambda: odin_images(lambda x: network(x)[:, :1], IMAGES),
    "one logit to kl_matching": lambda: kl_matching(L[:, :1], torch.ones(1, 1)),
    "one logit to gradnorm": lambda: gradnorm(Z, L[:, :1]),
    "one class to class_gaps": lambda: class_gaps(Z[:1]),
    "one row of logits to gradnorm": lambda: gradnorm(Z, L[:1]),
    "one row of logits to nnguide": lambda: nnguide(Z, L[:1], BANK, 3),
    "one row of logits to fdbd": lambda: fdbd(Z, L[:1], class_gaps(BANK[:4])),
    "gaps of more classes": lambda: fdbd(Z, L, class_gaps(BANK[:5])),
    "one row of residuals to vim": lambda: vim(L, Z[:1], 1.0),
    "one pattern to she": lambda: she(Z, Z[:1]),
    "a pattern of one unit to she": lambda: she(Z, Z[:, :1]),
    "another metric": lambda: she(Z, Z, "manhattan"),
    "templates of one class": lambda: kl_matching(L, torch.ones(4, 1)),
    "a bank of one unit": lambda: knn_distance(Z, BANK[:, :1], 3),
    "means of one unit": lambda: mahalanobis(Z, BANK[:, :1], torch.eye(6).double()),
    "a clip that is NaN": lambda: react(Z, math.nan),
    "beta that is NaN": lambda: soft_extreme(Z, math.nan),
    "steps below 0": lambda: sgld(half, Z, -1, 0.1),
    "a step uphill": lambda: sgld(half, Z, 3, -0.1),
    "a temperature below 0": lambda: sgld(half, Z, 3, 0.1, temperature=-1.0),
    "noise below 0": lambda: sgld(half, Z, 3, 0.1, noise=-1.0),
    "a decay below 0": lambda: schedule(1.0, -1.0, 3),
    "lambda below 0": lambda: residual_loss(Z, Z, -1.0),
    "noise of a negative length": lambda: perturb(BANK, -1.0, 2, seeded()),
    "no heads": lambda: perturb(BANK, 1.0, 0, seeded()),
    "a head of another width": lambda: logit_noise(Z, BANK[:, :1], 1.0),
    "a range upside down": lambda: histogram(Z, 1.0, -1.0, 5),
    "an empty range": lambda: gaussian_histogram(Z, Z.abs(), 1.0, 1.0, 5),
    "no bins": lambda: histogram(Z, -1.0, 1.0, 0),
    "another overflow": lambda: histogram(Z, -1.0, 1.0, 5, "wrap"),
    "no width": lambda: smooth(Z, 0),
    "no floor": lambda: symmetric_kl(Z.abs(), Z.abs(), 0.0),
    "a negative shift": lambda: shift(IMAGES, -1, seeded()),
    "a hole beyond the image": lambda: cutout(IMAGES, 5, seeded()),
    "a negative hole": lambda: augmented(hole=-1),
    "noise for one row": lambda: dsm_loss(lambda x, s: x, Z, torch.tensor([0.1]), Z[:1]),
    "three scales for five rows": lambda: dsm_loss(lambda x, s: x, Z, torch.ones(3), Z),
}  # fmt: skip


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_a_function_refuses_what_would_give_a_wrong_number(call: Callable[[], object]):
    with pytest.raises(ValueError, match=r"given|expected|take them all"):
        call()


class Net(nn.Module):
    """With a layer of any kind in front of three logits, or of a score."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | None = None) -> torch.Tensor:
        return network(self.layer(x)) if sigma is None else -self.layer(x)


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm2d(1)], ids=["dropout", "batch statistics"])
def test_a_network_that_still_trains_is_refused_and_left_as_it_was(layer: nn.Module):
    net = Net(layer).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = (
        lambda: odin(net, IMAGES), lambda: score_norms(net, IMAGES, [1.0, 0.1]),
        lambda: denoising_error(net, IMAGES, [1.0, 0.1]),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="training mode"):
            call()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    for call in calls:
        call()


def test_a_network_that_works_alike_in_both_modes_may_be_in_either():
    net = Net(nn.GroupNorm(1, 1))
    assert torch.equal(odin(net.train(), IMAGES), odin(net.eval(), IMAGES))

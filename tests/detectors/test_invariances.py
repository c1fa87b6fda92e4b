"""What each classical detector sees, and what it does not: one table per change of the network.

Every change is made to the whole network, so that features, head, logits and labels still belong together.  A detector
whose line says `changes` is tested as well: an invariance that holds by accident would be no law.  (WeiPer draws its
perturbations by their place in the head; its own symmetries are in test_weiper.py.)
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from ood_lib import Features, energy, gen, gradnorm, max_logit, msp
from ood_lib.detectors.classical.ash import ash_b, ash_p, ash_s
from ood_lib.detectors.classical.fdbd import class_gaps, fdbd
from ood_lib.detectors.classical.kl_matching import kl_matching
from ood_lib.detectors.classical.knn import knn_distance
from ood_lib.detectors.classical.mahalanobis import mahalanobis
from ood_lib.detectors.classical.nnguide import nnguide
from ood_lib.detectors.classical.react import react
from ood_lib.detectors.classical.rmds import relative_mahalanobis
from ood_lib.detectors.classical.scale import scale
from ood_lib.detectors.classical.she import she
from ood_lib.detectors.classical.vim import vim
from tests.conftest import UNITS, Toy, normal, seeded
from tests.detectors.test_detector import MAKE

PAPERS = (  # those of the chapters have laws of their own
    "WeiPer", "GMMPrior", "LogitPrior", "composed", "ResidualEBM", "HEAT", "FeatureFlow", "MSMA", "JointEnergy", "Sum",
    "LOF",
)  # fmt: skip
ALL = [name for name in MAKE if not name.startswith(PAPERS)]
LOGITS = ["MSP", "MSP hot", "MaxLogit", "Energy", "GEN", "GEN short", "KLMatching", "ODIN"]
SHAPED = ["ReAct", "ReAct msp", "ASH-B", "ASH-S", "ASH-P", "SCALE"]
NEIGHBOURS = ["KNN", "KNN raw", "NNGuide"]
PATTERNS = ["SHE", "SHE euclidean", "SHE cosine"]
GAUSSIAN = ["Mahalanobis", "RMDS"]
MIXTURES = [name for name in ALL if name.startswith("GMM")]

# -- changes of the network --------------------------------------------------------------------------------------------


def rebuilt(toy: Toy, weight: Tensor, bias: Tensor, z: Callable[[Tensor], Tensor], labels=lambda y: y) -> Toy:
    """The toy with another head and other features; logits are computed anew."""
    head = nn.Linear(weight.shape[1], len(weight)).double()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)

    def seen(features: Features) -> Features:
        moved = z(features.penultimate)
        return Features(penultimate=moved, logits=head(moved).detach(), labels=labels(features.labels))

    return Toy(head, *(seen(f) for f in (toy.train, toy.val, toy.test, toy.ood)))


def mapped(toy: Toy, matrix: Tensor) -> Toy:
    """Features in other coordinates, and the head that gives them the same logits."""
    return rebuilt(toy, toy.head.weight @ torch.linalg.inv(matrix), toy.head.bias, lambda z: z @ matrix.T)


MAP = torch.eye(UNITS).double() + 0.3 * normal(UNITS, UNITS, seed=11) / UNITS**0.5
TURN = torch.linalg.qr(normal(UNITS, UNITS, seed=12)).Q
UNITS_ORDER = torch.randperm(UNITS, generator=seeded(13))
CLASS_ORDER = torch.tensor([2, 0, 3, 1])

CHANGES: dict[str, Callable[[Toy], Toy]] = {
    "5 added to every logit": lambda t: rebuilt(t, t.head.weight, t.head.bias + 5, lambda z: z),
    "logits doubled": lambda t: rebuilt(t, 2 * t.head.weight, 2 * t.head.bias, lambda z: z),
    "features tripled": lambda t: mapped(t, 3 * torch.eye(UNITS).double()),
    "features turned": lambda t: mapped(t, TURN),
    "features mapped": lambda t: mapped(t, MAP),
    "features moved": lambda t: rebuilt(t, t.head.weight, t.head.bias - 0.5 * t.head.weight.sum(1), lambda z: z + 0.5),
    "units reordered": lambda t: mapped(t, torch.eye(UNITS).double()[UNITS_ORDER]),
    "classes renamed": lambda t: rebuilt(
        t, t.head.weight[CLASS_ORDER], t.head.bias[CLASS_ORDER], lambda z: z,
        lambda y: torch.where(y < 0, y, CLASS_ORDER.argsort()[y]),
    ),
    "training set seen twice": lambda t: replace(t, train=t.train[torch.arange(len(t.train)).repeat(2)]),
}  # fmt: skip

# -- what becomes of the scores ----------------------------------------------------------------------------------------


def same(scores: Tensor) -> Tensor:
    return scores


def changes(scores: Tensor) -> Tensor | None:
    return None


def plus(constant: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: scores + constant


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: factor * scores


def law(*rules: tuple[list[str], Callable], others: Callable = same) -> dict[str, Callable]:
    table = dict.fromkeys(ALL, others)
    for names, expected in rules:
        table |= dict.fromkeys(names, expected)
    return table


LAWS: dict[str, dict[str, Callable]] = {
    "5 added to every logit": law(
        (["MaxLogit", "Energy", "ReAct", "ASH-B", "ASH-S", "ASH-P", "SCALE"], plus(-5)), (["NNGuide", "ViM"], changes),
        (["ViM narrow"], changes),
    ),
    "logits doubled": law(
        (LOGITS + SHAPED + ["NNGuide", "ViM", "ViM narrow", "GradNorm"], changes), (["MaxLogit"], times(2))
    ),
    "features tripled": law(
        (["KNN raw", "SHE euclidean", "GradNorm"], times(3)), (["SHE"], times(9)), (MIXTURES, plus(UNITS * math.log(3)))
    ),
    "features turned": law(([*SHAPED, "GradNorm", "GMM diagonal", "GMM EM diagonal"], changes)),
    "features mapped": law(
        (SHAPED + NEIGHBOURS + PATTERNS + ["FDBD", "ViM", "ViM narrow", "GradNorm"], changes),
        (["GMM diagonal", "GMM EM diagonal"], changes),
        (["GMM tied", "GMM full", "GMM EM tied", "GMM EM full"], plus(torch.linalg.slogdet(MAP)[1].item())),
    ),
    "features moved": law(
        ([*SHAPED, "KNN", "NNGuide", "SHE", "SHE cosine", "GradNorm"], changes), (["ReAct", "ReAct msp"], same),
        (["ViM", "ViM narrow"], changes),  # its origin is the shortest solution, which does not move along
    ),
    "units reordered": law(),
    "classes renamed": law(),
    "training set seen twice": law((NEIGHBOURS, changes)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_network_does_to_the_scores_what_the_table_says(change: str, name: str, toy: Toy):
    other = CHANGES[change](toy)
    before = MAKE[name](toy.head).fit(toy.train).score(toy.test)
    expected = LAWS[change][name](before)
    try:
        after = MAKE[name](other.head).fit(other.train).score(other.test)
    except ValueError as error:  # ASH-S and SCALE refuse features that became negative
        assert expected is None and "non-negative features" in str(error)
        return
    if expected is None:
        assert (after - before).abs().max() > 1e-3 * before.std()
    else:  # the ridge of a mixture is a share of the mean variance, which a linear map does not keep
        loose = change == "features mapped" and name.startswith("GMM")
        assert torch.allclose(after, expected, rtol=1e-3 if loose else 1e-8, atol=1e-8)


# -- gradients ---------------------------------------------------------------------------------------------------------

Z, L = normal(3, 6, seed=1).abs() + 0.1, 2 * normal(3, 4, seed=2)
BANK, WHITE, MEANS = normal(20, 6, seed=3), normal(6, 6, seed=4), normal(4, 6, seed=5)
FUNCTIONS: dict[str, tuple[Callable, tuple[Tensor, ...]]] = {
    "msp": (msp, (L,)),
    "max_logit": (max_logit, (L,)),
    "energy": (energy, (L,)),
    "gen": (gen, (L,)),
    "kl_matching": (lambda x: kl_matching(x, MEANS[:, :4].softmax(1)), (L,)),
    "gradnorm": (gradnorm, (Z, L)),
    "knn_distance": (lambda z: knn_distance(z, BANK, 3), (Z,)),
    "nnguide": (lambda z, x: nnguide(z, x, BANK, 3), (Z, L)),
    "she": (lambda z: she(z, MEANS[:3]), (Z,)),
    "she euclidean": (lambda z: she(z, MEANS[:3], "euclidean"), (Z,)),
    "she cosine": (lambda z: she(z, MEANS[:3], "cosine"), (Z,)),
    "fdbd": (lambda z, x: fdbd(z, x, class_gaps(MEANS)), (Z, L)),
    "mahalanobis": (lambda z: mahalanobis(z, MEANS, WHITE), (Z,)),
    "relative_mahalanobis": (lambda z: relative_mahalanobis(z, MEANS, WHITE, MEANS[:1], WHITE[:4]), (Z,)),
    "vim": (lambda x, z: vim(x, z, 0.7), (L, Z)),
    "react": (lambda z: react(z, 0.8), (Z,)),
    "ash_p": (lambda z: ash_p(z, 0.5), (Z,)),
    "ash_b": (lambda z: ash_b(z, 0.5), (Z,)),
    "ash_s": (lambda z: ash_s(z, 0.5), (Z,)),
    "scale": (lambda z: scale(z, 0.5), (Z,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_flow_through_the_mathematics(name: str):
    function, inputs = FUNCTIONS[name]
    assert gradcheck(function, tuple(x.clone().requires_grad_() for x in inputs))

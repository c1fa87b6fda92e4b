"""The classical detectors side by side, each by its published recipe, ready to be fitted to one network."""

from torch import nn

from ood_lib.detectors.classical.ash import ASH
from ood_lib.detectors.classical.energy import Energy
from ood_lib.detectors.classical.fdbd import FDBD
from ood_lib.detectors.classical.gen import GEN
from ood_lib.detectors.classical.gmm import GMM
from ood_lib.detectors.classical.kl_matching import KLMatching
from ood_lib.detectors.classical.knn import KNN
from ood_lib.detectors.classical.mahalanobis import Mahalanobis
from ood_lib.detectors.classical.max_logit import MaxLogit
from ood_lib.detectors.classical.msp import MSP
from ood_lib.detectors.classical.nnguide import NNGuide
from ood_lib.detectors.classical.react import ReAct
from ood_lib.detectors.classical.rmds import RMDS
from ood_lib.detectors.classical.scale import SCALE
from ood_lib.detectors.classical.she import SHE
from ood_lib.detectors.classical.vim import ViM
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.head import FrozenHead
from ood_lib.features.features import Features

__all__ = ["FAMILIES", "classical_detectors", "neighbours"]

FAMILIES = {
    "logits": ("MSP", "MaxLogit", "Energy", "GEN", "KLMatching"),
    "gradients": ("ODIN",),
    "reshaped features": ("ReAct", "ASH", "SCALE"),
    "distances": ("KNN", "NNGuide", "SHE", "FDBD"),
    "densities": ("Mahalanobis", "RMDS", "ViM", "GMM"),
}  # what each of the seventeen looks at


def neighbours(train: Features, head: nn.Linear) -> int:
    """Which neighbour `KNN` looks at: the published 50, or as many as a fifth of a class of a small training set.

    Args:
        train: ID training features; only their number counts.
        head: the network's last linear layer, with an output for each class.
    """
    return max(1, min(50, len(train) // head.out_features // 5))


def classical_detectors(head: nn.Linear, train: Features) -> dict[str, Detector]:
    """The detectors of `FAMILIES` with their published settings, unfitted, in that order; larger score = more OOD.

    ODIN is not among them: it scores other features than the rest, those of
    ``extract(ODINNetwork(network), dataset)``. The numbers of neighbours are lowered for a small training set: that of
    KNN by `neighbours`, and NNGuide keeps 1 % of the training features, or as many as make 10 neighbours per class.

    Args:
        head: the network's last linear layer.
        train: ID training features; only their number counts.
    """
    FrozenHead(head)  # refuses what is no head
    per_class = max(1, len(train) // head.out_features)
    fraction = min(1.0, max(0.01, 10 / per_class))
    return {
        "MSP": MSP(),
        "MaxLogit": MaxLogit(),
        "Energy": Energy(),
        "GEN": GEN(),
        "KLMatching": KLMatching(),
        "ReAct": ReAct(head),
        "ASH": ASH(head),
        "SCALE": SCALE(head),
        "KNN": KNN(neighbours(train, head)),
        "NNGuide": NNGuide(k=min(10, per_class), fraction=fraction),
        "SHE": SHE(),
        "FDBD": FDBD(head),
        "Mahalanobis": Mahalanobis(),
        "RMDS": RMDS(),
        "ViM": ViM(head),
        "GMM": GMM(),
    }

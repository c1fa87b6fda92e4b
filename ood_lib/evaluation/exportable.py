"""Network and detector as one module of tensor operations alone, which `torch.export` and ONNX take."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.detectors.classical.knn import KNN
from ood_lib.detectors.classical.mahalanobis import Mahalanobis
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.weiper import NODES, WeiPer, normal_nodes

__all__ = ["Exportable", "exportable"]


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows, (N, K) and (M, K) to (N, M); `torch.cdist` asks how many rows there are."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _knn(detector: Any, z: Tensor) -> Tensor:
    bank, z = detector.bank.double(), z.double()
    z = (F.normalize(z) if detector.normalize else z) - detector.centre
    return _squares(z, bank).topk(detector.k, largest=False).values.amax(1).sqrt().float()


def _mahalanobis(detector: Any, z: Tensor) -> Tensor:
    means, whitening = detector.means.double(), detector.whitening.double()
    centre = means.mean(0)
    return _squares((z.double() - centre) @ whitening.T, (means - centre) @ whitening.T).amin(1).float()


FORMULAS: dict[type, Callable[[Any, Tensor], Tensor]] = {KNN: _knn, Mahalanobis: _mahalanobis}
"""Scores of the penultimate feature without the looks at numbers that the library takes on the way."""


class Exportable(nn.Module):
    """Images (N, C, H, W) in [0, 1] to scores (N,) and logits (N, classes); made by `exportable`."""

    def __init__(self, body: nn.Module, head: nn.Linear, detector: Detector) -> None:
        super().__init__()
        self.body, self.head, self.detector = body, head, detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Larger score = more OOD; nothing is checked here, neither shapes nor NaN."""
        penultimate = self.body(images)
        logits = self.head(penultimate)
        seen: Any = SimpleNamespace(penultimate=penultimate, logits=logits)  # Features counts rows: a fixed number then
        formula = FORMULAS.get(type(self.detector))
        return self.detector._score(seen) if formula is None else formula(self.detector, penultimate), logits


def exportable(network: Any, detector: Detector) -> Exportable:
    """A copy of network and detector, in eval mode, whose forward is tensor operations from end to end.

    `Detector.score` looks at numbers (is one of them NaN?) and `adapt` at what layers did, which no exporter follows.
    Here the head is cut off the network, and what it read goes to head and detector.  The threshold stays outside:
    compare the scores with ``detector.threshold``.

    Args:
        network: of the library, or made by `adapt` or `load_network`.
        detector: fitted; it reads the penultimate feature, logits, or both.

    Raises:
        ValueError: the detector is not fitted, reads style, or is WeiPer with drawn heads; the network has no single
            linear layer as its head.

    Example:
        >>> import torch
        >>> from ood_lib import Energy, ResNet
        >>> module = exportable(ResNet(channels=1, classes=3).eval(), Energy())
        >>> program = torch.export.export(module, (torch.rand(2, 1, 8, 8),))
        >>> program.module()(torch.rand(2, 1, 8, 8))[0].shape
        torch.Size([2])
    """
    detector._require_fit()
    if foreign := [field for field in detector.reads if field not in ("penultimate", "logits")]:
        raise ValueError(f"{type(detector).__name__} reads {foreign}; expected one that reads penultimate or logits")
    whole, head = copy.deepcopy(network).eval(), network.head
    places = [name for name, module in network.named_modules() if module is head]
    if len(places) != 1:
        raise ValueError(
            f"the head of {type(network).__name__} is no single layer of it: export the network by hand, and score its "
            "outputs"
        )
    parent, _, name = places[0].rpartition(".")
    setattr(whole.get_submodule(parent), name, nn.Identity())
    detector = copy.deepcopy(detector)
    if isinstance(detector, WeiPer):  # what follows from it is computed now, not by the program
        check(
            lambda repeats: repeats is None,
            "None, the closed form: a program would draw other heads each time",
            repeats=detector.repeats,
        )
        ends = detector.ends()
        detector.ends = lambda: ends  # type: ignore[method-assign]
        normal_nodes(head.out_features, NODES)
    return Exportable(whole, copy.deepcopy(head), detector).eval().requires_grad_(False)

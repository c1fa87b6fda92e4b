"""What is exported scores as the library does, for any number of images."""

import pytest
import torch
from torch import nn

import ood_lib as ood

IMAGES = torch.rand(120, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def networks():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = nn.Sequential(body, nn.Dropout(0.5), nn.Linear(24, 4))
    return {
        "library": ood.ResNet(3, 4, widths=(8, 16)).eval(),
        "adapted": ood.adapt(model, normalize=ood.Normalize([0.5] * 3, [0.2] * 3)).eval(),
    }


def fitted(network, detector):
    seen = ood.extract(network, ood.ImageArray(IMAGES, torch.arange(120) % 4), progress=False)
    return detector.fit(seen), seen


@pytest.mark.parametrize("name", ["library", "adapted"])
@pytest.mark.parametrize("detector", [ood.Energy(), ood.KNN(k=3), ood.Mahalanobis()], ids=lambda d: type(d).__name__)
def test_scores_and_logits_are_those_of_the_library(name, detector):
    network = networks()[name]
    detector, seen = fitted(network, detector)
    before = {key: x.clone() for key, x in network.state_dict().items()}
    module = ood.exportable(network, detector)
    scores, logits = module(IMAGES)
    assert torch.allclose(scores, detector.score(seen), rtol=1e-4, atol=1e-5)
    assert torch.allclose(logits, seen.logits, atol=1e-5)
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items()), "the network stays as it was"
    assert network.head.out_features == 4


TENSOR_CODE = {
    "Energy": lambda head: ood.Energy(),
    "ReAct": ood.ReAct,
    "ASH": ood.ASH,
    "SCALE": ood.SCALE,
    "WeiPer": lambda head: ood.WeiPer(head, repeats=None),
    "flow": lambda head: ood.FeatureFlow(updates=2),
}


@pytest.mark.parametrize("make", TENSOR_CODE.values(), ids=TENSOR_CODE)
def test_an_exported_program_takes_any_number_of_images(make):
    network = networks()["library"]
    detector, seen = fitted(network, make(network.head))
    module = ood.exportable(network, detector)
    whole = torch.export.export(module, (IMAGES[:3],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for count in (1, 2, 50):
        assert torch.allclose(whole(IMAGES[:count])[0], detector.score(seen[:count]), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_is_named():
    network = networks()["library"]
    with pytest.raises(ood.NotFittedError):
        ood.exportable(network, ood.KNN())
    detector, _ = fitted(network, ood.GMMPrior("style"))
    with pytest.raises(ValueError, match=r"reads \['style'\]"):
        ood.exportable(network, detector)
    detector, _ = fitted(network, ood.WeiPer(network.head, repeats=5))
    with pytest.raises(ValueError, match="repeats=5 was given; expected None"):
        ood.exportable(network, detector)


def test_one_picture_scores_as_it_does_in_a_batch():
    network = networks()["library"]
    for detector in (ood.Energy(), ood.KNN(k=3), ood.Mahalanobis(), ood.ViM(head=network.head)):
        fitted_one, seen = fitted(network, detector)
        alone = [ood.extract(network, ood.ImageArray(IMAGES[i : i + 1]), progress=False) for i in range(5)]
        single = torch.cat([fitted_one.score(one) for one in alone])
        assert torch.allclose(single, fitted_one.score(seen[:5]), rtol=1e-4, atol=1e-4)


def test_what_was_learnt_in_pieces_is_exported():
    network = networks()["library"]
    whole, seen = fitted(network, ood.Mahalanobis())
    pieces = ood.Mahalanobis().partial_fit(seen[:50]).partial_fit(seen[50:])
    assert torch.allclose(ood.exportable(network, pieces)(IMAGES)[0], whole.score(seen), rtol=1e-4, atol=1e-5)

"""Laws of the toys: the points lie where the docstring says."""

import torch

from ood_lib import GMM, Features
from ood_lib.data.toys import ring_and_arcs


def test_the_ring_and_the_arcs_have_their_radius_and_their_side():
    toy = ring_and_arcs(jitter=0.0)
    centres = torch.tensor([[-3.5, 0.0], [3.0, 0.8], [3.0, -0.8]])
    away = toy.points - centres[toy.labels]
    assert torch.allclose(away.norm(dim=1), torch.full((2100,), 2.0), atol=1e-5)
    assert (away[toy.labels == 1, 1] >= -1e-6).all() and (away[toy.labels == 2, 1] <= 1e-6).all()
    assert away[toy.labels == 0].mean(0).abs().max() < 0.2 and toy.labels.bincount().tolist() == [700] * 3


def test_jitter_spreads_and_far_points_are_far():
    toy = ring_and_arcs()
    radius = (toy.points - torch.tensor([-3.5, 0.0]))[toy.labels == 0].norm(dim=1)
    assert abs(radius.std() - 0.15) < 0.02 and toy.far.shape == (2000, 2)
    assert torch.cdist(toy.far, toy.points).amin() > 1.5


def test_a_gaussian_per_class_fills_the_holes():
    toy = ring_and_arcs()
    drawn = GMM().fit(Features(toy.points, labels=toy.labels)).sample(4000, torch.Generator().manual_seed(0)).float()
    blind = torch.cdist(drawn, toy.points).amin(1) > 0.5
    assert 0.35 < blind.float().mean() < 0.5


def test_a_seed_repeats_the_toy():
    a, b, c = (ring_and_arcs(per_class=5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a.points, c.points)

"""Laws of the chains: what they draw from, what they keep, and how they stop."""

import pytest
import torch

from ood_lib import DivergedError, sgld
from ood_lib.detectors.heat.langevin import schedule
from tests.conftest import normal, seeded


def bowl(z: torch.Tensor) -> torch.Tensor:
    return z.square().sum(1) / 2


def test_the_schedule_falls_quadratically_from_its_first_value():
    assert schedule(2.0, 1.0, 4) == [2.0] * 4
    values = schedule(1.0, 0.1, 40)
    assert values[0] == 1 and values[-1] == pytest.approx(0.1 + 0.9 / 40**2)
    assert schedule(1.0, 0.1, 0) == []


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_points_in_a_bowl_spread_as_the_temperature_says(temperature: float):
    z = sgld(bowl, torch.zeros(4000, 2), 150, 0.1, temperature=temperature, generator=seeded())
    exact = temperature / (1 - 0.1 / 2)  # variance of the linear recursion; its excess over T is the error of Euler
    assert torch.allclose(z.var(0), torch.tensor(exact), rtol=0.06)


def test_a_free_noise_is_a_temperature_in_disguise():
    free = sgld(bowl, torch.zeros(50, 2), 10, 0.1, noise=0.3, generator=seeded())
    told = sgld(bowl, torch.zeros(50, 2), 10, 0.1, temperature=0.3**2 / 0.2, generator=seeded())
    assert torch.allclose(free, told)


def test_without_noise_it_is_gradient_descent():
    start = normal(20, 3)
    assert torch.allclose(sgld(bowl, start, 5, 0.1, temperature=0.0), 0.9**5 * start)


def test_a_metric_changes_the_walk_and_not_the_density():
    root = torch.tensor([[3.0, 0.0], [1.0, 0.1]])
    precision = torch.linalg.inv(root @ root.T)
    z = sgld(lambda z: (z @ precision * z).sum(1) / 2, torch.zeros(4000, 2), 120, 0.1, metric=root, generator=seeded())
    assert torch.allclose(z.T.cov() * (1 - 0.05), root @ root.T, atol=0.5)
    with pytest.raises(DivergedError):  # of the plain walk, the narrow direction allows no such step
        sgld(lambda z: (z @ precision * z).sum(1) / 2, torch.ones(4, 2), 500, 0.1, generator=seeded())


def test_the_sphere_is_kept_and_so_are_the_signs():
    def project(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(z.relu(), dim=1)

    z = sgld(bowl, normal(30, 8), 7, 0.01, project=project, generator=seeded())
    assert torch.allclose(z.norm(dim=1), torch.ones(30).double()) and (z >= 0).all()
    assert torch.equal(sgld(bowl, normal(30, 8), 0, 0.01, project=project), project(normal(30, 8)))


def test_the_seed_decides_and_the_start_stays_as_it_is():
    start = normal(10, 2)
    before = start.clone()
    a, b, c = (sgld(bowl, start, 5, 0.1, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(start, before)
    single = sgld(bowl, start.float(), 5, 0.1, generator=seeded())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), a, atol=1e-5)


def test_the_callback_sees_every_state():
    seen = {}
    end = sgld(bowl, normal(4, 2), 3, 0.1, generator=seeded(), callback=lambda t, z: seen.update({t: z.clone()}))
    assert sorted(seen) == [0, 1, 2, 3]
    assert torch.equal(seen[0], normal(4, 2)) and torch.equal(seen[3], end)


def test_a_chain_works_where_gradients_are_off_and_leaves_none():
    with torch.no_grad():
        assert not sgld(bowl, normal(4, 2), 3, 0.1).requires_grad


def test_a_chain_that_explodes_says_at_which_step():
    with pytest.raises(DivergedError, match=r"inf at Langevin step \d+: take a smaller step_size"):
        sgld(bowl, torch.ones(2, 2), 300, 1e3)

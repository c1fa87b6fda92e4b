"""Laws of the residual network and its loss."""

import math

import pytest
import torch

from ood_lib.detectors.heat.residual import Diagnostics, ResidualNet, residual_loss
from tests.conftest import normal, seeded

SHRINKING = [1024, *(w for i in range(6) for w in (1024 >> i, 1024 >> i, 512 >> i))]  # the paper's for ImageNet


@pytest.mark.parametrize(
    ("width", "hidden", "shared", "parameters"),
    [(512, [1024] * 5, False, 4_724_737), (512, [1024] * 5, True, 1_575_937), (2048, SHRINKING, False, 5_597_633)],
)
def test_the_papers_networks_have_as_many_parameters_as_the_papers(width, hidden, shared, parameters):
    assert sum(p.numel() for p in ResidualNet(width, hidden, shared).parameters()) == parameters


def test_it_begins_as_zero_and_the_seed_decides_the_rest():
    before = torch.random.get_rng_state()
    nets = [ResidualNet(3, (8, 8), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all((net(normal(5, 3)) == 0).all() for net in nets)
    a, b, c = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.abs().max() <= 3**-0.5


def test_it_computes_in_the_precision_of_its_input():
    net = ResidualNet(3, (8,), bound=2.0)
    torch.nn.init.uniform_(net.out.weight, generator=seeded())
    z = normal(5, 3)
    h = torch.nn.functional.leaky_relu(z @ net.hidden[0].weight.double().T + net.hidden[0].bias.double(), 0.2)
    exact = 2.0 * (h @ net.out.weight.double().T + net.out.bias.double())[:, 0]
    assert torch.allclose(net(z), exact, rtol=1e-12)
    assert net(z.float()).dtype == torch.float32 and torch.allclose(net(z.float()).double(), exact, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_that_is_written_out_is_that_of_autograd(shared: bool):
    net = ResidualNet(3, (8, 8, 8), shared, bound=2.0)
    for value in (net.out.weight, net.out.bias, net.shift):
        torch.nn.init.uniform_(value, generator=seeded())
    net.scale.fill_(3.0)
    z = normal(50, 3).requires_grad_()
    value, gradient = net.with_gradient(z.detach())
    assert torch.equal(value, net(z))
    assert torch.allclose(gradient, torch.autograd.grad(net(z).sum(), z)[0], rtol=1e-9)


def test_layers_need_units_and_the_same_width_to_be_shared():
    for hidden, shared in (((8, 4), True), ((), False), ((8, 0), False)):
        with pytest.raises(ValueError, match="expected widths"):
            ResidualNet(3, hidden, shared)


@pytest.mark.parametrize("lam", [0.05, 0.25, 10.0])
def test_the_loss_is_least_at_the_hyperbolic_tangent_of_the_log_ratio(lam: float):
    p, q = torch.tensor([2, 4, 6, 8]), torch.tensor([14, 2, 3, 1])  # samples in each of four places
    law = -torch.tanh((p / q).double().log() / 2) / (2 * lam)

    def loss(e: torch.Tensor) -> torch.Tensor:
        return residual_loss(e.repeat_interleave(p), e.repeat_interleave(q), lam)

    best = loss(law)
    gradient = torch.autograd.functional.jacobian(loss, law)
    assert gradient.abs().max() < 1e-6  # the ratio was taken in single precision
    assert all(loss(law + 0.1 * normal(4, seed=s)) > best for s in range(10))


def test_a_trained_network_follows_the_law():
    lam = 5.0
    draw, net = seeded(), ResidualNet(2, (64, 64), bound=1 / (2 * lam))
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(400):
        data, negatives = (s * torch.randn(512, 2, generator=draw) for s in (1.0, 2.0))
        loss = residual_loss(net(data), net(negatives), lam)
        adam.zero_grad()
        loss.backward()
        adam.step()
    radius = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    circle = torch.stack([torch.linspace(0, 2 * math.pi, 17).cos(), torch.linspace(0, 2 * math.pi, 17).sin()], 1)
    found = 2 * lam * torch.stack([net(r * circle).mean() for r in radius])
    log_ratio = math.log(4) - radius**2 / 2 * (1 - 1 / 4)  # N(0, I) against N(0, 4 I)
    assert torch.allclose(found, -torch.tanh(log_ratio / 2), atol=0.12)


def test_the_gap_is_what_the_network_still_tells_apart():
    assert Diagnostics(data=[-1.0, 0.0], negatives=[2.0, 0.0]).gap == [3.0, 0.0]

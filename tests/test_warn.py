"""A warning points at the line that called the library, through its own frames and those of torch."""

import pytest
import torch
from torch import nn

import ood_lib as ood


@pytest.mark.parametrize(
    "call",
    [
        lambda: ood.FeatureFlow(updates=0, normalize=False).fit(
            ood.Features(torch.eye(40, 4).roll(1) * torch.tensor([0, 1, 1, 1]))
        ),
        lambda: ood.lipschitz_report(nn.Sequential(nn.PReLU(), nn.Conv2d(1, 1, 3)), torch.rand(1, 1, 8, 8)),
    ],
    ids=["fit, behind two decorators of torch", "lipschitz_report, from a helper of a helper"],
)
def test_the_line_is_the_callers(call):
    with pytest.warns(UserWarning) as seen:
        call()
    assert {one.filename for one in seen} == {__file__}

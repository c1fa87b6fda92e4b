"""Any torchvision or timm classifier answers `represent` like the networks of the library."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ood_lib.data.benchmark import Benchmark
from ood_lib.networks.network import Representation, style_of
from ood_lib.networks.resnet import ResNet

__all__ = ["Adapted", "adapt", "network_for"]


def network_for(bench: Benchmark, widths: Sequence[int] = (32, 64), blocks: int = 1) -> ResNet:
    """The network of a benchmark: a small `ResNet`, to be trained on its images.

    Args:
        bench: from `load_benchmark`.
        widths, blocks: of the `ResNet`.

    Example:
        >>> from ood_lib.data.benchmark import load_benchmark
        >>> network_for(load_benchmark("digits")).head
        Linear(in_features=64, out_features=7, bias=True)
    """
    return ResNet(bench.image_shape[0], len(bench.classes), widths, blocks, bench.normalize)


class Adapted(nn.Module):
    """A foreign classifier that answers `represent`; made by `adapt`."""

    head: nn.Linear

    def __init__(self, model: nn.Module, head: nn.Linear, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize or nn.Identity()
        object.__setattr__(self, "head", head)  # a second name, not a second entry in state_dict

    def represent(self, images: Tensor) -> Representation:
        """As `ResNet.represent`; raises ValueError when the head is not the layer that makes the logits."""
        seen: dict[str, Tensor] = {}
        handles = [
            self.head.register_forward_hook(lambda _, i, o: seen.update(penultimate=i[0], logits=o)),
            *(m.register_forward_hook(_remember_map(seen)) for m in self.model.modules()),
        ]
        try:
            logits = self.model(self.normalize(images))
        finally:
            for handle in handles:
                handle.remove()
        self._check(seen, logits)
        maps = seen.get("map")
        style = style_of(maps) if maps is not None and maps.shape[1] == self.head.in_features else None
        return Representation(seen["penultimate"], logits, style)

    def _check(self, seen: dict[str, Tensor], logits: object) -> None:
        made = seen.get("logits")
        if not isinstance(logits, Tensor) or made is None or not _same(made, logits):
            raise ValueError(
                f"the output of {type(self.model).__name__} is not the output of {self.head}: "
                "name the last linear layer with adapt(model, head=...), and let the model return logits only"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.model(self.normalize(images))


def _remember_map(seen: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            seen["map"] = output
        if isinstance(output, Tensor) and output.ndim == 3:  # (N, tokens, K): a transformer goes on without a map
            seen.pop("map", None)

    return hook


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, equal_nan=True)


def adapt(model: nn.Module, head: str | None = None, normalize: nn.Module | None = None) -> Adapted:
    """Make any classifier that ends in a linear layer answer `represent`.

    Args:
        model: images -> logits (N, C), for instance from ``torchvision.models`` or ``timm.create_model``.
        head: dotted name of the linear layer that makes the logits; found by itself when it is the last one.
        normalize: first layer for a model that expects standardised images.

    Raises:
        ValueError: no linear layer, or ``head`` is not one.

    Example:
        >>> tiny = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> adapt(tiny).represent(torch.zeros(5, 1, 2, 2)).penultimate.shape
        torch.Size([5, 3])
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear layer to serve as the head")
    if head is not None and head not in linear:
        raise ValueError(f"head={head!r} is not a linear layer; the linear layers are {list(linear)}")
    return Adapted(model, linear[head or list(linear)[-1]], normalize)

"""The last linear layer of a network, frozen: many methods read a feature through it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.detectors.shapes import check_width

__all__ = ["FrozenHead"]


class FrozenHead(nn.Module):
    """The network's last linear layer, copied into buffers: it is saved with a detector, moves with it, never learns.

    Wherever the network lies, the copy starts where detectors do: on the default device, which is the CPU.

    Raises:
        ValueError: ``head`` is no linear layer, or has weights that are not finite.

    Example:
        >>> import torch
        >>> FrozenHead(nn.Linear(8, 3))(torch.zeros(5, 8, dtype=torch.float64)).shape  # in the precision of its input
        torch.Size([5, 3])
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        tensors = [*head.parameters()] if isinstance(head, nn.Linear) else []
        if not tensors or any(p.is_meta or not p.isfinite().all() for p in tensors):
            given = type(head).__name__
            raise ValueError(f"a {given} was given as head; expected the last nn.Linear, with finite weights")
        where = torch.get_default_device()
        weight = head.weight.detach().clone(memory_format=torch.contiguous_format).to(where)
        bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().clone().to(where)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, z: Tensor) -> Tensor:
        """Logits, (N, K) to (N, C)."""
        self.check_width(z)
        return F.linear(z, self.weight.to(z.dtype), self.bias.to(z.dtype))

    def check_width(self, z: Tensor) -> None:
        """Raise ValueError when features (N, K) are not what the head reads."""
        check_width(z, self.weight.shape[1], "the head reads")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):  # in the precision that was saved: another one would round them
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).to(saved.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Widths of input and output."""
        return "{1} features, {0} classes".format(*self.weight.shape)

"""How images and weights lie in memory: with the channel last where that is asked for, and safe."""

import torch
from torch import nn

__all__ = ["memory_format"]


def memory_format(network: nn.Module, channels_last: bool, where: torch.device) -> torch.memory_format:
    """The channel as the last index, which many convolutions are faster with, or the usual layout.

    On a CPU, one kind of convolution writes past its memory on the backward pass: of size 1, with a stride, and with
    fewer input channels than a vector register holds numbers.  Then training crashes, hangs, or learns from wrong
    gradients (oneDNN, issue 6035; PyTorch 2.14 on AVX2).  A network with such a layer keeps the usual layout.

    Args:
        network: of any kind.
        channels_last: whether that is asked for.
        where: the device it is trained on.

    Example:
        >>> shortcut, cpu = nn.Conv2d(4, 8, kernel_size=1, stride=2), torch.device("cpu")
        >>> memory_format(shortcut, True, cpu), memory_format(shortcut, True, torch.device("cuda"))
        (torch.contiguous_format, torch.channels_last)
    """
    register = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16  # of single precision
    unsafe = where.type == "cpu" and any(
        isinstance(m, nn.Conv2d) and m.in_channels // m.groups < register and max(m.kernel_size) == 1 < max(m.stride)
        for m in network.modules()
    )
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format

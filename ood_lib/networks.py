"""Networks that show their inside: image -> last feature map -> penultimate feature -> logits.

A detector reads what a frozen classifier computes on its way to a decision.  Every network of the library
therefore answers ``represent(images)`` with all of it at once, and keeps its last linear layer under ``head``.
`ResNet` is a classifier small enough to read; `adapt` makes any torchvision or timm classifier answer likewise.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ood_lib.data import Benchmark

__all__ = [
    "Adapted", "Block", "Network", "PooledResNet", "Recorded", "Representation", "ResNet", "adapt",
    "autocast_dtype", "half_precision", "network_for", "pick_device",
]  # fmt: skip

CLEARLY = 1.2  # times as fast as float32 that a CPU must be in half precision, so that chance does not decide


class Representation(NamedTuple):
    """What a network computes for a batch of N images."""

    penultimate: Tensor  # (N, K), the input of the head
    logits: Tensor  # (N, C)
    style: Tensor | None  # (N, K') standard deviation of the last feature map over space, None without a map


class Network(Protocol):
    """A classifier whose penultimate feature and linear head can be read."""

    head: nn.Linear

    def represent(self, images: Tensor) -> Representation:
        """Images (N, channels, H, W) in [0, 1] to their representation."""
        ...


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device asked for; ``"auto"`` takes CUDA, then Apple's MPS, then the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def half_precision(device: str | torch.device = "auto") -> torch.dtype | None:
    """The half precision in which a device computes faster than in float32: bfloat16, or None where there is none.

    A CUDA device counts when it has bfloat16 in hardware.  A CPU without it emulates it, several times as slowly as
    float32, so a CPU is timed: one layer in both, once per process.  The times go to the logger ``ood_lib`` (INFO).
    """
    return _half_precision(pick_device(device))


@lru_cache
def _half_precision(device: torch.device) -> torch.dtype | None:
    faster, why = False, "only CUDA devices and CPUs are looked at"
    if device.type == "cuda":
        with torch.cuda.device(device):
            faster = torch.cuda.is_bf16_supported(including_emulation=False)
        why = f"the device has {'it' if faster else 'none'} in hardware"
    elif device.type == "cpu":
        single, half = _times(torch.bfloat16)
        faster, why = single > CLEARLY * half, f"a layer takes {1e3 * half:.2f} ms in it, {1e3 * single:.2f} in float32"
    logging.getLogger("ood_lib").info("bfloat16 is %s on %s: %s", "used" if faster else "not used", device, why)
    return torch.bfloat16 if faster else None


@lru_cache
def _times(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a linear layer on the CPU in float32 and in another precision: the shortest of several, in turns."""
    single, half = zip(*((_seconds(torch.float32), _seconds(dtype)) for _ in range(8)))
    return min(single), min(half)


def _seconds(dtype: torch.dtype) -> float:
    x, weight = (torch.ones(n, 512, device="cpu", dtype=torch.float32) for n in (256, 512))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        start = time.perf_counter()
        F.linear(x, weight)
        return time.perf_counter() - start


def autocast_dtype(
    autocast: bool | torch.dtype | Literal["auto"] | None, device: str | torch.device
) -> torch.dtype | None:
    """The precision that an argument ``autocast`` stands for on a device; None = as the weights are.

    Warns of a half precision in which the CPU is slower than in float32, because it emulates it.

    Args:
        autocast: ``"auto"`` for `half_precision`; a precision; True for bfloat16; False or None for none.
        device: where to compute.

    Raises:
        ValueError: it is none of these.
    """
    if autocast == "auto":
        return half_precision(device)
    chosen = torch.bfloat16 if autocast is True else autocast or None
    if chosen is not None and not isinstance(chosen, torch.dtype):
        raise ValueError(f'autocast={autocast!r} was given; expected "auto", None, or a precision, as torch.bfloat16')
    if pick_device(device).type == "cpu" and chosen in (torch.bfloat16, torch.float16):
        single, half = _times(chosen)
        if half > single:
            warnings.warn(
                f"this processor is slow in {chosen}: a layer takes {half / single:.1f} times as long as in float32; "
                'autocast="auto" takes half precision only where it is faster',
                stacklevel=3,
            )
    return chosen


class Block(nn.Module):
    """Two 3x3 convolutions added to a shortcut (He et al., CVPR 2016, Fig. 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)
        """Residual sum, rectified."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """A small residual classifier; the representation it learns is what every chapter looks at.

    Args:
        channels: image channels (1 grey, 3 colour).
        classes: C, number of known classes.
        widths: feature maps per stage; each stage after the first halves the resolution, the last one is K.
        blocks: residual blocks per stage, or those of each stage.
        normalize: first layer, standardises images that arrive in [0, 1] (``Benchmark.normalize``).

    The penultimate feature is the spatial mean of the last rectified map, so it is non-negative.

    Raises:
        ValueError: not as many ``blocks`` as ``widths``.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        blocks = [blocks] * len(widths) if isinstance(blocks, int) else blocks
        if len(blocks) != len(widths):
            raise ValueError(f"blocks {blocks} for the stages {widths}: give one number for all, or one per stage")
        self.normalize = normalize or nn.Identity()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        ins = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential(
            *(self._stage(i, o, b, 1 + (n > 0)) for n, (i, o, b) in enumerate(zip(ins, widths, blocks)))
        )
        self.head = nn.Linear(widths[-1], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def represent(self, images: Tensor) -> Representation:
        """Images (N, channels, H, W) in [0, 1] to penultimate (N, K), logits (N, C) and style (N, K)."""
        maps = self.stages(self.stem(self.normalize(images)))  # (N, K, h, w)
        penultimate = maps.mean((2, 3))
        return Representation(penultimate, self.head(penultimate), _style(maps))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.represent(images).logits


class PooledResNet(ResNet):
    """A residual classifier that learns more in an hour: one convolution and a pooling, then the residual blocks.

    With widths (64, 128, 256, 512) and blocks (0, 1, 0, 1) it is the ResNet-9 of Page, How to train your ResNet, 2018,
    but for the last pooling, which here is the spatial mean, as in `ResNet`.
    """

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        halved = [conv, nn.MaxPool2d(stride), nn.BatchNorm2d(outputs), nn.ReLU()] if stride > 1 else []
        return nn.Sequential(*halved, *(Block(outputs, outputs, 1) for _ in range(blocks)))


class Recorded(nn.Module):
    """The trained network behind a bank, frozen: shown what it left of an image, it gives that back.

    Args:
        head: its last layer; the picture holds K numbers of the penultimate feature, then the style if there is one
            (`ood_lib.records`).

    Example:
        >>> Recorded(nn.Linear(6, 2)).represent(torch.rand(5, 1, 3, 4)).style.shape
        torch.Size([5, 6])
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def represent(self, images: Tensor) -> Representation:
        """Records (N, 1, rows, columns) to what `ResNet.represent` gave for the images."""
        penultimate, style = images.flatten(1).tensor_split([self.head.in_features], 1)
        return Representation(penultimate, self.head(penultimate), style if style.shape[1] else None)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.represent(images).logits


def network_for(bench: "Benchmark", widths: Sequence[int] = (32, 64), blocks: int = 1) -> ResNet | Recorded:
    """The network of a benchmark: a `ResNet` to be trained on its images; for a bank the one that it was made with.

    Args:
        bench: from `load_benchmark`.
        widths, blocks: of the `ResNet`.

    Example:
        >>> from ood_lib.data import load_benchmark
        >>> network_for(load_benchmark("digits")).head
        Linear(in_features=64, out_features=7, bias=True)
    """
    if bench.head is not None:
        return Recorded(bench.head)
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
        style = _style(maps) if maps is not None and maps.shape[1] == self.head.in_features else None
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


def _style(maps: Tensor) -> Tensor | None:
    """Standard deviation over space, (N, K, h, w) -> (N, K); None where there is no space left."""
    return maps.std((2, 3), correction=0) if maps.shape[2] * maps.shape[3] > 1 else None


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

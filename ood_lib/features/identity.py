"""By what a network is known again: its weights, its plain attributes and functions, and what it makes of an image.

Weights alone do not say what a network computes: ``torch.relu`` in the place of ``torch.tanh``, another noise scale, or
another line in ``forward`` changes none of them.
"""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ood_lib.networks.adapt import as_network
from ood_lib.networks.modes import in_eval
from ood_lib.tensors import raw_bytes

__all__ = ["network_hash"]

ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
LARGE = 2**30  # parameters of which no copy in double precision is made
FINE, COARSE = 1e-6, 1e-3  # steps of what is compared: of a copy in double precision, and of the network as it is
DIRECTIONS = 8
OWN = frozenset(vars(nn.Module())) | {"training"}  # what each module has


def network_hash(network: Any, shape: Sequence[int] = ()) -> str:
    """sha256 of what a network is: as it is printed, parameters and buffers, plain attributes, and an output.

    The output is that of one image of noise. It is computed on the CPU by a copy in double precision, so that it is
    the same on every device. Where that is impossible, the network itself computes it, to three digits.

    Args:
        network: answers ``represent``, or goes through `adapt`.
        shape: of an image (C, H, W); none = without an output.

    Raises:
        ValueError: the network is printed with an address, which says nothing of what is there.
    """
    seeing = as_network(network)
    text = str(seeing)
    if found := ADDRESS.search(text):
        raise ValueError(
            f"{type(network).__name__} is printed with {found[0]}, an address: what was computed with it could not be "
            "told from what another function made; put the function into an nn.Module (nn.ReLU() for torch.relu) or "
            "define extra_repr, or leave out cache= and out="
        )
    digest = hashlib.sha256(text.encode())
    for name, value in seeing.state_dict().items():
        digest.update(name.encode())
        digest.update(raw_bytes(value))
    digest.update((_seen(seeing, shape) if shape else repr(_attributes(seeing))).encode())
    return digest.hexdigest()


# -- what it makes of an image ----------------------------------------------------------------------------------------


def _seen(network: nn.Module, shape: Sequence[int]) -> str:
    """The output, rounded, and the attributes that a run leaves as they are: a counter says nothing of the network."""
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    if (twin := _copied(network)) is not None:
        try:
            return _look(twin, image, FINE)
        except Exception:  # some models hold numbers in single precision: each fails in its own way
            pass
    weights = (p for p in network.parameters() if p.is_floating_point())
    like = next(weights, torch.empty(0))
    return _look(network, image.to(like.device, like.dtype), COARSE)


def _copied(network: nn.Module) -> nn.Module | None:
    """A copy on the CPU in double precision; None where there can be none."""
    if sum(p.numel() for p in network.parameters()) > LARGE:
        return None
    try:
        return copy.deepcopy(network).cpu().double()
    except Exception:  # locks, handles, weights that were computed: each fails in its own way
        return None


@torch.no_grad()
def _look(network: Any, image: Tensor, step: float) -> str:
    before = _attributes(network)
    with in_eval(network), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for a network that draws
        made = network.represent(image)._asdict()
    after = _attributes(network)
    steady = sorted(item for item in before.items() if after.get(item[0]) == item[1])
    return repr([_rounded(name, value, step) for name, value in made.items() if value is not None] + steady)


def _rounded(name: str, value: Tensor, step: float) -> tuple[Any, ...]:
    """Length and direction of a tensor in steps that rounding errors do not reach."""
    flat = value.detach().double().cpu().flatten()
    norm = flat.norm()
    if not norm.isfinite() or norm == 0:
        return name, tuple(value.shape), str(norm.item())
    turns = 0.7 * torch.arange(1, DIRECTIONS + 1, dtype=torch.float64)[:, None]
    shares = (
        torch.cos(turns * torch.arange(len(flat), dtype=torch.float64)) @ flat
    ) / norm  # sums with unequal weights: an exchange of two entries shows
    return name, tuple(value.shape), round(norm.log().item() / step), (shares / step).round().long().tolist()


# -- what it was told -------------------------------------------------------------------------------------------------


def _attributes(network: nn.Module) -> dict[str, str]:
    """Plain attributes and functions of all modules, but for private ones."""
    found = {}
    for place, module in network.named_modules():
        for name, value in vars(module).items():
            if name not in OWN and not name.startswith("_") and (text := _plain(value)) is not None:
                found[f"{place}.{name}"] = text
    return found


def _plain(value: Any, depth: int = 4) -> str | None:
    """A value in words that say all of it; None for what has no such words."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, Tensor | np.ndarray):
        array = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        return f"{array.dtype}{tuple(array.shape)}{hashlib.sha256(raw_bytes(array)).hexdigest()}"
    return _composed(value, partial(_plain, depth=depth - 1)) if depth else None


def _composed(value: Any, plain: Callable[[Any], str | None]) -> str | None:
    """A value that holds others."""
    if isinstance(value, partial):
        return f"partial{[plain(part) for part in (value.func, value.args, value.keywords)]}"
    if isinstance(value, FunctionType):
        held = [plain(cell.cell_contents) for cell in value.__closure__ or ()]
        defaults = plain(value.__defaults__), plain(value.__kwdefaults__)
        return f"{value.__module__}.{value.__qualname__}{_code(value.__code__)}{held}{defaults}"
    if isinstance(value, BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return _joined(type(value).__name__, [plain(part) for part in value])
    if isinstance(value, set | frozenset):
        return _joined("set", sorted(str(plain(part)) for part in value))
    if isinstance(value, Mapping):
        return _joined("mapping", [plain(part) for pair in value.items() for part in pair])
    return None


def _joined(kind: str, parts: Sequence[str | None]) -> str | None:
    return None if None in parts else f"{kind}{parts}"


def _code(code: CodeType) -> str:
    """What a function does, whatever it is called and wherever it stands."""
    inner = [_code(x) if isinstance(x, CodeType) else repr(x) for x in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, inner)).encode()).hexdigest()

"""The weights in a file, whatever wraps them, and how they go into a network; no code of the file runs."""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ood_lib.tensors import single
from ood_lib.warn import warn

__all__ = ["below_prefix", "fill", "outputs", "read_weights"]

WRAPPED = ("state_dict", "model_state_dict", "model", "net", "network", "module", "state_dict_ema", "model_ema")
"""Where checkpoints keep the weights beside other things, the plain ones before their moving averages."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, taken out of a checkpoint that wraps it; no code of the file runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state dict, or whole objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.absolute()}, from which the weights were to be read")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and reading it could run any code: save the weights alone, with "
            f"torch.save(model.state_dict(), FILE) or safetensors ({str(error).splitlines()[0]})"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    state = _unwrapped(found, path)
    return {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): single(value) for name, value in state.items()}


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected a state dict, names and tensors")
    inner = [key for key in WRAPPED if isinstance(found.get(key), Mapping) and _tensors(found[key])]
    if inner:
        if others := inner[1:]:
            warn(f"{path} holds weights under {inner}: those under {inner[0]!r} are taken, not {others}")
        return _tensors(found[inner[0]])
    if state := _tensors(found):
        return state
    raise ValueError(
        f"{path} holds {list(found)[:5]} and no tensors; expected a state dict, or one under {WRAPPED[0]!r}"
    )


def _tensors(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def below_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: object) -> dict[str, Tensor]:
    """The weights as the model calls them: without what a wrapper (`module.`, `model.`) put before every name."""
    first = next(iter(own), "")
    prefixes = sorted((name.removesuffix(first) for name in state if name.endswith(first)), key=len)
    prefixes = [p for p in prefixes if not p or p.endswith(".")]
    if not prefixes or prefixes[0] == "":
        return dict(state)
    if len(prefixes) > 1:
        warn(f"{file} holds weights under {prefixes}: those under {prefixes[0]!r} are taken")
    return {name.removeprefix(prefixes[0]): x for name, x in state.items() if name.startswith(prefixes[0])}


def outputs(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the weights, where nothing but it differs from the model; None where it is the same."""
    pairs = {
        (len(own[name]), len(x)) for name, x in state.items()
        if name in own and x.ndim and own[name].ndim == x.ndim and own[name].shape[1:] == x.shape[1:]
        and len(own[name]) != len(x)
    }  # fmt: skip
    return pairs.pop()[1] if len(pairs) == 1 else None


def fill(model: nn.Module, state: Mapping[str, Tensor], spec: str, file: object) -> None:
    """Load all weights, or say what differs."""
    own = model.state_dict()
    counters = "num_batches_tracked"
    differing = {
        "lacks": [n for n in own if n not in state and not n.endswith(counters)],
        "has besides": [n for n in state if n not in own and not n.endswith(counters)],
        "has in another shape": [
            f"{n} {tuple(x.shape)} for {tuple(own[n].shape)}" for n, x in state.items()
            if n in own and x.shape != own[n].shape
        ],
    }  # fmt: skip
    some = {how: ", ".join(n[:3]) + (f" and {len(n) - 3} more" if n[3:] else "") for how, n in differing.items() if n}
    if said := "; ".join(f"it {how} {names}" for how, names in some.items()):
        raise ValueError(f"{file} does not hold the weights of {spec}: {said}")
    model.load_state_dict({n: x for n, x in state.items() if n in own}, strict=False)

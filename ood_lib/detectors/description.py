"""What a detector was made with, as plain data: it tells one detector from another, and a file makes it again.

`describe` turns the arguments of a constructor into what JSON can hold.  `rebuild` goes the other way, and makes only
what `ood_lib` itself exports (and estimators of scikit-learn): a file must not be able to run any code it likes.
"""

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["as_bytes", "describe", "from_bytes", "public_name", "rebuild", "unknown"]

Plain = Any  # None, truth, number, string, and lists and dicts of them

REBUILT = ("Detector", "ScoreNetwork")  # classes of `ood_lib` that, with their subclasses, a file may name


def public_name(thing: Any) -> str:
    """The name under which `ood_lib` exports a class or function; of any other, where it is defined, with a colon."""
    name, library = getattr(thing, "__name__", type(thing).__name__), sys.modules["ood_lib"]
    if name in library.__all__ and getattr(library, name) is thing:
        return name
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', name)}"


def describe(value: Any) -> Plain:
    """A value as plain data: objects by class and arguments, a linear layer by its shape, functions by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "arguments") and isinstance(value, nn.Module):
        return {"class": public_name(type(value)), "arguments": _named(value.arguments())}
    if type(value).__name__ in ("Linear", "FrozenHead"):  # its numbers are learnt, and stand in the state
        return {"head": list(value.weight.shape)}
    if hasattr(value, "get_params"):
        return {"estimator": public_name(type(value)), "arguments": _named(value.get_params(deep=False))}
    if isinstance(value, functools.partial):
        return {"partial": describe(value.func), "given": describe(value.args), "arguments": _named(value.keywords)}
    if hasattr(value, "tolist"):  # of numpy or torch
        return value.tolist()
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {"dict": _named(value)}
    return {"function" if hasattr(value, "__qualname__") else "other": public_name(value)}


def _named(values: dict[str, Any]) -> dict[str, Plain]:
    return {str(name): describe(value) for name, value in values.items()}


def as_bytes(description: Plain) -> Tensor:
    """A description as a tensor of bytes, which every file of tensors can hold."""
    return torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8, device="cpu")


def from_bytes(saved: Tensor) -> Plain:
    """What `as_bytes` was given."""
    return json.loads(bytes(saved.tolist()))


def unknown(description: Plain, where: str = "") -> Iterator[str]:
    """What `rebuild` would refuse: argument and name."""
    if isinstance(description, list):
        for item in description:
            yield from unknown(item, where)
    elif isinstance(description, dict):
        for kind in ("class", "function", "other", "estimator"):
            name = description.get(kind)
            if isinstance(name, str) and ":" in name and not (kind == "estimator" and name.startswith("sklearn.")):
                yield f"{where}{name.replace(':', '.')}"
        for key in ("arguments", "dict"):
            for name, value in description.get(key, {}).items():
                yield from unknown(value, f"{name}=")
        for key in ("partial", "given"):
            yield from unknown(description.get(key), where)


def rebuild(description: Plain) -> Any:
    """The object that was described, not fitted.

    Raises:
        ValueError: it is none of those that `ood_lib` exports, or does not take these arguments.
    """
    if isinstance(description, list):
        return [rebuild(item) for item in description]
    if not isinstance(description, dict):
        return description
    if "head" in description:
        outputs, inputs = description["head"]
        head = nn.Linear(inputs, outputs)
        for value in head.parameters():
            nn.init.zeros_(value)
        return head
    given = {name: rebuild(value) for name, value in description.get("arguments", {}).items()}
    if "dict" in description:
        return {name: rebuild(value) for name, value in description["dict"].items()}
    if "partial" in description:
        return functools.partial(rebuild(description["partial"]), *rebuild(description["given"]), **given)
    if refused := list(unknown(description)):
        raise ValueError(f"{', '.join(refused)}: no class or function that ood_lib exports; only those are made again")
    if "estimator" in description:
        return _estimator(description["estimator"])(**given)
    library, name = sys.modules["ood_lib"], description.get("class") or description.get("function")
    found = getattr(library, name) if name in library.__all__ else None
    if "function" in description and callable(found) and not isinstance(found, type):
        return found
    allowed = tuple(getattr(library, kind) for kind in REBUILT)
    if "class" not in description or not (isinstance(found, type) and issubclass(found, allowed)):
        raise ValueError(f"{name!r} is no detector that this ood_lib knows: was it saved by a newer one?")
    try:
        return found(**given)
    except TypeError as error:
        raise ValueError(f"{name} does not take what was saved of it ({error}): is it of another ood_lib?") from error


def _estimator(name: str) -> type:
    module, _, kind = name.partition(":")
    found = getattr(importlib.import_module(module), kind, None)
    base = importlib.import_module("sklearn.base").BaseEstimator
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name} is no estimator of scikit-learn")
    return found

"""What a detector was made with, as plain data: it tells one detector from another, and a file makes it again.

`describe` turns the arguments of a constructor into what JSON can hold.  `rebuild` goes the other way, and makes only
what `ood_lib` itself exports (and estimators of scikit-learn): a file must not be able to run any code it likes.
"""

import functools
import importlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator
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
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', name)}{_body(thing)}"


def _body(function: Any) -> str:
    """What tells two functions of one name from each other, as all lambdas of a place have: code, defaults, closure."""
    if (code := getattr(function, "__code__", None)) is None:
        return ""
    bound = [*(function.__defaults__ or ()), *(cell.cell_contents for cell in function.__closure__ or ())]
    plain = [x for x in (*code.co_consts, *bound) if x is None or isinstance(x, bool | int | float | str)]
    return f" #{zlib.crc32(code.co_code + repr((code.co_names, plain)).encode()):08x}"


def describe(value: Any) -> Plain:
    """A value as plain data: objects by class and arguments, a linear layer by its shape, functions by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {"dict": _named(value)}
    return _object(value)


def _module(value: Any) -> Plain:
    if type(value).__name__ in ("Linear", "FrozenHead"):  # its numbers are learnt, and stand in the state
        return {"head": list(value.weight.shape)}
    if hasattr(value, "arguments"):
        return {"class": public_name(type(value)), "arguments": _named(value.arguments())}
    return {"other": public_name(type(value))}


def _object(value: Any) -> Plain:
    if hasattr(value, "tolist"):  # of numpy or torch
        return value.tolist()
    if isinstance(value, functools.partial):
        return {"partial": describe(value.func), "given": describe(value.args), "arguments": _named(value.keywords)}
    if hasattr(value, "get_params"):
        return {"estimator": public_name(type(value)), "arguments": _named(value.get_params(deep=False))}
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
        for key, value in description.items():
            if key in ("class", "function", "other", "estimator") and isinstance(value, str):
                if ":" in value and not (key == "estimator" and value.startswith("sklearn.")):
                    yield f"{where}{value.partition(' ')[0].replace(':', '.')}"
            else:
                yield from unknown(value, where if key in ("arguments", "dict", "given", "partial") else f"{key}=")


def rebuild(description: Plain) -> Any:
    """The object that was described, not fitted.

    Raises:
        ValueError: it is none of those that `ood_lib` exports, or does not take these arguments.
    """
    if isinstance(description, list):
        return [rebuild(item) for item in description]
    if not isinstance(description, dict):
        return description
    for kind, make in MAKERS.items():
        if kind in description:
            return make(description[kind], description)
    raise ValueError(f"{description} describes nothing that ood_lib makes")


def _given(description: dict[str, Plain]) -> dict[str, Any]:
    return {name: rebuild(value) for name, value in description.get("arguments", {}).items()}


def _head(shape: list[int], _: Plain) -> nn.Linear:
    head = nn.Linear(shape[1], shape[0])
    for value in head.parameters():
        nn.init.zeros_(value)
    return head


def _exported(name: str) -> Any:
    library = sys.modules["ood_lib"]
    return getattr(library, name) if name in library.__all__ else None


def _function(name: str, _: Plain) -> Any:
    found = _exported(name)
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{name!r} is no function that ood_lib exports; only those are made again")
    return found


def _class(name: str, description: Plain) -> Any:
    found, allowed = _exported(name), tuple(_exported(kind) for kind in REBUILT)
    if not (isinstance(found, type) and issubclass(found, allowed)):
        raise ValueError(f"{name!r} is no detector that ood_lib exports; only those are made again")
    return _called(found, description)


def _estimator(name: str, description: Plain) -> Any:
    module, _, kind = name.partition(":")
    if module.partition(".")[0] != "sklearn":
        raise ValueError(f"{name!r} is no estimator of scikit-learn; only those are made again")
    found = getattr(importlib.import_module(module), kind, None)
    base = importlib.import_module("sklearn.base").BaseEstimator
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name!r} is no estimator of scikit-learn; only those are made again")
    return _called(found, description)


def _called(kind: type, description: Plain) -> Any:
    try:
        return kind(**_given(description))
    except TypeError as error:
        raise ValueError(f"{kind.__name__} does not take what was saved of it: {error}") from error


MAKERS: dict[str, Callable[[Any, Plain], Any]] = {
    "head": _head,
    "dict": lambda values, _: {name: rebuild(value) for name, value in values.items()},
    "partial": lambda function, rest: functools.partial(rebuild(function), *rebuild(rest["given"]), **_given(rest)),
    "function": _function,
    "estimator": _estimator,
    "class": _class,
}

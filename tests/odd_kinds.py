"""Kinds of odd input, each a change of a plain argument: what people hand over, and what lies at the edge of a number.

A kind changes every argument of its roles.  The role of an argument is the last word of its name: ``test_z`` is of role
``z``.  Plain arguments are float64 tensors, int64 labels, a linear layer, a table.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

FLOATS = frozenset({"z", "logits", "scores", "images", "points"})
ROWS = FLOATS | {"labels", "matrix"}


class Kind(NamedTuple):
    roles: frozenset[str]
    change: Callable[[Any], Any]
    around: Callable[[], AbstractContextManager] = nullcontext
    only: str = ""  # the beginning of the names of the arguments that are changed; "" = of all


KINDS: dict[str, Kind] = {}


def kind(name: str, roles: frozenset[str] | set[str], change: Callable[[Any], Any], only: str = "") -> None:
    assert name not in KINDS
    KINDS[name] = Kind(frozenset(roles), change, only=only)


def everywhere(name: str, around: Callable[[], AbstractContextManager]) -> None:
    KINDS[name] = Kind(frozenset(), lambda x: x, around)


def copied(change: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """A change in place, of a copy."""

    def changed(x: Tensor) -> Tensor:
        x = x.clone()
        change(x)
        return x

    return changed


def cell(value: float) -> Callable[[Tensor], Tensor]:
    return copied(lambda x: x.view(-1).__setitem__(x.numel() // 2, value))


def array(change: Callable[[np.ndarray], Any]) -> Callable[[Tensor], Any]:
    return lambda x: change(x.detach().numpy().copy())


def read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)
    return x


def halves(x: Tensor) -> Tensor:
    """The same numbers, of which only every second one in memory is there."""
    return torch.stack([x, -x], -1)[..., 0]


def made_in_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x + 0


def tracked(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


class Named(Tensor):
    """A subclass, as other libraries have."""


# -- the same numbers, otherwise represented --------------------------------------------------------------------------

for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
    kind(str(dtype).removeprefix("torch."), FLOATS, lambda x, dtype=dtype: x.to(dtype))
for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64):
    kind(f"numbers of {str(dtype).removeprefix('torch.')}", FLOATS, lambda x, dtype=dtype: (2 * x).to(dtype))
kind("every second number in memory", ROWS, halves)
kind("transposed in memory", ROWS, lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
kind("a part of a larger tensor", ROWS, lambda x: torch.cat([x, x, x])[len(x) : 2 * len(x)])
kind("negative strides behind a flag", ROWS, lambda x: torch._neg_view(-x))
kind("with gradient", FLOATS, tracked)
kind("inside a graph", FLOATS, lambda x: tracked(x) * 1)
kind("a parameter", FLOATS, lambda x: nn.Parameter(x.clone()))
kind("made under inference_mode", ROWS, made_in_inference)
kind("a subclass of Tensor", ROWS, lambda x: x.clone().as_subclass(Named))
kind("numpy", ROWS, array(lambda x: x))
kind("numpy, single precision", FLOATS, array(lambda x: x.astype("f4")))
kind("numpy, reversed twice", ROWS, array(lambda x: x[::-1].copy()[::-1]))
kind("numpy, big-endian", ROWS, array(lambda x: x.astype(x.dtype.newbyteorder(">"))))
kind("numpy, read-only", ROWS, array(read_only))
kind("numpy, columns first", ROWS, array(np.asfortranarray))
kind("numpy, extended precision", FLOATS, array(lambda x: x.astype(np.longdouble)))
kind("numpy, decimal objects", ROWS, array(lambda x: x.astype(object)))
kind("numpy, masked but whole", ROWS, array(np.ma.masked_array))
kind("numpy, one entry masked", ROWS, array(lambda x: np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) == 1)))
kind("numpy matrix", {"z", "logits"}, array(np.matrix))
kind("pandas", {"scores", "labels"}, array(lambda x: pd.Series(x, index=range(5, 5 + len(x)))))
kind("pandas, with a gap", {"scores", "labels"}, array(lambda x: pd.Series(x).astype("object").where(x != x[1])))
kind("pandas table", {"z", "logits", "matrix"}, array(pd.DataFrame))
kind("list", ROWS, lambda x: x.tolist())
kind("tuple", ROWS, lambda x: tuple(x.tolist()))
kind("list of tensors", ROWS, lambda x: list(x))
kind("range of text", ROWS, array(lambda x: x.astype(str)))
kind("text", ROWS, lambda x: "scores.npy")
kind("a dict", ROWS, lambda x: dict(enumerate(x.tolist())))
kind("a generator", ROWS, lambda x: (row for row in x))
kind("None", ROWS, lambda x: None)
kind("a number", ROWS, lambda x: 0.5)
kind("sparse", ROWS, lambda x: x.to_sparse())
kind("sparse by rows", {"z", "logits", "matrix"}, lambda x: x.to_sparse_csr())
kind("on the meta device", ROWS, lambda x: x.to("meta"))
kind("nested", ROWS, lambda x: torch.nested.nested_tensor(list(x)) if x.ndim > 1 else x.to_sparse())
kind("quantized", FLOATS, lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8))

# -- other shapes -----------------------------------------------------------------------------------------------------

kind("no row", ROWS, lambda x: x[:0])
kind("one row", ROWS, lambda x: x[:1])
kind("two rows", ROWS, lambda x: x[:2])
kind("no column", ROWS - {"labels", "scores"}, lambda x: x[:, :0])
kind("one column", ROWS - {"labels", "scores"}, lambda x: x[:, :1])
kind("a column", ROWS, lambda x: x.unsqueeze(-1) if x.ndim == 1 else x.reshape(-1, 1))
kind("a row", ROWS, lambda x: x.reshape(1, -1))
kind("flat", ROWS, lambda x: x.flatten())
kind("a scalar", ROWS, lambda x: x.flatten()[0])
kind("a further axis in front", ROWS, lambda x: x[None])
kind("a further axis behind", ROWS, lambda x: x[..., None])
kind("two further axes", ROWS, lambda x: x[..., None, None])
kind("transposed", ROWS - {"labels", "scores"}, lambda x: x.transpose(0, 1))
kind("one row repeated without memory", ROWS, lambda x: x[:1].expand_as(x))
kind("one column repeated without memory", ROWS - {"labels", "scores"}, lambda x: x[:, :1].expand_as(x))
kind("one row too few in the second half", ROWS, lambda x: x[:-1], only="test")
kind(
    "one column too many in the second half", ROWS - {"labels", "scores"}, lambda x: torch.cat([x, x[:, :1]], 1), "test"
)
kind("other lengths", {"scores", "labels", "matrix"}, lambda x: x[: len(x) // 2], only="test")
kind("labels of other length", {"labels", "matrix"}, lambda x: x[:-1])
kind("labels twice", {"labels", "matrix"}, lambda x: torch.cat([x, x]))

# -- other values -----------------------------------------------------------------------------------------------------


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "all zero": torch.zeros_like,
    "all equal": torch.ones_like,
    "negative zeros": lambda x: torch.where(x > 0, x, -0.0),
    "negative": torch.neg,
    "rounded, so that there are ties": torch.round,
    "every row twice": lambda x: x[: (len(x) + 1) // 2].repeat_interleave(2, 0)[: len(x)],
    "the first row everywhere but in one": copied(lambda x: x[1:].copy_(x[:1].expand_as(x[1:]))),
    "one row of zeros": copied(lambda x: x[1].zero_()),
    "reversed": lambda x: x.flip(0),
    "sorted": lambda x: x.sort(0).values,
    "1e19 times as large": scaled(1e19),
    "1e30 times as large": scaled(1e30),
    "1e150 times as large": scaled(1e150),
    "1e-19 times as large": scaled(1e-19),
    "1e-30 times as large": scaled(1e-30),
    "1e-160 times as large": scaled(1e-160),
    "denormal": scaled(1e-310),
    "one wild cell": cell(1e30),
    "one tiny cell": cell(1e-300),
    "NaN in a cell": cell(math.nan),
    "infinity in a cell": cell(math.inf),
    "minus infinity in a cell": cell(-math.inf),
    "NaN in a row": copied(lambda x: x[1].fill_(math.nan)),
    "nothing but NaN": lambda x: torch.full_like(x, math.nan),
    "a thousand times as large": scaled(1e3),
}
kind("far from zero", FLOATS, lambda x: x + 1e5)
kind("far from zero, single precision", FLOATS, lambda x: (x + 1e2).float())
for name, change in VALUES.items():
    kind(name, FLOATS, change)
    kind(f"{name}, single precision", FLOATS, lambda x, change=change: change(x).float())
    kind(f"{name}, in the second half", FLOATS, change, only="test")
WIDE = FLOATS - {"scores"}
COLUMNS: dict[str, Callable[[Tensor], Tensor]] = {
    "a constant column": copied(lambda x: x[:, 0].fill_(0.5)),
    "a column of zeros": copied(lambda x: x[:, 0].zero_()),
    "two equal columns": copied(lambda x: x[:, 0].copy_(x[:, -1])),
    "columns of other size": lambda x: (
        x * torch.logspace(-4, 4, x.shape[1], dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    ),
    "rows of other size": lambda x: x * torch.logspace(-6, 6, len(x), dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)),
}
for name, change in COLUMNS.items():
    kind(name, WIDE, change)
    kind(f"{name}, single precision", WIDE, lambda x, change=change: change(x).float())

# -- labels -----------------------------------------------------------------------------------------------------------

for dtype in (torch.int32, torch.int16, torch.uint8, torch.uint16, torch.float64, torch.float16, torch.bool):
    kind(f"labels of {str(dtype).removeprefix('torch.')}", {"labels", "matrix"}, lambda x, dtype=dtype: x.to(dtype))
kind("labels with a fraction", {"labels", "matrix"}, lambda x: x + 0.5)
kind("labels of NaN", {"labels", "matrix"}, lambda x: cell(math.nan)(x.double()))
kind("labels from 1", {"labels", "matrix"}, lambda x: x + 1)
kind("a label of -1", {"labels", "matrix"}, cell(-1))
kind("a label beyond the classes", {"labels", "matrix"}, cell(3))
kind("a label far beyond", {"labels", "matrix"}, cell(2**40))
kind("an empty class", {"labels"}, lambda x: torch.where(x == 1, 0, x))
kind("one class", {"labels"}, torch.zeros_like)
kind("the last class is empty", {"labels"}, lambda x: x.clamp(max=1))
kind("a class of one sample", {"labels"}, copied(lambda x: x.copy_(torch.where(torch.arange(len(x)) == 0, 2, x % 2))))
kind("one-hot", {"labels"}, lambda x: nn.functional.one_hot(x))
kind("one-hot, float", {"labels"}, lambda x: nn.functional.one_hot(x).double())
kind("multi-hot", {"labels"}, lambda x: torch.stack([x == 0, x >= 0, x == 2], 1).long())
kind("names of classes", {"labels"}, lambda x: [["cat", "dog", "owl"][i] for i in x.tolist()])
kind("numpy names of classes", {"labels"}, lambda x: np.array(["cat", "dog", "owl"])[x.numpy()])
kind("no label present", {"matrix"}, torch.zeros_like)
kind("all labels present", {"matrix"}, torch.ones_like)
kind("an absent class", {"matrix"}, copied(lambda x: x[:, 0].zero_()))

# -- the head ---------------------------------------------------------------------------------------------------------


def linear(weight: Tensor, bias: Tensor | None, **options: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


class OwnLinear(nn.Linear):
    """A subclass."""


def head(name: str, change: Callable[[nn.Linear], Any]) -> None:
    kind(f"a head {name}", {"head"}, lambda h: change(copy.deepcopy(h)))


head("without bias", lambda h: linear(h.weight, None))
head("in single precision", lambda h: h.float())
head("in half precision", lambda h: h.half())
head("that learns no more", lambda h: h.requires_grad_(False))
head("in training mode", lambda h: h.train())
head("with NaN", lambda h: linear(cell(math.nan)(h.weight.detach()), h.bias))
head("with infinity", lambda h: linear(cell(math.inf)(h.weight.detach()), h.bias))
head("of zeros", lambda h: linear(0 * h.weight, 0 * h.bias))
head("of one class", lambda h: linear(h.weight[:1], h.bias[:1]))
head("with two equal classes", lambda h: linear(h.weight[[0, 0, 2]], h.bias[[0, 0, 2]]))
head("of another width", lambda h: linear(h.weight[:, :4], h.bias))
head("1e19 times as large", lambda h: linear(1e19 * h.weight, h.bias))
head("of more classes", lambda h: linear(h.weight.repeat(2, 1) + torch.arange(6)[:, None], h.bias.repeat(2)))
head("that is a sequence", lambda h: nn.Sequential(h))
head("that is a tensor", lambda h: h.weight.detach())
head("that is a convolution", lambda h: nn.Conv2d(6, 3, 1))
head("that is none", lambda h: None)
head("on the meta device", lambda h: h.to("meta"))
head("of a subclass", lambda h: _subclassed(h))
head("under weight normalisation", lambda h: nn.utils.parametrizations.weight_norm(h))


def _subclassed(h: nn.Linear) -> nn.Linear:
    h.__class__ = OwnLinear
    return h


# -- tables -----------------------------------------------------------------------------------------------------------


def table(name: str, change: Callable[[pd.DataFrame], Any]) -> None:
    kind(f"a table {name}", {"table"}, lambda t: change(t.copy()))


def with_value(value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda t: t.assign(value=t["value"].astype(object).where(t.index != 5, value))


table("without a row", lambda t: t[:0])
table("of one row", lambda t: t[:1])
table("with its rows twice", lambda t: pd.concat([t, t]))
table("with one row twice", lambda t: pd.concat([t, t[3:4]]))
table("in another order", lambda t: t.sample(frac=1, random_state=0))
table("with an index of its own", lambda t: t.set_index(pd.Index([7] * len(t))))
table("with an index of two levels", lambda t: t.set_index(["detector", "seed"], drop=False))
table("without the column seed", lambda t: t.drop(columns="seed"))
table("without the column value", lambda t: t.drop(columns="value"))
table("without the column group", lambda t: t.drop(columns="group"))
table("with NaN", with_value(math.nan))
table("with infinity", with_value(math.inf))
table("with None", with_value(None))
table("with text", with_value("0.9"))
table("with values in percent", lambda t: t.assign(value=100 * t["value"]))
table("with values below 0", lambda t: t.assign(value=-t["value"]))
table("with values in single precision", lambda t: t.assign(value=t["value"].astype("f4")))
table("with values as text", lambda t: t.assign(value=t["value"].astype(str)))
table("with seeds as text", lambda t: t.assign(seed=t["seed"].astype(str)))
table("with seeds as float", lambda t: t.assign(seed=t["seed"].astype(float)))
table("without some seeds", lambda t: t.assign(seed=t["seed"].astype(float).where(t["seed"] != 1)))
table("of one seed", lambda t: t[t["seed"] == 0])
table("without a set for one detector", lambda t: t.drop(index=t.index[2]))
table("with categories", lambda t: t.astype({"detector": "category", "group": "category", "metric": "category"}))
table("as a dict", lambda t: t.to_dict("list"))
table("as records", lambda t: t.to_dict("records"))
table("as numpy", lambda t: t.to_numpy())
table("of None", lambda t: None)
table("without a group for one set", lambda t: t.assign(group=t["group"].where(t.index != 4)))
table("without a detector for one row", lambda t: t.assign(detector=t["detector"].where(t.index != 4)))
table("of equal values", lambda t: t.assign(value=0.5))

# -- the state of torch -----------------------------------------------------------------------------------------------


@contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


everywhere(
    "deterministic algorithms",
    lambda: setting(torch.are_deterministic_algorithms_enabled, torch._C._set_deterministic_algorithms, True),
)  # without its imports
everywhere(
    "a default precision of float64", lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64)
)
everywhere(
    "a default precision of bfloat16", lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16)
)
everywhere("autocast", lambda: torch.autocast("cpu", torch.bfloat16))
everywhere("inference_mode", torch.inference_mode)
everywhere("no_grad", torch.no_grad)
everywhere("a default device of meta", lambda: torch.device("meta"))
everywhere("anomaly detection", lambda: torch.autograd.detect_anomaly(check_nan=True))
everywhere("numpy raises", lambda: np.errstate(all="raise"))
everywhere(
    "torch prints three digits",
    lambda: setting(
        lambda: "default", lambda p: torch.set_printoptions(profile=p if p == "default" else "short"), "short"
    ),
)
everywhere("one thread", lambda: setting(torch.get_num_threads, torch.set_num_threads, 1))
everywhere("pandas raises on chains", lambda: pd.option_context("mode.copy_on_write", True))

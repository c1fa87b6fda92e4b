"""What a parameter of a notebook may be: texts of the command line become values, and values lie in their range.

A text is read by the annotation of its parameter and by nothing else: a text as it stands, numbers as Python writes
them, lists and dicts as JSON.
"""

import ast
import json
import math
import re
from collections.abc import Callable
from typing import Any

from ood_lib.checks import check

__all__ = ["LIMITS", "check_value", "read_text"]

COUNT, NUMBER = "integer [1, inf)", "integer [0, inf)"

LIMITS: dict[str, Any] = {
    "missing": ("raise", "skip"), "conditioning": ("continuous", "levels"), "fit_on": ("val", "train"),
    "device": re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch,
    **dict.fromkeys(
        "seeds epochs splits simulations repeats bins smooth_penultimate smooth_weiper draws toy_updates "
        "sweep_networks sweep_updates updates curves scales patch score_steps score_batch score_widths batch_size "
        "residual_updates heat_updates flow_updates hidden widths bank_updates bank_seeds longer_updates "
        "photo_splits line_updates looks_at".split(), COUNT,
    ),
    **dict.fromkeys("seed umap_points images_per_set image_size images steps bank_rows".split(), NUMBER),
    "grid_side": "integer [2, inf)", "norm": ("group", "instance++"),
    **dict.fromkeys("learning_rate residual_rate paper_rate score_rate decay largest smallest coefficient gain "
                    "strengths".split(), "(0, inf)"),
    **dict.fromkeys("delta lambda1 lambda2 lam prior_temperature step_size noise noises backbone_rate ridges factors "
                    "odin_step close margin".split(), "[0, inf)"),
    "benchmarks": lambda _: True,  # names, which are known by another rule
    "tpr": "(0, 1)", "average": "[0, 1)", "beta": "[-inf, inf]",
}  # fmt: skip
"""The range of a parameter by its name, in all notebooks; of a list that of each of its items."""


def check_value(name: str, value: Any) -> None:
    """Raise ValueError where a value is out of the range of its parameter, or is NaN."""
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, float) and math.isnan(item):
            check(lambda _: False, "a number, which NaN is not", **{name: item})
        if (expected := LIMITS.get(name)) is not None and item is not None:
            check(expected, "auto, cpu, mps, cuda or cuda:N" if callable(expected) else "", **{name: item})


def read_text(text: str, kind: ast.expr) -> Any:
    """The value that a text means where a parameter is annotated like this.

    Raises:
        ValueError: it means none.
    """
    match kind:
        case ast.BinOp(left=left, right=right):
            nothing = [part for part in (left, right) if isinstance(part, ast.Constant) and part.value is None]
            if nothing and text in ("None", "null"):
                return None
            return _first([part for part in (left, right) if part not in nothing], text)
        case ast.Subscript(value=outer):
            return read_text(text, outer)
        case ast.Name(id=name) if name in READ:
            return READ[name](text)
    return text


def _first(kinds: list[ast.expr], text: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return read_text(text, kind)
        except ValueError:
            continue
    return read_text(text, kinds[-1])


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'{text!r} is no JSON, such as [1, 2] or ["a", "b"]: {error}') from error


READ: dict[str, Callable[[str], Any]] = {
    "str": str, "int": int, "float": _number, "bool": _truth, "list": _json, "tuple": _json, "dict": _json,
}  # fmt: skip

"""Who uses what: the public names of `ood_lib` in the code of each notebook, for links in both directions."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import ood_lib
from ood_book.notebooks import HEADING, sources
from ood_book.percent import parse

__all__ = ["sections", "used_by", "uses"]


def uses(code: str, imports: str = "") -> list[str]:
    """The classes and functions of `ood_lib` that code names, by where they are: `ood_lib.detectors.weiper.WeiPer`.

    Reads `import ood_lib as ood`, `from ood_lib.evaluation import plots` and `from ood_lib.files import half`; what is
    imported and never named again does not count.

    Args:
        code: a notebook, or a cell of it.
        imports: code with the imports that bind the names; empty = `code` has them itself.

    Example:
        >>> uses("import ood_lib as ood; from ood_lib import plots; plots.theme(ood.WeiPer())")
        ['ood_lib.evaluation.plots.theme', 'ood_lib.detectors.weiper.WeiPer']
    """
    known = _imported(imports or code)
    named = (_dotted(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute | ast.Name))
    whole = (known[first] + rest for first, rest in named if first in known)
    return sorted({place for name in whole if (place := _place(name))})


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Each code cell of a notebook, after the last heading before it; what comes before the first is left out."""
    heading = ""
    for cell in parse(text).cells:
        if cell.cell_type == "markdown":
            heading = [heading, *HEADING.findall(cell.source)][-1]
        elif heading:
            yield heading, cell.source


def used_by(root: Path) -> dict[str, dict[str, list[str]]]:
    """Names of the library, the notebooks that use each, in reading order, and the headings under which they do."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, source in sources(root).items():
        text = source.read_text(encoding="utf-8")
        for place in uses(text):
            found.setdefault(place, {})[name] = []
        for heading, code in sections(text):
            for place in uses(code, text):
                found[place][name] = list(dict.fromkeys([*found[place][name], heading]))
    return found


@cache  # asked for again by every cell of a notebook
def _imported(code: str) -> dict[str, str]:
    """The names that imports of the library bind, and what each stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname and a.name.split(".")[0] == "ood_lib"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ood_lib":
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def _dotted(node: ast.expr) -> tuple[str, str]:
    """First name and the rest of `a.b.c`."""
    first, *rest = ast.unparse(node).split(".")
    return first, "".join(f".{name}" for name in rest)


def _place(name: str) -> str:
    """Where the class or function is at home that a dotted name means; empty for anything else."""
    thing: Any = ood_lib
    for part in name.split(".")[1:]:
        if hasattr(thing, "__path__") and not hasattr(thing, part) and find_spec(f"{thing.__name__}.{part}"):
            importlib.import_module(f"{thing.__name__}.{part}")
        thing = getattr(thing, part, None)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            return _home(thing)
    return ""


def _home(thing: type | FunctionType) -> str:
    """Module and name of a public class or function of the library."""
    inside = thing.__module__.startswith("ood_lib.")
    public = inside and thing.__name__ in getattr(importlib.import_module(thing.__module__), "__all__", ())
    return f"{thing.__module__}.{thing.__name__}" if public else ""

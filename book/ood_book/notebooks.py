"""The notebooks as they are written: the title of a `.py`, its parameters and the values these take.

Needs nothing beyond the standard library; `ood_book.percent` makes a notebook of the text.
"""

import ast
import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CELL", "HEADING", "Parameter", "Refused", "code_of", "content_hash", "find_root", "fits", "given_once",
    "parameters_of", "select", "sources", "tags_of", "title_of", "unknown",
]  # fmt: skip

HEADING = re.compile(r"^#{2,3} (.+)$", re.M)  # of a section, in a cell of text
CELL = re.compile(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", re.M | re.S)  # the rest of its first line, and its body
ACTED_ON = {"parameters", "raises-exception", "skip-execution"}  # tags that change what runs
KINDS: dict[str, Any] = {
    "bool": bool, "dict": dict, "float": (int, float), "int": int, "list": list, "str": str, "tuple": (list, tuple),
}  # fmt: skip


class Refused(Exception):
    """Input that cannot be right; said before anything runs (exit code 2)."""


def unknown(kind: str, given: str, names: Iterable[str]) -> Refused:
    """The refusal of a name that there is not, with the nearest one that there is."""
    names = sorted(names)
    near = difflib.get_close_matches(given, names, 1, 0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return Refused(f"unknown {kind} {given!r}: {hint}There are: {', '.join(names) or 'none'}")


def given_once(names: Iterable[str]) -> None:
    """Refuse a parameter that is given twice: only one of its values would count."""
    for name, count in Counter(names).items():
        if count > 1:
            raise Refused(f"parameter {name!r} is given twice; give it once, to a sweep with all its values: a,b,c")


def content_hash(*parts: str | bytes) -> str:
    """One hash of all parts; moving a character from one to the next changes it."""
    digests = (hashlib.sha256(p.encode() if isinstance(p, str) else p).digest() for p in parts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def find_root(given: Path | None) -> Path:
    """The folder of the book: the one given, else the nearest around the working folder."""
    start = (given or Path.cwd()).resolve()
    for folder in [start] if given else [start, *start.parents]:
        if (folder / "notebooks").is_dir() and (folder / "_config.yml").is_file():
            return folder
    raise Refused(f"{start} is not inside the book: no folder with notebooks/ and _config.yml")


def sources(root: Path) -> dict[str, Path]:
    """Every notebook of the book by name, in reading order."""
    return {path.stem: path for path in sorted((root / "notebooks").glob("[0-9]*.py"))}


def select(root: Path, given: Sequence[str]) -> list[Path]:
    """The notebooks meant by names or paths, with or without number and suffix; all for none."""
    found = sources(root)
    names = {re.sub(r"^\d+_", "", name): name for name in found} | {n: n for n in found}
    stems = [re.sub(r"\.(py|ipynb)$", "", Path(name).name) for name in given]
    for stem in stems:
        if stem not in names:
            raise unknown("notebook", stem, names)
    return [found[n] for n in dict.fromkeys(names[stem] for stem in stems)] or [*found.values()]


def title_of(text: str) -> str:
    """The first heading of the first level in the text of a `.py`; empty where there is none."""
    heading = re.search(r"^# # (.+)", text, re.M)
    return heading[1] if heading else ""


def tags_of(head: str) -> set[str]:
    """The tags in the first line of a cell."""
    found = re.search(r"\btags=\[(.*?)\]", head)
    return set(re.findall(r'"([\w-]+)"', found[1])) if found else set()


def code_of(text: str) -> list[str]:
    """What runs of the text of a `.py`: the code of each cell, below the tags that whoever runs it acts on.

    Example:
        >>> code_of('# %% [markdown]\\n# Prose.\\n\\n# %% tags=["parameters", "hide-input"]\\nseed: int = 0\\n')
        ['parameters\\nseed: int = 0']
    """
    cells = ((tags_of(head) & ACTED_ON, body) for head, body in CELL.findall(text) if not re.match(r" \[", head))
    return ["\n".join([*sorted(tags), body.strip("\n")]) for tags, body in cells]


@dataclass(frozen=True)
class Parameter:
    """An assignment in the cell tagged `parameters`."""

    kind: ast.expr  # the annotation, or the type of the default
    default: Any
    help: str  # the comment behind it


def parameters_of(source: Path) -> dict[str, Parameter]:
    """Read with `ast`: papermill's own inspection does not see `int | None` annotations."""
    cells = CELL.findall(source.read_text(encoding="utf-8"))
    code = next((body for head, body in cells if "parameters" in tags_of(head)), "")
    lines, found = code.encode().splitlines(), {}
    for node in ast.parse(code).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value):
                default = _literal(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                default = _literal(value)
                kind = ast.Name(type(default).__name__)
            case _:
                continue
        comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset :].decode()
        found[name] = Parameter(kind, default, comment.strip(" #"))
    return found


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)  # computed: its code stands for it


def fits(value: Any, kind: ast.expr) -> bool:
    """Whether an annotation allows a value; one that is not understood allows every value."""
    match kind:
        case ast.BinOp(left=left, right=right):
            return fits(value, left) or fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript(value=ast.Name(id="list") as outer, slice=inner):
            return fits(value, outer) and all(fits(item, inner) for item in value)
        case ast.Name(id="int" | "float") if isinstance(value, bool):
            return False
        case ast.Name(id=name):
            return isinstance(value, KINDS.get(name, object))
    return True

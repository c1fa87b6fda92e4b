"""What a run reads beside its notebook and the library: the files, folders and code that its parameters name."""

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder
from itertools import chain
from pathlib import Path
from typing import Any

from ood_book.notebooks import content_hash
from ood_lib.files import is_hidden

__all__ = ["hash_inputs", "hash_path"]

FILES, BYTES = 1000, 64 * 2**20  # of at most so many the contents are read, in about a second
SHELF = (
    "data_dir"  # holds the published sets of every chapter, and a run downloads into it: its content counts for none
)
KIND = re.compile("^(?:folder|bank|hf):")  # what stands before a path


def hash_inputs(values: dict[str, Any], folder: Path, hashed: Callable[[Path], str]) -> str:
    """One hash of all that is there of what parameters name, and of the code behind `model`.

    Args:
        values: of the parameters.
        folder: from which relative paths are meant.
        hashed: the hash of one path.
    """
    named = [path for name, value in values.items() if name != SHELF for path in _paths(value, folder)]
    return content_hash(*map(hashed, [*named, *_code(values.get("model"), folder)]))


def _paths(value: Any, folder: Path) -> Iterator[Path]:
    for item in value if isinstance(value, list) else [value]:
        name = KIND.sub("", item) if isinstance(item, str) else ""
        if name.strip("./\\") and os.path.exists(folder / name):  # a lone / is a mark, and names no disk
            yield folder / name


def hash_path(path: Path) -> str:
    """One hash of a file, or of all below a folder: of the contents, or where these are much, of sizes and times.

    Hidden files do not count, and links are followed.  100,000 pictures take a second.
    """
    found = {file: os.stat(file) for file in (_below(str(path)) if path.is_dir() else [str(path)])}
    if len(found) <= FILES and sum(stat.st_size for stat in found.values()) <= BYTES:
        marks: Iterator[str | bytes] = (Path(file).read_bytes() for file in found)
    else:
        marks = (f"{stat.st_size} {stat.st_mtime_ns}" for stat in found.values())
    names = (os.fsencode(file.removeprefix(str(path))) for file in found)  # perhaps of letters that are no UTF-8
    return content_hash(*chain.from_iterable(zip(names, marks)))


def _below(folder: str) -> Iterator[str]:
    """Every file that is not hidden, in the same order each time; a folder that several links lead to once."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        again = (real := os.path.realpath(where)) in seen
        seen.add(real)
        folders[:] = [] if again else sorted(name for name in folders if not is_hidden(name))  # where os.walk goes on
        places = (os.path.join(where, name) for name in sorted(files) if not again and not is_hidden(name))
        yield from filter(os.path.isfile, places)


def _code(model: Any, folder: Path) -> list[Path]:
    """The files behind ``module:function``, found as Python finds them but without importing.

    They are followed by what they import, where that is the reader's own: in the folder in which the command is given.
    """
    if not isinstance(model, str) or not (name := re.match(r"(\w+)[\w.]*:", model)):
        return []
    own, found, left = [str(folder), os.environ.get("OOD_FOLDER", os.getcwd())], dict[str, list[Path]](), [name[1]]
    while left:
        if (module := left.pop()) not in found:
            found[module] = _files(module, own)
            left += [imported for file in found[module] for imported in _imports(file)]
    return [file for module in sorted(found) for file in found[module]] or _files(name[1], sys.path)


def _files(module: str, places: Sequence[str]) -> list[Path]:
    """The file of a module, or every ``.py`` of a package."""
    spec = PathFinder.find_spec(module, places)
    if spec is None or spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec and spec.has_location and spec.origin else []
    return sorted(file for place in spec.submodule_search_locations for file in Path(place).rglob("*.py"))


def _imports(file: Path) -> Iterator[str]:
    """The first names of the modules that a file imports."""
    try:
        nodes = [*ast.walk(ast.parse(file.read_bytes()))]
    except (SyntaxError, ValueError):  # the run will say so
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]

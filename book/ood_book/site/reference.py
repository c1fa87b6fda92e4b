"""The reference of the library: a page for each folder, all its modules on it, and a table of the public names.

Pages and modules find each other by a rule, so that a new module needs no entry anywhere.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ood_lib
from ood_book.notebooks import Refused
from ood_book.site.tables import table

__all__ = ["PAGES", "add_reference", "idea", "modules", "names", "page_of"]

FOLDERS = ("data", "networks", "training", "features", "detectors", "evaluation")
PAGES = (*FOLDERS[:5], "classical", "papers", "evaluation", "helpers")  # in the order of the overview
PAPERS = ("weiper", "msma", "norm_bank", "joint_energy", "heat", "flow")  # of the detectors
TITLE = re.compile(r"\A# (.+)\n\n(.+?)\n\n", re.S)  # of a page, and the paragraph below it


def page_of(name: str) -> str:
    """The page of the reference on which a module, or something in it, stands.

    Args:
        name: dotted, from `ood_lib` on.

    Example:
        >>> page_of("ood_lib.detectors.heat.heat.HEAT"), page_of("ood_lib.data.images"), page_of("ood_lib.checks.check")
        ('papers', 'data', 'helpers')
    """
    match name.split(".")[1:]:
        case ["detectors", "classical", *_]:
            return "classical"
        case ["detectors", part, *_] if part in PAPERS:
            return "papers"
        case [folder, *_] if folder in FOLDERS:
            return folder
    return "helpers"


def modules(library: Path) -> list[str]:
    """The modules of the library below its folder, in the order of the alphabet."""
    files = (path.relative_to(library).with_suffix("") for path in library.rglob("*.py"))
    return sorted(".".join([library.name, *f.parts]) for f in files if f.name not in ("__init__", "__main__"))


def names(library: Path) -> dict[str, str]:
    """The public names `ood.X` and the module that each is at home in."""
    stub = ast.parse((library / "__init__.pyi").read_text(encoding="utf-8"))
    taken = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {a.name: f"{library.name}.{node.module}" for node in taken for a in node.names}


def idea(module: str, name: str, library: Path) -> str:
    """The first sentence of a docstring, or of the comment `#:` above a value, as Markdown in one line."""
    path = library.parent / Path(*module.split(".")).with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _sentence(ast.get_docstring(node) or "")
    comment = re.search(rf"((?:^#:.*\n)+){name}\b", text, re.M)
    return _sentence(re.sub("^#: ?", "", comment[1], flags=re.M) if comment else "")


def _sentence(docstring: str) -> str:
    first = " ".join(docstring.split("\n\n")[0].split())
    first = re.split(r"(?<=[^.][.?])\s+(?=[A-Z`(])", first)[0]
    first = re.sub(r":math:`(.+?)`", r"$\1$", first)
    first = re.sub(r":\w+(?::\w+)?:`~?([^`<]+?)(?: <.*?>)?`", r"`\1`", first)
    return first.replace("``", "`").replace("|", r"\|")


def add_reference(book: Path, library: Path = Path(ood_lib.__file__).parent) -> None:
    """Write what the pages in `book/api` include, and the overview, into `_generated/api`."""
    target = book / "_generated/api"
    target.mkdir(parents=True, exist_ok=True)
    parts = list[str]()
    for page in PAGES:
        own = [name for name in modules(library) if page_of(name) == page]
        (target / f"{page}.md").write_text("\n".join(map(_module, own)), encoding="utf-8")
        parts += _overview(page, (book / f"api/{page}.md").read_text(encoding="utf-8"), library)
    (target / "overview.md").write_text("\n".join(parts), encoding="utf-8")


def _module(name: str) -> str:
    short = name.partition(".")[2]
    return f"## `{short}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"


def _overview(page: str, text: str, library: Path) -> Iterator[str]:
    """What a page holds, and its public names."""
    if not (found := TITLE.match(text)):
        raise Refused(f"book/api/{page}.md does not begin with a title and a paragraph that says what the page holds")
    yield f"## {found[1]}\n\n{' '.join(found[2].split())} {{doc}}`All of it </book/api/{page}>`.\n"
    own = {name: module for name, module in names(library).items() if page_of(module) == page}
    rows = [
        [f"{{py:obj}}`ood.{name} <{module}.{name}>`", idea(module, name, library)]
        for name, module in sorted(own.items(), key=lambda item: item[0].lower())
    ]
    if rows:
        yield f":::{{container}} names\n\n{table(['name', 'idea'], rows, words=(0, 1))}\n:::\n"

"""Laws of the library: a module lists what is its own, others take only what is listed, and imports are declared.

Each law is a function from names or text to complaints, so that the end of this file can show that it is able to fail.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from ood_book.site import reference

import ood_lib

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "ood_lib").rglob("*.py") if path.stem != "__init__")
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
MODULES = [name for name in NAMES if not name.endswith("__main__")]
PACKAGES = {
    "IPython": "ipython",
    "markdown_it": "markdown-it-py",
    "mdit_py_plugins": "mdit-py-plugins",
    "sphinx_revealjs": "sphinx-revealjs",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "umap": "umap-learn",
}  # whose name on the index is another one
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

every_module = pytest.mark.parametrize("name", NAMES)


def defined(module):
    """Public functions and classes that stand in this very file."""
    found = {n: v for n, v in vars(module).items() if inspect.isfunction(v) or inspect.isclass(v)}
    return {n for n, v in found.items() if not n.startswith("_") and v.__module__ == module.__name__}


def assigned(text):
    """Names that a file gives a value to, or defines."""
    body = ast.parse(text).body
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    targets += [n.target for n in body if isinstance(n, ast.AnnAssign)]
    own = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return own | {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def taken(text):
    """(module, name) of each name that a file takes from another one of the library."""
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.module]
    return {(n.module, a.name) for n in nodes if n.module.startswith("ood_lib.") for a in n.names}


def unlisted(text):
    """Names taken from a module of the library that does not list them."""
    return {(m, n) for m, n in taken(text) if n not in getattr(importlib.import_module(m), "__all__", ())}


@every_module
def test_a_module_lists_what_it_defines_and_nothing_of_others(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) - assigned(inspect.getsource(module)) == set()
    assert defined(module) - set(module.__all__) == set()


@every_module
def test_what_a_module_takes_from_another_is_listed_there(name):
    assert unlisted(inspect.getsource(importlib.import_module(name))) == set()


def test_the_top_level_lists_what_it_takes_from_the_modules():
    stub = (ROOT / "ood_lib/__init__.pyi").read_text().replace("from .", "from ood_lib.")
    assert unlisted(stub) == set()
    assert (
        set(ood_lib.__all__) == {name for _, name in taken(stub)} == {n for n in dir(ood_lib) if n in ood_lib.__all__}
    )
    assert [name for name in ood_lib.__all__ if getattr(ood_lib, name, None) is None] == []


@pytest.mark.parametrize(("old", "new"), ood_lib.RENAMED.items())
def test_a_renamed_thing_is_found_by_its_old_name_with_a_warning(old: str, new: str):
    assert new in ood_lib.__all__ and old not in ood_lib.__all__
    with pytest.warns(DeprecationWarning, match=f"ood_lib.{old} is called {new} now") as caught:
        assert getattr(ood_lib, old) is getattr(ood_lib, new)
    assert caught[0].filename == __file__


def test_a_name_that_never_was_is_still_unknown():
    with pytest.raises(AttributeError):
        ood_lib.nothing_of_the_kind  # noqa: B018


def stated(book):
    """The modules that each page of the reference documents, as its source and what it includes say."""
    reference.add_reference(book)
    found = {}
    for page in sorted((book / "api").glob("*.md")):
        (part,) = re.findall(r"^```{include} \.\./(\S+)$", page.read_text(encoding="utf-8"), re.M)
        found[page.stem] = re.findall(r"automodule:: (\S+)", (book / part).read_text(encoding="utf-8"))
    return found


def test_every_module_and_every_public_name_stands_on_exactly_one_page_of_the_reference(tmp_path):
    shutil.copytree(ROOT / "book/api", tmp_path / "api")
    pages = stated(tmp_path)
    assert sorted(pages) == sorted(reference.PAGES)
    assert sorted(module for own in pages.values() for module in own) == sorted(MODULES)
    assert {page for page, own in pages.items() for module in own if reference.page_of(module) != page} == set()
    homes = reference.names(ROOT / "ood_lib")
    assert sorted(homes) == sorted(ood_lib.__all__)
    assert {name: sum(home in own for own in pages.values()) for name, home in homes.items()} == dict.fromkeys(homes, 1)
    overview = (tmp_path / "_generated/api/overview.md").read_text(encoding="utf-8")
    assert "exclude-members" not in "".join(p.read_text() for p in (tmp_path / "_generated/api").iterdir())
    rows = dict(re.findall(r"^\| \{py:obj\}`ood\.\w+ <(\S+)>` \| (.+) \|$", overview, re.M))
    assert rows.keys() == {f"{home}.{name}" for name, home in homes.items()}
    assert overview.count("| {py:obj}`") == len(homes) and min(map(len, rows.values())) > 10


def test_the_idea_of_a_name_is_the_first_sentence_of_its_docstring():
    for module, name, words in (
        (
            "ood_lib.detectors.classical.energy",
            "energy",
            r"Free energy $-T \log \sum_j e^{\ell_j / T}$, (..., C) to (...,); larger = more OOD.",
        ),
        ("ood_lib.data.benchmark", "BENCHMARKS", "Every benchmark that is made of images, by name."),
    ):
        assert reference.idea(module, name, ROOT / "ood_lib") == words


def named(text):
    """What a file defines, at any depth: functions, classes, variables, attributes and arguments."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def mentioned(text):
    """What the docstrings of a file put between single backticks, examples left out: names, and nothing else."""
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [(ast.get_docstring(n) or "").partition("Example:")[0] for n in nodes]
    return {name for doc in docstrings for name in re.findall(r"(?<![`:])`([\w.]+)`(?!`)", doc)}


def found(name):
    """Whether a dotted name is a module, or stands in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def lost(text, known):
    """Names in docstrings that nothing has."""
    here = {name for name in mentioned(text) if name.split(".")[0] in known}
    return {name for name in mentioned(text) - here if not found(name)}


KNOWN = set().union(*(named(path.read_text(encoding="utf-8")) for path in FILES))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_a_docstring_names_is_there(path):
    assert lost(path.read_text(encoding="utf-8"), KNOWN) == set()


def unnamed(text, extras):
    """Packages that a file imports and pyproject.toml names neither in the core nor in the extra they come with."""
    missing = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                pairs = [(a.name, "plots") for a in names]
            case ast.ImportFrom(module=str(module)):
                pairs = [(module, "plots")]
            case ast.Call(func=ast.Name(id="need"), args=[ast.Constant(value=module), *extra]):
                pairs = [(module, extra[0].value if extra else "plots")]
            case _:
                continue
        for module, extra in pairs:
            top = module.split(".")[0]
            if top not in {*sys.stdlib_module_names, "ood_lib"} and PACKAGES.get(top, top) not in extras[extra]:
                missing.add(top)
    return missing


def listed():
    """The packages of the core with those of each extra."""
    extras = {extra: PROJECT["optional-dependencies"][extra] for extra in ("plots", "book", "cluster")}
    names = {k: {re.match(r"[\w-]+", line)[0] for line in [*v, *PROJECT["dependencies"]]} for k, v in extras.items()}
    return names


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_a_file_imports_is_named_in_pyproject(path):
    optional = {"matplotlib_inline"}  # tried, and done without
    assert unnamed(path.read_text(encoding="utf-8"), listed()) - optional == set()


def test_the_laws_can_fail():
    assert unlisted("from ood_lib.evaluation.plots import student") == {("ood_lib.evaluation.plots", "student")}
    assert unlisted("from ood_lib.evaluation.metrics import student") == set()
    extras = {"plots": {"scipy"}, "book": {"pyyaml"}}
    assert unnamed('import os, scipy.stats\nneed("yaml", "book")', extras) == set()
    assert unnamed('import pandas\nneed("yaml")', extras) == {"pandas", "yaml"}
    said = '"""See `ood_lib.MSP`, `ood_lib.mps`, `torch.nn`, `a.c`, `a` and ``d``; not `e`. Example: `f`"""\na = 1'
    assert lost(said, named(said)) == {"ood_lib.mps", "e"}
    assert assigned("from a import b\nc: int = 1\nd, e = 1, 2\ndef f(): g = 1") == {"c", "d", "e", "f"}

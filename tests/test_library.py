"""Laws of the library: a module lists what is its own, others take only what is listed, and imports are declared.

Each law is a function from names or text to complaints, so that the end of this file can show that it is able to fail.
"""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest

import ood_lib

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "ood_lib").rglob("*.py") if path.stem != "__init__")
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
MODULES = [name for name in NAMES if not name.endswith("__main__")]
PACKAGES = {"IPython": "ipython",
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
    return {(m, n) for m, n in taken(text) if n not in importlib.import_module(m).__all__}


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


def test_the_reference_has_every_module_and_leaves_nothing_of_it_out():
    text = (ROOT / "book/api.md").read_text()
    assert sorted(re.findall(r"automodule:: (\S+)", text)) == sorted(MODULES)
    assert "exclude-members" not in text


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
    assert assigned("from a import b\nc: int = 1\nd, e = 1, 2\ndef f(): g = 1") == {"c", "d", "e", "f"}

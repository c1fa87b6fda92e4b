"""What is asked for: notebooks, a profile and overrides become tasks, each with all that its result depends on.

Everything that can be refused is refused here, before the first notebook runs.
"""

import ast
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import ood_lib
from ood_book.metadata import budgets, read_yaml
from ood_book.notebooks import Parameter, Refused, code_of, content_hash, fits, parameters_of, select, sources, unknown
from ood_book.run.budget import PROMISED
from ood_book.run.inputs import hash_inputs, hash_path
from ood_book.run.limits import check_value, read_text
from ood_lib.data import NAMES
from ood_lib.shipped import BANKS, FORMER_NAMES

__all__ = [
    "Given", "Profile", "Task", "check_names", "hash_files", "library_hash", "make_task", "plan", "profiles",
    "read_profile", "readings", "short_name",
]  # fmt: skip

LIBRARY = Path(ood_lib.__file__).parent
CHARTS = Path(__file__).parents[1] / "explorables.py"  # what notebooks import beside the library
PATHS = {  # the part of a parameter that is a path
    **dict.fromkeys(("benchmark", "benchmarks"), "(?<=^folder:).+|(?<=^bank:).+"),  # of a list, each of its items
    **dict.fromkeys(("data_dir", "bank", "archive", "claims", "results", "weights"), ".+"),
}
MADE = ("results",)  # what a run makes where it is missing; all other paths must be there


@dataclass(frozen=True)
class Task:
    """The run of one notebook; travels to the process that runs it, on this machine or another."""

    source: Path
    text: str  # of the source as it was planned: an edit while others run changes nothing
    target: Path | str  # the finished notebook: a file, or an address that papermill can write (s3://, gs://, ...)
    given: dict[str, Any]  # what differs from the defaults
    parameters: dict[str, Any]  # the defaults with `given` on top
    fills_results: bool  # whether the runner chooses the notebook's `results` folder
    key: str
    library: str  # hash of the library that was planned with
    label: str  # what messages call it: the notebook, or the run of a sweep
    budget: float | None = None  # minutes; None where nothing is promised of these values
    patience: float = 0  # times its budget after which it is stopped; 0: never

    @property
    def name(self) -> str:
        """What the reader calls it."""
        return self.source.stem

    @property
    def command(self) -> str:
        """What makes this run again: the values of a profile one by one, folders by their last name alone."""
        words = (word for k, v in self.given.items() if k != "results" for word in ("-p", k, _to_anywhere(k, v)))
        return shlex.join(["ood-book", "run", self.name, *words])

    @property
    def results(self) -> Path | None:
        """The folder of what the notebook writes for the pages; None where the notebook alone is kept."""
        return self.target.with_suffix("") if isinstance(self.target, Path) and self.fills_results else None

    @property
    def failed(self) -> Path | None:
        """Where the notebook of a run that failed is kept; None where it is not."""
        return self.target.with_suffix(".failed.ipynb") if isinstance(self.target, Path) else None

    @property
    def failure(self) -> str:
        """What became of the last run with this very key that failed or was stopped; empty where there is none."""
        try:
            text = self.failed.read_text(encoding="utf-8") if self.failed else "{}"
            record = json.loads(text)["metadata"]["ood_book_failed"]
        except (KeyError, OSError, ValueError):
            return ""
        return record["message"] if record["key"] == self.key else ""

    @property
    def is_done(self) -> bool:
        """Whether a complete run with this very key is there."""
        return self.record() is not None

    def record(self) -> dict[str, Any] | None:
        """How the complete run with this very key was made, and its tables; None where there is none."""
        if self.results and not self.results.is_dir():
            return None
        try:
            record = json.loads(self._read())["metadata"].get("ood_book", {})
        except Exception:  # each kind of storage says in its own way that nothing is there
            return None
        return record if record.get("key") == self.key else None

    def _read(self) -> str:
        if isinstance(self.target, Path):
            return self.target.read_text(encoding="utf-8")
        from papermill.iorw import papermill_io  # half a second that only an address needs

        return papermill_io.read(self.target)


@dataclass(frozen=True)
class Profile:
    """What a run starts from: the values of a profile, and the parameters of every notebook."""

    name: str
    values: dict[str, Any]
    known: dict[Path, dict[str, Parameter]]

    @classmethod
    def of(cls, root: Path, given: str) -> Self:
        """The profile, each of whose names some notebook has."""
        name, values = read_profile(root, given)
        known = {source: parameters_of(source) for source in sources(root).values()}
        check_names(f"parameter in profile {name!r}", values, known.values())
        return cls(name, values, known)


def profiles(root: Path) -> dict[str, Path]:
    """The book's own profiles by name."""
    return {path.stem: path for path in sorted((root / "notebooks/profiles").glob("*.yaml"))}


def read_profile(root: Path, given: str) -> tuple[str, dict[str, Any]]:
    """The name (for a file from elsewhere with a hash of its content) and the values."""
    own = profiles(root)
    path = Path(given).resolve() if given.endswith((".yaml", ".yml")) else own.get(given)
    if path is None or not path.is_file():
        raise unknown("profile", given, own)
    values = read_yaml(path)
    return path.stem if path in own.values() else f"{path.stem}-{content_hash(path.read_bytes())[:8]}", values


def plan(
    root: Path, profile: str, overrides: dict[str, str], notebooks: Sequence[str] = (), out: Path | None = None
) -> tuple[Path, list[Task]]:
    """The folder of the runs and a task for each notebook."""
    start = Profile.of(root, profile)
    selected = {source: start.known[source] for source in select(root, notebooks)}
    check_names("parameter", overrides, selected.values())
    read = readings(start.values, overrides)
    named = short_name({k: read[k].folder_name() for k in overrides})
    folder = f"{start.name}-{named}" if overrides else start.name
    out = (out or root / "_build/run" / folder).resolve()
    library, hashed = library_hash(), cache(hash_path)
    promised = {} if overrides or start.name not in PROMISED else budgets(root)
    return out, [
        make_task(s, known, read, out / f"{s.stem}.ipynb", library, hashed, budget=promised.get(s.stem))
        for s, known in selected.items()
    ]


def check_names(kind: str, given: Iterable[str], known: Iterable[dict[str, Any]]) -> None:
    """Refuse a name that none of the notebooks has."""
    names = set().union(*known)
    for name in given:
        if name not in names:
            raise unknown(kind, str(name), names)


@dataclass(frozen=True)
class Given:
    """What was given: a value of a file, or a text of the command line, which the kind of the parameter explains."""

    name: str
    value: Any
    is_text: bool

    def read(self, kind: ast.expr) -> Any:
        """What it means for a parameter of this kind; raises ValueError where it means nothing."""
        text = self.value
        if isinstance(text, str) and (self.is_text or not fits(text, kind)):  # YAML 1.1 takes 1e-3 for a text
            text = read_text(text, kind)
        return _from_here(self.name, text)

    def folder_name(self) -> Any:
        """As it was given, but for a path, which is meant from here."""
        return _from_here(self.name, self.value)


def readings(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Given]:
    """What was given for each parameter: the values of a profile, and those in their place."""
    read = {k: Given(k, v, False) for k, v in values.items()}
    return read | {k: Given(k, v, isinstance(v, str)) for k, v in overrides.items()}


def _from_here(name: str, value: Any) -> Any:
    """Paths are meant from where the command is given; the kernel runs elsewhere."""
    if name in PATHS and isinstance(value, list):
        return [_from_here(name, item) for item in value]
    if name not in PATHS or not isinstance(value, str):
        return value
    if name == "weights" and not _is_file(value):  # a name that torchvision knows
        return value
    return re.sub(PATHS[name], lambda path: os.path.abspath(os.path.expanduser(path[0])), value)


def _is_file(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text)) or bool(re.search(r"[/\\~]|\.(pt|pth|safetensors)$", text))


def _to_anywhere(name: str, value: Any) -> str:
    """The value as a command line takes it, the folders above a path left out."""
    if name in PATHS and isinstance(value, list):
        value = [_to_anywhere(name, item) for item in value]
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(PATHS[name], lambda path: os.path.basename(path[0]), text) if name in PATHS else text


def short_name(values: dict[str, Any]) -> str:
    """A folder for a set of values, so that none overwrites another, also where a disk takes A and a for the same."""
    given = sorted(values.items())
    text = ",".join(f"{k}={v}" for k, v in given)
    safe = re.sub(r"[^\w.,=+-]+", "_", text)[:60]
    plain = safe == text and all(re.fullmatch(r"[a-z0-9_.+-]+", f"{k}{v}") for k, v in given)
    return safe if plain else f"{safe}-{content_hash(repr(given))[:8]}"


def hash_files(folder: Path, pattern: str = "*") -> str:
    """One hash of the names and contents of all files below a folder."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob(pattern)) if path.is_file())
    return content_hash(*(x for name in names for x in (str(name), (folder / name).read_bytes())))


def library_hash() -> str:
    """One hash of all that numbers depend on beside the notebook: the code, and what ships with it."""
    cards = hash_files(LIBRARY / "shipped", "*.json")  # they hold the hashes of the weights and of the banks
    return content_hash(hash_files(LIBRARY, "*.py"), CHARTS.read_bytes(), cards)


def make_task(
    source: Path, known: dict[str, Parameter], read: dict[str, Given], target: Path | str, library: str,
    hashed: Callable[[Path], str] = hash_path, label: str = "", budget: float | None = None,
) -> Task:  # fmt: skip
    """The task of one notebook; refuses values that do not fit the annotations of its parameters.

    Its key is a hash of what its numbers depend on: its code, the library, its values, and what these name. Prose is
    not among it: whoever shows the run takes that from the source (`percent.executed`).
    """
    values = {k: _value(k, known[k], found, source) for k, found in read.items() if k in known}
    given = {k: v for k, v in values.items() if v != known[k].default}
    parameters = {k: p.default for k, p in known.items()} | given
    fills_results = "results" in known and "results" not in given
    if fills_results:
        del parameters["results"]  # a path of this machine says nothing about the numbers
    text = source.read_text(encoding="utf-8")
    given_values = json.dumps(parameters, sort_keys=True, default=str)
    inputs = hash_inputs({k: v for k, v in parameters.items() if k not in MADE}, source.parent, hashed)
    key = content_hash(content_hash(*code_of(text)), library, given_values, inputs)
    return Task(source, text, target, given, parameters, fills_results, key, library, label or source.stem, budget)


def _value(name: str, parameter: Parameter, given: Given, source: Path) -> Any:
    try:
        value = given.read(parameter.kind)
    except ValueError as error:
        raise _unfit(name, parameter, given.value, source, f": {error}") from error
    if not fits(value, parameter.kind):
        raise _unfit(name, parameter, value, source)
    known = (None, *NAMES, *BANKS, *FORMER_NAMES)
    for asked in {"benchmark": [value], "benchmarks": value}.get(name, []):
        if asked not in known and not re.match("(folder|bank):.", str(asked)):
            raise unknown("benchmark", str(asked), [*NAMES, *BANKS, "folder:PATH", "bank:PATH"])
    try:
        check_value(name, value)
    except ValueError as error:
        raise Refused(f"parameter {name!r} of {source.stem}: {error}") from error
    _check_there(name, value, source)
    return value


def _unfit(name: str, parameter: Parameter, value: Any, source: Path, why: str = "") -> Refused:
    expected = f"{ast.unparse(parameter.kind)} (default {parameter.default!r})"
    return Refused(f"parameter {name!r} of {source.stem} expects {expected}, given {value!r}{why}")


def _check_there(name: str, value: Any, source: Path) -> None:
    """Refuse a path at which there is nothing: read as an empty folder it would give a page without numbers."""
    for item in (value if isinstance(value, list) else [value]) if name in PATHS and name not in MADE else ():
        found = re.search(PATHS[name], item) if isinstance(item, str) else None
        if found and os.path.isabs(found[0]) and not os.path.exists(found[0]):
            raise Refused(f"parameter {name!r} of {source.stem}: there is no file or folder {found[0]}")

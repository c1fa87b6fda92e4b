"""What is asked for: notebooks, a profile and overrides become tasks, each with all that its result depends on.

Everything that can be refused is refused here, before the first notebook runs.
"""

import ast
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

import ood_lib
from ood_book.metadata import budgets
from ood_book.notebooks import Parameter, Refused, content_hash, fits, parameters_of, select, sources, unknown
from ood_book.run.budget import PROMISED
from ood_lib.data import NAMES
from ood_lib.shipped import BANKS, FORMER_NAMES

__all__ = [
    "Profile", "Task", "check_names", "hash_files", "library_hash", "make_task", "plan", "profiles", "read_profile",
    "readings", "short_name",
]  # fmt: skip

LIBRARY = Path(ood_lib.__file__).parent
PATHS = {  # the part of a parameter that is a path
    "benchmark": "(?<=^folder:).+|(?<=^bank:).+", "data_dir": ".+", "bank": ".+",
}  # fmt: skip


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
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise Refused(f"profile {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise Refused(f"profile {path} is not a list of `name: value` lines")
    return path.stem if path in own.values() else f"{path.stem}-{content_hash(text)[:8]}", values


def plan(
    root: Path, profile: str, overrides: dict[str, str], notebooks: Sequence[str] = (), out: Path | None = None
) -> tuple[Path, list[Task]]:
    """The folder of the runs and a task for each notebook."""
    start = Profile.of(root, profile)
    selected = {source: start.known[source] for source in select(root, notebooks)}
    check_names("parameter", overrides, selected.values())
    read = readings(start.values, overrides)
    folder = f"{start.name}-{short_name({k: read[k][-1] for k in overrides})}" if overrides else start.name
    out = (out or root / "_build/run" / folder).resolve()
    library = library_hash()
    promised = {} if overrides or start.name not in PROMISED else budgets(root)
    return out, [
        make_task(s, known, read, out / f"{s.stem}.ipynb", library, budget=promised.get(s.stem))
        for s, known in selected.items()
    ]


def check_names(kind: str, given: Iterable[str], known: Iterable[dict[str, Any]]) -> None:
    """Refuse a name that none of the notebooks has."""
    names = set().union(*known)
    for name in given:
        if name not in names:
            raise unknown(kind, str(name), names)


def readings(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, list[Any]]:
    """What each value may mean, the likeliest first; a text of the overrides may mean several things."""
    read = {k: [v] for k, v in values.items()}
    read |= {k: _readings(v) if isinstance(v, str) else [v] for k, v in overrides.items()}
    return {k: [_from_here(k, v) for v in meanings] for k, meanings in read.items()}


def _readings(text: str) -> list[Any]:
    """What a text of the command line may mean, the likeliest first and itself last."""
    found = []
    for read in (yaml.safe_load, float, str):  # float, because YAML 1.1 takes 1e-3 for text
        with suppress(ValueError, yaml.YAMLError):
            found.append(read(text))
    return found


def _from_here(name: str, value: Any) -> Any:
    """Paths are meant from where the command is given; the kernel runs elsewhere."""
    if name not in PATHS or not isinstance(value, str):
        return value
    return re.sub(PATHS[name], lambda path: os.path.abspath(os.path.expanduser(path[0])), value)


def _to_anywhere(name: str, value: Any) -> str:
    """The value as a command line takes it, the folders above a path left out."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(PATHS[name], lambda path: os.path.basename(path[0]), text) if name in PATHS else text


def short_name(values: dict[str, Any]) -> str:
    """A folder for a set of values, so that none overwrites another."""
    text = ",".join(f"{k}={v}" for k, v in sorted(values.items()))
    safe = re.sub(r"[^\w.,=+-]+", "_", text)[:60]
    return safe + ("" if safe == text else f"-{content_hash(text)[:8]}")


def hash_files(folder: Path, pattern: str = "*") -> str:
    """One hash of the names and contents of all files below a folder."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob(pattern)) if path.is_file())
    return content_hash(*(x for name in names for x in (str(name), (folder / name).read_bytes())))


def library_hash() -> str:
    """One hash of all that numbers depend on beside the notebook: the code, and what ships with it."""
    cards = hash_files(LIBRARY / "shipped", "*.json")  # they hold the hashes of the weights and of the banks
    return content_hash(hash_files(LIBRARY, "*.py"), cards)


def make_task(
    source: Path, known: dict[str, Parameter], read: dict[str, list[Any]], target: Path | str, library: str,
    label: str = "", budget: float | None = None,
) -> Task:  # fmt: skip
    """The task of one notebook; refuses values that do not fit the annotations of its parameters."""
    values = {k: _value(k, known[k], meanings, source) for k, meanings in read.items() if k in known}
    given = {k: v for k, v in values.items() if v != known[k].default}
    parameters = {k: p.default for k, p in known.items()} | given
    fills_results = "results" in known and "results" not in given
    if fills_results:
        del parameters["results"]  # a path of this machine says nothing about the numbers
    text = source.read_text(encoding="utf-8")
    given_values = json.dumps(parameters, sort_keys=True, default=str)
    key = content_hash(source.read_bytes(), library, given_values, _files(source, parameters.values()))
    return Task(source, text, target, given, parameters, fills_results, key, library, label or source.stem, budget)


def _files(source: Path, values: Iterable[Any]) -> str:
    """One hash of what parameters name in the folder of the pages, such as the claims that the ledger reads."""
    named = ((source.parent / value).resolve() for value in values if isinstance(value, str))
    pages = source.parent.parent.resolve() / "book"
    read = [path for path in named if pages in path.parents and path.exists()]
    return content_hash(*(hash_files(path) if path.is_dir() else path.read_bytes() for path in read))


def _value(name: str, parameter: Parameter, meanings: Sequence[Any], source: Path) -> Any:
    fitting = [value for value in meanings if fits(value, parameter.kind)]
    if not fitting:
        expected = f"{ast.unparse(parameter.kind)} (default {parameter.default!r})"
        raise Refused(f"parameter {name!r} of {source.stem} expects {expected}, given {meanings[-1]!r}")
    value = fitting[0]
    known = (None, *NAMES, *BANKS, *FORMER_NAMES)
    if name == "benchmark" and value not in known and not re.match("(folder|bank):.", str(value)):
        raise unknown("benchmark", str(value), [*NAMES, *BANKS, "folder:PATH", "bank:PATH"])
    return value

"""What is asked for: notebooks, a profile and overrides become tasks, each with all that its result depends on.

Everything that can be refused is refused here, before the first notebook runs.
"""

import ast
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ood_lib import data
from ood_lib.book.notebooks import Parameter, Refused, content_hash, fits, parameters_of, select, sources, unknown
from ood_lib.extras import need

__all__ = ["Task", "hash_files", "plan", "profiles", "read_profile"]

RUNNER = Path(__file__).parent
LIBRARY = RUNNER.parent
PATHS = {"benchmark": "(?<=^folder:).+", "data_dir": ".+", "bank": ".+"}  # the part of a parameter that is a path


@dataclass(frozen=True)
class Task:
    """The run of one notebook; travels to the process that runs it."""

    source: Path
    target: Path  # the finished notebook; its results folder has the same name without suffix
    given: dict[str, Any]  # what differs from the defaults
    parameters: dict[str, Any]  # the defaults with `given` on top
    fills_results: bool  # whether the runner chooses the notebook's `results` folder
    key: str

    @property
    def name(self) -> str:
        """What the reader calls it."""
        return self.source.stem

    @property
    def results(self) -> Path:
        """The folder of what the notebook writes for the pages."""
        return self.target.with_suffix("")

    @property
    def draft(self) -> Path:
        """The hidden folder that holds everything until it is complete."""
        return self.target.parent / f".{self.name}.partial"

    @property
    def is_done(self) -> bool:
        """Whether a complete run with this very key is there."""
        if not self.target.is_file() or (self.fills_results and not self.results.is_dir()):
            return False
        metadata = json.loads(self.target.read_text(encoding="utf-8"))["metadata"]
        return metadata.get("ood_book", {}).get("key") == self.key


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
    yaml = need("yaml", "book")
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
    profile, values = read_profile(root, profile)
    known = {source: parameters_of(source) for source in sources(root).values()}
    selected = {source: known[source] for source in select(root, notebooks)}
    _check_names(f"parameter in profile {profile!r}", values, known.values())
    _check_names("parameter", overrides, selected.values())
    read = {k: [v] for k, v in values.items()} | {k: _readings(v) for k, v in overrides.items()}
    read = {k: [_from_here(k, v) for v in meanings] for k, meanings in read.items()}
    folder = _folder(profile, {k: read[k][-1] for k in overrides})
    out = (out or root / "_build/run" / folder).resolve()
    library = hash_files(LIBRARY, "*.py", without=RUNNER.name)  # no number depends on the runner
    return out, [_task(source, parameters, read, out, library) for source, parameters in selected.items()]


def _check_names(kind: str, given: Iterable[str], known: Iterable[dict[str, Any]]) -> None:
    names = set().union(*known)
    for name in given:
        if name not in names:
            raise unknown(kind, str(name), names)


def _readings(text: str) -> list[Any]:
    """What a text of the command line may mean, the likeliest first and itself last."""
    found, yaml = [], need("yaml", "book")
    for read in (yaml.safe_load, float, str):  # float, because YAML 1.1 takes 1e-3 for text
        with suppress(ValueError, yaml.YAMLError):
            found.append(read(text))
    return found


def _from_here(name: str, value: Any) -> Any:
    """Paths are meant from where the command is given; the kernel runs elsewhere."""
    if name not in PATHS or not isinstance(value, str):
        return value
    return re.sub(PATHS[name], lambda path: os.path.abspath(os.path.expanduser(path[0])), value)


def _folder(profile: str, overrides: dict[str, str]) -> str:
    """Where runs go: one folder per set of overrides, so that none overwrites another."""
    if not overrides:
        return profile
    text = ",".join(f"{k}={v}" for k, v in sorted(overrides.items()))
    safe = re.sub(r"[^\w.,=+-]+", "_", text)[:60]
    return f"{profile}-{safe}" + ("" if safe == text else f"-{content_hash(text)[:8]}")


def hash_files(folder: Path, pattern: str = "*", without: str = "") -> str:
    """One hash of the names and contents of all files below a folder, one folder in it left out."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob(pattern)) if path.is_file())
    return content_hash(*(x for n in names if n.parts[0] != without for x in (str(n), (folder / n).read_bytes())))


def _task(source: Path, known: dict[str, Parameter], read: dict[str, list[Any]], out: Path, library: str) -> Task:
    values = {k: _value(k, known[k], meanings, source) for k, meanings in read.items() if k in known}
    given = {k: v for k, v in values.items() if v != known[k].default}
    parameters = {k: p.default for k, p in known.items()} | given
    fills_results = "results" in known and "results" not in given
    if fills_results:
        del parameters["results"]  # a path of this machine says nothing about the numbers
    key = content_hash(source.read_bytes(), library, json.dumps(parameters, sort_keys=True, default=str))
    return Task(source, out / f"{source.stem}.ipynb", given, parameters, fills_results, key)


def _value(name: str, parameter: Parameter, meanings: Sequence[Any], source: Path) -> Any:
    fitting = [value for value in meanings if fits(value, parameter.kind)]
    if not fitting:
        expected = f"{ast.unparse(parameter.kind)} (default {parameter.default!r})"
        raise Refused(f"parameter {name!r} of {source.stem} expects {expected}, given {meanings[-1]!r}")
    value = fitting[0]
    if name == "benchmark" and value not in (None, *data.BENCHMARKS) and not re.match("folder:.", str(value)):
        raise unknown("benchmark", str(value), [*data.BENCHMARKS, "folder:PATH"])
    return value

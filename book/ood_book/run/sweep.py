"""A sweep: one notebook at every combination of values and seeds, each a run of its own, and one table of them all."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pandas as pd
from papermill.iorw import papermill_io

from ood_book.metadata import load_yaml
from ood_book.notebooks import Refused, given_once, select
from ood_book.run.inputs import hash_path
from ood_book.run.plan import Profile, Task, check_names, library_hash, make_task, readings, short_name
from ood_lib.shipped import is_bank

__all__ = ["Factor", "Sweep", "collect", "factors", "plan_sweep", "reserve"]

Factor = list[dict[str, Any]]  # alternatives, each with values for one or more parameters


@dataclass(frozen=True)
class Sweep:
    """A planned sweep."""

    tasks: list[Task]
    names: list[str]  # the parameters that were given, `seed` last
    profile: str
    folder: Path  # of the table and the page
    out: Path | str  # of the runs

    @property
    def name(self) -> str:
        """The notebook."""
        return self.tasks[0].name


def factors(pairs: Sequence[Sequence[str]], grid: Path | None) -> list[Factor]:
    """What is to be combined: `-p NAME a,b,c`, and a YAML file, a grid (name: values) or a list of combinations.

    Raises:
        Refused: the file is neither, a parameter is given twice, or a value is missing.
    """
    found: list[Factor] = [[{name: piece} for piece in _pieces(name, text)] for name, text in pairs]
    found += _grid(grid) if grid else []
    given_once(name for factor in found for name in dict.fromkeys(n for line in factor for n in line))
    return found


def _pieces(name: str, text: str) -> list[str]:
    """The values between the commas; one in brackets, or in quotes around a value, does not cut."""
    pieces, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and (depth or not pieces[-1].strip()):  # not the apostrophe of a word
            quote = char
        elif char == "," and not depth:
            pieces.append("")
            continue
        else:
            depth = max(0, depth + (char in "[({") - (char in "])}"))
        pieces[-1] += char
    if depth or quote:
        raise Refused(f"-p {name} {text!r} opens a bracket or a quote that is not closed; put quotes around the value")
    if not all(piece.strip() for piece in pieces):
        raise Refused(f'-p {name} {text!r} has a place without a value; write -p NAME a,b,c, and "" for an empty text')
    return [_bare(piece.strip()) for piece in pieces]


def _bare(text: str) -> str:
    """Without the quotes around all of it, which keep its commas together."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _grid(file: Path) -> list[Factor]:
    content = load_yaml(file)
    if isinstance(content, dict) and content and [] not in content.values():
        return [[{k: v} for v in (values if isinstance(values, list) else [values])] for k, values in content.items()]
    if isinstance(content, list) and content and all(isinstance(line, dict) for line in content):
        return [content]
    raise Refused(f"grid {file} is neither `name: [value, value]` lines nor a list of `{{name: value}}` combinations")


def plan_sweep(
    root: Path, notebook: str, given: Sequence[Factor], seeds: int | None, profile: str, out: str | None = None
) -> Sweep:
    """Every run of the product, and of the seeds; refuses what `plan` refuses, equal values, and seeds of a bank.

    With ``seeds``, a combination runs that often.  Where a run trains several networks from consecutive seeds
    (parameter ``seeds``), the next run begins behind the last of them: no network is trained twice.
    """
    (source,) = select(root, [notebook])
    start, library, hashed = Profile.of(root, profile), library_hash(), cache(hash_path)
    known = start.known[source]
    lines = [{k: v for part in parts for k, v in part.items()} for parts in product(*given)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    check_names("parameter", [*names, *(["seed"] if seeds else [])], [known])
    if "results" in names:
        raise Refused("each run of a sweep has a `results` folder of its own; leave the parameter out")
    if seeds and "seed" in names:
        raise Refused("the seeds are given twice: by -p seed or the grid, and by --seeds")
    names = [*(n for n in names if n != "seed"), *(["seed"] if seeds or "seed" in names else [])]
    folder = root / "_build/sweep" / "-".join(filter(None, [source.stem, start.name, "+".join(names)]))
    place = _place(out) or folder

    def task(line: dict[str, Any]) -> Task:
        label = short_name(line) or "default"
        file = f"{source.stem}.ipynb"
        target = f"{place}/{label}/{file}" if isinstance(place, str) else place / label / file
        return make_task(source, known, readings(start.values, line), target, library, hashed, label)

    tasks = [task(line) for line in lines]
    for one, other in combinations(tasks, 2):
        if one.parameters == other.parameters:  # 1, 1.0 and 1e0 are one number
            raise Refused(f"{one.label} and {other.label} are the same run: a value is given twice; give it once")
    if seeds:
        tasks = [task(line | {"seed": s}) for line, t in zip(lines, tasks) for s in _seeds(t.parameters, seeds)]
    _refuse_seeds_of_banks(tasks)
    return Sweep(tasks, names, start.name, place if isinstance(place, Path) else folder, place)


def _seeds(parameters: dict[str, Any], count: int) -> list[int]:
    return [parameters["seed"] + run * parameters.get("seeds", 1) for run in range(count)]


def _refuse_seeds_of_banks(tasks: Sequence[Task]) -> None:
    """Each seed of a bank would be the same networks again, and an interval over them would have no width."""
    found: dict[str, Any] = {}
    for parameters in (task.parameters for task in tasks):
        named = parameters.get("benchmark", parameters.get("benchmarks"))
        for name in map(str, named if isinstance(named, list) else [named]):
            if is_bank(name) and found.setdefault(name, parameters.get("seed")) != parameters.get("seed"):
                raise Refused(
                    f"several seeds were given for {name}, a bank: its networks are trained already, so each seed "
                    "would give the same numbers. Leave out --seeds and give one seed at most, or name a benchmark on "
                    "which networks are trained, such as digits"
                )


def _place(out: str | None) -> Path | str | None:
    if out and re.match(r"\w[\w+.-]*://", out):
        return out.rstrip("/")
    return Path(out).resolve() if out else None


def reserve(sweep: Sweep) -> None:
    """Write what is planned to a remote place; refuses a place that cannot be written before anything runs there."""
    if isinstance(sweep.out, Path):
        return
    plan = {"notebook": sweep.name, "profile": sweep.profile, "runs": {t.label: t.parameters for t in sweep.tasks}}
    try:
        papermill_io.write(json.dumps(plan, indent=1), f"{sweep.out}/sweep.json")
    except Exception as error:  # each kind of storage has its own
        raise Refused(f"cannot write to {sweep.out}: {type(error).__name__}: {error}") from error


def collect(sweep: Sweep, failures: dict[str, str]) -> pd.DataFrame:
    """One row per run and row of the tables that its notebook wrote into `results`; one row for a run without any.

    Columns: run, status (done, failed, not run), error, the varied parameters (``seed`` as run_seed), run_seconds,
    run_memory_mb, table (its file). The columns of the tables follow, with ``result_`` in front of a name that is
    already used. A table that cannot be read is an error of its run, which is done all the same.
    """
    return pd.DataFrame([row for task in sweep.tasks for row in _rows(task, sweep.names, failures.get(task.label, ""))])


def _rows(task: Task, names: Sequence[str], error: str) -> list[dict[str, Any]]:
    record = task.record() or {}
    rows: list[tuple[str, dict[str, Any]]] = []
    for name, text in record.get("tables", {}).items():
        try:
            rows += [(name, row) for row in _read(name, text)]
        except ValueError as problem:  # also of pandas and of json
            error = f"wrote {name}, which cannot be read: {problem}"
    about: dict[str, Any] = {"run": task.label}
    about |= {"status": "done" if record else "failed" if error else "not run", "error": error}
    about |= {"run_seed" if n == "seed" else n: _plain(task.parameters[n]) for n in names}
    about |= {"run_seconds": record.get("seconds"), "run_memory_mb": record.get("peak_memory_mb"), "table": ""}
    return [
        about | {"table": name} | {f"result_{k}" if k in about else k: v for k, v in row.items()}
        for name, row in rows or [("", {})]
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)  # nothing is null, not a NaN


def _read(name: str, text: str) -> list[dict[str, Any]]:
    """The rows of a CSV file, or of a result file of `save_results`; other JSON has none.

    Raises:
        ValueError: it is no CSV or JSON, or its rows are none.
    """
    if name.endswith(".csv"):
        return pd.read_csv(io.StringIO(text)).to_dict("records")
    content = json.loads(text)
    rows = content["rows"] if isinstance(content, dict) and isinstance(content.get("rows"), list) else []
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError('its "rows" are not all objects, {"detector": "KNN", ...}')
    return rows

"""The `ood-book` command: runs the notebooks side by side and builds the pages from the results.

A thin layer over jupytext (`.py` to notebook), papermill (runs) and Jupyter Book (pages). All that
it writes lies under `_build/`, except for `sync`: the `.ipynb` next to each `.py`.

A command imports what it needs when it runs, so that the others start fast.
"""

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ood_book.notebooks import Refused, content_hash, find_root, given_once, parameters_of, select, sources, title_of
from ood_book.run.budget import PATIENCE, PROMISED, WARN
from ood_lib.extras import MissingExtraError
from ood_lib.files import FULL, UNWRITABLE, atomic, check_writable, read_json, write_text
from ood_lib.terminal import terminal

if TYPE_CHECKING:
    from ood_book.run.plan import Task

__all__ = ["main"]


def _run(args: argparse.Namespace) -> int:
    from ood_book.run.plan import plan
    from ood_book.run.runner import run_side_by_side

    out, planned = plan(find_root(args.root), args.profile, dict(args.parameters), args.notebooks, args.out)
    tasks = [replace(task, patience=args.patience) for task in planned]
    todo = [task for task in tasks if args.force or not task.is_done]
    for task in tasks:
        if task not in todo:
            print(f"{task.name}: up to date")
    if todo:
        check_writable(out)
    failures = run_side_by_side(todo, args.jobs)
    for name, message in failures.items():
        print(f"\n{name} {message}", file=sys.stderr)
    if failures:
        print(f"\n{len(failures)} of {len(todo)} failed: {', '.join(failures)}", file=sys.stderr)
    print("\n".join([f"runs are in {out}", *_tables([task for task in tasks if task.label not in failures])]))
    return 1 if failures else 0


def _tables(tasks: "Sequence[Task]") -> list[str]:
    """The tables that runs have written, a line for each notebook, and the line of pandas that reads one of them."""
    from ood_book.run.work import TABLES

    folders = [task.results for task in tasks if task.results]
    found = {folder: sorted(p.name for p in folder.iterdir() if p.suffix in TABLES) for folder in folders}
    lines = [f"  {folder.name}/  {', '.join(names)}" for folder, names in found.items() if names]
    tables = [folder / name for folder, names in found.items() for name in names if name.endswith(".csv")]
    read = [f'read one in Python: import pandas as pd; pd.read_csv("{tables[0].as_posix()}")'] if tables else []
    return ["tables, in the folder of each notebook there:", *lines, *read] if lines else []


def _sweep(args: argparse.Namespace) -> int:
    from ood_book.run.compare import write_comparison
    from ood_book.run.sweep import collect, factors, plan_sweep, reserve

    values = factors(args.parameters, args.grid)
    sweep = plan_sweep(find_root(args.root), args.notebook, values, args.seeds, args.profile, args.out)
    todo = [] if args.collect else [task for task in sweep.tasks if not task.is_done]
    failures = {}
    if todo:
        check_writable(sweep.folder)
        reserve(sweep)
        print(f"{len(todo)} of {len(sweep.tasks)} runs to do", flush=True)
        failures = _run_anywhere(todo, args)
    table = collect(sweep, failures)
    for name, message in table.loc[table["error"] != "", ["run", "error"]].drop_duplicates().itertuples(index=False):
        print(f"\n{name} {message}", file=sys.stderr)
    print(f"runs are in {sweep.out}\nopen {write_comparison(sweep, table, args.line)}")
    return 0 if set(table["status"]) == {"done"} and set(table["error"]) == {""} else 1


def _run_anywhere(tasks: "Sequence[Task]", args: argparse.Namespace) -> dict[str, str]:
    """On the cluster, if one is given, else on this machine; what failed, by label."""
    if args.dask:
        from ood_book.run.cluster import run_on_cluster

        return run_on_cluster(tasks, args.dask)
    from ood_book.run.runner import run_side_by_side

    return run_side_by_side(tasks, args.jobs)


def _build(args: argparse.Namespace) -> int:
    from ood_book.run.plan import plan
    from ood_book.site.missing import Missing
    from ood_book.site.pages import build_pages

    root = find_root(args.root)
    runs, tasks = plan(root, args.profile, dict(args.parameters))
    done = [task for task in tasks if task.is_done]
    if not done:
        raise _not_run(args, tasks)
    build = _again("build", [], args)
    missing = [Missing.of(t, (_again("run", [t.name], args), build)) for t in tasks if t not in done]
    name = "html" if runs.name == "default" else f"html-{runs.name}"
    html = (args.out or root / "_build" / name).resolve()
    if not build_pages(root, done, html, missing):
        print("ood-book: no pages; the warnings above say why", file=sys.stderr)
        return 1
    print(f"open {html / 'index.html'}", flush=True)
    if not missing:
        return 0
    print("ood-book: the pages are not complete. In the place of these chapters a page says why:", file=sys.stderr)
    for chapter in missing:
        print(f"  {chapter.name} {chapter.reason.splitlines()[0]}", file=sys.stderr)
    print(f"Run: {_again('run', [chapter.name for chapter in missing], args)}", file=sys.stderr)
    return 1


def _finished(root: Path, args: argparse.Namespace, notebooks: Sequence[str]) -> "list[Task]":
    """The tasks of finished runs; refused where one is not run as it is now."""
    from ood_book.run.plan import plan

    _, tasks = plan(root, args.profile, dict(args.parameters), notebooks)
    if stale := [task for task in tasks if not task.is_done]:
        raise _not_run(args, stale, notebooks)
    return tasks


def _not_run(args: argparse.Namespace, tasks: "Sequence[Task]", notebooks: Sequence[str] = ()) -> Refused:
    names = ", ".join(task.name for task in tasks)
    return Refused(f"not run as they are now: {names}. Run: {_again('run', notebooks, args)}")


def _again(command: str, notebooks: Sequence[str], args: argparse.Namespace) -> str:
    """The line that runs notebooks, or builds the pages, with the values of this command."""
    overrides = [word for pair in args.parameters for word in ("-p", *pair)]
    return shlex.join(["ood-book", command, *notebooks, "--profile", args.profile, *overrides])


def _list(args: argparse.Namespace) -> int:
    from ood_book.metadata import about
    from ood_book.run.plan import profiles, read_profile
    from ood_lib.data import NAMES
    from ood_lib.shipped import BANKS

    root = find_root(args.root)
    entries = about(root)
    print("Notebooks")
    for name, source in sources(root).items():
        print(f"  {name:<24} {title_of(source.read_text(encoding='utf-8'))}")
        if name in entries:
            print(f"      {entries[name].goal}\n      {entries[name].cost}; {entries[name].data}")
        for key, p in parameters_of(source).items():
            print(f"      {f'{key}: {ast.unparse(p.kind)} = {p.default!r}':<36} {p.help}")
    print("Profiles")
    for name in profiles(root):
        values = read_profile(root, name)[1]
        print(f"  {name:<24} {', '.join(f'{k}={v}' for k, v in values.items())}")
    print(f"Benchmarks\n  {', '.join([*NAMES, *BANKS, 'folder:PATH', 'bank:PATH'])}")
    return 0


def _teach(args: argparse.Namespace) -> int:
    from ood_book.percent import executed
    from ood_book.teach.deck import deck_of
    from ood_book.teach.editions import EDITIONS
    from ood_book.teach.handouts import handouts, zipped
    from ood_book.teach.plain import read_book

    root = find_root(args.root)
    out = (args.out or root / "_build/teach").resolve()
    # What cannot be is refused before anything is written.
    tasks = _finished(root, args, args.notebooks) if args.slides else []
    book = replace(read_book(root), site="")  # the pages have the solutions
    made = {
        path: data for source in select(root, args.notebooks) for path, data in handouts(source, book, args.at).items()
    }
    for path, data in made.items():
        _write(out / path, data)
    _write(out / "student.zip", zipped({p.name: p.read_bytes() for p in sorted((out / "student").glob("*.ipynb"))}))
    for task in tasks:
        write_text(
            out / "slides" / f"{task.name}.html", deck_of(root, task.name, executed(Path(task.target), task.text))
        )
    print(f"editions are in {out}: {', '.join([*EDITIONS, 'student.zip', 'quiz', *['slides'] * args.slides])}")
    return 0


def _write(path: Path, data: bytes) -> None:
    with atomic(path) as fresh:
        fresh.write_bytes(data)


def _sync(args: argparse.Namespace) -> int:
    from ood_book.metadata import generated
    from ood_book.percent import as_ipynb, parse
    from ood_book.teach.editions import reader
    from ood_book.teach.plain import read_book

    root = find_root(args.root)
    book = read_book(root)
    parts = generated(root)
    texts = {s: parts.get(s) or s.read_text(encoding="utf-8") for s in sources(root).values()}
    made = {s.with_suffix(".ipynb"): reader(parse(text), book, s.stem) for s, text in texts.items()}
    wanted = {path: as_ipynb(notebook) for path, notebook in made.items()} | parts
    differing = [p for p, text in wanted.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if not args.check:
        _spare_edited(root, differing)
    for path in differing:
        print(f"{path}: {'differs from' if args.check else 'written from'} {_origin(path)}")
        if not args.check:
            write_text(path, wanted[path])
    if not args.check:
        digests = {path.name: content_hash(text) for path, text in wanted.items() if path.suffix == ".ipynb"}
        with suppress(*[] if differing else [OSError]):  # where nothing differs, a book that cannot be written is fine
            write_text(root / SYNCED, json.dumps(digests, indent=1))
    return 1 if differing and args.check else 0


SYNCED = "_build/synced.json"  # what `sync` wrote last: a notebook that is otherwise was edited by somebody


def _spare_edited(root: Path, differing: Sequence[Path]) -> None:
    """Refuse to write over an `.ipynb` that somebody edited: what is in it is nowhere else."""
    try:
        written = read_json(root / SYNCED, "")
    except (OSError, ValueError):
        written = {}
    there = [path for path in differing if path.suffix == ".ipynb" and path.is_file()]
    if edited := [path for path in there if _is_edited(path, written.get(path.name))]:
        raise Refused(
            f"nothing is written: edited are {', '.join(map(str, edited))}. To keep a change of one, make it in its "
            ".py, which is the source; then, or to drop it, remove the .ipynb, sync again"
        )


def _is_edited(path: Path, written: str | None) -> bool:
    """Whether a notebook is neither as `sync` wrote it nor as git has it; if both are unknown, newer than its .py."""
    with suppress(OSError):
        git = subprocess.run(["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True)
        if git.returncode == 0:
            return path.read_bytes() != git.stdout and content_hash(path.read_bytes()) != written
    if written is not None:
        return content_hash(path.read_bytes()) != written
    return path.stat().st_mtime > path.with_suffix(".py").stat().st_mtime


def _origin(path: Path) -> str:
    return path.with_suffix(".py").name if path.suffix == ".ipynb" else "notebooks/notebooks.yaml"


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _patience(text: str) -> float:
    if not 0 <= (times := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("0 or more")
    return times


class _Parser(argparse.ArgumentParser):
    """Takes what follows `-p NAME` for its value, also where it begins with a minus, as -1e-3, -inf and -1,0,1 do."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [*(sys.argv[1:] if args is None else args)]
        for place, word in enumerate(words[:-2]):
            value = words[place + 2]
            if word == "-p" and re.match(r"-[^-]", value) and value not in self._option_string_actions:
                words[place + 2] = f"{PROTECTED}{value}"
        return super().parse_known_args(words, namespace)


PROTECTED = "\0"  # before a value that is no option


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ood-book", description="Run and build the book.")
    root = _Parser(add_help=False)
    root.add_argument("--root", type=Path, help="folder of the book (default: found from here)")
    profile = _Parser(add_help=False)
    profile.add_argument("--profile", default="default", help="name, or path of a YAML file")
    values = _Parser(add_help=False, parents=[profile])
    given: dict[str, Any] = {"dest": "parameters", "nargs": 2, "action": "append", "default": []}
    given["type"] = lambda text: text.removeprefix(PROTECTED)
    option = values.add_argument("-p", **given)
    option.metavar, option.help = ("NAME", "VALUE"), "overrides a parameter; may be repeated"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", parents=[root, values], help="run notebooks side by side")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all")
    run.add_argument("-j", "--jobs", type=_positive, help="notebooks at a time")
    run.add_argument("--out", type=Path, help="folder of the runs (default: _build/run/PROFILE)")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    patience = run.add_argument("--patience", type=_patience, default=PATIENCE, metavar="TIMES")
    patience.help = (
        f"stop a notebook that takes more than TIMES its budget, the minutes in notebooks/notebooks.yaml; 0: never "
        f"(default: {PATIENCE}; from {WARN} times on the run says so). Of wall-clock and processor time the smaller "
        f"counts, and wall-clock time at least by half. Only the profiles {' and '.join(PROMISED)} have a budget, and "
        "only without -p"
    )
    run.set_defaults(command=_run)

    sweep = commands.add_parser("sweep", parents=[root, profile], help="run one notebook at many values and seeds")
    sweep.add_argument("notebook", metavar="NOTEBOOK")
    several = sweep.add_argument("-p", **given)
    several.metavar, several.help = ("NAME", "VALUE,VALUE"), "values of a parameter; several of them are combined"
    sweep.add_argument("--grid", type=Path, metavar="FILE", help="YAML: name: [values], or a list of combinations")
    sweep.add_argument("--seeds", type=_positive, metavar="N", help="runs of each combination, from different seeds")
    where = sweep.add_mutually_exclusive_group()
    where.add_argument("-j", "--jobs", type=_positive, help="runs at a time on this machine")
    where.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster, or its scheduler file")
    sweep.add_argument("--out", help="folder of the runs, or an address that papermill can write (s3://, gs://, ...)")
    sweep.add_argument("--collect", action="store_true", help="run nothing, only tabulate what is complete")
    sweep.set_defaults(command=_sweep)

    build = commands.add_parser("build", parents=[root, values], help="build the pages of the runs with these values")
    build.add_argument("--out", type=Path, help="where the pages go (default: _build/html)")
    build.set_defaults(command=_build)

    listing = commands.add_parser("list", parents=[root], help="notebooks, parameters, profiles")
    listing.set_defaults(command=_list)

    teach = commands.add_parser("teach", parents=[root, values], help="write editions for students, teachers, a grader")
    teach.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all")
    teach.add_argument("--slides", action="store_true", help="and slides, of the runs with these values")
    teach.add_argument("--at", default="", metavar="TAG", help="tag or commit of the library that they install")
    teach.add_argument("--out", type=Path, help="where they go (default: _build/teach)")
    teach.set_defaults(command=_teach)

    sync = commands.add_parser("sync", parents=[root], help="write each .ipynb, and what else is made of the notebooks")
    sync.add_argument("--check", action="store_true", help="only say which differ (exit code 1)")
    sync.set_defaults(command=_sync)
    return parser


def _missing(error: ModuleNotFoundError) -> str:
    """The line of pip that brings a package that is not installed; an own module that is not there is our fault."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "ood_book", "ood_lib"):
        raise error
    extra = "cluster" if package == "distributed" else "book"
    return f'{package} is needed here: pip install "ood_lib[{extra}]"'


def _check(args: argparse.Namespace) -> None:
    """Refuse what no command can mean: a parameter given twice, a file in the place of the folder to write into."""
    given_once(name for name, _ in getattr(args, "parameters", []))
    place = Path(getattr(args, "out", None) or "").resolve()  # an address is no path that is there
    for path in (place, *place.parents):
        if path.exists() and not path.is_dir():
            raise Refused(f"--out {args.out}: {path} is a file; name a folder, or remove the file")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 is success, 1 a failed notebook or page, 2 refused input."""
    with terminal():
        args = _parser().parse_args(argv)
        args.line = shlex.join(["ood-book", *(sys.argv[1:] if argv is None else argv)])
        try:
            _check(args)
            return args.command(args)
        except (Refused, MissingExtraError, ModuleNotFoundError) as refusal:
            said = _missing(refusal) if isinstance(refusal, ModuleNotFoundError) else refusal
            print(f"ood-book: {said}", file=sys.stderr)
            return 2
        except OSError as error:
            if error.errno not in UNWRITABLE | FULL:
                raise
            print(f"ood-book: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("ood-book: interrupted; what was complete is kept", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())

"""The `ood-book` command: runs the notebooks side by side and builds the pages from the results.

A thin layer over jupytext (`.py` to notebook), papermill (runs) and Jupyter Book (pages). All that
it writes lies under `_build/`, except for `sync`: the `.ipynb` next to each `.py`.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import ast
import difflib
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
KINDS: dict[str, Any] = {
    "bool": bool, "dict": dict, "float": (int, float), "int": int, "list": list,
    "str": str, "tuple": (list, tuple),
}  # fmt: skip
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"  # not PATH's, this Python's
STAMP = ".ood-book"  # marks a folder of finished pages; holds the hash of what they show


class _Refused(Exception):
    """Input that cannot be right; said before anything runs (exit code 2)."""


@dataclass(frozen=True)
class _Parameter:
    kind: ast.expr  # the annotation, or the type of the default
    default: str
    help: str


@dataclass(frozen=True)
class _Task:
    """One notebook with all that its run depends on; travels to the process that runs it."""

    source: Path
    target: Path  # the finished notebook; its results folder has the same name without suffix
    given: dict[str, Any]  # what papermill injects
    parameters: dict[str, Any]  # the defaults with `given` on top
    altered: bool  # whether a parameter differs from its default
    fills_results: bool  # whether the runner chooses the notebook's `results` folder
    key: str

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def results(self) -> Path:
        return self.target.with_suffix("")

    @property
    def draft(self) -> Path:
        """The hidden folder that holds everything until it is complete."""
        return self.target.parent / f".{self.name}.partial"


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _Refused(f"{module} is missing: pip install 'ood_lib[book]'") from error


def _unknown(kind: str, given: str, names: Iterable[str]) -> _Refused:
    names = sorted(names)
    near = difflib.get_close_matches(given, names, 1, 0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return _Refused(f"unknown {kind} {given!r}: {hint}There are: {', '.join(names) or 'none'}")


def _hash(*parts: str | bytes) -> str:
    digests = (hashlib.sha256(p.encode() if isinstance(p, str) else p).digest() for p in parts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _hash_files(folder: Path, pattern: str = "*") -> str:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return _hash(*(x for f in files for x in (str(f.relative_to(folder)), f.read_bytes())))


def _find_root(given: Path | None) -> Path:
    start = (given or Path.cwd()).resolve()
    for folder in [start] if given else [start, *start.parents]:
        if (folder / "notebooks").is_dir() and (folder / "_config.yml").is_file():
            return folder
    raise _Refused(f"{start} is not inside the book: no folder with notebooks/ and _config.yml")


def _load(source: Path) -> Any:
    """The notebook of a `.py`; never looks at an `.ipynb`, so no old output can leak."""
    notebook = _need("jupytext").reads(source.read_text(encoding="utf-8"), "py:percent")
    notebook.metadata = type(notebook.metadata)(kernelspec=KERNEL)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:  # ids from the content: converting twice gives no difference
        seen[cell.source] += 1
        cell.id = _hash(cell.cell_type, cell.source, str(seen[cell.source]))[:12]
    return notebook


def _sources(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((root / "notebooks").glob("[0-9]*.py"))}


def _select(root: Path, given: Sequence[str]) -> list[Path]:
    sources = _sources(root)
    names = {re.sub(r"^\d+_", "", name): name for name in sources} | {n: n for n in sources}
    stems = dict.fromkeys(re.sub(r"\.(py|ipynb)$", "", Path(name).name) for name in given)
    for stem in stems:
        if stem not in names:
            raise _unknown("notebook", stem, names)
    return [sources[n] for n in dict.fromkeys(names[stem] for stem in stems)] or [*sources.values()]


def _parameters(source: Path) -> dict[str, _Parameter]:
    """Read with `ast`: papermill's own inspection does not see `int | None` annotations."""
    tagged = [c for c in _load(source).cells if "parameters" in c.metadata.get("tags", [])]
    code = tagged[0].source if tagged else ""
    lines, found = code.encode().splitlines(), {}
    for node in ast.parse(code).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                kind = ast.Name(type(_literal(ast.unparse(value))).__name__)
            case _:
                continue
        comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset :].decode()
        found[name] = _Parameter(kind, ast.unparse(value), comment.strip(" #"))
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text  # computed default: its source stands for it


def _fits(value: Any, kind: ast.expr) -> bool:
    match kind:
        case ast.BinOp(left=left, right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript(value=ast.Name(id="list") as outer, slice=inner):
            return _fits(value, outer) and all(_fits(item, inner) for item in value)
        case ast.Name(id="int" | "float") if isinstance(value, bool):
            return False
        case ast.Name(id=name):
            return isinstance(value, KINDS.get(name, object))
    return True


def _readings(raw: str) -> Iterator[Any]:
    yaml = _need("yaml")
    try:
        yield yaml.safe_load(raw)
    except yaml.YAMLError:
        pass
    try:
        yield float(raw)  # YAML 1.1 takes 1e-3 for text
    except ValueError:
        pass
    yield raw


def _value(name: str, parameter: _Parameter, readings: Iterable[Any], source: Path) -> Any:
    readings = list(readings)
    for value in readings:
        if _fits(value, parameter.kind):
            _check_benchmark(name, value)
            return value
    expected = ast.unparse(parameter.kind)
    raise _Refused(
        f"parameter {name!r} of {source.stem} expects {expected} (default {parameter.default}), given {readings[-1]!r}"
    )


def _benchmarks() -> list[str]:
    return list(importlib.import_module("ood_lib.data").BENCHMARKS)


def _check_benchmark(name: str, value: Any) -> None:
    if name != "benchmark" or value is None or re.match(r"folder:.", str(value)):
        return
    if value not in (names := _benchmarks()):
        raise _unknown("benchmark", str(value), [*names, "folder:PATH"])


def _profiles(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((root / "notebooks/profiles").glob("*.yaml"))}


def _read_profile(root: Path, given: str) -> tuple[str, dict[str, Any]]:
    profiles = _profiles(root)
    path = Path(given).resolve() if given.endswith((".yaml", ".yml")) else profiles.get(given)
    if path is None or not path.is_file():
        raise _unknown("profile", given, profiles)
    text = path.read_text(encoding="utf-8")
    name = path.stem if path in profiles.values() else f"{path.stem}-{_hash(text)[:8]}"
    values = _need("yaml").safe_load(text) or {}
    if not isinstance(values, dict):
        raise _Refused(f"profile {path} is not a list of `name: value` lines")
    return name, values


def _plan(args: argparse.Namespace, root: Path) -> list[_Task]:
    """Everything to run, checked: what is refused is refused here, before the first run."""
    profile, values = _read_profile(root, args.profile)
    selected = _select(root, args.notebooks)
    known = {source: _parameters(source) for source in _sources(root).values()}
    _check_names(f"parameter in profile {profile!r}", values, known.values())
    overrides = dict(args.parameters)
    _check_names("parameter", overrides, [known[source] for source in selected])
    out = (args.out or root / "_build/run" / _folder(profile, overrides)).resolve()
    readings = {k: [v] for k, v in values.items()} | {k: list(_readings(v)) for k, v in overrides.items()}
    library = _hash_files(LIBRARY, "*.py")
    return [_task(source, known[source], readings, out, library) for source in selected]


def _check_names(kind: str, given: Iterable[str], known: Iterable[dict[str, Any]]) -> None:
    names = set().union(*known)
    for name in given:
        if name not in names:
            raise _unknown(kind, str(name), names)


def _folder(profile: str, overrides: dict[str, str]) -> str:
    """Where runs go: one folder per set of overrides, so that none overwrites another."""
    if not overrides:
        return profile
    text = ",".join(f"{k}={v}" for k, v in sorted(overrides.items()))
    safe = re.sub(r"[^\w.,=+-]+", "_", text)[:60]
    return f"{profile}-{safe}" + ("" if safe == text else f"-{_hash(text)[:8]}")


def _task(
    source: Path,
    known: dict[str, _Parameter],
    readings: dict[str, list[Any]],
    out: Path,
    library: str,
) -> _Task:
    mine = {k: v for k, v in readings.items() if k in known}
    given = {k: _value(k, known[k], v, source) for k, v in mine.items()}
    defaults = {k: _literal(p.default) for k, p in known.items()}
    parameters, altered = defaults | given, any(given[k] != defaults[k] for k in given)
    fills_results = "results" in known and "results" not in given
    if fills_results:
        del parameters["results"]  # a path of this machine says nothing about the numbers
    key = _hash(source.read_bytes(), library, json.dumps(parameters, sort_keys=True, default=str))
    target = out / f"{source.stem}.ipynb"
    return _Task(source, target, given, parameters, altered, fills_results, key)


def _record(target: Path) -> dict[str, Any]:
    if not target.is_file():
        return {}
    return json.loads(target.read_text(encoding="utf-8"))["metadata"].get("ood_book", {})


def _is_done(task: _Task) -> bool:
    complete = task.results.is_dir() or not task.fills_results
    return complete and _record(task.target).get("key") == task.key


def _run(args: argparse.Namespace) -> int:
    tasks = _plan(args, _find_root(args.root))
    todo = [task for task in tasks if args.force or not _is_done(task)]
    for task in tasks:
        if task not in todo:
            print(f"{task.name}: up to date")
    _need("papermill")
    failures = _run_side_by_side(todo, min(len(todo), args.jobs or _cores()))
    for name, message in failures.items():
        print(f"\n{name} failed in {message}", file=sys.stderr)
    if failures:
        print(f"\n{len(failures)} of {len(todo)} failed: {', '.join(failures)}", file=sys.stderr)
    if tasks:
        print(f"runs are in {tasks[0].target.parent}")
    return 1 if failures else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_side_by_side(tasks: Sequence[_Task], jobs: int) -> dict[str, str]:
    """Each notebook in a process of its own; what failed, by name."""
    waiting, failures = list(enumerate(tasks)), {}
    running: dict[Any, tuple[Any, _Task, float]] = {}
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, task = waiting.pop(0)
                connection, process = _start(task, index, max(1, _cores() // jobs))
                running[connection] = process, task, time.perf_counter()
            for connection in wait(list(running)):
                process, task, started = running.pop(connection)
                if message := _receive(connection, process):
                    failures[task.name] = message
                _say_end(task, time.perf_counter() - started, bool(message))
    finally:
        _stop(running.values())
        signal.signal(signal.SIGTERM, before)
    print("\n" * len(tasks) if _bars() else "", end="")  # below the bars
    return failures


def _start(task: _Task, index: int, threads: int) -> tuple[Any, Any]:
    if not _bars():
        print(f"{task.name}: runs", flush=True)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, index, threads, sender), daemon=True)
    # The terminal sends Ctrl-C to every process. Only this one listens, and stops the others once.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, before)
    sender.close()  # so that the death of the process ends the wait
    return receiver, process


def _receive(connection: Any, process: Any) -> str:
    try:
        message = connection.recv()
    except EOFError:
        message = "its process, which died (out of memory?)"
    process.join()
    return message


def _stop(running: Iterable[tuple[Any, _Task, float]]) -> None:
    for process, _, _ in running:
        process.terminate()
    for process, task, _ in running:
        process.join(20)
        process.kill()
        shutil.rmtree(task.draft, ignore_errors=True)


def _bars() -> bool:
    return sys.stderr.isatty()


def _say_end(task: _Task, seconds: float, failed: bool) -> None:
    if not _bars():
        print(f"{task.name}: {'FAILED' if failed else 'done'} after {seconds:.0f} s", flush=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _work(task: _Task, index: int, threads: int, connection: Any) -> None:
    """Runs in the process of one notebook; sends "" or what failed."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel before the user's
    for library in THREADS:
        os.environ.setdefault(f"{library}_NUM_THREADS", str(threads))
    try:
        connection.send(_execute(task, index))
    except KeyboardInterrupt:
        for child in _need("psutil").Process().children(recursive=True):
            child.kill()  # a kernel that was just starting is not papermill's to clean up yet
    finally:
        shutil.rmtree(task.draft, ignore_errors=True)


def _execute(task: _Task, index: int) -> str:
    papermill = _need("papermill")
    logging.getLogger("papermill").setLevel("ERROR")
    shutil.rmtree(task.draft, ignore_errors=True)
    task.draft.mkdir(parents=True)
    draft, given = task.draft / task.target.name, dict(task.given)
    if task.fills_results:
        given["results"] = str(task.draft / task.name)
        (task.draft / task.name).mkdir()
    failed = task.target.with_suffix(".failed.ipynb")
    bar = {"desc": task.name, "position": index} if _bars() else False
    peaks: list[int] = []
    started = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(
            _load(task.source),
            draft,
            given,
            progress_bar=bar,
            cwd=task.source.parent,
            on_cell_executed=lambda **_: peaks.extend(_kernel_peaks()),
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own chatter cuts the bars
        )
    except Exception as error:
        if draft.is_file():
            os.replace(draft, failed)
        return f"{_explain(error)}\n  kept: {failed}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # complete: only the moving is left
    notebook.metadata["ood_book"] = _statement(task, time.perf_counter() - started, peaks)
    _need("nbformat").write(notebook, draft)
    _publish(task)
    failed.unlink(missing_ok=True)
    return ""


def _explain(error: Any) -> str:
    if not hasattr(error, "exec_count"):  # not a cell's own error: a dead kernel, for instance
        return f"its run\n  {type(error).__name__}: {error}"
    line = next((x for x in error.source.splitlines() if x.strip()), "")
    return f"cell [{error.exec_count}]: {line}\n  {error.ename}: {error.evalue}"


def _publish(task: _Task) -> None:
    if task.fills_results:
        shutil.rmtree(task.results, ignore_errors=True)
        os.replace(task.draft / task.name, task.results)
    os.replace(task.draft / task.target.name, task.target)  # last: it says "complete"


def _statement(task: _Task, seconds: float, peaks: list[int]) -> dict[str, Any]:
    return {
        "key": task.key,
        "parameters": task.parameters,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(max(peaks) / 2**20) if peaks else _peak_memory_mb(),
        "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "ood_lib")},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _kernel_peaks() -> list[int]:
    """Peak bytes of this process's children while they live; Linux only, else empty."""
    # On Linux `getrusage` is no use: the peak of the process that starts a kernel sticks to it.
    status = [Path(f"/proc/{child.pid}/status") for child in _need("psutil").Process().children()]
    text = "".join(path.read_text() for path in status if path.is_file())
    return [int(kib) * 2**10 for kib in re.findall(r"VmHWM:\s+(\d+)", text)]


def _peak_memory_mb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)


def _build(args: argparse.Namespace) -> int:
    root = _find_root(args.root)
    tasks = _plan(args, root)
    if stale := [task.name for task in tasks if not _is_done(task)]:
        command = f"ood-book run {' '.join(stale)} --profile {args.profile}"
        raise _Refused(f"not run as they are now: {', '.join(stale)}. Run: {command}")
    profile = _read_profile(root, args.profile)[0]
    name = "html" if profile == "default" else f"html-{profile}"
    html = (args.pages or root / "_build" / name).resolve()
    if html.is_dir() and any(html.iterdir()) and not (html / STAMP).is_file():
        raise _Refused(f"{html} holds something else than pages of this book")
    _stage(root, tasks, root / "_build/stage")
    return _make_pages(root / "_build/stage", root / "_build/book", html)


def _make_pages(stage: Path, work: Path, html: Path) -> int:
    digest = _hash(_hash_files(stage), version("jupyter-book"))
    if not (html / STAMP).is_file() or (html / STAMP).read_text() != digest:
        print(f"building the pages of {html.name} (under a minute) ...", flush=True)
        # From nothing: Sphinx keeps quiet about warnings of pages it has from a failed build.
        shutil.rmtree(work, ignore_errors=True)
        options = ["-q", "-W", "-n", "--keep-going", "--path-output", str(work), str(stage)]
        if subprocess.run([sys.executable, "-c", JUPYTER_BOOK, "build", *options]).returncode:
            print("ood-book: no pages; the warnings above say why", file=sys.stderr)
            return 1
        (work / "_build/html" / STAMP).write_text(digest)
        shutil.rmtree(html, ignore_errors=True)
        shutil.move(work / "_build/html", html)
    print(f"open {html / 'index.html'}")
    return 0


def _stage(root: Path, tasks: Sequence[_Task], stage: Path) -> None:
    """A copy of the book's sources, with the executed notebooks in place of their `.py`."""
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(root / "book", stage / "book", ignore=shutil.ignore_patterns("_generated"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(root / name, stage)
    (stage / "notebooks").mkdir()
    for task in tasks:
        _need("nbformat").write(_page(task), stage / "notebooks" / task.target.name)
        if task.fills_results:
            shutil.copytree(task.results, stage / "book/_generated" / task.name)


def _page(task: _Task) -> Any:
    nbformat = _need("nbformat")
    notebook = nbformat.read(task.target, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    injected = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    for cell in injected:
        lines = [x for x in cell.source.splitlines() if not x.startswith("results = ")]
        cell.source = "\n".join(lines)
        if not task.altered:
            notebook.cells.remove(cell)
    statement = nbformat.v4.new_markdown_cell(_how_made(notebook.metadata.ood_book))
    statement.id = "how-this-page-was-made"
    notebook.cells.append(statement)
    return notebook


def _how_made(record: dict[str, Any]) -> str:
    parameters = ", ".join(f"`{k} = {v!r}`" for k, v in record["parameters"].items())
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    memory = record["peak_memory_mb"]
    return "\n".join(
        [
            "```{admonition} How this page was made",
            ":class: dropdown",
            f"- Parameters: {parameters or 'none'}",
            f"- Run time: {record['seconds']} s, finished {record['finished']}",
            f"- Peak memory: {'not measured' if memory is None else f'{memory} MB'}",
            f"- Machine: {record['machine']}",
            f"- Versions: {versions}",
            "```",
        ]
    )


def _list(args: argparse.Namespace) -> int:
    root = _find_root(args.root)
    print("Notebooks")
    for name, source in _sources(root).items():
        headings = (re.search(r"^# (.+)", c.source, re.M) for c in _load(source).cells)
        title = next((h[1] for h in headings if h), "")
        print(f"  {name:<24} {title}")
        for key, p in _parameters(source).items():
            print(f"      {f'{key}: {ast.unparse(p.kind)} = {p.default}':<36} {p.help}")
    print("Profiles")
    for name in _profiles(root):
        values = _read_profile(root, name)[1]
        print(f"  {name:<24} {', '.join(f'{k}={v}' for k, v in values.items())}")
    print(f"Benchmarks\n  {', '.join([*_benchmarks(), 'folder:PATH'])}")
    return 0


def _sync(args: argparse.Namespace) -> int:
    differing = []
    for source in _sources(_find_root(args.root)).values():
        target, text = source.with_suffix(".ipynb"), _ipynb(source)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            differing.append(target)
            print(f"{target}: {'differs from' if args.check else 'written from'} {source.name}")
            if not args.check:
                target.write_text(text, encoding="utf-8")
    return 1 if differing and args.check else 0


def _ipynb(source: Path) -> str:
    return _need("jupytext").writes(_load(source), "ipynb") + "\n"


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ood-book", description="Run and build the book.")
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", type=Path, help="folder of the book (default: found from here)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", parents=[root], help="run notebooks side by side")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all")
    run.add_argument("--profile", default="default", help="name, or path of a YAML file")
    option = run.add_argument("-p", dest="parameters", nargs=2, action="append", default=[])
    option.metavar, option.help = ("NAME", "VALUE"), "overrides a parameter; may be repeated"
    run.add_argument("-j", "--jobs", type=_positive, help="notebooks at a time")
    run.add_argument("--out", type=Path, help="folder of the runs (default: _build/run/PROFILE)")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    run.set_defaults(command=_run)

    build = commands.add_parser("build", parents=[root], help="build the pages of a profile")
    build.add_argument("--profile", default="default", help="whose runs to show")
    build.add_argument("--out", dest="pages", type=Path, help="where the pages go")
    build.set_defaults(command=_build, notebooks=[], parameters=[], out=None)

    listing = commands.add_parser("list", parents=[root], help="notebooks, parameters, profiles")
    listing.set_defaults(command=_list)

    sync = commands.add_parser("sync", parents=[root], help="write each .ipynb from its .py")
    sync.add_argument("--check", action="store_true", help="only say which differ (exit code 1)")
    sync.set_defaults(command=_sync)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 is success, 1 a failed notebook or page, 2 refused input."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args)
    except _Refused as refusal:
        print(f"ood-book: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ood-book: interrupted; what was complete is kept", file=sys.stderr)
        return 130

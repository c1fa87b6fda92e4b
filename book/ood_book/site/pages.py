"""Builds the pages from finished runs: a staged copy of the book with the executed notebooks in it."""

import base64
import copy
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat

import ood_lib
from ood_book.metadata import about
from ood_book.notebooks import Refused, content_hash, sources
from ood_book.percent import executed
from ood_book.run.plan import Task, hash_files, library_hash
from ood_book.site import findings, front, production, reference, scale
from ood_book.site.explorables import add_scripts, as_html
from ood_book.site.links import used_by
from ood_book.site.missing import Missing
from ood_book.teach.deck import deck_of
from ood_book.teach.editions import reader
from ood_book.teach.handouts import handouts, together
from ood_book.teach.plain import Book, read_book
from ood_lib.evaluation.results import code_span
from ood_lib.files import UNWRITABLE, draft_folder, locked, write_text

__all__ = ["build_pages", "publish"]

JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"  # not PATH's, this Python's
FIXED = (errno.EBUSY, errno.EXDEV, *UNWRITABLE)  # of a folder that a container mounts, or in one that is not ours
STAMP = ".ood-book"  # marks a folder of finished pages; holds the hash of what they show


def build_pages(root: Path, tasks: Sequence[Task], html: Path, missing: Sequence[Missing] = ()) -> bool:
    """The pages of finished runs in `html`, and one in the place of each chapter that has none.

    Returns False for a warning, which leaves the last good pages. Pages with a chapter missing are built in spite of
    warnings: they are not the ones to publish.
    """
    if html.is_dir() and any(html.iterdir()) and not (html / STAMP).is_file():
        raise Refused(f"{html} holds something else than pages of this book: remove it, or name another folder, --out")
    (root / "_build").mkdir(exist_ok=True)
    waits = "another build is under way; this one waits"
    with locked(root / "_build/build.lock", lambda: print(waits, flush=True)) as lock:
        return _build(root, tasks, html, missing, lock)


def _build(root: Path, tasks: Sequence[Task], html: Path, missing: Sequence[Missing], lock: int) -> bool:
    stage, work = root / "_build/stage", root / "_build/book"
    _stage(root, tasks, stage, missing)
    digest = content_hash(hash_files(stage), library_hash(), version("jupyter-book"))
    if (html / STAMP).is_file() and (html / STAMP).read_text() == digest:
        return True
    print(f"building the pages of {html.name} (under a minute) ...", flush=True)
    # From nothing: Sphinx keeps quiet about warnings of pages it has from a failed build.
    shutil.rmtree(work, ignore_errors=True)
    strict = [] if missing else ["-W", "--keep-going"]
    options = ["-q", "-n", *strict, "--path-output", str(work), str(stage)]
    # Sphinx holds the lock too: if this process is killed, the next one waits until it writes no more.
    held: dict[str, Any] = {} if os.name == "nt" else {"pass_fds": [lock]}
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", *options]
    if subprocess.run(command, stdout=subprocess.DEVNULL, **held).returncode:
        return False
    _offer_plain(read_book(root), work / "_build/html/_sources/notebooks")
    publish(work / "_build/html", html, digest)
    return True


def publish(made: Path, html: Path, digest: str) -> None:
    """Put finished pages in the place of the former ones, which are there as long as the new ones are not.

    Killed at any moment, it leaves the old pages, the new ones, or ones that the next build replaces.
    """
    try:
        with draft_folder(html) as aside:
            made = Path(shutil.move(made, aside / "new"))  # perhaps from another disk
            write_text(made / STAMP, digest)
            try:
                with suppress(FileNotFoundError):
                    os.replace(html, aside / "old")
                os.replace(made, html)
            except OSError as error:
                if error.errno not in FIXED:
                    raise
                _fill(made, html, digest)
    except OSError as error:
        if error.errno not in FIXED or not made.is_dir():
            raise
        _fill(made, html, digest)


def _fill(made: Path, html: Path, digest: str) -> None:
    """Replace what is in a folder that cannot itself be replaced; until all is there, its stamp fits no pages."""
    html.mkdir(exist_ok=True)
    write_text(html / STAMP, "")
    for path in html.iterdir():
        if path.name != STAMP:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(made, html, dirs_exist_ok=True)
    write_text(html / STAMP, digest)


def _offer_plain(book: Book, downloads: Path) -> None:
    """What the download button of a chapter hands out: its run as Jupyter shows it, not the source of its page."""
    for path in downloads.glob("*.ipynb"):
        nbformat.write(reader(nbformat.read(path, as_version=4), book, path.stem), path)


def _stage(root: Path, tasks: Sequence[Task], stage: Path, missing: Sequence[Missing]) -> None:
    """A copy of the book's sources, with the executed notebooks in place of their `.py`."""
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(root / "book", stage / "book", ignore=shutil.ignore_patterns("_generated"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(root / name, stage)
    uses = _uses(root, tasks)
    names = {f"notebooks/{name}": entry.title for name, entry in about(root).items()}
    for name, content in (("uses", uses), ("names", names)):
        (stage / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (stage / "notebooks").mkdir()
    runs = {task.name: executed(Path(task.target), task.text) for task in tasks}
    for task in tasks:
        own = [place for place, pages in uses.items() if task.name in pages]
        page = _page(copy.deepcopy(runs[task.name]), task, own)
        _mend_cells(page, missing)
        nbformat.write(page, stage / f"notebooks/{task.name}.ipynb")
        if task.results:
            shutil.copytree(task.results, stage / "book/_generated" / task.name)
    _add_figures(runs, stage / "book")
    _add_slides(root, runs, stage / "book")
    _add_handouts(root, stage / "book")
    add_scripts(stage / "book/_static", root / "_build/vega")
    _add_front(root, stage / "book")
    _add_made(stage / "book")
    for chapter in missing:
        nbformat.write(chapter.page(), stage / f"notebooks/{chapter.name}.ipynb")
        for file in (stage / "book").rglob("*.md"):
            file.write_text(chapter.mended(file.read_text(encoding="utf-8")), encoding="utf-8")


def _mend_cells(page: Any, missing: Sequence[Missing]) -> None:
    for cell in page.cells:
        for chapter in missing if cell.cell_type == "markdown" else ():
            cell.source = chapter.mended(cell.source)


def _add_slides(root: Path, runs: Mapping[str, Any], book: Path) -> None:
    """A deck for each executed notebook, and the list of them for the page on teaching."""
    entries, decks = about(root), book / "_static/slides"
    decks.mkdir(parents=True)
    for name, run in runs.items():
        (decks / f"{name}.html").write_text(deck_of(root, name, run), encoding="utf-8")
    names = {name: entries[name].title if name in entries else name for name in runs}
    items = (f'- <a href="../_static/slides/{name}.html">{title}</a>\n' for name, title in names.items())
    (book / "_generated").mkdir(exist_ok=True)
    (book / "_generated/slides.md").write_text("".join(items), encoding="utf-8")


def _add_handouts(root: Path, book: Path) -> None:
    """The notebooks for students, and the quizzes, one zip file of each; the page on teaching links to them."""
    plain, made = replace(read_book(root), site=""), dict[str, bytes]()
    for source in sources(root).values():
        made |= handouts(source, plain)
    for folder in ("student", "quiz"):
        (book / f"_static/{folder}.zip").write_bytes(together(made, folder))


def _add_figures(runs: Mapping[str, Any], book: Path) -> None:
    """The figures of chapters that a page shows as `_generated/<chapter>/<name of the figure>.png`."""
    pages = "".join(page.read_text(encoding="utf-8") for page in book.glob("*.md"))
    for chapter, run in runs.items():
        asked = set(re.findall(rf"_generated/{chapter}/(fig-[\w-]+)\.png", pages))
        for cell in run.cells if asked else ():
            if (name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name")) in asked:
                picture = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
                place = book / f"_generated/{chapter}/{name}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(base64.b64decode(picture))


def _add_front(root: Path, book: Path) -> None:
    """What the first page shows besides its text: the strip of photographs, the result on CIFAR-10, how to cite."""
    if (book / "front").is_dir():
        shutil.move(book / "front", book / "_static/front")
        (book / "_generated/strip.md").write_text(front.strip(front.judge(book / "_static/front")), encoding="utf-8")
        (book / "_generated/headline.md").write_text(front.headline(book / "results"), encoding="utf-8")
        (book / "_generated/cite.md").write_text(front.bibtex(root / "CITATION.cff"), encoding="utf-8")
    if (book / "production").is_dir():
        for name, text in production.fragments(book / "production/measured.json").items():
            (book / f"_generated/production-{name}.md").write_text(text, encoding="utf-8")


def _add_made(book: Path) -> None:
    """What pages include that is made of the library and of kept results."""
    if (book / "api").is_dir():
        reference.add_reference(book)
    if (book / "results/verdicts").is_dir():
        for name, text in findings.fragments(book / "results").items():
            (book / f"_generated/finding-{name}.md").write_text(text, encoding="utf-8")
    if (book / "results/speed").is_dir():
        scale.add_speed(book)


def _uses(root: Path, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """For each entry of the library's page, the pages whose code uses it: their titles, and the headings there."""
    entries, pages = about(root), {task.name for task in tasks}
    known = reference.modules(Path(ood_lib.__file__).parent) if (root / "book/api.md").is_file() else []
    return {
        place: {name: [entries[name].title, headings] for name, headings in names.items() if name in pages}
        for place, names in used_by(root).items() if place.rpartition(".")[0] in known
    }  # fmt: skip


def _page(notebook: Any, task: Task, uses: Sequence[str]) -> Any:
    """The executed notebook as it is shown: what the runner gave it out, how it was made in."""
    hidden = any({"parameters", "remove-input"} <= {*cell.metadata.get("tags", [])} for cell in notebook.cells)
    for cell in list(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = as_html(_still(cell.outputs))
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(x for x in cell.source.splitlines() if not x.startswith("results = "))
            if not task.given or hidden:
                notebook.cells.remove(cell)
    foot = {"the-library-on-this-page": _library(uses), "how-this-page-was-made": _how_made(notebook.metadata.ood_book)}
    for name, text in foot.items():
        notebook.cells.append(nbformat.v4.new_markdown_cell(text, id=name))
    return notebook


def _still(outputs: Sequence[Any]) -> list[Any]:
    """The outputs without progress bars, which a terminal would have overwritten: text that begins a line again."""
    return [o for o in outputs if o.output_type != "stream" or (not o.text.startswith("\r") and o.text.strip())]


def _library(uses: Sequence[str]) -> str:
    links = ", ".join(f"{{py:obj}}`~{name}`" for name in uses)
    return f"""```{{admonition}} The library on this page
:class: dropdown
{links or "None of it."}
```"""


def _how_made(record: dict[str, Any]) -> str:
    parameters = ", ".join(code_span(f"{k} = {v!r}") for k, v in record["parameters"].items())
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    memory = record["peak_memory_mb"]
    return f"""```{{admonition}} How this page was made
:class: dropdown
- Parameters: {parameters or "none"}
- Run time: {record["seconds"]} s, finished {record["finished"]}
- Peak memory: {"not measured" if memory is None else f"{memory} MB"}
- Machine: {record["machine"]}
- Versions: {versions}
```"""

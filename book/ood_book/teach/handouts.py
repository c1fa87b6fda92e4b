"""What is handed out of a chapter: its editions, and its quiz for learning platforms."""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ood_book.notebooks import Refused, title_of
from ood_book.percent import as_ipynb, load
from ood_book.teach.editions import EDITIONS, SOURCE
from ood_book.teach.plain import Book
from ood_book.teach.quiz import moodle, qti, questions

__all__ = ["handouts", "together", "zipped"]


def handouts(source: Path, book: Book, at: str = "") -> dict[str, bytes]:
    """The files made of a chapter, by path: ``student/10_weiper.ipynb``, ..., ``quiz/10_weiper-canvas.zip``.

    Args:
        source: the chapter.
        book: what its text refers to.
        at: tag or commit of the library that the notebooks install; empty: that of the chapter, ``main``.

    Raises:
        Refused: ``at`` is no name of a tag or commit.
    """
    if at and not re.fullmatch(r"[\w.+/-]+", at):
        raise Refused(f"--at {at!r} is no tag or commit; expected a name such as spring-2027, or the hash of a commit")
    notebook, name = load(source), source.stem
    for cell in notebook.cells if at else []:
        cell.source = SOURCE.sub(lambda line: line[0].replace("@main", f"@{at}"), cell.source)
    made = {f"{edition}/{name}.ipynb": as_ipynb(make(notebook, book)).encode() for edition, make in EDITIONS.items()}
    if asked := questions(notebook, book):
        title = title_of(source.read_text(encoding="utf-8"))
        made[f"quiz/{name}-moodle.xml"] = moodle(title, asked).encode()
        made[f"quiz/{name}-canvas.zip"] = zipped(qti(name, title, asked))
    return made


def together(files: Mapping[str, bytes], folder: str) -> bytes:
    """The files of one folder as one zip file."""
    paths = {path: PurePosixPath(path) for path in files}
    return zipped({paths[path].name: data for path, data in files.items() if paths[path].parts[0] == folder})


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file; the same files make the same bytes, because none has a date."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        for path, data in files.items():
            bundle.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()

"""What is handed out of a chapter: its editions, and its quiz for learning platforms."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ood_book.notebooks import title_of
from ood_book.percent import as_ipynb, load
from ood_book.teach.editions import EDITIONS
from ood_book.teach.plain import Book
from ood_book.teach.quiz import moodle, qti, questions

__all__ = ["handouts", "together", "zipped"]


def handouts(source: Path, book: Book) -> dict[str, bytes]:
    """The files made of a chapter, by path: ``student/10_weiper.ipynb``, ..., ``quiz/10_weiper-canvas.zip``."""
    notebook, name = load(source), source.stem
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

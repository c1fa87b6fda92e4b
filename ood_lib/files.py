"""Files and folders that appear whole or not at all, what they are verified by, and what is said when one cannot be.

What is being written lies beside its place, under a name that holds the machine and the process.  So what a killed
process left is known for what it is, and the next one that writes into the folder removes it.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "FULL", "UNWRITABLE", "atomic", "check_writable", "clock", "draft", "draft_folder", "explained", "is_hidden",
    "locked", "read_json", "sha256_of", "sweep", "write_text",
]  # fmt: skip

DRAFT = re.compile(r"\..*?(?:\.([0-9a-f]{8})\.(\d+))?\.[0-9a-f]{8}\.partial")  # of machine and process; once of neither
FORGOTTEN = 7 * 24 * 3600  # seconds after which nobody on another machine writes any more
UNWRITABLE = {number: "it cannot be written" for number in (errno.EROFS, errno.EACCES, errno.EPERM)}  # a folder
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}

# Beside hidden folders: what systems and network disks leave among pictures.
LITTER = (
    "__MACOSX", "__pycache__", "@eaDir", "@Recycle", "@tmp", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found",
    "System Volume Information", "Thumbs.db", "desktop.ini",
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the reader's own: .ipynb_checkpoints, __MACOSX, @eaDir."""
    return name.startswith(".") or name in LITTER


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh file beside `path`, which takes its place when the block ends well and is removed when it does not.

    Its name is one that no other writer has, so of two at the same time the last one wins, whole.  Folders are made.

    Raises:
        OSError: the folder cannot be written, or is full; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, atomic(f"{folder}/a/b.txt") as fresh:
        ...     fresh.write_text("whole")
        5
    """
    path = Path(path)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = draft(path)
        fresh.touch(exist_ok=False)
        mode = fresh.stat().st_mode  # as the umask wants it: some libraries make files that only the owner can read
        try:
            _sweep_once(path.parent)
            yield fresh
            with suppress(OSError):  # some disks have no modes
                fresh.chmod(mode)
            with fresh.open("r+b") as file:
                os.fsync(file.fileno())  # where a quota or NFS refuses what seemed written, it says so here
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


@contextmanager
def draft_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh, hidden folder beside `path`, to make something in that is then moved; removed when the block ends.

    Raises:
        OSError: the folder above cannot be written, or is full; the message names it.
    """
    path = Path(path)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = draft(path)
        folder.mkdir()
        try:
            sweep(path.parent)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder into which nothing can be written before hours of work go there; it is made.

    Raises:
        OSError: it cannot be written, or is full; the message names it.
    """
    with draft_folder(Path(folder, "written")) as place:
        write_text(place / "written", "a few bytes")


def draft(path: Path) -> Path:
    """A path beside `path` that nobody else has, and that says who writes there."""
    return path.with_name(f".{path.name[:50]}.{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def sweep(folder: Path) -> None:
    """Remove the drafts in a folder that nobody writes any more.

    Those of this machine go when their process is no more, those of another one when they were not touched for a week.
    """
    with suppress(OSError):
        left = [path for path in folder.iterdir() if _is_left(path)]
        for path in left:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


_sweep_once = cache(sweep)


def _is_left(path: Path) -> bool:
    if not (found := DRAFT.fullmatch(path.name)):
        return False
    machine, process = found.groups()
    if machine == _machine() and os.name != "nt":  # os.kill(process, 0) would end it there
        return not _is_alive(int(process))
    return clock(path.parent) - path.stat().st_mtime > FORGOTTEN


def clock(folder: Path) -> float:
    """What time it is on the disk of a folder: it dated the files there, and two machines seldom agree."""
    hand = folder / f".{uuid.uuid4().hex}"
    hand.touch()
    try:
        return hand.stat().st_mtime
    finally:
        hand.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


@cache
def _machine() -> str:
    """This machine since it was started, and the numbering of its processes: each container has its own."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


@contextmanager
def explained(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Name the folder that cannot be written, or is full, and say what helps; libraries name a file of their own.

    Raises:
        OSError: as it was, with the folder and what to do; also in place of what a library makes of a full disk.
    """
    try:
        yield
    except Exception as error:
        folder, number = Path(folder).absolute(), _number_of(error)
        known = UNWRITABLE | FULL
        if number not in known or hasattr(error, "explained") or (number in UNWRITABLE and _elsewhere(error, folder)):
            raise
        mend = "make room there" if number in FULL else "ask for the right to write there"
        said = OSError(number, f"{os.strerror(number)}: {known[number]}; {mend}, or name another folder", str(folder))
        said.explained = True  # type: ignore[attr-defined]
        raise said from error


def _elsewhere(error: Exception, folder: Path) -> bool:
    """Whether a file was refused that has nothing to do with the folder: one that was read, say."""
    if (name := getattr(error, "filename", None)) is None:
        return False
    refused = Path(os.fsdecode(name)).absolute()
    return not (refused.is_relative_to(folder) or folder.is_relative_to(refused))


def _number_of(error: BaseException) -> int:
    """The number of an error of the system: also in the words of a library in Rust, or where torch hides it."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if found := re.search(r"(?:os error |\[Errno )(\d+)", str(error)):  # the latter of shutil, which collects errors
        return int(found[1])
    return _number_of(error.__context__) if error.__context__ else 0


@contextmanager
def locked(path: str | os.PathLike[str], wait: Callable[[], object]) -> Iterator[int]:
    """Let in one process at a time, where the disk has locks; one that is killed holds none.

    Args:
        path: of a file that stands for what is locked.
        wait: called when another process is in.

    Returns:
        The descriptor that holds the lock: a process that inherits it holds it too.
    """
    with open(path, "a") as file:
        with suppress(ImportError, OSError):  # Windows, or a disk without locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        mend: what to do where it is damaged, as in "copy it again".

    Raises:
        ValueError: it is no JSON, or not an object; the message names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{path} is damaged, or no JSON ({error}): {mend}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object {{...}}: {mend}")
    return found


def sha256_of(path: Path) -> str:
    """What a file is verified by, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that appear whole or not at all, and what they are verified by."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic", "sha256_of", "write_bytes", "write_text"]


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh file beside `path`, which takes its place when the block ends well and is removed when it does not.

    Its name is one that no other writer has, so of two at the same time the last one wins, whole.  Folders are made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, atomic(f"{folder}/a/b.txt") as fresh:
        ...     fresh.write_text("whole")
        5
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    fresh.touch(exist_ok=False)
    mode = fresh.stat().st_mode  # as the umask wants it: some libraries make files that only the owner can read
    try:
        yield fresh
        fresh.chmod(mode)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic(path) as fresh:
        fresh.write_bytes(data)


def sha256_of(path: Path) -> str:
    """What a file is verified by, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

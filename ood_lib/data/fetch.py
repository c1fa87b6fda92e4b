"""A file from the network: resumed where it broke off, verified, and there only when it is whole."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from zipfile import ZipFile

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: two downloads at once would spoil the file, and the digest tells
    fcntl = None  # type: ignore[assignment]

__all__ = ["fetch", "unpack"]

BLOCK = 1 << 20


def fetch(url: str, path: Path, digest: str) -> None:
    """Download `url` to `path`, which appears when it is complete and verified.

    What a broken connection leaves stays beside it as NAME.partial, and the next call goes on from there; a server
    that cannot do that sends everything again.  A process that comes second waits for the first.

    Args:
        url: http(s) address.
        path: where the file shall lie; nothing is done when it does.
        digest: algorithm and value, such as "sha256:9f86d0...".

    Raises:
        OSError: the connection failed or broke off; call again.
        ValueError: another file came than was expected; nothing of it is kept.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("a+b") as file:
            _wait_for_my_turn(file)
            if not path.exists():
                _continue(url, file)
                _verify(file, digest, url)
                if fcntl is None:  # Windows renames no open file; elsewhere the next one waits until it has its name
                    file.close()
                os.replace(partial, path)
    finally:
        if path.exists() or not partial.stat().st_size:
            partial.unlink(missing_ok=True)


def _wait_for_my_turn(file: IO[bytes]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def _continue(url: str, file: IO[bytes]) -> None:
    """Append what is missing."""
    start = file.seek(0, os.SEEK_END)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urlopen(request, timeout=60)
    except HTTPError as error:
        if error.code == 416:  # there is nothing after `start`: it was complete
            return
        raise
    with answer:
        if answer.status != 206:  # all of it again
            start = 0
            file.truncate(0)
        total = start + int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, initial=start, unit="B", unit_scale=True, desc=Path(url).name) as bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if file.tell() < total:
        raise ConnectionError(f"{url} broke off after {file.tell():,} of {total:,} bytes; running again goes on there")


def _verify(file: IO[bytes], digest: str, url: str) -> None:
    algorithm, expected = digest.split(":")
    file.flush()
    file.seek(0)
    found = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
    if found != expected:
        file.truncate(0)
        raise ValueError(f"{url} gave a file with {algorithm} {found}; expected {expected}. Nothing of it was kept")


def unpack(archive: Path, member: str, home: Path, files: int) -> None:
    """The folder `member` of a zip archive as the folder `home`, which appears with so many files or not at all.

    Raises:
        ValueError: the archive holds another number of files there.
    """
    with tempfile.TemporaryDirectory(prefix=f"{home.name}-", dir=home.parent) as stage, ZipFile(archive) as packed:
        names = [name for name in packed.namelist() if name.startswith(f"{member}/") and not name.endswith("/")]
        if len(names) != files:
            raise ValueError(f"{archive} holds {len(names)} files in {member}; expected {files}")
        packed.extractall(stage, names)
        os.replace(Path(stage, member), home)

"""Tensors on disk, one row per image, in one safetensors file that many processes fill block by block.

What lies at PATH is complete.  While it is being made it lies in the folder PATH.partial, together with

* ``manifest.json``: what is being made, and how many rows make a block;
* ``0``, ``1``, ``2`` ...: a record of each block that is done, the sha256 of its bytes and of the items they are of.

A block is recorded once its bytes are on the disk.  So it does not matter when a process is killed: the next one takes
up the blocks without a record, and those whose bytes are not the recorded ones.  Nor does it matter when items are
exchanged or taken out meanwhile: blocks of items that are the same stay.

The sha256 of all blocks stand in the header of the file, see `ood_lib.features.sealed`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import ood_lib.features.sealed as sealed
from ood_lib.features.distributed import Team
from ood_lib.files import clock, explained, locked, write_text
from ood_lib.warn import warn

__all__ = ["BlockFile"]

T = TypeVar("T")
FORMAT = "2"
FORGOTTEN = 30 * 24 * 3600  # seconds after which nobody takes up again what was begun in a cache
Make = Callable[[Sequence[range]], Generator[Mapping[str, Tensor], None, None]]


class BlockFile:
    """One file, complete or being made.

    Args:
        path: where it is to lie.
        identity: what it holds: a file of another identity is refused.
        rows: N.
        anonymous: accept a file at the path that does not say what it holds.
        marks: (N,) of the items, so that blocks of the same items are taken over from one that was begun with others.
        kin: pattern of the files beside it that may have been begun with other items.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, str],
        rows: int,
        anonymous: bool = False,
        marks: Sequence[bytes] | None = None,
        kin: str = "",
    ) -> None:
        self.kin = kin
        self.path, self.rows, self.anonymous, self.marks = path, rows, anonymous, marks
        self.identity = {"format": FORMAT, "rows": str(rows), **identity}
        self.work = path.with_name(f"{path.name}.partial")
        self._data, self._block = self.work / "features.safetensors", rows

    def fill(self, make: Make, block: int, ranks: Team) -> None:
        """Make what is missing, each process its share, and move the file to its place.

        Args:
            make: from blocks to their tensors, one after the other.
            block: rows of a block, where nobody has begun yet.
            ranks: who takes part; all of them call this.

        Raises:
            ValueError: at the path, or beside it in the making, is a file of another identity; processes differ in it.
            OSError: the folder cannot be written, there is no room on the disk, or blocks are read back otherwise than
                they were written.
        """
        if any(other != self.identity for other in self._meet(ranks, self.identity)):
            raise ValueError("the processes hold different networks or data: give each the same weights and data set")
        if all(self._meet(ranks, self._is_complete())):
            if ranks.rank == 0:
                shutil.rmtree(self.work, ignore_errors=True)  # left by one that was killed after all was done
            return
        for refused in filter(None, self._meet(ranks, self._refused())):
            raise refused
        with explained(self.path.parent), self._lock() if ranks.rank == 0 else nullcontext():
            self._meet(ranks)
            if not all(self._meet(ranks, self._is_complete())):  # nobody else was at it
                self._fill(make, self._meet(ranks, self._begin(block) if ranks.rank == 0 else 0)[0], ranks)

    def _fill(self, make: Make, block: int, ranks: Team) -> None:
        if ranks.rank == 0 and self.path.exists():
            warn(f"the features in {self.path} are damaged and are made again")
        self._block = block
        blocks = [range(start, min(start + block, self.rows)) for start in range(0, self.rows, block)]
        todo = self._missing(blocks, ranks)
        mine = ranks.share(todo)
        with closing(make(mine)) as made:
            for rows, tensors in zip(mine, made):
                self._write(rows, tensors, shared=ranks.size > 1)
        if wrong := self._missing(todo, ranks):
            raise OSError(f"{len(wrong)} blocks in {self.work} are not there as they were written: run again, or look")
        if ranks.rank == 0:
            sealed.seal(self._data)
            os.replace(self._data, self.path)
            shutil.rmtree(self.work, ignore_errors=True)
        self._meet(ranks)

    def _missing(self, blocks: Sequence[range], ranks: Team) -> list[range]:
        """Those without a record, or read back otherwise than recorded; all processes look, and learn of all."""
        mine = [block for block in ranks.share(blocks) if not self._is_done(block)]
        return [block for part in self._meet(ranks, mine) for block in part]

    def _meet(self, ranks: Team, value: T | None = None) -> list[T]:
        found = ranks.gather(value)
        if ranks.size > 1:  # NFS remembers for a while that a file is not there: this makes it look again
            os.listdir(next(folder for folder in self.path.parents if folder.exists()))
        return cast(list[T], found)

    # -- what is there ------------------------------------------------------------------------------------------

    def _is_complete(self) -> bool:
        """Whether the file is there, whole; refuse what is of another identity."""
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; expected the path of a file, such as {self.path}/train")
        try:
            with safe_open(self.path, "numpy") as file:
                found = file.metadata() or {}
        except FileNotFoundError:
            if not self._is_kin(found := self._manifest()):
                self._refuse_others(found, self.work)
            return False
        except SafetensorError:
            return False
        own = {name: value for name, value in found.items() if name != sealed.DIGESTS}
        if own or not self.anonymous:
            self._refuse_others(own, self.path)
        try:
            sealed.map_tensors(self.path)
        except SafetensorError:
            return False
        return True

    def _is_kin(self, found: Mapping[str, Any]) -> bool:
        """Whether what is being made is the same of other items, of which some blocks are ours as well."""
        other = {name for name, value in self.identity.items() if found.get(name) != value}
        return bool(other) and other <= {"rows", "data"} and any(self._kept(found))

    def _kept(self, found: Mapping[str, Any]) -> Iterator[range]:
        """Blocks of another beginning that are of the same items as here, and whole."""
        if self.marks is None or "block" not in found:
            return
        rows, block = int(found["rows"]), found["block"]
        former = {name: found[name] for name in self.identity}
        for start in range(0, min(rows, self.rows), block):
            part = range(start, min(start + block, rows))
            if part.stop == min(start + block, self.rows) and self._is_done(part, former, rows):
                yield part

    def _manifest(self) -> dict[str, Any]:
        """What is being made: the identity as long as there is none."""
        with suppress(FileNotFoundError, json.JSONDecodeError):  # a power cut may leave an empty one
            return json.loads((self.work / "manifest.json").read_text())
        return self.identity

    def _refuse_others(self, found: Mapping[str, str], where: Path) -> None:
        other = [name for name, value in self.identity.items() if found.get(name) != value]
        if other:
            raise ValueError(
                f"{where} was made with another {', '.join(other)} than asked for now: take another path, or delete it"
            )

    def _is_done(self, block: range, identity: Mapping[str, str] | None = None, rows: int = 0) -> bool:
        try:
            with open(self._data, "rb") as file:
                header, start = sealed.read_header(file)
                own = {name: value for name, value in header["__metadata__"].items() if name != sealed.DIGESTS}
                return own == (identity or self.identity) and self._record(block).read_text() == self._recorded(
                    block, sealed.digest_of(file, header, start, block)
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no record, no file, no header
            return False

    def _recorded(self, block: range, digest: str) -> str:
        """What says that a block is done: its bytes, and the items that they are of."""
        marks = b"".join(self.marks[block.start : block.stop]) if self.marks else b""
        return f"{digest} {hashlib.sha256(marks).hexdigest()}"

    def _record(self, block: range) -> Path:
        return self.work / str(block.start)

    # -- making it ----------------------------------------------------------------------------------------------

    def _refused(self) -> OSError | None:
        """Why nothing can be written here; None where it can."""
        try:
            with explained(self.path.parent):
                self.work.mkdir(parents=True, exist_ok=True)
                (self.work / "lock").touch()
        except OSError as error:
            return error
        return None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Wait until no other run is at work on this file; what is killed holds no lock."""
        self.work.mkdir(parents=True, exist_ok=True)  # another run may have finished, and removed it
        with locked(self.work / "lock", lambda: warn(f"another run is making {self.path}; this one waits for it")):
            yield

    def _begin(self, block: int) -> int:
        """Write the manifest, unless there is one; the rows of its blocks."""
        self._adopt()
        self._forget()
        found = self._manifest()
        if "block" not in found:
            found = {**self.identity, "block": block}
            write_text(self.work / "manifest.json", json.dumps(found, indent=1))
        elif kept := [*self._kept(found)] if self._is_kin(found) else []:
            self._take_over(kept, int(found["rows"]), found["block"])
        return found["block"]

    def _adopt(self) -> None:
        """Where nothing is begun: bring here what nobody else is making of some of the same items."""
        if not self.kin or (self.work / "manifest.json").exists():
            return
        for folder in sorted(self.path.parent.glob(f"{self.kin}.partial")):
            other = BlockFile(folder.with_suffix(""), {}, self.rows, marks=self.marks)
            other.identity = self.identity
            with suppress(OSError), open(folder / "lock", "w") as file:
                if folder != self.work and other._is_kin(other._manifest()) and _is_free(file):
                    for part in folder.iterdir():
                        if part.name != "lock":
                            os.replace(part, self.work / part.name)
                    shutil.rmtree(folder, ignore_errors=True)
                    return

    def _forget(self) -> None:
        """Remove from a cache what was begun long ago, of other networks or data, and that nobody is making."""
        if not self.kin:
            return
        now = clock(self.work)
        for folder in self.path.parent.glob("*.safetensors.partial"):
            with suppress(OSError), open(folder / "lock", "a") as file:
                touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if now - touched > FORGOTTEN and _is_free(file):
                    shutil.rmtree(folder, ignore_errors=True)

    def _take_over(self, kept: Sequence[range], rows: int, block: int) -> None:
        """Write the blocks that were made of the same items into a file of the new length; others are forgotten."""
        fresh = self._data.with_name("features.fresh")
        records: list[tuple[range, str]] = []
        with open(self._data, "rb") as old, open(fresh, "wb") as new:
            former, start = sealed.read_header(old)
            header = sealed.stretched(sealed.fields_of(former), rows, self.rows)
            header = {"__metadata__": {**self.identity, **sealed.unsealed(self.rows, block)}, **header}
            new.write(sealed.packed(header))
            for part in kept:
                digest = sealed.digest_begun(header)
                places = zip(
                    sealed.places_of(former, start, rows),
                    sealed.places_of(header, len(sealed.packed(header)), self.rows),
                )
                for (_, place, width), (_, target, _) in places:
                    old.seek(place + part.start * width)
                    new.seek(target + part.start * width)
                    data = old.read(len(part) * width)
                    digest.update(data)
                    new.write(data)
                records.append((part, self._recorded(part, digest.hexdigest())))
            new.flush()
            os.fsync(new.fileno())
        warn(
            f"{self.work} was begun with other data: {sum(map(len, kept))} of {self.rows} rows are of the same items "
            "and stay, the rest is made"
        )
        manifest = {**self.identity, "block": block}
        write_text(self.work / "manifest.json", json.dumps(manifest, indent=1))  # what is lost from now on is made anew
        for record in self.work.glob("[0-9]*"):
            record.unlink()
        os.replace(fresh, self._data)
        for part, text in records:
            write_text(self._record(part), text)

    def _write(self, block: range, tensors: Mapping[str, Tensor], shared: bool) -> None:
        """Put the rows of a block, (n, ...) under each name, in their place; record them when they are on the disk."""
        header = sealed.header_of(tensors, self.rows, {**self.identity, **sealed.unsealed(self.rows, self._block)})
        start, digest = len(sealed.packed(header)), sealed.digest_begun(header)
        with open(self._data, "wb", opener=partial(_in_place, shared)) as file:
            file.write(sealed.packed(header))  # every process writes the same
            for name, place, width in sealed.places_of(header, start, self.rows):
                rows = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(rows)
                file.seek(place + block.start * width)
                file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        write_text(self._record(block), self._recorded(block, digest.hexdigest()))


def _is_free(file: IO[str]) -> bool:
    """Whether no other run is at work there."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _in_place(shared: bool, path: str, flags: int) -> int:
    """Open to write a part of a file.  With O_DSYNC, NFS sends the bytes written and not the page around them."""
    return os.open(path, flags & ~os.O_TRUNC | (getattr(os, "O_DSYNC", 0) if shared else 0), 0o666)

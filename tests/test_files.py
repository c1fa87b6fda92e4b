"""Files are written whole or not at all, whoever else is writing."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from ood_lib.files import atomic, draft, draft_folder, explained, read_json, sha256_of, sweep, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="full"), atomic(tmp_path / "a.txt") as fresh:
        fresh.write_text("half of the n")
        raise OSError("the disk is full")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_of_two_writers_at_the_same_time_neither_publishes_a_part_of_the_other(tmp_path):
    both = threading.Barrier(2)

    def write(letter):
        with atomic(tmp_path / "a.txt") as fresh, fresh.open("w") as file:
            file.write(letter * 1000)
            file.flush()
            both.wait(10)  # the other one is in the middle of its file
            file.write(letter * 1000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a.txt").read_text() in ("x" * 2000, "y" * 2000)
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_the_sha256_is_that_of_the_bytes(tmp_path):
    write_text(tmp_path / "a.txt", "abc")
    assert sha256_of(tmp_path / "a.txt").startswith("ba7816bf8f01cfea")  # of the standard, FIPS 180-2


def test_drafts_of_dead_processes_go_and_those_of_living_and_far_ones_stay(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = draft(tmp_path / "a.txt").name
    dead, far = mine.replace(f".{os.getpid()}.", f".{gone.pid}."), mine.replace(mine.split(".")[3], "0" * 8)
    old = ".a.txt.00000000.1.0123abcd.partial", ".a.txt.0123abcd.partial"  # the latter of an earlier version
    others = "a.txt.partial", ".a.partial", "0123abcd.partial"
    week = time.time() - 8 * 24 * 3600
    for name in (mine, dead, far, *old, *others):
        (tmp_path / name).touch()
        if name not in (mine, dead, far):
            os.utime(tmp_path / name, (week, week))
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted((mine, far, *others))


def test_a_name_as_long_as_a_disk_allows_is_written(tmp_path):
    write_text(tmp_path / ("ä" * 120), "x")
    assert (tmp_path / ("ä" * 120)).read_text() == "x"


FULL = {
    "the system": OSError(errno.ENOSPC, "No space left on device"),
    "a quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "shutil": shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    "Rust": RuntimeError("I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_named_with_its_folder_whoever_says_it(tmp_path, error):
    with pytest.raises(OSError, match=r"make room there.*name another folder") as caught, explained(tmp_path):
        raise error
    assert caught.value.filename == str(tmp_path)


def test_what_is_refused_elsewhere_is_not_blamed_on_the_folder(tmp_path):
    with pytest.raises(PermissionError, match=r"denied: '/else/where'$"), draft_folder(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/else/where")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"null"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json .*copy it"):
        read_json(tmp_path / "a.json", "copy it again")

"""Files are written whole or not at all, whoever else is writing."""

import os
import threading

import pytest

from ood_lib.files import atomic, sha256_of, write_text


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

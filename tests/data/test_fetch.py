"""Laws of a fetch, against a server that breaks off: resumed, verified, whole or absent."""

import contextlib
import hashlib
import http.server
import os
import threading
import zipfile
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from ood_lib.data import fetch as room
from ood_lib.data.fetch import fetch, unpack

CONTENT = bytes(range(256)) * 5000
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; cuts its first answers short, and notes what it was asked for."""

    def __init__(self, cuts=(), ranges=True, content=CONTENT):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.ranges, self.content, self.asked = list(cuts), ranges, content, []
        self.url = f"http://127.0.0.1:{self.server_port}/set.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if "gone" in self.path or start >= len(server.content):
            return self.send_error(404 if "gone" in self.path else 416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        stop = server.cuts.pop(0) if server.cuts else len(server.content)
        self.wfile.write(server.content[start : start + stop])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(**options):
    server = Server(**options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_arrives_whole_and_is_not_asked_for_again(tmp_path):
    path = tmp_path / "new" / "set.bin"
    with serving() as server:
        fetch(server.url, path, SHA)
        fetch(server.url, path, SHA)
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "set.bin"
    with serving(cuts=[1000, 500_000]) as server:
        for stopped in ("1,000", "501,000"):
            with pytest.raises(ConnectionError, match=f"{stopped} of 1,280,000 bytes; running again"):
                fetch(server.url, path, SHA)
            assert not path.exists()
        fetch(server.url, path, SHA)
    assert path.read_bytes() == CONTENT and server.asked == [None, "bytes=1000-", "bytes=501000-"]


def test_a_server_that_cannot_go_on_starts_again(tmp_path):
    path = tmp_path / "set.bin"
    with serving(cuts=[1000], ranges=False) as server:
        with pytest.raises(ConnectionError):
            fetch(server.url, path, SHA)
        fetch(server.url, path, SHA)
    assert path.read_bytes() == CONTENT


def test_a_killed_process_that_had_everything_only_verifies(tmp_path):
    path = tmp_path / "set.bin"
    (tmp_path / "set.bin.partial").write_bytes(CONTENT)
    with serving() as server:
        fetch(server.url, path, SHA)
    assert path.read_bytes() == CONTENT and server.asked == ["bytes=1280000-"]


@pytest.mark.parametrize("partial", [b"", b"of another file"])
def test_another_file_is_refused_and_not_kept(tmp_path, partial):
    path = tmp_path / "set.bin"
    (tmp_path / "set.bin.partial").write_bytes(partial)
    with serving(content=b"x" + CONTENT[1:]) as server:
        with pytest.raises(ValueError, match=r"expected .*Nothing of it was kept"):
            fetch(server.url, path, SHA)
        assert not path.exists()
        server.content = CONTENT
        fetch(server.url, path, SHA)
    assert path.read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_where_no_open_file_can_be_renamed_it_is_closed_before(tmp_path, monkeypatch):
    def replace(source, target):
        assert str(source) not in {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
        source.rename(target)

    monkeypatch.setattr(room, "fcntl", None)
    monkeypatch.setattr(room.os, "replace", replace)
    with serving() as server:
        fetch(server.url, tmp_path / "set.bin", SHA)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_two_at_once_make_one_file(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "set.bin"
    with serving() as server:
        both = [threading.Thread(target=fetch, args=(server.url, path, SHA)) for _ in range(2)]
        [one.start() for one in both], [one.join() for one in both]
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert list(tmp_path.iterdir()) == [path]


def test_no_server_and_no_file_are_errors(tmp_path):
    with serving() as server:
        with pytest.raises(HTTPError, match="404"):
            fetch(server.url + "?gone", tmp_path / "a", SHA)
    with pytest.raises(URLError):
        fetch(server.url, tmp_path / "b", SHA)
    assert list(tmp_path.iterdir()) == []


def test_unpacked_whole_or_not_at_all(tmp_path):
    archive, home = tmp_path / "a.zip", tmp_path / "home"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in ("in/val/1", "in/val/deep/2", "in/value", "in/train/3"):
            packed.writestr(name, name * 100)
    with pytest.raises(ValueError, match="holds 2 files in in/val; expected 3"):
        unpack(archive, "in/val", home, 3)
    assert not home.exists()
    unpack(archive, "in/val", home, 2)
    assert sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()) == ["1", "deep/2"]
    raw = bytearray(archive.read_bytes())
    raw[60] ^= 1  # inside the first file
    archive.write_bytes(raw)
    with pytest.raises(zipfile.BadZipFile):
        unpack(archive, "in/val", tmp_path / "other", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "home"}

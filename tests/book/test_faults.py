"""The command in poor conditions: killed while it publishes, on a full or read-only disk, on a terminal without Greek,
without a home, with damaged files.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ood_book import cli, metadata
from ood_book.notebooks import Refused
from ood_book.site import pages

ROOT = Path(__file__).parents[2]
BOOK = [sys.executable, "-c", "import sys; from ood_book.cli import main; sys.exit(main())"]

posix = pytest.mark.skipif(os.name == "nt", reason="signals, users and forks of a Unix")
SOMEBODY = ("unshare", "--user", "--map-user=12345", "--map-group=12345")  # a user that no file knows


# -- pages that take the place of others ----------------------------------------------------------------------------


def made(folder: Path, word: str) -> Path:
    """Pages that are finished."""
    for name in ("index.html", "a/b.html", f"only-{word}.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(word)
    return folder


def words(html: Path) -> set[str]:
    """Of whose pages those in a folder are."""
    return {path.read_text() for path in html.rglob("*.html")}


def killed_at(step: int, place: Path, mounted: bool) -> None:
    count = 0
    if mounted:
        refuse_to_move(os.replace, place / "html", lambda f: setattr(os, "replace", f))

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "shutil.rmtree") and str(place) in str(
            args[0]
        ):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    pages.publish(made(place / "made", "new"), place / "html", "the new")


def refuse_to_move(real, html, put) -> None:
    def replace(source, target):
        if html in (Path(source), Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy", str(html))
        real(source, target)

    put(replace)


@posix
@pytest.mark.parametrize("mounted", [False, True])
def test_killed_at_any_step_of_publishing_the_next_build_resumes(tmp_path, mounted):
    step, code, torn = 0, None, 0
    while code != 0:
        step += 1 + mounted
        html = tmp_path / "html"
        if not html.is_dir() or (html / pages.STAMP).read_text() != "the old":
            pages.publish(made(tmp_path / "old", "old"), html, "the old")
        assert words(html) == {"old"} and not (html / "only-new.html").exists()
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        process = multiprocessing.get_context("fork").Process(target=killed_at, args=(step, tmp_path, mounted))
        process.start()
        process.join()
        code = process.exitcode
        assert code in (0, -signal.SIGKILL)
        if html.is_dir():  # never refused as "something else"; and a stamp is of the pages that are there
            stamp = (html / pages.STAMP).read_text()
            torn += stamp == ""
            assert stamp == "" or words(html) == {stamp.removeprefix("the ")}
    assert words(html) == {"new"} and (html / "only-new.html").exists() and not (html / "only-old.html").exists()
    assert step > 10 and bool(torn) == mounted
    pages.publish(made(tmp_path / "made", "last"), html, "the last")
    assert words(html) == {"last"} and sorted(p.name for p in tmp_path.iterdir()) == ["html"]


def test_a_folder_of_pages_in_one_that_cannot_be_written_is_filled(tmp_path, monkeypatch):
    html = tmp_path / "site/html"
    pages.publish(made(tmp_path / "made", "old"), html, "the old")

    def refuse(path):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pages, "draft_folder", refuse)
    pages.publish(made(tmp_path / "made", "new"), html, "the new")
    assert words(html) == {"new"} and (html / pages.STAMP).read_text() == "the new"


def test_a_disk_that_fills_up_leaves_the_old_pages(tmp_path, monkeypatch):
    html = tmp_path / "html"
    pages.publish(made(tmp_path / "made", "old"), html, "the old")

    def full(source, target):  # as shutil says it
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")])

    monkeypatch.setattr(pages.shutil, "move", full)
    with pytest.raises(OSError, match="the disk is full"):
        pages.publish(made(tmp_path / "made", "new"), html, "the new")
    assert words(html) == {"old"} and (html / pages.STAMP).read_text() == "the old"


@posix
def test_a_second_build_waits_for_the_first(tmp_path, monkeypatch, capsys):
    first, go, order = threading.Event(), threading.Event(), []

    def build(root, tasks, html, missing, lock):
        first.set()
        assert go.wait(10)
        order.append(html.name)
        return True

    monkeypatch.setattr(pages, "_build", build)
    builds = [threading.Thread(target=pages.build_pages, args=(tmp_path, [], tmp_path / n)) for n in ("a", "b")]
    builds[0].start()
    assert first.wait(10)
    builds[1].start()
    while "waits" not in capsys.readouterr().out:
        assert builds[1].is_alive()
    assert order == []
    go.set()
    for build in builds:
        build.join()
    assert order == ["a", "b"]


# -- terminals, users and files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A book of one notebook, in a folder with a space and an umlaut; its text has what latin-1 lacks."""
    folder = tmp_path_factory.mktemp("ein Bü cher")
    (folder / "notebooks/profiles").mkdir(parents=True)
    (folder / "notebooks/10_alpha.py").write_text(
        '# %% [markdown]\n# # Score α ▁▂▃\n# %% tags=["parameters"]\ndelta: float = 1.0  # the δ\n'
        "# %%\nprint('α', delta)\n",
        encoding="utf-8",
    )
    (folder / "notebooks/profiles/default.yaml").write_text("{}\n")
    (folder / "book").mkdir()
    (folder / "book/references.bib").touch()
    (folder / "_config.yml").write_text("title: T\n")
    return folder


CONDITIONS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii, strict": {"PYTHONIOENCODING": "ascii:strict"},
    "the locale C": {"LC_ALL": "C"},
    "the locale C, and no rescue by Python": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no home": {"HOME": None},
    "a home that is not there": {"HOME": "/nonexistent"},
}


def command(folder: Path, *words: str, change: dict[str, str | None] | None = None, before: tuple[str, ...] = ()):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'book'}"} | (change or {})
    environment = {k: v for k, v in environment.items() if v is not None}
    done = subprocess.run([*before, *BOOK, *words], cwd=folder, env=environment, capture_output=True)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@pytest.mark.processes
@pytest.mark.parametrize("change", CONDITIONS.values(), ids=CONDITIONS)
def test_every_condition_lists_and_syncs(small, tmp_path, change):
    folder = shutil.copytree(small, tmp_path / "Bü cher")
    code, out, err = command(folder, "list", change=change)
    assert (code, err) == (0, "") and "10_alpha" in out and "the " in out
    for words, expected in ((["sync"], 0), (["run", "alpa"], 2)):
        code, _, err = command(folder, *words, change=change)
        assert code == expected and "Traceback" not in err, err
    assert "α" in (folder / "notebooks/10_alpha.ipynb").read_text(encoding="utf-8")


@pytest.mark.processes
def test_a_user_without_a_home_and_without_an_entry_lists_and_syncs(small, tmp_path):
    if not shutil.which("unshare") or subprocess.run([*SOMEBODY, "true"], capture_output=True).returncode:
        pytest.skip("nobody else can be made here")
    folder = shutil.copytree(small, tmp_path / "Bü cher")
    for words, expected in ((["list"], 0), (["sync"], 0)):
        code, _, err = command(folder, *words, change={"HOME": None, "USER": None, "LOGNAME": None}, before=SOMEBODY)
        assert code == expected and "Traceback" not in err, err


@posix
@pytest.mark.processes
@pytest.mark.parametrize("module", ["ood_book.cli", "ood_lib"])
def test_a_reader_who_goes_early_is_no_error(small, module):
    words = ["list"] if module == "ood_book.cli" else ["--help"]
    read, write = os.pipe()
    os.close(read)  # gone before the first line
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'book'}"}
    process = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=small, stdout=write, stderr=subprocess.PIPE, env=environment
    )
    os.close(write)
    assert process.returncode in (0, 141) and process.stderr == b""  # 0 of a text that argparse wrote itself


@posix
@pytest.mark.processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_on_a_full_disk_is_an_error_in_a_line(small):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*BOOK, "list"], cwd=small, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_named_without_a_traceback(small, read_only, monkeypatch, capsys):
    monkeypatch.chdir(small)
    read_only(small)
    for words in (["sync"], ["teach"], ["run", "-j", "1"]):
        assert cli.main(words) == 2, words
        said = capsys.readouterr().err
        assert "cannot be written" in said and "another folder" in said and small.name in said, words
    assert cli.main(["list"]) == 0


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"3", b"- 1"])
def test_damaged_yaml_is_named(tmp_path, content):
    (tmp_path / "a.yml").write_bytes(content)
    with pytest.raises(Refused, match=r"a\.yml is not"):
        metadata.read_yaml(tmp_path / "a.yml")

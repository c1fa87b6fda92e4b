"""Laws of a bank: whatever happens to those who make it, what lies at its path is whole, and the same to the bit."""

import errno
import fcntl
import json
import os
import resource
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset, TensorDataset

import ood_lib.features.sealed
from ood_lib import KNN, Features, Mahalanobis, ResNet, extract
from tests.apart import apart, finish, start
from tests.conftest import normal, seeded

ROWS, BATCH = 23, 5  # five blocks, the last one of three rows


def make_network(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(1, 3, (4, 8)).eval()


class Images(Dataset):
    """Numbered images; one of them may be deadly.  It remembers which ones a batch asked for."""

    def __init__(self, rows: int = ROWS, deadly: int = -1, pause: float = 0, seed: int = 0) -> None:
        self.images = torch.rand(rows, 1, 8, 8, generator=seeded(seed))
        self.deadly, self.pause, self.seen = deadly, pause, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i], i % 3

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, int]]:
        if self.deadly in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause * len(rows))
        self.seen += rows
        return [self[i] for i in rows]

    def fingerprint(self) -> str:
        return f"{self.images.double().sum():.12f}"


def run(out: Path, data: Dataset | None = None, network: ResNet | None = None, **options) -> Features:
    given = {"batch_size": BATCH, "device": "cpu", "progress": False} | options
    return extract(network or make_network(), data or Images(), out=out, **given)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("expected") / "bank"
    run(out)
    return out.read_bytes()


# -- what is made -------------------------------------------------------------------------------------------------


def test_a_bank_is_the_file_that_would_have_been_saved(tmp_path):
    banked = run(tmp_path / "deep" / "er" / "bank")
    plain = run(None)
    assert os.listdir(tmp_path / "deep" / "er") == ["bank"]
    for name, value in plain.tensors().items():
        assert torch.equal(getattr(banked, name), value) and getattr(banked, name).dtype == value.dtype


def test_a_bank_is_read_and_not_made_again(tmp_path):
    run(tmp_path / "bank")
    data = Images()
    run(tmp_path / "bank", data, batch_size=3)
    assert data.seen == []


@pytest.mark.parametrize("small", [0, 2**24])
def test_a_write_into_the_tensors_stays_in_memory(tmp_path, expected: bytes, monkeypatch, small: int):
    monkeypatch.setattr(ood_lib.features.sealed, "SMALL", small)
    features = run(tmp_path / "bank")
    features.penultimate.zero_()
    assert (tmp_path / "bank").read_bytes() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_mapped_file_holds_what_was_saved(tmp_path, monkeypatch, dtype: torch.dtype):
    monkeypatch.setattr(ood_lib.features.sealed, "SMALL", 0)
    saved = Features(penultimate=normal(7, 3).to(dtype), labels=torch.eye(7, 3).bool(), style=normal(7, 1))
    saved.save(tmp_path / "bank")
    loaded = Features.load(tmp_path / "bank").tensors()
    assert loaded.keys() == saved.tensors().keys()
    for name, value in saved.tensors().items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
def test_a_file_larger_than_the_memory_opens(tmp_path):
    memory = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    rows = 2 * memory // 4096
    entry = {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}
    header = json.dumps({"penultimate": entry}).encode()
    header += b" " * (-len(header) % 8)
    with open(tmp_path / "huge", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 4096)  # holes: it takes no room
    features = Features.load(tmp_path / "huge")
    assert features[rows - 3 :].penultimate.sum() == 0 and len(features) == rows


def anonymous() -> int:
    """Bytes of this process that are no file."""
    return next(int(x.split()[1]) for x in Path("/proc/self/status").open() if x.startswith("RssAnon")) * 1024


def memory_of_detectors(bank: Path) -> int:
    """Bytes that a fit and the scores of two detectors take at most."""
    peaks, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peaks.append(anonymous())

    torch.set_num_threads(1)
    torch.eye(64).double() @ torch.eye(64).double(), torch.linalg.eigh(torch.eye(64).double())  # what loads lazily
    KNN(k=5), Mahalanobis()
    before, watcher = anonymous(), threading.Thread(target=watch)
    watcher.start()
    features = Features.load(bank)
    Mahalanobis().fit(features).score(features)
    KNN(k=5).fit(features[:500]).score(features)
    over.set()
    watcher.join()
    return max(peaks) - before


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
def test_detectors_learn_from_a_bank_and_score_it_in_a_fraction_of_its_memory(tmp_path):
    bank = Features(penultimate=normal(300_000, 256, dtype=torch.float32), labels=torch.arange(300_000) % 5)
    bank.save(tmp_path / "bank")
    assert 0 < apart(memory_of_detectors, tmp_path / "bank") < os.path.getsize(tmp_path / "bank") / 3


# -- what may happen to those who make it -------------------------------------------------------------------------


def kill_at_step(step: int, out: Path) -> None:
    """Die the moment something touches the bank's files for the n-th time."""
    count = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(out) in str(args[0]):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_at_every_step(folder: Path) -> None:
    """Each run dies one step later than the one before, until one comes through; each is taken up."""
    torch.set_num_threads(1)  # no thread is lost in a fork
    run(folder / "expected", Images(7))
    expected = (folder / "expected").read_bytes()
    died, step = True, 0
    while died:
        step += 1
        out = folder / f"{step}.bank"
        if not (pid := os.fork()):
            kill_at_step(step, out)
            run(out, Images(7))
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert not out.exists() or out.read_bytes() == expected  # what is there is whole
        run(out, Images(7))
        assert out.read_bytes() == expected
    assert step > 20
    assert sorted(folder.glob("*.partial")) == []


def test_a_run_killed_at_any_step_is_taken_up_to_the_same_bank(tmp_path):
    assert finish(start(killed_at_every_step, tmp_path)) == [0]


def killed_at_image(image: int, out: Path) -> None:
    torch.set_num_threads(1)
    run(out, Images(deadly=image))


@pytest.fixture
def half(tmp_path) -> Path:
    """A bank whose maker was killed after three of five blocks."""
    assert finish(start(killed_at_image, 3 * BATCH, tmp_path / "bank")) == [-signal.SIGKILL]
    return tmp_path / "bank"


def resumed(out: Path) -> list[int]:
    """Rows that are looked at when a bank is taken up."""
    data = Images()
    run(out, data)
    return data.seen


def work(out: Path) -> Path:
    return out.with_name("bank.partial")


def test_finished_blocks_are_not_made_again(half: Path, expected: bytes):
    assert resumed(half) == list(range(3 * BATCH, ROWS))
    assert half.read_bytes() == expected


def test_a_damaged_block_is_noticed_and_made_again(half: Path, expected: bytes):
    data = bytearray((work(half) / "features.safetensors").read_bytes())
    row = 8 * 7 + 1  # the labels come first, eight bytes each
    header = 8 + int.from_bytes(data[:8], "little")
    data[header + row] ^= 1
    (work(half) / "features.safetensors").write_bytes(data)
    assert resumed(half) == [*range(BATCH, 2 * BATCH), *range(3 * BATCH, ROWS)]
    assert half.read_bytes() == expected


@pytest.mark.parametrize("keep", [0, 5, 300, 1200])
def test_a_truncated_file_costs_what_it_lost(half: Path, expected: bytes, keep: int):
    os.truncate(work(half) / "features.safetensors", keep)
    resumed(half)
    assert half.read_bytes() == expected


def test_a_lost_file_or_half_a_record_is_noticed(half: Path, expected: bytes):
    (work(half) / "features.safetensors").unlink()
    (work(half) / "5").write_text("ab")
    assert resumed(half) == list(range(ROWS))
    assert half.read_bytes() == expected


def test_blocks_of_another_network_do_not_count_even_without_the_manifest(half: Path):
    (work(half) / "manifest.json").write_text("")  # as a power cut may leave it
    data = Images()
    features = run(half, data, make_network(1))
    assert data.seen == list(range(ROWS))
    assert torch.equal(features.logits, run(None, network=make_network(1)).logits)


def test_another_batch_size_takes_up_the_blocks_as_they_are(half: Path):
    data = Images()
    features = run(half, data, batch_size=4)
    assert data.seen == list(range(3 * BATCH, ROWS))
    assert torch.allclose(features.logits, run(None).logits, atol=1e-6)


def fills_its_disk(out: Path, room: int) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        run(out)
    except OSError as error:
        assert "too large" in str(error)
        os._exit(7)


def test_a_full_disk_is_said_and_nothing_half_written_is_counted(tmp_path, expected: bytes):
    out = tmp_path / "bank"
    assert finish(start(fills_its_disk, out, len(expected) // 2)) == [7]
    assert not out.exists()
    run(out)
    assert out.read_bytes() == expected


@pytest.mark.parametrize("there", [True, False])
def test_a_place_that_cannot_be_written_is_named_with_what_to_do(tmp_path, read_only, there: bool):
    folder = tmp_path if there else tmp_path / "new"
    read_only(tmp_path)
    with pytest.raises(OSError, match=rf"cannot be written; ask for the right .*or name another folder: '{folder}'"):
        run(folder / "bank")


def test_without_a_cache_that_can_be_written_the_work_goes_on(tmp_path, read_only):
    kept = run(None, cache=tmp_path / "kept")
    read_only(tmp_path)
    with pytest.warns(UserWarning, match=r"not kept.*Read-only.*new"):
        features = run(None, cache=tmp_path / "new")
    assert torch.equal(features.logits, kept.logits) and os.listdir(tmp_path) == ["kept"]
    with warnings.catch_warnings():  # what is there is read all the same
        warnings.simplefilter("error")
        data = Images()
        assert torch.equal(run(None, data, cache=tmp_path / "kept").logits, kept.logits) and data.seen == []


def test_a_picture_that_cannot_be_read_is_no_fault_of_the_cache(tmp_path):
    class Locked(Images):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            raise PermissionError(errno.EACCES, "Permission denied", "/pictures/7.png")

    with pytest.raises(PermissionError, match=r"Permission denied: '/pictures/7\.png'"), warnings.catch_warnings():
        warnings.simplefilter("error")
        run(None, Locked(), cache=tmp_path)


def test_what_was_begun_long_ago_in_a_cache_goes_unless_somebody_is_at_it(tmp_path):
    month = 31 * 24 * 3600
    for name in ("old", "young", "busy"):
        (tmp_path / f"{name}.safetensors.partial").mkdir()
        (tmp_path / f"{name}.safetensors.partial" / "lock").touch()
        for path in (tmp_path / f"{name}.safetensors.partial" / "lock", tmp_path / f"{name}.safetensors.partial"):
            os.utime(path, (time.time() - (0 if name == "young" else month),) * 2)
    with open(tmp_path / "busy.safetensors.partial" / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(None, cache=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.partial")) == [f"{n}.safetensors.partial" for n in ("busy", "young")]


def slow(out: Path, log: Path) -> None:
    torch.set_num_threads(1)
    data = Images(pause=0.01)
    run(out, data)
    log.write_text(str(len(data.seen)))


def test_two_runs_at_once_do_the_work_once(tmp_path, expected: bytes):
    logs = [tmp_path / name for name in "ab"]
    assert finish(*[start(slow, tmp_path / "bank", log) for log in logs]) == [0, 0]
    assert sorted(log.read_text() for log in logs) == ["0", str(ROWS)]
    assert (tmp_path / "bank").read_bytes() == expected


# -- bits that change later ---------------------------------------------------------------------------------------


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["saved", "extracted"])
def test_any_bit_that_changes_in_a_finished_file_is_noticed(tmp_path, how: str):
    path = tmp_path / "bank"
    if how == "saved":
        Features(penultimate=normal(ROWS, 8), labels=torch.arange(ROWS)).save(path)
    else:
        run(path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for bit in range(8 * (8 + size), 8 * len(whole), 1997):
        flipped(path, bit)
        with pytest.raises(ValueError, match=r"not a complete.*bytes are not those that were written"):
            Features.load(path)
        flipped(path, bit)
    expected = Features.load(path).tensors()
    for bit in range(0, 8 * (8 + size), 37):  # one in the header may be harmless, and is never believed
        flipped(path, bit)
        with suppress(ValueError):
            found = Features.load(path).tensors()
            assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
        flipped(path, bit)
    assert len(Features.load(path)) == ROWS


def test_a_finished_file_with_a_changed_bit_is_made_again(tmp_path, expected: bytes):
    run(tmp_path / "bank")
    flipped(tmp_path / "bank", 8 * len(expected) - 50)
    with pytest.warns(UserWarning, match="damaged and are made again"):
        run(tmp_path / "bank")
    assert (tmp_path / "bank").read_bytes() == expected


def test_files_of_earlier_versions_are_read_as_they_are(tmp_path):
    tensors = {"penultimate": normal(ROWS, 8), "labels": torch.arange(ROWS)}
    save_file(tensors, tmp_path / "old")
    assert torch.equal(Features.load(tmp_path / "old").penultimate, tensors["penultimate"])


# -- items that change while it is made -----------------------------------------------------------------------------


def pictures(rows: int = 5 * BATCH) -> torch.Tensor:
    return torch.rand(rows, 1, 8, 8, generator=seeded(3))


class Looking(torch.nn.Module):
    """A network that counts the rows it is shown, and dies of a black image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rows = make_network(), 0

    def represent(self, x: torch.Tensor):
        if (x == 0).all((1, 2, 3)).any():
            raise RuntimeError("a black image")
        self.rows += len(x)
        return self.inner.represent(x)


@pytest.mark.parametrize("place", ["out", "cache"])
def test_blocks_of_items_that_are_the_same_stay_when_others_are_taken_out(tmp_path, place: str):
    images = pictures()
    images[3 * BATCH + 2] = 0
    rest = torch.cat([images[: 3 * BATCH + 2], images[3 * BATCH + 3 :]])
    options = {place: tmp_path / "place", "batch_size": BATCH, "device": "cpu", "progress": False}
    with pytest.raises(RuntimeError, match="black"):
        extract(Looking(), TensorDataset(images, torch.arange(len(images)) % 3), **options)
    network, data = Looking(), TensorDataset(rest, torch.arange(len(rest)) % 3)
    with pytest.warns(UserWarning, match=f"{3 * BATCH} of {len(rest)} rows are of the same items and stay"):
        features = extract(network, data, **options)
    assert network.rows == len(rest) - 3 * BATCH
    expected = extract(network, data, batch_size=BATCH, device="cpu", progress=False)
    for name, value in expected.tensors().items():
        assert torch.equal(getattr(features, name), value)
    assert not [*tmp_path.rglob("*.partial")]


def test_a_block_of_an_item_that_was_changed_meanwhile_is_made_again(tmp_path):
    images = pictures()
    images[3 * BATCH + 2] = 0
    options = {"out": tmp_path / "bank", "batch_size": BATCH, "device": "cpu", "progress": False}
    with pytest.raises(RuntimeError, match="black"):
        extract(Looking(), TensorDataset(images, torch.zeros(len(images)).long()), **options)
    images, network = images.clone(), Looking()
    images[3 * BATCH + 2], images[BATCH] = 0.5, 0.5
    with pytest.warns(UserWarning, match=f"{2 * BATCH} of {len(images)} rows"):
        extract(network, TensorDataset(images, torch.zeros(len(images)).long()), **options)
    assert network.rows == 3 * BATCH


# -- what is refused ----------------------------------------------------------------------------------------------

OTHERS = {
    "network": {"network": make_network(1)},
    "data": {"data": Images(seed=1)},
    "rows, data": {"data": Images(rows=22)},
    "precision": {"dtype": torch.float16},
}


@pytest.mark.parametrize(("what", "other"), OTHERS.items(), ids=OTHERS)
def test_a_bank_of_something_else_is_refused(tmp_path, half: Path, what: str, other: dict):
    with pytest.raises(ValueError, match=f"bank.partial was made with another {what} than"):
        run(half, **other)
    run(half)
    before = half.read_bytes()
    with pytest.raises(ValueError, match=f"bank was made with another {what} than"):
        run(half, **other)
    assert half.read_bytes() == before


def test_a_file_that_does_not_say_what_it_holds_is_refused_and_a_damaged_one_made_again(tmp_path, expected: bytes):
    out = tmp_path / "bank"
    Features(logits=normal(ROWS, 3)).save(out)
    with pytest.raises(ValueError, match="another format, rows, network, data, precision"):
        run(out)
    out.write_bytes(out.read_bytes()[:50])
    with pytest.warns(UserWarning, match="damaged and are made again") as warned:
        run(out)
    assert len(warned) == 1 and out.read_bytes() == expected


def test_an_unfinished_bank_is_not_loaded(half: Path):
    with pytest.raises(FileNotFoundError, match=r"bank is not finished: call extract again.*bank\.partial"):
        Features.load(half)


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected the path of a file"):
        run(tmp_path)


def test_one_place_is_enough(tmp_path):
    with pytest.raises(ValueError, match="both out and cache"):
        run(tmp_path / "bank", cache=tmp_path)


def test_what_is_not_finite_is_kept_as_it_is(tmp_path):
    network = make_network()
    network.head.bias.data[1] = torch.nan
    features = run(tmp_path / "bank", network=network)
    assert features.logits[:, 1].isnan().all() and features.logits[:, 0].isfinite().all()

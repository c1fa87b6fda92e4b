"""A bank is replaced as a whole or not at all: on a full disk, killed at any moment, read by others meanwhile."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ood_lib import extract, load_benchmark, network_for
from ood_lib.features.bank import BenchmarkFeatures, extract_benchmark, load_bank
from ood_lib.features.bank_files import NEXT
from ood_lib.features.features import Features
from ood_lib.files import draft, sweep

posix = pytest.mark.skipif(os.name == "nt", reason="forks, and limits what a process may write")


def bank(value: float, ood: str = "sea") -> BenchmarkFeatures:
    """All of whose numbers are one, so that a mixture of two banks shows."""
    x = Features(penultimate=torch.full((3, 4), float(value)), labels=torch.arange(3))
    head = torch.nn.Linear(4, 2)
    torch.nn.init.constant_(head.weight, value)
    return BenchmarkFeatures(x, x, x, {"near": x}, {ood: x}, head, about={"value": value})


def value_of(folder: Path) -> float:
    """The number that all of a bank consists of."""
    x = BenchmarkFeatures.load(folder)
    sets = [x.train, x.val, x.test, *x.near.values(), *x.far.values()]
    assert x.head is not None
    (found,) = {*torch.cat([*(s.penultimate.flatten() for s in sets), x.head.weight.flatten()]).tolist()}
    assert x.about["value"] == found and list(x.near) == ["near"]
    return found


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("write", range(7))  # five sets, the head, the header
def test_a_disk_that_fills_up_leaves_the_old_bank(tmp_path, monkeypatch, write):
    folder = tmp_path / "bank"
    bank(1).save(folder)
    before, left = files(folder), write

    def fsync(_: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"the disk is full; make room there.*bank"):
        bank(2).save(folder)
    assert files(folder) == before
    assert value_of(folder) == 1


def limited(folder: Path, room: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        bank(2).save(folder)
    except Exception:
        os._exit(7)


@posix
def test_a_file_that_may_not_grow_leaves_the_old_bank(tmp_path):
    bank(1).save(tmp_path)
    for room in (0, 100, 200, 300):
        process = multiprocessing.get_context("fork").Process(target=limited, args=(tmp_path, room))
        process.start()
        process.join()
        assert process.exitcode == 7 and value_of(tmp_path) == 1


def die_at(step: int, folder: Path) -> None:
    """Be killed the moment something changes the names in the folder for the n-th time."""
    count = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in ("os.rename", "os.mkdir", "os.rmdir") and str(folder) in str(args[0]):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_at_every_step(place: Path) -> None:
    torch.set_num_threads(1)  # no thread is lost in a fork
    os.fsync = lambda _: None  # slow, and only a power cut would tell
    folder, step, values, died = place / "bank", 0, [1.0], True
    bank(1).save(folder)
    while died:
        step += 3
        if not (pid := os.fork()):
            die_at(step, folder)
            bank(1 + step).save(folder)
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        values.append(value_of(folder))
        assert values[-1] == load_value(place) in (values[-2], 1 + step)
    assert step > 20 and 1 < len({*values}) < step / 3
    bank(0).save(folder)
    assert value_of(folder) == 0 and files(folder) == files_of_a_fresh_one(place)


def load_value(place: Path) -> float:
    return load_bank("bank", place).about["value"]


def files_of_a_fresh_one(place: Path) -> list[str]:
    bank(0).save(place / "fresh")
    return files(place / "fresh")


@posix
def test_killed_at_any_step_the_old_bank_or_the_new_one_is_there_whole(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_at_every_step, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def saved_often(folder: Path, first: int) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda _: None
    for n in range(20):
        bank(first + n).save(folder)


@posix
def test_two_who_save_and_one_who_reads_see_whole_banks(tmp_path):
    bank(0).save(tmp_path)
    fork = multiprocessing.get_context("fork")
    savers = [fork.Process(target=saved_often, args=(tmp_path, first)) for first in (100, 200)]
    for saver in savers:
        saver.start()
    seen = set()
    while any(saver.is_alive() for saver in savers):
        seen.add(value_of(tmp_path))
    assert [saver.exitcode for saver in savers] == [0, 0]
    assert value_of(tmp_path) in (119, 219) and len(seen) > 1
    assert not (tmp_path / NEXT).exists()


def test_a_precision_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="precision='float16' was given; expected 'full' or 'uint8'"):
        bank(1).save(tmp_path / "bank", precision="float16")
    assert not (tmp_path / "bank").exists()


def test_what_cannot_be_described_leaves_the_old_bank(tmp_path):
    bank(1).save(tmp_path)
    with pytest.raises(TypeError, match="JSON"):
        bank(2).save(tmp_path, made_by=object())
    assert value_of(tmp_path) == 1


HEADERS = {
    "cut off": '{"sets": {"train": "a',
    "empty": "",
    "no text": b"\xff\xfe\x00",
    "a list": "[1, 2]",
    "without sets": '{"about": {}}',
    "sets that are a list": '{"sets": [], "about": {}}',
    "without roles": '{"sets": {"train": "0"}, "about": {}}',
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_damaged_header_is_named(tmp_path, content):
    bank(1).save(tmp_path)
    (tmp_path / "benchmark.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"benchmark\.json"):
        BenchmarkFeatures.load(tmp_path)


def test_a_draft_of_a_killed_process_goes_and_one_of_a_living_process_stays(tmp_path):
    bank(1).save(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = draft(tmp_path / "benchmark.json")
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{gone.pid}."))
    for folder in (dead, mine):
        (folder / "near").mkdir(parents=True)
        (folder / "near/a.safetensors").write_text("half")
    sweep(tmp_path)
    assert not dead.exists() and (mine / "near/a.safetensors").exists()
    assert value_of(tmp_path) == 1


def test_the_head_of_a_benchmark_is_a_copy_that_stays():
    bench = load_benchmark("digits")
    network = network_for(bench)
    few = replace(bench, train=bench.train.subset(torch.arange(8)), val=bench.val.subset(torch.arange(8)), near={})
    few = replace(few, test=few.val, far={})
    torch.manual_seed(0)
    for data in (few.train, few.val, few.test):
        extract(network, data, progress=False)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    x = extract_benchmark(network, few, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)  # the copy draws no random numbers
    assert x.head is not None and x.head is not network.head
    assert not any(p.requires_grad for p in x.head.parameters()) and network.head.weight.requires_grad
    with torch.no_grad():
        network.head.weight.zero_()
    assert torch.allclose(x.head(x.test.penultimate), x.test.logits, atol=1e-5)


def test_two_sets_of_one_name_are_both_shown():
    x = bank(1)
    assert [line.split()[0] for line in repr(x).splitlines()[1:]] == ["train", "val", "test", "near", "sea"]
    x = replace(x, near={"sea": x.train, "lake": x.train})
    assert [line.split()[0] for line in repr(x).splitlines()[4:]] == ["near/sea", "lake", "far/sea"] == [*x.ood_sets()]

"""Laws of several processes: together they make what one would have made, to the bit, and each gets the whole."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from ood_lib import Features, Mahalanobis
from ood_lib.features.distributed import Team, team
from tests.apart import finish, start
from tests.conftest import normal
from tests.features.test_blocks import Images, make_network, run

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 23])
def test_the_shares_are_the_whole_in_order_and_even(count: int, size: int):
    shares = [Team(rank, size).share(range(count)) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_there_is_nobody_to_ask():
    assert team() == Team() and team().gather("word") == ["word"]


@pytest.mark.parametrize(("local", "gpu"), [("0", 0), ("3", 3), ("5", 1)])
def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch, local: str, gpu: int):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", local)
    cuda = torch.device("cuda")
    assert Team(9, 16).device(cuda) == torch.device("cuda", gpu)
    assert Team().device(cuda) == cuda  # alone: the current one
    for other in (torch.device("cpu"), torch.device("cuda:2")):  # asked for by name
        assert Team(9, 16).device(other) == other


# -- processes that meet ------------------------------------------------------------------------------------------


def in_a_team(rank: int, size: int, port: int, started: bool, task, args: tuple) -> None:
    """What torchrun announces, and then the task; sometimes the script has made the group itself."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if started:
        distributed.init_process_group("gloo")
    task(rank, *args)
    distributed.destroy_process_group()


def together(size: int, task, *args, started: bool = False) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return finish(*[start(in_a_team, rank, size, port, started, task, args) for rank in range(size)])


def extracts(rank: int, out: Path, rows: int) -> None:
    data = Images(rows)
    features = run(out, data)
    features.save(out.with_name(f"rank {rank}"))
    out.with_name(f"seen {rank}").write_text(repr(data.seen))


@pytest.mark.parametrize(("rows", "size", "started"), [(23, 2, False), (23, 3, True), (1, 2, False), (10, 2, True)])
def test_any_number_of_processes_makes_the_bank_that_one_makes(tmp_path, rows: int, size: int, started: bool):
    run(tmp_path / "alone", Images(rows))
    assert together(size, extracts, tmp_path / "bank", rows, started=started) == [0] * size
    assert (tmp_path / "bank").read_bytes() == (tmp_path / "alone").read_bytes()
    expected = Features.load(tmp_path / "alone").tensors()
    for rank in range(size):
        got = Features.load(tmp_path / f"rank {rank}").tensors()
        assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    seen = [eval((tmp_path / f"seen {rank}").read_text()) for rank in range(size)]
    assert [row for share in seen for row in share] == list(range(rows))  # none twice, none left out


def caches_and_goes_alone(rank: int, folder: Path) -> None:
    cached = run(None, cache=folder)
    with pytest.warns(UserWarning, match=r"each of 2 processes looks at all 23 images: name a file with out="):
        plain = run(None)
    assert torch.equal(cached.logits, plain.logits)


def test_a_cache_is_shared_and_without_a_file_each_works_for_itself(tmp_path):
    assert together(2, caches_and_goes_alone, tmp_path) == [0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def differs(rank: int, out: Path) -> None:
    with pytest.raises(ValueError, match="the processes hold different networks or data"):
        run(out, network=make_network(rank))


def test_processes_with_different_networks_are_found_out(tmp_path):
    assert together(2, differs, tmp_path / "bank") == [0, 0]
    assert os.listdir(tmp_path) == []


def toy() -> Features:
    return Features(penultimate=normal(90, 4), labels=torch.arange(90) % 3)


def recipe(containing: str) -> str:
    """The example of the page that contains some words."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "book/scale.md").read_text(), re.M | re.S)
    (found,) = [block for block in blocks if containing in block]
    return found


def learns_a_part(rank: int, folder: Path) -> None:
    names: dict = {}
    exec(recipe("def merged"), names)
    detector = Mahalanobis().partial_fit(toy()[rank::2])
    torch.save(names["merged"](detector).score(toy()), folder / f"{rank}.pt")


def test_detectors_that_learned_in_two_processes_merge_into_one(tmp_path):
    assert together(2, learns_a_part, tmp_path, started=True) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert torch.allclose(first, Mahalanobis().fit(toy()).score(toy()), rtol=1e-9)


def runs_the_page(rank: int, folder: Path) -> None:
    os.chdir(folder)
    exec(recipe("sets.items()"), {})


def test_the_script_of_the_page_makes_the_same_in_two_processes(tmp_path, monkeypatch):
    places = [tmp_path / "many", tmp_path / "one"]
    for place in places:
        place.mkdir()
    assert together(2, runs_the_page, places[0]) == [0, 0]
    monkeypatch.chdir(places[1])
    exec(recipe("sets.items()"), {})
    many, one = ({path.name: path.read_bytes() for path in (place / "bank").iterdir()} for place in places)
    assert len(one) > 5 and many == one


# -- torchrun -----------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
from tests.features.test_blocks import Images, run
run({out!r}, Images(23, deadly=21 if os.environ["RANK"] == "1" else -1))
"""


def test_a_rank_that_torchrun_loses_midway_costs_its_block(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), out=str(tmp_path / "bank")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    lost = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)
    assert lost.returncode != 0 and "SIGKILL" in lost.stderr
    assert not (tmp_path / "bank").exists() and (tmp_path / "bank.partial" / "manifest.json").exists()
    assert together(2, extracts, tmp_path / "bank", 23) == [0, 0]  # as torchrun would start them, in less time
    whole = run(tmp_path / "alone")
    assert (tmp_path / "bank").read_bytes() == (tmp_path / "alone").read_bytes()
    assert all(torch.equal(Features.load(tmp_path / f"rank {rank}").logits, whole.logits) for rank in range(2))
    seen = [row for rank in range(2) for row in eval((tmp_path / f"seen {rank}").read_text())]
    assert 0 < len(set(seen)) == len(seen) < 23  # what was done before the loss is not done again

"""Laws of the cost of a block: it is its own, and it is about right."""

import time

import pytest
import torch

from ood_lib.evaluation import cost as room
from ood_lib.evaluation.cost import measure_cost
from tests.apart import apart

linux = pytest.mark.skipif(not room.CLEAR_REFS.exists(), reason="only Linux tells the memory of a block")
MB = 10**6


def test_time_is_that_of_the_block():
    with measure_cost() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 1


def measured(*megabytes: int) -> list[float]:
    found = []
    for size in megabytes:
        with measure_cost() as cost:
            torch.ones(size * MB // 4)
        found.append(cost.memory_mb)
    return found


@linux
def test_memory_that_a_block_takes_for_a_moment_counts_and_that_of_an_earlier_block_does_not():
    # A process of its own: what other tests have freed, and this process kept, would be taken again without a trace.
    first, second = apart(measured, 200, 50)
    assert first == pytest.approx(200, rel=0.1)
    assert second == pytest.approx(50, rel=0.2)


def test_a_block_that_fails_is_measured_and_still_fails():
    with pytest.raises(KeyError), measure_cost() as cost:
        raise KeyError
    assert cost.seconds > 0


def test_where_memory_cannot_be_told_it_is_nan(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(room, "STATUS", tmp_path / "none" / "status")
    with measure_cost() as cost:
        pass
    assert cost.memory_mb != cost.memory_mb and cost.seconds > 0


@linux
def test_a_kernel_that_leaves_the_peak_out_gives_nan(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("VmRSS:\t 1000 kB\n")
    monkeypatch.setattr(room, "STATUS", tmp_path / "status")
    with measure_cost() as cost:
        pass
    assert cost.memory_mb != cost.memory_mb


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_memory_is_what_torch_allocates():
    with measure_cost("cuda") as cost:
        torch.ones(50 * MB // 4, device="cuda")
    assert cost.memory_mb == pytest.approx(50, rel=0.1)

"""Laws of the forward pass: its options change precision or speed, never rows."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from ood_lib import extract
from ood_lib.features.extract import _batches, _late
from tests.features.test_features import OPTIONS, dataset, make_network

FLAT = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
NETWORKS = {"own": make_network(), "adapted": FLAT}


def test_no_batch_reaches_over_the_end_of_a_block_and_none_is_lost():
    batches = list(_batches([range(0, 7), range(14, 16), range(20, 20)], 3))
    assert batches == [[0, 1, 2], [3, 4, 5], [6], [14, 15]]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_results_are_asked_for_when_the_next_batch_has_been_begun(count: int):
    log = []
    for item in _late(log.append(f"begin {i}") or i for i in range(count)):
        log.append(f"take {item}")
    last = [f"take {count - 1}"] if count else []
    assert log == ["begin 0"][:count] + [x for i in range(1, count) for x in (f"begin {i}", f"take {i - 1}")] + last


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int):
    plain = extract(make_network(), dataset(), batch_size=5, **OPTIONS)
    loaded = extract(make_network(), dataset(), batch_size=5, num_workers=workers, **OPTIONS)
    assert all(torch.equal(value, plain.tensors()[name]) for name, value in loaded.tensors().items())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_faster_ways_give_the_same_numbers(monkeypatch, network: nn.Module, option: str):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced, not built: that takes long
    plain = extract(network, dataset(), batch_size=5, **OPTIONS).tensors()
    fast = extract(network, dataset(), batch_size=5, **{option: True}, **OPTIONS).tensors()
    assert fast.keys() == plain.keys()
    assert all(torch.allclose(fast[name], plain[name], atol=1e-6) for name in plain)


def test_a_network_that_cannot_be_compiled_runs_as_it_is_and_one_warning_says_why(monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("no such chip")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=refuse))
    with pytest.warns(UserWarning, match="(?s)compile failed, the network runs uncompiled.*no such chip") as warned:
        fast = extract(make_network(), dataset(), batch_size=5, compile=True, **OPTIONS)
    assert len(warned) == 1
    assert torch.equal(fast.logits, extract(make_network(), dataset(), batch_size=5, **OPTIONS).logits)


def test_autocast_computes_in_half_precision_and_nearly_the_same(tmp_path):
    plain = extract(make_network(), dataset(), **OPTIONS)
    half = extract(make_network(), dataset(), autocast=torch.bfloat16, **OPTIONS)
    assert half.logits.dtype == torch.bfloat16 and half.labels.dtype == torch.int64
    assert torch.allclose(half.logits.float(), plain.logits, atol=0.02)
    assert not torch.equal(half.logits.float(), plain.logits.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_are_stored_in_the_precision_asked_for(tmp_path, dtype: torch.dtype):
    plain = extract(make_network(), dataset(), **OPTIONS)
    for place in ({}, {"out": tmp_path / "bank"}):
        stored = extract(make_network(), dataset(), dtype=dtype, **place, **OPTIONS)
        assert torch.equal(stored.penultimate, plain.penultimate.to(dtype)) and stored.labels.dtype == torch.int64


def test_every_precision_has_an_entry_of_its_own_in_the_cache(tmp_path):
    for options in ({}, {"dtype": torch.float16}, {"autocast": torch.bfloat16}, {}):
        extract(make_network(), dataset(), cache=tmp_path, **options, **OPTIONS)
    ends = sorted(path.stem[34:] for path in tmp_path.iterdir())
    assert ends == ["", "computed-bfloat16", "stored-float16"]


@pytest.mark.parametrize("option", ["dtype", "autocast"])
def test_a_precision_that_holds_no_features_is_named(option: str):
    with pytest.raises(ValueError, match=r"torch\.int8 was given as a precision"):
        extract(make_network(), dataset(), **{option: torch.int8}, **OPTIONS)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_needs_an_image(size: int):
    with pytest.raises(ValueError, match=f"batch_size={size} was given"):
        extract(make_network(), dataset(), batch_size=size, **OPTIONS)


class Stream(IterableDataset):
    """A stream that knows its length, but has no row i."""

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        return iter(dataset(3))


@pytest.mark.parametrize("data", [Stream(), iter(dataset(3)), torch.utils.data.DataLoader(dataset(3))])
def test_what_has_no_row_i_is_refused(data):
    with pytest.raises(TypeError, match="expected a data set with a length"):
        extract(make_network(), data, **OPTIONS)
    assert len(extract(make_network(), list(Stream()), **OPTIONS)) == 3

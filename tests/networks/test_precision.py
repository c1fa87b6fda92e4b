"""Laws of half precision: taken where a processor is faster in it, never emulated in silence, and never mixed."""

import logging
import os
import platform
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ood_lib import FeatureFlow, Features, half_precision, train_multilabel, train_score_network
from ood_lib.data.images import ImageArray
from ood_lib.detectors.flow.flow import coupling_flow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.networks import precision as module
from ood_lib.networks.precision import autocast_dtype
from tests.apart import apart
from tests.conftest import normal
from tests.features.test_blocks import make_network, run
from tests.features.test_distributed import together
from tests.training.test_classifier import Interrupted, interrupted_after, linear, small_shift, train, weights
from tests.training.test_score_matching import grey, small

HALF = torch.bfloat16
CPU = torch.device("cpu")
Z = normal(200, 6, dtype=torch.float32)


@pytest.fixture(autouse=True)
def forgotten():
    """No decision is left of another test, or for one."""
    for cached in (module._half_precision, module._times):
        cached.cache_clear()
    yield
    for cached in (module._half_precision, module._times):
        cached.cache_clear()


def make_processor(monkeypatch, half: float) -> list[torch.dtype]:
    """One that takes a second for a layer in float32, so many in half precision; the precisions it is asked for."""
    asked = []

    def seconds(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return 1.0 if dtype == torch.float32 else half

    monkeypatch.setattr(module, "_seconds", seconds)
    return asked


# -- the decision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("half", "expected"), [(0.1, HALF), (0.8, HALF), (0.9, None), (1.0, None), (10.0, None)])
def test_a_cpu_computes_in_bfloat16_where_that_is_clearly_faster(monkeypatch, half: float, expected):
    make_processor(monkeypatch, half)
    assert half_precision("cpu") == half_precision(CPU) == autocast_dtype("auto", "cpu") == expected


def test_the_shortest_times_count(monkeypatch):
    times = iter([9.0, 9.0] + 7 * [1.0, 2.0])  # a machine that was busy at first
    monkeypatch.setattr(module, "_seconds", lambda dtype: next(times))
    assert half_precision("cpu") is None and module._times(HALF) == (1.0, 2.0)


def test_the_decision_is_made_once_and_logged_with_its_times(monkeypatch, caplog):
    asked = make_processor(monkeypatch, 0.0125)
    with caplog.at_level(logging.INFO, "ood_lib"):
        half_precision("cpu")
        assert set(asked) == {torch.float32, HALF}
        asked.clear()
        half_precision(CPU)
    assert asked == []
    assert [(r.name, r.levelname, r.message) for r in caplog.records] == [
        ("ood_lib", "INFO", "bfloat16 is used on cpu: a layer takes 12.50 ms in it, 1000.00 in float32")
    ]


def decided_with(instructions: str) -> torch.dtype | None:
    os.environ["ONEDNN_MAX_CPU_ISA"] = instructions  # read at the first product
    torch.set_num_threads(1)
    return half_precision("cpu")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names instructions of x86")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])  # PyTorch says of the second that it has bfloat16
def test_a_processor_that_emulates_bfloat16_is_found_out(instructions: str):
    assert apart(decided_with, instructions) is None


@pytest.mark.parametrize("hardware", [True, False])
def test_a_cuda_device_counts_when_it_has_bfloat16_in_hardware(monkeypatch, hardware: bool):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or hardware
    )
    assert half_precision("cuda") == (HALF if hardware else None)


def test_other_devices_compute_as_the_weights_are():
    assert half_precision("mps") is None


def test_the_global_random_numbers_and_the_callers_modes_do_not_matter():
    before = torch.random.get_rng_state()
    decided = half_precision("cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    for mode in (torch.inference_mode(), torch.autocast("cpu", HALF)):
        module._half_precision.cache_clear()
        with mode:
            assert half_precision("cpu") == decided


# -- what is asked for by name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [(True, HALF), (HALF, HALF), (False, None), (None, None)])
def test_a_precision_asked_for_by_name_is_obeyed(monkeypatch, given, expected):
    make_processor(monkeypatch, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autocast_dtype(given, CPU) == expected


@pytest.mark.parametrize("dtype", [torch.float16, HALF])
def test_but_not_emulated_in_silence(monkeypatch, dtype: torch.dtype):
    asked = make_processor(monkeypatch, 8.0)
    with pytest.warns(
        UserWarning, match=rf"slow in {dtype}: a layer takes 8.0 times as long .* autocast=\"auto\""
    ) as seen:
        train(linear(), epochs=1, autocast=dtype)
    assert seen[0].filename == sys.modules[train.__module__].__file__  # it points at who called the library
    assert set(asked) == {torch.float32, dtype}
    with pytest.warns(UserWarning, match="slow in"):
        run(None, autocast=dtype)


def test_what_is_no_precision_is_named():
    for call in (train, lambda network, autocast: run(None, autocast=autocast)):
        with pytest.raises(ValueError, match="autocast='bf16' was given; expected \"auto\", None, or a precision"):
            call(linear(), autocast="bf16")


# -- "auto" is what it comes to -----------------------------------------------------------------------------------


@pytest.fixture(params=[HALF, None], ids=["bfloat16", "float32"])
def decided(request, monkeypatch) -> torch.dtype | None:
    """What "auto" comes to, whatever this machine is."""
    decide(monkeypatch, request.param)
    return request.param


def decide(monkeypatch, precision: torch.dtype | None) -> None:
    monkeypatch.setattr(module, "_half_precision", lambda device: precision)


def one_label(autocast) -> torch.Tensor:
    network = linear()
    train(network, autocast=autocast)
    return weights(network)


def many_labels(autocast) -> torch.Tensor:
    network = linear(3)
    data = torch.utils.data.TensorDataset(normal(40, 1, 6, 6, dtype=torch.float32), torch.eye(3).repeat(14, 1)[:40])
    train_multilabel(network, data, epochs=3, batch_size=16, device="cpu", progress=False, autocast=autocast)
    return weights(network)


def scores(autocast) -> torch.Tensor:
    network = small()
    options = {"steps": 5, "device": "cpu", "progress": False}
    train_score_network(network, ImageArray(grey(100, 0)), autocast=autocast, **options)
    return weights(network)


def features(autocast) -> torch.Tensor:
    return run(None, autocast=autocast).logits.float()


def flow(autocast) -> torch.Tensor:
    training = FlowTraining(coupling_flow(6, 2, [8]), Z, noise=0.1, autocast=autocast)
    training.run(5)
    return weights(training.flow)


def feature_flow(autocast) -> torch.Tensor:
    known = Features(penultimate=Z)
    return FeatureFlow(updates=5, batch_size=50, holdout=0, autocast=autocast).fit(known).score(known)


@pytest.mark.parametrize("way", [one_label, many_labels, scores, features, flow, feature_flow])
def test_auto_gives_the_numbers_of_the_precision_that_it_comes_to(way, decided):
    found = way("auto")
    assert torch.equal(found, way(decided))
    assert not torch.equal(found, way(None if decided else HALF))


# -- and is never mixed with another ------------------------------------------------------------------------------


def test_a_cache_knows_what_was_computed_in(tmp_path, decided):
    run(None, cache=tmp_path, autocast="auto")
    run(None, cache=tmp_path, autocast=decided)
    (kept,) = tmp_path.iterdir()
    assert kept.stem.endswith("computed-bfloat16") == bool(decided)


def test_a_bank_of_another_precision_is_refused(tmp_path, monkeypatch):
    decide(monkeypatch, HALF)
    run(tmp_path / "bank", autocast="auto")
    decide(monkeypatch, None)
    with pytest.raises(ValueError, match="precision"):
        run(tmp_path / "bank", autocast="auto")


def test_a_training_does_not_go_on_in_another_precision(tmp_path, monkeypatch):
    options = {"checkpoint": tmp_path / "a.pt", "autocast": "auto"}
    decide(monkeypatch, HALF)
    with pytest.raises(Interrupted):
        train(linear(), augment=interrupted_after(1), **options)
    decide(monkeypatch, None)
    with pytest.raises(ValueError, match="belongs to other data or options"):
        train(linear(), augment=small_shift, **options)
    train(linear(), augment=small_shift, **options | {"autocast": HALF})
    assert list(tmp_path.iterdir()) == []


def test_a_fit_of_a_flow_does_not_go_on_in_another_precision(tmp_path, monkeypatch):
    def fit(autocast) -> None:
        path = str(tmp_path / "flow.pt")
        FeatureFlow(updates=20, check_every=10, autocast=autocast, checkpoint=path).fit(Features(penultimate=Z))

    decide(monkeypatch, HALF)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FlowTraining, "stale", lambda self: exec("raise KeyboardInterrupt") if self.update else 0)
        fit("auto")
    decide(monkeypatch, None)
    with pytest.raises(ValueError, match="belongs to other data or options"):
        fit("auto")
    fit(True)
    assert list(tmp_path.iterdir()) == []


def unequal(rank: int, folder: Path) -> None:
    module._half_precision = lambda device: HALF if rank == 0 else None
    run(folder / "bank", autocast="auto")


def test_processes_that_share_a_bank_agree_on_what_all_of_them_are_fast_in(tmp_path):
    assert together(2, unequal, tmp_path) == [0, 0]
    run(tmp_path / "alone", network=make_network())
    assert (tmp_path / "bank").read_bytes() == (tmp_path / "alone").read_bytes()

"""Laws of the bank of score norms: who learns from what, that a run goes on, and that a bank is verified."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ood_lib import GMM, MSMA, Benchmark, ImageArray, ScoreNetwork, load_score_norms, score_norms
from ood_lib.detectors import norm_bank
from ood_lib.detectors.norm_bank import SCORERS, Scorer, make_score_norms
from ood_lib.evaluation.metrics import auroc
from tests.conftest import seeded

TWO = (Scorer(None), Scorer("instance++", 250))


def pictures(n: int, known: bool = True) -> ImageArray:
    labels = torch.arange(n) % 2 if known else torch.full((n,), -1)
    return ImageArray(torch.rand(n, 3, 8, 8, generator=seeded(n)), labels)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setattr(norm_bank, "HELD_OUT", 10)
    known, near, far = map(pictures, (30, 8, 9)), {"near": pictures(7, False)}, {"svhn": pictures(12, False)}
    return Benchmark("tiny", *known, near, far, ("a", "b"), nn.Identity(), (3, 8, 8))


def count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ScoreNetwork, ImageArray]]:
    """Networks are seen, and left as they are."""
    seen: list = []
    monkeypatch.setattr(norm_bank, "train_score_network", lambda network, train, **_: seen.append((network, train)))
    return seen


def test_the_rows_of_a_density_are_held_out_from_the_network(bench: Benchmark, tmp_path: Path, monkeypatch):
    seen = count_trainings(monkeypatch)
    make_score_norms(bench, tmp_path, scorers=TWO, device="cpu")
    ((network, train),) = seen
    apart = [image for image in bench.train.images if not (train.images == image).flatten(1).all(1).any()]
    assert len(train) == 20 and len(apart) == 10
    found = load_score_norms(tmp_path)[TWO[1]]
    exact = score_norms(network, torch.stack(apart), torch.logspace(0, -2, 10).tolist())
    assert torch.allclose(found.train.penultimate, exact, rtol=1e-4)
    assert {k: len(x) for k, x in found.near.items() | found.far.items()} == {"near": 7, "svhn": 12}


def test_networks_that_are_there_are_kept_and_the_others_made(bench: Benchmark, tmp_path: Path, monkeypatch):
    seen = count_trainings(monkeypatch)
    make_score_norms(bench, tmp_path, scorers=TWO[1:], device="cpu")
    first = load_score_norms(tmp_path)[TWO[1]].test.penultimate
    make_score_norms(bench, tmp_path, scorers=TWO, device="cpu")
    assert len(seen) == 1
    assert torch.equal(load_score_norms(tmp_path)[TWO[1]].test.penultimate, first)
    assert list(load_score_norms(tmp_path)) == [*TWO]


def test_a_file_that_is_not_the_one_that_was_saved_is_refused(bench: Benchmark, tmp_path: Path):
    with pytest.raises(ValueError, match="make the bank with `python -m ood_lib"):
        load_score_norms(tmp_path)
    make_score_norms(bench, tmp_path, scorers=TWO[:1], device="cpu")
    file = tmp_path / "gaussian.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="not the file that was saved"):
        load_score_norms(tmp_path)


def test_each_network_has_a_name_of_its_own():
    assert len({scorer.name for scorer in SCORERS}) == len(SCORERS)


def test_in_the_bank_that_ships_held_out_rows_look_like_test_rows_and_far_ood_does_not():
    for scorer, x in load_score_norms().items():
        detector = MSMA(None, GMM(1, "full"), log=True).fit(x.train)
        own = detector(x.test)
        assert 0.42 < auroc(detector(x.train), own)[0] < 0.58, scorer
        assert auroc(own, detector(x.far["mnist"]))[0] > 0.9, scorer


def test_a_run_killed_before_the_card_is_taken_up(bench: Benchmark, tmp_path: Path, monkeypatch):
    seen = count_trainings(monkeypatch)
    make_score_norms(bench, tmp_path, scorers=TWO[:1], device="cpu")
    listed = (tmp_path / "card.json").read_text()
    make_score_norms(bench, tmp_path, scorers=TWO, device="cpu")
    for former in (listed, None):
        (tmp_path / "card.json").write_text(former) if former else (tmp_path / "card.json").unlink()
        make_score_norms(bench, tmp_path, scorers=TWO, device="cpu")
        assert list(load_score_norms(tmp_path)) == list(TWO)
    assert len(seen) == 1  # Scorer(None) trains nothing


@pytest.mark.parametrize("content", ['{"sets": {', "[]", "{}"])
def test_a_damaged_card_is_named(tmp_path: Path, content: str):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(ValueError, match=r"card\.json .*copy it again"):
        load_score_norms(tmp_path)

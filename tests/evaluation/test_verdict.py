"""A method against its baseline, network by network: what the interval promises, and the words that follow from it."""

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

import ood_lib as ood
from ood_lib import BenchmarkFeatures, Features, Verdict, tally, verdicts
from ood_lib.detectors.detector import Detector
from ood_lib.evaluation import plots


class Column(Detector):
    """The score is one column of the features: two of them are two detectors whose scores we know."""

    needs_fit: ClassVar[bool] = False

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def _score(self, features: Features) -> torch.Tensor:
        return features.penultimate[:, self.column]


def drawn(generator, sets, n=200, gap=1.0, worse=0.0, shared=0.8):
    """Two columns of scores that go up and down together; OOD is `gap` higher, and less by `worse` for the second."""

    def features(shift):
        common = torch.randn(n, 1, generator=generator)
        own = torch.randn(n, 2, generator=generator)
        return Features(shared * common + (1 - shared**2) ** 0.5 * own + torch.tensor([shift, shift * (1 - worse)]))

    x = features(0.0)
    near, far = ({f"{g}{i}": features(gap) for i in range(k)} for g, k in zip(("near", "far"), sets))
    return BenchmarkFeatures(x, x, x, near, far)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pair(features):
    return (features, Column(0), Column(1))


def test_one_network_and_one_set_is_the_paired_comparison(generator):
    x = drawn(generator, (1, 0), worse=0.4)
    (found,) = verdicts([pair(x)]).values()
    scores = [(x.test.penultimate[:, c], x.near["near0"].penultimate[:, c]) for c in (0, 1)]
    expected = ood.compare(*scores[0], *scores[1])
    assert (found.a, found.b) == pytest.approx((expected.a, expected.b), abs=1e-12)
    std = abs(expected.difference) / torch.special.ndtri(torch.tensor(1 - expected.p_value / 2, dtype=torch.float64))
    assert found.high - found.difference == pytest.approx(1.959964 * std.item(), rel=1e-6)


def test_mean_weighs_groups_alike_however_many_sets_they_have(generator):
    found = verdicts([pair(drawn(generator, (1, 3), worse=0.4))])
    assert found["mean"].difference == pytest.approx((found["near"].difference + found["far"].difference) / 2)


@pytest.mark.parametrize("sets", [(2, 0), (1, 2)])
def test_interval_holds_the_truth_as_often_as_it_promises(sets, generator):
    truth = [0.5 * (1 + math.erf(gap / 2)) for gap in (1.0, 0.7)]  # AUROC of two normals is Phi(gap / sqrt 2)
    truth = truth[0] - truth[1]
    runs = [verdicts([pair(drawn(generator, sets, n=60, worse=0.3))]) for _ in range(300)]
    for group in runs[0]:
        held = sum(run[group].low <= truth <= run[group].high for run in runs) / len(runs)
        assert 0.91 <= held <= 0.985, group


def test_networks_that_disagree_widen_the_interval_beyond_their_images(generator):
    networks = [pair(drawn(generator, (1, 1), n=2000, worse=worse)) for worse in (-0.4, 0.0, 0.4)]
    alone, together = verdicts(networks[:1])["near"], verdicts(networks)["near"]
    assert alone.word == "worse" and together.word == "cannot tell"
    values = [verdicts([network])["near"].difference for network in networks]
    assert together.difference == pytest.approx(sum(values) / 3)
    _, low, high = ood.evaluation.metrics.mean_interval(values)
    assert together.low <= low * 0.9 and together.high >= high * 0.9  # that of Student's t over networks, and more


def test_networks_that_agree_narrow_it(generator):
    networks = [pair(drawn(generator, (1, 1), worse=0.4)) for _ in range(10)]
    alone, together = verdicts(networks[:1])["near"], verdicts(networks)["near"]
    assert together.high - together.low < alone.high - alone.low


def test_exchanged_detectors_exchange_the_verdict(generator):
    x = drawn(generator, (2, 1), worse=0.4)
    there, back = verdicts([pair(x)])["mean"], verdicts([(x, Column(1), Column(0))])["mean"]
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert (there.word, back.word) == ("better", "worse")


def test_a_detector_against_itself_is_level(generator):
    found = verdicts([(drawn(generator, (1, 1)), Column(0), Column(0))])
    assert {v.word for v in found.values()} == {"level"}
    assert all(v.low == v.high == 0 for v in found.values())


def test_what_is_not_fitted_is_fitted_and_what_is_fitted_stays(generator):
    x = drawn(generator, (1, 0))
    knn = ood.KNN(k=5).fit(Features(x.train.penultimate[:50]))
    assert verdicts([(x, knn, ood.KNN(k=5))])["near"].difference != 0


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.03, "better"), (-0.03, -0.01, "worse"), (-0.02, 0.03, "cannot tell"), (-0.004, 0.006, "level"),
        (0.002, 0.006, "better"), (0.0001, 0.0005, "level"),
    ],
)  # fmt: skip
def test_word_follows_the_interval(low, high, word):
    verdict = Verdict(0.5 + (low + high) / 2, 0.5, low, high)
    assert verdict.word == word
    assert str(verdict).endswith(word)


def test_tally_names_every_network_once():
    better, level = Verdict(0.9, 0.8, 0.05, 0.15), Verdict(0.8, 0.8, -0.001, 0.001)
    found = {"A": level, "B": better, "C": better, "D": better}
    assert tally(found) == "better on B, C and D, level on A"


def test_networks_that_saw_other_images_are_refused(generator):
    one, other = drawn(generator, (1, 0)), drawn(generator, (1, 0), n=100)
    with pytest.raises(ValueError, match="shown the same images"):
        verdicts([pair(one), pair(other)])
    with pytest.raises(ValueError, match="0 networks"):
        verdicts([])
    with pytest.raises(ValueError, match="no OOD set"):
        verdicts([pair(drawn(generator, (0, 0)))])


def test_table_has_a_row_for_each_network_and_a_column_for_each_group(generator):
    found = {
        "both": verdicts([pair(drawn(generator, (1, 1)))]),
        "near only": verdicts([pair(drawn(generator, (1, 0)))]),
    }
    shown = plots.verdict_table(found, "A against B").data
    assert list(shown.index) == list(found) and list(shown.columns) == ["near-OOD", "far-OOD", "mean of both"]
    assert shown.loc["near only", "far-OOD"] == "" and shown.loc["both", "near-OOD"] == str(found["both"]["near"])


def test_one_detector_for_several_networks_is_refused(generator):
    first, second = (drawn(generator, (1, 0)) for _ in range(2))
    shared = ood.KNN(k=3)
    with pytest.raises(ValueError, match="one KNN was given for several networks"):
        verdicts([(x, shared, Column(0)) for x in (first, second)])
    with pytest.raises(ValueError, match="one KNN was given for several networks"):
        verdicts((x, Column(0), shared) for x in (first, second))
    column = Column(0)  # learns nothing
    verdicts([(x, ood.KNN(k=3), column) for x in (first, second)])
    verdicts([(x, shared, column) for x in (first, replace(first, near=dict(first.near)))])  # the same network

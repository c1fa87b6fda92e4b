"""Evidence for drift: no alarm while nothing changes, for any law of the scores; one soon after a change."""

import operator
import random

import numpy as np
import pytest
import torch

import ood_lib as ood
from ood_lib.evaluation import watch

RANDOM = {
    "normal": lambda random, n: random.standard_normal(n),
    "heavy tails": lambda random, n: random.standard_cauchy(n),
    "ties": lambda random, n: random.integers(0, 5, n).astype(float),
}


@pytest.mark.parametrize("law", RANDOM)
def test_the_mean_evidence_after_t_images_is_t(law):
    # mean 1 of each bet, whatever the law of the scores and however few calibration images there are
    random = np.random.default_rng(0)
    draw, images = RANDOM[law], 5
    ends = [ood.Watch(draw(random, 20), patience=10, seed=s).update(draw(random, images)) for s in range(4000)]
    error = np.std(ends) / len(ends) ** 0.5
    assert abs(np.mean(ends) - images) < 4 * error
    assert error < 0.5, "the test can tell 5 from 7"


def test_false_alarms_are_no_more_frequent_than_promised():
    # E[R_t - t] = 0: the chance of an alarm within t images is at most t / patience
    random = np.random.default_rng(1)
    alarms = 0
    for seed in range(150):
        watch = ood.Watch(random.standard_normal(100), patience=1000, seed=seed)
        alarms += any(watch.update([score]) >= watch.patience for score in random.standard_normal(200))
    assert alarms <= 150 * 0.2 + 3 * (150 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize(
    "change", [lambda x: x + 1, lambda x: x - 1, lambda x: np.where(np.arange(len(x)) % 4, x, 5.0)]
)
def test_a_change_is_noticed(change):
    random = np.random.default_rng(2)
    watch = ood.Watch(random.standard_normal(500), patience=10_000)
    assert watch.update(random.standard_normal(1000)) < watch.patience
    assert watch.update(change(random.standard_normal(800))) >= watch.patience


def test_only_the_order_of_the_scores_counts():
    random = np.random.default_rng(3)
    known, new = random.standard_normal(100), random.standard_normal(50)
    plain = ood.Watch(torch.tensor(known)).update(torch.tensor(new))
    assert plain == ood.Watch(np.exp(known)).update(np.exp(new)) == ood.Watch(7 * known - 3).update(7 * new - 3)


def test_one_by_one_or_at_once_is_the_same():
    random = np.random.default_rng(4)
    known, new = random.standard_normal(100), random.standard_normal(50)
    watch = ood.Watch(known)
    for score in new:
        last = watch.update([score])
    assert last == ood.Watch(known).update(new)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("law", RANDOM)
def test_ranks_are_those_of_a_count_wherever_the_scores_are_kept(monkeypatch, law, block):
    monkeypatch.setattr(watch, "BLOCK", block)
    draw = np.random.default_rng(5)
    known, new = RANDOM[law](draw, 30).tolist(), RANDOM[law](draw, 60).tolist()
    ties, seen, statistics = random.Random(3), list(known), [0.0] * 6
    for score in new:
        above, equal = (sum(compare(x, score) for x in seen) for compare in (operator.gt, operator.eq))
        p = (above + ties.random() * (equal + 1)) / (len(seen) + 1)
        seen.append(score)
        bets = [q / 0.05 if p <= 0.05 else (1 - q) / 0.95 for q in (0.1, 0.2, 0.4)]
        bets += [1 + lean * (1 - 2 * p) for lean in (0.5, 1.0, -0.5)]
        statistics = [(1 + r) * bet for r, bet in zip(statistics, bets)]
    found = ood.Watch(known, seed=3)
    found.update(new[:25])
    assert found.update(new[25:]) == pytest.approx(np.mean(statistics), rel=1e-12)


@pytest.mark.parametrize("given", [{"alpha": 0.2}, {"alpha": 0}, {"patience": 1}, {"calibration": []}])
def test_a_wrong_argument_is_refused(given):
    with pytest.raises(ValueError, match="expected"):
        ood.Watch(**{"calibration": [0.0, 1.0], **given})

"""Laws of the paired comparison: DeLong's covariance, antisymmetry, and intervals and p-values that keep their word."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from ood_lib import compare, compare_over_seeds
from ood_lib.evaluation.metrics import auroc, fpr_at_tpr
from tests.conftest import normal, seeded

METRICS = ["auroc", "fpr95"]


def pair(n: int, m: int, shift_a: float, shift_b: float, seed: int = 0, alike: float = 0.8) -> list[torch.Tensor]:
    """Scores of two detectors that find the same images hard: id_a, ood_a, id_b, ood_b."""
    a, other = normal(2, n + m, seed=seed)
    b = alike * a + (1 - alike**2) ** 0.5 * other
    return [a[:n], a[n:] + shift_a, b[:n], b[n:] + shift_b]


def delong(known: list[np.ndarray], unknown: list[np.ndarray]) -> np.ndarray:
    """Covariance (2, 2) of the areas from all N x M pairs, as in DeLong et al. 1988."""
    kernels = [(u[None] > k[:, None]) + 0.5 * (u[None] == k[:, None]) for k, u in zip(known, unknown)]
    by_known, by_unknown = (np.cov([kernel.mean(axis) for kernel in kernels]) for axis in (1, 0))
    return by_known / len(known[0]) + by_unknown / len(unknown[0])


@pytest.mark.parametrize("rounded", [False, True], ids=["without ties", "with ties"])
def test_the_difference_and_its_p_value_are_delongs(rounded: bool):
    scores = [s.round() if rounded else s for s in pair(60, 90, 1.2, 0.9)]
    id_a, ood_a, id_b, ood_b = (s.numpy() for s in scores)
    labels = np.r_[np.zeros(60), np.ones(90)]
    expected = roc_auc_score(labels, np.r_[id_a, ood_a]) - roc_auc_score(labels, np.r_[id_b, ood_b])
    cov = delong([id_a, id_b], [ood_a, ood_b])
    found = compare(*scores)
    assert found.difference == pytest.approx(expected, abs=1e-12) == found.a - found.b
    z = expected / (cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) ** 0.5
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)
    assert found.correlation == pytest.approx(cov[0, 1] / (cov[0, 0] * cov[1, 1]) ** 0.5, rel=1e-9)


def test_with_many_images_the_interval_is_the_plain_one_of_the_difference():
    id_a, ood_a, id_b, ood_b = scores = pair(3000, 3000, 1.0, 0.9)
    cov = delong([id_a.numpy(), id_b.numpy()], [ood_a.numpy(), ood_b.numpy()])
    half = norm.ppf(0.975) * (cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) ** 0.5
    found = compare(*scores)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), abs=0.02 * half)


@pytest.mark.parametrize("positive", ["id", "ood"])
def test_the_two_values_are_those_of_the_metric(positive: str):
    id_a, ood_a, id_b, ood_b = scores = pair(50, 70, 1.5, 1.0)
    found = compare(*scores, metric="fpr95", positive=positive)
    assert found.a == fpr_at_tpr(id_a, ood_a, positive=positive)[0]
    assert found.b == fpr_at_tpr(id_b, ood_b, positive=positive)[0]
    assert (compare(*scores).a, compare(*scores).b) == (auroc(id_a, ood_a)[0], auroc(id_b, ood_b)[0])


def test_the_bootstrap_of_fpr95_is_that_of_resampling_the_images():
    id_a, ood_a, id_b, ood_b = scores = pair(40, 60, 1.5, 1.0)
    random, rates = np.random.default_rng(0), []
    for _ in range(3000):
        known, unknown = random.integers(40, size=40), random.integers(60, size=60)
        thresholds = [np.sort(s.numpy()[known])[37] for s in (id_a, id_b)]  # 38 = 0.95 * 40
        rates.append([(s.numpy()[unknown] <= t).mean() for s, t in zip((ood_a, ood_b), thresholds)])
    found = compare(*scores, metric="fpr95", draws=3000)
    z = found.difference / np.diff(rates).std()
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), abs=0.03)
    assert found.correlation == pytest.approx(np.corrcoef(np.transpose(rates))[0, 1], abs=0.07)


@pytest.mark.parametrize("metric", METRICS)
def test_exchanging_the_detectors_changes_the_sign(metric: str):
    scores = pair(40, 60, 1.5, 1.0)
    ab, ba = compare(*scores, metric=metric), compare(*scores[2:], *scores[:2], metric=metric)
    assert (ab.difference, ab.low, ab.high) == pytest.approx((-ba.difference, -ba.high, -ba.low), abs=1e-9)
    assert ab.p_value == pytest.approx(ba.p_value, rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_a_detector_is_no_better_than_itself(metric: str):
    id_a, ood_a = pair(40, 60, 1.5, 1.0)[:2]
    found = compare(id_a, ood_a, id_a.exp(), ood_a.exp(), metric=metric)
    assert (found.difference, found.p_value) == (0, 1)
    assert found.low <= 0 <= found.high and found.correlation == pytest.approx(1)


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_pairing_counts_not_the_order_of_images(metric: str):
    scores = pair(40, 60, 1.5, 1.0)
    orders = [torch.randperm(n, generator=seeded()) for n in (40, 60)] * 2
    mixed = compare(*(s[order] for s, order in zip(scores, orders)), metric=metric)
    found = compare(*scores, metric=metric)
    assert mixed.difference == pytest.approx(found.difference, abs=1e-12)
    assert (mixed.low, mixed.high) == pytest.approx((found.low, found.high), abs=1e-9 if metric == "auroc" else 0.03)
    if metric == "auroc":  # one detector alone in another order: the pairs are torn, the interval is wider
        torn = compare(scores[0][orders[0]], scores[1][orders[1]], *scores[2:])
        assert torn.high - torn.low > 1.3 * (found.high - found.low)


@pytest.mark.parametrize("metric", METRICS)
def test_two_perfect_detectors_cannot_be_told_apart_but_leave_doubt(metric: str):
    id_a, ood_a, id_b, ood_b = pair(100, 60, 20, 30)
    found = compare(id_a, ood_a, id_b, ood_b, metric=metric)
    assert (found.difference, found.p_value) == (0, 1)
    assert -0.2 < found.low < -0.03 and 0.03 < found.high < 0.2


def test_a_perfect_detector_beats_one_that_is_always_wrong():
    id_a, ood_a, _, _ = pair(40, 60, 20, 0)
    found = compare(id_a, ood_a, -id_a, -ood_a)
    assert found.difference == found.high == 1 and found.low > 0.8 and 0 < found.p_value < 1e-10


# Areas near one and few images are what is hard; the others meet each number of images and each pair of areas once.
@pytest.mark.parametrize(
    ("n", "m", "area_a", "area_b"),
    [
        (10, 10, 0.8, 0.75), (20, 200, 0.6, 0.6), (10, 10, 0.6, 0.6), (150, 150, 0.95, 0.9), (10, 10, 0.99, 0.97),
        (20, 200, 0.99, 0.97), (10, 10, 0.999, 0.999), (20, 200, 0.999, 0.999), (150, 150, 0.999, 0.999),
    ],
)  # fmt: skip
def test_the_interval_covers_the_true_difference_and_the_p_value_errs_as_seldom_as_it_says(n, m, area_a, area_b):
    shifts = [2**0.5 * norm.ppf(area) for area in (area_a, area_b)]
    found = [compare(*pair(n, m, *shifts, seed=seed)) for seed in range(400)]
    inside = sum(c.low <= area_a - area_b <= c.high for c in found)
    assert binomtest(inside, 400, 0.95, alternative="less").pvalue > 0.005
    if area_a == area_b:
        rejected = sum(c.p_value <= 0.05 for c in found)
        assert binomtest(rejected, 400, 0.05, alternative="greater").pvalue > 0.005


@pytest.mark.parametrize(("n", "m", "shift_a", "shift_b"), [(100, 100, 1.5, 1.0), (40, 200, 2.5, 2.5), (100, 50, 4, 3)])
def test_the_interval_of_fpr95_covers_too(n: int, m: int, shift_a: float, shift_b: float):
    truth = norm.cdf(norm.ppf(0.95) - shift_a) - norm.cdf(norm.ppf(0.95) - shift_b)
    found = [compare(*pair(n, m, shift_a, shift_b, seed), metric="fpr95", draws=200) for seed in range(300)]
    inside = sum(c.low <= truth <= c.high for c in found)
    assert binomtest(inside, 300, 0.95, alternative="less").pvalue > 0.005


def test_a_difference_that_two_single_intervals_hide_is_seen():
    id_a, ood_a, id_b, ood_b = scores = pair(200, 200, 1.2, 1.0, alike=0.98)
    assert auroc(id_a, ood_a)[1][0] < auroc(id_b, ood_b)[1][1]  # they overlap
    assert compare(*scores).low > 0 and compare(*scores).p_value < 1e-3


@pytest.mark.parametrize(("place", "names"), [(0, "id_a holds 49 .* id_b 50"), (3, "ood_a holds 70 .* ood_b 69")])
def test_scores_of_different_images_are_refused(place: int, names: str):
    scores = pair(50, 70, 1, 1)
    scores[place] = scores[place][:-1]
    with pytest.raises(ValueError, match=names + ".*same (ID|OOD) images, in the same order"):
        compare(*scores)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("bad", [torch.empty(0), torch.full((50,), torch.nan)])
def test_scores_that_are_none_are_named(place: int, bad: torch.Tensor):
    scores = pair(50, 50, 1, 1)
    scores[place] = bad
    with pytest.raises(ValueError, match=["id_a", "ood_a", "id_b", "ood_b"][place]):
        compare(*scores)


def test_arguments_out_of_range_are_named():
    scores = pair(50, 50, 1, 1)
    for options in ({"metric": "auc"}, {"positive": "OOD"}, {"confidence": 1.0}, {"draws": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            compare(*scores, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("metric", METRICS)
def test_a_gpu_gives_the_same_comparison(metric: str):
    scores = pair(50, 70, 1.5, 1.0)
    here, there = compare(*scores, metric=metric), compare(*(s.cuda() for s in scores), metric=metric)
    assert (there.low, there.high, there.p_value) == pytest.approx((here.low, here.high, here.p_value), abs=1e-9)


# -- over networks ------------------------------------------------------------------------------------------------


def table_of(one, other, group="near", metric="auroc"):
    rows = [(name, seed, v) for name, values in (("one", one), ("other", other)) for seed, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["detector", "seed", "value"]).assign(metric=metric, group=group, ood_set="a")


def test_a_duel_is_the_paired_t_interval():
    one, other = [0.91, 0.85, 0.97, 0.9], [0.88, 0.86, 0.9, 0.84]
    found = compare_over_seeds(table_of(one, other), "one", "other", "near")
    test = scipy.stats.ttest_rel(one, other)
    low, high = test.confidence_interval(0.99)
    assert found.difference == pytest.approx(100 * np.subtract(one, other).mean())
    assert found.difference - found.half == pytest.approx(100 * low) and found.half > 0
    assert found.difference + found.half == pytest.approx(100 * high)
    assert (found.ahead, found.networks) == (3, 4)


def test_a_duel_averages_over_the_sets_of_a_group_first():
    far = table_of([0.9, 0.8], [0.7, 0.7])
    both = pd.concat([far, far.assign(ood_set="b", value=far["value"] - 0.1)])
    assert tuple(compare_over_seeds(both, "one", "other", "near")) == pytest.approx(
        tuple(compare_over_seeds(far, "one", "other", "near"))
    )


@pytest.mark.parametrize(
    ("one", "word"),
    [
        ([0.9, 0.91, 0.9], "better"),
        ([0.7, 0.71, 0.7], "worse"),
        ([0.75, 0.86, 0.8], "no clear difference"),
        ([0.1, 0.95, 0.8], "cannot tell"),  # half of the interval: 258 points
        ([0.8001, 0.8002, 0.8001], "no difference that shows"),
        ([0.9], "one network: no interval"),
    ],
)
def test_the_word_of_a_duel(one, word):
    found = compare_over_seeds(table_of(one, [0.8] * len(one)), "one", "other", "near")
    assert found.word == word and f"({word}" in str(found) and "nan" not in str(found)
    assert ("ahead on" in str(found)) == (len(one) > 1)  # of one network, one of one says nothing
    assert ("[" in str(found)) == (found.networks > 1 and word != "cannot tell")


def test_of_an_error_rate_less_is_better():
    rates, fewer = [0.6, 0.61, 0.6], [0.2, 0.2, 0.22]
    tables = {metric: table_of(rates, fewer, metric=metric) for metric in ("auroc", "aupr_in", "aupr_out", "fpr95")}
    found = {metric: compare_over_seeds(table, "one", "other", "near", metric) for metric, table in tables.items()}
    assert {metric: (d.word, d.ahead) for metric, d in found.items()} == {
        "auroc": ("better", 3), "aupr_in": ("better", 3), "aupr_out": ("better", 3), "fpr95": ("worse", 0),
    }  # fmt: skip
    assert {round(d.difference, 6) for d in found.values()} == {39.666667}  # the difference is that of the values
    assert "+39.7 [" in str(found["fpr95"]) and "(worse; ahead on 0 of 3 networks)" in str(found["fpr95"])


@pytest.mark.parametrize("metric", METRICS)
def test_of_two_detectors_one_is_worse_where_the_other_is_better(metric: str):
    table = table_of([0.6, 0.61, 0.6], [0.2, 0.2, 0.22], metric=metric)
    a, b = (
        compare_over_seeds(table, "one", "other", "near", metric),
        compare_over_seeds(table, "other", "one", "near", metric),
    )
    assert {a.word, b.word} == {"better", "worse"} and {a.ahead, b.ahead} == {0, 3}
    assert (a.difference, a.half) == pytest.approx((-b.difference, b.half))


def test_a_metric_without_a_direction_is_refused():
    with pytest.raises(ValueError, match="metric='accuracy' was given; expected 'auroc' or 'fpr95' or 'aupr_in'"):
        compare_over_seeds(table_of([0.9], [0.8], metric="accuracy"), "one", "other", "near", "accuracy")


def test_no_difference_has_a_minus_before_a_zero_and_a_minus_is_a_minus():
    none, less = (
        compare_over_seeds(table_of(values, [0.8] * 3), "one", "other", "near") for values in ([0.7997] * 3, [0.7] * 3)
    )
    assert str(none) == "**+0.0 [+0.0, +0.0]** (no difference that shows; ahead on 0 of 3 networks)"
    assert str(less) == "**−10.0 [−10.0, −10.0]** (worse; ahead on 0 of 3 networks)"


def test_detectors_that_were_judged_on_different_sets_are_not_compared():
    easy = table_of([0.9, 0.9], [0.9, 0.9]).query("detector == 'one'").assign(ood_set="easy")
    table = pd.concat([table_of([0.6, 0.6], [0.6, 0.6]), easy])
    words = r"seed 0, 'one' was judged on \['a', 'easy'\] and 'other' on \['a'\].*both have: \['a'\]"
    with pytest.raises(ValueError, match=words):
        compare_over_seeds(table, "one", "other", "near")
    late = pd.concat([table_of([0.6, 0.6], [0.6, 0.6]), easy[easy["seed"] == 1]])  # one seed alone is enough
    with pytest.raises(ValueError, match="seed 1, 'one' was judged on"):
        compare_over_seeds(late, "one", "other", "near")
    assert compare_over_seeds(table[table["ood_set"] == "a"], "one", "other", "near").difference == 0


def test_a_network_that_is_there_twice_is_refused_and_named():
    table = table_of([0.9, 0.8], [0.7, 0.7])
    twice = pd.concat([table, table[table["seed"] == 1].assign(value=0.5)])
    with pytest.raises(ValueError, match="more than once: auroc of 'one' on 'a', seed 1"):
        compare_over_seeds(twice, "one", "other", "near")
    bystander = table[table["detector"] == "one"].assign(detector="third")  # of detectors that do not take part
    both = pd.concat([table, bystander, bystander])
    assert compare_over_seeds(both, "one", "other", "near") == compare_over_seeds(table, "one", "other", "near")


def test_networks_that_only_one_of_the_two_has_seen_do_not_count():
    one, other = [0.91, 0.85, 0.97, 0.9], [0.88, 0.86, 0.9]
    assert compare_over_seeds(table_of(one, other), "one", "other", "near") == compare_over_seeds(
        table_of(one[:3], other), "one", "other", "near"
    )
    alone = table_of([0.9], [0.8]).assign(seed=[0, 1])
    with pytest.raises(ValueError, match="no seed has both 'one' and 'other'"):
        compare_over_seeds(alone, "one", "other", "near")


def test_a_duel_with_nobody_is_refused():
    with pytest.raises(ValueError, match=r"no auroc of \['nobody'\] on near sets; there are \['one', 'other'\]"):
        compare_over_seeds(table_of([0.9], [0.8]), "one", "nobody", "near")

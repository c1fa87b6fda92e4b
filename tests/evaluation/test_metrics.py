"""Laws of the judge: exact under ties, symmetric under a swap of roles, and intervals that cover what they promise."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom, binomtest, norm, ttest_1samp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ood_lib.evaluation.metrics import Metrics, as_percent, aupr, auroc, evaluate, fpr_at_tpr, mean_interval, too_wide
from tests.conftest import normal, seeded

ID, OOD = normal(150), normal(90, seed=1) + 1
TIED = [
    tuple(torch.randint(low, low + n, (m,), generator=seeded(n + m)).double() for low, m in ((0, 80), (1, 50)))
    for n in (2, 5, 20)
]
CASES = [(ID, OOD), *TIED]


# -- values -----------------------------------------------------------------------------------------------------


def test_perfect_separation_by_hand():
    m = evaluate(torch.arange(20.0), torch.arange(20.0) + 20)
    assert (m.auroc, m.fpr95, m.aupr_in, m.aupr_out) == (1, 0, 1, 1)


def test_reversed_scores_by_hand():
    m = evaluate(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert (m.auroc, m.fpr95) == (0, 1)
    assert m.aupr_in == m.aupr_out == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_scores_that_are_all_equal_by_hand():
    m = evaluate(torch.zeros(30), torch.zeros(10))
    assert (m.auroc, m.fpr95, m.aupr_in, m.aupr_out) == (0.5, 1, 0.75, 0.25)


@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_auroc_and_aupr_agree_with_scikit_learn_ties_included(known: torch.Tensor, unknown: torch.Tensor):
    labels = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    scores = torch.cat([known, unknown]).numpy()
    m = evaluate(known, unknown)
    assert m.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert m.aupr_out == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert m.aupr_in == pytest.approx(average_precision_score(1 - labels, -scores), abs=1e-12)


def naive_fpr(known: np.ndarray, unknown: np.ndarray, tpr: float, positive: str) -> float:
    """Move the threshold until enough positives are recalled."""
    thresholds = sorted({*known, *unknown}, reverse=positive == "ood")
    for t in thresholds:
        recalled, wrong = (known <= t, unknown <= t) if positive == "id" else (unknown >= t, known >= t)
        if recalled.sum() >= tpr * len(recalled) - 1e-9:
            return wrong.mean()
    raise AssertionError


@pytest.mark.parametrize("positive", ["id", "ood"])
@pytest.mark.parametrize("tpr", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_fpr_agrees_with_a_moving_threshold_in_both_conventions(known, unknown, tpr: float, positive: str):
    value = fpr_at_tpr(known, unknown, tpr, positive)[0]
    assert value == pytest.approx(naive_fpr(known.numpy(), unknown.numpy(), tpr, positive), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [3, 12, 10**9])
def test_openoods_rate_is_that_of_roc_curve_which_may_be_larger_where_it_drops_points(levels: int, seed: int):
    known, unknown = (torch.randint(levels, (n,), generator=seeded(seed + n)).double() for n in (40, 41))
    labels, scores = np.r_[np.zeros(40), np.ones(41)], torch.cat([known, unknown]).numpy()
    ours = fpr_at_tpr(known, unknown, positive="ood")[0]
    for drop in (False, True):  # True: as OpenOOD calls it
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=drop)
        theirs = fpr[np.argmax(tpr >= 0.95)]
        assert ours == pytest.approx(theirs, abs=1e-12) or (drop and levels < 10**9 and ours < theirs)


def test_a_point_that_openood_drops():
    known = unknown = torch.arange(40.0)  # every step of the curve goes one up and one to the right
    fpr, tpr, _ = roc_curve(np.r_[np.zeros(40), np.ones(40)], torch.cat([known, unknown]).numpy())
    assert fpr_at_tpr(known, unknown, positive="ood")[0] == 0.95
    assert fpr[np.argmax(tpr >= 0.95)] == 1


def test_the_two_conventions_differ_and_the_record_names_its_own():
    wide = 3 * normal(200, seed=4)
    a, b = evaluate(wide, OOD + 2), evaluate(wide, OOD + 2, positive="ood")
    assert abs(a.fpr95 - b.fpr95) > 0.05
    assert (a.positive, b.positive) == ("id", "ood")
    assert (a.auroc, a.aupr_in, a.aupr_out) == (b.auroc, b.aupr_in, b.aupr_out)


# -- symmetries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rising", [lambda s: 3 * s + 7, torch.exp, lambda s: s**3], ids=["affine", "exp", "cube"])
@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_only_the_order_of_the_scores_counts(known, unknown, rising):
    assert evaluate(rising(known), rising(unknown)) == evaluate(known, unknown)


@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_swapping_the_roles_and_the_sign_swaps_the_names(known, unknown):
    a, b = evaluate(known, unknown), evaluate(-unknown, -known, positive="ood")
    assert a.auroc == pytest.approx(b.auroc, abs=1e-12)
    assert a.auroc_ci == pytest.approx(b.auroc_ci, abs=1e-9)
    assert (a.fpr95, a.fpr95_ci) == (b.fpr95, b.fpr95_ci)
    assert (a.aupr_in, a.aupr_out) == pytest.approx((b.aupr_out, b.aupr_in), abs=1e-12)


@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_changing_the_sign_mirrors_the_area(known, unknown):
    area, (low, high) = auroc(known, unknown)
    mirrored, (mirrored_low, mirrored_high) = auroc(-known, -unknown)
    assert (1 - mirrored, 1 - mirrored_high, 1 - mirrored_low) == pytest.approx((area, low, high), abs=1e-9)


def test_the_order_of_images_and_the_precision_do_not_matter():
    order = torch.randperm(len(ID), generator=seeded())
    assert evaluate(ID[order], OOD).auroc == pytest.approx(evaluate(ID, OOD).auroc, abs=1e-12)
    assert evaluate(ID.float(), OOD.float()) == evaluate(ID.float().double(), OOD.float().double())


# -- intervals --------------------------------------------------------------------------------------------------


def delong(known: np.ndarray, unknown: np.ndarray) -> float:
    """Variance of the area from all N x M pairs, as in DeLong et al. 1988."""
    kernel = (unknown[None] > known[:, None]) + 0.5 * (unknown[None] == known[:, None])
    return kernel.mean(0).var(ddof=1) / len(unknown) + kernel.mean(1).var(ddof=1) / len(known)


@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_the_interval_of_the_area_is_delongs_on_the_logit_scale(known, unknown):
    area, (low, high) = auroc(known, unknown)
    half = norm.ppf(0.975) * math.sqrt(delong(known.numpy(), unknown.numpy())) / (area * (1 - area))
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + side * half))) for side in (-1, 1)]
    assert (low, high) == pytest.approx(ends, abs=1e-9)


def test_the_interval_of_the_area_covers_the_truth_as_often_as_promised():
    truth = norm.cdf(1.2 / math.sqrt(2))
    samples = normal(1500, 150, seed=2)
    inside = sum(low <= truth <= high for low, high in (auroc(s[:80], s[80:] + 1.2)[1] for s in samples)) / 1500
    assert 0.93 <= inside <= 0.97


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize(("n", "m"), [(10, 10), (20, 200), (300, 60)])
def test_the_interval_of_the_area_covers_also_with_few_images_and_near_perfection(n: int, m: int, truth: float):
    samples = normal(400, n + m, seed=7) + torch.tensor([0.0] * n + [2**0.5 * norm.ppf(truth)] * m).double()
    inside = sum(low <= truth <= high for low, high in (auroc(s[:n], s[n:])[1] for s in samples))
    assert binomtest(inside, 400, 0.95, alternative="less").pvalue > 0.005  # too wide it may be, near 1


@pytest.mark.parametrize("positive", ["id", "ood"])
def test_the_interval_of_fpr95_covers_the_truth_as_often_as_promised(positive: str):
    truth = norm.cdf(norm.ppf(0.95) - 1.5)  # the same in both conventions, as the spreads are equal
    samples = normal(600, 500, seed=3)
    intervals = [fpr_at_tpr(s[:250], s[250:] + 1.5, positive=positive)[1] for s in samples]
    inside = sum(low <= truth <= high for low, high in intervals) / len(intervals)
    assert (
        0.95 <= inside
    )  # ranks and counts are whole: it covers more often than it has to, as Clopper and Pearson's does


def test_the_intervals_of_aupr_cover_the_truth_at_least_as_often_as_promised():
    large = normal(2, 200_000, seed=5)  # one half each, as below
    out_truth, in_truth = aupr(large[1] + 1.2, large[0])[0], aupr(-large[0], -large[1] - 1.2)[0]
    records = [evaluate(s[:80], s[80:] + 1.2) for s in normal(500, 160, seed=6)]
    for truth, name in ((in_truth, "aupr_in_ci"), (out_truth, "aupr_out_ci")):
        inside = [low <= truth <= high for low, high in (getattr(record, name) for record in records)]
        assert np.mean(inside) >= 0.95  # the binomial variance is an upper bound; observed about 0.98


@pytest.mark.parametrize(("n", "m"), [(20, 50), (20, 1000), (50, 50), (100, 50), (100, 1000)])
@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0], ids=["hard", "medium", "easy"])
def test_the_interval_of_fpr95_covers_with_few_images_too(n: int, m: int, shift: float):
    truth = norm.cdf(norm.ppf(0.95) - shift)
    samples = normal(150, n + m, seed=8)
    inside = sum(low <= truth <= high for low, high in (fpr_at_tpr(s[:n], s[n:] + shift)[1] for s in samples))
    assert binomtest(inside, 150, 0.95, alternative="less").pvalue > 0.005


def test_with_many_id_images_the_threshold_is_known_and_the_rate_is_that_of_clopper_and_pearson():
    known, unknown = torch.linspace(-8, 8, 100_000).double(), torch.linspace(-8, 8, 30).double() + 1e-3
    accepted = int((unknown <= known.quantile(0.95)).sum())
    low, high = fpr_at_tpr(known, unknown)[1]
    assert low == pytest.approx(beta.ppf(0.025, accepted, 31 - accepted), abs=0.01)
    assert high == pytest.approx(beta.ppf(0.975, accepted + 1, 30 - accepted), abs=0.01)


def test_with_many_ood_images_the_ends_are_those_of_the_ranks_around_the_quantile():
    known, unknown = ID[:90], torch.linspace(-20, 20, 400_001).double()  # of which the share up to x is (x + 20) / 40
    first, last = (int(binom.ppf(share, 90, 0.95)) for share in (0.025, 0.975))
    ends = [(known.sort().values[rank - 1].item() + 20) / 40 for rank in (first, last + 1)]
    assert fpr_at_tpr(known, unknown)[1] == pytest.approx(ends, abs=1e-3)


@pytest.mark.parametrize(("n", "bounded"), [(20, False), (71, False), (72, True)])
def test_the_upper_end_is_one_where_the_threshold_may_lie_beyond_all_id_scores(n: int, bounded: bool):
    known = torch.arange(
        n
    ).double()  # 0.95^72 < 2.5 %: the threshold of all there could be is no larger than the largest
    assert (fpr_at_tpr(known, known + 1e6)[1][1] < 0.2) == bounded


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_of_fpr95_is_that_of_drawing_rank_and_rate(confidence: float):
    """The mixture by simulation: a rank that is binomial, and given it a rate that is Beta."""
    random, known, unknown = np.random.default_rng(1), ID.sort().values.numpy(), OOD.sort().values.numpy()
    n, m = len(known), len(unknown)
    counts = np.concatenate([[0], np.searchsorted(unknown, known, side="right"), [m]])
    ranks = random.binomial(n, 0.95, 40_000)
    low = [random.beta(c, m - c + 1) if c else 0.0 for c in counts[ranks]]
    high = [random.beta(c + 1, m - c) if c < m else 1.0 for c in counts[ranks + 1]]
    expected = np.quantile(low, (1 - confidence) / 2), np.quantile(high, (1 + confidence) / 2)
    assert fpr_at_tpr(ID, OOD, confidence=confidence)[1] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("known", "unknown"), [*CASES, (OOD + 9, ID), (ID, OOD + 9), (ID[:1], OOD[:1])])
@pytest.mark.parametrize("positive", ["id", "ood"])
def test_every_interval_contains_its_value_and_stays_in_0_to_1(known, unknown, positive: str):
    for row in evaluate(known, unknown, positive=positive).rows():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1, row


@pytest.mark.parametrize(("known", "unknown"), [(ID, OOD + 99), (ID + 99, OOD)], ids=["perfect", "reversed"])
def test_perfect_separation_still_leaves_doubt(known, unknown):
    for row in evaluate(known, unknown).rows():
        assert row["high"] - row["low"] > 0.01, row
    bound = 1 - 0.025 ** (1 / 90)  # Clopper and Pearson: 90 successes in 90 trials
    expected = (1 - bound, 1) if known is ID else (0, bound)
    assert auroc(known, unknown)[1] == pytest.approx(expected)


def test_a_detector_that_errs_once_is_not_promised_more_than_one_that_never_does():
    known, unknown = torch.arange(30.0), torch.arange(30.0) + 29.5
    once = torch.cat([unknown[1:], torch.tensor([28.5])])
    assert auroc(known, once)[0] < auroc(known, unknown)[0] == 1
    assert auroc(known, once)[1][0] <= auroc(known, unknown)[1][0]


def test_more_images_and_less_confidence_make_narrower_intervals():
    def widths(metrics: Metrics) -> np.ndarray:
        return np.array([row["high"] - row["low"] for row in metrics.rows()])

    plain = widths(evaluate(ID, OOD))
    assert (widths(evaluate(ID, OOD, confidence=0.5)) < plain).all()
    assert (widths(evaluate(ID.repeat(10), OOD.repeat(10))) < plain / 2).all()


def test_the_same_scores_give_the_same_intervals():
    assert evaluate(ID, OOD) == evaluate(ID, OOD)


# -- the record -------------------------------------------------------------------------------------------------


def test_rows_are_one_record_per_number():
    m = evaluate(ID, OOD)
    assert [row["metric"] for row in m.rows()] == ["auroc", "fpr95", "aupr_in", "aupr_out"]
    assert m.rows()[1] == {"metric": "fpr95", "value": m.fpr95, "low": m.fpr95_ci[0], "high": m.fpr95_ci[1]}


BAD = [torch.empty(0), torch.zeros(3, 2), torch.tensor([0.0, float("nan")]), torch.tensor([float("inf")])]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("judge", [evaluate, auroc, fpr_at_tpr])
def test_scores_that_are_none_are_refused_by_name(judge, bad: torch.Tensor):
    with pytest.raises(ValueError, match=r"id_scores has shape .* non-empty vector of finite scores"):
        judge(bad, OOD)
    with pytest.raises(ValueError, match="ood_scores"):
        judge(ID, bad)


@pytest.mark.parametrize("bad", BAD)
def test_aupr_names_its_scores_as_it_calls_them(bad: torch.Tensor):
    with pytest.raises(ValueError, match="positives"):
        aupr(bad, OOD)
    with pytest.raises(ValueError, match="negatives"):
        aupr(ID, bad)


def test_arguments_out_of_range_are_named():
    for call, name in (
        (lambda: evaluate(ID, OOD, positive="OOD"), "positive="),
        (lambda: evaluate(ID, OOD, confidence=95), "confidence="),
        (lambda: auroc(ID, OOD, 1.0), "confidence="),
        (lambda: fpr_at_tpr(ID, OOD, 0.0), "tpr="),
        (lambda: fpr_at_tpr(ID, OOD, 95), "tpr="),
    ):
        with pytest.raises(ValueError, match=name):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8])
def test_scores_of_any_precision_count_as_the_numbers_that_they_are(dtype: torch.dtype):
    known, unknown = (s.to(dtype) for s in TIED[2])
    assert evaluate(known, unknown) == evaluate(known.double(), unknown.double())
    assert evaluate(known, unknown.double()) == evaluate(known.double(), unknown.double())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("known", "unknown"), CASES)
def test_a_gpu_gives_the_same_numbers(known: torch.Tensor, unknown: torch.Tensor):
    for a, b in zip(evaluate(known, unknown).rows(), evaluate(known.cuda(), unknown.cuda()).rows()):
        assert [*b.values()][1:] == pytest.approx([*a.values()][1:], abs=1e-12)


def test_aupr_of_a_single_positive_is_one_over_its_rank():
    assert aupr(torch.tensor([2.0]), torch.tensor([4.0, 3.0, 1.0]))[0] == pytest.approx(1 / 3)


# -- over networks, and on a page ---------------------------------------------------------------------------------


def test_the_interval_over_networks_is_students_and_is_not_cut():
    values = [0.99, 0.85, 0.97]
    mean, low, high = mean_interval(values)
    assert (mean, low, high) == pytest.approx((np.mean(values), *ttest_1samp(values, 0).confidence_interval()))
    assert high > 1 and mean - low == pytest.approx(high - mean)


def test_one_network_has_a_mean_and_no_interval_and_none_has_neither():
    mean, low, high = mean_interval([0.9])
    assert mean == 0.9 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="at least"):
        mean_interval([])


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.901, 0.757, 1.045), "90.1 [75.7, 100.0]"),  # 90.1 ± 14.4: half of what is left after the cut is 12.2
        ((0.901, 0.757, 1.0), "90.1 [75.7, 100.0]"),
        ((0.03, -0.02, 0.08), "3.0 [0.0, 8.0]"),
        ((0.9,), "90.0 (one network)"),
        ((0.45, -0.358, 1.258), "45.0 (cannot tell)"),
        ((0.45, 0.0, 1.0), "45.0 (cannot tell)"),  # the same, cut
        ((0.9, 0.3, 1.0), "90.0 (cannot tell)"),
        ((0.9, 0.41, 1.0), "90.0 [41.0, 100.0]"),
        ((math.nan, math.nan, math.nan), ""),
    ],
)
def test_a_share_with_its_interval_as_text(numbers: tuple, text: str):
    assert as_percent(*numbers) == text
    assert as_percent(*numbers, small=True) == text.replace(" ", " <small>", 1) + "</small>" * (" " in text)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.012, 0.008, 0.016), "+1.2 [+0.8, +1.6]"),
        ((-0.0004, -0.02, 0.01), "+0.0 [−2.0, +1.0]"),
        ((-0.1,), "−10.0 (one network)"),
        ((0.3, -0.4, 1.0), "+30.0 (cannot tell)"),
        ((0.7, 0.1, 1.3), "+70.0 [+10.0, +100.0]"),  # wide, and yet all of it on one side of zero
        ((-0.7, -1.3, -0.1), "−70.0 [−100.0, −10.0]"),
    ],
)
def test_a_difference_with_its_interval_as_text(numbers: tuple, text: str):
    assert as_percent(*numbers, signed=True) == text


def test_whether_an_interval_is_too_wide_does_not_depend_on_a_cut():
    for value in np.linspace(0, 1, 41):
        for half in np.linspace(0.02, 0.97, 25):
            low, high = value - half, value + half
            uncut = high - low >= 1
            assert too_wide(value, low, high) == uncut
            if low > 0 or high < 1:  # one end is still there
                assert too_wide(value, max(low, 0), min(high, 1)) == uncut

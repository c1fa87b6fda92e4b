"""The choice of a detector: what is certain is not given up for cheapness, and what is not certain is."""

import pytest
import torch

from ood_lib import SetScores, recommend, score_verdicts


def made(*gaps, n=400, seed=0, noise=0.3):
    """Scores of detectors on one near and one far set; the larger the gap, the better; errors are shared."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(3, n, generator=generator)
    own = noise * torch.randn(len(gaps), 3, n, generator=generator)
    parts = [common + x for x in own]
    return {f"d{i}": SetScores(x[0], {"a": x[1] + g}, {"b": x[2] + g}) for i, (g, x) in enumerate(zip(gaps, parts))}


def test_a_detector_that_is_surely_worse_is_not_taken_however_cheap():
    found = recommend(made(2.0, 1.0), {"d0": 1.0, "d1": 0.0})
    assert (found.detector, found.best, found.candidates) == ("d0", "d0", ("d0",))
    assert found.against_best["d1"].word == "worse"


def test_of_those_that_may_be_the_best_the_cheapest_is_taken():
    scored = made(1.0, 1.0, 1.0, n=60)
    costs = {"d0": 3.0, "d1": 2.0, "d2": 1.0}
    found = recommend(scored, costs)
    assert set(found.candidates) == set(scored) and found.detector == "d2"
    assert recommend(scored, costs, least=5.0).detector == found.best  # none of them costs anything


def test_what_few_images_cannot_tell_is_no_reason_to_give_up_many_points():
    scored = made(1.2, 1.0, n=20, noise=1.0)
    found = recommend(scored, {"d0": 2.0, "d1": 1.0})
    gap = found.against_best["d1"].difference
    assert found.best == "d0" and "d1" in found.candidates and gap < -0.02
    assert found.detector == "d0" and recommend(scored, {"d0": 2.0, "d1": 1.0}, slack=0.01 - gap).detector == "d1"


def test_the_order_is_that_of_the_mean_over_groups_and_the_best_is_level_with_itself():
    scored = made(0.5, 1.5, 1.0)
    found = recommend(scored)
    assert list(found.against_best) == ["d1", "d2", "d0"]
    assert found.against_best[found.best].difference == 0 and found.best in found.candidates
    expected = score_verdicts([(scored["d0"], scored["d1"])])["mean"]
    assert found.against_best["d0"] == expected


def test_a_choice_by_one_set_is_a_choice_by_that_set():
    scored = made(1.0, 1.0)
    better_far = {n: SetScores(s.test, s.near, {"b": s.far["b"] + 3 * (n == "d1")}) for n, s in scored.items()}
    assert recommend(better_far).best == "d1"
    near_only = {n: s.only([("near", "a")]) for n, s in better_far.items()}
    assert recommend(near_only).best == recommend({n: s.only([("near", "a")]) for n, s in scored.items()}).best


def test_halves_part_each_set_and_are_the_same_images_for_each_detector():
    scored = made(1.0, 1.0, n=101, noise=0.0)
    (a, b), (c, d) = (s.halves(seed=3) for s in scored.values())
    assert torch.equal(torch.cat([a.test, b.test]).sort().values, scored["d0"].test.sort().values)
    assert torch.equal(a.far["b"], c.far["b"]) and torch.equal(b.near["a"], d.near["a"])
    assert (len(a.test), len(b.test)) == (51, 50)
    assert not torch.equal(a.test, scored["d0"].halves(seed=4)[0].test)


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(ValueError, match="no detector was given"):
        recommend({})
    with pytest.raises(ValueError, match=r"no cost of \['d1'\]"):
        recommend(made(1.0, 1.0), {"d0": 1.0})
    with pytest.raises(ValueError, match="no OOD set"):
        recommend({"a": SetScores(torch.arange(3.0), {}, {})})
    with pytest.raises(ValueError, match="a single image"):
        SetScores(torch.arange(1.0), {}, {}).halves()

"""Laws of the reshaped features: ReAct, ASH, SCALE."""

import numpy as np
import pytest
import torch
from torch import nn

from ood_lib import ASH, SCALE, Features, ReAct, energy, gen, max_logit, msp
from ood_lib.detectors.classical.ash import ash_b, ash_p, ash_s
from ood_lib.detectors.classical.react import percentile_of, react
from ood_lib.detectors.classical.rectifier import Rectifier, kept
from ood_lib.detectors.classical.scale import scale
from tests.conftest import normal

Z = normal(50, 20).relu()
HEAD = nn.Linear(20, 4).double()
with torch.no_grad():
    HEAD.weight.copy_(normal(4, 20, seed=1))
    HEAD.bias.copy_(normal(4, seed=2))
PLAIN = energy(HEAD(Z)).detach()
SHAPES = {"p": ash_p, "b": ash_b, "s": ash_s}
every_shape = pytest.mark.parametrize("shape", [*SHAPES.values(), scale], ids=["ash_p", "ash_b", "ash_s", "scale"])


def scored(detector: Rectifier, z: torch.Tensor = Z) -> torch.Tensor:
    return detector.fit(Features(penultimate=Z)).score(Features(penultimate=z))


# -- ReAct ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [0.001, 0.29, 0.5, 0.9, 0.95, 1.0])
def test_the_percentile_is_numpys_over_all_entries(percentile: float):
    expected = np.quantile(Z.numpy(), percentile, method="inverted_cdf")
    assert percentile_of(Z, percentile).item() == expected
    detector = ReAct(HEAD, percentile)
    assert torch.allclose(scored(detector), energy(HEAD(Z.clamp(max=expected))), rtol=1e-12)
    assert detector.clip.item() == expected


def test_the_clip_comes_from_the_features_given_to_fit_and_does_not_depend_on_their_order():
    assert percentile_of(Z.flip(0, 1), 0.9) == percentile_of(Z, 0.9)
    assert torch.equal(scored(ReAct(HEAD), 2 * Z), energy(HEAD(react(2 * Z, percentile_of(Z, 0.9).item()))).detach())


def test_a_clip_at_infinity_or_at_the_maximum_leaves_the_energy():
    assert torch.equal(react(Z, float("inf")), Z)
    assert torch.allclose(scored(ReAct(HEAD, percentile=1.0)), PLAIN, rtol=1e-12)


@pytest.mark.parametrize("percentile", [0.0, 1.01, -1, float("nan")])
def test_a_percentile_of_react_outside_0_to_1_is_refused(percentile: float):
    with pytest.raises(ValueError, match="percentile="):
        ReAct(HEAD, percentile)


# -- ASH and SCALE ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [0.0, 0.3, 0.65, 0.85, 0.9])
def test_the_shapes_agree_with_numpy(percentile: float):
    z = Z.numpy()
    k = 20 - round(20 * percentile)
    mask = np.zeros_like(z)
    np.put_along_axis(mask, np.argsort(-z, axis=1)[:, :k], 1, axis=1)
    all_, some = z.sum(1, keepdims=True), (z * mask).sum(1, keepdims=True)
    assert np.allclose(ash_p(Z, percentile), z * mask, rtol=1e-12)
    # among equal zeros at the end of the ranking, which one is kept is open: compare the rows without such ties
    clear = (z > 0).sum(1) >= k
    assert np.allclose(ash_b(Z, percentile)[clear], (mask * all_ / k)[clear], rtol=1e-12)
    assert np.allclose(ash_s(Z, percentile), z * mask * np.exp(all_ / some), rtol=1e-12)
    assert np.allclose(scale(Z, percentile), z * np.exp(all_ / some), rtol=1e-12)


@pytest.mark.parametrize(
    ("width", "percentile", "count"), [(512, 0.9, 51), (2048, 0.9, 205), (64, 0.65, 22), (5, 0, 5)]
)
def test_as_many_entries_are_kept_as_the_paper_says(width: int, percentile: float, count: int):
    assert kept(width, percentile) == count
    z = 1 + torch.rand(3, width, generator=torch.Generator().manual_seed(0))
    for shape in SHAPES.values():
        assert ((shape(z, percentile) > 0).sum(1) == count).all()


def test_without_pruning_ash_p_is_the_energy_and_scale_one_change_of_temperature():
    assert torch.allclose(scored(ASH(HEAD, 0.0, "p")), PLAIN, rtol=1e-12)
    assert torch.allclose(scale(Z, 0.0), Z * np.e, rtol=1e-12)
    assert torch.allclose(ash_s(Z, 0.0), Z * np.e, rtol=1e-12)


def test_binarised_rows_keep_their_sum_and_hold_one_value():
    shaped = ash_b(Z, 0.9)
    assert torch.allclose(shaped.sum(1), Z.sum(1), rtol=1e-12)
    assert all(len(row[row > 0].unique()) == 1 for row in shaped)


def test_scale_without_a_bias_leaves_the_decision():
    weight = HEAD.weight.detach()
    assert torch.equal((scale(Z) @ weight.T).argmax(1), (Z @ weight.T).argmax(1))


@every_shape
def test_shaping_grows_with_its_input(shape):
    assert torch.allclose(shape(7 * Z), 7 * shape(Z), rtol=1e-12)


@every_shape
def test_each_row_is_shaped_by_itself_and_its_input_is_left_alone(shape):
    before = Z.clone()
    assert torch.allclose(torch.cat([shape(row[None]) for row in Z]), shape(Z), rtol=1e-12)
    assert torch.equal(Z, before)


@every_shape
def test_a_row_of_zeros_stays_one(shape):
    assert torch.equal(shape(torch.zeros(2, 20)), torch.zeros(2, 20))


@pytest.mark.parametrize("shape", [ash_s, scale])
def test_rows_without_a_meaning_are_counted(shape):
    signed = Z.clone()
    signed[[1, 4, 7]] = -1 - signed[[1, 4, 7]]
    with pytest.raises(ValueError, match="in 3 of 50 rows the kept entries sum to zero or less"):
        shape(signed)
    with pytest.raises(ValueError, match="in 3 of 50 rows"):
        scored(SCALE(HEAD) if shape is scale else ASH(HEAD, variant="s"), signed)
    flat = torch.ones(2, 1000)
    with pytest.raises(ValueError, match=r"in 2 of 2 rows .* overflows"):
        shape(flat, 0.995)


def test_signed_features_are_fine_where_nothing_is_divided_by_them():
    signed = normal(50, 20)
    for detector in (ReAct(HEAD), ASH(HEAD, variant="p"), ASH(HEAD, variant="b")):
        assert scored(detector, signed).isfinite().all()


@pytest.mark.parametrize("percentile", [1.0, 0.99, -0.1, float("nan")])
def test_a_percentile_that_leaves_nothing_is_refused(percentile: float):
    for make in (ASH, SCALE):
        with pytest.raises(ValueError, match=r"percentile=.*one of 20 entries is kept"):
            make(HEAD, percentile)


# -- any score of logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [msp, max_logit, gen, lambda logits: energy(logits, 3.0)])
def test_any_score_of_logits_judges_what_comes_out_of_the_head(score):
    for variant, shape in SHAPES.items():
        expected = score(HEAD(shape(Z, 0.9))).detach()
        assert torch.allclose(scored(ASH(HEAD, variant=variant, score=score)), expected, rtol=1e-12)
    assert torch.allclose(scored(SCALE(HEAD, score=score)), score(HEAD(scale(Z))).detach(), rtol=1e-12)
    clip = percentile_of(Z, 0.9).item()
    assert torch.allclose(scored(ReAct(HEAD, score=score)), score(HEAD(react(Z, clip))).detach(), rtol=1e-12)


def test_what_is_no_score_no_variant_or_no_fitting_head_is_named():
    with pytest.raises(ValueError, match="score='energy'"):
        SCALE(HEAD, score="energy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant='x'"):
        ASH(HEAD, variant="x")  # type: ignore[arg-type]
    for detector in (ReAct(HEAD), ASH(HEAD), SCALE(HEAD)):
        with pytest.raises(ValueError, match="19 wide, but the head reads 20"):
            detector.fit(Features(penultimate=Z)).score(Features(penultimate=Z[:, :19]))
    with pytest.raises(ValueError, match="19 wide, but the head reads 20"):
        ReAct(HEAD).fit(Features(penultimate=Z[:, :19]))


def test_a_head_without_a_bias_is_read_as_one_with_zeros():
    bare = nn.Linear(20, 4, bias=False).double()
    assert torch.allclose(scored(ASH(bare, 0.0, "p")), energy(bare(Z)).detach(), rtol=1e-12)

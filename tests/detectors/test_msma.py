"""Laws of multiscale score matching: the norms against exact scores, the way through `extract`, and the detector."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ood_lib
from ood_lib import (
    GMM,
    KNN,
    MSMA,
    Features,
    ScoreNetwork,
    ScoreNorms,
    extract,
    load,
    load_benchmark,
    noise_scales,
    score_norms,
    select_gmm,
    train_score_network,
)
from ood_lib.data.images import ImageArray
from ood_lib.evaluation.metrics import auroc
from tests.conftest import normal, seeded


def mixture_score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Score of 0.95 N(10, 2^2) + 0.05 N(50, 2^2) plus noise, by differentiating the log-density."""
    with torch.enable_grad():
        x = x.detach().double().requires_grad_()
        parts = torch.distributions.Normal(torch.tensor([10.0, 50.0]).double(), (4 + sigma.double() ** 2).sqrt())
        log_density = (parts.log_prob(x[..., None]) + torch.tensor([0.95, 0.05]).double().log()).logsumexp(-1)
        return torch.autograd.grad(log_density.sum(), x)[0]


def ring_score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Score of a noisy circle, radius 3: 200 Gaussians, each of standard deviation 0.15."""
    angle = 2 * math.pi * torch.arange(200, dtype=x.dtype) / 200
    centres = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    variance = 0.15**2 + sigma**2
    share = (-(torch.cdist(x, centres) ** 2) / (2 * variance)).softmax(1)
    return (share @ centres - x) / variance


def small_network(**options: object) -> ScoreNetwork:
    torch.manual_seed(0)
    network = ScoreNetwork(1, widths=(8,), **options).eval()
    for parameter in network.body.out.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


IMAGES = torch.rand(20, 1, 8, 8, generator=seeded())

# -- the norms -----------------------------------------------------------------------------------------------------


def test_the_papers_one_dimensional_toy_to_four_digits():
    x = torch.tensor([9.0, 10, 11, 29, 30, 31, 49, 50, 51], dtype=torch.float64)[:, None]
    table = [
        [1.422, 1.434, 1.443, 0.8505, 0.8911, 0.9309, 0.0625, 0.0143, 0.0337],
        [0.0478, 0.0331, 0.1187, 1.694, 1.731, 1.743, 0.0962, 0.0001, 0.0960],
        [0.0249, 0, 0.0249, 0.4738, 0.4489, 0.4729, 0.0249, 0, 0.0249],
    ]
    published = torch.tensor(table, dtype=torch.float64)[:, [6, 7, 8, 3, 4, 5, 0, 1, 2]].T
    found = score_norms(mixture_score, x, [20.0, 10.0, 0.1])
    assert (found - published).abs().max() < 5.1e-4
    assert (found - published)[published < 1].abs().max() < 5.1e-5  # there the table has four decimals


def test_the_score_of_the_toy_vanishes_between_the_modes_where_the_density_is_smallest():
    low, high = 25.0, 35.0
    for _ in range(60):
        middle = (low + high) / 2
        sign = mixture_score(torch.tensor([middle]), torch.tensor(0.0)) < 0
        low, high = (middle, high) if sign else (low, middle)
    assert low == pytest.approx(30.2974, abs=1e-4)


def test_the_centre_of_a_ring_has_longer_scores_than_the_ring_at_small_scales_and_shorter_ones_at_large_scales():
    angle = 2 * math.pi * torch.rand(500, generator=seeded(), dtype=torch.float64)
    ring = 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * normal(500, 2)
    scales = [4.0, 2.0, 1.0, 0.5, 0.2, 0.05]
    on, centre = score_norms(ring_score, ring, scales), score_norms(ring_score, 0.2 * normal(500, 2, seed=1), scales)
    assert on.mean(0).tolist() == pytest.approx([0.55, 0.40, 0.19, 0.23, 0.39, 0.24], rel=0.08)
    assert centre.mean(0)[[0, 1, 3, 4]].tolist() == pytest.approx([0.044, 0.013, 3.4, 8.1], rel=0.1)
    sides = [auroc(a, b)[0] for a, b in zip(on.T, centre.T)]
    assert max(sides[:2]) < 0.01 and min(sides[3:]) > 0.95
    detector = MSMA(ring_score, GMM(4, "full"), scales).fit(Features(penultimate=on))
    scores = (detector.score(Features(penultimate=z)) for z in (on, centre))
    assert auroc(*scores)[0] > 0.999


def test_norms_are_weighted_by_the_scale_and_the_largest_scale_comes_first():
    network, scales = small_network(), noise_scales(count=4)
    found = score_norms(network, IMAGES, scales)
    assert found.shape == (20, 4)
    for column, sigma in enumerate(scales.tolist()):
        scores = network(IMAGES, sigma).detach().numpy().reshape(20, -1)
        assert np.allclose(found[:, column], sigma * np.sqrt((scores**2).sum(1)), rtol=1e-5)


def test_norms_do_not_depend_on_the_batch_nor_on_the_order():
    network, scales = small_network(), noise_scales(count=4)
    whole = score_norms(network, IMAGES, scales)
    assert torch.allclose(score_norms(network, IMAGES, scales, batch_size=7), whole, rtol=1e-5)
    order = torch.randperm(20, generator=seeded())
    assert torch.allclose(score_norms(network, IMAGES[order], scales), whole[order], rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_norms_do_not_depend_on_the_device():
    network, scales = small_network(), noise_scales(count=4)
    on_cpu = score_norms(network, IMAGES, scales)
    assert torch.allclose(score_norms(network.cuda(), IMAGES.cuda(), scales).cpu(), on_cpu, rtol=1e-3)


@pytest.mark.parametrize(("given", "returned"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_norms_keep_double_precision_and_lift_half(given: torch.dtype, returned: torch.dtype):
    exact = score_norms(small_network().double(), IMAGES.double(), noise_scales(count=4))
    found = score_norms(small_network().to(given), IMAGES.to(given), noise_scales(count=4))
    assert found.dtype == returned
    assert torch.allclose(found.double(), exact, rtol=0.05)


def test_norms_under_autocast_are_single_precision():
    scales = noise_scales(count=4)
    with torch.autocast("cpu", torch.bfloat16):
        found = score_norms(small_network(), IMAGES, scales)
    assert found.dtype == torch.float32
    assert torch.allclose(found, score_norms(small_network(), IMAGES, scales), rtol=0.03)


def test_each_scale_costs_one_pass_per_batch_and_carries_no_gradient():
    asked = []

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        asked.append((len(x), sigma.shape))
        return x

    norms = score_norms(network, IMAGES.clone().requires_grad_(), [1.0, 0.5, 0.1], batch_size=8)
    assert asked == [(n, (1,)) for n in (8, 8, 4) for _ in range(3)]
    assert not norms.requires_grad


# -- the way through extract ---------------------------------------------------------------------------------------


def test_extract_finds_the_norms_that_a_call_by_hand_finds(tmp_path: Path):
    data, network = ImageArray(IMAGES, torch.arange(20)), small_network()
    norms = ScoreNorms(network, noise_scales(count=4))
    features = extract(norms, data, batch_size=6, progress=False, device="cpu")
    assert torch.allclose(features.penultimate, score_norms(network, IMAGES, norms.sigmas), rtol=1e-5)
    assert torch.equal(norms(IMAGES), norms.represent(IMAGES).penultimate)
    assert features.labels.tolist() == list(range(20)) and features.logits is None


def test_caches_of_other_scales_and_other_networks_are_told_apart(tmp_path: Path):
    data = ImageArray(IMAGES)

    def run(network: nn.Module, sigmas: list[float]) -> torch.Tensor:
        norms = ScoreNorms(network, sigmas)
        return extract(norms, data, cache=tmp_path, progress=False, device="cpu").penultimate

    first = run(small_network(), [1.0, 0.1])
    assert torch.equal(run(small_network(), [1.0, 0.1]), first) and len(list(tmp_path.iterdir())) == 1
    assert not torch.equal(run(small_network(), [1.0, 0.11]), first)
    run(small_network(sigma_data=0.3), [1.0, 0.1])
    run(ScoreNetwork(1, widths=(8,)), [1.0, 0.1])
    assert len(list(tmp_path.iterdir())) == 4


def test_the_scales_follow_from_the_network():
    assert ScoreNorms(small_network(sigma_range=(0.02, 0.5))).sigmas == noise_scales(0.5, 0.02).tolist()
    assert ScoreNorms(small_network(levels=(1.0, 0.3, 0.1))).sigmas == [1.0, 0.3, 0.1]
    assert ScoreNorms(lambda x, sigma: x).sigmas == noise_scales().tolist()


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", [[0.1, 1.0], [1.0, 0.0], [1.0, -0.1], []])
def test_scales_out_of_order_or_not_positive_are_refused(sigmas: list[float]):
    for call in (lambda: score_norms(small_network(), IMAGES, sigmas), lambda: ScoreNorms(small_network(), sigmas)):
        with pytest.raises(ValueError, match="from the largest to the smallest"):
            call()


def test_images_outside_0_to_1_are_refused_and_points_are_not():
    with pytest.raises(ValueError, match=r"reach from 0\.\d+ to 2\d\d"):
        score_norms(small_network(), 255 * IMAGES, [1.0])
    assert score_norms(lambda x, sigma: x, torch.tensor([[300.0]]), [1.0]).item() == 300


@pytest.mark.parametrize(
    ("options", "strange"), [({"sigma_range": (0.1, 0.5)}, [0.6, 0.05]), ({"levels": (0.5, 0.1)}, [0.6, 0.3, 0.05])]
)
def test_scales_that_were_not_trained_are_refused_unless_asked_for(options: dict, strange: list[float]):
    network, sigmas = small_network(**options), [0.6, 0.5, 0.3, 0.1, 0.05]
    for call in (lambda: score_norms(network, IMAGES, sigmas), lambda: ScoreNorms(network, sigmas)):
        with pytest.raises(ValueError) as error:
            call()
        assert str(strange) in str(error.value) and "extrapolate=True" in str(error.value)
    assert score_norms(network, IMAGES, sigmas, extrapolate=True).shape == (20, 5)
    assert ScoreNorms(network, sigmas, extrapolate=True)(IMAGES).shape == (20, 5)


# -- the mixture that is selected ----------------------------------------------------------------------------------


def blobs(*centres: float, n: int = 300) -> Features:
    place = torch.tensor(centres, dtype=torch.float64)[torch.arange(n) % len(centres), None]
    return Features(penultimate=place + normal(n, 3))


def test_the_number_of_components_is_found():
    assert select_gmm(blobs(0.0), (1, 2, 4)).components == 1
    assert select_gmm(blobs(0.0, 12.0), (1, 2, 4)).components == 2
    assert select_gmm(blobs(0.0, 12.0, 24.0, 36.0), (1, 2, 4)).components == 4
    gmm = select_gmm(blobs(0.0), (1,))
    assert gmm.covariance == "full" and not gmm.fitted


def test_a_quantile_asks_for_fairness_to_the_unusual():
    rare = torch.cat([normal(380, 2), 0.01 * normal(20, 2, seed=1) + 9])  # 5 % in a corner
    half = torch.cat([normal(200, 2), 0.001 * normal(200, 2, seed=1)])  # half of it very dense: the mean loves that
    assert select_gmm(Features(penultimate=rare), (1, 2), quantile=0.02).components == 2
    assert select_gmm(Features(penultimate=half), (1, 2)).components == 2


def test_components_without_enough_rows_are_left_out_and_too_few_rows_refused():
    assert select_gmm(blobs(0.0, 12.0, 24.0, 36.0, n=40), (1, 2, 4)).components < 4
    with pytest.raises(ValueError, match=r"19 rows.*expected 20 rows"):
        select_gmm(blobs(0.0, n=19))
    with pytest.raises(ValueError, match="10 per component"):
        select_gmm(blobs(0.0, n=40), (8,))


# -- the detector --------------------------------------------------------------------------------------------------


def identity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x


def make(density: object = None, scales: int = 3) -> MSMA:
    return MSMA(identity, density, noise_scales(count=scales))  # type: ignore[arg-type]


TRAIN = Features(penultimate=normal(200, 3) @ torch.linalg.qr(normal(3, 3, seed=1)).R + 5)
QUERIES = Features(penultimate=3 * normal(30, 3, seed=2) + 5)


def test_one_component_is_the_mahalanobis_distance():
    scores = make(GMM(1, "full", ridge=0)).fit(TRAIN).score(QUERIES).numpy()
    z, centred = TRAIN.penultimate.numpy(), QUERIES.penultimate.numpy() - TRAIN.penultimate.numpy().mean(0)
    distance = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(z.T, bias=True)), centred) / 2
    assert np.ptp(scores - distance) < 1e-9


@pytest.mark.parametrize("density", [GMM(2, "full"), KNN(3, normalize=False)])
def test_the_unit_of_a_column_does_not_matter(density: ood_lib.Detector):
    unit = torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64)
    scaled = [Features(penultimate=f.penultimate * unit) for f in (TRAIN, QUERIES)]
    plain = make(density).fit(TRAIN).score(QUERIES)
    assert torch.allclose(make(density).fit(scaled[0]).score(scaled[1]), plain, rtol=1e-6)


def test_the_logarithm_judges_a_power_of_the_norms_as_it_judges_them_and_plain_norms_do_not():
    logs = [f.penultimate / 5 for f in (TRAIN, QUERIES)]  # of positive norms
    one, cubed = ([Features(penultimate=(power * z).exp()) for z in logs] for power in (1, 3))
    for log, same in ((True, True), (False, False)):
        scores = [
            MSMA(identity, GMM(1, "full"), noise_scales(count=3), log=log).fit(a).score(b) for a, b in (one, cubed)
        ]
        assert torch.allclose(*scores, rtol=1e-6) == same
    given = [Features(penultimate=z) for z in logs]
    plain = make(GMM(1, "full")).fit(given[0]).score(given[1])
    assert torch.allclose(MSMA(identity, GMM(1, "full"), noise_scales(count=3), log=True).fit(one[0])(one[1]), plain)


def test_of_two_norms_equally_far_from_the_mean_the_logarithm_finds_the_shorter_one_more_unusual():
    around = torch.cat([5 + normal(400, 1), 5 - normal(400, 1)])  # symmetric: plain norms cannot tell the two apart
    ends = Features(penultimate=torch.tensor([[1.5], [8.5]], dtype=torch.float64))
    short, long = MSMA(identity, GMM(1, "full"), [1.0]).fit(Features(penultimate=around.clamp_min(0.5)))(ends)
    assert abs(short - long) < 0.2
    short, long = MSMA(identity, GMM(1, "full"), [1.0], log=True).fit(Features(penultimate=around.clamp_min(0.5)))(ends)
    assert short - long > 3


def test_the_logarithm_of_a_norm_of_zero_is_refused():
    detector = MSMA(identity, GMM(1, "full"), noise_scales(count=3), log=True)
    zero = Features(penultimate=TRAIN.penultimate.abs() * torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"down to 0 were given; log=True"):
        detector.fit(zero)
    with pytest.raises(ValueError, match="log=True"):
        detector.fit(Features(penultimate=TRAIN.penultimate.exp())).score(zero)


def test_without_a_density_the_selected_mixture_is_fitted_and_saved():
    double = Features(penultimate=torch.cat([TRAIN.penultimate, TRAIN.penultimate + 40]))
    detector = make().fit(double)
    assert detector.density.components > 1
    fresh = make()
    fresh.load_state_dict(detector.state_dict())
    assert torch.equal(fresh.score(QUERIES), detector.score(QUERIES))
    assert detector.fit(TRAIN).density.components == 1  # selected again


def test_the_network_is_saved_with_the_detector():
    detector = MSMA(small_network(), GMM(1, "full"), [1.0, 0.1])
    fresh = MSMA(ScoreNetwork(1, widths=(8,)), GMM(1, "full"), [1.0, 0.1])
    assert not torch.equal(fresh.norms(IMAGES), detector.norms(IMAGES))
    fresh.load_state_dict(detector.state_dict() | {"mean": fresh.mean, "std": fresh.std})
    assert torch.equal(fresh.norms(IMAGES), detector.norms(IMAGES))


def test_without_a_network_norms_are_judged_alike_and_images_refused():
    judges = [MSMA(network, GMM(1, "full"), noise_scales(count=3)).fit(TRAIN) for network in (identity, None)]
    assert torch.equal(*(judge(QUERIES) for judge in judges))
    with pytest.raises(ValueError, match="has no score network"):
        judges[1].norms(IMAGES)


def test_few_rows_are_said_to_be_few_and_fewer_than_components_refused():
    with pytest.warns(UserWarning, match="14 rows for a density of 3 score norms"):
        make(GMM(1, "full")).fit(TRAIN[:14])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(GMM(1, "full")).fit(TRAIN[:15])
    with pytest.raises(ValueError, match="40 components were asked for, and 30 samples given"):
        make(GMM(40, "full")).fit(TRAIN[:30])


def test_features_that_are_no_norms_of_this_network_are_refused():
    with pytest.raises(ValueError, match="3 wide, but the score norms of this network are 4"):
        make(GMM(1, "full"), scales=4).fit(TRAIN)
    stuck = Features(penultimate=TRAIN.penultimate * torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"scales \[1\] never vary"):
        make(GMM(1, "full")).fit(stuck)


def test_on_digits_held_out_images_look_like_test_images_and_noise_does_not():
    bench = load_benchmark("digits")
    torch.manual_seed(0)
    network = ScoreNetwork(1, widths=(8,))
    train_score_network(network, bench.train, steps=150, learning_rate=5e-3, progress=False, device="cpu")
    detector = MSMA(network, GMM(1, "full"))
    sets = (bench.val, bench.test, bench.far["noise"], bench.far["rotated"])
    val, test, noise, rotated = (extract(detector.norms, data, progress=False, device="cpu") for data in sets)
    scores = detector.fit(val).score(test)
    assert 0.4 < auroc(detector.score(val), scores)[0] < 0.62
    assert auroc(scores, detector.score(noise))[0] > 0.99
    assert auroc(scores, detector.score(rotated))[0] > 0.9


def test_a_density_that_the_fit_selected_is_part_of_the_state(tmp_path):
    z = normal(400, 4) + 9 * (torch.arange(400) % 2)[:, None]
    features = Features(penultimate=z)
    detector = MSMA(ScoreNetwork(1, widths=(8,)), sigmas=[1.0, 0.5, 0.2, 0.1]).fit(features).calibrate(features)
    assert detector.density.components == 2
    fresh = MSMA(ScoreNetwork(1, widths=(8,)), sigmas=[1.0, 0.5, 0.2, 0.1])
    fresh.load_state_dict(detector.state_dict())
    detector.save(tmp_path / "msma.safetensors")
    for again in (fresh, load(tmp_path / "msma.safetensors")):
        assert again.density.components == 2
        assert torch.equal(again.score(features), detector.score(features))
    norms = [score_norms(d.norms.network.eval(), IMAGES, [1.0, 0.1]) for d in (detector, again)]
    assert torch.equal(*norms)  # the network came along

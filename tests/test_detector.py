"""The laws every detector obeys, whatever it reads.  A new detector becomes subject to them by a line in MAKE."""

import copy
import inspect
import io
from collections.abc import Callable

import pytest
import torch
from conftest import CLASSES, UNITS, Toy, cast, seeded
from torch import nn

import ood_lib
from ood_lib import (
    ASH,
    FDBD,
    GEN,
    GMM,
    KNN,
    MSMA,
    MSP,
    ODIN,
    RMDS,
    SCALE,
    SHE,
    Detector,
    Energy,
    Features,
    GradNorm,
    KLMatching,
    Mahalanobis,
    MaxLogit,
    NNGuide,
    NotFittedError,
    ReAct,
    ViM,
    WeiPer,
    energy,
    msp,
    noise_scales,
)

MAKE: dict[str, Callable[[nn.Linear], Detector]] = {
    "MSP": lambda head: MSP(),
    "MaxLogit": lambda head: MaxLogit(),
    "Energy": lambda head: Energy(temperature=0.5),
    "MSP hot": lambda head: MSP(temperature=100.0),
    "GEN": lambda head: GEN(),
    "GEN short": lambda head: GEN(gamma=0.5, top=2),
    "KLMatching": lambda head: KLMatching(),
    "KNN": lambda head: KNN(k=5),
    "KNN raw": lambda head: KNN(k=5, normalize=False),
    "NNGuide": lambda head: NNGuide(k=5, fraction=1.0),
    "SHE": lambda head: SHE(),
    "SHE euclidean": lambda head: SHE(metric="euclidean"),
    "SHE cosine": lambda head: SHE(metric="cosine"),
    "FDBD": lambda head: FDBD(head),
    "Mahalanobis": lambda head: Mahalanobis(),
    "RMDS": lambda head: RMDS(),
    "ViM": lambda head: ViM(head),
    "ViM narrow": lambda head: ViM(head, dim=4),
    "ReAct": lambda head: ReAct(head),
    "ReAct msp": lambda head: ReAct(head, percentile=0.99, score=msp),
    "ASH-B": lambda head: ASH(head),
    "ASH-S": lambda head: ASH(head, variant="s"),
    "ASH-P": lambda head: ASH(head, percentile=0.65, variant="p"),
    "SCALE": lambda head: SCALE(head),
    "ODIN": lambda head: ODIN(),
    "GradNorm": lambda head: GradNorm(),
    "MSMA": lambda head: MSMA(lambda x, sigma: -x, GMM(1, "full"), noise_scales(count=UNITS)),
    "MSMA KNN": lambda head: MSMA(lambda x, sigma: -x, KNN(k=5, normalize=False), noise_scales(count=UNITS)),
    "GMM tied": lambda head: GMM(),
    "GMM diagonal": lambda head: GMM(covariance="diagonal"),
    "GMM full": lambda head: GMM(covariance="full"),
    "GMM EM tied": lambda head: GMM(components=CLASSES),
    "GMM EM diagonal": lambda head: GMM(components=CLASSES, covariance="diagonal"),
    "GMM EM full": lambda head: GMM(components=CLASSES, covariance="full"),
    "WeiPer kld": lambda head: WeiPer(head, repeats=50),
    "WeiPer kld limit": lambda head: WeiPer(head, repeats=None),
    "WeiPer kld drop": lambda head: WeiPer(head, repeats=50, overflow="drop"),
    "WeiPer msp": lambda head: WeiPer(head, score="msp", repeats=50),
    "WeiPer msp limit": lambda head: WeiPer(head, score="msp", repeats=None),
    "WeiPer react": lambda head: WeiPer(head, score="react", repeats=50),
    "WeiPer react limit": lambda head: WeiPer(head, score="react", repeats=None),
    "WeiPer callable": lambda head: WeiPer(head, score=energy, repeats=50),
    "WeiPer callable limit": lambda head: WeiPer(head, score=energy, repeats=None),
}
LEARNS = [name for name in MAKE if not MAKE[name](nn.Linear(UNITS, CLASSES)).fitted]

every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
every_learner = pytest.mark.parametrize("make", [MAKE[name] for name in LEARNS], ids=LEARNS)


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit, NaN equal to NaN."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n].nan_to_num(7e7), b[n].nan_to_num(7e7)) for n in a
    )


def state_of(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def spoil(features: Features, field: str, rows: list[int], value: float) -> Features:
    """Features with one bad entry in each of some rows of a field."""
    tensors = features.tensors() | {field: getattr(features, field).clone()}
    tensors[field][rows, 1] = value
    return Features(**tensors)


def test_every_exported_detector_is_subject_to_these_laws():
    exported = {thing for thing in vars(ood_lib).values() if inspect.isclass(thing) and issubclass(thing, Detector)}
    head = nn.Linear(UNITS, CLASSES)
    assert {type(make(head)) for make in MAKE.values()} == exported - {Detector}


# -- scores -----------------------------------------------------------------------------------------------------


@every
def test_one_score_per_row_and_larger_means_more_ood(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    known, unknown = detector.score(toy.test), detector.score(toy.ood)
    assert known.shape == (len(toy.test),) and unknown.shape == (len(toy.ood),)
    assert unknown.min() > known.median()
    assert ood_lib.evaluate(known, unknown).auroc > 0.99


@every
def test_calling_a_detector_is_scoring(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    assert torch.equal(detector(toy.test), detector.score(toy.test))


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_scores_do_not_depend_on_the_batch(make: Callable, toy: Toy, dtype: torch.dtype, tolerance: float):
    # In float32 a product may round differently in another batch, and a perturbed logit then hop into the next bin:
    # one of 200 values here, which moves the divergence by up to 2e-3.  All other scores agree to 1e-5.
    toy = toy.to(dtype)
    detector = make(toy.head).fit(toy.train)
    whole = detector.score(toy.test)
    detector.chunk = 7
    assert torch.allclose(detector.score(toy.test), whole, rtol=1e-5, atol=tolerance)
    alone = torch.cat([detector.score(toy.test[i : i + 1]) for i in range(5)])
    assert torch.allclose(alone, whole[:5], rtol=1e-5, atol=tolerance)


@every
def test_the_order_of_rows_changes_the_order_of_scores_and_nothing_else(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    order = torch.randperm(len(toy.test), generator=seeded())
    assert torch.allclose(detector.score(toy.test[order]), detector.score(toy.test)[order], rtol=0, atol=1e-9)


@every_learner
def test_the_order_of_training_rows_does_not_matter(make: Callable, toy: Toy):
    order = torch.randperm(len(toy.train), generator=seeded())
    a, b = (make(toy.head).fit(train).score(toy.test) for train in (toy.train, toy.train[order]))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_scores_keep_the_precision_of_the_features_and_half_becomes_single(
    make: Callable, toy: Toy, given: torch.dtype, returned: torch.dtype
):
    detector = make(toy.head).fit(cast(toy.train, given))
    scores = detector.score(cast(toy.test, given))
    assert scores.dtype == returned
    exact = make(toy.head).fit(toy.train).score(toy.test)
    # what half precision leaves of the features: 3 digits (float16) or 2 (bfloat16)
    tolerance = {torch.float64: 0, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}[given]
    assert (scores - exact).abs().mean() <= tolerance * exact.std() + 1e-12


@every
def test_detector_and_features_may_differ_in_precision(make: Callable, toy: Toy):
    fitted_low = make(toy.to(torch.float32).head).fit(cast(toy.train, torch.float32))
    assert fitted_low.score(toy.test).dtype == torch.float64
    fitted_high = make(toy.head).fit(toy.train)
    assert fitted_high.score(cast(toy.test, torch.float32)).dtype == torch.float32


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_scores_do_not_depend_on_the_device_and_come_back_where_the_features_are(make: Callable, toy: Toy):
    on_cpu = make(toy.head).fit(toy.train)
    on_gpu = make(toy.head).cuda().fit(toy.train)
    assert on_gpu.score(toy.test).device.type == "cpu"
    assert torch.allclose(on_gpu.score(toy.test), on_cpu.score(toy.test), rtol=0, atol=1e-6)
    assert on_gpu.score(toy.test.to("cuda")).device.type == "cuda"
    assert torch.allclose(on_cpu.score(toy.test.to("cuda")).cpu(), on_cpu.score(toy.test), rtol=0, atol=1e-6)


@every
def test_scores_carry_no_gradient(make: Callable, toy: Toy):
    z, logits = (toy.test.penultimate.clone().requires_grad_(), toy.test.logits.clone().requires_grad_())
    assert not make(toy.head).fit(toy.train).score(Features(penultimate=z, logits=logits)).requires_grad


@every
def test_fitting_and_scoring_leave_the_global_random_numbers_alone(make: Callable, toy: Toy):
    before = torch.random.get_rng_state()
    make(toy.head).fit(toy.train).score(toy.test)
    assert torch.equal(torch.random.get_rng_state(), before)


# -- fitting ----------------------------------------------------------------------------------------------------


@every
def test_fit_returns_the_detector_and_never_changes_its_input(make: Callable, toy: Toy):
    before = {name: value.clone() for name, value in toy.train.tensors().items()}
    detector = make(toy.head)
    assert detector.fit(toy.train) is detector
    detector.score(toy.train)
    for buffer in detector.buffers():  # nor does a detector keep the caller's memory as its own
        buffer.zero_()
    assert all(torch.equal(value, before[name]) for name, value in toy.train.tensors().items())


@every
def test_fitting_twice_is_fitting_once(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    before = state_of(detector)
    detector.fit(toy.val).fit(toy.train)
    assert same_state(detector.state_dict(), before)


@every_learner
def test_an_unfitted_detector_refuses_to_score_and_says_what_to_call(make: Callable, toy: Toy):
    detector = make(toy.head)
    for call in (detector, detector.score, detector.calibrate):
        with pytest.raises(NotFittedError, match=rf"{type(detector).__name__}.*\.fit\(train_features\)"):
            call(toy.test)


@pytest.mark.parametrize("name", sorted(MAKE.keys() - set(LEARNS)))
def test_a_detector_with_nothing_to_learn_scores_at_once(name: str, toy: Toy):
    fresh = MAKE[name](toy.head).score(toy.test)
    assert torch.equal(fresh, MAKE[name](toy.head).fit(toy.train).score(toy.test))


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_with_nan_or_infinity_are_counted_over_the_whole_set(make: Callable, toy: Toy, value: float):
    detector = make(toy.head).fit(toy.train)
    field, before = detector.reads[0], state_of(detector)
    detector.chunk = 16
    for call, features in ((detector.score, toy.test), (detector.fit, toy.train), (detector.calibrate, toy.test)):
        with pytest.raises(ValueError, match=f"3 of {len(features)} rows of {field} hold NaN or infinity"):
            call(spoil(features, field, [0, 20, 59], value))
    assert same_state(detector.state_dict(), before)


@every
def test_no_rows_and_a_missing_field_are_named(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    before = state_of(detector)
    for call in (detector.fit, detector.score, detector.calibrate):
        with pytest.raises(ValueError, match="0 samples"):
            call(toy.test[:0])
        with pytest.raises(ValueError, match=detector.reads[0]):
            call(Features(labels=toy.test.labels))
    assert same_state(detector.state_dict(), before)


@every
def test_a_detector_reads_only_what_it_says_it_reads(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    only = Features(**{field: getattr(toy.test, field) for field in detector.reads})
    assert torch.equal(detector.score(only), detector.score(toy.test))


@every
@pytest.mark.parametrize("built_there", [False, True], ids=["built outside", "built there"])
def test_a_fit_in_inference_mode_leaves_tensors_like_any_other(make: Callable, toy: Toy, built_there: bool):
    plain = make(toy.head).fit(toy.train).calibrate(toy.val)
    detector = make(toy.head)
    with torch.inference_mode():
        train = toy.train[torch.arange(len(toy.train))]
        assert train.penultimate.is_inference()
        detector = make(toy.head) if built_there else detector
        assert detector.fit(train) is detector
    assert not any(buffer.is_inference() for buffer in detector.buffers())
    assert torch.equal(detector.calibrate(toy.val).score(toy.test), plain.score(toy.test))
    assert same_state(detector.state_dict(), plain.state_dict())
    layer = nn.Linear(1, 1).double()
    layer(detector.score(toy.test).double()[:, None]).sum().backward()  # nor are the scores
    detector.load_state_dict(plain.state_dict())
    detector.fit(toy.train)


@every
def test_a_detector_built_in_inference_mode_is_calibrated_outside(make: Callable, toy: Toy):
    with torch.inference_mode():
        detector = make(toy.head).fit(toy.train) if make(toy.head).needs_fit else make(toy.head)
        fresh = make(toy.head)
    assert torch.equal(detector.calibrate(toy.val).threshold, fresh.fit(toy.train).calibrate(toy.val).threshold)


def test_a_fit_carries_no_gradient(toy: Toy):
    z = toy.train.penultimate.clone().requires_grad_()
    detector = KNN(k=5).fit(Features(penultimate=z))
    assert not any(buffer.requires_grad for buffer in detector.buffers())


@every_learner
def test_features_of_another_width_are_named(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    narrow = Features(penultimate=toy.test.penultimate[:, :31], logits=toy.test.logits[:, :3])
    with pytest.raises(ValueError, match=r"the features are (31|3) wide, but .* (32|4): take them all"):
        detector.score(narrow)


# -- thresholds -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("tpr", [0.01, 0.29, 0.55, 0.95, 1.0])
def test_calibrate_keeps_the_smallest_threshold_that_accepts_the_share(make: Callable, toy: Toy, tpr: float):
    detector = make(toy.head).fit(toy.train).calibrate(toy.val, tpr=tpr)
    scores = detector.score(toy.val)
    assert (~detector.is_ood(toy.val)).double().mean() >= tpr
    assert (scores < detector.threshold).double().mean() < tpr
    assert torch.equal(detector.is_ood(toy.ood), detector.score(toy.ood) > detector.threshold)


@every
def test_without_a_threshold_there_is_no_decision(make: Callable, toy: Toy):
    with pytest.raises(NotFittedError, match="calibrate"):
        make(toy.head).fit(toy.train).is_ood(toy.test)


@every_learner
def test_a_new_fit_forgets_the_threshold_of_the_old_one(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train).calibrate(toy.val).fit(toy.val)
    with pytest.raises(NotFittedError, match="calibrate"):
        detector.is_ood(toy.test)


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_refused(toy: Toy, tpr: float):
    with pytest.raises(ValueError, match="tpr="):
        MSP().calibrate(toy.val, tpr=tpr)


# -- saving -----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_saved_state_makes_a_fresh_object_equal(make: Callable, toy: Toy, dtype: torch.dtype):
    toy = toy.to(dtype)
    detector = make(toy.head).fit(toy.train).calibrate(toy.val)
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    fresh = make(nn.Linear(UNITS, CLASSES).to(dtype))  # never fitted, and with another head
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.score(toy.test), detector.score(toy.test))
    assert torch.equal(fresh.threshold, detector.threshold)
    assert torch.equal(fresh.is_ood(toy.ood), detector.is_ood(toy.ood))


def test_a_state_does_not_carry_the_hyperparameters(toy: Toy):
    saved = KNN(k=5).fit(toy.train).state_dict()
    other = KNN(k=9)
    other.load_state_dict(saved)
    assert repr(other) == "KNN(k=9, normalize=True)"
    assert torch.equal(other.score(toy.test), KNN(k=9).fit(toy.train).score(toy.test))


@every
def test_a_copy_has_its_own_life(make: Callable, toy: Toy):
    detector = make(toy.head).fit(toy.train)
    scores = detector.score(toy.test)
    other = copy.deepcopy(detector)
    assert torch.equal(other.score(toy.test), scores)
    for buffer in other.buffers():
        buffer.zero_()
    assert torch.equal(detector.score(toy.test), scores)


@every
def test_repr_shows_every_hyperparameter(make: Callable, toy: Toy):
    detector = make(toy.head)
    shown = repr(detector)
    assert shown.startswith(type(detector).__name__)
    for name in inspect.signature(type(detector)).parameters:
        assert name == "head" or f"{name}=" in shown


def test_repr_shows_the_values_that_were_given(toy: Toy):
    assert repr(KNN(k=7, normalize=False)) == "KNN(k=7, normalize=False)"
    assert "score='msp', repeats=None, delta=2.4" in repr(WeiPer(toy.head, score="msp", repeats=None, delta=2.4))


# -- writing a detector -----------------------------------------------------------------------------------------


def test_a_subclass_only_says_how_to_score(toy: Toy):
    class Norm(Detector):
        needs_fit = False

        def _score(self, features: Features) -> torch.Tensor:
            return -features.penultimate.norm(dim=1)

    assert torch.equal(Norm().score(toy.test), -toy.test.penultimate.norm(dim=1))


def test_a_subclass_without_a_score_says_so(toy: Toy):
    class Empty(Detector):
        needs_fit = False

    with pytest.raises(NotImplementedError, match="Empty must define _score"):
        Empty().score(toy.test)

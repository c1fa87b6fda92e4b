"""The laws every detector obeys, whatever it reads.  A new detector becomes subject to them by a line in MAKE.

What the base class does alone (checks, thresholds, p-values) is tested on FEW of them.
"""

import copy
import inspect
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.neighbors import LocalOutlierFactor
from torch import nn
from torch._subclasses import FakeTensorMode

import ood_lib
from ood_lib import (
    ASH,
    FDBD,
    GEN,
    GMM,
    HEAT,
    KNN,
    MSMA,
    MSP,
    ODIN,
    RMDS,
    SCALE,
    SHE,
    Detector,
    Energy,
    FeatureFlow,
    Features,
    GMMPrior,
    GradNorm,
    JointEnergy,
    KLMatching,
    LogitPrior,
    Mahalanobis,
    MaxLogit,
    NNGuide,
    NotFittedError,
    ReAct,
    ResidualEBM,
    SklearnDetector,
    SumLogit,
    SumProb,
    ViM,
    WeiPer,
    compose,
    energy,
    max_logit,
    msp,
    noise_scales,
)
from ood_lib.detectors.head import FrozenHead
from ood_lib.tensors import save_tensors
from tests.conftest import CLASSES, UNITS, Toy, cast, normal, seeded

TRAINING: dict[str, Any] = {"updates": 6, "steps": 1, "hidden": (8, 8), "batch_size": 32}
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
    "MSMA flow": lambda head: MSMA(
        lambda x, sigma: -x, FeatureFlow(normalize=False, updates=4, check_every=2), noise_scales(count=UNITS)
    ),
    "GMM tied": lambda head: GMM(),
    "GMM diagonal": lambda head: GMM(covariance="diagonal"),
    "GMM full": lambda head: GMM(covariance="full"),
    "GMM EM tied": lambda head: GMM(components=CLASSES),
    "GMM EM diagonal": lambda head: GMM(components=CLASSES, covariance="diagonal"),
    "GMM EM full": lambda head: GMM(components=CLASSES, covariance="full"),
    "JointEnergy": lambda head: JointEnergy(),
    "JointEnergy top": lambda head: JointEnergy(top=2),
    "SumProb": lambda head: SumProb(),
    "SumLogit": lambda head: SumLogit(),
    "LOF": lambda head: SklearnDetector(LocalOutlierFactor(n_neighbors=15, novelty=True)),
    "FeatureFlow": lambda head: FeatureFlow(updates=4, check_every=2),
    "FeatureFlow classes": lambda head: FeatureFlow(updates=3, class_base=True, two_sided=True, normalize=False),
    "FeatureFlow paper": lambda head: FeatureFlow("paper", updates=2),
    "WeiPer kld": lambda head: WeiPer(head, repeats=50),
    "WeiPer kld limit": lambda head: WeiPer(head, repeats=None),
    "WeiPer kld drop": lambda head: WeiPer(head, repeats=50, overflow="drop"),
    "WeiPer msp": lambda head: WeiPer(head, score="msp", repeats=50),
    "WeiPer msp limit": lambda head: WeiPer(head, score="msp", repeats=None),
    "WeiPer react": lambda head: WeiPer(head, score="react", repeats=50),
    "WeiPer react limit": lambda head: WeiPer(head, score="react", repeats=None),
    "WeiPer callable": lambda head: WeiPer(head, score=energy, repeats=50),
    "WeiPer callable limit": lambda head: WeiPer(head, score=energy, repeats=None),
    "GMMPrior": lambda head: GMMPrior(),
    "GMMPrior EM": lambda head: GMMPrior(components=CLASSES),
    "LogitPrior": lambda head: LogitPrior(head),
    "composed": lambda head: compose([Energy(), KNN(k=5), GMM()], beta=2.0),
    "ResidualEBM": lambda head: ResidualEBM(GMM(), **TRAINING),
    "ResidualEBM noise": lambda head: ResidualEBM(LogitPrior(head), **TRAINING),
    "HEAT": lambda head: HEAT([GMMPrior(), LogitPrior(head)], **TRAINING),
}
TRAINED = ("ResidualEBM", "HEAT", "FeatureFlow", "MSMA flow")  # by batches, which the order of the training set decides
LEARNS = [name for name in MAKE if not MAKE[name](nn.Linear(UNITS, CLASSES)).fitted]

every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
every_learner = pytest.mark.parametrize("make", [MAKE[name] for name in LEARNS], ids=LEARNS)
FEW = ["MSP", "Mahalanobis", "ViM", "HEAT"]  # nothing to learn, moments, a head, composed and trained
few = pytest.mark.parametrize("make", [MAKE[name] for name in FEW], ids=FEW)
few_learners = pytest.mark.parametrize("make", [MAKE[name] for name in FEW[1:]], ids=FEW[1:])
CLOSED = [name for name in LEARNS if not name.startswith(TRAINED)]


FITTED: dict[tuple[Callable, torch.dtype], Detector] = {}


def fitted(make: Callable[[nn.Linear], Detector], toy: Toy) -> Detector:
    """A detector fitted to the toy in its precision: each is fitted once, and every law gets a copy of its own.

    What a fit does is tested on fits; that a copy is as good as what it is of, by `test_a_copy_has_its_own_life`.
    """
    key = make, toy.train.penultimate.dtype
    if key not in FITTED:
        FITTED[key] = make(toy.head).fit(toy.train)
    return copy.deepcopy(FITTED[key])


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
    things = [getattr(ood_lib, name) for name in ood_lib.__all__]
    exported = {thing for thing in things if inspect.isclass(thing) and issubclass(thing, Detector)}
    head = nn.Linear(UNITS, CLASSES)
    assert {type(make(head)) for make in MAKE.values()} == exported - {Detector}


def test_no_detector_has_a_way_of_its_own_to_fit_score_or_decide():
    # so laws that are the base's alone are tested on the few
    shared = {"fit", "score", "forward", "calibrate", "is_ood", "p_values"}
    for make in MAKE.values():
        kinds = type(make(nn.Linear(UNITS, CLASSES))).__mro__
        own = {kind.__name__: shared & vars(kind).keys() for kind in kinds[: kinds.index(Detector)]}
        assert not any(own.values()), own


# -- scores -----------------------------------------------------------------------------------------------------


@every
def test_one_score_per_row_and_larger_means_more_ood(make: Callable, toy: Toy):
    detector = fitted(make, toy)
    known, unknown = detector.score(toy.test), detector.score(toy.ood)
    assert known.shape == (len(toy.test),) and unknown.shape == (len(toy.ood),)
    assert unknown.min() > known.median()
    assert ood_lib.evaluate(known, unknown).auroc > 0.99


@few
def test_calling_a_detector_is_scoring(make: Callable, toy: Toy):
    detector = fitted(make, toy)
    assert torch.equal(detector(toy.test), detector.score(toy.test))


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_scores_do_not_depend_on_the_batch(make: Callable, toy: Toy, dtype: torch.dtype, tolerance: float):
    # In float32 a product may round differently in another batch, and a perturbed logit then hop into the next bin:
    # one of 200 values here, which moves the divergence by up to 2e-3.  All other scores agree to 1e-5.
    toy = toy.to(dtype)
    detector = fitted(make, toy)
    whole = detector.score(toy.test)
    detector.chunk = 7
    assert torch.allclose(detector.score(toy.test), whole, rtol=1e-5, atol=tolerance)
    alone = torch.cat([detector.score(toy.test[i : i + 1]) for i in range(5)])
    assert torch.allclose(alone, whole[:5], rtol=1e-5, atol=tolerance)


@every
def test_the_order_of_rows_changes_the_order_of_scores_and_nothing_else(make: Callable, toy: Toy):
    detector = fitted(make, toy)
    order = torch.randperm(len(toy.test), generator=seeded())
    assert torch.allclose(detector.score(toy.test[order]), detector.score(toy.test)[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [MAKE[name] for name in CLOSED], ids=CLOSED)
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
    exact = fitted(make, toy).score(toy.test)
    # what half precision leaves of the features: 3 digits (float16) or 2 (bfloat16)
    tolerance = {torch.float64: 0, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}[given]
    assert (scores - exact).abs().mean() <= tolerance * exact.std() + 1e-12


@every
def test_detector_and_features_may_differ_in_precision(make: Callable, toy: Toy):
    fitted_low = fitted(make, toy.to(torch.float32))
    assert fitted_low.score(toy.test).dtype == torch.float64
    fitted_high = fitted(make, toy)
    assert fitted_high.score(cast(toy.test, torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_scores_do_not_depend_on_the_device_and_come_back_where_the_features_are(name: str, toy: Toy):
    on_cpu = MAKE[name](toy.head).fit(toy.train)
    on_gpu = MAKE[name](toy.head).cuda().fit(toy.train)
    if name.startswith(TRAINED):  # rounding grows from update to update: the fit is near, what was learnt can move
        assert torch.allclose(on_gpu.score(toy.test), on_cpu.score(toy.test), rtol=0, atol=0.05)
        on_gpu = copy.deepcopy(on_cpu).cuda()
    assert on_gpu.score(toy.test).device.type == "cpu"
    assert torch.allclose(on_gpu.score(toy.test), on_cpu.score(toy.test), rtol=0, atol=1e-6)
    assert on_gpu.score(toy.test.to("cuda")).device.type == "cuda"
    assert torch.allclose(on_cpu.score(toy.test.to("cuda")).cpu(), on_cpu.score(toy.test), rtol=0, atol=1e-6)


class OnGPU(nn.Linear):
    """A head whose numbers lie on a GPU, also where there is none: shape, type and device, and no values."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__(UNITS, CLASSES)
        self._parameters.clear()
        with mode:
            self.__dict__ |= {"weight": torch.ones(CLASSES, UNITS, device="cuda"), "bias": None}

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter([nn.Parameter(torch.ones(1))])


def test_a_head_on_a_gpu_is_copied_to_where_detectors_start():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pass
    head = FrozenHead(OnGPU(mode))
    assert head.weight.device == head.bias.device == MSP().threshold.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["ReAct", "FDBD", "ViM", "WeiPer kld", "ASH-B", "LogitPrior"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_head_on_a_gpu_makes_the_same_detector(name: str, toy: Toy):
    found = MAKE[name](copy.deepcopy(toy.head).cuda()).fit(toy.train).score(toy.test)
    assert torch.equal(found, MAKE[name](toy.head).fit(toy.train).score(toy.test))


@few
def test_scores_carry_no_gradient(make: Callable, toy: Toy):
    z, logits = (toy.test.penultimate.clone().requires_grad_(), toy.test.logits.clone().requires_grad_())
    assert not fitted(make, toy).score(Features(penultimate=z, logits=logits)).requires_grad


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
    detector = fitted(make, toy)
    before = state_of(detector)
    detector.fit(toy.val).fit(toy.train)
    assert same_state(detector.state_dict(), before)


@few_learners
def test_an_unfitted_detector_refuses_to_score_and_says_what_to_call(make: Callable, toy: Toy):
    detector = make(toy.head)
    for call in (detector, detector.score, detector.calibrate):
        with pytest.raises(NotFittedError, match=rf"{type(detector).__name__}.*\.fit\(train_features\)"):
            call(toy.test)


@pytest.mark.parametrize("name", sorted(MAKE.keys() - set(LEARNS)))
def test_a_detector_with_nothing_to_learn_scores_at_once(name: str, toy: Toy):
    fresh = MAKE[name](toy.head).score(toy.test)
    assert torch.equal(fresh, fitted(MAKE[name], toy).score(toy.test))


@few
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_with_nan_or_infinity_are_counted_over_the_whole_set(make: Callable, toy: Toy, value: float):
    detector = fitted(make, toy)
    field, before = detector.reads[0], state_of(detector)
    detector.chunk = 16
    for call, features in ((detector.score, toy.test), (detector.fit, toy.train), (detector.calibrate, toy.test)):
        with pytest.raises(ValueError, match=f"3 of {len(features)} rows of {field} hold NaN or infinity"):
            call(spoil(features, field, [0, 20, 59], value))
    assert same_state(detector.state_dict(), before)


@few
def test_no_rows_and_a_missing_field_are_named(make: Callable, toy: Toy):
    detector = fitted(make, toy)
    before = state_of(detector)
    for call in (detector.fit, detector.score, detector.calibrate):
        with pytest.raises(ValueError, match="0 samples"):
            call(toy.test[:0])
        with pytest.raises(ValueError, match=detector.reads[0]):
            call(Features(labels=toy.test.labels))
    assert same_state(detector.state_dict(), before)


@every
def test_a_detector_reads_only_what_it_says_it_reads(make: Callable, toy: Toy):
    detector = fitted(make, toy)
    only = Features(**{field: getattr(toy.test, field) for field in detector.reads})
    assert torch.equal(detector.score(only), detector.score(toy.test))


@every
@pytest.mark.parametrize("built_there", [False, True], ids=["built outside", "built there"])
def test_a_fit_in_inference_mode_leaves_tensors_like_any_other(make: Callable, toy: Toy, built_there: bool):
    plain = fitted(make, toy).calibrate(toy.val)
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


@few
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
    detector = fitted(make, toy)
    narrow = Features(penultimate=toy.test.penultimate[:, :31], logits=toy.test.logits[:, :3])
    with pytest.raises(ValueError, match=r"the features are (31|3) wide, but .* (32|4): take them all"):
        detector.score(narrow)


READS_LABELS = ["NNGuide", "SHE", "Mahalanobis", "RMDS", "GMM tied", "GMMPrior", "FeatureFlow classes", "HEAT"]


@pytest.mark.parametrize("name", READS_LABELS)
@pytest.mark.parametrize(
    "spoilt",
    [lambda y: y[:, None], lambda y: y.double(), lambda y: y == 1, lambda y: torch.where(y == 1, -1, y)],
    ids=["a column", "fractions", "truths", "one below 0"],
)
def test_labels_that_are_no_class_indices_are_refused(name: str, spoilt: Callable, toy: Toy):
    wrong = Features(toy.train.penultimate, toy.train.logits, spoilt(toy.train.labels))
    with pytest.raises(ValueError, match="labels"):
        MAKE[name](toy.head).fit(wrong)


@pytest.mark.parametrize("name", ["NNGuide", "SHE"])
def test_labels_beyond_the_logits_are_refused(name: str, toy: Toy):
    wrong = Features(toy.train.penultimate, toy.train.logits, toy.train.labels + 1)
    with pytest.raises(ValueError, match="labels run from 1 to 4, but the network knows the classes 0 to 3"):
        MAKE[name](toy.head).fit(wrong)


@every
def test_with_a_single_class_scores_still_differ_or_are_refused(make: Callable, toy: Toy):
    z, head = toy.train.penultimate, nn.Linear(UNITS, 1).double()
    torch.nn.init.constant_(head.weight, 0.1)
    one = Features(z, head(z).detach(), torch.zeros(len(z), dtype=torch.long))
    try:
        scores = make(head).fit(one).score(one)
    except ValueError as error:
        assert any(word in str(error) for word in ("single logit", "two classes", "two at least", "components"))
    else:
        assert scores.std() > 1e-6


# -- thresholds -------------------------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("tpr", [0.01, 0.29, 0.55, 0.95, 0.99])
def test_the_threshold_is_the_smallest_one_that_accepts_the_share_of_one_image_more(make, toy: Toy, tpr: float):
    detector = fitted(make, toy).calibrate(toy.val, tpr=tpr)
    scores, n = detector.score(toy.val), len(toy.val)
    assert (scores <= detector.threshold).sum() >= tpr * (n + 1)
    assert (scores < detector.threshold).sum() < tpr * (n + 1)
    assert torch.equal(detector.is_ood(toy.ood), detector.score(toy.ood) > detector.threshold)
    assert torch.equal(detector.calibration, scores.sort().values)


@few
def test_p_values_count_the_calibration_scores_and_decide_as_the_threshold_does(make: Callable, toy: Toy):
    detector = fitted(make, toy)
    for tpr in (0.1, 0.8, 0.95):
        detector.calibrate(toy.val, tpr)
        for features in (toy.test, toy.ood, toy.val):  # those of val tie with the calibration scores
            p, scores = detector.p_values(features), detector.score(features)
            known = detector.score(toy.val)
            counted = (1 + (known >= scores[:, None]).sum(1)) / torch.tensor(101.0, dtype=torch.float64)
            assert torch.equal(p, counted) and p.dtype == scores.dtype
            assert torch.equal(detector.is_ood(features), p <= 1 - tpr)


@few
def test_without_a_threshold_there_is_no_decision(make: Callable, toy: Toy):
    with pytest.raises(NotFittedError, match="calibrate"):
        fitted(make, toy).is_ood(toy.test)
    with pytest.raises(NotFittedError, match="calibrate"):
        fitted(make, toy).p_values(toy.test)


@every
def test_another_hyperparameter_forgets_the_threshold_and_the_same_one_does_not(make: Callable, toy: Toy):
    detector = fitted(make, toy).calibrate(toy.val)
    plain = {k: v for k, v in detector.arguments().items() if isinstance(v, int | float)}  # bool is an int
    for argument, value in plain.items():
        setattr(detector, argument, value)
        assert not detector.threshold.isnan(), argument
        setattr(detector, argument, not value if isinstance(value, bool) else value / 2 + 0.2)  # in [0, 1) where it was
        assert detector.threshold.isnan() and len(detector.calibration) == 0, argument
        setattr(detector, argument, value)
        detector.calibration = torch.arange(30.0)
        detector.threshold.fill_(1.0)


@few_learners
def test_a_new_fit_forgets_the_threshold_of_the_old_one(make: Callable, toy: Toy):
    detector = fitted(make, toy).calibrate(toy.val).fit(toy.val)
    for ask in (detector.is_ood, detector.p_values):
        with pytest.raises(NotFittedError, match="calibrate"):
            ask(toy.test)
    assert detector.calibration.numel() == 0


def warns_of_rows_seen(detector: Detector, features: Features) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector.calibrate(features)
    return any("fitted on rows that calibrate was given again" in str(w.message) for w in caught)


@pytest.mark.parametrize("name", CLOSED)
def test_a_threshold_of_rows_of_the_fit_is_warned_of(name: str, toy: Toy):
    assert warns_of_rows_seen(fitted(MAKE[name], toy), toy.train)
    assert not warns_of_rows_seen(fitted(MAKE[name], toy), toy.val)


def test_rows_of_the_fit_are_known_in_any_order_and_in_parts(toy: Toy):
    mixed = toy.train[torch.randperm(200, generator=seeded())]
    for rows in (mixed, mixed[:50]):
        assert warns_of_rows_seen(fitted(MAKE["KNN"], toy), rows)
    streamed = Mahalanobis().partial_fit(toy.train[:90]).merge(Mahalanobis().partial_fit(toy.train[90:]))
    assert warns_of_rows_seen(streamed, mixed[:80]) and not warns_of_rows_seen(streamed, toy.val)
    member = compose([KNN(k=5).fit(toy.val), MSP()], refit=False).fit(toy.train)
    assert warns_of_rows_seen(member, toy.val) and not warns_of_rows_seen(member, toy.test)
    assert not warns_of_rows_seen(MSP().fit(toy.val), toy.val)  # nothing was learnt
    again = KNN(k=5).fit(toy.val)
    again.load_state_dict(fitted(MAKE["KNN"], toy).state_dict())
    assert not warns_of_rows_seen(again, toy.val)
    assert warns_of_rows_seen(KNN(k=5).fit(cast(toy.val, torch.bfloat16)), cast(toy.val, torch.bfloat16))


def test_a_threshold_of_the_rows_of_the_fit_breaks_its_promise_and_one_of_the_other_half_keeps_it():
    def draw(n: int, seed: int) -> Features:
        labels = torch.arange(n) % 10
        return Features(logits=4 * torch.eye(10)[labels] + normal(n, 10, seed=seed).float(), labels=labels)

    same, halves = [], []
    for seed in range(0, 60, 2):
        val, test = draw(120, seed), draw(2000, seed + 1)
        lof = SklearnDetector(LocalOutlierFactor(n_neighbors=5, novelty=True))
        for found, first, second in ((same, val, val), (halves, val[:60], val[60:])):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(lof.fit(first).calibrate(second, 0.9).is_ood(test).double().mean().item())
    assert np.mean(same) > 0.15 and np.mean(halves) < 0.115


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.0, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_refused(toy: Toy, tpr: float):
    with pytest.raises(ValueError, match="tpr="):
        MSP().calibrate(toy.val, tpr=tpr)


# -- saving -----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_saved_state_makes_a_fresh_object_equal(make: Callable, toy: Toy, dtype: torch.dtype):
    toy = toy.to(dtype)
    detector = fitted(make, toy).calibrate(toy.val)
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    fresh = make(nn.Linear(UNITS, CLASSES).to(dtype))  # never fitted, and with another head
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.score(toy.test), detector.score(toy.test))
    assert torch.equal(fresh.threshold, detector.threshold)
    assert torch.equal(fresh.is_ood(toy.ood), detector.is_ood(toy.ood))
    assert torch.equal(fresh.p_values(toy.test), detector.p_values(toy.test))


LOGITS = ["MSP", "MaxLogit", "Energy", "GEN", "KLMatching", "ODIN", "JointEnergy", "SumProb", "SumLogit"]


@pytest.mark.parametrize("name", LOGITS)
def test_a_state_loads_into_a_detector_of_its_class_alone(name: str, toy: Toy):
    saved = fitted(MAKE[name], toy).calibrate(toy.val).state_dict()
    for other in LOGITS:
        fresh = MAKE[other](toy.head)
        before = state_of(fresh)
        if other == name:
            fresh.load_state_dict(saved)
            continue
        with pytest.raises(ValueError, match=f"the state is of {name}, and cannot be loaded into {other}"):
            fresh.load_state_dict(saved)
        with pytest.raises(ValueError, match="cannot be loaded"):  # nor inside another module
            nn.ModuleList([fresh]).load_state_dict({f"0.{key}": value for key, value in saved.items()})
        assert same_state(fresh.state_dict(), before)


OTHERWISE: dict[str, Callable[[nn.Linear], Detector]] = {
    "temperature=2.0": lambda head: Energy(temperature=2.0),
    "gamma=0.2": lambda head: GEN(gamma=0.2),
    "top=3": lambda head: JointEnergy(top=3),
    "k=9": lambda head: KNN(k=9),
    "normalize=false": lambda head: KNN(k=5, normalize=False),
    "fraction=0.5": lambda head: NNGuide(k=5, fraction=0.5),
    'metric="cosine"': lambda head: SHE(metric="cosine"),
    "dim=5": lambda head: ViM(head, dim=5),
    "percentile=0.8": lambda head: ReAct(head, percentile=0.8),
    'variant="p"': lambda head: ASH(head, variant="p"),
    'score={"function": "msp"}': lambda head: SCALE(head, score=msp),
    "components=3": lambda head: GMM(components=3),
    'covariance="full"': lambda head: GMM(covariance="full"),
    "ridge=0.01": lambda head: GMMPrior(ridge=0.01),
    "delta=2.0": lambda head: WeiPer(head, repeats=50, delta=2.0),
    "lambda1=1.0": lambda head: WeiPer(head, repeats=50, lambda1=1.0),
    "updates=7": lambda head: ResidualEBM(GMM(), **TRAINING | {"updates": 7}),
    "two_sided=true": lambda head: FeatureFlow(updates=4, check_every=2, two_sided=True),
    "beta=-2.0": lambda head: compose([Energy(temperature=0.5), KNN(k=5), GMM()], beta=-2.0),
    "n_neighbors=9": lambda head: SklearnDetector(LocalOutlierFactor(n_neighbors=9, novelty=True)),
}
USUAL: dict[str, Callable[[nn.Linear], Detector]] = {
    "Energy": lambda head: Energy(), "GEN": lambda head: GEN(), "JointEnergy": lambda head: JointEnergy(),
    "KNN": lambda head: KNN(k=5), "NNGuide": lambda head: NNGuide(k=5, fraction=1.0), "SHE": lambda head: SHE(),
    "ViM": lambda head: ViM(head), "ReAct": lambda head: ReAct(head), "ASH": lambda head: ASH(head),
    "SCALE": lambda head: SCALE(head), "GMM": lambda head: GMM(), "GMMPrior": lambda head: GMMPrior(),
    "WeiPer": lambda head: WeiPer(head, repeats=50), "ResidualEBM": lambda head: ResidualEBM(GMM(), **TRAINING),
    "FeatureFlow": lambda head: FeatureFlow(updates=4, check_every=2),
    "Composed": lambda head: compose([Energy(temperature=0.5), KNN(k=5), GMM()], beta=2.0),
    "SklearnDetector": MAKE["LOF"],
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_state_loads_into_a_detector_made_alike_alone(what: str, toy: Toy):
    other = OTHERWISE[what](toy.head)
    detector = USUAL[type(other).__name__](toy.head)
    with pytest.raises(ValueError, match=f"the state .*cannot be loaded into one with .*{re.escape(what)}"):
        other.load_state_dict(detector.state_dict())


@every
def test_a_state_knows_every_hyperparameter(make: Callable, toy: Toy):
    detector = make(toy.head)
    unknown = inspect.signature(type(detector)).parameters.keys() - detector.arguments().keys()
    # those of HEAT's hybrids, which know their own; the place of a file, and what looks on
    assert unknown <= {"options", "checkpoint", "each_look"}


def test_two_functions_of_one_name_are_two_hyperparameters(toy: Toy):
    made = [ASH(toy.head, score=lambda x, t=t: energy(x, t)) for t in (1.0, 1.0, 2.0)]
    made.append(ASH(toy.head, score=lambda x, t=1.0: max_logit(x)))
    made[1].load_state_dict(made[0].state_dict())
    for other in made[2:]:
        with pytest.raises(ValueError, match="is of ASH with score="):
            other.load_state_dict(made[0].state_dict())


def test_a_state_loads_into_members_made_alike_alone(toy: Toy):
    saved = compose([MSP(), compose([KNN(k=5), Energy()])]).fit(toy.train).state_dict()
    with pytest.raises(ValueError, match=r"the state is of Composed with detectors=.* cannot be loaded"):
        compose([MSP(), compose([KNN(k=6), Energy()])]).load_state_dict(saved)
    with pytest.raises(ValueError, match="has another prior: it is of GMM, and cannot be loaded into GMMPrior"):
        ResidualEBM(GMMPrior(), **TRAINING).load_state_dict(ResidualEBM(GMM(), **TRAINING).state_dict())


def test_a_state_that_does_not_say_what_it_is_of_is_refused(toy: Toy):
    saved = MSP().calibrate(toy.val).state_dict()
    del saved["_extra_state"]
    for strict in (True, False):
        with pytest.raises(ValueError, match="does not say of which detector it is"):
            MSP().load_state_dict(saved, strict=strict)


@pytest.mark.parametrize("name", [*LOGITS, "GradNorm", "ASH-B"])
def test_a_threshold_is_for_features_of_the_width_that_it_was_set_on(name: str, toy: Toy):
    detector = fitted(MAKE[name], toy).calibrate(toy.val)
    again = MAKE[name](toy.head)
    again.load_state_dict(detector.state_dict())
    z, logits = toy.test.penultimate, toy.test.logits
    other = Features(z[:, :31], torch.cat([logits, logits], 1))
    for ask in (detector.is_ood, again.p_values, again.score):
        with pytest.raises(ValueError, match=r"are (8|31) wide, but .* (4|32): take them all"):
            ask(other)
    if not detector.needs_fit and "penultimate" not in detector.reads:  # another network, another threshold
        assert again.calibrate(other).is_ood(other).shape == (60,)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_detector_is_one_file(make: Callable, toy: Toy, dtype: torch.dtype, tmp_path: Path):
    toy = toy.to(dtype)
    detector = fitted(make, toy).calibrate(toy.val)
    if isinstance(detector, MSMA):  # with a network that the library exports
        detector.norms.network = ood_lib.ScoreNetwork(3, (8, 16), sigma_range=(0.01, 2.0))
    detector.save(tmp_path / "detector.safetensors")
    random = torch.random.get_rng_state()
    again = ood_lib.load(tmp_path / "detector.safetensors")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert type(again) is type(detector) and same_state(again.state_dict(), detector.state_dict())
    for ask in ("score", "is_ood", "p_values"):
        assert torch.equal(getattr(again, ask)(toy.test), getattr(detector, ask)(toy.test))
    again.save(tmp_path / "again.safetensors")
    assert ood_lib.load(tmp_path / "again.safetensors").state_dict().keys() == detector.state_dict().keys()


def test_a_file_says_what_it_holds(toy: Toy, tmp_path: Path):
    KNN(k=5).fit(toy.train).save(tmp_path / "knn.safetensors")
    with safe_open(tmp_path / "knn.safetensors", "pt") as file:
        about = json.loads(file.metadata()["ood_lib"])
    arguments = {"k": 5, "normalize": True}
    assert about == {"detector": {"class": "KNN", "arguments": arguments}, "version": ood_lib.__version__}


def test_only_what_the_library_exports_is_made_again(toy: Toy, tmp_path: Path):
    class Own(MSP):
        pass

    file = tmp_path / "detector.safetensors"
    for detector, name in (
        (Own(), "Own"),
        (ASH(toy.head, score=lambda logits: -logits.amax(1)), "score=.*lambda"),
        (compose([MSP(), Own()]), "detectors=.*Own"),
        (MSMA(lambda x, sigma: -x), "network="),
        (FeatureFlow(nn.Identity()), "flow=.*Identity"),
    ):
        with pytest.raises(ValueError, match=f"cannot be made again from a file: .*{name}"):
            detector.save(file)
    assert not file.exists()
    detector = SCALE(toy.head, score=partial(energy, temperature=2.0))
    detector.save(file)
    assert torch.equal(ood_lib.load(file).score(toy.test), detector.score(toy.test))


@pytest.mark.parametrize(
    "made",
    [
        {"class": "os:system", "arguments": {"command": "false"}},
        {"other": "builtins:print"},
        {"class": "ImageFiles", "arguments": {"paths": []}},
        {"class": "nothing", "arguments": {}},
        {"class": "SklearnDetector", "arguments": {"estimator": {"estimator": "subprocess:Popen", "arguments": {}}}},
        {"class": "SklearnDetector", "arguments": {"estimator": {"estimator": "sklearn.utils:Bunch", "arguments": {}}}},
        {"class": "SCALE", "arguments": {"head": {"head": [2, 2]}, "score": {"function": "load"}, "percentile": 7}},
        {"class": "KNN", "arguments": {"neighbours": 5}},
        {"class": "KNN", "arguments": {"k": -1}},
        {"function": "energy"},
        "MSP",
        None,
    ],
    ids=str,
)
def test_a_file_that_names_anything_else_is_refused(made: Any, tmp_path: Path):
    file = tmp_path / "detector.safetensors"
    save_tensors(MSP().state_dict(), file, {"ood_lib": json.dumps({"detector": made, "version": "0.1.0"})})
    with pytest.raises(ValueError, match=r"detector\.safetensors"):
        ood_lib.load(file)


def test_a_file_that_is_none_of_a_detector_is_named(toy: Toy, tmp_path: Path):
    file = tmp_path / "detector.safetensors"
    with pytest.raises(FileNotFoundError, match=r"detector\.safetensors"):
        ood_lib.load(file)
    toy.train.save(file)
    with pytest.raises(ValueError, match="holds no detector"):
        ood_lib.load(file)
    MSP().save(file)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="holds no detector"):
        ood_lib.load(file)


# -- precision --------------------------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("change", ["half", "bfloat16", "float", "double"])
def test_a_detector_keeps_the_digits_that_it_learnt(make: Callable, toy: Toy, change: str):
    detector = fitted(make, toy).calibrate(toy.val)
    before = state_of(detector)
    getattr(detector, change)()
    assert same_state(detector.to(torch.float16).state_dict(), before)


@every
def test_scores_are_not_rounded_by_autocast(make: Callable, toy: Toy):
    toy = toy.to(torch.float32)
    plain = fitted(make, toy)
    scores = plain.score(toy.test)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain.score(toy.test), scores)
        assert torch.equal(make(toy.head).fit(toy.train).score(toy.test), scores)


SIZELESS = ["KNN", "SHE cosine", "GMMPrior", "FeatureFlow"]  # the length of a feature means nothing to them


@pytest.mark.parametrize("name", SIZELESS)
@pytest.mark.parametrize("size", [1e19, 1e30, 1e-19, 1e-30])
def test_directions_are_kept_in_features_of_any_size(name: str, toy: Toy, size: float):
    toy = toy.to(torch.float32)

    def sized(features: Features) -> Features:
        return Features(size * features.penultimate, features.logits, features.labels)

    detector = fitted(MAKE[name], toy)
    assert torch.allclose(detector.score(sized(toy.test)), detector.score(toy.test), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["KNN raw", "SHE euclidean"])
@pytest.mark.parametrize("size", [1e19, 1e30, 1e-19, 1e-30])
def test_distances_grow_with_features_of_any_size(name: str, toy: Toy, size: float):
    toy = toy.to(torch.float32)

    def sized(features: Features) -> Features:
        return Features(size * features.penultimate, features.logits, features.labels)

    plain = fitted(MAKE[name], toy).score(toy.test)
    scores = MAKE[name](toy.head).fit(sized(toy.train)).score(sized(toy.test))
    assert torch.allclose(scores / size, plain, rtol=1e-4)


@pytest.mark.parametrize("far", [1e6, 1e12, 1e18, 1e25])
def test_one_wild_training_row_does_not_blur_the_distances_to_the_others(far: float):
    z, queries = normal(200, 16, dtype=torch.float32), normal(50, 16, seed=1, dtype=torch.float32)
    wild = torch.cat([z, torch.full((1, 16), far)])
    exact = torch.cdist(queries.double(), z.double()).kthvalue(5).values
    found = KNN(k=5, normalize=False).fit(Features(wild)).score(Features(queries))
    assert torch.allclose(found.double(), exact, rtol=1e-5)


@every
def test_a_copy_has_its_own_life(make: Callable, toy: Toy):
    detector = fitted(make, toy)
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

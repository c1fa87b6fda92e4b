"""Laws of the moments: they add up, whatever the pieces; and of the detectors that learn from nothing else."""

import copy

import numpy as np
import pytest
import torch

from ood_lib import (
    FDBD,
    GMM,
    KNN,
    BenchmarkFeatures,
    Detector,
    Features,
    Mahalanobis,
    NotFittedError,
    compose,
    run_benchmark,
)
from ood_lib.detectors.moments import Moments, class_moments, gram, merge_moments, pooled
from ood_lib.detectors.streaming import MomentDetector
from ood_lib.evaluation.verdict import SetScores
from tests.conftest import Toy, normal
from tests.detectors.test_detector import MAKE, same_state, state_of

Z, LABELS = 3 + normal(90, 5), torch.arange(90) % 4
KINDS = ["none", "tied", "diagonal", "full"]
HEAD = torch.nn.Linear(32, 4)
STREAMS = [name for name, make in MAKE.items() if isinstance(make(HEAD), MomentDetector) and " EM" not in name]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_stream = pytest.mark.parametrize("make", [MAKE[name] for name in STREAMS], ids=STREAMS)


def close(a, b) -> bool:
    return all(x.shape == y.shape and torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in zip(a, b))


def test_moments_agree_with_numpy():
    own = [Z[LABELS == c].numpy() for c in range(4)]
    full = class_moments(Z, LABELS, "full")
    assert np.array_equal(full.counts, [len(z) for z in own])
    assert np.allclose(full.means, [z.mean(0) for z in own], rtol=1e-12)
    scatter = np.stack([np.cov(z.T, bias=True) * len(z) for z in own])
    assert np.allclose(full.scatter, scatter, rtol=1e-12)
    assert np.allclose(class_moments(Z, LABELS, "tied").scatter, scatter.sum(0), rtol=1e-12)
    assert np.allclose(class_moments(Z, LABELS, "diagonal").scatter, scatter.diagonal(0, 1, 2), rtol=1e-12)
    assert class_moments(Z, LABELS, "none").scatter.shape == (0,)


@every_kind
@pytest.mark.parametrize("cut", [1, 3, 45, 89])
def test_the_moments_of_two_parts_are_those_of_the_whole(kind: str, cut: int):
    a, b = (class_moments(Z[rows], LABELS[rows], kind) for rows in (slice(cut), slice(cut, None)))
    whole = class_moments(Z, LABELS, kind)
    assert close(merge_moments(a, b, kind), whole) and close(merge_moments(b, a, kind), whole)


@every_kind
def test_classes_that_one_part_has_not_seen_come_from_the_other(kind: str):
    order = LABELS.argsort(stable=True)
    parts = [class_moments(z, labels, kind) for z, labels in zip(Z[order].split(30), LABELS[order].split(30))]
    assert close(merge_moments(merge_moments(*parts[:2], kind), parts[2], kind), class_moments(Z, LABELS, kind))


@pytest.mark.parametrize("width", [1, 128, 129, 300, 515])
def test_half_of_the_products_are_enough(width: int):
    z = normal(20, width)
    assert torch.allclose(gram(z), z.T @ z, rtol=1e-12, atol=1e-12)


def test_pooled_moments_forget_the_classes():
    assert close(pooled(class_moments(Z, LABELS)), class_moments(Z, torch.zeros(90).long()))


def test_a_large_common_offset_costs_no_digits():
    # a sum of squares would have lost them all: 1e16 + 1 = 1e16
    pieces = [class_moments(1e8 + z, labels) for z, labels in zip(Z.split(9), LABELS.split(9))]
    total = pieces[0]
    for piece in pieces[1:]:
        total = merge_moments(total, piece)
    assert torch.allclose(total.scatter, class_moments(Z, LABELS).scatter, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [(LABELS - 1, "labels run from -1 to 2"), (LABELS[:50], r"\(50,\)"), (torch.zeros(90, 4), r"\(90, 4\)")],
)
def test_what_is_no_class_index_is_named(labels: torch.Tensor, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        class_moments(Z, labels)


def test_features_of_another_width_are_not_merged():
    with pytest.raises(ValueError, match="of 5 and of 4 features"):
        merge_moments(class_moments(Z, LABELS), class_moments(Z[:, :4], LABELS))


# -- detectors --------------------------------------------------------------------------------------------------


def parts(features: Features) -> list[Features]:
    return [features[:70], features[70:71], features[71:]]


@every_stream
def test_learning_in_pieces_is_learning_at_once(make, toy: Toy):
    whole, pieces = make(toy.head).fit(toy.train), make(toy.head)
    for part in parts(toy.train):
        assert pieces.partial_fit(part) is pieces
    assert torch.allclose(pieces.score(toy.test), whole.score(toy.test), rtol=1e-9, atol=1e-9)


@every_stream
def test_detectors_that_learned_apart_merge_into_one(make, toy: Toy):
    first, *others = (make(toy.head).partial_fit(part) for part in parts(toy.train))
    before = [state_of(other) for other in others]
    for other in others:
        assert first.merge(other) is first
    assert torch.allclose(first.score(toy.test), make(toy.head).fit(toy.train).score(toy.test), rtol=1e-9, atol=1e-9)
    assert all(same_state(state_of(other), state) for other, state in zip(others, before))


@every_stream
def test_merging_shares_no_memory_and_an_empty_detector_adds_nothing(make, toy: Toy):
    whole = make(toy.head).fit(toy.train)
    scores = whole.score(toy.test)
    copy = make(toy.head).merge(whole).merge(make(toy.head))
    assert torch.equal(copy.score(toy.test), scores)
    for buffer in copy.buffers():
        buffer.zero_()
    assert torch.equal(whole.score(toy.test), scores)


@every_stream
def test_half_learned_state_can_be_saved_and_taken_up_again(make, toy: Toy):
    first, second = toy.train[:90], toy.train[90:]
    resumed = make(toy.head)
    resumed.load_state_dict(make(toy.head).partial_fit(first).state_dict())
    scores = resumed.partial_fit(second).score(toy.test)
    assert torch.allclose(scores, make(toy.head).fit(toy.train).score(toy.test), rtol=1e-9, atol=1e-9)


@every_stream
def test_more_data_after_a_fit_adds_to_it_and_a_fit_starts_afresh(make, toy: Toy):
    more = make(toy.head).fit(toy.train[:90]).calibrate(toy.val).partial_fit(toy.train[90:])
    with pytest.raises(NotFittedError, match="calibrate"):
        more.is_ood(toy.test)
    whole = make(toy.head).fit(toy.train)
    assert torch.allclose(more.score(toy.test), whole.score(toy.test), rtol=1e-9, atol=1e-9)
    assert same_state(more.fit(toy.train).state_dict(), whole.state_dict())


def test_what_the_moments_mean_is_worked_out_once_and_when_it_is_asked_for(toy: Toy):
    class Counting(GMM):
        finished = 0

        def _finish(self, moments: Moments) -> None:
            super()._finish(moments)
            self.finished += 1

    detector, z = Counting(), toy.test.penultimate
    for part in parts(toy.train):
        detector.partial_fit(part)
    assert not detector.fitted and detector.finished == 0
    found = detector.log_prob(z)  # a density is asked for as a score is
    assert detector.fitted and torch.allclose(found, GMM().fit(toy.train).log_prob(z), rtol=1e-9)
    detector.calibrate(toy.val).is_ood(toy.test)
    detector.sample(3)
    assert detector.finished == 1
    assert Counting().merge(detector).sample(3).shape == (3, z.shape[1])


def streamed(toy: Toy) -> Mahalanobis:
    detector = Mahalanobis()
    for part in parts(toy.train):
        detector.partial_fit(part)
    return detector


def test_what_was_learnt_in_pieces_is_judged_and_composed_as_it_is(toy: Toy):
    other = BenchmarkFeatures(toy.val, toy.val, toy.test, {}, {"far": toy.ood})
    whole = Mahalanobis().fit(toy.train).score(toy.test)

    def kept(detector: Detector) -> bool:
        return torch.allclose(detector.score(toy.test), whole, rtol=1e-9, atol=1e-9)

    judged, scored, merged = streamed(toy), streamed(toy), Mahalanobis().merge(streamed(toy))
    assert judged.ready and merged.ready and not Mahalanobis().ready
    for detector in (judged, merged):
        run_benchmark({"it": detector}, other, refit=False)
        assert kept(detector)
    SetScores.of(scored, other)
    assert kept(scored)
    assert kept(compose([streamed(toy)], refit=False).fit(toy.val).detectors[0])


def test_a_class_may_come_later_but_not_never(toy: Toy):
    detector = Mahalanobis().partial_fit(toy.train[toy.train.labels != 1])
    with pytest.raises(ValueError, match=r"none of class \[1\]"):
        detector.score(toy.test)
    detector.partial_fit(toy.train[toy.train.labels == 1])
    assert torch.allclose(detector.score(toy.test), Mahalanobis().fit(toy.train).score(toy.test), rtol=1e-9)


def test_only_detectors_of_one_make_are_merged(toy: Toy):
    detector: Detector
    for detector in (MAKE["RMDS"](toy.head), KNN()):
        with pytest.raises(ValueError, match=r"cannot be merged into Mahalanobis\(\)"):
            Mahalanobis().merge(detector)


def test_detectors_with_different_heads_are_not_merged(toy: Toy):
    other = copy.deepcopy(toy.head)
    other.bias.data += 1
    first, second = (FDBD(head).partial_fit(toy.train) for head in (toy.head, other))
    with pytest.raises(ValueError, match="has another head"):
        first.merge(second)


def test_bad_pieces_are_refused_and_change_nothing(toy: Toy):
    detector = Mahalanobis().fit(toy.train)
    before = state_of(detector)
    with pytest.raises(ValueError, match="0 samples"):
        detector.partial_fit(toy.train[:0])
    with pytest.raises(ValueError, match="cannot be merged"):
        detector.partial_fit(Features(penultimate=toy.train.penultimate[:, :5], labels=toy.train.labels))
    assert same_state(state_of(detector), before)


def test_an_image_of_several_labels_counts_once_for_each():
    labels = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    z = Z[:6]
    rows, classes = labels.nonzero(as_tuple=True)
    single = Mahalanobis().fit(Features(penultimate=z[rows], labels=classes))
    several = Mahalanobis().fit(Features(penultimate=z, labels=labels))
    assert close(several.moments, single.moments)
    assert torch.allclose(several.score(Features(penultimate=Z)), single.score(Features(penultimate=Z)))
    pieces = Mahalanobis().partial_fit(Features(penultimate=z[:2], labels=labels[:2]))
    assert close(pieces.partial_fit(Features(penultimate=z[2:], labels=labels[2:])).moments, several.moments)


@pytest.mark.parametrize(
    ("labels", "said"), [(torch.eye(90, 3) * 2, "hold 2"), (torch.eye(90, 3), "none of class|constant|covariance")]
)
def test_a_label_matrix_is_checked(labels: torch.Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        Mahalanobis().fit(Features(penultimate=Z, labels=labels.long()))

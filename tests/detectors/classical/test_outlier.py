"""Laws of the adapter: it says what scikit-learn says, with the sign turned, and outlives pickle."""

import io

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ood_lib import Features, SklearnDetector
from tests.conftest import Toy, normal

FOREST = IsolationForest(n_estimators=20, random_state=0)
LOF = LocalOutlierFactor(n_neighbors=10, novelty=True)


@pytest.mark.parametrize("estimator", [LOF, KernelDensity(bandwidth=0.5)])
def test_it_is_the_estimator_with_the_sign_turned(estimator, toy: Toy):
    known, new = toy.val.logits.numpy(), toy.test.logits.numpy()
    expected = -estimator.fit(known).score_samples(new)
    assert np.allclose(SklearnDetector(estimator).fit(toy.val).score(toy.test), expected, rtol=1e-9)


def test_the_estimator_that_was_given_stays_unfitted(toy: Toy):
    forest = IsolationForest(n_estimators=5, random_state=0)
    SklearnDetector(forest).fit(toy.val).score(toy.test)
    assert not hasattr(forest, "estimators_")


@pytest.mark.parametrize("estimator", [LOF, FOREST])
def test_a_state_that_is_loaded_replaces_the_former_fit(estimator, toy: Toy):
    detector, other = (
        SklearnDetector(estimator).fit(toy.val),
        SklearnDetector(estimator).fit(Features(logits=normal(50, 4))),
    )
    other.score(toy.test)  # fitted, and to be forgotten
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.score(toy.test), detector.score(toy.test))


def test_it_reads_the_field_that_it_is_told(toy: Toy):
    on_features = SklearnDetector(LOF, "penultimate").fit(toy.val)
    assert on_features.reads == ("penultimate",)
    assert torch.equal(on_features.score(toy.test), on_features.score(Features(penultimate=toy.test.penultimate)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SklearnDetector(LocalOutlierFactor()), "novelty=True"),
        (lambda: SklearnDetector(IsolationForest()), "random_state=0"),
        (
            lambda: SklearnDetector(make_pipeline(StandardScaler(), IsolationForest())),
            "isolationforest__random_state=0",
        ),
        (lambda: SklearnDetector(FOREST, "labels"), "field='labels'"),
    ],
)
def test_what_cannot_score_or_repeat_itself_is_refused(make, said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_what_cannot_be_fitted_fails_in_the_fit_and_changes_nothing(toy: Toy):
    detector = SklearnDetector(LOF).fit(toy.val)
    before = detector.score(toy.test)
    detector.estimator = LocalOutlierFactor(n_neighbors=-3, novelty=True)
    with pytest.raises(ValueError, match="n_neighbors"):
        detector.fit(toy.train)
    assert torch.equal(detector.score(toy.test), before)


def test_the_reference_is_sorted_by_the_first_column_first():
    rows = normal(50, 3).round()
    assert SklearnDetector(LOF).fit(Features(logits=rows)).reference.tolist() == sorted(rows.tolist())

"""Laws of the list of classical detectors: it is complete, in order, and fits what it is given."""

import pytest

import ood_lib
from ood_lib import BenchmarkFeatures, run_benchmark
from ood_lib.detectors.classical.recipes import FAMILIES, classical_detectors
from tests.conftest import Toy


def test_the_list_is_the_families_without_odin(toy: Toy):
    names = [name for members in FAMILIES.values() for name in members]
    assert list(classical_detectors(toy.head, toy.train)) == [n for n in names if n != "ODIN"]
    assert all(hasattr(ood_lib, name) for name in names)


@pytest.mark.parametrize("rows", [4, 8, 200])
def test_even_a_tiny_training_set_will_do_for_every_neighbour(toy: Toy, rows: int):
    for detector in (d for n, d in classical_detectors(toy.head, toy.train[:rows]).items() if n in ("KNN", "NNGuide")):
        assert detector.fit(toy.train[:rows]).score(toy.test).isfinite().all()


def test_all_of_them_find_the_toy_easy(toy: Toy):
    features = BenchmarkFeatures(toy.train, toy.val, toy.test, {}, {"ood": toy.ood}, toy.head)
    table = run_benchmark(classical_detectors(toy.head, toy.train), features)
    area = table[table["metric"] == "auroc"].set_index("detector")["value"]
    assert (area > 0.9).all(), area

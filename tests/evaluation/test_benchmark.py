"""Laws of the benchmark: one tidy row per number, fitted on ID training features and on nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student
from torch.utils.data import TensorDataset

from ood_lib import (
    KNN,
    MSP,
    BenchmarkFeatures,
    Detector,
    Energy,
    Features,
    ResNet,
    evaluate,
    extract,
    extract_benchmark,
    group_auroc,
    run_benchmark,
    summarize,
)
from tests.conftest import Toy, cast, seeded

COLUMNS = ["detector", "ood_set", "group", "metric", "value", "low", "high", "seed"]
COLUMNS += ["seconds", "seconds_per_1000", "memory_mb"]


class Oracle(Detector):
    """Reads the answer off the labels."""

    reads = ("labels",)
    needs_fit = False

    def _score(self, features: Features) -> torch.Tensor:
        return (features.labels == -1).double()


class Diary(Detector):
    """Remembers whom it met, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[str, list[Features]] = {"fit": [], "score": []}

    def _fit(self, features: Features) -> None:
        self.met["fit"].append(features)

    def score(self, features: Features) -> torch.Tensor:
        self.met["score"].append(features)
        return super().score(features)

    def _score(self, features: Features) -> torch.Tensor:
        return features.penultimate[:, 0]


@pytest.fixture(scope="module")
def features(toy: Toy) -> BenchmarkFeatures:
    ood = toy.ood
    return BenchmarkFeatures(
        toy.train, toy.val, toy.test, {"a": ood[:20], "b": ood[20:30]}, {"a": ood[30:], "c": ood[10:25]}
    )


def test_the_table_is_tidy(features: BenchmarkFeatures):
    table = run_benchmark({"MSP": MSP(), "cold": Energy(0.1)}, features, seed=7)
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 4 * 4
    assert not table.duplicated(["detector", "ood_set", "group", "metric"]).any()
    assert set(zip(table["group"], table["ood_set"])) == {("near", "a"), ("near", "b"), ("far", "a"), ("far", "c")}
    assert set(table["metric"]) == {"auroc", "fpr95", "aupr_in", "aupr_out"}
    assert (table["seed"] == 7).all() and (table["seconds"] > 0).all()
    assert table.groupby("detector")["seconds"].nunique().eq(1).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


@pytest.mark.parametrize("positive", ["id", "ood"])
def test_every_row_is_what_evaluate_says(features: BenchmarkFeatures, positive: str):
    table = run_benchmark({"MSP": MSP()}, features, positive=positive).set_index(["group", "ood_set", "metric"])
    for group, sets in features.groups().items():
        for name, ood in sets.items():
            metrics = evaluate(MSP().score(features.test), MSP().score(ood), positive=positive)
            for row in metrics.rows():
                found = table.loc[(group, name, row["metric"])]
                assert (found["value"], found["low"], found["high"]) == (row["value"], row["low"], row["high"])


def test_a_perfect_detector_is_perfect(features: BenchmarkFeatures):
    table = run_benchmark({"oracle": Oracle()}, features).set_index("metric")["value"]
    assert table["auroc"].eq(1).all() and table["fpr95"].eq(0).all()
    assert table["aupr_in"].eq(1).all() and table["aupr_out"].eq(1).all()


def test_detectors_are_fitted_on_id_training_features_only(features: BenchmarkFeatures):
    diary = Diary()
    run_benchmark({"diary": diary}, features)
    assert [f is features.train for f in diary.met["fit"]] == [True]
    scored = [features.test, *features.near.values(), *features.far.values()]
    assert [a is b for a, b in zip(diary.met["score"], scored, strict=True)] == [True] * 5


def test_a_benchmark_without_near_sets_has_no_near_rows(toy: Toy):
    table = run_benchmark({"MSP": MSP()}, BenchmarkFeatures(toy.train, toy.val, toy.test, {}, {"c": toy.ood}))
    assert set(table["group"]) == {"far"}


def test_a_table_without_rows_has_its_columns_all_the_same_and_summarize_says_what_is_lacking(toy: Toy):
    nobody = run_benchmark({}, BenchmarkFeatures(toy.train, toy.val, toy.test, {}, {"c": toy.ood}))
    with pytest.warns(UserWarning, match="there is none; of a folder:PATH"):
        nothing = run_benchmark({"MSP": MSP()}, BenchmarkFeatures(toy.train, toy.val, toy.test, {}, {}))
    for table in (nobody, nothing):
        assert list(table.columns) == COLUMNS and len(table) == 0
        with pytest.raises(ValueError, match=r"no detector was given, or an AUROC compares.*PATH/near/NAME/"):
            summarize(table)


def test_extract_benchmark_extracts_every_set():
    def images(n: int, seed: int) -> TensorDataset:
        return TensorDataset(torch.rand(n, 1, 8, 8, generator=seeded(seed)), torch.zeros(n).long())

    network = ResNet(1, 2, (4,)).eval()
    sets = SimpleNamespace(
        name="toy", classes=(), notes=(),
        train=images(5, 0), val=images(4, 1), test=images(3, 2), near={"a": images(2, 3)}, far={"b": images(6, 4)}
    )  # fmt: skip
    found = extract_benchmark(network, sets, device="cpu", progress=False, batch_size=2)
    for one, data in (
        (found.train, sets.train),
        (found.val, sets.val),
        (found.test, sets.test),
        (found.near["a"], sets.near["a"]),
        (found.far["b"], sets.far["b"]),
    ):
        assert torch.allclose(one.logits, extract(network, data, device="cpu", progress=False).logits, atol=1e-6)
    assert found.groups() == {"near": found.near, "far": found.far}


# -- summaries --------------------------------------------------------------------------------------------------


def numbers(seeds: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = [
        {"detector": d, "ood_set": s, "group": g, "metric": m, "value": random.uniform(0.5, 1), "seed": seed}
        for seed in range(seeds)
        for d in ("one", "two")
        for g, sets in (("near", "ab"), ("far", "xyz"))
        for s in sets
        for m in ("auroc", "fpr95")
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("metric", ["auroc", "fpr95"])
def test_a_summary_is_the_mean_over_sets_with_students_interval_over_seeds(metric: str):
    table = numbers(seeds=5)
    summary = summarize(table, metric).set_index(["detector", "group"])
    assert list(summary.columns) == ["value", "low", "high", "seeds"]
    assert len(summary) == 4
    for (detector, group), row in summary.iterrows():
        here = (table["detector"] == detector) & (table["group"] == group) & (table["metric"] == metric)
        chosen = table[here]
        means = [chosen[chosen["seed"] == seed]["value"].mean() for seed in range(5)]
        half = student.ppf(0.975, 4) * np.std(means, ddof=1) / 5**0.5
        assert row["value"] == pytest.approx(np.mean(means))
        assert row["low"] == pytest.approx(np.mean(means) - half)
        assert row["high"] == pytest.approx(min(np.mean(means) + half, 1))
        assert row["seeds"] == 5


def test_a_single_seed_has_no_interval():
    summary = summarize(numbers(seeds=1))
    assert summary["value"].notna().all() and summary[["low", "high"]].isna().all().all()


def test_detectors_keep_their_order_and_intervals_stay_in_0_to_1():
    table = numbers(seeds=2)
    assert list(dict.fromkeys(summarize(table)["detector"])) == ["one", "two"]
    assert list(dict.fromkeys(summarize(table[::-1])["detector"])) == ["two", "one"]
    table["value"] = np.where(table["seed"] == 0, 1.0, 0.9)
    assert summarize(table)["high"].eq(1).all() and summarize(table)["low"].ge(0).all()


def test_a_network_that_is_there_twice_is_refused_and_named():
    table = numbers(seeds=2)
    again = table[(table["seed"] == 1) & (table["detector"] == "two") & (table["ood_set"] == "x")]
    with pytest.raises(ValueError, match=r"more than once: auroc of 'two' on 'x', seed 1\. .* seed of its own"):
        summarize(pd.concat([table, again]))
    four = table[(table["seed"] == 0) & (table["detector"] == "one")]
    with pytest.raises(ValueError, match=r"more than once: .* on 'x', seed 0 and 2 more\."):
        summarize(pd.concat([table, four]))


def test_means_over_different_sets_are_no_summary():
    table = numbers(seeds=2)
    at = (table["detector"] == "two") & (table["seed"] == 1) & (table["ood_set"] == "x") & (table["metric"] == "auroc")
    lost = table.assign(value=table["value"].where(~at))  # not a number is as good as not there
    for fewer in (table[~at], lost):
        with pytest.raises(ValueError, match=r"'two' was not judged on \['x'\] with seed 1; means over other sets"):
            summarize(fewer)
        assert len(summarize(fewer, "fpr95")) == 4
    assert len(summarize(table[table["detector"].eq("one") | table["group"].eq("far")])) == 3  # no near set at all


def test_the_same_set_may_be_near_and_far_and_judged_by_several_metrics():
    table = numbers(seeds=2)
    table["ood_set"] = table["ood_set"].replace({"x": "a"})
    assert len(summarize(table)) == 4


def test_an_unknown_metric_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"metric='accuracy'.*\['auroc', 'fpr95'\]"):
        summarize(numbers(1), "accuracy")


# ------------------------------------------------------------------------------------------------ banks


def equal(a: Features, b: Features) -> bool:
    return a.tensors().keys() == b.tensors().keys() and all(
        torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items()
    )


def test_a_bank_gives_back_what_was_saved(features: BenchmarkFeatures, toy: Toy, tmp_path: Path):
    with_head = replace(features, head=toy.head)
    with_head.save(tmp_path, network="toy")
    kept = BenchmarkFeatures.load(tmp_path)
    for role in ("train", "val", "test"):
        assert equal(getattr(kept, role), getattr(features, role))
    assert list(kept.near) == ["a", "b"] and list(kept.far) == ["a", "c"]
    assert all(equal(kept.far[name], x) for name, x in features.far.items())
    assert torch.equal(kept.head(toy.test.penultimate), toy.head(toy.test.penultimate))
    assert json.loads((tmp_path / "benchmark.json").read_text())["about"] == {"network": "toy"}


def test_half_a_bank_comes_back_in_single_precision(features: BenchmarkFeatures, tmp_path: Path):
    BenchmarkFeatures(*(cast(x, torch.float16) for x in (features.train, features.val, features.test)), {}, {}).save(
        tmp_path
    )
    kept = BenchmarkFeatures.load(tmp_path)
    assert kept.train.penultimate.dtype == torch.float32 and kept.head is None


def test_a_bank_that_is_not_complete_or_was_changed_is_refused(features: BenchmarkFeatures, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no benchmark"):
        BenchmarkFeatures.load(tmp_path)
    features.save(tmp_path)
    file = tmp_path / "far/c.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"#")
    with pytest.raises(ValueError, match=r"far/c\.safetensors.*copy it again"):
        BenchmarkFeatures.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="missing"):
        BenchmarkFeatures.load(tmp_path)


def test_a_recipe_that_learns_from_validation_images_gets_them(features: BenchmarkFeatures):
    diary = Diary()
    diary.fits = "val"
    run_benchmark({"diary": diary}, features)
    assert diary.met["fit"] == [features.val]


def test_costs_are_those_of_the_detector(features: BenchmarkFeatures):
    table = run_benchmark({"MSP": MSP()}, features)
    assert (table["seconds_per_1000"] > 0).all()
    images = sum(map(len, (features.test, *features.near.values(), *features.far.values())))
    assert (table["seconds_per_1000"] * images / 1000 <= table["seconds"]).all()


def test_without_refit_a_fitted_detector_is_judged_as_it_is_and_the_others_are_fitted(toy):
    x = BenchmarkFeatures(toy.train, toy.val, toy.test, {}, {"far": toy.ood})
    other = replace(x, train=x.train[:20])
    ready, fresh = KNN(k=5).fit(other.train), KNN(k=5)
    table = run_benchmark({"ready": ready, "fresh": fresh}, x, refit=False)
    assert len(ready.bank) == 20 and len(fresh.bank) == len(x.train)
    assert set(table["detector"]) == {"ready", "fresh"}
    run_benchmark({"ready": ready}, x)
    assert len(ready.bank) == len(x.train)


class Broken(Energy):
    """Fails in the middle of the work."""

    def _score(self, features: Features) -> torch.Tensor:
        raise RuntimeError("no more memory")


def test_one_detector_that_fails_is_named_and_the_others_keep_their_rows(features: BenchmarkFeatures):
    with pytest.warns(UserWarning, match=r"'bad' is left out .* RuntimeError: no more memory"):
        table = run_benchmark({"MSP": MSP(), "bad": Broken(), "Energy": Energy()}, features)
    alone = run_benchmark({"MSP": MSP(), "Energy": Energy()}, features)
    columns = COLUMNS[:8]
    pd.testing.assert_frame_equal(table[columns], alone[columns])


def test_where_all_detectors_fail_the_error_is_raised(features: BenchmarkFeatures):
    with pytest.raises(RuntimeError, match="no more memory"):
        run_benchmark({"bad": Broken()}, features)


def test_group_means_are_those_of_the_table_and_a_group_without_a_set_has_none(features: BenchmarkFeatures):
    table = summarize(run_benchmark({"KNN": KNN(k=5)}, features)).set_index("group")["value"]
    assert group_auroc(KNN(k=5).fit(features.train), features) == pytest.approx(table.to_dict())
    only_far = group_auroc(MSP(), replace(features, near={}))
    assert np.isnan(only_far["near"]) and 0 <= only_far["far"] <= 1


def test_detectors_without_names_are_refused(features: BenchmarkFeatures):
    with pytest.raises(ValueError, match="expected detectors by name"):
        run_benchmark([MSP()], features)

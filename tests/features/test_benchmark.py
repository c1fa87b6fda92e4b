"""Laws of `benchmark_features`: one call trains and extracts, or loads, and what it gives is what its parts give."""

import pytest
import torch

import ood_lib as ood
from ood_lib.data.benchmark import load_benchmark
from ood_lib.shipped import BANKS, SHIPPED
from ood_lib.tensors import dequantized, quantized

RECIPE = {"widths": [4, 8], "device": "cpu", "epochs": 2, "progress": False}


def same(a, b):
    return all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


# -- images -------------------------------------------------------------------------------------------------------


def test_it_is_training_and_extraction_by_hand():
    bench = load_benchmark("digits")
    torch.manual_seed(3)
    network = ood.network_for(bench, [4, 8])
    history = ood.train_classifier(
        network, bench.train, val=bench.val, epochs=2, learning_rate=0.05, seed=3, device="cpu", progress=False,
        augment=lambda images, generator: ood.shift(images, 1, generator),
    )  # fmt: skip
    by_hand = ood.extract_benchmark(network, bench, device="cpu", progress=False)
    (x,) = ood.benchmark_features("digits", seed=3, **RECIPE)
    assert same(x.test, by_hand.test) and same(x.far["photos"], by_hand.far["photos"])
    assert x.history == history and x.accuracy == ood.accuracy(network, bench.test, device="cpu")
    assert (x.name, x.classes, x.notes) == (bench.name, bench.classes, bench.notes)


def test_each_network_has_a_seed_of_its_own_whatever_was_drawn_before():
    torch.manual_seed(0)
    a, b = ood.benchmark_features("digits", 2, seed=1, **RECIPE)
    (again,) = ood.benchmark_features("digits", seed=2, **RECIPE)
    assert same(b.test, again.test) and not same(a.test, b.test)


def test_a_trained_network_is_found_again_and_only_that_one(tmp_path, monkeypatch):
    def give(seed=0, **changed):
        (x,) = ood.benchmark_features("digits", seed=seed, cache=tmp_path, **RECIPE | changed)
        return x

    first = give()
    trained = list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("ood_lib.training.classifier.run", None)  # whoever trained again would call it
        again = give()
    assert same(first.test, again.test) and first.history == again.history and not again.network.training
    for seed, changed in ((1, {}), (0, {"epochs": 1}), (0, {"widths": [4, 4]}), (0, {"learning_rate": 0.01})):
        give(seed, **changed)
    assert len(list(tmp_path.iterdir())) == len(trained) + 4 == 5


def test_a_benchmark_of_images_gets_a_network_to_train():
    bench = load_benchmark("digits")
    network = ood.network_for(bench, [4, 8])
    assert network.head.in_features == 8 and network.head.out_features == len(bench.classes)
    assert network.normalize is bench.normalize and all(p.requires_grad for p in network.parameters())


# -- banks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_that_ships_is_complete_small_and_says_where_it_is_from(name):
    (x,) = ood.benchmark_features(name, 3)
    assert x.images is None and x.network is None and x.near and x.far
    assert len(x.classes) == x.head.out_features == x.train.logits.shape[1]
    right = {"cifar10-densenet": 0.94, "cifar10-resnet56": 0.93, "cifar10-resnet9": 0.93, "cifar100-densenet": 0.75}
    assert x.accuracy == pytest.approx(right[name], abs=0.015)
    assert {"command", "versions", "data", "rounding"} <= x.about.keys()
    assert "licence" in x.about or name == "cifar10-resnet9"
    assert sum(file.stat().st_size for file in (SHIPPED / name).rglob("*.*")) < 12e6


def test_the_bank_with_several_labels_ships_features_and_no_head():
    x = ood.load_bank("voc-mobilenetv2")
    whole = [x.train, x.val, x.test]
    assert sum(map(len, whole)) == 1901 and {part.labels.shape[1] for part in whole} == {len(x.classes)} == {20}
    assert all(part.labels.sum(1).min() >= 1 and part.labels.max() == 1 for part in whole)
    assert x.head is None and x.train.logits is None and x.train.penultimate.min() == 0
    assert {name: len(z) for name, z in (x.near | x.far).items()} == {"imagenet": 157, "textures": 600}
    assert x.about["licence"] == "Apache-2.0" and {"command", "weights", "data", "rounding"} <= x.about.keys()
    with pytest.raises(ValueError, match="has no head"):
        ood.benchmark_features(f"bank:{SHIPPED / 'voc-mobilenetv2'}")


def test_further_networks_of_a_bank_lie_beside_it(tmp_path):
    (x,) = ood.benchmark_features("digits", **RECIPE)
    for name in ("mine", "mine-seed1", "mine-seed3"):
        x.save(tmp_path / name, network=name)
    found = ood.benchmark_features(f"bank:{tmp_path / 'mine'}", 3)
    assert [one.about["network"] for one in found] == ["mine", "mine-seed1"]
    assert [one.name for one in found] == ["mine", "mine-seed1"] and found[0].classes == x.classes
    assert same(found[0].test, x.test)


def test_some_rows_of_a_bank_are_rows_of_it_and_as_many_of_each_class():
    name = "cifar100-densenet"
    (whole,), (some,) = ood.benchmark_features(name), ood.benchmark_features(name, rows=700)
    for a, b in zip([whole.train, whole.val, *whole.near.values()], [some.train, some.val, *some.near.values()]):
        assert len(b) == 700 and set(map(bytes, b.logits.numpy())) <= set(map(bytes, a.logits.numpy()))
        assert not b.labels.unique(return_counts=True)[1].sub(700 // len(b.labels.unique())).any()
    assert same(some.far["textures"], whole.far["textures"])  # which has no 700
    assert some.head is not None and some.about == whole.about
    assert some.accuracy == pytest.approx(whole.accuracy, abs=0.05)


def test_the_former_name_of_the_bank_still_leads_to_it():
    (old,), (new,) = ood.benchmark_features("cifar10-bank"), ood.benchmark_features("cifar10-resnet9")
    assert same(old.test, new.test)


def test_wrong_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match="networks=0 was given; expected how many networks, an integer, networks >= 1"):
        ood.benchmark_features("digits", 0)
    with pytest.raises(ValueError, match="rows=0 was given; expected how many of each set"):
        ood.benchmark_features("cifar10-resnet56", rows=0)
    with pytest.raises(ValueError, match="unknown benchmark 'digit'"):
        ood.benchmark_features("digit")
    with pytest.raises(FileNotFoundError, match=r"holds no benchmark\.json"):
        ood.benchmark_features(f"bank:{tmp_path}")
    (x,) = ood.benchmark_features("digits", **RECIPE)
    ood.BenchmarkFeatures(x.train, x.val, x.test, {}, {}).save(tmp_path)
    with pytest.raises(ValueError, match="has no head"):
        ood.benchmark_features(f"bank:{tmp_path}")
    with pytest.raises(ValueError, match="needs the head"):
        ood.BenchmarkFeatures(x.train, x.val, x.test, {}, {}).save("never", precision="uint8")
    bare = ood.Features(x.test.penultimate, labels=x.test.labels)
    ood.BenchmarkFeatures(bare, bare, bare, {}, {}).save(tmp_path / "bare", precision="uint8")
    assert ood.load_bank("bare", tmp_path).test.logits is None


# -- one byte a number --------------------------------------------------------------------------------------------


def test_a_number_moves_by_half_a_step_at_most_and_zeros_of_rectified_features_stay():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 7, generator=draw) * torch.logspace(-3, 3, 7)
    rectified, constant, labels = x.relu(), torch.full((200, 2), 3.7), torch.arange(200)
    tensors = {"x": x, "rectified": rectified, "constant": constant, "labels": labels}
    packed = quantized(tensors)
    back = dequantized(packed)
    assert packed["x"].dtype == torch.uint8 and back.keys() == tensors.keys()
    step = (x.amax(0) - x.amin(0)) / 255
    assert ((back["x"] - x).abs() <= 0.501 * step).all()
    assert ((back["rectified"] == 0) | (rectified > 0)).all() and torch.equal(back["constant"], constant)
    assert torch.equal(back["labels"], labels)

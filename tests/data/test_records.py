"""Laws of records: what a trained network left of images stands in their place, and nothing downstream can tell."""

import pytest
import torch

import ood_lib as ood
from ood_lib.data.records import Records

K, C = 6, 3


def features(rows, style=True, classes=C):
    draw = torch.Generator().manual_seed(rows)
    labels = torch.arange(rows) % classes if classes else torch.full((rows,), -1)
    z, s = 5 * torch.rand(2, rows, K, generator=draw)
    return ood.Features(penultimate=z, style=s if style else None, logits=z[:, :C], labels=labels)


def save(folder, style=True, head=None):
    known = [features(rows, style) for rows in (30, 12, 9)]
    unknown = {"a": features(5, style, 0)}, {"b": features(7, style, 0)}
    ood.BenchmarkFeatures(*known, *unknown, head or torch.nn.Linear(K, C)).save(folder, classes=["x", "y", "z"])
    return ood.BenchmarkFeatures.load(folder)


def sets(x):
    return [x.train, x.val, x.test, *x.near.values(), *x.far.values()]


@pytest.mark.parametrize("style", [True, False])
def test_extraction_from_a_bank_gives_what_was_recorded(tmp_path, style):
    saved = save(tmp_path, style)
    bench = ood.load_benchmark(f"bank:{tmp_path}")
    seen = ood.extract_benchmark(ood.network_for(bench), bench, device="cpu", progress=False)
    assert (list(seen.near), list(seen.far), bench.classes) == (["a"], ["b"], ("x", "y", "z"))
    for one, other in zip(sets(seen), sets(saved), strict=True):
        assert torch.equal(one.penultimate, other.penultimate) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.style, other.style) if style else one.style is None
        assert torch.allclose(one.logits, saved.head(other.penultimate))
    assert torch.equal(seen.head.weight, saved.head.weight)


def test_the_bank_that_ships_is_a_benchmark():
    bench, bank = ood.load_benchmark("cifar10-bank"), ood.load_bank("cifar10-bank")
    network = ood.network_for(bench)
    seen = ood.extract(network, bench.test, device="cpu", progress=False)
    assert torch.equal(seen.penultimate, bank.test.penultimate) and torch.equal(seen.style, bank.test.style)
    assert (seen.logits - bank.test.logits).abs().max() < 0.1  # recorded in half precision
    right = (bank.test.logits.argmax(1) == bank.test.labels).double().mean().item()
    assert ood.accuracy(network, bench.test) == pytest.approx(right, abs=2e-3)
    assert not any(p.requires_grad for p in network.parameters())
    assert bench.image_shape == bench.far["svhn"][0][0].shape and "records" in repr(bench)


def test_a_benchmark_of_images_gets_a_network_to_train():
    bench = ood.load_benchmark("digits")
    network = ood.network_for(bench, [4, 8])
    assert bench.head is None and network.head.in_features == 8 and network.head.out_features == len(bench.classes)
    assert network.normalize is bench.normalize and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("units", "shape"), [(7, (1, 1, 7)), (12, (1, 3, 4)), (64, (1, 8, 8))])
def test_every_width_is_a_picture(units, shape):
    rows = torch.randn(4, units)
    pictures = Records.of({"penultimate": rows})
    assert pictures.images.shape[1:] == shape and torch.equal(pictures.images.flatten(1), rows)
    assert pictures.labels.tolist() == [-1] * 4
    assert torch.equal(pictures.subset(torch.tensor([2, 0])).images, pictures.images[[2, 0]])


def test_what_is_no_bank_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no benchmark\.json"):
        ood.load_benchmark(f"bank:{tmp_path}")
    save(tmp_path)
    file = tmp_path / "near/a.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not the file that was saved"):
        ood.load_benchmark(f"bank:{tmp_path}")
    known = [features(rows) for rows in (30, 12, 9)]
    ood.BenchmarkFeatures(*known, {}, {}).save(tmp_path / "headless")
    with pytest.raises(ValueError, match="has no head"):
        ood.load_benchmark(f"bank:{tmp_path / 'headless'}")

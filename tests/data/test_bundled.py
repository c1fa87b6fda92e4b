"""Laws of what scikit-learn carries: digits and scenes are complete, disjoint, and the same everywhere."""

import hashlib
import sys
import time

import numpy as np
import pytest
import torch

from ood_lib.data.benchmark import load_benchmark
from ood_lib.data.bundled import BANDS, bundled_scenes
from ood_lib.features.extract import extract
from ood_lib.networks.resnet import ResNet


@pytest.fixture(scope="module")
def digits():
    return load_benchmark("digits")


@pytest.fixture(scope="module")
def scenes():
    return load_benchmark("scenes")


# --------------------------------------------------------------------------- digits


def test_digits_roles_and_counts(digits):
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [696, 189, 379]
    assert list(digits.near) == ["digits7-9"] and len(digits.near["digits7-9"]) == 533
    assert list(digits.far) == ["photos", "inverted", "rotated", "blurred", "noise"]
    assert digits.classes == tuple("0123456") and digits.image_shape == (1, 8, 8)


def test_digits_items(digits):
    known = (digits.train, digits.val, digits.test)
    for dataset in (*known, *digits.near.values(), *digits.far.values()):
        image, label = dataset[0]
        assert image.dtype == torch.float32 and image.shape == (1, 8, 8) and isinstance(label, int)
        assert 0 <= dataset.images.min() and dataset.images.max() <= 1
        assert set(dataset.labels.tolist()) == (set(range(7)) if dataset in known else {-1})


def test_digits_are_the_same_every_time(digits):
    again = load_benchmark("digits")
    for name in ("train", "val", "test"):
        assert getattr(digits, name).fingerprint() == getattr(again, name).fingerprint()
    for mine, other in ((digits.near, again.near), (digits.far, again.far)):
        assert [d.fingerprint() for d in mine.values()] == [d.fingerprint() for d in other.values()]


def test_digits_splits_are_those_of_yesterday(digits):
    """Pinned, so that a change of numpy or scikit-learn that moves an image does not go unseen."""
    pixels = (digits.test.images * 16).round().byte().numpy()
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "da8b6f4a1a185c52"


def test_digits_splits_are_disjoint_and_stratified(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    where = {image.tobytes(): i for i, image in enumerate(raw.images.astype(np.float32) / 16)}
    indices = [{where[i.numpy().tobytes()] for i in s.images[:, 0]} for s in (digits.train, digits.val, digits.test)]
    assert len(set.union(*indices)) == sum(map(len, indices)) == (raw.target < 7).sum()
    for dataset, share in ((digits.train, 0.55), (digits.val, 0.15), (digits.test, 0.30)):
        counts = torch.bincount(dataset.labels) / torch.from_numpy(np.bincount(raw.target)[:7])
        assert (counts - share).abs().max() < 0.01
    near = {where[i.numpy().tobytes()] for i in digits.near["digits7-9"].images[:, 0]}
    assert set(raw.target[list(near)]) == {7, 8, 9} and len(near) == 533


@pytest.mark.parametrize("name", ["photos", "inverted", "rotated", "blurred", "noise"])
def test_far_digits_are_not_degenerate(digits, name):
    images = digits.far[name].images
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) >= 300
    assert images.flatten(1).std(1).min() > 0.02  # no blank image
    assert images.std(0).mean() > 0.05  # nor the same image over and over


def test_far_digits_are_what_their_names_say(digits):
    test, far = digits.test, {name: s.images for name, s in digits.far.items()}
    assert torch.equal(far["inverted"], 1 - test.images)
    upright = far["rotated"].flip(2).transpose(2, 3)  # a quarter turn back, written differently
    assert torch.equal(upright, test.images[test.labels > 0])
    assert (far["noise"].mean() - 0.5).abs() < 0.01 and (far["noise"].var() - 1 / 12).abs() < 0.002
    neighbours = [torch.stack([x[..., 1:].flatten(), x[..., :-1].flatten()]).corrcoef()[0, 1] for x in far.values()]
    assert neighbours[0] > 0.5 and neighbours[3] > 0.8 and abs(neighbours[4]) < 0.02  # photographs are smooth


def test_blur_takes_the_class_away(digits):
    def accuracy(images):
        nearest = torch.cdist(images.flatten(1), digits.train.images.flatten(1)).argmin(1)
        return (digits.train.labels[nearest] == digits.test.labels).float().mean()

    assert accuracy(digits.test.images) > 0.97 and accuracy(digits.far["blurred"].images) < 0.5


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"ood_lib\[plots\]"):
        load_benchmark("digits")


# --------------------------------------------------------------------------- scenes


def test_scenes_roles_and_counts(scenes):
    assert [len(s) for s in (scenes.train, scenes.val, scenes.test)] == [2400, 400, 800]
    assert list(scenes.near) == ["digits7-9"] and list(scenes.far) == ["backgrounds", "photos", "inverted", "gratings"]
    assert scenes.classes == tuple("0123456") and scenes.image_shape == (3, 32, 32)
    assert all(s.labels.eq(-1).all() and s.labels.ndim == 1 for s in (*scenes.near.values(), *scenes.far.values()))


def test_scenes_show_one_to_three_digits_of_every_class(scenes):
    for dataset in (scenes.train, scenes.val, scenes.test):
        assert dataset.labels.shape == (len(dataset), 7)
        assert set(dataset.labels.sum(1).tolist()) == {1, 2, 3}
        assert dataset.labels.float().mean(0).sub(0.26).abs().max() < 0.08  # two of seven, some of them twice


def test_scenes_are_those_of_yesterday(scenes):
    """Made in float64 and kept as bytes: no machine may draw them otherwise."""
    sets = [scenes.train, scenes.val, scenes.test, *scenes.near.values(), *scenes.far.values()]
    digest = hashlib.sha256("".join(s.fingerprint() for s in sets).encode()).hexdigest()
    assert digest[:16] == "49949b14378fcdfc"


def test_a_digit_is_lighter_than_what_it_stands_before(scenes):
    """Its cell holds the brightest pixels: without digits no canvas exceeds 0.6, with them every one does."""
    assert scenes.far["backgrounds"].images.max() <= 0.6 + 1 / 255
    for dataset in (scenes.train, scenes.near["digits7-9"]):
        assert dataset.images.amax((1, 2, 3)).min() > 0.6


def test_hands_belong_to_one_split(monkeypatch):
    """A stretch of the file left blank: one split loses its digits, all of them, and no other loses any."""
    from ood_lib.data import bundled

    digits, classes = bundled._digits()
    digits[988:1258] = 0
    monkeypatch.setattr(bundled, "_digits", lambda: (digits, classes))
    dark = [data.images.amax((1, 2, 3)).le(0.6 + 1 / 255).float().mean().item() for data in bundled_scenes().known]
    assert dark == [0, 1, 0]


def test_strips_of_photographs_belong_to_one_split(monkeypatch):
    from ood_lib.data import bundled

    monkeypatch.setattr(bundled, "_photographs", lambda: [torch.arange(640).expand(1, 3, 427, 640)])
    columns = torch.cat([torch.cat(bundled._strips(split), 3)[0, 0, 0].unique() for split in BANDS])
    assert torch.equal(columns.sort().values, torch.arange(640.0, dtype=torch.float64))


def test_file_order_of_the_digits_goes_from_hand_to_hand():
    """The look-alike of a digit stands near it far oftener than chance would have it: neighbours share a hand."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.data)
    apart = torch.cdist(x, x).fill_diagonal_(torch.inf)
    apart[torch.from_numpy(raw.target[:, None] != raw.target)] = torch.inf
    gaps = (apart.argmin(1) - torch.arange(len(x))).abs()
    assert (gaps < 140).float().mean() > 3 * 140 / len(x) * 2


def test_far_scenes_are_what_their_names_say(scenes):
    test, far = scenes.test.images, {name: s.images for name, s in scenes.far.items()}
    assert (far["inverted"] - (1 - test)).abs().max() < 1e-6
    assert far["photos"].amax((1, 2, 3)).median() > 0.7 > far["backgrounds"].amax((1, 2, 3)).max()
    spectrum = torch.fft.rfft2(far["gratings"] - far["gratings"].mean((2, 3), keepdim=True)).abs().square().flatten(2)
    assert (spectrum.topk(8, 2).values.sum(2) / spectrum.sum(2)).median() > 0.8  # a single wave
    assert all(len(torch.unique(x.flatten(1), dim=0)) == len(x) for x in far.values())


def test_scenes_go_through_extract(scenes, tmp_path):
    network = ResNet(3, 7, widths=(4, 8), normalize=scenes.normalize)
    seen = [extract(network, scenes.val, batch_size=150, cache=tmp_path, progress=False) for _ in range(2)]
    assert torch.equal(seen[0].labels, scenes.val.labels) and torch.equal(seen[1].labels, scenes.val.labels)
    assert seen[0].logits.shape == (400, 7) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name, seconds", [("digits", 1), ("scenes", 5)])
def test_bundled_sets_are_quick(name, seconds):
    start = time.process_time()
    load_benchmark(name)
    assert time.process_time() - start < seconds

"""Laws of augmentation: what each change may do to an image, and that a seed says which it does."""

import pytest
import torch

from ood_lib import augmented, cutout, flip, shift
from tests.conftest import normal, seeded

IMAGES = normal(200, 3, 8, 6, dtype=torch.float32).abs() + 0.1  # never zero


CHANGES = [lambda x, g: shift(x, 2, g), flip, lambda x, g: cutout(x, 3, g), augmented(2, hole=3)]


@pytest.mark.parametrize("change", CHANGES)
def test_the_seed_decides_and_the_images_stay(change):
    before = IMAGES.clone()
    a, b, c = change(IMAGES, seeded(0)), change(IMAGES, seeded(0)), change(IMAGES, seeded(1))
    assert a.shape == IMAGES.shape and a.dtype == IMAGES.dtype
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(IMAGES, before)


def test_a_flip_is_the_image_or_its_mirror_image_half_of_the_time_each():
    flipped = flip(IMAGES, seeded())
    same, mirrored = ((flipped == x).flatten(1).all(1) for x in (IMAGES, IMAGES.flip(-1)))
    assert (same ^ mirrored).all() and 0.35 < mirrored.float().mean() < 0.65


@pytest.mark.parametrize("side", [1, 3, 6])
def test_a_hole_is_one_square_of_zeros_inside_the_image(side: int):
    holes = cutout(IMAGES, side, seeded()) == 0
    assert (holes == holes[:, :1]).all()  # the same in all channels
    assert (holes[:, 0].sum((1, 2)) == side * side).all()
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert (rows == side).all() and (columns == side).all()
    assert (cutout(IMAGES, side, seeded())[~holes] == IMAGES[~holes]).all()


def test_a_hole_falls_everywhere():
    assert (cutout(IMAGES, 3, seeded()) == 0).any(0).all()


def test_a_shift_moves_by_whole_pixels_and_lets_zeros_in():
    moved = shift(IMAGES, 1, seeded())
    padded = torch.nn.functional.pad(IMAGES, (1, 1, 1, 1))
    views = torch.stack([padded[:, :, i : i + 8, j : j + 6] for i in range(3) for j in range(3)])
    hits = (views == moved).flatten(2).all(2)  # (9, N)
    assert (hits.sum(0) == 1).all() and hits.any(1).all()  # one of nine each, and all nine occur


def test_no_change_at_all_can_be_asked_for():
    assert torch.equal(augmented(0, mirror=False)(IMAGES, seeded()), IMAGES)

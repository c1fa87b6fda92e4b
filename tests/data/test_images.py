"""Laws of picture sets: what a tensor holds, what a frame does, what is refused."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from ood_lib.data.images import ImageArray, ImageFiles, ImageFormat, divide
from ood_lib.data.pictures import find_pictures


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_batches_equal_single_items():
    dataset = ImageArray(draw(7, 12, 9, 3), np.arange(7), ImageFormat(1, 8))
    batches = list(DataLoader(dataset, batch_size=3))
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.stack([x for x, _ in dataset]))
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(7))
    assert torch.equal(dataset.images, torch.cat([x for x, _ in batches]))
    assert torch.equal(dataset[-1][0], dataset[6][0])
    with pytest.raises(IndexError):
        dataset[7]


def test_several_labels_are_a_row(tmp_path):
    labels = torch.eye(3, dtype=torch.long)[[0, 2, 1, 1]]
    dataset = ImageArray(draw(4, 8, 8), labels)
    assert torch.equal(dataset[1][1], labels[1]) and torch.equal(dataset.subset(torch.tensor([2])).labels, labels[2:3])
    assert torch.equal(torch.cat([y for _, y in DataLoader(dataset, batch_size=3)]), labels)
    assert dataset.fingerprint() != ImageArray(draw(4, 8, 8), labels.flip(1)).fingerprint()
    assert torch.equal(ImageArray(draw(4, 8, 8), labels.bool().numpy()).labels, labels)


def test_a_stretched_frame_cuts_nothing_off():
    marked = np.zeros((1, 40, 80), np.uint8)
    marked[:, :, :8] = marked[:, :, -8:] = 255
    cut, whole = (ImageArray(marked, frame=ImageFormat(1, 20, stretch=s)).images[0, 0] for s in (False, True))
    assert whole.shape == cut.shape == (20, 20)
    assert cut.max() == 0 and whole[:, [0, 1, -2, -1]].min() > 0.8 and whole[:, 4:-4].max() == 0
    square = draw(1, 20, 20)
    assert torch.equal(*(ImageArray(square, frame=ImageFormat(1, 20, stretch=s)).images for s in (False, True)))


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.6, 0.1, 0.3)])
def test_parts_are_disjoint_complete_and_stratified(shares):
    labels = torch.arange(300) % 3
    parts = divide(labels, shares)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(300))
    for part, share in zip(parts, shares, strict=True):
        assert torch.bincount(labels[part]).tolist() == [round(100 * share)] * 3
    whole = divide(torch.eye(3, dtype=torch.long)[labels], shares)
    assert torch.equal(torch.cat(whole).sort().values, torch.arange(300))
    other = divide(labels, shares, seed=1)
    assert [len(part) for part in other] == [len(part) for part in parts]
    assert not torch.equal(other[0], parts[0]) and torch.equal(divide(labels, shares, seed=0)[0], parts[0])
    with pytest.raises(ValueError, match="too few"):
        divide(torch.arange(2), (0.9, 0.1))


def test_images_of_one_content_come_into_one_part_and_count_once():
    labels, keys = torch.arange(60) % 2, [str(i // 2 % 10 * 2 + i % 2) for i in range(60)]  # 10 of each class, thrice
    parts = divide(labels, (0.6, 0.4), contents=keys)
    found = [{keys[i] for i in part.tolist()} for part in parts]
    assert [len(part) for part in parts] == [36, 24] and not found[0] & found[1]
    assert [sum(int(key) % 2 for key in part) for part in found] == [6, 4]
    apart = divide(labels, (0.6, 0.4), contents=[f"{i:02}" for i in range(60)])
    assert all(torch.equal(a, b) for a, b in zip(apart, divide(labels, (0.6, 0.4))))


def test_contents_are_equal_where_pictures_are(tmp_path):
    raw = draw(3, 8, 8, 3)
    array = ImageArray(raw[[0, 1, 0, 2]]).contents()
    assert array[0] == array[2] and len(set(array)) == 3
    for i, k in enumerate((0, 1, 0, 2)):
        Image.fromarray(raw[k]).save(tmp_path / f"{i}.bmp")  # all of one size
    files = ImageFiles(tmp_path, [f"{i}.bmp" for i in range(4)]).contents()
    assert files[0] == files[2] and len(set(files)) == 3


def test_values_are_bytes_over_255():
    pixels = draw(2, 4, 4, 3)
    expected = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    assert torch.equal(ImageArray(pixels).images, expected)
    assert torch.equal(ImageArray(expected).images, expected)
    assert torch.equal(ImageArray(pixels[..., 0]).images, expected[:, :1])
    pixels.setflags(write=False)
    assert torch.equal(ImageArray(pixels[::-1], np.arange(2)[::-1]).images, expected.flip(0))


def test_grey_is_repeated_and_colour_is_weighted():
    grey = ImageArray(draw(2, 8, 8), frame=ImageFormat(3, 8)).images
    assert grey.shape == (2, 3, 8, 8) and torch.equal(grey[:, 0], grey[:, 2])
    pixels = draw(1, 8, 8, 3)
    luma = np.asarray(Image.fromarray(pixels[0]).convert("L"))
    assert np.abs(ImageArray(pixels, frame=ImageFormat(1, 8)).images[0, 0].numpy() * 255 - luma).max() < 1


@pytest.mark.parametrize("height, width", [(64, 64), (50, 91), (91, 50), (20, 33), (32, 40)])
def test_frame_is_the_rule_of_torchvision_on_pillow(height, width):
    from torchvision.transforms import v2

    pixels = np.asarray(Image.fromarray(draw(9, 9, 3)).resize((width, height), Image.Resampling.BICUBIC))
    rule = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.PILToTensor()])
    expected = rule(Image.fromarray(pixels)).float()
    mine = ImageArray(pixels[None], frame=ImageFormat(3, 32, 40)).images[0] * 255
    assert mine.shape == (3, 32, 32) and (mine - expected).abs().max() < 1.5  # Pillow rounds twice


def test_a_frame_that_would_cut_out_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match=r"resize=200.*size of 224: the crop would be larger"):
        ImageFormat(3, 224, 200)
    with pytest.raises(ValueError, match="stretched, not cropped"):
        ImageFormat(3, 224, 256, stretch=True)
    assert ImageFormat(3, 224, 224)(torch.rand(1, 3, 300, 260)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    "images, labels, says",
    [
        (draw(2, 4, 4, 2), None, "expected uint8"),
        (draw(2, 4), None, "expected uint8"),
        (np.zeros((2, 4, 4), np.int64), None, "int64"),
        (np.zeros((0, 4, 4), np.uint8), None, "shape"),
        (np.full((2, 1, 4, 4), 255.0), None, "divide"),
        (np.full((2, 1, 4, 4), np.nan), None, "lie in"),
        (draw(2, 4, 4), np.arange(3), r"\(2,\)"),
        (draw(2, 4, 4), np.full((2, 5), 2), "hold 2; expected 0"),
        (draw(2, 4, 4), np.array([0.5, 1.0]), "integers"),
    ],
)
def test_wrong_arrays_are_refused(images, labels, says):
    with pytest.raises(ValueError, match=says):
        ImageArray(images, labels)


def test_fingerprint_of_arrays_follows_content():
    pixels, labels = draw(4, 8, 8), np.arange(4)
    one = ImageArray(pixels, labels).fingerprint()
    assert one == ImageArray(pixels.copy(), labels).fingerprint()
    changed = pixels.copy()
    changed[3, 7, 7] ^= 1
    others = [
        ImageArray(changed, labels),
        ImageArray(pixels, labels[::-1].copy()),
        ImageArray(pixels, labels, ImageFormat(3, 8)),
        ImageArray(pixels, labels).subset(torch.arange(3)),
        ImageArray(pixels.reshape(4, 4, 16), labels),
    ]
    assert len({one, *(other.fingerprint() for other in others)}) == 6


def test_fingerprint_of_files_follows_the_folder(tmp_path):
    def fingerprint(last="2.png"):
        return ImageFiles(tmp_path, ["0.png", "1.png", last]).fingerprint()

    for i in range(3):
        save_picture(tmp_path / f"{i}.png", draw(8, 8, 3, seed=i))
    first = fingerprint()
    assert first == fingerprint()
    save_picture(tmp_path / "1.png", draw(9, 8, 3))
    second = fingerprint()
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    third = fingerprint("3.png")
    os.utime(tmp_path / "3.png", (1, 1))  # rewritten with the same size
    assert len({first, second, third, fingerprint("3.png")}) == 4


def test_files_and_arrays_give_the_same_tensors(tmp_path):
    kinds = {"colour.png": draw(9, 12, 3), "grey.png": draw(9, 12)}
    for name, values in kinds.items():
        save_picture(tmp_path / name, values)
        files, array = ImageFiles(tmp_path, [name]), ImageArray(values[None])
        assert torch.equal(files.images, array.images)
        files.frame = array.frame = ImageFormat(3, 8)
        assert torch.equal(files.images, array.images)
    files = ImageFiles(tmp_path, list(kinds), [1, 0], ImageFormat(1, 8), ("a", "b"))
    turned = files.subset(torch.tensor([1, 0]))
    assert turned.labels.tolist() == [0, 1] and turned.classes == ("a", "b")
    assert torch.equal(ImageFiles(str(tmp_path), list(kinds), frame=ImageFormat(1, 8)).images, files.images)
    assert torch.equal(turned.images, files.images.flip(0))


def test_sixteen_bits_and_damaged_pictures_are_named(tmp_path):
    save_picture(tmp_path / "deep.png", np.full((20, 20), 5000, np.uint16))
    save_picture(tmp_path / "cut.png", draw(50, 20, 3))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    found = ImageFiles(tmp_path, ["deep.png", "cut.png", "gone.png"])
    with pytest.raises(ValueError, match=r"deep\.png.*8 bits"):
        found[0]
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        found[1]
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        found[2]


# -- folders as people have them --------------------------------------------------------------------------------------


def test_what_pillow_opens_is_a_picture_and_the_rest_is_named_and_counted(tmp_path):
    kinds = {"jfif": "jpeg", "jpe": "jpeg", "gif": "gif", "tga": "tga", "jp2": "jpeg2000", "pbm": "ppm", "PNG": "png"}
    for ending, kind in kinds.items():
        Image.fromarray(draw(16, 16, 3)).convert("1" if ending == "pbm" else "RGB").save(tmp_path / f"a.{ending}", kind)
    for name in ("b.heic", "c.heic", "d.raw", "e", "notes.txt", "labels.csv", "Thumbs.db", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"4 files in .* are left out") as heard:
        names = find_pictures(tmp_path, tell=True)
    assert names == sorted(f"a.{ending}" for ending in kinds) and len(heard) == 1
    assert all(part in str(heard[0].message) for part in ("2 .heic", "1 .raw", "1 without an ending"))
    assert ImageFiles(tmp_path, names, frame=ImageFormat(3, 16)).images.shape == (len(kinds), 3, 16, 16)


@pytest.mark.parametrize("litter", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "#recycle", "lost+found"])
@pytest.mark.parametrize("depth", ["", "a", "a/b"])
def test_what_systems_leave_is_no_picture_at_any_depth(tmp_path, litter: str, depth: str):
    save_picture(tmp_path / "a/b/0.png", draw(8, 8))
    save_picture(tmp_path / depth / litter / "0.png", draw(8, 8))
    save_picture(tmp_path / depth / litter / "deeper" / "0.png", draw(8, 8))
    assert find_pictures(tmp_path) == [os.path.join("a", "b", "0.png")]


def test_links_are_followed_once_and_not_back(tmp_path):
    for name in ("set/cat/0.png", "set/cat/deep/1.png", "set/dog/2.png", "elsewhere/3.png"):
        save_picture(tmp_path / name, draw(8, 8))
    cat = tmp_path / "set/cat"
    for name, target in {"up": "..", "self": ".", "out": "../..", "deep/round": "../../cat", "dogs": "../dog",
                         "far": "../../elsewhere", "far2": "../../elsewhere"}.items():  # fmt: skip
        (cat / name).symlink_to((cat / name).parent / target, target_is_directory=True)
    with pytest.warns(UserWarning, match="6 links in .*set/cat lead to what is found already"):
        names = find_pictures(cat, tmp_path / "set", tell=True)
    assert names == ["0.png", os.path.join("deep", "1.png"), os.path.join("far", "3.png")]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_read_as_it_is_shown(tmp_path, turn: int):
    tag = Image.Exif()
    tag[274] = turn
    pixels = draw(12, 20, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tag)
    with Image.open(tmp_path / "a.png") as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))
    read = ImageFiles(tmp_path, ["a.png"]).images[0]
    assert torch.equal(read, torch.tensor(shown).permute(2, 0, 1) / 255)
    assert read.shape[1:] == ((12, 20) if turn < 5 else (20, 12))


def test_a_picture_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    save_picture(tmp_path / "map.png", draw(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match=r"map\.png has more pixels than Pillow opens.*MAX_IMAGE_PIXELS"):
        _ = ImageFiles(tmp_path, ["map.png"]).images


def test_labels_in_a_column_are_refused():
    with pytest.raises(ValueError, match=r"labels are a column, of shape \(4, 1\).*labels\[:, 0\]"):
        ImageArray(draw(4, 8, 8), np.array([[0], [1], [1], [0]]))
    one = ImageArray(draw(4, 8, 8), np.array([[0], [1], [1], [0]]), classes=["cat"])
    assert one.subset(torch.tensor([1])).labels.tolist() == [[1]]

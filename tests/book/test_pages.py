"""Laws of the pages on data: what they show runs, what they quote is said, what they list is there."""

import copy
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ood_lib as ood
from ood_lib.data.download import ORIGINS, PUBLISHED
from ood_lib.data.protocols import PROTOCOLS
from ood_lib.training.recipes import card
from tests.data.test_annotations import table
from tests.data.test_images import draw, save_picture
from tests.data.test_locate import save_arrays

BOOK = Path(__file__).parents[2] / "book"
SPLITS = (("train", 12), ("val", 10), ("test", 4))


def page(name):
    return (BOOK / name).read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def somebody(tmp_path, monkeypatch):
    """A folder as a reader would have it: pictures in two layouts, arrays, and a trained network."""
    torchvision = pytest.importorskip("torchvision")
    for split, count in SPLITS:
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                save_picture(tmp_path / "pictures" / split / name / f"{i}.png", draw(70, 80, 3, seed=100 * label + i))
        (tmp_path / "labelled" / split).mkdir(parents=True)
        table(tmp_path / "labelled" / split, [("a.png", 1, 0), ("b.png", 1, 1), ("c.png", 0, 0)])
    for label, name in enumerate(("cat", "dog")):
        for i in range(10):
            save_picture(tmp_path / "photos" / name / f"{i}.png", draw(70, 80, 3, seed=100 * label + i))
    for place in ("pictures/near/fox", "pictures/far/car", "labelled/far/car"):
        for i in range(3):
            save_picture(tmp_path / place / f"{i}.png", draw(90, 70, 3, seed=900 + i))
    save_picture(tmp_path / "new.jpg", draw(100, 120, 3))
    np.save(tmp_path / "pixels.npy", draw(5, 66, 66, 3))
    np.save(tmp_path / "labels.npy", np.arange(5) % 2)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_for_your_own_data_runs_in_order(somebody, capsys):
    pytest.importorskip("timm")
    names = {}
    for block in blocks(page("own-data.md")):
        exec(compile(block, "own-data.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"train +folder:pictures +24", said) and "fox: AUROC" in said and "car: AUROC" in said
    assert ("\nout of distribution" if names["refuse"] else "\nin distribution") in said
    assert names["p"] in [pytest.approx(k / 21, abs=1e-6) for k in range(1, 22)]  # of 20 held out, and itself
    assert names["refuse"] == (names["p"] <= 0.05)
    assert re.search(r"train +folder:photos-split +14", said)
    assert re.findall(r"note: (.*):", said) == ["no OOD set in photos-split"]
    assert names["several"].train.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert len(names["bench"].train) == 24 and len(list(Path("features").iterdir())) == 5


@pytest.fixture(scope="module")
def trained():
    """A network that knows the digits, and the benchmark."""
    torch.manual_seed(0)
    bench = ood.load_benchmark("digits")
    network = ood.network_for(bench)
    ood.train_classifier(network, bench.train, epochs=5, learning_rate=0.05, device="cpu", progress=False)
    return network, bench


def accuracy_blocks(network, bench):
    """What the page's section on the accuracy makes of a network, from the accuracy to the mended head."""
    names = {"ood": ood, "np": np, "pd": pd, "torch": torch, "count": len(bench.classes)}
    names |= {"network": network, "bench": bench}
    found = blocks(page("own-data.md").split("## Check the accuracy")[1].split("\n## ")[0])
    for block in found[:2]:
        exec(block, names)
    return names["accuracy"], names["matrix"], lambda order: exec(found[2], names | {"list": lambda _: order})


def test_another_order_of_classes_shows_in_the_matrix_and_is_mended_as_the_page_says(trained):
    network, bench = copy.deepcopy(trained[0]), trained[1]
    right, matrix, _ = accuracy_blocks(network, bench)
    assert right > 0.95 and matrix.idxmax(axis=1).tolist() == [*bench.classes]
    moved = [3, 0, 6, 1, 2, 4, 5]  # no class stays
    with torch.no_grad():
        network.head.weight.copy_(network.head.weight[moved])
        network.head.bias.copy_(network.head.bias[moved])
    accuracy, matrix, mend = accuracy_blocks(network, bench)
    assert accuracy < 1 / 7 and len(set(matrix.idxmax(axis=1))) == 7
    assert (matrix.max(axis=1) / matrix.sum(axis=1)).min() > 0.8
    mend([bench.classes[k] for k in moved])
    assert accuracy_blocks(network, bench)[0] == right


@pytest.mark.parametrize("fault", ["twice", "not at all", "0 to 255"])
def test_pixels_of_another_scale_show_in_a_few_columns_as_the_page_says(trained, fault):
    network, bench = copy.deepcopy(trained[0]), trained[1]
    once = network.normalize
    network.normalize = {
        "twice": torch.nn.Sequential(once, once),
        "not at all": torch.nn.Identity(),
        "0 to 255": torch.nn.Sequential(ood.Normalize([0.0], [1 / 255]), once),
    }[fault]
    accuracy, matrix, _ = accuracy_blocks(network, bench)
    assert accuracy < 0.6 and matrix.sum().nlargest(2).sum() > 0.75 * len(bench.val)


def test_turning_the_first_layer_reads_colours_in_the_other_order():
    model = pytest.importorskip("torchvision").models.resnet18(weights=None, num_classes=2).eval()
    pixels = torch.rand(2, 3, 64, 64)
    expected = model(pixels.flip(1))  # what a training with OpenCV showed it
    line = re.search(r"`(model\.conv1\.weight\.data = .*?)`", page("own-data.md").replace("\n  ", " "))[1]
    exec(line, {"model": model})
    assert (model(pixels) - expected).abs().max() < 1e-5


def messages():
    """What fails, one thing for each row of the table of messages."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2))
    features = ood.Features(penultimate=torch.rand(10, 3))
    unsigned = torch.utils.data.TensorDataset(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2))
    softened = torch.nn.Sequential(*model, torch.nn.Softmax(1))

    def change(path, act):
        def load():
            act(Path(path))
            ood.load_benchmark(f"folder:{path.split('/')[0]}")

        return load

    def cut(path):
        path.write_bytes(path.read_bytes()[:50])
        ood.extract(model, ood.load_benchmark("folder:pictures", image_size=64).train, progress=False)

    def flattened(path):
        for split in ("train", "val", "test"):
            (path / split).rename(path / f"no {split}")

    return [
        change("pictures/val/dog", lambda path: path.rename(path.with_name("dug"))),
        change("labelled/val/labels.csv", lambda path: path.write_text("image,cat,dog\na.png,2,0\n")),
        change("labelled/val/labels.csv", lambda path: path.write_text("image,cat,dog\nz.png,1,0\n")),
        change("pictures/train/dog/1.png", cut),
        change("pictures/far/a.png", lambda path: save_picture(path, draw(9, 9))),
        lambda: ood.load_benchmark("folder:nowhere"),
        lambda: ood.split_folder("photos", "pictures"),
        change("pictures", flattened),
        lambda: ood.summarize(ood.run_benchmark({}, ood.BenchmarkFeatures(*[features] * 3, {}, {"a": features}))),
        lambda: ood.extract(model, unsigned, progress=False),
        lambda: ood.extract(softened, [(torch.zeros(3, 64, 64), 0)] * 2, progress=False),
        lambda: ood.KNN(k=2).fit(features).calibrate(features, tpr=0.95),
        lambda: ood.KNN(k=2).score(features),
    ]


def test_every_message_that_is_explained_is_said(somebody):
    explained = set(re.findall(r"^\* - `(.*?)`$", page("own-data.md"), re.M))
    said = []
    for fail in messages():
        with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
            fail()
        said += [text for text in explained if text in str(caught.value)]
        if (somebody / "pictures/val/dug").exists():
            (somebody / "pictures/val/dug").rename(somebody / "pictures/val/dog")
    assert sorted(said) == sorted(explained)


@pytest.mark.parametrize("name", ["data.md", "own-data.md"])
def test_code_fits_the_width_of_the_page(name):
    assert [line for block in blocks(page(name)) for line in block.split("\n") if len(line) > 80] == []


def test_the_block_on_benchmarks_runs(tmp_path, capsys):
    for name in ("cifar10/train", "cifar10/test", "mnist/test", "lsun/test"):
        save_arrays(tmp_path / f"{name}.npz", draw(20, 32, 32, 3), np.arange(20) // 10)
    names = {}
    first, *rest = blocks(page("data.md"))
    with pytest.warns(UserWarning, match="svhn"):
        exec(first.replace("/path/to/sets", str(tmp_path)).replace("=root", "=root, download=False"), names)
    for block in rest:
        exec(block, names)
    assert "note: svhn is left out" in capsys.readouterr().out and len(names["lsun"]) == 20


def test_the_page_on_data_lists_every_benchmark_and_every_set():
    text = page("data.md")
    named = set(re.findall(r"`([\w:-]+)`", text))
    assert {*ood.BENCHMARKS, "folder:PATH"} <= named
    assert {*PUBLISHED, *ORIGINS} <= named
    assert {name for rules in PROTOCOLS.values() for name in (*rules.near, *rules.far)} <= named


def test_the_counts_on_the_page_are_those_of_the_protocols():
    numbers = {int(n.replace(",", "")) for n in re.findall(r"\d+,\d{3}|\d{4,}", page("data.md"))}
    for name in ("cifar10", "cifar100"):
        rules = PROTOCOLS[name]
        assert {*rules.known[1:], rules.near["tiny_imagenet"], rules.far["places365"], rules.far["mnist"]} <= numbers
    assert {*PROTOCOLS["imagenet"].known[1:], PROTOCOLS["imagenet"].far["textures"]} <= numbers


def test_what_the_page_says_of_banks_and_training_is_so():
    text, voc = page("data.md"), ood.load_bank("voc-mobilenetv2")
    sizes = (len(voc.train) + len(voc.val) + len(voc.test), len(voc.near["imagenet"]), len(voc.far["textures"]))
    assert "covers {:,} images of PASCAL VOC 2012 (20 labels), {} images of ImageNet and {}".format(*sizes) in text
    assert len(voc.near) == len(voc.far) == 1 and voc.train.labels.shape[1] == 20
    widths = [ood.load_bank(name).train.penultimate.shape[1] for name in ("cifar10-densenet", "cifar10-resnet56")]
    assert "(DenseNet-BC with {} features) and `cifar10-resnet56` ({} features)".format(*widths) in text
    hours = {2: "two hours"}[round(card("cifar10-resnet9")["seconds"] / 3600)]
    assert f"# {hours} on two CPU cores" in text

"""Laws of what is shipped: a file is what its card says, a bank is a fair sample, and both can be made again."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ood_lib import (
    BenchmarkFeatures,
    Features,
    accuracy,
    adapt,
    extract_benchmark,
    load_bank,
    load_benchmark,
    pretrained,
)
from ood_lib.__main__ import main
from ood_lib.features.fewer import OOD_ROWS, ROWS, balanced_rows, make_bank
from ood_lib.training.recipes import RECIPES, Recipe, card, train_recipe

TINY = Recipe("digits", (4, 8), 1, {"epochs": 6, "batch_size": 64, "average": 0.9})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    return load_benchmark("digits")


def train(bench, folder, **options):
    return train_recipe("tiny", bench, folder, device="cpu", progress=False, **options)


def test_a_network_is_what_its_card_says(tiny, tmp_path):
    network, history = train(tiny, tmp_path, origin={"command": "here"})
    said = card("tiny", tmp_path)
    assert said["accuracy"] == accuracy(network, tiny.test, device="cpu") > 1.5 / len(tiny.classes)
    assert said["classes"] == list(tiny.classes) and said["seed"] == 0 and said["origin"] == {"command": "here"}
    assert len(history.accuracy) == said["epochs"] == 6
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_what_is_loaded_is_what_was_measured(tiny, tmp_path):
    network, _ = train(tiny, tmp_path, epochs=1)
    again = pretrained("tiny", tmp_path)
    images = torch.stack([x for x, _ in tiny.test])
    assert torch.equal(again(images), network(images))
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_the_accuracy_is_measured_where_the_network_was_trained(tiny, monkeypatch, tmp_path):
    places = []
    monkeypatch.setitem(train_recipe.__globals__, "accuracy", lambda *_, device="auto": places.append(str(device)))
    train(tiny, tmp_path, epochs=1)
    assert places == ["cpu"]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_what_is_to_be_shared_others_may_read(tiny, tmp_path):
    (tmp_path / "plain").touch()
    train(tiny, tmp_path, epochs=1)
    x = features(3, classes=3)
    BenchmarkFeatures(x, x, x, {}, {}, torch.nn.Linear(1, 3)).save(tmp_path / "bank")
    modes = {file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_seeds_have_files_of_their_own(tiny, tmp_path):
    networks = [train(tiny, tmp_path, seed=seed, epochs=1)[0] for seed in (0, 1)]
    assert torch.equal(pretrained("tiny-seed1", tmp_path).head.weight, networks[1].head.weight)
    assert not torch.equal(networks[0].head.weight, networks[1].head.weight)


def test_what_was_drawn_before_does_not_matter(tiny, tmp_path):
    networks = [(torch.manual_seed(n), train(tiny, tmp_path / str(n), epochs=1)[0])[1] for n in (3, 4)]
    assert torch.equal(networks[0].head.weight, networks[1].head.weight)


def test_a_recipe_goes_on_from_another_and_trains_it_if_it_is_not_there(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "more", TINY._replace(start="tiny", options=TINY.options | {"epochs": 2}))
    network, history = train_recipe("more", tiny, tmp_path, seed=1, device="cpu", progress=False)
    first, second = card("tiny-seed1", tmp_path), card("more-seed1", tmp_path)
    assert (first["epochs"], second["epochs"], len(history.accuracy)) == (6, 8, 2)
    assert second["seconds"] >= first["seconds"]
    monkeypatch.setitem(RECIPES, "fresh", RECIPES["more"]._replace(start=""))
    _, fresh = train_recipe("fresh", tiny, tmp_path, seed=1, device="cpu", progress=False)
    assert sum(history.loss) < sum(fresh.loss)
    again, _ = train_recipe("more", tiny, tmp_path, seed=1, device="cpu", progress=False)  # "tiny-seed1" is there
    assert torch.equal(again.head.weight, network.head.weight)


def test_a_damaged_or_missing_file_is_refused(tiny, tmp_path):
    train(tiny, tmp_path, epochs=1)
    file = tmp_path / "tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"tiny\.safetensors has sha256 .* its card says .*: copy it again"):
        pretrained("tiny", tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"tiny\.safetensors is missing"):
        pretrained("tiny", tmp_path)


@pytest.mark.parametrize("content", ['{"recipe": "ti', "", "[1]", '{"recipe": "tiny"}', '{"recipe": 3}'])
def test_a_damaged_card_is_named(tiny, tmp_path, content):
    train(tiny, tmp_path, epochs=1)
    (tmp_path / "tiny.json").write_text(content)
    with pytest.raises(ValueError, match=r"tiny\.json .*copy it again"):
        pretrained("tiny", tmp_path)


def test_a_network_that_others_start_from_counts_when_its_card_is_there(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "more", TINY._replace(start="tiny", options=TINY.options | {"epochs": 1}))
    train(tiny, tmp_path)
    (tmp_path / "tiny.json").unlink()  # killed between the two files
    train_recipe("more", tiny, tmp_path, device="cpu", progress=False)
    assert pretrained("tiny", tmp_path) and pretrained("more", tmp_path)


def test_an_unknown_network_is_told_what_there_is(tiny, tmp_path):
    train(tiny, tmp_path)
    with pytest.raises(ValueError, match=r"no network 'other' in .*, where there are \['tiny'\]"):
        pretrained("other", tmp_path)
    with pytest.raises(ValueError, match=r"train it with `python -m ood_lib cifar10-resnet18`"):
        pretrained("cifar10-resnet18", tmp_path)


# -- banks --------------------------------------------------------------------------------------------------------


def features(rows: int, classes: int = 0) -> Features:
    labels = torch.randint(classes, (rows,)) if classes else torch.full((rows,), -1)
    return Features(penultimate=torch.arange(rows).float()[:, None] / 8, labels=labels)


@pytest.mark.parametrize("rows", [7, 30, 1000])
def test_a_small_bank_is_even_over_the_classes_and_keeps_the_order(rows: int):
    labels = features(400, classes=5).labels
    kept = balanced_rows(labels, rows)
    counts = labels[kept].bincount(minlength=5)
    assert len(kept) == min(rows, 400) and (rows >= 400 or counts.max() - counts.min() <= 1)
    assert (kept.diff() > 0).all()


def test_the_seed_draws_the_rows():
    labels = features(100).labels
    a, b, c = (balanced_rows(labels, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_bank_comes_back_and_damage_is_told(tmp_path):
    head = torch.nn.Linear(1, 3)
    sets = [features(ROWS[role] + 50, classes=3) for role in ROWS]
    make_bank(BenchmarkFeatures(*sets, {"a": features(30)}, {"b": features(5000)}, head), tmp_path / "x-bank", seed=1)
    bank = load_bank("x-bank", tmp_path)
    assert [len(bank.train), len(bank.val), len(bank.test)] == list(ROWS.values())
    assert len(bank.near["a"]) == 30 and len(bank.far["b"]) == OOD_ROWS
    assert torch.equal(bank.head.weight, head.weight) and bank.train.penultimate.dtype == torch.float32
    with pytest.raises(ValueError, match=r"no bank 'y-bank' in .*, where there are \['x-bank'\]"):
        load_bank("y-bank", tmp_path)
    (tmp_path / "x-bank" / "far" / "b.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not the file that was saved"):
        load_bank("x-bank", tmp_path)


# -- the command --------------------------------------------------------------------------------------------------


def test_one_command_makes_network_features_and_bank(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", TINY._replace(options=TINY.options | {"epochs": 20}))
    command = ["ood_lib", "tiny", "--out", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)

    def about(command, device=None, **_):
        return {"command": command, "device": str(device)}

    monkeypatch.setitem(main.__globals__, "provenance", about)
    main()
    network, bank = pretrained("tiny", tmp_path), load_bank("tiny", tmp_path)
    assert torch.equal(bank.head.weight, network.head.weight)
    assert len(bank.test) == len(tiny.test) and bank.classes == tiny.classes and bank.notes == tiny.notes
    origin = {"command": "python -m ood_lib tiny --seed 0 --missing raise", "device": "cpu"}
    assert card("tiny", tmp_path)["origin"] == origin | {"sets": "; ".join(tiny.notes)}
    assert origin.items() <= bank.about.items() and "AUROC moves by" in bank.about["rounding"]
    exact = extract_benchmark(network, tiny, device="cpu", progress=False)
    step = (exact.test.penultimate.amax(0) - exact.test.penultimate.amin(0)) / 255
    assert ((bank.test.penultimate - exact.test.penultimate).abs() <= 0.51 * step + 1e-6).all()
    assert not (tmp_path / "tiny-features").exists()


def test_the_weights_of_others_are_asked_for_by_name(monkeypatch, capsys):
    for wrong in (["cifar10-densenet"], ["cifar10-resnet9", "--weights", "x"]):
        monkeypatch.setattr(sys, "argv", ["ood_lib", *wrong])
        with pytest.raises(SystemExit):
            main()
        assert "--weights FILE goes with cifar10-densenet" in capsys.readouterr().err


def test_a_network_of_other_classes_gives_features_of_a_folder(tmp_path, monkeypatch):
    for place, count in (("train", 90), ("far/noise", 4)):
        (tmp_path / "sets" / place).mkdir(parents=True)
        names = [f"{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(
                tmp_path / "sets" / place / name
            )
    rows = ["image,cat,dog", *(f"{i}.png,1,{i % 2}" for i in range(90))]
    (tmp_path / "sets" / "train" / "labels.csv").write_text("\n".join(rows))
    foreign = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5), torch.nn.ReLU(), torch.nn.Linear(5, 7)
    )
    monkeypatch.setitem(main.__globals__, "load_network", lambda *_, **__: adapt(foreign))
    out = tmp_path / "out"
    options = {"weights": "x", "root": tmp_path / "sets", "out": out, "device": "cpu"}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["ood_lib", "voc-mobilenetv2", *given])
    with pytest.warns(UserWarning, match="divided at random"):
        main()
    bank = load_bank("voc-mobilenetv2", out)
    assert bank.head is None and bank.train.tensors().keys() == {"penultimate", "labels"}
    assert sum(len(x) for x in (bank.train, bank.val, bank.test)) == 90 and bank.train.labels.shape[1] == 2
    assert bank.classes == ("cat", "dog") and str(tmp_path) not in (out / "voc-mobilenetv2/benchmark.json").read_text()

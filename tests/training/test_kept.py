"""Laws of `trained`: it is the training, unless that very training was made before, and then it is what that led to."""

import inspect
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, TensorDataset

import ood_lib as ood
from ood_lib.training import kept
from ood_lib.training.kept import TRAINED, trained
from tests.training.test_classifier import stripes, weights

OPTIONS = {"name": "stripes", "batch_size": 16, "device": "cpu", "progress": False}


def fresh(seed: int = 0, normalised: bool = False, widths: tuple[int, ...] = (4, 4)) -> ood.ResNet:
    torch.manual_seed(seed)
    network = ood.ResNet(1, 2, widths)
    return ood.spectral_normalize(network, norm="exact") if normalised else network


def give(network=None, data=None, **changed):
    """A network and its history; the default is one epoch on stripes."""
    network = fresh() if network is None else network
    options = OPTIONS | {"epochs": 1} | changed
    return network, trained(ood.train_classifier, network, stripes() if data is None else data, **options)


def several(x: TensorDataset) -> TensorDataset:
    """The same images with two labels that are 0 or 1."""
    images, labels = x.tensors
    return TensorDataset(images, torch.stack([labels, 1 - labels], 1))


def scores(seed: int = 0) -> ood.ScoreNetwork:
    torch.manual_seed(seed)
    return ood.ScoreNetwork(1, [4, 8])


WAYS = {
    "classifier": (ood.train_classifier, fresh, stripes(), {"epochs": 2, "val": stripes(12)}),
    "spectral": (ood.train_classifier, lambda: fresh(normalised=True), stripes(), {"epochs": 2}),
    "several labels": (
        ood.train_multilabel,
        lambda: fresh(widths=(16, 16)),
        several(stripes()),
        {"epochs": 2, "channels_last": True},
    ),
    "scores": (ood.train_score_network, scores, stripes(48, 8), {"steps": 3, "augment": ood.flip}),
}


# -- the same ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_first_time_it_trains_and_the_second_time_it_gives_the_same_bits(tmp_path, monkeypatch, way):
    train, make, data, options = WAYS[way]
    plain, first, again = make(), make(), make()
    history = train(plain, data, seed=5, **options | {"batch_size": 16, "device": "cpu", "progress": False})
    options = OPTIONS | options | {"seed": 5, "cache": tmp_path}
    told = trained(train, first, data, **options)
    monkeypatch.setattr("ood_lib.training.loop.Descent.step", None)  # from now on whoever trains fails
    recalled = trained(train, again, data, **options)
    assert history == told == recalled and (told.recalled, recalled.recalled) == (False, True)
    for network in (first, again):
        assert {k: x.tolist() for k, x in network.state_dict().items()} == {
            k: x.tolist() for k, x in plain.state_dict().items()
        }
        assert not network.training
    x = data[0][0][None]
    inputs = (x, torch.tensor([0.1])) if way == "scores" else (x,)
    assert torch.equal(again(*inputs), plain(*inputs))
    assert [p.stride() for p in again.parameters()] == [p.stride() for p in plain.parameters()]


def test_what_is_recalled_draws_no_random_numbers(tmp_path):
    give(cache=tmp_path)
    network = fresh()
    before = torch.get_rng_state()
    give(network, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_folder_nothing_is_kept_and_the_variable_names_one(tmp_path, monkeypatch):
    assert not give()[1].recalled and not give()[1].recalled
    monkeypatch.setenv("OOD_CACHE", str(tmp_path))
    assert not give()[1].recalled and give()[1].recalled and len(list(tmp_path.iterdir())) == 1


# -- told apart -------------------------------------------------------------------------------------------------------

OTHERS = {
    "epochs": {"epochs": 2},
    "an option that had its default": {"weight_decay": 1e-3},
    "seed": {"seed": 1},
    "name": {"name": "other stripes"},
    "one image": {"data": stripes(47)},
    "labels": {"data": TensorDataset(stripes().tensors[0], 1 - stripes().tensors[1])},
    "validation": {"val": stripes(12)},
    "other validation": {"val": stripes(14)},
    "augmentation": {"augment": ood.augmented(1)},
    "other augmentation": {"augment": ood.augmented(2)},
    "layout": {"channels_last": True},
    "first weights": {"network": fresh(1)},
    "widths": {"network": ood.ResNet(1, 2, [4, 8])},
    "normalisation": {"network": fresh(normalised=True)},
    "kind": {"network": type("Residual", (ood.ResNet,), {})(1, 2, [4, 4])},
}


def test_whatever_differs_is_another_training(tmp_path):
    give(cache=tmp_path)
    for what, changed in OTHERS.items():
        assert not give(cache=tmp_path, **changed)[1].recalled, what
    assert len(list(tmp_path.iterdir())) == len(OTHERS) + 1


@pytest.mark.parametrize(
    "changed",
    [{"progress": True}, {"device": torch.device("cpu")}, {"checkpoint": "{}/on the way.pt"}, {"learning_rate": 0.1}],
    ids=lambda x: next(iter(x)),
)
def test_what_changes_no_network_is_the_same_training(tmp_path, changed):
    give(cache=tmp_path)
    changed = {k: x.format(tmp_path) if isinstance(x, str) else x for k, x in changed.items()}
    assert give(cache=tmp_path, **changed)[1].recalled  # .1 is the default of train_classifier


class Noisy(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return torch.rand(1, 6, 6), i % 2


UNKNOWN = {
    "own augmentation": {"augment": lambda images, _: images},
    "random images": {"data": Noisy()},
    "a network of a notebook": {"network": type("Own", (ood.ResNet,), {"__module__": "__main__"})(1, 2, [4])},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_cannot_be_known_again_is_trained_each_time_and_not_kept(tmp_path, monkeypatch, what):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # as in a notebook
    assert not any(give(cache=tmp_path, **UNKNOWN[what])[1].recalled for _ in range(2))
    assert list(tmp_path.iterdir()) == []


def elsewhere(monkeypatch, what):
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    elif what == "code":
        monkeypatch.setattr(kept, "Descent", inspect.Signature)  # from another file
    else:
        monkeypatch.setattr(kept, "_circumstances", lambda *_: {"first weights": "others", "threads": "1"})


@pytest.mark.parametrize("what", ["torch", "code", "last bit of the first weights"])
def test_what_was_kept_is_taken_under_the_same_circumstances_alone_and_what_ships_always(tmp_path, monkeypatch, what):
    cache, ships = tmp_path / "cache", tmp_path / "ships"
    monkeypatch.setattr(kept, "TRAINED", ships)
    give(cache=cache)
    with monkeypatch.context() as patch:
        elsewhere(patch, what)
        assert not give(cache=cache)[1].recalled and give(cache=cache)[1].recalled  # and replaces it
    (file,) = cache.iterdir()
    ships.mkdir()
    file.rename(ships / file.name)
    elsewhere(monkeypatch, what)
    assert give(cache=cache)[1].recalled and not list(cache.iterdir())
    monkeypatch.setenv("OOD_TRAIN", "all")
    assert not give(cache=cache)[1].recalled and give(cache=cache)[1].recalled  # what was trained here is kept


def test_the_number_of_threads_makes_no_other_training_but_is_noted(tmp_path, monkeypatch):
    give(cache=tmp_path)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert give(cache=tmp_path)[1].recalled
    (file,) = tmp_path.iterdir()
    with safe_open(file, "pt") as parts:
        assert parts.metadata()["threads"] == str(threads)


@pytest.mark.parametrize("damage", ["cut off", "no history", "other shapes", "a part less"])
def test_a_file_that_is_damaged_is_named_and_trained_again_with_nothing_half_loaded(tmp_path, damage):
    whole, history = give(cache=tmp_path)
    (file,) = tmp_path.iterdir()
    with safe_open(file, "pt") as parts:
        about = parts.metadata()
    state = load_file(file)
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "no history":
        save_file({k: x for k, x in state.items() if "history" not in k}, file, about)
    elif damage == "other shapes":
        save_file(state | {"head.weight": torch.zeros(2, 2)}, file, about)
    else:
        save_file({k: x for k, x in state.items() if k != "head.bias"}, file, about)
    with pytest.warns(UserWarning, match=rf"{file.name} cannot be read .* trained again"):
        network, again = give(cache=tmp_path)
    assert torch.equal(weights(network), weights(whole)) and again == history and not again.recalled
    assert load_file(file).keys() == state.keys()


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, read_only):
    whole, history = give()
    read_only(tmp_path)
    with pytest.warns(UserWarning, match=r"network is not kept.*Read-only"):
        network, found = give(cache=tmp_path / "networks")
    assert torch.equal(weights(network), weights(whole)) and found == history and list(tmp_path.iterdir()) == []


# -- those that ship --------------------------------------------------------------------------------------------------

SHIPPED = sorted(TRAINED.glob("*.safetensors"))


def curves(file):
    with safe_open(file, "pt") as parts:
        return {k: parts.get_tensor(f"history.{k}") for k in kept.CURVES}


def test_networks_that_ship_are_small_and_say_how_they_were_made():
    assert len(SHIPPED) == 26 and sum(file.stat().st_size for file in SHIPPED) < 12e6
    for file in SHIPPED:
        with safe_open(file, "pt") as parts:
            assert parts.metadata().keys() == {"torch", "device", "threads", "code", "first weights"}
        found = curves(file)
        assert found["loss"].isfinite().all() and len(found["loss"]) == len(found["learning_rate"])
        assert found["loss"][-20:].mean() < 0.7 * found["loss"][:20].mean()


def test_the_first_network_of_each_page_is_trained_there():
    assert not [file.name for file in SHIPPED if file.stem.endswith("-seed0")]

"""Laws of training: it repeats itself, it learns, and it says what went wrong."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ood_lib import ResNet, accuracy, augmented, mean_average_precision, shift, train_classifier, train_multilabel
from ood_lib.training.checkpoint import Checkpoint
from tests.conftest import normal, seeded


def stripes(count: int = 48, side: int = 6) -> TensorDataset:
    """Two classes that a glance tells apart: the bright half is the upper or the lower one."""
    labels = torch.arange(count) % 2
    x = 0.1 * torch.rand(count, 1, side, side, generator=seeded())
    x[labels == 0, :, : side // 2] += 0.8
    x[labels == 1, :, side // 2 :] += 0.8
    return TensorDataset(x, labels)


def linear(outputs: int = 2, side: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, outputs))


def train(network: nn.Module, data=None, **options):
    options = {"epochs": 3, "batch_size": 16, "device": "cpu", "progress": False} | options
    return train_classifier(network, stripes() if data is None else data, **options)


def weights(network: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def small_shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return shift(images, 1, generator)


@pytest.mark.parametrize("augment", [None, small_shift])
def test_the_same_seed_trains_the_same_network(augment):
    def run(seed: int, noise: int) -> tuple[torch.Tensor, list[float]]:
        network = linear()
        torch.manual_seed(noise)  # what happened before in the session does not matter
        history = train(network, seed=seed, augment=augment)
        return weights(network), history.loss

    (a, loss_a), (b, loss_b), (c, _) = run(0, 1), run(0, 2), run(1, 1)
    assert torch.equal(a, b) and loss_a == loss_b
    assert not torch.equal(a, c)


def test_the_loss_falls_and_every_image_is_classified():
    torch.manual_seed(0)
    network, data = ResNet(1, 2, (4, 8)), stripes()
    history = train(network, data, val=data, epochs=8)
    assert sum(history.loss[-3:]) < 0.2 * sum(history.loss[:3])
    assert history.accuracy[-1] == accuracy(network, data, device="cpu") == 1


def test_the_history_has_one_entry_per_update_and_the_rate_makes_one_cycle():
    history = train(linear(), val=stripes(), epochs=4, learning_rate=0.3)
    assert len(history.loss) == len(history.learning_rate) == 4 * 3 and len(history.accuracy) == 4
    peak = history.learning_rate.index(max(history.learning_rate))
    assert history.learning_rate[peak] == pytest.approx(0.3, rel=0.05)
    rates = torch.tensor(history.learning_rate)
    assert (rates[: peak + 1].diff() > 0).all() and (rates[peak:].diff() < 0).all()


def test_the_network_is_left_in_eval_mode():
    network = ResNet(1, 2, (4,))
    train(network)
    assert not any(m.training for m in network.modules())


def test_without_validation_there_is_no_accuracy():
    assert train(linear()).accuracy == []


def test_accuracy_is_the_share_of_hits():
    network = linear()
    data = TensorDataset(normal(50, 1, 6, 6, dtype=torch.float32), torch.arange(50) % 2)
    hits = network(data.tensors[0]).argmax(1) == data.tensors[1]
    for batch_size in (1, 7, 50, 512):
        assert accuracy(network, data, batch_size=batch_size, device="cpu") == hits.double().mean().item()


@pytest.mark.parametrize(("labels", "said"), [([0, 2], "from 0 to 2"), ([-1, 1], "from -1 to 1")])
def test_labels_outside_the_networks_classes_are_named(labels: list[int], said: str):
    data = TensorDataset(torch.rand(2, 1, 6, 6), torch.tensor(labels))
    with pytest.raises(ValueError, match=rf"labels run {said}.*classes 0 to 1"):
        train(linear(), data)


def test_an_empty_training_set_is_named():
    with pytest.raises(ValueError, match="data set is empty"):
        train(linear(), TensorDataset(torch.empty(0, 1, 6, 6), torch.empty(0, dtype=torch.long)))


def test_a_rate_that_diverges_is_named():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"the loss became (nan|inf): try a learning_rate below 1000000"):
        train(network, learning_rate=1e12, epochs=20)


def test_the_accuracy_on_no_image_is_refused():
    with pytest.raises(ValueError, match=r"data set is empty.*\(image, label\)"):
        accuracy(linear(), TensorDataset(torch.empty(0, 1, 6, 6), torch.empty(0)), device="cpu")


# -- several labels ---------------------------------------------------------------------------------------------


def corners(count: int = 64, side: int = 6) -> TensorDataset:
    """Label c is present where quarter c is bright; some images carry none."""
    labels = (torch.rand(count, 4, generator=seeded()) < 0.4).long()
    x = 0.1 * torch.rand(count, 1, side, side, generator=seeded(1))
    half = side // 2
    for c in range(4):
        rows, columns = slice(c // 2 * half, (c // 2 + 1) * half), slice(c % 2 * half, (c % 2 + 1) * half)
        x[labels[:, c] == 1, :, rows, columns] += 0.8
    return TensorDataset(x, labels)


class Flat(nn.Module):
    """A network whose head is known by its name."""

    def __init__(self, outputs: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU()), nn.Linear(16, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def train_corners(network: nn.Module, data=None, **options):
    options = {"epochs": 3, "batch_size": 16, "device": "cpu", "progress": False} | options
    return train_multilabel(network, corners() if data is None else data, **options)


def test_every_label_is_learnt_also_from_images_without_any():
    data, network = corners(), Flat()
    assert (data.tensors[1].sum(1) == 0).any()
    history = train_corners(network, data, val=data, epochs=30, learning_rate=0.02)
    assert sum(history.loss[-3:]) < 0.2 * sum(history.loss[:3])
    assert history.accuracy[-1] == mean_average_precision(network, data, device="cpu") > 0.999


def test_the_loss_is_the_mean_of_the_binary_cross_entropies():
    data, network = corners(16), Flat()
    p, y = network(data.tensors[0]).sigmoid(), data.tensors[1]
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean().item()
    assert train_corners(network, data, epochs=1).loss[0] == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_trains_the_same_multilabel_network():
    (a, loss_a), (b, loss_b), (_, loss_c) = ((n := Flat(), train_corners(n, seed=s).loss) for s in (0, 0, 1))
    assert torch.equal(weights(a), weights(b)) and loss_a == loss_b != loss_c


def test_the_backbone_may_learn_at_another_rate():
    still, tenth = Flat(), Flat()
    before = weights(still.body)
    train_corners(still, backbone_rate=1e-12, learning_rate=0.01)
    train_corners(tenth, backbone_rate=1e-3, learning_rate=0.01)
    assert torch.allclose(weights(still.body), before, atol=1e-8)
    moved = (weights(tenth.body) - before).abs().mean() / (weights(tenth.head) - weights(Flat().head)).abs().mean()
    assert 0 < moved < 0.5


def test_training_mode_is_restored_at_the_start_of_every_epoch():
    modes = []

    class Watched(Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)

    network = Watched()
    train_corners(network, val=corners(), epochs=3)
    assert modes == 3 * (4 * [True] + [False]) and not network.training


def test_a_class_that_no_training_image_carries_is_named():
    data = corners()
    data.labels = data.tensors[1] * torch.tensor([1, 1, 0, 1])
    with pytest.warns(UserWarning, match=r"classes \[2\]"):
        train_corners(Flat(), data)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(torch.ones(8, 3), r"\(8, 3\); expected \(8, 4\)"), (torch.full((8, 4), 2), "hold 2"), (torch.ones(8), r"\(8,\)")],
)
def test_labels_that_do_not_fit_the_logits_are_named(labels: torch.Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        train_corners(Flat(), TensorDataset(torch.rand(8, 1, 6, 6), labels))


def test_the_map_on_no_image_is_refused():
    with pytest.raises(ValueError, match=r"data set is empty.*\(image, label\)"):
        mean_average_precision(Flat(), TensorDataset(torch.empty(0, 1, 6, 6), torch.empty(0, 4)), device="cpu")


# -- shift ------------------------------------------------------------------------------------------------------


def test_shift_moves_content_and_lets_zeros_in():
    x = 1 + torch.rand(64, 2, 5, 7, generator=seeded())
    moved = shift(x, 2, seeded(1))
    assert moved.shape == x.shape
    seen = set()
    for before, after in zip(x, moved):
        padded = nn.functional.pad(before, (2, 2, 2, 2))
        windows = {(t, s): padded[:, t : t + 5, s : s + 7] for t in range(5) for s in range(5)}
        found = [where for where, window in windows.items() if torch.equal(window, after)]
        assert len(found) == 1
        seen.update(found)
    assert {t for t, _ in seen} == {s for _, s in seen} == set(range(5))  # every distance occurs, both ways


def test_shift_by_nothing_is_the_identity_and_the_generator_decides():
    x = torch.rand(8, 1, 4, 4, generator=seeded())
    before = x.clone()
    assert torch.equal(shift(x, 0, seeded()), x)
    assert torch.equal(shift(x, 1, seeded(3)), shift(x, 1, seeded(3)))
    assert not torch.equal(shift(x, 1, seeded(3)), shift(x, 1, seeded(4)))
    assert torch.equal(x, before)


# -- long trainings ---------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupted_after(epochs: int):
    """An augmentation that stops the training in the middle of an epoch."""
    batches = iter(range(3 * epochs + 1))

    def augment(images, generator):
        if next(batches, None) is None:
            raise Interrupted
        return small_shift(images, generator)

    return augment


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_interrupted_training_goes_on_to_the_same_end(tmp_path, average: float):
    options = {"epochs": 4, "average": average, "val": stripes()}
    whole, broken, again = ResNet(1, 2, (4,)), ResNet(1, 2, (4,)), ResNet(1, 2, (4,))
    for network in (whole, broken):
        torch.manual_seed(0)
        network.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    history = train(whole, augment=small_shift, **options)
    with pytest.raises(Interrupted):
        train(broken, augment=interrupted_after(2), checkpoint=tmp_path / "a.pt", **options)
    assert train(again, augment=small_shift, checkpoint=tmp_path / "a.pt", **options) == history
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        train(linear(), augment=interrupted_after(1), checkpoint=tmp_path / "a.pt")
    for other in ({"epochs": 4}, {"learning_rate": 0.2}, {"seed": 1}, {"average": 0.9}, {"data": stripes(64)}):
        with pytest.raises(ValueError, match="belongs to other data or options"):
            train(linear(), checkpoint=tmp_path / "a.pt", **other)


def test_a_checkpoint_of_other_data_another_network_or_another_augmentation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    data, options = stripes(), {"augment": augmented(1), "checkpoint": tmp_path / "a.pt"}
    train(linear(), data, **options)
    darker = TensorDataset(data.tensors[0] / 2, data.tensors[1])
    deep = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 2))
    for network, other in ((linear(), {"data": darker}), (deep, {}), (linear(), {"augment": augmented(2)})):
        with pytest.raises(ValueError, match="belongs to other data or options"):
            train(network, **options | other)
    train(linear(), data, **options)


def test_images_that_are_drawn_anew_at_each_look_are_known_again(tmp_path, monkeypatch):
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.rand(()), label

    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    losses = [train(linear(), Noisy(*stripes().tensors), checkpoint=tmp_path / "a.pt").loss for _ in range(2)]
    assert losses[0] == losses[1]


def test_the_average_is_that_of_the_weights_on_the_way():
    data, batch = stripes(16), 16  # one update per epoch

    class Noted(nn.Sequential):
        def forward(self, x):
            seen.append(weights(self))
            return super().forward(x)

    seen: list[torch.Tensor] = []
    network = Noted(*linear())
    plain, averaged = linear(), network
    train(plain, data, epochs=6, batch_size=batch)
    train(averaged, data, epochs=6, batch_size=batch, average=0.5)
    mean = seen[1]  # the weights after the first update
    for t, after in enumerate([*seen[2:], weights(plain)], start=1):
        mean = mean.lerp(after, 1 - min(0.5, (1 + t) / (10 + t)))
    assert torch.allclose(weights(averaged), mean, atol=1e-6) and not torch.allclose(mean, weights(plain), atol=1e-3)


def test_statistics_of_batches_are_averaged_like_weights():
    torch.manual_seed(0)
    network, data = ResNet(1, 2, (4, 8)), stripes()
    train(network, data, epochs=8, average=0.5)
    assert {int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {8 * 3}
    assert accuracy(network, data, device="cpu") == 1


def test_half_precision_learns_and_keeps_full_weights():
    torch.manual_seed(0)
    network, data = ResNet(1, 2, (4, 8)), stripes()
    history = train(network, data, epochs=8, autocast=torch.bfloat16, channels_last=True)
    assert sum(history.loss[-3:]) < 0.3 * sum(history.loss[:3]) and accuracy(network, data, device="cpu") == 1
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("last", [False, True])
def test_the_memory_layout_is_what_was_asked_for_whatever_augmentation_and_network_bring(last):
    form = torch.channels_last if last else torch.contiguous_format
    other = torch.contiguous_format if last else torch.channels_last
    network, seen = ResNet(3, 2, (4,)).to(memory_format=other), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=form)))
    data = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    train(network, data, augment=lambda x, _: x.contiguous(memory_format=other), channels_last=last)
    assert all(seen) and all(p.is_contiguous(memory_format=form) for p in network.parameters() if p.ndim == 4)


def test_double_precision_stays_double():
    assert train(linear().double(), TensorDataset(stripes().tensors[0].double(), stripes().tensors[1])).loss[0] > 0


# -- labels and outputs that are not what they seem -------------------------------------------------------------


def flat(labels: object, outputs: int = 2, count: int = 8) -> list:
    """Items of a data set in which each image carries these labels."""
    return [(torch.full((1, 6, 6), i / 10), labels) for i in range(count)]


WRONG = {
    "a name": "cat", "a list": [0, 1], "a tuple": (0, 1), "a dict": {"label": 1}, "a column": torch.tensor([1]),
    "a fraction": 0.5, "a truth": torch.tensor(True), "one below 0": -1, "one too many": 2,
}  # fmt: skip


@pytest.mark.parametrize("label", WRONG.values(), ids=WRONG)
def test_labels_that_are_no_class_indices_are_neither_learnt_nor_counted(label: object):
    for call in (lambda: accuracy(linear(), flat(label), device="cpu"), lambda: train(linear(), flat(label))):
        with pytest.raises(ValueError, match="labels"):
            call()


def test_one_logit_is_no_classifier():
    for call in (lambda: accuracy(linear(1), flat(0), device="cpu"), lambda: train(linear(1), flat(0))):
        with pytest.raises(ValueError, match="single logit"):
            call()


def test_items_that_are_no_pairs_and_outputs_that_are_no_logits_are_named():
    pictures = [(x, y, "a.png") for x, y in flat(0)]
    with pytest.raises(ValueError, match="a list of 3; expected pairs"):
        accuracy(linear(), pictures, device="cpu")
    with pytest.raises(ValueError, match="a dict; expected pairs"):
        train(linear(), [{"image": x, "label": y} for x, y in flat(0)])
    with pytest.raises(ValueError, match=r"images of type torch.uint8"):
        accuracy(linear(), [(x.byte(), y) for x, y in flat(0)], device="cpu")
    with pytest.raises(ValueError, match=r"a tensor of shape \(8, 1, 6, 6\); expected logits \(8, C\)"):
        accuracy(nn.Identity(), flat(0), device="cpu")


def test_outputs_that_are_nan_are_no_class_0():
    network = linear()
    nn.init.constant_(network[1].bias, float("nan"))
    for measure, label in ((accuracy, 0), (mean_average_precision, torch.tensor([0, 1]))):
        with pytest.raises(ValueError, match="NaN or infinite for 8 of 8 images"):
            measure(network, flat(label), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_in_another_precision_is_measured_and_trained_in_it(dtype: torch.dtype):
    data = stripes()
    network = linear().to(dtype)
    before = accuracy(network, data, device="cpu")
    history = train(network, data, val=data, epochs=8)
    assert network[1].weight.dtype == dtype and history.accuracy[-1] == 1 > before


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
        {"weight_decay": -1e-4}, {"average": -0.5}, {"average": 1.0}, {"seed": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_out_of_their_range_are_refused(options: dict):
    name = next(iter(options))
    for run, label in ((train_classifier, 0), (train_multilabel, torch.tensor([0, 1]))):
        with pytest.raises(ValueError, match=f"{name}="):
            run(linear(), flat(label), device="cpu", progress=False, **options)


def test_a_negative_rate_of_the_backbone_is_refused():
    with pytest.raises(ValueError, match=r"backbone_rate=-0\.1"):
        train_multilabel(linear(), flat(torch.tensor([0, 1])), device="cpu", progress=False, backbone_rate=-0.1)

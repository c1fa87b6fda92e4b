"""Laws of `Features` and `extract`: one row per image, in order, computed once, never half written."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import ood_lib.tensors
from ood_lib import KNN, MSP, Features, ResNet, adapt, extract
from tests.conftest import normal, seeded

OPTIONS = {"device": "cpu", "progress": False}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def dataset(count: int = 23, seed: int = 0) -> TensorDataset:
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=seeded(seed)), torch.arange(count) % 3)


def make_network(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(1, 3, (4, 8)).eval()


@pytest.fixture
def network() -> ResNet:
    return make_network()


class Counting(nn.Module):
    """A network that counts the images it was shown."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network, self.head, self.seen = network, network.head, 0

    def represent(self, images: torch.Tensor):
        self.seen += len(images)
        return self.network.represent(images)


def same(a: Features, b: Features) -> bool:
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


# -- the record -------------------------------------------------------------------------------------------------


def test_fields_must_have_one_row_per_image():
    with pytest.raises(ValueError, match=r"'penultimate': 3.*'labels': 2"):
        Features(penultimate=torch.zeros(3, 2), labels=torch.zeros(2))
    with pytest.raises(ValueError, match="at least one"):
        Features()


def test_rows_are_chosen_by_slice_mask_and_index_in_all_fields_alike():
    features = Features(penultimate=normal(9, 4), labels=torch.arange(9))
    mask = torch.arange(9) % 2 == 0
    assert len(features) == 9
    for rows in (slice(2, 7), mask, torch.tensor([5, 0, 5])):
        chosen = features[rows]
        assert torch.equal(chosen.penultimate, features.penultimate[rows])
        assert torch.equal(chosen.labels, features.labels[rows])
        assert chosen.logits is None


@pytest.mark.parametrize("size", [1, 4, 9, 100])
def test_the_chunks_of_a_split_make_up_the_whole_without_a_copy(size: int):
    features = Features(penultimate=normal(9, 4), labels=torch.arange(9))
    chunks = list(features.split(size))
    assert all(len(chunk) <= size for chunk in chunks)
    assert torch.equal(torch.cat([chunk.penultimate for chunk in chunks]), features.penultimate)
    assert chunks[0].penultimate.data_ptr() == features.penultimate.data_ptr()


def test_repr_shows_what_is_there():
    assert repr(Features(logits=torch.zeros(5, 2), labels=torch.zeros(5))) == "Features(logits=(5, 2), labels=(5,))"


# -- on disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", [("penultimate", "logits", "style"), ("logits",), ("penultimate", "labels")])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path, dtype: torch.dtype, fields: tuple[str, ...]):
    tensors = {name: normal(6, 5, seed=i).to(dtype) for i, name in enumerate(fields)}
    if "labels" in tensors:
        tensors["labels"] = torch.arange(6) - 1
    else:
        tensors[fields[0]][2, 3] = float("nan")
    Features(**tensors).save(tmp_path / "deep" / "er" / "f.safetensors")
    loaded = Features.load(tmp_path / "deep" / "er" / "f.safetensors").tensors()
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        assert torch.equal(loaded[name].view(torch.uint8), value.view(torch.uint8))


def test_multi_label_and_views_are_saved_too(tmp_path):
    features = Features(penultimate=normal(5, 6).T, labels=torch.eye(6, 4).bool())[1:4]
    features.save(tmp_path / "f")
    assert same(Features.load(tmp_path / "f"), features)


def test_a_failing_save_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    path, old = tmp_path / "f.safetensors", Features(logits=normal(4, 2))
    old.save(path)

    def half(tensors: dict, name: str, metadata: dict) -> None:
        with open(name, "wb") as file:
            file.write(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(ood_lib.tensors, "save_file", half)
    with pytest.raises(OSError, match="no space"):
        Features(logits=normal(4, 2, seed=1)).save(path)
    assert os.listdir(tmp_path) == [path.name]
    assert same(Features.load(path), old)


def test_a_reader_keeps_the_file_it_opened_when_a_new_one_is_saved(tmp_path):
    path = tmp_path / "f.safetensors"
    Features(logits=normal(4, 2)).save(path)
    before = path.read_bytes()
    with open(path, "rb") as reader:
        Features(logits=normal(4, 2, seed=1)).save(path)
        assert reader.read() == before != path.read_bytes()


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_named(tmp_path, kept: int):
    path = tmp_path / "broken.safetensors"
    Features(logits=normal(40, 20)).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"broken\.safetensors is not a complete features file"):
        Features.load(path)


def test_a_file_with_other_tensors_is_no_features_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other is not a complete features file"):
        Features.load(tmp_path / "other")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Features.load(tmp_path / "nothing")


# -- extract ----------------------------------------------------------------------------------------------------


def test_row_i_belongs_to_image_i(network: ResNet):
    data = dataset()
    features = extract(network, data, batch_size=5, **OPTIONS)
    for i in (0, 4, 5, 22):
        seen = network.represent(data[i][0][None])
        assert torch.allclose(features.penultimate[i], seen.penultimate[0], atol=1e-6)
        assert torch.allclose(features.logits[i], seen.logits[0], atol=1e-6)
        assert torch.allclose(features.style[i], seen.style[0], atol=1e-6)
    assert torch.equal(features.labels, data.tensors[1])


@pytest.mark.parametrize("batch_size", [1, 7, 23, 1000])
def test_the_batch_size_does_not_matter(network: ResNet, batch_size: int):
    expected = extract(network, dataset(), **OPTIONS).tensors()
    features = extract(network, dataset(), batch_size=batch_size, **OPTIONS).tensors()
    assert all(torch.allclose(features[name], expected[name], atol=1e-6) for name in expected)


def test_a_network_is_given_back_as_it_was_even_when_its_wrapper_is_in_another_mode(network: ResNet):
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(), nn.Linear(6, 3)).eval()
    extract(foreign, dataset(), **OPTIONS)  # `adapt` wraps it, and a fresh module is in training mode
    extract(Counting(network), dataset(), **OPTIONS)
    assert not any(module.training for part in (foreign, network) for module in part.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_network_runs_in_eval_mode_and_is_given_back_as_it_was(network: ResNet, training: bool):
    expected = extract(network, dataset(), **OPTIONS)
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features = extract(network, dataset(), batch_size=4, **OPTIONS)
    assert network.training is training
    assert torch.allclose(features.logits, expected.logits, atol=1e-6)  # running statistics, not the batch's
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_mode_is_given_back_after_a_failure_too(network: ResNet):
    network.train()
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\)"):
        extract(network, TensorDataset(torch.rand(4, 2, 8, 8), torch.zeros(4)), **OPTIONS)  # two channels
    assert network.training


def test_style_is_there_for_convolutions_and_absent_without_a_map(network: ResNet):
    assert extract(network, dataset(), **OPTIONS).style.shape == (23, 8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    features = extract(flat, dataset(), **OPTIONS)  # adapted on the way
    assert features.style is None and features.penultimate.shape == (23, 64)


def test_a_network_without_a_head_has_features_for_detectors_that_need_no_logits():
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU())
    body.head = nn.Identity()
    features = extract(body, dataset(300), **OPTIONS)
    assert features.logits is None and torch.equal(features.penultimate, body(dataset(300).tensors[0]).detach())
    assert KNN(k=3).fit(features).score(features).shape == (300,)
    with pytest.raises(ValueError, match=r"MSP reads \['logits'\], which Features\(penultimate.*does not hold"):
        MSP().fit(features).score(features)


def test_threads_that_extract_from_one_network_do_not_change_its_mode_for_each_other(network: ResNet):
    network.train()
    expected = extract(network, dataset(), **OPTIONS)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(extract, network, dataset(), batch_size=1 + n % 5, **OPTIONS) for n in range(12)]
    for run in runs:
        assert torch.allclose(run.result().logits, expected.logits, atol=1e-6)
    assert all(module.training for module in network.modules())


def test_features_can_be_trained_on(network: ResNet):
    features = extract(network, dataset(), **OPTIONS)
    layer = nn.Linear(8, 2)
    layer(features.penultimate[:5]).sum().backward()
    assert not features.penultimate.requires_grad and layer.weight.grad is not None


def test_an_empty_data_set_is_named(network: ResNet):
    with pytest.raises(ValueError, match="data set is empty"):
        extract(network, TensorDataset(torch.empty(0, 1, 8, 8), torch.empty(0)), **OPTIONS)


class Items(Dataset):
    """A data set of whatever items."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


IMAGE = torch.full((1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("item", "given"),
    [
        (IMAGE, "an item is Tensor"),
        ((IMAGE,), r"an item is \(Tensor\)"),
        ((IMAGE, None), r"an item is \(Tensor, NoneType\)"),
    ],
    ids=["image", "one", "none"],
)
@pytest.mark.parametrize("count", [1, 2])  # a batch of two images would pass for images and labels
@pytest.mark.parametrize("cached", [False, True])
def test_a_data_set_without_labels_is_named(tmp_path, network: ResNet, item, given: str, count: int, cached: bool):
    with pytest.raises(ValueError, match=rf"has no labels: {given}; expected \(image, label\), with the label -1"):
        extract(network, Items(*[item] * count), cache=tmp_path if cached else None, **OPTIONS)
    assert os.listdir(tmp_path) == []


UNFIT = {
    "three": ((IMAGE, 0, "name.png"), r"are no pairs: an item is \(Tensor, int, str\); expected \(image, label\)"),
    "a dict": ({"image": IMAGE, "label": 1}, r"are no pairs: an item is a dict with \['image', 'label'\]"),
    "a picture": ((Image.new("L", (8, 8)), 0), r"an image of the data set is a Image; .*ToTensor"),
    "a name": ((IMAGE, "cat"), "a label of the data set is 'cat'; expected a class index, -1 where"),
    "a list": ((IMAGE, [0, 1, 0]), r"a label of the data set is \[0, 1, 0\]; .*a tensor \(C,\) of 0/1"),
    "boxes": ((IMAGE, {"boxes": torch.zeros(2, 4)}), "a label of the data set is a dict"),
    "a mask": ((IMAGE, torch.zeros(8, 8)), r"a label of the data set is a tensor of shape \(8, 8\)"),
}


@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("place", [None, "cache", "out"])
def test_items_of_another_kind_are_named(tmp_path, network: ResNet, what: str, place: str | None):
    item, words = UNFIT[what]
    where = {place: tmp_path / "there"} if place else {}
    with pytest.raises(ValueError, match=words):
        extract(network, Items(item, item), **where, **OPTIONS)


def test_images_and_labels_of_several_shapes_are_named(network: ResNet):
    with pytest.raises(ValueError, match=r"images of the shapes \[\(1, 8, 8\), \(1, 9, 9\)\] are in one batch"):
        extract(network, Items((IMAGE, 0), (torch.zeros(1, 9, 9), 0)), **OPTIONS)
    with pytest.raises(ValueError, match=r"labels of the shapes \[\(3,\), \(2,\)\] are in one batch"):
        extract(network, Items((IMAGE, torch.zeros(3)), (IMAGE, torch.zeros(2))), **OPTIONS)


# -- the cache --------------------------------------------------------------------------------------------------


def test_a_cached_result_is_read_and_the_network_not_run_again(tmp_path, network: ResNet):
    counting = Counting(network)
    first = extract(counting, dataset(), cache=tmp_path, **OPTIONS)
    second = extract(counting, dataset(), cache=tmp_path, batch_size=3, **OPTIONS)
    assert counting.seen == 23
    assert same(first, second)


def test_other_weights_other_architecture_and_other_data_are_other_entries(tmp_path, network: ResNet):
    def entries(network: nn.Module, data: Dataset) -> int:
        extract(network, data, cache=tmp_path, **OPTIONS)
        return len(os.listdir(tmp_path))

    assert entries(network, dataset()) == 1
    assert entries(make_network(), dataset()) == 1  # equal content is equal
    assert entries(make_network(1), dataset()) == 2
    assert entries(network, dataset(seed=1)) == 3
    assert entries(network, dataset(count=22)) == 4
    relabelled = TensorDataset(dataset().tensors[0], dataset().tensors[1] + 1)
    assert entries(network, relabelled) == 5
    assert entries(adapt(network), dataset()) == 6
    network.stem[1].running_mean += 1  # a buffer counts like a weight
    assert entries(network, dataset()) == 7


def test_of_a_data_set_with_a_fingerprint_a_few_items_are_read_for_the_key(tmp_path, network: ResNet):
    class Known(Dataset):
        def __init__(self) -> None:
            self.reads = 0

        def __len__(self) -> int:
            return 500

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            self.reads += 1
            return torch.full((1, 8, 8), i / 500), i

        def fingerprint(self) -> str:
            return "f" * 64

    data = Known()
    for _ in range(2):
        extract(network, data, cache=tmp_path, **OPTIONS)
    assert 500 < data.reads < 600
    assert len(os.listdir(tmp_path)) == 1


def test_a_damaged_entry_is_made_again_with_a_warning(tmp_path, network: ResNet):
    expected = extract(network, dataset(), cache=tmp_path, **OPTIONS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="damaged and are made again"):
        features = extract(network, dataset(), cache=tmp_path, **OPTIONS)
    assert same(features, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(network, dataset(), cache=tmp_path, **OPTIONS)

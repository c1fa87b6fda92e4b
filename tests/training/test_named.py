"""Networks by name: what is loaded computes what was saved, and what does not fit is named."""

import sys

import pytest
import torch
from torch import nn

import ood_lib as ood
from ood_lib.extras import MissingExtraError
from ood_lib.training import sources
from ood_lib.training.published import CIFARResNet

OWN = """
from torch import nn

def small(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, num_classes))

def fixed():
    return small(3)

def nothing():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a module of the reader's own, as nobody else has it."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def made(name: str, function: str, **options):
    module = {}
    exec(OWN, module)
    torch.manual_seed(1)
    return module[function](**options)


IMAGES = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


WRAPS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "parallel": lambda state: {f"module.{name}": x for name, x in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{n}": x for n, x in state.items()} | {"loss.w": torch.ones(2)}},
    "compiled": lambda state: {f"_orig_mod.{name}": x for name, x in state.items()},
    "half": lambda state: {name: x.half().float().half() for name, x in state.items()},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_checkpoint_is_unwrapped_and_computes_what_was_saved(folder, wrap):
    model = made(folder, "small", num_classes=7)
    if wrap == "half":
        model.half().float()
    torch.save(WRAPS[wrap](model.state_dict()), "model.pt")
    network = ood.load_network(f"{folder}:small", weights="model.pt")
    assert torch.equal(network.represent(IMAGES).logits, model(IMAGES))
    assert network.head.out_features == 7, "the number of classes is that of the weights"
    assert not network.training


def test_safetensors_are_read_too(folder):
    from safetensors.torch import save_file

    model = made(folder, "fixed")
    save_file(model.state_dict(), "model.safetensors")
    assert torch.equal(ood.load_network(f"{folder}:fixed", weights="model.safetensors")(IMAGES), model(IMAGES))


def test_the_standardisation_of_an_adapted_network_comes_with_its_state(folder):
    model = made(folder, "fixed")
    network = ood.adapt(model, normalize=ood.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])).eval()
    torch.save(network.state_dict(), "model.pt")
    again = ood.load_network(f"{folder}:fixed", weights="model.pt")
    assert torch.equal(again(IMAGES), network(IMAGES))
    other = ood.load_network(f"{folder}:fixed", weights="model.pt", mean=[0, 0, 0], std=[1, 1, 1])
    assert torch.equal(other(IMAGES), model(IMAGES)), "what is given comes first"


def test_what_does_not_fit_is_named(folder):
    state = made(folder, "fixed").state_dict()
    torch.save({("x" + n if n == "3.bias" else n): x for n, x in state.items()}, "names.pt")
    with pytest.raises(ValueError, match=r"lacks 3\.bias; it has besides x3\.bias"):
        ood.load_network(f"{folder}:fixed", weights="names.pt")
    torch.save(state | {"1.weight": torch.zeros(5, 9)}, "shapes.pt")
    with pytest.raises(ValueError, match=r"1\.weight \(5, 9\) for \(5, 12\)"):
        ood.load_network(f"{folder}:fixed", weights="shapes.pt")
    torch.save(made(folder, "small", num_classes=4).state_dict(), "four.pt")
    with pytest.raises(ValueError, match=r"3\.weight \(4, 5\) for \(3, 5\)"):
        ood.load_network(f"{folder}:fixed", weights="four.pt")


def test_no_code_of_a_file_is_run(folder):
    torch.save(made(folder, "fixed"), "whole.pt")
    with pytest.raises(ValueError, match=r"save the weights alone, with torch\.save\(model\.state_dict\(\)"):
        ood.load_network(f"{folder}:fixed", weights="whole.pt")
    torch.save({"epoch": 3}, "none.pt")
    with pytest.raises(ValueError, match="no tensors"):
        ood.load_network(f"{folder}:fixed", weights="none.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*lost\.pt"):
        ood.load_network(f"{folder}:fixed", weights="lost.pt")


@pytest.mark.parametrize(
    "spec, said",
    [
        ("resnet50", "expected torchvision:NAME"),
        ("torchvision:resnet5", "did you mean"),
        ("timm:resnett50", "did you mean"),
        ("cifar10-resnet10", "did you mean"),
        ("no_such_module:net", "no module 'no_such_module'"),
        ("some where:net", "expected torchvision:NAME"),
        ("cifar10-densenet", "github.com/deeplearning-wisc/dice"),
        ("OWN:absent", "has no 'absent'"),
        ("OWN:nothing", "returned a int; expected a torch.nn.Module"),
    ],
)
def test_a_wrong_name_is_answered(folder, spec, said):
    with pytest.raises(ValueError, match=said):
        ood.load_network(spec.replace("OWN", folder))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="hf:google/vit needs transformers: pip install transformers"):
        ood.load_network("hf:google/vit")


def test_torchvision_computes_what_was_saved_with_its_own_size(tmp_path):
    models = pytest.importorskip("torchvision.models")
    model = models.shufflenet_v2_x0_5(weights=None, num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    network = ood.load_network("torchvision:shufflenet_v2_x0_5", weights=tmp_path / "m.pt")
    how = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
    images = torch.rand(2, 3, 64, 64)
    standard = (images - torch.tensor(how.mean).view(3, 1, 1)) / torch.tensor(how.std).view(3, 1, 1)
    assert torch.allclose(network(images), model(standard), atol=1e-5)
    assert (network.card.frame.size, network.card.frame.resize) == (how.crop_size[0], how.resize_size[0])


def test_timm_brings_its_own_numbers(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.pt")
    network = ood.load_network("timm:resnet10t", weights=tmp_path / "m.pt")
    config = timm.data.resolve_model_data_config(model)
    images = torch.rand(2, 3, 64, 64)
    standard = (images - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    assert torch.allclose(network(images), model(standard), atol=1e-5)
    assert network.card.frame == ood.ImageFormat(3, 176, 201)
    smaller = ood.load_network("timm:resnet10t", weights=tmp_path / "m.pt", image_size=64, resize=70)
    assert smaller.card.frame == ood.ImageFormat(3, 64, 70)


def test_an_untrained_network_is_warned_of():
    pytest.importorskip("torchvision")
    with pytest.warns(UserWarning, match="torchvision:shufflenet_v2_x0_5 without weights is untrained"):
        ood.load_network("torchvision:shufflenet_v2_x0_5", classes=4)


def test_the_shipped_network_is_the_pretrained_one():
    network = ood.load_network("cifar10-resnet9")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(images), ood.pretrained("cifar10-resnet9")(images))
    with pytest.raises(ValueError, match="have 10"):
        ood.load_network("cifar10-resnet9", classes=3)


def test_a_published_architecture_takes_a_checkpoint_of_torch(tmp_path):
    model = CIFARResNet(9, 10).eval()
    torch.save({"state_dict": {f"module.{n}": x for n, x in model.state_dict().items()}}, tmp_path / "m.th")
    network = ood.load_network("cifar10-resnet56", weights=tmp_path / "m.th")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(images), model(network.normalize(images)))


@pytest.mark.parametrize(
    "how, frame",
    [
        ({"size": {"height": 224, "width": 224}}, ood.ImageFormat(3, 224, stretch=True)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            ood.ImageFormat(3, 224, 256),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, ood.ImageFormat(3, 224, 256)),
        ({"size": {"height": 224, "width": 200}}, None),
    ],
)
def test_the_size_as_hugging_face_writes_it(how, frame):
    assert sources._frame_of(how) == frame


def test_half_an_answer_is_refused(folder):
    with pytest.raises(ValueError, match="expected both of them"):
        ood.load_network(f"{folder}:fixed", mean=[0, 0, 0])
    with pytest.raises(ValueError, match="needs an image_size"):
        ood.load_network(f"{folder}:fixed", resize=70)
    with pytest.raises(ValueError, match="classes=0"):
        ood.load_network(f"{folder}:fixed", classes=0)


def test_loading_draws_no_number(folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert isinstance(ood.load_network(f"{folder}:small"), nn.Module)
    assert torch.equal(torch.rand(1), expected)

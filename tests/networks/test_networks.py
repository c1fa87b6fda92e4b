"""Laws of the networks: what `represent` shows is what the network computes."""

import copy
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from ood_lib import ResNet, adapt, load_benchmark, network_for, pick_device
from ood_lib.networks.resnet import PooledResNet
from tests.conftest import seeded

MAKE = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=5),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=5),
    "densenet121": lambda: torchvision.models.densenet121(weights=None, num_classes=5),
    "vit_b_16": lambda: torchvision.models.vit_b_16(weights=None, image_size=32, num_classes=5),
}


def images(count: int = 3, channels: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=seeded())


@pytest.fixture(scope="module", params=MAKE)
def foreign(request) -> nn.Module:
    torch.manual_seed(0)
    return MAKE[request.param]().eval()


def pictures_for(model: nn.Module) -> torch.Tensor:
    return images(side=32 if isinstance(model, torchvision.models.VisionTransformer) else 64)


# -- our own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ResNet, PooledResNet])
@pytest.mark.parametrize(("widths", "blocks"), [((8,), 1), ((8, 16), 2), ((4, 8, 12), 1), ((4, 8, 12), (0, 1, 2))])
def test_the_head_makes_the_logits_from_the_penultimate_feature(kind, widths: tuple[int, ...], blocks):
    network = kind(1, 3, widths, blocks).eval()
    seen = network.represent(images(4, 1, 16))
    assert seen.penultimate.shape == seen.style.shape == (4, widths[-1])
    assert torch.equal(network.head(seen.penultimate), seen.logits)
    assert torch.equal(network(images(4, 1, 16)), seen.logits)
    assert (seen.penultimate >= 0).all() and (seen.style >= 0).all()


@pytest.mark.parametrize("kind", [ResNet, PooledResNet])
def test_each_stage_after_the_first_halves_the_resolution(kind):
    network = kind(1, 3, (4, 8, 12)).eval()
    maps = network.stages(network.stem(images(2, 1, 16)))
    assert maps.shape == (2, 12, 4, 4)
    seen = network.represent(images(2, 1, 16))
    assert torch.allclose(seen.penultimate, maps.mean((2, 3)))
    assert torch.allclose(seen.style, maps.flatten(2).std(2, correction=0))


def test_pooling_one_convolution_a_stage_makes_the_resnet9_of_page():
    network = PooledResNet(3, 10, (64, 128, 256, 512), (0, 1, 0, 1))
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 9
    pairs = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    assert [m.weight.numel() for m in layers] == [9 * i * o for i, o in pairs] + [512 * 10]


def test_as_many_blocks_as_stages():
    with pytest.raises(ValueError, match=r"blocks \(1, 2\) for the stages \(4, 8, 12\): give one number"):
        ResNet(1, 3, (4, 8, 12), (1, 2))


@pytest.mark.parametrize("widths", ["[8, 16]", "8,16", [8.0, 16.0], 8, [], [8, 0], [8, True]])
def test_widths_are_whole_numbers(widths):
    for make in (lambda: ResNet(1, 3, widths), lambda: network_for(load_benchmark("digits"), widths)):
        with pytest.raises(ValueError, match=r"widths=.* was given; expected a list of whole numbers, such as"):
            make()


def test_a_map_without_space_has_no_style():
    assert ResNet(1, 3, (4, 8)).eval().represent(images(2, 1, 2)).style is None


def test_normalisation_is_the_first_layer():
    plain = ResNet(1, 3, (4,)).eval()
    standardised = copy.deepcopy(plain)
    standardised.normalize = nn.BatchNorm2d(1, affine=False).eval()
    standardised.normalize.running_mean.fill_(0.25)
    standardised.normalize.running_var.fill_(4.0)
    x = images(2, 1, 8)
    assert torch.allclose(standardised(x), plain((x - 0.25) / (4.0 + 1e-5) ** 0.5), atol=1e-6)
    adapted = adapt(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), normalize=nn.Threshold(9, 0))
    assert adapted.represent(images(2, 1, 2)).penultimate.eq(0).all()


# -- foreign ones -----------------------------------------------------------------------------------------------


def test_an_adapted_network_is_the_network(foreign: nn.Module):
    x = pictures_for(foreign)
    with torch.no_grad():
        adapted, expected = adapt(foreign), foreign(x)
        seen = adapted.represent(x)
    assert torch.equal(seen.logits, expected) and torch.equal(adapted(x), expected)
    assert torch.allclose(F.linear(seen.penultimate, adapted.head.weight, adapted.head.bias), expected, atol=1e-5)
    assert seen.penultimate.shape == (3, adapted.head.in_features)


def test_style_is_that_of_the_last_map_and_none_without_one(foreign: nn.Module):
    with torch.no_grad():
        seen = adapt(foreign).represent(pictures_for(foreign))
    if isinstance(foreign, torchvision.models.ResNet | torchvision.models.DenseNet):
        assert seen.style.shape == seen.penultimate.shape and (seen.style >= 0).all() and seen.style.max() > 0
    else:  # a hidden layer stands between the map and the head; tokens are no map
        assert seen.style is None


def test_the_style_of_resnet18_belongs_to_the_map_whose_mean_is_the_penultimate_feature():
    torch.manual_seed(0)
    model = MAKE["resnet18"]().eval()
    caught = []
    model.layer4.register_forward_hook(lambda *args: caught.append(args[-1]))
    with torch.no_grad():
        seen = adapt(model).represent(images())
    assert torch.allclose(caught[0].mean((2, 3)), seen.penultimate, atol=1e-6)
    assert torch.allclose(caught[0].std((2, 3), correction=0), seen.style, atol=1e-6)


def test_a_timm_model_is_adapted_likewise():
    timm = pytest.importorskip("timm")
    model = timm.create_model("convnext_atto", pretrained=False, num_classes=5).eval()
    with torch.no_grad():
        adapted = adapt(model)
        seen = adapted.represent(images())
        assert torch.equal(seen.logits, model(images()))
    assert torch.allclose(adapted.head(seen.penultimate), seen.logits, atol=1e-5)


def test_looking_inside_leaves_no_hook_behind():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    adapted = adapt(model)
    adapted.represent(images(2, 1, 4))
    with pytest.raises(RuntimeError):
        adapted.represent(images(2, 1, 9))  # the wrong size for the head
    assert not any(m._forward_hooks for m in adapted.modules())


def test_gradients_reach_the_images():
    x = images(2, 1, 8).requires_grad_()
    adapt(ResNet(1, 3, (4,)).eval()).represent(x).penultimate.sum().backward()
    assert x.grad.abs().sum() > 0


def test_adapting_adds_nothing_to_the_state_but_a_prefix():
    adapted = adapt(ResNet(1, 3, (4,)))
    assert [name.removeprefix("model.") for name in adapted.state_dict()] == list(adapted.model.state_dict())
    other = adapt(ResNet(1, 3, (4,)))
    other.load_state_dict(adapted.state_dict())
    x = images(2, 1, 8)
    assert torch.equal(other.eval()(x), adapted.eval()(x))


def test_a_copied_adapter_sees_through_its_own_head():
    adapted = adapt(ResNet(1, 3, (4,)).eval())
    twin = copy.deepcopy(adapted)
    with torch.no_grad():
        twin.head.bias += 1
    x = images(2, 1, 8)
    assert torch.allclose(twin.represent(x).logits, adapted.represent(x).logits + 1, atol=1e-6)


# -- as people have them ------------------------------------------------------------------------------------------


class Output(OrderedDict):
    """By key and by attribute, as the outputs of transformers."""

    __getattr__ = OrderedDict.__getitem__


class Returning(nn.Module):
    """A classifier that returns its logits in some wrapping."""

    def __init__(self, wrap) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc, self.wrap = nn.Linear(4, 3), nn.Linear(3, 2), wrap

    def forward(self, x: torch.Tensor) -> object:
        return self.wrap(self.fc(self.body(x.flatten(1)).relu()))


WRAPPINGS = {
    "an object": (lambda x: Output(loss=x.sum(), logits=x), None),
    "a dict": (lambda x: {"features": x.relu(), "logits": x}, None),
    "another name": (lambda x: {"aux": x.relu(), "main": x}, "main"),
    "an attribute": (lambda x: SimpleNamespace(main=x), "main"),
    "a tuple": (lambda x: (x.relu(), x), 1),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_logits_are_found_in_what_a_model_returns(wrapping: str):
    wrap, output = WRAPPINGS[wrapping]
    adapted, x = adapt(Returning(wrap), output=output), images(5, 1, 2)
    plain = adapt(Returning(lambda x: x))
    assert torch.equal(adapted(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(adapted.represent(x)[:2], plain.represent(x)[:2]))


@pytest.mark.parametrize("how", ["torch.compile", "in place", "a part", "a part in place"])
def test_a_compiled_model_is_seen_as_it_was_written(how: str):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)), Mean(), nn.Linear(4, 3)
    )
    x, model = images(2, 1, 8), copy.deepcopy(plain)
    if how == "torch.compile":
        model = torch.compile(model, backend="eager")
    elif how == "a part":
        model[0] = torch.compile(model[0], backend="eager")
    else:
        (model if how == "in place" else model[0]).compile(backend="eager")
    with torch.no_grad():
        model(x)
        expected, seen = adapt(plain).represent(x), adapt(model).represent(x)
    assert all(torch.allclose(a, b) for a, b in zip(seen, expected, strict=True))


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Twins(nn.Module):
    """The mean of two heads, as of distilled networks: on one feature, through normalisations, or on two features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.heads = kind, nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)])
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        inputs = {"one": [x, x], "norms": [norm(x) for norm in self.norms], "two": [x, x.flip(1)]}[self.kind]
        return sum(head(z) for head, z in zip(self.heads, inputs, strict=True)) / 2


@pytest.mark.parametrize(("kind", "width"), {"one": 4, "norms": 4, "two": 8}.items())
def test_heads_whose_mean_is_the_output_are_one_head(kind: str, width: int):
    model = Twins(kind).eval()
    adapted, x = adapt(model), images(7, 1, 2)
    with pytest.raises(ValueError, match=r"several layers that may be its head, \['heads.0', 'heads.1'\]"):
        _ = adapted.head  # one of the two would be wrong
    with torch.no_grad():
        seen = adapted.represent(x)
        assert torch.equal(seen.logits, model(x)) and seen.penultimate.shape == (7, width)
        assert torch.allclose(adapted.head(seen.penultimate), seen.logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"is the mean of \['heads.0', 'heads.1'\]: without head="):
        adapt(model, head="heads.1").represent(x)


@pytest.mark.parametrize("head", [None, False])
def test_a_model_without_its_head_has_features_and_no_logits(head):
    model = torchvision.models.resnet18(weights=None).eval()
    model.fc = nn.Identity()
    adapted = adapt(model, head=head)
    with torch.no_grad():
        seen = adapted.represent(images())
        assert torch.equal(seen.penultimate, model(images()))
    assert seen.logits is None and adapted.head is None and seen.style.shape == seen.penultimate.shape


def test_threads_do_not_see_each_others_images():
    torch.manual_seed(0)
    adapted = adapt(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Mean(), nn.Linear(4, 3)).eval())
    batches = [torch.rand(2, 1, 8, 8, generator=seeded(n)) for n in range(60)]
    with torch.no_grad():
        expected = [adapted.represent(x) for x in batches]

    @torch.no_grad()
    def look(x: torch.Tensor):
        return adapted.represent(x)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(look, batches))
    assert all(torch.equal(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True))


def test_a_thread_that_enters_a_layer_while_another_looks_and_leaves_it_after_that():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    adapted, here, there, gone = adapt(model), *(threading.Event() for _ in range(3))
    images = torch.rand(2, 1, 8, 8, generator=seeded(0))
    expected = model(images)
    main = threading.get_ident()

    def meet(*_: object) -> None:  # the first hook of the first layer: both threads hold the looker's hooks by then
        if threading.get_ident() == main:
            here.set()
            assert there.wait(60)
        else:
            there.set()
            assert gone.wait(60)

    model[0].register_forward_hook(meet)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: here.wait(60) and model(images))
        found = adapted.represent(images).logits
        gone.set()  # its hooks are removed
        assert torch.equal(other.result(60), expected) and torch.equal(found, expected)


class Worked(nn.Module):
    """Does something to a feature and its logits after the head; the head may be called by keyword."""

    def __init__(self, after, by_name: bool = False):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))
        self.head, self.after, self.by_name = nn.Linear(6, 3), after, by_name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x)
        out = self.head(input=z) if self.by_name else self.head(z)
        self.after(z, out)
        return out


IN_PLACE = {
    "scaled": lambda z, out: out.mul_(20),
    "shifted by a prior": lambda z, out: out.sub_(torch.tensor([5.0, 0, 0])),
    "a slice written": lambda z, out: out[:, 0].zero_(),
    "a feature brought to length one": lambda z, out: z.div_(z.norm(dim=1, keepdim=True)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_logits_or_features_changed_in_place_after_the_head_are_refused(kind: str, mode):
    for head in (None, "head"):
        with mode(), pytest.raises(ValueError, match=r"'head'.*changed in place"):
            adapt(Worked(IN_PLACE[kind]).eval(), head=head).represent(images(5, 1, 2))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_head_may_be_called_by_keyword_and_what_is_copied_may_be_changed(mode):
    model = adapt(Worked(lambda z, out: z.clone().relu_(), by_name=True).eval())
    with mode():
        seen = model.represent(images(5, 1, 2))
        assert torch.allclose(model.head(seen.penultimate), seen.logits)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_head_a_layer_rectified_in_place_is_none(mode):
    body = [nn.Flatten(), nn.Linear(4, 3)]
    for rectifier in (nn.ReLU(), nn.ReLU(inplace=True)):
        model = adapt(nn.Sequential(*body, rectifier, nn.Identity()).eval())
        with mode():
            assert model.represent(images(5, 1, 2)).logits is None


# -- refusals ---------------------------------------------------------------------------------------------------


MLP = [nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)]

WRONG = {
    "another layer": (nn.Sequential(*MLP), "1", r"is not the output of '1' but of '3': name that as its head"),
    "another width": (nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Unflatten(1, (5, 1)), nn.AvgPool1d(1),
                                    nn.Flatten(), nn.ReLU(), nn.AvgPool1d(5)), None, r"\(5, 1\), is not .*head=False"),
    "log-probabilities": (nn.Sequential(*MLP, nn.LogSoftmax(1)), None, r"but the log-softmax of it: let the model"),
    "probabilities": (nn.Sequential(*MLP, nn.Softmax(1)), "3", r"but the softmax of it: let the model"),
    "a temperature": (nn.Sequential(*MLP, nn.Hardtanh(0, 0.1)), None, "but some other function of it"),
    "a tuple": (Returning(lambda x: (x, x)), None, r"a tuple of \['Tensor', 'Tensor'\]; expected logits only, or"),
    "no such entry": (Returning(lambda x: {"a": x}), None, r"a dict of \['a'\]; expected logits only"),
    "a convolution": (nn.Sequential(nn.Identity(), nn.Conv2d(1, 2, 2), nn.Flatten()), None, "no nn.Linear layer"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_each_way_not_to_be_the_head_has_its_own_words(what: str):
    model, head, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        adapt(model, head=head).represent(images(5, 1, 2))


def test_a_layer_that_is_not_called_is_named():
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x.flatten(1), self.fc.weight)

    with pytest.raises(ValueError, match=r"'fc' of Borrowing did not run.*represent\(images\)"):
        adapt(Borrowing()).represent(images(5, 1, 2))


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"Conv2d has no nn\.Linear.*head=False"):
        adapt(nn.Conv2d(1, 2, 1))


@pytest.mark.parametrize("head", ["9", "0", "2"])
def test_a_name_that_is_no_linear_layer_is_refused_and_the_choice_is_shown(head: str):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=rf"head='{head}'.*\['1', '3'\]"):
        adapt(model, head=head)


def test_a_device_is_what_was_asked_for():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(torch.device("meta")).type == "meta"
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == expected

"""A trained network by its name: torchvision's, timm's, Hugging Face's, one that ships here, or the reader's own.

Beside its weights a network needs the pictures to be prepared as in its training: size, crop, mean and standard
deviation.  Its `NetworkCard` says how.
"""

import difflib
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.data.benchmark import Normalize
from ood_lib.data.images import ImageFormat
from ood_lib.extras import MissingExtraError, need
from ood_lib.networks.adapt import adapt
from ood_lib.shipped import SHIPPED
from ood_lib.training.published import PUBLISHED
from ood_lib.training.recipes import RECIPES, card, pretrained
from ood_lib.training.weights import below_prefix, fill, outputs, read_weights
from ood_lib.warn import warn

__all__ = ["NetworkCard", "load_network"]

FORMS = (
    "expected torchvision:NAME, timm:NAME, hf:NAME, package.module:function, or one of the networks known here: "
    f"{', '.join(sorted({*RECIPES, *PUBLISHED}))}"
)


@dataclass(frozen=True)
class NetworkCard:
    """How pictures are prepared for a network, and what its outputs are called.

    Args:
        spec: the name that it was loaded by.
        frame: size and crop; None = not known.
        mean, std: of the pixels in [0, 1], one number a channel; none = the network standardises for itself.
        classes: the names of its outputs in their order, where its source says them.
    """

    spec: str
    frame: ImageFormat | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def normalize(self) -> nn.Module | None:
        """The first layer of the network, or None."""
        return Normalize(self.mean, self.std) if self.mean else None


def load_network(
    spec: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | Literal[False] | None = None,
    output: str | int | None = None,
) -> nn.Module:
    """A network by its name, in eval mode, answering `represent`; its attribute ``card`` says how to prepare pictures.

    It takes pixels in [0, 1]: its standardisation is its first layer.  Pictures are resized as `ImageFormat` does,
    bilinearly, also for a network that was trained on bicubic ones.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` (an image classifier of Hugging Face, or the folder of
            one), ``package.module:function`` (of your own, seen from the current folder; it is called without
            arguments, or with the number of classes where it takes ``classes`` or ``num_classes``), or a network known
            here, such as ``cifar10-resnet9``.
        weights: file of a state dict (safetensors, or of `torch.save` and then read without running code), also one
            that wraps it, as checkpoints do; ``"default"`` = those that torchvision or timm publish, which may be
            downloaded; None = what the source brings: nothing for torchvision and timm, and then a warning.
        classes: number of outputs; None = as many as the weights have.
        image_size, resize, mean, std: instead of those on the card, as for `load_benchmark` and `Normalize`; mean and
            standard deviation come together, and a size without ``resize`` resizes to that size.
        head, output: as for `adapt`.

    Raises:
        ValueError: there is no such network; a file that is no state dict, or that of another network (the message
            names what differs).
        FileNotFoundError: there is no such file.
        MissingExtraError: torchvision, timm or transformers is not installed.

    Example:
        >>> network = load_network("cifar10-resnet9")
        >>> network.card.frame.size, network.card.classes[:2], network.head.out_features
        (32, ('airplane', 'automobile'), 10)
    """
    check("integer [1, inf) or None", "a number of outputs", classes=classes)
    kind, _, name = spec.partition(":") if ":" in spec else ("", "", spec)
    source = SOURCES.get(kind, _from_function)
    state = None if weights is None or str(weights) == "default" else read_weights(weights)
    with torch.random.fork_rng(devices=[]):  # the numbers that are drawn here are replaced
        model, about = source(spec if source is _from_function else name, _Wanted(spec, weights, state, classes))
    about = _changed(about, state, image_size, resize, mean, std)
    if hasattr(model, "represent"):
        if mean is not None or head is not None or output is not None:
            raise ValueError(f"{spec} answers represent by itself; mean, std, head and output are its own affair")
        network: Any = model
    else:
        network = adapt(model, head=head, normalize=about.normalize, output=output)
    network.card = about
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Wanted:
    """What was asked for, and the weights as they were read."""

    spec: str
    weights: str | os.PathLike[str] | None
    state: dict[str, Tensor] | None
    classes: int | None

    @property
    def default(self) -> bool:
        """Whether the published weights are to be taken."""
        return self.weights is not None and self.state is None

    def build(self, make: Callable[..., nn.Module], word: str = "num_classes") -> nn.Module:
        """The model with its weights; `make` takes the number of outputs by this word, where there is one."""
        model = make(**({word: self.classes} if word and self.classes else {}))
        if not isinstance(model, nn.Module):
            raise ValueError(f"{self.spec} returned a {type(model).__name__}; expected a torch.nn.Module")
        if self.state is None:
            return model
        fitting = below_prefix(self.state, model.state_dict(), self.weights)
        found = None if self.classes else outputs(model.state_dict(), fitting)
        if found:
            model = make(**({word: found} if word else {}))
            fitting = below_prefix(self.state, model.state_dict(), self.weights)
        fill(model, fitting, self.spec, self.weights)
        return model

    def untrained(self) -> None:
        """Warn of a network without weights."""
        if self.weights is None:
            warn(
                f"{self.spec} without weights is untrained, and its scores mean nothing: give weights=FILE, or "
                "weights='default' for the published ones"
            )

    def same_classes(self, own: int) -> None:
        """Refuse another number of classes than the published weights have."""
        if self.classes not in (None, own):
            raise ValueError(
                f"classes={self.classes} was given, but the published weights of {self.spec} have {own}: leave it out, "
                "or give the weights of your own training"
            )


def _changed(
    about: NetworkCard, state: Mapping[str, Tensor] | None, size: int | None, resize: int | None,
    mean: Sequence[float] | None, std: Sequence[float] | None,
) -> NetworkCard:  # fmt: skip
    """The card with what was given instead."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean} and std={std} were given; expected both of them, or neither")
    if resize is not None and size is None:
        raise ValueError(f"resize={resize} needs an image_size, to which the centre is cropped")
    saved = [(state or {}).get(f"normalize.{name}") for name in ("mean", "std")]
    if mean is not None and std is not None:
        about = replace(about, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    elif saved[0] is not None and saved[1] is not None:  # the file is of a network that `adapt` made
        about = replace(about, mean=tuple(saved[0].flatten().tolist()), std=tuple(saved[1].flatten().tolist()))
    if size is not None:
        channels = about.frame.channels if about.frame else len(about.mean) or 3
        about = replace(about, frame=ImageFormat(channels, size, resize or 0))
    return about


def _from_torchvision(name: str, wanted: _Wanted) -> tuple[nn.Module, NetworkCard]:
    models = need("torchvision.models")
    _known(name, models.list_models(module=models), wanted)
    best = models.get_model_weights(name).DEFAULT
    how, names = best.transforms(), tuple(best.meta["categories"])
    if wanted.default:
        wanted.same_classes(len(names))
        model = models.get_model(name, weights=best)
    else:
        wanted.untrained()
        model = wanted.build(partial(models.get_model, name, weights=None))
        names = ()
    if getattr(model, "transform_input", None) is False:
        warn(
            f"{wanted.spec} was built with transform_input=False; where your training began with the published weights "
            "it was True: then return the network from a function of your own, package.module:function"
        )
    size, resize = how.crop_size[0], how.resize_size[0]
    fixed = getattr(model, "image_size", size)  # of a transformer
    frame = ImageFormat(3, size, resize) if fixed == size else ImageFormat(3, fixed)
    return model, NetworkCard(wanted.spec, frame, tuple(how.mean), tuple(how.std), names)


def _package(name: str, wanted: _Wanted) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{wanted.spec} needs {name}: pip install {name}") from error


def _from_timm(name: str, wanted: _Wanted) -> tuple[nn.Module, NetworkCard]:
    timm = _package("timm", wanted)
    if not timm.is_model(name):
        _known(name, timm.list_models(), wanted)
    if wanted.default:
        model = timm.create_model(name, pretrained=True)
        wanted.same_classes(model.num_classes)
    else:
        wanted.untrained()
        model = wanted.build(partial(timm.create_model, name))
    how = timm.data.resolve_model_data_config(model)
    channels, height, width = how["input_size"]
    if height != width:
        raise ValueError(f"{wanted.spec} reads pictures of {height} x {width}; expected a square")
    stretch = how.get("crop_mode") == "squash"
    resize = 0 if stretch else math.floor(height / how["crop_pct"])
    frame = ImageFormat(channels, height, resize, stretch)
    return model, NetworkCard(wanted.spec, frame, tuple(how["mean"]), tuple(how["std"]))


def _from_hugging_face(name: str, wanted: _Wanted) -> tuple[nn.Module, NetworkCard]:
    auto = _package("transformers", wanted)
    kind = auto.AutoModelForImageClassification
    if wanted.state is None:
        model = kind.from_pretrained(name)
        wanted.same_classes(model.config.num_labels)
    else:
        config = auto.AutoConfig.from_pretrained(name)
        own = config.num_labels

        def make(num_classes: int = own) -> nn.Module:
            config.num_labels = num_classes
            return kind.from_config(config)

        model = wanted.build(make)
    how, names = auto.AutoImageProcessor.from_pretrained(name).to_dict(), model.config.id2label
    mean, std = (tuple(how.get(f"image_{x}") or ()) if how.get("do_normalize", True) else () for x in ("mean", "std"))
    return model, NetworkCard(wanted.spec, _frame_of(how), mean, std, tuple(names[i] for i in range(len(names))))


def _frame_of(how: Mapping[str, Any]) -> ImageFormat | None:
    """Size and crop as an image processor of Hugging Face writes them; None for a form that is none of ours."""
    size, crop = how.get("size") or {}, how.get("crop_size") or {}
    if isinstance(size, int):
        size = {"shortest_edge": size}
    short, side = size.get("shortest_edge"), size.get("height")
    if how.get("do_center_crop") and crop.get("height") == crop.get("width") and (short or side):
        return ImageFormat(3, crop["height"], max(short or side, crop["height"]))
    if short and how.get("crop_pct"):  # ConvNeXT
        return ImageFormat(3, short, int(short / how["crop_pct"]))
    return ImageFormat(3, side, stretch=True) if side and side == size.get("width") else None


def _known_here(name: str, wanted: _Wanted) -> tuple[nn.Module, NetworkCard]:
    if name in PUBLISHED:
        return _published(name, wanted)
    _known(name, {*RECIPES, *PUBLISHED}, wanted)
    folder = Path(wanted.weights or "").parent if wanted.state else SHIPPED  # trained by the reader, its card beside it
    about, model = card(name, folder), pretrained(name, folder)
    wanted.same_classes(len(about["classes"]))
    frame = ImageFormat(len(about["normalize"][0]), 32)
    mean, std = map(tuple, about["normalize"])
    return model, NetworkCard(name, frame, mean, std, tuple(about["classes"]))


def _published(name: str, wanted: _Wanted) -> tuple[nn.Module, NetworkCard]:
    about = PUBLISHED[name]
    if wanted.state is None:
        raise ValueError(f"the weights of {name} do not come with the library; give those of {about.source}")
    model = about.network()
    alone = all(key.startswith("module.") for key in wanted.state)  # as DataParallel saves them
    found = {key.removeprefix("module.") if alone else key: x for key, x in wanted.state.items()}
    fill(model, about.state(found, name, wanted.weights), name, wanted.weights)
    frame = ImageFormat(3, 224, stretch=True) if about.benchmark == "folder:" else ImageFormat(3, 32)
    return model, NetworkCard(name, frame, about.mean, about.std)


def _from_function(spec: str, wanted: _Wanted) -> tuple[nn.Module, NetworkCard]:
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", spec):
        raise ValueError(f"{spec!r} was given as a network; {FORMS}")
    if wanted.default:
        raise ValueError(f"weights='default' was given, but {spec} has none; let the function load what it needs")
    with _here():
        function = _imported(spec)
        takes = [p for p in inspect.signature(function).parameters if p in ("classes", "num_classes")]
        if wanted.classes and not takes:
            raise ValueError(f"classes={wanted.classes} was given, but {spec} takes neither classes nor num_classes")
        made = wanted.build(function, takes[0] if takes else "")
    return made, NetworkCard(spec)


def _imported(spec: str) -> Callable[..., Any]:
    module, _, name = spec.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports what is not
        raise ValueError(f"there is no module {module!r} in {os.getcwd()} or installed; {FORMS}") from error
    except AttributeError as error:
        raise ValueError(f"{module} has no {name!r}; expected a function that returns the network") from error
    if not callable(found):
        raise ValueError(f"{spec} is a {type(found).__name__}; expected a function that returns the network")
    return found


@contextmanager
def _here() -> Iterator[None]:
    """Modules of the current folder can be imported, as by ``python -m``."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def _known(name: str, names: Collection[str], wanted: _Wanted) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, list(names), 3, 0.5)
        meant = [f"did you mean {' or '.join(close)}?"] if close else []
        raise ValueError(
            "; ".join([f"there is no network {wanted.spec!r}", *meant, *([] if ":" in wanted.spec else [FORMS])])
        )


SOURCES: dict[str, Callable[[str, _Wanted], tuple[nn.Module, NetworkCard]]] = {
    "": _known_here,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "hf": _from_hugging_face,
}

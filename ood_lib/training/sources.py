"""Where a network comes from: torchvision, timm, Hugging Face, a function of the reader's own, or those known here.

Each source makes the network that was asked for, and the card that says how to prepare its pictures.
"""

import difflib
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ood_lib.data.benchmark import Normalize
from ood_lib.data.images import ImageFormat
from ood_lib.extras import MissingExtraError, need
from ood_lib.shipped import SHIPPED
from ood_lib.training.published import PUBLISHED
from ood_lib.training.recipes import RECIPES, card, pretrained
from ood_lib.training.weights import below_prefix, fill, outputs
from ood_lib.warn import warn

__all__ = ["SOURCES", "NetworkCard", "Wanted", "from_function"]

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


@dataclass(frozen=True)
class Wanted:
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


def _from_torchvision(name: str, wanted: Wanted) -> tuple[nn.Module, NetworkCard]:
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


def _package(name: str, wanted: Wanted) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{wanted.spec} needs {name}: pip install {name}") from error


def _from_timm(name: str, wanted: Wanted) -> tuple[nn.Module, NetworkCard]:
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


def _from_hugging_face(name: str, wanted: Wanted) -> tuple[nn.Module, NetworkCard]:
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


def _known_here(name: str, wanted: Wanted) -> tuple[nn.Module, NetworkCard]:
    if name in PUBLISHED:
        return _published(name, wanted)
    _known(name, {*RECIPES, *PUBLISHED}, wanted)
    folder = Path(wanted.weights or "").parent if wanted.state else SHIPPED  # trained by the reader, its card beside it
    about, model = card(name, folder), pretrained(name, folder)
    wanted.same_classes(len(about["classes"]))
    frame = ImageFormat(len(about["normalize"][0]), 32)
    mean, std = map(tuple, about["normalize"])
    return model, NetworkCard(name, frame, mean, std, tuple(about["classes"]))


def _published(name: str, wanted: Wanted) -> tuple[nn.Module, NetworkCard]:
    about = PUBLISHED[name]
    if wanted.state is None:
        raise ValueError(f"the weights of {name} do not come with the library; give those of {about.source}")
    model = about.network()
    alone = all(key.startswith("module.") for key in wanted.state)  # as DataParallel saves them
    found = {key.removeprefix("module.") if alone else key: x for key, x in wanted.state.items()}
    fill(model, about.state(found, name, wanted.weights), name, wanted.weights)
    frame = ImageFormat(3, 224, stretch=True) if about.benchmark == "folder:" else ImageFormat(3, 32)
    return model, NetworkCard(name, frame, about.mean, about.std)


def from_function(spec: str, wanted: Wanted) -> tuple[nn.Module, NetworkCard]:
    """What package.module:function returns, which may lie in the current folder."""
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


def _known(name: str, names: Collection[str], wanted: Wanted) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, list(names), 3, 0.5)
        meant = [f"did you mean {' or '.join(close)}?"] if close else []
        raise ValueError(
            "; ".join([f"there is no network {wanted.spec!r}", *meant, *([] if ":" in wanted.spec else [FORMS])])
        )


SOURCES: dict[str, Callable[[str, Wanted], tuple[nn.Module, NetworkCard]]] = {
    "": _known_here,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "hf": _from_hugging_face,
}

"""A network that need not be trained twice: it comes with the library, or was kept when it was trained here before."""

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from ood_lib.data.fingerprint import dataset_hash
from ood_lib.networks.layout import memory_format
from ood_lib.networks.network import pick_device
from ood_lib.shipped import SHIPPED
from ood_lib.tensors import raw_bytes, save_tensors
from ood_lib.training.augment import Augmented
from ood_lib.training.loop import Descent, History
from ood_lib.warn import warn

__all__ = ["TRAINED", "trained"]

TRAINED = SHIPPED / "trained"
CURVES = ("loss", "learning_rate", "accuracy")
APART = ("network", "device", "progress", "checkpoint")  # arguments that do not say what is trained


def trained(
    train: Callable[..., History], network: nn.Module, data: Dataset, *, name: str, seed: int = 0,
    cache: str | os.PathLike[str] | None = None, **options: Any,
) -> History:  # fmt: skip
    """Train a network, or bring it to where that training has led before.

    A training is known by the function and all its options, the data, the seed, and the kind, shapes and overall size
    of the weights that it starts from.  Networks that the book has trained with its own recipes come with the library
    and are taken on every machine; the variable ``OOD_TRAIN=all`` trains them here.  What was kept in `cache` is taken
    where device, version of torch and code are the same too, and the first weights to the last bit.

    Args:
        train: `train_classifier`, `train_multilabel` or `train_score_network`.
        network: changed in place, left in eval mode.
        data: what it is trained on.
        name: of the training, for its file; it also tells apart what cannot be seen in options and weights, such as a
            method of the network that was replaced.
        seed: of the training.
        cache: folder to keep it in; None = the variable OOD_CACHE, else it is not kept.
        options: of `train`.

    Returns:
        What `train` returned; ``recalled`` says whether that was in an earlier training.

    Raises:
        ValueError: see `train`.
    """
    where = pick_device(options.get("device", "auto"))
    folder = cache or os.environ.get("OOD_CACHE")
    word = re.sub("[^a-z0-9]+", "-", name.lower())
    ships = os.environ.get("OOD_TRAIN") != "all" and any(TRAINED.glob(f"{word}-*-seed{seed}.*"))
    told = _recipe(train, network, data, seed, options) if ships or folder else ""
    here = _circumstances(train, network, where) if told and folder else {}
    file = f"{word}-{_digest(name, told)}-seed{seed}.safetensors"
    kept = Path(folder, file) if folder and here else None
    history = None
    if ships and told and (TRAINED / file).is_file():
        history = _recall(network, TRAINED / file)
    if not history and kept and kept.is_file():
        history = _recall(network, kept, here)
    if history:
        layout = memory_format(network, options.get("channels_last", False), where)
        network.to(where).to(memory_format=layout).eval()
        return history
    history = train(network, data, seed=seed, **options)
    if kept:
        _keep(network, history, kept, here)
    return history


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _recipe(
    train: Callable[..., History], network: nn.Module, data: Dataset, seed: int, options: Mapping[str, Any]
) -> str:
    """A training in words that are the same on every machine; "" where an option is not to be told from others."""
    given = inspect.signature(train).bind(network, data, seed=seed, **options)
    given.apply_defaults()
    try:
        facts = {k: _said(x) for k, x in given.arguments.items() if k not in APART}
    except ValueError:  # images that differ each time they are read
        return ""
    shapes = {k: (tuple(x.shape), x.dtype) for k, x in network.state_dict().items()}
    size = float(sum(p.detach().cpu().double().square().sum() for p in network.parameters())) ** 0.5
    told = f"{train.__name__}{facts}{type(network).__qualname__}{shapes}{size:.4g}"
    return "" if " at 0x" in told else told  # such a name, of an own function, tells nobody what it does


def _said(value: Any) -> Any:
    """An option, as it is told from another one."""
    if isinstance(value, Dataset):
        return dataset_hash(value)
    ours = inspect.isfunction(value) and value.__module__.startswith("ood_lib.") and "<" not in value.__qualname__
    return value.__name__ if ours else value


def _circumstances(train: Callable[..., History], network: nn.Module, where: torch.device) -> dict[str, str]:
    """What else a trained network depends on, to the last bit; empty where its code is in no file, as in a notebook."""
    try:
        own = {inspect.getfile(type(m)) for m in network.modules() if type(m).__module__.partition(".")[0] != "torch"}
        files = sorted(own) + [inspect.getfile(part) for part in (train, Descent, Augmented)]
        code = _digest(*(Path(file).read_bytes() for file in files))
    except (TypeError, OSError):
        return {}
    weights = hashlib.sha256()
    for value in network.state_dict().values():
        weights.update(raw_bytes(value))
    versions = {"torch": torch.__version__, "device": where.type, "threads": str(torch.get_num_threads())}
    return versions | {"code": code, "first weights": weights.hexdigest()[:16]}


def _keep(network: nn.Module, history: History, file: Path, here: dict[str, str]) -> None:
    curves = {f"history.{k}": torch.tensor(getattr(history, k), dtype=torch.float64) for k in CURVES}
    try:
        save_tensors(network.state_dict() | curves, file, here)
    except OSError as error:
        warn(f"the trained network is not kept, and is trained anew each time: {error}")


def _recall(network: nn.Module, file: Path, here: Mapping[str, str] | None = None) -> History | None:
    """Bring a network to what was kept; None where that was made otherwise, or cannot be read: it is made again."""
    try:
        with safe_open(file, "pt") as parts:
            about = parts.metadata() or {}
            if here and about | {"threads": here["threads"]} != here:  # their number changes no more than rounding
                return None
            state = {name: parts.get_tensor(name) for name in parts.keys()}
        curves = [state.pop(f"history.{k}").tolist() for k in CURVES]
        _check_parts(network, state)
    except (OSError, SafetensorError, KeyError) as error:
        warn(f"the network kept in {file} cannot be read ({error}), and is trained again")
        return None
    network.load_state_dict(state)
    loss, learning_rate, accuracy = curves
    return History(loss, learning_rate, accuracy, recalled=True)


def _check_parts(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse the weights of another network before a part of them is loaded."""
    own = network.state_dict()
    if state.keys() != own.keys() or any(x.numel() and x.shape != state[k].shape for k, x in own.items()):
        raise KeyError("it is of another network")

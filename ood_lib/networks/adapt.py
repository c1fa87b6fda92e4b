"""Any torchvision or timm classifier answers `represent` like the networks of the library."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ood_lib.data.benchmark import Benchmark
from ood_lib.networks.network import Representation, style_of
from ood_lib.networks.resnet import ResNet

__all__ = ["Adapted", "adapt", "as_network", "network_for"]


def network_for(bench: Benchmark, widths: Sequence[int] = (32, 64), blocks: int = 1) -> ResNet:
    """The network of a benchmark: a small `ResNet` of these widths and blocks, to be trained on its images.

    Example:
        >>> from ood_lib.data.benchmark import load_benchmark
        >>> network_for(load_benchmark("digits")).head
        Linear(in_features=64, out_features=7, bias=True)
    """
    return ResNet(bench.image_shape[0], len(bench.classes), widths, blocks, bench.normalize)


class Adapted(nn.Module):
    """A foreign classifier that answers `represent`; made by `adapt`."""

    _head: Any  # a linear layer, or None

    def __init__(
        self,
        model: nn.Module,
        head: nn.Linear | None,
        normalize: nn.Module | None = None,
        output: str | int | None = None,
        sure: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize or nn.Identity()
        self.output = output
        self._sure, self._looked = sure, False  # that `_head` is the head, or that there is none: else images show it
        object.__setattr__(self, "_head", head)  # a second name, not a second entry in state_dict

    @property
    def head(self) -> nn.Linear:
        """The linear layer that makes the logits of the penultimate feature; None where the model has none.

        Raises:
            ValueError: several layers may be it, and the model has not run yet.
        """
        head: Any = self._head
        twins = [n for n, m in self.model.named_modules() if head is not None and _alike(m, head)]
        if not (self._sure or self._looked) and len(twins) > 1:
            raise ValueError(
                f"{type(self.model).__name__} has several layers that may be its head, {twins}: name it with "
                "adapt(model, head=...), or look at an image first, with represent or extract, which finds out"
            )
        return head

    def represent(self, images: Tensor) -> Representation:
        """As `ResNet.represent`; raises ValueError where the logits are not what the head made of the feature."""
        seen = _Seen(self.model, self._head)
        with seen, _uncompiled(self.model):
            logits = self._entry(_run(self.model, self.normalize(images)))
        head, penultimate = self._found(seen, logits)
        if head is not self._head:
            object.__setattr__(self, "_head", head)
        self._looked = True
        made = None if head is None else logits
        return Representation(penultimate, made, seen.style(penultimate.shape[1]))

    def _found(self, seen: "_Seen", result: Tensor) -> tuple[nn.Linear | None, Tensor]:
        """The head and what it read; the head is what it was, unless the model had not run before or has several."""
        entered, made = seen.last(self._head)
        if made is not None and entered.ndim == 2 and _same(made, result) and not seen.changed(self._head):
            return self._head, entered
        if (self._sure and self._head is None) or (not self._sure and seen.ends_in_identity(result)):
            return None, _rows(result, self.model)
        if not self._sure and (twins := seen.twins(result)):
            return _joined(twins, seen)
        raise ValueError(self._why(seen, result))

    def _why(self, seen: "_Seen", result: Tensor) -> str:
        """Why the output is not that of the head; each way has its own remedy."""
        names = {m: n for n, m in self.model.named_modules()}
        model, head, given = type(self.model).__name__, names.get(self._head, ""), tuple(result.shape)
        if self._head is None:
            return (
                f"{model} has no nn.Linear layer to serve as the head; where its output {given} is a feature (N, K), "
                "and no logits, say adapt(model, head=False)"
            )
        entered, made = seen.last(self._head)
        if changed := seen.changed(self._head):
            say = (
                "z = z / z.norm(dim=1, keepdim=True), not z /= ..."
                if changed == "read"
                else "let the model return what the head makes, without what comes behind it"
            )
            return f"what the head {head!r} of {model} {changed} was changed in place afterwards: {say}"
        if makers := [names[m] for m in seen.linear() if _same(seen.calls[m][1], result)]:
            return f"the output of {model} is not the output of {head!r} but of {makers[-1]!r}: name that as its head"
        if twins := [names[layer] for layer, _ in seen.twins(result)]:
            return f"the output of {model} is the mean of {twins}: without head= they are taken together as one head"
        if made is None:
            return (
                f"the layer {head!r} of {model} did not run: name another one as head=; where the model uses the "
                "weights of a layer and never calls it, give it a method represent(images) that returns an "
                "ood_lib.networks.network.Representation"
            )
        if entered.ndim != 2:
            return f"the head {head!r} of {model} reads {tuple(entered.shape)}; expected one feature per image, (N, K)"
        what = f"the output of {model}, {given}, is not the output of {head!r}, {tuple(made.shape)}"
        if made.shape != result.shape:
            return (
                f"{what}: name the last linear layer as head=, or say head=False where the output is a feature (N, K)"
            )
        after = next((name for name, f in AFTER.items() if _same(f(made), result)), "some other function")
        return f"{what}, but {after} of it: let the model return what {head!r} makes, without what comes behind it"

    def _entry(self, made: Any) -> Tensor:
        """The logits in what the model returned."""
        if isinstance(made, Tensor) and self.output is None:
            return made
        found = _part(made, "logits" if self.output is None else self.output)
        if isinstance(found, Tensor):
            return found
        asked = "" if self.output is None else f", in which there is no tensor {self.output!r}"
        raise ValueError(
            f"{type(self.model).__name__} returns {_described(made)}{asked}; expected logits only, or say where they "
            "are with adapt(model, output=...), the place in a tuple or the name in a dict"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C); of a model without a head its features (N, K)."""
        return self._entry(self.model(self.normalize(images)))


AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "the softmax": lambda x: x.softmax(1),
    "the log-softmax": lambda x: x.log_softmax(1),
    "the sigmoid": torch.sigmoid,
    "the unit vector": lambda x: x / x.norm(dim=1, keepdim=True),
}

KEPT = (nn.Linear, nn.BatchNorm1d, nn.Identity)


class _Seen:
    """What layers read and made while a model ran, in this thread and no other: their last call."""

    def __init__(self, model: nn.Module, head: nn.Module | None) -> None:
        self.model, self.head, self.thread = model, head, threading.get_ident()
        self.calls: dict[Any, Any] = {}  # what each read, and what it made
        self.states: dict[Any, Any] = {}  # and how both were then
        self.map: Tensor | None = None

    def __enter__(self) -> Self:
        self.handles = [m.register_forward_hook(self._look, with_kwargs=True) for m in self.model.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _look(self, module: nn.Module, inputs: Any, *named_and_output: Any) -> None:
        # Another thread shows the model its own images; it may call this hook before it is known to take keywords, and
        # after that was forgotten.
        if threading.get_ident() != self.thread:
            return
        named, output = named_and_output
        if not isinstance(output, Tensor):
            return
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            self.map = output
        if output.ndim == 3:  # (N, tokens, K): a transformer goes on without a map
            self.map = None
        if module is self.head or (isinstance(module, KEPT) and output.ndim == 2):  # tokens would fill the memory
            self.calls.pop(module, None)  # the order is that of the last calls
            self.calls[module] = entered, output = next(iter((*inputs, *named.values()))), output
            self.states[module] = _state(entered), _state(output)

    def last(self, module: nn.Module | None) -> tuple[Any, Any]:
        """What a layer read in its last call, and what it made; None where it did not run."""
        return self.calls.get(module, (None, None))

    def changed(self, module: nn.Module | None) -> str:
        """Which of them was changed in place since: what it ``made``, or what it ``read``; "" where neither was."""
        calls = zip(("read", "made"), self.last(module), self.states.get(module, ()))
        return next((which for which, x, state in reversed([*calls]) if not _unchanged(x, state)), "")

    def linear(self) -> list[nn.Linear]:
        """The linear layers whose last input and output are still what they were."""
        return [m for m in self.calls if isinstance(m, nn.Linear) and not self.changed(m)]

    def style(self, width: int) -> Tensor | None:
        """Standard deviation of the last map over space, where the feature is the mean of its channels."""
        return style_of(self.map) if self.map is not None and self.map.shape[1] == width else None

    def twins(self, logits: Tensor) -> list[tuple[nn.Linear, Tensor]]:
        """Two or more layers whose mean the logits are, and what each of them read."""
        calls = [(m, *self.calls[m]) for m in self.linear()]
        found = [(m, x, made) for m, x, made in calls if made.shape == logits.shape and x.ndim == 2]
        alike = len(found) > 1 and _same(torch.stack([made for *_, made in found]).mean(0), logits)
        return [(m, x) for m, x, _ in found] if alike else []

    def ends_in_identity(self, result: Tensor) -> bool:
        """Whether an identity stands in the place of the head: it passed on the output, which no linear layer made."""
        last = [m for m, (_, made) in self.calls.items() if made.data_ptr() == result.data_ptr()]
        return any(isinstance(m, nn.Identity) for m in last) and not any(m in self.linear() for m in last)


def _joined(twins: list[tuple[nn.Linear, Tensor]], seen: _Seen) -> tuple[nn.Linear, Tensor]:
    """One layer for the mean of several, and the feature that it reads.

    Layers that read one feature, or what batch normalisations in eval mode make of one, are one layer on this feature;
    others are one on their features side by side.
    """
    parts = [_on_input(layer, entered, seen) for layer, entered in twins]
    features = [feature for *_, feature in parts]
    if all(_same(features[0], other) for other in features[1:]):
        weight, feature = torch.stack([w for w, *_ in parts]).mean(0), features[0]
    else:
        parts = [(m.weight, _bias(m), entered) for m, entered in twins]
        weight, feature = torch.cat([w for w, *_ in parts], 1) / len(parts), torch.cat([x for *_, x in parts], 1)
    head = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.stack([b for _, b, _ in parts]).mean(0))
    return head.requires_grad_(False), feature


def _on_input(layer: nn.Linear, entered: Tensor, seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and feature of a layer, a batch normalisation in eval mode before it counted in."""
    for norm, (read, made) in seen.calls.items():
        if not isinstance(norm, nn.BatchNorm1d) or made is not entered or seen.changed(norm):
            continue
        if not norm.training and norm.running_var is not None:
            assert norm.running_mean is not None
            scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
            return layer.weight * scale, _bias(layer) + layer.weight @ shift, read
    return layer.weight, _bias(layer), entered


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _run(model: nn.Module, images: Tensor) -> Any:
    """What a model makes of images, also when `model.compile()` has put something else in the place of its call."""
    return model.forward(images) if getattr(model, "_compiled_call_impl", None) is not None else model(images)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled parts as they were written: what torch.compile made of them calls no hooks."""
    compiled = ("_orig_mod", "_compiled_call_impl")
    parts = [m for m in model.modules() if m is not model and any(getattr(m, x, None) is not None for x in compiled)]
    if not parts or not hasattr(torch.compiler, "set_stance"):
        yield
    else:
        with _STANCE, torch.compiler.set_stance("force_eager"):
            yield


_STANCE = threading.RLock()  # torch keeps one stance for all threads


def _rows(result: Tensor, model: nn.Module) -> Tensor:
    if result.ndim != 2:
        raise ValueError(
            f"{type(model).__name__} has no head, and returns {tuple(result.shape)}; expected one feature per image, "
            "(N, K): pool what it returns"
        )
    return result


def _described(made: Any) -> str:
    if isinstance(made, Mapping):
        return f"a {type(made).__name__} of {list(made)}"
    if isinstance(made, Sequence) and not isinstance(made, str):
        return f"a {type(made).__name__} of {[type(part).__name__ for part in made]}"
    return f"a {type(made).__name__}"


def _part(made: Any, name: str | int) -> Any:
    """An entry by its place or its name, or an attribute of that name; None where there is none."""
    try:
        return made[name]
    except (KeyError, IndexError, TypeError):
        return getattr(made, str(name), None)


def _state(x: Tensor) -> Any:
    """By which a later look tells whether a tensor was changed in place; one made in inference mode keeps no count."""
    return x.clone() if x.is_inference() else x._version


def _unchanged(x: Tensor, state: Any) -> bool:
    return torch.allclose(x, state, equal_nan=True) if isinstance(state, Tensor) else x._version == state


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.to(b.dtype), b, equal_nan=True)


def _alike(a: nn.Module, b: nn.Linear) -> bool:
    return isinstance(a, nn.Linear) and (a.in_features, a.out_features) == (b.in_features, b.out_features)


def adapt(
    model: nn.Module,
    head: str | Literal[False] | None = None,
    normalize: nn.Module | None = None,
    output: str | int | None = None,
) -> Adapted:
    """Make any classifier that ends in a linear layer answer `represent`.

    A model that ``torch.compile`` went over is run as it was written, since hooks see nothing of a compiled one.  Heads
    whose mean is the output, as of distilled networks, become one.  A model whose head was taken out, such as
    ``timm.create_model(..., num_classes=0)``, has features and no logits.

    Args:
        model: images -> logits (N, C), for instance from ``torchvision.models`` or ``timm.create_model``; or an object
            or dict with ``logits``, as from ``transformers``.
        head: dotted name of the linear layer that makes the logits; found by itself when it is the last one.  False:
            there is none, what the model returns is the penultimate feature (N, K).
        normalize: first layer for a model that expects standardised images.
        output: which entry of what the model returns holds the logits: the place in a tuple, or the name in a dict.

    Raises:
        ValueError: no linear layer, or ``head`` is not one.

    Example:
        >>> tiny = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> adapt(tiny).represent(torch.zeros(5, 1, 2, 2)).penultimate.shape
        torch.Size([5, 3])
    """
    model = getattr(model, "_orig_mod", model)
    if head is False:
        return Adapted(model, None, normalize, output)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if head is not None and head not in linear:
        raise ValueError(f"head={head!r} is not a linear layer; the linear layers are {list(linear)}")
    if not linear:
        if any(isinstance(m, nn.Identity) for m in model.modules()):  # perhaps one in the place of the head: see there
            return Adapted(model, None, normalize, output, sure=False)
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear layer to serve as the head; where its output is a feature (N, K) "
            "and no logits, say adapt(model, head=False)"
        )
    return Adapted(model, linear[head or list(linear)[-1]], normalize, output, sure=head is not None)


def as_network(model: Any) -> Any:
    """A model that answers `represent`, as it is; any other classifier through `adapt`."""
    return model if hasattr(model, "represent") else adapt(model)

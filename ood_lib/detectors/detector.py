"""The one contract: a detector is an energy on a representation; **larger score = more OOD**.

A subclass says which fields of `Features` it reads, learns in ``_fit`` and scores a chunk in ``_score``.  Everything a
user relies on (checks, chunks, devices, thresholds, saving) is here, once.  Many methods read a feature through the
last linear layer of its network; they keep a copy of it, the `FrozenHead`.
"""

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from ood_lib.checks import check
from ood_lib.data.images import ImageFormat
from ood_lib.data.labels import class_indices
from ood_lib.detectors.conformal import conformal_p_values, conformal_rank
from ood_lib.detectors.description import as_bytes, describe, from_bytes, unknown
from ood_lib.detectors.shapes import check_width
from ood_lib.features.features import Features
from ood_lib.features.identity import network_hash
from ood_lib.tensors import save_tensors
from ood_lib.warn import warn

__all__ = ["HEADER", "REMEMBERED", "Detector", "NotFittedError"]


HEADER = "ood_lib"  # where the header of a file says which detector it holds
PLAIN = (str, int, float, bool, type(None))
REMEMBERED = 256  # rows of a fit, evenly spaced, that `calibrate` would know again


class NotFittedError(RuntimeError):
    """A detector was asked for a score or a decision before it had what it needs."""


class Detector(nn.Module):
    """Base of all detectors: ``fit`` on training features, ``score`` any features, ``calibrate`` a threshold.

    Fitted tensors are buffers, so ``state_dict``, ``load_state_dict`` (into a fresh, unfitted object too) and
    ``.to(device)`` work as for any module.  The state says which detector it is of, and only one of the same class
    and the same hyperparameters takes it.  ``save`` writes a file of which `ood_lib.load` makes the detector again.

    Scores come back on the device of the features, in their precision (half precision is computed, and returned, as
    float32), under ``torch.autocast`` too. ``.half()`` and similar calls change nothing: fitted values, and above all
    the threshold, keep their precision.
    """

    reads: tuple[str, ...] = ("penultimate",)  # fields of Features that must be there; some objects have their own
    needs_fit: ClassVar[bool] = True
    fits: ClassVar[Literal["train", "val"]] = "train"  # which ID features the recipe learns from; see `calibrate`
    grows: ClassVar[tuple[str, ...]] = ()  # buffers whose shape is learnt: empty before, `load_state_dict` takes them
    chunk: int = 2048  # rows scored at once: bounds the memory, does not change the result
    _arguments: ClassVar[tuple[str, ...]] = ()  # names of the arguments of the constructor

    fitted: Tensor
    threshold: Tensor
    calibration: Tensor  # scores it was set from, sorted
    widths: Tensor  # of the fields it reads, in the features of `fit`, or of `calibrate`; 0 = any

    def __init__(self) -> None:
        super().__init__()
        if torch.get_default_device().type == "meta":
            raise ValueError(self._on_meta())
        self.register_buffer("fitted", torch.tensor(not self.needs_fit))
        self.register_buffer("threshold", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("calibration", torch.empty(0, dtype=torch.float64))
        self.register_buffer("widths", torch.zeros(4, dtype=torch.long))
        self._met: frozenset[int] = frozenset()  # hashes of rows of the fit; a file does not keep them
        for name in self.grows:
            self.register_buffer(name, torch.empty(0))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._arguments = tuple(inspect.signature(cls).parameters)

    def __setattr__(self, name: str, value: Any) -> None:
        """Another value of a hyperparameter makes other scores, so the threshold is forgotten."""
        was = getattr(self, name, value) if name in self._arguments else value
        super().__setattr__(name, value)
        changed = was is not value and not (isinstance(was, PLAIN) and was == value)
        if changed and len(self.calibration):
            self._thaw()
            self._forget_threshold()

    # -- what a subclass writes -------------------------------------------------------------------------------

    def _fit(self, features: Features) -> None:
        """Learn from the features of the ID training set and store the result in buffers."""

    def _fit_with(self, features: Features, val: Features | None) -> None:
        """As `_fit`; a detector with members hands them the validation features too."""
        self._fit(features)

    def _score(self, features: Features) -> Tensor:
        """Scores (n,) of one chunk that lies on the detector's device."""
        raise NotImplementedError(f"{type(self).__name__} must define _score")

    def _complete(self) -> None:
        """Do the work that a fit has put off until what it learnt is asked for; most put off nothing."""

    # -- what a user calls ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether it can score without another `fit`: one that learnt in pieces finishes its fit when it is asked."""
        return bool(self.fitted)

    @torch.inference_mode(False)  # what is learnt may be trained on, copied and loaded into like any tensor
    @torch.no_grad()
    def fit(self, features: Features, val: Features | None = None) -> Self:
        """Learn from ID training features; OOD data has no place here.  Returns self.

        Args:
            features: of the ID training images; without ``val``, of those that the recipe learns from (`fits`).
            val: of the ID validation images: recipes that learn from them, and such members of a composition, take
                them in place of ``features``.

        Raises:
            ValueError: a field is missing, empty, or holds NaN or infinity.
        """
        if val is not None and self.fits == "val":
            features = val
        self._check(features)
        self._thaw()
        with self._full_precision():
            self._fit_with(features, val)
        self._lay_out()
        self.fitted.fill_(True)
        if self.needs_fit or self.widths.tolist() != self._widths_of(features):
            self._forget()
        self._note_widths(features)
        if self.needs_fit:
            self._met = self._sample(features)
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Tensor:
        """Scores (N,) in the order of the features; larger = more OOD.

        Raises:
            NotFittedError: `fit` has not been called.
            ValueError: a field is missing, empty, holds NaN or infinity, or is of another width than when the detector
                was fitted or calibrated.
        """
        self._require_memory()
        return self._scores(features, self.widths.tolist())

    def _scores(self, features: Features, widths: list[int]) -> Tensor:
        with self._full_precision():
            return self._scores_of(features, widths)

    def _scores_of(self, features: Features, widths: list[int]) -> Tensor:
        self._require_fit()
        self._check(features)
        for index, (field, width) in enumerate(zip(self.reads, widths)):
            if width:
                who = "the head reads" if hasattr(self, "head") else "those it was fitted on were"
                check_width(getattr(features, field), width, who, field if index else "features")
        device = getattr(features, self.reads[0]).device
        scores = torch.empty(0)
        for start, chunk in zip(range(0, len(features), self.chunk), features.split(self.chunk)):
            found = self._score(self._prepare(chunk))
            if start == 0:  # the precision is known; one place for all scores
                scores = found.new_empty(len(features), device=device)
            scores[start : start + len(found)] = found
        if lost := int(scores.isnan().sum()):  # NaN > threshold is False: it would pass as in-distribution
            raise ValueError(
                f"{lost} of {len(scores)} scores are NaN: {type(self).__name__} overflowed on these features; "
                "give it float64, or look for numbers that are far too large"
            )
        return scores

    def forward(self, features: Features) -> Tensor:
        """The same as `score`."""
        return self.score(features)

    def calibrate(self, features: Features, tpr: float = 0.95) -> Self:
        r"""Set the threshold from n held-out ID features, so that a new ID image is accepted with probability >= tpr.

        The threshold is the k-th smallest score, :math:`k = \lceil (n + 1)\,\mathrm{tpr} \rceil`, see `conformal_rank`.
        The guarantee holds for every n, network and detector, as long as new ID images are exchangeable with the
        held-out ones. It is an average over calibration sets: for scores without ties, what one threshold accepts is
        distributed as Beta(k, n + 1 - k). The n scores are kept, 8 bytes each, for `p_values`.

        Held out also means: not among the features that the detector was fitted on.  It may score those lower than any
        new image.  A recipe that learns from ``val`` (`fits`, such as KLMatching or ReAct) needs other rows here: fit
        it on one half of the validation features, and calibrate it on the other.  A warning says so where rows of the
        fit are met again; that of a detector from a file is not known.

        Raises:
            ValueError: ``tpr`` is not in (0, 1); n is too small for it, n < tpr / (1 - tpr); scores that are infinite,
                or all equal.
        """
        check("(0, 1)", "a share of ID images to accept", tpr=tpr)  # before the scores, which may take long
        widths = self.widths.tolist() if self.needs_fit else []  # else nothing was learnt that a width could contradict
        with torch.no_grad():
            scores = self._scores(features, widths).to(self.threshold.device).double().sort().values
        if not scores.isfinite().all():
            raise ValueError(
                f"{int((~scores.isfinite()).sum())} of {len(scores)} held-out ID samples score infinity: "
                f"{type(self).__name__} overflowed on them, and a threshold there rejects nothing; give it float64, or "
                "look for numbers that are far too large"
            )
        if len(scores) > 1 and scores[0] == scores[-1]:
            raise ValueError(
                f"all {len(scores)} held-out ID samples have the same score, {scores[0]:g}: {type(self).__name__} does "
                "not tell one from another, and a threshold there may reject nothing; look at the features"
            )
        rank = conformal_rank(len(scores), tpr)
        self._warn_of_seen(features, tpr)
        self._thaw()
        self.calibration = scores
        self.threshold.copy_(scores[rank - 1])
        if not self.needs_fit:
            self._note_widths(features)
        return self

    def is_ood(self, features: Features) -> Tensor:
        """Decisions (N,), True = OOD: the score exceeds the calibrated threshold, that is, the p-value is <= 1 - tpr.

        Raises:
            NotFittedError: `calibrate` has not been called.
        """
        self._require_threshold()
        scores = self.score(features)
        return scores > self.threshold.to(scores.device, scores.dtype)

    def p_values(self, features: Features) -> Tensor:
        r"""Conformal p-values (N,): the share of the calibration scores, and of the score itself, that are as large.

        See `conformal_p_values`.
        Of ID images, at most a share alpha gets p <= alpha, on average over calibration sets.  They share one
        calibration set, so they are not independent (but positively dependent, which procedures such as
        Benjamini-Hochberg allow).

        Raises:
            NotFittedError: `calibrate` has not been called.

        References:
            Bates et al., Testing for Outliers with Conformal p-Values, Annals of Statistics 2023.
        """
        return self.p_values_of(self.score(features))

    def p_values_of(self, scores: Tensor) -> Tensor:
        """`p_values` of scores (N,) that `score` gave.

        Raises:
            NotFittedError: `calibrate` has not been called.
            ValueError: the scores are no floating-point numbers.
        """
        self._require_threshold()
        return conformal_p_values(scores, self.calibration)

    # -- checks, devices, saving ------------------------------------------------------------------------------

    def _require_memory(self) -> None:
        if self.threshold.is_meta:
            raise ValueError(self._on_meta())

    def _on_meta(self) -> str:
        name = type(self).__name__
        return f"{name} lies on the meta device, where nothing can be learnt: make it, or move it, to the CPU or a GPU"

    def _require_fit(self) -> None:
        self._complete()
        if not is_exporting() and not self.fitted:  # an exporter follows no look at a number
            raise NotFittedError(f"{type(self).__name__} is not fitted yet: call .fit(train_features) first")

    def _require_threshold(self) -> None:
        if self.threshold.isnan():
            raise NotFittedError("no threshold yet: call .calibrate(validation_features, tpr=0.95) first")

    def _forget(self) -> None:
        """A threshold belongs to the fit that it was set for."""
        self._forget_threshold()
        self.widths.zero_()

    def _forget_threshold(self) -> None:
        self.threshold.fill_(math.nan)
        self.calibration = self.calibration.new_empty(0)

    def _note_widths(self, features: Features) -> None:
        self.widths.copy_(self.widths.new_tensor(self._widths_of(features)))

    def _widths_of(self, features: Features) -> list[int]:
        fields = [getattr(features, field) for field in self.reads]
        found = [x.shape[1] if x.ndim == 2 else 0 for x in fields]
        return found + [0] * (len(self.widths) - len(found))

    def _hashes(self, features: Features, every: int = 1) -> frozenset[int]:
        """One number for each row, or for one row of several, of what is read."""
        rows = [getattr(features, field)[::every].detach().contiguous().view(torch.uint8).cpu() for field in self.reads]
        return frozenset(hash(row.tobytes()) for row in torch.cat(rows, 1).numpy())

    def _sample(self, features: Features) -> frozenset[int]:
        """Hashes of what `calibrate` would know again: of `REMEMBERED` rows at most."""
        return self._hashes(features, -(-len(features) // REMEMBERED))

    def _warn_of_seen(self, features: Features, tpr: float) -> None:
        """Warn where the promise of a threshold does not hold: the detector, or a member of it, has seen these rows."""
        for part in (part for part in self.modules() if isinstance(part, Detector) and part._met):
            if any(getattr(features, field) is None for field in part.reads):
                continue
            again = len(part._met & part._hashes(features)) / len(part._met)
            if again >= 0.1:  # a few images that are in both sets change no threshold
                warn(
                    f"{type(part).__name__} was fitted on rows that calibrate was given again ({again:.0%} of those of "
                    f"the fit). It may score them lower than new images, so that more than {1 - tpr:.3g} of new ID "
                    "images may be refused: calibrate on other held-out rows, or fit on one half and calibrate on the "
                    "other"
                )
                return

    def _full_precision(self) -> torch.autocast:
        """Numbers that are compared with a threshold, or learnt, are not rounded by a surrounding autocast."""
        return torch.autocast(self.threshold.device.type, enabled=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> Self:
        def moved(x: Tensor) -> Tensor:  # to a device, but to no other precision
            found = fn(x)
            return found if found.dtype == x.dtype else x.to(found.device)

        return super()._apply(moved, *args, **options)

    def _check(self, features: Features) -> None:
        name = type(self).__name__
        if not isinstance(features, Features):
            raise TypeError(f"{name} was given a {type(features).__name__}; expected Features(penultimate=..., ...)")
        self._require_memory()
        missing = [field for field in self.reads if getattr(features, field) is None]
        if missing:
            raise ValueError(f"{name} reads {missing}, which {features} does not hold: extract them first")
        if len(features) == 0:
            raise ValueError(f"{name} was given 0 samples; expected at least one")
        for field in self.reads:
            value = getattr(features, field)
            if value.sum(dtype=None if value.dtype == torch.float64 else torch.float32).isfinite():
                continue  # NaN and infinity stay in a sum; one that overflows is looked at in detail
            bad = sum(int((~c.isfinite().reshape(len(c), -1).all(1)).sum()) for c in value.split(self.chunk))
            if bad:
                raise ValueError(
                    f"{bad} of {len(features)} rows of {field} hold NaN or infinity; {name} expects finite numbers: "
                    "look for a diverged network or half-precision overflow, or drop these rows"
                )

    def _labels(self, features: Features, classes: int | None = None) -> Tensor:
        """Class indices (N,) of training features, for a fit that needs them; where C is known, each below it."""
        name, labels = type(self).__name__, features.labels
        if labels is None:
            raise ValueError(f"{name} needs the labels of the training features, which {features} does not hold")
        found = class_indices(labels, len(features))
        if len(found) and found.min() < 0:
            raise ValueError(
                f"{int((found < 0).sum())} of {len(found)} labels are below 0, which stands for images of no known "
                f"class; {name} learns from ID images only: leave these rows out"
            )
        return class_indices(found, len(features), classes)

    def _thaw(self) -> None:
        """Buffers made under ``torch.inference_mode`` (the object was built there) become ones that can be written."""
        for module in self.modules():
            for name, value in module.named_buffers(recurse=False):
                if value.is_inference():
                    setattr(module, name, value.clone())

    def _lay_out(self) -> None:
        """Buffers lie in memory as they will when they are read from a file: a product rounds by how they lie."""
        for module in (part for part in self.modules() if isinstance(part, Detector)):
            for name, value in module.named_buffers(recurse=False):
                if not value.is_contiguous():
                    setattr(module, name, value.contiguous())

    def _prepare(self, chunk: Features) -> Features:
        """Bring a chunk to the detector's device and to at least single precision."""
        return chunk.to(self.threshold.device).single()

    def _chunks(self, features: Features) -> Iterator[Tensor]:
        """The penultimate features chunk by chunk, prepared."""
        pieces = features.penultimate.split(self.chunk)
        return (self._prepare(Features(penultimate=piece)).penultimate for piece in pieces)

    # -- saving -----------------------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """What it was made with, by the names of the constructor: the hyperparameters, heads and members.

        They are read from the attributes of the same names; a subclass that keeps one elsewhere adds it here.
        """
        own = self.__dict__ | self._modules
        return {name: own[name] for name in self._arguments if name in own}

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        network: Any = None,
        frame: ImageFormat | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """Write the detector, with all that it has learnt, its threshold and its calibration scores, to one file.

        A safetensors file (no pickle), which appears whole or not at all; `ood_lib.load` reads it.  Its header names
        the class, the hyperparameters and the version of the library.

        Args:
            path: the file.
            network: what its features are extracted with: the file keeps `network_hash`, so that ``python -m ood_lib
                score`` refuses any other network, other weights or another standardisation.
            frame: size and crop of its pictures, ``bench.test.frame`` of a benchmark; it goes with the network.
            classes: the names of the outputs, in their order.

        Raises:
            ValueError: the class, or a function or module that it was made with, is none that `ood_lib` exports, so
                that nothing could make it again; a network without a frame, or the other way round.
        """
        made = describe(self)
        if foreign := ", ".join(dict.fromkeys(unknown(made))):
            raise ValueError(
                f"{type(self).__name__} cannot be made again from a file: {foreign} is not exported by ood_lib, and "
                "only what is can be; keep detector.state_dict(), and build the object yourself"
            )
        about = {"detector": made, "version": sys.modules["ood_lib"].__version__}
        if (network is None) != (frame is None):
            raise ValueError(
                f"network={type(network).__name__} and frame={frame} were given; expected both of them, what features "
                "are extracted with and the size and crop of its pictures, or neither"
            )
        if frame is not None:
            shape = (frame.channels, frame.size, frame.size)
            about["network"] = {"hash": network_hash(network, shape), "frame": asdict(frame), "classes": [*classes]}
        save_tensors(self.state_dict(), path, {HEADER: json.dumps(about)})

    def get_extra_state(self) -> Tensor:
        """Class and hyperparameters, which belong to the state: a threshold of another detector means nothing."""
        return as_bytes(describe(self))

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to set: they were compared before anything was loaded."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module.

        Raises:
            ValueError: the state is of another class, or of other hyperparameters; nothing is loaded then.
        """
        self._check_same(state_dict, "")
        return super().load_state_dict(state_dict, strict, assign)

    def _check_same(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        own, saved = describe(self), state_dict.get(f"{prefix}_extra_state")
        if saved is None:
            raise ValueError(
                f"the state does not say of which detector it is, so it cannot be told whether it is one of {self!r}: "
                "expected what detector.state_dict() gives, of this version of ood_lib"
            )
        if (other := from_bytes(saved)) != own:
            raise ValueError(f"the state {_difference(other, own)}: expected one of the same class, made alike")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._check_same(state_dict, prefix)
        self._met = frozenset()
        for name in ("calibration", *self.grows):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        self._lay_out()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The hyperparameters, as they were given."""
        return ", ".join(
            f"{n}={getattr(self, n)!r}" for n in self._arguments if isinstance(getattr(self, n, ...), PLAIN)
        )


def _difference(saved: Any, own: Any) -> str:
    """What tells the detector of a state from the one that is to load it."""
    was, kind = (made.get("class") or made.get("estimator") for made in (saved, own))
    if was != kind:
        return f"is of {was}, and cannot be loaded into {kind}"
    a, b = saved["arguments"], own["arguments"]
    name = next(name for name in [*a, *b] if name not in a or name not in b or a[name] != b[name])
    x, y = a.get(name), b.get(name)
    if all(isinstance(value, dict) and "arguments" in value for value in (x, y)):
        return f"has another {name}: it {_difference(x, y)}"
    return f"is of {kind} with {name}={_shown(x)}, and cannot be loaded into one with {name}={_shown(y)}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else f"{text[:116]} ..."

"""Scores of picture files, one row each, as the paths come: of a million pictures only a few batches are in memory.

A picture that cannot be read is a row that says why.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ood_lib.checks import check
from ood_lib.data.images import ImageFiles, ImageFormat
from ood_lib.detectors.detector import Detector, NotFittedError
from ood_lib.features.features import Features
from ood_lib.networks.modes import in_eval
from ood_lib.networks.network import pick_device

__all__ = ["Scored", "score_files"]


class Scored(NamedTuple):
    """What is said of one picture; of one that cannot be read, only the error."""

    path: str
    score: float | None = None
    p_value: float | None = None  # None without calibration scores
    refused: bool | None = None
    predicted: int | None = None  # None of a network without logits
    error: str = ""


def score_files(
    detector: Detector,
    network: Any,
    paths: Iterable[str],
    frame: ImageFormat,
    *,
    threshold: float | None = None,
    alpha: float | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device = "auto",
) -> Iterator[Scored]:
    """Score pictures one after the other, in their order, as the paths come.

    The numbers are those of ``detector.score(ood.extract(network, files))``, to the bit where the batches are the same.

    Args:
        detector: fitted.
        network: answers ``represent``, see `ood_lib.load_network` and `adapt`.
        paths: of pictures; a generator is read no further than a few batches ahead.
        frame: size and crop, those that the detector was fitted with.
        threshold: refuse above this score; None = the calibrated one, or none.
        alpha: refuse where the p-value is at most this, in place of a threshold.
        batch_size, num_workers, device: as for `extract`.

    Raises:
        NotFittedError: the detector is not fitted; or has no threshold, and neither `threshold` nor `alpha` is given.
        ValueError: both of them; a threshold that is no number; an alpha that refuses nothing with so few calibration
            scores; a detector that reads what the network does not compute (before the first picture).
    """
    limit = _limit(detector, threshold, alpha)
    where = pick_device(device)
    network.to(where)
    detector.to(where)
    _try(detector, network, frame, where)
    return _rows(detector, network, _loader(paths, frame, batch_size, num_workers), limit, alpha, where)


def _limit(detector: Detector, threshold: float | None, alpha: float | None) -> Tensor:
    """The score above which a picture is refused."""
    if threshold is not None and alpha is not None:
        raise ValueError(f"threshold={threshold} and alpha={alpha} were given; expected one of them")
    if threshold is not None:
        check("[-inf, inf]", "a number", threshold=threshold)  # no score is larger than NaN: all would pass
        return torch.tensor(threshold, dtype=torch.float64)
    if detector.threshold.isnan():
        raise NotFittedError(
            f"the {type(detector).__name__} has no threshold: call .calibrate(val) before it is saved, or give one"
        )
    count = len(detector.calibration)
    if alpha is not None and not 1 / (count + 1) <= alpha < 1:
        raise ValueError(
            f"alpha={alpha} was given; expected {1 / (count + 1):.3g} <= alpha < 1: with {count} calibration scores no "
            "p-value is smaller"
        )
    return detector.threshold


def _try(detector: Detector, network: Any, frame: ImageFormat, device: torch.device) -> None:
    """Score one image of noise: what does not fit is said before the first picture."""
    image = torch.rand(1, frame.channels, frame.size, frame.size, generator=torch.Generator().manual_seed(0))
    with in_eval(network), torch.no_grad():
        seen = _features(network, image, device)
    lacking = [field for field in detector.reads if getattr(seen, field) is None]
    if lacking:
        raise ValueError(
            f"{type(detector).__name__} reads {' and '.join(lacking)}, and the network computes "
            f"{' and '.join(seen.tensors())} only"
        )
    detector.score(seen)


def _features(network: Any, images: Tensor, device: torch.device) -> Features:
    kinds = (p.dtype for p in network.parameters() if p.is_floating_point())
    seen = network.represent(images.to(device, next(kinds, torch.float32)))._asdict()
    return Features(**{name: value.cpu() for name, value in seen.items() if value is not None})


class _Pictures(Dataset[Any]):
    """Pictures by their paths, a batch at a time: paths, images (n, C, H, W) of those that can be read, and errors."""

    def __init__(self, frame: ImageFormat) -> None:
        self.frame = frame

    def __getitems__(self, paths: list[str]) -> tuple[list[str], Tensor, dict[int, str]]:
        images, errors = [], {}
        for place, path in enumerate(paths):
            try:
                images.append(ImageFiles(Path(), [path], frame=self.frame)[0][0])
            except FileNotFoundError:
                errors[place] = "there is no such file"
            except (OSError, ValueError, MemoryError) as error:
                errors[place] = " ".join(str(error).split())
        size = (self.frame.channels, self.frame.size, self.frame.size)
        return paths, torch.stack(images) if images else torch.empty(0, *size), errors

    def __getitem__(self, path: str) -> Any:
        return self.__getitems__([path])


def _loader(paths: Iterable[str], frame: ImageFormat, batch_size: int, workers: int) -> DataLoader:
    left = iter(paths)
    batches = iter(lambda: list(itertools.islice(left, batch_size)), [])
    return DataLoader(_Pictures(frame), batch_sampler=batches, num_workers=workers, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


@torch.no_grad()
def _rows(
    detector: Detector, network: Any, batches: Iterable[Any], limit: Tensor, alpha: float | None, device: torch.device
) -> Iterator[Scored]:
    calibrated = len(detector.calibration) > 0
    for paths, images, errors in batches:
        good = [place for place in range(len(paths)) if place not in errors]
        rows = {place: Scored(paths[place], error=error) for place, error in errors.items()}
        if good:
            with in_eval(network):
                seen = _features(network, images, device)
            scores, wrong = _scores(detector, seen)
            p = detector.p_values_of(scores) if calibrated else torch.full_like(scores, torch.nan)
            refused = scores > limit.to(scores.device, scores.dtype) if alpha is None else p.double() <= alpha
            answers = [None] * len(good) if seen.logits is None else seen.logits.argmax(1).tolist()
            columns = zip(good, scores.tolist(), p.tolist(), refused.tolist(), answers, wrong)
            rows |= {
                i: Scored(paths[i], s, q if calibrated else None, r, c) if not said else Scored(paths[i], error=said)
                for i, s, q, r, c, said in columns
            }
        yield from (rows[place] for place in range(len(paths)))


def _scores(detector: Detector, seen: Features) -> tuple[Tensor, list[str]]:
    """Scores, and what is wrong with the rows that have none: one picture on which a network overflows ends nothing."""
    try:
        return detector.score(seen).cpu(), [""] * len(seen)
    except ValueError:
        parts, errors = [], []
        for row in seen.split(1):
            try:
                parts.append(detector.score(row).cpu())
                errors.append("")
            except ValueError as error:
                parts.append(torch.full((1,), torch.nan))
                errors.append(str(error))
        return torch.cat(parts), errors

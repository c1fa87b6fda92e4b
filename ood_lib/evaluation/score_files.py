"""Scores of picture files, one row each: ``python -m ood_lib score detector.safetensors --model NAME PICTURES...``.

The names may come from a pipe, and rows leave as soon as a batch is through: of a million pictures only a few batches
are in memory.  A picture that cannot be read is a row that says why.
"""

import argparse
import csv
import glob
import itertools
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ood_lib.data.images import ImageFiles, ImageFormat, find_pictures, is_hidden
from ood_lib.data.locate import subfolders
from ood_lib.detectors.detector import Detector, NotFittedError
from ood_lib.detectors.saved import load, made_for
from ood_lib.extras import MissingExtraError
from ood_lib.features.features import Features
from ood_lib.files import atomic
from ood_lib.networks.modes import in_eval
from ood_lib.networks.network import pick_device
from ood_lib.training.named import load_network
from ood_lib.warn import warn

__all__ = ["Scored", "main", "score_files"]

ACCEPTED, REFUSED, BAD, UNREADABLE, INTERRUPTED = 0, 1, 2, 3, 130

EXIT = """exit status, as of grep: 0 every picture is accepted; 1 at least one is refused; 3 at least one could not be
read or scored (its row says why); 2 the command could not do its work: wrong options, no picture, a detector that does
not fit the network (all of which is said before the first picture)"""


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
        ValueError: both of them; an alpha that refuses nothing with so few calibration scores; a detector that reads
            what the network does not compute (before the first picture).
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
            refused = scores > limit.to(scores.dtype) if alpha is None else p.double() <= alpha
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


# -- the command ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ood_lib score",
        description="Score pictures by a saved detector: a table with one row for each picture, larger score = more "
        "OOD, in the order of the arguments.",
        epilog=EXIT,
    )
    add = parser.add_argument
    add("detector", help="file that detector.save(path, network=..., frame=...) wrote")
    add("pictures", nargs="+", help="files, folders (all pictures below), patterns; - = a list on standard input")
    add("--model", required=True, help="torchvision:NAME, timm:NAME, hf:NAME, package.module:function, cifar10-resnet9")
    add("--weights", help="file of the state dict; default = the published weights")
    add("--head", help="name of the linear layer that makes the logits, where it is not the last one")
    add("--classes", help="names of the outputs: a file with one a line, or a folder with a subfolder for each")
    add("--image-size", type=int, help="of a detector whose file does not say it; else it must be the same")
    add("--resize", type=int, help="shorter side before the crop to the image size")
    add("--mean", type=float, nargs="+", help="of the pixels in [0, 1], in place of that of the model")
    add("--std", type=float, nargs="+", help="likewise")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--threshold", type=float, help="refuse above this score, in place of the calibrated one")
    limits.add_argument("--alpha", type=float, help="refuse where the p-value is at most this")
    add("--batch-size", type=int, default=32)
    add("--workers", type=int, default=0, help="processes that read pictures")
    add("--device", default="auto")
    add("--out", type=Path, help="write the table to this file, whole or not at all; default: standard output")
    add("--unchecked", action="store_true", help="take another network than the detector was fitted with")
    add("--quiet", action="store_true", help="no bar and no summary on standard error")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)
    try:
        detector, network, frame, names = _prepare(given)
        paths, total = _paths(given.pictures)
        rows = score_files(
            detector, network, paths, frame, threshold=given.threshold, alpha=given.alpha,
            batch_size=given.batch_size, num_workers=given.workers, device=given.device,
        )  # fmt: skip
    except (ValueError, OSError, NotFittedError, MissingExtraError) as error:
        parser.exit(BAD, f"{parser.prog}: {error}\n")
    try:
        return _write(rows, total, names, given)
    except BrokenPipeError:  # `terminal` knows what to say of it
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:  # Python's own status for it, 1, would say that a picture is refused
        traceback.print_exc()
        return BAD


def _prepare(given: argparse.Namespace) -> tuple[Detector, nn.Module, ImageFormat, tuple[str, ...]]:
    """Detector, network, frame and the names of the classes, after they were held against each other."""
    detector, made = load(given.detector), made_for(given.detector)
    network: Any = load_network(
        given.model, weights=given.weights, image_size=given.image_size, resize=given.resize, mean=given.mean,
        std=given.std, head=given.head,
    )  # fmt: skip
    frame = network.card.frame if made is None or given.unchecked else made.frame
    if made is None:
        warn(
            f"{given.detector} does not say what network it was fitted with, so that nothing could be compared: save "
            "it by detector.save(path, network=network, frame=bench.test.frame)"
        )
    elif not given.unchecked:
        if given.image_size is not None and network.card.frame != made.frame:
            raise ValueError(
                f"{given.detector} was fitted on pictures of {made.frame}, not of {network.card.frame}: leave out "
                "--image-size and --resize, the file says them"
            )
        made.check(network)
    if frame is None:
        raise ValueError(f"{given.model} does not say the size of its pictures: give --image-size")
    names = _names(given.classes) if given.classes else (made and made.classes) or network.card.classes
    outputs = _outputs(network, frame)
    if names and outputs is not None and len(names) != outputs:
        raise ValueError(f"there are {len(names)} names of classes, and the network has {outputs} outputs")
    return detector, network, frame, names


def _outputs(network: Any, frame: ImageFormat) -> int | None:
    with in_eval(network), torch.no_grad():
        logits = network.represent(torch.zeros(1, frame.channels, frame.size, frame.size)).logits
    return None if logits is None else logits.shape[1]


def _names(place: str) -> tuple[str, ...]:
    """Names of classes from a file, or from the subfolders of a folder."""
    if Path(place).is_dir():
        return tuple(subfolders(Path(place)))
    return tuple(line.strip() for line in Path(place).read_text(encoding="utf-8").splitlines() if line.strip())


def _paths(arguments: Sequence[str]) -> tuple[Iterable[str], int | None]:
    """Paths of all arguments, one after the other, and how many: None where some come from standard input."""
    parts: list[Iterable[str]] = []
    for argument in arguments:
        parts.append(_lines(sys.stdin) if argument == "-" else _found(argument))
    known = [part for part in parts if isinstance(part, list)]
    return itertools.chain(*parts), sum(map(len, known)) if len(known) == len(parts) else None


def _lines(stream: IO[str]) -> Iterator[str]:
    stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[attr-defined]
    return (name for line in stream if (name := line.rstrip("\r\n")))


def _found(argument: str) -> list[str]:
    """The pictures that an argument means; a name of no file is kept, and its row says so."""
    place = Path(argument)
    if place.is_dir():
        found = [os.path.join(argument, name) for name in find_pictures(place, tell=True)]
    elif not place.exists() and glob.has_magic(argument):
        matching = [one for one in sorted(glob.glob(argument, recursive=True)) if not is_hidden(Path(one).name)]
        folders = [] if "**" in argument else [one for one in matching if Path(one).is_dir()]  # ** has their files
        found = [one for one in matching if Path(one).is_file()] + [x for one in folders for x in _found(one)]
    else:
        return [argument]
    if not found:
        raise FileNotFoundError(f"there is no picture in {argument}, seen from {os.getcwd()}")
    return found


def _write(rows: Iterator[Scored], total: int | None, names: Sequence[str], given: argparse.Namespace) -> int:
    """The table, and the exit status."""
    counts: Counter[str] = Counter()
    start = time.monotonic()
    hidden = True if given.quiet else None  # None = where standard error is no terminal
    with _opened(given.out) as file, tqdm(total=total, unit="picture", disable=hidden, leave=False) as bar:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "score", "p_value", "decision", "class", "name", "error"])
        for count, row in enumerate(rows, 1):
            decision = "" if row.error else "refuse" if row.refused else "accept"
            name = "" if row.predicted is None or not names else names[row.predicted]
            numbers = ["" if x is None else repr(x) for x in (row.score, row.p_value)]
            answer = "" if row.predicted is None else row.predicted
            table.writerow([row.path, *numbers, decision, answer, name, row.error])
            counts[decision] += 1
            bar.update()
            if count % given.batch_size == 0:
                file.flush()
        file.flush()
    if not given.quiet:
        speed = counts.total() / max(time.monotonic() - start, 1e-9)
        said = f"{counts['accept']} accepted, {counts['refuse']} refused, {counts['']} not readable"
        print(f"{counts.total()} pictures: {said}; {speed:.3g} a second", file=sys.stderr)
    if not counts:
        return BAD
    return UNREADABLE if counts[""] else REFUSED if counts["refuse"] else ACCEPTED


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
        yield sys.stdout
        return
    with atomic(out) as fresh, fresh.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        yield file

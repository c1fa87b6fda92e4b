"""The command ``python -m ood_lib score detector.safetensors --model NAME PICTURES...``: a table of scores.

The names of pictures may come from a pipe, and rows leave as soon as a batch is through.
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
from typing import IO, Any

import torch
from torch import nn
from tqdm import tqdm

from ood_lib.data.images import ImageFormat
from ood_lib.data.locate import subfolders
from ood_lib.data.pictures import find_pictures
from ood_lib.detectors.detector import Detector, NotFittedError
from ood_lib.detectors.saved import load, made_for
from ood_lib.evaluation.score_files import Scored, score_files
from ood_lib.extras import MissingExtraError
from ood_lib.files import atomic, is_hidden
from ood_lib.networks.modes import in_eval
from ood_lib.training.named import load_network
from ood_lib.warn import warn

__all__ = ["main"]

ACCEPTED, REFUSED, BAD, UNREADABLE, INTERRUPTED = 0, 1, 2, 3, 130

EXIT = """exit status, as of grep: 0 every picture is accepted; 1 at least one is refused; 3 at least one could not be
read or scored (its row says why); 2 the command could not do its work: wrong options, no picture, a detector that does
not fit the network (all of which is said before the first picture)"""


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


def _in_utf8(stream: Any, **form: Any) -> IO[str]:
    stream.reconfigure(encoding="utf-8", errors="surrogateescape", **form)
    return stream


def _lines(stream: IO[str]) -> Iterator[str]:
    return (name for line in _in_utf8(stream) if (name := line.rstrip("\r\n")))


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
        yield _in_utf8(sys.stdout, newline="\n")
        return
    with atomic(out) as fresh, fresh.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        yield file

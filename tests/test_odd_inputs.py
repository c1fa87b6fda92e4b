"""Every public entry point under every kind of odd input: a good answer, or an error that says what is wrong.

A good answer is that of an independent reference in float64, for the numbers that were given; NaN is one where the
reference is NaN too, as of a row that holds NaN.  An error is good when the library raises it itself.  Anything else, a
finite number that differs above all, fails.

By default each entry point meets a part of the kinds, another part than the next one; ``pytest -m odd`` runs them all.
"""

import inspect
import linecache
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import ood_lib
from tests.odd_entries import ENTRIES, ITSELF, Entry, NoReference
from tests.odd_kinds import KINDS, Kind

HOME = str(Path(ood_lib.__file__).parent)
SHARE = 12  # of the kinds, one in so many is tried by default
FINE = ("good", "named error", "not finite, as the reference", "the network's own error")
COUNTS: Counter[str] = Counter()
EACH_KIND: set[str] = set()

#: Public names that take no data, and why.
NO_DATA = {
    "BENCHMARKS": "a tuple of names", "Check": "an answer of any kind is answered with a sentence",
    "Comparison": "a record of numbers",
    "DiffusersBody": "hands its arguments to a foreign module", "DivergedError": "an error", "History": "a record",
    "ImageFiles": "names of files; pictures are in tests/data", "Metrics": "a record of numbers",
    "MissingDataError": "an error", "NotFittedError": "an error", "Scorer": "a record",
    "Verdict": "a record of numbers",
    "benchmark_features": "a name", "half_precision": "a device", "load": "a path", "load_bank": "a name",
    "load_benchmark": "a name", "load_ood_set": "a name", "load_results": "paths", "load_score_norms": "a path",
    "load_verdicts": "paths", "measure_cost": "a device", "network_for": "a benchmark's shape",
    "noise_scales": "three numbers", "pick_device": "a device", "pretrained": "a name", "provenance": "text",
    "save_verdicts": "verdicts, which are records", "seal": "an answer of any kind is hashed",
    "spectral_normalize": "a network", "split_folder": "a path", "tally": "verdicts, which are records",
    "MadeFor": "what a file says of itself", "NetworkCard": "a record", "Recommendation": "a record of words",
    "Reliability": "a record of numbers", "Scored": "a record", "exportable": "a network and a detector",
    "load_network": "a name", "made_for": "a path",
    "conformal_rank": "a number of scores and a share", "read_picture": "a picture file; see tests/data/test_images.py",
    "recommend": "scores in records, which detectors made", "score_files": "picture files, one row of text for each",
    "score_verdicts": "scores in records, which detectors made", "SetScores": "a record of scores",
    "Benchmark": "a record of data sets, which extract_benchmark takes",
}  # fmt: skip


class NoPlain(Exception):
    """The argument stands for no numbers."""


def plain(name: str, x: Any) -> Any:
    """What an argument says, as float64: rows of numbers, or weight and bias."""
    role = name.rsplit("_", 1)[-1]
    if role == "table":
        return x
    if role == "head":
        return weight_and_bias(x)
    if isinstance(x, Tensor):
        x = tensor(x).numpy()
    if isinstance(x, np.ma.MaskedArray) and np.ma.getmaskarray(x).any():
        raise NoPlain
    if isinstance(x, str | dict | None) or inspect.isgenerator(x) or np.asarray(x).dtype.kind in "USO":
        raise NoPlain
    found = np.asarray(x, dtype=float)
    if role in ("labels", "matrix"):
        if not (np.isfinite(found) & (found == found.round())).all():
            raise NoPlain
        return found.astype(int)
    return found


def weight_and_bias(head: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(head, nn.Linear) or head.weight.is_meta:
        raise NoPlain
    weight = head.weight.detach().double().numpy()
    return weight, (np.zeros(len(weight)) if head.bias is None else head.bias.detach().double().numpy())


def said(name: str, x: Any) -> Any:
    """As `plain`; None where the argument stands for no numbers, which only an entry that does not read it may take."""
    try:
        return plain(name, x)
    except NoPlain:
        return None


def tensor(x: Tensor) -> Tensor:
    if x.layout != torch.strided or x.is_meta or x.is_nested or x.is_complex() or x.is_quantized:
        raise NoPlain
    with torch.no_grad():
        return x.detach().as_subclass(Tensor).double().resolve_neg().clone()


def numbers(found: Any) -> list[np.ndarray]:
    """All numbers of an answer, in order."""
    if isinstance(found, tuple | list):
        return [x for part in found for x in numbers(part)]
    if isinstance(found, Tensor):
        return [tensor(found).numpy()]
    if isinstance(found, pd.DataFrame):
        return [found.select_dtypes("number").to_numpy(float)]
    return [np.asarray(found, float)]


def precision(found: Any) -> torch.dtype:
    """Of an answer."""
    parts = found if isinstance(found, tuple | list) else [found]
    return next((x.dtype for x in parts if isinstance(x, Tensor) and x.is_floating_point()), torch.float64)


def expected(entry: Entry, given: dict[str, Any]) -> list[np.ndarray]:
    values = {name: said(name, x) for name, x in given.items()}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if entry.reference is not ITSELF:
            return numbers(entry.reference(*values.values()))
        if any(x is None for x in values.values()):
            raise NoPlain
        same = {n: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else given[n] for n, x in values.items()}
        return numbers(entry.call(*same.values()))


def close(found: list[np.ndarray], wanted: list[np.ndarray], rtol: float, dtype: torch.dtype, unit: float) -> bool:
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return False
    limits = torch.finfo(dtype)
    for a, b in zip(found, wanted):
        usual = np.abs(b[np.isfinite(b)])
        spread = np.median(np.abs(usual - np.median(usual))) if usual.size else 0.0
        beyond = np.where(np.abs(b) > limits.max, np.copysign(np.inf, b), b)  # no number of this precision
        with np.errstate(invalid="ignore"):
            near = np.abs(a - b) <= rtol * (np.abs(b) + spread) + 16 * (limits.tiny + unit * limits.eps)
        if not (near | (a == b) | (a == beyond) | (np.isnan(a) & np.isnan(b))).all():
            return False
    return True


def good_error(error: Exception) -> bool:
    """Raised by the library on purpose, and says what to do."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = last.filename.startswith(HOME)
    raised = linecache.getline(last.filename, last.lineno or 0).strip().startswith("raise")
    return isinstance(error, ValueError | TypeError | RuntimeError) and own and raised and len(str(error)) > 30


def of_the_network(error: Exception) -> bool:
    """Raised by a network of the caller, inside its layers."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = [i for i, f in enumerate(files) if f.startswith(HOME)]
    return bool(inside) and any("torch/nn/modules" in f for f in files[inside[-1] :])


def verdict(entry: Entry, kind: Kind) -> str:
    """One of `FINE`, or what is wrong."""
    torch.manual_seed(0)
    given = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says of some kinds that they are prototypes
        for name, x in entry.inputs.items():
            changed = name.rsplit("_", 1)[-1] in kind.roles and name.startswith(kind.only)
            given[name] = kind.change(x) if changed else x
        try:
            with kind.around():
                found = entry.call(*given.values())
            answer, dtype = numbers(found), precision(found)
        except NoPlain:
            return "an answer without numbers"
        except Exception as error:
            if entry.network and of_the_network(error):
                return "the network's own error"
            return "named error" if good_error(error) else f"{type(error).__name__}: {str(error)[:300]}"
    try:
        wanted = expected(entry, given)
    except (NoPlain, NoReference):
        return f"an answer where there is none: {answer}"
    except Exception as error:
        return f"an answer where the reference fails ({type(error).__name__}: {error}), {answer}"
    low = dtype != torch.float64 or any(
        isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 for x in given.values()
    )
    rtol = max(entry.single, 8 * torch.finfo(dtype).eps) if low else entry.rtol
    if close(answer, wanted, rtol, dtype, entry.unit):
        return "good" if all(np.isfinite(x).all() for x in answer) else "not finite, as the reference"
    return f"silent: {answer}\nnot {wanted}"


def kinds_of(entry: Entry) -> list[str]:
    """Those that change one of its arguments, or the world around it."""
    return [
        name
        for name, kind in KINDS.items()
        if name not in entry.without
        and (
            not kind.roles or any(n.rsplit("_", 1)[-1] in kind.roles and n.startswith(kind.only) for n in entry.inputs)
        )
    ]


def judge(name: str, kinds: list[str]) -> None:
    wrong = {}
    for kind in kinds:
        found = verdict(ENTRIES[name], KINDS[kind])
        COUNTS[found if found in FINE else "neither"] += 1
        EACH_KIND.add(kind)
        if found not in FINE:
            wrong[kind] = found
    assert not wrong, "\n".join(f"{name}, {kind}: {what}" for kind, what in wrong.items())


def test_every_public_name_is_tried_or_takes_no_data():
    tried = {name.split()[0].split(".")[0].split("-")[0] for name in ENTRIES} | {"compose"}  # compose makes Composed
    public = set(ood_lib.__all__)
    assert not tried - public, "entries of names that are not public"
    assert not public - tried - NO_DATA.keys(), "give each an entry in tests/odd_entries.py, or say why it needs none"
    assert not tried & NO_DATA.keys()


def test_there_are_many_kinds_and_each_entry_point_meets_many():
    assert len(KINDS) >= 60
    for name, entry in ENTRIES.items():
        roles = {n.rsplit("_", 1)[-1] for n in entry.inputs}
        assert len(kinds_of(entry)) >= (40 if roles == {"table"} else 60), name


def test_the_verdict_sees_what_is_wrong():
    """A score that drops a column, one that answers NaN, and errors that are not the library's own."""
    entry, kind = ENTRIES["max_logit"], KINDS["float32"]
    assert verdict(entry, kind) == "good"
    wrong = {
        "silent": lambda logits: -logits[:, 1:].amax(-1),
        "silent: [array([nan": lambda logits: logits.sum(-1) * torch.nan,
        "IndexError": lambda logits: logits[:, 7],
        "RuntimeError": lambda logits: logits @ logits,
    }
    for words, call in wrong.items():
        assert verdict(entry._replace(call=call), kind).startswith(words)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_point_answers_well_or_says_what_is_wrong(name: str):
    place = [*ENTRIES].index(name)
    judge(name, kinds_of(ENTRIES[name])[place % SHARE :: SHARE])


@pytest.mark.odd
@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_point_answers_well_or_says_what_is_wrong_whatever_comes(name: str):
    judge(name, kinds_of(ENTRIES[name]))


@pytest.mark.parametrize("run", ["sampled", pytest.param("whole", marks=pytest.mark.odd)])
def test_the_count(run: str, capsys: pytest.CaptureFixture):
    """Comes last: what the tests of this file that ran in this process have found."""
    if COUNTS:
        with capsys.disabled():
            print(f"\n{run}: {sum(COUNTS.values())} odd inputs of {len(EACH_KIND)} kinds: {dict(COUNTS)}")
    assert not COUNTS["neither"]

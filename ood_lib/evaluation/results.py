"""Result files: a benchmark table with all that it takes to trust it and to make it again.  Small JSON, kept in git.

A file holds the rows of `run_benchmark` for one benchmark and one kind of network, and where they come from: commit,
command, versions, device, data hash.  `load_results` puts any number of files on top of each other, `leaderboard` makes
one line per detector of them.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ood_lib.evaluation.benchmark import summarize
from ood_lib.evaluation.comparison import checked_table
from ood_lib.evaluation.verdict import Verdict
from ood_lib.files import write_text
from ood_lib.warn import warn

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "code_span", "leaderboard", "load_results", "load_verdicts", "origins", "provenance", "save_results",
    "save_verdicts",
]  # fmt: skip

ENDS = ("", "_low", "_high")
KEYS = ("benchmark", "network", "accuracy", "positive", "provenance", "rows")
CODE = ("command", "weights")  # of a provenance, what a page sets as code
ORIGIN = (*CODE, "commit", "device", "versions", "data", "sets")


def provenance(command: str = "", device: str | torch.device = "cpu", **about: str) -> dict[str, str]:
    """Where a result comes from: command, commit, versions, device, date, and what else is worth knowing.

    Args:
        command: what makes the result again; "" = the ``ood-book run`` that is under way.
        device: where it was computed.
        about: further facts, such as ``data=benchmark_hash(bench)``.
    """
    cuda = torch.device(device).type == "cuda"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = torch.cuda.get_device_name(device) if cuda else f"CPU {platform.machine()}, {cores} cores"
    return {
        "command": command or os.environ.get("OOD_COMMAND", "cells run by hand"),
        "commit": _commit(),
        "device": f"{machine}, {torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, ood_lib {_version()}",
        "date": datetime.now(UTC).date().isoformat(),
    } | about


def _commit() -> str:
    """The commit of the library's source, with + where it was changed since; "" outside a checkout of it."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=Path(__file__).parents[1], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        if not git("ls-files", "--error-unmatch", "__init__.py"):  # installed inside another repository
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except OSError:  # no git
        return ""


def _version() -> str:
    try:
        return version("ood_lib")
    except PackageNotFoundError:
        return "unknown"


def save_results(
    path: str | os.PathLike[str],
    table: "pd.DataFrame",
    *,
    benchmark: str,
    network: str,
    origin: Mapping[str, str],
    accuracy: float = float("nan"),
    positive: str = "id",
) -> None:
    """Write a result file; it appears whole or not at all.

    Args:
        path: where to, ending in ``.json``.
        table: from `run_benchmark`, possibly several seeds on top of each other.
        benchmark: its name; of ``bank:PATH`` and ``folder:PATH`` only the last folder is kept.
        network: what made the features.
        origin: see `provenance`.
        accuracy: share of ID test images that the networks classify correctly, mean over seeds.
        positive: convention of the fpr95 in the table.
    """
    checked_table(table)
    kind, _, place = benchmark.partition(":")
    rounded = table.round({c: 6 for c in ("value", "low", "high", "seconds", "seconds_per_1000", "memory_mb")})
    rows = rounded.astype(object).where(rounded.notna(), None).to_dict("records")
    head = {
        "benchmark": f"{kind}:{Path(place).name}" if place else benchmark,
        "network": network,
        "accuracy": None if accuracy != accuracy else round(accuracy, 4),
        "positive": positive,
        "provenance": dict(origin),
    }
    _write(path, head, "rows", rows)


def _write(path: str | os.PathLike[str], head: dict[str, Any], name: str, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON object whose rows stand under `name`, one a line."""
    lines = ",\n".join(map(json.dumps, rows))
    write_text(path, json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "{name}": [\n{lines}\n]\n}}\n')


def _files(places: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """The files named, and the JSON files in the folders named."""
    for place in map(Path, places):
        yield from [place] if place.is_file() else sorted(place.glob("*.json"))


def load_results(*places: str | os.PathLike[str]) -> "pd.DataFrame":
    """The rows of result files, one under the other, with the columns ``run``, benchmark, network, ... in front.

    A place is a file, or a folder of files; one that is not there is named by a warning.

    Raises:
        ValueError: a file is no result file.
    """
    import pandas as pd

    for place in map(Path, places):
        if not place.exists():
            warn(f"there are no results at {place.absolute()}: expected result files of save_results, or a folder")
    tables = []
    for file in _files(places):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            rows = pd.DataFrame(content["rows"])
            about = {key: content[key] for key in KEYS[:4]} | content["provenance"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no result file ({type(error).__name__}: {error}); expected {KEYS}") from error
        tables.append(rows.assign(run=file.stem, **about).astype({"accuracy": float}))  # none is NaN
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def save_verdicts(
    path: str | os.PathLike[str],
    found: Mapping[tuple[str, str], Mapping[str, Mapping[str, Verdict]]],
    *,
    origin: Mapping[str, str],
) -> None:
    """Write what methods gain over their baselines, network by network; the file appears whole or not at all.

    Args:
        path: where to, ending in ``.json``.
        found: by method and baseline, then by network, what `ood_lib.verdicts` found.
        origin: see `provenance`.
    """
    rows = (
        {"detector": method, "minus": baseline, "network": network, "group": group}
        | {name: round(value, 6) for name, value in verdict._asdict().items()}
        for (method, baseline), networks in found.items()
        for network, groups in networks.items()
        for group, verdict in groups.items()
    )
    _write(path, {"provenance": dict(origin)}, "verdicts", rows)


def load_verdicts(*places: str | os.PathLike[str]) -> "pd.DataFrame":
    """The rows of files of `save_verdicts`, one under the other: what was compared where, and the `Verdict`.

    A place is a file, or a folder of files; a folder that is not there holds none.

    Returns:
        Columns run (name of the file), detector, minus, network, group, verdict, then the provenance.

    Raises:
        ValueError: a file holds no verdicts.
    """
    import pandas as pd

    rows = []
    for file in _files(places):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            for row in content["verdicts"]:
                verdict = Verdict(**{name: row.pop(name) for name in Verdict._fields})
                rows.append({"run": file.stem} | row | {"verdict": verdict} | content["provenance"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} holds no verdicts ({type(error).__name__}: {error}); expected a file of save_verdicts"
            ) from error
    return pd.DataFrame(rows, columns=None if rows else ["run", "detector", "minus", "network", "group", "verdict"])


def code_span(text: object) -> str:
    """A text as Markdown sets code, whatever is in it: with more backticks around it than it has in a row.

    Example:
        >>> code_span("a"), code_span("a`b")
        ('`a`', '`` a`b ``')
    """
    text = str(text).replace("\n", " ")
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * (max(runs) + 1) if runs else "`"
    return f"{fence} {text} {fence}" if runs else f"`{text}`"


def origins(results: "pd.DataFrame") -> str:
    """Where each run of `load_results` comes from: a folded Markdown list, one item per run, of what its file says."""
    runs = results.reindex(columns=["run", *ORIGIN]).groupby("run", sort=False).first().astype(object).fillna("")
    items = "\n".join(
        f"- **{run}**: " + "; ".join(f"{k} {code_span(v)}" if k in CODE else f"{k} {v}" for k, v in facts.items() if v)
        for run, facts in runs.iterrows()
    )
    return (
        f"<details><summary>Command, commit, machine, versions and data of each run</summary>\n\n{items}\n\n</details>"
    )


def leaderboard(results: "pd.DataFrame") -> "pd.DataFrame":
    """One line per run and detector: near and far AUROC and FPR95 with intervals, seconds per 1000 images, memory.

    The interval is Student's t over seeds. A single network has no such interval. Instead, the mean of the intervals
    of its sets says how much other test images of the same kind could change the result (it is rather too wide,
    because errors of sets cancel).

    Returns:
        Columns run, detector, seeds, near, near_low, near_high, far, ..., near_fpr95, far_fpr95, seconds_per_1000,
        memory_mb; a group that a run does not have is NaN.

    Raises:
        ValueError: there is no row.
    """
    import pandas as pd

    if results.empty:
        raise ValueError("no row to show: there is no result file, or its run judged no detector on an OOD set")

    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for run, rows in results.groupby("run", sort=False):
        for detector, own in rows.groupby("detector", sort=False):
            lines[run, detector] = {"run": run, "detector": detector, "seeds": own["seed"].nunique()}
            lines[run, detector] |= own[["seconds_per_1000", "memory_mb"]].mean().to_dict()
        for metric, suffix in (("auroc", ""), ("fpr95", "_fpr95")):
            sets = rows[rows["metric"] == metric].groupby(["detector", "group"])[["low", "high"]].mean()
            for found in summarize(rows, metric).itertuples():
                ends = sets.loc[found.detector, found.group] if found.seeds == 1 else found
                name = f"{found.group}{suffix}"
                lines[run, found.detector] |= {name: found.value, f"{name}_low": ends.low, f"{name}_high": ends.high}
    groups = [f"{group}{suffix}{end}" for group in ("near", "far") for suffix in ("", "_fpr95") for end in ENDS]
    return pd.DataFrame(lines.values(), columns=["run", "detector", "seeds", *groups, "seconds_per_1000", "memory_mb"])

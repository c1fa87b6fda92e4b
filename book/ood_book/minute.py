"""What a chapter found, for the box *In one minute* at its top: from kept results, before anything runs.

`ood-book sync` writes these lines into the chapter, which names in `notebooks/notebooks.yaml` what is shown:

    - `duels`: method, baseline and its name, of a file of `book/results/verdicts` (the first: a table)
    - `trained`: pairs of detectors of a file of `book/results`, compared network by network, in a sentence each
    - `values`: detectors of a file of `book/results` and what to call them, with near and far AUROC
    - `leaders`: files of `book/results`, with the best detector of each
    - `level`: the same, with the interval of the best one and how many others lie in it
    - `means`: detectors and files of `book/results`, with the mean AUROC of each detector in each
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ood_book.notebooks import Refused

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["called", "compared", "found"]

NETWORKS = {
    "cifar10-resnet9": "our ResNet-9 on CIFAR-10",
    "cifar10-densenet": "DenseNet on CIFAR-10",
    "cifar10-resnet56": "ResNet-56 on CIFAR-10",
    "cifar100-densenet": "DenseNet on CIFAR-100",
    "voc-mobilenetv2": "MobileNetV2 on PASCAL VOC",
    "digits": "small networks on digits",
}
WORDS = (
    "Intervals are of 95 %, and [wider over several networks](../book/notation.md). *Better* and *worse*: the interval "
    "leaves out zero. *Level*: it holds zero and lies within a point of it. "
    "*Cannot tell*: it is wider."
)
KEPT = " They stay when you run this page with other values."
GROUPS = {"near": "near-OOD", "far": "far-OOD"}


def called(network: str) -> str:
    """What a reader calls a network; the name itself where there is no other."""
    return NETWORKS.get(network, network)


def found(root: Path, asked: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown with what the kept results say.

    Args:
        root: the folder of the book.
        asked: what is shown, by kind; empty: nothing.

    Raises:
        Refused: something is asked for that the results do not have.
    """
    kinds: dict[str, Callable[[Path, Any], list[str]]] = {
        "duels": _duels, "trained": _trained, "values": _values, "leaders": _leaders, "level": _level, "means": _means,
    }  # fmt: skip
    if unknown := set(asked) - set(kinds):
        raise Refused(f"notebooks.yaml asks for {sorted(unknown)} of the results; expected some of {sorted(kinds)}")
    return [line for kind, what in asked.items() for line in kinds[kind](root / "book/results", what)]


def compared(results: Path, run: str, pairs: Sequence[Sequence[str]]) -> list[str]:
    """Pairs of a file of `book/results/verdicts` in a line each, and the run that they are from.

    Args:
        results: `book/results`.
        run: name of the file.
        pairs: method, baseline, and what to call the latter.

    Raises:
        Refused: the file does not compare the two.
    """
    import ood_lib as ood

    kept = ood.load_verdicts(results / f"verdicts/{run}.json")
    lines = [_sentence(_rows(kept, run, method, baseline), method, words) for method, baseline, words in pairs]
    return [*lines, "", _origin(kept.iloc[0])]


def _rows(kept: "pd.DataFrame", run: str, method: str, baseline: str) -> "pd.DataFrame":
    rows = kept[(kept["detector"] == method) & (kept["minus"] == baseline)]
    if rows.empty:
        raise Refused(f"book/results/verdicts/{run}.json does not compare {method!r} with {baseline!r}")
    return rows


def _duels(results: Path, asked: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """The first pair as a table, network by network; the others in a sentence each."""
    import ood_lib as ood

    lines: list[str] = []
    for run, pairs in asked.items():
        kept = ood.load_verdicts(results / f"verdicts/{run}.json")
        for number, (method, baseline, words) in enumerate(pairs):
            rows = _rows(kept, run, method, baseline)
            lines += [_sentence(rows, method, words)] if number else _table(rows, method, words)
        lines += ["", f"{WORDS} {_origin(kept.iloc[0], KEPT)}"]
    return lines


def _table(rows: "pd.DataFrame", method: str, baseline: str) -> list[str]:
    groups = [g for g in GROUPS if (rows["group"] == g).any()]
    wide = rows.pivot(index="network", columns="group", values="verdict")
    wide = wide.loc[list(dict.fromkeys(rows["network"])), groups]
    lines = [
        f"**What we found.** AUROC of *{method}* minus that of *{baseline}*, in points, with its interval:",
        "",
        f"| network | {' | '.join(GROUPS[g] for g in groups)} |",
        "|---" * (1 + len(groups)) + "|",
    ]
    for network, row in zip(wide.index, wide.to_numpy()):
        lines.append(f"| {called(network)} | {' | '.join(map(_marked, row))} |")
    return [*lines, ""]


def _marked(verdict: Any) -> str:
    numbers = str(verdict).removesuffix(verdict.word).strip()
    return f"**{verdict.word}** {numbers}"


def _sentence(rows: "pd.DataFrame", method: str, baseline: str) -> str:
    """Each pair of words for near and far, with the networks where they hold."""
    wide = rows.pivot(index="network", columns="group", values="verdict")
    by_words: dict[str, list[str]] = {}
    for network in dict.fromkeys(rows["network"]):
        words = {g: wide[g][network].word for g in GROUPS if g in wide}
        same = len(set(words.values())) == 1
        everywhere = f"{next(iter(words.values()))} {' and '.join(words)}"
        said = everywhere if same else ", ".join(f"{w} {g}" for g, w in words.items())
        by_words.setdefault(said, []).append(called(network))
    said_of = [f"**{said.capitalize()}** ({', '.join(names)})." for said, names in by_words.items()]
    return f"- *{method}* against *{baseline}*. {' '.join(said_of)}"


def _results(results: Path, run: str, detectors: Sequence[str]) -> "pd.DataFrame":
    """A file of `book/results`, which has these detectors."""
    import ood_lib as ood

    kept = ood.load_results(results / f"{run}.json")
    if missing := [d for d in detectors if d not in set(kept["detector"])]:
        raise Refused(f"book/results/{run}.json has no detector {missing[0]!r}")
    return kept


def _trained(results: Path, asked: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """Each pair, near and far: the mean difference over networks, with its interval."""
    import ood_lib as ood

    lines = [""]
    for run, pairs in asked.items():
        kept = _results(results, run, [name for one, other, _ in pairs for name in (one, other)])
        for one, other, words in pairs:
            groups = [g for g in GROUPS if (kept["group"] == g).any()]
            gaps = [f"{g.capitalize()}-OOD: {ood.compare_over_seeds(kept, one, other, g)}." for g in groups]
            lines.append(f"- {words}. {' '.join(gaps)}")
        lines += ["", "Differences in points of AUROC with a 99 % interval over networks. " + _origin(kept.iloc[0])]
    return lines


def _values(results: Path, asked: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A table of AUROC in percent with intervals, a row for each detector."""
    import ood_lib as ood
    from ood_lib.evaluation.metrics import as_percent

    lines: list[str] = []
    for run, detectors in asked.items():
        kept = _results(results, run, list(detectors))
        board = ood.leaderboard(kept).set_index("detector")
        groups = [g for g in GROUPS if board[g].notna().any()]
        lines += [
            "**What we found.** Mean AUROC in %, with the 95 % interval:",
            "",
            f"| score | {' | '.join(GROUPS[g] for g in groups)} | interval over |",
            "|---" * (2 + len(groups)) + "|",
        ]
        seeds = kept.groupby("detector")["seed"].nunique()
        for detector, words in detectors.items():
            cells = [as_percent(*board.loc[detector, [g, f"{g}_low", f"{g}_high"]]) for g in groups]
            cells.append(f"{seeds[detector]} networks, the same images" if seeds[detector] > 1 else "other images")
            lines.append(f"| {words} | {' | '.join(cells)} |")
        lines += ["", _origin(kept.iloc[0], KEPT)]
    return lines


def _leaders(results: Path, asked: Sequence[str]) -> list[str]:
    """The best detector of each run near and far, a row for each run."""

    def best(board: "pd.DataFrame", group: str) -> str:
        return f"{board[group].idxmax()}, {100 * board[group].max():.1f}"

    what = "The detector of all chapters with the highest mean AUROC, in %, on each network that we measured:"
    return _by_network(results, asked, what, best)


def _level(results: Path, asked: Sequence[str]) -> list[str]:
    """The best detector of each run with its interval, and how many others have a mean inside it."""
    from ood_lib.evaluation.metrics import as_percent

    def best(board: "pd.DataFrame", group: str) -> str:
        first = board.loc[board[group].idxmax()]
        value, low, high = first[[group, f"{group}_low", f"{group}_high"]]
        inside = int((board[group] >= low).sum()) - 1
        return f"{first.name}, {as_percent(value, low, high)}; {inside} of {len(board) - 1}"

    what = (
        "Of the detectors of all chapters, the best one on each network that we measured, with its mean AUROC in % and "
        "its 95 % interval over test images. Behind it stands how many of the others have a mean inside that interval:"
    )
    return _by_network(results, asked, what, best)


def _means(results: Path, asked: Mapping[str, Sequence[str]]) -> list[str]:
    """Mean AUROC of some detectors in each run."""

    def each(board: "pd.DataFrame", group: str) -> str:
        if missing := [d for d in asked["detectors"] if d not in board.index]:
            raise Refused(f"a file of book/results that notebooks.yaml names has no detector {missing[0]!r}")
        return ", ".join(f"{d} {100 * board.loc[d, group]:.1f}" for d in asked["detectors"])

    return _by_network(results, asked["runs"], "Mean AUROC in % on each network that we measured:", each)


def _by_network(results: Path, runs: Sequence[str], what: str, cell: Callable[["pd.DataFrame", str], str]) -> list[str]:
    """A table with a row for each run and a column for each group; `cell` makes an entry of a leaderboard."""
    import ood_lib as ood

    lines = [
        f"**What we found.** {what}",
        "",
        f"| network | {' | '.join(GROUPS.values())} |",
        "|---" * (1 + len(GROUPS)) + "|",
    ]
    for run in runs:
        board = ood.leaderboard(ood.load_results(results / f"{run}.json")).set_index("detector")
        lines.append(f"| {called(run)} | {' | '.join(cell(board, group) for group in GROUPS)} |")
    return [
        *lines,
        "",
        "The numbers are those of the stored runs of [the leaderboard](08_leaderboard), not of this page.",
    ]


def _origin(row: "pd.Series", more: str = "") -> str:
    """Which run is shown."""
    return f"The numbers are those of `{row['command']}` on {row['date']}.{more}"

"""The comparison page of a sweep: figures of value against parameter and sortable tables, in one file, offline."""

import base64
import html
import io
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ood_book.run.plan import Task
from ood_book.run.sweep import Sweep
from ood_lib.evaluation import plots
from ood_lib.evaluation.benchmark import summarize
from ood_lib.evaluation.comparison import KEYS, counted_once
from ood_lib.evaluation.metrics import as_percent
from ood_lib.files import write_text

__all__ = ["comparison_page", "panels", "write_comparison"]

PANELS = 6  # detectors in a figure
ROLES = ("near", "far")
METRICS = {"auroc": "AUROC", "fpr95": "FPR95"}
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d0d0d0, #4a4a4a); --quiet: light-dark(#555555, #b0b0b0); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; background: white; border-radius: 4px; }
figcaption, caption, .quiet { color: var(--quiet); text-align: left; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
table.sortable th button { all: unset; cursor: pointer; font-weight: bold; }
table.sortable th button:hover { text-decoration: underline; }
table.sortable th button:focus-visible { outline: 2px solid #0072B2; }
table.sortable th[aria-sort="descending"] button::after { content: " ↓"; }
table.sortable th[aria-sort="ascending"] button::after { content: " ↑"; }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_comparison(sweep: Sweep, table: pd.DataFrame, command: str) -> Path:
    """Write `table.csv` and the page `index.html` into the folder of the sweep; each appears whole or not at all."""
    write_text(sweep.folder / "table.csv", table.to_csv(index=False))  # first: it needs no page
    title, made = f"Sweep of {sweep.name}, profile {sweep.profile}", f"Made by: {command}."
    page = comparison_page(table, sweep.names, title, {t.label: _link(t, sweep.folder) for t in sweep.tasks}, made)
    write_text(sweep.folder / "index.html", page)
    return sweep.folder / "index.html"


def _link(task: Task, folder: Path) -> str:
    return task.target if isinstance(task.target, str) else os.path.relpath(task.target, folder)


def comparison_page(table: pd.DataFrame, names: Sequence[str], title: str, links: dict[str, str], made: str) -> str:
    """HTML of the page.

    Args:
        table: from `collect`.
        names: of the varied parameters, `seed` among them or not.
        title: of the page.
        links: where each run lies.
        made: how to make the page again.
    """
    runs = table.drop_duplicates("run")
    files = _files(table)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_sentence(runs, names))}</p>"]
    if not files:
        parts.append("<p>No run wrote a table as <code>run_benchmark</code> makes it: there is nothing to draw.</p>")
    for file, rows in files.items():
        parts += _part(rows, f" in {file}" if len(files) > 1 else "", [n for n in names if n != "seed"])
    parts += ["<h2>Every run</h2>", _runs(runs, names, links)]
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    parts.append(f'<p class="quiet">{html.escape(made)} Finished {finished}. <a href="table.csv">All rows</a></p>')
    return PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(parts))


def _files(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows that `run_benchmark` makes, by file, each with the seed of its network.

    Files are never pooled: they are of other networks, or other sets. One with the rows of another is left out.
    """
    if not {*KEYS, "value"} - {"seed"} <= set(table.columns):
        return {}
    first = table.get("run_seed", 0)
    done = table.assign(seed=table["seed"].fillna(first) if "seed" in table else first)
    done = done[done["metric"].isin(METRICS) & done["group"].isin(ROLES)]
    found: dict[str, tuple[str, pd.DataFrame]] = {}
    for file, rows in done.groupby("table", sort=False):
        rows = rows.infer_objects()  # text in a column of one file makes no text of another
        content = rows[["run", *KEYS, "value"]].round(6).to_csv(index=False)  # `save_results` rounds
        found.setdefault(content, (file, rows))
    return dict(found.values())


def _part(rows: pd.DataFrame, where: str, names: Sequence[str]) -> list[str]:
    """Figures and table of one file; in the place of one whose means cannot be taken, why."""
    varied = [name for name in names if rows[name].nunique() > 1]
    drawn = varied if "auroc" in set(rows["metric"]) else []
    parts = {f"AUROC against {n}": partial(_figure, rows, n, [o for o in varied if o != n]) for n in drawn}
    made = []
    for title, make in (parts | {"Every detector": partial(_detectors, rows, names)}).items():
        try:
            text = make()
        except ValueError as error:
            text = f"<p>No means can be taken: {html.escape(str(error))}.</p>"
        made.append(f"<h2>{html.escape(title + where)}</h2>{text}")
    return made


def _sentence(runs: pd.DataFrame, names: Sequence[str]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    columns = {n: runs["run_seed" if n == "seed" else n].drop_duplicates() for n in names}
    values = "; ".join(f"{name} = {', '.join(map(str, column))}" for name, column in columns.items())
    return f"Runs: {counts}. {values or 'Nothing varied'}."


def _groups(table: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[tuple, pd.DataFrame]]:
    yield from table.groupby(list(names), sort=False) if names else [((), table)]


def _by_network(rows: pd.DataFrame) -> pd.DataFrame:
    """One value per network: the mean where runs share a network, or differ in a parameter that is not looked at.

    Raises:
        ValueError: one run has a value twice, see `counted_once`.
    """
    checked = pd.concat([counted_once(run) for _, run in rows.groupby("run", sort=False)]).astype({"value": float})
    return checked.groupby(list(KEYS), sort=False, as_index=False)["value"].mean()


def _figure(done: pd.DataFrame, name: str, others: Sequence[str]) -> str:
    auroc = done[done["metric"] == "auroc"]
    numeric = pd.api.types.is_numeric_dtype(auroc[name])
    values, groups = zip(*auroc.groupby(name, sort=numeric))
    parts = [summarize(_by_network(rows)).assign(x=x) for x, rows in enumerate(groups)]
    summary = pd.concat(parts, ignore_index=True)
    spread = summary.groupby(["detector", "group"])["value"].agg(lambda v: 100 * (v.max() - v.min()))
    moves = spread.groupby("detector").max().sort_values(ascending=False, kind="stable")
    shown, rest = list(moves.index[:PANELS]), moves.iloc[PANELS:]
    file = io.BytesIO()
    with plt.rc_context():
        plots.theme()
        figure = panels(summary, shown, name, [_tick(str(v)) for v in values])
        figure.savefig(file, format="svg")
        plt.close(figure)
    picture = base64.b64encode(file.getvalue()).decode()
    alt = (
        f"{len(shown)} panels, one per detector ({', '.join(shown)}). "
        f"Horizontal axis: {name} at {', '.join(map(str, values))}. "
        "Vertical axis: AUROC in percent; near-OOD as orange triangles, far-OOD as pink squares. "
        f"{shown[0]} moves most, by {moves.iloc[0]:.1f} points."
    )
    caption = "Mean AUROC over the sets of a group"
    caption += ", with 95 % intervals over seeds" if summary["low"].notna().any() else "; one seed, so no interval"
    caption += f", all values of {' and '.join(others)} taken together" if others else ""
    caption += f"; the {len(shown)} detectors that move most. " if len(rest) else ". "
    caption += f"The other {len(rest)} move by {rest.iloc[0]:.1f} points at most." if len(rest) else ""
    return (f'<figure><img src="data:image/svg+xml;base64,{picture}" alt="{html.escape(alt, quote=True)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")  # fmt: skip


def _tick(text: str) -> str:
    """A long value, a path for instance, by its end."""
    return text if len(text) <= 14 else f"…{text[-13:]}"


def panels(summary: pd.DataFrame, shown: Sequence[str], name: str, values: Sequence[str]) -> Figure:
    """One panel per detector: AUROC in percent, with its interval, at each value of a parameter.

    Args:
        summary: from `summarize`, for each value, whose place in `values` is in the column x.
        shown: detectors.
        name: of the parameter.
        values: of the parameter, as they are written at the axis.
    """
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    size = (plots.FULL, 0.7 + 2.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, detector in zip(axes.flat, shown):
        _panel(ax, summary[summary["detector"] == detector])
        ax.set(title=detector, xticks=range(len(values)), xticklabels=values, xlim=(-0.4, len(values) - 0.6))
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    figure.supxlabel(name, fontsize=11)
    figure.supylabel("AUROC (%)", fontsize=11)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _panel(ax: Any, rows: pd.DataFrame) -> None:
    for role, shift in zip(ROLES, (-0.04, 0.04)):
        own = rows[rows["group"] == role]
        ends = 100 * abs(own[["low", "high"]].sub(own["value"], axis=0)).fillna(0).to_numpy().T
        style = {"color": plots.COLORS[role], "marker": plots.MARKERS[role], "linestyle": plots.LINES[role]}
        ax.errorbar(own["x"] + shift, 100 * own["value"], ends, capsize=3, label=plots.NAMES[role], **style)


def _detectors(done: pd.DataFrame, names: Sequence[str]) -> str:
    cells, keys = [], []
    for combination, rows in _groups(done, names):
        columns = {}
        for metric in [m for m in METRICS if m in set(rows["metric"])]:
            for _, line in summarize(_by_network(rows), metric).iterrows():
                columns[line["detector"], f"{METRICS[metric]}, {line['group']}"] = line
        for detector in dict.fromkeys(d for d, _ in columns):
            own = {column: line for (d, column), line in columns.items() if d == detector}
            head = dict(zip(names, combination)) | {"detector": detector}
            seeds = {"seeds": max(line["seeds"] for line in own.values())}
            keys.append(head | {column: line["value"] for column, line in own.items()} | seeds)
            shown = {k: html.escape(str(v)) for k, v in head.items()}
            texts = {column: as_percent(*line[["value", "low", "high"]], small=True) for column, line in own.items()}
            cells.append(shown | texts | seeds)
    caption = (
        "In percent, mean over the sets of a group [95 % interval over seeds]. AUROC: larger is better; "
        "FPR95, the share of OOD images accepted where 95 % of ID images are: smaller. A click on a head sorts."
    )
    table = plots.sortable_table(pd.DataFrame(cells).fillna(""), pd.DataFrame(keys))
    return f'<p class="quiet">{caption}</p>{_wide(table, "Every detector")}'


def _wide(table: str, label: str) -> str:
    """A table that scrolls by itself where the page is narrow, also from the keyboard."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _cell(value: Any) -> str:
    return html.escape(f"{value:g}" if isinstance(value, float) else str(value))


def _runs(runs: pd.DataFrame, names: Sequence[str], links: dict[str, str]) -> str:
    varied = ["run_seed" if n == "seed" else n for n in names]
    heads = {"run_seed": "seed", "run_seconds": "seconds", "run_memory_mb": "memory (MB)"}
    keys = runs[["run", "status", *varied, "run_seconds", "run_memory_mb", "error"]].rename(columns=heads)
    cells = keys.astype(object).where(keys.notna(), "").map(_cell)
    cells["run"] = [f'<a href="{html.escape(links[x], quote=True)}">{html.escape(x)}</a>' for x in keys["run"]]
    table = plots.sortable_table(cells, keys)
    return _wide(table, "Every run")

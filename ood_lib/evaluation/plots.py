"""One look for every figure: roles have colours, markers and line styles, everywhere the same.

ID is a blue filled circle with solid lines, near-OOD an orange triangle, dashed, far-OOD a pink square, dotted, and a
second model or a baseline green. The palette is Okabe & Ito's, whose colours colour-blind readers can distinguish;
nothing is encoded by colour alone. Whatever is no role (detectors, kinds of network, sizes, settings) is drawn in
`SERIES`, so that blue, orange and pink always say where an image comes from.
"""

import html
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from ood_lib.data.benchmark import Benchmark
from ood_lib.data.length import length
from ood_lib.evaluation.comparison import counted_once
from ood_lib.evaluation.metrics import DIRECTIONS, as_percent, mean_interval, too_wide
from ood_lib.evaluation.verdict import Verdict
from ood_lib.training.loop import History

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLORS", "FULL", "HALF", "LINES", "MARKERS", "NAMES", "SERIES", "band", "benchmark_images", "benchmark_table",
    "density", "dots", "embedding", "images", "markdown_table", "sortable_table", "theme", "training_curves", "umap",
    "verdict_table",
]  # fmt: skip

FULL, HALF = 7.2, 3.5  # figure widths in inches
COLORS = {"id": "#0072B2", "near": "#E69F00", "far": "#CC79A7", "other": "#009E73", "grey": "#666666"}
MARKERS = {"id": "o", "near": "^", "far": "s", "other": "D", "grey": "X"}
LINES = {"id": "-", "near": "--", "far": ":", "other": "-.", "grey": "-"}
# Earth colours from dark to light for what is no role: `ax.plot(x, y, **SERIES[0])`. They are apart from the roles'
# colours for every kind of colour vision, and from each other by brightness, so also in grey. On a dark page without a
# white card only the last two can be seen.
SERIES: tuple[dict[str, Any], ...] = (
    {"color": "#111111", "linestyle": "-", "marker": "v"},
    {"color": "#6E1423", "linestyle": (0, (5, 1.5)), "marker": "P"},
    {"color": "#80440F", "linestyle": (0, (1.2, 1.2)), "marker": "<"},
    {"color": "#8A7A1F", "linestyle": (0, (5, 1.2, 1.2, 1.2)), "marker": "p"},
    {"color": "#C08F5F", "linestyle": (0, (5, 1.2, 1.2, 1.2, 1.2, 1.2)), "marker": "*"},
)
NAMES = {"id": "in-distribution", "near": "near-OOD", "far": "far-OOD"}
SCORE = "score (larger = more OOD →)"


def theme() -> None:
    """Set the book's style for every figure drawn afterwards: fonts, light grid, no top or right spine."""
    sns.set_theme(style="whitegrid", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.figsize": (FULL, 3.2), "figure.constrained_layout.use": True, "figure.dpi": 100,
            "savefig.facecolor": "white", "savefig.dpi": 160,
            "axes.spines.top": False, "axes.spines.right": False,
            "axes.titlesize": 11, "axes.labelsize": 11, "font.size": 11, "legend.frameon": False,
            "grid.color": "#e6e6e6", "axes.edgecolor": "#666666", "lines.linewidth": 1.8,
            "axes.prop_cycle": plt.cycler(color=[style["color"] for style in SERIES]),
            "svg.hashsalt": "ood-book",  # the same picture gives the same file
        }
    )  # fmt: skip
    try:  # in a notebook: figures at twice the resolution of the page
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    except ImportError:
        pass


def _numbers(values: Tensor | Sequence[float]) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()


def density(
    scores: Mapping[str, Tensor], roles: Mapping[str, str] | None = None, threshold: float | None = None,
    ax: Axes | None = None, label: str = SCORE,
) -> Axes:  # fmt: skip
    """Smoothed densities of scores, one curve per set.

    Args:
        scores: name -> (N,).
        roles: name -> ``"id"``, ``"near"``, ``"far"`` or ``"other"``; a name that is itself a role needs no entry.
        threshold: drawn as a line when given.
        ax: where to draw.
        label: of the horizontal axis.
    """
    ax = ax or plt.subplots(figsize=(FULL, 3))[1]
    for name, values in scores.items():
        role = (roles or {}).get(name, name)
        style = {"color": COLORS[role], "linestyle": LINES[role], "label": NAMES.get(name, name)}
        sns.kdeplot(x=_numbers(values), ax=ax, fill=True, alpha=0.12, linewidth=0, color=COLORS[role], cut=0)
        sns.kdeplot(x=_numbers(values), ax=ax, cut=0, **style)
    if threshold is not None:
        ax.axvline(threshold, color=COLORS["grey"], linewidth=1)
        place: Any = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (3, -3),
            "textcoords": "offset points",
            "va": "top",
        }
        ax.annotate("τ", (threshold, 1), **place)
    ax.set(xlabel=label, ylabel="density")
    ax.locator_params(axis="x", nbins=5)
    ax.legend()
    return ax


def embedding(points: np.ndarray, groups: Mapping[str, np.ndarray], ax: Axes | None = None) -> Axes:
    """Points (N, 2) of a 2-D embedding, coloured by role; groups: role -> boolean mask (N,) or indices."""
    ax = ax or plt.subplots(figsize=(FULL, 4.6))[1]
    for role, rows in groups.items():
        style: Any = {"color": COLORS[role], "marker": MARKERS[role], "label": NAMES.get(role, role)}
        ax.scatter(points[rows, 0], points[rows, 1], s=9, alpha=0.65, linewidths=0, rasterized=True, **style)
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    ax.legend(markerscale=2)
    return ax


def umap(rows: Tensor, seed: int, **options: Any) -> np.ndarray:
    """A map in the plane (N, 2) of rows (N, D) that keeps neighbours together; the same for the same seed.

    Args:
        rows: features.
        seed: where it starts; each run of a chapter draws the same map.
        options: of ``umap.UMAP``; without any, 20 neighbours and a least distance of 0.2.

    References:
        McInnes et al., UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction, 2018.
    """
    threads = torch.get_num_threads()
    with warnings.catch_warnings(action="ignore"):  # that a fixed seed means one thread, that a progress bar is absent
        from umap import UMAP, layouts, umap_

        compiled = [umap_.fast_knn_indices, umap_.smooth_knn_dist, umap_.compute_membership_strengths]
        epoch = getattr(layouts, "_nb_optimize_layout_euclidean_single_epoch", None)  # a private name, in some versions
        with suppress(RuntimeError):  # nowhere to keep it: a read-only home
            for function in filter(None, [*compiled, epoch]):
                function.enable_caching()  # compiled once for all notebooks, not 20 seconds in each
        points = UMAP(**{"n_neighbors": 20, "min_dist": 0.2} | options, random_state=seed).fit_transform(rows.cpu())
    torch.set_num_threads(threads)  # its own threading raises it, and small operations then wait for each other
    return points


def images(sets: Mapping[str, Dataset], columns: int = 10, roles: Mapping[str, str] | None = None) -> Figure:
    """A row of pictures per data set, evenly spread over the set; the row's name takes the colour of its role."""
    figure, axes = plt.subplots(len(sets), columns, figsize=(FULL, 0.62 * len(sets)), squeeze=False)
    for row, (name, data) in zip(axes, sets.items()):
        for ax, index in zip(row, np.linspace(0, length(data, "to show") - 1, columns).astype(int)):
            picture = np.asarray(data[index][0]).transpose(1, 2, 0)
            ax.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.axis("off")
        row[0].text(-0.3, 0.5, name, transform=row[0].transAxes, ha="right", va="center",
                    color=COLORS[(roles or {}).get(name, "grey")])  # fmt: skip
    return figure


def benchmark_images(bench: Benchmark, columns: int = 10) -> Figure:
    """The sets of a benchmark, a row of `images` each, in the colours of their roles."""
    roles = {"ID": "id"} | dict.fromkeys(bench.near, "near") | dict.fromkeys(bench.far, "far")
    return images({"ID": bench.test} | bench.near | bench.far, columns, roles)


def training_curves(histories: Sequence[History]) -> Figure:
    """Loss per update, mean of 20, and validation accuracy per epoch, a line per network."""
    import pandas as pd

    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL, 2.5))
    for history in histories:
        left.semilogy(pd.Series(history.loss).rolling(20, min_periods=1).mean(), color=COLORS["id"], lw=1)
        right.plot(np.arange(1, len(history.accuracy) + 1), 100 * np.array(history.accuracy), color=COLORS["id"], lw=1)
    left.set(xlabel="update", ylabel="cross-entropy (mean of 20)")
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    return figure


def band(values: "pd.DataFrame", role: str | Mapping[str, Any], ax: Axes, ticks: bool = False) -> Axes:
    """Mean over the columns (networks, draws) against the index, with the full range shaded.

    ``role`` may be one of `SERIES` instead, with a label where a legend shows it. ``ticks`` puts the index values at
    equal distances, for grids that are neither linear nor logarithmic.
    """
    x = range(len(values)) if ticks else values.index
    if isinstance(role, str):
        role = {"color": COLORS[role], "marker": MARKERS[role], "linestyle": LINES[role], "label": NAMES[role]}
    ax.plot(x, values.mean(axis=1), **role)
    ax.fill_between(x, values.min(axis=1), values.max(axis=1), color=role["color"], alpha=0.2, lw=0)
    if ticks:
        ax.set(xticks=list(x), xticklabels=[f"{v:g}" for v in values.index])
    return ax


def dots(summary: "pd.DataFrame", label: str = "AUROC", ax: Axes | None = None) -> Axes:
    """Detectors as rows, near and far as two dots with their intervals; the summary is `ood_lib.summarize`'s."""
    names = list(dict.fromkeys(summary["detector"]))
    ax = ax or plt.subplots(figsize=(FULL, 0.8 + 0.3 * len(names)))[1]
    for role, shift in (("near", -0.13), ("far", 0.13)):
        rows = summary[summary["group"] == role].set_index("detector").reindex(names)
        y = np.arange(len(names)) + shift
        style: Any = {"color": COLORS[role], "linestyle": "-" if role == "near" else ":"}
        ax.hlines(y, rows["low"], rows["high"], **style)
        ax.plot(rows["value"], y, MARKERS[role], color=COLORS[role], label=NAMES[role])
    interval = "95 % interval over seeds" if summary["low"].notna().any() else "one network: no interval"
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel=f"{label} (mean over sets, {interval})")
    ax.set_xlim(max(0.0, float(summary["low"].fillna(summary["value"]).min()) - 0.02), 1.005)
    ax.invert_yaxis()
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.02 + 0.5 / len(names)), ncols=2)
    return ax


def benchmark_table(table: "pd.DataFrame", metric: str = "auroc", caption: str = "") -> Any:
    """A `run_benchmark` table as a page shows it: detectors x OOD sets, in percent, with intervals, best in bold.

    The interval is that of Student's t over seeds; of a single seed, that of its test set. Bold are the best value of
    a column and all those within its interval. The caption also says what the intervals are, and why one is missing.

    Raises:
        ValueError: the table does not hold the metric, or holds a value twice (see `counted_once`).
    """
    import pandas as pd

    if metric not in DIRECTIONS or metric not in set(table["metric"]):
        known = sorted(set(table["metric"]) & set(DIRECTIONS))
        raise ValueError(f"metric={metric!r} was given; of those that are known here, the table holds {known}")
    ends = ["value", "low", "high"]
    groups = counted_once(table[table["metric"] == metric]).groupby(["detector", "group", "ood_set"], sort=False)
    found = {key: mean_interval(own["value"]) if len(own) > 1 else tuple(own[ends].iloc[0]) for key, own in groups}
    index = pd.MultiIndex.from_tuples(found)
    value, low, high = (
        pd.Series(column, index, dtype=float).unstack([1, 2], sort=False) for column in zip(*found.values())
    )
    best = value.idxmax() if DIRECTIONS[metric] > 0 else value.idxmin()
    ties = value.apply(lambda c: c.between(low.loc[best[c.name], c.name], high.loc[best[c.name], c.name]))
    cells = pd.Series([as_percent(*row, small=True) for row in found.values()], index)
    cells = cells.unstack([1, 2], sort=False).fillna("")  # a detector that has not met a set
    style = cells.style.apply(lambda _: ties.map({True: "font-weight: bold", False: ""}.get), axis=None)
    most = max(len(own) for _, own in groups)
    notes = [caption, f"in brackets the 95 % interval over {'networks' if most > 1 else 'test images'}"]
    if any(too_wide(*row) for row in found.values()):
        notes.append("cannot tell: the interval is as wide as the scale, or wider")
    return style.set_caption("; ".join(filter(None, notes)))


def verdict_table(found: Mapping[str, Mapping[str, Verdict]], caption: str = "") -> Any:
    """A row for each network: what a method gains over its baseline on near sets, far sets and in the mean.

    Args:
        found: `ood_lib.verdicts` of each network, by the name of the network.
        caption: above the table; it goes on with what the numbers are.
    """
    import pandas as pd

    columns = [group for group in ("near", "far", "mean") if any(group in row for row in found.values())]
    names = NAMES | {"mean": "mean of both"}
    cells = pd.DataFrame(
        [[str(row.get(group, "")) for group in columns] for row in found.values()],
        index=pd.Index(found, name="network"),
        columns=[names[group] for group in columns],
    )
    sure = cells.map(lambda cell: "font-weight: bold" if cell.endswith(("better", "worse")) else "")
    notes = [caption, "difference of the AUROC in points, in brackets its 95 % interval"]
    return cells.style.apply(lambda _: sure, axis=None).set_caption("; ".join(filter(None, notes)))


def markdown_table(summary: "pd.DataFrame") -> str:
    """A summary as a Markdown table in percent, one column per group with intervals, for pages that include it."""
    cells = summary.assign(cell=[as_percent(*row) for row in summary[["value", "low", "high"]].to_numpy()])
    wide = cells.pivot(index="detector", columns="group", values="cell").fillna("")
    wide = wide.loc[list(dict.fromkeys(cells["detector"]))]
    wide = wide[[group for group in ("near", "far") if group in wide]]
    head = [["detector", *(NAMES[group] for group in wide)], ["---", *("---:" for _ in wide.columns)]]
    lines = [*head, *([name, *row] for name, row in zip(wide.index, wide.to_numpy()))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# Sorts by what stands in data-key: numbers as numbers, empty cells last.  A page without scripts shows the same table.
_SORT = """
document.querySelectorAll("table.sortable:not([data-ready])").forEach((table) => {
  table.dataset.ready = "yes";
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (down ? -1 : 1);
    const order = (a, b) => (key(a) === "") - (key(b) === "") || compare(key(a), key(b));
    [...table.tBodies[0].rows].sort(order).forEach((row) => table.tBodies[0].append(row));
  }));
});
"""


def sortable_table(cells: "pd.DataFrame", keys: "pd.DataFrame", caption: str = "") -> str:
    """HTML of a table that its reader sorts by a click on a column head, also from the keyboard.

    Args:
        cells: what is shown, as HTML.
        keys: what is sorted by, in the shape of ``cells``: numbers or text, NaN last.
        caption: above the table.
    """
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(str(c))}</button></th>' for c in cells.columns)
    rows = "".join(
        "<tr>" + "".join(f'<td data-key="{_key(k)}">{c}</td>' for c, k in zip(*line)) + "</tr>\n"
        for line in zip(cells.to_numpy(), keys.to_numpy())
    )
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    table = f'<table class="sortable">{above}<thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>'
    return f"{table}<script>{_SORT}</script>"


def _key(value: Any) -> str:
    return "" if value is None or value != value else html.escape(str(value), quote=True)

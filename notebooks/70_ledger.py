# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The ledger
#
# ```{admonition} Before you start
# :class: tip
# **You will find** each headline claim of the five papers, our value beside it, and a verdict; and how to add a line.
#
# **You need** the words of [the protocol chapter](05_protocol): near, far, AUROC, FPR95.
#
# **It takes** 10 minutes. No GPU, nothing is trained here: the page reads `book/claims.yaml` and `book/results/`.
#
# **The claim** of this page is that a value without its setting is worth nothing. Every row has both.
# ```

# %% tags=["hide-input"]
# On Colab this installs the book's library; where it is there already, it does nothing.
import importlib.util
import re
import subprocess
import sys

SOURCE = "ood_lib[plots] @ git+https://github.com/ood-book/ood-book@main"


class NotInstalled(ImportError):
    def _render_traceback_(self):  # Jupyter shows this sentence in place of the traceback
        return [f"NotInstalled: {self}"]


if importlib.util.find_spec("ood_lib") is None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-color", SOURCE]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        reason = re.search(r"(?:fatal|ERROR): .*|$", pip.stderr)[0] or "it gave no reason"
        raise NotInstalled(
            f"pip could not install {SOURCE} ({reason}). Connect this machine to the "
            "internet, or set SOURCE in this cell to a copy of the book that it can reach, such as "
            '"ood_lib[plots] @ file:///path/to/ood-book", and run the cell again.'
        )

# %% tags=["parameters"]
claims: str = "../book/claims.yaml"  # what the papers say
archive: str = "../book/results"  # what we measured
close: float = 1.0  # points within which a value counts as reproduced
near_by: float = 3.0  # points within which it counts as partly reproduced
results: str = ""  # folder for this run's table; empty: do not write

# %% tags=["hide-input"]
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml
from IPython.display import Markdown, display

import ood_lib as ood
from ood_lib.data.protocols import OPENOOD_CIFAR10
from ood_lib.evaluation import metrics, plots
from ood_lib.evaluation.comparison import counted_once
from ood_lib.evaluation.results import origins

plots.theme()
if not Path(claims).is_file():  # the notebook alone, as in Colab: the claims and the result files lie in the repository
    address = "https://github.com/ood-book/ood-book"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, "ood-book"], check=True)
    claims, archive = "ood-book/book/claims.yaml", "ood-book/book/results"
said = yaml.safe_load(Path(claims).read_text(encoding="utf-8"))
claimed = pd.DataFrame([{"paper of": paper} | row for paper, rows in said.items() for row in rows])
measured = ood.load_results(archive)

# %% [markdown]
# ## 1. How a verdict is found
#
# No verdict is typed. A claimed *value* is **reproduced** when it differs from ours by at most `close` points, or lies in
# our interval; **partly** within `near_by` points; else **not reproduced**, above or below. A claimed *difference* is reproduced when the
# interval of our difference lies on its side of zero; "not" when it lies on the other side; "undecided" when it holds zero, and
# when both detectors have an AUROC below 60: a difference between two that guess decides nothing.
# A row that we cannot test stays, and says what it needs.
#
# The interval is over networks where there are several, over test images where there is one. A difference is taken network
# by network where there are several. For one network its interval is made of the two intervals as if they were independent,
# which is too wide: the same images are in both.

# %%
def rows_of(row):
    """Our rows of a claim: those of its run and its metric, on its set or group."""
    here = (measured["run"] == row["run"]) & (measured["metric"] == metric_of(row))
    where = (measured["group"] == row["over"]) | (measured["ood_set"] == row["over"])
    return measured[here & where].assign(group=row["over"])


def metric_of(row):
    return row["metric"] if isinstance(row["metric"], str) else "auroc"


def by_network(rows, detector):
    """Value, low and high of each network, in percent."""
    own = counted_once(rows[rows["detector"] == detector])
    return 100 * own.groupby("seed")[["value", "low", "high"]].mean()


# %%
def of_two(row, rows, a, b):
    """Value, low, high of a difference."""
    pair = row["detector"], row["minus"]
    if b.empty:
        return [math.nan] * 3
    found = ood.compare_over_seeds(rows, *pair, row["over"], metric_of(row))
    if found.networks > 1:
        return [found.difference + k * found.half for k in (0, -1, 1)]
    seed = a.index.intersection(b.index)[0]
    (value, low, high), (other, under, over) = a.loc[seed], b.loc[seed]
    below = math.hypot(value - low, over - other)
    above = math.hypot(high - value, other - under)
    return value - other, value - other - below, value - other + above


# %%
def ours(row):
    """Our value, low, high of a row: of one detector, or of a difference."""
    rows = rows_of(row)
    a = by_network(rows, row["detector"])
    if isinstance(row["minus"], str) and len(a):
        return of_two(row, rows, a, by_network(rows, row["minus"]))
    if len(a) > 1:
        return metrics.mean_interval(a["value"])
    return [*a.iloc[0]] if len(a) else [math.nan] * 3


# %%
def of_difference(row):
    both = [by_network(rows_of(row), row[k])["value"].mean() for k in ("detector", "minus")]
    if metric_of(row) == "auroc" and max(both) < 60:
        return "undecided (neither detects)"
    ahead = metrics.DIRECTIONS[metric_of(row)]  # of an error rate, the side below zero
    worst, best = sorted((ahead * row["low"], ahead * row["high"]))
    below = "not reproduced" if best < 0 else "undecided"
    return "reproduced" if worst > 0 else below


# %%
def verdict(row):
    if isinstance(row["needs"], str):
        return "not testable here"
    if row["ours"] != row["ours"]:
        return "not run yet"
    if isinstance(row["minus"], str):
        return of_difference(row)
    gap = abs(row["ours"] - row["paper"])
    if gap <= close or row["low"] <= row["paper"] <= row["high"]:
        return "reproduced"
    beyond = "above" if row["ours"] > row["paper"] else "below"
    return "partly" if gap <= near_by else f"not reproduced ({beyond})"


# %%
for column in ("run", "detector", "minus", "needs", "metric", "over"):
    claimed[column] = claimed.get(column)
claimed[["ours", "low", "high"]] = [ours(row) for _, row in claimed.iterrows()]
claimed["verdict"] = [verdict(row) for _, row in claimed.iterrows()]

# %% [markdown]
# ## 2. The five papers

# %% tags=["hide-input"]
def number(value):
    return "" if value != value or value is None else f"{value:.1f}"


def in_percent(row):
    numbers = (x / 100 for x in (row.ours, row.low, row.high))
    return metrics.as_percent(*numbers, signed=isinstance(row.minus, str), small=True)


def show(rows, caption):
    cells = pd.DataFrame({
        "claim": rows["claim"], "setting": rows["setting"], "source": rows["source"],
        "paper": rows["paper"].map(number),
        "ours": [in_percent(r) for r in rows.itertuples()],
        "verdict": rows["verdict"],
        "run, or what it needs": rows["needs"].where(rows["needs"].notna(), rows["run"]),
    })  # fmt: skip
    display(cells.style.hide(axis="index").set_caption(caption))


for paper, rows in claimed.groupby("paper of", sort=False):
    show(rows, f"{paper}: AUROC in %, or FPR95 in % where the setting says so; differences in points")

# %% tags=["hide-input"]
counts = claimed["verdict"].value_counts()
display(Markdown(
    f"Of {len(claimed)} claims: " + ", ".join(f"{n} {word}" for word, n in counts.items()) + "."
))  # fmt: skip

# %% [markdown]
# The settings differ, and the difference matters. Our CIFAR-10 network has little more than half of the weights of theirs, there
# is one of it (a ResNet-56 that others trained is beside it), nothing was tuned on OOD images but WeiPer where the row says so,
# and some OOD sets are smaller ({ref}`the notes below <ledger-sources>`). "Not reproduced" means: not on this network with
# published settings. It does not mean that the paper is wrong.
#
# ## 3. The leaderboard of OpenOOD
#
# The other detectors of the book have published values too {cite:p}`zhang2023openood`: July 2025, CIFAR-10, means over
# three ResNet-18.

# %% tags=["hide-input"]
rows = [
    {"detector": n, "group": g, "paper": values[i], "run": run, "over": g, "minus": None, "metric": None, "needs": None}
    for run in sorted({r for r in measured["run"] if r.startswith("cifar10-resnet") and not r.endswith("far")})
    for n, values in OPENOOD_CIFAR10.items() for i, g in enumerate(("near", "far"))
]  # fmt: skip
board = pd.DataFrame(rows)
board[["ours", "low", "high"]] = [ours(row) for _, row in board.iterrows()]
board = board.dropna(subset=["ours"])
board["verdict"] = [verdict(row) for _, row in board.iterrows()]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Published AUROC on CIFAR-10 against ours, one mark per detector, near and far. On the line they agree; below it we are lower.", "name": "fig-ledger-board"}, "image": {"alt": "One scatter plot per network. Horizontal the published AUROC of a detector, vertical ours with an interval, orange triangles for near-OOD and pink squares for far-OOD, and a diagonal line of agreement."}}
runs = list(dict.fromkeys(board["run"]))
figure, axes = plt.subplots(1, len(runs), figsize=(plots.FULL, 3.6), sharey=True, squeeze=False)
for ax, run in zip(axes[0], runs):
    for group, rows in board[board["run"] == run].groupby("group", sort=False):
        ends = rows["ours"] - rows["low"], rows["high"] - rows["ours"]
        ax.errorbar(rows["paper"], rows["ours"], ends, fmt=plots.MARKERS[group], color=plots.COLORS[group], lw=0.8,
                    label=plots.NAMES[group])  # fmt: skip
        far_off = (rows["ours"] - rows["paper"]).abs().nlargest(3).index
        for r in rows.loc[far_off].itertuples():
            ax.annotate(r.detector, (r.paper, r.ours), xytext=(4, 3), textcoords="offset points", fontsize=8)
    ax.plot([55, 100], [55, 100], "k--", lw=0.8)
    ax.set(title=run, xlabel="published AUROC (%)")
axes[0][0].set_ylabel("our AUROC (%)")
axes[0][0].legend()
plt.show()

# %% tags=["hide-input"]
wide = board.assign(text=[f"{r.ours:.1f} ({r.ours - r.paper:+z.1f}) {r.verdict}" for r in board.itertuples()])
wide = wide.pivot_table(index="detector", columns=["run", "group"], values="text", aggfunc="first", sort=False).fillna("")
display(wide.style.set_caption("Our AUROC in %, in brackets the difference from the published value, and the verdict"))
lines = []
for (run, group), rows in board.groupby(["run", "group"], sort=False):
    rank = rows["ours"].corr(rows["paper"], method="spearman")
    words = ", ".join(f"{n} {w}" for w, n in rows["verdict"].value_counts().items())
    lines.append(f"* {run}, {group}: {words}; the order of the {len(rows)} agrees to a rank correlation of {rank:.2f}.")
display(Markdown("\n".join(lines)))

# %% [markdown]
# (ledger-sources)=
# ## 4. Where our values come from

# %% tags=["hide-input"]
sources = measured.reindex(columns=["run", "network", "accuracy", "date"]).groupby("run", sort=False).first()
sources["accuracy"] = sources["accuracy"].map(lambda a: "" if a != a else f"{a:.1%}")
display(sources.fillna("").style.set_caption("Provenance: one row per file of book/results"))
display(Markdown(origins(measured)))

# %% [markdown]
# **Add a line.** Put the claim into `book/claims.yaml`, the file of the run that tests it into `book/results/`
# ([how to make one](06_leaderboard)), and run this page again.

# %% tags=["hide-input"]
if results:
    Path(results).mkdir(parents=True, exist_ok=True)
    claimed.to_csv(Path(results) / "ledger.csv", index=False)

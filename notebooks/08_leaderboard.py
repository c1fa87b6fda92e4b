# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Leaderboard
#
# Every detector of the library on every benchmark that has been run, with intervals, cost, and the source of each number.

# %% tags=["remove-cell"]
# On Colab this installs the book's library; where it is there already, it does nothing.
import importlib.util
import os
import re
import subprocess
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads without work leave the core to others
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
            "internet, or set SOURCE in this cell to a copy that it can reach, such as "
            '"ood_lib[plots] @ file:///path/to/ood-book", and run the cell again.'
        )

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of any leaderboard is that its first line is the best method. It is the best on one network and its OOD sets.
# Open another table below and compare.
#
# <!-- made by ood-book sync -->
# **It takes** 4 minutes to read, without exercises and what is folded, and 3 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use** it to see which detectors are worth a try, and to add [a line of your own](#4-add-a-line).
#
# **Do not** pick a winner from it: [section 3](#3-how-to-read-it) says what a table cannot tell.
# ```

# %% tags=["parameters", "remove-input"]
benchmark: str = "digits"  # cifar10, imagenet, folder:PATH; a bank: cifar10-densenet
data_dir: str = ""  # where local data lie; empty: the cache folder
missing: str = "raise"  # an OOD set that is not there: raise or skip
name: str = ""  # what made the features, for the table; empty: the network trained here
seeds: int = 5  # networks to train, each from its own seed
seed: int = 0  # the first of these seeds
device: str = "auto"  # where to train: auto, cpu, cuda
epochs: int = 30  # of training
learning_rate: float = 0.05  # peak of the learning-rate cycle
widths: list = [32, 64]  # feature maps per stage; the last is the feature width K
heat_updates: int = 150  # of each of HEAT's two residuals; the library trains 500
flow_updates: int = 300  # of the feature flow, at most; the library trains 1000
archive: str = "../book/results"  # folder with the result files of earlier runs
results: str = ""  # folder for this run's result file; empty: do not write

# %% tags=["remove-input"]
import html
import tempfile
import warnings
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown, display
from ood_book import explorables

import ood_lib as ood
from ood_lib.data.benchmark import benchmark_hash
from ood_lib.evaluation import metrics, plots
from ood_lib.evaluation.results import origins

plots.theme()
warnings.filterwarnings("ignore", message=".*ranks almost as its prior")  # after few updates: the board shows it

# %% tags=["remove-input"]
def everyone(x):
    """Every detector of the library that reads the features of one classifier."""
    head = x.head
    found = ood.classical_detectors(head, x.train)
    found |= {"GradNorm": ood.GradNorm(), "GMM, full": ood.GMM(covariance="full")}
    found |= {f"WeiPer {score}": ood.WeiPer(head, score) for score in ("msp", "react")}
    found |= {"WeiPer+KLD": ood.WeiPer(head)}
    found |= {"WeiPer+KLD, limit": ood.WeiPer(head, repeats=None)}
    found |= {"HEAT": ood.HEAT([ood.GMMPrior(), ood.LogitPrior(head)], updates=heat_updates)}
    return found | {"feature flow": ood.FeatureFlow(updates=flow_updates)}


# %% tags=["remove-input"]
def judge(x, s):
    """All detectors on one network; ODIN on features of its own."""
    runs = [(everyone(x), x)]
    if x.images:  # a bank has no images to move
        moved = ood.extract_benchmark(ood.ODINNetwork(x.network), x.images, device=device)
        runs.append(({"ODIN": ood.ODIN()}, moved))
    return pd.concat(ood.run_benchmark(*run, seed=s) for run in runs)


# %% tags=["remove-input"]
features = ood.benchmark_features(
    benchmark, seeds, seed=seed, widths=widths, device=device,
    epochs=epochs, learning_rate=learning_rate,
    root=data_dir or None, missing=missing,
)  # fmt: skip
seeds, bench = len(features), features[0].images  # a bank has no images
if not (features[0].near or features[0].far):
    raise ValueError(f"{benchmark}: give at least one OOD set to rank by")
table = pd.concat(judge(x, seed + n) for n, x in enumerate(features))
accuracy = sum(x.accuracy for x in features) / seeds
small = f"small ResNet, {widths[-1]} features"
label = name or (small if bench else benchmark)

# %% tags=["remove-input"]
data = benchmark_hash(bench) if bench else features[0].about.get("data", "")
origin = ood.provenance(data=data, sets="; ".join(features[0].notes))
file = Path(results or tempfile.mkdtemp()) / "this-run.json"
about = {"benchmark": benchmark, "network": label, "accuracy": accuracy}
ood.save_results(file, table, origin=origin, **about)

# %% tags=["remove-input"]
def show(rows, folded):
    board, about = ood.leaderboard(rows), rows.iloc[0]
    columns = {"near": "near AUROC", "far": "far AUROC", "near_fpr95": "near FPR95", "far_fpr95": "far FPR95"}
    columns = {c: title for c, title in columns.items() if board[c].notna().any()}
    cells = pd.DataFrame({"detector": board["detector"].map(html.escape)})
    for column, title in columns.items():
        least = column.endswith("fpr95")
        best = board.loc[board[column].idxmin() if least else board[column].idxmax()]
        ties = board[column].between(best[f"{column}_low"] - 1e-9, best[f"{column}_high"] + 1e-9)
        numbers = board[[column, f"{column}_low", f"{column}_high"]].to_numpy()
        text = [metrics.as_percent(*row, small=True) for row in numbers]
        cells[title] = [f"<strong>{t}</strong>" if tie else t for t, tie in zip(text, ties)]
    for title, column, style in (("s / 1000 images", "seconds_per_1000", "{:.4f}"), ("MB", "memory_mb", "{:.1f}")):
        cells[title] = board[column].map(style.format, na_action="ignore").fillna("")
    order = (-board["far"].fillna(board["near"])).argsort()
    keys = board[["detector", *columns, "seconds_per_1000", "memory_mb"]]
    kind = f"{about['seeds']} networks, 95 % intervals over networks" if about["seeds"] > 1 else "one network, 95 % intervals over test images"
    caption = f"{about['benchmark']}, {about['network']}: {kind}"
    table = plots.sortable_table(cells.iloc[order], keys.iloc[order], caption)
    display(HTML(f"<details><summary>{html.escape(caption)}</summary>{table}</details>" if folded else table))


# %% tags=["remove-input"]
everything = ood.load_results(file, archive)
everything["seeds"] = everything.groupby("run")["seed"].transform("nunique")
boards = ood.leaderboard(everything)
runs = dict([*everything.groupby("run", sort=False)])
first = "cifar10-resnet56" if benchmark == "digits" and "cifar10-resnet56" in runs else file.stem  # photographs first
for run in sorted(runs, key=lambda run: run != first):
    show(runs[run], folded=run != first)

# %% [markdown]
# ## 1. How to use the tables
#
# Click a column head to sort by it, and a line below the first table to open another one. Bold: the best mean of a column, and all within its interval. AUROC
# and FPR95 are in percent; FPR95 is the share of OOD images accepted when 95 % of ID images are accepted (`positive="id"`, [one of two
# conventions](05_protocol)). The table *this-run* was measured when this page was made, on networks trained for it.

# %% tags=["remove-input"]
explorables.show(
    explorables.near_against_far(boards, follow="KNN"),
    caption="Far-OOD against near-OOD, a mark for each detector; up and to the right is better. Choose another network and watch "
    "the detector that you follow change its place.",
    alt_text="Scatter plot of the detectors on one network: near-OOD AUROC on the horizontal axis, far-OOD AUROC on the vertical "
    "axis. One detector is marked, with its name and its intervals. Two menus choose the network and the detector.",
)

# %% tags=["hide-input"]
def leaders(rows, group):
    board = ood.leaderboard(rows).dropna(subset=[group])
    if board.empty:
        return f"no {group} set"
    best = board.loc[board[group].idxmax()]
    level = board[(board[group] >= best[f"{group}_low"]) & (board["detector"] != best["detector"])]["detector"]
    others = f", level with {'; '.join(level)}" if len(level) else ", alone"
    return f"{group}: **{best['detector']}** {100 * best[group]:.1f}{others}"


lines = [
    f"* {rows['benchmark'].iloc[0]}, {rows['network'].iloc[0]}: {leaders(rows, 'near')}; {leaders(rows, 'far')}."
    for _, rows in everything.groupby("run", sort=False)
]
display(Markdown("Who leads, and who lies within its interval:\n\n" + "\n".join(lines)))

# %% [markdown]
# **Does the order agree with the published one?** The rank correlation with OpenOOD's leaderboard of the same ID set {cite:p}`zhang2023openood`,
# over the detectors that both have, for every run of a network on `cifar10` or `cifar100`:

# %% tags=["hide-input"]
from ood_lib.data.protocols import OPENOOD

agree = {}
for (run, known), rows in everything[everything["benchmark"].isin(list(OPENOOD))].groupby(["run", "benchmark"], sort=False):
    published = pd.DataFrame(OPENOOD[known], index=["near", "far"]).T
    own = ood.leaderboard(rows).set_index("detector")[["near", "far"]]
    if len(both := own.index.intersection(published.index)) > 5:
        agree[run] = {**own.loc[both].corrwith(published.loc[both], method="spearman"), "detectors": len(both)}
if agree:
    caption = "Spearman's rank correlation with OpenOOD's leaderboard (three ResNet-18 trained on all of the ID set)"
    display(pd.DataFrame(agree).T.style.format({"near": "{:.2f}", "far": "{:.2f}", "detectors": "{:.0f}"}, na_rep="").set_caption(caption))

# %% [markdown]
# A low value does not mean that one of the tables is wrong. [The page on photographs](60_cifar10) compares four networks in the same way, and
# examines Mahalanobis, whose rank changes most.

# %% [markdown]
# ## 2. What is measured
#
# Every detector has its default settings, the published ones where the method has them, and is fitted on ID images alone. WeiPer+KLD keeps
# its CIFAR-10 settings on CIFAR-100 too, where its authors use others ([the WeiPer chapter](10_weiper) has it with those). Only HEAT and the
# feature flow are trained for fewer updates in this run, for as many as in their chapters (`heat_updates`, `flow_updates`). One default has seen
# OOD images: the noise of the feature flow was chosen by near-OOD AUROC on `digits`, so its near value in that table is not a fair test. All
# detectors see the same networks and the same images.
#
# Seconds are the time to score 1000 images with precomputed features; memory is what fitting and scoring add. (ODIN
# needs another forward and backward pass through the network for each image, which these seconds do not contain.) MSMA looks
# at images through a network of its own, and SNoJoE needs several labels; their chapters have their tables.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What a point costs: AUROC against the time to score 1000 images, this run. Up is better, left is cheaper.", "name": "fig-leaderboard-cost"}, "image": {"alt": "Two scatter plots of AUROC against seconds per 1000 images on a logarithmic axis, near-OOD left and far-OOD right, one point per detector, the five best labelled."}}
import matplotlib.pyplot as plt

board = ood.leaderboard(everything[everything["run"] == file.stem])
spots = [("right", -4, 3), ("center", 0, -12), ("left", 4, 3), ("center", 0, -12), ("center", 0, 5)]
figure, axes = plt.subplots(1, 2, figsize=(plots.FULL, 3.6), sharex=True)
for ax, role in zip(axes, ("near", "far")):
    ax.semilogx(board["seconds_per_1000"], board[role], plots.MARKERS[role], color=plots.COLORS[role], ms=5)
    best = board.nlargest(5, role).sort_values("seconds_per_1000")
    for (_, row), (side, *away) in zip(best.iterrows(), spots):
        at = row["seconds_per_1000"], row[role]
        ax.annotate(row["detector"], at, away, textcoords="offset points", ha=side, fontsize=8)
    ax.set(xlabel="seconds per 1000 images", title=plots.NAMES[role])
axes[0].set_ylabel("AUROC")
plt.show()

# %% [markdown]
# **Where the numbers come from:**

# %% tags=["hide-input"]
sources = everything.reindex(columns=["run", "benchmark", "network", "accuracy", "seeds", "date"]).groupby("run", sort=False).first()
sources["accuracy"] = sources["accuracy"].map(lambda a: "" if a != a else f"{a:.1%}")
display(sources.fillna("").style.set_caption("Provenance: one row per run"))
display(Markdown(origins(everything)))

# %% [markdown]
# ## 3. How to read it
#
# * **The order depends on the benchmark.** Sort by near and then by far, and other detectors come first. Then open another table.
# * **Bold means: within the interval of the best.** Two bold detectors may still differ, network by network or image by image:
#   [paired comparisons](06_certainty) can tell, this table cannot.
# * **What the interval is over**: networks where there are several, test images where there is one. A single network's interval
#   is the mean of the intervals of its sets, which is too wide if anything, and says nothing of other networks.
# * **Nothing is tuned on this page** except lines that say *tuned*: their settings were chosen on OOD validation images.
#   [What tuning gains and what it costs](06_certainty) is measured elsewhere.
# * **Seconds and megabytes** are those of one process on the machine named under provenance, features given.
#
# ## 4. Add a line
#
# A detector: open the notebook (the arrow at the top of the page), give it a line in the function `everyone`, and run it again. The parameters that
# the command takes are shown by `ood-book list`. By default the page trains small networks on `digits` and measures everything live. A
# {term}`bank`, features that another network left on disk, goes through the same cells. A network of your own:
#
# ```python
# bench = ood.load_benchmark("cifar10")
# seen = ood.extract_benchmark(ood.adapt(my_model, normalize=bench.normalize), bench)
# seen.save("bank", weights="where they come from", sets="; ".join(bench.notes))
# ```
#
# ```bash
# ood-book run leaderboard -p benchmark bank:bank -p name "my model"
# ```
#
# and copy the `.json` that the run leaves beside its notebook to `book/results/`.
#
# Every file in `book/results` is a table on this page. It holds the rows of `run_benchmark`, one number each, and the provenance; a run on the
# same data with the same versions gives the same rows, apart from time and memory.
#
# ```{exercise-start} Read: level with the best
# :label: ex-leaderboard-read
# ```
# In the table *this-run* (by default that of `digits`), how many detectors have a mean on far-OOD that lies within the interval of the best? Store the number, and say to yourself
# why these need not be level. *Hint: the bold entries, or `ood.leaderboard(everything)`.*

# %% tags=["exercise"]
level = ...

# %% tags=["check", "hide-input"]
def is_level(rank):
    """Whether the detector of this rank reaches into the interval of the best one."""
    ranked = board.sort_values("far", ascending=False)
    return rank <= len(board) and ranked["far"].iloc[rank - 1] >= ranked["far_low"].iloc[0]


check_level = ood.Check(
    (lambda n: n < len(board), "that is everybody; the bold ones are fewer"),
    (lambda n: is_level(n) and not is_level(n + 1), "count those that are not below the interval of the best one"),
)
check_level(level)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-leaderboard-read
# :class: dropdown
# ```
# Each interval is that of one detector alone. Two detectors read the same images, so their difference can be clear although both means lie in one
# interval. Only a paired comparison can tell.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: intervals are wide, so everybody is level with everybody.
level = len(board)
check_level(level)

# %% tags=["solution"]
best = board.loc[board["far"].idxmax()]
level = int((board["far"] >= best["far_low"]).sum())
print(level, "of", len(board))
check_level(level)

# %% [markdown]
# ```{solution-end}
# ```

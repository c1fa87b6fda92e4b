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
# **You will find** each headline claim of the five papers, our value beside it on every network that can test it, and a
# verdict; and how to add a line.
#
# **You need** the words of [the first chapter](05_protocol): near, far, AUROC, FPR95.
#
# <!-- made by ood-book sync -->
# **It takes** 2 minutes to read, without exercises and what is folded, and 1 minute to run. No GPU, no download.
# <!-- end -->
#
# **The claim** of this page is that a value without its setting is worth nothing. Every row has both.
# ```

# %% tags=["hide-input"]
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
# These are the parameters of the page: two files that you may replace by your own.

# %% tags=["parameters", "hide-input"]
claims: str = "../book/claims.yaml"  # what the papers say
archive: str = "../book/results"  # what we measured
close: float = 3.0  # points from a claimed value that still count as close
results: str = ""  # folder for this run's table; empty: do not write

# %% tags=["hide-input"]
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml
from IPython.display import Markdown, display

import ood_lib as ood
from ood_lib.data.protocols import OPENOOD
from ood_lib.evaluation import metrics, plots
from ood_lib.evaluation.comparison import counted_once
from ood_lib.evaluation.results import origins

plots.theme()
if not Path(claims).is_file():  # the notebook alone, as in Colab: the claims and the result files lie in the repository
    address = "https://github.com/ood-book/ood-book"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, "ood-book"], check=True)
    claims, archive = "ood-book/book/claims.yaml", "ood-book/book/results"
said = yaml.safe_load(Path(claims).read_text(encoding="utf-8"))
measured, gains = ood.load_results(archive), ood.load_verdicts(Path(archive) / "verdicts")

# %% tags=["hide-input"]
def by_network(row):
    """Value, low and high in percent of a detector on the set or group of a claim, a line for each network."""
    metric = row.get("metric", "auroc")
    rows = measured[(measured["run"] == row["run"]) & (measured["metric"] == metric)]
    rows = rows[(rows["group"] == row["over"]) | (rows["ood_set"] == row["over"])]
    own = counted_once(rows[rows["detector"] == row["detector"]])
    return 100 * own.groupby("seed")[["value", "low", "high"]].mean()


def of_value(row):
    """Our value, low, high, in percent; the interval is over networks where there are several, else over test images."""
    own = by_network(row)
    if len(own) > 1:
        return metrics.mean_interval(own["value"])
    return tuple(own.iloc[0]) if len(own) else None


def of_difference(row):
    """The difference of a claim on each network that has it: kept by a chapter, or made from the lines of a run."""
    if "gains" in row:
        rows = gains[(gains["run"] == row["gains"]) & (gains["group"] == row["over"])]
        rows = rows[(rows["detector"] == row["detector"]) & (rows["minus"] == row["minus"])]
        return {r.network: r.verdict for r in rows.itertuples()}
    ends = [by_network(row | {"detector": row[side]})["value"] for side in ("detector", "minus")]
    if not len(gap := (ends[0] - ends[1]).dropna() / 100):
        return {}
    _, low, high = metrics.mean_interval(gap)
    return {row["run"]: ood.Verdict(*(own[gap.index].mean() / 100 for own in ends), low, high)}

# %% tags=["hide-input"]
def judge_value(paper, value, low, high):
    if low <= paper <= high:
        return "reproduced"
    return "close" if abs(value - paper) <= close else f"not reproduced ({'above' if value > paper else 'below'})"


def judge_difference(paper, found):
    if found.word == "better" and paper is not None and not 100 * found.low <= paper <= 100 * found.high:
        return f"same direction, {'smaller' if 100 * found.difference < paper else 'larger'}"
    words = {"better": "reproduced", "worse": "opposite", "level": "no difference", "cannot tell": "undecided"}
    return words[found.word]


# %% tags=["hide-input"]
def tests_of(row):
    """Each test of a claim: network, our value as text, verdict, and whether its setting is that of the claim."""
    paper, known = row.get("paper"), row.get("on")
    if "minus" in row:
        differences = of_difference(row)
        own = {n: v for n, v in differences.items() if not known or n.startswith(f"{known}-")}
        for network, found in (own or differences).items():  # those of the claimed ID set, where there are any
            ours = metrics.as_percent(found.difference, found.low, found.high, signed=True, small=True)
            yield network, ours, judge_difference(paper, found), bool(own) and "elsewhere" not in row
    elif "run" in row and (found := of_value(row)) is not None:
        ours = metrics.as_percent(*(x / 100 for x in found), small=True)
        yield row["run"], ours, judge_value(paper, *found), "elsewhere" not in row


def overall(row, tests):
    """The verdict of a claim: that of its tests in the claimed setting, where they agree."""
    words = [word for _, _, word, same in tests if same]
    if "control" in row:
        return "no claim of the paper"
    if "needs" in row:
        return "not testable here"
    if not words:
        return "another setting only" if tests else "not run yet"
    return words[0] if len(set(words)) == 1 else "differs by network"

# %% tags=["hide-input"]
ledger = []  # a line for each test, or one for a claim without any
for paper_of, rows in said.items():
    for row in rows:
        tests = list(tests_of(row))
        verdict = overall(row, tests)
        about = {"paper of": paper_of, "overall": verdict} | {k: row.get(k) for k in ("claim", "setting", "source", "paper", "needs", "elsewhere", "control")}
        for network, ours, word, same in tests or [("", "", "", True)]:
            ledger.append(about | {"network": network, "ours": ours, "verdict": word, "same setting": same})
ledger = pd.DataFrame(ledger)
claimed = ledger[ledger["control"].isna()].drop_duplicates(["paper of", "claim", "setting"])

# %% [markdown]
# ## 1. The result

# %% tags=["hide-input"]
order = ["reproduced", "same direction, larger", "same direction, smaller", "close", "differs by network", "no difference", "undecided",
         "opposite", "not reproduced (above)", "not reproduced (below)", "another setting only", "not run yet", "not testable here"]  # fmt: skip
counts = claimed.groupby(["overall", "paper of"], sort=False).size().unstack(fill_value=0)
counts = counts.reindex(index=[w for w in order if w in counts.index], columns=list(said)).assign(all=lambda t: t.sum(axis=1))
caption = f"{len(claimed)} claims of {len(said)} papers by verdict, each counted once"
display(counts.rename_axis(index=None).style.set_caption(caption).set_table_attributes('class="counts"'))

# %% tags=["hide-input"]
tested = claimed[~claimed["overall"].isin(["another setting only", "not run yet", "not testable here"])]
lines = []
for paper_of, rows in tested.groupby("paper of", sort=False):
    words = ", ".join(f"{word} ({n})" for word, n in rows["overall"].value_counts().items())
    lines.append(f"* **{paper_of}**: {words}.")
display(Markdown(
    f"**{len(tested)} of {len(claimed)} claims could be tested on the ID set of the claim and with the method as the paper has it.**" + "\n\n" * bool(lines) + "\n".join(lines)
))

# %% [markdown]
# ## 2. How a verdict is found
#
# No verdict is typed; each follows from numbers and intervals.
#
# * The verdict on a claimed *difference* follows from the interval of our difference. If the interval lies above zero, the claim is **reproduced**,
#   provided that the claimed number lies inside (or none is known). Otherwise the verdict is **same direction**, *smaller* or *larger*.
#   If the interval lies below zero, the verdict is **opposite**. If it contains zero, the verdict is **no difference** where it reaches at
#   most one point to each side, and otherwise **undecided**.
# * A claimed *value* is **reproduced** when it lies in our interval, **close** within `close` points, else **not reproduced**.
# * A claim has the verdict of its tests where they agree, and **differs by network** where they do not.
# * A test in **another setting** (another ID set, other images, a part of the method) is shown and does not count for or against the
#   claim. A claim that we cannot test stays, and says what it needs.
# * A **control** is a comparison of our own that no paper claims. It is shown beside the claims and never counted.
#
# Differences are paired, image by image ([how](06_certainty)). Our CIFAR-10 networks are smaller than the papers' or trained by
# others, and some OOD sets are samples ({ref}`sources <ledger-sources>`). "Opposite" therefore means: not on this network with
# these settings. It does not mean that the paper is wrong.
#
# ## 3. The five papers

# %% tags=["hide-input"]
def show(rows, caption):
    first = ~rows.duplicated(["claim", "setting"])
    paper = rows["paper"].map(lambda v: f"{v:g}" if pd.notna(v) else "direction only")
    word = rows["verdict"].where(rows["same setting"], rows["verdict"] + " (another setting)")
    word = word.where(rows["control"].isna(), rows["verdict"] + " (control)")
    word = word.where(word != "", rows["overall"] + rows["needs"].map(lambda n: f": needs {n}" if isinstance(n, str) else ""))
    cells = pd.DataFrame({
        "claim": rows["claim"].where(first, ""), "setting of the claim": (rows["setting"] + " (" + rows["source"] + ")").where(first, ""),
        "paper": paper.where(first, ""), "our network": rows["network"], "ours": rows["ours"], "verdict": word,
    })  # fmt: skip
    display(cells.style.hide(axis="index").set_caption(caption).set_table_attributes('class="ledger"'))
    for kind, name in (("elsewhere", "Another setting"), ("control", "Control")):
        for text in rows[kind].dropna().unique():
            display(Markdown(f"*{name}:* {text}"))


for paper_of, rows in ledger.groupby("paper of", sort=False):
    show(rows, f"{paper_of}: AUROC in %, or FPR95 in % where the setting says so; differences in points")

# %% [markdown]
# ## 4. The leaderboard of OpenOOD
#
# The other detectors of the book have published values too {cite:p}`zhang2023openood`: July 2025, CIFAR-10, means over
# three ResNet-18.

# %% tags=["hide-input"]
runs = sorted({r for r in measured["run"] if r.startswith("cifar10-") and not r.endswith(("far", "msma", "norms"))})
board = [
    {"run": run, "detector": n, "group": g, "paper": values[i], "ours": found[0], "low": found[1], "high": found[2],
     "verdict": judge_value(values[i], *found)}
    for run in runs for n, values in OPENOOD["cifar10"].items() for i, g in enumerate(("near", "far"))
    if (found := of_value({"run": run, "detector": n, "over": g}))
]  # fmt: skip
board = pd.DataFrame(board)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Published AUROC on CIFAR-10 against ours, one mark per detector, near and far. On the line they agree; below it we are lower.", "name": "fig-ledger-board"}, "image": {"alt": "One scatter plot per network. Horizontal the published AUROC of a detector, vertical ours with an interval, orange triangles for near-OOD and pink squares for far-OOD, and a diagonal line of agreement."}}
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
# ## 5. Where our values come from

# %% tags=["hide-input"]
sources = measured.reindex(columns=["run", "network", "accuracy", "date"]).groupby("run", sort=False).first()
sources["accuracy"] = sources["accuracy"].map(lambda a: "" if a != a else f"{a:.1%}")
display(sources.fillna("").style.set_caption("Provenance: one row per file of book/results"))
display(Markdown(origins(measured)))

# %% [markdown]
# **Add a line.** Put the claim into `book/claims.yaml`, the file of the run that tests it into `book/results/`
# ([how to make one](08_leaderboard)), and run this page again.

# %% tags=["hide-input"]
if results:
    Path(results).mkdir(parents=True, exist_ok=True)
    ledger.to_csv(Path(results) / "ledger.csv", index=False)

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Photographs: four networks, two ID sets
#
# A rank on one network is weak evidence: this page puts the same detectors on four trained networks and two ID sets and shows which of
# them keep their place.

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

# %% tags=["remove-input"]
import math
from pathlib import Path

import pandas as pd
from ood_book import explorables

import ood_lib as ood
from ood_lib.shipped import BANKS

names = ["MSP", "MaxLogit", "Energy", "ReAct", "KNN", "ViM", "Mahalanobis"]


def judged(name):
    """Seven detectors on the bank of a network, which takes seconds; without intervals."""
    (f,) = ood.benchmark_features(name)
    detectors = ood.classical_detectors(f.head, f.train)
    aurocs = {n: ood.group_auroc(detectors[n].fit(f.train), f) for n in names}
    return pd.DataFrame([{"run": name, "detector": n, **found} for n, found in aurocs.items()])


if files := [file for name in BANKS if (file := Path("../book/results", f"{name}.json")).is_file()]:
    board = ood.leaderboard(ood.load_results(*files))
    everywhere = board.groupby("detector")["run"].transform("nunique") == board["run"].nunique()
    board, source = board[everywhere], "stored runs"
else:  # a notebook alone, as in Colab, has no results of earlier runs
    ends = [f"{group}_{end}" for group in ("near", "far") for end in ("low", "high")]
    board = pd.concat(map(judged, BANKS), ignore_index=True).assign(**dict.fromkeys(ends, math.nan))
    source = "the features that ship with the library"

# %% tags=["remove-input"]
explorables.show(
    explorables.near_against_far(board, follow="Mahalanobis"),
    caption=f"Far-OOD against near-OOD AUROC on four networks, from {source}; up and to the right is better. Follow one "
    "detector from network to network: which of them keep their place?",
    alt_text="Scatter plot of the detectors on one network: near-OOD AUROC on the horizontal axis, far-OOD AUROC on the vertical "
    "axis. One detector is marked, with its name and, where they are known, its intervals. Two menus choose the network and the detector.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The question**: all five papers report results on photographs, most of them with one kind of network. Which results hold on another
# network?
#
# <!-- made by ood-book sync -->
# **What we found.** The detector of all chapters with the highest mean AUROC, in %, on each network that we measured:
#
# | network | near-OOD | far-OOD |
# |---|---|---|
# | our ResNet-9 on CIFAR-10 | ReAct, 89.7 | NNGuide, 94.3 |
# | DenseNet on CIFAR-10 | SCALE, 90.4 | KNN, 98.4 |
# | ResNet-56 on CIFAR-10 | KNN, 87.9 | GMM, length 1, 97.6 |
# | DenseNet on CIFAR-100 | FDBD, 78.4 | KNN, 96.0 |
#
# The numbers are those of the stored runs of [the leaderboard](08_leaderboard), not of this page.
#
# **It takes** 9 minutes to read, without exercises and what is folded, and 2 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use** this page to pick three or four candidates for your own network, and compare these on validation data of your own.
#
# **Do not** take over the best detector of somebody else's network.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** which detectors keep their place when the network or the ID data change, and why a distance can fail
# on one network and lead on another. You will see what each chapter's method gains on photographs.
#
# **You need** [what counts as OOD](05_protocol) and [how sure a number is](06_certainty), and of each of [WeiPer](10_weiper), [HEAT](20_heat) and
# [feature flows](30_flow) at least the first section.
# ```
#
# These are the parameters of the page. A {term}`bank` of your own, made as in
# [Bring your own data and model](../book/own-data), goes through the same cells:
# `ood-book run 60_cifar10 -p benchmarks '["bank:PATH"]'`.

# %% tags=["parameters", "hide-input"]
benchmarks: list = [
    "cifar10-resnet9", "cifar10-densenet", "cifar10-resnet56", "cifar100-densenet",
]  # banks: features of trained networks; the first is looked into
seed: int = 0  # of what is random in a detector
umap_points: int = 2500  # features in the embedding
archive: str = "../book/results"  # folder with the result files of earlier runs
results: str = ""  # folder for this run's tables; empty: do not write

# %% tags=["hide-input"]
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

import ood_lib as ood
from ood_lib.data.protocols import OPENOOD
from ood_lib.evaluation import plots

plots.theme()
networks = {name: ood.benchmark_features(name)[0] for name in benchmarks}
first, x = next(iter(networks.items()))

# %% [markdown]
# ## 1. The networks and their banks
#
# One network is ours, a residual network of about six million weights, trained on two CPU cores. The other three were
# trained and published by others: two DenseNets, one of them on CIFAR-100, and a ResNet-56. A *bank* holds what a
# network computes from an image, the penultimate feature and the {term}`logits <logit>`, with one byte per number, for
# some images of each set of the OpenOOD protocol. It contains no images.

# %% tags=["hide-input"]
facts = pd.DataFrame({
    name: {
        "classes": f.head.out_features, "width K": f.head.in_features,
        "accuracy": f"{100 * f.accuracy:.1f} %",
        "images": f"{len(f.train):,} / {len(f.val):,} / {len(f.test):,}",
        "near": ", ".join(f.near), "far": ", ".join(f.far),
        "weights": f.about.get("weights", "trained for this book"),
        "licence": f.about.get("licence", ""),
    } for name, f in networks.items()
}).T  # fmt: skip
caption = "The networks; images are ID training / validation / test. Accuracy is that on the test images of the bank"
display(facts.style.set_caption(caption))

# %% [markdown]
# Except in section 4, each interval on this page is over *images*. No classifier is trained twice here, so an interval says only how
# much the result would vary with other images on this network. To see what another network changes, compare the columns.
#
# `ood.pretrained` gives our network itself. It verifies the hash of the weights, and it loads no pickle.
#
# ```python
# network = ood.pretrained("cifar10-resnet9")
# network.represent(images)  # penultimate, logits, style
# ```
#
# **Where do the features of OOD images lie?** Predict, before you look: does a photograph of a CIFAR-100 class lie
# among the features of CIFAR-10? Does a digit?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "UMAP of the features of a trained CIFAR-10 network. Ten clusters of test images; near-OOD lies between and in them, far-OOD mostly apart and at the edges of some clusters.", "name": "fig-cifar10-umap"}, "image": {"alt": "Two-dimensional UMAP embedding of penultimate features. Blue dots of CIFAR-10 test images form ten clusters, orange triangles of near-OOD images spread between and over them, pink squares of far-OOD images gather mostly between clusters."}}
draw = np.random.default_rng(seed)
share = umap_points // 3
parts = {role: torch.cat([f.penultimate for f in sets]) for role, sets in (
    ("id", [x.test]), ("near", x.near.values()), ("far", x.far.values()))}  # fmt: skip
parts = {role: z[draw.permutation(len(z))[:share]] for role, z in parts.items()}
points = plots.umap(torch.cat([*parts.values()]), seed, metric="cosine")
ends = np.cumsum([0, *(len(z) for z in parts.values())])
plots.embedding(points, {role: np.arange(a, b) for role, a, b in zip(parts, ends, ends[1:])})
plt.show()

# %% [markdown]
# ## 2. Every detector on every network
#
# The table contains the classical detectors with their published settings, WeiPer+KLD, and a tied Gaussian on features
# divided by their length, from which HEAT and the flow start. WeiPer+KLD has its authors' settings for CIFAR-10 on every
# network. For CIFAR-100 they give others, with which [the WeiPer chapter](10_weiper) judges it. All are fitted on the
# training features of the bank; nothing is tuned here.

# %%
def contestants(f):
    """The detectors that fit in seconds."""
    return ood.classical_detectors(f.head, f.train) | {
        "WeiPer+KLD": ood.WeiPer(f.head, repeats=None),
        "GMM, length 1": ood.GMMPrior(),
    }


tables = {
    name: ood.run_benchmark(contestants(f), f, seed=seed) for name, f in networks.items()
}

# %%
def group_means(table):
    """Mean AUROC in percent over near and over far sets, a row for each detector."""
    rows = table[table["metric"] == "auroc"]
    return 100 * rows.groupby(["detector", "group"], sort=False)["value"].mean().unstack()


means = pd.concat({name: group_means(t) for name, t in tables.items()}, axis=1)
means = means.swaplevel(axis=1)[["near", "far"]]  # (near | far) x network
order = means.mean(axis=1).sort_values(ascending=False).index

# %% tags=["hide-input"]
shown = means.loc[order]
bold = shown.apply(lambda c: np.where(c > c.max() - 0.5, "font-weight: bold", ""))
caption = "Mean AUROC in %, by the mean of all columns; bold: within half a point of the best of a column"
display(shown.style.format("{:.1f}", na_rep="").apply(lambda _: bold, axis=None).set_caption(caption))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Far-OOD against near-OOD AUROC, one mark per detector and one panel per network. Compare the five named detectors from panel to panel. Up and to the right is better.", "name": "fig-cifar10-networks"}, "image": {"alt": "One scatter plot per network with near-OOD AUROC on the horizontal and far-OOD AUROC on the vertical axis, one mark per detector. Energy, MSP, KNN, Mahalanobis and WeiPer+KLD have a marker of their own. They change places from one network to the next."}}
tracked = dict(zip(("Energy", "MSP", "KNN", "Mahalanobis", "WeiPer+KLD"), plots.SERIES))
columns = min(len(networks), 4)
figure, axes = plt.subplots(1, columns, figsize=(plots.FULL, 3.0), sharex=True, sharey=True, squeeze=False)
for ax, name in zip(axes[0], networks):
    spots = pd.DataFrame({g: means[g][name] for g in ("near", "far")})
    rest = spots.drop(index=tracked)
    ax.plot(rest["near"], rest["far"], ".", color="0.75", ms=6, label="other detectors")
    for detector, style in tracked.items():
        ax.plot(*spots.loc[detector], ms=7, label=detector, **style | {"linestyle": ""})
    ax.set_title(name, fontsize=9)
axes[0][0].set_ylabel("far-OOD AUROC (%)")
figure.supxlabel("near-OOD AUROC (%)", fontsize=11)
figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8, handletextpad=0.1)
plt.show()

# %% [markdown]
# **Does the order of the detectors transfer from one network to another?** A rank correlation of 1 means that two
# networks put the detectors in the same order, 0 that the orders are unrelated. The last column compares each network with
# the published means of three ResNet-18 on the same ID set {cite:p}`zhang2023openood`, over the detectors that both have.

# %% tags=["hide-input"]
published = {known: pd.DataFrame(rows, index=["near", "far"]).T for known, rows in OPENOOD.items()}
ranks, outside = {}, {}
for group in ("near", "far"):
    ranks[group] = means[group].corr(method="spearman")
    outside[group] = pd.Series({
        name: means[group][name].corr(published[f.about["benchmark"]][group], method="spearman")
        for name, f in networks.items() if f.about.get("benchmark") in published
    }, dtype=float)  # fmt: skip
both = pd.concat({group: ranks[group].assign(OpenOOD=outside[group]) for group in ranks}, axis=1)
caption = "Spearman's rank correlation of the order of the detectors"
display(both.style.format("{:.2f}").set_caption(caption))

# %% tags=["hide-input"]
def agreement(group):
    """The correlations of two different networks."""
    return ranks[group].to_numpy()[np.triu_indices(len(ranks[group]), 1)]


def span(values):
    """From the least to the largest; one number where both are the same."""
    ends = dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values)))
    return " to ".join(ends)


lines = []
for group in ("near", "far"):
    pairs = agreement(group)
    leaders = ", ".join(f"{means[group][n].idxmax()} ({n})" for n in networks)
    among = [f"The rank correlation of two networks is {span(pairs)}."] if len(pairs) else []
    theirs = [f"With OpenOOD's leaderboard of the same ID set it is {', '.join(f'{v:.2f} ({n})' for n, v in outside[group].items())}."]
    lines.append(" ".join([f"* **{group}-OOD**: the best detector is {leaders}.", *among, *theirs * bool(len(outside[group]))]))
spread = (means.max(axis=1) - means.min(axis=1)).sort_values()
lines.append(f"* Over all columns, **{spread.index[0]}** varies least ({spread.iloc[0]:.0f} points) and **{spread.index[-1]}** most ({spread.iloc[-1]:.0f} points).")
display(Markdown("\n".join(lines)))

# %% [markdown]
# The box at the top names the leaders of stored runs, two of them on all images. Where two detectors are close, the
# leader may be another one here.
#
# For your own network this means: a ranking on another network is weak evidence. The order of the detectors depends on
# the network and the ID set as much as on the detectors, so compare the candidates on validation data of your own
# network.
#
# ## 3. Two mechanisms behind the differences
#
# ### 3.1 The length of the features
#
# **Why does the Mahalanobis distance fail on some networks, while the same Gaussian on features of length one does
# not?** Compare the lengths of the features of OOD images and of ID images. Then shorten the ID test features to half
# their length: this shrinks their scatter, but moves them away from the class means. Where the distance falls all the
# same, a short feature counts as typical.

# %% tags=["hide-input"]
rows, nearer = {}, {}
for name, f in networks.items():
    own = f.test.penultimate.norm(dim=1).mean()
    distance = ood.Mahalanobis().fit(f.train)
    halved = ood.Features(penultimate=f.test.penultimate / 2)
    nearer[name] = (distance.score(halved).median() / distance.score(f.test).median()).item()
    rows[name] = {
        f"{g} length / ID length": np.mean([(s.penultimate.norm(dim=1).mean() / own).item() for s in sets.values()])
        for g, sets in f.groups().items()
    } | {"distance at half the length": nearer[name]}  # fmt: skip
    for detector in ("Mahalanobis", "GMM, length 1"):
        rows[name] |= {f"{detector}, {g}": means[g][name][detector] for g in ("near", "far")}
by_length = pd.DataFrame(rows).T
caption = "Mean length of OOD features in units of that of ID features; median Mahalanobis distance of halved ID features in units of that of whole ones; AUROC in %"
display(by_length.style.format("{:.2f}", subset=list(by_length)[:3]).format("{:.1f}", subset=list(by_length)[3:]).set_caption(caption))

# %% tags=["hide-input"]
short, other = ([n for n in nearer if (nearer[n] < 0.9) == small] for small in (True, False))
display(Markdown(" ".join(
    ([f"At half the length the distance is smaller on {', '.join(short)}, so short features count as typical there."] if short else [])
    + ([f"On {', '.join(other)} a halved feature is as far away as a whole one or farther, so its shortness hides nothing."] if other else [])
)))

# %% tags=["hide-input"]
gained = {n: ood.verdicts([(f, ood.GMMPrior(), ood.Mahalanobis())])["mean"] for n, f in networks.items()}
display(Markdown(
    "Dividing the features by their length, judged on the mean of near and far against Mahalanobis: "
    + "; ".join(f"{n} {v}" for n, v in gained.items()) + "."
))

# %% [markdown]
# ### 3.2 A numerical tolerance
#
# **How much can a numerical tolerance matter?** RMDS subtracts two Mahalanobis distances, so that directions which do
# not separate the classes cancel. They do so only if both covariance matrices keep the same directions. A
# pseudo-inverse drops directions whose variance is below some share of the largest, and the largest variance of all
# features is much larger than that inside the classes. Here is the same formula with two shares:

# %%
def rmds_by_hand(share, x):
    """AUROC per set; directions below a share of the largest variance are left out."""
    z, y = x.train.penultimate.double(), x.train.labels
    means = torch.stack([z[y == c].mean(0) for c in y.unique()])
    def inverse(away):
        return torch.linalg.pinv(away.T @ away / len(z), rtol=share, hermitian=True)
    inside, overall = inverse(z - means[y]), inverse(z - z.mean(0))
    def score(f):
        own = f.penultimate.double()[:, None] - means  # (N, C, K)
        away = f.penultimate.double() - z.mean(0)
        return ((own @ inside) * own).sum(2).amin(1) - ((away @ overall) * away).sum(1)
    ours, sets = score(x.test), x.ood_sets()
    return {n: 100 * ood.evaluate(ours, score(f)).auroc for n, f in sets.items()}

# %%
width = x.train.penultimate.shape[1]
shares = {"float32, K × 1.2e-7": width * 1.2e-7, "float64, K × 2.2e-16": width * 2.2e-16}
by_share = pd.DataFrame({name: rmds_by_hand(s, x) for name, s in shares.items()}).T
caption = "RMDS by hand: AUROC in %, by the share below which a direction is dropped"
by_share.style.format("{:.1f}").set_caption(caption)

# %% tags=["hide-input"]
mean_share = by_share.mean(axis=1)
display(Markdown(
    f"The means over the sets are **{mean_share.iloc[0]:.1f}** and **{mean_share.iloc[1]:.1f}**; only the share differs. "
    + ("On this network it makes no difference. " if (by_share.iloc[0] - by_share.iloc[1]).abs().max() < 0.05 else "")
    + "`ood.RMDS` drops directions of both "
    "covariances at the rounding error of float32 for features of their length, far below either share of the first row."
))  # fmt: skip

# %% [markdown]
# ## 4. The chapters' methods on these networks
#
# WeiPer, HEAT and the flow are trained and tuned in their own chapters, each by a stated rule that uses ID data or an
# OOD validation set. The chapters store their gains over the baselines in result files, with the intervals, which stand
# in the chapters. **Which gains hold on all networks?**

# %% tags=["hide-input"]
kept = ood.load_verdicts(Path(archive) / "verdicts")
kept = kept[kept["network"].isin(networks)]
SIGNS = {"better": "▲", "worse": "▼", "level": "=", "cannot tell": "?"}
keys = ["run", "detector", "minus"]
words = kept.assign(word=[v.word for v in kept["verdict"]]).groupby(keys, sort=False)["word"].agg(set)
sides = {w: [f"*{d}* against *{m}*" for (_, d, m), found in words.items() if found == {w}] for w in ("better", "worse")}
display(Markdown(
    "\n".join(f"* {w.capitalize()} near and far on every network: {', '.join(pairs) or 'none'}." for w, pairs in sides.items())
    if len(kept) else "No verdicts on these networks are in the archive."
))

# %% tags=["hide-input"]
shown = kept.assign(cell=[f"{SIGNS[v.word]} {100 * v.difference:+z.1f}".replace("-", "−") for v in kept["verdict"]])
for group, rows in shown[shown["group"] != "mean"].groupby("group", sort=False):
    wide = rows.pivot(index=keys, columns="network", values="cell").reindex(words.index)[list(dict.fromkeys(rows["network"]))]
    wide.index.names, wide.columns.name = ["chapter", "method", "minus"], None
    caption = f"Gain on {plots.NAMES[group]} in points of AUROC. ▲ better, ▼ worse: the interval leaves out zero; = level; ? cannot tell"
    display(wide.fillna("").style.set_caption(caption))

# %% [markdown]
# The [ledger](70_ledger) compares the same differences with the papers' claims.
#
# ## 5. Comparison with the published values
#
# OpenOOD's leaderboard of July 2025 {cite:p}`zhang2023openood` holds means of three ResNet-18 with {math}`95.1\,\%`
# accuracy on CIFAR-10 and {math}`77.3\,\%` on CIFAR-100, on all images of each set, and with Places365 among the far sets.
# There, the hyperparameters of detectors were tuned on OOD validation images; here they were not.

# %% tags=["hide-input"]
lines = []
for known, theirs in published.items():
    names = [n for n, f in networks.items() if f.about.get("benchmark") == known]
    if not names:
        continue
    beside = pd.concat({g: means[g][names].assign(published=theirs[g]) for g in ("near", "far")}, axis=1)
    shared = beside.dropna().sort_values(("far", "published"), ascending=False)
    caption = f"Networks of {known}, mean AUROC in %, beside the published means"
    display(shared.style.format("{:.1f}").set_caption(caption))
    for name in names:
        gaps = {g: shared[g][name] - shared[g]["published"] for g in ("near", "far")}
        worst = {g: gap.abs().idxmax() for g, gap in gaps.items()}
        lines.append(f"* {name}: " + "; ".join(
            f"{g} median {gap.median():+z.1f} points, at most {gap[worst[g]]:+z.1f} ({worst[g]})" for g, gap in gaps.items()
        ) + ".")
none = "OpenOOD publishes no values for the ID set of any of these networks."
display(Markdown("Differences from the published values:\n\n" + "\n".join(lines) if lines else none))

# %% [markdown]
# These differences have several possible causes, which this table cannot separate: other networks, other far sets,
# fewer training features, and tuning. In the comparisons of sections 3 and 4 only one of them changes.
#
# ## 6. What a bank leaves out
#
# A bank contains a part of the training features and some images of each set. `book/results` holds runs of two of the
# networks on all images. **How large is the error of the bank?**

# %% tags=["hide-input"]
lines = {}
for name, table in tables.items():
    if not (file := Path(archive, f"{name}.json")).is_file():
        continue
    whole, auroc = ood.load_results(file), table[table["metric"] == "auroc"]
    pair = whole[whole["metric"] == "auroc"].merge(auroc, on=["detector", "ood_set"], suffixes=("", "_bank"))
    off = 100 * (pair["value_bank"] - pair["value"])
    if off.abs().max() > 0:  # else the file is this very run's
        lines[name] = off.groupby(pair["detector"], sort=False).agg(["mean", "min", "max"])
if lines:
    shown = pd.concat(lines, axis=1)
    display(shown.style.format("{:+z.1f}").set_caption("AUROC on the bank minus AUROC on all images, in points, over the OOD sets"))
else:
    display(Markdown("No run on all images is in the archive."))

# %% [markdown]
# One would expect that the smaller training set affects detectors that store training rows (KNN, NNGuide) or estimate
# large covariance matrices. The other detectors should differ only because of the sample of test images. Check this in
# the table.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. A Mahalanobis distance fails on features as they are and does well on the same features divided by their
# length. How can that be?**
#
# <details><summary>A. Dividing by the length adds information about the OOD images.</summary>
#
# **No.** It removes information. The part that it removes had misled the distance.
#
# </details>
#
# <details><summary>B. On this network, a feature that is shortened comes nearer to the class means.</summary>
#
# **Right.** If OOD images have shorter features too, their distances are small. On the sphere only the direction counts.
#
# </details>
#
# <details><summary>C. The covariance of 50,000 images is wider than that of a bank.</summary>
#
# **No.** Both scores here are fitted on the same rows of the bank. Only the length has changed.
#
# </details>
#
# **2. A hybrid is better than its prior on some sets, and on others the interval of the paired difference contains
# zero. How do you report it?**
#
# <details><summary>A. As a win, because the mean over the sets is positive.</summary>
#
# **No.** A mean hides the single sets. One large gain can outweigh several losses.
#
# </details>
#
# <details><summary>B. As a draw, because one undecided set is enough to doubt all.</summary>
#
# **No.** An undecided set is no evidence in either direction. The sets on which the interval excludes zero still are.
#
# </details>
#
# <details><summary>C. Set by set: better on these, worse on those, undecided on the rest.</summary>
#
# **Right.** That is what the paired intervals allow. They cover other images on this network, but not another training
# run.
#
# </details>
#
# **3. KNN is the best detector on far-OOD on three networks. Which is the best choice on yours?**
#
# <details><summary>A. KNN, because three networks are evidence enough.</summary>
#
# **No.** Three networks on small photographs say that KNN is worth trying. The order of detectors changed between these
# very networks, and yours may be the next exception.
#
# </details>
#
# <details><summary>B. You cannot know before you compare candidates on your network, on validation data.</summary>
#
# **Right.** A rank belongs to a network and an ID set. A few detectors that lead on some network are a good list of
# candidates.
#
# </details>
#
# <details><summary>C. The mean of all detectors, since an ensemble is never worse than its parts.</summary>
#
# **No.** A mean can be pulled down by its weak members. In section 2 you can check whether some detectors are close to
# chance on a network.
#
# </details>
#
# **4. The order of the detectors here agrees only in part with the published one. What may you conclude?**
#
# <details><summary>A. The published numbers cannot be reproduced.</summary>
#
# **No.** This page does not repeat their conditions: other networks, other far sets, fewer rows, no tuning. It is
# another measurement.
#
# </details>
#
# <details><summary>B. This page is wrong where it differs.</summary>
#
# **No.** A detector's rank belongs to a network and a set of images. Another network may have another order.
#
# </details>
#
# <details><summary>C. Tuning on OOD validation images explains the difference.</summary>
#
# **No.** [The WeiPer chapter](10_weiper) changes only the tuning and measures its effect for one method. For the others
# it remains one of several possible causes.
#
# </details>
#
# <details><summary>D. Little: several conditions differ at once.</summary>
#
# **Right.** Compare what shares everything else, such as a hybrid with its own prior on the same network and images.
# That is what section 4 shows.
#
# </details>
#
# **5. A bank keeps a part of the training features. Which detectors should this affect most?**
#
# <details><summary>A. Those that keep training rows or estimate wide covariances.</summary>
#
# **Right.** A nearest neighbour is further away among fewer rows, and a covariance has about $K^2/2$ numbers to
# estimate. Section 6 compares both.
#
# </details>
#
# <details><summary>B. Those on logits, because the network has seen less.</summary>
#
# **No.** The network was trained on all images before the bank was made. Most scores on logits fit nothing at all.
#
# </details>
#
# <details><summary>C. All alike, since every AUROC becomes less certain.</summary>
#
# **No.** That uncertainty comes from fewer *test* images and affects all detectors. Fewer *training* rows affect only
# what is fitted.
#
# </details>

# %% [markdown]
# ## 7. Exercises
#
# Both exercises use the first network, `x`.
#
# ```{exercise-start} Halve the bank
# :label: ex-cifar10-half
# ```
# Predict first: which loses more near-OOD AUROC when you remove every second training row, KNN with `k=50` or
# Mahalanobis? Compute both, and store the name of the one that loses more in `loser`. *Hint: `x.train[::2]`.*

# %% tags=["exercise"]
loser = ...  # "KNN" or "Mahalanobis"

# %% tags=["check", "hide-input"]
from functools import cache


@cache
def lost_by(name):
    """The near-OOD AUROC that goes with every second row."""
    d = {"KNN": ood.KNN(k=50), "Mahalanobis": ood.Mahalanobis()}[name]
    return ood.group_auroc(d.fit(x.train), x)["near"] - ood.group_auroc(d.fit(x.train[::2]), x)["near"]


check_loser = ood.Check(
    (lambda a: a in ("KNN", "Mahalanobis"), "one of the two names"),
    (lambda a: lost_by(a) > min(map(lost_by, ("KNN", "Mahalanobis"))), "compute it: the other loses more"),
)
check_loser(loser)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-cifar10-half
# :class: dropdown
# ```
# With half of the rows, the 50th neighbour lies where the 100th did, for ID and OOD images alike, so the order changes
# little. Mahalanobis inverts a covariance of $K(K+1)/2$ numbers, which half of the rows estimate less well. Which effect
# is larger depends on the width and on the number of rows.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the answer to the opposite question.
loser = min(("KNN", "Mahalanobis"), key=lost_by)
check_loser(loser)

# %% tags=["solution"]
lost = {}
for detector in (ood.KNN(k=50), ood.Mahalanobis()):
    fits = (detector.fit(rows) for rows in (x.train, x.train[::2]))
    whole, half = (ood.group_auroc(fitted, x)["near"] for fitted in fits)
    lost[type(detector).__name__] = whole - half
loser = max(lost, key=lost.get)
print({n: f"{100 * v:+z.2f} points lost" for n, v in lost.items()})
check_loser(loser)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} A score of your own
# :label: ex-cifar10-own
# ```
# Two detectors that fail in different places may help each other. `ood.compose` brings both to one scale and averages
# them. Find a pair that is better than each of its parts on the near *and* the far sets, and store the two detectors,
# not fitted. *Hint: one that reads logits and one that reads features.*

# %% tags=["exercise"]
pair = ...  # such as ood.KNN(k=50), ood.Energy()

# %% tags=["check", "hide-input"]
def beats_its_parts(pair):
    """On near and far, by how much the pair is above the better of its parts."""
    parts = [ood.group_auroc(d.fit(x.train, x.val), x) for d in pair]
    both = ood.group_auroc(ood.compose(list(pair)).fit(x.train, x.val), x)
    return {g: both[g] - max(part[g] for part in parts) for g in ("near", "far")}


check_pair = ood.Check(
    (lambda p: len(p) == 2, "two detectors"),
    (lambda p: max(beats_its_parts(p).values()) > 0, "one part is better on both groups"),
    (lambda p: min(beats_its_parts(p).values()) > 0, "better on one group only: combine other kinds of detectors"),
)
check_pair(pair)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-cifar10-own
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the two that are best alone. Both read the same logits, and one is ahead wherever the pair is.
pair = ood.ReAct(x.head), ood.MaxLogit()
check_pair(pair)

# %% tags=["solution"]
pair = ood.ViM(x.head), ood.FDBD(x.head)
gains_of_pair = beats_its_parts(pair)
print({g: f"{100 * v:+z.2f} points over the better part" for g, v in gains_of_pair.items()})
check_pair(pair)

# %% [markdown]
# ViM measures the part of a feature outside the directions that ID features use, and fDBD how close the feature lies to
# the boundaries between classes. So they fail on different images. But the pair was chosen on these OOD sets, so this
# number is not a valid result. Confirm it on another OOD set, with a paired interval.
# ```{solution-end}
# ```
#
# ## 8. What to take away

# %% tags=["hide-input"]
best = {g: means[g].idxmax() for g in ("near", "far")}
alike = ", ".join(f"{span(p)} ({g})" for g, p in ((g, agreement(g)) for g in ranks) if len(p))
display(Markdown(
    "* Best on near-OOD: " + ", ".join(f"**{d}** ({n})" for n, d in best["near"].items())
    + "; on far-OOD: " + ", ".join(f"**{d}** ({n})" for n, d in best["far"].items()) + ".\n"
    + (f"* The rank correlation of the detectors on two networks is {alike}.\n" if alike else "")
    + "* Dividing features by their length, against Mahalanobis: " + ood.tally(gained) + "."
))  # fmt: skip

# %% [markdown]
# [The ledger](70_ledger) compares the results of the chapters on these networks with the papers' claims.

# %% tags=["hide-input"]
for name, table in tables.items() if results else ():
    f = networks[name]
    weights = f.about.get("weights") or f.about.get("command", "")
    origin = ood.provenance(data=f.about.get("data", ""), sets="; ".join(f.notes), weights=weights)
    about = {"benchmark": f.about.get("benchmark", name), "network": f"bank {name}, {f.head.in_features} features"}
    ood.save_results(Path(results, f"{name.partition(':')[0]}.json"), table, origin=origin, accuracy=f.accuracy, **about)

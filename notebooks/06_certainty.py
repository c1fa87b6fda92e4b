# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How sure is a number?
#
# With other test images, or after another training, the same detector has another AUROC. This page measures by how much, and shows when
# one detector may be called better than another.

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
import torch
from ood_book import explorables

import ood_lib as ood
from ood_lib.evaluation.metrics import auroc

(bank,) = ood.benchmark_features("cifar10-resnet56")
judges = {name: d.fit(bank.train) for name, d in {"KNN": ood.KNN(), "GEN": ood.GEN(), "MSP": ood.MSP()}.items()}
cards = torch.Generator().manual_seed(0)


def drawn(pair, strange, sizes=(25, 50, 100, 200, 400, 800), draws=8):
    """AUROC of both detectors and their paired difference, with intervals, on samples of a network's images."""
    known = [judges[name](bank.test) for name in pair]
    other = [judges[name](strange) for name in pair]
    for size, n in enumerate(sizes, 1):
        for draw in range(1, draws + 1):
            i, j = (torch.randperm(len(x[0]), generator=cards)[:n] for x in (known, other))
            scores = [(a[i], b[j]) for a, b in zip(known, other)]
            both = ood.compare(*scores[0], *scores[1])
            place = {"pair": " and ".join(pair), "size": size, "draw": draw, "n": n}
            for name, s in zip(pair, scores):
                value, (low, high) = auroc(*s)
                yield place | {"what": name, "value": value, "low": low, "high": high}
            yield place | {"what": "difference", "value": both.difference, "low": both.low, "high": both.high}

# %% tags=["remove-input"]
pairs_shown = [("GEN", "MSP"), ("KNN", "MSP"), ("KNN", "GEN")]
explorables.show(
    explorables.paired_intervals([row for pair in pairs_shown for row in drawn(pair, bank.near["cifar100"])]),
    caption="Two detectors on a ResNet-56 trained on CIFAR-10; the OOD images are CIFAR-100. Take other images, then more of them. "
    "When do the two intervals part, and when does the interval of the difference leave zero?",
    alt_text="Left, the AUROC of two detectors as dots with 95 % intervals, which overlap. Right, their paired difference with its much "
    "shorter interval beside a dashed line at zero. Two sliders choose how many test images there are and which; a menu chooses the detectors.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of {cite:t}`delong1988`: the scores themselves tell the error of an AUROC, and that of the difference of two on the same images.
#
# <!-- made by ood-book sync -->
# **What we found.** Of the detectors of all chapters, the best one on each network that we measured, with its mean AUROC in % and its 95 % interval over test images. Behind it stands how many of the others have a mean inside that interval:
#
# | network | near-OOD | far-OOD |
# |---|---|---|
# | our ResNet-9 on CIFAR-10 | ReAct, 89.7 [89.2, 90.2]; 6 of 27 | NNGuide, 94.3 [93.7, 94.8]; 3 of 27 |
# | DenseNet on CIFAR-10 | SCALE, 90.4 [89.1, 91.6]; 5 of 17 | KNN, 98.4 [98.0, 98.8]; 1 of 17 |
# | ResNet-56 on CIFAR-10 | KNN, 87.9 [87.4, 88.5]; 5 of 27 | GMM, length 1, 97.6 [97.2, 98.0]; 5 of 27 |
# | DenseNet on CIFAR-100 | FDBD, 78.4 [76.5, 80.2]; 3 of 17 | KNN, 96.0 [95.3, 96.7]; 0 of 17 |
#
# The numbers are those of the stored runs of [the leaderboard](08_leaderboard), not of this page.
#
# **It takes** 12 minutes to read, without exercises and what is folded, and 2 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use** paired intervals on your own images and, where you can train, on several networks of your own.
#
# **Do not** conclude from two means in a table that one detector is better, and do not report the best of many on the images that chose it.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** how sure you may be of an AUROC and of an FPR95, how two detectors are compared on the same images, and why another
# training may change more than other images do. You will also see what the choice among many detectors costs, and what OOD images for validation may do.
#
# **You need** AUROC and FPR95 from [the first page](05_protocol), variance, and the idea of a confidence interval.
# ```
#
# These are the parameters of the page: `ood-book run certainty -p seeds 3`.

# %% tags=["parameters", "hide-input"]
benchmark: str = "digits"  # cifar10, imagenet, folder:PATH; a bank: cifar10-densenet
benchmarks: list = [
    "cifar10-resnet9", "cifar10-densenet", "cifar10-resnet56", "cifar100-densenet",
]  # banks of real networks, compared on in section 5.1
bank_rows: int = 0  # use only so many features of each set of a bank; 0: all
data_dir: str = ""  # where local data lie; empty: the cache folder
missing: str = "raise"  # an OOD set that is not there: raise or skip
seeds: int = 5  # networks to train, each from its own seed
seed: int = 0  # the first of these seeds
device: str = "auto"  # where to train: auto, cpu, cuda
epochs: int = 30  # of training
learning_rate: float = 0.05  # peak of the learning-rate cycle
widths: list = [32, 64]  # feature maps per stage; the last is the feature width K
simulations: int = 500  # test sets drawn per point in sections 1 and 2
results: str = ""  # folder for what other pages show; empty: do not write

# %% tags=["hide-input"]
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from ood_lib.detectors.classical.recipes import FAMILIES
from ood_lib.evaluation import metrics, plots

plots.theme()
torch.manual_seed(seed)
generator = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## 1. The idea on a toy
#
# **How far apart are two measurements of the same detector?** Take scores with a known law: ID scores from $N(0,1)$, OOD scores from
# $N(d,s^2)$. Then the true AUROC is known too, $A=\Phi(d/\sqrt{1+s^2})$ ([derived here](05_protocol)). Draw a test set of 500 ID and 400 OOD
# images, measure the AUROC, and repeat.

# %%
d, s = 2.0, 3.0
Phi = stats.norm.cdf
truth = Phi(d / math.sqrt(1 + s**2))


def test_set(n=500, m=400):
    """Scores of n ID and m OOD images."""
    known = torch.randn(n, generator=generator, dtype=torch.float64)
    return known, d + s * torch.randn(m, generator=generator, dtype=torch.float64)


id_scores, ood_scores = test_set()
library = ood.evaluate(id_scores, ood_scores)
measured = np.array([auroc(*test_set())[0] for _ in range(simulations)])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The AUROC of one detector on many test sets (bars) and its true value (line). The bar above is the 95 % interval of a single test set, computed from that one set alone.", "name": "fig-certainty-toy"}, "image": {"alt": "Histogram of measured AUROC values around a vertical line at the true value, with a bell shape several points wide. Above it a horizontal bar, the interval of one test set, about as wide as the histogram."}}
figure, ax = plt.subplots(figsize=(plots.HALF * 1.5, 2.5))
counts, _, _ = ax.hist(measured, bins=25, color=plots.COLORS["other"], alpha=0.5)
ax.axvline(truth, color="black", lw=1)
ax.plot(library.auroc_ci, [1.08 * counts.max()] * 2, color=plots.COLORS["grey"], lw=4, solid_capstyle="butt")
ax.plot(library.auroc, 1.08 * counts.max(), plots.MARKERS["grey"], color="black", ms=6)
ax.set(xlabel="AUROC", ylabel="test sets")
plt.show()

# %% tags=["hide-input"]
inner = np.quantile(measured, [0.025, 0.975])
display(Markdown(
    f"The true value is {truth:.3f}, and 95 % of the measured ones lie between {inner[0]:.3f} and {inner[1]:.3f}. The first test set "
    f"has {library.auroc:.3f}, and from its scores alone the interval from {library.auroc_ci[0]:.3f} to {library.auroc_ci[1]:.3f}."
))  # fmt: skip

# %% [markdown]
# You never see the histogram: there is one test set, and the truth is not known. How can a single set tell how far another one would have been?

# %% [markdown]
# ## 2. Derivation: what one test set tells of the others
#
# ### 2.1 The interval of an AUROC
#
# Compare all pairs, as the AUROC does: a table with a 1 where the OOD image of the row has the larger score than the ID image of the column. Read
# it by rows and by columns. The mean of row $m$, $V_m$, says how often OOD image $m$ wins; the mean of column $n$, $U_n$, how often ID image $n$ loses.
# Both average to $\hat A$. The rows are drawn independently of the columns, and {cite:t}`delong1988` show
# that to first order
#
# $$\operatorname{Var}\hat A \approx \frac{\operatorname{Var} V_m}{M} + \frac{\operatorname{Var} U_n}{N}.$$
#
# An AUROC cannot leave $[0,1]$, so take the interval on the logit scale, $g(A)=\log\frac{A}{1-A}$, and map it back. The
# derivative $g'(A)=\frac1{A(1-A)}$ carries the standard error over (the delta method).

# %%
wins = (ood_scores[:, None] > id_scores).double()  # (M, N); continuous scores have no ties
area, V, U = wins.mean().item(), wins.mean(1), wins.mean(0)
error = (V.var() / len(V) + U.var() / len(U)).sqrt().item()
logit, half = math.log(area / (1 - area)), 1.96 * error / (area * (1 - area))
low, high = 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))

assert np.allclose((low, high), library.auroc_ci, atol=1e-4)
print(f"AUROC {area:.3f}, 95 % interval from {low:.3f} to {high:.3f}")

# %% [markdown]
# ### 2.2 Does a 95 % interval hold 95 % of the time?
#
# The exact value is known here, so draw many test sets and count.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of simulated test sets whose 95 % interval holds the exact AUROC, for three sizes of the test sets and four degrees of separation; bars are the simulation's own 95 % error, drawn a little aside.", "name": "fig-certainty-coverage"}, "image": {"alt": "Coverage against the exact AUROC from 0.6 to 0.99 for test sets of 25, 100 and 400 images on each side. The curves run near the dotted line at 95 percent; they part most at the largest AUROC."}}
figure, ax = plt.subplots(figsize=(plots.HALF * 1.5, 2.7))
truths, coverage = (0.6, 0.8, 0.95, 0.99), []
for n, style, aside in zip((25, 100, 400), plots.SERIES[::2], (-0.004, 0, 0.004)):
    held = []
    for truth in truths:
        gap = math.sqrt(2) * stats.norm.ppf(truth)
        pairs = torch.randn(simulations, 2, n, generator=generator, dtype=torch.float64)
        ends = np.array([auroc(a, b + gap)[1] for a, b in pairs])
        held.append(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
    coverage += held
    bars = 1.96 * np.sqrt(np.array(held) * (1 - np.array(held)) / simulations)
    ax.errorbar(np.add(truths, aside), held, bars, ms=4, label=f"{n} + {n} images", **style)
ax.axhline(0.95, color=plots.COLORS["grey"], lw=1, ls=":")
ax.set(xlabel="exact AUROC", ylabel="coverage of the 95 % interval", ylim=(0.85, 1.0))
ax.legend(loc="lower left")
plt.show()

# %% tags=["hide-input"]
display(Markdown(
    f"Over these cells {100 * np.mean(coverage):.1f} % of the 95 % intervals hold the exact value; the worst cell has "
    f"{100 * np.min(coverage):.1f} %, and the simulation itself has an error of ± {196 * (0.05 * 0.95 / simulations) ** 0.5:.1f}."
))

# %% [markdown]
# ### 2.3 FPR95 has two unknowns
#
# **How sure is an FPR95?** Its threshold is an estimate too. Let $B$ be the number of the $N$ ID scores that lie below the *true* threshold, the one that
# accepts 95 % of all possible ID images. It is binomial, $B\sim\mathrm{Bin}(N,\ 0.95)$, so the true threshold lies between the ordered
# scores $S_{(B)}$ and $S_{(B+1)}$.
#
# At a fixed threshold below which $c$ of $M$ OOD images lie, {cite:t}`clopper1934` bound the rate by quantiles of
# $\mathrm{Beta}(c,\,M-c+1)$ from below and of $\mathrm{Beta}(c+1,\,M-c)$ from above. So draw $B$, count at its two ends, draw the
# rate, and take the quantiles of what comes out.

# %%
dice = np.random.default_rng(seed)
known, other = np.sort(id_scores.numpy()), np.sort(ood_scores.numpy())
N, M = len(known), len(other)
B = dice.binomial(N, 0.95, 200_000)
ends = np.r_[-np.inf, known, np.inf]
below, above = (np.searchsorted(other, ends[B + i], side="right") for i in (0, 1))
tiny = 1e-9  # Beta(0, .) is the point 0, Beta(., 0) the point 1
lowest = np.quantile(dice.beta(np.maximum(below, tiny), M - below + 1), 0.025)
highest = np.quantile(dice.beta(above + 1, np.maximum(M - above, tiny)), 0.975)

assert np.allclose((lowest, highest), library.fpr95_ci, atol=0.005)
print(f"FPR95 {library.fpr95:.3f}, 95 % interval from {lowest:.3f} to {highest:.3f}")

# %% tags=["hide-input"]
exact = Phi((stats.norm.ppf(0.95) - d) / s)
some = [ood.evaluate(*test_set(100, 100)) for _ in range(max(simulations // 5, 10))]
holds = 100 * np.mean([m.fpr95_ci[0] <= exact <= m.fpr95_ci[1] for m in some])
width = {k: 100 * np.mean([np.diff(getattr(m, k)) for m in some]) for k in ("fpr95_ci", "auroc_ci")}
display(Markdown(
    f"Of {len(some)} test sets of 100 + 100 images, {holds:.0f} % of the intervals hold the exact FPR95. They are {width['fpr95_ci']:.0f} points wide on "
    f"average, those of the AUROC {width['auroc_ci']:.0f}."
))

# %% [markdown]
# In simulations with other numbers of images the interval held the true value in at least 95 of 100 test sets, because both unknowns are bounded on
# the safe side ([Findings](../book/findings)). And it is wide: an FPR95 rests on the few ID images near the threshold. With fewer than 72 ID images its upper end is 1, whatever the scores are.
#
# ### 2.4 Two detectors on the same images
#
# Two detectors on the same images share the sampling error: an image that is easy for one is often easy for the other. Their
# two intervals therefore say little about the difference. Subtract image by image. If $V^a_m, U^a_n$ and $V^b_m, U^b_n$ belong to detectors $a$ and $b$,
#
# $$\operatorname{Var}(\hat A^a-\hat A^b) \approx \frac{\operatorname{Var}(V^a_m-V^b_m)}{M}
# + \frac{\operatorname{Var}(U^a_n-U^b_n)}{N},$$
#
# which is small when both agree on which images are hard. In the library this is `ood.compare`. Its p-value is that of
# the formula; its interval joins the two logit intervals by their correlation, so that it stays inside $[-1,1]$.
# Try it on a second detector, whose scores are those of the first with independent noise added.

# %%
def noisy(x, spread):
    return x + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype)


id_b, ood_b = noisy(id_scores, 1.5), noisy(ood_scores, 1.5)
wins_b = (ood_b[:, None] > id_b).double()
gap_V, gap_U = (wins - wins_b).mean(1), (wins - wins_b).mean(0)
paired = (gap_V.var() / len(gap_V) + gap_U.var() / len(gap_U)).sqrt().item()

paired_test = ood.compare(id_scores, ood_scores, id_b, ood_b)
assert np.isclose(paired_test.difference, (wins - wins_b).mean().item())
assert np.isclose(paired_test.p_value, 2 * Phi(-abs(paired_test.difference) / paired))

# %% tags=["hide-input"]
other = ood.evaluate(id_b, ood_b)
display(Markdown(
    f"The intervals overlap, {library.auroc:.3f} [{library.auroc_ci[0]:.3f}, {library.auroc_ci[1]:.3f}] against "
    f"{other.auroc:.3f} [{other.auroc_ci[0]:.3f}, {other.auroc_ci[1]:.3f}], and seem to say that nothing is known. The paired "
    f"difference is **{paired_test.difference:+z.4f} [{paired_test.low:+z.4f}, {paired_test.high:+z.4f}]** (p = {paired_test.p_value:.2g}): its error is "
    f"{error * math.sqrt(2) / paired:.0f} times smaller than that of two independent test sets would be."
))  # fmt: skip

# %% [markdown]
# ## 3. Training several networks
#
# Train a few networks, each from its own seed, so that the variance between networks can be separated from that between test sets. Then let the
# seventeen detectors of [the next page](07_classical) score the test images of each. That page explains them; here, each is only a list of
# scores.
#
# With the default parameters only the first network is trained here. The others come with the book: the same code trained them, from the seeds
# that follow. With any other recipe, or after `export OOD_TRAIN=all`, every network is trained on your machine.

# %% tags=["hide-input"]
features = ood.benchmark_features(
    benchmark, seeds, seed=seed, widths=widths, device=device,
    epochs=epochs, learning_rate=learning_rate,
    root=data_dir or None, missing=missing,
)  # fmt: skip
seeds, f = len(features), features[0]  # the first is the one we look into
bench = f.images  # a bank has none
if not (f.near and f.far):
    raise ValueError(f"{benchmark}: give at least one near and one far set")
bench or f  # which set plays which role, and how many images it has

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training: loss per update and validation accuracy per epoch, one line per seed. The seeds agree on accuracy; section 4 asks whether they agree on OOD.", "name": "fig-certainty-training"}, "image": {"alt": "Left, training loss on a logarithmic axis falling over the updates for every seed. Right, validation accuracy rising to its plateau over the epochs."}}
if bench:
    plots.training_curves([x.history for x in features])
    plt.show()

# %% tags=["hide-input"]
moved = [ood.extract_benchmark(ood.ODINNetwork(x.network), bench, device=device) for x in features if bench]
print(f"test accuracy: {100 * np.mean([x.accuracy for x in features]):.1f} %, networks: {seeds}")

# %% tags=["hide-input"]
def judge(n):
    """All seventeen on network n, as one table; ODIN only where there are images."""
    x = features[n]
    runs = [(ood.classical_detectors(x.head, x.train), x)]
    runs += [({"ODIN": ood.ODIN()}, moved[n])] if bench else []
    return pd.concat([ood.run_benchmark(*run, seed=seed + n) for run in runs])


table = pd.concat([judge(n) for n in range(seeds)])
order = [name for members in FAMILIES.values() for name in members]
order = [name for name in order if bench or name != "ODIN"]
table = table.sort_values("detector", key=lambda c: c.map(order.index), kind="stable")

# %% tags=["hide-input"]
everyone = ood.classical_detectors(f.head, f.train)  # on the first network, image by image
sets_of = f.ood_sets()
scores = {n: {k: d(x) for k, x in {"ID": f.test, **sets_of}.items()} for n, d in everyone.items() if d.fit(f.train, f.val)}
if bench:
    scores["ODIN"] = {k: ood.ODIN()(x) for k, x in {"ID": moved[0].test, **moved[0].ood_sets()}.items()}
scores = {name: scores[name] for name in order}

# %% [markdown]
# ## 4. Looking inside: two sources of variance
#
# An interval says what another sample would have given. But a sample of what: other test images (DeLong), or another network (the
# spread over seeds)? The two can differ by far.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two standard errors of the same AUROC, one point per detector and OOD set: from other test images (DeLong, horizontal) and from other networks (spread over seeds, vertical). Above the line the seed matters more than the images. The horizontal value is a quarter of the interval's width; near an AUROC of 1 it is larger than DeLong's error, because the library widens the interval when there are few images.", "name": "fig-certainty-variance"}, "image": {"alt": "Scatter plot on logarithmic axes of the spread over seeds against DeLong's standard error, orange triangles for near-OOD and pink squares for far-OOD, with the diagonal. Most points, above all the far ones, lie above the diagonal."}}
area = table[table["metric"] == "auroc"].copy()
area["error"] = (area["high"] - area["low"]) / 3.92
variances = area.groupby(["detector", "group", "ood_set"]).agg(images=("error", "mean"), seeds=("value", "std")).reset_index()
figure, ax = plt.subplots(figsize=(plots.HALF * 1.3, 3.2))
for group, rows in variances.groupby("group"):
    ax.loglog(rows["images"].clip(1e-5), rows["seeds"].clip(1e-5), plots.MARKERS[group], color=plots.COLORS[group], ms=5, alpha=0.7, label=plots.NAMES[group])
ends = np.array([1e-4, 0.3])
ax.plot(ends, ends, color=plots.COLORS["grey"], lw=1)
ax.set(xlabel="standard error over test images", ylabel="standard deviation over networks")
ax.legend()
plt.show()

# %% tags=["hide-input"]
ahead = (variances["seeds"] > variances["images"]).groupby(variances["group"]).mean()
display(Markdown(
    f"In {ahead['near']:.0%} of the near and {ahead['far']:.0%} of the far cases the AUROC varies more between networks than between test sets. "
    "A result of a single checkpoint, however many images it was tested on, leaves that part of the variance unmeasured."
    if seeds > 1 else "One network has no spread over networks: train several to compare."
))  # fmt: skip

# %% [markdown]
# ## 5. Does it work? Paired comparisons
#
# ### 5.1 Real networks
#
# **What do pairs decide that single intervals do not?** Compare detectors on four networks trained on photographs. One network each, so the
# intervals speak of other images.

# %% tags=["hide-input"]
pairs = [("Mahalanobis", "MSP"), ("Mahalanobis", "KNN"), ("GEN", "MSP"), ("ViM", "Energy")]
judged, decided = {pair: {} for pair in pairs}, []
for name in benchmarks:
    (x,) = ood.benchmark_features(name, rows=bank_rows or None)
    fitted = ood.classical_detectors(x.head, x.train)
    fitted = {n: d.fit(x.train, x.val) for n, d in fitted.items() if n in np.ravel(pairs)}
    seen = {n: {k: d(y) for k, y in {"ID": x.test, **x.ood_sets()}.items()} for n, d in fitted.items()}
    for a, b in pairs:
        judged[a, b][name] = ood.verdicts([(x, fitted[a], fitted[b])])
        for k in (*x.near, *x.far):
            one = ood.compare(*(seen[n][i] for n in (a, b) for i in ("ID", k)))
            (low_a, high_a), (low_b, high_b) = (auroc(seen[n]["ID"], seen[n][k])[1] for n in (a, b))
            decided.append((one.low > 0 or one.high < 0, low_a > high_b or low_b > high_a))
for (a, b), found in judged.items():
    display(plots.verdict_table(found, f"{a} against {b}"))

# %% tags=["hide-input"]
in_pairs, apart = np.sum(decided, axis=0)
summary = [
    f"* **{a} against {b}**, " + "; ".join(f"{g}: {ood.tally({n: v[g] for n, v in found.items() if g in v})}" for g in ("near", "far")) + "."
    for (a, b), found in judged.items()
]
display(Markdown(
    "\n".join(summary) + f"\n\nThese are {len(decided)} comparisons of two detectors on one OOD set. The paired interval decides **{in_pairs}** of them; "
    f"the two single intervals lie apart in **{apart}**."
))

# %% [markdown]
# ### 5.2 One network or several
#
# On the small networks both questions can be asked: image by image on one network (`ood.compare`), and network by network over all.

# %% tags=["hide-input"]
near = list(f.near)[0]
on_near = area[area["ood_set"] == near]
by_seed = on_near.pivot(index="seed", columns="detector", values="value")


def compared(a, b):
    """One network, image by image; then network by network. Differences in points."""
    one = ood.compare(*(scores[d][k] for d in (a, b) for k in ("ID", near)))
    over_networks = metrics.mean_interval(by_seed[a] - by_seed[b])
    cells = (one.difference, one.low, one.high), over_networks
    texts = [metrics.as_percent(*cell, signed=True) for cell in cells]
    return [*texts, f"{one.p_value:.1g}"]


columns = ["other images, one network", "other networks", "p, one network"]
rows = {" − ".join(pair): compared(*pair) for pair in pairs}
rows = pd.DataFrame.from_dict(rows, "index", columns=columns)
rows.style.set_caption(f"Difference in AUROC on {near}, in points, with 95 % intervals")

# %% [markdown]
# Seventeen detectors form 136 pairs. At the 5 % level, one in twenty of the pairs without a true difference appears to differ.
# When you test many, divide the level by their number (Bonferroni), or name the one comparison that matters to you before you look.

# %% [markdown]
# ## 6. Choosing
#
# ### 6.1 The best of seventeen
#
# Even without hyperparameters there is a choice: you run seventeen detectors and report the best. Its number is biased upwards, because
# it was selected on the same images. By how much? Split the test images into two halves, select the best detector on one, and judge it on the other.

# %% tags=["hide-input"]
def table_of_wins(own, strange, most=1000):  # as in section 2.1, (M, N)
    own, strange = own[:most], strange[:most, None]
    return (strange > own).float() + 0.5 * (strange == own)


wins_of = {name: table_of_wins(s["ID"], s[near]) for name, s in scores.items()}
selected, later = [], []
for _ in range(200):
    sizes = wins_of["MSP"].shape
    row, column = ((torch.randperm(k, generator=generator) % 2).float() for k in sizes)
    pairs = row.sum() * column.sum()
    first = {n: (row @ w @ column / pairs).item() for n, w in wins_of.items()}
    winner = max(first, key=first.get)
    row, column = 1 - row, 1 - column  # the other half of the images
    second = row @ wins_of[winner] @ column / row.sum() / column.sum()
    selected.append(100 * first[winner])
    later.append(100 * second.item())

# %% tags=["hide-input"]
display(Markdown(
    f"On {near}, with half of the images, the selected detector has {np.mean(selected):.2f} where it was selected and **{np.mean(later):.2f}** on the "
    f"other half, over 200 splits: {np.mean(selected) - np.mean(later):+z.2f} points are selection bias. It grows with the number of "
    "candidates and as the test set shrinks."
))  # fmt: skip

# %% [markdown]
# ### 6.2 What may validation OOD data do?
#
# Many detectors have a knob, and the protocol of OpenOOD allows you to set it on a *validation* set of OOD images, disjoint
# from the test sets {cite:p}`zhang2023openood`. Is that fair? It is mild supervision: the method learns what some OOD images look like. How much it
# helps depends on whether the validation OOD set resembles the test sets. Measure it. Give the search all seventeen detectors
# and the grids of their knobs; let it choose the best by the AUROC of ID *validation* images against one OOD set; test
# the choice on every other.

# %% tags=["hide-input"]
def candidates(head, train):
    """Every detector, and the knobs that OpenOOD turns, scaled to this training set."""
    found = ood.classical_detectors(head, train)
    found |= {f"KNN, k={k}": ood.KNN(k) for k in (1, 5, 10) if k < len(train)}
    found |= {f"ReAct, p={p}": ood.ReAct(head, p) for p in (0.85, 0.95, 0.99)}
    found |= {f"ASH, p={p}": ood.ASH(head, p) for p in (0.65, 0.75, 0.85)}
    found |= {f"SCALE, p={p}": ood.SCALE(head, p) for p in (0.65, 0.75)}
    found |= {f"GEN, γ={g}": ood.GEN(g) for g in (0.01, 0.5, 1.0, 2.0)}
    widths = head.in_features // 8, head.in_features // 4
    return found | {f"ViM, D={n}": ood.ViM(head, n) for n in widths}


# %% tags=["hide-input"]
def areas(x):
    """AUROC of each candidate on each OOD set, against ID validation and ID test images."""
    rows = {}
    ood_sets = x.ood_sets()
    for name, detector in candidates(x.head, x.train).items():
        detector.fit(x.train, x.val)
        seen = {k: detector(y) for k, y in ood_sets.items()}
        for role in ("val", "test"):
            own = detector(getattr(x, role))
            found = {(role, k): auroc(own, s)[0] for k, s in seen.items()}
            rows[name] = rows.get(name, {}) | found
    return pd.DataFrame(rows).T


# %% tags=["hide-input"]
by_network = [areas(x) for x in features]
names = list(sets_of)
regret = np.zeros((len(names), len(names)))
for grid in by_network:
    best = grid["test"].max()
    for i, shown in enumerate(names):
        chosen = grid["val", shown].idxmax()  # chosen on validation ID and this OOD set
        lost = 100 * (best - grid.loc[chosen, "test"])
        regret[i] += lost[names].to_numpy() / len(by_network)
choices = {shown: [grid["val", shown].idxmax() for grid in by_network] for shown in names}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Points of AUROC lost against the best candidate of all, when the detector is chosen on the OOD set of the row and tested on that of the column; mean over networks. The diagonal tests on the very set that chose: that is leakage, and it looks best.", "name": "fig-certainty-choice"}, "image": {"alt": "Square heat map, rows: the OOD set used for choosing, columns: the OOD set used for testing. Values are small except in the row of the blurred images, where the choice costs most on other far sets."}}
figure, ax = plt.subplots(figsize=(plots.FULL * 0.75, 3.6))
image = ax.imshow(regret, cmap="viridis_r", vmin=0)
ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
ax.set_yticks(range(len(names)), names)
ax.set(xlabel="tested on", ylabel="chosen on")
ax.grid(visible=False)
for i, j in np.ndindex(*regret.shape):
    ax.text(j, i, f"{regret[i, j]:.1f}", ha="center", va="center", color="white" if regret[i, j] > regret.max() / 2 else "black")
figure.colorbar(image, label="points of AUROC lost")
plt.show()

# %% tags=["hide-input"]
outside = regret[~np.eye(len(names), dtype=bool)].mean()
blind = {n: 100 * np.mean([(g["test"].max() - g.loc[n, "test"])[names].mean() for g in by_network]) for n in ("MSP", "Mahalanobis")}
worst = np.unravel_index(regret.argmax(), regret.shape)
display(Markdown(
    f"Choosing on one set and testing on another loses {outside:.1f} points on average, choosing on the test set itself {np.diag(regret).mean():.1f}. "
    f"Without any choice, MSP loses {blind['MSP']:.1f} and Mahalanobis {blind['Mahalanobis']:.1f}. The largest loss, {regret.max():.1f} points, is "
    f"that of choosing on {names[worst[0]]} for {names[worst[1]]}.\n\nChosen, network by network:\n\n"
    + "\n".join(f"* on {shown}: {', '.join(dict.fromkeys(c))}" for shown, c in choices.items())
))  # fmt: skip

# %% [markdown]
# So the rules of this book: OOD images never take part in fitting, in choosing a threshold or in choosing a knob. Where a paper's
# protocol tunes on OOD images, the page says so, names the set, and judges on the others.

# %% [markdown]
# ## 7. When it fails
#
# * **Images are not independent.** On `digits` the far photographs are overlapping squares of two pictures, and three far sets are the
#   ID test digits themselves, corrupted. Intervals that treat images as independent draws are then too narrow.
# * **The test sets are known.** A decade of methods was chosen, by publication, on the same few sets. That is section 6.1 with hundreds of
#   contenders.
# * **Few networks.** Student's interval over a handful of networks assumes that their differences are normal. A single odd network makes it wide, and with
#   two it says nearly nothing.
# * **No interval covers another OOD set.** The intervals describe other images of the same sets and other trainings of the same recipe.
#   Section 6.2 shows how much another OOD set can change the order.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. Two detectors were judged on the same images. Their AUROC intervals overlap. What follows?**
#
# <details><summary>A. Nothing yet: compare them in pairs, image by image.</summary>
#
# **Right.** They share the sampling error of the images, and the difference has a smaller error where they agree on what is
# hard. `ood.compare` subtracts first.
#
# </details>
#
# <details><summary>B. They are equally good.</summary>
#
# **No.** The single intervals contain the sampling error that both share. The paired difference can be clear although the
# intervals overlap; section 2.4 shows such a case.
#
# </details>
#
# <details><summary>C. The one with the higher AUROC is better, the interval is a formality.</summary>
#
# **No.** Without an interval of the difference you cannot distinguish a better detector from a difference by chance.
# With many comparisons, some are significant by chance.
#
# </details>
#
# **2. One network has an AUROC of 95.0 with the 95 % interval [93.8, 96.0] over test images. You train it again from another seed. What does the interval say
# of the new AUROC?**
#
# <details><summary>A. It lies in the interval with a probability of 95 %.</summary>
#
# **No.** The interval was made for other images and the same network. The spread over trainings is another variance, and it may be larger.
#
# </details>
#
# <details><summary>B. It lies above 93.8 for certain, because the recipe is the same.</summary>
#
# **No.** The same recipe with another seed gives another network. Section 4 measures by how much the AUROC then moves.
#
# </details>
#
# <details><summary>C. Nothing: it takes several networks to know.</summary>
#
# **Right.** The variance over networks can only be measured on networks. An interval over images leaves it out, however many images there are.
#
# </details>
#
# **3. You run seventeen detectors on one test set and report the best with its 95 % interval. What is wrong?**
#
# <details><summary>A. Nothing: the interval accounts for chance.</summary>
#
# **No.** It accounts for the chance of one detector that was named beforehand. The best of seventeen is partly best by chance.
#
# </details>
#
# <details><summary>B. The number was selected on the images that judge it, so it is biased upwards.</summary>
#
# **Right.** Choose on one half and judge on the other, as in section 6.1, or name the detector before you look.
#
# </details>
#
# <details><summary>C. The interval should be that of the mean of all seventeen.</summary>
#
# **No.** That answers another question. The remedy is fresh images for the one that was chosen.
#
# </details>
#
# **4. You take four times as many ID and OOD images. What happens to the interval of the AUROC?**
#
# <details><summary>A. It becomes about half as wide.</summary>
#
# **Right.** The variance falls with the number of images, so the width falls with its square root.
#
# </details>
#
# <details><summary>B. It becomes about a quarter as wide.</summary>
#
# **No.** That is the variance. The width is proportional to the standard error, its square root.
#
# </details>
#
# <details><summary>C. It stays, because AUROC does not depend on the number of images.</summary>
#
# **No.** The true AUROC does not, but its estimate varies less the more images there are.
#
# </details>
#
# **5. A paper sets its knob on one OOD set and reports results on others. When is that fair?**
#
# <details><summary>A. Never: no OOD image may take part in anything.</summary>
#
# **No.** A validation OOD set is mild supervision, and a protocol may allow it. What matters is that it is said, and that all methods get it.
#
# </details>
#
# <details><summary>B. Always, because the test images are others.</summary>
#
# **No.** A validation set that resembles the test sets teaches what to look for. A baseline without it is at a disadvantage.
#
# </details>
#
# <details><summary>C. If the chosen value is a usual one.</summary>
#
# **No.** What is usual was chosen on some OOD set too. The value is not the question, its origin is.
#
# </details>
#
# <details><summary>D. If the sets are disjoint, the set that chose is named, and the baselines were tuned on it in the same way.</summary>
#
# **Right.** Then the comparison is between methods, and a reader can judge how much the validation set resembles the test sets.
#
# </details>

# %% [markdown]
# ## 8. Exercises
#
# Each has a hint, and a check that tells you whether you are right, and what is wrong if you are not.

# %% [markdown]
# ```{exercise-start} Predict: half the width
# :label: ex-certainty-half
# ```
# Your interval of an AUROC is twice as wide as you can bear. How many times as many ID and OOD images do you need? Store the factor.
# *Hint: both terms of the variance in section 2.1.*

# %% tags=["exercise"]
times = ...

# %% tags=["check", "hide-input"]
def relative_width(times):
    """Width of the interval with so many times 100 + 100 images, in units of that with 100 + 100."""
    def of(n):
        known = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
        low, high = auroc(known, known + 1)[1]
        return high - low
    return of(round(100 * min(times, 100))) / of(100)


check_times = ood.Check(
    (lambda k: k > 1, "fewer images make it wider"),
    (lambda k: relative_width(k) < 0.6, "so many divide the variance by two, and the width by its square root"),
    (lambda k: relative_width(k) > 0.4, "more than needed: the width falls with the square root of the number"),
)
check_times(times)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-certainty-half
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: half the width needs twice the images. The width is a square root.
times = 2
check_times(times)

# %% tags=["solution"]
times = 4
print(f"{relative_width(times):.2f} times as wide")
check_times(times)

# %% [markdown]
# The variance is divided by four, the standard error by two.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: the error of a difference
# :label: ex-certainty-paired
# ```
# Two detectors have AUROCs of 0.90 and 0.88 on the same images. Each has a standard error of 0.012, and the correlation of the two estimates is 0.9. Store the
# standard error of the difference. Is it decided? *Hint: the variance of a difference.*

# %% tags=["exercise"]
of_difference = ...

# %% tags=["check", "hide-input"]
def error_of_difference(correlation, one=0.012):
    return math.sqrt(2 * one**2 - 2 * correlation * one**2)


check_difference = ood.Check(
    (lambda e: abs(e - error_of_difference(0)) > 1e-4, "that is for two independent test sets; these share their images"),
    (lambda e: abs(e - error_of_difference(0.9) ** 2) > 1e-6, "that is the variance; the error is its square root"),
    (lambda e: abs(e - error_of_difference(0.9)) < 1e-4, "Var(a − b) = Var a + Var b − 2 Cov(a, b), and Cov = ρ σ_a σ_b"),
)
check_difference(of_difference)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-certainty-paired
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: errors are added in squares, as if the test sets were two.
of_difference = math.sqrt(0.012**2 + 0.012**2)
check_difference(of_difference)

# %% tags=["solution"]
of_difference = math.sqrt(0.012**2 + 0.012**2 - 2 * 0.9 * 0.012 * 0.012)
print(f"difference 0.02, interval ± {1.96 * of_difference:.4f}")
check_difference(of_difference)

# %% [markdown]
# The paired interval excludes zero by far. Two independent test sets would have given ± 0.033, which decides nothing.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: many comparisons
# :label: ex-certainty-level
# ```
# Compare seventeen detectors in all pairs, and suppose that all of them are level. At which level must you test each pair, so that the chance of one false
# decision or more is at most 5 %? Store the largest level that Bonferroni's rule allows. *Hint: section 5.2.*

# %% tags=["exercise"]
level = ...

# %% tags=["check", "hide-input"]
def expected_false(level, detectors=17):
    """False decisions to be expected among all pairs."""
    return level * math.comb(detectors, 2)


check_level = ood.Check(
    (lambda a: 0 < a < 1, "a level is a probability"),
    (lambda a: expected_false(a) < 1, "at this level you expect several false decisions"),
    (lambda a: expected_false(a) <= 0.05 + 1e-9, "count the pairs, not the detectors"),
    (lambda a: expected_false(a) > 0.049, "stricter than the rule asks; which is the largest level?"),
)
check_level(level)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-certainty-level
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: divide by the number of detectors.
level = 0.05 / 17
check_level(level)

# %% tags=["solution"]
level = 0.05 / (17 * 16 / 2)
print(f"{level:.5f}")
check_level(level)

# %% [markdown]
# There are 136 pairs. The rule holds whatever the dependence between the comparisons is.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: the bootstrap
# :label: ex-certainty-bootstrap
# ```
# Compute the standard error of the AUROC of `id_scores` and `ood_scores` without a formula: draw the ID images with replacement, and the OOD images too, measure,
# and repeat a few hundred times. Store the standard deviation. Does it agree with `error`? *Hint: what is drawn, images or pairs?*

# %% tags=["exercise"]
by_drawing = ...

# %% tags=["check", "hide-input"]
def by_formula():
    return math.sqrt(V.var().item() / len(V) + U.var().item() / len(U))


check_drawing = ood.Check(
    (lambda e: e > 0.5 * by_formula(), "far too small: the pairs are not independent, the images are; draw these"),
    (lambda e: e < 2 * by_formula(), "far too large: is it the standard deviation of the measured AUROCs?"),
    (lambda e: e != by_formula(), "that is the formula itself; draw"),
    (lambda e: abs(e / by_formula() - 1) < 0.25, "near; draw both kinds of images, all of them each time"),
)
check_drawing(by_drawing)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-certainty-bootstrap
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the table of wins has M N entries, so its mean has the error of so many.
by_drawing = (wins.std() / math.sqrt(wins.numel())).item()
check_drawing(by_drawing)

# %% tags=["solution"]
def again(x):
    return x[torch.randint(len(x), (len(x),), generator=generator)]


repeated = [auroc(again(id_scores), again(ood_scores))[0] for _ in range(400)]
by_drawing = np.std(repeated, ddof=1)
print(f"drawn {by_drawing:.4f}, DeLong {error:.4f}")
check_drawing(by_drawing)

# %% [markdown]
# The bootstrap and DeLong estimate the same variance. The formula needs one sort and no random numbers.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Predict the cost
# :label: ex-certainty-networks
# ```
# Over networks, the AUROC of a detector has a standard deviation of 2 points. How many networks must you train at least, so that the interval over networks
# reaches at most 1 point to each side? *Hint: Student's t has a larger quantile for few networks, and the standard deviation is estimated from them.*

# %% tags=["exercise"]
networks = ...

# %% tags=["check", "hide-input"]
def reach(n, deviation=2.0):
    return metrics.student(n) * deviation / math.sqrt(n)


check_networks = ood.Check(
    (lambda n: n == int(n), "a whole number of networks"),
    (lambda n: reach(int(n)) <= 1, "with so few the interval is wider: 1.96 is the quantile for infinitely many"),
    (lambda n: reach(int(n) - 1) > 1, "fewer will do"),
)
check_networks(networks)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-certainty-networks
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: solve 1.96 σ / √n = 1, as if the standard deviation were known.
networks = math.ceil((1.96 * 2.0) ** 2)
check_networks(networks)

# %% tags=["solution"]
def half_width(n):
    return stats.t.ppf(0.975, n - 1) * 2.0 / math.sqrt(n)


networks = next(n for n in range(2, 1000) if half_width(n) <= 1)
print(networks)
check_networks(networks)

# %% [markdown]
# Few papers train so many. A difference of a point between two detectors is then not settled by their means; pairs on the same networks need fewer.
# ```{solution-end}
# ```

# %% [markdown]
# ## 9. Take away
#
# * The standard error of an AUROC can be computed from the scores of one test set (DeLong). The interval of an FPR95 is wider.
# * Compare in pairs: what is hard for both detectors cancels.
# * There are intervals over images, over networks (Student), and of pairs (`ood.compare`). Say which.
# * The best of many is partly best by chance. Choose on some images and judge on others.
# * OOD images that choose anything are training data.
#
# **In the library:** {py:func}`~ood_lib.evaluation.metrics.evaluate`, {py:func}`~ood_lib.evaluation.comparison.compare`,
# {py:func}`~ood_lib.evaluation.verdict.verdicts`, {py:func}`~ood_lib.evaluation.metrics.mean_interval`.
#
# **Read on:** the variance of an AUROC {cite:p}`delong1988`; the interval of a rate {cite:p}`clopper1934`; the protocol
# {cite:p}`zhang2023openood`.

# %% tags=["hide-input"]
# What other pages show of this run.
if results:
    table.to_csv(Path(results) / "benchmark.csv", index=False)
    variances.to_csv(Path(results) / "variances.csv", index=False)

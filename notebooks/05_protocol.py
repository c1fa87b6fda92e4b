# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What counts as out-of-distribution?
#
# An OOD detector gives each image a {term}`score` and rejects the images above a threshold. How good it looks depends on the OOD images
# that you test it with, and on what you count.

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
from ood_book import explorables

explorables.show(
    explorables.score_thresholds(),
    caption="What a threshold does. Drag τ and watch both errors move along the ROC curve. Then widen the OOD scores to "
    "s = 2: the two numbers that are called FPR95 part.",
    alt_text="Left, the densities of ID scores, solid, and of OOD scores, dashed, with a vertical threshold; ID scores beyond "
    "it and OOD scores before it are shaded. Right, the ROC curve with the point of this threshold. Below, both error rates, "
    "AUROC, and FPR95 in its two conventions. Sliders set the threshold, and the place and spread of the OOD scores.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of {cite:t}`hendrycks2017msp`, with which the field began: a classifier is less certain about images that are unlike its training
# data. So the maximum softmax probability (MSP) tells them apart. {cite:t}`lee2018mahalanobis` ask the features instead, by the Mahalanobis distance.
#
# <!-- made by ood-book sync -->
# **What we found.** Mean AUROC in % on each network that we measured:
#
# | network | near-OOD | far-OOD |
# |---|---|---|
# | our ResNet-9 on CIFAR-10 | MSP 87.5, Mahalanobis 49.0 | MSP 91.8, Mahalanobis 60.8 |
# | DenseNet on CIFAR-10 | MSP 87.4, Mahalanobis 59.2 | MSP 91.5, Mahalanobis 94.7 |
# | ResNet-56 on CIFAR-10 | MSP 85.9, Mahalanobis 77.5 | MSP 88.6, Mahalanobis 93.1 |
# | DenseNet on CIFAR-100 | MSP 76.0, Mahalanobis 53.5 | MSP 73.9, Mahalanobis 84.2 |
#
# The numbers are those of the stored runs of [the leaderboard](08_leaderboard), not of this page.
#
# **It takes** 19 minutes to read, without exercises and what is folded, and 2 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use** AUROC to compare detectors, and a threshold calibrated on held-out ID images to decide. Name the OOD images with every number.
#
# **Do not** compare two numbers called FPR95 before you know which of its two conventions each of them follows.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** in which ways an image can differ from the training data, and what AUROC, FPR95 and AUPR count. You will see why two different
# numbers carry the name FPR95, and how a {term}`score` becomes a decision with a guarantee.
#
# **You need** softmax, the normal distribution, and the idea of a threshold.
#
# This is the first of three pages. [The second](06_certainty) asks how sure such numbers are, [the third](07_classical) explains seventeen detectors.
# ```
#
# These are the parameters of the page. Change a value and run the notebook again, or pass it on the command line:
# `ood-book run protocol -p tpr 0.99`.

# %% tags=["parameters", "hide-input"]
benchmark: str = "digits"  # cifar10, imagenet, folder:PATH; a bank: cifar10-densenet
benchmarks: list = [
    "cifar10-resnet9", "cifar10-densenet", "cifar10-resnet56", "cifar100-densenet",
]  # banks of real networks, judged in section 5
data_dir: str = ""  # where local data lie; empty: the cache folder
missing: str = "raise"  # an OOD set that is not there: raise or skip
seed: int = 0  # of the network, and of all that is drawn
device: str = "auto"  # where to train: auto, cpu, cuda
epochs: int = 30  # of training
learning_rate: float = 0.05  # peak of the learning-rate cycle
widths: list = [32, 64]  # feature maps per stage; the last is the feature width K
tpr: float = 0.95  # share of ID images that a threshold is to accept
splits: int = 2000  # random splits of the ID images in section 4.4
umap_points: int = 1500  # images in the UMAP picture
results: str = ""  # folder for what other pages show; empty: do not write

# %% tags=["hide-input"]
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy import stats

import ood_lib as ood
from ood_lib.evaluation import plots
from ood_lib.evaluation.metrics import auroc

plots.theme()
torch.manual_seed(seed)
generator = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## 1. The idea on a toy
#
# **When is an image out-of-distribution?** Take features in the plane and two known classes, round clouds around $(-2, 0)$ and $(2, 0)$.
# A third cloud sits right between them, small and dense. A fourth lies far out to the right, behind the second class.
# Neither belongs to a known class. Which of the two would a classifier notice?
#
# For two such clouds the optimal classifier is known: if the rows of $W$ are the class means and there is no bias, the softmax of
# $Wz$ *is* the posterior. The density of the known data is known too, the mean of the two Gaussians. So both
# {term}`energies <energy>` below are exact, and no failure can come from the training.

# %%
means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])


def cloud(x, width, n=2000):
    return torch.tensor([x, 0.0]) + width * torch.randn(n, 2, generator=generator)


toy_id = torch.cat([cloud(-2.0, 1.0), cloud(2.0, 1.0)])
toy_ood = {"near": cloud(0.0, 0.5), "far": cloud(8.0, 1.0)}
energies = {
    "maximum softmax probability": lambda z: ood.msp(z @ means.T),
    "minus log-density": lambda z: -torch.logsumexp(-torch.cdist(z, means).square() / 2, 1),
}
toy_auroc = {
    name: {g: auroc(S(toy_id), S(z))[0] for g, z in toy_ood.items()}
    for name, S in energies.items()
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same points under two exact energies. Shade: share of known points with a smaller score than this place; black = larger than all. Above: the softmax sees the cloud between the classes and is certain about the one behind them. Below: the density sees the one behind, and only part of the one between.", "name": "fig-protocol-toy"}, "image": {"alt": "Two maps of the plane with the same four clouds. On the upper map, of the maximum softmax probability, only a vertical band between the two blue classes is dark; the pink far cloud lies in the bright area. On the lower map, of minus log-density, everything away from the two classes is dark, all around the far cloud too."}}
grid = torch.cartesian_prod(torch.linspace(-6, 11.5, 200), torch.linspace(-4, 4, 90))
figure, axes = plt.subplots(2, 1, figsize=(plots.FULL, 4.9), sharex=True)
for ax, (name, S) in zip(axes, energies.items()):
    share = torch.searchsorted(S(toy_id).sort().values, S(grid)).reshape(200, 90).T / len(toy_id)
    ax.imshow(share, extent=(-6, 11.5, -4, 4), origin="lower", cmap="Greys", alpha=0.7, aspect="auto", vmin=0, vmax=1)
    for role, points in {"id": toy_id[::10], **{g: z[::10] for g, z in toy_ood.items()}}.items():
        ax.plot(*points.T, plots.MARKERS[role], color=plots.COLORS[role], ms=3.5, mew=0.3, mec="white")
    found = ", ".join(f"{g} {a:.2f}" for g, a in toy_auroc[name].items())
    ax.set(title=f"{name}   (AUROC: {found})", ylabel="$z_2$", ylim=(-4, 4))
    ax.grid(visible=False)
axes[1].set_xlabel("$z_1$")
for ax in axes:
    for x, word, role in ((0, "near", "near"), (8, "far", "far")):
        ax.text(x, -3.6, word, color="black", ha="center", bbox={"fc": "white", "ec": plots.COLORS[role], "pad": 2})
plt.show()

# %% [markdown]
# The two energies fail in opposite places. The softmax answers *which of the classes is it?* and is undecided only
# between them. Behind the second class it grows more certain with every step, so the far cloud gets the *smallest*
# scores of all. Its AUROC is near 0, which is worse than guessing, because the order is inverted. The density answers
# *have I seen data here?* and finds every far point. It finds only a part of the near cloud, because known points also lie between the
# classes.
#
# No amount of training repairs this, because both energies are exact. A detector asks one question, and each question has a
# blind spot. The rest of the page keeps these two questions; [the classical detectors](07_classical) ask fifteen more.
#
# ### Names for it
#
# Write $p(x, y)$ for the law of training images and labels.
#
# ```{list-table} Three ways to differ from the training data.
# :name: tab-protocol-shifts
# :header-rows: 1
#
# * - Name
#   - What changes
#   - Example, for a reader of the digits 0 to 6
#   - Should the alarm ring?
# * - near-OOD, *semantic* shift
#   - the class: it is none of the known ones; the kind of picture stays
#   - a 7
#   - yes: every answer is wrong
# * - far-OOD
#   - the kind of picture, and with it the class
#   - a patch of a photograph
#   - yes
# * - *covariate* shift
#   - the look, $p(x)$; the class stays, $p(y\mid x)$ with it
#   - a blurred 3
#   - that depends: only if the answer is no longer right
# ```
#
# Near and far are not a matter of distance alone. "Near" means that the same kind of picture could have been a class.
# It is the harder case, because the network was trained to ignore all differences that do not separate its own
# classes. Benchmarks disagree about the third row. OpenOOD calls shifted images of known classes in-distribution
# in its full-spectrum variant {cite:p}`zhang2023openood`; our `digits` counts three corrupted copies of the
# test digits as far-OOD. Section 4.3 measures how detectors respond to such images.

# %% [markdown]
# ## 2. Derivation: what the numbers count
#
# From here on a detector is only a list of scores, one per image, **larger = more OOD**. Take two lists with known laws,
# so that every number can be checked: ID scores from $N(0,1)$, OOD scores from $N(d, s^2)$.

# %%
d, s = 2.0, 3.0
id_scores = torch.randn(500, generator=generator, dtype=torch.float64)
ood_scores = d + s * torch.randn(400, generator=generator, dtype=torch.float64)
Phi = stats.norm.cdf

# %% [markdown]
# ### 2.1 AUROC is a probability
#
# Draw one OOD and one ID image. How likely is it that the OOD image has the larger score? Count all pairs, ties one
# half:
#
# $$\hat A = \frac{1}{MN}\sum_{m=1}^{M}\sum_{n=1}^{N}
# \Bigl(\mathbb 1[S_m > S_n] + \tfrac12\,\mathbb 1[S_m = S_n]\Bigr).$$
#
# This is the area under the ROC curve. Moving the {term}`threshold` past one ID score raises the false-positive rate by
# $1/N$, and the strip that this adds is as high as the share of OOD scores above it. (Which class is called positive
# does not matter here; swapping the roles mirrors the curve.) For two normals the difference of the scores is normal,
# with mean $d$ and variance $1+s^2$, so $A=\Phi(d/\sqrt{1+s^2})$.

# %%
wins = (ood_scores[:, None] > id_scores).double()  # (M, N)
wins += 0.5 * (ood_scores[:, None] == id_scores)
area = wins.mean().item()

library = ood.evaluate(id_scores, ood_scores)
assert abs(library.auroc - area) < 1e-12
print(f"counted {area:.4f}, exact {Phi(d / math.sqrt(1 + s**2)):.4f}")

# %% [markdown]
# Counting all pairs is fine for a page; the library sorts instead and handles ten million scores in seconds.
#
# ### 2.2 Two numbers called FPR95
#
# A threshold makes two kinds of error. Fix one of them at 5 % and report the other. But which?
#
# * **ID is to be recalled** (ODIN, and most papers after it): accept 95 % of ID images; report the share of OOD images that is
#   accepted with them. With normals, $\tau=\Phi^{-1}(0.95)$ and $\mathrm{FPR}=\Phi\bigl((\tau-d)/s\bigr)$.
# * **OOD is to be recalled** (OpenOOD since version 1.5): reject 95 % of OOD images; report the share of ID images that is rejected
#   with them. With normals, $\tau=d+s\,\Phi^{-1}(0.05)$ and $\mathrm{FPR}=1-\Phi(\tau)$.

# %%
tau_id = stats.norm.ppf(0.95)
tau_ood = d + s * stats.norm.ppf(0.05)
exact = {"id": Phi((tau_id - d) / s), "ood": 1 - Phi(tau_ood)}
found = {way: ood.evaluate(id_scores, ood_scores, positive=way).fpr95 for way in exact}
pd.DataFrame({"exact": exact, "on these scores": found}).rename_axis("positive").round(3)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One detector, two thresholds, two numbers of the same name. Left: accept 95 % of ID, and the shaded share of OOD slips through. Right: reject 95 % of OOD, and the shaded share of ID is rejected with them.", "name": "fig-protocol-fpr"}, "image": {"alt": "Two panels with the same narrow blue ID density around 0 and the same wide pink OOD density around 2. Left, a threshold at 1.6 with the pink area to its left shaded. Right, a threshold at minus 2.9 with almost the whole blue area, which lies to its right, shaded."}}
t = np.linspace(-8, 12, 400)
curves = {"id": stats.norm.pdf(t), "far": stats.norm.pdf(t, d, s)}
figure, axes = plt.subplots(1, 2, figsize=(plots.FULL, 2.7), sharey=True)
for ax, way, tau, wrong, side in ((axes[0], "id", tau_id, "far", t < tau_id), (axes[1], "ood", tau_ood, "id", t > tau_ood)):
    for role, curve in curves.items():
        ax.plot(t, curve, plots.LINES[role], color=plots.COLORS[role])
    ax.fill_between(t, curves[wrong], where=side, color=plots.COLORS[wrong], alpha=0.35, lw=0)
    ax.axvline(tau, color=plots.COLORS["grey"], lw=1)
    ax.annotate("τ", (tau, 0.37), xytext=(3, 0), textcoords="offset points")
    ax.set(xlabel="score (larger = more OOD →)", title=f'positive="{way}": FPR95 = {exact[way]:.1%}')
axes[0].set_ylabel("density")
axes[0].text(-2.6, 0.3, "ID", color=plots.COLORS["id"])
axes[0].text(5, 0.11, "OOD", color=plots.COLORS["far"])
plt.show()

# %% [markdown]
# Both are correct, and they serve different people. An operator who must not reject valid inputs needs the first number;
# one who must not let OOD inputs pass needs the second. Here some OOD scores lie below all ID scores, so rejecting 95 %
# of OOD means rejecting nearly everything. A table that does not say which of the two it shows cannot be compared
# with any other. This book shows the first.
#
# **AUPR** is the average precision, the mean over recalled images of the share of right alarms. It depends on how many
# images of each kind there are. With OOD as the class to be found and a share $\rho$ of OOD images in the stream,
#
# $$\text{precision} = \frac{\rho\,\mathrm{TPR}}{\rho\,\mathrm{TPR} + (1-\rho)\,\mathrm{FPR}}$$
#
# by Bayes' rule. Benchmarks fix $\rho$ by the sizes of their test sets (MNIST's 70,000 against 9,000 ID images in OpenOOD).
# Your stream has another $\rho$. Section 4.4 returns to that.

# %% [markdown]
# ### 2.3 From a score to a decision
#
# **Where does the threshold go?** Keep $n$ ID images aside, score them, and put $\tau$ among their scores. How many of
# the *next* ID images will be rejected? If the new image is drawn like the $n$, all $n+1$ scores are exchangeable, and
# (without ties) the rank of the new one among them is uniform on $1,\dots,n+1$. So take
#
# $$\tau = S_{(k)}, \qquad k = \lceil (n+1)\,(1-\alpha) \rceil,$$
#
# the $k$-th smallest, and the new score exceeds it with probability $1-\frac{k}{n+1}\le\alpha$. This holds for any distribution
# of the scores. It only needs $k\le n$, and so at least $\frac1\alpha-1$ images. This
# is split conformal prediction {cite:p}`vovk2005`. The naive choice, the $(1-\alpha)$-quantile of the $n$ scores, takes
# $k=\lceil n(1-\alpha)\rceil$ and guarantees slightly less than its nominal level.
#
# The same ranks give each image a number that needs no threshold: its *conformal p-value*
# {cite:p}`bates2023conformal`,
#
# $$\pi(x) = \frac{1 + \#\{i : S_i \ge S(x)\}}{n+1},$$
#
# the share of ID images whose score is at least as large. For ID images it is uniform or stochastically larger, so rejecting at
# $\pi(x)\le\alpha$ rejects at most a share $\alpha$ of them.

# %%
n = 199
calibration = torch.randn(n, generator=generator, dtype=torch.float64).sort().values
k = math.ceil(round((n + 1) * tpr, 9))  # round: 200 * 0.95 is a little more than 190
tau = calibration[k - 1]
new = torch.linspace(-3, 4, 50, dtype=torch.float64)
p = (1 + (calibration >= new[:, None]).sum(1)).double() / (n + 1)

# %%
class Identity(ood.Detector):  # a detector whose score is the feature itself
    needs_fit = False

    def _score(self, features):
        return features.penultimate[:, 0]


def as_features(x):
    return ood.Features(penultimate=x[:, None])


detector = Identity().calibrate(as_features(calibration), tpr=tpr)
assert detector.threshold == tau
assert torch.allclose(detector.p_values(as_features(new)), p)
assert torch.equal(detector.is_ood(as_features(new)), new > tau)

# %% [markdown]
# Note what is guaranteed. The *average* over calibration sets is at most $\alpha$; with a single set the rate can be higher or lower.
# By how much? For continuous scores the true rejection rate behind $\tau=S_{(k)}$ is $1-F(S_{(k)})$, and $F(S_{(k)})$ is the $k$-th smallest of
# $n$ uniform numbers, so the rate follows the law $\mathrm{Beta}(n+1-k,\ k)$. With 199 images and $\alpha=5\,\%$ its
# standard deviation is about 1.5 points. Section 4.4 compares this with real scores. Nothing is guaranteed about OOD
# images: how many of them are detected can only be measured on OOD images.

# %% [markdown]
# ## 3. Training
#
# The detectors of this page read a network that knows nothing of OOD. Train a small one.

# %% tags=["hide-input"]
(f,) = ood.benchmark_features(
    benchmark, seed=seed, widths=widths, device=device,
    epochs=epochs, learning_rate=learning_rate,
    root=data_dir or None, missing=missing,
)  # fmt: skip
bench = f.images  # a bank has none
if not (f.near and f.far):
    raise ValueError(f"{benchmark}: give at least one near and one far set")
bench or f  # which set plays which role, and how many images it has

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The benchmark: one row per data set. Ask of each row whether a human would name a known class.", "name": "fig-protocol-images"}, "image": {"alt": "Rows of small pictures. ID images of the known classes first, then the near-OOD set with unseen classes of the same kind, then the far-OOD sets."}}
if bench:
    plots.benchmark_images(bench)
    plt.show()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training: loss per update and validation accuracy per epoch, of the network that this page looks into.", "name": "fig-protocol-training"}, "image": {"alt": "Left, training loss on a logarithmic axis falling over the updates. Right, validation accuracy rising to its plateau over the epochs."}}
if bench:
    plots.training_curves([f.history])
    plt.show()

# %% tags=["hide-input"]
print(f"test accuracy: {100 * f.accuracy:.1f} %, K = {f.head.in_features}")

# %% [markdown]
# ## 4. Looking inside
#
# ### 4.1 Where do OOD images lie in feature space?
#
# UMAP lays the penultimate features out in the plane {cite:p}`mcinnes2018umap`. It keeps neighbours together; distances
# between clusters, and their sizes, mean little.

# %% tags=["hide-input"]
by_group = {"id": f.test.penultimate}
by_group |= {g: torch.cat([x.penultimate for x in sets.values()]) for g, sets in f.groups().items()}
order = {k: torch.randperm(len(v), generator=generator)[: umap_points // 3] for k, v in by_group.items()}
picked = {k: by_group[k][own] for k, own in order.items()}
points = plots.umap(torch.cat(list(picked.values())), seed)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "UMAP of penultimate features of the network. Near-OOD points lie at and between the clusters of the known classes. Far-OOD points form clusters of their own, although the classifier names a class for each of them.", "name": "fig-protocol-umap"}, "image": {"alt": "Scatter plot of a two-dimensional embedding. Blue ID points gather in islands by class, orange near-OOD triangles lie at their rims and between them, pink far-OOD squares form regions of their own."}}
groups = np.repeat(list(picked), [len(v) for v in picked.values()])
plots.embedding(points, {k: groups == k for k in ("far", "near", "id")})
plt.show()

# %% tags=["hide-input"]
def behind(role, most=250):
    """Places in the embedding of some points of a role, and the image and the set behind each."""
    sets = {"ID test": bench.test} if role == "id" else getattr(bench, role)
    images = torch.cat([torch.stack([image for image, _ in data]) for data in sets.values()])
    names = np.repeat([*sets], [len(data) for data in sets.values()])
    return points[groups == role][:most], images[order[role][:most]], names[order[role][:most]]


if bench and bench.image_shape[-1] <= 32:  # the chart holds the images; larger ones would be too much for a page
    shown = {role: behind(role) for role in picked}
    places, images, names = (np.concatenate(parts) for parts in zip(*shown.values()))
    explorables.show(
        explorables.pictures_of_an_embedding(
            places, torch.as_tensor(images), np.repeat([*shown], [len(own[0]) for own in shown.values()]), names
        ),
        caption="Part of the same embedding with the images behind its points. Rest the pointer on a point, or move the slider: "
        "which digits does an OOD image lie beside?",
        alt_text="Some points of the embedding in the figure before, coloured by their role. "
        "Beside it the image behind one point and the name of its set; a slider goes through the points.",
    )

# %% [markdown]
# ### 4.2 Two questions at once
#
# The toy had two energies with opposite blind spots. Their counterparts on a trained network are the maximum softmax
# probability, and the distance to the nearest class under one shared covariance (Mahalanobis). Plot one against the
# other, a point per image. The lines are the thresholds that accept 95 % of held-out ID images.

# %%
pair = {"MSP": ood.MSP(), "Mahalanobis": ood.Mahalanobis()}
for detector in pair.values():
    detector.fit(f.train).calibrate(f.val, tpr=tpr)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Each image by two scores; on both axes larger = more OOD. MSP rejects the images to the right of the vertical line, Mahalanobis those above the horizontal one. Only Mahalanobis rejects the images at the top left.", "name": "fig-protocol-plane"}, "image": {"alt": "Two scatter plots of Mahalanobis distance against missing confidence on logarithmic axes, with a threshold on each axis. Blue ID points fill the lower left. Left panel, near-OOD: orange triangles spread to the right and a little upwards. Right panel, far-OOD: pink squares lie high above the horizontal threshold at all degrees of confidence."}}
def place(x):  # the missing confidence 1 - MSP, and the distance
    return (1 + pair["MSP"](x)).clamp_min(1e-7), pair["Mahalanobis"](x).sqrt()


figure, axes = plt.subplots(1, 2, figsize=(plots.FULL, 3.2), sharex=True, sharey=True)
for ax, (group, sets) in zip(axes, f.groups().items()):
    x = torch.cat([z.penultimate for z in sets.values()]), torch.cat([z.logits for z in sets.values()])
    chosen = torch.randperm(len(x[0]), generator=generator)[:500]
    for role, z in ((group, ood.Features(x[0][chosen], x[1][chosen])), ("id", f.test[torch.arange(min(500, len(f.test)))])):
        ax.plot(*place(z), plots.MARKERS[role], color=plots.COLORS[role], ms=3.5, alpha=0.6, mew=0, label=plots.NAMES[role])
    ax.axvline(1 + pair["MSP"].threshold.item(), color=plots.COLORS["grey"], lw=1)
    ax.axhline(pair["Mahalanobis"].threshold.item() ** 0.5, color=plots.COLORS["grey"], lw=1)
    ax.set(xscale="log", yscale="log", xlabel="1 − maximum softmax probability")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=2, handletextpad=0.1)
axes[0].set_ylabel("Mahalanobis distance")
plt.show()

# %% tags=["hide-input"]
def rejected(detector, x):
    return 100 * detector.is_ood(x).double().mean().item()


rows = {n: {k: rejected(d, x) for k, x in {"ID test": f.test, **f.ood_sets()}.items()} for n, d in pair.items()}
display(pd.DataFrame(rows).T.style.format("{:.0f}").set_caption("Share of images rejected, in %"))

# %% [markdown]
# Look at the right half of the picture. Far-OOD images high up and to the left are those about which the softmax is as certain as it
# ever is, although no training feature is near: the far cloud of the toy. The table counts how many images each detector rejects.

# %% [markdown]
# ### 4.3 Unusual images and wrong answers
#
# **Should a blurred digit raise the alarm?** Only if the network no longer reads it. So corrupt the ID test images step
# by step, and watch two curves: the share that the network misclassifies, and the share that is rejected.

# %% tags=["hide-input"]
digits = {"seed": seed, "device": device, "epochs": epochs}  # a bank has no pixels
P = f if bench else ood.benchmark_features("digits", **digits)[0]
pair_P = {"MSP": ood.MSP(), "Mahalanobis": ood.Mahalanobis()}
for detector in pair_P.values():
    detector.fit(P.train).calibrate(P.val, tpr=tpr)
network = P.network.cpu()
some = P.images.test.subset(torch.arange(min(500, len(P.images.test))))

# %% tags=["hide-input"]
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

fresh = torch.Generator().manual_seed(seed)
corruptions = {
    "blur: σ in pixels": lambda x, a: TF.gaussian_blur(x, 7, a) if a else x,
    "rotation: degrees": lambda x, a: TF.rotate(x, a, InterpolationMode.BILINEAR),
    "noise: σ, white = 1": lambda x, a: (x + a * torch.randn(x.shape, generator=fresh)).clamp(0, 1),
}
amounts = (0, 0.3, 0.5, 0.7, 1, 2), (0, 10, 20, 30, 45, 60, 90), (0, 0.1, 0.2, 0.4)


@torch.no_grad()
def respond(images):
    seen = ood.Features(*network.represent(images)[:2])
    wrong = (seen.logits.argmax(1) != some.labels).double().mean().item()
    alarms = {name: rejected(detector, seen) for name, detector in pair_P.items()}
    return {"wrong answers": 100 * wrong} | alarms


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Covariate shift on purpose: the ID test images, corrupted more and more. Black: share of wrong answers. Brown and sand: share rejected by MSP and Mahalanobis. An alarm that rings exactly for wrong answers would follow the black line.", "name": "fig-protocol-shift"}, "image": {"alt": "Three panels, blur, rotation and noise, with the amount on the horizontal axis. The black error curve rises late, the sand-coloured Mahalanobis curve rises early and steeply, the brown MSP curve lies nearer to the black one."}}
figure, axes = plt.subplots(1, 3, figsize=(plots.FULL, 2.6), sharey=True)
looks = dict(zip(("wrong answers", "MSP", "Mahalanobis"), plots.SERIES[::2]))
responses = {}
for ax, (name, corrupt), steps in zip(axes, corruptions.items(), amounts):
    responses[name] = pd.DataFrame({a: respond(corrupt(some.images, a)) for a in steps}).T
    for curve, style in looks.items():
        ax.plot(responses[name][curve], ms=4, label=curve, **style)
    ax.set(xlabel=name, ylim=(-3, 103))
axes[0].set_ylabel("share of images (%)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
plt.show()

# %% tags=["hide-input"]
def readable(t):
    """The last step up to which at most two more images in a hundred are misread than without corruption."""
    worse = (t["wrong answers"] - t["wrong answers"].iloc[0]).to_numpy() > 2
    return t.iloc[worse.argmax() - 1 if worse.any() else -1]


def report(row):
    return f"{row['wrong answers']:.0f} % wrong, MSP rejects {row['MSP']:.0f} %, Mahalanobis {row['Mahalanobis']:.0f} %"


display(Markdown("\n".join(
    f"* **{n.split(':')[0]}**: still read at {readable(t).name:g} ({report(readable(t))}); at {t.index[-1]:g}, {report(t.iloc[-1])}; "
    f"MSP rejects most at {t['MSP'].idxmax():g}, {t['MSP'].max():.0f} %." for n, t in responses.items()
)))

# %% [markdown]
# Read the three curves of each panel together. Where the black curve is still low and a detector already rejects, it rejects images
# that the network reads correctly. Where a detector's curve falls again while the black curve stays high, more corruption makes it
# *surer* of wrong answers: the blind spot of the softmax on the toy.
#
# Which behaviour is right depends on the application: one operator wants an alarm for every new camera, another only for wrong answers. A
# benchmark that counts corrupted digits as OOD favours the first, one that counts them as ID (full-spectrum) the second. Keep this in mind when you
# read a far column.

# %% [markdown]
# ### 4.4 The threshold at work
#
# Section 2.3 derived a law for the rejection rate. The pooled images below are exchangeable because they are split at
# random, so the law must hold here up to ties; what the picture adds is how wide it is for real scores. Pool the
# validation and test images of the known classes. Split them at random, with as many images for calibration as the
# validation set has, and count the share of the other images that is rejected. Repeat this many times.

# %% tags=["hide-input"]
pooled = torch.cat([pair["Mahalanobis"](x) for x in (f.val, f.test)]).double()
n, m = len(f.val), len(f.test)
k = ood.conformal_rank(n, tpr)
orders = [torch.randperm(n + m, generator=generator) for _ in range(splits)]
shuffled = pooled[torch.stack(orders)]  # (splits, n + m)
tau = shuffled[:, :n].sort(1).values[:, k - 1 : k]  # one threshold per split
rates = (shuffled[:, n:] > tau).double().mean(1)
law = stats.betabinom(m, n + 1 - k, k)  # Beta: the rate; binomial: the m images left

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rejection rate of ID images over random splits (bars) and the law that holds for any detector and any data (line). The mean keeps the promise; a single calibration set may miss it.", "name": "fig-protocol-beta"}, "image": {"alt": "Histogram of rejection rates between 0 and about 12 percent with a peak near 5 percent, followed closely by the curve of the beta-binomial law; a vertical line marks the promised rate."}}
figure, ax = plt.subplots(figsize=(plots.HALF * 1.5, 2.6))
counts = torch.bincount((rates * m).round().long(), minlength=m + 1).numpy() / splits
shown = np.arange(int(law.ppf(0.9995)) + 2)
ax.bar(100 * shown / m, counts[shown], width=85 / m, color=plots.COLORS["id"], alpha=0.5)
ax.plot(100 * shown / m, law.pmf(shown), ".-", color="black", lw=1, ms=3)
ax.axvline(100 * (1 - tpr), color=plots.COLORS["grey"], lw=1, ls=":")
ax.set(xlabel="ID images rejected (%)", ylabel="share of splits")
plt.show()

# %% tags=["hide-input"]
low, high = (100 * law.ppf(q) / m for q in (0.05, 0.95))
display(Markdown(
    f"Guaranteed: at most {100 * (1 - tpr):.3g} %. Mean over {splits} splits: **{100 * rates.mean():.2f} %**; the law says "
    f"{100 * law.mean() / m:.2f} %. But nine in ten splits lie between {low:.1f} and {high:.1f} %: with {n} calibration "
    "images no threshold is more exact than that, whatever the detector. Ask for the size of the calibration set before you trust a threshold."
))  # fmt: skip

# %% [markdown]
# **What is an alarm worth?** By the formula of section 2.2 that depends on how rare OOD images are.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of alarms that are right, against the share of OOD images in the stream, at the calibrated threshold. When OOD images are rare, most alarms are false, even for a detector that finds every OOD image.", "name": "fig-protocol-rate"}, "image": {"alt": "Curves of precision against prevalence on a logarithmic axis from one in ten thousand to one half. All curves start near zero and rise to near one; those for far-OOD with Mahalanobis are highest."}}
figure, ax = plt.subplots(figsize=(plots.HALF * 1.5, 2.8))
rho = np.logspace(-4, np.log10(0.5), 100)
for name, detector in pair.items():
    fpr = rejected(detector, f.test) / 100
    for group, sets in f.groups().items():
        hit = np.mean([rejected(detector, x) for x in sets.values()]) / 100
        style = {"color": plots.COLORS[group], "ls": "-" if name == "Mahalanobis" else plots.LINES[group]}
        ax.plot(rho, rho * hit / (rho * hit + (1 - rho) * fpr), label=f"{name}, {group}: {hit:.0%} caught", **style)
ax.set(xscale="log", xlabel="share of OOD images in the stream", ylabel="share of alarms that are right", ylim=(0, 1))
ax.legend(fontsize=9)
plt.show()

# %% [markdown]
# With 5 % false alarms and one OOD image in a thousand, at least 49 of 50 alarms are false, whatever the AUROC. The remedy is a
# stricter $\alpha$, and that needs more calibration images: at least $1/\alpha-1$ of them.

# %% [markdown]
# ## 5. Does it work? Real networks
#
# **Do the blind spots of the toy exist outside it?** Four networks trained on photographs come with the library, each as a {term}`bank` of its
# features ([the page on photographs](60_cifar10) says where they come from). Judge the same two detectors on each, and count the errors in both
# conventions of section 2.2.

# %% tags=["hide-input"]
def counted(x):
    """AUROC and both numbers called FPR95, in %, of the two detectors: means over the sets of each group."""
    found = {}
    for name, detector in {"MSP": ood.MSP(), "Mahalanobis": ood.Mahalanobis()}.items():
        own = detector.fit(x.train)(x.test)
        for group, sets in x.groups().items():
            scores = [detector(y) for y in sets.values()]
            ways = {w: [ood.evaluate(own, s, positive=w) for s in scores] for w in ("id", "ood")}
            if scores:
                found[group, name] = {
                    "AUROC": np.mean([m.auroc for m in ways["id"]]),
                    "FPR95, ID recalled": np.mean([m.fpr95 for m in ways["id"]]),
                    "FPR95, OOD recalled": np.mean([m.fpr95 for m in ways["ood"]]),
                }
    return 100 * pd.DataFrame(found).T


rows = {name: counted(ood.benchmark_features(name)[0]) for name in benchmarks} | {f"{benchmark}, this page": counted(f)}
real = pd.concat(rows, names=["network", "group", "detector"])
wide = real.unstack(["group", "detector"]).swaplevel(0, 1, axis=1)
groups = [g for g in ("near", "far") if g in wide]
for group in groups:
    caption = f"{plots.NAMES[group]}: mean over the sets in %. FPR95 is lower for the better detector, AUROC higher"
    display(wide[group].style.format("{:.1f}").set_caption(caption))

# %% tags=["hide-input"]
def ahead(group):
    """On how many networks MSP has the larger AUROC, in words."""
    gap = (wide[group]["AUROC"]["MSP"] - wide[group]["AUROC"]["Mahalanobis"]).dropna()
    return f"MSP has the higher mean AUROC on {(gap > 0).sum()} of {len(gap)} network{'s' * (len(gap) != 1)}, by {gap.min():+z.1f} to {gap.max():+z.1f} points"


apart = (real["FPR95, OOD recalled"] - real["FPR95, ID recalled"]).abs()
network, group, detector = apart.idxmax()
both = real.loc[apart.idxmax()]
display(Markdown(
    "\n".join(f"* **{g}-OOD**: {ahead(g)}." for g in groups)
    + f"\n* **FPR95**: in the mean the two conventions differ by {apart.mean():.1f} points. They differ most for {detector} on the {group} sets of {network}: "
    f"{both['FPR95, ID recalled']:.1f} % of OOD images slip through when ID is recalled, and {both['FPR95, OOD recalled']:.1f} % of ID images "
    "are rejected when OOD is."
))  # fmt: skip

# %% [markdown]
# Neither question is the better one by itself: compare its columns from network to network. Which of them suits a network has to be measured on
# that network. [The classical detectors](07_classical) are seventeen such questions.

# %% [markdown]
# ## 6. When it fails
#
# The numbers of this page have limits.
#
# * **AUROC averages over thresholds that nobody would use.** A detector that is better at 5 % false alarms and worse at 50 % can have
#   the lower AUROC. Look at the operating point you need.
# * **A mean over sets hides the set that matters.** Five easy far sets bury one hard one. This book shows the sets beside the
#   mean.
# * **Low-level cues.** Far sets differ from ID in resolution, compression and frame. Our photographs are averages of many grey pixels, the
#   digits averages of 4 × 4 black or white ones: a detector may see the resampling and never the content.
# * **Overlap.** A "far" image may show a known class. OpenOOD removed such classes from Tiny-ImageNet and Places365 by hand; where its
#   lists are not at hand, they are still in.
# * **Exchangeability is an assumption.** A threshold is valid for images drawn like the calibration images. After a change of camera the
#   promise of section 2.3 no longer holds: section 4.3 shows how many known images are rejected once they are corrupted.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. A detector reaches an AUROC of 0.9. What does this number say?**
#
# <details><summary>A. It decides rightly about 90 % of the images.</summary>
#
# **No.** A decision needs a threshold, and AUROC has none. Put the threshold badly and the same detector decides
# wrongly about most images.
#
# </details>
#
# <details><summary>B. A random OOD image has the larger score than a random ID image in 90 % of the pairs.</summary>
#
# **Right.** Section 2.1 counts exactly these pairs, ties one half. It speaks of order only, so any increasing
# function of the score has the same AUROC.
#
# </details>
#
# <details><summary>C. It catches 90 % of the OOD images at 5 % false alarms.</summary>
#
# **No.** That is one point of the ROC curve. AUROC averages over all thresholds, also those that nobody would use,
# so it fixes no single point.
#
# </details>
#
# **2. Two papers report the FPR95 of the same scores on the same images, and the numbers differ widely. What is the
# first thing to ask?**
#
# <details><summary>A. Whether one of them made a mistake.</summary>
#
# **No.** Both may be right. The two thresholds of section 2.2 answer different people, and on the same scores the
# numbers can lie far apart.
#
# </details>
#
# <details><summary>B. Whether the test sets were large enough.</summary>
#
# **No.** The same images were used, so the sampling error is the same. The gap of section 2.2 stays even with the
# exact laws.
#
# </details>
#
# <details><summary>C. Whether they turned the sign of the score round.</summary>
#
# **No.** A wrong sign would mirror the detector and show in AUROC too. The usual reason needs no error at all.
#
# </details>
#
# <details><summary>D. Which class was to be recalled at 95 %, ID or OOD.</summary>
#
# **Right.** Accept 95 % of ID and count the OOD that slips through, or reject 95 % of OOD and count the ID that
# goes with them: one name, two numbers.
#
# </details>
#
# **3. You calibrate a threshold on held-out ID images, for at most 5 % false alarms. Which promise holds?**
#
# <details><summary>A. At least 95 % of OOD images will be rejected.</summary>
#
# **No.** No OOD image took part. How many of them are caught depends on where their scores lie, and only OOD images
# can tell.
#
# </details>
#
# <details><summary>B. Exactly 5 % of the next ID images will be rejected, whichever images you calibrated on.</summary>
#
# **No.** The promise holds on average over calibration sets. With a single set the rate can be higher or lower; it follows a Beta
# distribution that narrows as the set grows.
#
# </details>
#
# <details><summary>C. On average over calibration sets, at most 5 % of ID images drawn like them are rejected.</summary>
#
# **Right.** The rank of a new score among exchangeable ones is uniform, and that is all it takes. No law of the
# scores is assumed.
#
# </details>
#
# <details><summary>D. At most 5 % of ID images are rejected, also after the camera was replaced.</summary>
#
# **No.** A new camera draws other images, so the scores are no longer exchangeable. The promise ends there.
#
# </details>
#
# **4. A detector catches 90 % of the OOD images at 5 % false alarms. One image in a thousand is OOD. The alarm rings. What is behind it?**
#
# <details><summary>A. Most likely an OOD image: nine in ten of them are caught.</summary>
#
# **No.** That is the share of OOD images that ring, not the share of ringing images that are OOD. The ID images are so many that
# their few false alarms outnumber all right ones.
#
# </details>
#
# <details><summary>B. Most likely an ID image.</summary>
#
# **Right.** Of a million images, 900 alarms are right and about 50,000 are false. By the formula of section 2.2, fewer than one alarm in fifty is
# right.
#
# </details>
#
# <details><summary>C. Nobody can say without the AUROC.</summary>
#
# **No.** The threshold is given with both of its rates, and with the prevalence that is all it takes. AUROC would add the thresholds that
# are not in use.
#
# </details>
#
# **5. A score comes from the exact posterior of the known classes. Can it still miss an OOD image far outside?**
#
# <details><summary>A. No, an exact posterior is the best any detector can do.</summary>
#
# **No.** It is the best answer to *which of the classes?* That is another question than *have I seen this place?*
#
# </details>
#
# <details><summary>B. Yes: behind a class the posterior only grows more certain.</summary>
#
# **Right.** The toy of section 1 has exact energies and an AUROC near 0. The blind spot belongs to the question,
# not to the training.
#
# </details>
#
# <details><summary>C. Only if the network was trained too short.</summary>
#
# **No.** Nothing is trained on the toy. More training makes a posterior sharper and does not tell it where the data
# end.
#
# </details>

# %% [markdown]
# ## 7. Exercises
#
# Each has a hint, and a check that tells you whether you are right, and what is wrong if you are not.

# %% [markdown]
# ```{exercise-start} Predict: flip the sign
# :label: ex-protocol-mirror
# ```
# A detector has AUROC 0.2 on some OOD set. You may flip the sign of its scores. Which AUROC do you get, and why may you not
# report it? *Hint: what happens to each pair?*

# %% tags=["exercise"]
flipped = ...

# %% tags=["check", "hide-input"]
def of_five_pairs(sign):
    """AUROC of scores that win one pair in five, times a sign."""
    return auroc(sign * torch.arange(5.0), sign * torch.tensor([0.5]))[0]


check_flipped = ood.Check(
    (lambda a: 0 <= a <= 1, "an AUROC is a share of pairs, between 0 and 1"),
    (lambda a: abs(a - of_five_pairs(1)) > 1e-6, "that is the AUROC before the flip"),
    (lambda a: abs(a - of_five_pairs(-1)) < 1e-6, "each pair that was lost is won"),
)
check_flipped(flipped)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-protocol-mirror
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the sign of the area is flipped, instead of the order of the pairs.
flipped = -0.2
check_flipped(flipped)

# %% tags=["solution"]
flipped = 1 - 0.2
check_flipped(flipped)

# %% [markdown]
# Every pair changes sides, so it becomes 0.8. You learned the sign from the OOD test set; on another set the flip will hurt.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: a promise of 0.1 %
# :label: ex-protocol-size
# ```
# How many calibration images do you need at least to promise a rejection rate of 0.1 %? Then check that `calibrate`
# refuses one fewer. *Hint: $k\le n$ in section 2.3.*

# %% tags=["exercise"]
least = ...

# %% tags=["check", "hide-input"]
def promises(n):
    """Whether `calibrate` accepts so many images; ten thousand stand for more."""
    try:
        return bool(Identity().calibrate(as_features(torch.randn(min(n, 10_000))), tpr=0.999))
    except ValueError:
        return False


check_least = ood.Check(
    (lambda n: n == int(n), "a whole number of images"),
    (lambda n: promises(int(n)), "with so few, k = ceil((n + 1)(1 − α)) is larger than n"),
    (lambda n: not promises(int(n) - 1), "fewer will do: the threshold may be the largest of them"),
)
check_least(least)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-protocol-size
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: one image in a thousand needs a thousand images.
least = round(1 / 0.001)
check_least(least)

# %% tags=["solution"]
least = round(1 / 0.001) - 1

Identity().calibrate(as_features(torch.randn(least)), tpr=0.999)
try:
    Identity().calibrate(as_features(torch.randn(least - 1)), tpr=0.999)
    raise AssertionError("998 images cannot promise 0.1 %")
except ValueError as error:
    print(error)
check_least(least)

# %% [markdown]
# $\lceil (n+1)\cdot0.999\rceil\le n$ first holds at $n=999$: then $\tau$ is the largest calibration score.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Change one parameter: rare OOD images
# :label: ex-protocol-pi
# ```
# One image in a hundred of your stream is far-OOD, and `Mahalanobis` accepts 95 % of ID. Find a `tpr` for which at least half
# of its alarms are right on the far sets of this network (or as many as the calibration images allow), and store it.
# *Hint: precision, section 2.2.*

# %% tags=["exercise"]
strict_tpr = ...

# %% tags=["check", "hide-input"]
def alarms_right(tpr):
    judge = ood.Mahalanobis().fit(f.train).calibrate(f.val, tpr=tpr)
    hit = np.mean([rejected(judge, x) for x in f.far.values()]) / 100
    fpr = max(rejected(judge, f.test) / 100, 1 / len(f.test))  # none seen is not none
    return 0.01 * hit / (0.01 * hit + 0.99 * fpr)


def goal():
    """Half of the alarms, or as many as with the strictest threshold of so many calibration images."""
    return min(0.5, alarms_right(1 - 1 / (len(f.val) + 1)))


check_tpr = ood.Check(
    (lambda t: 0 < t < 1, "a share of ID images, between 0 and 1"),
    (lambda t: t > tpr, "at 95 % the false alarms outnumber the right ones"),
    (lambda t: alarms_right(t) >= goal(), "stricter: false alarms must get below 1 in 100"),
)
check_tpr(strict_tpr)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-protocol-pi
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: 95 % of ID pass, so 95 % of the alarms are right. Ninety-nine images in a hundred are ID.
strict_tpr = 0.95
check_tpr(strict_tpr)

# %% tags=["solution"]
strict_tpr = 1 - 1 / (len(f.val) + 1)  # what so many calibration images can promise
print(f"right alarms: {alarms_right(strict_tpr):.0%}; at {tpr:.0%} {alarms_right(tpr):.0%}")
check_tpr(strict_tpr)

# %% [markdown]
# This is the strictest threshold that so few calibration images allow. It works because far-OOD lies so far out that a strict
# threshold loses hardly any of it; near-OOD would not forgive it.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: steps or trapezoids
# :label: ex-protocol-trapezoid
# ```
# OpenOOD's AUPR is the area under the straight lines that join the points of the precision-recall curve; ours is average precision, a sum of
# steps. Compute both for `MSP` on the first near set with OOD as the class to be found, and store the difference (trapezoid minus
# steps). *Hint: `sklearn.metrics.precision_recall_curve` and `auc`.*

# %% tags=["exercise"]
gap = ...
own, strange = pair["MSP"](f.test), pair["MSP"](next(iter(f.near.values())))
steps = ood.evaluate(own, strange).aupr_out

# %% tags=["check", "hide-input"]
import sklearn.metrics


def trapezoid_minus_steps():
    found = torch.cat([own, strange]).double(), np.repeat([0, 1], [len(own), len(strange)])
    precision, recall, _ = sklearn.metrics.precision_recall_curve(found[1], found[0])
    return sklearn.metrics.auc(recall, precision) - steps


check_gap = ood.Check(
    (lambda a: a != 0, "exactly zero: did you compare one area with itself?"),
    (lambda a: abs(a + trapezoid_minus_steps()) > 1e-9, "the sign: trapezoid minus steps"),
    (lambda a: abs(a - trapezoid_minus_steps()) < 1e-6, "straight lines between all points, with OOD as the class"),
)
check_gap(gap)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-protocol-trapezoid
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the area itself in place of the difference.
gap = steps
check_gap(gap)

# %% tags=["solution"]
from sklearn.metrics import auc, precision_recall_curve

is_ood = np.r_[np.zeros(len(own)), np.ones(len(strange))]
precision, recall, _ = precision_recall_curve(is_ood, torch.cat([own, strange]))
gap = auc(recall, precision) - steps

print(f"steps {steps:.4f}, trapezoid {steps + gap:.4f}")
check_gap(gap)

# %% [markdown]
# Straight lines between points of a precision-recall curve promise values that no threshold reaches {cite:p}`boyd2013aupr`; the difference is
# small unless the curve has few points.
# ```{solution-end}
# ```

# %% [markdown]
# ## 8. Take away
#
# * A detector asks a question. *Which class?* is blind behind the classes, *seen before?* is blind in the gaps, and
#   rejects strongly corrupted pictures, even some that the network still reads.
# * AUROC is a probability over pairs. FPR95 is two numbers. AUPR belongs to a prevalence.
# * A threshold is a rank among calibration scores; its promise needs no law, only exchangeability and enough images.
# * No number stands alone: it belongs to its OOD images, to its network, and to the error that was fixed. [The next page](06_certainty) asks
#   how sure it is.
#
# **In the library:** {py:func}`~ood_lib.evaluation.metrics.evaluate`, {py:meth}`~ood_lib.detectors.detector.Detector.calibrate`.
#
# **Read on:** the first baseline {cite:p}`hendrycks2017msp`; the protocol {cite:p}`zhang2023openood`; conformal p-values for outliers
# {cite:p}`bates2023conformal`.

# %% tags=["hide-input"]
# What other pages show of this run.
if results:
    ood.run_benchmark(pair, f, seed=seed, refit=False).to_csv(Path(results) / "benchmark.csv", index=False)
    real.to_csv(Path(results) / "networks.csv")

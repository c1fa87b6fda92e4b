# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The classical detectors
#
# Seventeen published detectors read the same trained network: each is one short formula on its {term}`logits <logit>`, its gradients or its
# features, and each has its own blind spot.

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

chance = torch.Generator().manual_seed(0)
centres = torch.tensor([[6.0, 2.0], [2.0, 6.0], [6.0, 6.0]], dtype=torch.float64)
plane_head = torch.nn.Linear(2, 3)
plane_head.weight.data, plane_head.bias.data = centres.clone(), -centres.square().sum(1) / 2


def features_at(z, labels=None):
    """Points of the plane as the features of a network whose softmax is the posterior of the three classes."""
    return ood.Features(penultimate=z, logits=plane_head(z).detach(), labels=labels)


def known(each=400):
    labels = torch.arange(3).repeat_interleave(each)
    z = centres[labels] + torch.randn(3 * each, 2, generator=chance, dtype=torch.float64)
    return features_at(z.clamp_min(0.01), labels)  # features after a ReLU are not negative

# %% tags=["remove-input"]
toy_train, toy_val, toy_test = known(), known(100), known(100)
spots = {"between": [(4.0, 4.0), 0.4], "behind": [(10.5, 1.0), 0.5], "short": [(0.8, 0.8), 0.3]}
clouds = {k: torch.tensor(c, dtype=torch.float64) + w * torch.randn(200, 2, generator=chance, dtype=torch.float64) for k, (c, w) in spots.items()}
clouds = {k: features_at(z.clamp_min(0.01)) for k, z in clouds.items()}
in_plane = {
    "MSP": ood.MSP(), "MaxLogit": ood.MaxLogit(), "Energy": ood.Energy(), "GEN": ood.GEN(), "KLMatching": ood.KLMatching(),
    "ReAct": ood.ReAct(plane_head), "ASH": ood.ASH(plane_head, 0.5), "SCALE": ood.SCALE(plane_head, 0.5),  # one of two is kept
    "KNN": ood.KNN(50), "NNGuide": ood.NNGuide(10, 0.1), "SHE": ood.SHE(), "FDBD": ood.FDBD(plane_head),
    "Mahalanobis": ood.Mahalanobis(), "RMDS": ood.RMDS(), "ViM": ood.ViM(plane_head), "GMM": ood.GMM(),
}  # fmt: skip
for judge in in_plane.values():
    judge.fit(toy_val if judge.fits == "val" else toy_train)


def map_of(judge, steps=36, reach=12.0):
    """The share of ID points with a smaller score, on a grid over the plane."""
    side = (torch.arange(steps, dtype=torch.float64) + 0.5) * reach / steps
    z = torch.cartesian_prod(side, side)
    return z, torch.searchsorted(judge(toy_test).sort().values, judge(features_at(z))) / len(toy_test)


found_in_plane = {name: {k: auroc(j(toy_test), j(x))[0] for k, x in clouds.items()} for name, j in in_plane.items()}

# %% tags=["remove-input"]
roles = [("id", toy_test, 6), ("near", clouds["between"], 5), *(("far", clouds[k], 5) for k in ("behind", "short"))]
shares = {name: map_of(judge)[1] for name, judge in in_plane.items()}
points = [(role, x.penultimate[::step]) for role, x, step in roles]
explorables.show(
    explorables.scores_in_a_plane(map_of(in_plane["MSP"])[0], shares, points, found_in_plane),
    caption="A network with two features and three known classes. Dark: larger scores, more OOD. Choose a detector: which of the three OOD clouds does it "
    "see, the one between the classes, the one behind a class, or the one with short features?",
    alt_text="A map of the plane of two features. Three blue ID clouds lie at the right, the top and the upper right, an orange near cloud between them, pink far "
    "clouds behind the right class and near the origin. The ground is shaded by the score of one detector; a menu chooses the detector.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of {cite:t}`zhang2023openood`, whose protocol the field has settled on: judged side by side, no detector wins
# everywhere.
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
# **It takes** 15 minutes to read, without exercises and what is folded, and 2 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use** two or three detectors of different families as candidates, and choose between them on validation data of your own network.
#
# **Do not** take over the winner of a table that was made on another network.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** the one idea of each of seventeen detectors, and its formula beside a line of code. You will see which of them are nearly the same detector,
# what each family cannot see, and what their knobs do.
#
# **You need** AUROC and the two blind spots from [the first page](05_protocol); [intervals](06_certainty) to read the tables.
# ```
#
# These are the parameters of the page: `ood-book run classical -p seeds 3`.

# %% tags=["parameters", "hide-input"]
benchmark: str = "digits"  # cifar10, imagenet, folder:PATH; a bank: cifar10-densenet
data_dir: str = ""  # where local data lie; empty: the cache folder
missing: str = "raise"  # an OOD set that is not there: raise or skip
seeds: int = 5  # networks to train, each from its own seed
seed: int = 0  # the first of these seeds
device: str = "auto"  # where to train: auto, cpu, cuda
epochs: int = 30  # of training
learning_rate: float = 0.05  # peak of the learning-rate cycle
widths: list = [32, 64]  # feature maps per stage; the last is the feature width K
results: str = ""  # folder for what other pages show; empty: do not write

# %% tags=["hide-input"]
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from ood_lib.detectors.classical.recipes import FAMILIES
from ood_lib.evaluation import metrics, plots

torch.manual_seed(seed)
plots.theme()

# %% [markdown]
# ## 1. The idea on a toy
#
# **What do sixteen detectors see in the same plane?** The chart above has two features and three known classes, and a head whose
# softmax is exactly the posterior of the classes. Nothing is trained. One OOD cloud lies between the classes, one behind a class, and one has short
# features, near the origin. Here are all detectors that read features or logits, side by side. (ODIN needs images.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The plane as each detector sees it. Dark: a larger score than all ID points. Blue circles are ID points, orange triangles the cloud between the classes, pink squares the two far clouds. Below each name: AUROC in % of the three clouds: between the classes, behind one, short.", "name": "fig-classical-plane"}, "image": {"alt": "Sixteen small maps of the same plane with the same clouds. Logit scores are dark only between the classes and towards the origin, KNN and NNGuide in wedges by direction, Mahalanobis, RMDS and the Gaussian mixture everywhere away from the classes."}}
figure, axes = plt.subplots(4, 4, figsize=(plots.FULL, 8.4), sharex=True, sharey=True)
points = {"id": toy_test.penultimate[::6], "near": clouds["between"].penultimate[::8]}
points["far"] = torch.cat([clouds[k].penultimate[::8] for k in ("behind", "short")])
for ax, (name, judge) in zip(axes.flat, in_plane.items()):
    ax.imshow(map_of(judge, 60)[1].reshape(60, 60).T, extent=(0, 12, 0, 12), origin="lower", cmap="Greys", alpha=0.7, vmin=0, vmax=1)
    for role, z in points.items():
        ax.plot(*z.T, plots.MARKERS[role], color=plots.COLORS[role], ms=2.5, mew=0.2, mec="white")
    ax.set_title(f"{name}\n" + ", ".join(f"{100 * a:.0f}" for a in found_in_plane[name].values()), fontsize=9)
    ax.grid(visible=False)
figure.supxlabel("feature 1", fontsize=10)
figure.supylabel("feature 2", fontsize=10)
plt.show()

# %% [markdown]
# Look for the families. Scores on logits are dark between the classes and bright behind them. KNN draws wedges, because the length of a
# feature does not count: it cannot tell the short features from those of the class in the same direction. Gaussian densities are dark wherever there are no
# data. They have it easy here, with two dimensions and classes that *are* Gaussian; real features are neither.
#
# ## 2. Derivation: one idea a family
#
# The formulas in code, checked against the library on the points of the plane. Larger = more OOD, so what is large for known images gets
# a minus.
#
# ### 2.1 Logits: how decided is the network?
#
# With $p$ the softmax of the logits $\ell$, five scores differ in what they keep of them.
#
# * **MSP** keeps the largest probability, $-\max_j p_j$ {cite:p}`hendrycks2017msp`.
# * **MaxLogit** keeps the largest logit, $-\max_j\ell_j$ {cite:p}`hendrycks2022maxlogit`.
# * **Energy** is its smooth version, $-\log\sum_j e^{\ell_j}$ {cite:p}`liu2020energy`. Because $\log\max_j p_j=\max_j\ell_j-\log\sum_j e^{\ell_j}$, a constant added to all
#   logits cancels in MSP. MaxLogit and Energy keep it.
# * **GEN** is a generalised entropy, $\sum_j p_j^\gamma(1-p_j)^\gamma$ {cite:p}`liu2023gen`. A small $\gamma$ makes small probabilities count.
# * **KL-Matching** compares $p$ with the mean softmax $t_k$ of each predicted class, $\min_k\mathrm{KL}(p\,\Vert\,t_k)$ {cite:p}`hendrycks2022maxlogit`.

# %%
logits, z = toy_test.logits, toy_test.penultimate
p = logits.softmax(1)
assert torch.allclose(-p.amax(1), ood.msp(logits))
assert torch.allclose(-logits.amax(1), ood.max_logit(logits))
assert torch.allclose(-logits.exp().sum(1).log(), ood.energy(logits))
assert torch.allclose((p * (1 - p)).pow(0.5).sum(1), ood.gen(logits, gamma=0.5), atol=1e-4)

held_out = toy_val.logits.softmax(1)
templates = torch.stack([held_out[held_out.argmax(1) == k].mean(0) for k in range(3)])
divergence = (p[:, None] * (p[:, None] / templates).log()).nansum(2)  # 0 log 0 = 0
assert torch.allclose(divergence.amin(1), in_plane["KLMatching"](toy_test), atol=1e-4)

# %% [markdown]
# ### 2.2 Gradients: can the image be pushed?
#
# **ODIN** {cite:p}`liang2018odin` moves the image a small step towards the class that the network names,
# $x'=x-\varepsilon\,\mathrm{sign}\,\nabla_x(-\log p_{\hat y}(x;T))$, and takes the MSP of $\ell(x')/T$ at a high temperature, $T=1000$. Known images gain more
# from the step. At such a temperature the softmax is nearly linear, $p_j\approx\frac1C\bigl(1+\frac{\ell_j-\bar\ell}{T}\bigr)$: without the step, ODIN ranks
# like the largest logit minus the mean logit $\bar\ell$.

# %%
high = ood.msp(logits, 1000.0)  # ODIN without its step
margin = logits.amax(1) - logits.mean(1)
assert torch.allclose(-3 * high - 1, margin / 1000, atol=2e-3)

# %% [markdown]
# ### 2.3 Reshaped features: can the largest activations be trusted?
#
# Three detectors change the feature $z$, apply the head, and take the energy of the logits. With $S_1$ the sum of all entries and $S_2$ that of the $k$ largest:
#
# * **ReAct** {cite:p}`sun2021react` clips, $\min(z,c)$, with $c$ a high percentile of ID activations. OOD images tend to fire few units strongly.
# * **ASH** {cite:p}`djurisic2023ash` gives each of the $k$ largest entries the same value, $S_1/k$, and sets the others to zero (its variant B).
# * **SCALE** {cite:p}`xu2024scale` multiplies all of them by $e^{S_1/S_2}$ and prunes nothing.

# %%
def of_reshaped(z):
    return ood.energy(plane_head(z).detach())


clip = toy_val.penultimate.flatten().sort().values[round(0.9 * 600) - 1]
assert torch.allclose(of_reshaped(z.clamp(max=clip)), in_plane["ReAct"](toy_test))

largest = z.amax(1, keepdim=True)  # of two entries one is kept
factor = (z.sum(1, keepdim=True) / largest).exp()
assert torch.allclose(of_reshaped(z * factor), in_plane["SCALE"](toy_test), rtol=1e-4)
pruned = z.sum(1, keepdim=True) * (z == largest)
assert torch.allclose(of_reshaped(pruned), in_plane["ASH"](toy_test), rtol=1e-4)

# %% [markdown]
# ### 2.4 Distances: how near are the training features?
#
# * **KNN** {cite:p}`sun2022knn`: the distance to the $k$-th nearest training feature, all divided by their lengths.
# * **NNGuide** {cite:p}`park2023nnguide`: the energy, multiplied by the mean of the $k$ largest products of the cosine similarity to a training
#   feature and the logsumexp of that feature's logits.
# * **SHE** {cite:p}`zhang2023she`: the inner product with the mean feature of the predicted class.
# * **fDBD** {cite:p}`liu2024fdbd`: the mean distance to the decision boundaries, $\frac{\ell_{\hat y}-\ell_c}{\lVert w_{\hat y}-w_c\rVert}$, in
#   units of the distance to the mean of all training features.

# %%
def direction(x):
    return x / x.norm(dim=1, keepdim=True)


distances = torch.cdist(direction(z), direction(toy_train.penultimate))
by_hand = distances.kthvalue(in_plane["KNN"].k, dim=1).values
assert torch.allclose(by_hand, in_plane["KNN"](toy_test), atol=1e-3)

train, labels = toy_train.penultimate, toy_train.labels
right = toy_train.logits.argmax(1) == labels
patterns = torch.stack([train[right & (labels == k)].mean(0) for k in range(3)])
by_hand = -(z * patterns[logits.argmax(1)]).sum(1)
assert torch.allclose(by_hand, in_plane["SHE"](toy_test), rtol=1e-4)

# %% [markdown]
# ### 2.5 Densities: how likely is the feature?
#
# * **Mahalanobis** {cite:p}`lee2018mahalanobis`: one Gaussian a class with one covariance $\Sigma$, and of these the nearest,
#   $\min_k(z-\mu_k)^\top\Sigma^{-1}(z-\mu_k)$.
# * **RMDS** {cite:p}`ren2021rmds` subtracts the distance to a single Gaussian around all data, so that directions which separate no classes cancel.
# * **A Gaussian mixture** adds the classes up instead of taking the nearest.
# * **ViM** {cite:p}`wang2022vim` measures how much of the feature lies outside the main directions of the training features, and adds the energy of the logits.

# %%
means = torch.stack([train[labels == k].mean(0) for k in range(3)])


def inverse(away):
    return torch.linalg.inv(away.T @ away / len(away))


within = inverse(train - means[labels])
away = z[:, None] - means  # (N, C, K)
nearest = ((away @ within) * away).sum(2).amin(1)
assert torch.allclose(nearest, in_plane["Mahalanobis"](toy_test), rtol=1e-3)

overall = train.mean(0)
to_all = (((z - overall) @ inverse(train - overall)) * (z - overall)).sum(1)
assert torch.allclose(nearest - to_all, in_plane["RMDS"](toy_test), rtol=1e-3, atol=1e-2)

# %% [markdown]
# ## 3. Training
#
# On real features a formula meets many dimensions. Train a few networks, each from its own seed; [the page before](06_certainty) says why one is not enough
# and which of them come with the book.

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

# %% tags=["hide-input"]
odin_networks = [ood.ODINNetwork(x.network) for x in features if bench]  # on a bank none
moved = [ood.extract_benchmark(n, bench, device=device) for n in odin_networks]
accuracies = [x.accuracy for x in features]
head = f.head
print(f"test accuracy: {100 * np.mean(accuracies):.1f} %, K = {head.in_features}")

# %% [markdown]
# Each detector is fitted on ID images alone, with the settings of its paper or, for ASH, of OpenOOD, and none is tuned. (KNN and NNGuide take fewer
# neighbours than in the papers where the training set is small; KL-Matching and ReAct learn from the validation
# images, as their authors say.) ODIN needs a forward and a backward pass of its own for each image, so it gets features
# of its own.

# %%
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
summary = ood.summarize(table)

# %% [markdown]
# ## 4. Looking inside: how many different detectors are these?
#
# Rank all OOD images by each detector and correlate the ranks.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rank correlation (Spearman) between detectors over all OOD images of the benchmark, first network. Blocks of light colour are detectors that rank images almost alike.", "name": "fig-classical-agreement"}, "image": {"alt": "Heat map of rank correlations between seventeen detectors. MaxLogit, Energy, GEN, ODIN, ReAct and NNGuide form a bright block, MSP and KL-Matching a pair beside it; Mahalanobis, ViM and the Gaussian mixture form another block, which disagrees with the first."}}
everyone = ood.classical_detectors(head, f.train)
sets_of = f.ood_sets()
scores = {n: {k: d(x) for k, x in {"ID": f.test, **sets_of}.items()} for n, d in everyone.items() if d.fit(f.train, f.val)}
if bench:
    scores["ODIN"] = {k: ood.ODIN()(x) for k, x in {"ID": moved[0].test, **moved[0].ood_sets()}.items()}
scores = {name: scores[name] for name in order}
ranks = pd.DataFrame({n: torch.cat([s[k] for k in sets_of]).double().numpy() for n, s in scores.items()}).corr("spearman")
figure, ax = plt.subplots(figsize=(plots.FULL, 5.2))
image = ax.imshow(ranks, vmin=min(0, ranks.min().min()), vmax=1, cmap="viridis")
ax.set_xticks(range(len(order)), order, rotation=60, ha="right")
ax.set_yticks(range(len(order)), order)
ax.grid(visible=False)
for i, j in np.ndindex(ranks.shape):
    ax.text(j, i, f"{ranks.iloc[i, j]:.1f}".replace("0.", "."), ha="center", va="center", fontsize=7, color="black" if ranks.iloc[i, j] > 0.6 else "white")
figure.colorbar(image, label="rank correlation", shrink=0.8)
plt.show()

# %% tags=["hide-input"]
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

tree = hierarchy.average(squareform(1 - ranks.to_numpy(), checks=False))
camp = pd.Series(hierarchy.fcluster(tree, 0.3, "distance"), index=ranks.index)
camps = [", ".join(members) for _, members in camp.index.to_series().groupby(camp)]
display(Markdown(
    f"Join detectors whose ranks correlate by more than 0.7 on average, and **{len(camps)}** groups remain:\n\n"
    + "\n".join(f"* {members}" for members in sorted(camps, key=len, reverse=True))
))  # fmt: skip

# %% [markdown]
# Averaging detectors of one group changes little, because they rank images alike. Combining two groups can help; the chapter on HEAT does
# that. Mahalanobis and the Gaussian mixture are nearly the same detector: both have one mean per class and one shared covariance, and differ in
# whether the nearest class counts or the sum over all classes.
#
# ## 5. Does it work?
#
# ### 5.1 The published leaderboard beside this page
#
# First the real networks. The published numbers come from 32 × 32 photographs and ImageNet, from networks with 512 to 2048 features, and from an accuracy of
# 95, 77 and 76 %. The last columns are this run. Read along the rows.

# %% tags=["hide-input"]
published = """
MSP,88.03 ± .25,90.73 ± .43,80.27 ± .11,77.76 ± .44,76.02,85.23
MaxLogit,87.52 ± .47,91.10 ± .89,81.05 ± .07,79.67 ± .57,76.46,89.57
Energy,87.58 ± .46,91.21 ± .92,80.91 ± .08,79.77 ± .61,75.89,89.47
GEN,88.20 ± .30,91.35 ± .69,81.31 ± .08,79.68 ± .75,76.85,89.76
KLMatching,79.19 ± .80,82.68 ± .21,76.56 ± .25,76.24 ± .52,76.64,87.60
ODIN,82.87 ± 1.85,87.96 ± .61,79.90 ± .11,79.28 ± .21,74.75,89.47
ReAct,87.11 ± .61,90.42 ± 1.41,80.77 ± .05,80.39 ± .49,77.38,93.67
ASH,75.27 ± 1.04,78.49 ± 2.58,78.20 ± .15,80.58 ± .66,78.17,95.74
SCALE,82.55 ± .36,86.39 ± 1.86,80.99 ± .12,81.42 ± .43,81.36,96.53
KNN,90.64 ± .20,92.96 ± .14,80.18 ± .15,82.40 ± .17,71.10,90.18
SHE,81.54 ± .51,85.32 ± 1.43,78.95 ± .18,76.92 ± 1.16,73.78,90.92
FDBD,90.42,93.16,81.26,79.85,76.63,92.77
Mahalanobis,84.20 ± 2.40,89.72 ± 1.36,58.69 ± .09,69.39 ± 1.39,55.44,74.25
RMDS,89.80 ± .28,92.20 ± .21,80.15 ± .11,82.92 ± .42,76.99,86.38
ViM,88.68 ± .28,93.48 ± .24,74.98 ± .13,81.70 ± .62,72.08,92.68
""".strip()
columns = pd.MultiIndex.from_product([["CIFAR-10", "CIFAR-100", "ImageNet-1k"], ["near", "far"]])
lines = [line.replace("±", "<small>±").split(",") for line in published.splitlines()]
board = pd.DataFrame([[c + "</small>" * ("<" in c) for c in line[1:]] for line in lines], [line[0] for line in lines], columns)
for group in ("near", "far"):
    rows = summary[summary["group"] == group].set_index("detector").reindex(board.index)  # a bank has no ODIN
    rows = rows[["value", "low", "high"]].itertuples(index=False)
    board[f"{benchmark}, this run", group] = [metrics.as_percent(*row, small=True) if row[0] >= 0 else "" for row in rows]
board.style.set_caption("AUROC in %; published: OpenOOD v1.5 leaderboard, ± standard deviation over 3 networks; ours with 95 % intervals")

# %% [markdown]
# The published rows are those of the OpenOOD leaderboard of July 2025 {cite:p}`zhang2023openood`: ResNet-18 for CIFAR, one
# torchvision ResNet-50 for ImageNet. Where it gives no spread, none is shown. Its hyperparameters were chosen on OOD validation images where
# a method has a grid (ODIN, ReAct, ASH, SCALE, KNN, GEN, ViM, fDBD). ViM stands there with 256 main dimensions, because a fault, since
# mended, made its search have no effect. NNGuide has no row for these networks, and the Gaussian mixture none at all.
#
# Among the published columns, SCALE is first on ImageNet, KNN leads on CIFAR-10 near-OOD and is second to last on ImageNet near-OOD, and
# Mahalanobis is last there.

# %% tags=["hide-input"]
wide = summary.pivot(index="detector", columns="group", values="value") * 100
place = wide.rank(ascending=False).astype(int)
named = [n for n in ("Mahalanobis", "KNN", "SCALE") if n in place.index]
display(Markdown(
    f"In this run, among {len(place)} detectors: "
    + "; ".join(f"{n} has rank {place.loc[n, 'near']} near and {place.loc[n, 'far']} far" for n in named)
    + ". No detector wins everywhere."
))  # fmt: skip

# %% [markdown]
# [The page on photographs](60_cifar10) puts the detectors on four larger networks, and [the leaderboard](08_leaderboard) has all numbers of this book.
#
# ### 5.2 Family by family
#
# The same run, sorted by what the detectors look at.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Seventeen detectors, sorted by what they look at: mean AUROC over the near and the far sets with the 95 % interval over networks. Compare the families from top to bottom, once for the near and once for the far dots.", "name": "fig-classical-seventeen"}, "image": {"alt": "Dot plot with one row per detector, grouped into logits, gradients, reshaped features, distances and densities. Orange near dots lie close together except for ASH and SCALE, further left with wide intervals. Pink far dots lie near 1 for Mahalanobis, ViM, the Gaussian mixture, RMDS, KNN and fDBD, and much lower with wide intervals for logits and reshaped features."}}
figure, ax = plt.subplots(figsize=(plots.FULL, 5.6))
plots.dots(summary, ax=ax)
start = 0
for family, members in FAMILIES.items():
    ax.axhline(start - 0.5, color=plots.COLORS["grey"], lw=0.6)
    ax.text(1.01, start + (len(members) - 1) / 2, family, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    start += len(members)
plt.show()

# %% tags=["hide-input"]
caption = f"AUROC in %, mean over networks ({seeds}); bold: best and its equals"
plots.benchmark_table(table, caption=caption)

# %% tags=["hide-input"]
caption = 'FPR at 95 % ID recall (positive="id") in %; lower is better'
plots.benchmark_table(table, "fpr95", caption=caption)

# %% tags=["hide-input"]
family_of = {name: family for family, members in FAMILIES.items() for name in members}
means_of = summary.assign(family=summary["detector"].map(family_of)).pivot_table("value", "family", "group", "median") * 100
plain = wide.loc["MSP"]
better = {g: [n for n in wide.index if wide.loc[n, g] > plain[g]] for g in ("near", "far")}
display(Markdown(
    f"The median logit score has {means_of.loc['logits', 'near']:.1f} near and {means_of.loc['logits', 'far']:.1f} far, the median "
    f"density {means_of.loc['densities', 'near']:.1f} and {means_of.loc['densities', 'far']:.1f}. Of the sixteen that came after "
    f"MSP, **{len(better['near'])}** have a higher mean on near-OOD and **{len(better['far'])}** on far-OOD. "
    f"The lowest far value is that of {wide['far'].idxmin()}, {wide['far'].min():.1f}."
))  # fmt: skip

# %% [markdown]
# Compare families rather than single names. A distance to the training features and a score on logits ask the two
# questions of [the first page](05_protocol), so their near and far columns can differ in opposite ways. ASH, SCALE and ReAct reshape features
# with settings that were chosen for wide networks; how well they fit depends on the network, and neither the width nor
# the number of classes predicts it.
#
# ## 6. Representation or energy?
#
# **Why do logits fail on far-OOD?** There are two explanations. Either the logits have lost what distinguishes these
# images (the {term}`representation`), or the information is still there and MSP does not use it (the energy). Compare
# the representations with the same energy, the Mahalanobis distance. Compute it three times: from the $C$ logits, from the whole
# feature, and from the part of the feature that the {term}`head` ignores, $z_\perp$ with $Wz_\perp=0$.

# %% tags=["hide-input"]
def through(view, x):
    """The benchmark features as a linear view sees them."""
    def see(y):
        return ood.Features(penultimate=y.penultimate @ view, labels=y.labels)
    near, far = ({k: see(y) for k, y in sets.items()} for sets in (x.near, x.far))
    return ood.BenchmarkFeatures(see(x.train), see(x.val), see(x.test), near, far)


def suspects(n, x):
    W = x.head.weight.detach().cpu()
    unseen = torch.linalg.svd(W).Vh[len(W) :].T  # (K, K - C), what the head ignores
    views = {"logits": W.T, "unseen part": unseen, "whole feature": torch.eye(W.shape[1])}
    one = {k: {f"Mahalanobis, {k}": ood.Mahalanobis()} for k in views}
    runs = [ood.run_benchmark(one[k], through(views[k], x), seed=n) for k in views]
    return pd.concat(runs)

# %% tags=["hide-input"]
asked = pd.concat([suspects(seed + n, x) for n, x in enumerate(features)])
asked = pd.concat([table[table["detector"].isin(["MSP", "Energy"])], asked])
plots.benchmark_table(asked, caption=f"AUROC in %, mean over networks ({seeds})")

# %% tags=["hide-input"]
blame = 100 * ood.summarize(asked).pivot(index="detector", columns="group", values="value")
far = blame["far"]
share = (far["Mahalanobis, logits"] - far["MSP"]) / (far["Mahalanobis, whole feature"] - far["MSP"])
gap = far["Mahalanobis, whole feature"] - far["MSP"]
if gap < 1:
    verdict = "The distance in feature space is not ahead of MSP here, so there is no gap to explain."
elif share >= 0.75:
    verdict = f"The other energy closes **{share:.0%}** of the gap without new information: it is mostly the energy that fails."
elif share > 0.25:
    verdict = f"The other energy closes **{share:.0%}** of the gap without new information. The rest is closed here by the features alone, so both have a part in it."
else:
    verdict = "This other energy on the logits hardly closes the gap. It suggests that the logits have lost the information, and does not prove it: some third energy might find it."
display(Markdown(
    f"On far-OOD MSP has {far['MSP']:.1f}. Another energy on the *same logits* has {far['Mahalanobis, logits']:.1f}, the same energy on "
    f"the whole feature {far['Mahalanobis, whole feature']:.1f}, and on the part that the head cannot see "
    f"{far['Mahalanobis, unseen part']:.1f}. {verdict}"
))  # fmt: skip

# %% [markdown]
# Each chapter of the book changes either the representation or the energy.
#
# ## 7. Turn the knobs
#
# **How much does a setting matter?** Six of the detectors have a knob that OpenOOD tunes. Turn each alone. No curve chooses a setting here:
# [what a choice on OOD images costs](06_certainty) is measured on the page before.

# %% tags=["hide-input"]
def knobs(head, train):
    """Six detectors, each with a few values of its knob, scaled to this training set."""
    K = head.in_features
    return {
        "KNN, k": {k: ood.KNN(k) for k in (1, 3, 5, 10, 25, 50) if k < len(train)},
        "GEN, γ": {g: ood.GEN(g) for g in (0.01, 0.1, 0.5, 1.0, 2.0)},
        "ViM, D": {D: ood.ViM(head, D) for D in sorted({max(1, K // 16), K // 8, K // 4, K // 2, 3 * K // 4} - {0, K})},
        "ReAct, percentile": {p: ood.ReAct(head, p) for p in (0.7, 0.8, 0.85, 0.9, 0.95, 0.99)},
        "ASH, share pruned": {p: ood.ASH(head, p) for p in (0.3, 0.5, 0.65, 0.75, 0.85, 0.9)},
        "SCALE, share left out": {p: ood.SCALE(head, p) for p in (0.3, 0.5, 0.65, 0.75, 0.85, 0.9)},
    }


turned = []
for n, x in enumerate(features):
    for knob, settings in knobs(x.head, x.train).items():
        for value, detector in settings.items():
            detector.fit(x.train, x.val)
            own = detector(x.test)
            for group, sets in x.groups().items():
                mean = np.mean([auroc(own, detector(y))[0] for y in sets.values()])
                turned.append({"knob": knob, "value": value, "group": group, "seed": seed + n, "auroc": mean})
turned = pd.DataFrame(turned)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "AUROC along one knob of each detector, near-OOD (orange, dashed) and far-OOD (pink, dotted): mean over networks, and the range from the lowest to the highest network. Do near and far ask for the same value?", "name": "fig-classical-knobs"}, "image": {"alt": "Six panels, one for each detector with a knob. Two lines a panel, the mean AUROC on near-OOD and on far-OOD along the values of the knob, each with a band from the lowest to the highest network."}}
figure, axes = plt.subplots(2, 3, figsize=(plots.FULL, 4.6), sharey=True)
for ax, (knob, rows) in zip(axes.flat, turned.groupby("knob", sort=False)):
    for group, own in rows.groupby("group", sort=False):
        by_value = own.groupby("value")["auroc"].agg(["mean", "min", "max"]) * 100
        style = {"color": plots.COLORS[group], "marker": plots.MARKERS[group], "ls": plots.LINES[group]}
        ax.plot(range(len(by_value)), by_value["mean"], ms=4, label=plots.NAMES[group], **style)
        ax.fill_between(range(len(by_value)), by_value["min"], by_value["max"], color=plots.COLORS[group], alpha=0.15, lw=0)
    ax.set_xticks(range(len(by_value)), [f"{v:g}" for v in by_value.index], fontsize=8)
    ax.set_xlabel(knob)
for row in axes:
    row[0].set_ylabel("AUROC (%)")
figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
plt.show()

# %% tags=["hide-input"]
by_value = turned.groupby(["knob", "group", "value"], sort=False)["auroc"].mean() * 100
spans = by_value.groupby(["knob", "group"], sort=False).agg(lambda v: v.max() - v.min()).unstack()
best = by_value.groupby(["knob", "group"], sort=False).agg(lambda v: v.idxmax()[2]).unstack()
display(Markdown("From the worst value of a knob to the best, in points of AUROC:\n\n" + "\n".join(
    f"* **{knob}**: " + "; ".join(f"{g} {spans.loc[knob, g]:.1f}, best at {best.loc[knob, g]:g}" for g in spans) + "." for knob in spans.index
)))

# %% [markdown]
# ## 8. When it fails
#
# ```{list-table} What each family cannot see.
# :name: tab-classical-failures
# :header-rows: 1
# :widths: 20 45 35
#
# * - Family
#   - Fails where
#   - What to look at first
# * - logits
#   - an image lies far behind a class: the logits grow with the feature, and the network is surer the farther it lies
#   - lengths of features, ID against OOD
# * - gradients
#   - the step was chosen for other pixels: $\varepsilon$ and $T$ were set with OOD images
#   - ODIN without its step
# * - reshaped features
#   - the network is narrow, or its features are not sparse: a share of 10 % is then a handful of units
#   - the activations: is there a tail to clip?
# * - distances
#   - directions that matter for no class dominate, or training features are few
#   - accuracy of a nearest-neighbour classifier on the same features
# * - densities
#   - a covariance of many dimensions is estimated from few images in all, or OOD features are short, and shortening a feature brings it nearer to the means
#   - eigenvalues of the covariance; features divided by their length
# ```
#
# Two limits hold for every family. If the {term}`representation` has lost the difference, no formula on it can find it (section 6). And a
# detector that works on the test sets of this page has been tested on these sets only.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. You add the same constant to all logits of one image. Which score of the image changes?**
#
# <details><summary>A. MSP, because the largest logit is larger.</summary>
#
# **No.** The softmax divides by the sum of all exponentials, which grows by the same factor. MSP cannot see the constant.
#
# </details>
#
# <details><summary>B. Energy and MaxLogit.</summary>
#
# **Right.** Both move by the constant. It is what they know beyond MSP, for better or worse.
#
# </details>
#
# <details><summary>C. None, because the predicted class is the same.</summary>
#
# **No.** Most scores read more of the logits than which one is largest.
#
# </details>
#
# **2. A feature is doubled: twice as long, in the same direction. Which detector gives the same score?**
#
# <details><summary>A. KNN.</summary>
#
# **Right.** It divides features by their lengths first, so only the direction counts.
#
# </details>
#
# <details><summary>B. Energy.</summary>
#
# **No.** The logits grow with the feature, apart from the bias, and the energy with them.
#
# </details>
#
# <details><summary>C. Mahalanobis.</summary>
#
# **No.** The feature moves away from the class mean, so its distance changes.
#
# </details>
#
# <details><summary>D. SHE.</summary>
#
# **No.** The inner product with the pattern of the class doubles.
#
# </details>
#
# **3. Two detectors have a rank correlation of 0.98 on all OOD images. What do you gain by averaging them?**
#
# <details><summary>A. The errors of one are made good by the other.</summary>
#
# **No.** They make nearly the same errors. There is little that one could make good.
#
# </details>
#
# <details><summary>B. Twice as much information.</summary>
#
# **No.** Information is not counted in detectors. Two that rank alike look at the same thing.
#
# </details>
#
# <details><summary>C. Next to nothing.</summary>
#
# **Right.** An average of two nearly equal orders is the same order. Combine detectors that look at different things.
#
# </details>
#
# **4. A table shows ASH far below MSP on a small network. What follows?**
#
# <details><summary>A. ASH is a bad detector.</summary>
#
# **No.** On wide networks trained on ImageNet it is among the best of the published table. A result belongs to its network.
#
# </details>
#
# <details><summary>B. The settings of ASH need not suit this network.</summary>
#
# **Right.** Its share of pruned activations was chosen on wide networks. On a narrow one it leaves a handful of units.
#
# </details>
#
# <details><summary>C. The network is broken.</summary>
#
# **No.** Its accuracy would tell. A detector can fail on a network that classifies well.
#
# </details>
#
# **5. The Mahalanobis distance of the logits detects far images much better than MSP does of the same logits. What does that tell?**
#
# <details><summary>A. The logits have lost the difference between ID and far-OOD.</summary>
#
# **No.** If they had, no function of the logits could find it.
#
# </details>
#
# <details><summary>B. The Mahalanobis distance is always the better choice.</summary>
#
# **No.** It says nothing about near-OOD, or about another network.
#
# </details>
#
# <details><summary>C. The information is still in the logits, and MSP does not use it.</summary>
#
# **Right.** With the same representation only the energy differs, so the failure is that of the energy.
#
# </details>

# %% [markdown]
# ## 9. Exercises
#
# Each has a hint, and a check that tells you whether you are right, and what is wrong if you are not.

# %% [markdown]
# ```{exercise-start} Predict: shifted logits
# :label: ex-classical-shift
# ```
# Add a constant to all logits of an image, another constant for each image. Of MSP, MaxLogit, Energy and GEN, which then rank the images in another order?
# Store the set of their names. *Hint: which of them are functions of the softmax?*

# %% tags=["exercise"]
changed = ...

# %% tags=["check", "hide-input"]
def changes(name):
    """Whether the order of a few random images changes with the constants."""
    score = {"MSP": ood.msp, "MaxLogit": ood.max_logit, "Energy": ood.energy, "GEN": ood.gen}[name]
    dice = torch.Generator().manual_seed(7)
    plain = torch.randn(50, 4, generator=dice, dtype=torch.float64)
    moved = plain + 5 * torch.randn(50, 1, generator=dice, dtype=torch.float64)
    return not torch.equal(score(plain).argsort(), score(moved).argsort())


check_changed = ood.Check(
    (lambda names: set(names) <= {"MSP", "MaxLogit", "Energy", "GEN"}, "a set of names out of these four"),
    (lambda names: all(map(changes, names)), "one of these reads probabilities, in which the constant cancels"),
    (lambda names: set(names) == set(filter(changes, ("MSP", "MaxLogit", "Energy", "GEN"))), "another one changes too"),
)
check_changed(changed)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-classical-shift
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the softmax reads all logits, so it must notice that all of them changed.
changed = {"MSP", "GEN"}
check_changed(changed)

# %% tags=["solution"]
changed = {"MaxLogit", "Energy"}
check_changed(changed)

# %% [markdown]
# MSP and GEN are functions of the softmax, which does not know the constant.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Derive: why MSP and the energy disagree
# :label: ex-classical-energy
# ```
# Show that $\log\max_j p_j = \max_j \ell_j - \operatorname{logsumexp}(\ell)$, and conclude that MSP, MaxLogit and Energy cannot rank all images
# alike. Store a pair of logit vectors `a`, `b` (each of length 3) such that MSP calls `a` more OOD and Energy calls `b` more OOD.
# *Hint: add a constant to all logits.*

# %% tags=["exercise"]
two = ...  # a, b

# %% tags=["check", "hide-input"]
check_vectors = ood.Check(
    (lambda v: [len(x) for x in v] == [3, 3], "two vectors of three logits"),
    (lambda v: ood.msp(v[0]) > ood.msp(v[1]), "MSP must call it more OOD: undecided"),
    (lambda v: ood.energy(v[0]) < ood.energy(v[1]), "add a constant: MSP is blind to it"),
)
check_vectors(two)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-classical-energy
# :class: dropdown
# ```
# $p_j=e^{\ell_j}/\sum_i e^{\ell_i}$; take the logarithm at the largest $j$. The logarithm of MSP is the difference of the two others, so MSP does not
# change under $\ell\to\ell+c$, while both of them move by $c$.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: an undecided and a certain image. Both scores agree on which is more OOD.
two = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])
check_vectors(two)

# %% tags=["solution"]
a = torch.tensor([10.0, 9.0, 9.0])  # large but undecided
b = torch.tensor([3.0, 0.0, 0.0])
two = a, b
check_vectors(two)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: KNN without normalisation
# :label: ex-classical-knn
# ```
# KNN divides each feature by its length. Leave that out: compute the distance to the {math}`k`-th nearest training feature as it is, with the `k` of
# `everyone["KNN"]`. Take the first network, its ID test images and its first near set. Store the AUROC. *Hint: `torch.cdist` and `kthvalue`.*

# %% tags=["exercise"]
near = next(iter(f.near.values()))
undivided = ...

# %% tags=["check", "hide-input"]
def of_knn(normalize):
    judge = ood.KNN(everyone["KNN"].k, normalize=normalize).fit(f.train)
    return auroc(judge(f.test), judge(near))[0]


check_undivided = ood.Check(
    (lambda a: 0 <= a <= 1, "an AUROC is a share of pairs, between 0 and 1"),
    (lambda a: abs(a - (1 - of_knn(False))) > 1e-4, "the sign: the farther, the more OOD"),
    (lambda a: abs(a - of_knn(False)) < 1e-4, "distances of the features as they are, to the k-th nearest of the training features"),
)
check_undivided(undivided)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-classical-knn
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: nearest means the largest similarity, so the sign is turned.
undivided = 1 - of_knn(False)
check_undivided(undivided)

# %% tags=["solution"]
def distance(x):
    distances = torch.cdist(x.penultimate, f.train.penultimate)
    return distances.kthvalue(everyone["KNN"].k, dim=1).values


undivided = auroc(distance(f.test), distance(near))[0]
print(f"as they are {undivided:.4f}, divided by their lengths {of_knn(True):.4f}")
check_undivided(undivided)

# %% [markdown]
# Which of the two is ahead depends on whether the length of a feature tells ID from OOD on this network.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Open: two opinions are better than one
# :label: ex-classical-open
# ```
# The heat map shows groups that disagree. Combine MSP and Mahalanobis to one detector, without using any OOD image. It
# should be at least as good as MSP on the near set *and* within a point of Mahalanobis on the far sets. Is it better
# than both? Store its two AUROCs. *Hint: what puts two scores on one scale?*

# %% tags=["exercise"]
near_far = ...

# %% tags=["check", "hide-input"]
def alone(name, group):
    """AUROC of one of the two, on the first network."""
    own = table[(table["metric"] == "auroc") & (table["seed"] == seed)]
    return own.pivot_table("value", "detector", "group").loc[name, group]


def is_alone(value, group):
    return min(abs(value - alone(name, group)) for name in ("MSP", "Mahalanobis")) < 1e-6


check_two = ood.Check(
    (lambda v: len(v) == 2 and max(v) <= 1, "two AUROCs as fractions, near first"),
    (lambda v: v[1] >= alone("Mahalanobis", "far") - 0.01, "far: bring both to one scale on ID images, then add"),
    (lambda v: v[0] >= alone("MSP", "near"), "near: the density drowns the softmax; one scale first"),
    (lambda v: not is_alone(v[0], "near"), "that is one of the two alone: put them together"),
)
check_two(near_far)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-classical-open
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: MSP alone; it is good at one of the two.
near_far = [alone("MSP", group) for group in ("near", "far")]
check_two(near_far)

# %% tags=["solution"]
pair = [everyone["MSP"], everyone["Mahalanobis"]]


def surprise(x):
    """The sum of both scores, standardised on ID validation images."""
    usual = [detector(f.val).double() for detector in pair]
    parts = zip(pair, usual)
    return sum((detector(x).double() - own.mean()) / own.std() for detector, own in parts)


own = surprise(f.test)
by_set = [[auroc(own, surprise(x))[0] for x in sets.values()] for sets in (f.near, f.far)]
near_far = [np.mean(values) for values in by_set]
wanted = alone("MSP", "near"), alone("Mahalanobis", "far") - 0.01
print("near {:.3f}, far {:.3f}; asked for {:.3f} and {:.3f}".format(*near_far, *wanted))
check_two(near_far)

# %% [markdown]
# Adding p-values (or their logarithms) would put them on one scale too, but they end at $1/(n+1)$ and make ties of everything beyond the
# calibration scores; standardised scores do not. The HEAT chapter composes energies by a logsumexp with a temperature.
# ```{solution-end}
# ```

# %% [markdown]
# ## 10. Take away
#
# * Seventeen detectors are five questions: to the logits, to the gradients, to reshaped features, to distances, to densities.
# * Many of them rank images alike. Take candidates from different families.
# * A score on logits misses images that lie behind a class. A density fails where its covariance is badly estimated.
# * Settings belong to a network. So does an order of detectors.
# * Either the representation has lost the difference, or the energy does not use it. If the Mahalanobis
#   distance of the logits finds it, the energy was at fault; if not, another energy on the logits still might.
#
# **In the library:** {py:func}`~ood_lib.detectors.classical.recipes.classical_detectors`,
# {py:func}`~ood_lib.evaluation.benchmark.run_benchmark`, {py:func}`~ood_lib.evaluation.benchmark.summarize`.
#
# **Read on:** the protocol and its leaderboard {cite:p}`zhang2023openood`; the papers of the detectors, cited in section 2.

# %% tags=["hide-input"]
# What other pages show of this run.
if results:
    table.to_csv(Path(results) / "benchmark.csv", index=False)
    (Path(results) / "summary.md").write_text(plots.markdown_table(summary))

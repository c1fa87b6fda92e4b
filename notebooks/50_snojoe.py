# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SNoJoE: many labels, one energy
#
# A network with many labels answers for each label separately. The joint {term}`energy` adds up what all labels say, so an image to which
# none of them responds has a high energy.

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
    explorables.label_energies(),
    caption="When is an image none of the known things? Raise the three logits together: MSP over labels does not move, although "
    "each label says yes. Then leave two at −4 and raise the third: MaxLogit and the joint energy fall with it.",
    alt_text="Left, bars of three scores of the same three label logits: joint energy, the largest logit and softmax over labels. "
    "Right, the probability of each label. Below, the probability that no label is present. Sliders set the three logits.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of {cite:t}`mei2024snojoe`: normalise the convolutions of a multi-label network by their
# spectral norms while it trains, and sum the {term}`energies <energy>` of its labels. This detects OOD images better than
# the same energy {cite:p}`wang2021jointenergy` on a plain network.
#
# <!-- made by ood-book sync -->
# **What we found.** AUROC of *JointEnergy* minus that of *MaxLogit*, in points, with its interval:
#
# | network | near-OOD | far-OOD |
# |---|---|---|
# | MobileNetV2 on PASCAL VOC | **cannot tell** +1.6 [−0.4, +3.6] | **better** +1.8 [+0.0, +3.6] |
#
# - *MaxLogit* against *MSP over labels*. **Better near and far** (MobileNetV2 on PASCAL VOC).
#
# Intervals are of 95 %, and [wider over several networks](../book/notation.md). *Better* and *worse*: the interval leaves out zero. *Level*: it holds zero and lies within a point of it. *Cannot tell*: it is wider. The numbers are those of `ood-book run 50_snojoe` on 2026-11-29. They stay when you run this page with other values.
#
# - On the networks of this page, spectral normalisation against none. Near-OOD: **−0.5 [−4.9, +3.8]** (no clear difference; ahead on 2 of 5 networks). Far-OOD: **+1.7 [−4.3, +7.7]** (no clear difference; ahead on 4 of 5 networks).
# - The same, trained in eval mode as in the released loop. Near-OOD: **−3.3 [−16.1, +9.6]** (no clear difference; ahead on 1 of 5 networks). Far-OOD: **−8.0 [−22.3, +6.4]** (no clear difference; ahead on 1 of 5 networks).
#
# Differences in points of AUROC with a 99 % interval over networks. The numbers are those of `ood-book run snojoe -p seeds 5` on 2026-11-26.
#
# **It takes** 30 minutes to read, without exercises and what is folded, and 6 minutes to run. No GPU, no download.
# <!-- end -->
#
# Section 6.4 measures the spectral normalisation by itself, on networks that are too small to refute the paper.
#
# **Use it** when an image may carry several labels and an OOD image carries none of them.
#
# **Do not** use it for images that contain a known object beside an unknown one: one label that responds is enough for a low energy.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** how to ask a network with many labels whether it knows *anything* in an image. The answer is a sum of softplus
# functions, a free energy over all label sets, and the log-probability that no label is present. You will see what a spectral norm is, and why spectral
# normalisation in front of BatchNorm bounds nothing and leaves the training as it is. Photographs show what the scores
# are worth.
#
# **You need** the sigmoid, singular values, and enough PyTorch to read a convolution.
# ```
#
# These are the parameters of the page. Change a value and run the notebook again, or pass it on the command line:
# `ood-book run snojoe -p coefficient 3 -p seeds 5`. Photographs instead of canvases: the {term}`profile` `snojoe_voc`
# runs on a sample of PASCAL VOC, `snojoe_paper` holds the recipe of the paper, for a GPU. Your own:
# `-p benchmark folder:PATH`, with pictures and a file `labels.csv` (header `image,cat,dog,...`, then 0 or 1) in each of
# `PATH/train`, `PATH/val` and `PATH/test`, and OOD pictures in `PATH/near/NAME` or `PATH/far/NAME`.

# %% tags=["parameters", "hide-input"]
benchmark: str = "scenes"  # multi-label: scenes, voc, coco, or folder:PATH
data_dir: str = ""  # where local data lie; empty: the cache folder
missing: str = "raise"  # an OOD set, or weights, that are not there: raise or skip
image_size: int = 0  # hold pictures in memory, so many pixels wide; 0: read each time
backbone: str = ""  # ResNet of torchvision, such as resnet50; empty: our own
weights: str = ""  # of the backbone: a name torchvision knows, or a file
images_per_set: int = 0  # use only so many images of each set; 0: all
seeds: int = 5  # networks to train of each kind, each from its own seed
seed: int = 0  # the first of these seeds
photo_splits: int = 5  # random splits of the photographs
strengths: list = [0.001, 0.003, 0.01, 0.03, 0.1, 1, 10, 100]  # values of C, to choose from
device: str = "auto"  # where to train: auto, cpu, cuda
epochs: int = 6  # of training
batch_size: int = 32  # images per update
learning_rate: float = 0.004  # peak of the learning-rate cycle
backbone_rate: float = 0.0  # that of all layers below the head; 0: the same
half: bool = False  # train in bfloat16 where the processor is faster in it
widths: list = [8, 16, 32, 64]  # of our network: feature maps per stage; the last is K
coefficient: float = 1.0  # bound c on the exact norm of a convolution, bounded networks
gain: float = 5.0  # bound on the gain of a BatchNorm, bounded networks
odin_step: float = 0.0014  # epsilon of ODIN, in pixel units
umap_points: int = 1500  # images in the UMAP picture
results: str = ""  # folder for what other pages show; empty: do not write

# %% tags=["hide-input"]
import itertools
import math
import time
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import LocalOutlierFactor
from torch import nn
from torch.nn import functional as F

import ood_lib as ood
from ood_lib.data.benchmark import benchmark_hash
from ood_lib.data.images import ImageArray, ImageFormat
from ood_lib.detectors.joint_energy import sum_logit, sum_prob
from ood_lib.evaluation import plots
from ood_lib.evaluation.metrics import auroc
from ood_lib.networks.lipschitz import batchnorm_gain, exact_norm, reshaped_norm
from ood_lib.networks.spectral import power_iteration

# %% tags=["hide-input"]
plots.theme()
torch.manual_seed(seed)
generator = torch.Generator().manual_seed(seed)
options = {"image_size": image_size} if image_size and benchmark.startswith("folder:") else {}
bench = ood.load_benchmark(benchmark, root=data_dir or None, missing=missing, **options)
if bench.train.labels.ndim != 2 or not (bench.near or bench.far):
    raise ValueError(f"{benchmark}: this chapter needs several labels per image (N, C), and at least one OOD set")


def prepared(data):
    """The first images of a set, as many as the parameters allow; with `image_size` in memory, a byte a value."""
    rows = torch.arange(min(images_per_set or len(data), len(data)))
    if not image_size:
        return data.subset(rows)
    frame = ImageFormat(bench.image_shape[0], image_size, stretch=True)
    pixels = torch.cat([(255 * frame(data.subset(part).images)).round().byte() for part in rows.split(64)])
    return ImageArray(pixels.permute(0, 2, 3, 1), data.labels[rows], classes=data.classes)


shifted = {"inverted"} if benchmark == "scenes" else set()  # known digits in other colours: no OOD images
near, far = ({k: prepared(sets[k]) for k in sets if k not in shifted} for sets in (bench.near, bench.far))
train, val, test = map(prepared, (bench.train, bench.val, bench.test))
shape = tuple(train[0][0].shape)
notes = (*bench.notes, *(f"{k} is left out here: it shows known digits" for k in shifted))
bench = replace(bench, train=train, val=val, test=test, near=near, far=far, image_shape=shape, notes=notes)

# %% [markdown]
# ## 1. The idea on a toy
#
# A network with one label per image must always predict *something*: its softmax adds up to 1. A network with many
# labels need not. Each label has its own sigmoid, and all of them may be close to zero. So we can ask a new question:
# **how sure is the network that no known label is present in this image?**
#
# Take two labels, cat and dog, with {term}`logits <logit>` $\ell_1$ and $\ell_2$. Consider four images: the network is
# sure of both, sure of the cat alone, sure that neither is present, or undecided about both. Before you look: which of
# the four should have the largest OOD score? And which has the largest under a *softmax over the two labels*?

# %%
seen = {"both": (5.0, 5.0), "cat alone": (5.0, -5.0)}
seen |= {"undecided": (0.0, 0.0), "neither": (-5.0, -5.0)}
toy = torch.tensor(list(seen.values()))
scores = {
    "joint energy": ood.joint_energy,
    "largest logit": ood.max_logit,
    "softmax": ood.msp,
    "sum of logits": sum_logit,
}
pd.DataFrame({name: S(toy) + 0.0 for name, S in scores.items()}, index=list(seen)).round(2)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Four scores on the plane of two logits; darker = more OOD, each on its own scale. The joint energy is bright wherever one label is sure; the softmax is dark along the whole diagonal; in the sum of logits an absent dog cancels a present cat.", "name": "fig-snojoe-toy"}, "image": {"alt": "Four maps over the logits of two labels, with the same four marked images. Joint energy and largest logit are dark in the lower left quadrant only. The softmax is dark along the diagonal, where both labels agree. The sum of logits darkens towards the lower left in straight diagonal bands."}}
figure, axes = plt.subplots(1, 4, figsize=(plots.FULL, 2.2), sharey=True)
line = torch.linspace(-8, 8, 121)
plane = torch.cartesian_prod(line, line)
for ax, (name, S) in zip(axes, scores.items()):
    ax.contourf(line, line, S(plane).reshape(121, 121).T, levels=12, cmap="Greys", alpha=0.75)
    for (label, (x, y)), style in zip(seen.items(), plots.SERIES):
        ax.plot(x, y, ms=8, mec="white", label=label, **style | {"linestyle": ""})
    ax.set(title=name, xlabel="$\\ell_1$ (cat)", aspect="equal", xticks=(-5, 0, 5), yticks=(-5, 0, 5))
    ax.grid(visible=False)
axes[0].set_ylabel("$\\ell_2$ (dog)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% tags=["hide-input"]
values = {name: dict(zip(seen, (S(toy) + 0.0).tolist())) for name, S in scores.items()}
soft, total = values["softmax"], values["sum of logits"]
assert math.isclose(soft["both"], soft["neither"]) and math.isclose(total["cat alone"], total["undecided"])
display(Markdown(
    f"The softmax gives *both* and *neither* the same score, **{soft['both']:.2f}**: two sure labels share the "
    "probability, and so do two absent ones. The sum of logits gives *cat alone* and *undecided* the same score, "
    f"**{total['cat alone']:.0f}**: an absent dog cancels the cat. The joint energy distinguishes all four. The largest logit "
    "gives *both* and *cat alone* the same score."
))  # fmt: skip

# %% [markdown]
# ## 2. Derivation: one energy for all labels
#
# ### 2.1 One label
#
# Treat one label as a system with two states. *Present* has the energy $-\ell$, *absent* the energy 0. Boltzmann's rule
# gives a state the weight $e^{-\text{energy}}$, and dividing by the sum of the weights gives the sigmoid,
#
# $$p = \frac{e^{\ell}}{1 + e^{\ell}} = \sigma(\ell),$$
#
# so this is the model that binary cross-entropy trains. Its free energy, minus the log of the sum of weights, is
# $E = -\log(1 + e^{\ell})$. The function $\log(1+e^\ell)$ is called softplus: nearly $\ell$ for large $\ell$, nearly
# $e^\ell$ for very negative $\ell$.
#
# ### 2.2 All labels
#
# $C$ labels have $2^C$ states, one for each set $y\in\{0,1\}^C$ of present labels. Let the energies of single labels
# add up, $E(x, y) = -\sum_i y_i\,\ell_i$; this assumes that labels are independent given the image. The free energy
# sums the weights of all label sets, and the sum factorises, because the energies of the labels are separate terms:
#
# $$S(x) = -\log\sum_{y}e^{\sum_i y_i\ell_i} = -\log\prod_{i=1}^{C}\left(1 + e^{\ell_i}\right)
# = \boxed{-\sum_{i=1}^{C}\log\left(1 + e^{\ell_i}\right)}$$
#
# So the sum over exponentially many label sets costs only $C$ softplus functions. This is the joint energy of
# {cite:t}`wang2021jointenergy`, with our sign, larger = more OOD. (They publish $-S$, larger = more ID.)
#
# ### 2.3 The probability that no label is present
#
# Because $1 - p_i = 1/(1+e^{\ell_i})$, each softplus is $-\log(1-p_i)$. So
#
# $$S(x) = \sum_i\log(1 - p_i) = \log P(\text{no known label is present}\mid x).$$
#
# A {term}`threshold` on the joint energy is a threshold on the probability that *none of the above* is present. $S$
# contains nothing else: it is a function of the $C$ posteriors. (With a softmax this is different. Adding a constant to
# all logits changes $\mathrm{logsumexp}$ and no probability. Here there is no such freedom.) Check both identities by
# brute force:

# %%
C = 10
logits = 3 * torch.randn(5, C, generator=generator, dtype=torch.float64)
E = -torch.log(1 + logits.exp())  # (N, C), one energy per label
S = E.sum(1)

y = torch.tensor(list(itertools.product((0.0, 1.0), repeat=C))).double()  # (2^C, C)
log_partition = torch.logsumexp(logits @ y.T, 1)  # over all label sets
log_nothing = torch.log(1 - logits.sigmoid()).sum(1)
assert len(y) == 2**C
assert torch.allclose(S, -log_partition) and torch.allclose(S, log_nothing)
assert torch.allclose(S, ood.joint_energy(logits))
assert torch.allclose(E, ood.label_energies(logits))

# %% [markdown]
# The literal formula overflows in single precision, and OOD images can have very large logits:

# %% tags=["hide-input"]
large = torch.tensor([[95.0, -95.0]])
print("literal:", -torch.log(1 + large.exp()).sum(1).item())
print("softplus:", ood.joint_energy(large).item())

# %% [markdown]
# ### 2.4 A label can only lower the score
#
# Every $E_i$ is negative. So a label can only lower the score of an image; we say that it *vouches* for the image. No
# label can raise the score. The {term}`score` approaches its upper bound 0 when all labels are absent, and it has no
# lower bound. This has three consequences:
#
# * **One label is enough.** With a threshold $\tau$, the image is accepted as soon as a single label has
#   $\log(1+e^{\ell_i})>-\tau$, whatever the other labels are.
# * **Absent labels hardly count.** A label with $\ell_j\ll0$ contributes $e^{\ell_j}$, not $\ell_j$. A hundred absent
#   labels do not outweigh one sure label. In the sum of logits they do.
# * **Too much evidence is never suspicious.** An image that excites a label far beyond anything in training gets a
#   lower score, not a higher one, and is accepted.
#
# How different is the joint energy from the largest logit? Keep only the largest term of the sum, or bound all terms by
# it:
#
# $$\max_i \ell_i \;\le\; -S(x) \;\le\; C\,\log\left(1+e^{\max_i\ell_i}\right).$$
#
# The joint energy *adds up* sure labels, the largest logit uses only one of them. Compare the scores on made-up images
# with ten labels:

# %% tags=["hide-input"]
silent = torch.full((C,), -6.0)
cases = {name: silent.clone() for name in ("nothing", "one label", "three labels")}
cases["one label"][0] = cases["three labels"][:3] = 6.0
cases["ten doubts"] = torch.full((C,), -1.0)
cases["absurd"] = torch.cat([torch.tensor([60.0]), torch.full((C - 1,), -60.0)])
made_up = torch.stack(list(cases.values()))
table = {name: S(made_up) for name, S in (scores | {"sum of p": sum_prob}).items()}
pd.DataFrame(table, index=list(cases)).map("{:.3g}".format)

# %% [markdown]
# Compare the rows. *Three labels* is three times as far below zero as *one label* in the joint energy, equal in the
# largest logit, and **more** suspicious in the softmax. In *ten doubts* each label has a probability of 27 %. Taken
# together, they are evidence that something is present ($S=\log 0.73^{10}$); the largest logit uses only one of them.
# For both scores *absurd* is the most typical image of all. The sum of probabilities does not distinguish it from *one
# label*: it saturates, which can be an advantage.

# %% [markdown]
# ## 3. Derivation: what a spectral norm bounds
#
# ### 3.1 Why smoothness at all?
#
# The other half of SNoJoE concerns the training. Its argument is that a network that changes fast can have high logits
# on images unlike anything in training. How fast can the score change? The gradient of $S$ in the logits is $-p$, so
#
# $$|S(x)-S(x')| \;\le\; \sqrt C\;\lVert\ell(x)-\ell(x')\rVert \;\le\; \sqrt C\;\mathrm{Lip}(\ell)\;\lVert x-x'\rVert .$$
#
# $\mathrm{Lip}(\ell)$, the Lipschitz constant, is the largest factor by which the network stretches a distance. If it
# is small, $S$ cannot fall quickly with the distance from the training data. By the same inequality it cannot *rise*
# quickly either. So smoothness alone does not separate OOD from ID.
#
# For a chain of layers the constants multiply. ReLU and pooling over windows that do not overlap do not stretch. (The
# overlapping max-pooling in torchvision's ResNets may, by a factor of up to 2.) A linear map stretches by at most its
# largest singular value, its **spectral norm** $\sigma_{\max}$.
#
# ### 3.2 Power iteration
#
# How do you compute $\sigma_{\max}(W)$ in every training step without a full decomposition? Multiply any vector by $W$
# and $W^\top$ in turn. Each turn multiplies its components by the squares of the singular values, so the largest soon
# dominates:
#
# $$u \leftarrow \frac{Wv}{\lVert Wv\rVert},\qquad v\leftarrow\frac{W^\top u}{\lVert W^\top u\rVert},\qquad
# \hat\sigma = u^\top W v \;\le\; \sigma_{\max}.$$

# %%
W = torch.randn(20, 30, generator=generator, dtype=torch.float64)
v, sigma_hat = torch.ones(30, dtype=torch.float64), []
for _ in range(60):
    u = W @ v / (W @ v).norm()
    v = W.T @ u / (W.T @ u).norm()
    sigma_hat.append((u @ W @ v).item())

ours = power_iteration(lambda x: W @ x, torch.ones(30, dtype=torch.float64), 60)
assert torch.allclose(ours[0], u) and torch.allclose(ours[1], v)
assert abs(sigma_hat[-1] - torch.linalg.svdvals(W)[0]) < 1e-3

# %% [markdown]
# The error falls like $(\sigma_2/\sigma_1)^{4n}$ after $n$ steps: the squared ratio for the vector, squared again for
# the value. Training needs only one step per update, because $W$ changes little between two updates and $u$, $v$ are
# kept.
#
# ### 3.3 A convolution is not its reshaped weight
#
# A convolution is linear too. The released code, like PyTorch, takes its weight of shape (out, in, $k$, $k$), reshapes
# it to a matrix (out, in $k^2$), and normalises *that* by its $\sigma_{\max}$. **Is that the norm of the convolution?**
# The matrix acts on one patch. The convolution acts on all patches, and they overlap: with stride 1 a pixel enters up
# to $k^2$ of them. Extracting the patches stretches the image by at most $\sqrt{k^2} = k$, hence
#
# $$\sigma_{\max} \;\le\; \lVert\text{convolution}\rVert \;\le\; k\,\sigma_{\max}.$$
#
# There are two ways to compute the true norm. With circular borders the Fourier transform splits the convolution into
# one small matrix per frequency, and the singular values of the convolution are those of these matrices
# {cite:p}`sedghi2019`. With the zero borders of a real network, iterate with the convolution itself and its transpose
# in place of $W$ and $W^\top$. (`exact_norm` does this by the Lanczos method, a faster relative of power iteration.)

# %%
layer = nn.Conv2d(8, 8, 3, padding=1, bias=False)
n = 12
symbol = torch.fft.fft2(layer.weight, s=(n, n)).permute(2, 3, 0, 1)  # one per frequency
fourier = torch.linalg.svdvals(symbol.detach()).flatten().sort(descending=True).values

pixels = torch.eye(8 * n * n).reshape(-1, 8, n, n)  # each pixel alone: the dense matrix
around = F.conv2d(F.pad(pixels, (1, 1, 1, 1), "circular"), layer.weight).flatten(1)
assert torch.allclose(fourier, torch.linalg.svdvals(around.detach()), atol=1e-4)

zeros = torch.linalg.svdvals(layer(pixels).flatten(1).detach())  # with zero borders
assert abs(exact_norm(layer, (8, n, n)) - zeros[0]) < 1e-4

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: power iteration on three matrices; the closer the second singular value is to the first, the slower it converges. Right: all singular values of one random 3x3 convolution, and the norm of the reshaped weight, which is smaller than the largest of them. The largest is below k times the reshaped norm.", "name": "fig-snojoe-norms"}, "image": {"alt": "Left, three falling lines of relative error against the number of steps on a logarithmic axis, steeper for smaller ratios of the second to the first singular value. Right, a falling curve of the singular values of a convolution; a horizontal line for the reshaped norm crosses it well below its top, another for three times that value lies above it."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(plots.FULL, 2.7))
for ratio, style in zip((0.99, 0.9, 0.6), plots.SERIES[::2]):
    diagonal = torch.cat([torch.tensor([1.0, ratio]), torch.linspace(0.5, 0, 18)]).double()
    v, error = torch.ones(20).double(), []
    for _ in range(40):
        u, v = power_iteration(lambda x, d=diagonal: d * x, v, 1)
        error.append(1 - (u * diagonal * v).sum().item())
    left.semilogy(np.arange(1, 41), np.maximum(error, 1e-16), label=f"{ratio:g}", **style | {"marker": ""})
left.legend(title="σ₂ / σ₁", fontsize=9)
left.set(xlabel="steps", ylabel="relative error", ylim=(1e-15, 2))
right.plot(fourier, label="circular borders (Fourier)", **plots.SERIES[0] | {"marker": ""})
right.plot(zeros, label="zero borders (dense matrix)", **plots.SERIES[3] | {"marker": ""})
sigma = reshaped_norm(layer.weight).item()
for height, text in ((sigma, "reshaped σ"), (3 * sigma, "k · reshaped σ")):
    right.axhline(height, color=plots.COLORS["grey"], lw=1)
    right.annotate(text, (len(zeros), height), ha="right", va="bottom", color=plots.COLORS["grey"])
right.set(xlabel="index", ylabel="singular value", ylim=(0, 3.4 * sigma))
right.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.68))
plt.show()

# %% [markdown]
# ### 3.4 Hard and bounded
#
# There are two ways to normalise. *Hard* normalisation {cite:p}`miyato2018` always divides, so a weight with a small
# norm grows. *Bounded* normalisation {cite:p}`gouk2021` divides only if the norm exceeds a bound $c$:
#
# $$\text{hard: } \bar W = \frac{W}{\hat\sigma},\qquad\qquad \text{bounded: } \bar W = \frac{W}{\max(1, \hat\sigma/c)}.$$
#
# SNoJoE's released code uses hard normalisation with the reshaped norm on every convolution.
# `ood_lib.spectral_normalize` has both kinds and both norms. It replaces the weight by a function of a free parameter,
# so that gradients flow through $\hat\sigma$ as well.

# %%
W, c = layer.weight.detach(), 0.5
sigma = torch.linalg.svdvals(W.flatten(1))[0]
wanted = {"hard": W / sigma, "bounded": W / torch.clamp(sigma / c, min=1)}

pictures = torch.rand(4, 8, n, n, generator=generator)
for mode, bound in (("hard", 1.0), ("bounded", c)):
    copy = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    copy.weight.data = W.clone()
    ood.spectral_normalize(copy, mode, bound).train()
    for _ in range(300):  # a forward pass in training mode is a step of power iteration
        copy(pictures)
    assert torch.allclose(copy.weight, wanted[mode], atol=1e-3)

# %% [markdown]
# ### 3.5 What a residual block keeps
#
# The second argument for spectral norms is about *lower* bounds. Let a block add a correction with
# $\mathrm{Lip}(g) = L < 1$ to its input. The triangle inequality, read both ways, gives
#
# $$(1-L)\,\lVert x-x'\rVert \;\le\; \lVert x + g(x) - x' - g(x')\rVert \;\le\; (1+L)\,\lVert x-x'\rVert .$$
#
# No two different inputs get the same output, so whatever makes an image unusual is preserved in the feature. That is
# the idea behind SNGP and DDU {cite:p}`liu2020sngp,mukhoti2023`. The ResNets of torchvision violate it: they apply a
# ReLU *after* the addition, and a ReLU can map different points to the same one. Strides, pooling and shortcuts that
# change the number of channels violate the lower bound too. In practice only the upper bound remains, and only where
# BatchNorm does not undo it.

# %% [markdown]
# ### 3.6 BatchNorm cancels it
#
# In a ResNet, however, each convolution is followed by BatchNorm, which subtracts the mean of a channel, divides by its
# standard deviation and multiplies by a learned $\gamma$. **What happens if the weight is multiplied by $s$?** Output,
# mean and standard deviation all grow by $s$. The quotient does not change:
#
# $$\mathrm{BN}\left(\tfrac1{\hat\sigma}\,W x\right) = \mathrm{BN}(W x)\qquad\text{(up to the tiny } \varepsilon
# \text{ under the root)}.$$
#
# In eval mode the running variance $\nu$ contains the scale. The pair of layers stretches by at most
# $\lVert W\rVert\cdot\max_j|\gamma_j|/\sqrt{\nu_j+\varepsilon}$, with the maximum over channels $j$. This is norm times
# *gain*, and whatever the normalisation takes from the first factor, BatchNorm adds to the second.

# %%
plain = nn.Conv2d(8, 8, 3, padding=1, bias=False)
hard = nn.Conv2d(8, 8, 3, padding=1, bias=False)
hard.load_state_dict(plain.state_dict())
ood.spectral_normalize(hard).train()
norm_a, norm_b = nn.BatchNorm2d(8).train(), nn.BatchNorm2d(8).train()
difference = (norm_a(plain(pictures)) - norm_b(hard(pictures))).abs().max().item()
assert difference < 1e-3
factor = (plain.weight.norm() / hard.weight.norm()).item()
print(f"the weights differ by a factor of {factor:.2f},")
print(f"the outputs after BatchNorm by {difference:.1e} at most")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One convolution and its BatchNorm after one batch of data, with the weight multiplied by s. The norm grows as the gain falls; their product stays constant. Only for tiny weights does the epsilon of BatchNorm matter.", "name": "fig-snojoe-cancel"}, "image": {"alt": "Log-log plot over the scale s of the weight. The norm of the convolution rises along a straight line, the gain of the BatchNorm falls along another, and their product is a horizontal line that bends down only at the left end."}}
scales, found = np.logspace(-3, 2, 11), {"norm of the convolution": [], "gain of BatchNorm": [], "product": []}
for s in scales:
    scaled, norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None).train()
    scaled.weight.data = plain.weight.detach() * s
    norm(scaled(pictures))  # with momentum=None the running variance is that of the data
    pair = exact_norm(scaled, (8, n, n)), batchnorm_gain(norm).item()
    for name, value in zip(found, (*pair, math.prod(pair))):
        found[name].append(value)
figure, ax = plt.subplots(figsize=(plots.HALF * 1.5, 2.7))
for (name, line), style in zip(found.items(), plots.SERIES[::2]):
    ax.loglog(scales, line, ms=4, label=name, **style)
ax.set(xlabel="scale s of the weight", ylabel="stretches by at most")
ax.legend(fontsize=9)
plt.show()

# %% [markdown]
# So spectral normalisation of convolutions alone *bounds* nothing in such a network. Does it at least change the
# training?
#
# ### 3.7 The theorem: with BatchNorm the two trainings are the same
#
# ```{admonition} Theorem
# :class: important
# Let a BatchNorm in training mode, with $\varepsilon=0$, follow every normalised convolution. Then the network with the
# weights
# $W/\hat\sigma(W)$ has **the same loss as a function of the free weights $W$** as the network with the weights $W$.
# From the same
# start, every optimiser that reads $W$ and its gradients (SGD, Adam, with weight decay or without) takes **the same
# steps**.
# ```
#
# *Proof.* BatchNorm makes the loss independent of the scale of the weight: $\mathcal L(tW)=\mathcal L(W)$ for every
# $t>0$. Put $t = 1/\hat\sigma(W)$, which is positive: a step of power iteration makes $\hat\sigma$ the length of $Wv$,
# whatever $v$ was before:
#
# $$\bar{\mathcal L}(W) = \mathcal L\left(W/\hat\sigma(W)\right) = \mathcal L(W)\quad\text{for every } W.$$
#
# Equal functions have equal gradients, so the first step is the same, hence the second, and so on. The chain rule shows
# the same. Write $g$ for the gradient of $\mathcal L$ at $W/\hat\sigma$. It is orthogonal to $W$, because $\mathcal L$
# does not change along $W$, and it is $\hat\sigma$ times the gradient at $W$. So the gradient through $\hat\sigma$
# vanishes and the factors cancel:
#
# $$\nabla\bar{\mathcal L} = \frac{g}{\hat\sigma} - \frac{\langle g, W\rangle}{\hat\sigma^2}\,\nabla\hat\sigma
# = \frac{g}{\hat\sigma} = \nabla\mathcal L(W).\qquad\blacksquare$$
#
# Train a small network both ways, with Adam, in double precision, and make $\varepsilon$ smaller:

# %%
def train_both_ways(eps, steps=30):
    """Losses (2, steps), then logits in eval mode (2, N, 4): plain, and hard-normalised."""
    x, y, losses, logits = pictures.double(), torch.arange(4), [], []
    for prepare in (lambda net: net, ood.spectral_normalize):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, eps), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, eps), nn.ReLU()]
        net = prepare(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4)).double())
        optimiser = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(steps):
            losses.append(F.cross_entropy(net(x), y))
            optimiser.zero_grad(), losses[-1].backward(), optimiser.step()
        logits.append(net.eval()(x))
    return torch.stack(losses).detach().view(2, steps), torch.stack(logits).detach()


# %%
for eps in (1e-5, 1e-14):
    (with_w, normalised), (logits, of_normalised) = train_both_ways(eps)
    apart = (with_w - normalised).abs().max()
    lag = (logits - of_normalised).abs().max()
    print(f"ε = {eps:g}: losses differ by {apart:.0e}, logits in eval mode by {lag:.2g}")
assert apart < 1e-9 < with_w[0] - with_w[-1]  # the same training, and it moves

# %% [markdown]
# It is the same training, up to $\varepsilon$ and rounding. (In a long training such small differences can grow, like
# those from a change of seed.) Bounded normalisation of convolutions alone gives the same training as well. In
# torchvision's ResNets a BatchNorm follows every convolution. **So the released method can differ from JointEnergy in
# only three ways**:
#
# * by $\varepsilon$, where the variance of a channel is nearly as small;
# * in eval mode, by running variances that follow $\hat\sigma$ with a delay (the logits above);
# * by a training loop that does not call `train()`: then the statistics of BatchNorm are frozen, and the theorem does
#   not apply.
#
# Our own ResNet adds a fourth, its 1×1 shortcuts without a BatchNorm. To bound a pair of layers, you have to bound the
# gain as well: with the parameter `batchnorm` of `spectral_normalize`, $\gamma$ is divided so that the gain does not
# exceed its bound {cite:p}`vanamersfoort2021`. You will train all three kinds.

# %% [markdown]
# ## 4. Training

# %% tags=["hide-input"]
bench  # which set plays which role, and how many images it has

# %% tags=["hide-input"]
report = ood.count_labels(bench.train.labels)
print(report)

# %% [markdown]
# On `scenes`, the default, the ID images are canvases with one to three known digits in front of a photograph. The
# labels say which digits are present, but not where, nor how many of each. The *near* set has the same canvases with
# unknown digits only. Among the *far* sets, *backgrounds* are canvases without any digit, exactly the event *none of
# the above*. The others are photographs and gratings at full contrast, which do not occur in the training set. The
# colour-inverted canvases of the benchmark are left out. They still show known digits, so they are shifted ID images,
# and a detector of *none of the above* may accept them. (With another benchmark, the table above names the sets.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The benchmark: one row per data set. The network is trained on canvases like those of the first row and never sees the others.", "name": "fig-snojoe-images"}, "image": {"alt": "Rows of small pictures. ID images with known labels first, then the near-OOD set with unknown objects of the same kind, then the far-OOD sets."}}
plots.benchmark_images(bench)
plt.show()

# %% [markdown]
# You train five kinds of network, each from the same seeds:
#
# * **plain**: no normalisation; JointEnergy's side of the comparison;
# * **hard**: every convolution hard-normalised by its reshaped norm, BatchNorm unchanged; SNoJoE as intended;
# * **bounded**: exact norms at most $c$ *and* BatchNorm gains bounded, so the network is really bounded;
# * **plain, eval** and **hard, eval**: the first two with a defect of the released training loops of both papers.
#
# The defect is this: after each epoch the released loops evaluate the validation set in eval mode, and never switch
# back. From the second epoch on BatchNorm no longer uses batch statistics, and power iteration stops. So
# $\hat\sigma=u^\top Wv$ with frozen $u$, $v$ is no longer the norm of the weight, which continues to change. `ood_lib`
# calls `train()` every epoch; the last two kinds undo that on purpose.
#
# With the default parameters one network of each kind is trained here. The others come with the book: the same code
# trained them, from the seeds that follow. After `export OOD_TRAIN=all` all of them are trained on your machine; then
# the page runs several times as long.
#
# How were the defaults chosen? About ten training recipes were tried on seed 0, and we saw their test mAP and OOD
# AUROCs. Widths, batch size and learning rate were chosen by mAP and time; one run without augmentation had a better
# near AUROC and was not chosen. `gain = 5` of the bounded kind was chosen by trial, while we saw the OOD results. Seed
# 0 is one of the default seeds, so the results below are slightly optimistic; those of the other seeds are not affected
# in this way.

# %% tags=["hide-input"]
labels = bench.classes
channels, C = bench.image_shape[0], len(labels)
KINDS = ("plain", "hard", "bounded", "plain, eval", "hard, eval")


def build(kind, s):
    torch.manual_seed(s)
    own = partial(ood.ResNet, channels, C, widths, normalize=bench.normalize)
    network = foreign() if backbone else own()
    if kind.startswith("hard"):
        ood.spectral_normalize(network)
    if kind == "bounded":
        ood.spectral_normalize(network, "bounded", coefficient, "exact", batchnorm=gain)
    if kind.endswith("eval"):
        forget_to_train(network)
    return network


# %% tags=["hide-input"]
def foreign():
    """The ResNet of torchvision that the parameters name, with a fresh linear layer for our labels."""
    from torchvision.models import get_model

    model = get_model(backbone, weights=None if Path(weights).is_file() else weights or None)
    if Path(weights).is_file():
        model.load_state_dict(torch.load(weights, weights_only=True))
    model.fc = nn.Linear(model.fc.in_features, C)
    return ood.adapt(model, normalize=bench.normalize)


if backbone:
    try:
        foreign()
    except OSError as error:  # no network, and not in the cache of torch.hub
        if missing != "skip":
            raise
        warnings.warn(f"{backbone}: weights {weights!r} cannot be loaded ({error}); our own network is used", stacklevel=1)
        backbone = weights = ""
drawn = f"{backbone}, weights {weights}" if weights else f"{backbone or 'our own small ResNet'}, from random weights"
display(Markdown(f"The network: {drawn}, {sum(p.numel() for p in build('plain', seed).parameters()):,} parameters."))

# %% tags=["hide-input"]
def forget_to_train(network):
    """After the first epoch, train() does nothing: as if nobody called it."""
    real, calls = network.train, []

    def train(mode=True):
        calls.append(mode)
        return real(mode and calls.count(True) == 1)

    network.train = train


# %% tags=["hide-input"]
common = {"batch_size": batch_size, "channels_last": True, "device": device, "progress": False}
with warnings.catch_warnings(action="ignore"):  # two updates first: in a fresh process they are slow, whatever the kind
    ood.train_multilabel(build("plain", seed), bench.train.subset(torch.arange(2 * batch_size)), epochs=1, **common)
networks = {kind: [build(kind, s) for s in range(seed, seed + seeds)] for kind in KINDS}

# %% tags=["hide-input"]
histories, seconds = {}, dict.fromkeys(KINDS, 0.0)
for n, kind in itertools.product(range(seeds), KINDS):
    start = time.process_time()
    histories[kind, n] = ood.trained(
        ood.train_multilabel, networks[kind][n], bench.train, name=f"{bench.name} {kind}", seed=seed + n, val=bench.val,
        epochs=epochs, learning_rate=learning_rate, backbone_rate=backbone_rate or None, autocast="auto" if half else None,
        augment=ood.augmented(bench.image_shape[-1] // 16, mirror=False), **common,
    )  # fmt: skip
    if not histories[kind, n].recalled:
        seconds[kind] += time.process_time() - start

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training: loss per update (mean over networks and 15 updates) and validation mAP per epoch, mean and range over networks. Watch what the missing call of train() does after the first epoch.", "name": "fig-snojoe-training"}, "image": {"alt": "Left, the binary cross-entropy on a logarithmic axis over the updates for five kinds of network. Right, the mean average precision on the validation set per epoch. Every kind has a curve in each panel, with its range shaded on the right."}}
STYLE = dict(zip(KINDS, plots.SERIES))
figure, (left, right) = plt.subplots(1, 2, figsize=(plots.FULL, 2.9))
for kind, style in STYLE.items():
    loss = np.mean([histories[kind, n].loss for n in range(seeds)], 0)
    mAP = 100 * np.array([histories[kind, n].accuracy for n in range(seeds)])
    left.semilogy(pd.Series(loss).rolling(15, min_periods=1).mean(), label=kind, lw=1.4, **style | {"marker": ""})
    right.plot(np.arange(1, epochs + 1), mAP.mean(0), ms=4, lw=1.4, **style)
    right.fill_between(np.arange(1, epochs + 1), mAP.min(0), mAP.max(0), color=style["color"], alpha=0.12, lw=0)
left.set(xlabel="update", ylabel="cross-entropy per label")
right.set(xlabel="epoch", ylabel="validation mAP (%)")
left.legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
small = replace(bench, train=bench.val)  # where nothing is fitted on the training set
features = {}
for kind, group in networks.items():
    sets = bench if kind == "plain" else small
    options = {"device": device, "progress": False}
    features[kind] = [ood.extract_benchmark(network, sets, **options) for network in group]
f = features["plain"][0]  # the one we look into
precision = {
    kind: torch.stack([ood.average_precision(x.test.logits, x.test.labels) for x in group])
    for kind, group in features.items()
}

# %% tags=["hide-input"]
timed = sum(not histories["plain", n].recalled for n in range(seeds))
table = pd.DataFrame({
    kind: {"mAP (%)": f"{100 * p.nanmean():.1f}", "worst class (%)": f"{100 * p.nanmean(0).nan_to_num(1).min():.1f}",
           "CPU time against plain": f"{seconds[kind] / seconds['plain']:.2f}" if timed else "not trained now"}
    for kind, p in precision.items()
}).T  # fmt: skip
worst = precision["plain"].nanmean(0).nan_to_num(1).argmin().item()
reached, chance = 100 * precision["plain"].nanmean().item(), 100 * bench.test.labels.float().mean().item()
display(table.style.set_caption(f"ID test images, mean over the networks of each kind ({seeds})"))
display(Markdown(
    f"A random ranking has a mAP of about {chance:.1f} %, the share of images that carry a label, on average. "
    + ("**The plain networks are not far above it. They have hardly learned what is in these images, so the results below "
       "say little about the scores.** " if reached < 2 * chance else "") +
    f"The hardest label of the plain networks is *{labels[worst]}*. "
    + (f"Power iteration costs {100 * (seconds['hard'] / seconds['plain'] - 1):+z.0f} % of training time here, measured on {timed} "
       f"training{'s' * (timed > 1)} of each kind (other work on the machine may affect this)." if timed else "")
))  # fmt: skip

# %% [markdown]
# ## 5. Looking inside
#
# ### 5.1 Features
#
# **Where do images with several labels lie?** With one label per image, classes form islands. Here an image belongs to
# several classes at once. UMAP {cite:p}`mcinnes2018umap` keeps neighbours together; distances between clusters, and
# their sizes, mean little.

# %% tags=["hide-input"]
pooled = {g: torch.cat([x.penultimate for x in sets.values()]) for g, sets in f.groups().items() if sets}
by_group = {"id": f.test.penultimate, **pooled}
picked = {k: torch.randperm(len(v), generator=generator)[: umap_points // len(by_group)] for k, v in by_group.items()}
points = plots.umap(torch.cat([by_group[k][i] for k, i in picked.items()]), seed)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "UMAP of penultimate features of one plain network. Left: ID, near, far. Right: the ID points alone, by how many known labels they carry. Distances between islands carry no meaning.", "name": "fig-snojoe-umap"}, "image": {"alt": "Two scatter plots of the same two-dimensional embedding. Left, blue circles are ID points, orange triangles near-OOD, pink squares far-OOD. Right, only ID points, marked by the number of labels: one, two, or three and more."}}
groups = np.repeat(list(picked), [len(i) for i in picked.values()])
figure, (left, right) = plt.subplots(1, 2, figsize=(plots.FULL, 3.6))
plots.embedding(points, {k: groups == k for k in ("far", "near", "id") if k in picked}, ax=left)
left.legend(fontsize=8, markerscale=2)
count = f.test.labels[picked["id"]].sum(1).numpy()
for k, (marker, shade) in enumerate(zip("oDX", ("#56B4E9", "#0072B2", "#000000")), 1):
    chosen = (count >= 3) if k == 3 else count == k
    style = {"color": shade, "s": 14, "alpha": 0.7, "linewidths": 0, "rasterized": True}
    here = points[groups == "id"][chosen]
    right.scatter(*here.T, marker=marker, label=f"{k}{'+' * (k == 3)} label{'s' * (k > 1)}", **style)
right.set(xlabel="UMAP 1", xticks=[], yticks=[])
right.legend(fontsize=8, markerscale=1.5)
plt.show()

# %% [markdown]
# ### 5.2 Scores
#
# The figure shows the four scores of section 1 on the same logits. The line is the threshold set on ID validation
# images.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Densities of four scores on the logits of one plain network. Scores far below those of the ID images are drawn at the left border. The more the orange and pink curves lie to the right of the blue one, the better.", "name": "fig-snojoe-scores"}, "image": {"alt": "Four panels of smoothed score densities for ID, near-OOD and far-OOD: joint energy, largest logit, softmax, and sum of logits. A vertical line marks the threshold; OOD mass to its left is missed. Scores far below those of ID images are gathered at the left border of their panel."}}
detectors = {"joint energy": ood.JointEnergy(), "largest logit": ood.MaxLogit(), "softmax": ood.MSP(), "sum of logits": ood.SumLogit()}
figure, axes = plt.subplots(2, 2, figsize=(plots.FULL, 4.4))
for ax, (name, detector) in zip(axes.flat, detectors.items()):
    values = {"id": detector(f.test)}
    values |= {g: torch.cat([detector(x) for x in sets.values()]) for g, sets in f.groups().items() if sets}
    floor = values["id"].min() - 0.3 * (values["id"].max() - values["id"].min())
    threshold = detector.calibrate(f.val).threshold.item()
    plots.density({k: v.clamp(min=floor) for k, v in values.items()}, threshold=threshold, ax=ax)
    ax.set(title=name, yticks=[])
    if ax is not axes[0, 0]:
        ax.get_legend().remove()
plt.show()

# %% [markdown]
# ### 5.3 Which label lowers the score?
#
# $S$ is a sum over labels, so it comes with its own explanation. Take ID images with one, two and three labels, and
# from each OOD set the image at the lower quartile of $S$: a quarter of the set has an even lower score. Plot $-E_i$,
# by how much each label lowers the score.

# %% tags=["hide-input"]
def example(x, share=0.25):
    """Index of the image below whose joint energy a given share of the set lies."""
    order = ood.joint_energy(x.logits).argsort()
    return order[int(share * len(order))].item()


vouching = {}
for k in (1, 2, 3):
    with_k = (f.test.labels.sum(1) == k).nonzero().flatten()
    if len(with_k):
        chosen = with_k[example(f.test[with_k], 0.5)].item()
        vouching[f"ID, {k} label{'s' * (k > 1)}"] = (bench.test, f.test, chosen, "id")
both_groups = {"near": (bench.near, f.near), "far": (bench.far, f.far)}
for role, (sets, known) in both_groups.items():
    vouching |= {name: (sets[name], x, example(x), role) for name, x in known.items()}

# %% tags=["hide-input"]
def finish(heat, bars, edge):
    """Names and limits of the heat map and of the bars beside it."""
    rows = len(vouching)
    heat.set(xticks=range(C), yticks=range(rows), yticklabels=vouching, xlabel="label i,  $-E_i$")
    heat.set_xticklabels(labels, rotation=0 if C <= 10 else 90)
    heat.grid(visible=False)
    bars.set(xlabel="$-S$ (smaller = more OOD)", xlim=(0, 1.15 * edge), ylim=(rows - 0.5, -0.5), yticks=[])


# %% tags=["hide-input"] mystnb={"figure": {"caption": "By how much each label lowers the score. Darker = lower energy of that label; dots mark labels that are truly present. The bar is the sum, minus the joint energy; an image whose bar ends left of the line −τ counts as OOD. One dark cell is enough to be accepted.", "name": "fig-snojoe-vouch"}, "image": {"alt": "A heat map with one row per example image, its picture at the left, and one column per label. In the ID rows exactly the present labels are dark and dotted. In the background row all cells are pale and its bar ends left of the threshold. In several other OOD rows a cell of an absent digit is dark and the bar crosses the threshold."}}
energies = torch.stack([-ood.label_energies(x.logits[i]) for _, x, i, _ in vouching.values()])
tau = -ood.JointEnergy().calibrate(f.val).threshold.item()
top = energies[[role == "id" for *_, role in vouching.values()]].max().item()
edge = max(3 * top, 1.5 * tau)  # longer bars are cut
figure, axes = plt.subplots(1, 3, figsize=(plots.FULL, 0.42 * len(vouching) + 0.7), width_ratios=(0.5, 3.2, 2.3))
pics, heat, bars = axes
heat.imshow(energies, cmap="viridis_r", vmin=0, vmax=top, aspect="auto")
for row, ((data, x, i, role), own) in enumerate(zip(vouching.values(), energies)):
    box = pics.inset_axes((0, 1 - (row + 0.95) / len(vouching), 1, 0.9 / len(vouching)))
    box.imshow(np.asarray(data[i][0]).transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
    for column in range(C if C <= 10 else 0):
        shade = "white" if own[column] > top / 2 else "black"
        heat.text(column, row, f"{own[column]:.1f}", ha="center", va="center", fontsize=8, color=shade)
    for column in (x.labels[i] == 1).nonzero().flatten() if role == "id" else ():
        heat.plot(column + 0.36, row - 0.3, "o", ms=4, color="white", mec="black")
    bars.barh(row, own.sum().clamp(max=edge), color=plots.COLORS[role], alpha=0.8)
    bars.text(min(own.sum().item(), edge), row, f" {own.sum():.1f}", va="center", fontsize=9)
    box.axis("off")
bars.axvline(tau, color="black", lw=1)
bars.annotate("−τ", (tau, -0.5), xytext=(2, 2), textcoords="offset points", annotation_clip=False)
finish(heat, bars, edge)
pics.axis("off")
plt.show()

# %% [markdown]
# In the rows of OOD images, a dark cell shows which label makes the detector accept the image. An unknown digit can be
# accepted because parts of it resemble a known one, and small probabilities of several labels add up. On an image
# without any digit, no label should lower the score much. Where an OOD image has a larger value than all ID images
# shown, see section 5.5.
#
# ### 5.4 Which norms are bounded, and which are not
#
# The library's report passes an image through a network. It lists, layer by layer, the reshaped norm, the exact norm at
# the layer's input size, the gain of the BatchNorm behind it, and norm times gain.

# %% tags=["hide-input"]
pictures = bench.test.subset(torch.arange(min(128, len(bench.test)))).images
look = partial(ood.lipschitz_report, images=pictures[:2], tolerance=1e-3)
before = {kind: look(build(kind, seed)) for kind in KINDS}
after = {kind: [look(n.cpu()) for n in group] for kind, group in networks.items()}
after["hard"][0].round(2)  # one network, hard-normalised as in the released code

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Layer by layer, mean over networks: reshaped norm, exact norm, BatchNorm gain, and exact norm times gain. The last panel is what a layer with its BatchNorm does: compare the three curves there with those of the first panel.", "name": "fig-snojoe-lipschitz"}, "image": {"alt": "Four panels with a logarithmic vertical axis over the layers in the order they run, each with three curves for plain, hard and bounded networks. In the first, the hard curve is flat at one. The last panel shows the product, the most by which each layer stretches."}}
columns = {"reshaped": "reshaped norm", "exact": "exact norm", "gain": "BatchNorm gain", "product": "exact norm × gain"}
figure, axes = plt.subplots(1, 4, figsize=(plots.FULL, 2.9), sharey=True)
chain = (after["plain"][0]["gain"] != 1).to_numpy()  # the layers with a BatchNorm; shortcuts and head have none
for ax, (column, title) in zip(axes, columns.items()):
    for kind in ("plain", "hard", "bounded"):
        line = np.exp(np.mean([np.log(r[column]) for r in after[kind]], 0))[chain]
        ax.semilogy(np.arange(1, len(line) + 1), line, label=kind, ms=3.5, lw=1.2, **STYLE[kind])
    ax.axhline(1, color=plots.COLORS["grey"], lw=0.8)
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="convolution", xticks=range(1, len(line) + 1, 2))
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# The table summarises this in one column per kind. The *product* over layers is the number that is usually quoted (a
# ResNet adds branches, so it is an index, not a bound). The table also has a quantity that you can measure on images:
# the length of the gradient $\nabla_x S$, the slope of the score in pixel space, at ID images.

# %% tags=["hide-input"]
def slope(network, images):
    """Length of the gradient of the joint energy with respect to each image, (N,)."""
    lengths = []
    for part in images.split(32):
        x = part.clone().requires_grad_()
        S = ood.joint_energy(network.eval()(x)).sum()
        lengths.append(torch.autograd.grad(S, x)[0].flatten(1).norm(dim=1))
    return torch.cat(lengths)


slopes = {
    kind: [slope(network, pictures).median().item() for network in group]
    for kind, group in networks.items()
}

# %% tags=["hide-input"]
def logs(report, with_norm):
    """Sum of the logarithms of the products, over the layers with a BatchNorm behind them, or over all others."""
    return np.log10(report["product"])[(report["gain"] != 1) == with_norm].sum()


def lipschitz_row(kind):
    convs = [r[r["layer"] != "head"] for r in after[kind]]
    start = logs(before[kind], True)
    chains, others = ([logs(r, with_norm) for r in after[kind]] for with_norm in (True, False))
    return {
        "largest reshaped norm": f"{max(r['reshaped'].max() for r in convs):.2f}",
        "largest exact norm": f"{max(r['exact'].max() for r in convs):.2f}",
        "largest gain": f"{max(r['gain'].max() for r in convs):.1f}",
        "log₁₀ product, untrained": f"{start:z.1f}",
        "log₁₀ product, trained": f"{np.mean(chains):z.1f} ({min(chains):z.1f} to {max(chains):z.1f})",
        "log₁₀ product, without BatchNorm": f"{np.mean(others):z.1f} ({min(others):z.1f} to {max(others):z.1f})",
        "slope of S at ID images": f"{np.mean(slopes[kind]):.0f} ({min(slopes[kind]):.0f} to {max(slopes[kind]):.0f})",
    }


kept = pd.DataFrame({kind: lipschitz_row(kind) for kind in KINDS})
bare = [name for name, gain in after["plain"][0][["layer", "gain"]].to_numpy() if gain == 1]
kept.style.set_caption(
    f"{seeds} network{'s' * (seeds > 1)} of each kind, mean and range. The products run over the convolutions with a BatchNorm behind them; "
    f"the last but one row over the layers without: {', '.join(bare)}"
)

# %% [markdown]
# Compare the rows. Hard normalisation sets the reshaped norm to 1, as long as `train()` is called. The exact norms may
# be larger than 1, because patches overlap. Then compare the gains, and the product after training: where a BatchNorm
# follows, its gain can undo the normalisation. Layers without a BatchNorm are bounded; in our ResNet these are the 1×1
# shortcuts (in torchvision's, a BatchNorm follows them too). In the eval columns look at the first row again: a
# *normalised* layer need not have the norm 1.
#
# The bounded networks respect both bounds, $c$ and the gain. But many layers, each of which may stretch by $c$ times
# the gain, can stretch a great deal together. So compare their product with that of the plain networks before you call
# them smooth.
#
# ### 5.5 Too much evidence
#
# Take gratings and increase their contrast from a grey field to full range. **What should a detector do?** The further
# an image is from the training images, the larger its score should be.

# %% tags=["hide-input"]
def gratings(contrast, count=24):
    random = torch.Generator().manual_seed(seed)
    height, width = bench.image_shape[1:]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angle, phase = torch.rand(2, count, 1, 1, generator=random) * 2 * math.pi
    along = row * angle.cos() + column * angle.sin()
    wave = torch.sin(16 * math.pi * along / height + phase)
    return (0.5 + 0.5 * contrast * wave)[:, None].expand(-1, channels, -1, -1)


contrasts = torch.linspace(0, 1, 11)
with torch.no_grad():
    sweep = {k: [[ood.joint_energy(n(gratings(a))) for a in contrasts] for n in networks[k]]
             for k in ("plain", "hard", "bounded")}  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Median joint energy of gratings against their contrast, mean and range over networks, and the threshold τ of each kind (thin line). Below τ an image is accepted as ID, above τ it counts as OOD.", "name": "fig-snojoe-contrast"}, "image": {"alt": "Three panels, plain, hard and bounded networks, with the joint energy of gratings over their contrast. A thin line marks the threshold; where the curve lies below it, the gratings pass as known."}}
figure, axes = plt.subplots(1, 3, figsize=(plots.FULL, 2.7), sharey=True)
for ax, (kind, curves) in zip(axes, sweep.items()):
    medians = torch.tensor([[s.median() for s in curve] for curve in curves])  # (networks, contrasts)
    tau = np.mean([ood.JointEnergy().calibrate(x.val).threshold.item() for x in features[kind]])
    plots.band(pd.DataFrame(medians.T.numpy(), index=contrasts.numpy()), "far", ax)
    ax.axhline(tau, color=plots.COLORS["grey"], lw=1)
    ax.annotate("τ", (1, tau), ha="right", va="bottom", color=plots.COLORS["grey"])
    ax.set(title=kind, xlabel="contrast of the grating", xticks=(0, 0.5, 1))
axes[0].set_ylabel("S (larger = more OOD →)")
plt.show()

# %% [markdown]
# By section 2.4, $S$ cannot express *too much evidence*. Far enough along a ray a ReLU network is linear, and a label
# whose logit grows there lowers the score without limit. Pixels end at full contrast, so the curves need not get that
# far: see where they fall, and whether they level off. The largest logit has the same weakness. Bounded networks may
# fall less, but their threshold $\tau$ moves too, because the energies of ID images can shrink as well. This is the
# two-sided inequality of section 3.1.

# %% [markdown]
# ## 6. Benchmark
#
# ### 6.1 Which score, on photographs?
#
# The papers make their claim on photographs, so start there. A MobileNetV2 {cite:p}`sandler2018` with ImageNet weights
# stays frozen. The bank `voc-mobilenetv2` holds its 1280 features of pictures of PASCAL VOC 2012
# {cite:p}`everingham2010`, each with some of 20 labels. The far set consists of textures. The near set consists of
# ImageNet pictures of reptiles, insects, sea animals, food and fungi, selected by eye so that no object of the 20
# labels is visible. (The network was trained on ImageNet, which contains these pictures; the heads were not. The sets
# were compressed differently, and this may help to separate them, but it does so for all scores.)
#
# Each label gets a logistic regression on these features. The parameter `C` of scikit-learn is the inverse of its L2
# penalty; it is chosen by the cross-entropy on the validation pictures, without any OOD picture. (Standardised features
# reach the same cross-entropy, and somewhat lower AUROCs in the same order. We knew these AUROCs when we decided not to
# standardise.) The pictures are split at random several times. The splits share pictures, so for $n$ splits the
# intervals of the differences below are widened by $\sqrt{1+n\,N_\text{test}/N_\text{train}}$ {cite:p}`nadeau2003`; the
# intervals in the tables are not.

# %% tags=["hide-input"]
bank = ood.load_bank("voc-mobilenetv2")
own = (bank.train, bank.val, bank.test)
Z, Y = torch.cat([x.penultimate for x in own]), torch.cat([x.labels for x in own])
ROWS = (1200, 200, len(Z) - 1400)  # of each split: train, validation, test


def fitted_heads(z, y, strength):
    """One logistic regression per label, as the weights and biases of a linear layer."""
    fits = [LogisticRegression(C=strength, max_iter=1000).fit(z, column) for column in y.T]
    W, b = (np.concatenate([getattr(x, a) for x in fits]) for a in ("coef_", "intercept_"))
    return torch.tensor(W).float(), torch.tensor(b).float()


# %% tags=["hide-input"]
@cache
def split_and_head(split, strength):
    """The rows of a random split, and heads that were fitted on it."""
    rows = torch.randperm(len(Z), generator=torch.Generator().manual_seed(seed + split)).split(ROWS)
    return rows, fitted_heads(Z[rows[0]], Y[rows[0]], strength)


def through_heads(split, strength):
    """The bank with the logits of heads that were fitted on a random split."""
    rows, head = split_and_head(split, strength)
    known = [ood.Features(Z[part], F.linear(Z[part], *head), Y[part]) for part in rows]
    unknown = [{k: ood.Features(x.penultimate, F.linear(x.penultimate, *head)) for k, x in sets.items()}
               for sets in (bank.near, bank.far)]  # fmt: skip
    return ood.BenchmarkFeatures(*known, *unknown)


def validation(x, T=1.0):
    """Cross-entropy of the validation pictures, the logits divided by T."""
    return F.binary_cross_entropy_with_logits(x.val.logits / T, x.val.labels.float()).item()


# %% tags=["hide-input"]
temperatures = np.logspace(-0.5, 1, 31)
photos, losses = {}, pd.DataFrame(0.0, index=strengths, columns=range(photo_splits))
for strength, split in itertools.product(strengths, range(photo_splits)):
    x = through_heads(split, strength)
    losses.loc[strength, split] = validation(x)
    T = min(temperatures, key=partial(validation, x))
    rivals = {"JointEnergy": ood.JointEnergy(), "MaxLogit": ood.MaxLogit()}
    rivals["MSP"] = ood.MSP()
    rivals["JointEnergy, calibrated"] = ood.JointEnergy(temperature=T)
    photos[strength, split] = ood.run_benchmark(rivals, x, seed=split)
best = losses.idxmin()
on_photos = pd.concat([photos[strength, split] for split, strength in best.items()])

# %% tags=["hide-input"]
distance = [
    ood.run_benchmark({"Mahalanobis": ood.Mahalanobis()}, through_heads(split, strength), seed=split)
    for split, strength in best.items()
]
on_photos = pd.concat([on_photos, *distance])
shown = on_photos[on_photos["detector"] != "JointEnergy, calibrated"]
caption = f"Photographs: AUROC in %, mean over {photo_splits} splits; bold: best and its equals"
display(plots.benchmark_table(shown, caption=caption))
caption = "Photographs: FPR at 95 % ID recall in %, mean over splits; lower is better"
display(plots.benchmark_table(shown, "fpr95", caption=caption))

# %% tags=["hide-input"]
def over_splits(rows, one, other, group):
    """A difference over splits and as text, its interval widened because the splits share pictures."""
    duel = ood.compare_over_seeds(rows, one, other, group)
    duel = duel._replace(half=duel.half * math.sqrt(1 + photo_splits * ROWS[2] / ROWS[0]))
    pair = f"{one} against {other}, {next(iter(bank.groups()[group]))}"
    return duel, f"* {pair}: **{duel.difference:+.1f} ± {duel.half:.1f}** ({duel.word})"


published_order = [("JointEnergy", "MaxLogit"), ("MaxLogit", "MSP")]
duels, lines = zip(*(over_splits(on_photos, a, b, g) for a, b in published_order for g in ("near", "far")))
words = {duel.word for duel in duels}
display(Markdown(
    "**On photographs the published order, joint energy before largest logit before softmax, "
    + ("reproduces.**" if words == {"better"} else "is contradicted.**" if "worse" in words else "is not settled by these splits.**")
    + " Differences in points of AUROC, paired over splits, with 99 % intervals:\n\n" + "\n".join(lines)
    + "\n\nThe OOD sets are the same in all splits. The intervals do not include this: with other OOD pictures all results could change together. "
    f"On the validation pictures C = {' or '.join(f'{c:g}' for c in sorted(set(best)))} was best."
))  # fmt: skip

# %% [markdown]
# ### 6.2 The sum needs well-regularised heads
#
# **Why does the penalty matter, although the AUROC depends only on ranks?** The order of the largest logit does not
# change when all logits are divided by a temperature $T$. That of the joint energy does:
#
# $$S_T(x) = -T\sum_i\log\left(1+e^{\ell_i/T}\right)\;\longrightarrow\;
# \begin{cases}-\sum_i\max(\ell_i, 0), & T\to0,\\ -\tfrac12\sum_i\ell_i-TC\log2, & T\to\infty.\end{cases}$$
#
# With $T$ large it ranks as the sum of logits, where the absent labels decide. So the sum depends on *all* labels,
# including badly learned ones. The next figure weakens the penalty:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Heads with less and less penalty (C grows to the right), mean and range over splits. Left: validation cross-entropy, with the C that it chooses (dotted). Right: AUROC, mean of both OOD sets. Compare the joint energy with the largest logit at the chosen C and to the right of it, and see what calibrating the logits does.", "name": "fig-snojoe-heads"}, "image": {"alt": "Two panels over the strength C on a logarithmic axis. Left, the validation cross-entropy falls to a minimum near the middle and rises to the right; dotted vertical lines mark the minima of the splits. Right, AUROC curves of the joint energy, the joint energy with calibrated logits, and the largest logit."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(plots.FULL, 2.9))
plots.band(losses, plots.SERIES[0], left)
left.set(xscale="log", xlabel="C (weaker penalty →)", ylabel="validation cross-entropy")
means = {key: t[t["metric"] == "auroc"].groupby("detector")["value"].mean() for key, t in photos.items()}
means = pd.DataFrame(means).T
for name, style in zip(("JointEnergy", "JointEnergy, calibrated", "MaxLogit"), plots.SERIES[::2]):
    plots.band(means[name].unstack(), style | {"label": name}, right)
right.set(xscale="log", xlabel="C (weaker penalty →)", ylabel="AUROC")
right.legend(fontsize=8)
for ax in (left, right):
    for strength in set(best):
        ax.axvline(strength, color="black", ls=":", lw=1, zorder=2)
plt.show()

# %% tags=["hide-input"]
weak = pd.concat([photos[strengths[-1], split] for split in range(photo_splits)])
kinds = ("JointEnergy", "JointEnergy, calibrated")
duels, lines = zip(*(over_splits(weak, a, "MaxLogit", g) for a in kinds for g in ("near", "far")))
plain_gap, calibrated_gap = (np.mean([duel.difference for duel in duels[k : k + 2]]) for k in (0, 2))
display(Markdown(
    f"With almost no penalty (C = {strengths[-1]:g}) the validation cross-entropy is {losses.loc[strengths[-1]].mean():.2f} instead of "
    f"{losses.min().mean():.2f}. The differences in points of AUROC are:\n\n" + "\n".join(lines) + "\n\n" +
    ("Dividing the logits by the $T$ of the lowest validation cross-entropy calibrates such heads and makes their joint energy "
     f"**worse**, by {plain_gap - calibrated_gap:.1f} points on average. A likely reason is that the logits of absent labels are noise here, and a larger $T$ "
     "gives them more weight in the sum. A temperature is no substitute for a penalty."
     if calibrated_gap < plain_gap - 1 else
     "Dividing the logits by the $T$ of the lowest validation cross-entropy does not lower the joint energy here.")
))  # fmt: skip

# %% [markdown]
# So before you sum over labels, choose the penalty of the heads by their validation cross-entropy.
#
# ### 6.3 Scores on the same plain networks
#
# **Which score of a multi-label network detects best?** All detectors use the logits of the same networks, except
# Mahalanobis, which uses the penultimate feature; an image with several labels counts once for each of them in its
# class means. LOF and the isolation forest are scikit-learn's, fitted on validation logits as the authors do. ODIN
# perturbs the image first.

# %% tags=["hide-input"]
def contestants():
    """The detectors that can be compared on one network."""
    return {
        "JointEnergy": ood.JointEnergy(),
        "MaxLogit": ood.MaxLogit(),
        "MSP": ood.MSP(),
        "SumProb": ood.SumProb(),
        "SumLogit": ood.SumLogit(),
        "Mahalanobis": ood.Mahalanobis(),
        "LOF": ood.SklearnDetector(LocalOutlierFactor(novelty=True)),
        "Isolation forest": ood.SklearnDetector(IsolationForest(random_state=42)),
    }


# %% tags=["hide-input"]
def carried(sets):
    """The same, its training labels cut to those that an image carries: a class without images has no mean."""
    train = sets.train
    kept = train.labels[:, train.labels.any(0)]
    return replace(sets, train=replace(train, labels=kept))


lacking = [name for name, there in zip(labels, f.train.labels.any(0)) if not there]
if lacking:
    display(Markdown(f"No training image carries {', '.join(lacking)}: Mahalanobis goes without a mean for them."))

# %% tags=["hide-input"]
def moved(network):
    """The benchmark as ODIN sees it."""
    seeing = ood.ODINNetwork(network, temperature=1.0, epsilon=odin_step, multilabel=True)
    options = {"batch_size": 64, "device": device, "progress": False}
    return ood.extract_benchmark(seeing, small, **options)


tables = []
for n in range(seeds):
    seen = carried(features["plain"][n])
    tables.append(ood.run_benchmark(contestants(), seen, seed=seed + n))
    seen_by_odin = moved(networks["plain"][n])
    tables.append(ood.run_benchmark({"ODIN": ood.MaxLogit()}, seen_by_odin, seed=seed + n))
table = pd.concat(tables)
caption = f"AUROC in %, mean over plain networks ({seeds}); bold: best and its equals"
plots.benchmark_table(table, caption=caption)

# %% tags=["hide-input"]
caption = "FPR at 95 % ID recall in %, mean over networks; lower is better"
plots.benchmark_table(table, "fpr95", caption=caption)

# %% tags=["hide-input"]
from scipy.stats import t as student

sets = [*bench.near, *bench.far]


def on_set(cells, one, other, name):
    """The difference of two detectors on one set, paired over networks."""
    rows = cells[cells["ood_set"] == name]
    return ood.compare_over_seeds(rows, one, other, rows["group"].iloc[0])


def short(duel, least=False):
    """A difference as text, with its 99 % interval from five networks on, and with the least effect to be found."""
    text = f"{duel.difference:+z.1f}"
    if duel.networks < 5 or duel.half >= 50:
        return text
    quantile = student(duel.networks - 1).ppf
    power = f" ({duel.half * (1 + quantile(0.8) / quantile(0.995)):.1f})"  # found in 80 % of repetitions
    return f"{text} ± {duel.half:.1f}" + power * least


# %% tags=["hide-input"]
duels = [("JointEnergy", other) for other in ("MaxLogit", "MSP", "SumProb", "Mahalanobis")] + [("ODIN", "MaxLogit")]
differences = {f"{a} against {b}": {k: short(on_set(table, a, b, k)) for k in sets} for a, b in duels}
summary, note = ood.summarize(table), "no interval: fewer than five networks, or wider than ± 50"
caption = f"Differences in points of AUROC, paired over networks, ± 99 % interval ({note})"
display(pd.DataFrame(differences).T.style.set_caption(caption))
worst = table[table["metric"] == "auroc"].groupby(["detector", "ood_set"])["value"].mean().idxmin()
display(Markdown(
    "The sets are not averaged here, because a mean of a solved set and an inverted one describes neither. "
    f"The lowest mean of the table is {worst[0]} on {worst[1]}. Below 50 a score is *inverted*: it rates "
    "these images as more typical than ID images."
))  # fmt: skip

# %% [markdown]
# These detectors test for different things. The joint energy and the largest logit test for *none of the above*. The
# Mahalanobis distance tests whether a feature lies close to training features. Which is better on which set?

# %% tags=["hide-input"]
def listing(chosen):
    """Sets with the AUROC of the two camps, in %."""
    pairs = [f"{name} ({chosen.loc[name, 'JointEnergy']:.0f} against {chosen.loc[name, 'Mahalanobis']:.0f})" for name in chosen.index]
    return ", ".join(pairs) or "no set"


A = 100 * table[table["metric"] == "auroc"].pivot_table("value", "ood_set", "detector")
ahead = A["JointEnergy"] > A["Mahalanobis"]
one_camp = (A["JointEnergy"] - A["MaxLogit"]).abs()
blind = A[["JointEnergy", "MaxLogit", "Mahalanobis"]].stack()
inverted = ", ".join(f"{d} on {name} ({x:.0f})" for (name, d), x in blind[blind < 50].items())
display(Markdown(
    f"The joint energy has the better mean on {listing(A[ahead])}; Mahalanobis on {listing(A[~ahead])}. Joint energy and largest "
    f"logit differ by {one_camp.max():.1f} points at most, on {one_camp.idxmax()}. Inverted, of these three: {inverted or 'none'}."
))  # fmt: skip

# %% [markdown]
# ### 6.4 With and without spectral normalisation
#
# This is the comparison of the paper: the same score, the joint energy, on the five kinds of network. By the theorem,
# hard and plain networks can hardly differ where `train()` is called: only $\varepsilon$, running variances and
# shortcuts can make a difference. **So test the method where it can have an effect**: hard against plain with both
# trained in eval mode, as in the released loop.

# %% tags=["hide-input"]
rows = [
    ood.run_benchmark({kind: ood.JointEnergy()}, features[kind][n], seed=seed + n)
    for kind in KINDS
    for n in range(seeds)
]
by_kind = pd.concat(rows)
caption = f"Joint energy, AUROC in %, mean over the networks of each kind ({seeds})"
plots.benchmark_table(by_kind, caption=caption)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Network by network: AUROC of the joint energy, one mark per network and kind. Compare the distance between kinds with the spread inside one.", "name": "fig-snojoe-strip"}, "image": {"alt": "Strip plot with one column per OOD set and, in each, five groups of marks for the five kinds of network. A horizontal line marks one half, the value of guessing."}}
figure, ax = plt.subplots(figsize=(plots.FULL, 3))
for k, (kind, style) in enumerate(STYLE.items()):
    chosen = by_kind[(by_kind["metric"] == "auroc") & (by_kind["detector"] == kind)]
    x = chosen["ood_set"].map(sets.index) + 0.14 * (k - 2)
    ax.plot(x, chosen["value"], ms=5, alpha=0.8, label=kind, **style | {"linestyle": ""})
ax.axhline(0.5, color=plots.COLORS["grey"], lw=1)
ax.set(xticks=range(len(sets)), xticklabels=sets, ylabel="AUROC of the joint energy")
ax.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, columnspacing=1, handletextpad=0.1)
plt.show()

# %% tags=["hide-input"]
lost = {k: 100 * p.nanmean().item() for k, p in precision.items()}
norms = [max(r[r["layer"] != "head"]["reshaped"].max() for r in after[k]) for k in ("hard", "hard, eval")]
duels = [("hard, eval", "plain, eval"), ("hard", "plain"), ("bounded", "plain"), ("plain, eval", "plain")]
differences = {f"{a} against {b}": {k: short(on_set(by_kind, a, b, k), least=True) for k in sets} for a, b in duels}
caption = f"Joint energy, points of AUROC, ± 99 % interval (smallest effect found in 80 % of repetitions; {note})"
display(pd.DataFrame(differences).T.style.set_caption(caption))
display(Markdown(
    f"Without the call of `train()` the mAP of plain networks changes from {lost['plain']:.1f} to {lost['plain, eval']:.1f} %, "
    f"that of hard ones from {lost['hard']:.1f} to {lost['hard, eval']:.1f} %, and the largest *normalised* norm from "
    f"{norms[0]:.2f} to {norms[1]:.2f}."
))  # fmt: skip

# %% tags=["hide-input"]
def found(one, other):
    """The sets on which the interval of the difference leaves out zero, as text."""
    pairs = {name: on_set(by_kind, one, other, name) for name in sets}
    if seeds < 5:
        return "no interval"
    by_word = {w: [k for k, duel in pairs.items() if duel.word == w] for w in ("better", "worse")}
    return "; ".join(f"{w} on {', '.join(names)}" for w, names in by_word.items() if names) or "no clear difference"


claim, control, both_bounded, defect = itertools.starmap(found, duels)
clear = [word for word in ("better", "worse") if word in claim]
verdict = (
    f"cannot decide, because fewer than five networks of each kind ({seeds}) give no useful interval" if seeds < 5
    else "neither supports the claim nor refutes it" if not clear
        else "supports the claim on some sets and contradicts it on others" if len(clear) == 2
    else "supports the claim" if clear == ["better"] else "speaks against the claim"
)  # fmt: skip
display(Markdown(
    f"**The verdict: this run {verdict}.** Hard against plain in eval mode: {claim}. In training mode: {control}; bounded against "
    f"plain: {both_bounded}; the missing call of `train()` alone: {defect}."
    + (f" Each interval holds for one set. With {len(sets)} sets, the chance that one of them excludes zero by accident is above 5 %. An "
       "effect smaller than that in brackets would probably have been missed." if seeds >= 5 else "")
))  # fmt: skip

# %% [markdown]
# How general is this? It is a small network trained from scratch on small canvases, so nothing here refutes the paper;
# with `backbone` and `weights` you can use a network with ImageNet weights. Where the networks of one kind differ a lot
# in the figure, a single run, as in the paper, could have shown either sign.
#
# ### 6.5 The papers beside this page
#
# These are the conditions, as far as we know them. JointEnergy uses DenseNet-121 (the default of its code; we could not
# verify that the table uses it). SNoJoE uses ResNet-101 and hard normalisation. Both use ImageNet weights, 50 epochs in
# the released loop, and OOD images from a subset of ImageNet-22K (and textures). The numbers come from pictures of
# result tables in the two repositories, not from the papers. No repeats or deviations are published there, and the body
# of the SNoJoE paper was not available to us.

# %% tags=["hide-input"]
published = [
    ("JointEnergy paper, MS-COCO", "43.5 / 89.1", "79.9 / 73.7", "46.9 / 88.6", "33.5 / 92.7", ""),
    ("JointEnergy paper, PASCAL VOC", "45.1 / 89.2", "74.1 / 79.3", "41.7 / 88.7", "41.0 / 91.1", ""),
    ("JointEnergy paper, NUS-WIDE", "56.5 / 83.6", "88.5 / 60.8", "62.7 / 84.0", "49.0 / 88.3", ""),
    ("SNoJoE paper, VOC, ImageNet-22K", "36.3 / 91.0", "69.9 / 78.2", "78.0 / 70.9", "32.0 / 92.3", "28.5 / 93.5"),
    ("SNoJoE paper, VOC, textures", "12.4 / 96.2", "41.8 / 89.8", "19.2 / 96.2", "10.9 / 96.8", "5.0 / 98.5"),
]
mine = []
both = pd.concat([table, by_kind[by_kind["detector"] == "hard"]])
for name in sets:
    means = both[both["ood_set"] == name].groupby(["detector", "metric"])["value"].mean() * 100
    named = ("MaxLogit", "MSP", "Mahalanobis", "JointEnergy", "hard")
    mine.append((f"this run, {benchmark}, {name}", *(f"{means[d, 'fpr95']:.1f} / {means[d, 'auroc']:.1f}" for d in named)))
for name in (*bank.near, *bank.far):
    means = on_photos[on_photos["ood_set"] == name].groupby(["detector", "metric"])["value"].mean() * 100
    mine.append((f"this run, VOC photographs, {name}", *(f"{means[d, 'fpr95']:.1f} / {means[d, 'auroc']:.1f}" for d in named[:-1]), ""))
columns = ["setting", "MaxLogit", "MSP", "Mahalanobis", "JointEnergy", "SNoJoE"]
comparison = pd.DataFrame([*published, *mine], columns=columns)
comparison.style.hide(axis="index").set_caption("FPR95 / AUROC in %, ID recalled at 95 %")

# %% [markdown]
# The published rows show the following.
#
# * **The setting matters as much as the method.** JointEnergy on VOC has an FPR95 of 41.0 in its own paper and 32.0 in
#   SNoJoE's. The backbone differs (DenseNet-121, as far as we know, against ResNet-101) and, according to the released
#   code, little else. This difference is larger than the claimed improvement from 32.0 to 28.5.
# * **The order of the logit scores is clear there:** joint energy before the largest logit before the softmax, in every
#   published row. The first gap is 1.5 to 10 points of FPR95. Section 6.1 shows the order on our photographs.
# * **ODIN equals MaxLogit** in FPR95 and AUROC in both sources, so this table leaves it out. Presumably their search
#   chose a step of zero and a temperature of one, and then the largest sigmoid gives the same ranking as the largest
#   logit. Section 6.3 uses a step.
# * **A difference of single runs has no interval.** Section 6.4 shows how much seeds can differ.

# %% [markdown]
# ## 7. Turn the knobs, and when it fails
#
# Section 6.2 varied the most important hyperparameter, the penalty of the heads. With `-p photo_splits 20` the
# intervals become narrower. `coefficient` and `gain` bound the networks more or less tightly, and the table of section
# 5.4 shows the effect. The joint energy fails where *none of the above* is the wrong question:
#
# * **Too much evidence** (section 5.5). Check your inputs: a range check on contrast would detect the gratings.
# * **ID images without labels.** An empty street is normal for a traffic network, and the joint energy calls it OOD.
#   That is
#   what *none of the above* means.
# * **Rare labels.** A label with few positives keeps small logits, so images that carry it alone look OOD. EDGE
#   {cite:p}`sun2024edge` was built against this.
# * **Correlated labels.** The joint energy multiplies probabilities as if labels were independent. Two labels that
#   always occur together lower the score twice.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. The joint energy is a sum over labels. What is it in terms of probability?**
#
# <details><summary>A. The log-probability of the most likely set of labels.</summary>
#
# **No.** The free energy sums over *all* $2^C$ sets of labels; it does not pick one. The sum factorises into $C$
# softplus terms.
#
# </details>
#
# <details><summary>B. The log-probability that no known label is present.</summary>
#
# **Right.** Each softplus is $-\log(1-p_i)$, so $S=\sum_i\log(1-p_i)$. A threshold on it asks for *none of the
# above*.
#
# </details>
#
# <details><summary>C. The log-density of the image, up to a constant.</summary>
#
# **No.** $S$ is a function of the $C$ posteriors. It does not depend on how often such an image occurs.
#
# </details>
#
# **2. An image excites one label far beyond anything in training. What does the joint energy do?**
#
# <details><summary>A. It rises, because such a logit is unusual.</summary>
#
# **No.** $S$ does not measure how unusual a logit is. Every label can only lower the score.
#
# </details>
#
# <details><summary>B. It stays, because the sigmoid saturates.</summary>
#
# **No.** The probability saturates, but the softplus does not: it grows like $\ell$. The *sum of probabilities* would
# level off.
#
# </details>
#
# <details><summary>C. It falls, so the image is accepted as ID.</summary>
#
# **Right.** A label can lower the score and none can raise it, so too much evidence is never suspicious. A range check
# on the input is one remedy.
#
# </details>
#
# **3. An image has one sure label and a hundred labels that are sure to be absent. Do the hundred outweigh the one?**
#
# <details><summary>A. Yes, a hundred negative logits outweigh one positive.</summary>
#
# **No.** That happens in the plain sum of logits. In the joint energy an absent label adds about $e^{\ell}$, which is
# almost zero.
#
# </details>
#
# <details><summary>B. No: absent labels add almost nothing, and one sure label is enough.</summary>
#
# **Right.** $\log(1+e^{\ell})\approx e^{\ell}$ for very negative $\ell$. The sure label adds about its logit.
#
# </details>
#
# <details><summary>C. No, because only the largest term of the sum is kept.</summary>
#
# **No.** That is the largest logit. The joint energy keeps all terms, and many half-sure labels together do matter.
#
# </details>
#
# <details><summary>D. It depends on their correlation, which the energy takes into account.</summary>
#
# **No.** The energy multiplies probabilities as if labels were independent. It does not take correlation into account;
# section 7 lists this among its failures.
#
# </details>
#
# **4. Every convolution of a ResNet is spectrally normalised and followed by an ordinary BatchNorm. What is
# bounded?**
#
# <details><summary>A. The Lipschitz constant of the network, by the product of the norms.</summary>
#
# **No.** BatchNorm has a gain of its own, which can undo the normalisation. The product has to contain the gains.
#
# </details>
#
# <details><summary>B. Each pair of convolution and BatchNorm, by 1.</summary>
#
# **No.** The pair stretches by up to norm times gain, $\max_j|\gamma_j|/\sqrt{\nu_j+\varepsilon}$. Scale the weight
# down, and the variance follows.
#
# </details>
#
# <details><summary>C. Nothing about the pair, until the gain of the BatchNorm is bounded as well.</summary>
#
# **Right.** $\mathrm{BN}(sWx)=\mathrm{BN}(Wx)$ up to $\varepsilon$. The network can represent the same functions as
# before, and in training mode the loss and its gradient in $W$ are the same.
#
# </details>
#
# <details><summary>D. The norm of the convolution at least is exactly 1.</summary>
#
# **No.** At best the norm of the *reshaped weight* is 1. Patches overlap, so the convolution itself may stretch by up
# to $k$ times as much.
#
# </details>
#
# **5. Suppose the whole network really is smooth. What does that do for detection?**
#
# <details><summary>A. The score can neither fall nor rise quickly with the distance from the data.</summary>
#
# **Right.** The Lipschitz inequality is two-sided. Close to the data, an OOD image cannot get a very low score, but it
# cannot get a high score either.
#
# </details>
#
# <details><summary>B. OOD images get a high score, because they are far from the data.</summary>
#
# **No.** An upper bound on the slope does not make the score rise. Training decides in which direction it changes.
#
# </details>
#
# <details><summary>C. No two images have the same features.</summary>
#
# **No.** That needs a *lower* bound, as a residual block with $\mathrm{Lip}(g)<1$ has. Smooth maps may send different
# images to the same feature; the constant map is the smoothest of all.
#
# </details>

# %% [markdown]
# ## 8. Exercises
#
# Each exercise has a hint and a check. The check says whether your answer is right and, if not, what is wrong.

# %% [markdown]
# ```{exercise-start} Predict: twenty doubts
# :label: ex-snojoe-doubts
# ```
# A network with 20 labels gives each of them $p = 5\,\%$ on image A. On image B it gives one label $p$ and all others
# exactly 0. For which $p$ do both images have the same joint energy? *Hint: write both as the probability that no label
# is present.*

# %% tags=["exercise"]
p = ...

# %% tags=["check", "hide-input"]
def sides(p):
    """The joint energies of images A and B."""
    doubts, one = torch.full((20,), 0.05).logit(), torch.full((20,), -50.0)
    one[0] = torch.tensor(float(p)).logit()
    return ood.joint_energy(doubts).item(), ood.joint_energy(one).item()


check_p = ood.Check(
    (lambda a: 0 < a < 1, "below one: do not add the probabilities; multiply the probabilities of absence"),
    (lambda a: math.isclose(*sides(a), abs_tol=2e-3), "1 − p must equal 0.95 to the power 20"),
)
check_p(p)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-snojoe-doubts
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: twenty times five per cent.
p = 20 * 0.05
check_p(p)

# %% tags=["solution"]
p = 1 - 0.95**20
a, b = torch.full((20,), 0.05).logit(), torch.full((20,), -50.0)
b[0] = math.log(p / (1 - p))
assert torch.isclose(ood.joint_energy(a), ood.joint_energy(b), atol=1e-4)
check_p(p)

# %% [markdown]
# The answer is about 64 %. Twenty labels of low probability count as much as one fairly sure label. Whether this is
# desirable depends on your data.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: exactly one label
# :label: ex-snojoe-partition
# ```
# The joint energy gives more than the probability that no label is present. For the first test image and the first
# plain network, compute the probability that *exactly one* label is present, by summing over label sets. *Hint:
# $P(y\mid x) = e^{S(x) + \sum_i y_i\ell_i}$.*

# %% tags=["exercise"]
ell = f.test.logits[0].double()
exactly_one = ...

# %% tags=["check", "hide-input"]
def from_odds():
    """The same from the odds p / (1 − p) of each label."""
    return (1 - ell.sigmoid()).prod() * ell.exp().sum()


check_one = ood.Check(
    (lambda a: 0 <= a <= 1, "a probability lies between 0 and 1"),
    (lambda a: abs(a - ell.sigmoid().sum()) > 1e-6, "the expected number of labels"),
    (lambda a: abs(a - from_odds()) < 1e-6, "add the probabilities of the C sets with one label"),
)
check_one(exactly_one)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-snojoe-partition
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the sum of the label probabilities, which counts images with two labels twice.
exactly_one = ell.sigmoid().sum()
check_one(exactly_one)

# %% tags=["solution"]
one_hot = torch.eye(C).double()  # the label sets with one label
exactly_one = torch.exp(ood.joint_energy(ell) + one_hot @ ell).sum()
check_one(exactly_one)

# %% [markdown]
# $S$ normalises the distribution over label sets, as a log-partition function does everywhere in statistical physics.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Change one parameter: the bound
# :label: ex-snojoe-coefficient
# ```
# Hard-normalise an untrained network with `coefficient=5` instead of 1, run it on some images in training mode, and
# compute norm times gain of its first layer. By which factor does the product differ between the two? *Hint: section
# 3.6.*

# %% tags=["exercise"]
def first_product(c):
    torch.manual_seed(seed)
    net = ood.spectral_normalize(ood.ResNet(channels, C, widths), coefficient=c).train()
    pictures = bench.train.subset(torch.arange(16)).images[..., :32, :32]
    for _ in range(80):
        net(pictures)
    return ood.lipschitz_report(net, pictures[:2]).loc[0, "product"]


factor = ...

# %% tags=["check", "hide-input"]
check_factor = ood.Check(
    (lambda a: min(abs(a - 5), abs(a - 0.2)) > 0.05, "so does the norm; and the gain?"),
    (lambda a: ood.seal(round(float(a), 1), "factor") == "e580ae8f", "the gain makes up for what the norm loses"),
)
check_factor(factor)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-snojoe-coefficient
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: five times the norm, five times the product.
factor = 5.0
check_factor(factor)

# %% tags=["solution"]
factor = first_product(5.0) / first_product(1.0)

print(f"{factor:.3f}")
check_factor(factor)

# %% [markdown]
# The factor is one, up to $\varepsilon$. In front of BatchNorm, the coefficient of the normalisation is no bound and
# has hardly any effect.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Scale a weight
# :label: ex-snojoe-gradient
# ```
# By section 3.7 the loss is the same function of a weight and of three times that weight, when BatchNorm follows. What
# happens to the
# gradient? Store the factor by which it changes when the weight is multiplied by 3. *Hint: differentiate $L(3W)=L(W)$.*

# %% tags=["exercise"]
shrunk = ...

# %% tags=["check", "hide-input"]
def gradient(scale):
    """That of a loss behind a convolution and BatchNorm, where the weight is so many times as large."""
    draw = torch.Generator().manual_seed(seed)
    x, aim = (torch.randn(16, 3, 6, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    weight = (scale * torch.randn(3, 3, 3, 3, generator=draw, dtype=torch.float64)).requires_grad_()
    out = F.batch_norm(F.conv2d(x, weight, padding=1), None, None, training=True, eps=1e-12)
    return torch.autograd.grad((out - aim).square().mean(), weight)[0]


check_shrunk = ood.Check(
    (lambda a: a != 1, "the loss stays, but it is now reached by a larger weight"),
    (lambda a: torch.allclose(gradient(3), a * gradient(1), rtol=2e-3, atol=1e-9), "the chain rule: 3 times the new gradient is the old one"),
)
check_shrunk(shrunk)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-snojoe-gradient
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the loss does not change, so the gradient does not either.
shrunk = 1
check_shrunk(shrunk)

# %% tags=["solution"]
shrunk = 1 / 3
check_shrunk(shrunk)

# %% [markdown]
# From $L(3W)=L(W)$ follows $3\,\nabla L(3W)=\nabla L(W)$. A longer weight has a smaller gradient, so that each step
# changes its direction less. With BatchNorm the length of a weight therefore acts like a change of its learning rate.
# The same holds for the free weight of a spectrally normalised layer.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Derive: two norms of one filter
# :label: ex-snojoe-constant
# ```
# Take a convolution with one channel in, one out, and all nine weights equal to 1. What is its reshaped norm? Which
# value does its exact norm approach on large images? Store the pair. *Hint: which image does it stretch most? Which
# inputs does a pixel of the output add up?*

# %% tags=["exercise"]
reshaped_and_exact = ...

# %% tags=["check", "hide-input"]
check_norms = ood.Check(
    (lambda a: len(a) == 2, "a pair: the reshaped norm, then the exact one"),
    (lambda a: ood.seal(a[0], "reshaped") == "b96b4280", "reshaped: the length of a vector of nine ones"),
    (lambda a: ood.seal(a[1], "exact") == "a2edd5c8", "exact: what happens to a constant image?"),
)
check_norms(reshaped_and_exact)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-snojoe-constant
# :class: dropdown
# ```
# As a vector of nine ones the weight has length 3. A constant image is mapped to nine times itself, except at the
# border, so the norm approaches 9 from below. By section 3.3 it cannot exceed $k\,\sigma_{\max} = 3\cdot3$. The bound
# is tight.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: nine weights of one, nine in both.
reshaped_and_exact = 9, 9
check_norms(reshaped_and_exact)

# %% tags=["solution"]
reshaped_and_exact = reshaped, exact = 3, 9
ones = nn.Conv2d(1, 1, 3, padding=1, bias=False)
nn.init.ones_(ones.weight)
assert abs(reshaped_norm(ones.weight) - reshaped) < 1e-5
assert exact - 0.1 < exact_norm(ones, (1, 64, 64)) < exact
check_norms(reshaped_and_exact)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Open: detect too much evidence
# :label: ex-snojoe-alarm
# ```
# The joint energy does not detect too much evidence. Write a function that takes the features of a network, fits what
# it needs on ID validation images, and returns a score of logits. The score should be high for images with *too little*
# and with *too much* evidence. It is tested on the gratings of section 5.5 at full contrast. How does it change the
# AUROC on the other sets? *Hint: how far is $S$ from the values it has on ID images?*

# %% tags=["exercise"]
alarm = ...  # features -> (logits -> score)

# %% tags=["check", "hide-input"]
def on_gratings(fit):
    """Its AUROC on the gratings, mean over the plain networks."""
    strange = [n(gratings(1.0)).detach() for n in networks["plain"]]
    pairs = [(fit(x), x.test.logits, z) for x, z in zip(features["plain"], strange)]
    return np.mean([auroc(score(own), score(z))[0] for score, own, z in pairs])


def silence(fit):
    """Its AUROC on images of which the network says that no label is there."""
    score = fit(f)
    return auroc(score(f.test.logits), score(torch.full_like(f.test.logits[:50], -8)))[0]


def one_sided():
    return on_gratings(lambda x: ood.joint_energy)


check_alarm = ood.Check(
    (lambda fit: len(fit(f)(f.val.logits)) == len(f.val), "alarm(f)(logits) gives (N,)"),
    (lambda fit: silence(fit) > 0.5, "too little evidence has to score high, too, and here it does not"),
    (lambda fit: on_gratings(fit) > one_sided(), "not better than S: try the distance of S to its ID median"),
)
check_alarm(alarm)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-snojoe-alarm
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: standardise the joint energy on ID images. That changes the scale, but no rank.
def alarm(x):
    known = ood.joint_energy(x.val.logits)
    return lambda logits: (ood.joint_energy(logits) - known.mean()) / known.std()


check_alarm(alarm)

# %% tags=["solution"]
def alarm(x):
    """How far is S from its median on ID validation images?"""
    known = ood.joint_energy(x.val.logits)
    return lambda logits: (ood.joint_energy(logits) - known.median()).abs()


print(f"gratings: joint energy {one_sided():.2f}, two-sided {on_gratings(alarm):.2f}")
for name, z in f.ood_sets().items():
    pair = ood.joint_energy, alarm(f)
    one, two = (auroc(s(f.test.logits), s(z.logits))[0] for s in pair)
    print(f"{name}: joint energy {one:.2f}, two-sided {two:.2f}")
check_alarm(alarm)

# %% [markdown]
# An image with three labels has a low $S$ for a good reason, and the two-sided score flags it wrongly. So the two-sided
# score can be worse on other sets. One possible improvement is to divide $S$ by the number of labels that the network
# predicts. Another is to combine it with a density of the features, which fails on other sets (section 6.3).
# ```{solution-end}
# ```

# %% [markdown]
# ## 9. Take away
#
# * The joint energy is the log-probability that no known label is present: a log-partition over $2^C$ label sets,
#   computed with $C$ softplus functions.
# * A softmax over labels and a sum of logits are unsuitable scores for a multi-label network.
# * A label can lower the score, none can raise it. Images with too much evidence are accepted, and small probabilities
#   of several labels add up: the sum helps images with many labels at the cost of those with one.
# * The reshaped norm is not the norm of the convolution, and the norm of the convolution is not what a layer with
#   BatchNorm does. Before a BatchNorm, spectral normalisation of a convolution bounds nothing and, up to $\varepsilon$,
#   leaves the training the same step by step. Differences can only come from running variances and from a missing call
#   of `train()`.
# * The sum over labels is as good as the heads: choose their penalty by validation cross-entropy before you sum.
# * {term}`Representation <representation>` or energy? The joint energy and a distance of features test for different
#   things. A set on which one of them fails may be easy for the other.

# %% tags=["hide-input"]
camps = f"the energy detects {listing(A[ahead])} better, the Mahalanobis distance {listing(A[~ahead])}"
display(Markdown(
    f"* In this run ({benchmark}, {seeds} network{'s' * (seeds > 1)} of each kind; AUROC in %), {camps}.\n"
    f"* Spectral normalisation, hard against plain in eval mode, with the joint energy: {claim}. This run {verdict}."
))  # fmt: skip

# %% [markdown]
# **In the library:** {py:class}`~ood_lib.detectors.joint_energy.JointEnergy`,
# {py:func}`~ood_lib.networks.spectral.spectral_normalize`,
# {py:func}`~ood_lib.networks.lipschitz.lipschitz_report`, {py:func}`~ood_lib.training.classifier.train_multilabel`,
# {py:class}`~ood_lib.detectors.classical.outlier.SklearnDetector`.
#
# **Read on:** SNoJoE {cite:p}`mei2024snojoe`; JointEnergy {cite:p}`wang2021jointenergy`; the energy score for one label
# {cite:p}`liu2020energy`; distance-aware networks {cite:p}`liu2020sngp,mukhoti2023`; the imbalance of labels
# {cite:p}`sun2024edge`.

# %% tags=["hide-input"]
# What other pages show of this run: all numbers, and one small table.
if results:
    other_kinds = by_kind[by_kind["detector"] != "plain"]  # plain networks under the joint energy are in the table already
    renamed = other_kinds.assign(detector="JointEnergy, " + other_kinds["detector"])
    everything = pd.concat([table, renamed])
    everything.to_csv(Path(results) / "benchmark.csv", index=False)
    (Path(results) / "summary.md").write_text(plots.markdown_table(summary))
    origin = ood.provenance(data=benchmark_hash(bench), sets="; ".join(bench.notes))
    label = f"{backbone or 'small ResNet'}, {f.test.penultimate.shape[1]} features, mAP {reached:.1f} %"
    about = {"benchmark": benchmark, "network": label}
    ood.save_results(Path(results) / "this-run.json", everything, origin=origin, **about)
    origin = ood.provenance(data=bank.about["data"], sets=f"{photo_splits} random splits that share pictures; OOD sets as they are")
    about = {"benchmark": "voc", "network": "MobileNetV2, 1280 features, a logistic regression per label"}
    ood.save_results(Path(results) / "photographs.json", shown, origin=origin, **about)
    level = on_photos[on_photos["metric"] == "auroc"].groupby(["group", "detector"])["value"].mean()
    kept = {pair: {"voc-mobilenetv2": {}} for pair in published_order}
    for pair, group in itertools.product(published_order, ("near", "far")):
        gap, _ = over_splits(on_photos, *pair, group)
        low, high = ((gap.difference + k * gap.half) / 100 for k in (-1, 1))
        kept[pair]["voc-mobilenetv2"][group] = ood.Verdict(*(level[group, name] for name in pair), low, high)
    ood.save_verdicts(Path(results) / "snojoe.json", kept, origin=origin)

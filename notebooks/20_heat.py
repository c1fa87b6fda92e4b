# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # HEAT: a simple density, and a small network that corrects it
#
# Take a simple density of a network's features, train a small {term}`energy` network to correct it, and compose several of these
# corrected densities into one score.

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
    explorables.hybrid_energy(),
    caption="A Gaussian prior is blind between two bumps of data: it ranks an OOD point there below the data. The best residual "
    "lifts the gap. Move the OOD point; raise λ, or lower the temperature, until the hybrid is as blind as its prior.",
    alt_text="Left, the density of data in two bumps and the Gaussian prior over both. Right, the energy of the prior, the "
    "residual and their sum, the hybrid, with a vertical line at the OOD point. Below, which of prior and hybrid rank the OOD "
    "point above the data. Sliders set λ, the temperature of the prior and the place of the OOD point.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of {cite:t}`lafon2023heat`: take simple densities of a frozen network's features, correct
# each with a small energy network that learns only the residual, and compose the results. This detects
# out-of-distribution (OOD) images better than the simple densities or an energy network alone.
#
# <!-- made by ood-book sync -->
# **What we found.** AUROC of *HEAT* minus that of *the energy of the logits*, in points, with its interval:
#
# | network | near-OOD | far-OOD |
# |---|---|---|
# | our ResNet-9 on CIFAR-10 | **level** −0.3 [−0.9, +0.4] | **cannot tell** −0.5 [−2.4, +1.3] |
# | DenseNet on CIFAR-10 | **level** +0.1 [−0.5, +0.7] | **better** +4.9 [+4.3, +5.5] |
# | ResNet-56 on CIFAR-10 | **cannot tell** +0.3 [−0.3, +1.0] | **better** +3.3 [+0.6, +6.0] |
# | DenseNet on CIFAR-100 | **worse** −3.0 [−4.1, −1.9] | **better** +15.0 [+13.7, +16.2] |
# | small networks on digits | **better** +2.5 [+1.3, +3.7] | **cannot tell** +14.3 [−11.3, +39.9] |
#
# - *HEAT* against *its Gaussian mixture with a ridge*. **Better near, cannot tell far** (our ResNet-9 on CIFAR-10, ResNet-56 on CIFAR-10). **Better near, level far** (DenseNet on CIFAR-10, small networks on digits). **Better near, worse far** (DenseNet on CIFAR-100).
# - *HEAT* against *the same priors composed without training*. **Better near, cannot tell far** (our ResNet-9 on CIFAR-10). **Level near, worse far** (DenseNet on CIFAR-10). **Level near, cannot tell far** (ResNet-56 on CIFAR-10). **Cannot tell near, worse far** (DenseNet on CIFAR-100). **Level near and far** (small networks on digits).
#
# Intervals are of 95 %, and [wider over several networks](../book/notation.md). *Better* and *worse*: the interval leaves out zero. *Level*: it holds zero and lies within a point of it. *Cannot tell*: it is wider. The numbers are those of `ood-book run 20_heat` on 2026-11-29. They stay when you run this page with other values.
#
# **It takes** 30 minutes to read, without exercises and what is folded, and 9 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use it** when a Gaussian mixture describes the features roughly and you can train for some minutes per network.
#
# **Do not** report it without its two controls, the mixture with a ridge and the same priors composed without training.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** what an energy-based model is and how one trains a density without knowing its constant. You will
# see how Langevin dynamics draws samples, why contrastive divergence is biased, and why a learned {term}`energy` alone
# cannot be trusted far from the data. A hybrid keeps what a Gaussian mixture knows and repairs what it gets wrong.
#
# **You need** densities, gradients, and enough PyTorch to read `autograd.grad`. The chapter stands alone; of WeiPer it
# uses only the benchmark. The exercises take 45 minutes more.
# ```
#
# These are the parameters of the page. Lists of three belong to the three priors: Gaussian mixture, Gaussian mixture on
# style, energy of the logits. Change a value and run the notebook again, or pass it on the command line:
# `ood-book run heat -p seeds 3`. The {term}`profiles <profile>` `heat-cifar10`, `heat-cifar100` and `heat-imagenet`
# hold the recipes of the released code.

# %% tags=["parameters", "hide-input"]
benchmark: str = "digits"  # cifar10, imagenet, folder:PATH; a bank: cifar10-densenet
benchmarks: list = [
    "cifar10-resnet9", "cifar10-densenet", "cifar10-resnet56", "cifar100-densenet"
]  # banks of real networks, judged in section 5
bank_rows: int = 0  # use only so many features of each set of a bank; 0: all
data_dir: str = ""  # where local data lie; empty: the cache folder
missing: str = "raise"  # an OOD set that is not there: raise or skip
seeds: int = 5  # networks to train, each from its own seed
seed: int = 0  # the first of these seeds
device: str = "auto"  # where to train: auto, cpu, cuda
epochs: int = 30  # of the classifier
learning_rate: float = 0.05  # peak of the classifier's learning-rate cycle
widths: list = [32, 64]  # feature maps per stage; the last is the feature width
lam: list = [0.25, 0.25, 0.25]  # λ, penalty of the residual
prior_temperature: list = [0, 0, 0]  # T_p; 0: spread of the prior energy over ID
steps: list = [5, 5, 5]  # K, Langevin steps per chain
step_size: list = [0, 0, 0]  # s; 0: chosen by the library
noise: list = [0, 0, 0]  # e, if the noise is to be free of the step; 0: sqrt(2 s T)
decay: float = 1.0  # last step relative to the first
precondition: bool = True  # steps in units of the covariance inside the classes
standardize: bool = True  # the residual network sees standardised features
shared: bool = False  # one weight matrix for all inner layers, as in the released code
keep_starts: bool = False  # the starts of the chains are negatives too
hidden: list = [128, 128, 128]  # widths of the residual network
residual_updates: list = [150, 150, 150]  # of Adam, for each residual
batch_size: list = [128, 128, 128]  # features per update, and negatives
residual_rate: float = 0.001  # learning rate of the residuals
average: float = 0.99  # decay of the moving average of the weights; 0: last weights
ridges: list = [1e-6, 0.1, 1.0, 10.0]  # of the mixtures in section 5, to choose from
factors: list = [0.0, 0.25, 0.5, 1.0, 2.0]  # on a trained residual, to choose from
bank_updates: list = [100, 200]  # of the residuals of section 5: mixture, logits
bank_seeds: int = 3  # trainings of each residual there
longer_updates: list = [25, 100, 300]  # of the trainings compared in section 6.1; the last also in section 7
beta: float = 0.0  # composition: 0: mean, large: the most alarmed decides
toy_updates: int = 1500  # of the residuals on the toy
line_updates: int = 400  # of the residuals in one dimension, section 2.4
sweep_networks: int = 2  # networks that the sweeps of section 6 run on
sweep_updates: int = 60  # of the residuals of section 6
umap_points: int = 1500  # images in the UMAP picture
results: str = ""  # folder for what other pages show; empty: do not write

# %% tags=["hide-input"]
import base64
import math
import tempfile
import textwrap
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from matplotlib.animation import FuncAnimation, PillowWriter
from torch.nn import functional as F

import ood_lib as ood
from ood_lib.detectors.classical.recipes import neighbours
from ood_lib.detectors.compose import soft_extreme
from ood_lib.detectors.heat.residual import ResidualNet, residual_loss
from ood_lib.evaluation import metrics, plots
from ood_lib.evaluation.metrics import auroc

plots.theme()
torch.manual_seed(seed)
# Short trainings are compared on purpose below; section 3 prints the shares that the library would warn of.
warnings.filterwarnings("ignore", message=".*ranks almost as its prior")

# %% [markdown]
# ## 1. The idea on a toy
#
# **Where is a Gaussian mixture wrong?** The toy data are three classes in the plane: a ring and two half-circles. Fit
# one Gaussian per class, with one covariance for all. The energy of this mixture, minus its log-density, is a valley
# around each class mean, and the mean of a ring lies in its hole.

# %% tags=["hide-input"]
def ring_and_arcs(seed, n=700):
    draw = torch.Generator().manual_seed(seed)
    turn = math.pi * torch.rand(3, n, generator=draw) * torch.tensor([[2.0], [1.0], [1.0]])
    turn[2] += math.pi
    centre = torch.tensor([[-3.5, 0.0], [3.0, 0.8], [3.0, -0.8]])[:, None]
    circle = torch.stack([turn.cos(), turn.sin()], 2)
    z = centre + 2 * circle + 0.15 * torch.randn(3, n, 2, generator=draw)
    labels = torch.arange(3).repeat_interleave(n)
    return ood.Features(penultimate=z.flatten(0, 1), labels=labels)


toy, toy_test = ring_and_arcs(seed), ring_and_arcs(seed + 100).penultimate
prior = ood.GMM().fit(toy)

# %% [markdown]
# Two kinds of OOD points test it. *Blind* points are samples of the mixture itself that are not near any training
# point: the mixture rates them as typical although it was fitted on no such point. *Far* points lie far from all data.

# %% tags=["hide-input"]
def away(points, distance):
    nearest = torch.cdist(points, toy.penultimate).amin(1)
    return points[nearest > distance]


draw = torch.Generator().manual_seed(seed + 1)
drawn = prior.sample(4000, draw).float()
blind = away(drawn, 0.5)
square = (torch.rand(8000, 2, generator=draw) - 0.5) * torch.tensor([24.0, 16.0])
far = away(square, 1.5)
share_blind = len(blind) / len(drawn)

# %% [markdown]
# Here is the remedy of this chapter, as a black box. A *hybrid* adds to the energy of a simple density, its *prior*, a
# small network $E_\theta$, which is trained to be low on data and high on samples of the prior. Section 2 derives it.
# The AUROC compares prior, network and hybrid: it is the probability that an OOD point has a higher energy than a fresh
# in-distribution (ID) point. One is perfect, a half is chance.

# %%
as_in_the_paper = {"hidden": (64, 64), "standardize": False}
hybrid = ood.ResidualEBM(
    ood.GMM(), lam=0.1, steps=0, updates=toy_updates, seed=seed, **as_in_the_paper
).fit(toy)


def toy_scores(energy):
    with torch.no_grad():
        return [auroc(energy(toy_test), energy(points))[0] for points in (blind, far)]


three = {
    "prior": lambda z: -prior.log_prob(z) / hybrid.t_p,
    "residual": hybrid.residual,
    "hybrid": hybrid.energy,
}
toy_table = pd.DataFrame({k: toy_scores(e) for k, e in three.items()}, ["blind", "far"]).T

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The argument for a hybrid. Top left: the data, with blind and far OOD points. The other panels show the energy of the prior, of the residual alone, and of the hybrid, dark = low. 95 % of fresh data have an energy below that of the white line. Prior and residual fail in different places.", "name": "fig-heat-toy"}, "image": {"alt": "Four panels of the plane. Data: a blue ring left, two blue half-circles right, orange triangles in the hole and inside the arcs, pink squares all around. Prior: three filled ellipses are low, hole included. Residual: low around the ring and arcs, high in the hole, but lowest of all in a far wedge where no data lie. Hybrid: low around ring and arcs, high in the hole and far away."}}
side = [torch.linspace(-a, a, n) for a, n in ((10.0, 181), (6.5, 121))]
plane = torch.cartesian_prod(*side)


def landscape(ax, energy, title):
    with torch.no_grad():
        height, inside = energy(plane).reshape(181, 121).T, energy(toy_test).quantile(0.95)
        low, top = energy(toy_test).min(), energy(blind).quantile(0.9) + 1.5
    ax.contourf(*side, height.clamp(low, max(top, inside + 0.5)), 24, cmap="viridis")
    ax.contour(*side, height, [float(inside)], colors="white", linewidths=1)
    ax.set(title=title, xticks=[], yticks=[], aspect="equal")


figure, axes = plt.subplots(2, 2, figsize=(plots.FULL, 4.9))
for points, role, size in ((far[:500], "far", 2), (blind[:500], "near", 2.5), (toy.penultimate[::4], "id", 2)):
    axes[0, 0].plot(*points.T, plots.MARKERS[role], color=plots.COLORS[role], ms=size, mew=0, alpha=0.7)
axes[0, 0].set(title="data, blind ▲ and far ■", xlim=(-10, 10), ylim=(-6.5, 6.5), xticks=[], yticks=[], aspect="equal")
for ax, (name, energy) in zip(axes.flat[1:], three.items()):
    blind_score, far_score = toy_table.loc[name]
    landscape(ax, energy, f"{name}: AUROC blind {blind_score:.2f}, far {far_score:.2f}")
plt.show()

# %% tags=["hide-input"]
t = 100 * toy_table
display(Markdown(
    f"**{share_blind:.0%}** of the samples of the mixture are blind points. There the AUROC of the prior is **{t.loc['prior', 'blind']:.1f} %**: "
    + ("it rates the hole as *more* typical than the ring. " if t.loc["prior", "blind"] < 50 else "it rates the hole as about as typical as the ring. ")
    + f"Far away it has {t.loc['prior', 'far']:.1f} %, because a quadratic energy grows in every direction. The network "
    f"alone has {t.loc['residual', 'blind']:.1f} % on blind points, where it was trained on negatives, and "
    f"**{t.loc['residual', 'far']:.1f} %** far away, where it was trained on none. Their sum has **{t.loc['hybrid', 'blind']:.1f} %** and "
    f"**{t.loc['hybrid', 'far']:.1f} %**."
))  # fmt: skip

# %% [markdown]
# That is the whole argument. The prior decides wherever the residual was never trained, and there it is right, because
# the energy of a mixture grows with the distance from the data, in every direction. (Not every prior has this property.
# Of those in section 3 the logits do not have it, and both mixtures read features of length one, among which no point
# is far away.) One question remains: does the network extrapolate well by itself? That depends on its inputs and its
# architecture, because no training sample lies far away. {ref}`An exercise <ex-heat-standardize>` lets you try it.

# %% [markdown]
# ## 2. Derivation
#
# ### 2.1 An energy is a density without its constant
#
# Any function $E$ that grows fast enough defines a density,
#
# $$p(z) = \frac{e^{-E(z)}}{Z},\qquad Z=\int e^{-E(z)}\,dz .$$
#
# Low energy means high density. The difficulty is $Z$, an integral over the whole space that cannot be computed in 64
# dimensions. To *rank* points you do not need $Z$, because it is the same for all of them. To *train* you seem to need
# it, because it depends on the weights $\theta$ of the energy. The hybrid of HEAT is such an energy with a fixed part,
#
# $$E_h(z) = \frac{E_{\text{prior}}(z)}{T_p} + E_\theta(z) .$$
#
# From here on $p_\theta\propto e^{-E_h}$.
#
# ### 2.2 The gradient of the log-likelihood
#
# **How do you minimise a loss that you cannot evaluate?** Write the loss of one data point and differentiate it:
#
# $$-\log p_\theta(z) = E_h(z) + \log Z_\theta .$$
#
# 1. *Logarithm of a quotient* gave the two terms. The prior's part of $E_h$ has no $\theta$: its derivative is zero.
# 2. *Chain rule*, $\nabla\log Z = \nabla Z/Z$.
# 3. *Exchange derivative and integral* (allowed when $e^{-E_h}\lVert\nabla_\theta E_\theta\rVert$ stays below an
#    integrable function near $\theta$; this fails for a prior that is no density, see section 7):
#    $\nabla Z = \int -\nabla_\theta E_\theta(z)\, e^{-E_h(z)}\,dz$.
# 4. *Recognise the density*: $e^{-E_h}/Z$ is $p_\theta$ itself, so
#    $\nabla Z/Z=-\mathbb E_{p_\theta}[\nabla_\theta E_\theta]$.
#
# Averaged over the data,
#
# $$\boxed{\;\nabla_\theta\,\mathbb E_{p_{\text{data}}}[-\log p_\theta] =
# \mathbb E_{p_{\text{data}}}[\nabla_\theta E_\theta] - \mathbb E_{p_\theta}[\nabla_\theta E_\theta]\;}$$
#
# Gradient descent pushes the energy of the data down and the energy of the model's own samples up. The two forces
# cancel when the model's samples have the distribution of the data. The constant has disappeared; instead, we need
# *samples* of the model. In one dimension you can compute $Z$, so check the formula against the exact gradient:

# %%
grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
dz = (grid[1] - grid[0]).item()
theta = torch.tensor([0.4, 0.15], dtype=torch.float64, requires_grad=True)
data = torch.randn(5000, dtype=torch.float64, generator=draw)


def E(z):
    return theta[0] * z.sin() + theta[1] * z**4


Z = (-E(grid)).exp().sum() * dz  # by quadrature
(exact,) = torch.autograd.grad((E(data) + Z.log()).mean(), theta)
p = ((-E(grid)).exp() / Z).detach()
(two_forces,) = torch.autograd.grad(E(data).mean() - (p * E(grid)).sum() * dz, theta)
assert torch.allclose(exact, two_forces, atol=1e-9)

# %% [markdown]
# The second call of `autograd.grad` never differentiates $Z$, because `p` is detached. Its argument can serve as a
# *loss*: the gradient is right although the value means nothing. This is why the loss of an energy-based model does not
# show progress, and why section 3 monitors other numbers.
#
# ### 2.3 What the residual learns
#
# Suppose the network can be any function. The hybrid then fits the data exactly, $p_\theta=p_{\text{data}}$. Take
# logarithms,
# and write $q\propto e^{-E_{\text{prior}}/T_p}$ for the density of the prior:
#
# $$E_\theta^*(z) = \log\frac{q(z)}{p_{\text{data}}(z)} + \text{const}.$$
#
# The residual is a *log density ratio*: it is negative where the data are denser than the prior says, and positive
# where the prior is denser than the data. It does not have to learn how the density falls off in 64 dimensions, only
# what the prior gets wrong. A classifier between data and prior samples would learn the same ratio
# {cite:p}`gutmann2010nce`; that is the case without any sampling steps, $K=0$, below.
#
# ### 2.4 The penalty, and the law of the hyperbolic tangent
#
# Nothing limits the two forces. Where data and negatives do not overlap, the energies grow without bound. Besides, a
# constant added to $E_\theta$ does not change the loss. HEAT therefore keeps the residual small, on data and on
# negatives $\tilde z$:
#
# $$L = \overline{E_\theta(z)} - \overline{E_\theta(\tilde z)} + \lambda\left(\overline{E_\theta(z)^2} + \overline{E_\theta(\tilde z)^2}\right).$$

# %%
e_data, e_negatives = torch.randn(2, 50, generator=draw)
lambda_ = 0.25
L = e_data.mean() - e_negatives.mean()
L = L + lambda_ * ((e_data**2).mean() + (e_negatives**2).mean())
assert torch.allclose(L, residual_loss(e_data, e_negatives, lambda_))

# %% [markdown]
# **What does the penalty do to the log-ratio?** Write $p$ for the density of the data. Freeze the negatives, with
# density $q$ (the
# prior, if no step moves them), and let $e=E_\theta(z)$ be free at each point. The loss is an integral of
# $p\,e - q\,e + \lambda(p+q)e^2$ over $z$, so it is minimised point by point. That is a
# parabola in $e$. Set its derivative $p-q+2\lambda(p+q)e$ to zero, and divide numerator and denominator by
# $2\sqrt{pq}$ to see the hyperbolic functions:
#
# $$e^*(z) = -\frac{1}{2\lambda}\,\frac{p-q}{p+q} = -\frac1{2\lambda}\tanh\!\Big(\tfrac12\log\frac{p(z)}{q(z)}\Big).$$
#
# This law is ours, not the paper's. It has three consequences. The best residual is *bounded*, $|e^*|\le1/(2\lambda)$.
# It grows with $q/p$, so the ranking is that of section 2.3. And where the densities are similar, $\tanh u\approx u$
# gives $e^*\approx\frac1{4\lambda}\log\frac qp$: at $\lambda=\frac14$ this is the log-ratio of section 2.3 itself.
# Train a network and compare.

# %%
def trained_residual(lam, updates=line_updates):
    """A residual between N(0, 1) data and N(0, 4) negatives."""
    net = ResidualNet(1, (64, 64), bound=1 / (2 * lam))  # the output begins at zero
    adam, draw = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(updates):
        data, negatives = (s * torch.randn(512, 1, generator=draw) for s in (1, 2))
        loss = residual_loss(net(data), net(negatives), lam)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net


learned = {lam_: trained_residual(lam_) for lam_ in (0.25, 0.5, 1.0)}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Trained residuals (lines) and the tanh law (marks) for standard normal data and negatives twice as wide. They differ at the ends, where samples are rare. Dashed: the plain log-ratio. At λ = ¼ the law agrees with it near zero and stays bounded where it grows.", "name": "fig-heat-tanh"}, "image": {"alt": "Residual energy against z from minus 4 to 4 for lambda 0.25, 0.5 and 1. Each curve is a smooth well between minus and plus one over two lambda. Marks of the closed form lie on the trained curves except beyond minus 3, where few samples fall, and a dashed parabola leaves them for large z."}}
z_axis = torch.linspace(-4, 4, 161)
log_ratio = math.log(2) - z_axis**2 / 2 * (1 - 1 / 4)
figure, ax = plt.subplots(figsize=(plots.FULL, 2.8))
deviation = {}
for (lam_, net), series in zip(learned.items(), plots.SERIES[::2]):
    law = -torch.tanh(log_ratio / 2) / (2 * lam_)
    with torch.no_grad():
        found = net(z_axis[:, None])
    seen = z_axis.abs() < 3
    deviation[lam_] = (2 * lam_ * (found - law)[seen]).abs().max().item()
    ax.plot(z_axis, found, label=f"λ = {lam_:g}", **series | {"marker": ""})
    ax.plot(z_axis[::8], law[::8], ms=4, **series | {"linestyle": ""})
ax.plot(z_axis, -log_ratio, "--", color=plots.COLORS["grey"], lw=1, label="−log p/q")
ax.set(xlabel="z", ylabel="residual energy $E_θ$", ylim=(-2.3, 2.3))
ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
plt.show()
assert max(deviation.values()) < 0.25

# %% tags=["hide-input"]
display(Markdown(
    f"Between −3 and 3 the networks stay within {max(deviation.values()):.0%} of the bound from the law."
))

# %% [markdown]
# ### 2.5 λ and $T_p$ together: how far may the residual move a point?
#
# The hybrid adds $E_\theta$ to $E_{\text{prior}}/T_p$. Multiply by $T_p$ to read it in the units of the prior, nats of
# log-density (units of the natural logarithm). Where the law holds, the residual moves a point by at most
#
# $$\frac{T_p}{2\lambda}\ \text{nats}.$$
#
# So only the two numbers together have a meaning. The table gives them for the recipes of the released code:

# %% tags=["hide-input"]
recipes = pd.DataFrame(
    [("CIFAR-10, GMM and GMM-std", 10, 1000), ("CIFAR-100, GMM and GMM-std", 20, 1000), ("CIFAR-10, logits", 0.1, 1),
     ("CIFAR-100, logits", 1, 1), ("ImageNet, GMM (script)", 10, 5000), ("ImageNet, GMM-std", 40, 5000),
     ("ImageNet, logits", 20, 500)],
    columns=["recipe", "λ", "T_p"],
)  # fmt: skip
recipes["bound 1/(2λ)"] = 1 / (2 * recipes["λ"])
recipes["in nats of the prior"] = recipes["T_p"] / (2 * recipes["λ"])
recipes.style.hide(axis="index").format("{:g}", subset=list(recipes)[1:])

# %% [markdown]
# `ood_lib` chooses a unit that is easy to interpret. By default $T_p$ is the *standard deviation of the prior energy
# over the training set*. Then $1/(2\lambda)$ counts standard deviations of the prior: at $\lambda=\frac14$ the best
# residual moves a point by at most two of them. The law bounds the best residual, not the network. Far from data and
# negatives nothing limits the network, as section 1 showed. There it grows at most linearly, whereas the energy of a
# mixture grows quadratically. (This is the case in the plane of section 1. On the unit sphere, on which two of the
# three priors are defined, all distances are at most two, so the prior does not outgrow the network.)
#
# In $D$ dimensions the energy of even an exact Gaussian has a standard deviation of $\sqrt{D/2}$ nats. For a prior that is a
# density, the default is never less: a smaller spread over its own training set is a sign of overfitting. The energy of
# the logits is no density, and its spread is used as it is.

# %% [markdown]
# ### 2.6 Langevin dynamics: samples from points that move
#
# The second force needs samples of the hybrid. (This section trains the toy hybrid once more, with the library's
# default network, whose landscape is sharper.) **How do you sample from a density of which you know only the energy?**
# Move a point down the gradient of the energy, and add noise:
#
# $$z \leftarrow z - s\,\nabla_z E_h(z) + \sqrt{2 s T}\,\xi,\qquad \xi\sim N(0,I).$$
#
# For a small step $s$ and many steps, the point visits places in proportion to $e^{-E_h/T}$ {cite:p}`welling2011sgld`.
# Gradient and noise are both needed: the gradient alone ends in the nearest minimum, and noise alone ignores the
# energy. Noise of standard deviation $e$ at step $s$ implies a temperature, $T=e^2/(2s)$, even if no temperature was
# intended.

# %%
def langevin(E, z, steps, s, T, draw):
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(E(z).sum(), z)
        z = z - s * slope + math.sqrt(2 * s * T) * torch.randn(z.shape, generator=draw)
    return z.detach()


sharp = ood.ResidualEBM(ood.GMM(), lam=0.1, steps=0, updates=toy_updates // 2).fit(toy)
path = []
starts = prior.sample(400, torch.Generator().manual_seed(seed)).float()
ends = ood.sgld(
    sharp.energy, starts, 60, 0.02, generator=torch.Generator().manual_seed(seed),
    callback=lambda t, z: path.append(z.clone()),
)  # fmt: skip
mine = langevin(sharp.energy, starts, 60, 0.02, 1.0, torch.Generator().manual_seed(seed))
assert torch.allclose(mine, ends, atol=1e-3)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Four moments of 400 chains on the energy of the hybrid (background, dark = low). They start as samples of the prior, also in the hole, and drift onto the ring and the arcs. Those that stay behind are useful negatives.", "name": "fig-heat-chains"}, "image": {"alt": "Four panels of the same energy landscape with small white points after 0, 10, 30 and 60 Langevin steps. At first the points fill three ellipses; step by step the hole of the ring and the space inside the arcs empties and the points gather on the dark valleys."}}
def scene(ax, t):
    """The landscape with the points after t steps; returns the points."""
    landscape(ax, sharp.energy, f"{t} steps")
    ax.set(xlim=(-7.5, 7.5), ylim=(-5, 5))
    return ax.plot(*path[t].T, "o", color="white", ms=2.4, mec="black", mew=0.3)[0]


figure, axes = plt.subplots(2, 2, figsize=(plots.FULL, 4.9))
for ax, t in zip(axes.flat, (0, 10, 30, 60)):
    scene(ax, t)
plt.show()

# %% tags=["hide-input"]
figure, ax = plt.subplots(figsize=(4.6, 3.2), dpi=85)
cloud = scene(ax, 0)


def move(t):
    cloud.set_data(*path[t].T)
    ax.set_title(f"{t} steps")
    return [cloud]


with tempfile.TemporaryDirectory() as folder:
    film, still = Path(folder) / "chains.gif", Path(folder) / "chains.png"
    frames = [0] * 4 + list(range(0, 61, 3)) + [60] * 6
    FuncAnimation(figure, move, frames).save(film, PillowWriter(fps=6), savefig_kwargs={"facecolor": "white"})
    figure.savefig(still, dpi=85)
    gif, png = (base64.b64encode(f.read_bytes()).decode() for f in (film, still))
plt.close(figure)
alt = "Animation: white points start in three filled ellipses on an energy landscape and drift out of the hole onto the ring."
display(HTML(
    f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="data:image/png;base64,{png}">'
    f'<img src="data:image/gif;base64,{gif}" alt="{alt}" width="460" style="background: white; max-width: 100%"></picture>'
    "<p><small>The same chains as an animation. If your system is set to reduce motion, you see its last frame.</small></p>"
))  # fmt: skip

# %% tags=["hide-input"]
in_hole = [(torch.cdist(z, toy.penultimate).amin(1) > 0.5).float().mean().item() for z in (starts, ends)]
display(Markdown(
    f"**{in_hole[0]:.0%}** of the starts are blind points, and **{in_hole[1]:.0%}** of the ends. A training step would now "
    "raise the energy at those that are left."
))  # fmt: skip

# %% [markdown]
# Three details decide whether this works in 64 dimensions.
#
# * **The step.** A valley of width $w$ tolerates steps up to about $2w^2$. Features have directions a thousand times
#   narrower than others, so a step that is safe for all directions hardly moves the point. `ood_lib` measures steps by
#   the covariance inside the classes: $z - s\,MM^\top\nabla E + \sqrt{2 s T}\,M\xi$ with $MM^\top=\Sigma$ draws from
#   the same density and explores narrow and wide directions equally fast.
# * **The temperature.** The chain runs on $E_h$, whose prior is divided by $T_p$. At $T=1$ it would draw from a prior
#   that is $T_p$ times too hot. At $T=1/T_p$, the default, a residual of zero leaves the prior exactly as it is. The
#   density whose likelihood then rises is $e^{-T_pE_h}=e^{-E_{\text{prior}}-T_pE_\theta}$, normalised: in sections 2.2
#   and 2.3, replace $E_\theta$ by $T_pE_\theta$ and $q$ by $q\propto e^{-E_{\text{prior}}}$. It ranks points as $E_h$
#   does.
# * **The support.** Features after a ReLU are not negative, and the mixtures use features of length one. So each step
#   ends with $z\leftarrow\mathrm{ReLU}(z)$ and $z\leftarrow z/\lVert z\rVert$. Otherwise the network would learn to
#   separate data from negatives by their signs. Projecting changes the process a little; for small steps it amounts to
#   moving along the sphere.
#
# ### 2.7 Why contrastive divergence is biased
#
# Chains are costly, so in practice they are short. *Contrastive divergence* (CD) {cite:p}`hinton2002cd` starts at the
# data and takes $K$ steps. Its second force is an expectation under $p_K$, the distribution of the chain after $K$
# steps, and not under $p_\theta$. The objective that it seems to minimise is
# $\mathrm{KL}(p_{\text{data}}\Vert p_\theta)-\mathrm{KL}(p_K\Vert p_\theta)$. Differentiate it: in the second term
# $\theta$ occurs in $p_\theta$ *and in $p_K$*, because the chain runs on $E_\theta$. CD drops the derivative of $p_K$.
# The rest is in general not the gradient of any function {cite:p}`sutskever2010cd`.
#
# **How wrong can it be?** One dimension is enough for exact numbers. Data are $N(0,1)$, the model is
# $E_\theta(z)=\theta z^4/4$, which cannot fit them. Maximum likelihood requires
# $\mathbb E_{\text{data}}[z^4]=\mathbb E_{p_\theta}[z^4]=1/\theta$, so $\theta=\frac13$. CD with one tiny step requires
# that the step does not change $\mathbb E[z^4]$: $\mathbb E[-4\theta z^6+12z^2]=0$, so $\theta=3/15=\frac15$. (You may
# recognise {term}`score <score (Stein)>` matching.) For the chain lengths in between, discretise the chain on a grid:
# it becomes a matrix $P$, and its power $P^K$ gives $p_K$ without any sampling.

# %% tags=["hide-input"]
points = torch.linspace(-6, 6, 201, dtype=torch.float64)
weight = torch.exp(-(points**2) / 2)
p_data, fourth, s = weight / weight.sum(), points**4, 0.02


def drift_of_moment(theta, doublings):
    """E[z⁴] after K = 2^doublings Langevin steps from the data, minus E[z⁴] of the data."""
    mean = points - s * theta * points**3
    P = torch.exp(-((points - mean[:, None]) ** 2) / (4 * s))
    P = P / P.sum(1, keepdim=True)  # row: from, column: to
    for _ in range(doublings):
        P = P @ P
    return (p_data @ P @ fourth - p_data @ fourth).item()


# %% [markdown]
# Training stops where the moment no longer drifts. Find that θ by bisection, for each length of the chain.

# %% tags=["hide-input"]
def where_cd_stops(doublings, low=0.1, high=0.6):
    for _ in range(18):
        theta = (low + high) / 2
        low, high = (theta, high) if drift_of_moment(theta, doublings) > 0 else (low, theta)
    return theta


stops = {2**j: where_cd_stops(j) for j in range(9)}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Where contrastive divergence stops, against the length of its chains. Short chains find 1/5, long ones the maximum-likelihood value 1/3; the small excess at the end is the error of the finite step.", "name": "fig-heat-cd"}, "image": {"alt": "The fitted parameter theta against the number of Langevin steps from 1 to 256 on a logarithmic axis. It rises in an S from 0.21 to 0.34; horizontal lines mark one fifth and one third."}}
figure, ax = plt.subplots(figsize=(plots.HALF * 1.5, 2.6))
ax.semilogx(list(stops), list(stops.values()), base=2, **plots.SERIES[0])
for value, left, name in ((1 / 5, 16, "score matching, 1/5"), (1 / 3, 1, "maximum likelihood, 1/3")):
    ax.axhline(value, color=plots.COLORS["grey"], lw=1)
    ax.annotate(name, (left, value), va="bottom", fontsize=9, color=plots.COLORS["grey"])
ax.set(xlabel="steps K", ylabel="θ", ylim=(0.18, 0.37))
plt.show()

# %% [markdown]
# There is a second, worse consequence. Where the energy is wrongly low far from all data, short chains that start at
# the data never arrive, so training does not raise the energy there. HEAT starts its chains *from the prior*, so they
# visit exactly the mistakes of the prior. Chains do not reach modes elsewhere either, but there the energy of the prior
# is already high. The next cell compares four starts on the toy, with three steps each. *Persistent* chains continue
# where they ended at the last update {cite:p}`tieleman2008pcd`, and some start again from the prior; *noise* is a
# Gaussian of the same length as the features. The gap is the mean residual of the negatives minus that of the data, in
# the last batch:

# %% tags=["hide-input"]
by_start = {}
for start in ("data", "persistent", "noise", "prior"):
    trained = ood.ResidualEBM(
        ood.GMM(), lam=0.1, steps=3, start=start, updates=toy_updates // 5,
        learning_rate=2e-3, batch_size=128, seed=seed,
    ).fit(toy)  # fmt: skip
    by_start[start] = toy_scores(trained.energy) + [trained.history.gap[-1]]
by_start = pd.DataFrame(by_start, ["blind AUROC", "far AUROC", "last gap"]).T
by_start.style.format("{:.3f}").set_caption("Where the chains start (toy, hybrid)")

# %% tags=["hide-input"]
blind_column = by_start["blind AUROC"]
display(Markdown(
    f"On the blind points the AUROC of the four hybrids ranges from {blind_column.min():.3f} (start from *{blind_column.idxmin()}*) to "
    f"{blind_column.max():.3f} (*{blind_column.idxmax()}*). Far away each has at least {by_start['far AUROC'].min():.3f}: there the energy of the prior "
    "decides. This is one toy and one seed, an illustration and no ranking; section 6.2 repeats the comparison on features."
))  # fmt: skip

# %% [markdown]
# ### 2.8 Composition
#
# One prior per view of the image: features, {term}`style <style (features)>`, {term}`logits <logit>`. Their hybrid
# energies have different units, so standardise each over the training set, $u_k=(E_{h,k}-m_k)/s_k$, and compose:
#
# $$E^\beta_{\text{HEAT}} = \frac1\beta\log\frac1n\sum_{k=1}^n e^{\beta u_k}.$$
#
# Its derivative with respect to $u_k$ is the weight $\mathrm{softmax}(\beta u)_k$: at $\beta=0$ all hybrids have the
# same weight (expand the exponential: the limit is the mean). For $\beta\to\infty$ the largest energy decides, "OOD if
# *any* hybrid says so". For $\beta\to-\infty$ the smallest decides, "OOD only if *all* say so". (The paper leaves out
# $1/n$, a constant that changes no ranking.)

# %%
u = torch.tensor([[0.2, 3.0], [0.4, -1.0], [0.1, 0.5]])  # three hybrids, two images
for beta_ in (-9.0, -1.0, 0.0, 1.0, 9.0):
    mine = u.mean(0) if beta_ == 0 else (beta_ * u).exp().mean(0).log() / beta_
    assert torch.allclose(mine, soft_extreme(u, beta_), atol=1e-5)
    print(f"β = {beta_:5g}:", [round(x, 2) for x in mine.tolist()])

# %% [markdown]
# `ood.compose` does this for *any* list of detectors, `ood.HEAT` for hybrids.
#
# ## 3. Training
#
# First the classifiers, several from different seeds, exactly as in the WeiPer chapter. Their features stay fixed
# from here on.

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
heads = [x.head for x in features]
head, accuracies = heads[0], [100 * x.accuracy for x in features]
bench or f  # which set plays which role, and how many images it has

# %% tags=["hide-input"]
display(Markdown(
    f"Test accuracy over {seeds} network{'s' * (seeds > 1)}: **{np.mean(accuracies):.1f} %** (from {min(accuracies):.1f} to {max(accuracies):.1f} %). "
    f"From here on the network represents an image by a feature of {head.in_features} numbers, the standard deviation of each of them over the "
    f"last feature map (its *style*), and {head.out_features} logits. There are {len(f.train)} training images."
))  # fmt: skip

# %% [markdown]
# Now train HEAT. It has three priors: a Gaussian mixture on the direction of the feature, one on the direction of the
# style, and the energy of the logits as a function of the feature. (Without a residual, this third prior is the
# detector Energy.) The third prior is no density: along any row of the {term}`head` it decreases without bound. It
# cannot be sampled, so its chains start from noise, or from the samples of another detector (`start=ood.GMM()`).

# %% tags=["hide-input"]
names = ["GMM", "GMM style", "logits"]


def priors(head):
    return [ood.GMMPrior(), ood.GMMPrior("style"), ood.LogitPrior(head)]


def options(k, **changes):
    """Options of hybrid k: the parameters on top of the page, and changes."""
    return {
        "lam": lam[k], "steps": steps[k], "updates": residual_updates[k],
        "prior_temperature": prior_temperature[k] or None, "batch_size": batch_size[k],
        "step_size": step_size[k] or None, "noise": noise[k] or None, "decay": decay,
        "precondition": precondition, "standardize": standardize, "shared": shared,
        "keep_starts": keep_starts, "hidden": hidden, "learning_rate": residual_rate,
        "average": average, "seed": seed,
    } | changes  # fmt: skip


# %% tags=["hide-input"]
def make_heat(head, **changes):
    own = [options(k, **changes) for k in range(3)]
    return ood.HEAT([ood.ResidualEBM(p, **o) for p, o in zip(priors(head), own)], beta=beta)


where = ood.pick_device(device)
where = where if where.type == "cuda" else "cpu"  # Apple's GPUs have no double precision
heats = [make_heat(h).to(where).fit(x.train).cpu() for h, x in zip(heads, features)]
heat = heats[0]

# %% [markdown]
# The library computes what section 2 derived:

# %%
one = heat.hybrids[0]
z = one.points(f.test)  # features of length one
assert torch.allclose(z, F.normalize(f.test.penultimate, dim=1))
by_hand = -one.prior.log_prob(z) / one.t_p + one.net(z)
assert torch.allclose(one.score(f.test), by_hand.detach(), atol=1e-5)
u = torch.stack([
    (h.score(f.test).double() - m) / s
    for h, m, s in zip(heat.hybrids, heat.means, heat.stds)
])  # fmt: skip
assert torch.allclose(heat.score(f.test).double(), soft_extreme(u, beta), atol=1e-4)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training of the three residuals on the first network. Top: mean residual energy of data and of negatives; the grey lines are the bound ±1/(2λ). Bottom: norm of the gradient. The loss is not shown, because its value means nothing.", "name": "fig-heat-training"}, "image": {"alt": "Six panels, one column per prior. Top: two curves over the updates that begin at zero; the data curve falls and the negatives' curve rises. For the mixtures they stay close together, for the logits they reach the bounds. Bottom: gradient norms on a logarithmic axis, rising for the mixtures."}}
figure, axes = plt.subplots(2, 3, figsize=(plots.FULL, 3.9), sharex="col", sharey="row", height_ratios=(2, 1))
for k, (column, h, name) in enumerate(zip(axes.T, heat.hybrids, names)):
    for values, role, label in ((h.history.data, "id", "data"), (h.history.negatives, "other", "negatives")):
        smooth = pd.Series(values).rolling(10, min_periods=1).mean()
        column[0].plot(smooth, color=plots.COLORS[role], ls=plots.LINES[role], label=label)
    for side_ in (-1, 1):
        column[0].axhline(side_ / (2 * lam[k]), color=plots.COLORS["grey"], lw=1)
    column[1].semilogy(h.history.gradient_norm, color=plots.SERIES[0]["color"], lw=0.8)
    column[0].set_title(name)
    column[1].set_xlabel("update")
axes[0, 0].set_ylabel("residual energy")
axes[1, 0].set_ylabel("gradient norm")
axes[0, 0].legend(loc="upper left")
plt.show()

# %% tags=["hide-input"]
gaps = {name: np.mean(h.history.gap_share[-20:]) for name, h in zip(names, heat.hybrids)}
spreads = {name: h.prior.score(f.train).std().item() for name, h in zip(names, heat.hybrids)}
with torch.no_grad():
    held_out = {n: (h.residual(h.points(f.test)).mean() - h.residual(h.points(f.train)).mean()).item()
                for n, h in zip(names, heat.hybrids)}  # fmt: skip
display(Markdown("\n".join(
    f"* {n}: the last gap is {gaps[n]:.1%} of 1/λ{' (hardly trained: the library warns below 10 %)' if gaps[n] < 0.1 else ''}; the mean residual of held-out "
    f"images differs from that of training images by {held_out[n]:+z.2f}; T_p = {h.t_p.item():.2f}, and the prior's energy has standard deviation {spreads[n]:.2f}." for n, h in zip(names, heat.hybrids)
)))  # fmt: skip

# %% [markdown]
# Watch three things. First, the *gap* between the curves (`history.gap`, and as a share of its maximum
# `history.gap_share`) shows how well the network separates data from negatives. A gap near $1/\lambda$ means that the
# negatives are trivial. A gap near zero has two possible causes: the negatives resemble the data, or the training was
# too short to find the difference. In the second case the curves still drift apart at the end. A larger gap is not a
# better detector, as section 6.1 shows. Second, the *gradient norm* may rise while the outputs move away from zero, but
# must not grow without end. Third, the *held-out* difference shows overfitting: a residual that is low on training
# images and high on test images has memorised the training set. Where $T_p$ is larger than the spread, the floor of
# section 2.5 applies, and the residual may move a point by more than $1/(2\lambda)$ standard deviations. If an energy
# is no longer finite, the library stops, says at which step, and keeps the last good weights. The stored weights are a
# moving average, because the negatives respond to every change of the network, so the last weights fluctuate.

# %% [markdown]
# ## 4. Looking inside
#
# **Where do the three priors disagree, and what did the residuals learn?** One UMAP of the penultimate features
# {cite:p}`mcinnes2018umap`, coloured by one energy per panel. Colours are ranks, so that panels can be compared;
# distances between
# clusters, and their sizes, mean little.

# %% tags=["hide-input"]
everything = {"id": [f.test], "near": list(f.near.values()), "far": list(f.far.values())}
picked = {}
for group, sets in everything.items():
    whole = ood.Features(**{n: torch.cat([getattr(x, n) for x in sets]) for n in sets[0].tensors()})
    picked[group] = whole[torch.randperm(len(whole), generator=draw)[: umap_points // 3]]
seen = ood.Features(**{n: torch.cat([getattr(p, n) for p in picked.values()]) for n in f.test.tensors()})
groups = np.repeat(list(picked), [len(p) for p in picked.values()])
points = plots.umap(seen.penultimate, seed)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One embedding, six colourings. Top: the roles, and two priors. Bottom: the composition, and the residuals of these two priors. Yellow = high energy. Where a residual is yellow and its prior is not, the residual changes the ranking.", "name": "fig-heat-umap"}, "image": {"alt": "Six scatter plots of the same two-dimensional embedding. The first shows blue ID islands with orange near-OOD and pink far-OOD points between and beside them. In the others colour is the rank of an energy: the mixture and HEAT are dark on the ID islands and brighter elsewhere. The logit prior leaves a far-OOD cluster dark; the residual of the logits brightens it, the residual of the mixture does not."}}
figure, axes = plt.subplots(2, 3, figsize=(plots.FULL, 4.9))
plots.embedding(points, {k: groups == k for k in ("far", "near", "id")}, ax=axes[0, 0])
axes[0, 0].legend(fontsize=8, markerscale=2, loc="best", handletextpad=0)
axes[0, 0].set_title("roles")
gmm_hybrid, style_hybrid, logit_hybrid = heat.hybrids
with torch.no_grad():
    panels = {
        "prior: GMM": gmm_hybrid.prior.score(seen),
        "prior: logits": logit_hybrid.prior.score(seen),
        "HEAT": heat.score(seen),
        "residual of GMM": gmm_hybrid.residual(gmm_hybrid.points(seen)),
        "residual of logits": logit_hybrid.residual(logit_hybrid.points(seen)),
    }
for ax, (name, values) in zip(axes.flat[1:], panels.items()):
    rank = values.argsort().argsort().double() / len(values)
    drawn_points = ax.scatter(*points.T, c=rank, cmap="viridis", s=5, linewidths=0, rasterized=True)
    ax.set(title=name, xticks=[], yticks=[])
for ax in axes.flat:
    ax.set(xlabel="", ylabel="")
figure.colorbar(drawn_points, ax=axes, shrink=0.6, label="rank of the energy")
plt.show()

# %% tags=["hide-input"]
is_id = torch.as_tensor(groups == "id")
by_panel = {n: {g: auroc(v[is_id], v[torch.as_tensor(groups == g)])[0] for g in ("near", "far")} for n, v in panels.items()}
display(Markdown("AUROC on the points of this picture, near / far, first network: " + "; ".join(
    f"{n} {100 * v['near']:.1f} / {100 * v['far']:.1f}" for n, v in by_panel.items()
) + ". 50 % is chance. A residual alone need not be a good detector: it corrects its prior where the negatives were, as in section 1."))

# %% [markdown]
# ## 5. Does it work?
#
# ### 5.1 On real networks
#
# **How much does the residual gain on networks trained on photographs, and how much do the other parts gain?** The
# claim has three parts: a hybrid is better than its prior; the composition is better than each prior; and the training
# is the reason. To separate them, HEAT is always shown beside the same priors composed without any training.
#
# The networks are those of `benchmarks`, whose features ship with the library. To keep the run short, only two priors
# are corrected and composed here: the mixture, and the logits, whose energy without a residual is the detector Energy
# of the other chapters. Three settings are chosen for each network by one rule: the largest AUROC of held-out ID images
# against a *validation OOD set*, half of the images of Tiny-ImageNet. The test uses the other half and all other sets.
# The settings are
#
# * the *ridge* of the mixture, which is added to each variance in units of the mean variance, so that no direction of
#   the features is nearly singular. (The likelihood of held-out ID images could choose it without any OOD image. But it
#   rewards narrow directions whether or not OOD images differ in them. Its choice is shown below for comparison.)
# * the *start* of the chains, samples of a mixture or noise;
# * the *factor* $c$ on the trained residual, $E_{\text{prior}}/T_p+c\,E_\theta$. With $c=0$ the hybrid is its prior.

# %% tags=["hide-input"]
def halved(x):
    """Features that keep half of the last near set for judging, and the other half."""
    name, last = list(x.near.items())[-1]  # Tiny-ImageNet on all four networks
    order = torch.randperm(len(last), generator=torch.Generator().manual_seed(0))
    first, second = order.tensor_split(2)
    return replace(x, near=x.near | {name: last[second]}), last[first]


def validated(detector, x, held):
    """AUROC of held-out ID images against the validation OOD set."""
    return auroc(detector.score(x.val), detector.score(held))[0]


# %% tags=["hide-input"]
real = {name: halved(ood.benchmark_features(name, rows=bank_rows or None)[0]) for name in benchmarks}


def chosen_hybrid(prior, starts, updates, x, held, seed):
    """Hybrids from several starts; the start and the factor that validation prefers."""
    own = {"lam": lam[0], "hidden": hidden, "updates": updates, "seed": seed}
    tried = []
    for start in starts:
        h = ood.ResidualEBM(prior, start=start, batch_size=64, **own).fit(x.train)
        for c in factors:
            h.factor = c
            tried.append((validated(h, x, held), h, c))
    best, factor = max(tried, key=lambda t: t[0])[1:]
    best.factor = factor
    return best


# %% tags=["hide-input"]
def untrained(x, held):
    """The priors alone and composed, the ridge chosen by validation: the same for each training."""
    wide = [ood.GMMPrior(ridge=r).fit(x.train) for r in ridges]
    gmm, energy = max(wide, key=lambda d: validated(d, x, held)), ood.LogitPrior(x.head)
    both = ood.compose([gmm, energy], beta, refit=False).fit(x.train)
    return {"GMM": ood.GMMPrior().fit(x.train), "GMM, ridge": gmm, "logits": energy, "untrained": both}


def ladder(x, held, alone, seed, starts):
    """From the mixture alone to HEAT: detectors that are fitted, by name."""
    gmm, energy = alone["GMM, ridge"], alone["logits"]
    few, more = bank_updates
    first = chosen_hybrid(gmm, starts[0], few, x, held, seed)
    second = chosen_hybrid(energy, starts[1], more, x, held, seed)
    trained = ood.compose([first, second], beta, refit=False).fit(x.train)
    return alone | {"GMM, hybrid": first, "logits, hybrid": second, "HEAT": trained}


# %% tags=["hide-input"]
ladders = {}
for name, (x, held) in real.items():  # the first training chooses the starts of the others
    alone = untrained(x, held)
    first = ladder(x, held, alone, seed, [["prior", "noise"], [ood.GMM(), "noise"]])
    starts = [[first[k].start] for k in ("GMM, hybrid", "logits, hybrid")]
    others = [ladder(x, held, alone, seed + n, starts) for n in range(1, bank_seeds)]
    ladders[name] = [(x, rungs) for rungs in (first, *others)]
for detector in {d for _, rungs in sum(ladders.values(), []) for d in rungs.values()}:
    detector.score = cache(detector.score)  # verdicts ask for the same scores again and again

# %% tags=["hide-input"]
own_priors = [  # digits, trained live: three priors, nothing chosen
    {
        "GMM, ridge": h.hybrids[0].prior, "GMM, hybrid": h.hybrids[0],
        "logits": h.hybrids[2].prior, "logits, hybrid": h.hybrids[2], "HEAT": h,
        "untrained": ood.compose([own.prior for own in h.hybrids], beta, refit=False).fit(x.train),
    }
    for h, x in zip(heats, features)
]  # fmt: skip
everywhere = ladders | {f"{benchmark}": list(zip(features, own_priors))}

# %% tags=["hide-input"]
duels = {
    "The ridge: the mixture with the chosen ridge against the mixture": ("GMM, ridge", "GMM"),
    "The residual: hybrid against prior, mixture": ("GMM, hybrid", "GMM, ridge"),
    "The residual: hybrid against prior, logits": ("logits, hybrid", "logits"),
    "HEAT against the prior on the mixture": ("HEAT", "GMM, ridge"),
    "HEAT against the prior on logits": ("HEAT", "logits"),
    "The training: HEAT against the same priors, composed untrained": ("HEAT", "untrained"),
}
judged = {
    claim: {n: ood.verdicts([(x, d[a], d[b]) for x, d in own]) for n, own in everywhere.items() if b in own[0][1]}
    for claim, (a, b) in duels.items()
}  # fmt: skip


# %% tags=["hide-input"]
def outcome(claim):
    """What the verdicts of one claim say of the mean of near and far."""
    return ood.tally({n: v["mean"] for n, v in judged[claim].items()})


def gains(own):
    """Points of the mean of near and far from rung to rung, as means over trainings."""
    rungs = ["GMM", "GMM, ridge", "untrained", "HEAT"]
    level = {r: np.mean([np.mean(list(ood.group_auroc(d[r], x).values())) for x, d in own]) for r in rungs}
    return [100 * (level[b] - level[a]) for a, b in zip(rungs, rungs[1:])]


by_step = {name: gains(own) for name, own in ladders.items()}
largest = [("the ridge", "the composition with the logits", "the training")[int(np.argmax(v))] for v in by_step.values()]
lines = [f"* {name}: ridge {a:+z.1f}, composition with the logits {b:+z.1f}, training {c:+z.1f}" for name, (a, b, c) in by_step.items()]
if by_step:
    most = max(set(largest), key=largest.count)
    display(Markdown(
        "From the mixture alone to HEAT, in points of AUROC (mean of near and far):\n\n" + "\n".join(lines)
        + (f"\n\nThe largest gain comes from **{most}**, on {largest.count(most)} of {len(largest)} networks.".replace(", on 1 of 1 networks", "")
           if 2 * largest.count(most) > len(largest) else "\n\nNo single step has the largest gain on most networks.")
    ))  # fmt: skip
display(Markdown("Claim by claim, on the mean of near and far:\n\n" + "\n".join(f"* {c}: **{outcome(c)}**." for c in duels if judged[c])))
for claim, found in judged.items():
    if found:
        display(plots.verdict_table(found, claim))

# %% [markdown]
# Each row compares the two detectors on the same images. On a bank the interval covers the choice of test images and
# the training of the residual, but not that of the network. For the networks trained here it covers the training of the
# network as well. *Better* and *worse* mean that the interval leaves out zero. *Level* means that it holds zero and lies
# within a point of it, and *cannot tell* that it is wider: the images or the trainings are too few. The validation set is near-OOD. Settings that are best on it can be worse on far-OOD, so read both columns. The next
# figure shows every step on one scale.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Every step on each network: the gain over the mixture alone, in points of AUROC (mean of near and far), with 95 % intervals of the paired difference. Filled: untrained; open: trained. Compare each open dot with the filled one above it.", "name": "fig-heat-ladder"}, "image": {"alt": "One panel per network. Rows are the mixture with ridge, its hybrid, the logits, their hybrid, both priors composed untrained, and HEAT. The horizontal axis is the gain over the mixture alone in points of AUROC, with a vertical line at zero. Filled dots mark untrained detectors and open dots trained ones, each with an interval."}}
rows = ["GMM, ridge", "GMM, hybrid", "logits", "logits, hybrid", "untrained", "HEAT"]
figure, axes = plt.subplots(1, max(1, len(ladders)), figsize=(plots.FULL, 2.9), sharey=True, squeeze=False)
for ax, (name, own) in zip(axes[0], ladders.items()):
    for y, rung in enumerate(rows):
        v, trained = ood.verdicts([(x, d[rung], d["GMM"]) for x, d in own])["mean"], rung in ("GMM, hybrid", "logits, hybrid", "HEAT")
        color = plots.SERIES[2 if trained else 0]["color"]
        ax.hlines(y, 100 * v.low, 100 * v.high, color=color)
        ax.plot(100 * v.difference, y, "o", color=color, mfc="white" if trained else color)
    ax.axvline(0, color=plots.COLORS["grey"], lw=1)
    ax.set_title(name.replace("-", "\n", 1), fontsize=9)
    ax.tick_params(labelsize=8)
axes[0, 0].set_yticks(range(len(rows)), [r.replace("untrained", "composed, untrained") for r in rows])
axes[0, 0].invert_yaxis()
figure.supxlabel("gain over the mixture alone, points of AUROC", fontsize=10)
plt.show()

# %% tags=["hide-input"]
choices, areas = [], {}
for name, own in ladders.items():
    x, held = real[name]
    fits = {r: -ood.GMMPrior(ridge=r).fit(x.train).score(x.val).mean().item() for r in ridges}
    first, second = ([d[k] for _, d in own] for k in ("GMM, hybrid", "logits, hybrid"))
    start = [", ".join(f"{h.start if isinstance(h.start, str) else 'GMM'} × {h.factor:g}" for h in hs) for hs in (first, second)]
    choices.append((name, f"{own[0][1]['GMM, ridge'].ridge:g}", f"{max(fits, key=fits.get):g}", *start))
    for rung in own[0][1]:
        both = [ood.group_auroc(d[rung], x) for x, d in own]
        areas[rung, name] = " / ".join(f"{100 * np.mean([b[g] for b in both]):.1f}" for g in ("near", "far"))
columns = ["network", "ridge", "ridge by ID likelihood", "GMM: start × factor, by training", "logits: start × factor"]
display(pd.DataFrame(choices, columns=columns).style.hide(axis="index").set_caption("What the validation set chose"))
if areas:
    display(pd.Series(areas).unstack(sort=False).style.set_caption("AUROC in %, near / far, mean over trainings"))

# %% [markdown]
# **Where does a residual help, and where not?** It is trained to separate data from negatives. So it helps if it rates
# OOD images as it rates negatives. The figure shows this for two networks: the one on which HEAT gains most over its
# untrained composition, and the one on which it gains least.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Densities of the mixture's residual in units of its bound, for ID test images, the negatives it was trained on, and OOD images. Left: the network with the largest gain from training; right: the one with the smallest. A residual helps if the OOD curves are shifted from the ID curve towards the negatives.", "name": "fig-heat-mass"}, "image": {"alt": "Two panels of densities over the residual divided by its bound, from minus one to one. ID test images lie left and negatives right. In the first panel the near-OOD and far-OOD curves lie between them; in the second they lie on the curve of the ID images or left of it."}}
ranked = sorted(by_step, key=lambda n: -by_step[n][2])
shown = [n for n in dict.fromkeys([*ranked[:1], *ranked[-1:]])] or [benchmark]
figure, axes = plt.subplots(1, len(shown), figsize=(plots.FULL, 2.6), sharey=True, squeeze=False)
for ax, name in zip(axes[0], shown):
    x, d = ladders[name][0] if name in ladders else (f, own_priors[0])
    h = d["GMM, hybrid"]
    sets = {"id": [x.test], "near": x.near.values(), "far": x.far.values()}
    with torch.no_grad():
        share = {g: 2 * h.lam * torch.cat([h.residual(h.points(q)) for q in own]) for g, own in sets.items()}
        share["other"] = 2 * h.lam * h.residual(h.sample(1000, torch.Generator().manual_seed(seed)))
    for role, values in share.items():
        height, edges = np.histogram(values.clamp(-1.2, 1.2), bins=48, range=(-1.2, 1.2), density=True)
        label = "negatives" if role == "other" else plots.NAMES[role]
        ax.plot((edges[1:] + edges[:-1]) / 2, height, plots.LINES[role], color=plots.COLORS[role], label=label)
    ax.set(title=name, xlabel="residual / bound")
    ax.set_yscale("symlog", linthresh=0.5)
axes[0, 0].set_ylabel("density")
axes[0, 0].legend(fontsize=8)
plt.show()

# %% [markdown]
# The negatives are not OOD images. They are samples of a mixture, and features of photographs, ID or OOD, share
# properties that such samples lack. A residual that has learned those properties separates the negatives nearly
# perfectly, yet gives OOD images the same low energy as ID images. Section 6.1 shows this in the course of a training.
#
# ### 5.2 All detectors on the networks trained here
#
# This table compares priors, hybrids, both {term}`compositions <composition>`, and other kinds of detectors. All are
# fitted on the ID training features of one network and never see an OOD image. This is repeated for every network. All
# three priors take part, and no setting is chosen on OOD images.

# %% tags=["hide-input"]
def contestants(head, heat):
    own, fitted = priors(head), heat.hybrids
    return {
        "MSP": ood.MSP(),
        "Energy": ood.Energy(),
        "KNN": ood.KNN(neighbours(f.train, head)),
        "ViM": ood.ViM(head),
        **{f"prior {name}": prior for name, prior in zip(names, own)},
        **{f"hybrid {name}": h for name, h in zip(names, fitted)},
        "priors composed": ood.compose(priors(head), beta),
        "HEAT": heat,
    }


# %% tags=["hide-input"]
tables = [  # the hybrids are trained already
    ood.run_benchmark(contestants(h, fitted), x, seed=seed + n, refit=False)
    for n, (h, fitted, x) in enumerate(zip(heads, heats, features))
]
table = pd.concat(tables)
caption = f"AUROC in %, mean over networks ({seeds}); bold: best and its equals"
plots.benchmark_table(table, caption=caption)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean AUROC over the near and the far sets, with the 95 % interval of Student's t over networks, cut at 1.", "name": "fig-heat-benchmark"}, "image": {"alt": "Dot plot with one row per detector and two dots, near-OOD and far-OOD, with horizontal intervals over networks on an AUROC axis that ends at 1. Mixtures, their hybrids and the compositions lie closest to 1; MSP, the energy and the hybrid on logits have long far-OOD intervals."}}
summary = ood.summarize(table)
plots.dots(summary)
plt.show()

# %% tags=["hide-input"]
pairs = [(f"hybrid {n}", f"prior {n}") for n in names]
pairs += [("HEAT", "priors composed"), ("HEAT", "prior GMM"), ("HEAT", "KNN"), ("priors composed", "KNN")]
lines = [f"* {a} against {b}: near {ood.compare_over_seeds(table, a, b, 'near')}; far {ood.compare_over_seeds(table, a, b, 'far')}." for a, b in pairs]
display(Markdown("Differences in points of AUROC, paired over networks, with 99 % intervals:\n\n" + "\n".join(lines)))

# %% [markdown]
# *Prior logits* and *Energy* are the same detector, and their rows agree. Where a prior already gives nearly every far
# image a higher energy than the ID images, little is left to correct; on `digits` this is so for the mixtures. The
# logits leave more to correct on far-OOD. How much the residual corrects differs from network to network:

# %% tags=["hide-input"]
wide = table[(table["metric"] == "auroc") & (table["group"] == "far")]
wide = 100 * wide.pivot_table("value", "seed", "detector", "mean")
before, after = wide["prior logits"], wide["hybrid logits"]
display(Markdown(
    "Far AUROC of the logits in %, prior → hybrid: " + ", ".join(f"{a:.1f} → {b:.1f}" for a, b in zip(before, after)) + ". "
    f"On average the hybrid on logits has {after.mean():.1f} %. The mixture, which uses the same features without a residual, has "
    f"{wide['prior GMM'].mean():.1f} %."
))  # fmt: skip

# %% [markdown]
# ### The paper beside this page
#
# We did not have the tables of the paper when we wrote this chapter, only its code, its method figure and its abstract.
# So this page quotes no number of the paper; you find them in {cite:t}`lafon2023heat`. The code tells its setting:
# ResNet-34 on CIFAR (width 512), ResNet-50 on ImageNet (width 2048), residual networks 1024 wide, and all three priors,
# composed at $\beta=0$. Near-OOD and far-OOD sets are averaged together. Our result:

# %% tags=["hide-input"]
ours = {g: summary[(summary["detector"] == "HEAT") & (summary["group"] == g)].iloc[0] for g in ("near", "far")}
cell = {g: metrics.as_percent(*r[["value", "low", "high"]]) for g, r in ours.items()}
others = {n: summary[summary["detector"] == n].set_index("group")["value"] * 100 for n in ("prior GMM", "KNN")}
others = ", ".join(f"{n} {v['near']:.1f} / {v['far']:.1f}" for n, v in others.items())
setting = f"this run: {benchmark}, width {head.in_features}, residuals {'-'.join(map(str, hidden))}, K = {steps}, β = {beta:g}"
pd.DataFrame([(setting, cell["near"], cell["far"], others)], columns=["setting", "near", "far", "others (near / far)"]).style.hide(
    axis="index").set_caption("HEAT, AUROC in %, with 95 % intervals over networks")  # fmt: skip

# %% [markdown]
# ## 6. Turn the knobs
#
# Training is random and the differences are small, so every point below is a mean over several networks, and the band
# is their full range. Each experiment trains one hybrid for `sweep_updates` updates; all other parameters are those of
# the parameters cell.

# %% tags=["hide-input"]
@cache
def hybrid_auroc(k, n, **changes):
    """Train hybrid k of network n with changed options, and judge it; diverged is a gap."""
    chosen = options(k, **{"updates": sweep_updates, **changes})
    detector = ood.ResidualEBM(priors(heads[n])[k], **chosen)
    try:
        found = ood.group_auroc(detector.fit(features[n].train), features[n])
        return found | {"gap": np.mean(detector.history.gap_share[-20:])}
    except ood.DivergedError:
        return dict.fromkeys(("near", "far", "gap"), math.nan)


# %% tags=["hide-input"]
nets = range(min(sweep_networks, seeds))


def changed(k, knob, value):
    """What differs from the options of this page: nothing where the value is theirs, and was trained already."""
    return {} if options(k)[knob] == value else {knob: value}


def sweep(knob, values, k):
    """Group AUROCs of hybrid k over values of a knob, per network."""
    runs = [(v, n) for v in values for n in nets]
    return pd.DataFrame(
        {"value": v, "seed": n, **hybrid_auroc(k, n, **changed(k, knob, v))} for v, n in runs
    )


# %% [markdown]
# ### 6.1 How much training, how long a chain, how strong a penalty?
#
# **Is more training better?** The loss does not say, so it is tempting to train until the gap no longer grows. Train
# hybrids of the mixture for longer and longer, on the photograph network with the narrowest features, and measure
# whether the residual *alone* detects OOD images. Three versions are compared: $K=0$, where the starts are the
# negatives and the residual is a plain density ratio; a chain of five steps; and such a chain on a mixture with a
# ridge.

# %% tags=["hide-input"]
subject = min(
    [x for x, _ in real.values()] or [f], key=lambda x: x.test.penultimate.shape[1]
)
ways, course = {"K = 0": (1e-6, 0), "K = 5": (1e-6, 5), "K = 5, ridge 10": (10.0, 5)}, []
for way, (ridge, K) in ways.items():
    for n in longer_updates:
        own = {"lam": lam[0], "hidden": hidden, "batch_size": 128, "seed": seed}
        h = ood.ResidualEBM(ood.GMMPrior(ridge=ridge), steps=K, updates=n, **own)
        both, prior = (ood.group_auroc(d, subject) for d in (h.fit(subject.train), h.prior))
        h.factor = 1e6  # the prior has no say: the ranking of the residual alone
        gained = {g: both[g] - prior[g] for g in prior}
        for name, of in (("alone", ood.group_auroc(h, subject)), ("gain", gained)):
            gap = np.mean(h.history.gap_share[-10:])
            course += [(way, n, gap, name, g, 100 * of[g]) for g in of]
course = pd.DataFrame(course, columns=["way", "updates", "gap", "what", "group", "points"])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Longer training of the mixture's hybrid on a real network. Left: the gap as a share of the largest, 1/λ. Middle: AUROC of the residual alone on far-OOD. Right: what the hybrid gains over its prior there. Whether detection improves while the gap grows depends on where the negatives lie.", "name": "fig-heat-longer"}, "image": {"alt": "Three panels over the number of updates on a logarithmic axis, each with three curves: K = 0, K = 5, and K = 5 with a ridge. The first shows the share of the gap, rising. The second shows the far-OOD AUROC of the residual alone, with a line at 50. The third shows the gain of the hybrid over its prior on far-OOD, with a line at zero."}}
figure, axes = plt.subplots(1, 3, figsize=(plots.FULL, 2.6))
for (way, own), series in zip(course[course["group"] == "far"].groupby("way", sort=False), plots.SERIES[::2]):
    alone_, gain_ = (own[own["what"] == what].set_index("updates") for what in ("alone", "gain"))
    for ax, line in zip(axes, (alone_["gap"], alone_["points"], gain_["points"])):
        ax.semilogx(line, label=way, **series)
for ax, title, level in zip(axes, ("gap, share of 1/λ", "residual alone, far AUROC", "hybrid − prior, far"), (0, 50, 0)):
    ax.axhline(level, color=plots.COLORS["grey"], lw=1)
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="updates", xticks=longer_updates, xticklabels=longer_updates)
    ax.minorticks_off()
axes[0].legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
def course_of(way, group):
    own = course[(course["way"] == way) & (course["group"] == group)]
    gap, alone, gain = (own[own["what"] == w].sort_values("updates")[c].to_numpy() for w, c in (("alone", "gap"), ("alone", "points"), ("gain", "points")))
    word = "falls" if alone[-1] < alone[0] - 1 else "rises" if alone[-1] > alone[0] + 1 else "changes little,"
    return f"on {group} the AUROC of the residual alone {word} from {alone[0]:.1f} to {alone[-1]:.1f}, and the hybrid ends {gain[-1]:+z.1f} points from its prior", gap


display(Markdown(f"From {longer_updates[0]} to {longer_updates[-1]} updates on {subject.name or benchmark}:\n\n" + "\n".join(
    f"* {way}: the gap goes from {course_of(way, 'far')[1][0]:.0%} to {course_of(way, 'far')[1][-1]:.0%}; {course_of(way, 'far')[0]}; {course_of(way, 'near')[0]}." for way in ways)))

# %% [markdown]
# A residual whose AUROC falls below 50 % fits the data but ranks OOD images below ID images. It has learned the
# log-ratio of section 2.3 between features of photographs and samples of a Gaussian. Features of OOD images are
# features of photographs too, and the ratio may give them an even lower energy than ID images. A chain moves the
# negatives towards the data, which leaves less to separate. A wide mixture draws its samples around the data, where OOD
# images lie as well. So a growing gap does not mean a better detector: train briefly, and choose with a validation set.
#
# **Does the chain help, and how strong should the penalty be?** The next figure varies both on the networks trained
# here, for style and logits.

# %% tags=["hide-input"]
style, logits = 1, 2
swept = {
    ("steps", "GMM style"): sweep("steps", [0, 3, 10], style),
    ("steps", "logits"): sweep("steps", [0, 3, 10], logits),
    ("lam", "GMM style"): sweep("lam", [0.05, 0.25, 1.0, 4.0], style),
    ("lam", "logits"): sweep("lam", [0.05, 0.25, 1.0, 4.0], logits),
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Hybrids on style and on logits while the chain grows (left) and the penalty grows (right). The thin lines are the priors alone, which a large λ must approach. Mean and range over networks; the scales differ.", "name": "fig-heat-knobs"}, "image": {"alt": "Four panels of AUROC with near-OOD and far-OOD curves and bands: the style hybrid and the logit hybrid over the number of steps 0 to 10, and over lambda 0.05 to 4. Horizontal lines mark the priors. The style curves lie on theirs; the logit curves move with both knobs."}}
alone = {
    name: pd.DataFrame([ood.group_auroc(priors(heads[n])[k].fit(features[n].train), features[n]) for n in nets]).mean()
    for k, name in enumerate(names)
}  # fmt: skip
figure, axes = plt.subplots(1, 4, figsize=(plots.FULL, 2.7))
for ax, ((knob, name), part) in zip(axes, swept.items()):
    for role in ("near", "far"):
        plots.band(part.pivot(index="value", columns="seed", values=role), role, ax, ticks=True)
        ax.axhline(alone[name][role], color=plots.COLORS[role], lw=1)
    ax.set_title(name, fontsize=10)
    ax.set_xlabel({"steps": "steps K", "lam": "λ"}[knob])
    ax.tick_params(labelsize=8)
axes[0].set_ylabel("AUROC")
axes[0].legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
lines = []
for (knob, name), part in swept.items():
    t = 100 * part.groupby("value")[["near", "far"]].mean()
    course = "; ".join(f"{g} " + ", ".join("diverged" if math.isnan(x) else f"{x:.1f}" for x in t[g]) + f" (prior {100 * alone[name][g]:.1f})" for g in t)
    lines.append(f"* `{knob}` = {', '.join(f'{v:g}' for v in t.index)}, {name}: {course}.")
display(Markdown("\n".join(lines)))

# %% [markdown]
# Where a curve stays on its thin line, the residual does not change the ranking with this training, whatever the value
# of the parameter. Such a curve is no evidence for or against a chain, $K=0$ included. Check the gap first (section 3).
#
# On logits the prior cannot be sampled, and noise is easy to distinguish from features. Compare the far-OOD curve with
# its line: with no chain or a short one, the hybrid can be *worse* than its own prior. λ is a trade-off: a small λ lets
# the residual overrule the prior, for better or worse, and a large λ returns to the prior. The bands are wide and the
# networks few, so trust only the direction of an effect, not its size.
#
# ### 6.2 Where do the chains start?

# %% tags=["hide-input"]
starts = ["prior", "noise", "data", "persistent"]
by_start = {
    s: 100 * pd.DataFrame([hybrid_auroc(style, n, **({} if s == "prior" else {"start": s})) for n in nets]).mean()
    for s in starts
}
caption = f"Hybrid on style: AUROC, gap in % of 1/λ, mean over networks ({len(nets)})"
pd.DataFrame(by_start).T.style.format("{:.2f}").set_caption(caption)

# %% tags=["hide-input"]
near_by_start = [v["near"] for v in by_start.values()]
display(Markdown(
    f"On near-OOD the four starts lie within {max(near_by_start) - min(near_by_start):.2f} points of each other, and the prior alone has "
    f"{100 * alone['GMM style']['near']:.2f} %. Where the hybrids hardly differ from their prior, they do not show which start is best; a small gap then means that they were hardly trained."
))

# %% [markdown]
# ### 6.3 How few images are enough?
#
# The paper's second argument for a hybrid is that it needs little data. Keep a few images per class and fit every
# detector on them.

# %% tags=["hide-input"]
def subset(x, per_class, draw):
    order = torch.randperm(len(x.train), generator=draw)
    labels = x.train.labels[order]
    rows = [order[labels == c][:per_class] for c in labels.unique()]
    return ood.BenchmarkFeatures(x.train[torch.cat(rows)], x.val, x.test, x.near, x.far)


# %% tags=["hide-input"]
sizes, low_data = [5, 10, 20, 50], []
without_chain = {"steps": 0, "updates": sweep_updates}
for size in sizes:
    for n in nets:
        few = subset(features[n], size, torch.Generator().manual_seed(n))
        for name, detector in {
            "prior GMM": ood.GMMPrior(),
            "prior, ridge 0.1": ood.GMMPrior(ridge=0.1),
            "hybrid GMM": ood.ResidualEBM(ood.GMMPrior(), **options(0, **without_chain)),
            "KNN": ood.KNN(k=min(5, size)),
        }.items():
            found = ood.group_auroc(detector.fit(few.train), few)
            low_data.append({"size": size, "seed": n, "detector": name, **found})
low_data = pd.DataFrame(low_data)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "AUROC against the number of training images per class, mean over networks. On digits the mixture is worst at 10 images per class, which leave just one direction without variance.", "name": "fig-heat-data"}, "image": {"alt": "Two panels, near-OOD and far-OOD. Each has AUROC over 5, 10, 20 and 50 images per class for the mixture prior, the prior with a larger ridge, its hybrid and KNN. Prior and hybrid lie on one another and fall deeply at 10; the larger ridge does not."}}
figure, axes = plt.subplots(1, 2, figsize=(plots.FULL, 2.6))
for ax, group in zip(axes, ("near", "far")):
    for name, series in zip(("prior GMM", "prior, ridge 0.1", "hybrid GMM", "KNN"), plots.SERIES):
        means = low_data[low_data["detector"] == name].groupby("size")[group].mean()
        ax.plot(range(len(sizes)), means, label=name, **series)
    ax.set(xticks=range(len(sizes)), xticklabels=sizes, xlabel="images per class", title=f"{group}-OOD")
axes[0].set_ylabel("AUROC")
axes[0].legend(fontsize=9)
plt.show()

# %% tags=["hide-input"]
t = 100 * low_data.groupby(["detector", "size"])["near"].mean().unstack("detector")
worst = t["prior GMM"].idxmin()
display(Markdown(
    f"The mixture is worst at {worst} images per class: near {t.loc[worst, 'prior GMM']:.1f} %, with the ridge 0.1 {t.loc[worst, 'prior, ridge 0.1']:.1f} %. "
    f"At no size does the hybrid differ from its prior by more than {(t['hybrid GMM'] - t['prior GMM']).abs().max():.2f} points. "
    f"{worst} images in each of {head.out_features} classes are {worst * head.out_features}. After subtracting one mean per class, they have variance in at most "
    f"{(worst - 1) * head.out_features} directions. The features have {head.in_features} dimensions."
))  # fmt: skip

# %% [markdown]
# $N$ images of $C$ classes have variance in at most $N-C$ directions. In all other directions the estimated variance is
# zero, and the ridge, a millionth of the mean variance, replaces it: a deviation in such a direction counts a thousand
# times. If there are many such directions, their noise averages out. If there is only *one*, it decides alone. With
# more images, all variances can be estimated. So the AUROC should be worst where $N-C$ is just below $D$, if one of the
# sizes comes close to it (on `digits`, 10 images per class). A larger ridge is the remedy. A residual does not help: it
# moves a point by a few standard deviations of the prior energy over the training images, and held-out images lie
# farther out than that.
#
# ### 6.4 Which β?

# %% tags=["hide-input"]
betas = [-math.inf, -10, -3, -1, 0, 1, 3, 10, math.inf]
by_beta = []
for value in betas:
    for n, (fitted, x) in enumerate(zip(heats, features)):
        fitted.beta = value
        by_beta.append({"beta": value, "seed": n, **ood.group_auroc(fitted, x)})
        fitted.beta = beta
by_beta = pd.DataFrame(by_beta)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "HEAT for different β: the smallest energy of the hybrids decides on the left, their mean in the middle, the largest on the right. Mean and range over all networks.", "name": "fig-heat-beta"}, "image": {"alt": "AUROC of HEAT for near-OOD and far-OOD over beta from minus infinity to infinity, with bands over networks. Far-OOD is low with a wide band for negative beta, and both curves are flat from zero on."}}
figure, ax = plt.subplots(figsize=(plots.FULL * 0.75, 2.7))
for role in ("near", "far"):
    plots.band(by_beta.pivot(index="beta", columns="seed", values=role), role, ax, ticks=True)
ax.set_xticks(range(len(betas)), ["min", *(f"{b:g}" for b in betas[1:-1]), "max"])
ax.set(xlabel="β", ylabel="AUROC")
ax.legend()
plt.show()

# %% tags=["hide-input"]
t = 100 * by_beta.groupby("beta")[["near", "far"]].mean()
display(Markdown("Mean AUROC, near / far: " + "; ".join(
    f"β = {name} {t.loc[b, 'near']:.1f} / {t.loc[b, 'far']:.1f}" for name, b in (("min", -math.inf), ("0", 0), ("max", math.inf))
) + ". With β below zero an OOD image is accepted as soon as *one* hybrid finds it typical, so the weakest hybrid counts most."))

# %% [markdown]
# ### 6.5 What the released code does differently
#
# The code released with the paper departs from the method as it is derived above. Each
# departure is an option here. **How much does each matter?** You can measure it, as far as the benchmark leaves room
# for improvement:
#
# * *one matrix*: the inner layers are one layer applied several times (a list multiplied, not copied);
# * *raw inputs*: the network is not shown standardised features;
# * *plain steps*, not scaled by the covariance, with *free noise*: $s=10^{-4}$, $e=5\cdot10^{-3}$, both decreasing to a
#   tenth. By section 2.6 the temperature is then $e^2/(2s)=0.125$ at first and $0.0125$ at the end;
# * *starts kept*: half of the negatives are unmoved samples of the prior;
# * *hot target*: the chain runs at temperature 1 on an energy whose prior is divided by $T_p$;
# * *last weights*, no average.

# %% tags=["hide-input"]
plain = {"precondition": False, "step_size": 1e-4, "noise": 5e-3, "decay": 0.1}
changes = {
    "this page": {},
    "one matrix": {"shared": True},
    "raw inputs": {"standardize": False},
    "plain steps, free noise": plain,
    "starts kept": {"keep_starts": True},
    "hot target": {"temperature": 1.0},
    "last weights": {"average": 0.0},
    "all but the hot target": {
        "shared": True, "standardize": False, "keep_starts": True, "average": 0.0, **plain
    },
}  # fmt: skip

# %% tags=["hide-input"]
rows = {}
for name, change in changes.items():
    rows[name] = 100 * pd.DataFrame([hybrid_auroc(style, n, **change) for n in nets]).mean()
rows["prior alone"] = 100 * alone["GMM style"]
caption = f"Hybrid on style: AUROC, gap in % of 1/λ, mean over networks ({len(nets)})"
pd.DataFrame(rows).T.style.format("{:.2f}", na_rep="").set_caption(caption)

# %% tags=["hide-input"]
t = pd.DataFrame(rows).T
shift_near = (t["near"] - t.loc["this page", "near"]).drop(["this page", "prior alone"])
display(Markdown(
    f"The largest effect on near is *{shift_near.abs().idxmax()}* ({shift_near[shift_near.abs().idxmax()]:+z.2f} points). Together they give {t.loc['all but the hot target', 'near']:.2f} % on near-OOD. (Free noise sets the temperature, so the hot target has no effect then.) "
    f"The hybrid of this page has {t.loc['this page', 'near']:.2f} %, and the prior alone {t.loc['prior alone', 'near']:.2f} %. Where these numbers agree "
    "to a tenth and the gap is small, the residuals are hardly trained, and the table does not say which choice is better."
))  # fmt: skip

# %% [markdown]
# There is one more departure: the released code standardises the hybrids on *one random batch of 256 training images*
# before it composes them. How much does the result depend on that batch? Draw it many times, on the first network. (At
# $\beta=0$ the batch only changes the weights of the hybrids.)

# %% tags=["hide-input"]
u_of = {g: [heat.standardized(x) for x in sets] for g, sets in everything.items()}
train_u = heat.standardized(f.train)
drawn = {"near": [], "far": []}
for _ in range(50):
    batch = train_u[:, torch.randperm(train_u.shape[1], generator=draw)[:256]]
    mean, std = batch.mean(1, keepdim=True), batch.std(1, keepdim=True)
    again = {
        g: [soft_extreme((u - mean) / std, beta) for u in us] for g, us in u_of.items()
    }
    for g in drawn:
        drawn[g].append(np.mean([auroc(again["id"][0], x)[0] for x in again[g]]))
spread = {g: f"{100 * min(v):.2f} to {100 * max(v):.2f}" for g, v in drawn.items()}
print("AUROC in % over 50 batches:", spread)

# %% [markdown]
# ## 7. When it fails
#
# **The improper prior.** $E_{\text{logits}}$ decreases without bound along every row of the head, so $\int e^{-E}$ is
# infinite. Then step 3 of section 2.2 is not allowed, and a long chain diverges. Only short chains, the projection and
# the penalty keep the training stable. Here is a chain without a residual:

# %% tags=["hide-input"]
wild = ood.ResidualEBM(ood.LogitPrior(head), updates=0).fit(f.train)
lengths = {}
ood.sgld(
    lambda z: -wild.prior.log_prob(z), f.train.penultimate[:200], 1600, 0.02,
    project=torch.relu, generator=torch.Generator().manual_seed(seed),
    callback=lambda t, z: lengths.update({t: z.norm(dim=1).median().item()}),
)  # fmt: skip
print({t: round(lengths[t], 1) for t in (0, 100, 200, 400, 800, 1600)})

# %% [markdown]
# The printed numbers are the median length of the features after so many steps. An improper prior lets it grow without
# limit. The energy of a Gaussian mixture is bounded below, so its chains stay near the data.
#
# **Too little to correct.** Where the prior is right, the residual can at best do no harm. Compare the rows of section
# 5.1.
#
# **Too much freedom.** A small $\lambda$ lets the residual overrule the prior by many standard deviations. The law
# determines the residual only as a *share* of its bound $1/(2\lambda)$. With a smaller $\lambda$ the same share,
# including errors and memorised images, has a larger effect. Compare training with held-out images, and the hybrid with
# its prior:

# %% tags=["hide-input"]
rows = {}
for lam_ in (0.02, 0.1, 0.25, 1.0):
    chosen = options(style, lam=lam_, steps=0, updates=longer_updates[-1])
    h = ood.ResidualEBM(ood.GMMPrior("style"), **chosen).fit(f.train)
    with torch.no_grad():
        own, held = (2 * lam_ * h.residual(h.points(x)).mean() for x in (f.train, f.test))
    near = 100 * ood.group_auroc(h, f)["near"]
    rows[lam_] = [own.item(), held.item(), near]
frame = pd.DataFrame(rows, ["training", "held out", "near AUROC"]).T.rename_axis("λ")
caption = f"Mean residual as a share of its bound, after {longer_updates[-1]} updates"
frame.style.format("{:.2f}").format_index("{:g}").set_caption(caption)

# %% tags=["hide-input"]
off = (frame["training"] - frame["held out"]).abs()
prior_near = 100 * ood.group_auroc(style_hybrid.prior, f)["near"]
display(Markdown(
    f"Training and held-out images differ by at most {off.max():.2f} of the bound. The prior alone has a near AUROC of {prior_near:.2f} on this network; "
    f"the hybrid has {frame.iloc[0]['near AUROC']:.2f} at λ = {frame.index[0]:g} and {frame.iloc[-1]['near AUROC']:.2f} at λ = {frame.index[-1]:g}."
))  # fmt: skip

# %% [markdown]
# **Divergence.** The library detects it. Here is a learning rate that is far too large:

# %% tags=["hide-input"]
try:
    ood.ResidualEBM(ood.GMMPrior(), **options(0, learning_rate=100.0)).fit(f.train)
except ood.DivergedError as error:
    print(textwrap.fill(str(error), 80))

# %% [markdown]
# **Information that the features have lost.** If two images have the same feature, no energy can distinguish them. And
# the mixtures use only the *direction* of a feature: an OOD image with the direction of a class and an unusual length
# looks normal to two of the three priors. Test this on constructed features, the test features made shorter or longer:

# %% tags=["hide-input"]
forged, judges = {}, dict(zip(names, heat.hybrids))
judges |= {"HEAT": heat, "KNN": ood.KNN(k=10).fit(f.train)}
for factor in (0.25, 0.5, 2.0, 4.0):
    z = factor * f.test.penultimate
    x = ood.Features(penultimate=z, style=factor * f.test.style, logits=head(z).detach())
    forged[f"× {factor:g}"] = {
        n: 100 * auroc(d.score(f.test), d.score(x))[0] for n, d in judges.items()
    }
caption = "AUROC in %, test features of another length against the originals"
pd.DataFrame(forged).style.format("{:.1f}").set_caption(caption)

# %% [markdown]
# An AUROC of 50 % means that the length makes no difference. This is so by construction for the mixtures and for KNN,
# which normalises too. Only the hybrid on logits reacts to the length, and its prior gives long features a *lower*
# energy than the originals. Where its AUROC is below 50 %, it lowers the AUROC of the composition as well. This is
# again a consequence of the improper prior.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. Training pushes the energy of the data down and that of the model's own samples up. Why is the second force
# needed?**
#
# <details><summary>A. It is a regulariser that may be left out when there are enough data.</summary>
#
# **No.** It is the gradient of $\log Z_\theta$. Without it, the energy falls everywhere and training never ends.
#
# </details>
#
# <details><summary>B. It is the gradient of the normalising constant, which cannot be computed.</summary>
#
# **Right.** Differentiating $\log Z_\theta$ gives minus the mean of $\nabla_\theta E_\theta$ under the model.
# Samples of the model replace the integral.
#
# </details>
#
# <details><summary>C. It shows the network OOD images, so that it learns what OOD images look like.</summary>
#
# **No.** The samples come from the model, not from any OOD set. They lie where the *model* puts mass, which need not be
# where OOD images lie.
#
# </details>
#
# **2. A residual with unlimited freedom fits perfectly. What has it learned?**
#
# <details><summary>A. The energy of the data, so that the prior is no longer needed.</summary>
#
# **No.** The hybrid fits the data, not the residual. Without the prior the residual says nothing about how the
# density falls off.
#
# </details>
#
# <details><summary>B. Zero, because a perfect fit leaves nothing to correct.</summary>
#
# **No.** It is constant only where the prior was right already. Elsewhere it has to make up for the prior's error.
#
# </details>
#
# <details><summary>C. The log-ratio between the density of the prior and that of the data.</summary>
#
# **Right.** Set $p_\theta=p_{\text{data}}$ and take logarithms. The residual is negative where the data are denser than
# the prior says, and positive where the prior is denser than the data.
#
# </details>
#
# **3. The penalty λ on the squared residual is made larger. What happens where the law of the hyperbolic tangent
# holds?**
#
# <details><summary>A. The bound of the residual shrinks, and it ranks the points as before.</summary>
#
# **Right.** $|e^*|\le1/(2\lambda)$, and $e^*$ remains an increasing function of $\log\frac qp$. What changes is its
# weight against the prior.
#
# </details>
#
# <details><summary>B. Only training becomes slower; the optimum stays.</summary>
#
# **No.** The optimum itself is $-\frac1{2\lambda}\tanh(\cdot)$, so it depends on λ.
#
# </details>
#
# <details><summary>C. The network can no longer diverge anywhere in the space.</summary>
#
# **No.** The law holds where data or negatives are. Far from both, nothing limits the network, whatever λ is.
#
# </details>
#
# <details><summary>D. The residual comes to rank the points in the opposite order.</summary>
#
# **No.** The residual is divided by λ, and a positive factor does not change a ranking. The ranking of the *hybrid*
# moves towards that of its prior.
#
# </details>
#
# **4. The loss of a run hovers around zero and does not fall. What do you conclude?**
#
# <details><summary>A. The network has not learned; raise the learning rate.</summary>
#
# **No.** As a loss the expression has the right gradient, but its value means nothing: the negatives move along
# with the model. A learning rate that is too large makes it diverge.
#
# </details>
#
# <details><summary>B. The likelihood has reached its maximum.</summary>
#
# **No.** The two forces also cancel when short chains stay where they began. An equilibrium under $p_K$ is not one
# under $p_\theta$.
#
# </details>
#
# <details><summary>C. The data carry no structure beyond the prior.</summary>
#
# **No.** That would be a statement about densities, and the value of the loss contains no information about them.
# Compare the hybrid with its prior on held-out images.
#
# </details>
#
# <details><summary>D. Nothing: other numbers show the progress.</summary>
#
# **Right.** The loss is constructed so that its gradient is right while the negatives are held fixed. Watch the gap,
# the energies of held-out images and where the chains go.
#
# </details>
#
# **5. Features of the right direction are made longer. The mixtures on normalised features do not notice. What does
# the hybrid on logits say?**
#
# <details><summary>A. It notices and gives them a higher energy, so the composition is rescued.</summary>
#
# **No.** It notices, but with the wrong sign: the energy of its prior decreases without bound along the rows of the
# head.
#
# </details>
#
# <details><summary>B. Nothing either, since all three read the same feature.</summary>
#
# **No.** The logits grow with the feature, so this prior does react to the length. The mixtures divide it out.
#
# </details>
#
# <details><summary>C. It rates them as more typical than the originals, and makes the composition worse.</summary>
#
# **Right.** The prior is improper: $E_{\text{logits}}$ falls with the length without a lower bound. Longer features
# count as more ID.
#
# </details>

# %% [markdown]
# ## 8. Exercises
#
# Each exercise has a hint and a check. The check says whether your answer is right and, if not, what is wrong.

# %% [markdown]
# ```{exercise-start} Predict: the reach of the residual
# :label: ex-heat-nats
# ```
# A recipe says $\lambda=5$ and $T_p=200$. By how many nats of the prior's log-density can the residual move a point?
# *Hint: section 2.5.*

# %% tags=["exercise"]
nats = ...

# %% tags=["check", "hide-input"]
check_nats = ood.Check(
    (lambda a: a > 0.2, "that is in units of E/T_p; multiply T_p back"),
    (lambda a: ood.seal(a, "nats") == "cdb7102b", "1/(2λ) in units of E/T_p, times T_p"),
)
check_nats(nats)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-heat-nats
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the bound as section 2.5 writes it, without the temperature.
nats = 1 / (2 * 5)
check_nats(nats)

# %% tags=["solution"]
nats = 200 / (2 * 5)
check_nats(nats)

# %% [markdown]
# The bound is $1/(2\lambda)=0.1$ in units of $E/T_p$, and $0.1\cdot200=20$ nats.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: the temperature of a recipe
# :label: ex-heat-temperature
# ```
# The released recipe for the logits on ImageNet starts with the step $s=10^3$ and the noise $e=10^{-3}$. Which
# temperature is that, and what do its chains do in effect? Store the temperature. *Hint: section 2.6.*

# %% tags=["exercise"]
temperature = ...

# %% tags=["check", "hide-input"]
check_temperature = ood.Check(
    (lambda a: a > 0, "a temperature is positive"),
    (lambda a: a < 1e-7, "square the noise: e² = 2 s T"),
    (lambda a: ood.seal(a, "temperature") == "55b61115", "T = e² / (2 s)"),
)
check_temperature(temperature)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-heat-temperature
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: e = 2 s T, without the square.
temperature = 1e-3 / (2 * 1e3)
check_temperature(temperature)

# %% tags=["solution"]
temperature = (1e-3) ** 2 / (2 * 1e3)
check_temperature(temperature)

# %% [markdown]
# The temperature is $5\cdot10^{-10}$, so the chains do gradient descent. The negatives are local minima near the
# starts, not samples.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Change one parameter: standardised inputs
# :label: ex-heat-standardize
# ```
# Train the toy hybrid of section 1 again, but leave out `standardize=False`, and store it. Is its *residual alone*
# better on the far points? Plot its landscape with `landscape(plt.gca(), again.residual, "")`. *Hint:
# `toy_scores(again.residual)` gives blind and far.*

# %% tags=["exercise"]
again = ...

# %% tags=["check", "hide-input"]
def far_of(h):
    """AUROC of its residual alone on the far points."""
    return toy_scores(h.residual)[1]


check_again = ood.Check(
    (lambda h: len(toy_scores(h.residual)) == 2, "the hybrid itself, fitted on toy"),
    (lambda h: far_of(h) > far_of(hybrid), "not above the raw one: leave out standardize=False"),
    (lambda h: h.standardize, "above the raw one for another reason: leave out standardize=False, and change nothing else"),
)
check_again(again)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-heat-standardize
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the one of section 1, which was trained without.
again = hybrid
check_again(again)

# %% tags=["solution"]
again = ood.ResidualEBM(
    ood.GMM(), lam=0.1, steps=0, updates=toy_updates, hidden=(64, 64), seed=seed
).fit(toy)
print(f"standardised {far_of(again):.3f}, raw {far_of(hybrid):.3f}")
check_again(again)

# %% [markdown]
# The data now have the scale of the first weights, so the kinks of the network's activation functions lie among them.
# Outside, the network continues linearly in each direction. That is somewhat better here, but not right everywhere.
# Training has no influence on these values, so a detector should not rely on them.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Read the law backwards
# :label: ex-heat-ratio
# ```
# By section 2.4 the density ratio can be computed from a trained residual: solve the law for $\log\frac pq$. Apply it
# to the network `learned[0.25]` at $z=1$ and store the log-ratio. *Hint: `torch.atanh`, and the sign.*

# %% tags=["exercise"]
ratio = ...

# %% tags=["check", "hide-input"]
def broken_by(a):
    """How far the law of section 2.4 is from holding, where a is the log-ratio."""
    return 2 * 0.25 * learned[0.25](torch.ones(1, 1)).item() + math.tanh(a / 2)


check_ratio = ood.Check(
    (lambda a: a > 0, "the sign: e is negative where data are denser than the prior"),
    (lambda a: abs(broken_by(a)) < 5e-4, "log p/q = −2 atanh(2 λ e)"),
)
check_ratio(ratio)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-heat-ratio
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the law without its sign.
e = learned[0.25](torch.ones(1, 1)).detach()
ratio = (2 * torch.atanh(2 * 0.25 * e)).item()
check_ratio(ratio)

# %% tags=["solution"]
e = learned[0.25](torch.ones(1, 1)).detach()
ratio = (-2 * torch.atanh(2 * 0.25 * e)).item()

by_hand = math.log(2) - 3 / 8  # by the two densities
print(f"from the network {ratio:.2f}, exact {by_hand:.2f}")
check_ratio(ratio)

# %% [markdown]
# From $e=-\frac1{2\lambda}\tanh(\frac12\log\frac pq)$ follows $\log\frac pq=-2\,\mathrm{artanh}(2\lambda e)$.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Derive: negatives that keep their starts
# :label: ex-heat-kept
# ```
# The released code keeps the starts: half of the negatives come from the prior $q$, half from the chain ends $r$. Let
# the chain be perfect, $r=p$. What does the law of
# section 2.4 become? Store $2\lambda e^*$ at a point where $p=3q$. *Hint: the density of the negatives is
# $\frac12(p+q)$.*

# %% tags=["exercise"]
kept = ...

# %% tags=["check", "hide-input"]
check_kept = ood.Check(
    (lambda a: a < 0, "the residual lowers the energy where data are denser"),
    (lambda a: abs(a + 0.5) > 1e-6, "that is the law without the kept starts"),
    (lambda a: ood.seal(a, "kept") == "4047598c", "put (p+q)/2 in the place of q in −(p−q)/(p+q)"),
)
check_kept(kept)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-heat-kept
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the law of section 2.4 as it stands, with p = 3 q.
kept = -(3 - 1) / (3 + 1)
check_kept(kept)

# %% tags=["solution"]
p_, q_ = 3.0, 1.0
negatives_ = (p_ + q_) / 2
kept = -(p_ - negatives_) / (p_ + negatives_)
check_kept(kept)

# %% [markdown]
# $2\lambda e^*=-\frac{p-\frac12(p+q)}{p+\frac12(p+q)}=-\frac{p-q}{3p+q}$. With chain ends only and a perfect chain,
# $r=p$, the residual would be zero: the textbook loss reaches equilibrium when the hybrid is right. With the starts
# kept, the residual is again a density ratio against the prior, only damped.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Open: better negatives
# :label: ex-heat-open
# ```
# The hybrid on logits of section 3 learned to distinguish features from noise. Give its chains better starts, drawn
# from a Gaussian mixture of the same features. Store that hybrid, fitted on the first network. Is it better than the
# one of section 3 on near-OOD? *Hint: the option `start` of `ood.ResidualEBM` takes a detector that can be sampled;
# `options(logits)` has the other options.*

# %% tags=["exercise"]
better = ...

# %% tags=["check", "hide-input"]
def near_of(d):
    return ood.group_auroc(d, f)["near"]


check_better = ood.Check(
    (lambda d: len(d(f.val)) == len(f.val), "a detector, fitted on f.train"),
    (lambda d: isinstance(d.prior, ood.LogitPrior), "a hybrid whose prior is a LogitPrior, as asked"),
    (lambda d: near_of(d) > near_of(logit_hybrid), "not above: start at samples of ood.GMM()"),
    (lambda d: isinstance(d.start, ood.Detector), "above for another reason: give a detector that can be sampled as start"),
)
check_better(better)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-heat-open
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the hybrid of section 3 once more; its chains start from noise.
better = logit_hybrid
check_better(better)

# %% tags=["solution"]
better = ood.ResidualEBM(ood.LogitPrior(head), start=ood.GMM(), **options(logits))
better.fit(f.train)
print(f"from noise {near_of(logit_hybrid):.3f}, from the mixture {near_of(better):.3f}")
check_better(better)

# %% [markdown]
# Negatives near the data teach the residual about the region near the data. The energy of the logits remains the prior;
# the mixture only supplies the starts. This is one network. In section 5.1 the validation set chooses the start on each
# real network, and the choice need not be the same everywhere.
# ```{solution-end}
# ```

# %% [markdown]
# ## 9. Take away
#
# * The gradient of a log-likelihood needs samples, not the constant: it lowers the energy of the data and raises that
#   of the model's own samples.
# * A residual learns a log density ratio, squashed to $\pm1/(2\lambda)$. $\lambda$ and $T_p$ together say how far it
#   may overrule the prior.
# * On the toy, prior and residual fail in different places: the prior in holes of the data, the residual far outside.
#   Their sum is right in both.
# * Short chains are biased; where they start decides which region the network learns about. Noise and step size
#   together imply a temperature.
# * A residual can separate data from negatives better and better without detecting OOD images any better: a growing gap
#   is no measure of success.
# * Compare HEAT with the untrained composition of its priors, and give the prior of a hybrid a reasonable ridge.
#   Section 5.1 shows how much each step gains.
# * Does the {term}`representation` fail, or the energy on it? For the logits of `digits` it is mostly the energy: in [the
#   classical detectors](07_classical), section 6, a Mahalanobis distance on the same logits detects most far images. Section 5.2 shows how far the residual
#   closes the gap to the mixture.
# * If a prior is no density, its hybrid is none either: the hybrid on logits rates a stretched feature as more typical.
#
# **In the library:** {py:class}`~ood_lib.detectors.heat.heat.HEAT` and
# {py:class}`~ood_lib.detectors.heat.hybrid.ResidualEBM`, the priors of {py:mod}`ood_lib.detectors.heat.priors`,
# {py:func}`~ood_lib.detectors.heat.langevin.sgld`, and {py:func}`~ood_lib.detectors.compose.compose` for any detectors.
#
# **Read on:** the paper {cite:p}`lafon2023heat`; how to train energies {cite:p}`song2021ebm`; what short chains learn
# instead of a density
# {cite:p}`nijkamp2019shortrun`; noise-contrastive estimation {cite:p}`gutmann2010nce`.

# %% tags=["hide-input"]
# What other pages show of this run: one small table, all numbers.
if results:
    table.to_csv(Path(results) / "benchmark.csv", index=False)
    kept = {duels[claim]: found for claim, found in judged.items() if found}
    ood.save_verdicts(Path(results) / "heat.json", kept, origin=ood.provenance())
    (Path(results) / "summary.md").write_text(plots.markdown_table(summary))

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Feature flows: bend the data into a Gaussian
#
# Train an invertible network that maps the features of ID images to a standard normal: minus the log-density that it assigns to an image
# is the OOD {term}`score`.

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
    explorables.flow_by_hand(),
    caption="A flow with two knobs, to be fitted by hand. At first its map is a straight line and its density one Gaussian, which "
    "ranks an OOD point between the bumps below the data. Lower the slope and raise the bend until the loss is least: does the score "
    "of the OOD point rise, and how much density is left between the bumps?",
    alt_text="Left, the map from features to latents, a line that sliders bend. Right, the density of data in two bumps and the "
    "density of the flow, with a vertical line at the OOD point. Below, the loss, the lowest possible loss, the scores of the OOD "
    "point and of a bump, and which is larger. Sliders set the map's slope and bend, and the place of the OOD point.",
)

# %% [markdown]
# ```{admonition} In one minute
# :class: tip
# **The claim** of {cite:t}`cook2024flow`: fit a normalizing flow to the normalised features of any
# pretrained network for one epoch, without labels and without OOD data. Minus its log-density then detects far-OOD images
# better than what came before.
#
# <!-- made by ood-book sync -->
# **What we found.** AUROC of *the paper's way* minus that of *the energy of the logits*, in points, with its interval:
#
# | network | near-OOD | far-OOD |
# |---|---|---|
# | our ResNet-9 on CIFAR-10 | **worse** −3.4 [−4.3, −2.5] | **better** +1.2 [+0.5, +1.9] |
# | DenseNet on CIFAR-10 | **worse** −10.2 [−11.7, −8.8] | **better** +3.3 [+2.5, +4.1] |
# | ResNet-56 on CIFAR-10 | **worse** −6.8 [−8.4, −5.3] | **better** +5.2 [+3.9, +6.5] |
# | DenseNet on CIFAR-100 | **worse** −20.5 [−22.8, −18.2] | **better** +12.1 [+10.5, +13.6] |
# | small networks on digits | **cannot tell** +1.1 [−1.5, +3.7] | **cannot tell** +14.3 [−11.4, +40.0] |
#
# - *the flow* against *a tied Gaussian on features of length one*. **Level near, better far** (our ResNet-9 on CIFAR-10). **Worse near and far** (DenseNet on CIFAR-10, DenseNet on CIFAR-100). **Better near, cannot tell far** (ResNet-56 on CIFAR-10). **Level near and far** (small networks on digits).
# - *the flow* against *KNN*. **Worse near, better far** (our ResNet-9 on CIFAR-10, ResNet-56 on CIFAR-10). **Worse near, level far** (DenseNet on CIFAR-10). **Worse near and far** (DenseNet on CIFAR-100). **Better near, cannot tell far** (small networks on digits).
#
# Intervals are of 95 %, and [wider over several networks](../book/notation.md). *Better* and *worse*: the interval leaves out zero. *Level*: it holds zero and lies within a point of it. *Cannot tell*: it is wider. The numbers are those of `ood-book run 30_flow` on 2026-11-29. They stay when you run this page with other values.
#
# **It takes** 29 minutes to read, without exercises and what is folded, and 10 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use it** when you need a density of features that you can evaluate exactly, and have no labels.
#
# **Do not** take a higher likelihood for a better detector, and compare with a tied Gaussian on features of length one, which needs no training.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** to build a density that you can evaluate exactly, from layers that you can invert. You will see why
# such a density can fail on pixels and work on features, and what it does when the data lie on a sphere. You will measure
# what training adds to the Gaussian from which the flow starts.
#
# **You need** the normal distribution, the determinant of a matrix, and enough PyTorch to read a small network.
# ```
#
# These are the parameters of the page. Change a value and run the notebook again, or pass it on the command line:
# `ood-book run flow -p noise 0.2 -p seeds 3`.

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
epochs: int = 30  # of training the classifiers
learning_rate: float = 0.05  # peak of the classifiers' learning-rate cycle
widths: list = [32, 64]  # feature maps per stage; the last is the feature width K
updates: int = 300  # of each flow on features, in batches of 250
noise: float = 0.3  # in training, as a share of the root mean variance of the features
noises: list = [0.1, 0.3, 1.0]  # that section 3.1 compares on a validation OOD set
looks_at: int = 6  # how often a training on a bank is looked at
paper_rate: float = 1e-4  # learning rate of the paper's architecture; theirs is 1e-5
toy_updates: int = 600  # of each flow in the plane
curves: int = 3  # networks of section 6.1
grid_side: int = 401  # points per side of the grid that sums the toy densities
umap_points: int = 1500  # images and samples in the UMAP picture
results: str = ""  # folder for what other pages show; empty: do not write

# %% tags=["hide-input"]
import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from torch.distributions import Normal
from torch.nn import functional as F

import ood_lib as ood
from ood_lib.data.toys import ring_and_arcs
from ood_lib.detectors.classical.recipes import neighbours
from ood_lib.detectors.flow.bijections import Coupling
from ood_lib.detectors.flow.flow import coupling_flow, glow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.detectors.moments import class_moments
from ood_lib.evaluation import metrics, plots
from ood_lib.features.geometry import tolerance, uniformity

plots.theme()
warnings.filterwarnings("ignore", message=".* never vary")  # dead units, blank pixels: we know
torch.manual_seed(seed)
generator = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## 1. The idea on a toy
#
# ### 1.1 One dimension
#
# You know the density of the standard normal, $p_0$. Take an increasing map $f$, and define $x$ by $f(x)=u$, where $u$
# is standard normal. **What is the density of $x$?** The obvious guess is $p_0(f(x))$. Test it: a density has mass one.

# %%
def f(x):
    return 0.3 * x + 0.3 * x**3


def stretch(x):
    return 0.3 + 0.9 * x**2  # f'(x), always positive: f can be inverted


x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
guess = Normal(0, 1).log_prob(f(x)).exp()
density = guess * stretch(x)
masses = [torch.trapezoid(p, x).item() for p in (guess, density)]
assert abs(masses[1] - 1) < 1e-6
print("mass of the guess {:.3f}, with the stretch {:.3f}".format(*masses))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: the map f carries intervals of x to intervals of u. The bands have equal mass. Where f is flat, a wide interval of x has the mass of a narrow interval of u; where f is steep, the mass is concentrated. Right: the guess ignores this, the factor f' accounts for it; the bars are samples.", "name": "fig-flow-one"}, "image": {"alt": "Left, an increasing cubic curve u = f(x) with horizontal bands of equal normal mass and their vertical counterparts on the x axis, wide in the middle and narrow on both sides. Right, a histogram of samples with two humps; the density with the stretch follows it, the guess without it is a single plateau."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(plots.FULL, 2.8))
levels = Normal(0.0, 1.0).icdf(torch.linspace(0.05, 0.95, 7)).double()
places = torch.stack([x[(f(x) - level).abs().argmin()] for level in levels])
for k in range(0, 6, 2):
    left.axhspan(levels[k], levels[k + 1], color=plots.SERIES[4]["color"], alpha=0.3, lw=0)
    left.axvspan(places[k], places[k + 1], color=plots.SERIES[1]["color"], alpha=0.3, lw=0)
left.plot(x, f(x), color="black")
left.set(xlabel="x", ylabel="u = f(x)", xlim=(-2.2, 2.2), ylim=(-2.6, 2.6))
u = torch.randn(20_000, generator=generator, dtype=torch.float64)
samples = x[torch.searchsorted(f(x), u).clamp(max=len(x) - 1)]  # invert f on a grid
right.hist(samples.numpy(), bins=80, density=True, histtype="stepfilled", color=plots.SERIES[4]["color"], alpha=0.5)
right.plot(x, density, color=plots.SERIES[0]["color"], label="$p_0(f(x))\\,f'(x)$")
right.plot(x, guess, "--", color=plots.COLORS["grey"], label="$p_0(f(x))$")
right.set(xlabel="x", ylabel="density", xlim=(-2.6, 2.6))
right.legend(loc="lower center", fontsize=8)
plt.show()

# %% [markdown]
# (Set both sliders of the chart at the top to 0.3 to see this map again.)
#
# A small interval of width $\mathrm dx$ is mapped to one of width $f'(x)\,\mathrm dx$ and keeps its mass, so
# $p(x)\,\mathrm dx = p_0(f(x))\,f'(x)\,\mathrm dx$. One fixed Gaussian and one monotone map give a density with two
# modes, and we can evaluate it exactly, without an unknown normalising constant. **A normalizing flow does the same in
# many dimensions, with a map that is learned.**
#
# ### 1.2 Two dimensions
#
# The toy data are a ring and two arcs: three classes that no Gaussian fits. A Gaussian mixture, one component per
# class, has *blind spots*: samples of its own that lie more than 0.5 from every training point. Which model does
# better? We compare three. *HEAT*, the hybrid of the previous chapter, adds a small network $E_\theta$ to the mixture's
# {term}`energy`. A *flow* transforms the plane by eight {term}`couplings <coupling>` (section 2.2 explains them). The
# third model is a flow with one Gaussian per class in its base.

# %%
toy = ring_and_arcs(seed=seed)
toy_features = ood.Features(toy.points, labels=toy.labels)


def toy_flow(labels=None):
    flow = coupling_flow(2, 8, [64, 64], rotate=False, classes=0 if labels is None else 3)
    training = FlowTraining(flow, toy.points, labels, learning_rate=3e-3, seed=seed)
    none = torch.zeros(len(toy.points), dtype=torch.long)
    moments = class_moments(toy.points, none if labels is None else labels)
    flow.initialize(training.batch(0)[0], moments)
    training.run(toy_updates)
    return flow.requires_grad_(False)


# %%
gmm = ood.GMM().fit(toy_features)
options = {"lam": 0.1, "hidden": (64, 64), "standardize": False, "steps": 0}
options |= {"prior_temperature": 1.0, "updates": 2 * toy_updates, "seed": seed}
options |= {"learning_rate": 3e-3}  # that of the flows
hybrid = ood.ResidualEBM(ood.GMM(), **options).fit(toy_features)
models = {"GMM": gmm, "HEAT": hybrid, "flow": toy_flow()}
models["flow, classes in its base"] = toy_flow(toy.labels)

# %% tags=["hide-input"]
from ood_book import explorables


def steps_of(points):
    """Points before the first layer of the flow, and after each one."""
    steps = [points]
    for layer in models["flow"].layers:
        steps.append(layer(steps[-1])[0])
    return [step.detach() for step in steps]


explorables.show(
    explorables.flow_layers(steps_of(toy.points[::7]), steps_of(toy.far[::8]), reach=7),
    caption="Where does the flow send the points? Drag the slider from layer to layer: the ring and the arcs end as one Gaussian "
    "cloud. Check which OOD points end outside the rings, where a Gaussian has little mass, and which do not.",
    alt_text="Points in the plane with rings at one, two and three standard deviations. A slider moves them through the layers of "
    "the trained flow: blue ID points go from a ring and two arcs to a round cloud, pink OOD points to places around and in it.",
)

# %% [markdown]
# Is the mass one in the plane too? Sum the density over a fine grid. And where do the samples of the models lie? You
# can sample from a mixture and from a flow directly. For HEAT you cannot, but here its density is
# $q(z)\,e^{-E_\theta(z)}/Z$ with the mixture $q$: draw from $q$, and resample the draws with weights $e^{-E_\theta}$.
# The constant $Z$ is the mass on the grid. This is feasible in the plane, but not in 64 dimensions.

# %% tags=["hide-input"]
def away(points):  # distance to the nearest training point
    return torch.cdist(points, toy.points).amin(1)


side = torch.linspace(-12, 12, grid_side)
grid, cell = torch.cartesian_prod(side, side), (side[1] - side[0]).item() ** 2
drawn = {name: model.sample(8000, generator).float() for name, model in models.items()}
blind = drawn["GMM"][away(drawn["GMM"]) > 0.5]
weights = (-hybrid.residual(drawn["HEAT"])).softmax(0).detach()
drawn["HEAT"] = drawn["HEAT"][weights.multinomial(8000, True, generator=generator)]
held = ring_and_arcs(seed=seed + 1).points  # fresh ID points

# %% tags=["hide-input"]
rows = {}
for name, model in models.items():
    with torch.no_grad():
        own, *other = (-model.log_prob(points) for points in (held, blind, toy.far))
        mass = model.log_prob(grid).exp().sum().item() * cell
    rows[name] = [mass, own.mean().item() + math.log(mass)]
    rows[name] += [100 * metrics.auroc(own, score)[0] for score in other]
    rows[name] += [100 * (away(drawn[name]) > 0.5).double().mean().item()]

# %% tags=["hide-input"]
columns = ["mass", "−log p (nats)", "AUROC blind spots", "AUROC far", "samples off the data (%)"]
toy_table = pd.DataFrame(rows, columns).T
assert toy_table["mass"].drop("HEAT").sub(1).abs().max() < 0.01
toy_table.style.format("{:.3f}", "mass").format("{:.2f}", columns[1]).format("{:.1f}", columns[2:])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Energy −log p of each model over the plane (dark = low = like the data), with training points. The mixture fills the ring and the arcs. HEAT raises the energy in the holes but remains broad. The flows follow the shapes. They assign little density to the opening of the arcs and somewhat more to the hole of the ring, and bridges of low energy remain between the shapes.", "name": "fig-flow-landscapes"}, "image": {"alt": "Four panels of the plane, coloured by energy. For the Gaussian mixture, three broad dark ellipses cover the ring and the arcs with their holes. For HEAT, the ring and the arcs are dark and their holes lighter, but low energy reaches beyond the data. For both flows, dark bands follow the ring and the arcs. The hole of the ring has a medium energy, the opening of the arcs is partly light, and dark bridges join the ring to the arcs."}}
zoom = torch.cartesian_prod(torch.linspace(-7, 6.5, 271), torch.linspace(-4.5, 4.5, 181))
figure, axes = plt.subplots(2, 2, figsize=(plots.FULL, 4.4), sharex=True, sharey=True)
for ax, (name, model) in zip(axes.flat, models.items()):
    energy = -model.log_prob(zoom).detach().reshape(271, 181).T + math.log(toy_table.loc[name, "mass"])
    shown = ax.contourf(zoom[::181, 0], zoom[:181, 1], energy.clamp(max=16), levels=np.linspace(0, 16, 17), cmap="viridis", extend="both")
    ax.plot(*toy.points[::6].T, ".", color="white", ms=1.2)
    ax.set(title=name, aspect="equal", xticks=[-5, 0, 5])
    ax.title.set_fontsize(10)
figure.supxlabel("$x_1$", fontsize=10)
figure.supylabel("$x_2$", fontsize=10)
figure.colorbar(shown, ax=axes, label="energy −log p (nats)", shrink=0.8, ticks=[0, 8, 16])
plt.show()

# %% tags=["hide-input"]
blind_of, off_of = (toy_table[name] for name in (columns[2], columns[4]))
display(Markdown(
    f"On its own blind spots the mixture has an AUROC of {blind_of['GMM']:.1f} % (chance: 50). HEAT has {blind_of['HEAT']:.1f} %, the flow "
    f"**{blind_of['flow']:.1f} %**. This compares *detectors*. Compared as *densities*, −log p of a fresh point is on average "
    f"{toy_table.loc['HEAT', columns[1]]:.2f} nats under HEAT and {toy_table.loc['flow', columns[1]]:.2f} under the flow, and {off_of['HEAT']:.0f} % of "
    f"HEAT's samples lie off the data ({off_of['GMM']:.0f} % of the mixture's). The learning rates are equal, but HEAT has another loss and "
    f"twice the updates, so the difference in nats has no single cause. {off_of['flow']:.1f} % of the flow's samples lie off the data as well: a "
    "continuous invertible map cannot tear one connected Gaussian into pieces, so *bridges* of density remain. With one Gaussian per "
    f"class in the base, which needs labels, the share is {off_of['flow, classes in its base']:.1f} %. This is one model each, from one seed: "
    "enough to see that bridges remain, not to rank the flows."
))  # fmt: skip

# %% [markdown]
# The flow gives an exact density without the mixture's blind spots, but with bridges. This toy cannot show whether OOD
# points in the bridges go undetected, because its far points lie elsewhere; section 7 returns to this. An exact density
# requires that every layer is invertible. HEAT's network may have any form, because its constant is never computed.

# %% [markdown]
# ## 2. Derivation
#
# ### 2.1 From one dimension to K
#
# Let $f:\mathbb R^K\to\mathbb R^K$ be smooth with a smooth inverse, and $u=f(z)\sim p_0$. Close to $z$, $f$ acts like
# its Jacobian matrix $J_f(z)$, which maps a small box of volume $v$ to one of volume $\lvert\det J_f(z)\rvert\,v$. The
# mass does not change. Divide by $v$ and take logarithms:
#
# $$\boxed{\;\log p(z) = \log p_0(f(z)) + \log\lvert\det J_f(z)\rvert\;}$$
#
# Two rules make this useful. **Compose**: for $f = f_L\circ\dots\circ f_1$ the chain rule multiplies Jacobians and
# determinants multiply, so log-determinants add, each taken at its own input. **Fit**: choose the weights $\theta$ that
# maximise $\frac1N\sum_n\log p_\theta(z_n)$. Up to the entropy of the data, which no weight changes, this minimises
# $\mathrm{KL}(p_\text{data}\,\Vert\,p_\theta)$.
#
# The determinant of a $K\times K$ matrix costs about $K^3$ operations, at every point and every update. Flows are
# therefore built from maps whose determinant is cheap.
#
# ### 2.2 The coupling
#
# Split $z$ into halves $(a, b)$. Leave $a$ unchanged, and let it determine how $b$ is transformed
# {cite:p}`dinh2017realnvp`:
#
# $$y_a = a,\qquad y_b = \bigl(b - t(a)\bigr)\odot e^{-s(a)} .$$
#
# $s$ and $t$ are the outputs of any network. **Which numbers of the Jacobian matter?** Write it in blocks,
#
# $$J = \begin{pmatrix} I & 0\\ \ast & \mathrm{diag}\,e^{-s(a)}\end{pmatrix},\qquad
# \log\lvert\det J\rvert = -\sum_j s_j(a).$$
#
# The matrix is triangular, so the block $\ast$, which holds all derivatives of the networks, does not enter the
# determinant. The inverse is as cheap: $y$ still contains $a$, so $b = y_b\odot e^{s(a)}+t(a)$. The networks are never
# inverted. Here is the coupling in five lines, compared with a full Jacobian by autograd and with the library:

# %%
K = 6
layer = Coupling(K, hidden=[16], clamp=None)  # the library's, for its networks
for p in layer.parameters():
    p.data = 0.5 * torch.randn(p.shape, generator=generator)


def couple(z):
    a, b = z.chunk(2, dim=1)
    s, t = layer.nets[0](a).chunk(2, dim=1)
    return torch.cat([a, (b - t) * torch.exp(-s)], 1), -s.sum(1)


z = torch.randn(5, K, generator=generator)
y, log_det = couple(z)
jacobian = torch.autograd.functional.jacobian
J = torch.stack([jacobian(lambda r: couple(r[None])[0][0], r) for r in z])
assert torch.allclose(log_det, torch.linalg.slogdet(J).logabsdet, atol=1e-5)
assert torch.allclose(y, layer(z)[0]) and torch.allclose(layer.inverse(y), z, atol=1e-4)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Absolute Jacobian of one coupling at one point, by autograd. Above the diagonal it is zero; the first half of the diagonal is one. The log-determinant depends only on the last three diagonal entries.", "name": "fig-flow-jacobian"}, "image": {"alt": "A six by six matrix as a heat map. The upper left three by three block is the identity, the upper right block is zero, the lower left block is full of values, and the lower right block is diagonal."}}
figure, ax = plt.subplots(figsize=(plots.HALF, 2.7))
shown = ax.imshow(J[0].abs(), cmap="viridis")
for i in range(K):
    for j in range(K):
        if J[0, i, j] != 0:
            value = J[0, i, j].abs().item()
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if value < J[0].abs().max() / 2 else "black")
ax.set(xlabel="derivative with respect to $z_j$", ylabel="output $y_i$", xticks=range(K), yticks=range(K), xticklabels=range(1, K + 1), yticklabels=range(1, K + 1))
ax.grid(False)
figure.colorbar(shown, ax=ax, label="$|J_{ij}|$")
plt.show()

# %% [markdown]
# ### 2.3 Three more parts
#
# * **Clamp.** Without a limit, $e^{-s}$ can grow without bound. The library uses $s=c\tanh(\tilde s/c)$ with $c=2$: no
#   coordinate is stretched by more than $e^2$ per layer. The released code of the paper has no clamp.
# * **Mixing.** A coupling changes half of the coordinates, so the next one must split them differently. A fixed random
#   rotation $Q$ mixes all of them, with $\log\lvert\det Q\rvert=0$. The paper learns a matrix in the form $PLU$, whose
#   log-determinant is a sum over the diagonal of $U$ {cite:p}`kingma2018glow`.
# * **ActNorm.** $y=(x-m)/\sigma$ per coordinate, log-determinant $-\sum_j\log\sigma_j$. $m$ and $\sigma$ start as mean
#   and deviation of the first batch and are then trained.
#
# ### 2.4 The start is a Gaussian
#
# The last layer of every net starts at zero, hence $s=t=0$ and each coupling starts as the identity. Put a *whitening*
# $y = A(z-\mu)$ with $A^\top A=\Sigma^{-1}$ in front, and do not train. What does the boxed formula then give?
#
# $$\begin{aligned}
# -\log p(z) &= \tfrac12\lVert A(z-\mu)\rVert^2 + \tfrac12\log\det\Sigma + \tfrac K2\log 2\pi\\
# &= \tfrac12\underbrace{(z-\mu)^\top\Sigma^{-1}(z-\mu)}_{\text{squared Mahalanobis distance}} + \text{const}.
# \end{aligned}$$
#
# **A feature flow is a Mahalanobis distance that is then trained further.** With one Gaussian per class in the base,
# and $\Sigma$ the covariance inside the classes, the start is the tied Gaussian mixture. Both are exact, and both can
# be tested:

# %%
rows, mix = (torch.randn(n, K, generator=generator).double() for n in (500, K))
made_up = rows @ mix
labels = torch.arange(500) % 3
train, one = ood.Features(made_up, labels=labels), ood.Features(made_up, labels=0 * labels)
start = {"normalize": False, "noise": 0.0, "updates": 0}

untrained = ood.FeatureFlow(**start).fit(train).score(train)
mahalanobis = ood.Mahalanobis().fit(one).score(train)
assert torch.equal(untrained.argsort(), mahalanobis.argsort())  # the same ranking, exactly
assert torch.allclose(untrained.diff(), mahalanobis.diff() / 2)

with_classes = ood.FeatureFlow(class_base=True, **start).fit(train).score(train)
assert torch.allclose(with_classes, ood.GMM(ridge=0).fit(train).score(train))

# %% [markdown]
# ### 2.5 The sphere
#
# The paper divides each feature by its length. So the features lie on a sphere, a set without volume in $\mathbb R^K$.
# **What is the largest likelihood that a flow can reach there?** Shrink the direction across the sphere by a factor
# $\varepsilon$: the mass stays, the volume shrinks, and every point gains $-\log\varepsilon$. So the likelihood has no
# upper bound, and a long training can go on increasing it without learning anything about the data along the sphere.
# The same happens with units that are always zero and with units that duplicate each other.
#
# The remedy is to change the data: add noise, $z+\sigma n$ with $n\sim N(0, I)$, fresh in each batch. The noisy data
# fill the space, and the likelihood has an upper bound, a *ceiling*, which is minus their entropy. For a circle of
# radius 1 and small $\sigma$, the circle contributes $\log 2\pi$ and the Gaussian across it
# $\frac12\log(2\pi e\sigma^2)$:
#
# $$\max_\theta\ \mathbb E\log p_\theta = -\log 2\pi - \tfrac12\log(2\pi e\,\sigma^2).$$

# %%
angle = 2 * math.pi * torch.rand(2000, generator=generator)
circle = torch.stack([angle.cos(), angle.sin()], 1)


def climb(sigma, steps=10):
    """Mean log-density on the circle, every tenth of the updates."""
    flow = coupling_flow(2, 8, [64, 64], rotate=False)
    training = FlowTraining(flow, circle, learning_rate=3e-4, noise=sigma, seed=seed)
    moments = class_moments(circle, torch.zeros(2000, dtype=torch.long))
    flow.initialize(training.batch(0)[0], moments)
    values = [training.run(2 * toy_updates // steps) for _ in range(steps)]
    across = 0.5 * math.log(2 * math.pi * math.e * max(sigma, 1e-9) ** 2)
    return values, -math.log(2 * math.pi) - across


climbs = {sigma: climb(sigma) for sigma in (0.0, 0.05, 0.1)}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A flow on the unit circle: mean log-density of the batches while it trains, without noise and with noise σ. Thin lines: the ceilings of the formula. With noise the likelihood approaches its ceiling from below. Without noise there is no ceiling: the likelihood climbs above both lines, not always smoothly.", "name": "fig-flow-circle"}, "image": {"alt": "Line plot of the mean log-density in nats against updates. Two curves, for noise 0.05 and 0.1, rise and level off below horizontal lines that mark their ceilings at minus 0.26 and minus 0.95. The curve without noise rises unevenly, crosses both lines and ends above them."}}
figure, ax = plt.subplots(figsize=(plots.HALF * 1.6, 2.8))
at = np.linspace(toy_updates // 5, 2 * toy_updates, 10)
for (sigma, (values, ceiling)), style in zip(climbs.items(), plots.SERIES[::2]):
    label = f"σ = {sigma:g}" if sigma else "no noise"
    ax.plot(at, values, ms=4, label=label, **style)
    if sigma:
        ax.axhline(ceiling, color=style["color"], lw=1)
ax.set(xlabel="update", ylabel="mean log p (nats)", xlim=(0, at[-1] * 1.35))
ax.legend(loc="lower right", fontsize=8)
plt.show()

# %% [markdown]
# So the likelihood of normalised features without noise has no upper limit, and a high value says nothing about the
# fit. The library trains on noisy features by default (`noise`); the paper does not. Section 3 measures how the noise
# affects detection, and how to choose its level. The likelihood cannot choose it: with another noise level the flow models other data,
# so the two likelihoods cannot be compared.
#
# ### 2.6 What a density does not tell
#
# Two warnings, before you trust "unlikely = unusual".
#
# * **The mode is not typical.** If the flow fits, $\lVert u\rVert^2$ of ID data follows a $\chi^2_K$ distribution, with
#   mean $K$ and standard deviation $\sqrt{2K}$. The origin has the highest density of the base, and hardly a point
#   comes near it. An input *blander* than any training image may map near it and get a higher likelihood than real data
#   {cite:p}`nalisnick2019know`.
# * **Density depends on the coordinates.** Apply any invertible $g$ to the data and $\log p$ changes by
#   $\log\lvert\det J_g\rvert$, point by point. So the order of two points can be reversed although no information was
#   lost {cite:p}`lelan2021perfect`. Linear maps only shift all values. So "$-\log p$ of the *features*" is a choice:
#   the network defines the coordinates.

# %% [markdown]
# ## 3. Training
#
# The flow needs features, and features need a network. Take the same small residual networks as in the other
# chapters, several of them, from different seeds.

# %% tags=["hide-input"]
features = ood.benchmark_features(
    benchmark, seeds, seed=seed, widths=widths, device=device,
    epochs=epochs, learning_rate=learning_rate,
    root=data_dir or None, missing=missing,
)  # fmt: skip
seeds, F1 = len(features), features[0]  # the first is the one we look into
bench = F1.images  # a bank has none
if not (F1.near and F1.far):
    raise ValueError(f"{benchmark}: give at least one near and one far set")
heads = [x.head for x in features]
K, near = heads[0].in_features, next(iter(F1.near))
bench or F1  # which set plays which role, and how many images it has

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The benchmark: one row per data set. The networks are trained on the classes of the first row and never see the others; neither do the flows.", "name": "fig-flow-images"}, "image": {"alt": "Rows of small pictures. ID images of the known classes first, then the near-OOD set with unseen classes of the same kind, then the far-OOD sets."}}
if bench:
    plots.benchmark_images(bench)
    plt.show()

# %% tags=["hide-input"]
F1.test

# %% [markdown]
# The paper's claim is about networks trained on photographs, so test it on four networks trained on CIFAR-10 or
# CIFAR-100, whose features come with the library. **Two choices have to be made, and neither may use OOD test images.**
#
# * **When to stop**: where the likelihood of *held-out ID features*, a tenth of the training rows, is highest. It is
#   evaluated several times during training. The paper stops after one epoch and says that longer training detects
#   worse. Its epoch has 5,125 batches, an epoch here about twenty. So count *updates*.
# * **How much noise**: likelihoods under different noise cannot be compared (section 2.5). So take the noise with the
#   best AUROC of ID validation images against *validation OOD images*: every second image of Tiny ImageNet. Only the
#   other half is used for testing.

# %% tags=["hide-input"]
def halved(f):
    """A network without every second image of Tiny ImageNet, and these images."""
    tiny = f.near["tiny_imagenet"]
    return replace(f, near=f.near | {"tiny_imagenet": tiny[1::2]}), tiny[::2]


real = {name: [halved(f) for f in ood.benchmark_features(name, rows=bank_rows or None)] for name in benchmarks}

# %%
def width(f):
    return f.train.penultimate.shape[1]


def watch(f, valid, **options):
    """A fitted flow, and a row for each look at it: likelihoods and AUROCs."""

    def look(flow):
        row = {key: values[-1] for key, values in vars(flow.history).items()}
        valid_auroc = metrics.auroc(flow.score(f.val), flow.score(valid))[0]
        rows.append(row | ood.group_auroc(flow, f) | {"validation": valid_auroc})

    rows = []
    every = max(1, updates // looks_at)
    common = {"updates": updates, "check_every": every, "holdout": 0.1}
    if "flow" not in options:
        common |= {"layers": 6, "hidden": 2 * [min(width(f), 256)]}
    flow = ood.FeatureFlow(each_look=look, **common | options).fit(f.train)
    return flow, pd.DataFrame(rows).assign(kept=lambda t: t.index == t["val"].idxmax())


# %% tags=["hide-input"]
PAPER, OURS = "no noise", f"noise {noise:g}"
ways = {PAPER: {"noise": 0.0, "whiten": False}}
ways |= {f"noise {level:g}": {"noise": level} for level in sorted({noise, *noises})}
ways[f"{OURS}, classes"] = {"noise": noise, "class_base": True}
ways["the paper's layers"] = {"flow": "paper", "learning_rate": paper_rate}
flows, looks = {}, []
for name, seen in real.items():
    narrow = width(seen[0][0]) <= 64  # cheap: every way, and two flows of each
    for way in ways if narrow else (PAPER, OURS):
        fits = [watch(*x, seed=s, **ways[way]) for x in seen for s in range(1 + narrow)]
        flows[name, way] = [flow for flow, _ in fits]
        looks += [t.assign(network=name, way=way, fit=n) for n, (_, t) in enumerate(fits)]
looks = pd.concat(looks) if looks else pd.DataFrame()

# %% [markdown]
# ### 3.1 The choices
#
# On a wide network two ways to train are compared, on a narrow one more. *No noise* is the paper's way: ActNorm
# standardises each coordinate, and training starts from there. With noise, training starts from the whitened Gaussian
# of section 2.4. *Classes* puts one Gaussian per class into the base and uses labels. *The paper's layers* is the
# paper's architecture, trained without noise for as many updates as ours and at a higher learning rate. (The paper's
# own rate of $10^{-5}$ is meant for 5,125 updates. A larger rate does not make fewer updates equivalent to those.)

# %% tags=["hide-input"]
chosen = {}
if len(looks):
    groups = ["network", "way"]
    start, kept = (rows.groupby(groups, sort=False).mean(numeric_only=True) for rows in (looks[looks["update"] == 0], looks[looks["kept"]]))
    chosen = {n: kept.loc[n, "validation"].idxmax() for n in real}
    cells = {"kept after": kept["update"].map("{:.0f}".format)}
    for key, title in (("validation", "validation OOD"), ("near", "near"), ("far", "far")):
        cells[title] = [f"{100 * a:.1f} → {100 * b:.1f}" for a, b in zip(start[key], kept[key])]
    shown = pd.DataFrame(cells, kept.index)
    bold = [way == chosen[n] for n, way in shown.index]
    caption = "AUROC in %, start → update chosen by the held-out ID likelihood; bold: the way chosen on the validation OOD images"
    display(shown.style.apply(lambda c: ["font-weight: bold" if b else "" for b in bold]).set_caption(caption))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training on the features of real networks, one column each. Above: log-density of held-out ID features (solid) and of training batches (dotted), minus its value at the start. Middle and below: AUROC on near-OOD and far-OOD sets. Circles: the update chosen by the held-out likelihood. Lines are means over the flows of a network. Each panel has its own scale, logarithmic beyond 10 nats; an AUROC curve may start below its panel.", "name": "fig-flow-updates"}, "image": {"alt": "Three rows of panels, one column for each network, against the number of updates. In each panel one line for training without noise and one with noise. Without noise, likelihood gains tens to hundreds of nats, and AUROC rises steeply from a low start within the first looks. With noise, likelihood gains a few nats, training and held-out lines stay together, and AUROC begins high and rises slowly."}}
if len(looks):
    figure, axes = plt.subplots(3, len(real), figsize=(plots.FULL, 5), sharex=True, squeeze=False, layout="constrained")
    for column, (name, own) in zip(axes.T, looks.groupby("network", sort=False)):
        for way, look in ((PAPER, plots.SERIES[1]), (OURS, plots.SERIES[3])):
            fits = own[own["way"] == way]
            mean, at = fits.groupby("update")[["train", "val", "near", "far"]].mean(), fits[fits["kept"]].mean(numeric_only=True)
            style = {"color": look["color"], "marker": look["marker"], "ms": 3}
            column[0].plot(mean["val"] - mean["val"].iloc[0], label=way, **style)
            column[0].plot(mean["train"] - mean["val"].iloc[0], ":", color=look["color"])
            for ax, group in zip(column[1:], ("near", "far")):
                ax.plot(100 * mean[group], **style)
                ax.plot(at["update"], 100 * at[group], "o", ms=8, mfc="none", color="black")
        late = 100 * own.loc[own["way"].isin([PAPER, OURS]) & (own["update"] > own["update"].max() / 2), ["near", "far"]]
        for ax, group in zip(column[1:], late):
            ax.set_ylim(late[group].min() - 5, late[group].max() + 1)
        column[0].set_title(name, fontsize=8)
        column[0].set_yscale("symlog", linthresh=10)
        column[2].set_xlabel("update")
    for ax, label in zip(axes[:, 0], ("nats gained", "near AUROC (%)", "far AUROC (%)")):
        ax.set_ylabel(label)
    axes[0, 0].legend(fontsize=7, loc="center right")
    plt.show()

# %% tags=["hide-input"]
def span(values):
    """The range of changes, in points."""
    ends = dict.fromkeys(f"{v:+z.1f}".replace("-", "−") for v in (min(values), max(values)))
    return " to ".join(ends) + " points"


def story(way):
    """What more training did with one way of training, on all networks."""
    rising, gains, losses = [], [], {}
    for name, own in looks[looks["way"] == way].groupby("network", sort=False):
        mean = own.groupby("update")[["val", "near", "far"]].mean()
        both, top = 100 * mean[["near", "far"]].mean(axis=1), mean["val"].idxmax()
        rising += [name] if top == both.index[-1] else []
        gains, losses = [*gains, both[top] - both.iloc[0]], losses | {name: both.max() - both[top]}
    where = {0: "on no network", len(losses): "on every network"}.get(len(rising), f"on {' and '.join(rising)}, not on the others")
    worst = max(losses, key=losses.get)
    missed = f"up to {losses[worst]:.1f} points more (on {worst})" if losses[worst] >= 0.05 else "less than 0.1 points more on every network"
    return (
        f"* **{way}**: the held-out likelihood still rises at the last update {where}. At the update where it is highest, the AUROC "
        f"differs from that at the start by {span(gains)}. The best update of the curve has {missed}."
    )


display(Markdown("The AUROC is the mean of near and far.\n\n" + "\n".join(map(story, (PAPER, OURS))) if len(looks) else "No bank was given."))

# %% [markdown]
# Is more training worse? A curve that still rises at its last update cannot say. Beyond that, each curve shows three
# things. *The start*: ActNorm ignores correlations between features, so
# without whitening the flow may start below chance, and has to learn what a covariance matrix would have given it. *The
# likelihood*: where the held-out curve falls while the training curve rises, the flow overfits, which is easy with a
# few thousand rows. Noise prevents this, because it differs in each batch. *The AUROC at the circle*: where it lies
# below the best AUROC, the ID likelihood stopped too late or too early for detection. That can happen, because
# likelihood measures density and not separation. Only OOD test images would show it, so no fair rule can avoid it.
#
# The *best* AUROC of a curve is selected on the test images, so it is not a result. The results are the circles, and
# section 5 tests them.

# %% [markdown]
# ## 4. Looking inside
#
# ### 4.1 What does the flow generate?
#
# Sample features from the flow and embed them together with real ones. UMAP keeps neighbours together; distances
# between clusters mean little {cite:p}`mcinnes2018umap`.

# %%
LAYERS = 4  # couplings of a flow on the features of these small networks
flow = ood.FeatureFlow(updates=updates, noise=noise, layers=LAYERS, seed=seed).fit(F1.train)
dreams = F.normalize(flow.sample(umap_points // 4, generator), dim=1)
flow.density.layers[:4]  # the first of its layers

# %% tags=["hide-input"]
ood_all = {g: torch.cat([x.penultimate for x in sets.values()]) for g, sets in F1.groups().items()}
by_group = {"far": ood_all["far"], "near": ood_all["near"], "id": F1.test.penultimate}
picked = {k: v[torch.randperm(len(v), generator=generator)[: umap_points // 4]] for k, v in by_group.items()}
picked = {k: F.normalize(v, dim=1) for k, v in picked.items()} | {"other": dreams}
points = plots.umap(torch.cat(list(picked.values())), seed)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "UMAP of normalised features and of samples drawn from the flow (green diamonds). Some samples lie on the islands of the classes, and some between them, on bridges. Distances between islands carry no meaning.", "name": "fig-flow-umap"}, "image": {"alt": "Scatter plot of a two-dimensional embedding. Blue ID points gather in islands by class. Green flow samples lie on the islands and, many of them, between. Orange near-OOD triangles fill the middle between the islands; pink far-OOD squares form several clusters, some beside the islands and some apart."}}
groups = np.repeat(list(picked), [len(v) for v in picked.values()])
ax = plots.embedding(points, {k: groups == k for k in picked})
for text in ax.get_legend().get_texts():
    text.set_text({"other": "drawn from the flow"}.get(text.get_text(), text.get_text()))
plt.show()

# %% [markdown]
# ### 4.2 Two reasons to be unlikely
#
# In the boxed formula the {term}`score` $-\log p$ has two parts: how far from the origin the latent lies,
# $\frac12\lVert u\rVert^2$, and how much the flow stretches there, $\log\lvert\det J\rvert$. **Which of the two detects
# OOD images?**

# %%
@torch.no_grad()
def latent(x):
    """Half the squared length of the latent, and the log-determinant."""
    u, log_det = flow.density(F.normalize(x.penultimate, dim=1))
    return u.square().sum(1) / 2, log_det


parts = {"id": latent(F1.test)}
for group, sets in F1.groups().items():
    half, log_det = zip(*(latent(x) for x in sets.values()))
    parts[group] = torch.cat(half), torch.cat(log_det)
half, log_det = parts["id"]
log_p = -half + log_det - K / 2 * math.log(2 * math.pi)  # the boxed formula
assert torch.allclose(log_p, flow.log_prob(F1.test.penultimate), atol=1e-3)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Each image by half the squared length of its latent (logarithmic) and by the log-determinant at its feature. Grey lines join points of equal log p; dashed, K/2, the mean of features with the noise of training. ID test images carry no noise and lie inside it, OOD images further out.", "name": "fig-flow-latent"}, "image": {"alt": "Scatter plot with half the squared latent length on a logarithmic horizontal axis and the log-determinant on the vertical one. Blue ID points form a cloud left of the dashed line at K over 2. Orange near-OOD triangles lie further right than most ID points; pink far-OOD squares lie furthest right, most of them beyond the line."}}
figure, ax = plt.subplots(figsize=(plots.FULL, 3.6))
for role in ("far", "near", "id"):
    half, log_det = (part[torch.arange(0, len(part), max(1, len(part) // 400))] for part in parts[role])
    ax.scatter(half, log_det, s=12, alpha=0.6, lw=0, color=plots.COLORS[role], marker=plots.MARKERS[role], label=plots.NAMES[role])
low, high = ax.get_ylim()
reach = np.geomspace(parts["id"][0].min() / 1.5, max(p[0].max() for p in parts.values()) * 1.5, 400)
for level in np.linspace(low - 200, high - K / 2, 9):
    ax.plot(reach, reach + level, color=plots.COLORS["grey"], lw=0.6)
ax.axvline(K / 2, color=plots.COLORS["grey"], ls="--", lw=1)
ax.set(xscale="log", xlim=(reach[0], reach[-1]), ylim=(low, high), xlabel="½‖u‖² (logarithmic)", ylabel="log |det J|")
ax.legend(loc="lower right")
plt.show()

# %% tags=["hide-input"]
alone = {
    "½‖u‖² alone": [metrics.auroc(parts["id"][0], parts[g][0])[0] for g in ("near", "far")],
    "−log|det J| alone": [metrics.auroc(-parts["id"][1], -parts[g][1])[0] for g in ("near", "far")],
    "both: −log p": [metrics.auroc(parts["id"][0] - parts["id"][1], parts[g][0] - parts[g][1])[0] for g in ("near", "far")],
}
lengths, z = 2 * parts["id"][0], F.normalize(F1.test.penultimate, dim=1)
sigma = noise * F.normalize(F1.train.penultimate, dim=1).var(0).mean().sqrt()
noisy = flow.density(z + sigma * torch.randn(z.shape, generator=generator))[0].square().sum(1)
display(pd.DataFrame(alone, ["near (pooled)", "far (pooled)"]).T.style.format(lambda v: f"{100 * v:.1f}").set_caption("AUROC in %"))
display(Markdown(
    f"For ID test images $\\lVert u\\rVert^2$ has mean {lengths.mean():.0f}; section 2.6 predicts {K} for the data of the training. These "
    f"carried noise, and the test features do not. With the same noise added, the mean is {noisy.mean():.0f}."
))  # fmt: skip

# %% [markdown]
# ### 4.3 Why not on pixels?
#
# If a flow is a density, why use the features of a network? **Fit the same flow to the pixels themselves** (averaged
# down to 8 × 8 where the images are larger) and score the same images with both flows. Besides the sets of the
# benchmark, use *bland* images: ID test images half-way to the average image, and averages of two test images. We made
# them for this purpose, because the far sets of `digits` do not show the likelihood paradox in pixels.

# %% tags=["hide-input"]
def stack(data):
    return torch.stack([data[i][0] for i in range(min(len(data), 5000))])


def pixels(images):
    small = F.adaptive_avg_pool2d(images, 8) if images.shape[-1] > 8 else images
    return ood.Features(small.flatten(1))


P, flow_P = F1, flow
if not bench:  # a bank has no pixels: digits stand in for them
    (P,) = ood.benchmark_features("digits", seed=seed, device=device, epochs=epochs)
    flow_P = ood.FeatureFlow(updates=updates, noise=noise, layers=LAYERS, seed=seed).fit(P.train)
near_P = next(iter(P.near))

# %% tags=["hide-input"]
images = stack(P.images.test)
average = stack(P.images.train).mean(0)
bland = {"half-way to the average": (images + average) / 2}
bland["mean of two images"] = (images + images.roll(1, 0)) / 2
asked = {n: stack(d) for n, d in (P.images.near | P.images.far).items()} | bland
in_pixels = ood.FeatureFlow(normalize=False, updates=updates, noise=noise)
in_pixels.fit(pixels(stack(P.images.train)))
with torch.no_grad():
    eye = P.network.to("cpu")
    seen = {n: ood.Features(eye.represent(x).penultimate) for n, x in asked.items()}

# %% tags=["hide-input"]
own = {"pixels": in_pixels.score(pixels(images)), "features": flow_P.score(P.test)}
rows = {
    name: [100 * metrics.auroc(own["pixels"], in_pixels.score(pixels(x)))[0],
           100 * metrics.auroc(own["features"], flow_P.score(seen[name]))[0]]
    for name, x in asked.items()
}  # fmt: skip
paradox = pd.DataFrame(rows, ["flow on pixels", "flow on features"]).T
paradox.style.format("{:.1f}").set_caption("AUROC in %; below 50: likelier than ID images")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The likelihood paradox. Log-density of ID test images, near-OOD images and bland images (ID images half-way to the average) under a flow on pixels (left) and on features (right). On pixels bland images are likelier than real ones.", "name": "fig-flow-paradox"}, "image": {"alt": "Two panels, curves of how log-likelihoods spread. Left, on pixels: the green curve of bland images lies to the right of the blue ID curve, at higher likelihood, and the orange near-OOD curve overlaps it. Right, on features: the ID curve lies to the right of both others."}}
figure, axes = plt.subplots(1, 2, figsize=(plots.FULL, 2.7))
sides = {
    "flow on pixels": [-own["pixels"], *(-in_pixels.score(pixels(asked[n])) for n in (near_P, *list(bland)[:1]))],
    "flow on features": [-own["features"], *(-flow_P.score(seen[n]) for n in (near_P, *list(bland)[:1]))],
}
for ax, (title, values) in zip(axes, sides.items()):
    floor = min(v.quantile(0.05).item() for v in values)
    shown = dict(zip(("id", "near", "bland"), (v[v > floor] for v in values)))
    plots.density(shown, {"bland": "other"}, ax=ax, label="log p (nats; left = more OOD)")
    ax.set(title=title, yticks=[], ylabel="")
axes[1].get_legend().remove()
plt.show()

# %% tags=["hide-input"]
first = list(bland)[0]
display(Markdown(
    "Images half-way to the average are closer to the mean image. On pixels their AUROC is "
    f"**{paradox.loc[first, 'flow on pixels']:.1f} %** (below 50 %, such images are *likelier* than real ones). On features the same "
    f"images have **{paradox.loc[first, 'flow on features']:.1f} %**. The near set {near_P} has {paradox.loc[near_P, 'flow on pixels']:.1f} % on pixels and "
    f"{paradox.loc[near_P, 'flow on features']:.1f} % on features."
))  # fmt: skip

# %% [markdown]
# Image flows learn how neighbouring pixels are related, which is similar in all images, and so bland images are likely
# under them {cite:p}`kirichenko2020why`. The network was trained to tell classes apart. This suggests a reason for the
# second column: an image that is bland in pixels is *undecided* for the network, and undecided features lie between the
# islands. The kind of density is the same; only the {term}`representation` has changed. This is one network and one
# benchmark, with bland images of our own making. On `digits` the far sets are easy even for pixels: many border pixels
# are constant in the training images, but not in photographs. Natural images have no such pixels.

# %% [markdown]
# ## 5. Benchmark
#
# **Does training help, and is the flow better than simpler detectors?** On each real network, take the flow that was
# chosen on the validation OOD images in section 3.1. The tables compare it
#
# * with its *own start*, to see what training added;
# * with two closed formulas that use labels: the *Mahalanobis* distance, and a *tied Gaussian at length one*, the same
#   covariance on features divided by their length, with a ridge of the size of the noise;
# * with *KNN*.
#
# A further table tests the paper's claim: its way to train, against a logit score on far-OOD. The last table shows the
# effect of noise and whitening, on the real networks only. In the other tables, the last row is for the small networks
# trained on this page, always with noise. Every other row is a single network. Its interval covers the choice of test
# images and, where several flows were trained, the training of the flow, but not that of the network. With two flows it
# is wide where these two disagree.

# %% tags=["hide-input"]
@cache
def start_of(flow):
    """The same flow before training."""
    same = "whiten", "noise", "holdout", "class_base", "layers", "hidden", "seed"
    options = {name: getattr(flow, name) for name in same}
    return ood.FeatureFlow(flow.flow, updates=0, **options)


def ridged(flow):
    return ood.GMMPrior(ridge=max(flow.noise, noise) ** 2)


# %%
def contestants(head):
    """The detectors of this page for one network."""
    common = {"noise": noise, "layers": LAYERS, "seed": seed}
    known = {"MSP": ood.MSP(), "Energy": ood.Energy(), "Mahalanobis": ood.Mahalanobis()}
    known |= {"KNN": ood.KNN(neighbours(F1.train, F1.head)), "GMM": ood.GMM()}
    return known | {
        "Flow, untrained": ood.FeatureFlow(updates=0, **common),
        "Flow": ood.FeatureFlow(updates=updates, **common),
        "Flow + classes, untrained": ood.FeatureFlow(updates=0, class_base=True, **common),
        "Flow + classes": ood.FeatureFlow(updates=updates, class_base=True, **common),
        "Flow, paper": ood.FeatureFlow("paper", updates=updates, learning_rate=paper_rate),
    }


# %% tags=["hide-input"]
fitted = [contestants(head) for head in heads]
table = pd.concat([
    ood.run_benchmark(detectors, f, seed=seed + n)
    for n, (detectors, f) in enumerate(zip(fitted, features))
])  # fmt: skip

# %% tags=["hide-input"]
def fits_of(name, way):
    """The flows of a network, each with the features that it was fitted on."""
    seen, found = real[name], flows[name, way]
    return [(seen[i * len(seen) // len(found)][0], d) for i, d in enumerate(found)]


@cache
def scores(detector, f):
    """Its scores of the images of a network, which several claims ask for."""
    return ood.SetScores.of(detector, f)


def against(make, way=None):
    """Verdicts of a flow against what `make` makes of it, for each network."""
    fits = {name: fits_of(name, way or chosen[name]) for name in real}
    fits[benchmark] = [(f, d["Flow, paper" if way == PAPER else "Flow"]) for f, d in zip(features, fitted)]
    return {n: ood.score_verdicts([(scores(d, f), scores(make(d, f), f)) for f, d in x]) for n, x in fits.items()}


def between(way, other):
    """Verdicts of one way to train against another, for each network."""
    pairs = {n: zip(fits_of(n, way), flows[n, other]) for n in real}
    return {n: ood.score_verdicts([(scores(a, f), scores(b, f)) for (f, a), b in x]) for n, x in pairs.items()}


# %%
claims = {
    "the flow, minus its own start": against(lambda d, f: start_of(d)),
    "the flow, minus Mahalanobis": against(lambda d, f: ood.Mahalanobis()),
    "the flow, minus the tied Gaussian at length one": against(lambda d, f: ridged(d)),
    "the flow, minus KNN": against(lambda d, f: ood.KNN(neighbours(f.train, f.head))),
    "the paper's way, minus Energy": against(lambda d, f: ood.Energy(), PAPER),
}
if real:
    claims[f"{OURS} and whitening, minus no noise"] = between(OURS, PAPER)

# %% tags=["hide-input"]
lines = [f"* {text}: near-OOD {ood.tally({n: v['near'] for n, v in found.items()})}; far-OOD {ood.tally({n: v['far'] for n, v in found.items()})}." for text, found in claims.items()]
picked = ", ".join(f"on {name} *{way}*" for name, way in chosen.items())
display(Markdown(f"The flow chosen on validation OOD images: {picked or 'no bank was given'}. In words, before the tables:\n\n" + "\n".join(lines)))
for caption, found in claims.items():
    display(plots.verdict_table(found, caption))

# %% [markdown]
# Why do the answers differ? Training can only add what the start of the flow lacks. Where the start ignores the
# correlations (ActNorm alone) or is one Gaussian around many classes, there is much to add; where it is the mixture of
# the classes, there is little. Mahalanobis and the tied Gaussian use labels, the flow does not. Most of the gap between
# these two closes when the features are divided by their length ({cite:t}`mueller2025mahalanobis`; [section 3.1 of the page
# on photographs](60_cifar10)); the ridge adds little.

# %% tags=["hide-input"]
per_network = {}
for name in real:
    f, best = fits_of(name, chosen[name])[0]
    rivals = {"MSP": ood.MSP(), "Energy": ood.Energy(), "KNN": ood.KNN(neighbours(f.train, f.head)), "Mahalanobis": ood.Mahalanobis()}
    rivals |= {"tied Gaussian, length one": ridged(best), "chosen flow, untrained": start_of(best), "chosen flow": best, "no noise": flows[name, PAPER][0], OURS: flows[name, OURS][0]}
    for title, detector in rivals.items():
        found = scores(detector, f)
        areas = [np.mean([metrics.auroc(found.test, x)[0] for x in sets.values()]) for sets in found.groups().values()]
        per_network.setdefault(name, {})[title] = " / ".join(f"{100 * v:.1f}" for v in areas)
display(pd.DataFrame(per_network).style.set_caption("AUROC in %, near / far, by network"))

# %% [markdown]
# ### The networks of this page
#
# The table shows every detector on every set of the benchmark of this page. The flow appears as one Gaussian
# (untrained) and trained; as one Gaussian per class (untrained) and trained; and with the paper's architecture and as
# many updates.

# %% tags=["hide-input"]
caption = f"AUROC in %, mean over networks ({seeds}); bold: best and its equals"
plots.benchmark_table(table, caption=caption)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean AUROC over the near and the far sets, with the 95 % interval of Student's t over networks, cut at 1.", "name": "fig-flow-benchmark"}, "image": {"alt": "Dot plot with one row per detector and two dots, near-OOD and far-OOD, with horizontal intervals over networks on an AUROC axis that ends at 1. Densities and flows lie to the right of logit scores."}}
summary = ood.summarize(table)
ax = plots.dots(summary)
ax.set_xlim(max(0.0, float(summary["value"].min()) - 0.03), 1.005)
plt.show()

# %% tags=["hide-input"]
duels = [("Flow + classes", "Flow + classes, untrained"), ("Flow, paper", "Flow")]
lines = [f"* {one} against {two}: near {ood.compare_over_seeds(table, one, two, 'near')}; far {ood.compare_over_seeds(table, one, two, 'far')}." for one, two in duels]
display(Markdown("Two more differences in points of AUROC, paired over networks, with 99 % intervals:\n\n" + "\n".join(lines)))

# %% [markdown]
# Where a Gaussian already has 100 % on the far sets, training cannot improve it. *Flow, paper* differs from *Flow* in
# architecture, noise, start and learning rate at once, so that line cannot say which of them matters.
#
# ### The paper's own numbers
#
# The paper reports an AUROC of 98.2 for ImageNet-1k against Textures after one epoch, 7.8 points above the best earlier
# result (abstract, version 2; the first version, submitted to ICLR 2024, says 8.4). We do not know which network gave
# this number, because the tables of the paper were not available to us. These numbers cannot be compared with those
# above: they come from other networks, with 768 to 2048 features, and other images (the paper's Textures has 1,880,
# others use 5,640). Only the claim can be compared: *strong on far-OOD, no labels needed*. Two details of the released
# code matter. Before it computes the AUROC, it fits a logistic regression to the scores and the test labels, which can
# reverse the sign of a score that ranks the wrong way. And *lightweight* depends on the width: at $K=2048$ the ten
# blocks have 252 million weights, ten times as many as the ResNet-50 whose features they read. Half of the weights in
# their nets are multiplied by zero.

# %% [markdown]
# ## 6. Turn the knobs
#
# ### 6.1 Length
#
# **Does dividing by the length help?** It discards information: the WeiPer score depends on the length ([its section 2.5](10_weiper)). Compare
# both, for the untrained Gaussian and for the trained flow.

# %% tags=["hide-input"]
def over_networks(values, **options):
    """Mean of shares over networks and its 95 % interval, in percent."""
    return metrics.as_percent(*metrics.mean_interval(values), **options)


def near_of(**options):
    """Near-OOD AUROC, one number per network."""
    fits = [ood.FeatureFlow(seed=seed, **options).fit(f.train) for f in features[:curves]]
    return np.array([ood.group_auroc(d, f)["near"] for d, f in zip(fits, features)])


knobs = pd.DataFrame({
    state: {
        length: near_of(normalize=normalize, noise=noise, updates=steps)
        for length, normalize in (("length 1", True), ("raw length", False))
    }
    for state, steps in (("untrained", 0), ("trained", updates // 4))
})  # fmt: skip

# %% tags=["hide-input"]
caption = f"Near-OOD AUROC in %, mean over {min(curves, seeds)} network{'s' * (min(curves, seeds) > 1)} with 95 % intervals, {updates // 4} updates where trained"
display(knobs.map(over_networks).style.set_caption(caption))
gains = {state: over_networks(knobs.loc["length 1", state] - knobs.loc["raw length", state], signed=True) for state in knobs}
display(Markdown(
    f"Dividing by the length changes the near-OOD AUROC of the untrained Gaussian by **{gains['untrained']}** points and that of the "
    f"trained flow by **{gains['trained']}**, paired over networks."
))  # fmt: skip

# %% [markdown]
# ### 6.2 A two-sided score
#
# Section 2.6 warned of images that are *too* likely. The two-sided score $\lvert\log p(z)-\text{mean over ID}\rvert$
# detects them. Does it help overall?

# %% tags=["hide-input"]
rows = {}
for name, make, see in (("pixels", in_pixels, pixels), ("features", flow_P, None)):
    usual = make.usual.item()
    id_log_prob = -own[name]
    for set_name, x in asked.items():
        log_prob = -make.score(see(x) if see else seen[set_name])
        both = metrics.auroc((id_log_prob - usual).abs(), (log_prob - usual).abs())[0]
        one = metrics.auroc(-id_log_prob, -log_prob)[0]
        rows.setdefault(set_name, {})[name, "one-sided"] = 100 * one
        rows[set_name][name, "two-sided"] = 100 * both
sided = pd.DataFrame(rows).T
sided.style.format("{:.1f}").set_caption("AUROC in %, first network")

# %% tags=["hide-input"]
change = {m: sided[m, "two-sided"] - sided[m, "one-sided"] for m in ("pixels", "features")}
lines = [
    f"* on {m}: {first} {c[first]:+z.1f} points, {near_P} {c[near_P]:+z.1f}, mean of the far sets {c[list(P.far)].mean():+z.1f}"
    for m, c in change.items()
]
display(Markdown("Change of the AUROC from the one-sided to the two-sided score:\n\n" + "\n".join(lines)))

# %% [markdown]
# The two-sided score can help where OOD images are too likely. Where they are unlikely it can only make the AUROC
# lower, because a likelihood slightly above the ID mean now counts as much as one slightly below. Where the one-sided
# AUROC is high already, there is little to gain. `FeatureFlow(two_sided=True)` offers it; it is not the default.

# %% [markdown]
# ### 6.3 Which networks make good features?
#
# The authors relate detection to two properties of the normalised features $u$ of a network. *Uniformity*
# $-\log\operatorname{mean}_{i\ne j} e^{-2\lVert u_i-u_j\rVert^2}$ is larger the more evenly they spread over the sphere
# {cite:p}`wang2020uniformity`; *tolerance*, the mean cosine between two features of a class, is larger the tighter the
# classes are {cite:p}`wang2021behaviour`. Here they are for the real networks, beside the AUROC of their chosen flow.

# %% tags=["hide-input"]
rows = {}
for name, f, detector in [(n, seen[0][0], flows[n, chosen[n]][0]) for n, seen in real.items()] + [(benchmark, F1, fitted[0]["Flow"])]:
    rows[name] = {"width": width(f), "accuracy (%)": 100 * f.accuracy}
    for measure, (value, (low, high)) in (("uniformity", uniformity(f.test.penultimate)), ("tolerance", tolerance(f.test.penultimate, f.test.labels))):
        rows[name][measure] = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    rows[name] |= {f"{group} AUROC (%)": 100 * value for group, value in ood.group_auroc(detector, f).items()}
pd.DataFrame(rows).T.style.format("{:.1f}", ["accuracy (%)", "near AUROC (%)", "far AUROC (%)"]).set_caption("in brackets 95 % intervals across images")

# %% [markdown]
# A few networks that differ in architecture, width, training and classes at once cannot show a relation; the paper has
# 113 backbones. Tight classes leave more space between them, so a link with tolerance is plausible, but this table is
# no evidence for it.

# %% [markdown]
# ### 6.4 What does it cost?
#
# The abstract says *lightweight*. **How long is one epoch at a usual width?** Take $K=512$ and batches of 250. Time a
# few updates and extrapolate: 50,000 rows are 200 updates, one epoch of ImageNet is 5,125. We measure the time of one
# processor core, so that other work of the machine does not matter. Most of the work is in the nets, which may run in
# bfloat16; the log-determinants stay in full precision. `FeatureFlow(autocast="auto")` does so where the processor is
# faster in bfloat16; one that lacks it would emulate it, several times as slowly.

# %% tags=["hide-input"]
import time


def cost(flow, autocast=False, few=2):
    """Millions of weights; ms an update, s for 50,000 rows, minutes for 5,125 updates."""
    made_up = torch.randn(250 * (few + 1), 512)
    training = FlowTraining(flow, made_up, noise=0.1, autocast=autocast)
    training.run(1)  # the first one also allocates memory
    start = time.process_time()
    training.run(few)
    each = (time.process_time() - start) / few
    weights = sum(p.numel() for p in flow.parameters())
    return weights / 1e6, 1000 * each, 200 * each, 5125 * each / 60


# %% tags=["hide-input"]
costs = {
    "this book's flow": cost(coupling_flow(512, whiten=True)),
    "the paper's flow, without weights times zero": cost(glow(512)),
}
saves = "This processor is not faster in half precision, so all nets ran in float32. "
if ood.half_precision("cpu"):
    costs["this book's flow, nets in bfloat16"] = cost(coupling_flow(512, whiten=True), autocast="auto")
    gain = costs["this book's flow"][1] / costs["this book's flow, nets in bfloat16"][1]
    saves = f"Half precision makes an update {gain:.1f} times as fast here; that depends on the processor. "
columns = ["weights (millions)", "ms per update", "s for 50,000 rows", "min for 5,125 updates"]
cost_table = pd.DataFrame(costs, columns).T
caption = "K = 512, time of one core of the processor that made this page"
display(cost_table.style.format("{:.1f}").format("{:.0f}", columns[1:3]).set_caption(caption))
display(Markdown(
    f"One pass over 50,000 rows takes about **{cost_table.iloc[0][columns[2]]:.0f} s** of one core, extrapolated from two updates. "
    f"{saves}[Large data](../book/scale) compares `log_prob` and a training step with the packages zuko and normflows."
))  # fmt: skip

# %% [markdown]
# ## 7. When it fails
#
# **Which images does the flow get wrong?** Look at the near-OOD images with the lowest scores, and at the ID images
# with the highest.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Above: the near-OOD images with the lowest scores, which the flow takes for ID. Below: the ID test images with the highest scores. Titles: the class that the network predicts.", "name": "fig-flow-failures"}, "image": {"alt": "Two rows of ten small pictures. The upper row shows near-OOD images, each titled with the known class that the network predicts. The lower row shows ID test images, several of them with unusual shapes."}}
rows = {"near": (P.images.near[near_P], P.near[near_P], False), "id": (P.images.test, P.test, True)}
figure, axes = plt.subplots(2, 10, figsize=(plots.FULL, 1.9))
for line, (role, (pictures, x, largest)) in zip(axes, rows.items()):
    order = flow_P.score(x).argsort(descending=largest)[:10].tolist()
    for ax, index in zip(line, order):
        ax.imshow(np.asarray(pictures[index][0]).transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
        ax.set_title(str(P.images.classes[x.logits[index].argmax()]), fontsize=8, color=plots.COLORS[role])
        ax.axis("off")
plt.show()

# %% tags=["hide-input"]
threshold = flow.calibrate(F1.val).threshold.item()
missed = (flow.score(F1.near[near]) <= threshold).double().mean().item()
test_scores = flow.score(F1.test)
heads_agree = (F1.near[near].logits.softmax(1).amax(1) > 0.99).double().mean().item()
display(Markdown(
    f"With the threshold that accepts 95 % of the ID validation images, {100 * missed:.0f} % of {near} are accepted, and "
    f"{100 * (test_scores > threshold).double().mean().item():.0f} % of the ID test images are rejected. The network itself assigns "
    f"a known class with more than 99 % confidence to {100 * heads_agree:.0f} % of {near}."
))  # fmt: skip

# %% [markdown]
# If the network maps an OOD image to where ID features lie, no density of features can distinguish it from them. That
# is a failure of the *representation*. The flow has failures of its own:
#
# * **Few rows.** The flow has many more weights than this page has training images. Noise and held-out rows limit
#   overfitting; section 3 shows how far training and held-out likelihood diverge without noise.
# * **Bridges.** Between islands the density stays positive. Classes in the base may reduce the bridges, but need
#   labels; section 1.2 shows by how much on the toy, and section 5 shows the effect on features.
# * **Coordinates.** Scores are nats per feature vector. They cannot be compared between networks, and bits per
#   dimension would have no meaning either: scale the features by $c$ and every value changes by $K\log c$.
# * **No closed form.** A Gaussian can be fitted in one pass and merged across machines; a flow has to be trained, with
#   a seed and a stopping rule. Where a Gaussian already reaches an AUROC of 100, keep the Gaussian.
#
# The last test comes from the WeiPer chapter: replace the part of a feature that the {term}`head` does not read, and
# keep logits and length. Every score on logits is blind to this change. Is the flow?

# %% tags=["hide-input"]
z, W = F1.test.penultimate, heads[0].weight.detach()
inside = z @ torch.linalg.pinv(W) @ W  # what the head reads
rest = z - inside
swapped = rest[torch.randperm(len(z), generator=generator)]  # another image's null part
borrowed = inside + F.normalize(swapped, dim=1) * rest.norm(dim=1, keepdim=True)
forged = ood.Features(borrowed, heads[0](borrowed).detach())
judges = {"Energy": ood.Energy(), "Mahalanobis": ood.Mahalanobis(), "KNN": ood.KNN(k=10)}
judges = {name: d.fit(F1.train) for name, d in judges.items()} | {"Flow": flow}
caught = {n: metrics.auroc(d.score(F1.test), d.score(forged))[0] for n, d in judges.items()}
print("AUROC in %:", {n: round(100 * v, 1) for n, v in caught.items()})

# %% [markdown]
# Detectors that read the whole feature, such as the flow and the distances, can detect the change; scores on logits
# cannot.

# %% [markdown]
# ### Quiz
#
# Answer before you open: every choice is explained, the wrong ones too.
#
# **1. Before any training, a flow with whitening and couplings that start at zero gives which score?**
#
# <details><summary>A. Noise: an untrained network contains no information about the data.</summary>
#
# **No.** The last layers start at zero, so every coupling is the identity. Only the whitening remains, and it was
# computed from the data.
#
# </details>
#
# <details><summary>B. A Mahalanobis distance, up to a factor and a constant.</summary>
#
# **Right.** With $u=A(z-\mu)$ and $A^\top A=\Sigma^{-1}$ the boxed formula leaves half the squared distance.
# Training starts from there.
#
# </details>
#
# <details><summary>C. The distance to the nearest training feature.</summary>
#
# **No.** No training feature is stored. One mean and one covariance do not contain the positions of single points.
#
# </details>
#
# **2. A coupling uses networks s and t of any kind. Why is its determinant cheap nevertheless?**
#
# <details><summary>A. The networks are small.</summary>
#
# **No.** They may be of any size. Their derivatives are in the off-diagonal block of a triangular matrix and do not
# enter the determinant.
#
# </details>
#
# <details><summary>B. The networks s and t are invertible.</summary>
#
# **No.** They need not be, because they are never inverted. The half $a$ that they read is passed on unchanged.
#
# </details>
#
# <details><summary>C. The determinant is estimated from random directions.</summary>
#
# **No.** Here it is exact, the sum $-\sum_j s_j(a)$. Other kinds of flow use estimates.
#
# </details>
#
# <details><summary>D. The Jacobian is triangular, so only its diagonal counts.</summary>
#
# **Right.** $a$ stays, and each $b_j$ is scaled by $e^{-s_j(a)}$. The costly derivatives lie off the diagonal.
#
# </details>
#
# **3. Trained on features of length one without noise, a flow gains likelihood for as long as you train. What does
# that show?**
#
# <details><summary>A. That it shrinks the direction across the sphere, a gain without a ceiling.</summary>
#
# **Right.** A sphere has no volume in $\mathbb R^K$. Shrinking across it by $\varepsilon$ gives every point
# $-\log\varepsilon$, and says nothing about OOD images.
#
# </details>
#
# <details><summary>B. That it keeps learning the shape of the data, so longer training detects better.</summary>
#
# **No.** The likelihood measures how far the shrinking went. There is no reason why detection should improve with it.
#
# </details>
#
# <details><summary>C. That it overfits: held-out likelihood must fall meanwhile.</summary>
#
# **No.** Held-out features lie on the same sphere and would gain from the same shrinking. Overfitting is another
# effect; where it comes on top, as in section 3, it may eat up the gain.
#
# </details>
#
# **4. In many dimensions the most likely point of the base Gaussian is its origin. Are typical ID features found
# there?**
#
# <details><summary>A. Yes, the highest density is where most points are.</summary>
#
# **No.** The mass is density times volume. Close to the origin there is hardly any volume, so hardly any point lies
# near it.
#
# </details>
#
# <details><summary>B. Only if the flow has not been trained long enough.</summary>
#
# **No.** It is the other way round: the better the fit, the closer $\lVert u\rVert^2$ follows its $\chi^2_K$
# distribution, which has hardly any mass near zero.
#
# </details>
#
# <details><summary>C. No: they lie in a shell, and a bland OOD image can be likelier than all of them.</summary>
#
# **Right.** $\lVert u\rVert^2$ has mean $K$ and deviation $\sqrt{2K}$. A point that maps nearer to the origin gets
# a higher density than real data.
#
# </details>
#
# **5. A flow on pixels ranks some OOD images as very likely, the same flow on features does not. What made the
# difference?**
#
# <details><summary>A. The flow on features is a better density estimator.</summary>
#
# **No.** It is the same kind of energy. A perfect density of pixels could rank bland images as likely too.
#
# </details>
#
# <details><summary>B. The representation: a density depends on the coordinates.</summary>
#
# **Right.** An invertible change of variables changes $\log p$ by $\log\lvert\det J_g\rvert$, point by point. The
# network, which is not even invertible, gives coordinates that were trained on classes.
#
# </details>
#
# <details><summary>C. Pixels have more dimensions, and likelihood always fails there.</summary>
#
# **No.** The dimension alone does not decide: far sets can be easy in pixels. What matters is which images are likely
# there.
#
# </details>
#
# <details><summary>D. The features were trained with some of the OOD images.</summary>
#
# **No.** No OOD image is used in training. The network has only learned to separate the known classes.
#
# </details>

# %% [markdown]
# ## 8. Exercises
#
# Each exercise has a hint and a check. The check says whether your answer is right and, if not, what is wrong.

# %% [markdown]
# ```{exercise-start} Predict: other units
# :label: ex-flow-units
# ```
# A colleague measures features in other units: all of them times 1000. You fit both flows without normalising the
# length. By how many nats does the mean log-density of her $K$-dimensional features differ from yours?
# *Hint: which linear map is it, and what is its determinant?*

# %% tags=["exercise"]
difference = ...  # in nats, hers minus yours

# %% tags=["check", "hide-input"]
def measured():
    """Mean log-density of an untrained flow, hers minus yours."""
    units = [ood.Features(c * F1.train.penultimate) for c in (1000, 1)]
    hers, yours = (ood.FeatureFlow(normalize=False, updates=0).fit(x).usual for x in units)
    return (hers - yours).item()


check_units = ood.Check(
    (lambda a: a < 0, "stretching thins the density out: hers is smaller"),
    (lambda a: abs(a) > 7, "that is one dimension; there are K of them"),
    (lambda a: abs(a / measured() - 1) < 0.01, "z → cz has determinant c to the K"),
)
check_units(difference)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-flow-units
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the factor of one dimension.
difference = -math.log(1000)
check_units(difference)

# %% tags=["solution"]
difference = -K * math.log(1000)
print(f"derived {difference:.1f}, measured {measured():.1f} nats")
check_units(difference)

# %% [markdown]
# The difference is $-K\log 1000$. For the same images the two log-densities differ by hundreds of nats, and not one
# decision changes.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Compute: the inverse of a coupling
# :label: ex-flow-inverse
# ```
# Undo the function `couple` of section 2.2 by hand: write `uncouple(y)` with the same net, so that `uncouple(couple(z)[0])`
# is `z`. *Hint: $a$ is still in $y$.*

# %% tags=["exercise"]
uncouple = ...  # y (N, K) -> z (N, K)

# %% tags=["check", "hide-input"]
def error_of(undo):
    """The largest error behind `couple`, on fresh features."""
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))
    return (undo(couple(z)[0]) - z).abs().max().item()


check_uncouple = ood.Check(
    (callable, "a function of y"),
    (lambda undo: error_of(undo) < 1e-3, "s, t come from the half that stayed; b = y_b exp(s) + t"),
)
check_uncouple(uncouple)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-flow-inverse
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: run the layer a second time.
def uncouple(y):
    return couple(y)[0]


check_uncouple(uncouple)

# %% tags=["solution"]
@torch.no_grad()
def uncouple(y):
    a, y_b = y.chunk(2, dim=1)
    s, t = layer.nets[0](a).chunk(2, dim=1)
    return torch.cat([a, y_b * torch.exp(s) + t], 1)


print(f"largest error {error_of(uncouple):.1e}")
check_uncouple(uncouple)

# %% [markdown]
# In both directions the net is only evaluated forwards. That is why it may be any network.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Change one parameter: the noise
# :label: ex-flow-noise
# ```
# Give the untrained flow more and more noise on the first network. Find a `noise` with which its near-OOD AUROC is two
# points lower than without noise, and store it. Noise helps to train a flow: why does it hurt this untrained Gaussian?
# *Hint: what does $\Sigma+\sigma^2I$ do to the directions in which the features hardly vary?*

# %% tags=["exercise"]
too_much = ...

# %% tags=["check", "hide-input"]
def near_auroc(blur):
    detector = ood.FeatureFlow(updates=0, noise=blur).fit(F1.train)
    return ood.group_auroc(detector, F1)["near"]


check_noise = ood.Check(
    (lambda a: a > 0, "the noise must be positive"),
    (lambda a: near_auroc(a) < near_auroc(0.0) - 0.02, "not two points yet: try values above 0.3"),
)
check_noise(too_much)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-flow-noise
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: any noise hurts, so a tiny amount is enough.
too_much = 0.001
check_noise(too_much)

# %% tags=["solution"]
steps = 0.3, 0.5, 1.0, 2.0, 5.0, 20.0
without = near_auroc(0.0)
too_much = next(blur for blur in steps if near_auroc(blur) < without - 0.02)
limit = near_auroc(1000.0)
print(f"noise {too_much:g}: {near_auroc(too_much):.3f}; in the limit {limit:.3f}")
check_noise(too_much)

# %% [markdown]
# Near-OOD features differ in the narrow directions of the training features, and noise widens exactly these. In the
# limit $\Sigma$ is a multiple of $I$, and the score is only the distance to the mean. An AUROC below 0.5 there means
# that near-OOD features lie *closer* to the mean than ID features do.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Derive the ceiling of a sphere
# :label: ex-flow-ceiling
# ```
# Section 2.5 gives the ceiling for a circle. Derive it for a $d$-dimensional surface of area $A$ in $K$ dimensions,
# blurred
# by a small $\sigma$, and store its value for the unit sphere in three dimensions ($d=2$) with $\sigma=0.05$.
# *Hint: near the surface the blurred density is uniform along it and Gaussian across it; entropies of independent parts
# add.*

# %% tags=["exercise"]
ceiling = ...

# %% tags=["check", "hide-input"]
def exact():
    """By simulation: the density of a blurred sphere is an integral over the angle that can be solved."""
    draw = torch.Generator().manual_seed(seed)
    ball = F.normalize(torch.randn(20_000, 3, generator=draw), dim=1)
    r = (ball + 0.05 * torch.randn(ball.shape, generator=draw)).norm(dim=1)
    density = -((r - 1) ** 2) / (2 * 0.05**2) - torch.log(4 * math.pi * r)
    return (density - 0.5 * math.log(2 * math.pi * 0.05**2)).mean().item()


check_ceiling = ood.Check(
    (lambda a: abs(a - exact() - math.log(2)) > 0.02, "a circle; a sphere has area 4π"),
    (lambda a: abs(a - exact()) < 0.02, "one direction is across: K − d = 1"),
)
check_ceiling(ceiling)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-flow-ceiling
# :class: dropdown
# ```
# Along the surface the entropy is $\log A$, across it that of $K-d$ independent normals,
# $\frac{K-d}2\log(2\pi e\sigma^2)$. The ceiling is minus their sum. The unit sphere has $A=4\pi$.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the ceiling of the circle.
ceiling = -math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * 0.05**2)
check_ceiling(ceiling)

# %% tags=["solution"]
ceiling = -math.log(4 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * 0.05**2)
check_ceiling(ceiling)

# %% [markdown]
# In general $-\log A-\frac{K-d}{2}\log(2\pi e\sigma^2)$: it grows by $-\log\sigma$ for each missing direction.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Reverse the order
# :label: ex-flow-ruler
# ```
# Two points, $z_1=0$ and $z_2=1$, under a standard normal: $z_1$ is likelier. Find an increasing map $g$ of the line
# such that under the density of $y=g(z)$ the image of $z_2$ is likelier. Try $g(z)=z+c\,z^3$ first: why does it fail
# for every $c>0$? Store the derivative $g'$ of your map, a function of a number. The map loses no information: what
# does that mean for "OOD = unlikely"? *Hint: $\log p_y(g(z)) = \log p_z(z) - \log g'(z)$; you want $g'$ large where the
# density was high.*

# %% tags=["exercise"]
slope = ...  # z -> g'(z)

# %% tags=["check", "hide-input"]
def advantage(slope):
    """By how much z₁ is the likelier of the two, log p_y(g(0)) − log p_y(g(1))."""
    return 0.5 - math.log(slope(0.0)) + math.log(slope(1.0))


check_order = ood.Check(
    (lambda s: all(s(z / 10) > 0 for z in range(-50, 51)), "an increasing g has g' > 0 everywhere"),
    (lambda s: advantage(s) < 0, "z₁ is still likelier: choose g with g'(0) > e^{1/2} g'(1)"),
)
check_order(slope)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-flow-ruler
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the cubic with c = 1 stretches the outside, which makes the outside less likely still.
def slope(z, c=1.0):
    return 1 + 3 * c * z**2


check_order(slope)

# %% tags=["solution"]
def slope(z, c=5.0):  # g = z + c tanh(z)
    return 1 + c / math.cosh(z) ** 2


print(f"log p_y(g(0)) − log p_y(g(1)) = {advantage(slope):.2f}")
check_order(slope)

# %% [markdown]
# With $g(z)=z+5\tanh z$ the middle is stretched six-fold and thinned out. (The cubic leaves the middle as it is,
# $g'(0)=1$, and stretches the outside, so it widens the gap.) A density ranks points *in given coordinates*. The right
# coordinates have to come from elsewhere: here, from a network trained to tell classes apart.
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Open: several networks, one score
# :label: ex-flow-ensemble
# ```
# Each network gives its own coordinates, and the flows on them disagree. From the flows of *all* networks, build a
# score that is better on near-OOD than the flow of the first one. `fitted[n]["Flow"]` is the flow of network `n`,
# `features[n]` its features. Store a dictionary with the scores of the ID test images under `"id"` and those of each
# near set under its name. Note that nats of different networks cannot be added as they are. *Hint: bring the scores to
# a common scale with ID validation features only.*

# %% tags=["exercise"]
together = ...

# %% tags=["check", "hide-input"]
def near_of(scores):
    """Mean AUROC over the near sets."""
    return np.mean([metrics.auroc(scores["id"], scores[n])[0] for n in F1.near])


def alone():
    """The scores of the first flow, in the form that is asked for."""
    return {n: flow.score(x) for n, x in ({"id": F1.test} | F1.near).items()}


check_together = ood.Check(
    (lambda s: all(len(s[n]) == len(x) for n, x in alone().items()),
     f"scores of all images of {', '.join(['id', *F1.near])}, under these names"),
    (lambda s: near_of(s) > near_of(alone()), "not above one network: standardise, then average"),
)  # fmt: skip
check_together(together)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-flow-ensemble
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the flow of the first network is good enough.
together = alone()
check_together(together)

# %% tags=["solution"]
def standardised(detector, f):
    centre, width = detector.score(f.val).mean(), detector.score(f.val).std()
    sets = {"id": f.test} | f.near
    return {n: (detector.score(x) - centre) / width for n, x in sets.items()}


votes = [standardised(d["Flow"], f) for d, f in zip(fitted, features)]
together = {n: torch.stack([vote[n] for vote in votes]).mean(0) for n in votes[0]}
print(f"all networks ({len(votes)}) {near_of(together):.4f}")
print(f"the first alone {near_of(alone()):.4f}")
check_together(together)

# %% [markdown]
# Where one network maps an OOD image into a class, another may not. Did the average beat the first network in your run?
# ```{solution-end}
# ```

# %% [markdown]
# ## 9. Take away
#
# * A flow is an invertible map with a cheap Jacobian. Its density is exact, and it starts as a Gaussian.
# * So a feature flow is a Mahalanobis distance that is trained further. Section 5 measures, with intervals, whether the
#   training helps.
# * On a sphere the likelihood has no upper bound. Noise gives it one. Section 3 measures whether longer training is
#   then still harmful.
# * Bland images can be too likely under a density on pixels; the same kind of density on features can detect them. The
#   representation makes the difference.
# * A flow needs no labels. It cannot separate images that the network maps to the same features.
#
# **In the library:** {py:class}`~ood_lib.detectors.flow.feature_flow.FeatureFlow`, the layers in
# {py:mod}`ood_lib.detectors.flow.bijections`, the flow in
# {py:mod}`ood_lib.detectors.flow.flow`, its training in {py:mod}`ood_lib.detectors.flow.training`.
# `FeatureFlow(flow=...)` takes any module with
# `log_prob`, a flow of the package `zuko` for instance.
#
# **Read on:** the paper {cite:p}`cook2024flow`; a review of flows {cite:p}`papamakarios2021flows`; why they fail on
# images {cite:p}`kirichenko2020why`; a flow that starts from the Gaussian, class by class
# {cite:p}`zisselman2020residual`.

# %% tags=["hide-input"]
# What other pages show of this run: one small table, all numbers.
if results:
    table.to_csv(Path(results) / "benchmark.csv", index=False)
    kept = {tuple(claim.split(", minus ")): found for claim, found in claims.items()}
    ood.save_verdicts(Path(results) / "flow.json", kept, origin=ood.provenance())
    (Path(results) / "summary.md").write_text(plots.markdown_table(summary))

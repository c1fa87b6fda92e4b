# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Audit your network
#
# Give this page your trained classifier and a folder of its pictures: it says which {term}`detector` to take, what its
# {term}`threshold` promises, and whether it warns before the network is wrong.

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
# **The claim**: a detector that is chosen on some OOD images of a network is a good one for that network on other OOD images. Section 11
# counts how often.
#
# <!-- made by ood-book sync -->
# **It takes** 14 minutes to read, without exercises and what is folded, and 2 minutes to run. No GPU, no download.
# <!-- end -->
#
# **Use** this page before you put a network to work, and again when you train it anew.
#
# **Do not** take its recommendation for OOD images of a kind that you did not give it, and do not expect its threshold to hold when the ID
# images themselves change.
# ```
#
# ```{admonition} Before you start
# :class: dropdown
# **You will learn** which detector to take for *your* network, what its threshold promises, whether it warns before the network is
# wrong, and what to put beside your weights. The page runs on your network and your folder of pictures with one command.
#
# **You need** a trained classifier and the pictures it was trained on; OOD pictures if you have any. To read it, [the first
# chapter](05_protocol).
# ```
#
# These are the parameters of the page. For your own network and pictures pass them on the command line:
#
# ```bash
# ood-book run audit -p benchmark folder:pictures \
#   -p model torchvision:resnet50 -p weights model.pt
# ```
#
# The folder is laid out as on [Bring your own data and model](../book/own-data). A model is `torchvision:NAME`, `timm:NAME`,
# `hf:NAME` for an image classifier of Hugging Face, `package.module:function` for your own function that returns the network, or
# the name of a network that comes with the library, `cifar10-resnet9`. A {term}`bank` needs no model: `-p benchmark
# cifar10-densenet`, or `bank:PATH`.

# %% tags=["parameters", "hide-input"]
benchmark: str = "digits"  # folder:PATH of your pictures; or a bank: features alone
model: str = ""  # torchvision:, timm:, hf:NAME, module:function; empty: trained here
weights: str = ""  # file with its weights, or default: those that its source publishes
image_size: int = 0  # pixels; 0: what the network or the pictures say
images: int = 5000  # look at so many images of a set at most; 0: all
tpr: float = 0.95  # share of ID images that the threshold is to accept
margin: float = 0.05  # share of the network's pass below which a detector costs nothing
device: str = "auto"  # where networks run: auto, cpu, cuda
epochs: int = 6  # of training, where the network is trained here
seed: int = 0  # of that training, and of the halves in sections 4 and 11
benchmarks: list = [
    "cifar10-resnet9", "cifar10-densenet", "cifar10-resnet56", "cifar100-densenet",
]  # banks on which section 11 tests the recommendation
bank_rows: int = 0  # use only so many features of each set of a bank; 0: all
results: str = ""  # folder for the detector and the tables; empty: do not write

# %% tags=["hide-input"]
import html
import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy import optimize, stats

import ood_lib as ood
from ood_lib import shipped
from ood_lib.data.images import ImageArray, ImageFiles
from ood_lib.evaluation import plots
from ood_lib.evaluation.metrics import as_percent, mean_interval
from ood_lib.features.fewer import balanced_rows

# %% tags=["hide-input"]
torch.manual_seed(seed)
plots.theme()


def say(text):
    display(Markdown(text))


def share(k, n):
    """A share of n images and its 95 % interval (Clopper and Pearson)."""
    found = stats.binomtest(int(k), int(n)).proportion_ci()
    return k / n, found.low, found.high


def percent(k, n):
    return f"{as_percent(*share(k, n))} %"


def listed(names, most=6):
    names = [str(name) for name in names]
    rest = f" and {len(names) - most} more" if names[most:] else ""
    return ", ".join(names[:most]) + rest if names else "none"


def cells(rows, caption):
    table = pd.DataFrame(rows).T if isinstance(rows, dict) else rows
    display(table.style.set_caption(caption))


is_bank = shipped.is_bank(benchmark)
folder = tempfile.TemporaryDirectory(prefix="audit-")  # is removed with the kernel
place = Path(folder.name)

# %% [markdown]
# ## Pictures and network
#
# ### The pictures
#
# **Where do the pictures of this page come from?** The library ships features of photographs, but no photographs. The default run therefore
# uses the handwritten digits of scikit-learn, 8 × 8 pixels. The digits 0 to 6 are known, and 7 to 9 are near-OOD. Patches of photographs,
# noise, and changed digits are far-OOD. They are written as PNG files, so that the page reads a folder as it would read yours.

# %%
def write_pictures(bench, root):
    """The folder that a reader would have: ROLE/CLASS/NUMBER.png, GROUP/SET/NUMBER.png."""
    from PIL import Image

    roles = {role: getattr(bench, role) for role in ("train", "val", "test")}
    sets = [(g, n, x) for g in ("near", "far") for n, x in getattr(bench, g).items()]
    roles |= {f"{group}/{name}": data for group, name, data in sets}
    for role, data in roles.items():
        pixels = (255 * data.images[:, 0]).round().byte().numpy()
        for i, (picture, label) in enumerate(zip(pixels, data.labels.tolist())):
            file = root / role / ("" if label < 0 else str(label)) / f"{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)


if benchmark == "digits":
    write_pictures(ood.load_benchmark("digits"), place / "pictures")

# %% [markdown]
# ### The network
#
# **What does the page need of a network?** It must map images to {term}`logits <logit>` and end in a linear layer. Without the parameter
# `model`, the page trains a network in seconds. It stops after a few epochs, so that there are errors to examine. It is plain PyTorch
# in a file of its own and does not use the library, so it stands for your network.

# %%
CODE = """from torch import nn


def small(classes={classes}, channels={channels}):
    def step(fan_in, width, stride):
        convolution = nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(width), nn.ReLU()]

    steps = [*step(channels, 8, 1), *step(8, 16, 2), *step(16, 32, 2)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)]
    return nn.Sequential(nn.BatchNorm2d(channels), *steps, *end)
"""

# %% tags=["hide-input"]
def train_here(bench, place):
    """Write small_network.py and model.pt, as they might lie on your disk."""
    text = CODE.format(classes=len(bench.classes), channels=bench.image_shape[0])
    (place / "small_network.py").write_text(text, encoding="utf-8")
    space = {}
    exec(text, space)
    network = space["small"]()
    several = bench.train.labels.ndim == 2
    train = ood.train_multilabel if several else ood.train_classifier
    train(network, bench.train, epochs=epochs, learning_rate=0.01 if several else 0.05, seed=seed, device=device, progress=False)
    torch.save(network.cpu().state_dict(), place / "model.pt")
    return "small_network:small", str(place / "model.pt")


where = f"folder:{place / 'pictures'}" if benchmark == "digits" else benchmark
bench, network, spec, file = None, None, model, weights
sys.path[:0] = [str(place), os.environ.get("OOD_FOLDER", ".")]  # where your own module may lie
if not is_bank and not model:
    bench = ood.load_benchmark(where, image_size=image_size or None)
    spec, file = train_here(bench, place)
if not is_bank:
    network = ood.load_network(spec, weights=file or None)

# %% tags=["hide-input"]
def framed(where, card):
    """The folder in the size and crop of the network's card; the classes in the order of its outputs."""
    frame = card.frame
    asked = {"image_size": image_size or None} if image_size or not frame else {
        "image_size": frame.size, "resize": frame.resize or None, "channels": frame.channels
    }  # fmt: skip
    bench = ood.load_benchmark(where, **asked)
    roles = [bench.train, bench.val, bench.test]
    if card.classes and set(card.classes) == set(bench.classes) and bench.train.labels.ndim == 1:
        order = torch.tensor([card.classes.index(name) for name in bench.classes])
        for data in roles:
            data.labels = order[data.labels]
        bench = replace(bench, classes=card.classes)
    if frame and frame.stretch and not image_size:
        for data in [*roles, *bench.near.values(), *bench.far.values()]:
            data.frame = frame
    return bench


def smoke_test(bench):
    """Two sets that no network should take for its own, where the folder has no OOD set."""
    photos = ood.load_benchmark("scenes").far["photos"].images[:200]
    noise = torch.rand(200, *bench.image_shape, generator=torch.Generator().manual_seed(seed))
    return {name: ImageArray(x, frame=bench.test.frame) for name, x in (("photos", photos), ("noise", noise))}

# %% tags=["hide-input"]
def some(data):
    """At most `images` of a set, the same number of each class."""
    several = data.labels.ndim == 2
    rows = balanced_rows(torch.zeros(len(data)) if several else data.labels, images or len(data), seed)
    return data.subset(rows)


has_ood = True
if is_bank:
    x = ood.benchmark_features(benchmark)[0]
else:
    bench = framed(where, network.card)
    has_ood = bool(bench.near or bench.far)
    if not has_ood:
        bench = replace(bench, far=smoke_test(bench))
    near, far = ({n: some(data) for n, data in sets.items()} for sets in (bench.near, bench.far))
    bench = replace(bench, train=some(bench.train), val=some(bench.val), test=some(bench.test), near=near, far=far)
    x = ood.extract_benchmark(network, bench, device=device, progress=False)
several = x.test.labels.ndim == 2
known = x.test.labels
if x.head is not None and x.head.out_features != len(x.classes or x.head.weight):
    raise ValueError(
        f"the network has {x.head.out_features} outputs and the folder {len(x.classes)} classes; expected as many "
        "outputs as there are folders in train/: give the weights of the network that was trained on this folder"
    )

# %% [markdown]
# ## 1. What is this network?

# %% tags=["hide-input"]
def decided(network):
    """What `adapt` took for the head, and why."""
    if network is None:
        return "the bank holds the head" if x.head is not None else "the bank holds no head: features only"
    if not hasattr(network, "model"):
        return "the network answers `represent` by itself, so nothing had to be found"
    names = [n for n, m in network.model.named_modules() if m is network.head]
    if network.head is None:
        return "there is no head: what the model returns is the feature, and no detector that needs logits is used"
    if not names:
        return "the output is the mean of several linear layers, which were taken together as one"
    return f"{names[0]}, the last linear layer: what it makes is what the network returns, compared on every image"


width = x.test.penultimate.shape[1]
parameters = sum(p.numel() for p in network.parameters()) if network is not None else None
facts = {
    "network": spec or x.name, "weights": "trained on this page" if file and not weights else Path(weights).name or x.about.get("weights", "as shipped"),
    "parameters": f"{parameters:,}" if parameters else "not in a bank",
    "head": decided(network), "feature width K": f"{width:,}", "outputs": len(x.classes) or x.test.logits.shape[1],
    "image": str(bench.image_shape) if bench else "not in a bank",
    "ID images, train / val / test": f"{len(x.train):,} / {len(x.val):,} / {len(x.test):,}",
    "OOD sets": "; ".join(f"{g}: {', '.join(f'{n} ({len(f):,})' for n, f in sets.items())}" for g, sets in x.groups().items() if sets),
    "notes": "; ".join(x.notes).replace(str(place) + os.sep, "") or "none",
}
if not has_ood:
    facts["OOD sets"] += " (bundled: the folder has none. They show that everything runs, and nothing about your OOD images)"

# %% tags=["hide-input"]
fault = ""  # why nothing below can be trusted
if several:
    right, answer, chance = None, None, known.double().mean(0).mean().item()
    quality = ood.average_precision(x.test.logits, known).mean().item()
    verdict = f"Mean average precision **{quality:.3f}**; a network that knows nothing has about {chance:.3f}."
elif x.test.logits is None:
    right, answer, quality, verdict = None, None, None, "The network has no head, so it names no class and has no accuracy."
else:
    answer = x.test.logits.argmax(1)
    right, chance = answer == known, known.bincount().max().item() / len(known)
    quality = right.double().mean().item()
    verdict = f"The network is right on **{percent(right.sum(), len(right))}** of the ID test images; always naming one class gives {100 * chance:.1f} %."
    confusion = np.zeros((x.test.logits.shape[1],) * 2)  # of the validation images: which output answers to which class
    np.add.at(confusion, (x.val.labels.numpy(), x.val.logits.argmax(1).numpy()), 1)
    matched = (torch.tensor(optimize.linear_sum_assignment(-confusion)[1])[known] == answer).double().mean().item()
    if matched > max(quality + 0.1, 2 * chance):
        fault = "the classes are not in the order of the folders"
        verdict += f" With its outputs in another order it would be {100 * matched:.1f} %: **{fault}**; stop here, and mend that first."
    elif quality < 2 * chance:
        fault = "that is too close to chance"
        verdict += f" **{fault.capitalize()}**: the pictures are not prepared as in training, or these are not its weights; stop here, and mend that first."
say(verdict)
display(pd.Series(facts, name="").to_frame().style.set_caption("The network and what it is shown"))

# %% [markdown]
# Compare the accuracy with the one that you know from your training. If it does not agree, every score below would be wrong without
# an error message: [the page on own data](../book/own-data) has the remedies.
#
# ## 2. Is it as often right as it says?
#
# **Where should the points lie?** A network that says *90 % sure* should be right nine times in ten. The images
# are sorted by the largest softmax probability and divided into bins of equally many; the expected calibration error (ECE) is the mean
# distance of accuracy and confidence over these bins {cite:p}`guo2017calibration`. It is above zero for a calibrated network too, so it
# is compared with the one that such a network would have by chance.

# %% tags=["hide-input"]
calibration = None if right is None else ood.reliability(x.test.logits, known, seed=seed)
if calibration is None:
    say("An image has several labels, or the network has no logits: there is no single confidence to compare.")
else:
    ends = f"ECE **{100 * calibration.ece:.1f} [{100 * calibration.low:.1f}, {100 * calibration.high:.1f}] points**; a calibrated network would show up to {100 * calibration.chance:.1f}"
    say({
        "calibrated": f"Nothing says that the network is not calibrated: {ends}.",
        "over-confident": f"The network is **over-confident**, its confidence is {100 * calibration.gap:.1f} points above its accuracy: {ends}.",
        "under-confident": f"The network is **under-confident**, its confidence is {-100 * calibration.gap:.1f} points below its accuracy: {ends}.",
    }[calibration.word])  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Confidence against accuracy on the ID test images, in bins of equally many; on the line the network is as often right as it says. Bars are 95 % intervals.", "name": "fig-audit-reliability"}, "image": {"alt": "Reliability picture. Mean confidence of a bin on the horizontal axis, share of right answers on the vertical axis with bars for its interval, and a diagonal line. In a bin below the line the network is over-confident: its confidence is larger than its accuracy."}}
if calibration is not None:
    hits = [share(round(a * n), n) for a, n in zip(calibration.accuracy.tolist(), calibration.images.tolist())]
    value, low, high = map(np.array, zip(*hits))
    figure, ax = plt.subplots(figsize=(plots.HALF, plots.HALF))
    start = min(calibration.confidence.min().item(), low.min()) - 0.02
    ax.plot([start, 1], [start, 1], color=plots.COLORS["grey"], lw=1, ls=":")
    ax.errorbar(calibration.confidence, value, [value - low, high - value], fmt=plots.MARKERS["id"], color=plots.COLORS["id"], ms=5, lw=1.2)
    ax.set(xlabel="mean confidence of the bin", ylabel="share of right answers")
    plt.show()

# %% tags=["hide-input"]
def calibrated():
    """What remains of the error once the logits are divided by a temperature, as a sentence."""
    try:
        temperature = ood.fit_temperature(x.val.logits, x.val.labels)
    except ValueError:  # the labels of the validation images get no larger logits than the other classes
        return "No temperature makes it honest: on the validation images it gives the right class no larger logit than the others."
    after = ood.reliability(x.test.logits / temperature, known, seed=seed)
    change = "which chance explains" if after.word == "calibrated" else f"where chance makes up to {100 * after.chance:.1f}"
    return (
        f"Dividing the logits by the temperature {temperature:.2f}, found on the validation images, leaves an ECE of "
        f"{100 * after.ece:.1f} [{100 * after.low:.1f}, {100 * after.high:.1f}] points, {change}. It changes no answer."
    )


if calibration is not None and calibration.word != "calibrated":
    say(calibrated())

# %% [markdown]
# Calibration is about ID images. It does not tell whether the network is less sure of OOD images: that is the next question.
#
# ## 3. Which detectors find which images?
#
# These are all detectors of the book that are fitted in seconds and find in this network what they need, with their published settings. Nothing is
# tuned. ODIN is left out, because it needs a gradient for each image.

# %%
def detectors_for(x):
    """Detectors that fit the model: of several labels, without a head, or a classifier."""
    features = {"KNN": ood.KNN(min(50, max(1, len(x.train) // 5)))}
    if x.train.labels.ndim == 2:
        sums = {"SumLogit": ood.SumLogit(), "SumProb": ood.SumProb()}
        own = {"JointEnergy": ood.JointEnergy(), "MaxLogit": ood.MaxLogit()}
        return own | sums | features
    features |= {"GMM": ood.GMM(), "GMM, length 1": ood.GMMPrior()}
    if x.head is None:
        return features | {"Mahalanobis": ood.Mahalanobis(), "RMDS": ood.RMDS()}
    own = ood.classical_detectors(x.head, x.train)
    own["WeiPer+KLD"] = ood.WeiPer(x.head, repeats=None)
    return own | {"GMM, length 1": ood.GMMPrior()}

# %% tags=["hide-input"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    detectors = detectors_for(x)
    table = ood.run_benchmark(detectors, x, seed=seed)
detectors = {name: d for name, d in detectors.items() if name in set(table["detector"])}
left_out = [str(w.message) for w in caught if "is left out of the table" in str(w.message)]
scored = {name: ood.SetScores.of(d, x) for name, d in detectors.items()}
seconds = (table.groupby("detector")["seconds_per_1000"].first() / 1000).to_dict()
batch = torch.stack([bench.test[i][0] for i in range(min(64, len(bench.test)))]) if bench else None


def pass_seconds(batch, repeats=5):
    """What the network itself takes for an image: the shortest of a few passes."""
    where = next(network.parameters()).device
    taken = []
    for _ in range(repeats + 1):
        with ood.measure_cost(where) as cost, torch.no_grad():
            network.represent(batch.to(where))
        taken.append(cost.seconds / len(batch))
    return min(taken[1:])


network_seconds = pass_seconds(batch) if bench else None

# %% tags=["hide-input"]
whole = ood.recommend(scored)
pairs = [ood.score_verdicts([(scored[a], scored[b])]) for a, b in combinations(scored, 2)]
sure = sum(list(v.values())[-1].word in ("better", "worse") for v in pairs)
tied = [n for n in whole.candidates if n != whole.best]
say(
    f"Over all sets **{whole.best}** has the largest mean AUROC, {100 * whole.against_best[whole.best].a:.1f} %. "
    + (f"Not clearly worse: {listed(tied)}. " if tied else "All others are clearly worse on these images. ")
    + f"Of {len(pairs)} pairs of detectors {sure} differ clearly, that is, the 95 % interval leaves out zero; by chance alone it would be about {0.05 * len(pairs):.0f}."
    + (" These OOD sets are a smoke test: that they are found says nothing about yours." if not has_ood else "")
)
for why in left_out:
    say(f"Left out: {html.escape(why)}")
order = list(whole.against_best)
shown = table.assign(place=table["detector"].map(order.index)).sort_values("place", kind="stable").drop(columns="place")
display(plots.benchmark_table(shown, "auroc", "AUROC in %"))
display(plots.benchmark_table(shown, "fpr95", "FPR95 in %, the share of OOD images accepted with 95 % of ID images"))

# %% tags=["hide-input"]
rows = {}
for name in order:
    gap = ood.score_verdicts([(scored[name], scored[whole.best])])
    cost = 1e3 * seconds[name]
    relative = f"{100 * seconds[name] / network_seconds:.1f} %" if network_seconds else "not known"
    rows[name] = {plots.NAMES.get(g, "mean of both"): str(v) for g, v in gap.items()} if name != whole.best else dict.fromkeys([plots.NAMES.get(g, "mean of both") for g in gap], "the best")
    rows[name] |= {"ms an image": f"{cost:.3f}", "of the network's pass": relative}
cells(rows, f"Against {whole.best}: difference of the AUROC in points, 95 % interval, paired image by image; and what a score costs")

# %% [markdown]
# FPR95 here is the share of OOD images that is accepted when 95 % of ID images are ([the first chapter](05_protocol) explains both meanings).
# A difference is called *clear* where its interval leaves out zero. Between two equally good detectors this happens by chance in one of twenty
# comparisons. With another network the order may change ([Photographs](60_cifar10)).
#
# ## 4. Which detector should you take?
#
# **Why not the first row of the table?** Of many equally good detectors one comes first by chance. So the choice is made on one half of
# the images of each set, drawn at random, and judged on the other half. The page recommends the *cheapest* detector that is not clearly worse
# than the best of that half, and whose estimate is at most two points behind it. A cost below 5 % of the network's own pass, or below a tenth of a
# millisecond an image, counts as none; of equally cheap detectors the one with the largest mean AUROC is taken.

# %%
halves = {name: s.halves(seed) for name, s in scored.items()}
chosen_on = {name: first for name, (first, _) in halves.items()}
judged_on = {name: second for name, (_, second) in halves.items()}
free = max(1e-4, margin * (network_seconds or 0))  # a bank has no network
choice = ood.recommend(chosen_on, seconds, least=free)
held_out = ood.recommend(judged_on)
gap = held_out.against_best[choice.detector]

# %% tags=["hide-input"]
pick = choice.detector if has_ood else ("KNN" if "KNN" in scored else choice.detector)
others = [n for n in choice.candidates if n != pick]
if has_ood:
    reason = (
        f"It has the largest mean AUROC of the half it was chosen on ({100 * choice.against_best[pick].a:.1f} %)"
        if pick == choice.best
        else f"It is not clearly worse than {choice.best} on the half it was chosen on ({choice.against_best[pick]}), and cheaper"
    )
    reason += f", and costs {1e3 * seconds[pick]:.3f} ms an image" + (f", {100 * seconds[pick] / network_seconds:.1f} % of the network's pass." if network_seconds else ".")
    reason += f" Nor clearly worse: {listed(others)}." if others else " All others are clearly worse there."
    outcome = (
        "it is the best there too" if held_out.best == pick
        else f"the best there is {held_out.best}; the difference is {gap}" + {"level": ", so the recommendation holds", "cannot tell": ", and more images would be needed to tell"}.get(gap.word, f", so the recommendation gives away {-100 * gap.difference:.1f} points")
    )
    say(f"Take **{pick}**. {reason}\n\nJudged on the other half, {outcome}. Its mean AUROC there is {100 * gap.a:.1f} %.")
else:
    say(f"Take **{pick}** until you have OOD images. Nothing measured on this page compares the detectors: you gave no OOD images, and the smoke test must not choose.")

# %% [markdown]
# The other half has other images of the *same* sets. **What if OOD images come from somewhere else?** Leave each set out in turn, choose on
# one half of the others, and judge on the other half, with the set that was left out.

# %% tags=["hide-input"]
def without_one(scored, seconds, least, seed):
    """For each OOD set: the choice without it, and its verdict on it against the best there."""
    halves = {name: s.halves(seed) for name, s in scored.items()}
    sets = [(g, n) for g, own in next(iter(scored.values())).groups().items() for n in own]
    for left in sets if len(sets) > 1 else ():
        seen = {n: a.only([one for one in sets if one != left]) for n, (a, _) in halves.items()}
        unseen = {n: b.only([left]) for n, (_, b) in halves.items()}
        found = ood.recommend(seen, seconds, least)
        yield left, found.detector, ood.recommend(unseen)


rows = {}
for (group, name), taken, judged in without_one(scored, seconds, free, seed) if has_ood else ():
    verdict = judged.against_best[taken]
    rows[name] = {
        "group": plots.NAMES[group], "chosen without it": taken, "AUROC on it (%)": f"{100 * verdict.a:.1f}",
        "best on it": judged.best, "difference": "the best" if taken == judged.best else str(verdict),
    }  # fmt: skip
held = sum(judged.against_best[taken].high >= 0 for _, taken, judged in without_one(scored, seconds, free, seed)) if rows else 0
if rows:
    say(f"On **{held} of {len(rows)}** sets the detector chosen without the set is not clearly worse than the best one on it.")
    cells(rows, "Chosen on half of the images of the other sets, judged on a set that the choice did not see")
else:
    say("This needs two OOD sets at least." if has_ood else "This needs OOD sets of your own.")

# %% [markdown]
# Section 11 does the same on the networks that come with the library, and counts.
#
# ## 5. Does the threshold keep its promise?
#
# The threshold is set on ID validation images alone, so that a new ID image is accepted with the probability that you ask for, on average over
# validation sets ([the first chapter](05_protocol), section 2.3). A detector that learns from validation images itself, such as ReAct, is fitted on
# one half of them and gets its threshold from the other. The test images, which neither has seen, check the promise.

# %%
detector, unseen = detectors[pick], x.val
if detector.fits == "val":  # a threshold needs images that it was not fitted on
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x.val), generator=generator)
    learnt, unseen = (x.val[half] for half in order.tensor_split(2))
    scored[pick] = ood.SetScores.of(detector.fit(learnt), x)
detector.calibrate(unseen, tpr=tpr)
accepted = ~detector.is_ood(x.test)
n, m = len(unseen), len(x.test)
rank = ood.conformal_rank(n, tpr)
law = stats.betabinom(m, rank, n + 1 - rank)  # accepted, if the promise is kept
likely = law.ppf([0.025, 0.975])

# %% tags=["hide-input"]
k = int(accepted.sum())
kept = {True: "as promised", False: "**more than promised**: the threshold is safe, and gives away detections"}[k <= likely[1]]
if k < likely[0]:
    kept = "**fewer than promised**: the test images are not drawn like the validation images, from another camera or time, say"
say(
    f"The threshold {detector.threshold.item():.4g} promises to accept {100 * tpr:.0f} % of new ID images. Of {m:,} held-out test images it accepts "
    f"**{percent(k, m)}**, {kept} (with {n:,} validation images between {100 * likely[0] / m:.1f} and {100 * likely[1] / m:.1f} % are to be expected)."
)
rows = {}
for asked in sorted({0.9, tpr, 0.99}):
    need = int(np.ceil(round(asked / (1 - asked), 9)))
    if n < need:
        rows[f"{100 * asked:g} %"] = {"accepted on average": f"needs {need} validation images"}
        continue
    d = detector.calibrate(unseen, tpr=asked)
    own = ood.conformal_rank(n, asked)
    rows[f"{100 * asked:g} %"] = {
        "accepted on average": f"at least {100 * asked:g} %", "with probability 95 %, at least": f"{100 * stats.beta.ppf(0.05, own, n + 1 - own):.1f} %",
        "test images accepted": percent((~d.is_ood(x.test)).sum(), m),
    } | {f"{name} refused": percent(d.is_ood(f).sum(), len(f)) for name, f in x.ood_sets().items()}  # fmt: skip
detector.calibrate(unseen, tpr=tpr)
cells(pd.DataFrame(rows).fillna(""), "Thresholds by the share of ID images that they promise to accept")

# %% [markdown]
# The promise is about ID images that are drawn like the validation images. It says nothing of how many OOD images are refused; that is what the
# lower rows measure, and only for these sets.
#
# ## 6. Does it warn before the network is wrong?
#
# **Are errors refused more often than right answers?** An ID image that the network misclassifies is not an OOD image. But if the score is high for
# both, the same alarm stops both. The AUROC for errors is the probability that a wrong answer has the larger score than a right one.

# %% tags=["hide-input"]
errors = 0 if right is None else int((~right).sum())
if right is None or errors < 2 or errors == len(right):
    say(f"There are {errors} errors among the test images: too few to compare." if right is not None else "Without one class per image and logits there are no errors to count.")
else:
    own, softmax = scored[pick].test, ood.MSP().score(x.test)
    result = ood.evaluate(own[right], own[~right])
    other = ood.compare(own[right], own[~right], softmax[right], softmax[~right])
    low, high = result.auroc_ci
    verdict = "**It warns of errors**" if low > 0.5 else "**It does not warn of errors**: it ranks them below right answers" if high < 0.5 else "**These images cannot decide whether it warns of errors**"
    word = "clearly better" if other.low > 0 else "clearly worse" if other.high < 0 else "not clearly different"
    versus = "" if pick == "MSP" else f" The softmax alone (MSP) has {100 * other.b:.1f} %; {pick} is {word}, by {as_percent(other.difference, other.low, other.high, signed=True)} points."
    say(f"{verdict}: AUROC for errors {as_percent(result.auroc, low, high)} %, over {errors} errors.{versus}")
    alarm = {"right": right, "wrong": ~right}
    cells({f"the network is {name}": {"images": int(own.sum()), "refused": percent((~accepted & own).sum(), own.sum())} for name, own in alarm.items()}, f"Alarms of {pick} at its threshold, on ID test images")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy on those ID test images that are kept when the ones with the largest score are refused, for the recommended detector and for the softmax. The dashed line is the best possible order, all errors first.", "name": "fig-audit-selective"}, "image": {"alt": "Selective accuracy. Share of images kept on the horizontal axis, accuracy on them on the vertical axis. Two curves, of the recommended detector and of MSP, start at the accuracy on all images at the right and change as fewer images are kept; a dashed line shows the best possible order."}}
def kept_accuracy(score):
    """Accuracy on the images of the smallest scores, for each number that is kept."""
    sorted_right = right[score.argsort(stable=True)].double()
    return (sorted_right.cumsum(0) / torch.arange(1, len(right) + 1)).numpy()


if right is not None and errors >= 2:
    figure, ax = plt.subplots(figsize=(plots.FULL * 0.7, 2.9))
    shares = np.arange(1, len(right) + 1) / len(right)
    curves = {"MSP": (softmax, plots.SERIES[3])} | ({pick: (own, plots.SERIES[0])} if pick != "MSP" else {})
    for name, (score, look) in curves.items():
        ax.plot(shares[len(right) // 10 :], 100 * kept_accuracy(score)[len(right) // 10 :], label=name, **look | {"marker": ""})
    ax.plot(shares, 100 * np.minimum(1, right.sum().item() / (shares * len(right))), "--", color=plots.COLORS["grey"], lw=1, label="best order")
    ax.axvline(accepted.double().mean().item(), color=plots.COLORS["grey"], lw=1, ls=":")
    ax.set(xlabel="share of ID images kept", ylabel="accuracy on them (%)", xlim=(0.1, 1.0))
    ax.legend()
    plt.show()

# %% tags=["hide-input"]
if right is not None and errors >= 2:
    before, after = share(right.sum(), m), share((right & accepted).sum(), accepted.sum())
    say(f"At the threshold, the dotted line, {percent(accepted.sum(), m)} of the images are kept, and the accuracy on them is {as_percent(*after)} % instead of {as_percent(*before)} %.")

# %% [markdown]
# ## 7. Whose images are refused?
#
# One threshold serves all classes, and its promise holds for all of them together. **Does one class pay for the others?**

# %%
if several:  # of each label: the images that carry it
    members = {name: known[:, c] == 1 for c, name in enumerate(x.classes)}
else:
    names = x.classes or tuple(map(str, range(int(known.max()) + 1)))
    members = {name: known == c for c, name in enumerate(names)}
members = {name: own for name, own in members.items() if own.any()}
refused = {name: share((~accepted & own).sum(), own.sum()) for name, own in members.items()}
level = 0.05 / len(members)  # Bonferroni: an error in any of the classes
unfair = {
    name: stats.binomtest(int((~accepted & own).sum()), int(own.sum()), 1 - tpr).pvalue
    for name, own in members.items()
}

# %% tags=["hide-input"]
more = [n for n, p in unfair.items() if p < level and refused[n][0] > 1 - tpr]
less = [n for n, p in unfair.items() if p < level and refused[n][0] < 1 - tpr]
say(
    (f"**Surely refused more often than {100 * (1 - tpr):.0f} %: {listed(more)}.** " if more else f"No class is clearly refused more often than {100 * (1 - tpr):.0f} %. ")
    + (f"Surely less often: {listed(less)}. " if less else "")
    + f"(Of {len(members)} classes, tested at {100 * level:.2g} % each, so that one false verdict among all has a probability of 5 % at most.)"
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of ID test images refused, by class, with 95 % intervals; the line is what the threshold promises over all classes. At most fifteen classes are shown, the ones refused most often.", "name": "fig-audit-classes"}, "image": {"alt": "Horizontal dot plot of the share of refused test images for each class with its interval, sorted from most to least refused, and a vertical line at the promised share. A class whose interval lies to the right of the line pays for the others."}}
top = sorted(refused, key=lambda n: -refused[n][0])[:15]
value, low, high = 100 * np.array([refused[n] for n in top]).T
figure, ax = plt.subplots(figsize=(plots.FULL * 0.7, 0.7 + 0.26 * len(top)))
ax.errorbar(value, range(len(top)), xerr=[value - low, high - value], fmt=plots.MARKERS["id"], color=plots.COLORS["id"], ms=5, lw=1.2)
ax.axvline(100 * (1 - tpr), color=plots.COLORS["grey"], lw=1, ls=":")
ax.set(yticks=range(len(top)), yticklabels=top, xlabel="refused (%)")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# Where one class is refused too often, give each class its own threshold, set on the validation images that the network assigns to it. The last exercise
# asks what that costs.
#
# ## 8. What do the hardest pictures look like?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Above, the ID test images with the largest scores; below, the OOD images with the smallest. Over each picture stands its file, and below it its class or set.", "name": "fig-audit-gallery"}, "image": {"alt": "Two galleries of eight thumbnails each. Upper gallery: in-distribution test images that the detector finds most out-of-distribution. Lower gallery: out-of-distribution images that it finds most in-distribution. File names stand above the pictures, and classes or set names below."}}
def named(data, i):
    return Path(data.names[i]).name if isinstance(data, ImageFiles) else f"image {i}"


def hardest(count=8):
    """Pictures with file, caption and role: the most OOD-looking ID images, the most ID-looking OOD images."""
    own = scored[pick].test.argsort(descending=True)[:count].tolist()
    said = [", ".join(c for c, y in zip(x.classes, row) if y) or "no label" for row in known.tolist()] if several else [x.classes[c] for c in known.tolist()]
    first = [(bench.test, i, said[i], "id") for i in own]
    sets = [(g, n, s) for g, group in scored[pick].groups().items() for n, s in group.items()]
    low = sorted((v, g, n, i) for g, n, s in sets for i, v in enumerate(s.tolist()))[:count]
    return first, [(getattr(bench, g)[n], i, n, g) for _, g, n, i in low]


if bench:
    rows = hardest()
    figure, axes = plt.subplots(2, max(map(len, rows)), figsize=(plots.FULL, 2.7), squeeze=False)
    for ax, (data, i, what, role) in ((ax, one) for line, row in zip(axes, rows) for ax, one in zip(line, row)):
        ax.imshow(data[i][0].permute(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(named(data, i)[-14:], fontsize=7)
        ax.set_xlabel(what[:16], fontsize=8, color=plots.COLORS[role])
    axes[0][0].set_ylabel("ID, largest", fontsize=9)
    axes[1][0].set_ylabel("OOD, smallest", fontsize=9)
    plt.show()

# %% tags=["hide-input"]
passed = {n: (~detector.is_ood(f)).sum().item() / len(f) for n, f in x.ood_sets().items()}
worst = max(passed, key=passed.get)
say(
    ("A bank holds no pictures to look at. " if not bench else "Look for a pattern: one class, one light, one camera, a wrong label. ")
    + f"At the threshold, {worst} passes most often: {100 * passed[worst]:.1f} % of its images are accepted."
)

# %% [markdown]
# ## 9. Does the score drift?
#
# If pictures were taken one after the other, **did the score change on the way?** If nine files in ten hold the time that a camera wrote into
# them, the images are ordered by this time, otherwise by the names of their files within each class. Without drift, place and score are
# uncorrelated, and each tenth of the images is refused equally often. Both are tested, the first for a trend, the second for single stretches.

# %% tags=["hide-input"]
def taken(path):
    """When a camera took the picture (EXIF), or None."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.getexif().get_ifd(0x8769).get(36867)


def relative(values, own):
    """The rank of each of these rows among their like, from 0 to 1."""
    return stats.rankdata(values[own]) / own.sum()


score = scored[pick].test.double().numpy()
times = [taken(bench.test.base / n) for n in bench.test.names] if bench and isinstance(bench.test, ImageFiles) else []
by_time = len(times) > 0 and sum(t is not None for t in times) >= 0.9 * len(times)
rows = [own.numpy() for own in ([torch.ones(m, dtype=torch.bool)] if several or by_time else members.values())]
if by_time:
    rows = [rows[0] & np.array([t is not None for t in times])]
at = np.array([t or "" for t in times]).argsort(kind="stable").argsort(kind="stable") if by_time else np.arange(m)
path, height = (np.concatenate([relative(v, own) for own in rows if own.sum() > 1]) for v in (at, score))
rho, p = stats.spearmanr(path, height)

# %% tags=["hide-input"]
out = np.concatenate([(~accepted).numpy()[own] for own in rows if own.sum() > 1])
tenth = np.minimum((10 * (path - 1e-9)).astype(int), 9)
counts = np.array([[(out & (tenth == d)).sum(), (~out & (tenth == d)).sum()] for d in range(10) if (tenth == d).any()])
uneven = stats.chi2_contingency(counts).pvalue if (counts.sum(0) > 0).all() else 1.0
basis = "the time in the files" if by_time else f"the order of the files{'' if several else ' within each class'}" if bench else "the order of the bank, which means nothing by itself"
trend = f"The score **{'rises' if rho > 0 else 'falls'} on the way**" if p < 0.025 else "No trend shows"
parts = "**stretches differ** in how often they are refused" if uneven < 0.025 else "stretches do not clearly differ"
advice = " Ask what changed there, and set the threshold on images of each kind." if min(p, uneven) < 0.025 else ""
say(f"{trend} (rank correlation of place and score {rho:+z.2f}, p = {p:.2g}), and {parts} (p = {uneven:.2g}), by {basis}.{advice}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of ID test images refused in each tenth of their order, with 95 % intervals; the line is what the threshold promises.", "name": "fig-audit-drift"}, "image": {"alt": "Ten points from the first to the last tenth of the ID test images in their order. Each is the share of images refused, with a vertical bar for its interval. A horizontal dotted line marks the promised share. A trend of the points upwards or downwards would be drift."}}
points = [(d, *share(out[tenth == d].sum(), (tenth == d).sum())) for d in range(10) if (tenth == d).any()]
d, value, low, high = 100 * np.array(points).T
figure, ax = plt.subplots(figsize=(plots.FULL * 0.7, 2.4))
ax.errorbar(d / 10 + 5, value, [value - low, high - value], fmt=plots.MARKERS["id"], color=plots.COLORS["id"], ms=5, lw=1.2)
ax.axhline(100 * (1 - tpr), color=plots.COLORS["grey"], lw=1, ls=":")
ax.set(xlabel="place in the order (% of the images)", ylabel="refused (%)", xlim=(0, 100))
plt.show()

# %% [markdown]
# ## 10. What do you take home?
#
# One file: the detector with all that it has learnt, its threshold, its calibration scores, and a hash of the network that it belongs to. With it and
# the weights one command decides about pictures and writes a line of CSV for each. It refuses to run with another network.

# %%
own = {"network": network, "frame": bench.test.frame, "classes": x.classes} if bench else {}
detector.save(place / "detector.safetensors", **own)
words = ["python", "-m", "ood_lib", "score", "detector.safetensors"]
if bench:
    words += ["--model", spec, *(["--weights", file] if file else [])]
command = shlex.join(words).replace(str(place) + os.sep, "")
print(command, "PICTURES...")

# %% tags=["hide-input"]
if results:
    shutil.copy(place / "detector.safetensors", results)
size = (place / "detector.safetensors").stat().st_size / 1e6
say(f"`detector.safetensors` holds {pick}, {size:.2f} MB" + (", and lies in the folder of this run." if results else ". Give the parameter `results` a folder to keep it.") + (" It was fitted on a bank, so name the model whose features these are." if is_bank else ""))

# %% [markdown]
# **Does the command give the scores of this page?** It is run here, in a process of its own, on a few test pictures of each kind.

# %% tags=["hide-input"]
def by_command(count=4):
    """Paths of a few pictures of the ID test set and of the first OOD set, what the command says, what this page says."""
    sets = [(bench.test, x.test), *((getattr(bench, g)[n], f) for g, own in x.groups().items() for n, f in own.items())]
    sets = [(data, f) for data, f in sets if isinstance(data, ImageFiles)][:2]
    chosen = [(data.base / data.names[i], detector.is_ood(f[torch.tensor([i])]).item()) for data, f in sets for i in range(count)]
    line = [sys.executable, *words[1:4], str(place / "detector.safetensors"), *words[5:], "--quiet", *(str(path) for path, _ in chosen)]
    folder = place if (place / "model.pt").exists() else os.environ.get("OOD_FOLDER", ".")
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    return pd.read_csv(io.StringIO(done.stdout), dtype={"name": str}), [refused for _, refused in chosen]


if bench:
    said, expected = by_command()
    same = ((said["decision"] == "refuse") == expected).sum()
    say(f"{same} of {len(said)} decisions agree." + ("" if same == len(said) else " **They should all agree**: the command prepares the pictures otherwise than this page."))
    shown = said.assign(path=["/".join(Path(name).parts[-3:]) for name in said["path"]]).drop(columns=["error", "class"])
    display(shown.style.hide(axis="index").format(precision=3).set_caption("What the command wrote"))

# %% [markdown]
# ## 11. How often is such a recommendation right?
#
# **Predict:** of a hundred new OOD sets, on how many is the recommended detector as good as the best one? The networks that come with the library have
# been shown several OOD sets each. Leave each set out, choose on half of the images of the others as in section 4, and judge on the set that was left
# out, with the other half of the ID images. The best detector *on* that set is known only afterwards: it is an opponent that nobody can choose.

# %% tags=["hide-input"]
trials = []
for name in benchmarks:
    f = ood.benchmark_features(name, rows=bank_rows or None)[0]
    own = detectors_for(f)
    costs = ood.run_benchmark(own, f).groupby("detector")["seconds_per_1000"].first() / 1000
    found = {n: ood.SetScores.of(d, f) for n, d in own.items()}
    for draw in range(3):
        for (_, left), taken_, judged in without_one(found, costs.to_dict(), 1e-4, seed + draw):
            gaps = {n: (v.high >= 0, -100 * v.difference) for n, v in judged.against_best.items()}
            trials += [{"network": name, "set": left, "rule": r, "as good": g[0], "lost": g[1]} for r, g in {"recommended here": gaps[taken_]} .items()]
            trials += [{"network": name, "set": left, "rule": f"always {n}", "as good": g[0], "lost": g[1]} for n, g in gaps.items()]
trials = pd.DataFrame(trials)

# %% tags=["hide-input"]
if len(trials):
    per_set = trials.groupby(["rule", "network", "set"], sort=False)[["as good", "lost"]].mean()
    rules = per_set.groupby("rule").agg(**{"as good as the best": ("as good", "mean"), "points lost, mean": ("lost", "mean"), "points lost, worst set": ("lost", "max")})
    rules = rules.sort_values("points lost, mean")
    ours = per_set.loc["recommended here"]
    sets, good = len(ours), ours["as good"].mean()
    close = (ours["lost"] < 2).sum()
    fixed = rules.drop(index="recommended here")
    by_network = {r: per_set.loc[r]["lost"].groupby("network").mean() for r in rules.index}
    gaps = {r: by_network[r] - by_network["recommended here"] for r in fixed.index}
    first = fixed.index[0]
    mean, low, high = mean_interval(gaps[first])
    word = "one network: no interval" if np.isnan(low) else "better" if low > 0 else "worse" if high < 0 else "these images cannot decide which of the two is better"
    ends = "" if np.isnan(low) else f" [{low:+z.1f}, {high:+z.1f}]"
    say(
        f"Networks: {ours.index.get_level_values('network').nunique()}; OOD sets left out: {sets}. The recommendation is as good as the best in **{100 * good:.0f} %** of the cases, and within two points of it on {close} of the {sets} sets. It "
        f"loses {ours['lost'].mean():.1f} points in the mean and {ours['lost'].max():.1f} on the worst set. "
        f"The best rule that always takes one detector, *{first}*, loses {fixed.iloc[0]['points lost, mean']:.1f}, and that it is the best one is known only from this table; against it the recommendation "
        f"gains {mean:+z.1f}{ends} points ({word}). The middle one of these rules loses {fixed['points lost, mean'].median():.1f}."
    )
    display(rules.style.format({"as good as the best": "{:.0%}", "points lost, mean": "{:.1f}", "points lost, worst set": "{:.1f}"}).set_caption("AUROC lost against the best detector on an OOD set that the choice did not see; as good: the paired interval holds zero. Three draws of the halves for each set"))
else:
    say("No bank was given in `benchmarks`.")

# %% [markdown]
# The first column says how often a rule finds a detector as good as the best, the second and third what is lost where it does not. A rule that loses
# little keeps you away from the detectors that fail on your network, even where it does not find the best one. The sets of one network share its ID
# images and its detectors, so they are not independent, and the interval is one over networks. Nobody can choose for OOD images that nobody has
# seen: with images from where your network will work, section 4 is the better guide.
#
# ## 12. Exercises
#
# They use the features `x`, the scores `scored` and the calibrated `detector` of this page.
#
# ```{exercise-start} How many validation images?
# :label: ex-audit-count
# ```
# You want to accept 99.5 % of new ID images. How many validation images does the threshold need at least? Store the number in `count`. *Hint: the rank
# of the threshold, $\lceil (n+1)\,t \rceil$, must not be larger than $n$.*

# %% tags=["exercise"]
count = ...

# %% tags=["check", "hide-input"]
def promises(n, t=0.995):
    """Whether n images can promise to accept a share t."""
    return np.ceil(round((n + 1) * t, 9)) <= n


check_count = ood.Check(
    (lambda n: n == int(n), "a whole number of images"),
    (promises, "too few: then the rank of the threshold is larger than their number"),
    (lambda n: not promises(n - 1), "that is enough, but fewer are enough too"),
)
check_count(count)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-audit-count
# :class: dropdown
# ```
# $\lceil(n+1)\,t\rceil\le n$ holds exactly where $n\ge\frac{t}{1-t}=\frac{0.995}{0.005}=199$.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: one image in two hundred may be refused, so a hundred and some will do.
count = 150
check_count(count)

# %% tags=["solution"]
count = next(n for n in range(1, 10_000) if promises(n))
print(count, "images; t / (1 - t) =", round(0.995 / 0.005))
check_count(count)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} A p-value by hand
# :label: ex-audit-p
# ```
# The calibrated detector keeps its calibration scores, sorted, in `detector.calibration`. Compute the p-value of the first ID test image from them, without
# `p_values`, and store it in `p_value`. *Hint: count those that are at least as large, and the image itself.*

# %% tags=["exercise"]
p_value = ...

# %% tags=["check", "hide-input"]
def first_p():
    """By the library."""
    return detector.p_values(x.test).double()[0].item()


def near(a, b, tolerance=1e-6):
    return abs(float(a) - b) < tolerance


check_p = ood.Check(
    (lambda p: 0 < p <= 1, "a p-value is above 0 and at most 1"),
    (lambda p: not near(p, 1 + 1 / (len(detector.calibration) + 1) - first_p()), "count the scores that are at least as large, not those below"),
    (lambda p: near(p, first_p()), "the image itself counts too, above and below the line"),
)
check_p(p_value)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-audit-p
# :class: dropdown
# ```
# The new score counts as one of the $n+1$, so the smallest p-value is $\frac{1}{n+1}$, not zero.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the share of calibration scores alone, which can be 0.
scores_there = detector.calibration
p_value = (scores_there >= scored[pick].test[0]).double().mean().item()
check_p(p_value)

# %% tags=["solution"]
larger = (detector.calibration >= scored[pick].test[0]).sum().item()
p_value = (1 + larger) / (len(detector.calibration) + 1)
print(f"{larger} of {len(detector.calibration)} are at least as large: p = {p_value:.3f}")
check_p(p_value)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} What is an alarm worth?
# :label: ex-audit-alarm
# ```
# In your stream one image in a hundred is OOD. The threshold accepts 95 % of ID images and refuses 80 % of OOD images. Which share of the alarms are OOD
# images? Guess first, then compute, and store the share in `worth`. *Hint: count among ten thousand images.*

# %% tags=["exercise"]
worth = ...

# %% tags=["check", "hide-input"]
def alarms(images=10_000, ood_share=0.01):
    """True and false alarms among so many images."""
    return images * ood_share * 0.8, images * (1 - ood_share) * 0.05


check_worth = ood.Check(
    (lambda s: 0 < s < 1, "a share, between 0 and 1"),
    (lambda s: not near(s, 0.8, 0.03), "that is the share of OOD images refused; the question is about the alarms"),
    (lambda s: near(s, alarms()[0] / sum(alarms()), 0.005), "true alarms divided by all alarms"),
)
check_worth(worth)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-audit-alarm
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the detector finds 80 % of them.
worth = 0.8
check_worth(worth)

# %% tags=["solution"]
true, false = alarms()
worth = true / (true + false)
print(f"{true:.0f} true, {false:.0f} false: {100 * worth:.0f} % of the alarms are right")
check_worth(worth)

# %% [markdown]
# Most alarms are false, although both rates look good. Where each alarm costs something, ask for a larger `tpr`.
# ```{solution-end}
# ```
#
# ```{exercise-start} The price of a choice
# :label: ex-audit-curse
# ```
# Take the best detector of one half (`chosen_on`) and look up its mean AUROC on that half and on the other (`judged_on`). Repeat with the halves of seeds
# 0 to 4, and store in `optimism` by how much the first number is larger in the mean. Will it be above zero? *Hint: `s.halves(seed)` for each `s` in
# `scored`; `ood.recommend` has both numbers in `against_best[name].a`.*

# %% tags=["exercise"]
optimism = ...

# %% tags=["check", "hide-input"]
@cache
def both_halves(seed):
    """The mean AUROC of the best of one half, there and on the other."""
    one, other = (ood.recommend({n: s.halves(seed)[i] for n, s in scored.items()}) for i in (0, 1))
    return one.against_best[one.best].a, other.against_best[one.best].a


def mean_optimism():
    return float(np.mean([a - b for a, b in map(both_halves, range(5))]))


check_optimism = ood.Check(
    (lambda o: not near(o, -mean_optimism(), 1e-9) or near(o, 0), "the other way round: the half of the choice minus the other"),
    (lambda o: near(o, mean_optimism(), 1e-6), "the best of each half anew; the mean over seeds 0 to 4"),
)
check_optimism(optimism)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-audit-curse
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: all images in place of the other half, although half of them are those of the choice.
one = ood.recommend(chosen_on)
optimism = one.against_best[one.best].a - whole.against_best[one.best].a
check_optimism(optimism)

# %% tags=["solution"]
numbers = np.array([both_halves(k) for k in range(5)])
optimism = float((numbers[:, 0] - numbers[:, 1]).mean())
spread = (numbers[:, 0] - numbers[:, 1]).std() / np.sqrt(5)
print(f"{100 * optimism:+.2f} points, with a standard error of about {100 * spread:.2f}")
check_optimism(optimism)

# %% [markdown]
# This optimism grows when a half has fewer images, and when more detectors of nearly equal quality are compared.
# ```{solution-end}
# ```
#
# ```{exercise-start} Cheap or good?
# :label: ex-audit-cheap
# ```
# A service may spend a millisecond an image on the score. Which detector do you take, of those that are not clearly worse than the best one on all images?
# Store in `affordable` the names of all that qualify. *Hint: `whole.candidates` and `seconds`.*

# %% tags=["exercise"]
affordable = ...

# %% tags=["check", "hide-input"]
def qualifies(name):
    return name in whole.candidates and seconds[name] <= 1e-3


check_affordable = ood.Check(
    (lambda names: not isinstance(names, str) and len(list(names)) > 0, "a list of names, even of one"),
    (lambda names: all(n in whole.candidates for n in names), "one of them is clearly worse than the best"),
    (lambda names: all(map(qualifies, names)), "one of them takes longer than a millisecond"),
    (lambda names: set(names) == set(filter(qualifies, scored)), "there are more of them"),
)
check_affordable(affordable)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-audit-cheap
# :class: dropdown
# ```
# Among the candidates, the images show no clear difference, so the cost decides. A cheaper detector that is clearly worse is no candidate.

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: the cheapest of all, however poor.
affordable = sorted(scored, key=lambda n: list(whole.against_best).index(n))[-1:]
check_affordable(affordable)

# %% tags=["solution"]
affordable = [n for n in whole.candidates if seconds[n] <= 1e-3]
print(affordable)
check_affordable(affordable)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise-start} One class, one threshold
# :label: ex-audit-class
# ```
# Give every class a threshold of its own, set on the validation images of that class alone. (Section 7 would use the images that the network
# *assigns* to the class, because a new image has no label; to keep it simple, count true labels here.) How many images has the smallest class of `x.val`, and which
# share `tpr` can it promise at most? Store that share in `most`. *Hint: $n$ images can promise $n/(n+1)$.*

# %% tags=["exercise"]
most = ...

# %% tags=["check", "hide-input"]
def class_sizes():
    """Validation images of each class, or with each label."""
    labels = x.val.labels
    return labels.sum(0) if labels.ndim == 2 else labels.bincount(minlength=len(x.classes))


def fewest():
    return int(class_sizes().min())


check_most = ood.Check(
    (lambda t: 0 <= t < 1, "a share below 1"),
    (lambda t: not near(t, len(x.val) / (len(x.val) + 1), 1e-9), "that is what all validation images together can promise"),
    (lambda t: near(t, fewest() / (fewest() + 1), 1e-3), "count x.val.labels, class by class, and take the smallest number"),
)
check_most(most)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-audit-class
# :class: dropdown
# ```

# %% tags=["solution", "wrong", "remove-cell"]
# Tempting: all validation images stand behind each threshold.
most = len(x.val) / (len(x.val) + 1)
check_most(most)

# %% tags=["solution"]
each = class_sizes()
most = (each.min() / (each.min() + 1)).item()
print(f"between {each.min()} and {each.max()} images for a class: at most {most:.3f}")
check_most(most)

# %% [markdown]
# That is the price of fairness: a class with few validation images can promise little.
# ```{solution-end}
# ```
#
# ## 13. What to take away

# %% tags=["hide-input"]
lines = [
    "The network: " + (f"{quality:.3f} {'mean average precision' if several else 'accuracy'}" if quality is not None else "no head, so no accuracy") + (f", {found_word}" if (found_word := getattr(calibration, 'word', '')) else "") + (f"; **{fault}, so nothing below can be trusted**" if fault else "") + ".",
    f"The detector: **{pick}**" + (f", {100 * gap.a:.1f} % mean AUROC on images that did not choose it." if has_ood else ", not chosen by OOD images, for there are none."),
    f"The threshold: {100 * accepted.double().mean().item():.1f} % of held-out ID images accepted, {100 * tpr:g} % promised.",
    f"The command: `{command} PICTURES...`",
]
say("\n".join(f"* {line}" for line in lines))

# %% [markdown]
# An audit speaks of the images it was given. Repeat it when the camera, the classes or the weights change, and watch the rate of alarms on images that you
# know to be ordinary.

# %% tags=["hide-input"]
if results:
    origin = ood.provenance(data=benchmark if is_bank or benchmark == "digits" else "folder", weights=spec)
    ood.save_results(Path(results, "audit.json"), table, origin=origin, benchmark=x.name.rpartition("/")[2], network=spec or x.name, **({} if quality is None else {"accuracy": quality}))

"""Every public entry point that takes data: how it is called, and what it should answer, computed apart in float64.

References are written from the papers' formulas with numpy, scipy and scikit-learn.  Where an entry point trains, or
runs a network, the reference is what it answers to the plain input of the same numbers (`ITSELF`).
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import torch
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor, nn
from torch.utils.data import Dataset

import ood_lib as ood
from ood_lib import Features
from ood_lib.data.images import ImageArray
from tests.conftest import normal, seeded

ITSELF = "what it answers to the plain input"


class Entry(NamedTuple):
    inputs: dict[str, Any]
    call: Callable[..., Any]
    reference: Any
    rtol: float = 1e-6
    single: float = 2e-3  # the same where single or half precision was given
    network: bool = False  # a network of the caller is run, which may refuse its input in its own words
    without: tuple[str, ...] = ()  # kinds that mean nothing here
    unit: float = 0.0  # size of what is summed up in a score: its rounding is allowed where the sum is near zero


# -- plain inputs

LABELS = torch.arange(36) % 3
HEAD = nn.Linear(6, 3, dtype=torch.float64)
with torch.no_grad():
    HEAD.weight.copy_(torch.eye(3, dtype=torch.float64).repeat_interleave(2, 1) + 0.1 * normal(3, 6, seed=1))
    HEAD.bias.copy_(0.1 * normal(3, seed=2))


def seen(labels: Tensor, seed: int) -> Tensor:
    """Features (N, 6), none negative; two belong to each class."""
    z = 0.5 * normal(len(labels), 6, seed=seed) + 2 * torch.eye(3, dtype=torch.float64).repeat_interleave(2, 1)[labels]
    return z.relu() + 0.01 * normal(len(labels), 6, seed=seed + 50).abs()


Z, TEST = seen(LABELS, 3), seen(torch.arange(40) % 3, 4)
with torch.no_grad():
    LOGITS, TEST_LOGITS = HEAD(Z), HEAD(TEST)
MATRIX = torch.stack([LABELS == 0, LABELS > 0, torch.arange(36) % 2 == 0], 1).long()
IMAGES = torch.rand(12, 1, 4, 4, generator=seeded(5), dtype=torch.float64)
FIT = {"z": Z, "logits": LOGITS, "labels": LABELS, "test_z": TEST, "test_logits": TEST_LOGITS}
SCORES = {"known_scores": normal(40, seed=6), "test_scores": normal(30, seed=7) + 1.5}
PAIRED = SCORES | {
    "b_known_scores": 0.7 * SCORES["known_scores"] + 0.7 * normal(40, seed=8),
    "test_b_scores": 0.7 * SCORES["test_scores"] + 0.7 * normal(30, seed=9),
}

# -- detectors


def detect(make: Callable[[Any], Any]) -> Callable[..., Tensor]:
    """Fit on the first half, score the second."""

    def call(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any, head: Any = None) -> Tensor:
        # labels given both ways that a fit may look at them
        train = Features(penultimate=z, logits=logits, labels=labels, style=z)
        test = Features(penultimate=test_z, logits=test_logits, style=test_z)
        return make(head).fit(train).score(test)

    return call


def of_logits(score: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda z, logits, labels, test_z, test_logits: score(test_logits)


def of_head(score: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A reference that gets features of both halves, weight and bias."""
    return lambda z, logits, labels, test_z, test_logits, head: score(z, test_z, *head)


def msp_(x: np.ndarray, t: float = 1.0) -> np.ndarray:
    return -softmax(x / t, -1).max(-1)


def energy_(x: np.ndarray, t: float = 1.0) -> np.ndarray:
    return -t * logsumexp(x / t, axis=-1)


def gen_(x: np.ndarray, gamma: float = 0.1) -> np.ndarray:
    x = np.sort(np.moveaxis(x, -1, 0), 0)[::-1]
    total = np.zeros(x.shape[1:])
    for c in range(min(len(x), 100)):  # p and 1 - p both from logarithms: neither loses digits
        log_p = x[c] - logsumexp(x, axis=0)
        log_rest = logsumexp(np.delete(x, c, 0), axis=0) - logsumexp(x, axis=0)
        total += np.exp(gamma * (log_p + log_rest))
    return total


def gradnorm_(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    return -np.abs(z).sum(1) * np.abs(x.shape[1] * softmax(x, 1) - 1).sum(1)


def kl_(p_train: np.ndarray, x: np.ndarray) -> np.ndarray:
    p, q = softmax(p_train, 1), softmax(x, 1)
    first = p.argmax(1)
    templates = np.stack(
        [p[first == c].mean(0) if (first == c).any() else np.eye(p.shape[1])[c] for c in range(p.shape[1])]
    )
    templates = np.maximum(templates, np.finfo(float).tiny)
    own = np.where(q > 0, q * (x - logsumexp(x, axis=1, keepdims=True)), 0).sum(1)
    return np.min([own - (q * np.log(t)).sum(1) for t in templates], 0)


def joint_(x: np.ndarray, top: int | None = None) -> np.ndarray:
    return -np.sort(np.logaddexp(0, x), -1)[..., ::-1][..., :top].sum(-1)


def unit(z: np.ndarray) -> np.ndarray:
    largest = np.abs(z).max(1, keepdims=True, initial=0)
    z = z / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    return z / np.where(length > 0, length, 1)


def scale_of(z: np.ndarray) -> float:
    """A power of two near the largest entry: with it nothing overflows, and nothing is rounded."""
    return 2.0 ** np.round(np.log2(max(np.abs(z).max(initial=0), 1e-300)))


def norm(z: np.ndarray) -> np.ndarray:
    s = np.abs(z).max(1, keepdims=True, initial=0)
    s = np.where(s > 0, s, 1)
    return np.linalg.norm(z / s, axis=1) * s[:, 0]


def knn_(bank: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.stack([np.sort(norm(bank - q))[k - 1] for q in queries])


def nnguide_(
    z: np.ndarray, logits: np.ndarray, labels: np.ndarray, test: np.ndarray, test_logits: np.ndarray
) -> np.ndarray:
    bank = -energy_(logits)[:, None] * unit(z)
    return np.sort(unit(test) @ bank.T, 1)[:, -3:].mean(1) * energy_(test_logits)


def she_(metric: str) -> Callable[..., np.ndarray]:
    def score(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
        right = logits.argmax(1) == labels
        patterns = np.stack([z[right & (labels == c)].mean(0) for c in range(logits.shape[1])])
        own = patterns[test_logits.argmax(1)]
        if metric == "euclidean":
            return norm(test_z - own)
        return -(unit(test_z) * unit(own)).sum(1) if metric == "cosine" else -(test_z * own).sum(1)

    return score


def fdbd_(z: np.ndarray, test: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    logits, mean = test @ w.T + b, z.mean(0)
    best = logits.argmax(1)
    total = np.zeros(len(test))
    for c in range(len(w)):
        gap = np.where(best == c, 1, np.linalg.norm(w[best] - w[c], axis=1))
        total += (logits.max(1) - logits[:, c]) / gap
    return -total / norm(test - mean)


def vim_(z: np.ndarray, test: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    u = -np.linalg.pinv(w) @ b
    s = scale_of(z - u)
    _, vectors = np.linalg.eigh(((z - u) / s).T @ ((z - u) / s))
    rest = vectors[:, : z.shape[1] - z.shape[1] // 2]
    alpha = (z @ w.T + b).max(1).mean() / norm((z - u) @ rest).mean()
    return alpha * norm((test - u) @ rest) + energy_(test @ w.T + b)


def react_(z: np.ndarray, test: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    clip = np.sort(z, axis=None)[int(np.ceil(round(0.9 * z.size, 6))) - 1]
    return energy_(np.minimum(test, clip) @ w.T + b)


def shaped(variant: str, percentile: float) -> Callable[..., np.ndarray]:
    def score(z: np.ndarray, test: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        k = test.shape[1] - round(test.shape[1] * percentile)
        rank = np.argsort(np.argsort(-test, 1, kind="stable"), 1)
        kept = np.where(rank < k, test, 0)
        total, part = test.sum(1, keepdims=True), kept.sum(1, keepdims=True)
        with np.errstate(all="ignore"):
            factor = np.where((test == 0).all(1, keepdims=True), 1, np.exp(total / part))
        shape = {"p": kept, "b": np.where(rank < k, total / k, 0), "s": kept * factor, "scale": test * factor}[variant]
        return energy_(shape @ w.T + b)

    return score


def classes_of(labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2:
        raise NoReference
    return np.arange(labels.max() + 1)


def nearest_(z: np.ndarray, means: np.ndarray, covariance: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Squared distance under the pseudo-inverse; directions with no more than the rounding of float32 are left out."""
    values, vectors = np.linalg.eigh(covariance)
    floor = len(values) * np.finfo("f4").eps ** 2 * (values.clip(0).sum() + np.square(means).sum(1).max())
    alive = values > floor
    if not alive.any():
        raise NoReference
    white = vectors[:, alive] / np.sqrt(values[alive])
    return np.min([np.square((test - m) @ white).sum(1) for m in means], 0)


def grouped(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, their class, means: an image of several labels counts once for each."""
    if labels.ndim == 2:
        rows, own = labels.nonzero()
        z, labels, count = z[rows], own, labels.shape[1]
    else:
        count = int(labels.max()) + 1
    means = np.stack([z[labels == c].mean(0) for c in range(count)])
    return z, labels, means


def mahalanobis_(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
    s = scale_of(z)
    z, labels, means = grouped(z / s, labels)
    away = z - means[labels]
    return nearest_(z, means, away.T @ away / len(z), test_z / s)


def rmds_(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
    s = scale_of(z)
    rows, own, means = grouped(z / s, labels)
    away, mean = rows - means[own], rows.mean(0)
    whole = (rows - mean).T @ (rows - mean) / len(rows)
    return nearest_(rows, means, away.T @ away / len(rows), test_z / s) - nearest_(rows, mean[None], whole, test_z / s)


def gmm_(
    covariance: str, single: bool = False, make: Callable[[np.ndarray], np.ndarray] = lambda z: z
) -> Callable[..., np.ndarray]:
    def score(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
        z, test = make(z), make(test_z)
        s, width = scale_of(z), z.shape[1]
        z, test = z / s, test / s
        z, own, means = grouped(z, np.zeros(len(z), int) if single else labels)
        away = z - means[own]
        ridge = 1e-6 * np.square(away).mean() * np.eye(width)
        if np.square(away).mean() <= (1e-13 * np.abs(means).max()) ** 2:
            raise NoReference
        parts = []
        for c, mean in enumerate(means):
            rows = away if covariance == "tied" else away[own == c]
            sigma = rows.T @ rows / len(rows)
            sigma = (np.diag(np.diag(sigma)) if covariance == "diagonal" else sigma) + ridge
            values, vectors = np.linalg.eigh(sigma)
            squares = np.square((test - mean) @ vectors / np.sqrt(values)).sum(1)
            parts.append(np.log((own == c).mean()) - (squares + np.log(2 * np.pi * values).sum()) / 2)
        return -logsumexp(parts, axis=0) + width * np.log(s)

    return score


def standard(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    if not like.std() > 0:
        raise NoReference
    return (x - like.mean()) / like.std()


def together(*parts: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The mean of scores, each standardised over the training set."""

    def score(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any, head: Any = None) -> np.ndarray:
        more = {} if head is None else {"head": head}
        found = []
        for part in parts:
            train = part(z, logits, labels, z, logits, **more)
            found.append(standard(part(z, logits, labels, test_z, test_logits, **more), train))
        return np.mean(found, 0)

    return score


def without_head(part: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda z, logits, labels, test_z, test_logits, head: part(z, logits, labels, test_z, test_logits)


def flow_(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
    """Before any update: the Gaussian of features of length one, blurred by a tenth of their spread."""
    z, test = unit(z), unit(test_z)
    sigma = np.cov(z.T, bias=True).reshape(z.shape[1], -1)
    blur = 0.01 * np.diag(sigma).mean()
    if not blur > 1e-26:
        raise NoReference
    values, vectors = np.linalg.eigh(sigma + blur * np.eye(len(sigma)))
    squares = np.square((test - z.mean(0)) @ vectors / np.sqrt(values)).sum(1)
    return (squares + np.log(2 * np.pi * values).sum()) / 2


def weiper_(z: np.ndarray, test: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """MSP over perturbed heads."""
    draw, found = seeded(), []
    for _ in range(8):
        g = torch.randn(w.shape, generator=draw, dtype=torch.float32).double().numpy()
        noise = g / np.linalg.norm(g, axis=1, keepdims=True) * 1.8 * np.linalg.norm(w, axis=1, keepdims=True)
        found.append(msp_(test @ (w + noise).T + b))
    return np.mean(found, 0)


def weiper_limit_(z: np.ndarray, test: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """WeiPer+KLD with infinitely many heads, without MSP_W; smoothing over one bin."""
    bins = 20

    def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x @ w.T + b, 1.8 / np.sqrt(x.shape[1]) * norm(x)[:, None] * np.linalg.norm(w, axis=1)

    def own(x: np.ndarray) -> np.ndarray:
        edges = np.linspace(z.min(), z.max(), bins + 1)
        return np.stack([np.histogram(row.clip(z.min(), z.max()), edges)[0] / len(row) for row in x])

    mean, std = moments(z)
    edges = np.linspace((mean - 3 * std).min(), (mean + 3 * std).max(), bins + 1)

    def shared(x: np.ndarray) -> np.ndarray:
        mean, std = moments(x)
        below = np.stack([scipy.stats.norm.cdf((e - mean) / std.clip(np.finfo(float).tiny)).mean(1) for e in edges], 1)
        below[:, 0], below[:, -1] = 0, 1
        return np.diff(below, axis=1)

    def divergence(p: np.ndarray, q: np.ndarray, eps: float) -> np.ndarray:
        p, q = (d / d.sum(-1, keepdims=True) for d in (p + eps, q + eps))
        return ((p - q) * (np.log(p) - np.log(q))).sum(-1)

    return divergence(own(z).mean(0), own(test), 0.01) + 2.5 * divergence(shared(z).mean(0), shared(test), 0.025)


def msma_(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
    if len(z) < 2:
        raise NoReference
    mean, std = z.mean(0), z.std(0, ddof=1)
    if not (std > 0).all():
        raise NoReference
    return gmm_("full", single=True)((z - mean) / std, logits, labels, (test_z - mean) / std, test_logits)


def lof_(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> np.ndarray:
    rows = logits[np.lexsort(logits.T[::-1])]
    return -LocalOutlierFactor(n_neighbors=5, novelty=True).fit(rows).score_samples(test_logits)


class NoReference(Exception):
    """The formula has no value for this input: only an error is a good answer."""


QUIET: dict[str, Any] = {"updates": 0, "hidden": (4,)}
WITH_HEAD = FIT | {"head": HEAD}
LIMIT: dict[str, Any] = {"repeats": None, "bins": 20, "lambda2": 0.0, "smooth_penultimate": 1, "smooth_weiper": 1}

DETECTORS: dict[str, tuple[Callable[[Any], Any], Callable[..., np.ndarray], bool]] = {
    "MSP": (lambda h: ood.MSP(), of_logits(msp_), False),
    "MaxLogit": (lambda h: ood.MaxLogit(), of_logits(lambda x: -x.max(1)), False),
    "Energy": (lambda h: ood.Energy(0.5), of_logits(lambda x: energy_(x, 0.5)), False),
    "GEN": (lambda h: ood.GEN(), of_logits(gen_), False),
    "ODIN": (lambda h: ood.ODIN(), of_logits(lambda x: msp_(x, 1000.0)), False),
    "JointEnergy": (lambda h: ood.JointEnergy(), of_logits(joint_), False),
    "SumProb": (lambda h: ood.SumProb(), of_logits(lambda x: -scipy.special.expit(x).sum(1)), False),
    "SumLogit": (lambda h: ood.SumLogit(), of_logits(lambda x: -x.sum(1)), False),
    "KLMatching": (
        lambda h: ood.KLMatching(),
        lambda z, logits, labels, test_z, test_logits: kl_(logits, test_logits),
        False,
    ),
    "GradNorm": (
        lambda h: ood.GradNorm(),
        lambda z, logits, labels, test_z, test_logits: gradnorm_(test_z, test_logits),
        False,
    ),
    "KNN": (lambda h: ood.KNN(5), lambda z, logits, labels, test_z, test_logits: knn_(unit(z), unit(test_z), 5), False),
    "KNN raw": (
        lambda h: ood.KNN(5, normalize=False),
        lambda z, logits, labels, test_z, test_logits: knn_(z, test_z, 5),
        False,
    ),
    "NNGuide": (lambda h: ood.NNGuide(3, 1.0), nnguide_, False),
    "SHE": (lambda h: ood.SHE(), she_("inner"), False),
    "SHE euclidean": (lambda h: ood.SHE("euclidean"), she_("euclidean"), False),
    "SHE cosine": (lambda h: ood.SHE("cosine"), she_("cosine"), False),
    "FDBD": (ood.FDBD, of_head(fdbd_), True),
    "ViM": (ood.ViM, of_head(vim_), True),
    "ReAct": (ood.ReAct, of_head(react_), True),
    "ASH-P": (lambda h: ood.ASH(h, 0.5, "p"), of_head(shaped("p", 0.5)), True),
    "ASH-B": (lambda h: ood.ASH(h, 0.5, "b"), of_head(shaped("b", 0.5)), True),
    "ASH-S": (lambda h: ood.ASH(h, 0.5, "s"), of_head(shaped("s", 0.5)), True),
    "SCALE": (lambda h: ood.SCALE(h, 0.5), of_head(shaped("scale", 0.5)), True),
    "Mahalanobis": (lambda h: ood.Mahalanobis(), mahalanobis_, False),
    "RMDS": (lambda h: ood.RMDS(), rmds_, False),
    "GMM": (lambda h: ood.GMM(), gmm_("tied"), False),
    "GMM diagonal": (lambda h: ood.GMM(covariance="diagonal"), gmm_("diagonal"), False),
    "GMM full": (lambda h: ood.GMM(covariance="full"), gmm_("full"), False),
    "GMM of one": (lambda h: ood.GMM(1), gmm_("tied", single=True), False),
    "GMMPrior": (lambda h: ood.GMMPrior(), gmm_("tied", make=unit), False),
    "LogitPrior": (ood.LogitPrior, of_head(lambda z, test, w, b: energy_(test @ w.T + b)), True),
    "Composed": (
        lambda h: ood.compose([ood.Energy(), ood.KNN(5)]),
        together(of_logits(energy_), lambda z, logits, labels, t, u: knn_(unit(z), unit(t), 5)),
        False,
    ),
    "HEAT": (
        lambda h: ood.HEAT([ood.GMMPrior(), ood.LogitPrior(h)], **QUIET),
        together(without_head(gmm_("tied", make=unit)), of_head(lambda z, test, w, b: energy_(test @ w.T + b))),
        True,
    ),
    "ResidualEBM": (
        lambda h: ood.ResidualEBM(ood.GMM(1), prior_temperature=1.0, **QUIET),
        gmm_("tied", single=True),
        False,
    ),
    "FeatureFlow": (lambda h: ood.FeatureFlow(updates=0), flow_, False),
    "SklearnDetector": (lambda h: ood.SklearnDetector(LocalOutlierFactor(n_neighbors=5, novelty=True)), lof_, False),
    "MSMA": (lambda h: ood.MSMA(None, ood.GMM(1, "full"), ood.noise_scales(count=6)), msma_, False),
    "WeiPer": (lambda h: ood.WeiPer(h, "msp", 8), of_head(weiper_), True),
    "WeiPer in the limit": (lambda h: ood.WeiPer(h, **LIMIT), of_head(weiper_limit_), True),
}
ENTRIES: dict[str, Entry] = {
    name: Entry(WITH_HEAD if head else FIT, detect(make), reference)
    for name, (make, reference, head) in DETECTORS.items()
}
for name in (
    "MSP",
    "Energy",
    "GEN",
    "ODIN",
    "KLMatching",
    "KNN",
    "NNGuide",
    "SHE cosine",
    "LogitPrior",
    "Composed",
    "WeiPer",
    "ViM",
    "ReAct",
    "ASH-P",
    "ASH-B",
    "ASH-S",
    "SCALE",
    "Mahalanobis",
    "RMDS",
    "FDBD",
    "GMMPrior",
    "GMM",
    "GMM full",
    "GMM diagonal",
    "GMM of one",
    "SklearnDetector",
    "MSMA",
    "WeiPer in the limit",
):
    ENTRIES[name] = ENTRIES[name]._replace(unit=1.0)
for name in ("Mahalanobis", "RMDS"):  # where the variances of columns differ by 10^16 the smallest keep few digits
    ENTRIES[name] = ENTRIES[name]._replace(rtol=1e-4)
ENTRIES["ViM"] = ENTRIES["ViM"]._replace(rtol=1e-3)  # so do directions of small variance far from the origin
ENTRIES["Composed"] = ENTRIES["Composed"]._replace(single=1e-2)
ENTRIES["HEAT"] = ENTRIES["HEAT"]._replace(rtol=1e-3, single=2e-2)  # fitted in single precision
ENTRIES["ResidualEBM"] = ENTRIES["ResidualEBM"]._replace(rtol=1e-5)
ENTRIES["FeatureFlow"] = ENTRIES["FeatureFlow"]._replace(rtol=1e-4)
ENTRIES["WeiPer in the limit"] = ENTRIES["WeiPer in the limit"]._replace(single=2e-2)


def calibrated(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> Any:
    detector = ood.MaxLogit().calibrate(Features(logits=logits), 0.9)
    test = Features(logits=test_logits)
    return detector.threshold.item(), detector.p_values(test), detector.is_ood(test).double()


def calibrated_(z: Any, logits: Any, labels: Any, test_z: Any, test_logits: Any) -> Any:
    known, new = np.sort(-logits.max(1)), -test_logits.max(1)
    rank = int(np.ceil(round((len(known) + 1) * 0.9, 9)))
    if rank > len(known) or not np.isfinite(known).all() or known[0] == known[-1]:
        raise NoReference
    p = np.array([(1 + (known >= s).sum()) / (len(known) + 1) for s in new])
    return known[rank - 1], p, (new > known[rank - 1]).astype(float)


ENTRIES["Detector.calibrate"] = Entry(FIT, calibrated, calibrated_)


def p_values_(held_out_scores: np.ndarray, test_scores: np.ndarray) -> np.ndarray:
    if np.isnan(held_out_scores).any() or (np.diff(held_out_scores) < 0).any() or held_out_scores.ndim != 1:
        raise NoReference
    return np.array([(1 + (held_out_scores >= s).sum()) / (len(held_out_scores) + 1) for s in test_scores])


ENTRIES["conformal_p_values"] = Entry(
    {"held_out_scores": normal(40, seed=6).sort().values, "test_scores": normal(30, seed=7) + 1.5},
    lambda held_out_scores, test_scores: ood.conformal_p_values(test_scores, held_out_scores),
    p_values_,
)

# -- functions of logits, features, scores

L = {"logits": LOGITS}
ENTRIES |= {
    "msp": Entry(L, lambda logits: ood.msp(logits, 2.0), lambda logits: msp_(logits, 2.0)),
    "max_logit": Entry(L, ood.max_logit, lambda logits: -logits.max(-1)),
    "energy": Entry(L, ood.energy, energy_),
    "gen": Entry(L, ood.gen, gen_),
    "gradnorm": Entry({"z": Z, "logits": LOGITS}, ood.gradnorm, gradnorm_),
    "joint_energy": Entry(L, lambda logits: ood.joint_energy(logits, 2), lambda logits: joint_(logits, 2)),
    "label_energies": Entry(L, ood.label_energies, lambda logits: -np.logaddexp(0, logits)),
}


def temperature_(logits: np.ndarray, labels: np.ndarray) -> float:
    labels = labels.astype(int)
    if (
        logits.ndim != 2
        or labels.shape != logits.shape[:1]
        or not (0 <= labels.min() <= labels.max() < logits.shape[1])
    ):
        raise NoReference
    s = scale_of(logits)
    x, rows = logits / s, np.arange(len(labels))

    def slope(log_beta: float) -> float:
        p = softmax(x * np.exp(log_beta), 1)
        return float((p * (x - x[rows, labels][:, None])).sum(1).mean())

    low, high = -200.0, 200.0
    if slope(low) >= 0 or slope(high) <= 0:
        raise NoReference
    for _ in range(90):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return s / np.exp(low)


WRONG = torch.where(torch.arange(36) % 5 == 0, (LABELS + 1) % 3, LABELS)


def ece_(logits: np.ndarray, labels: np.ndarray) -> float:
    fits = logits.ndim == 2 and labels.shape == logits.shape[:1]
    if not (fits and 0 <= labels.min() <= labels.max() < logits.shape[1]):
        raise NoReference
    p = softmax(logits, 1)
    order = p.max(1).argsort(kind="stable")
    gaps = np.array_split((p.max(1) - (p.argmax(1) == labels))[order], max(1, min(10, len(p) // 10)))
    return sum(abs(gap.sum()) for gap in gaps) / len(p)


ENTRIES["reliability"] = Entry(
    {"logits": LOGITS, "labels": WRONG}, lambda logits, labels: ood.reliability(logits, labels, draws=2).ece, ece_
)
ENTRIES["fit_temperature"] = Entry({"logits": LOGITS, "labels": WRONG}, ood.fit_temperature, temperature_, rtol=1e-4)


def precision_(logits: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    if logits.shape != matrix.shape or logits.ndim != 2 or not np.isin(matrix, (0, 1)).all():
        raise NoReference
    pairs = zip(matrix.T.astype(int), logits.T)
    return np.array([average_precision_score(y, x) if 0 < y.sum() < len(y) else np.nan for y, x in pairs])


def counts_(matrix: np.ndarray) -> Any:
    if matrix.ndim != 2 or not np.isin(matrix, (0, 1)).all():
        raise NoReference
    each = matrix.sum(1)
    return len(matrix), (each == 0).sum(), each.mean() if len(each) else 0.0, *matrix.sum(0)


ENTRIES |= {
    "average_precision": Entry({"logits": LOGITS, "matrix": MATRIX}, ood.average_precision, precision_),
    "count_labels": Entry(
        {"matrix": MATRIX}, lambda matrix: (*(x := ood.count_labels(matrix))[:3], *x.per_class), counts_
    ),
}


def wins_(known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    return (unknown[None] > known[:, None]) + 0.5 * (unknown[None] == known[:, None])


def evaluate_(known_scores: np.ndarray, test_scores: np.ndarray) -> Any:
    known, unknown = vector(known_scores), vector(test_scores)
    threshold = np.sort(known)[int(np.ceil(round(0.95 * len(known), 9))) - 1]
    labels = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    both = ranked(np.r_[known, unknown])
    return (
        wins_(known, unknown).mean(), (unknown <= threshold).mean(),
        average_precision_score(1 - labels, -both), average_precision_score(labels, both),
    )  # fmt: skip


def ranked(scores: np.ndarray) -> np.ndarray:
    return np.unique(scores, return_inverse=True)[1].reshape(scores.shape).astype(float)


def vector(x: np.ndarray) -> np.ndarray:
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise NoReference
    return x


def evaluated(known_scores: Any, test_scores: Any) -> Any:
    found = ood.evaluate(known_scores, test_scores)
    for row in found.rows():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    return found.auroc, found.fpr95, found.aupr_in, found.aupr_out


def delong_(known_scores: Any, test_scores: Any, b_known_scores: Any, test_b_scores: Any) -> Any:
    known, unknown = [vector(known_scores), vector(b_known_scores)], [vector(test_scores), vector(test_b_scores)]
    if known[0].shape != known[1].shape or unknown[0].shape != unknown[1].shape:
        raise NoReference
    tables = [wins_(k, u) for k, u in zip(known, unknown)]
    gap = tables[0] - tables[1]
    variance = [g.var(ddof=1) / len(g) if len(g) > 1 else 1.0 for g in (gap.mean(1), gap.mean(0))]
    difference, std = gap.mean(), np.sqrt(sum(variance))
    if std > 1e-12:
        p = 2 * scipy.stats.norm.sf(abs(difference) / std)
    else:
        p = 1.0 if abs(difference) < 1e-12 else 2.0 ** (1 - min(len(known[0]), len(unknown[0])))
    return tables[0].mean(), tables[1].mean(), difference, p


def compared(known_scores: Any, test_scores: Any, b_known_scores: Any, test_b_scores: Any) -> Any:
    found = ood.compare(known_scores, test_scores, b_known_scores, test_b_scores)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    return found.a, found.b, found.difference, found.p_value


ENTRIES |= {
    "evaluate": Entry(SCORES, evaluated, evaluate_, rtol=1e-9, single=1e-9),
    "compare": Entry(PAIRED, compared, delong_, rtol=1e-7, single=1e-7),
    "Watch": Entry(SCORES, lambda known_scores, test_scores: ood.Watch(known_scores).update(test_scores), ITSELF),
}


def kld_(points: np.ndarray, test_points: np.ndarray, confidence_scores: np.ndarray) -> np.ndarray:
    def divergence(p: np.ndarray, q: np.ndarray, eps: float) -> np.ndarray:
        p, q = (d / d.sum(-1, keepdims=True) for d in (p + eps, q + eps))
        return ((p - q) * (np.log(p) - np.log(q))).sum(-1)

    if points.shape != test_points.shape or points.ndim != 2 or confidence_scores.shape != points.shape[:1]:
        raise NoReference
    first, second = np.full(points.shape[1], 0.1), np.linspace(0.1, 0.3, points.shape[1])
    return divergence(first, points, 0.01) + 2.5 * divergence(second, test_points, 0.025) - 0.1 * confidence_scores


def kld(points: Any, test_points: Any, confidence_scores: Any) -> Tensor:
    width = points.shape[1] if isinstance(points, Tensor) and not points.is_nested and points.ndim > 1 else 4
    first, second = (
        torch.full((width,), 0.1, dtype=torch.float64, device="cpu"),
        torch.linspace(0.1, 0.3, width, dtype=torch.float64, device="cpu"),
    )
    like = (
        x.to(points.dtype) if isinstance(points, Tensor) and points.is_floating_point() else x for x in (first, second)
    )
    return ood.weiper_kld(points, test_points, confidence_scores, *like, smooth_penultimate=1, smooth_weiper=1)


HISTOGRAMS = normal(9, 4, seed=10).softmax(1)
ENTRIES["weiper_kld"] = Entry(
    {
        "points": HISTOGRAMS,
        "test_points": normal(9, 4, seed=11).softmax(1),
        "confidence_scores": normal(9, seed=12).sigmoid(),
    },
    kld,
    kld_,
)


def descent_(points: np.ndarray) -> np.ndarray:
    if points.ndim != 2:
        raise NoReference
    return points * 0.9**5


ENTRIES["sgld"] = Entry(
    {"points": normal(7, 3, seed=13)},
    lambda points: ood.sgld(lambda z: z.square().sum(1) / 2, points, 5, 0.1, temperature=0.0),
    descent_,
)

# -- images and networks

WEIGHT = normal(3, 16, seed=14)


class Flat(nn.Module):
    """Images (N, 1, 4, 4) to three logits, in the precision of the images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ WEIGHT.to(images.device, images.dtype).T


def pixels(images: np.ndarray) -> np.ndarray:
    if images.ndim != 4 or images[0:1].size not in (0, 16):
        raise NoReference
    return images.reshape(len(images), 16)


def odin_(images: np.ndarray) -> np.ndarray:
    x = pixels(images)
    w = WEIGHT.numpy()
    logits = x @ w.T / 1000
    p = softmax(logits, 1)
    gradient = (p - np.eye(3)[logits.argmax(1)]) @ w
    return msp_((x - 0.0014 * np.where(gradient >= 0, 1, -1)) @ w.T, 1000.0)


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    return -x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


SIGMAS = [1.0, 0.1]


def norms_(images: np.ndarray) -> np.ndarray:
    if images.ndim < 2 or (images.ndim == 4 and not ((images >= 0) & (images <= 1)).all()):
        raise NoReference
    x = images.reshape(len(images), images[:1].size)
    return np.stack([s / (1 + s**2) * norm(x) for s in SIGMAS], 1)


def dsm_(images: np.ndarray) -> np.ndarray:
    """The noise is the image itself, sigma one half."""
    x = images.reshape(len(images), images[:1].size)
    return np.square(0.5 * (-1.5 * x / 1.25) + x).sum(1) / 2


def gaussian_(images: np.ndarray) -> np.ndarray:
    x = images.reshape(len(images), -1)
    if len(x) < 2:
        raise NoReference
    away = x - x.mean(0)
    u, s, v = np.linalg.svd(away, full_matrices=False)
    return -(u * (s / (s**2 / len(x) + 1)) @ v).reshape(images.shape)


def batches(images: Any, labels: Any) -> Dataset:
    """As people put them together: a list of pairs."""
    try:
        return list(zip(images, labels, strict=True))  # type: ignore[return-value]
    except (TypeError, ValueError):  # no rows, or no label for each
        return images


torch.manual_seed(0)
NETWORKS: dict[str, nn.Module] = {  # drawn once: a draw depends on the default precision
    "tiny": nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)),
    "convolution": nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)).double(),
    "score": ood.ScoreNetwork(1, widths=(4,)),
    "body": ood.UNet(1).double(),
    "residual": ood.ResNet(1, 3, [4]).double().eval(),
    "normalize": ood.Normalize([0.5], [0.25]),
}


def copy_of(name: str) -> Any:
    return copy.deepcopy(NETWORKS[name])


def tiny() -> nn.Module:
    return copy_of("tiny")


def trained(images: Any, labels: Any) -> Any:
    net = tiny()
    ood.train_classifier(net, batches(images, labels), epochs=1, batch_size=4, device="cpu", progress=False)
    return [p.detach() for p in net.parameters()]


def recalled(images: Any, labels: Any) -> Any:
    net = tiny()
    options = {"epochs": 1, "batch_size": 4, "device": "cpu", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        ood.trained(ood.train_classifier, net, batches(images, labels), name="odd", cache=folder, **options)
    return [p.detach() for p in net.parameters()]


class WithHead(nn.Sequential):
    @property
    def head(self) -> nn.Module:
        return self[-1]


def trained_multilabel(images: Any, matrix: Any) -> Any:
    net = WithHead(*tiny())
    ood.train_multilabel(net, batches(images, matrix), epochs=1, batch_size=4, device="cpu", progress=False)
    return [p.detach() for p in net.parameters()]


def score_trained(images: Any) -> Any:
    net = copy_of("score")
    ood.train_score_network(net, batches(images, [0] * 12), steps=2, batch_size=4, device="cpu", progress=False)
    return [p.detach() for p in net.parameters()]


def bench(images: Any, labels: Any) -> Any:
    data = batches(images, labels)
    return ood.Benchmark("own", data, data, data, {"a": data}, {}, ("x", "y", "z"), nn.Identity(), (1, 4, 4))  # type: ignore[arg-type]


def fields(found: Features) -> Any:
    return [found.penultimate, found.logits]


def accuracy_(images: np.ndarray, labels: np.ndarray) -> float:
    with torch.no_grad():
        logits = tiny()(torch.from_numpy(np.array(images)).float()).numpy()
    if (
        labels.ndim != 1
        or labels.min() < 0
        or labels.max() > 2
        or len(images) != len(labels)
        or not np.isfinite(logits).all()
    ):
        raise NoReference
    return (logits.argmax(1) == labels).mean()


PICTURES = {"images": IMAGES, "labels": LABELS[:12]}
ENTRIES |= {
    "odin": Entry({"images": IMAGES}, lambda images: ood.odin(Flat(), images), odin_),
    "ODINNetwork": Entry({"images": IMAGES}, lambda images: ood.ODINNetwork(tiny().double().eval())(images), ITSELF),
    "score_norms": Entry({"images": IMAGES}, lambda images: ood.score_norms(shrink, images, SIGMAS), norms_),
    "ScoreNorms": Entry(
        {"images": IMAGES}, lambda images: ood.ScoreNorms(shrink, SIGMAS).represent(images).penultimate, norms_
    ),
    "dsm_loss": Entry(
        {"images": IMAGES},
        lambda images: ood.dsm_loss(shrink, images, torch.tensor([0.5], dtype=torch.float64, device="cpu"), images),
        dsm_,
    ),
    "denoising_error": Entry({"images": IMAGES}, lambda images: ood.denoising_error(shrink, images, SIGMAS), ITSELF),
    "GaussianScore": Entry(
        {"images": IMAGES}, lambda images: ood.GaussianScore(images)(images, 1.0), gaussian_, rtol=1e-3, unit=1e3
    ),
    "ScoreNetwork": Entry({"images": IMAGES}, lambda images: copy_of("score").double()(images, 0.5), ITSELF),
    "UNet": Entry(
        {"images": IMAGES},
        lambda images: copy_of("body")(images, torch.zeros(1, dtype=torch.float64, device="cpu")),
        ITSELF,
    ),
    "ResNet": Entry({"images": IMAGES}, lambda images: copy_of("residual")(images), ITSELF),
    "adapt": Entry(
        {"images": IMAGES}, lambda images: fields(Features(*ood.adapt(tiny().double()).represent(images)[:2])), ITSELF
    ),
    "Normalize": Entry(
        {"images": IMAGES}, lambda images: copy_of("normalize")(images), lambda images: (images - 0.5) / 0.25
    ),
    "ImageFormat": Entry({"images": IMAGES}, lambda images: ood.ImageFormat(3, 4)(images), ITSELF),
    "ImageArray": Entry(
        PICTURES,
        lambda images, labels: [*(x := ImageArray(images, labels)).images, x.labels.double()],
        lambda images, labels: [*np.float32(images), labels],
        single=1e-6,
    ),
    "flip": Entry({"images": IMAGES}, lambda images: ood.flip(images, seeded()), ITSELF),
    "shift": Entry({"images": IMAGES}, lambda images: ood.shift(images, 1, seeded()), ITSELF),
    "cutout": Entry({"images": IMAGES}, lambda images: ood.cutout(images, 2, seeded()), ITSELF),
    "augmented": Entry({"images": IMAGES}, lambda images: ood.augmented(1)(images, seeded()), ITSELF),
    "lipschitz_report": Entry(
        {"images": IMAGES}, lambda images: numbers_of(ood.lipschitz_report(copy_of("convolution"), images)), ITSELF
    ),
    "extract": Entry(
        PICTURES,
        lambda images, labels: fields(ood.extract(tiny(), batches(images, labels), device="cpu", progress=False)),
        ITSELF,
    ),
    "extract_benchmark": Entry(
        PICTURES,
        lambda images, labels: fields(
            ood.extract_benchmark(tiny(), bench(images, labels), device="cpu", progress=False).near["a"]
        ),
        ITSELF,
    ),
    "accuracy": Entry(
        PICTURES, lambda images, labels: ood.accuracy(tiny(), batches(images, labels), device="cpu"), accuracy_
    ),
    "mean_average_precision": Entry(
        {"images": IMAGES, "matrix": MATRIX[:12]},
        lambda images, matrix: ood.mean_average_precision(tiny(), batches(images, matrix), device="cpu"),
        ITSELF,
    ),
    "train_classifier": Entry(PICTURES, trained, ITSELF),
    "trained": Entry(PICTURES, recalled, ITSELF),
    "train_multilabel": Entry({"images": IMAGES, "matrix": MATRIX[:12]}, trained_multilabel, ITSELF),
    "train_score_network": Entry({"images": IMAGES}, score_trained, ITSELF),
}

for name in (
    "ResNet",
    "UNet",
    "ScoreNetwork",
    "train_score_network",
    "odin",
    "ODINNetwork",
    "adapt",
    "lipschitz_report",
    "extract",
    "extract_benchmark",
    "accuracy",
    "mean_average_precision",
    "train_classifier",
    "train_multilabel",
    "trained",
):
    ENTRIES[name] = ENTRIES[name]._replace(network=True)

# -- tables and verdicts

TABLE = pd.DataFrame(
    [
        {"detector": d, "ood_set": s, "group": g, "metric": "auroc", "seed": n,
         "value": 0.9 - 0.1 * (d == "b") + 0.01 * n * (1 + (d == "b")) - 0.02 * (s == "y")}
        for d in ("a", "b") for n in range(3) for s, g in (("x", "near"), ("y", "near"), ("w", "far"))
    ]
).assign(low=0.5, high=1.0, seconds=1.0, seconds_per_1000=1.0, memory_mb=1.0)  # fmt: skip


def numbers_of(found: pd.DataFrame) -> np.ndarray:
    return found.select_dtypes("number").to_numpy(float)


def means_(t: Any) -> dict[tuple[str, str], np.ndarray]:
    """By detector and group the mean of each seed, over sets that all share; loops instead of pandas' own grouping."""
    if not isinstance(t, pd.DataFrame) or not len(t):
        raise NoReference
    rows: dict[Any, float] = {}
    for r in t.to_dict("records"):
        try:
            key, value = (
                (r["detector"], r["group"], r["seed"], r["ood_set"]),
                float("nan" if r["value"] is None else r["value"]),
            )
        except (KeyError, TypeError, ValueError):
            raise NoReference from None
        if (
            key in rows
            or any(k is None or k != k for k in key)
            or isinstance(r["value"], str)
            or not (0 <= value <= 1 or value != value)
        ):
            raise NoReference
        if value != value:  # not there
            continue
        rows[key] = value
    found: dict[tuple[str, str], np.ndarray] = {}
    for d, g in dict.fromkeys((d, g) for d, g, _, _ in rows):
        if (
            len(
                {(e, n, frozenset(s for a, b, c, s in rows if (a, b, c) == (e, g, n))) for e, h, n, _ in rows if h == g}
            )
            != len({(e, n) for e, h, n, _ in rows if h == g})
            or len({frozenset(s for a, b, c, s in rows if (a, b, c) == (e, g, n)) for e, h, n, _ in rows if h == g})
            != 1
        ):
            raise NoReference
        seeds = dict.fromkeys(n for a, b, n, _ in rows if (a, b) == (d, g))
        found[d, g] = np.array([np.mean([v for k, v in rows.items() if k[:3] == (d, g, n)]) for n in seeds])
    return found


def summary_(table: Any) -> np.ndarray:
    out = {}
    for (d, g), x in means_(table).items():
        half = scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else np.nan
        out[d, g] = [x.mean(), max(x.mean() - half, 0), min(x.mean() + half, 1), len(x)]
        if len(x) == 1:
            out[d, g][1:3] = [np.nan, np.nan]
    return np.array([out[key] for key in sorted(out)])


def summed(table: Any) -> np.ndarray:
    return numbers_of(ood.summarize(table).sort_values(["detector", "group"]))


def seeds_(table: Any) -> Any:
    found = means_(table)
    if ("a", "near") not in found or ("b", "near") not in found or len(found["a", "near"]) != len(found["b", "near"]):
        raise NoReference
    seeds = [dict.fromkeys(table["seed"][(table["detector"] == d) & (table["group"] == "near")]) for d in "ab"]
    order = [list(seeds[1]).index(n) for n in seeds[0]]
    gap = 100 * (found["a", "near"] - found["b", "near"][order])
    half = scipy.stats.t.ppf(0.995, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5 if len(gap) > 1 else np.nan
    return gap.mean(), half, (gap > 0).sum(), len(gap)


def over_seeds(table: Any) -> Any:
    return tuple(ood.compare_over_seeds(table, "a", "b", "near"))[:4]


def kept(table: Any) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        ood.save_results(Path(folder) / "r.json", table, benchmark="own", network="n", origin={})
        return numbers_of(ood.summarize(ood.load_results(folder)).sort_values(["detector", "group"]))


def led(table: Any) -> np.ndarray:
    if isinstance(table, pd.DataFrame):
        table = pd.concat([table, table.assign(metric="fpr95")])
    with tempfile.TemporaryDirectory() as folder:
        ood.save_results(
            Path(folder) / "r.json",
            table,
            benchmark="own",
            network="n",
            origin=dict.fromkeys(("command", "weights", "commit", "device", "versions", "data", "sets"), ""),
        )
        return numbers_of(ood.leaderboard(ood.load_results(folder)))


def judged(logits: Any, test_logits: Any) -> Any:
    known, unknown = Features(logits=logits), Features(logits=test_logits)
    return ood.BenchmarkFeatures(known, known, known, {"u": unknown}, {})


def group_(logits: np.ndarray, test_logits: np.ndarray) -> float:
    return wins_(-logits.max(1), -test_logits.max(1)).mean()


def verdict_(logits: np.ndarray, test_logits: np.ndarray) -> Any:
    a, b, _, _ = delong_(-logits.max(1), -test_logits.max(1), -logits.sum(1), -test_logits.sum(1))
    return a, b


LISTED = ("a generator", "nested")  # lists of items are made of both
THROUGH = ("pandas, with a gap", "labels with a fraction", "labels of NaN")  # labels that `extract` only hands through
for name in (
    "train_score_network",
    "extract",
    "extract_benchmark",
    "accuracy",
    "mean_average_precision",
    "train_classifier",
    "train_multilabel",
    "trained",
):
    ENTRIES[name] = ENTRIES[name]._replace(without=LISTED)
for name in ("extract", "extract_benchmark"):
    ENTRIES[name] = ENTRIES[name]._replace(without=LISTED + THROUGH)
JUDGED = {"logits": LOGITS, "test_logits": 0.4 * TEST_LOGITS}
ENTRIES |= {
    "summarize": Entry({"table": TABLE}, summed, summary_, single=1e-5),
    "compare_over_seeds": Entry({"table": TABLE}, over_seeds, seeds_, rtol=1e-6),
    "save_results": Entry({"table": TABLE}, kept, summary_, rtol=1e-5),
    "leaderboard": Entry({"table": TABLE}, led, ITSELF, rtol=1e-5),
    "group_auroc": Entry(
        JUDGED, lambda logits, test_logits: ood.group_auroc(ood.MaxLogit(), judged(logits, test_logits))["near"], group_
    ),
    "run_benchmark": Entry(
        JUDGED,
        lambda logits, test_logits: ood.run_benchmark({"m": ood.MaxLogit()}, judged(logits, test_logits))["value"].iloc[
            0
        ],
        group_,
    ),
    "verdicts": Entry(
        JUDGED,
        lambda logits, test_logits: ood.verdicts([(judged(logits, test_logits), ood.MaxLogit(), ood.SumLogit())])[
            "near"
        ][:2],
        verdict_,
    ),
    "Features": Entry(
        {"z": Z, "logits": LOGITS},
        lambda z, logits: fields(Features(penultimate=z, logits=logits)),
        lambda z, logits: [z, logits],
    ),
    "BenchmarkFeatures": Entry(
        {"logits": LOGITS, "labels": LABELS},
        lambda logits, labels: (lambda x: ood.BenchmarkFeatures(x, x, x, {}, {}).accuracy)(
            Features(logits=logits, labels=labels)
        ),
        lambda logits, labels: (logits.argmax(1) == labels).mean(),
    ),
    "select_gmm": Entry({"z": Z}, lambda z: ood.select_gmm(Features(penultimate=z), [1]).components, lambda z: 1),
    "classical_detectors": Entry(
        WITH_HEAD,
        lambda z, logits, labels, test_z, test_logits, head: (
            ood.classical_detectors(head, Features(penultimate=z, logits=logits, labels=labels))["KNN"]
            .fit(Features(penultimate=z))
            .score(Features(penultimate=test_z))
        ),
        of_head(lambda z, test, w, b: knn_(unit(z), unit(test), min(50, max(1, max(1, len(z) // len(w)) // 5)))),
        unit=1.0,
    ),
}

"""The rows of the table of speed: the library beside its peers, on the same data, with the same numbers.

A peer is a package that is installed, or an algorithm as it was published, written anew here: "plain loop" and "as
released" name those.  OpenOOD's post-processors are of this kind ("as in OpenOOD").  Where a peer's score is the
library's up to a factor, the way multiplies by it.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ood_lib as ood
from ood_lib.detectors.classical.nnguide import balanced_subset
from ood_lib.detectors.flow.flow import coupling_flow, glow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.detectors.heat.langevin import sgld
from ood_lib.detectors.heat.residual import ResidualNet
from ood_lib.detectors.msma import score_norms
from ood_lib.detectors.weiper import NODES, REACH, perturb
from ood_lib.evaluation.metrics import auroc
from ood_lib.features.features import Features
from ood_lib.networks.score_network import noise_scales
from tests.benchmarks.measure import OURS, Case, Way, Work


class Size(NamedTuple):
    """Shapes: rows to fit, rows to score, width, classes, scores to judge, images of a network."""

    fit: int = 50_000
    score: int = 10_000
    width: int = 512
    classes: int = 100
    judged: int = 10_000_000
    images: int = 1000


QUICK = Size(fit=600, score=80, width=32, classes=6, judged=4000, images=12)


def optional(name: str) -> Any:
    """A module that the library does not need, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# -- data -------------------------------------------------------------------------------------------------------------


@cache
def head(size: Size, classes: int = 0) -> nn.Linear:
    """A last layer that knows the centres of the classes, so that most rows are classified correctly."""
    layer = nn.Linear(size.width, classes or size.classes)
    centres = torch.randn(classes or size.classes, size.width, generator=torch.Generator().manual_seed(99))
    layer.weight.data = centres / (2 * size.width**0.5)
    layer.bias.data = torch.zeros(len(centres))
    return layer.requires_grad_(False)


@cache
def rows(size: Size, n: int, seed: int, classes: int = 0) -> Features:
    """Rectified features around class means, their logits and labels."""
    classes = classes or size.classes
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, size.width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    z = (torch.randn(n, size.width, generator=generator) + centres[labels]).relu()
    return Features(penultimate=z, logits=head(size, classes)(z), labels=labels)


def sets(size: Size, classes: int = 0) -> tuple[Features, Features]:
    """Features to fit and to score."""
    return rows(size, size.fit, 0, classes), rows(size, size.score, 1, classes)


def detect(make: Callable[[], ood.Detector], train: Features | None, test: Features) -> Way:
    """Fit, where there is something to fit to, and score."""
    return lambda: (make() if train is None else make().fit(train)).score(test)


def peer(ways: dict[str, Way], name: str, module: Any, way: Way) -> None:
    """Add a way where its module is installed."""
    if module is not None:
        ways[name] = way


# -- scores of logits -------------------------------------------------------------------------------------------------


def of_logits(name: str, theirs: str, factor: Callable[[int], float] = lambda c: 1.0, **options: Any) -> Any:
    """A row for a score of logits that learns nothing."""

    def build(size: Size) -> Case:
        test = sets(size)[1]
        ways = {OURS: detect(lambda: getattr(ood, name)(), None, test)}
        if (po := optional("pytorch_ood.detector")) is not None:
            ways["pytorch-ood"] = lambda: (
                factor(size.classes) * getattr(po, theirs)(None, **options).predict_logits(test.logits)
            )
        return Case(ways, note=f"score {size.score:,} rows of {size.classes} logits")

    return build


def kl_matching(size: Size) -> Case:
    """Templates of the classes, divergence from the nearest."""
    train, test = sets(size)
    ways: dict[str, Way] = {OURS: detect(ood.KLMatching, train, test)}
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: po.KLMatching(None).fit_logits(train.logits).predict_logits(test.logits)
    return Case(ways, note="fit and score, logits")


def gradnorm(size: Size) -> Case:
    """The length of the head's gradient, in closed form, or by a gradient for each row."""
    test = sets(size)[1]
    layer = head(size)
    ways: dict[str, Way] = {OURS: detect(ood.GradNorm, None, test)}
    if po := optional("pytorch_ood.detector"):
        model = nn.Linear(*layer.weight.T.shape)
        model.load_state_dict(layer.state_dict())
        theirs = po.GradNorm(model, param_filter=lambda name: name == "weight").to("cpu")
        ways["pytorch-ood"] = lambda: size.classes * theirs.predict(test.penultimate)
    return Case(ways, note="score")


def odin(size: Size) -> Case:
    """A forward and a backward pass, a step on the image, another forward pass."""
    n = max(8, size.images // 4)
    images, network = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)), small_network()
    ways: dict[str, Way] = {
        OURS: lambda: torch.cat([ood.odin(network, x, 1000.0, 0.0014) for x in images.split(128)]),
    }
    if po := optional("pytorch_ood.detector"):
        theirs = po.ODIN(network, eps=0.0014, temperature=1000.0)
        ways["pytorch-ood"] = lambda: torch.cat([theirs.predict(x) for x in images.split(128)])
    return Case(ways, apart=0.2, note=f"{n:,} images through a ResNet")


# -- reshaped features ------------------------------------------------------------------------------------------------


def reshaped(name: str, theirs: str, fits: bool, **options: Any) -> Any:
    """A row for ReAct, ASH or SCALE."""

    def build(size: Size) -> Case:
        train, test = sets(size)
        layer = head(size)
        ways = {OURS: detect(lambda: getattr(ood, name)(layer), train if fits else None, test)}
        if po := optional("pytorch_ood.detector"):
            flat = nn.Sequential(nn.Flatten(), layer)

            def way() -> Tensor:
                detector = getattr(po, theirs)(None, flat, **options)
                if fits:
                    detector.fit_feature_maps(train.penultimate, train.labels)
                return detector.predict_feature_maps(test.penultimate[:, :, None, None])

            ways["pytorch-ood"] = way
        return Case(ways, note="fit and score" if fits else "score")

    return build


# -- distances --------------------------------------------------------------------------------------------------------


def knn(size: Size) -> Case:
    """Distance to the 50th neighbour among all training features."""
    size = size._replace(score=size.score // 4)
    train, test = sets(size)
    k = min(50, size.fit)
    ways: dict[str, Way] = {OURS: detect(lambda: ood.KNN(k), train, test)}
    z, q = (x.penultimate for x in (train, test))
    if faiss := optional("faiss"):
        faiss.omp_set_num_threads(torch.get_num_threads())

        def search(batch: int) -> Tensor:
            index = faiss.IndexFlatL2(size.width)
            index.add(F.normalize(z).numpy())
            found = [index.search(part.numpy(), k)[0][:, -1] for part in F.normalize(q).split(batch)]
            return torch.from_numpy(np.concatenate(found)).clamp(min=0).sqrt()

        ways["faiss-cpu"] = lambda: search(len(q))
        ways["as in OpenOOD"] = lambda: search(200)  # its batches, its faiss
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: po.KNN(None, k).fit_features(z, train.labels).predict_features(q)
    n, m, w = size.score, size.fit, size.width
    return Case(ways, Work(2.0 * n * m * w, moved=4.0 * w * (n + 2 * m)), note=f"k = {k}, {n:,} rows to score")


def nnguide(size: Size) -> Case:
    """The ten nearest of a bank of 1 % (quick: half)."""
    train, test = sets(size)
    fraction, layer = (0.01 if size.fit > 10_000 else 0.5), head(size)
    ways: dict[str, Way] = {OURS: detect(lambda: ood.NNGuide(10, fraction), train, test)}

    def subset() -> Features:
        return train[balanced_subset(train.labels, fraction, torch.Generator().manual_seed(0))]

    if po := optional("pytorch_ood.detector"):

        def theirs() -> Tensor:
            kept = subset()
            return po.NNGuide(None, layer, 10).fit_features(kept.penultimate, kept.labels).predict_features(
                test.penultimate
            )  # fmt: skip

        ways["pytorch-ood"] = theirs
    if faiss := optional("faiss"):

        def released() -> Tensor:  # inner products by faiss, in batches of 200
            kept = subset()
            index = faiss.IndexFlatIP(size.width)
            index.add((F.normalize(kept.penultimate) * kept.logits.logsumexp(1, keepdim=True)).numpy())
            parts = zip(test.penultimate.split(200), test.logits.split(200))
            found = [
                -torch.from_numpy(index.search(F.normalize(z).numpy(), 10)[0]).mean(1) * logits.logsumexp(1)
                for z, logits in parts
            ]
            return torch.cat(found)

        ways["as in OpenOOD"] = released
    m = len(balanced_subset(train.labels, fraction, torch.Generator()))
    return Case(
        ways,
        Work(2.0 * size.score * m * size.width, moved=4.0 * size.width * (size.score + m)),
        note=f"bank of {m:,} rows",
    )


def she(size: Size) -> Case:
    """Inner product with the pattern of the predicted class; pytorch-ood computes the logits, the others have them."""
    train, test = sets(size)
    ways: dict[str, Way] = {OURS: detect(ood.SHE, train, test)}
    layer = head(size)

    def plain() -> Tensor:
        z, y = train.penultimate, train.labels
        right = train.logits.argmax(1) == y
        sums = torch.zeros(size.classes, size.width).index_add_(0, y[right], z[right])
        patterns = sums / y[right].bincount(minlength=size.classes)[:, None]
        return -(test.penultimate * patterns[test.logits.argmax(1)]).sum(1)

    ways["plain loop"] = plain
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: (
            po.SHE(None, layer).fit_features(train.penultimate, train.labels).predict_features(test.penultimate)
        )
    return Case(ways, Work(moved=4.0 * size.width * (size.fit + size.score)), note="fit and score")


def fdbd(size: Size) -> Case:
    """Distances to the decision boundaries."""
    train, test = sets(size)
    layer = head(size)
    ways: dict[str, Way] = {OURS: detect(lambda: ood.FDBD(layer), train, test)}
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: (
            (size.classes - 1) * po.fDBD(None, layer).fit_features(train.penultimate).predict_features(test.penultimate)
        )
    n, k, c = size.score, size.width, size.classes
    return Case(ways, Work(2.0 * n * k * c, moved=4.0 * k * (size.fit + n)), note="fit and score")


# -- densities --------------------------------------------------------------------------------------------------------


def gaussian_work(size: Size, classes: int, covariances: int = 1, pairs: int = 1) -> Work:
    """Products of columns over all training rows, and one change of coordinates for each row and covariance."""
    fit, n, k = size.fit, size.score, size.width
    double = covariances * (fit * k * k / max(1, pairs) + 4.0 * k**3 + 2.0 * n * k * k) + 2.0 * n * classes * k
    return Work(double=double, moved=4.0 * k * (fit + n))


def mahalanobis(size: Size) -> Case:
    """One covariance, the nearest class mean."""
    size = size._replace(classes=min(10, size.classes))
    train, test = sets(size)
    z, y, q = train.penultimate, train.labels, test.penultimate
    ways: dict[str, Way] = {OURS: detect(ood.Mahalanobis, train, test)}
    if po := optional("pytorch_ood.detector"):  # its covariance is a sum, not a mean, and its score one half
        ways["pytorch-ood"] = lambda: 2 * len(z) * po.Mahalanobis(None).fit_features(z, y).predict_features(q)
    if sk := optional("sklearn.covariance"):

        def released() -> Tensor:
            means = torch.stack([z[y == c].mean(0) for c in range(size.classes)])
            covariance = sk.EmpiricalCovariance(assume_centered=True).fit((z - means[y]).numpy().astype(np.float32))
            precision = torch.from_numpy(covariance.precision_).to(z)
            each = [(((q - mean) @ precision) * (q - mean)).sum(1) for mean in means]
            return torch.stack(each).amin(0)

        ways["as in OpenOOD"] = released
    return Case(ways, gaussian_work(size, size.classes), apart=2e-2, note="10 classes, the library in float64")


def rmds(size: Size) -> Case:
    """As Mahalanobis, relative to all data."""
    size = size._replace(classes=min(10, size.classes))
    train, test = sets(size)
    z, y, q = train.penultimate, train.labels, test.penultimate
    ways: dict[str, Way] = {OURS: detect(ood.RMDS, train, test)}
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: len(z) * po.RMD(None).fit_features(z, y).predict_features(q)
    work = gaussian_work(size, size.classes)
    n, k = size.score, size.width
    work = Work(double=work.double + 4.0 * k**3 + 2.0 * n * k * k, moved=work.moved)
    return Case(ways, work, apart=5e-2, note="10 classes, the library in float64")


def vim(size: Size) -> Case:
    """Residual outside the main directions, against the energy.

    The cut lies between eigenvalues that are nearly equal, so the float32 of the peers turns the subspace a little.
    """
    train, test = sets(size)
    layer, dim = head(size), size.width // 2
    z, q = train.penultimate, test.penultimate
    ways: dict[str, Way] = {OURS: detect(lambda: ood.ViM(layer, dim), train, test)}
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: (
            po.ViM(None, dim, layer.weight, layer.bias).fit_features(z, train.labels).predict_features(q)
        )
    if sk := optional("sklearn.covariance"):

        def released() -> Tensor:
            w, b = layer.weight.numpy(), layer.bias.numpy()
            u = -np.linalg.pinv(w) @ b
            cov = sk.EmpiricalCovariance(assume_centered=True).fit(z.numpy() - u).covariance_
            values, vectors = np.linalg.eig(cov)
            outside = np.ascontiguousarray(vectors.T[np.argsort(values.real)[::-1][dim:]].T.real)
            largest = (z.numpy() @ w.T + b).max(1).mean()
            alpha = largest / np.linalg.norm((z.numpy() - u) @ outside, axis=1).mean()
            energy = np.logaddexp.reduce(q.numpy() @ w.T + b, axis=1)
            return torch.from_numpy(np.linalg.norm((q.numpy() - u) @ outside, axis=1) * alpha - energy)

        ways["as in OpenOOD"] = released
    fit, n, k, c = size.fit, size.score, size.width, size.classes
    single = fit * k * k + 2.0 * (fit + n) * k * (k - dim + c)
    return Case(ways, Work(single, 4.0 * k**3, 8.0 * k * (fit + n)), apart=0.1, note="fit and score")


def gmm_full(size: Size) -> Case:
    """One Gaussian per class, ten classes, each with a covariance of its own."""
    classes = min(10, size.classes)
    train, test = sets(size, classes)
    z, y, q = train.penultimate, train.labels, test.penultimate
    means = torch.stack([z[y == c].mean(0) for c in range(classes)])
    variance = (z - means[y]).square().mean().item()
    ridge = 1e-3
    ways: dict[str, Way] = {OURS: detect(lambda: ood.GMM(covariance="full", ridge=ridge), train, test)}
    if po := optional("pytorch_ood.detector"):
        ways["pytorch-ood"] = lambda: po.GMM(None, reg=ridge * variance).fit_features(z, y).predict_features(q)
    work = gaussian_work(size, classes, classes, pairs=classes)
    return Case(ways, work, note=f"{classes} classes, fit and score in float64")


def gmm_em(size: Size) -> Case:
    """Ten Gaussians under one covariance, found without labels, from the same first means."""
    size = size._replace(fit=min(size.fit, 10_000), width=min(size.width, 128))
    train = rows(size, size.fit, 0, 10)
    z = Features(penultimate=train.penultimate.double())
    ways: dict[str, Way] = {OURS: detect(lambda: ood.GMM(components=10), z, z)}
    if sk := optional("sklearn.mixture"):
        options = {"n_components": 10, "covariance_type": "tied", "random_state": 0, "tol": 1e-7, "max_iter": 500}
        ways["scikit-learn"] = lambda: (
            -torch.from_numpy(
                sk.GaussianMixture(**options).fit(z.penultimate.numpy()).score_samples(z.penultimate.numpy())
            )
        )
    return Case(ways, apart=5e-2, note=f"{size.fit:,} rows of {size.width}, the library calls scikit-learn")


# -- the papers -------------------------------------------------------------------------------------------------------


def every_edge(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Histogram by comparing each value with each edge, as released; values outside count in the edge bins."""
    edges = torch.linspace(low, high, bins + 1, dtype=values.dtype)
    edges[0], edges[-1] = -math.inf, math.inf
    inside = [((values >= a) & (values < b)).sum(1) for a, b in pairwise(edges)]
    return torch.stack(inside, 1).to(values.dtype) / values.shape[1]


def weiper(repeats: int | None, kind: str = "kld") -> Any:
    """A row for WeiPer with drawn heads, or in the limit of infinitely many."""

    def build(size: Size) -> Case:
        size = size._replace(fit=min(size.fit, 2000), score=min(size.score, 2000), classes=10)
        train, test = sets(size)
        layer = head(size)
        ways: dict[str, Way] = {OURS: detect(lambda: ood.WeiPer(layer, kind, repeats=repeats), train, test)}
        if repeats is None:
            ways["plain loop"] = lambda: limit_anew(layer, train.penultimate, test.penultimate)
        elif kind == "kld":
            ways["as released"] = lambda: weiper_anew(layer, train.penultimate, test.penultimate, repeats)
        else:
            ways["plain loop"] = lambda: weiper_msp_anew(layer, test.penultimate, repeats)
        return Case(ways, apart=2e-2, note=f"{size.fit:,} rows to fit, {size.score:,} to score, 10 classes")

    return build


def drawn_heads(layer: nn.Linear, repeats: int, delta: float = 1.8) -> tuple[Tensor, Tensor]:
    """Perturbed weights (r C, K) and their bias."""
    noise = perturb(layer.weight, delta, repeats, torch.Generator().manual_seed(0))
    return noise.flatten(0, 1), layer.bias.repeat(repeats)


def divergence(p: Tensor, q: Tensor, eps: float) -> Tensor:
    """Both Kullback-Leibler divergences of histograms that were lifted by eps."""
    p, q = ((d + eps) / (d + eps).sum(-1, keepdim=True) for d in (p, q))
    return (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)


def moving(density: Tensor, width: int) -> Tensor:
    """Moving average with repeated edges."""
    padded = F.pad(density[:, None], ((width - 1) // 2, width // 2), mode="replicate")
    return F.conv1d(padded, torch.full((1, 1, width), 1 / width))[:, 0]


def weiper_anew(layer: nn.Linear, train: Tensor, test: Tensor, repeats: int, bins: int = 100) -> Tensor:
    """WeiPer+KLD from the formulae of the paper, in batches of 100 images."""
    weight, bias = drawn_heads(layer, repeats)

    def project(z: Tensor) -> Tensor:
        return z @ weight.T + bias

    ends = [torch.stack(torch.aminmax(project(z))) for z in train.split(100)]
    low, high = min(e[0] for e in ends).item(), max(e[1] for e in ends).item()
    own = train.min().item(), train.max().item()

    def densities(z: Tensor) -> tuple[Tensor, Tensor]:
        return every_edge(z, *own, bins), every_edge(project(z), low, high, bins)

    found = [densities(z) for z in train.split(100)]
    means = [torch.cat(parts).double().mean(0).float() for parts in zip(*found)]
    scores = []
    for z in test.split(100):
        p, w = densities(z)
        msp = project(z).unflatten(1, (repeats, -1)).softmax(2).amax(2).mean(1)
        first = divergence(means[0], moving(p, 4), 0.01)
        scores.append(first + 2.5 * divergence(means[1], moving(w, 15), 0.025) - 0.1 * msp)
    return torch.cat(scores)


def weiper_msp_anew(layer: nn.Linear, test: Tensor, repeats: int) -> Tensor:
    """Minus the mean largest softmax probability over the perturbed heads."""
    weight, bias = drawn_heads(layer, repeats)
    parts = ((z @ weight.T + bias).unflatten(1, (repeats, -1)).softmax(2).amax(2).mean(1) for z in test.split(100))
    return -torch.cat(list(parts))


def limit_anew(layer: nn.Linear, train: Tensor, test: Tensor, delta: float = 1.8, bins: int = 100) -> Tensor:
    """WeiPer+KLD with infinitely many heads, from our formulae, all edges at once."""

    def moments(z: Tensor) -> tuple[Tensor, Tensor]:
        return layer(z), delta / z.shape[1] ** 0.5 * z.norm(dim=1, keepdim=True) * layer.weight.norm(dim=1)

    mean, std = moments(train)
    low, high = (mean - REACH * std).min().item(), (mean + REACH * std).max().item()
    edges = torch.linspace(low, high, bins + 1)
    own = train.min().item(), train.max().item()

    def densities(z: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = moments(z)
        below = torch.special.ndtr((edges - mean[..., None]) / std[..., None]).mean(1)
        below[:, 0], below[:, -1] = 0, 1
        index = ((z - own[0]) * (bins / (own[1] - own[0]))).long().clamp(0, bins - 1)
        counts = torch.zeros(len(z), bins).scatter_add_(1, index, torch.ones_like(z))
        return counts / z.shape[1], below.diff(dim=1)

    found = [densities(z) for z in train.split(500)]
    means = [torch.cat(parts).mean(0) for parts in zip(*found)]
    sobol = torch.quasirandom.SobolEngine(len(layer.weight), scramble=True, seed=0)
    nodes = torch.special.ndtri(sobol.draw(NODES, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)).float()
    scores = []
    for z in test.split(500):
        (p, w), (mean, std) = densities(z), moments(z)
        msp = (mean[:, None] + std[:, None] * nodes).softmax(2).amax(2).mean(1)
        first = divergence(means[0], moving(p, 4), 0.01)
        scores.append(first + 2.5 * divergence(means[1], moving(w, 15), 0.025) - 0.1 * msp)
    return torch.cat(scores)


def heat(size: Size) -> Case:
    """Twenty Langevin steps on a mixture's energy and a residual network: what a training step of HEAT spends."""
    classes = min(10, size.classes)
    train = rows(size, min(size.fit, 5000), 0, classes)
    prior = ood.GMM().fit(train)
    batch, steps, step = train.penultimate[:256], 20, 1e-3
    net = ResidualNet(size.width, (2 * size.width,) * 3)
    with torch.no_grad():
        net.out.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(1))

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def ours() -> Tensor:
        return sgld(lambda z: net(z) - prior.log_prob(z), batch, steps, step, generator=draw())

    means, weights = prior.means.float(), prior.weights.float()
    precision = (prior.whitening[0].T @ prior.whitening[0]).float()

    def energy(z: Tensor) -> Tensor:
        away = z[:, None] - means  # (n, C, K)
        squares = ((away @ precision) * away).sum(2)
        return net(z) - torch.logsumexp(weights.log() - squares / 2, 1)

    def released() -> Tensor:
        z, generator = batch.clone(), draw()
        for _ in range(steps):
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(z).sum(), z)
            z = z.detach() - step * gradient + math.sqrt(2 * step) * torch.randn(z.shape, generator=generator)
        return z

    k, wide = size.width, 2 * size.width
    net_work = 4.0 * steps * len(batch) * (k * wide + 2 * wide * wide)
    work = Work(net_work, 4.0 * steps * len(batch) * (k * k + classes * k))
    return Case({OURS: ours, "as released": released}, work, apart=2e-2, note=f"{steps} steps of {len(batch)} chains")


@cache
def small_network() -> nn.Module:
    """A ResNet for 32x32 images, in eval mode."""
    torch.manual_seed(0)
    return ood.ResNet(3, 10, (32, 64, 128)).eval()


def extraction(size: Size) -> Case:
    """What `extract` adds to a loop over batches."""
    images, network = torch.rand(size.images, 3, 32, 32, generator=torch.Generator().manual_seed(0)), small_network()
    data = torch.utils.data.TensorDataset(images, torch.arange(size.images) % 10)

    @torch.no_grad()
    def bare() -> Tensor:
        return torch.cat([network.represent(x).penultimate for x in images.split(50)])

    ways: dict[str, Way] = {
        OURS: lambda: ood.extract(network, data, batch_size=50, progress=False, device="cpu").penultimate,
        "bare loop": bare,
    }
    return Case(ways, note=f"{size.images:,} images 3x32x32, batches of 50")


def msma(size: Size) -> Case:
    """Score norms at ten scales, beside the forward passes alone."""
    torch.manual_seed(0)
    network = ood.ScoreNetwork(3, (32, 64)).eval()
    n, side = max(8, size.images // 10), (32 if size.images > 100 else 8)
    images, scales = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)), noise_scales()

    @torch.no_grad()
    def bare() -> Tensor:
        found = []
        for x in images.split(50):
            each = [s * network(x, torch.full((1,), s)).flatten(1).norm(dim=1) for s in scales.tolist()]
            found.append(torch.stack(each, 1))
        return torch.cat(found)

    ways: dict[str, Way] = {OURS: lambda: score_norms(network, images, scales, batch_size=50), "bare loop": bare}
    return Case(ways, note=f"{n} images 3x{side}x{side}, ten scales")


# -- flows ------------------------------------------------------------------------------------------------------------


def zuko_flow(width: int) -> Any:
    """Affine couplings of zuko that begin as the identity, as those of the library do."""
    zuko = optional("zuko")
    if zuko is None:
        return None
    torch.manual_seed(0)
    flow = zuko.flows.NICE(width, transforms=8, hidden_features=[width] * 2)  # affine, in spite of its name
    for transform in flow.transform.transforms:
        if hasattr(transform, "hyper"):
            for parameter in transform.hyper[-1].parameters():
                nn.init.zeros_(parameter)
    return flow


def normflows_flow(width: int, blocks: int = 10) -> Any:
    """The flow of the paper from normflows, which its released code uses; its couplings begin as the identity."""
    nf = optional("normflows")
    if nf is None:
        return None
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    mask = (torch.arange(width) % 2 == 0).float()
    for _ in range(blocks):
        s, t = (nf.nets.MLP([width, width, width], init_zeros=True) for _ in range(2))
        parts += [nf.flows.MaskedAffineFlow(mask, t, s), nf.flows.InvertibleAffine(width, use_lu=True)]
        parts += [nf.flows.ActNorm(width)]
        parts[-1].s.data.zero_(), parts[-1].t.data.zero_()
        parts[-1].data_dep_init_done.fill_(1.0)
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(width, trainable=False), parts)


def log_prob(kind: str) -> Any:
    """A row for the log-density of 2,000 rows."""

    def build(size: Size) -> Case:
        width, n = size.width, min(2000, size.score)
        x = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
        flow = coupling_flow(width, rotate=False) if kind == "coupling" else glow(width)
        ways: dict[str, Way] = {OURS: torch.no_grad()(lambda: flow.log_prob(x))}
        if kind == "coupling" and (other := zuko_flow(width)) is not None:
            ways["zuko"] = torch.no_grad()(lambda: other().log_prob(x))
        if kind == "glow" and (other := normflows_flow(width)) is not None:
            ways["normflows"] = torch.no_grad()(lambda: other.log_prob(x))
        weights = sum(p.numel() for p in flow.parameters() if p.ndim == 2)
        return Case(ways, Work(2.0 * n * weights), note=f"{n:,} rows of {width}")

    return build


def flow_step(kind: str) -> Any:
    """A row for ten updates by Adam on batches of 250; compared is the log-density of the first batch, before them."""

    def build(size: Size) -> Case:
        width, updates, rate = size.width, 10, 1e-3 if kind == "coupling" else 1e-5  # as the paper trains
        z = torch.randn(2500, width, generator=torch.Generator().manual_seed(0))
        make = (lambda: coupling_flow(width, rotate=False)) if kind == "coupling" else (lambda: glow(width))

        def loop(log_density: Callable[[Tensor], Tensor], parameters: Any) -> Tensor:
            adam = torch.optim.Adam(parameters, rate, fused=True)
            start = None
            for batch in z.split(250):
                loss = -log_density(batch).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
                start = -loss.detach() if start is None else start
            return start[None]

        flow = make()

        def library() -> Tensor:
            training = FlowTraining(flow, z, batch_size=250, learning_rate=rate)
            value = training.log_prob(training.rows[:250])
            training.run(updates)
            return torch.tensor([value])

        ways: dict[str, Way] = {OURS: library}
        if kind == "coupling" and (other := zuko_flow(width)) is not None:
            ways["zuko"] = lambda: loop(lambda x: other().log_prob(x), other.parameters())
        if kind == "glow" and (other := normflows_flow(width)) is not None:
            ways["normflows"] = lambda: loop(other.log_prob, other.parameters())
        weights = sum(p.numel() for p in flow.parameters() if p.ndim == 2)
        return Case(ways, Work(6.0 * 250 * updates * weights), apart=0.05, note=f"{updates} updates of 250 rows")

    return build


# -- metrics ----------------------------------------------------------------------------------------------------------


def judged(size: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores of ID and of OOD images, both together, and their labels."""
    generator, n = torch.Generator().manual_seed(0), size.judged // 2
    known, unknown = torch.randn(n, generator=generator), torch.randn(n, generator=generator) + 1
    return known, unknown, torch.cat([known, unknown]), torch.arange(2 * n).ge(n).long()


def area(size: Size) -> Case:
    """AUROC; the library's comes with its interval."""
    known, unknown, both, labels = judged(size)
    ways: dict[str, Way] = {OURS: lambda: torch.tensor([auroc(known, unknown)[0]])}
    if tm := optional("torchmetrics.functional.classification"):
        ways["torchmetrics"] = lambda: tm.binary_auroc(both, labels, validate_args=False)[None]
    if sk := optional("sklearn.metrics"):
        ways["scikit-learn"] = lambda: torch.tensor([sk.roc_auc_score(labels.numpy(), both.numpy())])
    return Case(ways, apart=1e-4, note=f"{size.judged:,} scores; the library's with its interval")


def four(size: Size) -> Case:
    """AUROC, FPR95, AUPR both ways; the library's come with their intervals."""
    known, unknown, both, labels = judged(size)

    def ours() -> Tensor:
        m = ood.evaluate(known, unknown, positive="ood")
        return torch.tensor([m.auroc, m.fpr95, m.aupr_in, m.aupr_out])

    ways: dict[str, Way] = {OURS: ours}
    if tm := optional("torchmetrics.functional.classification"):

        def with_torchmetrics() -> Tensor:
            p = both.sigmoid()
            fpr, tpr, _ = tm.binary_roc(p, labels, validate_args=False)
            inverse = tm.binary_average_precision((-both).sigmoid(), 1 - labels, validate_args=False)
            out = tm.binary_average_precision(p, labels, validate_args=False)
            return torch.stack([torch.trapezoid(tpr, fpr), fpr[(tpr >= 0.95).int().argmax()], inverse, out])

        ways["torchmetrics"] = with_torchmetrics
    if sk := optional("sklearn.metrics"):

        def with_scikit_learn() -> Tensor:
            y, s = labels.numpy(), both.numpy()
            fpr, tpr, _ = sk.roc_curve(y, s)
            pair = sk.average_precision_score(1 - y, -s), sk.average_precision_score(y, s)
            return torch.tensor([sk.auc(fpr, tpr), fpr[(tpr >= 0.95).argmax()], *pair])

        ways["scikit-learn"] = with_scikit_learn
    return Case(ways, apart=5e-2, note=f"{size.judged:,} scores; the library's with their intervals")


ROWS: dict[str, Callable[[Size], Case]] = {
    "MSP": of_logits("MSP", "MaxSoftmax"),
    "MaxLogit": of_logits("MaxLogit", "MaxLogit"),
    "Energy": of_logits("Energy", "EnergyBased"),
    "GEN": of_logits("GEN", "GEN", float),
    "KLMatching": kl_matching,
    "GradNorm": gradnorm,
    "ODIN": odin,
    "ReAct": reshaped("ReAct", "ReAct", True),
    "ASH": reshaped("ASH", "ASH", False, variant="ash-b", percentile=0.9),
    "SCALE": reshaped("SCALE", "SCALE", False, percentile=0.85),
    "KNN": knn,
    "NNGuide": nnguide,
    "SHE": she,
    "FDBD": fdbd,
    "Mahalanobis": mahalanobis,
    "RMDS": rmds,
    "ViM": vim,
    "GMM, full": gmm_full,
    "GMM, tied, no labels": gmm_em,
    "WeiPer+KLD": weiper(100),
    "WeiPer+KLD, limit": weiper(None),
    "WeiPer+MSP": weiper(100, "msp"),
    "HEAT, Langevin chain": heat,
    "flow, log_prob": log_prob("coupling"),
    "flow, training": flow_step("coupling"),
    "flow of the paper, log_prob": log_prob("glow"),
    "flow of the paper, training": flow_step("glow"),
    "MSMA, score norms": msma,
    "extract": extraction,
    "AUROC": area,
    "all metrics": four,
}

r"""A hybrid: prior energy plus learned residual, :math:`E_{\text{prior}}(z)/T_p + E_\theta(z)`; larger = more OOD.

Priors stand in `ood_lib.detectors.heat.priors`, the network and its loss in `ood_lib.detectors.heat.residual`, and
`ood_lib.detectors.heat.langevin` draws the negatives it is trained on.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ood_lib.checks import check
from ood_lib.detectors.classical.gmm import GMM
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.heat.langevin import DivergedError, sgld
from ood_lib.detectors.heat.residual import Diagnostics, ResidualNet, residual_loss
from ood_lib.detectors.moments import Kind, Moments, class_moments, merge_moments
from ood_lib.features.features import Features
from ood_lib.warn import warn

__all__ = ["ResidualEBM"]

Start = Literal["prior", "noise", "data", "persistent"]
Energy = Callable[[Tensor], Tensor]
HARDLY, LAST = 0.1, 20  # a gap below this share of the largest, over so many last updates, is hardly any training
FAR = 30.0  # times beyond which energies count as diverged, and features as of another scale
POOL, RENEWED = 10, 0.05  # persistent chains per batch row, and the share of them that begins anew


class ResidualEBM(Detector):
    r"""Hybrid energy of a prior and a learned residual, :math:`E_{\text{prior}}/T_p + E_\theta`; larger = more OOD.

    Args:
        prior: a detector of one field with ``log_prob(z)``, differentiable, up to a constant: `GMM`, `GMMPrior`,
            `LogitPrior`.  It is copied, and fitted with the hybrid.  ``sample(n, generator)`` lets chains start there,
            ``project(z)`` keeps them where features lie.
        lam: lambda, see `residual_loss`: the best residual is at most 1/(2 lambda).
        prior_temperature: T_p; None = the standard deviation of the prior energy over the training features, so that
            1/(2 lambda) counts in standard deviations; for a prior that can be sampled, a density, at least sqrt(D/2),
            that of a Gaussian.
        hidden, shared: see `ResidualNet`.
        standardize: let the network see each feature in units of its spread over the training set.
        steps: K, Langevin steps from start to negative; with 0 the starts are the negatives.
        step_size: None = T_p / 10 with ``precondition``: noise and drift of a step on the unscaled prior energy, 0.1.
            Without, as much in the narrowest direction, T_p / 10 times the smallest variance inside the classes: a unit
            that never varies makes this tiny.
        temperature: of the chain; None = 1/T_p, at which a zero residual leaves the prior as it is.
        noise, decay: see `sgld`.
        precondition: use the covariance inside the classes (without labels: of all features) as metric.
        start: ``"prior"`` samples, ``"noise"`` as long as the features, ``"data"`` (contrastive divergence) or the
            ends of former chains, ``"persistent"``; a detector with ``sample`` of its own, fitted with the hybrid, such
            as `GMM` for a `LogitPrior`; None = prior if it can be sampled, else noise.
        keep_starts: the starts are negatives too.
        updates, batch_size, learning_rate: of Adam.
        average: decay of the moving average of the weights that is kept; 0 keeps the last ones.
        factor: of the residual in the energy, once it is trained: 0 = the prior, 1 = as it was trained.  Training takes
            no notice of it: set ``.factor`` anew at any time, to what a validation OOD set says, then calibrate again.
            A `compose` or `HEAT` around the hybrid keeps its own scale and threshold: set it before that is fitted.
        seed: of weights, batches, starts and chains.

    A training that ends with less than a tenth of the gap that lambda allows warns: the hybrid then ranks as its prior.

    Raises:
        ValueError: a prior without ``log_prob``, or without ``sample`` where chains are to start from it; an argument
            out of its range.
        DivergedError: on fitting, an energy that is not finite, or far beyond its bound; the average of the weights
            before that is kept.

    Example:
        >>> from ood_lib import GMM
        >>> angle = torch.linspace(0, 6.28, 300)
        >>> ring = torch.stack([angle.cos(), angle.sin()], 1)
        >>> hybrid = ResidualEBM(GMM(components=1), updates=150, learning_rate=3e-3).fit(Features(penultimate=ring))
        >>> hole, edge = hybrid.energy(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> bool(hole > edge)  # for the prior the hole is the densest place
        True
    """

    grows = ("metric",)
    t_p: Tensor
    length: Tensor
    narrowest: Tensor  # smallest variance inside the classes in units of the metric: 1 with one
    metric: Tensor
    positive: Tensor

    def __init__(
        self,
        prior: Detector,
        *,
        lam: float = 0.25,
        prior_temperature: float | None = None,
        hidden: Sequence[int] = (128, 128, 128),
        shared: bool = False,
        standardize: bool = True,
        steps: int = 5,
        step_size: float | None = None,
        temperature: float | None = None,
        noise: float | None = None,
        decay: float = 1.0,
        precondition: bool = True,
        start: Start | Detector | None = None,
        keep_starts: bool = False,
        updates: int = 500,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        average: float = 0.99,
        factor: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_prior(prior, start)
        self.prior: Any = copy.deepcopy(prior)  # the same one in two hybrids would be fitted for the later one
        self.reads = prior.reads
        self.lam, self.prior_temperature = lam, prior_temperature
        self.hidden, self.shared, self.standardize = tuple(hidden), shared, standardize
        self.steps, self.step_size, self.temperature = steps, step_size, temperature
        self.noise, self.decay, self.precondition, self.keep_starts = noise, decay, precondition, keep_starts
        self.start: Any = ("prior" if hasattr(prior, "sample") else "noise") if start is None else copy.deepcopy(start)
        self.updates, self.batch_size, self.learning_rate = updates, batch_size, learning_rate
        self.average, self._factor, self.seed = average, factor, seed
        check("[0, inf)", "a finite number", lam=lam, decay=decay, learning_rate=learning_rate, factor=factor)
        check("integer [0, inf)", steps=steps, updates=updates)
        check("integer [1, inf)", batch_size=batch_size)
        check("[0, inf) or None", "a finite number", temperature=temperature, noise=noise)
        check("(0, inf) or None", "a finite number", prior_temperature=prior_temperature, step_size=step_size)
        check("[0, 1)", "a share", average=average)
        self.net: Any = self._network(1)
        self.history = Diagnostics()
        self.register_buffer("t_p", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("length", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("narrowest", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("positive", torch.tensor(False))

    @property
    def factor(self) -> float:
        """Of the residual in the energy."""
        return self._factor

    @factor.setter
    def factor(self, factor: float) -> None:
        check("[0, inf)", "a finite number", factor=factor)
        self._factor = factor

    # -- energies ---------------------------------------------------------------------------------------------------

    def energy(self, z: Tensor) -> Tensor:
        """Hybrid energy of points (N, D) as `points` gives them, (N,), differentiable in z.

        Raises:
            NotFittedError: `fit` has not been called, nor that of the prior.
        """
        return -self.prior.log_prob(z) / self.t_p + self.factor * self.net(z)

    def residual(self, z: Tensor) -> Tensor:
        """What the network says of points (N, D), (N,); ``factor`` times that is added to the energy of the prior."""
        self._require_fit()
        return self.net(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density up to a constant, minus `energy` / ``temperature``: a hybrid can be the prior of another.

        It is the density that long chains draw from, unless ``noise`` is free; at temperature 0, which draws from none,
        that of 1/T_p.
        """
        self._require_fit()
        return -self.energy(z) / (self.temperature or 1 / self.t_p.item())

    def points(self, features: Features) -> Tensor:
        """Where features lie for this hybrid: the field it reads, projected as the prior asks, (N, D)."""
        z = getattr(features, self.reads[0])
        return self.prior.project(z) if hasattr(self.prior, "project") else z

    def project(self, z: Tensor) -> Tensor:
        """Points (N, D) back to where features lie: not negative if no training feature was, and as the prior asks."""
        z = z.clamp(min=0) if self.positive else z
        return self.prior.project(z) if hasattr(self.prior, "project") else z

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Ends of n chains from fresh starts, (n, D): the negatives that the network would now be trained on.

        They run on the energy as it is trained, with a ``factor`` of 1.

        Raises:
            NotFittedError: `fit` has not been called.
            ValueError: the chains of this hybrid start from data.
        """
        self._require_fit()
        return self._chain(self._fresh(n, generator), generator, self._target())

    def _score(self, features: Features) -> Tensor:
        z = self.points(features)
        ratio = float(z.norm(dim=1).median() / self.length)
        if not 1 / FAR < ratio < FAR:
            warn(
                f"half of these features are {ratio:.1g} times as long as those of the fit, or more so: were they "
                "extracted in the same way?"
            )
        return self.energy(z)

    # -- training ---------------------------------------------------------------------------------------------------

    def _fit(self, features: Features) -> None:
        self._forget()  # from here on a fit that is broken off leaves neither the old hybrid nor its threshold
        self.fitted.fill_(False)
        self.prior.fit(features)
        if isinstance(self.start, Detector):
            self.start.fit(features)
        chunks = (self._prepare(chunk) for chunk in features.split(self.chunk))
        z = torch.cat([self.points(chunk).float() for chunk in chunks])  # on the detector's device
        if not z.isfinite().all() or not z.std(0, correction=0).any():
            raise ValueError(
                f"features between {z.min().item():g} and {z.max().item():g} are infinite, or all equal, in single "
                "precision, in which residuals are trained: rescale them"
            )
        self.positive.fill_(bool((z >= 0).all()))
        self.length.copy_(z.norm(dim=1).median())
        self.t_p.fill_(self._unit(z) if self.prior_temperature is None else self.prior_temperature)
        parts = (class_moments(part, part.new_zeros(len(part)).long()) for part in z.split(self.chunk))
        overall = reduce(merge_moments, parts)
        self.net = self._network(z.shape[1]).to(z.device)
        if self.standardize:
            variance = overall.scatter.diagonal() / len(z)
            self.net.shift.copy_(overall.means[0])
            self.net.scale.copy_((variance + 1e-3 * variance.mean()).sqrt())
        inside = _within(getattr(self.prior, "moments", overall), getattr(self.prior, "kind", "tied"))
        self.metric = torch.linalg.cholesky(inside) if self.precondition else z.new_empty(0)
        self.narrowest.fill_(1.0 if self.precondition else torch.linalg.eigvalsh(inside)[0])
        self._train(z)

    def _unit(self, z: Tensor) -> float:
        """Spread of the prior energy over the training features (N, D)."""
        spread = torch.cat([self.prior.log_prob(part) for part in z.split(self.chunk)]).double().std(correction=0)
        # of a density no less than that of a Gaussian: one that spreads less over its own training set is overfitted
        least = math.sqrt(z.shape[1] / 2) if hasattr(self.prior, "sample") else 0.0
        return max(spread.item(), least) or 1.0

    def _network(self, width: int) -> ResidualNet:
        bound = 1 / (2 * self.lam) if self.lam else 1.0
        return ResidualNet(width, self.hidden, self.shared, bound, self.seed)

    def _train(self, z: Tensor) -> None:
        draw, self.history = torch.Generator().manual_seed(self.seed), Diagnostics(lam=self.lam)
        average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(self.average))
        fused = z.device.type in ("cpu", "cuda")
        adam = torch.optim.Adam(self.net.parameters(), self.learning_rate, betas=(0.0, 0.999), fused=fused)
        pool = self._fresh(POOL * self.batch_size, draw) if self.start == "persistent" else None
        target = self._target()
        try:
            for _ in range(self.updates):
                batch = z[torch.randint(len(z), (self.batch_size,), generator=draw, device="cpu").to(z.device)]
                self._update(adam, batch, self._negatives(batch, pool, draw, target))
                average.update_parameters(self.net)
        except DivergedError as error:
            self.fitted.fill_(True)
            raise DivergedError(
                f"training stopped at update {len(self.history.loss)} of {self.updates}: {error}. The weights before "
                "that are kept; .history shows how it came about"
            ) from error
        finally:
            self.net = average.module
        last = self.history.gap_share[-LAST:]
        if self.lam and last and (share := sum(last) / len(last)) < HARDLY:
            warn(
                f"after {self.updates} updates the residual of {type(self.prior).__name__} tells negatives from data "
                f"by {max(share, 0.0):.1%} of what lam={self.lam:g} allows: the hybrid ranks almost as its prior. "
                "Take more updates or a larger learning_rate, or accept that this prior leaves nothing to learn"
            )

    def _negatives(self, batch: Tensor, pool: Tensor | None, draw: torch.Generator, target: Energy) -> Tensor:
        if pool is not None:
            rows = torch.randperm(len(pool), generator=draw, device="cpu")[: len(batch)].to(pool.device)
            renewed = (torch.rand(len(batch), 1, generator=draw, dtype=torch.float32, device="cpu") < RENEWED).to(
                pool.device
            )
            start = torch.where(renewed, self._fresh(len(batch), draw), pool[rows])
            pool[rows] = ends = self._chain(start, draw, target)
        else:
            start = batch if self.start == "data" else self._fresh(len(batch), draw)
            ends = self._chain(start, draw, target)
        return torch.cat([ends, self.project(start)]) if self.keep_starts else ends

    def _fresh(self, n: int, generator: torch.Generator | None) -> Tensor:
        """New starts of chains, (n, D) in single precision."""
        if self.start == "data":
            raise ValueError('chains with start="data" begin at training features, which a hybrid does not keep')
        drawn_by = self.start if isinstance(self.start, Detector) else self.prior
        sample: Any = getattr(drawn_by, "sample", None)
        if sample and self.start != "noise":
            return sample(n, generator).to(self.net.shift)
        width = len(self.net.shift)
        noise = torch.randn(n, width, generator=generator, dtype=torch.float32, device="cpu").to(self.net.shift)
        return noise * (self.length / math.sqrt(width)).to(noise)

    @torch.inference_mode(False)
    def _target(self) -> Energy:
        """The energy that chains run on: of the prior, which no longer changes, and of the network as it trains."""
        t_p = self.t_p.item()
        if not isinstance(self.prior, GMM) or self.prior.covariance != "tied":
            return lambda z: self.net(z) - self.prior.log_prob(z) / t_p
        prior = self.prior.with_gradient(self.net.shift)

        def both(z: Tensor) -> tuple[Tensor, Tensor]:
            (log_prob, uphill), (residual, slope) = prior(z), self.net.with_gradient(z)
            return residual - log_prob / t_p, slope - uphill / t_p

        return partial(_WrittenOut.apply, both)

    def _chain(self, start: Tensor, generator: torch.Generator | None, target: Energy) -> Tensor:
        t_p = self.t_p.item()
        temperature = 1 / t_p if self.temperature is None else self.temperature
        size = 0.1 * t_p * self.narrowest.item() if self.step_size is None else self.step_size
        return sgld(
            target, start, self.steps, size, temperature=temperature, noise=self.noise, decay=self.decay,
            metric=self.metric if self.precondition else None, project=self.project, generator=generator,
        )  # fmt: skip

    @torch.enable_grad()
    def _update(self, adam: torch.optim.Adam, batch: Tensor, negatives: Tensor) -> None:
        data, other = self.net(torch.cat([batch, negatives])).split([len(batch), len(negatives)])
        loss = residual_loss(data, other, self.lam)
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), math.inf)  # measures it
        if not (loss + norm).isfinite() or max(data.abs().mean(), other.abs().mean()) > FAR * self.net.bound:
            raise DivergedError(
                f"the residual has mean energies {data.mean():.3g} on data and {other.mean():.3g} on negatives, its "
                f"bound 1/(2 lambda) is {self.net.bound:.3g}: take a smaller learning_rate"
            )
        adam.step()
        means = torch.stack([data.mean(), other.mean(), loss, norm]).tolist()
        for name, value in zip(("data", "negatives", "loss", "gradient_norm"), means):
            getattr(self.history, name).append(value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (saved := state_dict.get(prefix + "net.shift")) is not None:  # its length is the width, learnt by fit
            self.net = self._network(len(saved)).to(self.t_p.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def arguments(self) -> dict[str, Any]:
        """As of every detector; the factor, which can be set anew, is a property."""
        return super().arguments() | {"factor": self.factor}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The prior and the hyperparameters, as they were given."""
        return f"prior={self.prior}, hidden={self.hidden}, {super().extra_repr()}"


class _WrittenOut(torch.autograd.Function):
    """A function of points that also gives its gradient, to be differentiated once: one node of the graph."""

    @staticmethod
    def forward(ctx: Any, with_gradient: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> Tensor:
        value, gradient = with_gradient(z)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, slope[:, None] * gradient


def _within(moments: Moments, kind: Kind) -> Tensor:
    """Covariance (D, D) inside the components of moments of any kind, lifted until it has an inverse."""
    scatter = moments.scatter if kind == "tied" else moments.scatter.sum(0)
    covariance = (scatter.diag() if kind == "diagonal" else scatter) / moments.counts.sum()
    lift = 1e-6 * covariance.diagonal().mean()  # as `mixture` does
    return covariance + lift.expand(len(covariance)).diag()


def _check_prior(prior: Detector, start: Start | Detector | None) -> None:
    given = type(prior).__name__
    if not hasattr(prior, "log_prob") or len(getattr(prior, "reads", ())) != 1:
        raise ValueError(
            f"a {given} was given as prior; expected a detector of one field with log_prob(z), such as GMM(), "
            "GMMPrior('style') or LogitPrior(head)"
        )
    if isinstance(start, Detector):
        if not hasattr(start, "sample") or start.reads != prior.reads:
            raise ValueError(
                f"start={type(start).__name__} was given; expected a detector with sample(n, generator) that reads "
                f"{prior.reads[0]} as the prior does, such as GMM()"
            )
        return
    check((None, "prior", "noise", "data", "persistent"), start=start)
    if start == "prior" and not hasattr(prior, "sample"):
        raise ValueError(f"a {given} cannot be sampled: chains cannot start there; take start='noise' or 'persistent'")

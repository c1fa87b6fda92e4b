"""Feature flows: fit a normalizing flow to the features of a frozen network; minus its log-density is the score.

Larger = more OOD.  No labels, no OOD data: a flow learns by maximum likelihood, is counted in *updates*, and stops by
the likelihood of held-out ID features alone.  The flow itself is in `ood_lib.detectors.flow.flow`.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.flow.bijections import ActNorm, Whitening
from ood_lib.detectors.flow.flow import Flow, coupling_flow, glow
from ood_lib.detectors.flow.training import FlowHistory, FlowTraining
from ood_lib.detectors.moments import Kind, Moments, class_moments, merge_moments, rounding
from ood_lib.detectors.shapes import check_width
from ood_lib.features.features import Features
from ood_lib.tensors import directions
from ood_lib.training.checkpoint import Checkpoint
from ood_lib.warn import warn

__all__ = ["DEFAULTS", "Engine", "FeatureFlow", "FlowDefaults"]


class FlowDefaults(NamedTuple):
    """What arguments of `FeatureFlow` that are left at None become."""

    updates: int
    learning_rate: float
    noise: float
    whiten: bool
    holdout: float


DEFAULTS = {
    "coupling": FlowDefaults(updates=1000, learning_rate=1e-3, noise=0.1, whiten=True, holdout=0.1),
    "paper": FlowDefaults(updates=5125, learning_rate=1e-5, noise=0.0, whiten=False, holdout=0.0),  # the released code
}

MOST = 5000  # held-out rows at most: enough to see a likelihood move, few enough to look often


class Engine(nn.Module):
    """A density from elsewhere as the base of a `Flow`: it answers ``log_prob(x)``, or, as in zuko, ``()`` with one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def log_prob(self, u: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density (N,) of u (N, K); labels change nothing."""
        density: Any = self.module if hasattr(self.module, "log_prob") else self.module()
        return density.log_prob(u)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Not offered: a foreign density draws from the global random numbers."""
        raise NotImplementedError(f"draw from {type(self.module).__name__} by its own means")


class FeatureFlow(Detector):
    r"""Minus the log-density of the feature under a normalizing flow, :math:`-\log p(z/\lVert z\rVert)`, in nats.

    Larger = more OOD.  The default flow starts as the exact Gaussian of the noisy features, so that ``updates=0`` ranks
    like a Mahalanobis distance.  Features on a sphere, or with units that never vary, have no density in all K
    dimensions, and a likelihood without an upper bound; ``noise`` gives them one.

    Args:
        flow: ``"coupling"`` (`coupling_flow`), ``"paper"`` (`glow` and the training of the released code), or any
            module that answers ``log_prob(x)`` or, as in zuko, ``()`` with a distribution; each fit starts from a copy.
        normalize: divide each feature by its length.
        whiten: start from the Gaussian fit; not for ``"paper"``.
        noise: standard deviation of the noise in training, as a share of the root mean variance of the features.
        updates: at most.
        batch_size: at most as many as there are rows.
        learning_rate: of Adam.
        holdout: share of the rows that choose the update to keep, by their likelihood (5,000 at most); 0 = the last.
        check_every: updates between two looks at the held-out rows.
        patience: looks without a better likelihood before training ends.
        class_base: one Gaussian per class in the latent; this one reads labels.
        two_sided: score the distance of log p to its mean over held-out ID rows: too likely is suspicious too.
        autocast: train with nets in bfloat16; ``"auto"``: where that is faster, see `half_precision`.
        checkpoint: file from which an interrupted fit goes on; removed when the fit is done.
        seed: of weights, order and noise.
        layers: couplings of ``"coupling"``; None = 8.
        hidden: widths of each of its nets; None = two layers of min(K, 512).
        each_look: called with this detector at every look, the start included; it then scores as the flow stands at
            that look.  For curves of what no training may see, such as the AUROC; what it returns changes nothing.

    ``updates``, ``learning_rate``, ``noise``, ``whiten`` and ``holdout`` left at None take the value of the recipe:
    1000, 1e-3, 0.1, True, 0.1 for ``"coupling"`` and other modules; 5125, 1e-5, 0, False, 0 for ``"paper"``.

    Raises:
        ValueError: an argument out of its range; features that are all equal; a checkpoint of another fit; a likelihood
            that is no longer finite (the last good state is kept, and can score).

    References:
        Cook, Lavoie & Waslander, Feature Density Estimation for OOD Detection via Normalizing Flows, CRV 2024.

    Example:
        >>> z = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> flow = FeatureFlow(updates=20).fit(Features(penultimate=z))
        >>> flow.score(Features(penultimate=z)).shape
        torch.Size([400])
    """

    shape: Tensor
    usual: Tensor
    density: Any  # a `Flow`; `_require_fit` stands before each use
    flow: Any

    def __init__(
        self, flow: str | nn.Module = "coupling", *, normalize: bool = True, whiten: bool | None = None,
        noise: float | None = None, updates: int | None = None, batch_size: int = 250,
        learning_rate: float | None = None, holdout: float | None = None, check_every: int = 50, patience: int = 10,
        class_base: bool = False, two_sided: bool = False, autocast: bool | Literal["auto"] = False,
        checkpoint: str | None = None, seed: int = 0, layers: int | None = None, hidden: Sequence[int] | None = None,
        each_look: Callable[["FeatureFlow"], object] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check(lambda flow: isinstance(flow, str | nn.Module), "a name, or a module with log_prob", flow=flow)
        recipe = flow if isinstance(flow, str) else "coupling"
        check(DEFAULTS, "a module with log_prob", flow=recipe)
        object.__setattr__(self, "flow", flow)  # where each fit starts: no part of the state
        usual = DEFAULTS[recipe]
        self.whiten = usual.whiten if whiten is None else whiten
        self.noise = usual.noise if noise is None else noise
        self.updates = usual.updates if updates is None else updates
        self.learning_rate = usual.learning_rate if learning_rate is None else learning_rate
        self.holdout = usual.holdout if holdout is None else holdout
        self.normalize, self.batch_size, self.check_every, self.patience = normalize, batch_size, check_every, patience
        self.class_base, self.two_sided, self.autocast = class_base, two_sided, autocast
        self.checkpoint, self.seed, self.history = checkpoint, seed, FlowHistory()
        self.layers, self.hidden, self.each_look = layers, hidden, each_look
        self._check_arguments()
        self.register_buffer("shape", torch.zeros(2, dtype=torch.long))  # K, and C when the base has classes
        self.register_buffer("usual", torch.tensor(0.0, dtype=torch.float64))  # mean log p of held-out ID rows
        self.density = None

    def arguments(self) -> dict[str, Any]:
        """As of every detector, but for the place of a file and for what looks on: neither changes what is learnt."""
        return {k: value for k, value in super().arguments().items() if k not in ("checkpoint", "each_look")}

    def _check_arguments(self) -> None:
        check("[0, inf)", noise=self.noise, learning_rate=self.learning_rate)
        check("integer [0, inf)", updates=self.updates)
        check("integer [1, inf)", batch_size=self.batch_size, check_every=self.check_every, patience=self.patience)
        check("[0, 1)", "a share of the rows", holdout=self.holdout)
        check("integer [1, inf) or None", layers=self.layers)
        if self.flow != "coupling" and (self.layers, self.hidden) != (None, None):
            shape = f"layers={self.layers}, hidden={self.hidden}"
            raise ValueError(f'{shape} was given for a flow of another shape; expected flow="coupling", or neither')
        if self.class_base and not isinstance(self.flow, str):
            raise ValueError("class_base=True needs a flow of this library; a foreign module has a base of its own")
        if self.whiten and self.flow == "paper":
            raise ValueError('whiten=True was given with flow="paper", which has no such start; take flow="coupling"')

    # -- the density ------------------------------------------------------------------------------------------

    def on_sphere(self, z: Tensor) -> Tensor:
        """Features (N, K) as the density sees them: of length 1, unless ``normalize=False``."""
        return directions(z) if self.normalize else z

    project = on_sphere  # what a hybrid asks of its prior

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of features (N, K) in nats, (N,), differentiable in z.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        self._require_fit()
        if not is_exporting():
            check_width(z, int(self.shape[0]))
        like = next(self.density.parameters())
        return self.density.log_prob(self.on_sphere(z).to(like.dtype)).to(z.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n features from the density, (n, K); the generator is one of the CPU, None = the global one."""
        self._require_fit()
        return self.density.sample(n, generator)

    def _score(self, features: Features) -> Tensor:
        found = self.log_prob(features.penultimate)
        least = torch.finfo(found.dtype).min
        found = found.nan_to_num(nan=least, neginf=least)  # far out an unclamped flow overflows: no density there
        return (found - self.usual.to(found.dtype)).abs() if self.two_sided else -found

    # -- fitting ----------------------------------------------------------------------------------------------

    def _fit(self, features: Features) -> None:
        z, labels = features.penultimate, self._labels(features) if self.class_base else None
        moments, noise = self._measure(features)
        classes = len(moments.counts) if self.class_base else 0
        dtype = z.dtype if z.dtype == torch.float64 else torch.float32
        density = self._build(z.shape[1], classes).to(self.threshold.device, dtype)
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(self.seed), device="cpu")
        held, rows = order.tensor_split([min(int(self.holdout * len(z)), MOST)])
        training = FlowTraining(
            density, z, labels, rows=rows, held=held, batch_size=self.batch_size, learning_rate=self.learning_rate,
            noise=noise, normalize=self.normalize, autocast=self.autocast, seed=self.seed,
        )  # fmt: skip
        density.initialize(training.batch(0)[0], moments, noise)

        def adopt() -> None:
            self._forget()
            self.density, self.history = density.eval().requires_grad_(False), training.history
            self.shape = self.shape.new_tensor([z.shape[1], classes])
            self.fitted.fill_(True)
            self.usual.fill_(self._mean_log_prob(features, held if len(held) else rows[:MOST]))

        def each_look() -> None:
            if self.each_look is not None:
                adopt()
                self.each_look(self)

        kept = self._checkpoint(z, training.autocast)
        try:
            training.fit(self.updates, self.check_every, self.patience, kept, each_look)
        finally:  # a likelihood that was lost leaves the last good state, if there ever was one
            if training.best:
                adopt()

    def _mean_log_prob(self, features: Features, rows: Tensor) -> float:
        """Of some rows as `score` sees them: without noise."""
        parts = (self._prepare(Features(features.penultimate[part])).penultimate for part in rows.split(self.chunk))
        return sum(self.log_prob(z).sum().item() for z in parts) / len(rows)

    def _build(self, dim: int, classes: int) -> Flow:
        """The flow before it has seen data."""
        if self.flow == "coupling":
            layers = 8 if self.layers is None else self.layers
            return coupling_flow(dim, layers, self.hidden, whiten=self.whiten, classes=classes, seed=self.seed)
        if self.flow == "paper":
            return glow(dim, classes=classes, seed=self.seed)
        first = Whitening(dim) if self.whiten else ActNorm(dim)
        return Flow([first], Engine(copy.deepcopy(self.flow)))

    def _measure(self, features: Features) -> tuple[Moments, float]:
        """Moments of the features, of each class when the base has classes; standard deviation of the noise."""
        kind: Kind = "tied" if self.whiten else "diagonal"
        parts = (self._moments(self._prepare(chunk), kind) for chunk in features.split(self.chunk))
        moments = reduce(partial(merge_moments, kind=kind), parts)
        scatter = moments.scatter.diagonal() if self.whiten else moments.scatter.sum(0)
        variances = scatter / moments.counts.sum()
        flat = variances <= rounding(moments.means)
        if flat.all():
            raise ValueError("the training features are all equal: they have no density; look at the network")
        if flat.any():
            width = "as wide as the noise" if self.noise else "a thousandth as wide as the others"
            warn(f"{int(flat.sum())} of {len(flat)} features never vary; the flow takes them for {width}")
        return moments, self.noise * variances.mean().sqrt().item()

    def _moments(self, chunk: Features, kind: Kind) -> Moments:
        z = chunk.penultimate
        if self.normalize and (short := int((z == 0).all(1).sum())):
            warn(f"{short} features have length 0 and no direction; they stay at the origin, off the sphere")
        labels = self._labels(chunk) if self.class_base else torch.zeros(len(z), dtype=torch.long, device=z.device)
        return class_moments(self.on_sphere(z), labels, kind)

    def _checkpoint(self, z: Tensor, autocast: torch.dtype | None) -> Checkpoint | None:
        """Where to go on from; its key tells this fit from others."""
        if self.checkpoint is None:
            return None
        free = ("checkpoint", "updates", "patience", "two_sided", "each_look")
        options = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name not in free}
        options["autocast"] = autocast  # what "auto" came to
        some = z[torch.linspace(0, len(z) - 1, 64, device="cpu").long()].double().cpu().numpy().tobytes()
        return Checkpoint(self.checkpoint, hashlib.sha256(f"{options}{tuple(z.shape)}".encode() + some).hexdigest())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (saved := state_dict.get(prefix + "shape")) is not None and saved[0]:
            learnt = (v for name, v in state_dict.items() if name.startswith(prefix + "density."))
            dtype = next(v.dtype for v in learnt if v.is_floating_point())
            density = self._build(*saved.tolist()).to(self.threshold.device, dtype)
            self.density = density.eval().requires_grad_(False)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Outlier detectors of scikit-learn (LOF, isolation forest, ...) under the contract of this library.

Larger = more OOD: the minus of scikit-learn's ``score_samples``.  What is kept is not the fitted estimator, which only
pickle could save, but the features that it was fitted to, sorted.  Fitting it again gives the same estimator, provided
it has a fixed ``random_state``.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ood_lib.detector import Detector
from ood_lib.extras import need
from ood_lib.features import Features

__all__ = ["Outlier"]


class Outlier(Detector):
    """Any outlier detector of scikit-learn that answers ``score_samples``, fitted on one field of the features.

    The multi-label papers fit theirs on validation logits, so `run_benchmark` does.

    Args:
        estimator: unfitted; copied.  Give it a ``random_state`` where it has one, and ``novelty=True`` to a
            ``LocalOutlierFactor``.
        field: what it reads, logits, penultimate or style.

    Raises:
        ValueError: the estimator has no ``score_samples`` or an unset ``random_state``, or there is no such field.

    References:
        Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000; Liu, Ting & Zhou, Isolation Forest,
        ICDM 2008.

    Example:
        >>> from sklearn.neighbors import LocalOutlierFactor
        >>> known = Features(logits=torch.arange(40.0)[:, None])
        >>> detector = Outlier(LocalOutlierFactor(n_neighbors=3, novelty=True)).fit(known)
        >>> detector.score(Features(logits=torch.tensor([[20.5], [80.0]]))).round()
        tensor([ 1., 19.])
    """

    fits: ClassVar[Literal["train", "val"]] = "val"
    grows: ClassVar[tuple[str, ...]] = ("reference",)
    reference: Tensor

    def __init__(self, estimator: Any, field: Literal["logits", "penultimate", "style"] = "logits") -> None:
        super().__init__()
        if field not in ("logits", "penultimate", "style"):
            raise ValueError(f"field={field!r} was given; expected 'logits', 'penultimate' or 'style'")
        if not hasattr(estimator, "score_samples"):
            raise ValueError(
                f"{estimator!r} cannot score new samples; expected an outlier detector of scikit-learn with "
                "score_samples (LocalOutlierFactor has it with novelty=True)"
            )
        if "random_state" in (options := estimator.get_params()) and not isinstance(options["random_state"], int):
            raise ValueError(f"{estimator!r} draws at random; give it random_state=0, so that it can be fitted again")
        self.estimator, self.field = need("sklearn.base").clone(estimator), field
        self.register_buffer("reference", torch.empty(0, 0, dtype=torch.float64))
        self._refit: Any = None

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The field that it was made for."""
        return (self.field,)

    def _fit(self, features: Features) -> None:
        rows = getattr(features, self.field).to(self.reference.device).double()
        for column in range(rows.shape[1] - 1, -1, -1):  # lexicographic: the order in which they came does not matter
            rows = rows[rows[:, column].argsort(stable=True)]
        self.reference, self._refit = rows, None

    def _fitted(self) -> Any:
        if self._refit is None:
            self._refit = need("sklearn.base").clone(self.estimator).fit(self.reference.cpu().numpy())
        return self._refit

    def _score(self, features: Features) -> Tensor:
        rows = getattr(features, self.field)
        self._check_width(rows, self.reference.shape[1])
        return -torch.from_numpy(self._fitted().score_samples(rows.double().cpu().numpy())).to(rows)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._refit = None

    def extra_repr(self) -> str:
        """The estimator and what it reads."""
        return f"estimator={self.estimator!r}, field={self.field!r}"

"""Outlier detectors of scikit-learn (LOF, isolation forest, ...) under the contract of this library.

Larger = more OOD: the minus of scikit-learn's ``score_samples``.  What is kept is not the fitted estimator, which only
pickle could save, but the features that it was fitted to, sorted.  Fitting it again gives the same estimator, provided
it has a fixed ``random_state``.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.extras import need
from ood_lib.features.features import Features

__all__ = ["SklearnDetector"]


class SklearnDetector(Detector):
    """Any outlier detector of scikit-learn that answers ``score_samples``, fitted on one field of the features.

    The multi-label papers fit theirs on validation logits, so `run_benchmark` does.

    Args:
        estimator: unfitted; copied.  Give it a ``random_state`` where it has one, and ``novelty=True`` to a
            ``LocalOutlierFactor``.
        field: what it reads, logits, penultimate or style.

    Raises:
        ValueError: the estimator, or a step of it, has an unset ``random_state``; it has no ``score_samples``; there is
            no such field; on fitting, whatever the estimator raises.

    References:
        Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000; Liu, Ting & Zhou, Isolation Forest,
        ICDM 2008.

    Example:
        >>> from sklearn.neighbors import LocalOutlierFactor
        >>> known = Features(logits=torch.arange(40.0)[:, None])
        >>> detector = SklearnDetector(LocalOutlierFactor(n_neighbors=3, novelty=True)).fit(known)
        >>> detector.score(Features(logits=torch.tensor([[20.5], [80.0]]))).round()
        tensor([ 1., 19.])
    """

    fits: ClassVar[Literal["train", "val"]] = "val"
    grows: ClassVar[tuple[str, ...]] = ("reference",)
    reference: Tensor

    def __init__(self, estimator: Any, field: Literal["logits", "penultimate", "style"] = "logits") -> None:
        super().__init__()
        check(("logits", "penultimate", "style"), field=field)
        if not hasattr(estimator, "score_samples"):
            raise ValueError(
                f"{estimator!r} cannot score new samples; expected an outlier detector of scikit-learn with "
                "score_samples (LocalOutlierFactor has it with novelty=True)"
            )
        options = estimator.get_params()  # those of the steps of a pipeline too
        if free := [n for n, v in options.items() if n.endswith("random_state") and not isinstance(v, int)]:
            mend = ", ".join(f"{name}=0" for name in free)
            raise ValueError(f"{estimator!r} draws at random; give it {mend}, so that it can be fitted again")
        self.estimator, self.field, self.reads = need("sklearn.base").clone(estimator), field, (field,)
        self._refit: Any = None

    def _fit(self, features: Features) -> None:
        rows = getattr(features, self.field).detach().to(self.reference.device).double()
        order = np.lexsort(rows.cpu().numpy().T[::-1])  # by the first column first: how they came does not matter
        rows = rows[torch.from_numpy(order)]
        self._refit = self._fit_to(rows)  # what can fail comes first: a failed fit changes nothing
        self.reference = rows

    def _fit_to(self, rows: Tensor) -> Any:
        try:
            return need("sklearn.base").clone(self.estimator).fit(rows.cpu().numpy())
        except ValueError as error:
            raise ValueError(f"{self.estimator!r} cannot be fitted to {tuple(rows.shape)} features: {error}") from error

    def _score(self, features: Features) -> Tensor:
        rows = getattr(features, self.field)
        if self._refit is None:  # the state was loaded
            self._refit = self._fit_to(self.reference)
        return -torch.from_numpy(self._refit.score_samples(rows.double().cpu().numpy())).to(rows)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._refit = None

    def extra_repr(self) -> str:
        """The estimator and what it reads."""
        return f"estimator={self.estimator!r}, field={self.field!r}"

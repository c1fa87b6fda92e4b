"""Base of the detectors whose fit is a function of moments: they learn in pieces, or from each other."""

from functools import partial, reduce
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.compiler import is_exporting

from ood_lib.data.labels import label_matrix, present
from ood_lib.detectors.detector import REMEMBERED, Detector
from ood_lib.detectors.moments import Kind, Moments, class_moments, merge_moments
from ood_lib.features.features import Features

__all__ = ["MomentDetector"]


class MomentDetector(Detector):
    """Base of the detectors whose fit is a function of moments: they learn in one go, in pieces, or from each other.

    ``fit`` starts afresh; ``partial_fit`` and ``merge`` add to what has been seen, and what follows from the moments
    (an eigendecomposition, say) is worked out once, when a score is first asked for.  A subclass writes ``_finish``,
    and ``_measure`` where it does not count the penultimate features by their labels.

    Example:
        >>> from ood_lib import Mahalanobis
        >>> z, y = torch.rand(90, 4), torch.arange(90) % 3
        >>> parts = [Features(penultimate=z[i::2], labels=y[i::2]) for i in range(2)]
        >>> a, b = (Mahalanobis().partial_fit(part) for part in parts)  # perhaps on two machines
        >>> whole = Mahalanobis().fit(Features(penultimate=z, labels=y))
        >>> torch.allclose(a.merge(b).score(parts[0]), whole.score(parts[0]))
        True
    """

    grows: ClassVar[tuple[str, ...]] = ("counts", "means", "scatter")
    kind: Kind = "none"
    counts: Tensor
    means: Tensor
    scatter: Tensor

    # -- what a subclass writes -------------------------------------------------------------------------------

    def _measure(self, chunk: Features) -> Moments:
        """Moments of one chunk that lies on the detector's device; an image of several labels counts once for each."""
        z, labels = chunk.penultimate, chunk.labels
        if labels is None or labels.ndim == 1:
            return class_moments(z, self._labels(chunk), self.kind)
        if labels.shape[1:] == (1,):  # class indices, or one label that is there or not: both look like this
            raise ValueError(
                f"labels are a column {tuple(labels.shape)}; expected class indices (N,), which labels.flatten() makes "
                "of it, or a label matrix (N, C) with two columns at least"
            )
        rows, classes = present(label_matrix(labels, len(z)))
        return class_moments(z[rows], classes, self.kind, classes=labels.shape[1])

    def _finish(self, moments: Moments) -> None:
        """Work out what scores need and store it in buffers; raise ValueError before that if it cannot be done."""

    @staticmethod
    def _need_every_class(moments: Moments, what: str = "a training sample") -> None:
        empty = (moments.counts == 0).nonzero().flatten().tolist()
        if empty:
            mend = "add some, or leave the class out of the labels (for a label matrix: its column)"
            raise ValueError(f"every class needs {what}; none of class {empty} has been given: {mend}")

    # -- what a user calls ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """As of every detector; what `partial_fit` or `merge` has left pending is enough."""
        return super().ready or len(self.counts) > 0

    @property
    def moments(self) -> Moments:
        """What has been learned."""
        return Moments(self.counts, self.means, self.scatter)

    @torch.inference_mode(False)
    @torch.no_grad()
    def partial_fit(self, features: Features) -> Self:
        """Add ID training features to those seen before.  Returns self.

        Raises:
            ValueError: a field is missing, empty, or holds NaN or infinity; another width than before.
        """
        self._check(features)
        with self._full_precision():
            self._add(self._collect(features))
        return self._remember(self._sample(features))

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        """Add what another detector of the same make has seen.  Returns self.

        Raises:
            ValueError: ``other`` is another detector, or has other hyperparameters, features or head.
        """
        if repr(other) != repr(self):
            raise ValueError(f"{other!r} cannot be merged into {self!r}: expected the same detector, made alike")
        if any(not torch.equal(a, b.to(a.device)) for a, b in zip(self._frozen(), other._frozen())):
            raise ValueError(f"{other!r} has another head than the one it is to be merged into: expected one network")
        self._add(Moments(*(value.to(self.counts.device) for value in other.moments)))
        return self._remember(other._met)

    # -- how it works -----------------------------------------------------------------------------------------

    def _fit(self, features: Features) -> None:
        moments = self._collect(features)
        self._finish(moments)  # what can fail comes first: a failed fit changes nothing
        self.counts, self.means, self.scatter = moments

    def _frozen(self) -> list[Tensor]:
        """What it was made with beside its hyperparameters: the tensors of a head."""
        return [value for part in self.children() for value in part.buffers()]

    def _collect(self, features: Features) -> Moments:
        pieces = (self._measure(self._prepare(chunk)) for chunk in features.split(self.chunk))
        return reduce(partial(merge_moments, kind=self.kind), pieces)

    def _add(self, new: Moments) -> None:
        self._thaw()
        if len(new.counts):
            self.counts, self.means, self.scatter = (
                merge_moments(self.moments, new, self.kind) if len(self.counts) else Moments(*(x.clone() for x in new))
            )
            self.fitted.fill_(False)
            self._forget()

    def _remember(self, seen: frozenset[int]) -> Self:
        self._met = frozenset(sorted(self._met | seen)[:REMEMBERED])  # of hashes, the smallest are drawn at random
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def _complete(self) -> None:
        """Finish what `partial_fit` or `merge` has left pending."""
        if not is_exporting() and not self.fitted and len(self.counts):
            self._thaw()
            self._finish(self.moments)
            self._lay_out()
            self.fitted.fill_(True)

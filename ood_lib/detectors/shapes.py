"""Checks of what a score is given: the width of the rows, one row per image, logits of enough classes."""

from torch import Tensor
from torch.compiler import is_exporting

from ood_lib.tensors import check_floats

__all__ = ["check_logits", "check_pairs", "check_width"]


def check_width(z: Tensor, width: int, who: str = "those it was fitted on were", what: str = "features") -> None:
    """Raise ValueError when rows (N, K) are not as wide as they have to be."""
    if not is_exporting() and z.shape[1] != width:
        raise ValueError(
            f"the {what} are {z.shape[1]} wide, but {who} {width}: take them all, and the head, from one network"
        )


def check_pairs(**rows: Tensor) -> None:
    """Raise ValueError when tensors do not have one row per image each: one with a single row would be broadcast."""
    shapes = {name: tuple(x.shape) for name, x in rows.items()}
    counts = [shape[0] if shape else None for shape in shapes.values()]  # a symbol in torch.export, which has no hash
    if any(count is None or count != counts[0] for count in counts):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{given} were given; expected one row per image in each of them")


def check_logits(logits: Tensor, least: int = 1) -> None:
    """Raise ValueError when logits (..., C) are no floating-point numbers, or too few classes for a score of them."""
    check_floats("(..., C)", logits=logits)
    if logits.shape[-1] < least:
        raise ValueError(
            f"there is {logits.shape[-1]} logit per image; expected {least} at least: the softmax of a single logit is "
            "always 1, and says nothing. Of a binary network with one output l take the two logits 0 and l, or a score "
            "of the logit itself: Energy, MaxLogit, JointEnergy"
        )

"""Weights and banks that come with the library: what was computed from images, never the images."""

from pathlib import Path

__all__ = ["BANKS", "FORMER_NAMES", "SHIPPED", "is_bank"]

SHIPPED = Path(__file__).parent

#: The banks of classifiers, by name; who only asks for the names imports no torch.
BANKS = tuple(sorted(file.parent.name for file in SHIPPED.glob("*/head.safetensors")))
FORMER_NAMES = {"cifar10-bank": "cifar10-resnet9"}  # of banks, good for one more release


def is_bank(name: str) -> bool:
    """Whether a benchmark of this name is a bank, ``bank:PATH`` or one of the library: it holds no images."""
    return name.startswith("bank:") or name in (*BANKS, *FORMER_NAMES)

"""Weights and banks that come with the library: what was computed from images, never the images."""

from pathlib import Path

__all__ = ["BANKS", "SHIPPED"]

SHIPPED = Path(__file__).parent

#: The banks, by name; who only asks for the names imports no torch.
BANKS = tuple(sorted(file.parent.name for file in SHIPPED.glob("*/benchmark.json")))

"""A warning points at the line of the reader, however deep in the library it arises."""

import os
import sys
import warnings
from pathlib import Path

import torch

__all__ = ["warn"]

# torch wraps our methods, and calls our modules
INSIDE = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))


def warn(message: str) -> None:
    """Warn at the line outside of the library that led here; Python 3.12 has ``skip_file_prefixes`` for this."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)

"""What comes with an extra is imported where it is used: the core of the library does without."""

import importlib
from typing import Any

__all__ = ["MissingExtraError", "need"]


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message says which line of pip brings it."""


def need(module: str, extra: str = "plots") -> Any:
    """The module, or the line of pip that brings it.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f'{module} is needed here: pip install "ood_lib[{extra}]"') from error

"""ood_lib: out-of-distribution detection, one idea per file.

A detector is an energy on a representation: a frozen network turns an image into `Features`, a `Detector` turns them
into one number per image, and larger always means further from the training data.

The public names stand in `__init__.pyi`; each is imported when it is first asked for.
"""

import sys
import warnings
from typing import Any

import lazy_loader

_imported, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

RENAMED = {  # old names, good for one more release
    "Frame": "ImageFormat",
    "Outlier": "SklearnDetector",
    "Perturbed": "ODINNetwork",
    "duel": "compare_over_seeds",
    "measured": "measure_cost",
}


def __getattr__(name: str) -> Any:
    if name not in RENAMED:
        return _imported(name)
    new = RENAMED[name]
    warnings.warn(
        f"ood_lib.{name} is called {new} now; the next release has the new name only", DeprecationWarning, stacklevel=2
    )
    return getattr(sys.modules[__name__], new)


__version__ = "0.1.0"

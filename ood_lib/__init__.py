"""ood_lib: out-of-distribution detection, one idea per file.

A detector is an energy on a representation: a frozen network turns an image into `Features`, a `Detector` turns them
into one number per image, and larger always means further from the training data.

The public names stand in `__init__.pyi`; each is imported when it is first asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"

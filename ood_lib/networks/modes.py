"""Modules lent to somebody who needs them in eval mode, and given back in the mode they were in."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["in_eval"]

_LOCK = threading.Lock()
_LENT: "WeakKeyDictionary[nn.Module, tuple[int, bool]]" = WeakKeyDictionary()  # borrowers now, mode before the first


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """All modules of a network in eval mode; afterwards each is in its own mode again, for a part may be frozen.

    Threads may borrow one network, or two that share modules: the last one gives back what the first one found.

    Example:
        >>> network = nn.Dropout()
        >>> with in_eval(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modules = list(network.modules())
    with _LOCK:
        for module in modules:
            count, mode = _LENT.get(module, (0, module.training))
            _LENT[module] = count + 1, mode
        network.eval()
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                count, mode = _LENT[module]
                if count > 1:
                    _LENT[module] = count - 1, mode
                else:
                    del _LENT[module]
                    module.training = mode

"""What a command prints reaches any terminal, and a reader who goes before the end, as in ``... | head``, is no error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["terminal"]

BROKEN_PIPE = 141  # what a shell says of a command that such a reader ended


@contextmanager
def terminal() -> Iterator[None]:
    """In this block print what the terminal has no character for, such as a Greek letter in latin-1, as ``\\u03b1``.

    Raises:
        SystemExit: nobody reads what is printed any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python itself writes the rest when it ends
        raise SystemExit(BROKEN_PIPE) from None

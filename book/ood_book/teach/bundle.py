"""Several files as one that can be handed out."""

import io
import zipfile
from collections.abc import Mapping

__all__ = ["zipped"]


def zipped(files: Mapping[str, str]) -> bytes:
    """A zip file of texts by their paths; the same texts make the same bytes, because no file has a date."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        for path, text in files.items():
            bundle.writestr(zipfile.ZipInfo(path), text, zipfile.ZIP_DEFLATED)
    return made.getvalue()

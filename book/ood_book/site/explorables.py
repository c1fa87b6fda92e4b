"""Charts with sliders on the pages: drawn by Vega-Lite in the reader's browser, by scripts that the book serves itself.

A notebook displays such a chart for Jupyter.  Here it becomes a still picture and the chart's description, and
`explorables.js` puts the live chart in its place, which Vega describes in the same words.  Without scripts, and in
print, the picture stays.
"""

import base64
import html
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ood_lib.files import write_text

__all__ = ["KIND", "add_scripts", "as_html", "still"]

KIND = "application/vnd.vegalite."  # then the version of Vega-Lite


def as_html(outputs: Sequence[Any]) -> list[Any]:
    """The outputs of a cell, each chart in them as HTML for a page."""
    for output in outputs:
        for kind, spec in list(output.get("data", {}).items()):
            if kind.startswith(KIND):
                output["data"] = {"text/html": _figure(spec)}
                output["metadata"] = {}
    return list(outputs)


def add_scripts(static: Path, cache: Path) -> None:
    """Vega, Vega-Lite and their embedder as one file beside the book's own scripts; made once, in half a minute."""
    from vl_convert import javascript_bundle

    made = cache / f"vega-{version('vl-convert-python')}.js"
    if not made.is_file():
        write_text(made, f"(() => {{{javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();")
    (static / "vega.js").write_bytes(made.read_bytes())


def still(spec: dict[str, Any]) -> str:
    """The chart as an image with its description, for what has no scripts."""
    from vl_convert import vegalite_to_svg

    picture = base64.b64encode(vegalite_to_svg(json.dumps(spec)).encode()).decode()
    words = html.escape(spec.get("description", ""), quote=True)
    return f'<img class="explorable-still" src="data:image/svg+xml;base64,{picture}" alt="{words}">'


def _figure(spec: dict[str, Any]) -> str:
    about = spec.get("usermeta", {})
    text = json.dumps(spec).replace("</", "<\\/")  # nothing in it can end the script
    return f"""<figure class="explorable">
<div class="explorable-live" role="group" aria-label="Chart and its controls"></div>
{still(spec)}
<figcaption>{html.escape(about.get("caption", ""))}</figcaption>
<script type="application/json">{text}</script>
</figure>"""

"""A deck of slides: one file of HTML with all that it needs inside, so that it works without a network.

reveal.js turns the pages, MathJax sets the formulas; both come from packages.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from ood_book.metadata import about
from ood_book.teach.plain import references
from ood_book.teach.slides import Slide, slides

__all__ = ["authors", "deck_of", "page"]

SETTINGS = "{startup: {typeset: false}, options: {enableMenu: false}, svg: {fontCache: 'local'}}"  # of MathJax


def deck_of(root: Path, name: str, run: Any) -> str:
    """The file of slides of a chapter: its name, and its executed notebook."""
    entries = about(root)
    goal = entries[name].goal if name in entries else ""
    cited = authors(root / "book/references.bib")
    return page(slides(run, goal, cited), root / "book/_static")


def authors(bibliography: Path) -> dict[str, str]:
    """For each key of a BibTeX file author and year, as in "Granz et al. 2024"."""
    return {key: f"{work.names} {work.year}".strip() for key, work in references(bibliography).items()}


def page(deck: list[Slide], static: Path) -> str:
    """One file with all that it needs inside: styles, reveal.js, MathJax, pictures.

    Args:
        deck: the slides.
        static: folder of the book's own style, script and logo.
    """
    style, script, logo = ((static / name).read_text("utf-8") for name in ("slides.css", "slides.js", "logo.svg"))
    reveal = files("sphinx_revealjs") / "_static/revealjs"
    mathjax = files("sphinx-mathjax-offline") / "static/mathjax/tex-svg-full.js"
    sheets = [(reveal / f"dist/{name}.css").read_text("utf-8") for name in ("reset", "reveal")]
    scripts = [(reveal / "dist/reveal.js"), (reveal / "plugin/notes/notes.js"), mathjax]
    loaded = "".join(f"<script>{_inside(path.read_text('utf-8'))}</script>\n" for path in scripts)
    title = re.sub(r"<[^>]+>", "", deck[0].title)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{"".join([*sheets, style])}</style>
<script>MathJax = {SETTINGS}</script>
{loaded}</head><body class="measured"><div class="logo">{logo}</div><div class="reveal"><div class="slides">
{"".join(slide.html for slide in deck)}</div></div><script>{script}</script></body></html>
"""


def _inside(script: str) -> str:
    """A script as it may stand between tags."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")

"""What the pages need from Sphinx beyond its settings.

Links lead from the library to the chapters, and figures are numbered anew on each page. There are metadata for search
engines and previews, a page for a wrong address, and corrected markup.
"""

import json
import os
import posixpath
import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from docutils.nodes import Text, make_id, paragraph
from sphinx.addnodes import number_reference

import ood_lib

__all__ = ["MOVED", "mended", "setup"]

PICTURE = "_static/front/strip.jpg"  # what a link to the book is shown with
LOST = """<h1>Page not found</h1>
<p>There is no page at this address. It may have moved.</p>
<ul>
<li><a href="{base}book/intro.html">First page of the book</a></li>
<li><a href="{base}search.html">Search all pages</a></li>
<li><a href="{base}book/glossary.html">Glossary</a></li>
</ul>"""
MOVED = {"notebooks/06_leaderboard": "notebooks/08_leaderboard"}  # from a former address to that of today
HERE_NOW = """<h1>This page has moved</h1>
<p>It is now <a href="{link}">here</a>, where your browser takes you.</p>"""
TWICE = re.compile(r'<div id="jb-print-docs-body".*?(?=<article)', re.S)
LINES = re.compile(r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*)+)</dl>', re.S)


def mended(html: str) -> str:
    """A page without three faults of its markup.

    The theme writes title and contents a second time, for print alone, so that a page has two first headings. Sphinx
    writes a signature of several lines as a list of definitions that define nothing, and calls the bibliography a list,
    whose entries are none of a list.

    Example:
        >>> mended('<dl>\\n<dd><em class="sig-param">x</em>,</dd>\\n</dl>')
        '<span class="sig-lines"><span class="sig-line"><em class="sig-param">x</em>,</span>\\n</span>'
    """
    html = TWICE.sub("", html).replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    return LINES.sub(lambda m: f'<span class="sig-lines">{_lines(m[1])}</span>', html)


def _lines(items: str) -> str:
    return items.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")


def _set_base(app: Any, config: Any) -> None:
    """The address from which the 404 page takes its style and links, for it is shown at any depth of the site.

    GitHub Pages puts a site under the name of its repository. `OOD_BOOK_BASE` names another place, such as `/`.
    """
    name = config.html_theme_options["repository_url"].rstrip("/").rsplit("/", 1)[-1]
    base = os.environ.get("OOD_BOOK_BASE", "/" if name.endswith(".github.io") else name).strip("/")
    config.notfound_urls_prefix = f"/{base}/" if base else "/"
    config.notfound_context = {"title": "Page not found", "body": LOST.format(base=config.notfound_urls_prefix)}


def _forward(app: Any) -> Iterator[tuple[str, dict[str, str], str]]:
    """A page at each former address, which leads to the page of today."""
    for former, page in MOVED.items():
        if page in app.env.found_docs:
            link = app.builder.get_relative_uri(former, page)
            tag = f'<meta http-equiv="refresh" content="0; url={escape(link)}" />'
            body = HERE_NOW.format(link=link)
            yield former, {"title": "This page has moved", "body": body, "metatags": tag}, "page.html"


def _set_version(app: Any, config: Any) -> None:
    """The version of the library at the foot of each page."""
    options = config.html_theme_options
    options["extra_footer"] = f"Version {ood_lib.__version__}. {options.get('extra_footer', '')}".strip()


def _address(repository: str) -> str:
    """Where GitHub Pages publishes a repository.

    Example:
        >>> _address("https://github.com/somebody/some-book/")
        'https://somebody.github.io/some-book/'
    """
    owner, name = repository.rstrip("/").split("/")[-2:]
    return f"https://{owner}.github.io/" + ("" if name.endswith(".github.io") else f"{name}/")


def _describe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Description and picture of a page, for search engines and for those who link to it."""
    paragraphs = islice(doctree.findall(paragraph), 2) if doctree else ()  # the first may be a motto
    text = textwrap.shorten(" ".join(p.astext() for p in paragraphs), 200, placeholder=" ...")
    address = app.config.html_baseurl or _address(app.config.html_theme_options["repository_url"])
    facts = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": re.sub("<.*?>", "", context.get("title", "")),
        "og:description": text,
        "og:image": address + PICTURE,
        "og:image:alt": "Six photographs, the class that a network names for each, and the decision of a detector.",
    }
    tags = [f'<meta name="description" content="{escape(text)}" />'] if text else []
    tags += [f'<meta property="{key}" content="{escape(value)}" />' for key, value in facts.items() if value]
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])


def _link_chapters(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The last line of an entry: the chapters whose code uses it, and their sections."""
    chapters = app.config.ood_book_uses.get(name, {})
    if chapters:
        links = ", ".join(_chapter(page, *found) for page, found in chapters.items())
        lines += ["", f"*Used in:* {links}.", ""]


def _chapter(page: str, title: str, headings: Sequence[str]) -> str:
    """A link to a chapter, and in brackets one to each section, by its number."""
    places = (f"`{h.split()[0].rstrip('.')} <../../notebooks/{page}.html#{make_id(h)}>`__" for h in headings)
    within = ", ".join(places)
    return f":doc:`{title} </notebooks/{page}>`" + (f" ({within})" if within else "")


def _read_uses(app: Any, config: Any) -> None:
    stage = Path(app.srcdir)
    config.ood_book_uses, config.ood_book_names = (
        json.loads((stage / f"{name}.json").read_text(encoding="utf-8")) for name in ("uses", "names")
    )


def _number(app: Any, env: Any) -> None:
    """Figures, tables and exercises are numbered page by page, so that a new one renumbers no other chapter."""
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            for place, name in enumerate(sorted(numbers, key=numbers.__getitem__), 1):
                numbers[name] = (place,)


def _name_page(app: Any, document: Any, page: str) -> None:
    """A reference to a numbered thing of another page names that page, in the words before its colon."""
    for reference in document.findall(number_reference):
        path = reference.get("refuri", "").partition("#")[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)).removesuffix(".html")
        if path and there != page:
            title = app.config.ood_book_names.get(there) or app.env.titles[there].astext().partition(":")[0]
            reference[0] += Text(f" of {title}")


def _mend(app: Any, exception: Exception | None) -> None:
    for path in [] if exception else Path(app.outdir).rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        if (text := mended(html)) != html:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx, which finds this module in `_config.yml`."""
    app.add_config_value("ood_book_uses", {}, "env")
    app.add_config_value("ood_book_names", {}, "env")
    app.connect("config-inited", _set_base, priority=100)
    app.connect("config-inited", _read_uses)
    app.connect("config-inited", _set_version, priority=100)
    app.connect("env-check-consistency", _number)
    app.connect("doctree-resolved", _name_page)
    app.connect("html-page-context", _describe)
    app.connect("html-collect-pages", _forward)
    app.connect("autodoc-process-docstring", _link_chapters, priority=900)  # after napoleon
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

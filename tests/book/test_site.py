"""The built site as a browser meets it: links, headings, weight, and what axe-core says of every page.

The pages are those of `ood-book build`; without them there is nothing to check. The part in a browser needs the extra
`site` and a Chromium: the system's, or that of `playwright install chromium`.
"""

import os
import re
import shutil
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from ood_book.site import reference
from ood_book.site.extension import MOVED

import ood_lib

ROOT = Path(__file__).parents[2]
BUILT = [p for p in (ROOT / "_build/html-quick", ROOT / "_build/html") if (p / ".ood-book").is_file()]
SITE = BUILT[0] if BUILT else ROOT / "_build/html"
PAGES = sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts and p.name != "index.html")
WEIGHT = 6.0  # MB of a page with its pictures, styles and scripts, but for the formula renderer; 2.4 are the theme's
BASE = "/ood-book/"  # where the site lies on its server: what the 404 page puts before its links

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not PAGES, reason="no built pages: ood-book build --profile quick"),
]


class Page(HTMLParser):
    """What a page says of itself: its anchors, links, pictures, headings, language, and the files that it loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.loads, self.h1, self.lang = set(), [], [], [], 0, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.h1 += tag == "h1"
        if tag == "html":
            self.lang = found.get("lang")
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        if tag in ("img", "script", "source") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)


class Read(dict):
    """Pages by their path, each read when a law first asks for it."""

    def __missing__(self, path):
        self[path] = Page(path.read_text(encoding="utf-8"))
        return self[path]


READ = Read()


def local(path, link):
    """The file of the site that a link on a page leads to, and the anchor in it; None for another host."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    if parts.path.startswith("/"):  # the 404 page, which is shown at any address
        return SITE / unquote(parts.path).removeprefix(BASE), unquote(parts.fragment)
    return (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


def broken(path, links):
    """Links that lead to no file of the site, or to no anchor of their page."""
    bad = []
    for link in links:
        if (target := local(path, link)) is None:
            continue
        file, anchor = target
        if not file.exists() or (anchor and file.suffix == ".html" and anchor not in READ[file].ids):
            bad.append(link)
    return bad


each = pytest.mark.parametrize("path", PAGES, ids=[str(p.relative_to(SITE)) for p in PAGES])


@each
def test_links_and_files_of_a_page_are_there(path):
    page = READ[path]
    assert page.links and page.loads
    assert broken(path, [*page.links, *page.loads]) == []


@each
def test_a_page_names_its_language_and_has_one_heading(path):
    assert READ[path].lang == "en"
    assert READ[path].h1 == 1


@each
def test_pictures_have_an_alternative(path):
    assert [image["src"] for image in READ[path].images if not image.get("alt", "").strip()] == []


FORMER = {Path(former).name for former in MOVED}  # pages that only lead to another
CONTENT = [path for path in PAGES if path.parent.name in ("book", "api", "notebooks") and path.stem not in FORMER]
every = pytest.mark.parametrize("path", CONTENT, ids=[str(p.relative_to(SITE)) for p in CONTENT])


@every
def test_a_page_names_version_and_day_describes_itself_and_numbers_its_figures_from_one(path):
    html = path.read_text(encoding="utf-8")
    assert f"Version {ood_lib.__version__}." in html and re.search(r"Last updated on \d+ \w+ \d{4}", html)
    assert (
        re.search(r'<meta name="description" content="[^"]{20,}"', html) and 'property="og:image" content="http' in html
    )
    for kind in ("Fig.", "Table"):
        numbers = [int(n) for n in re.findall(rf'caption-number">{re.escape(kind)} (\d+)', html)]
        assert numbers == list(range(1, 1 + len(numbers)))


def test_every_public_name_has_its_entry_on_exactly_one_page_and_the_overview_leads_there():
    homes = reference.names(ROOT / "ood_lib")
    entries = {path: READ[path].ids for path in CONTENT if path.parent.name == "api"}
    assert {n: sum(f"{h}.{n}" in ids for ids in entries.values()) for n, h in homes.items()} == dict.fromkeys(homes, 1)
    links = {link.partition("#")[2] for link in READ[SITE / "book/api.html"].links if link.startswith("api/")}
    assert {f"{home}.{name}" for name, home in homes.items()} <= links


def test_every_work_of_the_bibliography_leads_to_its_paper():
    html = (SITE / "book/bibliography.html").read_text(encoding="utf-8")
    works = re.findall(r'<div class="citation".*?</div>', html, re.S)
    assert len(works) > 30 and [work for work in works if 'class="reference external" href="http' not in work] == []


def test_each_chapter_has_its_slides_on_the_page_for_teachers():
    decks = {Path(link).stem for link in READ[SITE / "book/teach.html"].links if "/slides/" in link}
    pages = {path.stem for path in PAGES if path.parent.name == "notebooks"}
    assert decks == pages - FORMER


def test_a_former_address_leads_to_the_page_of_today():
    for former, page in MOVED.items():
        text = (SITE / f"{former}.html").read_text(encoding="utf-8")
        (link,) = re.findall(r'<meta http-equiv="refresh" content="0; url=([^"]+)"', text)
        assert (SITE / former).parent / link == SITE / f"{page}.html"
        assert link in READ[SITE / f"{former}.html"].links  # for a browser that does not follow by itself


def weight(path):
    """Megabytes of a page with what it loads."""
    files = {local(path, link)[0] for link in READ[path].loads if local(path, link)}
    return sum(f.stat().st_size for f in {path, *files} if "mathjax" not in f.parts) / 1e6


@each
def test_a_page_is_light(path):
    assert 0.1 < weight(path) < WEIGHT


def fetched(css):
    """Addresses on other hosts that a style sheet asks for."""
    return re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", css)


def test_style_sheets_ask_no_other_host_for_anything():
    sheets = [*SITE.rglob("*.css"), *PAGES]
    assert {str(p): fetched(p.read_text(encoding="utf-8")) for p in sheets if fetched(p.read_text("utf-8"))} == {}
    assert fetched('a { b: url("https://x.org/f.woff") }') and fetched("@import '//x.org/a.css'")


def test_the_page_for_a_wrong_address_works_at_any_depth():
    page = READ[SITE / "404.html"]
    inside = [link for link in [*page.links, *page.loads] if not urlsplit(link).netloc and not link.startswith("#")]
    assert inside and [link for link in inside if not link.startswith((BASE, "data:"))] == []


def test_the_laws_can_fail(tmp_path):
    """On a page with one fault of each kind."""
    html = '<html><h1>a</h1><h1 id="b">b</h1><img src="x"/><a href="#c">c</a><a href="no.html">n</a><a href="#b">b</a>'
    path = tmp_path / "page.html"
    path.write_text(html)
    READ[path] = page = Page(html)
    try:
        assert broken(path, page.links) == ["#c", "no.html"]
    finally:
        del READ[path]
    assert (page.h1, page.lang, page.images) == (2, None, [{"src": "x"}])


# ------------------------------------------------------------------------------------------------ in a browser

VIEWS = {  # width, colours
    "wide-light": (1280, "light"),
    "wide-dark": (1280, "dark"),
    "phone": (390, "light"),
}
# What only a wide page in light colours has, its margins, is of the theme: every fourth page says it.
SEEN = [(path, view) for n, path in enumerate(PAGES) for view in VIEWS if view != "wide-light" or n % 4 == 0]
AXE = "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `site`")
    with api.sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: playwright install chromium ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def axe():
    folder = Path(pytest.importorskip("axe_playwright_python", reason="needs the extra `site`").__file__).parent
    return (folder / "axe.min.js").read_text(encoding="utf-8")


def findings(tab, axe):
    """What axe-core calls serious or critical on the page that a tab shows: rule, element, message."""
    tab.evaluate(axe)
    bad = [v for v in tab.evaluate(AXE) if v["impact"] in ("serious", "critical")]
    reason = lambda node: (node["any"] + node["all"] + node["none"])[0]["message"]  # noqa: E731
    return [(v["id"], str(node["target"]), reason(node)) for v in bad for node in v["nodes"]]


@pytest.mark.parametrize(("path", "view"), SEEN, ids=[f"{path.relative_to(SITE)}-{view}" for path, view in SEEN])
def test_a_page_can_be_used_by_everybody_and_asks_nobody(path, view, browser, axe):
    width, colours = VIEWS[view]
    asked = []
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours) as context:
        context.on("request", lambda request: asked.append(request.url))
        # The 404 page names its files by their place on the server.
        context.route(f"file://{BASE}**", lambda r: r.fulfill(path=SITE / urlsplit(r.request.url).path[len(BASE) :]))
        tab = context.new_page()
        tab.goto(path.as_uri())
        tab.wait_for_timeout(300)  # formulas
        assert findings(tab, axe) == []
        assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_axe_finds_what_is_wrong(browser, axe):
    with browser.new_context() as context:
        tab = context.new_page()
        tab.set_content('<html><body><img src="x.png"><p style="color: #ccc; background: #fff">pale</p></body></html>')
        assert {"image-alt", "color-contrast", "html-has-lang"} <= {rule for rule, *_ in findings(tab, axe)}


class Host(SimpleHTTPRequestHandler):
    """The site below BASE, with its own page for a wrong address, as GitHub Pages serves it."""

    def translate_path(self, path):
        return str(SITE / unquote(urlsplit(path).path).removeprefix(BASE))

    def send_error(self, code, message=None, explain=None):
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write((SITE / "404.html").read_bytes())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{BASE}"
        server.shutdown()


def test_a_wrong_nested_address_shows_a_styled_page_that_leads_home(browser, address):
    with browser.new_context() as context:
        tab = context.new_page()
        failed = []
        tab.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
        assert tab.goto(f"{address}no/such/page.html").status == 404
        assert failed == [f"{address}no/such/page.html"]
        assert tab.evaluate("document.styleSheets.length") > 3
        tab.locator("a.navbar-brand").first.click()
        tab.wait_for_url(f"{address}book/intro.html")
        assert tab.locator("h1").inner_text().startswith("The OOD Book")


@pytest.mark.parametrize(("word", "page"), [("langevin", "20_heat"), ("weiper_kld", "papers"), ("tweedie", "40_msma")])
def test_the_search_finds_a_word_where_it_stands_and_asks_no_other_host(word, page, browser, address):
    with browser.new_context() as context:
        tab, asked = context.new_page(), set()
        tab.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
        tab.goto(f"{address}search.html?q={word}")
        tab.wait_for_selector("#search-results li a")
        tab.wait_for_function("document.querySelector('#search-results p')?.innerText.includes('found')")
        found = tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
        assert any(f"/{page}.html" in link for link in found)
        assert asked - {""} == {urlsplit(address).netloc}

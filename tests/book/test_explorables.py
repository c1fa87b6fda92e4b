"""Charts on the pages: a picture with words for those without scripts, the chart for the others, and no other host.

The last part opens a chart in a browser; it needs the extra `site` and a Chromium.
"""

import json
import re
from pathlib import Path

import pytest
from nbformat.v4 import new_output
from ood_book import explorables
from ood_book.site.explorables import add_scripts, as_html

from tests.book.test_site import browser  # noqa: F401

STATIC = Path(__file__).parents[2] / "book/_static"


def displayed(monkeypatch: pytest.MonkeyPatch) -> list:
    outputs: list = []
    monkeypatch.setattr("IPython.display.display", lambda d, raw: outputs.append(new_output("display_data", dict(d))))
    explorables.show(explorables.label_energies(), "Drag </script> it.", 'Bars of "three" scores.')
    return outputs


def test_a_chart_becomes_a_picture_with_words_and_the_spec_comes_back(monkeypatch: pytest.MonkeyPatch):
    (output,) = as_html(displayed(monkeypatch))
    (page,) = output["data"].values()
    picture = r'<img [^>]*src="data:image/svg\+xml;base64,[^"]{1000,}" alt="Bars of &quot;three&quot; scores."'
    assert re.search(picture, page)
    assert "<figcaption>Drag &lt;/script&gt; it.</figcaption>" in page
    (inside,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert json.loads(inside)["usermeta"]["caption"] == "Drag </script> it."


def test_other_outputs_stay_as_they_are():
    outputs = [new_output("stream", text="a"), new_output("display_data", {"text/plain": "b"})]
    assert as_html(outputs) == outputs


def test_the_script_is_made_once_is_small_enough_and_names_no_host_to_ask(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        add_scripts(tmp_path / name, tmp_path / "cache")
    one, two = ((tmp_path / name / "vega.js").read_text() for name in ("one", "two"))
    (made,) = (tmp_path / "cache").iterdir()
    assert one == two == made.read_text()
    assert "vegaEmbed" in one and len(one) < 1_500_000
    assert "http" not in (STATIC / "explorables.js").read_text()


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with each of three charts: two panels side by side with text below, a single one, panels in a column."""
    folder = tmp_path_factory.mktemp("charts")
    add_scripts(folder, STATIC.parents[1] / "_build/vega")
    for name in ("explorables.js", "custom.css"):
        (folder / name).write_bytes((STATIC / name).read_bytes())
    for name in CHARTS:
        outputs: list = []
        with pytest.MonkeyPatch.context() as patch:
            shown = lambda d, raw, kept=outputs: kept.append(new_output("display_data", dict(d)))  # noqa: E731
            patch.setattr("IPython.display.display", shown)
            explorables.show(getattr(explorables, name)(), "Drag it.", f"The chart {name}.")
        (output,) = as_html(outputs)
        (figure,) = output["data"].values()
        head = '<meta charset="utf-8"><link rel="stylesheet" href="custom.css"><script src="explorables.js"></script>'
        page = f'<html lang="en"><head>{head}</head><body style="margin: 20px">{figure}</body></html>'
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


CHARTS = ("score_thresholds", "label_energies", "hybrid_energy")

SEEN = """() => {
  const box = (element) => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const svg = document.querySelector("svg.marks");
  return {
    room: document.querySelector("figure").clientWidth, wide: document.documentElement.scrollWidth, svg: box(svg),
    unscaled: Number(svg.getAttribute("width")),
    panels: [...svg.querySelectorAll("path.background")].map(box).filter((b) => b[2] - b[0] > 120),
    words: [...document.querySelectorAll("[aria-label]")].map((e) => e.getAttribute("aria-label")),
    still: getComputedStyle(document.querySelector(".explorable-still")).display,
  };
}"""


def drawn(browser, page: Path, width: int):  # noqa: F811
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(page.as_uri())
    tab.wait_for_selector("figure.explorable-drawn", timeout=60_000)
    return tab


@pytest.mark.processes
@pytest.mark.parametrize("name", CHARTS)
def test_a_live_chart_fits_its_page_and_stands_in_for_the_picture(name: str, browser, pages: Path):  # noqa: F811
    columns = {}
    for width in (1100, 390, 320):
        tab = drawn(browser, pages / f"{name}.html", width)
        seen = tab.evaluate(SEEN)
        tab.close()
        assert seen["still"] == "none" and seen["wide"] <= width
        assert seen["svg"][2] <= 20 + seen["room"] + 1, "the chart is wider than its figure"
        if width > 350:  # below that the browser shrinks the whole
            assert seen["unscaled"] <= 1.15 * seen["room"], "the chart was shrunk instead of laid out"
        assert seen["words"].count(f"The chart {name}.") == 1
        columns[width] = len({round(left / 20) for left, top, right, bottom in seen["panels"]})
    assert seen["panels"] and columns[390] == columns[320] == 1 and columns[1100] == 2


@pytest.mark.processes
def test_a_chart_that_changes_its_colours_keeps_what_its_sliders_say(browser, pages: Path):  # noqa: F811
    tab = drawn(browser, pages / "score_thresholds.html", 1100)
    first = tab.locator("input[type=range]").first
    first.evaluate("(e) => { e.value = e.max; e.dispatchEvent(new Event('input', {bubbles: true})); }")
    most, before = first.evaluate("(e) => e.max"), tab.evaluate(SEEN)
    old = tab.locator("svg.marks").element_handle()
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.wait_for_function("(old) => document.querySelector('svg.marks') !== old", arg=old)
    tab.wait_for_function("document.querySelector('input[type=range]') !== null")
    assert tab.locator("input[type=range]").first.evaluate("(e) => e.value") == most
    assert tab.evaluate(SEEN)["svg"] == pytest.approx(before["svg"], abs=2)
    colours = tab.evaluate("[...document.querySelectorAll('svg.marks text')].map((e) => e.getAttribute('fill'))")
    assert colours and "#000" not in colours and "#000000" not in colours and "black" not in colours
    tab.close()

"""Laws of the first page: what it shows is computed, and says no more than was computed."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat.v4 as v4
import pandas as pd
import pytest

pytest.importorskip("jupytext")
pytest.importorskip("yaml")

import yaml
from ood_book.site import extension, front
from ood_book.site.front import Decision, Picture
from ood_book.site.pages import _add_figures
from PIL import Image

ROOT = Path(__file__).parents[2]
FRONT = ROOT / "book/front"


def verdict(name="coins", known=False, answer="deer", refused=True):
    return Decision(Picture(name, known, "somebody & co"), answer, 0.999, refused)


@pytest.mark.parametrize(
    ("known", "refused", "word"),
    [
        (False, True, "refused"),
        (False, False, "accepted, a miss"),
        (True, False, "accepted"),
        (True, True, "refused, by mistake"),
    ],
)
def test_a_decision_says_whether_it_is_a_mistake(known, refused, word):
    found = verdict(known=known, refused=refused)
    assert found.decision == word
    assert found.missed == (word == "accepted, a miss")


def test_the_words_follow_the_verdicts():
    both = [verdict(), verdict("temple", refused=False)]
    assert front.told(both).startswith(
        "The detector refuses 1 of the 2 pictures"
    ) and "misses the temple." in front.told(both)
    assert "misses" not in front.told([verdict()])
    cat = verdict("cat", known=True, answer="cat", refused=False)
    assert front.told([verdict(), cat]).endswith("It accepts the cat, which the network rightly calls a cat.")
    wrong = verdict("cat", known=True, answer="dog", refused=True)
    assert front.told([verdict(), wrong]).endswith("It refuses the cat, which the network wrongly calls a dog.")


def test_the_strip_names_every_picture_its_source_and_no_certainty():
    shown = front.strip([verdict(), verdict("temple", refused=False)])
    assert re.findall(r'<li class="(\w+)"', shown) == ["refused", "accepted"]
    assert re.findall(r"_static/front/(\w+)\.jpg", shown) == ["coins", "temple"]
    assert shown.count(", 99\N{NO-BREAK SPACE}%") == 2 and "100" not in shown
    assert "temple: somebody &amp; co." in shown


def test_the_picture_of_the_readme_says_what_network_and_detector_say_now():
    decisions = front.judge(FRONT)
    assert {v.picture.known for v in decisions} == {True, False}
    assert Image.open(FRONT / "strip.jpg").info["comment"].decode() == front.told(decisions)


def test_the_picture_is_drawn_with_its_verdicts_and_in_the_shape_of_a_link(tmp_path):
    front.draw([verdict(), verdict("temple", refused=False)], FRONT, tmp_path / "strip.jpg")
    picture = Image.open(tmp_path / "strip.jpg")
    assert picture.size == (1200, 630) and "misses the temple" in picture.info["comment"].decode()


def test_the_result_on_cifar10_is_that_of_the_files():
    table = front.headline(ROOT / "book/results").split("\n\n")[1].strip().split("\n")
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in table[2:]}
    assert set(rows) == set(front.METHODS)
    for column, file in enumerate(front.RESULTS):
        kept = json.loads((ROOT / f"book/results/{file}.json").read_text())["rows"]
        for group in (0, 1):
            values = [
                r["value"] for r in kept
                if (r["detector"], r["metric"], r["group"]) == ("KNN", "auroc", ("near", "far")[group])
            ]  # fmt: skip
            assert rows["KNN"][2 * column + group] == f"{100 * sum(values) / len(values):.1f}"


def test_who_leads_is_said_of_the_digits_that_are_shown():
    wide = pd.DataFrame(
        {("ours", "near"): [0.9001, 0.9004, 0.8], ("ours", "far"): [0.9, 0.7, 0.8]}, index=["a", "b", "c"]
    )
    assert front._leaders(wide) == "a has the highest value in every column."
    wide.loc["c", ("ours", "far")] = 0.95
    said = front._leaders(wide)
    assert said.startswith("No detector leads") and "a and b on near-OOD with ours; c on far-OOD with ours." in said


def test_the_entry_to_cite_is_the_record():
    record, entry = yaml.safe_load((ROOT / "CITATION.cff").read_text()), front.bibtex(ROOT / "CITATION.cff")
    assert [record[key] for key in ("title", "version", "repository-code") if record[key] not in entry] == []
    assert entry.count("{") == entry.count("}") and f"year    = {{{record['date-released'].year}}}" in entry


def chapter():
    """A run that draws the figures fig-a and fig-b."""
    picture = io.BytesIO()
    Image.new("RGB", (3, 2)).save(picture, "PNG")
    data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
    cells = [v4.new_code_cell("draw", outputs=[v4.new_output("display_data", data)]) for _ in "ab"]
    for cell, label in zip(cells, "ab"):
        cell.metadata["mystnb"] = {"figure": {"name": f"fig-{label}"}}
    return v4.new_notebook(cells=[v4.new_markdown_cell("# T"), *cells])


def test_a_page_gets_the_figures_of_chapters_that_it_shows_and_no_others(tmp_path):
    (tmp_path / "intro.md").write_text("```{image} _generated/10_one/fig-b.png\n```")
    _add_figures({"10_one": chapter(), "20_two": chapter()}, tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")] == ["_generated/10_one/fig-b.png"]
    assert Image.open(tmp_path / "_generated/10_one/fig-b.png").size == (3, 2)


def test_every_figure_of_a_chapter_that_a_page_shows_is_drawn_there():
    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("book/*.md"))
    shown = re.findall(r"_generated/(\d\d_\w+)/(fig-[\w-]+)\.png", pages)
    drawn = {name: (ROOT / f"notebooks/{name}.py").read_text(encoding="utf-8") for name, _ in shown}
    assert shown and [figure for name, figure in shown if f'"name": "{figure}"' not in drawn[name]] == []


def test_a_page_describes_itself_by_how_it_begins():
    nodes = pytest.importorskip("docutils.nodes")
    document = nodes.section("", nodes.paragraph(text='Says "no" & ' + "word " * 99), nodes.paragraph(text="second"))
    options = {"repository_url": "https://github.com/somebody/book"}
    app = SimpleNamespace(config=SimpleNamespace(html_baseurl="", html_theme_options=options, html_title="Book"))
    context = {"title": "<em>Title</em>", "metatags": "<meta kept />"}
    extension._describe(app, "page", "", context, document)
    tags = context["metatags"]
    (text,) = re.findall(r'name="description" content="(.*?)"', tags)
    assert text.startswith("Says &quot;no&quot; &amp; word") and len(text) < 230 and "second" not in tags
    assert 'content="https://somebody.github.io/book/_static/front/strip.jpg"' in tags
    assert 'property="og:title" content="Title"' in tags and tags.startswith("<meta kept />")
    motto = nodes.section(
        "", nodes.paragraph(text="Motto."), nodes.paragraph(text="What it is."), nodes.paragraph(text="third")
    )
    extension._describe(app, "page", "", context := {}, motto)
    assert 'name="description" content="Motto. What it is."' in context["metatags"]
    context = {}
    extension._describe(app, "search", "", context, None)
    assert "description" not in context["metatags"] and "og:image" in context["metatags"]

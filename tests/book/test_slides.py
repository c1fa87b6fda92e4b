"""Laws of the slides: all that is short is shown, all else is in the notes, nothing is given away, nothing overflows.

What needs outputs is read from the runs in `_build/run/quick`, which `make test` makes, and from a small chapter made
here of what is hard to place. The part in a browser needs the extra `site` and a Chromium.
"""

import base64
import html
import re
from functools import cache

import pytest
from ood_book import cli
from ood_book.notebooks import Refused
from ood_book.percent import load
from ood_book.teach.deck import authors, deck_of, page
from ood_book.teach.editions import EDITIONS
from ood_book.teach.slides import slides

from tests.book.chapters import chapter, executed
from tests.book.test_editions import LESSON, MYST, cells, made
from tests.book.test_lessons import NOTEBOOKS as SOURCES
from tests.book.test_lessons import ROOT, RUNS, exercises, nbformat
from tests.book.test_site import browser, fetched  # noqa: F401

pytestmark = pytest.mark.processes

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
each_run = pytest.mark.parametrize("run", RUNS, ids=lambda p: p.stem)

WEIGHT = 9.0  # MB of a deck: MathJax is 2.3 of them, the rest are figures
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
).decode()


def text(pieces):
    """What a reader sees of pieces of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", "".join(pieces)))


@cache
def slides_of(source):
    """The slides of a chapter; made once, and only read."""
    return slides(chapter(source), cited=authors(ROOT / "book/references.bib"))


def shown(deck):
    return text(part for slide in deck for part in [slide.title, *slide.parts])


def noted(deck):
    return text(note for slide in deck for note in slide.notes)


def squeezed(words):
    return re.sub(r"\s+", " ", words)


# ------------------------------------------------------------------------------------------------ the chapters


@each_source
def test_every_heading_of_a_chapter_has_a_slide(source):
    prose = "\n".join(c.source for c in chapter(source).cells if c.cell_type == "markdown")
    wanted = re.findall(r"^#{1,3} (.+)$", prose, re.M)
    titles = [re.sub(r"\\[()]", "", text([slide.title])) for slide in slides_of(source)]
    assert len(wanted) > 3
    assert [w for w in wanted if w.replace("$", "").replace("`", "") not in titles] == []


@each_source
def test_every_display_formula_is_on_a_slide(source):
    student = made("student", source)
    prose = "\n".join(c.source for c in student.cells if c.cell_type == "markdown")
    seen = squeezed(shown(slides_of(source)))
    formulas = [squeezed(x).strip() for x in re.findall(r"\$\$(.+?)\$\$", prose, re.S)]
    assert [x for x in formulas if x not in seen] == []


@each_source
def test_solutions_mistakes_and_checks_never_appear(source):
    deck = slides_of(source)
    everything = shown(deck) + noted(deck)
    assert [x for x in cells(source, "solution", "wrong", "check", "exercise") if x in everything] == []
    assert "ood.Check(" not in everything


@each_source
def test_every_exercise_and_every_question_of_the_quiz_has_a_slide(source):
    deck, prose = slides_of(source), "\n".join(c.source for c in chapter(source).cells)
    kinds = [slide.kind for slide in deck]
    assert kinds.count("exercise") == len(exercises(chapter(source).cells))
    quiz = [slide for slide in deck if slide.kind == "quiz"]
    assert len(quiz) == (5 if "### Quiz" in prose else 0)
    assert [slide.title for slide in quiz if "".join(slide.parts).count("<details>") < 3] == []


@each_source
def test_no_directive_and_no_role_is_left(source):
    deck = slides_of(source)
    everything = [shown(deck), noted(deck)]
    assert [re.findall(MYST, x, re.M) for x in everything] == [[], []]


@each_source
def test_prose_is_in_the_notes_and_not_on_the_slides(source):
    deck = slides_of(source)
    wordy = [slide for slide in deck if slide.kind == "text"]
    assert len(shown(wordy)) < 0.5 * len(noted(deck))
    assert [slide.title for slide in wordy if len(text(slide.parts)) > 800] == []  # formulas as they are typed


def test_the_title_has_goal_and_claim():
    first = slides(chapter(ROOT / "notebooks/10_weiper.py"), "what to reach", {"granz2024weiper": "Granz"})[0]
    assert first.kind == "title" and "What to reach" in text(first.parts)
    assert "The claim of Granz: " in text(first.parts)


def test_authors_are_named_as_a_speaker_would(tmp_path):
    (tmp_path / "x.bib").write_text(
        "@book{a, author={Noether, Emmy}, year={1918}}\n@book{b, author={A B and C D}, year={1}}\n"
        "@book{c, author={{van der Berg}, A and D, B and E, F}, year={2}}"
    )
    assert authors(tmp_path / "x.bib") == {"a": "Noether 1918", "b": "B and D 1", "c": "van der Berg et al. 2"}


def test_what_lies_between_the_fences_of_a_solution_is_hidden_whatever_its_tags(tmp_path):
    (tmp_path / "page.py").write_text(LESSON)
    deck = slides(load(tmp_path / "page.py"))
    assert "SECRET" not in shown(deck) + noted(deck)
    assert deck[0].title == "Exercise: One"


def test_a_solution_that_does_not_end_is_refused(tmp_path):
    (tmp_path / "page.py").write_text(LESSON.replace("{solution-end}", "{note}"))
    with pytest.raises(Refused, match="solution ex-one has no"):
        slides(load(tmp_path / "page.py"))


# ------------------------------------------------------------------------------------------------ the runs


def pictures(notebook):
    """Alt text and caption of each figure of a run."""
    said = [
        c.metadata["mystnb"]
        for c in notebook.cells
        if c.cell_type == "code" and any("image/png" in o.get("data", {}) for o in c.outputs)
    ]
    return [(s["image"]["alt"], s["figure"]["caption"]) for s in said]


@each_run
def test_every_figure_is_on_a_slide_with_its_alternative_and_its_caption(run):
    notebook = executed(run)
    figures = [slide for slide in slides(notebook) if slide.kind == "figure"]
    alts = [html.unescape(a) for slide in figures for a in re.findall(r'alt="([^"]*)"', "".join(slide.parts))]
    wanted = pictures(notebook)
    assert [alt for alt, _ in wanted if alt not in alts] == []
    assert [c for _, c in wanted if not re.search("[$*`{]", c) and c not in shown(figures)] == []


@each_run
def test_every_table_is_on_a_slide_or_in_the_notes(run):
    notebook = executed(run)
    said = [o.get("data", {}).get("text/html", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    rows = [text([row]) for table in said for row in re.findall(r"<tr.*?</tr>", table, re.S) if "<table" in table]
    deck = slides(notebook)
    assert [row for row in rows if row not in shown(deck) + noted(deck)] == []


@each_run
def test_a_deck_is_one_light_file(run):
    deck = deck_of(ROOT, run.stem, executed(run))
    assert 2e6 < len(deck) < WEIGHT * 1e6
    assert asked(deck) == []


# ------------------------------------------------------------------------------------------------ a hard chapter


def code(source, data=None, tags=(), **metadata):
    output = nbformat.v4.new_output("display_data", data) if data else None
    metadata = {"tags": list(tags), **metadata}
    return nbformat.v4.new_code_cell(source, metadata=metadata, outputs=[output] if output else [])


def hard():
    """A long formula, a wide and long table, long lines of code, a wordy quiz, a picture with much to say of it."""
    head = "".join(f"<th>column number {i}</th>" for i in range(9))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>" + "".join(
        f"<tr><th>row {i}</th>{'<td>1.23</td>' * 8}</tr>\n" for i in range(40)
    )
    choices = "\n\n".join(
        f"<details><summary>{c}. {'a choice ' * 9}</summary>\n\n{'why $x$ so ' * 20}\n\n</details>" for c in "ABCD"
    )
    long = " + ".join(rf"\frac{{\partial f_{{{i}}}}}{{\partial x_{{{i}}}}}" for i in range(25))
    caption = {"figure": {"caption": "Much to see. " * 30}, "image": {"alt": 'A "picture"'}}
    text_cell = nbformat.v4.new_markdown_cell
    return nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            text_cell("# A chapter\n\n```{admonition} Before you start\n**The claim** is large.\n```"),
            text_cell(
                f"## 1. Formulas\n\n**Is it long?** See [this](https://example.org):\n\n$$\n{long}\n$$\n\nPlain words."
            ),
            text_cell("Said first.\n\n" + "\n".join(f"* **Point {i}.** {'words ' * 30}. Not this." for i in range(9))),
            code("x = 1\nassert " + "y" * 150, tags=[]),
            code("folded_code = 1", {"image/png": PNG}, ["hide-input"], mystnb=caption),
            code("table", {"text/html": table + "</tbody></table>"}, ["hide-input"]),
            code("said", {"text/markdown": "It is **12.5 %** today. It was less."}, ["hide-input"]),
            text_cell(f"### Quiz\n\nAnswer.\n\n**1. {'Why is it so, and not otherwise? ' * 6}**\n\n{choices}"),
        ],
    )


def test_a_deck_is_made_by_the_rules():
    deck = slides(hard(), "to test")
    seen, said = shown(deck), noted(deck)
    assert "Is it long?" in seen and "Plain words." not in seen  # a question, and prose
    assert "Point 3. words" in seen and "Not this." not in seen  # of an item its first sentence
    assert "It is 12.5 % today." in seen and "It was less." not in seen  # numbers of the run
    assert all(x in said for x in ("Plain words.", "Not this.", "It was less."))
    assert "y" * 150 in seen and "folded_code" not in seen + said
    assert [slide.kind for slide in deck].count("table") == 3
    assert {slide.title for slide in deck} == {"A chapter", "1. Formulas", "Quiz"}


TAGGED = """# %% [markdown]
# # A chapter
#
# **Kept.** Prose.
# %% [markdown] tags=["slide"]
# Plain words, all of them.
#
# - A point. And more of it.
# %% [markdown] tags=["skip"]
# ## Left out
#
# **Bold, and left out.**
# %% [markdown]
# **Below it.**
# %% tags=["slide"]
shown_code = 1
# %% tags=["slide", "hide-input"]
folded_code = 2
# %% tags=["skip"]
assert "skipped code"
# %% [markdown] tags=["slide"]
# ### Its own heading
#
# More plain words.
# %% [markdown] tags=["skip"]
# ```{exercise-start} Hard
# :label: ex-hard
# ```
# Too hard.
#
# ```{exercise-end}
# ```
# %% [markdown]
# ```{solution-start} ex-hard
# ```
# %% tags=["slide", "solution"]
secret = 3
# %% [markdown] tags=["slide"]
# A secret.
#
# ```{solution-end}
# ```
"""


def test_the_tags_of_a_lecturer_come_before_the_rules(tmp_path):
    (tmp_path / "page.py").write_text(TAGGED)
    chapter = load(tmp_path / "page.py")
    folded = next(cell for cell in chapter.cells if cell.source == "folded_code = 2")
    folded.outputs = [nbformat.v4.new_output("display_data", {"image/png": PNG})]
    deck = slides(chapter)
    seen = {(slide.title, slide.kind): text(slide.parts) for slide in deck if slide.parts}
    assert [*seen] == [
        ("A chapter", "title"), ("A chapter", "text"), ("Left out", "text"), ("Left out", "code"),
        ("Left out", "figure"), ("Its own heading", "text"),
    ]  # fmt: skip
    assert "Plain words, all of them." in seen["A chapter", "text"] and "And more of it." in seen["A chapter", "text"]
    assert "Plain words" not in seen["A chapter", "title"] and "Below it." in seen["Left out", "text"]
    assert "shown_code" in seen["Left out", "code"] and "More plain words." in seen["Its own heading", "text"]
    everything = shown(deck) + noted(deck)
    left = ("Bold, and left out", "folded_code", "skipped code", "Too hard", "secret")
    assert [words for words in left if words in everything] == [] and "Prose." in noted(deck)


@pytest.mark.parametrize(
    ("prose", "sentences"),
    [
        ("One $a. b$ here. Two `x. y` **bold. Still.** there. Three", ["Two x. y bold. Still. there."]),
        ("**Why?** Because. **So there.** A reason. Another.", ["Why?", "So there. A reason."]),
        ("As **Li** et al. 2020 say. Not this. (**This** too.) Not this.", ["As Li et al. 2020 say.", "(This too.)"]),
        ("Nothing is bold. So the first sentence is shown.", ["Nothing is bold."]),
    ],
)
def test_sentences_with_something_bold_are_shown(prose, sentences):
    chapter = hard()
    chapter.cells = [nbformat.v4.new_markdown_cell(f"## A\n\n{prose}")]
    (slide,) = slides(chapter)
    assert [text([p]) for p in re.findall(r"<p.*?</p>", "".join(slide.parts))] == sentences


# ------------------------------------------------------------------------------------------------ the file


def asked(deck):
    """Addresses on other hosts that a page would load: in attributes of tags and in styles, not what scripts remark."""
    plain = re.sub(r"<script>.*?</script>", "", deck, flags=re.S)
    return re.findall(r"(?:src|srcset|href|action|data)=[\"']?((?:https?:)?//[^\"'\s>]+)", plain) + fetched(plain)


def make(notebook, folder):
    (folder / "deck.html").write_text(page(slides(notebook), ROOT / "book/_static"), "utf-8")
    return folder / "deck.html"


def test_a_deck_asks_no_other_host(tmp_path):
    assert asked(make(hard(), tmp_path).read_text("utf-8")) == []
    assert asked('<img src="https://x.org/a.png"><link href=//x.org/b>') and asked("<style>@import '//x.org/a'</style>")


def test_without_a_run_nothing_is_written_and_the_command_that_makes_one_is_named(tmp_path, capsys):
    line = ["teach", "weiper", "--slides", "-p", "seed", "987654", "--root", str(ROOT), "--out", str(tmp_path)]
    assert cli.main(line) == 2
    assert "ood-book run weiper --profile default -p seed 987654" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_of_a_run_the_command_writes_the_editions_and_a_deck(tmp_path, capsys):
    line = ["teach", "weiper", "--slides", "--profile", "quick", "--root", str(ROOT), "--out", str(tmp_path)]
    if cli.main(line):
        pytest.skip(capsys.readouterr().err)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*EDITIONS, "slides", "quiz", "student.zip"])
    assert [p.name for p in (tmp_path / "slides").iterdir()] == ["10_weiper.html"]


# ------------------------------------------------------------------------------------------------ in a browser

TOO_LARGE = """() => [...document.querySelectorAll('.slides > section')].filter(section => {
  section.style.display = 'block'
  const boxes = [...section.querySelectorAll('.slide, .slide :is(.formula, .wide, pre)')]
  const over = box => box.scrollHeight > box.clientHeight || box.scrollWidth > box.clientWidth
  const found = boxes.some(over)
  section.style.display = ''
  return found
}).map(section => section.innerText.slice(0, 60))"""
TOO_SMALL = """() => [...document.querySelectorAll('.slide')]
  .filter(slide => parseFloat(slide.style.fontSize || 1) < 0.5).map(slide => slide.innerText.slice(0, 60))"""


def opened(browser, path):  # noqa: F811
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    tab.requests = []
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("body.ready", timeout=60_000)
    return tab


def faults(tab):
    """Slides that overflow, slides that nobody could read, formulas that are none, requests to anywhere."""
    away = [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))]
    wrong = tab.evaluate("[...document.querySelectorAll('[data-mjx-error]')].map(e => e.dataset.mjxError)")
    raw = tab.evaluate(r"document.querySelector('.slides').textContent.match(/\\[()[\]]|\$\$/g) || []")
    return tab.evaluate(TOO_LARGE), tab.evaluate(TOO_SMALL), wrong, raw, away


@each_run
def test_every_slide_of_a_run_fits(run, browser, tmp_path):  # noqa: F811
    (tmp_path / "deck.html").write_text(deck_of(ROOT, run.stem, executed(run)), "utf-8")
    tab = opened(browser, tmp_path / "deck.html")
    assert faults(tab) == ([], [], [], [], [])
    tab.close()


def test_what_is_hard_to_place_fits_and_what_is_too_large_is_found(browser, tmp_path):  # noqa: F811
    tab = opened(browser, make(hard(), tmp_path))
    assert faults(tab)[::2] == ([], [], [])
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate(TOO_LARGE) == []  # a quiz with all its answers open
    tab.evaluate("document.querySelectorAll('.slide').forEach(slide => slide.style.fontSize = '90px')")
    assert tab.evaluate(TOO_LARGE) != []
    tab.close()


def test_keys_turn_pages_show_notes_and_print_a_slide_a_page(browser, tmp_path):  # noqa: F811
    tab, count = opened(browser, make(hard(), tmp_path)), len(slides(hard()))
    places = []
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "End", "Home"):
        tab.keyboard.press(key)
        places.append(tab.evaluate("Reveal.getIndices().h"))
    assert places == [1, 2, 1, count - 1, 0]
    tab.keyboard.press("ArrowRight")
    assert not tab.locator(".speaker-notes").is_visible()
    tab.keyboard.press("n")
    assert tab.locator(".speaker-notes").is_visible() and "Is it long?" in tab.locator(".speaker-notes").inner_text()
    tab.keyboard.press("p")
    tab.wait_for_url("**print-pdf**")
    tab.wait_for_selector("body.ready .pdf-page")
    assert len(re.findall(rb"/Type /Page\b(?!s)", tab.pdf(prefer_css_page_size=True))) == count
    tab.close()


def test_a_chart_to_turn_is_a_still_picture_with_its_caption():
    """Without the chart's scripts, and before the claim, which stands on the title all the same."""
    from ood_book.explorables import label_energies

    spec = label_energies().properties(description="Bars.").to_dict() | {"usermeta": {"caption": "Turn it."}}
    chapter = hard()
    claim = chapter.cells[0].source.replace("# A chapter\n\n", "")
    chapter.cells[0].source = "# A chapter\n\nThe idea."
    chart = code(
        "show()", {"application/vnd.vegalite.v6+json": spec, "text/html": "<script>1</script>"}, ["remove-input"]
    )
    chapter.cells[1:1] = [chart, nbformat.v4.new_markdown_cell(claim)]
    deck = slides(chapter)
    assert "The claim is large." in text(deck[0].parts)
    (figure,) = [slide for slide in deck if 'class="explorable-still"' in "".join(slide.parts)]
    assert figure.kind == "figure" and "Turn it." in text(figure.parts) and 'alt="Bars."' in "".join(figure.parts)

"""Laws of a chapter without a run: its page says why, and no other page asks for what only the chapter has."""

import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext")

from ood_book.run import plan
from ood_book.site.missing import Missing

ROOT = Path(__file__).parents[2]
PAGES = {p.name: p.read_text(encoding="utf-8") for p in [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.py")]}


def chapter(reason="has not been run as it is now", labels=()):
    return Missing("30_flow", "Feature flows", reason, ("ood-book run 30_flow",), frozenset(labels))


def shown(reason):
    """The page as Markdown shows it, without the directive around the sentence."""
    markdown_it = pytest.importorskip("markdown_it")
    (cell,) = chapter(reason).page().cells
    source = re.sub(r"^`{10}.*\n(?::.*\n)?", "", cell.source, flags=re.M)
    return markdown_it.MarkdownIt().render(source)


def test_the_page_has_title_sentence_and_commands():
    page = shown("has not been run as it is now")
    assert "<h1>Feature flows</h1>" in page and "<p>It has not been run as it is now.</p>" in page
    assert "ood-book run 30_flow\n" in page


def test_a_failure_is_a_sentence_with_the_code_and_the_error_below_it():
    page = shown('failed in cell [4] of "2.1 Up: *to* K": # `x` <y>\n  ValueError: ```\n  more')
    assert "<p>It failed in cell [4] of &quot;2.1 Up: *to* K&quot;.</p>" in page  # letter for letter
    assert "# `x` &lt;y&gt;\n  ValueError: ```\n  more\n</code>" in page
    assert "<p>It failed in its run.</p>" in shown("failed in its run\n  DeadKernelError: Kernel died")


def test_what_was_stopped_says_how_it_gets_more_time():
    page = shown('was stopped after 24.1 min, in cell [7] of "2. Up"\n  To give it more, add `--patience TIMES`.')
    assert "<p>It was stopped after 24.1 min, in cell [7] of &quot;2. Up&quot;.</p>" in page
    assert "<p>To give it more, add <code>--patience TIMES</code>.</p>" in page


@pytest.mark.parametrize("fence", ["```", "::::"])
@pytest.mark.parametrize("what", ["figure", "include"])
def test_what_the_chapter_made_gives_way_to_a_note_and_what_others_made_stays(fence, what):
    ours = f"{fence}{{{what}}} _generated/30_flow/a.md\n:name: n\n\nCaption.\n{fence}"
    other = f"{fence}{{{what}}} _generated/30_flow_too/a.md\n{fence}"
    text = chapter().mended(f"Before.\n\n{ours}\n\n{other}\n\nAfter.")
    note = f"{fence}{{note}}\nWhat stands here is made by {{doc}}`/notebooks/30_flow`, which is missing.\n{fence}"
    assert text == f"Before.\n\n{note}\n\n{other}\n\nAfter."


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("{numref}`Figure %s <fig-a>`", "{doc}`Figure ? </notebooks/30_flow>`"),
        ("{numref}`fig-a`", "{doc}`/notebooks/30_flow`"),
        ("{ref}`the page <fig-a>`", "{doc}`the page </notebooks/30_flow>`"),
        ("{numref}`Figure %s <fig-ab>`", "{numref}`Figure %s <fig-ab>`"),
        ("[x](../notebooks/30_flow.ipynb#2-a)", "[x](../notebooks/30_flow.ipynb)"),
        ("[x](30_flow#2-a)", "[x](30_flow)"),
        ("[x](../notebooks/30_flow)", "[x](../notebooks/30_flow)"),
        ("[x](130_flow#a)", "[x](130_flow#a)"),
    ],
)
def test_a_way_into_the_chapter_leads_to_its_page(text, becomes):
    assert chapter(labels=["fig-a"]).mended(text) == becomes


def test_of_every_chapter_of_the_book_no_page_asks_for_more_than_its_page():
    asked, left = set(), set()
    for task in plan.plan(ROOT, "quick", {})[1]:
        missing = Missing.of(task, ())
        labels = "|".join(map(re.escape, sorted(missing.labels)))
        asks = re.compile(rf"_generated/{task.name}/|{task.name}(\.ipynb)?#|\{{\w+\}}`[^`]*\b({labels})>?`")
        others = [text for name, text in PAGES.items() if Path(name).stem != task.name]
        asked |= {task.name for text in others if asks.search(text)}
        left |= {task.name for text in others if asks.search(missing.mended(text))}
    assert left == set() and len(asked) >= 6  # most chapters are shown or referred to elsewhere

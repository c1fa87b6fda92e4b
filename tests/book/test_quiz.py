"""Laws of the quizzes for learning platforms: nothing is lost, one choice is right, and each explains itself."""

import io
import re
import zipfile
from xml.etree import ElementTree as Xml

import jupytext
import pytest
from ood_book.teach.handouts import together, zipped
from ood_book.teach.plain import read_book
from ood_book.teach.quiz import Choice, Question, moodle, qti, questions

from tests.book.chapters import chapter
from tests.book.test_lessons import NOTEBOOKS, QUIZZES, ROOT, quiz

BOOK = read_book(ROOT)
WITH_QUIZ = [path for path in NOTEBOOKS if path.stem[:2] in QUIZZES]
IMS = {"q": "http://www.imsglobal.org/xsd/ims_qtiasiv1p2", "m": "http://www.imsglobal.org/xsd/imsccv1p1/imscp_v1p1"}
TWO = [Question("<p>Is 1 &lt; 2?</p>", [Choice("Yes", True, "Count."), Choice("No", False, "Count \\(1 < 2\\).")])]


def opened(files):
    """The manifest of a QTI file and the quiz that it names."""
    with zipfile.ZipFile(io.BytesIO(zipped(files))) as bundle:
        manifest = Xml.fromstring(bundle.read("imsmanifest.xml"))
        (file,) = manifest.findall(".//m:resource/m:file", IMS)
        assert sorted(bundle.namelist()) == sorted(["imsmanifest.xml", file.get("href")])
        return manifest, Xml.fromstring(bundle.read(file.get("href")))


@pytest.mark.parametrize("path", WITH_QUIZ, ids=lambda p: p.stem)
def test_every_choice_of_the_page_is_there_with_its_explanation(path):
    found = questions(chapter(path), BOOK)
    page = quiz(chapter(path).cells)
    assert [[c.right for c in q.choices] for q in found] == [[right for _, right, _ in choices] for choices in page]
    html = [text for q in found for text in (q.text, *(part for c in q.choices for part in (c.text, c.why)))]
    assert all(len(re.sub(r"<[^>]+>", "", text)) > 2 for text in html)
    left = r"\$|\{\w+\}`|\]\(|\*\*|FORMULA|<a "  # Markdown, a role, a link
    assert [text for text in html if re.search(left, text)] == []


@pytest.mark.parametrize("path", WITH_QUIZ, ids=lambda p: p.stem)
def test_moodle_and_qti_hold_the_same_questions_with_one_right_answer(path):
    asked = questions(chapter(path), BOOK)
    (_, *items), (_, tree) = Xml.fromstring(moodle("A: b", asked)).findall("question"), opened(qti("a", "A: b", asked))
    assert len(items) == len(asked) == len(tree.findall(".//q:item", IMS)) == 5
    for question, there, here in zip(asked, items, tree.findall(".//q:item", IMS)):
        answers = {a.find("text").text: a for a in there.findall("answer")}
        labels = {x.get("ident"): x.find(".//q:mattext", IMS).text for x in here.iter(f"{{{IMS['q']}}}response_label")}
        why = {x.get("ident"): x.find(".//q:mattext", IMS).text for x in here.findall("q:itemfeedback", IMS)}
        (points,) = [x for x in here.findall(".//q:respcondition", IMS) if x.find("q:setvar", IMS) is not None]
        assert there.find("questiontext/text").text == here.find("q:presentation/q:material/q:mattext", IMS).text
        for key, choice in zip(labels, question.choices):
            assert labels[key] == choice.text and why[f"{key}_fb"] == choice.why
            assert answers[choice.text].find("feedback/text").text == choice.why
            assert (answers[choice.text].get("fraction") == "100") == choice.right
            assert (points.find(".//q:varequal", IMS).text == key) == choice.right
        shown = {x.get("linkrefid") for x in here.iter(f"{{{IMS['q']}}}displayfeedback")}
        assert shown == set(why)


def test_what_looks_like_a_tag_in_a_formula_is_text():
    choice = "# <details><summary>A. Yes</summary>\n#\n# **Right.** By $a<b$.\n#\n# </details>\n"
    text = f"# %% [markdown]\n# ### Quiz\n#\n# **1. Is $a<b$ & $c$?**\n#\n{choice}"
    (question,) = questions(jupytext.reads(text, "py:percent"))
    assert question.text == "<p>Is \\(a&lt;b\\) &amp; \\(c\\)?</p>"
    assert question.choices == [Choice("<p>Yes</p>", True, "<p>By \\(a&lt;b\\).</p>")]


def test_the_same_files_make_the_same_bytes():
    files = qti("a", "A", TWO)
    assert zipped(files) == zipped(files) != zipped(qti("b", "A", TWO))
    with zipfile.ZipFile(io.BytesIO(together({"x/a.txt": b"1", "y/b.txt": b"2"}, "x"))) as bundle:
        assert bundle.testzip() is None and bundle.namelist() == ["a.txt"] and bundle.read("a.txt") == b"1"

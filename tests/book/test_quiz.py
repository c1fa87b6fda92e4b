"""Laws of the quizzes for learning platforms: nothing is lost, one choice is right, and each explains itself.

The files are read against the published formats: the content models of IMS QTI 1.2.1 (its DTD) and of IMS Content
Packaging 1.1, and the elements that Moodle's documentation of its XML names. Neither platform itself was asked.
"""

import io
import re
import zipfile
from xml.etree import ElementTree as Xml

import jupytext
import pytest
from ood_book.notebooks import title_of
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


# ------------------------------------------------------------------------------------------------ the formats

TEXT = "#text"  # holds text and no element
MATERIAL = "(material|flow_mat)"
YES_NO = "Yes|No"
FORMATS = "html|markdown|plain_text|moodle_auto_format"

# Of each element that we write: its children in their order, and its attributes with their values; an attribute with a
# question mark may be missing. Elements of the formats that we never write are left out, and so are refused.
QTI = {
    "questestinterop": ("(assessment|(section|item)+)", {}),
    "assessment": ("qtimetadata* (sectionref|section)+", {"ident": ".+", "title?": ".+"}),
    "section": ("qtimetadata* (itemref|item|sectionref|section)*", {"ident": ".+", "title?": ".+"}),
    "item": ("itemmetadata? presentation? resprocessing* itemfeedback*",
             {"ident": ".+", "title?": ".+", "label?": ".+", "maxattempts?": r"\d+"}),
    "itemmetadata": ("qtimetadata*", {}),
    "qtimetadata": ("qtimetadatafield+", {}),
    "qtimetadatafield": ("fieldlabel fieldentry", {}),
    "fieldlabel": (TEXT, {}),
    "fieldentry": (TEXT, {}),
    "presentation": ("(flow|(material|response_lid|response_str|response_num)+)", {"label?": ".+"}),
    "material": ("mattext+", {"label?": ".+"}),
    "mattext": (TEXT, {"texttype?": "text/(plain|html)"}),
    "response_lid": ("material? render_choice material?",
                     {"ident": ".+", "rcardinality?": "Single|Multiple|Ordered", "rtiming?": YES_NO}),
    "render_choice": ("(material|response_label|flow_label)* response_na?",
                      {"shuffle?": YES_NO, "minnumber?": r"\d+", "maxnumber?": r"\d+"}),
    "response_label": (f"{MATERIAL}*", {"ident": ".+", "rshuffle?": YES_NO}),
    "resprocessing": ("outcomes respcondition+", {"scoremodel?": ".+"}),
    "outcomes": ("decvar+", {}),
    "decvar": ("", {"varname?": ".+", "vartype?": "Integer|String|Decimal|Scientific|Boolean|Enumerated|Set",
                    "defaultval?": ".+", "minvalue?": r"\d+", "maxvalue?": r"\d+"}),
    "respcondition": ("conditionvar setvar* displayfeedback*", {"continue?": YES_NO, "title?": ".+"}),
    "conditionvar": ("(not|and|or|unanswered|other|varequal)+", {}),
    "varequal": (TEXT, {"respident": ".+", "case?": YES_NO}),
    "setvar": (TEXT, {"varname?": ".+", "action?": "Set|Add|Subtract|Multiply|Divide"}),
    "displayfeedback": ("", {"linkrefid": ".+", "feedbacktype?": "Response|Solution|Hint"}),
    "itemfeedback": (f"({MATERIAL}|solution|hint)+", {"ident": ".+", "view?": ".+", "title?": ".+"}),
    "flow_mat": (f"{MATERIAL}+", {"class?": ".+"}),
}  # fmt: skip
PACKAGE = {
    "manifest": ("metadata? organizations resources", {"identifier": r"[A-Za-z_][\w.-]*", "version?": ".+"}),
    "metadata": ("schema? schemaversion?", {}),
    "schema": (TEXT, {}),
    "schemaversion": (TEXT, {}),
    "organizations": ("organization*", {"default?": ".+"}),
    "resources": ("resource*", {}),
    "resource": ("file* dependency*", {"identifier": r"[A-Za-z_][\w.-]*", "type": "imsqti_xmlv1p2", "href?": ".+"}),
    "file": ("", {"href": r"[\w./-]+"}),
}
MOODLE = {
    "quiz": ("question+", {}),
    "question": ("(category|name questiontext (generalfeedback|defaultgrade|penalty|hidden|idnumber|single|"
                 "shuffleanswers|answernumbering|correctfeedback|partiallycorrectfeedback|incorrectfeedback)* answer+)",
                 {"type": "category|multichoice"}),
    "category": ("text", {}),
    "name": ("text", {}),
    "questiontext": ("text", {"format?": FORMATS}),
    "text": (TEXT, {}),
    "defaultgrade": (TEXT, {}),
    "single": (TEXT, {}),
    "shuffleanswers": (TEXT, {}),
    "answernumbering": (TEXT, {}),
    "answer": ("text feedback?", {"fraction": r"-?\d+(\.\d+)?", "format?": FORMATS}),
    "feedback": ("text", {"format?": FORMATS}),
}  # fmt: skip


def faults(element, models, space=""):
    """Where an element, or one inside it, departs from a format: in its children, its attributes or its text."""
    name = element.tag.removeprefix(f"{{{space}}}")
    if name not in models:
        return [f"<{name}> is unknown"]
    children, attributes = models[name]
    inside = "".join(f"<{child.tag.removeprefix(f'{{{space}}}')}>" for child in element)
    pattern = re.sub(r"\w+", lambda word: f"(?:<{word[0]}>)", children if children != TEXT else "").replace(" ", "")
    found = [] if re.fullmatch(pattern, inside) else [f"<{name}> holds {inside or 'nothing'}"]
    if children != TEXT and "".join([element.text or "", *(child.tail or "" for child in element)]).strip():
        found.append(f"<{name}> holds text")
    required = {key for key in attributes if not key.endswith("?")}
    found += [f"<{name}> lacks {key}" for key in sorted(required - {*element.keys()})]
    for key, value in element.items():
        if not re.fullmatch(attributes.get(key, attributes.get(f"{key}?", "(?!)")), value, re.S):
            found.append(f'<{name} {key}="{value}">')
    return found + [fault for child in element for fault in faults(child, models, space)]


def loose_ends(tree):
    """Of a QTI file: identifiers that are there twice, and references to what is not there."""
    idents = [
        e.get("ident")
        for kind in ("item", "response_label", "itemfeedback")
        for e in tree.iterfind(f".//q:{kind}", IMS)
    ]
    found = [ident for ident in set(idents) if idents.count(ident) > 1]
    for item in tree.iterfind(".//q:item", IMS):
        there = {e.get("ident") for e in item.iter() if e.get("ident")}
        asked = [e.get("linkrefid") for e in item.iterfind(".//q:displayfeedback", IMS)]
        asked += [e.get("respident") for e in item.iterfind(".//q:varequal", IMS)]
        asked += [e.text for e in item.iterfind(".//q:varequal", IMS)]
        (listed,) = [f.find("q:fieldentry", IMS).text for f in item.iterfind(".//q:qtimetadatafield", IMS)
                     if f.find("q:fieldlabel", IMS).text == "original_answer_ids"]  # fmt: skip
        declared = {e.get("varname") for e in item.iterfind(".//q:decvar", IMS)}
        found += [name for name in [*asked, *listed.split(",")] if name not in there]
        found += [e.get("varname") for e in item.iterfind(".//q:setvar", IMS) if e.get("varname") not in declared]
    return found


def ill_valued(root):
    """Of a Moodle file: values outside those that its documentation allows, and other marks than one of 100."""
    allowed = {"single": "true|false", "shuffleanswers": "[01]|true|false", "answernumbering": "none|abc|ABCD|123",
               "defaultgrade": r"\d+(\.\d+)?"}  # fmt: skip
    found = [
        f"<{k}>{e.text}" for k, values in allowed.items() for e in root.iter(k) if not re.fullmatch(values, e.text)
    ]
    for question in root.findall("question[@type='multichoice']"):
        if sorted(float(a.get("fraction")) for a in question.findall("answer"))[-2:] != [0, 100]:
            found.append(question.find("name/text").text)
    return found + [c.text for c in root.iterfind(".//category/text") if not c.text.startswith("$course$/")]


@pytest.mark.parametrize("path", WITH_QUIZ, ids=lambda p: p.stem)
def test_the_files_follow_the_published_formats(path):
    asked, title = questions(chapter(path), BOOK), title_of(path.read_text(encoding="utf-8"))
    written = moodle(title, asked)
    assert written.startswith("<?xml")  # Moodle wants it first
    root, (manifest, tree) = Xml.fromstring(written), opened(qti(path.stem, title, asked))
    assert faults(root, MOODLE) == [] and ill_valued(root) == []
    assert faults(tree, QTI, IMS["q"]) == [] and loose_ends(tree) == []
    assert faults(manifest, PACKAGE, IMS["m"]) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<outcomes>", "<results>", "<results> is unknown"),
        ('ident="question1" ', "", "<item> lacks ident"),
        ('rcardinality="Single"', 'rcardinality="One"', '<response_lid rcardinality="One">'),
        ("<conditionvar>", "words <conditionvar>", "<respcondition> holds text"),
        ("<itemmetadata>", "<itemmetadata><section/>", "<itemmetadata> holds <section><qtimetadata>"),
        ('linkrefid="1001_fb"', 'linkrefid="9_fb"', "9_fb"),
        ('response_label ident="1002"', 'response_label ident="1001"', "1001"),
        ('varname="SCORE" vartype', 'varname="POINTS" vartype', "SCORE"),
    ],
)
def test_a_qti_file_with_a_fault_is_found_out(old, new, fault):
    text = qti("a", "A", TWO)["quiz_a/quiz_a.xml"].decode()
    assert old in text
    text = text.replace(old, new).replace("</outcomes>", f"</{new[1:-1]}>" if new == "<results>" else "</outcomes>")
    tree = Xml.fromstring(text)
    assert fault in [*faults(tree, QTI, IMS["q"]), *loose_ends(tree)]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<defaultgrade>1</defaultgrade>", "<grade>1</grade>", "<grade> is unknown"),
        ("ABCD", "A", "<answernumbering>A"),
        ('fraction="0"', 'fraction="100"', "A, question 1"),
        ('type="multichoice"', 'type="quiz"', '<question type="quiz">'),
        ("$course$", "course", "course/A"),
    ],
)
def test_a_moodle_file_with_a_fault_is_found_out(old, new, fault):
    text = moodle("A", TWO)
    assert old in text
    root = Xml.fromstring(text.replace(old, new))
    assert fault in [*faults(root, MOODLE), *ill_valued(root)]


# ------------------------------------------------------------------------------------------------ what they say


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

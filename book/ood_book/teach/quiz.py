"""The quizzes for learning platforms: Moodle XML for Moodle, QTI 1.2 for Canvas and others.

Pure functions from a chapter to a file.  Each choice keeps its explanation, as feedback.  Formulas are written between
``\\(`` and ``\\)``, which both platforms set with MathJax.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree as Xml

from markdown_it import MarkdownIt

from ood_book.teach.plain import ALONE, Book, plain

__all__ = ["Choice", "Question", "moodle", "qti", "questions"]

QUESTION = re.compile(r"^\*\*(\d+)\. (.+?)\*\*\n\n(.*?)(?=^\*\*\d+\. |\Z)", re.M | re.S)
CHOICE = re.compile(r"<summary>[A-Z]\. (.+?)</summary>\n\n\*\*(Right|No)\.\*\* (.+?)\n\n</details>", re.S)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.S)
NAMES = {
    "questestinterop": "http://www.imsglobal.org/xsd/ims_qtiasiv1p2",
    "manifest": "http://www.imsglobal.org/xsd/imsccv1p1/imscp_v1p1",
}  # of the schemas


class Choice(NamedTuple):
    """One answer of a question, as HTML, and why it is right or wrong."""

    text: str
    right: bool
    why: str


class Question(NamedTuple):
    """A question with one right answer, as HTML."""

    text: str
    choices: list[Choice]


def questions(notebook: Any, book: Book = ALONE) -> list[Question]:
    """The questions of a chapter's quiz; none where it has no quiz."""
    cells = [c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("### Quiz\n")]
    return [
        Question(
            _html(text, book),
            [
                Choice(_html(choice, book), word == "Right", _html(why, book))
                for choice, word, why in CHOICE.findall(rest)
            ],
        )
        for cell in cells
        for _, text, rest in QUESTION.findall(cell)
    ]


def _html(text: str, book: Book) -> str:
    """Markdown as HTML, its formulas untouched between ``\\(`` and ``\\)``."""
    formulas = list[str]()

    def keep(found: re.Match[str]) -> str:
        formulas.append(rf"\[{found[1]}\]" if found[1] else rf"\({found[2]}\)")
        return f"FORMULA{len(formulas) - 1}END"

    made = MarkdownIt("commonmark", {"html": True}).render(FORMULA.sub(keep, plain(text, book)))
    escaped = [f.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for f in formulas]
    made = re.sub(r"</?a\b[^>]*>", "", made)  # a link would lead nowhere on another platform
    return re.sub(r"FORMULA(\d+)END", lambda found: escaped[int(found[1])], made).strip()


def _add(parent: Xml.Element, path: str, text: str = "", **attributes: str) -> Xml.Element:
    """Append nested elements, ``a/b/c``; the last one gets the text and the attributes."""
    for name in path.split("/"):
        parent = Xml.SubElement(parent, name)
    parent.text = text or None
    parent.attrib.update(attributes)
    return parent


def _written(root: Xml.Element) -> str:
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def moodle(title: str, asked: Sequence[Question]) -> str:
    """Moodle XML: a category with the title, and a question of multiple choice for each."""
    root = Xml.Element("quiz")
    _add(_add(root, "question", type="category"), "category/text", f"$course$/{title.replace('/', '-')}")
    for number, question in enumerate(asked, 1):
        item = _add(root, "question", type="multichoice")
        _add(item, "name/text", f"{title.partition(':')[0]}, question {number}")
        _add(_add(item, "questiontext", format="html"), "text", question.text)
        for name, value in (
            ("defaultgrade", "1"),
            ("single", "true"),
            ("shuffleanswers", "true"),
            ("answernumbering", "ABCD"),
        ):
            _add(item, name, value)
        for choice in question.choices:
            answer = _add(item, "answer", fraction="100" if choice.right else "0", format="html")
            _add(answer, "text", choice.text)
            _add(_add(answer, "feedback", format="html"), "text", choice.why)
    return _written(root)


def qti(name: str, title: str, asked: Sequence[Question]) -> dict[str, bytes]:
    """One quiz as QTI 1.2: the files, by path, of the zip file that Canvas imports."""
    name = f"quiz_{name}"  # an identifier of XML begins with a letter
    root = Xml.Element("questestinterop", xmlns=NAMES["questestinterop"])
    assessment = _add(root, "assessment", ident=name, title=title)
    section = _add(assessment, "section", ident="root_section")
    for number, question in enumerate(asked, 1):
        _item(section, number, question)
    manifest = Xml.Element("manifest", xmlns=NAMES["manifest"], identifier=f"{name}-manifest")
    _add(manifest, "metadata/schema", "IMS Content")
    _add(manifest.find("metadata"), "schemaversion", "1.1.3")  # type: ignore[arg-type]
    _add(manifest, "organizations")
    resource = _add(manifest, "resources/resource", identifier=name, type="imsqti_xmlv1p2")
    _add(resource, "file", href=f"{name}/{name}.xml")
    return {"imsmanifest.xml": _written(manifest).encode(), f"{name}/{name}.xml": _written(root).encode()}


def _item(section: Xml.Element, number: int, question: Question) -> None:
    """A question of multiple choice with feedback for each choice."""
    ids = [f"{1000 * number + i}" for i in range(1, 1 + len(question.choices))]
    item = _add(section, "item", ident=f"question{number}", title=f"Question {number}")
    facts = _add(item, "itemmetadata/qtimetadata")
    for label, entry in (("question_type", "multiple_choice_question"), ("points_possible", "1.0"),
                         ("original_answer_ids", ",".join(ids))):  # fmt: skip
        field = _add(facts, "qtimetadatafield")
        _add(field, "fieldlabel", label)
        _add(field, "fieldentry", entry)
    shown = _add(item, "presentation")
    _add(shown, "material/mattext", question.text, texttype="text/html")
    choices = _add(_add(shown, "response_lid", ident="response1", rcardinality="Single"), "render_choice")
    marking = _add(item, "resprocessing")
    _add(marking, "outcomes/decvar", maxvalue="100", minvalue="0", varname="SCORE", vartype="Decimal")
    for key, choice in zip(ids, question.choices):
        _add(_add(choices, "response_label", ident=key), "material/mattext", choice.text, texttype="text/html")
        chosen = _add(marking, "respcondition", **{"continue": "Yes"})
        _add(chosen, "conditionvar/varequal", key, respident="response1")
        _add(chosen, "displayfeedback", feedbacktype="Response", linkrefid=f"{key}_fb")
    for key, choice in zip(ids, question.choices):
        if choice.right:
            full = _add(marking, "respcondition", **{"continue": "No"})
            _add(full, "conditionvar/varequal", key, respident="response1")
            _add(full, "setvar", "100", action="Set", varname="SCORE")
        feedback = _add(item, "itemfeedback", ident=f"{key}_fb")
        _add(feedback, "flow_mat/material/mattext", choice.why, texttype="text/html")

"""Links between library and chapters, and the markup that Sphinx leaves open."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from docutils.utils import new_document

pytest.importorskip("jupytext")
pytest.importorskip("sphinx")

from ood_book.site import extension, links, terms
from sphinx.addnodes import number_reference, pending_xref

import ood_lib

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import ood_lib as ood\nood.WeiPer().fit", ["ood_lib.detectors.weiper.WeiPer"]),
        ("from ood_lib.evaluation import plots as p\np.benchmark_table", ["ood_lib.evaluation.plots.benchmark_table"]),
        ("from ood_lib.detectors.flow.flow import glow\nglow()", ["ood_lib.detectors.flow.flow.glow"]),
        (
            "import ood_lib as ood\nood.detectors.flow.flow.glow(ood.MSP.fit)",
            ["ood_lib.detectors.classical.msp.MSP", "ood_lib.detectors.flow.flow.glow"],
        ),
        ("from ood_lib.detectors.flow.flow import glow", []),  # imported, not used
        ("import ood_lib as ood\nood.BENCHMARKS; ood.no_such_thing", []),  # data has no entry
        ("from ood_lib.detectors.flow.flow import torch\ntorch.tensor", []),  # not the library's
        ("import numpy as ood\nood.WeiPer", []),
    ],
)
def test_what_code_uses_is_named_by_its_place(code, names):
    assert links.uses(code) == names


def test_every_method_of_the_papers_leads_to_its_chapter():
    found = links.used_by(ROOT)
    for place, chapter in {
        "weiper.WeiPer": "10_weiper", "heat.heat.HEAT": "20_heat", "flow.feature_flow.FeatureFlow": "30_flow",
        "msma.MSMA": "40_msma", "joint_energy.JointEnergy": "50_snojoe",
    }.items():  # fmt: skip
        assert chapter in found[f"ood_lib.detectors.{place}"]


def test_a_use_is_found_under_the_heading_before_it():
    text = """# %%
import ood_lib as ood
# %% [markdown]
# ## 1. One
# ### 1.1 Two $x$
# %%
ood.WeiPer()
# %% [markdown]
# Text.
# %%
ood.MSP()
"""
    found = {place: heading for heading, code in links.sections(text) for place in links.uses(code, text)}
    assert found == {
        "ood_lib.detectors.weiper.WeiPer": "1.1 Two $x$",
        "ood_lib.detectors.classical.msp.MSP": "1.1 Two $x$",
    }


@pytest.mark.parametrize(
    ("name", "last"),
    [
        (
            "ood_lib.detectors.flow.flow.glow",
            "*Used in:* :doc:`Flows </notebooks/30_flow>` (`2.1 <../../notebooks/30_flow.html#glow-it>`__), "
            ":doc:`X </notebooks/x>`.",
        ),
        ("ood_lib.detectors.flow.flow.other", "Text."),
    ],
)
def test_an_entry_names_its_chapters_and_others_stay_as_they_are(name, last):
    uses = {"ood_lib.detectors.flow.flow.glow": {"30_flow": ["Flows", ["2.1 Glow it"]], "x": ["X", []]}}
    lines = ["Text."]
    extension._link_chapters(SimpleNamespace(config=SimpleNamespace(ood_book_uses=uses)), "", name, None, None, lines)
    assert [line for line in lines if line][-1] == last


@pytest.mark.parametrize(
    ("given", "base", "wanted"),
    [
        ("https://github.com/a/the-book", None, "/the-book/"),
        ("https://github.com/a/a.github.io/", None, "/"),
        ("https://github.com/a/the-book", "/", "/"),
        ("https://github.com/a/the-book", "deep/er/", "/deep/er/"),
    ],
)
def test_the_base_of_the_404_page_comes_from_the_address(given, base, wanted, monkeypatch):
    monkeypatch.delenv("OOD_BOOK_BASE", raising=False)
    if base:
        monkeypatch.setenv("OOD_BOOK_BASE", base)
    config = SimpleNamespace(html_theme_options={"repository_url": given})
    extension._set_base(None, config)
    assert config.notfound_urls_prefix == wanted
    assert f'href="{wanted}book/intro.html"' in config.notfound_context["body"]  # the way home


def test_a_former_address_leads_to_the_page_of_today_where_there_is_one():
    builder = SimpleNamespace(get_relative_uri=lambda former, page: f"to/{page}.html")
    app = SimpleNamespace(env=SimpleNamespace(found_docs=set(extension.MOVED.values())), builder=builder)
    for former, context, _ in extension._forward(app):
        link = f"to/{extension.MOVED[former]}.html"
        assert f'content="0; url={link}"' in context["metatags"] and f'href="{link}"' in context["body"]
    assert [former for former, *_ in extension._forward(app)] == list(extension.MOVED)
    app.env.found_docs = set()  # pages of another book
    assert list(extension._forward(app)) == []


def test_each_page_ends_with_the_version_of_the_library():
    config = SimpleNamespace(html_theme_options={"extra_footer": "Licence."})
    extension._set_version(None, config)
    assert config.html_theme_options["extra_footer"] == f"Version {ood_lib.__version__}. Licence."


def test_pages_are_mended_and_only_where_they_are_at_fault(tmp_path):
    good = "<dl>\n<dt>word</dt><dd>meaning</dd>\n</dl>"
    twice = '<h1>T</h1><div id="jb-print-docs-body"><h1>T</h1></div></div>\n<article class="x"><h1>T</h1>'
    assert extension.mended(good) == good
    assert extension.mended(twice) == '<h1>T</h1><article class="x"><h1>T</h1>'
    (tmp_path / "a.html").write_text(twice)
    extension._mend(SimpleNamespace(outdir=str(tmp_path)), None)
    assert (tmp_path / "a.html").read_text().count("<h1>") == 2


def test_the_uses_come_from_the_stage(tmp_path):
    (tmp_path / "uses.json").write_text(json.dumps({"a": {"b": "B"}}))
    (tmp_path / "names.json").write_text(json.dumps({"notebooks/a": "A"}))
    config = SimpleNamespace()
    extension._read_uses(SimpleNamespace(srcdir=str(tmp_path)), config)
    assert (config.ood_book_uses, config.ood_book_names) == ({"a": {"b": "B"}}, {"notebooks/a": "A"})


def test_figures_and_exercises_are_numbered_anew_on_each_page_in_their_order():
    kinds = {"figure": {"id2": (8,), "id1": (7,)}, "exercise": {"e": (3,)}}
    env = SimpleNamespace(toc_fignumbers={"notebooks/a": kinds, "notebooks/b": {"figure": {"x": (9,)}}})
    extension._number(None, env)
    assert env.toc_fignumbers == {
        "notebooks/a": {"figure": {"id1": (1,), "id2": (2,)}, "exercise": {"e": (1,)}},
        "notebooks/b": {"figure": {"x": (1,)}},
    }


def test_a_reference_to_a_figure_of_another_page_names_the_page():
    document, titles = new_document(""), {"book/b": nodes.title("", "Data: sets")}
    for place in ({"refuri": "../notebooks/a.html#x"}, {"refuri": "b.html#y"}, {"refid": "z"}):
        document += number_reference("", "", nodes.inline("", "Figure 1"), **place)
    config = SimpleNamespace(ood_book_names={"notebooks/a": "Flows"})
    app = SimpleNamespace(config=config, env=SimpleNamespace(titles=titles))
    extension._name_page(app, document, "book/c")
    shown = [reference.astext() for reference in document.findall(number_reference)]
    assert shown == ["Figure 1 of Flows", "Figure 1 of Data", "Figure 1"]


# -- words of the glossary ----------------------------------------------------------------------------------------

WORDS = {
    "prior energy": "a",
    "energy": "b",
    "score": "c",
    "score (Stein)": "d",
    "seed (chance)": "e",
    "Bayes' rule": "f",
}
GLOSSARY = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
MARK = re.compile(r"\{term\}`(?:[^`<]*<([^`>]+)>|([^`]+))`")


def marked(document: nodes.document, words=WORDS, by_hand=()) -> list[tuple[str, str]]:
    """The words that become references in a text, as they stand there, and the entries they lead to."""
    plain = document.astext()
    terms.mark(document, words, "page", by_hand)
    assert document.astext() == plain  # not a letter is lost
    assert all("glossary-term" in node[0]["classes"] for node in document.findall(pending_xref))
    return [(node.astext(), node["reftarget"]) for node in document.findall(pending_xref)]


def in_the_book(text: str) -> list[tuple[str, str]]:
    """The same of a sentence of the book, with the words of its glossary."""
    return marked(publish_doctree(text), terms.definitions(GLOSSARY), terms.by_hand(GLOSSARY))


@pytest.mark.parametrize(
    ("rst", "found"),
    [
        ("An energy. Another energy.", [("energy", "energy")]),  # the first time only
        ("Energies and scores: energys.", [("scores", "score"), ("energys", "energy")]),  # plural by an s
        ("The prior energy is an energy.", [("prior energy", "prior energy"), ("energy", "energy")]),  # the longest
        ("Seeds come first.", [("Seeds", "seed (chance)")]),
        ("So says Bayes\u2019 rule.", [("Bayes\u2019 rule", "Bayes' rule")]),  # with the apostrophe that Sphinx makes
        ("A score-network, underscored ``energy`` and *seed*.", []),  # inside of words, code, emphasis
        ("energy\n======\n\nText.", []),  # headings
        ("`energy <http://x.org>`__", []),
        ("== ======\na  energy\n== ======\n", []),
    ],
)
def test_the_first_use_of_a_word_in_running_text_leads_to_the_glossary(rst, found):
    assert marked(publish_doctree(rst)) == found


def test_a_word_that_is_marked_by_hand_is_not_marked_again():
    document = publish_doctree("A score of an energy.")
    hand = pending_xref("", nodes.inline("", "scores"), refdomain="std", reftype="term", reftarget="score")
    document += nodes.paragraph("", "Of ", hand)
    assert marked(document) == [("energy", "energy"), ("scores", "score")]


def test_a_word_that_means_more_is_marked_by_hand_alone():
    text = "The score of a prior energy."
    assert marked(publish_doctree(text), by_hand=["score"]) == [("prior energy", "prior energy")]
    assert ("score", "score") in marked(publish_doctree(text))


def test_a_pointer_on_a_word_shows_what_it_means():
    inside = nodes.inline("energy", "energy", classes=["glossary-term"])
    word = nodes.reference("", "", inside, refuri="glossary.html#term-prior-energy")
    other = nodes.reference("", "x", refuri="glossary.html#term-prior-energy")
    document = new_document("")
    document += nodes.paragraph("", "", word, other)
    terms._explain(SimpleNamespace(config=SimpleNamespace(ood_book_words=WORDS)), document, "page")
    assert word["reftitle"] == "a" and "reftitle" not in other


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What the score of a density is, and how KNN scores a bank.", []),
        ("Click a column head to sort; tables repeat their heads on the next sheet.", []),
        ("Read a profile as the answer.", []),
        ("Its interval is taken on the logit scale.", []),
        ("Let a small energy network correct it; the style of a page, a threshold of ten, a coupling of trains.", []),
        ("A perturbed head and a noise scale.", [("perturbed head", "perturbed head"), ("noise scale", "noise scale")]),
        ("MSP, AUPR and AUROC with DeLong's interval.", [(w, w) for w in ("MSP", "AUPR", "AUROC", "DeLong")]),
        (
            "The Mahalanobis distance of a tied Gaussian.",
            [("Mahalanobis", "Mahalanobis (distance)"), ("tied Gaussian",) * 2],
        ),
        ("Tweedie\u2019s formula.", [("Tweedie\u2019s formula", "Tweedie's formula")]),
    ],
)
def test_in_the_book_only_words_with_one_meaning_are_marked_by_themselves(text, found):
    assert in_the_book(text) == found


def test_every_mark_leads_to_an_entry_and_every_word_that_needs_one_is_an_entry():
    entries = {word.lower() for word in terms.definitions(GLOSSARY)}
    assert set(terms.by_hand(GLOSSARY)) <= {word.partition(" (")[0] for word in entries}
    pages = [*(ROOT / "notebooks").glob("*.py"), *(ROOT / "book").glob("*.md")]
    marks = {
        (p.name, a or b) for p in pages if p.stem != "glossary" for a, b in MARK.findall(p.read_text(encoding="utf-8"))
    }
    assert len(marks) > 30 and {(page, word) for page, word in marks if word.lower() not in entries} == set()


def test_every_entry_of_the_glossary_has_a_meaning_without_markup():
    found = terms.definitions(GLOSSARY)
    assert len(found) > 30
    for word, meaning in found.items():
        assert len(meaning) > 15, word
        assert not set(meaning) & set("\\$`[]"), (word, meaning)

"""Charts on the pages: a picture with words for those without scripts, the chart for the others, and no other host."""

import json
import re
from pathlib import Path

import pytest
from nbformat.v4 import new_output
from ood_book import explorables
from ood_book.site.explorables import add_scripts, as_html


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
    own = Path(explorables.__file__).parents[2] / "book/_static/explorables.js"
    assert "http" not in own.read_text()

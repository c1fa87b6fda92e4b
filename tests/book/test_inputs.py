"""Laws of what a run depends on: what its parameters name, its code, and nothing of its prose."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext")

import nbformat
from ood_book import percent
from ood_book.notebooks import Refused, code_of
from ood_book.run import inputs
from ood_book.run.plan import plan
from ood_book.run.sweep import plan_sweep

from tests.book.chapters import chapter

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
AUDIT = """# %% tags=["parameters"]
benchmark: str = "digits"
benchmarks: list = ["cifar10-resnet9"]
model: str = ""
weights: str = ""
data_dir: str = ""
archive: str = "../book/results"
seed: int = 0
results: str = ""
"""
NETWORK = 'import torch\nimport layers\n\nraise RuntimeError("imported")\n'


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A book of one notebook, and beside it what a reader may name: the folder in which the command is given."""
    for name, content in {
        "book/notebooks/80_audit.py": AUDIT,
        "book/notebooks/profiles/default.yaml": "{}",
        "book/book/results/run.json": "{}",
        "pictures/train/cat/1.png": "a cat",
        "pictures/train/.DS_Store": "hidden",
        "w.pt": "weights",
        "rows/logits.npy": "a bank",
        "hub/config.json": "a folder of Hugging Face",
        "mymodel.py": NETWORK,
        "layers.py": "from . import nothing\nimport blocks.tanh\n",
        "blocks/tanh.py": "",
        "networks/__init__.py": "",
        "networks/deep/small.py": "",
        "other.py": "",
        "sets/cifar10.npz": "pixels",
        "out/audit.json": "{}",
    }.items():
        write(tmp_path / name, content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def key_of(mine, **given):
    return plan(mine / "book", "default", given, ["audit"])[1][0].key


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"benchmark": "folder:pictures"}, "pictures/train/cat/1.png"),
        ({"benchmark": "folder:pictures"}, "pictures/far/new.png"),
        ({"benchmark": "bank:rows"}, "rows/logits.npy"),
        ({"benchmarks": '["cifar10-resnet9", "bank:rows"]'}, "rows/logits.npy"),
        ({"weights": "w.pt"}, "w.pt"),
        ({"model": "mymodel:net"}, "mymodel.py"),
        ({"model": "mymodel:net"}, "layers.py"),  # which it imports
        ({"model": "mymodel:net"}, "blocks/tanh.py"),  # which that imports
        ({"model": "networks.deep.small:net"}, "networks/deep/small.py"),
        ({"model": "networks.deep.small:net"}, "networks/deep/wide.py"),
        ({"archive": "sets"}, "sets/cifar10.npz"),
        ({}, "book/book/results/run.json"),
    ],
)
def test_another_content_of_what_a_parameter_names_is_another_run(mine, given, name):
    given = {k: v.replace("bank:rows", f"bank:{mine}/rows") for k, v in given.items()}
    before = key_of(mine, **given)
    assert key_of(mine, **given) == before
    write(mine / name, "other")
    assert key_of(mine, **given) != before


def test_a_folder_of_hugging_face_counts_and_a_name_there_does_not(mine):
    place = f"hf:{mine / 'hub'}"
    before, named = key_of(mine, model=place), key_of(mine, model="hf:google/vit")
    write(mine / "hub/config.json", "other")
    assert key_of(mine, model=place) != before and key_of(mine, model="hf:google/vit") == named


def test_a_picture_that_is_removed_or_renamed_is_another_run(mine):
    keys = [key_of(mine, benchmark="folder:pictures")]
    (mine / "pictures/train/cat/1.png").rename(mine / "pictures/train/cat/2.png")
    keys.append(key_of(mine, benchmark="folder:pictures"))
    (mine / "pictures/train/cat/2.png").unlink()
    assert len({*keys, key_of(mine, benchmark="folder:pictures")}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "other.py",  # nothing imports it
        "pictures/train/.DS_Store",
        "networks/__pycache__/small.pyc",
        "out/audit.json",  # made by the run
        "sets/cifar10.npz",  # a run downloads into this folder
        "book/book/intro.md",
    ],
)
def test_what_no_parameter_names_what_is_hidden_and_what_runs_write_asks_for_no_new_run(mine, name):
    given = {"benchmark": "folder:pictures", "model": "mymodel:net", "results": "out", "data_dir": "sets"}
    before = key_of(mine, **given)
    write(mine / name, "other")
    assert key_of(mine, **given) == before


def test_an_installed_network_is_found_and_what_it_imports_is_not_looked_at(mine):
    files = inputs._code("jupytext.cli:main", mine)
    assert {file.name for file in files} > {"__init__.py", "cli.py"} and {"jupytext"} == {
        file.relative_to(Path(percent.jupytext.__file__).parents[1]).parts[0] for file in files
    }
    assert inputs._code("nowhere:net", mine) == inputs._code("cifar10-resnet9", mine) == []


def test_a_lone_slash_names_no_disk_and_a_value_without_a_path_names_none(mine):
    assert list(inputs._paths(["/", ".", "..", "", "folder:/", "bank:", 1, None, "nowhere"], mine)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the names of files are text")
def test_a_name_that_is_no_utf8_counts(mine):
    before = key_of(mine, benchmark="folder:pictures")
    with open(os.fsencode(mine) + b"/pictures/train/cat/\xe8.png", "wb"):
        assert key_of(mine, benchmark="folder:pictures") != before


def test_code_that_does_not_parse_counts_all_the_same(mine):
    write(mine / "layers.py", "def broken(")
    before = key_of(mine, model="mymodel:net")
    write(mine / "layers.py", "def broken(x")
    assert key_of(mine, model="mymodel:net") != before


@pytest.mark.parametrize("limit", ["FILES", "BYTES"])
def test_of_what_is_large_no_content_is_read_and_size_and_time_count(mine, monkeypatch, limit):
    monkeypatch.setattr(inputs, limit, 3)
    for number in range(4):
        write(mine / f"pictures/near/{number}.png", "four")
    monkeypatch.setattr(Path, "read_bytes", None)
    keys, file = [inputs.hash_path(mine / "pictures")], mine / "pictures/near/3.png"
    assert inputs.hash_path(mine / "pictures") == keys[0]
    os.utime(file, ns=(0, 0))
    keys.append(inputs.hash_path(mine / "pictures"))
    file.write_text("five!")
    os.utime(file, ns=(0, 0))
    assert len({*keys, inputs.hash_path(mine / "pictures")}) == 3


def test_the_time_of_what_is_small_does_not_count(mine):
    before = inputs.hash_path(mine / "pictures")
    os.utime(mine / "pictures/train/cat/1.png", ns=(0, 0))
    assert inputs.hash_path(mine / "pictures") == before


def test_links_are_followed_and_one_that_leads_back_ends(mine, monkeypatch):
    (mine / "pictures/far").symlink_to(mine / "rows")
    (mine / "pictures/near").symlink_to(mine / "pictures")
    (mine / "pictures/lost.png").symlink_to(mine / "nowhere")
    entered, real = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda place: entered.append(place) or real(place))
    before = inputs.hash_path(mine / "pictures")
    assert len(entered) == 5  # the pictures, near, far, train, its cats: and no more below the link that leads back
    write(mine / "rows/logits.npy", "other")
    assert inputs.hash_path(mine / "pictures") != before


def test_a_sweep_looks_at_each_path_once(mine, monkeypatch):
    looked = []
    monkeypatch.setattr("ood_book.run.sweep.hash_path", lambda path: looked.append(path) or "")
    values = [[{"seed": seed} for seed in range(5)], [{"benchmark": "folder:pictures"}]]
    assert len(plan_sweep(mine / "book", "audit", values, None, "default").tasks) == 5
    assert len(looked) == len(set(looked)) == 2  # the pictures and the archive


# ------------------------------------------------------------------------------------------------ prose and code

PAGE = """# %% [markdown]
# # The title

# %% tags=["parameters", "hide-input"]
seed: int = 0

# %% [markdown]
# Between.

# %% mystnb={"figure": {"caption": "A caption."}}
draw(seed)

# %%
tell(seed)
"""


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_code_of_a_chapter_is_what_runs(source):
    cells = [cell for cell in chapter(source).cells if cell.cell_type == "code"]
    acted = ["parameters\n" * ("parameters" in cell.metadata.get("tags", [])) + cell.source for cell in cells]
    assert code_of(source.read_text(encoding="utf-8")) == acted


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("# Between.", "# Another word.", False),
        ("# Between.\n", "# Between.\n\n# %% [markdown]\n# A new cell.\n", False),
        ("A caption.", "Another caption.", False),
        (', "hide-input"', "", False),
        ("# %%\ntell", '# %% tags=["slide"]\ntell', False),
        ("# %%\ntell", '# %% tags=["raises-exception"]\ntell', True),
        ('"parameters", ', "", True),
        ("tell(seed)", "tell(seed + 1)", True),
        ("tell(seed)", "# %%\ntell(seed)", True),
        ("seed: int = 0", "seed: int = 0  # a comment", True),
    ],
)
def test_only_another_code_asks_for_another_run(old, new, counts):
    assert old in PAGE
    assert (code_of(PAGE.replace(old, new, 1)) != code_of(PAGE)) == counts


def ran(place, text=PAGE, given=True):
    """The file of a run as papermill leaves it: each cell of code has said its own number."""
    notebook = percent.parse(text)
    if given:
        tags = {"tags": ["injected-parameters"], "papermill": {"duration": 0.1}}
        parameters = [i for i, cell in enumerate(notebook.cells, 1) if "parameters" in cell.metadata.get("tags", [])]
        notebook.cells.insert(sum(parameters), nbformat.v4.new_code_cell("seed = 7", metadata=tags))
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.update(execution_count=number, outputs=[nbformat.v4.new_output("stream", text=f"{number}")])
        cell.metadata.setdefault("papermill", {"duration": 0.1})
    notebook.metadata.update(ood_book={"key": "k"}, papermill={"duration": 0.1})
    nbformat.write(notebook, place)
    return place


def test_a_run_is_shown_with_the_words_captions_and_tags_of_its_source_and_its_own_outputs(tmp_path):
    text = PAGE.replace("The title", "A title").replace("A caption", "Another caption").replace(', "hide-input"', "")
    text = text.replace("# Between.\n", "# Before.\n\n# %% [markdown]\n# Between.\n")
    shown = percent.executed(ran(tmp_path / "a.ipynb"), text)
    assert [cell.source for cell in shown.cells] == [
        "# A title", "seed: int = 0", "seed = 7", "Before.", "Between.", "draw(seed)", "tell(seed)",
    ]  # fmt: skip
    code = [cell for cell in shown.cells if cell.cell_type == "code"]
    assert [(cell.execution_count, cell.outputs[0].text) for cell in code] == [(n, str(n)) for n in range(4)]
    assert [dict(cell.metadata) for cell in code] == [
        {"tags": ["parameters"]}, {"tags": ["injected-parameters"]},
        {"mystnb": {"figure": {"caption": "Another caption."}}}, {},
    ]  # fmt: skip
    assert shown.metadata.ood_book == {"key": "k"} and "papermill" not in shown.metadata
    nbformat.validate(shown)


def test_what_was_given_to_a_notebook_without_parameters_stands_at_its_head(tmp_path):
    text = PAGE.replace('"parameters", ', "")
    assert percent.executed(ran(tmp_path / "a.ipynb", text), text).cells[0].source == "seed = 7"
    assert len(percent.executed(ran(tmp_path / "a.ipynb", text, given=False), text).cells) == 5


@pytest.mark.parametrize("text", [PAGE.replace("tell", "say"), f"{PAGE}\n# %%\nsay(seed)\n"])
def test_a_run_of_other_code_is_refused(tmp_path, text):
    with pytest.raises(Refused, match=r"a\.ipynb was made by other code .* run it again"):
        percent.executed(ran(tmp_path / "a.ipynb"), text)

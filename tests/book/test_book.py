"""The laws of the book: what its pages, notebooks and papers of record promise, checked on the files themselves.

Each law is a function from text to complaints, so that the last part of this file can show that it is able to fail.
"""

import ast
import json
import os
import re
import subprocess
import tomllib
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ood_book import cli, metadata
from ood_book.reading import minutes
from ood_book.run import plan

import ood_lib
from ood_lib.data.protocols import OPENOOD
from ood_lib.evaluation import plots

pytest.importorskip("jupytext")
pytest.importorskip("yaml")
pytest.importorskip("papermill")

import yaml

from tests.book.chapters import chapter, executed

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
PAGES = sorted([*ROOT.glob("book/*.md"), *ROOT.glob("book/api/*.md")])
PROSE = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
QUICK = [ROOT / "_build/run/quick" / f"{path.stem}.ipynb" for path in NOTEBOOKS]  # there once `make test` has run them
RUNS = [path for path in QUICK if path.is_file()]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
BRANCH = "main"
ALT = 40  # characters that describe a figure at least
WIDE = 92  # characters of a line of code in a cell that is shown: the page shows no more
SHOWN, FOLDED = 15, 25  # lines of code in a cell that is shown, and in one that is folded away
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=[str(p.relative_to(ROOT)) for p in paths])


def read(path):
    return path.read_text(encoding="utf-8")


def cells_of(path, kind="code"):
    return [c for c in chapter(path).cells if c.cell_type == kind]


def tags(cell):
    return cell.metadata.get("tags", [])


# ------------------------------------------------------------------------------------------------ the address

NAME = r"([\w.-]+/[\w-]+)"
OURS = [  # places where a reader gets this book from: repository and, where it is said, branch
    rf"(?:git clone |git\+|url: |repository-code: )https://github\.com/{NAME}(?:\.git)?(?:@([\w./-]+))?",
    rf"https://github\.com/{NAME}/actions/workflows/\w+\.yml/badge\.svg\?branch=([\w.-]+)",
    rf"https://github\.com/{NAME}/actions/()",
    rf"colab\.research\.google\.com/github/{NAME}/blob/([\w.-]+)/",
]


def addresses(text):
    """Repository and branch ("" where none is said) of each address that a reader is sent to for this book."""
    return [found for pattern in OURS for found in re.findall(pattern, text)]


def wrong_addresses(text):
    right = ADDRESS.removeprefix("https://github.com/")
    return [found for found in addresses(text) if found[0] != right or found[1] not in ("", BRANCH)]


HOLDERS = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "_config.yml", "CITATION.cff", "book/how-to-use.md")]


@each([*HOLDERS, *NOTEBOOKS])
def test_the_repository_has_one_address(path):
    assert addresses(read(path)), "no address found: has its form changed?"
    assert wrong_addresses(read(path)) == []


def test_pages_and_citation_record_name_address_and_branch():
    config, citation = (yaml.safe_load(read(ROOT / name)) for name in ("_config.yml", "CITATION.cff"))
    assert config["repository"] == {"url": ADDRESS, "branch": BRANCH}
    assert config["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert citation["repository-code"] == ADDRESS


def test_the_colab_badges_of_the_readme_lead_to_notebooks_that_exist():
    linked = re.findall(r"/blob/[\w.-]+/(\S+?\.ipynb)", read(ROOT / "README.md"))
    assert linked and all((ROOT / name).is_file() for name in linked)


def test_citation_record_is_complete_and_of_this_version():
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert [set(author) for author in citation["authors"]] == [{"name"}]  # an entity
    assert citation["version"] == ood_lib.__version__ == version("ood_lib")
    assert isinstance(citation["date-released"], date) and citation["date-released"].year >= 2026


# ------------------------------------------------------------------------------------------------ notebooks


def test_there_is_a_chapter():
    assert NOTEBOOKS


def installs(code, missing, monkeypatch):
    """What the cell would install, without installing: the arguments of pip, one string per call."""
    from IPython.core.inputtransformer2 import TransformerManager

    calls = []

    def note(*command, **_):
        calls.append(" ".join(map(str, command[0] if isinstance(command[0], list) else command)))
        return SimpleNamespace(returncode=0)

    shell = SimpleNamespace(run_line_magic=note, system=note, getoutput=note)
    with monkeypatch.context() as patch:
        for name in ("run", "check_call", "call", "Popen", "check_output"):
            patch.setattr(subprocess, name, note)
        patch.setattr(os, "system", note)
        patch.setattr("importlib.util.find_spec", lambda name, *_: None if missing else object())
        exec(TransformerManager().transform_cell(code), {"get_ipython": lambda: shell})
    return [call for call in calls if "install" in call]


def pins(command):
    """Version limits in a pip command; a branch after @ is not one, a tag or a commit is."""
    at = re.findall(r"git\+https://[^\s@]+@(\S+)", command)
    return re.findall(r"[\w\]]\s*(?:[=~<>!]=|[<>])\s*[\d.]+", command) + [ref for ref in at if ref != BRANCH]


@each(NOTEBOOKS)
def test_the_first_code_cell_installs_the_library_only_where_it_is_missing_and_pins_nothing(path, monkeypatch):
    code = cells_of(path)[0].source
    assert installs(code, missing=False, monkeypatch=monkeypatch) == []
    (command,) = installs(code, missing=True, monkeypatch=monkeypatch)
    assert "ood_lib" in command and f"git+{ADDRESS}" in command
    assert pins(command) == []


def test_every_notebook_begins_with_the_same_cell_of_code():
    assert len({cells_of(path)[0].source for path in NOTEBOOKS}) == 1


def test_an_address_that_cannot_be_reached_ends_in_a_sentence_that_says_what_to_do(monkeypatch):
    said = "  error: subprocess\n      fatal: unable to access 'https://x.org/': Could not resolve host\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    with pytest.raises(ImportError) as caught:
        exec(cells_of(NOTEBOOKS[0])[0].source, {})
    (shown,) = caught.value._render_traceback_()  # in place of the traceback
    parts = ("unable to access 'https://x.org/': Could not resolve host", ADDRESS, "set SOURCE", "run the cell again")
    assert "\n" not in shown and [part for part in parts if part not in shown] == []


def untyped_parameters(source):
    """Lines of a parameter cell that are not `name: type = plain value  # what it does`."""
    bad, lines = [], source.splitlines()
    for node in ast.parse(source).body:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        try:
            ast.literal_eval(node.value)
            fine = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        except (ValueError, AttributeError):
            fine = False
        if not fine or not re.search(r"#\s*\S{2,}", lines[node.end_lineno - 1][node.end_col_offset :]):
            bad.append(text)
    return bad


@each(NOTEBOOKS)
def test_each_notebook_has_one_cell_of_typed_and_explained_parameters(path):
    (cell,) = [c for c in cells_of(path) if "parameters" in tags(c)]
    assert untyped_parameters(cell.source) == []
    assert re.findall(r"^(\w+):", cell.source, re.M)


def code_lines(source):
    return sum(1 for line in source.splitlines() if line.strip() and not line.strip().startswith("#"))


def folded(cell):
    return bool({"hide-input", "hide-cell", "remove-input", "remove-cell"} & set(tags(cell)))


def too_wide(cell):
    return not folded(cell) and any(len(line) > WIDE for line in cell.source.splitlines())


def too_long(cell):
    return "parameters" not in tags(cell) and code_lines(cell.source) > (FOLDED if folded(cell) else SHOWN)


@each(NOTEBOOKS)
def test_code_cells_are_short_enough_to_read(path):
    assert [c.source.splitlines()[0] for c in cells_of(path) if too_long(c)] == []


@each(NOTEBOOKS)
def test_shown_code_fits_the_width_of_the_page(path):
    assert [c.source.splitlines()[0] for c in cells_of(path) if too_wide(c)] == []


# What decides for a processor that it computes in half precision. One without it would emulate it, ten times as slowly;
# so "auto" decides, or `ood.half_precision`.
ASKED = r"""\bautocast["']?\s*[=:]\s*(?:True\b|torch\.(?!dtype\b))"""
NAMED = r"\btorch\.(?:b?float16|half)\b|\.(?:half|bfloat16)\(\)|\bimport\b.*\b(?:b?float16|half)\b"
DEFAULT = r"\btorch\.autocast\([^,()]*(?:\)|,\s*enabled\b)"  # on a CPU that is bfloat16
hard_coded_autocast = re.compile(ASKED).findall
hard_coded_half = re.compile(f"{ASKED}|{NAMED}|{DEFAULT}").findall


@each(NOTEBOOKS)
def test_no_notebook_takes_half_precision_without_asking_the_processor(path):
    assert hard_coded_half(read(path)) == []


@each([*PAGES, *sorted((ROOT / "ood_lib").rglob("*.py"))])
def test_no_page_and_no_recipe_sets_autocast_to_a_precision(path):  # weights and features may rest in one
    assert hard_coded_autocast(read(path)) == []


def undescribed(metadata):
    """What is missing from the description of a figure, given the cell's `mystnb` metadata."""
    alt = metadata.get("image", {}).get("alt", "")
    figure = metadata.get("figure", {})
    missing = [] if len(alt) >= ALT else [f"alt text of {ALT} characters"]
    return missing + [key for key in ("caption", "name") if not figure.get(key)]


DRAWS = re.compile(r"^\s*plt\.show\(|^\s*display\(\s*(?:fig|figure)\b", re.M)


@each(NOTEBOOKS)
def test_every_cell_that_draws_describes_its_figure(path):
    drawn = [c for c in cells_of(path) if DRAWS.search(c.source) or "mystnb" in c.metadata]
    assert drawn, "no figure at all?"
    lacking = {c.source.splitlines()[0]: undescribed(c.metadata.get("mystnb", {})) for c in drawn}
    assert {line: missing for line, missing in lacking.items() if missing} == {}


def test_names_of_figures_are_unique_over_the_book():
    found = [c.metadata["mystnb"]["figure"]["name"] for p in NOTEBOOKS for c in cells_of(p) if "mystnb" in c.metadata]
    found += [name for page in PAGES for name in re.findall(r"^:name: (\S+)", read(page), re.M)]
    assert [name for name, count in Counter(found).items() if count > 1] == []


def pictures_without_description(notebook):
    """First lines of executed cells that put out a picture nobody describes."""
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    drew = [c for c in code if any(m.startswith("image/") for o in c["outputs"] for m in o.get("data", {}))]
    return ["".join(c["source"]).split("\n")[0] for c in drew if undescribed(c["metadata"].get("mystnb", {}))]


@each(RUNS)
def test_every_picture_of_an_executed_notebook_is_described(path):
    assert pictures_without_description(executed(path)) == []


def test_the_notebooks_for_colab_are_made_from_their_sources():
    assert cli.main(["sync", "--check", "--root", str(ROOT)]) == 0


@each(NOTEBOOKS)
def test_the_notebook_for_colab_carries_no_outputs(path):
    code = [c for c in json.loads(read(path.with_suffix(".ipynb")))["cells"] if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)


@each(sorted((ROOT / ".github/workflows").glob("*.yml")))
def test_runs_that_are_kept_between_jobs_are_restored_whatever_was_edited_and_saved_each_time(path):
    steps = [step for job in yaml.safe_load(read(path))["jobs"].values() for step in job.get("steps", [])]
    for kept in (step["with"] for step in steps if step.get("uses", "").startswith("actions/cache@")):
        assert kept["key"] == kept["restore-keys"] + "${{ github.sha }}", (
            "a hash of files would have to name all of them"
        )


# ------------------------------------------------------------------------------------------------ what they ask

ABOUT = metadata.about(ROOT)


def over_budget(record, promised):
    """What took more than half as much again as was promised; a machine with other work to do counts for nothing."""
    seconds = min(record["seconds"], record.get("cpu_seconds") or record["seconds"])
    taken = {"minutes": (seconds / 60, promised.run), "MB": (record["peak_memory_mb"] or 0, promised.memory)}
    return [f"{took:.1f} {unit}, promised {budget}" for unit, (took, budget) in taken.items() if took > 1.5 * budget]


@pytest.fixture(scope="session")
def default_runs():
    """The records of the runs with the default profile that are up to date."""
    return {task.name: task.record() for task in plan.plan(ROOT, "default", {})[1]}


@each(NOTEBOOKS)
def test_a_notebook_keeps_its_budget_of_time_and_memory(path, default_runs):
    if not default_runs[path.stem]:
        pytest.skip(f"not run as it is now: ood-book run {path.stem}")
    assert over_budget(default_runs[path.stem], ABOUT[path.stem]) == []


def test_a_notebook_over_its_budget_is_found_out():
    promised = SimpleNamespace(run=2, memory=1000)
    kept = {"seconds": 500.0, "cpu_seconds": 179.0, "peak_memory_mb": 1500}
    assert over_budget(kept, promised) == []
    assert over_budget(kept | {"cpu_seconds": 181.0}, promised) == ["3.0 minutes, promised 2"]
    assert over_budget(kept | {"cpu_seconds": None}, promised) == ["8.3 minutes, promised 2"]
    assert over_budget(kept | {"peak_memory_mb": 1501}, promised) == ["1501.0 MB, promised 1000"]


@each(NOTEBOOKS)
def test_the_minutes_to_read_are_those_that_the_page_names(path):
    (counted,) = re.findall(r"\*\*It takes\*\* (\w+) minutes", read(path))
    assert counted == str(ABOUT[path.stem].read) == str(minutes(read(path)))
    assert ABOUT[path.stem].gpu in ("no", "helps", "needed")
    assert ("No GPU" in read(path)) == (ABOUT[path.stem].gpu == "no")


def test_every_notebook_says_what_it_asks_and_the_files_made_of_it_are_up_to_date():
    assert list(ABOUT) == [path.stem for path in NOTEBOOKS]
    made = metadata.generated(ROOT)
    names = {path.name for path in made}
    assert names == {"README.md", "how-to-use.md", "book.yml", "colab.yml", *(path.name for path in NOTEBOOKS)}
    assert [path for path, text in made.items() if read(path) != text] == []
    jobs = yaml.safe_load(read(ROOT / ".github/workflows/book.yml"))["jobs"]
    assert [job["notebook"] for job in jobs["chapters"]["strategy"]["matrix"]["include"]] == list(ABOUT)
    assert len(re.findall(r"\.ipynb\) \|$", read(ROOT / "README.md"), re.M)) == len(NOTEBOOKS)  # badges


def unclosed(css):
    """Blocks that a style sheet leaves open; a browser would ignore all that follows."""
    rules = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    return rules.count("{") - rules.count("}")


def test_every_block_of_the_style_sheets_is_closed():
    assert {path.name: unclosed(read(path)) for path in ROOT.glob("book/_static/*.css") if unclosed(read(path))} == {}
    assert unclosed("p { color: red; /* } */") == 1


# ------------------------------------------------------------------------------------------------ pages


def cited(text):
    return {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}


def known_keys():
    return re.findall(r"^@\w+\{([^,\s]+),", read(ROOT / "book/references.bib"), re.M)


def test_keys_of_the_bibliography_are_unique():
    assert known_keys() and len(set(known_keys())) == len(known_keys())


@each([*PAGES, *NOTEBOOKS])
def test_what_is_cited_is_in_the_bibliography(path):
    assert cited(read(path)) - set(known_keys()) == set()


def toc_files(node):
    """Every `root` and `file` of a table of contents."""
    if isinstance(node, list):
        return [name for item in node for name in toc_files(item)]
    if isinstance(node, dict):
        own = [node[key] for key in ("root", "file") if key in node]
        return own + [name for value in node.values() for name in toc_files(value)]
    return []


def test_the_table_of_contents_and_the_files_agree():
    listed = toc_files(yaml.safe_load(read(ROOT / "_toc.yml")))
    there = [str(p.relative_to(ROOT).with_suffix("")) for p in (*PAGES, *NOTEBOOKS)]
    assert sorted(listed) == sorted(there)


def test_the_landing_page_and_the_readme_name_every_chapter_and_promise_no_other():
    for page in ("book/intro.md", "README.md"):
        linked = {Path(name).stem for name in re.findall(r"notebooks/(\d\d_\w+)", read(ROOT / page))}
        assert linked == {p.stem for p in NOTEBOOKS}, page


def directives_without_alt(text):
    """Names of pictures in MyST pages that have no alt text, or hardly any."""
    found = re.findall(r"^```\{(?:figure|image)\}\s*(\S+)\n((?::\S+:.*\n)*)", text, re.M)
    return [name for name, options in found if not re.search(rf"^:alt: .{{{ALT},}}", options, re.M)]


@each(PAGES)
def test_every_picture_of_a_page_is_described(path):
    assert directives_without_alt(read(path)) == []


def other_hosts(html):
    """Hosts that a page loads something from (a link to follow is not loading)."""
    tag, attribute = r"<(?:script|img|link|iframe|source)\b[^>]*?", r"\b(?:src|href)=[\"']?(?:https?:)?//([^/\"'\s>]+)"
    return set(re.findall(tag + attribute, html))


BUILT = sorted(p for folder in ("book", "notebooks") for p in (ROOT / "_build").glob(f"html*/{folder}/*.html"))


@each(BUILT)
def test_a_built_page_asks_no_other_host_for_anything_and_names_no_folder_of_this_machine(path):
    text = read(path)
    assert other_hosts(text) == set()
    assert FORBIDDEN.findall(text) == []
    assert "MathJax" not in text or "_static/mathjax/" in text


# ------------------------------------------------------------------------------------------------ colours and words


def strange_colours(text):
    """Hexadecimal or named colours that are neither Okabe-Ito nor grey."""
    hexes = {h.upper() for h in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
    grey = {h for h in hexes if h[1:3] == h[3:5] == h[5:7]}
    keys = r"\b(?:color|c|facecolor|edgecolor|fc|ec|fill|stroke)"
    named = re.findall(keys + r"""\s*[=:]\s*["']([a-zA-Z]\w*)["']""", text)
    return hexes - grey - OKABE_ITO | {n for n in named if n not in {"black", "white", "none", "k", "w"}}


@each([ROOT / "ood_lib/evaluation/plots.py", *NOTEBOOKS, *sorted((ROOT / "book/_static").iterdir())])
def test_colours_are_okabe_ito_or_grey(path):
    of_series = {style["color"] for style in plots.SERIES} if path.name == "plots.py" else set()
    assert strange_colours(read(path)) <= of_series


def test_roles_differ_in_colour_marker_and_line():
    roles = ["id", "near", "far", "other"]
    for look in (plots.COLORS, plots.MARKERS, plots.LINES):
        assert len({look[role] for role in roles}) == len(roles)
    assert {plots.COLORS[role] for role in roles} <= OKABE_ITO


# Written in pieces, so that this file does not complain about itself.
FORBIDDEN = re.compile(r"(?<![\w.:~-])/(?:work|root|home/\w+|Users/\w+)" + "/")


def own_files():
    """Files of the repository: git's list, or all that are not made by a run."""
    made = {".git", ".venv", "_build", "__pycache__"}
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listing.stdout.splitlines() if listing.returncode == 0 else []
    paths = [ROOT / name for name in names] or [p for p in ROOT.rglob("*") if not made & set(p.parts)]
    return [p for p in paths if p.is_file()]


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    files = own_files()
    assert ROOT / "README.md" in files
    assert [p for p in files if FORBIDDEN.search(p.read_bytes().decode("utf-8", "ignore"))] == []


# ------------------------------------------------------------------------------------------------ examples


def code_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", read(path), re.M | re.S)


ELSEWHERE = ("own-data.md", "data.md")  # tests/book/test_pages.py has the files they need
BLOCKS = [(path, i, code) for path in PAGES if path.name not in ELSEWHERE for i, code in enumerate(code_blocks(path))]


def write_pictures(folder):
    """A folder benchmark of two classes, twelve pictures each, and one set of each kind of OOD."""
    from PIL import Image

    random = np.random.default_rng(0)
    for place in ("train/a", "train/b", "val/a", "val/b", "test/a", "test/b", "near/c", "far/noise"):
        (folder / place).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / place / f"{i}.png")


@pytest.mark.parametrize(("path", "index", "code"), BLOCKS, ids=[f"{p.name}-{i}" for p, i, _ in BLOCKS])
def test_every_python_example_of_the_pages_runs(path, index, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    (tmp_path / "_build/run/default/10_weiper").mkdir(parents=True)  # a run whose table is read
    (tmp_path / "_build/run/default/10_weiper/benchmark.csv").write_text("detector,value\nMSP,0.9\n")
    exec(compile(code, f"{path.name}-{index}", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.split("\n")
    promised = re.findall(r"^print\(.*\)\s+# ([\d.]+)$", code, re.M)
    assert [p for p in promised if p not in printed] == []


def test_the_first_steps_of_the_readme_find_most_photographs(capsys):
    (code,) = code_blocks(ROOT / "README.md")
    assert code_lines(code) <= 12
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})
    assert float(capsys.readouterr().out.split("\n")[0]) > 0.9


def commands(text):
    return re.findall(r"^ood-book (\S.*?)(?:\s+#.*)?$", text, re.M)


def unknown_words(line):
    """Notebooks and parameters in a command of the runner that do not exist; exits on an unknown option."""
    args = cli._parser().parse_args(line.split())
    known = {re.sub(r"^\d+_", "", p.stem): p for p in NOTEBOOKS}
    given = [*getattr(args, "notebooks", []), *([args.notebook] if hasattr(args, "notebook") else [])]
    cells = [c.source for name in given if name in known for c in cells_of(known[name]) if "parameters" in tags(c)]
    names = [name for name, _ in getattr(args, "parameters", [])]
    return [n for n in given if n not in known] + [n for n in names if f"\n{n}:" not in "\n" + "\n".join(cells)]


@pytest.mark.parametrize("line", [line for path in PROSE for line in commands(read(path))])
def test_commands_of_the_pages_exist(line):
    assert unknown_words(line) == []


def test_an_invented_command_is_found_out():
    assert unknown_words("run nothing -p benchmark digits") == ["nothing", "benchmark"]
    with pytest.raises(SystemExit):
        unknown_words("run --fast")


def test_the_tree_of_the_readme_shows_what_is_there():
    tree = read(ROOT / "README.md").split("## What is where")[1].split("```")[1]
    top = re.findall(r"^(\S+)  ", tree, re.M)
    assert len(top) >= 6 and all((ROOT / name).exists() for name in top)


# ------------------------------------------------------------------------------------------------ the laws can fail


@pytest.mark.parametrize(
    ("law", "good", "bad"),
    [
        (wrong_addresses, f"git clone {ADDRESS}\n", "git clone https://github.com/somebody/ood-book\n"),
        (wrong_addresses, f'"git+{ADDRESS}@{BRANCH}"', f'"git+{ADDRESS}@master"'),
        (
            wrong_addresses,
            f"(https://colab.research.google.com/github/{ADDRESS[19:]}/blob/main/notebooks/x.ipynb)",
            f"(https://colab.research.google.com/github/{ADDRESS[19:]}/blob/master/notebooks/x.ipynb)",
        ),
        (pins, f"pip install ood_lib @ git+{ADDRESS}@{BRANCH}", "pip install torch==2.4"),
        (pins, f"pip install git+{ADDRESS}", f"pip install git+{ADDRESS}@v1"),
        (untyped_parameters, "a: int = 1  # how many", "a = 1  # how many"),
        (untyped_parameters, "a: list = [1]  # which", "a: int = 1"),
        (untyped_parameters, 'a: str = ""  # where to', "a: int = len('x')  # computed"),
        (hard_coded_half, 'ood.FeatureFlow(autocast="auto")', "ood.FeatureFlow(autocast=True)"),
        (hard_coded_half, "half = ood.half_precision(device)", "how = torch.bfloat16 if half else None"),
        (hard_coded_half, "plots.HALF, torch.float32", "x.to(torch.float16)"),
        (hard_coded_half, "x.float()", "network.half()"),
        (hard_coded_half, "torch.autocast(where.type, low, enabled=low is not None)", "with torch.autocast('cpu'):"),
        (hard_coded_half, "import torch", "torch.autocast(where.type, enabled=half)"),
        (hard_coded_half, "half a file", "from torch import nn, bfloat16"),
        (hard_coded_autocast, "autocast: torch.dtype | None = None", '{"autocast": torch.bfloat16}'),
        (hard_coded_autocast, "dtype=torch.float16", "extract(network, data, autocast=torch.float16)"),
        (undescribed, {"image": {"alt": "x" * ALT}, "figure": {"caption": "c", "name": "n"}}, {}),
        (undescribed, {"image": {"alt": "x" * ALT}, "figure": {"caption": "c", "name": "n"}}, {"image": {"alt": "x"}}),
        (directives_without_alt, f"```{{figure}} a.png\n:alt: {'x' * ALT}\n", "```{figure} a.png\n:alt: short\n"),
        (directives_without_alt, f"```{{image}} a.png\n:alt: {'x' * ALT}\n", "```{image} a.png\n:width: 1\n"),
        (other_hosts, '<a href="https://x.org/">', '<script async src="https://x.org/mathjax.js">'),
        (strange_colours, 'color="#0072b2", ec="black", "#666666"', 'color="red"'),
        (strange_colours, "fill='#E69F00'", "#FF0000"),
        (FORBIDDEN.search, "folder:/path/to/pictures framework/ /rooted/", "see /" + "root/x"),
        (FORBIDDEN.search, "https://example.org/home/x/", '"/' + 'home/ada/x"'),
    ],
)
def test_a_law_accepts_the_good_and_refuses_the_bad(law, good, bad):
    assert not law(good)
    assert law(bad)


def test_the_laws_on_cells_can_fail():
    long = "\n".join(["x = 1"] * (SHOWN + 1))
    cell = SimpleNamespace(source=long, metadata={})
    assert too_long(cell)
    assert not too_long(SimpleNamespace(source=long, metadata={"tags": ["hide-input"]}))
    assert not too_long(SimpleNamespace(source=long.replace("x", "# x", 1), metadata={}))
    picture = {"cell_type": "code", "source": "plt.show()", "outputs": [{"data": {"image/png": ""}}], "metadata": {}}
    assert pictures_without_description({"cells": [picture]}) == ["plt.show()"]


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess\nsubprocess.run(['pip', 'install', 'x'])",
        "%pip install -q x",
        "!pip install x",
        "import importlib.util\nif importlib.util.find_spec('ood_lib'):\n    %pip install x",
    ],
)
def test_an_install_cell_that_installs_where_the_library_is_there_is_found_out(code, monkeypatch):
    assert installs(code, missing=False, monkeypatch=monkeypatch)


def test_the_published_leaderboard_is_the_same_on_the_page_and_in_the_library():
    """Three pages compare with it: 07 prints it with its spreads, 08, 60 and 70 read the library's."""
    block = re.search(r'published = """\n(.*?)\n"""', read(ROOT / "notebooks/07_classical.py"), re.S)[1]
    lines = [line.split(",") for line in block.splitlines()]
    printed = {name: [float(value.split(" ")[0]) for value in values[:4]] for name, *values in lines}
    kept = {name: [*OPENOOD["cifar10"][name], *OPENOOD["cifar100"][name]] for name in printed}
    assert printed == kept

"""What `ood-book` promises, on a project of tiny notebooks that really run and build."""

import ast
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from ood_book import cli, metadata, percent
from ood_book.notebooks import parameters_of, sources, title_of
from ood_book.run import limits, plan, runner, work
from ood_book.site.missing import Missing

import ood_lib
from ood_lib import files
from ood_lib.data import NAMES

pytestmark = pytest.mark.processes

pytest.importorskip("papermill")
pytest.importorskip("jupytext")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

HEADER = '# %% [markdown]\n# # {title}\n\n# %% tags=["parameters"]\n{parameters}\n'
ALPHA = 'seeds: int = 1  # how many\nrate: float = 0.5\nrepeats: int | None = 2\nresults: str = ""'
ALPHA_CODE = """
# %%
from pathlib import Path
import os, sys
print(f"seeds={seeds} rate={rate} repeats={repeats}")
print(f"python={sys.executable} threads={os.environ['OMP_NUM_THREADS']} waiting={os.environ['OMP_WAIT_POLICY']}")
_ = (Path(results) / "numbers.md").write_text(f"seeds {seeds}")
"""
BETA = 'delta: float = 1.0\nbenchmark: str = "digits"  # where from\nnames: list[str] = ["a"]'
BETA_CODE = """
# %%
first = 1
# %%
# the comment
ratio = 1 / delta
"""


def write_notebook(root: Path, name: str, parameters: str, code: str) -> Path:
    path = root / "notebooks" / f"{name}.py"
    path.write_text(HEADER.format(title=name.title(), parameters=parameters) + code)
    return path


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A project with two notebooks, two profiles and one page; the library is a folder in it."""
    for folder in ("notebooks/profiles", "book", "library"):
        (tmp_path / folder).mkdir(parents=True)
    write_notebook(tmp_path, "10_alpha", ALPHA, ALPHA_CODE)
    write_notebook(tmp_path, "20_beta", BETA, BETA_CODE)
    (tmp_path / "notebooks/profiles/default.yaml").write_text("seeds: 2\ndelta: 2\n")
    (tmp_path / "notebooks/profiles/quick.yaml").write_text("{}\n")
    (tmp_path / "library/energy.py").write_text("TEMPERATURE = 1\n")
    (tmp_path / "book/intro.md").write_text("# Intro\n\nHello.\n")
    (tmp_path / "book/references.bib").touch()
    shutil.copytree(ROOT / "book/_static", tmp_path / "book/_static")
    (tmp_path / "_config.yml").write_text(
        'title: T\nauthor: A\nonly_build_toc_files: true\nexecute: {execute_notebooks: "off"}\n'
        "sphinx: {config: {myst_heading_anchors: 3}}\n"
    )
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: notebooks/10_alpha\n- file: notebooks/20_beta\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "LIBRARY", tmp_path / "library")
    for variable in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def pages(book):
    """Where that project's pages go; the scripts of charts, which take long to make, are those of the book's builds."""
    made = ROOT / "_build/vega"
    made.mkdir(parents=True, exist_ok=True)
    (book / "_build").mkdir()
    (book / "_build/vega").symlink_to(made)
    return book / "_build/html"


def output_of(book: Path, name: str, folder: str = "default") -> str:
    return (book / "_build/run" / folder / f"{name}.ipynb").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("run alpa", ["unknown notebook 'alpa'", "'alpha'", "20_beta"]),
        ("run alpha -p seed 3", ["unknown parameter 'seed'", "'seeds'", "repeats"]),
        ("run alpha -p delta 3", ["unknown parameter 'delta'", "rate"]),
        ("run -p benchmark cifar", ["unknown benchmark 'cifar'", "'cifar10'", "folder:PATH"]),
        ("run -p seeds abc", ["'seeds' of 10_alpha expects int", "'abc'"]),
        ("run -p seeds 2.5", ["expects int", "2.5"]),
        ("run -p seeds true", ["expects int"]),
        ("run -p seeds null", ["expects int"]),
        ("run -p names [1,2]", ["expects list[str]"]),
        ("run --profile quik", ["unknown profile 'quik'", "'quick'"]),
        *(
            (f"{command} -p rate 1 -p seeds 3 -p rate 2", ["'rate' is given twice"])
            for command in ("run", "sweep alpha", "build", "teach --slides")
        ),
        ("run --profile odd", ["parameter in profile 'odd' 'sed'", "'seeds'"]),
        ("build", ["10_alpha, 20_beta", "Run: ood-book run --profile default"]),
    ],
)
def test_wrong_input_is_refused_with_the_nearest_name_and_nothing_is_written(book, capsys, arguments, says):
    (book / "notebooks/profiles/odd.yaml").write_text("sed: 1\n")
    assert cli.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert [phrase for phrase in says if phrase not in error] == []
    assert not (book / "_build").exists()


def afresh(code: str) -> subprocess.CompletedProcess:
    """What a new interpreter makes of the code: it has imported nothing yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("yaml", "run"),
        ("jupytext", "sync"),
        ("papermill", "run"),
        ("psutil", "run"),
        ("nbformat", "build"),
        ("pandas", "sweep alpha"),
    ],
)
def test_a_package_of_the_extra_that_is_missing_is_named_with_the_line_of_pip(book, module, command):
    said = afresh(f"import sys; sys.modules[{module!r}] = None; from ood_book import cli; "
                  f"sys.exit(cli.main({command.split()}))")  # fmt: skip
    assert (said.returncode, said.stderr) == (
        2,
        f'ood-book: {module} is needed here: pip install "ood_lib[book]"\n',
    )


def test_a_module_of_our_own_that_is_missing_is_no_matter_of_pip(book):
    said = afresh("import sys; sys.modules['ood_book.run.plan'] = None; from ood_book import cli; cli.main(['run'])")
    assert said.returncode == 1 and "ModuleNotFoundError" in said.stderr and "pip" not in said.stderr


HEAVY = {"torch", "numpy", "pandas", "papermill", "jupytext", "nbformat"}


@pytest.mark.parametrize("command", ["--help", "run --help", "list", "list --root {ROOT}"])
def test_help_and_list_import_nothing_heavy(book, command):
    words = command.format(ROOT=ROOT).split()
    tell = f"import atexit, sys; atexit.register(lambda: print({HEAVY} & sys.modules.keys()))"
    said = afresh(f"{tell}; from ood_book import cli; sys.exit(cli.main({words}))")
    assert said.returncode == 0 and said.stdout.endswith("\nset()\n"), said.stderr


def test_the_process_of_a_notebook_imports_nothing_of_the_library_that_weighs(book):
    (task,) = plan.plan(book, "default", {}, ["alpha"])[1]
    report = "import sys; print('torch' in sys.modules, 'pandas' in sys.modules, file=sys.stderr)"
    command = [*runner.WORK[:-1], f"import atexit; atexit.register(lambda: exec({report!r})); {runner.WORK[-1]}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(pickle.dumps((task, 0, 1)))
    process.stdin.flush()
    assert process.stdout.read().decode() == work.DONE
    assert process.stderr.read().decode().endswith("False False\n")
    process.stdin.close()
    process.wait(30)


def test_the_names_of_the_benchmarks_are_those_of_the_library():
    assert NAMES == tuple(ood_lib.BENCHMARKS)


@pytest.mark.parametrize("path", sources(ROOT).values(), ids=sources(ROOT))
def test_title_and_parameters_are_read_as_jupytext_reads_them(path):
    notebook = percent.load(path)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert f"# {title_of(path.read_text())}" == first.splitlines()[0]
    assert list(parameters_of(path)) == re.findall(r"^(\w+): ", cell.source, re.M) != []


def test_what_the_runner_imports_is_named_in_its_extra():
    names = packages_distributions()
    extras = {name: " ".join(lines).lower() for name, lines in PROJECT["optional-dependencies"].items()}
    listed = " ".join([extras["book"], extras["plots"], *PROJECT["dependencies"]])
    for path in (ROOT / "book/ood_book").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        modules = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        found = {m.split(".")[0] for m in modules} - {*sys.stdlib_module_names, "ood_lib", "ood_book"}
        packages = {names[module][0].lower() for module in found}
        allowed = set(re.findall(r"[\w-]+", listed + (extras["cluster"] if path.stem == "cluster" else "")))
        assert packages - allowed == set(), path


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "3", 3),
        ("rate", "1e-3", 0.001),
        ("rate", "-2.4", -2.4),
        ("rate", "-1e-3", -0.001),
        ("rate", "-inf", -math.inf),
        ("rate", "010", 10),
        ("repeats", "null", None),
        ("repeats", "010", 10),
        ("names", '["x", "y"]', ["x", "y"]),
        ("names", '["a, b", "no"]', ["a, b", "no"]),
        ("benchmark", "folder:/", "folder:/"),
        ("benchmark", "bank:/", "bank:/"),
        ("title", "/mnt/run #3", "/mnt/run #3"),
        ("title", "010", "010"),
        ("title", "1:30", "1:30"),
        ("title", "no", "no"),
        ("title", "null", "null"),
        ("title", ' "x": [1', ' "x": [1'),
        ("loud", "true", True),
        ("loud", "False", False),
    ],
)
def test_texts_are_read_by_the_annotation_alone(book, name, text, value):
    write_notebook(book, "10_alpha", f'{ALPHA}\ntitle: str = ""\nloud: bool | None = None', ALPHA_CODE)
    tasks = plan.plan(book, "default", {name: text})[1]
    (found,) = [task.given[name] for task in tasks if name in task.given]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("seeds", "1:30", "'seeds' of 10_alpha expects int"),
        ("seeds", "1.0", "'seeds' of 10_alpha expects int"),
        ("seeds", "-3", "seeds=-3 was given; expected an integer, seeds >= 1"),
        ("rate", "fast", "'rate' of 10_alpha expects float"),
        ("rate", "nan", "rate=nan was given"),
        ("delta", "nan", "delta=nan was given"),
        ("delta", "-1", "delta=-1 was given; expected delta >= 0"),
        ("names", "[x, y]", 'no JSON, such as [1, 2] or ["a", "b"]'),
        ("missing", "Skip", "missing='Skip' was given; expected 'raise' or 'skip'"),
        ("device", "gpu", "device='gpu' was given; expected auto, cpu, mps, cuda or cuda:N"),
        ("loud", "yes", "neither true nor false"),
        ("widths", "[8, 0]", "widths=0 was given; expected an integer, widths >= 1"),
        ("widths", "[8, 16.0]", "widths=16.0 was given; expected an integer"),
        ("archive", "nowhere", "there is no file or folder"),
        ("benchmark", "folder:nowhere", "there is no file or folder"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_runs(book, capsys, name, text, says):
    more = 'missing: str = "raise"\ndevice: str = "auto"\nloud: bool = False\nwidths: list = [8]\narchive: str = ""'
    write_notebook(book, "10_alpha", f"{ALPHA}\n{more}", ALPHA_CODE)
    assert cli.main(["run", "-p", name, text]) == 2
    assert says in capsys.readouterr().err
    assert not (book / "_build/run").exists()


@pytest.mark.parametrize("below", ["", "/pages/new"])
@pytest.mark.parametrize("command", ["run", "sweep alpha", "build", "teach"])
def test_a_file_in_the_place_of_the_folder_to_write_into_is_refused_and_kept(book, capsys, command, below):
    (book / "notes.txt").write_text("mine")
    assert cli.main([*command.split(), "--out", f"notes.txt{below}"]) == 2
    assert f"{book / 'notes.txt'} is a file; name a folder" in capsys.readouterr().err
    assert (book / "notes.txt").read_text() == "mine" and not (book / "_build").exists()


@pytest.mark.parametrize("value", ["-5", "-1e-3", "-inf", "-1,0,1", "-.5", "-x"])
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_value_may_begin_with_a_minus(command, value):
    args = cli._parser().parse_args([command, "alpha", "-p", "beta", value, "-p", "rate", "1", "-j", "2"])
    assert [*map(list, args.parameters)] == [["beta", value], ["rate", "1"]] and args.jobs == 2


def test_every_number_of_the_notebooks_has_a_range_which_their_own_values_keep():
    known = {source.stem: parameters_of(source) for source in sources(ROOT).values()}
    for name, parameter in {n: p for found in known.values() for n, p in found.items()}.items():
        numbers = isinstance(parameter.default, int | float | list) and not isinstance(parameter.default, bool)
        assert (name in limits.LIMITS) or not numbers, name
        limits.check_value(name, parameter.default)
    for profile in plan.profiles(ROOT):
        for name, value in plan.read_profile(ROOT, profile)[1].items():
            limits.check_value(name, value)


def test_papermill_sees_every_parameter():
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node

    for source in sources(ROOT).values():
        seen = {p.name for p in _infer_parameters(load_notebook_node(str(source.with_suffix(".ipynb"))))}
        assert seen == {*parameters_of(source)}, source


def test_each_notebook_gets_the_part_of_the_profile_that_it_knows(book):
    alpha, beta = plan.plan(book, "default", {})[1]
    assert (alpha.given, beta.given) == ({"seeds": 2}, {"delta": 2})


def test_paths_are_meant_from_where_the_command_is_given(book, monkeypatch):
    names = ("archive", "claims", "weights", "results")
    rest = "".join(f'\n{name}: str = "../{name}"' for name in names)
    write_notebook(book, "20_beta", f'benchmark: str = "digits"\ndata_dir: str | None = "sets"{rest}', "")
    monkeypatch.setenv("HOME", str(book / "home"))
    for place in ("mine", "library/mine", "home/mine"):
        (book / place).mkdir(parents=True)
    monkeypatch.chdir(book / "library")

    def given(name: str, text: str) -> str:
        return plan.plan(book, "quick", {name: text}, ["beta"])[1][0].given[name]

    assert given("benchmark", "folder:../mine") == f"folder:{book}/mine"
    assert given("benchmark", "folder:~/mine") == f"folder:{book}/home/mine"
    assert [given(name, "mine") for name in names] == [f"{book}/library/mine"] * 4
    assert given("weights", "IMAGENET1K_V2") == "IMAGENET1K_V2" and given("results", "new") == f"{book}/library/new"
    assert given("benchmark", "cifar10") == "cifar10"
    assert given("data_dir", "mine") == f"{book}/library/mine"
    assert given("data_dir", "null") is None
    here = plan.plan(book, "quick", {"data_dir": "mine"})[0]
    monkeypatch.chdir(book)
    assert plan.plan(book, "quick", {"data_dir": "mine"})[0] != here  # other pictures, another run


def test_the_command_of_a_run_makes_it_again_and_names_no_folder_of_this_machine(book):
    given = {"seeds": "3", "rate": "1e-7", "repeats": "null", "delta": "2", "names": '["a b", "c"]'}
    given["benchmark"] = f"bank:{book / 'library'}"
    _, tasks = plan.plan(book, "quick", given)
    for task in tasks:
        program, run, name, *words = shlex.split(task.command)
        assert (program, run) == ("ood-book", "run") and set(words[::3]) == {"-p"}
        again = dict(zip(words[1::3], words[2::3]))
        assert again.get("benchmark", "bank:library") == "bank:library"
        meant = again | {k: given[k] for k in again if k == "benchmark"}  # which lies somewhere else
        _, (repeated,) = plan.plan(book, "quick", meant, [name])
        assert repeated.key == task.key


def test_list_shows_titles_parameters_with_help_profiles_and_benchmarks(book, capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for text in ("10_Alpha", "repeats: int | None = 2", "how many", "quick", "cifar10"):
        assert text in shown


def test_run_fills_results_records_itself_and_uses_this_interpreter(book, capsys):
    (book / "notebooks/10_alpha.ipynb").write_text("not even a notebook")
    assert cli.main(["run", "alpha", "-j", "1"]) == 0
    text = output_of(book, "10_alpha")
    assert "seeds=2 rate=0.5" in text
    assert f"python={sys.executable} threads={work.cores()} waiting=PASSIVE" in text
    assert (book / "_build/run/default/10_alpha/numbers.md").read_text() == "seeds 2"
    record = json.loads(text)["metadata"]["ood_book"]
    assert record["parameters"] == {"seeds": 2, "rate": 0.5, "repeats": 2}
    assert 10 < record["peak_memory_mb"] < 200  # the kernel's own: no torch is in it
    assert record["versions"]["torch"]
    assert 0 < record["cpu_seconds"] < 60 and record["tables"] == {}
    assert "10_alpha: runs" in capsys.readouterr().out  # plain lines where there is no terminal
    assert sorted(p.name for p in (book / "_build/run/default").iterdir()) == [
        "10_alpha",
        "10_alpha.ipynb",
    ]


def test_overrides_change_the_output_and_the_command_and_go_to_a_folder_of_their_own(book):
    code = "\n# %%\nprint('command:', os.environ['OOD_COMMAND'])\n"
    write_notebook(book, "10_alpha", ALPHA, ALPHA_CODE + code)
    assert cli.main(["run", "notebooks/10_alpha.py", "-p", "rate", "0.25"]) == 0
    made = output_of(book, "10_alpha", "default-rate=0.25")
    assert "seeds=2 rate=0.25" in made and "command: ood-book run 10_alpha -p seeds 2 -p rate 0.25" in made
    assert not (book / "_build/run/default").exists()


def test_a_failure_names_cell_and_error_while_the_others_finish_and_old_output_stays(book, capsys):
    assert cli.main(["run", "beta"]) == 0
    before = output_of(book, "20_beta")
    broken = BETA_CODE.replace("1 / delta", "1 / (delta - 2)")
    write_notebook(book, "20_beta", BETA, broken)
    assert cli.main(["run"]) == 1
    error = capsys.readouterr().err
    assert "20_beta failed in cell [4]: # the comment" in error  # [2] holds what is injected
    assert plan.plan(book, "default", {}, ["beta"])[1][0].failure.startswith("failed in cell [4]: # the comment")
    assert "ZeroDivisionError: division by zero" in error and "1 of 2 failed: 20_beta" in error
    assert output_of(book, "20_beta") == before
    assert "ZeroDivisionError" in output_of(book, "20_beta.failed")
    assert "seeds=2" in output_of(book, "10_alpha")
    write_notebook(book, "20_beta", BETA, BETA_CODE)
    assert cli.main(["run", "beta", "--force"]) == 0
    assert not (book / "_build/run/default/20_beta.failed.ipynb").exists()


def test_a_finished_run_that_cannot_be_recorded_says_why_and_its_notebook_is_kept(book, capsys):
    latin = '\n# %%\nwith open(f"{results}/t.csv", "w", encoding="latin-1") as f:\n    print("é", file=f)\n'
    write_notebook(book, "10_alpha", ALPHA, latin)
    assert cli.main(["run", "alpha"]) == 1
    error = capsys.readouterr().err
    assert "failed in writing" in error and "UnicodeDecodeError" in error and "10_alpha.failed.ipynb" in error
    assert "t.csv" in output_of(book, "10_alpha.failed")


def test_only_what_changed_runs_again(book, capsys):
    def is_done() -> bool:
        return plan.plan(book, "default", {}, ["beta"])[1][0].is_done

    parameters = f'{BETA}\narchive: str = "../book/results"'
    (book / "book/results").mkdir()
    write_notebook(book, "20_beta", parameters, BETA_CODE)
    assert cli.main(["run", "beta"]) == 0
    for name, text, counts in (
        ("notebooks/20_beta.py", (book / "notebooks/20_beta.py").read_text() + "\n# %%\nlast = 1\n", True),
        ("library/energy.py", "TEMPERATURE = 2\n", True),
        ("library/shipped/network.json", '{"sha256": "other weights"}', True),
        ("notebooks/profiles/default.yaml", "delta: 4\n", True),
        ("notebooks/profiles/default.yaml", "delta: 2\nseeds: 9\n", False),  # `seeds` is none of its parameters
        ("book/results/new.json", "{}", True),  # a page that a parameter names
        ("book/intro.md", "# Other\n", False),  # one that none names
    ):
        file = book / name
        before = file.read_text() if file.exists() else None
        file.parent.mkdir(exist_ok=True)
        assert is_done()
        file.write_text(text)
        assert is_done() != counts, name
        file.unlink() if before is None else file.write_text(before)
    for change, said in (
        ("", "up to date"),
        ("\n# %%\nlast = 1\n", "done after"),
        ("\n# %%\nlast = 1\n", "up to date"),
    ):
        write_notebook(book, "20_beta", parameters, BETA_CODE + change)
        capsys.readouterr()
        assert cli.main(["run", "beta"]) == 0
        assert f"20_beta: {said}" in capsys.readouterr().out
    assert "last = 1" in output_of(book, "20_beta")


def test_notebooks_run_side_by_side(book):
    for name, other in (("10_alpha", "20_beta"), ("20_beta", "10_alpha")):
        meet = f"""
# %%
import time
from pathlib import Path
Path("{book}/{name}.here").touch()
start = time.time()
while not Path("{book}/{other}.here").exists():
    assert time.time() - start < 60, "alone"
    time.sleep(0.05)
"""
        write_notebook(book, name, "delta: float = 1.0\nseeds: int = 1", meet)
    assert cli.main(["run", "-j", "2"]) == 0


def test_the_notebook_with_the_longest_budget_begins_first_and_the_others_keep_their_order(book, monkeypatch, capfd):
    write_notebook(book, "30_gamma", "delta: float = 1.0", "")
    monkeypatch.setattr(plan, "budgets", lambda root: {"10_alpha": 2, "20_beta": 2, "30_gamma": 3})
    assert cli.main(["run", "-j", "1"]) == 0
    begun = re.findall(r"(\w+): runs", capfd.readouterr().out)
    assert begun == ["30_gamma", "10_alpha", "20_beta"]


def test_two_runs_of_one_notebook_at_once_do_not_meet(book):
    meet = """
# %%
import os, time
from pathlib import Path
Path(f"../here-{os.getpid()}").touch()
start = time.time()
while len(list(Path("..").glob("here-*"))) < 2:
    assert time.time() - start < 60, "alone"
    time.sleep(0.05)
_ = (Path(results) / "numbers.md").write_text("whole")
"""
    write_notebook(book, "10_alpha", ALPHA, meet)
    command = [sys.executable, "-c", "import sys; from ood_book.cli import main; sys.exit(main())", "run", "alpha"]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = book / "_build/run/default"
    used = files.draft(folder / "10_alpha.ipynb")
    dead = folder / used.name.replace(f".{os.getpid()}.", f".{gone.pid}.")
    used.mkdir(parents=True)
    dead.mkdir()
    both = [subprocess.Popen(command, cwd=book) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    # a draft that nobody writes any more is removed, and one in use is not
    assert sorted(p.name for p in folder.iterdir()) == [used.name, "10_alpha", "10_alpha.ipynb"]
    assert (folder / "10_alpha/numbers.md").read_text() == "whole"


def process_is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_an_interrupt_leaves_no_kernel_and_no_half_written_output(book):
    slow = """
# %%
import os, time
from pathlib import Path
Path("../pid.tmp").write_text(str(os.getpid()))
os.rename("../pid.tmp", "../pid")
time.sleep(120)
"""
    write_notebook(book, "20_beta", BETA, slow)
    # a shell starts what follows an `&` with SIGINT ignored, and this suite may run there: listen to it in any case
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", listen + "from ood_book.cli import main; sys.exit(main())"]
    process = subprocess.Popen([*command, "run", "beta"], cwd=book, start_new_session=True)
    deadline = time.time() + 60
    while not (book / "pid").exists() and time.time() < deadline:
        time.sleep(0.1)
    kernel = int((book / "pid").read_text())
    assert process_is_alive(kernel)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not process_is_alive(kernel)
    assert list((book / "_build/run/default").iterdir()) == []


ENDLESS = """
# %% [markdown]
# ## 3. Never done
# %%
import os, time
from pathlib import Path
Path("../pid").write_text(str(os.getpid()))
print("as far", "as it came")
# %%
while True:
    time.sleep(1)
"""


def budgets_of(monkeypatch, **minutes):
    monkeypatch.setattr(plan, "budgets", lambda root: {f"20_{k}": v for k, v in minutes.items()})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_a_run_over_its_budget_says_so_and_is_stopped_at_its_ceiling_while_the_others_finish(book, capfd, monkeypatch):
    budgets_of(monkeypatch, beta=0.02)
    write_notebook(book, "20_beta", BETA, ENDLESS)
    assert cli.main(["run"]) == 1
    said = capfd.readouterr()
    late = "more than 3 times its budget of 0.02 min, in cell .*; it is stopped at 6 times"
    assert re.search(f"^20_beta: .* {late}", said.err, re.M)
    stopped = 'more than 6 times its budget of 0.02 min, in cell [4] of "3. Never done"'
    assert re.search(r"^20_beta was stopped after 0\.\d min .*" + re.escape(stopped), said.err, re.M)
    assert "`--patience TIMES`" in said.err and "1 of 2 failed: 20_beta" in said.err
    assert not process_is_alive(int((book / "pid").read_text()))
    assert "10_alpha: done" in said.out
    names = {p.name for p in (book / "_build/run/default").iterdir()}
    assert names == {"10_alpha", "10_alpha.ipynb", "20_beta.failed.ipynb"}
    assert "as far as it came" in output_of(book, "20_beta.failed")


def test_the_processor_time_of_a_run_is_that_of_its_kernel():
    def busy() -> int:
        return sum(seconds >= 0.4 for _, seconds in work._kernel_usage())

    before, code = busy(), "import os\nwhile sum(os.times()[:2]) < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kernel:
        kernel.stdout.readline()
        assert busy() == before + 1 and work._kernel_seconds() >= 0.4
        kernel.communicate(b"\n")


def test_a_run_with_patience_is_not_stopped(book, capfd, monkeypatch):
    budgets_of(monkeypatch, beta=0.0001)
    write_notebook(book, "20_beta", BETA, "\n# %%\nimport time\ntime.sleep(3)\n")
    assert cli.main(["run", "beta", "--patience", "0"]) == 0
    assert "more than 3 times its budget" in capfd.readouterr().err


def test_a_run_with_values_of_its_own_has_no_budget(book, monkeypatch):
    budgets_of(monkeypatch, beta=4)
    assert plan.plan(book, "default", {}, ["beta"])[1][0].budget == 4
    assert plan.plan(book, "default", {"delta": "3"}, ["beta"])[1][0].budget is None


@pytest.mark.parametrize("times", ["0", "1e6"])
def test_a_patience_of_any_length_is_taken(times):
    assert cli._parser().parse_args(["run", "--patience", times]).patience == float(times)


@pytest.mark.parametrize("times", ["-1", "inf", "nan", "much"])
def test_a_patience_that_is_none_is_refused(book, capsys, times):
    with pytest.raises(SystemExit):
        cli.main(["run", f"--patience={times}"])
    assert "--patience" in capsys.readouterr().err


def test_on_a_terminal_a_bar_names_the_section_and_the_time_of_the_budget(book, monkeypatch):
    pty = pytest.importorskip("pty")
    budgets_of(monkeypatch, beta=4)
    pause = "\n# %% [markdown]\n# ## 3. The pause\n\n# %%\nimport time\ntime.sleep(2.5)\n"
    write_notebook(book, "20_beta", BETA, pause)
    (task,) = plan.plan(book, "default", {}, ["beta"])[1]
    ours, theirs = pty.openpty()
    pytest.importorskip("termios").tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(runner.WORK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs)
    process.stdin.write(pickle.dumps((task, 0, 1)))
    process.stdin.flush()
    assert process.stdout.read().decode() == work.DONE
    process.stdin.close()
    process.wait(30)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    assert re.search(r"20_beta: .*\| 4/5 cells, \d\.\d min of 4 min, 3. The pause", shown)
    assert "5/5 cells" in shown


def test_budgets_are_the_minutes_of_the_entries_and_a_chapter_without_one_runs(asking):
    assert metadata.budgets(asking) == {"10_alpha": 2, "20_beta": 3}
    tasks = plan.plan(asking, "quick", {})[1]
    assert [task.budget for task in tasks] == [2, 3]
    (asking / "notebooks/notebooks.yaml").write_text("10_alpha: {run: 7}\n20_beta: soon\n")
    assert [task.budget for task in plan.plan(asking, "default", {})[1]] == [7, None]
    (asking / "notebooks/profiles/mine.yaml").write_text("seeds: 50\n")
    assert plan.plan(asking, "mine", {})[1][0].budget is None  # nothing is promised of these values


def test_at_its_end_a_run_names_the_tables_and_the_line_that_reads_one(book, capsys):
    table = '\n# %%\n_ = (Path(results) / "scores.csv").write_text("a,b\\n1,2\\n")\n'
    write_notebook(book, "10_alpha", ALPHA, ALPHA_CODE + table)
    for _ in range(2):  # the second time it is up to date
        assert cli.main(["run"]) == 0
        said = capsys.readouterr().out
        assert "10_alpha/  scores.csv\n" in said and "20_beta/" not in said
        names = {}
        exec(re.search(r"import pandas .*", said)[0].replace("pd.read", "read = pd.read"), names)
        assert names["read"].to_dict("list") == {"a": [1], "b": [2]}


def test_sync_is_stable_and_its_check_catches_an_edited_source(book, capsys):
    assert cli.main(["sync"]) == 0
    text = (book / "notebooks/20_beta.ipynb").read_text()
    assert cli.main(["sync"]) == 0 and cli.main(["sync", "--check"]) == 0
    assert (book / "notebooks/20_beta.ipynb").read_text() == text
    write_notebook(book, "20_beta", BETA, BETA_CODE + "\n# %%\nlast = 1\n")
    assert cli.main(["sync", "--check"]) == 1
    assert "20_beta.ipynb: differs from 20_beta.py" in capsys.readouterr().out
    assert (book / "notebooks/20_beta.ipynb").read_text() == text


def test_sync_never_writes_over_a_notebook_that_somebody_edited(book, capsys):
    assert cli.main(["sync"]) == 0
    edited, other = book / "notebooks/10_alpha.ipynb", book / "notebooks/20_beta.ipynb"
    later = time.time() + 60
    write_notebook(book, "10_alpha", ALPHA, ALPHA_CODE + "\n# %%\nlast = 1\n")
    write_notebook(book, "20_beta", BETA, BETA_CODE + "\n# %%\nlast = 1\n")
    for path in (edited, other):
        os.utime(path, (later, later))  # newer, but as `sync` wrote it: made of a glossary that changed, say
    assert cli.main(["sync"]) == 0 and "last = 1" in edited.read_text()
    mine = edited.read_text().replace("last = 1", "mine = 2")
    edited.write_text(mine)
    os.utime(edited, (later, later))
    write_notebook(book, "20_beta", BETA, BETA_CODE)
    before = other.read_text()
    capsys.readouterr()
    assert cli.main(["sync"]) == 2
    assert re.search(r"10_alpha\.ipynb\. To keep .* its \.py, .* remove the \.ipynb", capsys.readouterr().err)
    assert edited.read_text() == mine and other.read_text() == before
    edited.unlink()
    assert cli.main(["sync"]) == 0 and "last = 1" in edited.read_text()
    edited.write_text(mine)
    os.utime(edited, (later - 3600, later - 3600))  # an edit of the .py came after it
    assert cli.main(["sync"]) == 2 and edited.read_text() == mine
    (book / "_build/synced.json").unlink()  # what is known of no notebook is decided by the clock
    assert cli.main(["sync"]) == 0 and "last = 1" in edited.read_text()


def test_sync_writes_over_a_notebook_that_git_has(book):
    assert cli.main(["sync"]) == 0
    path = book / "notebooks/10_alpha.ipynb"
    pulled = path.read_text().replace("Python 3", "Python 4")
    path.write_text(pulled)
    for words in (["init", "-q"], ["add", "notebooks"], [*AS_SOMEBODY, "commit", "-qm", "pulled"]):
        subprocess.run(["git", *words], cwd=book, check=True)
    later = time.time() + 60
    os.utime(path, (later, later))
    assert cli.main(["sync"]) == 0 and path.read_text() != pulled
    path.write_text(pulled + " ")
    assert cli.main(["sync"]) == 2 and path.read_text() == pulled + " "


AS_SOMEBODY = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]


ASKS = """
10_alpha: {title: A, goal: g, needs: n, representation: r, energy: e, run: 2, memory: 900, gpu: "no", data: d}
20_beta: {title: B, goal: h, needs: m, representation: s, energy: f, run: 3, memory: 800, gpu: "no", data: d}
"""


@pytest.fixture
def asking(book):
    """The book with an entry for each notebook, and the files that are made of it."""
    (book / "notebooks/notebooks.yaml").write_text(ASKS)
    (book / ".github/workflows").mkdir(parents=True)
    pages, jobs = ("README.md", "book/how-to-use.md"), (WORKFLOW, ".github/workflows/colab.yml")
    for name, mark in [*((page, "<!-- {} -->") for page in pages), *((job, "  # {}") for job in jobs)]:
        lines = ["before", mark.format("made by ood-book sync"), "old", mark.format("end"), "after"]
        (book / name).write_text("\n".join(lines) + "\n")
    for name, text, code in (("10_alpha", ALPHA, ALPHA_CODE), ("20_beta", BETA, BETA_CODE)):
        marks = "# <!-- made by ood-book sync -->\n# old\n# <!-- end -->\n"
        write_notebook(book, name, text, f"{code}\n# %% [markdown]\n{marks}\n# {'word ' * 1000}\n")
    with (book / "_config.yml").open("a") as config:
        config.write("repository: {url: https://github.com/somebody/book, branch: trunk}\n")
    return book


WORKFLOW = ".github/workflows/book.yml"


def test_sync_writes_what_other_files_say_of_the_notebooks_and_nothing_around_it(asking, capsys):
    assert cli.main(["sync"]) == 0 and cli.main(["sync", "--check"]) == 0
    readme, workflow = ((asking / name).read_text() for name in ("README.md", WORKFLOW))
    assert readme.startswith("before\n<!-- made") and readme.endswith("<!-- end -->\nafter\n") and "old" not in readme
    assert "| [A](notebooks/10_alpha.ipynb) | r | e | 7 min | 2 min |" in readme  # a thousand words, two cells
    for kind in ("py", "ipynb"):  # the second is made of what the first becomes
        notebook = (asking / f"notebooks/10_alpha.{kind}").read_text()
        assert (
            "**It takes** 7 minutes to read" in notebook
            and "and 2 minutes to run. No GPU" in notebook
            and not re.search(r"\bold\b", notebook)
        )
    assert "https://colab.research.google.com/github/somebody/book/blob/trunk/notebooks/20_beta.ipynb" in readme
    assert "  - { notebook: 10_alpha, minutes: 16 }\n  - { notebook: 20_beta, minutes: 19 }\n  # end" in workflow
    (asking / "notebooks/notebooks.yaml").write_text(ASKS.replace("run: 3", "run: 30"))
    assert cli.main(["sync", "--check"]) == 1
    assert "README.md: differs from notebooks/notebooks.yaml" in capsys.readouterr().out
    assert cli.main(["list"]) == 0 and "min to read, 30 min to run; 0.8 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("20_beta", "20_bta", ["notebook in notebooks/notebooks.yaml '20_bta'", "'20_beta'"]),
        ("goal: g, ", "", ["10_alpha", "['goal']"]),
        ("run: 3", "run: soon", ["20_beta", "['run']"]),
        ("run: 3", "run: 3, walk: 4", ["20_beta", "unknown ['walk']"]),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(asking, capsys, old, new, says):
    (asking / "notebooks/notebooks.yaml").write_text(ASKS.replace(old, new))
    assert cli.main(["sync"]) == 2
    error = capsys.readouterr().err
    assert [phrase for phrase in says if phrase not in error] == []


def test_a_file_without_a_place_for_what_is_made_is_refused(asking, capsys):
    (asking / "README.md").write_text("nothing\n")
    assert cli.main(["sync"]) == 2
    assert "README.md has no lines" in capsys.readouterr().err


def test_build_takes_the_values_of_run_shows_them_fails_on_a_warning_and_spares_foreign_folders(book, pages, capfd):
    pytest.importorskip("jupyter_book")
    (book / "book/intro.md").write_text("# Intro\n\n```{include} _generated/10_alpha/numbers.md\n```")
    boxed = '\n# %% [markdown]\n# ```{note}\n# Boxed.\n# ```\n\n# %% tags=["hide-input"]\nprint(6 * 7)\n'
    write_notebook(book, "10_alpha", ALPHA, ALPHA_CODE + boxed)
    values = ["--profile", "quick", "-p", "seeds", "7"]
    assert cli.main(["build", *values]) == 2
    assert "Run: ood-book run --profile quick -p seeds 7" in capfd.readouterr().err
    assert cli.main(["run", *values]) == cli.main(["build", *values]) == 0
    pages = pages.with_name("html-quick-seeds=7")
    assert "seeds 7" in (pages / "book/intro.html").read_text()
    alpha, beta = ((pages / f"notebooks/{name}.html").read_text() for name in ("10_alpha", "20_beta"))
    assert "seeds=7" in alpha and "injected-parameters" in alpha
    assert "injected-parameters" not in beta  # all its parameters have their defaults
    assert "How this page was made" in alpha and "dropdown" in alpha and "Peak memory" in alpha
    assert str(book) not in alpha.replace(f"python={sys.executable}", "")
    downloaded = json.loads((pages / "_sources/notebooks/10_alpha.ipynb").read_text())["cells"]  # by its button
    assert ["> **Note**\n", ">\n", "> Boxed."] in [c["source"] for c in downloaded]
    (folded,) = [c for c in downloaded if "print(6 * 7)" in c["source"]]
    assert folded["metadata"]["cellView"] == "form" and folded["outputs"][0]["text"] == ["42\n"]
    assert "building" in capfd.readouterr().out
    assert cli.main(["build", *values]) == 0
    assert "building" not in capfd.readouterr().out

    assert cli.main(["build", *values, "--out", "notebooks"]) == 2
    assert "holds something else" in capfd.readouterr().err

    (book / "book/intro.md").write_text("# Intro\n\n[nowhere](nowhere.md)\n")
    for _ in range(2):  # the second build must not forget the warning
        assert cli.main(["build", *values]) == 1
    assert "nowhere" in capfd.readouterr().err
    assert (pages / "notebooks/10_alpha.html").is_file()  # the last good pages stay


def test_a_new_sentence_asks_for_no_new_run_and_pages_downloads_and_slides_show_it(book, pages, capsys):
    pytest.importorskip("jupyter_book")
    said = "\n# %% [markdown]\n# ## The way\n#\n# **An old sentence.**\n"
    source = write_notebook(book, "10_alpha", ALPHA, ALPHA_CODE + said)
    assert cli.main(["run"]) == cli.main(["build"]) == 0
    source.write_text(source.read_text().replace("An old sentence", "Another sentence"))
    capsys.readouterr()
    assert cli.main(["run"]) == cli.main(["build"]) == cli.main(["teach", "--slides", "--out", "taught"]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    decks = (book / name / "slides/10_alpha.html" for name in ("taught", "_build/stage/book/_static"))
    for path in (*decks, pages / "notebooks/10_alpha.html", pages / "_sources/notebooks/10_alpha.ipynb"):
        text = path.read_text()
        assert "Another sentence" in text and "An old sentence" not in text, path
    page = (pages / "notebooks/10_alpha.html").read_text()
    assert page.index("injected-parameters") < page.index("seeds=2 rate=0.5") < page.index("Another sentence")


def test_build_puts_a_page_in_the_place_of_a_chapter_that_failed_and_says_that_the_book_is_not_complete(
    book, pages, capfd
):
    pytest.importorskip("jupyter_book")
    labels = "\n# %% [markdown]\n# (beta-way)=\n# ## 1. The way\n"
    write_notebook(book, "20_beta", BETA, labels + BETA_CODE.replace("1 / delta", "1 / (delta - 2)"))
    with (book / "_config.yml").open("a") as config:
        config.write("sphinx: {config: {myst_heading_anchors: 3}}\n")
    ways = "{ref}`there <beta-way>`, [here](../notebooks/20_beta.ipynb#1-the-way)"
    (book / "book/intro.md").write_text(f"# Intro\n\n{ways}\n\n```{{include}} _generated/20_beta/numbers.md\n```\n")
    assert cli.main(["run"]) == 1
    assert cli.main(["build"]) == 1
    said = capfd.readouterr()
    assert "not complete" in said.err and '  20_beta failed in cell [4] of "1. The way": # the comment' in said.err
    assert "Run: ood-book run 20_beta --profile default" in said.err and "WARNING" not in said.err
    assert f"open {pages / 'index.html'}" in said.out
    assert "seeds=2" in (pages / "notebooks/10_alpha.html").read_text()
    beta, intro = ((pages / f"{name}.html").read_text() for name in ("notebooks/20_beta", "book/intro"))
    read = re.sub("<[^>]+>", "", beta)  # code is coloured word by word
    for phrase in ("20_Beta", "This chapter is missing", "ZeroDivisionError: division by zero", "# the comment",
                   "ood-book run 20_beta --profile default", "ood-book build --profile default"):  # fmt: skip
        assert phrase in read
    assert str(book) not in beta
    assert intro.count('href="../notebooks/20_beta.html"') >= 4  # the three of its text, and the contents
    assert "which is missing" in intro

    (book / "notebooks/20_beta.py").write_text((book / "notebooks/20_beta.py").read_text() + "\n# %%\nlast = 1\n")
    (task,) = plan.plan(book, "default", {}, ["beta"])[1]  # another source: what failed is not this one
    assert Missing.of(task, ()).reason == "has not been run as it is now"

    write_notebook(book, "20_beta", BETA, labels + BETA_CODE)
    (book / "book/intro.md").write_text(f"# Intro\n\n{ways}\n")
    assert cli.main(["run"]) == cli.main(["build"]) == 0
    assert "This chapter is missing" not in (pages / "notebooks/20_beta.html").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize(
    ("run", "build", "calls", "code"),
    [
        (0, 0, ["run", "build"], 0),
        (1, 0, ["run", "build"], 2),  # of make: some recipe failed
        (1, 1, ["run", "build"], 2),
        (0, 1, ["run", "build"], 2),
        (2, 0, ["run"], 2),  # refused
        (130, 0, ["run"], 2),  # Ctrl-C
    ],
)
def test_make_book_builds_what_there_is_and_fails_where_a_notebook_did(tmp_path, run, build, calls, code):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    command = tmp_path / "env/bin/ood-book"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\necho $1 >> called\ntest $1 = run && exit {run}\nexit {build}\n")
    command.chmod(0o755)
    (tmp_path / "env/.ood-book-ready").touch()  # newer than pyproject.toml: nothing to install
    assert subprocess.run(["make", "-s", "book", "VENV=env"], cwd=tmp_path).returncode == code
    assert (tmp_path / "called").read_text().split() == calls

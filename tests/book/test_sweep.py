"""What `ood-book sweep` promises, on a tiny notebook that really runs: nothing is lost, nothing runs twice."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from ood_book import cli
from ood_book.notebooks import Refused
from ood_book.run import compare, sweep
from ood_book.run.compare import comparison_page, panels
from ood_book.run.plan import short_name

pytestmark = pytest.mark.processes

pytest.importorskip("papermill")
pytest.importorskip("jupytext")

NOTEBOOK = """# %% [markdown]
# # Tiny

# %% tags=["parameters"]
rate: float = 1.0  # what is varied
widths: list = [1]  # a list
seeds: int = 2  # networks
seed: int = 0  # the first
results: str = ""  # where to

# %%
import os, time, psutil
from pathlib import Path
ancestors = [p.pid for p in psutil.Process().parents()]
with open("../ran", "a") as log:
    log.write(f"{rate:g} {seed} {os.getpid()} {ancestors[1]}\\n")
while Path("../hold").exists() and Path("../hold").read_text() in ("all", f"{rate:g} {seed}"):
    time.sleep(0.05)
if Path("../kill").exists() and Path("../kill").read_text() == f"{rate:g}":
    os.kill(ancestors[0], 9)

# %%
rows = ["detector,ood_set,group,metric,value,low,high,seed,seconds"]
for s in range(seed, seed + seeds):
    for group, metric in (("near", "auroc"), ("far", "auroc"), ("near", "fpr95"), ("far", "fpr95")):
        value = 0.5 + 0.1 * rate + 0.01 * s + 0.05 * (group == "far")
        rows.append(f"ours,{group} set,{group},{metric},{value:.3f},0.1,0.9,{s},1.5")
Path(results, "benchmark.csv").write_text("\\n".join(rows))
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A project with one notebook, which notes in `ran` that it runs."""
    (tmp_path / "notebooks/profiles").mkdir(parents=True)
    (tmp_path / "notebooks/10_tiny.py").write_text(NOTEBOOK)
    (tmp_path / "notebooks/profiles/default.yaml").write_text("{}\n")
    (tmp_path / "_config.yml").write_text("title: T\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(book: Path, *given: tuple[str, str], seeds: int | None = None, grid: str = "") -> list[dict]:
    """The parameters of each run."""
    if grid:
        (book / "grid.yaml").write_text(grid)
    factors = sweep.factors(given, book / "grid.yaml" if grid else None)
    return [task.parameters for task in sweep.plan_sweep(book, "tiny", factors, seeds, "default").tasks]


PAGE = Path(__file__).parents[2] / "book/scale.md"


def shown(name: str) -> str:
    """A block of code of the page on sweeps, made for the tiny notebook."""
    code = re.search(rf":name: code-{name}\n\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
    return code.replace("weiper", "tiny").replace("delta", "rate").replace("1.2,1.8,2.4", "1")


def ran(book: Path) -> list[list[str]]:
    """Rate, seed, kernel and grandparent of the kernel, of each run that began."""
    return [line.split() for line in (book / "ran").read_text().splitlines()] if (book / "ran").exists() else []


def wait_for(condition, seconds=240):  # long: the machine may be busy
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def assert_complete(folder: Path, rates, first_seeds) -> None:
    """The table holds what the formula of the notebook says, once each, whatever happened on the way."""
    table = pd.read_csv(folder / "table.csv")
    assert set(table["status"]) == {"done"} and set(table["table"]) == {"benchmark.csv"}
    expected = {
        (rate, first, s, group, metric): 0.5 + 0.1 * rate + 0.01 * s + 0.05 * (group == "far")
        for rate, first in product(rates, first_seeds)
        for s, group, metric in product((first, first + 1), ("near", "far"), ("auroc", "fpr95"))
    }
    assert len(table) == len(expected)
    keys = table[["rate", "run_seed", "seed", "group", "metric"]].itertuples(index=False, name=None)
    assert dict(zip(keys, table["value"])) == pytest.approx(expected)
    assert (table["run_seconds"] > 0).all() and set(table["seconds"]) == {1.5}  # of the run, and of the detector


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("sweep tony -p rate 1,2", ["unknown notebook 'tony'", "'tiny'"]),
        ("sweep tiny -p rat 1,2", ["unknown parameter 'rat'", "'rate'"]),
        ("sweep tiny -p rate 1,fast", ["'rate' of 10_tiny expects float", "'fast'"]),
        ("sweep tiny -p rate ,", ["place without a value"]),
        ("sweep tiny -p rate 1,,2", ["rate '1,,2'", "place without a value"]),
        ("sweep tiny -p rate 1,", ["place without a value"]),
        ("sweep tiny -p widths [[1,2],[3]", ["a bracket or a quote that is not closed"]),
        ("sweep tiny -p rate 2,2.0,2e0", ["rate=2 and rate=2.0 are the same run", "given twice"]),
        ("sweep tiny -p widths [1,2],[1,2]", ["the same run"]),
        ("sweep tiny --grid twice.yaml", ["the same run"]),
        ("sweep tiny -p rate 1 -p rate 2", ["'rate' is given twice"]),
        ("sweep tiny -p seed 1,2 --seeds 3", ["seeds are given twice"]),
        ("sweep tiny -p results here", ["`results` folder of its own"]),
        ("sweep tiny --grid missing.yaml", ["missing.yaml cannot be read"]),
        ("sweep tiny --grid odd.yaml", ["neither"]),
        ("sweep tiny --grid empty.yaml", ["neither"]),
        ("sweep tiny --grid latin.yaml", ["latin.yaml is not YAML"]),
        ("sweep tiny --grid unknown.yaml", ["unknown parameter 'rat'"]),
        ("sweep tiny --profile quik", ["unknown profile 'quik'"]),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_written(book, capsys, arguments, says):
    (book / "odd.yaml").write_text("- 1\n- 2\n")
    (book / "empty.yaml").write_text("rate: []\n")
    (book / "latin.yaml").write_bytes("rate: [1, 2]  # größer".encode("latin-1"))
    (book / "twice.yaml").write_text("- {rate: 2, seed: 1}\n- {rate: 2.0, seed: 1}\n")
    (book / "unknown.yaml").write_text("rate: [1, 2]\nrat: 3\n")
    assert cli.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert [phrase for phrase in says if phrase not in error] == []
    assert not (book / "_build").exists()


def test_a_notebook_without_a_seed_has_no_seeds_to_vary(book, capsys):
    (book / "notebooks/10_tiny.py").write_text(NOTEBOOK.replace("seed: int = 0  # the first\n", ""))
    assert cli.main(["sweep", "tiny", "--seeds", "2"]) == 2
    assert "unknown parameter 'seed'" in capsys.readouterr().err


def test_the_product_of_values_and_seeds_is_planned_and_no_network_twice(book):
    runs = planned(book, ("rate", "1,1e-3"), ("seeds", "1,3"), seeds=2)
    assert [(r["rate"], r["seeds"], r["seed"]) for r in runs] == [
        (rate, seeds, seed) for rate in (1, 0.001) for seeds in (1, 3) for seed in (0, seeds)
    ]
    networks = [(r["rate"], r["seeds"], s) for r in runs for s in range(r["seed"], r["seed"] + r["seeds"])]
    assert len(set(networks)) == len(networks)


def test_a_file_holds_a_grid_or_a_list_of_combinations(book):
    by_hand = planned(book, ("rate", "1,2"), ("widths", "[1, 2],[3]"))
    assert [r["widths"] for r in by_hand] == [[1, 2], [3]] * 2
    assert planned(book, grid="rate: [1, 2]\nwidths: [[1, 2], [3]]\n") == by_hand
    assert planned(book, ("widths", "[1, 2],[3]"), grid="rate: [1, 2]\n") == [by_hand[i] for i in (0, 2, 1, 3)]
    pairs = planned(book, grid="- {rate: 1, widths: [1, 2]}\n- {rate: 1e-3, widths: [3]}\n")
    assert [(r["rate"], r["widths"]) for r in pairs] == [(1, [1, 2]), (0.001, [3])]


def test_each_run_has_a_folder_of_its_own(book):
    values = sweep.factors([("widths", "[1, 2],[1,2,2],[12]")], None)
    found = [task.target for task in sweep.plan_sweep(book, "tiny", values, 2, "default").tasks]
    assert len(set(found)) == 6 and all(path.parent.parent == found[0].parent.parent for path in found)


def test_no_two_sets_of_values_have_one_folder_also_where_case_does_not_count():
    values = [{"a": "1,b=2"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2,c"}, {"name": "A"}, {"name": "a"}, {"name": "Ä"},
              {"name": "ä"}, {"a": None}, {"a": "none"}, {"a": "None"}, {"a": ""}, {}, {"a": "x/y"}, {"a": "x_y"},
              {"a": 61 * "x"}, {"a": 60 * "x"}]  # fmt: skip
    assert len({short_name(given).casefold() for given in values}) == len(values)
    assert short_name({"seed": 5, "delta": "1.2"}) == "delta=1.2,seed=5"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[[1,2],[3,4]],[5]", ["[[1,2],[3,4]]", "[5]"]),
        ("m:f(a,b), m:g", ["m:f(a,b)", "m:g"]),
        ('{"a": {"b": 1, "c": [2, 3]}},{}', ['{"a": {"b": 1, "c": [2, 3]}}', "{}"]),
        ('["a]", "b"],[",)"]', ['["a]", "b"]', '[",)"]']),
        ("'a,b',c", ["a,b", "c"]),
        ("it's,o'clock", ["it's", "o'clock"]),
        ('"",a', ["", "a"]),
        (":),a", [":)", "a"]),
    ],
)
def test_a_comma_in_brackets_or_in_a_quoted_value_does_not_cut(text, values):
    assert sweep.factors([("x", text)], None) == [[{"x": value} for value in values]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_a_sweep_killed_on_the_way_leaves_no_process_and_is_taken_up_where_it_was(book, capsys, monkeypatch):
    command = [sys.executable, "-c", "from ood_book.cli import main; main()"]
    arguments = ["sweep", "tiny", "-p", "rate", "1,2", "--seeds", "2", "--jobs", "1"]
    (book / "hold").write_text("2 0")  # the third of four
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(ran(book)) == 3)
    finally:
        process.kill()  # SIGKILL: it cannot clean up
        process.wait()
    wait_for(lambda: not alive(ran(book)[2][2]))
    (book / "hold").unlink()

    folder = book / "_build/sweep/10_tiny-default-rate+seed"
    assert cli.main([*arguments, "--collect"]) == 1 and len(ran(book)) == 3
    runs = pd.read_csv(folder / "table.csv").drop_duplicates("run").set_index("run")["status"]
    assert dict(runs) == {
        "rate=1,seed=0": "done", "rate=1,seed=2": "done", "rate=2,seed=0": "not run", "rate=2,seed=2": "not run",
    }  # fmt: skip
    assert cli.main(arguments) == 0
    assert Counter(tuple(line[:2]) for line in ran(book)) == {
        ("1", "0"): 1, ("1", "2"): 1, ("2", "0"): 2, ("2", "2"): 1,
    }  # fmt: skip
    assert_complete(folder, (1, 2), (0, 2))
    assert [p.name for p in folder.rglob(".*")] == []  # no draft is left

    page = (folder / "index.html").read_text()
    assert "AUROC against rate" in page and 'class="sortable"' in page and "4 done" in page
    assert "61.5 <small>[59.4, 63.6]</small>" in page  # near, rate 1: the mean over four networks
    for link in ("rate=1,seed=0/10_tiny.ipynb", "table.csv"):
        assert f'href="{link}"' in page and (folder / link).is_file()

    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(shown("table"), {})
    assert "ours     1.0   0.665" in capsys.readouterr().out  # detector, rate, mean of four networks
    monkeypatch.chdir(book)
    assert cli.main(arguments) == 0 and len(ran(book)) == 5
    assert "runs to do" not in capsys.readouterr().out


def test_a_run_whose_process_is_killed_is_reported_and_the_others_go_on(book, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # only --dask needs it
    (book / "kill").write_text("1")
    assert cli.main(["sweep", "tiny", "-p", "rate", "1,2", "-j", "1"]) == 1
    assert "rate=1 failed in its process, which died" in capsys.readouterr().err
    table = pd.read_csv(book / "_build/sweep/10_tiny-default-rate/table.csv").groupby("run")["status"].agg(list)
    assert table["rate=1"] == ["failed"] and table["rate=2"] == ["done"] * 8


def test_runs_go_to_any_address_that_papermill_can_write(book, capsys):
    kept: dict[str, bytes] = {}

    class Storage(BaseHTTPRequestHandler):
        def do_PUT(self):
            refused = self.path.startswith("/closed")
            kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403 if refused else 200)
            self.end_headers()

        def do_GET(self):
            self.send_response(200 if self.path in kept else 404)
            self.end_headers()
            self.wfile.write(kept.get(self.path, b"nothing here"))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert cli.main(["sweep", "tiny", "-p", "seed", "4", "--out", f"{address}/closed"]) == 2
        assert "cannot write to" in capsys.readouterr().err and ran(book) == []
        for _ in range(2):
            assert cli.main(["sweep", "tiny", "-p", "rate", "3", "-p", "seed", "4", "--out", f"{address}/mine"]) == 0
    finally:
        server.shutdown()
    assert len(ran(book)) == 1
    assert json.loads(kept["/mine/sweep.json"])["runs"]["rate=3,seed=4"]["rate"] == 3
    assert "/mine/rate=3,seed=4/10_tiny.ipynb" in kept
    assert_complete(book / "_build/sweep/10_tiny-default-rate+seed", [3], [4])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_two_dask_workers_finish_a_sweep_though_one_is_killed_midway(book):
    distributed = pytest.importorskip("distributed")
    (book / "hold").write_text("all")
    codes: list[int] = []
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        words = ["sweep", "tiny", "-p", "rate", "2,1", "--seeds", "2", "--dask", cluster.scheduler_address]
        thread = threading.Thread(target=lambda: codes.append(cli.main(words)))
        thread.start()
        wait_for(lambda: len(ran(book)) == 2)
        (rate, seed, kernel, worker), other = ran(book)
        assert worker != other[3] and {int(worker), int(other[3])} == {w.pid for w in cluster.workers.values()}
        os.kill(int(worker), signal.SIGKILL)
        wait_for(lambda: not alive(kernel))
        (book / "hold").unlink()
        thread.join(240)
    assert codes == [0]
    assert Counter(tuple(line[:2]) for line in ran(book)) == {
        (r, s): 1 + ((r, s) == (rate, seed)) for r in ("1", "2") for s in ("0", "2")
    }
    assert_complete(book / "_build/sweep/10_tiny-default-rate+seed", (1, 2), (0, 2))


SBATCH = """#!/bin/sh
cp "$1" job.sh  # as Slurm does: the file is gone when this returns
nohup setsid sh job.sh > job.log 2>&1 < /dev/null &
echo $! >> jobs
echo "Submitted batch job $!"
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_the_script_for_slurm_runs_where_jobs_are_started_at_once(book, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    (book / "bin").mkdir()
    tools = {"sbatch": SBATCH, "scancel": '#!/bin/sh\nfor job; do kill -- "-$job" 2> /dev/null; done; true\n'}
    tools["ood-book"] = f'#!/bin/sh\nexec {sys.executable} -c "from ood_book.cli import main; exit(main())" "$@"\n'
    for name, text in tools.items():
        (book / "bin" / name).write_text(text)
        (book / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{book / 'bin'}:{os.environ['PATH']}")
    script = shown("slurm").replace("--seeds 5", "--seeds 1").replace("jobs=8", "jobs=1")
    (book / "cluster.py").write_text(script)
    assert subprocess.run([sys.executable, "cluster.py"], timeout=240).returncode == 0
    assert_complete(book / "_build/sweep/10_tiny-default-rate+seed", [1], [0])
    wait_for(lambda: not any(alive(pid) for pid in (book / "jobs").read_text().split()))


def test_a_cluster_that_does_not_answer_is_refused(book, capsys):
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert cli.main(["sweep", "tiny", "-p", "rate", "1", "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in capsys.readouterr().err


def test_without_dask_its_extra_is_named(book, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "ood_book.run.cluster", raising=False)  # another test may have imported it
    assert cli.main(["sweep", "tiny", "-p", "rate", "1", "--dask", "tcp://127.0.0.1:9"]) == 2
    assert 'distributed is needed here: pip install "ood_lib[cluster]"' in capsys.readouterr().err


# -- tables of every kind that the chapters write, as if they had run ------------------------------------------------


def judged(detectors: dict[str, float], near: str = "letters", seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    """A table of `run_benchmark`: detectors with their near AUROC at seed 0; all else is a little more."""
    return pd.DataFrame([
        {"detector": name, "ood_set": ood_set, "group": group, "metric": metric,
         "value": value + (group == "far") / 100 + seed / 1000 + 1e-9, "seed": seed}
        for name, value in detectors.items()
        for group, ood_set in (("near", near), ("far", "noise"))
        for metric in ("auroc", "fpr95")
        for seed in seeds
    ])  # fmt: skip


def as_json(table: pd.DataFrame) -> str:
    """As `save_results` writes it."""
    return json.dumps({"benchmark": "b", "rows": table.round(6).to_dict("records")})


def pretend(book: Path, given: list[list[str]], tables) -> Path:
    """Put finished runs in place, each with the tables that are made for its parameters; the folder of the sweep."""
    planned = sweep.plan_sweep(book, "tiny", sweep.factors(given, None), None, "default")
    for task in planned.tasks:
        task.results.mkdir(parents=True)
        record = {"key": task.key, "seconds": 1.0, "peak_memory_mb": 2, "tables": tables(task.parameters)}
        task.target.write_text(json.dumps({"metadata": {"ood_book": record}}))
    return planned.folder


def collected(folder: Path, *given: str) -> tuple[int, pd.DataFrame, str]:
    """The exit code of `--collect`, the table and the page."""
    code = cli.main(["sweep", "tiny", "--collect", *given])
    return code, pd.read_csv(folder / "table.csv", keep_default_na=False), (folder / "index.html").read_text()


def test_each_file_is_summarised_by_itself_whatever_else_the_chapter_writes(book):
    def tables(parameters):  # those of the chapters on MSMA and WeiPer
        own = judged({"MSMA": 0.5 + parameters["rate"] / 10, "MSP": 0.55})
        photographs = judged({"MSMA, mixture": 0.7}, near="cifar100")
        verdicts = json.dumps({"provenance": {}, "verdicts": [1]})
        return {
            "benchmark.csv": own.to_csv(),
            "cifar10-score-norms.json": as_json(photographs),
            "networks.csv": "network,value\na,b\n",
            "this-run.json": as_json(own),
            "weiper.json": verdicts,
        }

    folder = pretend(book, [["rate", "1,2"]], tables)
    code, table, page = collected(folder, "-p", "rate", "1,2")
    assert code == 0 and "No means" not in page
    assert dict(table.groupby("table").size()) == {
        "benchmark.csv": 32, "cifar10-score-norms.json": 16, "networks.csv": 2, "this-run.json": 32,
    }  # fmt: skip
    for file in ("benchmark.csv", "cifar10-score-norms.json"):
        assert f"AUROC against rate in {file}" in page and f"Every detector in {file}" in page
    assert "in this-run.json" not in page  # the rows of benchmark.csv
    assert page.count(">MSMA, mixture<") == 2 and page.count(">MSMA<") == 2  # once for each rate
    assert "MSMA moves most, by 10.0 points" in page and "MSMA, mixture moves most, by 0.0 points" in page


def test_networks_in_files_of_their_own_are_never_averaged(book):
    values = {"cifar10-resnet9": 0.883, "cifar10-resnet56": 0.879, "cifar10-densenet": 0.88, "cifar100-densenet": 0.64}
    files = {f"{name}.json": as_json(judged({"KNN": value}, seeds=(0,))) for name, value in values.items()}
    code, table, page = collected(pretend(book, [], lambda _: files))
    assert code == 0 and len(table) == 16
    for name, value in values.items():
        after = page.partition(f"Every detector in {name}.json")[2].partition("<h2>")[0]
        assert f"{100 * value:.1f} <small>(one network)</small>" in after and after.count(">KNN<") == 1
    assert f"{25 * sum(values.values()):.1f} <small>" not in page


def test_one_file_has_no_name_on_the_page(book):
    _, _, page = collected(pretend(book, [], lambda _: {"benchmark.csv": judged({"KNN": 0.8}).to_csv()}))
    assert "<h2>Every detector</h2>" in page


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("a.csv", "", "No columns to parse"),
        ("a.csv", 'a,b\n"1,2\n', "EOF inside string"),
        ("a.json", '{"rows": [1]}', 'its "rows" are not all objects'),
        ("a.json", '{"rows"', "delimiter"),
    ],
)
def test_a_table_that_cannot_be_read_is_the_error_of_its_run_and_the_others_count(book, capsys, file, text, says):
    def tables(parameters):
        own = {"benchmark.csv": judged({"KNN": 0.8}).to_csv()}
        return own | ({file: text} if parameters["rate"] == 2 else {})

    code, table, page = collected(pretend(book, [["rate", "1,2"]], tables), "-p", "rate", "1,2")
    assert code == 1 and set(table["status"]) == {"done"}
    errors = table.groupby("run")["error"].agg(set)
    assert (
        errors["rate=1"] == {""} and says in min(errors["rate=2"]) and f"wrote {file}, which" in min(errors["rate=2"])
    )
    assert len(table) == 16 and set(table["table"]) == {"benchmark.csv"}
    assert says in capsys.readouterr().err and "which cannot be read" in page and "AUROC against rate" in page


def test_a_file_of_which_no_means_can_be_taken_says_why_and_the_others_are_shown(book):
    torn = judged({"A": 0.6, "B": 0.7}).query("not (detector == 'B' and group == 'near')")
    torn = pd.concat([torn, judged({"B": 0.7}, near="digits").query("group == 'near'")])
    double = pd.concat([judged({"KNN": 0.8}), judged({"KNN": 0.9})])
    files = {"a.csv": torn.to_csv(), "b.csv": double.to_csv(), "c.csv": judged({"KNN": 0.8}).to_csv()}
    code, table, page = collected(pretend(book, [], lambda _: files))
    assert code == 0 and len(table) == sum(map(len, (torn, double))) + 8
    parts = dict(re.findall(r"Every detector in (.)\.csv</h2>(.*?)(?=<h2>)", page, re.S))
    assert "was not judged on" in parts["a"] and "come more than once" in parts["b"] and "80.1 <small>" in parts["c"]


def test_a_figure_that_would_average_over_other_sets_says_so_and_the_rest_is_shown(book):
    def tables(parameters):  # at another rate other sets, and one network more
        rate = int(parameters["rate"])
        return {"a.csv": judged({"KNN": 0.8}, near=f"set {rate}", seeds=tuple(range(rate))).to_csv()}

    given = [["rate", "1,2"], ["seeds", "1,3"]]
    _, _, page = collected(pretend(book, given, tables), *(word for pair in given for word in ("-p", *pair)))
    parts = dict(re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>)", page, re.S))
    assert "was not judged on" in parts["AUROC against seeds"] and "<img" in parts["AUROC against rate"]
    assert parts["Every detector"].count(">KNN<") == 4


def test_the_table_is_there_though_the_page_cannot_be_made(book, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(compare, "comparison_page", fails)
    folder = pretend(book, [], lambda _: {"benchmark.csv": judged({"KNN": 0.8}).to_csv()})
    with pytest.raises(ZeroDivisionError):
        cli.main(["sweep", "tiny", "--collect"])
    assert len(pd.read_csv(folder / "table.csv")) == 8


def test_a_column_of_a_table_never_hides_what_is_said_of_its_run(book):
    own = judged({"KNN": 0.8}).assign(table="mine", run="mine", error="mine")
    _, table, _ = collected(pretend(book, [], lambda _: {"benchmark.csv": own.to_csv()}))
    assert set(table["table"]) == {"benchmark.csv"} and set(table["error"]) == {""}
    assert (table[["result_table", "result_run", "result_error"]] == "mine").all(axis=None)


def test_a_value_that_is_null_is_called_null(book):
    text = NOTEBOOK.replace("rate: float = 1.0", "rate: float | None = 1.0")
    (book / "notebooks/10_tiny.py").write_text(text)
    folder = pretend(
        book, [["rate", "null,2"]], lambda p: {"a.csv": judged({"KNN": 0.8 if p["rate"] else 0.7}).to_csv()}
    )
    code, table, page = collected(folder, "-p", "rate", "null,2")
    assert code == 0 and set(table["rate"]) == {"null", "2"} and "rate = null, 2." in page
    assert "Horizontal axis: rate at null, 2." in page and "KNN moves most, by 10.0 points" in page
    assert page.count(">null<") == 2 and "nan" not in re.sub(r'src="[^"]*"', "", page).replace("nance", "")


def test_each_panel_draws_its_own_detector_with_the_ends_of_its_intervals():
    rows = [(d, group, x, 0.5 + x / 10 + (d == "B") / 20 + (group == "far") / 50) for d in "AB"
            for group in ("near", "far") for x in (0, 1, 2)]  # fmt: skip
    summary = pd.DataFrame(rows, columns=["detector", "group", "x", "value"])
    summary = summary.assign(low=summary["value"] - 0.01, high=summary["value"] + 0.03)
    figure = panels(summary, ["B", "A"], "rate", ["1", "2", "4"])
    assert [ax.get_title() for ax in figure.axes] == ["B", "A"] and figure.get_supxlabel() == "rate"
    for ax in figure.axes:
        assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "4"]
        for group, bars in zip(("near", "far"), ax.containers, strict=True):
            own = summary[(summary["detector"] == ax.get_title()) & (summary["group"] == group)]
            line, _, (ends,) = bars.lines
            assert line.get_ydata() == pytest.approx(100 * own["value"].to_numpy())
            assert line.get_xdata() == pytest.approx(own["x"].to_numpy(), abs=0.1)
            heights = [(segment[0, 1], segment[1, 1]) for segment in ends.get_segments()]
            assert heights == [pytest.approx((100 * low, 100 * high)) for low, high in zip(own["low"], own["high"])]
    compare.plt.close(figure)


# -- banks: networks that are trained already ------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[["seed", "0,1"]], []])
@pytest.mark.parametrize("bank", ["cifar10-resnet9", "cifar10-bank", "bank:."])
def test_several_seeds_of_a_bank_are_refused_because_each_would_be_the_same_network(book, bank, given):
    source = NOTEBOOK.replace("seed: int", 'benchmark: str = "digits"\nseed: int')
    (book / "notebooks/10_tiny.py").write_text(source)

    def runs(*names, given=given, seeds=None if given else 2):
        values = sweep.factors([*given, ["benchmark", ",".join(names)]], None)
        return sweep.plan_sweep(book, "tiny", values, seeds, "default").tasks

    with pytest.raises(
        Refused, match=f"several seeds were given for {bank[:6]}.*, a bank: its networks are trained already"
    ):
        runs("digits", bank)
    assert len(runs("digits")) == 2
    assert len(runs("digits", bank, given=[["seed", "3"]], seeds=None)) == 2  # one seed is one network


@pytest.mark.parametrize("chapter", ["cifar10", "leaderboard"])
def test_the_chapters_that_judge_banks_are_refused_several_seeds(chapter):
    values = sweep.factors([["benchmark", "cifar10-resnet9"]] if chapter == "leaderboard" else [], None)
    with pytest.raises(Refused, match="several seeds were given for cifar10-resnet"):
        sweep.plan_sweep(PAGE.parents[1], chapter, values, 2, "quick")


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_page_without_benchmark_tables_says_so_and_still_lists_every_run():
    table = pd.DataFrame({"run": ["a", "b"], "status": ["done", "failed"], "error": ["", "<b>"], "rate": [1, 2],
                          "run_seconds": [1.0, None], "run_memory_mb": [2, None], "table": ""})  # fmt: skip
    page = comparison_page(table, ["rate"], "T", {"a": "a.ipynb", "b": "b.ipynb"}, "by hand")
    assert "nothing to draw" in page and "1 done, 1 failed" in page and "&lt;b&gt;" in page and "<img" not in page


def rows_of(*runs: tuple) -> pd.DataFrame:
    """Of runs (name, rate, depth, seed, value), each with one number."""
    rows = pd.DataFrame(runs, columns=["run", "rate", "depth", "seed", "value"])
    return rows.assign(run_seed=0, status="done", error="", detector="ours", ood_set="x", group="near", metric="auroc",
                       table="benchmark.csv", run_seconds=1.0, run_memory_mb=2)  # fmt: skip


def page_of(table: pd.DataFrame, names: list[str]) -> str:
    return comparison_page(table, names, "T", {run: f"{run}.ipynb" for run in table["run"]}, "by hand")


def test_a_page_counts_a_network_once_though_two_runs_or_two_values_of_another_parameter_have_it():
    values = {("a", 1): 0.6, ("b", 1): 0.8, ("c", 2): 0.7, ("d", 2): 0.9}
    table = rows_of(*((r, rate, depth, 0, v) for depth, ((r, rate), v) in zip((1, 2, 1, 2), values.items())))
    page = page_of(table, ["rate", "depth"])
    assert "AUROC against rate" in page and "one seed, so no interval" in page  # four runs, one network
    shared = rows_of(("a", 1, 1, 0, 0.6), ("a", 1, 1, 1, 0.7), ("b", 1, 1, 1, 0.7), ("b", 1, 1, 2, 0.8))
    assert "70.0 <small>[45.2, 94.8]</small>" in page_of(shared, ["rate", "seed"])  # three networks, not four


def test_a_page_shows_no_nan_where_there_is_one_network():
    page = page_of(rows_of(("a", 1, 1, 0, 0.6), ("b", 2, 1, 0, 0.7)), ["rate"])
    assert "60.0 <small>(one network)</small>" in page and ">nan<" not in page and "nan]" not in page

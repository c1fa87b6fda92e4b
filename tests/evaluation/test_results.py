"""Laws of result files: what was measured comes back, with its origin; a leaderboard adds nothing to it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ood_lib import MSP, BenchmarkFeatures, Energy, Verdict, load_benchmark, run_benchmark, summarize
from ood_lib.data.benchmark import benchmark_hash
from ood_lib.evaluation import results
from ood_lib.evaluation.metrics import as_percent, mean_interval
from ood_lib.evaluation.results import (
    leaderboard,
    load_results,
    load_verdicts,
    origins,
    provenance,
    save_results,
    save_verdicts,
)
from tests.conftest import Toy


@pytest.fixture(scope="module")
def table(toy: Toy) -> pd.DataFrame:
    f = BenchmarkFeatures(toy.train, toy.val, toy.test, {"a": toy.ood[:20]}, {"b": toy.ood[20:35], "c": toy.ood[35:]})
    return pd.concat(
        [run_benchmark({"MSP": MSP(), "Energy": Energy(1.0 + s)}, f, seed=s) for s in range(3)], ignore_index=True
    )


def write(path: Path, table: pd.DataFrame, **changes: object) -> Path:
    save_results(path, table, **{"benchmark": "toy", "network": "n", "origin": provenance("make toy")} | changes)
    return path


def test_what_is_written_comes_back_with_its_origin(table: pd.DataFrame, tmp_path: Path):
    back = load_results(write(tmp_path / "toy.json", table, accuracy=0.5))
    pd.testing.assert_frame_equal(back[table.columns], table, atol=1e-6, check_dtype=False)
    assert set(back["run"]) == {"toy"} and set(back["accuracy"]) == {0.5}
    assert set(back["command"]) == {"make toy"} and back["versions"].str.contains("torch").all()


@pytest.mark.parametrize(
    ("given", "kept"), [("bank:/home/me/mine", "bank:mine"), ("folder:here", "folder:here"), ("digits", "digits")]
)
def test_a_result_tells_no_place_on_the_machine(given: str, kept: str, table: pd.DataFrame, tmp_path: Path):
    assert set(load_results(write(tmp_path / "toy.json", table, benchmark=given))["benchmark"]) == {kept}


def test_every_fact_that_a_file_holds_stands_in_its_item_and_no_other(table: pd.DataFrame, tmp_path: Path):
    facts = {"command": "make a --fast", "data": "1234", "commit": ""}
    write(tmp_path / "a.json", table, origin=facts)
    write(tmp_path / "b.json", table, origin={"weights": "theirs"})
    items = "- **a**: command `make a --fast`; data 1234\n- **b**: weights `theirs`"
    folded = origins(load_results(tmp_path))
    assert f"</summary>\n\n{items}\n\n</details>" in folded and folded.startswith("<details><summary>Command")


def test_numbers_that_are_not_there_stay_so_and_the_file_is_plain_json(table: pd.DataFrame, tmp_path: Path):
    path = write(tmp_path / "toy.json", table.assign(memory_mb=np.nan))
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert load_results(path)[["memory_mb", "accuracy"]].isna().all(axis=None)  # the accuracy was not given


def test_a_folder_gives_all_its_files_and_no_folder_gives_none(table: pd.DataFrame, tmp_path: Path):
    for name in ("one", "two"):
        write(tmp_path / f"{name}.json", table)
    assert list(load_results(tmp_path)["run"].unique()) == ["one", "two"]
    with pytest.warns(UserWarning, match="no results at .*nowhere"):
        assert load_results(tmp_path / "nowhere").empty


def test_a_board_without_rows_is_refused_by_name(table: pd.DataFrame, tmp_path: Path):
    write(tmp_path / "nothing.json", table[:0])  # a run without an OOD set
    for place in ("nothing.json", "nowhere"):
        with pytest.raises(ValueError, match="no row to show"):
            leaderboard(load_results(tmp_path / place))
    write(tmp_path / "one.json", table)
    assert set(leaderboard(load_results(tmp_path))["run"]) == {"one"}


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json is no result file"):
        load_results(tmp_path)


def test_an_interrupted_write_keeps_the_former_file(table: pd.DataFrame, tmp_path: Path, monkeypatch):
    path = write(tmp_path / "toy.json", table)
    before = path.read_text()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(path, table.head(1))
    assert path.read_text() == before


def test_a_leaderboard_says_what_the_summary_says(table: pd.DataFrame, tmp_path: Path):
    board = leaderboard(load_results(write(tmp_path / "toy.json", table))).set_index("detector")
    for metric, suffix in (("auroc", ""), ("fpr95", "_fpr95")):
        for _, row in summarize(table, metric).iterrows():
            found = board.loc[row["detector"]]
            ends = [f"{row['group']}{suffix}{end}" for end in ("", "_low", "_high")]
            assert found[ends].tolist() == pytest.approx(row[["value", "low", "high"]].tolist(), abs=1e-5)
    assert (board["seeds"] == 3).all()


def test_one_network_gets_the_interval_of_its_test_images(table: pd.DataFrame, tmp_path: Path):
    one = table[table["seed"] == 0]
    board = leaderboard(load_results(write(tmp_path / "toy.json", one))).set_index("detector")
    rows = one[(one["detector"] == "MSP") & (one["group"] == "far") & (one["metric"] == "auroc")]
    assert board.loc["MSP", "far_low"] == pytest.approx(rows["low"].mean(), abs=1e-5)
    assert board.loc["MSP", "far_high"] == pytest.approx(rows["high"].mean(), abs=1e-5)


def test_a_network_that_stands_twice_in_a_file_is_refused(table: pd.DataFrame, tmp_path: Path):
    twice = pd.concat([table, table[(table["seed"] == 2) & (table["detector"] == "MSP")]])
    with pytest.raises(ValueError, match="more than once: auroc of 'MSP' on 'a', seed 2"):
        leaderboard(load_results(write(tmp_path / "toy.json", twice)))


def test_the_interval_of_a_line_is_shown_by_its_ends_and_not_by_half_of_what_was_cut_off(table: pd.DataFrame):
    values = {0: 0.99, 1: 0.85, 2: 0.97}
    chosen = table[(table["detector"] == "MSP") & (table["group"] == "far")]
    line = leaderboard(chosen.assign(run="toy", value=chosen["seed"].map(values))).iloc[0]
    mean, low, high = mean_interval([*values.values()])
    assert high > 1 == line["far_high"] and line["far_low"] == pytest.approx(low)
    shown = as_percent(*line[["far", "far_low", "far_high"]])
    assert shown == f"{100 * mean:.1f} [{100 * low:.1f}, 100.0]" and "±" not in shown


def test_a_run_without_near_sets_has_no_near_value(table: pd.DataFrame, tmp_path: Path):
    write(tmp_path / "far.json", table[table["group"] == "far"])
    write(tmp_path / "toy.json", table)
    board = leaderboard(load_results(tmp_path))
    assert board.loc[board["run"] == "far", "near"].isna().all()
    alone = leaderboard(load_results(tmp_path / "far.json"))
    assert alone["near"].isna().all() and alone["far"].notna().all()
    assert board.loc[board["run"] == "toy", "near"].notna().all()


def test_the_commit_is_that_of_the_library_and_a_machine_without_git_has_none(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    here = Path(results.__file__).parent
    real = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
    assert provenance("x")["commit"].rstrip("+") == (real.stdout.strip() if real.returncode == 0 else "")
    monkeypatch.setattr(results.subprocess, "run", missing)
    assert provenance("x")["commit"] == ""


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_of_a_repository_that_the_library_is_only_installed_in_is_not_its_own(monkeypatch, tmp_path):
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*own, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "results.py").touch()
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert provenance("x")["commit"] == ""


def test_the_command_is_the_one_given_else_the_one_under_way(monkeypatch):
    monkeypatch.setenv("OOD_COMMAND", "ood-book run it")
    assert provenance()["command"] == "ood-book run it" and provenance("x")["command"] == "x"
    monkeypatch.delenv("OOD_COMMAND")
    assert provenance()["command"] == "cells run by hand"


def test_the_data_hash_is_that_of_the_images_in_their_roles():
    one, two = load_benchmark("digits"), load_benchmark("digits")
    assert benchmark_hash(one) == benchmark_hash(two)
    two.near["digits7-9"] = two.far["noise"]
    assert benchmark_hash(one) != benchmark_hash(two)


# -- the claims of the ledger ---------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
KEYS = {"claim", "setting", "paper", "source", "run", "gains", "detector", "minus", "over", "metric", "on", "needs"}


def test_every_claim_is_complete_and_its_run_holds_what_it_names():
    yaml = pytest.importorskip("yaml")
    claims = yaml.safe_load((ROOT / "book/claims.yaml").read_text(encoding="utf-8"))
    runs, kept = load_results(ROOT / "book/results"), load_verdicts(ROOT / "book/results/verdicts")
    for claim in (c for named in claims.values() for c in named):
        assert set(claim) <= KEYS | {"elsewhere", "control"} and {"claim", "setting", "source"} <= set(claim), claim
        assert len({"needs", "gains", "run"} & set(claim)) == 1, claim
        if "needs" in claim:
            continue
        assert {"detector", "over"} <= set(claim) and ("paper" in claim or "minus" in claim), claim
        rows = kept[kept["run"] == claim["gains"]] if "gains" in claim else runs[runs["run"] == claim["run"]]
        assert claim["detector"] in set(rows["detector"]), claim
        assert claim["over"] in {*rows["group"], *rows.get("ood_set", ())}, claim
        if "minus" in claim:
            assert claim["minus"] in set(rows["minus"] if "gains" in claim else rows["detector"]), claim


def test_verdicts_come_back_with_what_was_compared_and_where(tmp_path: Path):
    one, other = Verdict(0.9, 0.8, 0.05, 0.15), Verdict(0.7, 0.72, -0.05, 0.01)
    found = {("A", "B"): {"net": {"near": one, "far": other}}, ("A", "C"): {"net": {"near": other}}}
    save_verdicts(tmp_path / "chapter.json", found, origin=provenance("make it"))
    back = load_verdicts(tmp_path)
    assert list(back["verdict"]) == [one, other, other]
    assert list(back["minus"]) == ["B", "B", "C"] and list(back["group"]) == ["near", "far", "near"]
    assert set(back["run"]) == {"chapter"} and set(back["network"]) == {"net"} and set(back["command"]) == {"make it"}
    assert load_verdicts(tmp_path / "nothing here").empty


@pytest.mark.parametrize("text", ["", "[]", '{"provenance": {}}', '{"verdicts": [{"a": 1}], "provenance": {}}'])
def test_a_file_without_verdicts_is_named(text: str, tmp_path: Path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json holds no verdicts"):
        load_verdicts(tmp_path)


@pytest.mark.parametrize("text", ["plain", "a`b", "`", "``x`", "x```", "two\nlines"])
def test_no_value_leaves_its_code_span(text: str):
    from markdown_it import MarkdownIt

    (inline,) = [t for t in MarkdownIt().parse(f"- {results.code_span(text)} <b>after</b>") if t.type == "inline"]
    (code,) = [t for t in inline.children if t.type == "code_inline"]
    assert code.content.strip() == text.replace("\n", " ").strip()

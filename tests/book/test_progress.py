"""Laws of a run that is watched: what it says, how often, and when it is ended."""

from types import SimpleNamespace

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("papermill")

from ood_book.run.budget import PATIENCE, WARN, counted
from ood_book.run.progress import Progress

pytestmark = pytest.mark.processes

MINUTE = 60


def text(source):
    return SimpleNamespace(cell_type="markdown", source=source)


def code(source="x = 1"):
    return SimpleNamespace(cell_type="code", source=source)


@pytest.fixture
def watched():
    """A run with a budget of four minutes, nobody on a terminal, and a list that grows when it is ended."""

    def make(budget=4, patience=PATIENCE):
        ended = []
        task = SimpleNamespace(label="10_weiper", budget=budget, patience=patience)
        return Progress(task, 66, None, lambda: 0.0, lambda: ended.append(True)), ended

    return make


def test_what_counts_is_the_smaller_time_and_a_run_that_waits_comes_to_its_end_too():
    assert counted(wall=100, cpu=70) == 70  # a busy machine
    assert counted(wall=100, cpu=390) == 100  # several threads
    assert counted(wall=100, cpu=0) == 50  # waits for something


def test_a_line_names_the_last_heading_the_cell_and_the_time_of_the_budget(watched, capsys):
    run, _ = watched()
    cells = [text("# Title"), code(), text("## 4. Training"), text("### 4.3 The *limit*\n\nProse."), code(""), code()]
    for index, cell in enumerate(cells):
        run.starts(cell, index)
    run.look(wall=MINUTE, cpu=50)
    assert capsys.readouterr().err == '10_weiper: 1.0 min of 4 min, in cell [2] of "4.3 The limit"\n'


def test_a_run_without_a_budget_tells_its_time_and_is_never_ended(watched, capsys):
    run, ended = watched(budget=None)
    run.look(wall=1000 * MINUTE, cpu=1000 * MINUTE)
    assert capsys.readouterr().err == "10_weiper: 1000.0 min, in cell [0]\n" and not ended


def test_at_most_one_line_a_minute_and_fewer_of_a_long_run(watched, capsys):
    run, _ = watched(budget=None)
    for second in range(1, 10 * MINUTE):
        run.look(wall=second, cpu=second)
    assert len(capsys.readouterr().err.splitlines()) == 9
    for second in range(10 * MINUTE, 1000 * MINUTE, 10):
        run.look(wall=second, cpu=second)
    assert len(capsys.readouterr().err.splitlines()) < 60


def test_beyond_three_times_the_budget_a_line_says_so_at_once_and_all_that_follow_do(watched, capsys):
    run, ended = watched()
    run.look(wall=WARN * 4 * MINUTE - 30, cpu=WARN * 4 * MINUTE - 30)
    assert "more than" not in capsys.readouterr().err
    run.look(wall=WARN * 4 * MINUTE + 1, cpu=WARN * 4 * MINUTE + 1)  # no minute has passed since
    said = capsys.readouterr().err
    assert "12.0 min (12.0 min of processor time), more than 3 times its budget of 4 min" in said
    assert "stopped at 6 times (--patience)" in said
    run.look(wall=14 * MINUTE, cpu=14 * MINUTE)
    assert "more than 3 times its budget" in capsys.readouterr().err and not ended


def test_a_busy_machine_makes_no_run_late(watched, capsys):
    run, ended = watched()
    run.look(wall=23 * MINUTE, cpu=4 * MINUTE)
    assert "more than" not in capsys.readouterr().err and not ended


@pytest.mark.parametrize(("wall", "cpu"), [(24.1, 24.1), (24.1, 90), (48.1, 0)])
def test_a_run_beyond_its_ceiling_is_ended_and_says_where_it_was_and_how_to_give_it_more(watched, wall, cpu):
    run, ended = watched()
    run.starts(text("## 4. Training"), 0)
    run.starts(code(), 1)
    run.look(wall=wall * MINUTE - 12, cpu=min(cpu, wall - 0.2) * MINUTE)
    assert not ended and not run.stopped
    run.look(wall=wall * MINUTE, cpu=cpu * MINUTE)
    assert ended
    for phrase in (f"stopped after {wall} min", "more than 6 times its budget of 4 min", '[1] of "4. Training"',
                   "--patience"):  # fmt: skip
        assert phrase in run.stopped


def test_patience_moves_the_ceiling_and_none_is_none(watched):
    for patience, wall, over in ((1, 4.1, True), (12, 47, False), (12, 49, True), (0, 10_000, False)):
        run, ended = watched(patience=patience)
        run.look(wall=wall * MINUTE, cpu=wall * MINUTE)
        assert bool(ended) == over


def test_headings_are_kept_short(watched):
    run, _ = watched()
    run.starts(text("## " + "a long heading " * 20), 0)
    assert 30 < len(run.section) < 70

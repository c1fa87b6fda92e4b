"""Laws of the networks that come with the book: its pages find them, and would train them as they were trained."""

import symtable
from copy import deepcopy

import matplotlib.pyplot as plt
import pytest

import ood_lib as ood
from ood_lib.training.loop import Descent
from tests.book.chapters import NOTEBOOKS, chapter

PAGES = ["06_certainty", "40_msma", "50_snojoe"]
trained = ood.trained


def names(code: str) -> tuple[set[str], set[str]]:
    """What a cell defines, and what it and its functions read."""

    def every(table):
        return [table, *(x for child in table.get_children() for x in every(child))]

    top = symtable.symtable(code, "cell", "exec")
    defined = {x.get_name() for x in top.get_symbols() if x.is_assigned() or x.is_imported()}
    return defined, {x.get_name() for table in every(top) for x in table.get_symbols() if x.is_referenced()}


def train_as(page: str, monkeypatch, stand_in) -> dict:
    """Run the cell of a page that trains its networks, after the cells that it needs, with something for `trained`."""
    monkeypatch.setattr(ood, "trained", stand_in)
    monkeypatch.setattr("ood_lib.features.benchmark.trained", stand_in)
    cells = [c for c in chapter(NOTEBOOKS / f"{page}.py").cells if c.cell_type == "code"]
    (at, *_) = (n for n, c in enumerate(cells) if "ood.trained(" in c.source or "features = ood.ben" in c.source)
    known, chosen = [names(cell.source) for cell in cells], {at}
    while True:  # a function may call one that is defined after it
        wanted = set().union(*(known[n][1] for n in chosen))
        more = {n for n in range(at) if known[n][0] & wanted} | chosen
        if more == chosen:
            break
        chosen = more
    space = {}
    for n in sorted(chosen):
        exec(cells[n].source, space)
    plt.close("all")
    return space


class Enough(Exception):
    """The losses of the first three updates."""


def begin(train, network, data, *, seed, cache=None, **options) -> list[float]:
    """How a training begins."""
    step = Descent.step

    def three(self, loss, unit=1.0):
        step(self, loss, unit)
        if len(self.history.loss) == 3:
            raise Enough(*self.history.loss)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough) as enough:
        patch.setattr(Descent, "step", three)
        train(network, data, seed=seed, **options)
    return enough.value.args


@pytest.mark.parametrize("page", PAGES)
def test_a_page_finds_all_networks_but_the_first_and_would_train_them_as_those_that_ship(monkeypatch, page):
    found = {}

    def look(train, network, data, *, name, seed, **options):
        if seed == 0:
            return ood.History()  # trained on the page; left out here
        losses = begin(train, deepcopy(network), data, seed=seed, **options) if seed == 1 else ()
        with monkeypatch.context() as patch:
            patch.setattr(Descent, "step", None)  # who trains fails
            history = trained(train, network, data, name=name, seed=seed, **options)
        assert history.recalled and history.loss[: len(losses)] == pytest.approx(losses, rel=1e-3), name
        found.setdefault(name, []).append(seed)
        return history

    space = train_as(page, monkeypatch, look)
    assert found and all(seeds == [*range(1, space["seeds"])] for seeds in found.values())

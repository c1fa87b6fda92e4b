"""Laws of the training: it can stop anywhere and go on, keeps what held-out rows like best, and fails with a name."""

import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ood_lib import ResNet, extract, load_benchmark, train_classifier
from ood_lib.detectors.flow.flow import coupling_flow, glow
from ood_lib.detectors.flow.training import FlowTraining
from ood_lib.detectors.moments import class_moments
from ood_lib.training.checkpoint import Checkpoint
from tests.apart import apart
from tests.conftest import normal

K = 4
Z = normal(300, K) @ normal(K, K, seed=1)
HELD, ROWS = torch.arange(300).tensor_split([60])


def training(seed: int = 0, **options) -> FlowTraining:
    given = {"rows": ROWS, "held": HELD, "batch_size": 50, "noise": 0.1, "learning_rate": 1e-2, "seed": seed}
    return FlowTraining(coupling_flow(K, 2, [8]).double(), Z, **given | options)


def weights(flow: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


# -- batches ----------------------------------------------------------------------------------------------------


def test_an_epoch_shows_each_row_once_and_the_next_one_in_another_order():
    plain = training(noise=0.0, batch_size=40)
    seen = torch.cat([plain.batch(update)[0] for update in range(12)]).split(240)
    for epoch in seen:
        assert torch.equal(epoch.sort(0).values, Z[ROWS].sort(0).values)
    assert not torch.equal(*seen)


def test_a_batch_is_a_function_of_seed_and_update():
    a, b, c = training(), training(), training(seed=1)
    later = a.batch(17)[0]
    b.batch(3)
    assert torch.equal(b.batch(17)[0], later) and torch.equal(a.batch(17)[0], later)
    assert not torch.equal(c.batch(17)[0], later) and not torch.equal(a.batch(18)[0], later)


def test_the_default_device_changes_no_batch():
    a, b = training(), training()
    with torch.device("meta"):
        there = a.batch(7)[0]
    assert torch.equal(there, b.batch(7)[0])


def test_noise_has_the_width_that_was_asked_for_and_lengths_become_one():
    noisy = training(noise=0.5, batch_size=240).batch(0)[0] - training(noise=0.0, batch_size=240).batch(0)[0]
    assert noisy.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.allclose(training(noise=0.0, normalize=True).batch(0)[0].norm(dim=1), torch.ones(50).double())


def test_labels_go_with_their_rows():
    z, labels = training(labels=torch.arange(300), noise=0.0).batch(4)
    assert torch.equal(z, Z[labels])


def test_fewer_rows_than_a_batch_are_one_batch_and_none_are_refused():
    assert len(training(rows=ROWS[:7]).batch(0)[0]) == 7
    with pytest.raises(ValueError, match="no rows are left"):
        training(rows=ROWS[:0])


def memory_of_batches(file: Path) -> int:
    """Bytes that a training takes at most, whose features are a file of 300 MB."""
    z = torch.from_file(str(file), shared=True, size=150_000 * 500, dtype=torch.float32).view(150_000, 500)
    flow, few = coupling_flow(500, 1, [8]), torch.randn(100, 500)
    z[::1500] = few
    FlowTraining(flow, few, rows=torch.arange(100)).run(2)  # what loads lazily
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    FlowTraining(flow, z, rows=torch.arange(150_000), normalize=True, noise=0.1).run(4)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return grown * (1 if sys.platform == "darwin" else 1024)


def test_rows_are_read_from_where_they_lie(tmp_path):
    assert apart(memory_of_batches, tmp_path / "z") < 300e6 / 3  # batches, with the pages of the file around them


# -- learning ---------------------------------------------------------------------------------------------------


def test_it_raises_the_likelihood_and_returns_that_of_its_batches():
    t = training()
    before = t.log_prob(ROWS)
    first = t.run(1)
    assert first == pytest.approx(training().flow.log_prob(training().batch(0)[0]).mean().item())
    t.run(60)
    assert t.log_prob(ROWS) > before + 1 and t.update == 61


def test_the_best_look_is_kept():
    t = training(rows=ROWS[:12], noise=0.0, learning_rate=3e-2)
    history = t.fit(400, check_every=10, patience=5)
    best = max(history.val)
    assert history.val[-1] < best - 0.1  # it did overfit
    assert t.log_prob(HELD) == pytest.approx(best)
    assert history.update == list(range(0, 10 * len(history.val), 10)) and history.update[-1] < 400
    assert history.val.index(best) == len(history.val) - 6


def test_without_held_out_rows_the_last_update_is_kept():
    t, free = training(held=None), training(held=None)
    history = t.fit(30, check_every=20)
    free.run(30)
    assert torch.equal(weights(t.flow), weights(free.flow)) and history.update == [0, 20, 30]
    assert history.val == history.train


def test_no_update_leaves_the_start():
    t = training()
    start = weights(t.flow).clone()
    assert t.fit(0).update == [0] and torch.equal(weights(t.flow), start)


def test_two_thousand_updates_at_a_thousandth_stay_finite():
    """On the default benchmark, whose features broke unclamped flows: rectified, on the sphere, some units dead."""
    bench = load_benchmark("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet(1, len(bench.classes), [8, 32], normalize=bench.normalize)
    train_classifier(network, bench.train, epochs=2, progress=False)
    z = extract(network, bench.train, progress=False).penultimate
    z[:, :2] = 0
    flow = coupling_flow(32, 3)
    t = FlowTraining(flow, z, normalize=True, noise=0.02, learning_rate=1e-3, batch_size=64)
    flow.initialize(t.batch(0)[0], class_moments(z, torch.zeros(len(z)).long(), "diagonal"))
    before = t.log_prob(t.rows)
    t.run(2000)  # raises when it is lost
    assert t.log_prob(t.rows) > before and weights(flow).isfinite().all()


def test_a_lost_likelihood_names_the_layer_and_leaves_the_last_good_flow():
    t = FlowTraining(glow(K, 4).double(), Z, rows=ROWS, held=HELD, learning_rate=1.0, batch_size=50)
    message = r"no longer finite after \d+ updates: it is lost in layer \d+ of 12, \w+; learning_rate=1 "
    with pytest.raises(ValueError, match=message):
        t.fit(500, check_every=2, patience=1000)
    assert weights(t.flow).isfinite().all()
    assert t.log_prob(HELD) == pytest.approx(max(v for v in t.history.val if v == v))


class Box(nn.Module):
    """A density of bounded support."""

    def __init__(self):
        super().__init__()
        self.side = nn.Parameter(torch.ones(()))

    def log_prob(self, x, labels=None):
        return torch.where(x.abs().amax(1) < self.side, -K * self.side.log(), -torch.inf)


def test_a_likelihood_that_is_not_finite_at_the_start_is_named():
    t = FlowTraining(Box(), Z, rows=ROWS, held=HELD)
    with pytest.raises(ValueError, match=r"not finite at the start: the mean log-density is -inf of rows"):
        t.fit(10)
    assert not t.history.update


def test_autocast_trains_nearly_as_well():
    t = FlowTraining(coupling_flow(K, 2, [8]), Z, noise=0.1, learning_rate=1e-2, autocast=True)
    exact = FlowTraining(coupling_flow(K, 2, [8]), Z, noise=0.1, learning_rate=1e-2)
    assert t.run(100) == pytest.approx(exact.run(100), abs=0.1)
    assert not torch.equal(weights(t.flow), weights(exact.flow))
    assert all(p.dtype == torch.float32 for p in t.flow.parameters())


# -- stopping and going on --------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_end(tmp_path):
    whole = training()
    history = whole.fit(60, check_every=20)
    checkpoint = Checkpoint(tmp_path / "new" / "flow.pt", "this one")
    broken = training()

    def stop(updates: int) -> float:
        if broken.update == 40:
            raise Interrupted
        return FlowTraining.run(broken, updates)

    broken.run = stop
    with pytest.raises(Interrupted):
        broken.fit(60, check_every=20, checkpoint=checkpoint)
    assert checkpoint.path.exists()
    again = training()
    assert again.fit(60, check_every=20, checkpoint=checkpoint) == history
    assert torch.equal(weights(again.flow), weights(whole.flow))
    assert list(checkpoint.path.parent.iterdir()) == []  # done: nothing is left, no partial file either


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "flow.pt"
    Checkpoint(path, "mine").save(training())
    with pytest.raises(ValueError, match="belongs to other data or options; delete it"):
        training().fit(10, checkpoint=Checkpoint(path, "yours"))
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        training().fit(10, checkpoint=Checkpoint(path, "mine"))


def test_saving_fails_without_leaving_anything(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "flow.pt", "mine")
    checkpoint.save(training())
    before = checkpoint.path.read_bytes()

    def full(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(training())
    assert checkpoint.path.read_bytes() == before and list(tmp_path.iterdir()) == [checkpoint.path]

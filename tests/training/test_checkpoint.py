"""Laws of checkpoints: what is saved comes back, whole or not at all, and only to the training it belongs to."""

import pytest
import torch
from torch import nn

from ood_lib.training.checkpoint import Checkpoint


def layer(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def test_what_is_saved_comes_back(tmp_path):
    checkpoint, fresh = Checkpoint(tmp_path / "new" / "folder" / "a.pt", "mine"), layer(1)
    checkpoint.save(layer())
    assert checkpoint.load(fresh) and torch.equal(fresh.weight, layer().weight)
    assert [p.name for p in checkpoint.path.parent.iterdir()] == ["a.pt"]
    checkpoint.remove()
    assert not checkpoint.path.exists()


def test_without_a_file_nothing_happens(tmp_path):
    fresh, checkpoint = layer(), Checkpoint(tmp_path / "a.pt", "mine")
    assert checkpoint.load(fresh) is False and torch.equal(fresh.weight, layer().weight)
    checkpoint.remove()


def test_that_of_another_training_is_refused(tmp_path):
    Checkpoint(tmp_path / "a.pt", "mine").save(layer())
    fresh = layer(1)
    with pytest.raises(ValueError, match=r"a\.pt belongs to other data or options; delete it, or name another"):
        Checkpoint(tmp_path / "a.pt", "yours").load(fresh)
    assert torch.equal(fresh.weight, layer(1).weight)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("what was in the file has been run",))


@pytest.mark.parametrize("content", [b"no checkpoint", {"state": {}}, {"state": Trap(), "key": "mine"}])
def test_what_is_no_checkpoint_is_named_and_never_run(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"a\.pt is no checkpoint"):
        Checkpoint(path, "mine").load(layer())


def test_a_failed_save_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoint, fresh = Checkpoint(tmp_path / "a.pt", "mine"), layer(2)
    checkpoint.save(layer())

    def full(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(layer(1))
    assert checkpoint.load(fresh) and torch.equal(fresh.weight, layer().weight)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]

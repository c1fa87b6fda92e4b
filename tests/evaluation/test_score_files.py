"""Scores of picture files: the table says what Python says, and a broken picture ends nothing."""

import csv
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ood_lib as ood
from ood_lib.detectors.saved import made_for
from ood_lib.evaluation import score_command
from ood_lib.evaluation.score_command import main

score_files_module = importlib.import_module("ood_lib.evaluation.score_files")  # its function has the same name
Image = pytest.importorskip("PIL.Image")

OWN = """
import torch
from torch import nn

def net(num_classes=4):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(24, num_classes))

def bare():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Identity())

def other():
    return nn.Sequential(*[*net()][:2], nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4))
"""

FRAME = ood.ImageFormat(3, 8)
CLASSES = ("ant", "bee", "cow", "dog")
COLUMNS = ["path", "score", "p_value", "decision", "class", "name", "error"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with pictures, a network of the reader's own and a detector that was fitted with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scored_net.py").write_text(OWN)
    random = np.random.default_rng(0)
    for folder, count in (("known", 40), ("new", 7), ("new/deep", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for i in range(count):
            side = 12 if i % 2 else 8
            pixels = random.integers(0, 120 if folder == "known" else 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i:02}.png")
    yield tmp_path
    sys.modules.pop("scored_net", None)


def files(folder: str) -> ood.ImageFiles:
    return ood.ImageFiles(Path(folder), score_command.find_pictures(Path(folder)), frame=FRAME)


def fitted(kind, spec="scored_net:net", tpr=0.9, **options):
    """The detector, its network, and the file that was written."""
    network = ood.load_network(spec)
    known = ood.extract(network, files("known"), progress=False)
    known = ood.Features(penultimate=known.penultimate, logits=known.logits, labels=torch.arange(len(known)) % 4)
    detector = kind(**options).fit(known[:20]).calibrate(known[20:], tpr=tpr)
    detector.save("detector.safetensors", network=network, frame=FRAME, classes=CLASSES)
    return detector, network


def run(*arguments, capsys) -> tuple[int, list[dict[str, str]], str]:
    capsys.readouterr()
    try:
        status = main([*arguments])
    except SystemExit as left:
        status = int(left.code)
    out, err = capsys.readouterr()
    return status, list(csv.DictReader(io.StringIO(out))), err


@pytest.mark.parametrize("kind, options", [(ood.KNN, {"k": 3}), (ood.Energy, {}), (ood.Mahalanobis, {})])
def test_the_table_says_what_python_says_to_the_bit(place, capsys, kind, options):
    detector, network = fitted(kind, **options)
    status, rows, _ = run(
        "detector.safetensors", "new", "--model", "scored_net:net", "--batch-size", "4", capsys=capsys
    )
    seen = ood.extract(network, files("new"), batch_size=4, progress=False)
    assert [row["path"] for row in rows] == [os.path.join("new", name) for name in files("new").names]
    assert [float(row["score"]) for row in rows] == detector.score(seen).tolist()
    assert [float(row["p_value"]) for row in rows] == detector.p_values(seen).tolist()
    assert [row["decision"] == "refuse" for row in rows] == detector.is_ood(seen).tolist()
    assert [int(row["class"]) for row in rows] == seen.logits.argmax(1).tolist()
    assert [row["name"] for row in rows] == [CLASSES[i] for i in seen.logits.argmax(1)]
    assert status == int(detector.is_ood(seen).any())


@pytest.mark.processes
def test_another_process_in_another_folder_gives_the_same_bits(place, tmp_path_factory, capsys):
    detector, network = fitted(ood.Energy)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("detector.safetensors", "scored_net.py"):
        (elsewhere / name).write_bytes((place / name).read_bytes())
    command = [sys.executable, "-m", "ood_lib", "score", "detector.safetensors", "--model", "scored_net:net", "-"]
    names = "".join(f"{place / 'new' / name}\n" for name in files("new").names)
    env = os.environ | {"PYTHONPATH": str(Path(ood.__file__).parents[1])}
    done = subprocess.run(command, cwd=elsewhere, input=names, capture_output=True, text=True, env=env)
    assert done.returncode in (0, 1), done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    scores = detector.score(ood.extract(network, files("new"), batch_size=32, progress=False))
    assert [float(row["score"]) for row in rows] == scores.tolist()
    assert "9 pictures" in done.stderr


@pytest.mark.processes
def test_a_reader_who_leaves_is_no_error(place):
    fitted(ood.Energy)
    script = (
        f"{sys.executable} -m ood_lib score detector.safetensors --model scored_net:net --quiet --batch-size 1 "
        "$(for i in $(seq 300); do echo known; done) | head -n 2; echo status ${PIPESTATUS[0]}"
    )
    env = os.environ | {"PYTHONPATH": str(Path(ood.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", script], cwd=place, capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[0] == ",".join(COLUMNS)
    assert done.stdout.splitlines()[-1] == "status 141"
    assert done.stderr == ""


def test_a_broken_picture_is_a_row_that_says_so(place, capsys):
    detector, network = fitted(ood.Energy)
    (place / "new" / "03.png").write_bytes(b"no picture")
    arguments = ("detector.safetensors", "new", "lost.png", "--model", "scored_net:net")
    status, rows, said = run(*arguments, capsys=capsys)
    assert status == score_command.UNREADABLE
    assert len(rows) == 10
    broken = [row for row in rows if row["error"]]
    assert [row["path"] for row in broken] == [os.path.join("new", "03.png"), "lost.png"]
    assert "cannot be read as a picture" in broken[0]["error"]
    assert broken[1]["error"] == "there is no such file"
    assert {row["score"] + row["decision"] + row["class"] for row in broken} == {""}
    whole = [name for name in files("new").names if name != "03.png"]
    seen = ood.extract(network, ood.ImageFiles(Path("new"), whole, frame=FRAME), progress=False)
    found = torch.tensor([float(row["score"]) for row in rows if not row["error"]])
    assert torch.allclose(found, detector.score(seen), atol=1e-6)
    assert "2 not readable" in said


def test_a_picture_on_which_the_network_overflows_ends_nothing(place):
    detector, network = fitted(ood.Energy)

    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.within = network

        def represent(self, images):
            made = self.within.represent(images)
            return made._replace(logits=torch.where(images.mean((1, 2, 3))[:, None] > 0.99, torch.inf, made.logits))

    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save("white.png")
    paths = ["known/00.png", "white.png", "known/01.png"]
    rows = list(ood.score_files(detector, Overflowing(), paths, FRAME))
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert "NaN or infinity" in rows[1].error
    assert rows[1].score is None


@pytest.mark.parametrize("threshold, status", [("1e9", 0), ("-1000000.0", 1)])
def test_the_exit_status_is_that_of_grep(place, capsys, threshold, status):
    fitted(ood.Energy)
    arguments = ("detector.safetensors", "new", "--model", "scored_net:net", "--threshold", threshold)
    found, rows, _ = run(*arguments, capsys=capsys)
    assert found == status
    assert {row["decision"] for row in rows} == {("accept", "refuse")[status]}


def test_alpha_decides_by_the_p_value(place, capsys):
    fitted(ood.Energy)
    arguments = ("detector.safetensors", "known", "new", "--model", "scored_net:net", "--alpha", "0.3")
    _, rows, _ = run(*arguments, capsys=capsys)
    assert {row["decision"] for row in rows} == {"accept", "refuse"}
    assert all((row["decision"] == "refuse") == (float(row["p_value"]) <= 0.3) for row in rows)
    status, _, said = run(*arguments[:-1], "0.01", capsys=capsys)
    assert status == 2
    assert "0.0476 <= alpha" in said


def test_another_network_is_refused_and_named(place, capsys):
    fitted(ood.Energy)
    torch.save(ood.load_network("scored_net:net").model.state_dict(), "same.pt")
    state = torch.load("same.pt", weights_only=True)
    torch.save(state | {"4.bias": state["4.bias"] + 1e-3}, "almost.pt")
    arguments = ("detector.safetensors", "new", "--model", "scored_net:net")
    assert run(*arguments, "--weights", "same.pt", capsys=capsys)[0] in (0, 1)
    status, rows, said = run(*arguments, "--weights", "almost.pt", capsys=capsys)
    assert (status, rows) == (2, [])
    assert "was fitted with another network" in said
    status, _, said = run(*arguments, "--mean", "0", "0", "0", "--std", "1", "1", "0.9", capsys=capsys)
    assert status == 2
    assert "mean or standard deviation differ" in said
    status, _, said = run(*arguments, "--image-size", "10", capsys=capsys)
    assert status == 2
    assert "leave out --image-size" in said
    assert run(*arguments, "--weights", "almost.pt", "--unchecked", "--image-size", "8", capsys=capsys)[0] in (0, 1)


def test_what_the_network_lacks_is_named_before_the_first_picture(place):
    detector, _ = fitted(ood.Energy)
    network = ood.load_network("scored_net:bare", head=False)
    with pytest.raises(ValueError, match=r"Energy reads logits, and the network computes penultimate"):
        ood.score_files(detector, network, iter(["never"]), FRAME)
    near, _ = fitted(ood.KNN, k=3)
    with pytest.raises(ValueError, match="54 wide"):
        ood.score_files(near, ood.load_network("scored_net:other"), iter(["never"]), FRAME)


def test_a_network_without_logits_predicts_no_class(place):
    bare = ood.load_network("scored_net:bare", head=False)
    plain = ood.KNN(k=3).fit(ood.extract(bare, files("known"), progress=False))
    rows = list(ood.score_files(plain, bare, ["new/00.png"], FRAME, threshold=0.5))
    assert rows[0].predicted is None
    assert rows[0].p_value is None, "it was never calibrated"


def test_paths_are_taken_as_they_come_and_a_few_batches_ahead_at_most(place):
    detector, network = fitted(ood.Energy)
    taken = []

    def endless():
        while True:
            taken.append("known/00.png")
            yield taken[-1]

    rows = ood.score_files(detector, network, endless(), FRAME, batch_size=4)
    for _ in range(10):
        next(rows)
    assert len(taken) <= 16


def test_a_pattern_a_folder_and_a_list_mean_the_same(place, capsys, monkeypatch):
    fitted(ood.Energy)
    (place / "new" / ".hidden.png").write_bytes(b"")
    (place / "new" / "notes.txt").write_text("")
    base = ("detector.safetensors", "--model", "scored_net:net", "--quiet")
    by_folder = run(*base, "new", capsys=capsys)[1]
    assert run(*base, "new/**/*.png", capsys=capsys)[1] == by_folder
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(r["path"] for r in by_folder).encode())))
    assert run(*base, "-", capsys=capsys)[1] == by_folder
    for wrong in ("*.jpg", "empty"):
        (place / "empty").mkdir(exist_ok=True)
        status, _, said = run(*base, wrong, capsys=capsys)
        assert status == 2
        assert "there is no picture in" in said


def test_names_of_classes_come_from_the_file_or_a_folder(place, capsys):
    fitted(ood.Energy)
    (place / "names.txt").write_text("\n".join("wxyz"))
    for name in "abcd":
        (place / "tree" / name).mkdir(parents=True)
    base = ("detector.safetensors", "new", "--model", "scored_net:net", "--classes")
    assert all(row["name"] == "wxyz"[int(row["class"])] for row in run(*base, "names.txt", capsys=capsys)[1])
    assert all(row["name"] == "abcd"[int(row["class"])] for row in run(*base, "tree", capsys=capsys)[1])
    (place / "names.txt").write_text("three\nare\nfew")
    status, _, said = run(*base, "names.txt", capsys=capsys)
    assert status == 2
    assert "3 names of classes, and the network has 4 outputs" in said


def test_the_table_in_a_file_is_whole(place, capsys):
    fitted(ood.Energy)
    base = ("detector.safetensors", "new", "--model", "scored_net:net")
    shown = run(*base, capsys=capsys)[1]
    assert run(*base, "--out", "scores.csv", capsys=capsys)[1] == []
    assert list(csv.DictReader((place / "scores.csv").open())) == shown


def test_a_detector_whose_file_says_no_network_is_warned_of(place, capsys):
    detector, _ = fitted(ood.Energy)
    detector.save("plain.safetensors")
    assert made_for("plain.safetensors") is None
    with pytest.warns(UserWarning, match="does not say what network it was fitted with"):
        status, _, said = run("plain.safetensors", "new", "--model", "scored_net:net", capsys=capsys)
    assert status == 2
    assert "give --image-size" in said
    with pytest.warns(UserWarning, match="does not say what network"):
        status, rows, _ = run(
            "plain.safetensors", "new", "--model", "scored_net:net", "--image-size", "8", capsys=capsys
        )
    assert len(rows) == 9


def test_without_a_threshold_nothing_is_decided(place):
    detector, network = fitted(ood.Energy)
    with pytest.raises(ood.NotFittedError, match="has no threshold"):
        ood.score_files(ood.Energy(), network, [], FRAME)
    with pytest.raises(ValueError, match="expected one of them"):
        ood.score_files(detector, network, [], FRAME, alpha=0.1, threshold=0.0)


def test_a_threshold_that_is_no_number_is_refused(place, capsys):
    detector, network = fitted(ood.Energy)
    with pytest.raises(ValueError, match="threshold=nan was given; expected a number"):
        ood.score_files(detector, network, ["new/00.png"], FRAME, threshold=float("nan"))
    arguments = ("detector.safetensors", "new", "--model", "scored_net:net", "--threshold", "nan")
    status, rows, said = run(*arguments, capsys=capsys)
    assert (status, rows) == (2, []) and "threshold=nan" in said


def test_a_frame_without_its_network_is_refused(place):
    detector, network = fitted(ood.Energy)
    with pytest.raises(ValueError, match="expected both of them"):
        detector.save("detector.safetensors", network=network)
    made = made_for("detector.safetensors")
    assert made is not None
    assert (made.frame, made.classes) == (FRAME, CLASSES)


def test_a_threshold_may_lie_on_another_device_than_the_scores(place, monkeypatch):
    detector, network = fitted(ood.Energy)

    class Far:
        """A threshold that can be compared only after it was brought to the device of the scores."""

        def to(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
            assert device == torch.device("cpu")
            return detector.threshold.to(dtype)

    plain = list(ood.score_files(detector, network, ["new/00.png"], FRAME, device="cpu"))
    monkeypatch.setattr(score_files_module, "_limit", lambda *_: Far())
    assert list(ood.score_files(detector, network, ["new/00.png"], FRAME, device="cpu")) == plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_second_call_on_a_gpu_says_the_same(place):
    detector, network = fitted(ood.Energy)
    first, second = (list(ood.score_files(detector, network, ["new/00.png"], FRAME, device="cuda")) for _ in range(2))
    assert first == second

"""The page "In production": its files run, its service answers as Python does, its numbers are those measured."""

import base64
import importlib.util
import io
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ood_book.site.production import fragments

import ood_lib as ood
from ood_lib.evaluation.score_command import EXIT, _parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book/production.md").read_text(encoding="utf-8")
FILES = ROOT / "book/production"

NET = """
import torch
from torch import nn

def net(num_classes=2):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(24, num_classes))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Pictures, a network of the reader's own and its weights, in the current folder."""
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "production_net.py").write_text(NET)
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 12), ("test", 3)):
        for name, most in (("cat", 100), ("dog", 200)):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, most, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{i}.png")
    torch.save(ood.load_network("production_net:net").model.state_dict(), "model.pt")
    yield tmp_path
    sys.modules.pop("production_net", None)


def run(name):
    """A file of the page, on the small network."""
    text = (FILES / name).read_text(encoding="utf-8")
    small = text.replace(
        '"torchvision:resnet50", weights="model.pt"', '"production_net:net", weights="model.pt", image_size=16'
    )
    assert small != text or "load_network" not in text
    names = {"__name__": "page"}
    exec(compile(small, name, "exec"), names)
    return names


def service(monkeypatch, **environment):
    pytest.importorskip("fastapi", reason="the service needs fastapi")
    pytest.importorskip("httpx", reason="the client needs httpx")
    given = {"DETECTOR": "detector.safetensors", "MODEL": "production_net:net", "WEIGHTS": "model.pt"} | environment
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("service", FILES / "service.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "service", module)
    spec.loader.exec_module(module)
    return module


def test_the_service_answers_as_python_does(place, monkeypatch):
    made = run("fit.py")
    from fastapi.testclient import TestClient

    files = sorted((place / "pictures/test").rglob("*.png"))
    body = {"pictures": [base64.b64encode(file.read_bytes()).decode() for file in files]}
    answer = TestClient(service(monkeypatch).app).post("/score", json=body)
    assert answer.status_code == 200
    seen = ood.extract(made["network"], made["bench"].test, progress=False)
    rows, detector = answer.json(), made["detector"]
    assert [row["score"] for row in rows] == pytest.approx(detector.score(seen).tolist(), rel=1e-5)
    assert [row["p_value"] for row in rows] == pytest.approx(detector.p_values(seen).tolist())
    assert [row["refused"] for row in rows] == detector.is_ood(seen).tolist()
    assert [row["class"] for row in rows] == seen.logits.argmax(1).tolist()


def test_the_service_says_what_is_no_picture_and_refuses_another_network(place, monkeypatch):
    run("fit.py")
    from fastapi.testclient import TestClient

    client = TestClient(service(monkeypatch).app)
    wrong = client.post("/score", json={"pictures": [base64.b64encode(b"no picture").decode()]})
    assert wrong.status_code == 422
    assert "the picture cannot be read as a picture" in wrong.json()["detail"]
    state = torch.load("model.pt", weights_only=True)
    torch.save({name: x + 0.01 for name, x in state.items()}, "other.pt")
    with pytest.raises(ValueError, match="was fitted with another network"):
        service(monkeypatch, WEIGHTS="other.pt")


def test_the_exported_program_scores_as_the_library_does(place):
    made = run("fit.py")
    images = torch.stack([image for image, _ in made["bench"].test])
    scores, logits = run("export.py")["again"](images)
    seen = ood.extract(made["network"], made["bench"].test, progress=False)
    assert torch.allclose(scores, made["detector"].score(seen), atol=1e-4)
    assert torch.allclose(logits, seen.logits, atol=1e-5)


def test_the_file_on_drift_reads_what_the_command_writes(place, capsys):
    from ood_lib.evaluation.score_command import main

    run("fit.py")
    command = ["detector.safetensors", "pictures/val", "lost.png", "--model", "production_net:net"]
    main([*command, "--weights", "model.pt", "--out", "scores.csv", "--quiet"])
    names = run("drift.py")
    assert len(names["scores"]) == 24
    assert names["evidence"] < names["watch"].patience
    assert "have changed" not in capsys.readouterr().out


def test_the_commands_of_the_page_are_understood():
    lines = re.sub(r"\\\n\s*", "", PAGE)
    found = re.findall(r"python -m ood_lib score (.*?)(?: > |$)", lines, re.M)
    assert len(found) >= 2
    for line in found:
        assert _parser().parse_intermixed_args(shlex.split(line)).model == "torchvision:resnet50"


def test_the_columns_and_the_exit_statuses_are_those_of_the_command():
    section = PAGE.split("## Score files")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    assert named == ["path", "score", "p_value", "decision", "class", "name", "error"]
    for status in "0123":
        assert re.search(rf"\b{status} (if|every|at least|the command)", section)
        assert re.search(rf"\b{status} ", EXIT)


def test_the_numbers_of_the_page_are_those_measured():
    found = json.loads((ROOT / "book/production/measured.json").read_text())
    made = fragments(ROOT / "book/production/measured.json")
    for name, text in made.items():
        assert f"_generated/production-{name}.md" in PAGE
        assert "Not measured" not in text
        assert name == "promise" or found[name]["origin"]["command"].startswith(
            f"python book/production/measure.py {name}"
        )
    for row in found["service"]["rows"]:
        rate, batch = row["requests_per_second"], row["batch"]
        assert f"| {batch} | {row['clients']} | {rate:.1f} | {rate * batch:.0f} |" in made["service"]
    assert all(f"| {name} |" in made["watch"] for name in found["watch"]["delay"])
    assert "too much" not in made["export"], "a wrong score is not exported without a word"


def test_the_evidence_raises_no_more_false_alarms_than_it_promises():
    watch = json.loads((ROOT / "book/production/measured.json").read_text())["watch"]
    assert watch["mean_images_at_least"] >= watch["patience"]
    band = watch["band"]
    assert band["beta_binomial"]["low"] <= band["promised"] < band["binomial"]["low"]


def test_a_service_of_few_lines():
    text = (FILES / "service.py").read_text(encoding="utf-8")
    code = [line for line in text.split("\n") if line.strip() and not line.strip().startswith(('"""', "#"))]
    assert len(code) <= 32
    assert all(len(line) <= 92 for line in text.split("\n"))
    assert io.StringIO(text).readline().startswith('"""')


def test_what_a_threshold_may_refuse_is_what_it_does_refuse():
    (low, high) = map(
        int, re.search(r"between (\d+) % and (\d+) %", fragments(FILES / "measured.json")["promise"]).groups()
    )
    generator = np.random.default_rng(0)
    thresholds = np.sort(generator.random((20_000, 100)), axis=1)[
        :, 95
    ]  # rank 96 of 100; a uniform score is its own share
    assert (round(100 * np.quantile(1 - thresholds, 0.025)), round(100 * np.quantile(1 - thresholds, 0.975))) == (
        low,
        high,
    )

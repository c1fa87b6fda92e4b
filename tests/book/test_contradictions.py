"""What a run says agrees with what it shows: its sentences are held against the numbers and tables beside them."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py")}
RUNS = sorted(path for path in (ROOT / "_build/run").glob("*/[0-9]*.ipynb") if path.stem in CHAPTERS)
NUMBER = r"([+−-]?\d+(?:\.\d+)?)"
WORD = r"(better|worse|level|cannot tell|no clear difference|no difference that shows)"
INTERVAL = re.compile(rf"{NUMBER} (?:<small>)?\[{NUMBER}, {NUMBER}\](?:</small>)?(?:\*\*)?(?: \(?{WORD})?")
HALF = re.compile(rf"{NUMBER} ± {NUMBER}\*\* \({WORD}")
COURSE = re.compile(rf"(rises|falls) from {NUMBER}(?: %)? to {NUMBER}")
BETWEEN = re.compile(rf"between {NUMBER} and {NUMBER}")
EMPTY = re.compile(r"(?:\b(?:on|than|of)|:) ?[.;](?=\s|$)|\(\)(?!`)|, ,|: ;|:\s*\Z")
MANY = re.compile(r"(?<![\d.,])1 (?:networks|seeds|sets|splits|draws|flows|trainings)\b")
SAID = re.compile(r"(ahead|behind|helps on far sets|hurts on far sets), \*\*[^*]*\*\* \((better|worse|no|cannot|one)")
MEANS = {"ahead": "better", "behind": "worse", "helps on far sets": "better", "hurts on far sets": "worse"}
LOWEST = re.compile(rf"The lowest single number is .*: {NUMBER} %\. (No score is inverted)?")
DECIDES = re.compile(r"this run (.*?)\.\*\* Hard against plain in eval mode: (.*?)\. In training", re.S)
DECIDED = {"supports the claim": {"better"}, "speaks against the claim": {"worse"}}
ON = re.compile(r"(better|worse|level|cannot tell) on ")
GROUP = re.compile(r"\b(near|far)(?:-OOD)?:? (?=better|worse|level|cannot tell)")


def value(text):
    return float(text.replace("−", "-"))


def outputs(notebook):
    """Everything that a run says or shows: each text as it is, each table with its tags."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found = data.get("text/markdown") or data.get("text/html") or output.get("text") or ""
            yield "".join(found)


def plain(text):
    """Without tags and styles; cells of a table apart."""
    text = re.sub(r"<style.*?</style>|<script.*?</script>|data:[^\"]*", "", text, flags=re.S)
    return html.unescape(re.sub(r"</?(?!/?small)[^>]*>", " ", text))


def wrong(word, found, low, high):
    """Whether what is said of a difference is not what its interval, as it is shown, allows."""
    return {
        "better": found < 0 or low < 0,
        "worse": found > 0 or high > 0,
        "level": low < -1 or high > 1,
        "cannot tell": not low <= 0 <= high,
        "no clear difference": not low <= 0 <= high,
    }.get(word, False)


def slips(text):
    """What a text says that its own numbers do not: complaints, each with its words."""
    text, bad = plain(text), []
    bad += ["not a number: " + text[max(0, m.start() - 60) : m.end() + 20] for m in re.finditer(r"\bnan\b", text)]
    bad += ["nothing is named: " + text[max(0, m.start() - 60) : m.end()] for m in EMPTY.finditer(text)]
    bad += ["one of them: " + text[max(0, m.start() - 40) : m.end()] for m in MANY.finditer(text)]
    for m in INTERVAL.finditer(text):
        found, low, high = map(value, m.groups()[:3])
        if not low <= found <= high or wrong(m[4], found, low, high):
            bad.append("interval: " + m[0])
    for m in HALF.finditer(text):
        found, half = value(m[1]), value(m[2])
        if wrong(m[3], found, found - half, found + half):
            bad.append("interval: " + m[0])
    bad += [m[0] for m in COURSE.finditer(text) if (value(m[2]) < value(m[3])) != (m[1] == "rises")]
    bad += [m[0] for m in BETWEEN.finditer(text) if value(m[1]) > value(m[2])]
    bad += [m[0] for m in SAID.finditer(text) if MEANS[m[1]] != m[2]]
    bad += [m[0] for m in LOWEST.finditer(text) if (value(m[1]) >= 50) != bool(m[2])]
    for m in DECIDES.finditer(text):
        signs = {w for w in ("better", "worse") if w in m[2]}
        bad += [m[0]] if DECIDED.get(m[1], signs) != signs or (m[1] in DECIDED) != (len(signs) == 1) else []
    return bad


def verdicts_shown(texts):
    """Verdicts of every table of verdicts: caption -> network -> group -> word."""
    shown = {}
    for text in texts:
        caption = re.search(r"<caption>(.*?); difference of the AUROC", text, re.S)
        if caption:
            rows = [
                re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", text, re.S)
            ]
            header = [c.split("-")[0].split()[0] if c.split() else "" for c in map(html.unescape, rows[0][1:])]
            words = {r[0]: {g: re.search(rf"{WORD}\s*$", c.strip()) for g, c in zip(header, r[1:])} for r in rows[1:]}
            words = {n: {g: m[1] for g, m in row.items() if m} for n, row in words.items()}
            shown[html.unescape(caption[1]).strip()] = {n: row for n, row in words.items() if row}
    return shown


def disagreements(texts):
    """Lines that sum a table up and name a network under another word than the table does."""
    texts, bad = list(texts), []
    tables = verdicts_shown(texts)
    for line in (line for text in texts for line in text.split("\n") if line.startswith("* ")):
        claim = max((c for c in tables if c in line), key=len, default=None)  # "A against B, both tuned" has its own
        if claim is None:
            continue
        summary = line.split(claim, 1)[1]
        parts = GROUP.split(summary)
        for group, clause in (dict(zip(parts[1::2], parts[2::2])) or {"mean": summary}).items():
            pieces = ON.split(clause)
            named = list(zip(pieces[1::2], pieces[2::2]))
            for network, row in tables[claim].items():
                alone = re.compile(rf"(?<![\w-]){re.escape(network)}(?![\w-])")
                said = [word for word, names in named if alone.search(names)]
                if said != [row[group]]:
                    bad.append(f"{claim}, {group}: {network} is {row[group]}, said is {said}")
    return bad


def contradictions(path):
    texts = list(outputs(json.loads(path.read_text(encoding="utf-8"))))
    return [slip for text in texts for slip in slips(text)] + disagreements(texts)


@pytest.mark.parametrize("path", RUNS, ids=[f"{p.parent.name}-{p.stem}" for p in RUNS])
def test_no_sentence_of_a_run_contradicts_its_numbers(path):
    assert contradictions(path) == []


# ------------------------------------------------------------------------------------------------ other networks

ELSEWHERE = {  # chapter: what is given in place of its defaults; BANK has one near and one far set
    "05_protocol": {"benchmark": "BANK", "benchmarks": '["BANK"]'},
    "06_certainty": {"benchmark": "BANK", "benchmarks": '["BANK"]', "seeds": "1"},
    "07_classical": {"benchmark": "BANK", "seeds": "1"},
    "10_weiper": {"benchmark": "BANK", "benchmarks": '["cifar100-densenet"]', "seeds": "1"},
    "20_heat": {"benchmark": "cifar10-densenet", "benchmarks": '["BANK"]', "seeds": "1"},
    "30_flow": {"benchmark": "cifar10-densenet", "benchmarks": '["cifar10-resnet56"]', "seeds": "1"},
    "40_msma": {"seeds": "1", "fit_on": "train"},
    "50_snojoe": {"seeds": "1"},
    "60_cifar10": {"benchmarks": '["cifar100-densenet"]'},
}


def small_bank(folder):
    """A shipped bank with one near and one far set."""
    shutil.copytree(ROOT / "ood_lib/shipped/cifar10-resnet56", folder)
    about = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    for name in ("near/cifar100", "far/mnist", "far/textures"):
        (folder / f"{name}.safetensors").unlink()
        del about["sets"][name]
    (folder / "benchmark.json").write_text(json.dumps(about), encoding="utf-8")
    return f"bank:{folder}"


@pytest.mark.processes
@pytest.mark.skipif(not os.environ.get("ELSEWHERE"), reason="takes minutes: ELSEWHERE=1 pytest runs it")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_sentence_contradicts_its_numbers_on_other_networks(name, tmp_path):
    bank = small_bank(tmp_path / "bank")
    given = [(k, v.replace("BANK", bank)) for k, v in ELSEWHERE[name].items()]
    words = [w for pair in given for w in ("-p", *pair)]
    command = [sys.executable, "-m", "ood_book.cli", "run", name, "--profile", "quick", "--out", str(tmp_path), *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert contradictions(tmp_path / f"{name}.ipynb") == []


# ------------------------------------------------------------------------------------------------ the law can fail


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("+2.0 [+1.0, +3.0] better", "+2.0 [−1.0, +3.0] better"),
        ("−2.0 [−3.0, −1.0] worse", "+2.0 [+1.0, +3.0] worse"),
        ("+0.2 [−0.5, +0.9] level", "+0.2 [−0.5, +1.9] level"),
        ("+0.2 [−4.0, +4.4] cannot tell", "+2.2 [+0.1, +4.4] cannot tell"),
        ("90.1 [75.7, 100.0]", "90.1 [95.7, 100.0]"),
        ("90.1 <small>[75.7, 100.0]</small>", "90.1 <small>[nan, nan]</small>"),
        ("**+1.6 ± 1.2** (better)", "**+1.0 ± 1.2** (better)"),
        ("the AUROC falls from 91.2 to 80.0", "the AUROC falls from 80.0 to 91.2"),
        ("norms lie between 0.20 and 0.40", "norms lie between 0.40 and 0.20"),
        ("the networks are behind, **−4.0 [−5.0, −3.0]** (worse; ahead on 0 of 3 networks)",
         "the networks are ahead, **−4.0 [−5.0, −3.0]** (worse; ahead on 0 of 3 networks)"),
        ("The lowest single number is MSP on a: 67.9 %. No score is inverted here.",
         "The lowest single number is MSP on a: 42.9 %. No score is inverted here."),
        ("**this run supports the claim.** Hard against plain in eval mode: better on a. In training mode: level",
         "**this run supports the claim.** Hard against plain in eval mode: worse on a. In training mode: level"),
        ("better on a and b.", "better on ."),
        ("The differences:\n\n* a", "The differences:\n\n"),
        ("mean over 1 network", "mean over 1 networks"),
        ("finance", "<td>nan</td>"),
    ],
)  # fmt: skip
def test_a_slip_is_found_and_nothing_else(good, bad):
    assert slips(good) == []
    assert slips(bad)


def test_a_summary_that_names_a_network_under_another_word_is_found():
    cells = "".join(
        f"<tr><th>{n}</th><td>+2.0 [+1.0, +3.0] {w}</td></tr>" for n, w in (("net-a", "better"), ("b", "level"))
    )
    head = "<caption>A against B; difference of the AUROC in points</caption><tr><th>network</th><th>near-OOD</th></tr>"
    table = f"<table>{head}{cells}</table>"
    assert disagreements([table, "* **A against B**, near: better on net-a, level on b."]) == []
    assert len(disagreements([table, "* **A against B**, near: better on net-a and b."])) == 1
    assert len(disagreements([table, "* **A against B**, near: level on b."])) == 1

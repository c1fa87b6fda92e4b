"""What each notebook asks of reader and machine (`notebooks/notebooks.yaml`), and what other files say of it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ood_book.notebooks import Refused, sources, unknown
from ood_book.reading import minutes

__all__ = ["About", "about", "budgets", "generated", "load_yaml", "read_yaml"]

FILE = "notebooks/notebooks.yaml"
COLAB = "https://colab.research.google.com"


@dataclass(frozen=True)
class About:
    """One notebook."""

    title: str
    goal: str
    needs: str
    representation: str
    energy: str
    read: int  # minutes, counted in its text
    run: int  # minutes with the default profile on two cores
    memory: int  # peak in MB with it
    gpu: str  # with it: no, helps, needed
    data: str
    found: dict[str, Any] = field(default_factory=dict)  # of the kept results, what `ood_book.minute` shows

    @property
    def cost(self) -> str:
        """In a line."""
        gigabytes = f"{self.memory / 1000:.1f} GB"
        return f"{self.read} min to read, {self.run} min to run; {gigabytes}, GPU: {self.gpu}"


def about(root: Path) -> dict[str, About]:
    """The entries by notebook, in reading order; none where the book has no such file.

    Raises:
        Refused: an entry is missing, or is of no notebook, or its fields are not those of `About`.
    """
    if not (root / FILE).is_file():
        return {}
    entries = _entries(root)
    for name in entries:
        if name not in sources(root):
            raise unknown(f"notebook in {FILE}", name, sources(root))
    return {name: _read(source, entries.get(name, {})) for name, source in sources(root).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """The `name: value` lines of a YAML file.

    Raises:
        Refused: it is no YAML, or not such lines; the message names the file.
    """
    found = load_yaml(path) or {}
    if not isinstance(found, dict):
        raise Refused(f"{path} is not a list of `name: value` lines")
    return found


def load_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        Refused: it cannot be read, or is no YAML; the message names the file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not YAML: {error}") from error


def _entries(root: Path) -> dict[str, Any]:
    return read_yaml(root / FILE)


def budgets(root: Path) -> dict[str, float]:
    """Minutes that a run may take, by notebook; a chapter that has no entry yet runs without."""
    entries = _entries(root) if (root / FILE).is_file() else {}
    asked = {name: entry.get("run") for name, entry in entries.items() if isinstance(entry, dict)}
    return {name: minutes for name, minutes in asked.items() if isinstance(minutes, int | float)}


def _read(source: Path, entry: Any) -> About:
    entry = entry if isinstance(entry, dict) else {}
    kinds = {f.name: f.type for f in fields(About) if f.name not in ("read", "found")}
    wrong = [k for k, kind in kinds.items() if not isinstance(entry.get(k), kind)]  # type: ignore[arg-type]
    extra = sorted(set(entry) - set(kinds) - {"found"})
    if wrong or extra:
        raise Refused(f"{FILE}, {source.stem}: missing or of wrong type {wrong}, unknown {extra}")
    return About(**entry, read=minutes(source.read_text(encoding="utf-8")))


def generated(root: Path) -> dict[Path, str]:
    """The files with parts made of the entries, as they are to be."""
    entries = about(root)
    made = [(root / file, part) for file, part in PARTS.items()] if entries else []
    made += [(source, partial(_minute, name)) for name, source in sources(root).items() if name in entries]
    return {path: _with_part(path, write(root, entries)) for path, write in made}


def _with_part(path: Path, lines: list[str]) -> str:
    """The file with these lines between its two marks."""
    text = path.read_text(encoding="utf-8")
    mark = r"(?:#|<!--) made by ood-book sync[^\n]*\n(.*?)^(?:# )? *(?:#|<!--) end"
    found = re.search(rf"^((?:# (?=<))? *){mark}", text, re.M | re.S)
    if not found:
        raise Refused(f"{path} has no lines `made by ood-book sync` and `end` to write between")
    return text[: found.start(2)] + "".join(f"{found[1]}{x}".rstrip() + "\n" for x in lines) + text[found.end(2) :]


def _minutes(count: int) -> str:
    return f"{count} minute{'s' * (count != 1)}"


def _minute(name: str, root: Path, entries: dict[str, About]) -> list[str]:
    """What the box at the top of a chapter says that can be counted: what was found, and how long it takes."""
    from ood_book.minute import found  # PyTorch, which only this needs

    a = entries[name]
    gpu = {"no": "No GPU, no download.", "helps": "A GPU helps.", "needed": "It needs a GPU."}[a.gpu]
    reading = f"{_minutes(a.read)} to read, without exercises and what is folded"
    time = f"**It takes** {reading}, and {_minutes(a.run)} to run. {gpu}"
    return [*found(root, a.found), "", time] if a.found else [time]


def _readme(root: Path, entries: dict[str, About]) -> list[str]:
    config = read_yaml(root / "_config.yml").get("repository")
    if not (isinstance(config, dict) and {"url", "branch"} <= {*config}):
        raise Refused(f"{root / '_config.yml'} names no repository with url and branch")
    place = f"{COLAB}/github/{config['url'].removeprefix('https://github.com/')}/blob/{config['branch']}/notebooks"
    badge = f"{COLAB}/assets/colab-badge.svg"
    rows = [
        f"| [{a.title}](notebooks/{name}.ipynb) | {a.representation} | {a.energy} | {a.read} min | {a.run} min "
        f"| [![Open {a.title} in Colab]({badge})]({place}/{name}.ipynb) |"
        for name, a in entries.items()
    ]
    head = ["| chapter | representation | energy | read | run | open |", "|---|---|---|---:|---:|---|"]
    return [
        "",
        *head,
        *rows,
        "",
        f"All together: {_together(entries)}. These are budgets; a test fails where a run exceeds them by half.",
        "",
    ]


def _together(entries: dict[str, About]) -> str:
    """What all notebooks take, one after the other or two at a time."""
    read, run = (sum(getattr(a, name) for a in entries.values()) for name in ("read", "run"))
    return f"{read} min to read; {run} min to run one after the other, {math.ceil(run / 2)} min on two cores"


def _page(root: Path, entries: dict[str, About]) -> list[str]:
    rows = [["Notebook", "You learn", "You need", "It takes"]]
    for name, a in entries.items():
        rows.append([f"[{a.title}](../notebooks/{name})", a.goal, a.needs, f"{a.cost}; {a.data}"])
    rows.append(["all", "", "", _together(entries)])
    lines = [f"{'* -' if cell is row[0] else '  -'} {cell}" for row in rows for cell in row]
    options = [":name: tab-notebooks", ":header-rows: 1", ":widths: 16 30 27 27", ""]
    return ["", "```{list-table} What each notebook needs from you and from one core of your machine.",
            *options, *lines, "```", ""]  # fmt: skip


def _matrix(root: Path, entries: dict[str, About]) -> list[str]:
    """One job per notebook, stopped where three times its budget and ten minutes of installation have passed."""
    return [f"- {{ notebook: {name}, minutes: {10 + 3 * a.run} }}" for name, a in entries.items()]


PARTS: dict[str, Callable[[Path, dict[str, About]], list[str]]] = {
    "README.md": _readme,
    "book/how-to-use.md": _page,
    ".github/workflows/book.yml": _matrix,
    ".github/workflows/colab.yml": _matrix,
}

"""What the page on large data says of speed: tables, a figure and sentences, all read from measured files.

The files are made by `python -m tests.benchmarks.peers` and `growth`, by `tests/gpu/run.sh` on a machine with a GPU,
and by `python -m tests.benchmarks.company`. The last two may be missing; the page then says how to make them.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ood_book.site.tables import table
from ood_lib.evaluation.plots import COLORS, FULL, SERIES, theme

__all__ = [
    "add_speed",
    "draw_growth",
    "gpu_part",
    "growth_table",
    "extrapolated",
    "in_company",
    "predicted",
    "relative",
    "slope",
    "speed_table",
    "told",
]

OURS = "ood_lib"

Work = tuple[str, float]  # precision and number of operations

AXES = {"train": "fit", "test": "score", "width": "fit", "classes": "fit"}  # what is varied, and which time it drives

LABELS = {
    "train": "training images", "test": "images to score", "width": "features per image", "classes": "classes",
}  # fmt: skip

STYLES = {  # as a reader tells the lines apart without colour
    "Energy": {"color": COLORS["grey"], "linestyle": "-", "marker": "X"},
    **dict(zip(("Mahalanobis", "ViM", "KNN", "GMM", "WeiPer+KLD"), SERIES)),
}

IMAGENET = {"train": 1_281_167, "test": 50_000, "width": 2048, "classes": 1000}
FLOORS: dict[tuple[str, str], Callable[[Mapping[str, int]], Work]] = {  # operations of the matrix products
    ("KNN", "score"): lambda s: ("single", 2.0 * s["train"] * s["test"] * s["width"]),
    ("ViM", "fit"): lambda s: ("single", 1.0 * s["train"] * s["width"] ** 2),
    ("Mahalanobis", "fit"): lambda s: ("double", 1.0 * s["train"] * s["width"] ** 2),
    ("GMM", "fit"): lambda s: ("double", 1.0 * s["train"] * s["width"] ** 2),
}

HUGE = IMAGENET | {"train": 100_000_000}


# -- beside the peers -------------------------------------------------------------------------------------------------


def limit(work: Mapping[str, float] | None, rates: Mapping[str, float]) -> float | None:
    """The least seconds of one thread for matrix products and memory traffic, side by side; None where unknown."""
    if work is None:
        return None
    products = work["single"] / rates["single"] + work["double"] / rates["double"]
    return max(products, work["moved"] / rates["memory"])


def relative(row: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
    """What the table says of a measured row: least seconds, spread, best peer, and ratios to it and to the limit."""
    least = {name: min(way["seconds"]) for name, way in row["ways"].items()}
    ours = least.pop(OURS)
    best = min(least, key=lambda name: least[name], default=None)
    bound = limit(row["work"], rates)
    return {
        "seconds": ours,
        "spread": statistics.median(row["ways"][OURS]["seconds"]) / ours - 1,
        "peer": best,
        "ratio": ours / least[best] if best else None,
        "limit": ours / bound if bound else None,
        "memory": row["ways"][OURS]["memory_mb"],
        "peer_memory": row["ways"][best]["memory_mb"] if best else None,
    }


def speed_table(content: Mapping[str, Any]) -> str:
    """The rows as a table of Markdown."""
    head = ["", "ood_lib, s", "median run", "best peer", "time / peer", "time / limit", "MB", "peer's MB"]
    lines = []
    for name, row in content["rows"].items():
        r = relative(row, content["machine"]["rates"])
        numbers = [_digits(r["seconds"]), f"+{100 * r['spread']:.0f} %", r["peer"] or "none"]
        numbers += ["–" if r[key] is None else _digits(r[key]) for key in ("ratio", "limit")]
        numbers += ["–" if r[key] is None else f"{r[key]:.0f}" for key in ("memory", "peer_memory")]
        lines.append([name, *numbers])
    return table(head, lines, words=(0, 3))


def compared(content: Mapping[str, Any], level: float = 1.1) -> str:
    """How the rows stand to peers and limit, in sentences; within 10 % counts as level."""
    found = {name: relative(row, content["machine"]["rates"]) for name, row in content["rows"].items()}
    ratios = {name: r["ratio"] for name, r in found.items() if r["ratio"] is not None}
    slower = {name: ratio for name, ratio in ratios.items() if ratio > level}
    text = f"In {len(ratios) - len(slower)} of {len(ratios)} rows the library is level with its best peer or faster."
    if slower:
        named = ", ".join(f"{name} ({ratio:.2f} times its time)" for name, ratio in slower.items())
        text += f" It is slower in: {named}."
    near = [name for name, r in found.items() if r["limit"] is not None and r["limit"] <= 2]
    known = [name for name, r in found.items() if r["limit"] is not None]
    return text + f" In {len(near)} of the {len(known)} rows with a limit it is within twice the limit."


def made_with(content: Mapping[str, Any]) -> str:
    """Machine and versions, in a sentence."""
    m = content["machine"]
    rates = {name: value / 1e9 for name, value in m["rates"].items()}
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return (
        f"Measured by `{content['command']}` on one thread of {m['processor']} ({m['cores']} cores, shared with "
        f"other work; processor time, least of five runs): {rates['single']:.0f} GFLOP/s in float32, "
        f"{rates['double']:.0f} in float64, {rates['memory']:.0f} GB/s. Versions: {versions}."
    )


# -- how cost grows ---------------------------------------------------------------------------------------------------


def seconds(point: Mapping[str, Any], what: str) -> float:
    """Least time of a point."""
    return min(point[what])


def slope(points: Sequence[Mapping[str, Any]], axis: str, what: str) -> float:
    """Exponent of the last doubling: the time grows like the quantity to this power; 0 where it is lost in overhead."""
    a, b = points[-2:]
    return math.log(seconds(b, what) / seconds(a, what)) / math.log(b[axis] / a[axis])


def predicted(row: Mapping[str, Any], shape: Mapping[str, int], what: str) -> float:
    """Seconds for a shape: the largest point of training images, carried on by the slope of each quantity."""
    start = row["train"][-1]
    found = seconds(start, what)
    for axis in AXES:
        found *= (shape[axis] / start[axis]) ** max(0.0, slope(row[axis], axis, what))
    return found


def extrapolated(content: Mapping[str, Any], name: str, shape: Mapping[str, int], what: str) -> float:
    """Seconds of a detector for a shape by its slopes, and no less than its matrix products take."""
    found = predicted(content["rows"][name], shape, what)
    if floor := FLOORS.get((name, what)):
        kind, operations = floor(shape)
        found = max(found, operations / content["machine"]["rates"][kind])
    return found


def growth_table(content: Mapping[str, Any]) -> str:
    """Slopes, how well they predict, and what they say of larger data: a table of Markdown."""
    head = ["", *(f"{LABELS[axis]} ({what})" for axis, what in AXES.items())]
    head += ["measured / predicted", "ImageNet, fit", "ImageNet, score", "100 million, fit"]
    lines = []
    for name in _detectors(content):
        row = content["rows"][name]
        cells = [f"{slope(row[axis], axis, what):.1f}" for axis, what in AXES.items()]
        both = [
            seconds(row["together"][0], what) / predicted(row, row["together"][0], what) for what in ("fit", "score")
        ]
        asked = ((IMAGENET, "fit"), (IMAGENET, "score"), (HUGE, "fit"))
        sizes = [extrapolated(content, name, shape, what) for shape, what in asked]
        lines.append([name, *cells, " and ".join(f"{b:.1f}" for b in both), *map(duration, sizes)])
    return table(head, lines)


def told(content: Mapping[str, Any]) -> str:
    """What follows for ImageNet and for 100 million images, in sentences."""
    rows = content["rows"]
    memory = {name: [rows[name]["train"][i]["memory_mb"] for i in (0, -1)] for name in _detectors(content)}
    flat = [name for name, (few, many) in memory.items() if many < 2 * few]
    bank = HUGE["train"] * HUGE["width"] * 4 / 1e9
    knn = [extrapolated(content, "KNN", shape, "score") for shape in (IMAGENET, HUGE)]
    factor = rows["KNN"]["train"][-1]["train"] / rows["KNN"]["train"][0]["train"]
    times = f"{factor:.0f} times as many training images"
    text = f"With {times}, the memory of {' and '.join(flat)} stayed below twice what it was. " if flat else ""
    text += (
        f"KNN keeps every training feature: for 100 million of {HUGE['width']} numbers that is {bank:.0f} GB, and the "
        f"{IMAGENET['test']:,} images of ImageNet's validation set would take {duration(knn[1])} on one thread, "
        f"instead of {duration(knn[0])} with ImageNet's own training set."
    )
    for name, what in (("heads of WeiPer", "heads"), ("OOD sets", "sets")):
        if name in rows:
            found = rows[name][what]
            ratio = found[-1][what] / found[0][what]
            longer = seconds(found[-1], "score") / seconds(found[0], "score")
            text += f" {ratio:.0f} times as many {name} took {longer:.1f} times as long."
    return text


def draw_growth(content: Mapping[str, Any], path: Path) -> None:
    """Seconds against each quantity, on logarithmic axes, a line for each detector."""
    with plt.rc_context():
        theme()
        figure, axes = plt.subplots(2, 2, figsize=(FULL, 5.2), sharey=True)
        for ax, (axis, what) in zip(axes.flat, AXES.items()):
            for name in _detectors(content):
                points = content["rows"][name][axis]
                x, y = [p[axis] for p in points], [seconds(p, what) for p in points]
                ax.loglog(x, y, label=name, **STYLES[name])
            ax.set(xlabel=LABELS[axis], ylabel=f"seconds to {what}", xticks=x)
            ax.set_xticklabels([f"{value:,}" for value in x])
            ax.minorticks_off()
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figure.savefig(path)
        plt.close(figure)


# -- on a GPU, and beside other work ----------------------------------------------------------------------------------


def gpu_part(content: Mapping[str, Any] | None) -> str:
    """Recipes of paper size on a GPU, in each way of running them; how to measure them where nobody has."""
    if content is None or content["machine"]["tiny"]:
        return (
            "Not measured yet. On a machine with a CUDA device, `tests/gpu/run.sh` writes "
            "`book/results/speed/gpu.json` in less than ten minutes, and the next `ood-book build` shows it here."
        )
    head = ["recipe", "run in", "rows a second", "times float32", "share of the chip's rate", "GB"]
    lines, failed = [], []
    for name, ways in content["recipes"].items():
        for way, found in ways.items():
            if "error" in found:
                failed.append(f"{name} in {way} ({found['error'].splitlines()[0]})")
                continue
            share, times, memory = (found.get(key) for key in ("share_of_rate", "times_float32", "memory_mb"))
            cells = ["–" if times is None else f"{times:.1f}", "–" if share is None else f"{100 * share:.0f} %"]
            memory = "–" if memory is None else f"{memory / 1e3:.1f}"
            lines.append([name, way, f"{found['rows_per_second']:,.0f}", *cells, memory])
    m = content["machine"]
    rates = " and ".join(f"{rate / 1e12:.0f} TFLOP/s in {precision}" for precision, rate in m["rates"].items())
    text = (
        f"Measured by `{content['command']}` on one {m['device']}, torch {m['torch']}, CUDA {m['cuda']}. "
        f"The chip's rate is that of a large matrix product: {rates}. "
        f"The tests that need a CUDA device: {content['laws']}."
    )
    text += f" Not measured: {'; '.join(failed)}." if failed else ""
    return f"{table(head, lines, words=(0, 1))}\n{text}"


def in_company(content: Mapping[str, Any] | None) -> str:
    """What a notebook costs on a machine that others keep busy, against the calm machine."""
    if content is None:
        return "Not measured yet: `python -m tests.benchmarks.company` writes `book/results/speed/company.json`."
    rows = {int(busy): runs for busy, runs in content["rows"].items()}
    if 0 not in rows:
        raise ValueError("company.json has no runs on a calm machine; expected some under the key 0")
    calm = {key: statistics.fmean(run[key] for run in rows[0]) for key in ("processor", "wall")}
    head = ["busy processes", "runs", "processor, s", "times the calm mean", "clock, times", "MB"]
    lines, ranges = [], {}
    for busy, runs in sorted(rows.items()):
        times = [run["processor"] / calm["processor"] for run in runs]
        ranges[busy] = f"{min(times):.2f} to {max(times):.2f}"
        clock = statistics.fmean(run["wall"] for run in runs) / calm["wall"]
        used = statistics.fmean(run["processor"] for run in runs)
        most = max(run["memory_mb"] for run in runs)
        mean = f"{used / calm['processor']:.2f} ({ranges[busy]})"
        lines.append([f"{busy}", f"{len(runs)}", f"{used:.0f}", mean, f"{clock:.1f}", f"{most:.0f}"])
    beside = ", ".join(f"beside {n} {ranges[n]}" for n in sorted(rows) if n)
    machine = content["machine"]
    cores = machine.get("cores") if isinstance(machine, dict) else None
    return (
        f"{table(head, lines, words=())}\nProcessor time of `{content['notebook']}` (profile {content['profile']}"
        f"{f', {cores} cores' if cores else ''}) in multiples of its mean on the calm machine: alone {ranges[0]}"
        f"{f'; {beside} busy processes' if beside else ''}."
    )


def duration(value: float) -> str:
    """Seconds in the unit that reads well.

    Example:
        >>> duration(0.0123), duration(90), duration(7200), duration(864000)
        ('12 ms', '90 s', '120 min', '10 days')
    """
    for unit, size, most in (("ms", 1e-3, 1), ("s", 1, 100), ("min", 60, 7201), ("h", 3600, 172800)):
        if value < most:
            return f"{value / size:.2g} {unit}" if value < 10 * size else f"{value / size:.0f} {unit}"
    return f"{value / 86400:.0f} days"


def add_speed(book: Path) -> None:
    """Write what the page includes, into `_generated`."""
    target = book / "_generated"
    target.mkdir(exist_ok=True)
    peers, growth = (
        json.loads((book / f"results/speed/{n}.json").read_text(encoding="utf-8")) for n in ("peers", "growth")
    )
    parts = [compared(peers), speed_table(peers), made_with(peers)]
    (target / "speed.md").write_text("\n\n".join(parts), encoding="utf-8")
    (target / "growth.md").write_text("\n\n".join([growth_table(growth), told(growth)]), encoding="utf-8")
    draw_growth(growth, target / "growth.png")
    for name, write in (("gpu", gpu_part), ("company", in_company)):
        file = book / f"results/speed/{name}.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        (target / f"{name}.md").write_text(f"{write(content)}\n", encoding="utf-8")


def _detectors(content: Mapping[str, Any]) -> list[str]:
    return [name for name in STYLES if name in content["rows"]]


def _digits(value: float) -> str:
    """Two digits, without an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{value:.{max(1, 1 - math.floor(math.log10(value)))}f}"

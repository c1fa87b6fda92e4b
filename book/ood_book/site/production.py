"""The numbers of the page "In production", as `book/production/measure.py` measured them: tables and sentences."""

import json
import math
from pathlib import Path
from typing import Any

from scipy.stats import beta

from ood_book.site.tables import table

__all__ = ["fragments"]

LIMIT = 1e-4  # relative difference up to which scores count as equal


def fragments(measured: Path) -> dict[str, str]:
    """What the page includes, by name; a part that was not measured is missing, and says so."""
    found = json.loads(measured.read_text(encoding="utf-8"))
    parts = {"service": _service, "watch": _watch, "export": _export}
    made = {name: make(found[name]) if name in found else "Not measured yet.\n" for name, make in parts.items()}
    return made | {"promise": _promise()}


def _promise(images: int = 100, tpr: float = 0.95) -> str:
    """How far the share of refused ID images may lie from what a threshold promises: a law of ranks, not measured."""
    rank = math.ceil(round(tpr * (images + 1), 9))  # of the calibration score that is the threshold
    low, high = beta.ppf([0.025, 0.975], images + 1 - rank, rank)
    return (
        f"With {images} calibration images, a threshold for {100 * tpr:.0f} % refuses between {100 * low:.0f} % and "
        f"{100 * high:.0f} % of new ID images in 95 of 100 calibration sets.\n"
    )


def _origin(part: dict[str, Any]) -> str:
    origin = part["origin"]
    return f"Measured by `{origin['command']}` on {origin['date']}: {origin['device']}; {origin['versions']}."


def _service(part: dict[str, Any]) -> str:
    head = ["pictures in a request", "clients", "requests a second", "pictures a second"]
    head += ["median", "99 % within", "processor time"]
    rows = []
    for row in part["rows"]:
        rate = row["requests_per_second"]
        waits = [f"{row[name]:.0f} ms" for name in ("p50_ms", "p99_ms", "processor_ms")]
        rows.append([f"{row['batch']}", f"{row['clients']}", f"{rate:.1f}", f"{rate * row['batch']:.0f}", *waits])
    load = part["origin"]["load_before"]
    busy = (
        f" Other work ran at the same time (load {load:.0f}): an idle machine answers sooner; the processor time of a "
        "request depends little on it."
    )
    return f"{table(head, rows)}\n{part['network']}; {part['detector']}. {_origin(part)}{busy if load > 1 else ''}\n"


def _watch(part: dict[str, Any]) -> str:
    alarms, band, streams = part["false_alarm_within_patience"], part["band"], part["streams"]
    head, rows = ["change", "10 % of alarms by", "half by", "90 % by"], []
    for name, row in part["delay"].items():
        shown = ["not within 8,000" if row[q] is None else f"{row[q]:,}" for q in ("p10", "median", "p90")]
        rows.append([name, *shown])
    most, early = 2 * part["patience"], part["patience"]
    return (
        f"Without any change, the evidence of {streams} simulated services with {part['calibration']:,} calibration "
        f"scores and `patience={early}` reached the level after {part['mean_images_at_least']:,.0f} images on average "
        f"(runs were ended at {most:,}, so the true mean is larger), and within {early:,} images in "
        f"{_percent(alarms)} of them. With a change after {part['before']:,} unchanged images, the alarm came after "
        f"so many further images (services with an earlier, false alarm are left out):\n\n{table(head, rows)}\n"
        f"A fixed band on the number of alarms is simpler, and correct only if it accounts for the calibration set. "
        f"Over {band['windows']} windows of {band['window']:,} images, a band was to be left by chance in "
        f"{band['promised']:.0%} of unchanged services at most. The binomial band, which takes 5 % for the true rate, "
        f"was left in {_percent(band['binomial'])}; the beta-binomial band, which knows that a threshold from "
        f"{part['calibration']:,} images is itself uncertain, in {_percent(band['beta_binomial'])}. The latter allows "
        f"{band['aware_limit']} alarms in a window, the former {band['naive_limit']}.\n\n{_origin(part)}\n"
    ).replace("1% of", "1 % of")


def _percent(share: dict[str, float]) -> str:
    shown = (f"{100 * share[name]:.1f} %" for name in ("share", "low", "high"))
    return "{} (95 % interval {} to {})".format(*shown)


def _export(part: dict[str, Any]) -> str:
    makers = ("torch.export", "ONNX")
    head = ["detector", "`torch.export`", "ONNX Runtime"]
    rows = [[f"`{name}`", *(_verdict(row[way]) for way in makers)] for name, row in part["detectors"].items()]
    sizes = ", ".join(map(str, part["sizes"]))
    return (
        f"{table(head, rows)}\nThe largest relative difference to `detector.score` over batches of {sizes} images; the "
        f"program was exported with a batch of 3. A dash: the exporter refuses the detector. {_origin(part)}\n"
    )


def _verdict(error: float | None) -> str:
    if error is None:
        return "–"
    if error == 0:
        return "0"
    return f"{error:.0e}" if error <= LIMIT else f"**{error:.0e}**, too much"

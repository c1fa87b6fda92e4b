"""Figures that a reader turns: small laws drawn by Vega-Lite, which computes them in the browser, without a kernel.

Each function makes a chart whose sliders are parameters of a law of the book; `show` displays it with a caption that
says what to try.  On the pages a still picture stands in its place until the browser has drawn it, and in print.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, stack

from ood_lib.checks import check
from ood_lib.evaluation.plots import COLORS, NAMES, SERIES
from ood_lib.extras import need

if TYPE_CHECKING:
    import altair as alt
    import numpy as np
    import pandas as pd

__all__ = [
    "flow_by_hand", "flow_layers", "hybrid_energy", "label_energies", "near_against_far", "paired_intervals",
    "perturbed_logits", "pictures_of_an_embedding", "score_norms_of_two_bumps", "score_thresholds", "scores_in_a_plane",
    "show",
]  # fmt: skip

WIDTH, HEIGHT = 300, 230  # of one panel; two stand side by side on a page
SHAPES = {"id": "circle", "near": "triangle-up", "far": "square"}  # Vega's names of what plots.MARKERS has


def show(chart: "alt.LayerChart | alt.HConcatChart | alt.Chart", caption: str, alt_text: str) -> None:
    """Display a chart in Jupyter, in Colab, and on a page of the book.

    Args:
        chart: from a function of this module, or your own.
        caption: what it shows and what to try.
        alt_text: what a reader who cannot see it should know.
    """
    from IPython.display import display

    spec = chart.properties(description=alt_text).to_dict()
    spec["usermeta"] = {"caption": caption, "embedOptions": {"actions": False}}
    version = spec["$schema"].split("/")[-1].split(".")[0]  # such as v6
    bundle = need("altair").renderers.get()(spec)
    html = bundle[0] if isinstance(bundle, tuple) else bundle
    display({f"application/vnd.vegalite.{version}+json": spec} | html, raw=True)


def _slider(name: str, label: str, low: float, high: float, step: float, value: float) -> Any:
    alt = need("altair")
    return alt.param(name=name, value=value, bind=alt.binding_range(min=low, max=high, step=step, name=f"{label} "))


def _menu(name: str, label: str, options: Sequence[str]) -> Any:
    alt = need("altair")
    return alt.param(name=name, value=options[0], bind=alt.binding_select(options=list(options), name=f"{label} "))


def _text(rows: list[tuple[str, str]], **place: float) -> Any:
    """Lines of text under a chart: a label, then an expression over the sliders."""
    alt = need("altair")
    data = alt.Data(values=[{"row": row, "label": label} for row, (label, _) in enumerate(rows)])
    chart = alt.Chart(data).transform_calculate(**{f"v{row}": expression for row, (_, expression) in enumerate(rows)})
    picked = " : ".join(f"datum.row == {row} ? datum.v{row}" for row in range(len(rows))) + " : ''"
    return (
        chart.transform_calculate(text=f"datum.label + ({picked})")
        .mark_text(align="left", fontSize=13, limit=420)
        .encode(x=alt.value(0), y=alt.Y("row:O", axis=None), text="text:N")
        .properties(**place)
    )


def score_thresholds(gap: float = 1.5, spread: float = 1.0, threshold: float = 1.0) -> "alt.HConcatChart":
    r"""Scores of ID images :math:`N(0, 1)` and of OOD images :math:`N(d, s^2)`, a threshold, and every number of it.

    Left both densities, with the two errors of the threshold :math:`\tau` shaded; right the ROC curve with the point of
    this threshold, whose area is the AUROC, :math:`\Phi(d / \sqrt{1 + s^2})`.

    Args:
        gap: d, where the OOD scores lie.
        spread: s, how wide they are.
        threshold: τ; larger scores are rejected as OOD.
    """
    alt = need("altair")
    d = _slider("d", "distance d of the OOD scores", 0, 5, 0.1, gap)
    s = _slider("s", "their spread s", 0.3, 3, 0.1, spread)
    tau = _slider("tau", "threshold τ", -3, 6, 0.05, threshold)
    grid = alt.Chart(alt.sequence(-5, 9.001, 0.05, as_="x")).transform_calculate(
        known="densityNormal(datum.x, 0, 1)", unknown="densityNormal(datum.x, d, s)"
    )
    axis = alt.X("x:Q", title="score (larger = more OOD →)", scale=alt.Scale(domain=[-5, 9]))

    def density(field: str, color: str, dash: list[int], error: str) -> Any:
        y = alt.Y(f"{field}:Q", title="density", scale=alt.Scale(domain=[0, 0.8], clamp=True), stack=None)
        line = grid.mark_line(color=color, strokeDash=dash, strokeWidth=2).encode(x=axis, y=y)
        area = grid.transform_filter(error).mark_area(color=color, opacity=0.35).encode(x=axis, y=y)
        return area + line

    at = alt.Chart(alt.Data(values=[{}])).transform_calculate(x="tau")
    rule = at.mark_rule(strokeWidth=2, color="#888888").encode(x="x:Q")
    densities = density("known", COLORS["id"], [1, 0], "datum.x >= tau")
    densities += density("unknown", COLORS["far"], [6, 3], "datum.x <= tau")
    left = (densities + rule).properties(width=WIDTH, height=HEIGHT, title="ID solid, OOD dashed; shaded: the errors")
    curve = alt.Chart(alt.sequence(-9, 15.001, 0.05, as_="t")).transform_calculate(
        false="1 - cumulativeNormal(datum.t, 0, 1)", true="1 - cumulativeNormal(datum.t, d, s)"
    )
    x = alt.X("false:Q", title="ID images rejected", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("true:Q", title="OOD images rejected", scale=alt.Scale(domain=[0, 1]), stack=None)
    roc = curve.mark_area(color=COLORS["other"], opacity=0.25).encode(x=x, y=y) + curve.mark_line(
        color=COLORS["other"], strokeWidth=2
    ).encode(x=x, y=y, order="t:Q")
    point = at.transform_calculate(false="1 - cumulativeNormal(tau, 0, 1)", true="1 - cumulativeNormal(tau, d, s)")
    roc += point.mark_point(filled=True, size=110, color="#888888", opacity=1).encode(x=x, y=y)
    right = roc.properties(width=HEIGHT, height=HEIGHT, title="ROC curve: its area is the AUROC")
    percent = "format(100 * ({}), '.1f') + ' %'"
    low, high = "quantileNormal(0.05, 0, 1)", "quantileNormal(0.95, 0, 1)"
    numbers = _text(
        [
            ("ID images rejected (false alarms): ", percent.format("1 - cumulativeNormal(tau, 0, 1)")),
            ("OOD images accepted (missed): ", percent.format("cumulativeNormal(tau, d, s)")),
            ("AUROC: ", percent.format("cumulativeNormal(d / sqrt(1 + s * s), 0, 1)")),
            ("FPR95, ID recalled: ", percent.format(f"cumulativeNormal({high}, d, s)")),
            ("FPR95, OOD recalled: ", percent.format(f"1 - cumulativeNormal(d + s * {low}, 0, 1)")),
        ],
        width=WIDTH + HEIGHT + 60,
        height=110,
    )
    return ((left | right) & numbers).add_params(d, s, tau).configure_view(stroke=None)


def paired_intervals(rows: Sequence[Mapping[str, Any]], size: int = 3) -> "alt.VConcatChart":
    """AUROC of two detectors, each with its own interval, beside their paired difference with its interval.

    Sliders choose how many test images there are and which ones, a menu the two detectors. The line below says what the
    interval of the difference allows to say.

    Args:
        rows: for each *pair* ("A and B") and each *size* and *draw*, counted from 1, three: two whose *what* names a
            detector, and one whose *what* is ``"difference"``. Each has *n*, the images on each side, and *value*,
            *low* and *high*, shares of one.
        size: where the slider of the size starts.

    Raises:
        ValueError: there is no row, or no row of the size to start with.
    """
    alt = need("altair")
    most = {key: max((row[key] for row in rows), default=0) for key in ("size", "draw")}
    check(lambda size: 1 <= size <= most["size"], f"a size of the rows, 1 to {most['size']}", size=size)
    sliders = [
        _slider("size", "more images", 1, most["size"], 1, size),
        _slider("draw", "other images", 1, most["draw"], 1, 1),
        _menu("pair", "detectors", list(dict.fromkeys(row["pair"] for row in rows))),
    ]
    percent = [dict(row) | {key: round(100 * row[key], 2) for key in ("value", "low", "high")} for row in rows]
    here = alt.Chart(alt.Data(values=percent))
    here = here.transform_filter("datum.size == size && datum.draw == draw && datum.pair == pair")

    def panel(which: str, title: str, domain: list[int], color: str) -> Any:
        chart, y = here.transform_filter(which), alt.Y("what:N", title=None)
        x = alt.X("low:Q", title=title, scale=alt.Scale(domain=domain, nice=False))
        bars = chart.mark_rule(strokeWidth=3, color=color, clip=True).encode(x=x, x2="high:Q", y=y)
        return bars + chart.mark_point(filled=True, size=90, opacity=1, color=color).encode(x="value:Q", y=y)

    single = panel("datum.what != 'difference'", "AUROC in %, each alone", [60, 100], COLORS["other"])
    paired = panel("datum.what == 'difference'", "difference in points, paired", [-20, 20], COLORS["grey"])
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[4, 4], color="#888888").encode(x=alt.datum(0))
    panels = [layers.properties(width=WIDTH - 30, height=90) for layers in (single, paired + zero)]
    size_of = "datum.n + ' ID and ' + datum.n + ' OOD images, '"
    word = "datum.high < 0 ? 'the second is better' : 'these images cannot tell'"
    word = f"(datum.low > 0 ? 'the first is better' : {word})"
    line = here.transform_filter("datum.what == 'difference'")
    line = line.transform_calculate(text=f"{size_of} + datum.pair + ': ' + {word}")
    line = line.mark_text(align="left", fontSize=13, limit=2 * WIDTH - 40).encode(x=alt.value(0), text="text:N")
    line = line.properties(width=2 * WIDTH, height=20)
    return ((panels[0] | panels[1]) & line).add_params(*sliders).configure_view(stroke=None)


def scores_in_a_plane(
    places: Tensor,
    below: Mapping[str, Tensor],
    clouds: Sequence[tuple[str, Tensor]],
    aurocs: Mapping[str, Mapping[str, float]],
    reach: float = 12.0,
) -> "alt.VConcatChart":
    """A plane of two features, shaded by the score of one detector, with points of each role; a menu of detectors.

    Args:
        places: the middles (N, 2) of the cells of a square grid over [0, reach]².
        below: by detector, the share (N,) of ID points with a smaller score than each cell has.
        clouds: a role, and its points (M, 2); more than one cloud may have the same role.
        aurocs: by detector, what the line below says: the AUROC for each kind of OOD point.
        reach: where the plane ends.

    Raises:
        ValueError: the places are no square number.
    """
    alt = need("altair")
    steps = math.isqrt(len(places))
    check(lambda n: steps and n == steps**2, "a square grid of places", places=len(places))
    shares = {name: (100 * share).round().int().tolist() for name, share in below.items()}
    cells = [
        {"x": round(x, 2), "y": round(y, 2)} | {name: share[i] for name, share in shares.items()}
        for i, (x, y) in enumerate(places.tolist())
    ]
    menu, half = _menu("detector", "detector", [*below]), reach / steps / 2
    ends = {f"{axis}{end}": f"datum.{axis} {sign} {half}" for axis in "xy" for end, sign in ((1, "-"), (2, "+"))}
    plane = alt.Chart(alt.Data(values=cells)).transform_calculate(share="datum[detector]", **ends)
    legend = alt.Legend(title="% of ID points below")
    picture = plane.mark_rect().encode(
        x=alt.X("x1:Q", title="feature 1", scale=alt.Scale(domain=[0, reach])),
        y=alt.Y("y1:Q", title="feature 2", scale=alt.Scale(domain=[0, reach])),
        x2="x2:Q",
        y2="y2:Q",
        color=alt.Color("share:Q", scale=alt.Scale(scheme="greys", domain=[0, 100]), legend=legend),
    )
    for role, points in clouds:
        dots = alt.Chart(alt.Data(values=[{"x": round(x, 2), "y": round(y, 2)} for x, y in points.tolist()]))
        look = {"shape": SHAPES[role], "color": COLORS[role], "stroke": "white", "strokeWidth": 0.5}
        picture += dots.mark_point(filled=True, size=28, opacity=1, **look).encode(x="x:Q", y="y:Q")
    said = {name: ", ".join(f"{kind} {100 * a:.0f} %" for kind, a in own.items()) for name, own in aurocs.items()}
    rows = [{"name": name, "text": f"{name}: AUROC {text}"} for name, text in said.items()]
    line = alt.Chart(alt.Data(values=rows)).transform_filter("datum.name == detector")
    line = line.mark_text(align="left", fontSize=13).encode(x=alt.value(0), text="text:N")
    panels = picture.properties(width=400, height=330) & line.properties(width=400, height=20)
    return panels.add_params(menu).configure_view(stroke=None)


def flow_layers(known: Sequence[Tensor], other: Sequence[Tensor], reach: float = 4.0) -> "alt.LayerChart":
    """Points in the plane on their way through a flow, a slider over its layers; rings at one to three deviations.

    Between two layers the points are drawn on the straight line from one place to the next.

    Args:
        known: ID points (N, 2) before the first layer, then after each one.
        other: OOD points (M, 2), likewise.
        reach: the picture shows the square from -reach to reach.

    Raises:
        ValueError: the two do not have the same number of steps, at least two.
    """
    alt = need("altair")
    if len(known) != len(other) or len(known) < 2:
        raise ValueError(f"{len(known)} steps of ID and {len(other)} of OOD points given; expected two or more of both")
    last = len(known) - 1
    layer = _slider("layer", "layers passed", 0, last, 0.1, 0)
    rows = [
        {"kind": kind, "u": [round(x, 2) for x in path[:, 0].tolist()], "v": [round(x, 2) for x in path[:, 1].tolist()]}
        for kind, steps in (("ID", known), ("OOD", other))
        for path in stack([*steps], 1)
    ]
    here, there = "datum.{0}[floor(layer)]", f"datum.{{0}}[min({last}, floor(layer) + 1)]"
    between = f"{here} + (layer - floor(layer)) * ({there} - {here})"
    scale = alt.Scale(domain=[-reach, reach], clamp=True)
    x, y = alt.X("x:Q", title="first coordinate", scale=scale), alt.Y("y:Q", title="second coordinate", scale=scale)
    kinds = ["ID", "OOD"]
    points = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(x=between.format("u"), y=between.format("v"))
        .mark_point(filled=True, size=22, opacity=0.6)
        .encode(
            x=x,
            y=y,
            color=alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[COLORS["id"], COLORS["far"]])),
            shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=["circle", "square"])),
        )
    )
    rings = alt.Chart(alt.sequence(0, 6.3, 0.05, as_="t")).transform_calculate(r="[1, 2, 3]").transform_flatten(["r"])
    rings = rings.transform_calculate(x="datum.r * cos(datum.t)", y="datum.r * sin(datum.t)")
    rings = rings.mark_line(color="#888888", strokeWidth=1).encode(x=x, y=y, detail="r:N", order="t:Q")
    return (rings + points).properties(width=340, height=340).add_params(layer).configure_view(stroke=None)


def flow_by_hand(slope: float = 0.65, bend: float = 0.0, ood: float = 0.0) -> "alt.VConcatChart":
    r"""A flow on a line with two knobs, the map :math:`f(x) = a x + b x^3`, and the density that it gives.

    The density is :math:`p(x) = N(f(x); 0, 1)\, f'(x)`.  The data are :math:`\tfrac12 N(-1.5, 0.5^2) + \tfrac12 N(1.5,
    0.5^2)`, and the loss is their mean of :math:`-\log p`.

    Args:
        slope: a, the slope of the map at zero.
        bend: b; with b = 0 the density is one Gaussian.
        ood: where the OOD point lies.
    """
    alt = need("altair")
    a = _slider("a", "slope a of the map at zero", 0.02, 1.2, 0.01, slope)
    b = _slider("b", "its bend b", 0, 0.6, 0.01, bend)
    place = _slider("o", "place of the OOD point", -4, 4, 0.1, ood)
    data = "(0.5 * densityNormal(datum.x, -1.5, 0.5) + 0.5 * densityNormal(datum.x, 1.5, 0.5))"

    def latent(x: str) -> str:
        return f"(a * {x} + b * pow({x}, 3))"

    def score(x: str) -> str:
        """-log p, which does not underflow far away."""
        return f"(pow({latent(x)}, 2) / 2 + log(2 * PI) / 2 - log(a + 3 * b * {x} * {x}))"

    grid = alt.Chart(alt.sequence(-4, 4.001, 0.05, as_="x"))
    x = alt.X("x:Q", title="feature x", scale=alt.Scale(domain=[-4, 4]))
    at = alt.Chart(alt.Data(values=[{}])).transform_calculate(x="o")
    rule = at.mark_rule(color=COLORS["far"], strokeWidth=2, strokeDash=[2, 2]).encode(x="x:Q")
    y = alt.Y("u:Q", title="latent u = f(x)", scale=alt.Scale(domain=[-4, 4]))
    line = grid.transform_calculate(u=latent("datum.x")).mark_line(color=COLORS["other"], strokeWidth=2, clip=True)
    left = (line.encode(x=x, y=y) + rule).properties(width=WIDTH - 20, height=HEIGHT - 30)
    names = ["data", "flow"]
    lines = grid.transform_calculate(data=data, flow=f"exp(-{score('datum.x')})").transform_fold(names, ["of", "value"])
    legend = alt.Legend(orient="bottom", title=None)
    curves = lines.mark_line(strokeWidth=2).encode(
        x=x,
        y=alt.Y("value:Q", title="density", scale=alt.Scale(domain=[0, 0.6], clamp=True)),
        color=alt.Color("of:N", scale=alt.Scale(domain=names, range=[COLORS["id"], COLORS["other"]]), legend=legend),
        strokeDash=alt.StrokeDash("of:N", scale=alt.Scale(domain=names, range=[[6, 3], [1, 0]]), legend=legend),
    )
    right = (curves + rule).properties(width=WIDTH - 20, height=HEIGHT - 30)
    right = right.resolve_scale(color="independent", strokeDash="independent")
    means = grid.transform_calculate(p=data, loss=score("datum.x")).transform_calculate(
        loss="datum.p * datum.loss", least="datum.p > 0 ? -datum.p * log(datum.p) : 0"
    )
    means = means.transform_aggregate(loss="sum(loss)", least="sum(least)")
    said = {"loss": "Loss, mean −log p of the data: ", "least": "The lowest that an increasing map can reach: "}
    losses = means.transform_fold([*said], ["of", "value"]).transform_calculate(
        text=f"(datum.of == 'loss' ? '{said['loss']}' : '{said['least']}') + format(0.05 * datum.value, '.2f')"
    )
    losses = losses.mark_text(align="left", fontSize=13, limit=420)
    losses = losses.encode(x=alt.value(0), y=alt.Y("of:N", axis=None, sort=[*said]), text="text:N")
    losses = losses.properties(width=2 * WIDTH, height=44)
    numbers = _text(
        [
            ("Score −log p of the OOD point: ", f"format({score('o')}, '.2f')"),
            ("Score of the centre of a bump: ", f"format({score('1.5')}, '.2f')"),
            ("The flow ranks the OOD point ", f"({score('o')} > {score('1.5')} ? 'above' : 'below') + ' the bump'"),
        ],
        width=2 * WIDTH,
        height=66,
    )
    return ((left | right) & losses & numbers).add_params(a, b, place).configure_view(stroke=None)


def hybrid_energy(lam: float = 0.25, temperature: float = 1.0, ood: float = 0.0) -> "alt.VConcatChart":
    r"""A prior that is one Gaussian, data in two bumps, and the hybrid of the prior with the best residual.

    The data are :math:`p = \tfrac12 N(-1.5, 0.5^2) + \tfrac12 N(1.5, 0.5^2)`, and the prior q is the Gaussian of the
    same mean and variance.  With samples of the prior as negatives, the best residual is
    :math:`E_\theta = -\tanh(\tfrac12 \ln p / q) / 2\lambda`, and the hybrid is :math:`-\ln q / T_p + E_\theta`.

    Args:
        lam: λ; 1 / 2λ bounds the residual.
        temperature: T_p, by which the prior's energy is divided.
        ood: where the OOD point lies.
    """
    alt = need("altair")
    weight = _slider("lam", "λ (the residual is at most 1 / 2λ)", 0.05, 2, 0.05, lam)
    cool = _slider("T", "temperature T of the prior", 0.25, 5, 0.25, temperature)
    place = _slider("o", "place of the OOD point", -5, 5, 0.1, ood)

    def data(x: str) -> str:
        return f"(0.5 * densityNormal({x}, -1.5, 0.5) + 0.5 * densityNormal({x}, 1.5, 0.5))"

    def prior(x: str) -> str:
        return f"densityNormal({x}, 0, sqrt(2.5))"

    def residual(x: str) -> str:
        """tanh(ln(p / q) / 2) = (p - q) / (p + q)"""
        return f"(-({data(x)} - {prior(x)}) / ({data(x)} + {prior(x)}) / (2 * lam))"

    def energy(x: str) -> str:
        return f"(-log({prior(x)}) / T)"

    grid = alt.Chart(alt.sequence(-5, 5.001, 0.05, as_="x"))
    x = alt.X("x:Q", title="feature z", scale=alt.Scale(domain=[-5, 5]))
    at = alt.Chart(alt.Data(values=[{}])).transform_calculate(x="o")
    rule = at.mark_rule(color=COLORS["far"], strokeWidth=2, strokeDash=[2, 2]).encode(x="x:Q")
    panels = []
    of_prior, of_residual, of_hybrid = "#888888", SERIES[-1]["color"], COLORS["other"]
    dashed, dotted, solid = [6, 3], [2, 2], [1, 0]
    for title, curves, colors, dashes, low, high in (
        ("density", {"data p": data, "prior q": prior}, [COLORS["id"], of_prior], [dashed, dotted], 0, 0.45),
        (
            "energy (larger = more OOD →)",
            {"prior, −ln q / T": energy, "residual": residual, "hybrid": None},
            [of_prior, of_residual, of_hybrid],
            [dotted, dashed, solid],
            -4,
            12,
        ),
    ):
        lines = grid.transform_calculate(
            **{n: f("datum.x") if f else f"{energy('datum.x')} + {residual('datum.x')}" for n, f in curves.items()}
        ).transform_fold(list(curves), ["of", "value"])
        scale = alt.Scale(domain=list(curves), range=colors)
        dash = alt.Scale(domain=list(curves), range=dashes)
        legend = alt.Legend(orient="bottom", title=None)
        panel = lines.mark_line(strokeWidth=2).encode(
            x=x,
            y=alt.Y("value:Q", title=title, scale=alt.Scale(domain=[low, high], clamp=True)),
            color=alt.Color("of:N", scale=scale, legend=legend),
            strokeDash=alt.StrokeDash("of:N", scale=dash, legend=legend),
        )
        panels.append((panel + rule).properties(width=WIDTH - 20, height=HEIGHT - 30))
    hybrid = {x: f"({energy(x)} + {residual(x)})" for x in ("o", "1.5")}
    numbers = _text(
        [
            ("Prior, OOD point minus the centre of a bump: ", f"format({energy('o')} - {energy('1.5')}, '+.2f')"),
            ("Hybrid, OOD point minus the centre of a bump: ", f"format({hybrid['o']} - {hybrid['1.5']}, '+.2f')"),
            ("The prior ranks the OOD point ", f"({energy('o')} > {energy('1.5')} ? 'above' : 'below') + ' the bump'"),
            ("The hybrid ranks it ", f"({hybrid['o']} > {hybrid['1.5']} ? 'above' : 'below') + ' the bump'"),
        ],
        width=2 * WIDTH,
        height=90,
    )
    panels = [panel.resolve_scale(color="independent", strokeDash="independent") for panel in panels]
    both = (panels[0] | panels[1]).resolve_scale(color="independent", strokeDash="independent")
    return (both & numbers).add_params(weight, cool, place).configure_view(stroke=None)


def label_energies(logits: tuple[float, float, float] = (-4.0, -4.0, -4.0)) -> "alt.HConcatChart":
    r"""Three label logits as sliders, and what four scores say of them; larger = more OOD.

    JointEnergy adds what each label says, :math:`-\sum_i \mathrm{softplus}(f_i)`; MaxLogit uses the largest logit, MSP
    compares labels with each other.  The probability that no label is present, if labels are independent, is
    :math:`\prod_i (1 - \sigma(f_i))`, which is the exponential of the joint energy.

    Args:
        logits: where the sliders start.
    """
    alt = need("altair")
    sliders = [_slider(f"f{i}", f"logit of label {i}", -8, 8, 0.1, value) for i, value in enumerate(logits, 1)]
    plus = [f"log(1 + exp(f{i}))" for i in (1, 2, 3)]
    total = "exp(f1) + exp(f2) + exp(f3)"
    rows = {
        "JointEnergy": f"-({' + '.join(plus)})",
        "MaxLogit": "-max(f1, f2, f3)",
        "MSP over labels × 10": f"-10 * exp(max(f1, f2, f3)) / ({total})",
    }
    data = alt.Data(values=[{"score": name} for name in rows])
    value = " : ".join(f"datum.score == '{name}' ? {expression}" for name, expression in rows.items()) + " : 0"
    base = (
        alt.Chart(data)
        .transform_calculate(value=value)
        .transform_calculate(shown="format(datum.value, '.2f')", right="max(datum.value, 0)")
    )
    x = alt.X("value:Q", title="score (larger = more OOD →)", scale=alt.Scale(domain=[-26, 9]))
    y = alt.Y("score:N", title=None, sort=list(rows))
    bars = base.mark_bar(color=COLORS["other"]).encode(x=x, y=y)
    numbers = base.mark_text(align="left", dx=6, fontSize=13).encode(x=alt.X("right:Q"), y=y, text="shown:N")
    left = (bars + numbers).properties(width=WIDTH, height=130, title="Three scores of the same logits")
    labels = alt.Chart(alt.Data(values=[{"label": i} for i in (1, 2, 3)])).transform_calculate(
        probability="1 / (1 + exp(-(datum.label == 1 ? f1 : datum.label == 2 ? f2 : f3)))"
    )
    right = (
        labels.mark_bar(color=COLORS["other"])
        .encode(
            x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1]), title="σ(f)"), y=alt.Y("label:O", title="label")
        )
        .properties(width=HEIGHT, height=130, title="What each label says alone")
    )
    percent = "format(100 * {}, '.1f') + ' %'"
    none = _text(
        [
            ("P(no known label) = ∏ (1 − σ) = exp(JointEnergy): ", percent.format(f"exp(-({' + '.join(plus)}))")),
            ("1 − max σ, what MaxLogit knows of it: ", percent.format("(1 - 1 / (1 + exp(-max(f1, f2, f3))))")),
        ],
        width=WIDTH + HEIGHT + 60,
        height=50,
    )
    return ((left | right) & none).add_params(*sliders).configure_view(stroke=None)


def score_norms_of_two_bumps(sigma: float = 0.3, outlier: float = 0.0) -> "alt.VConcatChart":
    r"""Data in two narrow bumps on a line, blurred by noise of level σ, and the exact score of the blurred density.

    The data are :math:`\tfrac12 N(-2, 0.3^2) + \tfrac12 N(2, 0.3^2)`; blurring adds :math:`\sigma^2` to each variance.
    What MSMA measures at a point is :math:`\sigma\,|\nabla_x \log p_\sigma(x)|`, here at a typical point, 2.3, and at
    an outlier.

    Args:
        sigma: the noise level.
        outlier: where the second point lies.
    """
    alt = need("altair")
    noise = _slider("sigma", "noise level σ", 0.05, 4, 0.05, sigma)
    place = _slider("o", "place of the outlier", -6, 6, 0.1, outlier)

    def density(x: str) -> str:
        width = "sqrt(0.09 + sigma * sigma)"
        return f"(0.5 * densityNormal({x}, -2, {width}) + 0.5 * densityNormal({x}, 2, {width}))"

    def norm(x: str) -> str:
        """sigma |score|; the weight of a bump is a logistic function, which does not underflow far away."""
        variance = "(0.09 + sigma * sigma)"
        right = f"(1 / (1 + exp(-4 * ({x}) / {variance})))"
        return f"abs(sigma * ((2 * {right} - 1) * 2 - ({x})) / {variance})"

    grid = alt.Chart(alt.sequence(-6, 6.001, 0.05, as_="x")).transform_calculate(
        density=density("datum.x"), norm=norm("datum.x")
    )
    points = alt.Chart(alt.Data(values=[{"kind": "typical"}, {"kind": "outlier"}])).transform_calculate(
        x="datum.kind == 'typical' ? 2.3 : o",
        density=f"datum.kind == 'typical' ? {density('2.3')} : {density('o')}",
        norm=f"datum.kind == 'typical' ? {norm('2.3')} : {norm('o')}",
    )
    top, kinds = alt.Legend(orient="top", title=None), ["typical", "outlier"]  # beside them it would not fit a page
    colors = alt.Color("kind:N", legend=top, scale=alt.Scale(domain=kinds, range=[COLORS["id"], COLORS["far"]]))
    shape = alt.Shape("kind:N", legend=top, scale=alt.Scale(domain=kinds, range=["circle", "square"]))
    panels = []
    for field, title, most in (("density", "blurred density p_σ", 0.7), ("norm", "σ · |score|", 8)):
        x = alt.X("x:Q", title="x", scale=alt.Scale(domain=[-6, 6]))
        y = alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, most], clamp=True))
        line = grid.mark_line(color=COLORS["other"], strokeWidth=2).encode(x=x, y=y)
        dots = points.mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y, color=colors, shape=shape)
        panels.append((line + dots).properties(width=WIDTH - 20, height=HEIGHT - 30))
    numbers = _text(
        [
            ("Norm at the typical point: ", f"format({norm('2.3')}, '.3f')"),
            ("Norm at the outlier: ", f"format({norm('o')}, '.3f')"),
            ("Longer is the score of: ", f"{norm('2.3')} > {norm('o')} ? 'the typical point' : 'the outlier'"),
        ],
        width=2 * WIDTH,
        height=70,
    )
    return ((panels[0] | panels[1]) & numbers).add_params(noise, place).configure_view(stroke=None)


def perturbed_logits(
    train: tuple[Tensor, Tensor],
    images: Mapping[str, tuple[Tensor, Tensor]],
    ends: tuple[float, float],
    delta: float = 1.8,
    bins: int = 60,
    eps: float = 0.025,
) -> "alt.VConcatChart":
    r"""WeiPer space of one image and of the training set, for infinitely many heads, and what each bin adds to D.

    The perturbed logits of an image are an equal mixture of :math:`N(\ell_j, (\delta u_j)^2)` over the classes, with
    :math:`u_j = \lVert w_j\rVert \lVert z\rVert / \sqrt K`, the noise at :math:`\delta = 1`.  Both histograms are
    lifted by a floor :math:`\varepsilon`, and a bin adds :math:`(p - q)(\ln p - \ln q)`; nothing is smoothed.

    Args:
        train: logits (N, C) of some training images, and their noise u (N, C): `weiper.logit_noise` with delta=1.
        images: by name, logits (C,) and noise u (C,) of single images to choose from.
        ends: of the histogram; what lies outside counts in the bins at its ends.
        delta: δ, where its slider starts.
        bins: B, bins of the histogram.
        eps: ε, the floor.
    """
    alt = need("altair")
    noise = _slider("delta", "perturbation δ", 0.05, 4, 0.05, delta)
    length = _slider("scale", "length of the image's feature, times", 0.25, 3, 0.05, 1.0)
    which = _menu("image", "image", [*images])
    names = ["training mean", "image"]
    rows = [
        {"of": names[0], "name": "", "l": round(m, 3), "u": round(u, 4), "w": 1 / train[0].numel()}
        for m, u in zip(train[0].flatten().tolist(), train[1].flatten().tolist())
    ]
    for name, (means, spread) in images.items():
        own = {"of": names[1], "name": name, "w": 1 / len(means)}
        rows += [own | {"l": round(m, 3), "u": round(u, 4)} for m, u in zip(means.tolist(), spread.tolist())]
    low, high = ends
    step = (high - low) / bins
    below = "(datum.bin == {edge} ? {end} : cumulativeNormal({low} + (datum.bin + {more}) * {step}, datum.l, datum.s))"
    left, right = (
        below.format(edge=edge, end=end, low=low, more=more, step=step)
        for edge, end, more in ((0, 0, 0), (bins - 1, 1, 1))
    )
    masses = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter("datum.name == '' || datum.name == image")
        .transform_calculate(s="delta * datum.u * (datum.name == '' ? 1 : scale)", bin=f"sequence({bins})")
        .transform_flatten(["bin"])
        .transform_calculate(mass=f"datum.w * ({right} - {left})")
        .transform_aggregate(mass="sum(mass)", groupby=["of", "bin"])
    )
    x = alt.X("x:Q", title="perturbed logit", scale=alt.Scale(domain=[low, high], nice=False))
    place = {"x": f"{low} + datum.bin * {step}", "x2": f"{low} + (datum.bin + 1) * {step}"}
    scale = alt.Scale(domain=names, range=["#888888", COLORS["other"]])
    color = alt.Color("of:N", title=None, scale=scale, legend=alt.Legend(orient="top"))
    histogram = (
        masses.transform_calculate(**place)
        .mark_bar(opacity=0.5)
        .encode(x=x, x2="x2:Q", y=alt.Y("mass:Q", title="share of values"), y2=alt.datum(0), color=color)
        .properties(width=2 * WIDTH - 40, height=170)
    )
    lifted = {k: f"((datum['{name}'] || 0) + {eps}) / {1 + bins * eps}" for k, name in zip("pq", names)}
    apart = (
        masses.transform_pivot("of", value="mass", groupby=["bin"])
        .transform_calculate(**lifted)
        .transform_calculate(share="(datum.p - datum.q) * (log(datum.p) - log(datum.q))", **place)
    )
    shares = (
        apart.mark_bar(color=COLORS["other"])
        .encode(x=x, x2="x2:Q", y=alt.Y("share:Q", title="adds to D"), y2=alt.datum(0))
        .properties(width=2 * WIDTH - 40, height=90)
    )
    total = (
        apart.transform_aggregate(total="sum(share)")
        .transform_calculate(text="'Divergence D of this image: ' + format(datum.total, '.4f')")
        .mark_text(align="left", fontSize=13)
        .encode(x=alt.value(0), text="text:N")
        .properties(width=2 * WIDTH - 40, height=24)
    )
    return (histogram & shares & total).add_params(which, noise, length).configure_view(stroke=None)


def near_against_far(board: "pd.DataFrame", follow: str | None = None) -> "alt.VConcatChart":
    """Far-OOD against near-OOD AUROC, a mark for each detector, the network as a choice; up and right is better.

    A pointer on a mark shows its name, both values and their intervals.  A second menu follows one detector from
    network to network, with its intervals as bars.  Axes stay the same for all networks.

    Args:
        board: `ood_lib.leaderboard`, or a table with its columns run, detector, near, near_low, ..., far_high.
        follow: the detector that is followed at first; None: the first one.

    Raises:
        ValueError: no line has both values, or no line is of the detector to follow.
    """
    alt = need("altair")
    columns = [f"{group}{end}" for group in ("near", "far") for end in ("", "_low", "_high")]
    both = board.dropna(subset=["near", "far"])
    if both.empty:
        raise ValueError(f"none of the {len(board)} lines given has a near and a far AUROC; expected one at least")
    detectors = list(dict.fromkeys(both["detector"]))
    if follow is not None and follow not in detectors:
        raise ValueError(f"follow={follow!r} was given; expected a detector of the board: {', '.join(detectors)}")
    data = both[["run", "detector"]].join((100 * both[columns]).round(1))
    rows = json.loads(data.to_json(orient="records"))  # an interval that is missing becomes null
    network = _menu("network", "network", list(dict.fromkeys(both["run"])))
    followed = _menu("followed", "detector to follow", detectors)
    followed.param.value = follow or detectors[0]
    lows, highs = data[["near", "far"]].min(), data[["near", "far"]].max()

    def axis(group: str, end: str = "") -> Any:
        scale = alt.Scale(domain=[lows[group] - 2, min(100.0, highs[group] + 2)], nice=False)
        channel = alt.X if group == "near" else alt.Y
        return channel(f"{group}{end}:Q", title=f"{NAMES[group]} AUROC in %", scale=scale)

    axes = {"x": axis("near"), "y": axis("far")}
    here = alt.Chart(alt.Data(values=rows)).transform_filter("datum.run == network")
    spoken = {group: _interval(group) for group in ("near", "far")}
    here = here.transform_calculate(of_near=spoken["near"], of_far=spoken["far"], chosen="datum.detector == followed")
    tip = [
        alt.Tooltip(f"{f}:N", title=t) for f, t in (("detector", "detector"), ("of_near", "near"), ("of_far", "far"))
    ]
    kinds = {"domain": [True, False]}
    marks = here.mark_point(filled=True, opacity=0.85).encode(
        **axes,
        color=alt.Color("chosen:N", legend=None, scale=alt.Scale(**kinds, range=[COLORS["other"], "#888888"])),
        shape=alt.Shape("chosen:N", legend=None, scale=alt.Scale(**kinds, range=["square", "circle"])),
        size=alt.Size("chosen:N", legend=None, scale=alt.Scale(**kinds, range=[150, 60])),
        tooltip=tip,
    )
    one = here.transform_filter("datum.chosen")
    bar = one.mark_rule(color=COLORS["other"], clip=True, strokeWidth=2)
    bars = bar.encode(x=axis("near", "_low"), x2="near_high:Q", y=axes["y"])
    bars += bar.encode(x=axes["x"], y=axis("far", "_low"), y2="far_high:Q")
    name = one.mark_text(align="right", dx=-9, dy=9, fontSize=13).encode(**axes, text="detector:N")
    picture = (bars + marks + name).properties(width=2 * WIDTH - 100, height=340)
    said = "datum.detector + ': near ' + datum.of_near + ', far ' + datum.of_far"
    line = one.transform_calculate(text=said).mark_text(align="left", fontSize=13, limit=2 * WIDTH)
    line = line.encode(x=alt.value(0), text="text:N").properties(width=2 * WIDTH - 100, height=20)
    return (picture & line).add_params(network, followed).configure_view(stroke=None)


def _interval(group: str) -> str:
    """An expression that writes a value with its interval, or alone where it has none."""
    ends = f"' [' + format(datum.{group}_low, '.1f') + ', ' + format(datum.{group}_high, '.1f') + ']'"
    return f"format(datum.{group}, '.1f') + (isValid(datum.{group}_low) ? {ends} : '')"


def pictures_of_an_embedding(
    points: "np.ndarray", images: Tensor, roles: Sequence[str], sets: Sequence[str]
) -> "alt.HConcatChart":
    """An embedding in the plane with the image behind each point, under the pointer or chosen by a slider.

    Args:
        points: (N, 2), such as `plots.umap` makes them.
        images: (N, C, H, W) in [0, 1], with one channel or three; small, because the chart holds all of them.
        roles: id, near or far, for each point.
        sets: what set each image is of.

    Raises:
        ValueError: the lengths differ, or there is no point.
    """
    alt = need("altair")
    lengths = [len(points), len(images), len(roles), len(sets)]
    check(
        lambda n: len(set(n)) == 1 and n[0], "as many images, roles and sets as points, one at least", lengths=lengths
    )
    rows = [
        {
            "i": i,
            "x": round(float(x), 2),
            "y": round(float(y), 2),
            "kind": NAMES[role],
            "set": own,
            "image": _thumbnail(image),
        }
        for i, ((x, y), image, role, own) in enumerate(zip(points, images, roles, sets))
    ]
    which = _slider("number", f"point, 1 to {len(rows)}", 1, len(rows), 1, 1)
    present = [role for role in ("id", "near", "far") if role in set(roles)]
    kinds, top = [NAMES[role] for role in present], alt.Legend(orient="top", title=None)
    every = alt.Chart(alt.Data(values=rows))
    places = {
        "x": alt.X("x:Q", axis=None, scale=alt.Scale(zero=False)),
        "y": alt.Y("y:Q", axis=None, scale=alt.Scale(zero=False)),
    }
    mute = {"aria": False}  # hundreds of points, each read out with the bytes of its image; the words below say the set
    marks = every.mark_point(filled=True, size=26, opacity=0.75, **mute).encode(
        **places,
        color=alt.Color("kind:N", legend=top, scale=alt.Scale(domain=kinds, range=[COLORS[role] for role in present])),
        shape=alt.Shape("kind:N", legend=top, scale=alt.Scale(domain=kinds, range=[SHAPES[role] for role in present])),
        tooltip=[alt.Tooltip("set:N"), alt.Tooltip("image:N")],
    )
    one = every.transform_filter("datum.i == number - 1")
    ring = one.mark_point(size=200, strokeWidth=2.5, color="#888888", filled=False, **mute).encode(**places)
    left = (marks + ring).properties(width=WIDTH + 80, height=WIDTH + 20)
    shown = one.mark_image(width=110, height=110, smooth=False, **mute).encode(
        x=alt.value(60), y=alt.value(60), url="image:N"
    )
    named = f"datum.kind == '{NAMES['id']}' ? datum.set : datum.set + ', ' + datum.kind"  # ID sets say so themselves
    words = one.transform_calculate(text=named).mark_text(fontSize=13)
    words = words.encode(x=alt.value(60), y=alt.value(130), text="text:N")
    right = (shown + words).properties(width=120, height=150)
    return (left | right).add_params(which).configure_view(stroke=None)


def _thumbnail(image: Tensor) -> str:
    """An image as the address of a PNG that holds it."""
    from PIL import Image

    pixels = (255 * image.clamp(0, 1)).round().byte().cpu()
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

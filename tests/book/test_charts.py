"""Charts with sliders: what the browser computes is what the library computes."""

import base64
import io
import json
import math
import re
from typing import Any

import pandas as pd
import pytest
import torch
from ood_book import explorables
from PIL import Image

import ood_lib as ood
from ood_lib.detectors.weiper import gaussian_histogram
from ood_lib.evaluation.metrics import auroc, fpr_at_tpr
from ood_lib.evaluation.plots import COLORS

vl_convert = pytest.importorskip("vl_convert")


def texts(chart: Any, **sliders: float) -> list[str]:
    """All text of the chart as Vega draws it with the sliders at these values."""
    spec = chart.to_dict()
    known = {p["name"]: p for p in spec["params"]}
    for name, value in sliders.items():
        known[name]["value"] = value
    return re.findall(r"<text[^>]*>([^<]*)</text>", vl_convert.vegalite_to_svg(json.dumps(spec)))


def number(found: list[str], label: str) -> float:
    (line,) = [text for text in found if text.startswith(label)]
    return float(re.search(r"-?[\d.]+(?= %|$)", line.removeprefix(label).replace("−", "-"))[0])


@pytest.mark.parametrize(("d", "s", "tau"), [(1.5, 1.0, 1.0), (1.0, 2.0, 0.3), (3.0, 0.5, 2.5)])
def test_thresholds_show_the_numbers_of_the_metrics(d: float, s: float, tau: float):
    grid = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    known, unknown = grid, d + s * grid
    found = texts(explorables.score_thresholds(), d=d, s=s, tau=tau)
    expected = {
        "ID images rejected (false alarms): ": (known > tau).double().mean(),
        "OOD images accepted (missed): ": (unknown <= tau).double().mean(),
        "AUROC: ": auroc(known, unknown)[0],
        "FPR95, ID recalled: ": fpr_at_tpr(known, unknown, 0.95, "id")[0],
        "FPR95, OOD recalled: ": fpr_at_tpr(known, unknown, 0.95, "ood")[0],
    }
    for label, value in expected.items():
        assert number(found, label) == pytest.approx(100 * float(value), abs=0.11), label


@pytest.mark.parametrize("logits", [(-4.0, -4.0, -4.0), (3.0, -2.0, 0.5), (6.0, 6.0, -8.0)])
def test_label_energies_are_those_of_the_library(logits: tuple[float, float, float]):
    f = torch.tensor([logits], dtype=torch.float64)
    found = texts(explorables.label_energies(), f1=logits[0], f2=logits[1], f3=logits[2])
    shown = [float(t.replace("−", "-")) for t in found if re.fullmatch(r"[−-]?\d+\.\d\d", t)]
    expected = [ood.joint_energy(f), ood.max_logit(f), 10 * ood.msp(f)]
    assert shown == pytest.approx([x.item() for x in expected], abs=0.006)
    none = (1 - f.sigmoid()).prod().item()
    assert number(found, "P(no known label) = ∏ (1 − σ) = exp(JointEnergy): ") == pytest.approx(100 * none, abs=0.06)
    assert none == pytest.approx(ood.joint_energy(f).exp().item())


@pytest.mark.parametrize(("sigma", "outlier"), [(0.3, 0.5), (1.5, 4.0), (4.0, -5.0)])
def test_norms_are_those_of_the_exact_score(sigma: float, outlier: float):
    x = torch.tensor([2.3, outlier], dtype=torch.float64, requires_grad=True)
    width = (0.09 + sigma**2) ** 0.5
    bumps = torch.stack([torch.distributions.Normal(c, width).log_prob(x) for c in (-2.0, 2.0)])
    (score,) = torch.autograd.grad(bumps.logsumexp(0).sum(), x)
    typical, other = (sigma * score.abs()).tolist()
    found = texts(explorables.score_norms_of_two_bumps(), sigma=sigma, o=outlier)
    assert number(found, "Norm at the typical point: ") == pytest.approx(typical, abs=6e-4)
    assert number(found, "Norm at the outlier: ") == pytest.approx(other, abs=6e-4)
    longer = "the typical point" if typical > other else "the outlier"
    assert f"Longer is the score of: {longer}" in found


def test_a_display_carries_the_chart_for_the_pages_and_html_for_others(monkeypatch: pytest.MonkeyPatch):
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    explorables.show(explorables.score_thresholds(), "Drag it.", "Two densities and a threshold.")
    (bundle,) = shown
    (spec,) = [x for kind, x in bundle.items() if kind.startswith("application/vnd.vegalite.")]
    assert spec["description"] == "Two densities and a threshold." and spec["usermeta"]["caption"] == "Drag it."
    assert "text/html" in bundle
    assert len(json.dumps(spec)) < 300_000


@pytest.mark.parametrize(("delta", "scale", "image"), [(1.8, 1.0, "sure"), (0.3, 2.5, "sure"), (4.0, 0.5, "torn")])
def test_weiper_space_and_its_divergence_are_those_of_the_library(delta: float, scale: float, image: str):
    generator = torch.Generator().manual_seed(0)
    train = 4 * torch.randn(5, 3, generator=generator), 0.5 + torch.rand(5, 3, generator=generator)
    images = {"sure": (torch.tensor([9.0, -2.0, -3.0]), torch.ones(3)), "torn": (torch.zeros(3), torch.full((3,), 0.5))}
    chart = explorables.perturbed_logits(train, images, (-12.0, 14.0), bins=40)
    found = number(texts(chart, delta=delta, scale=scale, image=image), "Divergence D of this image: ")
    means, noise = (x.double() for x in images[image])
    p, q = (
        (gaussian_histogram(m.double(), (u * delta).double(), -12.0, 14.0, 40).mean(0) + 0.025) / 2
        for m, u in (train, (means[None], noise[None] * scale))
    )
    assert found == pytest.approx(((p - q) * (p.log() - q.log())).sum().item(), abs=2e-4)


@pytest.mark.parametrize(("lam", "temperature", "place"), [(0.25, 1.0, 0.0), (2.0, 5.0, 0.4), (0.05, 0.5, -4.0)])
def test_the_hybrid_is_the_prior_with_the_best_residual(lam: float, temperature: float, place: float):
    x = torch.tensor([place, 1.5], dtype=torch.float64)
    bumps = torch.stack([torch.distributions.Normal(c, 0.5).log_prob(x) for c in (-1.5, 1.5)])
    p, q = bumps.logsumexp(0) - torch.tensor(2.0).log(), torch.distributions.Normal(0.0, 2.5**0.5).log_prob(x)
    prior = -q / temperature
    hybrid = prior - ((p - q) / 2).tanh() / (2 * lam)
    found = texts(explorables.hybrid_energy(), lam=lam, T=temperature, o=place)
    for kind, energy in (("Prior", prior), ("Hybrid", hybrid)):
        gap = (energy[0] - energy[1]).item()
        assert number(found, f"{kind}, OOD point minus the centre of a bump: ") == pytest.approx(gap, abs=0.006)
    assert f"The hybrid ranks it {'above' if hybrid[0] > hybrid[1] else 'below'} the bump" in found


@pytest.mark.parametrize(("a", "b", "place"), [(0.65, 0.0, 0.0), (0.1, 0.3, 0.4), (1.2, 0.6, -4.0)])
def test_a_flow_by_hand_is_the_change_of_variables_and_its_loss_the_cross_entropy(a: float, b: float, place: float):
    def score(x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        u = a * x + b * x**3
        (slope,) = torch.autograd.grad(u.sum(), x)
        return -torch.distributions.Normal(0.0, 1.0).log_prob(u.detach()) - slope.log()

    x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    p = torch.stack([torch.distributions.Normal(c, 0.5).log_prob(x).exp() for c in (-1.5, 1.5)]).mean(0)
    found = texts(explorables.flow_by_hand(), a=a, b=b, o=place)
    there = score(torch.tensor([place, 1.5], dtype=torch.float64))
    assert number(found, "Score −log p of the OOD point: ") == pytest.approx(there[0].item(), abs=0.006)
    assert number(found, "Score of the centre of a bump: ") == pytest.approx(there[1].item(), abs=0.006)
    assert f"The flow ranks the OOD point {'above' if there[0] > there[1] else 'below'} the bump" in found
    loss, least = (number(found, label) for label in ("Loss", "The lowest that an increasing map can reach: "))
    assert loss == pytest.approx(torch.trapezoid(p * score(x), x).item(), abs=0.006)
    assert least == pytest.approx(-torch.trapezoid(p * p.log(), x).item(), abs=0.006) and least <= loss


def some_pairs() -> list[dict[str, Any]]:
    """The intervals of two pairs of detectors, on one size and two draws of ten images."""
    generator, rows = torch.Generator().manual_seed(0), []
    for pair, shift in (("KNN", "MSP"), 3.0), (("MSP", "GEN"), 0.1):
        for draw in (1, 2):
            noise = torch.randn(2, 2, 40, generator=generator, dtype=torch.float64)
            (a, b), (c, d) = noise[0], noise[1] + torch.tensor([[shift], [0.1]])
            place = {"pair": " and ".join(pair), "size": 1, "draw": draw, "n": 40}
            for name, own in zip(pair, ((a, c), (b, d))):
                value, (low, high) = auroc(*own)
                rows.append(place | {"what": name, "value": value, "low": low, "high": high})
            both = ood.compare(a, c, b, d)
            rows.append(place | {"what": "difference", "value": both.difference, "low": both.low, "high": both.high})
    return rows


@pytest.mark.parametrize("pair", ["KNN and MSP", "MSP and GEN"])
@pytest.mark.parametrize("draw", [1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_a_pair_is_called_better_where_its_interval_leaves_out_zero(pair: str, draw: int, turned: bool):
    rows = some_pairs()
    if turned:  # the second is the better one
        rows = [
            row | {"low": -row["high"], "high": -row["low"]} if row["what"] == "difference" else row for row in rows
        ]
    (one,) = [r for r in rows if (r["pair"], r["draw"], r["what"]) == (pair, draw, "difference")]
    chart = explorables.paired_intervals(rows, size=1)
    word = "the first is" if one["low"] > 0 else "the second is" if one["high"] < 0 else "these images cannot"
    (line,) = [text for text in texts(chart, pair=pair, draw=draw) if text.startswith("40 ID and 40 OOD images, ")]
    assert line.startswith(f"40 ID and 40 OOD images, {pair}: {word}")
    assert (word != "these images cannot") == (pair == "KNN and MSP")
    assert {*pair.split(" and "), "difference"} <= set(texts(chart, pair=pair, draw=draw))


def test_both_panels_of_a_pair_show_its_values_and_intervals():
    rows = some_pairs()
    drawn = vl_convert.vegalite_to_svg(json.dumps(explorables.paired_intervals(rows, size=1).to_dict()))
    bars = re.findall(r'what: (\w+); high[^>]*translate\(([-\d.]+),[^>]* x2="([-\d.]+)"', drawn)
    dots = re.findall(r'label="value: [-\d.]+; what: (\w+)"[^>]*translate\(([-\d.]+),', drawn)
    shown = {row["what"]: row for row in rows if (row["pair"], row["draw"]) == ("KNN and MSP", 1)}
    assert {name for name, *_ in bars} == {name for name, _ in dots} == shown.keys()
    start = {"difference": -20}  # of the axis, which is 40 points and 270 pixels long
    for found, ends in ((bars, ("low", "high")), (dots, ("value",))):
        for name, x, *length in found:
            pixels = [(100 * shown[name][end] - start.get(name, 60)) / 40 * 270 for end in ends]
            assert float(x) == pytest.approx(pixels[0], abs=0.1)
            assert [float(n) for n in length] == pytest.approx([pixel - pixels[0] for pixel in pixels[1:]], abs=0.1)


def test_a_pair_starts_at_a_size_that_was_drawn():
    with pytest.raises(ValueError, match="size=3 was given; expected a size of the rows, 1 to 1"):
        explorables.paired_intervals(some_pairs())
    with pytest.raises(ValueError, match="1 to 0"):
        explorables.paired_intervals([], size=1)


def a_plane() -> Any:
    places = (torch.cartesian_prod(torch.arange(2), torch.arange(2)) + 0.5) * 2
    below = {"KNN": torch.tensor([0.0, 0.25, 0.5, 1.0]), "MSP": torch.tensor([1.0, 0.0, 0.0, 0.0])}
    clouds = [("id", torch.tensor([[1.0, 3.0]])), ("far", torch.tensor([[0.0, 4.0], [2.0, 2.0]]))]
    said = {"KNN": {"between": 0.913, "short": 0.5}, "MSP": {"between": 0.2, "short": 1.0}}
    return explorables.scores_in_a_plane(places, below, clouds, said, reach=4.0)


@pytest.mark.parametrize(("detector", "darkest"), [("KNN", (2, 2)), ("MSP", (0, 0))])
def test_a_plane_is_darkest_where_the_score_of_the_chosen_detector_is_largest(detector: str, darkest: tuple[int, int]):
    chart = a_plane()
    line = {"KNN": "KNN: AUROC between 91 %, short 50 %", "MSP": "MSP: AUROC between 20 %, short 100 %"}
    assert [text for text in texts(chart, detector=detector) if "AUROC" in text] == [line[detector]]
    spec = chart.to_dict()
    spec["params"][0]["value"] = detector
    drawn = vl_convert.vegalite_to_svg(json.dumps(spec))
    cells = re.findall(r'd="M([\d.]+),([\d.]+)h200v165h-200Z" fill="rgb\((\d+), \d+, \d+\)"', drawn)
    assert len(cells) == 4
    x, y, _ = min(cells, key=lambda cell: int(cell[2]))
    assert (float(x) / 100, (330 - 165 - float(y)) / 82.5) == darkest


def test_points_of_a_plane_stand_in_their_place_and_look_like_their_role():
    drawn = vl_convert.vegalite_to_svg(json.dumps(a_plane().to_dict()))
    groups = re.findall(r'mark-symbol role-mark concat_0_layer_[12]_marks".*?</g>', drawn, re.S)
    found = [re.findall(r'translate\(([-\d.]+),([-\d.]+)\)[^>]*fill="(#\w+)"', group) for group in groups]
    place = [[(float(x) / 100, 4 - float(y) / 82.5, color.upper()) for x, y, color in group] for group in found]
    assert place == [[(1, 3, COLORS["id"])], [(0, 4, COLORS["far"]), (2, 2, COLORS["far"])]]


def test_a_plane_is_a_square_grid():
    with pytest.raises(ValueError, match="places=3 was given; expected a square grid"):
        explorables.scores_in_a_plane(torch.zeros(3, 2), {}, [], {})


@pytest.mark.parametrize("layer", [0.0, 1.0, 0.5])
def test_points_stand_where_the_flow_has_put_them(layer: float):
    steps = [torch.tensor([[-4.0, 4.0]]), torch.tensor([[0.0, 2.0]])]
    spec = explorables.flow_layers(steps, [x.flip(1) for x in steps]).to_dict()
    spec["params"][0]["value"] = layer
    drawn = vl_convert.vegalite_to_svg(json.dumps(spec))
    group = re.search(r'mark-symbol role-mark layer_1_marks".*?</g>', drawn, re.S)[0]
    places = [[float(v) for v in p] for p in re.findall(r"translate\(([-\d.]+),([-\d.]+)\)", group)]
    x, y = (steps[0] + layer * (steps[1] - steps[0]))[0].tolist()
    expected = [[(u + 4) * 340 / 8, (4 - v) * 340 / 8] for u, v in ((x, y), (y, x))]
    assert places == [pytest.approx(place) for place in expected]


def test_a_flow_has_as_many_steps_for_id_as_for_ood():
    with pytest.raises(ValueError, match="2 steps of ID and 1 of OOD"):
        explorables.flow_layers([torch.zeros(1, 2)] * 2, [torch.zeros(1, 2)])


def a_board() -> pd.DataFrame:
    """Two detectors on two networks, and one that has no far set."""
    names = ["near", "near_low", "near_high", "far", "far_low", "far_high"]
    lines = {
        ("a", "KNN"): [0.81, 0.8, 0.82, 0.912, 0.9, 0.93],
        ("a", "MSP"): [0.7, 0.6, 0.75, 0.8, 0.78, 0.82],
        ("b", "KNN"): [0.55, math.nan, math.nan, 0.6, math.nan, math.nan],
        ("b", "MSP"): [0.9, 0.89, 0.91, 0.95, 0.94, 0.96],
        ("c", "MSP"): [0.9, 0.89, 0.91, math.nan, math.nan, math.nan],
    }
    return pd.DataFrame(lines, names).T.rename_axis(["run", "detector"]).reset_index()


@pytest.mark.parametrize(
    ("network", "followed", "line"),
    [
        ("a", "KNN", "KNN: near 81.0 [80.0, 82.0], far 91.2 [90.0, 93.0]"),
        ("b", "MSP", "MSP: near 90.0 [89.0, 91.0], far 95.0 [94.0, 96.0]"),
        ("b", "KNN", "KNN: near 55.0, far 60.0"),
    ],
)
def test_near_and_far_are_those_of_the_board_for_each_network_and_detector(network: str, followed: str, line: str):
    assert line in texts(explorables.near_against_far(a_board()), network=network, followed=followed)


def test_a_network_without_both_groups_is_no_choice_and_the_axes_reach_all_others():
    spec = explorables.near_against_far(a_board()).to_dict()
    (network,) = [p for p in spec["params"] if p["name"] == "network"]
    assert network["bind"]["options"] == ["a", "b"]
    assert "54" in texts(explorables.near_against_far(a_board()))  # of the network that is not shown first
    with pytest.raises(ValueError, match="none of the 1 lines"):
        explorables.near_against_far(a_board().query("run == 'c'"))
    with pytest.raises(ValueError, match="expected a detector of the board: KNN, MSP"):
        explorables.near_against_far(a_board(), follow="knn")


def test_behind_a_point_is_its_own_image():
    images = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.6), torch.ones(1, 2, 2)])
    arguments = [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], images, ["id", "near", "far"], ["A", "B", "C"]
    chart = explorables.pictures_of_an_embedding(*arguments)
    spec = json.dumps(chart.to_dict())
    for image, value in zip(re.findall(r'"image": "data:image/png;base64,([^"]+)"', spec), (0, 153, 255)):
        assert Image.open(io.BytesIO(base64.b64decode(image))).getpixel((1, 1)) == value
    assert "A" in texts(chart, number=1) and "A, in-distribution" not in texts(chart, number=1)
    assert "B, near-OOD" in texts(chart, number=2) and "B, near-OOD" not in texts(chart, number=3)
    marks = re.findall(r'"mark": (\{[^{}]*\})', spec)
    assert [json.loads(m)["type"] for m in marks if json.loads(m).get("aria", True)] == ["text"]  # read out: the words
    with pytest.raises(ValueError, match="as many images"):
        explorables.pictures_of_an_embedding(arguments[0][:2], *arguments[1:])

"""Laws of the figures: a role looks the same everywhere, and every function draws what it was given."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from torch.utils.data import TensorDataset

from ood_lib import summarize
from ood_lib.evaluation import plots
from ood_lib.evaluation.plots import (
    COLORS,
    LINES,
    MARKERS,
    SERIES,
    benchmark_table,
    density,
    dots,
    embedding,
    images,
    markdown_table,
    theme,
    umap,
)
from tests.conftest import normal

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.fixture(autouse=True)
def own_figures():
    with plt.rc_context():
        yield
    plt.close("all")


def drawn(axes: Axes) -> None:
    axes.figure.canvas.draw()


# -- roles ------------------------------------------------------------------------------------------------------


def test_the_colours_of_roles_are_okabe_and_itos():
    assert set(COLORS.values()) - {COLORS["grey"]} <= OKABE_ITO
    assert COLORS.keys() == MARKERS.keys() == LINES.keys()


def test_roles_are_told_apart_by_colour_and_without_colour():
    roles = [role for role in COLORS if role != "grey"]
    assert len({MARKERS[r] for r in roles}) == len({LINES[r] for r in roles}) == len(roles)
    for a, b in combinations(COLORS, 2):
        assert np.linalg.norm(np.subtract(to_rgb(COLORS[a]), to_rgb(COLORS[b]))) > 0.25


# Machado, Oliveira & Fernandes 2009: what is left of linear RGB where the first or the second kind of cone is missing.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
}
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def linear(colors: list[str]) -> np.ndarray:
    rgb = np.array([to_rgb(color) for color in colors])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colors: list[str], vision: str) -> np.ndarray:
    """CIELAB (N, 3) of colours as an eye sees them: equal distances look about equally large."""
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], LUMINANCE, [0.0193, 0.1192, 0.9503]])
    seen = (linear(colors) @ VISION[vision].T).clip(0, 1) @ to_xyz.T / to_xyz.sum(1)
    x, y, z = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def test_lab_and_the_simulated_eyes_are_the_known_ones():
    known = np.array([[100, 0, 0], [53.24, 80.09, 67.20]])
    assert lab(["#ffffff", "#ff0000"], "normal") == pytest.approx(known, abs=0.05)
    for vision in VISION:
        assert lab(["#777777"], vision)[0, 1:] == pytest.approx([0, 0], abs=0.1)  # grey stays grey
    red, green = (lab(["#ff0000", "#009900"], vision) for vision in ("normal", "deuteranopia"))
    assert np.linalg.norm(np.subtract(*green)[1:]) < 0.5 * np.linalg.norm(np.subtract(*red)[1:])


@pytest.mark.parametrize("vision", VISION)
def test_series_are_apart_from_the_roles_and_by_brightness_from_each_other(vision: str):
    series = lab([style["color"] for style in SERIES], vision)
    for roles, least in ((("id", "near", "far"), 20), (("other", "grey"), 10)):
        colors = lab([COLORS[role] for role in roles], vision)
        assert np.linalg.norm(series[:, None] - colors, axis=-1).min() > least
    assert np.diff(series[:, 0]).min() > 10  # lightness, from 0 to 100: dark to light


def test_series_are_told_apart_without_colour_and_by_markers_of_no_role():
    assert len({style["marker"] for style in SERIES} | set(MARKERS.values())) == len(SERIES) + len(MARKERS)
    assert len({style["linestyle"] for style in SERIES}) == len(SERIES)
    ax = plt.subplots()[1]
    for n, style in enumerate(SERIES):
        ax.plot([0, 1], [n, n], **style)
    drawn(ax)


def test_series_can_be_seen_on_a_white_card_and_the_last_two_on_a_dark_page():
    white, dark, *series = linear(["#ffffff", "#14181e", *(style["color"] for style in SERIES)]) @ LUMINANCE + 0.05
    assert white / max(series) > 2.7  # the orange of near-OOD has 2.2
    assert min(series[-2:]) / dark > 3


# -- figures ----------------------------------------------------------------------------------------------------


def test_theme_sets_the_palette_and_the_spines():
    theme()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == [style["color"] for style in SERIES]
    assert not plt.rcParams["axes.spines.top"]


@pytest.mark.parametrize("given", [False, True])
def test_density_draws_one_curve_per_set_in_the_style_of_its_role(given: bool):
    ax = plt.subplots()[1] if given else None
    scores = {"id": normal(50), "textures": normal(40) + 3, "near": normal(30, seed=1).float()}
    result = density(scores, roles={"textures": "far"}, threshold=1.5, ax=ax)
    assert isinstance(result, Axes) and (ax is None or result is ax)
    curves = {line.get_label(): line for line in result.lines if not line.get_label().startswith("_")}
    assert list(curves) == ["in-distribution", "textures", "near-OOD"]
    assert [to_hex(c.get_color()).upper() for c in curves.values()] == [COLORS[r] for r in ("id", "far", "near")]
    assert [c.get_linestyle() for c in curves.values()] == [LINES[r] for r in ("id", "far", "near")]
    assert any(np.allclose(line.get_xdata(), 1.5) for line in result.lines)
    assert [text.get_text() for text in result.texts] == ["τ"]
    assert "larger = more OOD" in result.get_xlabel()
    for curve, values in zip(curves.values(), scores.values()):
        assert curve.get_xdata().min() >= values.min() - 1e-6 and curve.get_xdata().max() <= values.max() + 1e-6
    drawn(result)


def test_embedding_draws_the_points_of_each_group():
    points = normal(30, 2).numpy()
    groups = {"id": np.arange(30) < 20, "far": np.arange(20, 30)}
    result = embedding(points, groups)
    assert [len(c.get_offsets()) for c in result.collections] == [20, 10]
    assert np.allclose(result.collections[0].get_offsets(), points[:20])
    assert [to_hex(c.get_facecolor()[0]).upper() for c in result.collections] == [COLORS["id"], COLORS["far"]]
    drawn(result)


def test_a_map_keeps_neighbours_together_and_is_the_same_for_a_seed():
    rows = torch.cat([normal(40, 5), normal(40, 5) + 20])
    threads = torch.get_num_threads()
    points = umap(rows, seed=0)
    assert points.shape == (80, 2) and np.array_equal(points, umap(rows, seed=0))
    assert torch.get_num_threads() == threads
    near, far = (np.linalg.norm(points[:40].mean(0) - half, axis=1) for half in (points[:40], points[40:]))
    assert near.max() < far.min()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_shows_pictures_from_the_first_to_the_last(channels: int):
    data = TensorDataset(torch.linspace(0, 1, 7)[:, None, None, None].expand(7, channels, 4, 4), torch.zeros(7))
    figure = images({"digits": data, "noise": data}, columns=4, roles={"digits": "id"})
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert len(shown) == 8
    assert [float(a.flat[0]) for a in shown[:4]] == pytest.approx([0, 2 / 6, 4 / 6, 1])
    names = {text.get_text(): text.get_color() for ax in figure.axes for text in ax.texts}
    assert names == {"digits": COLORS["id"], "noise": COLORS["grey"]}
    figure.canvas.draw()


def summary(groups: tuple[str, ...] = ("near", "far")) -> pd.DataFrame:
    rows = [(d, g, 0.8 + 0.02 * i, 0.7, 0.95, 3) for i, d in enumerate(["MSP", "KNN"]) for g in groups]
    return pd.DataFrame(rows, columns=["detector", "group", "value", "low", "high", "seeds"])


def test_dots_draws_each_detector_once_per_group():
    result = dots(summary())
    assert isinstance(result, Axes)
    assert [tick.get_text() for tick in result.get_yticklabels()] == ["MSP", "KNN"]
    for line, role in zip(result.lines, ("near", "far"), strict=True):
        assert line.get_xdata() == pytest.approx([0.8, 0.82])
        assert (line.get_color(), line.get_marker()) == (COLORS[role], MARKERS[role])
    assert result.yaxis_inverted()
    drawn(result)


def test_dots_says_of_one_network_that_it_has_no_interval():
    assert dots(summary()).get_xlabel().endswith("95 % interval over seeds)")
    alone = dots(summary().assign(low=np.nan, high=np.nan))
    assert alone.get_xlabel().endswith("one network: no interval)")
    drawn(alone)


def test_dots_manages_without_one_of_the_groups():
    drawn(dots(summary(groups=("far",))))


@pytest.mark.parametrize("look", ["near", SERIES[3] | {"label": "a method"}])
def test_a_band_is_the_mean_with_the_range_in_the_style_of_a_role_or_a_series(look):
    values = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 8.0]}, index=[10, 20])
    ax = plots.band(values, look, plt.subplots()[1])
    (line,), (area,) = ax.lines, ax.collections
    style = {"color": COLORS["near"], "marker": "^", "label": "near-OOD"} if look == "near" else look
    assert (line.get_color(), line.get_marker(), line.get_label()) == (style["color"], style["marker"], style["label"])
    assert line.get_xdata() == pytest.approx([10, 20]) and line.get_ydata() == pytest.approx([2, 5])
    corners = {tuple(corner) for corner in area.get_paths()[0].vertices}
    assert corners == {(10, 1), (10, 3), (20, 2), (20, 8)}
    assert to_hex(area.get_facecolor()[0]).upper() == style["color"]


# -- the table --------------------------------------------------------------------------------------------------


def table(values: dict[str, list[float]], metric: str = "auroc", spread: float = 0.0) -> pd.DataFrame:
    """One OOD set; detector -> its value for each seed."""
    rows = [
        {"detector": d, "ood_set": "far-away", "group": "far", "metric": metric, "value": v, "low": v - spread,
         "high": v + spread, "seed": seed, "seconds": 1.0}
        for d, seeds in values.items()
        for seed, v in enumerate(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def bold(style) -> set[str]:
    """Names of the detectors set in bold."""
    style._compute()
    return {style.data.index[row] for (row, _), css in style.ctx.items() if ("font-weight", "bold") in css}


def test_the_best_of_a_column_is_bold():
    assert bold(benchmark_table(table({"a": [0.9], "b": [0.8], "c": [0.7]}))) == {"a"}


def test_for_an_error_rate_the_best_is_the_smallest():
    assert bold(benchmark_table(table({"a": [0.9], "b": [0.8]}, "fpr95"), "fpr95")) == {"b"}


def test_values_that_the_interval_of_the_best_reaches_are_bold_too():
    one_seed = table({"a": [0.90], "b": [0.88], "c": [0.80]}, spread=0.03)
    assert bold(benchmark_table(one_seed)) == {"a", "b"}
    # of two seeds, Student's interval over seeds, whatever that of the test set: 12.7 standard errors of 0.001
    several = table({"a": [0.919, 0.921], "b": [0.908, 0.908], "c": [0.906, 0.906]}, spread=0.5)
    assert bold(benchmark_table(several)) == {"a", "b"}


def test_the_table_shows_percent_means_and_intervals_over_seeds_and_its_caption():
    style = benchmark_table(table({"a": [0.919, 0.921]}, spread=0.5), caption="The caption")
    assert style.data.loc["a", ("far", "far-away")].startswith("92.0")
    html = style.to_html()
    assert "[90.7, 93.3]" in html and "far-away" in html
    assert "The caption; in brackets the 95 % interval over networks" in html
    one_seed = benchmark_table(table({"a": [0.9]}, spread=0.03)).to_html()
    assert "90.0 <small>[87.0, 93.0]</small>" in one_seed and "interval over test images" in one_seed


def test_an_interval_that_was_cut_at_one_is_shown_by_its_ends():
    values = {"a": [0.99, 0.85, 0.97]}  # 93.7 ± 18.8
    shown = "93.7 <small>[74.9, 100.0]</small>"
    assert benchmark_table(table(values)).data.loc["a", ("far", "far-away")] == shown
    assert "| a | 93.7 [74.9, 100.0] |" in markdown_table(summarize(table(values)))


def test_networks_too_few_to_tell_anything_get_no_interval_and_the_caption_says_why():
    wild = benchmark_table(table({"a": [0.1, 0.8, 0.5], "b": [0.7, 0.7, 0.7]}), caption="AUROC")
    assert wild.data.loc["a", ("far", "far-away")] == "46.7 <small>(cannot tell)</small>"
    assert "[70.0, 70.0]" in wild.data.loc["b", ("far", "far-away")] and "as wide as the scale" in wild.to_html()
    assert "cannot tell" not in benchmark_table(table({"a": [0.7, 0.71, 0.72]}), caption="AUROC").to_html()


def test_a_table_of_another_metric_names_those_that_it_has():
    with pytest.raises(ValueError, match=r"metric='fpr95' was given; .* the table holds \['auroc'\]"):
        benchmark_table(table({"a": [0.9]}), "fpr95")


def test_a_detector_that_has_not_met_a_set_has_an_empty_cell():
    met, not_met = table({"a": [0.9, 0.8]}), table({"b": [0.7, 0.6]}).assign(ood_set="other", group="near")
    both = pd.concat([met, not_met])
    cells = benchmark_table(both).data
    assert cells.loc["b", ("far", "far-away")] == cells.loc["a", ("near", "other")] == ""
    assert markdown_table(summarize(both)).splitlines()[3].endswith("|  |")


def test_a_network_that_is_there_twice_is_refused():
    once = table({"a": [0.9, 0.8]})
    with pytest.raises(ValueError, match="more than once: auroc of 'a' on 'far-away', seed 1"):
        benchmark_table(pd.concat([once, once[once["seed"] == 1]]))


def test_a_markdown_table_has_a_line_per_detector_in_its_order():
    lines = markdown_table(summary()).splitlines()
    assert lines[0] == "| detector | near-OOD | far-OOD |"
    cells = {"MSP": "80.0 [70.0, 95.0]", "KNN": "82.0 [70.0, 95.0]"}
    assert lines[2:] == [f"| {name} | {cell} | {cell} |" for name, cell in cells.items()]
    one_seed = markdown_table(summary().assign(low=float("nan"), high=float("nan")))
    assert one_seed.splitlines()[2] == "| MSP | 80.0 (one network) | 80.0 (one network) |"


def test_a_markdown_table_leaves_out_a_group_that_is_not_there():
    near = summary()[lambda t: t["group"] == "near"]
    assert markdown_table(near).splitlines()[0] == "| detector | near-OOD |"


def test_everything_named_is_there():
    assert all(hasattr(plots, name) for name in plots.__all__)


def sortable() -> str:
    keys = pd.DataFrame({"name": ["a", "b<", "c"], "value": [0.5, np.nan, 0.25]})
    cells = pd.DataFrame({"name": ["a", "b&lt;", "c"], "value": ["<b>50</b>", "", "25"]})
    return plots.sortable_table(cells, keys, "x < y")


def test_a_sortable_table_keeps_what_is_shown_apart_from_what_is_sorted_by():
    page = sortable()
    assert '<td data-key="0.5"><b>50</b></td>' in page and '<td data-key=""></td>' in page
    assert 'data-key="b&lt;"' in page and "<caption>x &lt; y</caption>" in page
    assert page.count("<tr>") == 4 and page.count('<button type="button">') == 2


def test_a_sortable_table_is_a_table_without_its_script():
    bs4 = pytest.importorskip("bs4")
    page = bs4.BeautifulSoup(sortable().split("<script>")[0], "html.parser")
    cells = [[cell.text for cell in row.find_all("td")] for row in page.tbody.find_all("tr")]
    assert cells == [["a", "50"], ["b<", ""], ["c", "25"]]
    assert [head["scope"] for head in page.find_all("th")] == ["col", "col"]

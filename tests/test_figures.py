from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.colors import to_rgb
from test_tables import rows  # noqa: F401, a fixture

from srs.certificates import bounds
from study.common import plots
from study.reports import drawn, figures, results, tables
from study.reports.statistics import certified_accuracy


def test_plots_are_labelled(rows, digits):  # noqa: F811
    plots.set_style()
    curves = figures.plot_curves(rows, "MDEQ-30A")
    (axes,) = curves.axes
    assert (
        axes.get_xlabel()
        and axes.get_ylabel()
        and [t.get_text() for t in axes.get_legend().get_texts()]
        == [
            "MDEQ-30A",
            "SRS-MDEQ-3A",
        ]
    )
    votes = figures.plot_votes(
        digits.test, 0, {"A": np.arange(30) % 10, "B": np.full(30, -1)}, n0=10, sigma=0.5, seed=0, shown=10
    )
    assert len(votes.axes) == 11 and votes.axes[1].get_xlabel().split("\n")[1:] == ["0", "?"]
    history = pd.DataFrame(
        {
            "epoch": [1, 2],
            "loss": [2.0, 1.0],
            "accuracy": [0.1, 0.5],
            "residual": [0.1, 0.01],
            "unrolled": [True, False],
            "validation_accuracy": [np.nan, 0.4],
            "validation_residual": [np.nan, 0.001],
        }
    )
    never = history.assign(unrolled=False)
    drawn = plots.plot_histories({"a": history, "b": never}).axes
    assert all(a.get_xlabel() and a.get_ylabel() for a in drawn)
    lines = [(line.get_linestyle(), list(line.get_xdata())) for line in drawn[0].lines if len(line.get_xdata())]
    assert lines == [(":", [1]), ("-", [1, 2]), ("-", [1, 2])], "dotted where f is unrolled, of each training by itself"
    plt.close("all")


def test_curve_panels_share_one_scale(rows):  # noqa: F811
    figure = figures.plot_curve_panels({"a": rows, "b": rows[rows["k"] > 0]}, "MDEQ-30A")
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim() and [axes.get_title() for axes in figure.axes] == ["a", "b"]
    plt.close("all")


def test_many_methods_have_a_panel_for_each_kind_and_the_reference_in_all(rows):  # noqa: F811
    standard, serialized = rows[rows["k"] == 0], rows[rows["k"] > 0]
    many = [
        rows,
        *(standard.assign(method=f"MDEQ-{n}A", radius=0.1 * n) for n in range(1, 6)),
        standard.assign(method="AS-MDEQ-1N"),
    ]
    figure = figures.plot_curve_panels({"a": pd.concat(many), "b": serialized}, "MDEQ-30A")
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["a: standard", "a: serialized", "a: amortized", "b: serialized"]
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in shown]
    assert all(any("MDEQ-30A" in label.split("\n")[0] for label in legend) for legend in legends[:3])
    assert len({axes.get_xlim() for axes in shown}) == 1
    plt.close("all")


def test_coincident_curves_are_named_as_one(rows):  # noqa: F811
    twin = rows[rows["k"] == 0].assign(method="MDEQ-30A stopped")
    (axes,) = figures.plot_curves(pd.concat([rows, twin]), "MDEQ-30A").axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["MDEQ-30A\nMDEQ-30A stopped\n(one curve)", "SRS-MDEQ-3A"]
    grid, accuracy = axes.lines[0].get_data()
    assert accuracy.tolist() == (100 * certified_accuracy(rows[rows["k"] == 0], grid)["accuracy"]).tolist()
    plt.close("all")


LISTS = {
    (path.stem, kind): names
    for path in sorted((Path(__file__).parent.parent / "profiles").glob("*.yaml"))
    for kind, names in yaml.safe_load(path.read_text())["rows"].items()
}


@pytest.mark.parametrize("profile, kind", LISTS)
def test_no_two_methods_of_a_list_look_alike(profile, kind):
    drawn = plots.looks(LISTS[profile, kind])
    assert len(set(drawn.values())) == len(drawn)


def test_a_method_looks_the_same_in_every_company():
    every = list(dict.fromkeys(row for names in LISTS.values() for row in names if plots.look(row)))
    assert len(every) > 15 and {"MDEQ-30A", "SRS-MDEQ-3A", "AS-MDEQ-1N mean", "Unrolled-1N", "ResNet"} <= set(every)
    whole, backwards = plots.looks([*every, "some variant"]), plots.looks(every[::-1])
    assert all(whole[row] == backwards[row] == plots.looks([row])[row] for row in every)


# Machado, Oliveira and Fernandes (2009), severity 1: how linear RGB is seen without one of the three cones.
SEEN_BY = {
    "all three": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _lab(color, seen):
    srgb = np.array(to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(seen) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("who", SEEN_BY)
def test_colour_blind_readers_tell_kinds_of_methods_apart(who):
    """Lines at least 10 apart in CIELAB; the marker and the line differ besides."""
    names = ("MDEQ-30A", "MDEQ-5A", "MDEQ-1A", "SRS-MDEQ-1A", "SRS-MDEQ-3A", "AS-MDEQ-1N", "Unrolled-1N", "ResNet-110")
    labs = [_lab(plots.look(name).color, SEEN_BY[who]) for name in names]
    assert min(np.linalg.norm(a - b) for a, b in combinations(labs, 2)) > 10
    estimators = [_lab(one.color, SEEN_BY[who]) for one in plots.ESTIMATORS.values()]
    assert min(np.linalg.norm(a - b) for a, b in combinations(estimators, 2)) > 10


def test_histograms_count_every_image():
    samples = {"A": np.array([-0.1, 0.2, 0.2, 0.9]), "B": np.array([0.5])}
    figure = figures.plot_histograms({"panel": samples, "empty": {"C": np.array([])}}, "gap", bins=5)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert sum(heights) == 5 and "4 images" in figure.axes[0].get_legend().get_texts()[0].get_text()
    assert "no image" in figure.axes[1].get_legend().get_texts()[0].get_text()
    plt.close("all")


def test_values_beyond_the_last_bin_are_counted_there():
    figure = figures.plot_histograms({"panel": {"A": np.array([0.1, 1.2, 30.0])}}, "RRD", bins=4, most=2)
    (axes,) = figure.axes
    assert [patch.get_height() for patch in axes.patches] == [1, 0, 1, 1]
    assert (
        axes.get_xlabel() == "RRD (last bar: all from 1.5 on)" and "mean 10.433" in axes.get_legend().get_texts()[0].get_text()
    )
    plt.close("all")


def test_levels_have_a_panel_a_kind_with_the_reference():
    line = {"size": "S", "acr": 0.2, "lower": 0.1, "upper": 0.4}
    table = pd.DataFrame([{**line, "method": m, "sigma": s} for m in ("MDEQ-30A", "SRS-MDEQ-3A") for s in (0.25, 0.5)])
    figure = figures.plot_levels(table, ["S"], ["MDEQ-30A"])
    assert [axes.get_title() for axes in figure.axes] == ["S: standard", "S: serialized"]
    assert [len(axes.containers) for axes in figure.axes] == [1, 2]
    plt.close("all")


def test_a_bar_without_an_interval_has_no_ends_in_the_csv():
    lines = [{"size": "S", "method": "MDEQ-30A", "sigma": s, "acr": 0.2} for s in (0.25, 0.5)]
    table = pd.DataFrame(lines).assign(lower=[np.nan, 0.1], upper=[np.nan, 0.4])
    _, first, second = drawn.as_csv(figures.plot_levels(table, ["S"])).splitlines()
    assert first == "S: standard,MDEQ-30A,0.25,0.2,," and second == "S: standard,MDEQ-30A,0.5,0.2,0.1,0.4"
    plt.close("all")


def test_costs_have_a_panel_for_each_level_and_kind():
    names = ["MDEQ-30A", "SRS-MDEQ-3A", "SRS-MDEQ-1A"]
    values = {"accuracy": [0.5, 0.4, 0.3], "evaluations": [1e5, 1e3, 9e2], "seconds": [5.0, 0.3, 0.2]}
    table = pd.DataFrame(values | {"lower": [0.4, 0.3, 0.2], "upper": [0.6, 0.5, 0.4]}, index=names)
    figure = figures.plot_costs({"sigma = 0.25": table.drop("SRS-MDEQ-3A"), "sigma = 0.5": table}, "seconds", "MDEQ-30A")
    assert [len(axes.containers) for axes in figure.axes] == [1, 1, 1, 2]
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    assert figure.get_supxlabel() == "seconds an image (logarithmic)"  # an axis that is not linear says so
    table.loc["SRS-MDEQ-1A"] = table.loc["SRS-MDEQ-3A"]
    _, serialized = figures.plot_costs_by_kind(table, "seconds", "MDEQ-30A").axes
    assert [text.get_text() for text in serialized.get_legend().get_texts()] == ["SRS-MDEQ-3A\nSRS-MDEQ-1A\n(one mark)"]
    plt.close("all")


def test_coverage_has_a_panel_a_case():
    designs = ["standard", "finite_population, random", "released_code, first_batch"]
    line = {"rate": 0.01, "lower": 0.0, "upper": 0.02}
    table = pd.DataFrame([{"case": c, "design": d, "alpha": a, **line} for c in "xyz" for d in designs for a in (0.001, 0.05)])
    figure = figures.plot_coverage(table.assign(guarantee=table["design"] != designs[-1]))
    assert [axes.get_title() for axes in figure.axes] == ["x", "y", "z"]
    words = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert words == ["standard", "exact bound, random audit", "released code, audit of the first batch *"]
    told = results.described(figure)
    assert "Panels: x; y; z. Lines: standard; exact bound, random audit; released code" in told
    plt.close("all")


def test_a_figure_is_told_in_words(rows):  # noqa: F811
    told = results.described(figures.plot_curve_panels({"a": rows}, "MDEQ-30A"))
    assert told == "certified accuracy (%) against l2 radius r (pixel units). Panels: a. Shown: MDEQ-30A; SRS-MDEQ-3A"
    twin = rows.assign(method=rows["method"].replace("MDEQ-30A", "MDEQ-30A stopped"))
    told = results.described(figures.plot_curves(pd.concat([rows, twin]), "MDEQ-30A"))
    assert "MDEQ-30A and MDEQ-30A stopped, as one curve" in told
    told = results.described(figures.plot_curve_panels({"a": rows, "b": twin}, "MDEQ-30A"))
    assert told.startswith("certified accuracy") and "Panels: a; b" in told
    figure, panels = plt.subplots(1, 2)
    for axes, title, name in zip(panels, "ab", "xy"):
        axes.plot([1], [1], label=name)
        axes.set_title(title)
        axes.legend()
    assert results.described(figure).endswith("Panels: a; b. Shown: in a: x; in b: y")
    figure, (picture, axes) = plt.subplots(1, 2)
    picture.imshow(np.zeros((2, 2)))
    picture.set(xlabel="label 0", title="image")
    axes.set(xlabel="turn", ylabel="residual")
    assert results.described(figure) == "residual against turn. Panels: image"
    plt.close("all")


def test_every_estimator_has_a_name_and_a_look():
    assert plots.ESTIMATORS.keys() == tables.ESTIMATOR_NAMES.keys() == set(bounds.ESTIMATORS)

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from test_tables import rows  # noqa: F401, a fixture

from study.common import plots
from study.reports import figures


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
    votes = figures.plot_votes(digits.test, 0, {"A": np.arange(30) % 10, "B": np.full(30, -1)}, n0=10, sigma=0.5, seed=0)
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
    assert all(a.get_xlabel() and a.get_ylabel() for a in plots.plot_histories({"a": history, "b": history}).axes)
    plt.close("all")


def test_curve_panels_share_one_scale(rows):  # noqa: F811
    figure = figures.plot_curve_panels({"a": rows, "b": rows[rows["k"] > 0]}, "MDEQ-30A")
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim() and [axes.get_title() for axes in figure.axes] == ["a", "b"]
    plt.close("all")


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


def test_levels_have_error_bars():
    line = {"size": "S", "method": "A", "acr": 0.2, "lower": 0.1, "upper": 0.4}
    figure = figures.plot_levels(pd.DataFrame([{**line, "sigma": s} for s in (0.25, 0.5)]), ["S"])
    assert len(figure.axes[0].containers) == 1 and figure.axes[0].get_xlabel()
    plt.close("all")


def test_costs_have_a_panel_for_each_level_and_cost():
    table = pd.DataFrame(
        {"accuracy": [0.5, 0.4], "lower": [0.4, 0.3], "upper": [0.6, 0.5], "evaluations": [1e5, 1e3], "seconds": [5.0, 0.3]},
        index=["A", "B"],
    )
    figure = figures.plot_costs({"sigma = 0.25": table.drop("A"), "sigma = 0.5": table})
    assert len(figure.axes) == 4 and all(axes.get_xlabel() and axes.get_title() for axes in figure.axes)
    assert {axes.get_xlabel() for axes in figure.axes} == {"evaluations of f an image", "seconds an image"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["B", "A"]
    colors = [{box.get_label(): box[0].get_color() for box in axes.containers} for axes in figure.axes]
    assert all(found["B"] == colors[0]["B"] for found in colors) and colors[1]["A"] != colors[1]["B"]
    plt.close("all")

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from srs import bounds, figures, publish
from srs.solvers import Solver
from srs.votes import SerializedSampler, StandardSampler

ROOT = Path(__file__).parent.parent
RADII = [0, 0.25, 0.5, 1.0, 1.5]


def _rows(method, radii, k=0, evaluations=1_000, wrong=0):
    """Certificates with the given radii; the last ``wrong`` predictions are wrong."""
    images = len(radii)
    return pd.DataFrame(
        {
            "index": range(images),
            "label": 3,
            "method": method,
            "prediction": [3] * (images - wrong) + [4] * wrong,
            "radius": radii,
            "n0": 100,
            "n": 1_000,
            "alpha": 0.001,
            "sigma": 0.5,
            "k": k,
            "n1": k // 2,
            "n2": k,
            "evaluations": evaluations,
        }
    )


@pytest.fixture
def rows():
    standard = _rows("MDEQ-30A", [0.3, 0.6, 1.1, 0.2], evaluations=30_000, wrong=1)
    return pd.concat([standard, _rows("SRS-MDEQ-3A", [0.2, 0.4, 0.6, 0.0], k=200, evaluations=6_000)], ignore_index=True)


@pytest.fixture
def seconds(rows):
    return rows[["index", "method"]].assign(seconds=[2.0] * 4 + [0.5] * 4)


@pytest.fixture
def table(rows, seconds):
    return figures.summary(rows, seconds, RADII, "MDEQ-30A")


def test_summary_is_computed_from_the_rows(table):
    assert table["r = 0"]["accuracy"].tolist() == [0.75, 1.0]
    assert table["r = 0.25"]["accuracy"].tolist() == [0.75, 0.5]
    assert table["r = 0.5"]["accuracy"].tolist() == [0.5, 0.25]
    assert table.loc["MDEQ-30A", ("ACR", "ours")] == pytest.approx(2.0 / 4)
    assert table.loc["MDEQ-30A", ("ACR", "as released")] == pytest.approx(2.2 / 4)
    assert table["speed-up"].loc["SRS-MDEQ-3A"].tolist() == [5.0, 4.0]


def test_cells_beyond_reach_are_no_zeros(table):
    limits = [bounds.largest_radius(1_000, 0.001, 0.5), bounds.largest_radius(1_000, 0.001, 0.5, audit=200)]
    assert table["", "largest r"].tolist() == limits
    assert limits[1] < 1.0 < limits[0] < 1.5
    assert table["r = 1"]["accuracy"].isna().tolist() == [False, True]
    assert table["r = 1.5"]["accuracy"].isna().all()
    page = figures.certified_table(table, "caption").to_html()
    assert page.count(f">{figures.BEYOND}<") == 3


def test_best_values_are_bold(table):
    styler = figures.certified_table(table, "caption")
    page = styler.to_html()
    assert "caption" in page and "75 [19, 99]" in page
    bold = {cell for style in styler._compute().ctx.items() if ("font-weight", "bold") in style[1] for cell in [style[0]]}
    assert (1, 0) in bold and (0, 0) not in bold  # r = 0: 100 beats 75
    assert (0, 1) in bold and (1, 1) not in bold  # r = 0.25: 75 beats 50
    assert not any(column == 4 for _, column in bold)  # r = 1.5: nobody can


def test_published_twin_shows_what_is_not_known():
    methods = ["MDEQ-30A", "SRS-MDEQ-3A", "MDEQ-5A"]
    page = figures.published(ROOT / "data" / "published.yaml", "table2", methods, [0, 0.25, 0.3], "as published").to_html()
    assert ">62<" in page and ">60<" in page and ">3.08<" in page
    assert page.count(figures.NOT_KNOWN) == 1 + 2 + 4  # r = 0.3 and SRS's seconds; all of MDEQ-5A


def test_sentences_follow_the_numbers(rows, table):
    samplers = {"MDEQ-30A": StandardSampler(), "SRS-MDEQ-3A": SerializedSampler(chains=220)}
    text = figures.read_comparison(table, rows, "MDEQ-30A", samplers)
    assert "**MDEQ-30A** certifies 75% of 4 images" in text
    assert "**SRS-MDEQ-3A** certifies 100% at r = 0 (against MDEQ-30A: 1 images gained, 0 lost)" in text
    assert "20% of MDEQ-30A's evaluations of f and 25% of its time" in text
    assert "did not confirm 50.0% of its audited votes" in text
    assert "20% of its votes are warm-up votes" in text
    worse = rows.copy()
    worse.loc[worse["method"] == "SRS-MDEQ-3A", "prediction"] = 4
    other = figures.summary(worse, worse[["index", "method"]].assign(seconds=1.0), RADII, "MDEQ-30A")
    assert "0 images gained, 3 lost" in figures.read_comparison(other, worse, "MDEQ-30A", samplers)
    assert "same certificates" not in text
    one = SerializedSampler(solver=Solver(steps=1))
    twice = pd.concat([rows, rows[4:].assign(method="SRS-MDEQ-1N")], ignore_index=True)
    both = figures.summary(twice, twice[["index", "method"]].assign(seconds=1.0), RADII, "MDEQ-30A")
    named = {"MDEQ-30A": StandardSampler(), "SRS-MDEQ-3A": one, "SRS-MDEQ-1N": one}
    assert "**SRS-MDEQ-3A** and **SRS-MDEQ-1N** gave the same" in figures.read_comparison(both, twice, "MDEQ-30A", named)


def test_caption_says_what_it_rests_on(rows):
    text = figures.basis(rows, "digits", "mdeq-small", {"hardware": "2 cores of X", "torch": "9.9"})
    for part in ("mdeq-small on digits", "sigma = 0.5", "4 evenly spaced test images", "N = 1,000", "K = 200", "2 cores of X"):
        assert part in text


def test_plots_are_labelled(rows, digits):
    figures.set_style()
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
    assert all(a.get_xlabel() and a.get_ylabel() for a in figures.plot_history(history).axes)
    plt.close("all")


def test_publish_copies_reports_and_their_figures(tmp_path):
    source, target = tmp_path / "runs", tmp_path / "reports"
    with pytest.raises(FileNotFoundError, match="run `make repro` first"):
        publish.publish(source, target)
    source.mkdir()
    png = {"image/png": "iVBORw0KGgo="}
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", png)])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source / "05.ipynb")
    (source / "05.html").write_text("page")
    names = {path.name for path in publish.publish(source, target)}
    assert names == {"05.ipynb", "05.html", "05-1.png"} == {path.name for path in target.iterdir()}
    (source / "05.html").write_bytes(b"x" * (publish.LARGEST + 1))
    with pytest.raises(ValueError, match="at most 2,000,000"):
        publish.publish(source, target)

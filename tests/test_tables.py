import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import integrate, special, stats

from srs.certificates import bounds
from srs.deq.solvers import Solver
from srs.votes.samplers import SerializedSampler, StandardSampler
from study.reports import numbers, statistics, tables

ROOT = Path(__file__).parent.parent
RADII = [0, 0.25, 0.5, 1.0, 1.5]


def _rows(method, radii, k=0, evaluations=1_000, wrong=0, seconds=2.0):
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
            "census": 0,
            "estimator": "finite_population" if k else "",
            "audit_draw": "random" if k else "",
            "split": 0.5 if k else 0.0,
            "guarantee": True,
            "n1": k // 2,
            "n2": k,
            "evaluations": evaluations,
            "seconds": seconds,
        }
    )


@pytest.fixture
def rows():
    standard = _rows("MDEQ-30A", [0.3, 0.6, 1.1, 0.2], evaluations=30_000, wrong=1)
    serialized = _rows("SRS-MDEQ-3A", [0.2, 0.4, 0.6, 0.0], k=200, evaluations=6_000, seconds=0.5)
    return pd.concat([standard, serialized], ignore_index=True)


@pytest.fixture
def table(rows):
    return tables.summary(rows, RADII, "MDEQ-30A")


def test_summary_is_computed_from_the_rows(table):
    assert table["r = 0"]["accuracy"].tolist() == [0.75, 1.0]
    assert table["r = 0.25"]["accuracy"].tolist() == [0.75, 0.5]
    assert table["r = 0.5"]["accuracy"].tolist() == [0.5, 0.25]
    assert table.loc["MDEQ-30A", ("ACR", "ours")] == pytest.approx(2.0 / 4)
    assert table.loc["MDEQ-30A", ("ACR", "as released")] == pytest.approx(2.2 / 4)
    assert table["speed-up"].loc["SRS-MDEQ-3A"].tolist() == [5.0, 4.0]


def test_where_the_reference_stopped_is_a_row_speed_ups_over_it_are_shown(rows, table):
    honest = _rows("MDEQ-30A stopped", [0.3, 0.6, 1.1, 0.2], evaluations=12_000, seconds=0.8, wrong=1)
    wider = pd.concat([rows, honest])
    assert tables.baselines("MDEQ-30A", wider["method"].unique()) == ["MDEQ-30A", "MDEQ-30A stopped"]
    assert tables.speed_up(wider, "SRS-MDEQ-3A", "MDEQ-30A stopped", "seconds") == pytest.approx((1.6, 1.6, 1.6))
    shown = tables.cost_table(wider, "MDEQ-30A", "").to_html()
    assert "speed-up in seconds, against MDEQ-30A stopped" in shown and "1.60×" in shown
    assert "stopped" not in tables.cost_table(rows, "MDEQ-30A", "").to_html()


def test_a_ratio_has_an_interval_over_images_unless_all_have_one(rows):
    assert tables.saved(rows, "SRS-MDEQ-3A", "MDEQ-30A") == "5.0×"
    rows.loc[rows["method"] == "MDEQ-30A", ["seconds", "evaluations"]] = np.array([[1, 2, 3, 4]] * 2).T * [1, 12_000]
    ratio, low, high = tables.speed_up(rows, "SRS-MDEQ-3A", "MDEQ-30A", "seconds")
    half = 3.18244631 * np.std([1, 2, 3, 4], ddof=1) / 2  # t of three degrees of freedom; the other's seconds are 0.5 each
    assert ratio == 5.0 and (low, high) == pytest.approx((5 - 2 * half, 5 + 2 * half))
    assert tables.times(ratio, low, high) == tables.saved(rows, "SRS-MDEQ-3A", "MDEQ-30A") == "5.0× [0.8, 9.2]"  # outward
    assert tables.saved(rows, "SRS-MDEQ-3A", "MDEQ-30A", "seconds") == "5.0×", "an interval that no timing has"
    assert tables.times(1.153, 1.067, 1.239) == "1.15× [1.06, 1.24]", "that 1 lies outside shows"
    assert tables.times(2.6, 1.02, 4.0) == "2.60× [1.02, 4.00]" and tables.times(30.004, 29.99, 30.01) == "30.0×"
    difference = tables.acr_difference(rows, "SRS-MDEQ-3A", "MDEQ-30A")
    assert difference[0] == pytest.approx((1.2 - 2.0) / 4) and difference[1] < difference[0] < difference[2]


def test_seconds_that_no_machine_told_are_not_known(rows):
    rows.loc[rows["method"] == "SRS-MDEQ-3A", "seconds"] = np.nan
    assert re.findall(r">([^<]*)</td>", tables.cost_table(rows, "MDEQ-30A", "").to_html())[4:] == [
        "6,000",
        tables.NOT_KNOWN,
        "5.0×",
        tables.NOT_KNOWN,
    ]
    table = tables.summary(rows, RADII, "MDEQ-30A")
    told = tables.read_comparison(table, rows, "MDEQ-30A", {"MDEQ-30A": StandardSampler(), "SRS-MDEQ-3A": SerializedSampler()})
    assert told.endswith("for 20 % of MDEQ-30A's evaluations of f.") and "nan" not in told


def test_cells_beyond_reach_are_no_zeros(table):
    limits = [bounds.largest_radius(1_000, 0.001, 0.5), bounds.largest_radius(1_000, 0.001, 0.5, audit=200)]
    assert table["", "largest r"].tolist() == limits
    assert limits[1] < 1.0 < limits[0] < 1.5
    assert table["r = 1"]["accuracy"].isna().tolist() == [False, True]
    assert table["r = 1.5"]["accuracy"].isna().all()
    page = tables.certified_table(table, "caption").to_html()
    assert page.count(f">{tables.BEYOND}<") == 3


def test_the_largest_radius_is_rounded_down(table):
    """0.9954 as 1.00 would say that r = 1 is within reach."""
    page = tables.certified_table(table, "caption").to_html()
    printed = [float(cell) for cell in re.findall(r"col5[^>]*>([\d.]+)</td>", page)]
    assert len(printed) == 2
    assert all(limit - 0.001 < value <= limit for value, limit in zip(printed, table["", "largest r"]))


def test_rows_without_a_guarantee_are_grey_and_the_papers_are_folded_below(rows):
    theirs = rows[rows["k"] > 0].assign(method="SRS-MDEQ-3A, released code", guarantee=False)
    table = tables.summary(pd.concat([rows, theirs]), RADII, "MDEQ-30A")
    assert table["", "guarantee"].tolist() == [True, True, False]
    shown = tables.certified_table(table, "what it shows", folded=["SRS-MDEQ-3A, released code"])
    above, below = shown.to_html().split("<details>")
    assert "what it shows" in above and "released code" not in above and "font-style: italic" not in above
    assert "SRS-MDEQ-3A, released code" in below and "font-style: italic" in below
    assert above.index("what it shows") < above.index("overflow-x") < above.index("<table")  # the caption does not scroll


def test_a_column_that_the_papers_table_lacks_is_not_unknown():
    methods = ["SRS-MDEQ-1A clean start"]
    known = yaml.safe_load((ROOT / "data" / "published.yaml").read_text())
    assert "seconds" not in tables.published_table(known["table24"], known["cifar10_radii"], methods, [0], "").to_html()


def test_cells_hold_no_idle_digits():
    shown = pd.DataFrame({"a": [0.001, None, 1.0], "b": [True, "text", 12_345], "c": [-0.0, np.nan, 1e-12]}, dtype=object)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", tables.styled(shown, "").to_html())
    assert cells == ["0.001", "yes", "0", "none", "text", "–", "1", "12,345", "1e-12"]
    index = pd.MultiIndex.from_tuples([("test", 0.001), ("test", 0.05)], names=["design", "alpha"])
    page = tables.styled(pd.DataFrame({"a": ["x", "y"]}, index=index), "").to_html()
    assert re.findall(r"<th[^>]*level1[^>]*row[^>]*>([^<]*)</th>", page) == ["0.001", "0.05"]


def test_differences_that_round_to_nothing_have_no_sign():
    assert [numbers.signed(value) for value in (-0.3, 0.0, 0.4, 2.6, -1.2)] == ["0", "0", "0", "+3", "-1"]
    assert numbers.points(-0.0001, -0.25, 0.0) == "0.0 points (-25.0 to 0.0)"
    assert numbers.points(0.1, np.nan, np.nan) == "+10 points (no interval: the same difference on every image)"
    assert numbers.points(0.036, 0.007, 0.071) == "+3.6 points (+0.7 to +7.1)"
    assert numbers.measured(0.5, np.nan, np.nan) == "0.500" and numbers.measured(-1e-5, 0, 1) == "0.000 [0.000, 1.000]"
    assert [numbers.often(n) for n in (1, 2, 3)] == ["once", "twice", "3 times"] and numbers.plural(1, "step") == "1 step"


def test_ours_beside_the_published_where_ours_can_reach(rows):
    found = tables.beside(rows, {"MDEQ-30A": {"accuracy": [1, 75, 99]}, "MDEQ-5A": {"accuracy": [1, 1, 1]}}, [0, 0.25, 1.5])
    assert found.dropna()["r"].tolist() == [0, 0.25] and found["row"].unique().tolist() == ["MDEQ-30A"]
    assert found.dropna()["published is"].tolist() == ["below", "within"]
    told = tables.read_beside(found, "digits")
    assert told.startswith(
        "**1 of 2 published accuracies lies within our 95 % intervals** (digits); outside lies MDEQ-30A at r = 0 (published "
        "below ours). Our intervals are "
    )
    assert "1 of the 2 differ by more than chance" in told
    assert told.endswith(" 1 more lies beyond the radii that this N, K and alpha allow.")
    p_values = [stats.fisher_exact([[k, 4 - k], [theirs, 500 - theirs]]).pvalue for k, theirs in ((3, 8), (3, 375))]
    assert found["p_value"].tolist()[:2] == pytest.approx(p_values) and np.isnan(found["p_value"][2])


def test_a_published_accuracy_is_outside_only_if_no_rounding_explains_it(rows):
    upper = 100 * tables.certified_accuracy(rows[rows["method"] == "MDEQ-30A"], [0])["upper"].iloc[0]
    where = [
        tables.beside(rows, {"MDEQ-30A": {"accuracy": [theirs]}}, [0])["published is"].iloc[0]
        for theirs in (upper - 0.1, upper + 0.4, upper + 0.6)
    ]
    assert where == ["within", "may be within", "above"]


def test_shares_in_sentences_have_a_decimal_where_they_are_not_whole():
    assert [numbers.portion(share) for share in (0.4, 0.532, 0.29, 1 / 3)] == ["40 %", "53.2 %", "29 %", "33.3 %"]
    assert numbers.fixed(100 * 0.575) == "58" and numbers.fixed(100 * 0.575, 1) == "57.5"


def test_tables_of_few_images_show_every_one():
    """40 images are 2.5 points each: 57.5 % is not 57 %; 25 are 4, and 500 less than one."""
    for right, images, shown in ((23, 40, "57.5 ["), (14, 25, "56 ["), (281, 500, "56 [")):
        few = _rows("MDEQ-30A", [0.5] * images, wrong=images - right)
        page = tables.certified_table(tables.summary(few, [0.0], "MDEQ-30A"), "").to_html()
        assert f">{shown}" in page, images


def test_published_twin_shows_what_is_not_known():
    methods = ["MDEQ-30A", "SRS-MDEQ-3A", "MDEQ-5A"]
    known = yaml.safe_load((ROOT / "data" / "published.yaml").read_text())
    page = tables.published_table(known["table2"], known["cifar10_radii"], methods, [0, 0.25, 0.3], "as published").to_html()
    assert ">62<" in page and ">60<" in page and ">3.08<" in page
    assert page.count(tables.NOT_KNOWN) == 1 + 2 + 4  # r = 0.3 and SRS's seconds; all of MDEQ-5A


def test_sentences_follow_the_numbers(rows, table):
    samplers = {"MDEQ-30A": StandardSampler(), "SRS-MDEQ-3A": SerializedSampler(chains=220)}
    text = tables.read_comparison(table, rows, "MDEQ-30A", samplers)
    assert "**MDEQ-30A** certifies 75 % of 4 images" in text
    assert "**SRS-MDEQ-3A** certifies 100 % at r = 0 (+25 points against MDEQ-30A, paired 95 % interval -" in text
    assert "20 % of MDEQ-30A's evaluations of f and 25 % of its time" in text
    audits = tables.audit_columns(rows, "MDEQ-30A", samplers)
    assert audits.loc["MDEQ-30A"].tolist() == [tables.BEYOND] * 3
    assert audits.loc["SRS-MDEQ-3A"].tolist()[1:] == ["20", "50.0"]
    assert tables.audit_columns(rows[rows["k"] == 0], "MDEQ-30A", samplers) is None
    worse = rows.copy()
    worse.loc[worse["method"] == "SRS-MDEQ-3A", "prediction"] = 4
    other = tables.summary(worse, RADII, "MDEQ-30A")
    assert "(-75 points against MDEQ-30A" in tables.read_comparison(other, worse, "MDEQ-30A", samplers)
    assert "one computation" not in text
    one = SerializedSampler(solver=Solver(steps=1))
    twice = pd.concat([rows, rows[4:].assign(method="SRS-MDEQ-1N")], ignore_index=True)
    both = tables.summary(twice, RADII, "MDEQ-30A")
    named = {"MDEQ-30A": StandardSampler(), "SRS-MDEQ-3A": one, "SRS-MDEQ-1N": one}
    for known, differ in (
        ({}, False),
        ({"SRS-MDEQ-3A": [5], "SRS-MDEQ-1N": [5]}, False),
        ({"SRS-MDEQ-3A": [5], "SRS-MDEQ-1N": [4]}, True),
    ):
        published = {row: {"accuracy": shares} for row, shares in known.items()}
        text = tables.read_comparison(both, twice, "MDEQ-30A", named, published)
        assert "**SRS-MDEQ-3A** and **SRS-MDEQ-1N** are one computation" in text and "**SRS-MDEQ-1N** certifies" not in text
        assert ("published rows of this pair differ is not explained" in text) == differ
    no_guarantee = rows.assign(guarantee=rows["method"] == "MDEQ-30A")
    table = tables.summary(no_guarantee, RADII, "MDEQ-30A")
    assert "**SRS-MDEQ-3A** (not a guarantee) certifies" in tables.read_comparison(table, no_guarantee, "MDEQ-30A", samplers)
    assert "Grey: not a guarantee." in tables.certified_table(table, "").to_html()


def test_paired_differences_cover_the_truth():
    """20 % of images are gained, 10 % lost: the interval of the difference holds +10 points often enough."""
    rng, runs, held = np.random.default_rng(0), 300, 0
    for _ in range(runs):
        kind = rng.choice(3, 60, p=[0.2, 0.1, 0.7])
        a, b = _rows("A", [1.0] * 60), _rows("B", [1.0] * 60)
        a.loc[kind == 1, "prediction"] = 4
        b.loc[kind == 0, "prediction"] = 4
        difference, low, high = tables.paired_difference(pd.concat([a, b]), "A", "B")
        assert difference == pytest.approx(((kind == 0).sum() - (kind == 1).sum()) / 60) and low <= difference <= high
        held += low <= 0.1 <= high
    assert stats.binomtest(held, runs, 0.95, alternative="less").pvalue > 1e-3


@pytest.mark.parametrize("images, alpha", [(12, 0.05), (25, 0.05), (25, 0.005)])
def test_paired_intervals_hold_wherever_the_truth_lies(images, alpha):
    """By enumeration; and their ends, which are each other's mirror images, leave 0 out where the exact sign test does."""
    gained, lost = np.array([(g, n - g) for n in range(images + 1) for g in range(n + 1)]).T
    low, high = np.array([statistics.paired_interval(int(g), int(n), images, alpha) for g, n in zip(gained, lost)]).T
    signs = np.array([stats.binomtest(int(g), int(g + n)).pvalue if g + n else 1.0 for g, n in zip(gained, lost)])
    assert (((low > 0) | (high < 0)) == (signs <= alpha)).all()
    shares = np.r_[0.001, 0.01, np.linspace(0.02, 0.98, 33)]
    for p, q in ((p, q) for p in shares for q in shares if p + q < 1):
        chance = stats.multinomial.pmf(np.c_[gained, lost, images - gained - lost], images, [p, q, 1 - p - q])
        held = (low <= p - q + 1e-12) & (p - q - 1e-12 <= high)
        assert chance[held].sum() >= 1 - alpha, (p, q)


@pytest.mark.parametrize("gained, lost, images", [(1, 5, 500), (3, 2, 100), (30, 10, 250)])
@pytest.mark.parametrize("tail", [0.025, 2.5e-5])
def test_ends_of_paired_intervals_hold_in_far_tails(gained, lost, images, tail):
    """The lower end against adaptive integration over the share of images that differ, by both of its distributions."""
    low, differ = statistics.paired_interval(gained, lost, images, 2 * tail)[0], gained + lost

    def chance(share, one):
        return one.pdf(share) * special.betainc(gained, lost + 1, np.clip((1 + low / share) / 2, 0, 1))

    chances = []
    for one in (stats.beta(differ, images - differ + 1), stats.beta(differ + 1, images - differ)):
        ends = pairwise(one.ppf([1e-12, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 1 - 1e-12]))
        chances.append(sum(integrate.quad(chance, *part, (one,), epsabs=0, epsrel=1e-8)[0] for part in ends))
    assert max(chances) == pytest.approx(tail, rel=1e-4)


def test_a_row_that_selects_no_class_has_the_reach_of_its_draws(rows):
    lost = rows.assign(k=0, n1=0, n2=0, radius=0.0)
    assert tables.reachable(lost)["SRS-MDEQ-3A"] == bounds.largest_radius(1_000, 0.001, 0.5, audit=1_000) > 0.5


def test_paired_differences_look_at_the_radius_and_at_the_same_images_alone(rows):
    same = rows[rows["index"] < 2]
    assert tables.paired_difference(same, "SRS-MDEQ-3A", "MDEQ-30A", 0.5)[0] == -0.5
    assert tables.paired_difference(same, "SRS-MDEQ-3A", "MDEQ-30A", 0.0)[0] == 0.0
    few = pd.concat([rows[rows["method"] == "MDEQ-30A"], same[same["method"] == "SRS-MDEQ-3A"]])
    with pytest.raises(ValueError, match=r"image by image: SRS-MDEQ-3A's are \[0, 1\] and MDEQ-30A's are \[0, 1, 2, 3\]"):
        tables.paired_difference(few, "SRS-MDEQ-3A", "MDEQ-30A")
    for compared in (tables.acr_difference, tables.saved):
        with pytest.raises(ValueError, match="rows are compared image by image"):
            compared(few, "SRS-MDEQ-3A", "MDEQ-30A")


def test_differences_at_all_radii_hold_together_and_end_where_a_row_ends(rows):
    found = tables.differences_at(rows, "SRS-MDEQ-3A", "MDEQ-30A", RADII)
    reach = tables.reachable(rows).min()
    assert list(found) == [r for r in RADII if r <= reach] and len(found) < len(RADII)
    for r, cell in found.items():
        assert cell == tables.paired_difference(rows, "SRS-MDEQ-3A", "MDEQ-30A", r, alpha=0.05 / len(found))
    told = tables.read_differences("SRS-MDEQ-3A", "MDEQ-30A", found)
    assert told.startswith("- **SRS-MDEQ-3A** against **MDEQ-30A**") and told.count("at r = ") == len(found)
    assert f"{numbers.difference(*found[0.25], 100)} at r = 0.25" in told
    lost = tables.read_differences("A", "B", {0: (-0.125, -0.33, 0.05), 0.25: (0.05, -0.02, 0.12)})
    assert lost.endswith(": -12.5 [-33.0, +5.0] at r = 0, +5.0 [-2.0, +12.0] at r = 0.25."), (
        "half an image more or less is none"
    )


def test_rows_over_trainings_are_told_with_the_spread_and_never_narrower_than_the_images(rows):
    other = rows.assign(radius=rows["radius"].where(rows["method"] != "MDEQ-30A", 0.0))
    assert tables.joint_difference([rows], "MDEQ-30A", "SRS-MDEQ-3A", 0.25) == tables.paired_difference(
        rows, "MDEQ-30A", "SRS-MDEQ-3A", 0.25
    )
    alike, low, high = tables.joint_difference([rows, rows], "MDEQ-30A", "SRS-MDEQ-3A", 0.25)
    one, least, most = tables.paired_difference(rows, "MDEQ-30A", "SRS-MDEQ-3A", 0.25)
    assert alike == one and -1 <= low <= least and most <= high <= 1
    mean, *_ = tables.joint_difference([rows, other], "MDEQ-30A", "SRS-MDEQ-3A", 0.25)
    assert mean == (3 - 2) / 4 / 2 + (0 - 2) / 4 / 2
    with pytest.raises(ValueError, match="same images"):
        tables.joint_difference([rows, rows[rows["index"] < 3]], "MDEQ-30A", "SRS-MDEQ-3A")
    spread = tables.over_trainings([rows, other], RADII).set_index(["method", "r"])
    line = spread.loc["MDEQ-30A", 0.25]
    assert (line["mean"], line["least"], line["most"]) == (0.375, 0.0, 0.75) and line["deviation"] == pytest.approx(
        0.75 / 2**0.5
    )
    text = tables.spread_table(spread.reset_index(), RADII).loc["MDEQ-30A", "r = 0.25"]
    assert text.startswith("38 ± 53 [")
    told = tables.read_trainings(spread.reset_index(), "small")
    assert "**MDEQ-30A** at r = 0.25: 0 % to 75 % from training to training" in told
    twins = pd.concat(
        [spread.reset_index(), spread.reset_index().replace({"method": {"MDEQ-30A": "MDEQ-30A stopped"}})], ignore_index=True
    )
    assert "- **MDEQ-30A** and **MDEQ-30A stopped** at r = 0.25: 0 % to 75 %" in tables.read_trainings(twins, "small")


def test_share_of_nothing_is_a_dash():
    assert tables.share(0, 0) == tables.BEYOND
    assert tables.share(1, 2) == "50 [1, 99]"


def test_an_interval_in_print_is_never_shorter_than_it_is():
    assert numbers.measured(0.1234, 0.0256, 0.3111, 2) == "0.12 [0.02, 0.32]"
    assert numbers.points(0.0, -0.1301, 0.2) == "0 points (-14 to +20)"
    assert tables.with_interval(0.5, 0.29, 0.29) == "50 [29, 29]"  # 100 * 0.29 is 28.999999999999996 in floating point
    assert numbers.difference(-0.004, -0.009, 0.001, 100) == "0 [-1, +1]"


def test_an_interval_in_print_lies_on_the_side_where_it_is():
    """Rounded outwards to whole points its end would reach 0, or the limit of a claim."""
    assert numbers.points(0.024, 0.0088, 0.0515) == "+2.4 points (+0.8 to +5.2)"
    assert numbers.points(-0.012, -0.0279, -0.0003) == "-1.20 points (-2.79 to -0.03)"
    assert numbers.points(-0.06, -0.0801, -0.0327) == "-6 points (-9 to -3)"
    assert numbers.points(-0.06, -0.0801, -0.0327, marks=(-0.03, np.inf)) == "-6.0 points (-8.1 to -3.2)"
    assert numbers.points(-0.02, -0.0298, 0.01, marks=(-0.03, 0.03)) == "-2.00 points (-2.98 to +1.00)"
    assert numbers.difference(-0.011, -0.0301, -0.0049, 100) == "-1.1 [-3.1, -0.4]"
    assert numbers.change(-1e-4, -2e-4, -1e-7) == "-0.000100 (-0.000200 to 0.000000)"  # no more than six decimals
    assert numbers.signed_interval(0.0, 0.0) == "0 to 0"

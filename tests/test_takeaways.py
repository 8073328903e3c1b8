"""Sentences that pages open with, on made-up results whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_tables import _rows

from srs.certificates import bounds
from srs.certificates.certify import ABSTAIN
from study.reports import overview, past, tables, takeaways
from study.reports.attacked import Attacked
from study.reports.statistics import paired_interval


@pytest.mark.parametrize("right, follows", [(42, False), (51, True)])
def test_little_follows_from_an_undertrained_baseline(right, follows):
    rows = pd.concat([_rows("SRS-MDEQ-3A", [0.5] * 20, k=200), _rows("ResNet-110", [0.5] * 20, wrong=15)])
    told = takeaways.baselines(rows, {"ResNet-110": right, "MDEQ-30A": 60}, 100)
    assert told[0].startswith("SRS-MDEQ-3A at r = 0: +75 points against ResNet-110, paired 95 % interval +")
    (line,) = told
    assert line.endswith("So, of these two as trained here, for certificates alone: pick SRS-MDEQ-3A.") == follows
    assert ("Little can be said of ResNet-110" in line and "42 [32, 53] percent" in line) == (not follows)


def test_a_serialized_row_is_held_against_five_steps_from_scratch_too():
    rows = pd.concat(
        [
            _rows("MDEQ-30A", [0.5] * 20, evaluations=4_000),
            _rows("MDEQ-5A", [0.5] * 20, evaluations=1_000),
            _rows("SRS-MDEQ-3A", [0.4] * 20, k=200, evaluations=2_000),
        ]
    )
    told = takeaways.told_truncated(rows, "SRS-MDEQ-3A", "MDEQ-30A")
    assert "its ACR differs from SRS-MDEQ-3A's by +0.100" in told and told.endswith(
        "it takes 0.50× as many evaluations of f, a ratio that grows with N at the same K."
    )
    assert takeaways.told_truncated(rows, "MDEQ-5A", "MDEQ-30A") == ""
    assert takeaways.told_truncated(rows[rows["method"] != "MDEQ-5A"], "SRS-MDEQ-3A", "MDEQ-30A") == ""


def test_what_more_draws_change_and_how_often_rows_abstain():
    few, more = _rows("N = 100", [0.3, 0.2, 0.4, 0.0], k=50).assign(n=100), _rows("N = 1,000", [0.5, 0.2, 0.9, 0.1], k=50)
    told = takeaways.more_samples("SRS-MDEQ-3A", pd.concat([few, more]))
    assert told.startswith("SRS-MDEQ-3A: from N = 100 to N = 1,000 certified accuracy at r = 0 changes by 0 points (")
    limits = tables.reachable(pd.concat([few, more])).map(bounds.shown)
    assert told.endswith(f"from {limits.iloc[0]} to {limits.iloc[1]}; K stays 50.") and "the ACR by +0.200" in told
    more.loc[[0, 2], "prediction"] = ABSTAIN
    assert takeaways.abstained(pd.concat([few, more])) == '- Of 4 images these rows abstain: "N = 100" on 0; "N = 1,000" on 2.'


@pytest.mark.parametrize(
    "radius, seconds, picked",
    [
        (0.7, 1.0, "pick ResNet-20."),
        (0.5, 1.0, "pick ResNet-20, which is faster; neither is shown to certify more."),
        (0.5, 2.0, "either will do."),
        (0.3, 4.0, "pick AS-MDEQ-1N."),
        (0.3, 1.0, "AS-MDEQ-1N certifies more, ResNet-20 is faster: what counts for the user decides."),
        (0.7, 4.0, "ResNet-20 certifies more, AS-MDEQ-1N is faster: what counts for the user decides."),
    ],
)
def test_which_network_to_pick_follows_from_radii_and_seconds(radius, seconds, picked):
    noise = [0.01 * (i % 3) for i in range(30)]
    plain = _rows("ResNet-20", [radius + e for e in noise], seconds=seconds)
    told = takeaways.which_to_pick(
        pd.concat([plain, _rows("AS-MDEQ-1N", [0.5 + e for e in noise[::-1]])]), "AS-MDEQ-1N", "ResNet-20", (60, 60), 100
    )
    assert told.endswith(f"So, of these two as trained here, for certificates alone: {picked}")
    assert f"speed-up in seconds {2 / seconds:.{1 + (seconds > 1)}f}×" in told


def test_seconds_on_other_draws_and_rows_that_certify_nothing_pick_no_network():
    fast, deq = _rows("ResNet-20", [0.5] * 30, seconds=0.1), _rows("AS-MDEQ-1N", [0.5] * 30)
    told = takeaways.which_to_pick(pd.concat([fast.assign(n=500), deq]), "AS-MDEQ-1N", "ResNet-20", (60, 60), 100)
    assert "not told, their N differ" in told and told.endswith("either will do.")
    told = takeaways.which_to_pick(pd.concat([fast, deq]).assign(seconds=np.nan), "AS-MDEQ-1N", "ResNet-20", (60, 60), 100)
    assert "not told, for other machines measured them" in told and told.endswith("either will do.")
    both = pd.concat([fast, deq]).assign(prediction=4)
    told = takeaways.which_to_pick(both, "AS-MDEQ-1N", "ResNet-20", (60, 60), 100)
    assert told.endswith("nothing can be told, for neither certifies enough for a difference to show.")


def test_closer_in_words_with_and_without_a_spread():
    assert takeaways.told_closer(np.zeros(0)).startswith("not to be had")
    assert takeaways.told_closer(np.zeros(3)).startswith(
        "mean 0.000 (no interval: the same difference on every image), median 0.000;"
    )
    told = takeaways.told_closer(np.array([-0.2, -0.1, 0.1]))
    assert "serialized is closer on 2 of 3 images, further on 1" in told and told.startswith("mean -0.067 (-0.")


def test_what_training_otherwise_changes_is_told():
    rows = {name: [0.3, 0.5, 0.4] for name in ("MDEQ-30A standard", "MDEQ-30A consistency")} | {
        "MDEQ-30A adv": [0.51, 0.7, 0.6]
    }
    variants = pd.concat([_rows(name, radii) for name, radii in rows.items()])
    jacobian = pd.concat([_rows(f"MDEQ-30A {how} Jacobian", [0.3, 0.5, 0.4]) for how in ("with", "without")])
    attacked = {0.0: (-0.2, -0.3, -0.1), 0.25: (0.0, -0.1, 0.1), 0.5: (0.2, 0.1, 0.3)}
    one, two, three = takeaways.training_variants((15, 20), attacked, variants, {"MDEQ-30A": attacked}, jacobian)
    assert (
        "attacks from epoch 15 of 20 on" in one
        and "augmentation at r = 0.5, and less at r = 0, of 3 within reach, beyond" in one
    )
    assert one.endswith(" intervals: on 3 images no loss could show.")
    assert "adv +0.203 (+0." in two and two.endswith("consistency 0.000 (no interval: the same difference on every image).")
    alike = "0.000 (no interval: the same difference on every image)"
    assert f"changes by -20 points (-30 to -10) for MDEQ-30A, its ACR by {alike} (the" in three


def test_the_chosen_rows_are_told_a_noise_level_each():
    spent = {"MDEQ-30A": 30_000, "MDEQ-30A stopped": 12_000, "AS-MDEQ-1N": 1_000}
    rows = {
        "a": pd.concat([_rows(row, [0.5] * 20, evaluations=each) for row, each in spent.items()]),
        "b": pd.concat([_rows(row, [0.5] * 20, wrong=20) for row in (*spent, "MDEQ-5A")]),
    }
    one, two, few = past.read_chosen(rows, {"a": "AS-MDEQ-1N", "b": "AS-MDEQ-1N"}, "MDEQ-30A")
    assert one.startswith("a: AS-MDEQ-1N at r = 0: 0 points against MDEQ-30A") and "MDEQ-5A" not in one
    assert one.endswith("; evaluations of f, divided by its: MDEQ-30A 30.0× and MDEQ-30A stopped 12.0×.")
    assert two.endswith(
        "Its ACR minus that of MDEQ-5A, which needs no audit either: 0.000 (no interval: the same difference on every image)."
    )
    assert few.startswith("MDEQ-30A certifies too few images for a loss at r = 0 to show at b (0 [0, ")


def test_how_many_images_must_be_lost_for_a_loss_to_show():
    assert takeaways.least_lost(5) is None and takeaways.told_least(5) == "no loss could show"
    lost = takeaways.least_lost(25)
    assert paired_interval(0, lost, 25)[1] < 0 <= paired_interval(0, lost - 1, 25)[1]
    assert takeaways.told_least(25) == f"a loss shows from {lost} images lost on, where none is gained"
    few, enough = (_rows("MDEQ-30A", [0.5] * n + [0.0] * (25 - n), wrong=25 - n) for n in (lost - 1, lost))
    assert takeaways.shows_no_loss(few) and not takeaways.shows_no_loss(enough)
    assert takeaways.shows_no_loss(_rows("MDEQ-30A", [0.5] * 5)), "of five images not even all could be lost"


def test_a_difference_of_average_radius_in_words():
    rows = pd.concat(
        [_rows("MDEQ-30A", [0.3, 0.6, 0.4]), _rows("MDEQ-30N", [0.3, 0.6, 0.4]), _rows("MDEQ-1A", [0.1, 0.5, 0.1])]
    )
    assert takeaways.told_acr(rows, "MDEQ-30N", "MDEQ-30A") == "0.000 (no interval: the same difference on every image)"
    assert takeaways.told_acr(rows, "MDEQ-1A", "MDEQ-30A").startswith("-0.200 (-0.4")


def test_the_largest_radius_is_told_beside_the_next():
    noise = [0.01 * (i % 3) for i in range(10)]
    radii = {"low": [0.2 + e for e in noise], "high": [0.6 + e for e in noise[::-1]]}
    standards = {name: _rows("MDEQ-30A", values) for name, values in radii.items()}
    told = takeaways._largest(standards)
    assert told.startswith("high, 0.6") and ", +0.400 (" in told and told.endswith("against the next, low")
    assert "next" not in takeaways._largest({"low": standards["low"]})


def test_no_loss_beyond_the_interval_is_not_said_to_be_equality():
    same = pd.concat([_rows("MDEQ-30A", [0.3, 0.6]), _rows("AS-MDEQ-1N", [0.3, 0.5])])
    told = past.read_worst(same, "AS-MDEQ-1N", "MDEQ-30A")
    assert "none of 3 radii shows it to certify less than MDEQ-30A; at 0 of them MDEQ-30A certifies images enough for" in told
    assert "a loss to show: by simultaneous intervals on 2 images no loss could show; the least difference, first" in told
    assert "difference, first at r = 0.600, is -50 points" in told
    lower = pd.concat([_rows("MDEQ-30A", [0.6] * 30), _rows("AS-MDEQ-1N", [0.2] * 30)])
    assert "less than MDEQ-30A, at 1 of 2 radii, between 0.600 and 0.600" in past.read_worst(lower, "AS-MDEQ-1N", "MDEQ-30A")


def test_a_loss_at_the_worst_of_many_radii_is_no_loss_by_chance():
    """Both rows' radii are of one distribution: at one radius alone the interval leaves 0 out."""
    rng = np.random.default_rng(2)
    alike = pd.concat([_rows(row, rng.random(60).round(2)) for row in ("MDEQ-30A", "AS-MDEQ-1N")])
    assert tables.paired_difference(alike, "AS-MDEQ-1N", "MDEQ-30A", 0.09)[2] < 0
    told = past.read_worst(alike, "AS-MDEQ-1N", "MDEQ-30A")
    least = takeaways.least_lost(60, 0.05 / 70)
    could = sum((alike[alike["method"] == "MDEQ-30A"]["radius"] >= r).sum() >= least for r in alike["radius"].unique())
    assert f"none of 70 radii shows it to certify less than MDEQ-30A; at {could} of them" in told and 0 < could < 70


def test_radii_of_wrong_predictions_change_no_certified_accuracy():
    rows = [_rows(row, [0.3, 0.6, 0.2, 0.4], wrong=2) for row in ("MDEQ-30A", "AS-MDEQ-1N")]
    assert "none of 2 radii shows it" in past.read_worst(pd.concat(rows), "AS-MDEQ-1N", "MDEQ-30A")
    wrong = pd.concat(rows).assign(prediction=4)
    assert "none of 1 radius shows it" in past.read_worst(wrong, "AS-MDEQ-1N", "MDEQ-30A")


def test_the_control_is_held_against_the_tuned_deq_too():
    rng = np.random.default_rng(0)
    acr = {"AS-MDEQ-1N": 0.3, "AS-MDEQ-1N tuned": 0.6, "Unrolled-1N": 0.6}
    rows = pd.concat([_rows(row, (mean + rng.normal(0, 0.05, 50)).round(3)) for row, mean in acr.items()])
    depths = pd.DataFrame({1: [0.5, 0.5], 2: [0.51, 0.3]}, index=[("a", "AS-MDEQ-1N"), ("a", "Unrolled-1N")])
    told = past.read_depth({"a": rows}, {"a": "AS-MDEQ-1N"}, {"a": "AS-MDEQ-1N tuned"}, {"a": "Unrolled-1N"}, depths)
    assert "amortized DEQ the control's average certified radius is larger at a (0.60" in told
    assert "trained on for one evaluation it is neither larger nor smaller beyond the interval at a (" in told
    assert "with 2 evaluations in place of one its accuracy moves by at most 1.0 points" in told
    assert "that of the control by up to 20.0" in told


def test_the_control_is_told_where_it_is_ahead():
    rows = {"sigma = 1": pd.concat([_rows("Unrolled-1N", [0.4, 0.4]), _rows("AS-MDEQ-1N", [0.3, 0.3])])}
    told = past.read_control(rows, {"sigma = 1": "AS-MDEQ-1N"}, {"sigma = 1": "Unrolled-1N"})
    assert "minus the chosen row's is +0.100 (no interval: the same difference on every image) at sigma = 1" in told
    assert past.read_control(rows, {"sigma = 1": "AS-MDEQ-1N"}, {}) == ""


@pytest.fixture
def attacked(tmp_path):
    """Four images: 0 and 1 certified at 0.5, 2 at nothing, 3 wrong from the beginning. PGD fools 1 and 2 at 0.5."""
    rows = _rows("SRS-MDEQ-3A", [0.55, 0.6, 0.1, 0.0], k=200)
    clean = [{"attack": "none", "radius": 0.0, "prediction": p, "fooled": False} for p in (3, 3, 3, 4)]
    after = [{"attack": "PGD", "radius": 0.5, "prediction": p, "fooled": p == 4} for p in (3, 4, 4, 4)]
    found = pd.DataFrame(clean + after).assign(index=[0, 1, 2, 3] * 2, label=3, draws=100)
    (tmp_path / "attacks").mkdir()
    found.to_csv(tmp_path / "attacks" / "s.csv", index=False)
    results = SimpleNamespace(layout=SimpleNamespace(runs=tmp_path), rows=lambda key: rows)
    config = SimpleNamespace(runs={"s": "SRS-MDEQ-3A"}, radii=[0, 0.5, 1.5], attacks=["PGD"])
    return Attacked(results, "s", config)


def test_attacks_are_counted_among_images_that_were_right(attacked):
    assert attacked.outcome("PGD", 0.5) == ({0, 1, 2}, {0}, set(), {1, 2})
    assert attacked.success("PGD", "certified")["r = 0.5"].endswith("(1 of 2)")
    assert attacked.success("PGD", "uncertified")["r = 0.5"].endswith("(1 of 1)")
    assert attacked.inside() == [("PGD", 0.5, 1)]
    assert attacked.told().startswith("1 of 2 attacks within a certified radius succeeded; these are on 2 images, 2 pairs")


def test_what_is_beyond_the_audits_reach_is_no_zero(attacked):
    assert attacked.certified()["r = 1.5"] == "–" and attacked.certified()["r = 0.5"].startswith("50 [")


def test_of_rows_that_certify_as_much_all_are_named_beside_the_baseline_that_stops():
    known = {"gain": 0.0, "least": -0.1, "most": 0.1, "images": 20}
    spent = {"MDEQ-30A": (0.5, 1.0), "MDEQ-5A": (0.5, 0.2), "AS-MDEQ-1N": (0.5, 0.05), "MDEQ-1A": (0.1, 0.04)}
    table = pd.DataFrame({row: {"accuracy": a, "seconds": s} | known for row, (a, s) in spent.items()}).T
    told = overview.read_costs(table, "MDEQ-30A", 0.25)
    assert told.startswith("**On the same 20 images AS-MDEQ-1N and MDEQ-5A each certify 50 % at r = 0.25 in 0.05 to 0.20 s an")
    assert told.endswith(
        "the most that any of 3 rows here that take at most a fifth of its time certifies, picked on these images."
    )
    stopping = pd.DataFrame({"MDEQ-30A stopped": {"accuracy": 0.45, "seconds": 0.6} | known}).T
    both = overview.read_costs(pd.concat([table, stopping]), "MDEQ-30A", 0.25)
    assert "an image, MDEQ-30A 50 % in 1.00 s, MDEQ-30A stopped 45 % in 0.60 s**" in both
    told = overview.read_costs(table.loc[["MDEQ-30A", "MDEQ-5A"]].assign(seconds=[1.0, 0.5]), "MDEQ-30A", 0.25)
    assert "MDEQ-5A certifies" in told and told.endswith("; the cheapest, for none takes a fifth of its time.")


def test_what_is_no_guarantee_is_named_where_costs_and_false_certificates_are_told():
    results = SimpleNamespace(
        rows=lambda key, kind, design: pd.concat(
            [
                _rows("MDEQ-30A", [0.5] * 20),
                _rows("MDEQ-30A as released", [0.5] * 20).assign(guarantee=False),
                _rows("AS-MDEQ-1N", [0.5] * 20).assign(n=500),
            ]
        ),
        reference=lambda key, kind: "MDEQ-30A",
    )
    table = overview.costs(results, {("s", None): ""}, 0.25)
    assert list(table.index) == ["MDEQ-30A", "MDEQ-30A as released (not a guarantee)"], "rows of other N are left out"
    line = {"alpha": 0.05, "p_value": 0.5, "guarantee": False}
    found = [
        line | {"design": "standard", "rate": 0.0, "guarantee": True},
        line | {"design": "theorem_3_1, first_batch", "rate": 0.025},
        line | {"design": "theorem_3_1, first_batch", "rate": 0.01},
        line | {"design": "theorem_3_1, random", "rate": 0.5},
        line | {"design": "released_code, first_batch", "rate": 1.0},
        line | {"design": "released_code, first_batch", "rate": 0.0, "alpha": 0.001},
    ]
    told = overview.read_coverage(pd.DataFrame(found))
    assert "up to 2.5 % by Theorem 3.1 as printed (50 % audited at random) and 100 % by the released code are false at" in told


def test_the_theorem_may_reach_further_by_larger_audits():
    told = overview.read_reach(1_000, [0.5, 1.25, 1.5])
    assert "at 2 radii larger than the theorem's, up to 1.5" in told
    assert told.endswith("with all draws audited the theorem ends at 1.422 (all rounded down).")


def test_the_worst_attack_is_told_with_what_was_not_right_before(attacked):
    told = attacked.worst()
    assert (
        "of 3 images that PREDICT classifies correctly when clean (4 were attacked; on 0 of these it abstains, 1 it names"
        in told
    )
    assert "the attack that leaves least, PGD, leaves" in told

"""What the report of the record computes and says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from srs.certificates import bounds
from study.reports import record

PUBLISHED = yaml.safe_load((Path(__file__).parent.parent / "data" / "published.yaml").read_text())


def test_a_published_row_counts_once_in_however_many_tables_it_stands():
    rows = record.published_radii(PUBLISHED)
    assert len(rows) == 9 and sum(map(len, rows.values())) == 63
    assert len({tuple(PUBLISHED[table][row]["accuracy"]) for table, row in rows}) == 9
    told = record.read_reach(PUBLISHED)
    assert "Of the 63 published cells known to us, of 9 different rows," in told
    assert "27 lie beyond the theorem with K = 400 and 18 with K = 1,000" in told
    assert "0.990 and 1.146 by Theorem 3.1 as printed" in told  # 0.9909 and 1.1469: rounded down


def test_the_least_audit_is_where_the_radius_is_reached():
    k = record.least_audit(1.25)
    assert record.reach("finite_population", k) >= 1.25 > record.reach("finite_population", k - 1)
    assert record.least_audit(bounds.largest_radius(record.N, record.ALPHA, record.SIGMA)) is None
    assert f"must audit about K = {k:,}" in record.read_price(PUBLISHED)


def _found(radii, spent):
    return pd.DataFrame({"prediction": 1, "label": 1, "radius": radii, "evaluations": spent})


@pytest.fixture
def frontier():
    """Ten images; the reference reaches the serialized row's ACR with 500 of its 1,000 evaluations."""
    made = record.Frontier.__new__(record.Frontier)
    spread = np.linspace(0.1, 0.3, 10)
    made.reference, made.count, made._saved = "MDEQ-30A", 100, " MDEQ-30A never stops."
    made._default = _found(spread, 250).assign(k=20)
    made._fewer = [_found(spread * share, evaluations) for share, evaluations in ((0.5, 100), (1.0, 500), (1.2, 1_000))]
    return made


def test_speed_at_equal_acr_has_an_interval(frontier):
    ratio, low, high = frontier.speed_at_equal_acr()
    assert ratio == pytest.approx(2.0) and low <= ratio <= high
    frontier._default = _found(np.linspace(0.1, 0.3, 10)[::-1], 250).assign(k=20)  # now images differ
    ratio, low, high = frontier.speed_at_equal_acr()
    assert ratio == pytest.approx(2.0) and low < 1.9 and high > 2.1
    assert "2.00 times as fast (95 % bootstrap interval over these images" in frontier.told()
    assert frontier.told().endswith("). MDEQ-30A never stops.")
    frontier._fewer = frontier._fewer[:1]  # half of its ACR
    assert frontier.told().endswith("of its ACR. No fewer draws give MDEQ-30A as much. MDEQ-30A never stops.")


def test_draws_that_gain_nothing_and_draws_that_are_not_enough():
    assert record._ratio(np.array([0.2, 0.1, 0.2, 0.2, 0.3]), np.array([100, 100, 200, 300, 400])) == pytest.approx(2.0)
    assert record._ratio(np.array([0.4, 0.1, 0.3]), np.array([100, 100, 200])) == np.inf


def test_where_nothing_is_certified_no_speed_is_told(frontier):
    frontier._default = frontier._default.assign(label=0)
    assert "that says little, for one of the two certifies no image rightly. MDEQ-30A never" in frontier.told()


def test_plans_are_counted():
    table = pd.DataFrame({"serialized: radius": [1, 2, 3], "standard: radius": [2, 1, 3], "K": [5, 5, 9], "N": [9, 9, 9]})
    told = record.read_plans(table)
    assert "in 1 of 3 plans, by at most 1.000 sigma" in told and "In 1 the best audit is of all draws" in told


def test_the_worst_case_is_named():
    line = {"alpha": 0.001, "runs": 100}
    found = [
        line | {"design": "standard", "guarantee": True, "case": "linear", "false": 1, "rate": 0.01},
        line | {"design": "standard", "guarantee": True, "case": "late", "false": 0, "rate": 0.0},
        line | {"design": "released_code, first_batch", "guarantee": False, "case": "late", "false": 90, "rate": 0.9},
    ]
    told = record.read_coverage(pd.DataFrame(found))
    assert "false in at most 1 of 100 runs" in told and "the first batch, in 90 of 100 of its worst case" in told
    none = record.worst_cases(pd.DataFrame(found[1:2]))
    both = record.worst_cases(pd.DataFrame([found[2], found[2] | {"case": "linear"}]))
    assert none["case"].tolist() == ["none has any"] and both["case"].tolist() == ["late and linear"]

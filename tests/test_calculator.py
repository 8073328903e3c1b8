"""The certificate calculator in a headless browser, against the library's bounds."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from srs.certificates import bounds
from study.reports.site import PAGES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAPER = {"n": 10_000, "votes": 10_000, "k": 1_000, "mismatches": 0, "alpha": 0.001, "sigma": 0.5, "split": 0.5}
CASES = [
    PAPER,
    PAPER | {"k": 400},
    PAPER | {"votes": 9_000, "mismatches": 5, "split": 0.2},
    PAPER | {"votes": 7_312, "mismatches": 40, "alpha": 0.01, "sigma": 0.25},
    PAPER | {"n": 137, "votes": 120, "k": 137, "mismatches": 3, "sigma": 1.0},
    PAPER | {"n": 100_000, "votes": 99_990, "k": 10_000, "mismatches": 1, "alpha": 1e-6},
    PAPER | {"votes": 0, "k": 0},
]


def _page(query: str) -> BeautifulSoup:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    url = f"{(PAGES / 'calculator.html').as_uri()}#{query}"
    ended = subprocess.run([BROWSER, *flags, url], capture_output=True, text=True, timeout=120)
    return BeautifulSoup(ended.stdout, "html.parser")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['votes']}-{case['k']}")
def test_the_calculators_radii_are_the_librarys(case):
    page = _page("&".join(f"{name}={value}" for name, value in case.items()))
    n, votes, alpha, sigma = (case[name] for name in ("n", "votes", "alpha", "sigma"))
    audited = min(votes, int(case["k"] * votes / n + 0.5))
    counts = votes, n, audited - case["mismatches"], audited, alpha
    expected = {"standard": (0.0, bounds.clopper_pearson_lower(votes, n, alpha))}
    for name in bounds.ESTIMATORS:
        bound = bounds.serialized_bound(name, *counts, case["split"] if name == "finite_population" else 0.5)
        expected[name] = bound.p_m_upper, bound.p_a_lower
    for name, (rate, p) in expected.items():
        shown = {key: float(cell.attrs[f"data-{key}"]) for cell in page.find(id=name)("td") for key in _keys(cell)}
        assert shown == pytest.approx({"rate": rate, "p": p, "radius": bounds.radius(p, sigma)}, rel=1e-8, abs=1e-9), name
        if shown["radius"] > 0:
            assert page.find(id=name)("td")[-1].get_text() == bounds.shown(bounds.radius(p, sigma), 4)


def _keys(cell) -> list[str]:
    return [name.removeprefix("data-") for name in cell.attrs if name.startswith("data-")]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_calculator_names_what_it_cannot_take():
    page = _page("votes=10001")
    assert page.find(id="fault").get_text() == "votes = 10001: a whole number from 0 to 10000 is wanted"
    assert not page.find(id="found")("tr")


def test_the_calculator_fetches_nothing():
    text = Path(PAGES / "calculator.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|import\(|fetch\(|src=", text) and len(text) < 20_000

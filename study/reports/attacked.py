"""Certified images under attack."""

from functools import cached_property
from typing import NamedTuple

import pandas as pd

from srs.certificates.certify import ABSTAIN
from study.reports import tables
from study.reports.numbers import BEYOND, plural
from study.reports.results import Results
from study.reports.statistics import certified
from study.robustness import CLEAN, Robustness


class Outcome(NamedTuple):
    """Images that PREDICT classifies correctly when clean, and among them those that an attack leaves so, makes abstain and
    fools (once fooled by a smaller budget, always fooled)."""

    correct: set
    left: set
    abstaining: set
    fooled: set


class Attacked:
    """The attacks on the run ``key``, and the certificates of the attacked images."""

    def __init__(self, results: Results, key: str, config: Robustness):
        self.results, self.key, self.config, self.row = results, key, config, config.runs[key]
        self.found = pd.read_csv(results.layout.runs / "attacks" / f"{key}.csv")
        rows = results.rows(key)
        rows = rows[rows["method"] == self.row]
        self.reach = tables.reachable(rows)[self.row]
        self.rows = rows[rows["index"].isin(self.found["index"])].set_index("index")
        self.images, self.decisions = self.found["index"].nunique(), int((self.found["draws"] > 0).sum())

    def basis(self) -> str:
        """On how many images all of it rests, and on which certificates."""
        return f"{plural(self.images, 'attacked image')}, among those of {self.results.basis([(self.key, None)])}"

    @cached_property
    def _clean(self) -> pd.DataFrame:
        """What PREDICT says of the images before any attack."""
        return self.found[self.found["attack"] == CLEAN]

    def outcome(self, attack: str, r: float) -> Outcome:
        """Of an attack of budget ``r``."""
        correct = set(self._clean.loc[self._clean["prediction"] == self._clean["label"], "index"])
        if r == 0:
            return Outcome(correct, correct, set(), set())
        at = self.found[(self.found["attack"] == attack) & (self.found["radius"] == r) & self.found["index"].isin(correct)]
        fooled = set(at.loc[at["fooled"], "index"])
        left = set(at.loc[at["prediction"] == at["label"], "index"]) - fooled
        return Outcome(correct, left, correct - left - fooled, fooled)

    def certified(self) -> dict[str, str]:
        """Certified accuracy at each budget; a dash beyond the audit's reach."""
        counts = {r: int(certified(self.rows, r).sum()) for r in self.config.radii}
        return {f"r = {r:g}": tables.share(n, self.images) if r <= self.reach else BEYOND for r, n in counts.items()}

    def success(self, attack: str, kind: str) -> dict[str, str]:
        """How many of the ``certified`` or ``uncertified`` points an attack fooled, at each budget."""
        cells = {}
        for r in (r for r in self.config.radii if r > 0):
            points = self._points(attack, r, kind)
            won = points & self.outcome(attack, r).fooled
            cells[f"r = {r:g}"] = f"{tables.share(len(won), len(points))} ({len(won)} of {len(points)})" if points else BEYOND
        return cells

    def _points(self, attack: str, r: float, kind: str) -> set:
        sure = set(self.rows.index[certified(self.rows, r)])
        correct = self.outcome(attack, r).correct
        return correct & sure if kind == "certified" else correct - sure

    @cached_property
    def _pairs(self) -> list[tuple[str, float, int]]:
        budgets = [(attack, r) for attack in self.config.attacks for r in self.config.radii if r > 0]
        return [(attack, r, index) for attack, r in budgets for index in sorted(self._points(attack, r, "certified"))]

    def inside(self) -> list[tuple[str, float, int]]:
        """The attacks that fooled the classifier within a certified radius: attack, budget, image."""
        return [(attack, r, index) for attack, r, index in self._pairs if index in self.outcome(attack, r).fooled]

    def told(self) -> str:
        """Whether an attack succeeded within a certified radius, and in how many cases it might have."""
        pairs = {(r, index) for _, r, index in self._pairs}
        images, succeeded = len({index for _, index in pairs}), len(self.inside())
        if not pairs:
            return "no attacked image is certified at any budget, so that nothing can be said of certified points."
        return (
            f"{succeeded or 'none'} of {plural(len(self._pairs), 'attack')} within a certified radius succeeded; these are on "
            f"{plural(images, 'image')}, {plural(len(pairs), 'pair')} of image and budget."
        )

    def worst(self) -> str:
        """What the attack that leaves least does at the largest budget, of several the one that fools most."""
        r = self.config.radii[-1]
        found = {attack: self.outcome(attack, r) for attack in self.config.attacks}
        attack = min(found, key=lambda attack: (len(found[attack].left), -len(found[attack].fooled)))
        correct, left, abstaining, fooled = found[attack]
        unsure = int((self._clean["prediction"] == ABSTAIN).sum())
        wrong = len(self._clean) - len(correct) - unsure
        counts = {name: tuple(map(len, one)) for name, one in found.items()}
        alike = [name for name in counts if name != attack and counts[name] == counts[attack]]
        also = f" (alike: {'; '.join(alike)})" if alike else ""
        least = sum(len(one.left) == len(left) for one in found.values())
        tied = f" ({least} do), and of these fools most" if least > 1 + len(alike) else ""
        if not correct:
            return f"PREDICT classifies none of {plural(self.images, 'attacked image')} correctly when clean."
        return (
            f"At r = {r:g}, of {plural(len(correct), 'image')} that PREDICT classifies correctly when clean ({self.images} "
            f"were attacked; on {unsure} of these it abstains, {wrong} it names wrongly), the "
            f"attack that leaves least{tied}, {attack}{also}, leaves {len(left)} so, makes {len(abstaining)} abstain and fools "
            f"{len(fooled)}."
        )

"""Verdicts, and the claims of data/claims.yaml judged on made-up certificates whose answers are known."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from srs.deq.solvers import Solver
from srs.votes.samplers import SerializedSampler
from study.reports import claims
from study.reports.claims import ABSENT, CONFIRMED, CONTRADICTED, UNDECIDED, UNKNOWN
from study.reports.statistics import paired_interval


@pytest.mark.parametrize(
    "intervals, least, most, expected",
    [
        ([(0.1, 0.2)], 0.1, math.inf, CONFIRMED),
        ([(0.09, 0.2)], 0.1, math.inf, UNDECIDED),
        ([(0.0, 0.09)], 0.1, math.inf, CONTRADICTED),
        ([(-0.02, 0.03)], -0.03, 0.03, CONFIRMED),
        ([(0.04, 0.3)], -0.03, 0.03, CONTRADICTED),  # too good is not alike
        ([(0.0, 0.01), (-0.2, 0.2)], -0.03, 0.03, UNDECIDED),
        ([(0.0, 0.01), (0.1, 0.2)], -0.03, 0.03, CONTRADICTED),
        ([(math.nan, math.nan)], -0.03, 0.03, UNDECIDED),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(intervals, least, most, expected):
    assert claims.verdict(intervals, least, most) == expected


def test_one_counterexample_contradicts_never_and_only_many_images_confirm_it():
    assert claims.never(1, 1000, 0.1).verdict == CONTRADICTED
    needed = claims.never(0, 30, 0.1).needed
    assert [claims.never(0, n, 0.1).verdict for n in (0, needed - 1, needed)] == [UNDECIDED, UNDECIDED, CONFIRMED]


@pytest.mark.parametrize("least, most", [(-0.03, math.inf), (-0.03, 0.03), (0.1, math.inf), (0.0, math.inf), (-math.inf, 0.0)])
def test_the_least_number_of_images_is_the_first_that_could_confirm(least, most):
    def confirmed(images):
        ends = ((0, 0), (images, 0), (0, images))
        found = [claims.verdict([paired_interval(*end, images)], least, most) for end in ends]
        return found[0 if least < 0 < most else 1 if least >= 0 else 2] == CONFIRMED

    needed = claims.least_images(least, most)
    assert confirmed(needed) and not any(confirmed(images) for images in range(2, needed))


# judged on certificates that are made up


def _rows(**radii):
    """Certificates of all images by row, correct where the radius is not None."""
    lines = [
        {"index": i, "label": 1, "method": row, "prediction": -1 if r is None else 1, "radius": r or 0.0}
        for row, found in radii.items()
        for i, r in enumerate(found)
    ]
    more = {"n": 1000, "alpha": 0.001, "sigma": 0.5, "estimator": "", "split": 0.0, "k": 0, "census": 0, "seconds": 1.0}
    return pd.DataFrame(lines).assign(**more, evaluations=1)


class Made:
    """Results of one run, "s", that stands for the size small."""

    def __init__(self, rows, tmp_path):
        self.found = rows
        group = SimpleNamespace(kind="main", n=1000, samplers=())
        plan = SimpleNamespace(groups={"main": group})
        self.plans = type("Plans", (dict,), {"plans": {"s": plan}})(s=plan)
        self.report = SimpleNamespace(sizes=lambda: {"small": SimpleNamespace(main="s")}, large=None, resnet=None)
        self.layout = SimpleNamespace(runs=tmp_path)
        self.robustness = {"runs": {"s": "MDEQ-30A"}}
        self.published, self.speed = {"table2": {}}, {"audit": 300}

    def note(self, sources, design=""):
        pass

    def reference(self, key, draws=None):
        return "MDEQ-30A"

    def samplers(self, key, draws=None):
        return dict.fromkeys(self.found["method"].unique())

    def rows(self, key, draws=None, design=""):
        return self.found

    def combined(self, parts):
        return pd.concat([self.found[self.found["method"] == row].assign(method=name) for name, (*_, row) in parts.items()])

    def radii(self, key):
        return [0, 0.25, 0.5]

    def trainings(self, key):
        return [key]

    def shared(self, keys, rows=(), draws=None):
        return None

    def dataset(self, key):
        return SimpleNamespace(name="digits")


def _judged(results, **claim):
    given = {"claim": "{model}: a claim", "source": "Table 0", "models": ["small"]} | claim
    (line,) = claims.judge(claims.Claim(**given), results)
    return line


def test_accuracies_are_compared_at_the_radius_that_is_told(tmp_path):
    ours, theirs = [0.3] * 150, [0.3] * 100 + [0.1] * 50
    results = Made(_rows(**{"MDEQ-30A": ours, "SRS-MDEQ-3A": theirs}), tmp_path)
    told = {"quantity": "certified accuracy", "row": "SRS-MDEQ-3{solver}", "least": -0.03}
    near, far = _judged(results, **told), _judged(results, **told, r=0.25)
    assert (near["verdict"], near["images"], near["data"]) == (CONFIRMED, 150, "digits")
    assert far["verdict"] == CONTRADICTED and "r = 0.25: SRS-MDEQ-3A against MDEQ-30A: -33.3 points" in far["found"]
    assert near["claim"] == "MDEQ-SMALL: a claim"


def test_a_plain_network_that_is_too_little_trained_judges_nothing(tmp_path):
    class Beside(Made):
        def __init__(self, rows, right):
            super().__init__(rows, tmp_path)
            self.plans["r"] = self.plans.plans["r"] = self.plans["s"]
            self.right = right
            self.report.resnet, self.report.small = "r", None

        def history(self, key):
            return pd.DataFrame({"validation_accuracy": [self.right[key]]})

        def dataset(self, key):
            return SimpleNamespace(name="digits", validation=range(100))

    rows = _rows(**{"MDEQ-30A": [0.3] * 150, "ResNet": [0.3] * 100 + [None] * 50})
    told = {"quantity": "certified accuracy", "against": {"of": "resnet", "row": "ResNet"}, "least": -0.03, "most": 0.03}
    told |= {"row": {"of": "small", "row": "MDEQ-30A"}}
    well, badly = (_judged(Beside(rows, {"s": 0.63, "r": right}), **told) for right in (0.6, 0.43))
    assert well["verdict"] == CONTRADICTED, well["found"]
    assert "s 63 [52, 73] percent of 100, r 60 [49, 70] percent of 100" in well["found"]
    assert badly["verdict"] == claims.UNKNOWN and badly["found"].endswith("as r is trained here, that says little of it")


def test_trainings_that_differ_leave_undecided_what_one_of_them_confirms(tmp_path):
    alike, worse = [0.3] * 150, [0.3] * 120 + [None] * 30
    made = {"s": alike, "s-seed1": alike, "s-seed2": worse}

    class Repeated(Made):
        def trainings(self, key):
            return list(made)

        def shared(self, keys, rows=(), draws=None):
            return "repeats"

        def combined(self, parts):
            ((key, *_), *_) = parts.values()
            return _rows(**{"MDEQ-30A": alike, "SRS-MDEQ-3A": made[key]})

    told = {"quantity": "certified accuracy", "row": "SRS-MDEQ-3{solver}", "least": -0.03}
    results = Made(_rows(**{"MDEQ-30A": alike, "SRS-MDEQ-3A": alike}), tmp_path)
    alone, together = _judged(results, **told), _judged(Repeated(results.found, tmp_path), **told)
    assert (alone["verdict"], alone["trainings"]) == (CONFIRMED, 1)
    assert alone["found"].endswith("not judged: the ACR, 0.000 (no interval: the same difference on every image)")
    assert (together["verdict"], together["trainings"]) == (UNDECIDED, 3) and "-6.7 points" in together["found"]


def test_a_pair_is_looked_for_in_the_runs_other_lists_where_its_main_one_has_not_both(tmp_path):
    """The audits' reference may be another row than the standard that speed-ups are over."""

    class Lists(Made):
        lists = {None: ["MDEQ-30A stopped", "SRS-MDEQ-3A"], "baselines": ["MDEQ-30A", "SRS-MDEQ-3A"]}

        def reference(self, key, draws=None):
            return "MDEQ-30A stopped"

        def samplers(self, key, draws=None):
            return dict.fromkeys(self.lists[draws])

        def shared(self, keys, rows=(), draws=None):
            return next((name for name in ("baselines",) if {*rows} <= {*self.lists[name]}), None)

        def combined(self, parts):
            asked.append({draws for _, draws, _ in parts.values()})
            return super().combined(parts)

    alike, asked = [0.3] * 10, []
    rows = _rows(**{"MDEQ-30A": alike, "MDEQ-30A stopped": alike, "SRS-MDEQ-3A": alike})
    rows["evaluations"] = [40] * 10 + [15] * 10 + [10] * 10
    told = {"quantity": "speed-up", "row": "SRS-MDEQ-3{solver}", "against": "standard", "least": 2}
    found = _judged(Lists(rows, tmp_path), **told)
    assert found["verdict"] == CONFIRMED and asked == [{"baselines"}]
    assert found["found"].endswith("not judged: in the main list, N = 1,000, beside MDEQ-30A stopped 1.50×")
    assert _judged(Lists(rows, tmp_path), **told | {"against": "MDEQ-9A"})["verdict"] == ABSENT
    apart = _judged(Lists(rows, tmp_path), **told | {"row": "MDEQ-30A stopped"})  # both have a list, but none together
    assert apart["verdict"] == ABSENT and "no list of s has both MDEQ-30A stopped and MDEQ-30A" in apart["found"]


def test_a_speed_up_is_judged_where_most_draws_were_cast(tmp_path):
    """There warm-up and audit weigh as little as in the paper; other claims are judged where all trainings are."""

    class Longer(Made):
        def combined(self, parts):
            asked.append({draws for _, draws, _ in parts.values()})
            return super().combined(parts)

    asked, rows = [], _rows(**{"MDEQ-30A": [0.3] * 10, "SRS-MDEQ-3A": [0.3] * 10})
    results = Longer(rows, tmp_path)
    both = ("MDEQ-30A", "SRS-MDEQ-3A")
    groups = {"main": SimpleNamespace(n=1000, samplers=both), "few": SimpleNamespace(n=5000, samplers=both[:1])}
    groups |= {"far": SimpleNamespace(n=4000, samplers=both)}
    results.plans["s"] = SimpleNamespace(groups=groups, group=lambda draws: draws or "main")
    told = {"row": "SRS-MDEQ-3{solver}", "against": "standard", "least": 0}
    _judged(results, quantity="speed-up", **told), _judged(results, quantity="certified accuracy", **told)
    assert asked == [{"far"}, {None}]


def test_evaluations_are_compared_image_by_image(tmp_path):
    rows = _rows(**{"MDEQ-30A": [0.3] * 10, "SRS-MDEQ-3A": [0.3] * 10})
    rows["evaluations"] = [400 + i for i in range(10)] + [100 + i for i in range(10)]
    told = {"quantity": "speed-up", "row": "SRS-MDEQ-3{solver}"}
    whole = Made(rows.assign(n=10_000), tmp_path)
    assert [_judged(whole, **told, least=least)["verdict"] for least in (2, 3.9, 5)] == [CONFIRMED, UNDECIDED, CONTRADICTED]
    few = Made(rows, tmp_path)  # of fewer draws than the paper's: warm-up and audit weigh more, so that it is a lower bound
    assert [_judged(few, **told, least=least)["verdict"] for least in (2, 3.9, 5)] == [CONFIRMED, UNDECIDED, UNDECIDED]


def test_seconds_of_timed_certificates_must_say_what_evaluations_say(tmp_path):
    """On a GPU a chain's steps wait for one another: fewer evaluations need not be faster."""
    rows = _rows(**{"MDEQ-30A": [0.3] * 10, "SRS-MDEQ-3A": [0.3] * 10}).assign(n=10_000)
    rows["evaluations"] = [4] * 10 + [1] * 10
    told = {"quantity": "speed-up", "row": "SRS-MDEQ-3{solver}", "least": 2}
    known, folder = {"repeat": 0, "n": 10_000, "hardware": "an abacus", "torch": "9.9"}, tmp_path / "speed" / "s"
    folder.mkdir(parents=True)

    def found(seconds, **more):
        lines = [{"method": "MDEQ-30A", "index": i, "seconds": value} for i, value in enumerate(seconds)]
        lines += [{"method": "SRS-MDEQ-3A", "index": i, "seconds": 1.0} for i in range(len(seconds))]
        pd.DataFrame(lines).assign(**known | more).to_csv(folder / "00-00.csv")
        return _judged(Made(rows, tmp_path), **told)

    same, other = found([4.0, 4.1]), found([1.5, 1.5, 1.6])
    assert same["verdict"] == CONFIRMED and "4.0× the evaluations of f of SRS-MDEQ-3A" in same["found"]
    assert "whole certificates at N = 10,000 and K = 300 of 2 images, in turns on an abacus" in same["found"]
    assert other["verdict"] == UNKNOWN and other["found"].endswith("evaluations say one thing and seconds another")
    assert found([1.5, 2.0, 2.6])["verdict"] == UNDECIDED
    assert found([1.5, 1.5, 1.6], n=2_000)["verdict"] == UNDECIDED, "more draws are faster"
    assert found([1.5])["verdict"] == CONFIRMED, "one image tells nothing"


def test_it_is_said_where_a_warm_up_alone_chooses_the_class(tmp_path):
    class Warm(Made):
        def samplers(self, key, draws=None):
            warm = {1: Solver(steps=1), 5: Solver(steps=5)}
            return {f"{n} steps": SerializedSampler(chains=self.chains, warmup=warmup) for n, warmup in warm.items()}

    rows = _rows(**{"1 steps": [0.3] * 10, "5 steps": [0.3] * 9 + [0.2]}).assign(n0=100)
    told = {"quantity": "all pairs of serialized rows", "draws": "warmup_steps", "least": -0.03, "most": 0.03}
    results = Warm(rows, tmp_path)
    results.plans["s"].groups["warmup_steps"] = SimpleNamespace(kind="warmup_steps", n=1000, samplers=())
    for results.chains, said in ((100, True), (50, False)):
        found = _judged(results, **told)["found"]
        assert '"1 steps" against "5 steps"' in found and "N = 1,000" in found
        assert ("all n0 = 100 draws that choose a class being of the warm-up" in found) == said


def test_of_pairs_it_is_said_how_many_lie_outside_and_how_many_are_as_far(tmp_path):
    class Pairs(Made):
        def samplers(self, key, draws=None):
            return {row: SerializedSampler(chains=10) for row in ("poor", "good", "better")}

    rows = _rows(poor=[None] * 40, good=[0.3] * 40, better=[0.3] * 40).assign(n0=100)
    told = {"quantity": "all pairs of serialized rows", "least": -0.03, "most": 0.03}
    found = _judged(Pairs(rows, tmp_path), **told)
    assert found["verdict"] == CONTRADICTED
    assert found["found"].startswith(
        'r = 0: 2 of 3 pairs lie outside, the farthest "poor" against "good" (1 more as far): -100 points'
    )


def test_one_image_judges_no_speed_up(tmp_path):
    found = _judged(
        Made(_rows(**{"MDEQ-30A": [0.3], "SRS-MDEQ-3A": [0.3]}), tmp_path),
        quantity="speed-up",
        row="SRS-MDEQ-3{solver}",
        least=2,
    )
    assert found["verdict"] == UNDECIDED


def test_a_loss_is_judged_at_the_largest_radius_where_one_could_show(tmp_path):
    told = {"quantity": "certified accuracy", "row": "SRS-MDEQ-3{solver}", "least": -0.03, "r": "reach"}
    standard = [0.3] * 20 + [0.1] * 130
    results = Made(_rows(**{"MDEQ-30A": standard, "SRS-MDEQ-3A": standard}), tmp_path)
    found = _judged(results, **told)  # at 0.5 nothing is certified by either: nobody's merit
    assert found["verdict"] == CONFIRMED and found["found"].startswith("r = 0.25:")
    nothing = Made(_rows(**{"MDEQ-30A": [0.1] * 150, "SRS-MDEQ-3A": [0.1] * 150}), tmp_path)
    found = _judged(nothing, **told)
    assert found["verdict"] == UNDECIDED and "no loss could show: MDEQ-30A certifies fewer than 10 %" in found["found"]
    short = _rows(**{"MDEQ-30A": standard, "SRS-MDEQ-3A": standard}).assign(n=12)
    found = _judged(Made(short, tmp_path), **told)
    assert found["verdict"] == UNDECIDED and "no radius of ours is within the reach of SRS-MDEQ-3A" in found["found"]


def test_an_attack_counts_within_the_certified_radius_of_a_right_prediction(tmp_path):
    results = Made(_rows(**{"MDEQ-30A": [0.5, 0.2, None, None]}), tmp_path)
    lines = [(0, 0.25, False), (0, 0.75, True), (1, 0.25, True), (2, 0.25, True), (0, 0.0, True), (3, 0.0, False)]
    attacks = pd.DataFrame(lines, columns=["index", "radius", "fooled"])
    (tmp_path / "attacks").mkdir()
    attacks.to_csv(tmp_path / "attacks/s.csv", index=False)
    told = {"quantity": "successful attacks", "most": 0.1}
    found = _judged(results, **told)["found"]
    assert found.startswith("attacks within the certified radius fooled 0 of 1 images")
    assert "at least the smallest budget, r = 0.25 (1 attack; 3 images attacked" in found, "the clean image alone is no attack"
    attacks.assign(fooled=True).to_csv(tmp_path / "attacks/s.csv", index=False)
    assert _judged(results, **told)["verdict"] == CONTRADICTED


@pytest.mark.parametrize("false, expected", [(0, CONFIRMED), (50, UNDECIDED), (90, CONTRADICTED)])
def test_false_certificates_are_judged_at_the_worst_case_of_the_design(tmp_path, false, expected):
    (tmp_path / "coverage").mkdir()
    lines = [("linear", "d", 0.05, 3), ("late", "d", 0.05, false), ("late", "other", 0.05, 999), ("late", "d", 0.001, 999)]
    table = pd.DataFrame(lines, columns=["case", "design", "alpha", "false"]).assign(runs=1000)
    table.assign(rate=table["false"] / 1000).to_csv(tmp_path / "coverage/coverage.csv", index=False)
    found = _judged(Made(_rows(**{"MDEQ-30A": [0.1]}), tmp_path), models=[], quantity="false certificates", row="d")
    assert found["verdict"] == expected and found["images"] == 1000


def test_what_the_released_audit_makes_false_is_told_beside_a_random_one(tmp_path):
    (tmp_path / "coverage").mkdir()
    lines = [
        ("linear", "theorem_3_1, first_batch", 90),
        ("late", "theorem_3_1, random", 2),
        ("linear", "theorem_3_1, random", 1),
    ]
    table = pd.DataFrame(lines, columns=["case", "design", "false"]).assign(runs=100, alpha=0.05)
    table.assign(rate=table["false"] / 100).to_csv(tmp_path / "coverage/coverage.csv", index=False)
    told = {"models": [], "quantity": "false certificates", "row": "theorem_3_1, first_batch"}
    found = _judged(Made(_rows(**{"MDEQ-30A": [0.1]}), tmp_path), **told)["found"]
    assert "90 of 100 false" in found and found.endswith("not judged: audited at random, at most 2 of 100 in a case")


def test_what_a_profile_has_not_is_said_and_not_judged(tmp_path):
    results = Made(_rows(**{"MDEQ-30A": [0.1]}), tmp_path)
    accuracy = {"quantity": "certified accuracy", "least": 0}
    for given, named in (
        ({"models": ["large"]}, "report.large"),
        ({"draws": "steps"}, "no draws steps of s"),
        ({"row": "MDEQ-9A"}, "no row MDEQ-9A of s"),
        ({"models": [], "row": {"of": "resnet"}}, "report.resnet"),
    ):
        found = _judged(results, **accuracy, **given)
        assert found["verdict"] == ABSENT and named in found["found"]


def test_only_the_papers_claims_are_counted():
    lines = pd.DataFrame({"whose": ["the paper", "ours", "the paper"], "verdict": [CONFIRMED, CONFIRMED, UNDECIDED]})
    assert claims.decided(lines) == {CONFIRMED: 1, CONTRADICTED: 0, UNDECIDED: 1, claims.UNKNOWN: 0, ABSENT: 0}


def test_verdicts_on_stand_in_data_are_told_apart():
    lines = pd.DataFrame(
        {
            "whose": ["the paper"] * 4 + ["ours"],
            "verdict": [CONFIRMED, CONTRADICTED, CONTRADICTED, UNDECIDED, CONFIRMED],
            "data": ["digits", "digits", "", "mnist", "digits"],
        }
    )
    tally, stand_ins = claims.read_tally(lines)
    assert tally == "Of the paper's 4 claims: 1 confirmed, 2 contradicted, 1 not decided at this size."
    assert stand_ins.startswith("On digits, which stand in") and "claims: 1 confirmed, 1 contradicted; by" in stand_ins
    assert stand_ins.endswith("on the paper's own data: 1 contradicted.")
    assert claims.read_tally(lines[lines["data"] == ""]) == ["Of the paper's 1 claims: 1 contradicted."]


def test_a_claim_without_a_test_is_refused():
    with pytest.raises(ValueError, match="quantity.*speed-up"):
        claims.Claim(claim="x", source="y", quantity="speedup")


def test_a_list_without_a_reference_is_not_asked_for_one(tmp_path, monkeypatch):
    results = Made(_rows(**{"MDEQ-1A": [0.1] * 9, "SRS-MDEQ-1A": [0.1] * 9}), tmp_path)
    monkeypatch.setattr(results, "reference", lambda *_: next(iter(())))
    told = {"quantity": "certified accuracy", "row": "SRS-MDEQ-1A", "against": "MDEQ-1A", "least": -0.9}
    assert _judged(results, **told)["verdict"] == CONFIRMED


def test_a_mean_that_few_images_make_is_not_enough(tmp_path):
    """Three images of 12 pull the mean far down; of the others as many are closer as are further."""
    whole = [1.0] * 12
    ours = [0.9, 0.8] * 6
    theirs = [0.8, 0.9] * 6
    told = {"quantity": "relative radius difference", "row": "SRS-MDEQ-3A", "against": "MDEQ-3A", "most": 0}
    torn = [10.0, 10.0, 10.0, *theirs[3:]]
    found = _judged(Made(_rows(**{"MDEQ-30A": whole, "SRS-MDEQ-3A": ours, "MDEQ-3A": torn}), tmp_path), **told)
    assert found["verdict"] == UNDECIDED and "smaller for 7 of 12 images that differ" in found["found"]
    worse = [0.5 + 0.01 * i for i in range(12)]
    found = _judged(Made(_rows(**{"MDEQ-30A": whole, "SRS-MDEQ-3A": ours, "MDEQ-3A": worse}), tmp_path), **told)
    assert found["verdict"] == CONFIRMED and "smaller for 12 of 12" in found["found"]
    found = _judged(Made(_rows(**{"MDEQ-30A": whole, "SRS-MDEQ-3A": worse, "MDEQ-3A": ours}), tmp_path), **told)
    assert found["verdict"] == CONTRADICTED


def test_a_difference_of_radii_that_is_one_on_all_images_is_decided(tmp_path):
    told = {"quantity": "relative radius difference", "row": "SRS-MDEQ-3A", "against": "MDEQ-3A", "most": 0}
    rows = {"MDEQ-30A": [1.0] * 12, "SRS-MDEQ-3A": [1.0] * 12, "MDEQ-3A": [0.0] * 12}  # which certifies nothing
    assert _judged(Made(_rows(**rows), tmp_path), **told)["verdict"] == CONFIRMED


def test_a_change_has_an_interval_also_where_next_to_all_is_alike():
    low, high = claims.change_interval([0] * 14 + [1])
    assert low < -0.2 and high > 0.4  # a bootstrap of this cannot fall below 0
    rng, runs, held = np.random.default_rng(0), 200, 0
    for change in rng.choice([-2, -1, 0, 1, 2], (runs, 60), p=[0.05, 0.1, 0.6, 0.2, 0.05]):
        low, high = claims.change_interval(change)
        assert low <= change.mean() <= high
        held += low <= 0.1 <= high
    assert held >= 190


def test_what_no_size_could_decide_is_not_counted_as_too_small(tmp_path):
    found = _judged(Made(_rows(**{"MDEQ-30A": [0.3]}), tmp_path), quantity="not known to us")
    assert found["verdict"] == claims.UNKNOWN


def test_a_claim_says_what_is_small_enough_or_large_enough_for_it():
    """Readers judge a verdict by its threshold: it stands in the claim."""
    for claim in claims.read():
        for limit in {abs(claim.least or 0), abs(claim.most or 0)} - {0}:
            if claim.quantity in ("speed-up", "negative gaps", "successful attacks"):
                continue  # "at least 2 times"; of an "always" and a "never" the page says it
            assert f"{100 * limit:g} points" in claim.claim, claim.claim

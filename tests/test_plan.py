import numpy as np
import pytest

from srs.deq.solvers import Solver
from srs.votes.samplers import ReleasedSampler, SerializedSampler, StandardSampler
from study.votes.plan import BLOCK, Group, VotePlan, VotePlans
from study.votes.rows import sampler_of

STANDARD = {"STD-5A": StandardSampler(solver=Solver(steps=5)), "STD-1A": StandardSampler(solver=Solver(steps=1))}
TWO_STEPS = {"SRS-2A": SerializedSampler(solver=Solver(steps=2), chains=20)}


def _plan(groups, images=4, **changes):
    return VotePlan(sigma=0.25, images=images, groups=groups, reference=STANDARD["STD-5A"], n0=20, **changes)


def test_names_say_what_rows_are():
    found = sampler_of("SRS-MDEQ-3A", {}, 50)
    assert found == SerializedSampler(solver=Solver(method="anderson", steps=3), chains=50)
    assert found.warmup == Solver(method="anderson", steps=10)
    assert sampler_of("SRS-MDEQ-5B", {}, 50).warmup == Solver(method="broyden", steps=10)
    assert sampler_of("MDEQ-30N", {}, 50) == StandardSampler(solver=Solver(method="naive", steps=30))
    assert sampler_of("AS-MDEQ-2A", {}, 50) == StandardSampler(solver=Solver(steps=2), start="learned")
    spelled = {"other": SerializedSampler(chains=7), "same": "SRS-MDEQ-3A", "released": ReleasedSampler()}
    assert sampler_of("other", spelled, 50).chains == 7
    assert sampler_of("same", spelled, 50) == found
    for row in ("SRS-MDEQ-3", "MDEQ-0A", "srs-mdeq-3a", "SRS-AS-MDEQ-3A", "ResNet-110", " MDEQ-3A"):
        with pytest.raises(ValueError, match=f"the row '{row}' does not say what it is: expected MDEQ-30A"):
            sampler_of(row, spelled, 50)


def test_each_sampler_votes_once_on_what_its_groups_need():
    plan = _plan({"main": Group("main", STANDARD | TWO_STEPS, 4, 150), "long": Group("long", TWO_STEPS, 2, 300, audit=40)})
    draws = plan.draws(np.array([0, 125, 250, 375]))
    reference, one_step, serialized = draws
    assert reference == plan.reference and serialized.chains == 20
    assert one_step.solver.method == "naive"  # one fixed step of any solver is f of its start
    counts = {sampler: [len(numbers) for numbers in some] for sampler, some in draws.items()}
    assert counts[one_step] == [170] * 4 and counts[serialized] == [320, 170, 320, 170]
    extra = np.array(counts[reference]) - 170
    assert extra[[1, 3]].tolist() == [0, 0] and (extra[[0, 2]] > 0).all() and (extra <= 40).all()  # a random audit's


def test_blocks_are_of_images_with_equally_many_draws():
    groups = {
        "all": Group("a", STANDARD, 40, 50),
        "half": Group("a", STANDARD, 20, 100),
        "few": Group("a", TWO_STEPS | STANDARD, 7, 200),
    }
    plan = _plan(groups, images=40)
    blocks, draws = plan.blocks(), plan.draws(np.arange(40))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(40)) and max(map(len, blocks)) <= BLOCK
    for block in blocks:
        for numbers in draws.values():
            assert len({len(numbers[p]) for p in block}) == 1


def test_a_list_of_rows_is_found_by_its_name_or_that_of_its_draws():
    plan = _plan(
        {"few": Group("past", STANDARD, 2, 50), "past_long": Group("past", STANDARD, 1, 90), "b": Group("b", STANDARD, 1, 9)}
    )
    assert [plan.group(kind) for kind in (None, "past", "past_long", "b")] == ["few", "few", "past_long", "b"]
    with pytest.raises(ValueError, match="list of rows = 'c' is unknown: choose one of few, past_long, b, past"):
        plan.group("c")


@pytest.mark.parametrize(
    "group, message",
    [
        (Group("main", STANDARD, 5, 100), "draws.main.images = 5 is out of range: 1 to 4"),
        (Group("main", TWO_STEPS, 4, 100), "list the reference.*or give audit"),
        (Group("main", TWO_STEPS, 4, 100, audit=101), "audit = 101 must be at most n = 100"),
    ],
)
def test_impossible_groups_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        _plan({"main": group})


def test_starts_are_fitted_where_a_row_or_another_run_asks_for_them():
    runs = {name: {"model": "m", "sigma": 0.5} for name in ("plain", "amortized", "base")}
    runs["tuned"] = {"model": "m", "sigma": 0.5, "base": "base"}
    groups = {"plain": ["a"], "amortized": ["b"], "tuned": ["b"]}
    rows, draws = {"a": ["MDEQ-30A"], "b": ["AS-MDEQ-1N"]}, {name: {"images": 1, "n": 50} for name in "ab"}
    votes = {"images": {"digits": 2}, "groups": groups}
    plans = VotePlans(runs, {"m": {"data": "digits", "preset": "mdeq-tiny"}}, votes, rows, draws, {})
    assert plans.with_starts() == ["amortized", "base"]


def test_repeats_are_trained_under_the_next_seeds_and_vote_on_what_is_repeated():
    runs = {"one": {"model": "m", "sigma": 0.5, "seed": 3, "repeats": 2}, "other": {"model": "m", "sigma": 0.5}}
    votes = {"images": {"digits": 2}, "groups": {"one": ["a", "b"], "other": ["b"]}, "repeated": ["b"]}
    rows, draws = {"a": ["MDEQ-30A"], "b": ["AS-MDEQ-1N"]}, {name: {"images": 1, "n": 50} for name in "ab"}
    models = {"m": {"data": "digits", "preset": "mdeq-tiny"}}
    plans = VotePlans(runs, models, votes, rows, draws, {})
    assert {key: run.seed for key, run in plans.runs.items()} == {"one": 3, "one-seed4": 4, "one-seed5": 5, "other": 0}
    assert {key: list(plan.groups) for key, plan in plans.plans.items()} == {
        **{"one": ["a", "b"], "other": ["b"]},
        **{"one-seed4": ["b"], "one-seed5": ["b"]},
    }
    assert plans.with_starts() == ["one", "one-seed4", "one-seed5", "other"]
    with pytest.raises(ValueError, match="runs.one-seed4 has the name of a repeat of one"):
        VotePlans(runs | {"one-seed4": runs["other"]}, models, votes, rows, draws, {})

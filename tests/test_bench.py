import contextlib
import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from srs.deq.interface import LOOKED_AT
from srs.models import starts
from study import bench, speed
from study.bench import ONE_STEP, STANDARD, STOPPED, Bench
from study.common.engine import Machine, compute
from study.common.layout import Layout
from study.votes.plan import VotePlans

TINY = dict(levels=(0.25,), n=40, audit=40, images=1, repeats=1, engine_repeats=1, chains=10, batch_size=8, draws=30)
TINY |= dict(sizes=(10, 20), batches=(5,), together=(1, 2))


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when somebody works."""
    now = [0.0]
    monkeypatch.setattr(speed, "perf_counter", lambda: now[0])
    return now


def _work(clock, seconds, evaluations=1):
    def work():
        clock[0] += seconds.pop(0)
        return evaluations

    return work


def test_a_race_takes_turns_and_times_the_work_alone(clock):
    order = []

    def work(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds
            return 7

        return run

    runs = bench.race(["method", "size"], {("slow", 1): work("slow", 3.0), ("fast", 2): work("fast", 0.5)}, 2)
    assert order == ["slow", "fast", "slow", "fast"]
    assert runs.to_dict("records")[1] == {"method": "fast", "size": 2, "repeat": 0, "evaluations": 7, "seconds": 0.5}
    assert list(runs["seconds"]) == [3.0, 0.5, 3.0, 0.5]


def test_ratios_are_those_of_the_median_seconds(clock):
    spent = {STANDARD: [11.0, 12.0, 20.0], STOPPED: [4.0, 3.0, 2.0], "SRS-MDEQ-1A": [0.5, 1.5, 1.0]}
    runners = {(sigma, name, 0): _work(clock, list(seconds), 30) for sigma in (0.25, 0.5) for name, seconds in spent.items()}
    table = bench.methods_table(bench.race(["sigma", "method", "index"], runners, 3), STANDARD)
    assert len(table) == 6
    for _, part in table.groupby("sigma"):
        assert list(part["seconds"]) == [12.0, 3.0, 1.0] and list(part["least"]) == [11.0, 2.0, 0.5]
        assert list(part[f"speed over {STANDARD}"]) == [1.0, 4.0, 12.0]
        assert list(part[f"speed over {STOPPED}"]) == [0.25, 1.0, 3.0]


def test_overhead_is_that_of_what_was_timed(clock):
    runners = {
        (f"{STANDARD}, 8x8", "whole"): _work(clock, [2.2, 9.0, 2.0]),
        (f"{STANDARD}, 8x8", "bare"): _work(clock, [2.0, 2.0, 8.0]),
        (f"{bench.LAYER}, 32x32", "whole"): _work(clock, [3.0, 3.0, 3.0]),
        (f"{bench.LAYER}, 32x32", "bare"): _work(clock, [1.5, 1.5, 1.5]),
    }
    table = bench.engine_table(bench.race(["measured", "side"], runners, 3)).set_index("measured")
    assert table["ratio"].to_dict() == pytest.approx({f"{STANDARD}, 8x8": 1.1, f"{bench.LAYER}, 32x32": 2.0})
    assert table["target"].to_dict() == {
        f"{STANDARD}, 8x8": "at most 1.15",
        f"{bench.LAYER}, 32x32": "at least 1.6",
    }


def test_scaling_is_in_seconds_for_a_thousand_draws(clock):
    runners = {("draws", 500, ONE_STEP, 500): _work(clock, [1.0]), ("images at once", 4, ONE_STEP, 2000): _work(clock, [1.0])}
    table = bench.scaling_table(bench.race(["varied", "value", "method", "draws"], runners, 1))
    assert list(table[ONE_STEP]) == [2.0, 0.5]


def test_bare_passes_are_naive_steps_from_the_initial_state(started, digits):
    calls = []

    class Counted:
        rows_at_once = 3

        def __getattr__(self, name):
            def method(*inputs):
                calls.append((name, len(inputs[0])))
                return getattr(started, name)(*inputs)

            return method

    assert bench.pass_through(Counted(), digits.test.images(np.arange(5)), steps=2, batch_size=4) == 10
    one = ["inject", "initial_state", "f", "f", "head"]
    assert calls == [(name, 3) for name in one] + [(name, 2) for name in one]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n": 10}, "n\n.*greater than or equal to 11"),
        ({"n": 100, "audit": 101}, "audit = 101 is out of range: at most n = 100"),
        ({"audit": 5}, "audit = 5 of n = 10000 draws certify nothing"),
        ({"repeats": 0}, "repeats\n.*greater than or equal to 1"),
        ({"levels": (0.25, -1.0)}, "levels.1\n.*greater than 0"),
        ({"batches": ()}, "batches\n.*at least 1 item"),
        ({"repeat": 1}, "repeat\n.*not permitted"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValidationError, match=message):
        Bench(**setting)


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("name: p\n")
    return Layout("p")


def test_the_command_line_refuses_and_names_what_is_missing(layout, capsys, few_digits):
    for wrong, told in [
        (("--batch-size", "0", "--sizes", "10", "0"), "batch_size: Input should be greater than or equal to 1 (got 0)"),
        (("--batch-size", "0", "--sizes", "10", "0"), "sizes.1: Input should be greater than or equal to 1 (got 0)"),
        (("--sizes", "10", "many"), "argument --sizes: invalid number value: 'many'"),
        (("--n", "2000.5"), "n: a whole number is wanted (got 2000.5)"),
        (("--levels", "0.25", "nan"), "levels.1: Input should be a finite number (got nan)"),
    ]:
        with pytest.raises(SystemExit):
            bench.main(list(wrong))
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no data at .*digits.npz"):
        bench.main([])
    layout.data.mkdir(parents=True)
    few_digits.save(layout.dataset("digits"))
    with pytest.raises(SystemExit, match="no checkpoint at .*small-025"):
        bench.main([])


def _place(layout, key, trained_state, started, digits):
    """What was prepared, trained and fitted, where stages expect it."""
    for folder in (layout.runs / "models" / key, layout.runs / "starts" / key, layout.data):
        folder.mkdir(parents=True)
    torch.save({"model": trained_state}, layout.runs / "models" / key / "model.pt")
    torch.save(starts.state(started.starts), layout.runs / "starts" / key / "starts.pt")
    digits.save(layout.dataset("digits"))


def test_a_turn_times_everything_on_one_image(layout, trained_state, started, digits):
    _place(layout, "one", trained_state, started, digits)
    spelled = {"MDEQ-2A stopped": {"kind": "standard", "solver": {"steps": 2, "stop": "relative"}}}
    rows = {"past": ["MDEQ-2A stopped", "AS-MDEQ-1N"], "baselines": ["MDEQ-2A stopped", "SRS-MDEQ-1A"]}
    rows["sequential"] = ["AS-MDEQ-1N"]
    votes = {"images": {"digits": 2}, "groups": {"one": list(rows)}, "references": {"tiny": "MDEQ-2A stopped"}, "chains": 10}
    draws, runs = {name: {"images": 2, "n": 100} for name in rows}, {"one": {"model": "tiny", "sigma": 0.25}}
    plans = VotePlans(runs, {"tiny": {"data": "digits", "preset": "mdeq-tiny"}}, votes, rows, draws, spelled)
    asked = {"n": 40, "audit": 40, "images": 2, "repeats": 2, "rows": "baselines", "radius": 0.1, "plain": [8]}
    jobs = speed.speed_jobs(plans, ["one"], asked, layout, Machine(workers=1))
    compute(jobs, settings=Machine(workers=1))
    found = speed.timed(layout, "one")
    expected = ["MDEQ-2A stopped", "SRS-MDEQ-1A", "AS-MDEQ-1N", "MDEQ-2A as released", "AS-MDEQ-1N within r = 0.1", "ResNet-8"]
    assert list(found["method"]) == expected * 4 and found["index"].nunique() == 2 and (found["seconds"] > 0).all()
    assert list(found["repeat"].unique()) == [0, 1] and set(found["n"]) == {40}
    evaluations = found.groupby("method")["evaluations"].max()
    assert evaluations["ResNet-8"] >= 140 > evaluations["AS-MDEQ-1N within r = 0.1"] > 0
    table = speed.methods_table(found, "MDEQ-2A stopped")
    assert [name for name in table if "over" in name] == ["speed over MDEQ-2A stopped", "speed over MDEQ-2A as released"]

    turns = [task.out for task in jobs[0]]
    before = [path.stat().st_mtime_ns for path in turns]
    turns[1].unlink()  # as if it had been killed meanwhile
    compute(jobs, settings=Machine(workers=1))
    assert [old == path.stat().st_mtime_ns for old, path in zip(before, turns)] == [True, False, True, True]


@pytest.fixture(scope="module")
def run(trained_state, started, digits, tmp_path_factory):
    """Where `make bench` was run, on a tiny model, and what it printed."""
    root = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(root)
        (root / "params.yaml").write_text("name: p\n")
        _place(Layout("p"), "small-025", trained_state, started, digits)
        options = ["--out=out"]
        for name, value in (TINY | {"threads": torch.get_num_threads()}).items():
            options += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
        bench.main(options)
    return root / "out", printed.getvalue()


def test_one_run_from_models_to_tables(run):
    out, printed = run
    assert (out / "tables.md").read_text() == printed
    pairs = [f"{measured}, 32x32" for measured in (bench.GRID, bench.LAYER, bench.KEPT)]
    shown = [*bench.methods(1), *pairs, "draws", "batch size", "images at once"]
    for row in [*shown, "MDEQ-SMALL of the paper, 32x32"]:
        assert f"| {row} |" in printed
    assert f"torch {torch.__version__}" in printed and "N = 40 draws" in printed
    lines = {name: len(pd.read_csv(out / f"{name}.csv")) for name in ("methods", "engine", "networks", "scaling", "memory")}
    assert lines == {"methods": 8 * TINY["images"], "engine": 16, "networks": 5, "scaling": 10, "memory": 2}
    memory = pd.read_csv(out / "memory.csv")
    if sys.platform == "linux":
        grown = (memory["peak"] - memory["before"])[1]
        kept = TINY["batch_size"] * 12 * 14_336 * 4 / 2**20  # Anderson's memory: 12 states a row
        assert (memory["before"] > 50).all() and grown > kept


def test_methods_make_the_evaluations_that_they_should(run):
    runs = pd.read_csv(run[0] / "methods.csv")
    found = {name: set(part["evaluations"]) for name, part in runs.groupby("method")}
    draws, looked_at = 100 + TINY["n"], 2 * LOOKED_AT + 1
    for name, steps in {STANDARD: 30, "AS-MDEQ-1N mean": 1, ONE_STEP: 1, "AS-MDEQ-2A": 2}.items():
        again = {e - steps * (draws + looked_at) for e in found[name]}  # of votes whose margin was narrow
        assert again <= {steps * count for count in range(4)}, (name, again)
    assert max(found[STOPPED]) < 30 * draws and max(found[f"{STANDARD} as released"]) <= 30 * draws
    for name, steps in {"SRS-MDEQ-1A": 1, "SRS-MDEQ-3A": 3}.items():
        audited = {e - steps * draws - (10 - steps) * TINY["chains"] - 10 * looked_at for e in found[name]}
        assert all(0 <= e <= 30 * (TINY["audit"] + 1) for e in audited) and max(audited) > 0  # one for rows computed again


def test_a_vote_of_plain_networks_costs_what_their_layers_do(run):
    """ResNet-20 at 32x32 has 41 million multiply-adds (He et al. 2016), 110 layers six times that."""
    found = pd.read_csv(run[0] / "networks.csv").set_index("measured")["macs"] / 1e6
    assert found["ResNet-20"] == pytest.approx(41, rel=0.02) and found["ResNet-110"] == pytest.approx(253, rel=0.02)
    assert found["MDEQ-30A"] > 15 * found[f"{ONE_STEP}, shipped"] > 0


def test_ratios_of_networks_are_medians_over_the_turns():
    runs = pd.DataFrame({"measured": [f"{ONE_STEP}, shipped", "ResNet-20"] * 3, "macs": [1e6, 2e6] * 3})
    runs = runs.assign(repeat=[0, 0, 1, 1, 2, 2], seconds=[1.0, 2.0, 2.0, 3.0, 1.0, 5.0])
    table = bench.networks_table(runs, 10).set_index("measured")
    assert table.loc["ResNet-20"].tolist() == [2.0, 10 / 3, 2.0]


def test_engine_is_compared_with_as_many_evaluations_of_f(run):
    runs = pd.read_csv(run[0] / "engine.csv")
    counted = runs.groupby(["measured", "side"])["evaluations"].first().unstack()
    assert (counted["whole"] == counted["bare"]).all()
    assert counted["bare"].to_dict() == {
        f"{STANDARD}, 8x8": 900,
        f"{ONE_STEP}, 8x8": 30,
        f"{bench.GRID}, 8x8": 30,
        f"{STANDARD}, 32x32": 240,
        f"{ONE_STEP}, 32x32": 8,
        f"{bench.GRID}, 32x32": 8,
        f"{bench.LAYER}, 32x32": 8,
        f"{bench.KEPT}, 32x32": 8,
    }
    assert list(runs["side"]) == ["whole", "bare"] * 8

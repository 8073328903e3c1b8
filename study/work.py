"""The stages that take long, where DVC, papermill and notebooks are not: docs/scale.md.

    python -m study.work STAGE [RUN ...]

Computes what is missing of a stage, of all runs or of those named, and trains what these go on from. A `dvc repro` that finds
the results repeats none. Killed, it goes on where it was.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence

from study import params
from study.common import params_file
from study.common.engine import Machine, Task, compute
from study.common.layout import Layout
from study.common.memory import restart_with_kept_memory
from study.common.runs import Run, with_repeats
from study.robustness import attack_jobs
from study.speed import speed_jobs
from study.starts import start_jobs
from study.training import training_jobs
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans

Jobs = list[list[Task]]
_MADE_BY = {"models": "train", "tuned": "tune", "starts": "start"}  # the stage that fills a folder


def _training(stage: str) -> Callable[[dict, Layout, Machine], Jobs]:
    def jobs(sections: dict, layout: Layout, machine: Machine) -> Jobs:
        runs = with_repeats(sections["runs"])
        keys = [key for key, run in runs.items() if (run.base is not None) == (stage == "tune")]
        bases = [runs[key].base for key in keys if runs[key].base is not None]
        _require_made(bases, sections, layout, machine, starts=bases)
        return _trained(keys, sections, layout, machine)

    return jobs


def _start(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    plans = _plans(sections)
    _require_made(plans.with_starts(), sections, layout, machine)
    return start_jobs(plans, sections["starts"], layout, machine)


def _vote(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    return vote_jobs(_ready(sections, None, layout, machine), layout, machine)


def _attack(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    robustness, alpha = sections["robustness"], sections["certificates"]["alpha"]
    tasks = attack_jobs(_ready(sections, robustness["runs"], layout, machine), robustness, alpha, layout, machine)
    return [[task] for some in tasks.values() for task in some]


def _speed(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    keys = sections["report"]["past"]
    return speed_jobs(_ready(sections, keys, layout, machine), keys, sections["speed"], layout, machine)


def _trained(keys: Iterable[str], sections: dict, layout: Layout, machine: Machine) -> Jobs:
    settings = (sections[name] for name in ("models", "training", "data"))
    return training_jobs(keys, with_repeats(sections["runs"]), *settings, layout, machine)


def _plans(sections: dict) -> VotePlans:
    return VotePlans(**{name: sections[name] for name in ("runs", "models", "votes", "rows", "draws", "samplers")})


def _ready(sections: dict, keys: Iterable[str] | None, layout: Layout, machine: Machine) -> VotePlans:
    """The plans, of whose runs ``keys`` (None: all) are as the stages before leave them."""
    plans = _plans(sections)
    keys = list(plans.plans if keys is None else keys)
    _require_made(keys, sections, layout, machine, starts=[key for key in keys if plans[key].amortized])
    return plans


def _require_made(keys: Iterable[str], sections: dict, layout: Layout, machine: Machine, starts: Iterable[str] = ()) -> None:
    """Raises FileNotFoundError where the network of one of ``keys``, or the starts of one of ``starts``, are not made, are of
    other settings or code, or another network would be taken for one."""
    runs = with_repeats(sections["runs"])
    named = list(dict.fromkeys(name for key in keys for name in (runs[key].base, key) if name is not None))
    for key in named:
        folder = runs[key].folder
        wanted, found = layout.runs / folder / key / "model.pt", layout.model(key)
        if not wanted.is_file():
            raise FileNotFoundError(f"{wanted} is missing: `python -m study.work {_MADE_BY[folder]} {key}` makes it")
        if found != wanted:
            raise FileNotFoundError(f"{found} is of other settings, and would be taken for {wanted}: remove it")
    for key in starts:
        if layout.starts(key) is None:
            raise FileNotFoundError(f"run {key!r} has no starts: `python -m study.work start {key}` fits them")
    jobs = _trained(dict.fromkeys(name for key in named for name in _leading_to(key, runs)), sections, layout, machine)
    if starts:
        jobs += start_jobs(_plans(sections), sections["starts"], layout, machine)
    for task in itertools.chain.from_iterable(jobs):
        folder, key = task.out.parent.name, task.out.name
        if key in (starts if folder == "starts" else named) and not task.done:
            told = f"`python -m study.work {_MADE_BY[folder]} {key}` makes it anew"
            raise FileNotFoundError(f"{task.out} is of other settings, code or data: {told}")


def _leading_to(key: str, runs: dict[str, Run]) -> list[str]:
    """A run, after those that it goes on from."""
    before = runs[key].base or runs[key].pretrained
    return [*([] if before is None else _leading_to(before, runs)), key]


#: As in dvc.yaml.
STAGES: dict[str, Callable[[dict, Layout, Machine], Jobs]] = {
    "train": _training("train"),
    "start": _start,
    "tune": _training("tune"),
    "vote": _vote,
    "attack": _attack,
    "speed": _speed,
}


def of_runs(sections: dict, keys: Sequence[str]) -> dict:
    """Sections of params.yaml with these runs alone, and those that they go on from, which do not vote. Raises ValueError for
    a run that is not there."""
    runs = sections["runs"]
    for key in keys:
        if key not in runs:
            raise ValueError(f"RUN = {key!r}: params.yaml has {', '.join(runs)} (of which repeats are a part)")
    needed = {name for key in keys for name in _leading_to(key, with_repeats(runs))}
    votes, robustness, report = (sections[name] for name in ("votes", "robustness", "report"))

    def named(some: dict) -> dict:
        return {key: value for key, value in some.items() if key in keys}

    return sections | {
        "runs": {key: run for key, run in runs.items() if key in needed},
        "votes": votes | {"groups": named(votes["groups"])},
        "robustness": robustness | {"runs": named(robustness["runs"])},
        "report": report | {"past": named(report["past"])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.work", description=__doc__.splitlines()[0])
    parser.add_argument("stage", metavar="STAGE", choices=STAGES, help=", ".join(STAGES))
    parser.add_argument("runs", metavar="RUN", nargs="*", help="of params.yaml (default: all)")
    given = parser.parse_args()
    params.main()  # what is wrong is told before anything is spent
    sections, machine = params_file.read(), Machine.of_params()
    layout = Layout(sections["name"])
    try:
        sections = of_runs(sections, given.runs) if given.runs else sections
        _require_data(layout, sections["data"])
        if given.stage == "speed":  # one at a time, and nothing beside it
            machine = machine.model_copy(update={"workers": 1})
        compute(STAGES[given.stage](sections, layout, machine), given.stage, machine)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


def _require_data(layout: Layout, data: dict) -> None:
    """Raises FileNotFoundError where a data set is not prepared."""
    for path in map(layout.dataset, data):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: `dvc repro prepare` makes it; where DVC is not, copy it from there")


if __name__ == "__main__":
    restart_with_kept_memory("study.work")
    main()

"""The stages that take long, where DVC, papermill and notebooks are not: docs/scale.md.

    python -m study.work STAGE [RUN ...]

Computes what is missing of a stage, of all runs or of those named, and trains what these go on from. A `dvc repro` that finds
the results repeats none. Killed, it goes on where it was.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from study import params
from study.common import params_file
from study.common.engine import Machine, Task, compute
from study.common.layout import Layout
from study.common.memory import restart_with_kept_memory
from study.common.runs import with_repeats
from study.robustness import attack_jobs
from study.speed import speed_jobs
from study.starts import start_jobs
from study.training import training_jobs
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans

Jobs = list[list[Task]]


def _training(stage: str) -> Callable[[dict, Layout, Machine], Jobs]:
    def jobs(sections: dict, layout: Layout, machine: Machine) -> Jobs:
        runs = with_repeats(sections["runs"])
        keys = [key for key, run in runs.items() if (run.base is not None) == (stage == "tune")]
        settings = (sections[name] for name in ("models", "training", "data"))
        return training_jobs(keys, runs, *settings, layout, machine)

    return jobs


def _start(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    return start_jobs(_plans(sections), sections["starts"], layout, machine)


def _vote(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    return vote_jobs(_plans(sections), layout, machine)


def _attack(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    alpha = sections["certificates"]["alpha"]
    tasks = attack_jobs(_plans(sections), sections["robustness"], alpha, layout, machine)
    return [[task] for some in tasks.values() for task in some]


def _speed(sections: dict, layout: Layout, machine: Machine) -> Jobs:
    return speed_jobs(_plans(sections), sections["report"]["past"], sections["speed"], layout, machine)


def _plans(sections: dict) -> VotePlans:
    return VotePlans(**{name: sections[name] for name in ("runs", "models", "votes", "rows", "draws", "samplers")})


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
    runs, needed = sections["runs"], set()
    for key in keys:
        if key not in runs:
            raise ValueError(f"RUN = {key!r}: params.yaml has {', '.join(runs)} (of which repeats are a part)")
        while key is not None:
            needed.add(key)
            key = runs[key].get("base") or runs[key].get("pretrained")
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

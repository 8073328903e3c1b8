"""A profile as its pages see it: the sections that the stage `check` has written down for them."""

import json
from collections.abc import Sequence
from functools import cached_property

from srs.certificates.certify import Confidence
from srs.data.datasets import Dataset
from study.common import params_file
from study.common.layout import Layout
from study.common.runs import repeats_of
from study.reports.sections import Report
from study.votes.plan import VotePlans


class Profile:
    """The sections of the profile ``name`` (empty: that of params.yaml). Raises ParameterError where it has not been run."""

    def __init__(self, name: str = ""):
        self.layout = Layout(name or params_file.section(params_file.read(), "name"))
        path = self.layout.runs / "shown.json"
        if not path.is_file():
            name = self.layout.name
            raise params_file.ParameterError(f"name = {name!r} has no results in {path.parent}: make repro PROFILE={name}")
        shown = json.loads(params_file.text(path))
        planned = ("runs", "models", "votes", "rows", "draws", "samplers")
        self.plans = VotePlans(**{section: shown[section] or {} for section in planned})
        self.runs, self.report = self.plans.runs, Report(**shown["report"])
        self.confidence = Confidence(**shown["certificates"])
        self.data, self.training, self.starts, self.robustness = (
            shown[section] for section in ("data", "training", "starts", "robustness")
        )
        self.speed = shown.get("speed") or {}  # what was published earlier has the defaults
        self._datasets: dict[str, Dataset] = {}

    @cached_property
    def machines(self) -> dict[str, list[str]]:
        """The machines that cast each run's votes, first the one whose seconds are told."""
        path = self.layout.runs / "timings" / "certificates" / "machines.json"
        return json.loads(params_file.text(path))

    def trainings(self, key: str) -> list[str]:
        """The run ``key`` and its repeats, as far as they have votes."""
        return [key, *(other for other in repeats_of(key, self.runs[key]) if other in self.plans.plans)]

    def shared(self, keys: Sequence[str], rows: Sequence[str] = (), draws: str | None = None) -> str | None:
        """The first list of ``draws`` (None: of any name) that all runs ``keys`` have, with ``rows`` among its rows; None
        where there is none."""
        plans = [self.plans[key] for key in keys]
        lists = [name for name, group in plans[0].groups.items() if draws in (None, name, group.kind)]
        having = [
            name for name in lists if all(name in plan.groups and {*rows} <= {*plan.groups[name].samplers} for plan in plans)
        ]
        return having[0] if having else None

    def schedule(self, key: str) -> dict:
        """How a run was trained: fields of :class:`srs.training.train.Training`."""
        return self.runs[key].schedule(self.training)

"""A profile as its pages see it: the sections that the stage `check` has written down for them."""

import json

from srs.certificates.certify import Confidence
from srs.data.datasets import Dataset
from study.common import params_file
from study.common.layout import Layout
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
        self._datasets: dict[str, Dataset] = {}

    def schedule(self, key: str) -> dict:
        """How a run was trained: fields of :class:`srs.training.train.Training`."""
        return self.runs[key].schedule(self.training)

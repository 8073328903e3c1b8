"""Single votes, for the pages that look at them."""

import json
from functools import cache

import numpy as np
import pandas as pd

from srs import models
from srs.certificates.certify import Confidence
from srs.votes.samplers import CleanVote, Votes
from study.common import params_file
from study.reports.results import Results
from study.votes.store import VoteStore, open_store
from study.votes.table import certificate_table

CLEAN = "clean.json"  # of a profile whose votes were published: those on images without noise


class RawVotes:
    """The votes behind some results."""

    def __init__(self, results: Results):
        self.results = results
        self.store = cache(lambda key: open_store(results.plans, results.layout, key))

    def __getitem__(self, key: str) -> VoteStore:
        """The votes of a run. Raises ValueError where they are of other settings, of another model or other data."""
        return self.store(key)

    def cast(self, key: str, kind: str | None, row: str, n: int | None = None) -> list[Votes]:
        """The votes of one row on each image of its group: n0 + ``n`` of them (None: all that the group has)."""
        plan = self.results.plans[key]
        group = plan.group(kind)
        drawn = np.arange(plan.n0 + (plan.groups[group].n if n is None else n))
        return [self[key].of(plan.sampler(group, row), int(p), drawn) for p in plan.members(group)]

    def clean(self, key: str, kind: str, row: str) -> list[CleanVote]:
        """The votes of one row on the images of its group themselves, without noise: as they were published, where they were
        (the images need not be at hand), or cast now."""
        published = self.results.layout.runs / CLEAN
        if published.is_file():
            return [CleanVote(*one) for one in json.loads(params_file.text(published))[key][kind][row]]
        plan, layout = self.results.plans[key], self.results.layout
        model, test = models.load(layout.model(key), fitted=layout.starts(key)), self.results.dataset(key).test
        images = test.images(self[key].index[plan.members(plan.group(kind))])
        return [plan.sampler(plan.group(kind), row).clean(model, image) for image in images]

    def rows(self, key: str, kind: str, **choices) -> pd.DataFrame:
        """Certificates as :meth:`study.reports.results.Results.rows` has them, by other ``choices`` of the confidence."""
        group, labels = self.results.plans[key].group(kind), self.results.dataset(key).test.labels
        confidence = Confidence(**self.results.confidence.model_dump() | choices)
        return certificate_table(self[key], labels, confidence, [group]).drop(columns="group")

"""Certificates of whole runs, from their votes."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pandas as pd

from srs.certificates.certify import (
    Certificate,
    CertifySettings,
    Confidence,
    serialized_certificate,
    standard_certificate,
    tally,
)
from srs.data.datasets import Dataset
from srs.votes.samplers import UNDECIDED, Sampler, Votes
from study.common.layout import Layout
from study.votes.plan import VotePlan, VotePlans
from study.votes.store import VoteStore, open_store


def settings(plan: VotePlan, group: str, confidence: Confidence) -> CertifySettings:
    """The settings of one group's certificates. Raises as :class:`CertifySettings` does."""
    chosen = plan.groups[group]
    ours = confidence.model_dump() | ({"audit": chosen.audit} if chosen.audit else {})
    return CertifySettings(sigma=plan.sigma, n0=plan.n0, seed=plan.seed, n=chosen.n, **ours)


EXACT = {"estimator": "finite_population", "audit_draw": "random", "census": 0.0}

#: The paper's estimators, which are no guarantees: its theorem on a random audit, and its released code's on the first batch
#: (that code compares with 10 steps of the solver; here all compare with the reference).
PUBLISHED_ESTIMATORS = {
    "Theorem 3.1 as printed": {"estimator": "theorem_3_1", "audit_draw": "random", "census": 0.0},
    "released code": {"estimator": "released_code", "audit_draw": "first_batch", "census": 0.0},
}


def all_certificates(plans: VotePlans, certificates: dict, layout: Layout) -> pd.DataFrame:
    """All certificates of a profile, a column ``run`` and a column ``design`` before those of :func:`certificate_table`: ""
    as the section ``certificates`` has them; "exact" and by PUBLISHED_ESTIMATORS those of serialized rows."""
    confidence, parts = Confidence(**certificates), []
    designs = {"exact": EXACT, **PUBLISHED_ESTIMATORS}
    for key in plans.plans:
        store = open_store(plans, layout, key)
        labels = Dataset.load(layout.dataset(plans.data(key))).test.labels
        parts.append(certificate_table(store, labels, confidence).assign(run=key, design=""))
        for design, choices in designs.items():
            other = confidence.model_copy(update=choices)
            parts.append(certificate_table(store, labels, other, audited=True).assign(run=key, design=design))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return table[["run", "design", *table.columns.drop(["run", "design"])]]


def write_certificates(table: pd.DataFrame, plans: VotePlans, layout: Layout) -> None:
    """A table of :func:`all_certificates`, and apart from it, line by line, its seconds, and the machines."""
    out, timings = layout.runs / "results", layout.runs / "timings" / "certificates"
    for folder in (out, timings):
        folder.mkdir(parents=True, exist_ok=True)
    table.drop(columns="seconds").to_csv(out / "certificates.csv", index=False)
    table[["seconds"]].to_csv(timings / "seconds.csv", index=False)
    machines = {key: open_store(plans, layout, key).machines for key in plans.plans}
    (timings / "machines.json").write_text(json.dumps(machines), encoding="utf-8")


def certificate_table(
    store: VoteStore,
    labels: np.ndarray,
    confidence: Confidence,
    groups: Iterable[str] | None = None,
    audited: bool = False,
) -> pd.DataFrame:
    """One certificate for each group (all, or those named), method (``audited``: serialized ones alone) and image of a run,
    from its votes.

    ``labels`` are those of the whole test part. Beside the fields of :class:`srs.Certificate`: group, method, index, label;
    ``mismatched``: of the ``n_a`` counted votes those that the reference does not confirm (NaN where it has not voted on all
    draws); ``votes``: a hash of their classes; and what the method alone would have cost, audit included: ``evaluations`` and
    ``seconds``, these at the row's usual pace (:meth:`study.votes.store.VoteStore.pace`).

    Raises ValueError where the audit needs votes that the reference has not cast.
    """
    rows, plan = [], store.plan
    for group in plan.groups if groups is None else groups:
        config = settings(plan, group, confidence)
        for method, sampler in plan.groups[group].samplers.items():
            if audited and not sampler.audited:
                continue
            for position in map(int, plan.members(group)):
                index = int(store.index[position])
                who = {"group": group, "method": method, "index": index, "label": int(labels[index])}
                rows.append(who | _certificate(store, position, plan.sampler(group, method), config))
    return pd.DataFrame(rows)


def _certificate(store: VoteStore, position: int, sampler: Sampler, config: CertifySettings) -> dict:
    every, reference = np.arange(config.n0 + config.n), store.plan.reference
    votes = store.of(sampler, position, every)
    if not sampler.audited:
        found = standard_certificate(votes, config, sampler)
        seconds = float(votes.evaluations.sum() * store.pace(sampler))
        return _columns(found) | {"mismatched": np.nan, "votes": _hash(votes), "seconds": seconds}

    def look_up(draws: np.ndarray) -> Votes:
        return store.of(reference, position, draws)

    index = int(store.index[position])
    certificate, truth = serialized_certificate(votes, look_up, config, index, sampler.warm_draws, reference)
    mismatched = np.nan
    if store.complete(reference, position, every):
        top, _, counted = tally(votes, config)
        of_class = (counted == top) & (counted != UNDECIDED)  # no class: nothing of it is mismatched
        mismatched = int((of_class & (look_up(every).classes[config.n0 :] != top)).sum())
    seconds = float(votes.evaluations.sum() * store.pace(sampler) + truth.evaluations.sum() * store.pace(reference))
    return _columns(certificate) | {"mismatched": mismatched, "votes": _hash(votes), "seconds": seconds}


def _hash(votes: Votes) -> str:
    return f"v{hashlib.sha256(votes.classes.tobytes()).hexdigest()[:8]}"  # with a letter, lest a table take it for a number


def _columns(found: Certificate) -> dict:
    return {name: value for name, value in asdict(found).items() if name != "moved"}  # votes are cast on the grid's points

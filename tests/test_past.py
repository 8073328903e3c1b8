"""What the report past the paper says of the sequential test."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from srs.certificates import bounds
from srs.certificates.at_radius import decide_at
from srs.certificates.certify import CertifySettings
from srs.votes.samplers import CleanVote
from study.reports import past


def _taken(votes, draws):
    return SimpleNamespace(classes=votes.classes[draws], evaluations=np.ones(len(draws), int))


def test_draws_of_the_test_are_counted_with_those_that_select():
    config = CertifySettings(sigma=0.5, n0=100, n=1_000, alpha=0.001)
    chance = np.random.default_rng(0)
    cast = [SimpleNamespace(classes=np.where(chance.random(1_100) < share, 2, 7)) for share in (1.0, 0.95, 0.8, 0.3)]
    clean = [CleanVote(2, 10, 1), CleanVote(2, 10, 1), CleanVote(5, 10, 1), CleanVote(-1, 10, 1)]

    def stored(which, draws):
        return [_taken(cast[i], some) for i, some in zip(which, draws)]

    settled = decide_at(stored, clean, 0.25, config.model_copy(update={"selection": "clean"}))
    found = past.draws_of_tests(cast, settled, config)
    assert (found["outcome"][:3] == "certified").all()
    p_0, share = 0.6914624612740131, bounds.shares_of_alpha(10, 2)[2]
    alone = next(k for k in range(1, 1_000) if bounds.log_evidence(k, k, p_0) >= np.log(1 / (config.alpha * share)))
    named = next(k for k in range(1, 1_000) if bounds.log_evidence(k, k, p_0) >= np.log(1 / config.alpha))
    assert found["drawn"][0] == alone and found["with selection"][0] == 100 + named
    assert found["least"][0] == pytest.approx(np.log(1 / config.alpha) / np.log(1 / p_0))
    assert (found["with selection"] > found["drawn"])[:2].all() and found["drawn"][2] > found["drawn"][1]

    few = decide_at(stored, clean, 0.25, config.model_copy(update={"n0": 5}))
    assert past.draws_of_tests(cast, few, config)["drawn"][0] == 5 + alone

    told = past.read_draws(found.iloc[:1], config.n0)
    assert told.startswith(f"Over 1 pair of image and radius the test takes {alone} draws in the median; where 100 draws ")
    assert f"select the class, {100 + named}" in told and "certifies 1 of the pairs, the other 1." in told


def test_a_reference_that_is_stopped_is_told_once():
    speed = pd.DataFrame({"method": ["AS-MDEQ-1N"], "speed over MDEQ-30A": ["16.8×"], "speed over MDEQ-30A stopped": ["6.8×"]})
    speed["certificates"] = 3
    told = past.read_speed(speed, "AS-MDEQ-1N")
    both = "16.8× as fast as MDEQ-30A and 6.8× as fast as MDEQ-30A stopped"
    assert told == f"**AS-MDEQ-1N** is {both}, by 3 certificates of each."
    told = past.read_speed(speed.drop(columns="speed over MDEQ-30A"), "AS-MDEQ-1N")
    assert told == "**AS-MDEQ-1N** is 6.8× as fast as MDEQ-30A stopped, by 3 certificates of each."

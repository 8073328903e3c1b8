from types import SimpleNamespace

import torch

from srs.arithmetic import Arithmetic, compare, samplers
from srs.votes import Votes


def test_votes_change_with_neither_batch_nor_order_and_hardly_with_precision(trained, digits):
    config = Arithmetic(experiment="any", images=2, n=120, n_alone=30, chains=10)
    found = compare(trained, digits.test, 0.5, config)
    assert set(found["sampler"]) == set(samplers(10))
    assert set(found["change"]) == {"float64", "batches of 1", "batches of 7", "another order"}
    same = found[found["change"] != "float64"]
    assert same["votes"].sum() > 0 and same[["different", "only_before", "only_after"]].to_numpy().sum() == 0
    double = found[found["change"] == "float64"]
    assert (double["votes"] == 240).all()
    assert (double["different"] <= 2).all()


def test_copies_lie_where_the_model_does(digits, monkeypatch):
    places = set()

    def sample(model, copies, draws, batch_size):
        places.add((copies.image.device.type, copies.image.dtype))
        return Votes.blank(len(draws))

    watching = SimpleNamespace(sample=sample, independent=True)
    monkeypatch.setattr("srs.arithmetic.samplers", lambda chains: {"watching": watching})
    compare(torch.nn.Linear(1, 1, device="meta"), digits.test, 0.5, Arithmetic(experiment="any", images=1, n=10, n_alone=2))
    assert places == {("meta", torch.float32), ("meta", torch.float64)}

from types import SimpleNamespace

import torch

from srs.votes.samplers import Votes
from study.arithmetic import Arithmetic, compare, gathered, samplers


def test_votes_change_with_neither_batch_nor_order_and_hardly_with_precision(trained, digits, tmp_path):
    config = Arithmetic(run="any", images=2, n=60, n_alone=8, chains=10)
    for index in (0, 250):
        compare(trained, digits.test, index, 0.5, config).to_csv(tmp_path / f"{index}.csv", index=False)
    found = gathered(tmp_path)
    assert set(found["sampler"]) == set(samplers(10))
    assert set(found["change"]) == {"float64", "batches of 1", "batches of 7", "another order"}
    same = found[found["change"] != "float64"]
    assert same["votes"].sum() > 0 and same[["different", "only_before", "only_after"]].to_numpy().sum() == 0
    double = found[found["change"] == "float64"]
    assert (double["votes"] == 120).all()
    assert (double["different"] <= 2).all()


def test_copies_lie_where_the_model_does(digits, monkeypatch):
    places = set()

    def sample(model, copies, draws, batch_size):
        places.add((copies.image.device.type, copies.image.dtype))
        return Votes.blank(len(draws))

    watching = SimpleNamespace(sample=sample, independent=True)
    monkeypatch.setattr("study.arithmetic.samplers", lambda chains: {"watching": watching})
    compare(torch.nn.Linear(1, 1, device="meta"), digits.test, 0, 0.5, Arithmetic(run="any", images=1, n=10, n_alone=2))
    assert places == {("meta", torch.float32), ("meta", torch.float64)}

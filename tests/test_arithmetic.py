from srs.arithmetic import Arithmetic, compare, samplers


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

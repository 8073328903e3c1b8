import numpy as np
import pytest
import torch

from srs.deq.solvers import Solver, solve
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import MARGIN, UNDECIDED, DirectSampler, SerializedSampler, StandardSampler, Votes, decide
from study.known_answers import LinearDEQ

FIXED = Solver(method="anderson", steps=10)
STOPPED = Solver(method="anderson", steps=30, stop="relative", tolerance=1e-3)


@pytest.fixture
def copies(digits):
    return NoisyCopies(digits.test.images(np.array([7]))[0], 7, 0.25, 0)


def test_votes_and_undecided_votes():
    logits = torch.tensor(
        [
            [0.0, 1.0, 0.5],
            [2.0, 2.0, 1.0],
            [1.0, 1.0 + MARGIN / 2, 0.0],
            [torch.nan, 1.0, 0.0],
            [torch.inf, 1.0, 0.0],
            [3.0, 0.0, 0.0],
        ]
    )
    assert decide(logits)[0].tolist() == [1, UNDECIDED, UNDECIDED, UNDECIDED, UNDECIDED, 0]


def test_a_vote_that_nobody_has_cast_is_undecided():
    assert (Votes.blank(3).classes == UNDECIDED).all() and not Votes.blank(3).margins.any()


def test_a_narrow_margin_is_settled_by_the_lone_row():
    """Rounding that depends on the batch moves a margin across MARGIN; the vote stays that of the lone row."""

    class Rounding(torch.nn.Module):
        def forward(self, x):
            shift = 0.0 if len(x) == 1 else 0.3 * MARGIN * (-1) ** len(x)
            return torch.stack([x[:, 0] * MARGIN + shift, torch.zeros(len(x))], dim=1)

    copies = NoisyCopies(torch.ones(1), 0, 0.5, 0)
    draws = np.arange(60)
    votes = [DirectSampler().sample(Rounding().eval(), copies, draws, size).classes for size in (1, 7, 20, 60)]
    assert UNDECIDED in votes[0] and 0 in votes[0]
    assert all(np.array_equal(votes[0], other) for other in votes[1:])


@pytest.mark.parametrize(
    "sampler", [StandardSampler(solver=FIXED), StandardSampler(solver=STOPPED), SerializedSampler(chains=20)]
)
def test_a_deqs_narrow_margin_is_settled_by_the_lone_row(sampler):
    class Rounding(LinearDEQ):
        def head(self, z):
            shift = 0.0 if len(z) == 1 else 0.3 * MARGIN * (-1) ** len(z)
            return super().head(z) * MARGIN + torch.tensor([shift, 0.0])

    deq = Rounding().eval()
    copies, draws = NoisyCopies(deq.at_true_radius(0.5), 0, 0.5, 0), np.arange(60)
    votes = [sampler.sample(deq, copies, draws, size).classes for size in (1, 7, 20, 60)]
    assert {UNDECIDED, 0} <= set(votes[0])
    assert all(np.array_equal(votes[0], other) for other in votes[1:])


ONE, BROYDEN = Solver(method="naive", steps=1), Solver(method="broyden", steps=2)
SAMPLERS = {
    "standard": StandardSampler(solver=FIXED),
    "standard, stopped": StandardSampler(solver=STOPPED),
    "amortized, mean": StandardSampler(solver=ONE, start="mean"),
    "amortized, learned": StandardSampler(solver=ONE, start="learned"),
    "serialized": SerializedSampler(solver=Solver(steps=3), chains=40),
    "serialized, stopped": SerializedSampler(solver=STOPPED, chains=40),
    "from the clean image": SerializedSampler(solver=STOPPED, chains=40, start="clean"),
    "from the turn's mean": SerializedSampler(solver=Solver(steps=3), chains=40, start="batch_mean"),
    "Jacobian handed on": SerializedSampler(solver=BROYDEN, warmup=BROYDEN, chains=40, carry="chain"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_votes_depend_on_neither_batch_nor_order_nor_neighbours(started, digits, name):
    """Batches of 1 and 7 do not divide the chains evenly; margins are kept to half precision."""
    sampler, draws = SAMPLERS[name], np.arange(100)
    copies = [NoisyCopies(digits.test.images(np.array([i]))[0], i, 0.25, 0) for i in (7, 3)]
    votes, _ = sampler.sample_many(started, copies, [draws] * 2, 400)
    assert len(set(votes.classes)) > 1
    parts = [(1, draws[:30] if sampler.independent else draws), (7, draws), (40, draws)]
    if sampler.independent:
        parts.append((50, np.random.default_rng(0).permutation(100)))
    for size, some in parts:
        again, expected = sampler.sample(started, copies[0], some, size), votes.take(some)
        assert np.array_equal(again.classes, expected.classes)
        assert np.allclose(again.margins, expected.margins, rtol=1e-2, atol=1e-3)
        assert (again.evaluations == expected.evaluations).mean() >= 0.9  # rounding decides which rows are computed again


class OnTheEdge(torch.nn.Module):
    """z_k / x = 2 - 2^(1 - k): every row's residual meets the tolerance to the last digit at its tenth step, where rounding
    that differs between batches decides whether it stops; and whether it stops decides the vote."""

    solver = Solver(method="naive", steps=30, stop="relative", tolerance=0.5**10 / (1 - 0.5**10))

    def inject(self, x):
        return x

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def f(self, z, injection):
        return z / 2 + injection * (1 + 1e-6 * (-1) ** len(z))

    def head(self, z):
        last = -torch.log2(2 - z[:, :1] / self.x)  # k - 1
        return torch.cat([last - 9.5, torch.zeros_like(last)], dim=1) / 10


@pytest.mark.parametrize("kind", ["standard", "serialized"])
def test_rounding_at_the_tolerance_decides_no_vote(kind):
    copies = NoisyCopies(torch.ones(1), 0, 1e-6, 0)  # all but one and the same row
    model = OnTheEdge().eval()
    model.x = 1.0
    edge = {int(solve(model.f, torch.zeros(n, 1), torch.ones(n, 1), model.solver).evaluations[0]) for n in (1, 2)}
    assert len(edge) == 2 and solve(model.f, torch.zeros(2, 1), torch.ones(2, 1), model.solver).close.all()
    settings = {"warmup": model.solver, "chains": 40} if kind == "serialized" else {}
    sampler = {"standard": StandardSampler, "serialized": SerializedSampler}[kind](solver=model.solver, **settings)
    votes = [sampler.sample(model, copies, np.arange(120), size).classes for size in (1, 7, 40)]  # three turns of each chain
    assert all(np.array_equal(votes[0], other) for other in votes[1:])


@pytest.mark.parametrize("start", ["batch_mean", "running_mean"])
def test_means_are_of_the_images_own_states(trained, digits, start):
    """Reference: turn by turn, three chains, from the mean of all states of the last turn, or of all turns."""
    sampler = SerializedSampler(solver=Solver(steps=2), warmup=Solver(steps=10), chains=3, start=start)
    copies = [NoisyCopies(digits.test.images(np.array([i]))[0], i, 0.25, 0) for i in (7, 8)]
    cast = sampler.sample_many(trained, copies, [np.arange(15)] * 2, 400)
    with torch.no_grad():
        for one, votes in zip(copies, cast):
            means, z0 = [], None
            for turn in range(5):
                injection = trained.inject(one(np.arange(3 * turn, 3 * turn + 3)))
                z0 = trained.initial_state(injection) if z0 is None else z0
                z = solve(trained.f, z0, injection, sampler.solver if turn else sampler.warmup).z
                (classes, margins), own = decide(trained.head(z))[:2], slice(3 * turn, 3 * turn + 3)
                assert votes.classes[own].tolist() == classes.tolist()
                assert votes.margins[own] == pytest.approx(margins.numpy(), rel=2e-3)  # which tell where a solve began
                means.append(z.mean(dim=0))
                z0 = (means[-1] if start == "batch_mean" else torch.stack(means).mean(dim=0)).expand(3, -1)
    alone = [sampler.sample_many(trained, [one], [np.arange(15)], 1)[0] for one in copies]
    assert all(np.array_equal(a.classes, b.classes) for a, b in zip(alone, cast))


@pytest.mark.parametrize("carry", ["chain", "clean"])
def test_a_carried_inverse_jacobian_comes_closer_in_as_many_steps(carry):
    """The Jacobian of a linear f is the same everywhere: what was learned of it before serves every draw."""
    deq = LinearDEQ(isotropic=False).eval()
    copies, draws = NoisyCopies(deq.at_true_radius(0.1), 0, 0.5, 0), np.arange(400)
    settings = {"solver": Solver(method="broyden", steps=2), "warmup": Solver(method="broyden", steps=12), "chains": 20}
    plain = SerializedSampler(**settings).sample(deq, copies, draws, 400)
    carried = SerializedSampler(**settings, carry=carry).sample(deq, copies, draws, 400)
    assert carried.evaluations[20:].max() == plain.evaluations[20:].max() == 2
    assert carried.residuals[20:].mean() < 0.5 * plain.residuals[20:].mean()  # 0.37 and 0.29 of it


def test_a_carried_inverse_needs_broydens_method_and_is_no_plain_step():
    with pytest.raises(ValueError, match="carry = 'chain' needs Broyden's method twice: solver has 'anderson'"):
        SerializedSampler(carry="chain")
    stopping = Solver(method="broyden", stop="relative")
    with pytest.raises(ValueError, match="carry = 'clean' needs stop = 'fixed' twice: solver has 'fixed', warmup 'relative'"):
        SerializedSampler(solver=Solver(method="broyden"), warmup=stopping, carry="clean")
    sampler = SerializedSampler(solver=Solver(method="broyden", steps=1), warmup=Solver(method="broyden"), carry="clean")
    assert sampler.canonical() == sampler


def test_serialized_evaluations_are_as_announced(trained, copies):
    def spent(count=100, **settings):
        return SerializedSampler(chains=20, **settings).sample(trained, copies, np.arange(count), 8).evaluations

    one, ten = Solver(method="naive", steps=1), Solver(steps=10)
    assert spent(solver=one, warmup=ten).reshape(5, 20).T.tolist() == [[10, 1, 1, 1, 1]] * 20
    assert spent(solver=one, warmup=ten, restart=2).reshape(5, 20).T.tolist() == [[10, 1, 10, 1, 10]] * 20
    assert spent(solver=one, warmup=ten, start="clean").tolist() == [11] + [1] * 99
    assert spent(count=13, solver=one, warmup=ten).tolist() == [10] * 13


def test_a_clean_image_whose_solve_is_lost_starts_draws_where_all_else_does(linear_deq):
    """As one whose injection is not finite at that image alone."""
    inject = linear_deq.inject
    linear_deq.inject = lambda x: torch.where((x == 0).all(dim=1, keepdim=True), torch.nan, inject(x))
    copies = NoisyCopies(torch.zeros(6), 0, 0.5, 0)
    one = {"solver": Solver(method="naive", steps=3), "chains": 20}
    lost = SerializedSampler(start="clean", **one).sample(linear_deq, copies, np.arange(100), 50)
    scratch = StandardSampler(solver=one["solver"]).sample(linear_deq, copies, np.arange(100), 50)
    assert (lost.classes == scratch.classes).all() and (lost.classes >= 0).all()


def test_warm_share_counts_the_warm_ups_votes():
    assert SerializedSampler(chains=400).warm_share(2_100) == 400 / 2_100
    assert SerializedSampler(chains=400, restart=2).warm_share(2_100) == 1_200 / 2_100
    assert SerializedSampler(chains=400, restart=5).warm_share(2_100) == 500 / 2_100
    assert SerializedSampler(start="clean").warm_share(2_100) == 0


def test_serialized_chain_is_the_plain_loop(trained, copies):
    """Reference: chain c solves draws c, c + 3, c + 6, ... one after the other, each from the last state."""
    warmup, solver = Solver(steps=10), Solver(steps=2)
    votes = SerializedSampler(solver=solver, warmup=warmup, chains=3, restart=4).sample(trained, copies, np.arange(20), 400)
    with torch.no_grad():
        for chain in range(3):
            z = None
            for turn, draw in enumerate(range(chain, 20, 3)):
                injection = trained.inject(copies(np.array([draw])))
                z0 = trained.initial_state(injection) if z is None else z
                z = solve(trained.f, z0, injection, warmup if turn % 4 == 0 else solver).z
                assert votes.classes[draw] == decide(trained.head(z))[0].item()


def test_fully_solved_serialized_votes_are_the_standard_votes(trained, copies):
    """Both solve to a relative residual of 1e-4: stated rate of agreement 99 %."""
    tight = Solver(method="anderson", steps=60, stop="relative", tolerance=1e-4)
    draws = np.arange(400)
    standard = StandardSampler(solver=tight).sample(trained, copies, draws, 400)
    serialized = SerializedSampler(solver=tight, warmup=tight, chains=50).sample(trained, copies, draws, 400)
    assert (standard.classes == serialized.classes).mean() >= 0.99
    hasty = SerializedSampler(solver=Solver(steps=1), warmup=tight, chains=50).sample(trained, copies, draws, 400)
    assert (standard.classes != hasty.classes).sum() > (standard.classes != serialized.classes).sum()


def test_a_lost_state_counts_for_nobody_and_its_chain_starts_afresh():
    class Fragile(torch.nn.Module):
        """State = input; draws with a large first pixel are lost."""

        def inject(self, x):
            return x

        def initial_state(self, injection):
            return torch.zeros_like(injection)

        def f(self, z, injection):
            return torch.where(injection[:, :1] > 0.5, torch.nan, 0.0 * z + injection)

        def head(self, z):
            return torch.stack([torch.ones(len(z)), torch.zeros(len(z))], dim=1) + 0 * z[:, :1]

    copies = NoisyCopies(torch.zeros(2), 0, 1.0, 0)
    draws = np.arange(200)
    lost = (copies(draws)[:, 0] > 0.5).numpy()
    assert 20 < lost.sum() < 100
    for sampler in (StandardSampler(solver=FIXED), SerializedSampler(solver=Solver(steps=1), chains=10)):
        classes = sampler.sample(Fragile().eval(), copies, draws, 64).classes
        assert np.array_equal(classes == UNDECIDED, lost) and (classes[~lost] == 0).all()


def test_direct_votes(digits):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    copies = NoisyCopies(digits.test.images(np.array([0]))[0], 0, 0.5, 0)
    votes = DirectSampler().sample(model, copies, np.arange(50), 16)
    assert np.array_equal(votes.classes, model(copies(np.arange(50))).argmax(1).numpy())
    assert (votes.evaluations == 1).all()


def test_serialized_draws_come_in_order(trained, copies):
    with pytest.raises(ValueError, match="restart = 3 has no meaning with start = 'clean'"):
        SerializedSampler(restart=3, start="clean")
    with pytest.raises(ValueError, match="in order"):
        SerializedSampler().sample(trained, copies, np.arange(5, 10), 4)


@pytest.mark.parametrize(
    "sampler", [StandardSampler(solver=Solver(steps=3)), SerializedSampler(solver=Solver(steps=3), chains=20)]
)
def test_no_more_rows_are_solved_at_once_than_the_model_wants(trained, digits, sampler, monkeypatch):
    copies = NoisyCopies(digits.test.images(np.array([7]))[0], 7, 0.25, 0)
    whole = sampler.sample(trained, copies, np.arange(40), 400)
    asked = []
    heads = trained.head
    monkeypatch.setattr(trained, "head", lambda z: asked.append(len(z)) or heads(z))
    monkeypatch.setattr(trained, "rows_at_once", 15)
    found = sampler.sample(trained, copies, np.arange(40), 400)
    assert max(asked) == 15 and sum(asked) >= 40
    assert np.array_equal(found.classes, whole.classes) and np.array_equal(found.evaluations, whole.evaluations)

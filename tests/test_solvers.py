import numpy as np
import pytest
import torch
from pydantic import ValidationError

from srs.deq.solvers import CLOSE, Solver, residuals, solve
from study.known_answers import LinearDEQ

METHODS = ["naive", "anderson", "broyden"]


def _problem(rows=5, contraction=0.5):
    deq = LinearDEQ(contraction=contraction)
    x = torch.randn(rows, 6)
    injection = deq.inject(x)
    return deq, injection, deq.fixed_point(x)


@pytest.mark.parametrize("method", METHODS)
def test_finds_the_closed_form_fixed_point(method):
    deq, injection, truth = _problem()
    solution = solve(deq.f, torch.zeros_like(injection), injection, Solver(method=method, steps=40))
    assert torch.allclose(solution.z, truth, atol=1e-4)
    assert solution.converged.all() and solution.finite.all()
    assert (solution.evaluations == 40).all()


@pytest.mark.parametrize("method", ["anderson", "broyden"])
def test_acceleration_beats_naive_iteration(method):
    rates = torch.linspace(0.5, 0.95, 6)  # naive iteration gains a digit in 45 steps
    x = 100 * torch.randn(5, 6)  # far above Anderson's absolute ridge

    def spent(method):
        solver = Solver(method=method, steps=400, stop="relative", tolerance=1e-4)
        solution = solve(lambda z, x: rates * z + x, torch.zeros(5, 6), x, solver)
        assert solution.converged.all()
        return solution.evaluations

    assert (spent(method) < 0.5 * spent("naive")).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("method", METHODS)
def test_k_steps_cost_exactly_k_evaluations(method, steps):
    deq, injection, _ = _problem()
    calls = []

    def counted(z, x):
        calls.append(len(z))
        return deq.f(z, x)

    solution = solve(counted, torch.zeros_like(injection), injection, Solver(method=method, steps=steps))
    assert calls == [5] * steps
    assert (solution.evaluations == steps).all()


def test_one_step_of_every_method_is_f_of_the_start():
    deq, injection, _ = _problem()
    z0 = torch.randn_like(injection)
    for method in METHODS:
        assert torch.allclose(solve(deq.f, z0, injection, Solver(method=method, steps=1)).z, deq.f(z0, injection), atol=1e-6)


def test_anderson_second_iterate_is_the_least_squares_mixture():
    deq, injection, _ = _problem(rows=1)
    z0 = torch.zeros_like(injection)
    f0, f1 = deq.f(z0, injection), deq.f(deq.f(z0, injection), injection)
    g0, g1 = (f0 - z0).double(), (f1 - f0).double()
    grid = torch.linspace(-3, 4, 700_001, dtype=torch.float64)  # weight of f1; brute force over the affine line
    cost = (((1 - grid)[:, None] * g0 + grid[:, None] * g1) ** 2).sum(1) + 1e-4 * ((1 - grid) ** 2 + grid**2)
    best = grid[cost.argmin()]
    expected = (1 - best) * f0 + best * f1
    assert torch.allclose(solve(deq.f, z0, injection, Solver(steps=2)).z.double(), expected.double(), atol=1e-4)


def test_residual_belongs_to_the_last_evaluated_state():
    deq, injection, _ = _problem()
    before = solve(deq.f, torch.zeros_like(injection), injection, Solver(method="naive", steps=4))
    after = solve(deq.f, torch.zeros_like(injection), injection, Solver(method="naive", steps=5))
    assert torch.allclose(after.residual, residuals(deq.f, before.z, injection))
    absolute = solve(
        deq.f, torch.zeros_like(injection), injection, Solver(method="naive", steps=5, stop="absolute", tolerance=1e-9)
    )
    assert torch.allclose(absolute.residual, (deq.f(before.z, injection) - before.z).norm(dim=1))


@pytest.mark.parametrize("stop", ["fixed", "relative", "absolute"])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_alone_equals_the_row_in_any_batch(method, stop):
    deq, injection, _ = _problem(rows=9, contraction=0.9)
    deq.a, injection = deq.a.double(), injection.double()
    injection[3] *= 0.01  # rows of very different difficulty
    injection[4] *= 100
    solver = Solver(method=method, steps=30, stop=stop, tolerance=0.01)
    together = solve(deq.f, torch.zeros_like(injection), injection, solver)
    for row in range(9):
        alone = solve(deq.f, torch.zeros_like(injection[row : row + 1]), injection[row : row + 1], solver)
        assert torch.allclose(alone.z[0], together.z[row], rtol=1e-9, atol=1e-12)
        assert alone.evaluations[0] == together.evaluations[row]


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_have_stopped_leave_the_batch(method):
    deq, injection, _ = _problem(rows=40, contraction=0.9)
    deq.a, injection = deq.a.double(), injection.double() * torch.logspace(-3, 3, 40, dtype=torch.float64)[:, None]
    solver, sizes = Solver(method=method, steps=60, stop="absolute", tolerance=1e-3), []

    def f(z, x):
        sizes.append(len(z))
        return deq.f(z, x)

    found = solve(f, torch.zeros_like(injection), injection, solver)
    assert found.converged.all() and sizes[0] == 40 > sizes[-1] and sorted(sizes, reverse=True) == sizes
    sizes.clear()
    whole = solve(f, torch.zeros_like(injection), injection, solver, compact=False)
    assert set(sizes) == {40}
    assert torch.equal(found.evaluations, whole.evaluations) and torch.equal(found.close, whole.close)
    for name in ("z", "residual"):
        assert torch.allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
    assert found.inverse is None and whole.inverse is None


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_row_is_f_of_the_state_that_met_the_tolerance(method):
    deq, injection, _ = _problem(contraction=0.9)
    injection *= torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0])[:, None]
    solver = Solver(method=method, steps=50, stop="absolute", tolerance=0.01)
    stopped = solve(deq.f, torch.zeros_like(injection), injection, solver)
    assert len(set(stopped.evaluations.tolist())) > 1 and stopped.converged.all()
    for row, k in enumerate(stopped.evaluations.tolist()):
        before = solve(deq.f, torch.zeros_like(injection), injection, Solver(method=method, steps=k - 1)).z
        image = deq.f(before, injection)
        assert torch.allclose(image[row], stopped.z[row], rtol=1e-5, atol=1e-6)
        assert stopped.residual[row] <= 0.01 and torch.isclose(stopped.residual[row], (image - before)[row].norm(), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", ["fixed", "relative"])
def test_a_diverging_row_is_reported_and_never_returned(method, stop):
    def f(z, x):  # row 0 contracts to 2x; the others blow up beyond any float
        return torch.where(x > 0, 0.5 * z + x, z**3 * 1e8 + 1e8 - x)

    x = torch.tensor([[1.0], [-1.0], [-2.0]])
    solution = solve(f, torch.ones(3, 1), x, Solver(method=method, steps=60, stop=stop, tolerance=1e-5))
    assert solution.finite.tolist() == [True, False, False]
    assert solution.converged.tolist() == [True, False, False]
    assert solution.z[0, 0] == pytest.approx(2.0, abs=1e-3)
    assert solution.z[1:].isnan().all()


def test_a_slowly_diverging_row_does_not_pass_for_converged():
    """||f(z)|| overflows before ||f(z) - z|| does: their quotient is 0."""

    def f(z, x):
        return torch.where(z.abs() < 1e30, 1.05 * z + x, torch.sign(z) * 3e38)

    solution = solve(f, torch.full((2, 3), 1e18), torch.ones(2, 3), Solver(method="naive", steps=4_000, stop="relative"))
    assert not solution.converged.any() and not solution.finite.any()


def test_broyden_converges_when_its_memory_is_full():
    torch.manual_seed(1)
    a = torch.randn(40, 40, dtype=torch.float64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    x = torch.randn(5, 40, dtype=torch.float64)
    for memory in (3, 5, 8, 30):
        solver = Solver(method="broyden", steps=200, stop="relative", tolerance=1e-6, broyden_memory=memory)
        assert solve(lambda z, x: z @ a.T + x, torch.zeros_like(x), x, solver).converged.all(), memory


def test_not_converged_is_said():
    deq, injection, _ = _problem(contraction=0.99)
    assert not solve(
        deq.f, torch.zeros_like(injection), injection, Solver(method="naive", steps=2, stop="relative")
    ).converged.any()


def test_clear_errors():
    deq, injection, _ = _problem()
    with pytest.raises(ValueError, match="z0 has 4 rows and x has 5"):
        solve(deq.f, torch.zeros(4, 6), injection, Solver())
    with pytest.raises(ValueError, match="must keep the shape"):
        solve(lambda z, x: z[:, :3], torch.zeros(5, 6), injection, Solver())
    for bad in ({"steps": 0}, {"method": "newton"}, {"tolerance": -1}, {"mixing": 2}, {"step": 3}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            Solver(**bad)


@pytest.mark.parametrize("method", ["naive", "anderson", "broyden"])
def test_canonical_settings_are_the_same_computation(method):
    f, z0, x = (lambda z, x: torch.tanh(z * 0.7 + x)), torch.zeros(5, 4), torch.randn(5, 4)
    one = Solver(method=method, steps=1)
    assert one.canonical() == Solver(method="naive", steps=1)
    assert torch.equal(solve(f, z0, x, one).z, solve(f, z0, x, one.canonical()).z)
    for other in ({"steps": 2}, {"steps": 1, "stop": "relative"}):
        assert Solver(method=method, **other).canonical() == Solver(method=method, **other)
    mixed = Solver(method="anderson", steps=1, mixing=0.5)
    assert mixed.canonical() == mixed and not torch.equal(solve(f, z0, x, mixed).z, solve(f, z0, x, one).z)


@pytest.mark.parametrize("stop, size", [("relative", 1.0), ("relative", 100.0), ("absolute", 1.0), ("absolute", 100.0)])
def test_a_row_is_close_when_rounding_could_move_its_residual_across_the_tolerance(stop, size):
    """The second step is one thousandth of the state: its residual is known."""

    def f(z, x):
        return torch.where(z == 0, x, z * (1 + gap))

    gap, z0, x = 1e-3, torch.zeros(1, 4), torch.full((1, 4), size / 2)  # of norm ``size``
    residual = gap / (1 + gap) if stop == "relative" else gap * size
    for off, expected in ((1e-7, True), (-1e-7, True), (1e-5, False), (-1e-5, False)):  # relative to the state
        tolerance = residual + off * (1 if stop == "relative" else size)
        found = solve(f, z0, x, Solver(method="naive", steps=2, stop=stop, tolerance=tolerance))
        assert found.close.item() == expected, off


@pytest.mark.parametrize("mixing", [1.0, 0.5])
def test_anderson_never_gives_a_truncated_gradient(mixing):
    """One step is differentiated exactly; several steps, whose weights depend on the states before, not at all."""
    x = torch.ones(2, 4, requires_grad=True)

    def total(steps):
        solver = Solver(method="anderson", steps=steps, mixing=mixing)
        return solve(lambda z, x: 0.5 * z + x, torch.zeros(2, 4), x, solver).z.sum()

    total(1).backward()
    assert torch.allclose(x.grad, torch.full_like(x, mixing))
    with pytest.raises(RuntimeError, match="in-?place"):
        total(3).backward()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_moves_no_residual_by_as_much_as_counts_as_close(trained, digits, method):
    x = digits.test.images(np.arange(100))
    x = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        injection = trained.inject(x)
        z0 = trained.initial_state(injection)
        for steps in (3, 8, 15):
            solver = Solver(method=method, steps=steps)
            whole = solve(trained.f, z0, injection, solver).residual
            alone = [solve(trained.f, z0[i : i + 1], injection[i : i + 1], solver).residual for i in range(100)]
            moved, far = (whole - torch.cat(alone)).abs(), whole > 10 * solver.tolerance  # where no rounding can stop a row
            assert torch.where(far, 0.0, moved).max() < CLOSE
        assert not far.all()

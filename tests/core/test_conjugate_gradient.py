import math
from collections.abc import Callable

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_trustregion.core.conjugate_gradient import conjugate_gradient

Product = Callable[[th.Tensor], th.Tensor]


def problem(size: int, seed: int, spread: float = 100.0) -> tuple[th.Tensor, th.Tensor]:
    """A symmetric positive definite matrix with eigenvalues from 1 to ``spread``, and a right-hand side."""
    generator = th.Generator().manual_seed(seed)
    basis, _ = th.linalg.qr(th.randn(size, size, generator=generator, dtype=th.float64))
    matrix = basis @ th.diag(th.logspace(0, th.log10(th.tensor(spread)), size, dtype=th.float64)) @ basis.T
    return matrix, th.randn(size, generator=generator, dtype=th.float64)


def times(matrix: th.Tensor) -> Product:
    return lambda v: matrix @ v


@given(size=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_all_steps_solve_the_system(size: int, seed: int) -> None:
    matrix, g = problem(size, seed)
    solution = conjugate_gradient(times(matrix), g, max_steps=3 * size, residual_tol=1e-12)
    th.testing.assert_close(solution.x, th.linalg.solve(matrix, g), rtol=1e-8, atol=1e-10)
    assert float(solution.residual) < 1e-10


@given(seed=st.integers(0, 10_000), n_steps=st.integers(1, 6))
def test_each_step_is_the_best_in_its_krylov_space(seed: int, n_steps: int) -> None:
    """CG's own optimality: of all x in span(g, Ag, ...), the one that minimises ½xᵀAx - gᵀx."""
    matrix, g = problem(8, seed)
    solution = conjugate_gradient(times(matrix), g, max_steps=n_steps, residual_tol=0.0)
    powers = [g]
    for _ in range(n_steps - 1):
        powers.append(matrix @ powers[-1])
    basis, _ = th.linalg.qr(th.stack(powers, dim=1))
    best = basis @ th.linalg.solve(basis.T @ matrix @ basis, basis.T @ g)
    th.testing.assert_close(solution.x, best, rtol=1e-6, atol=1e-8)


@given(seed=st.integers(0, 10_000), max_steps=st.integers(0, 12), tolerance=st.sampled_from([0.0, 0.1, 0.5]))
def test_residual_and_curvature_are_what_they_say(seed: int, max_steps: int, tolerance: float) -> None:
    matrix, g = problem(10, seed)
    solution = conjugate_gradient(times(matrix), g, max_steps, tolerance)
    x = solution.x
    assert float(solution.residual) == pytest.approx(float((g - matrix @ x).norm() / g.norm()), rel=1e-6, abs=1e-9)
    assert float(solution.damped_curvature) == pytest.approx(float(x @ matrix @ x), rel=1e-6, abs=1e-12)


def test_it_stops_at_the_residual() -> None:
    matrix, g = problem(30, seed=0)
    residuals = [float(conjugate_gradient(times(matrix), g, steps, 0.0).residual) for steps in range(31)]
    for tolerance in (0.9, 0.5, 0.1, 0.01):
        solution = conjugate_gradient(times(matrix), g, 100, tolerance)
        needed = next(steps for steps, residual in enumerate(residuals) if residual <= tolerance)
        assert solution.n_steps == needed
        assert float(solution.residual) <= tolerance
    assert conjugate_gradient(times(matrix), g, 4, 0.01).n_steps == 4


def test_products_are_not_spent_in_vain() -> None:
    matrix, g = problem(6, seed=1)
    calls = 0

    def product(v: th.Tensor) -> th.Tensor:
        nonlocal calls
        calls += 1
        return matrix @ v

    assert conjugate_gradient(product, g, 100, 0.1).n_steps == calls


def test_a_singular_matrix_is_solved_where_it_can_be() -> None:
    matrix = th.diag(th.tensor([2.0, 1.0, 0.0], dtype=th.float64))
    solvable = th.tensor([2.0, 3.0, 0.0], dtype=th.float64)
    solution = conjugate_gradient(times(matrix), solvable, 10, 1e-10)
    th.testing.assert_close(solution.x, th.tensor([1.0, 3.0, 0.0], dtype=th.float64), rtol=1e-9, atol=1e-12)

    flat = conjugate_gradient(times(matrix), th.tensor([0.0, 0.0, 1.0], dtype=th.float64), 10, 1e-10)
    assert th.equal(flat.x, th.zeros(3, dtype=th.float64))
    assert float(flat.residual) == 1.0


def test_negative_curvature_ends_with_the_solution_so_far() -> None:
    matrix = th.diag(th.tensor([1.0, -0.5, 3.0], dtype=th.float64))
    g = th.tensor([1.0, 0.2, 1.0], dtype=th.float64)
    solution = conjugate_gradient(times(matrix), g, 10, 1e-10)
    before = conjugate_gradient(times(matrix), g, solution.n_steps, 1e-10)
    assert solution.n_steps == 2
    assert th.equal(solution.x, before.x)
    assert float(g @ solution.x) > 0.0
    assert float(solution.damped_curvature) == pytest.approx(float(solution.x @ matrix @ solution.x), rel=1e-9)

    at_once = conjugate_gradient(times(-th.eye(3, dtype=th.float64)), g, 10, 1e-10)
    assert th.equal(at_once.x, th.zeros(3, dtype=th.float64))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e-320, 1e200])
def test_no_right_hand_side_makes_the_solution_nan(value: float) -> None:
    matrix, g = problem(4, seed=2)
    g[1] = value
    if value == 0.0:
        g.zero_()
    solution = conjugate_gradient(times(matrix), g, 10, 1e-10)
    assert bool(th.isfinite(solution.x).all())
    if value == 0.0:
        assert solution.n_steps == 0
        assert float(solution.residual) == 0.0
        assert float(solution.damped_curvature) == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("broken_from", [0, 2])
def test_a_product_that_breaks_ends_with_the_solution_so_far(value: float, broken_from: int) -> None:
    matrix, g = problem(6, seed=3)
    calls = 0

    def product(v: th.Tensor) -> th.Tensor:
        nonlocal calls
        calls += 1
        return matrix @ v if calls <= broken_from else th.full_like(v, value)

    solution = conjugate_gradient(product, g, 10, 1e-10)
    assert solution.n_steps == broken_from
    assert th.equal(solution.x, conjugate_gradient(times(matrix), g, broken_from, 1e-10).x)


def test_an_infinite_curvature_is_no_step() -> None:
    g = th.ones(3, dtype=th.float64)
    solution = conjugate_gradient(lambda v: v * math.inf, g, 10, 0.0)
    assert (solution.n_steps, float(solution.residual)) == (0, 1.0)
    assert th.equal(solution.x, th.zeros(3, dtype=th.float64))


@pytest.mark.skipif(not th.cuda.is_available(), reason="the stop without a branch is for CUDA")
def test_the_masked_stop_equals_the_branch() -> None:
    matrix, g = problem(30, seed=4, spread=1e4)
    for tolerance in (0.5, 0.01):
        branched = conjugate_gradient(times(matrix), g, 60, tolerance)
        masked = conjugate_gradient(times(matrix.cuda()), g.cuda(), 60, tolerance)
        th.testing.assert_close(masked.x.cpu(), branched.x, rtol=1e-9, atol=1e-12)
        assert float(masked.residual) <= tolerance


def test_off_the_cpu_the_host_never_waits_inside() -> None:
    """A tensor on "meta" has no value: whoever asks for one fails."""
    solution = conjugate_gradient(lambda v: 2.0 * v, th.ones(4, device="meta"), 10, 0.1)
    assert solution.n_steps == 10
    assert solution.x.shape == (4,)

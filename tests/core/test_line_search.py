import math

import numpy as np
import pytest
import torch as th
from hypothesis import example, given
from hypothesis import strategies as st

from sb3_trustregion.core.conjugate_gradient import CGSolution, conjugate_gradient
from sb3_trustregion.core.line_search import (
    SUB_SAMPLED_SHARE,
    Step,
    StepStatus,
    backtrack,
    fixed_step,
    reliability,
    step_size,
)
from sb3_trustregion.core.surrogate import Evaluation, Surrogate
from tests.core.policies import (
    KINDS,
    Untouched,
    actor_of,
    dense,
    dense_fisher,
    make_batch,
    make_policy,
    make_surrogate,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
FACTOR = 0.8


def solve(surrogate: Surrogate, g: th.Tensor | None = None, max_steps: int = 15, tol: float = 0.1) -> CGSolution:
    return conjugate_gradient(surrogate.fisher_product, surrogate.gradient if g is None else g, max_steps, tol)


def search(surrogate: Surrogate, radius: float, max_iter: int = 10) -> Step:
    return backtrack(surrogate, solve(surrogate), radius, FACTOR, max_iter)


def undamped_curvature(surrogate: Surrogate, x: th.Tensor) -> float:
    return float(x.dot(surrogate.fisher_product(x) - surrogate.fisher_product.damping * x))


@example(kind="box", seed=0, log_radius=-4.0)
@example(kind="discrete", seed=0, log_radius=1.0)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    log_radius=st.floats(-14.0, 4.0),
)
def test_an_accepted_step_is_within_the_radius_and_improves(kind: str, seed: int, log_radius: float) -> None:
    radius = math.exp(log_radius)
    surrogate = make_surrogate(kind, seed, n_steps=15)
    before = Untouched.of(surrogate.head.policy)
    step = search(surrogate, radius)
    before.check(surrogate.head.policy)
    if step.status is StepStatus.ACCEPTED:
        assert step.evaluation == surrogate.at(step.parameters)
        assert step.evaluation.kl <= radius
        assert step.evaluation.gain > 0.0
        assert step.reason == ""
        slope = float(surrogate.gradient.dot(step.parameters - surrogate.origin))
        assert step.linear_gain == pytest.approx(slope, rel=1e-6)
    else:
        assert step.status is StepStatus.INVALID
        assert step.reason
        assert th.equal(step.parameters, surrogate.origin)
        assert step.evaluation.length == 0.0


@every_kind
def test_a_usual_step_is_accepted_and_uses_the_radius(kind: str) -> None:
    for seed in range(5):
        step = search(make_surrogate(kind, seed), 1e-3)
        assert step.status is StepStatus.ACCEPTED
        assert step.evaluation.kl > 0.5e-3
        assert step.evaluation.length == pytest.approx(math.sqrt(2.0 * step.evaluation.kl))
        # So near, the linear model holds.
        assert step.evaluation.gain == pytest.approx(step.linear_gain, rel=0.2)


@every_kind
def test_the_step_size_is_trpos(kind: str) -> None:
    surrogate = make_surrogate(kind)
    solution = solve(surrogate)
    expected = math.sqrt(2.0 * 0.01 / undamped_curvature(surrogate, solution.x))
    assert step_size(solution, surrogate, 0.01) == pytest.approx(expected, rel=1e-6)


def test_with_fewer_states_the_step_aims_shorter() -> None:
    policy = make_policy("box")
    batch = make_batch(policy, n_steps=400)
    surrogate = Surrogate(policy, actor_of(policy), batch, 0.1, fisher_sub_sampling_factor=8)
    assert 2 * surrogate.fisher_product.n_states <= batch.n_samples
    solution = solve(surrogate)
    expected = math.sqrt(SUB_SAMPLED_SHARE * 2.0 * 0.01 / undamped_curvature(surrogate, solution.x))
    assert step_size(solution, surrogate, 0.01) == pytest.approx(expected, rel=1e-6)


def test_with_fewer_states_the_first_trial_is_within_the_radius_as_a_rule() -> None:
    policy = make_policy("box")
    n_backtracks = []
    for seed in range(12):
        batch = make_batch(policy, seed=seed, n_steps=400)
        surrogate = Surrogate(policy, actor_of(policy), batch, 0.3, fisher_sub_sampling_factor=8)
        n_backtracks.append(search(surrogate, 0.01).n_backtracks)
    assert sum(n == 0 for n in n_backtracks) >= 9


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_curvature_that_is_not_positive_gives_no_step_size(value: float) -> None:
    surrogate = make_surrogate("box")
    solution = solve(surrogate)._replace(damped_curvature=th.tensor(value))
    assert not step_size(solution, surrogate, 0.01) > 0.0


def test_curvature_that_is_all_damping_does_not_blow_the_step_up() -> None:
    """xᵀFx comes by subtraction: where nothing of it is left, a hundredth of the damped curvature stands in."""
    surrogate = make_surrogate("box", damping=1e6)
    solution = solve(surrogate)
    assert undamped_curvature(surrogate, solution.x) < 1e-4 * float(solution.damped_curvature)
    expected = math.sqrt(2.0 * 0.01 / (0.01 * float(solution.damped_curvature)))
    assert step_size(solution, surrogate, 0.01) == pytest.approx(expected, rel=1e-9)


def test_backtracking_shrinks_by_the_factor_until_the_step_fits() -> None:
    """At a large radius the quadratic model of the KL is wrong."""
    n_backtracks = []
    for seed in range(10):
        surrogate = make_surrogate("box", seed)
        solution, radius = solve(surrogate), 0.5
        alpha = step_size(solution, surrogate, radius)
        step = backtrack(surrogate, solution, radius, FACTOR, 10)
        assert step.status is StepStatus.ACCEPTED
        trials = [surrogate.at(surrogate.origin + alpha * FACTOR**i * solution.x) for i in range(step.n_backtracks + 1)]
        fit = [trial.kl <= radius and trial.gain > 0.0 for trial in trials]
        assert fit == [False] * step.n_backtracks + [True]
        expected = surrogate.origin + alpha * FACTOR**step.n_backtracks * solution.x
        th.testing.assert_close(step.parameters, expected, rtol=1e-10, atol=1e-12)
        n_backtracks.append(step.n_backtracks)
    assert max(n_backtracks) >= 2
    assert min(n_backtracks) == 0


def with_advantages(value: float) -> Surrogate:
    policy = make_policy("box")
    batch = make_batch(policy)
    return Surrogate(policy, actor_of(policy), batch._replace(advantages=value * batch.advantages), 0.1)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_without_a_gradient_the_step_is_invalid_and_the_radius_not_at_fault(value: float) -> None:
    surrogate = with_advantages(value)
    for step in (search(surrogate, 0.01), fixed_step(surrogate, solve(surrogate), 0.1)):
        assert step.status is StepStatus.INVALID
        assert step.reason == "the gradient vanishes or is not finite"
        assert not step.radius_at_fault
        assert th.equal(step.parameters, surrogate.origin)
        assert step.evaluation == (0.0, 0.0, 0.0, 1.0)


def test_a_gain_that_rounding_makes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without another action than the best has no direction, and yet a gradient of some 1e-9."""
    surrogate = make_surrogate("box")
    solution, least = solve(surrogate), 1e-7 * float(surrogate.batch.advantages.abs().mean())
    for gain, status in ((0.5 * least, StepStatus.INVALID), (2.0 * least, StepStatus.ACCEPTED)):
        monkeypatch.setattr(Surrogate, "at", lambda *_, gain=gain: Evaluation(gain, 0.0, 0.0, 1.0))
        step = backtrack(surrogate, solution, 0.01, FACTOR, 7)
        assert step.status is status
        assert not step.radius_at_fault


def test_where_no_trial_point_improves_the_radius_is_at_fault() -> None:
    surrogate = make_surrogate("box")
    solution = solve(surrogate)
    downhill = solution._replace(x=-solution.x)
    step = backtrack(surrogate, downhill, 0.01, FACTOR, 7)
    assert step.status is StepStatus.INVALID
    assert step.reason == "the line search found no improvement within the radius"
    assert step.radius_at_fault
    assert step.n_backtracks == 7
    assert th.equal(step.parameters, surrogate.origin)


@every_kind
def test_a_fixed_step_is_that_far_along_the_direction(kind: str) -> None:
    surrogate = make_surrogate(kind)
    solution = solve(surrogate)
    step = fixed_step(surrogate, solution, 0.05)
    assert step.status is StepStatus.ACCEPTED
    assert th.equal(step.parameters, surrogate.origin + 0.05 * solution.x)
    assert step.linear_gain == pytest.approx(0.05 * float(surrogate.gradient.dot(solution.x)), rel=1e-9)
    assert step.evaluation == surrogate.at(step.parameters)
    assert step.n_backtracks == 0


@pytest.mark.parametrize("alpha", [math.inf, math.nan, 1e308])
def test_a_fixed_step_that_leaves_the_finite_numbers_is_invalid(alpha: float) -> None:
    surrogate = make_surrogate("box")
    step = fixed_step(surrogate, solve(surrogate), alpha)
    assert step.status is StepStatus.INVALID
    assert step.reason == "the step leaves the finite numbers"
    assert th.equal(step.parameters, surrogate.origin)


@every_kind
def test_reliability_is_cross_fitting_between_two_halves(kind: str) -> None:
    """Direction from one half, gain by the other, over the in-sample promise; computed densely."""
    policy = make_policy(kind)
    actor, batch = actor_of(policy), make_batch(policy)
    n, half = batch.n_samples, batch.n_samples // 2
    batch = batch._replace(signs=th.cat([th.ones(half), -th.ones(n - half)]).double())
    surrogate = Surrogate(policy, actor, batch, 0.1)
    fisher = dense_fisher(surrogate)
    fisher += 0.1 * surrogate.n_dimensions * th.eye(len(fisher), dtype=th.float64)
    one, other = (Surrogate(policy, actor, batch.select(i), 0.1).gradient for i in th.arange(n).split(half))
    crossed = float(one @ th.linalg.solve(fisher, other))
    promised = float(surrogate.gradient @ th.linalg.solve(fisher, surrogate.gradient))

    exact = solve(surrogate, None, 300, 1e-12), solve(surrogate, surrogate.noise_gradient, 300, 1e-12)
    assert reliability(surrogate, *exact) == pytest.approx(crossed / promised, rel=1e-5, abs=1e-7)


def test_noise_promises_nothing_on_fresh_data() -> None:
    """Advantages that are noise: in sample every step gains, and on average none of it is reliable."""
    shares, gains = [], []
    for seed in range(40):
        surrogate = make_surrogate("box", seed, n_steps=120, n_envs=1)
        solution = solve(surrogate, None, 30, 1e-3)
        noise = solve(surrogate, surrogate.noise_gradient, 30, 1e-3)
        shares.append(reliability(surrogate, solution, noise))
        gains.append(search(surrogate, 0.01).evaluation.gain)
    assert min(gains) > 0.0
    assert abs(np.mean(shares)) < 3.0 * np.std(shares) / math.sqrt(40)
    assert np.std(shares) > 0.1


def test_a_signal_is_reliable() -> None:
    policy = make_policy("box")
    batch = make_batch(policy, n_steps=1000)
    # What is good is clear: the first action large, whatever the state.
    surrogate = Surrogate(policy, actor_of(policy), batch._replace(advantages=batch.actions[:, 0]), 0.1)
    assert reliability(surrogate, solve(surrogate), solve(surrogate, surrogate.noise_gradient)) > 0.8


def test_reliability_without_a_promise_is_none() -> None:
    surrogate = with_advantages(0.0)
    solution = solve(surrogate)
    assert reliability(surrogate, solution, solution) == 0.0


def test_the_direction_is_the_natural_gradient() -> None:
    surrogate = make_surrogate("box")
    matrix = dense(surrogate.fisher_product, len(surrogate.origin))
    expected = th.linalg.solve(matrix, surrogate.gradient)
    th.testing.assert_close(solve(surrogate, None, 300, 1e-12).x, expected, rtol=1e-6, atol=1e-9)

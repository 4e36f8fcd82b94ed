import copy
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion.core.improvement import performance
from sb3_trustregion.core.rollouts import (
    IDENTITY,
    Normalizer,
    ObsArray,
    Rollout,
    advantages,
    appraise,
    distance,
    flatten_time,
    is_finite_rollout,
    stack_observations,
)
from tests.environments import toy_vec_env

GAMMA, LAMBDA = 0.99, 0.95
Array = npt.NDArray[np.float64]


def linear_value(observations: ObsArray) -> Array:
    """A critic that tells every observation apart."""
    rows = (
        np.concatenate([observations[key] for key in sorted(observations)], axis=1)
        if isinstance(observations, dict)
        else observations
    )
    return rows.astype(np.float64) @ np.arange(1.0, rows.shape[1] + 1.0)


def make_rollout(seed: int = 0, n_steps: int = 12, n_envs: int = 3, as_dict: bool = False) -> Rollout:
    """Random steps with ends of both kinds, and at the very end too."""
    rng = np.random.default_rng(seed)

    def observe(*shape: int) -> Any:
        values = rng.standard_normal((*shape, 2)).astype(np.float32)
        return {"a": values, "b": values[..., :1] + 5.0} if as_dict else values

    dones = rng.random((n_steps, n_envs)) < 0.3
    dones[-1, 0] = True
    truncated = np.flatnonzero(dones & (rng.random((n_steps, n_envs)) < 0.5))
    return Rollout(
        observations=observe(n_steps, n_envs),
        last_observations=observe(n_envs),
        terminal_observations=observe(len(truncated)),
        truncated=truncated,
        actions=rng.standard_normal((n_steps, n_envs, 1)).astype(np.float32),
        log_probs=rng.standard_normal((n_steps, n_envs)).astype(np.float32),
        rewards=rng.standard_normal((n_steps, n_envs)),
        dones=dones,
        episode_returns=rng.standard_normal(4),
        episode_lengths=rng.integers(1, 9, 4).astype(np.float64),
    )


# Values and residuals


@pytest.mark.parametrize("as_dict", [False, True])
def test_residuals_step_by_step(as_dict: bool) -> None:
    rollout = make_rollout(as_dict=as_dict)
    values, residuals = appraise(rollout, linear_value, IDENTITY, GAMMA)
    n_steps, n_envs = rollout.shape
    ends = dict(zip(rollout.truncated.tolist(), linear_value(rollout.terminal_observations), strict=True))
    last = linear_value(rollout.last_observations)
    seen = set()
    for t in range(n_steps):
        for env in range(n_envs):
            observation = flatten_time(rollout.observations)
            index = t * n_envs + env
            here = {k: v[index : index + 1] for k, v in observation.items()} if as_dict else observation[[index]]
            assert values[t, env] == pytest.approx(linear_value(here)[0])
            if index in ends:
                following, kind = ends[index], "truncated"
            elif rollout.dones[t, env]:
                following, kind = 0.0, "terminated"
            else:
                following, kind = (values[t + 1, env], "inside") if t + 1 < n_steps else (last[env], "cut")
            seen.add(kind)
            expected = rollout.rewards[t, env] + GAMMA * following - values[t, env]
            assert residuals[t, env] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert seen == {"truncated", "terminated", "inside", "cut"}


def test_a_truncation_is_not_a_termination() -> None:
    """The trap: without the terminal observation a truncated step looks as bad as a fall."""
    rollout = make_rollout()
    terminated = rollout._replace(terminal_observations=np.zeros(0), truncated=np.zeros(0, dtype=np.int64))
    one, other = (appraise(r, linear_value, IDENTITY, GAMMA).residuals for r in (rollout, terminated))
    ends = GAMMA * linear_value(rollout.terminal_observations)
    assert np.abs(ends).min() > 0.0
    np.testing.assert_allclose((one - other).ravel()[rollout.truncated], ends, rtol=1e-5)
    assert np.count_nonzero(one - other) == len(rollout.truncated)


def test_values_are_of_normalised_observations_and_rewards_too() -> None:
    rollout = make_rollout()
    normalizer = Normalizer({"": np.array([1.0, -2.0])}, {"": np.array([2.0, 0.5])}, 3.0, 4.0, 0.2)

    def normalised(observations: Any) -> Array:
        return np.clip((observations - [1.0, -2.0]) / [2.0, 0.5], -3.0, 3.0)

    scaled = rollout._replace(
        observations=normalised(rollout.observations),
        last_observations=normalised(rollout.last_observations),
        terminal_observations=normalised(rollout.terminal_observations),
        rewards=np.clip(rollout.rewards / 4.0, -0.2, 0.2),
    )
    one, other = appraise(rollout, linear_value, normalizer, GAMMA), appraise(scaled, linear_value, IDENTITY, GAMMA)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-5)
    np.testing.assert_allclose(one.residuals, other.residuals, rtol=1e-4, atol=1e-5)


# Advantages


def buffer_of(rollout: Rollout, values: Array, gamma: float, gae_lambda: float) -> RolloutBuffer:
    """SB3's buffer, filled as ``collect_rollouts`` fills it: γ·V(terminal) added to truncated rewards."""
    n_steps, n_envs = rollout.shape
    box = spaces.Box(-np.inf, np.inf, (2,))
    buffer = RolloutBuffer(n_steps, box, spaces.Box(-1, 1, (1,)), "cpu", gae_lambda, gamma, n_envs)
    rewards = rollout.rewards.copy()
    rewards.ravel()[rollout.truncated] += gamma * linear_value(rollout.terminal_observations)
    starts = np.concatenate([np.zeros((1, n_envs)), rollout.dones[:-1]])
    zeros = th.zeros(n_envs)
    for t in range(n_steps):
        action = np.zeros((n_envs, 1))
        buffer.add(rollout.observations[t], action, rewards[t], starts[t], th.as_tensor(values[t]), zeros)
    last = th.as_tensor(linear_value(rollout.last_observations))
    buffer.compute_returns_and_advantage(last_values=last, dones=rollout.dones[-1])
    return buffer


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
def test_advantages_are_those_of_sb3(gamma: float, gae_lambda: float) -> None:
    for seed in range(5):
        rollout = make_rollout(seed)
        values, residuals = appraise(rollout, linear_value, IDENTITY, gamma)
        buffer = buffer_of(rollout, values, gamma, gae_lambda)
        estimated = advantages(residuals, rollout.dones, gamma, gae_lambda)
        np.testing.assert_allclose(estimated, buffer.advantages, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(estimated + values, buffer.returns, rtol=1e-4, atol=1e-4)


def brute_force(residuals: Array, dones: npt.NDArray[np.bool_], ratios: Array) -> Array:
    """Â_t = Σ_k (γλ)^k · Π_{0<i≤k} min(1, r_{t+i}) · d_{t+k}, to the end of the episode or to a faulty transition."""
    result = np.zeros_like(residuals)
    n_steps, n_envs = residuals.shape
    for env in range(n_envs):
        for t in range(n_steps):
            weight = 1.0
            for k in range(n_steps - t):
                if k > 0 and math.isnan(residuals[t + k, env]):
                    break
                if k > 0:
                    weight *= GAMMA * LAMBDA * min(1.0, ratios[t + k, env])
                result[t, env] += weight * residuals[t + k, env]
                if dones[t + k, env]:
                    break
    return result


@given(seed=st.integers(0, 10_000), n_steps=st.integers(1, 40), faulty=st.sampled_from([0.0, 0.1]))
def test_corrected_advantages_are_the_sum_over_traces(seed: int, n_steps: int, faulty: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (n_steps, 2)
    residuals, dones = rng.standard_normal(shape), rng.random(shape) < 0.1
    residuals[rng.random(shape) < faulty] = math.nan
    ratios = np.exp(rng.standard_normal(shape))
    corrected = advantages(residuals, dones, GAMMA, LAMBDA, ratios)
    np.testing.assert_allclose(corrected, brute_force(residuals, dones, ratios), rtol=1e-10, atol=1e-12)


def test_the_action_itself_is_given() -> None:
    """The ratio of a step weighs the advantages before it, not its own: that is the surrogate's business."""
    residuals, dones = np.ones((3, 1)), np.zeros((3, 1), dtype=bool)
    ratios = np.array([[0.0], [0.5], [7.0]])
    decay = GAMMA * LAMBDA
    expected = [1.0 + 0.5 * decay * (1.0 + decay), 1.0 + decay, 1.0]
    np.testing.assert_allclose(advantages(residuals, dones, GAMMA, LAMBDA, ratios).ravel(), expected)


def test_on_policy_data_need_no_ratios() -> None:
    rollout = make_rollout()
    residuals = appraise(rollout, linear_value, IDENTITY, GAMMA).residuals
    plain = advantages(residuals, rollout.dones, GAMMA, LAMBDA)
    assert np.array_equal(plain, advantages(residuals, rollout.dones, GAMMA, LAMBDA, np.ones(rollout.shape)))


def test_a_faulty_transition_is_left_out() -> None:
    """Its own advantage is unknown; the steps before it end at the value there, those after it do not see it."""
    residuals, dones = np.ones((5, 1)), np.zeros((5, 1), dtype=bool)
    residuals[2] = math.nan
    decay = GAMMA * LAMBDA
    expected = [1.0 + decay, 1.0, math.nan, 1.0 + decay, 1.0]
    np.testing.assert_allclose(advantages(residuals, dones, GAMMA, LAMBDA).ravel(), expected)


def test_arguments_are_left_as_they_are() -> None:
    residuals, dones, ratios = np.ones((3, 1)), np.zeros((3, 1), dtype=bool), np.full((3, 1), 2.0)
    advantages(residuals, dones, GAMMA, LAMBDA, ratios)
    assert np.all(residuals == 1.0)
    assert np.all(ratios == 2.0)


def test_advantages_overstate_an_improvement_by_the_length_of_their_trace() -> None:
    """The trap: where each step is better by c, the mean residual says so, the mean advantage says c/(1 - γλ)."""
    residuals, dones = np.full((4000, 2), 0.25), np.zeros((4000, 2), dtype=bool)
    overstated = advantages(residuals, dones, GAMMA, LAMBDA).mean() / performance(residuals, dones).mean
    assert performance(residuals, dones).mean == pytest.approx(0.25)
    assert overstated == pytest.approx(1.0 / (1.0 - GAMMA * LAMBDA), rel=0.01)
    assert overstated == pytest.approx(16.8, abs=0.1)


# Distance


def test_the_distance_is_the_kl_by_samples() -> None:
    rng = np.random.default_rng(0)
    actions = rng.standard_normal(200_000)
    mean, deviation = 0.3, 1.2
    log_ratios = -math.log(deviation) - 0.5 * ((actions - mean) / deviation) ** 2 + 0.5 * actions**2
    exact = math.log(deviation) + (1.0 + mean**2) / (2.0 * deviation**2) - 0.5
    assert distance(np.exp(log_ratios)) == pytest.approx(exact, rel=0.03)


@pytest.mark.filterwarnings("error")
def test_a_ratio_that_underflows_is_infinitely_far() -> None:
    assert distance(np.array([1.0, 0.0])) == np.inf


@given(st.lists(st.floats(1e-6, 1e6), min_size=1))
def test_the_distance_is_never_negative(ratios: list[float]) -> None:
    assert distance(np.array(ratios)) >= -1e-12
    assert distance(np.ones(len(ratios))) == 0.0


# Shapes


def test_time_is_flattened_with_environments_together() -> None:
    observations = np.arange(12).reshape(3, 2, 2)
    flat = flatten_time(observations)
    assert flat[1 * 2 + 1].tolist() == observations[1, 1].tolist()
    as_dict = flatten_time({"a": observations, "b": observations[..., 0]})
    assert isinstance(as_dict, dict)
    assert np.array_equal(as_dict["a"], flat)
    assert as_dict["b"].shape == (6,)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_observations_are_joined_in_order(n_parts: int) -> None:
    parts = [np.full((i + 1, 2), i) for i in range(n_parts)]
    assert np.array_equal(stack_observations(list(parts)), np.concatenate(parts))
    joined = stack_observations([{"a": part, "b": -part} for part in parts])
    assert isinstance(joined, dict)
    assert np.array_equal(joined["b"], -np.concatenate(parts))


def with_fault(rollout: Rollout, field: str, value: float) -> Rollout:
    faulty = copy.deepcopy(rollout)
    array = getattr(faulty, field)
    (array["a"] if isinstance(array, dict) else array).ravel()[0] = value
    return faulty


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_rollout_is_finite_if_all_of_it_is_but_rewards(value: float, as_dict: bool) -> None:
    """A reward that is not finite marks a transition to be left out."""
    rollout = make_rollout(as_dict=as_dict)
    assert is_finite_rollout(rollout)
    assert is_finite_rollout(with_fault(rollout, "rewards", value))
    for field in ("observations", "last_observations", "terminal_observations", "actions", "log_probs"):
        assert not is_finite_rollout(with_fault(rollout, field, value)), field


# Checkpoints


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file that holds no code."""
    file = io.BytesIO()
    th.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = th.load(file, weights_only=True)
    return loaded


def assert_identical(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    else:
        assert type(one) is type(other)
        assert one == other


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("has_ends", [False, True])
def test_a_rollout_comes_back_bit_for_bit(as_dict: bool, has_ends: bool) -> None:
    rollout = make_rollout(as_dict=as_dict)
    rollout.rewards[0, 0] = math.nan
    if not has_ends:
        empty = np.zeros(0)
        rollout = rollout._replace(
            terminal_observations=empty, truncated=empty.astype(np.int64), episode_returns=empty, episode_lengths=empty
        )
    loaded = Rollout.from_state_dict(saved_and_loaded(rollout.state_dict()))
    for one, other in zip(rollout, loaded, strict=True):
        assert_identical(one, other)


@pytest.mark.parametrize("kind", ["identity", "vector", "dict"])
def test_a_normalizer_comes_back_bit_for_bit(kind: str) -> None:
    pi = np.array([math.pi, -1.0 / 3.0])
    statistics = {"identity": {}, "vector": {"": pi}, "dict": {"a": pi, "b": pi[:1]}}[kind]
    normalizer = Normalizer(statistics, {k: v**2 for k, v in statistics.items()}, 10.0, math.e, math.inf)
    loaded = Normalizer.from_state_dict(saved_and_loaded(normalizer.state_dict()))
    for one, other in zip(normalizer, loaded, strict=True):
        assert_identical(one, other)


# Normalisation


def test_the_identity_changes_nothing() -> None:
    rollout = make_rollout(as_dict=True)
    assert IDENTITY.observations(rollout.observations) is not None
    for key, value in IDENTITY.observations(rollout.observations).items():  # type: ignore[union-attr]
        assert np.array_equal(value, rollout.observations[key])  # type: ignore[call-overload]
    np.testing.assert_allclose(IDENTITY.rewards(rollout.rewards), rollout.rewards, rtol=1e-6)


def test_it_normalises_as_sb3_does() -> None:
    env = VecNormalize(toy_vec_env(2), clip_obs=1.5, clip_reward=0.7)
    rng = np.random.default_rng(0)
    env.obs_rms = RunningMeanStd(shape=(3,))
    env.obs_rms.update(rng.normal([1.0, 2.0, 3.0], [1.0, 0.1, 5.0], (100, 3)))
    env.ret_rms.update(3.0 * rng.standard_normal(100))
    normalizer = Normalizer(
        {"": env.obs_rms.mean},
        {"": np.sqrt(env.obs_rms.var + env.epsilon)},
        env.clip_obs,
        float(np.sqrt(env.ret_rms.var + env.epsilon)),
        env.clip_reward,
    )
    observations, rewards = rng.normal(1.0, 4.0, (20, 2, 3)), 3.0 * rng.standard_normal((20, 2))
    normalised = normalizer.observations(observations)
    assert np.abs(normalised).max() == 1.5
    np.testing.assert_allclose(normalised, env.normalize_obs(observations), rtol=1e-6)
    np.testing.assert_allclose(normalizer.rewards(rewards), env.normalize_reward(rewards), rtol=1e-6)


def test_keys_without_statistics_stay() -> None:
    normalizer = Normalizer({"a": np.ones(2)}, {"a": np.full(2, 2.0)}, 10.0, 1.0, np.inf)
    raw = {"a": np.full((4, 2), 5.0), "b": np.arange(4)}
    normalised = normalizer.observations(raw)
    assert isinstance(normalised, dict)
    assert np.all(normalised["a"] == 2.0)
    assert normalised["b"] is raw["b"]

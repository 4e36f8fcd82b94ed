"""What the recorder keeps is what the environments returned: raw, in order, with true ends."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.rollouts import IDENTITY, Rollout
from sb3_trustregion.recorder import observation_normalizer, snapshot_normalizer
from tests.environments import IMAGE, VECTOR, ToyEnv
from tests.helpers import N_ENVS, N_STEPS, UPDATE, make_model

DICT = spaces.Dict({"vector": VECTOR, "discrete": spaces.Discrete(4)})
N_ROLLOUTS = 3


class Drifting(ToyEnv):
    """Observations and rewards whose scale no statistics settle on; ends of both kinds."""

    n_total = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return self._drifted(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_total += 1
        return self._drifted(observation), 100.0 * reward - self.n_total, terminated, truncated, info

    def _drifted(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self._drifted(value) for key, value in observation.items()}
        if not isinstance(observation, np.ndarray) or observation.dtype == np.uint8:
            return observation
        return (observation * [1.0, 10.0, 0.1] + [0.0, self.n_total, 5.0]).astype(np.float32)


class Witness(gym.Wrapper[Any, Any, Any, Any]):
    """Writes down what the bare environment returned."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seen: list[Any] = []
        self.rewards: list[float] = []
        self.dones: list[bool] = []
        self.truncated_at: list[Any] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.current, info = self.env.reset(**kwargs)
        return self.current, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.seen.append(self.current)
        result = self.env.step(action)
        self.current, reward, terminated, truncated, _ = result
        self.rewards.append(float(reward))
        self.dones.append(terminated or truncated)
        self.truncated_at.append(self.current if truncated and not terminated else None)
        return result


class Keeping(AdaptiveTRPO):
    """Keeps its rollouts and leaves the policy alone."""

    kept: list[Rollout]

    def train(self) -> None:
        self.kept.append(self._take_rollout())


def collect(env: VecEnv, n_rollouts: int = N_ROLLOUTS) -> list[Rollout]:
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = make_model(Keeping, env, policy)
    model.kept = []
    model.learn(n_rollouts * UPDATE)
    assert len(model.kept) == n_rollouts
    return list(model.kept)


def witnessed(observation_space: spaces.Space[Any] = VECTOR) -> tuple[DummyVecEnv, list[Witness]]:
    witnesses = [Witness(Drifting(observation_space)) for _ in range(N_ENVS)]
    makers: list[Callable[[], gym.Env[Any, Any]]] = [lambda witness=witness: Monitor(witness) for witness in witnesses]
    return DummyVecEnv(makers), witnesses


def part(observation: Any, key: str) -> Any:
    return np.asarray(observation[key] if key else observation)


def check(
    rollouts: list[Rollout], witnesses: list[Witness], key: str = "", newest: slice = slice(None), **close: Any
) -> None:
    """
    Compare what was kept with what was returned.

    :param rollouts: one after another
    :param witnesses: one of each environment
    :param key: which part of a dictionary of observations
    :param newest: which part of the observation is that of the bare environment, where frames are stacked
    :param close: tolerances
    """
    seen = np.concatenate([part(rollout.observations, key)[..., newest] for rollout in rollouts])
    n_truncated = 0
    for env, witness in enumerate(witnesses):
        expected = np.stack([part(observation, key) for observation in witness.seen])
        np.testing.assert_allclose(seen[:, env].reshape(expected.shape), expected, **close)
        last = np.atleast_1d(part(rollouts[-1].last_observations, key)[env])[..., newest]
        np.testing.assert_allclose(last.reshape(expected[0].shape), part(witness.current, key), **close)
        rewards, dones = (np.concatenate([getattr(r, name) for r in rollouts])[:, env] for name in ("rewards", "dones"))
        np.testing.assert_array_equal(rewards, np.float32(witness.rewards))
        np.testing.assert_array_equal(dones, witness.dones)
        for i, rollout in enumerate(rollouts):
            ends = witness.truncated_at[i * N_STEPS : (i + 1) * N_STEPS]
            own = rollout.truncated % N_ENVS == env
            assert (rollout.truncated[own] // N_ENVS).tolist() == [t for t, end in enumerate(ends) if end is not None]
            if own.any():
                kept = part(rollout.terminal_observations, key)[own][..., newest]
                wanted = np.stack([part(end, key) for end in ends if end is not None])
                np.testing.assert_allclose(kept.reshape(wanted.shape), wanted, **close)
            n_truncated += int(own.sum())
    assert n_truncated > 2


def test_without_wrappers_it_is_bit_for_bit() -> None:
    env, witnesses = witnessed()
    check(collect(env), witnesses, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("norm_obs", [False, True])
@pytest.mark.parametrize("norm_reward", [False, True])
def test_normalised_values_are_undone(norm_obs: bool, norm_reward: bool) -> None:
    """The trap: the statistics move with every step, and each observation was normalised with those of its step."""
    env, witnesses = witnessed()
    normalised = VecNormalize(env, norm_obs=norm_obs, norm_reward=norm_reward, clip_obs=1e6)
    check(collect(normalised), witnesses, rtol=1e-5, atol=1e-4)


def test_normalised_parts_of_a_dictionary_are_undone() -> None:
    env, witnesses = witnessed(DICT)
    rollouts = collect(VecNormalize(env, clip_obs=1e6, norm_obs_keys=["vector"]))
    check(rollouts, witnesses, "vector", rtol=1e-5, atol=1e-4)
    check(rollouts, witnesses, "discrete", rtol=0.0, atol=0.0)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_newest_of_stacked_frames(normalise: bool) -> None:
    env, witnesses = witnessed()
    inner = VecNormalize(env, clip_obs=1e6) if normalise else env
    rollouts = collect(VecFrameStack(inner, 3))
    check(rollouts, witnesses, newest=slice(6, 9), rtol=1e-5, atol=1e-4)


def test_the_older_of_stacked_frames_are_off_by_the_drift_of_a_few_steps() -> None:
    """They were normalised a step or two before, which no wrapper tells: a small error, and a shrinking one."""
    env, _ = witnessed()
    normalised = VecNormalize(env, clip_obs=1e6)
    rollouts = collect(VecFrameStack(normalised, 3), n_rollouts=8)
    scale = np.sqrt(normalised.obs_rms.var)
    errors = []
    for rollout in (rollouts[0], rollouts[-1]):
        observations = part(rollout.observations, "")
        inside = ~rollout.dones[:-1]
        older, newest = observations[1:, :, 3:6], observations[:-1, :, 6:9]
        errors.append(np.abs((older - newest) / scale)[inside].max())
    assert 0.0 < errors[1] < 0.05
    assert errors[1] < 0.3 * errors[0]


def test_the_newest_of_stacked_frames_of_a_dictionary() -> None:
    env, witnesses = witnessed(spaces.Dict({"vector": VECTOR, "image": IMAGE}))
    normalised = VecNormalize(env, clip_obs=1e6, norm_obs_keys=["vector"])
    stacked = VecFrameStack(normalised, 2, channels_order={"vector": "last", "image": "last"})
    check(collect(stacked, 2), witnesses, "vector", slice(3, 6), rtol=1e-5, atol=1e-4)


def test_rewards_are_raw_where_sb3_has_bootstrapped_them() -> None:
    """The trap: SB3 adds γ·V(terminal observation), of the critic of that moment, to the reward of a truncated step."""
    env, witnesses = witnessed()
    model = make_model(Keeping, env, gamma=0.5)
    model.kept = []
    model.learn(UPDATE)
    (rollout,) = model.kept
    check([rollout], witnesses, rtol=0.0, atol=0.0)
    added = (model.rollout_buffer.rewards - rollout.rewards).ravel()
    with_end = np.isin(np.arange(UPDATE), rollout.truncated)
    values = model._value_function()(rollout.terminal_observations)
    assert np.abs(values).min() > 0.0
    np.testing.assert_allclose(added[with_end], 0.5 * values, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(added[~with_end], 0.0, atol=1e-3)


def test_observations_keep_when_the_buffer_is_used_and_the_environments_are_reset() -> None:
    env, _ = witnessed()
    model = make_model(AdaptiveTRPO, VecFrameStack(env, 3), n_reused_rollouts=3)
    model.learn(UPDATE)
    (rollout,) = model.memory.rollouts
    before = copy.deepcopy(rollout)
    model.learn(UPDATE)
    assert model.memory.rollouts[0] is rollout
    for one, other in zip(before, rollout, strict=True):
        np.testing.assert_array_equal(one, other)


def test_episodes_are_those_of_the_monitor() -> None:
    env, witnesses = witnessed()
    rollouts = collect(VecNormalize(env))
    returns, lengths = [], []
    for witness in witnesses:
        ends = np.flatnonzero(witness.dones) + 1
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            returns.append(sum(witness.rewards[start:end]))
            lengths.append(end - start)
    kept = np.concatenate([rollout.episode_returns for rollout in rollouts])
    np.testing.assert_allclose(sorted(kept), sorted(returns), atol=1e-5)
    assert sorted(np.concatenate([rollout.episode_lengths for rollout in rollouts])) == sorted(lengths)


def test_a_rollout_is_taken_once() -> None:
    model = make_model(Keeping)
    model.kept = []
    model.learn(UPDATE)
    assert model.recorder.take() is None
    with pytest.raises(RuntimeError, match="train\\(\\) found no recorded rollout"):
        model.train()


# Snapshots of statistics


def test_without_normalisation_the_snapshot_is_the_identity() -> None:
    env, _ = witnessed()
    assert snapshot_normalizer(env) is IDENTITY
    assert snapshot_normalizer(VecNormalize(env, norm_obs=False, norm_reward=False)) == IDENTITY


@pytest.mark.parametrize("stacked", [False, True])
def test_a_snapshot_normalises_as_the_environment_does_now_and_later(stacked: bool) -> None:
    env, witnesses = witnessed()
    inner = VecNormalize(env, clip_obs=2.0, clip_reward=0.5)
    outer: VecEnv = VecFrameStack(inner, 2) if stacked else inner
    collect(outer)
    snapshot = snapshot_normalizer(outer)
    raw = np.stack([witness.current for witness in witnesses])
    rewards = np.array([witness.rewards[-1] for witness in witnesses])
    expected = inner.normalize_obs(raw), inner.normalize_reward(rewards)
    for _ in range(2):
        frames = snapshot.observations(np.concatenate([raw, raw], axis=1) if stacked else raw)
        np.testing.assert_allclose(part(frames, "")[:, :3], expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(snapshot.rewards(rewards), expected[1], rtol=1e-4)
        collect(outer)  # the environment's own statistics move on
    assert not np.allclose(inner.normalize_obs(raw), expected[0], atol=1e-3)


class Cut(VecEnvWrapper):
    """Changes observations in a way that nobody knows."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, observation_space=spaces.Box(-np.inf, np.inf, (2,)))

    def reset(self) -> Any:
        return self.venv.reset()[:, :2]

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations[:, :2], rewards, dones, infos


def test_an_unknown_layout_is_told_and_left_as_it_is() -> None:
    env, _ = witnessed()
    with pytest.warns(UserWarning, match="Cut changes the layout of normalised observations"):
        assert observation_normalizer(Cut(VecNormalize(env))) is None

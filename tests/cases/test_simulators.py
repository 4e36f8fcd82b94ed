"""Environments that step many at once: they call themselves, write into the arrays they have shown, are reset early."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from tests.common.collecting import collect
from tests.environments import toy_vec_env
from tests.helpers import MEASURING, UPDATE, all_finite, make_model, state_of

N = 2


class Batched(VecEnv):
    """
    Resets some of its environments by ``reset`` with their numbers.

    :param fault: what comes in place of an observation, or of a reward, at the 40th step
    """

    def __init__(self, fault: float = 0.0, of_reward: bool = False) -> None:
        super().__init__(N, gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2))
        self.fault, self.of_reward = fault, of_reward
        self.random, self.time, self.n_steps = np.random.default_rng(0), np.zeros(N, dtype=int), 0
        self.seen, self.rewards = np.zeros((N, 2), np.float32), np.zeros(N, np.float32)

    def reset(self, which: Any = slice(None)) -> Any:
        self.time[which] = 0
        self.seen[which] = self.random.uniform(-1.0, 1.0, self.seen[which].shape)
        return self.seen

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        self.n_steps, self.time = self.n_steps + 1, self.time + 1
        self.seen[:] = self.random.uniform(-1.0, 1.0, self.seen.shape)
        self.rewards[:] = self.actions
        dones, infos = self.time >= 10 + np.arange(N), [{"terminal_observation": one.copy()} for one in self.seen]
        if dones.any():
            self.reset(np.flatnonzero(dones))
        if self.fault and self.n_steps == 40:
            (self.rewards if self.of_reward else self.seen)[1] = self.fault
        return self.seen, self.rewards, dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * N

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * N

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * N


class WarmingUp(VecEnvWrapper):
    """Takes some steps of its own at each reset."""

    def reset(self) -> Any:
        self.venv.reset()
        return [self.step(np.zeros(N, dtype=int)) for _ in range(3)][-1][0]

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@pytest.mark.parametrize("algorithm", [NPG, *MEASURING])
@pytest.mark.parametrize("env", [Batched, lambda: WarmingUp(Batched())])
def test_what_an_environment_asks_of_itself_is_its_own(algorithm: type[Any], env: Any) -> None:
    normalizer = VecNormalize(env())
    model = make_model(algorithm, normalizer)
    model.learn(3 * UPDATE)
    assert model.n_invalid == model.n_faulty_steps == 0
    assert "reset" not in vars(normalizer.venv)


def test_statistics_may_begin_in_the_middle() -> None:
    """A new ``VecNormalize`` has seen no observation that could stand in."""
    env = toy_vec_env()
    model = make_model(AdaptiveTRPO, env)
    model.learn(UPDATE)
    model.set_env(VecNormalize(env), force_reset=False)
    model.learn(UPDATE, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * UPDATE


@pytest.mark.parametrize("of_reward", [False, True])
@pytest.mark.parametrize("fault", [np.inf, 1e30, np.nan])
def test_an_array_that_is_written_to_again_does_not_stand_in_for_itself(fault: float, of_reward: bool) -> None:
    env = VecNormalize(Batched(fault, of_reward))
    model = make_model(AdaptivePPO, env)
    with pytest.warns(UserWarning, match="was not finite, or above"):
        model.learn(3 * UPDATE)
    assert 1 <= model.n_faulty_steps <= 2
    assert all_finite(state_of(model.policy))
    for statistics in (env.obs_rms, env.ret_rms):
        assert np.all(np.abs([statistics.mean, statistics.var]) < 100.0)  # type: ignore[union-attr]


class ResetsAtTheEnd(BaseCallback):
    """Has each rollout begin with new episodes."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.model._last_obs = self.training_env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)


@pytest.mark.parametrize("env", [lambda: toy_vec_env(episode_length=10**6, termination=0.0), Batched])
def test_a_rollout_ends_where_its_advantages_say(env: Any) -> None:
    """Not where the next one begins: the last advantages would be those of an episode's end."""
    for kept in collect(env(), callback=ResetsAtTheEnd()):
        assert not kept.rollout.dones[-1].all()
        assert kept.rollout.starts_fresh
        residuals = kept.rollout.own_residuals(1.0)
        np.testing.assert_allclose(residuals[-1], kept.buffer["advantages"][-1], atol=1e-5)

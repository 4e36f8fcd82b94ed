"""Environments that break on purpose."""

import copy
from collections.abc import Callable, Container
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

BOX = spaces.Box(-1.0, 1.0, (3,), np.float64)
PARTS = spaces.Dict({"where": BOX, "kind": spaces.Discrete(3), "picture": spaces.Box(0, 255, (4,), np.uint8)})
BAD_VALUES = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf, "huge": 1e30, "minus_huge": -1e30}
QUANTITIES = ("reward", "observation", "terminal observation")


class Target(gym.Env[Any, Any]):
    """
    Aim at what is shown: the first number of the observation is the best action. Learned within a few updates.

    :param as_dict: whether observations are dictionaries
    :param action_space: a continuous one, or ``Discrete``, of which the first action is best
    :param length: steps until an episode is truncated, None for never
    :param terminates: whether it is terminated then instead
    """

    def __init__(
        self,
        as_dict: bool = False,
        action_space: spaces.Space[Any] | None = None,
        length: int | None = 8,
        terminates: bool = False,
    ) -> None:
        # Copies: a space holds the generator that it samples from.
        self.observation_space = copy.deepcopy(PARTS if as_dict else BOX)
        self.action_space = spaces.Box(-1.0, 1.0, (1,)) if action_space is None else action_space
        self.length = length
        self.terminates = terminates
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        self.shown = self.observation_space.sample()
        return self.shown

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        aim = float(self.shown["where"][0] if isinstance(self.shown, dict) else self.shown[0])
        reward = -abs(float(np.mean(action)) - (aim if isinstance(self.action_space, spaces.Box) else 0.0))
        self.n_steps += 1
        over = self.n_steps == self.length
        return self._observe(), reward, over and self.terminates, over and not self.terminates, {}


class Faulty(gym.Wrapper[Any, Any, Any, Any]):
    """
    Returns a bad value at some steps.

    :param env: the environment
    :param quantity: what is bad: one of ``QUANTITIES``, or ``"first observation"`` (of the first episode)
    :param value: the bad value
    :param steps: at which steps, counted from zero over all episodes; of terminal observations, from when on
    """

    def __init__(self, env: gym.Env[Any, Any], quantity: str, value: float, steps: Container[int]) -> None:
        super().__init__(env)
        self.quantity = quantity
        self.value = value
        self.steps = steps
        self.n_steps = 0
        self.n_resets = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.n_resets += 1
        is_bad = self.quantity == "first observation" and self.n_resets == 1
        return self._spoilt(observation) if is_bad else observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        is_bad = self.n_steps in self.steps
        over = terminated or truncated
        self.n_steps += 1
        if is_bad and self.quantity == "reward":
            reward = self.value
        elif is_bad and self.quantity == ("terminal observation" if over else "observation"):
            observation = self._spoilt(observation)
        return observation, reward, terminated, truncated, info

    def _spoilt(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {**observation, "where": self._spoilt(observation["where"])}
        spoilt = np.array(observation)
        spoilt[0] = self.value
        return spoilt


def healthy(**kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Monitor(Target(**kwargs))


def faulty(quantity: str, value: float, steps: Container[int], **kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Monitor(Faulty(Target(**kwargs), quantity, value, steps))


def normalized(env: VecEnv) -> VecNormalize:
    is_dict = isinstance(env.observation_space, spaces.Dict)
    return VecNormalize(env, norm_obs_keys=["where"] if is_dict else None)


WRAPPERS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "plain": lambda env: env,
    "normalized": normalized,
    "stacked": lambda env: VecFrameStack(VecNormalize(env), 2),
    "stacked below": lambda env: VecNormalize(VecFrameStack(env, 2)),
}


def one_of_three(quantity: str, value: float, steps: Container[int], wrapper: str = "plain", **kwargs: Any) -> VecEnv:
    """Three environments of which the one with index 1 breaks; other arguments as in ``Target``."""
    makers = [healthy(**kwargs), faulty(quantity, value, steps, **kwargs), healthy(**kwargs)]
    return WRAPPERS[wrapper](DummyVecEnv(makers))


def all_of_many(
    quantity: str, value: float, steps: Container[int], wrapper: str = "plain", n_envs: int = 2, **kwargs: Any
) -> VecEnv:
    """Environments that break at the same steps; other arguments as in ``Target``."""
    return WRAPPERS[wrapper](DummyVecEnv([faulty(quantity, value, steps, **kwargs)] * n_envs))


CHANGES: dict[str, Callable[[float, float, int], float]] = {
    # (reward, reward of the opposite action, steps since the change) to the reward from then on
    "each step costs": lambda reward, opposite, n: reward - 5.0,
    "rewards grow tenfold": lambda reward, opposite, n: 10.0 * reward,
    "actions turn round": lambda reward, opposite, n: opposite,
    "actions turn round, at ever greater cost": lambda reward, opposite, n: opposite - 0.008 * min(n, 375),
}


class Changing(gym.Wrapper[Any, Any, Any, Any]):
    """
    ``Target`` that changes for the worse and never back.

    :param change: how, one of ``CHANGES``
    :param at: with which step, counted from zero over all episodes
    """

    def __init__(self, change: str, at: int) -> None:
        self.target = Target()
        super().__init__(self.target)
        self.change = CHANGES[change]
        self.at = at
        self.n_steps = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        aim = float(self.target.shown[0])
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.n_steps += 1
        if self.n_steps > self.at:
            reward = self.change(float(reward), -abs(float(np.mean(action)) + aim), self.n_steps - self.at)
        return observation, reward, terminated, truncated, info

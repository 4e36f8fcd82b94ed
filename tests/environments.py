"""Small environments that any observation and action space fits."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,))

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}
OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "vector": VECTOR,
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(4),
    "image": IMAGE,
    "dict": spaces.Dict({"image": IMAGE, "vector": VECTOR, "discrete": spaces.Discrete(4)}),
}
POLICIES = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}


class ToyEnv(gym.Env[Any, Any]):
    """
    Observations are noise; an action pays the more, the closer its mean is to one half.

    Episodes terminate by chance and are truncated after a while: ends of both kinds in every rollout.

    :param observation_space: any
    :param action_space: any
    :param reward: a constant in place of the reward that depends on the action
    :param episode_length: truncated after so many steps
    :param termination: probability that an episode terminates with a step
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] = VECTOR,
        action_space: spaces.Space[Any] = ACTION_SPACES["box"],
        reward: float | None = None,
        episode_length: int = 10,
        termination: float = 0.05,
    ) -> None:
        # Copies: a space holds the generator that it samples from.
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space)
        self.reward = reward
        self.episode_length = episode_length
        self.termination = termination

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        reward = -abs(float(np.mean(action)) - 0.5) if self.reward is None else self.reward
        terminated = bool(self.np_random.random() < self.termination)
        return self.observation_space.sample(), reward, terminated, self.n_steps >= self.episode_length, {}


def maker(**kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Monitor(ToyEnv(**kwargs))


def toy_vec_env(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    """``n_envs`` toys in one process; arguments as in ``ToyEnv``."""
    return DummyVecEnv([maker(**kwargs)] * n_envs)

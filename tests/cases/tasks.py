"""Small tasks that are learned within a few updates, and how likely the best action has become."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO

NATURAL = (NPG, AdaptiveTRPO)
# PPO's default rate is for far more updates than there are here.
OF_PPO = {"learning_rate": 3e-3, "n_epochs": 10}
RATES: dict[type[Any], dict[str, Any]] = {AdaptivePPO: OF_PPO, PenaltyPPO: OF_PPO}


class Bandit(gym.Env[Any, Any]):
    """
    Two actions in one state, episodes of ten steps.

    :param worth: of each action
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, *worth: float) -> None:
        self.worth = worth or (0.0, 0.0)
        self.action_space = gym.spaces.Discrete(len(self.worth))
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.n_steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return np.zeros(2, np.float32), self.worth[int(action)], self.n_steps >= 10, False, {"action": int(action)}


N_ENVS, UPDATE = 10, 200  # time steps


def bandit_model(algorithm: type[Any], env: Any, **kwargs: Any) -> Any:
    """A model of few parameters for such a task."""
    defaults = {"n_steps": 20, "batch_size": 100, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return algorithm("MlpPolicy", env, **{**defaults, **RATES.get(algorithm, {}), **kwargs})


def probability(model: Any, action: int) -> float:
    """Of an action of a ``Bandit``."""
    with th.no_grad():
        distribution = model.policy.get_distribution(th.zeros(1, 2)).distribution
    return float(distribution.probs[0, action])

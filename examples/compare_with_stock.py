"""Your own task, stock TRPO beside AdaptiveTRPO. Three seeds show large differences only: see docs/benchmark.md."""

import sys

import gymnasium as gym
import numpy as np
from sb3_contrib import TRPO
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trustregion import AdaptiveTRPO


class YourTask(gym.Env):
    """Reach the origin of a plane in 30 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        """Start anywhere near."""
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(size=2).astype(np.float32), 0
        return self.place, {}

    def step(self, action):
        """Move, and pay for the distance."""
        self.place, self.time = self.place + 0.1 * np.clip(action, -1.0, 1.0), self.time + 1
        return self.place, -float(np.linalg.norm(self.place)), False, self.time == 30, {}


n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
for algorithm in (TRPO, AdaptiveTRPO):
    models = [algorithm("MlpPolicy", YourTask(), n_steps=512, seed=seed).learn(n_steps) for seed in range(3)]
    returns = [evaluate_policy(model, model.get_env(), n_eval_episodes=20)[0] for model in models]
    print(f"{algorithm.__name__:14}", " ".join(f"{value:8.2f}" for value in returns))

"""Rewards that drift while the policy learns are the environment's doing: they hold back neither policy nor radius."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from tests.helpers import MEASURING

N_ENVS, N_STEPS, N_UPDATES = 20, 10, 12


class Task(gym.Env[Any, Any]):
    """Action 1 of three pays half a point more than the others; all pay the level, which others set."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3)
    level = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = 0.5 * (action == 1) + self.level
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), reward, self.t >= 10, False, {}


def new_model(algorithm: type[Any], normalize: bool = False) -> Any:
    env = DummyVecEnv([Task] * N_ENVS)
    rates = {} if algorithm is AdaptiveTRPO else {"learning_rate": 5e-3, "n_epochs": 5}
    return algorithm(
        "MlpPolicy",
        VecNormalize(env) if normalize else env,
        n_steps=N_STEPS,
        batch_size=100,
        device="cpu",
        seed=1,
        policy_kwargs={"net_arch": [8]},
        **rates,
    )


def set_level(model: Any, level: float) -> None:
    for env in model.get_env().unwrapped.envs:
        env.unwrapped.level = level


def probability(model: Any) -> float:
    with th.no_grad():
        return float(model.policy.get_distribution(th.zeros(1, 2)).distribution.probs[0, 1])


# Of the mean of a rollout one standard error is about 0.015.
PATHS: dict[str, Callable[[int], float]] = {
    "falls slowly": lambda k: -0.015 * k,
    "falls": lambda k: -0.1 * k,
    "falls fast": lambda k: -1.0 * k,
    "rises slowly": lambda k: 0.015 * k,
    "rises": lambda k: 0.1 * k,
    "rises fast": lambda k: 1.0 * k,
    "to and fro": lambda k: 0.5 * (k % 2),
    "falls once": lambda k: -1.0 * (k >= 6),
}


class Drift(BaseCallback):
    """Sets the level before each rollout, or adds it to the rewards at each step."""

    def __init__(self, path: Callable[[int], float], where: str) -> None:
        super().__init__()
        self.path, self.where, self.n_rollouts = path, where, -1

    def _on_rollout_start(self) -> None:
        self.n_rollouts += 1
        if self.where == "environment":
            set_level(self.model, self.path(self.n_rollouts))

    def _on_step(self) -> bool:
        if self.where == "callback":
            self.locals["rewards"] += self.path(self.n_rollouts)
        elif self.where == "within":  # all the time, not from rollout to rollout
            set_level(self.model, self.path(1) * self.num_timesteps / (N_STEPS * N_ENVS))
        return True


def assert_unharmed(model: Any, learned: float = 0.6) -> None:
    assert probability(model) > learned
    assert model.region.n_rollbacks <= 2
    floor = 0.003 if isinstance(model, AdaptiveTRPO) else 0.3
    assert model.region.radius >= floor


@pytest.mark.parametrize(
    ("algorithm", "path"),
    [
        *((AdaptiveTRPO, path) for path in ("falls slowly", "falls fast", "rises", "rises fast", "to and fro")),
        *((AdaptivePPO, path) for path in ("falls", "rises slowly", "falls once")),
    ],
)
def test_between_two_learns(algorithm: type[Any], path: str) -> None:
    model = new_model(algorithm)
    for k in range(N_UPDATES):
        set_level(model, PATHS[path](k))
        model.learn(N_STEPS * N_ENVS, reset_num_timesteps=False)
    # So fast that stock PPO and TRPO get to 0.4 or so: the critic's error is all there is.
    assert_unharmed(model, 0.3 if "fast" in path else 0.6)


@pytest.mark.parametrize(
    ("algorithm", "path", "where"),
    [(AdaptiveTRPO, "falls slowly", "callback"), (AdaptiveTRPO, "falls", "within"), (AdaptivePPO, "rises", "callback")],
)
def test_within_one_learn(algorithm: type[Any], path: str, where: str) -> None:
    model = new_model(algorithm)
    model.learn(N_UPDATES * N_STEPS * N_ENVS, callback=Drift(PATHS[path], where))
    assert_unharmed(model)


@pytest.mark.parametrize(("algorithm", "path"), zip(MEASURING, ["falls", "rises"], strict=True))
def test_normalised(algorithm: type[Any], path: str) -> None:
    model = new_model(algorithm, normalize=True)
    model.learn(N_UPDATES * N_STEPS * N_ENVS, callback=Drift(PATHS[path], "environment"))
    assert_unharmed(model)


class Walk(gym.Env[Any, Any]):
    """A step along a line towards 1; what a step costs is in a unit that others set."""

    observation_space, action_space = gym.spaces.Box(-5, 5, (1,)), gym.spaces.Box(-1, 1, (1,))
    unit = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.place = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.place, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.place = np.clip(self.place + 0.3 * action, -5, 5).astype(np.float32)
        return self.place, -self.unit * abs(float(self.place[0]) - 1.0), False, self.t >= 25, {}


@pytest.mark.parametrize("algorithm", MEASURING)
def test_rewards_in_a_smaller_unit_do_not_lengthen_steps(algorithm: type[Any]) -> None:
    """The critic's values are in the old one for long: what steps promise and bring is its error, again and again."""
    rates = {} if algorithm is AdaptiveTRPO else {"learning_rate": 3e-3}
    sizes = {"n_steps": 128, "batch_size": 64, "policy_kwargs": {"net_arch": [32]}}
    model = algorithm("MlpPolicy", DummyVecEnv([Walk] * 4), gamma=0.9, seed=1, device="cpu", **sizes, **rates)
    start = model.region.radius
    for k in range(20):
        for env in model.get_env().unwrapped.envs:
            env.unwrapped.unit = 0.7**k
        model.learn(512, reset_num_timesteps=False)
    assert model.region.radius < 1.1 * start

"""Samples per second of ``learn``."""

import itertools
from collections.abc import Iterator

import numpy as np
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.speed.duel import HOPPER, Clock, clock_of
from benchmarks.speed.plan import Plan
from benchmarks.speed.rows import Pairs, Row
from sb3_trustregion import AdaptiveTRPO

TASKS = (HOPPER, "CartPole-v1")
N_ENVS = (1, 8)
# The first does not judge a step, and pays for memory.
ITERATIONS = 5


class Iterations(BaseCallback):
    """
    Notes when each iteration of ``learn`` begins.

    :param clock: the clock
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.starts: list[float] = []

    def _on_rollout_start(self) -> None:
        self.starts.append(self.clock())

    def _on_step(self) -> bool:
        return True


def speeds(model: BaseAlgorithm, n_steps: int, clock: Clock) -> list[float]:
    """
    :param model: a model
    :param n_steps: of an iteration
    :param clock: the clock
    :return: samples per second of the iterations of one ``learn``
    """
    callback = Iterations(clock)
    model.learn(ITERATIONS * n_steps, callback, reset_num_timesteps=False)
    return [n_steps / seconds for seconds in np.diff(callback.starts)[1:]]


def learn_rows(plan: Plan, device: str) -> Iterator[Row]:
    """
    :param plan: how much
    :param device: where the networks are
    :return: samples per second beside stock TRPO and stock PPO, all with their defaults
    """
    clock = clock_of(device)
    for task, n_envs in itertools.product(TASKS, N_ENVS):
        kinds, n_steps = (AdaptiveTRPO, TRPO, PPO), plan.n_steps // n_envs
        envs = [make_vec_env(task, n_envs, seed=0) for _ in kinds]
        models = [
            kind("MlpPolicy", env, n_steps=n_steps, seed=0, device=device)
            for kind, env in zip(kinds, envs, strict=True)
        ]
        pairs = {"TRPO": Pairs(), "PPO": Pairs()}
        for _ in range(plan.n_rounds):
            ours, *peers = (speeds(model, plan.n_steps, clock) for model in models)
            for name, peer in zip(pairs, peers, strict=True):
                for both in zip(ours, peer, strict=True):
                    pairs[name].add(*both)
        for name, measured in pairs.items():
            setting = task if n_envs == 1 else f"{task}, {n_envs} environments"
            yield measured.row("learn", "learn()", setting, "samples/s", "> 1.0", name)

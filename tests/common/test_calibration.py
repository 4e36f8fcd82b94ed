"""
Where no step is taken, ``actual / stderr`` has mean 0 and variance 1: what a verdict rests on.

The policy stays, the critic is fitted as ever, ``VecNormalize`` drifts as ever.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.common.judge import Snapshot
from sb3_trustregion.core.improvement import Promise
from sb3_trustregion.core.parameters import snapshot
from tests.helpers import assert_same, make_model

N_ENVS = 4
PROMISE = Promise(gain=1.0, gain_stderr=0.5, linear_gain=1.5, reliability=0.25, length=0.1, used_radius=True)


class Frozen(AdaptiveTRPO):
    """Learns until it is told to stop; from then on only its critic does, and each "step" is measured."""

    is_frozen = True
    scores: list[float]

    def train(self) -> None:
        if not self.is_frozen:
            return super().train()
        rollout = self._begin_update()
        measured = self.judge.review(rollout, self.policy).measured
        self.scores.append(measured.actual / measured.stderr if measured is not None else math.nan)
        batch, actor = self._gather(rollout)
        before = Snapshot.of(self.policy, actor.names)
        self._fit_critic(batch, actor)
        self.judge.expect(PROMISE, rollout, before, self.policy)


class Noise(gym.Env[Any, Any]):
    """Observations with a memory and scales of their own, rewards that are mostly noise."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.n_steps = self.np_random.standard_normal(3), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = 0.9 * self.x + math.sqrt(1.0 - 0.9**2) * self.np_random.standard_normal(3)
        self.n_steps += 1
        reward = 5.0 + float(self.x[0]) + 3.0 * self.np_random.standard_normal()
        return self._observe(), reward, bool(self.np_random.random() < 0.01), self.n_steps >= 100, {}

    def _observe(self) -> Any:
        return (self.x * [1.0, 10.0, 0.1] + [5.0, 50.0, 0.0]).astype(np.float32)


def scores_of(env: Any, n_steps: int, n_updates: int, n_learned: int = 0, **kwargs: Any) -> npt.NDArray[np.float64]:
    arguments = {"n_steps": n_steps, "batch_size": 256, "rollback_z": None, "radius_rule": "fixed"}
    model = make_model(Frozen, env, **{**arguments, **kwargs})
    model.scores, update = [], n_steps * N_ENVS
    if n_learned:
        model.is_frozen = False
        model.learn(n_learned * update)
        model.is_frozen = True
        model.judge.forget()
    actor, before = model.judge, snapshot(model.policy)
    model.learn(n_updates * update, reset_num_timesteps=not n_learned)
    acting = [name for name in before if name.startswith(("action_net", "mlp_extractor.policy_net", "log_std"))]
    assert actor is model.judge
    assert acting
    assert_same({name: before[name] for name in acting}, {name: snapshot(model.policy)[name] for name in acting})
    return np.array(model.scores[1:])


def check(scores: npt.NDArray[np.float64], least: float, most: float = 1.8) -> None:
    """Neighbours share a rollout: every other one is independent."""
    apart = scores[::2][np.isfinite(scores[::2])]
    assert len(apart) >= 12
    assert abs(apart.mean()) < 3.0 / math.sqrt(len(apart))
    assert least < apart.var() < most
    assert not any(np.abs(scores) > 4.5)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("env_id", "n_steps", "n_learned", "least"),
    [
        ("noise", 100, 0, 0.4),
        ("Pendulum-v1", 200, 3, 0.3),
        # Residuals of a critic that knows nothing cancel over an episode, which is longer than a block.
        ("CartPole-v1", 128, 3, 0.2),
    ],
)
def test_without_a_step_the_actual_improvement_is_calibrated(
    env_id: str, n_steps: int, n_learned: int, least: float, normalise: bool
) -> None:
    """Or errs on the safe side; with statistics that drift from the first update on too."""
    n_pairs = 25 if env_id == "noise" else 14
    makers = DummyVecEnv([lambda: Monitor(Noise())] * N_ENVS)
    env: Any = makers if env_id == "noise" else make_vec_env(env_id, n_envs=N_ENVS, seed=0)
    check(scores_of(VecNormalize(env) if normalise else env, n_steps, 2 * n_pairs, n_learned), least)


def test_so_it_is_by_the_returns_of_episodes() -> None:
    env = make_vec_env("CartPole-v1", n_envs=N_ENVS, seed=0)
    check(scores_of(env, 128, 28, improvement_estimator="episodes"), least=0.4)

"""Models that collect and keep what they have read, and environments that write down what they returned."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.common.learning_data import Rollout, make_batch
from sb3_trustregion.core.batch import Batch
from tests.environments import POLICIES, VECTOR, ToyEnv
from tests.helpers import N_ENVS, UPDATE, make_model


class Kept(NamedTuple):
    """What one update has read, and a copy of the buffer's own arrays at that moment."""

    rollout: Rollout
    batch: Batch
    buffer: dict[str, Any]


class Keeping(AdaptiveTRPO):
    """Reads and learns nothing."""

    kept: list[Kept]

    def train(self) -> None:
        rollout = self.rollout_recorder.rollout(self)
        self.n_faulty_steps += int(rollout.faulty.sum())
        held = {name: copied(value) for name, value in vars(self.rollout_buffer).items() if name in ARRAYS}
        self.kept.append(Kept(rollout, make_batch(self.rollout_buffer, rollout.faulty), held))


ARRAYS = ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns", "episode_starts")


def copied(value: Any) -> Any:
    return {key: part.copy() for key, part in value.items()} if isinstance(value, dict) else value.copy()


def keeping(env: VecEnv, **kwargs: Any) -> Keeping:
    kind = {spaces.Dict: "dict"}.get(type(env.observation_space), "image" if is_image(env.observation_space) else "")
    model: Keeping = make_model(Keeping, env, POLICIES.get(kind, "MlpPolicy"), **kwargs)
    model.kept = []
    return model


def is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8


def collect(env: VecEnv, n_rollouts: int = 2, callback: Any = None, **kwargs: Any) -> list[Kept]:
    model = keeping(env, **kwargs)
    model.learn(n_rollouts * UPDATE, callback=callback)
    assert len(model.kept) == n_rollouts
    return model.kept


class Drifting(ToyEnv):
    """Observations and rewards whose scale no statistics settle on; ends of both kinds."""

    n_total = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return self._drifted(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_total += 1
        return self._drifted(observation), 10.0 * reward - self.n_total, terminated, truncated, info

    def _drifted(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self._drifted(value) for key, value in observation.items()}
        if not isinstance(observation, np.ndarray) or observation.dtype.kind != "f":
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


def witnessed(observation_space: spaces.Space[Any] = VECTOR) -> tuple[DummyVecEnv, list[Witness]]:
    witnesses = [Witness(Drifting(observation_space)) for _ in range(N_ENVS)]
    makers: list[Callable[[], gym.Env[Any, Any]]] = [lambda witness=witness: Monitor(witness) for witness in witnesses]
    return DummyVecEnv(makers), witnesses


def by_env(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(T, N, ...) to (N·T, ...), environment by environment, as SB3's buffer flattens."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])

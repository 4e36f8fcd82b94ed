"""EnvPool's versions of Gymnasium's tasks as environments of Stable-Baselines3: for exploring, where time is short."""

from collections.abc import Sequence
from typing import Any

import envpool
import gymnasium as gym
import numpy as np
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class EnvPoolVecEnv(VecEnv):
    """
    Episodes end as in Stable-Baselines3: with the step that ends one comes the first observation of the next, and the
    last one in ``terminal_observation``. EnvPool itself would reset at the next step, in place of that step.

    Tasks have the same ids in Gymnasium and EnvPool; ``kwargs`` are of each environment, by EnvPool's names.
    """

    def __init__(self, task: str, n_envs: int, **kwargs: Any) -> None:
        limit = gym.spec(task).max_episode_steps
        self.task, self.kwargs = task, ({} if limit is None else {"max_episode_steps": limit}) | kwargs
        env = gym.make(task)
        super().__init__(n_envs, env.observation_space, env.action_space)
        env.close()
        self._pool: Any = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Have the environments made anew at the next reset: EnvPool takes seeds when it makes them."""
        self._pool = None
        return super().seed(seed)

    def reset(self) -> Any:
        """Reset all environments, and return their first observations."""
        if self._pool is None:
            seeds = [0 if seed is None else seed % 2**31 for seed in self._seeds]
            size: dict[str, Any] = {"num_envs": self.num_envs, "num_threads": 1, "env_seed": seeds}
            self._pool = envpool.make_gymnasium(self.task, **size, **self.kwargs)
        self._reset_seeds()
        return self._copy(self._pool.reset()[0])

    def step_async(self, actions: Any) -> None:
        """Take the actions for ``step_wait``."""
        self._actions = np.asarray(actions, self.action_space.dtype)

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments, and reset those whose episodes have ended."""
        received, rewards, terminated, truncated, _ = self._pool.step(self._actions)
        observations, dones = self._copy(received), terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones).astype(np.int32)
        for index in ended:
            infos[index]["terminal_observation"] = observations[index].copy()
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        if len(ended):
            first, info = self._pool.reset(ended)
            observations[info["env_id"]] = first
        return observations, rewards.astype(np.float32), dones, infos

    def _copy(self, observations: Any) -> Any:
        return np.array(observations, self.observation_space.dtype)

    def close(self) -> None:
        """Let the environments go."""
        self._pool = None

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Tell that nothing is rendered; there are no other attributes."""
        if attr_name != "render_mode":
            raise AttributeError(f"environments of EnvPool have no attributes, got {attr_name!r}")
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: there are no attributes."""
        raise AttributeError(f"environments of EnvPool have no attributes, got {attr_name!r}")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: there are no methods."""
        raise AttributeError(f"environments of EnvPool have no methods, got {method_name!r}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Tell that no environment is wrapped."""
        return [False for _ in self._get_indices(indices)]


def make_vec_env(manager: ExperimentManager, task: str, env_fns: list[Any]) -> VecEnv:
    """EnvPool's environments, monitored, in the place of a class of vectorised environments in RL Zoo's manager."""
    if manager.env_wrapper is not None:
        raise ValueError("env_wrapper must be None with backend 'envpool'")
    return VecMonitor(EnvPoolVecEnv(task, len(env_fns), **manager.env_kwargs))

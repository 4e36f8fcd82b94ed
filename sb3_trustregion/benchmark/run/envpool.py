"""EnvPool's versions of Gymnasium's tasks as environments of Stable-Baselines3: for exploring, where time is short."""

from collections.abc import Sequence
from typing import Any

import envpool
import gymnasium as gym
import numpy as np
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class EnvPoolVecEnv(VecEnv):
    """
    Episodes end as in Stable-Baselines3: with the step that ends one comes the first observation of the next, and the
    last one in ``terminal_observation``. EnvPool itself would reset at the next step, in place of that step.

    The environments are made at the first reset after :meth:`seed`, because EnvPool takes seeds when it makes them.

    :param task: id of the environment, the same in Gymnasium and EnvPool
    :param n_envs: how many
    :param kwargs: of each, by EnvPool's names
    """

    def __init__(self, task: str, n_envs: int, **kwargs: Any) -> None:
        spec = gym.spec(task)
        self.task = task
        self.kwargs = {"max_episode_steps": spec.max_episode_steps, **kwargs}
        env = gym.make(task)
        super().__init__(n_envs, env.observation_space, env.action_space)
        env.close()
        self._pool: Any = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: of the first environment; the others have the numbers that follow
        :return: seeds of all
        """
        self._pool = None
        return super().seed(seed)

    def reset(self) -> VecEnvObs:
        """:return: first observations of new episodes"""
        if self._pool is None:
            seeds = [0 if seed is None else seed % 2**31 for seed in self._seeds]
            one_thread = {"num_envs": self.num_envs, "num_threads": 1}
            self._pool = envpool.make_gymnasium(self.task, env_seed=seeds, **one_thread, **self.kwargs)
        observations, _ = self._pool.reset()
        self._reset_seeds()
        return self._cast(observations)

    def step_async(self, actions: Any) -> None:
        """
        :param actions: one for each environment
        """
        self._actions = np.asarray(actions, self.action_space.dtype)

    def step_wait(self) -> VecEnvStepReturn:
        """:return: observations, rewards, whether episodes ended, and infos"""
        observations, rewards, terminated, truncated, _ = self._pool.step(self._actions)
        observations = self._cast(observations)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones).astype(np.int32)
        for index in ended:
            infos[index] = {
                "terminal_observation": observations[index].copy(),
                "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
            }
        if len(ended):
            first, info = self._pool.reset(ended)
            observations[info["env_id"]] = self._cast(first)
        return observations, rewards.astype(np.float32), dones, infos

    def _cast(self, observations: Any) -> Any:
        # A copy: EnvPool's arrays are its own.
        return np.array(observations, self.observation_space.dtype)

    def close(self) -> None:
        """Let the environments go."""
        self._pool = None

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute
        :param indices: of which environments
        :return: that nothing is drawn; EnvPool's environments have no attributes to be seen
        """
        if attr_name != "render_mode":
            raise AttributeError(f"environments of EnvPool show no attributes, got {attr_name!r}")
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute
        :param value: of it
        :param indices: of which environments
        """
        raise NotImplementedError(f"environments of EnvPool have no attributes to set, got {attr_name!r}")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """
        :param method_name: name of a method
        :param args: of it
        :param indices: of which environments
        :param kwargs: of it
        """
        raise NotImplementedError(f"environments of EnvPool have no methods to call, got {method_name!r}")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:  # type: ignore[type-arg]
        """
        :param wrapper_class: a wrapper
        :param indices: of which environments
        :return: that none is
        """
        return [False for _ in self._get_indices(indices)]


def make_vec_env(manager: ExperimentManager, task: str, env_fns: list[Any]) -> VecEnv:
    """
    In the place of a class of vectorised environments in RL Zoo's manager.

    :param manager: of the run
    :param task: id of the environment
    :param env_fns: what would make the environments with Gymnasium: as many are made
    :return: monitored environments of EnvPool
    :raises ValueError: where the manager would wrap them
    """
    if manager.env_wrapper is not None:
        raise ValueError("env_wrapper must be None with backend 'envpool'")
    return VecMonitor(EnvPoolVecEnv(task, len(env_fns), **manager.env_kwargs))

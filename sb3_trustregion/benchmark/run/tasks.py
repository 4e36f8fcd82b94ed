"""Checks that Gymnasium knows tasks and can make them, and measures what random actions get there."""

import difflib
import importlib
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np

N_EPISODES = 100


def check_task(task: str) -> None:
    """Raise a ``ValueError`` where Gymnasium does not know the task or cannot make it."""
    if not isinstance(task, str) or task not in gym.registry:
        close = difflib.get_close_matches(str(task), gym.registry, n=3)
        hint = f" (did you mean {', '.join(close)}?)" if close else ""
        raise ValueError(f"task must be an id that Gymnasium knows, got {task!r}{hint}")
    try:
        _make(task).close()
    except Exception as error:
        raise ValueError(f"task must be an environment that can be made, got {task!r}: {error}") from error


def check_envpool(tasks: Iterable[str]) -> None:
    """Raise a ``ValueError`` where EnvPool is not installed, or lacks one of the tasks."""
    try:
        import envpool
    except ImportError as error:
        raise ValueError(f"backend envpool must be installed (pip install envpool), got {error}") from error

    unknown = sorted(set(tasks) - set(envpool.list_all_envs()))
    if unknown:
        raise ValueError(f"task must be an id that EnvPool knows, got {', '.join(unknown)}")


def _make(task: str) -> gym.Env[Any, Any]:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # MuJoCo writes a log where it is loaded
        try:
            return gym.make(task)
        finally:
            os.chdir(before)


def import_packages(packages: Iterable[str]) -> None:
    """Import the modules that register tasks."""
    for package in packages:
        importlib.import_module(str(package))


def entry_point(task: str) -> str:
    """The entry point of a task: where its class is."""
    return str(gym.spec(task).entry_point)


def measure_random(task: str, n_episodes: int = N_EPISODES, seed: int = 0) -> tuple[float, float]:
    """Mean return of episodes of uniformly random actions on a task, and its standard error."""
    env = gym.wrappers.RecordEpisodeStatistics(_make(task), buffer_length=n_episodes)
    env.action_space.seed(seed)
    env.reset(seed=seed)
    while len(env.return_queue) < n_episodes:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    env.close()
    return float(np.mean(env.return_queue)), float(np.std(env.return_queue, ddof=1) / np.sqrt(n_episodes))

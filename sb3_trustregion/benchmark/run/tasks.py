"""Tasks: whether Gymnasium knows them and can make them, and what random actions get there."""

import contextlib
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
    """
    :param task: id of an environment
    :raises ValueError: where Gymnasium does not know it or cannot make it
    """
    if not isinstance(task, str) or task not in gym.registry:
        close = difflib.get_close_matches(str(task), gym.registry, n=3)
        hint = f" (did you mean {', '.join(close)}?)" if close else ""
        raise ValueError(f"task must be an id that Gymnasium knows, got {task!r}{hint}")
    try:
        make(task).close()
    except Exception as error:
        raise ValueError(f"task must be an environment that can be made, got {task!r}: {error}") from error


def check_envpool(tasks: Iterable[str], is_evaluation: bool) -> None:
    """
    :param tasks: ids of environments
    :param is_evaluation: whether the runs are for a claim
    :raises ValueError: where EnvPool is not installed or lacks one, or where it must not be used
    """
    if is_evaluation:
        raise ValueError("backend must be 'gymnasium' with --evaluation, got 'envpool'")
    try:
        import envpool
    except ImportError as error:
        raise ValueError("backend 'envpool' needs the package envpool: pip install envpool") from error
    unknown = sorted(set(tasks) - set(envpool.list_all_envs()))
    if unknown:
        raise ValueError(f"task must be an id that EnvPool knows, got {', '.join(unknown)}")


def make(task: str) -> gym.Env[Any, Any]:
    """
    :param task: id of an environment
    :return: the environment
    """
    before = os.getcwd()
    # MuJoCo writes a log where it is loaded.
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, before)
        os.chdir(folder)
        return gym.make(task)


def import_packages(packages: Iterable[str]) -> None:
    """
    :param packages: modules that register tasks
    :raises ValueError: where one cannot be imported
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, ValueError, AttributeError) as error:  # the latter two: no name at all
            raise ValueError(f"gym_packages must be modules that can be imported, got {package!r}: {error}") from error


def entry_point(task: str) -> str:
    """
    :param task: id of an environment
    :return: where its class is
    """
    return str(gym.spec(task).entry_point)


def measure_random(task: str, n_episodes: int = N_EPISODES, seed: int = 0) -> tuple[float, float]:
    """
    :param task: id of an environment
    :param n_episodes: how many
    :param seed: of environment and actions
    :return: mean return of uniformly random actions, and its standard error
    """
    env = make(task)
    env.action_space.seed(seed)
    returns = []
    for episode in range(n_episodes):
        env.reset(seed=seed if episode == 0 else None)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns)), float(np.std(returns, ddof=1) / np.sqrt(n_episodes))

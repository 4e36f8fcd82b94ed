"""From a variant and a task to the hyperparameters of a run, as one of RL Zoo's files would hold them."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sb3_trustregion.benchmark.mixtures import ENVIRONMENT
from sb3_trustregion.benchmark.variants import Variant
from sb3_trustregion.zoo.registration import ALGORITHMS, hyperparameters_path

# Of RL Zoo's own fallback entry, too.
FALLBACK_TIMESTEPS = 1_000_000


def resolve(variant: Variant, task: str, n_timesteps: int, environment: dict[str, Any]) -> dict[str, Any] | None:
    """
    :param variant: the competitor
    :param task: id of the environment
    :param n_timesteps: length of the run
    :param environment: what everyone shares on a task: number of environments, normalisation, wrappers
    :return: hyperparameters; None where the variant takes the task's own entry and the file has none
    """
    if variant.per_task:
        entry = task_entry(variant.config, task)
        if entry is None:
            return None
        # A tuned entry says how it was tuned, but may leave the number of environments open; what the task is, the grid
        # says.
        shared = {name: environment[name] for name in ENVIRONMENT if name in environment}
        resolved = {"n_envs": environment.get("n_envs", 1), **entry, **shared}
    else:
        resolved = {**_entries(variant.config)["default"], **environment}
    return resolved | variant.hyperparameters | {"n_timesteps": n_timesteps}


def task_entry(config: str, task: str) -> dict[str, Any] | None:
    """
    :param config: name of a hyperparameter file
    :param task: id of an environment
    :return: its entry, or that of the ``-v4`` of a ``-v5``, which RL Zoo's files lack; None where there is none
    """
    entries = _entries(config)
    entry = entries.get(task)
    if entry is None and task.endswith("-v5"):
        entry = entries.get(f"{task.removesuffix('-v5')}-v4")
    return None if entry is None else dict(entry)


def usual_timesteps(task: str) -> int:
    """
    :param task: id of an environment
    :return: the smaller of RL Zoo's budgets for PPO and TRPO
    """
    entries = [task_entry(config, task) or {} for config in ("ppo", "trpo")]
    return int(min(entry.get("n_timesteps", FALLBACK_TIMESTEPS) for entry in entries))


def nearest_rollouts(n_timesteps: int, rollout: int) -> int:
    """
    Training goes by whole rollouts, and RL Zoo rounds up: up to one rollout more for some than for others.

    :param n_timesteps: wanted length of a run
    :param rollout: steps of one rollout, over all environments
    :return: the nearest whole number of rollouts, at least one, in steps
    """
    return max(round(n_timesteps / rollout), 1) * rollout


@cache
def _entries(config: str) -> dict[str, Any]:
    path = hyperparameters_path(config) if config in ALGORITHMS else _zoo_folder() / f"{config}.yml"
    entries: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return entries


def _zoo_folder() -> Path:
    """Found without importing RL Zoo, which takes seconds."""
    spec = importlib.util.find_spec("rl_zoo3")
    if spec is None or spec.origin is None:
        raise ValueError("RL Zoo is not installed")
    folder = Path(spec.origin).parent
    return folder / "hyperparams" if (folder / "hyperparams").is_dir() else folder.parent / "hyperparams"

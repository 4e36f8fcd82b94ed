"""Finds the hyperparameters of a run by its variant and task, as one of RL Zoo's files would hold them."""

import importlib.util
import pydoc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sb3_trustregion import ALGORITHMS
from sb3_trustregion.benchmark.mixtures import ENVIRONMENT, SETTINGS
from sb3_trustregion.benchmark.variants import OURS, SENSITIVITY, VARIANTS, Variant, find_variant
from sb3_trustregion.common.validation import argument_names
from sb3_trustregion.zoo.registration import hyperparameters_path

# Of RL Zoo's own fallback entry, too.
FALLBACK_TIMESTEPS = 1_000_000
# What RL Zoo takes out of an entry before it makes the model, and arguments of the model that are not a variant's.
OF_THE_ZOO = {"n_timesteps", "callback", *SETTINGS, *ENVIRONMENT}
OF_THE_RUN = {"n_timesteps", "env", "seed", "verbose", "device", "tensorboard_log", "_init_setup_model"}


def resolve(variant: Variant, task: str, n_timesteps: int, environment: dict[str, Any]) -> dict[str, Any] | None:
    """
    Hyperparameters of a run, with what everyone shares on a task: wrappers, and where a variant does not take the
    task's own entry normalisation and number of environments too. None where it does and the file has none.
    """
    if variant.per_task:
        entry = task_entry(variant.config, task)
        if entry is None:
            return None
        # A tuned entry may leave the number of environments open; what the task is, the grid says.
        shared = {name: environment[name] for name in ENVIRONMENT if name in environment}
        resolved = {"n_envs": environment.get("n_envs", 1), **entry, **shared}
    else:
        default = _entries(variant.config)["default"]
        # Number of environments and steps of each belong together.
        resolved = {**default, **environment, **({"n_envs": default["n_envs"]} if "n_envs" in default else {})}
    return resolved | variant.hyperparameters | {"n_timesteps": n_timesteps}


def task_entry(config: str, task: str) -> dict[str, Any] | None:
    """A task's entry in a hyperparameter file; for a ``-v5``, which RL Zoo's files lack, that of the ``-v4``."""
    entries = _entries(config)
    entry = entries.get(task)
    if entry is None and task.endswith("-v5"):
        entry = entries.get(f"{task.removesuffix('-v5')}-v4")
    return None if entry is None else dict(entry)


def usual_timesteps(task: str) -> int:
    """The smaller of RL Zoo's budgets for PPO and TRPO on a task."""
    entries = [task_entry(config, task) or {} for config in ("ppo", "trpo")]
    return int(min(entry.get("n_timesteps", FALLBACK_TIMESTEPS) for entry in entries))


@cache
def _entries(config: str) -> dict[str, Any]:
    # RL Zoo's are found without importing it, which takes seconds.
    zoo: Any = importlib.util.find_spec("rl_zoo3")
    path = hyperparameters_path(config, None if config in ALGORITHMS else Path(zoo.origin).parent)
    entries: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return entries


def algorithms() -> dict[str, type[Any]]:
    """RL Zoo's table of algorithms with ours and the benchmark's baseline; takes seconds the first time."""
    from rl_zoo3.utils import ALGOS

    from sb3_trustregion.benchmark.run.baselines import KLAdaptivePPO
    from sb3_trustregion.zoo import register

    register()
    ALGOS["ppo_kl_adaptive"] = KLAdaptivePPO
    return ALGOS


def derive_variant(name: str, definition: Any) -> Variant:
    """The variant that a grid file defines by ``base``, a variant's name, and ``hyperparameters``, what differs."""
    if not isinstance(definition, dict) or set(definition) - {"base", "hyperparameters", "label"}:
        raise ValueError(f"variant {name!r} must be defined by base, hyperparameters and label, got {definition!r}")
    if name in VARIANTS or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"variant's name must be new, of letters, digits, '-', '_' and '.', got {name!r}")
    base = find_variant(str(definition.get("base", "")))
    changes = definition.get("hyperparameters") or {}
    known = (argument_names(algorithms()[base.algorithm]) | OF_THE_ZOO) - OF_THE_RUN
    unknown = sorted(map(str, set(changes) - known)) if isinstance(changes, dict) else [repr(changes)]
    if unknown:
        raise ValueError(f"hyperparameters of {name!r} must be known to {base.algorithm}, got {', '.join(unknown)}")
    if "judge_class" in changes and pydoc.locate(str(changes["judge_class"])) is None:
        raise ValueError(f"judge_class must be a class that can be imported, got {changes['judge_class']!r}")
    return replace(
        base,
        name=name,
        label=str(definition.get("label", name)),
        hyperparameters=base.hyperparameters | changes,
        role=OURS if base.role == SENSITIVITY else base.role,
        radius_factor=1.0,
    )

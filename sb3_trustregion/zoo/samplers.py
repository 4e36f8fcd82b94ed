"""Optuna's search spaces for RL Zoo: what matters for a task, and each algorithm's ``search_space``, for its steps."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sb3_trustregion

if TYPE_CHECKING:
    import optuna

Sampler = Callable[["optuna.Trial", int, int, dict[str, Any]], dict[str, Any]]

# Samples that an update learns from, as powers of two, over all environments.
SAMPLES_POW = 10, 12
CRITICS = {"small": [64, 64], "medium": [256, 256]}
ACTOR = [64, 64]


def sample(
    algorithm: str, trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Constructor arguments of any of our algorithms, by RL Zoo's name, as a trial suggests them.

    ``n_actions`` are action dimensions, 0 unless the space is a Box; ``additional_args`` are of other algorithms.
    """
    trial.suggest_float("one_minus_gamma", 0.0001, 0.1, log=True)
    trial.suggest_float("one_minus_gae_lambda", 0.005, 0.2, log=True)
    of_each = round(math.log2(n_envs))
    trial.suggest_int("n_steps_pow", *(max(power - of_each, 3) for power in SAMPLES_POW))
    trial.suggest_categorical("critic", list(CRITICS))
    if n_actions:
        trial.suggest_float("log_std_init", -2.0, 0.5)
    for name, (low, high) in _class_of(algorithm).search_space.items():
        trial.suggest_float(name, low, high, log=True)
    return convert(algorithm, trial.params)


def convert(algorithm: str, params: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from what a trial has suggested, by name, which may be stored and read again."""
    hyperparams = {
        "gamma": 1.0 - params["one_minus_gamma"],
        "gae_lambda": 1.0 - params["one_minus_gae_lambda"],
        "n_steps": 2 ** params["n_steps_pow"],
        "policy_kwargs": {"net_arch": {"pi": ACTOR, "vf": CRITICS[params["critic"]]}}
        | ({"log_std_init": params["log_std_init"]} if "log_std_init" in params else {}),
    }
    hyperparams |= {name: params[name] for name in _class_of(algorithm).search_space}
    start = getattr(_class_of(algorithm), "_radius_argument", "")
    # A radius that was found is where it is to stay, not only to start from.
    return hyperparams | ({"radius_prior": hyperparams[start]} if start else {})


def _class_of(algorithm: str) -> Any:
    return getattr(sb3_trustregion, sb3_trustregion.ALGORITHMS[algorithm])


SAMPLERS: dict[str, Sampler] = {name: functools.partial(sample, name) for name in sb3_trustregion.ALGORITHMS}
CONVERTERS = {name: functools.partial(convert, name) for name in sb3_trustregion.ALGORITHMS}

"""
Optuna search spaces: RL Zoo's own for stock TRPO or PPO, without what an algorithm of ours does not take, and with what
it alone declares in its ``search_space``. So tuning ours and tuning the baselines is the same work.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params, sample_trpo_params
from sb3_contrib import TRPO
from stable_baselines3 import PPO

import sb3_trustregion

if TYPE_CHECKING:
    import optuna

Sampler = Callable[["optuna.Trial", int, int, dict[str, Any]], dict[str, Any]]


def sample(
    algorithm: str, trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for the hyperparameters of any of our algorithms.

    :param algorithm: RL Zoo's name of the algorithm
    :param trial: Optuna trial
    :param n_actions: Number of action dimensions (0 unless the action space is a Box)
    :param n_envs: Number of environments
    :param additional_args: Passed on
    :return: Constructor arguments
    """
    ours = getattr(sb3_trustregion, sb3_trustregion.ALGORITHMS[algorithm])
    accepted = _arguments(ours)
    stock, sample_stock = (PPO, sample_ppo_params) if "n_epochs" in accepted else (TRPO, sample_trpo_params)
    lacking = _arguments(stock) - accepted
    sampled = sample_stock(_WithoutSome(trial, lacking), n_actions, n_envs, additional_args)  # type: ignore[arg-type]
    hyperparams = {name: value for name, value in sampled.items() if name not in lacking}
    for name, (low, high) in getattr(ours, "search_space", {}).items():
        hyperparams[name] = trial.suggest_float(name, low, high, log=True)
    # RL Zoo builds the model where an error ends the study, not the trial: mini-batches stay within the rollout.
    hyperparams["batch_size"] = min(hyperparams["batch_size"], hyperparams["n_steps"] * n_envs)
    return _with_prior(ours, hyperparams)


def convert(algorithm: str, params: dict[str, Any]) -> dict[str, Any]:
    """
    The way back from a stored trial.

    :param algorithm: RL Zoo's name of the algorithm
    :param params: what the trial has suggested
    :return: Constructor arguments
    """
    ours = getattr(sb3_trustregion, sb3_trustregion.ALGORITHMS[algorithm])
    return _with_prior(ours, convert_onpolicy_params(params))


def _with_prior(ours: type[Any], hyperparams: dict[str, Any]) -> dict[str, Any]:
    """A radius that was found is where it is to stay, not only to start from."""
    start = getattr(ours, "_radius_argument", "")
    return hyperparams | ({"radius_prior": hyperparams[start]} if start else {})


SAMPLERS: dict[str, Sampler] = {name: functools.partial(sample, name) for name in sb3_trustregion.ALGORITHMS}
CONVERTERS = {name: functools.partial(convert, name) for name in sb3_trustregion.ALGORITHMS}


class _WithoutSome:
    """
    A trial that suggests nothing for some parameters, so that a stored trial does not hold them either.

    :param trial: Optuna trial
    :param lacking: Names of the parameters
    """

    def __init__(self, trial: "optuna.Trial", lacking: set[str]) -> None:
        self.trial = trial
        self.lacking = lacking

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.trial, name)
        if not name.startswith("suggest_"):
            return method
        return lambda parameter, *args, **kwargs: (
            None if parameter in self.lacking else method(parameter, *args, **kwargs)
        )


def _arguments(algorithm: type[Any]) -> set[str]:
    return set(inspect.signature(algorithm).parameters)

"""
Optuna search spaces. Parameters that stock TRPO and PPO have too get the ranges that RL Zoo gives them
there, so that tuning ours and tuning the baselines is the same work.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params

if TYPE_CHECKING:
    import optuna


def sample_npg_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for NPG hyperparameters.

    :param trial: Optuna trial
    :param n_actions: Number of action dimensions (0 unless the action space is a Box)
    :param n_envs: Number of environments
    :param additional_args: Not used
    :return: Constructor arguments
    """
    suggested = _suggest_natural_gradient_params(trial)
    # A step of this size moves the policy by about step²/2 · (share of the advantage it explains) nats.
    suggested["actor_step_size"] = trial.suggest_float("actor_step_size", 0.03, 3.0, log=True)
    return _convert(suggested, n_envs)


def sample_adaptive_trpo_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for AdaptiveTRPO hyperparameters.

    :param trial: Optuna trial
    :param n_actions: Number of action dimensions (0 unless the action space is a Box)
    :param n_envs: Number of environments
    :param additional_args: Not used
    :return: Constructor arguments
    """
    suggested = _suggest_natural_gradient_params(trial)
    # RL Zoo's range for TRPO is per action dimension, ours is joint.
    n_dimensions = max(n_actions, 1)
    suggested["target_kl"] = trial.suggest_float("target_kl", 0.001 * n_dimensions, 0.1 * n_dimensions, log=True)
    suggested["n_reused_rollouts"] = trial.suggest_categorical("n_reused_rollouts", [1, 2, 4, 8])
    return _convert(suggested, n_envs)


def sample_adaptive_ppo_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for AdaptivePPO hyperparameters: RL Zoo's own space for PPO, whose clip range is where ours starts.

    :param trial: Optuna trial
    :param n_actions: Number of action dimensions (0 unless the action space is a Box)
    :param n_envs: Number of environments
    :param additional_args: Passed on
    :return: Constructor arguments
    """
    return _cap_batch_size(sample_ppo_params(trial, n_actions, n_envs, additional_args), n_envs)


Sampler = Callable[["optuna.Trial", int, int, dict[str, Any]], dict[str, Any]]

SAMPLERS: dict[str, Sampler] = {
    "npg": sample_npg_params,
    "adaptive_trpo": sample_adaptive_trpo_params,
    "adaptive_ppo": sample_adaptive_ppo_params,
}


def _suggest_natural_gradient_params(trial: "optuna.Trial") -> dict[str, Any]:
    """
    Suggest what NPG and AdaptiveTRPO share, over RL Zoo's ranges for TRPO.

    :param trial: Optuna trial
    :return: Suggested values, as ``convert_onpolicy_params`` of RL Zoo takes them
    """
    suggested: dict[str, Any] = {
        "batch_size_pow": trial.suggest_int("batch_size_pow", 2, 10),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 12),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.1, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 0.002, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    # the true values, for the report
    trial.set_user_attr("gamma", 1 - suggested["one_minus_gamma"])
    trial.set_user_attr("n_steps", 2 ** suggested["n_steps_pow"])
    trial.set_user_attr("batch_size", 2 ** suggested["batch_size_pow"])
    return suggested


def _convert(suggested: dict[str, Any], n_envs: int) -> dict[str, Any]:
    """
    Turn suggested values into constructor arguments.

    :param suggested: Suggested values
    :param n_envs: Number of environments
    :return: Constructor arguments
    """
    return _cap_batch_size(convert_onpolicy_params(suggested), n_envs)


def _cap_batch_size(hyperparams: dict[str, Any], n_envs: int) -> dict[str, Any]:
    """
    Keep mini-batches within the rollout: RL Zoo builds the model where an error ends the study, not the trial.

    :param hyperparams: Constructor arguments
    :param n_envs: Number of environments
    :return: The same with a batch size no larger than the rollout
    """
    rollout_size = hyperparams["n_steps"] * n_envs
    return {**hyperparams, "batch_size": min(hyperparams["batch_size"], rollout_size)}

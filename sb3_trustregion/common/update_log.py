"""The one place where it is decided what an update is logged as."""

import math

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance

from sb3_trustregion.common.judge import Verdict
from sb3_trustregion.core.conjugate_gradient import CGSolution
from sb3_trustregion.core.line_search import Step, StepStatus
from sb3_trustregion.core.surrogate import Evaluation, Surrogate


def log_update(model: OnPolicyAlgorithm, status: StepStatus, verdict: Verdict | None = None, **values: float) -> None:
    """Log under ``train/`` what became of a step, the verdict on the one before, and other values: the finite ones."""
    logged: dict[str, float] = {
        "step_status": status.value,
        "n_invalid": model.n_invalid,  # type: ignore[attr-defined]
        "n_faulty_steps": model.n_faulty_steps,  # type: ignore[attr-defined]
        **(of_verdict(verdict) if verdict is not None else {}),
        **values,
    }
    for name, value in logged.items():
        if math.isfinite(value):
            model.logger.record(f"train/{name}", value)
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")


def of_verdict(verdict: Verdict) -> dict[str, float]:
    """Values of a verdict: radius, counters, and what was measured of the step before."""
    state, measured = verdict.state, verdict.measured
    values = {"radius": state.radius, "n_rollbacks": state.n_rollbacks, "n_feedback_decisions": state.n_feedback}
    if measured is None:
        return values
    return values | {
        "actual_improvement": measured.actual,
        "improvement_stderr": measured.stderr,
        "performance_difference": measured.whole.mean,
        "difference_stderr": measured.whole.stderr,
        "predicted_improvement": measured.predicted,
        "rho": measured.ratio,
        "pooled_rho": state.pooled_ratio,
        "pooled_rho_stderr": state.pooled_ratio_stderr,
        "pooled_reliability": state.pooled_reliability,
    }


def of_evaluation(surrogate: Surrogate, evaluation: Evaluation, linear_gain: float) -> dict[str, float]:
    """Values of the model where a step ends: gain in reward units, KL in nats per action dimension."""
    return {
        "policy_objective": evaluation.gain,
        "kl_divergence": evaluation.kl / surrogate.n_dimensions,
        "same_batch_ratio": evaluation.gain / linear_gain if linear_gain > 0.0 else math.nan,
        "n_samples": surrogate.batch.n_samples,
    }


def of_step(surrogate: Surrogate, step: Step, solution: CGSolution) -> dict[str, float]:
    """Values of ``of_evaluation`` at a step, and what direction and search took."""
    return of_evaluation(surrogate, step.evaluation, step.linear_gain) | {
        "line_search_steps": step.n_backtracks,
        "cg_steps": solution.n_steps,
        "cg_residual": float(solution.residual),
        # What stock TRPO's users look for, by its names.
        "kl_divergence_loss": step.evaluation.kl / surrogate.n_dimensions,
        "is_line_search_success": float(step.status is StepStatus.ACCEPTED),
    }


def of_no_update(model: OnPolicyAlgorithm) -> dict[str, float]:
    """Values of ``of_policy``, and the critic's loss, where nothing is fitted: callbacks look for what stock logs."""
    errors = np.ravel(model.rollout_buffer.returns) - np.ravel(model.rollout_buffer.values)
    return {"value_loss": float(np.mean(np.square(errors))), **of_policy(model)}


def of_policy(model: OnPolicyAlgorithm) -> dict[str, float]:
    """Values of the policy: how well its critic explains returns, and the mean standard deviation of a Gaussian."""
    returns = np.asarray(model.rollout_buffer.returns).ravel()
    values = np.asarray(model.rollout_buffer.values).ravel()
    finite = np.isfinite(returns)
    explained = float(explained_variance(values[finite], returns[finite])) if finite.any() else math.nan
    result = {"explained_variance": explained}
    if hasattr(model.policy, "log_std"):
        result["std"] = float(th.exp(model.policy.log_std.detach()).mean())
    return result

"""Steps 2 and 3 of the trust-region algorithm: scale a direction to the radius, backtrack, name what came of it."""

import math
from enum import Enum
from typing import NamedTuple

import torch as th

from sb3_trustregion.core.conjugate_gradient import CGSolution
from sb3_trustregion.core.surrogate import HERE, Evaluation, Surrogate

# xᵀFx comes by subtraction of the damping: below this share of the damped curvature it is rounding.
CURVATURE_FLOOR = 1e-2
# x is fitted to the states of the sub-sample, where it is short: over all states it goes 0 to 25 % further (KL of the
# first trial point over the radius on Hopper, HalfCheetah and CartPole), which would cost nearly every step a second.
SUB_SAMPLED_SHARE = 0.8
# A policy is random where its KL to itself, which should be zero, is at least such a share of the radius.
RANDOM_SHARE = 0.01
# Gains of a policy that has no other action left are rounding: below this share of the mean |Â|.
ROUNDING = 1e-7
VANISHING = "the gradient vanishes or is not finite"


class StepStatus(Enum):
    """What became of a step. Invalid is not rejected: it was never taken, so nothing was measured."""

    ACCEPTED = 1
    REJECTED = 0
    INVALID = -1


class Step(NamedTuple):
    """A step from θ_k, or the reason why there is none."""

    status: StepStatus  # accepted or invalid; rejected is only known after the next rollout
    parameters: th.Tensor  # (P,), θ_{k+1}; θ_k where invalid
    evaluation: Evaluation  # model at ``parameters``
    linear_gain: float  # gᵀs, gain of the linearised model, reward units
    n_backtracks: int = 0  # trial points beyond the first
    reason: str = ""  # empty where accepted
    radius_at_fault: bool = False  # whether a smaller radius could have made the step valid


def invalid_step(surrogate: Surrogate, reason: str, n_backtracks: int = 0, radius_at_fault: bool = False) -> Step:
    """A step that stays at θ_k, and why; ``n_backtracks`` trial points were spent."""
    return Step(StepStatus.INVALID, surrogate.origin, HERE, 0.0, n_backtracks, reason, radius_at_fault)


def vanishes(solution: CGSolution) -> bool:
    """Whether a solution is no direction to go in."""
    return not bool(th.isfinite(solution.x).all()) or not float(solution.damped_curvature) > 0.0


def step_size(solution: CGSolution, surrogate: Surrogate, radius: float, shortest: float = 0.0) -> float:
    """
    How far along x the quadratic model of the KL reaches the radius: α = √(2δ/xᵀFx) (Schulman et al. 2015, appendix C).

    With a Fisher matrix over at most half of the states only ``SUB_SAMPLED_SHARE`` of δ is aimed at, and also where
    the last trial point, ``shortest`` of the first, would be further. NaN where the curvature is not usable.
    """
    damped = float(solution.damped_curvature)
    damping = surrogate.fisher_product.damping * float(solution.x.dot(solution.x))
    curvature = max(damped - damping, CURVATURE_FLOOR * damped)
    if shortest**2 > SUB_SAMPLED_SHARE or 2 * surrogate.fisher_product.n_states <= surrogate.batch.n_samples:
        radius *= SUB_SAMPLED_SHARE
    if not math.isfinite(curvature) or curvature <= 0.0:
        return math.nan
    return math.sqrt(2.0 * radius / curvature)


def fixed_step(surrogate: Surrogate, solution: CGSolution, alpha: float) -> Step:
    """The step to θ_k + α·x (Kakade 2001); invalid where the direction vanishes or the policy would not be finite."""
    if vanishes(solution):
        return invalid_step(surrogate, VANISHING)
    parameters = surrogate.origin + alpha * solution.x
    evaluation = surrogate.at(parameters)
    if not evaluation.is_finite:
        return invalid_step(surrogate, "the step leaves the finite numbers")
    return Step(StepStatus.ACCEPTED, parameters, evaluation, alpha * float(surrogate.gradient.dot(solution.x)))


def backtrack(
    surrogate: Surrogate, solution: CGSolution, radius: float, shrinking_factor: float, max_iter: int
) -> Step:
    """Scale x to the radius δ (joint nats), shrink it until KL ≤ δ and L improves; invalid after ``max_iter`` tries."""
    if vanishes(solution):
        return invalid_step(surrogate, VANISHING)
    alpha = step_size(solution, surrogate, radius, shrinking_factor ** (max_iter - 1))
    if not alpha > 0.0:
        return invalid_step(surrogate, "the curvature is not finite")
    slope, largest_gain = float(surrogate.gradient.dot(solution.x)), 0.0
    rounding = ROUNDING * float(surrogate.batch.advantages.abs().mean())
    for trial in range(max_iter):
        parameters = surrogate.origin + alpha * solution.x
        evaluation = surrogate.at(parameters)
        largest_gain = max(largest_gain, abs(evaluation.gain)) if evaluation.is_finite else math.inf
        if evaluation.is_finite and evaluation.kl <= radius and evaluation.gain > rounding:
            return Step(StepStatus.ACCEPTED, parameters, evaluation, alpha * slope, trial)
        alpha *= shrinking_factor
    # Of a policy that is random in evaluation too, with a KL to itself, no smaller radius makes an improvement.
    is_random = surrogate.at(surrogate.origin).kl > RANDOM_SHARE * radius
    at_fault = not is_random and largest_gain > rounding
    return invalid_step(surrogate, "the line search found no improvement within the radius", max_iter, at_fault)


def reliability(surrogate: Surrogate, solution: CGSolution, noise_solution: CGSolution) -> float:
    """
    Which share of the gain holds on data that the step was not fitted to.

    gᵀF⁻¹g holds the noise of g once more than the truth: E[gᵀF⁻¹g] = μᵀF⁻¹μ + E[eᵀF⁻¹e]. The gradient with signs by
    blocks, v, has the noise and not the mean, so that gᵀF⁻¹g - vᵀF⁻¹v estimates μᵀF⁻¹μ. For two halves it is cross-
    fitting exactly: the direction of one half by the gradient of the other. ``solution`` is F⁻¹g, ``noise_solution``
    F⁻¹v. At most 1; negative where the noise estimate exceeds the signal.
    """
    signal = float(surrogate.gradient.dot(solution.x))
    noise = float(surrogate.noise_gradient.dot(noise_solution.x))
    return 1.0 - noise / signal if signal > 0.0 else 0.0

"""Steps 4 and 5 for an algorithm: remember what a step promised, measure what it brought, undo it if it must be."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_device

from sb3_trustregion.core.improvement import (
    Estimate,
    Improvement,
    difference,
    episode_returns,
    per_step,
    performance,
)
from sb3_trustregion.core.radius import RULES, RadiusRule, TrustRegionState, update_radius
from sb3_trustregion.core.rollouts import Normalizer, Rollout, appraise
from sb3_trustregion.recording import LearningData, RecordingAlgorithm
from sb3_trustregion.stock import read_parameters
from sb3_trustregion.validation import check_choice, check_integer, check_number

ESTIMATORS = ("rollout", "episodes", "surrogate")
# A roll-back helped where it brought back at least this share of what had been lost.
REGAINED = 0.5
# After roll-backs that did not help a trend is allowed for over 2, 4, then so many steps.
LONGEST_TREND = 8


class Promise(NamedTuple):
    """
    What a step promised.

    :param predicted: cross-fitted improvement per environment step with its standard error, reward units
    :param length: √(2·KL), √nats
    :param used_radius: whether the step went as far as the radius let it
    :param gain: of the surrogate on the batch that the step was fitted to, reward units
    :param linear_gain: gᵀs, of its linearisation, reward units
    """

    predicted: Estimate
    length: float
    used_radius: bool
    gain: float
    linear_gain: float


class PendingStep(NamedTuple):
    """
    A step taken and not yet judged.

    :param policy: state_dict of θ_k and of the critic V as it stood when rollout k was collected
    :param optimizer: state_dict of the optimiser there; None where it does not move the actor
    :param normalizer: statistics at the end of rollout k, the units in which both rollouts are compared
    :param baseline: of rollout k, by the estimator in use
    :param promise: what the step promised
    """

    policy: dict[str, th.Tensor]
    optimizer: dict[str, Any] | None
    normalizer: Normalizer
    baseline: Estimate
    promise: Promise

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers by name, for a checkpoint."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "normalizer": self.normalizer.state_dict(),
            "baseline": list(self.baseline),
            "predicted": list(self.promise.predicted),
            "promise": list(self.promise[1:]),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "PendingStep":
        """
        :param state: what ``state_dict`` gave
        :return: the pending step
        """
        promise = Promise(Estimate(*state["predicted"]), *state["promise"])
        normalizer = Normalizer.from_state_dict(state["normalizer"])
        return cls(state["policy"], state["optimizer"], normalizer, Estimate(*state["baseline"]), promise)


class Rejected(NamedTuple):
    """
    A step that was undone, until the rollout of the restored policy shows whether that helped.

    :param step: the step
    :param performance: of the policy that it led to, by the estimator in use
    :param region: before the step was judged
    """

    step: PendingStep
    performance: Estimate
    region: TrustRegionState

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers by name, for a checkpoint."""
        return {
            "step": self.step.state_dict(),
            "performance": list(self.performance),
            "region": self.region.as_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Rejected":
        """
        :param state: what ``state_dict`` gave
        :return: the rejected step
        """
        region = TrustRegionState.from_dict(state["region"])
        return cls(PendingStep.from_state_dict(state["step"]), Estimate(*state["performance"]), region)


class TrustRegionMemory:
    """
    All that steps 4 and 5 need to go on after a checkpoint as if never interrupted.

    Looks like a module to SB3's ``save`` and ``load``, which keep it as tensors and plain numbers.

    :param region: radius, pooled sums, counters
    """

    def __init__(self, region: TrustRegionState) -> None:
        self.region = region
        self.pending: PendingStep | None = None
        self.rejected: Rejected | None = None
        self.rollouts: list[Rollout] = []
        # Roll-backs in a row that did not help; what the environment itself loses with each rollout, and for how many
        # steps to come that is allowed for.
        self.n_vain = 0
        self.trend = Estimate(0.0, 0.0)
        self.trend_left = 0

    def drop_steps(self) -> None:
        """Forget what can no longer be judged: the next rollout is of other environments or parameters."""
        self.pending = self.rejected = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers by name, for a checkpoint."""
        return {
            "region": self.region.as_dict(),
            "pending": None if self.pending is None else self.pending.state_dict(),
            "rejected": None if self.rejected is None else self.rejected.state_dict(),
            "rollouts": [rollout.state_dict() for rollout in self.rollouts],
            "trend": [self.n_vain, *self.trend, self.trend_left],
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """
        :param state: what ``state_dict`` gave
        :param strict: as in ``torch.nn.Module``; what is there must be well-formed either way
        """
        # Files of earlier versions know of no rejected steps.
        pending, rejected = state["pending"], state.get("rejected")
        self.region = TrustRegionState.from_dict(state["region"])
        self.pending = None if pending is None else PendingStep.from_state_dict(pending)
        self.rejected = None if rejected is None else Rejected.from_state_dict(rejected)
        self.rollouts = [Rollout.from_state_dict(rollout) for rollout in state["rollouts"]]
        self.n_vain, *trend, self.trend_left = state.get("trend", (0, 0.0, 0.0, 0))
        self.trend = Estimate(*trend)


class MeasuringAlgorithm(RecordingAlgorithm):
    """An algorithm whose steps are judged by the rollout that follows them."""

    radius_rule: str
    radius_window: int
    radius_bounds: tuple[float, float]
    rollback_z: float | None
    improvement_estimator: str
    memory: TrustRegionMemory
    rule: RadiusRule
    # How the radius scales with the length of a step, see ``RadiusRule.exponent``.
    _radius_exponent: float = 2.0

    @property
    def region(self) -> TrustRegionState:
        """Radius, pooled sums and counters of the trust region."""
        return self.memory.region

    @region.setter
    def region(self, region: TrustRegionState) -> None:
        self.memory.region = region

    def _initial_radius(self) -> float:
        raise NotImplementedError

    def _validate(self) -> None:
        super()._validate()
        check_choice("improvement_estimator", self.improvement_estimator, ESTIMATORS)
        check_choice("radius_rule", self.radius_rule, tuple(RULES))
        check_integer("radius_window", self.radius_window, at_least=1)
        if self.rollback_z is not None:
            check_number("rollback_z", self.rollback_z, above=0.0)
        try:
            lower, upper = (float(bound) for bound in self.radius_bounds)
        except (TypeError, ValueError) as error:
            raise ValueError(f"radius_bounds must be two numbers, got {self.radius_bounds!r}") from error
        self.rule = RadiusRule(
            kind=self.radius_rule,
            window=int(self.radius_window),
            minimum=lower,
            maximum=upper,
            rollback_z=self.rollback_z,
            exponent=self._radius_exponent,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.memory = TrustRegionMemory(TrustRegionState(radius=self._initial_radius()))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "memory", "rule"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "memory"], tensors

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters as in SB3; those of stock PPO or TRPO, which have no trust region to remember, too.

        A step pending under other parameters can no longer be judged and is dropped.

        :param load_path_or_dict: a file, or a dictionary of state_dicts
        :param exact_match: whether all of a module's parameters must be given
        :param device: device on which the code should run
        """
        self.memory.drop_steps()
        is_file = not isinstance(load_path_or_dict, dict)
        parameters = read_parameters(load_path_or_dict, get_device(device)) if is_file else load_path_or_dict
        if "memory" not in parameters:
            parameters = {**parameters, "memory": self.memory.state_dict()}
        super().set_parameters(parameters, exact_match, device)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment as in SB3; a step pending in another environment is dropped, not misjudged.

        :param env: the environment
        :param force_reset: whether it is reset before training
        """
        super().set_env(env, force_reset)
        self.memory.drop_steps()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            # The environments are reset: the next rollout differs in its episodes' phase, not by the policy alone.
            self.memory.drop_steps()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _measure_improvement(self, rollout: Rollout) -> Improvement | None:
        """
        Step 4: what the pending step brought, by the rollout that followed it.

        :param rollout: collected by the policy after the step
        :return: actual and predicted improvement; None where no step is pending
        """
        self._review_roll_back(rollout)
        pending, self.memory.pending = self.memory.pending, None
        if pending is None:
            return None
        self._judged = Rejected(pending, self._performance(rollout, pending), self.region)
        actual = difference(self._judged.performance, pending.baseline)
        if self.memory.trend_left > 0:
            self.memory.trend_left -= 1
            actual = difference(actual, self.memory.trend)
        if self.improvement_estimator == "episodes":
            actual = per_step(actual, rollout.episode_lengths)
        promise = pending.promise
        return Improvement(*actual, *promise.predicted, promise.length, promise.used_radius, promise.gain)

    def _performance(self, rollout: Rollout, pending: PendingStep) -> Estimate:
        """Mean TD residual of the rollout by the pending step's critic, or mean episode return."""
        if self.improvement_estimator == "episodes":
            return episode_returns(rollout.episode_returns / pending.normalizer.reward_scale)
        value_of = self._value_function(pending.policy)
        residuals = appraise(rollout, value_of, pending.normalizer, self.gamma).residuals
        return performance(residuals, rollout.dones)

    def _baseline(self, newest: LearningData, normalizer: Normalizer) -> Estimate:
        """The same for the rollout of the policy before the step, by the same critic in the same units."""
        if self.improvement_estimator == "episodes":
            return episode_returns(newest.rollout.episode_returns / normalizer.reward_scale)
        return performance(newest.residuals, newest.rollout.dones)

    def _judge(self, measured: Improvement | None) -> None:
        """
        Step 5: accept or roll back, grow or shrink the radius.

        :param measured: what the last step promised and brought
        """
        self.region = update_radius(self.region, measured, self.rule)
        if self.region.rolled_back:
            self.memory.rejected = self._judged
            self._roll_back(self._judged.step)

    def _review_roll_back(self, rollout: Rollout) -> None:
        """
        See whether the last roll-back brought back what had been lost.

        If not, it was the environment that changed for the worse, not the policy, and to reject step after step would
        end all learning. Then the radius is again what it was, and what the environment goes on to lose is not held
        against the steps to come.

        :param rollout: collected by the restored policy
        """
        memory = self.memory
        rejected, memory.rejected = memory.rejected, None
        if rejected is None:
            return
        lost = rejected.step.baseline.mean - rejected.performance.mean
        regained = difference(self._performance(rollout, rejected.step), rejected.performance)
        if not regained.mean < REGAINED * lost:  # NaN tells nothing
            memory.n_vain = 0
            return
        memory.n_vain += 1
        memory.trend = regained._replace(mean=min(regained.mean, 0.0))
        memory.trend_left = min(2**memory.n_vain, LONGEST_TREND)
        now = self.region
        self.region = replace(rejected.region, n_judged=now.n_judged, n_rollbacks=now.n_rollbacks)

    def _roll_back(self, pending: PendingStep) -> None:
        """
        :param pending: the step to undo
        """
        raise NotImplementedError

    def _await_judgement(
        self,
        before: dict[str, th.Tensor],
        optimizer: dict[str, Any] | None,
        newest: LearningData,
        normalizer: Normalizer,
        promise: Promise,
    ) -> None:
        """
        Remember a step until the next rollout; by the surrogate it is judged at once.

        :param before: policy before the step and before the critic's fit
        :param optimizer: state of the optimiser before the step; None where it does not move the actor
        :param newest: rollout k
        :param normalizer: its units
        :param promise: what the step promised
        """
        if self.improvement_estimator == "surrogate":
            linear = promise.linear_gain
            measured = Improvement(promise.gain, 0.0, linear, 0.0, promise.length, promise.used_radius, linear)
            self.region = update_radius(self.region, measured, self.rule)
            self._record_judgement(measured)
            return
        baseline = self._baseline(newest, normalizer)
        self.memory.pending = PendingStep(before, optimizer, normalizer, baseline, promise)

    def _record_judgement(self, measured: Improvement | None) -> None:
        region = self.region
        self.logger.record("train/radius", region.radius)
        self.logger.record("train/n_rollbacks", region.n_rollbacks)
        self.logger.record("train/n_feedback_decisions", region.n_feedback)
        if measured is None:
            return
        self.logger.record("train/actual_improvement", measured.actual)
        self.logger.record("train/improvement_stderr", measured.stderr)
        self.logger.record("train/predicted_improvement", measured.predicted)
        self.logger.record("train/rho", measured.ratio)
        if math.isfinite(region.pooled_ratio):
            self.logger.record("train/pooled_rho", region.pooled_ratio)
            self.logger.record("train/pooled_rho_stderr", region.pooled_ratio_stderr)
            self.logger.record("train/pooled_share", region.pooled_share)

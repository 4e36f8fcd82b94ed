"""PPO whose clip range is the radius of the trust-region algorithm."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trustregion.core.conjugate_gradient import conjugate_gradient
from sb3_trustregion.core.divergence import averaged_dimensions
from sb3_trustregion.core.improvement import Estimate
from sb3_trustregion.core.parameters import is_finite, restore, snapshot
from sb3_trustregion.core.radius import shrink_radius
from sb3_trustregion.core.search import StepStatus, reliability
from sb3_trustregion.core.surrogate import Batch, Evaluation, Surrogate, is_supported
from sb3_trustregion.measurement import MeasuringAlgorithm, PendingStep, Promise
from sb3_trustregion.recording import LearningData, centred
from sb3_trustregion.validation import check_bool, check_integer, check_number, check_schedule

# Of ε: a ratio of 1 ± ε everywhere is a step of length √(2·KL) ≈ ε.
USED_RADIUS = 0.5
# Solving for the share of noise in the gradient, as TRPO solves for its step.
CG_MAX_STEPS = 10
CG_DAMPING = 0.1
CG_RESIDUAL_TOL = 0.1
FISHER_SUB_SAMPLING_FACTOR = 8


class AdaptivePPO(MeasuringAlgorithm, PPO):
    """
    Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347) with an adaptive clip range.

    Stable-Baselines3's ``PPO``, whose ε is the radius of a trust region: after each update the improvement that the
    surrogate promised is compared with the one that the next rollout shows; the update is kept or undone (policy,
    critic and optimiser together: they are one network and one Adam), and ε grows or shrinks.

    The promise is the unclipped surrogate gain on the whole batch after the epochs, times the share of it that holds on
    data it was not fitted to. That share is the natural gradient's, gᵀF⁻¹g less its noise, at the policy before the
    update: PPO's own step has no closed form to cross-fit.

    Not to be confused with the "Adaptive-PPO" of Pb-PPO (arXiv 2312.07624), which is another method.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel)
        NOTE: n_steps * n_envs must be greater than 1 (because of the advantage normalization)
        See https://github.com/pytorch/pytorch/issues/29372
    :param batch_size: Minibatch size
    :param n_epochs: Number of epoch when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: the *initial* ε, it can be a function of the current progress remaining (from 1 to 0):
        then ε is that schedule times a factor that starts at 1 and is adapted. ``train/clip_range`` logs the product
    :param clip_range_vf: Clipping parameter for the value function,
        it can be a function of the current progress remaining (from 1 to 0).
        This is a parameter specific to the OpenAI implementation. If None is passed (default),
        no clipping will be done on the value function.
        IMPORTANT: this clipping depends on the reward scaling.
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates,
        because the clipping is not enough to prevent large update
        see issue #213 (cf https://github.com/hill-a/stable-baselines/issues/213)
        By default, there is no limit on the kl div.
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation.
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param radius_rule: ``"noise_aware"`` (default: heeds the standard error of the ratio), ``"textbook"``
        (Nocedal & Wright, algorithm 4.1, on each raw ratio) or ``"fixed"`` (the factor on ε stays 1)
    :param radius_window: over how many steps evidence is pooled, fading exponentially
    :param radius_bounds: lower and upper bound on the factor on ε
    :param rollback_z: undo an update that was worse by more than this many standard errors; None never undoes
    :param improvement_estimator: what measures the actual improvement: ``"rollout"`` (default), ``"episodes"`` or
        ``"surrogate"``, see ``AdaptiveTRPO``
    :raises ValueError: where an argument is out of range, a space or a policy not supported
    """

    # ε is a ratio, so it goes with the length of a step; a KL goes with its square.
    _radius_exponent = 1.0
    _own_arguments = ("radius_rule", "clip_range")

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        radius_rule: str = "noise_aware",
        radius_window: int = 50,
        radius_bounds: tuple[float, float] = (1e-2, 1e2),
        rollback_z: float | None = 3.0,
        improvement_estimator: str = "rollout",
    ) -> None:
        # PPO divides by one and asserts the other before anything else is asked.
        check_integer("batch_size", batch_size, at_least=2 if normalize_advantage else 1)
        check_integer("n_steps", n_steps, at_least=2 if getattr(env, "num_envs", 1) == 1 else 1)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.radius_rule = radius_rule
        self.radius_window = radius_window
        self.radius_bounds = radius_bounds
        self.rollback_z = rollback_z
        self.improvement_estimator = improvement_estimator
        if _init_setup_model:
            self._setup_model()

    def _validate(self) -> None:
        super()._validate()
        check_integer("n_epochs", self.n_epochs, at_least=1)
        check_schedule("clip_range", self.clip_range, at_least=0.0)
        if self.clip_range_vf is not None and not callable(self.clip_range_vf):
            check_number("clip_range_vf", self.clip_range_vf, above=0.0)
        check_bool("normalize_advantage", self.normalize_advantage)
        check_integer("batch_size", self.batch_size, at_least=2 if self.normalize_advantage else 1)
        check_number("ent_coef", self.ent_coef)
        check_number("vf_coef", self.vf_coef, at_least=0.0)
        check_number("max_grad_norm", self.max_grad_norm, above=0.0)
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, above=0.0)
        if not self.rule.minimum <= 1.0 <= self.rule.maximum:
            raise ValueError(f"radius_bounds must contain 1, the factor to start from, got {self.radius_bounds}")

    def _initial_radius(self) -> float:
        return 1.0

    def train(self) -> None:
        """One iteration of the trust-region algorithm, steps 4 and 5 for the update before it first; PPO is step 3."""
        rollout, normalizer = self._take_rollout(), self._snapshot_normalizer()
        measured = self._measure_improvement(rollout)  # step 4
        self._judge(measured)  # step 5
        self._record_judgement(measured)
        if self.region.rolled_back:
            return self._record_status(StepStatus.REJECTED)

        self.policy.set_training_mode(False)
        newest = self._newest(rollout, normalizer)
        batch = self._make_batch([newest])
        if batch.n_samples < 2:
            self._refuse_data(self._fault(), lasting=True)
            return self._record_status(StepStatus.INVALID)
        surrogate = self._surrogate(batch)  # step 1
        before, optimizer = snapshot(self.policy), copy.deepcopy(self.policy.optimizer.state_dict())
        self._replace_unusable_samples(newest)
        fault: ValueError | None = None
        try:
            with self._adapted_clip_range() as clip_range:
                super().train()  # steps 2-3
        except ValueError as error:  # torch.distributions refuses parameters that are not finite
            fault = error
        self.policy.set_training_mode(False)
        evaluation = surrogate.at(self.actor.flatten(self.policy))
        if not evaluation.is_finite or not is_finite(snapshot(self.policy)):
            return self._refuse_update(before, optimizer)
        if fault is not None:
            raise fault
        self._accept_data()
        promise = self._promise(surrogate, evaluation, clip_range)
        self._await_judgement(before, optimizer, newest, normalizer, promise)
        self._record_status(StepStatus.ACCEPTED)
        self.logger.record("train/kl_divergence", evaluation.kl)
        self.logger.record("train/policy_objective", evaluation.gain)

    def _surrogate(self, batch: Batch) -> Surrogate:
        damping = CG_DAMPING * averaged_dimensions(self.action_space)
        return Surrogate(self.policy, self.actor, centred(batch, scale=False), damping, FISHER_SUB_SAMPLING_FACTOR)

    def _promise(self, surrogate: Surrogate, evaluation: Evaluation, clip_range: float) -> Promise:
        """What the update promises on data that it was not fitted to, by the natural gradient's share of noise."""
        product, gradient, noise = surrogate.fisher_product, surrogate.gradient, surrogate.noise_gradient
        solution = conjugate_gradient(product, gradient, CG_MAX_STEPS, CG_RESIDUAL_TOL)
        share = reliability(surrogate, solution, conjugate_gradient(product, noise, CG_MAX_STEPS, CG_RESIDUAL_TOL))
        linear_gain = float(gradient.dot(self.actor.flatten(self.policy) - surrogate.origin))
        length = math.sqrt(2.0 * max(evaluation.kl, 0.0))
        predicted = Estimate(share * min(evaluation.gain, linear_gain), evaluation.gain_stderr)
        used = length >= USED_RADIUS * clip_range and is_supported(evaluation)
        self.logger.record("train/reliability", share)
        if linear_gain > 0.0:
            self.logger.record("train/same_batch_ratio", evaluation.gain / linear_gain)
        return Promise(predicted, length, used, evaluation.gain, linear_gain)

    @contextmanager
    def _adapted_clip_range(self) -> Iterator[float]:
        """Let PPO see ε = schedule × factor, and nothing else."""
        schedule, factor = self.clip_range, self.region.radius
        assert callable(schedule)
        self.clip_range = lambda progress_remaining: schedule(progress_remaining) * factor
        try:
            yield schedule(self._current_progress_remaining) * factor
        finally:
            self.clip_range = schedule

    def _replace_unusable_samples(self, newest: LearningData) -> None:
        """PPO takes its samples from the buffer as they are: those that are not finite give way to others."""
        buffer = self.rollout_buffer
        usable = np.isfinite(newest.advantages).ravel()
        if usable.all():
            return
        good, bad = usable.nonzero()[0], (~usable).nonzero()[0]
        stand_in = good[np.arange(len(bad)) % len(good)]
        observations = buffer.observations
        arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
        for array in (*arrays, buffer.actions, buffer.log_probs, buffer.values, buffer.advantages, buffer.returns):
            flat = array.reshape(len(usable), *array.shape[2:])
            flat[bad] = flat[stand_in]

    def _refuse_update(self, before: dict[str, th.Tensor], optimizer: dict[str, Any]) -> None:
        """The epochs left the finite numbers: undo them."""
        restore(self.policy, before)
        self.policy.optimizer.load_state_dict(optimizer)
        self.region = shrink_radius(self.region, self.rule)
        self._refuse_data("the update left the finite numbers", lasting=True)
        self._record_status(StepStatus.INVALID)

    def _roll_back(self, pending: PendingStep) -> None:
        assert pending.optimizer is not None
        restore(self.policy, pending.policy)
        self.policy.optimizer.load_state_dict(pending.optimizer)

"""TRPO with the other half of the trust-region algorithm: accept or roll back, grow or shrink the radius."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trustregion.base import NaturalGradientAlgorithm
from sb3_trustregion.core.conjugate_gradient import CGSolution
from sb3_trustregion.core.improvement import Estimate
from sb3_trustregion.core.parameters import restore, snapshot
from sb3_trustregion.core.radius import shrink_radius
from sb3_trustregion.core.rollouts import Normalizer, Rollout, distance, is_finite_rollout
from sb3_trustregion.core.search import Step, StepStatus, backtrack, reliability
from sb3_trustregion.core.surrogate import Batch, Surrogate, is_supported
from sb3_trustregion.measurement import MeasuringAlgorithm, PendingStep, Promise
from sb3_trustregion.recording import LearningData, centred
from sb3_trustregion.validation import check_integer, check_number

# A step that stayed below this share of the radius did not use it: the search cut it short.
USED_RADIUS = 0.5
# vᵀF⁻¹v converges with the square of the residual, so the noise may be solved for loosely.
NOISE_RESIDUAL_TOL = 0.2


class AdaptiveTRPO(MeasuringAlgorithm, NaturalGradientAlgorithm):
    """
    Trust Region Policy Optimization (Schulman et al. 2015, arXiv 1502.05477) with an adaptive radius.

    Each iteration is one of the generic trust-region algorithm (Conn, Gould & Toint 2000, algorithm 6.1.1):

    1. model: the surrogate of the batch, its gradient g and its Fisher matrix F
    2. direction: (F + λI)x = g by conjugate gradient
    3. step: x scaled to the radius, backtracked until KL ≤ δ and the surrogate improves
    4. ratio: with the *next* rollout, actual over predicted improvement
    5. accept or roll back the policy; grow or shrink δ

    Not to be confused with the "Adaptive TRPO" of Shani et al. 2020, which is another method.

    Against ``sb3_contrib.TRPO``: the KL is of the joint action distribution, KL(old‖new), in nats. sb3-contrib
    averages over the A dimensions of a Gaussian or Bernoulli policy, so that its ``target_kl=0.01`` is 0.01·A here.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the value function, it can be a function
        of the current progress remaining (from 1 to 0). ``sb3_contrib.TRPO``'s is a quarter of it, for mini-batches
        a quarter as large: about the same loss on held-out returns in a third of the time
    :param n_steps: The number of steps to run for each environment per update
    :param batch_size: Minibatch size for the value function, see ``learning_rate``
    :param gamma: Discount factor
    :param cg_max_steps: maximum number of steps in the Conjugate Gradient algorithm
    :param cg_damping: damping per (Gaussian or Bernoulli) action dimension, as in ``sb3_contrib.TRPO``: λ, added to
        the diagonal of the Fisher matrix of the joint action distribution, is ``cg_damping`` times their number A
    :param line_search_shrinking_factor: step-size reduction factor for the line-search
        (i.e., ``theta_new = theta + alpha^i * step``)
    :param line_search_max_iter: maximum number of iteration
        for the backtracking line-search
    :param n_critic_updates: number of passes over the newest rollout to fit the value function, per policy update
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected.
        One that estimates advantages its own way is heeded for the newest rollout
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param normalize_advantage: Whether to bring the advantages to mean zero. They are not scaled: a TRPO step does not
        depend on the scale of the advantages, and so predicted improvements stay in units of the reward
    :param target_kl: the *initial* radius δ, a bound on the mean joint KL(π_k‖π_θ) of an update, nats
    :param sub_sampling_factor: Sub-sample the batch of the policy update to make computation faster
        see p40-42 of John Schulman thesis http://joschu.net/docs/thesis.pdf
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: the verbosity level: 0 no output, 1 info, 2 debug
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param cg_residual_tol: stop Conjugate Gradient at this relative residual ‖g - (F + λI)x‖/‖g‖
    :param fisher_sub_sampling_factor: take the Fisher matrix over one in so many states (256 at least), the gradient
        over all: the policy gains as much from it at the same KL
    :param radius_rule: ``"noise_aware"`` (default: heeds the standard error of the ratio), ``"textbook"``
        (Nocedal & Wright, algorithm 4.1, on each raw ratio) or ``"fixed"`` (δ stays ``target_kl``)
    :param radius_window: over how many steps evidence is pooled, fading exponentially
    :param radius_bounds: lower and upper bound on δ, nats
    :param rollback_z: undo a step that was worse by more than this many standard errors; None never undoes
    :param improvement_estimator: what measures the actual improvement: ``"rollout"`` (default: difference of the mean
        TD residuals of the rollouts after and before the step, by one critic trained on neither), ``"episodes"``
        (difference of episode returns, needs ``Monitor``; free of the critic's errors, and for tasks on which an
        untrained critic sees nothing, but several times noisier where episodes are long), or ``"surrogate"`` (gain on
        the same batch over its linear prediction: judges the linearisation alone and never rolls back)
    :param n_reused_rollouts: M, learn from the last M rollouts, importance-weighted. Where M > 1 the radius is around
        the data: δ bounds the mean KL from the policies that collected them. Memory is that of M rollout buffers.
        ``model.memory.rollouts.clear()`` forgets them, as is wise after a change of the task
    :raises ValueError: where an argument is out of range, a space or a policy not supported
    """

    _own_arguments = ("n_reused_rollouts",)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 4e-3,
        n_steps: int = 2048,
        batch_size: int = 512,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        cg_residual_tol: float = 0.1,
        fisher_sub_sampling_factor: int = 8,
        radius_rule: str = "noise_aware",
        radius_window: int = 50,
        radius_bounds: tuple[float, float] = (1e-6, 50.0),
        rollback_z: float | None = 3.0,
        improvement_estimator: str = "rollout",
        n_reused_rollouts: int = 1,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            n_critic_updates=n_critic_updates,
            gae_lambda=gae_lambda,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            sub_sampling_factor=sub_sampling_factor,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            cg_residual_tol=cg_residual_tol,
            fisher_sub_sampling_factor=fisher_sub_sampling_factor,
        )
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.target_kl = target_kl
        self.radius_rule = radius_rule
        self.radius_window = radius_window
        self.radius_bounds = radius_bounds
        self.rollback_z = rollback_z
        self.improvement_estimator = improvement_estimator
        self.n_reused_rollouts = n_reused_rollouts
        if _init_setup_model:
            self._setup_model()

    def _validate(self) -> None:
        super()._validate()
        check_number("line_search_shrinking_factor", self.line_search_shrinking_factor, above=0.0, below=1.0)
        check_integer("line_search_max_iter", self.line_search_max_iter, at_least=1)
        check_number("target_kl", self.target_kl, above=0.0)
        check_integer("n_reused_rollouts", self.n_reused_rollouts, at_least=1)
        if not self.rule.minimum <= self.target_kl <= self.rule.maximum:
            raise ValueError(f"target_kl must be within radius_bounds {self.radius_bounds}, got {self.target_kl}")

    def _initial_radius(self) -> float:
        return float(self.target_kl)

    def train(self) -> None:
        """One iteration of the trust-region algorithm, steps 4 and 5 for the step before it first."""
        rollout, normalizer = self._take_rollout(), self._snapshot_normalizer()
        self._begin_update()
        measured = self._measure_improvement(rollout)  # step 4
        self._judge(measured)  # step 5
        self._record_judgement(measured)
        if self.region.rolled_back:
            return self._end_rejected(rollout)

        newest = self._newest(rollout, normalizer)
        batch = self._make_batch([*self._history(normalizer), newest])
        if batch.n_samples < 2:
            return self._skip_update()
        surrogate = self._surrogate(self._thinned(self._centred(batch)))  # step 1
        solution = self._solve(surrogate, surrogate.gradient)  # steps 2-3
        step = backtrack(
            surrogate,
            solution,
            self.region.radius,
            self.line_search_shrinking_factor,
            self.line_search_max_iter,
        )
        before = snapshot(self.policy)
        self._take_step(step)
        if step.status is StepStatus.ACCEPTED:
            promise = self._promise(surrogate, solution, step)
            self._await_judgement(before, None, newest, normalizer, promise)
        elif step.radius_at_fault:
            self.region = shrink_radius(self.region, self.rule)
        value_loss = self._fit_critic(self._make_batch([newest]) if batch.reused else batch)
        self._remember(rollout)
        self._record_step(step, surrogate)
        self.logger.record("train/line_search_steps", step.n_backtracks)
        self._record_solution(solution)
        self._record_fit(newest, value_loss)

    def _centred(self, batch: Batch) -> Batch:
        return centred(batch, scale=False) if self.normalize_advantage else batch

    def _promise(self, surrogate: Surrogate, solution: CGSolution, step: Step) -> Promise:
        """What the step promises on data that it was not fitted to."""
        noise_solution = self._solve(surrogate, surrogate.noise_gradient, max(NOISE_RESIDUAL_TOL, self.cg_residual_tol))
        share = reliability(surrogate, solution, noise_solution)
        # Beyond its linear prediction the surrogate's gain is noise of large ratios.
        gain, stderr = min(step.evaluation.gain, step.linear_gain), step.evaluation.gain_stderr
        self.logger.record("train/reliability", share)
        used = step.evaluation.distance >= USED_RADIUS * self.region.radius and is_supported(step.evaluation)
        return Promise(Estimate(share * gain, stderr), step.length, used, gain, step.linear_gain)

    def _history(self, normalizer: Normalizer) -> list[LearningData]:
        """Earlier rollouts in present units, oldest first; without those that alone would exceed the radius."""
        parts = [self._reused(rollout, normalizer) for rollout in self.memory.rollouts]
        distances = [np.nan_to_num(distance(part.ratios), nan=np.inf) for part in parts]
        # The newest rollout counts too, at distance zero. The most distant goes first: as a rule the oldest, but for
        # that of a policy which collapsed and was undone, which would take all the older ones with it.
        while parts and not sum(distances) / (len(parts) + 1) <= self.region.radius:
            most_distant = int(np.argmax(distances))
            del parts[most_distant], distances[most_distant]
        self.logger.record("train/n_rollouts", len(parts) + 1)
        return parts

    def _remember(self, rollout: Rollout) -> None:
        if self.n_reused_rollouts > 1 and is_finite_rollout(rollout):
            self.memory.rollouts = [*self.memory.rollouts, rollout][-(self.n_reused_rollouts - 1) :]

    def _roll_back(self, pending: PendingStep) -> None:
        restore(self.policy, pending.policy, self.actor.names)

    def _end_rejected(self, rollout: Rollout) -> None:
        """No step is taken from the batch of a rejected policy; reused, weighed, it still teaches."""
        self._n_updates += 1
        self._remember(rollout)
        self._record_status(StepStatus.REJECTED)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

"""PPO whose clip range is the radius of the trust-region algorithm."""

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trustregion.common.guard import accept, refuse
from sb3_trustregion.common.judge import Judge, Snapshot, Verdict, make_judge, rule_of
from sb3_trustregion.common.learning_data import make_batch, replace_faulty_samples
from sb3_trustregion.common.on_policy import (
    MadeWhenAsked,
    TrustRegionOnPolicyAlgorithm,
    begin_update,
    find_actor,
    tells_what_acts,
)
from sb3_trustregion.common.update_log import log_update, of_evaluation, of_no_update
from sb3_trustregion.common.validation import as_schedule, check_number, settle, settle_ppo, sizes_of_ppo
from sb3_trustregion.core.batch import Batch, take
from sb3_trustregion.core.conjugate_gradient import conjugate_gradient
from sb3_trustregion.core.distributions import preserved_distribution
from sb3_trustregion.core.functional import pieces_for, uncompiled
from sb3_trustregion.core.line_search import StepStatus, reliability
from sb3_trustregion.core.parameters import NOBODY, ParameterVector
from sb3_trustregion.core.radius import Decision, TrustRegionState
from sb3_trustregion.core.surrogate import Surrogate

# Of ε: a ratio of 1 ± ε everywhere is a step of length √(2·KL) ≈ ε.
USED_RADIUS = 0.5
# Solving for the share of noise in the gradient, as TRPO solves for its step.
CG_MAX_STEPS = 10
CG_DAMPING = 0.1
CG_RESIDUAL_TOL = 0.1
FISHER_SUB_SAMPLING_FACTOR = 8
# What stock PPO would log of an update without epochs.
NO_EPOCHS = {"policy_gradient_loss": 0.0, "approx_kl": 0.0, "clip_fraction": 0.0}


class AdaptivePPO(TrustRegionOnPolicyAlgorithm, PPO):
    """
    Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347) with an adaptive clip range.

    Stable-Baselines3's ``PPO``, whose ε is the radius of a trust region: after each update the improvement that the
    surrogate promised is compared with the one that the next rollout shows; the update is kept or undone (policy,
    critic and optimiser together: they are one network and one Adam), and ε grows or shrinks.

    The promise is the unclipped surrogate gain on the whole batch after the epochs, times the share of it that holds on
    data it was not fitted to. That share is the natural gradient's, gᵀF⁻¹g less its noise, at the policy before the
    update: PPO's own step has no closed form to cross-fit.

    Not to be confused with the "Adaptive-PPO" of Pb-PPO (arXiv 2312.07624), which is another method.

    Arguments are those of ``stable_baselines3.PPO``, with their meanings and defaults, but for

    :param clip_range: the *initial* ε, it can be a function of the current progress remaining (from 1 to 0):
        then ε is that schedule times a factor that starts at 1 and is adapted. ``train/clip_range`` logs the product
    :param policy_kwargs: where ``log_std_init`` is None there, a Gaussian policy starts from σ = e^-0.5 times half of
        what each action may range over (bounds of ±100 and beyond count as ±1), as ``AdaptiveTRPO`` does
    :param radius_rule: as in ``AdaptiveTRPO``; with ``"fixed"`` the factor on ε stays 1
    :param radius_prior: ε that is known to be good: where evidence is weak, ε drifts there from wherever it started.
        Where ``clip_range`` is a schedule this is ε at its start, and falls with the schedule
    :param radius_window: over how many steps evidence is pooled, fading exponentially
    :param radius_bounds: lower and upper bound on the factor on ε
    :param rollback_z: undo an update that was worse by more than this many standard errors; None never undoes
    :param improvement_estimator: ``"rollout"`` (default), ``"episodes"`` or ``"surrogate"``, see ``AdaptiveTRPO``
    :param judge_class: what judges the updates, a subclass of ``common.judge.Judge``; None for that itself
    :param judge_kwargs: further arguments of its constructor
    :raises ValueError: where an argument is out of range, a space or a policy not supported
    """

    # ε is a ratio, so it goes with the length of a step; a KL goes with its square.
    _radius_exponent = 1.0
    _own_arguments = ("radius_rule", "n_epochs")
    _radius_argument = "clip_range"
    _needs_distribution = False  # stock's update needs none
    # Where RL Zoo's hyperparameter search looks.
    search_space: ClassVar[dict[str, tuple[float, float]]] = {"clip_range": (0.05, 0.5), "learning_rate": (5e-5, 2e-3)}
    # The schedule and what it starts from: it may count its calls, so it is asked as often as by stock, and once more.
    _clip_range_asked: tuple[Any, float] | None = None

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
        radius_rule: str | Decision = "noise_aware",
        radius_prior: float = 0.2,
        radius_window: int = 50,
        radius_bounds: tuple[float, float] = (1e-2, 1e2),
        rollback_z: float | None = 3.0,
        improvement_estimator: str = "rollout",
        judge_class: type[Judge] | None = None,
        judge_kwargs: dict[str, Any] | None = None,
    ) -> None:
        normalize_advantage, n_steps, batch_size = sizes_of_ppo(env, normalize_advantage, n_steps, batch_size)
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
        self.radius_prior = radius_prior
        self.radius_window = radius_window
        self.radius_bounds = radius_bounds
        self.rollback_z = rollback_z
        self.improvement_estimator = improvement_estimator
        self.judge_class = judge_class
        self.judge_kwargs = judge_kwargs
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        settle_ppo(self)
        settle(self, check_number, "target_kl", optional=True, at_least=0.0, infinite=True)
        rule = rule_of(self)
        if not rule.minimum <= 1.0 <= rule.maximum:
            raise ValueError(f"radius_bounds must contain 1, the factor to start from, got {self.radius_bounds}")

    @MadeWhenAsked
    def judge(self) -> Judge:
        """What judges the updates; a subclass may put in another."""
        return make_judge(self, 1.0, self._given_clip_range())

    def _heed_arguments(self) -> None:
        self.judge.configure(rule_of(self), 1.0, self._given_clip_range(), self.improvement_estimator)

    def _given_clip_range(self) -> float:
        """The ε that the schedule starts from: where the user gives another one, its factor starts anew."""
        if self._clip_range_asked is None or self._clip_range_asked[0] is not self.clip_range:
            try:
                self._clip_range_asked = self.clip_range, float(as_schedule(self.clip_range)(1.0))
            except Exception:  # it asks the model, which is being made
                if "judge" in vars(self):
                    raise
                return math.nan
        return self._clip_range_asked[1]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_clip_range_asked"]

    @property
    def region(self) -> TrustRegionState:
        """Radius (the factor on ε), pooled sums and counters of the trust region."""
        self._heed_arguments()
        return self.judge.state

    def _relative_prior(self) -> float:
        """``radius_prior`` in the unit of the radius, a factor on the given clip range; 1 where that is 0 or inf."""
        given = self._given_clip_range()
        return float(self.radius_prior) / given if 0.0 < given < math.inf else 1.0

    def train(self) -> None:
        """One iteration of the trust-region algorithm, steps 4 and 5 for the update before it first; PPO is step 3."""
        rollout = begin_update(self)
        verdict = self.judge.review(rollout, self.policy)  # steps 4 and 5
        if verdict.undone:
            return self._log_no_update(StepStatus.REJECTED, verdict)
        batch = make_batch(self.rollout_buffer, rollout.faulty)
        if not batch.n_samples:
            return self._refuse(verdict, self.rollout_recorder.last_fault or "no advantage is finite")
        replace_faulty_samples(self.rollout_buffer, rollout.faulty)
        policy, actor = uncompiled(self.policy), _find_actor(self.policy, batch)
        before = Snapshot.of(policy)
        clip_range = as_schedule(self.clip_range)(self._current_progress_remaining) * verdict.radius
        if not actor.names:
            return self._update_unjudged(verdict, before, clip_range)
        data, bonus = batch.centred(scale=False), _entropy_bonus(self, batch)
        surrogate = Surrogate(policy, actor, data, CG_DAMPING, FISHER_SUB_SAMPLING_FACTOR)  # step 1
        share = _reliability(surrogate)
        fault = self._run_epochs(clip_range)  # steps 2-3
        spoiled = before.undoes_what_is_spoiled(policy)
        evaluation = surrogate.at(actor.flatten(policy))
        if spoiled or not evaluation.is_finite:
            before.restore(policy, with_statistics=True)
            self.judge.shrink()
            return self._refuse(verdict, "the update left the finite numbers")
        if fault is not None:
            raise fault
        accept(self)
        linear_gain = float(surrogate.gradient.dot(actor.flatten(policy) - surrogate.origin))
        used_radius = evaluation.length >= USED_RADIUS * clip_range
        promise = evaluation.promise(linear_gain, share, used_radius and not batch.critic_is_off)
        loss = -evaluation.gain
        conceded = min(loss, max(_entropy_bonus(self, batch) - bonus, 0.0)) if loss > 0.0 else 0.0
        self.judge.expect(promise._replace(conceded=conceded), rollout, before, policy)
        logged = of_evaluation(surrogate, evaluation, linear_gain) | {"reliability": share}
        log_update(self, StepStatus.ACCEPTED, verdict, **logged)

    def _update_unjudged(self, verdict: Verdict, before: Snapshot, clip_range: float) -> None:
        """Make PPO's own update alone: the user has frozen all that acts, or the policy does not tell what does."""
        fault = self._run_epochs(clip_range)
        if before.undoes_what_is_spoiled(uncompiled(self.policy)):
            return self._refuse(verdict, "the update left the finite numbers")
        if fault is not None:
            raise fault
        log_update(self, StepStatus.INVALID, verdict)

    def _run_epochs(self, clip_range: float) -> ValueError | None:
        """PPO's own epochs at ε = schedule × factor. Returns what ``torch.distributions`` raises of NaN or infinity."""
        schedule, given = self.clip_range, self._given_clip_range()
        self.clip_range = meanwhile = _Meanwhile(schedule, clip_range)
        self._clip_range_asked = meanwhile, given
        try:
            super().train()
        except ValueError as error:
            return error
        finally:
            if self.clip_range is meanwhile:  # else it is the user's new one
                self.clip_range, self._clip_range_asked = schedule, (schedule, given)
        return None

    def _log_no_update(self, status: StepStatus, verdict: Verdict) -> None:
        """Log an update that was not made under stock's names too."""
        self._update_learning_rate(self.policy.optimizer)
        progress, logged = self._current_progress_remaining, NO_EPOCHS | of_no_update(self)
        logged["clip_range"] = as_schedule(self.clip_range)(progress) * verdict.radius
        if self.clip_range_vf is not None:
            logged["clip_range_vf"] = as_schedule(self.clip_range_vf)(progress)
        logged["entropy_loss"] = float(np.mean(getattr(self.rollout_buffer, "log_probs", math.nan)))
        logged["loss"] = self.ent_coef * logged["entropy_loss"] + self.vf_coef * logged["value_loss"]
        log_update(self, status, verdict, **logged)

    def _refuse(self, verdict: Verdict, reason: str) -> None:
        """Log and count that no update is made."""
        self._log_no_update(StepStatus.INVALID, verdict)
        refuse(self, reason, lasting=True)


class _Meanwhile:
    """The clip range of one update in place of the user's schedule, which is what a file saved meanwhile holds."""

    def __init__(self, schedule: Any, clip_range: float) -> None:
        self.schedule, self.clip_range = schedule, clip_range

    def __call__(self, _progress_remaining: float) -> float:
        return self.clip_range

    def __reduce__(self) -> Any:
        return _itself, (self.schedule,)


def _itself(schedule: Any) -> Any:
    return schedule


def _find_actor(policy: ActorCriticPolicy, batch: Batch) -> ParameterVector:
    """Find which parameters act; ``NOBODY`` where the policy does not tell by what it acts."""
    reason = "get_distribution is not what evaluate_actions evaluates"
    try:
        if tells_what_acts(policy, batch):
            return find_actor(policy, batch, with_others=True)  # which the epochs move, and no roll-back undoes
    # As of Beta distributions, of modules that are differentiated in training alone, or of a fixed number of states.
    except Exception as error:
        reason = str(error) or type(error).__name__
    warnings.warn(f"policy cannot be judged: {reason}. ε stays, as in stock PPO", stacklevel=3)
    return NOBODY


@th.no_grad()
def _entropy_bonus(model: AdaptivePPO, batch: Batch) -> float:
    """What the policy's entropy is worth to PPO's loss, in units of reward."""
    if not model.ent_coef:
        return 0.0
    policy, entropies = uncompiled(model.policy), []
    with preserved_distribution(policy):
        for piece in pieces_for(policy, batch.observations):
            _, log_prob, entropy = policy.evaluate_actions(take(batch.observations, piece), batch.actions[piece])
            entropies.append((-log_prob if entropy is None else entropy).reshape(-1))
    unit = float(batch.advantages.std()) if model.normalize_advantage else 1.0
    return float(model.ent_coef) * unit * float(th.cat(entropies).mean())


def _reliability(surrogate: Surrogate) -> float:
    """Share of the natural gradient's gain that holds on data that it is not fitted to."""
    product, gradient, noise = surrogate.fisher_product, surrogate.gradient, surrogate.noise_gradient
    solution = conjugate_gradient(product, gradient, CG_MAX_STEPS, CG_RESIDUAL_TOL)
    noise_solution = conjugate_gradient(product, noise, CG_MAX_STEPS, CG_RESIDUAL_TOL)
    return reliability(surrogate, solution, noise_solution)

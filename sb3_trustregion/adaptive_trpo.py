"""TRPO with the other half of the trust-region algorithm: accept or roll back, grow or shrink the radius."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trustregion.common.judge import Judge, Snapshot, make_judge, rule_of
from sb3_trustregion.common.natural_gradient import NaturalGradientAlgorithm
from sb3_trustregion.common.on_policy import MadeWhenAsked, begin_update
from sb3_trustregion.common.update_log import log_update, of_no_update, of_policy, of_step
from sb3_trustregion.common.validation import check_integer, check_number, settle
from sb3_trustregion.core.conjugate_gradient import CGSolution
from sb3_trustregion.core.improvement import Promise
from sb3_trustregion.core.line_search import Step, StepStatus, backtrack, reliability
from sb3_trustregion.core.radius import Decision, TrustRegionState
from sb3_trustregion.core.surrogate import Surrogate

# A step that stayed below this share of the radius did not use it: the search cut it short.
USED_RADIUS = 0.5
# vᵀF⁻¹v converges with the square of the residual, so the noise may be solved for loosely.
NOISE_RESIDUAL_TOL = 0.2
# What stock TRPO would log of an update without a step.
NO_STEP = {"policy_objective": 0.0, "kl_divergence_loss": 0.0, "is_line_search_success": 0.0}


class AdaptiveTRPO(NaturalGradientAlgorithm):
    """
    Trust Region Policy Optimization (Schulman et al. 2015, arXiv 1502.05477) with an adaptive radius.

    Each iteration is one of the generic trust-region algorithm (Conn, Gould & Toint 2000, algorithm 6.1.1):

    1. model: the surrogate of the batch, its gradient g and its Fisher matrix F
    2. direction: (F + λI)x = g by conjugate gradient
    3. step: x scaled to the radius, backtracked until KL ≤ δ and the surrogate improves
    4. ratio: with the *next* rollout, actual over predicted improvement
    5. accept or roll back the policy; grow or shrink δ

    Not to be confused with the "Adaptive TRPO" of Shani et al. 2020, which is another method.

    Arguments are as in ``sb3_contrib.TRPO`` (whose KL is KL(new‖old), where ours is KL(old‖new)) but for these.

    :param learning_rate: of the value function, a number or a function of the remaining progress (1 to 0). Stock's is
        a quarter, for mini-batches a quarter as large: about the same loss on held-out returns in a third of the time
    :param batch_size: of the value function's mini-batches, see ``learning_rate``
    :param policy_kwargs: as there; a Gaussian policy for which it sets no ``log_std_init`` starts from σ = e^-0.5 times
        half of what each action may range over (bounds of ±100 and beyond count as ±1)
    :param cg_damping: per (Gaussian or Bernoulli) action dimension, as there: λ, added to the diagonal of the Fisher
        matrix of the joint action distribution, is ``cg_damping`` times their number A
    :param normalize_advantage: whether the advantages are brought to mean zero. They are not scaled: a TRPO step does
        not depend on the scale of the advantages, and so predicted improvements stay in units of the reward
    :param target_kl: the *initial* radius, a bound on the mean KL(π_k‖π_θ) of an update, nats per (Gaussian or
        Bernoulli) action dimension, as there: the joint δ is A times that
    :param cg_residual_tol: stop Conjugate Gradient at this relative residual ‖g - (F + λI)x‖/‖g‖
    :param fisher_sub_sampling_factor: take the Fisher matrix over one in so many states (256 at least), the gradient
        over all: the policy gains as much from it at the same KL
    :param radius_rule: ``"noise_aware"`` (default: to ``radius_prior``, as far as it is not significantly too long or
        too short), ``"textbook"`` (Nocedal & Wright, algorithm 4.1, on each raw ratio), ``"fixed"`` (the radius stays
        ``target_kl``), or a function from ``TrustRegionState`` and ``Improvement`` to a factor on the squared length of
        a step
    :param radius_prior: radius that is known to be good, nats per action dimension: where evidence is weak, the radius
        drifts there from wherever it started
    :param radius_window: over how many steps evidence is pooled, fading exponentially
    :param radius_bounds: lower and upper bound on the radius, nats per action dimension
    :param rollback_z: undo a step that was worse by more than this many standard errors; None never undoes
    :param improvement_estimator: what measures the actual improvement: ``"rollout"`` (default: the step's
        own share of the next rollout's TD residuals, by a critic trained on neither rollout), ``"episodes"``
        (difference of episode returns, needs ``Monitor``; free of the critic's errors, and for tasks on which an
        untrained critic sees nothing, but several times noisier where episodes are long), or ``"surrogate"`` (gain on
        the same batch over its linear prediction: judges the linearisation alone and never rolls back)
    :param judge_class: what judges the steps, a subclass of ``common.judge.Judge``; None for that itself
    :param judge_kwargs: further arguments of its constructor
    :raises ValueError: where an argument is out of range, a space or a policy not supported
    """

    # A KL goes with the square of a step's length.
    _radius_exponent = 2.0
    _own_arguments = ("radius_rule", "line_search_max_iter")
    _radius_argument = "target_kl"
    # Where RL Zoo's hyperparameter search looks.
    search_space: ClassVar[dict[str, tuple[float, float]]] = {"target_kl": (0.002, 0.05)}

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
        radius_rule: str | Decision = "noise_aware",
        radius_prior: float = 0.01,
        radius_window: int = 50,
        radius_bounds: tuple[float, float] = (1e-6, 50.0),
        rollback_z: float | None = 3.0,
        improvement_estimator: str = "rollout",
        judge_class: type[Judge] | None = None,
        judge_kwargs: dict[str, Any] | None = None,
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
        settle(self, check_number, "line_search_shrinking_factor", above=0.0, below=1.0)
        settle(self, check_integer, "line_search_max_iter", at_least=1)
        settle(self, check_number, "target_kl", above=0.0)
        rule = rule_of(self)
        if not rule.minimum <= self.target_kl <= rule.maximum:
            raise ValueError(f"target_kl must be within radius_bounds {self.radius_bounds}, got {self.target_kl}")

    @MadeWhenAsked
    def judge(self) -> Judge:
        """What judges the steps; a subclass may put in another."""
        return make_judge(self, float(self.target_kl), float(self.target_kl))

    def _heed_arguments(self) -> None:
        settle(self, check_number, "target_kl", at_least=0.0)  # a schedule of the user's own may end at 0
        self.judge.configure(rule_of(self), self.target_kl, self.target_kl, self.improvement_estimator)

    @property
    def region(self) -> TrustRegionState:
        """Radius (nats per action dimension), pooled sums and counters of the trust region."""
        self._heed_arguments()
        return self.judge.state

    def _relative_prior(self) -> float:
        """``radius_prior`` in the unit of the radius."""
        return float(self.radius_prior)

    def train(self) -> None:
        """One iteration of the trust-region algorithm, steps 4 and 5 for the step before it first."""
        rollout = begin_update(self)
        verdict = self.judge.review(rollout, self.policy)  # steps 4 and 5
        if verdict.undone:  # no step is taken from the batch of a rejected policy
            self._n_updates += 1
            self._update_learning_rate(self.policy.optimizer)
            return log_update(self, StepStatus.REJECTED, verdict, **NO_STEP, **of_no_update(self))
        batch, actor = self._gather(rollout)
        if not actor.names:
            return self._update_without_step(batch, actor, verdict)
        surrogate = self._surrogate(batch.centred(scale=False) if self.normalize_advantage else batch, actor)  # step 1
        solution = self._solve(surrogate, surrogate.gradient)  # step 2
        joint, max_iter = verdict.radius * surrogate.n_dimensions, self.line_search_max_iter
        step = backtrack(surrogate, solution, joint, self.line_search_shrinking_factor, max_iter)  # step 3
        before = Snapshot.of(self.policy, actor.names)
        promise = self._promise(surrogate, solution, step, verdict.radius)
        self._take(step, actor)
        logged = of_step(surrogate, step, solution) | {"value_loss": self._fit_critic(batch, actor)}
        if promise is not None:
            self.judge.expect(promise, rollout, before, self.policy)
            logged["reliability"] = promise.reliability
        elif step.radius_at_fault:
            self.judge.shrink()
        log_update(self, step.status, verdict, **logged, **of_policy(self))

    def _promise(self, surrogate: Surrogate, solution: CGSolution, step: Step, radius: float) -> Promise | None:
        """What the step promises on data that it was not fitted to; None where there is no step."""
        if step.status is not StepStatus.ACCEPTED:
            return None
        noise_solution = self._solve(surrogate, surrogate.noise_gradient, max(NOISE_RESIDUAL_TOL, self.cg_residual_tol))
        share = reliability(surrogate, solution, noise_solution)
        used_radius = step.evaluation.kl >= USED_RADIUS * radius * surrogate.n_dimensions
        return step.evaluation.promise(step.linear_gain, share, used_radius and not surrogate.batch.critic_is_off)

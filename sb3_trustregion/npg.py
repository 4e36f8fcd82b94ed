"""Natural policy gradient: a fixed step along the natural gradient."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trustregion.common.natural_gradient import NaturalGradientAlgorithm
from sb3_trustregion.common.on_policy import begin_update
from sb3_trustregion.common.update_log import log_update, of_policy, of_step
from sb3_trustregion.common.validation import as_schedule, check_schedule
from sb3_trustregion.core.line_search import fixed_step


class NPG(NaturalGradientAlgorithm):
    """
    Natural Policy Gradient (Kakade 2001, "A Natural Policy Gradient", eq. 4), with a critic and GAE.

        θ ← θ + α·(F + λI)⁻¹·g

    No ratio, no line search, no radius: the baseline that shows what the rest of a trust-region algorithm is worth.

    Arguments are those of ``sb3_contrib.TRPO``, with their meanings, but for radius and line search, which it has not,
    for ``learning_rate``, ``batch_size`` and the initial log σ, whose defaults are those of ``AdaptiveTRPO``, and for

    :param normalize_advantage: whether the advantages are brought to mean zero and unit variance, so that
        ``actor_step_size`` does not depend on the scale of the reward
    :param actor_step_size: α, it can be a function of the current progress remaining (from 1 to 0).
        The KL of a step is about ½α²·gᵀF⁻¹g nats: with 1 from 0.001 to 0.02 on the tasks that were tried
    :param cg_residual_tol: as in ``AdaptiveTRPO``: the policy gains as much from a loose solution
    :param fisher_sub_sampling_factor: as in ``AdaptiveTRPO``
    :raises ValueError: where an argument is out of range, a space or a policy not supported
    """

    _own_arguments = ("actor_step_size",)
    # Where RL Zoo's hyperparameter search looks.
    search_space: ClassVar[dict[str, tuple[float, float]]] = {"actor_step_size": (0.03, 3.0)}

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
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        actor_step_size: float | Schedule = 1.0,
        cg_residual_tol: float = 0.1,
        fisher_sub_sampling_factor: int = 8,
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
        self.actor_step_size = actor_step_size
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self.actor_step_size = check_schedule("actor_step_size", self.actor_step_size, at_least=0.0)

    def _heed_arguments(self) -> None:
        """Do nothing: the step has no bounds."""

    def train(self) -> None:
        """Gradient and Fisher matrix of the surrogate, one fixed step along F⁻¹g, the critic's fit."""
        rollout = begin_update(self)
        batch, actor = self._gather(rollout)
        if not actor.names:
            return self._update_without_step(batch, actor)
        surrogate = self._surrogate(batch.centred(scale=True) if self.normalize_advantage else batch, actor)
        solution = self._solve(surrogate, surrogate.gradient)
        step = fixed_step(surrogate, solution, as_schedule(self.actor_step_size)(self._current_progress_remaining))
        self._take(step, actor)
        value_loss = self._fit_critic(batch, actor)
        logged = of_step(surrogate, step, solution) | {"value_loss": value_loss}
        log_update(self, step.status, None, **logged, **of_policy(self))

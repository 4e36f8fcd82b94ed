"""What NPG and AdaptiveTRPO share: the natural gradient, the critic's fit, the log."""

import warnings
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch.nn import functional as F

from sb3_trustregion.core.conjugate_gradient import CGSolution, conjugate_gradient
from sb3_trustregion.core.divergence import averaged_dimensions
from sb3_trustregion.core.parameters import critic_parameters
from sb3_trustregion.core.search import Step, StepStatus
from sb3_trustregion.core.surrogate import Batch, Surrogate, take
from sb3_trustregion.recording import LearningData, RecordingAlgorithm
from sb3_trustregion.validation import check_bool, check_integer, check_number

SUPPORTED_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class NaturalGradientAlgorithm(RecordingAlgorithm):
    """
    The natural gradient (F + λI)⁻¹g of the surrogate, and a critic fitted apart from the actor.

    Not meant to be used by itself; arguments as in ``sb3_contrib.TRPO``, documented in ``AdaptiveTRPO``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        n_steps: int,
        batch_size: int,
        gamma: float,
        cg_max_steps: int,
        cg_damping: float,
        n_critic_updates: int,
        gae_lambda: float,
        use_sde: bool,
        sde_sample_freq: int,
        rollout_buffer_class: type[RolloutBuffer] | None,
        rollout_buffer_kwargs: dict[str, Any] | None,
        normalize_advantage: bool,
        sub_sampling_factor: int,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: th.device | str,
        cg_residual_tol: float,
        fisher_sub_sampling_factor: int,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=0.0,  # no entropy bonus
            vf_coef=0.0,  # the critic is fitted apart
            max_grad_norm=0.0,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=SUPPORTED_ACTION_SPACES,
        )
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.sub_sampling_factor = sub_sampling_factor
        self.cg_residual_tol = cg_residual_tol
        self.fisher_sub_sampling_factor = fisher_sub_sampling_factor

    def _validate(self) -> None:
        super()._validate()
        check_integer("cg_max_steps", self.cg_max_steps, at_least=1)
        check_number("cg_damping", self.cg_damping, at_least=0.0)
        check_integer("n_critic_updates", self.n_critic_updates, at_least=0)
        check_bool("normalize_advantage", self.normalize_advantage)
        check_integer("sub_sampling_factor", self.sub_sampling_factor, at_least=1)
        check_number("cg_residual_tol", self.cg_residual_tol, at_least=0.0, below=1.0)
        check_integer("fisher_sub_sampling_factor", self.fisher_sub_sampling_factor, at_least=1)
        n_samples = self.n_steps * self.n_envs
        if n_samples // self.sub_sampling_factor < 2:
            raise ValueError(
                f"sub_sampling_factor must leave at least 2 of {n_samples} samples, got {self.sub_sampling_factor}"
            )
        if self.batch_size > 1 and n_samples % self.batch_size == 1:
            warnings.warn(
                f"batch_size={self.batch_size} leaves a last mini-batch of one of n_steps * n_envs = {n_samples} "
                "samples: the critic learns more evenly from a factor of it.",
                stacklevel=3,
            )

    def _setup_model(self) -> None:
        super()._setup_model()
        if type(self.policy.optimizer) is th.optim.Adam and "fused" not in self.policy.optimizer_kwargs:
            # The same Adam in one pass over the parameters.
            for group in self.policy.optimizer.param_groups:
                group["fused"] = True

    def _begin_update(self) -> None:
        # Evaluation mode: surrogate and KL are of the policy that acts, without dropout or batch statistics.
        self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)

    def _thinned(self, batch: Batch) -> Batch:
        """Every ``sub_sampling_factor``-th sample, at random, in the order of time."""
        if self.sub_sampling_factor == 1:
            return batch
        n_kept = max(batch.n_samples // self.sub_sampling_factor, 2)
        kept = th.randperm(batch.n_samples)[:n_kept]
        return batch.select(kept.sort().values)

    def _surrogate(self, batch: Batch) -> Surrogate:
        damping = self.cg_damping * averaged_dimensions(self.action_space)
        return Surrogate(self.policy, self.actor, batch, damping, self.fisher_sub_sampling_factor)

    def _solve(self, surrogate: Surrogate, gradient: th.Tensor, residual_tol: float | None = None) -> CGSolution:
        """(F + λI)⁻¹·gradient."""
        tolerance = self.cg_residual_tol if residual_tol is None else residual_tol
        return conjugate_gradient(surrogate.fisher_product, gradient, self.cg_max_steps, tolerance)

    def _take_step(self, step: Step) -> None:
        """Write θ_{k+1}, or count why there is none."""
        if step.status is StepStatus.ACCEPTED:
            self.actor.write(self.policy, step.parameters)
            self._accept_data()
        else:
            self._refuse_data(step.reason, lasting=False)

    def _skip_update(self) -> None:
        """Count a rollout without a usable sample: policy, critic and optimiser stay as they are."""
        self._n_updates += 1
        self._refuse_data(self._fault(), lasting=True)
        self._record_status(StepStatus.INVALID)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _fit_critic(self, batch: Batch) -> float:
        """
        Regress values on returns with the policy's own optimiser; the actor's parameters stay.

        :param batch: observations and returns
        :return: mean loss over all mini-batches; NaN where the fit was refused because it left the finite numbers
        """
        critic = critic_parameters(self.policy, self.actor)
        optimizer = self.policy.optimizer
        if not critic or self.n_critic_updates == 0 or batch.n_samples == 0:
            return 0.0
        before = [parameter.detach().clone() for parameter in critic]
        state_before = [_copied(optimizer.state.get(parameter, {})) for parameter in critic]
        optimizer.zero_grad(set_to_none=True)
        self._enter_training_mode(critic)
        losses = [self._critic_step(batch, index, critic) for index in self._mini_batches(batch.n_samples)]
        self.policy.set_training_mode(False)
        mean_loss = float(th.stack(losses).mean())
        # Adam's second moment overflows first: infinite, it would hold the critic still for good.
        moments = [value for p in critic for value in optimizer.state[p].values() if isinstance(value, th.Tensor)]
        if np.isfinite(mean_loss) and all(bool(th.isfinite(value).all()) for value in (*critic, *moments)):
            return mean_loss
        warnings.warn("the critic's fit left the finite numbers and was undone", stacklevel=3)
        with th.no_grad():
            for parameter, value, state in zip(critic, before, state_before, strict=True):
                parameter.copy_(value)
                optimizer.state[parameter] = state
        return float("nan")

    def _enter_training_mode(self, critic: list[th.nn.Parameter]) -> None:
        """Training mode but for batch statistics that are not the critic's alone: they would move the actor."""
        self.policy.set_training_mode(True)
        of_critic = {id(parameter) for parameter in critic}
        for module in self.policy.modules():
            own = [id(parameter) for parameter in module.parameters(recurse=False)]
            if list(module.buffers(recurse=False)) and not (own and of_critic.issuperset(own)):
                module.training = False

    def _mini_batches(self, n_samples: int) -> list[th.Tensor]:
        permutations = (th.randperm(n_samples).to(self.device) for _ in range(self.n_critic_updates))
        return [index for order in permutations for index in th.split(order, int(self.batch_size))]

    def _critic_step(self, batch: Batch, index: th.Tensor, critic: list[th.nn.Parameter]) -> th.Tensor:
        values = self.policy.predict_values(take(batch.observations, index)).flatten()
        loss = F.mse_loss(values, batch.returns[index])
        # Only these: with a shared features extractor a plain backward would move the actor.
        for parameter, gradient in zip(critic, th.autograd.grad(loss, critic, allow_unused=True), strict=True):
            parameter.grad = gradient
        self.policy.optimizer.step()
        return loss.detach()

    def _record_step(self, step: Step, surrogate: Surrogate) -> None:
        evaluation = step.evaluation
        self._record_status(step.status)
        self.logger.record("train/policy_objective", evaluation.gain)
        self.logger.record("train/kl_divergence", evaluation.kl)
        self.logger.record("train/distance_from_data", evaluation.distance)
        if step.linear_gain > 0.0:
            self.logger.record("train/same_batch_ratio", evaluation.gain / step.linear_gain)
        self.logger.record("train/n_samples", surrogate.batch.n_samples)

    def _record_fit(self, newest: LearningData, value_loss: float) -> None:
        self._n_updates += 1
        self.logger.record("train/value_loss", value_loss)
        fine = np.isfinite(newest.returns)
        if fine.any():
            explained = explained_variance(newest.values[fine], newest.returns[fine])
            self.logger.record("train/explained_variance", float(explained))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _record_solution(self, solution: CGSolution) -> None:
        self.logger.record("train/cg_steps", solution.n_steps)
        self.logger.record("train/cg_residual", float(solution.residual))


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, th.Tensor) else value for key, value in state.items()}

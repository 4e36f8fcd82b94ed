"""What NPG and AdaptiveTRPO share: the natural gradient of the surrogate, and a critic fitted apart from the actor."""

import warnings
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_trustregion.common.critic import asked_anew, fit_critic, follow_the_data, in_new_orders
from sb3_trustregion.common.guard import accept, refuse
from sb3_trustregion.common.judge import Verdict
from sb3_trustregion.common.learning_data import Rollout, draws_anew, make_batch, replace_faulty_samples
from sb3_trustregion.common.on_policy import TrustRegionOnPolicyAlgorithm, find_actor
from sb3_trustregion.common.update_log import log_update, of_policy
from sb3_trustregion.common.validation import check_integer, check_number, settle
from sb3_trustregion.core.batch import Batch
from sb3_trustregion.core.conjugate_gradient import CGSolution, conjugate_gradient
from sb3_trustregion.core.functional import uncompiled
from sb3_trustregion.core.line_search import Step, StepStatus
from sb3_trustregion.core.parameters import NOBODY, ParameterVector
from sb3_trustregion.core.surrogate import Surrogate

SUPPORTED_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class NaturalGradientAlgorithm(TrustRegionOnPolicyAlgorithm):
    """The natural gradient (F + λI)⁻¹g, and a critic fitted apart; a base class, arguments as in ``AdaptiveTRPO``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = TRPO.policy_aliases
    _log_std_init = None

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        batch_size: int,
        cg_max_steps: int,
        cg_damping: float,
        n_critic_updates: int,
        normalize_advantage: bool,
        sub_sampling_factor: int,
        cg_residual_tol: float,
        fisher_sub_sampling_factor: int,
        **of_stock: Any,
    ) -> None:
        # No entropy bonus, and the critic is fitted apart.
        unused = {"ent_coef": 0.0, "vf_coef": 0.0, "max_grad_norm": 0.0}
        spaces = {"supported_action_spaces": SUPPORTED_ACTION_SPACES}
        super().__init__(policy, env, **unused, **spaces, **of_stock, _init_setup_model=False)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.sub_sampling_factor = sub_sampling_factor
        self.cg_residual_tol = cg_residual_tol
        self.fisher_sub_sampling_factor = fisher_sub_sampling_factor

    def _check_arguments(self) -> None:
        super()._check_arguments()
        factors = "sub_sampling_factor", "fisher_sub_sampling_factor"
        settle(self, check_integer, "cg_max_steps", *factors, at_least=1)
        settle(self, check_integer, "n_critic_updates", at_least=0)
        settle(self, check_number, "cg_damping", at_least=0.0)
        settle(self, check_number, "cg_residual_tol", at_least=0.0, below=1.0)
        n_samples = self.n_steps * self.n_envs
        if n_samples > self.batch_size and n_samples % self.batch_size and self.num_timesteps == 0:
            warnings.warn(
                f"batch_size={self.batch_size} is no factor of n_steps * n_envs = {n_samples}: a pass of the critic's "
                f"fit ends with a truncated mini-batch of {n_samples % self.batch_size} samples.",
                stacklevel=3,
            )

    def _setup_model(self) -> None:
        super()._setup_model()
        if type(self.policy.optimizer) is th.optim.Adam and "fused" not in self.policy.optimizer_kwargs:
            # The same Adam in one pass over the parameters.
            for group in self.policy.optimizer.param_groups:
                group["fused"] = True

    def _gather(self, rollout: Rollout) -> tuple[Batch, ParameterVector]:
        """The buffer's samples, which running statistics have seen, and the parameters that act on them."""
        self._update_learning_rate(self.policy.optimizer)
        batch = make_batch(self.rollout_buffer, rollout.faulty)
        if not batch.n_samples:
            return batch, NOBODY
        if draws_anew(self.rollout_buffer):
            replace_faulty_samples(self.rollout_buffer, rollout.faulty)
        follow_the_data(uncompiled(self.policy), batch, max(self.n_critic_updates, 1), self.batch_size)
        return batch, find_actor(self.policy, batch)

    def _surrogate(self, batch: Batch, actor: ParameterVector) -> Surrogate:
        thinned = batch.thinned(self.sub_sampling_factor)
        return Surrogate(self.policy, actor, thinned, self.cg_damping, self.fisher_sub_sampling_factor)

    def _solve(self, surrogate: Surrogate, gradient: th.Tensor, residual_tol: float | None = None) -> CGSolution:
        tolerance = self.cg_residual_tol if residual_tol is None else residual_tol
        return conjugate_gradient(surrogate.fisher_product, gradient, self.cg_max_steps, tolerance)

    def _take(self, step: Step, actor: ParameterVector) -> None:
        """Write θ_{k+1}, or count why there is none."""
        if step.status is StepStatus.ACCEPTED:
            actor.write(uncompiled(self.policy), step.parameters)
            accept(self)
        else:
            refuse(self, step.reason, lasting=False)

    def _fit_critic(self, batch: Batch, actor: ParameterVector) -> float:
        self._n_updates += 1
        if self.n_critic_updates == 0:
            return 0.0
        if "fused" not in self.policy.optimizer_kwargs:
            for group in self.policy.optimizer.param_groups:  # fused, Adam takes parts of other tensors for whole ones
                if group.get("fused"):
                    group["fused"] = all(p.is_contiguous() and p.is_floating_point() for p in group["params"])
        buffer, passes = self.rollout_buffer, (self.n_critic_updates, self.batch_size)
        mini_batches = asked_anew(buffer, *passes) if draws_anew(buffer) else in_new_orders(batch, *passes)
        return fit_critic(uncompiled(self.policy), actor, mini_batches)

    def _update_without_step(self, batch: Batch, actor: ParameterVector, verdict: Verdict | None = None) -> None:
        """Count a rollout without a usable sample; where the user has frozen all that acts, the critic learns alone."""
        if batch.n_samples:
            value_loss = self._fit_critic(batch, actor)
            return log_update(self, StepStatus.INVALID, verdict, value_loss=value_loss, **of_policy(self))
        self._n_updates += 1
        log_update(self, StepStatus.INVALID, verdict)
        refuse(self, self.rollout_recorder.last_fault or "no advantage is finite", lasting=True)

"""PPO with a KL penalty whose weight adapts, in place of clipping."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule

from sb3_trustregion.common.guard import accept, refuse
from sb3_trustregion.common.judge import Snapshot
from sb3_trustregion.common.learning_data import draws_anew, make_batch, replace_faulty_samples, samples_of
from sb3_trustregion.common.on_policy import TrustRegionOnPolicyAlgorithm, begin_update, tells_what_acts
from sb3_trustregion.common.update_log import log_update, of_policy
from sb3_trustregion.common.validation import as_schedule, check_number, settle, settle_ppo, sizes_of_ppo
from sb3_trustregion.core.batch import take
from sb3_trustregion.core.distributions import Parameters
from sb3_trustregion.core.functional import uncompiled
from sb3_trustregion.core.line_search import StepStatus
from sb3_trustregion.core.parameters import restore, snapshot
from sb3_trustregion.core.penalty import WEIGHTS, adapted, is_trainable, loss_terms, mean_kl, outputs_of

# The losses that are logged, by their names in stock PPO.
LOSSES = "loss", "policy_gradient_loss", "value_loss", "entropy_loss"
MiniBatch = tuple[RolloutBufferSamples, Parameters]  # samples, and the parameters of π_old's distributions for them


class PenaltyPPO(TrustRegionOnPolicyAlgorithm, PPO):
    """
    Proximal Policy Optimization with an adaptive KL penalty (Schulman et al. 2017, arXiv 1707.06347, section 4).

    Stable-Baselines3's ``PPO`` but for the policy's loss. In place of clipping, each update maximises by epochs of Adam

        L(θ) = mean of r·Â - C·KL(π_old‖π_θ)    with r = π_θ(a|s)/π_old(a|s)    (eq. 8; C is β there)

    and then, by the mean KL d of the whole update,

        C ← C/2 where d < d_targ/1.5,   C ← 2·C where d > 1.5·d_targ

    The KL is exact, not estimated from samples; in the loss it is joint over action dimensions, as in the paper. C is
    ``model.penalty``, saved, within 1e-4 and 1e6. An update that leaves the finite numbers is undone, and C grows.

    Arguments are those of ``stable_baselines3.PPO`` without ``clip_range``, with their meanings and defaults, but for

    :param target_kl: d_targ, the mean KL that an update is to have, nats per (Gaussian or Bernoulli) action dimension;
        not where epochs end, see ``early_stop``
    :param kl_coef: the *initial* C; where another one is given later, C starts anew from there
    :param kl_tolerance: the 1.5 above
    :param kl_coef_factor: the 2 above; 1 for a C that stays, the paper's "fixed KL"
    :param early_stop: end the epochs where the KL of a mini-batch exceeds this multiple of ``target_kl``; None
        (default) never does, as in the paper. Must exceed ``kl_tolerance``: at stock PPO's 1.5 an update would end
        before its KL could tell that C is too small
    :raises ValueError: where an argument is out of range, a space or a policy not supported
    """

    _own_arguments = ("kl_coef", "kl_tolerance")
    target_kl: float
    # Where RL Zoo's hyperparameter search looks; the paper tried 0.003, 0.01 and 0.03.
    search_space: ClassVar[dict[str, tuple[float, float]]] = {"target_kl": (0.001, 0.1), "learning_rate": (5e-5, 2e-3)}

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
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float = 0.01,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kl_coef: float = 1.0,
        kl_tolerance: float = 1.5,
        kl_coef_factor: float = 2.0,
        early_stop: float | None = None,
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
            clip_range=math.inf,
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
        self.kl_coef = kl_coef
        self.kl_tolerance = kl_tolerance
        self.kl_coef_factor = kl_coef_factor
        self.early_stop = early_stop
        # C, and the argument that it started from: plain numbers, saved with the model.
        self.penalty = self.penalty_start = math.nan
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        settle_ppo(self)
        self._heed_arguments()

    def _heed_arguments(self) -> None:
        """C goes on from where it is, unless the user has given another one to start from."""
        settle(self, check_number, "target_kl", above=0.0)
        settle(self, check_number, "kl_coef", **WEIGHTS)
        settle(self, check_number, "kl_tolerance", "kl_coef_factor", at_least=1.0)
        settle(self, check_number, "early_stop", optional=True, above=self.kl_tolerance, infinite=True)
        if self.kl_coef != self.penalty_start:
            self.penalty = self.penalty_start = self.kl_coef
        settle(self, check_number, "penalty", **WEIGHTS)

    def train(self) -> None:
        """Epochs on the penalised surrogate, then C by the KL that they have led to."""
        rollout = begin_update(self)
        batch = make_batch(self.rollout_buffer, rollout.faulty)
        if not batch.n_samples:
            return self._refuse(self.rollout_recorder.last_fault or "no advantage is finite")
        replace_faulty_samples(self.rollout_buffer, rollout.faulty)
        if not tells_what_acts(self.policy, batch):
            raise ValueError("policy must tell by get_distribution what its evaluate_actions evaluates, for the KL")
        policy = uncompiled(self.policy)
        samples, _ = samples_of(self.rollout_buffer)
        before, (old, n_dimensions) = Snapshot.of(policy), outputs_of(policy, samples.observations)
        target, acts = n_dimensions * self.target_kl, is_trainable(policy, samples.observations)
        losses, fault = self._run_epochs(self._mini_batches(samples, old, before), target)
        spoiled = before.undoes_what_is_spoiled(policy)
        ratio = mean_kl(policy, samples.observations, old).item() / target
        if spoiled or not math.isfinite(ratio):
            before.restore(policy, with_statistics=True)
            return self._refuse("the update left the finite numbers", math.inf)
        if fault is not None:
            raise fault
        status = StepStatus.ACCEPTED if acts else StepStatus.INVALID
        measured = {"kl_coef": self.penalty, "kl_divergence": ratio * self.target_kl, "n_samples": batch.n_samples}
        measured["approx_kl"] = ratio * target  # by stock's name, and joint as there
        log_update(self, status, None, **measured, **losses, **of_policy(self))
        if acts:  # else the user has frozen all that acts
            accept(self)
            self.penalty = adapted(self.penalty, ratio, self.kl_tolerance, self.kl_coef_factor)

    def _run_epochs(
        self, mini_batches: Iterable[MiniBatch], target: float
    ) -> tuple[dict[str, float], ValueError | None]:
        """Epochs towards a joint KL of ``target``: mean losses by name, and what torch raises of what is not finite."""
        clip_vf, progress = self.clip_range_vf, self._current_progress_remaining
        clip_range_vf = None if clip_vf is None else as_schedule(clip_vf)(progress)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.set_training_mode(True)
        losses, fault = [], None
        try:
            for samples, old in mini_batches:
                terms = loss_terms(self.policy, samples, old, self.normalize_advantage, clip_range_vf)
                loss = terms.policy + self.ent_coef * terms.entropy + self.vf_coef * terms.value
                loss = loss + self.penalty * terms.kl
                losses.append(th.stack([loss.float(), terms.policy, terms.value, terms.entropy]).detach())
                if self.early_stop is not None and terms.kl.item() > self.early_stop * target:
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
        except ValueError as error:
            fault = error
        means = th.stack(losses).mean(dim=0).tolist() if losses else []
        clipped = {} if clip_range_vf is None else {"clip_range_vf": clip_range_vf}
        return dict(zip(LOSSES, means, strict=False)) | clipped, fault

    def _mini_batches(self, samples: RolloutBufferSamples, old: Parameters, before: Snapshot) -> Iterator[MiniBatch]:
        """The samples in a new order for each epoch, drawn as by SB3's buffer; by the user's own, if there is one."""
        draw_anew = draws_anew(self.rollout_buffer)
        for _ in range(self.n_epochs):
            self._n_updates += 1
            if draw_anew:
                yield from self._drawn_anew(before)
                continue
            order = np.random.permutation(len(samples.advantages))  # noqa: NPY002
            for index in th.split(th.as_tensor(order, device=self.device), int(self.batch_size or len(order))):
                parts = (take(getattr(samples, name), index) for name in RolloutBufferSamples._fields)
                yield RolloutBufferSamples(*parts), tuple(output[index] for output in old)

    def _drawn_anew(self, before: Snapshot) -> Iterator[MiniBatch]:
        """The samples that a buffer hands out in one epoch: the policy before the update is asked about these."""
        policy, drawn = uncompiled(self.policy), list(self.rollout_buffer.get(self.batch_size))
        now = snapshot(policy)
        restore(policy, before.tensors)
        self.policy.set_training_mode(False)
        old = [outputs_of(policy, samples.observations)[0] for samples in drawn]
        restore(policy, now)
        self.policy.set_training_mode(True)
        yield from zip(drawn, old, strict=True)

    def _refuse(self, reason: str, ratio: float = 1.0) -> None:
        """Log and count that no update is made, and adapt C."""
        log_update(self, StepStatus.INVALID, kl_coef=self.penalty)
        self.penalty = adapted(self.penalty, ratio, self.kl_tolerance, self.kl_coef_factor)
        refuse(self, reason, lasting=True)

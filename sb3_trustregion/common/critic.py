"""The critic's fit: values regressed on returns by the policy's own optimiser, while the actor stays."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import Parameter
from torch.nn import functional as F

from sb3_trustregion.common.learning_data import copied
from sb3_trustregion.core.batch import Batch, take
from sb3_trustregion.core.distributions import Observations, preserved_distribution
from sb3_trustregion.core.parameters import ParameterVector, critic_parameters

MiniBatch = tuple[Observations, th.Tensor]  # observations (m, ...) and returns (m,)


def in_new_orders(batch: Batch, n_passes: int, batch_size: int | None) -> Iterator[MiniBatch]:
    """The samples of a batch, in a new order for each pass."""
    orders = [th.randperm(batch.n_samples, device="cpu").to(batch.returns.device) for _ in range(n_passes)]
    indices = [index for order in orders for index in th.split(order, int(batch_size or batch.n_samples))]
    return ((take(batch.observations, index), batch.returns[index]) for index in indices)


def asked_anew(buffer: RolloutBuffer, n_passes: int, batch_size: int | None) -> Iterator[MiniBatch]:
    """What a buffer hands out at each pass, as to stock."""
    for _ in range(n_passes):
        for samples in buffer.get(batch_size):
            yield samples.observations, samples.returns.float()


def fit_critic(policy: ActorCriticPolicy, actor: ParameterVector, mini_batches: Iterable[MiniBatch]) -> float:
    """Fit values to returns, a step a mini-batch. Returns the mean loss before: 0 of none, NaN where it was undone."""
    optimizer, of_policy = policy.optimizer, {id(parameter) for parameter in policy.parameters()}
    moved = [parameter for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]]
    # Also what the user has the optimiser move beside the policy: a part of the critic's elsewhere.
    beside = [p for p in moved if p.requires_grad and id(p) not in of_policy]
    critic = [*critic_parameters(policy, actor), *beside]
    if not critic:
        return 0.0
    before = [parameter.detach().clone() for parameter in critic]
    state: dict[Any, Any] = getattr(optimizer, "state", {})
    state_before = [copied(state.get(parameter, {})) for parameter in critic]
    optimizer.zero_grad()
    _enter_training_mode(policy, critic)
    cleared = [*critic, *moved]
    losses = [_descend(policy, critic, cleared, mini_batch) for mini_batch in mini_batches]
    mean_loss = float(th.stack(losses).mean()) if losses else 0.0
    # Adam's second moment overflows first: infinite, it would hold the critic still for good.
    moments = [value for p in critic for value in state.get(p, {}).values() if isinstance(value, th.Tensor)]
    if not np.isfinite(mean_loss) or not all(bool(th.isfinite(value).all()) for value in (*critic, *moments)):
        warnings.warn("the critic's fit left the finite numbers and was undone", stacklevel=3)
        mean_loss = float("nan")
        with th.no_grad():
            for parameter, value, moments_before in zip(critic, before, state_before, strict=True):
                parameter.copy_(value)
                if parameter in state:
                    state[parameter] = moments_before
    policy.set_training_mode(False)  # which may fold parameters into frozen ones
    return mean_loss


def _descend(
    policy: ActorCriticPolicy, critic: list[Parameter], cleared: list[Parameter], mini_batch: MiniBatch
) -> th.Tensor:
    """Make one step of the optimiser, without gradients from before, and return the loss before it."""
    observations, returns = mini_batch
    loss = F.mse_loss(policy.predict_values(observations).flatten(), returns)
    if not loss.requires_grad:  # what is trainable has no part in it
        return loss
    for parameter in cleared:  # a hook of the user's may have left gradients to others
        parameter.grad = None
    # Only these: with a shared features extractor a plain backward would move the actor.
    loss.backward(inputs=critic)  # type: ignore[no-untyped-call]
    policy.optimizer.step()
    return loss.detach()


def _enter_training_mode(policy: ActorCriticPolicy, critic: list[Parameter]) -> None:
    """Enter training mode but for batch statistics that are not the critic's alone: they would move the actor."""
    policy.set_training_mode(True)
    of_critic = {id(parameter) for parameter in critic}
    for module in policy.modules():
        ids = [id(parameter) for parameter in module.parameters(recurse=False)]
        if list(module.buffers(recurse=False)) and not (ids and of_critic.issuperset(ids)):
            module.training = False


@th.no_grad()
def follow_the_data(policy: ActorCriticPolicy, batch: Batch, n_passes: int, batch_size: int | None) -> None:
    """
    Let running statistics (batch normalisation and its like) see a rollout as often as in stock TRPO's epochs.

    Before the step, so that surrogate and KL are of the policy that will act.
    """
    if not any(_may_keep_statistics(module) for module in policy.modules()):
        return
    policy.set_training_mode(True)
    in_order = th.split(th.arange(batch.n_samples, device=batch.returns.device), int(batch_size or batch.n_samples))
    for index in in_order * n_passes:
        if len(index) > 1:  # of one sample there is no variance
            observations = take(batch.observations, index)
            with preserved_distribution(policy):
                policy.evaluate_actions(observations, batch.actions[index])
    policy.set_training_mode(False)


def _may_keep_statistics(module: th.nn.Module) -> bool:
    """Whether a module has buffers, or is of unknown make."""
    known = type(module).__module__.partition(".")[0] in ("torch", "stable_baselines3", "sb3_contrib")
    return not known or any(True for _ in module.buffers(recurse=False))

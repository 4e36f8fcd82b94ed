"""The terms of PPO's loss with a KL penalty in place of clipping, and how the weight of that penalty adapts."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.nn import functional as F

from sb3_trustregion.core import distributions
from sb3_trustregion.core.batch import few_of, take
from sb3_trustregion.core.distributions import Observations, Parameters, preserved_distribution
from sb3_trustregion.core.functional import pieces_for, uncompiled

# Beyond these C is as good as none, or as a standstill; back from there it takes some twenty updates.
WEIGHTS: dict[str, Any] = {"at_least": 1e-4, "at_most": 1e6}


class Terms(NamedTuple):
    """Terms of the loss of a mini-batch, scalar tensors."""

    policy: th.Tensor  # -mean of r·Â
    value: th.Tensor  # mean squared error of the critic
    entropy: th.Tensor  # -mean entropy
    kl: th.Tensor  # mean KL(old‖new), nats, joint over action dimensions


def loss_terms(
    policy: ActorCriticPolicy,
    samples: RolloutBufferSamples,
    old: Parameters,
    normalize_advantage: bool,
    clip_range_vf: float | None,
) -> Terms:
    """
    The terms of a mini-batch as stock PPO has them, but for the clipping of r = π(a|s)/π_old(a|s).

    π, which is ``policy``, is attached to the graph; ``old`` are the parameters of π_old's distributions. Values may
    move by ``clip_range_vf``, by any distance where that is None.
    """
    policy, actions, advantages = uncompiled(policy), samples.actions, samples.advantages
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    with preserved_distribution(policy):
        new = policy.action_dist
        new.distribution = None  # type: ignore[assignment]
        values, log_probs, entropy = policy.evaluate_actions(samples.observations, actions)
        # By now that holds what was evaluated, unless the user's policy has its own ways.
        if new.distribution is None or not th.equal(new.log_prob(actions), log_probs):
            new = policy.get_distribution(samples.observations)
        kl = distributions.kl_divergence(new, old, distributions.distribution_parameters(new)).mean()
    if normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    values = values.flatten()
    if clip_range_vf is not None:
        values = samples.old_values + th.clamp(values - samples.old_values, -clip_range_vf, clip_range_vf)
    return Terms(
        policy=-(advantages * th.exp(log_probs - samples.old_log_prob)).mean(),
        value=F.mse_loss(samples.returns, values),
        entropy=log_probs.mean() if entropy is None else -entropy.mean(),
        kl=kl,
    )


@th.no_grad()
def outputs_of(policy: ActorCriticPolicy, observations: Observations) -> tuple[Parameters, int]:
    """Parameters of the action distributions, batch first; over how many dimensions their KL is averaged."""
    _, kinds, pieces = zip(*_distributions(policy, observations), strict=True)
    outputs = distributions.joined(pieces)
    return outputs, distributions.dimensions(kinds[-1], outputs)


def is_trainable(policy: ActorCriticPolicy, observations: Observations) -> bool:
    """Whether something that acts is trainable, as a few of the observations tell."""
    of_few = list(_distributions(policy, take(observations, few_of(observations))))
    return any(output.requires_grad for *_, outputs in of_few for output in outputs)


@th.no_grad()
def mean_kl(policy: ActorCriticPolicy, observations: Observations, old: Parameters) -> th.Tensor:
    """Mean joint KL(old‖new), nats; ``old`` is what ``outputs_of`` gave before. NaN where the policy is not finite."""
    try:
        kls = []
        for piece, kind, new in _distributions(policy, observations):
            kls.append(distributions.kl_divergence(kind, tuple(output[piece] for output in old), new))
        return th.cat(kls).mean()
    except ValueError:  # torch.distributions refuses parameters that are not finite
        return th.tensor(th.nan, device="cpu")


def _distributions(
    policy: ActorCriticPolicy, observations: Observations
) -> Iterator[tuple[slice, Distribution, Parameters]]:
    """Piece by piece which states, a distribution of the policy's kind, and the parameters of theirs."""
    policy = uncompiled(policy)
    with preserved_distribution(policy):
        for piece in pieces_for(policy, observations):
            distribution = policy.get_distribution(take(observations, piece))
            yield piece, distribution, distributions.distribution_parameters(distribution)


def adapted(weight: float, ratio: float, tolerance: float, factor: float) -> float:
    """
    The weight C for the next update (Schulman et al. 2017, section 4, with tolerance 1.5 and factor 2).

    ``ratio`` is of the KL that an update with this C has led to, to the KL that it was to have; NaN counts as too high.
    """
    if ratio < 1.0 / tolerance:
        weight /= factor
    elif not ratio <= tolerance:
        weight *= factor
    return float(min(max(weight, WEIGHTS["at_least"]), WEIGHTS["at_most"]))

"""
Action distributions as tensors: their parameters, the KL between two, their Fisher matrix.

Everything is joint over action dimensions and in nats: ``KL(old ‖ new)``, summed over the dimensions. Squashed
distributions are measured before squashing: an invertible map changes neither the KL nor the Fisher matrix.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Independent, Normal

Observations = th.Tensor | dict[str, th.Tensor]
# Gaussian: (mean, standard deviation), each (B, A). Categorical, Bernoulli: logits, one tensor a component.
Parameters = tuple[th.Tensor, ...]

GAUSSIAN = (sb3.DiagGaussianDistribution, sb3.StateDependentNoiseDistribution)
SUPPORTED = (*GAUSSIAN, sb3.CategoricalDistribution, sb3.MultiCategoricalDistribution, sb3.BernoulliDistribution)


class UnknownDistributionError(ValueError):
    """Of this distribution KL and Fisher matrix are not known here."""


@contextmanager
def preserved_distribution(policy: ActorCriticPolicy) -> Iterator[None]:
    """Keep the policy's one ``action_dist`` as it is while others are built: it may not carry a graph into a pickle."""
    original = policy.action_dist
    policy.action_dist = copy.copy(original)
    try:
        yield
    finally:
        policy.action_dist = original


def check_supported(distribution: Distribution) -> None:
    """Raise an ``UnknownDistributionError`` where KL and Fisher matrix of a distribution are not known here."""
    if not isinstance(distribution, SUPPORTED):
        names, kind = ", ".join(kind.__name__ for kind in SUPPORTED), type(distribution).__name__
        raise UnknownDistributionError(f"policy's action distribution must be one of {names}, got {kind}")


def joined(outputs: Iterable[Parameters]) -> Parameters:
    """Distributions' parameters of several pieces, batch first."""
    return tuple(th.cat(pieces) for pieces in zip(*outputs, strict=True))


def dimensions(kind: Distribution, parameters: Parameters) -> int:
    """Over how many dimensions sb3-contrib averages KL and F, sums here: A of Gaussian and Bernoulli, else 1."""
    return parameters[0].shape[-1] if isinstance(kind, (*GAUSSIAN, sb3.BernoulliDistribution)) else 1


def distribution_parameters(distribution: Distribution) -> Parameters:
    """Parameters of what ``policy.get_distribution`` returns, batch first, attached to the graph."""
    check_supported(distribution)
    if isinstance(distribution, sb3.MultiCategoricalDistribution):
        return tuple(component.logits for component in distribution.distribution)
    inner: Any = distribution.distribution  # by whatever the user has overridden
    inner = inner.base_dist if isinstance(inner, Independent) else inner
    if not isinstance(distribution, GAUSSIAN):
        return (inner.logits,)
    if not isinstance(inner, Normal):
        kind = type(inner).__name__
        raise UnknownDistributionError(f"policy's action distribution must be of independent Gaussians, got {kind}")
    return inner.mean, inner.stddev


def kl_divergence(kind: Distribution, old: Parameters, new: Parameters) -> th.Tensor:
    """KL(old ‖ new) of each state, shape (B,), nats, joint over dimensions, in double precision: small steps cancel."""
    old, new = tuple(map(in_double, old)), tuple(map(in_double, new))
    if isinstance(kind, GAUSSIAN):
        return _gaussian_kl(old, new)
    if isinstance(kind, sb3.BernoulliDistribution):
        return _bernoulli_kl(old[0], new[0])
    return th.stack([_categorical_kl(o, n) for o, n in zip(old, new, strict=True)]).sum(dim=0)


def in_double(tensor: th.Tensor) -> th.Tensor:
    """In double precision, where the device knows it (Apple's does not)."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def fisher_times(kind: Distribution, parameters: Parameters, tangents: Parameters) -> Parameters:
    """
    The closed-form Fisher matrix of each state's distribution times a tangent of its parameters, both of their shapes.

    Gaussian: 1/σ² for the mean, 2/σ² for σ. Categorical: diag(p) - ppᵀ. Bernoulli: p(1-p). Positive
    semi-definite, so that conjugate gradient never meets negative curvature.
    """
    if isinstance(kind, GAUSSIAN):
        precision = parameters[1] ** -2
        return tangents[0] * precision, 2.0 * tangents[1] * precision
    if isinstance(kind, sb3.BernoulliDistribution):
        p = th.sigmoid(parameters[0])
        return (_times(p * (1.0 - p), tangents[0]),)
    return tuple(_categorical_fisher(logits, t) for logits, t in zip(parameters, tangents, strict=True))


def _gaussian_kl(old: Parameters, new: Parameters) -> th.Tensor:
    shift = (old[0] - new[0]) / new[1]
    log_scale = th.log(old[1]) - th.log(new[1])
    # expm1 keeps the digits that (σ/σ')² - 1 - 2·log(σ/σ') loses near equality.
    return 0.5 * (th.expm1(2.0 * log_scale) - 2.0 * log_scale + shift**2).sum(dim=-1)


def _categorical_kl(old: th.Tensor, new: th.Tensor) -> th.Tensor:
    log_p, log_q = th.log_softmax(old, dim=-1), th.log_softmax(new, dim=-1)
    return _times(log_p.exp(), log_p - log_q).sum(dim=-1)


def _bernoulli_kl(old: th.Tensor, new: th.Tensor) -> th.Tensor:
    softplus = th.nn.functional.softplus
    # log σ(x) = -softplus(-x), log(1 - σ(x)) = -softplus(x)
    on = _times(th.sigmoid(old), softplus(-new) - softplus(-old))
    off = _times(th.sigmoid(-old), softplus(new) - softplus(old))
    return (on + off).sum(dim=-1)


def _categorical_fisher(logits: th.Tensor, tangent: th.Tensor) -> th.Tensor:
    p = th.softmax(logits, dim=-1)
    return _times(p, tangent - _times(p, tangent).sum(dim=-1, keepdim=True))


def _times(probability: th.Tensor, value: th.Tensor) -> th.Tensor:
    """The product of both, zero where the probability is: what a mask excludes (a logit of -inf) counts for nothing."""
    return th.where(probability > 0.0, probability * value, 0.0)

"""Flatten, add and restore parameters: the actor's as one vector, the whole policy's as a snapshot."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.core.divergence import Observations, distribution_parameters, preserved_distribution
from sb3_trustregion.core.jacobian import differentiable_twice


class ParameterVector(NamedTuple):
    """
    The parameters that influence the action distribution, laid out as one vector θ.

    :param names: names in ``policy.named_parameters()``
    :param shapes: shape of each
    :param differentiable_twice: whether autograd can tell how the distribution's parameters change along a direction
    """

    names: tuple[str, ...]
    shapes: tuple[th.Size, ...]
    differentiable_twice: bool = True

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    def flatten(self, policy: ActorCriticPolicy) -> th.Tensor:
        """
        :param policy: the policy
        :return: shape (P,), a copy of θ
        """
        named = dict(policy.named_parameters())
        return th.cat([named[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, vector: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param vector: shape (P,)
        :return: views into it by parameter name
        """
        parts = th.split(vector, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    @th.no_grad()
    def write(self, policy: ActorCriticPolicy, vector: th.Tensor) -> None:
        """
        The one place where the actor's parameters change.

        :param policy: the policy, changed in place
        :param vector: shape (P,), new θ
        :raises ValueError: where ``vector`` is not finite; the policy is untouched then
        """
        if not bool(th.isfinite(vector).all()):
            raise ValueError("policy parameters must be finite, got a vector that is not")
        named = dict(policy.named_parameters())
        for name, value in self.unflatten(vector).items():
            named[name].copy_(value)


def actor_parameters(policy: ActorCriticPolicy, observations: Observations) -> ParameterVector:
    """
    Find the trainable parameters that influence the action distribution: autograd knows, names do not.

    :param policy: the policy
    :param observations: a batch of observations as the policy takes them, any values
    :return: their layout
    :raises ValueError: where no trainable parameter influences the action distribution
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with preserved_distribution(policy), th.enable_grad():
        outputs = distribution_parameters(policy.get_distribution(observations))
        total = th.stack([output.sum() for output in outputs]).sum()
    if not trainable or not total.requires_grad:
        raise ValueError("policy must have trainable parameters that influence its action distribution, found none")
    gradients = th.autograd.grad(total, list(trainable.values()), retain_graph=True, allow_unused=True)
    found = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is not None]
    leaves = [trainable[name] for name in found]
    attached = [output for output in outputs if output.requires_grad]
    return ParameterVector(tuple(found), tuple(leaf.shape for leaf in leaves), differentiable_twice(attached, leaves))


def critic_parameters(policy: ActorCriticPolicy, actor: ParameterVector) -> list[th.nn.Parameter]:
    """
    :param policy: the policy
    :param actor: what influences the action distribution
    :return: all other trainable parameters: with a shared features extractor the critic must not move the actor
    """
    return [p for name, p in policy.named_parameters() if p.requires_grad and name not in actor.names]


def snapshot(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    """
    :param policy: the policy
    :return: a copy of all its parameters and buffers, shared ones once
    """
    return {name: tensor.detach().clone() for name, tensor in _named_tensors(policy).items()}


@th.no_grad()
def restore(policy: ActorCriticPolicy, saved: Mapping[str, th.Tensor], names: Iterable[str] | None = None) -> None:
    """
    Bring parameters and buffers back bit for bit.

    :param policy: the policy, changed in place
    :param saved: what ``snapshot`` gave
    :param names: which of them; None for all
    """
    named = _named_tensors(policy)
    for name in saved if names is None else names:
        named[name].copy_(saved[name])


def _named_tensors(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}


def is_finite(tensors: Mapping[str, th.Tensor]) -> bool:
    """
    :param tensors: tensors by name, such as a state_dict
    :return: whether all floating point entries are finite
    """
    return all(bool(th.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())

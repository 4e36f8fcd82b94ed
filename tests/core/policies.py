"""Small policies of every kind in double precision, batches for them, and references computed another way."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.func import functional_call

from sb3_trustregion.core.batch import Batch
from sb3_trustregion.core.improvement import alternating_signs, block_ids
from sb3_trustregion.core.parameters import ParameterVector, actor_parameters
from sb3_trustregion.core.surrogate import Surrogate

VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (1, 6, 6), np.uint8)
DICT = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)})
BOX = spaces.Box(-1.0, 1.0, (2,))
THREE = spaces.Discrete(3)

Observations = th.Tensor | dict[str, th.Tensor]
TorchDistribution = th.distributions.Distribution


class TinyImages(BaseFeaturesExtractor):
    """A convolution small enough for dense references."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


TINY = {"features_extractor_class": TinyImages}
SEPARATE = {"share_features_extractor": False}
# Policy class, observation space, action space, further arguments.
POLICIES: dict[str, tuple[type[ActorCriticPolicy], spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = {
    "box": (ActorCriticPolicy, VECTOR, BOX, {}),
    "gsde": (ActorCriticPolicy, VECTOR, BOX, {"use_sde": True, "log_std_init": -0.5}),
    "squashed": (ActorCriticPolicy, VECTOR, BOX, {"use_sde": True, "squash_output": True, "log_std_init": -0.5}),
    "discrete": (ActorCriticPolicy, VECTOR, THREE, {}),
    "multi_discrete": (ActorCriticPolicy, VECTOR, spaces.MultiDiscrete([3, 2]), {}),
    "multi_binary": (ActorCriticPolicy, VECTOR, spaces.MultiBinary(3), {}),
    "image": (ActorCriticCnnPolicy, IMAGE, THREE, TINY),
    "separate_images": (ActorCriticCnnPolicy, IMAGE, BOX, {**TINY, **SEPARATE}),
    "dict": (MultiInputActorCriticPolicy, DICT, BOX, {}),
}
KINDS = tuple(POLICIES)


def make_policy(kind: str, seed: int = 0, double: bool = True, **kwargs: Any) -> ActorCriticPolicy:
    """
    A policy with random weights that are far from zero everywhere.

    :param kind: one of ``KINDS``
    :param seed: of the weights
    :param double: whether in double precision, so that finite differences have digits
    :param kwargs: further arguments of the policy
    """
    policy_class, observation_space, action_space, defaults = POLICIES[kind]
    th.manual_seed(seed)
    arguments = {"net_arch": [4], **defaults, **kwargs}
    # Copies: a space holds the generator that it samples from.
    policy = policy_class(copy.deepcopy(observation_space), copy.deepcopy(action_space), lambda _: 1e-3, **arguments)
    perturb(policy, 0.3)
    policy.set_training_mode(False)
    policy = in_double(policy) if double else policy
    if policy.use_sde:
        with th.no_grad():  # with a graph in it no policy can be copied
            policy.reset_noise()
    return policy


def perturb(policy: ActorCriticPolicy, scale: float) -> None:
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * th.randn_like(parameter))


def in_double(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """SB3 feeds single precision to the features extractors: they get it widened."""
    policy.double()
    for module in policy.modules():
        if isinstance(module, BaseFeaturesExtractor):
            module.register_forward_pre_hook(_widen)
    return policy


def _widen(module: nn.Module, arguments: tuple[Observations]) -> tuple[Observations]:
    (observations,) = arguments
    if isinstance(observations, dict):
        return ({key: value.double() for key, value in observations.items()},)
    return (observations.double(),)


def sample_observations(policy: ActorCriticPolicy, n: int, seed: int = 0) -> Observations:
    space = policy.observation_space
    space.seed(seed)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return obs_as_tensor({key: np.stack([sample[key] for sample in samples]) for key in space}, policy.device)
    return obs_as_tensor(np.stack(samples), policy.device)


def actor_of(policy: ActorCriticPolicy) -> ParameterVector:
    return actor_parameters(policy, sample_observations(policy, 2))


def make_batch(policy: ActorCriticPolicy, n_steps: int = 60, n_envs: int = 2, seed: int = 0) -> Batch:
    """
    Random observations, actions of the policy, advantages that are noise.

    :param policy: left as it is
    :param n_steps: T
    :param n_envs: N
    :param seed: of all of it
    """
    th.manual_seed(seed)
    n = n_steps * n_envs
    observations = sample_observations(policy, n, seed)
    behaviour, dtype = copy.deepcopy(policy), next(policy.parameters()).dtype
    with th.no_grad():
        if policy.use_sde:
            behaviour.reset_noise(n)
        distribution = behaviour.get_distribution(observations)
        actions = distribution.sample()
    return Batch(
        observations=observations,
        actions=actions,
        advantages=th.randn(n, dtype=dtype),
        returns=th.randn(n, dtype=dtype),
        signs=th.as_tensor(alternating_signs(n_steps, n_envs).ravel(), dtype=dtype),
        blocks=block_ids(n_steps, n_envs).ravel(),
        log_probs=distribution.log_prob(actions).detach(),
    )


def make_surrogate(
    kind: str, seed: int = 0, damping: float = 0.1, double: bool = True, whole: bool = False, **kwargs: Any
) -> Surrogate:
    """
    A surrogate of a random policy.

    :param kind: one of ``KINDS``
    :param seed: of weights and batch
    :param damping: per action dimension
    :param double: whether in double precision
    :param whole: whether the derivative is the whole one: SB3's gSDE takes the features of its noise for constants
    :param kwargs: as for ``make_batch``
    """
    policy = make_policy(kind, seed, double)
    if whole and policy.use_sde:
        policy.action_dist.learn_features = True
    return Surrogate(policy, actor_of(policy), make_batch(policy, seed=seed, **kwargs), damping)


def moved(surrogate: Surrogate, vector: th.Tensor) -> ActorCriticPolicy:
    """A copy of the surrogate's policy with θ written by hand."""
    policy = copy.deepcopy(surrogate.head.policy)
    named, at = dict(policy.named_parameters()), 0
    with th.no_grad():
        for name in surrogate.actor.names:
            size = named[name].numel()
            named[name].copy_(vector[at : at + size].view_as(named[name]))
            at += size
    assert at == len(vector)
    return policy


class Untouched(NamedTuple):
    """What must be the same before and after: every bit of the policy, its gradients, its ``action_dist``."""

    tensors: dict[str, th.Tensor]
    distribution: Any
    inside: Any

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> "Untouched":
        tensors = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}
        return cls(tensors, policy.action_dist, getattr(policy.action_dist, "distribution", None))

    def check(self, policy: ActorCriticPolicy) -> None:
        now = policy.state_dict()
        assert now.keys() == self.tensors.keys()
        assert all(th.equal(now[name], tensor) for name, tensor in self.tensors.items())
        assert policy.action_dist is self.distribution
        assert getattr(policy.action_dist, "distribution", None) is self.inside
        assert all(isinstance(parameter, nn.Parameter) for parameter in policy.parameters())
        assert all(parameter.grad is None for parameter in policy.parameters())


class Acting(nn.Module):
    """The policy's action distribution as PyTorch's own, for ``functional_call``."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Observations) -> list[TorchDistribution]:
        return torch_distributions(self.policy.get_distribution(observations))


def torch_distributions(distribution: Any) -> list[TorchDistribution]:
    inside = distribution.distribution
    return inside if isinstance(inside, list) else [inside]


def joint_kl(old: Sequence[TorchDistribution], new: Sequence[TorchDistribution]) -> th.Tensor:
    """KL(old ‖ new) of each state by PyTorch's formulas, summed over the action dimensions."""
    total = th.zeros(())
    for one, other in zip(old, new, strict=True):
        kl = th.distributions.kl_divergence(one, other)
        total = total + (kl.sum(dim=1) if kl.dim() > 1 else kl)
    return total


def dense_fisher(surrogate: Surrogate) -> th.Tensor:
    """Hessian at θ_k of the mean KL(π_k‖π_θ), by differentiating PyTorch's KL twice: no Fisher matrix is asked."""
    policy = copy.deepcopy(surrogate.head.policy)
    acting = Acting(policy)
    observations = surrogate.batch.observations
    with th.no_grad():
        old = acting(observations)

    def mean_kl(vector: th.Tensor) -> th.Tensor:
        parts = th.split(vector, surrogate.actor.sizes)
        shaped = zip(surrogate.actor.names, parts, surrogate.actor.shapes, strict=True)
        parameters = {f"policy.{name}": part.view(shape) for name, part, shape in shaped}
        return joint_kl(old, functional_call(acting, parameters, (observations,))).mean()

    return th.autograd.functional.hessian(mean_kl, surrogate.origin)


def dense(product: Any, size: int) -> th.Tensor:
    """A matrix from its products with the unit vectors."""
    return th.stack([product(column) for column in th.eye(size, dtype=th.float64)], dim=1)

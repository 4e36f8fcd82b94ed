"""Finds which parameters act; flattens, writes and restores them; tells whether somebody else has changed them."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.core.batch import Batch, few_of, take
from sb3_trustregion.core.distributions import Observations, distribution_parameters, preserved_distribution
from sb3_trustregion.core.fisher import differentiable_twice
from sb3_trustregion.core.functional import ActionHead, folded_in, pieces_for, unfold

# SB3's name of what is the critic's even where logits depend on it, as in sb3-contrib.
VALUE_HEAD = "value_net"


class ParameterVector(NamedTuple):
    """The parameters that influence the action distribution, laid out as one vector θ."""

    names: tuple[str, ...]  # in ``policy.named_parameters()``
    shapes: tuple[th.Size, ...]
    dtypes: tuple[th.dtype, ...]
    differentiable_twice: bool = True  # whether autograd tells how the distribution changes along a direction

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    def flatten(self, policy: ActorCriticPolicy) -> th.Tensor:
        """A copy of θ, shape (P,)."""
        named = dict(policy.named_parameters())
        return th.cat([named[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, vector: th.Tensor) -> dict[str, th.Tensor]:
        """Views into a vector (P,) by parameter name."""
        # One by one: of views that come out together none may be changed in place, as some embeddings do.
        ends = itertools.accumulate(self.sizes)
        layout = zip(self.names, ends, self.sizes, self.shapes, self.dtypes, strict=True)
        return {name: vector[end - size : end].view(shape).to(dtype) for name, end, size, shape, dtype in layout}

    @th.no_grad()
    def write(self, policy: ActorCriticPolicy, vector: th.Tensor) -> None:
        """The one place where the actor's parameters change; a ``ValueError`` where a number is not finite."""
        if not bool(th.isfinite(vector).all()):
            raise ValueError("policy parameters must be finite, got a vector that is not")
        named = dict(policy.named_parameters())
        for name, value in self.unflatten(vector).items():
            named[name].copy_(value)


NOBODY = ParameterVector((), (), ())


def actor_parameters(policy: ActorCriticPolicy, observations: Observations) -> ParameterVector:
    """
    The layout of the trainable parameters that influence the action distribution, empty where all of them are frozen:
    autograd knows, names do not. By all observations that are learned from: a head may act in some states alone.
    """
    pieces = pieces_for(policy, observations)
    acting = [_acting(policy, take(observations, piece))[1] for piece in pieces]
    actor = {name: leaf for name, leaf in policy.named_parameters() if any(name in some for some in acting)}
    outputs, leaves = _acting(policy, take(observations, few_of(observations)))
    return ParameterVector(
        names=tuple(actor),
        shapes=tuple(leaf.shape for leaf in actor.values()),
        dtypes=tuple(leaf.dtype for leaf in actor.values()),
        differentiable_twice=not leaves or differentiable_twice(outputs, list(leaves.values())),
    )


def _acting(policy: ActorCriticPolicy, observations: Observations) -> tuple[list[th.Tensor], dict[str, th.Tensor]]:
    """Those of the distributions' parameters that have a gradient, and those of the policy's that they depend on."""
    of_actor = ((name, p) for name, p in policy.named_parameters() if name.partition(".")[0] != VALUE_HEAD)
    trainable = {name: p for name, p in of_actor if p.requires_grad}
    unfold(policy)
    with preserved_distribution(policy), th.enable_grad():
        outputs = distribution_parameters(policy.get_distribution(observations))
        attached = [output for output in outputs if output.requires_grad]
        if not trainable or not attached:
            return [], {}
        total = th.stack([output.sum() for output in attached]).sum()
    gradients = th.autograd.grad(total, list(trainable.values()), retain_graph=True, allow_unused=True)
    pairs = zip(trainable.items(), gradients, strict=True)
    return attached, {name: leaf for (name, leaf), gradient in pairs if gradient is not None}


def out_of_reach(policy: ActorCriticPolicy, batch: Batch) -> list[str]:
    """
    Names of the trainable parameters that act although no module holds them when it is called: by a reference of their
    own, in a list or an object that is no module. No functional call replaces those. Others' parameters have no name.
    """
    few = batch.select(few_of(batch.observations))
    replaced = {name: tensor.detach() for name, tensor in tensors_of(policy).items()}
    with th.random.fork_rng(devices=[]), th.enable_grad():
        _, outputs = ActionHead(policy).at(replaced, few.observations, few.actions)
    nodes, unseen = set(), [output.grad_fn for output in outputs]
    while unseen:
        node = unseen.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            unseen += [function for function, _ in node.next_functions]
    leaves = {id(node.variable): node.variable for node in nodes if hasattr(node, "variable")}
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    return sorted(names.get(key, "") for key, leaf in leaves.items() if isinstance(leaf, th.nn.Parameter))


def critic_parameters(policy: ActorCriticPolicy, actor: ParameterVector) -> list[th.nn.Parameter]:
    """All trainable parameters but the actor's: with a shared features extractor the critic must not move the actor."""
    return [p for name, p in policy.named_parameters() if p.requires_grad and name not in actor.names]


def snapshot(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    """A copy of what an update may change: trainable parameters and buffers, shared ones once."""
    unfold(policy)
    folded = folded_into(policy)
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad or name in folded}
    return {name: tensor.detach().clone() for name, tensor in {**parameters, **dict(policy.named_buffers())}.items()}


def folded_into(policy: ActorCriticPolicy) -> set[str]:
    """Names of frozen parameters that others may be folded into, and out of again: the same but for rounding."""
    folded_ids = {id(parameter) for module in policy.modules() for parameter in folded_in(module)}
    return {name for name, parameter in policy.named_parameters() if id(parameter) in folded_ids}


def tensors_of(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    """The parameters and buffers themselves, not copies, by name."""
    return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}


@th.no_grad()
def restore(policy: ActorCriticPolicy, saved: Mapping[str, th.Tensor]) -> None:
    """Bring parameters back bit for bit: the one place where that is done."""
    unfold(policy)
    named = tensors_of(policy)
    for name, value in saved.items():
        named[name].copy_(value)


def is_finite(tensor: th.Tensor) -> bool:
    """Whether all numbers are finite; what cannot be asked (sparse, quantised, of eight bits) is taken to be."""
    try:
        return bool(th.isfinite(tensor).all())
    except RuntimeError:
        return True


def are_same(one: th.Tensor, other: th.Tensor) -> bool:
    """Whether two tensors are equal; what cannot be asked is taken not to be."""
    try:
        return th.equal(one, other)
    except RuntimeError:
        return False


def fingerprint(policy: ActorCriticPolicy, with_optimizer: bool = False) -> str:
    """A hash of all parameters and of which are trainable, with the optimiser's state or without: any change shows."""
    folded = folded_into(policy)
    digest = hashlib.blake2b(digest_size=16)
    for name, _ in policy.named_buffers():  # known by name; their values may follow the data
        digest.update(name.encode())
    for name, parameter in policy.named_parameters():
        digest.update(f"{name} {'trainable' if parameter.requires_grad else 'frozen'}".encode())
        if name not in folded:
            digest.update(_bytes_of(parameter))
    if with_optimizer:
        digest.update(type(policy.optimizer).__name__.encode())
        for leaf in _leaves(policy.optimizer.state_dict().get("state", {})):
            digest.update(_bytes_of(leaf) if isinstance(leaf, th.Tensor) else repr(leaf).encode())
    return digest.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    """The leaves of nested dicts, whose keys are leaves too, and of sequences."""
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def _bytes_of(tensor: th.Tensor) -> bytes:
    array: npt.NDArray[np.uint8] = tensor.detach().reshape(-1).contiguous().cpu().view(th.uint8).numpy()
    return array.tobytes()

"""The policy as a function of its parameters: evaluated anywhere, changed nowhere."""

import copy
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.func import functional_call

from sb3_trustregion.core.batch import pieces_of
from sb3_trustregion.core.distributions import Observations, Parameters, distribution_parameters, preserved_distribution


class PolicyFunction(nn.Module):
    """A function of the policy's parameters and of its arguments; a subclass says which, in ``forward``."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = uncompiled(policy)
        self._sites = tensor_sites(self.policy)

    def at(self, tensors: Mapping[str, th.Tensor], *arguments: Any) -> Any:
        """What ``forward`` returns of the arguments with these tensors, by name, in place of parameters and buffers."""
        unfold(self.policy)
        for name, value in tensors.items():
            if value.requires_grad:  # to its gradient is done what the user's hooks do to that of the parameter itself
                for hook in (getattr(self.policy.get_parameter(name), "_backward_hooks", None) or {}).values():
                    value.register_hook(hook)  # type: ignore[no-untyped-call]
        replaced = {f"policy.{site}": value for name, value in tensors.items() for site in self._sites[name]}
        # Tied weights are listed above: left to functional_call, a module known by two names is not put back right.
        return functional_call(self, replaced, arguments, tie_weights=False)


class ActionHead(PolicyFunction):
    """The actor: log-probabilities and parameters of the action distribution; ``kind`` is that of the last one."""

    kind: Distribution

    def forward(self, observations: Observations, actions: th.Tensor) -> tuple[th.Tensor, Parameters]:
        """Log π(a|s) of n actions, shape (n,), and the parameters of their distributions."""
        with preserved_distribution(self.policy):
            # Of its own: who calls predict() in another thread meanwhile fills the policy's anew.
            distribution = copy.copy(self.policy.get_distribution(observations))
            self.kind = distribution
            return distribution.log_prob(actions), distribution_parameters(distribution)


class ValueHead(PolicyFunction):
    """The critic: values."""

    def forward(self, observations: Observations) -> th.Tensor:
        """V(s) of n observations, shape (n,)."""
        return self.policy.predict_values(observations).flatten()


def uncompiled(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """The policy itself, whose parameters have their own names, where ``torch.compile`` has wrapped it."""
    original: ActorCriticPolicy = getattr(policy, "_orig_mod", policy)
    return original


def pieces_for(policy: ActorCriticPolicy, observations: Observations) -> list[slice]:
    """As ``pieces_of``: of many actions KL and log-probabilities, some numbers of double precision each, need more."""
    return pieces_of(observations, 8 * spaces.flatdim(policy.action_space))


def unfold(policy: ActorCriticPolicy) -> None:
    """Show parameters folded away in evaluation, as by LoRA, whose layers override ``train``; all else stays so."""
    for module in policy.modules():
        if has_ways_of_training(module) and not module.training:
            modes = {part: part.training for part in module.modules()}
            module.train(True)
            for part, mode in modes.items():
                # What folds itself counts on its flag; what looks at it while it acts, as for dropout, is to act.
                if not folded_in(part):
                    part.training = mode


def has_ways_of_training(module: nn.Module) -> bool:
    """Whether a module overrides ``train``."""
    return type(module).train is not nn.Module.train


def folded_in(module: nn.Module) -> list[nn.Parameter]:
    """The frozen parameters of a module itself that others may be folded into, and out of again."""
    own = module.parameters(recurse=False) if has_ways_of_training(module) else ()
    return [parameter for parameter in own if not parameter.requires_grad]


def tensor_sites(module: nn.Module) -> dict[str, list[str]]:
    """By the first name of each parameter and buffer those of all places that hold it: weights may be tied."""
    sites: dict[int, list[str]] = {}
    for prefix, submodule in module.named_modules():  # each submodule once, whatever it is called elsewhere
        tensors = {**submodule._parameters, **submodule._buffers}
        for name, tensor in tensors.items():
            if tensor is not None:
                sites.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {names[0]: names for names in sites.values()}

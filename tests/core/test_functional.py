import copy
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trustregion.core.functional import ActionHead, ValueHead, tensor_sites
from tests.core.policies import KINDS, Untouched, make_policy, perturb, sample_observations

every_kind = pytest.mark.parametrize("kind", KINDS)


def elsewhere(policy: Any) -> tuple[Any, dict[str, th.Tensor]]:
    """Another policy of the same shapes, and its parameters by name."""
    other = copy.deepcopy(policy)
    perturb(other, 0.5)
    return other, {name: parameter.detach() for name, parameter in other.named_parameters()}


@every_kind
def test_the_heads_are_the_policy_with_other_parameters(kind: str) -> None:
    policy = make_policy(kind)
    observations = sample_observations(policy, 4)
    other, parameters = elsewhere(policy)
    before = Untouched.of(policy)
    with th.no_grad():
        values = ValueHead(policy).at(parameters, observations)
        assert th.equal(values, other.predict_values(observations).flatten())
        assert not th.equal(values, ValueHead(policy).at({}, observations))
        distribution = other.get_distribution(observations)
        actions = distribution.sample() if not policy.use_sde else distribution.mode()
        log_probs, _ = ActionHead(policy).at(parameters, observations, actions)
        assert th.equal(log_probs, distribution.log_prob(actions))
        assert not th.equal(log_probs, ActionHead(policy).at({}, observations, actions)[0])
    before.check(policy)


@every_kind
def test_calls_and_failures_leave_the_modules_as_they_were(kind: str) -> None:
    """What PyTorch swaps in for a call is swapped out of every place that it went to."""
    policy = make_policy(kind)
    observations = sample_observations(policy, 4)
    _, parameters = elsewhere(policy)
    before = Untouched.of(policy)
    names = [name for name, _ in policy.named_parameters(remove_duplicate=False)]
    ValueHead(policy).at(parameters, observations)
    with pytest.raises((RuntimeError, TypeError)):
        ValueHead(policy).at({name: value[..., None] for name, value in parameters.items()}, observations)
    before.check(policy)
    assert [name for name, _ in policy.named_parameters(remove_duplicate=False)] == names


class Tied(nn.Module):
    """One module under two names, one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.again = self.first
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", th.ones(1))


def test_all_places_of_a_tensor_are_known() -> None:
    assert tensor_sites(Tied()) == {
        "first.weight": ["first.weight", "second.weight"],
        "first.bias": ["first.bias"],
        "scale": ["scale"],
    }

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trustregion.core.distributions import distribution_parameters
from sb3_trustregion.core.parameters import (
    NOBODY,
    actor_parameters,
    critic_parameters,
    fingerprint,
    restore,
    snapshot,
)
from tests.core.policies import BOX, KINDS, VECTOR, Untouched, actor_of, make_policy, sample_observations

every_kind = pytest.mark.parametrize("kind", KINDS)


class Misnamed(ActorCriticPolicy):
    """The actor's last layer is called after the critic, and the critic's after the actor."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_something = self.action_net
        self.action_judge = self.value_net
        del self.action_net, self.value_net

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return self.action_dist.proba_distribution(self.value_something(latent_pi), self.log_std)

    def predict_values(self, obs: Any) -> th.Tensor:
        features = self.extract_features(obs, self.vf_features_extractor)
        return self.action_judge(self.mlp_extractor.forward_critic(features))


def misnamed() -> Misnamed:
    return Misnamed(VECTOR, BOX, lambda _: 1e-3, net_arch=[4])


def names_of(policy: ActorCriticPolicy, parameters: list[nn.Parameter]) -> set[str]:
    identities = {id(parameter) for parameter in parameters}
    return {name for name, parameter in policy.named_parameters() if id(parameter) in identities}


def response(policy: ActorCriticPolicy, name: str, critic: bool) -> float:
    """By how much the policy's (or the critic's) output moves when a parameter does."""
    observations = sample_observations(policy, 5)

    def output() -> th.Tensor:
        with th.no_grad():
            if critic:
                return policy.predict_values(observations).flatten()
            outputs = distribution_parameters(copy.deepcopy(policy).get_distribution(observations))
            return th.cat([part.reshape(-1) for part in outputs])

    before = output()
    parameter = dict(policy.named_parameters())[name]
    kept = parameter.detach().clone()
    with th.no_grad():
        parameter.add_(0.1)
    after = output()
    with th.no_grad():
        parameter.copy_(kept)
    return float((after - before).abs().max())


@every_kind
def test_the_actor_is_what_moves_the_distribution(kind: str) -> None:
    policy = make_policy(kind)
    actor = actor_of(policy)
    critic = names_of(policy, critic_parameters(policy, actor))
    everything = {name for name, _ in policy.named_parameters()}
    assert set(actor.names) | critic == everything
    assert not set(actor.names) & critic
    for name in everything:
        assert (response(policy, name, critic=False) > 0.0) == (name in actor.names)
    assert all(response(policy, name, critic=True) > 0.0 for name in critic)


def test_a_shared_features_extractor_belongs_to_the_actor() -> None:
    shared = make_policy("image")
    actor = actor_of(shared)
    critic = names_of(shared, critic_parameters(shared, actor))
    assert any("features_extractor" in name for name in actor.names)
    assert not any("features_extractor" in name for name in critic)

    separate = make_policy("separate_images")
    actor = actor_of(separate)
    critic = names_of(separate, critic_parameters(separate, actor))
    assert any("features_extractor" in name for name in actor.names)
    assert any(name.startswith("vf_features_extractor") for name in critic)
    assert not any(name.startswith("vf_features_extractor") for name in actor.names)


def test_names_do_not_matter() -> None:
    policy = misnamed()
    actor = actor_of(policy)
    critic = names_of(policy, critic_parameters(policy, actor))
    assert {"value_something.weight", "value_something.bias", "log_std"} <= set(actor.names)
    assert {"action_judge.weight", "action_judge.bias"} <= critic
    assert not critic & set(actor.names)


def test_frozen_parameters_belong_to_nobody() -> None:
    policy = make_policy("image")
    frozen = [name for name, _ in policy.named_parameters() if "features_extractor" in name or name == "value_net.bias"]
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    actor = actor_of(policy)
    critic = names_of(policy, critic_parameters(policy, actor))
    assert len(frozen) > 1
    assert not set(frozen) & (set(actor.names) | critic)
    assert {"action_net.weight", "action_net.bias"} <= set(actor.names)
    assert "value_net.weight" in critic


def test_where_all_that_acts_is_frozen_nobody_does() -> None:
    policy = make_policy("box")
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.startswith("value_net"))
    assert actor_of(policy) == NOBODY
    assert names_of(policy, critic_parameters(policy, NOBODY)) == {"value_net.weight", "value_net.bias"}
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    assert actor_of(policy) == NOBODY
    assert critic_parameters(policy, NOBODY) == []


@every_kind
def test_finding_the_actor_leaves_the_policy_as_it_was(kind: str) -> None:
    policy = make_policy(kind)
    before = Untouched.of(policy)
    with th.no_grad():  # nor does it need the caller's gradients
        actor_parameters(policy, sample_observations(policy, 2))
    before.check(policy)


@every_kind
def test_parameters_make_one_vector_and_come_back(kind: str) -> None:
    policy = make_policy(kind)
    actor = actor_of(policy)
    vector = actor.flatten(policy)
    assert vector.shape == (sum(actor.sizes),)
    named = dict(policy.named_parameters())
    for name, value in actor.unflatten(vector).items():
        assert th.equal(value, named[name])

    before = snapshot(policy)
    wanted = vector + th.arange(len(vector), dtype=vector.dtype)
    actor.write(policy, wanted)
    assert th.equal(actor.flatten(policy), wanted)
    critic = names_of(policy, critic_parameters(policy, actor))
    assert all(th.equal(named[name], before[name]) for name in critic)
    assert all(not th.equal(named[name], before[name]) for name in actor.names)


def test_the_vector_is_a_copy() -> None:
    policy = make_policy("box")
    actor = actor_of(policy)
    before = Untouched.of(policy)
    actor.flatten(policy).zero_()
    before.check(policy)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_written(value: float) -> None:
    policy = make_policy("box")
    actor = actor_of(policy)
    before = Untouched.of(policy)
    vector = actor.flatten(policy)
    vector[-1] = value
    with pytest.raises(ValueError, match="policy parameters must be finite"):
        actor.write(policy, vector)
    before.check(policy)


def buffered(kind: str = "separate_images") -> ActorCriticPolicy:
    policy = make_policy(kind)
    policy.register_buffer("counts", th.tensor([1, 2]))
    policy.register_buffer("statistics", th.randn(3))
    return policy


# Copies know nothing of a frozen parameter


def test_a_snapshot_is_of_what_an_update_may_change() -> None:
    policy = buffered()
    policy.log_std.requires_grad_(False)
    names = {name for name, _ in policy.named_parameters()} - {"log_std"}
    assert snapshot(policy).keys() == names | {"counts", "statistics"}


def some_steps(policy: ActorCriticPolicy, rate: float = 0.0) -> None:
    for parameter in policy.parameters():
        parameter.grad = th.ones_like(parameter)
    policy.optimizer.param_groups[0]["lr"] = rate
    policy.optimizer.step()


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_a_fingerprint_tells_any_change_of_the_policy(with_optimizer: bool) -> None:
    policy = make_policy("box", double=False)
    original = fingerprint(policy, with_optimizer)
    assert fingerprint(copy.deepcopy(policy), with_optimizer) == original
    weight = policy.action_net.weight
    seen = {original}
    with th.no_grad():
        weight[0, 0] = float(np.nextafter(np.float32(weight[0, 0]), np.float32(9.0)))  # one bit
    seen.add(fingerprint(policy, with_optimizer))
    weight.requires_grad_(False)
    seen.add(fingerprint(policy, with_optimizer))
    policy.value_net.weight = nn.Parameter(policy.value_net.weight.T.clone().T + 1.0)
    seen.add(fingerprint(policy, with_optimizer))
    assert len(seen) == 4


def test_the_optimisers_state_counts_where_it_is_asked_for() -> None:
    policy = make_policy("box")
    plain, joint = fingerprint(policy), fingerprint(policy, with_optimizer=True)
    some_steps(policy)
    assert fingerprint(policy) == plain
    after = fingerprint(policy, with_optimizer=True)
    assert after != joint
    state = policy.optimizer.state_dict()
    policy.optimizer.param_groups[0]["lr"] = 0.5  # a schedule goes on
    assert fingerprint(policy, with_optimizer=True) == after
    policy.optimizer = th.optim.SGD(policy.parameters(), lr=0.0, momentum=0.9)
    assert fingerprint(policy, with_optimizer=True) not in (joint, after)
    policy.optimizer = th.optim.Adam(policy.parameters())
    policy.optimizer.load_state_dict(state)
    assert fingerprint(policy, with_optimizer=True) == after


def spoil(policy: ActorCriticPolicy, value: float) -> None:
    with th.no_grad():
        for tensor in [*policy.parameters(), *policy.buffers()]:
            tensor.fill_(int(value) if not tensor.is_floating_point() else value)


@pytest.mark.parametrize("value", [math.nan, 7.0])
def test_a_policy_comes_back_bit_for_bit(value: float) -> None:
    policy = buffered()
    before, state = Untouched.of(policy), snapshot(policy)
    spoil(policy, value if math.isfinite(value) else 0.0)
    with th.no_grad():
        policy.action_net.weight.fill_(value)
    assert not th.equal(policy.action_net.weight, before.tensors["action_net.weight"])
    restore(policy, state)
    before.check(policy)


def test_some_names_come_back_alone() -> None:
    policy = buffered()
    actor = actor_of(policy)
    before = snapshot(policy)
    spoil(policy, 7.0)
    restore(policy, {name: before[name] for name in actor.names})
    now = snapshot(policy)
    assert set(now) > set(actor.names)
    assert all(th.equal(now[name], before[name]) == (name in actor.names) for name in now)


def test_restoring_keeps_the_parameters_themselves() -> None:
    """An optimiser holds on to the objects."""
    policy = make_policy("box")
    objects = list(policy.parameters())
    restore(policy, snapshot(policy))
    assert all(one is other for one, other in zip(objects, policy.parameters(), strict=True))


def test_a_tensor_known_by_two_names_is_saved_once() -> None:
    policy = make_policy("image")  # the extractor is also the actor's and the critic's
    tensors = list(snapshot(policy).values())
    assert len(tensors) == len(list(policy.parameters()))

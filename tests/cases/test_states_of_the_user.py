"""What the user's modules and buffers keep for themselves: infinite masks, flags, lists, heads of another purpose."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.utils.checkpoint import checkpoint

from sb3_trustregion import NPG, AdaptiveTRPO
from tests.helpers import ALGORITHMS, actor_of, all_finite, differs, make_model, state_of, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


class Masked(BaseFeaturesExtractor):
    """A causal mask, as attention adds it to its scores."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.net = th.nn.Linear(int(np.prod(observation_space.shape)), 4)
        self.register_buffer("mask", th.triu(th.full((4, 4), -th.inf), diagonal=1))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        weights = th.softmax(self.mask, dim=-1)
        features: th.Tensor = self.net(observations.flatten(1)) @ weights
        return features


class Checkpointed(Masked):
    """Activations are computed once more in the backward pass."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = checkpoint(super().forward, observations, use_reentrant=False)
        return features


@pytest.mark.parametrize("extractor", [Masked, Checkpointed])
@each_algorithm
def test_every_update_counts(algorithm: type[Any], extractor: type[Masked]) -> None:
    model = make_model(algorithm, policy_kwargs={"features_extractor_class": extractor, "net_arch": []})
    before = actor_of(model, state_of(model.policy))
    train(model, 3)
    after = actor_of(model, state_of(model.policy))
    assert model.n_invalid == 0
    assert differs(before, after)


class WithFlag(RolloutBuffer):
    """A weight for each sample, laid out where it is first asked for, as ``generator_ready`` has it."""

    def reset(self) -> None:
        super().reset()
        self.weights, self.is_prepared = np.ones((self.buffer_size, self.n_envs), dtype=np.float32), False

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        if not self.is_prepared:
            self.weights, self.is_prepared = self.swap_and_flatten(self.weights), True
        yield from super().get(batch_size)

    def _get_samples(self, batch_inds: Any, env: Any = None) -> RolloutBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(advantages=samples.advantages * self.to_torch(self.weights[batch_inds].flatten()))


class WithList(WithFlag):
    """The weights come one by one, and are used up."""

    def reset(self) -> None:
        super().reset()
        self.notes: list[Any] = []

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.notes.append(np.ones(self.n_envs, dtype=np.float32))
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        if self.notes:
            self.weights = np.stack(self.notes)
            self.notes.clear()
        yield from super().get(batch_size)


@pytest.mark.parametrize("buffer", [WithFlag, WithList])
@each_algorithm
def test_buffers_with_a_state_of_their_own(algorithm: type[Any], buffer: type[RolloutBuffer]) -> None:
    model, plain = (make_model(algorithm, rollout_buffer_class=one) for one in (buffer, RolloutBuffer))
    for one in (model, plain):
        train(one, 3)
        assert one.n_invalid == 0
    assert all_finite(state_of(model.policy))


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_a_head_of_another_purpose_beside_a_frozen_critic(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.policy.auxiliary = th.nn.Linear(2, 2)
    for module in (model.policy.value_net, model.policy.mlp_extractor.value_net):
        module.requires_grad_(False)
    before = state_of(model.policy)
    train(model, 2)
    after = state_of(model.policy)
    assert th.equal(before["auxiliary.weight"], after["auxiliary.weight"])
    assert differs(actor_of(model, before), actor_of(model, after))

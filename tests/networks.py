"""Policies that users might bring."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn


class Reading(FlattenExtractor):
    """Takes NaN for a missing value."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(th.nan_to_num(observations))


class OddlyNamedExtractor(nn.Module):
    """A two-headed network whose actor is called a value and whose critic is not."""

    def __init__(self, features_dim: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 8
        self.value_free_actor = nn.Sequential(nn.Linear(features_dim, 8), nn.Tanh())
        self.judge = nn.Sequential(nn.Linear(features_dim, 8), nn.Tanh())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.value_free_actor(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.judge(features)


class OddlyNamedPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OddlyNamedExtractor(self.features_dim)


class PolicyWithExtraHead(ActorCriticPolicy):
    """A head for some other loss: nobody here may touch it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world_model = nn.Linear(3, 3)
        self.frozen = nn.Parameter(th.ones(2), requires_grad=False)


class LayeredExtractor(BaseFeaturesExtractor):
    """:param layer: put between two linear ones"""

    def __init__(self, observation_space: spaces.Box, layer: type[nn.Module], **kwargs: Any) -> None:
        super().__init__(observation_space, 8)
        self.layers = nn.Sequential(nn.Linear(3, 8), layer(8, **kwargs), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


class Dropout(nn.Dropout):
    def __init__(self, features: int) -> None:
        super().__init__(0.5)

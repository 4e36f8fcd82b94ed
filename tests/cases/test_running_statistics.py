"""Statistics that a policy keeps of its observations follow the data, whatever keeps them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from tests.helpers import ALGORITHMS, MEASURING, assert_same, make_model, shared, state_of


class Far(gym.Env[Any, Any]):
    """Observations around 100."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(100, 5, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        over = bool(self.np_random.random() < 0.1)
        return self.np_random.normal(100, 5, 2).astype(np.float32), float(action), over, False, {}


class Buffers(th.nn.Module):
    """Running mean in buffers, as imitation's RunningNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(2))
        self.register_buffer("var", th.ones(2))
        self.register_buffer("count", th.zeros((), dtype=th.int64))

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.training:
            with th.no_grad():
                self.count += len(x)
                weight = len(x) / self.count
                self.mean += weight * (x.mean(0) - self.mean)
                self.var += weight * (x.var(0, unbiased=False) - self.var)
        return (x - self.mean) / (self.var + 1e-4).sqrt()


class Plain(th.nn.Module):
    """Running mean in plain attributes, which no state_dict knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.count = np.zeros(2), 0

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.training:
            self.count += len(x)
            self.mean = self.mean + len(x) / self.count * (x.detach().numpy().mean(0) - self.mean)
        return x - th.as_tensor(self.mean, dtype=x.dtype)


class Frozen(th.nn.Module):
    """Statistics in parameters without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = th.nn.Parameter(th.zeros(2), requires_grad=False)
        self.count = 0

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.training:
            self.count += len(x)
            self.mean.data += len(x) / self.count * (x.mean(0) - self.mean.data)
        return x - self.mean


class Extractor(BaseFeaturesExtractor):
    def __init__(self, space: gym.spaces.Box, layer: type[th.nn.Module], **kwargs: Any) -> None:
        super().__init__(space, 2)
        self.norm = layer(**kwargs)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(observations)


LAYERS: dict[str, dict[str, Any]] = {
    "batch norm": {"layer": th.nn.BatchNorm1d, "num_features": 2},
    "batch norm without weights": {"layer": th.nn.BatchNorm1d, "num_features": 2, "affine": False},
    "cumulative batch norm": {"layer": th.nn.BatchNorm1d, "num_features": 2, "momentum": None},
    "buffers": {"layer": Buffers},
    "plain attributes": {"layer": Plain},
    "parameters": {"layer": Frozen},
}


def mean_of(norm: th.nn.Module) -> float:
    return float((norm.running_mean if hasattr(norm, "running_mean") else norm.mean)[0])


@pytest.mark.parametrize(
    ("algorithm", "kind", "separate"),
    [
        *shared([*((kind, False) for kind in LAYERS), ("batch norm", True)]),
        *((AdaptivePPO, *case) for case in (("plain attributes", False), ("batch norm", True))),
    ],
)
def test_statistics_follow_the_data(algorithm: type[Any], kind: str, separate: bool) -> None:
    policy_kwargs = {
        "net_arch": [8],
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": LAYERS[kind],
        "share_features_extractor": not separate,
    }
    env = DummyVecEnv([Far] * 8)
    model = make_model(algorithm, env, n_steps=16, batch_size=32, policy_kwargs=policy_kwargs).learn(128 * 6)
    extractors = [model.policy.pi_features_extractor, model.policy.vf_features_extractor]
    for extractor in extractors:
        assert mean_of(extractor.norm) == pytest.approx(100.0, abs=10.0)
    if algorithm in MEASURING:
        # The data moved the policy, not the step: still the step can be judged, and few are undone.
        assert model.region.n_judged >= 3
        assert model.region.n_rollbacks <= 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_statistics_are_saved(tmp_path: Any, algorithm: type[Any]) -> None:
    policy_kwargs = {"features_extractor_class": Extractor, "features_extractor_kwargs": LAYERS["batch norm"]}
    model = make_model(algorithm, Far(), n_steps=32, policy_kwargs=policy_kwargs).learn(64)
    model.save(tmp_path / "model")
    assert_same(state_of(algorithm.load(tmp_path / "model", device="cpu").policy), state_of(model.policy))


def test_statistics_of_a_shared_extractor_see_the_data_as_often_as_the_critic_is_fitted() -> None:
    arguments = {"features_extractor_class": Extractor, "features_extractor_kwargs": LAYERS["buffers"]}
    model = make_model(AdaptiveTRPO, DummyVecEnv([Far] * 8), n_steps=16, policy_kwargs=arguments).learn(128)
    assert int(model.policy.features_extractor.norm.count) == model.n_critic_updates * 128

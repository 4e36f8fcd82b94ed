"""Observations that hold no number for what is missing, which the policy's extractor fills in, are learned from."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.core.line_search import StepStatus
from tests.faults.checks import assert_finite
from tests.helpers import ALGORITHMS, make_model, shared, train

VECTOR = spaces.Box(-np.inf, np.inf, (2,))
MISSING = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf}


class Task(gym.Env[Any, Any]):
    """
    One number of two is missing, always or by chance; the sign of the other tells the action that pays.

    :param missing: what stands for it
    :param share: of the steps at which it is missing
    :param as_dict: whether there is another observation beside it
    """

    def __init__(self, missing: float, share: float = 1.0, as_dict: bool = False) -> None:
        self.observation_space = spaces.Dict({"a": VECTOR, "b": spaces.Box(-1, 1, (1,))}) if as_dict else VECTOR
        self.action_space = spaces.Discrete(2)
        self.missing, self.share, self.as_dict = missing, share, as_dict

    def _observe(self) -> Any:
        self.sign = self.np_random.uniform(-1, 1)
        second = self.missing if self.np_random.random() < self.share else 0.5
        seen = np.array([self.sign, second], np.float32)
        return {"a": seen, "b": np.zeros(1, np.float32)} if self.as_dict else seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float((self.sign > 0.0) == bool(action))
        self.n_steps += 1
        over = self.n_steps % 10 == 0
        return self._observe(), reward, over and self.n_steps % 20 > 0, over and self.n_steps % 20 == 0, {}


def filled(x: th.Tensor) -> th.Tensor:
    known = x.isfinite()
    return th.cat([th.where(known, x, 0.0), known.float()], dim=1)


class Filled(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 4)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return filled(x)


class FilledDict(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space, 5)

    def forward(self, x: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([filled(x["a"]), x["b"]], dim=1)


def model_of(algorithm: type[Any], env: VecEnv) -> Any:
    as_dict = isinstance(env.observation_space, spaces.Dict)
    policy_kwargs = {"net_arch": [8], "features_extractor_class": FilledDict if as_dict else Filled}
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    return make_model(algorithm, env, policy, n_steps=32, batch_size=32, policy_kwargs=policy_kwargs)


def tasks(*args: Any, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Task(*args, **kwargs)] * 2)


WRAPPERS = {
    "plain": lambda env: env,
    "rewards normalised": lambda env: VecNormalize(env, norm_obs=False),
    "other key normalised": lambda env: VecNormalize(env, norm_obs_keys=["b"]),
}
CASES = [
    *[("plain", missing, 0.3, False) for missing in MISSING],
    ("plain", "nan", 1.0, False),
    ("plain", "nan", 0.3, True),
    ("rewards normalised", "nan", 1.0, False),
    ("rewards normalised", "nan", 0.3, True),
    ("rewards normalised", "inf", 0.3, False),
    ("other key normalised", "nan", 1.0, True),
]


@pytest.mark.parametrize(
    ("algorithm", "wrapper", "missing", "share", "as_dict"),
    [*shared(CASES), *((algorithm, *CASES[-1]) for algorithm in ALGORITHMS if algorithm is not AdaptiveTRPO)],
)
def test_missing_values_are_learned_from(
    algorithm: type[Any], wrapper: str, missing: str, share: float, as_dict: bool
) -> None:
    model = model_of(algorithm, WRAPPERS[wrapper](tasks(MISSING[missing], share, as_dict)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*left out of training")
        updates = train(model, 3)
    assert model.n_faulty_steps == 0
    assert [update.status for update in updates].count(StepStatus.INVALID) == 0
    assert_finite(model)


@pytest.mark.filterwarnings("ignore:.*left out of training", "ignore:.*updates without a policy step")
@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_where_the_policy_cannot_the_step_is_left_out(algorithm: type[Any]) -> None:
    """The counterpart: no extractor, hence bad data."""
    model = make_model(algorithm, tasks(np.nan, 0.1), n_steps=64)
    train(model, 3)
    assert 0 < model.n_faulty_steps < 3 * 128
    assert_finite(model)


@pytest.mark.filterwarnings("ignore:.*left out of training")
@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_a_bad_reward_is_left_out_nevertheless(algorithm: type[Any]) -> None:
    env = tasks(np.nan)
    model = model_of(algorithm, env)
    step, count = env.step_wait, iter(range(10_000))

    def spoilt() -> Any:
        observations, rewards, *rest = step()
        if next(count) == 20:
            rewards[0] = np.nan
        return observations, rewards, *rest

    env.step_wait = spoilt  # type: ignore[method-assign]
    train(model, 2)
    assert model.n_faulty_steps == 1
    assert_finite(model)

"""Mistakes told by their own name, and values that stock takes."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.checkpoint import ResumableCheckpointCallback, resume
from tests.helpers import ALGORITHMS, make_model, state_of, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def wide() -> gym.Env[Any, Any]:
    return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda o: o, gym.spaces.Box(-9, 9, (4,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    model = AdaptiveTRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, device="cpu")
    model.learn(192, callback=ResumableCheckpointCallback(64, path))
    return path


@pytest.mark.parametrize(
    ("algorithm", "env", "arguments", "told"),
    [
        (AdaptiveTRPO, wide, {}, "spaces do not match"),
        (AdaptiveTRPO, lambda: gym.make("MountainCar-v0"), {}, "spaces do not match"),
        (AdaptiveTRPO, lambda: gym.make("CartPole-v1"), {"gamma": 2.0}, "gamma must be"),
        (AdaptivePPO, lambda: gym.make("CartPole-v1"), {}, "from_stock"),
    ],
    ids=["another range", "another task", "an argument", "another class"],
)
def test_resume_tells_a_mistake_by_its_name(
    folder: Path, algorithm: type[Any], env: Any, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as found:
        resume(algorithm, folder, env(), device="cpu", **arguments)
    assert "must hold a complete checkpoint" not in str(found.value)


def test_resume_of_the_name_of_an_environment(folder: Path) -> None:
    """As in the README's first example: it works, or says what it needs."""
    try:
        assert resume(AdaptiveTRPO, folder, "CartPole-v1", device="cpu").num_timesteps == 192
    except (TypeError, ValueError) as error:
        assert "env" in str(error)  # noqa: PT017
        assert "complete checkpoint" not in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stock") / "ppo.zip"
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu").save(path)
    return path


@pytest.mark.parametrize("env", [wide, lambda: gym.make("MountainCar-v0")], ids=["another range", "another task"])
@each_algorithm
def test_from_stock_checks_spaces(stock: Path, algorithm: type[Any], env: Any) -> None:
    with pytest.raises(ValueError, match="spaces do not match"):
        PPO.load(stock, env=env())
    with pytest.raises(ValueError, match="spaces do not match"):
        algorithm.from_stock(stock, env(), device="cpu")


@each_algorithm
def test_from_stock_takes_custom_objects(stock: Path, algorithm: type[Any]) -> None:
    custom = {"lr_schedule": lambda _: 1e-3, "learning_rate": 1e-3, "gamma": 0.5}
    model = algorithm.from_stock(stock, "CartPole-v1", device="cpu", custom_objects=custom)
    assert model.gamma == 0.5
    assert model.learn(64).num_timesteps == 64


VALUES: list[dict[str, Any]] = [
    {"gamma": np.float32(0.9)},
    {"gamma": 1},
    {"n_steps": np.int64(32)},
    {"batch_size": np.int32(32)},
    {"normalize_advantage": np.True_},
    {"normalize_advantage": 1},
    {"use_sde": np.False_},
    {"gae_lambda": np.array(0.9)},
    {"verbose": np.int64(0)},
]
OF_PPO: list[dict[str, Any]] = [
    {"max_grad_norm": float("inf")},
    {"target_kl": float("inf")},
    {"clip_range_vf": np.float64(0.2)},
    {"ent_coef": np.float32(0.01)},
    {"ent_coef": -0.01},
    {"n_epochs": np.int64(2)},
    {"vf_coef": 0},
]
CASES = [
    *[(AdaptiveTRPO, arguments) for arguments in VALUES],
    *[(AdaptivePPO, arguments) for arguments in [*VALUES[2:5], *OF_PPO]],
]


@pytest.mark.parametrize(("algorithm", "arguments"), CASES, ids=str)
def test_values_that_stock_takes(tmp_path: Path, algorithm: type[Any], arguments: dict[str, Any]) -> None:
    if algorithm is AdaptivePPO:
        make_model(PPO, **arguments).learn(64)
    model = make_model(algorithm, **arguments)
    before = state_of(model.policy)
    train(model, 1)
    assert not th.equal(before["action_net.bias"], model.policy.action_net.bias)
    model.save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model", device="cpu").num_timesteps == 64

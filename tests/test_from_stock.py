"""``from_stock`` reads files as SB3's ``load`` does, and takes over the settings that keep their meaning."""

import base64
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from tests.environments import toy_vec_env
from tests.helpers import assert_same, state_of


def test_from_stock_checks_spaces_and_takes_custom_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SB3's ``load`` does, by the same errors."""
    monkeypatch.chdir(tmp_path)
    arguments = {"n_steps": 64, "batch_size": 32, "gamma": 0.9, "device": "cpu"}
    PPO("MlpPolicy", "CartPole-v1", clip_range=lambda _: 0.3, **arguments).save("stock")
    for env in (gym.make("MountainCar-v0"), gym.make("Acrobot-v1")):
        with pytest.raises(ValueError, match="Observation spaces do not match") as by_stock:
            PPO.load("stock", env=env)
        with pytest.raises(ValueError, match="Observation spaces do not match") as by_ours:
            AdaptivePPO.from_stock("stock", env)
        assert str(by_ours.value) == str(by_stock.value)
    with pytest.raises(ValueError, match="Action spaces do not match"):
        AdaptivePPO.from_stock("stock", OtherActions())

    clip_range = {"clip_range": 0.1}
    model = AdaptivePPO.from_stock("stock", "CartPole-v1", custom_objects=clip_range, print_system_info=True)
    assert (model.clip_range(1.0), model.gamma) == (0.1, 0.9)
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out
    assert AdaptivePPO.from_stock("stock", "CartPole-v1", gamma=0.8).gamma == 0.8
    with pytest.raises(ValueError, match="custom_objects argument must be a dict"):
        AdaptivePPO.from_stock("stock", "CartPole-v1", custom_objects=[1])


class OtherActions(gym.ActionWrapper):
    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.action_space = gym.spaces.Discrete(5)


def test_from_stock_says_what_cannot_be_unpickled(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu")
    path = tmp_path / "stock.zip"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(content["data"])
    pickled = pickle.dumps(ActorCriticPolicy).replace(b"ActorCriticPolicy", b"ActorCriticPolicx")
    data["policy_class"][":serialized:"] = base64.b64encode(pickled).decode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in {**content, "data": json.dumps(data).encode()}.items():
            archive.writestr(name, part)

    with (
        pytest.warns(UserWarning, match="policy_class"),
        pytest.raises(ValueError, match="custom_objects must hold policy"),
    ):
        AdaptivePPO.from_stock(path, "CartPole-v1")
    replaced = AdaptivePPO.from_stock(path, "CartPole-v1", custom_objects={"policy_class": ActorCriticPolicy})
    assert_same(state_of(replaced.policy), state_of(model.policy))


def test_from_stock_leaves_units_alone(tmp_path: Path) -> None:
    """``target_kl`` and ``cg_damping`` are per action dimension there and here."""
    TRPO("MlpPolicy", toy_vec_env(), n_steps=32, target_kl=0.02, cg_damping=0.05, device="cpu").save(tmp_path / "trpo")
    model = AdaptiveTRPO.from_stock(tmp_path / "trpo", toy_vec_env(), device="cpu")
    assert (model.target_kl, model.cg_damping) == (0.02, 0.05)
    # Its weights of the losses, all zero, are no settings of PPO's.
    other = AdaptivePPO.from_stock(tmp_path / "trpo", toy_vec_env(), device="cpu")
    assert (other.vf_coef, other.max_grad_norm, other.target_kl) == (0.5, 0.5, None)


def test_from_stock_takes_over_what_keeps_its_meaning(tmp_path: Path) -> None:
    shared = {"gamma": 0.9, "gae_lambda": 0.8, "learning_rate": 1e-4, "seed": 3, "verbose": 0, "device": "cpu"}
    A2C("MlpPolicy", toy_vec_env(), n_steps=16, ent_coef=0.1, **shared).save(tmp_path / "a2c")
    model = AdaptivePPO.from_stock(tmp_path / "a2c", toy_vec_env(), device="cpu", gae_lambda=0.7)
    assert (model.n_steps, model.gamma, model.gae_lambda) == (16, 0.9, 0.7)
    assert (model.learning_rate, model.ent_coef, model.seed) == (3e-4, 0.0, None)

    PPO("MlpPolicy", toy_vec_env(), n_steps=16, batch_size=32, clip_range_vf=0.4, **shared).save(tmp_path / "ppo")
    model = AdaptivePPO.from_stock(tmp_path / "ppo", toy_vec_env(), device="cpu")
    assert (model.learning_rate, model.batch_size, model.clip_range_vf(1.0), model.seed) == (1e-4, 32, 0.4, None)
    other = AdaptiveTRPO.from_stock(tmp_path / "ppo", toy_vec_env(), device="cpu")
    assert (other.n_steps, other.learning_rate, other.batch_size) == (16, 4e-3, 512)


@pytest.mark.parametrize("parent", [AdaptivePPO, AdaptiveTRPO])
def test_a_subclass_that_passes_arguments_on_takes_over_the_same(tmp_path: Path, parent: type[Any]) -> None:
    class WithBonus(parent):  # type: ignore[misc]
        def __init__(self, *args: Any, bonus: float = 0.0, **kwargs: Any) -> None:
            self.bonus = bonus
            super().__init__(*args, **kwargs)

    small = {"n_steps": 64, "batch_size": 32, "policy_kwargs": {"net_arch": [8]}}
    stock = PPO("MlpPolicy", "CartPole-v1", gamma=0.7, device="cpu", **small).learn(64)
    stock.save(tmp_path / "stock")
    model, of_parent = (
        algorithm.from_stock(tmp_path / "stock", "CartPole-v1", device="cpu", **own)
        for algorithm, own in ((WithBonus, {"bonus": 1.0}), (parent, {}))
    )
    assert (model.bonus, model.gamma, model.n_steps) == (1.0, 0.7, 64)
    assert_same(state_of(model.policy), state_of(stock.policy))
    moments, of_its = (one.policy.optimizer.state_dict()["state"] for one in (model, of_parent))
    assert moments.keys() == of_its.keys()
    assert bool(moments) == (parent is AdaptivePPO)


def test_from_stock_names_what_is_no_actor_critic(tmp_path: Path) -> None:
    DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu").save(tmp_path / "dqn")
    with pytest.raises(ValueError, match="path must be of a model with an ActorCriticPolicy, got one with DQNPolicy"):
        AdaptiveTRPO.from_stock(tmp_path / "dqn", "CartPole-v1")

"""What register() writes into RL Zoo, in this process."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3
from rl_zoo3 import enjoy, exp_manager, hyperparams_opt, train
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO

import sb3_trustregion
from sb3_trustregion.zoo import register, registration
from sb3_trustregion.zoo.samplers import sample
from tests.zoo.installations import ALGORITHMS, ROOT

TABLES = (rl_zoo3.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER)


@pytest.fixture(autouse=True)
def untouched_zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RL Zoo as it is without us, and as it was afterwards."""
    saved = [dict(table) for table in TABLES]
    for name in ("__init__", "_maybe_normalize"):
        method = getattr(ExperimentManager, name)
        monkeypatch.setattr(ExperimentManager, name, getattr(method, "__wrapped__", method))
    for table in TABLES:
        for name in ALGORITHMS:
            table.pop(name, None)
    yield
    for table, entries in zip(TABLES, saved, strict=True):
        table.clear()
        table.update(entries)


def make_manager(cls: type[ExperimentManager], algorithm: str, folder: Path, **kwargs: Any) -> ExperimentManager:
    return cls(argparse.Namespace(), algorithm, "CartPole-v1", str(folder), **kwargs)


def test_every_module_of_the_zoo_sees_the_algorithms() -> None:
    register()
    for module in (rl_zoo3, train, enjoy, exp_manager):
        for name in ALGORITHMS:
            assert module.ALGOS[name] is getattr(sb3_trustregion, sb3_trustregion.ALGORITHMS[name])


def test_samplers_and_converters_are_where_the_manager_looks() -> None:
    register()
    for name in ALGORITHMS:
        assert callable(exp_manager.HYPERPARAMS_SAMPLER[name])
        assert callable(exp_manager.HYPERPARAMS_CONVERTER[name])


def test_registering_again_changes_nothing() -> None:
    register()
    after_once = ([dict(table) for table in TABLES], ExperimentManager.__init__)
    register()
    assert ([dict(table) for table in TABLES], ExperimentManager.__init__) == after_once


def test_the_zoos_own_entries_stay() -> None:
    before = [dict(table) for table in TABLES]
    register()
    for table, entries in zip(TABLES, before, strict=True):
        assert {name: table[name] for name in entries} == entries
        assert set(table) - set(entries) == set(ALGORITHMS)


def test_what_a_user_put_there_stays() -> None:
    rl_zoo3.ALGOS["npg"] = rl_zoo3.ALGOS["ppo"]
    register()
    assert rl_zoo3.ALGOS["npg"] is rl_zoo3.ALGOS["ppo"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_default_file_is_ours(algorithm: str, tmp_path: Path) -> None:
    register()
    manager = make_manager(ExperimentManager, algorithm, tmp_path)
    assert Path(manager.config) == ROOT / "hyperparams" / f"{algorithm}.yml"


def test_subclasses_read_our_file_too(tmp_path: Path) -> None:
    register()

    class Manager(ExperimentManager):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert Path(make_manager(Manager, "npg", tmp_path).config) == ROOT / "hyperparams" / "npg.yml"


def test_a_file_that_is_given_wins(tmp_path: Path) -> None:
    register()
    assert make_manager(ExperimentManager, "npg", tmp_path, config="mine.yml").config == "mine.yml"


def test_other_algorithms_read_the_zoos_file(tmp_path: Path) -> None:
    register()
    path = Path(make_manager(ExperimentManager, "ppo", tmp_path).config)
    assert path == Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml"


def test_hyperparameters_are_found_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sb3_trustregion" / "hyperparams").mkdir(parents=True)
    monkeypatch.setattr(registration, "__file__", str(tmp_path / "sb3_trustregion" / "zoo" / "registration.py"))
    assert registration.hyperparameters_path("npg") == tmp_path / "sb3_trustregion" / "hyperparams" / "npg.yml"


def test_everything_of_an_algorithm_has_its_name_in_the_zoo() -> None:
    for name, class_name in sb3_trustregion.ALGORITHMS.items():
        assert getattr(sb3_trustregion, class_name).__module__ == f"sb3_trustregion.{name}"
        assert registration.hyperparameters_path(name).is_file()
        assert inspect.getdoc(getattr(sb3_trustregion, class_name))


def test_one_line_in_the_table_is_a_new_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module and a class are enough, even for the hyperparameter search."""
    module = ModuleType("sb3_trustregion.penalised_ppo")
    module.PenalisedPPO = type("PenalisedPPO", (PPO,), {"search_space": {"vf_coef": (0.1, 1.0)}})
    monkeypatch.setitem(sys.modules, "sb3_trustregion.penalised_ppo", module)
    monkeypatch.setitem(sb3_trustregion.ALGORITHMS, "penalised_ppo", "PenalisedPPO")
    monkeypatch.setattr(sb3_trustregion, "PenalisedPPO", module.PenalisedPPO, raising=False)
    register()
    assert rl_zoo3.ALGOS["penalised_ppo"] is module.PenalisedPPO
    sampled = sample("penalised_ppo", optuna.create_study().ask(), 0, 1, {})
    assert 0.1 <= sampled["vf_coef"] <= 1.0
    assert sampled["gamma"] < 1.0


def test_the_package_itself_is_lazy_and_says_what_it_lacks() -> None:
    assert set(dir(sb3_trustregion)) == {*sb3_trustregion.ALGORITHMS.values(), "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'TRPO'"):
        importlib.import_module("sb3_trustregion").TRPO  # noqa: B018


IMAGE, VECTOR = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8), gym.spaces.Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("space", "given", "expected"),
    [
        (gym.spaces.Discrete(3), {}, {"norm_obs": False}),
        (gym.spaces.MultiBinary(3), {}, {"norm_obs": False}),
        (IMAGE, {}, {"norm_obs": False}),
        (IMAGE, {"norm_obs": True}, {"norm_obs": True}),
        (VECTOR, {"clip_obs": 5.0}, {"clip_obs": 5.0}),
        (gym.spaces.Dict({"a": VECTOR, "b": IMAGE}), {"gamma": 0.9}, {"gamma": 0.9, "norm_obs_keys": ["a"]}),
        (gym.spaces.Dict({"b": IMAGE}), {}, {"norm_obs": False}),
        (gym.spaces.Dict({"a": VECTOR}), {}, {}),
    ],
)
@pytest.mark.parametrize("algorithm", ["npg", "ppo"])
def test_what_cannot_be_normalized_is_left_as_it_is(
    algorithm: str, space: gym.Space[Any], given: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    """Our ``default`` entries normalise, as far as a task allows it; what the Zoo does for others stays."""
    register()
    manager = make_manager(ExperimentManager, algorithm, tmp_path)
    manager.normalize, manager.normalize_kwargs = False, given
    env: Any = type("Env", (), {"observation_space": space})()
    assert manager._maybe_normalize(env, False) is env
    assert manager.normalize_kwargs == (expected if algorithm == "npg" else given)

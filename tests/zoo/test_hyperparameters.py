"""The YAML files."""

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import rl_zoo3
import yaml
from rl_zoo3.exp_manager import ExperimentManager

import sb3_trustregion
from sb3_trustregion import ALGORITHMS
from sb3_trustregion.zoo import register
from sb3_trustregion.zoo.registration import hyperparameters_path

MUJOCO = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid")
TASKS = {
    "default",
    "atari",
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "BipedalWalker-v3",
    *(f"{name}-{version}" for name in MUJOCO for version in ("v4", "v5")),
}
# What ExperimentManager takes out of an entry before it passes the rest to the constructor.
ZOO_KEYS = {"n_timesteps", "n_envs", "normalize", "frame_stack", "env_wrapper", "env_kwargs", "vec_env_wrapper"}

of_each = pytest.mark.parametrize("algorithm", ALGORITHMS)


def load(algorithm: str) -> dict[str, dict[str, Any]]:
    entries = yaml.safe_load(hyperparameters_path(algorithm).read_text())
    assert isinstance(entries, dict)
    return entries


@of_each
def test_every_task_has_an_entry(algorithm: str) -> None:
    assert set(load(algorithm)) >= TASKS


@of_each
def test_every_key_means_something(algorithm: str) -> None:
    arguments = set(inspect.signature(getattr(sb3_trustregion, ALGORITHMS[algorithm]).__init__).parameters)
    unknown = {(task, key) for task, entry in load(algorithm).items() for key in set(entry) - arguments - ZOO_KEYS}
    assert unknown == set()


@of_each
@pytest.mark.filterwarnings("ignore:.*is out of date", "ignore:You have specified a mini-batch size")
def test_every_entry_makes_a_model(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of RL Zoo's own manager. Atari's needs packages that are not ours to install."""
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    register()
    for task in set(load(algorithm)) - {"default", "atari"} | {"MountainCar-v0"}:  # the last has no entry: default
        args = argparse.Namespace()
        manager = ExperimentManager(args, algorithm, task, str(tmp_path), eval_freq=-1, verbose=0, device="cpu")
        result = manager.setup_experiment()
        assert result is not None
        model, _ = result
        assert type(model) is getattr(sb3_trustregion, ALGORITHMS[algorithm])
        assert model.env is not None
        model.env.close()


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"adaptive_trpo"}))  # whose entries are tuned
def test_the_kl_is_that_of_the_stock_algorithm(algorithm: str) -> None:
    """Per action dimension here and there, on every task that both files have, or it is our default's."""
    file = Path(rl_zoo3.__file__).parent / "hyperparams" / ("ppo.yml" if algorithm.endswith("ppo") else "trpo.yml")
    entries, stock = load(algorithm), yaml.safe_load(file.read_text())
    shared, default = entries.keys() & stock.keys(), entries["default"].get("target_kl")
    assert len(shared) > 10
    for task in shared:
        expected = None if algorithm == "npg" else stock[task].get("target_kl")
        assert entries[task].get("target_kl") in (expected, default), task


@of_each
def test_a_radius_stays_where_it_starts(algorithm: str) -> None:
    """Where an entry tells where the radius starts, that is where it goes back to."""
    start = getattr(getattr(sb3_trustregion, ALGORITHMS[algorithm]), "_radius_argument", "")
    for task, entry in load(algorithm).items():
        if "radius_prior" in entry:
            assert entry["radius_prior"] == float(str(entry[start]).removeprefix("lin_")), task
        elif start and isinstance(entry.get(start), float):
            default = inspect.signature(getattr(sb3_trustregion, ALGORITHMS[algorithm]).__init__).parameters
            assert entry[start] == default["radius_prior"].default, task


@of_each
def test_mujoco_v4_and_v5_have_the_same_values(algorithm: str) -> None:
    entries = load(algorithm)
    for name in MUJOCO:
        assert entries[f"{name}-v5"] == entries[f"{name}-v4"]


@of_each
def test_every_entry_says_whether_it_was_tuned(algorithm: str) -> None:
    lines = hyperparameters_path(algorithm).read_text().splitlines()
    heads = [number for number, line in enumerate(lines) if re.match(r"[A-Za-z]\S*:", line)]
    assert len(heads) == len(load(algorithm))
    for number in heads:
        shares_the_entry_above = "-v5: *" in lines[number]
        first = number
        while lines[first - 1].startswith("#"):
            first -= 1
        comment = lines[first:number]
        assert shares_the_entry_above or any(re.match(r"# (Untuned|Tuned)\b", line) for line in comment), lines[number]

"""EnvPool's environments behave as Gymnasium's do in Stable-Baselines3."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("envpool")

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from sb3_trustregion.benchmark.run import training
from sb3_trustregion.benchmark.run.envpool import EnvPoolVecEnv
from sb3_trustregion.benchmark.run.grid import make_specs

N_ENVS = 4


def returns(env: VecEnv, n_episodes: int, seed: int) -> list[float]:
    """Of a fixed policy that depends on what it sees."""
    space: Any = env.action_space
    weights = 0.3 * np.random.default_rng(0).normal(size=(env.observation_space.shape[0], space.shape[0]))  # type: ignore[index]
    env.seed(seed)
    observations, found = env.reset(), []
    while len(found) < n_episodes:
        actions = np.tanh(np.asarray(observations) @ weights).astype(space.dtype)
        observations, _, _, infos = env.step(actions)
        found += [info["episode"]["r"] for info in infos if "episode" in info]
    return found


@pytest.mark.parametrize("task", ["Hopper-v5", "LunarLanderContinuous-v3"])
def test_the_same_policy_gets_the_same(task: str) -> None:
    one = returns(VecMonitor(EnvPoolVecEnv(task, N_ENVS)), 40, 1)
    other = returns(make_vec_env(task, N_ENVS), 40, 2)
    stderr = np.sqrt((np.var(one) + np.var(other)) / 40)
    assert abs(np.mean(one) - np.mean(other)) < 4.0 * stderr


@pytest.mark.parametrize(("task", "is_truncated"), [("Pendulum-v1", True), ("Hopper-v5", False)])
def test_episodes_end_as_in_stable_baselines(task: str, is_truncated: bool) -> None:
    env, twin = EnvPoolVecEnv(task, N_ENVS), make_vec_env(task, N_ENVS)
    env.seed(1)
    first = env.reset()
    assert first.dtype == env.observation_space.dtype == twin.reset().dtype
    assert env.observation_space == twin.observation_space
    assert len(np.unique(first, axis=0)) == N_ENVS  # each its own seed
    actions = np.ones((N_ENVS, *env.action_space.shape), env.action_space.dtype)  # type: ignore[misc]
    for _ in range(201):
        observations, rewards, dones, infos = env.step(actions)
        if dones.any():
            break
    assert rewards.dtype == twin.step(actions)[1].dtype == np.float32
    ended = np.flatnonzero(dones)
    for index in ended:
        assert infos[index]["TimeLimit.truncated"] is is_truncated
        assert not np.allclose(infos[index]["terminal_observation"], observations[index])
    # The next step is a step of the next episode, not its reset.
    following, rewards, again, _ = env.step(actions)
    assert not again[ended].any()
    assert (rewards[ended] != 0.0).all()
    assert (following[ended] != observations[ended]).any(axis=1).all()


def test_seeds_decide() -> None:
    env = EnvPoolVecEnv("Hopper-v5", 2)
    starts = []
    for seed in (5, 5, 6):
        env.seed(seed)
        starts.append(env.reset())
    np.testing.assert_array_equal(starts[0], starts[1])
    # The second environment of one seed is the first of the next.
    np.testing.assert_array_equal(starts[0][1], starts[2][0])


def test_a_run_may_use_it(tmp_path: Path) -> None:
    short = {"tiny": {"base": "ppo-default", "hyperparameters": {"n_steps": 64}}}
    values = {"tasks": ["Hopper-v5"], "variants": [short], "seeds": [1000], "n_timesteps": 256, "backend": "envpool"}
    [spec] = make_specs({"output": tmp_path, **values})[0]
    manager, model = training.set_up(spec, tmp_path / "zoo")
    assert isinstance(model.get_env().unwrapped, EnvPoolVecEnv)  # type: ignore[union-attr]
    recorder = training.Recorder()
    manager.callbacks.append(recorder)
    manager.learn(model)
    assert len(recorder.updates) == 4
    steps, _, lengths = zip(*recorder.episodes, strict=True)
    assert sum(lengths) <= 256
    assert list(steps) == np.cumsum(lengths).tolist()
    assert len(training.evaluate(manager, model, 1000)[0]) == 20
    assert "envpool" in spec.versions


def test_claims_are_made_on_gymnasium(tmp_path: Path) -> None:
    values = {"output": tmp_path, "tasks": ["Hopper-v5"], "variants": ["npg"], "backend": "envpool"}
    with pytest.raises(ValueError, match="backend with --evaluation must be one of 'gymnasium', got 'envpool'"):
        make_specs({**values, "seeds": [0]}, is_evaluation=True)
    with pytest.raises(ValueError, match="task must be an id that EnvPool knows, got Taxi-v4"):
        make_specs({**values, "tasks": ["Taxi-v4"], "seeds": [1000]})

"""Checkpoints: written whole or not at all, kept a few at a time, gone on from exactly."""

import os
import pickle
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion import checkpoint as module
from sb3_trustregion.checkpoint import (
    MEMBER,
    ResumableCheckpointCallback,
    checkpoints,
    restart_environments,
    resume,
    save_checkpoint,
    training_state,
)
from tests.faults.checks import numbers_of, statistics_of
from tests.helpers import RandomState, assert_same

N_STEPS, N_ENVS = 32, 2
ROLLOUT = N_STEPS * N_ENVS


def make_env(vec_env_class: type[VecEnv] | None = None) -> VecNormalize:
    # Forked, so that processes need not import everything once more.
    options = {} if vec_env_class is None else {"start_method": "fork"}
    return VecNormalize(
        make_vec_env("Pendulum-v1", N_ENVS, seed=3, vec_env_cls=vec_env_class, vec_env_kwargs=options)  # type: ignore[arg-type]
    )


def make_model(algorithm: type[Any] = AdaptiveTRPO, env: VecEnv | None = None) -> Any:
    return algorithm("MlpPolicy", env or make_env(), n_steps=N_STEPS, batch_size=ROLLOUT, seed=5, device="cpu")


def written(folder: Path, n_rollouts: int = 5, **kwargs: Any) -> list[Path]:
    callback = ResumableCheckpointCallback(ROLLOUT, folder, **kwargs)
    make_model().learn(n_rollouts * ROLLOUT, callback=callback)
    return checkpoints(folder)


@pytest.mark.parametrize(
    ("algorithm", "vec_env_class"),
    [*((algorithm, None) for algorithm in (NPG, AdaptiveTRPO, AdaptivePPO, PenaltyPPO)), (AdaptiveTRPO, SubprocVecEnv)],
)
def test_resumed_run_equals_one_that_reset_its_environments(
    tmp_path: Path, algorithm: type[Any], vec_env_class: type[VecEnv] | None
) -> None:
    reference = make_model(algorithm, make_env(vec_env_class)).learn(3 * ROLLOUT)
    save_checkpoint(reference, tmp_path / "there.zip")
    restart_environments(reference, training_state(reference)["environment_seed"])
    reference.learn(3 * ROLLOUT, reset_num_timesteps=False)

    th.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 - what SB3 draws from
    resumed = resume(algorithm, tmp_path / "there.zip", make_env(vec_env_class))
    resumed.learn(3 * ROLLOUT, reset_num_timesteps=False)

    assert resumed.num_timesteps == reference.num_timesteps == 6 * ROLLOUT
    # Parameters, the optimiser's moments, normalisation statistics.
    assert_same(numbers_of(resumed), numbers_of(reference))
    assert len(statistics_of(resumed)) == 6
    if hasattr(resumed, "judge"):
        # Radius, pooled sums, the pending step.
        assert_same(resumed.judge.state_dict(), reference.judge.state_dict())
    resumed.env.close()
    reference.env.close()


def test_the_last_few_are_kept_in_order(tmp_path: Path) -> None:
    names = [path.name for path in written(tmp_path, n_rollouts=6, keep=2, verbose=1)]
    assert names == [f"checkpoint_{n * ROLLOUT}_steps.zip" for n in (5, 6)]
    assert not list(tmp_path.glob("*.partial"))


def test_the_end_of_training_is_kept(tmp_path: Path) -> None:
    model = make_model()
    model.learn(3 * ROLLOUT, callback=ResumableCheckpointCallback(100 * ROLLOUT, tmp_path))
    assert_same(numbers_of(resume(AdaptiveTRPO, tmp_path, make_env())), numbers_of(model))


def test_checkpoints_of_a_longer_run_are_told_and_delete_nothing(tmp_path: Path) -> None:
    longer = written(tmp_path, n_rollouts=5, keep=2)
    with pytest.warns(UserWarning, match="longer run"):
        found = written(tmp_path, n_rollouts=3, keep=2)
    assert [path.name for path in found[:2]] == [f"checkpoint_{n * ROLLOUT}_steps.zip" for n in (2, 3)]
    assert found[2:] == longer


def test_no_folder_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none") == []


def test_a_partial_file_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_64_steps.zip.partial").write_bytes(b"half")
    written(tmp_path, n_rollouts=1)
    assert not list(tmp_path.glob("*.partial"))


def test_an_ordinary_load_takes_it_too(tmp_path: Path) -> None:
    path = written(tmp_path, n_rollouts=2)[-1]
    assert AdaptiveTRPO.load(path).num_timesteps == 2 * ROLLOUT


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "without the state"])
def test_the_newest_complete_one_is_taken(tmp_path: Path, damage: str) -> None:
    *_, before, newest = written(tmp_path, n_rollouts=4)
    content = newest.read_bytes()
    newest.write_bytes({"empty": b"", "truncated": content[: len(content) // 2]}.get(damage, b"no checkpoint at all"))
    if damage == "without the state":
        make_model().save(newest)
    with pytest.warns(UserWarning, match=f"{newest.name}.*trying the one before it"):
        model = resume(AdaptiveTRPO, tmp_path, make_env())
    assert f"_{model.num_timesteps}_" in before.name
    with pytest.raises(ValueError, match=newest.name):
        resume(AdaptiveTRPO, newest, make_env())


@pytest.mark.parametrize("place", [".", "none", "none.zip"])
def test_a_place_without_checkpoints_is_told(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValueError, match="path must hold a complete checkpoint"):
        resume(AdaptiveTRPO, tmp_path / place, make_env())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several checkpoints of AdaptiveTRPO, with normalisation."""
    path = tmp_path_factory.mktemp("checkpoints")
    written(path)
    return path


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several checkpoints of AdaptiveTRPO on CartPole, without normalisation."""
    path = tmp_path_factory.mktemp("plain")
    model = AdaptiveTRPO("MlpPolicy", "CartPole-v1", n_steps=N_STEPS, batch_size=N_STEPS, device="cpu")
    model.learn(3 * N_STEPS, callback=ResumableCheckpointCallback(N_STEPS, path))
    return path


def test_the_environment_by_its_name(plain_folder: Path) -> None:
    model = resume(AdaptiveTRPO, plain_folder, "CartPole-v1", device="cpu")
    assert model.learn(N_STEPS, reset_num_timesteps=False).num_timesteps == 4 * N_STEPS


def test_a_checkpoint_by_its_name_without_a_suffix(plain_folder: Path) -> None:
    model = resume(AdaptiveTRPO, plain_folder / f"checkpoint_{2 * N_STEPS}_steps", "CartPole-v1", device="cpu")
    assert model.num_timesteps == 2 * N_STEPS


def normalized(**kwargs: Any) -> VecNormalize:
    return VecNormalize(make_vec_env("Pendulum-v1", N_ENVS), **kwargs)


MISTAKES: dict[str, tuple[type[Any], Callable[[], Any], dict[str, Any], str]] = {
    "another task": (AdaptiveTRPO, lambda: make_vec_env("CartPole-v1"), {}, "Observation spaces do not match"),
    "another task by name": (AdaptiveTRPO, lambda: "CartPole-v1", {}, "Observation spaces do not match"),
    "no such task": (AdaptiveTRPO, lambda: "NoSuchTask-v0", {}, "NoSuchTask"),
    "another action space": (AdaptiveTRPO, lambda: normalized_discrete(), {}, "Action spaces do not match"),
    "no normalisation": (
        AdaptiveTRPO,
        lambda: make_vec_env("Pendulum-v1", N_ENVS),
        {},
        "env must be wrapped in VecNormalize",
    ),
    "of rewards alone": (
        AdaptiveTRPO,
        lambda: normalized(norm_obs=False),
        {},
        "env must be wrapped in VecNormalize as it was",
    ),
    "an argument out of range": (AdaptiveTRPO, normalized, {"gamma": 2.0}, r"gamma must be .*, got 2\.0"),
    "an argument of a wrong kind": (AdaptiveTRPO, normalized, {"n_steps": "64"}, "n_steps must be an integer"),
    "another network": (AdaptiveTRPO, normalized, {"policy_kwargs": {"net_arch": [3]}}, "policy kwargs do not equal"),
    "no such device": (AdaptiveTRPO, normalized, {"device": "abacus"}, "abacus"),
    "no dictionary": (AdaptiveTRPO, normalized, {"custom_objects": [1]}, "custom_objects argument must be a dict"),
    "another class": (AdaptivePPO, normalized, {}, r"saved by AdaptivePPO, got .*AdaptivePPO\.from_stock"),
    "a class without a radius": (NPG, normalized, {}, r"saved by NPG, got .*NPG\.from_stock"),
}


def normalized_discrete() -> VecNormalize:
    class Discrete(gym.ActionWrapper):
        def __init__(self) -> None:
            super().__init__(gym.make("Pendulum-v1"))
            self.action_space = gym.spaces.Discrete(2)

    return VecNormalize(DummyVecEnv([Discrete] * N_ENVS))


@pytest.mark.parametrize(
    ("mistake", "where"),
    [*((mistake, "folder") for mistake in MISTAKES), ("another task", "file"), ("another class", "file")],
)
def test_mistakes_are_told_at_once(folder: Path, mistake: str, where: str) -> None:
    """As what they are, without a word about the checkpoint, and with statistics and random numbers as they were."""
    algorithm, make, arguments, reason = MISTAKES[mistake]
    env = make()
    statistics = numbers_in(env)
    random_numbers = RandomState()
    path = folder if where == "folder" else checkpoints(folder)[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(Exception, match=reason) as raised:
            resume(algorithm, path, env, **{"device": "cpu", **arguments})
    assert "complete checkpoint" not in str(raised.value)
    assert "damaged" not in str(raised.value)
    assert_same(numbers_in(env), statistics)
    assert_same(RandomState().states, random_numbers.states)


def numbers_in(env: Any) -> list[Any]:
    if not isinstance(env, VecNormalize):
        return []
    parts = [env.ret_rms, *([env.obs_rms] if env.norm_obs else [])]
    return [np.array(number) for part in parts for number in (part.mean, part.var, part.count)]


def test_normalisation_that_was_not_there_is_told(plain_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"env must be wrapped in VecNormalize as it was, \{\}, got"):
        resume(AdaptiveTRPO, plain_folder, VecNormalize(make_vec_env("CartPole-v1")), device="cpu")


class Malicious:
    """Runs code where a loader unpickles it blindly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_in_our_member_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.zip"
    make_model().save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MEMBER, pickle.dumps(Malicious()))
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        resume(AdaptiveTRPO, path, make_env())
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_last_one_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(tmp_path, n_rollouts=2)
    contents = [path.read_bytes() for path in before]

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    model = make_model()
    with pytest.warns(UserWarning, match="could not be written"):
        model.learn(3 * ROLLOUT, callback=ResumableCheckpointCallback(ROLLOUT, tmp_path))
    assert model.num_timesteps == 3 * ROLLOUT
    assert [path.read_bytes() for path in checkpoints(tmp_path)] == contents
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("argument", ["save_freq", "keep"])
def test_arguments_out_of_range(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be an integer >= 1, got 0"):
        ResumableCheckpointCallback(**{"save_freq": 1, "save_path": tmp_path, argument: 0})


class ResetsThere(BaseCallback):
    """Seeds and resets the environments where a checkpoint would be written."""

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps == 2 * ROLLOUT:
            assert self.model.env is not None
            self.model.env.seed(training_state(self.model)["environment_seed"])
            self.model._last_obs = self.model.env.reset()  # type: ignore[assignment]
            self.model._last_episode_starts = np.ones(N_ENVS, dtype=bool)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("sde_sample_freq", [-1, 4])
@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_noise_of_gsde_is_drawn_as_if_never_interrupted(
    tmp_path: Path, algorithm: type[Any], sde_sample_freq: int
) -> None:
    """SB3 draws it before the callback that writes a checkpoint."""

    def new() -> Any:
        env = make_vec_env("Pendulum-v1", N_ENVS, seed=3)
        arguments = {"n_steps": N_STEPS, "batch_size": ROLLOUT, "seed": 5, "device": "cpu"}
        return algorithm("MlpPolicy", env, use_sde=True, sde_sample_freq=sde_sample_freq, **arguments)

    new().learn(3 * ROLLOUT, callback=ResumableCheckpointCallback(ROLLOUT, tmp_path))
    path = tmp_path / f"checkpoint_{2 * ROLLOUT}_steps.zip"
    resumed = resume(algorithm, path, make_vec_env("Pendulum-v1", N_ENVS), device="cpu")
    resumed.learn(2 * ROLLOUT, reset_num_timesteps=False)
    reference = new().learn(4 * ROLLOUT, callback=ResetsThere())
    np.testing.assert_array_equal(resumed.rollout_buffer.actions, reference.rollout_buffer.actions)
    assert_same(numbers_of(resumed), numbers_of(reference))


def test_each_of_several_normalisations_goes_on(tmp_path: Path) -> None:
    reference = make_model(env=VecNormalize(make_env())).learn(2 * ROLLOUT)
    save_checkpoint(reference, tmp_path / "there.zip")
    resumed = resume(AdaptiveTRPO, tmp_path / "there.zip", VecNormalize(make_env()))
    for outer, inner in ((reference.env, resumed.env), (reference.env.venv, resumed.env.venv)):
        assert inner.obs_rms.count == outer.obs_rms.count > 2 * ROLLOUT
        np.testing.assert_array_equal(inner.obs_rms.mean, outer.obs_rms.mean)
        assert inner.ret_rms.var == outer.ret_rms.var
    with pytest.raises(ValueError, match=r"as it was, .*1 returns.*, got"):
        resume(AdaptiveTRPO, tmp_path / "there.zip", make_env())


def test_a_callback_that_is_told_of_no_rollout_is_refused(tmp_path: Path) -> None:
    nested = EveryNTimesteps(ROLLOUT, ResumableCheckpointCallback(ROLLOUT, tmp_path))
    with pytest.raises(ValueError, match="callback must not be within EveryNTimesteps"):
        make_model().learn(ROLLOUT, callback=nested)


def test_a_folder_that_is_gone_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a path is relative to where the callback was made, wherever the user goes."""
    monkeypatch.chdir(tmp_path)
    callback = ResumableCheckpointCallback(ROLLOUT, "kept")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    model = make_model()
    model.learn(2 * ROLLOUT, callback=callback)
    shutil.rmtree(tmp_path / "kept")
    model.learn(ROLLOUT, callback=callback, reset_num_timesteps=False)
    (tmp_path / "kept" / "checkpoint_9999_steps.zip").mkdir()
    assert [path.name for path in checkpoints(tmp_path / "kept")] == [f"checkpoint_{3 * ROLLOUT}_steps.zip"]


def test_a_prefix_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name_prefix must be a file's name, got 'run/one'"):
        ResumableCheckpointCallback(ROLLOUT, tmp_path, name_prefix="run/one")


class WithoutSeeds(VecEnvWrapper):
    """As of simulators that know of none."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def seed(self, seed: int | None = None) -> Any:
        raise NotImplementedError


def test_environments_may_know_no_seed(tmp_path: Path) -> None:
    algorithm = {"n_steps": N_STEPS, "batch_size": ROLLOUT, "device": "cpu"}
    model = AdaptiveTRPO("MlpPolicy", WithoutSeeds(make_env()), **algorithm).learn(ROLLOUT)
    save_checkpoint(model, tmp_path / "there.zip")
    with pytest.warns(UserWarning, match="env cannot be seeded, and goes on with random numbers of its own"):
        resumed = resume(AdaptiveTRPO, tmp_path / "there.zip", WithoutSeeds(make_env()))
    assert resumed.learn(ROLLOUT, reset_num_timesteps=False).num_timesteps == 2 * ROLLOUT


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders are not synced there")
def test_a_file_system_may_not_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(module.os, "fsync", of_files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(written(tmp_path, keep=2)) == 2

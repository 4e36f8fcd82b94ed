"""Checkpoints: written whole or not at all, kept a few at a time, gone on from exactly."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
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
from tests.helpers import assert_same

N_STEPS, N_ENVS = 32, 2
ROLLOUT = N_STEPS * N_ENVS


def make_env(vec_env_class: type[VecEnv] | None = None) -> VecNormalize:
    return VecNormalize(make_vec_env("Pendulum-v1", N_ENVS, seed=3, vec_env_cls=vec_env_class))


def make_model(algorithm: type[Any] = AdaptiveTRPO, env: VecEnv | None = None) -> Any:
    extra = {"n_reused_rollouts": 3} if algorithm is AdaptiveTRPO else {}
    env = env or make_env()
    return algorithm("MlpPolicy", env, n_steps=N_STEPS, batch_size=ROLLOUT, seed=5, device="cpu", **extra)


def written(folder: Path, n_rollouts: int = 5, **kwargs: Any) -> list[Path]:
    callback = ResumableCheckpointCallback(ROLLOUT, folder, **kwargs)
    make_model().learn(n_rollouts * ROLLOUT, callback=callback)
    return checkpoints(folder)


@pytest.mark.parametrize("vec_env_class", [None, SubprocVecEnv])
@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO, AdaptivePPO])
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
    if algorithm is not NPG:
        assert len(resumed.memory.rollouts) == (2 if algorithm is AdaptiveTRPO else 0)
        # Radius, pooled sums, the pending step, reused rollouts.
        assert_same(resumed.memory.state_dict(), reference.memory.state_dict())
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
    with pytest.warns(UserWarning, match=f"{newest.name} is not a complete checkpoint"):
        model = resume(AdaptiveTRPO, tmp_path, make_env())
    assert f"_{model.num_timesteps}_" in before.name
    with pytest.raises(ValueError, match=newest.name):
        resume(AdaptiveTRPO, newest, make_env())


def test_a_folder_without_checkpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must hold a complete checkpoint"):
        resume(AdaptiveTRPO, tmp_path, make_env())


def test_normalisation_must_be_there_again(tmp_path: Path) -> None:
    path = written(tmp_path, n_rollouts=2)[-1]
    with pytest.raises(ValueError, match="env must be wrapped in VecNormalize"):
        resume(AdaptiveTRPO, path, make_vec_env("Pendulum-v1", N_ENVS))


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
    with pytest.raises(Exception, match=r"(?i)weights.only|not a complete checkpoint"):
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

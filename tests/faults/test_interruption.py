"""Killed, resumed, interrupted from the keyboard: what was learned is still there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.checkpoint import checkpoints, restart_environments, resume, training_state
from sb3_trustregion.common.judge import Judge
from sb3_trustregion.core.line_search import StepStatus
from sb3_trustregion.core.parameters import ParameterVector
from sb3_trustregion.core.surrogate import Surrogate
from tests.faults.checks import assert_finite, numbers_of
from tests.faults.environments import healthy
from tests.faults.interrupted import MODELS, WHERE_IT_HURTS, environment, new_model
from tests.helpers import assert_same, heed_ctrl_c, make_model, train

ROOT = Path(__file__).parents[2]
N_KILLS = 9  # of each algorithm at random moments, and four at the worst


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of runs that were killed over and over."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.interrupted", str(folder), str(N_KILLS), "0"]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def everything(model: Any) -> dict[str, Any]:
    """All that decides how a model goes on."""
    return {
        "numbers": numbers_of(model),
        "judge": model.judge.state_dict() if hasattr(model, "judge") else None,
        "counters": [model.num_timesteps, model._n_updates, model.n_invalid, model.n_faulty_steps],
        "random": training_state(model)["random"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_killed_over_and_over(killed: Path, name: str) -> None:
    """
    Each time the newest checkpoint was complete, or the run would have ended there and then.

    And the run that was killed so often is, bit for bit, the one that only reset its environments at those checkpoints.
    """
    report = json.loads((killed / "report.json").read_text())
    starts = report[name]["starts"]
    assert len(MODELS) * (len(starts) - 2 * len(WHERE_IT_HURTS)) >= 25
    assert report[name]["n_partial"] >= 2 * len(WHERE_IT_HURTS)
    assert starts == sorted(starts)
    assert len(set(starts)) > len(starts) // 2

    resumed = resume(MODELS[name][0], killed / name, environment(), device="cpu")
    assert resumed.num_timesteps == int(checkpoints(killed / name)[-1].name.split("_")[1]) >= starts[-1]
    after_resuming = everything(resumed)
    resumed.learn(64, reset_num_timesteps=False)

    reference = new_model(name)
    for step in sorted({*starts[1:], int(after_resuming["counters"][0])} - {0}):
        reference.learn(step - reference.num_timesteps, reset_num_timesteps=False)
        restart_environments(reference, training_state(reference)["environment_seed"])
    assert_same(after_resuming, everything(reference))
    reference.learn(64, reset_num_timesteps=False)
    assert_same(everything(resumed), everything(reference))
    for model in (resumed, reference):
        model.env.close()


@pytest.mark.slow
def test_ctrl_c_in_the_zoo_saves(tmp_path: Path) -> None:
    """The model and the statistics of its observations, as they were when the key was pressed; the Zoo sees to it."""
    name = "adaptive_trpo"
    parameters = ["n_envs:2", "n_steps:64", "batch_size:128", "normalize:True", "n_timesteps:1e9"]
    arguments = ["--algo", name, "--env", "CartPole-v1", "--eval-freq", "-1", "-f", "logs", "--seed", "1"]
    command = [sys.executable, "-u", "-m", "sb3_trustregion.zoo", "train", *arguments, "-params", *parameters]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SDL_VIDEODRIVER": "dummy"}
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=heed_ctrl_c,
        )
    try:
        wait_for("train/", tmp_path / "output", process)  # the log of the first update
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, (tmp_path / "output").read_text()[-3000:]
    finally:
        process.kill()
        process.wait()

    folder = tmp_path / "logs" / name / "CartPole-v1_1"
    env = VecNormalize.load(
        str(folder / "CartPole-v1" / "vecnormalize.pkl"), make_vec_env("CartPole-v1", n_envs=2, seed=0)
    )
    model = AdaptiveTRPO.load(folder / "CartPole-v1.zip", env=env, device="cpu")
    assert model.num_timesteps >= 128
    assert env.obs_rms.count > 100
    assert_finite(model)
    model.learn(256, reset_num_timesteps=False)
    assert model._n_updates >= 2


def wait_for(text: str, path: Path, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Wait until a process has written something to its file."""
    deadline = time.monotonic() + seconds
    while text not in path.read_text():
        assert process.poll() is None, path.read_text()[-3000:]
        assert time.monotonic() < deadline, path.read_text()[-3000:]
        time.sleep(0.1)


MOMENTS: dict[str, tuple[type[Any], str]] = {
    "a step of the environments": (DummyVecEnv, "step_wait"),
    "the beginning of an update": (Judge, "review"),
    "the line search": (Surrogate, "at"),
    "a new policy": (ParameterVector, "write"),
    "its promise": (Judge, "expect"),
    "the critic's fit": (AdaptiveTRPO, "_fit_critic"),
    "a mini-batch": (th.optim.Adam, "step"),
}


@pytest.mark.parametrize(
    ("algorithm", "moment"),
    [
        *((AdaptiveTRPO, moment) for moment in MOMENTS),
        *((AdaptivePPO, moment) for moment in ("the beginning of an update", "its promise", "a mini-batch")),
    ],
)
def test_ctrl_c_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: type[Any], moment: str
) -> None:
    """What is saved then can be gone on from, and no policy is held against a step that was not finished."""
    owner, name = MOMENTS[moment]
    env = VecNormalize(DummyVecEnv([healthy()] * 2))
    model = make_model(algorithm, env)
    train(model, 3)
    original, seen = getattr(owner, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(model, 6, reset_num_timesteps=False)
    assert isinstance(env.venv, DummyVecEnv)  # nothing of ours is left in the user's wrappers
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=env, device="cpu")
    assert again.num_timesteps == model.num_timesteps
    assert_same(numbers_of(again), numbers_of(model))
    n_rollbacks = model.region.n_rollbacks
    for one in (model, again):
        updates = train(one, 3, reset_num_timesteps=False)
        assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 3
        assert one.region.n_rollbacks == n_rollbacks
        assert_finite(one)

"""RL Zoo's command lines in processes of their own, with the wheel installed."""

import zipfile
from pathlib import Path

import pytest
import yaml

from tests.zoo.installations import ALGORITHMS, Installation

pytestmark = pytest.mark.slow

NO_HOOK = {"SB3_TRUSTREGION_NO_HOOK": "1"}
TINY_RUN = ("--env", "CartPole-v1", "-n", "128", "--eval-freq", "-1", "-f", "logs", "--seed", "1")
TINY_ROLLOUT = ("-params", "n_envs:1", "n_steps:64", "batch_size:32")
WATCH = ("--env", "CartPole-v1", "-f", "logs", "-n", "30", "--no-render")

# An environment whose first steps after the first reset diverge: RL Zoo prunes that trial.
DIVERGING_ENV = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Diverging(CartPoleEnv):
    steps = 0

    def step(self, action):
        Diverging.steps += 1
        if Diverging.steps == 20:
            raise ValueError("diverged on purpose")
        return super().step(action)

gym.register("Diverging-v0", entry_point=Diverging, max_episode_steps=50)
"""


def trained_model(folder: Path, algorithm: str) -> Path:
    return folder / "logs" / algorithm / "CartPole-v1_1" / "CartPole-v1.zip"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_train_then_enjoy(installation: Installation, algorithm: str, tmp_path: Path) -> None:
    trained = installation.zoo("train", "--algo", algorithm, *TINY_RUN, *TINY_ROLLOUT, cwd=tmp_path)
    our_file = installation.site_packages / "sb3_trustregion" / "hyperparams" / f"{algorithm}.yml"
    assert f"Loading hyperparameters from: {our_file}" in trained.stdout
    assert "RuntimeWarning: sb3_trustregion" not in trained.stderr

    model = trained_model(tmp_path, algorithm)
    assert "policy.pth" in zipfile.ZipFile(model).namelist()
    config = (model.parent / "CartPole-v1" / "config.yml").read_text()
    assert dict(yaml.unsafe_load(config))["n_steps"] == 64  # -params won over the file

    watched = installation.zoo("enjoy", "--algo", algorithm, *WATCH, "-n", "600", cwd=tmp_path)
    assert "Mean reward" in watched.stdout


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_optimize_prunes_and_goes_on(installation: Installation, algorithm: str, tmp_path: Path) -> None:
    (tmp_path / "diverging_env.py").write_text(DIVERGING_ENV)
    budget = ("-n", "64", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1")
    search = ("-optimize", "--sampler", "random", "--pruner", "none", "--no-optim-plots", "--seed", "1", *budget)
    task = ("--env", "Diverging-v0", "--gym-packages", "diverging_env", "-f", "logs")
    installation.zoo("train", "--algo", algorithm, *task, *search, cwd=tmp_path)
    (report,) = (tmp_path / "logs" / algorithm).glob("report_*.pkl")
    trials = installation.run(
        "-c",
        "import pickle, sys; print([trial.state.name for trial in pickle.load(open(sys.argv[1], 'rb')).trials])",
        report,
    )
    assert trials.stdout.strip() == "['PRUNED', 'COMPLETE']"


def test_a_file_that_is_given_wins(installation: Installation, tmp_path: Path) -> None:
    entry = {"CartPole-v1": {"n_timesteps": 100, "policy": "MlpPolicy", "n_steps": 96, "gamma": 0.5}}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(entry))
    chosen = ("--conf-file", "mine.yml", "-params", "n_steps:32", "batch_size:32")
    trained = installation.zoo("train", "--algo", "npg", *TINY_RUN, *chosen, cwd=tmp_path)
    assert "Loading hyperparameters from: mine.yml" in trained.stdout
    saved = (trained_model(tmp_path, "npg").parent / "CartPole-v1" / "config.yml").read_text()
    config = dict(yaml.unsafe_load(saved))
    assert (config["gamma"], config["n_steps"]) == (0.5, 32)


@pytest.mark.parametrize("command", [("record_video", "-h"), ("load_from_hub", "-h"), ("cli", "train", "-h")])
def test_the_other_scripts_know_the_algorithms(
    installation: Installation, command: tuple[str, ...], tmp_path: Path
) -> None:
    shown = installation.zoo(*command, cwd=tmp_path, COLUMNS="500").stdout
    assert ",".join(ALGORITHMS) in shown


def test_push_to_hub_knows_the_algorithms(installation: Installation) -> None:
    """Imports a function that sb3-team-hf-integration 3.2 has renamed, whatever the algorithm: lend it the old name."""
    code = """
import importlib, runpy, sys
hub = importlib.import_module("huggingface_sb3.push_to_hub")
hub.generate_metadata = getattr(hub, "generate_metadata", None) or hub._generate_metadata
sys.argv = ["push_to_hub", "-h"]
runpy.run_module("rl_zoo3.push_to_hub", run_name="__main__")
"""
    assert ",".join(ALGORITHMS) in installation.run("-c", code, COLUMNS="500").stdout


def test_switched_off_the_zoo_is_as_it_was(installation: Installation, tmp_path: Path) -> None:
    refused = installation.zoo("train", "--algo", "npg", *TINY_RUN, cwd=tmp_path, check=False, **NO_HOOK)
    assert refused.returncode == 2
    assert "invalid choice: 'npg'" in refused.stderr


def test_own_command_line_needs_no_hook(installation: Installation, tmp_path: Path) -> None:
    def run(command: str, *args: str) -> str:
        return installation.run("-m", "sb3_trustregion.zoo", command, *args, cwd=tmp_path, **NO_HOOK).stdout

    algorithm = ("--algo", "adaptive_trpo")
    run("train", *algorithm, *TINY_RUN, *TINY_ROLLOUT)
    assert trained_model(tmp_path, "adaptive_trpo").is_file()
    assert "Mean reward" in run("enjoy", *algorithm, *WATCH, "-n", "600")
    run("record_video", *algorithm, "--env", "CartPole-v1", "-f", "logs", "-n", "10", "-o", "videos")
    assert list((tmp_path / "videos").glob("*.mp4"))
    assert "switched off by SB3_TRUSTREGION_NO_HOOK" in run("doctor")


def test_training_goes_on_from_a_saved_agent(installation: Installation, tmp_path: Path) -> None:
    algorithm = ("--algo", "adaptive_trpo")
    installation.zoo("train", *algorithm, *TINY_RUN, *TINY_ROLLOUT, cwd=tmp_path)
    model = trained_model(tmp_path, "adaptive_trpo")
    installation.zoo("train", *algorithm, *TINY_RUN, *TINY_ROLLOUT, "-i", model, cwd=tmp_path)
    assert (model.parents[1] / "CartPole-v1_2" / "CartPole-v1.zip").is_file()


def test_doctor_finds_a_sound_installation_sound(installation: Installation) -> None:
    report = installation.run("-m", "sb3_trustregion.zoo", "doctor").stdout
    assert f"active ({installation.site_packages / 'sb3_trustregion.pth'})" in report
    assert "PROBLEM" not in report


def test_a_broken_algorithm_leaves_the_zoo_working(own_installation: Installation, tmp_path: Path) -> None:
    broken = own_installation.site_packages / "sb3_trustregion" / "npg.py"
    broken.write_text("raise ImportError('broken on purpose')\n")
    trained = own_installation.zoo("train", "--algo", "ppo", *TINY_RUN, *TINY_ROLLOUT, cwd=tmp_path)
    assert trained_model(tmp_path, "ppo").is_file()
    assert trained.stderr.count("broken on purpose") == 1

    examined = own_installation.run("-m", "sb3_trustregion.zoo", "doctor", check=False)
    assert examined.returncode == 1
    assert "PROBLEM  npg: NPG cannot be imported: ImportError: broken on purpose" in examined.stdout

"""RL Zoo's command lines outside of this process, with the wheel installed."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.zoo.installations import ALGORITHMS, Done, Installation

pytestmark = pytest.mark.slow

NO_HOOK = {"SB3_TRUSTREGION_NO_HOOK": "1"}
TINY_RUN = ("--env", "CartPole-v1", "-n", "128", "--eval-freq", "-1", "-f", "logs", "--seed", "1")
TINY_ROLLOUT = ("-params", "n_envs:1", "n_steps:64", "batch_size:32")
WATCH = ("--env", "CartPole-v1", "-f", "logs", "-n", "600", "--no-render")
# With that seed rollouts and networks are small.
SEARCH = (
    *("-optimize", "--sampler", "random", "--pruner", "none", "--no-optim-plots", "--seed", "52", "-n", "64"),
    *("--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "-f", "logs"),
)

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

gym.register("NAME-v0", entry_point=Diverging, max_episode_steps=50)
"""

# Imports a function that sb3-team-hf-integration 3.2 has renamed, whatever the algorithm: lend it the old name.
OLD_NAME = """
import importlib
hub = importlib.import_module("huggingface_sb3.push_to_hub")
hub.generate_metadata = getattr(hub, "generate_metadata", None) or hub._generate_metadata
"""
HELP = [("record_video", "-h"), ("load_from_hub", "-h"), ("cli", "train", "-h"), ("push_to_hub", "-h")]

# Which command of RL Zoo, with which arguments, by what is asked.
COMMANDS: dict[str, tuple[str, ...]] = {
    **{f"train {name}": ("train", "--algo", name, *TINY_RUN, *TINY_ROLLOUT) for name in ALGORITHMS[1:]},
    **{f"enjoy {name}": ("enjoy", "--algo", name, *WATCH) for name in ALGORITHMS},
    **{
        f"optimize {name}": (
            "train",
            "--algo",
            name,
            "--env",
            f"{name}-v0",
            "--gym-packages",
            f"diverging_{name}",
            *SEARCH,
        )
        for name in ALGORITHMS
    },
    "a file that is given": (
        *("train", "--algo", "npg", *TINY_RUN, "--conf-file", "mine.yml"),
        *("-params", "n_steps:32", "batch_size:32"),
    ),
    "old name": ("old_name",),
    **{" ".join(command): command for command in HELP},
}


def trained_model(folder: Path, algorithm: str, number: int = 1) -> Path:
    return folder / "logs" / algorithm / f"CartPole-v1_{number}" / "CartPole-v1.zip"


class Runs:
    """
    Everything that the hook makes possible: one command as users type it, all others in one process after it.

    :param installation: with the wheel
    :param folder: where the commands run
    """

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.installation, self.folder = installation, folder
        entry = {"CartPole-v1": {"n_timesteps": 100, "policy": "MlpPolicy", "n_steps": 96, "gamma": 0.5}}
        (folder / "mine.yml").write_text(yaml.safe_dump(entry))
        (folder / "old_name.py").write_text(OLD_NAME)
        for name in ALGORITHMS:
            (folder / f"diverging_{name}.py").write_text(DIVERGING_ENV.replace("NAME", name))
        first = installation.zoo("train", "--algo", ALGORITHMS[0], *TINY_RUN, *TINY_ROLLOUT, cwd=folder)
        going_on = {"go on": (*COMMANDS[f"train {ALGORITHMS[1]}"], "-i", str(trained_model(folder, ALGORITHMS[1])))}
        commands = COMMANDS | going_on | {"doctor": ("sb3_trustregion.zoo", "doctor")}
        modules = [
            (command[0] if command[0] in ("old_name", "sb3_trustregion.zoo") else f"rl_zoo3.{command[0]}", *command[1:])
            for command in commands.values()
        ]
        done = installation.several(modules, folder, COLUMNS="500", PYTHONPATH=str(folder))
        self.done = dict(zip(commands, done, strict=True))
        self.done[f"train {ALGORITHMS[0]}"] = Done(first.returncode, first.stdout, first.stderr)

    def of(self, name: str) -> Done:
        """What came of a command, which must have worked."""
        done = self.done[name]
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def runs(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(installation, tmp_path_factory.mktemp("runs"))


def config_of(model: Path) -> dict[str, Any]:
    return dict(yaml.unsafe_load((model.parent / "CartPole-v1" / "config.yml").read_text()))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_train_then_enjoy(runs: Runs, algorithm: str) -> None:
    trained = runs.of(f"train {algorithm}")
    our_file = runs.installation.site_packages / "sb3_trustregion" / "hyperparams" / f"{algorithm}.yml"
    assert f"Loading hyperparameters from: {our_file}" in trained.stdout
    assert "RuntimeWarning: sb3_trustregion" not in trained.stderr
    model = trained_model(runs.folder, algorithm)
    assert "policy.pth" in zipfile.ZipFile(model).namelist()
    assert config_of(model)["n_steps"] == 64  # -params won over the file
    assert "Mean reward" in runs.of(f"enjoy {algorithm}").stdout


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_optimize_prunes_and_goes_on(runs: Runs, algorithm: str) -> None:
    runs.of(f"optimize {algorithm}")
    (report,) = (runs.folder / "logs" / algorithm).glob("report_*.pkl")
    assert [trial.state.name for trial in pickle.loads(report.read_bytes()).trials] == ["PRUNED", "COMPLETE"]


def test_a_file_that_is_given_wins(runs: Runs) -> None:
    assert "Loading hyperparameters from: mine.yml" in runs.of("a file that is given").stdout
    config = config_of(trained_model(runs.folder, "npg", 2))
    assert (config["gamma"], config["n_steps"]) == (0.5, 32)


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_the_other_scripts_know_the_algorithms(runs: Runs, command: tuple[str, ...]) -> None:
    assert ",".join(ALGORITHMS) in runs.of(" ".join(command)).stdout


def test_training_goes_on_from_a_saved_agent(runs: Runs) -> None:
    assert "Loading pretrained agent" in runs.of("go on").stdout
    assert trained_model(runs.folder, ALGORITHMS[1], 2).is_file()


def test_doctor_finds_a_sound_installation_sound(runs: Runs) -> None:
    report = runs.of("doctor").stdout
    assert f"active ({runs.installation.site_packages / 'sb3_trustregion.pth'})" in report
    assert "PROBLEM" not in report


def test_own_command_line_needs_no_hook(installation: Installation, tmp_path: Path) -> None:
    """Switched off, RL Zoo is as it was; our command line is not."""
    algorithm, own = ("--algo", "adaptive_trpo"), "sb3_trustregion.zoo"
    refused, *done = installation.several(
        [
            ("rl_zoo3.train", *algorithm, *TINY_RUN),
            (own, "train", *algorithm, *TINY_RUN, *TINY_ROLLOUT),
            (own, "enjoy", *algorithm, *WATCH),
            (own, "record_video", *algorithm, "--env", "CartPole-v1", "-f", "logs", "-n", "10", "-o", "videos"),
            (own, "doctor"),
        ],
        tmp_path,
        **NO_HOOK,
    )
    assert refused.returncode == 2
    assert "invalid choice: 'adaptive_trpo'" in refused.stderr
    assert [one.returncode for one in done] == [0] * 4, "\n".join(one.stderr for one in done)
    assert trained_model(tmp_path, "adaptive_trpo").is_file()
    assert "Mean reward" in done[1].stdout
    assert list((tmp_path / "videos").glob("*.mp4"))
    assert "switched off by SB3_TRUSTREGION_NO_HOOK" in done[3].stdout


def test_a_broken_algorithm_leaves_the_zoo_working(own_installation: Installation, tmp_path: Path) -> None:
    broken = own_installation.site_packages / "sb3_trustregion" / "npg.py"
    broken.write_text("raise ImportError('broken on purpose')\n")
    train = ("rl_zoo3.train", "--algo", "ppo", *TINY_RUN, *TINY_ROLLOUT)
    trained, examined = own_installation.several([train, ("sb3_trustregion.zoo", "doctor")], tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained_model(tmp_path, "ppo").is_file()
    assert trained.stderr.count("broken on purpose") == 1
    assert examined.returncode == 1
    assert "PROBLEM  npg: NPG cannot be imported: ImportError: broken on purpose" in examined.stdout

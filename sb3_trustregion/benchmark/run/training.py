"""The process of one run: RL Zoo's ``ExperimentManager``, then 20 episodes of the final policy."""

import argparse
import contextlib
import json
import os
import pydoc
import shutil
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_trustregion.benchmark.mixtures import GYMNASIUM
from sb3_trustregion.benchmark.results import EPISODES_FILE, PROGRESS_FILE, RUN_FILE, TRACEBACK_FILE
from sb3_trustregion.benchmark.run import provenance
from sb3_trustregion.benchmark.run.hyperparameters import algorithms
from sb3_trustregion.benchmark.run.process import MISMATCH_FILE, RESULT_FOLDER, SPEC_FILE, without_machine
from sb3_trustregion.benchmark.run.spec import RunSpec
from sb3_trustregion.benchmark.run.tasks import entry_point, import_packages
from sb3_trustregion.zoo.registration import leave_out_what_cannot_be_normalized

N_EVAL_EPISODES = 20
N_EVAL_ENVS = 5
# Far from the seeds that environments are trained with.
EVAL_SEED = 1_000_000
SECONDS_BETWEEN_SIGNS = 0.5


class Manager(ExperimentManager):
    """RL Zoo's; of what any algorithm observes it normalises what can be, as for ours."""

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        leave_out_what_cannot_be_normalized(self, env.observation_space)
        return super()._maybe_normalize(env, eval_env)


class Recorder(BaseCallback):
    """Keeps episodes, and what each update logged after how many steps; tells in ``steps_file`` how far training is."""

    def __init__(self, steps_file: str = "") -> None:
        super().__init__()
        self.steps_file = steps_file
        self.episodes: list[tuple[int, float, int]] = []
        self.updates: list[dict[str, float]] = []
        self._started = self._last_sign = time.perf_counter()

    def _on_step(self) -> bool:
        for episode in [info["episode"] for info in self.locals["infos"] if "episode" in info]:
            self.episodes.append((self.num_timesteps, round(float(episode["r"]), 4), int(episode["l"])))
        now = time.perf_counter()
        if self.steps_file and now - self._last_sign > SECONDS_BETWEEN_SIGNS:
            self._last_sign = now
            with contextlib.suppress(OSError):  # on another machine there is no such folder
                Path(self.steps_file).write_text(str(self.num_timesteps), "utf-8")
        return True

    def _on_rollout_start(self) -> None:
        # Taken out: what the next update does not log it did not have.
        logged = self.logger.name_to_value
        row = {name.removeprefix("train/"): logged.pop(name) for name in list(logged) if name.startswith("train/")}
        if row:
            seconds = time.perf_counter() - self._started
            self.updates.append({"timesteps": self.num_timesteps, "seconds": seconds, **row})

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def main(folder: Path, steps_file: str = "") -> int:
    """Carry out the run that a folder specifies and put the results there; ``steps_file`` tells how far training is."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    os.chdir(folder)  # simulators leave logs where they are
    result = folder / RESULT_FOLDER
    result.mkdir()
    spec = RunSpec.from_json((folder / SPEC_FILE).read_text("utf-8"))
    try:
        mismatch = _mismatch(spec)
        if not mismatch:
            run(spec, folder / "zoo", result, steps_file)
            return 0
        (result / MISMATCH_FILE).write_text(mismatch, "utf-8")
    except Exception:
        (result / TRACEBACK_FILE).write_text(without_machine(traceback.format_exc()), "utf-8")
    return 1


def _end_with_parent(folder: Path) -> None:
    """End this process once standard input is closed: nobody waits for the result any more."""
    os.read(0, 1)  # unbuffered: a buffer's lock would outlive the interpreter
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(3)


def _mismatch(spec: RunSpec) -> str:
    """Packages that are others, as on another machine of a cluster, and code that was edited since the grid began."""
    import_packages(spec.gym_packages)
    wanted = spec.versions | spec.modules
    here = provenance.package_versions(entry_point(spec.task), spec.backend) | provenance.module_hashes(spec.variant)
    different = [name for name in wanted if here.get(name) != wanted[name]]
    return ", ".join(f"{name} {here.get(name)} instead of {wanted[name]}" for name in different)


def run(spec: RunSpec, zoo_folder: Path, result: Path, steps_file: str = "") -> None:
    """Carry out one run: what RL Zoo writes goes into ``zoo_folder``, the result's files into ``result``."""
    th.set_num_threads(1)
    manager, model = set_up(spec, zoo_folder)
    recorder = Recorder(steps_file)
    manager.callbacks.append(recorder)
    began = time.perf_counter(), time.process_time()
    manager.learn(model)
    seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    if model.num_timesteps < manager.n_timesteps:
        raise RuntimeError(f"training ended after {model.num_timesteps} of {manager.n_timesteps} steps")
    returns, lengths = evaluate(manager, model, spec.seed)
    episodes = pd.DataFrame(recorder.episodes, columns=["timesteps", "return", "length"])
    episodes.to_csv(result / EPISODES_FILE, index=False)
    pd.DataFrame(recorder.updates).to_csv(result / PROGRESS_FILE, index=False, float_format="%.5g")
    total = time.time() - psutil.Process().create_time()
    record = spec.record | {
        "status": "finished",
        "n_timesteps_done": model.num_timesteps,
        "evaluation": {"returns": [round(value, 4) for value in returns], "lengths": lengths},
        "seconds": {"training": round(seconds, 2), "total": round(total, 2)},
        "cpu_seconds": {"training": round(cpu_seconds, 2), "total": round(time.process_time(), 2)},
        "peak_memory_mib": round(_peak_memory(), 1),
        **provenance.git_commit(),
    }
    (result / RUN_FILE).write_text(json.dumps(record), "utf-8")


def set_up(spec: RunSpec, folder: Path) -> tuple[ExperimentManager, OnPolicyAlgorithm]:
    """Make what ``rl_zoo3.train`` makes, with a hyperparameter file of this run alone."""
    algorithms()
    folder.mkdir()
    config = folder / "hyperparameters.yml"
    config.write_text(yaml.safe_dump({spec.task: spec.hyperparameters}), "utf-8")
    set_random_seed(spec.seed)
    algorithm, seed = spec.variant.algorithm, spec.seed
    arguments = argparse.Namespace(algo=algorithm, env=spec.task, seed=seed)
    quiet: dict[str, Any] = {"eval_freq": -1, "log_interval": -1, "verbose": 0, "device": "cpu"}
    of_run: dict[str, Any] = {"seed": seed, "config": str(config), "hyperparams": _judge(spec)}
    manager = Manager(arguments, algorithm, spec.task, str(folder), **quiet, **of_run)
    if spec.backend != GYMNASIUM:
        from sb3_trustregion.benchmark.run.envpool import make_vec_env

        manager.vec_env_class = partial(make_vec_env, manager, spec.task)  # type: ignore[assignment]
    prepared: Any = manager.setup_experiment()
    model: OnPolicyAlgorithm = prepared[0]
    # RL Zoo does so for those of its command line alone.
    manager.eval_env_kwargs = manager.env_kwargs
    # Whole rollouts, as many as come nearest: RL Zoo rounds up, by up to one rollout more for some than for others.
    rollout = model.n_steps * model.n_envs
    manager.n_timesteps = max(round(spec.n_timesteps / rollout), 1) * rollout
    return manager, model


def _judge(spec: RunSpec) -> dict[str, Any]:
    """The arguments that no YAML file can hold: the judge's class, and the record that it goes by."""
    if "judge_class" not in spec.hyperparameters:
        return {}
    recorded = {"recording": spec.recording, "seed": spec.seed} if spec.recording else {}
    kwargs = {**spec.hyperparameters.get("judge_kwargs", {}), **recorded}
    return {"judge_class": pydoc.locate(spec.hyperparameters["judge_class"]), "judge_kwargs": kwargs}


def evaluate(manager: ExperimentManager, model: BaseAlgorithm, seed: int) -> tuple[list[float], list[int]]:
    """Measure raw returns and lengths of episodes of the final policy, not of the best checkpoint."""
    env = manager.create_envs(N_EVAL_ENVS, eval_env=True, no_log=True)
    trained_in: Any = model.get_env()
    sync_envs_normalization(trained_in, env)
    env.seed(EVAL_SEED + N_EVAL_ENVS * seed)
    measured: Any = evaluate_policy(
        model, env, N_EVAL_EPISODES, deterministic=manager.deterministic_eval, return_episode_rewards=True
    )
    env.close()
    returns, lengths = measured
    return [float(value) for value in returns], [int(length) for length in lengths]


def _peak_memory() -> float:
    """The most memory that this process had, MiB."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

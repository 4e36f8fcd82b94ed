"""The process of one run: RL Zoo's ``ExperimentManager``, then 20 episodes of the final policy."""

import argparse
import contextlib
import csv
import gzip
import io
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_trustregion.benchmark import provenance
from sb3_trustregion.benchmark.hyperparameters import nearest_rollouts
from sb3_trustregion.benchmark.runs import (
    EPISODES_FILE,
    MISMATCH_FILE,
    PROGRESS_FILE,
    RESULT_FOLDER,
    RUN_FILE,
    SPEC_FILE,
    TRACEBACK_FILE,
    RunSpec,
    record_text,
    run_record,
    without_machine,
)
from sb3_trustregion.benchmark.tasks import entry_point, import_packages
from sb3_trustregion.benchmark.variants import IMPLEMENTATIONS, MODULES, algorithm_class
from sb3_trustregion.zoo import register

N_EVAL_EPISODES = 20
N_EVAL_ENVS = 5
# Far from the seeds that environments are trained with.
EVAL_SEED = 1_000_000
# More than a run of the protocol has updates, unless its rollouts are short.
MAX_ROWS = 2000
RECORDED = (
    "radius", "rho", "pooled_rho", "pooled_rho_stderr", "actual_improvement", "predicted_improvement",
    "improvement_stderr", "kl_divergence", "kl_divergence_loss", "approx_kl", "distance_from_data", "clip_range",
    "clip_fraction", "n_rollbacks", "n_feedback_decisions", "n_rollouts", "same_batch_ratio", "reliability",
    "pooled_share", "explained_variance", "value_loss", "std", "learning_rate",
)  # fmt: skip


class ProgressRecorder(BaseCallback):
    """Keeps what each update logged, beside the number of steps at which it was made (SB3 logs it one later)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._started = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self._record()

    def _on_training_end(self) -> None:
        # RL Zoo calls this once more.
        if not self.rows or self.rows[-1]["timesteps"] < self.num_timesteps:
            self._record()

    def _on_step(self) -> bool:
        return True

    def _record(self) -> None:
        logged = self.logger.name_to_value
        values = {name: logged[f"train/{name}"] for name in RECORDED if f"train/{name}" in logged}
        if values:
            seconds = time.perf_counter() - self._started
            self.rows.append({"timesteps": self.num_timesteps, "seconds": seconds, **values})


def main(folder: Path) -> int:
    """
    Carry out the run that a folder describes.

    :param folder: has the specification, gets the results
    :return: exit code
    """
    _end_with_parent(folder)
    os.chdir(folder)  # simulators leave logs where they are
    result = folder / RESULT_FOLDER
    result.mkdir()
    spec = RunSpec.from_json((folder / SPEC_FILE).read_text("utf-8"))
    try:
        mismatch = _mismatch(spec)
        if mismatch:
            (result / MISMATCH_FILE).write_text(mismatch, "utf-8")
            return 1
        _run(spec, folder / "zoo", result)
    except Exception:
        (result / TRACEBACK_FILE).write_text(without_machine(traceback.format_exc()), "utf-8")
        return 1
    return 0


def _end_with_parent(folder: Path) -> None:
    """Nobody waits for the result any more once standard input is closed."""

    def wait() -> None:
        os.read(0, 1)  # unbuffered: a buffer's lock would outlive the interpreter
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def _run(spec: RunSpec, zoo_folder: Path, result: Path) -> None:
    th.set_num_threads(1)
    _register()
    manager, model = _set_up(spec, zoo_folder)
    recorder = ProgressRecorder()
    manager.callbacks.append(recorder)
    clock = _Clock()
    manager.learn(model)
    training = clock.read()
    if model.num_timesteps < manager.n_timesteps:
        raise RuntimeError(f"training ended after {model.num_timesteps} of {manager.n_timesteps} steps")
    returns, lengths = _evaluate(manager, model, spec.seed)
    total = _Clock.since_start()
    _write_table(result / EPISODES_FILE, ["timesteps", "return", "length"], _episodes(Path(manager.save_path)))
    _write_progress(result / PROGRESS_FILE, recorder.rows)
    record = run_record(spec) | {
        "status": "finished",
        "n_timesteps_done": model.num_timesteps,
        "evaluation": {"returns": [round(value, 4) for value in returns], "lengths": lengths},
        "seconds": {"training": training[0], "total": total[0]},
        "cpu_seconds": {"training": training[1], "total": total[1]},
        "peak_memory_mib": round(_peak_memory(), 1),
        "command": _command(spec, manager.n_timesteps),
        "package_version": _own_version(),
        **provenance.git_commit(),
    }
    (result / RUN_FILE).write_text(record_text(record), "utf-8")


def _mismatch(spec: RunSpec) -> str:
    """Other packages, as there may be on another machine of a cluster, or code that was edited since the grid began."""
    import_packages(spec.gym_packages)
    here = provenance.package_versions(entry_point(spec.task))
    differing = (name for name, version in spec.versions.items() if here.get(name) != version)
    different = [f"{name} {here.get(name)} instead of {spec.versions[name]}" for name in differing]
    if spec.code and provenance.code_hash(MODULES[spec.variant.algorithm]) != spec.code:
        different.append(f"other code of {spec.variant.algorithm}")
    return ", ".join(different)


def _register() -> None:
    register()
    for name in IMPLEMENTATIONS:
        ALGOS[name] = algorithm_class(name)


def _set_up(spec: RunSpec, folder: Path) -> tuple[ExperimentManager, OnPolicyAlgorithm]:
    """As ``rl_zoo3.train`` does, with a hyperparameter file of this run alone."""
    folder.mkdir()
    hyperparameters = dict(spec.hyperparameters)
    if spec.recording:
        hyperparameters["recording"] = spec.recording
    config = folder / "hyperparameters.yml"
    config.write_text(yaml.safe_dump({spec.task: hyperparameters}), "utf-8")
    set_random_seed(spec.seed)
    arguments = {"algo": spec.variant.algorithm, "env": spec.task, "seed": spec.seed, "conf_file": str(config)}
    manager = ExperimentManager(
        argparse.Namespace(**arguments),
        spec.variant.algorithm,
        spec.task,
        str(folder),
        eval_freq=-1,
        log_interval=-1,
        seed=spec.seed,
        verbose=0,
        device="cpu",
        config=str(config),
    )
    prepared = manager.setup_experiment()
    assert prepared is not None
    model, _ = prepared
    assert isinstance(model, OnPolicyAlgorithm)
    # RL Zoo does so for those of its command line alone.
    manager.eval_env_kwargs = manager.env_kwargs
    manager.n_timesteps = nearest_rollouts(spec.n_timesteps, model.n_steps * model.n_envs)
    return manager, model


def _evaluate(manager: ExperimentManager, model: BaseAlgorithm, seed: int) -> tuple[list[float], list[int]]:
    """Raw returns of episodes of the final policy, not of the best checkpoint."""
    env = manager.create_envs(N_EVAL_ENVS, eval_env=True, no_log=True)
    trained_in = model.get_env()
    assert trained_in is not None
    sync_envs_normalization(trained_in, env)
    env.seed(EVAL_SEED + N_EVAL_ENVS * seed)
    returns, lengths = evaluate_policy(
        model, env, N_EVAL_EPISODES, deterministic=manager.deterministic_eval, return_episode_rewards=True
    )
    env.close()
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return [float(value) for value in returns], [int(length) for length in lengths]


def _episodes(folder: Path) -> list[list[Any]]:
    """Training episodes by the step of training at which they ended: environments step together."""
    files = sorted(folder.glob("*.monitor.csv"))
    rows = []
    for path in files:
        with path.open(encoding="utf-8") as file:
            file.readline()  # a comment
            steps = 0
            for row in csv.DictReader(file):
                steps += int(row["l"])
                rows.append([steps * len(files), round(float(row["r"]), 4), int(row["l"])])
    # By nothing else: environments that end together keep their order, whatever their returns.
    return sorted(rows, key=lambda row: row[0])


def _write_progress(path: Path, rows: list[dict[str, float]]) -> None:
    every = -(-len(rows) // MAX_ROWS) or 1
    thinned = rows[::-1][::every][::-1]  # the last one stays
    columns = ["timesteps", "seconds", *(name for name in RECORDED if any(name in row for row in thinned))]
    cells = [[_short(row.get(name)) for name in columns] for row in thinned]
    _write_table(path, columns, cells)


def _short(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.5g}"


def _write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    # Without a time of its own, the same results give the same file.
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _command(spec: RunSpec, n_timesteps: int) -> str:
    """The same training by RL Zoo's own command, for algorithms that RL Zoo knows by itself or from our hook."""
    if spec.variant.algorithm in IMPLEMENTATIONS:
        return ""
    arguments = f"--algo {spec.variant.algorithm} --env {spec.task} --seed {spec.seed} -n {n_timesteps}"
    return f"python -m rl_zoo3.train {arguments} --num-threads 1 --device cpu --eval-freq -1 --conf-file FILE"


def _own_version() -> str:
    from sb3_trustregion import __version__

    return __version__


def _peak_memory() -> float:
    """The most memory that this process had, MiB."""
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
    import psutil

    return float(psutil.Process().memory_info().peak_wset) / 2**20


class _Clock:
    """Wall-clock and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, cpu = self._begin
        return round(time.perf_counter() - wall, 2), round(time.process_time() - cpu, 2)

    @staticmethod
    def since_start() -> tuple[float, float]:
        """Of the whole process, imports included."""
        import psutil

        return round(time.time() - psutil.Process().create_time(), 2), round(time.process_time(), 2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

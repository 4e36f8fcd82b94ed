"""Grids carried out for real, on small runs: all of it is RL Zoo's training in processes of its own."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import yaml
from distributed import Client, LocalCluster
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_trustregion.benchmark import cli
from sb3_trustregion.benchmark.results import EPISODES_FILE, RUN_FILE, TRACEBACK_FILE, Results, Run
from sb3_trustregion.benchmark.run import campaign, process, training
from sb3_trustregion.benchmark.run.campaign import carry_out
from sb3_trustregion.benchmark.run.grid import make_specs
from sb3_trustregion.benchmark.run.process import MISMATCH_FILE
from sb3_trustregion.benchmark.run.spec import RunSpec
from sb3_trustregion.benchmark.variants import VARIANTS
from tests.benchmark.here import train_here
from tests.helpers import heed_ctrl_c

pytestmark = pytest.mark.slow

TINY_PPO: dict[str, Any] = {"base": "ppo-default", "hyperparameters": {"n_steps": 64}}
BROKEN: dict[str, Any] = {"base": "npg", "hyperparameters": {"n_steps": -5}}
PATIENCE = 180.0


def make(output: Path, variants: list[Any], seeds: list[int], n_timesteps: int = 300, **more: Any) -> list[RunSpec]:
    values = {"output": output, "tasks": ["CartPole-v1"], "variants": variants, "seeds": seeds, **more}
    return make_specs({"n_timesteps": n_timesteps, **values})[0]


class Carried:
    """A grid with a variant that cannot be made."""

    def __init__(self, output: Path) -> None:
        self.specs = make(output, [{"tiny-ppo": TINY_PPO}, {"broken": BROKEN}], [1000], 980)
        self.results = Results(output)
        self.runs = carry_out(self.specs, self.results, jobs=2)

    def run(self, variant: str, seed: int) -> Run:
        found = self.results.find(("CartPole-v1", variant, seed))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return Carried(tmp_path_factory.mktemp("results"))


def test_every_run_is_kept(carried: Carried) -> None:
    assert [(run.variant.name, run.is_finished) for run in carried.runs] == [("tiny-ppo", True), ("broken", False)]


def test_a_result_is_complete(carried: Carried) -> None:
    run = carried.run("tiny-ppo", 1000)
    record = run.record
    assert record["status"] == "finished"
    assert record["n_timesteps_done"] == 960  # 15 rollouts are nearer to 980 than 16
    assert len(record["evaluation"]["returns"]) == len(record["evaluation"]["lengths"]) == 20
    assert record["evaluation"]["returns"] == [float(length) for length in record["evaluation"]["lengths"]]
    assert record["hyperparameters"]["n_steps"] == 64
    assert record["seconds"]["total"] > record["seconds"]["training"] > 0.0
    assert record["cpu_seconds"]["total"] > record["cpu_seconds"]["training"] > 0.0
    assert 100.0 < record["peak_memory_mib"] < 10_000.0
    assert {"torch", "stable_baselines3", "python"} <= set(record["versions"])
    episodes = run.episodes()
    assert (episodes["return"] == episodes["length"]).all()  # CartPole pays 1 a step, raw
    assert episodes["length"].sum() <= 960
    assert (episodes["timesteps"] == episodes["length"].cumsum()).all()
    progress = run.progress()
    assert progress["timesteps"].tolist() == list(range(64, 961, 64))
    assert progress["approx_kl"].notna().all()


def test_a_failed_run_says_why(carried: Carried) -> None:
    text = carried.run("broken", 1000).traceback()
    assert "n_steps" in text
    assert "sb3_trustregion/benchmark/run/training.py" in text
    assert sys.prefix not in text


def test_what_is_there_is_not_run_again(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = forbid_execution(monkeypatch)
    runs = carry_out(carried.specs, carried.results, jobs=1)
    assert executed == []
    assert sum(run.is_finished for run in runs) == 1


def test_an_archived_grid_goes_on(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = forbid_execution(monkeypatch)
    carried.results.pack()
    assert len(carry_out(carried.specs, carried.results, jobs=1)) == 2
    assert executed == []
    assert not carried.results.archive.exists()


def test_failed_runs_are_retried_on_demand(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = forbid_execution(monkeypatch)
    carry_out(carried.specs, carried.results, jobs=1, retry_failed=True)
    assert executed == [("CartPole-v1", "broken", 1000)]


def forbid_execution(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    executed = []

    def execute(spec_json: str, steps_file: str) -> Any:
        spec = RunSpec.from_json(spec_json)
        executed.append(spec.key)
        return spec.key, process.failed(spec, "unexpected keyword argument 'nonsense'")

    monkeypatch.setattr(campaign, "execute", execute)
    return executed


def test_a_replayed_run_has_the_other_seeds_radius(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch, tmp_path / "scratch")
    names = ["adaptive_trpo-replayed", "adaptive_trpo"]
    for name in names:
        short = {**VARIANTS[name].hyperparameters, "n_envs": 1, "n_steps": 64, "batch_size": 64, "target_kl": 0.01}
        monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], hyperparameters=short))
    runs = carry_out(make(tmp_path, names, [1000, 1001], 192), Results(tmp_path), jobs=1)
    assert [run.is_finished for run in runs] == [True] * 4
    found = {run.key[1:]: run for run in runs}
    for seed, other in ((1000, 1001), (1001, 1000)):
        replayed, recorded = found["adaptive_trpo-replayed", seed], found["adaptive_trpo", other]
        assert recorded.progress()["timesteps"].tolist() == [64, 128, 192]
        assert recorded.progress()["radius"].iloc[0] == 0.01
        assert replayed.record["replayed_seed"] == other
        np.testing.assert_allclose(replayed.progress()["radius"], recorded.progress()["radius"], rtol=1e-4)


def test_vectorised_environments_and_their_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch, tmp_path / "scratch")
    [run] = carry_out(make(tmp_path, ["trpo-zoo"], [1000], 2000, tasks=["Acrobot-v1"]), Results(tmp_path), jobs=1)
    assert run.record["hyperparameters"]["n_envs"] == 2
    assert run.record["n_timesteps_done"] == 2048
    episodes = run.episodes()
    # Raw, not what VecNormalize makes of it; two environments at a time, each 500 steps at most.
    assert episodes["return"].between(-500, -50).all()
    assert (episodes["timesteps"] % 2 == 0).all()
    assert episodes["timesteps"].max() <= 2048


def test_the_final_policy_is_evaluated_alike_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch, tmp_path / "scratch")
    for folder in ("once", "again"):
        carry_out(make(tmp_path / folder, [{"tiny-ppo": TINY_PPO}], [1000]), Results(tmp_path / folder), jobs=1)
        (tmp_path / "scratch").rename(tmp_path / f"{folder}-scratch")
    once, again = (next(Results(tmp_path / folder).all()) for folder in ("once", "again"))
    assert once.record["evaluation"] == again.record["evaluation"]
    for name in (EPISODES_FILE, RUN_FILE):
        assert (once.folder / name).is_file()
    assert (once.folder / EPISODES_FILE).read_bytes() == (again.folder / EPISODES_FILE).read_bytes()


class FarAway(gym.ObservationWrapper[Any, Any, Any]):
    """What a policy sees only where the statistics of training are subtracted."""

    def observation(self, observation: Any) -> Any:
        return observation + 1e4


@pytest.mark.parametrize("normalize", [True, False])
def test_the_final_policy_sees_what_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalize: bool
) -> None:
    wrapper = f"{__name__}.FarAway"
    environment = {"normalize": normalize, **({"env_wrapper": wrapper} if normalize else {})}
    [spec] = make(tmp_path / "results", [{"tiny-ppo": TINY_PPO}], [1000], environment=environment)
    manager, model = training.set_up(spec, tmp_path / "zoo")
    manager.learn(model)
    seen: dict[str, Any] = {}

    def evaluate(model: Any, env: Any, n_episodes: int, **options: Any) -> Any:
        seen.update(env=env, deterministic=options["deterministic"], before=copy.deepcopy(statistics_of(env)))
        found = evaluate_policy(model, env, n_episodes, **options)
        seen["after"] = copy.deepcopy(statistics_of(env))
        return found

    monkeypatch.setattr(training, "evaluate_policy", evaluate)
    returns, lengths = training.evaluate(manager, model, 1000)
    assert seen["deterministic"] is True
    assert len(returns) == 20
    # Raw: CartPole pays 1 a step.
    assert returns == [float(length) for length in lengths]
    if not normalize:
        assert seen["before"] is None
        return
    trained = statistics_of(model.get_env())
    assert trained["mean"].min() > 9000.0
    for name, value in trained.items():
        np.testing.assert_array_equal(seen["before"][name], value)
        np.testing.assert_array_equal(seen["after"][name], value)


def statistics_of(env: Any) -> dict[str, Any] | None:
    normalizer = unwrap_vec_normalize(env)
    return None if normalizer is None else dict(vars(normalizer.obs_rms))  # type: ignore[arg-type]


def test_the_final_policy_is_evaluated_on_the_same_task(tmp_path: Path) -> None:
    environment = {"n_envs": 1, "env_kwargs": {"g": 5.0}}
    [spec] = make(tmp_path, ["ppo-zoo"], [1000], tasks=["Pendulum-v1"], environment=environment)
    manager, model = training.set_up(spec, tmp_path / "zoo")
    trained_in = model.get_env()
    assert trained_in is not None
    for env in (trained_in, manager.create_envs(2, eval_env=True, no_log=True)):
        assert set(env.get_attr("g")) == {5.0}


def test_what_cannot_be_normalized_is_left_as_it_is(tmp_path: Path) -> None:
    """Of stock's variants as of ours, which are to be compared."""
    [spec] = make(tmp_path, ["ppo-default"], [1000], tasks=["FrozenLake-v1"], environment={"normalize": True})
    _, model = training.set_up(spec, tmp_path / "zoo")
    normalizer = model.get_vec_normalize_env()
    assert normalizer is not None
    assert (normalizer.norm_obs, normalizer.norm_reward) == (False, True)


def test_a_run_that_ends_early_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RL Zoo takes an interrupt for the end of training."""
    [spec] = make(tmp_path, [{"tiny-ppo": TINY_PPO}], [1000])

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Recorder, "_on_step", interrupt)
    with pytest.raises(RuntimeError, match="training ended after 1 of 320 steps"):
        training.run(spec, tmp_path / "zoo", tmp_path)


def test_the_command_line_carries_a_grid_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_execution(monkeypatch)
    arguments = [
        "run",
        "--tasks",
        "Blackjack-v1",
        "--variants",
        "ppo-zoo",
        "penalty_ppo",
        "--seeds",
        "1000",
        "--jobs",
        "1",
    ]
    assert cli.main([*arguments, "--output", str(tmp_path), "--n-envs", "2"]) == 1
    shown = capsys.readouterr()
    assert "left out: ppo-zoo on Blackjack-v1: no hyperparameters of its own" in shown.out
    assert "failed: penalty_ppo on Blackjack-v1, seed 1000" in shown.out
    assert "0 of 1 runs finished, 1 failed" in shown.out
    assert "[1/1] penalty_ppo on Blackjack-v1, seed 1000: FAILED" in shown.err
    [run] = Results(tmp_path).all()
    assert run.record["hyperparameters"]["n_envs"] == 2
    assert Results(tmp_path).commands()[0].startswith("python -m sb3_trustregion.benchmark run --tasks Blackjack-v1")


def start(spec: RunSpec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """As a process of its own would, but for its end."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(training, "_end_with_parent", lambda folder: None)
    (folder / process.SPEC_FILE).write_text(spec.to_json())
    return training.main(folder)


@pytest.mark.parametrize(("definition", "name"), [(TINY_PPO, RUN_FILE), (BROKEN, TRACEBACK_FILE)])
def test_a_process_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, definition: dict[str, Any], name: str
) -> None:
    [spec] = make(tmp_path, [{"mine": definition}], [1000])
    code = start(spec, tmp_path, monkeypatch)
    assert code == (0 if name == RUN_FILE else 1)
    assert (tmp_path / process.RESULT_FOLDER / name).is_file()
    files = process.collect(tmp_path, spec, code)
    assert json.loads(files[RUN_FILE])["status"] == ("finished" if code == 0 else "failed")


@pytest.mark.parametrize(
    ("returncode", "message"),
    [(-9, r"was ended by signal 9 \(out of memory\?\)"), (-11, "by signal 11"), (7, "ended with exit code 7")],
)
def test_a_process_that_dies_is_a_failed_run(tmp_path: Path, returncode: int, message: str) -> None:
    [spec] = make(tmp_path, ["npg"], [1000])
    (tmp_path / "log.txt").write_text(f"last words in {tmp_path}/zoo")
    files = process.collect(tmp_path, spec, returncode)
    assert json.loads(files[RUN_FILE])["status"] == "failed"
    text = files[TRACEBACK_FILE].decode()
    assert re.search(message, text)
    assert "last words in run/zoo" in text


def test_nothing_to_replay_is_a_failure_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_execution(monkeypatch)
    specs = make(tmp_path, ["adaptive_trpo", "adaptive_trpo-replayed"], [1000, 1001])
    runs = carry_out(specs, Results(tmp_path), jobs=1)
    assert [run.is_finished for run in runs] == [False] * 4
    run = Results(tmp_path).find(("CartPole-v1", "adaptive_trpo-replayed", 1000))
    assert run is not None
    assert "there is no finished run of adaptive_trpo with seed 1001 to replay" in run.traceback()


def test_a_grid_ends_when_the_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(spec_json: str, steps_file: str) -> Any:
        return RunSpec.from_json(spec_json).key, {MISMATCH_FILE: b"other code"}

    monkeypatch.setattr(campaign, "execute", execute)
    with pytest.raises(ValueError, match=r"code and packages must stay .*, got other code for npg on CartPole"):
        carry_out(make(tmp_path, ["npg"], [1000]), Results(tmp_path), jobs=1)
    assert list(Results(tmp_path).all()) == []


def test_a_run_of_other_code_is_refused_where_it_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [spec] = make(tmp_path, ["npg"], [1000])
    changed = replace(spec, versions={"torch": "0.1"}, modules={"sb3_trustregion.npg": "0123"})
    files = process.collect(tmp_path, changed, start(changed, tmp_path, monkeypatch))
    assert list(files) == [MISMATCH_FILE]
    assert re.fullmatch(rb"torch \S+ instead of 0.1, sb3_trustregion.npg \S+ instead of 0123", files[MISMATCH_FILE])


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {PATIENCE:.0f} s")


def finished(output: Path) -> list[Path]:
    return sorted(output.glob(f"runs/*/*/*/{RUN_FILE}"))


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def trainings(pid: int) -> list[psutil.Process]:
    return [process for process in descendants(pid) if "sb3_trustregion.benchmark.run.training" in process.cmdline()]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


GRID: dict[str, Any] = {"variants": [{"tiny-ppo": TINY_PPO}], "seeds": [1000, 1001, 1002], "n_timesteps": 128}


def test_a_stopped_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, grid = tmp_path / "output", tmp_path / "grid.yml"
    grid.write_text(yaml.safe_dump({"output": str(output), "tasks": ["CartPole-v1"], **GRID}))

    def start_grid() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sb3_trustregion.benchmark", "run", str(grid), "--jobs", "1"]
        return subprocess.Popen(command, start_new_session=True, preexec_fn=heed_ctrl_c)

    # As Ctrl-C does on a terminal: to the whole process group.
    process = start_grid()
    wait_until(lambda: finished(output), "the first run")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    kept = {path: path.stat().st_mtime_ns for path in finished(output)}
    process = start_grid()
    wait_until(lambda: trainings(process.pid), "another run")
    running = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: are_gone(running), "the end of all processes")
    assert all(json.loads(path.read_text())["status"] == "finished" for path in finished(output))
    # What is missing is what would be run.
    executed, missing = forbid_execution(monkeypatch), 3 - len(finished(output))
    assert len(carry_out(make(output, **GRID), Results(output), jobs=2)) == 3
    assert len(executed) == missing
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept)


@contextmanager
def scheduler(**workers: Any) -> Iterator[str]:
    """A Dask scheduler in this process; gives its address."""
    with LocalCluster(processes=False, dashboard_address=None, **workers) as cluster:  # type: ignore[no-untyped-call]
        yield cluster.scheduler_address


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers on loopback, these in processes of their own."""
    with scheduler(n_workers=0, host="127.0.0.1", protocol="tcp") as address:
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path / "dask")]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, *options]
        workers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            # The grid would not wait for the second one.
            with Client(address, timeout=PATIENCE, set_as_default=False) as client:  # type: ignore[no-untyped-call]
                client.wait_for_workers(2, timeout=PATIENCE)
            yield address, workers
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.wait(PATIENCE)


def test_a_cluster_may_lose_a_worker(tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]) -> None:
    address, workers = cluster
    specs = make(tmp_path, **{**GRID, "seeds": [1000]})
    with ThreadPoolExecutor() as executor:
        carried = executor.submit(carry_out, specs, Results(tmp_path), address=address)
        busy = wait_until(lambda: [worker for worker in workers if trainings(worker.pid)], "a run")[0]
        running = trainings(busy.pid)
        busy.kill()
        wait_until(lambda: are_gone(running), "the end of that run")
        assert [run.is_finished for run in carried.result(2 * PATIENCE)] == [True]


def test_no_worker_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "SECONDS_FOR_WORKERS", 1)
    with scheduler(n_workers=0) as address, pytest.raises(TimeoutError):
        carry_out(make(tmp_path, ["npg"], [1000]), Results(tmp_path), address=address)


def test_no_scheduler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "CONNECTION_TIMEOUT", "1s")
    with pytest.raises(OSError, match=r"Timed out trying to connect to tcp://127\.0\.0\.1:9"):
        carry_out(make(tmp_path, ["npg"], [1000]), Results(tmp_path), address="tcp://127.0.0.1:9")

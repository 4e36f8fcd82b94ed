"""
A training that is killed over and over: ``python -m tests.faults.interrupted FOLDER N_KILLS SEED``.

At random moments, and where it hurts most: with a checkpoint half written, and with one written but not yet in place.

A program of its own, because it forks: the libraries are imported once, and no thread of a test runner comes along.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.checkpoint import TEMPORARY, ResumableCheckpointCallback, checkpoints, resume
from tests.faults.environments import healthy
from tests.helpers import make_model

N_STEPS = 16
WHERE_IT_HURTS = ("fsync", "replace")
MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "npg": (NPG, {}),
    "adaptive_trpo": (AdaptiveTRPO, {}),
    "adaptive_ppo": (AdaptivePPO, {}),
}


def environment() -> VecNormalize:
    return VecNormalize(SubprocVecEnv([healthy()] * 2, start_method="fork"))


def new_model(name: str) -> Any:
    algorithm, arguments = MODELS[name]
    return make_model(algorithm, environment(), n_steps=N_STEPS, seed=3, **arguments)


def kill_itself_at(call: str) -> None:
    """Have the second checkpoint from now on kill this process when it comes to a call of the system."""
    owner: Any = os if call == "fsync" else Path
    original, seen = getattr(owner, call), []

    def deadly(*args: Any) -> Any:
        seen.append(args)
        # Two files are synced with each checkpoint: it and its folder.
        if len(seen) == (3 if call == "fsync" else 2):
            if call == "fsync":
                os.truncate(args[0], os.fstat(args[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, call, deadly)


def train(name: str, folder: Path, ready: int, moment: float | str) -> None:
    """Go on from the newest checkpoint, writing one after every update, until killed."""
    if isinstance(moment, str):
        kill_itself_at(moment)
    warnings.simplefilter("error")  # a checkpoint that does not load would be passed over with a warning
    start = 0
    if folder.exists() and checkpoints(folder):
        model = resume(MODELS[name][0], folder, environment(), device="cpu")
        start = model.num_timesteps
        assert start == int(checkpoints(folder)[-1].name.split("_")[1])
    else:
        model = new_model(name)
    os.write(ready, f"{start}\n".encode())
    model.learn(10**9, callback=ResumableCheckpointCallback(1, folder), reset_num_timesteps=False)


def kill_once(name: str, folder: Path, moment: float | str) -> int:
    """
    Let a child train and kill it and its environments.

    :param name: one of ``MODELS``
    :param folder: of the checkpoints
    :param moment: seconds after it has started, or one of ``WHERE_IT_HURTS``
    :return: at which step it had started
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reader)
        try:
            train(name, folder, writer, moment)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        start = pipe.readline()
        if isinstance(moment, float):
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # its environments, which would soon end by themselves
    if not start or not os.WIFSIGNALED(status):
        raise RuntimeError(f"{name} ended by itself before it was killed")
    return int(start)


def warm_up(folder: Path) -> float:
    """
    Have everything imported that children would import at the cost of a second each.

    :return: seconds that a few updates with their checkpoints take on this machine, busy as it is
    """
    model = make_model(AdaptiveTRPO, VecNormalize(DummyVecEnv([healthy()])))
    model.learn(2 * model.n_steps, callback=ResumableCheckpointCallback(1, folder))
    model = resume(AdaptiveTRPO, folder, VecNormalize(DummyVecEnv([healthy()])), device="cpu")
    began = time.perf_counter()
    model.learn(8 * model.n_steps, callback=ResumableCheckpointCallback(1, folder), reset_num_timesteps=False)
    return time.perf_counter() - began


def main() -> None:
    folder, n_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    th.set_num_threads(1)
    longest = max(warm_up(folder / "warm_up"), 0.2)
    moments = random.Random(seed)
    report = {}
    for name in MODELS:
        starts, n_partial = [], 0
        for moment in (*WHERE_IT_HURTS, *(moments.uniform(0.0, longest) for _ in range(n_kills)), *WHERE_IT_HURTS):
            starts.append(kill_once(name, folder / name, moment))
            n_partial += len(list((folder / name).glob(f"*{TEMPORARY}")))
        report[name] = {"starts": starts, "n_partial": n_partial}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()

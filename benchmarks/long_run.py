"""
Whether long runs stay as they start: memory and time of an update over 2,000 of them.

Each configuration runs in a process of its own. Time is that of the process alone, so that others on the machine
disturb less, and a rollout and its update count together. Pendulum-v1, 4 environments x 64 steps, ``VecNormalize``.
"""

import argparse
import csv
import itertools
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO

N_ENVS, N_STEPS = 4, 64
BLOCK = 100  # updates of a row
CONFIGURATIONS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "adaptive_trpo": (AdaptiveTRPO, {}),
    "adaptive_ppo": (AdaptivePPO, {}),
    "npg": (NPG, {}),
}


class Row(NamedTuple):
    """
    A block of updates.

    :param configuration: one of ``CONFIGURATIONS``
    :param updates: made until its end
    :param ms_per_update: median CPU time of a rollout with its update
    :param rss_mib: resident memory at its end
    """

    configuration: str
    updates: int
    ms_per_update: float
    rss_mib: float


class Watch(BaseCallback):
    """
    Takes the time of every update, and the memory after every block of them.

    :param configuration: its name, for the rows
    """

    def __init__(self, configuration: str) -> None:
        super().__init__()
        self.configuration = configuration
        self.rows: list[Row] = []
        self._times = [time.process_time()]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._times.append(time.process_time())
        n_updates = len(self._times) - 2
        if n_updates > 0 and n_updates % BLOCK == 0:
            last = self._times[-BLOCK - 1 :]
            median = 1e3 * statistics.median(after - before for before, after in itertools.pairwise(last))
            memory = psutil.Process().memory_info().rss / 2**20
            self.rows.append(Row(self.configuration, n_updates, round(median, 2), round(memory, 2)))


def measure(configuration: str, n_updates: int) -> list[Row]:
    """
    :param configuration: one of ``CONFIGURATIONS``
    :param n_updates: how long
    :return: a row for each block
    """
    th.set_num_threads(1)
    algorithm, arguments = CONFIGURATIONS[configuration]
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=N_ENVS, seed=0))
    model = algorithm("MlpPolicy", env, n_steps=N_STEPS, batch_size=64, seed=0, device="cpu", **arguments)
    watch = Watch(configuration)
    # One more, whose start is the end of the last.
    model.learn((n_updates + 1) * N_STEPS * N_ENVS, callback=watch)
    return watch.rows


def summary(rows: list[Row]) -> str:
    """
    :param rows: of one configuration
    :return: the last quarter beside the second, when all that is allocated once has been
    """
    second, last = rows[len(rows) // 4 : len(rows) // 2], rows[-(len(rows) // 4) :]
    times = [statistics.median(row.ms_per_update for row in part) for part in (second, last)]
    grown = last[-1].rss_mib - second[0].rss_mib
    per_thousand = 1000.0 * grown / (last[-1].updates - second[0].updates)
    return (
        f"{rows[0].configuration}: {times[0]:.1f} ms an update in the second quarter, {times[1]:.1f} in the last "
        f"({times[1] / times[0]:.2f}x); {last[-1].rss_mib:.0f} MiB, {per_thousand:+.2f} MiB per 1,000 updates"
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Memory and time of an update over a long run.")
    parser.add_argument("--updates", type=int, default=2000, help=f"a multiple of {4 * BLOCK}")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="where the table goes")
    arguments = parser.parse_args()
    if arguments.updates < 4 * BLOCK or arguments.updates % (4 * BLOCK):
        raise SystemExit(f"--updates must be a multiple of {4 * BLOCK}, got {arguments.updates}")
    table: list[Row] = []
    for configuration in CONFIGURATIONS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows = pool.apply(measure, (configuration, arguments.updates))
        print(summary(rows), flush=True)
        table += rows
    with arguments.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([Row._fields, *table])


if __name__ == "__main__":
    main()

"""From the results of a run to its scores, and from a folder of results to a collection that may be compared."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from sb3_trustregion.benchmark.mixtures import mixtures
from sb3_trustregion.benchmark.results import Key, Results, Run
from sb3_trustregion.benchmark.variants import VARIANTS, Variant

Array = npt.NDArray[np.float64]

N_CHECKPOINTS = 50
# Of the steps of a run: over how many a point of its curve is a mean.
WINDOW = 0.05
LAST_EPISODES = 0.1

METRICS = {
    "evaluation": "final policy, 20 deterministic episodes",
    "training": "last 10 % of training episodes",
    "area": "area under the learning curve",
}


class RunScores(NamedTuple):
    """
    Raw returns of a run.

    :param evaluation: mean over the evaluation episodes of the final policy
    :param training: mean over the last tenth of the training episodes
    :param area: mean of the curve over training
    :param curve: mean return of recent training episodes at each checkpoint
    """

    evaluation: float
    training: float
    area: float
    curve: Array


def score(run: Run) -> RunScores:
    """
    :param run: a finished run
    :return: its scores
    """
    episodes = run.episodes()
    returns = episodes["return"].to_numpy(dtype=float)
    timesteps = episodes["timesteps"].to_numpy(dtype=float)
    curve = learning_curve(timesteps, returns, run.record["n_timesteps"])
    evaluation = float(np.mean(run.record["evaluation"]["returns"]))
    return RunScores(evaluation, last_returns(timesteps, returns), float(np.mean(curve)), curve)


def last_returns(timesteps: Array, returns: Array) -> float:
    """
    :param timesteps: at the ends of the training episodes, not decreasing
    :param returns: of the episodes
    :return: mean over the last tenth of them, with all that ended together with the first of these; NaN where none did
    """
    if len(returns) == 0:
        return np.nan
    first = timesteps[-max(round(LAST_EPISODES * len(returns)), 1)]
    return float(np.mean(returns[np.searchsorted(timesteps, first) :]))


def learning_curve(timesteps: Array, returns: Array, n_timesteps: int) -> Array:
    """
    :param timesteps: at the ends of the training episodes, not decreasing
    :param returns: of the episodes
    :param n_timesteps: length of the run
    :return: at each of ``N_CHECKPOINTS`` equal parts of the run, the mean return of the episodes that ended within the
        last 5 % of its steps; where none did, of the latest, and before the first ended, of the first: of all that
        ended together, as those of several environments do
    """
    if len(returns) == 0:
        return np.full(N_CHECKPOINTS, np.nan)
    points = np.linspace(0.0, n_timesteps, N_CHECKPOINTS + 1)[1:]
    ends = np.maximum(np.searchsorted(timesteps, points, side="right"), np.sum(timesteps == timesteps[0]))
    starts = np.searchsorted(timesteps, points - WINDOW * n_timesteps, side="right")
    starts = np.minimum(starts, np.searchsorted(timesteps, timesteps[ends - 1]))
    sums = np.concatenate([[0.0], np.cumsum(returns)])
    curve: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return curve


@dataclass(frozen=True)
class Collection:
    """
    Results that belong together.

    :param runs: by task, variant and seed
    :param scores: of those that finished
    :param variants: in the order of presentation, by name
    :param tasks: in alphabetical order
    :param seeds: increasing
    """

    runs: dict[Key, Run]
    scores: dict[Key, RunScores]
    variants: dict[str, Variant]
    tasks: list[str]
    seeds: list[int]

    def select(self, wanted: Callable[[Variant], bool]) -> list[Variant]:
        """
        :param wanted: whether a variant is
        :return: those
        """
        return [variant for variant in self.variants.values() if wanted(variant)]

    def failed(self) -> list[Run]:
        """:return: the runs that failed"""
        return [run for run in self.runs.values() if not run.is_finished]

    def curves(self, task: str, variant: str) -> Array:
        """
        :param task: id of the environment
        :param variant: name
        :return: raw learning curves, one row per finished run
        """
        rows = [self.scores[key].curve for key in self.scores if key[:2] == (task, variant)]
        return np.array(rows).reshape(len(rows), N_CHECKPOINTS)

    def n_timesteps(self, task: str) -> int:
        """
        :param task: id of the environment
        :return: wanted length of its runs
        """
        return next(int(run.record["n_timesteps"]) for key, run in self.runs.items() if key[0] == task)

    def table(self) -> pd.DataFrame:
        """:return: one row per run"""
        return pd.DataFrame([self._row(run) for run in self.runs.values()])

    def _row(self, run: Run) -> dict[str, Any]:
        record = run.record
        row = {"task": run.task, "variant": run.variant.name, "seed": run.seed, "status": record["status"]}
        if not run.is_finished:
            return row
        scores = self.scores[run.key]
        return row | {
            "n_timesteps": record["n_timesteps_done"],
            **{name: getattr(scores, name) for name in METRICS},
            "evaluation_std": float(np.std(record["evaluation"]["returns"])),
            "training_seconds": record["seconds"]["training"],
            "training_cpu_seconds": record["cpu_seconds"]["training"],
            "total_seconds": record["seconds"]["total"],
            "peak_memory_mib": record["peak_memory_mib"],
            "commit": record.get("commit", ""),
        }


def collect(results: Path, allow_mixed: bool = False) -> Collection:
    """
    :param results: folder of the results
    :param allow_mixed: whether results of several versions are taken together all the same
    :return: all of them
    :raises ValueError: where there are none, or where they do not belong together
    """
    runs = {run.key: run for run in Results(results).all()}
    if not runs:
        raise ValueError(f"results must be a folder that `run` wrote to, got {str(results)!r}")
    mixed = mixtures(run.record for run in runs.values())
    if mixed and not allow_mixed:
        listed = "\n  ".join(mixed)
        raise ValueError(f"results must be of one version, or --allow-mixed be given; they have\n  {listed}")
    order = {name: position for position, name in enumerate(VARIANTS)}
    variants = {run.variant.name: run.variant for run in runs.values()}
    names = sorted(variants, key=lambda name: (order.get(name, len(order)), name))
    return Collection(
        runs=runs,
        scores={key: score(run) for key, run in runs.items() if run.is_finished},
        variants={name: variants[name] for name in names},
        tasks=sorted({run.task for run in runs.values()}, key=_by_name),
        seeds=sorted({run.seed for run in runs.values()}),
    )


def _by_name(task: str) -> str:
    return re.sub(r"-v\d+$", "", task).lower()

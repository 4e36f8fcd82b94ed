"""Makes scores that may be compared of a folder of results: raw and normalised, a row per run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from sb3_trustregion.benchmark.mixtures import mixtures
from sb3_trustregion.benchmark.results import Key, Results, Run
from sb3_trustregion.benchmark.variants import VARIANTS, Variant

Array = npt.NDArray[np.float64]

REFERENCES = Path(__file__).with_name("references.yml")
METRICS = {"evaluation": "final policy", "training": "last 10 %", "area": "area"}
N_CHECKPOINTS = 50
# Of the steps of a run: over how many a point of its curve is a mean.
WINDOW = 0.05
LAST_EPISODES = 0.1


class Reference(NamedTuple):
    """Mean returns that normalise the scores of a task: of random actions, score 0, and a published one, score 1."""

    random: float
    reference: float

    def normalize(self, returns: Any) -> Any:
        """Raw returns as normalised scores."""
        return (returns - self.random) / (self.reference - self.random)


def read_references(path: Path = REFERENCES) -> dict[str, Reference]:
    """References by task, from a file such as the committed one."""
    try:
        tasks = yaml.safe_load(path.read_text("utf-8"))["tasks"]
        by_task = {task: Reference(float(entry["random"]), float(entry["reference"])) for task, entry in tasks.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"references must be a file with random and reference per task, got {str(path)!r}") from error
    for task, (random, reference) in by_task.items():
        if not reference > random:
            raise ValueError(f"reference must be > random, got {reference} and {random} for {task}")
    return by_task


def last_returns(timesteps: Array, returns: Array) -> float:
    """Mean return of the last tenth of the episodes, and of all that ended with its first one; NaN where none ended."""
    if len(returns) == 0:
        return np.nan
    first = timesteps[-max(round(LAST_EPISODES * len(returns)), 1)]
    return float(np.mean(returns[np.searchsorted(timesteps, first) :]))


def learning_curve(timesteps: Array, returns: Array, n_timesteps: int) -> Array:
    """
    At each of ``N_CHECKPOINTS`` equal parts of a run, the mean return of the training episodes that ended within the
    last 5 % of its steps; where none did, of the latest, and before the first ended, of the first: of all that ended
    together, as those of several environments do. Episodes ended at ``timesteps``, which do not decrease.
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
    """Results that belong together; variants and tasks are in the order of presentation."""

    runs: dict[Key, Run]
    table: pd.DataFrame  # a row per run: scores, what its radius did, what it cost
    curves: dict[Key, Array]  # learning curves of those that finished, raw returns
    updates: dict[Key, pd.DataFrame]  # what their updates logged
    variants: list[Variant]
    tasks: list[str]
    seeds: list[int]

    def select(self, wanted: Callable[[Variant], bool]) -> list[Variant]:
        """The variants that are wanted."""
        return [variant for variant in self.variants if wanted(variant)]

    def seeds_of(self, variant: Variant) -> list[int]:
        """The seeds that a variant has been run with."""
        return sorted({seed for _, name, seed in self.runs if name == variant.name})


def collect(results: Results, allow_mixed: bool = False) -> Collection:
    """All results, of at least one run; a ``ValueError`` where they are of several versions and are not to be mixed."""
    runs = {run.key: run for run in results.all()}
    mixed = mixtures(run.record for run in runs.values())
    if mixed and not allow_mixed:
        listed = "\n  ".join(mixed)
        raise ValueError(f"results must be of one version, or --allow-mixed be given; they have\n  {listed}")
    order = {name: position for position, name in enumerate(VARIANTS)}
    variants = {run.variant.name: run.variant for run in runs.values()}
    rows, curves, updates = [], {}, {}
    for key, run in runs.items():
        row = {**dict(zip(("task", "variant", "seed"), key, strict=True)), "status": run.record["status"]}
        if run.is_finished:
            updates[key] = run.progress()
            scores, curves[key] = _scores(run)
            row |= scores | _decisions(updates[key])
        rows.append(row)
    return Collection(
        runs=runs,
        table=pd.DataFrame(rows),
        curves=curves,
        updates=updates,
        variants=sorted(variants.values(), key=lambda variant: (order.get(variant.name, len(order)), variant.name)),
        tasks=sorted({task for task, _, _ in runs}, key=lambda task: re.sub(r"-v\d+$", "", task).lower()),
        seeds=sorted({seed for _, _, seed in runs}),
    )


def _scores(run: Run) -> tuple[dict[str, Any], Array]:
    record, episodes = run.record, run.episodes()
    timesteps, returns = (episodes[name].to_numpy(dtype=float) for name in ("timesteps", "return"))
    curve = learning_curve(timesteps, returns, record["n_timesteps"])
    row = {
        "n_timesteps": record["n_timesteps_done"],
        "evaluation": float(np.mean(record["evaluation"]["returns"])),
        "training": last_returns(timesteps, returns),
        "area": float(np.mean(curve)),
        "evaluation_std": float(np.std(record["evaluation"]["returns"])),
        "training_seconds": record["seconds"]["training"],
        "training_cpu_seconds": record["cpu_seconds"]["training"],
        "total_seconds": record["seconds"]["total"],
        "peak_memory_mib": record["peak_memory_mib"],
        "commit": record.get("commit", ""),
    }
    return row, curve


def _decisions(updates: pd.DataFrame) -> dict[str, float]:
    """What the radius rule did, nothing where a variant has none."""
    if "radius" not in updates or "n_rollbacks" not in updates:
        return {}
    radius = updates["radius"].dropna()
    counts = {name: float(updates[name].max()) for name in ("n_rollbacks", "n_feedback_decisions")}
    return {"n_updates": len(radius), **counts, "first_radius": radius.iloc[0], "last_radius": radius.iloc[-1]}

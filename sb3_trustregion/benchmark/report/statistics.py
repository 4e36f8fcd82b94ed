"""rliable's statistics of normalised scores (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from rliable import library

from sb3_trustregion.benchmark.report.scores import METRICS, N_CHECKPOINTS, Array, Collection, Reference
from sb3_trustregion.benchmark.variants import Variant


class Estimates(NamedTuple):
    """Figures with their 95 % stratified-bootstrap intervals by label, as rliable gives and draws them."""

    points: dict[str, Array]  # shape (figures,)
    intervals: dict[str, Array]  # shape (2, figures)


@dataclass(frozen=True)
class Block:
    """Normalised scores of variants on the same tasks with the same seeds, by label."""

    variants: list[Variant]
    seeds: list[int]  # those that all of them have been run with
    tasks: list[str]
    scores: dict[str, Array]  # shape (seeds, tasks, metrics)
    curves: dict[str, Array]  # shape (seeds, tasks, checkpoints)
    left_out: list[str]  # tasks that are incomplete or have no references, for people

    @property
    def final(self) -> dict[str, Array]:
        """Scores of the final policies, shape (seeds, tasks)."""
        return {label: scores[..., 0] for label, scores in self.scores.items()}


def make_block(collection: Collection, variants: list[Variant], references: Mapping[str, Reference]) -> Block:
    """
    Scores of some variants with the seeds that all of them have, on the tasks on which none of these runs is missing.

    A failed run scores as the random policy does: to leave it out would favour what fails.
    """
    tasks, left_out = [], []
    of_variants = [collection.seeds_of(variant) for variant in variants]
    seeds = [seed for seed in collection.seeds if all(seed in theirs for theirs in of_variants)] or collection.seeds
    for task in collection.tasks:
        missing = [v.name for v in variants if any((task, v.name, s) not in collection.runs for s in seeds)]
        if missing:
            left_out.append(f"{task}: runs of {', '.join(missing)} are missing")
        elif task not in references:
            left_out.append(f"{task}: no references to normalise scores with")
        else:
            tasks.append(task)
    table = collection.table.set_index(["task", "variant", "seed"]).reindex(columns=list(METRICS))
    scores, curves = {}, {}
    for variant in variants:
        shape = len(seeds), len(tasks)
        scores[variant.label] = np.zeros((*shape, len(METRICS)))
        curves[variant.label] = np.zeros((*shape, N_CHECKPOINTS))
        for row, seed in enumerate(seeds):
            for column, task in enumerate(tasks):
                key = task, variant.name, seed
                if key in collection.curves:
                    normalize = references[task].normalize
                    scores[variant.label][row, column] = normalize(table.loc[key].to_numpy(dtype=float))
                    curves[variant.label][row, column] = normalize(collection.curves[key])
    return Block(variants, seeds, tasks, scores, curves, left_out)


def interquartile_mean(scores: Array) -> Array:
    """rliable's, of all points at once, shape (seeds, tasks, points): its own takes minutes."""
    mean: Array = scipy.stats.trim_mean(scores.reshape(-1, scores.shape[-1]), 0.25, axis=0)
    return mean


def improvement_probability(x: Array, y: Array) -> Array:
    """rliable's, of all tasks at once, shapes (seeds, tasks): its own takes minutes."""
    differences = x[:, None] - y[None]
    return np.array([np.mean((differences > 0.0) + 0.5 * (differences == 0.0))])


def estimate(scores: Mapping[str, Any], function: Callable[..., Array], reps: int) -> Estimates:
    """Figures of scores by label, arrays or arrays that are resampled apart from each other, with their intervals."""
    # rliable draws from numpy's global generator: the same results give the same report.
    np.random.seed(0)  # noqa: NPY002
    return Estimates(*library.get_interval_estimates(dict(scores), function, reps=reps))

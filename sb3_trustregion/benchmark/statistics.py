"""rliable's statistics of normalised scores (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats
from rliable import library

from sb3_trustregion.benchmark.references import Reference
from sb3_trustregion.benchmark.scores import METRICS, N_CHECKPOINTS, Collection
from sb3_trustregion.benchmark.variants import Variant

Array = npt.NDArray[np.float64]

BOOTSTRAP_SEED = 0
PROFILE_POINTS = 101


class Interval(NamedTuple):
    """
    A figure with its 95 % stratified-bootstrap interval; numbers, or arrays of one shape.

    :param point: the estimate
    :param low: lower end
    :param high: upper end
    """

    point: Any
    low: Any
    high: Any


@dataclass(frozen=True)
class Block:
    """
    Normalised scores of variants on the same tasks with the same seeds, as rliable wants them.

    :param variants: whose
    :param tasks: on what
    :param seeds: of the runs
    :param scores: by metric and name of the variant, shape (seeds, tasks)
    :param curves: by name of the variant, shape (seeds, tasks, checkpoints)
    :param left_out: tasks that are incomplete or have no references, for people
    """

    variants: list[Variant]
    tasks: list[str]
    seeds: list[int]
    scores: dict[str, dict[str, Array]]
    curves: dict[str, Array]
    left_out: list[str]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compare."""
        return not self.tasks or not self.variants


def make_block(collection: Collection, variants: list[Variant], references: Mapping[str, Reference]) -> Block:
    """
    A failed run scores as the random policy does: to leave it out would favour what fails.

    :param collection: the results
    :param variants: which are compared
    :param references: what scores 0 and 1 mean
    :return: scores on the tasks on which all variants have all seeds
    """
    tasks, left_out = [], []
    for task in collection.tasks:
        missing = [
            variant.name
            for variant in variants
            if any((task, variant.name, seed) not in collection.runs for seed in collection.seeds)
        ]
        if missing:
            left_out.append(f"{task}: runs of {', '.join(missing)} are missing")
        elif task not in references:
            left_out.append(f"{task}: no references to normalise scores with")
        else:
            tasks.append(task)
    scores: dict[str, dict[str, Array]] = {metric: {} for metric in METRICS}
    curves = {}
    for variant in variants:
        for metric in METRICS:
            scores[metric][variant.name] = _normalized(collection, variant, tasks, references, metric)
        curves[variant.name] = _normalized(collection, variant, tasks, references, "curve")
    return Block(variants, tasks, collection.seeds, scores, curves, left_out)


def _normalized(
    collection: Collection, variant: Variant, tasks: list[str], references: Mapping[str, Reference], field: str
) -> Array:
    shape = (len(collection.seeds), len(tasks), *((N_CHECKPOINTS,) if field == "curve" else ()))
    values = np.zeros(shape)
    for row, seed in enumerate(collection.seeds):
        for column, task in enumerate(tasks):
            scores = collection.scores.get((task, variant.name, seed))
            if scores is not None:
                values[row, column] = references[task].normalize(getattr(scores, field))
    return values


def interquartile_mean(scores: Array) -> Array:
    """
    :param scores: shape (seeds, tasks) or (seeds, tasks, points)
    :return: mean of the middle half of all runs, shape (points,), or (1,)
    """
    flat = scores.reshape(scores.shape[0] * scores.shape[1], -1)
    mean: Array = np.atleast_1d(scipy.stats.trim_mean(flat, 0.25, axis=0))
    return mean


def improvement_probability(x: Array, y: Array) -> Array:
    """
    :param x: shape (seeds, tasks)
    :param y: shape (seeds, tasks)
    :return: how often a run of x is better than one of y on the same task, ties counting half, shape (1,)
    """
    differences = x[:, None] - y[None]
    wins: Array = (differences > 0.0) + 0.5 * (differences == 0.0)
    return np.array([wins.mean()])


def estimate(scores: Mapping[str, Any], function: Callable[..., Array], reps: int) -> dict[str, Interval]:
    """
    :param scores: by name: an array, or arrays that are resampled apart from each other
    :param function: from them to a figure, shape (points,)
    :param reps: bootstrap samples
    :return: the figure with its interval by name
    """
    # rliable draws from numpy's global generator: the same results give the same report.
    np.random.seed(BOOTSTRAP_SEED)  # noqa: NPY002
    points, intervals = library.get_interval_estimates(dict(scores), function, reps=reps)
    return {name: Interval(points[name], *intervals[name]) for name in scores}


def interquartile_means(block: Block, metric: str, reps: int) -> dict[str, Interval]:
    """
    :param block: the scores
    :param metric: of :data:`METRICS`
    :param reps: bootstrap samples
    :return: interquartile mean over all tasks and seeds by name of the variant, numbers
    """
    found = estimate(block.scores[metric], interquartile_mean, reps)
    return {name: Interval(*(float(part[0]) for part in interval)) for name, interval in found.items()}


def sample_efficiency(block: Block, reps: int) -> dict[str, Interval]:
    """
    :param block: the scores
    :param reps: bootstrap samples
    :return: interquartile mean at each checkpoint by name of the variant
    """
    return estimate(block.curves, interquartile_mean, reps)


def performance_profiles(block: Block, metric: str, reps: int) -> tuple[Array, dict[str, Interval]]:
    """
    :param block: the scores
    :param metric: of :data:`METRICS`
    :param reps: bootstrap samples
    :return: thresholds, and the share of runs whose score exceeds each by name of the variant
    """
    highest = max(float(np.max(scores)) for scores in block.scores[metric].values())
    lowest = min(float(np.min(scores)) for scores in block.scores[metric].values())
    thresholds = np.linspace(min(lowest, 0.0), max(highest, 1.0), PROFILE_POINTS)

    def share_above(scores: Array) -> Array:
        share: Array = (scores[..., None] > thresholds).mean(axis=(0, 1))
        return share

    return thresholds, estimate(block.scores[metric], share_above, reps)


def improvements(
    block: Block, metric: str, pairs: Sequence[tuple[str, str]], reps: int
) -> dict[tuple[str, str], Interval]:
    """
    :param block: the scores
    :param metric: of :data:`METRICS`
    :param pairs: names of two variants each
    :param reps: bootstrap samples
    :return: probability that the first is better than the second, by pair
    """
    scores = block.scores[metric]
    both = {f"{x},{y}": [scores[x], scores[y]] for x, y in pairs}
    found = estimate(both, improvement_probability, reps)
    return {(x, y): Interval(*(float(part[0]) for part in found[f"{x},{y}"])) for x, y in pairs}

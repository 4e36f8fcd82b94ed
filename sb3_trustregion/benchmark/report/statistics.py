"""rliable's statistics of normalised scores (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from rliable import library

from sb3_trustregion.benchmark.report.references import Reference
from sb3_trustregion.benchmark.report.scores import METRICS, N_CHECKPOINTS, Array, Collection
from sb3_trustregion.benchmark.variants import Variant

BOOTSTRAP_SEED = 0
PROFILE_POINTS = 101


class Estimates(NamedTuple):
    """
    Figures with their 95 % stratified-bootstrap intervals, as rliable gives and draws them.

    :param points: by name, shape (figures,)
    :param intervals: by name, shape (2, figures)
    """

    points: dict[str, Array]
    intervals: dict[str, Array]


@dataclass(frozen=True)
class Block:
    """
    Normalised scores of variants on the same tasks with the same seeds.

    :param variants: whose
    :param tasks: on what
    :param seeds: of the runs
    :param scores: by name of the variant, shape (seeds, tasks, metrics)
    :param curves: by name of the variant, shape (seeds, tasks, checkpoints)
    :param left_out: tasks that are incomplete or have no references, for people
    """

    variants: list[Variant]
    tasks: list[str]
    seeds: list[int]
    scores: dict[str, Array]
    curves: dict[str, Array]
    left_out: list[str]

    @property
    def final(self) -> dict[str, Array]:
        """Scores of the final policies, shape (seeds, tasks)."""
        return {name: scores[..., 0] for name, scores in self.scores.items()}


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
        keys = {variant.name: [(task, variant.name, seed) for seed in collection.seeds] for variant in variants}
        missing = [name for name in keys if not collection.runs.keys() >= set(keys[name])]
        if missing:
            left_out.append(f"{task}: runs of {', '.join(missing)} are missing")
        elif task not in references:
            left_out.append(f"{task}: no references to normalise scores with")
        else:
            tasks.append(task)
    rows = collection.finished.set_index(["task", "variant", "seed"])[list(METRICS)]
    raw = {key: rows.loc[key].to_numpy(dtype=float) for key in collection.curves}

    def normalized(values: Mapping[Any, Array], variant: str, length: int) -> Array:
        block = np.zeros((len(collection.seeds), len(tasks), length))
        for row, seed in enumerate(collection.seeds):
            for column, task in enumerate(tasks):
                if (task, variant, seed) in values:
                    block[row, column] = references[task].normalize(values[task, variant, seed])
        return block

    names = [variant.name for variant in variants]
    scores = {name: normalized(raw, name, len(METRICS)) for name in names}
    curves = {name: normalized(collection.curves, name, N_CHECKPOINTS) for name in names}
    return Block(variants, tasks, collection.seeds, scores, curves, left_out)


def interquartile_mean(scores: Array) -> Array:
    """
    rliable's, of all points at once: its own takes minutes.

    :param scores: shape (seeds, tasks, points)
    :return: mean of the middle half of all runs, shape (points,)
    """
    mean: Array = scipy.stats.trim_mean(scores.reshape(-1, scores.shape[-1]), 0.25, axis=0)
    return mean


def improvement_probability(x: Array, y: Array) -> Array:
    """
    rliable's, of all tasks at once: its own takes minutes.

    :param x: shape (seeds, tasks)
    :param y: shape (seeds, tasks)
    :return: how often a run of x is better than one of y on the same task, ties counting half, shape (1,)
    """
    differences = x[:, None] - y[None]
    return np.array([np.mean((differences > 0.0) + 0.5 * (differences == 0.0))])


def estimate(scores: Mapping[str, Any], function: Callable[..., Array], reps: int) -> Estimates:
    """
    :param scores: by name: an array, or arrays that are resampled apart from each other
    :param function: from them to figures, shape (figures,)
    :param reps: bootstrap samples
    :return: the figures with their intervals by name
    """
    # rliable draws from numpy's global generator: the same results give the same report.
    np.random.seed(BOOTSTRAP_SEED)  # noqa: NPY002
    return Estimates(*library.get_interval_estimates(dict(scores), function, reps=reps))


def improvements(scores: Mapping[str, Array], pairs: Sequence[tuple[Variant, Variant]], reps: int) -> Estimates:
    """
    :param scores: by name, shape (seeds, tasks)
    :param pairs: two variants each
    :param reps: bootstrap samples
    :return: probability that the first is better than the second, by both names with a ``|`` between
    """
    both = {f"{x.name}|{y.name}": [scores[x.name], scores[y.name]] for x, y in pairs}
    return estimate(both, improvement_probability, reps)


def performance_profiles(scores: Mapping[str, Array], reps: int) -> tuple[Array, Estimates]:
    """
    :param scores: by name, shape (seeds, tasks)
    :param reps: bootstrap samples
    :return: thresholds, and the share of runs whose score exceeds each by name
    """
    values = np.concatenate([array.ravel() for array in scores.values()])
    thresholds = np.linspace(min(values.min(), 0.0), max(values.max(), 1.0), PROFILE_POINTS)
    return thresholds, estimate(scores, lambda array: (array[..., None] > thresholds).mean(axis=(0, 1)), reps)

"""The tables of the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_trustregion.benchmark.page import Table
from sb3_trustregion.benchmark.scores import METRICS, Collection
from sb3_trustregion.benchmark.statistics import Block, Interval
from sb3_trustregion.benchmark.variants import Variant

NONE = "–"
SHORT_METRICS = {"evaluation": "final policy", "training": "last 10 %", "area": "area"}


def number(value: float) -> str:
    """
    :param value: a number
    :return: three or four digits of it
    """
    if not np.isfinite(value):
        return NONE
    digits = 0 if abs(value) >= 100 or float(value).is_integer() else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace(",", "\u2009").replace("-", "−")


def score(interval: Interval) -> str:
    """
    :param interval: of a normalised score
    :return: for people
    """
    # + 0.0, so that there is no −0.00
    point, low, high = (f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−") for value in interval)
    return f"{point} [{low}, {high}]"


def count(n: int, name: str) -> str:
    """
    :param n: how many
    :param name: of one
    :return: for people
    """
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def overview(collection: Collection, variants: list[Variant], estimates: Mapping[str, Mapping[str, Interval]]) -> Table:
    """
    :param collection: the results
    :param variants: in the order of presentation
    :param estimates: interquartile means by metric and name
    :return: a row per variant
    """
    rows = []
    for variant in variants:
        failed = sum(run.variant.name == variant.name for run in collection.failed())
        total = sum(key[1] == variant.name for key in collection.runs)
        cells = [score(estimates[metric][variant.name]) for metric in METRICS]
        rows.append([variant.label, *cells, f"{failed} of {total}"])
    points = [[estimates[metric][variant.name].point for metric in METRICS] for variant in variants]
    return Table(["", *SHORT_METRICS.values(), "failed runs"], rows, _best(points))


def _best(values: list[list[float]]) -> set[tuple[int, int]]:
    """Rows of the largest value of each column, ties included; nobody's where it is -inf. Columns count from 1."""
    best = np.fmax.reduce(values, axis=0, initial=-np.inf)
    return {
        (row, column)
        for row, cells in enumerate(values)
        for column, value in enumerate(cells, 1)
        if np.isfinite(value) and value == best[column - 1]
    }


def task_table(collection: Collection, task: str, variants: list[Variant]) -> Table:
    """
    :param collection: the results
    :param task: id of the environment
    :param variants: in the order of presentation
    :return: raw returns and cost, a row per variant
    """
    columns = ["", *SHORT_METRICS.values(), "steps", "CPU s", "wall-clock s", "memory MiB", "seeds", "failed"]
    rows, means = [], []
    for variant in variants:
        keys = [key for key in collection.runs if key[:2] == (task, variant.name)]
        finished = [key for key in keys if key in collection.scores]
        if not keys:
            continue
        values = [[getattr(collection.scores[key], metric) for key in finished] for metric in METRICS]
        # Who failed is not the best, however well the others ended.
        means.append([float(np.mean(value)) if finished == keys else -np.inf for value in values])
        records = [collection.runs[key].record for key in finished]
        cost = [
            _mean(records, "n_timesteps_done"),
            _mean(records, "cpu_seconds", "training"),
            _mean(records, "seconds", "training"),
            _mean(records, "peak_memory_mib"),
        ]
        counts = [str(len(finished)), str(len(keys) - len(finished))]
        rows.append([variant.label, *map(_spread, values), *cost, *counts])
    return Table(columns, rows, _best(means))


def _mean(records: list[dict[str, Any]], name: str, inner: str = "") -> str:
    values = [record[name][inner] if inner else record[name] for record in records]
    return number(float(np.mean(values))) if values else NONE


def _spread(values: list[float]) -> str:
    if not values:
        return NONE
    if len(values) == 1:
        return number(values[0])
    return f"{number(float(np.mean(values)))} ± {number(float(np.std(values, ddof=1)))}"


def cost(collection: Collection, variants: list[Variant]) -> Table:
    """
    :param collection: the results
    :param variants: in the order of presentation
    :return: CPU seconds of training per 100 000 steps, a row per variant and a column per task
    """
    rows = []
    for variant in variants:
        cells = []
        for task in collection.tasks:
            records = [collection.runs[key].record for key in collection.scores if key[:2] == (task, variant.name)]
            seconds = [1e5 * record["cpu_seconds"]["training"] / record["n_timesteps_done"] for record in records]
            cells.append(number(float(np.mean(seconds))) if seconds else NONE)
        rows.append([variant.label, *cells])
    return Table(["", *collection.tasks], rows)


def decisions(collection: Collection, variants: list[Variant]) -> Table:
    """
    :param collection: the results
    :param variants: those with a radius
    :return: what the rule did, means over seeds, a row per task and variant
    """
    columns = ["task", "variant", "updates", "roll-backs", "decisions by feedback", "first radius", "last radius"]
    rows = []
    for task in collection.tasks:
        for variant in variants:
            runs = [collection.runs[key] for key in collection.scores if key[:2] == (task, variant.name)]
            found = [row for run in runs if (row := _decisions(run.progress())) is not None]
            if found:
                counts = [number(float(np.mean([row[column] for row in found]))) for column in range(3)]
                radii = [_geometric([row[column] for row in found]) for column in (3, 4)]
                rows.append([task, variant.label, *counts, *radii])
    return Table(columns, rows, n_names=2)


def _decisions(progress: Any) -> list[float] | None:
    if "radius" not in progress or "n_rollbacks" not in progress:
        return None
    radius = progress["radius"].dropna()
    counts = [float(progress[name].max()) for name in ("n_rollbacks", "n_feedback_decisions")]
    return [float(len(radius)), *counts, float(radius.iloc[0]), float(radius.iloc[-1])] if len(radius) else None


def _geometric(values: list[float]) -> str:
    return f"{np.exp(np.mean(np.log(values))):.2g}"


def spread_over_radii(
    block: Block, metric: str, families: Mapping[str, Mapping[float, str]], labels: Mapping[str, str]
) -> Table:
    """
    :param block: scores on the tasks where no run is missing
    :param metric: of :data:`~sb3_trustregion.benchmark.scores.METRICS`
    :param families: names of variants by name of the family and factor on the initial radius
    :param labels: of the families
    :return: largest minus smallest mean score over the factors, a row per family
    """
    rows = []
    for name, members in families.items():
        means = np.array([block.scores[metric][member].mean(axis=0) for member in members.values()])
        spreads = means.max(axis=0) - means.min(axis=0)
        rows.append([labels[name], *map(number, (*spreads, spreads.mean()))])
    return Table(["", *block.tasks, "mean"], rows)

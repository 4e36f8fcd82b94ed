"""The tables of the report: texts, the best figures in bold."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import gmean

from sb3_trustregion.benchmark.report.scores import METRICS, Array, Collection
from sb3_trustregion.benchmark.report.statistics import Block, Estimates
from sb3_trustregion.benchmark.variants import Variant

NONE = "–"


def number(value: float) -> str:
    """
    :param value: a number
    :return: three or four digits of it
    """
    if not np.isfinite(value):
        return NONE
    digits = 0 if abs(value) >= 100 or float(value).is_integer() else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace(",", "\u2009").replace("-", "−")


def count(n: int, name: str) -> str:
    """
    :param n: how many
    :param name: of one
    :return: for people
    """
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def overview(collection: Collection, variants: list[Variant], estimates: Estimates) -> pd.DataFrame:
    """
    :param collection: the results
    :param variants: in the order of presentation
    :param estimates: interquartile means of each metric by name
    :return: a row per variant
    """
    rows = {}
    for variant in variants:
        ends = zip(estimates.points[variant.name], *estimates.intervals[variant.name], strict=True)
        # + 0.0, so that there is no −0.00
        texts = [[f"{round(end, 2) + 0.0:.2f}".replace("-", "−") for end in figures] for figures in ends]
        rows[variant.label] = [f"{point} [{low}, {high}]" for point, low, high in texts]
    points = np.array([estimates.points[variant.name] for variant in variants])
    table = bold(pd.DataFrame(rows, index=list(METRICS.values())).T, points)
    status = collection.table.groupby("variant")["status"]
    failed = status.agg(lambda column: f"{(column == 'failed').sum()} of {len(column)}")
    return table.assign(failed=[failed[variant.name] for variant in variants]).rename_axis("").reset_index()


def bold(table: pd.DataFrame, values: Array) -> pd.DataFrame:
    """
    :param table: texts
    :param values: numbers of its first columns
    :return: the same with the largest number of each column in bold, ties included; nobody's where it is -inf
    """
    best = np.fmax.reduce(values, axis=0, initial=-np.inf)
    marked = table.copy()
    for row, column in np.argwhere(np.isfinite(values) & (values == best)):
        marked.iat[row, column] = f"**{marked.iat[row, column]}**"
    return marked


def task_table(collection: Collection, task: str) -> pd.DataFrame:
    """
    :param collection: the results
    :param task: id of the environment
    :return: raw returns and cost, a row per variant
    """
    rows, means = {}, []
    for variant in collection.variants.values():
        runs = collection.table[(collection.table["task"] == task) & (collection.table["variant"] == variant.name)]
        done = runs[runs["status"] == "finished"]
        if runs.empty:
            continue
        scores = done.reindex(columns=list(METRICS))
        # Who failed is not the best, however well the others ended.
        means.append(scores.mean().to_numpy() if len(done) == len(runs) else np.full(len(METRICS), -np.inf))
        cost = done.reindex(columns=["n_timesteps", "training_cpu_seconds", "training_seconds", "peak_memory_mib"])
        counts = [str(len(done)), str(len(runs) - len(done))]
        rows[variant.label] = [*map(_spread, scores.mean(), scores.std()), *map(number, cost.mean()), *counts]
    columns = [*METRICS.values(), "steps", "CPU s", "wall-clock s", "memory MiB", "seeds", "failed"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return bold(table, np.array(means)).rename_axis("").reset_index()


def _spread(mean: float, std: float) -> str:
    return f"{number(mean)} ± {number(std)}" if np.isfinite(std) else number(mean)


def cost(collection: Collection) -> pd.DataFrame:
    """
    :param collection: the results
    :return: CPU seconds of training per 100 000 steps, a row per variant and a column per task
    """
    done = collection.finished
    seconds = (1e5 * done["training_cpu_seconds"] / done["n_timesteps"]).groupby([done["variant"], done["task"]]).mean()
    table = seconds.unstack().reindex(index=list(collection.variants), columns=collection.tasks)
    labels = [variant.label for variant in collection.variants.values()]
    return table.map(number).set_axis(labels).rename_axis("").reset_index()


def decisions(collection: Collection) -> pd.DataFrame:
    """
    :param collection: the results
    :return: what the rule did, means over seeds (of radii, geometric), a row per task and variant
    """
    rows = []
    counts = {"updates": "n_updates", "roll-backs": "n_rollbacks", "decisions by feedback": "n_feedback_decisions"}
    radii = {"first radius": "first_radius", "last radius": "last_radius"}
    known = collection.table.reindex(columns=["task", "variant", *counts.values(), *radii.values()]).dropna()
    for (task, variant), runs in known.groupby(["task", "variant"], sort=False):
        row = {"task": task, "variant": collection.variants[variant].label}
        row |= {title: number(runs[name].mean()) for title, name in counts.items()}
        rows.append(row | {title: f"{gmean(runs[name]):.2g}" for title, name in radii.items()})
    return pd.DataFrame(rows)


def spread_over_radii(block: Block, families: Mapping[str, Mapping[float, str]]) -> pd.DataFrame:
    """
    :param block: scores on the tasks where no run is missing
    :param families: names of variants by label of the family and factor on the initial radius
    :return: largest minus smallest mean score of the final policies over the factors, a row per family
    """
    rows = []
    for label, members in families.items():
        means = np.array([block.final[name].mean(axis=0) for name in members.values()])
        spreads = means.max(axis=0) - means.min(axis=0)
        rows.append([label, *map(number, (*spreads, spreads.mean()))])
    return pd.DataFrame(rows, columns=["", *block.tasks, "mean"])

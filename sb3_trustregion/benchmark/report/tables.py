"""The tables of the report: texts, the best figures in bold."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import gmean

from sb3_trustregion.benchmark.report.scores import METRICS, Array, Collection
from sb3_trustregion.benchmark.report.statistics import Block, Estimates


def number(value: float) -> str:
    """A number as a text of three or four digits."""
    if not np.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 100 or float(value).is_integer() else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace(",", "\u2009").replace("-", "−")


def bold(table: pd.DataFrame, values: Array) -> pd.DataFrame:
    """The same texts with the largest of each column in bold, ties included; nobody's where it is -inf."""
    best = np.fmax.reduce(values, axis=0, initial=-np.inf)
    marked = table.copy()
    for row, column in np.argwhere(np.isfinite(values) & (values == best)):
        marked.iat[row, column] = f"**{marked.iat[row, column]}**"
    return marked


def with_intervals(estimates: Estimates, label: str) -> list[str]:
    """Each figure of a label with its interval, as texts."""
    figures = np.vstack([estimates.points[label], *estimates.intervals[label]]).T
    # + 0.0, so that there is no −0.00
    texts = [[f"{round(value, 2) + 0.0:.2f}".replace("-", "−") for value in values] for values in figures]
    return [f"{point} [{low}, {high}]" for point, low, high in texts]


def improvements(estimates: Estimates) -> pd.DataFrame:
    """A table of how probable it is that X is better than Y, a row per pair of labels with a ``|`` between them."""
    rows = {pair.replace("|", " better than "): with_intervals(estimates, pair) for pair in estimates.points}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["probability"])


def overview(collection: Collection, block: Block, estimates: Estimates) -> pd.DataFrame:
    """A table of interquartile means of each metric, a row per variant."""
    rows = {}
    for variant in block.variants:
        status = collection.table.loc[collection.table["variant"] == variant.name, "status"]
        failed = f"{(status == 'failed').sum()} of {len(status)}"
        rows[variant.label] = [*with_intervals(estimates, variant.label), failed]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*METRICS.values(), "failed runs"])
    return bold(table, np.array([estimates.points[label] for label in rows]))


def task_table(collection: Collection, task: str) -> pd.DataFrame:
    """A table of raw returns and cost on a task, a row per variant."""
    rows, means = {}, []
    of_task = collection.table[collection.table["task"] == task]
    costs = {"n_timesteps": "steps", "training_cpu_seconds": "CPU s"}
    costs |= {"training_seconds": "wall-clock s", "peak_memory_mib": "memory MiB"}
    for variant in collection.variants:
        runs = of_task[of_task["variant"] == variant.name]
        done = runs[runs["status"] == "finished"].reindex(columns=[*METRICS, *costs])
        if len(runs):
            mean, std = done.mean(), done.std()
            # Who failed is not the best, however well the others ended.
            means.append(mean[: len(METRICS)] if len(done) == len(runs) else np.full(len(METRICS), -np.inf))
            spreads = [number(mean[m]) + (f" ± {number(std[m])}" if len(done) > 1 else "") for m in METRICS]
            counts = [str(len(done)), str(len(runs) - len(done))]
            rows[variant.label] = [*spreads, *map(number, mean[len(METRICS) :]), *counts]
    columns = [*METRICS.values(), *costs.values(), "seeds", "failed"]
    return bold(pd.DataFrame.from_dict(rows, orient="index", columns=columns), np.array(means, dtype=float))


def decisions(collection: Collection) -> pd.DataFrame:
    """A table of what the rule did, means over seeds (of radii, geometric), a row per task and variant."""
    rows = {}
    labels = {variant.name: variant.label for variant in collection.variants}
    counts = {"n_updates": "updates", "n_rollbacks": "roll-backs", "n_feedback_decisions": "decisions by feedback"}
    radii = {"first_radius": "first radius", "last_radius": "last radius"}
    known = collection.table.reindex(columns=["task", "variant", *counts, *radii]).dropna()
    for (task, variant), runs in known.groupby(["task", "variant"], sort=False):
        means = [number(runs[name].mean()) for name in counts]
        rows[f"{task}: {labels[variant]}"] = [*means, *(f"{gmean(runs[name]):.2g}" for name in radii)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*counts.values(), *radii.values()])


def spread_over_radii(block: Block, families: Mapping[str, Mapping[float, str]]) -> pd.DataFrame:
    """Largest minus smallest mean score of the final policies over factors on the initial radius, a row per family."""
    rows = {}
    for family, members in families.items():
        spreads = np.ptp([block.final[label].mean(axis=0) for label in members.values()], axis=0)
        rows[family] = [number(value) for value in (*spreads, spreads.mean())]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*block.tasks, "mean"])

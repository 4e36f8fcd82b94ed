"""The figures, by rliable and seaborn. Colours can be told apart by the colour-blind; lines differ in dashes too."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from rliable import plot_utils

from sb3_trustregion.benchmark.report.scores import N_CHECKPOINTS, Array, Collection
from sb3_trustregion.benchmark.report.statistics import Estimates
from sb3_trustregion.benchmark.variants import Variant

DASHES = ("-", "--", ":", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
SMALL = {"labelsize": "medium", "ticklabelsize": "medium"}
# What is drawn of every run, by the first of the columns that it has.
TRACES = {"radius": ("radius",), "ρ": ("pooled_rho", "rho"), "KL": ("kl_divergence", "approx_kl")}


def _palette(labels: Sequence[str]) -> dict[str, Any]:
    colors = sns.color_palette("colorblind" if len(labels) <= 10 else "husl", len(labels))
    return dict(zip(labels, colors, strict=True))


def intervals(estimates: Estimates, titles: list[str]) -> Figure:
    """Estimates as intervals: a panel per title, an interval per label."""
    labels = list(estimates.points)
    place = {"xlabel": "interquartile mean of normalised scores", "xlabel_y_coordinate": -1.0 / len(labels)}
    drawn: tuple[Figure, Any] = plot_utils.plot_interval_estimates(
        *estimates, titles, algorithms=labels[::-1], colors=_palette(labels), row_height=0.4, **place
    )
    return drawn[0]


def improvements(estimates: Estimates) -> Figure:
    """Probabilities of improvement beside the even chance, an interval per pair of labels with a ``|`` between them."""
    size = (7, 0.9 + 0.34 * len(estimates.points))
    axis = plot_utils.plot_probability_of_improvement(
        *estimates, pair_separator="|", figsize=size, xlabel="P(X is better than Y)", **SMALL
    )
    axis.axvline(0.5, color="#555555", linestyle="--", linewidth=1)
    figure: Figure = axis.figure
    return figure


def profiles(estimates: Estimates, thresholds: Array) -> Figure:
    """Performance profiles: the share of the runs that exceed the thresholds, a line per label."""
    labels = list(estimates.points)
    look = {"colors": _palette(labels), "linestyles": dict(zip(labels, itertools.cycle(DASHES), strict=False)), **SMALL}
    return _with_legend(plot_utils.plot_performance_profiles(estimates.points, thresholds, estimates.intervals, **look))


def sample_efficiency(estimates: Estimates) -> Figure:
    """Sample efficiency: interquartile means at the checkpoints, a line per label over the share of the budget."""
    budget = 100.0 * np.arange(1, N_CHECKPOINTS + 1) / N_CHECKPOINTS
    names = {"xlabel": "environment steps, % of each task's budget", "ylabel": "interquartile mean of scores"}
    look = {"colors": _palette(list(estimates.points)), "marker": "", "figsize": (10, 5), **names, **SMALL}
    axis = plot_utils.plot_sample_efficiency_curve(budget, *estimates, **look)
    for line, dashes in zip(axis.get_lines(), itertools.cycle(DASHES), strict=False):
        line.set_linestyle(dashes)
    return _with_legend(axis)


def _with_legend(axis: Any) -> Figure:
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3.2)
    figure: Figure = axis.figure
    return figure


def learning_curves(collection: Collection, variants: list[Variant]) -> Figure:
    """Learning curves, a panel per task: the mean of the seeds, and a band from the worst to the best of them."""
    labels = {variant.name: variant.label for variant in variants}
    shares = np.arange(1, N_CHECKPOINTS + 1) / N_CHECKPOINTS
    frames = []
    for key, curve in collection.curves.items():
        if key[1] in labels:
            steps = collection.runs[key].record["n_timesteps"] * shares
            frames.append(pd.DataFrame({"steps": steps, "value": curve, "task": key[0], "line": labels[key[1]]}))
    return _lines(frames, list(labels.values()), "return of training episodes", col="task", errorbar=("pi", 100))


def traces(collection: Collection, task: str, variants: list[Variant]) -> Figure:
    """Radius, ρ and KL of every run on a task over training; ρ beyond ±3 is cut off."""
    frames = []
    for variant in variants:
        for seed in collection.seeds:
            updates = collection.updates.get((task, variant.name, seed), pd.DataFrame())
            for quantity, columns in TRACES.items():
                for column in [column for column in columns if column in updates][:1]:
                    steps, panel = updates["timesteps"], f"{variant.label}: {quantity}"
                    values = {"steps": steps, "value": updates[column], "panel": panel, "line": f"seed {seed}"}
                    frames.append(pd.DataFrame(values))
    return _lines(frames, [f"seed {seed}" for seed in collection.seeds], "", col="panel", estimator=None)


def _lines(frames: list[pd.DataFrame], order: list[str], title: str, **options: Any) -> Figure:
    data = pd.concat(frames, ignore_index=True)
    order = [label for label in order if label in set(data["line"])]
    lines = {"hue": "line", "style": "line", "hue_order": order, "style_order": order, "palette": _palette(order)}
    panels = {"col_wrap": min(3, data[options["col"]].nunique()), "facet_kws": {"sharex": False, "sharey": False}}
    grid = sns.relplot(data, kind="line", x="steps", y="value", height=2.7, aspect=1.4, **lines, **panels, **options)
    grid.set_axis_labels("environment steps", title).set_titles("{col_name}")
    grid.legend.set_title("")
    for panel, axis in grid.axes_dict.items():
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.endswith("ρ"):
            axis.set_ylim(-3, 3)
        elif panel.endswith(("radius", "KL")):
            axis.set_yscale("log")
    figure: Figure = grid.figure
    return figure

"""The figures, by rliable and seaborn. Colours can be told apart by the colour-blind; lines differ in dashes too."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
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


def _palette(labels: Iterable[str]) -> dict[str, Any]:
    names = list(labels)
    return dict(zip(names, sns.color_palette("colorblind" if len(names) <= 10 else "husl", len(names)), strict=True))


def _labelled(estimates: Estimates, variants: Iterable[Variant]) -> Estimates:
    names = {variant.name: variant.label for variant in variants}
    return Estimates(*({names[name]: part[name] for name in names} for part in estimates))


def intervals(variants: list[Variant], estimates: Estimates, titles: list[str]) -> Figure:
    """
    :param variants: in the order of presentation
    :param estimates: a figure per title by name
    :param titles: what the figures are
    :return: a panel per title, an interval per variant
    """
    points, ends = _labelled(estimates, variants[::-1])
    palette = _palette(variant.label for variant in variants)
    label = "interquartile mean of normalised scores"
    place = {"xlabel": label, "xlabel_y_coordinate": -0.5 / len(variants), "row_height": 0.4}
    figure, _ = plot_utils.plot_interval_estimates(points, ends, titles, colors=palette, **place)
    return figure


def improvements(estimates: Estimates, labels: Mapping[str, str]) -> Figure:
    """
    :param estimates: probability of improvement by two names
    :param labels: by name
    :return: an interval per pair, beside the even chance
    """
    named = [{"|".join(labels[name] for name in pair.split("|")): part[pair] for pair in part} for part in estimates]
    axis = plot_utils.plot_probability_of_improvement(
        named[0], named[1], "|", figsize=(7, 0.9 + 0.34 * len(named[0])), xlabel="P(first is better)", **SMALL
    )
    axis.axvline(0.5, color="#555555", linestyle="--", linewidth=1)
    return axis.figure


def profiles(variants: list[Variant], thresholds: Array, estimates: Estimates) -> Figure:
    """
    :param variants: in the order of presentation
    :param thresholds: scores
    :param estimates: share of the runs that exceed them by name
    :return: a line per variant
    """
    shares, bands = _labelled(estimates, variants)
    dashes = dict(zip(shares, itertools.cycle(DASHES), strict=False))
    axis = plot_utils.plot_performance_profiles(
        shares, thresholds, bands, colors=_palette(shares), linestyles=dashes, **SMALL
    )
    return _with_legend(axis)


def sample_efficiency(variants: list[Variant], estimates: Estimates) -> Figure:
    """
    :param variants: in the order of presentation
    :param estimates: interquartile mean at each checkpoint by name
    :return: a line per variant over the share of the budget
    """
    points, bands = _labelled(estimates, variants)
    budget = 100.0 * np.arange(1, N_CHECKPOINTS + 1) / N_CHECKPOINTS
    names = {"xlabel": "environment steps, % of each task's budget", "ylabel": "interquartile mean of scores"}
    axis = plot_utils.plot_sample_efficiency_curve(
        budget, points, bands, colors=_palette(points), marker="", figsize=(10, 5), **names, **SMALL
    )
    for line, dashes in zip(axis.get_lines(), itertools.cycle(DASHES), strict=False):
        line.set_linestyle(dashes)
    return _with_legend(axis)


def _with_legend(axis: Axes) -> Figure:
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3.2)
    figure = axis.figure
    assert isinstance(figure, Figure)
    return figure


def learning_curves(collection: Collection, variants: list[Variant]) -> Figure:
    """
    :param collection: the results
    :param variants: in the order of presentation
    :return: a panel per task: the mean of the seeds, and from the worst to the best of them
    """
    labels = {variant.name: variant.label for variant in variants}
    frames = []
    for (task, name, seed), curve in collection.curves.items():
        if name in labels:
            steps = collection.runs[task, name, seed].record["n_timesteps"] * np.arange(1, N_CHECKPOINTS + 1)
            frames.append(
                pd.DataFrame({"steps": steps / N_CHECKPOINTS, "return": curve}).assign(task=task, of=labels[name])
            )
    data = pd.concat(frames, ignore_index=True)
    shown = [label for label in labels.values() if label in set(data["of"])]
    grid = _lines(data, shown, errorbar=("pi", 100), col="task", col_wrap=3)
    return _finish(grid, "environment steps", "return of training episodes")


def traces(collection: Collection, task: str, variants: list[Variant]) -> Figure:
    """
    :param collection: the results
    :param task: id of the environment
    :param variants: those with a radius
    :return: a row per variant: radius, ρ and KL of every run over training; ρ beyond ±3 is cut off
    """
    frames = []
    for variant in variants:
        for seed in collection.seeds:
            updates = collection.updates.get((task, variant.name, seed), pd.DataFrame())
            for title, columns in TRACES.items():
                for column in [column for column in columns if column in updates][:1]:
                    frame = updates[["timesteps", column]].set_axis(["steps", "return"], axis="columns")
                    frames.append(frame.assign(of=f"seed {seed}", quantity=title, variant=variant.label))
    data = pd.concat(frames, ignore_index=True)
    seeds = list(data["of"].unique())
    grid = _lines(data, seeds, estimator=None, row="variant", col="quantity")
    for (_, title), axis in grid.axes_dict.items():
        if title == "ρ":
            axis.set_ylim(-3, 3)
        else:
            axis.set_yscale("log")
    return _finish(grid, "environment steps", "")


def _lines(data: pd.DataFrame, order: list[str], **options: Any) -> sns.FacetGrid:
    lines = {"hue": "of", "style": "of", "hue_order": order, "style_order": order, "palette": _palette(order)}
    axes = {"facet_kws": {"sharex": False, "sharey": False}, "height": 2.7, "aspect": 1.4}
    return sns.relplot(data, kind="line", x="steps", y="return", **lines, **axes, **options)


def _finish(grid: sns.FacetGrid, x: str, y: str) -> Figure:
    grid.set_axis_labels(x, y)
    grid.set_titles("{col_name}" if not grid.row_names else "{row_name}: {col_name}", size="small")
    grid.legend.set_title("")
    for axis in grid.axes.flat:
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure: Figure = grid.figure
    return figure


def sensitivity(families: Mapping[str, Mapping[float, str]], estimates: Estimates) -> Figure:
    """
    :param families: names of variants by label of the family and factor on the initial radius
    :param estimates: interquartile mean of the final policies by name
    :return: a line per family over the factor: the flatter, the less it matters
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.0))
    palette = _palette(families)
    for (label, members), dashes in zip(families.items(), itertools.cycle(DASHES), strict=False):
        factors = sorted(members)
        middle = np.array([estimates.points[members[factor]][0] for factor in factors])
        low, high = np.array([estimates.intervals[members[factor]][:, 0] for factor in factors]).T
        # A percentile interval need not contain its estimate.
        spread = np.clip([middle - low, high - middle], 0.0, None)
        style = {"color": palette[label], "linestyle": dashes, "marker": "o", "capsize": 4}
        axis.errorbar(factors, middle, spread, label=label, **style)
    axis.set(xscale="log", xlabel="initial radius, relative to the default", ylabel="interquartile mean of scores")
    return _with_legend(axis)

"""The figures. Colours can be told apart by the colour-blind, and nothing is told by colour alone."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sb3_trustregion.benchmark.scores import METRICS, N_CHECKPOINTS, Array, Collection
from sb3_trustregion.benchmark.statistics import Interval
from sb3_trustregion.benchmark.variants import Variant

PALETTE = [mpl.colors.to_hex(color) for color in sns.color_palette("colorblind")]
# Of seaborn's palette: blue, orange, grey, green, black, pink.
FAMILY_COLORS = {
    "ppo": PALETTE[0],
    "trpo": PALETTE[1],
    "npg": PALETTE[7],
    "adaptive_trpo": PALETTE[2],
    "adaptive_trpo-m8": "#222222",
    "adaptive_ppo": PALETTE[4],
}
SPARE_COLORS = [PALETTE[3], PALETTE[9], PALETTE[5], PALETTE[8]]
SEED_COLORS = [PALETTE[0], PALETTE[1], "#222222", PALETTE[4], PALETTE[2]]
GROUP_COLORS = [PALETTE[index] for index in (0, 1, 3, 4, 9, 2, 7)]
DASHES: list[Any] = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))]
MARKERS = "osD^vPX*"
BAND = 0.13
DPI = 110
WIDTH = 10.5
ROW = 0.34


class Style(NamedTuple):
    """
    How a variant is drawn.

    :param color: of lines and markers
    :param dashes: of lines
    :param marker: of points
    """

    color: str
    dashes: Any
    marker: str


def family_styles(variants: Iterable[Variant]) -> dict[str, Style]:
    """
    :param variants: stock and ours
    :return: by name: one colour per algorithm, dashed where it is Zoo-tuned or tuned per task
    """
    styles: dict[str, Style] = {}
    colors = dict(FAMILY_COLORS)
    spare = list(SPARE_COLORS)
    for index, variant in enumerate(variants):
        family = variant.config if variant.is_stock or variant.per_task else variant.name
        if family not in colors:
            colors[family] = spare.pop(0) if spare else PALETTE[6]
        dashes = DASHES[1] if variant.per_task else DASHES[0]
        styles[variant.name] = Style(colors[family], dashes, MARKERS[index % len(MARKERS)])
    return styles


def group_styles(variants: Iterable[Variant]) -> dict[str, Style]:
    """
    :param variants: an algorithm, and what differs from it in one thing
    :return: by name: the algorithm solid and in the colour of its family, all others in other colours and dashed
    """
    parent, *others = variants
    first = FAMILY_COLORS.get(parent.name, "#222222")
    colors = [color for color in GROUP_COLORS if color != first]
    styles = {parent.name: Style(first, DASHES[0], MARKERS[0])}
    for index, variant in enumerate(others):
        dashes = DASHES[1 + index % (len(DASHES) - 1)]
        styles[variant.name] = Style(colors[index % len(colors)], dashes, MARKERS[(index + 1) % len(MARKERS)])
    return styles


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.85)}):
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.tick_params(length=3)
    return figure, axes


def _legend(figure: Figure, axis: Axes, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    # Outside: constrained layout leaves the room.
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)


def _thousands(value: float, position: int | None = None) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def intervals(
    variants: list[Variant], estimates: Mapping[str, Mapping[str, Interval]], styles: Mapping[str, Style]
) -> Figure:
    """
    :param variants: in the order of presentation
    :param estimates: by metric and name of the variant
    :param styles: by name
    :return: a panel per metric, an interval per variant
    """
    figure, axes = _figure(WIDTH, 1.3 + ROW * len(variants), 1, len(estimates), sharey=True)
    for axis, (metric, found) in zip(axes[0], estimates.items(), strict=True):
        for position, variant in enumerate(variants):
            point, low, high = found[variant.name]
            color = styles[variant.name].color
            axis.plot([low, high], [position, position], color=color, linewidth=7, alpha=0.35, solid_capstyle="butt")
            axis.plot(point, position, styles[variant.name].marker, color=color, markersize=6)
        axis.set_title(METRICS[metric], fontsize=10)
        axis.grid(visible=False, axis="y")
    figure.supxlabel("interquartile mean of normalised scores", fontsize=10)
    axes[0, 0].set_yticks(range(len(variants)), [variant.label for variant in variants])
    axes[0, 0].set_ylim(len(variants) - 0.5, -0.5)
    return figure


def improvements(pairs: Mapping[tuple[str, str], Interval], labels: Mapping[str, str]) -> Figure:
    """
    :param pairs: probability of improvement by the names of two variants
    :param labels: by name
    :return: an interval per pair, beside the even chance
    """
    figure, axes = _figure(WIDTH, 1.1 + ROW * len(pairs))
    axis = axes[0, 0]
    for position, ((x, _), (point, low, high)) in enumerate(pairs.items()):
        color = FAMILY_COLORS.get(x, SPARE_COLORS[0])
        axis.plot([low, high], [position, position], color=color, linewidth=7, alpha=0.35, solid_capstyle="butt")
        axis.plot(point, position, "o", color=color, markersize=6)
    axis.axvline(0.5, color="#555555", linestyle="--", linewidth=1)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_yticks(range(len(pairs)), [f"{labels[x]}  >  {labels[y]}" for x, y in pairs])
    axis.set_xlabel("probability that a run of the first is better than one of the second on the same task")
    axis.grid(visible=False, axis="y")
    return figure


def profiles(
    variants: list[Variant], thresholds: Array, shares: Mapping[str, Interval], styles: Mapping[str, Style]
) -> Figure:
    """
    :param variants: in the order of presentation
    :param thresholds: scores
    :param shares: of the runs that exceed them by name of the variant
    :param styles: by name
    :return: a line per variant
    """
    figure, axes = _figure(WIDTH, 4.6)
    axis = axes[0, 0]
    for variant in variants:
        _line(axis, thresholds, shares[variant.name], styles[variant.name], variant.label)
    axis.set_xlabel("normalised score τ of the final policy (0: random, 1: reference)")
    axis.set_ylabel("share of runs with a score above τ")
    axis.set_ylim(-0.02, 1.02)
    _legend(figure, axis, 4)
    return figure


def sample_efficiency(variants: list[Variant], curves: Mapping[str, Interval], styles: Mapping[str, Style]) -> Figure:
    """
    :param variants: in the order of presentation
    :param curves: interquartile mean by checkpoint and name of the variant
    :param styles: by name
    :return: a line per variant over the share of the budget
    """
    figure, axes = _figure(WIDTH, 4.6)
    axis = axes[0, 0]
    budget = 100.0 * np.arange(1, N_CHECKPOINTS + 1) / N_CHECKPOINTS
    for variant in variants:
        _line(axis, budget, curves[variant.name], styles[variant.name], variant.label)
    axis.set_xlabel("environment steps, % of each task's budget")
    axis.set_ylabel("interquartile mean of\nnormalised training returns")
    axis.set_xlim(0, 100)
    _legend(figure, axis, 4)
    return figure


def _line(axis: Axes, x: Array, interval: Interval, style: Style, label: str) -> None:
    axis.fill_between(x, interval.low, interval.high, color=style.color, alpha=BAND, linewidth=0)
    axis.plot(x, interval.point, color=style.color, linestyle=style.dashes, linewidth=1.8, label=label)


def learning_curves(collection: Collection, variants: list[Variant], styles: Mapping[str, Style]) -> Figure:
    """
    :param collection: the results
    :param variants: in the order of presentation
    :param styles: by name
    :return: a panel per task: the mean of the seeds, and from the worst to the best of them
    """
    names = {variant.name for variant in variants}
    tasks = [task for task in collection.tasks if any(key[0] == task and key[1] in names for key in collection.scores)]
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, axes = _figure(WIDTH, 0.9 + 2.7 * rows, rows, columns)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        steps = collection.n_timesteps(task) * np.arange(1, N_CHECKPOINTS + 1) / N_CHECKPOINTS
        for variant in variants:
            curves = collection.curves(task, variant.name)
            if len(curves):
                spread = Interval(curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0))
                _line(axis, steps, spread, styles[variant.name], variant.label)
        axis.set_title(task, fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axis.yaxis.set_major_formatter(FuncFormatter(_thousands))
    for axis in axes.flat[max(len(tasks) - columns, 0) : len(tasks)]:
        axis.set_xlabel("environment steps")
    figure.supylabel("return of training episodes", fontsize=10)
    _complete_legend(figure, axes, variants, styles)
    return figure


def _complete_legend(figure: Figure, axes: Any, variants: list[Variant], styles: Mapping[str, Style]) -> None:
    """With variants, too, that the first panel lacks."""
    shown = {label for axis in axes.flat for label in axis.get_legend_handles_labels()[1]}
    for variant in variants:
        if variant.label in shown:
            style = styles[variant.name]
            axes.flat[0].plot([], [], color=style.color, linestyle=style.dashes, linewidth=1.8, label=variant.label)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    # In the place of a panel, where one is left.
    free = next((axis for axis in axes.flat if not axis.get_visible()), None)
    if free is None:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 4}
    else:
        box = free.get_subplotspec().get_position(figure)
        place = {"loc": "center left", "bbox_to_anchor": (box.x0, (box.y0 + box.y1) / 2)}
    figure.legend(list(unique.values()), list(unique), frameon=False, handlelength=3.2, **place)


def sensitivity(
    families: Mapping[str, Mapping[float, Interval]], labels: Mapping[str, str], styles: Mapping[str, Style]
) -> Figure:
    """
    :param families: interquartile mean by the name of the variant and the factor on its initial radius
    :param labels: by name
    :param styles: by name
    :return: a line per family over the factor: the flatter, the less it matters
    """
    figure, axes = _figure(WIDTH * 0.75, 4.0)
    axis = axes[0, 0]
    for index, (name, points) in enumerate(families.items()):
        factors = sorted(points)
        # Side by side, so that intervals do not hide each other.
        x = np.array(factors) * 1.06 ** (index - (len(families) - 1) / 2)
        middle = np.array([points[factor].point for factor in factors])
        low = np.array([points[factor].low for factor in factors])
        high = np.array([points[factor].high for factor in factors])
        style = styles[name]
        # A percentile interval need not contain its estimate.
        spread = np.clip([middle - low, high - middle], 0.0, None)
        axis.errorbar(x, middle, spread, color=style.color, linestyle=style.dashes, marker=style.marker, capsize=4)
        axis.plot([], [], color=style.color, linestyle=style.dashes, marker=style.marker, label=labels[name])
    ticks = sorted({factor for points in families.values() for factor in points})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"× {factor:g}" if factor >= 1 else f"× 1/{1 / factor:g}" for factor in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("initial radius, relative to the default")
    axis.set_ylabel("interquartile mean of normalised\nscores of the final policy")
    _legend(figure, axis, 2)
    return figure


TRACES = {
    "radius": ("radius δ (nats), or factor on ε", ("radius",)),
    "rho": ("ρ over the window", ("pooled_rho", "rho")),
    "kl": ("KL of the step (nats)", ("kl_divergence", "approx_kl")),
}


def traces(collection: Collection, task: str, variants: list[Variant]) -> Figure:
    """
    :param collection: the results
    :param task: id of the environment
    :param variants: those with a radius
    :return: a row per variant: radius, ρ and KL of every run over training
    """
    figure, axes = _figure(WIDTH, 0.7 + 1.9 * len(variants), len(variants), len(TRACES), sharex=True)
    for row, variant in zip(axes, variants, strict=True):
        for index, seed in enumerate(collection.seeds):
            run = collection.runs.get((task, variant.name, seed))
            if run is not None and run.is_finished:
                _trace(row, run.progress(), _seed_style(index), f"seed {seed}")
        row[0].set_ylabel(variant.label.replace(", ", ",\n"), fontsize=9)
    for axis, (title, _) in zip(axes[0], TRACES.values(), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1]:
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axis.set_xlabel("environment steps")
    _legend(figure, axes[0, 0], len(collection.seeds))
    return figure


def _seed_style(index: int) -> Style:
    """Another one for each of 25 seeds: the second time round, every colour has another dash."""
    turn, place = divmod(index, len(SEED_COLORS))
    return Style(SEED_COLORS[place], DASHES[(place + turn) % len(DASHES)], "")


def _trace(row: Iterable[Axes], progress: Any, style: Style, label: str) -> None:
    for axis, (name, (_, columns)) in zip(row, TRACES.items(), strict=True):
        column = next((column for column in columns if column in progress), None)
        if column is None:
            continue
        known = progress[["timesteps", column]].dropna()
        values = known[column].to_numpy(dtype=float)
        if name == "rho":
            _limit_ratio(axis)
        elif (values > 0.0).any():
            _scale_logarithmically(axis)
            values = np.where(values > 0.0, values, np.nan)
        steps = known["timesteps"].to_numpy(dtype=float)
        axis.plot(steps, values, color=style.color, linestyle=style.dashes, linewidth=1.3, label=label)


def _scale_logarithmically(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _limit_ratio(axis: Axes) -> None:
    """Ratios of noise have tails: what lies outside is cut off."""
    axis.set_ylim(-3, 3)
    axis.axhline(0.0, color="#999999", linewidth=0.8)
    axis.axhline(1.0, color="#999999", linewidth=0.8, linestyle=":")

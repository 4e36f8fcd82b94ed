"""The table, as text, as CSV and as a picture."""

import csv
import re
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.speed.rows import Row, Spread

BLUE, ORANGE, GREEN = (sns.color_palette("colorblind")[index] for index in (0, 1, 2))
COLORS = {"policy step": BLUE, "critic fit": ORANGE, "train()": GREEN}
HEADER = "medians [quartiles] of ours | of the peer | of their ratios | goal: reached"


def line(row: Row) -> str:
    """
    :param row: a row
    :return: a line of the table
    """
    goal = f"{row.goal}: {row.reached}" if row.goal else ""
    what = f"{row.section}: {row.what}" if row.section.startswith("growth") else row.what
    left = f"{what:<58}{row.setting:>12} {row.unit:>9} | {text(row.ours, 3):>25}"
    return f"{left} | {row.peer_name:<4} {text(row.peer, 3):>24} | {text(row.ratio, 3):>22} | {goal}"


def write_csv(rows: list[Row], path: Path) -> None:
    """
    :param rows: the table
    :param path: of the file
    """
    records = [row.record() for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def write_markdown(rows: list[Row], path: Path) -> None:
    """
    The questions, then how cost grows, without the points between.

    :param rows: the table
    :param path: of the file
    """
    questions = [row for row in rows if row.ratio and not row.section.startswith("growth")]
    growth = [row for row in rows if row.setting == "exponent"]
    lines = [
        "# How long updates take",
        "",
        "Written by `python -m benchmarks.speed`, with every figure in the CSV file beside it. Medians; in brackets",
        "quartiles of the ratios of neighbouring measurements. Gain and loss: means, in brackets less and plus a",
        "standard error. Memory is what `train()` needs beyond what is there before it.",
        "",
        "| what | of | unit | ours | peer | | ours / peer | goal | reached |",
        "|---|---|---|---:|---:|---|---:|---|---|",
        *["| " + " | ".join(cells(row)) + " |" for row in questions],
        "",
        "How time grows: exponent over all sizes, in brackets the least and the largest between neighbouring sizes.",
        "",
        "| | | ours | stock TRPO |",
        "|---|---|---:|---:|",
        *[f"| {row.section} | {row.what} | {text(row.ours, 2)} | {text(row.peer, 2)} |" for row in growth],
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cells(row: Row) -> list[str]:
    """
    :param row: a row with a ratio
    :return: its cells in Markdown
    """
    figures = [f"{row.ours.middle:.3g}", f"{row.peer.middle:.3g}"]
    goal = row.goal.replace("<=", "≤")
    return [row.what, row.setting, row.unit, *figures, row.peer_name, text(row.ratio, 3), goal, row.reached]


def text(spread: Spread | None, digits: int) -> str:
    """
    :param spread: a median with its quartiles
    :param digits: that count
    :return: all three
    """
    return "" if spread is None else "{:.{n}g} [{:.{n}g}, {:.{n}g}]".format(*spread, n=digits)


def draw(rows: list[Row], path: Path) -> None:
    """
    :param rows: the table
    :param path: of the picture
    """
    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(13, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.2, 1.0])
    draw_goals(above.add_subplot(), [row for row in rows if re.fullmatch(r"\S+ [\d.]+", row.goal)])
    sections = list(dict.fromkeys(row.section for row in rows if row.section.startswith("growth")))
    for position, section in enumerate(sections, start=1):
        axes = below.add_subplot(1, len(sections), position)
        draw_growth(axes, [row for row in rows if row.section == section and row.ratio])
        axes.set_xlabel(section.removeprefix("growth in "))
        if position == 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_goals(axes: Axes, rows: list[Row]) -> None:
    """
    Ratios with their quartiles, and what they were to reach.

    :param axes: where to draw
    :param rows: those with a ratio as a goal
    """
    for position, row in enumerate(rows):
        assert row.ratio is not None
        middle, low, high = row.ratio
        color = GREEN if row.reached == "yes" else ORANGE
        axes.barh(position, middle, xerr=[[middle - low], [high - middle]], color=color, height=0.6, alpha=0.85)
        axes.plot([float(row.goal.split()[1])] * 2, [position - 0.4, position + 0.4], color="black", linewidth=2)
    labels = [f"{row.what}, {row.setting}" + (f" ({row.peer_name})" if row.section == "learn" else "") for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("ours / peer; black: the goal, samples per second of learn() above it, all else below it")


def draw_growth(axes: Axes, rows: list[Row]) -> None:
    """
    Milliseconds by size, ours solid and the peer dashed.

    :param axes: where to draw
    :param rows: of one axis
    """
    for what, color in COLORS.items():
        points = [row for row in rows if row.what == what]
        sizes = [int(row.setting) for row in points]
        axes.loglog(sizes, [row.ours.middle for row in points], "o-", color=color, label=what)
        axes.loglog(sizes, [row.peer.middle for row in points], "o--", color=color, alpha=0.6, label=f"{what}, stock")
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3)

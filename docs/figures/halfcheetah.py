"""
HalfCheetah-v5 over training, stock PPO and TRPO beside ours, each with one configuration.

``python docs/figures/halfcheetah.py`` draws ``halfcheetah.png`` from the runs of ``benchmarks/exploratory`` and
``halfcheetah_million.png`` from those of ``benchmarks/million`` and ``benchmarks/million_ppo``: mean over the seeds,
and from the worst to the best of them.
"""

from dataclasses import replace
from pathlib import Path

from sb3_trustregion.benchmark.report.plots import learning_curves
from sb3_trustregion.benchmark.report.scores import Collection, collect
from sb3_trustregion.benchmark.results import Results

HERE = Path(__file__).parent
TASK = "HalfCheetah-v5"
VARIANTS = "ppo-default", "trpo-default", "npg", "adaptive_trpo", "adaptive_ppo"
PICTURES = {"halfcheetah": ("exploratory",), "halfcheetah_million": ("million_ppo", "million")}


def collected(grid: str) -> Collection:
    """The results of a grid, wherever they lie."""
    with Results(HERE.parents[1] / "benchmarks" / grid).reading() as runs:
        return collect(runs, allow_mixed=True)


def draw(name: str, grids: tuple[str, ...]) -> None:
    """Draw the picture of that name from some grids, whose variants are shown in that order."""
    found = [collected(grid) for grid in grids]
    shown = replace(
        found[0],
        runs={key: run for one in found for key, run in one.runs.items()},
        curves={key: curve for one in found for key, curve in one.curves.items() if key[0] == TASK},
        variants=[variant for one in found for variant in one.variants],
    )
    figure = learning_curves(shown, shown.select(lambda variant: variant.name in VARIANTS))
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    for name, grids in PICTURES.items():
        draw(name, grids)

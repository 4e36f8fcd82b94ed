"""
HalfCheetah-v5 over training, stock PPO and TRPO beside ours, each with one configuration.

``python docs/figures/halfcheetah.py`` draws ``halfcheetah.png`` from the runs of ``benchmarks/exploratory`` and
``halfcheetah_million.png`` from those of ``benchmarks/million``: mean over the seeds, and from the worst to the best.
"""

from dataclasses import replace
from pathlib import Path

from sb3_trustregion.benchmark.report.plots import learning_curves
from sb3_trustregion.benchmark.report.scores import collect
from sb3_trustregion.benchmark.results import Results

HERE = Path(__file__).parent
TASK = "HalfCheetah-v5"
VARIANTS = "ppo-default", "trpo-default", "npg", "adaptive_trpo", "adaptive_ppo"
PICTURES = {"halfcheetah": "exploratory", "halfcheetah_million": "million"}


def draw(name: str, grid: str) -> None:
    """Draw the picture of that name from the results of a grid, wherever they lie."""
    with Results(HERE.parents[1] / "benchmarks" / grid).reading() as runs:
        found = collect(runs, allow_mixed=True)
    shown = replace(found, curves={key: curve for key, curve in found.curves.items() if key[0] == TASK})
    figure = learning_curves(shown, shown.select(lambda variant: variant.name in VARIANTS))
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    for name, grid in PICTURES.items():
        draw(name, grid)

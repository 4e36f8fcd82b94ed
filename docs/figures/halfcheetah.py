"""
HalfCheetah-v5 over training, stock PPO and TRPO beside ours, each with one configuration.

``python docs/figures/halfcheetah.py`` draws ``halfcheetah.png`` from the runs of ``benchmarks/exploratory`` and
``halfcheetah_million.png`` from those of ``benchmarks/million`` and ``benchmarks/million_ppo``: mean over the seeds,
and from the worst to the best of them.
"""

import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from sb3_trustregion.benchmark.report.plots import learning_curves
from sb3_trustregion.benchmark.report.scores import collect
from sb3_trustregion.benchmark.results import ARCHIVE_FILE, Results

HERE = Path(__file__).parent
TASK = "HalfCheetah-v5"
VARIANTS = "ppo-default", "trpo-default", "npg", "adaptive_trpo", "adaptive_ppo"
PICTURES = {"halfcheetah": ("exploratory",), "halfcheetah_million": ("million", "million_ppo")}


def draw(name: str, grids: tuple[str, ...]) -> None:
    """Draw the picture of that name from the archives of some grids."""
    with tempfile.TemporaryDirectory() as folder:
        for grid in grids:
            with tarfile.open(HERE.parents[1] / "benchmarks" / grid / ARCHIVE_FILE) as archive:
                archive.extractall(folder, filter="data")
        found = collect(Results(Path(folder)), allow_mixed=True)
    shown = replace(found, curves={key: curve for key, curve in found.curves.items() if key[0] == TASK})
    figure = learning_curves(shown, shown.select(lambda variant: variant.name in VARIANTS))
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    for name, grids in PICTURES.items():
        draw(name, grids)

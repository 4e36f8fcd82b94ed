"""
``halfcheetah.png``: HalfCheetah-v5 over training, stock PPO and TRPO beside ours, each with one configuration.

``python docs/figures/halfcheetah.py`` draws it from the runs of ``benchmarks/exploratory``: mean over the seeds, and
from the worst to the best of them.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sb3_trustregion.benchmark.report.scores import collect
from sb3_trustregion.benchmark.results import Results

HERE = Path(__file__).parent
TASK = "HalfCheetah-v5"
VARIANTS = "ppo-default", "trpo-default", "npg", "adaptive_trpo", "adaptive_ppo"

if __name__ == "__main__":
    with Results(HERE.parents[1] / "benchmarks" / "exploratory").reading() as runs:
        found = collect(runs)
    figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    for variant in found.select(lambda variant: variant.name in VARIANTS):
        keys = [key for key in found.curves if key[:2] == (TASK, variant.name)]
        curves = np.array([found.curves[key] for key in keys])
        steps = np.linspace(0.0, found.runs[keys[0]].record["n_timesteps"], curves.shape[1] + 1)[1:]
        (line,) = axes.plot(steps, curves.mean(axis=0), label=f"{variant.label} ({len(keys)} seeds)")
        axes.fill_between(
            steps, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0
        )
    axes.set(title=TASK, xlabel="environment steps", ylabel="return of training episodes")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(HERE / "halfcheetah.png", dpi=100)

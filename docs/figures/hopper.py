"""
``one_run.png`` and ``three_radii.png``: AdaptiveTRPO on Hopper-v5, one seed, from three initial radii.

``python docs/figures/hopper.py`` draws them from ``hopper.csv``; with ``--run`` it makes that file anew, in a few
minutes on one core. One seed shows how the algorithm works, not how well.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import AdaptiveTRPO

HERE = Path(__file__).parent
N_STEPS, SEED = 100_000, 2000
RADII = {0.01: "tab:blue", 0.0005: "tab:green", 0.2: "tab:red"}
KEYS = {"time/total_timesteps": "steps", "rollout/ep_rew_mean": "return"} | {
    f"train/{name}": name
    for name in ("radius", "kl_divergence", "rho", "pooled_rho", "pooled_rho_stderr", "step_status")
}


def run(target_kl: float) -> pd.DataFrame:
    """:return: what one run logs, a row for each update"""
    env = VecNormalize(make_vec_env("Hopper-v5", n_envs=4, seed=SEED))
    model = AdaptiveTRPO("MlpPolicy", env, target_kl=target_kl, n_steps=384, seed=SEED, device="cpu")
    model.set_logger(configure(str(HERE / "log"), ["csv"]))
    model.learn(N_STEPS)
    log = pd.read_csv(HERE / "log" / "progress.csv")[list(KEYS)].rename(columns=KEYS)
    for file in (HERE / "log" / "progress.csv", HERE / "log"):
        file.rmdir() if file.is_dir() else file.unlink()
    return log.iloc[1:].assign(target_kl=target_kl)  # the first row was written before the first update


def draw_one(log: pd.DataFrame) -> None:
    """Radius, ρ and KL over one run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained")
    left.semilogy(log.steps, log.radius, label="radius")
    left.semilogy(log.steps, log.kl_divergence, ".", color="tab:orange", label="KL of the step")
    left.set(xlabel="steps", ylabel="nats per action dimension", title="radius and KL")
    right.plot(log.steps, log.rho, ".", color="tab:gray", alpha=0.6, label="ρ of one step")
    right.plot(log.steps, log.pooled_rho, color="tab:blue", label="ρ pooled, ± one standard error")
    band = log.pooled_rho - log.pooled_rho_stderr, log.pooled_rho + log.pooled_rho_stderr
    right.fill_between(log.steps, *band, color="tab:blue", alpha=0.2, linewidth=0)
    right.axhline(1.0, color="black", linewidth=0.6)
    right.set(xlabel="steps", ylim=(-4, 6), title="ρ = actual / predicted improvement")
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(HERE / "one_run.png", dpi=90)


def draw_three(logs: pd.DataFrame) -> None:
    """Radius and return from three initial radii."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained")
    for target_kl, color in sorted(RADII.items()):
        log = logs[logs.target_kl == target_kl]
        left.semilogy(log.steps, log.radius, color=color, label=f"target_kl={target_kl:g}")
        right.plot(log.steps, log["return"], color=color)
    left.set(xlabel="steps", ylabel="nats per action dimension", title="radius")
    left.legend(fontsize=8, frameon=False)
    right.set(xlabel="steps", title="return of the last 100 episodes")
    figure.savefig(HERE / "three_radii.png", dpi=90)


if __name__ == "__main__":
    th.set_num_threads(1)
    table = HERE / "hopper.csv"
    if "--run" in sys.argv:
        pd.concat([run(target_kl) for target_kl in RADII]).round(6).to_csv(table, index=False)
    everything = pd.read_csv(table)
    draw_one(everything[everything.target_kl == 0.01])
    draw_three(everything)

"""The radius and ρ of a run, from the log that SB3 writes."""

import sys

import matplotlib.pyplot as plt
import pandas as pd
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import AdaptiveTRPO

n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000

model = AdaptiveTRPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", seed=1)), gamma=0.9, seed=1)
model.set_logger(configure("log", ["csv"]))  # a tensorboard_log shows the same curves
model.learn(n_steps)

log = pd.read_csv("log/progress.csv").set_index("time/total_timesteps")
_, (upper, lower) = plt.subplots(2, 1, sharex=True)
log["train/radius"].plot(ax=upper, logy=True, title="radius, nats per action dimension")
log["train/rho"].plot(ax=lower, style=".", alpha=0.5, title="ρ = actual / predicted improvement")
log["train/pooled_rho"].plot(ax=lower, label="pooled over the window")
lower.set(xlabel="steps", ylim=(-4, 6))
lower.legend()
plt.savefig("radius.png")
print("radius.png")

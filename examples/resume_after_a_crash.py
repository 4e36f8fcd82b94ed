"""A run that goes on where it was killed: stop it with Ctrl-C or kill -9, and start it again."""

import sys

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.checkpoint import ResumableCheckpointCallback, checkpoints, resume

n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000

# The same program, whether it begins or goes on. `resume` fills the fresh VecNormalize with the saved statistics.
env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=1))
if checkpoints("checkpoints"):
    model = resume(AdaptiveTRPO, "checkpoints", env)
    print(f"going on at {model.num_timesteps} steps with radius {model.region.radius:.4f}")
else:
    model = AdaptiveTRPO("MlpPolicy", env, n_steps=256, seed=1)

callback = ResumableCheckpointCallback(save_freq=4096, save_path="checkpoints", verbose=1)
model.learn(max(n_steps - model.num_timesteps, 0), callback=callback, reset_num_timesteps=False)

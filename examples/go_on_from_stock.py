"""Go on from an agent that stock TRPO has trained, with its observation statistics."""

import sys

from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import AdaptiveTRPO

n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=1))
stock = TRPO("MlpPolicy", env, gamma=0.9, n_steps=512, seed=1).learn(n_steps)
stock.save("stock")
env.save("statistics.pkl")

env = VecNormalize.load("statistics.pkl", make_vec_env("Pendulum-v1", n_envs=4, seed=2))
model = AdaptiveTRPO.from_stock("stock.zip", env=env, seed=1)  # gamma, n_steps and target_kl come with it
model.learn(n_steps)

env.training = env.norm_reward = False  # evaluate in the task's own rewards
for name, agent in {"stock TRPO": stock, "then AdaptiveTRPO": model}.items():
    mean, std = evaluate_policy(agent, env, n_eval_episodes=10)
    print(f"{name:18}{mean:8.0f} ± {std:.0f}")

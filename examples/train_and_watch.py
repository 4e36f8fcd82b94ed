"""Train an agent on CartPole, save it, and watch it."""

import sys

import gymnasium as gym

from sb3_trustregion import AdaptiveTRPO

n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

model = AdaptiveTRPO("MlpPolicy", "CartPole-v1", seed=1, verbose=1)
model.learn(n_steps)
model.save("cartpole")

env = gym.make("CartPole-v1", render_mode="human")  # needs a display
observation, _ = env.reset(seed=1)
total, done = 0.0, False
while not done:
    action, _ = model.predict(observation, deterministic=True)
    observation, reward, terminated, truncated, _ = env.step(action)
    total, done = total + float(reward), terminated or truncated
env.close()
print(f"return {total:.0f} of 500")

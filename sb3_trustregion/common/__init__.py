"""What the algorithms are made of; knows Stable-Baselines3."""

"""Comparison with stock PPO and TRPO: ``run`` trains and leaves a folder of results, ``report`` reads it."""

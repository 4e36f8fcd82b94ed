"""
Comparison with stock PPO and TRPO: ``python -m sb3_trustregion.benchmark run`` and ``report``.

Each run is one of RL Zoo's, in a process of its own; what is needed for the report is kept in one folder per run.
"""

"""
Comparison with stock PPO and TRPO: ``python -m sb3_trustregion.benchmark run``, ``report`` and ``archive``.

:mod:`~sb3_trustregion.benchmark.run` trains, each run in a process of its own, and leaves a folder of results;
:mod:`~sb3_trustregion.benchmark.report` reads it. Neither knows the other.
"""

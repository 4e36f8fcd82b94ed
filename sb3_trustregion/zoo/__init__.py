"""
RL Zoo integration: the algorithms, their search spaces and their hyperparameter files.

This package imports nothing by itself, because the start-up hook lives in it.
"""

__all__ = ["register"]


def register() -> None:
    """
    Make our algorithms known to RL Zoo in this process.

    Imports RL Zoo. Calling it again changes nothing, and entries that are already there are kept.
    """
    from sb3_trustregion.zoo import registration

    registration.register()

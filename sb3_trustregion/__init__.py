"""
Natural policy gradient, TRPO and PPO with an adaptive trust region, for Stable-Baselines3.

The public names are imported on first use: importing the package alone must stay cheap, because the
RL Zoo hook (:mod:`sb3_trustregion.zoo.import_hook`) does so whenever the interpreter starts.
"""

__version__ = "0.1.0"  # the one place where it is written

# The one table of algorithms: RL Zoo's name, which is that of the module and of the hyperparameter file, and the class.
ALGORITHMS: dict[str, str] = {
    "npg": "NPG",
    "adaptive_trpo": "AdaptiveTRPO",
    "adaptive_ppo": "AdaptivePPO",
    "penalty_ppo": "PenaltyPPO",
}

# Not `from typing import TYPE_CHECKING`, which takes longer than the rest of the start-up hook.
TYPE_CHECKING = False
if TYPE_CHECKING:  # for type checkers, which read no tables
    from sb3_trustregion.adaptive_ppo import AdaptivePPO as AdaptivePPO
    from sb3_trustregion.adaptive_trpo import AdaptiveTRPO as AdaptiveTRPO
    from sb3_trustregion.npg import NPG as NPG
    from sb3_trustregion.penalty_ppo import PenaltyPPO as PenaltyPPO

_MODULES = {class_name: name for name, class_name in ALGORITHMS.items()}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

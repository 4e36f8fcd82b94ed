"""
Natural policy gradient, TRPO and PPO with an adaptive trust region, for Stable-Baselines3.

The public names are imported on first use: importing the package alone must stay cheap, because the
RL Zoo hook (:mod:`sb3_trustregion.zoo.import_hook`) does so whenever the interpreter starts.
"""

# Not `from typing import TYPE_CHECKING`, which takes longer than the rest of the start-up hook.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from sb3_trustregion._version import __version__
    from sb3_trustregion.adaptive_ppo import AdaptivePPO
    from sb3_trustregion.adaptive_trpo import AdaptiveTRPO
    from sb3_trustregion.npg import NPG

__all__ = ["NPG", "AdaptivePPO", "AdaptiveTRPO", "__version__"]

_MODULES = {
    "NPG": "npg",
    "AdaptivePPO": "adaptive_ppo",
    "AdaptiveTRPO": "adaptive_trpo",
    "__version__": "_version",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

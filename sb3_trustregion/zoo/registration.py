"""
What is written into RL Zoo: three tables, and where the default hyperparameter files are.

Each function imports the Zoo module that it changes, so that the start-up hook can call them one at a time. What a user
has put into a table under one of our names stays, and calling a function again changes nothing.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sb3_trustregion
from sb3_trustregion import ALGORITHMS

_PATCHED = "_sb3_trustregion_defaults"


def register() -> None:
    """Make the algorithms known to RL Zoo."""
    register_algorithms()
    register_samplers()
    register_hyperparameters()


def register_algorithms() -> None:
    """Add the classes to ``ALGOS``, which several modules of RL Zoo import by name: it is changed in place."""
    from rl_zoo3.utils import ALGOS

    ours: dict[str, Any] = {name: getattr(sb3_trustregion, class_name) for name, class_name in ALGORITHMS.items()}
    ALGOS.update(ours | ALGOS)


def register_samplers() -> None:
    """Add the search spaces of ``-optimize``, and the way back from a stored trial to hyperparameters."""
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    from sb3_trustregion.zoo.samplers import CONVERTERS, SAMPLERS

    HYPERPARAMS_SAMPLER.update(SAMPLERS | HYPERPARAMS_SAMPLER)
    HYPERPARAMS_CONVERTER.update(CONVERTERS | HYPERPARAMS_CONVERTER)


def register_hyperparameters() -> None:
    """Make ``ExperimentManager`` read our YAML files for our algorithms, unless it is given a file."""
    from rl_zoo3.exp_manager import ExperimentManager

    if not hasattr(ExperimentManager.__init__, _PATCHED):
        ExperimentManager.__init__ = _with_our_hyperparameters(ExperimentManager.__init__)  # type: ignore[method-assign]
        ExperimentManager._maybe_normalize = _of_what_can_be(ExperimentManager._maybe_normalize)  # type: ignore[method-assign]


def hyperparameters_path(algorithm: str, package: Path | None = None) -> Path:
    """The YAML file of an algorithm, by RL Zoo's name: inside a package, by default ours, or beside it (checkout)."""
    package = package or Path(__file__).parents[1]
    folders = [package / "hyperparams", package.parent / "hyperparams"]
    return next(filter(Path.is_dir, folders), folders[0]) / f"{algorithm}.yml"


def _with_our_hyperparameters(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``ExperimentManager.__init__``: without a ``config``, RL Zoo looks inside its own package only."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        if bound.arguments["algo"] in ALGORITHMS and not bound.arguments.get("config"):
            bound.arguments["config"] = str(hyperparameters_path(bound.arguments["algo"]))
        init(*bound.args, **bound.kwargs)

    setattr(wrapper, _PATCHED, True)
    return wrapper


def _of_what_can_be(maybe_normalize: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``ExperimentManager._maybe_normalize``: our ``default`` entries normalise whatever a task shows."""

    @functools.wraps(maybe_normalize)
    def wrapper(self: Any, env: Any, eval_env: bool) -> Any:
        if self.algo in ALGORITHMS:
            leave_out_what_cannot_be_normalized(self, env.observation_space)
        return maybe_normalize(self, env, eval_env)

    return wrapper


def leave_out_what_cannot_be_normalized(manager: Any, space: Any) -> None:
    """Have ``normalize`` leave images and discrete observations as they are, unless the user says otherwise."""
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import is_image_space

    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    fit = [key for key, part in parts.items() if isinstance(part, spaces.Box) and not is_image_space(part)]
    if len(fit) < len(parts):
        settings = {"norm_obs_keys": fit} if fit else {"norm_obs": False}
        manager.normalize_kwargs = settings | manager.normalize_kwargs

"""
Arguments out of range, told in one form: the argument, the constraint, the value.

Whatever stock PPO and TRPO work with is in range: numbers of numpy and torch, ``inf`` where it means "no limit", 0 and
1 for bools. Each check takes the argument's name and value, raises a ``ValueError`` where the value is not what the
name of the check says, and returns it as plain Python: what torch, ``random.seed`` and JSON are to be given.
"""

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

VARIADIC = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def check_number(
    name: str,
    value: Any,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    infinite: bool = False,
) -> float:
    """``above`` and ``below`` exclude the bound; ``inf`` is a number only where ``infinite`` says so."""
    bounds = [(">", above), (">=", at_least), ("<", below), ("<=", at_most)]
    limits = [f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound)]
    try:
        number = float(_scalar(value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    inside = above < number and at_least <= number <= at_most and (number < below or below == math.inf)
    if not inside or not (infinite or math.isfinite(number)):
        if not infinite and math.isinf(number):
            limits.insert(0, "finite")
        raise ValueError(f"{name} must be {' and '.join(limits) or 'a number'}, got {value!r}")
    return number


def check_integer(name: str, value: Any, at_least: int, at_most: float = math.inf) -> int:
    """An integer; floats are none, as for stock."""
    try:
        number = int(operator.index(_scalar(value)))
        if at_least <= number <= at_most:
            return number
    except TypeError:
        pass
    upper = f" and <= {at_most}" if math.isfinite(at_most) else ""
    raise ValueError(f"{name} must be an integer >= {at_least}{upper}, got {value!r}")


def check_schedule(name: str, value: Any, **bounds: Any) -> Any:
    """A number within bounds, as of ``check_number``, or a schedule, which is not checked."""
    return value if callable(value) else check_number(name, value, **bounds)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def check_bool(name: str, value: Any) -> bool:
    """A bool, None, 0 or 1 of any kind; other values that Python takes for true are too likely to be mistakes."""
    try:
        plain = _scalar(value)
        if plain is None or plain in (0, 1):
            return bool(plain)
    except (TypeError, ValueError):  # text, or an array of several
        pass
    raise ValueError(f"{name} must be True or False, got {value!r}")


def settle(model: Any, check: Callable[..., Any], *names: str, optional: bool = False, **bounds: Any) -> None:
    """Check arguments of a model, None where ``optional``, and put what the check returns in their place."""
    for name in names:
        value = getattr(model, name)
        if not (optional and value is None):
            checked = check(name, value, **bounds)
            if checked is not value:  # else it may be a property, whose value would be saved as its base
                setattr(model, name, checked)


def settle_on_policy(model: Any) -> None:
    """Settle the arguments that all on-policy algorithms have, and ``normalize_advantage`` and ``batch_size``."""
    settle(model, check_schedule, "learning_rate", at_least=0.0)
    settle(model, check_integer, "n_steps", "batch_size", at_least=1)
    settle(model, check_number, "gamma", "gae_lambda", at_least=0.0, at_most=1.0)
    settle(model, check_bool, "use_sde", "normalize_advantage")
    if model.use_sde or model.sde_sample_freq is not None:
        # As stock, which takes any number, and infinity for the start of the rollout alone.
        settle(model, check_number, "sde_sample_freq", infinite=True)
    if model._stats_window_size is not None:
        model._stats_window_size = check_integer("stats_window_size", model._stats_window_size, at_least=0)
    settle(model, check_integer, "seed", optional=True, at_least=0, at_most=2**32 - 1)


def settle_ppo(model: Any) -> None:
    """Settle the arguments that stock PPO has beyond other on-policy algorithms."""
    settle(model, check_integer, "n_epochs", at_least=1)
    settle(model, check_integer, "batch_size", at_least=2 if model.normalize_advantage else 1)
    settle(model, check_schedule, "clip_range_vf", optional=True, above=0.0, infinite=True)
    settle(model, check_number, "ent_coef")
    settle(model, check_number, "vf_coef", at_least=0.0)
    settle(model, check_number, "max_grad_norm", at_least=0.0, infinite=True)
    settle(model, check_schedule, "clip_range", at_least=0.0, infinite=True)


def sizes_of_ppo(env: Any, normalize_advantage: Any, n_steps: Any, batch_size: Any) -> tuple[bool, int, int]:
    """Check, and return as plain Python, what stock PPO's constructor divides by or asserts before all else."""
    normalize_advantage = check_bool("normalize_advantage", normalize_advantage)
    at_least = 2 if normalize_advantage else 1
    batch_size = check_integer("batch_size", batch_size, at_least)
    n_steps = check_integer("n_steps", n_steps, at_least if getattr(env, "num_envs", 1) == 1 else 1)
    return normalize_advantage, n_steps, batch_size


def check_sizes(model: Any) -> None:
    """Check what depends on the environments, before training: a model may be loaded with fewer, to be looked at."""
    n_samples, factor = model.n_steps * model.n_envs, getattr(model, "sub_sampling_factor", 1)
    if model.normalize_advantage and n_samples < 2:
        raise ValueError(f"n_steps * n_envs must be >= 2 to normalise advantages, got {model.n_steps} * {model.n_envs}")
    if factor > 1 and n_samples // factor < 2:
        raise ValueError(f"sub_sampling_factor must leave at least 2 of {n_samples} samples, got {factor}")


def argument_names(cls: type[Any]) -> set[str]:
    """Names of the arguments of a class's constructor, with those that a subclass passes on."""
    names: set[str] = set()
    for base in cls.__mro__:
        parameters = inspect.signature(base).parameters
        names |= {name for name, parameter in parameters.items() if parameter.kind not in VARIADIC}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def as_schedule(value: float | Callable[[float], float]) -> Callable[[float], float]:
    """Make a schedule of a number or a schedule, from the remaining progress (1 to 0) to a Python float."""
    if callable(value):
        schedule = value
        return lambda progress_remaining: float(schedule(progress_remaining))
    constant = float(value)
    return lambda progress_remaining: constant


def _scalar(value: Any) -> Any:
    """The scalar in one of numpy or torch, or in an array of one; a ``TypeError`` for text, which ``float`` reads."""
    try:
        plain = value.item()
    except (AttributeError, ValueError, RuntimeError):
        plain = value
    if isinstance(plain, (str, bytes)):
        raise TypeError("text is no number")
    return plain

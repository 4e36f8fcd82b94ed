"""Arguments out of range, told in one form: the argument, the constraint, the value."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def check_number(
    name: str,
    value: Any,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    """
    :param name: the argument
    :param value: its value
    :param above: exclusive lower bound
    :param at_least: inclusive lower bound
    :param below: exclusive upper bound
    :param at_most: inclusive upper bound
    :raises ValueError: where the value is no finite number within the bounds
    """
    bounds = [(">", above), (">=", at_least), ("<", below), ("<=", at_most)]
    constraint = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound)) or "finite"
    if not _is_number(value) or not (math.isfinite(value) and above < value < below and at_least <= value <= at_most):
        raise ValueError(f"{name} must be {constraint}, got {value!r}")


def check_integer(name: str, value: Any, at_least: int) -> None:
    """
    :param name: the argument
    :param value: its value
    :param at_least: inclusive lower bound
    :raises ValueError: where the value is no integer of at least that
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}, got {value!r}")


def check_schedule(name: str, value: Any, at_least: float) -> None:
    """
    :param name: the argument
    :param value: a number, or a schedule, which is left to itself
    :param at_least: inclusive lower bound on a number
    :raises ValueError: where the value is neither a schedule nor a number in range
    """
    if not callable(value):
        check_number(name, value, at_least=at_least)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    :param name: the argument
    :param value: its value
    :param choices: what it may be
    :raises ValueError: where it is none of them
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """
    :param name: the argument
    :param value: its value
    :raises ValueError: where it is no bool
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def as_schedule(value: float | Callable[[float], float]) -> Callable[[float], float]:
    """
    :param value: a number or a schedule
    :return: the schedule, from the remaining progress (1 to 0) to a Python float
    """
    if callable(value):
        schedule = value
        return lambda progress_remaining: float(schedule(progress_remaining))
    constant = float(value)
    return lambda progress_remaining: constant


def _is_number(value: Any) -> bool:
    # numpy's numbers are registered with numbers.Number only in part; float() is what will be asked of them.
    return not isinstance(value, (bool, str, bytes)) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0

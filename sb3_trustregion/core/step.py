"""What becomes of a step, in the search, in the log and when it is judged."""

from enum import Enum
from typing import NamedTuple

import torch as th

from sb3_trustregion.core.surrogate import Evaluation


class StepStatus(Enum):
    """What became of a step. Invalid is not rejected: it was never taken, so nothing was measured."""

    ACCEPTED = 1
    REJECTED = 0
    INVALID = -1


class Step(NamedTuple):
    """
    A step from θ_k, or the reason why there is none.

    :param status: accepted or invalid; rejected is only known after the next rollout
    :param parameters: shape (P,), θ_{k+1}; θ_k where invalid
    :param evaluation: model at ``parameters``
    :param linear_gain: gᵀs, gain of the linearised model, reward units
    :param n_backtracks: trial points beyond the first
    :param reason: empty where accepted
    :param radius_at_fault: whether a smaller radius could have made the step valid
    """

    status: StepStatus
    parameters: th.Tensor
    evaluation: Evaluation
    linear_gain: float
    n_backtracks: int = 0
    reason: str = ""
    radius_at_fault: bool = False

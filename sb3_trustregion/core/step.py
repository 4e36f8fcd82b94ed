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
    """A step from θ_k, or the reason why there is none."""

    status: StepStatus  # accepted or invalid; rejected is only known after the next rollout
    parameters: th.Tensor  # (P,), θ_{k+1}; θ_k where invalid
    evaluation: Evaluation  # model at ``parameters``
    linear_gain: float  # gᵀs, gain of the linearised model, reward units
    n_backtracks: int = 0  # trial points beyond the first
    reason: str = ""  # empty where accepted
    radius_at_fault: bool = False  # whether a smaller radius could have made the step valid

"""AdaptiveTRPO with one seam changed: what the measured improvement is worth."""

from dataclasses import replace
from typing import Any

import numpy as np

from sb3_trustregion.adaptive_trpo import AdaptiveTRPO
from sb3_trustregion.core.improvement import Improvement
from sb3_trustregion.core.rollouts import Rollout


class ActualZeroTRPO(AdaptiveTRPO):
    """Every step is taken to have brought nothing: what is left of the rule is calibration, not feedback."""

    def _measure_improvement(self, rollout: Rollout) -> Improvement | None:
        measured = super()._measure_improvement(rollout)
        return None if measured is None else measured._replace(actual=0.0)


class ActualShuffledTRPO(AdaptiveTRPO):
    """Every step is judged by what some step of the last ``radius_window`` brought: the right size, the wrong step."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self._seen: list[tuple[float, float]] = []
        # Apart from the generators that the training draws from.
        self._shuffle = np.random.default_rng(self.seed)

    def _measure_improvement(self, rollout: Rollout) -> Improvement | None:
        measured = super()._measure_improvement(rollout)
        if measured is None:
            return None
        self._seen = [*self._seen, (measured.actual, measured.stderr)][-self.radius_window :]
        actual, stderr = self._seen[self._shuffle.integers(len(self._seen))]
        return measured._replace(actual=actual, stderr=stderr)


class ReplayedTRPO(AdaptiveTRPO):
    """
    The radius that another run had at the same point of training, whatever the steps bring.

    :param radius_schedule: pairs of a number of environment steps, increasing, and the radius from there on
    """

    def __init__(self, *args: Any, radius_schedule: list[tuple[int, float]], **kwargs: Any) -> None:
        self.radius_schedule = radius_schedule
        super().__init__(*args, **kwargs)

    def _judge(self, measured: Improvement | None) -> None:
        super()._judge(measured)
        steps = [step for step, _ in self.radius_schedule]
        index = max(int(np.searchsorted(steps, self.num_timesteps, side="right")) - 1, 0)
        self.region = replace(self.region, radius=float(self.radius_schedule[index][1]))

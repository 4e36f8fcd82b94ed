"""Our algorithms with one seam changed: what the measured improvement is worth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sb3_trustregion.adaptive_ppo import AdaptivePPO
from sb3_trustregion.adaptive_trpo import AdaptiveTRPO
from sb3_trustregion.core.improvement import Improvement
from sb3_trustregion.core.rollouts import Rollout
from sb3_trustregion.measurement import MeasuringAlgorithm


class ActualZero(MeasuringAlgorithm):
    """Every step is taken to have brought nothing: what is left of the rule is calibration, not feedback."""

    def _measure_improvement(self, rollout: Rollout) -> Improvement | None:
        measured = super()._measure_improvement(rollout)
        return None if measured is None else measured._replace(actual=0.0)


class Recorded(MeasuringAlgorithm):
    """
    Goes by what another run recorded.

    :param recording: a row per update of that run: environment steps, increasing; radius; actual improvement and its
        standard error, reward per step, NaN where no step was judged
    :raises ValueError: where the recording has no rows
    """

    def __init__(self, *args: Any, recording: Sequence[Sequence[float]], **kwargs: Any) -> None:
        if not len(recording):
            raise ValueError(f"recording must have rows, got {recording!r}")
        self.recording = [[float(value) for value in row] for row in recording]
        super().__init__(*args, **kwargs)


class ActualShuffled(Recorded):
    """
    Every step is judged by what a step of another run brought: the right sizes, in random order.

    Not by those of this run: pooled over the window they would sum up to nearly what they truly are.

    :raises ValueError: where the recording has no step that was judged
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        self._outcomes = [(actual, stderr) for _, _, actual, stderr in self.recording if np.isfinite(actual + stderr)]
        if not self._outcomes:
            raise ValueError(f"recording must have steps that were judged, got none in {len(self.recording)} rows")
        # Apart from the generators that the training draws from.
        self._shuffle = np.random.default_rng(self.seed)
        self._waiting: list[tuple[float, float]] = []

    def _measure_improvement(self, rollout: Rollout) -> Improvement | None:
        measured = super()._measure_improvement(rollout)
        if measured is None:
            return None
        actual, stderr = self._draw()
        return measured._replace(actual=actual, stderr=stderr)

    def _review_roll_back(self, rollout: Rollout) -> None:
        """Whether a roll-back helped is feedback too."""
        self.memory.rejected = None

    def _draw(self) -> tuple[float, float]:
        """Each of them once before any comes again."""
        if not self._waiting:
            self._waiting = [self._outcomes[index] for index in self._shuffle.permutation(len(self._outcomes))]
        return self._waiting.pop()


class Replayed(Recorded):
    """The radius that another run had at the same point of training, whatever the steps bring."""

    def _judge(self, measured: Improvement | None) -> None:
        super()._judge(measured)
        steps = [row[0] for row in self.recording]
        index = max(int(np.searchsorted(steps, self.num_timesteps, side="right")) - 1, 0)
        self.region = replace(self.region, radius=self.recording[index][1])


class ActualZeroTRPO(ActualZero, AdaptiveTRPO):
    """AdaptiveTRPO that takes every step to have brought nothing."""


class ActualShuffledTRPO(ActualShuffled, AdaptiveTRPO):
    """AdaptiveTRPO that judges its steps by those of another run."""


class ReplayedTRPO(Replayed, AdaptiveTRPO):
    """AdaptiveTRPO with the radius of another run."""


class ActualZeroPPO(ActualZero, AdaptivePPO):
    """AdaptivePPO that takes every step to have brought nothing."""


class ActualShuffledPPO(ActualShuffled, AdaptivePPO):
    """AdaptivePPO that judges its steps by those of another run."""


class ReplayedPPO(Replayed, AdaptivePPO):
    """AdaptivePPO with the clip range of another run."""

"""Judges without feedback: what is left of an algorithm whose steps are judged by something else than they bring."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.common.judge import Judge, Verdict
from sb3_trustregion.common.learning_data import Rollout
from sb3_trustregion.core.improvement import Improvement
from sb3_trustregion.core.radius import TrustRegionState


class ActualZero(Judge):
    """Every step is taken to have brought nothing: what is left of the rule is calibration, not feedback."""

    def perceive(self, measured: Improvement) -> Improvement:
        """Take the improvement for zero, whatever was measured."""
        return measured._replace(actual=0.0, difference=None)


class Recorded(Judge):
    """
    Goes by what another run recorded.

    :param recording: a row per update: steps, radius, actual improvement and its standard error, NaN without a step
    :param seed: of what is drawn from it
    :raises ValueError: where the recording has no rows
    """

    def __init__(self, *args: Any, recording: Sequence[Sequence[float]], seed: int = 0, **kwargs: Any) -> None:
        if not len(recording):
            raise ValueError(f"recording must have rows, got {recording!r}")
        super().__init__(*args, **kwargs)
        self.recording = np.asarray(recording, dtype=float)
        self.seed = seed
        self.position = 0

    def state_dict(self) -> dict[str, th.Tensor]:
        """The judge's state, and the position in the recording."""
        return {**super().state_dict(), "position": th.tensor(self.position)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load what ``state_dict`` gave, as a judge does."""
        super().load_state_dict(state, strict)
        self.position = int(state.get("position", self.position))


class ActualShuffled(Recorded):
    """
    Every step is judged by what one of another run brought: the right sizes, in random order, each once in a turn.

    Not by those of this run: pooled over the window they would sum up to nearly what they truly are.

    :raises ValueError: where the recording has no step that was judged
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        outcomes = self.recording[:, 2:4]
        self.outcomes = outcomes[np.isfinite(outcomes).all(axis=1)]
        if not len(self.outcomes):
            raise ValueError(f"recording must have steps that were judged, got none in {len(outcomes)} rows")

    def perceive(self, measured: Improvement) -> Improvement:
        """Take the next outcome of the other run for this one's."""
        turn, index = divmod(self.position, len(self.outcomes))
        self.position += 1
        order = np.random.default_rng([self.seed, turn]).permutation(len(self.outcomes))
        actual, stderr = self.outcomes[order[index]]
        return measured._replace(actual=float(actual), stderr=float(stderr), difference=None)

    def review(self, rollout: Rollout, policy: ActorCriticPolicy) -> Verdict:
        """As a judge does, without a look at whether a roll-back helped: that is feedback too."""
        self.rejected = None
        return super().review(rollout, policy)


class ReplayedSchedule(Recorded):
    """Takes the radius that another run had at the same update, whatever the steps bring."""

    def decide(self, measured: Improvement | None) -> TrustRegionState:
        """The state with the recorded radius; beyond the recording's end, with its last one."""
        row = min(self.position, len(self.recording) - 1)
        self.position += 1
        return replace(super().decide(measured), radius=float(self.recording[row, 1]))

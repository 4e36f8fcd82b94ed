"""Each ablation changes the one thing that it says it changes."""

from typing import Any

import numpy as np
import pytest

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.benchmark.ablations import (
    ActualShuffledPPO,
    ActualShuffledTRPO,
    ActualZeroPPO,
    ActualZeroTRPO,
    ReplayedPPO,
    ReplayedTRPO,
)
from sb3_trustregion.benchmark.baselines import BOUNDS, FACTOR, KLAdaptivePPO
from sb3_trustregion.core.improvement import Improvement
from sb3_trustregion.measurement import MeasuringAlgorithm

SMALL: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "seed": 3, "device": "cpu"}


class Judge:
    """Notes what step 5 is given."""

    def __init__(self, model: MeasuringAlgorithm) -> None:
        self.judged: list[Improvement] = []
        self._original = model._judge
        model._judge = self  # type: ignore[method-assign]

    def __call__(self, measured: Improvement | None) -> None:
        if measured is not None:
            self.judged.append(measured)
        self._original(measured)


def judged(
    algorithm: type[MeasuringAlgorithm], n_updates: int = 6, **options: Any
) -> tuple[MeasuringAlgorithm, list[Improvement]]:
    model = algorithm("MlpPolicy", "CartPole-v1", **SMALL, **options)
    judge = Judge(model)
    model.learn(n_updates * SMALL["n_steps"])
    return model, judge.judged


@pytest.mark.parametrize("algorithm", [ActualZeroTRPO, ActualZeroPPO])
def test_actual_zero_hides_what_steps_brought(algorithm: type[MeasuringAlgorithm]) -> None:
    model, improvements = judged(algorithm)
    assert improvements
    assert all(measured.actual == 0.0 and measured.predicted != 0.0 for measured in improvements)
    assert model.region.actual == 0.0
    assert model.region.n_feedback == 0


@pytest.mark.parametrize(("true", "zero"), [(AdaptiveTRPO, ActualZeroTRPO), (AdaptivePPO, ActualZeroPPO)])
def test_the_first_judgement_is_of_the_true_step_otherwise(
    true: type[MeasuringAlgorithm], zero: type[MeasuringAlgorithm]
) -> None:
    measured, hidden = judged(true)[1][0], judged(zero)[1][0]
    assert measured.actual != 0.0
    assert measured._replace(actual=0.0) == hidden


OUTCOMES = [(0.1, 0.01), (-0.2, 0.02), (0.3, 0.03), (0.4, 0.04)]
RECORDING = [[128.0, 0.01, np.nan, np.nan], *([256.0 + 128 * index, 0.01, *OUTCOMES[index]] for index in range(4))]


@pytest.mark.parametrize("algorithm", [ActualShuffledTRPO, ActualShuffledPPO])
def test_shuffled_improvements_are_those_of_another_run(algorithm: type[MeasuringAlgorithm]) -> None:
    # Nothing is undone, so that every step is judged.
    _, improvements = judged(algorithm, 10, recording=RECORDING, rollback_z=None)
    outcomes = [(step.actual, step.stderr) for step in improvements]
    assert len(outcomes) >= 8
    # Each once, then each once again, and not in the order in which they were recorded.
    assert sorted(outcomes[:4]) == sorted(outcomes[4:8]) == sorted(OUTCOMES)
    assert outcomes[:8] != OUTCOMES * 2


@pytest.mark.parametrize(("true", "shuffled"), [(AdaptiveTRPO, ActualShuffledTRPO), (AdaptivePPO, ActualShuffledPPO)])
def test_shuffling_changes_nothing_else(true: type[MeasuringAlgorithm], shuffled: type[MeasuringAlgorithm]) -> None:
    # The radius stays as well, so that both runs take the same steps.
    fixed: dict[str, Any] = {"radius_rule": "fixed", "rollback_z": None}
    _, expected = judged(true, **fixed)
    _, found = judged(shuffled, recording=RECORDING, **fixed)
    assert [step.predicted for step in found] == [step.predicted for step in expected]
    assert not {step.actual for step in found} & {step.actual for step in expected}


def test_what_a_step_brought_does_not_reach_the_radius() -> None:
    """A step that is said to have been a disaster is undone, and nothing that comes of it brings the radius back."""
    recording = [[128.0, 0.01, -1e3, 1.0]]
    model, improvements = judged(ActualShuffledTRPO, 8, recording=recording)
    assert len(improvements) >= 3
    assert model.region.n_rollbacks == len(improvements)
    assert model.memory.n_vain == 0
    shrunken, _ = judged(ActualShuffledTRPO, 2, recording=recording)
    assert model.region.radius < shrunken.region.radius < 0.01


def test_a_recording_must_have_rows() -> None:
    with pytest.raises(ValueError, match=r"recording must have rows, got \[\]"):
        ReplayedTRPO("MlpPolicy", "CartPole-v1", recording=[], **SMALL)
    with pytest.raises(ValueError, match="recording must have steps that were judged, got none in 1 rows"):
        ActualShuffledTRPO("MlpPolicy", "CartPole-v1", recording=RECORDING[:1], **SMALL)


@pytest.mark.parametrize("algorithm", [ReplayedTRPO, ReplayedPPO])
def test_a_replayed_radius_is_the_recorded_one(algorithm: type[MeasuringAlgorithm]) -> None:
    schedule = [(128, 0.01), (384, 0.5), (512, 0.002)]
    recording = [[steps, radius, np.nan, np.nan] for steps, radius in schedule]
    model: Any = algorithm("MlpPolicy", "CartPole-v1", recording=recording, **SMALL)
    used = []
    original = model._record_judgement

    def record(measured: Improvement | None) -> None:
        used.append((model.num_timesteps, model.region.radius))
        original(measured)

    model._record_judgement = record
    model.learn(640)
    assert used == [(128, 0.01), (256, 0.01), (384, 0.5), (512, 0.002), (640, 0.002)]


@pytest.mark.parametrize(("desired_kl", "factor"), [(1e3, FACTOR), (1e-12, 1.0 / FACTOR)])
def test_the_learning_rate_follows_the_divergence(desired_kl: float, factor: float) -> None:
    model = KLAdaptivePPO("MlpPolicy", "CartPole-v1", desired_kl=desired_kl, learning_rate=1e-4, **SMALL)
    model.learn(3 * SMALL["n_steps"])
    assert model.adapted_rate == pytest.approx(1e-4 * factor**3)
    # The rate of the last update, not of the next.
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * factor**2)


def test_the_learning_rate_has_bounds() -> None:
    model = KLAdaptivePPO("MlpPolicy", "CartPole-v1", desired_kl=1e3, learning_rate=9e-3, n_epochs=1, **SMALL)
    model.learn(2 * SMALL["n_steps"])
    assert model.adapted_rate == BOUNDS[1]
    assert np.isfinite(model.policy.optimizer.param_groups[0]["lr"])

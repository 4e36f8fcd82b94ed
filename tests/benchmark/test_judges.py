"""Each ablation changes the one thing that it says it changes."""

from typing import Any

import numpy as np
import pytest

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.benchmark.run.baselines import BOUNDS, FACTOR, KLAdaptivePPO
from sb3_trustregion.benchmark.run.judges import ActualShuffled, ActualZero, ReplayedSchedule
from sb3_trustregion.common.judge import Judge
from sb3_trustregion.core.improvement import Improvement

SMALL: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "seed": 3, "device": "cpu"}
OUTCOMES = [(0.1, 0.01), (-0.2, 0.02), (0.3, 0.03), (0.4, 0.04)]
RECORDING = [[128.0, 0.01, np.nan, np.nan], *([256.0 + 128 * index, 0.01, *OUTCOMES[index]] for index in range(4))]


def judged(algorithm: Any, judge: type[Judge], n_updates: int = 6, **options: Any) -> tuple[Any, list[Improvement]]:
    """What step 5 was given."""
    given = []

    class Watched(judge):  # type: ignore[valid-type, misc]
        def decide(self, measured: Improvement | None) -> Any:
            given.extend([] if measured is None else [measured])
            return super().decide(measured)

    model = algorithm("MlpPolicy", "CartPole-v1", judge_class=Watched, **SMALL, **options)
    model.learn(n_updates * SMALL["n_steps"])
    return model, given


def test_actual_zero_hides_what_steps_brought() -> None:
    (_, measured), (model, hidden) = judged(AdaptiveTRPO, Judge), judged(AdaptiveTRPO, ActualZero)
    assert measured[0].actual != 0.0
    assert hidden[0] == measured[0]._replace(actual=0.0, difference=None)
    assert all(step.actual == 0.0 for step in hidden)
    assert model.judge.state.n_feedback == 0


def test_shuffled_improvements_are_those_of_another_run() -> None:
    # Nothing is undone, so that every step is judged; the radius stays, so that both runs take the same steps.
    fixed: dict[str, Any] = {"radius_rule": "fixed", "rollback_z": None}
    _, expected = judged(AdaptiveTRPO, Judge, 10, **fixed)
    _, found = judged(AdaptiveTRPO, ActualShuffled, 10, judge_kwargs={"recording": RECORDING}, **fixed)
    assert [step.promise for step in found] == [step.promise for step in expected]
    outcomes = [(step.actual, step.stderr) for step in found]
    assert len(outcomes) >= 8
    # Each once, then each once again, and not in the order in which they were recorded.
    assert sorted(outcomes[:4]) == sorted(outcomes[4:8]) == sorted(OUTCOMES)
    assert outcomes[:8] != OUTCOMES * 2


def test_what_a_step_brought_does_not_reach_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is said to have been a disaster is undone, and nothing that comes of it brings the radius back."""
    monkeypatch.setattr("sb3_trustregion.common.judge.was_in_vain", lambda rejected, now: True)
    disaster = {"recording": [[128.0, 0.01, -1e3, 1.0]]}
    model, steps = judged(AdaptiveTRPO, ActualShuffled, 8, judge_kwargs=disaster)
    assert len(steps) >= 3
    assert model.judge.state.n_rollbacks == len(steps)
    shrunken, _ = judged(AdaptiveTRPO, ActualShuffled, 2, judge_kwargs=disaster)
    assert model.judge.state.radius < shrunken.judge.state.radius < 0.01


@pytest.mark.parametrize(
    ("judge", "recording", "message"),
    [
        (ReplayedSchedule, [], r"recording must have rows, got \[\]"),
        (ActualShuffled, RECORDING[:1], "recording must have steps that were judged, got none in 1 rows"),
    ],
)
def test_a_recording_must_have_rows(judge: type[Judge], recording: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveTRPO("MlpPolicy", "CartPole-v1", judge_class=judge, judge_kwargs={"recording": recording}, **SMALL)


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_a_replayed_radius_is_the_recorded_one(algorithm: Any, tmp_path: Any) -> None:
    schedule = [0.01, 0.5, 0.002, 0.03]
    recording = [[128.0 * update, radius, np.nan, np.nan] for update, radius in enumerate(schedule, 1)]
    options = {"judge_class": ReplayedSchedule, "judge_kwargs": {"recording": recording}}
    model = algorithm("MlpPolicy", "CartPole-v1", **options, **SMALL)
    for update, radius in enumerate([*schedule[:2], *schedule[2:], schedule[-1]], 1):
        if update == 3:  # a judge goes on where it was saved
            model.save(tmp_path / "model")
            model = algorithm.load(tmp_path / "model", env=model.get_env())
        model.learn(SMALL["n_steps"], reset_num_timesteps=False)
        assert model.judge.state.radius == radius


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

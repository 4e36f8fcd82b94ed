"""Each ablation changes the one thing that it says it changes."""

from typing import Any

import numpy as np
import pytest

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.benchmark.ablations import ActualShuffledTRPO, ActualZeroTRPO, ReplayedTRPO
from sb3_trustregion.benchmark.baselines import BOUNDS, FACTOR, KLAdaptivePPO
from sb3_trustregion.core.improvement import Improvement

SMALL: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "seed": 3, "device": "cpu"}


class Judge:
    """Notes what step 5 is given."""

    def __init__(self, model: AdaptiveTRPO) -> None:
        self.judged: list[Improvement] = []
        self._original = model._judge
        model._judge = self  # type: ignore[method-assign]

    def __call__(self, measured: Improvement | None) -> None:
        if measured is not None:
            self.judged.append(measured)
        self._original(measured)


def judged(algorithm: type[AdaptiveTRPO], n_updates: int = 6, **options: Any) -> tuple[AdaptiveTRPO, list[Improvement]]:
    model = algorithm("MlpPolicy", "CartPole-v1", **SMALL, **options)
    judge = Judge(model)
    model.learn(n_updates * SMALL["n_steps"])
    return model, judge.judged


def test_actual_zero_hides_what_steps_brought() -> None:
    model, improvements = judged(ActualZeroTRPO)
    assert improvements
    assert all(measured.actual == 0.0 and measured.predicted != 0.0 for measured in improvements)
    assert model.region.actual == 0.0
    assert model.region.n_feedback == 0


def test_the_first_judgement_is_of_the_true_step_otherwise() -> None:
    _, true = judged(AdaptiveTRPO)
    _, zero = judged(ActualZeroTRPO)
    assert true[0]._replace(actual=0.0) == zero[0]


def test_shuffled_improvements_are_those_of_other_steps() -> None:
    # Nothing is undone and the radius stays, so that both runs take the same steps.
    fixed: dict[str, Any] = {"radius_rule": "fixed", "rollback_z": None}
    _, true = judged(AdaptiveTRPO, 10, **fixed)
    _, shuffled = judged(ActualShuffledTRPO, 10, **fixed)
    assert [step.predicted for step in shuffled] == [step.predicted for step in true]
    for index, step in enumerate(shuffled):
        assert (step.actual, step.stderr) in [(other.actual, other.stderr) for other in true[: index + 1]]
    assert [step.actual for step in shuffled] != [step.actual for step in true]


def test_a_replayed_radius_is_the_recorded_one() -> None:
    schedule = [(128, 0.01), (384, 0.5), (512, 0.002)]
    model = ReplayedTRPO("MlpPolicy", "CartPole-v1", radius_schedule=schedule, **SMALL)
    used = []
    original = model._record_judgement

    def record(measured: Improvement | None) -> None:
        used.append((model.num_timesteps, model.region.radius))
        original(measured)

    model._record_judgement = record  # type: ignore[method-assign]
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

"""AdaptivePPO beyond PPO: roll-back of all that Adam moves, and the clip range as a radius."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from stable_baselines3 import PPO

from sb3_trustregion import AdaptivePPO
from sb3_trustregion.core.line_search import StepStatus
from tests.environments import toy_vec_env
from tests.helpers import (
    UPDATE,
    Ruinous,
    Update,
    assert_same,
    differs,
    make_model,
    point_at,
    satisfy_critic,
    state_of,
    train,
)


def ruined(n_updates: int, **kwargs: Any) -> tuple[Any, list[Update]]:
    """A model whose third update ruins policy, critic and optimiser."""
    arguments = {"n_steps": 64, "judge_class": Ruinous, "judge_kwargs": {"ruined": (2,)}, **kwargs}
    model = make_model(AdaptivePPO, **arguments)
    point_at(model.policy, 0.5)
    return model, train(model, n_updates)


@pytest.mark.parametrize(
    ("radius_rule", "estimator"), [("noise_aware", "rollout"), ("noise_aware", "episodes"), ("fixed", "rollout")]
)
def test_collapse_is_undone(radius_rule: str, estimator: str) -> None:
    model, updates = ruined(4, radius_rule=radius_rule, improvement_estimator=estimator)
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 3 + [StepStatus.REJECTED]
    (good,) = model.judge.good
    assert_same(state_of(model.policy), good.undone)
    assert_same(model.policy.optimizer.state_dict()["state"], good.optimizer)
    assert_same(updates[2].before, good.undone)
    assert model.region.n_rollbacks == 1
    assert model.judge.pending is None
    radii = [update.logged["train/radius"] for update in updates]
    assert radii[3] == pytest.approx(radii[2] * (1.0 if radius_rule == "fixed" else 0.5**0.5))


def test_training_goes_on_after_a_collapse() -> None:
    model, updates = ruined(9)
    assert [number for number, update in enumerate(updates) if update.status is StepStatus.REJECTED] == [3]
    assert "train/rho" not in updates[4].logged
    assert "train/rho" in updates[5].logged
    assert differs(updates[4].before, updates[4].after)
    assert model.region.n_rollbacks == 1


def test_restored_optimiser_is_the_one_that_goes_on() -> None:
    """The update after a roll-back is the one that the restored policy and Adam make, not the ruined Adam's."""
    model, _ = ruined(4)
    twin = make_model(AdaptivePPO, n_steps=64)
    twin.set_parameters(copy.deepcopy(model.get_parameters()))
    for one in (model, twin):
        one.set_random_seed(5)
        train(one, 1)
    assert_same(state_of(model.policy), state_of(twin.policy))
    assert_same(model.policy.optimizer.state_dict(), twin.policy.optimizer.state_dict())


def test_roll_back_can_be_switched_off() -> None:
    _, updates = ruined(5, rollback_z=None)
    assert all(update.status is StepStatus.ACCEPTED for update in updates)
    assert updates[3].before["action_net.bias"].max() < -4.0


def test_nothing_to_gain_changes_nothing() -> None:
    """Advantages are zero where the critic is right about a constant reward, truncated episodes included."""
    model = make_model(AdaptivePPO, toy_vec_env(reward=1.0, termination=0.0), gamma=0.5)
    satisfy_critic(model, 2.0)
    start = state_of(model.policy)
    train(model, 4)
    assert_same(state_of(model.policy), start)
    assert (model.region.radius, model.region.n_rollbacks, model.region.n_judged) == (1.0, 0, 0)


def with_factor(factor: float, **kwargs: Any) -> Any:
    """A model whose factor on the clip range is this one and stays."""
    model = make_model(AdaptivePPO, radius_rule=lambda state, measured: 1.0, **kwargs)
    model.judge.state = replace(model.judge.state, radius=factor)
    return model


@pytest.mark.parametrize("clip_range", [0.3, lambda left: 0.3 * left], ids=["constant", "schedule"])
@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_clip_range_is_schedule_times_factor(clip_range: Any, factor: float) -> None:
    model = with_factor(factor, clip_range=clip_range)
    schedule = model.clip_range
    updates = train(model, 4)
    for update, left in zip(updates, (0.75, 0.5, 0.25, 0.0), strict=True):
        expected = factor * (0.3 if clip_range == 0.3 else 0.3 * left)
        assert update.logged["train/clip_range"] == pytest.approx(expected)
        assert update.logged["train/radius"] == factor
    assert model.clip_range is schedule


def test_factor_acts_as_the_clip_range_does() -> None:
    """ε = 0.4·½ by the factor is ε = 0.2 by the argument, bit for bit."""
    halved = with_factor(0.5, clip_range=0.4)
    train(halved, 2)
    plain, wide = (make_model(AdaptivePPO, clip_range=value, radius_rule="fixed") for value in (0.2, 0.4))
    train(plain, 2)
    assert_same(state_of(halved.policy), state_of(plain.policy))
    train(wide, 2)
    assert differs(state_of(wide.policy), state_of(plain.policy))


def test_clip_range_is_restored_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(AdaptivePPO)
    schedule = model.clip_range
    seen = []

    def broken(self: PPO) -> None:
        seen.append(self.clip_range(1.0))
        raise KeyboardInterrupt

    model.judge.state = replace(model.judge.state, radius=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "train", broken)
        with pytest.raises(KeyboardInterrupt):
            model.learn(UPDATE)
    assert seen == [0.1]
    assert model.clip_range is schedule
    assert model.clip_range(1.0) == 0.2
    train(model, 2)


def test_radius_survives_learning_in_parts() -> None:
    model = make_model(AdaptivePPO, radius_rule="textbook")
    train(model, 3)
    radius = model.region.radius
    assert radius != 1.0
    (update,) = train(model, 1)
    assert update.logged["train/radius"] == radius
    assert update.logged["train/clip_range"] == pytest.approx(0.2 * radius)


def test_radius_stays_within_its_bounds() -> None:
    model = make_model(AdaptivePPO, radius_rule="textbook", radius_bounds=(0.9, 1.1))
    radii = [update.logged["train/radius"] for update in train(model, 6)]
    assert min(radii) >= 0.9
    assert max(radii) <= 1.1
    assert {0.9, 1.1} & set(radii)


def test_update_that_leaves_the_finite_numbers_is_undone() -> None:
    """A learning rate that no network survives."""
    model = make_model(AdaptivePPO, learning_rate=lambda left: 1e-2 if left > 0.4 else 1e30, max_grad_norm=1e9)
    updates = train(model, 2)
    assert updates[0].status is StepStatus.ACCEPTED
    assert updates[1].status is StepStatus.INVALID
    assert_same(updates[1].after, updates[1].before)
    twin = make_model(AdaptivePPO, learning_rate=1e-2, max_grad_norm=1e9)
    train(twin, 1)
    assert_same(model.policy.optimizer.state_dict()["state"], twin.policy.optimizer.state_dict()["state"])
    assert (model.n_invalid, model.n_invalid_in_a_row) == (1, 1)
    assert model.region.radius < 1.0
    assert model.clip_range(1.0) == 0.2
    assert model.judge.pending is None


def test_other_errors_are_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PPO) -> None:
        raise ValueError("something else")

    monkeypatch.setattr(PPO, "train", broken)
    with pytest.raises(ValueError, match="something else"):
        train(make_model(AdaptivePPO), 1)

"""AdaptiveTRPO beyond a single step: roll-back, invalid steps, the critic's fit."""

from typing import Any

import numpy as np
import pytest

from sb3_trustregion import NPG, AdaptiveTRPO
from sb3_trustregion.core.line_search import StepStatus
from tests.environments import toy_vec_env
from tests.helpers import (
    Ruinous,
    Update,
    actor_names,
    actor_of,
    all_finite,
    assert_same,
    differs,
    make_model,
    point_at,
    satisfy_critic,
    state_of,
    train,
)


def ruined(*which: int, n_updates: int = 6, **kwargs: Any) -> tuple[Any, list[Update]]:
    """A model some of whose updates ruin the actor."""
    model = make_model(AdaptiveTRPO, n_steps=64, judge_class=Ruinous, judge_kwargs={"ruined": which}, **kwargs)
    point_at(model.policy, 0.5)
    return model, train(model, n_updates)


@pytest.mark.parametrize(
    ("radius_rule", "estimator"),
    [("noise_aware", "rollout"), ("noise_aware", "episodes"), ("textbook", "rollout"), ("fixed", "rollout")],
)
def test_collapse_is_undone(radius_rule: str, estimator: str) -> None:
    model, updates = ruined(2, radius_rule=radius_rule, improvement_estimator=estimator, n_updates=5)
    statuses = [update.status for update in updates]
    assert statuses == [StepStatus.ACCEPTED] * 3 + [StepStatus.REJECTED, StepStatus.ACCEPTED]
    rejected, following = updates[3:]

    # The last good policy is back bit for bit, and no step is taken from the batch of the ruined one.
    assert_same(actor_of(model, rejected.after), model.judge.good[0].undone)
    assert_same(actor_of(model, rejected.after), actor_of(model, updates[2].before))
    # The critic is not what failed: what it has learned since stays.
    assert_same(rejected.after["value_net.weight"], rejected.before["value_net.weight"])
    assert rejected.logged["train/actual_improvement"] < -3.0 * rejected.logged["train/improvement_stderr"]
    assert model.region.n_rollbacks == rejected.logged["train/n_rollbacks"] == 1
    # The baseline is taken afresh: nothing is pending that could be rejected again.
    assert "train/rho" not in following.logged
    assert differs(actor_of(model, following.before), actor_of(model, following.after))
    radii = [update.logged["train/radius"] for update in updates]
    assert radii[3] == (radii[2] if radius_rule == "fixed" else 0.5 * radii[2])
    assert radii[4] == radii[3]


def test_training_goes_on_after_a_collapse() -> None:
    """The step after the roll-back is judged against a rollout of the policy that was restored, and kept."""
    model, updates = ruined(2, n_updates=8)
    assert [update.status for update in updates].count(StepStatus.REJECTED) == 1
    assert all("train/rho" in update.logged for update in updates[5:])
    assert model.region.n_rollbacks == 1


def test_every_collapse_is_undone() -> None:
    model, updates = ruined(1, 3, 4, n_updates=8)
    # Each roll-back is an update without a step.
    assert [number for number, update in enumerate(updates) if update.status is StepStatus.REJECTED] == [2, 5, 7]
    for number, good in zip((2, 5, 7), model.judge.good, strict=True):
        assert_same(actor_of(model, updates[number].after), good.undone)
    assert model.region.n_rollbacks == 3
    assert model.region.radius < model.target_kl


@pytest.mark.parametrize("arguments", [{"rollback_z": None}, {"improvement_estimator": "surrogate"}], ids=str)
def test_roll_back_can_be_switched_off(arguments: dict[str, Any]) -> None:
    _, updates = ruined(1, n_updates=4, **arguments)
    assert all(update.status is not StepStatus.REJECTED for update in updates)
    assert updates[3].before["action_net.bias"].max() < -4.0


@pytest.mark.parametrize(("estimator", "first"), [("rollout", StepStatus.ACCEPTED), ("episodes", StepStatus.REJECTED)])
def test_lucky_baseline_rejects_one_step_at_most(estimator: str, first: StepStatus) -> None:
    """What the old policy would not reach again either is not the step's loss; returns cannot tell, but once."""
    model = make_model(AdaptiveTRPO, n_steps=64, improvement_estimator=estimator)
    train(model, 2)
    pending = model.judge.pending
    model.judge.pending = pending._replace(baseline=pending.baseline._replace(mean=pending.baseline.mean + 100.0))
    updates = train(model, 4, reset_num_timesteps=False)
    assert updates[0].logged["train/improvement_stderr"] > 0.0
    assert [update.status for update in updates] == [first] + [StepStatus.ACCEPTED] * 3


@pytest.mark.filterwarnings("ignore:.*updates without a policy step")
@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_nothing_to_gain_changes_nothing(algorithm: type[Any], use_sde: bool) -> None:
    """Advantages are zero where the critic is right about a constant reward, truncated episodes included."""
    model = make_model(algorithm, toy_vec_env(reward=1.0, termination=0.0), gamma=0.5, use_sde=use_sde)
    satisfy_critic(model, 2.0)
    start = state_of(model.policy)
    updates = train(model, 4)
    assert_same(state_of(model.policy), start)
    assert [update.status for update in updates] == [StepStatus.INVALID] * 4
    assert [update.logged["train/n_invalid"] for update in updates] == [1, 2, 3, 4]
    assert updates[-1].logged["train/value_loss"] == 0.0
    if algorithm is AdaptiveTRPO:
        assert model.region.radius == model.target_kl  # a smaller radius would mend nothing
        assert model.judge.pending is None


def test_invalid_steps_in_a_row_are_warned_about() -> None:
    model = make_model(AdaptiveTRPO, toy_vec_env(reward=1.0, termination=0.0), gamma=0.5)
    satisfy_critic(model, 2.0)
    with pytest.warns(UserWarning, match="3 updates without a policy step in a row, now because the gradient vanishes"):
        train(model, 3)
    # Counted in a row: one accepted step and it starts anew.
    model.set_env(toy_vec_env())
    train(model, 1, reset_num_timesteps=False)
    assert (model.n_invalid, model.n_invalid_in_a_row) == (3, 0)


@pytest.mark.filterwarnings("ignore:.*updates without a policy step")
def test_search_that_fails_shrinks_the_radius_and_is_not_rejected() -> None:
    """One trial at a radius where the quadratic model is far off."""
    model = make_model(AdaptiveTRPO, target_kl=10.0, line_search_max_iter=1)
    start = actor_of(model)
    (update,) = train(model, 1)
    assert update.status is StepStatus.INVALID
    assert update.logged["train/line_search_steps"] == 1
    assert_same(actor_of(model), start)
    assert model.region.radius == 5.0
    assert model.region.n_rollbacks == 0
    assert model.judge.pending is None
    # Finds its way to a radius that works.
    updates = train(model, 8, reset_num_timesteps=False)
    assert StepStatus.ACCEPTED in [update.status for update in updates]


def test_line_search_steps_are_counted() -> None:
    updates = train(make_model(AdaptiveTRPO, target_kl=5.0, line_search_max_iter=30), 3)
    assert max(update.logged["train/line_search_steps"] for update in updates) > 0
    assert all(update.logged["train/kl_divergence"] <= update.logged["train/radius"] for update in updates)


@pytest.mark.filterwarnings("ignore:the critic's fit left the finite numbers")
@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_critic_that_leaves_the_finite_numbers_is_put_back(algorithm: type[Any]) -> None:
    """A learning rate that no network survives, at the second update; the actor's step is none of its business."""
    model = make_model(algorithm, learning_rate=lambda left: 1e38 if left == 0.5 else 1e-2)
    updates = train(model, 4)
    spoilt = updates[1]
    critic = [name for name in spoilt.before if name not in actor_names(model)]
    assert "train/value_loss" not in spoilt.logged
    assert_same({name: spoilt.after[name] for name in critic}, {name: spoilt.before[name] for name in critic})
    assert spoilt.status is StepStatus.ACCEPTED
    assert differs(actor_of(model, spoilt.before), actor_of(model, spoilt.after))

    for update in updates[2:]:
        assert np.isfinite(update.logged["train/value_loss"])
        assert differs({name: update.before[name] for name in critic}, update.after)
    assert all_finite(state_of(model.policy))

"""AdaptiveTRPO beyond a single step: roll-back, invalid steps, reused rollouts."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trustregion import NPG, AdaptiveTRPO
from sb3_trustregion.core.search import StepStatus
from sb3_trustregion.measurement import TrustRegionMemory
from tests.environments import toy_vec_env
from tests.helpers import (
    State,
    Update,
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


class Destroyer(BaseCallback):
    """
    Destroys the actor while a step is pending, at the start of rollouts that are listed.

    :param rollouts: counted from zero
    """

    def __init__(self, *rollouts: int) -> None:
        super().__init__()
        self.rollouts = rollouts
        self.n_rollouts = 0
        self.good: list[State] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.n_rollouts in self.rollouts:
            pending = self.model.memory.pending  # type: ignore[attr-defined]
            assert pending is not None
            self.good.append(actor_of(self.model, pending.policy))
            with th.no_grad():
                for name in self.model.actor.names:  # type: ignore[attr-defined]
                    self.model.policy.get_parameter(name).normal_(std=3.0)
            point_at(self.model, -5.0)
        self.n_rollouts += 1


def destroyed(*rollouts: int, n_updates: int = 6, **kwargs: Any) -> tuple[Any, list[Update], Destroyer]:
    model = make_model(AdaptiveTRPO, n_steps=64, **kwargs)
    point_at(model, 0.5)
    destroyer = Destroyer(*rollouts)
    return model, train(model, n_updates, callbacks=[destroyer]), destroyer


@pytest.mark.parametrize("improvement_estimator", ["rollout", "episodes"])
@pytest.mark.parametrize("radius_rule", ["noise_aware", "textbook", "fixed"])
def test_collapse_is_undone(radius_rule: str, improvement_estimator: str) -> None:
    model, updates, destroyer = destroyed(
        3, radius_rule=radius_rule, improvement_estimator=improvement_estimator, n_updates=5
    )
    statuses = [update.status for update in updates]
    assert statuses == [StepStatus.ACCEPTED] * 3 + [StepStatus.REJECTED, StepStatus.ACCEPTED]
    rejected, following = updates[3:]

    # The last good policy is back bit for bit, and no step is taken from the batch of the destroyed one.
    assert_same(actor_of(model, rejected.after), destroyer.good[0])
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
    model, updates, _ = destroyed(3, n_updates=10)
    assert [update.status for update in updates].count(StepStatus.REJECTED) == 1
    assert all("train/rho" in update.logged for update in updates[5:])
    assert model.region.n_rollbacks == 1


def test_every_collapse_is_undone() -> None:
    model, updates, destroyer = destroyed(2, 5, 7, n_updates=8)
    assert [number for number, update in enumerate(updates) if update.status is StepStatus.REJECTED] == [2, 5, 7]
    for number, good in zip((2, 5, 7), destroyer.good, strict=True):
        assert_same(actor_of(model, updates[number].after), good)
    assert model.region.n_rollbacks == 3
    assert model.region.radius < model.target_kl


@pytest.mark.parametrize("arguments", [{"rollback_z": None}, {"improvement_estimator": "surrogate"}], ids=str)
def test_roll_back_can_be_switched_off(arguments: dict[str, Any]) -> None:
    model = make_model(AdaptiveTRPO, n_steps=64, **arguments)
    point_at(model, 0.5)
    train(model, 2)
    good = actor_of(model)
    point_at(model, -5.0)
    updates = train(model, 2, reset_num_timesteps=False)
    assert all(update.status is not StepStatus.REJECTED for update in updates)
    assert differs(actor_of(model), good)


def test_lucky_baseline_does_not_reject_twice() -> None:
    """A baseline that nothing can match rejects one step; the next is judged by another."""
    model = make_model(AdaptiveTRPO, n_steps=64)
    train(model, 2)
    pending = model.memory.pending
    model.memory.pending = pending._replace(baseline=pending.baseline._replace(mean=pending.baseline.mean + 10.0))
    updates = train(model, 4, reset_num_timesteps=False)
    assert [update.status for update in updates] == [StepStatus.REJECTED] + [StepStatus.ACCEPTED] * 3


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
        assert model.memory.pending is None


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
    assert model.memory.pending is None
    # Finds its way to a radius that works.
    updates = train(model, 8, reset_num_timesteps=False)
    assert StepStatus.ACCEPTED in [update.status for update in updates]


def test_line_search_steps_are_counted() -> None:
    updates = train(make_model(AdaptiveTRPO, target_kl=5.0, line_search_max_iter=30), 3)
    assert max(update.logged["train/line_search_steps"] for update in updates) > 0
    assert all(update.logged["train/kl_divergence"] <= update.logged["train/radius"] for update in updates)


def test_reused_rollouts_are_the_last_ones() -> None:
    model = make_model(AdaptiveTRPO, n_reused_rollouts=3)
    kept: list[list[Any]] = []
    counts = [update.logged["train/n_rollouts"] for update in train(model, 1)]
    kept.append(model.memory.rollouts)
    for _ in range(4):
        counts += [update.logged["train/n_rollouts"] for update in train(model, 1, reset_num_timesteps=False)]
        kept.append(model.memory.rollouts)
    assert [len(rollouts) for rollouts in kept] == [1, 2, 2, 2, 2]
    assert counts == [1, 2, 3, 3, 3]
    for before, after in itertools.pairwise(kept[1:]):
        assert after[0] is before[1]
        assert after[1] is not before[0]


def test_one_rollout_keeps_none() -> None:
    model = make_model(AdaptiveTRPO)
    train(model)
    assert model.memory.rollouts == []


@pytest.mark.parametrize(("strange", "n_rollouts"), [(None, 4), (0, 3), (1, 3), (2, 3)])
def test_history_beyond_the_radius_is_dropped_most_distant_first(strange: int | None, n_rollouts: int) -> None:
    """A rollout that some far-off policy collected: it goes, and nothing else with it."""
    model = make_model(AdaptiveTRPO, n_reused_rollouts=4, radius_rule="fixed", rollback_z=None, target_kl=0.02)
    train(model, 3)
    if strange is not None:
        rollout = model.memory.rollouts[strange]
        model.memory.rollouts[strange] = rollout._replace(log_probs=rollout.log_probs + 5.0)
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.logged["train/n_rollouts"] == n_rollouts
    assert update.logged["train/n_samples"] == n_rollouts * model.n_steps * model.n_envs
    assert update.status is StepStatus.ACCEPTED
    assert len(model.memory.rollouts) == 3


def test_radius_is_around_the_data() -> None:
    """The distance that is bounded, by hand: mean of r - 1 - log r over both rollouts, r of the new policy."""
    model = make_model(AdaptiveTRPO, n_reused_rollouts=3)
    update = train(model, 2)[-1]
    assert update.logged["train/n_rollouts"] == 2
    distances = []
    for rollout in model.memory.rollouts:
        observations = th.as_tensor(rollout.observations.reshape(-1, 3))
        actions = th.as_tensor(rollout.actions.reshape(-1, 2))
        with th.no_grad():
            log_probs = model.policy.evaluate_actions(observations, actions)[1].numpy().astype(np.float64)
        log_ratio = log_probs - rollout.log_probs.ravel()
        distances.append(np.mean(np.exp(log_ratio) - 1.0 - log_ratio))
    assert np.mean(distances) == pytest.approx(update.logged["train/distance_from_data"], rel=1e-3)
    assert update.logged["train/distance_from_data"] <= update.logged["train/radius"]
    assert update.logged["train/kl_divergence"] != pytest.approx(update.logged["train/distance_from_data"], rel=1e-3)


def test_rejected_rollout_is_remembered() -> None:
    """What it taught stays, weighed; so far from the restored policy it weighs nothing, but that is the data's say."""
    model, updates, _ = destroyed(3, n_reused_rollouts=3, n_updates=4)
    assert updates[3].status is StepStatus.REJECTED
    assert len(model.memory.rollouts) == 2
    assert model.memory.rollouts[-1].rewards.mean() < -1.0 < model.memory.rollouts[0].rewards.mean()
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.logged["train/n_rollouts"] == 2  # that before it and the newest
    assert all_finite(state_of(model.policy))


def test_memory_is_plain() -> None:
    """As saved and as loaded: no class of ours in the file, and unknown counters of another version are no obstacle."""
    model = make_model(AdaptiveTRPO, n_reused_rollouts=2)
    train(model, 2)
    state = model.memory.state_dict()
    state["region"]["of_a_later_version"] = 1.0
    again = TrustRegionMemory(model.region)
    again.load_state_dict(state)
    assert again.region == model.region
    assert_same(again.state_dict(), model.memory.state_dict())


@pytest.mark.filterwarnings("ignore:the critic's fit left the finite numbers")
@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_critic_that_leaves_the_finite_numbers_is_put_back(algorithm: type[Any]) -> None:
    """A learning rate that no network survives, at the second update; the actor's step is none of its business."""
    model = make_model(algorithm, learning_rate=lambda left: 1e38 if left == 0.5 else 1e-2)
    updates = train(model, 4)
    spoilt = updates[1]
    critic = [name for name in spoilt.before if name not in model.actor.names]
    assert np.isnan(spoilt.logged["train/value_loss"])
    assert_same({name: spoilt.after[name] for name in critic}, {name: spoilt.before[name] for name in critic})
    assert spoilt.status is StepStatus.ACCEPTED
    assert differs(actor_of(model, spoilt.before), actor_of(model, spoilt.after))

    for update in updates[2:]:
        assert np.isfinite(update.logged["train/value_loss"])
        assert differs({name: update.before[name] for name in critic}, update.after)
    assert all_finite(state_of(model.policy))

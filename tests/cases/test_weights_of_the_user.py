"""Weights that the user sets are nobody's step: they stay, and no step is judged by them."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.core.line_search import StepStatus
from tests.helpers import MEASURING, Ruinous, assert_same, make_model, point_at, shared, state_of, train

each_measuring = pytest.mark.parametrize("algorithm", MEASURING)


def bad_weights(model: Any) -> dict[str, th.Tensor]:
    """Weights that no step would be forgiven for."""
    weights = {name: th.randn(tensor.shape) for name, tensor in state_of(model.policy).items()}
    weights["action_net.weight"].zero_()
    weights["action_net.bias"].fill_(-5.0)
    weights["log_std"].fill_(-1.0)
    return weights


def by_set_parameters(model: Any) -> None:
    model.set_parameters({**model.get_parameters(), "policy": bad_weights(model)})


def by_set_parameters_of_the_policy_alone(model: Any) -> None:
    model.set_parameters({"policy": bad_weights(model)}, exact_match=False)


def by_load_state_dict(model: Any) -> None:
    model.policy.load_state_dict(bad_weights(model))


def by_copy_in_place(model: Any) -> None:
    weights = bad_weights(model)
    with th.no_grad():
        for name, parameter in model.policy.named_parameters():
            parameter.copy_(weights[name])


def by_data(model: Any) -> None:
    weights = bad_weights(model)
    for name, parameter in model.policy.named_parameters():
        parameter.data = weights[name]


def by_averaging(model: Any) -> None:
    weights = bad_weights(model)
    with th.no_grad():
        for name, parameter in model.policy.named_parameters():
            parameter.lerp_(weights[name], 0.7)


def by_one_parameter(model: Any) -> None:
    with th.no_grad():
        model.policy.action_net.bias.fill_(-5.0)


def by_another_policy(model: Any) -> None:
    policy = model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs)
    policy.load_state_dict(bad_weights(model))
    model.policy = policy


WAYS = [
    by_set_parameters,
    by_set_parameters_of_the_policy_alone,
    by_load_state_dict,
    by_copy_in_place,
    by_data,
    by_averaging,
    by_one_parameter,
    by_another_policy,
]


def good_model(algorithm: type[Any], **kwargs: Any) -> Any:
    model = make_model(algorithm, n_steps=64, **kwargs)
    point_at(model.policy, 0.5)
    model.learn(2 * 128)
    assert model.judge.pending is not None
    return model


@pytest.mark.parametrize(
    ("algorithm", "way"),
    [*shared(WAYS, others=MEASURING), (AdaptivePPO, by_copy_in_place), (AdaptivePPO, by_another_policy)],
)
def test_between_two_learns(algorithm: type[Any], way: Callable[[Any], None]) -> None:
    model = good_model(algorithm)
    way(model)
    given, region = state_of(model.policy), model.region
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert_same(update.before, given)
    assert update.status is StepStatus.ACCEPTED
    assert "train/rho" not in update.logged
    assert (model.region.n_judged, model.region.n_rollbacks) == (region.n_judged, 0)
    assert model.region.radius == region.radius
    # From then on steps are judged again.
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert "train/rho" in update.logged


class Overwriting(BaseCallback):
    """:param way: how, at the start of the third rollout"""

    def __init__(self, way: Callable[[Any], None], at_start: bool) -> None:
        super().__init__()
        self.way, self.at_start, self.n_rollouts = way, at_start, 0

    def _overwrite(self) -> None:
        self.n_rollouts += 1
        if self.n_rollouts == 3:
            self.way(self.model)
            self.given = state_of(self.model.policy)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.at_start:
            self._overwrite()

    def _on_rollout_end(self) -> None:
        if not self.at_start:
            self._overwrite()


@pytest.mark.parametrize(
    ("algorithm", "way", "at_start"),
    [
        (AdaptiveTRPO, by_copy_in_place, True),
        (AdaptiveTRPO, by_another_policy, False),
        (AdaptivePPO, by_copy_in_place, False),
        (AdaptivePPO, by_another_policy, True),
    ],
)
def test_by_a_callback(algorithm: type[Any], way: Callable[[Any], None], at_start: bool) -> None:
    model = make_model(algorithm, n_steps=64)
    point_at(model.policy, 0.5)
    callback = Overwriting(way, at_start)
    updates = train(model, 4, callbacks=[callback])
    assert model.region.n_rollbacks == 0
    assert_same(updates[2].before, callback.given)
    assert "train/rho" not in updates[2].logged


class OverwritingWithin(BaseCallback):
    """Overwrites in the middle of a rollout."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            by_copy_in_place(self.model)
        return True


@each_measuring
def test_in_the_middle_of_a_rollout(algorithm: type[Any]) -> None:
    model = make_model(algorithm, n_steps=64)
    point_at(model.policy, 0.5)
    updates = train(model, 4, callbacks=[OverwritingWithin(2 * 64 + 20)])
    assert model.region.n_rollbacks == 0
    assert "train/rho" not in updates[2].logged
    assert updates[2].before["action_net.bias"].max() < -4.0


@each_measuring
def test_the_same_weights_set_again_change_nothing(algorithm: type[Any]) -> None:
    """Saving and setting back is no other policy: the step is judged."""
    model = good_model(algorithm)
    model.policy.load_state_dict(state_of(model.policy))
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert "train/rho" in update.logged


def other_optimizer(model: Any) -> None:
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=1e-3)


def other_rate(model: Any) -> None:
    model.learning_rate = 1e-4
    model._setup_lr_schedule()


def other_groups(model: Any) -> None:
    for group in model.policy.optimizer.param_groups:
        group["lr"] = 1e-4
        group["eps"] = 1e-3


def no_moments(model: Any) -> None:
    model.policy.optimizer.state.clear()


@pytest.mark.parametrize(
    ("algorithm", "change", "ruin"),
    shared(
        itertools.product([other_optimizer, other_rate, other_groups, no_moments], [True, False]),
        AdaptivePPO,
        others=MEASURING,
    ),
)
def test_another_optimiser(algorithm: type[Any], change: Callable[[Any], None], ruin: bool) -> None:
    """Replaced or set otherwise between two learns: it is the one that goes on, whatever becomes of the step."""
    model = good_model(algorithm)
    if ruin:
        # A loss that the pending step is to blame for.
        pending = model.judge.pending
        model.judge.pending = pending._replace(baseline=pending.baseline._replace(mean=pending.baseline.mean + 100.0))
    change(model)
    optimizer = model.policy.optimizer
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    updates = train(model, 3, reset_num_timesteps=False)
    assert model.policy.optimizer is optimizer
    now = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    rates = {"lr"} if change in (other_optimizer, other_groups) else set()  # by the schedule
    assert [{k: v for k, v in group.items() if k not in rates} for group in now] == [
        {k: v for k, v in group.items() if k not in rates and not (k == "lr" and change is other_rate)}
        | ({"lr": 1e-4} if change is other_rate else {})
        for group in groups
    ]
    assert any(update.status is StepStatus.ACCEPTED for update in updates)


@each_measuring
def test_after_a_roll_back(algorithm: type[Any]) -> None:
    """Weights given while a roll-back waits for its review are not reviewed in its place."""
    model = make_model(algorithm, n_steps=64, judge_class=Ruinous, judge_kwargs={"ruined": (1,)})
    point_at(model.policy, 0.5)
    model.learn(3 * 128)
    assert model.judge.rejected is not None
    state = model.region
    by_copy_in_place(model)
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.status is StepStatus.ACCEPTED
    assert model.judge.rejected is None
    assert (model.region.radius, model.region.n_rollbacks) == (state.radius, 1)

"""A policy destroyed between two updates, beside stock TRPO and PPO; and an environment that is to blame instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.core.line_search import StepStatus
from tests.faults.checks import assert_finite, score
from tests.faults.environments import CHANGES, Changing, healthy
from tests.helpers import MEASURING, Update, actor_of, all_finite, assert_same, make_model, state_of, train

UPDATE = 256  # time steps
N_STEPS, N_ENVS = 16, 16
N_BEFORE = 12


def trained(algorithm: type[Any], n_steps: int = N_STEPS) -> Any:
    """A policy worth losing."""
    env = DummyVecEnv([healthy()] * (UPDATE // n_steps))
    # One initial σ for all.
    policy_kwargs = {"net_arch": [8], "log_std_init": 0.0}
    model = make_model(algorithm, env, n_steps=n_steps, batch_size=64, seed=1, policy_kwargs=policy_kwargs)
    learn(model, N_BEFORE)
    assert score(model) > -0.25
    return model


def learn(model: Any, n_updates: int) -> None:
    model.learn(n_updates * UPDATE, reset_num_timesteps=False)


def overwrite_by_noise(model: Any) -> None:
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(th.randn(parameter.shape, generator=generator))


def update_far_too_large(model: Any) -> None:
    """One update with a radius far too large; a clip range bounds no step, so that PPO's are longer too."""
    with enlarged(model, learning_rate=30.0):
        learn(model, 1)


@contextmanager
def enlarged(model: Any, learning_rate: float) -> Iterator[None]:
    if isinstance(model, AdaptiveTRPO):
        model.judge.state = replace(model.region, radius=20_000.0 * model.region.radius)
        yield  # what becomes of the radius afterwards is the rule's own affair
        return
    factors = {"target_kl": 1000.0} if isinstance(model, TRPO) else {"clip_range": 1000.0, "lr_schedule": learning_rate}
    kept = {name: getattr(model, name) for name in factors}
    for name, factor in factors.items():
        setattr(model, name, enlarged_value(kept[name], factor))
    yield
    for name, value in kept.items():
        setattr(model, name, value)


def enlarged_value(value: Any, factor: float) -> Any:
    return (lambda progress: factor * value(progress)) if callable(value) else factor * value


FAULTS = [overwrite_by_noise, update_far_too_large]


@pytest.mark.parametrize("algorithm", MEASURING)
def test_the_last_good_policy_is_back_within_two_updates(algorithm: type[Any]) -> None:
    model = trained(algorithm, n_steps=64)
    good, value, n_rollbacks = actor_of(model), score(model), model.region.n_rollbacks
    update_far_too_large(model)
    assert score(model) < value - 0.1

    (first,) = train(model, 1, reset_num_timesteps=False)
    assert first.status is StepStatus.REJECTED
    assert_same(actor_of(model, first.after), good)
    assert score(model) > value - 0.1
    assert model.region.n_rollbacks == n_rollbacks + 1
    # And on it goes: no later rollout is of a destroyed policy for more than one update.
    updates = train(model, 12, reset_num_timesteps=False)
    assert n_rejected(updates) <= 6
    assert score(model) > -0.25
    assert_finite(model)


@pytest.mark.parametrize("algorithm", MEASURING)
def test_what_the_user_overwrites_is_the_users(algorithm: type[Any]) -> None:
    """Weights given between two updates are no step of ours: they stay, and it is learned from there."""
    model = trained(algorithm)
    region = model.region
    overwrite_by_noise(model)
    given = state_of(model.policy)
    updates = train(model, 2, reset_num_timesteps=False)
    assert_same(updates[0].before, given)
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 2
    assert "train/rho" not in updates[0].logged
    assert model.region.n_rollbacks == region.n_rollbacks
    assert_finite(model)


@pytest.mark.parametrize(
    ("algorithm", "destroy"),
    [*[(algorithm, fault) for algorithm in (TRPO, PPO) for fault in FAULTS], (NPG, overwrite_by_noise)],
)
def test_without_roll_back_it_stays_destroyed(algorithm: type[Any], destroy: Callable[[Any], None]) -> None:
    """Stock TRPO and PPO, and our NPG, which has neither radius nor roll-back by design."""
    model = trained(algorithm)
    value = score(model)
    destroy(model)
    destroyed = score(model)
    assert destroyed < value - 0.3
    learn(model, 2)
    assert score(model) < value - 0.6 * (value - destroyed)


def test_an_update_that_leaves_the_finite_numbers_is_not_made() -> None:
    """A learning rate 1000 times too large: PPO's parameters are NaN, and training ends; ours stay as they were."""
    stock = trained(PPO)
    with enlarged(stock, learning_rate=1000.0), pytest.raises(ValueError, match="Expected parameter"):
        learn(stock, 1)
    assert not all_finite(state_of(stock.policy))

    model = trained(AdaptivePPO)
    with enlarged(model, learning_rate=1000.0):
        (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.status is StepStatus.INVALID
    assert_same(update.after, update.before)
    assert_finite(model)
    updates = train(model, 3, reset_num_timesteps=False)
    assert any(update.status is StepStatus.ACCEPTED for update in updates)
    assert score(model) > -0.25


@pytest.mark.parametrize(
    ("algorithm", "change"),
    [
        *((AdaptiveTRPO, change) for change in CHANGES if change != "actions turn round"),
        (AdaptivePPO, "actions turn round"),
    ],
)
def test_a_change_for_the_worse_does_not_freeze_learning(algorithm: type[Any], change: str) -> None:
    """No roll-back helps where the environment is to blame: few are made, steps go on, what can be learned is."""
    env = DummyVecEnv([lambda: Monitor(Changing(change, N_BEFORE * N_STEPS))] * N_ENVS)
    model = make_model(algorithm, env, n_steps=N_STEPS, batch_size=64, seed=2)
    train(model, N_BEFORE)
    before = model.region.n_rollbacks
    sign = -1.0 if "round" in change else 1.0
    value = score(model, sign)
    updates = train(model, 30, reset_num_timesteps=False)
    assert n_rejected(updates) == model.region.n_rollbacks - before <= 6
    assert sum(update.status is StepStatus.ACCEPTED for update in updates) >= 24
    assert model.region.radius > 10.0 * model.judge.rule.minimum
    if change == "actions turn round":
        assert value < -0.8
        assert score(model, sign) > -0.3
    elif sign < 0.0:  # at ever greater cost: slowly, but on it goes
        assert score(model, sign) > value + 0.2
    else:
        assert score(model, sign) > -0.3
    assert_finite(model)


def n_rejected(updates: list[Update]) -> int:
    return sum(update.status is StepStatus.REJECTED for update in updates)

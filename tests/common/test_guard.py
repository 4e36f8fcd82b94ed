"""Bad data stops here: they reach neither the buffer nor any statistic, and the record tells which steps they spoil."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_trustregion.common.guard import (
    MANY_INVALID,
    STOP_AFTER,
    Screen,
    UnusableDataError,
    accept,
    is_understood,
    refuse,
    replace,
    screened,
    usable,
)
from sb3_trustregion.common.learning_data import LARGEST_USABLE
from tests.common.collecting import Kept, collect, keeping
from tests.common.rollouts import make_policy
from tests.environments import ToyEnv, toy_vec_env
from tests.helpers import N_STEPS, UPDATE, assert_same
from tests.networks import Reading

BAD = (math.nan, math.inf, -math.inf, 1e30)
every_bad = pytest.mark.parametrize("value", BAD)


# Which, and what instead


@every_bad
def test_all_that_belongs_to_an_environment_must_be_finite(value: float) -> None:
    observations = np.ones((3, 2, 2))
    assert usable(observations).tolist() == [True] * 3
    observations[1, 0, 1] = value
    assert usable(observations).tolist() == [True, False, True]
    assert usable({"a": observations, "b": np.ones(3, dtype=np.uint8)}).tolist() == [True, False, True]
    replace(observations, usable(observations) == 0, 2.0 * np.ones((3, 2, 2)))
    assert observations[:, 0, 0].tolist() == [1.0, 2.0, 1.0]


def test_many_ordinary_numbers_are_ordinary() -> None:
    """Their squares sum to more than the limit's: each is looked at."""
    assert usable(np.full((2, 100), 0.5 * LARGEST_USABLE)).all()
    assert usable(np.full((2, 100), 255, dtype=np.uint8)).all()


def test_without_a_stand_in_there_are_zeros() -> None:
    values = {"a": np.ones((2, 3)), "b": np.ones(2, dtype=np.int64)}
    replace(values, np.array([False, True]), None)
    assert values["a"].tolist() == [[1.0] * 3, [0.0] * 3]
    assert values["b"].tolist() == [1, 0]


# Spoiled steps, as they are collected


class Spoiling(ToyEnv):
    """Spoils what it is told to, at a step counted from zero."""

    spoils: tuple[tuple[int, str, float], ...] = ()
    n_total = -1

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_total += 1
        for step, quantity, value in self.spoils:
            if step == self.n_total and quantity == "reward":
                reward = value
            elif step == self.n_total:
                self._first(observation)[...] = value
        return observation, reward, terminated, truncated, info

    def _first(self, observation: Any) -> Any:
        return observation["vector"][:1] if isinstance(observation, dict) else observation[:1]


def spoiling(*spoils: tuple[int, str, float], space: spaces.Space[Any] | None = None) -> DummyVecEnv:
    """Two environments, of which the second is spoiled; truncated after 8 steps."""
    arguments: dict[str, Any] = {} if space is None else {"observation_space": space}

    def make(own: tuple[tuple[int, str, float], ...]) -> Callable[[], gym.Env[Any, Any]]:
        def maker() -> gym.Env[Any, Any]:
            env = Spoiling(episode_length=8, termination=0.0, **arguments)
            env.spoils = own
            return Monitor(env)

        return maker

    return DummyVecEnv([make(()), make(spoils)])


VECTOR_IN_DICT = spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (3,)), "discrete": spaces.Discrete(4)})
WRAPS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "bare": lambda env: env,
    "normalised": lambda env: VecNormalize(env, norm_obs_keys=["vector"] if is_dict(env) else None),
    "rewards normalised": lambda env: VecNormalize(env, norm_obs=False),
    "stacked": lambda env: VecFrameStack(env, 2),
    "stacked over normalised": lambda env: VecFrameStack(VecNormalize(env), 2),
    "normalised over stacked": lambda env: VecNormalize(VecFrameStack(env, 2)),
}


def is_dict(env: VecEnv) -> bool:
    return isinstance(env.observation_space, spaces.Dict)


def check_finite(kept: Kept) -> None:
    for value in kept.buffer.values():
        for part in value.values() if isinstance(value, dict) else [value]:
            assert np.isfinite(part).all()


SPOILED = [
    ("reward", 5, [5]),
    ("observation", 5, [5, 6]),  # the step to it, and the step from it
    ("observation", 7, [7]),  # the end of an episode; the next one begins with a sound one
    ("observation", N_STEPS - 2, [N_STEPS - 2, N_STEPS - 1]),
]


@pytest.mark.parametrize(
    ("wrap", "value", "quantity", "at", "expected"),
    [
        *((wrap, math.inf, *spoiled) for wrap in WRAPS for spoiled in SPOILED),
        *((wrap, value, *SPOILED[0]) for wrap in ("bare", "normalised") for value in BAD if value != math.inf),
        *(("normalised", value, *spoiled) for spoiled in SPOILED[1:3] for value in BAD if value != math.inf),
        *(("bare", value, *spoiled) for spoiled in SPOILED[1:3] for value in (math.nan, -math.inf)),
    ],
)
def test_spoiled_steps_are_told_and_stay_out_of_the_buffer(
    wrap: str, value: float, quantity: str, at: int, expected: list[int]
) -> None:
    env = WRAPS[wrap](spoiling((at, quantity, value)))
    with pytest.warns(UserWarning, match=f"{quantity} was not finite, or above 1e\\+18, in environment"):
        first, second = collect(env)
    assert np.argwhere(first.rollout.faulty).tolist() == [[t, 1] for t in expected]
    assert not second.rollout.faulty.any()
    assert first.batch.n_samples == UPDATE - len(expected)
    for kept in (first, second):
        check_finite(kept)
    while isinstance(env, (VecFrameStack, VecNormalize)):
        if isinstance(env, VecNormalize):
            assert np.isfinite(env.ret_rms.var)
            assert not env.norm_obs or np.isfinite(env.obs_rms.mean).all()  # type: ignore[union-attr]
        env = env.venv


@pytest.mark.parametrize("wrap", ["bare", "normalised"])
def test_parts_of_a_dictionary_are_looked_at_too(wrap: str) -> None:
    env = WRAPS[wrap](spoiling((5, "observation", math.nan), space=VECTOR_IN_DICT))
    with pytest.warns(UserWarning, match="observation was not finite"):
        (kept,) = collect(env, n_rollouts=1)
    assert np.argwhere(kept.rollout.faulty).tolist() == [[5, 1], [6, 1]]
    check_finite(kept)


def test_a_fault_at_the_end_of_a_rollout_spoils_the_first_step_of_the_next() -> None:
    with pytest.warns(UserWarning, match="observation was not finite"):
        first, second = collect(spoiling((N_STEPS, "reward", 1.0), (N_STEPS - 2 + 3, "observation", math.nan)))
    assert not first.rollout.faulty.any()
    assert np.argwhere(second.rollout.faulty).tolist() == [[1, 1], [2, 1]]


def test_an_episode_with_a_faulty_reward_has_no_return() -> None:
    with pytest.warns(UserWarning, match="reward was not finite"):
        (kept,) = collect(spoiling((5, "reward", math.nan)), n_rollouts=1)
    assert len(kept.rollout.episode_returns) == 2 * N_STEPS // 8 - 1


def test_the_user_is_told_once() -> None:
    faults = [(step, "reward", math.nan) for step in range(0, 40, 3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = keeping(spoiling(*faults))
        model.learn(2 * UPDATE)
    assert sum("was not finite" in str(warning.message) for warning in caught) == 1
    assert model.n_faulty_steps == len(faults)


@pytest.mark.parametrize("quantity", ["reward", "observation"])
def test_statistics_are_those_of_what_stands_in(quantity: str) -> None:
    """One environment of two was spoiled: the statistics go on with what it had shown last."""
    spoiled = VecNormalize(spoiling((5, quantity, math.nan)))
    with pytest.warns(UserWarning, match="was not finite"):
        collect(spoiled, n_rollouts=1)
    sound = VecNormalize(spoiling())
    collect(sound, n_rollouts=1)
    assert spoiled.obs_rms.count == sound.obs_rms.count  # type: ignore[union-attr]
    np.testing.assert_allclose(spoiled.obs_rms.var, sound.obs_rms.var, rtol=0.2)  # type: ignore[union-attr]
    assert 0.5 < spoiled.ret_rms.var / sound.ret_rms.var < 2.0


# The screen


def test_a_screen_lets_sound_data_through_and_is_gone_afterwards() -> None:
    env = VecNormalize(toy_vec_env(), training=False)
    beneath = env.venv
    with screened(VecFrameStack(env, 2)) as screen:
        assert isinstance(screen, Screen)
        assert env.venv is beneath  # nobody meets a wrapper
        assert {"reset", "step_wait"} <= vars(beneath).keys()
    assert not {"reset", "step_wait"} & vars(beneath).keys()
    assert env.training is False
    with pytest.raises(KeyError), screened(env):
        raise KeyError
    assert not {"reset", "step_wait"} & vars(beneath).keys()
    with screened(beneath) as nothing:
        assert nothing is None


def test_a_step_that_brought_nothing_sound_leaves_the_statistics_alone() -> None:
    spoils = [(5, "observation", math.inf)]
    env = VecNormalize(DummyVecEnv([_alone(spoils)]))
    with screened(env):
        env.reset()
        for step in range(8):
            before = env.obs_rms.count  # type: ignore[union-attr]
            env.step(np.zeros((1, 2)))
            assert (env.obs_rms.count == before) == (step == 5)  # type: ignore[union-attr]
    assert env.training


def test_what_stands_in_may_lack_a_number_too() -> None:
    """One environment's sensor is dead, later all of its numbers are infinite for a step."""
    spoils = [(step, "observation", math.nan) for step in range(20)]
    env = VecNormalize(DummyVecEnv([_alone(spoils), _alone([])]))
    beneath, step_wait = env.venv, env.venv.step_wait

    def with_infinity() -> Any:
        observations, *rest = step_wait()
        if env.obs_rms.count > 10:  # type: ignore[union-attr]
            observations[0, 1] = math.inf
        return observations, *rest

    vars(beneath)["step_wait"] = with_infinity
    with screened(env):
        env.reset()
        for _ in range(10):
            env.step(np.zeros((2, 2)))
    assert np.isfinite(env.obs_rms.mean).all()  # type: ignore[union-attr]
    assert not {"update", "update_from_moments"} & vars(env.obs_rms).keys()


def _alone(spoils: list[tuple[int, str, float]]) -> Callable[[], gym.Env[Any, Any]]:
    def maker() -> gym.Env[Any, Any]:
        env = Spoiling(episode_length=100, termination=0.0)
        env.spoils = tuple(spoils)
        return env

    return maker


# Policies that know better


def test_a_policy_may_understand_what_is_no_number() -> None:
    missing = np.array([[math.nan, 0.5, 0.5]], dtype=np.float32)
    plain, reading = make_policy(), make_policy(features_extractor_class=Reading)
    assert is_understood(plain, np.ones((1, 3), dtype=np.float32))
    assert not is_understood(plain, missing)
    distribution = reading.action_dist
    assert is_understood(reading, missing)
    assert reading.action_dist is distribution
    assert all(parameter.grad is None for parameter in reading.parameters())


def test_what_a_policy_understands_is_not_replaced() -> None:
    env = spoiling((5, "observation", math.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (kept,) = collect(env, 1, policy_kwargs={"net_arch": [8], "features_extractor_class": Reading})
    assert not kept.rollout.faulty.any()
    assert np.argwhere(np.isnan(kept.buffer["observations"])).tolist() == [[6, 1, 0]]


def frozen_policy() -> ActorCriticPolicy:
    policy = make_policy(features_extractor_class=Reading)
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    return policy


def test_a_frozen_policy_can_be_asked_too() -> None:
    assert is_understood(frozen_policy(), np.full((1, 3), math.nan, dtype=np.float32))


# Updates without a step


class Counting:
    """What an algorithm counts."""

    n_invalid = n_invalid_in_a_row = 0


def test_the_user_is_told_in_time_and_a_training_that_cannot_learn_ends() -> None:
    model: Any = Counting()
    for n in range(1, STOP_AFTER):
        if n == MANY_INVALID:
            with pytest.warns(UserWarning, match=f"{MANY_INVALID} updates without a policy step in a row.*of rain"):
                refuse(model, "of rain", lasting=True)
        else:
            refuse(model, "of rain", lasting=True)
    with pytest.raises(UnusableDataError, match=f"{STOP_AFTER} updates in a row could not be used.*of rain"):
        refuse(model, "of rain", lasting=True)
    assert (model.n_invalid, model.n_invalid_in_a_row) == (STOP_AFTER, STOP_AFTER)
    accept(model)
    refuse(model, "of rain", lasting=True)
    assert (model.n_invalid, model.n_invalid_in_a_row) == (STOP_AFTER + 1, 1)


@pytest.mark.filterwarnings("ignore:3 updates")
def test_a_mere_lack_of_improvement_ends_nothing() -> None:
    model: Any = Counting()
    for _ in range(2 * STOP_AFTER):
        refuse(model, "nothing improves", lasting=False)
    assert_same(model.n_invalid, 2 * STOP_AFTER)


def test_half_precision_neither_overflows_nor_warns() -> None:
    """``np.seterr(all="raise")`` is how some look for NaN."""
    values = np.full((3, 4), 6e4, dtype=np.float16)
    with np.errstate(all="raise"):
        assert usable(values).tolist() == [True] * 3
        values[1, 2] = np.inf
        assert usable(values).tolist() == [True, False, True]


def test_half_precision_is_replaced_without_a_word() -> None:
    values = np.array([[np.inf], [1.0]], dtype=np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(values, np.array([True, False]), np.array([[3.0], [2.0]], dtype=np.float16))
    assert values.tolist() == [[3.0], [1.0]]

"""NaN, infinity and absurdly large numbers in what the environment returns."""

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.common.guard import STOP_AFTER, UnusableDataError
from sb3_trustregion.core.line_search import StepStatus
from tests.environments import toy_vec_env
from tests.faults.checks import assert_finite, score, statistics_of
from tests.faults.environments import BAD_VALUES, QUANTITIES, WRAPPERS, all_of_many, faulty, healthy, one_of_three
from tests.helpers import ALGORITHMS, UPDATE, actor_of, assert_same, differs, make_model, shared, state_of, train

pytestmark = pytest.mark.filterwarnings(
    "ignore:You have specified a mini-batch size",
    "ignore:.*updates without a policy step in a row",
    "ignore:.*left out of training",
)

N_STEPS = 24
WHERE = [*QUANTITIES, "first observation"]
# One step in five of the first rollout.
SOME_STEPS = range(3, 20, 5)
EVERY_STEP = range(100_000)


def warned(caught: list[warnings.WarningMessage]) -> list[str]:
    return [text for text in (str(one.message) for one in caught) if "left out of training" in text]


# Everything for one algorithm; what they share need not be gone through for each.
OTHERS = [algorithm for algorithm in ALGORITHMS if algorithm is not AdaptiveTRPO]
CASES = [
    *itertools.product([AdaptiveTRPO], ["plain"], ["reward"], BAD_VALUES),
    *itertools.product([AdaptiveTRPO], ["plain"], WHERE[1:], ["nan"]),
    *itertools.product([AdaptiveTRPO], ["normalized"], WHERE, ["huge"]),
    *itertools.product([AdaptiveTRPO], ["stacked"], WHERE, ["nan"]),
    *itertools.product([AdaptiveTRPO], ["stacked below", "plain of dict"], WHERE[1:3], ["inf"]),
    *itertools.product([AdaptiveTRPO], ["normalized of dict"], WHERE, ["minus_huge"]),
    *itertools.product(OTHERS, ["normalized"], WHERE[1:3], ["nan"]),
]


@pytest.mark.parametrize(("algorithm", "layout", "quantity", "value"), CASES)
def test_some_steps_of_one_environment(algorithm: type[Any], layout: str, quantity: str, value: str) -> None:
    steps = EVERY_STEP if quantity == "terminal observation" else SOME_STEPS
    kind, _, of_what = layout.partition(" of ")
    env = one_of_three(quantity, BAD_VALUES[value], steps, kind, as_dict=of_what == "dict")
    model = make_model(algorithm, env, "MultiInputPolicy" if of_what == "dict" else "MlpPolicy", n_steps=N_STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        updates = train(model, 3)

    assert_finite(model, largest=1e6)
    # The fault is one environment's in a few steps: all other steps are learned from, in every update.
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 3
    assert all(differs(actor_of(model, update.before), actor_of(model, update.after)) for update in updates)
    (warning,) = warned(caught)
    named = "observation" if quantity == "first observation" else quantity
    assert warning.startswith(f"the {named} was not finite, or above 1e+18, in environment(s) [1]")
    # A bad observation spoils two transitions, the one that led to it and the one that starts from it.
    in_stack = 2 if "stacked" in layout else 1
    expected = {
        "reward": len(SOME_STEPS),
        "observation": 2 * len(SOME_STEPS),
        "terminal observation": 3 * N_STEPS // 8,
        "first observation": 1,
    }[quantity]
    counts = [update.logged["train/n_faulty_steps"] for update in updates]
    assert expected <= counts[-1] <= in_stack * expected
    assert quantity == "terminal observation" or counts[0] == counts[-1]
    assert model.n_invalid == 0


@pytest.mark.parametrize(("algorithm", "value"), shared(["nan", "huge"]))
def test_statistics_go_on_with_the_sound_environments(algorithm: type[Any], value: str) -> None:
    """One environment that is broken for good: the others are normalised, and learned from, as ever."""
    env = one_of_three("observation", BAD_VALUES[value], EVERY_STEP, "normalized")
    model = make_model(algorithm, env, n_steps=N_STEPS)
    with pytest.warns(UserWarning, match=r"in environment\(s\) \[1\]"):
        train(model, 12)
    means, variances, count, *_ = statistics_of(model)
    assert count > 12 * N_STEPS
    np.testing.assert_allclose(means, 0.0, atol=0.1)
    np.testing.assert_allclose(variances, 1 / 3, rtol=0.2)  # of a uniform number in [-1, 1]
    assert model.n_faulty_steps == 12 * N_STEPS
    assert score(model) > -0.4


@pytest.mark.parametrize(
    ("algorithm", "quantity", "value", "wrapper"),
    shared([("reward", "nan", "normalized"), ("observation", "inf", "plain"), ("reward", "huge", "plain")]),
)
def test_training_recovers(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    """Two updates that nothing can be learned from, and then it is learned after all."""
    n_steps = 48
    env = all_of_many(quantity, BAD_VALUES[value], range(n_steps, 3 * n_steps), wrapper)
    model = make_model(algorithm, env, n_steps=n_steps)
    updates = train(model, 12)
    assert [update.status for update in updates[1:3]] == [StepStatus.INVALID] * 2
    assert_same(updates[2].after, updates[1].before)
    # An episode that ends takes its last observation with it: nothing of the fault's last step is left over.
    assert updates[-1].logged["train/n_faulty_steps"] == updates[3].logged["train/n_faulty_steps"]
    assert updates[-1].logged["train/n_invalid"] == 2
    assert model.n_invalid_in_a_row == 0
    assert_finite(model)
    assert score(model) > -0.3


@pytest.mark.parametrize(("algorithm", "reward"), [(AdaptiveTRPO, 0.0), (PenaltyPPO, 1.0)])
def test_training_recovers_from_constant_rewards(algorithm: type[Any], reward: float) -> None:
    """Updates of the critic's errors alone, and then it is learned after all."""
    n_steps, n_envs = 16, 16
    env = all_of_many("reward", reward, range(12 * n_steps), n_envs=n_envs)
    model = make_model(algorithm, env, n_steps=n_steps, batch_size=64)
    train(model, 12)
    assert_finite(model, largest=1e6)
    assert model.n_faulty_steps == 0
    model.learn(20 * n_steps * n_envs, reset_num_timesteps=False)
    assert score(model) > -0.3
    assert_finite(model, largest=1e6)


@pytest.mark.parametrize("algorithm", [AdaptivePPO, AdaptiveTRPO])
def test_training_recovers_from_many_zero_rewards(algorithm: type[Any]) -> None:
    """Five times as long."""
    n_steps, n_envs = 8, 16
    env = all_of_many("reward", 0.0, range(60 * n_steps), n_envs=n_envs)
    model = make_model(algorithm, env, n_steps=n_steps, batch_size=64)
    model.learn(90 * n_steps * n_envs)
    assert score(model) > -0.4


@pytest.mark.parametrize(
    ("algorithm", "quantity", "value", "wrapper"),
    shared([("observation", "minus_inf", "normalized"), ("reward", "nan", "plain")]),
)
def test_nothing_usable_for_good(tmp_path: Path, algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    """An error that names the cause; the last good policy is in place and can be saved."""
    good = 4
    env = all_of_many(quantity, BAD_VALUES[value], range(good * N_STEPS, 100_000), wrapper, length=None)
    model = make_model(algorithm, env, n_steps=N_STEPS)
    train(model, good)
    # The environments go on where they are, so that there is no first observation, which would be sound.
    before, statistics = state_of(model.policy), statistics_of(model)
    radius = model.region.radius if hasattr(model, "region") else None
    text = rf"{STOP_AFTER} updates in a row could not be used, the last because the {quantity} was not finite.*\[0, 1\]"
    with pytest.raises(UnusableDataError, match=text):
        train(model, 2 * STOP_AFTER, reset_num_timesteps=False)

    assert model.n_invalid == STOP_AFTER
    assert_same(state_of(model.policy), before)
    assert_same(statistics_of(model), statistics)
    if radius is not None:
        assert model.region.radius == radius
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=WRAPPERS[wrapper](DummyVecEnv([healthy()] * 2)), device="cpu")
    assert_same(state_of(again.policy), before)
    assert train(again, 2)[-1].status is StepStatus.ACCEPTED
    assert again.n_invalid_in_a_row == 0


@pytest.mark.parametrize(
    ("algorithm", "sub_sampling_factor"), [(AdaptiveTRPO, 1), (AdaptiveTRPO, 12), (AdaptivePPO, 1), (PenaltyPPO, 1)]
)
def test_a_batch_reduced_to_few_samples(algorithm: type[Any], sub_sampling_factor: int) -> None:
    """All but a few steps are faulty: whatever is left, no number leaves the finite ones."""
    for n_left in (0, 1, 2, 5):
        kwargs = {} if algorithm in (AdaptivePPO, PenaltyPPO) else {"sub_sampling_factor": sub_sampling_factor}
        makers = [faulty("reward", math.nan, range(N_STEPS - n_left)), faulty("reward", math.nan, range(N_STEPS))]
        model = make_model(algorithm, DummyVecEnv(makers), n_steps=N_STEPS, **kwargs)
        with pytest.warns(UserWarning, match="left out of training"):
            updates = train(model, 2)
        assert updates[0].logged["train/n_faulty_steps"] == 2 * N_STEPS - n_left
        if n_left == 0:
            assert updates[0].status is StepStatus.INVALID
            assert_same(updates[0].after, updates[0].before)
        assert updates[1].status is StepStatus.ACCEPTED
        assert_finite(model)


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_a_fault_does_not_outlive_its_environment(algorithm: type[Any]) -> None:
    """The next environment, and the next ``learn``, start with a clean sheet."""
    env = one_of_three("observation", math.nan, range(N_STEPS - 1, N_STEPS), length=None)
    model = make_model(algorithm, env, n_steps=N_STEPS)
    with pytest.warns(UserWarning, match="left out of training"):
        train(model, 1)
    assert model.n_faulty_steps == 1
    train(model, 1)  # resets the environments: the bad observation is of an episode that is over
    assert model.n_faulty_steps == 1
    model.set_env(one_of_three("reward", math.inf, range(1)))
    with pytest.warns(UserWarning, match="the reward was not finite"):
        train(model, 1, reset_num_timesteps=False)
    assert model.n_faulty_steps == 2


@pytest.mark.parametrize(("algorithm", "improvement_estimator"), shared(["rollout", "episodes"], others=(AdaptivePPO,)))
def test_a_bad_reward_is_no_collapse(algorithm: type[Any], improvement_estimator: str) -> None:
    """-1e30 in a few steps is no evidence against the policy."""
    env = one_of_three("reward", -1e30, range(2 * N_STEPS, 2 * N_STEPS + 6))
    model = make_model(algorithm, env, n_steps=N_STEPS, improvement_estimator=improvement_estimator)
    updates = train(model, 4)
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 4
    assert model.region.n_rollbacks == 0
    assert math.isfinite(updates[2].logged["train/actual_improvement"])
    assert_finite(model)


class ReadOnly(VecEnvWrapper):
    """Hands out what is not to be written to, as arrays over JAX's; now and then a number of it is none."""

    def __init__(self, rewards_in_a_list: bool) -> None:
        super().__init__(toy_vec_env(2))
        self.rewards_in_a_list, self.n_steps = rewards_in_a_list, 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.n_steps += 1
        observations, rewards, dones, infos = self.venv.step_wait()
        if self.n_steps % 7 == 0:
            observations[0], rewards[1] = np.nan, np.nan
        observations.setflags(write=False)
        rewards.setflags(write=False)
        return observations, rewards.tolist() if self.rewards_in_a_list else rewards, dones, infos


@pytest.mark.parametrize("rewards_in_a_list", [False, True])
def test_bad_numbers_in_read_only_arrays(rewards_in_a_list: bool) -> None:
    model = make_model(AdaptiveTRPO, VecNormalize(ReadOnly(rewards_in_a_list)))
    train(model)
    assert model.n_faulty_steps >= 2 * (3 * UPDATE // 2 // 7) - 1
    assert_finite(model, largest=1e6)


def test_what_cannot_be_replaced_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="writable observations"):
        train(make_model(AdaptiveTRPO, ReadOnly(rewards_in_a_list=False)))

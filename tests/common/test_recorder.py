"""What is read is what the buffer holds, with what the buffer lacks beside it, and nobody else is asked."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.common.learning_data import as_advantages_say
from sb3_trustregion.common.recorder import reward_scale
from tests.common.collecting import ARRAYS, Kept, Witness, by_env, collect, copied, keeping, witnessed
from tests.environments import IMAGE, VECTOR, toy_vec_env
from tests.helpers import N_ENVS, N_STEPS, UPDATE, assert_same, make_model

DICT = spaces.Dict({"vector": VECTOR, "discrete": spaces.Discrete(4)})
BUFFER_TO_ROLLOUT = ("observations", "actions", "values", "log_probs")

Wrap = Callable[[VecEnv], VecEnv]


def bare(env: VecEnv) -> VecEnv:
    return env


def normalised(env: VecEnv) -> VecEnv:
    return VecNormalize(
        env, clip_reward=1e6, norm_obs_keys=["vector"] if isinstance(env.observation_space, spaces.Dict) else None
    )


def stacked(env: VecEnv) -> VecEnv:
    return VecFrameStack(env, 3)


def stacked_over_normalised(env: VecEnv) -> VecEnv:
    return stacked(normalised(env))


def check_against_buffer(kept: Kept) -> None:
    rollout, batch, held = kept
    for name in BUFFER_TO_ROLLOUT:
        assert_same(getattr(rollout, name), held[name])
    for name in ("advantages", "returns"):
        assert_same(getattr(batch, name), th.as_tensor(by_env(held[name])))
    assert_same(rollout.dones[:-1], held["episode_starts"][1:].astype(bool))
    bootstrapped = np.isin(np.arange(UPDATE), rollout.truncated).reshape(rollout.shape)
    np.testing.assert_allclose(rollout.rewards[~bootstrapped], held["rewards"][~bootstrapped], rtol=1e-7)
    assert rollout.is_recorded
    assert not rollout.faulty.any()


def check_against_witnesses(kept: list[Kept], witnesses: list[Witness]) -> int:
    """Rewards, ends and truncations of the bare environments; the number of truncations."""
    n_truncated = 0
    for i, (rollout, _, _) in enumerate(kept):
        window = slice(i * N_STEPS, (i + 1) * N_STEPS)
        rewards = np.stack([witness.rewards[window] for witness in witnesses], axis=1)
        np.testing.assert_allclose(rollout.rewards * rollout.scales[:, None], rewards, rtol=1e-4, atol=1e-4)
        assert_same(rollout.dones, np.stack([witness.dones[window] for witness in witnesses], axis=1))
        ends = [witness.truncated_at[window] for witness in witnesses]
        expected = [t * N_ENVS + n for t in range(N_STEPS) for n in range(N_ENVS) if ends[n][t] is not None]
        assert rollout.truncated.tolist() == expected
        n_truncated += len(expected)
    return n_truncated


@pytest.mark.parametrize(
    ("space", "wrap"),
    [
        *((VECTOR, wrap) for wrap in (bare, normalised, stacked, stacked_over_normalised)),
        *((DICT, wrap) for wrap in (bare, normalised)),
        *((IMAGE, wrap) for wrap in (bare, stacked)),
        (spaces.Discrete(4), bare),
        (spaces.Dict({"vector": VECTOR}), stacked_over_normalised),
    ],
)
def test_what_is_read_is_what_the_buffer_holds(space: spaces.Space[Any], wrap: Wrap) -> None:
    env, witnesses = witnessed(space)
    kept = collect(wrap(env))
    for one in kept:
        check_against_buffer(one)
    assert check_against_witnesses(kept, witnesses) > 3


def test_terminal_observations_are_those_before_the_reset() -> None:
    """Of the bare environment as they are; through a wrapper as the policy would have seen them."""
    env, witnesses = witnessed()
    kept = collect(env, n_rollouts=1)
    rollout = kept[0].rollout
    ends = [witnesses[index % N_ENVS].truncated_at[index // N_ENVS] for index in rollout.truncated]
    assert_same(rollout.terminal_observations, np.stack(ends))
    last = np.stack([witness.current for witness in witnesses])
    assert_same(rollout.last_observations, last)

    env, witnesses = witnessed()
    rollout = collect(stacked(env), n_rollouts=1)[0].rollout
    ends = [witnesses[index % N_ENVS].truncated_at[index // N_ENVS] for index in rollout.truncated]
    assert isinstance(rollout.terminal_observations, np.ndarray)
    assert_same(rollout.terminal_observations[:, 6:], np.stack(ends))
    before = np.stack([witnesses[index % N_ENVS].seen[index // N_ENVS] for index in rollout.truncated])
    assert_same(rollout.terminal_observations[:, 3:6], before)


def test_values_of_ends_are_of_the_critic_that_acted() -> None:
    """SB3 adds γ·V(end) to a truncated reward: what is taken off again is exactly that."""
    model = keeping(witnessed()[0], gamma=0.5)
    model.learn(UPDATE)
    (kept,) = model.kept
    rollout = kept.rollout
    assert rollout.gamma == 0.5
    policy = model.policy
    with th.no_grad():
        at_ends = policy.predict_values(policy.obs_to_tensor(rollout.terminal_observations)[0]).flatten().numpy()
        last = policy.predict_values(policy.obs_to_tensor(rollout.last_observations)[0]).flatten().numpy()
    assert np.abs(at_ends).min() > 0.0
    assert_same(rollout.terminal_values, at_ends)
    assert_same(rollout.last_values, last)
    added = (kept.buffer["rewards"] - rollout.rewards).ravel()[rollout.truncated]
    np.testing.assert_allclose(added, 0.5 * at_ends, rtol=1e-6)


def test_the_rewards_scale_is_that_of_each_step() -> None:
    scales: list[float] = []

    class Spy(VecNormalize):
        def normalize_reward(self, reward: Any) -> Any:
            scales.append(float(np.sqrt(self.ret_rms.var + self.epsilon)))
            return super().normalize_reward(reward)

    kept = collect(Spy(witnessed()[0]))
    assert_same(np.concatenate([one.rollout.scales for one in kept]), np.array(scales))
    assert scales[-1] > 2.0 * scales[5]


def test_without_normalised_rewards_their_scale_is_one() -> None:
    for env in (witnessed()[0], VecNormalize(witnessed()[0], norm_reward=False)):
        assert_same(collect(env, n_rollouts=1)[0].rollout.scales, np.ones(N_STEPS))
    assert reward_scale(None, np.ones(N_ENVS)) == 1.0


def test_episodes_are_those_of_the_monitor() -> None:
    env, witnesses = witnessed()
    kept = collect(VecNormalize(env))
    returns, lengths = [], []
    for witness in witnesses:
        ends = np.flatnonzero(witness.dones) + 1
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            returns.append(sum(witness.rewards[start:end]))
            lengths.append(end - start)
    found = np.concatenate([one.rollout.episode_returns for one in kept])
    np.testing.assert_allclose(sorted(found), sorted(returns), atol=1e-3)
    assert sorted(np.concatenate([one.rollout.episode_lengths for one in kept])) == sorted(lengths)


def test_it_is_told_whether_all_episodes_begin_with_a_rollout() -> None:
    first, second = collect(toy_vec_env(termination=0.0, episode_length=1000))
    assert (first.rollout.starts_fresh, second.rollout.starts_fresh) == (True, False)


# Users' own buffers and callbacks


class Shaping(RolloutBuffer):
    """Pays something else, and advantages are something else again."""

    def add(self, obs: Any, action: Any, reward: Any, *args: Any, **kwargs: Any) -> None:
        super().add(obs, action, np.asarray(reward) + 7.0, *args, **kwargs)

    def compute_returns_and_advantage(self, last_values: Any, dones: Any) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages = np.tanh(self.advantages)
        self.returns = self.returns + 1.0


def test_a_buffer_of_the_users_own_is_read_as_it_is() -> None:
    env, witnesses = witnessed()
    (kept,) = collect(env, n_rollouts=1, rollout_buffer_class=Shaping)
    check_against_buffer(kept)
    rewards = np.stack([witness.rewards for witness in witnesses], axis=1)
    np.testing.assert_allclose(kept.rollout.rewards, rewards + 7.0, rtol=1e-5)
    assert float(kept.batch.advantages.abs().max()) <= 1.0


def with_bonus(advantages: Any) -> Any:
    return 1e-3 * advantages + 3e-3 * np.random.default_rng(0).standard_normal(np.shape(advantages))


@pytest.mark.parametrize("change", [lambda a: a, lambda a: a + 5.0, lambda a: 1e-3 * a, with_bonus, np.ones_like])
def test_steps_are_judged_by_what_advantages_say(change: Callable[[Any], Any]) -> None:
    """Scaled ones have a unit of their own; where they say something else it is they that count."""
    model = keeping(witnessed()[0])
    model.learn(UPDATE)
    rollout, buffer = model.kept[0].rollout, model.rollout_buffer
    buffer.advantages = change(buffer.advantages)
    judged = as_advantages_say(rollout, buffer)
    if change in (with_bonus, np.ones_like):
        assert judged.unit == pytest.approx(1e3 if change is with_bonus else 1.0, rel=0.5)
        np.testing.assert_allclose(judged.own_residuals(1.0), judged.unit * buffer.advantages, rtol=1e-5, atol=1e-5)
    else:
        assert judged.rewards is rollout.rewards
        assert judged.unit == pytest.approx(1.0 / (change(1.0) - change(0.0)), rel=1e-3)


class Bonus(BaseCallback):
    """Pays more, into the local variables of ``collect_rollouts``."""

    def _on_step(self) -> bool:
        self.locals["rewards"] += 7.0
        return True


class Rewrite(BaseCallback):
    """Writes into the full buffer."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.rewards += 7.0
        buffer.advantages[:] = 1.0
        buffer.returns[:] = 2.0


class Look(BaseCallback):
    """Takes a look at the samples, which flattens the buffer."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        next(iter(self.model.rollout_buffer.get(8)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("callback", [Bonus, Rewrite])
def test_what_a_callback_has_written_is_what_is_read(callback: type[BaseCallback]) -> None:
    env, witnesses = witnessed()
    kept = collect(env, callback=callback())
    for one in kept:
        check_against_buffer(one)
    rewards = np.stack([witness.rewards for witness in witnesses], axis=1)
    read = np.concatenate([one.rollout.rewards for one in kept])
    np.testing.assert_allclose(read, rewards + 7.0, rtol=1e-4, atol=1e-4)
    if callback is Rewrite:
        assert all(bool((one.batch.advantages == 1.0).all() and (one.batch.returns == 2.0).all()) for one in kept)


@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["vector", "dict"])
def test_a_buffer_that_get_has_flattened_is_read_the_same(space: spaces.Space[Any]) -> None:
    plain, looked = (collect(witnessed(space)[0], n_rollouts=1, callback=callback)[0] for callback in (None, Look()))
    assert looked.buffer["values"].shape == (UPDATE, 1)
    assert_same(looked.rollout._asdict(), plain.rollout._asdict())
    assert_same(looked.batch._asdict(), plain.batch._asdict())


# A rollout without a record


def test_a_record_is_of_one_rollout() -> None:
    """Asked again, or of a buffer that the user's own loop has filled, it has nothing to judge by."""
    model = keeping(witnessed()[0])
    model.learn(UPDATE)
    model.train()
    first, again = (one.rollout for one in model.kept)
    assert first.is_recorded
    assert not again.is_recorded
    assert len(first.truncated) > 0
    assert (len(again.truncated), again.terminal_observations, again.faulty.any()) == (0, None, False)


def test_an_aborted_rollout_leaves_nothing_behind() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 7

    env, witnesses = witnessed()
    model = keeping(env)
    model.learn(UPDATE, callback=Stop())
    model.kept.clear()
    model.learn(UPDATE)
    for witness in witnesses:
        del witness.rewards[:7], witness.dones[:7], witness.truncated_at[:7]
    assert len(model.kept) == 1
    check_against_witnesses(model.kept, witnesses)


# The environment is left alone


class Spy(VecEnvWrapper):
    """Counts every call."""

    def __init__(self, venv: VecEnv) -> None:
        self.calls: Counter[str] = Counter()
        super().__init__(venv)

    def reset(self) -> Any:
        self.calls["reset"] += 1
        return self.venv.reset()

    def step_async(self, actions: Any) -> None:
        self.calls["step_async"] += 1
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        self.calls["step_wait"] += 1
        return self.venv.step_wait()

    def seed(self, seed: int | None = None) -> Any:
        self.calls["seed"] += 1
        return self.venv.seed(seed)

    def set_options(self, options: Any = None) -> None:
        self.calls["set_options"] += 1
        self.venv.set_options(options)

    def get_images(self) -> Any:
        self.calls["get_images"] += 1
        return self.venv.get_images()

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        self.calls[f"get_attr {attr_name}"] += 1
        return self.venv.get_attr(attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        self.calls[f"set_attr {attr_name}"] += 1
        self.venv.set_attr(attr_name, value, indices)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        self.calls[f"env_method {method_name}"] += 1
        return self.venv.env_method(method_name, *args, indices=indices, **kwargs)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        self.calls[f"env_is_wrapped {wrapper_class.__name__}"] += 1
        return self.venv.env_is_wrapped(wrapper_class, indices)


def calls_of(algorithm: type[Any], normalise: bool) -> tuple[Counter[str], Counter[str]]:
    """All calls of two trainings, above and beneath ``VecNormalize``."""
    beneath = Spy(toy_vec_env())
    above = Spy(VecNormalize(beneath) if normalise else beneath)
    model = make_model(algorithm, above)
    model.learn(2 * UPDATE)
    model.learn(UPDATE, reset_num_timesteps=False)
    return above.calls, beneath.calls


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO, AdaptivePPO])
def test_no_call_is_made_that_stock_does_not_make(algorithm: type[Any], normalise: bool) -> None:
    stock, ours = calls_of(PPO, normalise), calls_of(algorithm, normalise)
    assert stock[0]["step_wait"] == 3 * N_STEPS
    assert ours == stock


def test_collecting_draws_no_random_number_and_changes_nothing() -> None:
    """The rollouts of a policy that stays are stock PPO's, bit for bit."""

    class Idle(PPO):
        def train(self) -> None:
            self.kept.append({name: copied(getattr(self.rollout_buffer, name)) for name in ARRAYS})

    stock = make_model(Idle, VecNormalize(witnessed()[0]))
    stock.kept = []
    stock.learn(2 * UPDATE)
    ours = keeping(VecNormalize(witnessed()[0]))
    ours.policy.load_state_dict(make_model(PPO, witnessed()[0]).policy.state_dict())
    ours.learn(2 * UPDATE)
    for one, other in zip(ours.kept, stock.kept, strict=True):
        assert_same(one.buffer, other)

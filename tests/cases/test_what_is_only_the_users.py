"""What the user's modules, buffers, callbacks and schedules do is theirs, as with stock."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from tests.environments import toy_vec_env
from tests.helpers import ALGORITHMS, MEASURING, UPDATE, make_model, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
BOX = spaces.Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_a_head_that_the_optimizer_does_not_know_can_be_saved(tmp_path: Any, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.policy.value_net = th.nn.Linear(model.policy.mlp_extractor.latent_dim_vf, 1)
    train(model, 2)
    model.save(tmp_path / "model")


class Filled(BaseCallback):
    """The rewards that the environment left out."""

    def _on_step(self) -> bool:
        self.locals["rewards"][:] = 1.0
        return True


class WithoutReward(VecEnvWrapper):
    """A task without rewards."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, np.full_like(rewards, np.nan), dones, infos


@each_algorithm
def test_rewards_that_a_callback_fills_in_are_no_fault(algorithm: type[Any]) -> None:
    model = make_model(algorithm, WithoutReward(toy_vec_env(observation_space=BOX)))
    model.learn(2 * UPDATE, callback=Filled())
    assert model.n_faulty_steps == 0
    assert np.median(model.rollout_buffer.rewards) == 1.0  # but for the ends, which have a value added


class Standardised(RolloutBuffer):
    """Advantages without a unit."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages = (self.advantages - self.advantages.mean()) / self.advantages.std()


@pytest.mark.parametrize("algorithm", MEASURING)
def test_a_promise_is_in_the_unit_of_the_rewards(algorithm: type[Any]) -> None:
    """Whatever unit the user's advantages are in."""
    promises = []
    for buffer in (RolloutBuffer, Standardised):
        model = make_model(algorithm, toy_vec_env(observation_space=BOX), rollout_buffer_class=buffer, n_steps=64)
        train(model, 1)
        assert model.judge.pending is not None
        promises.append(model.judge.pending.promise.linear_gain)
    assert promises[0] == pytest.approx(promises[1], rel=0.2 if algorithm is AdaptiveTRPO else 0.5)


class Frozen(VecEnvWrapper):
    """Ends the statistics from inside a step."""

    n_steps = 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.n_steps += 1
        if self.n_steps == 10:
            assert isinstance(self.venv, VecNormalize)
            self.venv.training = False
        return self.venv.step_wait()


@each_algorithm
def test_statistics_frozen_in_a_step_stay_frozen(algorithm: type[Any]) -> None:
    normalizer = VecNormalize(toy_vec_env(observation_space=BOX))
    train(make_model(algorithm, Frozen(normalizer)), 2)
    assert not normalizer.training
    assert normalizer.obs_rms.count < 12 * normalizer.num_envs


class Marked(VecEnvWrapper):
    """Looks for the environment beneath the normaliser."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        assert isinstance(self.venv, VecNormalize)
        inner: VecEnv = self.venv.venv
        assert isinstance(inner, DummyVecEnv)
        inner.level = 3  # type: ignore[attr-defined]
        return self.venv.step_wait()


@each_algorithm
def test_who_looks_beneath_the_normalizer_meets_the_users_environment(algorithm: type[Any]) -> None:
    env = toy_vec_env(observation_space=BOX)
    train(make_model(algorithm, Marked(VecNormalize(env))), 2)
    assert env.level == 3  # type: ignore[attr-defined]
    assert not {"reset", "step_wait"} & vars(env).keys()


class Mirrored(RolloutBuffer):
    """Each sample twice."""

    def __init__(self, *args: Any, n_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, n_envs=2 * n_envs, **kwargs)

    def add(self, *args: Any) -> None:
        obs, action, reward, episode_start, value, log_prob = args
        twice = [np.concatenate([part, part]) for part in (obs, action, reward, episode_start)]
        super().add(*twice, th.cat([value, value]), th.cat([log_prob, log_prob]))

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        super().compute_returns_and_advantage(th.cat([last_values, last_values]), np.concatenate([dones, dones]))


@each_algorithm
def test_more_samples_than_steps_are_learned_from(algorithm: type[Any]) -> None:
    model = make_model(algorithm, toy_vec_env(observation_space=BOX), rollout_buffer_class=Mirrored)
    train(model, 3)
    assert getattr(model, "region", None) is None or model.region.n_judged == 0


class TwiceAsLarge(RolloutBuffer):
    """Writes in place when it is first asked."""

    def get(self, batch_size: int | None = None) -> Any:
        assert isinstance(batch_size, int)
        if not self.generator_ready:
            self.returns *= 2.0
        yield from super().get(batch_size)


def test_what_a_buffer_writes_in_place_is_written_once() -> None:
    model = make_model(AdaptivePPO, toy_vec_env(observation_space=BOX), rollout_buffer_class=TwiceAsLarge)
    model.learn(UPDATE)
    buffer = model.rollout_buffer
    ours = buffer.returns.flatten() / (buffer.advantages + buffer.values).flatten()
    assert np.median(ours) == pytest.approx(2.0, rel=1e-4)


def test_a_schedule_that_counts_is_asked_as_often_as_by_stock() -> None:
    asked = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 0.2 * 0.99 ** len(asked)

    model = make_model(AdaptivePPO, toy_vec_env(observation_space=BOX), clip_range=schedule)
    train(model, 6)
    assert len(asked) <= 6 + 3
    assert model.region.weight > 3.0


class CopiesTheEnvironment(BaseCallback):
    def _init_callback(self) -> None:
        self.copy = copy.deepcopy(self.training_env.venv)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


@each_algorithm
def test_a_copy_of_the_environment_is_the_users_own(algorithm: type[Any]) -> None:
    """For evaluation, taken where callbacks set themselves up."""
    callback = CopiesTheEnvironment()
    model = make_model(algorithm, VecNormalize(toy_vec_env(observation_space=BOX)))
    model.learn(UPDATE, callback=callback)
    model._init_callback(None)  # once more, as some do
    assert {"reset", "step_wait"}.isdisjoint(vars(model.get_env().venv))
    assert {"reset", "step_wait"}.isdisjoint(vars(callback.copy))


def test_no_mini_batch_is_truncated_where_there_is_but_one(recwarn: pytest.WarningsRecorder) -> None:
    model = make_model(AdaptiveTRPO, n_steps=30, batch_size=512)
    train(model, 1)
    model.save(file := io.BytesIO())
    AdaptiveTRPO.load(file, device="cpu")
    assert not [warning for warning in recwarn if "truncated mini-batch" in str(warning.message)]

"""Buffers that hand out samples in a way of their own, perhaps others each time: each epoch asks them, as in stock."""

import functools
import inspect
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env

from sb3_trustregion import PenaltyPPO
from sb3_trustregion.common.learning_data import is_stock
from tests.helpers import ALGORITHMS, PlainBuffer, make_model, state_of


class Augmenting(RolloutBuffer):
    """Sees each observation a little differently each time."""

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(observations=samples.observations + 0.01 * th.randn_like(samples.observations))


class HalfAtATime(RolloutBuffer):
    """Hands out one half of the samples, and the other one when it is asked again."""

    n_calls = 0

    def get(self, batch_size: int | None = None) -> Any:
        list(super().get())
        self.n_calls += 1
        half = np.arange(self.n_calls % 2, self.buffer_size * self.n_envs, 2)
        for start in range(0, len(half), batch_size or len(half)):
            yield self._get_samples(half[start : start + (batch_size or len(half))])


@pytest.mark.parametrize(
    ("algorithm", "kind", "least"),
    [(algorithm, kind, n) for algorithm in ALGORITHMS for kind, n in ((Augmenting, 3 * 256), (HalfAtATime, 256))],
)
def test_a_buffer_is_asked_at_each_epoch(algorithm: type[Any], kind: type[RolloutBuffer], least: int) -> None:
    """Of 256 samples stock's four epochs see 1,024 augmented ones, and both halves."""
    epochs = {"n_critic_updates": 4} if "n_critic_updates" in inspect.signature(algorithm).parameters else {}
    env, seen = make_vec_env("Pendulum-v1"), set()
    model = make_model(algorithm, env, n_steps=256, batch_size=64, rollout_buffer_class=kind, **epochs)
    asked = "predict_values" if epochs else "evaluate_actions"
    method, train_once = getattr(model.policy, asked), model.train

    def spying(observations: th.Tensor, *rest: Any) -> Any:
        seen.update(map(tuple, observations.tolist()))
        return method(observations, *rest)

    def spied_train() -> None:
        setattr(model.policy, asked, spying)
        train_once()
        delattr(model.policy, asked)

    model.train = spied_train
    model.learn(256)
    assert len(seen) >= least


def test_the_penalty_is_by_the_policy_before_the_update() -> None:
    """Asked at each epoch or once: but for rounding the same, whose KL counts for much."""
    asked, once = (
        make_model(PenaltyPPO, make_vec_env("Pendulum-v1", seed=0), n_steps=128, kl_coef=100.0, **kwargs).learn(256)
        for kwargs in ({"rollout_buffer_class": PlainBuffer}, {})
    )
    for name, value in state_of(once.policy).items():
        th.testing.assert_close(state_of(asked.policy)[name], value, rtol=1e-3, atol=1e-4)
    assert asked.penalty == once.penalty


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_patched_class_is_the_users(algorithm: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it was patched: nothing is remembered of what SB3's was at first."""
    stock, n_calls = RolloutBuffer.get, []

    @functools.wraps(stock)
    def get(self: RolloutBuffer, batch_size: int | None = None) -> Any:
        n_calls.append(batch_size)
        return stock(self, batch_size)

    monkeypatch.setattr(RolloutBuffer, "get", get)
    assert not is_stock(RolloutBuffer.get)
    assert is_stock(stock)
    make_model(algorithm).learn(1)
    assert n_calls

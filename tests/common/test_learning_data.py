"""What is learned from is what the buffer holds: in the order of time, and as a batch."""

import copy
import math
from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_trustregion.common.learning_data import (
    FLATTENED,
    Rollout,
    flatten_time,
    handed_out,
    in_time,
    make_batch,
    replace_faulty_samples,
)
from sb3_trustregion.core.improvement import alternating_signs, block_ids
from tests.common.collecting import by_env, copied
from tests.common.rollouts import GAMMA, make_policy, make_rollout
from tests.environments import VECTOR
from tests.helpers import assert_same

T, N = 12, 3
DICT = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(4)})
BOX, DISCRETE = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)

Array = npt.NDArray[Any]
plain_and_dict = pytest.mark.parametrize("space", [VECTOR, DICT], ids=["vector", "dict"])


def make_buffer(
    space: spaces.Space[Any] = VECTOR, actions: spaces.Space[Any] = BOX, kind: type[RolloutBuffer] | None = None
) -> RolloutBuffer:
    """A full buffer, filled as ``collect_rollouts`` fills it, whose every entry is another number."""
    kind = kind or (DictRolloutBuffer if isinstance(space, spaces.Dict) else RolloutBuffer)
    th.manual_seed(0)
    buffer, rng = kind(T, space, actions, "cpu", 0.9, GAMMA, N), np.random.default_rng(0)
    for _ in range(T):
        observation: Any = rng.standard_normal((N, 3)).astype(np.float32)
        if isinstance(space, spaces.Dict):
            observation = {"a": observation, "b": rng.integers(4, size=N)}
        action = rng.integers(3, size=(N, 1)) if actions is DISCRETE else rng.standard_normal((N, 2))
        rewards, starts = rng.standard_normal(N), rng.random(N) < 0.2
        buffer.add(observation, action, rewards, starts, th.randn(N), th.randn(N))  # type: ignore[arg-type]
    buffer.compute_returns_and_advantage(last_values=th.randn(N), dones=rng.random(N) < 0.2)
    return buffer


def state_of(buffer: RolloutBuffer) -> dict[str, Any]:
    return copy.deepcopy({name: value for name, value in vars(buffer).items() if not isinstance(value, spaces.Space)})


def no_faults() -> Array:
    return np.zeros((T, N), dtype=bool)


# Residuals


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_residuals_step_by_step(scale: float) -> None:
    policy = make_policy()
    rollout = make_rollout(policy, ends=0.3, scale=2.0)
    rollout.dones[-1, 0] = True
    rollout.faulty[3, 1] = True
    n_steps, n_envs = rollout.shape
    ends = dict(zip(rollout.truncated.tolist(), rollout.terminal_values, strict=True))
    residuals, seen = rollout.own_residuals(scale), set()
    for t in range(n_steps):
        for env in range(n_envs):
            if t * n_envs + env in ends:
                following, kind = ends[t * n_envs + env], "truncated"
            elif rollout.dones[t, env]:
                following, kind = 0.0, "terminated"
            elif t + 1 < n_steps:
                following, kind = rollout.values[t + 1, env], "inside"
            else:
                following, kind = rollout.last_values[env], "cut"
            seen.add(kind)
            expected = rollout.rewards[t, env] * 2.0 / scale + GAMMA * following - rollout.values[t, env]
            if rollout.faulty[t, env]:
                assert math.isnan(residuals[t, env])
            else:
                assert residuals[t, env] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert seen == {"truncated", "terminated", "inside", "cut"}


def constant(value: float, rollout: Rollout) -> Array:
    """Residuals by a critic that sees the same everywhere."""
    values = [np.full(shape, value) for shape in (rollout.shape, rollout.shape[1], len(rollout.truncated))]
    return rollout.residuals(*values, scale=1.0)


def test_a_truncation_is_neither_a_fall_nor_a_bonus_and_a_termination_is_a_fall() -> None:
    rollout = make_rollout(make_policy(), ends=0.3)._replace(rewards=np.ones((128, 2)))
    truncated = np.isin(np.arange(256).reshape(128, 2), rollout.truncated)
    fell = rollout.dones & ~truncated
    assert 10 < truncated.sum() < rollout.dones.sum() - 10
    residuals = constant(5.0, rollout)
    np.testing.assert_allclose(residuals[~fell], 1.0 + (GAMMA - 1.0) * 5.0)
    np.testing.assert_allclose(residuals[fell], 1.0 - 5.0)


def test_time_is_flattened_with_environments_together() -> None:
    observations = np.arange(12).reshape(3, 2, 2)
    flat = flatten_time(observations)
    assert isinstance(flat, np.ndarray)
    assert flat[1 * 2 + 1].tolist() == observations[1, 1].tolist()
    as_dict = flatten_time({"a": observations, "b": observations[..., 0]})
    assert isinstance(as_dict, dict)
    assert np.array_equal(as_dict["a"], flat)
    assert as_dict["b"].shape == (6,)


# The order of time


@plain_and_dict
def test_the_order_of_time_survives_a_get(space: spaces.Space[Any]) -> None:
    buffer = make_buffer(space)
    before = {name: copied(in_time(buffer, name)) for name in (*FLATTENED, "rewards", "episode_starts")}
    assert_same(before["observations"], buffer.observations)
    next(iter(buffer.get(batch_size=4)))
    assert buffer.observations is not before["observations"]
    for name, value in before.items():
        assert_same(in_time(buffer, name), value)


# The batch


@pytest.mark.parametrize("flattened", [False, True])
@plain_and_dict
def test_a_batch_is_what_the_buffer_holds_environment_by_environment(space: spaces.Space[Any], flattened: bool) -> None:
    buffer = make_buffer(space)
    held = {name: copied(getattr(buffer, name)) for name in FLATTENED}
    if flattened:
        next(iter(buffer.get()))
    before, random_state = state_of(buffer), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    batch = make_batch(buffer, no_faults())
    # Nothing of it is changed, and no random number is spent.
    assert_same(state_of(buffer), before)
    assert_same(np.random.get_state()[1], random_state)  # noqa: NPY002

    assert batch.n_samples == T * N
    for name in ("actions", "advantages", "returns"):
        assert_same(getattr(batch, name), th.as_tensor(by_env(held[name])))
    if isinstance(batch.observations, dict):
        assert batch.observations.keys() == held["observations"].keys()
        for key, value in batch.observations.items():
            assert_same(value, th.as_tensor(by_env(held["observations"][key])))
    else:
        assert_same(batch.observations, th.as_tensor(by_env(held["observations"])))
    assert_same(batch.signs, th.as_tensor(by_env(alternating_signs(T, N))))
    assert_same(batch.blocks, by_env(block_ids(T, N)))


def test_discrete_actions_are_integers_in_one_row() -> None:
    buffer = make_buffer(actions=DISCRETE)
    batch = make_batch(buffer, no_faults())
    assert batch.actions.dtype == th.long
    assert_same(batch.actions, th.as_tensor(by_env(buffer.actions)[:, 0].astype(np.int64)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30])
@plain_and_dict
def test_faulty_samples_are_left_out_of_everything(space: spaces.Space[Any], value: float) -> None:
    buffer, faulty = make_buffer(space), no_faults()
    whole = make_batch(buffer, faulty)
    faulty[4, 1] = True
    buffer.advantages[7, 2] = buffer.returns[0, 0] = buffer.log_probs[11, 2] = value
    index = th.tensor([i for i in range(T * N) if i not in (1 * T + 4, 2 * T + 7, 0, 2 * T + 11)])
    assert_same(make_batch(buffer, faulty), whole.select(index))


# Buffers of the user's own


class Halving(RolloutBuffer):
    """Hands out other advantages than it holds."""

    def _get_samples(self, batch_inds: Array, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(advantages=0.5 * samples.advantages)


class Filtering(RolloutBuffer):
    """Hands out some of what it holds, in an order of its own."""

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        if not self.generator_ready:
            for name in FLATTENED:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        np.random.permutation(5)  # noqa: NPY002
        yield self._get_samples(np.arange(T * N)[::-2])


def test_samples_are_those_that_an_overridden_method_makes() -> None:
    batch, plain = make_batch(make_buffer(kind=Halving), no_faults()), make_batch(make_buffer(), no_faults())
    assert_same(batch, plain._replace(advantages=0.5 * plain.advantages))


@pytest.mark.parametrize("flattened", [False, True])
def test_samples_are_those_that_an_overridden_get_hands_out(flattened: bool) -> None:
    buffer = make_buffer(kind=Filtering)
    plain = make_batch(make_buffer(), no_faults())
    if flattened:
        next(iter(buffer.get()))
    before, random_state = state_of(buffer), np.random.get_state()[1:3]  # noqa: NPY002
    batch = make_batch(buffer, no_faults())
    assert_same(state_of(buffer), before)
    assert_same(np.random.get_state()[1:3], random_state)  # noqa: NPY002
    n = T * N // 2
    expected = plain.select(th.arange(T * N - 1, 0, -2))
    assert_same(batch[:4], expected[:4])
    assert_same((batch.signs, batch.blocks), (th.as_tensor(alternating_signs(n, 1)[:, 0]), block_ids(n, 1)[:, 0]))


class Rescaling(RolloutBuffer):
    """Changes advantages in ``get`` itself."""

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        for samples in super().get(batch_size):
            yield samples._replace(advantages=0.5 * samples.advantages)


class Shuffling(Rescaling):
    """... and shuffles what it was given, by random numbers of its own."""

    rng = th.Generator()

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        for samples in super().get(batch_size):
            order = th.randperm(len(samples.advantages), generator=self.rng)
            yield type(samples)(*(part[order] for part in samples))


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("size", [None, 7])
def test_the_order_of_a_get_is_found(flattened: bool, size: int | None) -> None:
    class InPieces(Rescaling):
        def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
            next(iter(super().get()))  # to have all made ready
            yield from super().get(size)

    buffer, faulty = make_buffer(kind=InPieces), no_faults()
    faulty[3, 1] = True
    if flattened:
        next(iter(buffer.get()))
    before = state_of(buffer)
    batch, plain = make_batch(buffer, faulty), make_batch(make_buffer(), faulty)
    assert_same(batch, plain._replace(advantages=0.5 * plain.advantages))
    assert_same(state_of(buffer), before)


def test_nobody_is_handed_what_is_faulty_in_an_unknown_order() -> None:
    buffer, faulty = make_buffer(kind=Shuffling), no_faults()
    faulty[3, 1] = True
    spoiled = th.as_tensor(in_time(buffer, "observations")[3, 1]).clone()
    assert (make_batch(make_buffer(kind=Shuffling), no_faults()).observations == spoiled).all(dim=1).any()
    batch = make_batch(buffer, faulty)
    assert batch.n_samples == T * N
    assert not (batch.observations == spoiled).all(dim=1).any()


def test_advantages_are_those_that_are_handed_out() -> None:
    held = make_buffer().advantages.reshape(T, N)
    assert_same(handed_out(make_buffer()), held.astype(np.float64))
    assert_same(handed_out(make_buffer(kind=Halving)), 0.5 * held.astype(np.float64))
    assert_same(handed_out(make_buffer(kind=Filtering)), held.astype(np.float64))
    assert_same(handed_out(make_buffer(kind=Rescaling)), 0.5 * held.astype(np.float64))
    # Nobody knows which steps these are of.
    assert handed_out(make_buffer(kind=Shuffling)) is None


# PPO's samples


@pytest.mark.parametrize("flattened", [False, True])
@plain_and_dict
def test_faulty_samples_give_way_to_sound_ones(space: spaces.Space[Any], flattened: bool) -> None:
    buffer, faulty = make_buffer(space), no_faults()
    faulty[4, 1] = True
    buffer.advantages[7, 2] = math.nan
    bad = faulty | ~np.isfinite(buffer.advantages)
    before = {name: copied(in_time(buffer, name)) for name in FLATTENED}
    if flattened:
        next(iter(buffer.get()))
    replace_faulty_samples(buffer, faulty)
    rows = {name: rows_of(in_time(buffer, name)) for name in FLATTENED}
    old = {name: rows_of(value) for name, value in before.items()}
    stand_ins = []
    for i, is_bad in enumerate(bad.ravel()):
        now = [rows[name][i].tobytes() for name in FLATTENED]
        if is_bad:  # all of a sample comes from one sound one
            origins = [j for j in range(T * N) if [old[name][j].tobytes() for name in FLATTENED] == now]
            assert len(origins) == 1
            stand_ins += origins
        else:
            assert now == [old[name][i].tobytes() for name in FLATTENED]
    assert len(set(stand_ins)) == 2
    assert not bad.ravel()[stand_ins].any()


def rows_of(value: Any) -> Array:
    """(T, N, ...) or a dict of those to (T·N, D)."""
    parts = value.values() if isinstance(value, dict) else [value]
    return np.concatenate([np.asarray(part, dtype=np.float64).reshape(T * N, -1) for part in parts], axis=1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_none_or_all_are_faulty_nothing_is_replaced(share: float) -> None:
    buffer = make_buffer()
    before = state_of(buffer)
    replace_faulty_samples(buffer, np.full((T, N), bool(share)))
    assert_same(state_of(buffer), before)

"""Samples are chosen, centred and thinned together."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.core.batch import BYTES_AT_ONCE, Batch, take
from sb3_trustregion.core.functional import pieces_for


def numbered(n: int) -> Batch:
    """A batch whose every field says which sample it is of."""
    row = th.arange(n, dtype=th.float64)
    observations = {"a": row[:, None], "b": row[:, None, None] * th.ones(1, 2, 2)}
    return Batch(observations, row[:, None], row, row, row, np.arange(n), row)


def test_a_selection_takes_the_same_samples_of_everything() -> None:
    index = th.tensor([4, 0, 2])
    chosen = numbered(5).select(index)
    assert chosen.n_samples == 3
    assert isinstance(chosen.observations, dict)
    for part in (*chosen.observations.values(), *chosen[1:5], th.as_tensor(chosen.blocks)):
        assert part.reshape(3, -1)[:, 0].tolist() == [4, 0, 2]


def test_observations_are_taken_from_tensors_and_dicts() -> None:
    rows = th.arange(4)
    assert take(rows, th.tensor([3, 1])).tolist() == [3, 1]
    taken = take({"a": rows, "b": -rows}, th.tensor([3, 1]))
    assert isinstance(taken, dict)
    assert (taken["a"].tolist(), taken["b"].tolist()) == ([3, 1], [-3, -1])


@pytest.mark.parametrize("scale", [False, True])
def test_centred_advantages_have_mean_zero(scale: bool) -> None:
    batch = numbered(101)
    centred = batch.centred(scale)
    assert float(centred.advantages.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(centred.advantages.std(unbiased=False)) == pytest.approx(1.0 if scale else 29.15, rel=1e-3)
    assert th.equal(centred.returns, batch.returns)
    assert batch.advantages[0] == 0.0


def test_equal_advantages_are_no_reason_for_infinity() -> None:
    equal = numbered(5)._replace(advantages=th.full((5,), 3.0))
    assert th.equal(equal.centred(scale=True).advantages, th.zeros(5))


def test_thinning_keeps_some_at_random_in_the_order_of_time() -> None:
    batch = numbered(100)
    assert batch.thinned(1) is batch
    kept, other = batch.thinned(4).returns, batch.thinned(4).returns
    assert len(kept) == 25
    assert bool((kept.diff() > 0).all())
    assert not th.equal(kept, other)
    assert batch.thinned(1000).n_samples == 2


@pytest.mark.parametrize(("actions", "n_pieces"), [(spaces.Discrete(4000), 16), (spaces.Discrete(2), 1)])
def test_what_is_made_of_many_actions_needs_little_memory_at_once(actions: spaces.Discrete, n_pieces: int) -> None:
    policy = ActorCriticPolicy(spaces.Box(-1.0, 1.0, (2,)), actions, lambda _: 1e-3, net_arch=[])
    pieces = pieces_for(policy, th.zeros(2048, 2))
    sizes = [len(range(2048)[piece]) for piece in pieces]
    assert (len(pieces), sum(sizes)) == (n_pieces, 2048)
    assert max(sizes) * actions.n * 4 * th.finfo(th.float64).bits // 8 <= BYTES_AT_ONCE

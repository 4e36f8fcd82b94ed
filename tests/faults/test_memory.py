"""Nothing piles up: what a long run keeps after many updates is what it kept after a few."""

import gc
import io
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from tests.faults.environments import healthy
from tests.helpers import MEASURING, make_model

N_STEPS, N_ENVS = 4, 4
N_UPDATES = 20


def live_tensors() -> tuple[int, int]:
    """How many tensors there are, and how many numbers they hold."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, th.Tensor)]
    return len(tensors), sum(tensor.numel() for tensor in tensors)


def size_of_file(model: Any) -> int:
    file = io.BytesIO()
    model.save(file)
    return file.getbuffer().nbytes


@pytest.mark.filterwarnings("ignore:.*updates without a policy step in a row", "ignore::FutureWarning")
@pytest.mark.parametrize("algorithm", MEASURING)
def test_nothing_piles_up(algorithm: type[Any]) -> None:
    env = VecNormalize(DummyVecEnv([healthy()] * N_ENVS))
    model = make_model(algorithm, env, n_steps=N_STEPS, policy_kwargs={"net_arch": []})
    kept, sizes = [], []
    for _ in range(3):
        model.learn(N_UPDATES * N_STEPS * N_ENVS, reset_num_timesteps=False)
        kept.append(live_tensors())
        sizes.append(size_of_file(model))
    # A step more or less is pending, and the last rejected one is kept for an update: less than a tensor an update.
    n_own = len(model.policy.state_dict())
    assert 3 * n_own < N_UPDATES
    assert abs(kept[2][0] - kept[1][0]) <= 3 * n_own
    n_numbers = sum(tensor.numel() for tensor in model.policy.state_dict().values())
    assert kept[2][1] - kept[1][1] <= 3 * n_numbers
    assert sizes[2] < 1.3 * sizes[1]

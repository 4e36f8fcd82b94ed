"""``learn`` of one rollout at a time, resetting each time or not: steps are judged all the same."""

from typing import Any

import pytest
from stable_baselines3.common.vec_env import VecNormalize

from tests.environments import toy_vec_env
from tests.helpers import MEASURING, make_model, shared, train

N_UPDATES = 8


@pytest.mark.parametrize(
    ("algorithm", "n_steps", "episode_length", "normalize"),
    shared([(32, 10, False), (32, 10, True), (16, 1000, False), (8, 4, False)], others=MEASURING),
)
def test_reset_each_time(algorithm: type[Any], n_steps: int, episode_length: int, normalize: bool) -> None:
    env = toy_vec_env(episode_length=episode_length, termination=0.0)
    model = make_model(algorithm, VecNormalize(env) if normalize else env, n_steps=n_steps, batch_size=16)
    logged = []
    for _ in range(N_UPDATES):
        logged += train(model, 1)
    judged = ["train/rho" in update.logged for update in logged]
    if normalize:  # the unit settles first
        assert sum(judged) >= (N_UPDATES - 1) // 2
    else:
        assert judged == [False] + [True] * (N_UPDATES - 1)
    assert model.region.n_judged > 0


@pytest.mark.parametrize("algorithm", MEASURING)
def test_reset_now_and_then(algorithm: type[Any]) -> None:
    """From the middle of episodes to their start is another phase: this one step is not judged."""
    model = make_model(algorithm, toy_vec_env(episode_length=1000, termination=0.0))
    updates = [*train(model, 3), *train(model, 3), *train(model, 2, reset_num_timesteps=False)]
    judged = ["train/rho" in update.logged for update in updates]
    assert judged == [False, True, True, False, True, True, True, True]


@pytest.mark.parametrize("algorithm", MEASURING)
def test_cartpole_in_a_loop(algorithm: type[Any]) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", n_steps=128, batch_size=64, device="cpu", seed=0)
    for _ in range(8):
        model.learn(128)
    assert model.region.n_judged >= 4

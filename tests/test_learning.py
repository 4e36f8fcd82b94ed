"""Each algorithm learns: a return that no untrained policy comes near, in seconds."""

from typing import Any

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO

N_ENVS = 16

pytestmark = pytest.mark.slow


def mean_return(model: Any, env: VecEnv, *, deterministic: bool) -> float:
    mean, _ = evaluate_policy(model, env, n_eval_episodes=16, deterministic=deterministic, warn=False)
    assert isinstance(mean, float)
    return mean


@pytest.mark.parametrize("algorithm", [NPG, AdaptivePPO])
def test_cartpole(algorithm: type[Any]) -> None:
    """An untrained policy balances for some 20 steps of 500."""
    env = make_vec_env("CartPole-v1", N_ENVS, seed=0)
    arguments = {"learning_rate": 1e-3} if algorithm is AdaptivePPO else {}
    model = algorithm("MlpPolicy", env, n_steps=64, batch_size=128, gamma=0.98, seed=0, device="cpu", **arguments)
    evaluation = make_vec_env("CartPole-v1", N_ENVS, seed=1)
    assert mean_return(model, evaluation, deterministic=False) < 50.0
    model.learn(16_000)
    assert mean_return(model, evaluation, deterministic=False) > 120.0


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, PenaltyPPO])
def test_pendulum(algorithm: type[Any]) -> None:
    """Upright costs little: some -150 to -300 an episode, against -1300 of an untrained policy."""
    env = VecNormalize(make_vec_env("Pendulum-v1", N_ENVS, seed=0), gamma=0.9)
    evaluation = VecNormalize(make_vec_env("Pendulum-v1", N_ENVS, seed=1), training=False, norm_reward=False)
    evaluation.obs_rms = env.obs_rms
    own = {"learning_rate": lambda left: 2e-3 * left} if algorithm is PenaltyPPO else {"target_kl": 0.03}
    arguments = {"n_steps": 64, "batch_size": 256, "gamma": 0.9, "use_sde": True, "sde_sample_freq": 4, **own}
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **arguments)
    assert mean_return(model, evaluation, deterministic=True) < -1000.0
    model.learn(30_000)
    assert mean_return(model, evaluation, deterministic=True) > -700.0
